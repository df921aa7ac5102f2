//! I7 with the slot on a standby: whatever becomes of the standby, nothing stays stale.

use std::io::Write;
use std::process::Command;

use walsweep::lsn::Lsn;
use walsweep_stage::throwaway::{Signal, StopMode, signal};

use super::{Pair, check, confirmed, resyncs};
use crate::support::{Bed, PATIENCE, Proxy, Sidecar, Sql, eventually};

/// The LSN of the watermark.
async fn watermark(bed: &Bed) -> Lsn {
    let value: serde_json::Value = serde_json::from_str(&bed.watermark().await.unwrap()).unwrap();
    value["lsn"].as_str().unwrap().parse().unwrap()
}

async fn not_ready(sidecar: &Sidecar) {
    eventually(PATIENCE, "not ready", || async { sidecar.readyz().await != Some(200) }).await;
}

/// A promoted standby goes on sending, of another history. None of that moves the watermark, the
/// session ends, and with another standby everything is swept.
#[tokio::test]
async fn a_promotion_ends_the_session_and_moves_no_watermark() {
    let Some(mut pair) = Pair::start(&[]).await else { return };
    let mut sidecar = pair.sidecar().await;
    pair.bed.cache_rows().await;
    let promoted = Sql::connect(&pair.standby).await;
    promoted.run("select pg_promote()").await;
    let fork: String = promoted.one("select pg_last_wal_replay_lsn()::text").await;
    let fork: Lsn = fork.parse().unwrap();
    for _ in 0..20 {
        promoted.run("update item set version = version + 1 where id = 90").await;
    }
    sidecar.wait_log("promoted").await;
    not_ready(&sidecar).await;
    assert!(watermark(&pair.bed).await <= fork, "the promoted one's history is covered");
    // The primary lives on; nobody streams its commits.
    pair.update(1).await;
    assert_eq!(pair.bed.stale().await, ["item:1"]);
    assert!(check(&sidecar).contains("replication_primary"));
    let before = resyncs(&sidecar).await;
    let _promoted = pair.rebuild("rebuilt").await;
    sidecar.wait_ready().await;
    assert!(resyncs(&sidecar).await > before, "what nobody streamed is swept");
    pair.bed.fresh().await;
    pair.works(2).await;
}

/// A standby that crashes has its slot afterwards, and sends what it had not.
#[tokio::test]
async fn a_crash_of_the_standby_costs_no_sweep() {
    let Some(mut pair) = Pair::start(&[]).await else { return };
    let mut sidecar = pair.sidecar().await;
    let before = resyncs(&sidecar).await;
    for round in 0..3 {
        pair.bed.cache_rows().await;
        pair.works(10 + round).await;
        pair.standby.kill9().await.unwrap();
        not_ready(&sidecar).await;
        pair.update(20 + round).await;
        assert_eq!(pair.bed.stale().await, [format!("item:{}", 20 + round)]);
        pair.standby.start_again().await.unwrap();
        sidecar.wait_ready().await;
        pair.bed.gone(&format!("item:{}", 20 + round)).await;
        pair.bed.fresh().await;
    }
    pair.settled().await;
    assert_eq!(resyncs(&sidecar).await, before, "nothing was swept");
    assert!(pair.bed.has("item:99").await);
}

/// A standby that was started again may have replayed less than before, and less than walsweep has
/// confirmed: that is no other history.
#[tokio::test]
async fn a_standby_that_replays_again_costs_no_sweep() {
    let Some(mut pair) = Pair::start(&[]).await else { return };
    let mut sidecar = pair.sidecar().await;
    pair.bed.cache_rows().await;
    for id in 1..=5 {
        pair.works(id).await;
    }
    pair.settled().await;
    let before = resyncs(&sidecar).await;
    pair.standby.kill9().await.unwrap();
    not_ready(&sidecar).await;
    let conf = pair.standby.data_dir().join("postgresql.conf");
    let mut conf = std::fs::File::options().append(true).open(conf).unwrap();
    writeln!(conf, "recovery_min_apply_delay = '1h'").unwrap();
    pair.standby.start_again().await.unwrap();
    let replayed = "select pg_last_wal_replay_lsn()::text";
    let replayed: String = Sql::connect(&pair.standby).await.one(replayed).await;
    assert!(replayed.parse::<Lsn>().unwrap() < watermark(&pair.bed).await, "it lies behind");
    sidecar.wait_ready().await;
    pair.standby.conf("recovery_min_apply_delay = 0").await.unwrap();
    pair.works(6).await;
    pair.settled().await;
    assert_eq!(resyncs(&sidecar).await, before, "nothing was swept");
    pair.bed.fresh().await;
}

