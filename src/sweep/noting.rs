//! Notes of how many wait for a target, for people who look.

use std::sync::atomic::Ordering;

use super::job::{Job, older};
use super::sweeper::State;

/// How many wait for the pass that these jobs are for: those whose first removal it is.
pub(super) fn waiting(jobs: &[Job]) -> usize {
    let urgent = jobs.iter().filter(|job| job.round.is_urgent());
    urgent.map(|job| job.members.len()).sum()
}

/// How many patterns a pass for these jobs looks for, each counted as often as jobs have it.
pub(super) fn patterns(jobs: &[Job]) -> usize {
    jobs.iter().map(|job| job.keys.patterns_len()).sum()
}

impl State {
    /// Notes what waits now, and why writes are not observed. It is a handful of numbers, however
    /// much waits.
    pub(super) fn note(&self, unobserved: Option<String>) {
        let noted = self.health.noted();
        let notes = noted.target(self.target);
        let next = self.queue.iter().next().and_then(|job| job.oldest);
        let oldest = older(next, self.late.in_batch).map(|(since, _)| since);
        notes.first.set(self.queue.len() + self.under_way.0, oldest);
        let listed = self.listed.iter().flat_map(|listed| listed.waiting.iter());
        let urgent = self.passes.iter().chain(listed).filter(|job| job.round.is_urgent());
        let (mut count, mut oldest) = (self.under_way.1, self.late.in_pass);
        for job in urgent {
            count += job.members.len();
            oldest = older(oldest, job.oldest);
        }
        notes.passes.set(count, oldest.map(|(since, _)| since));
        notes.second.store(self.refill.len(), Ordering::Relaxed);
        notes.unobserved(unobserved);
    }
}
