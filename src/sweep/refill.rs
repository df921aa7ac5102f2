//! The second removal (I8), and what must be removed again if Redis forgets (I7).
//!
//! A reader that read the old row before it was replaced may write it to Redis after the removal.
//! So keys wait here for the refill window and are removed once more. They wait in buckets, each an
//! eighth of the window wide: a key that a hundred transactions touch is removed again once a
//! bucket, and a timer belongs to a bucket, not to a transaction.
//!
//! A long window with many keys would fill the memory. At a limit the keys of the oldest buckets
//! give way to their rules' patterns: that removes more. Going early instead would break I8, and
//! waiting until there is room would hold up first removals. Such buckets are joined, as far as an
//! eighth of the window, so that they cost a pass each time, not four a second; and so are buckets
//! of few keys each, which none would free much by giving way.
//!
//! Keys that are through stay until the watermark covers them: if Redis loses the connection
//! before, it may have lost their removal too. Then they go to the ring.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::job::{Job, Member, Round};
use super::proof::ring::Ring;
use super::second::Since;
use crate::budget::OfTarget;
use crate::keys::{KeySet, RuleId};
use crate::lsn::Lsn;
use crate::settle::Hold;

/// Widest bucket: bounds by how much a confirmation comes later than the window asks.
const BUCKET_WIDTH_MAX: Duration = Duration::from_millis(250);

/// Exact keys beyond which a bucket is closed early, below the limit at which a set collapses.
const BUCKET_KEYS_MAX: usize = 50_000;

/// Exact keys of buckets that are removed by one batch, unless a single one has more.
const DUE_KEYS_MAX: usize = 20_000;

/// Bytes below which a template's part of a set is not widened while anything is larger: it frees
/// little, and may remove much.
const LARGE_BYTES: usize = 16 * 1024;

/// Key sets kept until the watermark covers them; beyond it the two oldest become one.
const KEPT_MAX: usize = 32;

/// Rules that were widened for lack of room, and how often.
pub(super) type Widened = Vec<(RuleId, u64)>;

/// Keys between their first removal and the watermark that covers them.
pub(super) struct Refill {
    window: Duration,
    /// The memory of what waits, beyond which the oldest are widened; and of what is kept: it may
    /// take hours until that is covered, while a standby is gone or Redis refuses something.
    share: OfTarget,
    empty: KeySet,
    collecting: Option<Bucket>,
    waiting: VecDeque<Bucket>,
    /// Memory of what is being removed for the second time, bytes.
    under_way: usize,
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    ring: Ring,
}

struct Bucket {
    hold: Hold,
    members: Vec<Member>,
    keys: KeySet,
    covers: Lsn,
    since: Since,
    opened_at: Instant,
    /// When it is closed; its second removal is due one window later.
    closes_at: Instant,
    /// Whether it was widened for lack of room.
    is_wide: bool,
}

/// Keys whose last removal so far is done.
struct Kept {
    covers: Lsn,
    keys: KeySet,
    /// Sweeps of everything that stay owed.
    owed: Vec<Member>,
}

impl Bucket {
    /// A bucket that begins with the keys of a job.
    fn new(job: Job, opened_at: Instant, closes_at: Instant) -> Bucket {
        let Job { members, mut keys, covers, since, .. } = job;
        keys.waits();
        let (hold, members) = (Hold::new_name(), resyncs(members));
        Bucket { hold, members, keys, covers, since, opened_at, closes_at, is_wide: false }
    }

    /// Takes in the keys of a job; gives what was widened by it.
    fn take(&mut self, job: Job) -> Widened {
        self.members.extend(resyncs(job.members));
        self.covers = self.covers.max(job.covers);
        self.since.join(job.since);
        self.keys.merge_within(&job.keys)
    }

    /// One bucket of this and a younger one; notes what is `widened` by it.
    fn with(mut self, younger: Bucket, widened: &mut Widened) -> Bucket {
        self.since.join(younger.since);
        let is_larger = self.keys.bytes() >= younger.keys.bytes();
        let (mut keys, others) =
            if is_larger { (self.keys, younger.keys) } else { (younger.keys, self.keys) };
        widened.extend(keys.merge_within(&others));
        let mut members = younger.members;
        members.extend(self.members);
        members.push(Member::Held { hold: self.hold, shared: false });
        Bucket {
            hold: younger.hold,
            members,
            keys,
            covers: younger.covers.max(self.covers),
            since: self.since,
            opened_at: self.opened_at,
            closes_at: younger.closes_at,
            is_wide: self.is_wide || younger.is_wide,
        }
    }

