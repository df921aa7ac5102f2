//! Removals inside of keys: of fields of a hash, and of the keys that a set names.
//!
//! An item is two patterns: of the names of keys, and of what is meant in them. Where one has no
//! wildcard it is that name alone. In a key set it is one run of bytes: its kind, how long the
//! first pattern is, and both.

use std::borrow::Cow;
use std::fmt;

use super::pattern::Pattern;

/// The kind of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// The members of a set or sorted set, which are names of keys: an index of a tag.
    Tag,
    /// Fields of a hash.
    Field,
}

/// How the keys of an item are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// By one command: a field of a hash, both of which have one name; or all of its fields.
    Direct,
    /// Page by page of one key, which has one name.
    Paged,
    /// By SCAN: the key may be any that a pattern matches.
    Scanned,
}

/// An item, as a key set has it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    bytes: &'a [u8],
}

/// Bytes before the first pattern.
const HEAD: usize = 1 + size_of::<u32>();

/// Writes an item: a pattern of keys and, from `split` on, one of fields.
pub(super) fn write(kind: ItemKind, patterns: &[u8], split: Option<usize>) -> Vec<u8> {
    let length = split.unwrap_or(patterns.len());
    let mut out = Vec::with_capacity(HEAD + patterns.len());
    out.push(if kind == ItemKind::Tag { TAG } else { FIELD });
    // A pattern has a few megabytes at most.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(patterns);
    out
}

const TAG: u8 = 0;
const FIELD: u8 = 1;

impl<'a> Item<'a> {
    /// Reads what a key set has; of other bytes, whatever it may be.
    pub(crate) fn read(bytes: &'a [u8]) -> Item<'a> {
        Item { bytes }
    }

    /// The kind.
    #[must_use]
    pub fn kind(self) -> ItemKind {
        if self.bytes.first() == Some(&TAG) { ItemKind::Tag } else { ItemKind::Field }
    }

    fn patterns(self) -> (&'a [u8], &'a [u8]) {
        let head = self.bytes.get(1..HEAD).and_then(|head| head.try_into().ok());
        let length = head.map_or(0, u32::from_le_bytes);
        let rest = self.bytes.get(HEAD..).unwrap_or_default();
        rest.split_at(rest.len().min(usize::try_from(length).unwrap_or(usize::MAX)))
    }

    /// The pattern of its keys, as Redis gets it.
    #[must_use]
    pub fn key(self) -> &'a [u8] {
        self.patterns().0
    }

    /// The pattern of its fields, as Redis gets it; empty if it has none.
    #[must_use]
    pub fn field(self) -> &'a [u8] {
        self.patterns().1
    }

    /// The bytes that stand for it.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// The one key that it is about, unescaped.
    #[must_use]
    pub fn only_key(self) -> Option<Cow<'a, [u8]>> {
        literal(self.key())
    }

    /// The one field that it is about, unescaped.
    #[must_use]
    pub fn only_field(self) -> Option<Cow<'a, [u8]>> {
        literal(self.field())
    }

    /// Whether it is about all fields of its hashes: these are then removed themselves.
    #[must_use]
    pub fn is_whole_hash(self) -> bool {
        self.kind() == ItemKind::Field && self.field() == b"*"
    }

    /// How its keys are reached.
    #[must_use]
    pub fn reach(self) -> Reach {
        if has_wildcard(self.key()) {
            return Reach::Scanned;
        }
        self.reach_in_key()
    }

    /// How it is reached in a key that is known.
    #[must_use]
    pub fn reach_in_key(self) -> Reach {
        let is_one = self.is_whole_hash() || !has_wildcard(self.field());
        if self.kind() == ItemKind::Field && is_one { Reach::Direct } else { Reach::Paged }
    }

    /// Whether whatever `other` is about is sure to be part of this one.
    #[must_use]
    pub fn covers(self, other: Item<'_>) -> bool {
        let covers = |own: &[u8], other: &[u8]| Pattern::parse(own).covers(&Pattern::parse(other));
        self.kind() == other.kind()
            && covers(self.key(), other.key())
            && covers(self.field(), other.field())
    }
}

/// In words, for people: it holds values of rows.
impl fmt::Display for Item<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, field) = (self.key().escape_ascii(), self.field().escape_ascii());
        match self.kind() {
            ItemKind::Tag => write!(formatter, "members of `{key}`"),
            ItemKind::Field => write!(formatter, "field `{field}` of `{key}`"),
        }
    }
}

/// Only the kind: the rest holds values of rows (I9).
impl fmt::Debug for Item<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Item").field(&self.kind()).finish()
    }
}

/// Whether a pattern may match more than one name.
fn has_wildcard(pattern: &[u8]) -> bool {
    let mut rest = pattern;
    loop {
        rest = match rest {
            [] => return false,
            [b'*' | b'?' | b'[', ..] => return true,
            [b'\\', _, tail @ ..] | [_, tail @ ..] => tail,
        }
    }
}

/// The one name that a pattern matches, unescaped; `None` if it may match others.
fn literal(pattern: &[u8]) -> Option<Cow<'_, [u8]>> {
    if has_wildcard(pattern) {
        return None;
    }
    if !pattern.contains(&b'\\') {
        return Some(Cow::Borrowed(pattern));
    }
    Pattern::parse(pattern).as_literal().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::{Item, ItemKind, Reach, write};

    #[test]
    fn an_item_tells_what_was_written_and_how_it_is_reached() {
        for (kind, key, field, reach) in [
            (ItemKind::Tag, &b"tag:1"[..], &b""[..], Reach::Paged),
            (ItemKind::Tag, b"tag:*", b"", Reach::Scanned),
            (ItemKind::Field, b"user:1", b"name", Reach::Direct),
            (ItemKind::Field, br"user:\*", br"a\?", Reach::Direct),
            (ItemKind::Field, b"user:1", b"*", Reach::Direct),
            (ItemKind::Field, b"user:1", b"stats:*", Reach::Paged),
            (ItemKind::Field, b"user:?", b"name", Reach::Scanned),
            (ItemKind::Field, b"user:1", b"", Reach::Direct),
        ] {
            let split = (kind == ItemKind::Field).then_some(key.len());
            let bytes = write(kind, &[key, field].concat(), split);
            let item = Item::read(&bytes);
            assert_eq!((item.kind(), item.key(), item.field()), (kind, key, field));
            assert_eq!(item.reach(), reach, "{item}");
        }
    }

    #[test]
    fn a_name_is_unescaped() {
        let bytes = write(ItemKind::Field, br"u:\*\\x\[y", Some(4));
        let item = Item::read(&bytes);
        assert_eq!(item.only_key().as_deref(), Some(&b"u:*"[..]));
        assert_eq!(item.only_field().as_deref(), Some(&br"\x[y"[..]));
    }

    #[test]
    fn an_item_covers_what_both_of_its_patterns_cover() {
        let item = |key: &str, field: &str| {
            write(ItemKind::Field, format!("{key}{field}").as_bytes(), Some(key.len()))
        };
        let wide = item("user:*", "stats:*");
        for (key, field, covers) in
            [("user:1", "stats:x", true), ("user:1", "*", false), ("club:1", "stats:x", false)]
        {
            assert_eq!(Item::read(&wide).covers(Item::read(&item(key, field))), covers, "{key}");
        }
        let tag = write(ItemKind::Tag, b"user:1", None);
        assert!(!Item::read(&wide).covers(Item::read(&tag)));
    }
}
