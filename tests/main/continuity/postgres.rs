//! I7 against Postgres: commits that readers saw and that are no more.

use std::fs;
use std::time::Duration;

use redis::AsyncCommands;
use walsweep_stage::throwaway::{Postgres, PostgresOptions, Signal, StopMode, signal};

use crate::support::{Bed, PATIENCE, Proxy, Sidecar, Sql, eventually};

/// Commits that do not wait for the disk, and a log writer that takes its time.
const ASYNCHRONOUS: [&str; 2] = ["synchronous_commit = off", "wal_writer_delay = 10s"];

/// Starts Postgres again and connects.
async fn start_again(bed: &mut Bed) {
    bed.postgres.start_again().await.unwrap();
    bed.sql = Sql::connect(&bed.postgres).await;
}

/// A reader caches a version whose commit the crash of the server takes back.
async fn cache_a_phantom(bed: &mut Bed) {
    // On a new page of the log, since a page that is full is written at once.
    bed.sql.run("set synchronous_commit = on; select pg_switch_wal(); checkpoint").await;
    bed.sql.run("set synchronous_commit = off; update item set version = 9 where id = 7").await;
    bed.cache_rows().await;
    let cached: i64 = bed.cache.get("item:7").await.unwrap();
    assert_eq!(cached, 9, "a reader saw it");
}

#[tokio::test]
async fn a_commit_that_a_crash_of_the_server_took_back_is_swept() {
    let mut bed = Bed::new(&ASYNCHRONOUS).await;
    let mut sidecar = bed.sidecar().await;
    for is_down in [false, true] {
        bed.sql.run("set synchronous_commit = on; select pg_switch_wal()").await;
        bed.settled().await;
        if is_down {
            assert_eq!(sidecar.sigterm().await, 0);
        }
        cache_a_phantom(&mut bed).await;
        bed.postgres.kill9().await.unwrap();
        start_again(&mut bed).await;
        let version: i64 = bed.sql.one("select version from item where id = 7").await;
        assert_eq!(version, 0, "the commit is lost");
        if is_down {
            assert_eq!(bed.stale().await, ["item:7"]);
            sidecar.start();
        }
        let unclean = "walsweep_resyncs_total{reason=\"unclean_restart\"}";
        eventually(PATIENCE, "the crash is noticed", || async {
            sidecar.get("/metrics").await.is_some() && sidecar.metric(unclean).await > 0.0
        })
        .await;
        sidecar.wait_ready().await;
        bed.fresh().await;
    }
}

/// A server that ended in order lost nothing, whether walsweep runs or not.
#[tokio::test]
async fn a_clean_restart_of_the_server_sweeps_nothing() {
    let mut bed = Bed::new(&ASYNCHRONOUS).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.cache_rows().await;
    bed.postgres.restart(StopMode::Fast).await.unwrap();
    bed.sql = Sql::connect(&bed.postgres).await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    bed.gone("item:1").await;
    sidecar.wait_ready().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.postgres.restart(StopMode::Fast).await.unwrap();
    bed.sql = Sql::connect(&bed.postgres).await;
    sidecar.start();
    sidecar.wait_ready().await;
    assert!(sidecar.metric_sum("walsweep_resyncs_total").await < 1.0);
    assert!(bed.has("item:2").await, "nothing was swept");
    bed.fresh().await;
}

/// One session of the server that crashes takes the shared memory with it, though the server itself
/// never ends.
#[tokio::test]
async fn a_session_of_the_server_that_crashes_is_an_unclean_restart() {
    let mut bed = Bed::new(&ASYNCHRONOUS).await;
    let mut sidecar = bed.sidecar().await;
    bed.sql.run("set synchronous_commit = on; select pg_switch_wal()").await;
    bed.settled().await;
    cache_a_phantom(&mut bed).await;
    let epoch = "select stats_reset::text from pg_stat_archiver";
    let before: String = bed.sql.one(epoch).await;
    let pid: i32 = bed.sql.one("select pg_backend_pid()").await;
    signal(&[u32::try_from(pid).unwrap()], Signal::Kill).unwrap();
    eventually(PATIENCE, "the server notices and recovers", || async {
        let Ok(client) = bed.postgres.connect().await else { return false };
        client.query_one(epoch, &[]).await.is_ok_and(|row| row.get::<_, String>(0) != before)
    })
    .await;
    bed.sql = Sql::connect(&bed.postgres).await;
    let unclean = "walsweep_resyncs_total{reason=\"unclean_restart\"}";
    eventually(PATIENCE, "the crash is noticed", || async { sidecar.metric(unclean).await > 0.0 })
        .await;
    sidecar.wait_ready().await;
    bed.fresh().await;
}

