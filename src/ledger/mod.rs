//! The LSN that is safe to confirm.
//!
//! Takes: the order of the stream (BEGIN or a block, COMMIT, keepalive), what is [`Held`], and each
//! [`Swept`]. Gives: the [`Lsn`] below which every key is removed and acknowledged. Never knows:
//! sockets, keys, time. Invariants (I2): the LSN never falls; it never reaches the end of a
//! transaction in flight or held; a keepalive counts only when nothing is in flight or held, and a
//! half-received transaction or block is in flight.
//!
//! Only transactions in flight are kept: each with the end of the one before it, which is the
//! furthest that may be confirmed while it is the oldest. So a transaction that waits for hours
//! (I3) costs one entry, whatever is committed after it (I6). In flight is what waits for its first
//! removal; what waits for more is held with all that waits for the same, and of those only the
//! oldest counts. So a replica that is gone for hours costs one entry, too.

use std::collections::BTreeMap;

use crate::lsn::Lsn;
use crate::settle::{Held, Hold};
use crate::sweep::Swept;

#[cfg(test)]
mod tests;

/// The transactions between COMMIT received and the last of their removals.
#[derive(Debug)]
pub struct Ledger {
    /// End LSN of each transaction in flight, with what may be confirmed while it is the oldest.
    in_flight: BTreeMap<Lsn, Lsn>,
    /// What may be confirmed while each of these holds.
    held: BTreeMap<Hold, Lsn>,
    /// Whether BEGIN was received and its COMMIT was not, or a block and not its end.
    receiving: bool,
    /// Everything that ends here or before was received.
    received: Lsn,
}

impl Ledger {
    /// A ledger for a stream that starts at `start`, the slot's `confirmed_flush_lsn`.
    #[must_use]
    pub fn new(start: Lsn) -> Ledger {
        let (in_flight, held) = (BTreeMap::new(), BTreeMap::new());
        Ledger { in_flight, held, receiving: false, received: start }
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
    /// [`advance`](Ledger::advance).
    pub fn open(&mut self, end_lsn: Lsn) {
        self.receiving = false;
        self.in_flight.insert(end_lsn, self.received);
        self.received = self.received.max(end_lsn);
    }

    /// Something is held back from now on. A hold of what is no longer in flight or held, nothing
    /// that waits, holds nothing.
    pub fn hold(&mut self, held: &Held) {
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

    /// The keys of these transactions, and of all that these held, are removed and acknowledged.
    pub fn advance(&mut self, swept: &Swept) {
        swept.end_lsns().iter().for_each(|end_lsn| self.close(*end_lsn));
        for hold in swept.holds() {
            self.held.remove(hold);
        }
    }

    /// A transaction that asks for no removal is complete as soon as it is received.
    pub fn skip(&mut self, end_lsn: Lsn) {
        self.open(end_lsn);
        self.close(end_lsn);
    }

    /// A keepalive said that everything before `wal_end` was sent. Counts only when nothing is in
    /// flight or held.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        if !self.receiving && self.is_clear() {
            self.received = self.received.max(wal_end);
        }
    }

    /// The furthest LSN that may be confirmed now.
    #[must_use]
    pub fn safe(&self) -> Lsn {
        let oldest = self.in_flight.first_key_value().map(|(_, before)| before);
        self.held.values().chain(oldest).min().copied().unwrap_or(self.received)
    }

    /// How many transactions are received whole, and their keys not yet removed for the first time.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether every transaction that was received whole is complete.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.in_flight.is_empty() && self.held.is_empty()
    }

    fn close(&mut self, end_lsn: Lsn) {
        let Some(before) = self.in_flight.remove(&end_lsn) else { return };
        // The next one's predecessor is now complete as far as the removed one's was, and the
        // removed one itself; only when it was the oldest does that move what may be confirmed.
        // A younger one keeps its own, later, predecessor.
        debug_assert!(before < end_lsn, "a transaction ends after its predecessor");
    }
}
