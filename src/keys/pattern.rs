//! A glob that matches exactly the keys that Redis's `SCAN MATCH` would.
//!
//! Why our own: one SCAN pass serves many patterns, so they are matched on this side, and no crate
//! has the semantics of Redis's `stringmatchlen` (7.0): `*` crosses everything, `[^…]` negates,
//! ranges may stand in reverse, `\` escapes inside and outside of classes, an unterminated class
//! ends with the pattern, bytes in ranges compare as signed numbers. Documented at
//! <https://redis.io/docs/latest/commands/keys/>.
//!
//! All elements but `*` match exactly one byte. So the pattern is cut at its stars: what stands
//! before the first is anchored at the start, what stands behind the last at the end, and each part
//! between takes its leftmost place. No step is ever taken back, there is no recursion, and the
//! cost is bounded by key length times pattern length.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use memchr::memmem;

/// A Redis glob: its bytes as Redis gets them, and a compiled form. Cheap to clone.
///
/// Two patterns are equal if their bytes are.
#[derive(Clone)]
pub struct Pattern(Arc<Inner>);

struct Inner {
    bytes: Box<[u8]>,
    /// The literal bytes that every matching key starts with.
    prefix: Box<[u8]>,
    /// The elements between the prefix and the first star.
    head: Box<[Element]>,
    /// The parts between two stars.
    middle: Box<[Part]>,
    /// The elements behind the last star; `None` if there is no star.
    tail: Option<Box<[Element]>>,
}

/// Matches one byte.
enum Element {
    Byte(u8),
    Any,
    Class(Box<Class>),
}

/// Elements in a row, to be searched for.
enum Part {
    Literal(Box<memmem::Finder<'static>>),
    Mixed(Box<[Element]>),
}

/// The bytes that a `[…]` matches, negation applied.
struct Class([u64; 4]);

impl Pattern {
    /// Reads a pattern. Any bytes are one: Redis knows no invalid pattern.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Pattern {
        let mut parts = elements(bytes);
        let last = parts.pop().unwrap_or_default();
        let (first, tail) =
            if parts.is_empty() { (last, None) } else { (parts.remove(0), Some(last.into())) };
        let prefix: Box<[u8]> = first.iter().map_while(Element::literal).collect();
        let head = first.into_iter().skip(prefix.len()).collect();
        let middle = parts.into_iter().filter(|part| !part.is_empty()).map(Part::new).collect();
        Pattern(Arc::new(Inner { bytes: bytes.into(), prefix, head, middle, tail }))
    }

    /// Whether Redis would give `key` for this pattern.
    ///
    /// The empty key is Redis's own special case: it is found by the empty pattern and by `*`, by
    /// no other pattern.
    #[must_use]
    pub fn matches(&self, key: &[u8]) -> bool {
        let inner = &*self.0;
        if key.is_empty() {
            return inner.bytes.is_empty() || *inner.bytes == *b"*";
        }
        let Some(rest) = key.strip_prefix(&*inner.prefix) else { return false };
        let Some((head, rest)) = rest.split_at_checked(inner.head.len()) else { return false };
        if !all_match(&inner.head, head) {
            return false;
        }
        let Some(tail) = &inner.tail else { return rest.is_empty() };
        let Some(cut) = rest.len().checked_sub(tail.len()) else { return false };
        let (mut rest, end) = rest.split_at(cut);
        if !all_match(tail, end) {
            return false;
        }
        for part in &inner.middle {
            let Some(after) = part.find(rest) else { return false };
            rest = after;
        }
        true
    }

    /// The bytes that every matching key starts with, unescaped; empty if none are known.
    #[must_use]
    pub fn literal_prefix(&self) -> &[u8] {
        &self.0.prefix
    }

    /// The pattern that one key matches.
    pub(crate) fn literal(key: &[u8]) -> Pattern {
        let mut bytes = Vec::with_capacity(key.len());
        push_escaped(&mut bytes, key);
        Pattern::parse(&bytes)
    }

