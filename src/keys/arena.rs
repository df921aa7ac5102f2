//! Runs of bytes with an owner, each once in its scope, back to back.
//!
//! A run that is already there costs no allocation, and one that is not costs none of its own.

use std::hash::BuildHasher;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

/// Runs of bytes of less than 4 GiB in sum, in the order in which they came.
///
/// Each stands there once in each scope, for the owner that had it first there. A scope is a number
/// that whoever fills the arena chooses: that of the owner, where each owner has its own runs.
#[derive(Clone)]
pub(super) struct Arena<O> {
    hasher: DefaultHashBuilder,
    bytes: Vec<u8>,
    runs: Vec<Run<O>>,
    index: HashTable<u32>,
}

#[derive(Clone, Copy)]
struct Run<O> {
    start: u32,
    len: u32,
    owner: O,
    scope: u16,
}

/// The cost of a run beside its bytes: its place, and its slots in a half-full index.
const COST: usize = size_of::<Run<u16>>() + 2 * (size_of::<u32>() + 1);

/// From so many bytes on an arena grows by less than itself.
const LARGE: usize = 256 << 10;

/// The memory that a run takes, bytes.
pub(super) fn cost(bytes: &[u8]) -> usize {
    bytes.len() + COST
}

/// A place or size in an arena or an index.
pub(super) fn small(size: usize) -> u32 {
    u32::try_from(size).expect("a key set is limited to less than 4 GiB")
}

impl<O> Default for Arena<O> {
    fn default() -> Arena<O> {
        let (hasher, index) = (DefaultHashBuilder::default(), HashTable::new());
        Arena { hasher, bytes: Vec::new(), runs: Vec::new(), index }
    }
}

impl<O: Copy + PartialEq> Arena<O> {
    pub(super) fn len(&self) -> usize {
        self.runs.len()
    }

    /// The memory that it holds, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.capacity()
            + self.runs.capacity() * size_of::<Run<O>>()
            + self.index.capacity() * 2 * size_of::<u32>()
    }

    /// Each run with its owner.
    pub(super) fn iter(&self) -> impl Iterator<Item = (O, &[u8])> {
        self.runs.iter().map(|run| (run.owner, run.of(&self.bytes)))
    }

    /// Adds a run, unless the scope has it; then false.
    pub(super) fn insert(&mut self, owner: O, scope: u16, bytes: &[u8]) -> bool {
        let (hasher, all, runs) = (&self.hasher, &self.bytes, &self.runs);
        let is_same = |at: &u32| runs[*at as usize].is(all, scope, bytes);
        let rehash = |at: &u32| runs[*at as usize].hash(hasher, all);
        let hash = hash(hasher, scope, bytes);
        let Entry::Vacant(place) = self.index.entry(hash, is_same, rehash) else { return false };
        place.insert(small(runs.len()));
        let (start, len) = (small(all.len()), small(bytes.len()));
        reserve(&mut self.runs, 1);
        reserve(&mut self.bytes, bytes.len());
        self.runs.push(Run { start, len, owner, scope });
        self.bytes.extend_from_slice(bytes);
        true
    }

    /// Who had a run first in a scope; `None` if it is not there.
    pub(super) fn owner(&self, scope: u16, bytes: &[u8]) -> Option<O> {
        let hash = hash(&self.hasher, scope, bytes);
        let is_same = |at: &u32| self.runs[*at as usize].is(&self.bytes, scope, bytes);
        self.index.find(hash, is_same).map(|at| self.runs[*at as usize].owner)
    }

    /// Takes out what an owner has, and closes the gaps.
    pub(super) fn drop_all_of(&mut self, owner: O) {
        self.retain(|other| other != owner);
    }

    /// Takes out what all but these owners have, and closes the gaps.
    pub(super) fn retain(&mut self, stays: impl Fn(O) -> bool) {
        let (bytes, mut end) = (&mut self.bytes, 0);
        self.runs.retain_mut(|run| {
            let keep = stays(run.owner);
            if keep {
                let start = run.start as usize;
                bytes.copy_within(start..start + run.len as usize, end);
                run.start = small(end);
                end += run.len as usize;
            }
            keep
        });
        self.bytes.truncate(end);
        let (hasher, bytes, runs) = (&self.hasher, &self.bytes, &self.runs);
        let rehash = |at: &u32| runs[*at as usize].hash(hasher, bytes);
        self.index.clear();
        for at in 0..small(runs.len()) {
            self.index.insert_unique(rehash(&at), at, rehash);
        }
    }

    /// Gives memory back that was used.
    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.runs.shrink_to_fit();
        let (hasher, bytes, runs) = (&self.hasher, &self.bytes, &self.runs);
        self.index.shrink_to_fit(|at| runs[*at as usize].hash(hasher, bytes));
    }
}

