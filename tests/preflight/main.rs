//! The checks before the start, and their cures, against real servers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

mod kit;
mod redis_inside;
mod redis_rights;
mod rows;
mod servers;
mod setup_twice;

use std::sync::Arc;

use walsweep::config::{Rule, TableName};
use walsweep::decode::{Relation, ReplicaIdentity};
use walsweep::gather::{Change, Row};
use walsweep::keys::{Binding, Bound, Rules};
use walsweep::preflight;
use walsweep_stage::throwaway::{Postgres, PostgresOptions};

use crate::kit::{check, config, database, find, rule, whole};

/// Gives a statement that locks a table in the transaction that it is printed with.
fn limited(statement: &str) -> String {
    format!(
        "begin;\nset local lock_timeout = '2s';\nset local synchronous_commit = local;\n\
         {statement};\ncommit"
    )
}

#[tokio::test]
async fn a_finding_names_place_likeness_and_cure() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let ddl = "create table t (id int primary key, status text);
               create schema \"o'Brien\"; create table \"o'Brien\".\"a\"\"b\" (a text);
               create publication walsweep for table t";
    let client = database(&server, "app", ddl).await;
    let table = TableName { schema: "o'Brien".to_owned(), name: "a\"b".to_owned() };
    let config = config(
        server.port(),
        "app",
        vec![
            rule("tt", &["k"]),
            rule("t", &["k", "k:{statsu}"]),
            rule("t", &["k:{status}"]),
            Rule { table, ..whole("t") },
        ],
    );
    let findings = check(&config, &client).await;
    let hint = find(&findings, "column_missing").hint.as_deref();
    assert_eq!(hint, Some("did you mean `status`?"));
    assert_eq!(find(&findings, "column_missing").at.as_ref().unwrap().key, "rule.0.keys.1");
    assert_eq!(find(&findings, "table_missing").at.as_ref().unwrap().key, "rule.0.table");
    let identity = find(&findings, "replica_identity");
    assert_eq!(
        identity.sql.as_deref(),
        Some(&*limited("alter table \"public\".\"t\" replica identity full"))
    );
    assert!(identity.hint.as_ref().unwrap().contains("`immutable = [\"status\"]`"));
    let sql = find(&findings, "table_not_published").sql.as_deref();
    // It has no identity, and published it could not be written to.
    let steps = [
        "alter table \"o'Brien\".\"a\"\"b\" replica identity full",
        "alter publication \"walsweep\" add table only \"o'Brien\".\"a\"\"b\"",
    ];
    assert_eq!(sql, Some(&*steps.map(limited).join(";\n")));
}

#[tokio::test]
async fn a_partition_counts_as_its_table_once_checked() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let ddl = "create table t (a text primary key) partition by list (a);
               create table t_x partition of t default;
               create publication walsweep for table t";
    let client = database(&server, "app", ddl).await;
    let config = config(server.port(), "app", vec![whole("t")]);
    let rules = Rules::compile(&config.rules).unwrap();
    let checked = preflight::postgres(&config, &rules, &client).await.unwrap();
    assert_eq!(matched(&mut rules.bind(Binding::default()), "t_x"), 0);
    assert_eq!(matched(&mut rules.bind(checked.binding(Vec::new())), "t_x"), 1);
}

/// The number of patterns that TRUNCATE of a relation removes.
fn matched(bound: &mut Bound, relation: &str) -> usize {
    let relation = Relation {
        id: 1,
        namespace: "public".to_owned(),
        name: relation.to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: Vec::new(),
    };
    let mut keys = bound.key_set();
    bound.add(&Change { relation: Arc::new(relation), row: Row::Truncate }, &mut keys);
    keys.patterns().count()
}
