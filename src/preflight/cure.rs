//! The statements that cure: the files of `sql/setup/`, with names filled in.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use super::catalog::{Relation, Role, Table};
use super::part::Part;
use crate::config::{Operations, Postgres};

/// The statement of a file of `sql/setup/`: without its comments, with each `{name}` replaced.
pub(crate) fn render(file: &str, values: &[(&str, &str)]) -> String {
    let lines: Vec<&str> = file.lines().filter(|line| !line.starts_with("--")).collect();
    let mut text = String::new();
    let template = lines.join("\n");
    let mut rest = template.as_str();
    // In one pass, so that a brace in a name is not taken for a placeholder.
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let (name, after) = after.split_once('}').expect("the files close their braces");
        let value = values.iter().find(|(known, _)| *known == name);
        text.push_str(value.expect("the files name only what is given").1);
        rest = after;
    }
    text.push_str(rest);
    text
}

fn qualified(relation: &Relation) -> String {
    format!("{}.{}", escape_identifier(&relation.schema), escape_identifier(&relation.name))
}

/// The names of operations as `publish` takes them, which is their name in a configuration, too.
pub(super) fn operation_names(operations: Operations) -> Vec<&'static str> {
    let Operations { insert, update, delete, truncate } = operations;
    let names =
        [("insert", insert), ("update", update), ("delete", delete), ("truncate", truncate)];
    names.into_iter().filter_map(|(name, is_set)| is_set.then_some(name)).collect()
}

