//! `PREPARE TRANSACTION`: nothing goes before `COMMIT PREPARED` is visible, exactly what survived
//! goes then, and a transaction that stays prepared holds up no other.

use std::thread;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use walsweep_stage::throwaway::StopMode;

use crate::limits::resident;
use crate::streaming::SLOT_BY_HAND;
use crate::streaming::{assert_exact, cached, insert, received, set_up};
use crate::support::{Bed, PATIENCE, Sidecar, Sql, always, eventually, text};
use crate::visibility::{GHOST, release, stuck};

const CONF: &str = "max_prepared_transactions = 150";

/// Prepares a transaction of some 19 000 rows from this id on; half of them survive in it.
async fn prepare_large(bed: &Bed, name: &str, first: i32) {
    let rows = |part: i32| insert(first + part * 3_000, first + part * 3_000 + 2_999);
    let script = [
        "begin;",
        &rows(0),
        "savepoint a;",
        &rows(1),
        "savepoint b;",
        &rows(2),
        "rollback to b;",
        &rows(3),
        "release a;",
        "savepoint c;",
        &rows(4),
        "savepoint d;",
        &rows(5),
        "release d;",
        "rollback to c;",
        // Some that were undone, once more: these survive.
        &insert(first + 12_000, first + 12_099),
        &format!("prepare transaction '{name}'"),
    ];
    bed.sql.run(&script.concat()).await;
}

/// The keys that are cached while nothing of [`prepare_large`] is committed.
async fn assert_untouched(bed: &Bed, ids: usize) {
    bed.settled().await;
    assert_eq!(cached(bed).await.len(), ids, "what is only prepared removes nothing");
}

#[tokio::test]
async fn a_small_one_counts_when_it_is_committed() {
    let bed = Bed::new(&[CONF]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.fill(&["item:1", "item:2", "item:3", "list:team 1:a", "list:team 2:a"]).await;
    bed.sql
        .run(
            "begin; update item set version = 1 where id = 1; savepoint s;
             update item set version = 1 where id = 3; rollback to s; prepare transaction 'p'",
        )
        .await;
    bed.sql.run("begin; update item set version = 1 where id = 2; prepare transaction 'q'").await;
    // Confirmed beyond both, and nothing went.
    bed.settled().await;
    for key in ["item:1", "item:2", "item:3", "list:team 1:a", "list:team 2:a"] {
        assert!(bed.has(key).await, "{key}");
    }
    bed.sql.run("commit prepared 'p'").await;
    bed.gone("item:1").await;
    bed.gone("list:team 1:a").await;
    bed.sql.run("rollback prepared 'q'").await;
    bed.settled().await;
    for key in ["item:2", "item:3", "list:team 2:a"] {
        assert!(bed.has(key).await, "{key} is of what was undone");
    }
    sidecar.assert_quiet(&["sweeping everything", SLOT_BY_HAND]);
}

/// I2: what came in blocks before a crash comes again, wherever the second phase falls.
#[tokio::test]
async fn a_crash_between_the_phases_loses_nothing_and_takes_nothing_else() {
    let (mut bed, mut sidecar) = set_up(&[CONF], 80_000).await;
    // A commit that nobody sees holds back the confirmation, so that all blocks are sent again.
    bed.postgres.conf(GHOST).await.unwrap();
    let writer = stuck(&bed, "update item set version = 1 where id = 1").await;
    bed.sql.run("set synchronous_commit = local").await;
    for (at, name) in ["kept", "undone", "down", "last"].into_iter().enumerate() {
        prepare_large(&bed, name, i32::try_from(at).unwrap() * 20_000 + 1).await;
    }
    received(&sidecar, 40_000.0).await;
    sidecar.kill9();
    sidecar.start();
    sidecar.wait_ready().await;
    received(&sidecar, 40_000.0).await;
    assert_eq!(cached(&bed).await.len(), 80_000);
    release(&bed).await;
    writer.await.unwrap();
    assert_untouched(&bed, 80_000).await;
    // From here on all of them lie before what is confirmed: the server keeps them to their commit.
    sidecar.kill9();
    sidecar.start();
    sidecar.wait_ready().await;
    assert_untouched(&bed, 80_000).await;
    bed.sql.run("commit prepared 'kept'").await;
    assert_exact(&bed, 80_000).await;
    bed.sql.run("rollback prepared 'undone'").await;
    assert_exact(&bed, 80_000).await;
    sidecar.kill9();
    bed.sql.run("commit prepared 'down'").await;
    sidecar.start();
    sidecar.wait_ready().await;
    assert_exact(&bed, 80_000).await;
    // Prepared transactions outlive the server, too.
    bed.postgres.restart(StopMode::Fast).await.unwrap();
    bed.sql = Sql::connect(&bed.postgres).await;
    bed.sql.run("set synchronous_commit = local").await;
    eventually(PATIENCE, "it streams again", || async { sidecar.readyz().await == Some(200) })
        .await;
    bed.sql.run("commit prepared 'last'").await;
    assert_exact(&bed, 80_000).await;
    let resyncs = sidecar.metric_sum("walsweep_resyncs_total").await;
    assert!(resyncs < 1.0, "{resyncs}: history is unbroken");
}

/// The longest time from an update to its key's removal, of so many.
async fn longest(bed: &Bed, count: u32) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..count {
        bed.fill(&["item:1"]).await;
        let began = Instant::now();
        bed.sql.run("update item set version = version + 1 where id = 1").await;
        bed.gone("item:1").await;
        longest = longest.max(began.elapsed());
    }
    longest
}

