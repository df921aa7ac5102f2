//! Outages under load: kill −9, Redis away, Postgres restarted. At rest nothing is stale.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::AsyncCommands;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use walsweep::throwaway::StopMode;

use crate::support::{Bed, PATIENCE, Sidecar, eventually};

/// Writers and readers of the items of a [`Bed`], until stopped.
struct Load {
    stop_writing: Arc<AtomicBool>,
    stop_reading: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    writers: JoinSet<()>,
    readers: JoinSet<()>,
}

impl Load {
    fn start(bed: &Bed) -> Load {
        let mut load = Load {
            stop_writing: Arc::default(),
            stop_reading: Arc::default(),
            commits: Arc::default(),
            writers: JoinSet::new(),
            readers: JoinSet::new(),
        };
        for seed in 0..4 {
            let (stop, commits) = (Arc::clone(&load.stop_writing), Arc::clone(&load.commits));
            load.writers.spawn(write(bed.postgres.url(), seed, stop, commits));
            let (postgres, redis) = (bed.postgres.url(), bed.redis.url());
            load.readers.spawn(read(postgres, redis, seed, Arc::clone(&load.stop_reading)));
        }
        load
    }

    /// No more commits; the readers go on. Gives the number of commits.
    async fn end_writing(&mut self) -> u64 {
        self.stop_writing.store(true, Ordering::Relaxed);
        while let Some(ended) = self.writers.join_next().await {
            ended.unwrap();
        }
        self.commits.load(Ordering::Relaxed)
    }

    /// Everything cached equals its row, once all is confirmed and readers have filled the cache.
    async fn assert_nothing_stale(mut self, bed: &Bed, sidecar: &mut Sidecar) {
        sidecar.wait_ready().await;
        bed.settled().await;
        eventually(PATIENCE, "readers fill the cache", || async { cached(bed).await.len() > 90 })
            .await;
        self.stop_reading.store(true, Ordering::Relaxed);
        while let Some(ended) = self.readers.join_next().await {
            ended.unwrap();
        }
        for (id, found) in cached(bed).await {
            let row: i64 = bed.sql.one_of("select version from item where id = $1", &[&id]).await;
            assert_eq!(found, row, "item {id} is stale");
        }
    }
}

/// What is cached, by id.
async fn cached(bed: &Bed) -> Vec<(i32, i64)> {
    let mut cached = Vec::new();
    for id in 1..=100 {
        let found: Option<i64> = bed.cache.clone().get(format!("item:{id}")).await.unwrap();
        cached.extend(found.map(|version| (id, version)));
    }
    cached
}

/// A connection, however long the server is away; `None` when the load ends first.
async fn connect(url: &str, stop: &AtomicBool) -> Option<tokio_postgres::Client> {
    while !stop.load(Ordering::Relaxed) {
        if let Ok((client, driver)) = tokio_postgres::connect(url, tokio_postgres::NoTls).await {
            tokio::spawn(driver);
            return Some(client);
        }
        sleep(Duration::from_millis(20)).await;
    }
    None
}

async fn write(url: String, seed: u64, stop: Arc<AtomicBool>, commits: Arc<AtomicU64>) {
    let mut random = StdRng::seed_from_u64(seed);
    while let Some(client) = connect(&url, &stop).await {
        let update = "update item set version = version + 1 where id = $1";
        while !stop.load(Ordering::Relaxed) {
            if client.execute(update, &[&random.random_range(1..=100)]).await.is_err() {
                break;
            }
            commits.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A cache-aside reader: what is not cached is read and cached at once.
async fn read(postgres: String, redis: String, seed: u64, stop: Arc<AtomicBool>) {
    let mut random = StdRng::seed_from_u64(1000 + seed);
    let client = redis::Client::open(redis).unwrap();
    while let Some(sql) = connect(&postgres, &stop).await {
        let Ok(mut cache) = client.get_multiplexed_async_connection().await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let id: i32 = random.random_range(1..=100);
            let key = format!("item:{id}");
            let Ok(cached) = cache.get::<_, Option<i64>>(&key).await else { break };
            if cached.is_some() {
                continue;
            }
            let select = "select version from item where id = $1";
            let Ok(row) = sql.query_one(select, &[&id]).await else { break };
            if cache.set::<_, _, ()>(&key, row.get::<_, i64>(0)).await.is_err() {
                break;
            }
        }
    }
}

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
    bed.sql = crate::support::Sql::connect(&bed.postgres).await;
    load.assert_nothing_stale(&bed, &mut sidecar).await;
    println!("3 restarts during {commits} commits");
}