/// Creates the publication of these tables, with their stored generated columns or without; `None`
/// if there is none, and rules look at some.
pub(super) fn create_publication(
    publication: &str,
    tables: &[(&Table, Part<'_>)],
    operations: Operations,
    with_generated: bool,
) -> Option<String> {
    if operations == Operations::NONE {
        let file = include_str!("../../sql/setup/create_empty_publication.sql");
        return Some(render(file, &[("publication", &escape_identifier(publication))]));
    }
    if tables.is_empty() {
        return None;
    }
    let name = |(table, shown): &(&Table, Part<'_>)| {
        format!("{}{}", qualified(&table.relation), shown.sql())
    };
    let names: Vec<String> = tables.iter().map(name).collect();
    let before: String = tables.iter().filter_map(|(_, part)| part.before()).collect();
    let mut options = Vec::new();
    if operations != Operations::ALL {
        let operations = escape_literal(&operation_names(operations).join(", "));
        options.push(format!("publish = {operations}"));
    }
    if tables.iter().any(|(table, _)| table.is_partitioned()) {
        options.push("publish_via_partition_root = true".to_owned());
    }
    if with_generated {
        options.push("publish_generated_columns = stored".to_owned());
    }
    let options = match options.join(", ") {
        none if none.is_empty() => none,
        options => format!(" with ({options})"),
    };
    let publication = escape_identifier(publication);
    let values =
        [("publication", &*publication), ("tables", &names.join(", ")), ("options", &options)];
    let create = render(include_str!("../../sql/setup/create_publication.sql"), &values);
    Some(format!("{before}{create}"))
}

/// Lets the publication have all of these tables, and no others.
pub(super) fn set_tables(publication: &str, tables: &[&Table]) -> String {
    let names: Vec<String> = tables.iter().map(|table| qualified(&table.relation)).collect();
    let publication = escape_identifier(publication);
    let values = [("publication", &*publication), ("tables", &names.join(", "))];
    render(include_str!("../../sql/setup/set_tables.sql"), &values)
}

/// Lets the publication publish these operations.
pub(super) fn set_publish(publication: &str, operations: Operations) -> String {
    let operations = escape_literal(&operation_names(operations).join(", "));
    let publication = escape_identifier(publication);
    let values = [("publication", &*publication), ("operations", &operations)];
    render(include_str!("../../sql/setup/set_publish.sql"), &values)
}

/// Lets the publication publish partitions under the name of the partitioned table.
pub(super) fn set_via_root(publication: &str) -> String {
    let publication = escape_identifier(publication);
    render(include_str!("../../sql/setup/set_via_root.sql"), &[("publication", &publication)])
}

/// Lets the publication have stored generated columns.
pub(super) fn set_generated(publication: &str) -> String {
    let publication = escape_identifier(publication);
    render(include_str!("../../sql/setup/set_generated.sql"), &[("publication", &publication)])
}

/// Adds this part of a table to the publication.
pub(super) fn add_table(publication: &str, table: &Table, part: &Part<'_>) -> String {
    let add = of_table(include_str!("../../sql/setup/add_table.sql"), (publication, table), part);
    format!("{}{add}", part.before().unwrap_or_default())
}

/// Lets the publication have this part of a table.
pub(super) fn set_part(publication: &str, table: &Table, part: &Part<'_>) -> String {
    of_table(include_str!("../../sql/setup/set_part.sql"), (publication, table), part)
}

fn of_table(file: &str, (publication, table): (&str, &Table), part: &Part<'_>) -> String {
    let (publication, table) = (escape_identifier(publication), qualified(&table.relation));
    let (before, part) = (part.before().unwrap_or_default(), part.sql());
    let values = [("publication", &*publication), ("table", &table), ("part", &part)];
    render(file, &[&values[..], &[("before", &before)]].concat())
}

impl Part<'_> {
    /// Behind the name of its table; nothing for all of it.
    fn sql(&self) -> String {
        let names = self.columns.as_ref();
        let names = names.map(|names| names.iter().map(|name| escape_identifier(name)));
        let list = names.map(|names| format!(" ({})", names.collect::<Vec<_>>().join(", ")));
        let filter = self.filter.as_ref().map(|filter| format!(" {}", filter.sql()));
        list.into_iter().chain(filter).collect()
    }

    /// Statements that come first, or writes of the application fail.
    fn before(&self) -> Option<String> {
        let before = self.filter.as_ref().and_then(|filter| filter.before.as_ref());
        before.map(|before| format!("{before};\n"))
    }
}

/// Gives the table, and each partition of it, the full replica identity: partitions do not inherit
/// it.
pub(super) fn full_identity(table: &Table) -> String {
    let file = include_str!("../../sql/setup/replica_identity.sql");
    let missing = table.family().filter(|relation| relation.identity != 'f');
    let statements = missing.map(|relation| render(file, &[("table", &qualified(relation))]));
    statements.collect::<Vec<_>>().join(";\n")
}

/// Gives one relation the full replica identity.
pub(crate) fn full_identity_of(schema: &str, name: &str) -> String {
    let table = format!("{}.{}", escape_identifier(schema), escape_identifier(name));
    render(include_str!("../../sql/setup/replica_identity.sql"), &[("table", &table)])
}

/// Lets the role replicate.
pub(super) fn allow_replication(role: &Role) -> String {
    let file = if role.is_rds {
        include_str!("../../sql/setup/allow_replication_rds.sql")
    } else {
        include_str!("../../sql/setup/allow_replication.sql")
    };
    render(file, &[("role", &escape_identifier(&role.name))])
}

/// Lets a role ask the primary for what a slot on a standby waits for.
pub(super) fn allow_standby_snapshot(role: &str) -> String {
    let file = include_str!("../../sql/setup/allow_standby_snapshot.sql");
    render(file, &[("role", &escape_identifier(role))])
}

/// Creates the slot.
pub(super) fn create_slot(config: &Postgres) -> String {
    let options = if config.failover { ", failover => true" } else { "" };
    let slot = escape_literal(&config.slot);
    let values = [("slot", &*slot), ("options", options)];
    render(include_str!("../../sql/setup/create_slot.sql"), &values)
}

/// Removes the slot.
pub(crate) fn drop_slot(slot: &str) -> String {
    render(include_str!("../../sql/setup/drop_slot.sql"), &[("slot", &escape_literal(slot))])
}

/// Removes the publication.
pub(crate) fn drop_publication(publication: &str) -> String {
    let publication = escape_identifier(publication);
    render(include_str!("../../sql/setup/drop_publication.sql"), &[("publication", &publication)])
}

#[cfg(test)]
mod tests {
    use super::{drop_publication, drop_slot};

    #[test]
    fn a_name_never_becomes_syntax() {
        let sql = drop_publication("a\"; {slot} --");
        assert_eq!(sql, "drop publication \"a\"\"; {slot} --\"");
        assert_eq!(drop_slot("it's"), "select pg_catalog.pg_drop_replication_slot('it''s')");
    }
}
