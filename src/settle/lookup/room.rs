//! The memory of what waits, divided among lookups.
//!
//! One lookup that is slow, behind a lock or without an index, fills whatever it is given: for
//! three seconds nothing of it passes. So half of the room is given out in equal shares, one for
//! each lookup, which nobody else may use, and the other half to whoever comes.

use super::waiting::Places;
use crate::settle::WAITING_BYTES_MAX;

/// What is used, in bytes.
#[derive(Debug)]
pub(super) struct Room {
    /// All that waits, each set once.
    total: usize,
    /// By lookup: what waits for it, whatever else it waits for.
    used: Vec<usize>,
    /// What each lookup may use in any case.
    share: usize,
    /// The parts of the shares that are not used.
    reserved: usize,
}

impl Room {
    /// An empty one for so many lookups.
    pub(super) fn new(lookups: usize) -> Room {
        let share = WAITING_BYTES_MAX / 2 / lookups.max(1);
        Room { total: 0, used: vec![0; lookups], share, reserved: share * lookups }
    }

    /// Whether there is room for what waits for these lookups: within the share of each, or in what
    /// is nobody's.
    pub(super) fn has(&self, bytes: usize, lookups: &Places) -> bool {
        let total = self.total + bytes;
        let is_within = |at: &usize| self.used[*at] + bytes <= self.share;
        let gets = |at: &usize| self.left(*at) - self.share.saturating_sub(self.used[*at] + bytes);
        let reserved = || self.reserved - lookups.iter().map(gets).sum::<usize>();
        total <= WAITING_BYTES_MAX
            && (lookups.iter().all(is_within) || total + reserved() <= WAITING_BYTES_MAX)
    }

    /// Takes what begins to wait for these lookups.
    pub(super) fn take(&mut self, bytes: usize, lookups: &Places) {
        self.total += bytes;
        lookups.iter().for_each(|at| self.set_used(*at, self.used[*at] + bytes));
    }

    /// What waits no longer for these lookups, and goes on waiting for others.
    pub(super) fn leave(&mut self, bytes: usize, lookups: &Places) {
        lookups.iter().for_each(|at| self.set_used(*at, self.used[*at] - bytes));
    }

    /// Gives back what waited for these lookups.
    pub(super) fn give_back(&mut self, bytes: usize, lookups: &Places) {
        self.total -= bytes;
        self.leave(bytes, lookups);
    }

    /// What is left of a lookup's share.
    fn left(&self, lookup: usize) -> usize {
        self.share.saturating_sub(self.used[lookup])
    }

    fn set_used(&mut self, lookup: usize, used: usize) {
        self.reserved -= self.left(lookup);
        self.used[lookup] = used;
        self.reserved += self.left(lookup);
    }
}

#[cfg(test)]
mod tests {
    use super::{Places, Room, WAITING_BYTES_MAX};

    const MIB: usize = 1 << 20;

    fn of(lookups: &[usize]) -> Places {
        lookups.iter().copied().collect()
    }

    #[test]
    fn one_lookup_alone_has_all_of_it() {
        let mut room = Room::new(1);
        assert!(
            room.has(WAITING_BYTES_MAX, &of(&[0])) && !room.has(WAITING_BYTES_MAX + 1, &of(&[0]))
        );
        room.take(10 * MIB, &of(&[0]));
        assert!(room.has(6 * MIB, &of(&[0])) && !room.has(6 * MIB + 1, &of(&[0])));
        room.give_back(10 * MIB, &of(&[0]));
        assert!(room.has(WAITING_BYTES_MAX, &of(&[0])));
    }

    #[test]
    fn whatever_others_fill_each_has_its_share() {
        let mut room = Room::new(4);
        while room.has(MIB, &of(&[0])) {
            room.take(MIB, &of(&[0]));
        }
        assert_eq!(room.total, 10 * MIB, "its 2 MiB, and the 8 MiB that are nobody's");
        for lookup in 1..4 {
            assert!(room.has(2 * MIB, &of(&[lookup])) && !room.has(2 * MIB + 1, &of(&[lookup])));
            room.take(2 * MIB, &of(&[lookup]));
        }
        assert_eq!(room.total, WAITING_BYTES_MAX);
        assert!((0..4).all(|lookup| !room.has(1, &of(&[lookup]))));
    }

    /// Who has answered is not charged for the one that has not.
    #[test]
    fn a_lookup_that_has_answered_has_its_share_again() {
        let mut room = Room::new(2);
        room.take(4 * MIB, &of(&[0, 1]));
        room.leave(4 * MIB, &of(&[1]));
        while room.has(MIB, &of(&[0])) {
            room.take(MIB, &of(&[0]));
        }
        assert!(room.has(4 * MIB, &of(&[1])), "{room:?}");
        room.give_back(room.total, &of(&[0]));
        assert_eq!((room.total, room.reserved), (0, 8 * MIB));
        // What is used is used, whoever's it was meant to be.
        room.take(4 * MIB, &of(&[0, 1]));
        room.take(12 * MIB, &of(&[0]));
        room.leave(4 * MIB, &of(&[1]));
        assert!(!room.has(1, &of(&[1])), "{room:?}");
    }
}
