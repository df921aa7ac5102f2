//! Jobs of the sweeper: each is a set of keys, and who waits for their removal.

use std::rc::Rc;

use tokio::time::Instant;

use super::redis::inside::RefusedItems;
use super::redis::unlink::Refused;
use super::second::Since;
use crate::config::TargetId;
use crate::gather::Transaction;
use crate::keys::{KeySet, RuleId};
use crate::lsn::Lsn;
use crate::settle::{Cause, Held, Hold, Visible};
use crate::telemetry::trail::{Took, Waited};

/// Keys to remove, with everything that waits for it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) members: Vec<Member>,
    pub(super) keys: KeySet,
    pub(super) round: Round,
    /// The furthest end LSN among what the keys were removed for.
    pub(super) covers: Lsn,
    /// From before its first removal on.
    pub(super) since: Since,
    /// Since when readers could see the oldest of what it removes for the first time, and a rule of
    /// that.
    pub(super) oldest: Option<(Instant, RuleId)>,
    /// Keys that its removals took so far, with those of the jobs that shared them.
    pub(super) took: Took,
}

/// Which removal of its keys a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// The first.
    First,
    /// One before the first, of a transaction that is still being sent: nothing waits for it, its
    /// keys come again.
    Early,
    /// The second, after the refill window (I8).
    Second,
    /// The first on a Redis that may have lost the real one (I7).
    Again,
    /// The first since a standby shows what the keys were removed for.
    Replayed,
}

impl Round {
    /// Whether what is found was written after a removal that was right for its time.
    pub(super) fn takes_refills(self) -> bool {
        matches!(self, Round::Second | Round::Replayed)
    }

    /// Whether readers wait for it: neither were the keys removed before, nor do they come again.
    pub(super) fn is_urgent(self) -> bool {
        !matches!(self, Round::Second | Round::Early)
    }

    /// Whether it is the last one of its keys, so that sets need not name them any more.
    pub(super) fn is_last(self, has_second: bool) -> bool {
        self == Round::Second || !has_second && self != Round::Early
    }

    /// The reason under which `walsweep_sweeps_total` counts a pass for such jobs.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Round::First | Round::Early => "rule",
            Round::Again => "again",
            Round::Replayed => "replayed",
            Round::Second => "refill",
        }
    }
}

/// Something that waits for a removal.
///
/// What is counted may be shared with the keys that Redis refused of it: whoever is done last has
/// the only one of its tokens.
#[derive(Clone, Debug)]
pub(super) enum Member {
    /// A transaction in flight; `whole` unless Redis refused some of its keys.
    Transaction { transaction: Transaction, visible_at: Instant, whole: bool },
    /// A sweep of everything; if it does not settle, it waits for a removal after the standbys'
    /// replay.
    Resync { last: bool, settles: bool, token: Rc<()> },
    /// Keys that standbys have replayed, with so many closing sweeps of everything.
    Replayed { resyncs: u32, token: Rc<()> },
    /// The second removal of a part of a closing sweep, whose other part Redis refused: that one
    /// goes on as the sweep, and may be done sooner.
    Rest { token: Rc<()> },
    /// A removal that Redis may have lost is made again.
    Repeat { token: Rc<()> },
    /// Everything that a hold holds; `shared` if it waits for something else besides.
    Held { hold: Hold, shared: bool },
    /// Keys of a rule that Redis refused are tried again.
    Retry(RuleId),
}

impl Member {
    /// Whether it is a sweep of everything that stays owed after its removal.
    pub(super) fn is_owed_resync(&self) -> bool {
        matches!(self, Member::Resync { last: true, settles: false, .. })
    }

    /// Whether the watermark waits for its second removal.
    pub(super) fn closes(&self) -> bool {
        match self {
            Member::Resync { last, .. } => *last,
            Member::Replayed { resyncs, .. } => *resyncs > 0,
            Member::Rest { .. } => true,
            Member::Repeat { .. }
            | Member::Transaction { .. }
            | Member::Held { .. }
            | Member::Retry(_) => false,
        }
    }

    /// Whether somebody else has a part of it, and goes on with it later.
    pub(super) fn is_shared(&self) -> bool {
        match self {
            Member::Resync { token, .. }
            | Member::Replayed { token, .. }
            | Member::Rest { token }
            | Member::Repeat { token } => Rc::strong_count(token) > 1,
            Member::Transaction { .. } | Member::Held { .. } | Member::Retry(_) => false,
        }
    }

