//! The shapes of relations, and for whom they hold.
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

use super::family::Families;
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

/// Relations as they were described.
#[derive(Debug, Default)]
struct Shapes {
    /// By oid, each with when it was described.
    known: HashMap<u32, (u64, Arc<Relation>)>,
    families: Families,
}

/// The relations that one transaction in blocks has described.
#[derive(Debug, Default)]
struct Described {
    shapes: Shapes,
    /// Whether any differed from what was known of the relation before.
    altered: bool,
}

impl Shapes {
    /// As it was described.
    fn known(&self, id: u32) -> Option<&Arc<Relation>> {
        self.known.get(&id).map(|(_, relation)| relation)
    }

    fn insert(&mut self, at: u64, relation: Arc<Relation>) {
        let id = relation.id;
        self.known.insert(id, (at, relation));
        let root = self.families.described(id);
        self.narrow(id);
        if let Some(root) = root {
            self.narrow(root);
        }
    }

    fn narrow(&mut self, root: u32) {
        let known = &self.known;
        self.families.narrow(root, |id| known.get(&id).map(|(_, relation)| relation));
    }
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
        let common = self.common.known(id);
        // The same shape as before is the same thing: what the rules make of it is found again.
        let same = common.filter(|known| **known == relation).map(Arc::clone);
        let is_other = common.is_some() && same.is_none();
        let relation = same.unwrap_or(relation);
        let shapes = match &mut self.block {
            Some((_, described)) => {
                let before = described.shapes.known(id);
                described.altered |= before.map_or(is_other, |known| *known != relation);
                &mut described.shapes
            }
            None => &mut self.common,
        };
        shapes.insert(self.count, relation);
    }

    /// Something else than a relation or a type was sent.
    pub(super) fn interrupted(&mut self) {
        self.shapes_mut().families.interrupted();
    }

    /// These were truncated by one message.
    pub(super) fn truncated(&mut self, ids: &[u32]) {
        let shapes = self.shapes_mut();
        for root in shapes.families.truncated(ids) {
            shapes.narrow(root);
        }
    }

    fn shapes_mut(&mut self) -> &mut Shapes {
        match &mut self.block {
            Some((_, described)) => &mut described.shapes,
            None => &mut self.common,
        }
    }

    /// The relation of a change that stands here. A table counts as having the replica identity
    /// that all its partitions have.
    pub(super) fn get(&self, id: u32) -> Option<&Arc<Relation>> {
        let shapes = match &self.block {
            Some((_, described)) => &described.shapes,
            None => &self.common,
        };
        shapes.families.narrowed(id).or_else(|| shapes.known(id))
    }

    /// See [`Families::take_smaller`]; of what is valid for all.
    pub(super) fn take_smaller(&mut self) -> Vec<(Arc<Relation>, Arc<Relation>)> {
        self.common.families.take_smaller()
    }

    /// A transaction that came in blocks is committed; false if there is none such. What it has
    /// described is valid for all, unless somebody has described the relation later: with a changed
    /// column list of the publication the two differ although the table is the same.
    pub(super) fn committed(&mut self, xid: u32) -> bool {
        let Some(described) = self.streamed.remove(&xid) else { return false };
        let Shapes { known, families } = described.shapes;
        let mut moved = self.common.families.absorb(families);
        for (id, (at, relation)) in known {
            if self.common.known.get(&id).is_none_or(|(known_at, _)| *known_at < at) {
                self.common.known.insert(id, (at, relation));
                moved.push(id);
            }
        }
        moved.into_iter().for_each(|root| self.common.narrow(root));
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
        described.shapes = Shapes::default();
        described.altered
    }
}
