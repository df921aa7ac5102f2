//! Quiet points: nobody writes, all is confirmed, and every cached value must equal its row.

use std::collections::HashSet;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use crate::World;
use crate::cached::{Key, Rows};
use crate::shared::PATIENCE;

/// How often a value that may still be noticed is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How long readers fill the cache after the last removal.
const FILL: Duration = Duration::from_millis(200);

/// A cached value that is not its row.
#[derive(Debug, Serialize)]
pub(crate) struct Stale {
    key: String,
    cached: String,
    row: String,
    /// Seconds before the look; nothing if no reader knows of it.
    filled_before: Option<f64>,
    /// From read to store, seconds.
    fill_gap: Option<f64>,
}

impl std::fmt::Display for Stale {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Stale { key, cached, row, .. } = self;
        write!(formatter, "{key}: cached `{cached}`, row `{row}`, ")?;
        match self.filled_before.zip(self.fill_gap) {
            Some((before, gap)) => {
                write!(formatter, "filled {before:.3} s before, {gap:.4} s after it was read")
            }
            None => write!(formatter, "not the latest fill of this key"),
        }
    }
}

/// The findings of a quiet point.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    /// Values that were compared.
    pub(crate) compared: usize,
    /// Those that are stale.
    pub(crate) stale: Vec<Stale>,
    /// Those that are stale and were stored later than the promise covers.
    pub(crate) late: usize,
    /// Keys on a primary that has not got their slot: no client finds them.
    pub(crate) lost: usize,
}

/// Brings everything to rest and compares. Fails when it does not come to rest. What no row told
/// may be noticed until `noticed_by`: before that, what is stale is looked at again.
pub(crate) async fn check(world: &World, noticed_by: Option<Instant>) -> Result<Rest, String> {
    let no_writer = timeout(PATIENCE, world.shared.writing.write()).await;
    let _no_writer = no_writer.map_err(|_late| "writers do not come to rest".to_owned())?;
    loop {
        // Taken before anything is asked: what is stale then is stale in spite of the time.
        let is_time_over = noticed_by.is_none_or(|end| Instant::now() >= end);
        if !world.servers.settled(world.is_walsweep, world.recovery).await {
            let seconds = world.recovery.as_secs();
            return Err(format!("not everything is confirmed after {seconds} s"));
        }
        sleep(if world.is_walsweep { FILL } else { FILL + world.grace }).await;
        let no_reader = timeout(PATIENCE, world.shared.reading.write()).await;
        let no_reader = no_reader.map_err(|_late| "readers do not come to rest".to_owned())?;
        let rest = compare(world, is_time_over).await?;
        if is_time_over || rest.stale.is_empty() {
            world.shared.history.forget();
            world.shared.history.troubles_end();
            return Ok(rest);
        }
        drop(no_reader);
        sleep(LOOK_AGAIN).await;
    }
}

/// Compares every value; with `tell` the stale ones are taken away afterwards.
async fn compare(world: &World, tell: bool) -> Result<Rest, String> {
    let away = |error: &dyn std::fmt::Display| format!("a server is away at rest: {error}");
    let rows = Rows::open(&world.servers.postgres_url, PATIENCE).await;
    let rows = rows.map_err(|error| away(&error))?;
    let mut cache = world.servers.cache();
    // No slot moves meanwhile, and nothing else happens to it.
    let redis = timeout(PATIENCE, world.servers.redis.lock()).await;
    let redis = redis.map_err(|_late| "redis does not come to rest".to_owned())?;
    let names: HashSet<String> = Key::all().into_iter().map(Key::name).collect();
    let readable = redis.readable(&names).await.map_err(|error| away(&error))?;
    let mut rest = Rest::default();
    if let Some((_, lost)) = &readable {
        rest.lost = *lost;
    }
    for key in Key::all() {
        let name = key.name();
        let cached = match &readable {
            Some((values, _)) => values.get(&name).cloned(),
            None => cache.get(&name).await.map_err(|error| away(&error))?,
        };
        let Some(cached) = cached else { continue };
        rest.compared += 1;
        let row = rows.value(key).await.map_err(|error| away(&error))?;
        if cached == row {
            continue;
        }
        if world.shared.is_late(&name, &cached) {
            rest.late += 1;
        } else {
            rest.stale.push(stale(world, &name, cached, row));
        }
        if tell {
            // Told once; the next quiet point is about what happens until then.
            cache.unlink(&name).await.map_err(|error| away(&error))?;
        }
    }
    Ok(rest)
}

fn stale(world: &World, key: &str, cached: String, row: String) -> Stale {
    let filled = world.shared.filled.lock().unwrap();
    let fill = filled.get(key).filter(|fill| fill.value == cached);
    Stale {
        key: key.to_owned(),
        row,
        filled_before: fill.map(|fill| fill.at.elapsed().as_secs_f64()),
        fill_gap: fill.map(|fill| fill.gap.as_secs_f64()),
        cached,
    }
}
