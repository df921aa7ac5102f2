//! How far the clock of the Postgres server is from this machine's.
//!
//! A commit's time is the server's. Where the two clocks differ, how long ago that was cannot be
//! told from both: it would be negative, or an hour. The server also says when it sent a message:
//! the least time that one has been on its way, by these two clocks, is how far they are apart, but
//! for the way itself.
//!
//! A clock may be set while walsweep runs. Where a commit looks old, the server is asked for a
//! message: its answer has been on its way since the question at the longest.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Below this the clocks are taken to be the same: a message may wait for that long.
const SAME: i64 = 1_000_000;

/// A clock may be set: what was heard longer ago than twice this does not count.
const MEMORY: Duration = Duration::from_secs(60);

/// A commit that is older than this when it is read is late, or one of the clocks was set: the
/// server is asked which.
const OLD: Duration = Duration::from_secs(5);

/// For so long after an answer an old commit needs none.
const KNOWN: Duration = Duration::from_secs(10);

/// A server that gives no answer for so long is believed by its older messages.
const PATIENCE: Duration = Duration::from_secs(5);

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
    /// How far the server's clock was behind when that was said; `None` if it never was.
    said: Option<i64>,
    question: Question,
}

/// Whether an old commit is old, or a clock was set: what the server was asked.
#[derive(Clone, Copy, Debug, Default)]
struct Question {
    /// Since when it is in doubt.
    doubted: Option<Instant>,
    /// When the server was asked, and has not answered yet; by this machine's clock.
    asked: Option<SystemTime>,
    /// Whether an answer showed another clock. The next one decides: the first may be a message
    /// that had been on its way before.
    is_contradicted: bool,
    /// When the clock was known to be as it is taken to be.
    known: Option<Instant>,
}

