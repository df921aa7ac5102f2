//! Partitions whose changes come under the name of their table, and the old values that they lack.
//!
//! With `publish_via_partition_root` the server describes the partitioned table and, right behind
//! it, the partition that changed (`maybe_send_schema`, pgoutput.c). The log holds the old values
//! that the partition's replica identity says, and the message names the table, whose identity may
//! promise more: what was not logged then looks like NULL, or like a value that did not change. So
//! the table counts as having no more than what each of its partitions has.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::decode::{Relation, ReplicaIdentity};

/// Which relations were described as partitions of which.
#[derive(Debug, Default)]
pub(super) struct Families {
    /// The relation described by the message before this one.
    last: Option<u32>,
    /// The partitions of a table, by its id.
    partitions: HashMap<u32, Vec<u32>>,
}

impl Families {
    /// A relation was described; tells the table that it is a partition of, if that came right
    /// before.
    pub(super) fn described(&mut self, id: u32) -> Option<u32> {
        let root = self.last.replace(id).filter(|root| *root != id)?;
        let partitions = self.partitions.entry(root).or_default();
        if !partitions.contains(&id) {
            partitions.push(id);
        }
        Some(root)
    }

    /// Something else than a relation was sent: what is described next stands for itself.
    pub(super) fn interrupted(&mut self) {
        self.last = None;
    }

    /// One TRUNCATE described these one behind the other, though none is a partition of another:
    /// it leaves out partitions that have no name of their own in the stream.
    pub(super) fn truncated(&mut self, ids: &[u32]) {
        for root in ids {
            if let Some(partitions) = self.partitions.get_mut(root) {
                partitions.retain(|id| !ids.contains(id));
            }
        }
    }

    /// The partitions of a table that were described.
    pub(super) fn partitions(&self, root: u32) -> &[u32] {
        self.partitions.get(&root).map_or(&[], Vec::as_slice)
    }
}

/// Whether the old values of a partition are fewer than its table promises.
pub(super) fn is_less(root: &Relation, partition: &Relation) -> bool {
    root.columns.iter().any(|column| is_identity(root, column) && !has(partition, &column.name))
}

/// The table with the replica identity that all of these partitions have.
pub(super) fn narrowed<'a>(
    root: &Relation,
    partitions: impl Iterator<Item = &'a Arc<Relation>> + Clone,
) -> Relation {
    let mut narrowed = root.clone();
    if partitions.clone().any(|partition| partition.replica_identity != root.replica_identity) {
        narrowed.replica_identity = match root.replica_identity {
            ReplicaIdentity::Nothing => ReplicaIdentity::Nothing,
            _ => ReplicaIdentity::Index,
        };
    }
    for column in &mut narrowed.columns {
        column.is_key = is_identity(root, column)
            && partitions.clone().all(|partition| has(partition, &column.name));
    }
    narrowed
}

fn has(relation: &Relation, name: &str) -> bool {
    let column = relation.columns.iter().find(|column| column.name == name);
    column.is_some_and(|column| is_identity(relation, column))
}

fn is_identity(relation: &Relation, column: &crate::decode::Column) -> bool {
    relation.replica_identity == ReplicaIdentity::Full || column.is_key
}
