//! Checks of the tables and columns that the rules name.

use super::catalog::{Name, Relation, Table};
use super::{Code, Context, Finding, likely, nearest};
use crate::config::{Rule, Source, TableName};
use crate::keys::ColumnUse;

/// Finds what is missing, and what has no changes in the log.
pub(super) fn check(context: &Context<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for rule in context.config.rules.iter().filter(|rule| rule.source == Source::Table) {
        match context.catalog.table(&rule.table) {
            None => findings.push(missing(context, rule).of_rules([&rule.name])),
            Some(table) => {
                let kinds = table.family().filter_map(|one| kind(table, one));
                let found = kinds.chain(inherited(table));
                let found = found.map(|one| one.at(&rule.table_at).of_rules([&rule.name]));
                findings.extend(found);
            }
        }
    }
    for column in context.rules.column_uses() {
        if let Some(table) = context.catalog.table(column.table) {
            findings.extend(missing_column(table, &column));
        }
    }
    findings
}

fn missing(context: &Context<'_>, rule: &Rule) -> Finding {
    let message = format!("there is no table `{}`", rule.table);
    let finding = Finding::error(Code::TableMissing, message).at(&rule.table_at);
    match likely(&rule.table, &context.catalog.other_tables) {
        Some(like) => finding.hint(format!("did you mean `{like}`?")),
        None => finding.hint(nothing_like(&context.catalog.other_tables, "table")),
    }
}

/// Says what to do about a table, or a materialized view, if no name of the database is like its
/// own.
pub(super) fn nothing_like(others: &[Name], noun: &str) -> String {
    /// Names that are shown, at most.
    const SHOWN_MAX: usize = 5;
    let shown = |other: &Name| {
        let Name { schema, name } = other;
        format!("`{}`", TableName { schema: schema.clone(), name: name.clone() })
    };
    let mut names: Vec<String> = others.iter().take(SHOWN_MAX).map(shown).collect();
    if others.len() > SHOWN_MAX {
        names.push("others".to_owned());
    }
    let there = if names.is_empty() {
        format!("no other {noun}")
    } else {
        format!("no {noun} of a name like it, but {}", names.join(", "))
    };
    format!(
        "this database has {there}: see that `postgres.url` names the right database; if it was \
         dropped or renamed, name another {noun}, or take the rule out"
    )
}

/// The tables that are suggested for those that are missing.
pub(super) fn meant(context: &Context<'_>) -> impl Iterator<Item = String> {
    let rules = context.config.rules.iter().filter(|rule| rule.source == Source::Table);
    let missing = rules.filter(|rule| context.catalog.table(&rule.table).is_none());
    missing.filter_map(|rule| likely(&rule.table, &context.catalog.other_tables))
}

/// Why the log has no changes of a table, or of one of its partitions.
fn kind(table: &Table, relation: &Relation) -> Option<Finding> {
    let what = match (relation.kind, relation.persistence) {
        ('r' | 'p', 'p') => return None,
        ('r' | 'p', 'u') => "an unlogged table",
        ('r' | 'p', _) => "a temporary table",
        ('v', _) => "a view",
        ('m', _) => "a materialized view",
        _ => "a foreign table",
    };
    let (name, root) = (relation.table_name(), table.relation.table_name());
    let of = if name == root { String::new() } else { format!(", a partition of `{root}`,") };
    let message = format!("`{name}`{of} is {what}: its changes are not in the log");
    let finding = Finding::error(Code::TableKind, message);
    Some(match relation.kind {
        'm' => finding.hint("name it with `materialized_view`"),
        _ if name != root => finding.hint(format!(
            "no key of its rows would be removed: detach it, or let rules name each of the other \
             partitions instead of `{root}`"
        )),
        _ => finding,
    })
}

/// Who reads a table reads the rows of those that inherit from it; their changes come under their
/// own names, unlike those of partitions
/// (<https://www.postgresql.org/docs/current/ddl-inherit.html>).
fn inherited(table: &Table) -> Option<Finding> {
    let (heir, name) = (table.heir.as_ref()?, table.relation.table_name());
    let message = format!(
        "`{heir}` inherits from `{name}`: who reads `{name}` sees its rows, and no rule looks at \
         their changes"
    );
    let hint = format!("add a rule for each table that inherits from `{name}`");
    Some(Finding::error(Code::Inheritance, message).hint(hint))
}

fn missing_column(table: &Table, column: &ColumnUse<'_>) -> Option<Finding> {
    if table.columns.iter().any(|known| known.name == column.column) {
        return None;
    }
    let names = table.columns.iter().map(|known| known.name.as_str());
    let message = format!("`{}` has no column `{}`", column.table, column.column);
    let finding =
        Finding::error(Code::ColumnMissing, message).at(column.at).of_rules([column.rule]);
    Some(match nearest(column.column, names.clone()) {
        Some(like) => finding.hint(format!("did you mean `{like}`?")),
        None => {
            let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
            finding.hint(format!(
                "add the column, or take it out of rule `{}` and `walsweep reload`; the columns \
                 that are there: {}",
                column.rule,
                names.join(", ")
            ))
        }
    })
}
