//! The log as a walsender sends it: whole transactions at their commit, the largest in blocks while
//! they run, as `reorderbuffer.c` does.

use std::collections::{BTreeMap, BTreeSet};

use crate::postgres::{Entry, Record, Version, What};
use crate::world::World;

/// Changes of one transaction that were read and not sent.
#[derive(Default)]
struct Buffered {
    xid: u64,
    /// Each with the id of its transaction or subtransaction.
    changes: Vec<(u64, What)>,
    is_streamed: bool,
    /// Whose changes were sent in blocks.
    sent: BTreeSet<u64>,
}

/// The part of a transaction that is to be sent next.
pub(crate) enum Told {
    Block {
        is_first: bool,
        changes: Vec<(u64, What)>,
    },
    /// A subtransaction, or the transaction itself, is undone.
    Undone(u64),
    /// Nothing of it was sent in blocks.
    Whole(Record, Vec<(u64, What)>),
    /// All of it was.
    Streamed(Record),
}

/// The transactions that one connection puts together.
pub(crate) struct Reorder {
    /// The slot's confirmed position: what is committed before it is not sent.
    start: u64,
    /// Changes of all transactions beyond which the largest is sent as far as it has come.
    limit: usize,
    buffers: BTreeMap<Version, Buffered>,
}

impl Reorder {
    pub(crate) fn new(start: u64, limit: usize) -> Reorder {
        Reorder { start, limit, buffers: BTreeMap::new() }
    }

    /// Reads one more record; gives what is to be sent of which transaction, in this order.
    pub(crate) fn read(&mut self, world: &World, entry: Entry) -> Vec<(Version, Told)> {
        let Entry { end_lsn, version, xid, what } = entry;
        match what {
            What::Write(_) | What::Truncate => {
                let top = world.postgres.borrow().transactions[version].xid;
                let buffered = self.buffers.entry(version).or_default();
                buffered.xid = top;
                buffered.changes.push((xid, what));
                // What is read again only for what is behind it is not sent.
                let is_due = end_lsn > self.start && self.count() > self.limit;
                if is_due { self.stream_largest(world) } else { Vec::new() }
            }
            What::Undone(xids) => {
                let Some(buffered) = self.buffers.get_mut(&version) else { return Vec::new() };
                buffered.changes.retain(|(xid, _)| !xids.contains(xid));
                let told = xids.into_iter().filter(|xid| buffered.sent.remove(xid));
                told.map(|xid| (version, Told::Undone(xid))).collect()
            }
            What::Aborted => {
                let Some(buffered) = self.buffers.remove(&version) else { return Vec::new() };
                let subs = buffered.sent.into_iter().filter(|xid| *xid != buffered.xid);
                let told = subs.chain([buffered.xid]).filter(|_| buffered.is_streamed);
                told.map(|xid| (version, Told::Undone(xid))).collect()
            }
            What::Committed(record) => {
                let mut buffered = self.buffers.remove(&version).unwrap_or_default();
                if end_lsn <= self.start {
                    return Vec::new();
                }
                if !buffered.is_streamed {
                    return vec![(version, Told::Whole(record, buffered.changes))];
                }
                let rest = if buffered.changes.is_empty() { None } else { Some(buffered.block()) };
                let rest = rest.into_iter().chain([Told::Streamed(record)]);
                rest.map(|told| (version, told)).collect()
            }
        }
    }

    fn count(&self) -> usize {
        self.buffers.values().map(|buffered| buffered.changes.len()).sum()
    }

    fn stream_largest(&mut self, world: &World) -> Vec<(Version, Told)> {
        let largest = self.buffers.iter_mut().max_by_key(|(_, buffered)| buffered.changes.len());
        let Some((version, buffered)) = largest else { return Vec::new() };
        if world.random.chance(50) {
            // The server may notice that a change is undone already, and leaves out what follows.
            let postgres = world.postgres.borrow();
            let undone =
                buffered.changes.iter().position(|(xid, _)| postgres.is_undone(*version, *xid));
            buffered.changes.truncate(undone.unwrap_or(usize::MAX));
        }
        vec![(*version, buffered.block())]
    }
}

impl Buffered {
    fn block(&mut self) -> Told {
        let changes = std::mem::take(&mut self.changes);
        let is_first = !std::mem::replace(&mut self.is_streamed, true);
        self.sent.extend(changes.iter().map(|(xid, _)| *xid));
        Told::Block { is_first, changes }
    }
}
