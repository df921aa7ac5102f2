//! Checks of generated columns, which a publication may have since version 18.
//!
//! Stored ones are sent if it has `publish_generated_columns = stored`, virtual ones never. With
//! that came a refusal: of every UPDATE and DELETE of a table whose replica identity has a
//! generated column that is not published, as a full one may (`pub_contains_invalid_column` in
//! publicationcmds.c).
//!
//! See <https://www.postgresql.org/docs/18/logical-replication-gencols.html>.

use super::catalog::{Column, FullRefused, Table};
use super::step::Step;
use super::{Code, Context, Finding, cure, identity, publication};
use crate::keys::ColumnUse;

/// The first version that publishes generated columns, and refuses writes without them.
const VERSION_MIN: i32 = 180_000;

/// A replica identity, as it is or will be, with a generated column that is not published.
pub(super) fn identity(context: &Context<'_>, table: &Table) -> Option<Finding> {
    let writes = publication::published(context);
    if !writes.update && !writes.delete {
        return None;
    }
    let is_full = identity::is_full(context, table);
    let is_identified = |column: &&Column| {
        is_full || table.family().any(|relation| relation.identifies(&column.name))
    };
    let left_out = left_out(context, table).find(is_identified)?;
    let (shown, name) = (table.relation.table_name(), &left_out.name);
    let message = format!(
        "`{shown}` has the generated column `{name}`, which its replica identity has or must have: \
         published without it, the server refuses the application's own UPDATE and DELETE"
    );
    let finding = Finding::error(Code::GeneratedIdentity, message);
    let finding = finding.of_rules(context.rules_of(&shown));
    Some(if left_out.is_virtual {
        finding.hint(format!(
            "`{name}` is virtual: make it `stored`, or give `{shown}` another identity than a full \
             one"
        ))
    } else {
        finding.cure(cure::set_generated(&context.config.postgres.publication))
    })
}

/// Whether a publication that is made has to have stored generated columns.
pub(super) fn is_needed(context: &Context<'_>) -> bool {
    // Few tables have any, and what is asked of those that have goes through all rules.
    let is_needed = |table: &Table| {
        let mut stored = table.columns.iter().filter(|column| is_stored(column)).peekable();
        if stored.peek().is_none() {
            return false;
        }
        let name = table.relation.table_name();
        let is_full = identity::is_full(context, table);
        stored.any(|column| {
            let mut uses = context.rules.column_uses_of(&name);
            is_full
                || table.family().any(|relation| relation.identifies(&column.name))
                || uses.any(|used| used.column == column.name)
        })
    };
    context.version >= VERSION_MIN && context.catalog.tables.iter().any(is_needed)
}

/// That a generated column which a rule names is not sent.
pub(super) fn unpublished(
    context: &Context<'_>,
    known: &Column,
    column: &ColumnUse<'_>,
) -> Finding {
    let mut message =
        format!("`{}` of `{}` is generated, and not published", column.column, column.table);
    if known.is_virtual {
        message.push_str(": it is virtual, and no publication can have it");
    }
    let finding = Finding::error(Code::GeneratedColumn, message).at(column.at);
    let hint = "name the columns that it is generated from";
    if context.version < VERSION_MIN {
        finding.hint(format!("{hint}; since version 18 a publication can have it, too"))
    } else if known.is_virtual {
        finding.hint(hint)
    } else {
        finding.cure(cure::set_generated(&context.config.postgres.publication))
    }
}

/// Why the server would refuse the application's writes after a full identity, and what cures that:
/// a virtual column, or what another publication, not walsweep's to alter, has of the table.
pub(super) fn forbids_full(context: &Context<'_>, table: &Table) -> Option<String> {
    let mut columns = table.columns.iter();
    if let Some(column) = columns.find(|column| column.is_virtual && context.version >= VERSION_MIN)
    {
        return Some(format!(
            "a full identity would have `{}`, which is virtual, and the server would refuse UPDATE \
             and DELETE; take an identity by index, or `immutable` columns",
            column.name
        ));
    }
    let FullRefused { publication, name, column } = table.full_refused.as_ref()?;
    let (what, cure) = match column {
        None => (
            "has a column list for it".to_owned(),
            "publish the whole table there, without a list".to_owned(),
        ),
        Some(column) => (
            format!("does not publish its generated column `{column}`"),
            format!("set `publish_generated_columns = stored` for `{publication}`"),
        ),
    };
    Some(format!(
        "with a full identity of `{name}` the server would refuse the application's own UPDATE and \
         DELETE: publication `{publication}` {what}; {cure}, take an identity by index, or \
         `immutable` columns"
    ))
}

/// A finding with a full identity as its cure, after what has to be run first.
pub(super) fn cured_by_full(context: &Context<'_>, table: &Table, finding: Finding) -> Finding {
    if let Some(why) = forbids_full(context, table) {
        return finding.hint(why);
    }
    let name = &context.config.postgres.publication;
    let mut steps = Vec::new();
    // Each finding has all of its own cure: whoever runs only this one must not be worse off.
    if table.has_column_list {
        steps.extend(whole(context, table));
    } else if left_out(context, table).next().is_some() {
        steps.extend(cure::set_generated(name));
    }
    steps.extend(cure::full_identity(table));
    finding.cure(steps)
}

/// Lets the publication have all of a table. A list may have a generated column that the replica
/// identity has, and that the publication has without a list only if it has all of them.
pub(super) fn whole(context: &Context<'_>, table: &Table) -> Vec<Step> {
    let name = &context.config.postgres.publication;
    let is_full = identity::is_full(context, table);
    let is_needed = |column: &Column| {
        let listed = table.published_columns.as_ref();
        is_full
            || table.family().any(|relation| relation.identifies(&column.name))
            || listed.is_some_and(|listed| listed.contains(&column.name))
    };
    let mut stored = left_out(context, table).filter(|column| !column.is_virtual);
    let mut steps = Vec::new();
    if stored.any(is_needed) {
        steps.extend(cure::set_generated(name));
    }
    steps.extend(cure::set_whole(name, table));
    steps
}

/// The generated columns that are not published, or will not be once the publication is made, on a
/// server for which that matters; those that nothing cures first.
fn left_out<'a>(context: &Context<'_>, table: &'a Table) -> impl Iterator<Item = &'a Column> {
    let publication = context.catalog.publication.as_ref();
    // What is asked of all tables is not asked for one that it does not matter for.
    let publishes_stored = !table.columns.iter().any(is_stored)
        || publication.map_or_else(
            || is_needed(context),
            |publication| publication.pubgencols.as_deref() == Some("s"),
        );
    let matters = context.version >= VERSION_MIN;
    let virtuals = table.columns.iter().filter(move |column| matters && column.is_virtual);
    let stored = table
        .columns
        .iter()
        .filter(move |column| matters && !publishes_stored && is_stored(column));
    virtuals.chain(stored)
}

fn is_stored(column: &Column) -> bool {
    column.is_generated && !column.is_virtual
}