impl ServerClock {
    /// A message that was sent at `server_time`, microseconds since 2000-01-01 00:00 UTC by the
    /// server's clock, is received at `now`. Says that the clocks differ, and each time that they
    /// differ by something else.
    pub fn heard(&self, server_time: i64, now: SystemTime) {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH + POSTGRES_EPOCH);
        let here = since_epoch.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(0));
        let on_its_way = here.saturating_sub(server_time);
        let mut state = self.lock();
        state.answered(on_its_way, now);
        let is_old = |since: SystemTime| now.duration_since(since).map_or(true, |age| age > MEMORY);
        if state.since.is_none_or(is_old) {
            state.since = Some(now);
            state.least = [None, state.least[0]];
        }
        state.least[0] = Some(state.least[0].map_or(on_its_way, |least| least.min(on_its_way)));
        state.say();
    }

    /// Whether a commit that was read so long after its time is as old as that. If it is not known,
    /// the server is to be asked.
    #[must_use]
    pub fn explains(&self, age: Duration) -> bool {
        if age <= OLD {
            return true;
        }
        let question = &mut self.lock().question;
        if question.known.is_some_and(|known| known.elapsed() < KNOWN) {
            return true;
        }
        question.doubted.get_or_insert_with(Instant::now).elapsed() > PATIENCE
    }

    /// Whether the server is to be asked for a message now.
    #[must_use]
    pub fn is_to_be_asked(&self) -> bool {
        let question = self.lock().question;
        question.doubted.is_some() && question.asked.is_none()
    }

    /// The server is asked for a message, which it sends at once.
    pub fn asks(&self, now: SystemTime) {
        self.lock().question.asked = Some(now);
    }

    /// Another session begins: what the last one was asked is not answered any more.
    pub fn begins(&self) {
        self.lock().question = Question::default();
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
        let least = self.least();
        if least.abs() < SAME { 0 } else { least }
    }

    fn least(&self) -> i64 {
        self.least.iter().flatten().min().copied().unwrap_or_default()
    }

    /// If it was asked, this is the answer. It was sent after the question, so it was on its way no
    /// longer than since then: all that is more is another clock.
    fn answered(&mut self, on_its_way: i64, now: SystemTime) {
        let Some(asked) = self.question.asked.take() else { return };
        let round_trip = now.duration_since(asked).unwrap_or_default();
        let round_trip = i64::try_from(round_trip.as_micros()).unwrap_or(i64::MAX);
        let least_apart = on_its_way.saturating_sub(round_trip).saturating_sub(SAME);
        if least_apart <= self.least() {
            let known = Some(Instant::now());
            self.question = Question { known, ..Question::default() };
        } else if self.question.is_contradicted {
            (self.since, self.least) = (Some(now), [None, None]);
            let known = Some(Instant::now());
            self.question = Question { known, ..Question::default() };
        } else {
            self.question.is_contradicted = true;
        }
    }

    /// Says how the clocks differ, if that is news. One that is said differs by so much that no
    /// message on its way is taken for it, time and again.
    fn say(&mut self) {
        let behind = self.behind();
        let news = behind.abs_diff(self.said.unwrap_or_default());
        let least = if self.said.is_some() { 2 * SAME } else { SAME };
        if news < least.unsigned_abs() {
            return;
        }
        self.said = Some(behind);
        let seconds = Duration::from_micros(behind.unsigned_abs()).as_secs_f64();
        let which = match behind {
            0 => {
                tracing::info!("the clock of postgres is that of this machine again");
                return;
            }
            behind if behind > 0 => "behind",
            _ => "ahead of",
        };
        tracing::warn!(
            hint = "let both machines take their time from the same servers (NTP)",
            "the clock of postgres is {seconds:.1} s {which} this machine's: \
             `walsweep_commit_to_removed_seconds` is counted without that"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{POSTGRES_EPOCH, ServerClock};
    use crate::telemetry::health_tests::Log;

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

    /// The server is asked, and answers at once by a clock that is that many seconds ahead.
    fn ask(clock: &ServerClock, now: SystemTime, seconds: i64) {
        assert!(clock.is_to_be_asked());
        clock.asks(now);
        assert!(!clock.is_to_be_asked(), "once");
        let now = now + Duration::from_millis(3);
        clock.heard(server_time(now, seconds), now);
    }

    #[test]
    fn a_clock_that_was_set_is_believed_at_its_second_answer_and_told_each_time() {
        let (log, _guard) = Log::start();
        let (clock, now, old) =
            (ServerClock::default(), SystemTime::now(), Duration::from_secs(300));
        clock.heard(server_time(now, 0), now);
        assert!(clock.explains(Duration::from_secs(4)) && !clock.is_to_be_asked());
        for (ahead_by, words) in [(-300, "300.0 s behind"), (-600, "600.0 s behind")] {
            clock.begins();
            assert!(!clock.explains(old), "it is not said before the server is asked");
            ask(&clock, now, ahead_by);
            assert!(!clock.explains(old), "one answer may have been on its way before");
            ask(&clock, now, ahead_by);
            assert_eq!(ahead(&clock), ahead_by);
            assert!(clock.explains(old) && !clock.is_to_be_asked());
            let lines = log.lines();
            assert!(lines.len() == 1 && lines[0].contains(words), "{lines:?}");
        }
        clock.heard(server_time(now, 0), now);
        assert_eq!(ahead(&clock), 0, "a message from the future shows it at once");
        assert!(log.lines()[0].contains("is that of this machine again"));
    }

    #[test]
    fn an_old_commit_is_old_where_the_answer_is_of_the_same_clock() {
        let (clock, now, old) =
            (ServerClock::default(), SystemTime::now(), Duration::from_secs(300));
        clock.heard(server_time(now, 0), now);
        assert!(!clock.explains(old));
        ask(&clock, now, 0);
        assert!(clock.explains(old) && !clock.is_to_be_asked());
        assert_eq!(ahead(&clock), 0);
        // An answer behind much else: it takes long, and shows no other clock.
        clock.begins();
        assert!(!clock.explains(old));
        clock.asks(now);
        let later = now + Duration::from_secs(20);
        clock.heard(server_time(now, 0), later);
        assert!(clock.explains(old));
        assert_eq!(ahead(&clock), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_asked_in_vain_is_believed_by_what_it_said_before() {
        let (clock, old) = (ServerClock::default(), Duration::from_secs(300));
        assert!(!clock.explains(old));
        clock.asks(SystemTime::now());
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(clock.explains(old));
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
