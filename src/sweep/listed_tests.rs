//! Jobs that go by the index, and what becomes of them where it is lost on the way.

use std::rc::Rc;
use std::time::Duration;

use super::job::{Job, Member, Round};
use super::listed::Listed;
use super::tests::{Bench, Inner, Redis, keys, local, rules};
use super::{Indexed, Scanned};
use crate::config::{Fields, Located, Location, Rule};
use crate::keys::{KeySet, Pattern, RuleId, Rules};
use crate::lsn::Lsn;

impl Inner {
    /// The next name of the index, if it is not lost.
    pub(super) fn list_one(&self, prefix: &[u8], after: Option<&[u8]>) -> Option<Vec<Vec<u8>>> {
        let mut index = self.index.borrow_mut();
        let (_, pages) = index.as_mut()?;
        *pages = pages.checked_sub(1)?;
        let keys = self.keys.borrow();
        let mut next = keys.iter().filter(|key| after.is_none_or(|after| key.as_slice() > after));
        Some(next.find(|key| key.starts_with(prefix)).cloned().into_iter().collect())
    }

    pub(super) fn listed_patterns(&self) -> Vec<Pattern> {
        let index = self.index.borrow();
        index.as_ref().map(|(patterns, _)| patterns.clone()).unwrap_or_default()
    }

    pub(super) fn standing(&self) -> Option<Indexed> {
        let index = self.index.borrow();
        index.as_ref().map(|_| Indexed { is_whole: true, ..Indexed::default() })
    }
}

impl Redis {
    /// Itself, and once more where keys have come meanwhile.
    pub(super) fn next_primaries(&self, scanned: &mut Scanned) -> Vec<&Redis> {
        let once = scanned.once(self);
        match self.0.arrivals.get().checked_sub(1) {
            Some(fewer) if once.is_empty() => {
                self.0.arrivals.set(fewer);
                vec![self]
            }
            _ => once,
        }
    }
}

fn patterns() -> Vec<Pattern> {
    vec![Pattern::parse(b"list:*:*")]
}

/// The index is lost before anything is listed, after one key, and not at all.
#[tokio::test(start_paused = true)]
async fn what_an_index_that_is_lost_on_the_way_has_not_listed_is_scanned_for() {
    for (pages, passes) in [(0, 1), (1, 1), (2, 1), (100, 0)] {
        local(async {
            let redis = Redis::default();
            redis.0.index.replace(Some((patterns(), pages)));
            redis.fill(&["list:7:a", "list:7:b", "list:7:c", "list:8:a"]);
            let mut bench = Bench::over(redis, Some(100), Duration::ZERO);
            bench.whole().await;
            let before = bench.redis.0.passes.get();
            bench.commit(110, "list", &["7"]).await;
            assert_eq!(bench.swept().await, [110]);
            for key in ["list:7:a", "list:7:b", "list:7:c"] {
                assert!(!bench.redis.has(key), "{key}, lost after {pages}");
            }
            assert!(bench.redis.has("list:8:a"));
            assert_eq!(bench.redis.0.passes.get() - before, passes, "lost after {pages}");
        })
        .await;
    }
}

/// A pass by the index shows that Redis is what it was, as one by SCAN does, though it removed
/// nothing; and names are here before they are listed.
#[tokio::test(start_paused = true)]
async fn a_pass_by_the_index_waits_for_names_and_counts_as_a_removal() {
    local(async {
        let redis = Redis::default();
        redis.0.index.replace(Some((patterns(), 100)));
        let mut bench = Bench::over(redis, Some(100), Duration::ZERO);
        bench.whole().await;
        let before = bench.redis.0.proofs.get();
        bench.commit(110, "list", &["7"]).await;
        assert_eq!(bench.swept().await, [110]);
        let after = bench.redis.0.proofs.get();
        // Removals of nothing: of the keys that the commit names, and of the pass. Fences of it.
        assert_eq!((after.0 - before.0, after.1 - before.1), (2, 2));
    })
    .await;
}

/// Who knows how keys were told of that came from another primary meanwhile.
#[tokio::test(start_paused = true)]
async fn where_keys_come_to_during_a_pass_by_the_index_they_are_scanned_for() {
    for (arrivals, passes) in [(0, 0), (1, 1)] {
        local(async {
            let redis = Redis::default();
            redis.0.index.replace(Some((patterns(), 100)));
            let mut bench = Bench::over(redis, Some(100), Duration::ZERO);
            bench.whole().await;
            let before = bench.redis.0.passes.get();
            bench.redis.0.arrivals.set(arrivals);
            bench.commit(110, "list", &["7"]).await;
            assert_eq!(bench.swept().await, [110]);
            assert_eq!(bench.redis.0.passes.get() - before, passes);
        })
        .await;
    }
}

#[test]
fn an_index_is_asked_for_what_it_knows_alone() {
    let listed = Listed::new(patterns(), 1 << 20).unwrap();
    let knows = |member: Member, keys: KeySet| {
        listed.knows(&Job::new(vec![member], keys, Round::First, Lsn(1)))
    };
    let (rules, token) = (rules(), Rc::new(()));
    let repeat = || Member::Repeat { token: Rc::clone(&token) };
    assert!(knows(repeat(), keys(&rules, "list", &["7", "8"])));
    // Nothing says that Redis is what it was.
    let resync = Member::Resync { last: true, settles: true, token: Rc::clone(&token) };
    assert!(!knows(resync, keys(&rules, "list", &["7"])));
    assert!(!knows(Member::Retry(RuleId(1)), keys(&rules, "list", &["7"])));
    // `item:*`, of a value that is not known.
    assert!(!knows(repeat(), rules.everything()));
    // Fields are found in the pages of a SCAN.
    let text = |value: &str| Located { value: value.to_owned(), at: Location::default() };
    let mut rule = Rule::for_tests("t", &["list:{id}:*"]);
    let all = |rule: &Rule| Rules::compile(std::slice::from_ref(rule)).unwrap().everything();
    assert!(knows(repeat(), all(&rule)));
    rule.fields = vec![Fields { key: text("user:{id}"), fields: vec![text("a")] }];
    assert!(!knows(repeat(), all(&rule)));
}
