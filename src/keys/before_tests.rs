//! Rows that a lookup gave before the transaction give keys, too.

use std::sync::Arc;

use super::packed::Packed;
use super::tests::{immutable, insert, located, rule, shown};
use super::{Answers, Basis, Binding, Bound, Found, KeySet, Keyed, Rules, WidenReason, resolve};
use crate::config::{self, Location, LookupRows, Missing};
use crate::decode::{Column, OldKind, OldTuple, Relation, ReplicaIdentity, Tuple, Value};
use crate::gather::{Change, Row};

const TEAM: u32 = 2;

/// A key by the club of the team that `name` tells.
fn rules(rows: LookupRows, is_exact: bool) -> Bound {
    bind(&Rules::with_lookups(&[rule(&["k:{team.x}"])], &[lookup(rows)]).unwrap(), is_exact)
}

fn lookup(rows: LookupRows) -> config::Lookup {
    config::Lookup {
        name: "team".to_owned(),
        at: Location::default(),
        sql: located("sql", "by name"),
        params: vec![located("params.0", "name")],
        cache: 0,
        rows,
        limit: 10,
        missing: Missing::Widen,
    }
}

/// Tells whose rows they are, and whether their texts are those of the parameters.
fn bind(rules: &Rules, is_exact: bool) -> Bound {
    let (params, columns) = (vec!["id".to_owned()], vec!["club".to_owned()]);
    let keyed = Some(Keyed { tables: vec![TEAM], params, columns, is_exact });
    rules.bind(Binding { lookups: vec![Basis { reads: None, keyed }], ..Binding::default() })
}

/// The table of teams, which no rule looks at.
fn teams(identity: ReplicaIdentity) -> Arc<Relation> {
    let column = |name: &str, is_key| Column {
        is_key,
        name: name.to_owned(),
        type_id: 25,
        type_modifier: -1,
    };
    let is_full = identity == ReplicaIdentity::Full;
    Arc::new(Relation {
        id: TEAM,
        namespace: "public".to_owned(),
        name: "team".to_owned(),
        replica_identity: identity,
        columns: vec![column("club", is_full), column("other", is_full), column("id", true)],
    })
}

type Team<'a> = [Option<&'a str>; 3];

fn tuple(values: Team<'_>) -> Tuple {
    Tuple::from_values(
        &values.map(|one| one.map_or(Value::Null, |one| Value::Text(one.as_bytes()))),
    )
}

fn team(club: &str, id: &str) -> Tuple {
    tuple([Some(club), Some("same"), Some(id)])
}

fn full(tuple: Tuple) -> OldTuple {
    OldTuple { kind: OldKind::Full, tuple }
}

/// The keys of a transaction with these changes of teams, and of one row that refers to team 5.
fn transaction(rules: &mut Bound, changes: impl IntoIterator<Item = Row>) -> KeySet {
    let (mut keys, relation) = (rules.key_set(), teams(ReplicaIdentity::Full));
    for row in changes {
        rules.add(&Change { relation: Arc::clone(&relation), row }, &mut keys);
    }
    let row = insert([Some("7"), Some("5"), None, None]);
    rules.add(&Change { relation: super::tests::relation(), row }, &mut keys);
    keys.end();
    keys
}

fn resolved(mut keys: KeySet, found: &Found) -> String {
    let mut answers = Answers::default();
    keys.wanted().into_iter().for_each(|one| answers.insert(one, found.clone()));
    resolve(&mut keys, &answers, WidenReason::LookupFailed);
    shown(&keys)
}

fn now(club: &str) -> Found {
    Found::row(&[Some(club)])
}

#[test]
fn a_row_that_the_transaction_deleted_or_changed_gives_its_old_keys_too() {
    let gone = || Row::Delete { old: full(team("A", "5")) };
    let moved = |from, to| Row::Update { old: Some(full(team(from, "5"))), new: team(to, "5") };
    let renumbered = || Row::Update { old: Some(full(team("A", "5"))), new: team("A", "6") };
    let other = || Row::Delete { old: full(team("Z", "4")) };
    let mut rules = rules(LookupRows::One, true);
    for (changes, found, expected) in [
        (vec![gone()], Found::None, "'k:A'"),
        (vec![gone(), Row::Insert { new: team("B", "5") }], now("B"), "'k:B' 'k:A'"),
        (vec![moved("A", "B")], now("B"), "'k:B' 'k:A'"),
        (vec![moved("A", "B"), moved("B", "C")], now("C"), "'k:C' 'k:A' 'k:B'"),
        // A later transaction moved it again: its own rules tell of B.
        (vec![moved("A", "B")], now("D"), "'k:D' 'k:A'"),
        (vec![renumbered()], Found::None, "'k:A'"),
        (vec![moved("A", "A")], now("A"), "'k:A'"),
        (vec![other()], now("A"), "'k:A'"),
        (vec![other()], Found::None, "/k:*/ (lookup_no_row 1)"),
        (vec![gone()], Found::Failed, "/k:*/ (lookup_failed 1)"),
        (vec![gone()], Found::Many, "/k:*/ (lookup_many_rows 1)"),
        (vec![Row::Truncate], Found::None, "/k:*/ (truncate 1)"),
    ] {
        assert_eq!(resolved(transaction(&mut rules, changes), &found), expected);
    }
    let mut many = self::rules(LookupRows::Many, true);
    assert_eq!(resolved(transaction(&mut many, [gone(), other()]), &Found::None), "'k:A'");
}

