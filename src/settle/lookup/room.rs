//! The memory of what waits, and of rows that are read, divided among lookups.
//!
//! One lookup that is slow, behind a lock or without an index, fills whatever it is given: for
//! three seconds nothing of it passes. So half of the room is given out in equal shares, one for
//! each lookup, which nobody else may use, and the other half to whoever comes. Rows that are read
//! have a room of their own, shared in the same way among sessions.

use std::cell::Cell;
use std::rc::Rc;

use super::waiting::Places;
use crate::budget::{LOOKUPS as WAITING_BYTES_MAX, ROWS};

/// The memory that is used, in bytes.
#[derive(Debug)]
pub(super) struct Room {
    /// All that waits, each set once.
    total: usize,
    /// By lookup: what waits for it, whatever else it waits for.
    used: Vec<usize>,
    /// The bytes that each lookup may use in any case.
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

    /// Notes that a set waits no longer for these lookups, and goes on waiting for others.
    pub(super) fn leave(&mut self, bytes: usize, lookups: &Places) {
        lookups.iter().for_each(|at| self.set_used(*at, self.used[*at] - bytes));
    }

    /// Gives back what waited for these lookups.
    pub(super) fn give_back(&mut self, bytes: usize, lookups: &Places) {
        self.total -= bytes;
        self.leave(bytes, lookups);
    }

    /// Gives the bytes that are left of a lookup's share.
    fn left(&self, lookup: usize) -> usize {
        self.share.saturating_sub(self.used[lookup])
    }

    fn set_used(&mut self, lookup: usize, used: usize) {
        self.reserved -= self.left(lookup);
        self.used[lookup] = used;
        self.reserved += self.left(lookup);
    }
}

/// Room for the rows that a session reads in one round.
#[derive(Debug)]
pub(super) struct RowRoom {
    /// The bytes that nobody else may use.
    share: usize,
    used: Cell<usize>,
    /// The bytes that are left of those that any session may use.
    common: Rc<Cell<usize>>,
}

impl RowRoom {
    /// Empty ones for so many sessions.
    pub(super) fn of_sessions(sessions: usize) -> impl Iterator<Item = RowRoom> {
        let (share, common) = (ROWS / 2 / sessions.max(1), Rc::new(Cell::new(ROWS - ROWS / 2)));
        let one = move |_| RowRoom { share, used: Cell::new(0), common: Rc::clone(&common) };
        (0..sessions).map(one)
    }

    /// Takes so many bytes, if there are as many.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let used = self.used.get() + bytes;
        let more = used.saturating_sub(self.share) - self.borrowed();
        let Some(common) = self.common.get().checked_sub(more) else { return false };
        self.common.set(common);
        self.used.set(used);
        true
    }

    /// Gives some back.
    pub(super) fn give_back(&self, bytes: usize) {
        let before = self.borrowed();
        self.used.set(self.used.get().saturating_sub(bytes));
        self.common.set(self.common.get() + before - self.borrowed());
    }

    /// Gives all back: the round is over.
    pub(super) fn clear(&self) {
        self.give_back(self.used.get());
    }

    fn borrowed(&self) -> usize {
        self.used.get().saturating_sub(self.share)
    }
}

#[cfg(test)]
mod tests {
    use super::{Places, ROWS, Room, RowRoom, WAITING_BYTES_MAX};

    /// A sixteenth of the room.
    const PART: usize = WAITING_BYTES_MAX / 16;

    fn of(lookups: &[usize]) -> Places {
        lookups.iter().copied().collect()
    }

    #[test]
    fn one_lookup_alone_has_all_of_it() {
        let mut room = Room::new(1);
        assert!(
            room.has(WAITING_BYTES_MAX, &of(&[0])) && !room.has(WAITING_BYTES_MAX + 1, &of(&[0]))
        );
        room.take(10 * PART, &of(&[0]));
        assert!(room.has(6 * PART, &of(&[0])) && !room.has(6 * PART + 1, &of(&[0])));
        room.give_back(10 * PART, &of(&[0]));
        assert!(room.has(WAITING_BYTES_MAX, &of(&[0])));
    }

    #[test]
    fn whatever_others_fill_each_has_its_share() {
        let mut room = Room::new(4);
        while room.has(PART, &of(&[0])) {
            room.take(PART, &of(&[0]));
        }
        assert_eq!(room.total, 10 * PART, "its share, and the half that is nobody's");
        for lookup in 1..4 {
            assert!(room.has(2 * PART, &of(&[lookup])) && !room.has(2 * PART + 1, &of(&[lookup])));
            room.take(2 * PART, &of(&[lookup]));
        }
        assert_eq!(room.total, WAITING_BYTES_MAX);
        assert!((0..4).all(|lookup| !room.has(1, &of(&[lookup]))));
    }

    /// Who has answered is not charged for the one that has not.
    #[test]
    fn a_lookup_that_has_answered_has_its_share_again() {
        let mut room = Room::new(2);
        room.take(4 * PART, &of(&[0, 1]));
        room.leave(4 * PART, &of(&[1]));
        while room.has(PART, &of(&[0])) {
            room.take(PART, &of(&[0]));
        }
        assert!(room.has(4 * PART, &of(&[1])), "{room:?}");
        room.give_back(room.total, &of(&[0]));
        assert_eq!((room.total, room.reserved), (0, 8 * PART));
        // What is used is used, whoever's it was meant to be.
        room.take(4 * PART, &of(&[0, 1]));
        room.take(12 * PART, &of(&[0]));
        room.leave(4 * PART, &of(&[1]));
        assert!(!room.has(1, &of(&[1])), "{room:?}");
    }

    #[test]
    fn a_session_that_reads_much_leaves_each_other_its_share() {
        let rooms: Vec<RowRoom> = RowRoom::of_sessions(4).collect();
        let mut taken = 0;
        while rooms[0].take(1 << 10) {
            taken += 1 << 10;
        }
        assert_eq!(taken, ROWS / 8 + ROWS / 2, "its share, and the half that is nobody's");
        for room in &rooms[1..] {
            assert!(room.take(ROWS / 8) && !room.take(1));
        }
        rooms[0].give_back(ROWS / 2);
        assert!(rooms[1].take(ROWS / 2) && !rooms[2].take(1));
        rooms.iter().for_each(RowRoom::clear);
        assert!(rooms[3].take(ROWS / 8 + ROWS / 2) && !rooms[0].take(ROWS / 8 + 1));
        let alone: Vec<RowRoom> = RowRoom::of_sessions(1).collect();
        assert!(alone[0].take(ROWS) && !alone[0].take(1));
    }
}
