//! What is published of a table: which columns and which rows, what that spares and what it costs.

use super::catalog::Table;
use super::rows::{self, Existing, Filter};
use super::{Context, Finding, columns, cure};

/// A part of a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Part<'a> {
    /// Its columns; `None` for all.
    pub(super) columns: Option<Vec<&'a str>>,
    /// Its rows; `None` for all.
    pub(super) filter: Option<Filter>,
}

impl<'a> Part<'a> {
    /// All of it.
    pub(super) const WHOLE: Part<'static> = Part { columns: None, filter: None };

    /// What the rules need of a table that is not published.
    pub(super) fn wanted(context: &Context<'_>, table: &'a Table) -> Part<'a> {
        let filter = rows::wanted(context, table);
        Part { columns: columns::wanted(context, table), filter }
    }

    /// What is published, and what the rules need beside it. A filter that walsweep wrote becomes
    /// the one that the rules allow; another one's is gone.
    pub(super) fn kept(context: &Context<'_>, table: &'a Table) -> Part<'a> {
        let is_own = matches!(rows::existing(table), Existing::Own(_));
        let filter = rows::wanted(context, table).filter(|_| is_own);
        Part { columns: columns::widened(context, table), filter }
    }

    /// The least that may be published, but for columns of a list that is there.
    pub(super) fn narrowest(context: &Context<'_>, table: &'a Table) -> Part<'a> {
        let columns = if columns::is_limited(context, table) {
            columns::widened(context, table)
        } else {
            columns::wanted(context, table)
        };
        let is_free = rows::existing(table) != Existing::Foreign;
        Part { columns, filter: rows::wanted(context, table).filter(|_| is_free) }
    }

    /// What it is and spares; `None` for all of the table.
    pub(super) fn saving(&self, context: &Context<'_>, table: &Table) -> Option<String> {
        let columns = self.columns.as_ref().map(|names| columns::saving(table, names));
        let rows = self.filter.as_ref().map(|filter| filter.saving(context, table));
        let both: Vec<String> = columns.into_iter().chain(rows).collect();
        (!both.is_empty()).then(|| both.join("; "))
    }

    /// The finding with what this part costs whose cure publishes it.
    pub(super) fn priced(&self, finding: Finding, undo: &str) -> Finding {
        priced(&[(self.columns.is_some(), self.filter.is_some())], finding, undo)
    }
}

/// The finding with what its cure costs, and how that is undone. For each table whether it is
/// published with a list of columns, and whether with a row filter.
pub(super) fn priced(parts: &[(bool, bool)], finding: Finding, undo: &str) -> Finding {
    let (has_list, has_filter) = (|(list, _): &_| *list, |(_, filter): &_| *filter);
    let (what, identity) = match (parts.iter().any(has_list), parts.iter().any(has_filter)) {
        (false, false) => return finding,
        (true, false) => ("listed", "larger than the list"),
        (false, true) => ("filtered by", "without it"),
        (true, true) => {
            ("listed or filtered by", "larger than a list or without a filter's column")
        }
    };
    let undo = undo.replace('\n', " ");
    finding.price(format!(
        "a column that is {what} cannot be dropped or retyped, and UPDATE and DELETE fail after a \
         replica identity {identity} (`postgres.narrow = false` avoids it); undo: {undo};"
    ))
}

/// What is still narrow though whole tables are asked for. A row filter of somebody else's stays,
/// and with it the table's columns.
pub(super) fn widening(context: &Context<'_>, table: &Table) -> Option<Finding> {
    let name = &context.config.postgres.publication;
    let is_published = table.is_listed && table.relation.is_published && table.is_alone();
    if context.config.postgres.narrow || !is_published {
        return None;
    }
    let existing = rows::existing(table);
    let is_narrow = columns::is_limited(context, table) || rows::is_own(context, table);
    if existing == Existing::Foreign || !is_narrow {
        return None;
    }
    let message = format!(
        "`postgres.narrow` is false, and publication `{name}` publishes a part of `{}`",
        table.relation.table_name()
    );
    let finding = Finding::info("narrowed", message);
    Some(finding.sql(cure::set_part(name, table, &Part::WHOLE)))
}
