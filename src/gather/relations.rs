//! What relations look like, and for whom.
//!
//! The server describes a relation once for all transactions that it sends whole, and once more
//! inside of each transaction that it sends in blocks: there by that transaction's own catalog, in
//! which a table that it has altered is altered already. Such a description is valid for that
//! transaction until it commits, then for all (pgoutput.c, `maybe_send_schema` and
//! `cleanup_rel_sync_cache`). When it is undone, or one of its subtransactions, the server takes
//! the relations for not described.
//!
//! If that subtransaction had altered a table, the server goes on with the shape that is undone
//! (seen with 15.18, 16 and 18: the invalidations stay with the top-level transaction, so its
//! caches are not refreshed). Whoever sees that must read the transaction in another way.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::decode::Relation;

/// Every relation that the server takes for described.
#[derive(Debug, Default)]
pub(super) struct Relations {
    common: Shapes,
    /// By top-level transaction that came in blocks and has not ended.
    streamed: HashMap<u32, Described>,
    /// The transaction whose block is open; its part of `streamed` is here meanwhile.
    block: Option<(u32, Described)>,
    /// Counts descriptions, to tell the later from the earlier.
    count: u64,
}

/// Relations by oid, each with when it was described.
type Shapes = HashMap<u32, (u64, Arc<Relation>)>;

/// What one transaction in blocks has described.
#[derive(Debug, Default)]
struct Described {
    shapes: Shapes,
    /// Whether any differed from what was known of the relation before.
    altered: bool,
}

impl Relations {
    /// The top-level transaction whose block is open.
    pub(super) fn in_block(&self) -> Option<u32> {
        self.block.as_ref().map(|(xid, _)| *xid)
    }

    /// Opens a block; false if it is not the first of its transaction and there was none before.
    pub(super) fn enter(&mut self, xid: u32, is_first: bool) -> bool {
        let described = self.streamed.remove(&xid);
        let known = if is_first { Some(Described::default()) } else { described };
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
        let common = self.common.get(&id).map(|(_, known)| known);
        // The same shape as before is the same thing: what the rules make of it is found again.
        let same = common.filter(|known| **known == relation).map(Arc::clone);
        let is_other = common.is_some() && same.is_none();
        let relation = same.unwrap_or(relation);
        let shapes = match &mut self.block {
            Some((_, described)) => {
                let before = described.shapes.get(&id);
                described.altered |= before.map_or(is_other, |(_, known)| *known != relation);
                &mut described.shapes
            }
            None => &mut self.common,
        };
        shapes.insert(id, (self.count, relation));
    }

    /// The relation of a change that stands here.
    pub(super) fn get(&self, id: u32) -> Option<&Arc<Relation>> {
        let shapes = match &self.block {
            Some((_, described)) => &described.shapes,
            None => &self.common,
        };
        shapes.get(&id).map(|(_, relation)| relation)
    }

    /// A transaction that came in blocks is committed; false if there is none such. What it has
    /// described is valid for all, unless somebody has described the relation later: with a changed
    /// column list of the publication the two differ although the table is the same.
    pub(super) fn committed(&mut self, xid: u32) -> bool {
        let Some(described) = self.streamed.remove(&xid) else { return false };
        for (id, (at, relation)) in described.shapes {
            if self.common.get(&id).is_none_or(|(known_at, _)| *known_at < at) {
                self.common.insert(id, (at, relation));
            }
        }
        true
    }

    /// A transaction that came in blocks is undone.
    pub(super) fn aborted(&mut self, xid: u32) {
        self.streamed.remove(&xid);
    }

    /// A part of a transaction that came in blocks is undone. Says whether the transaction has
    /// altered a relation before.
    pub(super) fn partly_aborted(&mut self, xid: u32) -> bool {
        let Some(described) = self.streamed.get_mut(&xid) else { return false };
        described.shapes.clear();
        described.altered
    }
}
