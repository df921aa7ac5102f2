//! Keys that Redis refuses to remove, because a right on them is missing.
//!
//! They wait here, a set for each rule, outside of the room of all others: merged, and collapsed at
//! a limit. Each set is tried again as one, ever more rarely, until the right is given. Where it
//! has become a pattern no pass is made before one of the keys that were refused can be removed: a
//! pass over all of Redis would be for nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::inside::remove_direct;
use super::job::{Member, Tally};
use super::redis::act::{Act, Answer, Verb};
use super::redis::node::{Error, Node};
use super::redis::unlink::{self, Refused, Search};
use super::refill::Widened;
use super::samples::Samples;
use crate::budget::Charge;
use crate::keys::{Item, ItemKind, KeySet, Pattern, Reach, RuleId};
use crate::lsn::Lsn;
use crate::settle::Hold;

/// First and longest wait before refused keys are tried again.
const WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Exact keys of a rule, beyond which they collapse. Trying each of them alone costs Redis some
/// 10 ms.
const KEYS_MAX: usize = 10_000;

/// Tries without a pass, after which there is one whatever the samples say: the right may have been
/// given for other keys. At the longest wait that is five minutes.
const TRIES_WITHOUT_PASS: u32 = 30;

/// How often something failed in a row, and until when it is not tried again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    first: Duration,
    longest: Duration,
    tries: u32,
    until: Option<Instant>,
}

impl Pause {
    /// Waits that double from `first` to `longest`; none yet.
    pub(super) fn new((first, longest): (Duration, Duration)) -> Pause {
        Pause { first, longest, tries: 0, until: None }
    }

    /// It failed at `now`.
    pub(super) fn failed(&mut self, now: Instant) {
        let wait = self.first.saturating_mul(1 << self.tries.min(10)).min(self.longest);
        self.tries += 1;
        self.until = Some(now + wait);
    }

    /// It went well.
    pub(super) fn is_over(&mut self) {
        (self.tries, self.until) = (0, None);
    }

    /// Whether it may be tried at `now`.
    pub(super) fn allows(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    /// Until when it is not tried again.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether the last try failed.
    pub(super) fn has_failed(&self) -> bool {
        self.tries > 0
    }
}

/// The part of the memory that samples may take.
const SAMPLES_PART: usize = 4;

/// Keys that Redis refuses, by rule.
#[derive(Debug)]
pub(super) struct Refusals {
    by_rule: BTreeMap<RuleId, Refusal>,
    /// Memory of all their keys, bytes, beyond which the largest collapse (I6).
    bytes_max: usize,
}

/// Keys that Redis refuses of one rule.
#[derive(Debug)]
struct Refusal {
    hold: Hold,
    keys: KeySet,
    members: Vec<Member>,
    covers: Lsn,
    /// Keys that are tried before a pass.
    samples: Samples,
    /// Memory of those.
    charge: Charge,
    /// Whether SCAN itself was refused, so that trying keys says nothing.
    is_scan: bool,
    pause: Pause,
    without_pass: u32,
    /// Whether a try is under way.
    is_tried: bool,
    /// Memory of the keys that are being tried, bytes.
    tried_bytes: usize,
}

/// Refused keys of a rule that are tried again.
#[derive(Debug)]
pub(super) struct Retry {
    pub(super) rule: RuleId,
    pub(super) keys: KeySet,
    pub(super) covers: Lsn,
    samples: Samples,
    with_pass: bool,
}

/// The outcome of a try.
#[derive(Debug)]
pub(super) struct Tried {
    pub(super) tally: Tally,
    /// Whether a pass may do better than the last one.
    pub(super) with_pass: bool,
}

impl Refusals {
    /// Nothing yet, and at most so many bytes.
    pub(super) fn new(bytes_max: usize) -> Refusals {
        Refusals { by_rule: BTreeMap::new(), bytes_max }
    }

