//! Checks of replica identities: does the log have the old values that the rules need.
//!
//! See <https://www.postgresql.org/docs/current/logical-replication-publication.html>. A partition
//! has an identity of its own: see `partitions`.

use super::catalog::{Relation, Table};
use super::wanted::needs_old;
use super::{Code, Context, Finding, difference};
use crate::config::{Operations, Rule};
use crate::keys::{ColumnUse, Purpose};

/// Old values that would be missing, and writes of the application that would fail.
pub(super) fn check(context: &Context<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let writes = context.wanted.writes();
    for rule in &context.config.rules {
        let table = context.catalog.table(&rule.table);
        if let Some(table) = table.filter(|table| writes && table.is_publishable()) {
            let found = no_identity(context, table, rule);
            findings.extend(found.map(|one| one.of_rules([&rule.name])));
            findings.extend(full_refused(table).map(|one| one.at(&rule.table_at)));
        }
    }
    for column in context.rules.column_uses() {
        let table = context.catalog.table(column.table);
        let table = table.filter(|table| table.columns.iter().any(|c| c.name == column.column));
        let is_unknown =
            |table: &&Table| table.is_publishable() && !table.identifies(column.column);
        if let Some(table) = table.filter(is_unknown) {
            let found = unknown_old(&column).map(|one| one.of_rules([column.rule]));
            findings.extend(found.map(|one| difference::cured_by_full(context, table, one)));
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
    Some(difference::cured_by_full(context, table, finding))
}

/// A table with a full identity that another publication does not go with: whoever came later did
/// not see the other.
fn full_refused(table: &Table) -> Option<Finding> {
    let refused = table.full_refused.as_ref()?;
    let name = &refused.name;
    let is_full = |one: &&Relation| one.identity == 'f' && one.table_name().to_string() == *name;
    table.family().find(is_full)?;
    let (what, cure) = refused.told();
    let message = format!(
        "every UPDATE and DELETE of `{name}` fails: it has a full replica identity, and \
         publication `{}` {what}",
        refused.publication
    );
    let hint = format!("{cure}; or give `{name}` another replica identity");
    Some(Finding::warning(Code::FullIdentityRefused, message).hint(hint))
}

/// Tells what follows for a rule if the old value of a column is not in the log. A full identity
/// cures it.
fn unknown_old(column: &ColumnUse<'_>) -> Option<Finding> {
    let (name, shown) = (column.column, column.table);
    let Operations { update, delete, .. } = column.operations;
    let place = format!("`{name}` is not in the replica identity of `{shown}`");
    match column.purpose {
        Purpose::Key { .. } if needs_old(column) => {
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
