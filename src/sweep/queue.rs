//! Jobs that wait for Redis: some for the next UNLINK, some for the next SCAN pass.

use std::collections::VecDeque;

use super::job::{Job, Member, rule_of};
use crate::keys::RuleId;
use crate::settle::{Held, Hold};

/// Exact keys that are removed by one batch, unless a single job has more.
const BATCH_KEYS_MAX: usize = 20_000;

/// Transactions and others that wait for a job, at most, before a hold stands for them.
const MEMBERS_MAX: usize = 10_000;

/// First removals in the order of their arrival.
#[derive(Debug, Default)]
pub(super) struct Queue {
    jobs: VecDeque<Job>,
    bytes: usize,
}

impl Queue {
    pub(super) fn push(&mut self, job: Job) {
        self.bytes += bytes(&job);
        self.jobs.push_back(job);
    }

    /// Puts a batch back where it was.
    pub(super) fn put_back(&mut self, jobs: Vec<Job>) {
        for job in jobs.into_iter().rev() {
            self.bytes += bytes(&job);
            self.jobs.push_front(job);
        }
    }

    /// The next batch for UNLINK: jobs of the same round.
    pub(super) fn next_batch(&mut self) -> Vec<Job> {
        let mut taken: Vec<Job> = Vec::new();
        let mut total = 0;
        while let Some(job) = self.jobs.pop_front() {
            let size = job.keys.exact_len() + job.keys.items_len();
            let fits = taken
                .first()
                .is_none_or(|first| first.round == job.round && total + size <= BATCH_KEYS_MAX);
            if !fits {
                self.jobs.push_front(job);
                break;
            }
            total += size;
            self.bytes -= bytes(&job);
            taken.push(job);
        }
        taken
    }

    /// Redis is away: what is here waits for that, and takes no room of what is on its way to
    /// others.
    pub(super) fn waits(&mut self) {
        self.jobs.iter_mut().for_each(|job| job.keys.waits());
    }

    /// Everything that waits.
    pub(super) fn drain(&mut self) -> Vec<Job> {
        self.bytes = 0;
        std::mem::take(&mut self.jobs).into()
    }

    /// The jobs, the next one first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter()
    }

    /// How many jobs wait.
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Memory held, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn bytes(job: &Job) -> usize {
    size_of::<Job>() + job.keys.bytes()
}

/// Jobs that wait for the next SCAN pass, one for each round. A pass may take long, and others wait
/// for none, so that what waits for it must not fill the room of the others: it is merged, and
/// collapses at its limit (I6), with what is in the pass that is under way.
#[derive(Debug)]
pub(super) struct Passes {
    jobs: Vec<Job>,
    /// Memory of keys in the pass that is under way, bytes.
    under_way: usize,
    bytes_max: usize,
}

impl Passes {
    /// Nothing yet, and at most so many bytes.
    pub(super) fn new(bytes_max: usize) -> Passes {
        Passes { jobs: Vec::new(), under_way: 0, bytes_max }
    }

    /// Takes a job; gives the rules that were widened for lack of room, and how often.
    pub(super) fn push(&mut self, mut job: Job) -> Vec<(RuleId, u64)> {
        job.keys.waits();
        job.oldest = job.oldest.map(|(since, rule)| (since, rule_of(&job.keys).unwrap_or(rule)));
        let mut widened = match self.jobs.iter_mut().find(|other| other.round == job.round) {
            Some(other) => {
                let keys = other.absorb(job);
                other.keys.merge_within(&keys)
            }
            None => {
                self.jobs.push(job);
                Vec::new()
            }
        };
        while self.bytes() > self.bytes_max
            && let Some(largest) = self.jobs.iter_mut().max_by_key(|job| job.keys.bytes())
            && let more = largest.keys.collapse_largest(0)
            && !more.is_empty()
        {
            widened.extend(more);
        }
        widened
    }

    /// Lets one hold stand for what waits for a job, where that is many. Gives what is held from
    /// now on. How long the removal of these took is not observed.
    pub(super) fn hold_many(&mut self) -> Vec<Held> {
        let many = self.jobs.iter_mut().filter(|job| job.members.len() > MEMBERS_MAX);
        many.flat_map(|job| {
            let by = Hold::new_name();
            let held = job.waits().instead(by);
            job.members.retain(|one| matches!(one, Member::Retry(_)) || one.part().is_some());
            job.members.push(Member::Held { hold: by, shared: false });
            held
        })
        .collect()
    }

    /// All jobs, for one pass.
    pub(super) fn take(&mut self) -> Vec<Job> {
        let jobs = std::mem::take(&mut self.jobs);
        self.under_way = jobs.iter().map(|job| job.keys.bytes()).sum();
        jobs
    }

    /// The pass is over.
    pub(super) fn ended(&mut self) {
        self.under_way = 0;
    }

    fn bytes(&self) -> usize {
        self.under_way + self.jobs.iter().map(|job| job.keys.bytes()).sum::<usize>()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Whether readers wait for any of them.
    pub(super) fn is_urgent(&self) -> bool {
        self.jobs.iter().any(|job| job.round.is_urgent())
    }
}

/// Gives the reason under which `walsweep_sweeps_total` counts a pass for these jobs.
pub(super) fn pass_reason(jobs: &[Job]) -> &'static str {
    if jobs.iter().any(Job::is_resync) {
        return "resync";
    }
    let has = |reason: &&str| jobs.iter().any(|job| job.round.reason() == *reason);
    if jobs.is_empty() {
        return "index";
    }
    // What readers wait for most names the pass.
    ["rule", "again", "replayed"].into_iter().find(has).unwrap_or("refill")
}

#[cfg(test)]
mod tests {
    use super::{MEMBERS_MAX, Passes};
    use crate::gather::Transaction;
    use crate::lsn::Lsn;
    use crate::settle::{Cause, Visible};
    use crate::sweep::job::{Job, Member, Round};
    use crate::sweep::tests::{keys, rules};

    /// However many commits of patterns wait for a pass, few things wait, and what is held twice is
    /// held by the last.
    #[test]
    fn a_hold_stands_for_many_that_wait_for_a_pass() {
        let (rules, mut passes) = (rules(), Passes::new(1 << 20));
        let mut held_lsns = 0;
        let mut last = None;
        for at in 1..=3 * MEMBERS_MAX as u64 {
            let end_lsn = Lsn(at);
            let transaction = Transaction { xid: 1, commit_lsn: end_lsn, end_lsn, commit_time: 0 };
            let cause = Cause::Transaction(transaction);
            let visible = Visible::for_tests(cause, keys(&rules, "list", &["1"]));
            passes.push(Job::first(visible));
            for held in passes.hold_many().into_iter().filter(|held| !held.is_empty()) {
                held_lsns += held.end_lsns.len();
                assert!(held.moved);
                assert_eq!(held.holds.first().copied(), last, "the one before is part of it");
                last = Some(held.by);
            }
        }
        let [job] = &passes.take()[..] else { panic!("one job") };
        assert_eq!(job.round, Round::First);
        let transactions =
            job.members.iter().filter(|one| matches!(one, Member::Transaction { .. }));
        assert_eq!(held_lsns + transactions.count(), 3 * MEMBERS_MAX);
        assert!(job.members.len() <= MEMBERS_MAX + 1, "{}", job.members.len());
        let holds = job.members.iter().filter(|one| matches!(one, Member::Held { .. }));
        assert_eq!(holds.count(), 1);
        assert_eq!(job.covers, Lsn(3 * MEMBERS_MAX as u64));
    }
}
