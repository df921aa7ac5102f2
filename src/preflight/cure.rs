//! The statements that cure: the files of `sql/setup/`, with names filled in.

use postgres_protocol::escape::{escape_identifier, escape_literal};
use sha2::{Digest, Sha256};

use super::catalog::{Relation, Role, Table};
use super::memory::{Memory, SENTENCE};
use super::step::{Does, Grant, Identity, LOCK_TIMEOUT, Object, Step};
use crate::config::{Operations, Postgres, TableName};
use crate::lsn::Lsn;
use crate::postgres::statement::{self, identifier, render};

/// A table as SQL names it.
fn qualified(table: &TableName) -> String {
    format!("{}.{}", identifier(&table.schema), identifier(&table.name))
}

/// Names a table as `to_regclass` takes it, which knows no escapes.
fn quoted(table: &TableName) -> String {
    format!("{}.{}", escape_identifier(&table.schema), escape_identifier(&table.name))
}

/// A name as SQL has it.
pub(crate) fn escaped(name: &str) -> String {
    identifier(name)
}

/// A text in dollar quotes that it does not contain: the quotes.
fn dollar_quote(text: &str) -> String {
    let mut tags = (0..).map(|number| match number {
        0 => "$setup$".to_owned(),
        number => format!("$setup{number}$"),
    });
    tags.find(|tag| !text.contains(tag.as_str())).expect("a text is not endless")
}

/// A text as SQL has it, on one line whatever is in it, and whatever a session takes a backslash
/// for.
fn literal(text: &str) -> String {
    if !text.contains(char::is_control) {
        return escape_literal(text).trim_start().to_owned();
    }
    let escaped = text.chars().map(|one| match one {
        '\'' => "''".to_owned(),
        '\\' => "\\\\".to_owned(),
        '\n' => "\\n".to_owned(),
        one if one.is_control() => format!("\\u{:04X}", u32::from(one)),
        one => one.to_string(),
    });
    format!("E'{}'", escaped.collect::<String>())
}

/// A file of SQL on one line, without its head comment.
fn on_one_line(file: &str) -> String {
    let lines = file.lines().filter(|line| !line.starts_with("--"));
    lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

/// The setting of a session that names the slot which it has made.
pub(crate) const MADE: &str = "walsweep.made_slot";

const COMMENT_LOCK_HOLDERS: &str = include_str!("../../sql/setup/comment_lock_holders.sql");

/// The statement to run if the comment on the publication is another one.
const REFUSED: &str = "raise sqlstate 'WS001' using message = 'the comment on the publication \
                       changed meanwhile: print this SQL again'";

/// A statement that is run only if the comment on the publication is what was read of it,
/// one of `standing`, or what it is to become.
fn unless_changed(
    publication: &str,
    standing: &[&str],
    (statement, becomes, otherwise): (&str, Option<&str>, &str),
) -> String {
    let template = on_one_line(include_str!("../../sql/setup/unless_changed.sql"));
    let digest = |comment: &str| {
        let hex = Sha256::digest(comment.as_bytes());
        let hex: String = hex.iter().map(|byte| format!("{byte:02x}")).collect();
        literal(&hex)
    };
    let standing: Vec<String> = standing.iter().copied().chain(becomes).map(digest).collect();
    let name = literal(publication);
    let quote = dollar_quote(&format!("{name}{statement}"));
    let holders = on_one_line(COMMENT_LOCK_HOLDERS);
    let values = [
        ("quote", &*quote),
        ("name", &name),
        ("standing", &standing.join(", ")),
        ("statement", statement),
        ("otherwise", otherwise),
        ("timeout", LOCK_TIMEOUT),
        ("holders", &holders),
    ];
    render(&template, &values)
}

/// Takes the lock of walsweep's comments until the session ends.
pub(crate) fn hold() -> String {
    let holders = on_one_line(COMMENT_LOCK_HOLDERS);
    render(include_str!("../../sql/setup/hold.sql"), &[("holders", &holders)])
}

/// The names of operations as `publish` takes them, which is their name in a configuration, too.
pub(super) fn operation_names(operations: Operations) -> Vec<&'static str> {
    let Operations { insert, update, delete, truncate } = operations;
    let names =
        [("insert", insert), ("update", update), ("delete", delete), ("truncate", truncate)];
    names.into_iter().filter_map(|(name, is_set)| is_set.then_some(name)).collect()
}

