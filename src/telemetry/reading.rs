//! How far what is read of the log is behind what is committed.
//!
//! After an outage, or behind much that no rule needs, walsweep reads commits of a while ago: their
//! keys are stale until then, and so are those of all that was committed since.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// So long after the last commit was read there is no other to be read: the server sends what it
/// has at once.
const THROUGH: Duration = Duration::from_secs(3);

/// The last commit that was read.
#[derive(Debug, Default)]
pub struct Reading(Mutex<Option<Last>>);

#[derive(Clone, Copy, Debug)]
struct Last {
    age: Duration,
    read_at: Instant,
}

impl Reading {
    /// A commit is read that is so old, by the server's clock.
    pub fn read(&self, age: Duration) {
        *self.lock() = Some(Last { age, read_at: Instant::now() });
    }

    /// How old commits are when they are read; zero while there is none to be read.
    #[must_use]
    pub fn behind(&self) -> Duration {
        let last = self.lock().filter(|last| last.read_at.elapsed() < THROUGH);
        last.map_or(Duration::ZERO, |last| last.age)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Last>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Reading, THROUGH};

    #[tokio::test(start_paused = true)]
    async fn it_is_behind_as_long_as_old_commits_come() {
        let reading = Reading::default();
        assert_eq!(reading.behind(), Duration::ZERO);
        reading.read(Duration::from_secs(40));
        tokio::time::advance(THROUGH / 2).await;
        assert_eq!(reading.behind(), Duration::from_secs(40));
        reading.read(Duration::from_millis(2));
        assert_eq!(reading.behind(), Duration::from_millis(2));
        reading.read(Duration::from_secs(40));
        tokio::time::advance(THROUGH).await;
        assert_eq!(reading.behind(), Duration::ZERO);
    }
}
