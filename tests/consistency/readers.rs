//! Cache-aside readers: what is not cached is read, thought over, and cached. And the auditor.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use crate::cache::Cache;
use crate::cached::{Key, Rows};
use crate::schema::{FLASHES, HOT_ITEMS, ITEMS, TEAMS};
use crate::shared::{Fill, RETRY, Shared};

/// Stores a value unless it is too late by the server's own clock, in microseconds.
///
/// The promise covers fills within the window. A server that was frozen or slow in between would
/// make a fill later than that without the reader's doing; this keeps the reader to its word.
const STORE: &str = "
local now = redis.call('time')
if tonumber(now[1]) * 1000000 + tonumber(now[2]) > tonumber(ARGV[2]) then return 0 end
redis.call('set', KEYS[1], ARGV[1])
return 1";

/// How long a reader waits for a table that somebody else locked, before it asks for another key.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long the auditor does.
const AUDIT_PATIENCE: Duration = Duration::from_millis(5);

/// How often the auditor looks.
const AUDIT_INTERVAL: Duration = Duration::from_millis(20);

/// Looks at which nobody waits; then a moment for others.
const VISITS: u32 = 16;

/// One reader.
struct Reader {
    shared: Arc<Shared>,
    random: StdRng,
    rows: Rows,
    cache: Cache,
    defined: Vec<Key>,
}

/// Why a reader opens new connections.
struct Broken;

impl<E: std::error::Error> From<E> for Broken {
    fn from(_: E) -> Broken {
        Broken
    }
}

/// Reads until the run is over.
pub(crate) async fn read(shared: Arc<Shared>, number: u64) {
    let mut random = shared.random(2, number);
    while !shared.stopped() {
        let Ok(rows) = Rows::open(&shared.postgres_url, PATIENCE).await else {
            sleep(RETRY).await;
            continue;
        };
        let cache = shared.cache();
        let (own, defined) = (Arc::clone(&shared), Key::all_defined());
        let mut reader = Reader { shared: own, random, rows, cache, defined };
        while !shared.stopped() {
            let turn = shared.reading.read().await;
            let key = reader.pick();
            let visited = reader.visit(key).await;
            drop(turn);
            if visited.is_err() {
                sleep(RETRY).await;
                break;
            }
            if reader.random.random_range(0..VISITS) == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        }
        random = reader.random;
    }
}

impl Reader {
    fn pick(&mut self) -> Key {
        let random = &mut self.random;
        match random.random_range(0..120) {
            0..45 => Key::Item(random.random_range(1..=HOT_ITEMS)),
            45..65 => Key::Item(random.random_range(1..=ITEMS)),
            65..75 => Key::Slug(random.random_range(1..=ITEMS)),
            75..93 => {
                Key::List { team: random.random_range(0..TEAMS), page: random.random_range(0..3) }
            }
            93..100 => Key::Flash(random.random_range(FLASHES)),
            _ => self.defined[random.random_range(0..self.defined.len())],
        }
    }

    /// How long a reader computes what it read: mostly nothing, sometimes long.
    fn think(&mut self, most: Duration) -> Duration {
        match self.random.random_range(0..100) {
            0..70 => Duration::ZERO,
            70..95 => most.min(Duration::from_micros(self.random.random_range(200..20_000))),
            95..99 => most.mul_f64(self.random.random_range(0.0..0.5)),
            _ => most.mul_f64(self.random.random_range(0.5..1.0)),
        }
    }

    async fn visit(&mut self, key: Key) -> Result<(), Broken> {
        let name = key.name();
        let asked_at = Instant::now();
        let found = self.cache.get(&name).await?;
        self.shared.reads.fetch_add(1, Ordering::Relaxed);
        if let Some(value) = found {
            self.shared.judge(&name, &value, asked_at);
            return Ok(());
        }
        self.fill(key, name).await
    }

    async fn fill(&mut self, key: Key, name: String) -> Result<(), Broken> {
        // A tenth is left for two clocks that do not tick alike.
        let window = self.shared.window;
        let most = window.mul_f64(0.9);
        let is_late = self.shared.late_readers && self.random.random_range(0..50) == 0;
        let (thought, deadline) = if is_late {
            (window.mul_f64(self.random.random_range(1.0..3.0)), u64::MAX / 2)
        } else {
            (self.think(most.mul_f64(0.9)), unix_micros() + micros(most))
        };
        let read_at = Instant::now();
        let value = match self.rows.value(key).await {
            Ok(value) => value,
            // The table is locked, or not there.
            Err(error) if error.as_db_error().is_some() && !self.rows.is_closed() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if !thought.is_zero() {
            sleep(thought).await;
        }
        let mut store = redis::cmd("EVAL");
        store.arg(STORE).arg(1).arg(&name).arg(&value).arg(deadline);
        let stored: u32 = self.cache.ask(&name, &store).await?;
        if stored == 1 {
            self.shared.fills.fetch_add(1, Ordering::Relaxed);
            // Within its time by the server's clock, however late the answer came.
            let gap = if is_late { read_at.elapsed() } else { read_at.elapsed().min(most) };
            let fill = Fill { value, at: Instant::now(), gap };
            self.shared.filled.lock().unwrap().insert(name, fill);
        }
        Ok(())
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn unix_micros() -> u64 {
    micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Looks at every row and every key again and again: the life of a stale value is measured also
/// where no reader comes by.
pub(crate) async fn audit(shared: Arc<Shared>) {
    let names: Vec<String> = Key::all().into_iter().map(Key::name).collect();
    while !shared.stopped() {
        if let Ok(rows) = Rows::open(&shared.postgres_url, AUDIT_PATIENCE).await {
            let mut cache = shared.cache();
            while !shared.stopped() && look(&shared, &rows, &mut cache, &names).await.is_ok() {
                sleep(AUDIT_INTERVAL).await;
            }
        }
        sleep(RETRY).await;
    }
}

async fn look(
    shared: &Shared,
    rows: &Rows,
    cache: &mut Cache,
    names: &[String],
) -> Result<(), Broken> {
    let _turn = shared.reading.read().await;
    shared.history.observe(&rows.within_reach().await?);
    let asked_at = Instant::now();
    let values = cache.look(names).await?;
    for (name, value) in names.iter().zip(values) {
        if let Some(value) = value {
            shared.judge(name, &value, asked_at);
        }
    }
    Ok(())
}
