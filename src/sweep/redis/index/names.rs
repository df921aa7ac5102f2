//! Names of keys, in their order, packed.
//!
//! Names of one rule begin alike, and in their order most of a name is the end of the one before.
//! So a name is stored as how much of that it shares, and the rest. Blocks of some two thousand
//! bytes are found by a tree, and looked through from their beginning: a name is found, added or
//! taken out in about a microsecond, and all that begin alike stand beside each other.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::keys::encoding::{push_number, push_text, take_number, take_text};

/// A block that is larger is cut in two, bytes.
const BLOCK_MAX: usize = 2048;

/// A block that is smaller is joined with the one behind it, if both fit into three quarters of a
/// block: the next names then do not cut it again at once.
const BLOCK_MIN: usize = BLOCK_MAX / 2;

/// Blocks grow by so many bytes, and give back what is more: what is reserved and not used is then
/// little.
const GROWTH: usize = 64;

/// The cost of a block beside its bytes: its place in the tree, which is two thirds full, and what
/// the allocator keeps of its two allocations.
const BLOCK_COST: usize = 112;

/// A set of names.
#[derive(Debug)]
pub(super) struct NameSet {
    /// By a name that none in it stands before; the first one's is empty.
    blocks: BTreeMap<Box<[u8]>, Block>,
    length: usize,
    bytes: usize,
}

/// Entries of names in their order, the first of which shares bytes with the name of the block.
#[derive(Debug, Default)]
struct Block(Vec<u8>);

/// An entry of a block, as it stands there from `at` to `end`.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    at: usize,
    end: usize,
    /// Bytes that it shares with the name before it.
    shared: usize,
    rest: &'a [u8],
}

/// The place of a name in a block.
enum Place {
    /// It is there, as the entry at this byte.
    Here(usize),
    /// It belongs before the entry at this byte, or at the end, and shares so many bytes with the
    /// name before that place, and with the one behind.
    Before { at: usize, shared: usize, shared_behind: usize },
}

impl NameSet {
    /// No name.
    pub(super) fn new() -> NameSet {
        let mut set = NameSet { blocks: BTreeMap::new(), length: 0, bytes: 0 };
        set.put(Box::default(), Block::default());
        set
    }

    /// How many names there are.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// The memory that they take, bytes, estimated.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a name; says whether it is new.
    pub(super) fn insert(&mut self, name: &[u8]) -> bool {
        let Some((first, block)) = last_before(&mut self.blocks, name) else { return false };
        let Place::Before { at, shared, shared_behind } = block.find(first, name) else {
            return false;
        };
        let before = block.0.capacity();
        block.insert(at, (shared, name), shared_behind);
        let (capacity, is_large) = (block.0.capacity(), block.0.len() > BLOCK_MAX);
        self.bytes = self.bytes + capacity - before;
        self.length += 1;
        if is_large {
            let first = first.to_vec();
            self.cut(&first);
        }
        true
    }

    /// Takes a name out; says whether it was there.
    pub(super) fn remove(&mut self, name: &[u8]) -> bool {
        let Some((first, block)) = last_before(&mut self.blocks, name) else { return false };
        let Place::Here(at) = block.find(first, name) else { return false };
        let before = block.0.capacity();
        block.remove(at);
        self.bytes = self.bytes + block.0.capacity() - before;
        self.length -= 1;
        if block.0.len() < BLOCK_MIN {
            let first = first.to_vec();
            self.join(&first);
        }
        true
    }

    /// The names from `from` on that begin with `prefix`, in their order, at most so many.
    pub(super) fn list(&self, prefix: &[u8], from: Bound<&[u8]>, most: usize) -> Vec<Vec<u8>> {
        let start = match from {
            Bound::Included(name) | Bound::Excluded(name) => name.max(prefix),
            Bound::Unbounded => prefix,
        };
        let is_after = |name: &[u8]| match from {
            Bound::Excluded(last) => name > last && name >= prefix,
            Bound::Included(_) | Bound::Unbounded => name >= start,
        };
        let range = (Bound::Unbounded, Bound::Included(start));
        let first = self.blocks.range::<[u8], _>(range).next_back().map(|(name, _)| name);
        let first: &[u8] = first.map_or(&[], |name| name);
        let mut found = Vec::new();
        for (name, block) in
            self.blocks.range::<[u8], _>((Bound::Included(first), Bound::Unbounded))
        {
            if found.len() == most || !(name.starts_with(prefix) || **name <= *prefix) {
                break;
            }
            let mut current = name.to_vec();
            for entry in block.entries() {
                current.truncate(entry.shared);
                current.extend_from_slice(entry.rest);
                if is_after(&current) {
                    if found.len() == most || !current.starts_with(prefix) {
                        return found;
                    }
                    found.push(current.clone());
                }
            }
        }
        found
    }

