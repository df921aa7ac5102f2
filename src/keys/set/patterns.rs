//! Patterns with their templates, each once.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::keys::arena::small;
use crate::keys::label::TemplateId;
use crate::keys::pattern::Pattern;

/// Patterns, in the order in which they came; each belongs to the template that gave it first.
#[derive(Clone, Default)]
pub(super) struct Patterns {
    hasher: DefaultHashBuilder,
    all: Vec<(TemplateId, Pattern)>,
    index: HashTable<u32>,
    bytes: usize,
}

/// The cost of a pattern beside its bytes: the compiled form, measured on patterns of two stars.
const COST: usize = 512;

/// The memory that a pattern takes, bytes: they stand in the pattern, and again in its compiled
/// form.
pub(super) fn cost(bytes: &[u8]) -> usize {
    2 * bytes.len() + COST
}

impl Patterns {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// The memory that it holds, bytes, estimated.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Each pattern with its template.
    pub(super) fn iter(&self) -> impl Iterator<Item = (TemplateId, &Pattern)> {
        self.all.iter().map(|(template, pattern)| (*template, pattern))
    }

    pub(super) fn contains(&self, bytes: &[u8]) -> bool {
        let is_same = |at: &u32| self.all[*at as usize].1.as_bytes() == bytes;
        self.index.find(self.hasher.hash_one(bytes), is_same).is_some()
    }

    /// Adds a pattern of these bytes, unless it is there; then false.
    pub(super) fn insert(
        &mut self,
        template: TemplateId,
        bytes: &[u8],
        parse: impl FnOnce() -> Pattern,
    ) -> bool {
        if self.contains(bytes) {
            return false;
        }
        self.all.push((template, parse()));
        self.bytes += cost(bytes);
        self.put_in_index(self.all.len() - 1);
        true
    }

    /// Takes out what a template gave.
    pub(super) fn drop_all_of(&mut self, template: TemplateId) {
        self.all.retain(|(owner, _)| *owner != template);
        self.bytes = self.all.iter().map(|(_, pattern)| cost(pattern.as_bytes())).sum();
        self.index.clear();
        (0..self.all.len()).for_each(|at| self.put_in_index(at));
    }

    fn put_in_index(&mut self, at: usize) {
        let (hasher, all) = (&self.hasher, &self.all);
        let hash = |at: &u32| hasher.hash_one(all[*at as usize].1.as_bytes());
        let at = small(at);
        self.index.insert_unique(hash(&at), at, hash);
    }
}