    /// The pattern as Redis gets it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// A pattern of at most so many stars, none beside another, that matches whatever this one does
    /// but for the empty key: the pattern itself, or what stands before its last star that counts.
    #[must_use]
    pub fn cut_after_stars(&self, most: usize) -> Vec<u8> {
        let mut cut = Vec::with_capacity(self.0.bytes.len());
        let (mut rest, mut stars) = (&*self.0.bytes, 0);
        while !rest.is_empty() && stars < most {
            let after = after_element(rest);
            let element = rest.get(..rest.len() - after.len()).unwrap_or_default();
            rest = after;
            if element == b"*" {
                stars += 1;
                while let [b'*', after @ ..] = rest {
                    rest = after;
                }
            }
            cut.extend_from_slice(element);
        }
        cut
    }

    /// The one key that a pattern without `*`, `?` and `[` matches, unescaped.
    #[must_use]
    pub fn as_literal(&self) -> Option<Vec<u8>> {
        let inner = &*self.0;
        (inner.tail.is_none() && inner.head.is_empty()).then(|| inner.prefix.to_vec())
    }

    /// A key that the pattern matches, as much like it as can be: each `*` and `?` stands for
    /// itself, each `[…]` for one of its bytes. `None` if it matches none.
    pub(crate) fn own_key(&self) -> Option<Vec<u8>> {
        let byte = |step: Option<Element>| match step {
            None => Some(b'*'),
            Some(Element::Any) => Some(b'?'),
            Some(Element::Byte(byte)) => Some(byte),
            Some(Element::Class(class)) => {
                (b'0'..=u8::MAX).chain(0..b'0').find(|one| class.has(*one))
            }
        };
        let key: Vec<u8> = steps(self.as_bytes()).into_iter().map(byte).collect::<Option<_>>()?;
        self.matches(&key).then_some(key)
    }

    /// Whether every key that `other` matches is sure to match this one, too. It may be so and not
    /// be seen where `?` and `*` meet, such as in `?*` and `*?`.
    #[must_use]
    pub fn covers(&self, other: &Pattern) -> bool {
        let (own, others) = (steps(self.as_bytes()), steps(other.as_bytes()));
        let (mut at, mut at_other, mut star) = (0, 0, None);
        while let Some(step) = others.get(at_other) {
            match (own.get(at), step) {
                (Some(None), _) => {
                    star = Some((at, at_other));
                    at += 1;
                    continue;
                }
                (Some(Some(element)), Some(other)) if element.covers(other) => at += 1,
                // The last star takes one more; those before it have taken enough.
                _ => match &mut star {
                    Some((star_at, taken)) => {
                        *taken += 1;
                        (at, at_other) = (*star_at + 1, *taken);
                        continue;
                    }
                    None => return false,
                },
            }
            at_other += 1;
        }
        own[at..].iter().all(Option::is_none)
    }
}

/// A pattern as its elements, `None` for a star.
fn steps(bytes: &[u8]) -> Vec<Option<Element>> {
    let mut steps = Vec::new();
    for (at, part) in elements(bytes).into_iter().enumerate() {
        if at > 0 {
            steps.push(None);
        }
        steps.extend(part.into_iter().map(Some));
    }
    steps
}

/// Appends `text` to `pattern` so that it matches itself alone.
pub(super) fn push_escaped(pattern: &mut Vec<u8>, text: &[u8]) {
    let is_syntax = |byte: &u8| matches!(byte, b'\\' | b'*' | b'?' | b'[' | b']');
    let mut rest = text;
    while let Some(at) = rest.iter().position(is_syntax) {
        let (plain, syntax) = rest.split_at(at);
        pattern.extend_from_slice(plain);
        pattern.extend_from_slice(&[b'\\', syntax[0]]);
        rest = &syntax[1..];
    }
    pattern.extend_from_slice(rest);
}

/// Cuts a pattern at its stars; gives one list more than there are stars.
fn elements(bytes: &[u8]) -> Vec<Vec<Element>> {
    let mut parts = vec![Vec::new()];
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        rest = tail;
        let element = match (first, tail) {
            (b'*', _) => {
                parts.push(Vec::new());
                continue;
            }
            (b'?', _) => Element::Any,
            (b'[', _) => {
                let (class, tail) = Class::parse(tail);
                rest = tail;
                Element::Class(Box::new(class))
            }
            (b'\\', [escaped, tail @ ..]) => {
                rest = tail;
                Element::Byte(*escaped)
            }
            (byte, _) => Element::Byte(*byte),
        };
        if let Some(part) = parts.last_mut() {
            part.push(element);
        }
    }
    parts
}

