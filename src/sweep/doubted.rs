//! A Redis that is doubted again and again. Each sweep makes good what one doubt was about, so
//! between two all is well; but a Redis that somebody else writes the watermark of, or empties, is
//! swept for ever.
//!
//! One mishap counts once. Another server behind a connection is noticed there, and perhaps again
//! by what the next connection finds. Parts of a cluster that were away come back one by one, and
//! each of them without its data if none keeps any.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::sweeper::State;
use crate::telemetry::Topic;

/// So many doubts come of more than one mishap.
const MANY: usize = 4;

/// Within this time; and so long after the last one it is over.
const WITHIN: Duration = Duration::from_secs(60);

/// Parts that were away and come back without the watermark within this time are one mishap.
const TOGETHER: Duration = Duration::from_secs(10);

/// When a Redis was doubted.
#[derive(Debug, Default)]
pub(super) struct Doubted {
    /// The latest times, at most [`MANY`].
    times: VecDeque<Instant>,
    is_told: bool,
    /// Whether the connection was ended for a doubt: what the next one finds is of the same mishap.
    goes_on: bool,
    /// When the last mishap of parts that were away began.
    away: Option<Instant>,
}

impl Doubted {
    /// It is doubted at `now`. Says whether that is too often.
    fn again(&mut self, now: Instant) -> bool {
        self.times.push_back(now);
        let more = self.times.len().saturating_sub(MANY);
        self.times.drain(..more);
        let first = self.times.front().filter(|_| self.times.len() == MANY);
        let is_many = first.is_some_and(|first| now - *first <= WITHIN);
        self.is_told |= is_many;
        is_many
    }

    /// A part that was away is back at `now` without the watermark. Says whether that is too often.
    fn after_away(&mut self, now: Instant) -> bool {
        if self.away.is_some_and(|began| now - began < TOGETHER) {
            return false;
        }
        self.away = Some(now);
        self.again(now)
    }

    /// The connection ends for the last doubt.
    pub(super) fn goes_on(&mut self) {
        self.goes_on = true;
    }

    /// There is a new connection. Says whether what it finds is counted already.
    pub(super) fn connected(&mut self) -> bool {
        std::mem::take(&mut self.goes_on)
    }

    /// Whether what was told is over at `now`.
    fn is_over(&mut self, now: Instant) -> bool {
        let is_quiet = self.times.back().is_none_or(|last| now - *last > WITHIN);
        is_quiet && std::mem::take(&mut self.is_told)
    }
}

impl State {
    /// Redis has not what should stand there, or what it acknowledged.
    pub(super) fn doubts(&mut self) {
        if self.doubted.again(Instant::now()) {
            self.say_doubted();
        }
    }

    /// A part that was away is back, and has not what should stand there.
    pub(super) fn doubts_who_was_away(&mut self) {
        if self.doubted.after_away(Instant::now()) {
            self.say_doubted();
        }
    }

    fn say_doubted(&self) {
        let text = format!(
            "{} at {} is doubted again and again: it lost the watermark, or shows fewer removals \
             than it acknowledged",
            self.title, self.node.node
        );
        let hint = "another walsweep may have the same `postgres.slot` on this Redis: `redis-cli \
                    client list` shows the addresses of all; give one of them another name, or a \
                    `prefix`; or something empties Redis";
        self.health.trouble(Topic::Doubted(self.target), &text, Some(hint));
    }

    /// Looks whether it is doubted no longer.
    pub(super) fn look_doubted(&mut self) {
        if self.doubted.is_over(Instant::now()) {
            self.health.over(&Topic::Doubted(self.target));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::Doubted;

    #[test]
    fn it_is_told_of_many_doubts_in_a_minute_and_over_after_one_without() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut doubted = Doubted::default();
        let told: Vec<bool> =
            [0, 30, 59, 61, 62, 63].into_iter().map(|second| doubted.again(at(second))).collect();
        assert_eq!(told, [false, false, false, false, true, true]);
        assert!(!doubted.is_over(at(123)), "the last one is a minute ago");
        assert!(doubted.is_over(at(124)));
        assert!(!doubted.is_over(at(200)), "once");
        assert!(!doubted.again(at(200)));
        assert!(!doubted.is_over(at(300)), "nothing was told");
    }

    #[test]
    fn parts_that_come_back_together_are_one_mishap() {
        let start = Instant::now();
        let mut doubted = Doubted::default();
        let mut back = |second| doubted.after_away(start + Duration::from_secs(second));
        let told = [0, 1, 2, 3, 9].map(&mut back);
        assert_eq!(told, [false; 5], "a cluster of five that was started anew");
        // One that is emptied again and again is told.
        assert_eq!([15, 30, 44].map(&mut back), [false, false, true]);
    }

    #[test]
    fn what_ends_a_connection_is_counted_once() {
        let mut doubted = Doubted::default();
        assert!(!doubted.connected());
        doubted.goes_on();
        assert!(doubted.connected(), "the next one finds what it was about");
        assert!(!doubted.connected());
    }
}
