//! What waits for Redis: jobs for the next UNLINK, jobs for the next SCAN pass.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::job::{Job, Round};

/// Exact keys that are removed by one batch, unless a single job has more.
const BATCH_KEYS_MAX: usize = 20_000;

/// Patterns in one pass, unless a single job has more: matching costs time for each.
const PASS_PATTERNS_MAX: usize = 4_096;

/// First and longest wait before a refused job is tried again.
const REFUSED_WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Jobs in the order of their arrival.
#[derive(Debug, Default)]
pub(super) struct Queue {
    jobs: VecDeque<Job>,
    /// Jobs that Redis refused, with the time of their next try.
    held: Vec<(Instant, Job)>,
    bytes: usize,
}

impl Queue {
    pub(super) fn push(&mut self, job: Job) {
        self.bytes += bytes(&job);
        self.jobs.push_back(job);
    }

    /// Puts back jobs that Redis refused. One of several may be the reason: from now on each goes
    /// alone, so that it holds back none of the others.
    pub(super) fn push_refused(&mut self, jobs: Vec<Job>, now: Instant) {
        let single = jobs.len() == 1;
        for mut job in jobs {
            job.alone = true;
            if single {
                let wait = REFUSED_WAIT.0.saturating_mul(1 << job.refusals.min(10));
                job.refusals += 1;
                self.bytes += bytes(&job);
                self.held.push((now + wait.min(REFUSED_WAIT.1), job));
            } else {
                self.push(job);
            }
        }
    }

    /// The next batch for UNLINK: jobs of the same round, none that is not due yet.
    pub(super) fn next_batch(&mut self, now: Instant) -> Vec<Job> {
        let keys = |job: &Job| job.keys.exact_len();
        self.take(now, BATCH_KEYS_MAX, keys, |first, job| first.round == job.round)
    }

    /// The next jobs for one SCAN pass.
    pub(super) fn next_pass(&mut self, now: Instant) -> Vec<Job> {
        self.take(now, PASS_PATTERNS_MAX, |job| job.keys.patterns().count(), |_, _| true)
    }

    fn take(
        &mut self,
        now: Instant,
        limit: usize,
        size: impl Fn(&Job) -> usize,
        goes_with: impl Fn(&Job, &Job) -> bool,
    ) -> Vec<Job> {
        for (_, job) in self.held.extract_if(.., |(due, _)| *due <= now) {
            self.jobs.push_back(job);
        }
        let mut taken: Vec<Job> = Vec::new();
        let mut total = 0;
        while let Some(job) = self.jobs.pop_front() {
            let fits = taken.first().is_none_or(|first| {
                let merges = !first.alone && !job.alone && goes_with(first, &job);
                merges && total + size(&job) <= limit
            });
            if !fits {
                self.jobs.push_front(job);
                break;
            }
            total += size(&job);
            self.bytes -= bytes(&job);
            taken.push(job);
        }
        taken
    }

    /// When the first refused job is due again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.held.iter().map(|(due, _)| *due).min()
    }

    /// Everything that waits.
    pub(super) fn drain(&mut self) -> Vec<Job> {
        self.bytes = 0;
        let held = std::mem::take(&mut self.held).into_iter().map(|(_, job)| job);
        std::mem::take(&mut self.jobs).into_iter().chain(held).collect()
    }

    /// Memory held, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn bytes(job: &Job) -> usize {
    size_of::<Job>() + job.keys.bytes()
}

/// What `walsweep_sweeps_total` calls a pass for these jobs.
pub(super) fn pass_reason(jobs: &[Job]) -> &'static str {
    if jobs.iter().any(Job::is_resync) {
        "resync"
    } else if jobs.iter().any(|job| job.round == Round::First) {
        "rule"
    } else if jobs.iter().any(|job| job.round == Round::Again) {
        "again"
    } else if jobs.iter().any(|job| job.round == Round::Replayed) {
        "replayed"
    } else {
        "refill"
    }
}