    /// Keys and items, count.
    fn len(&self) -> usize {
        names(&self.keys)
    }

    fn into_job(self, round: Round) -> Job {
        let Bucket { hold, mut members, keys, covers, since, .. } = self;
        members.push(Member::Held { hold, shared: false });
        Job { since, ..Job::new(members, keys, round, covers) }
    }
}

fn names(keys: &KeySet) -> usize {
    keys.exact_len() + keys.items_len()
}

/// Gives those of the members that a bucket's hold does not stand for.
fn resyncs(mut members: Vec<Member>) -> Vec<Member> {
    members.retain(|member| {
        matches!(member, Member::Resync { .. } | Member::Replayed { .. } | Member::Rest { .. })
    });
    members
}

impl Refill {
    /// A refill stage with this window, in its share of the memory; `empty` is a key set of the
    /// rules, empty; `start` is where the session's stream begins.
    pub(super) fn new(window: Duration, share: OfTarget, empty: KeySet, start: Lsn) -> Refill {
        Refill {
            window,
            share,
            empty,
            collecting: None,
            waiting: VecDeque::new(),
            under_way: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
            ring: Ring::new(start, share.ring),
        }
    }

    /// How many keys and patterns wait for their second removal.
    pub(super) fn len(&self) -> usize {
        let buckets = self.collecting.iter().chain(&self.waiting);
        buckets.map(|bucket| bucket.len() + bucket.keys.patterns_len()).sum()
    }

    /// Whether keys are removed twice at all.
    pub(super) fn is_on(&self) -> bool {
        !self.window.is_zero()
    }

    /// Takes a job whose keys were removed at `now` for the first time. Gives what holds back from
    /// now on all that waited for it, and what was widened.
    pub(super) fn add(&mut self, job: Job, now: Instant) -> (Hold, Widened) {
        let mut widened = Widened::new();
        let full = self.collecting.as_ref().is_some_and(|bucket| {
            bucket.closes_at <= now || bucket.len() + names(&job.keys) > BUCKET_KEYS_MAX
        });
        if full {
            widened.extend(self.close(now));
        }
        let hold = match &mut self.collecting {
            Some(bucket) => {
                widened.extend(bucket.take(job));
                bucket.hold
            }
            None => {
                let closes_at = now + (self.window / 8).min(BUCKET_WIDTH_MAX);
                self.collecting.insert(Bucket::new(job, now, closes_at)).hold
            }
        };
        if self.waiting_bytes() > self.share.refill {
            widened.extend(self.make_room());
        }
        (hold, widened)
    }

    /// Ends the bucket that is being filled; gives what was widened to make room for it.
    fn close(&mut self, now: Instant) -> Widened {
        if let Some(mut bucket) = self.collecting.take() {
            bucket.closes_at = bucket.closes_at.min(now);
            self.waiting.push_back(bucket);
        }
        self.make_room()
    }

    /// Makes the buckets fit into their memory. What frees much goes first: large parts of the
    /// oldest. Where there are only small ones, however many, neighbours become one before.
    fn make_room(&mut self) -> Widened {
        let mut widened = self.widen_oldest(LARGE_BYTES);
        if !widened.is_empty() {
            widened.extend(self.join(|one, other| one.is_wide && other.is_wide));
        }
        if self.waiting_bytes() > self.share.refill {
            widened.extend(self.join(|_, _| true));
            widened.extend(self.widen_oldest(LARGE_BYTES));
            widened.extend(self.widen_oldest(0));
        }
        widened
    }

    fn waiting_bytes(&self) -> usize {
        let collecting = self.collecting.as_ref().map_or(0, |bucket| bucket.keys.bytes());
        self.under_way
            + collecting
            + self.waiting.iter().map(|bucket| bucket.keys.bytes()).sum::<usize>()
    }

