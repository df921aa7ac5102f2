//! How far the clock of the Postgres server is from this machine's.
//!
//! A commit's time is the server's. Where the two clocks differ, how long ago that was cannot be
//! told from both: it would be negative, or an hour. The server also says when it sent a message:
//! the least time that one has been on its way, by these two clocks, is how far they are apart, but
//! for the way itself.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

/// Below this the clocks are taken to be the same: a message may wait for that long.
const SAME: i64 = 1_000_000;

/// A clock may be set: what was heard longer ago than twice this does not count.
const MEMORY: Duration = Duration::from_secs(60);

/// 2000-01-01 00:00 UTC, where Postgres's timestamps count from, since the Unix epoch.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// The server's clock, as far as the server's messages tell of it.
#[derive(Debug, Default)]
pub struct ServerClock(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Since when the latest stretch counts.
    since: Option<SystemTime>,
    /// The least time on the way in the latest stretch, and in the one before it, microseconds.
    least: [Option<i64>; 2],
    is_said: bool,
}

impl ServerClock {
    /// A message that was sent at `server_time`, microseconds since 2000-01-01 00:00 UTC by the
    /// server's clock, is received at `now`. Says once that the clocks differ.
    pub fn heard(&self, server_time: i64, now: SystemTime) {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH + POSTGRES_EPOCH);
        let here = since_epoch.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(0));
        let on_its_way = here.saturating_sub(server_time);
        let mut state = self.lock();
        let is_old = |since: SystemTime| now.duration_since(since).map_or(true, |age| age > MEMORY);
        if state.since.is_none_or(is_old) {
            state.since = Some(now);
            state.least = [None, state.least[0]];
        }
        state.least[0] = Some(state.least[0].map_or(on_its_way, |least| least.min(on_its_way)));
        let behind = state.behind();
        if behind != 0 && !std::mem::replace(&mut state.is_said, true) {
            let seconds = Duration::from_micros(behind.unsigned_abs()).as_secs_f64();
            let which = if behind > 0 { "behind" } else { "ahead of" };
            tracing::warn!(
                hint = "let both machines take their time from the same servers (NTP)",
                "the clock of postgres is {seconds:.1} s {which} this machine's: \
                 `walsweep_commit_to_removed_seconds` is counted without that"
            );
        }
    }

    /// Now, by the server's clock.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        let (here, behind) = (SystemTime::now(), self.lock().behind());
        let apart = Duration::from_micros(behind.unsigned_abs());
        let there = if behind > 0 { here.checked_sub(apart) } else { here.checked_add(apart) };
        there.unwrap_or(here)
    }

    /// How far the server's clock is behind this machine's, microseconds; 0 if that may be the way
    /// of its messages.
    #[must_use]
    pub fn behind(&self) -> i64 {
        self.lock().behind()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

impl State {
    /// How far the server's clock is behind, microseconds; 0 if that may be the way.
    fn behind(&self) -> i64 {
        let least = self.least.iter().flatten().min().copied().unwrap_or_default();
        if least.abs() < SAME { 0 } else { least }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{POSTGRES_EPOCH, ServerClock};

    /// The server's time, that many seconds ahead.
    fn server_time(now: SystemTime, ahead: i64) -> i64 {
        let since = now.duration_since(SystemTime::UNIX_EPOCH + POSTGRES_EPOCH).unwrap();
        i64::try_from(since.as_micros()).unwrap() + ahead * 1_000_000
    }

    /// How many seconds the server's clock is taken to be ahead.
    #[expect(clippy::cast_possible_truncation, reason = "some thousand seconds")]
    fn ahead(clock: &ServerClock) -> i64 {
        let (here, there) = (SystemTime::now(), clock.now());
        match there.duration_since(here) {
            Ok(ahead) => ahead.as_secs_f64().round() as i64,
            Err(behind) => -(behind.duration().as_secs_f64().round() as i64),
        }
    }

    #[test]
    fn a_clock_that_is_ahead_or_behind_is_known_by_its_messages() {
        for seconds in [3_600, -3_600, 2, -2] {
            let clock = ServerClock::default();
            let now = SystemTime::now();
            clock.heard(server_time(now, seconds), now);
            assert_eq!(ahead(&clock), seconds);
        }
    }

    #[test]
    fn a_message_that_was_long_on_its_way_is_no_other_clock() {
        let clock = ServerClock::default();
        let now = SystemTime::now();
        clock.heard(server_time(now, -30), now);
        assert_eq!(ahead(&clock), -30);
        clock.heard(server_time(now, 0), now);
        assert_eq!(ahead(&clock), 0);
        clock.heard(server_time(now, -30), now);
        assert_eq!(ahead(&clock), 0);
    }

    #[test]
    fn a_clock_that_is_set_is_believed_after_a_while() {
        let clock = ServerClock::default();
        let mut now = SystemTime::now();
        clock.heard(server_time(now, 3_600), now);
        for _ in 0..3 {
            now += Duration::from_secs(61);
            clock.heard(server_time(now, 0), now);
        }
        assert_eq!(ahead(&clock), 0);
    }

    #[test]
    fn no_time_is_too_strange() {
        for server_time in [i64::MIN, i64::MAX, 0] {
            let clock = ServerClock::default();
            clock.heard(server_time, SystemTime::now());
            clock.heard(server_time, SystemTime::UNIX_EPOCH);
            let _there = clock.now();
        }
    }
}
