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
    all: Vec<Entry>,
    index: HashTable<u32>,
    /// Memory of those that are nobody else's.
    own_bytes: usize,
}

#[derive(Clone)]
struct Entry {
    template: TemplateId,
    scope: u16,
    /// Whether it is the widest of the template, which has it once for all sets.
    is_shared: bool,
    pattern: Pattern,
}

/// The cost of a pattern that the template has: its place, and its slots in a half-full index.
const SHARED: usize = size_of::<Entry>() + 2 * (size_of::<u32>() + 1);

/// Keys of a template that take no more, bytes, are not worth a pass over all keys.
pub(super) const WORTH: usize = 4 * SHARED;

/// The cost of another pattern beside its bytes: the compiled form, measured on patterns of two
/// stars.
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
        let places = self.all.capacity() * size_of::<Entry>();
        self.own_bytes + places + self.index.capacity() * 2 * size_of::<u32>()
    }

    /// Each pattern with its template.
    pub(super) fn iter(&self) -> impl Iterator<Item = (TemplateId, &Pattern)> {
        self.all.iter().map(|entry| (entry.template, &entry.pattern))
    }

    pub(super) fn contains(&self, scope: u16, bytes: &[u8]) -> bool {
        let is_same = |at: &u32| {
            let entry = &self.all[*at as usize];
            entry.scope == scope && entry.pattern.as_bytes() == bytes
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
        self.all.push(Entry { template, scope, is_shared: false, pattern: parse() });
        self.own_bytes += cost(bytes);
        self.put_in_index(self.all.len() - 1);
        true
    }

    /// Adds the widest pattern of a template, unless the scope has it.
    pub(super) fn insert_widest(&mut self, (template, scope): (TemplateId, u16), widest: &Pattern) {
        if !self.contains(scope, widest.as_bytes()) {
            let pattern = widest.clone();
            self.all.push(Entry { template, scope, is_shared: true, pattern });
            self.put_in_index(self.all.len() - 1);
        }
    }

    /// Takes out what all but these templates gave.
    pub(super) fn retain(&mut self, stays: impl Fn(TemplateId) -> bool) {
        self.all.retain(|entry| stays(entry.template));
        let own = self.all.iter().filter(|entry| !entry.is_shared);
        self.own_bytes = own.map(|entry| cost(entry.pattern.as_bytes())).sum();
        self.index.clear();
        (0..self.all.len()).for_each(|at| self.put_in_index(at));
    }

    fn put_in_index(&mut self, at: usize) {
        let (hasher, all) = (&self.hasher, &self.all);
        let hash = |at: &u32| hasher.hash_one(all[*at as usize].pattern.as_bytes());
        let at = small(at);
        self.index.insert_unique(hash(&at), at, hash);
    }
}
