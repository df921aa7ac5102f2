//! Rows of changes and the keys that they give.

use std::sync::Arc;

use super::{Binding, Bound, KeySet, Limits, Purpose, RuleId, Rules};
use crate::config::{self, Located, Location, Operations, TableName};
use crate::decode::{Column, OldKind, OldTuple, Relation, ReplicaIdentity, Tuple, Value};
use crate::gather::{Change, Row};

/// The columns of the table of these tests; `id` is its replica identity.
const COLUMNS: [&str; 4] = ["id", "name", "club", "Weird Col"];
const UNCHANGED: Option<&str> = Some("<unchanged>");
const LEFT_OUT: Option<&str> = Some("<left out>");

/// A row version, its values in the order of [`COLUMNS`].
type Values<'a> = [Option<&'a str>; 4];

pub(super) fn located(key: &str, value: &str) -> Located<String> {
    Located { value: value.to_owned(), at: Location { line: 1, column: 1, key: key.to_owned() } }
}

pub(super) fn rule(keys: &[&str]) -> config::Rule {
    config::Rule {
        name: "r".to_owned(),
        at: Location { line: 1, column: 1, key: "rule.0".to_owned() },
        keys: keys.iter().map(|key| located("rule.0.keys.0", key)).collect(),
        ..config::Rule::for_tests("t", &[])
    }
}

pub(super) fn immutable(column: &str, mut rule: config::Rule) -> config::Rule {
    rule.immutable.push(located("rule.0.immutable.0", column));
    rule
}

pub(super) fn changed(column: &str, mut rule: config::Rule) -> config::Rule {
    rule.changed.push(located("rule.0.changed.0", column));
    rule
}

pub(super) fn compile(rule: config::Rule) -> Rules {
    Rules::compile(&[rule]).unwrap()
}

pub(super) fn relation() -> Arc<Relation> {
    let column = |name: &&str| Column {
        is_key: *name == "id",
        name: (*name).to_owned(),
        type_id: 25,
        type_modifier: -1,
    };
    Arc::new(Relation {
        id: 1,
        namespace: "public".to_owned(),
        name: "t".to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: COLUMNS.iter().map(column).collect(),
    })
}

fn tuple(values: Values<'_>) -> Tuple {
    Tuple::from_values(&values.map(|value| match value {
        None => Value::Null,
        UNCHANGED => Value::Unchanged,
        LEFT_OUT => Value::LeftOut,
        Some(text) => Value::Text(text.as_bytes()),
    }))
}

fn old(kind: OldKind, values: Values<'_>) -> OldTuple {
    OldTuple { kind, tuple: tuple(values) }
}

pub(super) fn insert(new: Values<'_>) -> Row {
    Row::Insert { new: tuple(new) }
}

pub(super) fn update(new: Values<'_>) -> Row {
    Row::Update { old: None, new: tuple(new) }
}

pub(super) fn update_from(kind: OldKind, before: Values<'_>, new: Values<'_>) -> Row {
    Row::Update { old: Some(old(kind, before)), new: tuple(new) }
}

pub(super) fn delete(kind: OldKind, before: Values<'_>) -> Row {
    Row::Delete { old: old(kind, before) }
}

pub(super) fn keys_of(rules: &Rules, rows: impl IntoIterator<Item = Row>) -> KeySet {
    keys_of_bound(&mut rules.bind(Binding::default()), rows)
}

pub(super) fn keys_of_bound(bound: &mut Bound, rows: impl IntoIterator<Item = Row>) -> KeySet {
    let (mut keys, relation) = (bound.key_set(), relation());
    for row in rows {
        bound.add(&Change { relation: Arc::clone(&relation), row }, &mut keys);
    }
    keys
}

/// Keys in quotes, patterns between slashes, widenings in parentheses.
pub(super) fn shown(keys: &KeySet) -> String {
    let exact = keys.exact().map(|(_, key)| format!("'{}'", text(key)));
    let patterns = keys.patterns().map(|(_, pattern)| format!("/{}/", text(pattern.as_bytes())));
    let widened = keys.widened().map(|(_, reason, count)| format!("({} {count})", reason.as_str()));
    exact.chain(patterns).chain(widened).collect::<Vec<_>>().join(" ")
}

