//! Sessions as they are tried: how long to wait before the next, and when the slot has to go.

use std::time::Duration;

use crate::lsn::Lsn;

/// A session with Postgres that stood for so long was worth its beginning: what ends it then is a
/// new trouble, not the one before.
pub(super) const LASTING: Duration = Duration::from_secs(10);

/// A session that stood for so long shows that giving up the last slot helped.
const LONG: Duration = Duration::from_secs(3600);

/// Wait before the next attempt after one that came to nothing; doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Longest wait while the server is out of reach: an attempt costs it nothing.
const UNREACHABLE_WAIT_MAX: Duration = Duration::from_secs(2);

/// Longest wait while it can be reached: an attempt costs it two processes, some questions about
/// the catalog and the start of decoding, and the keys of its commits wait so much longer.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Sessions in a row that ended soon and began at the same place, from which on something is wrong
/// that another try does not mend. One or two may have another cause.
const ALIKE_LIMIT: u32 = 3;

/// Whether what the slot holds ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// Something else did.
    None,
    /// It may be so.
    Perhaps,
    /// It is so, and each further session from the same position ends alike.
    Certain,
}

/// Sessions with Postgres as they are tried, begin and end: how long to wait before the next one,
/// whether they get anywhere, and whether the slot must be given up.
#[derive(Clone, Debug)]
pub(super) struct Attempts {
    /// In a row: those that reached the server and came to nothing, and sessions that ended soon.
    in_vain: u32,
    /// The last ones in a row that found nobody. They are counted apart: an outage, however long,
    /// does not make the first tries after it wait.
    away: u32,
    /// Where the last session began.
    start: Lsn,
    /// Sessions in a row that began there and ended soon.
    short: u32,
    /// Sessions that began there and ended by what the slot holds.
    blamed: u32,
    /// How many of these are too many.
    limit: u32,
    /// Whether the slot was blamed just now, so that what comes next is something else.
    is_decided: bool,
}

impl Default for Attempts {
    fn default() -> Attempts {
        Attempts {
            in_vain: 0,
            away: 0,
            start: Lsn::ZERO,
            short: 0,
            blamed: 0,
            limit: ALIKE_LIMIT,
            is_decided: false,
        }
    }
}

impl Attempts {
    /// No session began; `is_unreachable` if nobody was there.
    pub(super) fn came_to_nothing(&mut self, is_unreachable: bool) {
        if is_unreachable {
            self.away = self.away.saturating_add(1);
        } else {
            (self.in_vain, self.away) = (self.in_vain.saturating_add(1), 0);
        }
        self.is_decided = false;
    }

    /// A session that began at `start` ended after `stood`, and by what the slot holds as far as
    /// `blame` says.
    pub(super) fn session_ended(&mut self, start: Lsn, stood: Duration, blame: Blame) {
        let is_short = stood < LASTING;
        if start != self.start || !is_short {
            self.short = 0;
        }
        if start != self.start {
            self.blamed = 0;
        }
        if !is_short {
            self.in_vain = 0;
        }
        if stood >= LONG {
            self.limit = ALIKE_LIMIT;
        }
        self.start = start;
        self.short = self.short.saturating_add(u32::from(is_short));
        self.blamed = self.blamed.saturating_add(match blame {
            Blame::None => 0,
            Blame::Perhaps => 1,
            Blame::Certain => ALIKE_LIMIT,
        });
        self.is_decided = self.must_give_up();
        (self.in_vain, self.away) = (self.in_vain.saturating_add(1), 0);
    }

    /// As if none had been made, for another process has the slot.
    #[must_use]
    pub(super) fn stands_by(&self) -> Attempts {
        Attempts { limit: self.limit, ..Attempts::default() }
    }

    /// The wait before the next attempt: none before the first, short after a session that stood
    /// and before a new slot, then doubling. One process talks to one server here, so there is no
    /// herd that jitter would spread.
    #[must_use]
    pub(super) fn wait(&self) -> Duration {
        let count = if self.away > 0 { self.away } else { self.in_vain };
        match count {
            0 => Duration::ZERO,
            _ if self.is_decided => FIRST_WAIT,
            count => FIRST_WAIT.saturating_mul(1 << (count - 1).min(16)).min(self.longest_wait()),
        }
    }

    /// The longest that the next attempt may have to wait, however many come to nothing as the last
    /// one did.
    #[must_use]
    pub(super) fn longest_wait(&self) -> Duration {
        if self.away > 0 { UNREACHABLE_WAIT_MAX } else { WAIT_MAX }
    }

    /// Whether the last sessions ended soon, one after another, and none began further on.
    #[must_use]
    pub(super) fn get_nowhere(&self) -> bool {
        self.short >= ALIKE_LIMIT
    }

    /// Whether the slot must be given up for a new one.
    #[must_use]
    pub(super) fn must_give_up(&self) -> bool {
        self.blamed >= self.limit
    }

