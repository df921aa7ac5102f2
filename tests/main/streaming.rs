//! Large transactions, which Postgres sends in blocks while they run: exactly the keys of the rows
//! that survive go, and not before readers see them.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use walsweep_stage::throwaway::{Signal, signal};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, always, eventually};

/// A warning of the first start with a slot that the test made itself, beside its own publication:
/// nothing tells walsweep whose it is.
pub(crate) const SLOT_BY_HAND: &str = "may be another program's: publication";
use crate::visibility::{GHOST, release, stuck, waits};

const RULES: &str = r#"
[[rule]]
name = "big"
table = "public.big"
keys = ["big:{id}"]

[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}"]
"#;

/// Some 2 000 of these rows are what the server holds back of a transaction in memory.
const TABLE: &str = "create table big (junk int, id int primary key, pad text);
                     alter table big alter pad set storage plain";

/// A bed with the table, empty; a sidecar; the keys of these ids are cached.
pub(crate) async fn set_up(conf: &[&str], ids: i32) -> (Bed, Sidecar) {
    set_up_with(RULES, conf, ids).await
}

/// Like [`set_up`], with other rules.
async fn set_up_with(rules: &str, conf: &[&str], ids: i32) -> (Bed, Sidecar) {
    let bed = Bed::new(conf).await;
    bed.sql.run(TABLE).await;
    // A listed column could not be altered; and what is altered would be swept, right or wrong.
    bed.sql.run("create publication walsweep for table big, item").await;
    let env = vec![("WALSWEEP_TEST_UNWATCHED".to_owned(), "1".to_owned())];
    let settings = Settings { rules: rules.to_owned(), env, ..bed.settings() };
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    let mut pipeline = redis::pipe();
    for id in 1..=ids {
        pipeline.set(format!("big:{id}"), 1).ignore();
    }
    pipeline.exec_async(&mut bed.cache.clone()).await.unwrap();
    (bed, sidecar)
}

/// A statement that inserts rows with these ids.
pub(crate) fn insert(first: i32, last: i32) -> String {
    format!(
        "insert into big select 0, id, repeat('x', 500) from generate_series({first}, {last}) id;"
    )
}

/// The ids whose keys are cached.
pub(crate) async fn cached(bed: &Bed) -> BTreeSet<i32> {
    let (mut ids, mut cursor) = (BTreeSet::new(), 0);
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg("big:*").arg("COUNT").arg(1_000);
        // Where every processor is taken, a client gives up before Redis has answered.
        let page = scan.query_async::<(u64, Vec<String>)>(&mut bed.cache.clone()).await;
        let Ok((next, keys)) = page else { continue };
        ids.extend(keys.iter().map(|key| key["big:".len()..].parse::<i32>().unwrap()));
        cursor = next;
        if cursor == 0 {
            return ids;
        }
    }
}

