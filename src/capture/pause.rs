//! The read pause: why a reader that waits a little makes the sender twice as fast.
//!
//! The sender writes each change to its socket by a `send` of its own. A reader that sleeps in
//! `epoll_wait` is woken by every one of them, and the wake-up is charged to the sender: most of
//! the sender's time under a backlog is spent on waking us for a hundred bytes. A reader that does
//! not sleep in `epoll_wait` costs the sender nothing; the kernel only appends to its buffer.
//!
//! So, while a backlog streams and a read brought little, the thread blocks for a fifth of a
//! millisecond before it looks again, and finds some hundred changes in one read. On loopback that
//! made a backlog of a million rows drain in 2.6 s instead of 6.4 s, with a tenth of the CPU time
//! on our side.
//!
//! The wait blocks the thread on purpose. An asynchronous timer would wait in `epoll_wait`, where
//! the next change wakes the thread at once, and has a granularity of a whole millisecond besides.
//! The program runs on one thread; what else it does may start 0.2 ms later.
//!
//! Many small commits are no backlog, but each of their messages is a wake-up, too. Above some
//! 2 000 commits a second they are *gathered*: three milliseconds lie between two reads, and a
//! read, a look of the gate and a round trip to Redis serve all that came meanwhile. While there is
//! anything else to do, such as a SCAN pass, the thread blocks for one of the three at a time, so
//! that it gets its turn between them. It does not block at once while those that were read are on
//! their way; the stream sees to that
//! ([`Slot::rests_until`](super::Slot::rests_until)). A single commit, or a thousand in a second,
//! are read as they come.

use std::time::Duration;

use tokio::time::Instant;

/// Between 50 and 500 microseconds the gain was the same; at a millisecond it was gone.
const PAUSE: Duration = Duration::from_micros(200);

/// A read of this size is worth its wake-up.
const LARGE_READ_SIZE: usize = 32 * 1024;

/// How long messages are counted before the rate is judged.
const WINDOW: Duration = Duration::from_millis(1);

/// Messages in a millisecond that make it a busy one. A thousand commits of one row in a second
/// are five messages in a millisecond; a backlog is above a hundred even from a slow sender.
const BUSY_MESSAGE_COUNT: u128 = 25;

/// So many busy windows one after the other are a backlog. One alone can be a group commit.
const BUSY_WINDOW_COUNT: u32 = 2;

/// The window while a backlog streams: it is over when this one was not busy. Longer than a time
/// slice of the scheduler, which on a loaded machine interrupts the sender without ending anything.
const BACKLOG_WINDOW: Duration = Duration::from_millis(8);

/// Pause while commits are gathered. At 2 000 commits a second that is six, which wait for half of
/// it. Measured at 2 000 a second of three rows each: 29 µs of our own a commit, and 3.8 ms until
/// its keys are gone; with a pause of 1 ms 62 µs and 2.2 ms.
const GATHER_PAUSE: Duration = Duration::from_millis(3);

/// While there is other work the thread is not blocked for longer at a time: the next step of that
/// starts so much later at most. Each turn costs some 40 µs.
const BLOCK_MAX: Duration = Duration::from_millis(1);

/// The longest wait for what was read last, before the thread is blocked.
const REST_MAX: Duration = Duration::from_millis(1);

/// Messages in a millisecond from which on commits are gathered. A thousand commits of three rows
/// in a second are five.
const GATHER_MESSAGE_COUNT: u128 = 6;

/// How long messages are counted for that. A group commit is over sooner.
const GATHER_WINDOW: Duration = Duration::from_millis(32);

/// So many windows one after the other have to be that busy.
const GATHER_WINDOW_COUNT: u32 = 2;

/// Whether the stream is busy, and whether the next read waits.
#[derive(Debug, Default)]
pub(super) struct Pause {
    backlog: Windows,
    gather: Windows,
    /// How long the next read waits.
    due: Duration,
}

/// Messages counted in windows of time.
#[derive(Debug, Default)]
struct Windows {
    start: Option<Instant>,
    message_count: u32,
    /// How many windows in a row were busy, until now.
    busy: u32,
}

impl Windows {
    fn count_message(&mut self) {
        self.message_count = self.message_count.saturating_add(1);
    }

    /// Ends the window if it is `length` old: it was busy with so many messages a millisecond.
    fn judge(&mut self, now: Instant, length: Duration, messages_min: u128) {
        let elapsed = now.duration_since(*self.start.get_or_insert(now));
        if elapsed < length {
            return;
        }
        let is_busy = u128::from(self.message_count) >= messages_min * elapsed.as_micros() / 1_000;
        self.busy = if is_busy { self.busy.saturating_add(1) } else { 0 };
        self.start = Some(now);
        self.message_count = 0;
    }
}

impl Pause {
    /// Counts a message of the stream.
    pub(super) fn count_message(&mut self) {
        self.backlog.count_message();
        self.gather.count_message();
    }

    /// Judges after a read of `size` bytes at `now` whether to wait before the next one.
    pub(super) fn after_read(&mut self, now: Instant, size: usize) {
        let length = if self.is_backlog() { BACKLOG_WINDOW } else { WINDOW };
        self.backlog.judge(now, length, BUSY_MESSAGE_COUNT);
        self.gather.judge(now, GATHER_WINDOW, GATHER_MESSAGE_COUNT);
        self.due = match (self.is_backlog(), self.gather.busy >= GATHER_WINDOW_COUNT) {
            _ if size >= LARGE_READ_SIZE => Duration::ZERO,
            (true, _) => PAUSE,
            (false, true) => GATHER_PAUSE,
            (false, false) => Duration::ZERO,
        };
    }

    fn is_backlog(&self) -> bool {
        self.backlog.busy >= BUSY_WINDOW_COUNT
    }

