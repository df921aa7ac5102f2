//! Which changes of tables and rules put which keys in doubt.

use std::collections::{BTreeMap, BTreeSet};

use super::tests::rules;
use super::{Altered, Broken, Doubt, Gap, Names, Prints, TablePrint, Tables, Why};
use crate::config::{Located, Rule, TableName};
use crate::keys::{Print, RuleId, Rules};

fn print(text: &str) -> Print {
    Print::of([text])
}

fn name(table: &str) -> Print {
    Print::of_table(&TableName::for_tests(table))
}

/// A table of two columns, with a partition.
fn table() -> TablePrint {
    TablePrint {
        fixed: print("oid"),
        row: (print("700"), print("owner")),
        schema: print("690"),
        files: Some(print("files")),
        columns: [(1, (print("id"), print("700"))), (2, (print("name"), print("700")))].into(),
        parts: [(print("p1"), print("r p"))].into(),
        ..TablePrint::default()
    }
}

fn over(change: impl Fn(&mut TablePrint)) -> Prints {
    let mut item = table();
    change(&mut item);
    let tables = [(name("item"), item), (name("list"), table())].into();
    with(Tables { tables, ..Tables::default() }, &[])
}

fn with(tables: Tables, suspended: &[&str]) -> Prints {
    let suspended: BTreeSet<String> = suspended.iter().map(|&name| name.to_owned()).collect();
    Prints::new(rules().prints(&suspended), BTreeMap::new(), tables, &[])
}

/// The rules whose keys are in doubt, of the two, with the first reason of each.
fn doubt(now: &Prints, before: &Prints, gap: Gap) -> [Option<Why>; 2] {
    // As it is read back from Redis.
    let before = match gap {
        Gap::Look => before.clone(),
        Gap::Watermark => Prints::from_value(&before.to_value(), &before.digest()).unwrap(),
    };
    let doubt = now.since(&before, gap);
    assert!(matches!(doubt, Doubt::Keys(_)), "{doubt:?}");
    let plain = |why| match why {
        Why::Table(_) => Why::Table(Altered::default()),
        other => other,
    };
    [0, 1].map(|rule| doubt.of_rule(RuleId(rule)).map(plain))
}