    /// Widens the oldest buckets until all fit, but nothing that frees less than `least` bytes.
    fn widen_oldest(&mut self, least: usize) -> Widened {
        let (mut widened, mut bytes) = (Widened::new(), self.waiting_bytes());
        let bytes_max = self.share.refill;
        for bucket in &mut self.waiting {
            while bytes > bytes_max {
                let before = bucket.keys.bytes();
                let more = bucket.keys.collapse_largest(least);
                if more.is_empty() {
                    break;
                }
                widened.extend(more);
                bucket.is_wide = true;
                bytes = (bytes + bucket.keys.bytes()).saturating_sub(before);
            }
        }
        widened
    }

    /// Makes one bucket of neighbours that are `alike`, as far as an eighth of the window: of wide
    /// ones each costs a pass, and for most of them the same one. Gives what was widened by it.
    fn join(&mut self, alike: fn(&Bucket, &Bucket) -> bool) -> Widened {
        let (mut joined, mut widened) = (VecDeque::<Bucket>::new(), Widened::new());
        for bucket in std::mem::take(&mut self.waiting) {
            let goes_with = |last: &Bucket| {
                alike(last, &bucket) && bucket.closes_at - last.opened_at <= self.window / 8
            };
            match joined.pop_back() {
                Some(last) if goes_with(&last) => joined.push_back(last.with(bucket, &mut widened)),
                last => {
                    joined.extend(last);
                    joined.push_back(bucket);
                }
            }
        }
        self.waiting = joined;
        widened
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let collecting = self.collecting.as_ref().map(|bucket| bucket.closes_at + self.window);
        let waiting = self.waiting.front().map(|bucket| bucket.closes_at + self.window);
        collecting.into_iter().chain(waiting).min()
    }

