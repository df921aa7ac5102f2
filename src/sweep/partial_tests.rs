//! Sweeps of what is in doubt, and nothing else (I7): what stands in Redis before, in between and
//! after.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use super::tests::{Bench, Redis, local, rules};
use super::{Broken, Doubt, Event, Prints, Tables, Watermark, Why};
use crate::keys::{RuleId, Rules};
use crate::lsn::Lsn;
use crate::settle::{Cause, Visible};

const NO_WINDOW: Duration = Duration::ZERO;

/// The fingerprints of rules over no tables.
pub(super) fn prints(rules: &Rules) -> Prints {
    Prints::new(rules.prints(&BTreeSet::new()), BTreeMap::new(), Tables::default(), &[])
}

/// A watermark at 100 under these fingerprints.
pub(super) fn expected(prints: &Prints) -> Watermark {
    Watermark {
        system_id: "7".to_owned(),
        timeline: 1,
        epoch: "e".to_owned(),
        lsn: Lsn(100),
        rules: prints.digest(),
        of_stranger: false,
        is_unproven: false,
    }
}

/// Fingerprints under which `list` was suspended.
fn before() -> Prints {
    let suspended = BTreeSet::from(["list".to_owned()]);
    Prints::new(rules().prints(&suspended), BTreeMap::new(), Tables::default(), &[])
}

/// Fingerprints of these rules with one more standby: [`prints`] after them put no key in doubt.
fn after() -> Prints {
    let replicas = ["gone:1".to_owned()];
    let rules = rules().prints(&BTreeSet::new());
    Prints::new(rules, BTreeMap::new(), Tables::default(), &replicas)
}

/// A Redis with the watermark and the fingerprints of an earlier session.
fn redis(prints: &Prints) -> Redis {
    let redis = Redis::default();
    *redis.0.watermark.borrow_mut() = Some(expected(prints).to_value());
    let details = (prints.to_value(), true);
    redis.0.details.borrow_mut().insert(prints.digest(), details);
    redis
}

impl Bench {
    async fn in_doubt(&mut self) -> Doubt {
        self.wait(|event| match event {
            Event::ResyncOwed(doubt) => Some(doubt.clone()),
            _ => None,
        })
        .await
    }

    async fn covers(&mut self) -> Lsn {
        self.wait(|event| match event {
            Event::Covered(lsn) => Some(*lsn),
            _ => None,
        })
        .await
    }

    /// The sweep of what is in doubt.
    async fn resync_of(&mut self, doubt: &Doubt) {
        let keys = self.rules.part(|place| doubt.is_of(place));
        let visible = Visible::for_tests(Cause::Resync { last: true }, keys);
        self.visible.send(visible).await.unwrap();
    }

    fn mark(&self) -> Watermark {
        Watermark::from_value(self.redis.0.watermark.borrow().as_deref().unwrap()).unwrap()
    }

