//! I1 and I3 on a server whose synchronous standby is gone: a commit is in the stream and no
//! reader sees it.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use walsweep::throwaway::StopMode;

use crate::support::{Bed, PATIENCE, Sql, always, eventually};

pub(crate) const GHOST: &str = "synchronous_standby_names = 'ghost'";

/// How long a transaction is watched that nobody can see yet.
const WATCHED: Duration = Duration::from_secs(5);

/// Runs a statement in a session of its own, which waits for the ghost.
pub(crate) async fn stuck(bed: &Bed, statement: &'static str) -> JoinHandle<()> {
    let sql = Sql::connect(&bed.postgres).await;
    let waiting = tokio::spawn(async move {
        sql.run(statement).await;
    });
    waits(bed).await;
    waiting
}

/// Waits until a commit waits for a standby.
pub(crate) async fn waits(bed: &Bed) {
    eventually(PATIENCE, "the writer waits for its standby", || async {
        bed.sql
            .one("select exists (select from pg_stat_activity where wait_event = 'SyncRep')")
            .await
    })
    .await;
}

/// Ends the wait: the commit becomes visible without any standby.
pub(crate) async fn release(bed: &Bed) {
    bed.sql
        .run("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
        .await;
}

/// The stuck transaction's key stays, a later one's goes, the confirmed LSN stays below.
async fn check(bed: &Bed, stuck_key: &str) {
    // Behind its COMMIT; what comes before that may be confirmed.
    let written = bed.position().await;
    bed.fill(&["item:2", "list:team 2:a"]).await;
    let began = Instant::now();
    bed.sql.run("set synchronous_commit = local; update item set version = 1 where id = 2").await;
    let committed = began.elapsed();
    bed.gone("item:2").await;
    bed.gone("list:team 2:a").await;
    println!("overtaking: keys gone {:?} after the commit", began.elapsed() - committed);
    always(WATCHED, "the key of the stuck transaction stays", || async {
        bed.has(stuck_key).await && bed.confirmed().await < written
    })
    .await;
    release(bed).await;
    let after = bed.gone(stuck_key).await;
    println!("released: key gone {after:?} after the end of the wait");
}

#[tokio::test]
async fn a_commit_that_nobody_sees_keeps_its_keys_and_delays_no_other() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.postgres.conf(GHOST).await.unwrap();
    bed.fill(&["item:1", "list:team 1:a"]).await;
    let writer = stuck(&bed, "update item set version = 1 where id = 1").await;
    let seen: i64 = bed.sql.one("select version from item where id = 1").await;
    assert_eq!(seen, 0, "the commit is not visible");
    check(&bed, "item:1").await;
    bed.gone("list:team 1:a").await;
    writer.await.unwrap();
    bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();
    bed.settled().await;
    assert!(sidecar.metric("walsweep_invisible_at_arrival_total").await >= 1.0);
    assert!(sidecar.metric("walsweep_visibility_wait_seconds_sum").await >= WATCHED.as_secs_f64());
}

#[tokio::test]
async fn commit_prepared_is_gated_like_any_commit() {
    let bed = Bed::new(&["max_prepared_transactions = 10"]).await;
    let _sidecar = bed.sidecar().await;
    bed.fill(&["item:1"]).await;
    bed.sql.run("begin; update item set version = 1 where id = 1; prepare transaction 'p'").await;
    bed.sql.run("begin; update item set version = 9 where id = 3; prepare transaction 'q'").await;
    bed.settled().await;
    assert!(bed.has("item:1").await, "a prepared transaction removes nothing");
    bed.postgres.conf(GHOST).await.unwrap();
    let writer = stuck(&bed, "commit prepared 'p'").await;
    check(&bed, "item:1").await;
    writer.await.unwrap();
    bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();
    bed.fill(&["item:3"]).await;
    bed.sql.run("rollback prepared 'q'").await;
    bed.settled().await;
    assert!(bed.has("item:3").await, "what is rolled back removes nothing");
}

