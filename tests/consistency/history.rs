//! Which version of a row was overwritten when, and for how long a stale value may live.
//!
//! A version counts as overwritten once the commit of a later one is acknowledged, or a later one
//! is seen, whichever is first. Both are moments at which that commit is visible for certain, so a
//! life is never taken for longer than it was.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// What is known of all rows, and of the outages.
pub(crate) struct History {
    base: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rows: HashMap<i32, Row>,
    /// When a cache came back with values of the past: no life in it began before.
    restored_at: Option<Instant>,
    outages: Vec<(Instant, Option<Instant>)>,
}

#[derive(Default)]
struct Row {
    /// Versions, and since when each is known to be visible. Versions of a row grow in the order in
    /// which they become visible. A deletion has a version, too.
    since: BTreeMap<u64, Instant>,
    /// Versions that readers saw and a crash took back, and when.
    phantoms: HashMap<u64, Instant>,
}

/// How long a value had been stale when it was seen, and how long that may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    /// From its overwriting to the look.
    pub(crate) life: Duration,
    /// The bound, outages included.
    pub(crate) bound: Duration,
    /// The outages in it.
    pub(crate) outage: Duration,
}

impl History {
    /// No rows yet; the bound without outages is `base`.
    pub(crate) fn new(base: Duration) -> History {
        History { base, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A version of these rows is visible.
    pub(crate) fn record(&self, rows: &[i32], version: u64) {
        let now = Instant::now();
        let mut state = self.state();
        for id in rows {
            state.see(*id, version, now);
        }
    }

    /// These rows were just read.
    pub(crate) fn observe(&self, rows: &[(i32, u64)]) {
        let now = Instant::now();
        let mut state = self.state();
        for (id, version) in rows {
            state.see(*id, *version, now);
        }
    }

    /// The database came back from a crash with these rows and no others: later versions are lost.
    pub(crate) fn recovered(&self, rows: &[(i32, u64)]) {
        let now = Instant::now();
        let current: HashMap<i32, u64> = rows.iter().copied().collect();
        for (id, row) in &mut self.state().rows {
            // Of a row that is not there nobody knows whether its deletion is the last version.
            if let Some(version) = current.get(id) {
                let lost = row.since.split_off(&(version + 1));
                row.phantoms.extend(lost.into_keys().map(|version| (version, now)));
            }
        }
    }

    /// At a quiet point nothing stale is left: only the present counts from here on.
    pub(crate) fn forget(&self) {
        for row in self.state().rows.values_mut() {
            if let Some(last) = row.since.pop_last() {
                row.since = BTreeMap::from([last]);
            }
        }
    }

    /// The cache came back as it was some time ago.
    pub(crate) fn restored(&self) {
        self.state().restored_at = Some(Instant::now());
    }

    /// Something is broken from now on.
    pub(crate) fn outage_begins(&self) {
        self.state().outages.push((Instant::now(), None));
    }

    /// All is mended; gives the outage's length.
    pub(crate) fn outage_ends(&self) -> Duration {
        let mut state = self.state();
        let Some((began, ended)) = state.outages.last_mut() else { return Duration::ZERO };
        ended.get_or_insert_with(Instant::now).duration_since(*began)
    }

    /// Judges a value, given as the versions of its rows, that was in the cache at `seen_at`;
    /// `None` if it was not stale then.
    pub(crate) fn judge(
        &self,
        value: impl Iterator<Item = (i32, u64)>,
        seen_at: Instant,
    ) -> Option<Life> {
        let state = self.state();
        let overwritten = value.filter_map(|(id, version)| {
            let row = state.rows.get(&id)?;
            let later = row.since.range(version + 1..).map(|(_, since)| *since).min();
            later.into_iter().chain(row.phantoms.get(&version).copied()).min()
        });
        let since = overwritten.min()?;
        let since = state.restored_at.map_or(since, |restored| restored.max(since));
        let life = seen_at.checked_duration_since(since).filter(|life| !life.is_zero())?;
        let outage = state.outage_between(since, seen_at);
        Some(Life { life, bound: self.base + outage, outage })
    }
}

impl State {
    fn see(&mut self, id: i32, version: u64, at: Instant) {
        let row = self.rows.entry(id).or_default();
        if !row.phantoms.contains_key(&version) {
            let since = row.since.entry(version).or_insert(at);
            *since = (*since).min(at);
        }
    }

    /// For how much of this time something was broken.
    fn outage_between(&self, from: Instant, until: Instant) -> Duration {
        let overlap = |(began, ended): &(Instant, Option<Instant>)| {
            let ended = ended.unwrap_or(until).min(until);
            ended.saturating_duration_since((*began).max(from))
        };
        self.outages.iter().map(overlap).sum()
    }
}