/// The primary restarts in order; the standby, its slot and walsweep go on.
#[tokio::test]
async fn a_clean_restart_of_the_primary_costs_no_sweep() {
    let Some(mut pair) = Pair::start(&[]).await else { return };
    let mut sidecar = pair.sidecar().await;
    let before = resyncs(&sidecar).await;
    pair.bed.cache_rows().await;
    pair.bed.postgres.restart(StopMode::Fast).await.unwrap();
    pair.bed.sql = Sql::connect(&pair.bed.postgres).await;
    pair.works(1).await;
    sidecar.wait_ready().await;
    pair.settled().await;
    assert_eq!(resyncs(&sidecar).await, before, "nothing was swept");
    pair.bed.fresh().await;
}

/// The primary is lost, another standby takes its place, and the standby with the slot follows that
/// one: the slot stays, and what readers cached of commits that are no more is swept.
#[tokio::test]
async fn a_standby_that_follows_another_primary_keeps_its_slot_and_everything_is_swept() {
    let old;
    let Some(mut pair) = Pair::start(&[]).await else { return };
    let successor = pair.bed.postgres.standby("successor", &[]).await.unwrap();
    let front = Proxy::to_port(pair.bed.postgres.port());
    let mut settings = pair.settings();
    settings.postgres_url = front.url(&settings.postgres_url, pair.bed.postgres.port());
    let mut sidecar = Sidecar::set_up(settings).await;
    pair.settled().await;
    // Neither standby gets the last commit, which readers of the primary have cached.
    let (follower, next) = (Sql::connect(&pair.standby).await, Sql::connect(&successor).await);
    let position = pair.bed.position().await;
    for standby in [&follower, &next] {
        eventually(PATIENCE, "it has replayed", || async {
            let replayed = "select pg_last_wal_replay_lsn()::text";
            standby.one::<String>(replayed).await.parse::<Lsn>().unwrap() >= position
        })
        .await;
    }
    let source: String = follower.one("select current_setting('primary_conninfo')").await;
    for standby in [&follower, &next] {
        follow(standby, "").await;
    }
    pair.update(7).await;
    pair.bed.cache_rows().await;
    pair.bed.postgres.kill9().await.unwrap();
    next.run("select pg_create_physical_replication_slot('standby')").await;
    next.run("select pg_promote()").await;
    let (from, to) = (pair.bed.postgres.port().to_string(), successor.port().to_string());
    follow(&follower, &source.replace(&from, &to)).await;
    old = std::mem::replace(&mut pair.bed.postgres, successor);
    pair.bed.sql = next;
    assert_eq!(pair.bed.stale().await, ["item:7"], "the commit is no more");
    let kept = confirmed(&pair.standby).await;
    assert!(kept.is_some());
    front.retarget(([127, 0, 0, 1], pair.bed.postgres.port()).into());
    front.reset();
    let timeline = "walsweep_resyncs_total{reason=\"other_timeline\"}";
    eventually(PATIENCE, "the other history is noticed", || async {
        sidecar.metric(timeline).await > 0.0
    })
    .await;
    sidecar.wait_ready().await;
    pair.bed.fresh().await;
    let created = "walsweep_resyncs_total{reason=\"slot_created\"}";
    assert_eq!(sidecar.metric(created).await, 0.0, "the slot stays");
    pair.works(8).await;
    pair.settled().await;
    assert!(confirmed(&pair.standby).await > kept);
    drop(pair);
    drop(old);
}

/// Lets a standby stream from there, or from nowhere.
async fn follow(standby: &Sql, source: &str) {
    let source = source.replace('\'', "\'\'");
    standby.run(&format!("alter system set primary_conninfo = '{source}'")).await;
    standby.run("select pg_reload_conf()").await;
    let receives = "select exists (select from pg_stat_wal_receiver where status = 'streaming')";
    eventually(PATIENCE, "it follows, or is cut off", || async {
        standby.one::<bool>(receives).await != source.is_empty()
    })
    .await;
}

/// A slot that somebody dropped, or that the standby's successor never had, is created anew, and
/// what it missed is swept.
#[tokio::test]
async fn a_slot_that_is_gone_is_made_anew_and_answered_with_a_sweep() {
    let Some(mut pair) = Pair::start(&[]).await else { return };
    let mut sidecar = pair.sidecar().await;
    let created = "walsweep_resyncs_total{reason=\"slot_created\"}";
    // It would help the slot in a quarter of a minute; walsweep asks for it.
    let helper = "select pid from pg_stat_activity where backend_type = 'background writer'";
    let helper: i32 = pair.bed.sql.one(helper).await;
    signal(&[u32::try_from(helper).unwrap()], Signal::Stop).unwrap();
    pair.bed.cache_rows().await;
    sidecar.kill9();
    let sql = Sql::connect(&pair.standby).await;
    eventually(PATIENCE, "the slot is free", || async {
        let drop = "select pg_drop_replication_slot('walsweep')";
        sql.client().execute(drop, &[]).await.is_ok()
    })
    .await;
    pair.update(1).await;
    sidecar.start();
    sidecar.wait_ready().await;
    assert_eq!(sidecar.metric(created).await, 1.0);
    pair.bed.fresh().await;

    // The standby is lost, and made anew from the primary: slots are not copied.
    pair.bed.cache_rows().await;
    pair.settled().await;
    pair.standby.stop(StopMode::Immediate).await.unwrap();
    not_ready(&sidecar).await;
    pair.update(2).await;
    let _lost = pair.rebuild("rebuilt").await;
    sidecar.wait_ready().await;
    assert_eq!(sidecar.metric(created).await, 2.0);
    pair.bed.fresh().await;
    pair.works(3).await;
}

