//! How long to wait before trying again.

use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use super::Backoff;

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut backoff = Backoff::redis();
        let waits: Vec<u128> = (0..9).map(|_| backoff.next_wait().as_millis()).collect();
        assert_eq!(waits, [0, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }
}
