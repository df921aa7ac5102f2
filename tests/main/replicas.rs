//! Readers on standbys: what they cached before the standby replayed a commit goes after it, and a
//! standby that is late or gone holds back nothing but the confirmation (I2, I3, I7).

use std::rc::Rc;
use std::time::Duration;

use redis::AsyncCommands;
use walsweep::lsn::Lsn;
use walsweep::postgres::{Endpoint, connect_sql};
use walsweep::settle::{self, Probe, SqlProbe};
use walsweep_stage::throwaway::{Postgres, StopMode};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, always, eventually, text};

/// How long something is watched that must not happen.
const WATCHED: Duration = Duration::from_secs(2);

fn up(standby: &Postgres) -> String {
    format!("walsweep_replica_up{{replica=\"127.0.0.1:{}\"}}", standby.port())
}

fn lag(standby: &Postgres) -> String {
    format!("walsweep_replica_replay_lag_bytes{{replica=\"127.0.0.1:{}\"}}", standby.port())
}

fn settings(bed: &Bed, standbys: &[&Postgres]) -> Settings {
    let urls: Vec<String> = standbys.iter().map(|standby| standby.url()).collect();
    Settings { postgres: format!("replicas = {urls:?}"), ..bed.settings() }
}

/// A bed, a standby of it, and a sidecar that waits for that; everything so far is confirmed.
async fn start() -> (Bed, Postgres, Sidecar) {
    let bed = Bed::new(&[]).await;
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    let sidecar = Sidecar::set_up(settings(&bed, &[&standby])).await;
    settle(&bed).await;
    (bed, standby, sidecar)
}

/// Waits until the first sweep and its repetition are over: only then a commit is confirmed.
async fn settle(bed: &Bed) {
    update(bed, 100).await;
    bed.settled().await;
}

async fn update(bed: &Bed, id: u32) {
    bed.sql.run(&format!("update item set version = version + 1 where id = {id}")).await;
}

/// Reads and caches as a cache-aside reader of this server that finds nothing cached; gives what it
/// read.
async fn read_through(bed: &Bed, server: &Sql, id: i32) -> i64 {
    let version: i64 = server.one_of("select version from item where id = $1", &[&id]).await;
    let _: () = bed.cache.clone().set(format!("item:{id}"), version).await.unwrap();
    version
}

async fn held(bed: &Bed, before: Lsn) {
    always(WATCHED, "nothing is confirmed", || async { bed.confirmed().await <= before }).await;
}

#[tokio::test]
async fn what_a_late_standbys_reader_cached_goes_after_the_replay() {
    let (bed, standby, sidecar) = start().await;
    let reader = Sql::connect(&standby).await;
    standby.conf("recovery_min_apply_delay = '2s'").await.unwrap();
    bed.fill(&["item:1", "list:team 1:a"]).await;
    update(&bed, 1).await;
    let committed = bed.position().await;
    bed.gone("item:1").await;
    bed.gone("list:team 1:a").await;
    assert_eq!(read_through(&bed, &reader, 1).await, 0, "the standby still shows the old row");
    bed.fill(&["list:team 1:a"]).await;
    always(Duration::from_millis(500), "it stays until the replay", || bed.has("item:1")).await;
    assert!(bed.confirmed().await < committed, "confirmed before the replay");
    bed.gone("item:1").await;
    bed.gone("list:team 1:a").await;
    assert_eq!(read_through(&bed, &reader, 1).await, 1, "removed before the replay");
    bed.settled().await;
    assert!(bed.has("item:1").await, "and not again once it is confirmed");
    assert!(sidecar.metric_sum("walsweep_refills_removed_total").await >= 2.0);
    sidecar.assert_quiet(&["sweeping everything"]);
}

