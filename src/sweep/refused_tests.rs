//! Refusals by Redis, for one rule or for all, on paused time.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::partial_tests::{expected, prints};
use super::proof::ward::{Found, Ward};
use super::redis::pass::Noted;
use super::refused::Refusals;
use super::samples::Samples;
use super::tests::{Bench, Redis, keys, local, rule, rules};
use super::{Doubt, Event, Kind, Pace, Pass, Watermark};
use crate::config::Rule;
use crate::keys::{Pattern, RuleId, Rules};
use crate::lsn::Lsn;

/// Nothing to be tried before a pass.
fn none() -> Option<Samples> {
    Some(Samples::default())
}

/// A rule whose keys are refused, for one transaction with others: each goes its own way.
#[tokio::test(start_paused = true)]
async fn what_is_refused_of_a_transaction_holds_it_and_the_rest_goes() {
    for window in [Duration::ZERO, Duration::from_secs(1)] {
        local(async {
            let mut bench = Bench::new(window);
            bench.whole().await;
            bench.redis.fill(&["item:1", "item:2", "list:1:a", "list:1:b"]);
            bench.redis.forbid(Some("list:*a"));
            let mut keys = keys(&bench.rules, "item", &["1"]);
            keys.merge(&super::tests::keys(&bench.rules, "list", &["1"]));
            bench.commit_keys(110, keys).await;
            bench.commit(120, "item", &["2"]).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert!(!bench.redis.has("item:1") && !bench.redis.has("list:1:b"));
            let (ready, text) = bench.health.readiness();
            assert!(!ready && text.contains("rule `list`") && text.contains("~list:*:*"), "{text}");
            // The later one is through; with a window it shares the second removal of the first.
            let early = timeout(Duration::from_secs(30), bench.all_swept(2)).await;
            assert!(early.is_err(), "confirmed with a key that is there");
            let count = if window.is_zero() { 1 } else { 2 };
            bench.redis.forbid(None);
            assert_eq!(bench.all_swept(count).await.first(), Some(&110));
            assert!(!bench.redis.has("list:1:a"));
            let (_, text) = bench.health.readiness();
            assert!(!text.contains("refuses"), "{text}");
        })
        .await;
    }
}

