//! What relations look like, and for whom.
//!
//! The server describes a relation once for all transactions that it sends whole, and once more
//! inside of each transaction that it sends in blocks: there by that transaction's own catalog, in
//! which a table that it has altered is altered already. Such a description is valid for that
//! transaction until it commits, then for all (pgoutput.c, `maybe_send_schema` and
//! `cleanup_rel_sync_cache`). When it is undone, or one of its subtransactions, the server takes
//! the relations for not described.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::decode::Relation;

/// Every relation that the server takes for described.
#[derive(Debug, Default)]
pub(super) struct Relations {
    common: Described,
    /// By top-level transaction that came in blocks and has not ended.
    streamed: HashMap<u32, Described>,
    /// The transaction whose block is open; its part of `streamed` is here meanwhile.
    block: Option<(u32, Described)>,
    /// Counts descriptions, to tell the later from the earlier.
    count: u64,
}

/// Relations by oid, each with when it was described.
type Described = HashMap<u32, (u64, Arc<Relation>)>;

impl Relations {
    /// The top-level transaction whose block is open.
    pub(super) fn in_block(&self) -> Option<u32> {
        self.block.as_ref().map(|(xid, _)| *xid)
    }

    /// Opens a block; false if it is not the first of its transaction and there was none before.
    pub(super) fn enter(&mut self, xid: u32, is_first: bool) -> bool {
        let described = self.streamed.remove(&xid);
        let known = if is_first { Some(Described::new()) } else { described };
        self.block = known.map(|described| (xid, described));
        self.block.is_some()
    }

    /// Closes the block; false if none is open.
    pub(super) fn leave(&mut self) -> bool {
        let block = self.block.take();
        let was_open = block.is_some();
        self.streamed.extend(block);
        was_open
    }

    /// Takes a description.
    pub(super) fn describe(&mut self, relation: Arc<Relation>) {
        self.count += 1;
        let id = relation.id;
        // The same shape as before is the same thing: what the rules make of it is found again.
        let same = self.common.get(&id).map(|(_, known)| known).filter(|known| **known == relation);
        let relation = same.map_or(relation, Arc::clone);
        let described = match &mut self.block {
            Some((_, described)) => described,
            None => &mut self.common,
        };
        described.insert(id, (self.count, relation));
    }

    /// The relation of a change that stands here.
    pub(super) fn get(&self, id: u32) -> Option<&Arc<Relation>> {
        let described = match &self.block {
            Some((_, described)) => described,
            None => &self.common,
        };
        described.get(&id).map(|(_, relation)| relation)
    }

    /// A transaction that came in blocks is committed; false if there is none such. What it has
    /// described is valid for all, unless somebody has described the relation later: with a changed
    /// column list of the publication the two differ although the table is the same.
    pub(super) fn committed(&mut self, xid: u32) -> bool {
        let Some(described) = self.streamed.remove(&xid) else { return false };
        for (id, (at, relation)) in described {
            if self.common.get(&id).is_none_or(|(known_at, _)| *known_at < at) {
                self.common.insert(id, (at, relation));
            }
        }
        true
    }

    /// A transaction that came in blocks is undone, all of it or a part.
    pub(super) fn aborted(&mut self, xid: u32, all: bool) {
        if all {
            self.streamed.remove(&xid);
        } else if let Some(described) = self.streamed.get_mut(&xid) {
            described.clear();
        }
    }
}
