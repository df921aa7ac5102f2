//! Checks of the publication: does it publish all that the rules look at.

use super::catalog::{Publication, Table};
use super::part::{self, Part};
use super::rows::Existing;
use super::{Context, Finding, columns, cure, generated, identity, rows};
use crate::config::{Operations, Rule};
use crate::keys::ColumnUse;

/// What is not published, or only in part.
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
        let all = Finding::info("publication_all_tables", message);
        findings.push(all.hint("one of the rules' tables alone spares the server the rest"));
    }
    for rule in &context.config.rules {
        findings.extend(operations(context, publication, rule));
        if let Some(table) = context.catalog.table(&rule.table) {
            let found = [membership(context, publication, table), column_list(context, table)];
            let found = found.into_iter().flatten();
            findings.extend(found.map(|one| one.at(&rule.table_at).of_rules([&rule.name])));
        }
    }
    for table in &context.catalog.tables {
        let advice = [columns::advice, rows::advice, part::widening];
        findings.extend(advice.iter().filter_map(|advice| advice(context, table)));
    }
    for column in context.rules.column_uses() {
        if let Some(table) = context.catalog.table(column.table) {
            let found = unpublished(context, publication, table, &column);
            findings.extend(found.map(|one| one.of_rules([column.rule])));
        }
    }
    findings
}

/// That there is none, and what it needs.
fn missing(context: &Context<'_>) -> Finding {
    let name = &context.config.postgres.publication;
    let tables = context.catalog.tables.iter().filter(|table| table.is_publishable());
    let tables: Vec<_> = tables.map(|table| (table, Part::wanted(context, table))).collect();
    let savings = tables.iter().filter_map(|(table, part)| part.saving(context, table));
    let savings = savings.collect::<Vec<_>>().join("; ");
    let message = match savings.as_str() {
        "" => format!("there is no publication `{name}`"),
        savings => format!("there is no publication `{name}`; it needs {savings}"),
    };
    let missing = Finding::error("publication_missing", message);
    let sql =
        cure::create_publication(name, &tables, needed(context), generated::is_needed(context));
    let whole: Vec<&Table> = tables.iter().map(|(table, _)| *table).collect();
    let parts = tables.iter().map(|(_, part)| (part.columns.is_some(), part.filter.is_some()));
    let undo = cure::set_tables(name, &whole);
    part::priced(&parts.collect::<Vec<_>>(), Finding { sql, ..missing }, &undo)
}

/// The operations that any rule looks at.
fn needed(context: &Context<'_>) -> Operations {
    let none = Operations { insert: false, update: false, delete: false, truncate: false };
    context.config.rules.iter().fold(none, |all, rule| union(all, rule.operations))
}

/// The operations that are published once the errors of this check are cured.
pub(super) fn published(context: &Context<'_>) -> Operations {
    context
        .catalog
        .publication
        .as_ref()
        .map_or(needed(context), |publication| union(needed(context), publication.operations()))
}

fn union(one: Operations, other: Operations) -> Operations {
    Operations {
        insert: one.insert || other.insert,
        update: one.update || other.update,
        delete: one.delete || other.delete,
        truncate: one.truncate || other.truncate,
    }
}

impl Publication {
    fn operations(&self) -> Operations {
        Operations {
            insert: self.pubinsert,
            update: self.pubupdate,
            delete: self.pubdelete,
            truncate: self.pubtruncate,
        }
    }
}

fn operations(context: &Context<'_>, publication: &Publication, rule: &Rule) -> Option<Finding> {
    let name = &context.config.postgres.publication;
    let (wanted, given) = (rule.operations, publication.operations());
    if union(wanted, given) == given {
        return None;
    }
    let given = cure::operation_names(given);
    let missing = cure::operation_names(wanted).into_iter().filter(|one| !given.contains(one));
    let missing = missing.map(|one| format!("`{one}`")).collect::<Vec<_>>().join(", ");
    let message =
        format!("rule `{}` looks at {missing}, which publication `{name}` leaves out", rule.name);
    let finding = Finding::error("operation_not_published", message).at(&rule.at);
    let finding = finding.of_rules([&rule.name]);
    Some(finding.sql(cure::set_publish(name, published(context))))
}

