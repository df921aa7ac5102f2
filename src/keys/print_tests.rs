//! Which edits of rules give keys that were not given before.

use std::collections::BTreeSet;

use super::tests::{changed, immutable, located, rule};
use super::{Given, RulePrint, Rules};
use crate::config::{self, Location, Operations, Script, Source};

fn prints(
    rules: &[config::Rule],
    lookups: &[config::Lookup],
    suspended: &[&str],
) -> Vec<RulePrint> {
    let named = |(at, rule): (usize, &config::Rule)| {
        let name = if rule.name == "r" { format!("r{at}") } else { rule.name.clone() };
        config::Rule { name, ..rule.clone() }
    };
    let rules: Vec<config::Rule> = rules.iter().enumerate().map(named).collect();
    let suspended: BTreeSet<String> = suspended.iter().map(|&name| name.to_owned()).collect();
    Rules::with_lookups(&rules, lookups).unwrap().prints(&suspended)
}

/// The templates that are not covered, by rule and place.
fn fresh(before: &[RulePrint], after: &[RulePrint]) -> Vec<(usize, usize)> {
    let given = Given::new(before);
    let rules = after.iter().enumerate();
    let keys = rules.flat_map(|(at, rule)| {
        rule.keys.iter().enumerate().map(move |(place, key)| (at, place, rule, key))
    });
    let fresh = keys.filter(|(_, _, rule, key)| !given.covers(rule, key, false));
    fresh.map(|(at, place, ..)| (at, place)).collect()
}

fn on(operations: &[&str], rule: config::Rule) -> config::Rule {
    let has = |name| operations.contains(&name);
    let operations = Operations {
        insert: has("insert"),
        update: has("update"),
        delete: has("delete"),
        truncate: has("truncate"),
    };
    config::Rule { operations, ..rule }
}

fn when(text: &str, rule: config::Rule) -> config::Rule {
    let script = Script::new(text.to_owned(), Location::default(), text);
    config::Rule { when: Some(script), ..rule }
}

fn lookup(name: &str, sql: &str) -> config::Lookup {
    config::Lookup {
        name: name.to_owned(),
        at: Location::default(),
        sql: located("lookup.sql", sql),
        params: vec![located("lookup.params", "id")],
        cache: 0,
        rows: config::LookupRows::One,
        limit: 1_000,
        missing: config::Missing::Widen,
    }
}

#[test]
fn an_edit_that_only_narrows_gives_nothing_new_and_one_that_widens_gives_its_templates() {
    let two = || rule(&["k:{id}", "n:{name}"]);
    let first = || [(0, 0), (0, 1)].to_vec();
    let rows = [
        ("the same", two(), two(), vec![]),
        ("another order", two(), rule(&["n:{name}", "k:{id}"]), vec![]),
        ("a template less", two(), rule(&["n:{name}"]), vec![]),
        ("a template more", rule(&["k:{id}"]), two(), vec![(0, 1)]),
        ("another template", two(), rule(&["k:{id}", "n:{name|lower}"]), vec![(0, 1)]),
        ("fewer operations", two(), on(&["update", "delete"], two()), vec![]),
        ("more operations", on(&["update"], two()), on(&["update", "insert"], two()), first()),
        ("no `changed` before", two(), changed("name", two()), vec![]),
        (
            "`changed` with less",
            changed("club", changed("name", two())),
            changed("name", two()),
            vec![],
        ),
        (
            "`changed` with more",
            changed("name", two()),
            changed("club", changed("name", two())),
            first(),
        ),
        ("`changed` with another", changed("name", two()), changed("club", two()), first()),
        ("no `changed` any more", changed("name", two()), two(), first()),
        (
            "`changed` of what no update reaches",
            on(&["insert"], changed("name", two())),
            on(&["insert"], two()),
            vec![],
        ),
        ("a `when` more", two(), when("new.id == '1'", two()), vec![]),
        ("another `when`", when("new.id == '1'", two()), when("new.id == '2'", two()), first()),
        ("no `when` any more", when("new.id == '1'", two()), two(), first()),
        ("declared immutable", two(), immutable("name", two()), vec![]),
        ("not declared any more", immutable("name", two()), two(), vec![(0, 1)]),
        (
            "not declared any more, and in `changed`",
            immutable("name", changed("name", rule(&["k:{id}"]))),
            changed("name", rule(&["k:{id}"])),
            vec![(0, 0)],
        ),
    ];
    for (what, before, after, expected) in rows {
        let (before, after) = (prints(&[before], &[], &[]), prints(&[after], &[], &[]));
        assert_eq!(fresh(&before, &after), expected, "{what}");
        assert_eq!(fresh(&after, &after), [], "{what}");
    }
}

