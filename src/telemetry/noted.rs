//! Notes of what each part does at this moment, for people who look; what is counted is with
//! [`Metrics`](super::metrics::Metrics).
//!
//! A note is a number or two that whoever does the work overwrites, some nanoseconds each, whether
//! or not anybody looks. Nothing here grows with the load: there is a place for each stage, target,
//! node and rule.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::health::Phase;
use crate::config::TargetId;
use crate::keys::RuleId;
use crate::lsn::Lsn;

/// The time over which the load of a Redis is told, as `sweep.max_load` counts it.
const WINDOW: Duration = Duration::from_secs(10);

/// Nodes of a target that are noted: those of a large cluster, and some that were.
const NODES_MAX: usize = 1_000;

/// Everything that is noted.
#[derive(Debug)]
pub struct Noted {
    /// When the process began.
    pub started_at: SystemTime,
    /// Transactions and sweeps that readers cannot see yet.
    pub gate: Waiting,
    /// Transactions that wait for rows.
    pub lookups: Waiting,
    /// Groups of transactions whose keys are gone, and which a standby has not replayed.
    pub standbys: Waiting,
    slot: Mutex<Option<SlotNote>>,
    targets: Vec<TargetNotes>,
    /// When the latest key of each rule was removed, milliseconds since the Unix epoch; 0 if none
    /// was.
    removed_at: Vec<AtomicU64>,
}

/// How many wait somewhere, and since when the oldest does.
#[derive(Debug)]
pub struct Waiting {
    origin: Instant,
    count: AtomicUsize,
    /// Milliseconds after `origin`.
    since: AtomicU64,
}

impl Waiting {
    fn new() -> Waiting {
        let (count, since) = (AtomicUsize::new(0), AtomicU64::new(0));
        Waiting { origin: Instant::now(), count, since }
    }

    /// So many wait, the oldest since `since`.
    pub fn set(&self, count: usize, since: Option<Instant>) {
        self.count.store(count, Ordering::Relaxed);
        let after = since.map_or(Duration::ZERO, |since| since - self.origin);
        self.since.store(u64::try_from(after.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Gives how many wait, and for how long the oldest does, if that is known.
    #[must_use]
    pub fn get(&self) -> (usize, Option<Duration>) {
        let since = self.since.load(Ordering::Relaxed);
        let age =
            (since > 0).then(|| self.origin.elapsed().saturating_sub(Duration::from_millis(since)));
        (self.count.load(Ordering::Relaxed), age)
    }
}

/// The slot, when it was looked at last.
#[derive(Clone, Debug)]
pub struct SlotNote {
    /// The position that Postgres was told last.
    pub confirmed_flush_lsn: Lsn,
    /// WAL between its end and that, bytes.
    pub confirmed_lag: i64,
    /// WAL that the slot keeps on the server's disk, bytes.
    pub restart_lag: i64,
    /// WAL that may still be written before the slot is lost, bytes; `None` without limit.
    pub safe_wal: Option<i64>,
    /// `pg_replication_slots.wal_status`.
    pub wal_status: String,
    /// When that was.
    pub at: SystemTime,
}

/// A target, as its sweeper notes it.
#[derive(Debug)]
pub struct TargetNotes {
    /// Transactions and sweeps whose named keys wait for their first removal, or are in it.
    pub first: Waiting,
    /// Those whose patterns wait for a pass, or are in one.
    pub passes: Waiting,
    /// Keys and patterns that wait for their second removal.
    pub second: AtomicUsize,
    state: Mutex<TargetState>,
}

/// The rest of what is noted of a target.
#[derive(Clone, Debug, Default)]
pub struct TargetState {
    /// How far it is; `None` without a session.
    pub phase: Option<Phase>,
    /// Its address or the name of its service; empty before there was a session.
    pub node: String,
    /// Its servers, by their address.
    pub nodes: BTreeMap<String, NodeNote>,
    /// The SCAN pass that is under way.
    pub pass: Option<PassNote>,
    /// Why writes are not observed, if they are to be.
    pub unobserved: Option<String>,
}

/// A SCAN pass that is under way.
#[derive(Clone, Debug)]
pub struct PassNote {
    /// The reason under which `walsweep_sweeps_total` will count it.
    pub reason: &'static str,
    /// How many patterns it looks for.
    pub patterns: usize,
    /// When it began.
    pub began: Instant,
}

/// A server of a target.
#[derive(Clone, Debug, Default)]
pub struct NodeNote {
    /// The part of the pass under way, if this server is in it.
    pub now: Option<PassPart>,
    /// The latest whole pass.
    pub last: Option<PassPrice>,
    /// The share of its time that passes took over ten seconds, and when that was.
    load: Option<(f64, Instant)>,
}

/// How far a pass is on one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassPart {
    /// Keys looked at, but for those that Redis was asked to leave out.
    pub scanned: u64,
    /// Time of the server that it took.
    pub took: Duration,
    /// Time that it waited, so that SCAN takes no more than its share.
    pub waited: Duration,
}

/// The price of a whole pass over one server.
#[derive(Clone, Copy, Debug)]
pub struct PassPrice {
    /// Keys looked at, time taken and waited.
    pub part: PassPart,
    /// How long it lasted.
    pub lasted: Duration,
    /// When it ended.
    pub ended_at: SystemTime,
}

/// A part of a pass, as it notes it after each call.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Keys that it has looked at so far, but for those that Redis was asked to leave out.
    pub scanned: u64,
    /// Time of the server that it took so far.
    pub took: Duration,
    /// How long it has waited on this server so far.
    pub waited: Duration,
    /// The share of the server's time that passes took over the latest ten seconds.
    pub load: f64,
}

impl NodeNote {
    /// Gives the share of the server's time that passes took over the latest ten seconds. What was
    /// taken before the latest note is taken to have been spread over the ten seconds before it.
    #[must_use]
    pub fn load(&self) -> f64 {
        let Some((load, at)) = self.load else { return 0.0 };
        load * (1.0 - at.elapsed().div_duration_f64(WINDOW)).max(0.0)
    }
}

impl TargetNotes {
    fn new() -> TargetNotes {
        TargetNotes {
            first: Waiting::new(),
            passes: Waiting::new(),
            second: AtomicUsize::new(0),
            state: Mutex::default(),
        }
    }

