//! The LSN that is safe to confirm.
//!
//! Takes: the order of the stream (BEGIN or a block, COMMIT, keepalive) and each [`Swept`]. Gives:
//! the [`Lsn`] below which every key is removed and acknowledged. Never knows: sockets, keys, time.
//! Invariants (I2): the LSN never falls; it never reaches the end of a transaction in flight; a
//! keepalive counts only when nothing is in flight, and a half-received transaction or block is in
//! flight.
//!
//! Only transactions in flight are kept: each with the end of the one before it, which is the
//! furthest that may be confirmed while it is the oldest. So a transaction that waits for hours
//! (I3) costs one entry, whatever is committed after it (I6).

use std::collections::BTreeMap;

use crate::lsn::Lsn;
use crate::sweep::Swept;

#[cfg(test)]
mod tests;

/// The transactions between COMMIT received and keys removed.
#[derive(Debug)]
pub struct Ledger {
    /// End LSN of each transaction in flight, with what may be confirmed while it is the oldest.
    in_flight: BTreeMap<Lsn, Lsn>,
    /// Whether BEGIN was received and its COMMIT was not, or a block and not its end.
    receiving: bool,
    /// Everything that ends here or before was received.
    received: Lsn,
}

impl Ledger {
    /// A ledger for a stream that starts at `start`, the slot's `confirmed_flush_lsn`.
    #[must_use]
    pub fn new(start: Lsn) -> Ledger {
        Ledger { in_flight: BTreeMap::new(), receiving: false, received: start }
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

    /// The keys of these transactions are removed and acknowledged.
    pub fn advance(&mut self, swept: &Swept) {
        for end_lsn in swept.end_lsns() {
            self.close(*end_lsn);
        }
    }

    /// A transaction that asks for no removal is complete as soon as it is received.
    pub fn skip(&mut self, end_lsn: Lsn) {
        self.open(end_lsn);
        self.close(end_lsn);
    }

    /// A keepalive said that everything before `wal_end` was sent. Counts only when nothing is in
    /// flight.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        if !self.receiving && self.in_flight.is_empty() {
            self.received = self.received.max(wal_end);
        }
    }

    /// The furthest LSN that may be confirmed now.
    #[must_use]
    pub fn safe(&self) -> Lsn {
        self.in_flight.first_key_value().map_or(self.received, |(_, before)| *before)
    }

    /// How many transactions are received whole and not yet complete.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn close(&mut self, end_lsn: Lsn) {
        let Some(before) = self.in_flight.remove(&end_lsn) else { return };
        // The next one's predecessor is now complete as far as the removed one's was, and the
        // removed one itself; only when it was the oldest does that move what may be confirmed.
        // A younger one keeps its own, later, predecessor.
        debug_assert!(before < end_lsn, "a transaction ends after its predecessor");
    }
}
