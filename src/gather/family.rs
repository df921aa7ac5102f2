//! Partitions whose changes come under the name of their table, and the old values that they lack.
//!
//! With `publish_via_partition_root` the server describes the partitioned table and, right behind
//! it, the partition that changed (`maybe_send_schema`, pgoutput.c). The log holds the old values
//! that the partition's replica identity says, and the message names the table, whose identity may
//! promise more: what was not logged then looks like NULL, or like a value that did not change. So
//! the table counts as having no more than what each of its partitions has.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::decode::{Column, Relation, ReplicaIdentity};

/// Which relations were described as partitions of which.
#[derive(Debug, Default)]
pub(super) struct Families {
    /// The relation described by the message before this one.
    last: Option<u32>,
    /// The partitions of a table, by its id.
    partitions: HashMap<u32, Vec<u32>>,
    /// Tables that have less than they promise, by id, each as it counts.
    narrowed: HashMap<u32, Arc<Relation>>,
    /// Tables and partitions that nobody was told of yet.
    smaller: Vec<(Arc<Relation>, Arc<Relation>)>,
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
    /// it leaves out partitions that have no name of their own in the stream. Tells whose it took
    /// back.
    pub(super) fn truncated(&mut self, ids: &[u32]) -> Vec<u32> {
        let mut wronged = Vec::new();
        for root in ids {
            let Some(partitions) = self.partitions.get_mut(root) else { continue };
            let count = partitions.len();
            partitions.retain(|id| !ids.contains(id));
            if partitions.len() < count {
                self.smaller.retain(|(table, one)| table.id != *root || !ids.contains(&one.id));
                wronged.push(*root);
            }
        }
        wronged
    }

    /// Works out anew what a table counts as, by the replica identity that all its partitions have.
    pub(super) fn narrow<'a>(
        &mut self,
        root: u32,
        known: impl Fn(u32) -> Option<&'a Arc<Relation>>,
    ) {
        self.narrowed.remove(&root);
        let Some(table) = known(root) else { return };
        let ids = self.partitions.get(&root).map_or(&[][..], Vec::as_slice);
        let partitions = ids.iter().filter_map(|id| known(*id));
        if !partitions.clone().any(|partition| is_less(table, partition)) {
            return;
        }
        let last = self.last.and_then(&known);
        if let Some(last) = last.filter(|last| ids.contains(&last.id) && is_less(table, last)) {
            self.smaller.push((Arc::clone(table), Arc::clone(last)));
        }
        self.narrowed.insert(root, Arc::new(with_less(table, &partitions)));
    }

    /// Gives the relation that a table counts as, if it is less than it promises.
    pub(super) fn narrowed(&self, id: u32) -> Option<&Arc<Relation>> {
        if self.narrowed.is_empty() { None } else { self.narrowed.get(&id) }
    }

    /// Takes what others know; tells the tables that have to be narrowed anew.
    pub(super) fn absorb(&mut self, others: Families) -> Vec<u32> {
        let roots = others.partitions.keys().copied().collect();
        for (root, ids) in others.partitions {
            let own = self.partitions.entry(root).or_default();
            own.extend(ids);
            own.sort_unstable();
            own.dedup();
        }
        self.smaller.extend(others.smaller);
        roots
    }

    /// Tables and partitions with less than the table promises, each time one is described.
    pub(super) fn take_smaller(&mut self) -> Vec<(Arc<Relation>, Arc<Relation>)> {
        std::mem::take(&mut self.smaller)
    }
}

/// Whether the old values of a partition are fewer than its table promises.
fn is_less(root: &Relation, partition: &Relation) -> bool {
    root.columns.iter().any(|column| is_identity(root, column) && !has(partition, &column.name))
}

fn with_less<'a>(
    root: &Relation,
    partitions: &(impl Iterator<Item = &'a Arc<Relation>> + Clone),
) -> Relation {
    let mut narrowed = root.clone();
    narrowed.replica_identity = ReplicaIdentity::Index;
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

fn is_identity(relation: &Relation, column: &Column) -> bool {
    relation.replica_identity == ReplicaIdentity::Full || column.is_key
}
