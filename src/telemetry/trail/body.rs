//! Keys of one transaction in one run of bytes: the counts of each rule, why it was widened, and as
//! many of the keys as fit.
//!
//! ```text
//! rules, then of each: rule, keys, patterns, reasons, then of each: reason, count
//! left out
//! of each key: rule, kind, length, bytes
//! ```
//!
//! Every number takes seven bits a byte, the lowest first, as in LEB128. Patterns come first: they
//! are few, and match what is left out.

use std::sync::Arc;

use crate::keys::{Item, KeySet, Pattern, RuleId, WidenReason};

/// Bytes of keys that are remembered of one transaction, at most: so it pushes no more than a
/// twentieth of the others out.
pub(super) const ENTRIES_MAX: usize = 64 * 1024;

/// The keys of a removal, or a part of them. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body(Arc<[u8]>);

/// Memory to write a [`Body`] in, used again and again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    head: Vec<u8>,
    entries: Vec<u8>,
}

/// The counts of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OfRule {
    pub(super) rule: RuleId,
    pub(super) keys: u64,
    pub(super) patterns: u64,
    pub(super) widened: Vec<(WidenReason, u64)>,
}

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A key.
    Key,
    /// A pattern.
    Pattern,
    /// Something inside of keys.
    Item,
}

/// A key, a pattern or an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) rule: RuleId,
    pub(super) kind: Kind,
    pub(super) bytes: &'a [u8],
}

impl Scratch {
    /// Writes the keys of a set.
    pub(super) fn write(&mut self, keys: &KeySet) -> Body {
        let (head, entries) = (&mut self.head, &mut self.entries);
        head.clear();
        entries.clear();
        let (mut written, all) = (0, entries_of(keys));
        for entry in all {
            if entries.len() + entry.bytes.len() > ENTRIES_MAX {
                break;
            }
            push(entries, entry.rule.0.into());
            entries.push(entry.kind as u8);
            push(entries, entry.bytes.len() as u64);
            entries.extend_from_slice(entry.bytes);
            written += 1;
        }
        let all = keys.exact_len() + keys.items_len() + keys.patterns().count();
        write_counts(head, keys);
        push(head, all.saturating_sub(written) as u64);
        head.extend_from_slice(entries);
        let body = Body(Arc::from(&head[..]));
        // What is seldom needed is given back.
        head.shrink_to(ENTRIES_MAX / 16);
        entries.shrink_to(ENTRIES_MAX / 16);
        body
    }
}

/// Patterns, items, keys.
fn entries_of(keys: &KeySet) -> impl Iterator<Item = Entry<'_>> {
    let patterns = keys.patterns().map(|(rule, pattern)| (rule, Kind::Pattern, pattern.as_bytes()));
    let items = keys.items().map(|(rule, item)| (rule, Kind::Item, item.bytes()));
    let exact = keys.exact().map(|(rule, key)| (rule, Kind::Key, key));
    let all = patterns.chain(items).chain(exact);
    all.map(|(rule, kind, bytes)| Entry { rule, kind, bytes })
}

fn write_counts(head: &mut Vec<u8>, keys: &KeySet) {
    let mut rules: Vec<OfRule> = Vec::new();
    let place = |rules: &mut Vec<OfRule>, rule: RuleId| {
        let empty = OfRule { rule, keys: 0, patterns: 0, widened: Vec::new() };
        rules.binary_search_by_key(&rule, |one| one.rule).unwrap_or_else(|at| {
            rules.insert(at, empty);
            at
        })
    };
    for (rule, keys, patterns) in keys.sizes() {
        let at = place(&mut rules, rule);
        rules[at].keys += keys;
        rules[at].patterns += patterns;
    }
    for (rule, reason, count) in keys.widened() {
        let at = place(&mut rules, rule);
        rules[at].widened.push((reason, count));
    }
    push(head, rules.len() as u64);
    for OfRule { rule, keys, patterns, widened } in rules {
        for number in [rule.0.into(), keys, patterns, widened.len() as u64] {
            push(head, number);
        }
        for (reason, count) in widened {
            head.push(reason as u8);
            push(head, count);
        }
    }
}

impl Body {
    /// The memory that it holds, bytes.
    pub(super) fn bytes(&self) -> usize {
        // With the counts of references.
        self.0.len() + 2 * size_of::<usize>()
    }

    /// The counts of each rule.
    pub(super) fn rules(&self) -> Vec<OfRule> {
        read_counts(&mut Cursor(&self.0))
    }

    /// How many keys are left out, and those that are not.
    pub(super) fn entries(&self) -> (u64, impl Iterator<Item = Entry<'_>>) {
        let mut cursor = Cursor(&self.0);
        for _ in 0..cursor.number() {
            let [_rule, _keys, _patterns] = [(); 3].map(|()| cursor.number());
            for _ in 0..cursor.number() {
                let [_reason, _count] = [(); 2].map(|()| cursor.number());
            }
        }
        let left_out = cursor.number();
        (left_out, std::iter::from_fn(move || cursor.entry()))
    }
}

fn read_counts(cursor: &mut Cursor<'_>) -> Vec<OfRule> {
    let mut rules = Vec::new();
    for _ in 0..cursor.number() {
        let [rule, keys, patterns, reasons] = [(); 4].map(|()| cursor.number());
        let mut widened = Vec::new();
        for _ in 0..reasons {
            let [reason, count] = [(); 2].map(|()| cursor.number());
            let reason = usize::try_from(reason).ok().and_then(|at| WidenReason::ALL.get(at));
            widened.extend(reason.map(|reason| (*reason, count)));
        }
        let rule = RuleId(u16::try_from(rule).unwrap_or(u16::MAX));
        rules.push(OfRule { rule, keys, patterns, widened });
    }
    rules
}

impl Entry<'_> {
    /// Whether it is about this key: is it, matches it, or is of something in it.
    pub(super) fn is_about(&self, key: &[u8]) -> bool {
        match self.kind {
            Kind::Key => self.bytes == key,
            Kind::Pattern => matches(self.bytes, key),
            Kind::Item => matches(Item::read(self.bytes).key(), key),
        }
    }
}

/// Whether a pattern matches a key. Most do not, and are not parsed.
fn matches(pattern: &[u8], key: &[u8]) -> bool {
    let is_special = |byte: &u8| matches!(byte, b'*' | b'?' | b'[' | b'\\');
    let literal = pattern.iter().position(is_special).unwrap_or(pattern.len());
    key.starts_with(&pattern[..literal]) && Pattern::parse(pattern).matches(key)
}

fn push(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).unwrap_or_default() | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap_or_default());
}

/// Reads what was written; of what was not, zeros.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn number(&mut self) -> u64 {
        let (mut number, mut shift) = (0, 0);
        while let Some((byte, rest)) = self.0.split_first() {
            self.0 = rest;
            number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or_default();
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        number
    }

    fn entry(&mut self) -> Option<Entry<'a>> {
        if self.0.is_empty() {
            return None;
        }
        let rule = RuleId(u16::try_from(self.number()).ok()?);
        let kind = match self.number() {
            0 => Kind::Key,
            1 => Kind::Pattern,
            _ => Kind::Item,
        };
        let length = usize::try_from(self.number()).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(Entry { rule, kind, bytes })
    }
}
