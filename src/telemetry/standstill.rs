//! Times in which this process stood still: it was stopped, or its machine was.
//!
//! All that waits for an answer finds none then, and would blame whoever it waits for. A timer
//! tells it from that: it fires much later than it should.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How often the timer fires.
const PERIOD: Duration = Duration::from_secs(1);

/// A timer that is later than this was held up by no other work.
const STILL_MIN: Duration = Duration::from_secs(10);

/// A session that ends within this time after it may have ended by it.
const AFTERMATH: Duration = Duration::from_secs(15);

/// The hint for a person where it stood still.
pub const HINT: &str = "it was stopped, or its machine was: see who \
     sends SIGSTOP, freezes the container or suspends the machine; it goes on by itself";

/// Whether this process stood still.
#[derive(Debug, Default)]
pub struct Standstill(Mutex<State>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// When the timer fires next; `None` before it is watched.
    due: Option<Instant>,
    /// How long it stood still the last time, and when that was over.
    last: Option<(Duration, Instant)>,
}

impl Standstill {
    /// Watches for it, and says each.
    pub async fn watch(&self) -> Infallible {
        loop {
            let due = Instant::now() + PERIOD;
            self.lock().due = Some(due);
            sleep_until(due).await;
            let still = due.elapsed();
            if still >= STILL_MIN {
                self.lock().last = Some((still, Instant::now()));
                let seconds = still.as_secs();
                tracing::warn!(hint = HINT, "this process stood still for {seconds} s");
            }
        }
    }

    /// How long this process stood still until now, or until a moment ago.
    #[must_use]
    pub fn lately(&self) -> Option<Duration> {
        let State { due, last } = *self.lock();
        // The timer may be late, and not have fired yet.
        let now = due.map(|due| due.elapsed()).filter(|still| *still >= STILL_MIN);
        let before = last.filter(|(_, end)| end.elapsed() < AFTERMATH).map(|(still, _)| still);
        now.or(before)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::task::yield_now;
    use tokio::time::advance;

    use super::{AFTERMATH, Standstill};
    use crate::telemetry::health_tests::Log;

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_fires_much_later_shows_a_standstill_for_a_moment() {
        let (log, _guard) = Log::start();
        let still = Arc::new(Standstill::default());
        let watched = Arc::clone(&still);
        let _watch = tokio::spawn(async move { watched.watch().await });
        for _ in 0..20 {
            yield_now().await;
            advance(Duration::from_secs(2)).await;
            yield_now().await;
            assert_eq!(still.lately(), None, "a timer may be late by a second");
        }
        assert!(log.lines().is_empty());
        advance(Duration::from_secs(85)).await;
        // The first to ask may come before the timer.
        let seconds = |still: &Standstill| still.lately().map(|lasted| lasted.as_secs());
        assert_eq!(seconds(&still), Some(84));
        yield_now().await;
        assert_eq!(seconds(&still), Some(84));
        let lines = log.lines();
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.contains("this process stood still for 84 s"), "{line}");
        for _ in 0..AFTERMATH.as_secs() {
            advance(Duration::from_secs(1)).await;
            yield_now().await;
        }
        assert_eq!(seconds(&still), None);
    }
}
