//! Key sets of rules that go to different targets.

use super::tests::{keys_of, keys_of_bound, located, numbered, rule};
use super::{Bound, KeySet, Limits, RuleId, Rules};
use crate::config::{self, TargetId, Targets};

const HERE: TargetId = TargetId(0);
const THERE: TargetId = TargetId(1);

/// Rules of one table that all give `k:{id}` and `p:{id}:*`: one for each target, one for both.
fn rules() -> Vec<config::Rule> {
    let to = |name: &str, targets: &[TargetId]| config::Rule {
        name: name.to_owned(),
        targets: targets.iter().fold(Targets::NONE, |all, one| all.with(*one)),
        keys: ["k:{id}", "p:{id}:*"].map(|key| located("rule.0.keys.0", key)).to_vec(),
        ..rule(&[])
    };
    vec![to("here", &[HERE]), to("there", &[THERE]), to("both", &[HERE, THERE])]
}

fn bound(limits: Limits) -> Bound {
    let rules = Rules::compile(&rules()).unwrap().with_limits(limits);
    rules.bind(super::Binding::default())
}

/// Keys and patterns of a set, each with its rule.
fn listed(keys: &KeySet) -> Vec<(RuleId, String)> {
    let patterns = keys.patterns().map(|(rule, pattern)| (rule, pattern.as_bytes()));
    keys.exact().chain(patterns).map(|(rule, key)| (rule, key.escape_ascii().to_string())).collect()
}

/// The keys of a target, each once.
fn names(keys: &KeySet, target: TargetId) -> Vec<String> {
    listed(&keys.of_target(target)).into_iter().map(|(_, name)| name).collect()
}

#[test]
fn what_one_rule_gave_is_not_known_to_one_that_goes_elsewhere() {
    let mut rules = bound(Limits::default());
    let keys = keys_of_bound(&mut rules, numbered(2));
    assert_eq!((keys.exact_len(), keys.patterns().count()), (6, 6), "for each way to targets");
    let expected = ["k:0", "k:1", "p:0:*", "p:1:*"];
    for (target, rule) in [(HERE, RuleId(0)), (THERE, RuleId(1))] {
        let part = keys.of_target(target);
        assert_eq!(names(&keys, target), expected);
        assert!(listed(&part).iter().all(|(of, _)| *of == rule), "{:?}", listed(&part));
        assert_eq!(part.exact_rule(b"k:1"), Some(rule));
        assert_eq!(listed(&part.of_target(target)), listed(&part), "it is its own part");
    }
    assert!(keys.goes(RuleId(0), HERE) && !keys.goes(RuleId(0), THERE));
    assert!(!keys.all_go(HERE), "of rule `there`");
}

#[test]
fn parts_of_a_target_are_merged_and_emptied_as_ever() {
    let mut rules = bound(Limits::default());
    let (few, more) =
        (keys_of_bound(&mut rules, numbered(1)), keys_of_bound(&mut rules, numbered(2)));
    let mut part = few.of_target(THERE);
    part.merge(&more.of_target(THERE));
    assert_eq!(listed(&part), listed(&more.of_target(THERE)));
    let mut again = part.emptied();
    again.merge(&more.of_target(THERE));
    assert_eq!(listed(&again), listed(&part));
    let (exact, rest) = (part.take_exact(|key| key == b"k:1"), part);
    assert_eq!((exact.exact_len(), rest.exact_len()), (1, 1));
}

/// Of a transaction in progress what went early of one target has not gone from another.
#[test]
fn what_goes_beyond_is_told_for_each_target() {
    let mut rules = bound(Limits::default());
    let all = keys_of_bound(&mut rules, numbered(1));
    let known = all.of_target(HERE);
    let mut of_here = all.emptied();
    known.exact().for_each(|(_, key)| assert_eq!(key, b"k:0"));
    of_here.add_key(super::label::TemplateId(0), b"k:0");
    let beyond = all.beyond(&of_here);
    assert!(names(&beyond, THERE).contains(&"k:0".to_owned()), "{:?}", listed(&beyond));
    assert_eq!(beyond.exact().filter(|(rule, _)| *rule == RuleId(0)).count(), 0);
}

#[test]
fn at_a_limit_each_target_has_the_widest_pattern() {
    let mut rules = bound(Limits { keys: 10, patterns: 4, ..Limits::default() });
    let keys = keys_of_bound(&mut rules, numbered(100));
    for target in [HERE, THERE] {
        assert_eq!(names(&keys, target), ["k:*", "p:*:*"]);
    }
    let everything = rules.rules().everything();
    for target in [HERE, THERE] {
        assert_eq!(names(&everything, target), ["k:*", "p:*:*"]);
    }
}

#[test]
fn where_all_rules_go_the_same_way_a_part_is_the_whole() {
    let both = rules().into_iter().map(|rule| config::Rule { targets: Targets::ALL, ..rule });
    let rules = Rules::compile(&both.collect::<Vec<_>>()).unwrap();
    let keys = keys_of(&rules, numbered(2));
    assert_eq!((keys.exact_len(), keys.patterns().count()), (2, 2));
    assert_eq!(listed(&keys.of_target(THERE)), listed(&keys));
    assert!(keys.all_go(THERE));
}
