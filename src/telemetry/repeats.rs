//! A line of the log that would repeat itself.

use std::time::Duration;

use tokio::time::Instant;

/// How often the same thing is said.
const SAY_INTERVAL: Duration = Duration::from_secs(1);

/// Keeps a log line that would repeat itself a thousand times a second to one a second.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    said: Option<(&'static str, Instant)>,
    unsaid: u64,
}

impl Repeats {
    /// Whether to say `what` at `now`: if it is something else than the last time, or a second has
    /// passed. Gives how often it was not said since.
    pub(super) fn say(&mut self, what: &'static str, now: Instant) -> Option<u64> {
        if self.said.is_some_and(|(last, at)| last == what && now < at + SAY_INTERVAL) {
            self.unsaid += 1;
            return None;
        }
        self.said = Some((what, now));
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::Repeats;

    #[test]
    fn what_repeats_is_said_once_a_second() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(repeats.say("noperm", at(0)), Some(0));
        assert_eq!(repeats.say("noperm", at(1)), None);
        assert_eq!(repeats.say("noperm", at(999)), None);
        assert_eq!(repeats.say("noperm", at(1000)), Some(2));
        assert_eq!(repeats.say("oom", at(1001)), Some(0), "something else is said at once");
    }
}