/// Gives the bytes behind the first element, or star, of a pattern that is not empty.
fn after_element(bytes: &[u8]) -> &[u8] {
    match bytes {
        [b'[', tail @ ..] => Class::parse(tail).1,
        [b'\\', _, tail @ ..] | [_, tail @ ..] => tail,
        [] => bytes,
    }
}

fn all_match(elements: &[Element], bytes: &[u8]) -> bool {
    elements.iter().zip(bytes).all(|(element, byte)| element.matches(*byte))
}

impl Element {
    fn literal(&self) -> Option<u8> {
        match self {
            Element::Byte(byte) => Some(*byte),
            Element::Any | Element::Class(_) => None,
        }
    }

    /// Whether this matches every byte that `other` does.
    fn covers(&self, other: &Element) -> bool {
        (0..=u8::MAX).all(|byte| self.matches(byte) || !other.matches(byte))
    }

    fn matches(&self, byte: u8) -> bool {
        match self {
            Element::Byte(own) => *own == byte,
            Element::Any => true,
            Element::Class(class) => class.has(byte),
        }
    }
}

impl Part {
    fn new(elements: Vec<Element>) -> Part {
        match elements.iter().map(Element::literal).collect::<Option<Vec<u8>>>() {
            Some(bytes) => Part::Literal(Box::new(memmem::Finder::new(&bytes).into_owned())),
            None => Part::Mixed(elements.into()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Part::Literal(finder) => finder.needle().len(),
            Part::Mixed(elements) => elements.len(),
        }
    }

    /// Gives the bytes behind the leftmost place where the part matches.
    fn find<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let at = match self {
            Part::Literal(finder) => finder.find(bytes)?,
            Part::Mixed(elements) => {
                bytes.windows(elements.len()).position(|window| all_match(elements, window))?
            }
        };
        bytes.get(at + self.len()..)
    }
}

impl Class {
    /// Reads a class from behind its `[`; gives it and what follows. The order of the arms is the
    /// order in which Redis asks: `[a-]` is the range from `]` to `a`, without an end.
    fn parse(bytes: &[u8]) -> (Class, &[u8]) {
        let mut class = Class([0; 4]);
        let negated = bytes.first() == Some(&b'^');
        let mut rest = if negated { bytes.split_at(1).1 } else { bytes };
        loop {
            rest = match rest {
                [b'\\', escaped, tail @ ..] => {
                    class.insert(*escaped);
                    tail
                }
                [b']', tail @ ..] => {
                    rest = tail;
                    break;
                }
                [] => break,
                [start, b'-', end, tail @ ..] => {
                    class.insert_range(*start, *end);
                    tail
                }
                [byte, tail @ ..] => {
                    class.insert(*byte);
                    tail
                }
            };
        }
        if negated {
            class.0 = class.0.map(|word| !word);
        }
        (class, rest)
    }

    fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }

    /// Redis compares the C type `char`, which is signed on x86-64.
    fn insert_range(&mut self, start: u8, end: u8) {
        let (start, end) = (start.cast_signed(), end.cast_signed());
        for byte in start.min(end)..=start.max(end) {
            self.insert(byte.cast_unsigned());
        }
    }

    fn has(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] & (1 << (byte & 63)) != 0
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.0.bytes == other.0.bytes
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.bytes.hash(state);
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Pattern({})", self.0.bytes.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[track_caller]
    fn check(pattern: &[u8], key: &[u8], expected: bool) {
        let parsed = Pattern::parse(pattern);
        assert_eq!(parsed.matches(key), expected, "{parsed:?} on {}", key.escape_ascii());
    }

    #[test]
    fn stars_cross_everything_and_take_no_step_back() {
        check(b"db:*", b"db:a/b:c", true);
        check(b"db:*", b"db:", true);
        check(b"db:*", b"db", false);
        check(b"*ab*abc", b"abab:ab:abc", true);
        check(b"*ab*abc", b"abc", false);
        check(b"a**c", b"abc", true);
        check(b"a*?c", b"ac", false);
        check(b"*a?b*", b"xxaab", true);
    }

    #[test]
    fn only_two_patterns_find_the_empty_key() {
        check(b"", b"", true);
        check(b"*", b"", true);
        check(b"**", b"", false);
        check(b"", b"a", false);
    }

    #[test]
    fn a_pattern_matches_its_own_key() {
        for (pattern, key) in [
            (&b"a:*:x"[..], Some(&b"a:*:x"[..])),
            (br"a\*\[?", Some(b"a*[?")),
            (b"[a-c][^0-9a]", Some(b"a:")),
            (b"*", Some(b"*")),
            (b"a[]", None),
        ] {
            assert_eq!(Pattern::parse(pattern).own_key().as_deref(), key);
        }
    }

    #[test]
    fn classes_follow_redis_to_the_letter() {
        check(b"[a-c]", b"b", true);
        check(b"[c-a]", b"b", true);
        check(b"[^a-c]", b"b", false);
        check(b"[a-]", b"a", true);
        check(b"[a-]", b"^", true);
        check(b"[a\\]]", b"]", true);
        check(b"[]", b"]", false);
        check(b"[^]", b"x", true);
        check(b"[ab", b"b", true);
        check(b"[", b"[", false);
        check(b"[^", b"[", true);
        check(b"[a\\", b"\\", true);
    }

    #[test]
    fn a_backslash_makes_the_next_byte_literal() {
        check(b"\\*", b"*", true);
        check(b"\\*", b"a", false);
        check(b"a\\", b"a\\", true);
        check(b"\\\\", b"\\", true);
    }

    #[test]
    fn a_pattern_that_is_cut_at_its_stars_matches_no_less() {
        for (pattern, cut) in [
            ("a*b", "a*b"),
            ("a**b***c", "a*b*c"),
            ("a*b*c*", "a*b*c*"),
            ("a*b*c*d", "a*b*c*"),
            ("*a*b*c*d*e*f", "*a*b*"),
            (r"\*a*[*]*b[^]*]*c*d", r"\*a*[*]*b[^]*"),
            (r"a\", r"a\"),
            ("[*", "[*"),
            ("[a-]*]*", "[a-]*]*"),
            ("", ""),
        ] {
            let wide = Pattern::parse(pattern.as_bytes()).cut_after_stars(3);
            assert_eq!(wide.escape_ascii().to_string().replace(r"\\", r"\"), cut, "{pattern}");
            let covers = Pattern::parse(&wide).covers(&Pattern::parse(pattern.as_bytes()));
            assert!(covers, "{cut} {pattern}");
        }
    }

    #[test]
    fn a_pattern_covers_what_is_narrower() {
        for (wide, narrow) in [
            ("app:*", "app:*"),
            ("app:*", "app:user:?"),
            ("app:*", "app:*:x*"),
            ("app:*", "app:[ab]"),
            ("a*b*c", "a*b?b*c"),
            ("a?c", "a[xyz]c"),
            ("a[a-z]c", "a[bd]c"),
            ("a", "a"),
            ("a*", "a\\*"),
        ] {
            let covers = Pattern::parse(wide.as_bytes()).covers(&Pattern::parse(narrow.as_bytes()));
            assert!(covers, "{wide} {narrow}");
        }
        for (wide, other) in [
            ("app:*", "*"),
            ("app:*", "app*"),
            ("app:*", "?pp:*"),
            ("app:*", "[ab]pp:x"),
            ("a*c", "a*"),
            ("a?", "a*"),
            ("a[bc]", "a?"),
            ("a[bc]", "a[bd]"),
            ("a", "aa"),
            ("aa", "a"),
            ("a\\*", "a*"),
            ("a\\*b", "axb"),
        ] {
            let covers = Pattern::parse(wide.as_bytes()).covers(&Pattern::parse(other.as_bytes()));
            assert!(!covers, "{wide} {other}");
        }
    }

    #[test]
    fn a_pattern_knows_its_prefix_and_its_only_key() {
        assert_eq!(Pattern::parse(b"a\\*b?c*").literal_prefix(), b"a*b");
        assert_eq!(Pattern::parse(b"a\\*b").as_literal(), Some(b"a*b".to_vec()));
        assert_eq!(Pattern::parse(b"a*").as_literal(), None);
        assert_eq!(Pattern::parse(b"a[b]").as_literal(), None);
    }
}
