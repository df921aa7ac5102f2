//! Sets by transaction and subtransaction: what is undone goes, all else stays, within a limit.

use proptest::prelude::*;

use super::in_progress::InProgress;
use super::packed::Packed;
use super::tests::{compile, rule};
use super::{Binding, Bound, KeySet, WidenReason};
use crate::decode::{Tuple, Value};
use crate::gather::{Change, Row};

const TEMPLATES: [&str; 4] = ["all", "list:*", "k:{id}", "n:{name}:*"];

fn rules() -> Bound {
    compile(rule(&TEMPLATES)).bind(Binding::default())
}

fn change(id: u32) -> Change {
    let (id, name) = (id.to_string(), (id % 7).to_string());
    let values =
        [Value::Text(id.as_bytes()), Value::Text(name.as_bytes()), Value::Null, Value::Null];
    let relation = super::tests::relation();
    Change { relation, row: Row::Insert { new: Tuple::from_values(&values) } }
}

/// Everything in a set, as text, in order.
fn listed(keys: &KeySet) -> Vec<String> {
    let exact = keys.exact().map(|(_, key)| key.escape_ascii().to_string());
    let patterns = keys.patterns().map(|(_, p)| format!("~{}", p.as_bytes().escape_ascii()));
    let mut all: Vec<String> = exact.chain(patterns).collect();
    all.extend(keys.matches().map(|(rule, count)| format!("matches {rule:?} {count}")));
    all.extend(keys.widened().map(|(rule, why, count)| format!("{rule:?} {why:?} {count}")));
    all.sort();
    all
}

/// The keys of these rows.
fn keys_of(rules: &mut Bound, ids: impl IntoIterator<Item = u32>) -> KeySet {
    let mut keys = rules.key_set();
    ids.into_iter().for_each(|id| rules.add(&change(id), &mut keys));
    keys
}

#[test]
fn what_is_packed_comes_back_whole() {
    let mut rules = rules();
    let mut keys = keys_of(&mut rules, 0..300);
    let truncate = Change { row: Row::Truncate, ..change(0) };
    for step in ["rows", "everything"] {
        let mut back = rules.key_set();
        Packed::new(&keys).add_to(&mut back);
        assert_eq!(listed(&back), listed(&keys), "{step}");
        rules.add(&truncate, &mut keys);
    }
}

#[test]
fn ten_thousand_subtransactions_cost_little_and_are_undone_one_by_one() {
    let mut rules = rules();
    let mut open = InProgress::new(rules.key_set());
    open.enter(1);
    for sub in 0..10_000 {
        rules.add(&change(sub), open.of(10 + sub));
        rules.add(&change(sub / 1000), open.of(1));
    }
    open.leave();
    let bytes = open.bytes();
    assert!(bytes < 3 << 20, "{bytes} bytes");
    (0..10_000).filter(|sub| sub % 2 == 1).for_each(|sub| open.abort(1, 10 + sub));
    assert!(open.bytes() < bytes * 6 / 10, "{} of {bytes} bytes", open.bytes());
    let left = open.commit(1);
    let survivors = (0..10_000).filter(|sub| sub % 2 == 0).chain((0..10_000).map(|n| n / 1000));
    assert_eq!(listed(&left), listed(&keys_of(&mut rules, survivors)));
    assert_eq!((open.len(), open.bytes()), (0, 0));
}

