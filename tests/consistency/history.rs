//! Which version of a row was overwritten when, and for how long a stale value may live.
//!
//! A version counts as overwritten once the commit of a later one is acknowledged, or a later one
//! is seen, whichever is first. Both are moments at which that commit is visible for certain, so a
//! life is never taken for longer than it was.
//!
//! Two things lengthen the bound of a life: an outage, for every key; and a trouble, for the keys
//! that it is about alone. Of a trouble two parts count: a stated time after each moment at which
//! something happened that no row tells, and whatever time the program said that it is not ready.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// Everything that is known of all rows, of the outages and the troubles.
pub(crate) struct History {
    base: Duration,
    /// How long what no row tells may take to be noticed.
    notice: Duration,
    state: Mutex<State>,
}

/// A span of time; `None` while it goes on.
type Span = (Instant, Option<Instant>);

#[derive(Default)]
struct State {
    rows: HashMap<i32, Row>,
    /// When a cache came back with values of the past: no life in it began before.
    restored_at: Option<Instant>,
    outages: Vec<Span>,
    troubles: Vec<Trouble>,
    /// When the program said that it is not ready, or nothing.
    unready: Vec<Span>,
}

/// Something that concerns some keys and must leave all others alone.
struct Trouble {
    /// Beginnings of the names of its keys, up to the first colon.
    families: &'static [&'static str],
    span: Span,
    /// When something happened in it that no row tells.
    untold: Vec<Instant>,
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
    /// The bound, outages and troubles included.
    pub(crate) bound: Duration,
    /// The part of the bound that outages and troubles added.
    pub(crate) outage: Duration,
    /// The part of the life in which the program said that it is ready.
    pub(crate) ready: Duration,
}

impl History {
    /// No rows yet; the bound without outages is `base`, and `notice` is how long what no row tells
    /// may take to be noticed.
    pub(crate) fn new(base: Duration, notice: Duration) -> History {
        History { base, notice, state: Mutex::default() }
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

    /// Something begins to be wrong with the keys of these families, that no row tells.
    pub(crate) fn trouble_begins(&self, families: &'static [&'static str]) {
        let now = Instant::now();
        let trouble = Trouble { families, span: (now, None), untold: vec![now] };
        self.state().troubles.push(trouble);
    }

    /// Something else happened to the keys of the same families, such as the cure.
    pub(crate) fn trouble_goes_on(&self, families: &'static [&'static str]) {
        let mut state = self.state();
        let mut latest = state.troubles.iter_mut().rev();
        if let Some(trouble) = latest.find(|trouble| trouble.families == families) {
            trouble.untold.push(Instant::now());
        }
    }

    /// All troubles are over, and so is whatever was owed for them.
    pub(crate) fn troubles_end(&self) {
        for trouble in &mut self.state().troubles {
            trouble.span.1.get_or_insert_with(Instant::now);
        }
    }

    /// Whether the program says that it is ready, asked again and again.
    pub(crate) fn is_ready(&self, ready: bool) {
        let now = Instant::now();
        let unready = &mut self.state().unready;
        let goes_on = unready.last().is_some_and(|(_, ended)| ended.is_none());
        match unready.last_mut() {
            Some((_, ended)) if ready => drop(ended.get_or_insert(now)),
            _ if !ready && !goes_on => unready.push((now, None)),
            _ => {}
        }
    }

    /// How long it was not ready so far.
    pub(crate) fn unready(&self) -> Duration {
        let now = Instant::now();
        let spans = &self.state().unready;
        spans.iter().map(|(began, ended)| ended.unwrap_or(now).duration_since(*began)).sum()
    }

    /// Judges a value of a key of this family, given as the versions of its rows, that was in the
    /// cache at `seen_at`; `None` if it was not stale then.
    pub(crate) fn judge(
        &self,
        family: &str,
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
        let outage = covered((since, seen_at), state.excuses(family, self.notice));
        let unready = covered((since, seen_at), state.unready.clone());
        let ready = life.saturating_sub(unready);
        Some(Life { life, bound: self.base + outage, outage, ready })
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

    /// The spans that lengthen the bound of a value of this family.
    fn excuses(&self, family: &str, notice: Duration) -> Vec<Span> {
        let mut spans = self.outages.clone();
        for trouble in self.troubles.iter().filter(|one| one.families.contains(&family)) {
            let until = |moment| trouble.span.1.map_or(moment, |ended: Instant| ended.min(moment));
            let noticed = |from: &Instant| (*from, Some(until(*from + notice)));
            spans.extend(trouble.untold.iter().map(noticed));
            for (began, ended) in &self.unready {
                let ended = trouble.span.1.into_iter().chain(*ended).min();
                spans.push(((*began).max(trouble.span.0), ended));
            }
        }
        spans
    }
}

/// For how much of the time between two moments one of the spans goes on.
fn covered((from, until): (Instant, Instant), mut spans: Vec<Span>) -> Duration {
    spans.sort_unstable_by_key(|(began, _)| *began);
    let (mut sum, mut reached) = (Duration::ZERO, from);
    for (began, ended) in spans {
        let (began, ended) = (began.max(reached), ended.unwrap_or(until).min(until));
        sum += ended.saturating_duration_since(began);
        reached = reached.max(ended);
    }
    sum
}