/// Creates the publication that these tables will be added to, with their stored generated columns
/// or without; nothing if there is none, and rules look at some. Nobody ever sees it without the
/// comment that tells whose it is.
pub(super) fn create_publication(
    publication: &str,
    tables: &[&Table],
    operations: Operations,
    with_generated: bool,
) -> Option<Step> {
    // Messages are streamed without one table being named.
    let is_of_messages = operations == Operations::NONE;
    if tables.is_empty() && !is_of_messages {
        return None;
    }
    let mut options = Vec::new();
    if operations != Operations::ALL && !is_of_messages {
        let operations = literal(&operation_names(operations).join(", "));
        options.push(format!("publish = {operations}"));
    }
    if tables.iter().any(|table| table.is_partitioned()) {
        options.push("publish_via_partition_root = true".to_owned());
    }
    if with_generated {
        options.push("publish_generated_columns = stored".to_owned());
    }
    let options = match options.join(", ") {
        none if none.is_empty() => none,
        options => format!(" with ({options})"),
    };
    let values = [("publication", &*identifier(publication)), ("options", &options)];
    let sql = render(include_str!("../../sql/setup/create_publication.sql"), &values);
    let memory = Memory::default();
    let sql = format!("{sql};\n{}", comment(publication, &memory));
    Some(Step::new(Does::CreatePublication(memory), sql))
}

/// A step whose comment on the publication remembers this instead, if it writes one, over the
/// comment that is there, `standing`.
pub(crate) fn remembering(
    step: Step,
    publication: &str,
    standing: Option<&str>,
    memory: &Memory,
) -> Step {
    match &step.does {
        Does::Remember(_) => remember(publication, standing, memory.clone()),
        Does::RememberFirst(_) => remember_first(publication, standing, memory.clone()),
        Does::CreatePublication(old) => {
            let old = comment(publication, old);
            let before = step.sql.strip_suffix(&old).expect("such a step ends with its comment");
            let sql = format!("{before}{}", comment(publication, memory));
            Step::new(Does::CreatePublication(memory.clone()), sql)
        }
        _ => step,
    }
}

/// Lets the publication remember this, if its comment still is what was read of it.
pub(crate) fn remember(publication: &str, standing: Option<&str>, memory: Memory) -> Step {
    let sql = comment_over(publication, standing, &memory, None);
    Step::new(Does::Remember(memory), sql)
}

/// Lets the publication remember what is about to be changed.
pub(crate) fn remember_first(publication: &str, standing: Option<&str>, memory: Memory) -> Step {
    let sql = comment_over(publication, standing, &memory, None);
    Step::new(Does::RememberFirst(memory), sql)
}

/// Lets the publication forget something, only while there is no slot of the name `without`.
pub(crate) fn forget(
    publication: &str,
    standing: Option<&str>,
    memory: Memory,
    without: Option<&str>,
) -> Step {
    let sql = comment_over(publication, standing, &memory, without);
    Step::new(Does::Remember(memory), sql)
}

/// A statement that is run only while there is no slot of this name.
fn unless_slot(slot: Option<&str>, statement: String) -> String {
    let Some(slot) = slot else { return statement };
    let file = on_one_line(include_str!("../../sql/setup/unless_slot.sql"));
    render(&file, &[("slot", &literal(slot)), ("statement", &statement)])
}

fn comment_over(
    publication: &str,
    standing: Option<&str>,
    memory: &Memory,
    without: Option<&str>,
) -> String {
    let statement = unless_slot(without, comment(publication, memory));
    let (standing, becomes) = (standing.unwrap_or_default(), memory.comment());
    unless_changed(publication, &[standing], (&statement, Some(&becomes), REFUSED))
}

