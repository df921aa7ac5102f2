//! Checks of the publication: does it publish all that the rules look at.

use super::catalog::{Publication, Table};
use super::memory::Memory;
use super::step::Step;
use super::wanted::Wanted;
use super::{Code, Context, Finding, cure, difference, generated, narrowed, slot};
use crate::config::Rule;
use crate::keys::ColumnUse;

/// Finds what is not published, or only in part.
pub(super) fn check(context: &Context<'_>) -> Vec<Finding> {
    let name = &context.config.postgres.publication;
    let tables = context.catalog.tables.iter();
    let mut findings: Vec<Finding> =
        tables.filter_map(|table| generated::identity(context, table)).collect();
    let Some(publication) = &context.catalog.publication else {
        findings.push(missing(context));
        return findings;
    };
    if publication.puballtables {
        let message = format!("publication `{name}` publishes every table");
        let all = Finding::info(Code::PublicationAllTables, message);
        findings.push(all.hint("one of the rules' tables alone spares the server the rest"));
    }
    findings.extend(foreign(context, publication));
    findings.extend(stranger(context, publication));
    for rule in &context.config.rules {
        findings.extend(operations(context, publication, rule));
    }
    for (rule, table) in context.table_rules() {
        let found =
            [membership(context, publication, table, rule), narrowed::column_list(context, table)];
        let found = found.into_iter().flatten();
        findings.extend(found.map(|one| one.at(&rule.table_at).of_rules([&rule.name])));
    }
    for column in context.rules.column_uses() {
        if let Some(table) = context.catalog.table(column.table) {
            let found = unpublished(context, publication, table, &column);
            findings.extend(found.map(|one| one.of_rules([column.rule])));
        }
    }
    for table in &context.catalog.tables {
        let costs = narrowed::costs(context, publication, table);
        // A list that is an error is told already.
        let is_told = |one: &Finding| findings.iter().any(|known| known.steps == one.steps);
        let news = costs.filter(|one| !is_told(one));
        findings.extend(news);
    }
    findings
}

/// That there is none.
fn missing(context: &Context<'_>) -> Finding {
    let name = &context.config.postgres.publication;
    let (mut tables, mut left, mut identities) = (Vec::new(), Vec::new(), Vec::new());
    for table in context.catalog.tables.iter().filter(|table| table.is_publishable()) {
        match difference::before_publishing(context, table) {
            Ok(before) => {
                identities.extend(before);
                tables.push(table);
            }
            Err(why) => left.push(left_out(table, why)),
        }
    }
    let Wanted { operations, has_generated, .. } = context.wanted;
    let created = cure::create_publication(name, &tables, operations, has_generated);
    let beside = slot::beside_new_publication(context).filter(|_| created.is_some());
    let message = format!("there is no publication `{name}`");
    // It is there first, with a comment in which what is changed next is remembered.
    let mut steps: Vec<Step> = created.into_iter().collect();
    if !steps.is_empty() {
        steps.extend(identities);
        steps.extend(cure::add_tables(name, &tables));
    }
    let missing = Finding::error(Code::PublicationMissing, message).cure(steps);
    let hints: Vec<String> = beside.into_iter().chain(left).collect();
    if hints.is_empty() { missing } else { missing.hint(hints.join("; ")) }
}

/// That a table is not published, and why.
fn left_out(table: &Table, why: &str) -> String {
    let shown = table.relation.table_name();
    format!(
        "`{shown}` is left out, for the application's own UPDATE and DELETE of it would fail: {why}"
    )
}

/// That it is not walsweep's. Whatever it lacks is then told, and left to whoever owns it.
fn foreign(context: &Context<'_>, publication: &Publication) -> Option<Finding> {
    if publication.memory().is_some() {
        return None;
    }
    let (name, owner) = (&context.config.postgres.publication, &publication.owner);
    let finding = if Memory::is_damaged(publication.comment.as_deref()) {
        let message = format!(
            "the comment on publication `{name}` of `{owner}` begins as walsweep's, and cannot be \
             read: it was cut off, or written by hand; `setup` and `teardown` go by nothing of it, \
             and neither alter nor drop the publication"
        );
        let hint = "write it again as it was, from a dump say; if no other walsweep reads the \
                    publication, this begins a new one, which does not know what `setup` changed";
        Finding::warning(Code::PublicationMemory, message).hint(hint)
    } else {
        let message = format!(
            "publication `{name}` of `{owner}` was not made by `walsweep setup`, which neither \
             alters nor drops it"
        );
        let hint = "if nobody else reads it, this hands it over to walsweep";
        Finding::info(Code::PublicationForeign, message).hint(hint)
    };
    let slot = &context.config.postgres.slot;
    let is_new = context.catalog.slot.is_none();
    let memory = if is_new { Memory::default().wanting(slot) } else { Memory::default() };
    Some(finding.cure(vec![cure::remember(name, publication.comment.as_deref(), memory)]))
}