type Change = (&'static str, fn(&mut TablePrint), bool);

/// Asserts of each change whether it puts the keys of the table's rule in doubt.
fn check(changes: &[Change]) {
    let before = over(|_| {});
    for (what, change, is_in_doubt) in changes {
        let now = over(change);
        let expected = [is_in_doubt.then_some(Why::Table(Altered::default())), None];
        assert_eq!(doubt(&now, &before, Gap::Look), expected, "{what}");
        assert_eq!(doubt(&now, &before, Gap::Watermark), expected, "{what}");
        assert_eq!(now.digest() == before.digest(), *what == "nothing", "{what}");
    }
}

fn altered(table: &mut TablePrint) {
    table.columns.insert(2, (print("name"), print("800")));
}

fn rewritten(table: &mut TablePrint) {
    table.files = Some(print("others"));
}

fn added(table: &mut TablePrint) {
    table.columns.insert(3, (print("note"), print("800")));
}

fn both(table: &mut TablePrint, one: fn(&mut TablePrint), other: fn(&mut TablePrint)) {
    one(table);
    other(table);
}

#[test]
fn another_table_puts_the_keys_of_its_rule_in_doubt_and_a_grant_or_an_owner_does_not() {
    check(&[
        ("nothing", |_| {}, false),
        ("another table", |table| table.fixed = print("other"), true),
        ("renamed and back", |table| table.row.0 = print("800"), true),
        ("a new owner", |table| table.row = (print("800"), print("other")), false),
        ("a grant on the schema", |table| table.schema = print("800"), false),
        (
            "a schema renamed and back, with a table to be taken for this one",
            |table| (table.schema, table.has_namesake) = (print("800"), true),
            true,
        ),
        ("a partition detached", |table| table.parts.clear(), true),
    ]);
}

#[test]
fn a_column_that_reads_otherwise_puts_keys_in_doubt_and_one_that_is_new_does_not() {
    check(&[
        ("not null, default, statistics", altered, false),
        ("rewritten, as by VACUUM FULL", rewritten, false),
        ("a type to the same one", |table| both(table, altered, rewritten), true),
        (
            "altered where a rewrite cannot be told",
            |table| both(table, altered, |table| table.files = None),
            true,
        ),
        (
            "another type",
            |table| table.columns = [(1, table.columns[&1]), (2, Default::default())].into(),
            true,
        ),
        ("dropped", |table| table.columns.retain(|number, _| *number != 2), true),
        (
            "dropped and made again",
            |table| both(table, |table| table.columns.retain(|number, _| *number != 2), added),
            true,
        ),
        ("added", added, false),
        ("added and written", |table| both(table, added, rewritten), true),
        (
            "added as a generated one",
            |table| both(table, added, |table| table.generated.extend([3])),
            true,
        ),
    ]);
}

/// A new part may have been something else before, where nobody looked.
#[test]
fn a_part_that_is_new_is_trusted_between_looks_if_it_began_empty_and_later_if_it_is_as_made() {
    let before = over(|_| {});
    for (born_empty, as_made, look, watermark) in
        [(false, false, true, true), (true, false, false, true), (true, true, false, false)]
    {
        let now = over(|table| {
            table.parts.insert(print("p2"), print("r p"));
            table.born_empty.extend(born_empty.then_some(print("p2")));
            table.as_made.extend(as_made.then_some(print("p2")));
        });
        let expected =
            |is_in_doubt: bool| [is_in_doubt.then_some(Why::Table(Altered::default())), None];
        assert_eq!(doubt(&now, &before, Gap::Look), expected(look));
        assert_eq!(doubt(&now, &before, Gap::Watermark), expected(watermark));
    }
    let renamed = over(|table| table.parts = [(print("p1"), print("other"))].into());
    assert_eq!(doubt(&renamed, &before, Gap::Look), [Some(Why::Table(Altered::default())), None]);
}

#[test]
fn the_publication_is_all_tables_matter_and_a_table_that_is_gone_its_rules() {
    let before = over(|_| {});
    let tables = before.tables().clone();
    let publication = Tables { publication: print("2"), ..tables.clone() };
    assert_eq!(
        doubt(&with(publication, &[]), &before, Gap::Look),
        [Some(Why::Publication), Some(Why::Publication)]
    );
    let trigger = Tables { trigger: print("2"), ..tables.clone() };
    assert_eq!(doubt(&with(trigger, &[]), &before, Gap::Look), [None, None], "no rule of a view");
    let mut gone = tables;
    gone.tables.remove(&name("list"));
    assert_eq!(
        doubt(&with(gone.clone(), &[]), &before, Gap::Look),
        [None, Some(Why::Table(Altered::default()))]
    );
    assert_eq!(
        doubt(&before, &with(gone, &[]), Gap::Look),
        [None, Some(Why::Table(Altered::default()))]
    );
}

/// Lookups read as a role, and with its settings.
#[test]
fn another_role_or_other_settings_of_it_matter_to_lookups_alone() {
    let with = |role: &str, looks_up: bool| {
        let mut rules = rules().prints(&BTreeSet::new());
        rules[0].keys[0].lookups.extend(looks_up.then(|| print("lookup")));
        let tables = Tables { role: print(role), ..over(|_| {}).tables().clone() };
        Prints::new(rules, BTreeMap::new(), tables, &[])
    };
    for gap in [Gap::Look, Gap::Watermark] {
        let found = doubt(&with("2", true), &with("1", true), gap);
        assert_eq!(found, [Some(Why::Role), None]);
        assert_eq!(doubt(&with("2", false), &with("1", false), gap), [None, None]);
        assert_eq!(doubt(&with("1", true), &with("1", true), gap), [None, None]);
    }
}

/// Once when it is suspended, once when it is not any more, and nothing between.
#[test]
fn a_suspended_rule_is_in_doubt_when_it_begins_and_when_it_ends() {
    let tables = over(|_| {}).tables().clone();
    let other = over(|table| table.fixed = print("other")).tables().clone();
    let (active, suspended) = (with(tables.clone(), &[]), with(tables, &["item"]));
    let doubt = |now: &Prints, before: &Prints| doubt(now, before, Gap::Watermark);
    assert_eq!(doubt(&suspended, &active), [Some(Why::Suspended), None]);
    assert_eq!(doubt(&with(other, &["item"]), &suspended), [None, None]);
    assert_eq!(doubt(&active, &suspended), [Some(Why::WasSuspended), None]);
}

#[test]
fn a_new_replica_puts_everything_in_doubt_and_one_that_goes_nothing() {
    let with = |replicas: &[&str]| {
        let replicas: Vec<String> = replicas.iter().map(|&one| one.to_owned()).collect();
        Prints::new(rules().prints(&BTreeSet::new()), BTreeMap::new(), Tables::default(), &replicas)
    };
    let (none, one, two) = (with(&[]), with(&["a:1"]), with(&["b:1", "a:1"]));
    let everything = Doubt::Everything(Broken::OtherReplicas);
    for (now, before, doubt) in [
        (&one, &none, everything.clone()),
        (&two, &one, everything),
        (&one, &two, Doubt::none()),
        (&none, &one, Doubt::none()),
        (&two, &with(&["a:1", "b:1"]), Doubt::none()),
    ] {
        assert_eq!(now.since(before, Gap::Watermark), doubt);
    }
}

#[test]
fn what_has_another_digest_or_another_format_is_not_believed() {
    let prints = over(|_| {});
    let (value, digest) = (prints.to_value(), prints.digest());
    assert_eq!(Prints::from_value(&value, &digest).unwrap().digest(), digest);
    let mut other = value.clone();
    *other.last_mut().unwrap() = b' ';
    assert_eq!(Prints::from_value(&other, &digest), None);
    assert_eq!(Prints::from_value(&value, "0123456789abcdef0123456789abcdef"), None);
    assert_eq!(Prints::from_value(b"", &digest), None);
    let text = String::from_utf8(value).unwrap();
    let older: Prints =
        serde_json::from_str(&text.replace("\"format\":1", "\"format\":0")).unwrap();
    assert_eq!(prints.since(&older, Gap::Watermark), Doubt::Everything(Broken::OtherRules));
}

#[test]
fn reasons_are_told_with_the_rules_that_they_are_about() {
    let names: Vec<String> = (0..30).map(|rule| format!("r{rule}")).collect();
    let keys = (0..30).map(|rule| ((RuleId(rule), 0), Why::Publication)).collect();
    let told = Doubt::Keys(keys).told(&names);
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("keys of rules `r0`, `r1`"), "{told:?}");
    assert!(told[0].ends_with("`r19`, 10 more: the publication was altered"));
    let two = [((RuleId(1), 0), Why::Wider), ((RuleId(0), 0), Why::Suspended)];
    let two = Doubt::Keys(two.into());
    let expected = [
        "keys of rule `r1`: new, or covering more than before",
        "keys of rule `r0`: suspended now",
    ];
    assert_eq!(two.told(&names), expected);
    assert_eq!(two.reason(), Broken::OtherRules);
}

