//! A slot, from its creation to its end.

use std::time::Duration;

use tokio::time::Instant;
use walsweep::capture::{self, Frame, Slot, SlotKind, SlotProblem, StreamOptions};
use walsweep::lsn::Lsn;
use walsweep_stage::throwaway::Signal;

use crate::server::Server;

async fn prepare(server: &Server) {
    let sql = server.sql().await;
    sql.batch_execute("create table t (id int primary key)").await.unwrap();
    sql.batch_execute("create publication \"P'ub\\\" for table t").await.unwrap();
    server.replication().await.create_slot("s", SlotKind::Plain).await.unwrap();
}

async fn stream(server: &Server) -> Result<Slot, capture::Error> {
    server.replication().await.start("s", "P'ub\\", StreamOptions::default()).await
}

/// Reads to the next commit. Gives the kinds of the messages, and the commit's end.
async fn transaction(slot: &mut Slot) -> (String, Lsn) {
    let mut kinds = String::new();
    loop {
        if let Frame::Data { payload, .. } = slot.next().await.unwrap() {
            kinds.push(char::from(payload[0]));
            if payload[0] == b'C' {
                return (kinds, Lsn(u64::from_be_bytes(payload[10..18].try_into().unwrap())));
            }
        }
    }
}

async fn confirmed_flush_lsn(server: &Server) -> Lsn {
    let query = "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = 's'";
    let text: String = server.sql().await.query_one(query, &[]).await.unwrap().get(0);
    text.parse().unwrap()
}

/// Asks for a keepalive and waits for it: the server has read the status update by then.
async fn report(slot: &mut Slot) {
    slot.send_status(true).await.unwrap();
    while !matches!(slot.next().await.unwrap(), Frame::Keepalive { .. }) {}
}

#[tokio::test]
async fn a_slot_is_created_streamed_confirmed_and_dropped() {
    let server = Server::start().await;
    let mut replication = server.replication().await;
    let identity = replication.identify_system().await.unwrap();
    assert_eq!(identity.history.timeline, 1);
    let query = "select system_identifier::text from pg_control_system()";
    let system_id: String = server.sql().await.query_one(query, &[]).await.unwrap().get(0);
    assert_eq!(identity.history.system_id, system_id);

    prepare(&server).await;
    let created = confirmed_flush_lsn(&server).await;
    assert!(created >= identity.xlogpos);
    let mut slot = stream(&server).await.unwrap();
    let sql = server.sql().await;
    sql.batch_execute("insert into t values (1)").await.unwrap();
    let (kinds, end) = transaction(&mut slot).await;
    assert_eq!(kinds, "BRIC");

    report(&mut slot).await;
    assert_eq!(confirmed_flush_lsn(&server).await, created, "nothing was confirmed");
    slot.confirm(end);
    report(&mut slot).await;
    assert_eq!(confirmed_flush_lsn(&server).await, end);

    sql.batch_execute("select pg_logical_emit_message(true, 'p', 'x')").await.unwrap();
    let (kinds, end) = transaction(&mut slot).await;
    assert_eq!(kinds, "BMC");
    slot.confirm(end);
    slot.close(Duration::from_secs(10)).await.unwrap();
    assert_eq!(confirmed_flush_lsn(&server).await, end, "close confirms");

    // What was confirmed does not come again, what comes later does.
    let mut slot = stream(&server).await.unwrap();
    sql.batch_execute("delete from t").await.unwrap();
    assert_eq!(transaction(&mut slot).await.0, "BRDC");
    slot.close(Duration::from_secs(10)).await.unwrap();
    replication.drop_slot("s").await.unwrap();
    let left = sql.query("select from pg_replication_slots", &[]).await.unwrap();
    assert!(left.is_empty());
}

#[tokio::test]
async fn an_unconfirmed_transaction_comes_again() {
    let server = Server::start().await;
    prepare(&server).await;
    let mut slot = stream(&server).await.unwrap();
    server.sql().await.batch_execute("insert into t values (1)").await.unwrap();
    let first = transaction(&mut slot).await;
    slot.close(Duration::from_secs(10)).await.unwrap();
    assert_eq!(transaction(&mut stream(&server).await.unwrap()).await, first);
}

