//! When to look: at once, and rarely where nothing changes.

use std::time::Duration;

use tokio::time::Instant;

/// Looks made at once, one after another, before the gate begins to pause. A look takes some 40 µs
/// and the usual window is 100 to 400 µs; tokio's timer is no finer than 1 ms.
const EAGER_LOOKS: u32 = 6;

/// Pause after the eager looks; doubles with each look that shows nothing new.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Longest pause. A transaction whose synchronous standby is gone can wait for hours; 50 looks a
/// second cost the server less than a thousandth of a core, and its keys go within 20 ms when the
/// wait ends.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// The looks of one gate.
#[derive(Debug)]
pub(super) struct Looks {
    /// Since the last arrival, that showed nothing new.
    idle: u32,
    /// When the last one was made.
    last: Instant,
}

impl Looks {
    pub(super) fn new(now: Instant) -> Looks {
        Looks { idle: 0, last: now }
    }

    /// A commit arrived that waits: a look that showed nothing new before may well show this one.
    pub(super) fn arrived(&mut self) {
        self.idle = 0;
    }

    /// A look was made, and showed something `new`.
    pub(super) fn looked(&mut self, now: Instant, new: bool) {
        self.idle = if new { 0 } else { self.idle + 1 };
        self.last = now;
    }

    /// When the next look is due, if one is `wanted` for what has just come, or only for what waits
    /// already; `None` is at once.
    pub(super) fn due(&self, wanted: bool) -> Option<Instant> {
        let pause = if wanted { Duration::ZERO } else { pause(self.idle) };
        (!pause.is_zero()).then(|| self.last + pause)
    }
}

/// How long to pause after this many looks in a row that showed nothing new.
fn pause(idle: u32) -> Duration {
    match idle.checked_sub(EAGER_LOOKS) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_PAUSE.saturating_mul(1 << doublings.min(10)).min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::{EAGER_LOOKS, FIRST_PAUSE, Instant, LONGEST_PAUSE, Looks};

    #[test]
    fn looks_that_show_nothing_new_become_rare_until_a_commit_arrives() {
        let now = Instant::now();
        let mut looks = Looks::new(now);
        for _ in 1..EAGER_LOOKS {
            looks.looked(now, false);
            assert_eq!(looks.due(false), None);
        }
        looks.looked(now, false);
        assert_eq!(looks.due(false), Some(now + FIRST_PAUSE));
        (0..50).for_each(|_| looks.looked(now, false));
        assert_eq!(looks.due(false), Some(now + LONGEST_PAUSE));
        assert_eq!(looks.due(true), None);
        looks.arrived();
        assert_eq!(looks.due(false), None);
    }
}
