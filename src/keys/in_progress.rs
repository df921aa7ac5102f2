//! Keys of large transactions that come in blocks while they run, one set for each transaction and
//! subtransaction.
//!
//! A subtransaction that is undone takes its own keys with it and no other's (`ROLLBACK TO`), so
//! sets are joined only at the commit. Those that were filled last stay ready to be filled: a
//! transaction's own, and the innermost of its subtransactions, which change places row by row. The
//! others are packed. Beyond a limit over all transactions (I6) the largest is flattened: its sets
//! become one, in which each template collapses to its widest pattern, and nothing is taken out of
//! it any more when a subtransaction is undone. That removes more than it must, and loses nothing.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::packed::Packed;
use super::set::KeySet;
use crate::budget::{self, Charge};

/// Subtransactions whose sets stay ready. They nest: more than these are rarely filled in turn.
const READY_MAX: usize = 8;

/// The cost of a packed set beside its bytes: its slot in a map that is half full, its allocation.
const PACKED_COST: usize = 64;

/// Flattening a smaller transaction gains little: patterns take a part of it.
const FLATTENED_MIN: usize = 4 * 1024;

/// Where all is flat that can be, and too much, room is made again when so many bytes more are
/// held. To look for it costs more than a row.
const STEP: usize = 128 * 1024;

/// The keys of all transactions in progress.
#[derive(Debug)]
pub struct InProgress {
    empty: KeySet,
    /// Memory of all transactions beyond which the largest is flattened, bytes.
    bytes_max: usize,
    /// By top-level transaction; without the one whose block is open.
    waiting: HashMap<u32, Streamed>,
    open: Option<(u32, Streamed)>,
    /// Memory of those that wait.
    waiting_bytes: usize,
    /// Beyond so many bytes room is made: the limit, or what was left when no more was gained.
    room_at: usize,
}

/// The keys of one top-level transaction.
#[derive(Debug)]
struct Streamed {
    /// Its own keys; once flattened, those of its subtransactions, too.
    own: KeySet,
    /// Own keys that were released early.
    released: Option<KeySet>,
    is_flat: bool,
    /// The subtransactions that were filled last, the very last first.
    ready: VecDeque<(u32, KeySet)>,
    packed: HashMap<u32, Packed>,
    /// Memory of those.
    packed_charge: Charge,
    /// Of one that waits: the part that flattening may free, bytes.
    narrow: usize,
}

impl InProgress {
    /// Nothing; `empty` is an empty set of the rules.
    #[must_use]
    pub fn new(empty: KeySet) -> InProgress {
        let (waiting, open) = (HashMap::new(), None);
        let bytes_max = budget::IN_PROGRESS;
        InProgress { empty, bytes_max, waiting, open, waiting_bytes: 0, room_at: bytes_max }
    }

    /// Sets another limit, bytes.
    #[must_use]
    pub fn with_limit(self, bytes_max: usize) -> InProgress {
        InProgress { bytes_max, room_at: bytes_max, ..self }
    }