/// I6: what is refused of a rule takes no more room than so many keys, whoever waits for it.
#[test]
fn many_refused_keys_of_a_rule_become_its_pattern() {
    let (rules, mut refusals) = (rules(), Refusals::new(1 << 20));
    let mut add = |ids: std::ops::Range<u32>| {
        let ids: Vec<String> = ids.map(|id| id.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let keys = keys(&rules, "item", &ids);
        let (_hold, widened) = refusals.add((RuleId(0), keys), Lsn(1), none(), Instant::now());
        (widened, refusals.sizes(RuleId(0)))
    };
    assert_eq!(add(0..6_000), (Vec::new(), (6_000, 0)));
    assert_eq!(add(4_000..10_000), (Vec::new(), (10_000, 0)));
    assert_eq!(add(0..10_001), (vec![(RuleId(0), 1)], (0, 1)));
    assert_eq!(add(20_000..20_001).1, (0, 1), "the pattern has it");
}

/// I6: a rule of many templates, each with few bytes of keys, does not give way. The others do.
#[test]
fn what_cannot_give_way_keeps_no_other_from_it() {
    const SHARE: usize = 64 << 10;
    let long = "x".repeat(400);
    let wide: Vec<String> = (0..200).map(|at| format!("w{at}:{{id}}")).collect();
    let wide: Vec<&str> = wide.iter().map(String::as_str).collect();
    let mut all = vec![Rule { name: "wide".to_owned(), ..Rule::for_tests("wide", &wide) }];
    let narrow = |at: u16| rule(&format!("r{at}"), "item", &format!("r{at}:{long}:{{id}}"));
    all.extend((1..=20).map(narrow));
    let rules = Rules::compile(&all).unwrap();
    let mut refusals = Refusals::new(SHARE);
    let mut add = |table: &str, id: &str| {
        for (rule, part) in keys(&rules, table, &[id]).by_rule() {
            refusals.add((rule, part), Lsn(1), none(), Instant::now());
        }
    };
    add("wide", "1");
    (0..200).for_each(|id| add("item", &id.to_string()));
    let used = rules.memory().used();
    assert!(used <= SHARE, "{used} bytes");
    assert_eq!(refusals.sizes(RuleId(0)), (200, 0));
    assert!((1..=20).any(|at| refusals.sizes(RuleId(at)) == (0, 1)));
}

/// I8: what was refused has a second removal after its first.
#[tokio::test(start_paused = true)]
async fn what_was_refused_is_removed_again_after_the_window() {
    local(async {
        let mut bench = Bench::new(Duration::from_secs(5));
        bench.whole().await;
        bench.redis.fill(&["item:1"]);
        bench.redis.forbid(Some("item:*"));
        bench.commit(110, "item", &["1"]).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        bench.redis.forbid(None);
        while bench.redis.has("item:1") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
        bench.redis.fill(&["item:1"]);
        assert_eq!(bench.swept().await, [110]);
        assert!(!bench.redis.has("item:1"), "written within the window");
    })
    .await;
}

/// I6: what is refused is one set for each rule, and costs Redis a few commands each time.
#[tokio::test(start_paused = true)]
async fn refused_keys_are_tried_as_one_ever_more_rarely() {
    local(async {
        let mut bench = Bench::new(Duration::from_secs(1));
        bench.whole().await;
        bench.redis.forbid(Some("item:*"));
        bench.redis.fill(&["list:1:a", "item:3"]);
        for at in 0..2_000 {
            bench.commit(110 + at, "item", &[&at.to_string()]).await;
        }
        bench.commit(3_000, "list", &["1"]).await;
        assert_eq!(bench.swept().await, [3_000]);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let (calls, passes) = (bench.redis.0.unlinks.get(), bench.redis.0.passes.get());
        tokio::time::sleep(Duration::from_secs(100)).await;
        let calls = bench.redis.0.unlinks.get() - calls;
        assert!(calls < 200, "{calls} round trips in a hundred seconds");
        assert_eq!(bench.redis.0.passes.get(), passes, "and no pass");
        bench.redis.forbid(None);
        assert_eq!(bench.all_swept(2_000).await.len(), 2_000);
        assert!(!bench.redis.has("item:3"));
    })
    .await;
}

/// A pattern that is refused is not looked for in all of Redis before a key of it can be removed.
#[tokio::test(start_paused = true)]
async fn no_pass_is_made_for_a_pattern_before_one_of_its_keys_can_be_removed() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.whole().await;
        let names: Vec<String> = (0..11_000).map(|number| format!("list:1:{number}")).collect();
        bench.redis.fill(&names.iter().map(String::as_str).collect::<Vec<_>>());
        bench.redis.forbid(Some("list:*"));
        bench.commit(110, "list", &["1"]).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        let passes = bench.redis.0.passes.get();
        assert!(passes >= 1, "it is looked for once");
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(bench.redis.0.passes.get(), passes);
        bench.redis.forbid(None);
        assert_eq!(bench.swept().await, [110]);
        assert!(bench.redis.0.keys.borrow().is_empty());
    })
    .await;
}

/// The rules `a` of `item` and `b` of `list`, of exact keys, refused, and the keys `a:5` and `b:5`.
async fn refused_a_and_b(ids: [&[&str]; 2]) -> Bench {
    let rules = [rule("a", "item", "a:{id}"), rule("b", "list", "b:{id}")];
    let rules = Rules::compile(&rules).unwrap();
    let mut bench = Bench::of(rules, Redis::default(), Duration::ZERO);
    bench.redis.fill(&["a:5", "b:5"]);
    bench.redis.forbid(Some("[ab]:*"));
    let mut all = keys(&bench.rules, "item", ids[0]);
    all.merge(&keys(&bench.rules, "list", ids[1]));
    bench.commit_keys(110, all).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    bench
}

