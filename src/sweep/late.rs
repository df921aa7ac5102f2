//! Whether keys wait for their removal for longer than they should.

use std::time::Duration;

use tokio::time::Instant;

use super::job::older;
use crate::config::TargetId;
use crate::keys::RuleId;
use crate::telemetry::{Health, Topic};

/// How long after readers can see a commit its keys may wait before it is said. A pass over ten
/// million keys takes some seconds.
const LATE_AFTER: Duration = Duration::from_secs(30);

/// How often it is looked whether something is late.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Why it may be.
const HINT: &str = "another line of this page or of the log says why, if redis refuses or is out \
                    of reach; if none does, redis is slower than commits come: see \
                    `walsweep_sweep_seconds`, `walsweep_sweep_throttled_seconds_total` and what \
                    `walsweep check` says of the cost of a pass";

/// The oldest of what is under way, and when to look next.
#[derive(Debug)]
pub(super) struct Late {
    target: TargetId,
    pub(super) in_batch: Option<(Instant, RuleId)>,
    pub(super) in_pass: Option<(Instant, RuleId)>,
    pub(super) in_pages: Option<(Instant, RuleId)>,
    next_look: Option<Instant>,
    is_late: bool,
}

impl Late {
    /// Nothing of a target is under way.
    pub(super) fn new(target: TargetId) -> Late {
        let (in_batch, in_pass, in_pages) = (None, None, None);
        Late { target, in_batch, in_pass, in_pages, next_look: None, is_late: false }
    }

    /// When to look next; `None` while nothing waits.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    /// Whether nothing is under way or late.
    pub(super) fn is_quiet(&self) -> bool {
        let is_idle = self.in_batch.is_none() && self.in_pass.is_none();
        is_idle && self.in_pages.is_none() && !self.is_late
    }

    /// Something waits: looks a while later, if it is not meant to look anyway.
    pub(super) fn look_later(&mut self, now: Instant) {
        self.next_look.get_or_insert(now + LOOK_INTERVAL);
    }

    /// Tells `health` whether the oldest, of what waits and what is under way, is late.
    pub(super) fn look(
        &mut self,
        waiting: Option<(Instant, RuleId)>,
        (health, now): (&Health, Instant),
    ) {
        let under_way = older(older(self.in_batch, self.in_pass), self.in_pages);
        let oldest = older(waiting, under_way);
        let late = oldest.filter(|(since, _)| now >= *since + LATE_AFTER);
        if let Some((since, rule)) = late {
            let metrics = health.metrics();
            let (rule, seconds) = (metrics.rule_name(rule), (now - since).as_secs());
            let place = match metrics.target_name(self.target) {
                Some(name) => format!(" from redis `{name}`"),
                None => String::new(),
            };
            let text = format!(
                "keys of rule `{rule}` have waited {seconds} s for their removal{place}: readers \
                 may get old values from them"
            );
            health.trouble(Topic::Late(self.target), &text, Some(HINT));
        } else if self.is_late {
            health.over(&Topic::Late(self.target));
        }
        self.is_late = late.is_some();
        self.next_look = (oldest.is_some() || self.is_late).then(|| now + LOOK_INTERVAL);
    }
}