    /// Gives a copy for another target; the two share nothing.
    fn elsewhere(&self) -> Member {
        let token = Rc::new(());
        match self {
            Member::Resync { last, settles, .. } => {
                Member::Resync { last: *last, settles: *settles, token }
            }
            Member::Replayed { resyncs, .. } => Member::Replayed { resyncs: *resyncs, token },
            Member::Rest { .. } => Member::Rest { token },
            Member::Repeat { .. } => Member::Repeat { token },
            Member::Transaction { .. } | Member::Held { .. } | Member::Retry(_) => self.clone(),
        }
    }

    /// The part of it that goes with keys that Redis refused; `None` if a hold says it all: what
    /// is refused may be so for days, while standbys replay all the time (I6).
    pub(super) fn part(&self) -> Option<Member> {
        match self {
            Member::Replayed { resyncs: 0, .. }
            | Member::Transaction { .. }
            | Member::Held { .. }
            | Member::Retry(_) => None,
            Member::Resync { .. }
            | Member::Replayed { .. }
            | Member::Rest { .. }
            | Member::Repeat { .. } => Some(self.clone()),
        }
    }
}

impl Job {
    /// The removal that `visible` asks for.
    pub(super) fn first(visible: Visible) -> Job {
        let (settles, position) = (visible.settles(), visible.position());
        let (cause, keys, visible_at) = visible.into_parts();
        let token = Rc::new(());
        match cause {
            Cause::Transaction(transaction) => {
                let covers = transaction.end_lsn;
                let member = Member::Transaction { transaction, visible_at, whole: true };
                let oldest = rule_of(&keys).map(|rule| (visible_at, rule));
                Job { oldest, ..Job::new(vec![member], keys, Round::First, covers) }
            }
            Cause::Resync { last } => {
                let member = Member::Resync { last, settles, token };
                Job::new(vec![member], keys, Round::First, Lsn::ZERO)
            }
            Cause::Early(_) => Job::new(Vec::new(), keys, Round::Early, Lsn::ZERO),
            Cause::Replayed(replayed) => {
                let resyncs = replayed.resyncs;
                let mut members = vec![Member::Replayed { resyncs, token }];
                members.extend(replayed.hold.map(|hold| Member::Held { hold, shared: false }));
                Job::new(members, keys, Round::Replayed, position)
            }
        }
    }

    /// Gives a copy for a target, with the keys that go there, before anything is done with either.
    pub(super) fn elsewhere(&self, target: TargetId) -> Job {
        let members = self.members.iter().map(Member::elsewhere).collect();
        let keys = self.keys.of_target(target);
        Job { oldest: self.oldest, ..Job::new(members, keys, self.round, self.covers) }
    }

    pub(super) fn new(members: Vec<Member>, keys: KeySet, round: Round, covers: Lsn) -> Job {
        Job {
            members,
            keys,
            round,
            covers,
            since: Since::default(),
            oldest: None,
            took: Took::default(),
        }
    }

    /// Whether its keys come again, so that nothing waits for it.
    pub(super) fn comes_again(&self) -> bool {
        self.round == Round::Early
    }

    /// Whether a sweep of everything is part of it.
    pub(super) fn is_resync(&self) -> bool {
        self.members.iter().any(|member| matches!(member, Member::Resync { .. }))
    }

    /// Takes in a job of the same round, except for its keys.
    pub(super) fn absorb(&mut self, other: Job) -> KeySet {
        self.members.extend(other.members);
        self.covers = self.covers.max(other.covers);
        self.since.join(other.since);
        self.oldest = older(self.oldest, other.oldest);
        other.keys
    }

    /// A removal that it shared with so many jobs, all in all, took this much.
    pub(super) fn takes(&mut self, (removed, absent, jobs): (u64, u64, usize)) {
        self.took.removed += removed;
        self.took.absent += absent;
        self.took.shared_by = self.took.shared_by.max(jobs as u64);
    }