    /// Cuts a block in two.
    fn cut(&mut self, first: &[u8]) {
        let Some(block) = self.blocks.get_mut(first) else { return };
        let (mut middle, mut current) = (None, first.to_vec());
        for entry in block.entries() {
            current.truncate(entry.shared);
            current.extend_from_slice(entry.rest);
            // The first name stays: a block of one cannot be cut.
            if entry.at > 0 && entry.end > block.0.len() / 2 {
                middle = Some(entry);
                break;
            }
        }
        let Some(Entry { at, end, shared, .. }) = middle else { return };
        // The name of the second block is what tells its first name from the one before: a whole
        // name would stay when that has gone.
        let rest = current.split_off(shared + 1);
        let mut second = Vec::new();
        push_entry(&mut second, current.len(), &rest);
        second.extend_from_slice(block.0.get(end..).unwrap_or_default());
        second.shrink_to_fit();
        self.bytes -= block.0.capacity();
        block.0.truncate(at);
        block.0.shrink_to_fit();
        self.bytes += block.0.capacity();
        self.put(current.into(), Block(second));
    }

    /// Joins a block with the one behind it, if both are small; an empty one goes.
    fn join(&mut self, first: &[u8]) {
        let Some(length) = self.blocks.get(first).map(|block| block.0.len()) else { return };
        if length == 0 && !first.is_empty() {
            self.take(first);
            return;
        }
        let range = (Bound::Excluded(first), Bound::Unbounded);
        let next = self.blocks.range::<[u8], _>(range).next();
        let fits = |other: &Block| length + other.0.len() <= BLOCK_MAX / 4 * 3;
        let Some(name) = next.filter(|(_, other)| fits(other)).map(|(name, _)| name.clone()) else {
            return;
        };
        let (Some(mut one), Some(other)) = (self.take(first), self.take(&name)) else { return };
        let mut last = first.to_vec();
        for entry in one.entries() {
            last.truncate(entry.shared);
            last.extend_from_slice(entry.rest);
        }
        let mut current = name.to_vec();
        for entry in other.entries() {
            current.truncate(entry.shared);
            current.extend_from_slice(entry.rest);
            let shared = common(&last, &current);
            push_entry(&mut one.0, shared, current.get(shared..).unwrap_or_default());
            last.clone_from(&current);
        }
        one.0.shrink_to_fit();
        self.put(first.into(), one);
    }

    fn put(&mut self, first: Box<[u8]>, block: Block) {
        self.bytes += BLOCK_COST + first.len() + block.0.capacity();
        self.blocks.insert(first, block);
    }

    fn take(&mut self, first: &[u8]) -> Option<Block> {
        let block = self.blocks.remove(first)?;
        self.bytes -= BLOCK_COST + first.len() + block.0.capacity();
        Some(block)
    }
}

/// The block that a name belongs to.
fn last_before<'a>(
    blocks: &'a mut BTreeMap<Box<[u8]>, Block>,
    name: &[u8],
) -> Option<(&'a [u8], &'a mut Block)> {
    let before = blocks.range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(name)));
    before.map(|(first, block)| (&**first, block)).next_back()
}