/// I3 and I6, also after a restart, from which on the server keeps them to their commit.
#[tokio::test]
async fn many_that_stay_prepared_hold_up_no_other() {
    let (bed, mut sidecar) = set_up(&[CONF], 60_000).await;
    let alone = longest(&bed, 50).await;
    for number in 0..100 {
        let id = 59_000 + number;
        bed.sql.run(&format!("begin; {} prepare transaction 'small {id}'", insert(id, id))).await;
    }
    for number in 0..20 {
        let first = number * 2_500 + 1;
        let part = format!("savepoint s; {} rollback to s;", insert(first, first));
        let rows = insert(first, first + 2_499);
        bed.sql.run(&format!("begin; {part} {rows} prepare transaction 'large {number}'")).await;
    }
    received(&sidecar, 30_000.0).await;
    let mut peak = resident(sidecar.id());
    // What they wrote is read first, as it stands in the log.
    assert_untouched(&bed, 60_000).await;
    let mut worst = longest(&bed, 100).await;
    sidecar.kill9();
    sidecar.start();
    sidecar.wait_ready().await;
    // The server reads its log from the oldest of them on, first.
    bed.settled().await;
    worst = worst.max(longest(&bed, 100).await);
    peak = peak.max(resident(sidecar.id()));
    println!("longest alone {alone:?}, beside 120 prepared {worst:?}; {peak} KiB resident");
    assert!(worst < Duration::from_secs(1), "{worst:?} beside {alone:?} alone");
    assert!(peak < 64 * 1024, "{peak} KiB resident");
    assert_untouched(&bed, 60_000).await;
    for number in 0..100 {
        let end = if number % 2 == 0 { "commit" } else { "rollback" };
        bed.sql.run(&format!("{end} prepared 'small {}'", 59_000 + number)).await;
    }
    for number in 0..20 {
        let end = if number % 2 == 0 { "commit" } else { "rollback" };
        bed.sql.run(&format!("{end} prepared 'large {number}'")).await;
    }
    assert_exact(&bed, 60_000).await;
    sidecar.assert_quiet(&["sweeping everything", SLOT_BY_HAND]);
}

/// The kinds of messages that the server would send of the slot now.
async fn would_be_sent(sql: &Sql) -> String {
    let peek = "select data from pg_logical_slot_peek_binary_changes('walsweep', null, null,
                  'proto_version', '1', 'publication_names', 'walsweep')";
    let rows = sql.client().query(peek, &[]).await.unwrap();
    rows.iter().map(|row| char::from(row.get::<_, &[u8]>(0)[0])).collect()
}

