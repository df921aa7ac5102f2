//! Readers on standbys: a second removal of the same keys, once each standby shows the commit.
//!
//! A standby shows a commit when it has replayed the commit record, some time after the primary
//! does. A reader that comes in between reads the old row there, and caches it after the first
//! removal. So keys pass here at once, and are kept; when a standby's replay position has reached
//! the end of the commit they go to the sweeper again, and after the last standby's nothing holds
//! back the confirmation any more. A standby that is late or gone delays only that.
//!
//! Why the position and not a snapshot: on a standby the list of running transactions does not say
//! what is visible. Redo marks a commit before the position moves past it, so a position at its end
//! is proof; a standby that does not answer proves nothing.
//!
//! Bounds (I6): a standby may be gone for hours. Of the transactions whose keys are kept nothing is
//! known but the hold of their group. Kept keys are merged, neighbours whose common span
//! is smallest for their age first, so that a standby which is late by an hour has its keys removed
//! late by some minutes more, one that is late by a second by milliseconds. Beyond a limit in bytes
//! large sets collapse.

mod standby;
#[cfg(test)]
pub(in crate::settle) mod tests;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

use self::standby::{Board, Failure, Progress, follow};
use super::{Cause, Held, Hold, LARGE_SET_BYTES, Replayed, Visible, send};
use crate::budget;
use crate::channel::{Receiver, Sender};
use crate::config::TargetId;
use crate::keys::{KeySet, RuleId};
use crate::lsn::Lsn;
use crate::telemetry::metrics::ReplicaLabel;
use crate::telemetry::{Health, Topic};
use crate::words::counted;

pub use self::standby::{Answer, SqlStandby, Standby, StandbyError};

/// Keys that become visible within this time are kept as one group.
const GROUP_WIDTH: Duration = Duration::from_millis(20);

/// Groups kept; beyond it two become one.
pub(super) const GROUPS_MAX: usize = 64;

/// Exact keys beyond which a group takes no more, below the limit at which a set collapses.
const GROUP_KEYS_MAX: usize = 50_000;

/// How long a standby may be behind before that is said.
const LATE_AFTER: Duration = Duration::from_secs(30);

/// How often it is looked what is to be said of the standbys.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// The hint for a person about a standby that answers and does not replay.
const LATE_HINT: &str = "look there for `pg_is_wal_replay_paused()`, `recovery_min_apply_delay` \
                         and queries that conflict with the replay, or take it out of \
                         `postgres.replicas`";

/// Lets keys pass, and passes them again after every standby's replay.
pub struct Replicas {
    health: Arc<Health>,
    /// Every key that a rule could produce.
    everything: KeySet,
    labels: Vec<ReplicaLabel>,
    followers: Vec<Follower>,
    groups: VecDeque<Group>,
    /// Memory of the keys that are kept, in bytes.
    bytes: usize,
    /// The furthest position that anything waited for.
    furthest: Lsn,
    /// Where the session's stream began.
    start: Lsn,
    /// Transactions and holds that are held back from now on, to be told with the next keys that
    /// pass.
    held: Vec<Held>,
    /// Of which standbys something is said.
    told: Vec<bool>,
    /// Why standbys cannot be counted on.
    failures: Rc<RefCell<Vec<Option<Failure>>>>,
}

/// The state of one standby, as far as it is known.
#[derive(Clone, Copy, Default)]
struct Follower {
    progress: Progress,
    /// The furthest position that keys were passed for because the standby had reached it.
    passed: Lsn,
}

/// Keys that wait for standbys.
struct Group {
    keys: KeySet,
    /// The target that they go from; `None` for all.
    target: Option<TargetId>,
    /// Holds back its transactions.
    hold: Hold,
    /// Closing sweeps of everything among them.
    resyncs: u32,
    /// Where a standby must be to show the first of it.
    from: Lsn,
    /// Where a standby must be to show all that the keys are removed for.
    position: Lsn,
    /// Which standbys are not there yet.
    missing: Vec<bool>,
    /// When the first and the last of it became visible.
    since: Instant,
    until: Instant,
}

