//! Checks of replica identities: does the log have the old values that the rules need.
//!
//! See <https://www.postgresql.org/docs/current/logical-replication-publication.html>. A partition
//! has an identity of its own: see `partitions`.

use super::catalog::Table;
use super::step::Step;
use super::{Code, Context, Finding, cure, generated, publication};
use crate::config::{Operations, Rule};
use crate::keys::{ColumnUse, Purpose};

/// Old values that would be missing, and writes of the application that would fail.
pub(super) fn check(context: &Context<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let published = publication::published(context);
    let writes = published.update || published.delete;
    for rule in &context.config.rules {
        let table = context.catalog.table(&rule.table);
        if let Some(table) = table.filter(|table| writes && table.is_publishable()) {
            let found = no_identity(context, table, rule);
            findings.extend(found.map(|one| one.of_rules([&rule.name])));
        }
    }
    for column in context.rules.column_uses() {
        let table = context.catalog.table(column.table);
        let table = table.filter(|table| table.columns.iter().any(|c| c.name == column.column));
        let is_unknown =
            |table: &&Table| table.is_publishable() && !table.identifies(column.column);
        if let Some(table) = table.filter(is_unknown) {
            let found = unknown_old(&column).map(|one| one.of_rules([column.rule]));
            findings.extend(found.map(|one| generated::cured_by_full(context, table, one)));
        }
    }
    findings
}

/// A table that cannot be updated while it is published. Of its partitions see `partitions`.
fn no_identity(context: &Context<'_>, table: &Table, rule: &Rule) -> Option<Finding> {
    let bare = Some(&table.relation).filter(|one| one.kind == 'r' && !one.has_identity())?;
    let name = bare.table_name();
    let message = format!(
        "`{name}` has no replica identity: the application's own UPDATE and DELETE fail while they \
         are published"
    );
    let finding = Finding::error(Code::NoIdentity, message).at(&rule.table_at);
    let finding =
        finding.hint("a primary key is an identity, too, if that is enough for the rules");
    Some(generated::cured_by_full(context, table, finding))
}

/// Whether an error of this check is cured by a full identity of the table.
pub(super) fn needs_full(context: &Context<'_>, table: &Table) -> bool {
    let name = table.relation.table_name();
    // A column that is not there, such as one that was renamed, has a finding of its own.
    let is_there = |name: &str| table.columns.iter().any(|column| column.name == name);
    let uses = context.rules.column_uses_of(&name);
    let uses = uses.filter(|column| is_there(column.column));
    let mut unknown = uses.filter(|column| !table.identifies(column.column));
    let is_missing = table.holders().any(|relation| !relation.has_identity());
    let is_unknown = unknown.any(|column| unknown_old(&column).is_some_and(|one| one.is_error()));
    (is_missing || is_unknown) && generated::forbids_full(context, table).is_none()
}

/// Whether the replica identity is full, or will be once its errors are cured.
pub(super) fn is_full(context: &Context<'_>, table: &Table) -> bool {
    table.family().any(|relation| relation.identity == 'f') || needs_full(context, table)
}

/// Decides whether a table may be published; `setup`, `setup --print` and `check` all go by it.
/// Gives the steps to take before, or why it must not be, since the application's own UPDATE and
/// DELETE of it would fail whatever is done here.
pub(super) fn publishing(context: &Context<'_>, table: &Table) -> Result<Vec<Step>, String> {
    let shown = table.relation.table_name();
    let mut steps = Vec::new();
    if let Some(finding) = generated::identity(context, table) {
        if finding.steps.is_empty() {
            return Err(finding.hint.unwrap_or(finding.message));
        }
        steps = finding.steps;
    }
    let writes = publication::published(context);
    let mut holders = table.holders().filter(|_| writes.update || writes.delete);
    if holders.any(|relation| !relation.has_identity()) {
        if let Some(why) = generated::forbids_full(context, table) {
            return Err(format!("`{shown}` has no replica identity, and {why}"));
        }
        steps.extend(cure::full_identity(table));
    }
    Ok(steps)
}

/// What follows for a rule if the old value of a column is not in the log. A full identity cures
/// it.
fn unknown_old(column: &ColumnUse<'_>) -> Option<Finding> {
    let (name, shown) = (column.column, column.table);
    let Operations { update, delete, .. } = column.operations;
    let place = format!("`{name}` is not in the replica identity of `{shown}`");
    match column.purpose {
        Purpose::Key { old: true, .. } if !column.immutable && (update || delete) => {
            let message = format!(
                "{place}: Postgres does not send its old value with an UPDATE or DELETE, so that \
                 `*` takes its place in the key, and too many keys go"
            );
            let finding = Finding::error(Code::ReplicaIdentity, message).at(column.at);
            let hint = format!(
                "if `{name}` never changes, `immutable = [\"{name}\"]` in rule `{}` will do, too",
                column.rule
            );
            Some(finding.hint(hint))
        }
        Purpose::Key { old: true, .. } if delete => {
            let message = format!("{place}: with a DELETE `*` takes its place in this key");
            Some(Finding::warning(Code::DeleteWidens, message).at(column.at))
        }
        Purpose::Changed if update && !column.immutable => {
            let message = format!("{place}: every UPDATE counts as a change of it");
            Some(Finding::warning(Code::ChangedUnknown, message).at(column.at))
        }
        Purpose::When { old: true, .. } if !column.immutable && (update || delete) => {
            let message = format!(
                "{place}: Postgres does not send its old value with an UPDATE or DELETE, and \
                 `when` counts as true where it depends on it"
            );
            Some(Finding::warning(Code::ConditionUnknown, message).at(column.at))
        }
        Purpose::Key { .. } | Purpose::Changed | Purpose::When { .. } => None,
    }
}