/// The standby that is promoted lacks the last commits, which readers of the primary have cached.
#[tokio::test]
async fn commits_that_a_promoted_standby_lacks_are_swept() {
    let mut bed = Bed::new(&[]).await;
    let front = Proxy::to_port(bed.postgres.port());
    let standby_data = base_backup(&bed);
    let mut standby = standby(&bed, standby_data).await;
    let mut settings = bed.settings();
    settings.postgres_url = front.url(&settings.postgres_url, bed.postgres.port());
    let mut sidecar = Sidecar::set_up(settings).await;
    let position = bed.position().await;
    eventually(PATIENCE, "the standby follows", || async {
        let replayed: String = Sql::connect(&standby)
            .await
            .one("select coalesce(pg_last_wal_replay_lsn()::text, '0/0')")
            .await;
        replayed.parse::<walsweep::lsn::Lsn>().unwrap() >= position
    })
    .await;
    standby.stop(StopMode::Fast).await.unwrap();
    bed.sql.run("update item set version = 9 where id = 7").await;
    bed.cache_rows().await;
    bed.settled().await;
    bed.cache_rows().await;
    bed.postgres.kill9().await.unwrap();
    standby.start_again().await.unwrap();
    Sql::connect(&standby).await.run("select pg_promote()").await;
    // The old one stays as long as its folder is needed: the standby's is in it.
    let _primary = std::mem::replace(&mut bed.postgres, standby);
    bed.sql = Sql::connect(&bed.postgres).await;
    assert_eq!(bed.stale().await, ["item:7"], "the standby lacks the commit");
    // With the slot there, so that nothing but the timeline tells.
    bed.sql.run("select pg_create_logical_replication_slot('walsweep', 'pgoutput')").await;
    front.retarget(([127, 0, 0, 1], bed.postgres.port()).into());
    front.reset();
    let timeline = "walsweep_resyncs_total{reason=\"other_timeline\"}";
    eventually(PATIENCE, "the promotion is noticed", || async {
        sidecar.metric(timeline).await > 0.0
    })
    .await;
    sidecar.wait_ready().await;
    bed.fresh().await;
    bed.sql.run("update item set version = version + 1 where id = 8").await;
    bed.gone("item:8").await;
}

/// A copy of the data folder, made by the server's own program.
fn base_backup(bed: &Bed) -> std::path::PathBuf {
    let folder = bed.postgres.new_folder("standby").unwrap();
    let mut command = bed.postgres.command("pg_basebackup");
    let output = command.args(["-X", "stream", "-c", "fast", "-D"]).arg(&folder).output().unwrap();
    assert!(output.status.success(), "{}", crate::support::text(&output));
    folder
}

/// A standby of the bed's server.
async fn standby(bed: &Bed, data_dir: std::path::PathBuf) -> Postgres {
    fs::write(data_dir.join("standby.signal"), "").unwrap();
    let port = bed.postgres.port();
    let conninfo = format!("primary_conninfo = 'host=127.0.0.1 port={port} user=postgres'");
    let conf = vec![conninfo, "hot_standby = on".to_owned()];
    let options = PostgresOptions { conf, data_dir: Some(data_dir), ..PostgresOptions::default() };
    let patience = Duration::from_secs(30);
    tokio::time::timeout(patience, Postgres::start(options)).await.unwrap().unwrap()
}
