//! Publications that somebody narrowed by hand: only some columns or rows of a table.
//!
//! `setup` publishes whole tables. A column list or a row filter is for later migrations to trip
//! over: a column that one of them names is neither dropped nor retyped, and the application's own
//! UPDATE and DELETE fail once the replica identity is larger than the list, or loses a column of
//! the filter. What a list leaves out is unknown, and a rule that names it is told. What a filter
//! leaves out arrives not at all: no key is removed for it, so that a filter is an error
//! (<https://www.postgresql.org/docs/current/logical-replication-row-filter.html>).

use super::catalog::{Publication, Table};
use super::{Code, Context, Finding, difference};
use crate::config::{Rule, Source};
use crate::keys::ColumnUse;
use crate::words::counted;

/// The price of a list or a filter, in one sentence.
const COSTS: &str = "a column that it names cannot be dropped or retyped, and the application's \
                     own UPDATE and DELETE fail once the replica identity does not fit it";

/// A row filter on a table of which a rule looks at rows: it may hide one that is needed.
pub(super) fn row_filter(context: &Context<'_>, table: &Table, rule: &Rule) -> Option<Finding> {
    let operations = rule.operations;
    let looks_at_rows = operations.insert || operations.update || operations.delete;
    if !table.has_row_filter || !looks_at_rows {
        return None;
    }
    let (name, shown) = (&context.config.postgres.publication, table.relation.table_name());
    let message = format!(
        "publication `{name}` has a row filter for `{shown}`: no key is removed for the rows that \
         it leaves out; {COSTS}"
    );
    Some(Finding::error(Code::RowFilter, message).cure(difference::to_whole(context, table)))
}

/// A column list with less than the replica identity, as it is or will be; with a full one the
/// server allows no list, not even of all columns.
pub(super) fn column_list(context: &Context<'_>, table: &Table) -> Option<Finding> {
    let listed = table.published_columns.as_ref().filter(|_| context.wanted.writes())?;
    let mut left_out = table
        .columns
        .iter()
        .filter(|column| !listed.contains(&column.name) && !column.is_generated)
        .map(|column| column.name.as_str());
    let (name, shown) = (&context.config.postgres.publication, table.relation.table_name());
    let place = format!("publication `{name}` has a column list for `{shown}`");
    let is_identified = |column: &&str| table.family().any(|one| one.identifies(column));
    let message = if let Some(column) = left_out.clone().find(is_identified) {
        format!(
            "{place} without `{column}`, which is in the replica identity: the application's own \
             UPDATE and DELETE fail"
        )
    } else if context.wanted.goal(table).gets_full && table.has_column_list {
        let without = left_out.next().map(|column| format!(" without `{column}`"));
        let without = without.unwrap_or_default();
        format!(
            "{place}{without}, and the rules need the full replica identity: with both, the \
             application's own UPDATE and DELETE would fail"
        )
    } else if table.has_column_list && table.holders().any(|one| one.identity == 'f') {
        format!(
            "{place}, and its replica identity is full, which goes with no list: the application's \
             own UPDATE and DELETE fail"
        )
    } else {
        return None;
    };
    Some(Finding::error(Code::ColumnList, message).cure(difference::to_whole(context, table)))
}

/// A column that a rule names and the list leaves out.
pub(super) fn unlisted(context: &Context<'_>, table: &Table, column: &ColumnUse<'_>) -> Finding {
    let (name, shown) = (&context.config.postgres.publication, column.table);
    let message =
        format!("publication `{name}` has a column list for `{shown}` without `{}`", column.column);
    let finding = Finding::error(Code::ColumnNotPublished, message).at(column.at);
    finding.cure(difference::to_whole(context, table))
}

/// A column list that has all that the rules need, for now.
pub(super) fn costs(
    context: &Context<'_>,
    publication: &Publication,
    table: &Table,
) -> Option<Finding> {
    let is_narrow = table.is_listed && !publication.puballtables && table.has_column_list;
    if !is_narrow || !table.relation.is_published {
        return None;
    }
    let (name, shown) = (&context.config.postgres.publication, table.relation.table_name());
    let listed = table.published_columns.iter().flatten().count();
    let message = format!(
        "publication `{name}` has a column list for `{shown}`, {listed} of {}: {COSTS}",
        counted(table.columns.len(), "column")
    );
    let finding = Finding::warning(Code::Narrowed, message).of_rules(context.rules_of(&shown));
    let finding = finding.hint("publish the whole table");
    Some(finding.cure(difference::to_whole(context, table)).done_by_setup())
}

impl Context<'_> {
    /// The rules that look at a table, with what they look at.
    pub(super) fn table_rules(&self) -> impl Iterator<Item = (&Rule, &Table)> {
        let rules = self.config.rules.iter().filter(|rule| rule.source == Source::Table);
        rules.filter_map(|rule| Some((rule, self.catalog.table(&rule.table)?)))
    }
}