/// Lets the publication claim the slot, which [`create_slot_marked`] has made in the same session,
/// over one of these comments. Over any other it does nothing: then the checks tell that nothing
/// claims the slot.
pub(crate) fn claim(publication: &str, slot: &str, standing: &[&str], memory: Memory) -> Step {
    let file = include_str!("../../sql/setup/if_slot.sql");
    let comment = comment(publication, &memory);
    let values = [("slot", &*literal(slot)), ("made", MADE), ("statement", &comment)];
    let statement = render(&on_one_line(file), &values);
    let becomes = memory.comment();
    let sql = unless_changed(publication, standing, (&statement, Some(&becomes), "null"));
    Step::new(Does::Remember(memory), sql)
}

/// Writes what is remembered, and that the publication is walsweep's.
fn comment(publication: &str, memory: &Memory) -> String {
    let publication = identifier(publication);
    let values = [("publication", &*publication), ("comment", &literal(&memory.comment()))];
    render(include_str!("../../sql/setup/comment.sql"), &values)
}

fn of_publication(file: &str, publication: &str) -> String {
    render(file, &[("publication", &identifier(publication))])
}

/// Lets the publication publish these operations.
pub(super) fn set_publish(publication: &str, operations: Operations) -> Vec<Step> {
    let operations = literal(&operation_names(operations).join(", "));
    let publication = identifier(publication);
    let values = [("publication", &*publication), ("operations", &operations)];
    let sql = render(include_str!("../../sql/setup/set_publish.sql"), &values);
    vec![Step::new(Does::SetOperations, sql)]
}

/// Lets the publication publish partitions under the name of the partitioned table.
pub(super) fn set_via_root(publication: &str) -> Vec<Step> {
    let sql = of_publication(include_str!("../../sql/setup/set_via_root.sql"), publication);
    vec![Step::new(Does::SetPublication, sql)]
}

/// Lets the publication have stored generated columns.
pub(super) fn set_generated(publication: &str) -> Vec<Step> {
    let sql = of_publication(include_str!("../../sql/setup/set_generated.sql"), publication);
    vec![Step::new(Does::SetPublication, sql)]
}

/// Adds tables to the publication; nothing for none. What inherits from one of them is a table of
/// its own, which nobody may want published.
pub(super) fn add_tables(publication: &str, tables: &[&Table]) -> Option<Step> {
    let names: Vec<TableName> = tables.iter().map(|table| table.relation.table_name()).collect();
    let list: Vec<String> = names.iter().map(|name| format!("only {}", qualified(name))).collect();
    let values = [("publication", &*identifier(publication)), ("tables", &list.join(", "))];
    let sql = render(include_str!("../../sql/setup/add_table.sql"), &values);
    (!names.is_empty()).then(|| Step::new(Does::AddTables(names), sql))
}

/// Takes a table out of the publication.
pub(super) fn drop_table(publication: &str, table: &TableName) -> Step {
    let sql = of_table(include_str!("../../sql/setup/drop_table.sql"), publication, table);
    Step::new(Does::DropTable(table.clone()), sql)
}

/// Lets the publication have all of a table.
pub(super) fn set_whole(publication: &str, table: &Table) -> Vec<Step> {
    let name = table.relation.table_name();
    let sql = of_table(include_str!("../../sql/setup/set_whole.sql"), publication, &name);
    vec![Step::new(Does::WidenTable(name), sql)]
}

fn of_table(file: &str, publication: &str, table: &TableName) -> String {
    let (publication, table) = (identifier(publication), qualified(table));
    render(file, &[("publication", &publication), ("table", &table)])
}

/// Gives the table, and each partition of it, the full replica identity: partitions do not inherit
/// it. Each in a transaction of its own, so that no lock is held while another is waited for. What
/// is not in the log needs none, and a foreign table cannot have one.
pub(super) fn full_identity(table: &Table) -> Vec<Step> {
    let missing = table.family().filter(|one| one.identity != 'f' && one.counts());
    let step = |relation: &Relation| {
        let name = relation.table_name();
        let identity = Identity {
            table: table.relation.table_name(),
            relation: name.clone(),
            was: relation.identity,
            index: relation.identity_index.clone().filter(|_| relation.identity == 'i'),
        };
        set_identity_full(identity)
    };
    missing.map(step).collect()
}