    /// How many transactions are in progress.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.open.is_some())
    }

    /// Whether no transaction is in progress.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory held, bytes, estimated.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.waiting_bytes + self.open.as_ref().map_or(0, |(_, streamed)| streamed.bytes())
    }

    /// A block of a top-level transaction opens.
    pub fn enter(&mut self, xid: u32) {
        self.leave();
        let known = self.take(xid);
        let streamed = known.unwrap_or_else(|| Streamed::new(self.empty.clone()));
        self.open = Some((xid, streamed));
    }

    /// The set for changes of a transaction or subtransaction of the open block.
    #[inline]
    pub fn of(&mut self, xid: u32) -> &mut KeySet {
        let open = self.open.get_or_insert_with(|| (xid, Streamed::new(self.empty.clone())));
        let (top, streamed) = open;
        let is_own = *top == xid;
        if !is_own && !streamed.is_flat && !streamed.is_ready(xid) {
            streamed.make_ready(xid, &self.empty);
        }
        if self.waiting_bytes + streamed.bytes() > self.room_at {
            self.make_room();
        }
        let (_, streamed) = self.open.as_mut().expect("it is open");
        if is_own || streamed.is_flat {
            return &mut streamed.own;
        }
        let (_, keys) = streamed.ready.front_mut().expect("it was made ready");
        keys
    }

    /// The block closes.
    pub fn leave(&mut self) {
        if let Some((xid, streamed)) = self.open.take() {
            self.put(xid, streamed);
        }
        if self.waiting_bytes > self.room_at {
            self.make_room();
        }
    }

    /// It waits from now on.
    fn put(&mut self, xid: u32, mut streamed: Streamed) {
        streamed.narrow = streamed.narrow_bytes();
        self.waiting_bytes += streamed.bytes();
        self.waiting.insert(xid, streamed);
    }

    /// Flattens the largest, whichever it is, until all fit or nothing more is gained by it.
    #[cold]
    fn make_room(&mut self) {
        self.room_at = self.bytes_max;
        while self.bytes() > self.bytes_max {
            let open = self.open.as_ref().map_or(0, |(_, streamed)| streamed.narrow_bytes());
            let waiting = self.waiting.values().map(|streamed| streamed.narrow).max();
            let largest = open.max(waiting.unwrap_or_default());
            if largest < FLATTENED_MIN {
                self.room_at = self.bytes() + STEP;
                return;
            }
            match &mut self.open {
                Some((_, streamed)) if open == largest => streamed.flatten(&self.empty),
                _ => self.flatten_largest(),
            }
        }
    }

    /// The transaction is committed: the keys of all that survived in it.
    #[must_use]
    pub fn commit(&mut self, xid: u32) -> KeySet {
        match self.take(xid) {
            Some(streamed) => streamed.merged(),
            None => self.empty.clone(),
        }
    }

    /// A transaction is undone, or a part of it: `subxid` is the transaction itself, or one of its
    /// subtransactions, of which each is undone by a word of its own.
    pub fn abort(&mut self, xid: u32, subxid: u32) {
        let Some(mut streamed) = self.take(xid) else { return };
        if xid != subxid {
            streamed.forget(subxid);
            self.put(xid, streamed);
        }
    }

    /// The transactions with keys that were not released, with so many of their subtransactions
    /// that have keys.
    pub fn unreleased(&self, subxids_max: usize) -> Vec<(u32, Vec<u32>)> {
        let open = self.open.as_ref().map(|(xid, streamed)| (xid, streamed));
        let all = self.waiting.iter().chain(open);
        all.filter(|(_, streamed)| streamed.has_unreleased())
            .map(|(xid, streamed)| (*xid, streamed.subxids().take(subxids_max).collect()))
            .collect()
    }

    /// The transaction is committed, and with it these of its subtransactions: the keys of both,
    /// as far as they were not released before. They count for the commit all the same.
    pub fn release(&mut self, xid: u32, subxids: &[u32]) -> Option<KeySet> {
        if let Some((open, streamed)) = &mut self.open
            && *open == xid
        {
            return streamed.release(subxids, &self.empty);
        }
        let mut streamed = self.take(xid)?;
        let keys = streamed.release(subxids, &self.empty);
        self.put(xid, streamed);
        keys
    }

    fn take(&mut self, xid: u32) -> Option<Streamed> {
        let streamed = self.waiting.remove(&xid)?;
        self.waiting_bytes -= streamed.bytes();
        self.room_at = self.room_at.min(self.bytes_max.max(self.bytes() + STEP));
        Some(streamed)
    }

    /// Of those that wait.
    fn flatten_largest(&mut self) {
        let waiting = self.waiting.values_mut();
        let Some(largest) = waiting.max_by_key(|streamed| streamed.narrow) else { return };
        self.waiting_bytes -= largest.bytes();
        largest.flatten(&self.empty);
        largest.narrow = largest.narrow_bytes();
        self.waiting_bytes += largest.bytes();
    }
}

