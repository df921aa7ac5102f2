//! Items of rules: fields of hashes and indices of tags.

use super::packed::Packed;
use super::tests::{compile, delete, insert, keys_of, located, rule, update, update_from};
use super::{Given, ItemKind, KeySet, Limits, Reach, Rules};
use crate::config::{self, Fields, TargetId};
use crate::decode::OldKind;
use crate::gather::Row;

fn items(tags: &[&str], fields: &[(&str, &[&str])]) -> config::Rule {
    let text = |text: &&str| located("rule.0.tags.0", text);
    let of_hash = |(key, fields): &(&str, &[&str])| Fields {
        key: located("rule.0.fields", key),
        fields: fields.iter().map(text).collect(),
    };
    config::Rule {
        tags: tags.iter().map(text).collect(),
        fields: fields.iter().map(of_hash).collect(),
        ..rule(&[])
    }
}

/// The items in words, in order.
fn shown(keys: &KeySet) -> Vec<String> {
    let mut shown: Vec<String> = keys
        .items()
        .map(|(_, item)| match item.kind() {
            ItemKind::Tag => format!("tag {}", item.key().escape_ascii()),
            ItemKind::Field => {
                format!("{}#{}", item.key().escape_ascii(), item.field().escape_ascii())
            }
        })
        .collect();
    shown.sort();
    shown
}

#[track_caller]
fn check(rule: config::Rule, row: Row, expected: &[&str]) {
    let keys = keys_of(&compile(rule), [row]);
    assert_eq!((keys.exact_len(), keys.patterns().count()), (0, 0), "they are no keys");
    assert_eq!(shown(&keys), expected);
}

const OLD: [Option<&str>; 4] = [Some("1"), Some("old"), Some("A"), Some("x")];
const NEW: [Option<&str>; 4] = [Some("1"), Some("new"), Some("B"), Some("x")];
const LEFT_OUT: Option<&str> = Some("<left out>");

#[test]
fn key_and_field_are_of_one_row_version() {
    let rule = || items(&["tag:{club}"], &[("user:{id}", &["name", "club:{club}"])]);
    check(rule(), insert(NEW), &["tag tag:B", "user:1#club:B", "user:1#name"]);
    let both = ["tag tag:A", "tag tag:B", "user:1#club:A", "user:1#club:B", "user:1#name"];
    check(rule(), update_from(OldKind::Full, OLD, NEW), &both);
    check(items(&[], &[("h:{name}", &["f:{club}"])]), delete(OldKind::Full, OLD), &["h:old#f:A"]);
}

