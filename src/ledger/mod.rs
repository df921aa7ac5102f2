//! The LSN that is safe to confirm.
//!
//! Takes: the order of the stream (BEGIN or a block, COMMIT, keepalive); and of each target what is
//! [`Held`], each [`Swept`], and how far its watermark covers. Gives: the [`Lsn`] below which every
//! key is removed and acknowledged, for each target, up to which its watermark may be written; and
//! the least that all of them cover, which may be confirmed. Never knows: sockets, keys, time.
//! Invariants (I2): the LSN never falls; it never reaches the end of a transaction in flight or
//! held; a keepalive counts only when nothing is in flight or held, and a half-received transaction
//! or block is in flight.
//!
//! Each target has a side of its own: a transaction is complete when it is on every side. One that
//! is slow or absent holds back what is confirmed, and the watermark of no other.
//!
//! Only transactions in flight are kept: each with the end of the one before it, which is the
//! furthest that may be confirmed while it is the oldest. So a transaction that waits for hours
//! (I3) costs one entry, whatever is committed after it (I6). In flight is what waits for its first
//! removal; what waits for more is held with all that waits for the same, and of those only the
//! oldest counts. So a replica that is gone for hours costs one entry, too.

use std::collections::BTreeMap;

use crate::config::TargetId;
use crate::lsn::Lsn;
use crate::settle::{Held, Hold};
use crate::sweep::Swept;

#[cfg(test)]
mod tests;

/// The transactions between COMMIT received and the last of their removals.
#[derive(Debug)]
pub struct Ledger {
    /// One for each target.
    sides: Vec<Side>,
    /// Whether BEGIN was received and its COMMIT was not, or a block and not its end.
    receiving: bool,
    /// Everything that ends here or before was received.
    received: Lsn,
}

/// The part of a ledger for one target: transactions whose keys it has still to remove.
#[derive(Debug, Default)]
struct Side {
    /// End LSN of each transaction in flight, with what may be confirmed while it is the oldest.
    in_flight: BTreeMap<Lsn, Lsn>,
    /// Each hold, with what may be confirmed while it holds.
    held: BTreeMap<Hold, Lsn>,
    /// Up to where its watermark covers; zero while that is not known.
    covered: Lsn,
}

impl Ledger {
    /// A ledger of so many targets, for a stream that starts at `start`, the slot's
    /// `confirmed_flush_lsn`.
    #[must_use]
    pub fn new(start: Lsn, targets: usize) -> Ledger {
        let sides = TargetId::first(targets).map(|_| Side::default()).collect();
        Ledger { sides, receiving: false, received: start }
    }

    /// BEGIN or a block arrived: from here to COMMIT or the block's end no keepalive counts.
    pub fn begin(&mut self) {
        self.receiving = true;
    }

    /// The end of a block arrived, of a transaction that may still run. What was sent of it holds
    /// nothing back: its commit ends later than anything that a keepalive between two blocks tells,
    /// and until that end is confirmed Postgres sends the transaction again from its beginning
    /// (`SnapBuildXactNeedsSkip` compares the commit's LSN, and `restart_lsn` stays before its
    /// first change).
    pub fn pause(&mut self) {
        self.receiving = false;
    }

    /// COMMIT arrived, its commit record ends at `end_lsn`: the transaction is in flight until
    /// every target has [advanced](Ledger::advance) over it.
    pub fn open(&mut self, end_lsn: Lsn) {
        self.receiving = false;
        for side in &mut self.sides {
            side.in_flight.insert(end_lsn, self.received);
        }
        self.received = self.received.max(end_lsn);
    }

    /// Something is held back by a target from now on. A hold of what is no longer in flight or
    /// held there, nothing that waits, holds nothing.
    pub fn hold(&mut self, target: TargetId, held: &Held) {
        if let Some(side) = self.sides.get_mut(target.place()) {
            side.hold(held);
        }
    }

