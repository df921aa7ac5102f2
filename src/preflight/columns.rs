//! Column lists: which columns of a table the publication needs, and what that spares.
//!
//! A list must have the whole replica identity, or the application's own UPDATE and DELETE fail; so
//! there is none for a table that is FULL or will be. Nor for tables with partitions or heirs:
//! those have identities of their own, and more of them may come
//! (<https://www.postgresql.org/docs/current/logical-replication-col-lists.html>).

use super::catalog::Table;
use super::part::Part;
use super::rows::{self, Existing};
use super::{Context, Finding, VERSION_PARTS, cure, identity};

/// From this part of the average row on the saving is worth a word about a publication that is
/// there already, in percent.
const WORTH_PERCENT: i64 = 50;

/// The columns that the rules and the replica identity need of a table, in its own order; `None` if
/// there is to be no list.
pub(super) fn wanted<'a>(context: &Context<'_>, table: &'a Table) -> Option<Vec<&'a str>> {
    let is_wanted = context.config.postgres.narrow && context.version >= VERSION_PARTS;
    if !is_wanted || !table.is_alone() || is_full(context, table) {
        return None;
    }
    let name = table.relation.table_name();
    let uses: Vec<_> = context.rules.column_uses().filter(|used| *used.table == name).collect();
    let is_wanted = |column: &str| {
        table.relation.identifies(column) || uses.iter().any(|used| used.column == column)
    };
    let stored = || table.columns.iter().filter(|column| !column.is_generated);
    let names = stored().map(|column| column.name.as_str());
    let mut names: Vec<&str> = names.filter(|column| is_wanted(column)).collect();
    if names.is_empty() {
        // A list has at least one.
        names.extend(stored().next().map(|column| column.name.as_str()));
    }
    let generated = table.columns.iter().any(|one| one.is_generated && is_wanted(&one.name));
    (!names.is_empty() && names.len() < stored().count() && !generated).then_some(names)
}

/// Whether the replica identity is full, or will be once its errors are cured.
pub(super) fn is_full(context: &Context<'_>, table: &Table) -> bool {
    table.family().any(|relation| relation.identity == 'f') || identity::needs_full(context, table)
}

/// The same, and the columns of a list that is there.
pub(super) fn widened<'a>(context: &Context<'_>, table: &'a Table) -> Option<Vec<&'a str>> {
    let wanted = wanted(context, table)?;
    let listed = table.published_columns.as_deref().unwrap_or_default();
    let stored = table.columns.iter().filter(|column| !column.is_generated);
    let is_kept = |name: &str| wanted.contains(&name) || listed.iter().any(|one| one == name);
    let kept: Vec<&str> =
        stored.clone().map(|column| column.name.as_str()).filter(|name| is_kept(name)).collect();
    (kept.len() < stored.count()).then_some(kept)
}

/// Whether the publication has less than all of a table, or will have once it is made.
pub(super) fn is_limited(context: &Context<'_>, table: &Table) -> bool {
    match (&context.catalog.publication, &table.published_columns) {
        (None, _) => wanted(context, table).is_some(),
        (Some(_), Some(listed)) => {
            table.columns.iter().any(|one| !one.is_generated && !listed.contains(&one.name))
        }
        (Some(_), None) => false,
    }
}

/// What a list publishes, and what it spares as far as the server's statistics know.
pub(super) fn saving(table: &Table, names: &[&str]) -> String {
    let count = format!("{} of {} columns of", names.len(), table.columns.len());
    let name = table.relation.table_name();
    match percent(table, names) {
        Some(percent) => format!("{count} `{name}`, {percent} % less of an average row"),
        None => format!("{count} `{name}`"),
    }
}

/// The part of the average row that a list leaves out; `None` where there are no statistics.
fn percent(table: &Table, names: &[&str]) -> Option<i64> {
    let widths = table.columns.iter().map(|column| Some((column.name.as_str(), column.width?)));
    let widths = widths.collect::<Option<Vec<_>>>()?;
    let all: i64 = widths.iter().map(|(_, width)| width).sum();
    let kept = widths.iter().filter(|(name, _)| names.contains(name));
    let kept: i64 = kept.map(|(_, width)| width).sum();
    (100 * (all - kept)).checked_div(all)
}

/// Advice for a table that the publication has whole: a list would spare most of it.
pub(super) fn advice(context: &Context<'_>, table: &Table) -> Option<Finding> {
    let publication = &context.config.postgres.publication;
    let is_foreign = rows::existing(table) == Existing::Foreign;
    if !table.is_listed || !table.relation.is_published || is_foreign {
        return None;
    }
    let names = wanted(context, table).filter(|_| !is_limited(context, table))?;
    percent(table, &names).filter(|percent| *percent >= WORTH_PERCENT)?;
    let message = format!(
        "publication `{publication}` publishes all of `{}`; the rules need {}",
        table.relation.table_name(),
        saving(table, &names)
    );
    let part = Part::narrowest(context, table);
    let advice = Finding::info("columns_unneeded", message);
    let advice = advice.sql(cure::set_part(publication, table, &part));
    Some(part.priced(advice, &cure::set_part(publication, table, &Part::WHOLE)))
}
