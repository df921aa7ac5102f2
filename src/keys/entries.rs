//! Runs of bytes with an owner, each once, back to back in one arena.

use std::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashTable};

/// Runs of bytes that belong to an `O` each.
#[derive(Clone)]
pub(super) struct Entries<O> {
    hasher: DefaultHashBuilder,
    arena: Vec<u8>,
    entries: Vec<Entry<O>>,
    index: HashTable<u32>,
}

#[derive(Clone, Copy)]
struct Entry<O> {
    start: usize,
    len: usize,
    owner: O,
}

/// What an entry costs beside its bytes.
const COST: usize = size_of::<Entry<u16>>() + 2 * (size_of::<u32>() + 1);

/// Memory of an entry in bytes.
pub(super) fn cost(bytes: &[u8]) -> usize {
    bytes.len() + COST
}

impl<O> Default for Entries<O> {
    fn default() -> Entries<O> {
        Entries {
            hasher: DefaultHashBuilder::default(),
            arena: Vec::new(),
            entries: Vec::new(),
            index: HashTable::new(),
        }
    }
}

impl<O: Copy + PartialEq + Hash> Entries<O> {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Memory held, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.arena.capacity()
            + self.entries.capacity() * size_of::<Entry<O>>()
            + self.index.capacity() * 2 * size_of::<u32>()
    }

    /// Each entry with its owner.
    pub(super) fn iter(&self) -> impl Iterator<Item = (O, &[u8])> {
        self.entries.iter().map(|entry| (entry.owner, entry.bytes(&self.arena)))
    }

    pub(super) fn contains(&self, owner: O, bytes: &[u8]) -> bool {
        let hash = self.hasher.hash_one((owner, bytes));
        let same = |at: &u32| {
            let entry = &self.entries[*at as usize];
            entry.owner == owner && entry.bytes(&self.arena) == bytes
        };
        self.index.find(hash, same).is_some()
    }

    /// Adds what is not in it.
    pub(super) fn insert(&mut self, owner: O, bytes: &[u8]) {
        self.entries.push(Entry { start: self.arena.len(), len: bytes.len(), owner });
        self.arena.extend_from_slice(bytes);
        self.put_last_in_index(self.entries.len() - 1);
    }

    fn put_last_in_index(&mut self, at: usize) {
        let (hasher, entries, arena) = (&self.hasher, &self.entries, &self.arena);
        let hash = |at: &u32| {
            let entry = &entries[*at as usize];
            hasher.hash_one((entry.owner, entry.bytes(arena)))
        };
        let at = u32::try_from(at).expect("a key set is limited to less than 4 GiB");
        self.index.insert_unique(hash(&at), at, hash);
    }

    /// Takes out the entries of an owner.
    pub(super) fn drop_all_of(&mut self, owner: O) {
        let all = std::mem::take(self);
        for (other, bytes) in all.iter().filter(|(other, _)| *other != owner) {
            self.insert(other, bytes);
        }
    }
}

impl<O> Entry<O> {
    fn bytes<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        &arena[self.start..self.start + self.len]
    }
}
