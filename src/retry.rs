//! How long to wait before trying again.

use std::time::Duration;

use crate::lsn::Lsn;

/// Waits that double from a first to a longest one.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// For Redis: keys that should go are still there, so try soon, and never rarely. The first
    /// attempt does not wait.
    #[must_use]
    pub fn redis() -> Backoff {
        Backoff { first: Duration::from_millis(20), longest: Duration::from_secs(1), failures: 0 }
    }

    /// For Postgres: a session costs the server a process and a decoding start.
    #[must_use]
    pub fn postgres() -> Backoff {
        Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(2), failures: 0 }
    }

    /// The wait before the next attempt: none before the first, then doubling. One process talks to
    /// one server here, so there is no herd that jitter would spread.
    pub fn next_wait(&mut self) -> Duration {
        let wait = match self.failures {
            0 => Duration::ZERO,
            failures => self.first.saturating_mul(1 << (failures - 1).min(16)).min(self.longest),
        };
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

/// Sessions in a row that the server ended at the same place because it could not decode its log,
/// before another slot is tried. One or two may have another cause.
const STUCK_LIMIT: u32 = 3;

/// Counts sessions that get nowhere because the slot holds what the server cannot decode.
#[derive(Clone, Debug)]
pub struct Stuck {
    start: Lsn,
    count: u32,
    limit: u32,
}

impl Default for Stuck {
    fn default() -> Stuck {
        Stuck { start: Lsn::ZERO, count: 0, limit: STUCK_LIMIT }
    }
}

impl Stuck {
    /// A session that began at `start` ended, `undecodable` if that was why.
    pub fn session_ended(&mut self, start: Lsn, undecodable: bool) {
        let before = if start == self.start { self.count } else { 0 };
        self.count = if undecodable { before + 1 } else { 0 };
        self.start = start;
    }

    /// Whether the slot must be given up for a new one.
    #[must_use]
    pub fn must_give_up(&self) -> bool {
        self.count >= self.limit
    }

    /// It was given up. If that does not help, the next time is twice as far away: each costs a
    /// sweep of everything.
    pub fn gave_up(&mut self) {
        self.count = 0;
        self.limit = self.limit.saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use super::{Backoff, Stuck};
    use crate::lsn::Lsn;

    #[test]
    fn a_slot_is_given_up_after_three_sessions_that_end_alike_at_the_same_place() {
        let (one, other): (Lsn, Lsn) = ("0/1".parse().unwrap(), "0/2".parse().unwrap());
        let mut stuck = Stuck::default();
        let ends = |stuck: &mut Stuck, ends: &[(Lsn, bool)]| {
            ends.iter().for_each(|(start, why)| stuck.session_ended(*start, *why));
            stuck.must_give_up()
        };
        assert!(!ends(&mut stuck, &[(one, true), (one, true), (other, true)]), "it moves");
        assert!(!ends(&mut stuck, &[(other, true), (other, false), (other, true)]), "by chance");
        assert!(ends(&mut stuck, &[(other, true), (other, true)]));
        stuck.gave_up();
        assert!(!ends(&mut stuck, &[(one, true); 5]), "later each time");
        assert!(ends(&mut stuck, &[(one, true)]));
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut backoff = Backoff::redis();
        let waits: Vec<u128> = (0..9).map(|_| backoff.next_wait().as_millis()).collect();
        assert_eq!(waits, [0, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }
}