#[test]
fn beyond_the_limit_the_largest_collapses_and_loses_nothing() {
    let mut rules = rules();
    let mut open = InProgress::new(rules.key_set()).with_limit(1 << 18);
    open.enter(2);
    rules.add(&change(5), open.of(2));
    open.leave();
    let mut peak = 0;
    for block in 0..20 {
        open.enter(1);
        for sub in block * 1000..(block + 1) * 1000 {
            rules.add(&change(sub), open.of(10 + sub));
        }
        open.leave();
        peak = peak.max(open.bytes());
    }
    assert!(peak <= 1 << 18, "{peak} bytes");
    // Its sets are one: nothing can be taken out of it.
    open.abort(1, 10);
    let large = open.commit(1);
    let limit = large.widened().find(|(_, why, _)| *why == WidenReason::Limit);
    assert!(limit.is_some_and(|(_, _, count)| count > 0), "{:?}", listed(&large));
    for (_, key) in keys_of(&mut rules, 0..20_000).exact() {
        let covered = large.exact_rule(key).is_some()
            || large.patterns().any(|(_, pattern)| pattern.matches(key));
        assert!(covered, "lost {}", key.escape_ascii());
    }
    let small = open.commit(2);
    assert_eq!(listed(&small), listed(&keys_of(&mut rules, [5])), "the other is as it was");
}

/// Keys that only the last subtransactions gave are part of what collapses.
#[test]
fn what_is_ready_collapses_with_the_rest() {
    let mut rules = rules();
    let mut open = InProgress::new(rules.key_set()).with_limit(1 << 16);
    let unnamed = |id: u32| {
        let id = id.to_string();
        let values = [Value::Text(id.as_bytes()), Value::Null, Value::Null, Value::Null];
        Change { row: Row::Insert { new: Tuple::from_values(&values) }, ..change(0) }
    };
    open.enter(1);
    (0..2_000).for_each(|id| rules.add(&unnamed(id), open.of(1)));
    rules.add(&change(5), open.of(11));
    open.leave();
    let keys = open.commit(1);
    assert!(keys.widened().any(|(_, why, _)| why == WidenReason::Limit), "{:?}", listed(&keys));
    assert!(keys.patterns().any(|(_, own)| own.matches(b"n:5:x")), "{:?}", listed(&keys));
}

/// Within one block, too, which has no end before the commit.
#[test]
fn one_block_of_many_subtransactions_is_bounded() {
    let mut rules = rules();
    let mut open = InProgress::new(rules.key_set()).with_limit(1 << 18);
    open.enter(1);
    for sub in 0..20_000 {
        rules.add(&change(sub), open.of(10 + sub));
        if sub % 500 == 0 {
            assert!(open.bytes() < 1 << 19, "{} bytes of {sub} subtransactions", open.bytes());
        }
    }
    open.leave();
    let keys = open.commit(1);
    for id in 0..20_000 {
        let key = format!("k:{id}").into_bytes();
        assert!(keys.patterns().any(|(_, own)| own.matches(&key)), "lost k:{id}");
    }
}

/// Of many that wait, each small, none has the memory of all.
#[test]
fn transactions_without_subtransactions_are_bounded_together() {
    let mut rules = rules();
    let mut open = InProgress::new(rules.key_set()).with_limit(1 << 19);
    for top in 1..20 {
        open.enter(top);
        for id in 0..2_000 {
            rules.add(&change(top * 10_000 + id), open.of(top));
        }
        open.leave();
        assert!(open.bytes() <= 1 << 19, "{} bytes of {top} transactions", open.bytes());
    }
    for top in 1..20 {
        let keys = open.commit(top);
        for (_, key) in keys_of(&mut rules, top * 10_000..top * 10_000 + 2_000).exact() {
            let covered = keys.exact_rule(key).is_some()
                || keys.patterns().any(|(_, pattern)| pattern.matches(key));
            assert!(covered, "lost {}", key.escape_ascii());
        }
    }
}

