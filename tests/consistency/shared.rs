//! The state that writers, readers and the auditor share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Mutex as Lock, OwnedMutexGuard, RwLock};
use tokio::time::Instant;

use crate::cache::{Cache, Directory};
use crate::cached::{family, versions};
use crate::history::{History, Life};
use crate::schema::{
    CHILD_PAGE, FIRST_PARTS, FLASHES, ITEMS, PAGES, PHANTOMS, SECOND_PARTS, SHELVES, STAT,
};

/// How long anything may take that should take milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A pause before the next try on a server that may be away.
pub(crate) const RETRY: Duration = Duration::from_millis(20);

/// The latest fill of a key.
#[derive(Clone, Debug)]
pub(crate) struct Fill {
    /// The value that was stored.
    pub(crate) value: String,
    /// When.
    pub(crate) at: Instant,
    /// From the beginning of the read to the end of the store.
    pub(crate) gap: Duration,
}

/// A stale value that lived longer than the bound.
#[derive(Clone, Debug)]
pub(crate) struct Overdue {
    /// The key.
    pub(crate) key: String,
    /// The value that was cached.
    pub(crate) value: String,
    /// How long, and how long it might.
    pub(crate) life: Life,
}

/// Stale values that were seen while the load ran.
#[derive(Debug, Default)]
pub(crate) struct Lives {
    /// How often one was seen.
    pub(crate) seen: u64,
    /// The longest life in which nothing was broken.
    pub(crate) longest_calm: Option<Life>,
    /// The life that came nearest to its bound, or went farthest beyond.
    pub(crate) worst: Option<Life>,
    /// The longest life of all.
    pub(crate) longest: Option<Life>,
    /// The life of which the longest part passed while the program said that it is ready.
    pub(crate) longest_ready: Option<Life>,
    /// Those beyond the bound, the latest look at each.
    pub(crate) overdue: HashMap<(String, String), Overdue>,
}

/// See the module.
pub(crate) struct Shared {
    /// Everything random comes from here.
    pub(crate) seed: u64,
    /// The database, not through a proxy.
    pub(crate) postgres_url: String,
    /// The cache, not through a proxy.
    pub(crate) directory: Arc<Directory>,
    /// Everything that is known of the rows.
    pub(crate) history: History,
    /// `[refill] window`.
    pub(crate) window: Duration,
    /// Some fills come later than the window.
    pub(crate) late_readers: bool,
    /// Held by each writer during a turn; whoever takes it for writing pauses them.
    pub(crate) writing: RwLock<()>,
    /// Held by each reader during a turn; whoever takes it for writing pauses them.
    pub(crate) reading: RwLock<()>,
    /// Only a few rows are written: what a fault left in the keys of the others is not removed by
    /// accident before the next quiet point.
    pub(crate) narrow: AtomicBool,
    /// The run is over.
    pub(crate) stop: AtomicBool,
    /// Transactions that were acknowledged.
    pub(crate) commits: AtomicU64,
    /// Values stored by readers.
    pub(crate) fills: AtomicU64,
    /// Looks into the cache by readers.
    pub(crate) reads: AtomicU64,
    /// Stale values seen.
    pub(crate) lives: Mutex<Lives>,
    /// The latest fill of each key.
    pub(crate) filled: Mutex<HashMap<String, Fill>>,
    versions: AtomicU64,
    rows: HashMap<i32, Arc<Lock<()>>>,
}

/// Rows that one writer has for itself.
pub(crate) type Owned = Vec<OwnedMutexGuard<()>>;

impl Shared {
    /// For a run against these servers, whose lives `history` judges.
    pub(crate) fn new(
        seed: u64,
        (postgres_url, directory): (String, Arc<Directory>),
        (window, history): (Duration, History),
        late_readers: bool,
    ) -> Shared {
        let rows = (1..=ITEMS).chain(PHANTOMS).chain(FLASHES).chain(PAGES).chain([CHILD_PAGE]);
        let rows = rows.chain(FIRST_PARTS).chain(SECOND_PARTS).chain(SHELVES).chain([STAT]);
        Shared {
            seed,
            postgres_url,
            directory,
            history,
            window,
            late_readers,
            writing: RwLock::default(),
            reading: RwLock::default(),
            narrow: AtomicBool::default(),
            stop: AtomicBool::default(),
            commits: AtomicU64::default(),
            fills: AtomicU64::default(),
            reads: AtomicU64::default(),
            lives: Mutex::default(),
            filled: Mutex::default(),
            versions: AtomicU64::new(1),
            rows: rows.map(|id| (id, Arc::default())).collect(),
        }
    }

    /// The random numbers of one task.
    pub(crate) fn random(&self, role: u64, number: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ (role << 48) ^ (number << 32))
    }

    /// A new client of the cache.
    pub(crate) fn cache(&self) -> Cache {
        Cache::new(&self.directory, String::new())
    }

    /// Whether the run is over.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A version later than all before. A writer takes it after the rows, so that the versions of a
    /// row become visible in their order.
    pub(crate) fn next_version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::SeqCst)
    }

    /// Takes rows, unless another writer has one of them. Nobody waits: no two writers can block
    /// each other, and the next row is as good.
    pub(crate) fn own(&self, ids: &[i32]) -> Option<Owned> {
        ids.iter().map(|id| Arc::clone(self.rows.get(id)?).try_lock_owned().ok()).collect()
    }

    /// Takes rows as soon as no writer has them any more, in the order in which they are given.
    pub(crate) async fn own_all(&self, ids: impl IntoIterator<Item = i32>) -> Owned {
        let mut owned = Vec::new();
        for id in ids {
            if let Some(row) = self.rows.get(&id) {
                owned.push(Arc::clone(row).lock_owned().await);
            }
        }
        owned
    }

    /// A commit was acknowledged that gave these rows this version.
    pub(crate) fn committed(&self, rows: &[i32], version: u64) {
        self.history.record(rows, version);
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Judges a value that was in the cache at `seen_at`.
    pub(crate) fn judge(&self, key: &str, value: &str, seen_at: Instant) {
        let Some(life) = self.history.judge(family(key), versions(value), seen_at) else { return };
        let mut lives = self.lives.lock().unwrap();
        lives.seen += 1;
        if self.is_late(key, value) {
            return;
        }
        let longer = |than: &Option<Life>| than.is_none_or(|than| life.life > than.life);
        if lives.longest_ready.is_none_or(|than| life.ready > than.ready) {
            lives.longest_ready = Some(life);
        }
        if longer(&lives.longest) {
            lives.longest = Some(life);
        }
        if life.outage.is_zero() && longer(&lives.longest_calm) {
            lives.longest_calm = Some(life);
        }
        let share = |one: Life| one.life.as_secs_f64() / one.bound.as_secs_f64().max(1e-9);
        if lives.worst.is_none_or(|worst| share(life) > share(worst)) {
            lives.worst = Some(life);
        }
        if life.life > life.bound {
            let (key, value) = (key.to_owned(), value.to_owned());
            let overdue = Overdue { key: key.clone(), value: value.clone(), life };
            lives.overdue.insert((key, value), overdue);
        }
    }

    /// Whether this value was stored later than the promise covers.
    pub(crate) fn is_late(&self, key: &str, value: &str) -> bool {
        let filled = self.filled.lock().unwrap();
        filled.get(key).is_some_and(|fill| fill.value == value && fill.gap >= self.window)
    }
}
