//! Slots that the comment on walsweep's own publication records, and that are not there, or that
//! nobody reads: names that were tried once, or changed, and walsweeps that went without
//! `teardown`. Their tables stay published, and a slot that is there keeps WAL.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use super::catalog::Other;
use super::memory::{Memory, Record};
use super::remembered::{self, only_of};
use super::step::Step;
use super::{Code, Context, Error, Finding, Severity, cure};
use crate::config::{Postgres, TableName};
use crate::words::counted;

/// So many of them are told. The rest is told once these are forgotten: to work out what is left of
/// a comment without a slot takes time that grows with the comment, which its owner may write, and
/// every session begins with the checks.
const TOLD_MAX: usize = 5;

/// A slot that nobody reads is worth a warning once it keeps so many bytes of WAL. On a server that
/// writes little it takes longer to that than a walsweep is stopped for.
const KEPT_MAX: i64 = 64 << 20;

/// Slots that are claimed, but for the configured one, and that nobody reads.
pub(super) fn unread(context: &Context<'_>) -> Vec<Finding> {
    let Some(publication) = &context.catalog.publication else { return Vec::new() };
    let Some(memory) = publication.memory() else { return Vec::new() };
    let Postgres { slot: own, publication: name, .. } = &context.config.postgres;
    // Without a record of the one that is read, `teardown` would see no walsweep that is left.
    let first = match memory.record(own) {
        Record::Claimed | Record::Wanted => String::new(),
        Record::Nothing => format!(
            "first let `walsweep setup` record slot `{own}`, so that the publication stays for it; \
             then "
        ),
    };
    let slots = context.catalog.slots.iter();
    let slots = slots.filter(|one| one.name != *own && !one.active && memory.claims(&one.name));
    let finding = |slot: &Other| {
        let keeps = match slot.kept {
            Some(bytes) => format!("it keeps {} MB of WAL", (bytes >> 20).max(1)),
            None => "it is lost, and keeps no WAL".to_owned(),
        };
        let is_much = slot.kept.is_some_and(|bytes| bytes > KEPT_MAX);
        let severity = if is_much { Severity::Warning } else { Severity::Info };
        let message = format!(
            "publication `{name}` records slot `{}`, which nobody reads now: {keeps}",
            slot.name
        );
        let drop = cure::drop_slot(&slot.name);
        Finding::new(severity, Code::SlotUnread, message).hint(format!(
            "if its walsweep is to go on, start it; if it is gone, or `postgres.slot` has another \
             name since, {first}`walsweep teardown` with `postgres.slot = \"{}\"` drops the slot \
             and forgets it, and `{drop};`, by a role that may replicate, drops it",
            slot.name
        ))
    };
    slots.map(finding).collect()
}

/// Each slot that is not there but the configured one, which `run` makes, with what forgets it.
///
/// # Errors
///
/// The query's.
pub(super) async fn check(context: &Context<'_>, client: &Client) -> Result<Vec<Finding>, Error> {
    let Some(publication) = &context.catalog.publication else { return Ok(Vec::new()) };
    let Some(memory) = publication.memory() else { return Ok(Vec::new()) };
    let (name, own) = (&context.config.postgres.publication, &context.config.postgres.slot);
    let is_gone = |slot: &&String| context.catalog.slots.iter().all(|one| one.name != **slot);
    let mut gone: Vec<&String> = memory.others(own).filter(is_gone).collect();
    if gone.is_empty() {
        return Ok(Vec::new());
    }
    let untold = gone.len().saturating_sub(TOLD_MAX);
    gone.truncate(TOLD_MAX);
    // A rule of this walsweep may name one before that is recorded.
    let named: BTreeSet<&TableName> = context.rules.tables().collect();
    let alone = |slot: &str| {
        let alone = only_of(&memory, slot).into_iter().filter(|table| !named.contains(table));
        alone.collect::<Vec<_>>()
    };
    let asked = gone.iter().flat_map(|slot| alone(slot)).collect();
    let now = remembered::now(&asked, name, client).await?;
    let others = match untold {
        0 => String::new(),
        1 => "; and another one that is not there".to_owned(),
        untold => format!("; and {untold} others that are not there"),
    };
    let finding = |slot: &String| {
        let is_listed = |table: &&TableName| now.get(*table).is_some_and(|now| now.is_listed);
        let listed: Vec<&TableName> = alone(slot).into_iter().filter(is_listed).collect();
        let drops = listed.iter().map(|table| cure::drop_table(name, table));
        let standing = publication.comment.as_deref();
        let written = memory.comment();
        let standing_then = if listed.is_empty() { standing } else { Some(&*written) };
        let forgets =
            cure::remember(name, standing_then, Memory::without_slot(memory.clone(), slot));
        // Nothing is taken out if somebody else wrote the comment meanwhile.
        let guard = cure::remember_first(name, standing, memory.clone());
        let guard = (!listed.is_empty()).then_some(guard);
        let steps: Vec<Step> = guard.into_iter().chain(drops).chain([forgets]).collect();
        let tables = match listed.as_slice() {
            [] => String::new(),
            [table] => format!("; `{table}` stays published for it"),
            [table, ..] => {
                let tables = counted(listed.len(), "table");
                format!("; {tables} stay published for it, such as `{table}`")
            }
        };
        let message = format!(
            "publication `{name}` records slot `{slot}`, which is not on this server in this \
             database{tables}{others}"
        );
        let hint = format!(
            "if it is on no standby either, `walsweep teardown` with `postgres.slot = \"{slot}\"` \
             forgets it, or as `{}`, who owns the publication, or as a superuser, the SQL",
            publication.owner
        );
        Finding::info(Code::SlotGone, message).hint(hint).cure(steps)
    };
    Ok(gone.into_iter().map(finding).collect())
}