fn identity_full(table: &TableName) -> String {
    let file = include_str!("../../sql/setup/replica_identity.sql");
    render(file, &[("table", &qualified(table))])
}

/// Gives one relation the full replica identity.
pub(super) fn set_identity_full(before: Identity) -> Step {
    let sql = identity_full(&before.relation);
    Step::new(Does::SetIdentity(before), sql)
}

/// Gives a relation the identity back that it had; `None` if it is not known which.
pub(crate) fn identity_as_before(identity: &Identity) -> Option<Step> {
    let kind = match (identity.was, &identity.index) {
        ('d', _) => "default".to_owned(),
        ('n', _) => "nothing".to_owned(),
        ('i', Some(index)) => format!("using index {}", identifier(index)),
        _ => return None,
    };
    let table = qualified(&identity.relation);
    let file = include_str!("../../sql/setup/identity_as_before.sql");
    let sql = render(file, &[("table", &table), ("identity", &kind)]);
    Some(Step::new(Does::RestoreIdentity(identity.clone()), sql))
}

/// Lets the role replicate.
pub(super) fn allow_replication(role: &Role) -> Vec<Step> {
    vec![Step::new(Does::Role, let_replicate(&role.name, role.is_rds))]
}

/// Lets a role replicate; `is_rds` on Amazon RDS and Aurora.
pub(super) fn let_replicate(role: &str, is_rds: bool) -> String {
    let file = if is_rds {
        include_str!("../../sql/setup/allow_replication_rds.sql")
    } else {
        include_str!("../../sql/setup/allow_replication.sql")
    };
    render(file, &[("role", &identifier(role))])
}

/// Creates the role of a login, or lets it log in and replicate. `verifier` is of its password.
pub(crate) fn create_role(role: &str, verifier: Option<&str>) -> Step {
    let file = include_str!("../../sql/setup/create_role.sql");
    let password = verifier.map(|verifier| format!(" password {}", literal(verifier)));
    let (escaped, name) = (identifier(role), literal(role));
    let quote = dollar_quote(role);
    let values = [
        ("role", &*escaped),
        ("name", &name),
        ("password", password.as_deref().unwrap_or_default()),
        ("quote", &quote),
    ];
    Step::new(Does::Role, render(file, &values))
}

/// Lets a role connect to a database.
pub(crate) fn grant_connect(role: &str, database: &str) -> Step {
    let values = [("role", &*identifier(role)), ("database", &identifier(database))];
    let sql = render(include_str!("../../sql/setup/grant_connect.sql"), &values);
    grant(role, Object::Database(database.to_owned()), sql)
}

/// Lets a role use the names of a schema.
pub(crate) fn grant_usage(schema: &str, role: &str) -> Step {
    grant(role, Object::Schema(schema.to_owned()), statement::grant_usage(schema, role))
}

/// Lets a role read a table.
pub(crate) fn grant_select(table: &TableName, role: &str) -> Step {
    let sql = statement::grant_select((&table.schema, &table.name), role);
    grant(role, Object::Table(table.clone()), sql)
}

fn grant(role: &str, on: Object, sql: String) -> Step {
    Step::new(Does::Grant(Grant { role: role.to_owned(), on }), sql)
}

/// SQL conditions under which another publication forbids an identity that is smaller than a full
/// one: it has the table at all. The last is what forbids it whoever publishes the table.
const FORBIDS_SMALLER: [&str; 3] = ["true", "false", "false"];

/// Like [`FORBIDS_SMALLER`], for a full identity: a list of columns, or, since version 18, stored
/// generated columns that it does not publish; and virtual ones, which nobody can.
const FORBIDS_FULL: [&str; 3] = [
    "pg_catalog.to_jsonb(p) operator(pg_catalog.->>) 'pubgencols' operator(pg_catalog.=) 'n' \
     and exists (select from pg_catalog.pg_attribute a \
     where a.attrelid operator(pg_catalog.=) relation \
     and a.attgenerated operator(pg_catalog.<>) '' and not a.attisdropped)",
    "pg_catalog.to_jsonb(r) operator(pg_catalog.->>) 'prattrs' is not null",
    "exists (select from pg_catalog.pg_attribute a \
     where a.attrelid operator(pg_catalog.=) relation \
     and a.attgenerated operator(pg_catalog.=) 'v' and not a.attisdropped)",
];

