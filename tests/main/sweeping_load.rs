//! Passes take at most their share of any ten seconds of a real Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, cmd};
use tokio::time::{Instant, sleep};

use crate::support::{Bed, PATIENCE, Sidecar, eventually};

/// Keys that no rule means; a pass takes some hundredths of a second for them.
const OTHERS: usize = 100_000;

/// The share, small enough that passes back to back take many times as much.
const MAX_LOAD: f64 = 0.1;

/// How long commits of one rate go on.
const LENGTH: Duration = Duration::from_secs(11);

/// How long SCAN has held the server, by its own account.
async fn scan_time(cache: &mut MultiplexedConnection) -> Duration {
    let info: String = cmd("INFO").arg("commandstats").query_async(cache).await.unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("cmdstat_scan:"));
    let usec = line.and_then(|line| line.split(',').find_map(|one| one.strip_prefix("usec=")));
    Duration::from_micros(usec.map_or(0, |usec| usec.parse().unwrap()))
}

/// I10: one, ten and fifty commits a second that remove patterns, first and second removals
/// together.
#[tokio::test]
async fn patterns_take_no_more_than_their_share_of_redis() {
    let bed = Bed::new(&[]).await;
    let mut settings = bed.settings();
    settings.refill = "1s".to_owned();
    settings.level = "info".to_owned();
    settings.sweep = format!("max_load = {MAX_LOAD}");
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    for from in (0..OTHERS).step_by(5_000) {
        let mut pipeline = Pipeline::new();
        for number in from..from + 5_000 {
            pipeline.cmd("SET").arg(format!("other:{number}")).arg("x").ignore();
        }
        pipeline.exec_async(&mut bed.cache.clone()).await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let watching = tokio::spawn(watch(bed.redis.connect().await.unwrap(), Arc::clone(&stop)));
    let mut commits = 0;
    for pause in [1_000, 100, 20].map(Duration::from_millis) {
        let began = Instant::now();
        while began.elapsed() < LENGTH {
            let id = commits % 100 + 1;
            bed.fill(&[&format!("list:team {}:{commits}", id % 10)]).await;
            bed.sql.run(&format!("update item set version = version + 1 where id = {id}")).await;
            commits += 1;
            sleep(pause).await;
        }
    }
    // Not by SCAN: Redis counts everybody's together.
    let left = || async {
        let mut exists = cmd("EXISTS");
        for number in 0..commits {
            exists.arg(format!("list:team {}:{number}", (number % 100 + 1) % 10));
        }
        exists.query_async::<u64>(&mut bed.cache.clone()).await.unwrap()
    };
    stop.store(true, Ordering::Relaxed);
    let most = watching.await.unwrap();
    let share = Duration::from_secs(10).mul_f64(MAX_LOAD);
    assert!(most <= share.mul_f64(1.1), "{most:?} of ten seconds, more than {share:?}");
    assert!(most >= share / 4, "{most:?}: nothing was at its limit");
    eventually(PATIENCE, "every key goes", || async { left().await == 0 }).await;
    let passes = sidecar.metric_sum("walsweep_sweeps_total").await;
    assert!(passes >= 4.0, "{passes} passes for {commits} commits");
    assert!(sidecar.metric("walsweep_sweep_throttled_seconds_total").await > 1.0);
}

/// Looks until told to stop; gives the most that SCAN took in any ten seconds.
async fn watch(mut cache: MultiplexedConnection, stop: Arc<AtomicBool>) -> Duration {
    let mut seen: Vec<(Instant, Duration)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let time = scan_time(&mut cache).await;
        seen.push((Instant::now(), time));
        sleep(Duration::from_millis(100)).await;
    }
    let within = |(since, before): &(Instant, Duration)| {
        let end = *since + Duration::from_secs(10);
        let last = seen.iter().rfind(|(at, _)| *at <= end).unwrap();
        last.1 - *before
    };
    seen.iter().map(within).max().unwrap()
}