    /// The digests that are stored, and whether they stay.
    fn stored(&self) -> Vec<(String, bool)> {
        let details = self.redis.0.details.borrow();
        details.iter().map(|(digest, (_, stays))| (digest.clone(), *stays)).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_was_suspended_is_swept_alone_and_the_evidence_stays_until_then() {
    local(async {
        let mut bench = Bench::found(redis(&before()), NO_WINDOW);
        bench.redis.fill(&["item:1", "list:1:a"]);
        let doubt = bench.in_doubt().await;
        assert_eq!(doubt.of_rule(RuleId(1)), Some(Why::WasSuspended));
        assert_eq!((doubt.of_rule(RuleId(0)), doubt.reason()), (None, Broken::TablesChanged));
        bench.safe.send_replace(Lsn(150));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(bench.mark().rules, before().digest(), "the sweep is owed");
        bench.resync_of(&doubt).await;
        bench.covered(150).await;
        assert!(bench.redis.has("item:1") && !bench.redis.has("list:1:a"));
        let own = prints(&rules()).digest();
        assert_eq!((bench.mark().rules, bench.mark().lsn), (own.clone(), Lsn(150)));
        assert_eq!(bench.stored(), [(own, true)], "the others' are of no use any more");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_puts_no_key_in_doubt_is_written_down_at_once_and_sweeps_nothing() {
    local(async {
        let mut bench = Bench::found(redis(&after()), NO_WINDOW);
        assert_eq!(bench.covers().await, Lsn(100), "though nothing was committed");
        let own = prints(&rules()).digest();
        assert_eq!((bench.mark().rules, bench.mark().lsn), (own.clone(), Lsn(100)));
        assert_eq!(bench.stored(), [(own, true)]);
        assert_eq!(bench.redis.0.passes.get(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn fingerprints_that_are_missing_or_not_the_watermarks_put_everything_in_doubt() {
    local(async {
        for details in [None, Some(b"{}".to_vec()), Some(prints(&rules()).to_value())] {
            let redis = redis(&before());
            {
                let mut stored = redis.0.details.borrow_mut();
                stored.clear();
                stored.extend(details.map(|value| (before().digest(), (value, true))));
            }
            let mut bench = Bench::found(redis, NO_WINDOW);
            let doubt = bench.in_doubt().await;
            assert_eq!(doubt, Doubt::Everything(Broken::OtherRules));
        }
        // As a version wrote it that had one fingerprint for all.
        let redis = Redis::default();
        let rules = "0123456789abcdef tables:0123456789abcdef".to_owned();
        let mark = Watermark { rules, ..expected(&prints(&super::tests::rules())) };
        *redis.0.watermark.borrow_mut() = Some(mark.to_value());
        let mut bench = Bench::found(redis, NO_WINDOW);
        assert_eq!(bench.in_doubt().await, Doubt::Everything(Broken::OtherRules));
    })
    .await;
}

/// The sweep of a part makes good nothing else that Redis lost.
#[tokio::test(start_paused = true)]
async fn a_redis_that_goes_back_while_a_part_is_owed_is_swept_whole() {
    local(async {
        for found in [None, Some(b"older".to_vec()), Some(expected(&before()).to_value())] {
            let mut bench = Bench::found(redis(&before()), NO_WINDOW);
            bench.redis.fill(&["item:1", "list:1:a"]);
            let part = bench.in_doubt().await;
            bench.redis.0.fails.set(Some(super::Kind::Io));
            bench.resync_of(&part).await;
            bench.wait(|event| matches!(event, Event::RedisLost).then_some(())).await;
            let is_the_same = *bench.redis.0.watermark.borrow() == found;
            *bench.redis.0.watermark.borrow_mut() = found;
            bench.redis.0.fails.set(None);
            bench.safe.send_replace(Lsn(150));
            if !is_the_same {
                let whole = bench.in_doubt().await;
                assert_eq!(whole, Doubt::Everything(Broken::WatermarkLost));
                bench.resync_of(&whole).await;
            }
            assert_eq!(bench.covers().await, Lsn(150));
            assert_eq!(bench.redis.has("item:1"), is_the_same);
            assert!(!bench.redis.has("list:1:a"));
        }
    })
    .await;
}

/// Tables that change without any doubt: the next start must know of it, and a Redis that goes back
/// to before it has lost nothing that cannot be repeated.
#[tokio::test(start_paused = true)]
async fn fingerprints_that_are_taken_up_on_the_way_are_stored_before_the_watermark_carries_them() {
    local(async {
        let mut bench = Bench::new(NO_WINDOW);
        bench.commit(110, "item", &["1"]).await;
        assert_eq!(bench.swept().await, [110]);
        bench.safe.send_replace(Lsn(110));
        bench.covered(110).await;
        let first = bench.mark();
        bench.adopt.send_replace(Rc::new(after()));
        assert_eq!(bench.covers().await, Lsn(110), "though nothing was committed");
        assert_eq!((bench.mark().rules, bench.mark().lsn), (after().digest(), Lsn(110)));
        assert_eq!(bench.stored(), [(after().digest(), true)]);
        bench.commit(120, "item", &["2"]).await;
        assert_eq!(bench.swept().await, [120]);
        bench.safe.send_replace(Lsn(120));
        bench.covered(120).await;
        bench.redis.0.fails.set(Some(super::Kind::Io));
        bench.commit(130, "item", &["3"]).await;
        bench.wait(|event| matches!(event, Event::RedisLost).then_some(())).await;
        *bench.redis.0.watermark.borrow_mut() = Some(first.to_value());
        bench.redis.fill(&["item:2"]);
        bench.redis.0.fails.set(None);
        assert_eq!(bench.swept().await, [130]);
        bench.safe.send_replace(Lsn(130));
        let covered = bench.wait(|event| {
            assert!(!matches!(event, Event::ResyncOwed(_)), "a sweep for nothing");
            matches!(event, Event::Covered(Lsn(130))).then_some(())
        });
        covered.await;
        assert!(!bench.redis.has("item:2"), "it is removed again");
        assert_eq!(bench.mark().rules, after().digest());
    })
    .await;
}
