//! Properties of any value, template and limit.

use proptest::prelude::*;

use super::tests::{compile, keys_of, rule, text};
use super::{KeySet, Limits, Pattern, Rules, WidenReason};
use crate::decode::{Tuple, Value};
use crate::gather::Row;

/// Bytes that mean something in a glob, and some that do not.
fn glob_bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![prop::sample::select(&b"ab*?[]^-\\{}"[..]), any::<u8>()];
    prop::collection::vec(byte, 0..8)
}

fn row_of(first: &[u8], second: &[u8]) -> Row {
    let (first, second) = (Value::Text(first), Value::Text(second));
    Row::Insert { new: Tuple::from_values(&[first, second, Value::Null, Value::Null]) }
}

/// Whether the set removes the key.
fn covers(keys: &KeySet, key: &[u8]) -> bool {
    keys.exact().any(|(_, own)| own == key)
        || keys.patterns().any(|(_, pattern)| pattern.matches(key))
}

/// Texts that are a template more often than not.
const TEMPLATES: &str = concat!(
    r#"k?[ab*?\[\]^\\.|:"-]{0,3}"#,
    r#"(\{("?id"?|old\.id|new\.name|name\|(lower|slug|default:x|sha256:3))\})?"#,
    r"[ab*?\[\]^\\{}-]{0,6}",
);

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_value_never_becomes_a_glob(value in glob_bytes(), other in glob_bytes()) {
        let rules = compile(rule(&["k:{id}:{gone}:e", "{id}:?", "k:{id}"]));
        let keys = keys_of(&rules, [row_of(&value, b"")]);
        let patterns: Vec<&Pattern> = keys.patterns().map(|(_, pattern)| pattern).collect();
        let key = |middle: &[u8], end: &[u8]| [b"k:", middle, end].concat();
        prop_assert!(patterns[0].matches(&key(&value, b":any:e")));
        prop_assert_eq!(patterns[0].literal_prefix(), key(&value, b":"));
        prop_assert!(patterns[1].matches(&[&value[..], b":x"].concat()));
        prop_assert_eq!(keys.exact().next().unwrap().1, key(&value, b""));
        let different = other != value && !key(&other, b":").starts_with(&key(&value, b":"));
        prop_assert_eq!(patterns[0].matches(&key(&other, b":any:e")), !different);
        prop_assert_eq!(patterns[1].matches(&[&other[..], b":x"].concat()), other == value);
    }

    #[test]
    fn a_widened_pattern_matches_all_that_was_possible(
        literal in "[ab*?\\[\\]\\\\:ø]{1,6}", first in glob_bytes(), second in glob_bytes(),
    ) {
        let escaped: String = literal.chars()
            .flat_map(|c| "*?[]{}\\".contains(c).then_some('\\').into_iter().chain([c]))
            .collect();
        let template = format!("{escaped}{{id}}{escaped}{{name|urlencode}}{{name}}");
        let rules = compile(rule(&[&template]));
        let exact = keys_of(&rules, [row_of(&first, &second)]);
        let key = exact.exact().next().unwrap().1;
        for wide in [rules.everything(), keys_of(&rules, [Row::Truncate])] {
            prop_assert!(wide.patterns().next().unwrap().1.matches(key));
        }
        let known = [Value::Text(&first), Value::Unchanged, Value::Null, Value::Null];
        let half = keys_of(&rules, [Row::Insert { new: Tuple::from_values(&known) }]);
        prop_assert!(half.patterns().next().unwrap().1.matches(key));
        prop_assert_eq!(half.widened().next().unwrap().1, WidenReason::UnchangedToast);
    }

    #[test]
    fn no_limit_loses_a_key(
        numbers in prop::collection::vec((0..26u8, 0..4u8), 1..80),
        keys in 0..30usize, bytes in 0..3_000usize, patterns in 0..6usize, cut in 0..80usize,
    ) {
        let templates = ["all", "k:{id}", "k:{name}", "n:{name}:*", "i:{id}:{name}?"];
        let rows = |numbers: &[(u8, u8)]| -> Vec<Row> {
            numbers.iter().map(|(a, b)| row_of(&[b'a' + a], &[b'a' + b])).collect()
        };
        let limits = Limits { keys, bytes, patterns };
        let rules = compile(rule(&templates)).with_limits(limits);
        let (first, second) = numbers.split_at(cut.min(numbers.len()));
        let mut set = keys_of(&rules, rows(first));
        set.merge(&keys_of(&rules, rows(second)));
        let unlimited = compile(rule(&templates));
        let every = keys_of(&unlimited, rows(&numbers));
        for (_, key) in every.exact() {
            prop_assert!(covers(&set, key), "lost {}", key.escape_ascii());
        }
        for (_, pattern) in every.patterns() {
            // No value of these rows needs an escape, so this is a key that the pattern matches.
            let key = text(pattern.as_bytes()).replace(['*', '?'], "x").into_bytes();
            prop_assert!(pattern.matches(&key) && covers(&set, &key), "lost {:?}", pattern);
        }
        prop_assert!(set.exact_len() <= keys.max(1));
        prop_assert!(set.patterns().count() <= patterns + templates.len());
    }

    #[test]
    fn any_template_that_compiles_is_covered_by_its_whole(
        template in TEMPLATES,
        first in glob_bytes(), second in glob_bytes(),
    ) {
        if let Ok(rules) = Rules::compile(&[rule(&[&template])]) {
            let everything = rules.everything();
            for (_, key) in keys_of(&rules, [row_of(&first, &second)]).exact() {
                prop_assert!(covers(&everything, key), "{template} gives {}", key.escape_ascii());
            }
            // Without placeholders the template is a pattern as it stands, escapes included.
            if !template.contains(['{', '}']) && everything.has_patterns() {
                let own = everything.patterns().next().unwrap().1;
                let written = Pattern::parse(template.as_bytes());
                prop_assert_eq!(own.matches(&first), written.matches(&first), "{}", template);
            }
        }
    }
}
