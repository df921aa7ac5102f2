//! Checks of what partitions do to the changes of a partitioned table.
//!
//! The log has the old values that the partition's replica identity says; pgoutput labels them by
//! the identity of the table under whose name it publishes. All of this was seen in the stream of a
//! server, and `logicalrep_write_update` and `pgoutput_truncate` (proto.c, pgoutput.c) say why.

use super::catalog::{Relation, Table};
use super::{Code, Context, Finding, difference};
use crate::config::Rule;

/// Tells what partitions change for each rule on a partitioned table.
pub(super) fn check(context: &Context<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for rule in &context.config.rules {
        let table = context.catalog.table(&rule.table);
        if let Some(table) = table.filter(|table| table.is_partitioned()) {
            let found = [
                bare(context, table).or_else(|| mixed_identity(context, table, rule)),
                moved(rule),
                truncated(rule),
            ];
            let found = found.into_iter().flatten();
            findings.extend(found.map(|one| one.at(&rule.table_at).of_rules([&rule.name])));
        }
    }
    findings
}

/// A partition without any identity, as one that was added without a primary key: published, it
/// cannot be updated.
fn bare(context: &Context<'_>, table: &Table) -> Option<Finding> {
    if !context.wanted.writes() {
        return None;
    }
    let is_bare = |one: &&Relation| one.is_logged() && !one.has_identity();
    let bare = table.partitions.iter().find(is_bare)?;
    let message = format!(
        "partition `{}` has no replica identity: the application's own UPDATE and DELETE of its \
         rows fail while they are published",
        bare.table_name()
    );
    let finding = Finding::error(Code::PartitionIdentity, message);
    let hint = "give it one, and let whatever adds partitions do the same";
    Some(difference::cured_by_full(context, table, finding.hint(hint)))
}

/// A partition whose identity has less than the partitioned table's: the rest arrives as NULL,
/// which cannot be told from a value. That would be so for a partition that is added later, too.
fn mixed_identity(context: &Context<'_>, table: &Table, rule: &Rule) -> Option<Finding> {
    if !rule.operations.update && !rule.operations.delete {
        return None;
    }
    let names = || table.columns.iter().map(|column| column.name.as_str());
    let less = table.partitions.iter().filter(|one| one.is_logged()).find(|partition| {
        names().any(|name| table.relation.identifies(name) && !partition.identifies(name))
    });
    let root = table.relation.table_name();
    if let Some(less) = less {
        let message = format!(
            "partition `{}` has a smaller replica identity than `{root}`: old values arrive as \
             NULL",
            less.table_name()
        );
        let finding = Finding::error(Code::PartitionIdentity, message);
        return Some(difference::cured_by_full(context, table, finding));
    }
    let message = format!(
        "a partition that is added to `{root}` later does not inherit its replica identity: old \
         values of its rows would arrive as NULL"
    );
    let hint = "add `alter table … replica identity full` to whatever adds partitions";
    let finding = Finding::warning(Code::PartitionAdded, message).hint(hint);
    (table.relation.identity == 'f').then_some(finding)
}

/// A row that moves to another partition is deleted here and inserted there.
fn moved(rule: &Rule) -> Option<Finding> {
    let operations = rule.operations;
    if !operations.update || operations.insert && operations.delete {
        return None;
    }
    let message = format!(
        "an UPDATE that moves a row of `{}` to another partition arrives as a DELETE and an INSERT",
        rule.table
    );
    let hint = "let the rule look at `insert` and `delete`, too";
    Some(Finding::warning(Code::PartitionMove, message).hint(hint))
}

/// pgoutput leaves it out when it publishes partitions under the name of their table.
fn truncated(rule: &Rule) -> Option<Finding> {
    if !rule.operations.truncate {
        return None;
    }
    let message =
        format!("a TRUNCATE of one partition of `{}` is not published: its keys stay", rule.table);
    let hint =
        "`walsweep sweep` removes keys by hand; DETACH and DROP of a partition are swept for";
    Some(Finding::warning(Code::PartitionTruncate, message).hint(hint))
}