    /// Gives a copy of what is noted.
    #[must_use]
    pub fn state(&self) -> TargetState {
        self.lock().clone()
    }

    /// Its sweeper begins, for the node of this name.
    pub fn begins(&self, node: &str) {
        node.clone_into(&mut self.lock().node);
    }

    /// It is this far.
    pub fn is_in(&self, phase: Phase) {
        self.lock().phase = Some(phase);
    }

    /// Writes are not observed for this reason, or they are.
    pub fn unobserved(&self, why: Option<String>) {
        self.lock().unobserved = why;
    }

    /// A pass begins; it ends when what this gives is dropped.
    pub fn pass(&self, reason: &'static str, patterns: usize) -> PassUnderWay<'_> {
        let began = Instant::now();
        let mut state = self.lock();
        state.pass = Some(PassNote { reason, patterns, began });
        state.nodes.values_mut().for_each(|node| node.now = None);
        drop(state);
        PassUnderWay { target: self, began }
    }

    fn forget_session(&self) {
        let mut state = self.lock();
        state.phase = None;
        state.unobserved = None;
        state.pass = None;
        state.nodes.values_mut().for_each(|node| node.now = None);
        drop(state);
        [&self.first, &self.passes].into_iter().for_each(|waiting| waiting.set(0, None));
        self.second.store(0, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, TargetState> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

/// A SCAN pass under way.
#[derive(Debug)]
pub struct PassUnderWay<'a> {
    target: &'a TargetNotes,
    began: Instant,
}

impl PassUnderWay<'_> {
    /// A call came to its end on a server.
    pub fn page(&self, node: &str, page: Page) {
        let now = Instant::now();
        let mut state = self.target.lock();
        if !state.nodes.contains_key(node) && state.nodes.len() < NODES_MAX {
            state.nodes.insert(node.to_owned(), NodeNote::default());
        }
        if let Some(note) = state.nodes.get_mut(node) {
            let Page { scanned, took, waited, load } = page;
            note.now = Some(PassPart { scanned, took, waited });
            note.load = Some((load, now));
        }
    }

    /// It was whole: what it cost is the price of a pass. Servers that it did not meet are none
    /// of the target's any more.
    pub fn is_whole(self) {
        let (lasted, ended_at) = (self.began.elapsed(), SystemTime::now());
        let mut state = self.target.lock();
        state.nodes.retain(|_, node| node.now.is_some());
        for node in state.nodes.values_mut() {
            node.last = node.now.map(|part| PassPrice { part, lasted, ended_at });
        }
    }
}

impl Drop for PassUnderWay<'_> {
    fn drop(&mut self) {
        let mut state = self.target.lock();
        state.pass = None;
        state.nodes.values_mut().for_each(|node| node.now = None);
    }
}

impl Noted {
    /// Nothing is noted yet, of so many rules, and of one target.
    pub(super) fn new(rules: usize) -> Noted {
        Noted {
            started_at: SystemTime::now(),
            gate: Waiting::new(),
            lookups: Waiting::new(),
            standbys: Waiting::new(),
            slot: Mutex::default(),
            targets: vec![TargetNotes::new()],
            removed_at: (0..rules).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Gives notes of the same process, of other rules, and of so many targets. A rule that was
    /// there before has its number of then in `rules`, and keeps what is noted of it.
    pub(super) fn of_others(&self, rules: &[Option<usize>], targets: usize) -> Noted {
        let mut others = Noted { started_at: self.started_at, ..Noted::new(rules.len()) };
        for (place, before) in others.removed_at.iter_mut().zip(rules) {
            let before = before.and_then(|before| self.removed_at.get(before));
            *place = AtomicU64::new(before.map_or(0, |at| at.load(Ordering::Relaxed)));
        }
        others.targets.resize_with(targets.max(1), TargetNotes::new);
        others
    }

    /// Gives the notes of a target.
    #[must_use]
    pub fn target(&self, target: TargetId) -> &TargetNotes {
        let first = self.targets.first().expect("there is a place for one at least");
        self.targets.get(target.place()).unwrap_or(first)
    }

    /// The slot looks like this; `None` if there is none.
    pub fn slot_is(&self, slot: Option<SlotNote>) {
        *self.slot.lock().expect("no code panics while it holds this lock") = slot;
    }

    /// Gives the slot as it was when it was looked at last.
    #[must_use]
    pub fn slot(&self) -> Option<SlotNote> {
        self.slot.lock().expect("no code panics while it holds this lock").clone()
    }

    /// Keys of `rule` are removed.
    pub(super) fn removed(&self, rule: RuleId) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if let Some(place) = self.removed_at.get(usize::from(rule.0)) {
            let milliseconds = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
            place.store(milliseconds, Ordering::Relaxed);
        }
    }

    /// Gives when the latest key of a rule was removed, if one was.
    #[must_use]
    pub fn removed_at(&self, rule: usize) -> Option<SystemTime> {
        let milliseconds = self.removed_at.get(rule)?.load(Ordering::Relaxed);
        let since = Duration::from_millis(milliseconds);
        (milliseconds > 0).then(|| SystemTime::UNIX_EPOCH + since)
    }

    /// No session stands: nothing waits, and no pass is under way.
    pub(super) fn no_session(&self) {
        let stages = [&self.gate, &self.lookups, &self.standbys];
        stages.into_iter().for_each(|waiting| waiting.set(0, None));
        self.targets.iter().for_each(TargetNotes::forget_session);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, advance};

    use super::{Noted, Page};
    use crate::config::TargetId;
    use crate::keys::RuleId;

    #[test]
    fn a_rule_that_stays_keeps_its_last_removal_and_another_of_its_number_does_not() {
        let before = Noted::new(2);
        before.removed(RuleId(1));
        let at = before.removed_at(1);
        let after = before.of_others(&[Some(1), None, Some(0), Some(7)], 1);
        let found: Vec<_> = (0..5).map(|rule| after.removed_at(rule)).collect();
        assert!(at.is_some());
        assert_eq!(found, [at, None, None, None, None]);
        assert_eq!(after.started_at, before.started_at);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_whole_pass_has_a_price_and_none_is_under_way_after_it() {
        let noted = Noted::new(0).of_others(&[], 2);
        let target = noted.target(TargetId::FIRST);
        let page = |scanned, milliseconds| Page {
            scanned,
            took: Duration::from_millis(milliseconds),
            waited: Duration::ZERO,
            load: 0.2,
        };
        for is_whole in [false, true] {
            let pass = target.pass("rule", 3);
            pass.page("a:1", page(10, 20));
            advance(Duration::from_millis(50)).await;
            pass.page("a:1", page(25, 40));
            pass.page("b:2", page(7, 1));
            assert_eq!(target.state().pass.map(|pass| pass.patterns), Some(3));
            let now = target.state().nodes["a:1"].now.unwrap();
            assert_eq!((now.scanned, now.took), (25, Duration::from_millis(40)));
            if is_whole {
                pass.is_whole();
            } else {
                drop(pass);
            }
            let state = target.state();
            assert!(state.pass.is_none() && state.nodes["a:1"].now.is_none());
            assert_eq!(state.nodes["b:2"].last.is_some(), is_whole);
        }
        let price = target.state().nodes["a:1"].last.unwrap();
        assert_eq!((price.part.scanned, price.lasted), (25, Duration::from_millis(50)));
        // What was taken goes out of the ten seconds evenly.
        for (seconds, load) in [(0, 0.2), (5, 0.1), (10, 0.0)] {
            let found = target.state().nodes["a:1"].load();
            assert!((found - load).abs() < 1e-9, "{seconds} s: {found}");
            advance(Duration::from_secs(5)).await;
        }
        // A server that left the cluster has no price.
        let pass = target.pass("rule", 1);
        pass.page("b:2", page(9, 1));
        pass.is_whole();
        assert_eq!(target.state().nodes.keys().collect::<Vec<_>>(), ["b:2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_session_nothing_waits() {
        let noted = Noted::new(0);
        advance(Duration::from_secs(1)).await;
        noted.gate.set(3, Some(Instant::now()));
        advance(Duration::from_secs(2)).await;
        assert_eq!(noted.gate.get(), (3, Some(Duration::from_secs(2))));
        noted.no_session();
        assert_eq!(noted.gate.get(), (0, None));
    }
}
