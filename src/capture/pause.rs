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
//! The program runs on one thread; what else it does may start 0.2 ms later, while a backlog
//! streams and never otherwise: a single commit, or a thousand in a second, are read as they come.

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

/// Whether the stream is busy, and whether the next read waits.
#[derive(Debug, Default)]
pub(super) struct Pause {
    window_start: Option<Instant>,
    message_count: u32,
    busy_windows: u32,
    due: bool,
}

impl Pause {
    /// Counts a message of the stream.
    pub(super) fn count_message(&mut self) {
        self.message_count = self.message_count.saturating_add(1);
    }

    /// Judges after a read of `size` bytes at `now` whether to wait before the next one.
    pub(super) fn after_read(&mut self, now: Instant, size: usize) {
        let start = *self.window_start.get_or_insert(now);
        let elapsed = now.duration_since(start);
        let is_backlog = self.busy_windows >= BUSY_WINDOW_COUNT;
        if elapsed >= if is_backlog { BACKLOG_WINDOW } else { WINDOW } {
            let rate_min = BUSY_MESSAGE_COUNT * elapsed.as_micros() / WINDOW.as_micros();
            let is_busy = u128::from(self.message_count) >= rate_min;
            self.busy_windows = if is_busy { self.busy_windows.saturating_add(1) } else { 0 };
            self.window_start = Some(now);
            self.message_count = 0;
        }
        self.due = size < LARGE_READ_SIZE && self.busy_windows >= BUSY_WINDOW_COUNT;
    }

    /// Waits, if the last read asked for it; once for each read.
    pub(super) fn take(&mut self) {
        if std::mem::take(&mut self.due) {
            block_thread();
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "only a thread that is not in epoll_wait saves the sender its wake-ups"
)]
fn block_thread() {
    std::thread::sleep(PAUSE);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::Pause;

    /// Feeds a stream for 100 ms: every `period` a read of `messages` messages of 100 bytes.
    /// Returns how many of the reads asked for a pause.
    fn pauses(period: Duration, messages: usize) -> u32 {
        let mut pause = Pause::default();
        let start = Instant::now();
        let mut count = 0;
        for at in 0..u32::try_from(100_000 / period.as_micros()).unwrap() {
            pause.after_read(start + period * at, messages * 100);
            for _ in 0..messages {
                pause.count_message();
            }
            count += u32::from(pause.due);
        }
        count
    }

    #[test]
    fn a_thousand_commits_in_a_second_never_wait() {
        assert_eq!(pauses(Duration::from_millis(1), 5), 0);
        assert_eq!(pauses(Duration::from_micros(200), 1), 0, "each message by itself");
        assert_eq!(pauses(Duration::from_millis(8), 40), 0, "eight commits at once");
        assert_eq!(pauses(Duration::from_millis(32), 160), 0, "thirty-two commits at once");
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
        assert!(pause.due);
        pause.after_read(start + Duration::from_secs(1), 100);
        assert!(!pause.due);
    }

    #[test]
    fn a_backlog_outlives_an_interruption_and_ends_soon_after_its_last_message() {
        let mut pause = Pause::default();
        let mut now = Instant::now();
        let mut read = |after: Duration, messages: usize| {
            now += after;
            pause.after_read(now, 1000);
            (0..messages).for_each(|_| pause.count_message());
            pause.due
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
        let mut pause = Pause { due: true, ..Pause::default() };
        pause.take();
        assert!(!pause.due);
    }
}