    /// Adds keys of one rule, with the end LSN up to which they cover, and samples of what was
    /// refused of them; none, if SCAN was. Gives what holds back all that waits for them, and what
    /// was widened.
    pub(super) fn add(
        &mut self,
        (rule, keys): (RuleId, KeySet),
        covers: Lsn,
        samples: Option<Samples>,
        now: Instant,
    ) -> (Hold, Widened) {
        let refusal = self.by_rule.entry(rule).or_insert_with(|| {
            let mut pause = Pause::new(WAIT);
            pause.failed(now);
            Refusal {
                hold: Hold::new_name(),
                keys: keys.emptied(),
                members: Vec::new(),
                covers,
                samples: Samples::default(),
                charge: keys.new_charge(),
                is_scan: false,
                pause,
                without_pass: 0,
                is_tried: false,
                tried_bytes: 0,
            }
        });
        refusal.covers = refusal.covers.max(covers);
        let mut widened = refusal.keys.merge_within(&keys);
        while refusal.keys.exact_len() + refusal.keys.items_len() > KEYS_MAX
            && let more = refusal.keys.collapse_largest(0)
            && !more.is_empty()
        {
            widened.extend(more);
        }
        refusal.is_scan = samples.is_none();
        if let Some(samples) = samples {
            refusal.samples = samples;
        }
        let hold = refusal.hold;
        widened.extend(self.make_room());
        (hold, widened)
    }

    /// Collapses what frees most by it until all fit, or nothing frees any more. Samples make room
    /// for themselves.
    fn make_room(&mut self) -> Widened {
        while self.samples_bytes() > self.bytes_max / SAMPLES_PART {
            let all = self.by_rule.values_mut().map(|refusal| &mut refusal.samples);
            all.max_by_key(|samples| samples.bytes()).into_iter().for_each(Samples::halve);
        }
        for refusal in self.by_rule.values_mut() {
            refusal.charge.set(refusal.samples.bytes());
        }
        let mut widened = Widened::new();
        while self.bytes() > self.bytes_max {
            let sets = self.by_rule.values_mut().map(|refusal| &mut refusal.keys);
            let frees_most = sets.max_by_key(|keys| keys.narrow_bytes());
            let more = frees_most.map(|keys| keys.collapse_largest(0)).unwrap_or_default();
            if more.is_empty() {
                break;
            }
            widened.extend(more);
        }
        widened
    }

    /// The memory of all. What is being tried comes back, and counts.
    pub(super) fn bytes(&self) -> usize {
        let bytes = |one: &Refusal| one.tried_bytes + one.keys.bytes() + one.charge.bytes();
        self.by_rule.values().map(bytes).sum()
    }

    /// Somebody else waits for what is refused of a rule.
    pub(super) fn join(&mut self, rule: RuleId, members: impl Iterator<Item = Member>) {
        if let Some(refusal) = self.by_rule.get_mut(&rule) {
            refusal.members.extend(members);
        }
    }

    /// Memory of all samples, bytes.
    pub(super) fn samples_bytes(&self) -> usize {
        self.by_rule.values().map(|refusal| refusal.samples.bytes()).sum()
    }

    /// Takes out what is to be tried again at `now`.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Retry> {
        let due = self.by_rule.iter_mut().filter(|(_, one)| !one.is_tried && one.pause.allows(now));
        due.map(|(rule, refusal)| {
            refusal.is_tried = true;
            refusal.without_pass += 1;
            let empty = refusal.keys.emptied();
            let keys = std::mem::replace(&mut refusal.keys, empty);
            refusal.tried_bytes = keys.bytes();
            let with_pass = refusal.is_scan || refusal.without_pass > TRIES_WITHOUT_PASS;
            if with_pass {
                refusal.without_pass = 0;
            }
            let (samples, covers) = (refusal.samples.clone(), refusal.covers);
            Retry { rule: *rule, keys, covers, samples, with_pass }
        })
        .collect()
    }

