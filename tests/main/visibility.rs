//! I1 and I3 on a server whose synchronous standby is gone: a commit is in the stream and no
//! reader sees it.

use std::cell::RefCell;
use std::os::unix::fs::MetadataExt as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use walsweep::channel::channel;
use walsweep::gather::Transaction;
use walsweep::keys::Rules;
use walsweep::lsn::Lsn;
use walsweep::postgres::{Endpoint, connect_sql};
use walsweep::settle::{self, Gate, Holder, Input, Mapped, Probe, Snapshot, SqlProbe, Visible};
use walsweep::telemetry::Health;
use walsweep::telemetry::metrics::Metrics;
use walsweep_stage::throwaway::StopMode;

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
        let session = "select coalesce(max(pid), 0) from pg_stat_activity
                  where application_name = 'walsweep'";
        let pid: i32 = bed.sql.one(session).await;
        let killed: bool = bed.sql.one(&format!("select pg_terminate_backend({pid})")).await;
        assert!(killed, "round {round}: the gate's session");
        // The pages are of another thread, and may tell of the session before for a moment.
        eventually(PATIENCE, "a new session", || async {
            sidecar.metric_sum("walsweep_reconnects_total").await > lost
                && ![0, pid].contains(&bed.sql.one::<i32>(session).await)
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

/// Starts the server again with `next` as the next transaction id; no row has an older one.
async fn jump(bed: &mut Bed, next: u64) {
    let (epoch, xid) = (next >> 32, u32::try_from(next & 0xFFFF_FFFF).unwrap());
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
    // The page of the commit log for these ids.
    let data = bed.postgres.data_dir();
    let segment = data.join(format!("pg_xact/{:04X}", xid / (1 << 20)));
    std::fs::copy(data.join("pg_xact/0000"), &segment).unwrap();
    std::fs::File::options().write(true).open(&segment).unwrap().set_len(256 * 1024).unwrap();
    let owner = std::fs::metadata(data).unwrap();
    std::os::unix::fs::chown(&segment, Some(owner.uid()), Some(owner.gid())).unwrap();
    let mut reset = bed.postgres.command("pg_resetwal");
    let oldest = xid.wrapping_sub(1 << 30).max(3).to_string();
    let (epoch, xid) = (epoch.to_string(), xid.to_string());
    let reset = reset.args(["-e", &epoch, "-x", &xid, "-u", &oldest, "-D"]).arg(data);
    assert!(reset.status().unwrap().success());
    bed.postgres.start_again().await.unwrap();
    bed.sql = Sql::connect(&bed.postgres).await;
}

/// The gate asks the server that the last session of it reached: its memory outlives what a test
/// has to do to let ids go far ahead, which takes days otherwise.
struct Across(Rc<RefCell<Rc<SqlProbe>>>);

impl Probe for Across {
    async fn snapshot(&self) -> Result<Snapshot, settle::Error> {
        let probe = Rc::clone(&self.0.borrow());
        probe.snapshot().await
    }

    async fn fence(&self) -> Result<u64, settle::Error> {
        let probe = Rc::clone(&self.0.borrow());
        probe.fence().await
    }

    async fn position(&self) -> Result<Lsn, settle::Error> {
        let probe = Rc::clone(&self.0.borrow());
        probe.position().await
    }

    async fn committed(&self, xids: &[u64]) -> Result<Vec<bool>, settle::Error> {
        let probe = Rc::clone(&self.0.borrow());
        probe.committed(xids).await
    }

    async fn holders(&self, xids: &[u64]) -> Result<Vec<Holder>, settle::Error> {
        let probe = Rc::clone(&self.0.borrow());
        probe.holders(xids).await
    }
}

async fn probe(bed: &Bed) -> Rc<SqlProbe> {
    let sql = connect_sql(&Endpoint::parse(&bed.postgres.url()).unwrap(), "gate").await.unwrap();
    Rc::new(SqlProbe::new(Rc::new(sql)).await.unwrap())
}

/// The half of an id that the stream tells.
fn low(xid: i64) -> u32 {
    u32::try_from(xid & 0xFFFF_FFFF).unwrap()
}

/// A commit as the stream tells of it.
fn committed(xid: u32) -> Input {
    let (commit_lsn, end_lsn) = (Lsn(1), Lsn(2));
    let transaction = Transaction { xid, commit_lsn, end_lsn, commit_time: 0 };
    let keys = Rules::compile(&[]).unwrap().key_set();
    Input::Transaction(Box::new(Mapped { transaction, received_at: Instant::now(), keys }))
}

/// More than 2^31 ids after the last look, new ids are behind it in 32 bits.
#[tokio::test]
async fn ids_far_ahead_of_the_last_look_are_not_taken_for_the_past() {
    let mut bed = Bed::new(&[]).await;
    let start = 3_000_000_000;
    jump(&mut bed, start).await;
    let current = Rc::new(RefCell::new(probe(&bed).await));
    let health = Arc::new(Health::new(Arc::new(Metrics::new(&[]))));
    let (inputs, gate_inputs) = channel(16);
    let (outputs, mut visible) = channel::<Visible>(16);
    let gate = Gate::new(Across(Rc::clone(&current)), health).run(gate_inputs, outputs);
    let test = async {
        let before: i64 = bed.sql.one("select pg_current_xact_id()::text::bigint").await;
        inputs.send(committed(low(before))).await.unwrap();
        assert!(visible.recv().await.is_some(), "it is remembered what was seen");
        jump(&mut bed, start + (1 << 31) + 20_000_000).await;
        current.replace(probe(&bed).await);
        bed.postgres.conf(GHOST).await.unwrap();
        let first = stuck(&bed, "update item set version = 1 where id = 1").await;
        let sql = Sql::connect(&bed.postgres).await;
        let second = tokio::spawn(async move {
            sql.run("update item set version = 1 where id = 2").await;
        });
        let waiting = "select coalesce(array_agg(backend_xid::text::bigint), '{}')
                         from pg_stat_activity where wait_event = 'SyncRep'";
        eventually(PATIENCE, "two wait", || async {
            bed.sql.one::<Vec<i64>>(waiting).await.len() == 2
        })
        .await;
        for xid in bed.sql.one::<Vec<i64>>(waiting).await {
            inputs.send(committed(low(xid))).await.unwrap();
        }
        let early = tokio::time::timeout(Duration::from_secs(2), visible.recv()).await;
        let seen: i64 = bed.sql.one("select max(version) from item").await;
        assert_eq!((early.is_ok(), seen), (false, 0), "readers see the old rows");
        release(&bed).await;
        for _ in 0..2 {
            assert!(visible.recv().await.is_some());
        }
        first.await.unwrap();
        second.await.unwrap();
    };
    tokio::select! {
        biased;
        () = test => {}
        ended = gate => panic!("{ended:?}"),
    }
}

/// The 32-bit transaction ids of the stream wrap; the gate's snapshots have 64 bits.
#[tokio::test]
async fn transaction_ids_that_wrap_are_gated_as_any() {
    let mut bed = Bed::new(&[]).await;
    jump(&mut bed, (1 << 32) - 96).await;
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