/// The SQL of a step for walsweep's publication, which fails where it does not do what it says, or
/// would do harm by now.
pub(crate) fn certain(publication: &str, step: &Step) -> String {
    match &step.does {
        Does::Grant(granted) => granting(step, granted),
        Does::SetIdentity(identity) => {
            unless_elsewhere(publication, &step.sql, &identity.relation, FORBIDS_FULL)
        }
        Does::RestoreIdentity(identity) => {
            unless_elsewhere(publication, &step.sql, &identity.relation, FORBIDS_SMALLER)
        }
        _ => step.sql.clone(),
    }
}

/// A change of a relation's identity, undone where another publication forbids it.
fn unless_elsewhere(
    publication: &str,
    statement: &str,
    relation: &TableName,
    [forbids, entry, always]: [&str; 3],
) -> String {
    let (name, relation) = (literal(publication), literal(&quoted(relation)));
    let quote = dollar_quote(&format!("{name}{relation}{statement}"));
    let values = [
        ("quote", &*quote),
        ("relation", &relation),
        ("name", &name),
        ("statement", statement),
        ("forbids", forbids),
        ("entry", entry),
        ("always", always),
    ];
    render(include_str!("../../sql/setup/unless_elsewhere.sql"), &values)
}

/// Postgres answers a GRANT by somebody who may not grant that with a mere warning.
fn granting(step: &Step, Grant { role, on }: &Grant) -> String {
    let (has, object, right) = match on {
        Object::Database(name) => ("has_database_privilege", name.clone(), "connect"),
        Object::Schema(name) => ("has_schema_privilege", name.clone(), "usage"),
        Object::Table(table) => ("has_table_privilege", quoted(table), "select"),
    };
    let (role, object) = (literal(role), literal(&object));
    let quote = dollar_quote(&format!("{}{role}{object}", step.sql));
    let values = [
        ("quote", &*quote),
        ("statement", &step.sql),
        ("has", has),
        ("role", &role),
        ("object", &object),
        ("right", &literal(right)),
    ];
    render(include_str!("../../sql/setup/granted.sql"), &values)
}

/// Lets a role ask the primary for what a slot on a standby waits for.
pub(super) fn allow_standby_snapshot(role: &str) -> Vec<Step> {
    let file = include_str!("../../sql/setup/allow_standby_snapshot.sql");
    vec![Step::new(Does::Role, render(file, &[("role", &identifier(role))]))]
}

/// Creates the slot.
pub(super) fn create_slot(config: &Postgres) -> Step {
    let options = if config.failover { ", failover => true" } else { "" };
    let slot = literal(&config.slot);
    let values = [("slot", &*slot), ("options", options)];
    Step::new(Does::CreateSlot, render(include_str!("../../sql/setup/create_slot.sql"), &values))
}

/// Creates the slot in a session in which the claim to it may follow. The claim leaves out a slot
/// of this name that somebody else made.
pub(crate) fn create_slot_marked(config: &Postgres) -> Step {
    let file = include_str!("../../sql/setup/create_slot_marked.sql");
    let options = if config.failover { ", failover => true" } else { "" };
    let slot = literal(&config.slot);
    let values = [("slot", &*slot), ("options", options), ("made", MADE)];
    Step::new(Does::CreateSlot, render(file, &values))
}

/// Removes the slot.
pub(crate) fn drop_slot(slot: &str) -> String {
    render(include_str!("../../sql/setup/drop_slot.sql"), &[("slot", &literal(slot))])
}

/// Removes the slot, if it is of this database and of walsweep's kind, and was confirmed as far as
/// when it was looked at.
pub(crate) fn drop_known_slot(slot: &str, confirmed: Lsn) -> Step {
    let template = on_one_line(include_str!("../../sql/setup/drop_known_slot.sql"));
    let (slot, confirmed) = (literal(slot), literal(&confirmed.to_string()));
    let quote = dollar_quote(&slot);
    let values = [("quote", &*quote), ("slot", &slot), ("confirmed", &confirmed)];
    Step::new(Does::DropSlot, render(&template, &values))
}

