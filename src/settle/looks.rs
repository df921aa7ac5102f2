//! When to look: at once, rarely where nothing changes, and together where much comes.

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

/// How long commits are counted before the rate is judged.
const WINDOW: Duration = Duration::from_millis(32);

/// Commits in a window from which on looks are made together: 1 500 a second. Measured at 2 000 a
/// second with everything on two processors: a look and a removal for each cost walsweep, Postgres
/// and Redis together some 100 µs a commit, of which two thirds are wake-ups.
const BUSY_COMMITS: u32 = 48;

/// Then so much lies between two looks, at least. What a commit waits longer for is half of it.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// The looks of one gate.
#[derive(Debug)]
pub(super) struct Looks {
    /// Since the last arrival, that showed nothing new.
    idle: u32,
    /// When the last one was made.
    last: Instant,
    /// When the window began, and the commits in it.
    window: (Instant, u32),
    /// Whether the window before was a busy one.
    is_busy: bool,
}

impl Looks {
    pub(super) fn new(now: Instant) -> Looks {
        Looks { idle: 0, last: now, window: (now, 0), is_busy: false }
    }

    /// A commit arrived that waits.
    pub(super) fn arrived(&mut self, now: Instant) {
        // A look that showed nothing new before this arrival may well show this one.
        self.idle = 0;
        let (began, commits) = self.window;
        if now - began < WINDOW {
            self.window.1 += 1;
            return;
        }
        // What came after the window's end says nothing of it; a long silence ends it as well.
        self.is_busy = commits >= BUSY_COMMITS && now - began < WINDOW * 2;
        self.window = (now, 1);
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
        let pause = if self.is_busy { pause.max(BUSY_PAUSE) } else { pause };
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
    use super::{BUSY_PAUSE, Duration, Instant, Looks};

    /// Commits every `period` for a second, `together` at a time, each seen at once. Whether the
    /// looks were made together at its end.
    fn is_busy(period: Duration, together: u32) -> bool {
        let start = Instant::now();
        let mut looks = Looks::new(start);
        for at in 0..u32::try_from(Duration::from_secs(1).as_micros() / period.as_micros()).unwrap()
        {
            let now = start + period * at;
            (0..together).for_each(|_| looks.arrived(now));
            looks.looked(now, true);
        }
        looks.due(true).is_some()
    }

    #[test]
    fn only_many_commits_wait_for_each_other() {
        assert!(!is_busy(Duration::from_secs(1), 40));
        assert!(!is_busy(Duration::from_millis(1), 1));
        assert!(!is_busy(Duration::from_millis(8), 8), "eight at once");
        assert!(is_busy(Duration::from_micros(500), 1));
        assert!(is_busy(Duration::from_millis(4), 8));
    }

    #[test]
    fn a_commit_after_a_silence_is_looked_at_at_once() {
        let start = Instant::now();
        let mut looks = Looks::new(start);
        for at in 0..1_000 {
            looks.arrived(start + Duration::from_micros(100) * at);
        }
        looks.looked(start + Duration::from_millis(100), true);
        assert_eq!(looks.due(true), Some(start + Duration::from_millis(100) + BUSY_PAUSE));
        looks.arrived(start + Duration::from_secs(1));
        assert_eq!(looks.due(true), None);
    }
}
