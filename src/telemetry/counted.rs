//! Commits whose removal was counted before, so that none is counted as late a second time.
//!
//! What a session removed and did not confirm is sent again to the next one, perhaps an hour later.
//! Its keys went in time all the same. Within a session each commit comes once, in any order; so
//! what counts is how far the sessions before were.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::metrics::{Metrics, seconds};
use crate::config::TargetId;
use crate::lsn::Lsn;

/// How far removals were counted, of each target.
#[derive(Debug, Default)]
pub(super) struct Counted(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// LSNs of another history say nothing of this one.
    history: String,
    /// By the target's place.
    targets: Vec<Reached>,
}

/// The furthest end LSNs that keys were removed for.
#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    /// Before this session.
    before: Lsn,
    /// So far.
    furthest: Lsn,
}

impl Counted {
    /// A session begins, whose LSNs are of this history of the server.
    pub(super) fn begins(&self, history: &str) {
        let mut known = self.lock();
        if known.history == history {
            known.targets.iter_mut().for_each(|one| one.before = one.before.max(one.furthest));
        } else {
            *known = Known { history: history.to_owned(), targets: Vec::new() };
        }
    }

    /// The watermark of a target shows that the keys of every commit up to here were removed,
    /// perhaps by another process.
    pub(super) fn covers(&self, target: TargetId, lsn: Lsn) {
        let mut known = self.lock();
        let reached = known.target(target);
        reached.before = reached.before.max(lsn);
    }

    /// The keys of the commit that ends here are gone from a target: whether for the first time, as
    /// far as is known.
    pub(super) fn is_first(&self, target: TargetId, end_lsn: Lsn) -> bool {
        let mut known = self.lock();
        let reached = known.target(target);
        reached.furthest = reached.furthest.max(end_lsn);
        end_lsn > reached.before
    }

    /// Gives what is known of other targets: `before` has for each the place that it had, if it is
    /// one of those before.
    pub(super) fn of_others(&self, before: &[Option<usize>]) -> Counted {
        let known = self.lock();
        let reached = |place: &Option<usize>| {
            let reached = place.and_then(|place| known.targets.get(place));
            reached.copied().unwrap_or_default()
        };
        let targets = before.iter().map(reached).collect();
        Counted(Mutex::new(Known { history: known.history.clone(), targets }))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

impl Known {
    fn target(&mut self, target: TargetId) -> &mut Reached {
        let place = target.place();
        if self.targets.len() <= place {
            self.targets.resize(place + 1, Reached::default());
        }
        &mut self.targets[place]
    }
}

impl Metrics {
    /// A session begins, whose LSNs are of this history of the server.
    pub(super) fn begins(&self, history: &str) {
        self.counted.begins(history);
    }

    /// The watermark of a target shows that the keys of every commit up to here were removed.
    pub fn covers(&self, target: TargetId, lsn: Lsn) {
        self.counted.covers(target, lsn);
    }

    /// The keys of the transaction that ends at `end_lsn` are gone from a target, so long after its
    /// commit. One that was sent again counts only for the first time.
    pub fn removed_after(&self, target: TargetId, end_lsn: Lsn, age: Duration) {
        if !self.counted.is_first(target, end_lsn) {
            return;
        }
        self.commit_to_removed.observe(seconds(age));
        if let Some(label) = self.target(target) {
            self.target_removed.get_or_create(&label).observe(seconds(age));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Counted;
    use crate::config::TargetId;
    use crate::lsn::Lsn;

    const OTHER: TargetId = TargetId(1);

    fn are_first(counted: &Counted, target: TargetId, lsns: &[u64]) -> Vec<bool> {
        lsns.iter().map(|lsn| counted.is_first(target, Lsn(*lsn))).collect()
    }

    #[test]
    fn a_commit_that_comes_again_is_counted_once_and_one_that_waits_for_a_pass_is_counted() {
        let counted = Counted::default();
        counted.begins("1/1");
        // Keys of patterns may go after those of later commits.
        assert_eq!(are_first(&counted, TargetId::FIRST, &[20, 30, 10]), [true; 3]);
        counted.begins("1/1");
        let again = are_first(&counted, TargetId::FIRST, &[10, 20, 30, 40, 35]);
        assert_eq!(again, [false, false, false, true, true]);
        assert_eq!(are_first(&counted, OTHER, &[10, 20]), [true; 2], "it was away before");
    }

    #[test]
    fn a_fresh_process_knows_what_the_watermark_shows_and_counts_the_rest() {
        let counted = Counted::default();
        counted.begins("1/1");
        counted.covers(TargetId::FIRST, Lsn(20));
        assert_eq!(are_first(&counted, TargetId::FIRST, &[10, 20, 30]), [false, false, true]);
        assert_eq!(are_first(&counted, OTHER, &[10]), [true]);
    }

    /// A promoted standby may write other commits under LSNs that the old primary has used.
    #[test]
    fn of_another_history_nothing_is_known() {
        let counted = Counted::default();
        counted.begins("1/1");
        assert_eq!(are_first(&counted, TargetId::FIRST, &[20]), [true]);
        counted.begins("1/2");
        assert_eq!(are_first(&counted, TargetId::FIRST, &[10]), [true]);
    }

    #[test]
    fn targets_keep_what_is_known_of_them_when_others_come_and_go() {
        let counted = Counted::default();
        counted.begins("1/1");
        assert_eq!(are_first(&counted, OTHER, &[20]), [true]);
        let counted = counted.of_others(&[Some(1), None, Some(7)]);
        counted.begins("1/1");
        assert_eq!(are_first(&counted, TargetId::FIRST, &[20, 21]), [false, true]);
        assert_eq!(are_first(&counted, OTHER, &[20]), [true]);
    }
}
