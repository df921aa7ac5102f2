//! Keys that wait because SCAN may take no more of Redis's time: counted, and said when they wait
//! for too long.

use std::time::Duration;

use tokio::time::Instant;

use super::job::{Job, Round, older};
use super::redis::budget::GONE_WITHIN;
use super::redis::measure::Measure;
use crate::config::TargetId;
use crate::telemetry::metrics::{Metrics, seconds};
use crate::telemetry::{Health, Topic};

/// It is taken back when for so long no pass came too late. Passes that do so every now and then
/// are one trouble.
const QUIET: Duration = Duration::from_secs(120);

/// The waiting of a target's keys, and what was said of it.
#[derive(Debug)]
pub(super) struct Throttle {
    target: TargetId,
    /// Since when the next pass could have begun.
    since: Option<Instant>,
    /// How long the pass under way waited before it began.
    waited: Duration,
    /// When a pass came too late for the last time, if that was said.
    late_at: Option<Instant>,
    /// When the pass before the latest one ended.
    counted_from: Option<Instant>,
    /// Transactions with patterns since then.
    came: u32,
}

impl Throttle {
    /// Nothing of a target waits.
    pub(super) fn new(target: TargetId) -> Throttle {
        let (since, waited, late_at) = (None, Duration::ZERO, None);
        Throttle { target, since, waited, late_at, counted_from: None, came: 0 }
    }

    /// Patterns have come, of a transaction if it is their first removal.
    pub(super) fn came(&mut self, round: Round) {
        self.came += u32::from(round == Round::First);
    }

    /// Whether patterns for which readers wait have to wait at `now`, is `waits`. Gives it back.
    pub(super) fn waits(&mut self, waits: bool, now: Instant, metrics: &Metrics) -> bool {
        if waits {
            self.since.get_or_insert(now);
        } else {
            self.waited = self.since.take().map_or(Duration::ZERO, |since| now - since);
            metrics.sweep_throttled.inc_by(seconds(self.waited));
        }
        waits
    }

    /// A pass for these jobs is through. Says so, if keys were late for its waiting.
    pub(super) fn passed(
        &mut self,
        jobs: &[Job],
        measure: &Measure,
        (health, node): (&Health, &str),
    ) {
        let now = Instant::now();
        let waited = self.waited + measure.waited();
        let firsts = jobs.iter().filter(|job| job.round == Round::First);
        let oldest = firsts.map(|job| job.oldest).fold(None, older);
        let age = oldest.map_or(Duration::ZERO, |(since, _)| now.saturating_duration_since(since));
        let rate = self.rate(now);
        // On a far server a pass takes longer than that by itself.
        if age > GONE_WITHIN && waited * 4 > age {
            self.late_at = Some(now);
            let budget = &measure.budget;
            let cost = budget.pass_cost();
            let redis = match health.metrics().target_name(self.target) {
                Some(name) => format!("redis `{name}`"),
                None => "redis".to_owned(),
            };
            let text = format!(
                "keys of patterns waited {:.1} s for their removal: one pass over all keys takes \
                 {:.2} s of the time of {redis} at {node}, `sweep.max_load` = {} lets one begin \
                 every {:.1} s, and {rate:.1} transactions a second bring patterns",
                seconds(age),
                seconds(cost),
                budget.max_load(),
                seconds(budget.distance(cost)),
            );
            health.trouble(Topic::Throttled(self.target), &text, Some(HINT));
        }
    }

    /// Takes back what was said, if no pass was late for a while, nor may the one under way be.
    pub(super) fn look(&mut self, is_idle: bool, (health, now): (&Health, Instant)) {
        if is_idle && self.late_at.is_some_and(|late_at| late_at + QUIET <= now) {
            self.late_at = None;
            health.over(&Topic::Throttled(self.target));
        }
    }

    /// Transactions a second that brought patterns since the pass before.
    fn rate(&mut self, now: Instant) -> f64 {
        let since = self.counted_from.replace(now);
        let seconds = since.map_or(1.0, |since| (now - since).as_secs_f64());
        f64::from(std::mem::take(&mut self.came)) / seconds.max(0.001)
    }
}

/// Says what can be done where patterns wait because `sweep.max_load` allows no more.
pub const HINT: &str = "raise `sweep.max_load`; or let the rules name keys instead of patterns; \
                        or keep what is no cache in another Redis, or in another of its \
                        databases, since a pass looks at every key";
