//! The memory that grows with the load, in one table (I6).
//!
//! Takes: how many targets there are. Gives: the share of each place where keys, rows or names may
//! wait, in bytes, and the [`Memory`] that counts all key sets, wherever they are. Never knows: who
//! waits, and why.
//!
//! At its share a place gives way by itself, and stops nobody else: key sets become their rules'
//! patterns, answers are asked for again, a second removal takes all keys. Sets that are on their
//! way to Redis wait for nothing but room, and have one share together: the stream reads no further
//! while another set would not fit. The rest waits in Postgres, which has a disk. Sets that wait
//! for anything else stop no reading, for it may be what they wait for.
//!
//! The shares are [`ALL`] together. Beside them stand the program itself, some 12 MiB; the index of
//! live keys, whose memory the configuration names (`sweep.index_memory`); and what grows with the
//! schema and the configuration: rules, tables, statements, and a pattern for each key of a rule
//! that gave way, wherever one did.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

const MIB: usize = 1 << 20;

/// All of it, bytes.
pub const ALL: usize = 64 * MIB;

/// Memory for reading: the socket's buffer, a message, the commands of one removal, pages of
/// metrics and of the state for people.
pub const READING: usize = 3 * MIB;

/// Key sets on their way to Redis, in channels, queues and the removal that is under way.
pub const ON_THEIR_WAY: usize = 12 * MIB;

/// One key set at its limit. There is room for one more as long as the others on
/// their way leave it.
const SET: usize = 6 * MIB;

/// Keys of transactions that the server sends while they run, beside the one that is read.
pub const IN_PROGRESS: usize = 8 * MIB;

/// Keys of what is not visible.
pub const GATE: usize = 2 * MIB;

/// Keys that wait for rows, and rows that wait for others.
pub const LOOKUPS: usize = 4 * MIB;

/// Rows that are being read.
pub const ROWS: usize = 6 * MIB;

/// Answers of lookups that are kept.
pub const ANSWERS: usize = 2 * MIB;

/// Rows that were read for a transaction which is still being sent.
pub const AHEAD: usize = MIB;

/// Copies of kept answers and of those rows, for the keys that need them now.
pub const ANSWERS_IN_USE: usize = ANSWERS + AHEAD;

/// Keys that wait for standbys which readers use.
pub const REPLAY: usize = 2 * MIB;

/// Memory of the latest transactions.
pub const TRAIL: usize = 9 * MIB / 4;

/// Lines of the audit trail that are to be written.
pub const AUDIT: usize = MIB / 4;

/// All targets together.
pub const TARGETS: usize = {
    let OfTarget { passes, replayed, refill, kept, ring, refused, names, publish, backlog } =
        OfTarget::of(1);
    passes + replayed + refill + kept + ring + refused + names + publish + backlog
};

/// Memory of keys that one target may hold, bytes, beside what is on its way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfTarget {
    /// Keys that wait for a pass, or are in one; or whose items are read in pages.
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
    /// Messages that tell of removals.
    pub publish: usize,
    /// Keys that a target has no room for, where there are several targets.
    pub backlog: usize,
}

impl OfTarget {
    /// The share of each of so many targets.
    #[must_use]
    pub const fn of(targets: usize) -> OfTarget {
        let targets = if targets == 0 { 1 } else { targets };
        OfTarget {
            passes: 2 * MIB / targets,
            replayed: MIB / targets,
            refill: 6 * MIB / targets,
            kept: 2 * MIB / targets,
            ring: 3 * MIB / targets,
            publish: MIB / 2 / targets,
            refused: MIB / targets,
            names: 2 * MIB / targets,
            backlog: MIB / targets,
        }
    }

    /// The part of `passes` for what is read in pages, if there may be any, and the rest.
    #[must_use]
    pub const fn pages_and_passes(self, has_pages: bool) -> [usize; 2] {
        let pages = if has_pages { self.passes / 4 } else { 0 };
        [pages, self.passes - pages]
    }
}

/// Keys that one channel between two stages holds, bytes; a larger set goes alone. Channels and
/// queues are what is on its way.
pub const CHANNEL: usize = 2 * MIB;

/// Used memory of a key set at its limit, bytes; divided among targets, each of which has a copy.
/// The set takes a quarter more, for room to grow, and what is remembered of rows before the
/// transaction.
pub const SET_USED: usize = 4 * MIB;

/// Sets on their way beyond this leave no room for another one, bytes.
const MOVING_MAX: usize = ON_THEIR_WAY - SET;

