//! Lookups that cannot be asked: what is tried again, and when that is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::keys::Wanted;

/// Pause before a lookup that could not be asked is tried again, whether keys wait for it or not.
const AGAIN_PAUSE: Duration = Duration::from_secs(1);

/// A lookup that fails for the values of some rows is over it where others were found, and none has
/// failed for so long. Each row that fails is news, and there may be one in each transaction.
const VALUES_PAUSE: Duration = Duration::from_secs(60);

/// The lookups of a session that cannot be asked.
pub(super) struct Failing {
    lookups: BTreeMap<usize, Failed>,
    again_at: Instant,
}

struct Failed {
    /// The row that is tried again.
    one: Wanted,
    /// When a row failed that keys waited for.
    at: Instant,
    is_of_a_value: bool,
}

/// The lookups of a round that fail, each with a row, and whether keys wait for that; and those
/// that do no longer.
pub(super) struct Judged {
    pub(super) failed: BTreeMap<usize, (Wanted, bool)>,
    pub(super) over: Vec<usize>,
}

impl Failing {
    /// None.
    pub(super) fn none() -> Failing {
        Failing { lookups: BTreeMap::new(), again_at: Instant::now() }
    }

    /// When it is due to try what could not be asked; never, if all could.
    pub(super) fn again_at(&self) -> Option<Instant> {
        (!self.lookups.is_empty()).then_some(self.again_at)
    }

    /// The rows that are to be tried again now.
    pub(super) fn due(&self) -> Vec<Wanted> {
        let is_due = self.again_at().is_some_and(|again| again <= Instant::now());
        let due = self.lookups.values().filter(|_| is_due);
        due.map(|failed| failed.one.clone()).collect()
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
                failed.entry(at).or_insert_with(|| (one.clone(), number < fresh));
            }
        }
        let is_over = |at: usize, before: &Failed| match failed.get(&at) {
            None if wanted.contains(&before.one) => true,
            None => before.is_spent() && found.contains(&at),
            Some((_, is_fresh)) => !is_fresh && before.is_spent() && found.contains(&at),
        };
        let all = self.lookups.iter();
        let over: Vec<usize> =
            all.filter(|(at, before)| is_over(**at, before)).map(|(at, _)| *at).collect();
        for at in &over {
            self.lookups.remove(at);
            failed.remove(at);
        }
        if !failed.is_empty() {
            self.again_at = Instant::now() + AGAIN_PAUSE;
        }
        Judged { failed, over }
    }

    /// A lookup fails for a row, perhaps for its value alone; keys wait for it, unless it
    /// is tried again.
    pub(super) fn fails(
        &mut self,
        at: usize,
        (one, is_fresh): (Wanted, bool),
        is_of_a_value: bool,
    ) {
        let before = self.lookups.get(&at).filter(|_| !is_fresh).map(|before| before.at);
        let failed = Failed { one, at: before.unwrap_or_else(Instant::now), is_of_a_value };
        self.lookups.insert(at, failed);
    }
}

impl Failed {
    /// Whether it is of the value of a row that may never be another, and of long ago.
    fn is_spent(&self) -> bool {
        self.is_of_a_value && self.at.elapsed() >= VALUES_PAUSE
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::{Failing, VALUES_PAUSE};
    use crate::keys::Wanted;

    fn row(value: &str) -> Wanted {
        Wanted::for_tests(0, value.as_bytes())
    }

    /// The value that failed may stay as it is for ever, and nobody is to be told so for ever.
    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_fails_for_a_value_is_over_it_after_a_while_without_one() {
        let mut failing = Failing::none();
        let mut round = |wanted: &[&str], fresh: usize| {
            let wanted: Vec<Wanted> = wanted.iter().copied().map(row).collect();
            let bad = row("bad");
            let judged = failing.judge((&wanted, fresh), |one| *one != bad);
            for (at, one) in judged.failed {
                failing.fails(at, one, true);
            }
            judged.over
        };
        assert!(round(&["bad"], 1).is_empty());
        assert!(round(&["good"], 1).is_empty(), "the next one may fail again");
        advance(VALUES_PAUSE / 2).await;
        assert!(round(&["good", "bad"], 2).is_empty());
        advance(VALUES_PAUSE / 2).await;
        assert!(round(&["good", "bad"], 1).is_empty(), "one failed half a while ago");
        advance(VALUES_PAUSE / 2).await;
        assert!(round(&["bad"], 0).is_empty(), "none was found");
        assert_eq!(round(&["good", "bad"], 1), [0]);
        assert!(failing.again_at().is_none() && failing.due().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_failed_for_any_row_is_over_once_that_row_is_found() {
        let mut failing = Failing::none();
        let judged = failing.judge((&[row("one")], 1), |_| false);
        for (at, one) in judged.failed {
            failing.fails(at, one, false);
        }
        assert!(failing.is_doubtful(0) && failing.due().is_empty());
        advance(VALUES_PAUSE * 2).await;
        assert_eq!(failing.due(), [row("one")]);
        assert!(failing.judge((&[row("two")], 1), |_| true).over.is_empty());
        assert_eq!(failing.judge((&[row("one")], 0), |_| true).over, [0]);
        assert!(!failing.is_doubtful(0));
    }
}