/// Whether a right is there is found out with keys of the rule that it is about, whatever else was
/// in the transaction: no later than 10 s and a pass after it is given. So also where the right is
/// on some keys of it only.
#[tokio::test(start_paused = true)]
async fn a_right_on_the_keys_of_one_rule_is_noticed_beside_another_that_stays_refused() {
    local(async {
        let ids: Vec<String> = (0..10_500).map(|id| id.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        for refused_then in ["a:*", r"[ab]:\**"] {
            let bench = refused_a_and_b([&ids[..100], &ids]).await;
            let passes = bench.redis.0.passes.get();
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert_eq!(bench.redis.0.passes.get(), passes, "no pass for nothing");
            assert!(bench.redis.has("a:5") && bench.redis.has("b:5"));
            bench.redis.forbid(Some(refused_then));
            tokio::time::sleep(Duration::from_secs(11)).await;
            assert!(!bench.redis.has("b:5"), "{refused_then}");
            assert_eq!(bench.redis.has("a:5"), refused_then == "a:*");
        }
    })
    .await;
}

/// I6: of keys as long as can be nothing is kept once they are a pattern, and no pass is made for
/// it before they can be removed.
#[tokio::test(start_paused = true)]
async fn long_keys_are_not_kept_and_cost_no_pass_for_nothing() {
    local(async {
        let ids: Vec<String> = (0..6).map(|id| format!("{id}{}", "x".repeat(900_000))).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let bench = refused_a_and_b([&ids[..3], &ids[3..]]).await;
        let used = bench.rules.memory().used();
        assert!(used < 64 << 10, "{used} bytes");
        let passes = bench.redis.0.passes.get();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(bench.redis.0.passes.get(), passes);
        bench.redis.forbid(None);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert!(!bench.redis.has("a:5") && !bench.redis.has("b:5"));
    })
    .await;
}

/// I6: what is tried before a pass is counted, and has a part of the share, however many rules
/// there are.
#[test]
fn samples_of_many_rules_are_counted_and_bounded() {
    const SHARE: usize = 256 << 10;
    let narrow = |at: u16| rule(&format!("r{at}"), "item", &format!("r{at}:{{id}}"));
    let rules = Rules::compile(&(0..200).map(narrow).collect::<Vec<_>>()).unwrap();
    let ids: Vec<String> = (0..12).map(|id| format!("{id}{}", "x".repeat(1_000))).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let used = || {
        let mut refusals = Refusals::new(SHARE);
        for (rule, part) in keys(&rules, "item", &ids).by_rule() {
            let samples = Samples::of(part.exact().map(|(_, key)| key), part.exact_len());
            assert!(samples.bytes() > 3_000, "{}", samples.bytes());
            refusals.add((rule, part), Lsn(1), Some(samples), Instant::now());
        }
        assert_eq!(rules.memory().used(), refusals.bytes());
        (refusals.bytes(), refusals.samples_bytes())
    };
    let (all, samples) = used();
    assert!(all <= SHARE, "{all} bytes");
    assert!((SHARE / 8..=SHARE / 4).contains(&samples), "{samples} bytes");
}

/// I6: what a pass notes of refused keys is bounded; the pattern stands for them beyond it.
#[tokio::test(start_paused = true)]
async fn a_pass_notes_no_more_refused_keys_than_there_is_room_for() {
    let redis = Redis::default();
    let names: Vec<String> = (0..2_000).map(|at| format!("list:{at}:{at:0>400}")).collect();
    redis.fill(&names.iter().map(String::as_str).collect::<Vec<_>>());
    redis.fill(&["item:1", "item:2"]);
    redis.forbid(Some("[il]*"));
    for (bytes_max, is_whole) in [(1 << 20, false), (512 << 10, true)] {
        let patterns = ["item:*", "list:*"].map(|text| Pattern::parse(text.as_bytes())).into();
        let mut pass = Pass::new(patterns);
        pass.refused_bytes_max = bytes_max;
        let mut pace = Pace::new(Duration::from_millis(1), 1.0);
        let progress = pass.run(&redis, &mut pace, |_| {}).await.unwrap();
        let is = |at: usize| matches!(progress.refused.get(&at), Some(Noted::Whole(_)));
        assert_eq!((is(0), is(1), progress.is_refused()), (false, is_whole, true));
        let kept = |at: usize| match progress.refused.get(&at) {
            Some(Noted::Keys(keys)) => keys.len(),
            _ => 0,
        };
        assert_eq!((kept(0), kept(1)), (2, if is_whole { 0 } else { 2_000 }));
    }
}

/// I7: a sweep of everything is not over while a part of it is refused.
#[tokio::test(start_paused = true)]
async fn a_sweep_that_is_refused_in_part_stays_owed() {
    for window in [Duration::ZERO, Duration::from_secs(1)] {
        local(async {
            let mut bench = Bench::over(Redis::default(), None, window);
            bench.redis.fill(&["item:1", "list:1:a"]);
            bench.redis.forbid(Some("list:*"));
            bench.resync().await;
            let early = timeout(Duration::from_secs(30), bench.whole()).await;
            assert!(early.is_err(), "ready with a stale key");
            assert!(!bench.redis.has("item:1"), "the other rule's keys go");
            // Also over a reconnect.
            bench.redis.0.fails.set(Some(Kind::Io));
            bench.commit(110, "item", &["2"]).await;
            bench.wait(|event| matches!(event, Event::RedisLost).then_some(())).await;
            bench.redis.0.fails.set(None);
            assert!(timeout(Duration::from_secs(30), bench.whole()).await.is_err(), "after it");
            bench.safe.send_replace(Lsn(150));
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(bench.redis.watermark_lsn(), None);
            bench.redis.forbid(None);
            bench.whole().await;
            bench.covered(150).await;
            assert!(!bench.redis.has("list:1:a"));
        })
        .await;
    }
}

/// I2: the keys that were refused may have had both removals while the second pass of the others
/// still goes on. The watermark waits for that: a late fill must not outlive a crash.
#[tokio::test(start_paused = true)]
async fn a_watermark_waits_for_the_second_pass_of_a_sweep_that_was_refused_in_part() {
    local(async {
        let mut bench = Bench::over(Redis::default(), None, Duration::from_millis(400));
        let others: Vec<String> = (0..2_000).map(|at| format!("other:{at}")).collect();
        bench.redis.fill(&others.iter().map(String::as_str).collect::<Vec<_>>());
        bench.redis.fill(&["list:1:a"]);
        bench.redis.forbid(Some("list:*"));
        bench.resync().await;
        while bench.redis.0.passes.get() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Its keys are refused by then, and not tried again yet.
        tokio::time::sleep(Duration::from_millis(50)).await;
        bench.redis.forbid(None);
        bench.redis.0.key_work.set(1_000);
        bench.whole().await;
        assert!(!bench.redis.has("list:1:a"));
        bench.redis.fill(&["list:2:late"]);
        bench.safe.send_replace(Lsn(150));
        bench.covered(150).await;
        assert!(!bench.redis.has("list:2:late"));
    })
    .await;
}

/// Of what rests of a sweep, not all is removed again over a reconnect: the keys that were refused
/// had both removals. So a Redis that may have lost those is swept.
#[test]
fn what_rests_of_a_sweep_makes_good_no_redis_that_went_back() {
    for (stands, is_swept) in [(true, false), (false, true)] {
        let prints = Rc::new(prints(&rules()));
        let behind = Watermark { lsn: Lsn(90), ..expected(&prints) };
        let found =
            |mark: &Watermark| Found { watermark: Some(mark.to_value()), ..Found::default() };
        let own = (None, Doubt::none());
        let mut ward = Ward::new(expected(&prints), Lsn(100), Rc::clone(&prints), own);
        assert!(ward.connected(found(&behind), Lsn(100)).is_err(), "it is behind");
        ward.shown();
        ward.rests();
        ward.paid();
        assert!(ward.owes() && ward.next(Lsn(150)).is_none());
        let now = if stands { behind } else { Watermark { lsn: Lsn(80), ..behind } };
        assert_eq!(ward.connected(found(&now), Lsn(100)).is_err(), is_swept);
        ward.rested();
        assert_eq!(ward.owes(), is_swept);
    }
}

/// Without the right to SCAN every rule's patterns are refused, and come back together.
#[tokio::test(start_paused = true)]
async fn a_sweep_refused_for_all_rules_is_over_when_all_of_them_are() {
    local(async {
        let mut bench = Bench::over(Redis::default(), None, Duration::from_secs(1));
        bench.resync().await;
        bench.whole().await;
        bench.redis.0.no_scan.set(true);
        bench.redis.0.fails.set(Some(Kind::Io));
        bench.commit(110, "item", &["2"]).await;
        bench.wait(|event| matches!(event, Event::RedisLost).then_some(())).await;
        bench.redis.fill(&["item:1", "list:1:a"]);
        bench.redis.0.fails.set(None);
        assert!(timeout(Duration::from_secs(30), bench.whole()).await.is_err(), "stale keys");
        bench.redis.0.no_scan.set(false);
        bench.whole().await;
        assert!(!bench.redis.has("item:1") && !bench.redis.has("list:1:a"));
        bench.safe.send_replace(Lsn(150));
        bench.covered(150).await;
    })
    .await;
}

/// A server that takes no writes is no rule's fault: it is named, and tried now and then.
#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_everything_is_tried_now_and_then() {
    local(async {
        for kind in [Kind::Misconf, Kind::NoReplicas, Kind::Busy, Kind::Other] {
            let mut bench = Bench::new(Duration::from_secs(1));
            bench.whole().await;
            bench.redis.0.refuses.set(Some(kind));
            bench.redis.fill(&["item:1", "list:1:a"]);
            bench.commit(110, "item", &["1"]).await;
            bench.commit(120, "list", &["1"]).await;
            tokio::time::sleep(Duration::from_secs(28)).await;
            assert!(!bench.health.readiness().1.contains("have waited"), "{kind:?}: not 30 s yet");
            tokio::time::sleep(Duration::from_secs(4)).await;
            assert!(bench.health.readiness().1.contains("have waited"), "{kind:?}: 30 s");
            let (tried, passes) = (bench.redis.0.refused.get(), bench.redis.0.passes.get());
            tokio::time::sleep(Duration::from_secs(60)).await;
            let tried = bench.redis.0.refused.get() - tried;
            assert!(tried <= 70, "{kind:?}: {tried} tries in a minute");
            assert!(bench.redis.0.passes.get() - passes <= 6, "{kind:?}");
            let (ready, text) = bench.health.readiness();
            assert!(!ready && text.contains("refuses removals"), "{kind:?}: {text}");
            assert!(text.contains("of rule `item` have waited"), "{kind:?}: {text}");
            bench.redis.0.refuses.set(None);
            // The longest wait between two tries, and the second removal.
            let swept = timeout(Duration::from_secs(13), bench.all_swept(2)).await;
            assert_eq!(swept.expect("tried within ten seconds"), [110, 120], "{kind:?}");
            tokio::time::sleep(Duration::from_secs(2)).await;
            let (_, text) = bench.health.readiness();
            assert!(!text.contains("refuses") && !text.contains("waited"), "{kind:?}: {text}");
        }
    })
    .await;
}

