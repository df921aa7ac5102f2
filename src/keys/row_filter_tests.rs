//! Row filters: which rules have one, and that no key is another one with it. Postgres is modelled
//! here as its manual tells it; the tests of `setup` hold the same against real servers.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::tests::{compile, immutable, located, rule, text};
use super::{Facts, Formula, Rules};
use crate::config::{self, Location, Operations, Script, TableName};
use crate::decode::{Column, OldKind, OldTuple, Relation, ReplicaIdentity, Tuple, Value};
use crate::gather::{Change, Row};

/// The table's columns and their types; the first two are its primary key.
const COLUMNS: [(&str, u32); 5] = [("id", 23), ("n", 23), ("s", 25), ("b", 16), ("f", 25)];

/// A row, in the order of [`COLUMNS`].
type Values = [Option<&'static str>; 5];

fn is_key(column: &str) -> bool {
    ["id", "n"].contains(&column)
}

fn relation(is_full: bool) -> Arc<Relation> {
    let column = |(name, type_id): &(&str, u32)| Column {
        is_key: is_full || is_key(name),
        name: (*name).to_owned(),
        type_id: *type_id,
        type_modifier: -1,
    };
    Arc::new(Relation {
        id: 1,
        namespace: "public".to_owned(),
        name: "t".to_owned(),
        replica_identity: if is_full { ReplicaIdentity::Full } else { ReplicaIdentity::Default },
        columns: COLUMNS.iter().map(column).collect(),
    })
}

fn filter(rules: &Rules, is_full: bool) -> Option<Formula> {
    let is_identified = |column: &str| is_full || is_key(column);
    let type_id = |column: &str| {
        let known = COLUMNS.iter().find(|(name, _)| *name == column);
        known.filter(|_| is_identified(column)).map(|(_, type_id)| *type_id)
    };
    let table = TableName { schema: "public".to_owned(), name: "t".to_owned() };
    rules.row_filter(&table, &Facts { type_id: &type_id, is_identified: &is_identified })
}

fn when(condition: &str, mut rule: config::Rule) -> config::Rule {
    let at = Location { line: 1, column: 1, key: "rule.0.when".to_owned() };
    rule.when = Some(Script::new(condition.to_owned(), at, condition));
    rule
}

fn operations(names: &[&str], rule: config::Rule) -> config::Rule {
    let has = |name| names.contains(&name);
    let operations = Operations {
        insert: has("insert"),
        update: has("update"),
        delete: has("delete"),
        truncate: has("truncate"),
    };
    config::Rule { operations, ..rule }
}

fn changed(columns: &[&str], rule: config::Rule) -> config::Rule {
    let changed = columns.iter().map(|column| located("rule.0.changed.0", column)).collect();
    config::Rule { changed, ..rule }
}

const EITHER: &str =
    "(op != 'insert' && old.s == 'a') || (op != 'delete' && new.s == 'a') || op == 'truncate'";
const WRITES: [&str; 2] = ["insert", "update"];

#[test]
fn a_filter_is_made_where_no_key_depends_on_the_version_that_is_lost() {
    let plain = || rule(&["k"]);
    let keyed = || immutable("f", rule(&["k:{f}"]));
    let writes = |rule| operations(&WRITES, rule);
    for (has_filter, what, rule) in [
        (true, "either version", when(EITHER, plain())),
        (true, "a key that stays", when(EITHER, keyed())),
        (false, "a key that may change", when(EITHER, rule(&["k:{f}"]))),
        (true, "the new version", when("new.s == 'a'", writes(plain()))),
        (true, "a pinned key", when("new.s == 'a'", writes(rule(&["k:{new.f}"])))),
        (false, "a key of the lost version", when("new.s == 'a'", writes(rule(&["k:{old.f}"])))),
        (false, "a DELETE that is unknown", when("new.s == 'a'", plain())),
        (
            false,
            "an UPDATE that leaves counts as no UPDATE does",
            when("op == 'delete' ? old.s == 'a' : new.s == 'a'", plain()),
        ),
        (
            true,
            "what never changes may be asked of any version, with any key",
            immutable("s", when("op == 'delete' ? old.s == 'a' : new.s == 'a'", rule(&["k:{f}"]))),
        ),
        (false, "no condition", plain()),
        (false, "an operation without condition", when("op == 'delete' || new.s == 'a'", plain())),
        (true, "`changed` with it", changed(&["f", "s"], when(EITHER, plain()))),
        (false, "`changed` without it", changed(&["f"], when(EITHER, plain()))),
        (false, "two columns", when("new.s == new.f", writes(plain()))),
        (false, "an order of texts", when("new.s > 'a'", writes(plain()))),
        (false, "more than ASCII", when("new.s == 'ø'", writes(plain()))),
        (false, "a function", when("new.s.startsWith('a')", writes(plain()))),
        (false, "a computation", when("new.n + 1 == 2", writes(plain()))),
        (false, "a double", when("new.n < 1.5", writes(plain()))),
        (false, "both versions at once", when("old.s != 'a' && new.s == 'a'", writes(plain()))),
        (false, "only inserts", operations(&["insert"], when("new.s == 'a'", plain()))),
    ] {
        let rules = compile(rule);
        assert_eq!(filter(&rules, true).is_some(), has_filter, "{what}");
        // The column is not in the replica identity.
        assert_eq!(filter(&rules, false), None, "{what}");
    }
}

#[test]
fn the_rules_of_a_table_have_to_agree() {
    let named = |name: &str, rule| config::Rule { name: name.to_owned(), ..rule };
    let one = || when("new.s == 'a'", operations(&WRITES, rule(&["k"])));
    let other = || named("x", when("!(new.n < 2)", operations(&WRITES, rule(&["l"]))));
    let both = filter(&Rules::compile(&[one(), other()]).unwrap(), true).unwrap();
    let holds = |values: [Option<&'static str>; 2]| {
        both.holds(&|column| if column == "s" { values[0] } else { values[1] })
    };
    assert!(holds([Some("a"), Some("1")]) && holds([None, Some("2")]) && holds([None, None]));
    assert!(!holds([None, Some("1")]));
    for rest in [named("x", rule(&["l"])), named("x", when("new.f > 'a'", rule(&["l"])))] {
        assert_eq!(filter(&Rules::compile(&[one(), rest]).unwrap(), true), None);
    }
    let truncated = named("x", operations(&["truncate"], rule(&["l"])));
    assert!(filter(&Rules::compile(&[one(), truncated]).unwrap(), true).is_some());
    // What the one declares the other does not rely on.
    let stays = immutable("s", when("old.s == 'a' && new.s == 'a'", rule(&["k:{id}"])));
    let stays = operations(&["update"], stays);
    assert!(filter(&compile(stays.clone()), true).is_some());
    let moves = named("x", when("new.s == 'a'", operations(&WRITES, rule(&["l:{id}"]))));
    assert_eq!(filter(&Rules::compile(&[stays, moves]).unwrap(), true), None);
}

/// A condition over one version of a row.
fn of_version(version: &'static str) -> impl Strategy<Value = String> {
    let ask = select(vec![
        "V.n == 1",
        "V.n != 1",
        "V.n < 2",
        "1 <= V.n",
        "V.n > -1",
        "V.s == 'a'",
        "V.s != 'a'",
        "V.s in ['a', 'b']",
        "V.s == null",
        "V.s != null",
        "V.b",
        "!V.b",
        "V.b == true",
        "V.b != true",
        "V.n in [0, null]",
        "(op == 'update' ? V.b : V.n == 0)",
    ]);
    let ask = ask.prop_map(move |ask: &str| ask.replace('V', version));
    prop_oneof![
        4 => ask.clone(),
        1 => ask.clone().prop_map(|one| format!("!({one})")),
        1 => (ask.clone(), ask.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
        1 => (ask.clone(), ask).prop_map(|(a, b)| format!("!({a} || !({b}))")),
    ]
}

fn condition() -> impl Strategy<Value = String> {
    let (old, new) = (|| of_version("old"), || of_version("new"));
    prop_oneof![
        3 => new(),
        1 => old(),
        4 => new().prop_map(|new| {
            let old = new.replace("new.", "old.");
            format!("(op != 'insert' && {old}) || (op != 'delete' && {new})")
        }),
        1 => (old(), new()).prop_map(|(old, new)| {
            format!("(op != 'insert' && {old}) || (op != 'delete' && {new})")
        }),
        2 => new().prop_map(|new| {
            format!("op == 'delete' ? {} : {new}", new.replace("new.", "old."))
        }),
        1 => new().prop_map(|new| format!("op != 'delete' && {new}")),
        1 => old().prop_map(|old| format!("op != 'insert' && {old}")),
        1 => (old(), new()).prop_map(|(old, new)| format!("{old} && {new}")),
        1 => (old(), new()).prop_map(|(old, new)| format!("{old} || {new}")),
    ]
}

fn any_rule() -> impl Strategy<Value = config::Rule> {
    let keys = select(vec!["k", "k:{f}", "k:{s}", "k:{id}", "k:{new.f}", "k:{old.f}", "k:{n}:{f}"]);
    let keys = prop_oneof![1 => Just("k"), 3 => Just("k:{f}"), 1 => Just("k:{new.f}"), 2 => keys];
    let names = subsequence(vec!["insert", "update", "delete"], 1..=3);
    let names = prop_oneof![Just(vec!["insert", "update", "delete"]), names];
    let columns = || subsequence(vec!["id", "n", "s", "b", "f"], 0..=5);
    let changes = prop_oneof![2 => Just(Vec::new()), 1 => columns()];
    let stays = subsequence(vec!["id", "f"], 0..=2);
    let stays = prop_oneof![3 => Just(vec!["f"]), 2 => stays, 1 => columns()];
    (condition(), keys, names, changes, stays).prop_map(|(condition, key, names, changes, kept)| {
        let rule = when(&condition, operations(&names, changed(&changes, rule(&[key]))));
        kept.iter().fold(rule, |rule, column| immutable(column, rule))
    })
}

fn values() -> impl Strategy<Value = Values> {
    let number = || select(vec![Some("0"), Some("1"), Some("2"), None]);
    let text = || select(vec![Some("a"), Some("b"), None]);
    let truth = select(vec![Some("t"), Some("f"), None]);
    (number(), number(), text(), truth, text()).prop_map(|(id, n, s, b, f)| [id, n, s, b, f])
}

fn tuple(values: &Values) -> Tuple {
    let value = |value: Option<&'static str>| {
        value.map_or(Value::Null, |text| Value::Text(text.as_bytes()))
    };
    Tuple::from_values(&values.map(value))
}

/// What the log holds of an old version.
fn old(values: &Values, is_full: bool) -> OldTuple {
    if is_full {
        return OldTuple { kind: OldKind::Full, tuple: tuple(values) };
    }
    let [id, n, ..] = *values;
    OldTuple { kind: OldKind::Key, tuple: tuple(&[id, n, None, None, None]) }
}

fn row(before: Option<&Values>, after: Option<&Values>, is_full: bool) -> Option<Row> {
    Some(match (before, after) {
        (None, Some(new)) => Row::Insert { new: tuple(new) },
        (Some(before), None) => Row::Delete { old: old(before, is_full) },
        (Some(before), Some(new)) => {
            let is_logged = is_full || before[..2] != new[..2];
            Row::Update { old: is_logged.then(|| old(before, is_full)), new: tuple(new) }
        }
        (None, None) => return None,
    })
}

fn keys(rules: &mut Rules, is_full: bool, row: Option<Row>) -> BTreeSet<String> {
    let mut keys = rules.key_set();
    if let Some(row) = row {
        rules.add(&Change { relation: relation(is_full), row }, &mut keys);
    }
    let exact = keys.exact().map(|(_, key)| text(key));
    let patterns = keys.patterns().map(|(_, pattern)| format!("/{}/", text(pattern.as_bytes())));
    exact.chain(patterns).collect()
}

/// With a filter the same keys go as without it, whatever happens to a row.
#[test]
fn a_filter_changes_no_key() {
    let mut runner = TestRunner::deterministic();
    let rows = prop::collection::vec((values(), values()), 60);
    let rules = prop_oneof![2 => Just(1), 1 => Just(2)]
        .prop_flat_map(|count| prop::collection::vec(any_rule(), count));
    let cases = (rules, rows, prop::bool::weighted(0.75));
    let (mut filters, mut hidden, mut entered, mut left) = (0, 0, 0, 0);
    for _ in 0..1_000 {
        let (mut written, rows, is_full) = cases.new_tree(&mut runner).unwrap().current();
        for (number, rule) in written.iter_mut().enumerate() {
            rule.name = format!("r{number}");
        }
        let mut rules = Rules::compile(&written).unwrap();
        let Some(filter) = filter(&rules, is_full) else { continue };
        filters += 1;
        let is_kept = |at: usize| {
            written.iter().any(|rule| rule.immutable.iter().any(|one| one.value == COLUMNS[at].0))
        };
        let holds = |values: &Values| {
            let at = |column: &str| COLUMNS.iter().position(|(name, _)| *name == column).unwrap();
            filter.holds(&|column| values[at(column)])
        };
        for (before, mut after) in rows {
            (0..5).filter(|at| is_kept(*at)).for_each(|at| after[at] = before[at]);
            for (one, other) in
                [(None, Some(&after)), (Some(&before), None), (Some(&before), Some(&after))]
            {
                let (is_old_sent, is_new_sent) = (one.is_some_and(holds), other.is_some_and(holds));
                hidden += usize::from(!is_old_sent && !is_new_sent);
                entered += usize::from(one.is_some() && !is_old_sent && is_new_sent);
                left += usize::from(other.is_some() && is_old_sent && !is_new_sent);
                let sent = row(one.filter(|_| is_old_sent), other.filter(|_| is_new_sent), is_full);
                let whole = row(one, other, is_full);
                assert_eq!(
                    keys(&mut rules, is_full, sent),
                    keys(&mut rules, is_full, whole),
                    "{written:#?}\n{filter:#?}\n{one:?} -> {other:?}, full {is_full}"
                );
            }
        }
    }
    let seen = format!("{filters} filters, {hidden} hidden, {entered} entered, {left} left");
    assert!(filters > 80 && hidden > 3_000 && entered > 300 && left > 300, "{seen}");
}
