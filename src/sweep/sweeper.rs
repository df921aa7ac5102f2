//! The task of one target, which owns its Redis: what is done next.
//!
//! First removals, second ones, what Redis refused before, and a pass are under way at the same
//! time, one of each: none of them waits for another.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::doubted::Doubted;
use super::inside::Inside;
use super::job::{Job, Member, Round, older};
use super::late::Late;
use super::listed::Listed;
use super::noting::{self, patterns};
use super::proof::evidence::Watermark;
use super::proof::prints::{Doubt, Prints};
use super::proof::ward::Ward;
use super::queue::{Passes, Queue, pass_reason};
use super::redis::node::Node;
use super::redis::pace::{Pace, Paces};
use super::refill::Refill;
use super::refused::{Pause, Refusals, retry};
use super::shared::{Way, Written, sweep, write};
use super::throttle::Throttle;
use super::works::{BatchDone, PassDone, RetriesDone, Work, Works};
use super::{Broken, Event, Parcel, second};
use crate::budget::{CHANNEL, OfTarget};
use crate::channel::Receiver;
use crate::config::TargetId;
use crate::failpoint::{Point, reach};
use crate::keys::{KeySet, Pattern, RuleId};
use crate::lsn::Lsn;
use crate::retry::Backoff;
use crate::settle::Held;
use crate::telemetry::metrics::{Metrics, NodeLabel};
use crate::telemetry::trail::Took;
use crate::telemetry::{Health, Topic};

/// Least time between two writes of the watermark. Each costs Redis a small script; a confirmation
/// that comes this much later costs nothing.
const WATERMARK_INTERVAL: Duration = Duration::from_millis(50);

/// The watermark is written at least this often, over itself if it does not move: a Redis that was
/// emptied or cut off is noticed although nothing is committed.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// How often connections show that they are there. A server that ends silent ones after a second
/// (`timeout 1`) counts whole seconds, and more than one.
pub(super) const ALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// First and longest wait before a removal that the server refused, whichever keys, is tried again.
const UNLINK_WAIT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// First and longest wait before a pass that the server refused is tried again. A pass costs Redis
/// more.
const PASS_WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Limits on what may wait for a target (I6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Key sets on their way to it.
    pub length: usize,
    /// Memory of keys that are on their way to it, bytes; and of those that it has taken and not
    /// removed for the first time, beyond which no more are taken.
    pub bytes: usize,
    /// Limits on everything else that it may hold.
    pub share: OfTarget,
}

impl Room {
    /// Of each of so many targets.
    #[must_use]
    pub fn of(targets: usize) -> Room {
        Room { length: 1024, bytes: CHANNEL / targets.max(1), share: OfTarget::of(targets) }
    }
}

/// How to sweep.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The longest that one SCAN call may hold Redis.
    pub max_stall: Duration,
    /// The share of its time that SCAN may take over any ten seconds; 1 is no limit.
    pub max_load: f64,
    /// The refill window; zero for no second removal.
    pub window: Duration,
    /// The session's history and rules; its LSN is the slot's `confirmed_flush_lsn`.
    pub expected: Watermark,
    /// Where the server's log ended when the session began.
    pub wal_end: Lsn,
    /// The fingerprints whose digest `expected` carries; and others later, which put no key in
    /// doubt that was right under those before.
    pub prints: watch::Receiver<Rc<Prints>>,
    /// Set when history is known to be broken whatever the watermark says.
    pub broken: Option<Broken>,
    /// Keys that are in doubt whatever the watermark says.
    pub doubt: Doubt,
    /// An empty key set of the rules.
    pub empty: KeySet,
    /// Limits on what may wait.
    pub room: Room,
}

impl Settings {
    /// Gives the settings of one target: of rules whose keys go elsewhere it knows nothing.
    fn of_target(mut self, target: TargetId) -> Settings {
        if self.empty.all_go(target) {
            return self;
        }
        let goes = |rule| self.empty.goes(rule, target);
        self.expected.rules = self.prints.borrow().only(goes).digest();
        self.doubt = self.doubt.only(goes);
        self.empty = self.empty.of_target(target);
        self
    }
}

