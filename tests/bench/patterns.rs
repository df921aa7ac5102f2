//! P8: one, ten and fifty commits a second that each remove a pattern, in a Redis of a million
//! other keys: what they take of Redis, how long their keys stay, and what other clients notice.
//! P8i: fifty a second with `sweep.index`.
//!
//! `KEYS` and `SECONDS` make it smaller, `MAX_LOAD` sets `sweep.max_load`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use redis::Commands;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::quantile;
use crate::settlement::{fill, redis_cpu};
use crate::support::{Bed, Settings, Sidecar};

/// Two patterns a commit: of the old row and of the new one.
const RULES: &str = "[[rule]]\nname = \"page\"\ntable = \"public.item\"\n\
                     keys = [\"page:{version}:*\"]\n";

/// How often it is looked which keys are gone, without an index and with one; the times are that
/// coarse.
const LOOK: [Duration; 2] = [Duration::from_millis(20), Duration::from_micros(200)];

/// Between two GETs of the other client.
const PAUSE: Duration = Duration::from_millis(2);

/// Measurements of some seconds.
struct Seen {
    /// Share of one core that Redis used.
    cpu: f64,
    /// How long each key was there after its commit was acknowledged.
    gone: Vec<Duration>,
    /// How long each GET of the other client took.
    gets: Vec<Duration>,
}

pub(crate) async fn run() {
    let mut settings = String::new();
    if let Ok(max_load) = std::env::var("MAX_LOAD") {
        settings = format!("max_load = {max_load}");
    }
    measure("P8", &settings, &[1, 10, 50], LOOK[0]).await;
}

pub(crate) async fn run_with_index() {
    measure("P8i", "index = true", &[50], LOOK[1]).await;
}

/// Measures commits so often a second, each rate by itself, with these lines in `[sweep]`.
async fn measure(name: &str, sweep: &str, rates: &[u32], look: Duration) {
    let number = |name: &str, otherwise: u32| -> u32 {
        std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
    };
    let (keys, seconds) = (number("KEYS", 1_000_000), number("SECONDS", 60));
    let length = Duration::from_secs(seconds.into());
    let bed = Bed::new(&[]).await;
    let mut settings = Settings::new(&bed.postgres, &bed.redis, RULES);
    settings.level = "warn".to_owned();
    settings.refill = "1s".to_owned();
    settings.sweep = sweep.to_owned();
    let mut sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    fill(&mut bed.cache.clone(), keys as usize).await;
    let idle = see(&bed, (0, look), length.min(Duration::from_secs(10)), 0).await;
    let mut version = 0;
    for a_second in rates.iter().copied() {
        // What the part before it took is paid for.
        sleep(Duration::from_secs(12)).await;
        let seen = see(&bed, (a_second, look), length, version).await;
        version += seen.gone.len();
        report(name, &idle, seen, &format!("{a_second} pattern commits/s over {keys} keys"));
    }
    let throttled = sidecar.metric("walsweep_sweep_throttled_seconds_total").await;
    println!("| {name} | patterns waited for their turn, all told | {throttled:.0} s | – | – |");
    assert_eq!(sidecar.sigterm().await, 0);
}

fn report(name: &str, idle: &Seen, mut seen: Seen, what: &str) {
    println!(
        "| {name} | Redis CPU, {what} | {:.0} % | idle {:.0} % | +{:.0} % |",
        seen.cpu * 100.0,
        idle.cpu * 100.0,
        (seen.cpu - idle.cpu) * 100.0
    );
    println!(
        "| {name} | the same, commit acknowledged to keys gone, p50, p99, at most | {:.2} ms, \
         {:.2} ms, {:.2} ms | – | – |",
        quantile(&mut seen.gone, 0.5).as_secs_f64() * 1e3,
        quantile(&mut seen.gone, 0.99).as_secs_f64() * 1e3,
        quantile(&mut seen.gone, 1.0).as_secs_f64() * 1e3
    );
    let p50 = |gets: &[Duration]| quantile(&mut gets.to_vec(), 0.5).as_secs_f64() * 1e3;
    let (own, before) = (p50(&seen.gets), p50(&idle.gets));
    println!(
        "| {name} | the same, GET p50 of another client | {own:.3} ms | idle {before:.3} ms | \
         {:+.3} ms |",
        own - before
    );
}

/// Commits so often for so long, from this version on, and waits until all keys are gone.
async fn see(
    bed: &Bed,
    (a_second, look): (u32, Duration),
    length: Duration,
    version: usize,
) -> Seen {
    let stop = Arc::new(AtomicBool::new(false));
    let other = other_client(bed.redis.url(), Arc::clone(&stop));
    let (cpu, began) = (redis_cpu(bed.cache.clone()).await, Instant::now());
    let gone = if a_second == 0 {
        sleep(length).await;
        Vec::new()
    } else {
        commit(bed, (a_second, look), length, version).await
    };
    let cpu = (redis_cpu(bed.cache.clone()).await - cpu) / began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    Seen { cpu, gone, gets: other.join().unwrap() }
}

async fn commit(
    bed: &Bed,
    (a_second, look): (u32, Duration),
    length: Duration,
    version: usize,
) -> Vec<Duration> {
    let (mut gone, mut waiting) = (Vec::new(), Vec::<(Instant, String)>::new());
    let mut looks = interval(look);
    let mut commits = interval(Duration::from_secs(1) / a_second);
    commits.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (began, mut next) = (Instant::now(), version + 1);
    while began.elapsed() < length || !waiting.is_empty() {
        tokio::select! {
            _ = commits.tick(), if began.elapsed() < length => {
                let key = format!("page:{next}:x");
                let mut set = redis::cmd("SET");
                set.arg(&key).arg("stale").exec_async(&mut bed.cache.clone()).await.unwrap();
                bed.sql.run(&format!("update item set version = {next} where id = 1")).await;
                waiting.push((Instant::now(), key));
                next += 1;
            }
            _ = looks.tick(), if !waiting.is_empty() => {
                let left = left(bed.cache.clone(), &waiting).await;
                let mut left = left.into_iter();
                waiting.retain(|(since, _)| {
                    let stays = left.next().unwrap();
                    if !stays {
                        gone.push(since.elapsed());
                    }
                    stays
                });
            }
        }
    }
    gone
}

/// Which of the keys are there.
async fn left(mut cache: MultiplexedConnection, waiting: &[(Instant, String)]) -> Vec<bool> {
    if waiting.is_empty() {
        return Vec::new();
    }
    let mut pipeline = redis::pipe();
    for (_, key) in waiting {
        pipeline.exists(key);
    }
    pipeline.query_async(&mut cache).await.unwrap()
}

/// A client that reads one key after the other, on a thread of its own.
fn other_client(url: String, stop: Arc<AtomicBool>) -> JoinHandle<Vec<Duration>> {
    thread::spawn(move || {
        let mut cache = redis::Client::open(url).unwrap().get_connection().unwrap();
        let mut took = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let _value: Option<Vec<u8>> = cache.get("session:0000007:page").unwrap();
            took.push(began.elapsed());
            thread::park_timeout(PAUSE);
        }
        took
    })
}
