//! Jobs whose patterns an index knows: they wait for no SCAN, and for nobody who does.

use std::pin::Pin;
use std::sync::Arc;

use tokio::time::Instant;

use super::job::{Job, Member, Round};
use super::queue::Passes;
use super::redis::index::Indexed;
use super::redis::node::Node;
use super::shared::{Way, sweep};
use super::sweeper::State;
use super::works::ListedDone;
use crate::keys::{Pattern, Reach};
use crate::telemetry::metrics::{Metrics, TargetLabel};

/// Patterns of one job, beyond which a SCAN is no dearer.
const PATTERNS_MAX: usize = 1_000;

/// Jobs that wait for a pass by the index.
pub(super) struct Listed {
    /// The patterns whose keys the index knows, once it is whole.
    patterns: Vec<Pattern>,
    pub(super) waiting: Passes,
}

impl Listed {
    /// Nothing yet, and at most so many bytes; `None` without an index.
    pub(super) fn new(patterns: Vec<Pattern>, bytes_max: usize) -> Option<Listed> {
        let waiting = Passes::new(bytes_max);
        (!patterns.is_empty()).then_some(Listed { patterns, waiting })
    }

    /// Whether the index knows all keys of a job. Of a sweep of everything it does not say so, nor
    /// of what was refused and may be a part of one: that Redis is what it was is what is in doubt.
    pub(super) fn knows(&self, job: &Job) -> bool {
        let is_retry = job.members.iter().any(|member| matches!(member, Member::Retry(_)));
        let is_few = job.keys.patterns().nth(PATTERNS_MAX).is_none();
        let covers = |pattern: &Pattern| {
            let begins =
                |own: &&Pattern| pattern.literal_prefix().starts_with(own.literal_prefix());
            self.patterns.iter().filter(begins).any(|own| own.covers(pattern))
        };
        let is_known =
            is_few && !is_retry && !job.is_resync() && !job.keys.has_items(Reach::Scanned);
        is_known && job.keys.patterns().all(|(_, pattern)| covers(pattern))
    }
}

impl State {
    /// The next pass by the index. Without one that is whole, what waits for it goes to SCAN.
    pub(super) fn next_listed<'a, N: Node>(
        &mut self,
        node: &'a N,
        metrics: &'a Metrics,
    ) -> Option<Pin<Box<dyn Future<Output = ListedDone> + 'a>>> {
        let listed = self.listed.as_mut().filter(|listed| !listed.waiting.is_empty())?;
        let jobs = listed.waiting.take();
        if !node.indexed().is_some_and(|indexed| indexed.is_whole) {
            listed.waiting.ended();
            self.go_to_scan(jobs);
            return None;
        }
        let refused = self.room.share.refused;
        let (publisher, has_second) = (Arc::clone(&self.inside.publisher), self.refill.is_on());
        let last = move |round: Round| round.is_last(has_second);
        Some(Box::pin(async move {
            let (limits, told) = ((jobs.as_slice(), refused), (last, &publisher));
            let outcome = sweep(node, metrics, limits, Way::Index, told).await;
            (jobs, outcome)
        }))
    }

    /// A pass by the index has come to its end.
    pub(super) async fn listed_done(&mut self, (jobs, outcome): ListedDone) {
        self.listed.iter_mut().for_each(|listed| listed.waiting.ended());
        match outcome {
            Ok(Some(refused)) => {
                self.took_unlink();
                self.matched_removed(jobs, &refused).await;
            }
            Ok(None) => self.go_to_scan(jobs),
            Err(error) => {
                if self.connected && !self.failed(&error).await {
                    self.unlinks.failed(Instant::now());
                    self.say_refuses(&error);
                }
                jobs.into_iter().for_each(|job| self.wait_in(true, job));
            }
        }
    }

    fn go_to_scan(&mut self, jobs: Vec<Job>) {
        for job in jobs {
            self.throttle.came(job.round);
            self.wait_in(false, job);
        }
    }

    /// Tells how the index stands.
    pub(super) fn tell_index(&self, indexed: Option<Indexed>) {
        if self.listed.is_none() {
            return;
        }
        let Indexed { keys, bytes, is_whole } = indexed.unwrap_or_default();
        let target = TargetLabel { target: self.node.target.clone() };
        self.health.metrics().index(&target, (keys, bytes), is_whole);
    }
}