/// That it bears walsweep's comment, and somebody owns it who has nothing to do with the tables: a
/// role that may create one can have made it in advance.
fn stranger(context: &Context<'_>, publication: &Publication) -> Option<Finding> {
    let (catalog, postgres) = (context.catalog, &context.config.postgres);
    let Publication { owner, owner_is_superuser, owner_owns, .. } = publication;
    let is_known = *owner_is_superuser || *owner_owns || catalog.tables.is_empty();
    let is_login = [&catalog.user, &postgres.endpoint.user].contains(&owner);
    if publication.memory().is_none() || is_known || is_login {
        return None;
    }
    let name = &postgres.publication;
    let message = format!(
        "publication `{name}` is of `{owner}`, who owns none of the rules' tables and is no \
         superuser, though its comment says that `walsweep setup` made it: whoever owns it may \
         take tables out, drop it, and write what `setup` and `teardown` read there"
    );
    let hint = "see who made it; a superuser may give it to the owner of the tables with `alter \
                publication … owner to …`, or drop it, and `walsweep setup` makes it anew";
    Some(Finding::warning(Code::PublicationOwner, message).hint(hint))
}

fn operations(context: &Context<'_>, publication: &Publication, rule: &Rule) -> Option<Finding> {
    let name = &context.config.postgres.publication;
    let (wanted, given) = (rule.operations, publication.operations());
    if wanted.union(given) == given {
        return None;
    }
    let given = cure::operation_names(given);
    let missing = cure::operation_names(wanted).into_iter().filter(|one| !given.contains(one));
    let missing = missing.map(|one| format!("`{one}`")).collect::<Vec<_>>().join(", ");
    let message =
        format!("rule `{}` looks at {missing}, which publication `{name}` leaves out", rule.name);
    let finding = Finding::error(Code::OperationNotPublished, message).at(&rule.at);
    let finding = finding.of_rules([&rule.name]);
    let mut unwritable = context.catalog.unidentified.clone();
    let mut steps = Vec::new();
    for table in context.catalog.tables.iter().filter(|table| is_in(table)) {
        // A list, or a filter, that the identity does not go with, was no harm so far.
        if table.has_column_list || table.has_row_filter {
            steps.extend(difference::to_whole(context, table));
        }
        match difference::before_publishing(context, table) {
            Ok(before) => steps.extend(before),
            Err(_) => unwritable.push(table.relation.table_name().to_string()),
        }
    }
    if !unwritable.is_empty() {
        return Some(finding.hint(format!(
            "with it the application's own UPDATE and DELETE of `{}` would fail, which the \
             publication has, too: it has no replica identity, or one that does not go with what \
             is published of it; give it another one first, or take it out",
            unwritable.join("`, `")
        )));
    }
    steps.extend(cure::set_publish(name, context.wanted.operations));
    Some(finding.cure(steps))
}

/// Whether changes of a table are published, be it under the names of its partitions.
fn is_in(table: &Table) -> bool {
    table.family().any(|relation| relation.is_published)
}

/// Whether the changes of a table arrive, under its name, with all rows.
fn membership(
    context: &Context<'_>,
    publication: &Publication,
    table: &Table,
    rule: &Rule,
) -> Option<Finding> {
    let name = &context.config.postgres.publication;
    let shown = table.relation.table_name();
    if !table.is_publishable() {
        return None;
    }
    if table.relation.is_published {
        return narrowed::row_filter(context, table, rule);
    }
    if let Some(root) = &table.published_as {
        let message =
            format!("`{shown}` is a partition whose changes are published as those of `{root}`");
        return Some(
            Finding::error(Code::PartitionLeaf, message)
                .hint(format!("let the rule name `{root}`")),
        );
    }
    let mut logged = table.partitions.iter().filter(|one| one.is_logged()).peekable();
    let all = logged.peek().is_some() && logged.all(|one| one.is_published);
    let by_leaf = table.is_listed || publication.puballtables || all;
    if table.is_partitioned() && !publication.pubviaroot && by_leaf {
        let message = format!(
            "publication `{name}` publishes the changes of `{shown}` under the names of its \
             partitions, and a partition that is added later would not be known"
        );
        return Some(Finding::error(Code::PartitionRoot, message).cure(cure::set_via_root(name)));
    }
    let message = format!("`{shown}` is not in publication `{name}`");
    let finding = Finding::error(Code::TableNotPublished, message);
    if publication.puballtables {
        return Some(finding);
    }
    Some(match difference::before_publishing(context, table) {
        Err(why) => finding.hint(left_out(table, why)),
        Ok(mut steps) => {
            steps.extend(cure::add_tables(name, &[table]));
            finding.cure(steps)
        }
    })
}

/// Whether the values of a column arrive.
fn unpublished(
    context: &Context<'_>,
    publication: &Publication,
    table: &Table,
    column: &ColumnUse<'_>,
) -> Option<Finding> {
    let known = table.columns.iter().find(|known| known.name == column.column)?;
    // Before version 18 the list of columns names generated ones, too, and they are never sent.
    let is_sent = !known.is_generated || publication.pubgencols.is_some();
    let is_listed =
        table.published_columns.as_ref().is_none_or(|columns| columns.contains(&known.name));
    if is_sent && is_listed {
        return None;
    }
    Some(if known.is_generated {
        generated::unpublished(context, known, column)
    } else {
        narrowed::unlisted(context, table, column)
    })
}
