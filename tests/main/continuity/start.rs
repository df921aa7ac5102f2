//! I7 at a start: whatever happened while walsweep was down.

use std::time::Duration;

use redis::AsyncCommands;
use walsweep::lsn::Lsn;
use walsweep_stage::throwaway::StopMode;

use crate::support::{Bed, PATIENCE, Sidecar, Sql, always, eventually};

/// Keys that a sweep of everything removes, and one that it leaves alone.
const COVERED: [&str; 3] = ["item:1", "item:77", "list:anything:x"];
const FOREIGN: &str = "session:1";

async fn fill(bed: &Bed) {
    bed.fill(&COVERED).await;
    bed.fill(&[FOREIGN]).await;
}

async fn is_swept(bed: &Bed) -> bool {
    let mut present = 0;
    for key in COVERED {
        present += u32::from(bed.has(key).await);
    }
    assert!(bed.has(FOREIGN).await, "a sweep leaves alone what no rule could produce");
    assert!(present == 0 || present == 3, "swept by halves: {present} of 3 are there");
    present == 0
}

/// Starts it and waits until it is ready; `reason` is why it must have swept, if it must have.
async fn check_start(bed: &Bed, sidecar: &mut Sidecar, reason: Option<&str>) {
    fill(bed).await;
    sidecar.start();
    sidecar.wait_ready().await;
    assert_eq!(is_swept(bed).await, reason.is_some(), "{reason:?}\n{}", sidecar.log().join("\n"));
    let resyncs = sidecar.metric_sum("walsweep_resyncs_total").await;
    assert!((resyncs - f64::from(u8::from(reason.is_some()))).abs() < f64::EPSILON, "{resyncs}");
    if let Some(reason) = reason {
        let name = format!("walsweep_resyncs_total{{reason=\"{reason}\"}}");
        assert!((sidecar.metric(&name).await - 1.0).abs() < f64::EPSILON, "{name}");
    }
    // It works, whatever came before.
    bed.fill(&["item:5"]).await;
    bed.sql.run("update item set version = version + 1 where id = 5").await;
    bed.gone("item:5").await;
    bed.settled().await;
}

#[tokio::test]
async fn a_first_start_sweeps_and_an_unbroken_restart_does_not() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    check_start(&bed, &mut sidecar, Some("watermark_missing")).await;
    assert_eq!(sidecar.sigterm().await, 0);
    check_start(&bed, &mut sidecar, None).await;
    sidecar.kill9();
    check_start(&bed, &mut sidecar, None).await;
}

#[tokio::test]
async fn a_slot_that_is_missing_or_new_is_answered_with_a_sweep() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.sql.run("select pg_drop_replication_slot('walsweep')").await;
    bed.sql.run("update item set version = 100").await;
    check_start(&bed, &mut sidecar, Some("slot_created")).await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.sql.run("select pg_drop_replication_slot('walsweep')").await;
    bed.sql.run("update item set version = 101").await;
    bed.sql.run("select pg_create_logical_replication_slot('walsweep', 'pgoutput')").await;
    check_start(&bed, &mut sidecar, Some("watermark_behind")).await;
}

#[tokio::test]
async fn a_slot_advanced_by_someone_else_is_answered_with_a_sweep() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.sql.run("update item set version = 100").await;
    bed.sql.run("select pg_replication_slot_advance('walsweep', pg_current_wal_lsn())").await;
    check_start(&bed, &mut sidecar, Some("watermark_behind")).await;
}

#[tokio::test]
async fn a_slot_whose_wal_is_gone_is_created_anew_and_answered_with_a_sweep() {
    let bed = Bed::new(&["max_slot_wal_keep_size = 16MB", "max_wal_size = 32MB"]).await;
    let mut sidecar = bed.sidecar().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.sql.run("create table ballast (text text)").await;
    eventually(PATIENCE, "the server gives up the slot", || async {
        bed.sql
            .run("insert into ballast select repeat('x', 1000) from generate_series(1, 20000)")
            .await;
        bed.sql.run("select pg_switch_wal()").await;
        bed.sql.run("checkpoint").await;
        bed.sql.one("select coalesce(wal_status = 'lost', false) from pg_replication_slots").await
    })
    .await;
    check_start(&bed, &mut sidecar, Some("slot_created")).await;
}