/// Whether the changes of a table arrive, under its name, with all rows.
fn membership(context: &Context<'_>, publication: &Publication, table: &Table) -> Option<Finding> {
    let name = &context.config.postgres.publication;
    let shown = table.relation.table_name();
    if !table.is_publishable() {
        return None;
    }
    if table.relation.is_published {
        return rows::check(context, table);
    }
    if let Some(root) = &table.published_as {
        let message =
            format!("`{shown}` is a partition whose changes are published as those of `{root}`");
        return Some(
            Finding::error("partition_leaf", message).hint(format!("let the rule name `{root}`")),
        );
    }
    let all = !table.partitions.is_empty() && table.partitions.iter().all(|one| one.is_published);
    let by_leaf = table.is_listed || publication.puballtables || all;
    if table.is_partitioned() && !publication.pubviaroot && by_leaf {
        let message = format!(
            "publication `{name}` publishes the changes of `{shown}` under the names of its \
             partitions, and a partition that is added later would not be known"
        );
        return Some(Finding::error("partition_root", message).sql(cure::set_via_root(name)));
    }
    let message = format!("`{shown}` is not in publication `{name}`");
    let finding = Finding::error("table_not_published", message);
    Some(if publication.puballtables {
        finding
    } else {
        let part = Part::wanted(context, table);
        let finding = finding.sql(cure::add_table(name, table, &part));
        part.priced(finding, &cure::set_part(name, table, &Part::WHOLE))
    })
}

/// A column list with less than the replica identity, as it is or will be.
fn column_list(context: &Context<'_>, table: &Table) -> Option<Finding> {
    let writes = published(context);
    let listed = table.published_columns.as_ref().filter(|_| writes.update || writes.delete)?;
    let will_be_full = identity::needs_full(context, table);
    let left_out = table.columns.iter().find(|column| {
        !listed.contains(&column.name)
            && !column.is_generated
            && (will_be_full || table.family().any(|one| one.identifies(&column.name)))
    })?;
    let (name, shown) = (&context.config.postgres.publication, table.relation.table_name());
    let message = format!(
        "publication `{name}` has a column list for `{shown}` without `{}`, which the replica \
         identity has or must have: the application's own UPDATE and DELETE fail",
        left_out.name
    );
    let finding = Finding::error("column_list", message);
    Some(finding.sql(cure::set_part(name, table, &Part::kept(context, table))))
}

/// Whether the values of a column arrive.
fn unpublished(
    context: &Context<'_>,
    publication: &Publication,
    table: &Table,
    column: &ColumnUse<'_>,
) -> Option<Finding> {
    let name = &context.config.postgres.publication;
    let known = table.columns.iter().find(|known| known.name == column.column)?;
    // Before version 18 the list of columns names generated ones, too, and they are never sent.
    let is_sent = !known.is_generated || publication.pubgencols.is_some();
    let is_listed =
        table.published_columns.as_ref().is_none_or(|columns| columns.contains(&known.name));
    let is_published = is_sent && is_listed;
    if is_published {
        return None;
    }
    let (shown, column_name) = (column.table, column.column);
    if known.is_generated {
        return Some(generated::unpublished(context, known, column));
    }
    let message =
        format!("publication `{name}` has a column list for `{shown}` without `{column_name}`");
    let finding = Finding::error("column_not_published", message).at(column.at);
    let finding = match rows::existing(table) {
        Existing::Foreign => finding.hint("the SQL takes away the table's row filter, too"),
        Existing::Own(_) | Existing::None => finding,
    };
    Some(finding.sql(cure::set_part(name, table, &Part::kept(context, table))))
}