/// A standby from an older copy of its folder has an older slot: it sends again what was removed
/// since, and what it never sent.
#[tokio::test]
async fn an_older_copy_of_the_standby_leaves_nothing_stale() {
    let Some(mut pair) = Pair::start(&[]).await else { return };
    let mut sidecar = pair.sidecar().await;
    pair.standby.stop(StopMode::Fast).await.unwrap();
    let (folder, copy) = (pair.standby.data_dir(), pair.standby.data_dir().with_extension("old"));
    let copied = Command::new("cp").arg("-a").args([folder, &copy]).status().unwrap();
    assert!(copied.success());
    pair.standby.start_again().await.unwrap();
    let early = confirmed(&pair.standby).await;
    pair.bed.cache_rows().await;
    for id in 1..=10 {
        pair.works(id).await;
    }
    pair.settled().await;
    pair.standby.stop(StopMode::Immediate).await.unwrap();
    pair.bed.cache_rows().await;
    pair.update(11).await;
    let folder = pair.standby.data_dir();
    std::fs::remove_dir_all(folder).unwrap();
    std::fs::rename(&copy, folder).unwrap();
    pair.standby.start_again().await.unwrap();
    assert!(confirmed(&pair.standby).await >= early);
    sidecar.wait_ready().await;
    pair.bed.gone("item:11").await;
    pair.settled().await;
    pair.bed.fresh().await;
}

/// Without feedback the primary removes catalog rows that the slot needs: the standby gives it up,
/// which is told as that, and everything is swept.
#[tokio::test]
async fn a_slot_that_conflicts_with_the_replay_is_told_and_made_anew() {
    let Some(pair) = Pair::start(&[]).await else { return };
    let mut sidecar = pair.sidecar().await;
    pair.standby.conf("hot_standby_feedback = off").await.unwrap();
    assert!(check(&sidecar).contains("standby_feedback"));
    pair.bed.cache_rows().await;
    let free = "select catalog_xmin is null from pg_replication_slots where slot_name = 'standby'";
    eventually(PATIENCE, "nothing is held back", || pair.bed.sql.one(free)).await;
    let lost = "the slot is lost";
    eventually(PATIENCE, "the slot is given up", || async {
        // Two transactions: what one of them made and removed by itself nobody ever needed.
        pair.bed.sql.run("create table x ()").await;
        pair.bed.sql.run("drop table x").await;
        for table in ["pg_class", "pg_attribute", "pg_type"] {
            pair.bed.sql.run(&format!("vacuum {table}")).await;
        }
        sidecar.log().iter().any(|line| line.contains(lost))
    })
    .await;
    sidecar.wait_log("catalog rows that it needed").await;
    pair.standby.conf("hot_standby_feedback = on").await.unwrap();
    sidecar.wait_ready().await;
    assert!(resyncs(&sidecar).await >= 2.0);
    pair.bed.fresh().await;
    pair.works(1).await;
}

/// `max_retained_wal` is of the standby's disk.
#[tokio::test]
async fn a_slot_that_keeps_too_much_of_the_standbys_disk_is_given_up() {
    let Some(mut pair) = Pair::start(&[]).await else { return };
    let mut settings = pair.settings();
    settings.postgres.push_str("\nmax_retained_wal = \"64MB\"");
    let mut sidecar = Sidecar::set_up(settings).await;
    pair.settled().await;
    pair.bed.cache_rows().await;
    // What the standby has not replayed counts for nothing: a new slot would have to wait for it.
    pair.bed.redis.pause().unwrap();
    pair.update(1).await;
    let filler = "create table filler as select repeat(md5(n::text), 30) from \
                  generate_series(1, 90000) n";
    pair.bed.sql.run(filler).await;
    sidecar.wait_log("keeps too much WAL").await;
    pair.bed.redis.resume().unwrap();
    pair.bed.cache = pair.bed.redis.connect().await.unwrap();
    pair.bed.gone("item:1").await;
    sidecar.wait_ready().await;
    assert!(sidecar.metric("walsweep_resyncs_total{reason=\"retained_wal\"}").await >= 1.0);
    pair.bed.fresh().await;
    pair.works(2).await;
}