    /// A target has removed the keys of these transactions, and of all that these held, which is
    /// acknowledged.
    pub fn advance(&mut self, target: TargetId, swept: &Swept) {
        let Some(side) = self.sides.get_mut(target.place()) else { return };
        swept.end_lsns().iter().for_each(|end_lsn| side.close(*end_lsn));
        for hold in swept.holds() {
            side.held.remove(hold);
        }
    }

    /// A transaction that asks for no removal is complete as soon as it is received.
    pub fn skip(&mut self, end_lsn: Lsn) {
        self.receiving = false;
        self.received = self.received.max(end_lsn);
    }

    /// A keepalive said that everything before `wal_end` was sent. Counts only when nothing is in
    /// flight or held.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        if !self.receiving && self.is_clear() {
            self.received = self.received.max(wal_end);
        }
    }

    /// The watermark of a target stands at `lsn`: it vouches for everything up to there.
    pub fn cover(&mut self, target: TargetId, lsn: Lsn) {
        if let Some(side) = self.sides.get_mut(target.place()) {
            side.covered = lsn;
        }
    }

    /// Forgets what the watermark of a target says: it is not known any more, or not to be
    /// believed.
    pub fn uncover(&mut self, target: TargetId) {
        self.cover(target, Lsn::ZERO);
    }

    /// The furthest LSN up to which a target has nothing left to remove: its watermark may say so.
    #[must_use]
    pub fn safe_of(&self, target: TargetId) -> Lsn {
        self.sides.get(target.place()).map_or(self.received, |side| side.safe(self.received))
    }

    /// The end of the latest transaction that was received, or what lies behind it and holds none.
    #[must_use]
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// The furthest LSN up to which no target has anything left to remove.
    #[must_use]
    pub fn safe(&self) -> Lsn {
        self.sides.iter().map(|side| side.safe(self.received)).min().unwrap_or(self.received)
    }

    /// The furthest LSN that may be confirmed to Postgres: the least that a target's watermark
    /// covers. A watermark may be ahead of this session's stream: what lies between is sent again,
    /// and removed again before it is confirmed.
    #[must_use]
    pub fn confirmable(&self) -> Lsn {
        let covered = self.sides.iter().map(|side| side.covered).min();
        covered.unwrap_or(Lsn::ZERO).min(self.safe())
    }

    /// How many transactions are received whole, and their keys not yet removed for the first time;
    /// of the target that has most of them.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.sides.iter().map(|side| side.in_flight.len()).max().unwrap_or(0)
    }

    /// Whether every transaction that was received whole is complete.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.sides.iter().all(|side| side.in_flight.is_empty() && side.held.is_empty())
    }
}

impl Side {
    fn hold(&mut self, held: &Held) {
        let in_flight = held.end_lsns.iter().filter_map(|end_lsn| self.in_flight.get(end_lsn));
        let others = held.holds.iter().filter_map(|hold| self.held.get(hold));
        if let Some(before) = in_flight.chain(others).min().copied() {
            let entry = self.held.entry(held.by).or_insert(before);
            *entry = before.min(*entry);
        }
        if held.moved {
            held.end_lsns.iter().for_each(|end_lsn| self.close(*end_lsn));
            let others = held.holds.iter().filter(|hold| **hold != held.by);
            for hold in others {
                self.held.remove(hold);
            }
        }
    }

    fn safe(&self, received: Lsn) -> Lsn {
        let oldest = self.in_flight.first_key_value().map(|(_, before)| before);
        self.held.values().chain(oldest).min().copied().unwrap_or(received)
    }

    fn close(&mut self, end_lsn: Lsn) {
        let Some(before) = self.in_flight.remove(&end_lsn) else { return };
        // The next one's predecessor is now complete as far as the removed one's was, and the
        // removed one itself; only when it was the oldest does that move what may be confirmed.
        // A younger one keeps its own, later, predecessor.
        debug_assert!(before < end_lsn, "a transaction ends after its predecessor");
    }
}