impl Block {
    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let entry = self.entry(at)?;
            at = entry.end;
            Some(entry)
        })
    }

    /// The entry at a byte; `None` at the end.
    fn entry(&self, at: usize) -> Option<Entry<'_>> {
        let mut behind = self.0.get(at..).filter(|behind| !behind.is_empty())?;
        let shared = usize::try_from(take_number(&mut behind)).ok()?;
        let rest = take_text(&mut behind);
        Some(Entry { at, end: self.0.len() - behind.len(), shared, rest })
    }

    /// Finds the place of a name that does not stand before `first`, without writing any name out:
    /// how much it shares with the name before tells most.
    fn find(&self, first: &[u8], name: &[u8]) -> Place {
        let mut shared = common(first, name);
        for entry in self.entries() {
            let Entry { at, shared: of_entry, rest, .. } = entry;
            if of_entry > shared {
                // It differs from the name where the one before it does, and stands before it, too.
                continue;
            }
            if of_entry < shared {
                return Place::Before { at, shared, shared_behind: of_entry };
            }
            let own = name.get(shared..).unwrap_or_default();
            let more = common(rest, own);
            match rest.get(more..).unwrap_or_default().cmp(own.get(more..).unwrap_or_default()) {
                std::cmp::Ordering::Less => shared += more,
                std::cmp::Ordering::Equal => return Place::Here(at),
                std::cmp::Ordering::Greater => {
                    return Place::Before { at, shared, shared_behind: shared + more };
                }
            }
        }
        Place::Before { at: self.0.len(), shared, shared_behind: 0 }
    }

    /// Puts a name before the entry at a byte, which then shares so many bytes with it.
    fn insert(&mut self, at: usize, (shared, name): (usize, &[u8]), shared_behind: usize) {
        let mut new = Vec::new();
        push_entry(&mut new, shared, name.get(shared..).unwrap_or_default());
        let end = match self.entry(at) {
            Some(Entry { end, shared: before, rest, .. }) => {
                let more = shared_behind.saturating_sub(before);
                push_entry(&mut new, before + more, rest.get(more..).unwrap_or_default());
                end
            }
            None => at,
        };
        self.replace(at, end, &new);
    }

    /// Takes out the entry at a byte; the one behind it then follows the one before it.
    fn remove(&mut self, at: usize) {
        let Some(entry) = self.entry(at) else { return };
        let mut new = Vec::new();
        let mut end = entry.end;
        if let Some(next) = self.entry(entry.end) {
            let shared = next.shared.min(entry.shared);
            let mut rest = entry.rest.get(..next.shared - shared).unwrap_or_default().to_vec();
            rest.extend_from_slice(next.rest);
            push_entry(&mut new, shared, &rest);
            end = next.end;
        }
        self.replace(at, end, &new);
        if self.0.capacity() - self.0.len() > GROWTH {
            self.0.shrink_to(self.0.len().next_multiple_of(GROWTH));
        }
    }

    /// Writes other bytes where these stand.
    fn replace(&mut self, at: usize, end: usize, new: &[u8]) {
        let length = self.0.len() - (end - at) + new.len();
        if length > self.0.capacity() {
            self.0.reserve_exact(length.next_multiple_of(GROWTH) - self.0.len());
        }
        self.0.splice(at..end, new.iter().copied());
    }
}

