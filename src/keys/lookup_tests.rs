//! Keys that wait for rows, and what becomes of them.

use super::packed::Packed;
use super::tests::{delete, insert, keys_of, located, rule, shown, update_from};
use super::{Answers, Found, KeySet, Limits, Rules, WidenReason};
use crate::config::{self, Location, Problem};
use crate::decode::OldKind;
use crate::gather::Row;

fn lookup(name: &str, sql: &str, params: &[&str]) -> config::Lookup {
    config::Lookup {
        name: name.to_owned(),
        at: Location { line: 9, column: 2, key: format!("lookup.{name}") },
        sql: located("sql", sql),
        params: params.iter().map(|param| located("params.0", param)).collect(),
        cache: 0,
    }
}

fn try_compile(keys: &[&str]) -> Result<Rules, Vec<Problem>> {
    let lookups =
        [lookup("team", "by name", &["name"]), lookup("two", "by both", &["name", "club"])];
    let used = lookups.iter().filter(|one| keys.iter().any(|key| key.contains(&one.name)));
    Rules::with_lookups(&[rule(keys)], &used.cloned().collect::<Vec<_>>())
}

fn compile(keys: &[&str]) -> Rules {
    try_compile(keys).unwrap()
}

fn row(id: &str, name: Option<&str>, club: Option<&str>) -> Row {
    insert([Some(id), name, club, None])
}

/// The same answer for every row that is wanted.
fn answer(keys: &mut KeySet, found: &Found) {
    let mut answers = Answers::default();
    keys.wanted().into_iter().for_each(|wanted| answers.insert(wanted, found.clone()));
    keys.resolve(&answers, WidenReason::LookupFailed);
    assert!(!keys.has_pending());
}

fn found(columns: &[Option<&str>]) -> Found {
    Found::Row(columns.iter().map(|one| one.map(|text| text.as_bytes().to_vec())).collect())
}

#[track_caller]
fn check(template: &str, changed: Row, answered: &Found, expected: &str) {
    let mut keys = keys_of(&mut compile(&[template]), [changed]);
    answer(&mut keys, answered);
    assert_eq!(shown(&keys), expected);
}

/// A subtransaction of a large transaction waits packed.
#[test]
fn what_waits_for_rows_is_packed_whole() {
    let mut rules = compile(&["k:{team.x}:{id}", "l:{two.y}"]);
    let rows = [row("7", Some("n"), None), row("8", Some("m"), Some("c")), row("9", None, None)];
    let mut keys = keys_of(&mut rules, rows);
    let mut back = rules.key_set();
    Packed::new(&keys).add_to(&mut back);
    assert_eq!(back.wanted(), keys.wanted());
    for set in [&mut keys, &mut back] {
        answer(set, &found(&[Some("B")]));
    }
    assert!(shown(&keys).contains("k:B:7"), "{}", shown(&keys));
    assert_eq!(shown(&back), shown(&keys));
}

#[test]
fn a_row_gives_its_key() {
    let seven = || row("7", Some("n"), None);
    let known = found(&[Some("B* FC")]);
    check("k:{team.x}:{id}", seven(), &known, "'k:B* FC:7'");
    check("k:{team.x|slug}:{id}:*", seven(), &known, "/k:b-fc:7:*/");
    check("k:{team.x}:?", seven(), &known, "/k:B\\* FC:?/");
    check("k:{team.x}", seven(), &found(&[None]), "");
    check("k:{team.x|default:none}", seven(), &found(&[None]), "'k:none'");
    check("k:{team.x}:{team.y}", seven(), &found(&[Some("a"), Some("b")]), "'k:a:b'");
    check("k:{team.x}:{two.x}", row("7", Some("n"), Some("c")), &known, "'k:B* FC:B* FC'");
    check("k:{team.x}:{club}", seven(), &known, "");
}

/// I5: whatever is not known of a row is a `*`.
#[test]
fn a_row_that_is_not_known_widens() {
    let seven = || row("7", Some("n"), None);
    check("k:{team.x}:{id}", seven(), &Found::None, "/k:*:7/ (lookup_no_row 1)");
    check("k:{team.x}:{id}", seven(), &Found::Many, "/k:*:7/ (lookup_many_rows 1)");
    check("k:{team.x}", seven(), &Found::Failed, "/k:*/ (lookup_failed 1)");
    check("k:{team.x}", row("7", None, None), &Found::None, "");
    check("k:{team.x|default:no}", row("7", None, None), &Found::None, "'k:no'");
    check("k:{team.x}", row("7", None, None), &found(&[Some("null's")]), "'k:null's'");
    let mut keys = keys_of(&mut compile(&["k:{team.x}:{id}"]), [seven()]);
    keys.resolve(&Answers::default(), WidenReason::Limit);
    assert_eq!(shown(&keys), "/k:*:7/ (limit 1)");
}

