//! What the sweeper works on: a set of keys, and who waits for their removal.

use tokio::time::Instant;

use super::observe::Mark;
use crate::gather::Transaction;
use crate::keys::{KeySet, RuleId};
use crate::lsn::Lsn;
use crate::settle::{Cause, Replayed, Visible};

/// Keys to remove, with everything that waits for it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) members: Vec<Member>,
    pub(super) keys: KeySet,
    pub(super) round: Round,
    /// Not merged with other jobs, because Redis refused one that it was part of.
    pub(super) alone: bool,
    /// How often Redis refused it.
    pub(super) refusals: u32,
    /// The furthest end LSN among what the keys were removed for.
    pub(super) covers: Lsn,
    /// From before its first removal on, where writes are observed.
    pub(super) since: Option<Mark>,
}

/// Which removal of its keys a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// The first.
    First,
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
}

/// Something that waits for a removal.
///
/// What is not settled by its removal waits for a removal after the standbys' replay.
#[derive(Debug)]
pub(super) enum Member {
    /// A transaction, still to be reported as swept.
    Transaction { transaction: Transaction, visible_at: Instant, settles: bool },
    /// A sweep of everything.
    Resync { last: bool, settles: bool },
    /// A transaction whose keys come again when all of it was received.
    Early,
    /// What every standby has replayed, still to be reported.
    Replayed(Replayed),
}

impl Member {
    /// Whether it is a sweep of everything that stays owed after its removal.
    pub(super) fn is_owed_resync(&self) -> bool {
        matches!(self, Member::Resync { last: true, settles: false })
    }
}

impl Job {
    pub(super) fn first(visible: Visible) -> Job {
        let (settles, position) = (visible.settles(), visible.position());
        let (cause, keys, visible_at) = visible.into_parts();
        let (member, round, covers) = match cause {
            Cause::Transaction(transaction) => {
                let covers = transaction.end_lsn;
                (Member::Transaction { transaction, visible_at, settles }, Round::First, covers)
            }
            Cause::Resync { last } => (Member::Resync { last, settles }, Round::First, Lsn::ZERO),
            Cause::Early(_) => (Member::Early, Round::First, Lsn::ZERO),
            Cause::Replayed(replayed) => (Member::Replayed(replayed), Round::Replayed, position),
        };
        Job::new(vec![member], keys, round, covers)
    }

    pub(super) fn new(members: Vec<Member>, keys: KeySet, round: Round, covers: Lsn) -> Job {
        Job { members, keys, round, alone: false, refusals: 0, covers, since: None }
    }

    /// Whether nothing waits for it: its keys come again, and have their second removal then.
    pub(super) fn is_early(&self) -> bool {
        matches!(self.members.as_slice(), [Member::Early])
    }

    /// Whether a sweep of everything is part of it.
    pub(super) fn is_resync(&self) -> bool {
        self.members.iter().any(|member| matches!(member, Member::Resync { .. }))
    }
}

/// Keys removed and keys not found, by rule.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// What patterns match is removed as well: no pass is needed.
    pub(super) with_patterns: bool,
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

    pub(super) fn rows(&self) -> impl Iterator<Item = (RuleId, u64, u64)> {
        self.rows.iter().copied()
    }

    pub(super) fn removed(&self) -> u64 {
        self.rows.iter().map(|row| row.1).sum()
    }
}