impl Replicas {
    /// Takes `everything` that the rules could produce, for a standby that may have shown older
    /// rows than before.
    #[must_use]
    pub fn new(everything: KeySet, health: Arc<Health>) -> Replicas {
        Replicas {
            health,
            everything: everything.uncounted(),
            labels: Vec::new(),
            followers: Vec::new(),
            groups: VecDeque::new(),
            bytes: 0,
            furthest: Lsn::ZERO,
            start: Lsn::ZERO,
            held: Vec::new(),
            told: Vec::new(),
            failures: Rc::default(),
        }
    }

    /// Lets the stream begin at `start`: what ended there or before waits for nobody.
    #[must_use]
    pub fn starting_at(mut self, start: Lsn) -> Replicas {
        self.start = start;
        self
    }

    /// Passes `inputs` on to `outputs`, and again after each of `standbys` has replayed them, until
    /// `inputs` ends. Needs a [`LocalSet`](tokio::task::LocalSet) around it.
    pub async fn run<S: Standby + 'static>(
        mut self,
        standbys: Vec<S>,
        mut inputs: Receiver<Visible>,
        outputs: Sender<Visible>,
    ) {
        self.followers = vec![Follower::default(); standbys.len()];
        self.told = vec![false; standbys.len()];
        self.failures.borrow_mut().resize(standbys.len(), None);
        let (wanted, wanted_here) = watch::channel(Lsn::ZERO);
        let (progress, mut changes) = watch::channel(vec![Progress::default(); standbys.len()]);
        let (health, failures) = (Arc::clone(&self.health), Rc::clone(&self.failures));
        let board = Board { wanted: wanted_here, progress: Rc::new(progress), health, failures };
        let mut tasks = JoinSet::new();
        for (at, standby) in standbys.into_iter().enumerate() {
            self.labels.push(ReplicaLabel { replica: standby.name().to_owned() });
            tasks.spawn_local(follow(standby, at, board.clone()));
        }
        let mut clock = interval(TELL_INTERVAL);
        loop {
            tokio::select! {
                biased;
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let all = changes.borrow_and_update().clone();
                    self.advance(&all);
                    self.release(&outputs).await;
                }
                visible = inputs.recv() => {
                    let Some(visible) = visible else { return };
                    let visible = self.take(visible);
                    wanted.send_if_modified(|now| {
                        std::mem::replace(now, self.furthest) != self.furthest
                    });
                    send(&outputs, visible).await;
                }
                _ = clock.tick() => self.tell(),
            }
            let oldest = self.groups.front().map(|group| group.since);
            self.health.noted().standbys.set(self.groups.len(), oldest);
            self.show_lag();
        }
    }

    /// Keys that are visible on the primary: kept for the standbys that do not show it yet.
    fn take(&mut self, mut visible: Visible) -> Visible {
        let position = visible.position;
        self.furthest = self.furthest.max(position);
        let missing: Vec<bool> =
            self.followers.iter().map(|one| one.progress.replayed < position).collect();
        for (follower, missing) in self.followers.iter_mut().zip(&missing) {
            if !missing {
                follower.passed = follower.passed.max(position);
            }
        }
        if missing.contains(&true) {
            visible.settles = false;
            let target = visible.target;
            self.keep((&visible.keys, &visible.cause, target), position, missing);
        }
        visible.held = std::mem::take(&mut self.held);
        visible
    }

    fn keep(
        &mut self,
        (keys, cause, target): (&KeySet, &Cause, Option<TargetId>),
        position: Lsn,
        missing: Vec<bool>,
    ) {
        let now = Instant::now();
        let open = self.groups.back_mut().filter(|last| {
            last.target == target
                && now < last.since + GROUP_WIDTH
                && last.keys.exact_len() + keys.exact_len() <= GROUP_KEYS_MAX
        });
        let hold = open.as_ref().map_or_else(Hold::new_name, |last| last.hold);
        let mut resyncs = 0;
        match cause {
            Cause::Transaction(transaction) => {
                self.held.push(Held::also(hold, transaction.end_lsn));
            }
            Cause::Resync { last } => resyncs = u32::from(*last),
            Cause::Replayed(_) | Cause::Early(_) => {}
        }
        let (since, until, from, keys) = (now, now, position, keys.clone());
        let added = Group { keys, target, hold, resyncs, from, position, missing, since, until };
        match open {
            Some(last) => {
                self.bytes -= last.keys.bytes();
                let widened = last.absorb(added);
                self.health.widened_for_room(&widened);
                self.bytes += last.keys.bytes();
            }
            None => {
                self.bytes += added.keys.bytes();
                self.groups.push_back(added);
            }
        }
        if self.groups.len() > GROUPS_MAX {
            self.merge_two(now);
        }
        for large in LARGE_SET_BYTES {
            if self.bytes <= budget::REPLAY {
                break;
            }
            let sets = self.groups.iter_mut().map(|group| &mut group.keys);
            for keys in sets.filter(|keys| keys.bytes() > large) {
                self.health.widened_for_room(&keys.collapse());
            }
            self.weigh();
        }
    }

    /// Makes one group of the two neighbours whose common span is smallest for their age: what
    /// waits in the older one then waits for the younger one's position, too. Neighbours are of the
    /// same target, so that what one owes is not removed from another.
    fn merge_two(&mut self, now: Instant) {
        let delay = |(older, younger): (&Group, &Group)| {
            let span = (younger.until - older.since).as_secs_f64();
            span / (now - younger.until).as_secs_f64().max(f64::MIN_POSITIVE)
        };
        let next = |at: usize, older: &Group| {
            let mut younger = self.groups.iter().enumerate().skip(at + 1);
            younger.find(|(_, younger)| younger.target == older.target)
        };
        let pairs = self.groups.iter().enumerate().filter_map(|(at, older)| {
            let (next, younger) = next(at, older)?;
            Some((at, next, delay((older, younger))))
        });
        let best = pairs.min_by(|one, other| one.2.total_cmp(&other.2));
        let Some((at, next, _)) = best else { return };
        if let Some(younger) = self.groups.remove(next)
            && let Some(older) = self.groups.get_mut(at)
        {
            self.held.push(Held::merged(older.hold, younger.hold));
            let widened = older.absorb(younger);
            self.health.widened_for_room(&widened);
        }
        self.weigh();
    }

    fn weigh(&mut self) {
        self.bytes = self.groups.iter().map(|group| group.keys.bytes()).sum();
    }

    /// Notes how far the standbys are. One that was started again, or is behind where it was, may
    /// have shown rows older than those whose keys were removed for good: whatever readers cached
    /// meanwhile goes when it is back where it was.
    fn advance(&mut self, all: &[Progress]) {
        for (at, progress) in all.iter().enumerate() {
            let Some(follower) = self.followers.get_mut(at) else { continue };
            let was = std::mem::replace(&mut follower.progress, *progress);
            if was.restarts != progress.restarts && follower.passed > Lsn::ZERO {
                let position = follower.passed;
                let replica = self.labels.get(at).map(|label| label.replica.as_str());
                tracing::warn!(
                    replica,
                    up_to = %position,
                    "a replica was started again: its readers may have seen older rows; sweeping \
                     everything once it is where it was"
                );
                let missing = (0..self.followers.len()).map(|other| other == at).collect();
                let everything = self.everything.clone();
                let owed = (&everything, &Cause::Resync { last: false }, None);
                self.keep(owed, position, missing);
            }
        }
    }

    /// Passes what standbys have reached.
    async fn release(&mut self, outputs: &Sender<Visible>) {
        let mut passed = Vec::new();
        for group in std::mem::take(&mut self.groups) {
            let kept = self.release_one(group, &mut passed);
            self.groups.extend(kept);
        }
        self.weigh();
        for mut visible in passed {
            visible.held = std::mem::take(&mut self.held);
            send(outputs, visible).await;
        }
    }

    /// Passes a group for the standbys that have reached it; gives it back if it waits for others.
    fn release_one(&mut self, mut group: Group, passed: &mut Vec<Visible>) -> Option<Group> {
        let mut reached = false;
        for (follower, missing) in self.followers.iter_mut().zip(&mut group.missing) {
            if *missing && follower.progress.replayed >= group.position {
                (*missing, reached) = (false, true);
                follower.passed = follower.passed.max(group.position);
            }
        }
        let waits = group.missing.contains(&true);
        if !reached {
            return Some(group);
        }
        let (position, target) = (group.position, group.target);
        let visible = |mut keys: KeySet, replayed| {
            keys.on_its_way();
            let (cause, at) = (Cause::Replayed(replayed), Instant::now());
            Visible { cause, keys, at, position, target, settles: true, held: Vec::new() }
        };
        if waits {
            passed.push(visible(group.keys.clone(), Replayed::default()));
            return Some(group);
        }
        let replayed = Replayed { hold: Some(group.hold), resyncs: group.resyncs };
        passed.push(visible(group.keys, replayed));
        None
    }

    /// Says which standbys hold back the confirmation for long, since when, and how much.
    fn tell(&mut self) {
        let now = Instant::now();
        for (at, label) in self.labels.iter().enumerate() {
            let waits = self.groups.iter().find(|group| group.missing.get(at) == Some(&true));
            let waits = waits.map(|group| {
                let bytes = self.furthest.bytes_since(group.from);
                (now - group.since, bytes)
            });
            let held = waits.map(|(since, bytes)| {
                let seconds = since.as_secs();
                let bytes = counted(bytes, "byte");
                format!(": for {seconds} s, {bytes} of WAL and what was before")
            });
            let (name, held) = (&label.replica, held.unwrap_or_default());
            let failures = self.failures.borrow();
            let trouble = match failures.get(at).and_then(Option::as_ref) {
                Some(Failure { text, hint }) => {
                    let text = format!(
                        "replica {name} cannot be counted on: {text}; nothing is confirmed that \
                         it has not replayed{held}"
                    );
                    Some((text, *hint))
                }
                None if waits.is_some_and(|(since, _)| since >= LATE_AFTER) => {
                    let text = format!(
                        "replica {name} does not replay; nothing is confirmed that it has not \
                         replayed{held}"
                    );
                    Some((text, LATE_HINT))
                }
                None => None,
            };
            let Some(told) = self.told.get_mut(at) else { continue };
            let topic = Topic::Replica(name.as_str().into());
            let was_told = std::mem::replace(told, trouble.is_some());
            match trouble {
                Some((text, hint)) => self.health.trouble(topic, &text, Some(hint)),
                None if was_told => self.health.over(&topic),
                None => {}
            }
        }
    }

    fn show_lag(&self) {
        for (follower, label) in self.followers.iter().zip(&self.labels) {
            // Of one that never answered it is known that nothing from before the start waits.
            let replayed = follower.progress.replayed.max(self.start);
            let lag = self.furthest.bytes_since(replayed);
            let lag = i64::try_from(lag).unwrap_or(i64::MAX);
            self.health.metrics().replica_replay_lag_bytes.get_or_create(label).set(lag);
        }
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        self.health.forget(|topic| matches!(topic, Topic::Replica(_)));
    }
}

impl Group {
    /// Takes in what became visible after it; gives the rules that were widened because both
    /// together are too much, and how often.
    fn absorb(&mut self, other: Group) -> Vec<(RuleId, u64)> {
        let widened = self.keys.merge_within(&other.keys);
        self.resyncs += other.resyncs;
        self.from = self.from.min(other.from);
        self.position = self.position.max(other.position);
        for (own, others) in self.missing.iter_mut().zip(other.missing) {
            *own |= others;
        }
        self.until = other.until;
        widened
    }
}
