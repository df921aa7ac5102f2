//! Leftovers in walsweep's own publication: of a rule that was taken out, and of an earlier version
//! that put tables there that no rule named.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::catalog::names;
use super::memory::Memory;
use super::remembered::{self, Now, Published};
use super::step::{Identity, Step};
use super::{Code, Context, Error, Finding, cure, tables};
use crate::config::TableName;
use crate::words::counted;

/// Tables that `setup` published for a rule of this walsweep, and that no rule and no kept answer
/// of a lookup needs any more. What it did not publish is not its to take away.
///
/// # Errors
///
/// The query's.
pub(super) async fn check(
    context: &Context<'_>,
    kept: &[TableName],
    client: &Client,
) -> Result<Vec<Finding>, Error> {
    let publication = context.catalog.publication.as_ref();
    let Some(memory) = publication.and_then(super::catalog::Publication::memory) else {
        return Ok(Vec::new());
    };
    let (name, slot) = (&context.config.postgres.publication, &context.config.postgres.slot);
    let named: BTreeSet<&TableName> = context.rules.tables().collect();
    let is_needed = |table: &TableName| {
        named.contains(table) || kept.contains(table) || memory.has_elsewhere(slot, table)
    };
    let mut findings = heirs(context, &memory, &is_needed, client).await?;
    // A table that is suggested for one that is missing is perhaps what the rule means.
    let meant: Vec<String> = tables::meant(context).collect();
    let is_free = |table: &&TableName| !meant.contains(&table.to_string()) && !is_needed(table);
    let freed = memory.tables.get(slot).into_iter().flatten().filter(is_free);
    let freed: BTreeSet<&TableName> = freed.collect();
    if freed.is_empty() {
        return Ok(findings);
    }
    let changed = memory.identities.iter().map(|one| &one.relation);
    let asked = freed.iter().copied().chain(changed).collect();
    let now = remembered::now(&asked, name, client).await?;
    let is_listed = |table: &&TableName| now.get(*table).is_some_and(|now| now.is_listed);
    let dropped: BTreeSet<&TableName> = freed.iter().copied().filter(is_listed).collect();
    let mut undone = undone(&memory, &now, &dropped, is_needed);
    findings.extend(left_full(&memory, &now, (&freed, &dropped), is_needed));
    for table in dropped {
        let (back, stays) = undone.remove(table).unwrap_or_default();
        let steps = std::iter::once(cure::drop_table(name, table)).chain(back).collect();
        let message =
            format!("publication `{name}` publishes `{table}`, which no rule names any more");
        let finding = Finding::info(Code::TableUnneeded, message).cure(steps).done_by_setup();
        let reload = "`walsweep reload` first, if it runs since the rule was there: else it \
                      suspends the rule";
        let hints = std::iter::once(reload.to_owned()).chain(stays);
        findings.push(finding.hint(hints.collect::<Vec<_>>().join("; ")));
    }
    Ok(findings)
}

/// Identities that `setup` changed, and that may go back although none of their tables is taken out
/// now: an earlier `setup` did that, and was stopped.
fn left_full(
    memory: &Memory,
    now: &BTreeMap<TableName, Now>,
    (freed, dropped): (&BTreeSet<&TableName>, &BTreeSet<&TableName>),
    is_needed: impl Fn(&TableName) -> bool,
) -> Vec<Finding> {
    let published = Published::Without(dropped);
    let finding = |identity: &Identity| {
        let now = now.get(&identity.relation).filter(|now| now.is_full)?;
        let mut concerned = std::iter::once(&identity.table).chain(now.above());
        if !freed.contains(&identity.table) || concerned.any(|one| dropped.contains(one)) {
            return None;
        }
        let back = now.back(identity, &published, &is_needed).ok()?;
        let message = format!(
            "`{}` has the full replica identity that `walsweep setup` gave it for `{}`, which no \
             rule names any more",
            identity.relation, identity.table
        );
        Some(Finding::info(Code::TableUnneeded, message).cure(vec![back]).done_by_setup())
    };
    memory.identities.iter().filter_map(finding).collect()
}

/// Tells what becomes of the identities that were changed for tables that are dropped: the steps
/// that set them back, and a sentence about each that stays. Of several tables that a relation
/// belongs to it is told with the last, so that whoever runs the SQL in its order has dropped them
/// all.
fn undone<'a>(
    memory: &'a Memory,
    now: &BTreeMap<TableName, Now>,
    dropped: &BTreeSet<&'a TableName>,
    is_needed: impl Fn(&TableName) -> bool,
) -> BTreeMap<&'a TableName, (Vec<Step>, Vec<String>)> {
    let mut undone: BTreeMap<&TableName, (Vec<Step>, Vec<String>)> = BTreeMap::new();
    let published = Published::Without(dropped);
    for identity in &memory.identities {
        let Some(now) = now.get(&identity.relation).filter(|now| now.is_full) else { continue };
        let concerned = std::iter::once(&identity.table).chain(now.above());
        let Some(last) = concerned.filter_map(|one| dropped.get(one)).max() else { continue };
        let (back, stays) = undone.entry(*last).or_default();
        match now.back(identity, &published, &is_needed) {
            Ok(step) => back.push(step),
            Err(why) => stays
                .push(format!("the full replica identity of `{}` stays: {why}", identity.relation)),
        }
    }
    undone
}

/// Tables that are published, inherit from one of walsweep's, and are named by no rule. An earlier
/// version published them together with it: those are taken out, once. What came by other hands is
/// told alone.
async fn heirs(
    context: &Context<'_>,
    memory: &Memory,
    is_needed: impl Fn(&TableName) -> bool,
    client: &Client,
) -> Result<Vec<Finding>, Error> {
    let name = &context.config.postgres.publication;
    let parents: BTreeSet<&TableName> =
        memory.tables.values().flatten().chain(context.rules.tables()).collect();
    let (schemas, tables) = names(parents.iter().copied());
    let question = include_str!("../../sql/setup/published_heirs.sql");
    let rows = client.query(question, &[&schemas, &tables, name]).await?;
    let ours: BTreeSet<String> =
        memory.tables.values().flatten().map(ToString::to_string).collect();
    let mut families: BTreeMap<(bool, String), Vec<TableName>> = BTreeMap::new();
    for row in &rows {
        let heir = TableName { schema: row.try_get(0)?, name: row.try_get(1)? };
        let parents: Vec<String> = row.try_get(2)?;
        let own = parents.iter().find(|name| ours.contains(*name) && !memory.without_heirs);
        let Some(parent) = own.or(parents.first()) else { continue };
        if !is_needed(&heir) && !memory.has(&heir) {
            families.entry((own.is_some(), parent.clone())).or_default().push(heir);
        }
    }
    let finding = |((is_ours, parent), heirs): ((bool, String), Vec<TableName>)| {
        let (count, first) = (heirs.len(), heirs.first()?);
        let what = match count {
            1 => format!("`{first}`, which inherits from `{parent}`, and which"),
            count => {
                let tables = counted(count, "table");
                format!("{tables} that inherit from `{parent}`, such as `{first}`, and that")
            }
        };
        let message = format!(
            "publication `{name}` publishes {what} no rule names: the application's own UPDATE and \
             DELETE fail where there is no replica identity"
        );
        let steps = heirs.iter().map(|heir| cure::drop_table(name, heir)).collect();
        let finding = Finding::warning(Code::HeirPublished, message).cure(steps);
        Some(if is_ours {
            finding.hint("an earlier version published them together").done_by_setup()
        } else {
            finding.hint("if nobody else reads them from there, take them out")
        })
    };
    Ok(families.into_iter().filter_map(finding).collect())
}
