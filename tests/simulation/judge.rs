//! The promises that must hold, and the place where they are looked at.
//!
//! - I1: no exact key is removed while no visible transaction of the session asks for it.
//! - I2: where the watermark is written nothing older is cached, and nothing that is invisible is
//!   covered; nothing is confirmed that no watermark covers; what is confirmed never falls.
//! - I3: with nothing going wrong, a key goes soon after its transaction is visible; from a target
//!   with which nothing goes wrong, whatever another one does.
//! - I10: the same while Redis refuses the keys of another rule.
//! - Nothing is swept from a target that lost nothing, because another one did.
//! - I1, I7, I8: at rest no value is cached but the one that a new snapshot reads.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use walsweep::sweep::Watermark;
use walsweep::telemetry::metrics::{Metrics, ReasonLabel};
use walsweep::telemetry::{Health, Phase as Doing};

use crate::postgres::{MARKER, Object, Phase, Postgres, Version};
use crate::world::World;

/// How long after its transaction became visible a key may stand when nothing goes wrong. One gate
/// pause, a few round trips, a batch that was under way.
const REMOVAL_BOUND: Duration = Duration::from_millis(300);

/// How long nothing must have gone wrong before that is asked.
const CALM: Duration = Duration::from_millis(700);

/// Reasons of a sweep of everything.
const REASONS: [&str; 11] = [
    "watermark_missing",
    "watermark_foreign",
    "watermark_behind",
    "other_system",
    "other_timeline",
    "other_rules",
    "unclean_restart",
    "watermark_ahead",
    "watermark_lost",
    "slot_created",
    "retained_wal",
];

pub(crate) struct Judge {
    failures: RefCell<Vec<String>>,
    disturbed_at: Cell<Option<Instant>>,
    targets: Vec<Target>,
    session: RefCell<Option<Session>>,
    /// Counts of what was looked at, to show that the looking happened.
    pub(crate) looks: Looks,
}

/// Everything that was seen of one target.
#[derive(Default)]
struct Target {
    disturbed_at: Cell<Option<Instant>>,
    /// Whether walsweep is connected to it.
    is_connected: Cell<bool>,
    /// Whether something was done to it, or to Postgres, for which it may be swept.
    may_sweep: Cell<bool>,
    unlinked_at: RefCell<BTreeMap<Object, Instant>>,
    /// The furthest watermark, by timeline.
    watermarks: RefCell<BTreeMap<u32, u64>>,
}

#[derive(Default)]
pub(crate) struct Looks {
    pub(crate) removals: Cell<u64>,
    pub(crate) watermarks: Cell<u64>,
    pub(crate) statuses: Cell<u64>,
    pub(crate) prompt: Cell<u64>,
    pub(crate) at_rest: Cell<u64>,
    pub(crate) resyncs: Cell<u64>,
    pub(crate) blocks: Cell<u64>,
    /// Subtransactions of which blocks told, and that are undone.
    pub(crate) parts: Cell<u64>,
    /// Whole transactions of which blocks told, and that are undone.
    pub(crate) aborts: Cell<u64>,
    /// First blocks of transactions that an earlier connection had begun to tell of.
    pub(crate) again: Cell<u64>,
    /// Removals of which some commands were refused for the prefix of their keys.
    pub(crate) refusals: Cell<u64>,
    /// Removals from a target that lost nothing while another one may be swept.
    pub(crate) spared: Cell<u64>,
    /// Prompt removals from a target while something goes wrong with another.
    pub(crate) beside: Cell<u64>,
    pub(crate) listed: Cell<u64>,
}

/// How many things are looked at.
pub(crate) const LOOKS: usize = 14;

impl Looks {
    /// How often each was looked at.
    pub(crate) fn counts(&self) -> [u64; LOOKS] {
        let Looks { removals, watermarks, statuses, prompt, at_rest, resyncs, .. } = self;
        let Looks { blocks, parts, aborts, again, refusals, spared, beside, listed, .. } = self;
        let all = [removals, watermarks, statuses, prompt, at_rest, resyncs];
        let streamed = [blocks, parts, aborts, again];
        let others = [refusals, spared, beside, listed];
        let mut counts = all.into_iter().chain(streamed).chain(others).map(Cell::get);
        std::array::from_fn(|_| counts.next().unwrap_or_default())
    }
}

struct Session {
    /// Where its stream began.
    start: u64,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// Sweeps of everything before it.
    resyncs: u64,
}