/// Removes keys from the Redis of one target.
pub struct Sweeper<N> {
    node: N,
    health: Arc<Health>,
    prints: watch::Receiver<Rc<Prints>>,
    state: State,
}

/// Everything but the connection.
pub(super) struct State {
    pub(super) health: Arc<Health>,
    pub(super) target: TargetId,
    pub(super) events: mpsc::Sender<(TargetId, Event)>,
    /// Limits on what may wait.
    pub(super) room: Room,
    pub(super) queue: Queue,
    pub(super) passes: Passes,
    /// Jobs whose keys an index knows, if there is one.
    pub(super) listed: Option<Listed>,
    /// Whether a SCAN would make the index whole.
    pub(super) builds: bool,
    /// When a pass may be made for the index alone.
    pub(super) next_build: Instant,
    /// Items that are read in pages, and what is told of removals.
    pub(super) inside: Inside,
    /// Keys that standbys have replayed: removed beside the first removals, as second ones are.
    pub(super) replayed: Option<Job>,
    /// Whether those were what was removed last beside the first removals.
    replayed_was_last: bool,
    pub(super) refill: Refill,
    pub(super) refusals: Refusals,
    pub(super) late: Late,
    /// How many jobs the batch under way has, and how many wait for the pass under way.
    pub(super) under_way: (usize, usize),
    pub(super) throttle: Throttle,
    pub(super) ward: Ward,
    /// The digest of the fingerprints that were stored with a watermark of this connection.
    pub(super) kept: Option<String>,
    /// The digest of the fingerprints that the write under way stores.
    pub(super) keeping: Option<String>,
    pub(super) paces: Option<Box<Paces>>,
    pub(super) connected: bool,
    pub(super) connected_at: Instant,
    /// Turns true with the end of a connection, for a pass that waits for its turn.
    pub(super) lost: watch::Sender<bool>,
    pub(super) backoff: Backoff,
    /// After the server refused removals, or a pass, for whichever keys.
    pub(super) unlinks: Pause,
    pub(super) scans: Pause,
    pub(super) next_write: Instant,
    pub(super) next_probe: Instant,
    pub(super) next_alive: Instant,
    pub(super) node: NodeLabel,
    /// How messages name the target.
    pub(super) title: String,
    /// The text that its keys begin with.
    pub(super) prefix: Pattern,
    /// Which part of it is away, while the rest is used.
    pub(super) away: Option<String>,
    /// Why it gives no list of its keys, if it does not.
    pub(super) no_list: Option<String>,
    /// Transactions and holds that are held from now on, not told yet.
    pub(super) held: Vec<Held>,
    pub(super) doubted: Doubted,
}

impl<N: Node> Sweeper<N> {
    /// A sweeper of `node`, the Redis of a target, that reports to `events`, and what does not work
    /// to `health`.
    pub fn new(
        node: N,
        settings: Settings,
        health: Arc<Health>,
        (target, events): (TargetId, mpsc::Sender<(TargetId, Event)>),
    ) -> Sweeper<N> {
        let settings = settings.of_target(target);
        let prints = settings.prints.borrow().only(|rule| settings.empty.goes(rule, target));
        let lost = watch::Sender::new(false);
        let mut pace = Pace::new(settings.max_stall, settings.max_load);
        pace.measure.ends_with(lost.subscribe());
        let share = settings.room.share;
        let (inside, of_passes) = Inside::of(&settings, node.is_told());
        // What waits for SCAN may be a pattern of every rule.
        let listed = Listed::new(node.index_patterns(), of_passes / 4);
        let of_passes = if listed.is_some() { of_passes / 4 * 3 } else { of_passes };
        let state = State {
            inside,
            health: Arc::clone(&health),
            target,
            events,
            room: settings.room,
            queue: Queue::default(),
            passes: Passes::new(of_passes),
            listed,
            builds: false,
            next_build: Instant::now(),
            replayed: None,
            replayed_was_last: false,
            refill: Refill::new(settings.window, share, settings.empty, settings.expected.lsn),
            refusals: Refusals::new(share.refused),
            late: Late::new(target),
            under_way: (0, 0),
            throttle: Throttle::new(target),
            ward: Ward::new(
                settings.expected,
                settings.wal_end,
                Rc::new(prints),
                (settings.broken, settings.doubt),
            ),
            kept: None,
            keeping: None,
            paces: Some(Box::new(Paces::new(pace))),
            connected: false,
            connected_at: Instant::now(),
            lost,
            backoff: Backoff::redis(),
            unlinks: Pause::new(UNLINK_WAIT),
            scans: Pause::new(PASS_WAIT),
            next_write: Instant::now(),
            next_probe: Instant::now() + PROBE_INTERVAL,
            next_alive: Instant::now() + ALIVE_INTERVAL,
            node: NodeLabel { target: node.target().to_owned(), node: node.name().to_owned() },
            title: node.title(),
            prefix: Pattern::literal(node.prefix().as_bytes()),
            away: None,
            no_list: None,
            held: Vec::new(),
            doubted: Doubted::default(),
        };
        state.begin_errors();
        health.noted().target(target).begins(&state.node.node);
        Sweeper { node, health, prints: settings.prints, state }
    }