impl Streamed {
    fn new(own: KeySet) -> Streamed {
        let (ready, packed, packed_charge) = (VecDeque::new(), HashMap::new(), own.new_charge());
        let (released, is_flat, narrow) = (None, false, 0);
        Streamed { own, released, is_flat, ready, packed, packed_charge, narrow }
    }

    fn bytes(&self) -> usize {
        let ready: usize = self.ready.iter().map(|(_, keys)| keys.bytes()).sum();
        let released = self.released.as_ref().map_or(0, KeySet::bytes);
        self.own.bytes() + released + ready + self.packed_charge.bytes()
    }

    /// The part that flattening may free.
    fn narrow_bytes(&self) -> usize {
        if self.is_flat { self.own.narrow_bytes() } else { self.bytes() }
    }

    /// Whether the set of a subtransaction is the one that was filled last.
    fn is_ready(&self, xid: u32) -> bool {
        self.ready.front().is_some_and(|(ready, _)| *ready == xid)
    }

    fn has_unreleased(&self) -> bool {
        !self.own.is_empty() || !self.ready.is_empty() || !self.packed.is_empty()
    }

    fn subxids(&self) -> impl Iterator<Item = u32> {
        self.ready.iter().map(|(xid, _)| *xid).chain(self.packed.keys().copied())
    }

    /// A subtransaction of a committed transaction cannot be undone any more: its keys become the
    /// transaction's own.
    fn release(&mut self, subxids: &[u32], empty: &KeySet) -> Option<KeySet> {
        for subxid in subxids {
            let place = self.ready.iter().position(|(ready, _)| ready == subxid);
            if let Some((_, keys)) = place.and_then(|place| self.ready.remove(place)) {
                self.own.merge(&keys);
            } else if let Some(packed) = self.unpack(*subxid) {
                packed.add_to(&mut self.own);
            }
        }
        let own = std::mem::replace(&mut self.own, empty.clone());
        let released = self.released.get_or_insert_with(|| empty.clone());
        let keys = own.beyond(released);
        released.merge(&own);
        (!keys.is_empty()).then_some(keys)
    }

    /// Puts a subtransaction's set in front, as it was left or new.
    fn make_ready(&mut self, xid: u32, empty: &KeySet) {
        let place = self.ready.iter().position(|(ready, _)| *ready == xid);
        if let Some(found) = place.and_then(|place| self.ready.remove(place)) {
            self.ready.push_front(found);
            return;
        }
        let mut keys = empty.clone();
        if let Some(packed) = self.unpack(xid) {
            packed.add_to(&mut keys);
        }
        self.ready.push_front((xid, keys));
        if self.ready.len() > READY_MAX
            && let Some((xid, keys)) = self.ready.pop_back()
        {
            let packed = Packed::new(&keys);
            let bytes = self.packed_charge.bytes() + packed.bytes() + PACKED_COST;
            self.packed_charge.set(bytes);
            self.packed.insert(xid, packed);
        }
    }

    fn unpack(&mut self, xid: u32) -> Option<Packed> {
        let packed = self.packed.remove(&xid)?;
        let bytes = self.packed_charge.bytes() - packed.bytes() - PACKED_COST;
        self.packed_charge.set(bytes);
        Some(packed)
    }

    fn forget(&mut self, xid: u32) {
        self.ready.retain(|(ready, _)| *ready != xid);
        self.unpack(xid);
    }

    fn merged(self) -> KeySet {
        let mut keys = self.own;
        self.released.iter().for_each(|released| keys.merge(released));
        self.ready.iter().for_each(|(_, ready)| keys.merge(ready));
        self.packed.values().for_each(|packed| packed.add_to(&mut keys));
        keys
    }

    fn flatten(&mut self, empty: &KeySet) {
        let streamed = std::mem::replace(self, Streamed::new(empty.clone()));
        self.own = streamed.merged();
        self.own.collapse();
        self.is_flat = true;
    }
}
