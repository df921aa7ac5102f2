//! The second removal (I8), and what must be removed again if Redis forgets (I7).
//!
//! A reader that read the old row before it was replaced may write it to Redis after the removal.
//! So keys wait here for the refill window and are removed once more. They wait in buckets, each an
//! eighth of the window wide: a key that a hundred transactions touch is removed again once a
//! bucket, and a timer belongs to a bucket, not to a transaction.
//!
//! Keys that are through stay until the watermark covers them: if Redis loses the connection
//! before, it may have lost their removal too. Then they go to the ring.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::job::{Job, Member, Round};
use super::observe::Mark;
use super::ring::Ring;
use crate::keys::KeySet;
use crate::lsn::Lsn;

/// Widest bucket: bounds by how much a confirmation comes later than the window asks.
const BUCKET_WIDTH_MAX: Duration = Duration::from_millis(250);

/// Exact keys beyond which a bucket is closed early, below the limit at which a set collapses.
const BUCKET_KEYS_MAX: usize = 50_000;

/// Key sets kept until the watermark covers them; beyond it the two oldest become one.
const KEPT_MAX: usize = 32;

/// Keys between their first removal and the watermark that covers them.
pub(super) struct Refill {
    window: Duration,
    empty: KeySet,
    collecting: Option<Bucket>,
    waiting: VecDeque<Bucket>,
    kept: VecDeque<Kept>,
    ring: Ring,
}

struct Bucket {
    members: Vec<Member>,
    keys: KeySet,
    covers: Lsn,
    since: Option<Mark>,
    /// When it is closed; its second removal is due one window later.
    closes_at: Instant,
}

/// Keys whose last removal so far is done.
struct Kept {
    covers: Lsn,
    keys: KeySet,
    /// Sweeps of everything that stay owed.
    owed: Vec<Member>,
}

impl Bucket {
    fn into_job(self, round: Round) -> Job {
        let since = self.since;
        Job { since, ..Job::new(self.members, self.keys, round, self.covers) }
    }
}

impl Refill {
    /// A refill stage with this window; `empty` is a key set of the rules, empty; `start` is where
    /// the session's stream begins.
    pub(super) fn new(window: Duration, empty: KeySet, start: Lsn) -> Refill {
        let (collecting, waiting, kept) = (None, VecDeque::new(), VecDeque::new());
        Refill { window, empty, collecting, waiting, kept, ring: Ring::new(start) }
    }

    /// Whether keys are removed twice at all.
    pub(super) fn is_on(&self) -> bool {
        !self.window.is_zero()
    }

    /// Takes a job whose keys were removed at `now` for the first time.
    pub(super) fn add(&mut self, job: Job, now: Instant) {
        let full = self.collecting.as_ref().is_some_and(|bucket| {
            bucket.closes_at <= now
                || bucket.keys.exact_len() + job.keys.exact_len() > BUCKET_KEYS_MAX
        });
        if full {
            self.close(now);
        }
        match &mut self.collecting {
            Some(bucket) => {
                bucket.keys.merge(&job.keys);
                bucket.members.extend(job.members);
                bucket.covers = bucket.covers.max(job.covers);
                bucket.since =
                    bucket.since.take().zip(job.since).map(|(one, other)| one.earlier(other));
            }
            None => {
                let closes_at = now + (self.window / 8).min(BUCKET_WIDTH_MAX);
                let Job { members, keys, covers, since, .. } = job;
                self.collecting = Some(Bucket { members, keys, covers, since, closes_at });
            }
        }
    }

    fn close(&mut self, now: Instant) {
        if let Some(mut bucket) = self.collecting.take() {
            bucket.closes_at = bucket.closes_at.min(now);
            self.waiting.push_back(bucket);
        }
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let collecting = self.collecting.as_ref().map(|bucket| bucket.closes_at);
        let waiting = self.waiting.front().map(|bucket| bucket.closes_at + self.window);
        collecting.into_iter().chain(waiting).min()
    }

    /// The second removals that are due at `now`.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Job> {
        if self.collecting.as_ref().is_some_and(|bucket| bucket.closes_at <= now) {
            self.close(now);
        }
        let mut due = Vec::new();
        while let Some(bucket) = self.waiting.pop_front() {
            if bucket.closes_at + self.window > now {
                self.waiting.push_front(bucket);
                break;
            }
            due.push(bucket.into_job(Round::Second));
        }
        due
    }

    /// Keeps keys whose last removal is done until the watermark covers them.
    pub(super) fn keep(&mut self, covers: Lsn, keys: KeySet, owed: Vec<Member>) {
        if keys.is_empty() {
            return;
        }
        self.kept.push_back(Kept { covers, keys, owed });
        if self.kept.len() > KEPT_MAX {
            // A transaction that stays invisible holds the watermark back while others go on (I3):
            // sets that grow together collapse at their limit (I6).
            let merged = self.kept.pop_front().zip(self.kept.pop_front());
            if let Some((mut one, other)) = merged {
                one.keys.merge(&other.keys);
                one.owed.extend(other.owed);
                one.covers = one.covers.max(other.covers);
                self.kept.push_front(one);
            }
        }
    }

    /// The watermark stands at `lsn`: what it covers is needed only if Redis goes back.
    pub(super) fn covered(&mut self, lsn: Lsn, now: Instant) {
        for kept in std::mem::take(&mut self.kept) {
            if kept.covers > lsn {
                self.kept.push_back(kept);
                continue;
            }
            // A sweep of everything is of no transaction; whoever goes back behind it has no
            // watermark of this session.
            if kept.covers > Lsn::ZERO {
                self.ring.add(kept.covers, kept.keys, now);
            }
        }
    }

    /// Every removal for a transaction that ends later than this can be repeated.
    pub(super) fn floor(&self) -> Lsn {
        self.ring.floor()
    }

    /// Redis went back to `lsn`: the removals above it that were covered, to be done again.
    pub(super) fn covered_again(&mut self, lsn: Lsn) -> Vec<Job> {
        let above = self.ring.take_above(lsn).into_iter();
        above.map(|(covers, keys)| Job::new(Vec::new(), keys, Round::Again, covers)).collect()
    }

    /// Redis may have lost every removal that the watermark does not cover: all of them, to be done
    /// again from the start.
    pub(super) fn all_again(&mut self) -> Vec<Job> {
        let kept = std::mem::take(&mut self.kept)
            .into_iter()
            .map(|kept| Job::new(kept.owed, kept.keys, Round::Again, kept.covers));
        let waiting = std::mem::take(&mut self.waiting).into_iter().chain(self.collecting.take());
        kept.chain(waiting.map(|bucket| bucket.into_job(Round::Again))).collect()
    }

    /// An empty key set of the rules.
    pub(super) fn empty_keys(&self) -> KeySet {
        self.empty.clone()
    }

    /// Memory held by keys that wait for their second removal, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let buckets = self.waiting.iter().chain(&self.collecting);
        buckets.map(|bucket| bucket.keys.bytes() + size_of_val(bucket.members.as_slice())).sum()
    }
}
