//! Families of key names: names that are alike but for what identifies their objects.
//!
//! A name is cut at its colons. A part with a digit in it stands for an object, and so does one of
//! many at its place: both become `*`. What is kept of names is bounded by that, however many there
//! are.

use std::collections::BTreeMap;

/// Parts at one place, beyond which they are taken for names of objects.
const PARTS_MAX: usize = 64;

/// Parts of a name that are told apart; the rest is one.
const DEPTH_MAX: usize = 8;

/// A part that is longer stands for an object, bytes.
const PART_LENGTH_MAX: usize = 64;

/// Counts of names, by their parts.
#[derive(Debug, Default)]
pub(super) struct Families {
    /// Names that end here.
    count: u64,
    parts: BTreeMap<Box<[u8]>, Families>,
    /// Whether there were too many parts, so that all of them are one.
    is_one: bool,
}

/// A family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Family {
    /// Its names, with `*` for what differs.
    pub(super) name: Vec<u8>,
    pub(super) keys: u64,
}

impl Families {
    /// Counts a name.
    pub(super) fn add(&mut self, name: &[u8]) {
        let parts: Vec<&[u8]> = name.splitn(DEPTH_MAX, |byte| *byte == b':').collect();
        self.add_parts(&parts, 1);
    }

    fn add_parts(&mut self, parts: &[&[u8]], count: u64) {
        let Some((first, rest)) = parts.split_first() else {
            self.count += count;
            return;
        };
        let is_object = |part: &[u8]| {
            part.len() > PART_LENGTH_MAX || part.iter().any(u8::is_ascii_digit) || part == b"*"
        };
        let first = if is_object(first) { b"*" } else { *first };
        self.part(first).add_parts(rest, count);
    }

    /// The families below a part. One part too many makes all of them one.
    fn part(&mut self, part: &[u8]) -> &mut Families {
        if self.parts.len() >= PARTS_MAX && !self.parts.contains_key(part) {
            self.is_one = true;
            let mut one = Families::default();
            std::mem::take(&mut self.parts).into_values().for_each(|part| one.merge(part));
            self.parts.insert(Box::from(*b"*"), one);
        }
        let part = if self.is_one { b"*" } else { part };
        self.parts.entry(part.into()).or_default()
    }

    fn merge(&mut self, other: Families) {
        self.count += other.count;
        for (part, families) in other.parts {
            self.part(&part).merge(families);
        }
    }

    /// The families, the largest first.
    pub(super) fn all(&self) -> Vec<Family> {
        let mut all = Vec::new();
        self.collect(&mut Vec::new(), &mut all);
        all.sort_by(|one, other| (other.keys, &one.name).cmp(&(one.keys, &other.name)));
        all
    }

    fn collect<'a>(&'a self, parts: &mut Vec<&'a [u8]>, all: &mut Vec<Family>) {
        if self.count > 0 {
            all.push(Family { name: parts.join(&b':'), keys: self.count });
        }
        for (part, families) in &self.parts {
            parts.push(part);
            families.collect(parts, all);
            parts.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Families, Family};

    fn families<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> Vec<String> {
        let mut families = Families::default();
        names.into_iter().for_each(|name| families.add(name.as_ref().as_bytes()));
        let text = |Family { name, keys }: Family| format!("{} {keys}", name.escape_ascii());
        families.all().into_iter().map(text).collect()
    }

    #[test]
    fn names_that_differ_in_what_they_are_about_are_one_family() {
        let names =
            ["user:1", "user:2", "user:1:posts", "session:a1f", "lock", "user:me", "", "a::b"];
        let expected =
            ["user:* 2", " 1", "a::b 1", "lock 1", "session:* 1", "user:*:posts 1", "user:me 1"];
        assert_eq!(families(names), expected);
    }

    #[test]
    fn many_words_at_one_place_are_one_family_with_all_that_follows() {
        let word = |number: usize| {
            let letter = |at: usize| char::from(b'a' + u8::try_from(number / at % 26).unwrap());
            format!("{}{}", letter(26), letter(1))
        };
        let names = (0..500).flat_map(|number| {
            [format!("slug:{}:page", word(number)), format!("slug:{}", word(number))]
        });
        assert_eq!(families(names), ["slug:* 500", "slug:*:page 500"]);
        // However names are made, what is kept stays small.
        let names = (0..200_000).map(|number| {
            format!("{}:{}:{}:{}", word(number), word(number / 7), word(number / 3), word(number))
        });
        let all = families(names);
        assert_eq!(all, ["*:*:*:* 200000"]);
    }

    #[test]
    fn names_of_many_parts_and_long_ones_are_cut() {
        let deep = "a:".repeat(100);
        assert_eq!(families([deep.as_str()]), [format!("{}{} 1", "a:".repeat(7), "*")]);
        assert_eq!(families(["x".repeat(100)]), ["* 1"]);
    }
}