/// I3: second removals are under way beside first ones.
#[tokio::test(start_paused = true)]
async fn a_first_removal_does_not_wait_for_a_second_one() {
    local(async {
        let mut bench = Bench::new(Duration::from_secs(1));
        bench.whole().await;
        let ids: Vec<String> = (0..40_000).map(|id| id.to_string()).collect();
        bench.commit(110, "item", &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
        tokio::time::sleep(Duration::from_millis(1_050)).await;
        // Each round trip of the second removal takes a second now.
        bench.redis.0.slow.set(1_000_000);
        tokio::time::sleep(Duration::from_millis(500)).await;
        bench.redis.0.slow.set(0);
        bench.redis.fill(&["item:x"]);
        bench.commit(120, "item", &["x"]).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!bench.redis.has("item:x"), "it waits for second removals");
        assert_eq!(bench.all_swept(2).await, [110, 120]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_holds_back_nobody_else() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.whole().await;
        bench.redis.fill(&["item:1", "item:2", "item:3"]);
        bench.redis.forbid(Some("item:2"));
        for (at, id) in ["1", "2", "3"].iter().enumerate() {
            bench.commit(110 + at as u64, "item", &[id]).await;
        }
        let mut swept = bench.swept().await;
        while swept.len() < 2 {
            swept.extend(bench.swept().await);
        }
        assert_eq!(swept, [110, 112]);
        assert!(bench.redis.has("item:2"));
        bench.redis.forbid(None);
        assert_eq!(bench.swept().await, [111]);
    })
    .await;
}

/// A part may be there again before anybody asked whether it is: slots of a cluster get another
/// primary.
#[tokio::test(start_paused = true)]
async fn a_part_that_is_there_again_without_a_word_is_connected_to_again() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.whole().await;
        bench.redis.fill(&["item:1", "item:2"]);
        bench.redis.forbid(Some("item:2"));
        *bench.redis.0.away.borrow_mut() = Some("one of two".to_owned());
        bench.commit(110, "item", &["1"]).await;
        bench.wait(|event| matches!(event, Event::RedisLost).then_some(())).await;
        bench.commit(120, "item", &["2"]).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        *bench.redis.0.away.borrow_mut() = None;
        bench.redis.forbid(None);
        bench.whole().await;
        bench.safe.send_replace(Lsn(120));
        bench.covered(120).await;
        assert!(!bench.redis.has("item:2"));
    })
    .await;
}