const _: () = assert!(
    READING
        + ON_THEIR_WAY
        + IN_PROGRESS
        + GATE
        + LOOKUPS
        + ROWS
        + ANSWERS
        + AHEAD
        + ANSWERS_IN_USE
        + REPLAY
        + TRAIL
        + AUDIT
        + TARGETS
        == ALL,
    "the shares are all of it"
);

/// Counts the memory of key sets, and of rows that wait with them.
#[derive(Debug, Default)]
pub struct Memory {
    used: AtomicUsize,
    /// Of that, sets on their way.
    moving: AtomicUsize,
    freed: Notify,
}

/// Memory that somebody holds: counted as long as this lives. A clone counts as much again.
#[derive(Debug)]
pub struct Charge {
    memory: Arc<Memory>,
    bytes: usize,
    is_moving: bool,
}

impl Memory {
    /// Gives the bytes that are held now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether another key set may go on its way.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.moving.load(Ordering::Relaxed) <= MOVING_MAX
    }

    /// Waits until another key set may go on its way. May be cancelled.
    pub async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            if self.has_room() {
                return;
            }
            freed.await;
        }
    }

    fn moves_less(&self, bytes: usize) {
        let before = self.moving.fetch_sub(bytes, Ordering::Relaxed);
        if before > MOVING_MAX && before - bytes <= MOVING_MAX {
            self.freed.notify_waiters();
        }
    }
}

impl Charge {
    /// Nothing yet, and it waits.
    #[must_use]
    pub fn new(memory: &Arc<Memory>) -> Charge {
        Charge { memory: Arc::clone(memory), bytes: 0, is_moving: false }
    }

    /// Gives the place where it is counted.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Gives the bytes that are held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// So much is held now, bytes.
    pub fn set(&mut self, bytes: usize) {
        let Charge { memory, bytes: before, is_moving } = self;
        if bytes > *before {
            memory.used.fetch_add(bytes - *before, Ordering::Relaxed);
            if *is_moving {
                memory.moving.fetch_add(bytes - *before, Ordering::Relaxed);
            }
        } else if bytes < *before {
            memory.used.fetch_sub(*before - bytes, Ordering::Relaxed);
            if *is_moving {
                memory.moves_less(*before - bytes);
            }
        }
        *before = bytes;
    }

    /// Whether it is on its way from now on, or waits.
    pub fn moves(&mut self, is_moving: bool) {
        match (self.is_moving, is_moving) {
            (false, true) => _ = self.memory.moving.fetch_add(self.bytes, Ordering::Relaxed),
            (true, false) => self.memory.moves_less(self.bytes),
            (true, true) | (false, false) => {}
        }
        self.is_moving = is_moving;
    }
}

/// As much again, and it waits.
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
    use std::sync::atomic::Ordering;

    use futures_util::FutureExt;

    use super::{Charge, MOVING_MAX, Memory, OfTarget, TARGETS};

    #[test]
    fn a_charge_counts_as_long_as_it_lives_and_each_clone_again() {
        let memory = Arc::new(Memory::default());
        let mut one = Charge::new(&memory);
        one.set(10);
        let other = one.clone();
        one.set(3);
        assert_eq!(memory.used(), 13);
        drop(other);
        drop(one);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn who_waits_for_room_hears_of_it_and_what_waits_takes_none() {
        let memory = Arc::new(Memory::default());
        let (mut waits, mut moves) = (Charge::new(&memory), Charge::new(&memory));
        waits.set(10 * MOVING_MAX);
        moves.set(MOVING_MAX);
        moves.moves(true);
        assert!(memory.room().now_or_never().is_some());
        moves.set(MOVING_MAX + 1);
        let of_clone = moves.clone();
        for what in ["less", "waits", "gone"] {
            let mut room = Box::pin(memory.room());
            assert!((&mut room).now_or_never().is_none(), "{what}");
            match what {
                "less" => moves.set(MOVING_MAX),
                "waits" => moves.moves(false),
                _ => moves = Charge::new(&memory),
            }
            assert!(room.now_or_never().is_some(), "{what}");
            moves.set(MOVING_MAX + 1);
            moves.moves(true);
        }
        drop((waits, moves, of_clone));
        assert_eq!((memory.used(), memory.moving.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn all_targets_together_hold_what_one_may() {
        for targets in 1..20 {
            let one = OfTarget::of(targets);
            let waiting = one.passes + one.replayed + one.refill + one.refused + one.backlog;
            let each = waiting + one.kept + one.ring + one.names + one.publish;
            assert!(each * targets <= TARGETS, "{targets}");
        }
    }
}