#[tokio::test]
async fn a_paused_standby_holds_the_confirmation_and_nobodys_keys() {
    let bed = Bed::new(&[]).await;
    let paused = bed.postgres.standby("paused", &[]).await.unwrap();
    let live = bed.postgres.standby("live", &[]).await.unwrap();
    let mut settings = settings(&bed, &[&paused, &live]);
    settings.refill = "300ms".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    settle(&bed).await;
    let reader = Sql::connect(&paused).await;
    reader.run("select pg_wal_replay_pause()").await;
    let state = "select pg_get_wal_replay_pause_state() = 'paused'";
    eventually(PATIENCE, "the replay pauses", || reader.one(state)).await;
    let keys: Vec<String> = (1..=20).map(|id| format!("item:{id}")).collect();
    bed.fill(&keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let before = bed.position().await;
    for (id, key) in (1..).zip(&keys) {
        update(&bed, id).await;
        bed.gone(key).await;
    }
    // The other standby's replay is followed by a removal of its own, second one included.
    let live_sql = Sql::connect(&live).await;
    eventually(PATIENCE, "the live standby replays", || async {
        live_sql.one::<i64>("select version from item where id = 20").await == 1
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(read_through(&bed, &reader, 7).await, 0);
    held(&bed, before).await;
    assert!(bed.has("item:7").await);
    assert!(sidecar.metric(&lag(&paused)).await > 0.0);
    assert!(sidecar.metric(&lag(&live)).await < sidecar.metric(&lag(&paused)).await);
    assert_eq!(sidecar.metric(&up(&paused)).await, 1.0);
    assert_eq!(sidecar.readyz().await, Some(200));
    reader.run("select pg_wal_replay_resume()").await;
    bed.gone("item:7").await;
    bed.settled().await;
    eventually(PATIENCE, "the lag ends", || async { sidecar.metric(&lag(&paused)).await == 0.0 })
        .await;
    sidecar.assert_quiet(&["sweeping everything"]);
}

#[tokio::test]
async fn a_stopped_standby_is_seen_holds_and_is_taken_back() {
    let (bed, mut standby, sidecar) = start().await;
    standby.stop(StopMode::Fast).await.unwrap();
    bed.fill(&["item:1", "item:2"]).await;
    let before = bed.position().await;
    update(&bed, 1).await;
    bed.gone("item:1").await;
    eventually(PATIENCE, "it shows", || async { sidecar.metric(&up(&standby)).await == 0.0 }).await;
    update(&bed, 2).await;
    bed.gone("item:2").await;
    held(&bed, before).await;
    let (status, body) = sidecar.get("/readyz").await.unwrap();
    let named = format!("replica 127.0.0.1:{} cannot be counted on", standby.port());
    assert!(status == 200 && body.contains(&named) && body.contains("bytes of WAL"), "{body}");
    standby.start_again().await.unwrap();
    bed.settled().await;
    assert_eq!(sidecar.metric(&up(&standby)).await, 1.0);
    assert!(sidecar.metric("walsweep_reconnects_total{peer=\"replica\"}").await >= 1.0);
    sidecar.assert_quiet(&["sweeping everything", "cannot be counted on", "started again"]);
    let complaints = sidecar.log().iter().filter(|line| line.contains("counted on")).count();
    assert!(complaints <= 3, "one line for each reason, not for each attempt: {complaints}");
}

/// A stop has nothing to wait for: what the replica holds back is removed, and the next start
/// removes it again.
#[tokio::test]
async fn a_replica_that_is_gone_does_not_hold_up_a_stop() {
    let (bed, mut standby, mut sidecar) = start().await;
    standby.stop(StopMode::Fast).await.unwrap();
    bed.fill(&["item:1"]).await;
    let before = bed.position().await;
    update(&bed, 1).await;
    bed.gone("item:1").await;
    sidecar.wait_log("cannot be counted on").await;
    assert_eq!(sidecar.sigterm().await, 0);
    let log = sidecar.log().join("\n");
    assert!(log.contains("what was removed is not confirmed"), "{log}");
    assert!(!log.contains("stopping before everything is removed"), "it waited\n{log}");
    assert!(bed.confirmed().await <= before);
    bed.fill(&["item:1"]).await;
    standby.start_again().await.unwrap();
    sidecar.start();
    bed.gone("item:1").await;
    bed.settled().await;
}

/// I3: what waits for a replica waits as one, however much it is: the number of transactions on
/// their way, at whose limit reading stops, does not grow.
#[tokio::test]
async fn what_waits_for_a_replica_that_is_gone_is_not_on_its_way_any_more() {
    let (bed, mut standby, sidecar) = start().await;
    standby.stop(StopMode::Fast).await.unwrap();
    let before = sidecar.metric("walsweep_transactions_total").await;
    let commits = "do $$ begin for at in 1..1000 loop
           update item set version = version + 1 where id = 1 + at % 50; commit;
         end loop; end $$";
    bed.sql.run(commits).await;
    let committed = bed.position().await;
    bed.fill(&["item:99"]).await;
    update(&bed, 99).await;
    bed.gone("item:99").await;
    let received = sidecar.metric("walsweep_transactions_total").await - before;
    assert!(received >= 1_000.0, "{received}");
    let in_flight = "walsweep_in_flight_transactions";
    eventually(PATIENCE, "nothing is in flight after its removal", || async {
        sidecar.metric(in_flight).await < 0.5
    })
    .await;
    assert!(bed.confirmed().await < committed, "it is not replayed");
    standby.start_again().await.unwrap();
    bed.settled().await;
}

/// A standby that crashed replays again what it had replayed, and readers come in before it is
/// through: what they cached meanwhile is not known, so everything goes.
#[tokio::test]
async fn a_standby_that_was_started_again_costs_a_sweep() {
    let (bed, mut standby, sidecar) = start().await;
    update(&bed, 1).await;
    bed.settled().await;
    bed.fill(&["item:55", "other:55"]).await;
    standby.kill9().await.unwrap();
    standby.start_again().await.unwrap();
    bed.gone("item:55").await;
    assert!(bed.has("other:55").await, "no rule produces it");
    sidecar.wait_log("a replica was started again").await;
    update(&bed, 2).await;
    bed.settled().await;
}

/// Its snapshots do not list what runs on the primary.
#[tokio::test]
async fn a_standby_is_never_asked_what_is_visible() {
    let bed = Bed::new(&[]).await;
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    for (server, is_standby) in [(&bed.postgres, false), (&standby, true)] {
        let sql = connect_sql(&Endpoint::parse(&server.url()).unwrap(), "gate").await.unwrap();
        let probe = SqlProbe::new(Rc::new(sql)).await.unwrap();
        let snapshot = probe.snapshot().await;
        assert_eq!(matches!(snapshot, Err(settle::Error::Standby)), is_standby, "{snapshot:?}");
    }
}

#[tokio::test]
async fn a_promoted_standby_is_refused() {
    let (bed, standby, mut sidecar) = start().await;
    Sql::connect(&standby).await.run("select pg_promote()").await;
    sidecar.wait_log("it was promoted").await;
    sidecar.wait_log("let `postgres.url` name it").await;
    bed.fill(&["item:1"]).await;
    let before = bed.position().await;
    update(&bed, 1).await;
    bed.gone("item:1").await;
    // Its own log goes past the commit; that is another history.
    Sql::connect(&standby).await.run("update item set version = 9").await;
    held(&bed, before).await;
    assert_eq!(sidecar.metric(&up(&standby)).await, 0.0);
    let check = sidecar.command(&["check", "--json"]);
    assert!(text(&check).contains("replica_not_standby"), "{}", text(&check));
    assert_eq!(check.status.code(), Some(0), "`run` starts all the same: {}", text(&check));
    sidecar.kill9();
    sidecar.change(|settings| settings.postgres.clear());
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
}

/// A standby that follows a promoted one is on another timeline, where the same positions mean
/// other commits. It goes there without ending a single connection.
#[tokio::test]
async fn a_standby_of_another_history_is_refused() {
    let (bed, standby, sidecar) = start().await;
    let promoted = bed.postgres.standby("promoted", &[]).await.unwrap();
    let other = Sql::connect(&promoted).await;
    other.run("select pg_promote()").await;
    let reader = Sql::connect(&standby).await;
    let source = format!("'host=127.0.0.1 port={} user=postgres'", promoted.port());
    reader.run(&format!("alter system set primary_conninfo = {source}")).await;
    reader.run("select pg_reload_conf()").await;
    other.run("update item set version = 7 where id = 2").await;
    eventually(PATIENCE, "it follows the promoted one", || async {
        reader.one::<i64>("select version from item where id = 2").await == 7
    })
    .await;
    bed.fill(&["item:1"]).await;
    let before = bed.position().await;
    update(&bed, 1).await;
    bed.gone("item:1").await;
    let committed = bed.position().await;
    // The standby is past the commit's end, on its own history.
    other.run("update item set version = 8 where id > 1").await;
    eventually(PATIENCE, "it is past the commit", || async {
        let replayed: String = reader.one("select pg_last_wal_replay_lsn()::text").await;
        replayed.parse::<Lsn>().unwrap() > committed
    })
    .await;
    held(&bed, before).await;
    sidecar.wait_log("it follows timeline 2, the primary writes 1").await;
}

/// I7: what a late standby's reader cached after a sweep of everything goes, too, and a crash in
/// between does not hide that it is owed.
#[tokio::test]
async fn a_sweep_of_everything_is_repeated_after_the_replay() {
    let (bed, standby, mut sidecar) = start().await;
    let reader = Sql::connect(&standby).await;
    reader.run("select pg_wal_replay_pause()").await;
    let state = "select pg_get_wal_replay_pause_state() = 'paused'";
    eventually(PATIENCE, "the replay pauses", || reader.one(state)).await;
    // A change that no stream will tell: it is skipped by a slot that is made anew.
    sidecar.kill9();
    update(&bed, 3).await;
    let drop = "select pg_drop_replication_slot('walsweep')";
    eventually(PATIENCE, "the slot is free", || async {
        bed.sql.client().execute(drop, &[]).await.is_ok()
    })
    .await;
    bed.fill(&["item:3"]).await;
    sidecar.start();
    sidecar.wait_ready().await;
    bed.gone("item:3").await;
    let sweeps = sidecar.metric("walsweep_resyncs_total{reason=\"slot_created\"}").await;
    assert_eq!(sweeps, 1.0);
    assert_eq!(read_through(&bed, &reader, 3).await, 0, "the standby shows the old row");
    always(WATCHED, "the stale value stays", || bed.has("item:3")).await;
    sidecar.kill9();
    sidecar.start();
    sidecar.wait_ready().await;
    bed.gone("item:3").await;
    let sweeps = sidecar.metric_sum("walsweep_resyncs_total").await;
    assert_eq!(sweeps, 1.0, "the crash did not hide it");
    assert_eq!(read_through(&bed, &reader, 3).await, 0);
    reader.run("select pg_wal_replay_resume()").await;
    bed.gone("item:3").await;
    assert_eq!(read_through(&bed, &reader, 3).await, 1);
    bed.settled().await;
    assert!(bed.has("item:3").await);
}

async fn pause_replay(reader: &Sql) {
    reader.run("select pg_wal_replay_pause()").await;
    let state = "select pg_get_wal_replay_pause_state() = 'paused'";
    eventually(PATIENCE, "the replay pauses", || reader.one(state)).await;
}

/// On call: an unconfirmed commit was sent again an hour later, and an alert on late ones fired,
/// though its keys had gone in time.
#[tokio::test]
async fn a_commit_that_is_sent_again_is_not_counted_as_late() {
    let (bed, standby, sidecar) = start().await;
    let reader = Sql::connect(&standby).await;
    pause_replay(&reader).await;
    bed.fill(&["item:1", "item:2"]).await;
    for id in [1, 2] {
        update(&bed, id).await;
        bed.gone(&format!("item:{id}")).await;
    }
    let counted = || sidecar.metric("walsweep_commit_to_removed_seconds_count");
    // The key is gone before it is counted.
    always(Duration::from_millis(500), "the last one is counted", || async { true }).await;
    let before = counted().await;
    bed.fill(&["item:1", "item:2"]).await;
    let received = sidecar.metric("walsweep_transactions_total").await;
    bed.sql.run("select pg_terminate_backend(active_pid) from pg_replication_slots").await;
    for key in ["item:1", "item:2"] {
        bed.gone(key).await;
    }
    update(&bed, 3).await;
    eventually(PATIENCE, "the next commit counts", || async { counted().await > before }).await;
    assert!(sidecar.metric("walsweep_transactions_total").await >= received + 3.0, "sent again");
    assert_eq!(counted().await, before + 1.0);
}

/// A standby that was taken out of the list is nobody's trouble: an alert would never be over.
#[tokio::test]
async fn a_reload_ends_the_series_of_a_standby_that_goes_and_sweeps_for_one_that_comes() {
    let (bed, standby, mut sidecar) = start().await;
    assert_eq!(sidecar.metric(&up(&standby)).await, 1.0);
    let with = std::mem::take(&mut settings(&bed, &[&standby]).postgres);
    bed.fill(&["item:1"]).await;
    for (postgres, change) in [("", "takes it out"), (&*with, "adds it")] {
        sidecar.change(|settings| postgres.clone_into(&mut settings.postgres));
        let output = sidecar.command(&["reload"]);
        assert_eq!(output.status.code(), Some(0), "{change}: {}", text(&output));
        sidecar.wait_ready().await;
        if postgres.is_empty() {
            eventually(PATIENCE, "its series end", || async {
                let (_, page) = sidecar.get("/metrics").await.unwrap();
                !page.contains("walsweep_replica_")
            })
            .await;
            assert!(bed.has("item:1").await, "nobody reads there any more: nothing is in doubt");
        }
    }
    bed.gone("item:1").await;
    let sweeps = sidecar.metric("walsweep_resyncs_total{reason=\"other_replicas\"}").await;
    assert_eq!(sweeps, 1.0);
    sidecar.wait_log("`postgres.replicas` names a standby that was not waited for").await;
}

/// A standby that is new in the list may have shown its readers what is confirmed already.
#[tokio::test]
async fn a_standby_that_is_new_in_the_list_costs_a_sweep() {
    let (bed, standby, mut sidecar) = start().await;
    let other = bed.postgres.standby("other", &[]).await.unwrap();
    bed.fill(&["item:1"]).await;
    assert_eq!(sidecar.sigterm().await, 0);
    let both = settings(&bed, &[&standby, &other]);
    sidecar.change(|settings| settings.postgres = both.postgres);
    sidecar.start();
    sidecar.wait_ready().await;
    bed.gone("item:1").await;
    bed.settled().await;
    let check = sidecar.command(&["check", "--json"]);
    assert_eq!(text(&check).matches("replica_follows").count(), 2, "{}", text(&check));
}