/// I4: a value is a name, in the key and in the field.
#[test]
fn a_value_is_escaped_in_both_parts() {
    let new = [Some("*"), Some("a?[b]"), Some("x\\"), None];
    let rule = items(&["t:{id}"], &[("h:{id}", &["{name}", "{club}"])]);
    let keys = keys_of(&compile(rule), [insert(new)]);
    assert!(keys.items().all(|(_, item)| item.reach() != Reach::Scanned), "{:?}", shown(&keys));
    let fields: Vec<_> = keys.items().filter_map(|(_, item)| item.only_field()).collect();
    assert!(fields.iter().any(|field| **field == *b"a?[b]"), "{:?}", shown(&keys));
    assert!(fields.iter().any(|field| **field == *br"x\"));
    assert!(keys.items().all(|(_, item)| item.only_key().unwrap().ends_with(b":*")));
}

/// I5: what is unknown widens in its own part alone; all of it at once is everything.
#[test]
fn what_is_unknown_widens_in_its_part() {
    let unknown = |id| [id, LEFT_OUT, LEFT_OUT, None];
    let rule = || items(&[], &[("h:{id}", &["f:{club}", "name"])]);
    check(rule(), delete(OldKind::Key, unknown(Some("1"))), &["h:1#f:*", "h:1#name"]);
    let keys = keys_of(&compile(rule()), [delete(OldKind::Key, unknown(Some("1")))]);
    assert_eq!(keys.widened().count(), 1);
    check(rule(), Row::Truncate, &["h:*#f:*", "h:*#name"]);
    check(items(&["t:{id}:*"], &[]), insert(NEW), &["tag t:1:*"]);
    // NULL is no key, as ever.
    check(items(&["t:{name}"], &[]), insert([Some("1"), None, None, None]), &[]);
    check(items(&[], &[("h:{id}", &["{name}"])]), insert([Some("1"), None, None, None]), &[]);
}

/// Stars that meet at the border of key and field are two.
#[test]
fn the_border_of_key_and_field_stays() {
    let rule = items(&[], &[("h:{club}*", &["*{name}", "*"])]);
    let keys = keys_of(&compile(rule), [insert(NEW)]);
    assert_eq!(shown(&keys), ["h:B*#*", "h:B*#*new"]);
    assert!(keys.items().any(|(_, item)| item.is_whole_hash()));
}

#[test]
fn a_set_tells_how_its_items_are_reached() {
    let rule = items(&["t:{id}"], &[("h:{id}", &["name", "s:*"]), ("w:*", &["name"])]);
    let keys = keys_of(&compile(rule), [insert(NEW)]);
    assert!([Reach::Direct, Reach::Paged, Reach::Scanned].iter().all(|one| keys.has_items(*one)));
    assert!(keys.has_patterns(), "a pass finds `w:*`");
    let mut rest = keys.clone();
    let scanned = rest.take_scanned();
    assert_eq!(shown(&scanned), ["w:*#name"]);
    assert_eq!(shown(&rest), ["h:1#name", "h:1#s:*", "tag t:1"]);
    let taken = rest.take_items(|item| item.kind() == ItemKind::Tag);
    assert_eq!((shown(&taken).len(), shown(&rest).len()), (1, 2));
}

fn many(rules: &Rules, count: usize) -> KeySet {
    let rows = (0..count).map(|id| {
        let id = id.to_string();
        update([Some(&id), Some("n"), Some("c"), None])
    });
    keys_of(rules, rows)
}

/// I6: whatever is too much becomes all that the template could give.
#[test]
fn items_collapse_at_the_limits_and_are_counted() {
    let rule = || items(&["t:{id}"], &[("h:{id}", &["name"])]);
    for limits in
        [Limits { keys: 100, ..Limits::default() }, Limits { bytes: 16 << 10, ..Limits::default() }]
    {
        let rules = compile(rule()).with_limits(limits);
        let keys = many(&rules, 1_000);
        let shown = shown(&keys);
        assert!(shown.contains(&"h:*#name".to_owned()), "{shown:?}");
        assert!(shown.len() < 500, "{}", shown.len());
        assert!(keys.bytes() < 64 << 10, "{}", keys.bytes());
    }
    let rules = compile(items(&[], &[("h:{id}:*", &["name"])]));
    let rules = rules.with_limits(Limits { patterns: 50, ..Limits::default() });
    assert_eq!(shown(&many(&rules, 100)), ["h:*:*#name"]);
    let mut keys = many(&compile(rule()), 1_000);
    let before = keys.bytes();
    assert!(before > 1_000 * 10, "{before}");
    keys.collapse();
    assert_eq!(shown(&keys), ["h:*#name", "tag t:*"]);
    assert!(keys.bytes() < before / 10, "{} of {before}", keys.bytes());
}

#[test]
fn sets_are_merged_packed_and_cut_with_their_items() {
    let rules = compile(items(&["t:{id}"], &[("h:{id}", &["name"])]));
    let (few, more) = (many(&rules, 3), many(&rules, 5));
    let mut merged = few.clone();
    merged.merge(&more);
    assert_eq!(shown(&merged), shown(&more));
    let mut back = rules.key_set();
    Packed::new(&more).add_to(&mut back);
    assert_eq!(shown(&back), shown(&more));
    let beyond = more.beyond(&few);
    assert_eq!(shown(&beyond), ["h:3#name", "h:4#name", "tag t:3", "tag t:4"]);
    assert!(few.beyond(&more).is_empty());
    let [(_, part)] = &more.by_rule()[..] else { panic!("one rule") };
    assert_eq!(shown(part), shown(&more));
    assert_eq!(shown(&more.of_target(TargetId::FIRST)), shown(&more));
    assert!(few.emptied().is_empty() && !few.is_empty());
}

/// I7: everything that rules could produce, and what a changed rule newly covers.
#[test]
fn everything_holds_items_and_a_new_one_is_newly_covered() {
    let before = compile(items(&["t:{id}"], &[("h:{id}", &["name"])]));
    assert_eq!(shown(&before.everything()), ["h:*#name", "tag t:*"]);
    let prints = |rule| compile(rule).prints(&std::collections::BTreeSet::new());
    let known = prints(items(&["t:{id}"], &[("h:{id}", &["name"])]));
    let given = Given::new(&known);
    let fresh = |rule| {
        let prints = prints(rule);
        let rule = &prints[0];
        rule.keys.iter().filter(|key| !given.covers(rule, key, false)).count()
    };
    assert_eq!(fresh(items(&["t:{id}"], &[("h:{id}", &["name"])])), 0);
    assert_eq!(fresh(items(&[], &[("h:{id}", &["name", "more"])])), 1);
    assert_eq!(fresh(items(&["h:{id}"], &[])), 1, "a tag is no field");
    assert_eq!(fresh(rule(&["t:{id}", "h:{id}"])), 2, "a key is neither");
    let other = compile(items(&[], &[("h:{id}", &["name", "more"])]));
    assert_ne!(before.fingerprint(), other.fingerprint());
}

#[test]
fn a_rule_needs_something_and_no_key_takes_an_index() {
    assert!(Rules::compile(&[rule(&[])]).is_err());
    assert!(Rules::compile(&[items(&["t:{id}"], &[])]).is_ok());
    let problem = |keys: &[&str], tag: &str| {
        let keys = config::Rule { name: "keys".to_owned(), ..rule(keys) };
        let all = Rules::compile(&[keys, items(&[tag], &[])]);
        all.err().map(|problems| problems[0].message.clone())
    };
    assert_eq!(problem(&["k:{id}"], "t:{id}"), None);
    for (key, tag) in [("t:{id}", "t:{id}"), ("t:*", "t:{id}"), ("t:1", "t:1")] {
        let message = problem(&[key], tag).unwrap();
        assert!(message.contains("before its members are read"), "{message}");
    }
    let flaws = Rules::compile(&[items(&["{id}"], &[("*", &["", "{"])])]).unwrap_err();
    assert_eq!(flaws.len(), 4, "{flaws:?}");
}