#[test]
fn rules_are_known_by_what_they_give_and_not_by_their_names() {
    let one = on(&["insert", "update"], rule(&["k:{id}"]));
    let other = on(&["delete", "truncate"], rule(&["k:{id}"]));
    let whole = prints(&[rule(&["k:{id}"])], &[], &[]);
    let parts = prints(&[other.clone(), one.clone()], &[], &[]);
    assert_eq!(fresh(&whole, &parts), [], "one rule becomes two");
    assert_eq!(fresh(&parts, &whole), [], "two rules become one");
    assert_eq!(fresh(&parts[..1], &whole), [(0, 0)]);
    let mut moved = rule(&["k:{id}"]);
    moved.table.name = "u".to_owned();
    assert_eq!(fresh(&whole, &prints(&[moved], &[], &[])), [(0, 0)], "another table");
    let mut view = on(&[], rule(&["k:*"]));
    view.source = Source::MaterializedView;
    view.operations = Operations::ALL;
    let mut table = view.clone();
    table.source = Source::Table;
    assert_eq!(fresh(&prints(&[table], &[], &[]), &prints(&[view], &[], &[])), [(0, 0)]);
}

#[test]
fn a_rule_that_was_suspended_covered_nothing() {
    let rules = [rule(&["k:{id}"]), rule(&["n:{id}"])];
    let (suspended, active) = (prints(&rules, &[], &["r0"]), prints(&rules, &[], &[]));
    assert_eq!(fresh(&suspended, &active), [(0, 0)]);
    let given = Given::new(&suspended);
    assert!(given.covers(&active[0], &active[0].keys[0], true));
}

#[test]
fn another_query_of_a_lookup_gives_other_keys_of_the_templates_that_name_it() {
    let rules = [rule(&["a:{one.x}", "b:{two.x}", "c:{one.x}:{two.x}", "d:{id}"])];
    let lookups = |one: &str, two: &str| [lookup("one", one), lookup("two", two)];
    let before = prints(&rules, &lookups("select 1", "select 2"), &[]);
    let after = |one, two| prints(&rules, &lookups(one, two), &[]);
    assert_eq!(fresh(&before, &after("select 1", "select 2")), []);
    assert_eq!(fresh(&before, &after("select 1", "select 3")), [(0, 1), (0, 2)]);
    assert_eq!(fresh(&before, &after("select 2", "select 1")), [(0, 0), (0, 1), (0, 2)]);
}

/// The refresh of a view and a message are no operation of a row.
#[test]
fn a_rule_of_a_view_or_of_messages_is_given_by_its_like_at_work_and_by_nothing_else() {
    let of = |source: &Source, table: &str| {
        let operations =
            Operations { insert: false, update: false, delete: false, truncate: false };
        let mut rule = rule(&["list:*", "all"]);
        (rule.source, rule.operations) = (source.clone(), operations);
        rule.table = format!("public.{table}").parse().unwrap();
        rule
    };
    let view = Source::MaterializedView;
    let message = |prefix: &str| Source::Message(prefix.to_owned());
    for (own, other) in [
        (of(&view, "totals"), of(&view, "others")),
        (of(&message("jobs"), "t"), of(&message("others"), "t")),
    ] {
        let now = prints(std::slice::from_ref(&own), &[], &[]);
        assert_eq!(fresh(&now, &now), []);
        assert_eq!(fresh(&[], &now), [(0, 0), (0, 1)], "it is new");
        let suspended = prints(std::slice::from_ref(&own), &[], &["r0"]);
        assert_eq!(fresh(&suspended, &now), [(0, 0), (0, 1)], "it was suspended");
        let others = prints(&[other, rule(&["list:*", "all"])], &[], &[]);
        assert_eq!(fresh(&others, &now), [(0, 0), (0, 1)], "another gave the same keys");
    }
}

/// By name, wherever it stands.
#[test]
fn a_rule_is_the_same_if_its_name_and_what_it_gives_are() {
    let named = |name: &str, key: &str| config::Rule { name: name.to_owned(), ..rule(&[key]) };
    let of = |rules: &[config::Rule]| Rules::compile(rules).unwrap();
    let before = of(&[named("a", "a:{id}"), named("b", "b:{id}"), named("c", "c:{id}")]);
    let after = of(&[
        named("new", "a:{id}"),
        named("c", "c:{id}"),
        named("b", "b:{name}"),
        named("a", "a:{ id }"),
    ]);
    assert_eq!(after.same_as(&before), [None, Some(2), None, Some(0)]);
}