#[test]
fn unknown_parameters_do_not_wait() {
    let mut rules = compile(&["k:{team.x}:{id}"]);
    let deleted = || delete(OldKind::Key, [Some("7"), None, None, None]);
    let keys = keys_of(&mut rules, [deleted()]);
    assert_eq!(shown(&keys), "/k:*:7/ (replica_identity 1)");
    let keys = keys_of(&mut rules, [Row::Truncate]);
    assert_eq!(shown(&keys), "/k:*:*/ (truncate 1)");
    let mut both = keys_of(&mut compile(&["k:{team.x}:{two.x}"]), [deleted()]);
    assert!(!both.has_pending());
    answer(&mut both, &Found::None);
    assert_eq!(shown(&both), "/k:*:*/ (replica_identity 1)");
}

#[test]
fn each_row_is_wanted_once_and_both_versions_count() {
    let mut rules = compile(&["a:{team.x}", "b:{team.y}:{id}"]);
    let many = (0..100).map(|id| row(&id.to_string(), Some("same"), None));
    let mut keys = keys_of(&mut rules, many);
    assert!(!keys.is_empty() && keys.exact_len() == 0 && keys.wanted().len() == 1);
    let params: Vec<_> = keys.wanted().iter().map(|one| one.params().len()).collect();
    assert_eq!(params, [1]);
    answer(&mut keys, &found(&[Some("x"), Some("y")]));
    assert_eq!(keys.exact_len(), 101);
    let before = [Some("1"), Some("old"), None, None];
    let update = |name| update_from(OldKind::Full, before, [Some("1"), Some(name), None, None]);
    assert_eq!(keys_of(&mut rules, [update("new")]).wanted().len(), 2);
    assert_eq!(keys_of(&mut rules, [update("old")]).wanted().len(), 1);
}

/// I6: what waits counts, is merged, and gives way to the template's whole pattern.
#[test]
fn what_waits_is_bounded() {
    let limits = Limits { keys: 10, ..Limits::default() };
    let mut rules = compile(&["a:{team.x}:{id}", "b:{id}"]).with_limits(limits);
    let rows = |ids: std::ops::Range<u32>| {
        ids.map(|id| row(&id.to_string(), Some(&id.to_string()), None)).collect::<Vec<_>>()
    };
    let (mut some, others) = (keys_of(&mut rules, rows(0..5)), keys_of(&mut rules, rows(3..9)));
    let alone = keys_of(&mut compile(&["a:{team.x}:{id}"]), rows(0..5));
    assert!(alone.exact_len() == 0 && alone.bytes() > rules.key_set().bytes(), "it costs memory");
    some.merge(&others);
    assert_eq!(some.wanted().len(), 9);
    let mut whole = some.clone();
    whole.collapse();
    assert!(!whole.has_pending() && shown(&whole).contains("/a:*:*/"), "{}", shown(&whole));
    some.merge(&keys_of(&mut rules, rows(9..12)));
    assert!(!some.has_pending() && shown(&some).contains("/a:*:*/"), "{}", shown(&some));
    answer(&mut some, &Found::None);
    assert!(!shown(&some).contains("lookup"), "{}", shown(&some));
}

/// What waited and is answered leaves its room to what comes.
#[test]
fn what_is_answered_makes_room() {
    let limits = Limits { bytes: 4_000, ..Limits::default() };
    let mut rules = compile(&["a:{team.x}", "b:{id}"]).with_limits(limits);
    let mut keys = rules.key_set();
    for round in 0..10 {
        let name = format!("{round:01000}");
        keys.merge(&keys_of(&mut rules, [row(&round.to_string(), Some(&name), None)]));
        answer(&mut keys, &found(&[Some("x")]));
    }
    assert_eq!((keys.exact_len(), keys.has_patterns()), (11, false), "{}", shown(&keys));
}

#[test]
fn what_a_lookup_reads_is_part_of_the_fingerprint() {
    let print = |sql, params: &[&str]| {
        let rules = Rules::with_lookups(&[rule(&["k:{team.x}"])], &[lookup("team", sql, params)]);
        rules.unwrap().fingerprint()
    };
    let prints = [print("a", &["name"]), print("b", &["name"]), print("a", &["club"])];
    assert!(prints[0] != prints[1] && prints[0] != prints[2] && prints[1] != prints[2]);
    assert_eq!(prints[0], print("a", &["name"]));
}

#[test]
fn names_fit_or_are_problems() {
    let unknown = try_compile(&["k:{teem.x}"]).unwrap_err();
    assert_eq!(unknown[0].message, "unknown row version or lookup `teem` in `{teem.x}`");
    let lookups = [lookup("team", "a", &["name"])];
    let unused = Rules::with_lookups(&[rule(&["k:{id}"])], &lookups).unwrap_err();
    assert_eq!(
        unused[0].to_string().lines().next(),
        Some("9:2: lookup.team: no key names lookup `team`")
    );
    let rules = compile(&["k:{team.x}:{id}"]);
    let columns: Vec<&str> = rules.column_uses().map(|one| one.column).collect();
    assert_eq!(columns, ["id", "name"]);
    assert_eq!(shown(&rules.everything()), "/k:*:*/");
}