/// How many bytes two texts begin with alike.
fn common(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

fn push_entry(bytes: &mut Vec<u8>, shared: usize, rest: &[u8]) {
    push_number(bytes, shared as u64);
    push_text(bytes, rest);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ops::Bound;

    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_oneof};
    use proptest::{prop_assert_eq, proptest};

    use super::{BLOCK_COST, NameSet};

    impl NameSet {
        fn all(&self) -> Vec<Vec<u8>> {
            self.list(b"", Bound::Unbounded, usize::MAX)
        }

        /// The memory, counted anew.
        fn counted(&self) -> usize {
            let each = self.blocks.iter();
            each.map(|(name, block)| BLOCK_COST + name.len() + block.0.capacity()).sum()
        }
    }

    /// Names that share much, and some that are long, so that blocks are cut and joined.
    fn name() -> impl Strategy<Value = Vec<u8>> {
        let texts = vec(prop_oneof![b'a'..=b'c', any::<u8>()], 0..6);
        (texts, 0..40_usize, 0..3_usize).prop_map(|(mut text, at, long)| {
            let mut name = [&b"stats:"[..], &b"stats:club:"[..], &b""[..]][at % 3].to_vec();
            name.extend(std::iter::repeat_n(b'x', at * long * 4));
            name.append(&mut text);
            name
        })
    }

    proptest! {
        #[test]
        fn it_is_an_ordered_set(steps in vec((name(), any::<bool>()), 0..400)) {
            let (mut set, mut right) = (NameSet::new(), BTreeSet::new());
            for (name, adds) in steps {
                if adds {
                    prop_assert_eq!(set.insert(&name), right.insert(name));
                } else {
                    prop_assert_eq!(set.remove(&name), right.remove(&name));
                }
                prop_assert_eq!(set.len(), right.len());
            }
            prop_assert_eq!(set.counted(), set.bytes());
            prop_assert_eq!(set.all(), right.iter().cloned().collect::<Vec<_>>());
            for prefix in [&b""[..], b"stats:", b"stats:c", b"stats:club:x", b"zz"] {
                let mut listed: Vec<Vec<u8>> = Vec::new();
                loop {
                    let from = listed.last().map_or(Bound::Unbounded, |last| {
                        Bound::Excluded(last.as_slice())
                    });
                    let more = set.list(prefix, from, 7);
                    if more.is_empty() {
                        break;
                    }
                    listed.extend(more);
                }
                let begins = right.iter().filter(|name| name.starts_with(prefix)).cloned();
                prop_assert_eq!(listed, begins.collect::<Vec<_>>());
            }
            for name in right {
                set.remove(&name);
            }
            prop_assert_eq!((set.len(), set.bytes()), (0, set.counted()));
            prop_assert_eq!(set.blocks.len(), 1);
        }
    }

    /// Names of an application: what the packed set takes, against the bytes of the names alone.
    #[test]
    fn names_of_an_application_take_no_more_than_they_have_bytes() {
        let mut set = NameSet::new();
        let mut bytes = 0;
        let mut random = 1_u64;
        for number in 0..50_000_u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let name = match number % 3 {
                0 => format!("stats:club:{}club:{}", random >> 50, number),
                1 => format!("page:{random:016x}"),
                _ => format!("db:leaderboard:{}:{}", random >> 54, random >> 40),
            };
            bytes += if set.insert(name.as_bytes()) { name.len() } else { 0 };
        }
        assert!(set.bytes() < bytes, "{} bytes for {bytes}", set.bytes());
        for name in set.all() {
            set.remove(&name);
        }
        assert!(set.bytes() < 1_000, "{}", set.bytes());
    }

    /// Makes a name of a number.
    type Maker = dyn Fn(u64) -> Vec<u8>;

    /// However names are made, in whatever order they came, and after half of them went and others
    /// came: 1.3 times their bytes at most.
    #[test]
    fn packed_names_take_at_most_1_3_times_their_bytes() {
        let mut random = 1_u64;
        let mut next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random >> 20
        };
        let kinds: [(&str, &Maker); 5] = [
            ("short", &|number| format!("p:{}", number % 1_000_000).into_bytes()),
            ("hexadecimal", &|number| format!("page:{number:016x}").into_bytes()),
            ("nothing alike", &|number| {
                format!("{:032x}", u128::from(number).wrapping_pow(5)).into_bytes()
            }),
            ("bytes", &|number| number.to_le_bytes().repeat(2)),
            ("long", &|number| format!("page:{number:016x}{}", "x".repeat(300)).into_bytes()),
        ];
        for (kind, name) in kinds {
            let (mut set, mut names) = (NameSet::new(), BTreeSet::new());
            let check = |set: &NameSet, names: &BTreeSet<Vec<u8>>, when: &str| {
                let bytes: usize = names.iter().map(Vec::len).sum();
                let (own, count) = (set.bytes(), names.len());
                assert!(own * 10 <= bytes * 13, "{kind}, {when}: {own} for {bytes} of {count}");
            };
            for turn in 0..4 {
                for _ in 0..10_000 {
                    let name = name(next());
                    set.insert(&name);
                    names.insert(name);
                }
                check(&set, &names, &format!("grown, {turn}"));
                names.retain(|name| {
                    let stays = next() % 2 == 0;
                    let _is_gone = !stays && set.remove(name);
                    stays
                });
                check(&set, &names, &format!("after removals, {turn}"));
            }
        }
    }

    #[test]
    fn names_longer_than_a_block_are_kept_too() {
        let mut set = NameSet::new();
        let names: Vec<Vec<u8>> =
            (0..20).map(|at| vec![b'a' + at % 5; 5_000 + at as usize]).collect();
        assert!(names.iter().all(|name| set.insert(name)));
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(set.all(), sorted);
        assert!(names.iter().all(|name| set.remove(name)));
        assert_eq!(set.bytes(), set.counted());
    }
}
