//! Lookups that cannot be asked: what is tried again, and when that is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::keys::Wanted;

/// Pause before a lookup that could not be asked is tried again, whether keys wait for it or not.
const AGAIN_PAUSE: Duration = Duration::from_secs(1);

/// A lookup that fails for the values of some rows is over it where others were found, and none has
/// failed for so long. Each row that fails is news, and there may be one in each transaction. Where
/// none was found, the row that failed is asked again this often and no more: the server logs an
/// error for each such question.
const VALUES_PAUSE: Duration = Duration::from_secs(60);

/// The lookups of a session that cannot be asked.
pub(super) struct Failing {
    lookups: BTreeMap<usize, Failed>,
}

struct Failed {
    /// The row that is tried again.
    one: Wanted,
    /// When a row failed that keys waited for.
    at: Instant,
    /// Whether another row was found since then, or beside it.
    is_found: bool,
    /// When it is due: to be tried again, or to be over.
    due_at: Instant,
    is_of_a_value: bool,
}

/// The lookups of a round that fail, each with a row, and whether keys wait for that; and those
/// that do no longer.
pub(super) struct Judged {
    pub(super) failed: BTreeMap<usize, Failure>,
    pub(super) over: Vec<usize>,
}

/// A row of a round that failed.
pub(super) struct Failure {
    one: Wanted,
    /// Whether keys wait for it.
    is_fresh: bool,
    /// Whether another row of its lookup was found in the same round.
    is_found: bool,
}

impl Failing {
    /// None.
    pub(super) fn none() -> Failing {
        Failing { lookups: BTreeMap::new() }
    }

    /// When it is due to try what could not be asked; never, if all could.
    pub(super) fn again_at(&self) -> Option<Instant> {
        self.lookups.values().map(|failed| failed.due_at).min()
    }

    /// The rows that are to be tried again now.
    pub(super) fn due(&self) -> Vec<Wanted> {
        let now = Instant::now();
        let is_due = |failed: &&Failed| failed.due_at <= now && !failed.is_spent();
        self.lookups.values().filter(is_due).map(|failed| failed.one.clone()).collect()
    }

    /// Whether a lookup fails for whatever row.
    pub(super) fn is_doubtful(&self, at: usize) -> bool {
        self.lookups.get(&at).is_some_and(|failed| !failed.is_of_a_value)
    }

    /// Judges a round, of whose questions the first `fresh` are those that keys wait for.
    pub(super) fn judge(
        &mut self,
        (wanted, fresh): (&[Wanted], usize),
        is_found: impl Fn(&Wanted) -> bool,
    ) -> Judged {
        let (mut failed, mut found) = (BTreeMap::new(), BTreeSet::new());
        for (number, one) in wanted.iter().enumerate() {
            let at = usize::from(one.lookup.0);
            if is_found(one) {
                found.insert(at);
            } else {
                let (one, is_fresh) = (one.clone(), number < fresh);
                failed.entry(at).or_insert(Failure { one, is_fresh, is_found: false });
            }
        }
        for at in found {
            failed.entry(at).and_modify(|failure| failure.is_found = true);
            self.lookups.entry(at).and_modify(|before| before.is_found = true);
        }
        let is_over = |at: usize, before: &Failed| match failed.get(&at) {
            None => wanted.contains(&before.one) || before.is_spent(),
            Some(failure) => !failure.is_fresh && before.is_spent(),
        };
        let all = self.lookups.iter();
        let over: Vec<usize> =
            all.filter(|(at, before)| is_over(**at, before)).map(|(at, _)| *at).collect();
        for at in &over {
            self.lookups.remove(at);
            failed.remove(at);
        }
        Judged { failed, over }
    }

    /// A lookup fails for a row, perhaps for its value alone; keys wait for it, unless it
    /// is tried again.
    pub(super) fn fails(&mut self, at: usize, failure: Failure, is_of_a_value: bool) {
        let Failure { one, is_fresh, mut is_found } = failure;
        let now = Instant::now();
        let pause = if is_of_a_value { VALUES_PAUSE } else { AGAIN_PAUSE };
        let mut failed_at = now;
        if let Some(before) = self.lookups.get(&at).filter(|_| !is_fresh) {
            (failed_at, is_found) = (before.at, before.is_found);
        }
        let failed = Failed { one, at: failed_at, is_found, due_at: now + pause, is_of_a_value };
        self.lookups.insert(at, failed);
    }
}