/// A server from 15 on sends the rows of such a slot at PREPARE, though nobody asks for it; at the
/// commit a word without rows follows. 14 has no such messages. Neither is streamed.
#[tokio::test]
async fn a_slot_that_decodes_at_prepare_is_refused_with_a_cure_and_nothing_is_lost() {
    let bed = Bed::new(&[CONF]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.sql.run("select pg_drop_replication_slot('walsweep')").await;
    let create = "select pg_create_logical_replication_slot('walsweep', 'pgoutput', false, true)";
    bed.sql.run(create).await;
    bed.fill(&["item:1", "item:2"]).await;
    bed.sql.run("begin; update item set version = 1 where id = 1; prepare transaction 'p'").await;
    let version = bed.version().await;
    let at_prepare = would_be_sent(&bed.sql).await;
    assert_eq!(at_prepare, if version < 15 { "" } else { "bRUP" });
    bed.sql.run("commit prepared 'p'").await;
    let at_commit = would_be_sent(&bed.sql).await;
    assert_eq!(at_commit, if version < 15 { "BRUC" } else { "bRUPK" });
    let checked = sidecar.command(&["check"]);
    assert!(!checked.status.success());
    for part in ["slot_two_phase", "PREPARE TRANSACTION", "drop that slot"] {
        assert!(text(&checked).contains(part), "no `{part}`: {}", text(&checked));
    }
    assert!(!sidecar.command(&["setup"]).status.success());
    let confirmed = bed.confirmed().await;
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    sidecar.wait_log("decodes at PREPARE TRANSACTION").await;
    assert_eq!(bed.confirmed().await, confirmed, "nothing was taken from it");
    assert!(bed.has("item:1").await);
    bed.sql.run("begin; update item set version = 1 where id = 2; prepare transaction 'q'").await;
    cure(&bed, version).await;
    bed.sql.run("commit prepared 'q'").await;
    sidecar.start();
    sidecar.wait_ready().await;
    bed.gone("item:1").await;
    bed.gone("item:2").await;
    bed.settled().await;
}

/// Does what the hint says; from 18 on takes another way, which keeps the slot.
async fn cure(bed: &Bed, version: i32) {
    if version < 18 {
        bed.sql.run("select pg_drop_replication_slot('walsweep')").await;
        return;
    }
    let url = format!("{}?replication=database", bed.postgres.url());
    let mut psql = bed.postgres.command("psql");
    psql.args([&url, "-Xqc", "ALTER_REPLICATION_SLOT walsweep (TWO_PHASE false)"]);
    assert!(psql.status().unwrap().success());
    assert_eq!(would_be_sent(&bed.sql).await, "BRUC");
}

/// The server makes no slot before it has ended: that is told, and the wait ends with it.
#[tokio::test]
async fn one_from_before_the_slot_is_waited_for() {
    let bed = Bed::new(&[CONF]).await;
    bed.fill(&["item:1", "other"]).await;
    bed.sql.run("begin; update item set version = 1 where id = 1; prepare transaction 'p'").await;
    bed.sql.run("create publication walsweep for table item").await;
    let mut sidecar = Sidecar::new(bed.settings());
    let checked = text(&sidecar.command(&["check"]));
    for part in ["slot_waits", "prepared transactions, 1", "rollback prepared"] {
        assert!(checked.contains(part), "no `{part}`: {checked}");
    }
    sidecar.start();
    sidecar.wait_log("creating the slot takes long").await;
    always(Duration::from_secs(1), "it is alive and not ready", || async {
        sidecar.get("/healthz").await.is_some_and(|(status, _)| status == 200)
            && sidecar.readyz().await != Some(200)
    })
    .await;
    let (_, why) = sidecar.get("/readyz").await.unwrap();
    assert!(why.contains("prepared transaction `p`"), "it names whom it waits for: {why}");
    assert!(bed.has("item:1").await);
    bed.sql.run("commit prepared 'p'").await;
    sidecar.wait_ready().await;
    bed.gone("item:1").await;
    assert!(bed.has("other").await);
    assert!(!text(&sidecar.command(&["check"])).contains("slot_waits"));
}

/// `setup` says so, too, instead of standing still without a word.
#[tokio::test]
async fn setup_tells_what_a_new_slot_waits_for() {
    let bed = Bed::new(&[CONF]).await;
    bed.sql.run("begin; update item set version = 1 where id = 1; prepare transaction 'p'").await;
    let sidecar = Sidecar::new(bed.settings());
    let setup = thread::spawn(move || text(&sidecar.command(&["setup"])));
    eventually(PATIENCE, "a slot is being created", || async {
        bed.sql.one::<i64>("select count(*) from pg_replication_slots").await == 1
    })
    .await;
    sleep(Duration::from_secs(4)).await;
    bed.sql.run("commit prepared 'p'").await;
    let told = setup.join().unwrap();
    assert!(told.contains("creating the slot takes long"), "{told}");
    assert!(told.contains("pg_create_logical_replication_slot"), "{told}");
}
