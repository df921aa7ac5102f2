//! The statements that cure: the files of `sql/setup/`, with names filled in.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use super::catalog::{Relation, Role, Table};
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

/// Creates the publication of these tables; `None` if there is none.
pub(super) fn create_publication(
    publication: &str,
    tables: &[&Table],
    operations: Operations,
) -> Option<String> {
    if tables.is_empty() {
        return None;
    }
    let names: Vec<String> = tables.iter().map(|table| qualified(&table.relation)).collect();
    let mut options = Vec::new();
    if operations != Operations::ALL {
        let operations = escape_literal(&operation_names(operations).join(", "));
        options.push(format!("publish = {operations}"));
    }
    if tables.iter().any(|table| table.is_partitioned()) {
        options.push("publish_via_partition_root = true".to_owned());
    }
    let options = match options.join(", ") {
        none if none.is_empty() => none,
        options => format!(" with ({options})"),
    };
    let publication = escape_identifier(publication);
    let values =
        [("publication", &*publication), ("tables", &names.join(", ")), ("options", &options)];
    Some(render(include_str!("../../sql/setup/create_publication.sql"), &values))
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

/// Adds a table to the publication.
pub(super) fn add_table(publication: &str, table: &Table) -> String {
    of_table(include_str!("../../sql/setup/add_table.sql"), publication, table)
}

/// Frees a table of the publication from its column list.
pub(super) fn unlimit_columns(publication: &str, table: &Table) -> String {
    of_table(include_str!("../../sql/setup/unlimit_columns.sql"), publication, table)
}

fn of_table(file: &str, publication: &str, table: &Table) -> String {
    let (publication, table) = (escape_identifier(publication), qualified(&table.relation));
    render(file, &[("publication", &publication), ("table", &table)])
}

/// Gives the table, and each partition of it, the full replica identity: partitions do not inherit
/// it.
pub(super) fn full_identity(table: &Table) -> String {
    let file = include_str!("../../sql/setup/replica_identity.sql");
    let missing = table.family().filter(|relation| relation.identity != 'f');
    let statements = missing.map(|relation| render(file, &[("table", &qualified(relation))]));
    statements.collect::<Vec<_>>().join(";\n")
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
        assert_eq!(drop_slot("it's"), "select pg_drop_replication_slot('it''s')");
    }
}