/// I5: where the stream does not tell what a row was, any key may have been another one.
#[test]
fn what_is_not_known_of_an_old_row_widens() {
    let unknown = |rules: &mut Bound, row, id: &str, (identity, found): (_, &Found)| {
        let mut keys = rules.key_set();
        rules.add(&Change { relation: teams(identity), row }, &mut keys);
        let row = insert([Some("7"), Some(id), None, None]);
        rules.add(&Change { relation: super::tests::relation(), row }, &mut keys);
        resolved(keys, found)
    };
    let gone = || {
        let old = OldTuple { kind: OldKind::Key, tuple: tuple([None, None, Some("5")]) };
        Row::Delete { old }
    };
    let moved = || Row::Update { old: None, new: team("B", "5") };
    let unmoved = || {
        let new = Tuple::from_values(&[Value::Unchanged, Value::Null, Value::Text(b"5")]);
        Row::Update { old: None, new }
    };
    let by_id = || ReplicaIdentity::Default;
    let mut rules = rules(LookupRows::One, true);
    let wide = "/k:*/ (replica_identity 1)";
    for (row, id, identity, found, expected) in [
        (gone(), "5", by_id(), Found::None, wide),
        (gone(), "4", by_id(), now("A"), "'k:A'"),
        (moved(), "5", by_id(), now("B"), wide),
        (moved(), "4", by_id(), now("A"), "'k:A'"),
        (unmoved(), "5", by_id(), now("B"), "'k:B'"),
        // It does not even tell which row it was.
        (moved(), "4", ReplicaIdentity::Nothing, now("A"), wide),
    ] {
        assert_eq!(unknown(&mut rules, row, id, (identity, &found)), expected);
    }
    // Another text may find the row.
    rules = self::rules(LookupRows::One, false);
    let full = || ReplicaIdentity::Full;
    let moved = |to| Row::Update { old: Some(full_row("A")), new: team(to, "5") };
    for (row, expected) in [(moved("B"), "/k:*/ (lookup_old_row 1)"), (moved("A"), "'k:A'")] {
        assert_eq!(unknown(&mut rules, row, "05", (full(), &now("A"))), expected);
    }
    for rows in [LookupRows::One, LookupRows::Many] {
        let (mut rules, found) = (self::rules(rows, true), (by_id(), &Found::None));
        assert_eq!(unknown(&mut rules, gone(), "5", found), wide);
    }
}

fn full_row(club: &str) -> OldTuple {
    full(team(club, "5"))
}

/// Columns that a rule of the table declares immutable are so for lookups of it, too.
#[test]
fn what_never_changes_is_known_of_an_old_row() {
    let mut team_rule = immutable("club", rule(&["t:{id}"]));
    (team_rule.name, team_rule.table.name) = ("teams".to_owned(), "team".to_owned());
    let lookup = lookup(LookupRows::One);
    let rules = Rules::with_lookups(&[rule(&["k:{team.x}"]), team_rule], &[lookup]).unwrap();
    let mut rules = bind(&rules, true);
    let mut keys = rules.key_set();
    let row = Row::Update { old: None, new: team("B", "5") };
    rules.add(&Change { relation: teams(ReplicaIdentity::Default), row }, &mut keys);
    let row = insert([Some("7"), Some("5"), None, None]);
    rules.add(&Change { relation: super::tests::relation(), row }, &mut keys);
    assert_eq!(resolved(keys, &now("B")), "'t:5' 'k:B'");
}

#[test]
fn what_is_known_of_before_travels_with_the_set_and_is_dropped_where_nothing_waits() {
    let gone = || [Row::Delete { old: full(team("A", "5")) }];
    let mut rules = rules(LookupRows::One, true);
    let (mut packed, mut merged) = (rules.key_set(), rules.key_set());
    let keys = transaction(&mut rules, gone());
    Packed::new(&keys).add_to(&mut packed);
    merged.merge(&keys);
    let beyond = keys.beyond(&rules.key_set());
    for set in [packed, merged, beyond] {
        assert_eq!(resolved(set, &Found::None), "'k:A'");
    }
    let mut lost = rules.key_set();
    Packed::new(&transaction(&mut rules, [Row::Truncate])).add_to(&mut lost);
    assert_eq!(resolved(lost, &Found::None), "/k:*/ (truncate 1)");
    let mut alone = rules.key_set();
    let [row] = gone();
    rules.add(&Change { relation: teams(ReplicaIdentity::Full), row }, &mut alone);
    assert!(alone.is_empty() && alone.bytes() > rules.key_set().bytes());
    alone.end();
    assert_eq!(alone.bytes(), rules.key_set().bytes());
}

/// I6 and I5: beyond a limit nothing is known of what was before, and that widens.
#[test]
fn what_is_known_of_before_is_bounded_and_its_loss_widens() {
    let gone = |id: usize| Row::Delete { old: full(team("A", &id.to_string())) };
    let mut rules = rules(LookupRows::One, true);
    let mut keys = transaction(&mut rules, (10..50_000).map(gone));
    assert!(keys.bytes() < 3 << 20, "{}", keys.bytes());
    assert_eq!(resolved(keys, &Found::None), "/k:*/ (limit 1)");
    keys = transaction(&mut rules, (0..10).map(gone));
    let mut flat = rules.key_set();
    flat.merge(&keys);
    flat.collapse();
    assert_eq!(resolved(flat, &Found::None), "/k:*/ (limit 1)");
}
