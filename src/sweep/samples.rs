//! Refused keys of a rule that are tried before a pass.
//!
//! A pass over all of Redis is for nothing as long as the user may not remove what it finds. So
//! some of the keys that were refused stand here, and are tried alone. They are few and short,
//! however many keys there are, and however long: a long one is tried without its middle. For a
//! pattern that none of them matches a key of its own stands in. Whatever is tried, a pattern that
//! waits matches it, so that its removal is one of those that are due.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;

use crate::keys::KeySet;

/// Keys of one rule, count.
const SAMPLES_MAX: usize = 64;

/// Memory of the keys of one rule, bytes.
const BYTES_MAX: usize = 4 << 10;

/// The longest key, bytes.
const LENGTH_MAX: usize = 512;

/// The memory that a key takes beside its bytes: its place, its allocation.
const COST: usize = 32;

/// Some keys that Redis refused to remove. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Samples {
    keys: Rc<[Box<[u8]>]>,
}

impl Samples {
    /// Some of `count` keys, from one end to the other.
    pub(super) fn of<'a>(keys: impl Iterator<Item = &'a [u8]>, count: usize) -> Samples {
        let mut bytes = 0;
        let some = keys.step_by(count.div_ceil(SAMPLES_MAX).max(1));
        let some = some.map(shortened).take_while(|key| {
            bytes += key.len() + COST;
            bytes <= BYTES_MAX
        });
        Samples { keys: some.collect() }
    }

    /// The memory that they take, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.keys.iter().map(|key| key.len() + COST).sum()
    }

    /// Drops half of them, the only one too.
    pub(super) fn halve(&mut self) {
        self.keys = self.keys.iter().take(self.keys.len() / 2).cloned().collect();
    }

    /// Gives what is to be tried before a pass for the patterns of `keys`, each once.
    pub(super) fn of_patterns(&self, keys: &KeySet) -> BTreeSet<Cow<'_, [u8]>> {
        let mut tried = BTreeSet::new();
        for (_, pattern) in keys.patterns() {
            let mut own = self.keys.iter().filter(|key| pattern.matches(key)).peekable();
            if own.peek().is_none() {
                tried.extend(pattern.own_key().map(Cow::Owned));
            }
            tried.extend(own.map(|key| Cow::Borrowed(&**key)));
        }
        tried
    }
}

/// How many there are: keys hold values of rows (I9).
impl fmt::Debug for Samples {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Samples").field(&self.keys.len()).finish()
    }
}

/// A key without its middle, if it is long.
fn shortened(key: &[u8]) -> Box<[u8]> {
    if key.len() <= LENGTH_MAX {
        return key.into();
    }
    let (begin, end) = (key.get(..LENGTH_MAX / 2), key.get(key.len() - LENGTH_MAX / 2..));
    [begin.unwrap_or_default(), end.unwrap_or_default()].concat().into()
}

#[cfg(test)]
mod tests {
    use super::{BYTES_MAX, LENGTH_MAX, Samples};
    use crate::keys::{KeySet, Rules};
    use crate::sweep::tests::{keys, rule};

    /// All that rules of these keys could give, and what is tried of it after these were refused.
    fn tried(templates: &[&str], refused: &[&str]) -> Vec<String> {
        let named = templates.iter().map(|key| rule(key, "item", key));
        let rules = Rules::compile(&named.collect::<Vec<_>>()).unwrap();
        let samples = Samples::of(refused.iter().map(|key| key.as_bytes()), refused.len());
        let tried = samples.of_patterns(&rules.everything());
        tried.into_iter().map(|key| String::from_utf8(key.into_owned()).unwrap()).collect()
    }

    #[test]
    fn what_is_tried_is_of_the_patterns_that_wait_and_each_has_a_key() {
        assert_eq!(tried(&["a:{id}"], &["a:1", "a:2", "b:3"]), ["a:1", "a:2"]);
        assert_eq!(tried(&["a:{id}", "b:{id}:x"], &["a:1"]), ["a:1", "b:*:x"]);
        assert_eq!(tried(&["a:{id}", "a:{id}:x"], &["a:1:x"]), ["a:1:x"]);
        assert_eq!(tried(&["a:{id}"], &[]), ["a:*"]);
    }

    #[test]
    fn a_long_key_is_tried_without_its_middle_as_far_as_its_pattern_matches_that() {
        let long = "x".repeat(2 * LENGTH_MAX);
        let short = "x".repeat(LENGTH_MAX / 2 - 2);
        let key = format!("t:{long}:y");
        assert_eq!(tried(&["t:{id}:y"], &[&key]), [format!("t:{short}{short}:y")]);
        assert_eq!(tried(&["{id}:t:{id}"], &[&format!("{long}:t:{long}")]), ["*:t:*"]);
    }

    #[test]
    fn samples_are_few_and_short_and_of_all_that_was_refused() {
        let refused: Vec<String> = (0..10_000).map(|at| format!("item:{at:04}")).collect();
        let samples = Samples::of(refused.iter().map(String::as_bytes), refused.len());
        let last = samples.keys.last().unwrap();
        assert!((60..=64).contains(&samples.keys.len()), "{samples:?}");
        assert!(&**last >= b"item:9800".as_slice(), "{}", last.escape_ascii());
        let refused: Vec<String> = (0..100).map(|at| format!("{at}{at:0>60000}")).collect();
        let mut samples = Samples::of(refused.iter().map(String::as_bytes), refused.len());
        assert!(samples.keys.iter().all(|key| key.len() == LENGTH_MAX), "{samples:?}");
        assert!((BYTES_MAX / 2..=BYTES_MAX).contains(&samples.bytes()), "{}", samples.bytes());
        while samples.bytes() > 0 {
            let before = samples.bytes();
            samples.halve();
            assert!(samples.bytes() <= before / 2);
        }
    }

    #[test]
    fn of_exact_keys_nothing_is_tried() {
        let rules = Rules::compile(&[rule("item", "item", "item:{id}")]).unwrap();
        let exact: KeySet = keys(&rules, "item", &["1", "2"]);
        let samples = Samples::of([&b"item:1"[..]].into_iter(), 1);
        assert!(samples.of_patterns(&exact).is_empty());
    }
}