/// The ids of the rows that a reader sees.
async fn rows(bed: &Bed) -> BTreeSet<i32> {
    let rows = bed.sql.client().query("select id from big", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Waits until this many changes were received.
pub(crate) async fn received(sidecar: &Sidecar, changes: f64) {
    eventually(PATIENCE, "changes of a transaction that runs", || async {
        sidecar.metric_sum("walsweep_changes_total").await >= changes
    })
    .await;
}

/// Of the ids 1 to `last` exactly those of rows are not cached any more.
pub(crate) async fn assert_exact(bed: &Bed, last: i32) {
    bed.settled().await;
    let rows = rows(bed).await;
    let left: BTreeSet<i32> = (1..=last).filter(|id| !rows.contains(id)).collect();
    let cached = cached(bed).await;
    let wrong: Vec<i32> = cached.symmetric_difference(&left).copied().take(10).collect();
    assert!(wrong.is_empty(), "{} rows, {} keys left: {wrong:?}", rows.len(), cached.len());
}

#[tokio::test]
async fn of_200_savepoints_only_the_surviving_rows_go() {
    let (bed, sidecar) = set_up(&[], 20_000).await;
    let mut script = "begin;".to_owned();
    for savepoint in 0..200 {
        let first = savepoint * 100 + 1;
        let end = if savepoint % 2 == 0 { "release" } else { "rollback to" };
        script += &format!("savepoint s; {} {end} s;", insert(first, first + 99));
    }
    bed.sql.run(&(script + "commit")).await;
    assert_eq!(rows(&bed).await.len(), 10_000);
    assert_exact(&bed, 20_000).await;
    sidecar.assert_quiet(&["sweeping everything", SLOT_BY_HAND]);
}

#[tokio::test]
async fn nested_savepoints_take_with_them_what_is_inside() {
    let (bed, sidecar) = set_up(&[], 30_000).await;
    let rows = |first| insert(first, first + 2_999);
    let script = [
        "begin;",
        &rows(1),
        // What is released inside goes with what is around it.
        "savepoint outer_a;",
        &rows(3_001),
        "savepoint inner_a;",
        &rows(6_001),
        "release inner_a;",
        &rows(9_001),
        "rollback to outer_a;",
        // The same rows again, and this time they stay.
        &rows(6_001),
        "savepoint outer_b;",
        &rows(12_001),
        "savepoint inner_b;",
        &rows(15_001),
        "rollback to inner_b;",
        &rows(18_001),
        "release outer_b;",
        "savepoint alone; rollback to alone;",
        &rows(21_001),
        "commit",
    ];
    bed.sql.run(&script.concat()).await;
    assert_exact(&bed, 30_000).await;
    sidecar.assert_quiet(&["sweeping everything", SLOT_BY_HAND]);
}

/// A statement that inserts 3 000 rows from this id on without the column `junk`.
fn narrow(first: i32) -> String {
    let ids = format!("generate_series({first}, {}) id;", first + 2_999);
    format!("insert into big (id, pad) select id, repeat('x', 500) from {ids}")
}

/// The server goes on with the shape that is undone, or fails: the transaction is read anew, whole.
#[tokio::test]
async fn a_table_altered_in_a_savepoint_that_is_undone_is_read_right() {
    let (bed, sidecar) = set_up(&[], 20_000).await;
    bed.sql.run(&insert(1, 10)).await;
    bed.sql.run(&format!("begin; {}", insert(1_001, 4_000))).await;
    bed.sql.run("savepoint s; alter table big drop junk, add more text, alter id type text").await;
    bed.sql.run(&narrow(4_001)).await;
    bed.sql.run("rollback to s").await;
    bed.sql.run(&insert(7_001, 10_000)).await;
    bed.sql.run("alter table big drop junk").await;
    bed.sql.run(&narrow(10_001)).await;
    bed.sql.run("commit").await;
    assert_exact(&bed, 20_000).await;
    bed.sql.run(&narrow(14_001)).await;
    assert_exact(&bed, 20_000).await;
    let resyncs = sidecar.metric_sum("walsweep_resyncs_total").await;
    assert!(resyncs <= 1.0, "{resyncs}: only the first start sweeps everything");
}

/// Here the server does not fail, but reads the rows that follow by columns of other widths. What
/// it sends is wrong and looks right: the transaction is read anew, whole.
#[tokio::test]
async fn a_column_altered_in_a_savepoint_that_is_undone_is_read_right() {
    let (bed, sidecar) = set_up(&[], 20_000).await;
    bed.sql.run(&format!("begin; {}", insert(1_001, 4_000))).await;
    bed.sql.run("savepoint s; alter table big alter junk type bigint").await;
    bed.sql.run(&insert(4_001, 9_000)).await;
    // Otherwise the server may see that it is undone before it sends any of it.
    received(&sidecar, 5_000.0).await;
    bed.sql.run("rollback to s").await;
    bed.sql.run(&insert(9_001, 12_000)).await;
    bed.sql.run("commit").await;
    assert_exact(&bed, 20_000).await;
    bed.sql.run(&insert(14_001, 17_000)).await;
    assert_exact(&bed, 20_000).await;
    let resyncs = sidecar.metric_sum("walsweep_resyncs_total").await;
    assert!(resyncs <= 1.0, "{resyncs}: only the first start sweeps everything");
}

/// The shape of a relation inside of a block is its transaction's own until it commits.
#[tokio::test]
async fn a_table_altered_inside_is_read_right_before_and_after() {
    let (bed, sidecar) = set_up(&[], 20_000).await;
    let other = Sql::connect(&bed.postgres).await;
    bed.sql.run(&insert(1, 10)).await;
    bed.sql.run(&format!("begin; {}", insert(1_001, 4_000))).await;
    bed.sql.run("alter table big drop junk").await;
    bed.sql.run(&narrow(10_001)).await;
    other.run("update item set version = 1 where id = 2").await;
    bed.sql.run("commit").await;
    // Its description is valid for all now: the server does not repeat it.
    other.run("insert into big (id) values (14001)").await;
    other.run(&format!("begin; {} rollback", narrow(14_002))).await;
    other.run("insert into big (id) values (14002)").await;
    assert_exact(&bed, 20_000).await;
    sidecar.assert_quiet(&["sweeping everything", SLOT_BY_HAND]);
}

#[tokio::test]
async fn what_is_rolled_back_whole_removes_nothing() {
    let (bed, sidecar) = set_up(&[], 20_000).await;
    bed.sql.run(&format!("begin; {}", insert(1, 10_000))).await;
    received(&sidecar, 5_000.0).await;
    bed.sql.run("rollback").await;
    bed.sql.run(&format!("begin; {} rollback", insert(10_001, 20_000))).await;
    bed.sql.run(&insert(7, 7)).await;
    assert_exact(&bed, 20_000).await;
}

/// I3, and the confirmed LSN passes what other transactions committed meanwhile (I2).
#[tokio::test]
async fn two_that_run_at_once_keep_apart_and_hold_nothing_back() {
    let (bed, sidecar) = set_up(&[], 30_000).await;
    let (one, other) = (Sql::connect(&bed.postgres).await, Sql::connect(&bed.postgres).await);
    one.run("begin").await;
    other.run("begin").await;
    for part in 0..5 {
        one.run(&insert(part * 2_000 + 1, part * 2_000 + 2_000)).await;
        let first = 10_000 + part * 2_000;
        other.run(&format!("savepoint s; {}", insert(first + 1, first + 2_000))).await;
        other.run(if part % 2 == 0 { "release s" } else { "rollback to s" }).await;
        bed.fill(&["item:1"]).await;
        bed.sql.run("update item set version = version + 1 where id = 1").await;
        bed.gone("item:1").await;
    }
    received(&sidecar, 15_000.0).await;
    bed.settled().await;
    assert_eq!(cached(&bed).await.len(), 30_000, "none of the two is committed");
    other.run("commit").await;
    assert_exact(&bed, 30_000).await;
    one.run(&format!("{} commit", insert(20_001, 22_000))).await;
    assert_exact(&bed, 30_000).await;
    sidecar.assert_quiet(&["sweeping everything", SLOT_BY_HAND]);
}

/// A message or TRUNCATE, which has no row, keeps its place in the blocks, too: another's commit
/// takes none of it along. Of a message in a block the server tells the top-level transaction alone
/// (`pgoutput_message`), so `app:1`, whose savepoint is undone, may go with the commit.
#[tokio::test]
async fn messages_and_truncates_of_a_block_are_of_its_transaction() {
    let rule = "[[rule]]\nname = \"app\"\nmessage = \"app\"\nkeys = [\"app:*\"]\n";
    let (bed, sidecar) = set_up_with(&format!("{RULES}{rule}"), &[], 20_000).await;
    let other = Sql::connect(&bed.postgres).await;
    let message = |key: &str| {
        format!("select pg_logical_emit_message(true, 'app', '{{\"keys\": [\"{key}\"]}}');")
    };
    bed.fill(&["app:1", "app:2", "item:1", "item:2"]).await;
    let undone = format!("savepoint s; {} truncate item;", message("app:1"));
    let (one, two) = (insert(1, 5_000), insert(5_001, 10_000));
    bed.sql.run(&format!("begin; {one} {undone} {two}")).await;
    received(&sidecar, 6_000.0).await;
    bed.sql.run(&format!("rollback to s; {} {}", message("app:2"), insert(10_001, 12_000))).await;
    other.run("update item set version = 1 where id = 2").await;
    bed.gone("item:2").await;
    for key in ["app:1", "app:2", "item:1"] {
        assert!(bed.has(key).await, "{key} went with another transaction");
    }
    bed.sql.run("commit").await;
    bed.gone("app:2").await;
    bed.settled().await;
    assert!(bed.has("item:1").await, "that TRUNCATE was rolled back");
    bed.fill(&["item:2"]).await;
    let before = sidecar.metric_sum("walsweep_changes_total").await;
    bed.sql.run(&format!("begin; truncate item; {}", insert(13_001, 18_000))).await;
    received(&sidecar, before + 2_000.0).await;
    other.run(&insert(19_000, 19_000)).await;
    bed.gone("big:19000").await;
    assert!(bed.has("item:1").await && bed.has("item:2").await, "nothing is committed yet");
    bed.sql.run("commit").await;
    bed.gone("item:1").await;
    bed.gone("item:2").await;
    assert_exact(&bed, 20_000).await;
    sidecar.assert_quiet(&["sweeping everything", SLOT_BY_HAND]);
}

/// I2: what was received of it is lost, and comes again from its first change on.
#[tokio::test]
async fn a_crash_between_two_blocks_loses_nothing() {
    let (bed, mut sidecar) = set_up(&[], 20_000).await;
    bed.sql.run(&format!("begin; {}", insert(1, 10_000))).await;
    received(&sidecar, 5_000.0).await;
    // Confirmed beyond the changes that were received, and below their commit.
    bed.settled().await;
    sidecar.kill9();
    bed.sql.run(&insert(10_001, 15_000)).await;
    sidecar.start();
    sidecar.wait_ready().await;
    received(&sidecar, 5_000.0).await;
    assert_eq!(cached(&bed).await.len(), 20_000, "the restart swept nothing");
    sidecar.kill9();
    bed.sql.run("commit").await;
    sidecar.start();
    sidecar.wait_ready().await;
    assert_exact(&bed, 20_000).await;
}

#[tokio::test]
async fn a_crash_at_the_commit_of_a_streamed_transaction_loses_nothing() {
    let (bed, mut sidecar) = set_up(&[], 20_000).await;
    for (round, point) in ["received", "visible", "exact_removed", "swept"].into_iter().enumerate()
    {
        assert_eq!(sidecar.sigterm().await, 0);
        let crash = (walsweep::failpoint::VARIABLE.to_owned(), point.to_owned());
        sidecar.change(|settings| settings.env.push(crash));
        sidecar.start();
        sidecar.wait_ready().await;
        let first = i32::try_from(round).unwrap() * 5_000 + 1;
        bed.sql.run(&format!("begin; {} commit", insert(first, first + 4_999))).await;
        assert_eq!(sidecar.wait_exit().await, -6, "`{point}` is reached");
        sidecar.change(|settings| settings.env.truncate(1));
        sidecar.start();
        sidecar.wait_ready().await;
        assert_exact(&bed, 20_000).await;
    }
}

#[tokio::test]
async fn prepared_transactions_count_when_they_are_committed() {
    let (bed, sidecar) = set_up(&["max_prepared_transactions = 10"], 30_000).await;
    let part = format!("savepoint s; {} rollback to s;", insert(5_001, 10_000));
    bed.sql.run(&format!("begin; {} {part} prepare transaction 'a'", insert(1, 5_000))).await;
    bed.sql.run(&format!("begin; {} prepare transaction 'b'", insert(10_001, 20_000))).await;
    bed.sql.run(&format!("begin; {} prepare transaction 'c'", insert(20_001, 20_005))).await;
    received(&sidecar, 10_000.0).await;
    bed.settled().await;
    assert_eq!(cached(&bed).await.len(), 30_000, "a prepared transaction removes nothing");
    bed.sql.run("commit prepared 'a'").await;
    assert_exact(&bed, 30_000).await;
    bed.sql.run("rollback prepared 'b'").await;
    bed.sql.run("commit prepared 'c'").await;
    assert_exact(&bed, 30_000).await;
    sidecar.assert_quiet(&["sweeping everything", SLOT_BY_HAND]);
}

/// I1: the last block and the commit are received, and no reader sees the rows.
#[tokio::test]
async fn an_invisible_one_keeps_its_keys_and_delays_no_other() {
    let (bed, sidecar) = set_up(&[], 20_000).await;
    bed.postgres.conf(GHOST).await.unwrap();
    let writer = stuck(
        &bed,
        "insert into big select 0, id, repeat('x', 500) from generate_series(1, 10000) id",
    )
    .await;
    let committed = bed.position().await;
    received(&sidecar, 10_000.0).await;
    bed.fill(&["item:2"]).await;
    bed.sql.run("set synchronous_commit = local; update item set version = 1 where id = 2").await;
    let began = Instant::now();
    bed.gone("item:2").await;
    println!("overtaking: {:?}", began.elapsed());
    always(Duration::from_secs(3), "the keys stay", || async {
        bed.has("big:1").await && bed.has("big:9999").await && bed.confirmed().await < committed
    })
    .await;
    assert_eq!(cached(&bed).await.len(), 20_000);
    release(&bed).await;
    writer.await.unwrap();
    assert_exact(&bed, 20_000).await;
}

/// Stops the process that sends the stream: what it has not sent stays on the server.
pub(crate) async fn stop_sender(bed: &Bed) -> [u32; 1] {
    let pid: i32 = bed.sql.one("select active_pid from pg_replication_slots").await;
    let sender = [u32::try_from(pid).unwrap()];
    signal(&sender, Signal::Stop).unwrap();
    sender
}

/// How many keys of these ids are cached.
async fn cached_of(bed: &Bed, ids: std::ops::RangeInclusive<i32>) -> usize {
    cached(bed).await.range(ids).count()
}

#[tokio::test]
async fn what_readers_see_goes_while_the_rest_is_on_its_way() {
    let (bed, sidecar) = set_up(&[], 30_000).await;
    bed.sql
        .run(&format!("begin; {} savepoint a; {}", insert(1, 5_000), insert(5_001, 10_000)))
        .await;
    bed.sql.run(&format!("release a; savepoint b; {}", insert(10_001, 20_000))).await;
    received(&sidecar, 16_000.0).await;
    let sender = stop_sender(&bed).await;
    bed.sql.run(&format!("rollback to b; {} commit", insert(20_001, 25_000))).await;
    eventually(PATIENCE, "what was received of the commit goes", || async {
        cached_of(&bed, 1..=10_000).await == 0
    })
    .await;
    assert_eq!(cached_of(&bed, 10_001..=30_000).await, 20_000, "undone, or not received");
    signal(&sender, Signal::Cont).unwrap();
    assert_exact(&bed, 30_000).await;
    sidecar.assert_quiet(&["sweeping everything", SLOT_BY_HAND]);
}

/// I1, and what is undone is over as well.
#[tokio::test]
async fn what_no_reader_sees_stays_while_the_rest_is_on_its_way() {
    let (bed, sidecar) = set_up(&[], 30_000).await;
    let undone = Sql::connect(&bed.postgres).await;
    undone.run(&format!("begin; {}", insert(1, 10_000))).await;
    received(&sidecar, 8_000.0).await;
    bed.postgres.conf(GHOST).await.unwrap();
    let writer = Sql::connect(&bed.postgres).await;
    writer.run(&format!("begin; {}", insert(10_001, 20_000))).await;
    received(&sidecar, 16_000.0).await;
    let sender = stop_sender(&bed).await;
    undone.run("rollback").await;
    let writer = tokio::spawn(async move { writer.run("commit").await });
    waits(&bed).await;
    always(Duration::from_secs(3), "nobody sees it", || async {
        cached(&bed).await.len() == 30_000
    })
    .await;
    release(&bed).await;
    writer.await.unwrap();
    eventually(PATIENCE, "what was received of the commit goes", || async {
        cached_of(&bed, 10_001..=17_000).await == 0
    })
    .await;
    assert_eq!(cached_of(&bed, 1..=10_000).await, 10_000, "undone");
    signal(&sender, Signal::Cont).unwrap();
    assert_exact(&bed, 30_000).await;
}
