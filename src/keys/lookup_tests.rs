//! Keys that wait for rows, and what becomes of them.

use super::packed::Packed;
use super::tests::{delete, insert, keys_of, located, rule, shown, update_from};
use super::{Answers, Found, FoundRows, KeySet, Limits, Rules, WidenReason, resolve};
use crate::config::{self, Location, LookupRows, Missing, Problem};
use crate::decode::OldKind;
use crate::gather::Row;

fn lookup(name: &str, sql: &str, params: &[&str]) -> config::Lookup {
    config::Lookup {
        name: name.to_owned(),
        at: Location { line: 9, column: 2, key: format!("lookup.{name}") },
        sql: located("sql", sql),
        params: params.iter().map(|param| located("params.0", param)).collect(),
        cache: 0,
        rows: LookupRows::One,
        limit: 1_000,
        missing: Missing::Widen,
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

/// Answers every row that is wanted with `found`.
fn answer(keys: &mut KeySet, found: &Found) {
    let mut answers = Answers::default();
    keys.wanted().into_iter().for_each(|wanted| answers.insert(wanted, found.clone()));
    resolve(keys, &answers, WidenReason::LookupFailed);
    assert!(!keys.has_pending());
}

fn found(columns: &[Option<&str>]) -> Found {
    Found::row(columns)
}

#[track_caller]
fn check(template: &str, changed: Row, answered: &Found, expected: &str) {
    let mut keys = keys_of(&compile(&[template]), [changed]);
    answer(&mut keys, answered);
    assert_eq!(shown(&keys), expected);
}

/// A subtransaction of a large transaction waits packed.
#[test]
fn what_waits_for_rows_is_packed_whole() {
    let rules = compile(&["k:{team.x}:{id}", "l:{two.y}"]);
    let rows = [row("7", Some("n"), None), row("8", Some("m"), Some("c")), row("9", None, None)];
    let mut keys = keys_of(&rules, rows);
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
    check("k:{team.x}", seven(), &Found::Large, "/k:*/ (large_value 1)");
    check("k:{team.x}", row("7", None, None), &Found::None, "");
    check("k:{team.x|default:no}", row("7", None, None), &Found::None, "'k:no'");
    check("k:{team.x}", row("7", None, None), &found(&[Some("null's")]), "'k:null's'");
    let mut keys = keys_of(&compile(&["k:{team.x}:{id}"]), [seven()]);
    resolve(&mut keys, &Answers::default(), WidenReason::Limit);
    assert_eq!(shown(&keys), "/k:*:7/ (limit 1)");
}

#[test]
fn unknown_parameters_do_not_wait() {
    let rules = compile(&["k:{team.x}:{id}"]);
    let deleted = || delete(OldKind::Key, [Some("7"), None, None, None]);
    let keys = keys_of(&rules, [deleted()]);
    assert_eq!(shown(&keys), "/k:*:7/ (replica_identity 1)");
    let keys = keys_of(&rules, [Row::Truncate]);
    assert_eq!(shown(&keys), "/k:*:*/ (truncate 1)");
    let mut both = keys_of(&compile(&["k:{team.x}:{two.x}"]), [deleted()]);
    assert!(!both.has_pending());
    answer(&mut both, &Found::None);
    assert_eq!(shown(&both), "/k:*:*/ (replica_identity 1)");
}

#[test]
fn each_row_is_wanted_once_and_both_versions_count() {
    let rules = compile(&["a:{team.x}", "b:{team.y}:{id}"]);
    let many = (0..100).map(|id| row(&id.to_string(), Some("same"), None));
    let mut keys = keys_of(&rules, many);
    assert!(!keys.is_empty() && keys.exact_len() == 0 && keys.wanted().len() == 1);
    let params: Vec<_> = keys.wanted().iter().map(|one| one.params().len()).collect();
    assert_eq!(params, [1]);
    answer(&mut keys, &found(&[Some("x"), Some("y")]));
    assert_eq!(keys.exact_len(), 101);
    let before = [Some("1"), Some("old"), None, None];
    let update = |name| update_from(OldKind::Full, before, [Some("1"), Some(name), None, None]);
    assert_eq!(keys_of(&rules, [update("new")]).wanted().len(), 2);
    assert_eq!(keys_of(&rules, [update("old")]).wanted().len(), 1);
}

/// I6: what waits counts, is merged, and gives way to the template's whole pattern.
#[test]
fn what_waits_is_bounded() {
    let limits = Limits { keys: 10, ..Limits::default() };
    let rules = compile(&["a:{team.x}:{id}", "b:{id}"]).with_limits(limits);
    let rows = |ids: std::ops::Range<u32>| {
        ids.map(|id| row(&id.to_string(), Some(&id.to_string()), None)).collect::<Vec<_>>()
    };
    let (mut some, others) = (keys_of(&rules, rows(0..5)), keys_of(&rules, rows(3..9)));
    let alone = keys_of(&compile(&["a:{team.x}:{id}"]), rows(0..5));
    assert!(alone.exact_len() == 0 && alone.bytes() > rules.key_set().bytes(), "it costs memory");
    some.merge(&others);
    assert_eq!(some.wanted().len(), 9);
    let mut whole = keys_of(&compile(&["a:{team.x}:{id}", "b:{id}"]), rows(0..40));
    whole.collapse();
    assert!(!whole.has_pending() && shown(&whole).contains("/a:*:*/"), "{}", shown(&whole));
    let mut one = keys_of(&rules, rows(0..1));
    assert!(one.collapse().is_empty() && one.has_pending(), "a pattern frees nothing");
    some.merge(&keys_of(&rules, rows(9..12)));
    assert!(!some.has_pending() && shown(&some).contains("/a:*:*/"), "{}", shown(&some));
    answer(&mut some, &Found::None);
    assert!(!shown(&some).contains("lookup"), "{}", shown(&some));
}

/// Keys that waited and are answered leave their room to what comes.
#[test]
fn what_is_answered_makes_room() {
    let limits = Limits { bytes: 4_000, ..Limits::default() };
    let rules = compile(&["a:{team.x}", "b:{id}"]).with_limits(limits);
    let mut keys = rules.key_set();
    for round in 0..10 {
        let name = format!("{round:01000}");
        keys.merge(&keys_of(&rules, [row(&round.to_string(), Some(&name), None)]));
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

/// The lookup `team`, of many rows.
fn many(key: &str) -> Rules {
    let mut team = lookup("team", "by name", &["name"]);
    team.rows = LookupRows::Many;
    Rules::with_lookups(&[rule(&[key])], &[team]).unwrap()
}

fn rows(rows: &[&[Option<&str>]]) -> Found {
    let mut found = FoundRows::default();
    rows.iter().for_each(|row| found.push(row.iter().map(|one| one.map(str::as_bytes))));
    Found::Rows(found)
}

#[test]
fn each_of_many_rows_gives_its_keys_and_none_gives_none() {
    let check = |key: &str, answered: &Found, expected: &str| {
        let mut keys = keys_of(&many(key), [row("7", Some("n"), None)]);
        answer(&mut keys, answered);
        assert_eq!(shown(&keys), expected, "{key}");
    };
    let two = rows(&[&[Some("a"), Some("1")], &[Some("b"), Some("2")]]);
    check("k:{team.x}:{team.y}:{id}", &two, "'k:a:1:7' 'k:b:2:7'");
    check("k:{team.x}:{team.y}:{team.x}*", &two, "/k:a:1:a*/ /k:b:2:b*/");
    check("k:{team.x}", &rows(&[&[Some("a")], &[None], &[Some("a")]]), "'k:a'");
    check("k:{team.x|default:-}", &rows(&[&[Some("")], &[None]]), "'k:' 'k:-'");
    check("k:{team.x|default:-}", &Found::None, "");
    check("k:{team.x}:{id}", &Found::Beyond, "/k:*:7/ (lookup_limit 1)");
    check("k:{team.x}:{id}", &Found::Failed, "/k:*:7/ (lookup_failed 1)");
    let mut unknown =
        keys_of(&many("k:{team.x}:{id}"), [delete(OldKind::Key, [Some("7"), None, None, None])]);
    assert_eq!(shown(&unknown), "/k:*:7/ (replica_identity 1)");
    answer(&mut unknown, &Found::None);
    assert_eq!(shown(&unknown), "/k:*:7/ (replica_identity 1)");
}

/// The bytes that are noted by one copy are counted off by the other.
#[test]
fn a_copy_of_an_answer_takes_as_much() {
    let three = rows(&[&[Some("a"), None], &[Some(""), Some("23")], &[None, None]]);
    assert_eq!((three.bytes(), three.clone().bytes()), (12, 12));
    assert_eq!((found(&[Some("ab")]).bytes(), Found::None.bytes()), (4, 0));
}

/// Beside rows of one that is meant to have many, another has one.
#[test]
fn two_lookups_of_many_rows_in_one_key_are_a_problem() {
    let both = |rows: [LookupRows; 2]| {
        let mut lookups = [lookup("a", "1", &["name"]), lookup("b", "2", &["club"])];
        lookups.iter_mut().zip(rows).for_each(|(one, rows)| one.rows = rows);
        Rules::with_lookups(&[rule(&["k:{a.x}:{b.y}"])], &lookups)
    };
    let problems = both([LookupRows::Many, LookupRows::Many]).unwrap_err();
    let text = "a key names two lookups of many rows, `a` and `b`";
    assert_eq!((problems.len(), &*problems[0].message), (1, text));
    let mixed = both([LookupRows::Many, LookupRows::One]).unwrap();
    let mut keys = keys_of(&mixed, [row("7", Some("n"), Some("c"))]);
    let mut answers = Answers::default();
    for wanted in keys.wanted() {
        let is_many = wanted.lookup.0 == 0;
        let answer =
            if is_many { rows(&[&[Some("1")], &[Some("2")]]) } else { found(&[Some("x")]) };
        answers.insert(wanted, answer);
    }
    resolve(&mut keys, &answers, WidenReason::LookupFailed);
    assert_eq!(shown(&keys), "'k:1:x' 'k:2:x'");
}

#[test]
fn no_row_gives_no_key_where_the_configuration_says_so() {
    let mut team = lookup("team", "by name", &["name"]);
    team.missing = Missing::Skip;
    let rules = Rules::with_lookups(&[rule(&["k:{team.x|default:-}"])], &[team]).unwrap();
    for (answered, expected) in [
        (Found::None, ""),
        (Found::Many, "/k:*/ (lookup_many_rows 1)"),
        (Found::Failed, "/k:*/ (lookup_failed 1)"),
        (found(&[None]), "'k:-'"),
    ] {
        let mut keys = keys_of(&rules, [row("7", Some("n"), None)]);
        answer(&mut keys, &answered);
        assert_eq!(shown(&keys), expected);
    }
}

#[test]
fn how_many_rows_are_meant_is_part_of_the_fingerprint() {
    let print = |change: &dyn Fn(&mut config::Lookup)| {
        let mut team = lookup("team", "a", &["name"]);
        change(&mut team);
        Rules::with_lookups(&[rule(&["k:{team.x}"])], &[team]).unwrap().fingerprint()
    };
    let (plain, many) = (print(&|_| {}), print(&|one| one.rows = LookupRows::Many));
    let skip = print(&|one| one.missing = Missing::Skip);
    assert!(plain != many && plain != skip && many != skip);
    assert_eq!(plain, print(&|one| one.limit = 7), "how many are too many is a doubt, no key");
}