impl Failed {
    /// Whether it is of the value of a row that may never be another, and of long ago, while other
    /// rows are found.
    fn is_spent(&self) -> bool {
        self.is_of_a_value && self.is_found && self.at.elapsed() >= VALUES_PAUSE
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::{AGAIN_PAUSE, Failing, VALUES_PAUSE};
    use crate::keys::Wanted;

    const SECOND: Duration = Duration::from_secs(1);

    fn row(value: &str) -> Wanted {
        Wanted::for_tests(0, value.as_bytes())
    }

    /// A round in which keys wait for rows, of which those named `bad` fail for their values, and
    /// what is due is tried again; the lookups that are over it.
    fn round(failing: &mut Failing, values: &[&str]) -> Vec<usize> {
        let mut wanted: Vec<Wanted> = values.iter().copied().map(row).collect();
        wanted.extend(failing.due());
        let is_found = |one: &Wanted| *one != row("bad");
        let judged = failing.judge((&wanted, values.len()), is_found);
        for (at, failure) in judged.failed {
            failing.fails(at, failure, true);
        }
        judged.over
    }

    /// How often a row is asked for again in a time in which keys wait for none, until the lookup
    /// is over it.
    async fn asked_again(failing: &mut Failing, time: Duration) -> usize {
        let mut asked = 0;
        for _ in 0..time.as_secs() {
            advance(SECOND).await;
            asked += failing.due().len();
            round(failing, &[]);
        }
        asked
    }

    /// The value that failed may stay as it is for ever, and nobody is to be told so for ever.
    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_fails_for_a_value_is_over_it_after_a_while_without_one() {
        let mut failing = Failing::none();
        assert!(round(&mut failing, &["bad"]).is_empty());
        assert!(round(&mut failing, &["good"]).is_empty(), "the next one may fail again");
        advance(VALUES_PAUSE / 2).await;
        assert!(round(&mut failing, &["good", "bad"]).is_empty());
        advance(VALUES_PAUSE / 2).await;
        assert!(round(&mut failing, &["good"]).is_empty(), "one failed half a while ago");
        advance(VALUES_PAUSE / 2).await;
        assert_eq!(round(&mut failing, &["good"]), [0]);
        assert!(failing.again_at().is_none() && failing.due().is_empty());
    }

    /// Each question for it is an error in the server's log.
    #[tokio::test(start_paused = true)]
    async fn a_row_that_failed_for_its_value_is_asked_once_in_a_while() {
        let mut failing = Failing::none();
        round(&mut failing, &["bad"]);
        assert_eq!(asked_again(&mut failing, VALUES_PAUSE - SECOND).await, 0);
        assert_eq!(asked_again(&mut failing, SECOND).await, 1);
        assert_eq!(asked_again(&mut failing, VALUES_PAUSE * 5).await, 5);
        assert!(failing.again_at().is_some(), "none was found");
        assert_eq!(round(&mut failing, &["good"]), [0]);
    }

    /// With a cache the rows that are found are asked for once, and perhaps not again for long.
    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_found_another_row_since_is_over_without_a_question() {
        for values in [&["good"][..], &["good", "bad"]] {
            let mut failing = Failing::none();
            round(&mut failing, &["bad"]);
            round(&mut failing, values);
            assert_eq!(asked_again(&mut failing, VALUES_PAUSE - SECOND).await, 0);
            assert!(failing.again_at().is_some());
            advance(SECOND).await;
            assert!(failing.due().is_empty());
            assert_eq!(round(&mut failing, &[]), [0]);
            assert!(failing.again_at().is_none());
        }
    }

    /// A row that was found before says nothing of a query that fails for each one since.
    #[tokio::test(start_paused = true)]
    async fn a_row_that_was_found_before_another_failed_does_not_count() {
        let mut failing = Failing::none();
        round(&mut failing, &["bad"]);
        round(&mut failing, &["good"]);
        round(&mut failing, &["bad"]);
        assert_eq!(asked_again(&mut failing, VALUES_PAUSE * 2).await, 2);
        assert!(failing.again_at().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_failed_for_any_row_is_over_once_that_row_is_found() {
        let mut failing = Failing::none();
        let judged = failing.judge((&[row("one")], 1), |_| false);
        for (at, failure) in judged.failed {
            failing.fails(at, failure, false);
        }
        assert!(failing.is_doubtful(0) && failing.due().is_empty());
        advance(VALUES_PAUSE * 2).await;
        assert_eq!(failing.due(), [row("one")]);
        assert!(failing.judge((&[row("two")], 1), |_| true).over.is_empty());
        assert_eq!(failing.judge((&[row("one")], 0), |_| true).over, [0]);
        assert!(!failing.is_doubtful(0));
    }

    /// Of two lookups on one session the one that fails for any row is tried each second, however
    /// the other fares.
    #[tokio::test(start_paused = true)]
    async fn each_lookup_of_a_session_is_due_at_its_own_time() {
        let (any, value) = (Wanted::for_tests(1, b"any"), row("bad"));
        let mut failing = Failing::none();
        let mut asked = [0, 0];
        let mut wanted = vec![any, value];
        for second in 0..VALUES_PAUSE.as_secs() {
            let fresh = if second == 0 { 2 } else { 0 };
            let judged = failing.judge((&wanted, fresh), |_| false);
            for (at, failure) in judged.failed {
                failing.fails(at, failure, at == 0);
            }
            assert!(failing.again_at().is_some_and(|at| at.elapsed() < AGAIN_PAUSE));
            advance(AGAIN_PAUSE).await;
            wanted = failing.due();
            wanted.iter().for_each(|one| asked[usize::from(one.lookup.0)] += 1);
        }
        assert_eq!(asked, [1, VALUES_PAUSE.as_secs()]);
    }
}
