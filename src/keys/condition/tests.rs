//! Conditions and rows, and what becomes of them.

use super::{Condition, Fault, Kind, Sources, Undecided, kind_of};
use crate::config::{Location, Script};
use crate::keys::known::{Known, Versions};
use crate::keys::label::WidenReason;
use crate::keys::template::Version;

/// A column's value: its type's oid, and its text as Postgres sends it.
pub(super) type Cell<'a> = (u32, Known<'a>);

pub(super) const NULL: Known<'static> = Known::Null;
pub(super) const UNKNOWN: Known<'static> = Known::Unknown(WidenReason::ReplicaIdentity);

pub(super) fn text(value: &str) -> Known<'_> {
    Known::Bytes(value.as_bytes())
}

pub(super) fn script(text: &str) -> Script {
    let at = Location { line: 1, column: 1, key: "rule.0.when".to_owned() };
    Script::new(text.to_owned(), at, &format!("'''{text}'''"))
}

/// Evaluates a condition for a change; the columns of both versions by their names.
pub(super) fn evaluate(
    condition: &Condition,
    operation: &'static str,
    old: &[(&str, Cell<'_>)],
    new: &[(&str, Cell<'_>)],
) -> Result<bool, Undecided> {
    let (mut versions, mut columns) = (Versions::default(), Vec::new());
    versions.has_old = ["update", "delete"].contains(&operation);
    versions.has_new = ["insert", "update"].contains(&operation);
    for (slot, (version, name)) in condition.columns.iter().enumerate() {
        let cells = if *version == Version::Old { old } else { new };
        let cell = cells.iter().find(|(column, _)| column == name).map(|(_, cell)| *cell);
        let (type_id, value) = cell.unwrap_or((25, Known::Unknown(WidenReason::MissingColumn)));
        columns.push((slot, kind_of(type_id)));
        let (own, other) = if *version == Version::Old {
            (&mut versions.old, &mut versions.new)
        } else {
            (&mut versions.new, &mut versions.old)
        };
        own.push(value);
        other.push(UNKNOWN);
    }
    condition.evaluate(&Sources { versions: &versions, operation, columns: &columns })
}

pub(super) fn compile(text: &str) -> Condition {
    Condition::parse(&script(text)).unwrap_or_else(|flaws| panic!("{text}: {flaws:?}"))
}

const FAILS: fn(Fault) -> Result<bool, Undecided> = |fault| Err(Undecided::Fault(fault));
const OPEN: Result<bool, Undecided> = Err(Undecided::Unknown);

/// An UPDATE whose column `x` was `before` and is `after`.
#[track_caller]
fn check(text: &str, before: Cell<'_>, after: Cell<'_>, expected: Result<bool, Undecided>) {
    let found = evaluate(&compile(text), "update", &[("x", before)], &[("x", after)]);
    assert_eq!(found, expected, "{text}");
}

/// An INSERT of `x`.
#[track_caller]
fn check_new(text: &str, type_id: u32, value: &str, expected: Result<bool, Undecided>) {
    let cell = (type_id, self::text(value));
    assert_eq!(evaluate(&compile(text), "insert", &[], &[("x", cell)]), expected, "{text}");
}

#[test]
fn what_is_unknown_counts_only_where_it_decides() {
    let (one, unknown) = ((23, text("1")), (23, UNKNOWN));
    for (condition, expected) in [
        ("old.x == 1", OPEN),
        ("old.x != old.x", OPEN),
        ("!(old.x == 1)", OPEN),
        ("old.x == 1 && new.x == 2", Ok(false)),
        ("new.x == 2 && old.x == 1", Ok(false)),
        ("old.x == 1 && new.x == 1", OPEN),
        ("old.x == 1 || new.x == 1", Ok(true)),
        ("new.x == 1 || old.x == 1", Ok(true)),
        ("old.x == 1 || new.x == 2", OPEN),
        ("old.x in [1, 2]", OPEN),
        ("new.x in [old.x, 1]", Ok(true)),
        ("new.x in [old.x, 2]", OPEN),
        // Asked, it could fail.
        ("old.x == 1 ? false : false", OPEN),
        ("old.x == 1 ? true : false", OPEN),
        ("new.x == 1 ? new.x < 2 : old.x < 2", Ok(true)),
        ("old.x + 1 > 0", OPEN),
        // Unknown comes before a failure: it could have been decisive.
        ("new.x / 0 == 1 || old.x == 1", OPEN),
        ("old.x == 1 && new.x / 0 == 1", OPEN),
        ("new.x / 0 == 1 && new.x == 2", Ok(false)),
        ("new.x / 0 == 1 || new.x == 1", Ok(true)),
        ("new.x / 0 == 1 || new.x == 2", FAILS(Fault::DivisionByZero)),
        ("new.gone == 1", OPEN),
    ] {
        check(condition, unknown, one, expected);
    }
}

#[test]
fn a_version_that_does_not_exist_is_null_itself_and_its_columns_are_unknown() {
    let x = [("x", (23, text("1")))];
    for (condition, operation, expected) in [
        ("old == null", "insert", Ok(true)),
        ("old != null", "insert", Ok(false)),
        ("null == new", "delete", Ok(true)),
        ("new != null", "update", Ok(true)),
        ("old == null && new == null", "truncate", Ok(true)),
        ("new.x == 1", "delete", OPEN),
        ("old.x == 2", "insert", OPEN),
        ("old == null || old.x == 2", "insert", Ok(true)),
        ("op == 'delete' ? old.x == 1 : new.x == 2", "delete", Ok(true)),
        ("op == 'delete' && new.x == 1", "insert", Ok(false)),
        ("op == 'delete' && new.x == 1", "delete", OPEN),
        ("op in ['insert', 'update']", "truncate", Ok(false)),
        ("new.x == 1", "truncate", OPEN),
    ] {
        assert_eq!(evaluate(&compile(condition), operation, &x, &x), expected, "{condition}");
    }
}

#[test]
fn null_is_a_value() {
    let (null, one) = ((23, NULL), (23, text("1")));
    check("new.x == null", one, null, Ok(true));
    check("new.x != old.x", one, null, Ok(true));
    check("new.x != old.x", null, null, Ok(false));
    check("new.x != old.x", null, one, Ok(true));
    check("new.x == 1", null, null, Ok(false));
    check("new.x in [1, null]", one, null, Ok(true));
    check("new.x > 1", one, null, FAILS(Fault::Null));
    check("new.x != null && new.x > 1", one, null, Ok(false));
    check("new.x", one, (16, NULL), FAILS(Fault::Null));
}

#[test]
fn every_type_is_what_its_column_says() {
    for (condition, type_id, value, expected) in [
        ("new.x == 5", 21, "5", Ok(true)),
        ("new.x > 4 && new.x <= 5u", 20, "5", Ok(true)),
        ("new.x == 4294967295", 26, "4294967295", Ok(true)),
        ("new.x == 5", 23, "five", FAILS(Fault::Malformed)),
        ("new.x", 16, "true", Ok(true)),
        ("!new.x", 16, "false", Ok(true)),
        ("new.x == true", 16, "false", Ok(false)),
        ("new.x > 0.5", 701, "0.75", Ok(true)),
        ("new.x > 1", 701, "Infinity", Ok(true)),
        ("new.x == 0.1", 700, "0.1", Ok(true)),
        ("new.x == 10", 1700, "10.00", Ok(true)),
        ("new.x > 10.5", 1700, "10.50000000000000000001", Ok(true)),
        ("new.x > 1", 1700, "NaN", Ok(true)),
        ("double(new.x) * 2.0 == 3.0", 1700, "1.5", Ok(true)),
        ("int(new.x) == -1", 1700, "-1.9", Ok(true)),
        ("new.x + 1 > 0", 1700, "1", FAILS(Fault::Type)),
        ("new.x == 'scored'", 25, "scored", Ok(true)),
        ("new.x > 'a' && new.x < 'c'", 1043, "b", Ok(true)),
        ("new.x == 'ab'", 1042, "ab   ", Ok(true)),
        ("new.x == 'n'", 19, "n", Ok(true)),
        ("new.x == 'x'", 18, "x", Ok(true)),
        ("new.x.startsWith('sc') && new.x.endsWith('ed')", 25, "scored", Ok(true)),
        ("new.x.contains('core') && size(new.x) == 6", 25, "scored", Ok(true)),
        ("new.x.size() == 1", 25, "ø", Ok(true)),
        ("int(new.x) == 7", 25, "7", Ok(true)),
        (
            "new.x == 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
            2950,
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            Ok(true),
        ),
        ("new.x == 'scored'", 70_000, "scored", Ok(true)),
        ("new.x > 'scored'", 70_000, "void", FAILS(Fault::Type)),
        ("new.x == '{1,2}'", 1007, "{1,2}", Ok(true)),
        ("new.x.contains('\"k\": 1')", 3802, "{\"k\": 1}", Ok(true)),
        ("new.x == '\\\\x00ff'", 17, "\\x00ff", Ok(true)),
        ("new.x > timestamp('2026-07-19T18:00:00Z')", 1184, "2026-07-19 20:00:01+02", Ok(true)),
        ("new.x == timestamp('2026-07-19T18:00:00Z')", 1114, "2026-07-19 18:00:00", Ok(true)),
        ("new.x >= timestamp('2026-07-19T00:00:00Z')", 1082, "2026-07-19", Ok(true)),
        ("new.x > timestamp('2026-07-19T18:00:00Z')", 1184, "infinity", Ok(true)),
        (
            "new.x > timestamp('2026-07-19T18:00:00Z')",
            1082,
            "294248-01-01",
            FAILS(Fault::Malformed),
        ),
        (
            "new.x - timestamp('2026-07-19T18:00:00Z') == duration('1h')",
            1114,
            "2026-07-19 19:00:00",
            Ok(true),
        ),
        ("new.x + duration('1h') > new.x", 1114, "2026-07-19 19:00:00", Ok(true)),
        // A column whose type was changed under the rule: rather a key too many.
        ("new.x == 5", 25, "5", FAILS(Fault::Type)),
        ("new.x == '5'", 23, "5", FAILS(Fault::Type)),
        ("new.x != 5", 25, "5", FAILS(Fault::Type)),
    ] {
        check_new(condition, type_id, value, expected);
    }
    let (before, after) = ((1700, text("1.0")), (1700, text("1.00")));
    check("new.x != old.x", before, after, Ok(false));
    check("new.x > old.x", (20, text("9")), (20, text("10")), Ok(true));
}

#[test]
fn what_cannot_be_computed_fails() {
    for (condition, fault) in [
        ("new.x + 1 > 0", Fault::Overflow),
        ("new.x * 2 > 0", Fault::Overflow),
        ("new.x / (new.x - new.x) > 0", Fault::DivisionByZero),
        ("new.x % 0 > 0", Fault::DivisionByZero),
        ("(0 - new.x - 1) / -1 > 0", Fault::Overflow),
        ("-(0 - new.x - 1) > 0", Fault::Overflow),
        ("int(double(new.x) * 2.0) > 0", Fault::Overflow),
        ("new.x ? true : false", Fault::Type),
    ] {
        check_new(condition, 20, "9223372036854775807", FAILS(fault));
    }
    check_new(
        "new.x - timestamp('2026-07-19T18:00:00Z') > duration('1s')",
        1184,
        "infinity",
        FAILS(Fault::Overflow),
    );
    let bytes = [("x", (25, Known::Bytes(b"\xff")))];
    let size = evaluate(&compile("size(new.x) > 0"), "insert", &[], &bytes);
    assert_eq!(size, FAILS(Fault::Malformed));
    let equal = evaluate(&compile("new.x == 'a'"), "insert", &[], &bytes);
    assert_eq!(equal, Ok(false));
}

#[test]
fn columns_are_named_with_any_character() {
    let condition = compile("new['Weird Col'] == 1 && new.`also-weird` == 1 && old.x == 1");
    let columns: Vec<_> = condition.columns.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(columns, ["Weird Col", "also-weird", "x"]);
    assert_eq!(compile("new.x > 1 && new.x < 5 && old.x == 3").columns.len(), 2);
}

/// The column where each flaw stands, from 1, and its message.
fn flaws(text: &str) -> Vec<(usize, String)> {
    let flaws = Condition::parse(&script(text)).err().unwrap_or_default();
    flaws.into_iter().map(|(at, flaw)| (at.column - 3, flaw.message)).collect()
}

#[test]
fn a_wrong_condition_is_refused_at_its_place() {
    for (text, expected) in [
        ("neu.status == 'scored'", vec![(1, "unknown name `neu` in `neu.status`")]),
        ("new.a == 1 && stat == 2", vec![(15, "unknown name `stat`")]),
        (
            "'ø' == neu.a || lower(new.b)",
            vec![(8, "unknown name `neu` in `neu.a`"), (22, "unknown function `lower`")],
        ),
        ("new", vec![(1, "`new` is a row, not a value")]),
        ("new.a.b == 1", vec![(1, "`.b` selects from what is no row")]),
        ("has(new.a)", vec![(5, "`has` is not supported: every row has every column")]),
        ("new.a.matches('x')", vec![(14, "unknown function `matches`")]),
        ("'text'", vec![(1, "the condition gives a text, not true or false")]),
        ("new.a + 1", vec![]),
        ("1 + 1", vec![(3, "the condition gives an integer, not true or false")]),
        ("new.a && 1", vec![(10, "a side of `&&` gives an integer, not true or false")]),
        ("1 == 'a'", vec![(3, "an integer is compared with a text")]),
        ("null > 1", vec![(6, "null is compared with an integer")]),
        ("1 + 'a' == 2", vec![(3, "an integer is computed with a text")]),
        ("op == 'upsert'", vec![(7, "`op` is never `upsert`")]),
        ("op in ['insert', 'up']", vec![(18, "`op` is never `up`")]),
        ("new.a > timestamp('yesterday')", vec![(18, "`yesterday` is no timestamp")]),
        ("new.a > duration('1d')", vec![(17, "`1d` is no duration")]),
        (
            "new.a.exists(x, x == 1)",
            vec![(13, "`all`, `exists`, `map` and `filter` are not supported")],
        ),
        ("new.a in new.b", vec![(7, "what stands behind `in` is no list")]),
        ("new.a == b'x'", vec![(10, "bytes are not supported")]),
        ("new.a == 18446744073709551615u", vec![(10, "the number is too large")]),
        ("", vec![(1, "the condition is empty")]),
    ] {
        let found = flaws(text);
        let found: Vec<(usize, &str)> = found.iter().map(|(at, m)| (*at, m.as_str())).collect();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn what_is_not_cel_is_refused_at_its_place() {
    for (text, column) in [
        ("new.a ==", 9),
        ("new.a = 1", 7),
        ("(new.a == 1", 12),
        ("'øø' == new.a = 1", 15),
        ("new.a == 'x", 10),
    ] {
        let found = flaws(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert_eq!(found[0].0, column, "{text}: {found:?}");
        assert!(found[0].1.starts_with("not CEL: "), "{found:?}");
    }
}

#[test]
fn size_and_depth_are_limited() {
    let nested = format!("{}new.a == 1{}", "(".repeat(2000), ")".repeat(2000));
    assert!(flaws(&nested)[0].1.contains("not CEL"), "{:?}", flaws(&nested));
    let long = format!("new.a == {}1", "1 + ".repeat(1000));
    assert_eq!(flaws(&long)[0].1, "the condition is nested too deeply");
    for (count, expected) in [(4000, true), (3999, false)] {
        check_new(&format!("{}new.x", "!".repeat(count)), 16, "true", Ok(expected));
    }
    let list = format!("new.a in [{}]", vec!["'scored'"; 400].join(", "));
    assert_eq!(flaws(&list), []);
    let longer = format!("new.a in [{}]", vec!["'scored'"; 500].join(", "));
    assert_eq!(flaws(&longer)[0].1, "the condition is longer than 4096 bytes");
}

#[test]
fn the_catalog_tells_what_does_not_fit() {
    let misfits = |text: &str, kind: Kind| {
        let condition = compile(text);
        let flaws = condition.misfits(&|_| kind);
        flaws.into_iter().map(|(_, flaw)| flaw.message).collect::<Vec<_>>()
    };
    for (text, kind, expected) in [
        ("new.a == 'x'", Kind::Int, Some("an integer is compared with a text")),
        ("new.a == 1", Kind::Text, Some("a text is compared with an integer")),
        ("new.a == '2026-01-01'", Kind::Time, Some("a timestamp is compared with a text")),
        ("new.a > 'x'", Kind::Label, Some("a value known by its text alone has no order")),
        ("new.a", Kind::Int, Some("the condition gives an integer, not true or false")),
        ("new.a * 2 > 1", Kind::Decimal, Some("a numeric is computed with an integer")),
        ("size(new.a) > 1", Kind::Int, Some("the function is given an integer")),
        ("new.a == 'x' || new.a.startsWith('y')", Kind::Label, None),
        ("new.a != old.a && new.a != null", Kind::Label, None),
        ("new.a > 1.5", Kind::Decimal, None),
        ("new.a > old.a", Kind::Time, None),
    ] {
        assert_eq!(misfits(text, kind), Vec::from_iter(expected), "{text}");
    }
}