/// Removes the publication, if its comment still is what was read of it.
pub(crate) fn drop_publication(
    publication: &str,
    standing: Option<&str>,
    without: Option<&str>,
) -> Step {
    let file = include_str!("../../sql/setup/drop_publication.sql");
    let statement = unless_slot(without, of_publication(file, publication));
    let standing = standing.unwrap_or_default();
    let sql = unless_changed(publication, &[standing], (&statement, None, REFUSED));
    Step::new(Does::DropPublication, sql)
}

/// The comment on what belongs to the event trigger, as a literal.
pub(super) fn trigger_comment() -> String {
    literal(SENTENCE)
}

/// A step for the script: it waits briefly for its locks, and is tried again.
pub(crate) fn patiently(publication: &str, step: &Step, (attempts, pause): (u32, u64)) -> String {
    let sql = certain(publication, step);
    let locked = step.does.locks();
    let names: Vec<String> = locked.iter().map(|table| literal(&quoted(table))).collect();
    let tables = format!("array[{}]", names.join(", "));
    let quote = dollar_quote(&format!("{sql}{tables}"));
    let values = [
        ("quote", &*quote),
        ("timeout", LOCK_TIMEOUT),
        ("sql", &sql),
        ("tables", &tables),
        ("attempts", &attempts.to_string()),
        ("pause", &pause.to_string()),
    ];
    render(include_str!("../../sql/setup/patiently.sql"), &values)
}

#[cfg(test)]
mod tests {
    use super::{
        certain, dollar_quote, drop_known_slot, drop_publication, drop_slot, grant_select,
        patiently,
    };
    use crate::config::TableName;
    use crate::lsn::Lsn;
    use crate::preflight::step::{Does, Step};

    #[test]
    fn a_name_never_becomes_syntax() {
        let sql = drop_publication("a\"; {slot} --", None, Some("{slot}'")).sql;
        let dropping = "end if; drop publication \"a\"\"; {slot} --\"; end if; end $setup$";
        assert!(sql.contains(dropping), "{sql}");
        assert!(sql.contains("else if exists (") && sql.contains("'{slot}'''"), "{sql}");
        assert!(sql.contains("(pg_catalog.=) 'a\"; {slot} --')"), "{sql}");
        assert_eq!(drop_slot("it's"), "select pg_catalog.pg_drop_replication_slot('it''s')");
        let sql = drop_known_slot("it's", Lsn(7)).sql;
        assert!(
            sql.contains("(pg_catalog.=) 'it''s'") && sql.contains("(pg_catalog.=) '0/7')"),
            "{sql}"
        );
        assert!(sql.contains("pg_drop_replication_slot('it''s'); end $setup$"), "{sql}");
        assert!(!sql.contains('\n'), "{sql}");
        assert_eq!(dollar_quote("$setup$ $setup1$"), "$setup2$");
        let table = TableName { schema: "a".to_owned(), name: "$setup$; it's".to_owned() };
        let step = Step::new(Does::AddTables(vec![table]), "x \"$setup$\"".to_owned());
        let script = patiently("p", &step, (3, 1));
        assert!(script.starts_with("do $setup1$\n") && script.ends_with("\n$setup1$"), "{script}");
        assert!(script.contains("array['\"a\".\"$setup$; it''s\"']"), "{script}");
        let table = TableName { schema: "a".to_owned(), name: "$setup$\"; it's".to_owned() };
        let script = certain("p", &grant_select(&table, "o'r"));
        assert!(script.starts_with("do $setup1$\n") && script.ends_with("\n$setup1$"), "{script}");
        let asked = r#"has_table_privilege('o''r', '"a"."$setup$""; it''s"', 'select')"#;
        assert!(script.contains(asked), "{script}");
        // Whatever is in a name, the statement stays on its line.
        let sql = drop_publication("a\r\nb", None, None).sql;
        assert!(sql.contains("drop publication U&\"a\\000D\\000Ab\";"), "{sql}");
        assert!(sql.contains("E'a\\u000D\\nb'") && !sql.contains(['\r', '\n']), "{sql}");
    }
}
