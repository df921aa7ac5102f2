//! The steps from a table as it is to the table as it is [wanted](super::wanted).

use super::catalog::{Column, Table};
use super::step::Step;
use super::wanted::Before;
use super::{Context, Finding, cure};

/// Gives the steps to run before a table is published, or says why it must not be, since the
/// application's own UPDATE and DELETE of it would fail whatever is done here. `setup`,
/// `setup --print` and `check` all go by it.
pub(super) fn before_publishing<'a>(
    context: &'a Context<'_>,
    table: &Table,
) -> Result<Vec<Step>, &'a str> {
    let publishing = context.wanted.goal(table).publishing.as_ref();
    let Before { generated, full } = *publishing.map_err(String::as_str)?;
    let mut steps = Vec::new();
    if generated {
        steps.extend(cure::set_generated(&context.config.postgres.publication));
    }
    if full {
        steps.extend(cure::full_identity(table));
    }
    Ok(steps)
}

/// A finding with a full identity as its cure, after what has to be run first.
pub(super) fn cured_by_full(context: &Context<'_>, table: &Table, finding: Finding) -> Finding {
    let goal = context.wanted.goal(table);
    if let Some(why) = &goal.forbids_full {
        return finding.hint(why);
    }
    let mut steps = Vec::new();
    // Each finding has all of its own cure: whoever runs only this one must not be worse off.
    if table.has_column_list {
        steps.extend(to_whole(context, table));
    } else if !goal.unsent.is_empty() {
        steps.extend(cure::set_generated(&context.config.postgres.publication));
    }
    steps.extend(cure::full_identity(table));
    finding.cure(steps)
}

/// Lets the publication have all of a table. A list may have a generated column that the replica
/// identity has, and that the publication has without a list only if it has all of them.
pub(super) fn to_whole(context: &Context<'_>, table: &Table) -> Vec<Step> {
    let (name, goal) = (&context.config.postgres.publication, context.wanted.goal(table));
    let is_needed = |column: &&Column| {
        let listed = table.published_columns.as_ref();
        goal.is_full
            || table.family().any(|relation| relation.identifies(&column.name))
            || listed.is_some_and(|listed| listed.contains(&column.name))
    };
    let mut stored = goal.unsent.iter().copied().filter(|column| !column.is_virtual);
    let mut steps = Vec::new();
    if stored.any(|column| is_needed(&column)) {
        steps.extend(cure::set_generated(name));
    }
    steps.extend(cure::set_whole(name, table));
    steps
}