    /// It was given up. If that does not help, the next time is twice as far away: each costs a
    /// sweep of everything.
    pub(super) fn gave_up(&mut self) {
        (self.short, self.blamed) = (0, 0);
        self.limit = self.limit.saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Attempts, Blame, LASTING, LONG};
    use crate::lsn::Lsn;

    const SOON: Duration = Duration::from_millis(50);

    fn lsns() -> (Lsn, Lsn) {
        ("0/1".parse().unwrap(), "0/2".parse().unwrap())
    }

    #[test]
    fn a_slot_is_given_up_after_three_sessions_that_it_ended_at_the_same_place() {
        let (one, other) = lsns();
        let mut attempts = Attempts::default();
        let ends = |attempts: &mut Attempts, ends: &[(Lsn, bool)]| {
            for (start, why) in ends {
                let blame = if *why { Blame::Perhaps } else { Blame::None };
                attempts.session_ended(*start, SOON, blame);
            }
            attempts.must_give_up()
        };
        assert!(!ends(&mut attempts, &[(one, true), (one, true), (other, true)]), "it moves");
        assert!(!ends(&mut attempts, &[(one, true), (one, true), (one, false)]), "twice by chance");
        assert!(ends(&mut attempts, &[(one, true)]), "whatever ended others in between");
        attempts.gave_up();
        assert!(!ends(&mut attempts, &[(other, true); 5]), "later each time");
        assert!(ends(&mut attempts, &[(other, true)]));
        attempts.gave_up();
        attempts.session_ended(one, LONG, Blame::None);
        assert!(ends(&mut attempts, &[(one, true); 3]), "a long session begins anew");
    }

    /// The next attempt is another one, so it comes soon; if it comes to nothing, no sooner than
    /// any. That it does not help is found, too.
    #[test]
    fn one_session_is_enough_where_each_further_one_is_known_to_end_alike() {
        let (one, other) = lsns();
        let mut attempts = Attempts::default();
        (0..9).for_each(|_| attempts.came_to_nothing(false));
        assert_eq!(attempts.wait().as_millis(), 10_000);
        attempts.session_ended(one, SOON, Blame::Certain);
        assert!(attempts.must_give_up());
        assert_eq!(attempts.wait().as_millis(), 100);
        attempts.came_to_nothing(false);
        assert!(attempts.must_give_up());
        assert_eq!(attempts.wait().as_millis(), 10_000);
        attempts.gave_up();
        attempts.session_ended(other, SOON, Blame::Certain);
        assert!(!attempts.must_give_up(), "later each time");
        assert_eq!(attempts.wait().as_millis(), 10_000);
        attempts.session_ended(other, SOON, Blame::Certain);
        assert!(attempts.must_give_up());
    }

    #[test]
    fn a_session_that_lasts_blames_the_slot_as_any() {
        let (one, _) = lsns();
        let mut attempts = Attempts::default();
        (0..3).for_each(|_| attempts.session_ended(one, LASTING * 6, Blame::Perhaps));
        assert!(attempts.must_give_up(), "decoding up to the place may take a minute");
        assert!(!attempts.get_nowhere());
    }

    #[test]
    fn sessions_get_nowhere_when_three_end_soon_at_the_same_place() {
        let (one, other) = lsns();
        let mut attempts = Attempts::default();
        for (start, stood, nowhere) in [
            (one, SOON, false),
            (one, SOON, false),
            (one, SOON, true),
            (one, SOON, true),
            (other, SOON, false),
            (other, SOON, false),
            (other, LASTING, false),
            (other, SOON, false),
        ] {
            attempts.session_ended(start, stood, Blame::None);
            assert_eq!(attempts.get_nowhere(), nowhere, "{start} {stood:?}");
        }
    }

    /// A session that begins and ends at once must not spin, however often it begins.
    #[test]
    fn only_a_session_that_lasts_shortens_the_wait() {
        let (one, other) = lsns();
        let wait = |attempts: &Attempts| attempts.wait().as_millis();
        let mut attempts = Attempts::default();
        assert_eq!(wait(&attempts), 0);
        let mut waits = Vec::new();
        for start in [one, other, one, other, one, other, one, other, one] {
            attempts.session_ended(start, SOON, Blame::None);
            waits.push(wait(&attempts));
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        attempts.came_to_nothing(true);
        assert_eq!(wait(&attempts), 100, "whether it comes back is seen soon");
        attempts.came_to_nothing(false);
        assert_eq!(wait(&attempts), 10_000);
        attempts.session_ended(one, LASTING, Blame::None);
        assert_eq!(wait(&attempts), 100);
        assert_eq!(wait(&attempts.stands_by()), 0);
    }

    /// After a restart of the server, the first tries that reach it may be refused, too.
    #[test]
    fn an_outage_however_long_leaves_the_next_waits_short() {
        let (one, _) = lsns();
        let mut attempts = Attempts::default();
        attempts.session_ended(one, LASTING, Blame::None);
        let mut waits = Vec::new();
        for is_unreachable in [true, true, true, true, true, true, true, false, false] {
            attempts.came_to_nothing(is_unreachable);
            waits.push(attempts.wait().as_millis());
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000, 200, 400]);
    }
}
