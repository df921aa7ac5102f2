//! Traffic on the items of a [`Bed`], and the look at what it left in the cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::AsyncCommands;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Bed, PATIENCE, Sidecar, eventually};

/// Writers, and as many readers.
const WRITERS: u64 = 4;

/// Writers and readers of the items of a [`Bed`], until stopped.
pub(crate) struct Load {
    stop_writing: Arc<AtomicBool>,
    stop_reading: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    writers: JoinSet<()>,
    readers: JoinSet<()>,
}

impl Load {
    /// As fast as the machine goes.
    pub(crate) fn start(bed: &Bed) -> Load {
        Load::paced(bed, Duration::ZERO)
    }

    /// With a pause after every commit and every look into the cache.
    pub(crate) fn paced(bed: &Bed, pause: Duration) -> Load {
        let mut load = Load {
            stop_writing: Arc::default(),
            stop_reading: Arc::default(),
            commits: Arc::default(),
            writers: JoinSet::new(),
            readers: JoinSet::new(),
        };
        for seed in 0..WRITERS {
            let (stop, commits) = (Arc::clone(&load.stop_writing), Arc::clone(&load.commits));
            load.writers.spawn(write(bed.postgres.url(), (seed, pause), stop, commits));
            let (urls, stop) = ((bed.postgres.url(), bed.redis.url()), &load.stop_reading);
            load.readers.spawn(read(urls, (seed, pause), Arc::clone(stop)));
        }
        load
    }

    /// No more commits; the readers go on. Gives the number of commits.
    pub(crate) async fn end_writing(&mut self) -> u64 {
        self.stop_writing.store(true, Ordering::Relaxed);
        while let Some(ended) = self.writers.join_next().await {
            ended.unwrap();
        }
        self.commits.load(Ordering::Relaxed)
    }

    /// Everything cached equals its row, once all is confirmed and readers have filled the cache.
    pub(crate) async fn assert_nothing_stale(mut self, bed: &Bed, sidecar: &mut Sidecar) {
        sidecar.wait_ready().await;
        bed.settled_within(PATIENCE * 3).await;
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
        for team in 0..10 {
            let team = format!("team {team}");
            let found: Option<i64> = bed.cache.clone().get(list_key(&team)).await.unwrap();
            let sum: i64 = bed.sql.one_of(SUM, &[&team]).await;
            assert!(found.is_none_or(|found| found == sum), "{team} is stale: {found:?}, {sum}");
        }
    }
}

/// Gives the versions that are cached of the items, by id.
async fn cached(bed: &Bed) -> Vec<(i32, i64)> {
    let mut cached = Vec::new();
    for id in 1..=100 {
        let found: Option<i64> = bed.cache.clone().get(format!("item:{id}")).await.unwrap();
        cached.extend(found.map(|version| (id, version)));
    }
    cached
}

/// The query whose result is cached of a team.
const SUM: &str = "select sum(version)::bigint from item where team = $1";

/// A key that only a pattern removes.
fn list_key(team: &str) -> String {
    format!("list:{team}:sum")
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

async fn write(
    url: String,
    (seed, pause): (u64, Duration),
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
) {
    let mut random = StdRng::seed_from_u64(seed);
    while let Some(client) = connect(&url, &stop).await {
        let update = "update item set version = version + 1 where id = $1";
        while !stop.load(Ordering::Relaxed) {
            if client.execute(update, &[&random.random_range(1..=100)]).await.is_err() {
                break;
            }
            commits.fetch_add(1, Ordering::Relaxed);
            rest(pause).await;
        }
    }
}

/// A cache-aside reader: what is not cached is read and cached at once.
async fn read(
    (postgres, redis): (String, String),
    (seed, pause): (u64, Duration),
    stop: Arc<AtomicBool>,
) {
    let mut random = StdRng::seed_from_u64(1000 + seed);
    let client = redis::Client::open(redis).unwrap();
    while let Some(sql) = connect(&postgres, &stop).await {
        let Ok(mut cache) = client.get_multiplexed_async_connection().await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let id: i32 = random.random_range(1..=100);
            let team = format!("team {}", id % 10);
            let (key, select) = match random.random_range(0..4) {
                0 => (list_key(&team), SUM),
                _ => (format!("item:{id}"), "select version from item where id = $1"),
            };
            let Ok(cached) = cache.get::<_, Option<i64>>(&key).await else { break };
            if cached.is_some() {
                rest(pause).await;
                continue;
            }
            let row = match select {
                SUM => sql.query_one(select, &[&team]).await,
                _ => sql.query_one(select, &[&id]).await,
            };
            let Ok(row) = row else { break };
            if cache.set::<_, _, ()>(&key, row.get::<_, i64>(0)).await.is_err() {
                break;
            }
            rest(pause).await;
        }
    }
}

/// A sleep of nothing lasts a millisecond.
async fn rest(pause: Duration) {
    if !pause.is_zero() {
        sleep(pause).await;
    }
}