impl<O> Run<O> {
    fn of<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        &arena[self.start as usize..self.start as usize + self.len as usize]
    }

    fn is(&self, arena: &[u8], scope: u16, bytes: &[u8]) -> bool {
        self.scope == scope && self.of(arena) == bytes
    }

    fn hash(&self, hasher: &DefaultHashBuilder, arena: &[u8]) -> u64 {
        hash(hasher, self.scope, self.of(arena))
    }
}

/// Makes room for so many more. What is large grows by a quarter, not to twice its size (I6).
fn reserve<T>(items: &mut Vec<T>, more: usize) {
    let (capacity, needed) = (items.capacity(), items.len() + more);
    if needed > capacity && capacity * size_of::<T>() > LARGE {
        items.reserve_exact(needed.max(capacity + capacity / 4) - items.len());
    }
}

fn hash(hasher: &DefaultHashBuilder, scope: u16, bytes: &[u8]) -> u64 {
    hasher.hash_one((scope, bytes))
}

#[cfg(test)]
mod tests {
    use super::Arena;

    fn listed(arena: &Arena<u16>) -> Vec<(u16, &str)> {
        arena.iter().map(|(owner, bytes)| (owner, std::str::from_utf8(bytes).unwrap())).collect()
    }

    /// One and two share a run; whatever an owner leaves, the others are found again.
    fn fill(scope: impl Fn(u16) -> u16) -> Arena<u16> {
        let mut arena = Arena::default();
        for (owner, bytes) in [(1, "a"), (2, "long"), (1, ""), (2, "a"), (1, "a"), (3, "end")] {
            arena.insert(owner, scope(owner), bytes.as_bytes());
        }
        arena
    }

    #[test]
    fn a_run_stands_once_in_a_scope_for_the_first_owner() {
        let mut arena = fill(|_owner| 7);
        assert_eq!(listed(&arena), [(1, "a"), (2, "long"), (1, ""), (3, "end")]);
        arena.drop_all_of(1);
        assert_eq!(listed(&arena), [(2, "long"), (3, "end")]);
        assert_eq!([&b"a"[..], b"", b"end"].map(|run| arena.owner(7, run)), [None, None, Some(3)]);
        assert_eq!(arena.owner(8, b"end"), None, "of another scope");
        assert!(arena.insert(2, 7, b"a") && !arena.insert(1, 7, b"end"));
        assert!(arena.insert(1, 8, b"end"));
        arena.shrink();
        assert_eq!((arena.owner(7, b"a"), arena.owner(7, b"long")), (Some(2), Some(2)));
        assert_eq!((arena.owner(7, b"end"), arena.owner(8, b"end")), (Some(3), Some(1)));
    }

    #[test]
    fn a_run_stands_once_for_each_owner_that_has_a_scope_of_its_own() {
        let mut arena = fill(|owner| owner);
        assert_eq!(listed(&arena), [(1, "a"), (2, "long"), (1, ""), (2, "a"), (3, "end")]);
        arena.drop_all_of(1);
        assert_eq!(listed(&arena), [(2, "long"), (2, "a"), (3, "end")]);
        assert_eq!([1, 2, 3].map(|scope| arena.owner(scope, b"a")), [None, Some(2), None]);
    }
}