/// I6: a gate that waits answers keepalives; nothing is confirmed meanwhile (I2).
#[tokio::test]
async fn waiting_for_three_timeouts_keeps_the_connection() {
    let bed = Bed::new(&["wal_sender_timeout = 1s"]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.postgres.conf(GHOST).await.unwrap();
    bed.fill(&["item:1"]).await;
    let walsender = "select active_pid from pg_replication_slots";
    let pid: i32 = bed.sql.one(walsender).await;
    let writer = stuck(&bed, "update item set version = 1 where id = 1").await;
    let written = bed.position().await;
    always(Duration::from_millis(3500), "the connection stands", || async {
        bed.sql.one::<i32>(walsender).await == pid && bed.confirmed().await < written
    })
    .await;
    release(&bed).await;
    bed.gone("item:1").await;
    writer.await.unwrap();
    sidecar.assert_quiet(&["sweeping everything"]);
}

/// Doubt closes: a gate whose question fails lets nothing pass and confirms nothing (I1, I2).
#[tokio::test]
async fn a_gate_that_loses_its_connection_lets_nothing_pass() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.postgres.conf(GHOST).await.unwrap();
    bed.fill(&["item:1"]).await;
    let writer = stuck(&bed, "update item set version = 1 where id = 1").await;
    let written = bed.position().await;
    for round in 1..=3 {
        let lost = sidecar.metric_sum("walsweep_reconnects_total").await;
        let killed: i64 = bed
            .sql
            .one(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity
                  where application_name = 'walsweep'",
            )
            .await;
        assert_eq!(killed, 1, "round {round}: the gate's session");
        eventually(PATIENCE, "a new session", || async {
            sidecar.metric_sum("walsweep_reconnects_total").await > lost
                && sidecar.readyz().await == Some(200)
        })
        .await;
        assert!(bed.has("item:1").await, "round {round}");
        assert!(bed.confirmed().await < written, "round {round}");
    }
    release(&bed).await;
    bed.gone("item:1").await;
    writer.await.unwrap();
}

/// The 32-bit transaction ids of the stream wrap; the gate's snapshots have 64 bits.
#[tokio::test]
async fn transaction_ids_that_wrap_are_gated_as_any() {
    let mut bed = Bed::new(&[]).await;
    bed.sql.run("vacuum freeze").await;
    for database in ["template1", "postgres"] {
        let (client, connection) =
            tokio_postgres::connect(&bed.postgres.url_of(database), tokio_postgres::NoTls)
                .await
                .unwrap();
        tokio::spawn(connection);
        client.batch_execute("vacuum freeze").await.unwrap();
    }
    bed.postgres.stop(StopMode::Fast).await.unwrap();
    // The page of the commit log for the last ids before the wrap.
    let segment = bed.postgres.data_dir().join("pg_xact/0FFF");
    std::fs::copy(bed.postgres.data_dir().join("pg_xact/0000"), &segment).unwrap();
    std::fs::File::options().write(true).open(&segment).unwrap().set_len(256 * 1024).unwrap();
    let owner = std::fs::metadata(bed.postgres.data_dir()).unwrap();
    std::os::unix::fs::chown(&segment, Some(owner.uid()), Some(owner.gid())).unwrap();
    let mut reset = bed.postgres.command("pg_resetwal");
    let reset = reset.args(["-x", "4294967200", "-D"]).arg(bed.postgres.data_dir());
    assert!(reset.status().unwrap().success());
    bed.postgres.start_again().await.unwrap();
    bed.sql = Sql::connect(&bed.postgres).await;
    let xid: String = bed.sql.one("select pg_current_xact_id()::text").await;
    let sidecar = bed.sidecar().await;
    // Some 200 transactions before the wrap, as many after it.
    for version in 1..=400 {
        let id = version % 100 + 1;
        let key = format!("item:{id}");
        bed.fill(&[&key]).await;
        bed.sql.run(&format!("update item set version = {version} where id = {id}")).await;
        bed.gone(&key).await;
    }
    let after: String = bed.sql.one("select pg_current_xact_id()::text").await;
    let (xid, after): (u64, u64) = (xid.parse().unwrap(), after.parse().unwrap());
    assert!(xid < 1 << 32 && after > 1 << 32, "{xid} to {after}");
    // And one that is stuck across it all: later ids are smaller than its own in 32 bits or not.
    bed.postgres.conf(GHOST).await.unwrap();
    bed.fill(&["item:1"]).await;
    let writer = stuck(&bed, "update item set version = 999 where id = 1").await;
    check(&bed, "item:1").await;
    writer.await.unwrap();
    sidecar.assert_quiet(&["sweeping everything"]);
}
