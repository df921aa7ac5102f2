//! Patterns with their templates, each once.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::keys::arena::small;
use crate::keys::label::TemplateId;
use crate::keys::pattern::Pattern;

/// Patterns, in the order in which they came. Each stands there once in its scope, for the template
/// that gave it first there: see [`Arena`](crate::keys::arena::Arena).
#[derive(Clone, Default)]
pub(super) struct Patterns {
    hasher: DefaultHashBuilder,
    all: Vec<(TemplateId, u16, Pattern)>,
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
        self.all.iter().map(|(template, _, pattern)| (*template, pattern))
    }

    pub(super) fn contains(&self, scope: u16, bytes: &[u8]) -> bool {
        let is_same = |at: &u32| {
            let (_, own, pattern) = &self.all[*at as usize];
            *own == scope && pattern.as_bytes() == bytes
        };
        self.index.find(self.hasher.hash_one(bytes), is_same).is_some()
    }

    /// Adds a pattern of these bytes, unless the scope has it; then false.
    pub(super) fn insert(
        &mut self,
        (template, scope): (TemplateId, u16),
        bytes: &[u8],
        parse: impl FnOnce() -> Pattern,
    ) -> bool {
        if self.contains(scope, bytes) {
            return false;
        }
        self.all.push((template, scope, parse()));
        self.bytes += cost(bytes);
        self.put_in_index(self.all.len() - 1);
        true
    }

    /// Takes out what a template gave.
    pub(super) fn drop_all_of(&mut self, template: TemplateId) {
        self.all.retain(|(owner, ..)| *owner != template);
        self.bytes = self.all.iter().map(|(.., pattern)| cost(pattern.as_bytes())).sum();
        self.index.clear();
        (0..self.all.len()).for_each(|at| self.put_in_index(at));
    }

    fn put_in_index(&mut self, at: usize) {
        let (hasher, all) = (&self.hasher, &self.all);
        let hash = |at: &u32| hasher.hash_one(all[*at as usize].2.as_bytes());
        let at = small(at);
        self.index.insert_unique(hash(&at), at, hash);
    }
}