/// Waits until a replication connection waits for the end of a session's transaction.
async fn slot_waits_for(bed: &Bed, session: &Sql) {
    let xid: String = session.one("select pg_current_xact_id()::text").await;
    let query = format!(
        "select exists (select from pg_locks where not granted and transactionid::text = '{xid}')"
    );
    eventually(PATIENCE, "the slot's creation waits", || async { bed.sql.one(&query).await }).await;
}

/// A TRUNCATE that commits while the slot is being created is unknown to what Postgres decodes
/// later: it fails at the next change of the table, and at every further try ("could not map
/// filenode"; Postgres 15.18). The slot is given up then, and everything is swept.
#[tokio::test]
async fn a_slot_that_the_server_cannot_decode_is_given_up_for_a_sweep() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.sql.run("select pg_drop_replication_slot('walsweep'); create table other (id int)").await;
    let first = Sql::connect(&bed.postgres).await;
    let second = Sql::connect(&bed.postgres).await;
    let third = Sql::connect(&bed.postgres).await;
    first.run("begin; insert into other values (1)").await;
    sidecar.start();
    slot_waits_for(&bed, &first).await;
    second.run("begin; insert into other values (2)").await;
    bed.sql.run("begin; truncate item; insert into item values (1, 'a', 1); commit").await;
    first.run("commit").await;
    slot_waits_for(&bed, &second).await;
    third.run("begin; insert into item values (2, 'a', 1)").await;
    second.run("commit").await;
    eventually(PATIENCE, "the slot is created", || async {
        let query = "select confirmed_flush_lsn is not null from pg_replication_slots";
        bed.sql.one(query).await
    })
    .await;
    third.run("commit").await;
    // The slot may be gone for a moment.
    let query = format!(
        "select coalesce(bool_or(confirmed_flush_lsn > '{}'), false) from pg_replication_slots",
        bed.position().await
    );
    eventually(PATIENCE, "the commit is confirmed", || async {
        bed.sql.run("select pg_logical_emit_message(false, 'settle', '')").await;
        bed.sql.one(&query).await
    })
    .await;
    if sidecar.log().iter().any(|line| line.contains("could not map filenode")) {
        let given_up = "walsweep_resyncs_total{reason=\"slot_undecodable\"}";
        eventually(PATIENCE, "the slot is given up and all swept", || async {
            sidecar.metric(given_up).await >= 1.0 && sidecar.readyz().await == Some(200)
        })
        .await;
    }
    bed.fill(&["item:2"]).await;
    bed.sql.run("update item set version = version + 1 where id = 2").await;
    bed.gone("item:2").await;
}

#[tokio::test]
async fn other_rules_sweep_what_they_cover() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    sidecar.change(|settings| settings.rules = settings.rules.replace("{team}", "{team|lower}"));
    fill(&bed).await;
    sidecar.start();
    sidecar.wait_ready().await;
    assert_eq!(sidecar.metric("walsweep_resyncs_total{reason=\"other_rules\"}").await, 1.0);
    assert!(!bed.has("list:anything:x").await, "the template is another one");
    assert!(bed.has("item:1").await && bed.has("item:77").await && bed.has(FOREIGN).await);
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    check_start(&bed, &mut sidecar, None).await;
}

/// A value by hand is judged like any other: only one that this history could have written, not
/// older than what Postgres was told, counts.
#[tokio::test]
async fn a_watermark_that_proves_nothing_is_answered_with_a_sweep() {
    let mut bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    let older = bed.watermark().await.unwrap();
    bed.sql.run("update item set version = 1 where id = 50").await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let position = bed.position().await;
    let last = bed.watermark().await.unwrap();
    let at = |lsn: Lsn| {
        let mut value: serde_json::Value = serde_json::from_str(&last).unwrap();
        value["lsn"] = lsn.to_string().into();
        value.to_string()
    };
    let without_epoch = {
        let mut value: serde_json::Value = serde_json::from_str(&last).unwrap();
        value.as_object_mut().unwrap().remove("epoch").unwrap();
        value.to_string()
    };
    for (value, reason) in [
        (None, "watermark_missing"),
        (Some(older), "watermark_behind"),
        (Some("mine".to_owned()), "watermark_foreign"),
        (Some(last.replace("system_id\":\"", "system_id\":\"9")), "other_system"),
        (Some(at(Lsn(position.0 + (1 << 30)))), "watermark_ahead"),
        (Some(without_epoch), "unclean_restart"),
    ] {
        match value {
            Some(value) => bed.cache.set("walsweep:walsweep", value).await.unwrap(),
            None => bed.cache.del::<_, ()>("walsweep:walsweep").await.unwrap(),
        }
        check_start(&bed, &mut sidecar, Some(reason)).await;
        assert_eq!(sidecar.sigterm().await, 0);
    }
    check_start(&bed, &mut sidecar, None).await;
}