#[test]
fn what_is_released_goes_once_and_counts_for_the_commit() {
    let mut rules = rules();
    let mut open = InProgress::new(rules.key_set());
    open.enter(1);
    for (xid, ids) in [(1, 0..20), (11, 20..40), (12, 40..60)] {
        ids.for_each(|id| rules.add(&change(id), open.of(xid)));
    }
    let mut asked = open.unreleased(10);
    asked[0].1.sort_unstable();
    assert_eq!(asked, [(1, vec![11, 12])]);
    let exact = |keys: &KeySet| {
        let mut all: Vec<String> =
            keys.exact().map(|(_, key)| key.escape_ascii().to_string()).collect();
        all.sort();
        all
    };
    let first = open.release(1, &[11]).unwrap();
    assert_eq!(exact(&first), exact(&keys_of(&mut rules, 0..40)), "12 may still be undone");
    assert_eq!(open.unreleased(10), [(1, vec![12])]);
    assert!(open.release(1, &[]).is_none(), "nothing new");
    rules.add(&change(7), open.of(1));
    assert!(open.release(1, &[]).is_none(), "the same once more");
    open.leave();
    open.enter(1);
    rules.add(&change(100), open.of(11));
    open.leave();
    let second = open.release(1, &[11]).unwrap();
    assert_eq!(exact(&second), ["k:100"]);
    assert_eq!(second.patterns().count(), 0, "the patterns went before");
    open.abort(1, 12);
    assert_eq!(open.unreleased(10), []);
    let all = (0..40).chain([7, 100]);
    assert_eq!(listed(&open.commit(1)), listed(&keys_of(&mut rules, all)));
    assert_eq!((open.len(), open.bytes()), (0, 0));
}

#[test]
fn an_unknown_transaction_has_no_keys() {
    let mut open = InProgress::new(rules().key_set());
    open.abort(1, 1);
    open.abort(1, 2);
    assert!(open.commit(1).is_empty());
    assert!(open.is_empty());
}

proptest! {
    /// Against a list of rows: whatever the order of blocks, rows and aborts.
    #[test]
    fn a_commit_has_the_keys_of_the_rows_that_survived(
        steps in prop::collection::vec((0..3u32, 0..14u32, 0..40u32, 0..10u8), 1..200),
        releases in prop::collection::vec(0..200usize, 0..5),
    ) {
        let mut rules = rules();
        let mut open = InProgress::new(rules.key_set());
        let mut rows: Vec<(u32, u32, u32)> = Vec::new();
        let mut ended = false;
        for (step, (top, sub, id, kind)) in steps.into_iter().enumerate() {
            // Transaction 100 has ended at some step; from there on nothing of it is undone.
            ended |= releases.contains(&step);
            if ended {
                let asked = open.unreleased(100).into_iter().find(|(xid, _)| *xid == 100);
                asked.and_then(|(xid, subxids)| open.release(xid, &subxids));
            }
            let kind = if ended && top == 1 { kind.max(1) } else { kind };
            // Top-level transactions 0, 100 and 200, each with subtransactions behind it.
            let (top, xid) = (top * 100, top * 100 + sub);
            if kind == 0 {
                open.abort(top, xid);
                rows.retain(|row| row.0 != top || (sub > 0 && row.1 != xid));
            } else {
                open.enter(top);
                rules.add(&change(id), open.of(xid));
                open.leave();
                rows.push((top, xid, id));
            }
        }
        for top in [0, 100, 200] {
            let ids = rows.iter().filter(|row| row.0 == top).map(|row| row.2);
            prop_assert_eq!(listed(&open.commit(top)), listed(&keys_of(&mut rules, ids)));
        }
        prop_assert_eq!(open.bytes(), 0);
    }
}

/// Small transactions give way, too, where they are many; and where nothing more is gained, room is
/// looked for again only when more is held.
#[test]
fn many_small_transactions_stay_within_the_limit() {
    let mut rules = rules();
    let mut open = InProgress::new(rules.key_set()).with_limit(1 << 20);
    for xid in 1..=400 {
        open.enter(xid);
        (0..330).for_each(|row| rules.add(&change(xid * 1_000 + row), open.of(xid)));
        open.leave();
    }
    assert!(open.bytes() < (1 << 20) + (256 << 10), "{} bytes", open.bytes());
    let wide = "~k:*".to_owned();
    let gave_way = (1..=400).filter(|xid| listed(&open.commit(*xid)).contains(&wide)).count();
    assert!((100..400).contains(&gave_way), "{gave_way} of them");
}
