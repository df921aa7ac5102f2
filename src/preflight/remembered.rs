//! Replica identities that `setup` changed, and whether they may go back to what they were.
//!
//! What they were stands in the comment on the publication, into which the publication's owner may
//! write anything, and whoever acts on it may be a superuser. So it is believed only of a relation
//! that this owner could alter as well, and that is a part of the table for which it was changed.
//! And no write of the application may fail for it (I10): whatever is still published of the
//! relation, or of a table that it is a partition of, needs its identity, and so does whatever
//! another walsweep or a rule names.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::catalog::{names, with_published};
use super::memory::Memory;
use super::step::{Identity, Step};
use super::{Error, cure};
use crate::config::{Config, TableName, printable};

/// A relation as it is now.
pub(super) struct Now {
    name: TableName,
    /// Whether the publication names it.
    pub(super) is_listed: bool,
    /// Whether it is as `setup` left it.
    pub(super) is_full: bool,
    /// Another publication that needs its identity.
    elsewhere: Option<String>,
    /// Whether the owner of the publication may alter it.
    is_of_owner: bool,
    /// Its indexes that may be its replica identity.
    indexes: Vec<String>,
    /// Itself, and the tables that it is a partition of.
    above: Vec<Above>,
}

struct Above {
    table: TableName,
    is_listed: bool,
    /// Whether the publication has it without naming it: by schema, or with all tables.
    is_included: bool,
}

/// The tables in question that the publication still has.
pub(super) enum Published<'a> {
    /// All that it has now but these.
    Without(&'a BTreeSet<&'a TableName>),
    /// Nothing: it is dropped.
    Nothing,
}

/// The relations as they are now, by name; those that are not there are left out.
///
/// # Errors
///
/// The query's.
pub(super) async fn now(
    relations: &BTreeSet<&TableName>,
    publication: &str,
    client: &Client,
) -> Result<BTreeMap<TableName, Now>, Error> {
    let (schemas, tables) = names(relations.iter().copied());
    let question = with_published(include_str!("../../sql/setup/identities.sql"));
    let rows = client.query(&question, &[&schemas, &tables, &publication]).await?;
    let mut all = BTreeMap::new();
    for row in &rows {
        let identity: i8 = row.try_get(3)?;
        let above: Vec<(String, String, bool, bool)> = serde_json::from_str(row.try_get(6)?)?;
        let above = above.into_iter().map(|(schema, name, is_listed, is_included)| Above {
            table: TableName { schema, name },
            is_listed,
            is_included,
        });
        let now = Now {
            name: TableName { schema: row.try_get(0)?, name: row.try_get(1)? },
            is_listed: row.try_get(2)?,
            is_full: identity.to_le_bytes() == *b"f",
            elsewhere: row.try_get(4)?,
            is_of_owner: row.try_get(5)?,
            above: above.collect(),
            indexes: row.try_get(7)?,
        };
        all.insert(now.name.clone(), now);
    }
    Ok(all)
}

impl Now {
    /// The relation, and the tables that it is a partition of.
    pub(super) fn above(&self) -> impl Iterator<Item = &TableName> {
        self.above.iter().map(|one| &one.table)
    }

    /// The step that gives it the remembered identity back, or why it must not be run.
    pub(super) fn back(
        &self,
        identity: &Identity,
        published: &Published<'_>,
        is_needed: impl Fn(&TableName) -> bool,
    ) -> Result<Step, String> {
        let table = &identity.table;
        if !self.above().any(|one| one == table) {
            return Err(format!("it is no partition of `{table}`, for which it is remembered"));
        }
        if !self.is_of_owner {
            return Err("the owner of the publication, who may have written what is remembered, \
                        does not own it"
                .to_owned());
        }
        if let Some(publication) = &self.elsewhere {
            return Err(format!("publication `{publication}` has it, too"));
        }
        let is_published = |one: &Above| match published {
            Published::Nothing => false,
            Published::Without(dropped) => {
                one.is_included || one.is_listed && !dropped.contains(&one.table)
            }
        };
        let is_in_use = |one: &&Above| is_published(one) || is_needed(&one.table);
        if let Some(one) = self.above.iter().find(is_in_use) {
            return Err(format!("`{}` is still in use", one.table));
        }
        match &identity.index {
            Some(index) if identity.was == 'i' && !self.indexes.contains(index) => Err(format!(
                "it was that of index `{}`, which is gone, or cannot be one any more",
                printable(index)
            )),
            _ => {
                let step = cure::identity_as_before(identity);
                step.ok_or_else(|| "it is not known what it was".to_owned())
            }
        }
    }
}

/// Tables that the walsweep of this slot has, and no other.
pub(super) fn only_of<'a>(memory: &'a Memory, slot: &str) -> BTreeSet<&'a TableName> {
    let own = memory.tables.get(slot).into_iter().flatten();
    own.filter(|table| !memory.has_elsewhere(slot, table)).collect()
}

/// Everything that `teardown` of one walsweep frees.
pub(crate) struct Freed {
    /// Steps that take the tables that no other needs out of a publication that others have, too.
    pub(crate) drops: Vec<Step>,
    /// Each identity with the step that gives it back once `teardown` is done, or why it has to
    /// stay; without those that are no longer as `setup` left them.
    pub(crate) identities: Vec<(Identity, Result<Step, String>)>,
}

/// Tells what becomes free once `teardown` of this walsweep is done. Where it `is_unknown` what
/// another needs that has the publication, no table does.
///
/// # Errors
///
/// The query's.
pub(crate) async fn after_teardown(
    config: &Config,
    memory: &Memory,
    is_unknown: bool,
    client: &Client,
) -> Result<Freed, Error> {
    let (slot, publication) = (&config.postgres.slot, &config.postgres.publication);
    let is_shared = is_unknown || memory.others(slot).next().is_some();
    let is_known = is_shared && !is_unknown;
    let own = if is_known { only_of(memory, slot) } else { BTreeSet::new() };
    let relations = memory.identities.iter().map(|one| &one.relation);
    let now = now(&relations.chain(own.iter().copied()).collect(), publication, client).await?;
    let is_listed = |table: &&TableName| now.get(*table).is_some_and(|now| now.is_listed);
    let dropped: BTreeSet<&TableName> = own.into_iter().filter(is_listed).collect();
    let published = if is_shared { Published::Without(&dropped) } else { Published::Nothing };
    let back = |identity: &Identity| {
        let now = now.get(&identity.relation).filter(|now| now.is_full)?;
        let back = now.back(identity, &published, |table| memory.has_elsewhere(slot, table));
        Some((identity.clone(), back))
    };
    let identities = memory.identities.iter().filter_map(back).collect();
    let drops = dropped.iter().map(|table| cure::drop_table(publication, table)).collect();
    Ok(Freed { drops, identities })
}