    /// Whether its Redis is away: the connection is lost, or could not be made.
    #[must_use]
    pub fn is_away(&self) -> watch::Receiver<bool> {
        self.state.lost.subscribe()
    }

    /// Takes `visible` sets and moves the watermark up to `safe`, until it is dropped.
    pub async fn run<T: Into<Parcel>>(
        self,
        mut visible: Receiver<T>,
        mut safe: watch::Receiver<Lsn>,
    ) {
        let Sweeper { node, health, mut prints, mut state } = self;
        let metrics = health.metrics();
        let mut works = Works::none();
        let mut open = true;
        loop {
            let now = Instant::now();
            works.begin(&mut state, (&node, &metrics), now, *safe.borrow_and_update());
            state.look_late(now);
            state.tell_index(node.indexed());
            state.note(node.unobserved());
            let timer = state.next_timer(now);
            tokio::select! {
                biased;
                done = works.finished() => {
                    state.misses(node.away()).await;
                    state.done(done).await;
                }
                one = visible.recv(), if open && state.has_room() => match one {
                    Some(one) => {
                        state.arrived(one.into()).await;
                        // What came with it shares its round trip.
                        while state.has_room() && let Some(one) = visible.try_recv() {
                            state.arrived(one.into()).await;
                        }
                    }
                    None => open = false,
                },
                changed = safe.changed() => if changed.is_err() { return },
                Ok(()) = prints.changed() => {
                    let prints = prints.borrow_and_update().only(|rule| state.goes(rule));
                    state.ward.adopt(Rc::new(prints));
                }
                () = sleep_until(timer.unwrap_or(now)), if timer.is_some() => {}
            }
        }
    }
}

impl State {
    /// Whether keys of a rule go to this target.
    fn goes(&self, rule: RuleId) -> bool {
        self.refill.empty_keys().goes(rule, self.target)
    }

    /// Nothing but first removals takes up room: whatever else waits is merged, and collapses.
    fn has_room(&self) -> bool {
        self.queue.bytes() < self.room.bytes
    }