    /// How long to wait at most for what the last read brought, before [`Pause::take`] blocks the
    /// thread; zero where it does not matter.
    pub(super) fn rest(&self) -> Duration {
        if self.due == GATHER_PAUSE { REST_MAX } else { Duration::ZERO }
    }

    /// Waits, if the last read asked for it; once for each read. If others use the thread it is
    /// shared with them: gives whether there is more to wait for, after their turn.
    pub(super) fn take(&mut self, is_shared: bool) -> bool {
        let block = if is_shared { self.due.min(BLOCK_MAX) } else { self.due };
        self.due -= block;
        if !block.is_zero() {
            block_thread(block);
        }
        !self.due.is_zero()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "only a thread that is not in epoll_wait saves the sender its wake-ups"
)]
fn block_thread(pause: Duration) {
    std::thread::sleep(pause);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{GATHER_PAUSE, PAUSE, Pause, REST_MAX};

    /// Feeds a stream for so long: every `period` a read of `messages` messages of 100 bytes.
    /// Returns how many of the reads asked for this pause.
    fn count(due: Duration, length: Duration, period: Duration, messages: usize) -> u32 {
        let mut pause = Pause::default();
        let start = Instant::now();
        let mut count = 0;
        for at in 0..u32::try_from(length.as_micros() / period.as_micros()).unwrap() {
            pause.after_read(start + period * at, messages * 100);
            for _ in 0..messages {
                pause.count_message();
            }
            count += u32::from(pause.due == due);
        }
        count
    }

    fn pauses(period: Duration, messages: usize) -> u32 {
        count(PAUSE, Duration::from_millis(100), period, messages)
    }

    fn gathers(period: Duration, messages: usize) -> bool {
        count(GATHER_PAUSE, Duration::from_secs(1), period, messages) > 0
    }

    #[test]
    fn a_thousand_commits_in_a_second_never_wait() {
        assert_eq!(pauses(Duration::from_millis(1), 5), 0);
        assert_eq!(pauses(Duration::from_micros(200), 1), 0, "each message by itself");
        assert_eq!(pauses(Duration::from_millis(8), 40), 0, "eight commits at once");
        assert_eq!(pauses(Duration::from_millis(32), 160), 0, "thirty-two commits at once");
    }

    #[test]
    fn only_many_commits_are_gathered() {
        for (period, messages, gathered) in [
            (Duration::from_millis(1), 3, false),
            (Duration::from_millis(1), 5, false),
            (Duration::from_millis(8), 40, false),
            (Duration::from_micros(200), 1, false),
            (Duration::from_secs(1), 300, false),
            (Duration::from_micros(500), 3, true),
            (Duration::from_micros(100), 1, true),
            (Duration::from_millis(4), 40, true),
        ] {
            assert_eq!(gathers(period, messages), gathered, "{messages} every {period:?}");
        }
    }

    #[test]
    fn a_commit_after_a_silence_is_not_gathered() {
        let (mut pause, start) = (Pause::default(), Instant::now());
        for at in 0..200 {
            pause.after_read(start + Duration::from_micros(500) * at, 500);
            (0..5).for_each(|_| pause.count_message());
        }
        assert_eq!(pause.rest(), REST_MAX);
        pause.after_read(start + Duration::from_secs(1), 100);
        assert!(pause.due.is_zero() && pause.rest().is_zero());
    }

    #[test]
    fn a_backlog_waits() {
        assert!(pauses(Duration::from_micros(20), 1) > 4800, "50 000 messages a second");
        assert!(pauses(Duration::from_micros(7), 1) > 13_000, "140 000 messages a second");
        assert!(pauses(Duration::from_micros(200), 60) > 480, "300 000 messages a second");
    }

    #[test]
    fn a_large_read_does_not_wait() {
        assert_eq!(pauses(Duration::from_micros(200), 400), 0);
    }

    #[test]
    fn the_first_message_after_a_silence_does_not_wait() {
        let mut pause = Pause::default();
        let start = Instant::now();
        for at in 0..100_u32 {
            pause.after_read(start + Duration::from_micros(50) * at, 1000);
            (0..10).for_each(|_| pause.count_message());
        }
        assert_eq!(pause.due, PAUSE);
        pause.after_read(start + Duration::from_secs(1), 100);
        assert!(pause.due.is_zero());
    }

    #[test]
    fn a_backlog_outlives_an_interruption_and_ends_soon_after_its_last_message() {
        let mut pause = Pause::default();
        let mut now = Instant::now();
        let mut read = |after: Duration, messages: usize| {
            now += after;
            pause.after_read(now, 1000);
            (0..messages).for_each(|_| pause.count_message());
            pause.due == PAUSE
        };
        for _ in 0..400 {
            read(Duration::from_micros(50), 10);
        }
        assert!(read(Duration::from_millis(4), 10), "the sender had to wait for a processor");
        let quiet = (0..30).map(|_| read(Duration::from_millis(1), 5)).collect::<Vec<_>>();
        assert!(quiet[20..].iter().all(|due| !due), "{quiet:?}");
    }

    #[test]
    fn a_read_waits_once() {
        let mut pause = Pause { due: PAUSE, ..Pause::default() };
        assert!(!pause.take(true) && pause.due.is_zero());
    }

    #[test]
    fn commits_are_gathered_with_turns_for_others_in_between() {
        for (is_shared, expected) in [(true, 2), (false, 0)] {
            let mut pause = Pause { due: GATHER_PAUSE, ..Pause::default() };
            let turns = std::iter::from_fn(|| pause.take(is_shared).then_some(())).count();
            assert_eq!(turns, expected);
            assert!(pause.due.is_zero() && pause.rest().is_zero());
        }
    }
}