#[tokio::test]
async fn what_is_the_matter_with_a_slot_can_be_told_apart() {
    let server = Server::start().await;
    let error = stream(&server).await.unwrap_err();
    assert_eq!(error.slot_problem(), Some(SlotProblem::Missing), "{error}");
    let mut replication = server.replication().await;
    let error = replication.drop_slot("s").await.unwrap_err();
    assert_eq!(error.slot_problem(), Some(SlotProblem::Missing), "{error}");

    // The session survived that, and a second slot of the name is refused.
    prepare(&server).await;
    let error = replication.create_slot("s", SlotKind::Plain).await.unwrap_err();
    assert_eq!((error.sql_state(), error.slot_problem()), (Some("42710"), None), "{error}");

    let slot = stream(&server).await.unwrap();
    for error in [stream(&server).await.unwrap_err(), replication.drop_slot("s").await.unwrap_err()]
    {
        assert_eq!(error.sql_state(), Some("55006"), "{error}");
        assert_eq!(error.slot_problem(), Some(SlotProblem::Active));
    }
    slot.close(Duration::from_secs(10)).await.unwrap();

    // A missing publication is not a missing slot, and no reason to stream on without changes.
    let mut slot = replication.start("s", "absent", StreamOptions::default()).await.unwrap();
    server.sql().await.batch_execute("insert into t values (1)").await.unwrap();
    let error = loop {
        if let Err(error) = slot.next().await {
            break error;
        }
    };
    let state = if server.version().await < 180_000 { "42704" } else { "55000" };
    assert_eq!((error.sql_state(), error.slot_problem()), (Some(state), None), "{error}");
}

#[tokio::test]
async fn a_slot_whose_log_is_gone_is_told_as_invalidated() {
    let server = Server::start().await;
    prepare(&server).await;
    let sql = server.sql().await;
    for command in [
        "alter system set max_slot_wal_keep_size = '1MB'",
        "select pg_reload_conf()",
        "insert into t values (1)",
    ] {
        sql.batch_execute(command).await.unwrap();
    }
    let query = "select wal_status from pg_replication_slots";
    let deadline = Instant::now() + Duration::from_secs(30);
    while sql.query_one(query, &[]).await.unwrap().get::<_, &str>(0) != "lost" {
        assert!(Instant::now() < deadline);
        for command in ["select pg_switch_wal()", "update t set id = id + 1", "checkpoint"] {
            sql.batch_execute(command).await.unwrap();
        }
    }
    let error = stream(&server).await.unwrap_err();
    assert_eq!(error.slot_problem(), Some(SlotProblem::Invalidated), "{error}");
}

#[tokio::test]
async fn a_server_that_dies_or_stops_ends_the_stream_at_once() {
    for signal in [Signal::Quit, Signal::Int] {
        let server = Server::start().await;
        prepare(&server).await;
        let mut slot = stream(&server).await.unwrap();
        server.signal(signal);
        let error = loop {
            match tokio::time::timeout(Duration::from_secs(20), slot.next()).await.unwrap() {
                Ok(Frame::Keepalive { wal_end, .. }) => {
                    // A server that stops waits until all of its log is confirmed.
                    slot.confirm(wal_end);
                    drop(slot.send_status(false).await);
                }
                Ok(Frame::Data { .. } | Frame::Part { .. }) => panic!("nothing was written"),
                Err(error) => break error,
            }
        };
        let expected = match signal {
            Signal::Int => matches!(error, capture::Error::Ended | capture::Error::Stream(_)),
            _ => matches!(
                error,
                capture::Error::Stream(_) | capture::Error::Closed | capture::Error::Io(_)
            ),
        };
        assert!(expected, "{signal:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_walsender_that_is_terminated_is_an_error_of_its_own() {
    let server = Server::start().await;
    prepare(&server).await;
    let mut slot = stream(&server).await.unwrap();
    let query = "select pg_terminate_backend(active_pid) from pg_replication_slots";
    server.sql().await.batch_execute(query).await.unwrap();
    let error = loop {
        if let Err(error) = slot.next().await {
            break error;
        }
    };
    assert_eq!(error.sql_state(), Some("57P01"), "{error}");
}

#[tokio::test]
async fn a_backlog_streams_completely_and_in_order() {
    let server = Server::start().await;
    prepare(&server).await;
    let load = "do $$ begin for i in 0..49 loop
        insert into t select generate_series(i * 1000 + 1, i * 1000 + 1000); commit;
        end loop; end $$";
    server.sql().await.batch_execute(load).await.unwrap();
    let mut slot = stream(&server).await.unwrap();
    let mut expected = 1..=50_000;
    while !expected.is_empty() {
        if let Frame::Data { payload, .. } = slot.next().await.unwrap()
            && payload[0] == b'I'
        {
            // Insert, relation, `N`, one column, text: its length, and the text.
            let text = std::str::from_utf8(&payload[13..]).unwrap();
            assert_eq!(text.parse().ok(), expected.next());
        }
    }
}