/// Counts one more.
pub(crate) fn add(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

fn resyncs(metrics: &Metrics) -> u64 {
    let count = |reason| metrics.resyncs.get_or_create(&ReasonLabel { reason }).get();
    REASONS.into_iter().map(count).sum()
}

/// Whether a reader may see this value though everything up to `lsn` is said to be removed.
fn is_stale(postgres: &Postgres, object: Object, value: Version, lsn: u64) -> bool {
    let history = postgres.history(object);
    let is_covered = |version: &&Version| postgres.transactions[**version].end_lsn <= lsn;
    let base = history.iter().take_while(is_covered).count();
    match history.iter().position(|version| *version == value) {
        Some(at) => at + 1 < base,
        None => value != 0 || base > 0,
    }
}

impl Judge {
    /// A judge of so many targets.
    pub(crate) fn new(targets: usize) -> Judge {
        Judge {
            failures: RefCell::default(),
            disturbed_at: Cell::new(None),
            targets: (0..targets).map(|_| Target::default()).collect(),
            session: RefCell::default(),
            looks: Looks::default(),
        }
    }

    pub(crate) fn fail(&self, text: String) {
        self.failures.borrow_mut().push(text);
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.borrow().clone()
    }

    /// Something went wrong by script: promptness is not asked for until a while later.
    pub(crate) fn disturbed(&self) {
        self.disturbed_at.set(Some(Instant::now()));
    }

    /// Something went wrong with one target: promptness is not asked of it until a while later, but
    /// of the others all the same.
    pub(crate) fn disturbed_at(&self, at: usize) {
        self.targets[at].disturbed_at.set(Some(Instant::now()));
    }

    /// walsweep is connected to a target, or is not any more. It may take a moment to begin.
    pub(crate) fn connected(&self, at: usize, is_connected: bool) {
        self.targets[at].is_connected.set(is_connected);
        self.disturbed_at(at);
    }

    /// A target may be swept from now on; all of them, if none is named.
    pub(crate) fn may_sweep(&self, at: Option<usize>) {
        let targets = self.targets.iter().enumerate();
        let named = targets.filter(|(place, _)| at.is_none_or(|at| at == *place));
        named.for_each(|(_, target)| target.may_sweep.set(true));
    }

    /// A session streams from `start`.
    pub(crate) fn session(&self, start: u64, metrics: &Arc<Metrics>, health: &Arc<Health>) {
        self.disturbed();
        self.targets.iter().for_each(|target| target.is_connected.set(false));
        let (metrics, health) = (Arc::clone(metrics), Arc::clone(health));
        let resyncs = resyncs(&metrics);
        *self.session.borrow_mut() = Some(Session { start, metrics, health, resyncs });
    }

    /// The session is over, whichever way.
    pub(crate) fn session_over(&self) {
        self.disturbed();
        if let Some(session) = self.session.take() {
            let more = resyncs(&session.metrics) - session.resyncs;
            self.looks.resyncs.set(self.looks.resyncs.get() + more);
        }
    }

    /// I1. A removal by pattern may take any list's keys, and a sweep of everything takes all.
    pub(crate) fn unlinked(&self, world: &World, at: usize, key: &str) {
        let object = Object::of_key(key);
        let target = &self.targets[at];
        target.unlinked_at.borrow_mut().insert(object, Instant::now());
        let session = self.session.borrow();
        let Some(session) = session.as_ref() else { return };
        let is_swept = resyncs(&session.metrics) > session.resyncs;
        if matches!(object, Object::List(_)) || is_swept && target.may_sweep.get() {
            return;
        }
        if is_swept {
            add(&self.looks.spared);
        }
        add(&self.looks.removals);
        let postgres = world.postgres.borrow();
        let asks = postgres.transactions.iter().any(|one| {
            one.was_shown && one.end_lsn > session.start && one.objects.contains(&object)
        });
        if !asks {
            let what = "was removed, and no visible transaction asks for it";
            world.fail(&format!("I1: {key} of target {at} {what}"));
        }
    }

    /// I2 and I7, where the watermark is written.
    pub(crate) fn watermark(&self, world: &World, at: usize, value: &[u8]) {
        let mark = Watermark::from_value(value).expect("walsweep writes watermarks");
        let lsn = mark.lsn.0;
        let mut watermarks = self.targets[at].watermarks.borrow_mut();
        let furthest = watermarks.entry(mark.timeline).or_default();
        *furthest = lsn.max(*furthest);
        let postgres = world.postgres.borrow();
        if mark.timeline != postgres.timeline || mark.epoch != postgres.epoch.to_string() {
            return;
        }
        add(&self.looks.watermarks);
        for record in postgres.records_through(lsn) {
            let transaction = &postgres.transactions[record.version];
            if transaction.phase == Phase::Invisible && !transaction.objects.is_empty() {
                let version = record.version;
                world.fail(&format!("I2: the watermark {lsn} covers {version}, still invisible"));
            }
        }
        for (key, value) in world.redis[at].borrow().cached() {
            if is_stale(&postgres, Object::of_key(key), value, lsn) {
                let what = format!("the watermark {lsn} is written, {key} holds {value}");
                world.fail(&format!("I2: target {at}: {what}"));
            }
        }
    }

    /// I2, where Postgres is told.
    pub(crate) fn confirmed(&self, world: &World, lsn: u64, before: u64) {
        add(&self.looks.statuses);
        if lsn < before {
            world.fail(&format!("I2: confirmed {lsn} after {before}"));
        }
        let timeline = world.postgres.borrow().timeline;
        let of = |target: &Target| target.watermarks.borrow().get(&timeline).copied().unwrap_or(0);
        let covered = self.targets.iter().map(of).min().unwrap_or(0);
        if lsn > covered {
            world.fail(&format!("I2: confirmed {lsn}, the watermarks cover {covered}"));
        }
    }

    /// I3: looks again a while after a transaction became visible.
    pub(crate) fn expect_removal(world: &Rc<World>, version: Version, committed_at: Instant) {
        let world = Rc::clone(world);
        let shown_at = Instant::now();
        tokio::task::spawn_local(async move {
            sleep(REMOVAL_BOUND).await;
            world.judge.was_prompt(&world, version, (committed_at, shown_at));
        });
    }

    fn was_prompt(&self, world: &World, version: Version, (committed, shown): (Instant, Instant)) {
        let session = self.session.borrow();
        // A target that is lost, or is swept, may not hold up another one.
        let is_on =
            |phase| matches!(phase, Doing::Streaming | Doing::RedisLost | Doing::Sweeping(_));
        let streams = session.as_ref().is_some_and(|one| is_on(one.health.phase()));
        let is_calm = self.disturbed_at.get().is_none_or(|at| committed > at + CALM);
        let postgres = world.postgres.borrow();
        let transaction = &postgres.transactions[version];
        if !streams || !is_calm || !postgres.up || *world.hangs.borrow() || transaction.truncates {
            return;
        }
        let is_well = |at: &usize| self.is_well(world, *at, committed);
        let well: Vec<usize> = (0..world.targets()).filter(is_well).collect();
        let is_beside = well.len() < world.targets();
        for (at, object) in
            well.iter().flat_map(|at| transaction.objects.iter().map(|of| (*at, of)))
        {
            let removed = self.targets[at].unlinked_at.borrow().get(object).copied();
            if matches!(object, Object::Item(_)) && removed.is_none_or(|removed| removed < shown) {
                let what = format!("{version} is visible for long, {object:?} not removed");
                world.fail(&format!("I3: target {at}: {what}"));
            }
            add(if is_beside { &self.looks.beside } else { &self.looks.prompt });
        }
    }

    /// Whether nothing has gone wrong with a target since a while before something was committed.
    fn is_well(&self, world: &World, at: usize, committed: Instant) -> bool {
        let redis = world.redis[at].borrow();
        let disturbed_at = self.targets[at].disturbed_at.get();
        let is_calm = disturbed_at.is_none_or(|at| committed > at + CALM);
        self.targets[at].is_connected.get() && is_calm && redis.up && redis.mood.lets_go("item:")
    }

    /// I1, I7 and I8: nothing but what is current.
    pub(crate) fn at_rest(&self, world: &World) {
        let postgres = world.postgres.borrow();
        for (at, redis) in world.redis.iter().enumerate() {
            for (key, value) in redis.borrow().cached() {
                let current = postgres.current(Object::of_key(key));
                if value != current {
                    let what = format!("{key} holds {value}, a reader would find {current}");
                    world.fail(&format!("at rest, target {at}: {what}"));
                }
                add(&self.looks.at_rest);
            }
        }
        if postgres.current(MARKER) == 0 {
            world.fail("the last transaction is missing");
        }
    }
}