pub(super) fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

#[track_caller]
fn check(rule: config::Rule, row: Row, expected: &str) {
    assert_eq!(shown(&keys_of(&compile(rule), [row])), expected);
}

const OLD: Values<'_> = [Some("1"), Some("old"), Some("A"), Some("x")];
const NEW: Values<'_> = [Some("1"), Some("new"), Some("B"), Some("x")];

#[test]
fn a_template_renders_once_for_each_version() {
    let template = || rule(&["k:{name}:{club}"]);
    check(template(), insert(NEW), "'k:new:B'");
    check(template(), delete(OldKind::Full, OLD), "'k:old:A'");
    check(template(), update_from(OldKind::Full, OLD, NEW), "'k:new:B' 'k:old:A'");
    check(template(), update_from(OldKind::Full, NEW, NEW), "'k:new:B'");
    check(template(), Row::Truncate, "/k:*:*/ (truncate 1)");
}

#[test]
fn text_without_placeholders_is_itself() {
    check(rule(&["a:b", "c:*", r"d\*\?\[\]\{\}\\"]), insert(NEW), r"'a:b' 'd*?[]{}\' /c:*/");
    check(rule(&["a:b", "c:?[a-z]"]), Row::Truncate, "'a:b' /c:?[a-z]/");
    check(rule(&[r"a\*:{name}:*"]), insert(NEW), r"/a\*:new:*/");
    check(rule(&[r#"a:{"Weird Col"}:{ id }"#]), insert(NEW), "'a:x:1'");
}

#[test]
fn a_pinned_version_needs_to_exist() {
    let template = || rule(&["k:{old.name}:{new.name}"]);
    check(template(), update_from(OldKind::Full, OLD, NEW), "'k:old:new'");
    check(template(), insert(NEW), "");
    check(template(), delete(OldKind::Full, OLD), "");
    check(template(), Row::Truncate, "/k:*:*/ (truncate 1)");
    check(rule(&["k:{old.name}"]), insert(NEW), "");
    check(rule(&["k:{old.name}"]), delete(OldKind::Full, OLD), "'k:old'");
    check(rule(&["k:{new.name}"]), delete(OldKind::Full, OLD), "");
    let mixed = rule(&["k:{club}:{new.name}"]);
    check(mixed, update_from(OldKind::Full, OLD, NEW), "'k:B:new' 'k:A:new'");
}

#[test]
fn only_identity_columns_of_a_key_tuple_are_known() {
    let key: Values<'_> = [Some("7"), None, None, None];
    check(rule(&["k:{id}:{name}"]), delete(OldKind::Key, key), "/k:7:*/ (replica_identity 1)");
    check(rule(&["k:{id}"]), update_from(OldKind::Key, key, NEW), "'k:1' 'k:7'");
    check(rule(&["k:{name}"]), delete(OldKind::Key, key), "/k:*/ (replica_identity 1)");
}

#[test]
fn without_an_old_tuple_the_identity_did_not_change() {
    check(rule(&["k:{id}"]), update(NEW), "'k:1'");
    check(rule(&["k:{id}:{name}"]), update(NEW), "'k:1:new' /k:1:*/ (replica_identity 1)");
}

#[test]
fn an_immutable_column_has_its_new_value_in_an_update_only() {
    let template = || immutable("name", rule(&["k:{name}"]));
    let key: Values<'_> = [Some("7"), None, None, None];
    check(template(), update(NEW), "'k:new'");
    check(template(), update_from(OldKind::Key, key, NEW), "'k:new'");
    check(template(), update_from(OldKind::Full, OLD, NEW), "'k:new' 'k:old'");
    check(template(), delete(OldKind::Key, key), "/k:*/ (replica_identity 1)");
}

#[test]
fn an_unchanged_toast_value_is_the_old_one_if_that_is_known() {
    let toast: Values<'_> = [Some("1"), UNCHANGED, Some("B"), Some("x")];
    check(rule(&["k:{name}"]), update_from(OldKind::Full, OLD, toast), "'k:old'");
    check(rule(&["k:{new.name}:{id}"]), update(toast), "/k:*:1/ (unchanged_toast 1)");
    let whole = immutable("name", rule(&["k:{name}"]));
    check(whole, update(toast), "/k:*/ (unchanged_toast 1)");
}

/// I5: it may be anything. What is said to be unchanged is as unknown as the old value is.
#[test]
fn a_value_that_was_left_out_widens_and_counts_as_another() {
    let large: Values<'_> = [Some("1"), LEFT_OUT, Some("B"), Some("x")];
    let toast: Values<'_> = [Some("1"), UNCHANGED, Some("B"), Some("x")];
    let full = OldKind::Full;
    check(rule(&["k:{id}:{name}"]), insert(large), "/k:1:*/ (large_value 1)");
    check(rule(&["k:{name}"]), update_from(full, OLD, large), "/k:*/ (large_value 1)");
    check(rule(&["k:{name|default:x}"]), delete(OldKind::Full, large), "/k:*/ (large_value 1)");
    let whole = immutable("name", rule(&["k:{name}"]));
    check(whole, update_from(full, large, NEW), "'k:new'");
    for (row, expected) in [
        (update_from(full, large, large), "'k:1'"),
        (update_from(full, OLD, large), "'k:1'"),
        (update_from(full, large, NEW), "'k:1'"),
        (update_from(full, large, toast), ""),
    ] {
        check(changed("name", rule(&["k:{id}"])), row, expected);
    }
}

#[test]
fn a_missing_column_widens() {
    check(rule(&["k:{id}:{gone}"]), insert(NEW), "/k:1:*/ (missing_column 1)");
    check(rule(&["k:{gone}{id}{gone}"]), insert(NEW), "/k:*1*/ (missing_column 1)");
    check(rule(&["k:*{id}*"]), insert(NEW), "/k:*1*/");
    check(rule(&["k:*{id}*"]), insert([Some(""), None, None, None]), "/k:*/");
    let key: Values<'_> = [Some("7"), None, None, None];
    check(rule(&["k:{gone}"]), delete(OldKind::Key, key), "/k:*/ (missing_column 1)");
}

#[test]
fn null_gives_no_key_without_a_default() {
    let null: Values<'_> = [Some("1"), None, Some("B"), None];
    check(rule(&["k:{name}"]), insert(null), "");
    check(rule(&["k:{name|default:None}"]), insert(null), "'k:None'");
    check(rule(&["k:{name|default:None|lower}"]), insert(null), "'k:none'");
    check(rule(&["k:{name|lower|default:None}"]), insert(null), "'k:None'");
    check(rule(&["k:{name|default:None}"]), insert(NEW), "'k:new'");
    check(rule(&["k:{name|default:}:{id}"]), insert(null), "'k::1'");
    check(rule(&[r"k:{name|default:\}\|*}"]), insert(null), "'k:}|*'");
    check(rule(&["k:{name}"]), update_from(OldKind::Full, OLD, null), "'k:old'");
    check(rule(&["k:{name}:{gone}"]), insert(null), "");
}

#[test]
fn unknown_widens_whatever_the_filters() {
    let key: Values<'_> = [Some("7"), None, None, None];
    let template = rule(&["k:{id}:{name|default:x|sha256:8}"]);
    check(template, delete(OldKind::Key, key), "/k:7:*/ (replica_identity 1)");
}

#[test]
fn filters_run_from_left_to_right() {
    let club = "Bodø/Glimt [W]*";
    let row = || insert([Some("1"), Some(club), None, None]);
    check(rule(&["k:{name}"]), row(), "'k:Bodø/Glimt [W]*'");
    check(rule(&["k:{name}*"]), row(), r"/k:Bodø/Glimt \[W\]\**/");
    check(rule(&["k:{name|lower}"]), row(), "'k:bodø/glimt [w]*'");
    check(rule(&["k:{name|slug}"]), row(), "'k:bodo-glimt-w'");
    check(rule(&["k:{name|urlencode}"]), row(), "'k:Bod%C3%B8%2FGlimt%20%5BW%5D*'");
    check(rule(&["k:{name|urlencode}?"]), row(), r"/k:Bod%C3%B8%2FGlimt%20%5BW%5D\*?/");
    check(rule(&["k:{name | slug | sha256:8}"]), row(), "'k:5f368f90'");
}

#[test]
fn bytes_that_are_no_text_pass_unless_a_filter_needs_text() {
    let row = |value: Value<'_>| Row::Insert {
        new: Tuple::from_values(&[Value::Text(b"1"), value, Value::Null, Value::Null]),
    };
    check(rule(&["k:{name}"]), row(Value::Binary(b"\xff*")), r"'k:\xff*'");
    check(rule(&["k:{id}:{name|lower}"]), row(Value::Text(b"\xff")), "/k:1:*/ (not_text 1)");
    check(rule(&["k:{name|slug}*"]), row(Value::Text(b"\xff")), "/k:*/ (not_text 1)");
}

#[test]
fn updates_count_only_if_a_listed_column_may_differ() {
    let template = || changed("club", rule(&["k:{id}"]));
    let renamed: Values<'_> = [Some("1"), Some("new"), Some("A"), Some("x")];
    let toast: Values<'_> = [Some("1"), Some("new"), UNCHANGED, Some("x")];
    check(template(), update_from(OldKind::Full, OLD, NEW), "'k:1'");
    check(template(), update_from(OldKind::Full, OLD, renamed), "");
    check(template(), update(NEW), "'k:1'");
    check(template(), update(toast), "");
    check(immutable("club", template()), update(NEW), "");
    check(immutable("club", template()), update_from(OldKind::Full, OLD, NEW), "");
    check(changed("id", rule(&["k:{id}"])), update(NEW), "");
    check(changed("gone", rule(&["k:{id}"])), update(NEW), "'k:1'");
    check(template(), insert(NEW), "'k:1'");
    check(template(), Row::Truncate, "/k:*/ (truncate 1)");
}

#[test]
fn a_rule_looks_at_its_operations_and_its_table_only() {
    let mut inserts = rule(&["k:{id}"]);
    inserts.operations =
        Operations { update: false, delete: false, truncate: false, ..Operations::ALL };
    check(inserts.clone(), insert(NEW), "'k:1'");
    check(inserts.clone(), update(NEW), "");
    check(inserts.clone(), delete(OldKind::Full, OLD), "");
    check(inserts.clone(), Row::Truncate, "");
    inserts.table.name = "other".to_owned();
    check(inserts.clone(), insert(NEW), "");
    let keys = |roots: &[&TableName]| {
        let of = |root: &&TableName| (TableName::for_tests("t"), (*root).clone());
        let partitions = roots.iter().map(of).collect();
        let binding = Binding { partitions, ..Binding::default() };
        shown(&keys_of_bound(&mut compile(inserts.clone()).bind(binding), [insert(NEW)]))
    };
    assert_eq!(keys(&[]), "");
    assert_eq!(keys(&[&inserts.table]), "'k:1'");
    let both = keys(&[&inserts.table, &TableName::for_tests("t")]);
    assert_eq!(both, "'k:1'", "a second root takes none away");
}

#[test]
fn rules_that_do_not_fit_give_nothing_and_a_relation_is_its_table_under_any_name() {
    let mut elsewhere = rule(&["k:{id}"]);
    elsewhere.table.name = "other".to_owned();
    let rules = compile(elsewhere.clone());
    let keys = |binding| shown(&keys_of_bound(&mut rules.bind(binding), [insert(NEW)]));
    let renamed =
        || Binding { relations: vec![(1, elsewhere.table.clone())], ..Binding::default() };
    assert_eq!(keys(Binding::default()), "");
    assert_eq!(keys(renamed()), "'k:1'");
    let suspended = [elsewhere.name.clone()].into();
    assert_eq!(keys(Binding { suspended, ..renamed() }), "");
}

#[test]
fn a_new_shape_of_a_relation_is_seen() {
    let mut rules = compile(rule(&["k:{name}"])).bind(Binding::default());
    assert_eq!(shown(&keys_of_bound(&mut rules, [insert(NEW)])), "'k:new'");
    let mut other = Relation::clone(&relation());
    other.columns.swap(1, 2);
    let (mut keys, row) = (rules.key_set(), insert(NEW));
    rules.add(&Change { relation: Arc::new(other), row }, &mut keys);
    assert_eq!(shown(&keys), "'k:B'");
}

#[test]
fn a_full_identity_without_its_old_version_tells_nothing() {
    let mut rules = compile(rule(&["k:{id}"])).bind(Binding::default());
    let mut full = Relation::clone(&relation());
    full.replica_identity = ReplicaIdentity::Full;
    full.columns.iter_mut().for_each(|column| column.is_key = true);
    let mut keys = rules.key_set();
    rules.add(&Change { relation: Arc::new(full), row: update(NEW) }, &mut keys);
    assert_eq!(shown(&keys), "/k:*/ (replica_identity 1)");
}

#[test]
fn what_a_collapse_drops_is_used_again() {
    let templates: Vec<String> = ('a'..='t').map(|c| format!("{c}{c}{c}{c}:{{id}}")).collect();
    let templates: Vec<&str> = templates.iter().map(String::as_str).collect();
    let limits = Limits { keys: 1_000, ..Limits::default() };
    let rules = compile(rule(&templates)).with_limits(limits);
    let before = keys_of(&rules, numbered(50)).bytes();
    let after = keys_of(&rules, numbered(990));
    assert_eq!((after.exact_len(), after.patterns().count()), (990, 19));
    let patterns = 19 * 600;
    assert!(after.bytes() < before + patterns, "{} after {before} bytes", after.bytes());
}

#[test]
fn where_a_thousand_templates_hold_little_an_eighth_collapses_at_once() {
    let templates: Vec<String> = (0..1_600).map(|number| format!("{number}:{{id}}")).collect();
    let templates: Vec<&str> = templates.iter().map(String::as_str).collect();
    let rules = compile(rule(&templates));
    let mut keys = keys_of(&rules, numbered(40));
    let mut steps = Vec::new();
    while let more = keys.collapse_largest(0)
        && !more.is_empty()
    {
        steps.push(more.len());
    }
    // What is left shrinks by an eighth each time.
    assert!(steps.first().is_some_and(|first| (180..=200).contains(first)), "{steps:?}");
    assert!(steps.len() < 50, "{steps:?}");
    assert_eq!((keys.exact_len(), keys.patterns().count()), (0, 1_600));

    // One that holds an eighth by itself goes alone.
    let rules = compile(rule(&["k:{id}", "a:{name}", "b:{name}", "c:{name}"]));
    let mut keys = keys_of(&rules, numbered(40));
    assert_eq!(keys.collapse_largest(0), [(RuleId(0), 1)]);
    assert_eq!(shown(&keys), "'a:n' 'b:n' 'c:n' /k:*/ (limit 1)");
}

pub(super) fn numbered(count: usize) -> Vec<Row> {
    let row = |at: usize| insert([Some(&at.to_string()), Some("n"), Some("c"), None]);
    (0..count).map(row).collect()
}

#[test]
fn at_a_limit_the_largest_template_collapses() {
    let limits = Limits { keys: 10, bytes: 1 << 20, patterns: 4 };
    let rules = compile(rule(&["all", "k:{id}", "n:{name}"])).with_limits(limits);
    let keys = keys_of(&rules, numbered(8));
    assert_eq!((keys.exact_len(), keys.has_patterns()), (10, false));
    let keys = keys_of(&rules, numbered(1_000));
    assert_eq!(shown(&keys), "'all' 'n:n' /k:*/ (limit 1)");
    assert_eq!(keys.matches().collect::<Vec<_>>(), [(RuleId(0), 1_000)]);

    let rules = compile(rule(&["k:{id}*", "n:{name}*"])).with_limits(limits);
    let keys = keys_of(&rules, numbered(100));
    assert_eq!(shown(&keys), "/n:n*/ /k:*/ (limit 1)");

    // As many patterns as templates are no fewer where each is its template's widest.
    let many: Vec<String> = (0..9).map(|at| format!("{at}:{{id}}:*")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let rules = compile(rule(&many)).with_limits(limits);
    let keys = keys_of(&rules, numbered(1));
    assert_eq!((keys.patterns().count(), keys.widened().count()), (9, 0), "{}", shown(&keys));
    let keys = keys_of(&rules, numbered(20));
    assert_eq!(keys.patterns().count(), 9, "each is whole: {}", shown(&keys));

    let limits = Limits { bytes: 1_000, ..Limits::default() };
    let rules = compile(rule(&["k:{id}", "n:{name}"])).with_limits(limits);
    let keys = keys_of(&rules, numbered(1_000));
    assert_eq!(shown(&keys), "'n:n' /k:*/ (limit 1)");
    assert!(keys.bytes() < 10_000, "{} bytes", keys.bytes());
}

#[test]
fn a_key_of_a_megabyte_is_not_written_out() {
    let long = "x".repeat(1 << 20);
    check(rule(&["k:{name}"]), insert([None, Some(&long), None, None]), "/k:*/ (limit 1)");
    check(rule(&["k:{name}:*"]), insert([None, Some(&long), None, None]), "/k:*:*/ (limit 1)");
    let hash = rule(&["k:{name|sha256:4}"]);
    check(hash, insert([None, Some(&long), None, None]), "'k:8f99'");
}

#[test]
fn a_merge_is_what_one_set_would_have_been() {
    let limits = Limits { keys: 10, ..Limits::default() };
    let rules = compile(rule(&["k:{id}", "n:{name}*"])).with_limits(limits);
    let mut merged = keys_of(&rules, numbered(6));
    merged.merge(&keys_of(&rules, numbered(8)));
    assert_eq!((merged.exact_len(), merged.has_patterns()), (8, true));
    assert_eq!(merged.matches().collect::<Vec<_>>(), [(RuleId(0), 14)]);
    merged.merge(&keys_of(&rules, numbered(11)));
    assert_eq!(shown(&merged), "/n:n*/ /k:*/ (limit 1)");
    let mut merged = keys_of(&rules, numbered(2));
    merged.merge(&keys_of(&rules, [Row::Truncate]));
    assert_eq!(shown(&merged), "/k:*/ /n:*/ (truncate 2)");
}

#[test]
fn everything_is_each_template_at_its_widest() {
    let rules = compile(rule(&["a:b", "k:{id}:{name|slug}", "n:{old.name}{id}*", r"\*:{id}"]));
    assert_eq!(shown(&rules.everything()), r"'a:b' /k:*:*/ /n:*/ /\*:*/");
}

#[test]
fn a_fingerprint_is_of_what_rules_produce() {
    let print = |rules: &[config::Rule]| Rules::compile(rules).unwrap().fingerprint();
    let named = |name: &str, mut rule: config::Rule| {
        rule.name = name.to_owned();
        rule
    };
    let (one, other) = (named("a", rule(&["k:{id}"])), named("b", rule(&["n:{name|sha256}"])));
    let both = print(&[one.clone(), other.clone()]);
    assert_eq!(both, "95e6dd4b95f76447", "stable across versions");
    assert_eq!(both, print(&[other.clone(), named("c", one.clone())]));
    assert_eq!(both, print(&[rule(&["n:{ name | sha256:64 }", "k:{id}"])]));
    assert_ne!(both, print(std::slice::from_ref(&one)));
    assert_ne!(both, print(&[immutable("id", one.clone()), other.clone()]));
    assert_ne!(both, print(&[changed("id", one.clone()), other.clone()]));
    assert_ne!(both, print(&[named("a", rule(&["k:{new.id}"])), other.clone()]));
    let mut moved = one.clone();
    moved.table.name = "u".to_owned();
    assert_ne!(both, print(&[moved, other.clone()]));
    assert_ne!(print(&[rule(&[r"k:\*{id}"])]), print(&[rule(&["k:*{id}"])]));
}

#[test]
fn column_uses_tell_which_versions_are_needed() {
    let mut one = changed("club", immutable("id", rule(&["k:{id}:{old.name}", "n:{new.id}"])));
    one.operations = Operations { delete: false, ..Operations::ALL };
    let rules = compile(one);
    let uses: Vec<_> =
        rules.column_uses().map(|u| (u.rule, u.column, u.purpose, u.immutable)).collect();
    let expected = [
        ("r", "id", Purpose::Key { old: true, new: true }, true),
        ("r", "name", Purpose::Key { old: true, new: false }, false),
        ("r", "club", Purpose::Changed, false),
    ];
    assert_eq!(uses, expected);
    assert_eq!(rules.tables().collect::<Vec<_>>(), [&TableName::for_tests("t")]);
}

#[track_caller]
fn check_problem(template: &str, expected: &[&str]) {
    let problems = Rules::compile(&[rule(&[template])]).unwrap_err();
    let messages: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(messages, expected, "in {template}");
    assert!(problems.iter().all(|p| p.hint.is_some() && p.at.key == "rule.0.keys.0"));
}

#[test]
fn every_problem_of_a_template_is_told() {
    check_problem("", &["the template is empty"]);
    check_problem("*", &["`*` could match every key in Redis"]);
    check_problem("{id}?*", &["`{id}?*` could match every key in Redis"]);
    check_problem("k:{id", &["a `{` has no `}`"]);
    check_problem("k:}", &["a `}` has no `{`"]);
    check_problem("k:{}", &["a placeholder is empty"]);
    check_problem("k:{ |lower}", &["a placeholder is empty"]);
    check_problem("k:{id|}", &["a filter is empty"]);
    check_problem(
        "k:{id|lowr}{n|slug:2}",
        &["unknown filter `lowr`", "filter `slug` takes no argument"],
    );
    check_problem("k:{match.id}", &["unknown row version or lookup `match` in `{match.id}`"]);
    check_problem("k:{Weird Col}", &["`Weird Col` is not a column name"]);
    check_problem("k:{\"id}", &["a `{` has no `}`"]);
    check_problem("k:{\"\"}", &["`\"\"` is not a column name"]);
    check_problem("k:{old.}", &["`` is not a column name"]);
    check_problem("k:[a{id}]", &["a placeholder stands inside of `[…]`"]);
    check_problem("k:[a-]", &["a `[` has no `]`"]);
    check_problem("k:[^]", &["a `[…]` is empty"]);
    check_problem("k:[ø]", &["`[ø]` holds a character that is more than one byte"]);
    check_problem("k:\\n", &["unknown escape `\\n`"]);
    check_problem("k:\\", &["the template ends in a lone `\\`"]);
}

#[test]
fn every_problem_of_every_rule_is_told() {
    let mut one = changed("a", changed("a", rule(&[])));
    one = immutable("b", immutable("b", one));
    let problems = Rules::compile(&[one, rule(&["k:{x.y}"])]).unwrap_err();
    let messages: Vec<_> = problems.iter().map(|p| (&*p.at.key, &*p.message)).collect();
    let expected = [
        ("rule.0", "rule `r` has no keys"),
        ("rule.0", "rule `r` has the name of another rule"),
        ("rule.0.changed.0", "`changed` names column `a` twice"),
        ("rule.0.immutable.0", "`immutable` names column `b` twice"),
        ("rule.0.keys.0", "unknown row version or lookup `x` in `{x.y}`"),
    ];
    assert_eq!(messages, expected);
}

#[test]
fn a_set_costs_what_is_in_it_however_many_rules_there_are() {
    let rules: Vec<config::Rule> = (0..1_000)
        .map(|number| {
            let keys: Vec<String> = (0..8).map(|key| format!("k:{number}:{key}:{{id}}")).collect();
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            config::Rule { name: format!("rule {number}"), ..rule(&keys) }
        })
        .collect();
    let rules = Rules::compile(&rules).unwrap();
    assert_eq!(rules.key_set().bytes(), 0);
    assert_eq!(rules.everything().patterns().count(), 8_000);
}