/// A promoted standby carries the same system identifier and another timeline: commits that readers
/// saw on the old one may not exist on it.
#[tokio::test]
async fn another_timeline_is_answered_with_a_sweep() {
    let mut bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    // Archive recovery of its own data ends on a new timeline, as a promotion does.
    bed.postgres.stop(StopMode::Fast).await.unwrap();
    std::fs::write(bed.postgres.data_dir().join("recovery.signal"), "").unwrap();
    let conf = bed.postgres.data_dir().join("postgresql.conf");
    let mut text = std::fs::read_to_string(&conf).unwrap();
    text.push_str("\nrestore_command = 'false'\n");
    std::fs::write(&conf, text).unwrap();
    bed.postgres.start_again().await.unwrap();
    bed.sql = Sql::connect(&bed.postgres).await;
    eventually(PATIENCE, "recovery ends", || async {
        bed.sql.one("select not pg_is_in_recovery()").await
    })
    .await;
    let timeline: String =
        bed.sql.one("select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)").await;
    assert_eq!(timeline, "00000002");
    check_start(&bed, &mut sidecar, Some("other_timeline")).await;
}

/// The one edge of I7: a commit older than a new slot may still be invisible when its sweep runs.
#[tokio::test]
async fn a_commit_older_than_the_slot_is_swept_when_it_becomes_visible() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    // The transaction commits after the slot's consistent point is fixed and before it streams:
    // advance the slot past it while nobody can see it.
    bed.postgres.conf("synchronous_standby_names = 'ghost'").await.unwrap();
    let writer = Sql::connect(&bed.postgres).await;
    let writing = tokio::spawn(async move {
        writer.run("update item set version = 7 where id = 1").await;
    });
    let waits = "select exists (select from pg_stat_activity where wait_event = 'SyncRep')";
    eventually(PATIENCE, "the writer waits", || async { bed.sql.one(waits).await }).await;
    bed.sql
        .run(
            "set synchronous_commit = local;
              select pg_replication_slot_advance('walsweep', pg_current_wal_lsn())",
        )
        .await;
    bed.fill(&["item:1", "item:2"]).await;
    sidecar.start();
    bed.gone("item:2").await;
    assert_eq!(sidecar.readyz().await, Some(503), "a sweep is still owed");
    // A reader caches the old row again; the commit becomes visible; the key goes.
    bed.fill(&["item:1"]).await;
    bed.sql
        .run("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
        .await;
    bed.gone("item:1").await;
    sidecar.wait_ready().await;
    writing.await.unwrap();
}

/// A slot is created only when every transaction that ran has ended, and a commit that waits for a
/// synchronous standby runs, though it is in the log: the slot does not send it, the sweep after it
/// removes what it made stale.
#[tokio::test]
async fn a_commit_that_nobody_sees_holds_back_a_new_slot_and_its_keys_are_swept() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.postgres.conf("synchronous_standby_names = 'ghost'").await.unwrap();
    let writer = Sql::connect(&bed.postgres).await;
    let writing = tokio::spawn(async move {
        writer.run("update item set version = 7 where id = 1").await;
    });
    let waits = "select exists (select from pg_stat_activity where wait_event = 'SyncRep')";
    eventually(PATIENCE, "the writer waits", || async { bed.sql.one(waits).await }).await;
    bed.sql.run("select pg_drop_replication_slot('walsweep')").await;
    sidecar.start();
    sidecar.wait_log("creating the slot").await;
    bed.cache_rows().await;
    always(Duration::from_secs(1), "not ready", || async { sidecar.readyz().await != Some(200) })
        .await;
    bed.sql
        .run("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
        .await;
    writing.await.unwrap();
    assert_eq!(bed.stale().await, ["item:1"], "it was cached before it was visible");
    sidecar.wait_ready().await;
    bed.fresh().await;
    let created = "walsweep_resyncs_total{reason=\"slot_created\"}";
    assert!(sidecar.metric(created).await >= 1.0);
}