    /// When something is to be tried next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.by_rule.values().filter(|one| !one.is_tried).filter_map(|one| one.pause.until()).min()
    }

    /// Puts keys back that were tried and not removed.
    pub(super) fn put_back(&mut self, rule: RuleId, keys: &KeySet) {
        if let Some(refusal) = self.by_rule.get_mut(&rule) {
            refusal.keys.merge(keys);
        }
    }

    /// A try is over. If nothing is refused any more, gives what waited for it, with its hold; else
    /// the hold alone, which goes on holding, and the next try comes later.
    pub(super) fn tried(
        &mut self,
        rule: RuleId,
        now: Instant,
    ) -> Option<(Hold, Option<Vec<Member>>)> {
        let refusal = self.by_rule.get_mut(&rule)?;
        if refusal.keys.is_empty() {
            let refusal = self.by_rule.remove(&rule)?;
            return Some((refusal.hold, Some(refusal.members)));
        }
        (refusal.is_tried, refusal.tried_bytes) = (false, 0);
        refusal.pause.failed(now);
        Some((refusal.hold, None))
    }

    /// A try found no answer: it is made again when there is a connection.
    pub(super) fn not_tried(&mut self, rule: RuleId, keys: &KeySet, now: Instant) {
        self.put_back(rule, keys);
        if let Some(refusal) = self.by_rule.get_mut(&rule) {
            (refusal.is_tried, refusal.tried_bytes) = (false, 0);
            refusal.pause.until = Some(now);
        }
    }

    /// All of it is tried next.
    pub(super) fn soon(&mut self, now: Instant) {
        for refusal in self.by_rule.values_mut().filter(|refusal| !refusal.is_tried) {
            refusal.pause.until = Some(now);
        }
    }

    /// Gives the members that wait for refused keys, rule by rule.
    pub(super) fn members(&mut self) -> impl Iterator<Item = &mut Vec<Member>> {
        self.by_rule.values_mut().map(|refusal| &mut refusal.members)
    }

    /// How much is refused of a rule: exact keys and patterns.
    pub(super) fn sizes(&self, rule: RuleId) -> (usize, usize) {
        let keys = self.by_rule.get(&rule).map(|refusal| &refusal.keys);
        keys.map_or((0, 0), |keys| {
            let is_scanned = |(_, item): &(RuleId, Item<'_>)| item.reach() == Reach::Scanned;
            let scanned = keys.items().filter(is_scanned).count();
            let named = keys.exact_len() + keys.items_len() - scanned;
            (named, keys.patterns().count() + scanned)
        })
    }
}

/// Tries to remove what was refused.
///
/// # Errors
///
/// The first error of the node that is about more than these keys.
pub(super) async fn retry<N: Node>(node: &N, retry: &Retry) -> Result<Tried, Error> {
    let mut tally = Tally::default();
    if retry.keys.exact_len() > 0 {
        let keys = retry.keys.exact().collect();
        let (found, outcome) = unlink::unlink(node, keys, Search::Thorough).await;
        outcome?;
        tally = found;
    }
    remove_direct(node, &[&retry.keys], &mut tally).await?;
    let mut with_pass = retry.keys.has_patterns();
    if with_pass && !retry.with_pass {
        let samples = retry.samples.of_patterns(&retry.keys);
        let samples: Vec<&[u8]> = samples.iter().map(|key| &**key).collect();
        let mut refused = Refused::new();
        let removed = unlink::one_by_one(node, &samples, Search::Thorough, &mut refused).await?;
        tally.add(retry.rule, removed, 0);
        with_pass = refused.len() < samples.len() || may_look_inside(node, &retry.keys).await?;
    }
    Ok(Tried { tally, with_pass })
}

/// Whether the user may do what items ask for in a key that their pattern matches.
async fn may_look_inside<N: Node>(node: &N, keys: &KeySet) -> Result<bool, Error> {
    let own = |pattern: &[u8]| Pattern::parse(pattern).own_key().unwrap_or_default();
    for (_, item) in keys.items().filter(|(_, item)| item.reach() == Reach::Scanned) {
        let (key, field) = (own(item.key()), own(item.field()));
        let verb = match item.kind() {
            ItemKind::Field => Verb::Hdel(vec![&field]),
            ItemKind::Tag => Verb::Type,
        };
        let answers = node.act(&[Act { key: &key, verb }]).await?;
        if !matches!(answers.first(), Some(Answer::Forbidden)) {
            return Ok(true);
        }
    }
    Ok(false)
}