/// The names are not stored: after a start a column that is gone is told by its number.
#[test]
fn what_was_altered_is_told_with_the_table_and_the_column() {
    let named = |table: &mut TablePrint| {
        let columns = table.columns.keys().map(|number| (*number, format!("c{number}")));
        let parts = table.parts.keys().map(|part| (*part, "a partition"));
        let (columns, parts) = (columns.collect(), parts.collect());
        table.names = Names { table: "public.item".to_owned(), columns, parts };
    };
    let told = |change: fn(&mut TablePrint), before: &Prints| {
        let now = over(|table| {
            change(table);
            named(table);
        });
        now.since(before, Gap::Look).reasons()
    };
    let retyped = |table: &mut TablePrint| {
        table.columns.insert(2, (print("other"), print("800")));
    };
    let dropped = |table: &mut TablePrint| table.columns.retain(|number, _| *number != 2);
    let detached = |table: &mut TablePrint| table.parts.clear();
    let before = over(named);
    assert_eq!(told(retyped, &before), "column `c2` of `public.item` was altered");
    assert_eq!(told(dropped, &before), "column `c2` of `public.item` was altered");
    assert_eq!(told(detached, &before), "a partition of `public.item` was altered");
    let another = |table: &mut TablePrint| table.fixed = print("other");
    assert_eq!(
        told(another, &before),
        "`public.item` is another, or is published or secured otherwise"
    );
    let stored = Prints::from_value(&before.to_value(), &before.digest()).unwrap();
    assert!(!String::from_utf8(before.to_value()).unwrap().contains("item"));
    assert_eq!(told(retyped, &stored), "column `c2` of `public.item` was altered");
    assert_eq!(told(dropped, &stored), "column 2 of `public.item` was altered");
    let other = "a partition, a type or a label of an enum of `public.item` was altered";
    assert_eq!(told(detached, &stored), other);
}

#[test]
fn many_reasons_are_told_as_a_few() {
    let names: Vec<String> = (0..30).map(|rule| format!("r{rule}")).collect();
    let because = |rule: u16| Why::Table(Altered(format!("`t{rule:02}` was renamed").into()));
    let keys = (0..30).map(|rule| ((RuleId(rule), 0), because(rule))).collect();
    let doubt = Doubt::Keys(keys);
    let told = doubt.told(&names);
    assert_eq!(told.len(), 21);
    assert_eq!(told[0], "keys of rule `r0`: `t00` was renamed");
    assert!(told[20].starts_with("keys of rules `r20`, `r21`"), "{told:?}");
    let few = "`t00` was renamed; `t01` was renamed; `t02` was renamed; 27 more";
    assert_eq!(doubt.reasons(), few);
}

/// I6: the fingerprints of 1 000 rules over 1 000 tables of 20 columns.
#[test]
fn a_thousand_rules_and_tables_fit_into_a_megabyte_and_a_half() {
    let rule = |number: usize| Rule {
        name: format!("rule{number}"),
        changed: vec![Located::for_tests("name"), Located::for_tests("price")],
        keys: (0..3).map(|key| Located::for_tests(&format!("k:{number}:{key}:{{id}}"))).collect(),
        ..Rule::for_tests(&format!("t{number}"), &[])
    };
    let rules = Rules::compile(&(0..1_000).map(rule).collect::<Vec<_>>()).unwrap();
    let columns = (1..=20).map(|column| (column, (print(&column.to_string()), print("700"))));
    let table = TablePrint { columns: columns.collect(), ..table() };
    let tables = (0..1_000).map(|number| (name(&format!("t{number}")), table.clone())).collect();
    let tables = Tables { tables, ..Tables::default() };
    let prints = Prints::new(rules.prints(&BTreeSet::new()), BTreeMap::new(), tables, &[]);
    let size = prints.to_value().len();
    assert!(size < 3 << 19, "{size} bytes");
    assert_eq!(prints.since(&prints, Gap::Watermark), Doubt::none());
}