    pub(super) fn next_batch<'a, N: Node>(&mut self, node: &'a N) -> Work<'a, BatchDone> {
        let jobs = self.queue.next_batch();
        self.late.in_batch = jobs.iter().map(|job| job.oldest).fold(None, older);
        self.under_way.0 = jobs.len();
        self.removal(node, jobs)
    }

    /// Removals that hold nobody up: what standbys have replayed, and second ones that are due.
    pub(super) fn next_second<'a, N: Node>(
        &mut self,
        node: &'a N,
        now: Instant,
    ) -> Work<'a, BatchDone> {
        // In turn: standbys that replay all the time would leave the second removals no chance.
        let is_turn_of_refill = std::mem::take(&mut self.replayed_was_last);
        let mut jobs = if is_turn_of_refill { self.refill.due(now) } else { Vec::new() };
        if jobs.is_empty()
            && let Some(job) = self.replayed.take()
        {
            self.replayed_was_last = true;
            return self.removal(node, vec![job]);
        }
        if jobs.is_empty() {
            jobs = self.refill.due(now);
        }
        jobs.iter().for_each(|_| reach(Point::SecondDue));
        self.removal(node, jobs)
    }

    fn removal<'a, N: Node>(&self, node: &'a N, mut jobs: Vec<Job>) -> Work<'a, BatchDone> {
        let since = second::since(node, &mut jobs);
        if jobs.is_empty() {
            return None;
        }
        let empty = self.refill.empty_keys();
        Some(Box::pin(async move {
            let outcome = second::remove(node, &jobs, empty, since).await;
            (jobs, outcome)
        }))
    }

    pub(super) fn next_retries<'a, N: Node>(
        &mut self,
        node: &'a N,
        now: Instant,
    ) -> Work<'a, RetriesDone> {
        let due = self.refusals.due(now);
        if due.is_empty() {
            return None;
        }
        Some(Box::pin(async move {
            let mut outcomes = Vec::with_capacity(due.len());
            for one in &due {
                match retry(node, one).await {
                    Ok(outcome) => outcomes.push(outcome),
                    Err(error) => return (due, Err(error)),
                }
            }
            (due, Ok(outcomes))
        }))
    }

    pub(super) fn next_pass<'a, N: Node>(
        &mut self,
        node: &'a N,
        metrics: &'a Metrics,
        now: Instant,
    ) -> Work<'a, PassDone> {
        if self.passes.is_empty() && !self.builds {
            return None;
        }
        let waits = self.pass_waits_until(now).is_some_and(|at| at > now);
        if self.throttle.waits(waits && self.passes.is_urgent(), now, metrics) || waits {
            return None;
        }
        let jobs = self.passes.take();
        self.late.in_pass = jobs.iter().map(|job| job.oldest).fold(None, older);
        self.under_way.1 = noting::waiting(&jobs);
        let mut paces = self.paces.take().expect("they came back with the pass before this one");
        let (under_way, refused) = (self.health.pass(), self.room.share.refused);
        let (publisher, has_second) = (Arc::clone(&self.inside.publisher), self.refill.is_on());
        let last = move |round: Round| round.is_last(has_second);
        let noted = metrics.noted.target(self.target).pass(pass_reason(&jobs), patterns(&jobs));
        Some(Box::pin(async move {
            let _until_it_ends = under_way;
            let (way, told) = (Way::Scan(&mut paces, noted), (last, &publisher));
            let outcome = sweep(node, metrics, (&jobs, refused), way, told).await;
            (jobs, paces, outcome.map(Option::unwrap_or_default))
        }))
    }

    /// Until when the passes that wait may not begin, lest SCAN take more than its share.
    fn pass_waits_until(&self, now: Instant) -> Option<Instant> {
        let is_wanted = self.builds || !self.passes.is_empty();
        let paces = self.paces.as_ref().filter(|_| is_wanted)?;
        paces.begins_at(self.passes.is_urgent(), now)
    }

    pub(super) fn next_write<'a, N: Node>(
        &mut self,
        node: &'a N,
        now: Instant,
        safe: Lsn,
    ) -> Work<'a, Written> {
        if now < self.next_write {
            return None;
        }
        let moved = self.ward.next(safe);
        let due = moved.or_else(|| if now >= self.next_probe { self.ward.again() } else { None });
        let (expected, value) = match due {
            Some((expected, value)) => {
                reach(Point::WatermarkDue);
                self.next_probe = now + PROBE_INTERVAL;
                (Some(expected), value)
            }
            None => (None, self.ward.unshared()?),
        };
        self.next_write = now + WATERMARK_INTERVAL;
        let (digest, prints) = self.ward.prints();
        let prints = (self.kept.as_deref() != Some(digest) && expected.is_some())
            .then(|| (digest.to_owned(), Rc::clone(prints)));
        self.keeping = prints.as_ref().map(|(digest, _)| digest.clone());
        Some(Box::pin(write(node, expected, value, prints)))
    }

    /// When something becomes due that nothing else would wake for. What was due at `now` is under
    /// way, or begins when the work before it ends, which wakes by itself.
    fn next_timer(&self, now: Instant) -> Option<Instant> {
        let pauses = [self.unlinks.until(), self.scans.until()];
        let due = [self.refill.next_due(), self.refusals.next_due(), self.late.next_look()];
        let publish = self.publish_again();
        let writes = [Some(self.next_write), Some(self.next_probe), Some(self.next_alive)];
        let build = self.listed.as_ref().map(|_| self.next_build);
        let pass = self.pass_waits_until(now);
        let all =
            pauses.into_iter().chain(due).chain(writes).chain([pass, build, publish]).flatten();
        all.filter(|time| *time > now).min()
    }

    /// Something is visible.
    async fn arrived(&mut self, parcel: Parcel) {
        let Parcel { job, held } = parcel;
        self.held.extend(held);
        if job.round == Round::Replayed {
            self.put_replayed(job);
        } else {
            self.queue.push(job);
            if *self.lost.borrow() {
                self.goes_away();
            }
        }
        self.tell_held().await;
    }

    pub(super) fn say_takes(&self) {
        if self.unlinks.has_failed() || self.scans.has_failed() {
            return;
        }
        match &self.away {
            Some(away) => self.say_misses(away),
            None => self.health.over(&Topic::Redis(self.target)),
        }
    }

    /// Tells of a job whose keys are gone, at `debug` also the log.
    pub(super) fn tell_gone(&self, job: &Job) {
        let (trail, metrics) = (self.health.trail(), self.health.metrics());
        let redis = metrics.target_name(self.target);
        if job.round == Round::Second {
            let (keys, up_to) = (job.keys.exact_len(), job.covers);
            let patterns = job.keys.patterns().count();
            tracing::debug!(redis, keys, patterns, %up_to, "removed for the second time");
            return trail.removed_again(self.target, job.waited());
        }
        for member in &job.members {
            if let Member::Transaction { transaction, .. } = member {
                let (xid, lsn) = (transaction.xid, transaction.end_lsn);
                let Took { removed, absent, shared_by } = job.took;
                tracing::debug!(redis, xid, %lsn, removed, absent, shared_by, "its keys are gone");
            }
        }
        trail.removed(self.target, job.took, job.waited());
    }

    /// Counts rules that were widened because too much waits.
    pub(super) fn widened(&self, widened: &[(RuleId, u64)]) {
        self.health.widened_for_room(widened);
    }

    pub(super) fn put_replayed(&mut self, mut job: Job) {
        job.keys.waits();
        match &mut self.replayed {
            Some(waiting) => {
                let keys = waiting.absorb(job);
                let mut widened = waiting.keys.merge_within(&keys);
                // As much again may be under way.
                while waiting.keys.bytes() > self.room.share.replayed / 2
                    && let more = waiting.keys.collapse_largest(0)
                    && !more.is_empty()
                {
                    widened.extend(more);
                }
                self.widened(&widened);
            }
            None => self.replayed = Some(job),
        }
    }

    /// Says whether keys have waited for too long.
    fn look_late(&mut self, now: Instant) {
        let is_idle = self.passes.is_empty() && self.late.in_pass.is_none();
        self.throttle.look(is_idle, (&self.health, now));
        let pages = self.inside.waiting.iter();
        let listed = self.listed.iter().flat_map(|listed| listed.waiting.iter());
        let waiting = self.passes.iter().chain(listed).chain(pages);
        let mut jobs = self.queue.iter().chain(waiting).peekable();
        match self.late.next_look() {
            Some(look) if look <= now => {
                let oldest = jobs.map(|job| job.oldest).fold(None, older);
                self.late.look(oldest, (&self.health, now));
            }
            Some(_) => {}
            None if jobs.peek().is_none() && self.late.is_quiet() => {}
            None => self.late.look_later(now),
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.health.forget(|topic| topic.target() == Some(self.target));
    }
}
