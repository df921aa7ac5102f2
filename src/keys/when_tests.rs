//! The effect of a condition on a rule.

use super::tests::{
    changed, compile, delete, insert, keys_of_bound, relation, rule, shown, update, update_from,
};
use super::{Binding, Purpose, RuleId, Skip};
use crate::config::{self, Location, Script};
use crate::decode::OldKind;
use crate::gather::{Change, Row};

fn when(condition: &str, mut rule: config::Rule) -> config::Rule {
    let at = Location { line: 1, column: 1, key: "rule.0.when".to_owned() };
    rule.when = Some(Script::new(condition.to_owned(), at, condition));
    rule
}

#[test]
fn a_condition_is_asked_after_operations_and_changed() {
    let rules = compile(changed("club", when("new.name == 'a'", rule(&["k:{id}"]))));
    let mut bound = rules.bind(Binding::default());
    let (one, other) =
        ([Some("1"), Some("a"), Some("c"), None], [Some("1"), Some("b"), Some("c"), None]);
    let full = OldKind::Full;
    for (row, expected, skip) in [
        (insert(one), "'k:1'", None),
        (insert(other), "", Some(Skip::ConditionFalse)),
        (update_from(full, one, one), "", Some(Skip::Unchanged)),
        (update(other), "", Some(Skip::ConditionFalse)),
        (update(one), "'k:1'", None),
        (delete(full, other), "'k:1' (condition_unknown 1)", None),
        (Row::Truncate, "/k:*/ (truncate 1) (condition_unknown 1)", None),
    ] {
        assert_eq!(shown(&keys_of_bound(&mut bound, [row.clone()])), expected, "{row:?}");
        let change = Change { relation: relation(), row };
        assert_eq!(rules.skips(RuleId(0), &change), skip, "{change:?}");
    }
    assert_eq!(bound.new_failures(), []);
}

#[test]
fn each_rule_tells_its_failure_once() {
    let rules = compile(when("size(new.name) > 0", rule(&["k:{id}"])));
    let mut bound = rules.bind(Binding::default());
    let null = || insert([Some("1"), None, None, None]);
    let keys = keys_of_bound(&mut bound, [null(), null()]);
    assert_eq!(shown(&keys), "'k:1' (condition_failed 2)");
    assert_eq!(bound.new_failures().len(), 1);
    keys_of_bound(&mut bound, [null()]);
    assert_eq!(bound.new_failures(), []);
    let mut next = rules.bind(Binding::default()).with_failed(bound.failed());
    keys_of_bound(&mut next, [null()]);
    assert_eq!(next.new_failures(), [], "nor by the next session");
}

#[test]
fn a_condition_counts_for_the_fingerprint_and_for_the_columns() {
    let print = |rule| compile(rule).fingerprint();
    let with = |text: &str| print(when(text, rule(&["k:{id}"])));
    assert_ne!(with("new.name == 'a'"), with("new.name == 'b'"));
    assert_ne!(with("new.name == 'a'"), print(rule(&["k:{id}"])));
    assert_eq!(with("new.name == 'a'"), with("new.name == 'a'"));
    let rules = compile(when("new.name == old.name && new.id == '1'", rule(&["k:{id}"])));
    let uses: Vec<_> = rules.column_uses().map(|used| (used.column, used.purpose)).collect();
    let expected = [
        ("id", Purpose::Key { old: true, new: true }),
        ("name", Purpose::When { old: true, new: true }),
        ("id", Purpose::When { old: false, new: true }),
    ];
    assert_eq!(uses, expected);
}
