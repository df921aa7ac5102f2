//! What a rule that was taken out leaves behind in walsweep's own publication.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use super::step::Identity;
use super::{Code, Context, Error, Finding, cure, tables};
use crate::config::TableName;

/// A relation as it is now.
struct Now {
    name: TableName,
    is_listed: bool,
    identity: char,
    /// Whether another publication may need its identity.
    is_in_others: bool,
    /// The tables of which it is a partition, and whether the publication has them.
    roots: Vec<(TableName, bool)>,
}

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
    // A table that is suggested for one that is missing is perhaps what the rule means.
    let meant: Vec<String> = tables::meant(context).collect();
    let is_free = |table: &&TableName| {
        !meant.contains(&format!("{}.{}", table.schema, table.name))
            && !named.contains(table)
            && !kept.contains(table)
            && !memory.has_elsewhere(slot, table)
    };
    let freed: Vec<&TableName> = memory.tables.get(slot).into_iter().flatten().collect();
    let freed: Vec<&TableName> = freed.into_iter().filter(is_free).collect();
    if freed.is_empty() {
        return Ok(Vec::new());
    }
    let changed: Vec<&Identity> =
        memory.identities.iter().filter(|one| freed.contains(&&one.table)).collect();
    let asked: BTreeSet<&TableName> =
        freed.iter().copied().chain(changed.iter().map(|one| &one.relation)).collect();
    let now = ask(&asked, name, client).await?;
    let find = |wanted: &TableName| now.iter().find(|one| one.name == *wanted);
    let mut findings = Vec::new();
    for table in freed {
        if find(table).is_none_or(|now| !now.is_listed) {
            continue;
        }
        let mut steps = vec![cure::drop_table(name, table)];
        let mut stays = Vec::new();
        for identity in changed.iter().filter(|one| one.table == *table) {
            let Some(now) = find(&identity.relation).filter(|now| now.identity == 'f') else {
                continue;
            };
            match cure::identity_as_before(identity).filter(|_| is_safe(now, identity, &named)) {
                Some(step) => steps.push(step),
                None => stays.push(format!("`{}`", identity.relation)),
            }
        }
        let message =
            format!("publication `{name}` publishes `{table}`, which no rule names any more");
        let finding = Finding::info(Code::TableUnneeded, message).cure(steps).done_by_setup();
        findings.push(if stays.is_empty() {
            finding
        } else {
            finding.hint(format!("the full replica identity of {} stays", stays.join(", ")))
        });
    }
    Ok(findings)
}

/// Whether no write of the application depends on the full identity, and the one from before is
/// surely there. It does where the relation is a partition of another table that is published, or
/// that a rule names, so that it will be.
fn is_safe(now: &Now, identity: &Identity, named: &BTreeSet<&TableName>) -> bool {
    let is_needed = |(root, is_published): &(TableName, bool)| {
        *root != identity.table && (*is_published || named.contains(root))
    };
    !now.is_in_others && !now.roots.iter().any(is_needed) && matches!(identity.was, 'd' | 'n')
}

/// Schema, name, and whether it is published, of each.
fn roots(json: &str) -> Vec<(TableName, bool)> {
    let all: Vec<(String, String, bool)> = serde_json::from_str(json).unwrap_or_default();
    all.into_iter().map(|(schema, name, is)| (TableName { schema, name }, is)).collect()
}

async fn ask(
    tables: &BTreeSet<&TableName>,
    publication: &str,
    client: &Client,
) -> Result<Vec<Now>, Error> {
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        tables.iter().map(|table| (&*table.schema, &*table.name)).unzip();
    let question = include_str!("../../sql/setup/identities.sql");
    let rows = client.query(question, &[&schemas, &names, &publication]).await?;
    let now = |row: &tokio_postgres::Row| {
        let identity: i8 = row.try_get(3)?;
        Ok(Now {
            name: TableName { schema: row.try_get(0)?, name: row.try_get(1)? },
            is_listed: row.try_get(2)?,
            identity: char::from(identity.to_le_bytes()[0]),
            is_in_others: row.try_get(4)?,
            roots: roots(row.try_get(5)?),
        })
    };
    rows.iter().map(now).collect()
}