    /// Those that wait for it, as the trail knows them.
    pub(super) fn waited(&self) -> impl Iterator<Item = Waited> {
        self.members.iter().filter_map(|member| match member {
            Member::Transaction { transaction, .. } => {
                Some(Waited::Transaction(transaction.end_lsn))
            }
            Member::Held { hold, shared: false } => Some(Waited::Hold(hold.number())),
            _ => None,
        })
    }

    /// All that waits for it.
    pub(super) fn waits(&self) -> Waits {
        let mut waits = Waits::default();
        for member in &self.members {
            match member {
                Member::Transaction { transaction, .. } => waits.end_lsns.push(transaction.end_lsn),
                Member::Held { hold, shared: false } => waits.holds.push(*hold),
                Member::Held { hold, shared: true } => waits.shared.push(*hold),
                _ => {}
            }
        }
        waits
    }
}

/// Transactions in flight, and what is held, that wait for a removal.
#[derive(Debug, Default)]
pub(super) struct Waits {
    end_lsns: Vec<Lsn>,
    holds: Vec<Hold>,
    /// Holds that go on holding, besides.
    shared: Vec<Hold>,
}

impl Waits {
    /// `by` holds it as well.
    pub(super) fn also(mut self, by: Hold) -> Held {
        self.holds.append(&mut self.shared);
        Held { by, end_lsns: self.end_lsns, holds: self.holds, moved: false }
    }

    /// `by` holds it instead.
    pub(super) fn instead(self, by: Hold) -> [Held; 2] {
        let shared = Held { by, end_lsns: Vec::new(), holds: self.shared, moved: false };
        [Held { by, end_lsns: self.end_lsns, holds: self.holds, moved: true }, shared]
    }
}

/// A rule that keys belong to; the first of its patterns, if they have any.
pub(super) fn rule_of(keys: &KeySet) -> Option<RuleId> {
    let pattern = keys.patterns().next().map(|(rule, _)| rule);
    let exact = || keys.exact().next().map(|(rule, _)| rule);
    pattern.or_else(exact).or_else(|| keys.items().next().map(|(rule, _)| rule))
}

/// The older of two that may not be there.
pub(super) fn older(
    one: Option<(Instant, RuleId)>,
    other: Option<(Instant, RuleId)>,
) -> Option<(Instant, RuleId)> {
    one.into_iter().chain(other).min_by_key(|(since, _)| *since)
}

/// Keys removed and keys not found, by rule, and what was refused.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Whether keys that patterns match are removed as well: no pass is needed then.
    pub(super) with_patterns: bool,
    /// Keys that the user may not remove.
    pub(super) refused: Refused,
    /// Items that the user may not remove, or that are of another type.
    pub(super) refused_items: RefusedItems,
    rows: Vec<(RuleId, u64, u64)>,
}

impl Tally {
    pub(super) fn add(&mut self, rule: RuleId, removed: u64, absent: u64) {
        match self.rows.iter_mut().find(|row| row.0 == rule) {
            Some(row) => {
                row.1 += removed;
                row.2 += absent;
            }
            None => self.rows.push((rule, removed, absent)),
        }
    }

    /// Keys removed and keys not found, of all rules.
    pub(super) fn sums(&self) -> (u64, u64) {
        self.rows.iter().fold((0, 0), |(removed, absent), row| (removed + row.1, absent + row.2))
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = (RuleId, u64, u64)> {
        self.rows.iter().copied()
    }

    /// Without the keys that were not there, which may have been before.
    pub(super) fn without_absent(mut self) -> Tally {
        self.rows.iter_mut().for_each(|row| row.2 = 0);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::Member;
    use crate::keys::RuleId;
    use crate::settle::Hold;

    #[test]
    fn nothing_but_sweeps_and_repetitions_is_kept_with_refused_keys() {
        let (hold, token) = (Hold::new_name(), Rc::new(()));
        for (member, is_kept) in [
            (Member::Resync { last: true, settles: true, token: Rc::clone(&token) }, true),
            (Member::Replayed { resyncs: 1, token: Rc::clone(&token) }, true),
            (Member::Rest { token: Rc::clone(&token) }, true),
            (Member::Repeat { token: Rc::clone(&token) }, true),
            (Member::Replayed { resyncs: 0, token }, false),
            (Member::Held { hold, shared: false }, false),
            (Member::Retry(RuleId(0)), false),
        ] {
            assert_eq!(member.part().is_some(), is_kept, "{member:?}");
        }
    }
}
