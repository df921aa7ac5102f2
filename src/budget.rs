//! The memory that grows with the load, in one table (I6).
//!
//! Takes: how many targets there are. Gives: the share of each place where keys, rows or names may
//! wait, in bytes, and the [`Memory`] that counts all key sets, wherever they are. Never knows: who
//! waits, and why.
//!
//! At its share a place gives way by itself, and stops nobody else: key sets become their rules'
//! patterns, answers are asked for again, a second removal takes all keys. What is on its way
//! waits for nothing but room, so it has no share: the stream reads no further while a set more
//! would not fit beside what all others may hold. The rest waits in Postgres, which has a disk.
//!
//! The shares are [`ALL`] together. Beside them stand the program itself, some 12 MiB, and what
//! grows with the schema and the configuration: rules, tables, statements.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

const MIB: usize = 1 << 20;

/// All of it, bytes.
pub const ALL: usize = 64 * MIB;

/// What is read: the socket's buffer, a message, the commands of one removal, pages of metrics.
pub const READING: usize = 3 * MIB;

/// One key set at its limit, in all targets: it must be possible to pass one on, whatever waits.
pub const SET: usize = 6 * MIB;

/// Keys of transactions that the server sends while they run, beside the one that is read.
pub const IN_PROGRESS: usize = 8 * MIB;

/// Keys of what is not visible.
pub const GATE: usize = 3 * MIB;

/// Keys that wait for rows, and rows that wait for others.
pub const LOOKUPS: usize = 4 * MIB;

/// Rows that are being read.
pub const ROWS: usize = 6 * MIB;

/// Answers of lookups that are kept.
pub const ANSWERS: usize = 3 * MIB;

/// Rows that were read for a transaction which is still being sent.
pub const AHEAD: usize = MIB;

/// Copies of kept answers and of those rows, for the keys that need them now.
pub const ANSWERS_IN_USE: usize = ANSWERS + AHEAD;

/// Keys that wait for standbys which readers use.
pub const REPLAY: usize = 3 * MIB;

/// All targets together.
pub const TARGETS: usize = {
    let OfTarget { passes, replayed, refill, kept, ring, refused, names, backlog } =
        OfTarget::of(1);
    passes + replayed + refill + kept + ring + refused + names + backlog
};

/// What one target may hold of keys, bytes, beside what is on its way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfTarget {
    /// Keys that wait for a pass, or are in one.
    pub passes: usize,
    /// Keys that standbys have replayed.
    pub replayed: usize,
    /// Keys that wait for their second removal.
    pub refill: usize,
    /// Keys that are removed for good, and wait for the watermark.
    pub kept: usize,
    /// Keys that the watermark covers, for a Redis that goes back.
    pub ring: usize,
    /// Keys that Redis refuses.
    pub refused: usize,
    /// Names of keys that are written, where a second removal takes those alone.
    pub names: usize,
    /// What a target has no room for, where there are several.
    pub backlog: usize,
}

impl OfTarget {
    /// The share of each of so many targets.
    #[must_use]
    pub const fn of(targets: usize) -> OfTarget {
        let targets = if targets == 0 { 1 } else { targets };
        OfTarget {
            passes: 3 * MIB / targets,
            replayed: MIB / targets,
            refill: 6 * MIB / targets,
            kept: 3 * MIB / targets,
            ring: 3 * MIB / targets,
            refused: MIB / targets,
            names: 4 * MIB / targets,
            backlog: 2 * MIB / targets,
        }
    }
}

/// Keys that one channel between two stages holds, bytes; a larger set goes alone. Channels and
/// queues are what is on its way.
pub const CHANNEL: usize = 2 * MIB;

/// What is used of a key set at its limit, bytes, where there is one target. What it takes is a
/// quarter more, for room to grow, and what is remembered of rows before the transaction.
pub const SET_USED: usize = 4 * MIB;

/// What is no key set: it has a limit, and is not counted.
const UNCOUNTED: usize = READING + ROWS + ANSWERS + AHEAD + ANSWERS_IN_USE + OfTarget::of(1).names;

/// Key sets beyond this leave no room for another one, bytes.
const COUNTED_MAX: usize = ALL - UNCOUNTED - SET;

const _: () = assert!(
    READING
        + SET
        + IN_PROGRESS
        + GATE
        + LOOKUPS
        + ROWS
        + ANSWERS
        + AHEAD
        + ANSWERS_IN_USE
        + REPLAY
        + TARGETS
        == ALL,
    "the shares are all of it"
);

/// Counts the memory of key sets, and of rows that wait with them.
#[derive(Debug, Default)]
pub struct Memory {
    used: AtomicUsize,
    peak: AtomicUsize,
    freed: Notify,
}

/// Memory that somebody holds: counted as long as this lives. A clone counts as much again.
#[derive(Debug)]
pub struct Charge {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Memory {
    /// What is held now, bytes.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The most that was ever held, bytes.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// Whether another key set fits beside all that may wait.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.used() <= COUNTED_MAX
    }

    /// Waits until another key set fits. May be cancelled.
    pub async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            if self.has_room() {
                return;
            }
            freed.await;
        }
    }

    fn add(&self, bytes: usize) {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        self.peak.fetch_max(before + bytes, Ordering::Relaxed);
    }

    fn subtract(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        if before > COUNTED_MAX && before - bytes <= COUNTED_MAX {
            self.freed.notify_waiters();
        }
    }
}

impl Charge {
    /// Nothing yet.
    #[must_use]
    pub fn new(memory: &Arc<Memory>) -> Charge {
        Charge { memory: Arc::clone(memory), bytes: 0 }
    }

    /// Where it is counted.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// What is held, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// So much is held now, bytes.
    pub fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.memory.add(bytes - self.bytes);
        } else if bytes < self.bytes {
            self.memory.subtract(self.bytes - bytes);
        }
        self.bytes = bytes;
    }
}

impl Clone for Charge {
    fn clone(&self) -> Charge {
        let mut clone = Charge::new(&self.memory);
        clone.set(self.bytes);
        clone
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::{COUNTED_MAX, Charge, Memory, OfTarget, TARGETS};

    #[test]
    fn a_charge_counts_as_long_as_it_lives_and_each_clone_again() {
        let memory = Arc::new(Memory::default());
        let mut one = Charge::new(&memory);
        one.set(10);
        let other = one.clone();
        one.set(3);
        assert_eq!((memory.used(), memory.peak()), (13, 20));
        drop(other);
        drop(one);
        assert_eq!((memory.used(), memory.peak()), (0, 20));
    }

    #[test]
    fn who_waits_for_room_hears_of_it() {
        let memory = Arc::new(Memory::default());
        assert!(memory.room().now_or_never().is_some());
        let mut charge = Charge::new(&memory);
        charge.set(COUNTED_MAX + 1);
        let mut room = Box::pin(memory.room());
        assert!((&mut room).now_or_never().is_none());
        charge.set(COUNTED_MAX);
        assert!(room.now_or_never().is_some());
    }

    #[test]
    fn all_targets_together_hold_what_one_may() {
        for targets in 1..20 {
            let OfTarget { passes, replayed, refill, kept, ring, refused, names, backlog } =
                OfTarget::of(targets);
            let each = passes + replayed + refill + kept + ring + refused + names + backlog;
            assert!(each * targets <= TARGETS, "{targets}");
        }
    }
}