    /// Second removals that are due at `now`, as many as make a batch.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Job> {
        let window = self.window;
        let is_due = |bucket: &Bucket| bucket.closes_at + window <= now;
        if self.waiting.is_empty() && self.collecting.as_ref().is_some_and(is_due) {
            self.waiting.extend(self.collecting.take());
        }
        let (mut due, mut keys) = (Vec::new(), 0);
        while keys < DUE_KEYS_MAX
            && self.waiting.front().is_some_and(is_due)
            && let Some(bucket) = self.waiting.pop_front()
        {
            keys += bucket.len();
            self.under_way += bucket.keys.bytes();
            due.push(bucket.into_job(Round::Second));
        }
        due
    }

    /// Counts nothing as under way any more: what was due is removed, or comes back.
    pub(super) fn ended(&mut self) {
        self.under_way = 0;
    }

    /// Puts second removals back that were due.
    pub(super) fn put_back(&mut self, jobs: Vec<Job>, now: Instant) {
        for mut job in jobs.into_iter().rev() {
            let held = std::mem::take(&mut job.members);
            let due = now.checked_sub(self.window).unwrap_or(now);
            let mut bucket = Bucket::new(job, due, due);
            bucket.members = held;
            self.waiting.push_front(bucket);
        }
    }

    /// Keeps keys whose last removal is done until the watermark covers them.
    pub(super) fn keep(&mut self, covers: Lsn, mut keys: KeySet, owed: Vec<Member>) {
        if keys.is_empty() {
            return;
        }
        keys.waits();
        self.kept_bytes += keys.bytes();
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
            self.weigh_kept();
        }
        let bytes_max = self.share.kept;
        for least in [LARGE_BYTES, 0] {
            for kept in &mut self.kept {
                while self.kept_bytes > bytes_max {
                    let before = kept.keys.bytes();
                    if kept.keys.collapse_largest(least).is_empty() {
                        break;
                    }
                    let now = self.kept_bytes + kept.keys.bytes();
                    self.kept_bytes = now.saturating_sub(before);
                }
            }
        }
    }

    fn weigh_kept(&mut self) {
        self.kept_bytes = self.kept.iter().map(|kept| kept.keys.bytes()).sum();
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
        self.weigh_kept();
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
        self.kept_bytes = 0;
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
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{KEPT_MAX, Refill};
    use crate::budget::OfTarget;
    use crate::keys::Rules;
    use crate::lsn::Lsn;
    use crate::settle::Hold;
    use crate::sweep::job::{Job, Member, Round};
    use crate::sweep::tests::{keys, rule, rules};

    const WINDOW: Duration = Duration::from_secs(80);
    const SHARE: OfTarget = OfTarget { refill: 16 << 20, kept: 16 << 20, ..OfTarget::of(1) };

    fn holds(jobs: &[Job]) -> Vec<Hold> {
        let members = jobs.iter().flat_map(|job| &job.members);
        members
            .filter_map(|member| match member {
                Member::Held { hold, .. } => Some(*hold),
                _ => None,
            })
            .collect()
    }

    /// I6, I8: more keys than there is memory for, over a window and a half: none goes before its
    /// window is over, none much later, every hold ends, and what is wide makes few jobs. So with
    /// large sets, and with many small ones.
    #[tokio::test]
    async fn a_full_window_is_widened_and_never_cut_short() {
        fill_a_window((WINDOW, 1_500), 400);
        fill_a_window((WINDOW * 30, 90), 400);
    }

    /// Adds 60 keys of such a length every 250 ms for a window and a half.
    fn fill_a_window((window, length): (Duration, usize), jobs_max: usize) {
        let rules = rules();
        let began = Instant::now();
        let mut refill = Refill::new(window, SHARE, rules.key_set(), Lsn(1));
        let (mut added, mut ended, mut jobs, mut widened) = (Vec::new(), Vec::new(), 0, 0);
        let steps = u32::try_from(window.as_millis() / 250).unwrap();
        for step in 0..steps * 4 {
            let now = began + Duration::from_millis(250) * step;
            if step < steps * 3 / 2 {
                let ids: Vec<String> = (0..60).map(|id| format!("{step}:{id:0>length$}")).collect();
                let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                let job = Job::new(Vec::new(), keys(&rules, "item", &ids), Round::First, Lsn(9));
                let (hold, wide) = refill.add(job, now);
                widened += wide.len();
                added.push((hold, now));
            }
            let due = refill.due(now);
            jobs += due.len();
            refill.ended();
            ended.extend(holds(&due).into_iter().map(|hold| (hold, now)));
            let bytes = refill.waiting_bytes();
            assert!(bytes <= SHARE.refill + 256 * 1024, "{bytes} bytes");
        }
        assert!(widened > 10, "{widened}");
        assert!(jobs < jobs_max, "{jobs} second removals");
        for (hold, at) in added {
            let (_, end) = ended.iter().find(|(other, _)| *other == hold).expect("it ends");
            let waited = *end - at;
            assert!(waited >= window, "cut short: {waited:?}");
            assert!(waited <= window + window / 8 + Duration::from_secs(1), "{waited:?}");
        }
        assert!(refill.next_due().is_none());
    }

    /// I6: what waits for the watermark, too, also where each of many rules has little in a set, so
    /// that none frees much by giving way. It stays whole.
    #[test]
    fn what_waits_for_the_watermark_is_bounded_and_covers_every_key() {
        let all: Vec<_> =
            (0..64).map(|id| rule(&format!("r{id}"), "item", &format!("{id}:{{id}}"))).collect();
        let rules = Rules::compile(&all).unwrap();
        let mut refill = Refill::new(WINDOW, SHARE, rules.key_set(), Lsn(1));
        let steps = u64::try_from(KEPT_MAX).unwrap() + 8;
        let id = |step: u64, id: u32| format!("{step}:{id:0>1000}");
        for step in 0..steps {
            let ids: Vec<String> = (0..8).map(|one| id(step, one)).collect();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            refill.keep(Lsn(10 + step), keys(&rules, "item", &ids), Vec::new());
            let bytes: usize = refill.kept.iter().map(|kept| kept.keys.bytes()).sum();
            assert!(bytes <= SHARE.kept, "{bytes} bytes in {} sets", refill.kept.len());
            assert!(refill.kept.len() <= KEPT_MAX);
        }
        let jobs = refill.all_again();
        assert!(jobs.iter().any(|job| job.keys.has_patterns()), "there was too much");
        for (step, rule) in (0..steps).flat_map(|step| [(step, 0), (step, 63)]) {
            let key = format!("{rule}:{}", id(step, 7));
            let has = |job: &Job| {
                job.keys.exact_rule(key.as_bytes()).is_some()
                    || job.keys.patterns().any(|(_, one)| one.matches(key.as_bytes()))
            };
            assert!(jobs.iter().any(|job| job.covers >= Lsn(10 + step) && has(job)), "{key}");
        }
    }
}
