//! Outages under load: kill −9, Redis away, Postgres restarted. At rest nothing is stale.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};
use walsweep_stage::throwaway::StopMode;

use crate::support::{Bed, Load, PATIENCE, Sidecar, Sql, eventually};

fn repetitions(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn with_refill(bed: &Bed) -> crate::support::Settings {
    let mut settings = bed.settings();
    settings.refill = "300ms".to_owned();
    settings.level = "info".to_owned();
    settings
}

/// I2, I8: `KILLS=50` repeats it as often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_under_load_it_leaves_nothing_stale() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = Sidecar::set_up(with_refill(&bed)).await;
    let mut load = Load::start(&bed);
    let mut random = StdRng::seed_from_u64(7);
    let kills = repetitions("KILLS", 8);
    for _ in 0..kills {
        sleep(Duration::from_millis(random.random_range(1..900))).await;
        sidecar.kill9();
        sidecar.start();
    }
    let commits = load.end_writing().await;
    load.assert_nothing_stale(&bed, &mut sidecar).await;
    println!("{kills} kills during {commits} commits");
    assert!(commits > 100);
}

/// I6: keepalives are answered while Redis does not. `OUTAGE_SECONDS=30` makes it as long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_costs_no_connection_and_leaves_nothing_stale() {
    let bed = Bed::new(&["wal_sender_timeout = 2s"]).await;
    let mut sidecar = Sidecar::set_up(with_refill(&bed)).await;
    let mut load = Load::start(&bed);
    sleep(Duration::from_millis(300)).await;
    let walsender = "select active_pid from pg_replication_slots";
    let pid: i32 = bed.sql.one(walsender).await;
    let outage = Duration::from_secs(u64::from(repetitions("OUTAGE_SECONDS", 7)));
    bed.redis.pause().unwrap();
    let began = Instant::now();
    while began.elapsed() < outage {
        assert_eq!(bed.sql.one::<Option<i32>>(walsender).await, Some(pid), "same connection");
        sleep(Duration::from_millis(100)).await;
    }
    bed.redis.resume().unwrap();
    eventually(PATIENCE, "ready again", || async { sidecar.readyz().await == Some(200) }).await;
    let commits = load.end_writing().await;
    load.assert_nothing_stale(&bed, &mut sidecar).await;
    assert_eq!(bed.sql.one::<i32>(walsender).await, pid);
    println!("{outage:?} without Redis during {commits} commits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_restarted_and_crashed_under_load_leaves_nothing_stale() {
    let mut bed = Bed::new(&["fsync = on"]).await;
    let mut sidecar = Sidecar::set_up(with_refill(&bed)).await;
    let mut load = Load::start(&bed);
    for mode in [Some(StopMode::Fast), Some(StopMode::Immediate), None] {
        sleep(Duration::from_millis(700)).await;
        match mode {
            Some(mode) => bed.postgres.restart(mode).await.unwrap(),
            None => {
                bed.postgres.kill9().await.unwrap();
                bed.postgres.start_again().await.unwrap();
            }
        }
    }
    sleep(Duration::from_millis(700)).await;
    let commits = load.end_writing().await;
    bed.sql = Sql::connect(&bed.postgres).await;
    load.assert_nothing_stale(&bed, &mut sidecar).await;
    println!("3 restarts during {commits} commits");
}

/// At the very first start, and at a later one: `/readyz` says for what it waits, and what the slot
/// holds goes once the server is there.
#[tokio::test]
async fn a_start_while_postgres_is_down_waits_for_it_and_loses_nothing() {
    let mut bed = Bed::new(&[]).await;
    let mut sidecar = Sidecar::new(with_refill(&bed));
    sidecar.setup();
    for sweeps in [1.0, 0.0] {
        bed.cache_rows().await;
        bed.sql.run("update item set version = version + 1 where id = 7").await;
        assert_eq!(bed.stale().await, ["item:7"]);
        bed.postgres.stop(StopMode::Fast).await.unwrap();
        sidecar.start();
        eventually(PATIENCE, "/readyz says that nobody is there", || async {
            let Some((503, body)) = sidecar.get("/readyz").await else { return false };
            body.starts_with("connecting to postgres\n") && body.contains("Connection refused")
        })
        .await;
        // Longer than the longest wait between two tries.
        sleep(Duration::from_secs(3)).await;
        assert!(!sidecar.has_ended());
        assert_eq!(sidecar.get("/healthz").await.map(|(status, _)| status), Some(200));
        assert_eq!(sidecar.metric("walsweep_postgres_up").await, 0.0);
        let age = sidecar.metric("walsweep_oldest_unconfirmed_seconds").await;
        assert!(age >= 2.0, "{age}");
        bed.postgres.start_again().await.unwrap();
        bed.sql = Sql::connect(&bed.postgres).await;
        sidecar.wait_ready().await;
        bed.gone("item:7").await;
        bed.settled().await;
        assert_eq!(sidecar.metric_sum("walsweep_resyncs_total").await, sweeps);
        assert_eq!(bed.has("item:8").await, sweeps == 0.0, "only the first start sweeps");
        assert_eq!(sidecar.sigterm().await, 0);
    }
}

/// Nobody looks whether they are there.
#[tokio::test]
async fn without_a_session_nothing_is_told_of_redis() {
    let mut bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    let tells = || async {
        let (_, page) = sidecar.get("/metrics").await.unwrap();
        page.contains("\nwalsweep_redis_up{")
    };
    assert!(tells().await);
    bed.postgres.stop(StopMode::Fast).await.unwrap();
    eventually(PATIENCE, "it is not told", || async { !tells().await }).await;
    assert_eq!(sidecar.metric("walsweep_postgres_up").await, 0.0);
    bed.postgres.start_again().await.unwrap();
    eventually(PATIENCE, "it is told", tells).await;
}
