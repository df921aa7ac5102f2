//! Tables, publications and identities: what is there, what is configured, what is found.

use walsweep::config::{Operations, Rule};
use walsweep::keys::Rules;
use walsweep::preflight::Finding;
use walsweep::setup;
use walsweep_stage::throwaway::{Postgres, PostgresOptions};

use crate::kit::{
    NO_OPERATIONS, TABLE, adopt, check, codes, config, database, errors, hands, immutable, located,
    major_version, rule, when, whole,
};

/// Runs the checks over a database made by `ddl`, holds the codes against `expected`, and where
/// each error has a cure lets `setup` apply them: then there is no error, and nothing more to do.
async fn hold(server: &Postgres, number: usize, row: Row) -> Vec<Finding> {
    let (ddl, rules, expected) = row;
    let name = format!("row{number}");
    let client = database(server, &name, ddl).await;
    let config = config(server.port(), &name, rules);
    let findings = check(&config, &client).await;
    assert_eq!(codes(&findings), expected, "row {number}: {ddl}\n{findings:#?}");
    let rules = Rules::compile(&config.rules).unwrap();
    adopt(&client).await;
    let result = setup::setup(&config, &rules, &hands(&config, &client)).await;
    if errors(&findings).iter().all(|finding| finding.sql.is_some()) {
        result.unwrap_or_else(|error| panic!("row {number}: {error}"));
        let after = check(&config, &client).await;
        assert!(errors(&after).is_empty(), "row {number}: {ddl}\n{after:#?}");
        let again = setup::setup(&config, &rules, &hands(&config, &client)).await.unwrap();
        assert_eq!(again.statements, [], "row {number}: {ddl}");
    } else {
        assert!(matches!(result, Err(setup::Error::Incurable(_))), "row {number}: {result:?}");
        assert_eq!(codes(&check(&config, &client).await), expected, "row {number}: changed");
    }
    findings
}

/// All but TRUNCATE.
const ROWS: Operations = Operations { truncate: false, ..Operations::ALL };

/// DDL, rules, and the codes that they lead to, in alphabetical order.
type Row = (&'static str, Vec<Rule>, &'static [&'static str]);

async fn hold_all(rows: Vec<Row>) {
    hold_since(0, rows).await;
}

/// Holds rows whose DDL older servers do not know; there it has nothing to find.
async fn hold_since(major: i32, rows: Vec<Row>) {
    let conf = vec!["max_replication_slots = 64".to_owned()];
    let options = PostgresOptions { conf, ..PostgresOptions::default() };
    let server = Postgres::start(options).await.unwrap();
    if major_version(&server.connect().await.unwrap()).await < major {
        return;
    }
    for (number, row) in rows.into_iter().enumerate() {
        hold(&server, number, row).await;
    }
}

#[tokio::test]
async fn tables_and_columns_are_held_against_the_rules() {
    let published = "create table t (id int primary key, a text, b text);
                     alter table t replica identity full;
                     create publication walsweep for table t;";
    hold_all(vec![
        (published, vec![whole("t")], &[]),
        (TABLE, vec![whole("tt")], &["publication_missing", "table_missing"]),
        (
            "create view t as select 1 as a",
            vec![whole("t")],
            &["publication_missing", "table_kind"],
        ),
        (
            "create unlogged table t (a int primary key)",
            vec![whole("t")],
            &["publication_missing", "table_kind"],
        ),
        (published, vec![rule("t", &["k:{aa}"])], &["column_missing"]),
        (
            published,
            vec![Rule { changed: located(&["x"], 0, "changed"), ..whole("t") }],
            &["column_missing"],
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_table_that_inherits_needs_a_rule_of_its_own() {
    let family = "create table t (id int primary key, a text);
                  create table u () inherits (t); create table v () inherits (u);
                  alter table t replica identity full; alter table u replica identity full;
                  alter table v replica identity full;
                  create publication walsweep for table t;";
    let rules = |tables: &[&str]| tables.iter().map(|table| whole(table)).collect();
    hold_all(vec![
        (family, rules(&["t"]), &["inheritance"]),
        (family, rules(&["u"]), &["inheritance"]),
        (family, rules(&["t", "u"]), &["inheritance"]),
        (family, rules(&["v"]), &[]),
        (family, rules(&["t", "u", "v"]), &[]),
    ])
    .await;
}

#[tokio::test]
async fn the_publication_is_held_against_the_rules() {
    let only_insert =
        Rule { operations: Operations { insert: true, ..NO_OPERATIONS }, ..whole("t") };
    hold_all(vec![
        (TABLE, vec![whole("t")], &["publication_missing"]),
        ("create table t (a text)", vec![only_insert.clone()], &["publication_missing"]),
        (
            "create table t (a text); create publication walsweep for table t
               with (publish = 'insert')",
            vec![only_insert],
            &[],
        ),
        (
            "create table t (a text primary key); create table u (a text primary key);
             create publication walsweep for table u",
            vec![whole("t")],
            &["table_not_published"],
        ),
        (
            "create table t (a text primary key);
             create publication walsweep for all tables",
            vec![whole("t")],
            &["publication_all_tables"],
        ),
        (
            "create table t (a text primary key);
             create publication walsweep for table t with (publish = 'insert, update')",
            vec![whole("t")],
            &["operation_not_published"],
        ),
        (
            "create table t (b text primary key, a text generated always as (lower(b)) stored);
             create publication walsweep for table t",
            vec![immutable("t")],
            &["delete_widens", "generated_column"],
        ),
    ])
    .await;
}

#[tokio::test]
async fn what_a_publication_leaves_out_of_a_table_is_found() {
    hold_since(
        15,
        vec![
            (
                "create table t (id int primary key, a text, b text);
             create publication walsweep for table t (id, b)",
                vec![immutable("t")],
                &["column_not_published", "delete_widens"],
            ),
            (
                "create table t (id int primary key, a text, b text);
             create publication walsweep for table t (id, a)",
                vec![whole("t")],
                &["column_list", "replica_identity"],
            ),
            (
                "create table t (id int primary key, a text, b text);
             create publication walsweep for table t (a)",
                vec![rule("t", &["k:{new.a}"])],
                &["column_list"],
            ),
            (
                "create table t (a text primary key);
             create publication walsweep for table t where (a <> 'x')",
                vec![whole("t")],
                &["row_filter"],
            ),
            (
                "create table t (a text primary key);
             create publication walsweep for tables in schema public",
                vec![whole("t")],
                &[],
            ),
        ],
    )
    .await;
}

/// Since version 18 the server refuses UPDATE and DELETE, and only where they are published.
#[tokio::test]
async fn a_virtual_column_is_no_matter_to_a_publication_of_inserts() {
    let made = "create table t (id int primary key, a text,
                                v text generated always as (upper(a)) virtual);
                alter table t replica identity full;
                create publication walsweep for table t";
    let inserts: &'static str = Box::leak(format!("{made} with (publish = 'insert')").into());
    let only_insert =
        Rule { operations: Operations { insert: true, ..NO_OPERATIONS }, ..whole("t") };
    hold_since(
        18,
        vec![
            (inserts, vec![only_insert.clone()], &[]),
            (made, vec![only_insert], &["generated_identity"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn old_values_that_the_log_lacks_are_found() {
    let table = "create table t (id int primary key, a text, b text not null, c text);
                 create publication walsweep for table t;";
    let indexed = "create table t (id int primary key, a text not null, b text);
                   create unique index t_a on t (a) include (b);
                   alter table t replica identity using index t_a;
                   create publication walsweep for table t;";
    let pinned = |key: &str| vec![rule("t", &[key])];
    let update = Operations { insert: true, update: true, ..NO_OPERATIONS };
    hold_all(vec![
        (table, vec![whole("t")], &["replica_identity"]),
        (table, pinned("k:{id}"), &[]),
        (table, pinned("k:{new.a}"), &[]),
        (table, pinned("k:{old.a}"), &["replica_identity"]),
        (table, vec![immutable("t")], &["delete_widens"]),
        (table, vec![Rule { operations: update, ..immutable("t") }], &[]),
        (table, vec![Rule { operations: update, ..whole("t") }], &["replica_identity"]),
        (
            table,
            vec![Rule { changed: located(&["c"], 0, "changed"), ..rule("t", &["k:{id}"]) }],
            &["changed_unknown"],
        ),
        (table, vec![when("old.c == 'x'", rule("t", &["k:{id}"]))], &["condition_unknown"]),
        (table, vec![when("new.c > 'x'", rule("t", &["k:{id}"]))], &[]),
        (table, vec![when("new.c > 1", rule("t", &["k:{id}"]))], &["condition_type"]),
        (indexed, pinned("k:{a}"), &[]),
        (indexed, pinned("k:{b}"), &["replica_identity"]),
        (
            "create table t (a text); create publication walsweep for table t",
            pinned("k:{new.a}"),
            &["no_identity"],
        ),
        (
            "create table t (a text)",
            vec![immutable("t")],
            &["delete_widens", "no_identity", "publication_missing"],
        ),
        (
            "create table t (a text primary key); alter table t replica identity nothing;
             create publication walsweep for table t",
            pinned("k:{new.a}"),
            &["no_identity"],
        ),
        (
            "create table t (a text primary key deferrable);
             create publication walsweep for table t",
            pinned("k:{a}"),
            &["no_identity", "replica_identity"],
        ),
    ])
    .await;
}

#[tokio::test]
async fn partitions_are_looked_at_one_by_one() {
    let root = "create table t (a text primary key, b text) partition by list (a);
                create table t_x partition of t for values in ('x');
                create table t_y partition of t default;";
    let with = |publication: &str| -> &'static str {
        Box::leak(format!("{root} create publication walsweep for table {publication}").into())
    };
    let via = with("t with (publish_via_partition_root = true)");
    let full = |table: &str| -> &'static str {
        let alter =
            table.split(", ").map(|one| format!("; alter table {one} replica identity full"));
        Box::leak(format!("{via}{}", alter.collect::<String>()).into())
    };
    let wide = || vec![Rule { operations: ROWS, ..rule("t", &["k:{b}"]) }];
    let narrow = |table| vec![Rule { operations: ROWS, ..whole(table) }];
    let update = Operations { update: true, ..NO_OPERATIONS };
    hold_all(vec![
        (via, vec![whole("t")], &["partition_truncate"]),
        (via, vec![Rule { operations: update, ..whole("t") }], &["partition_move"]),
        (full("t, t_x, t_y"), narrow("t"), &["partition_added"]),
        (root, narrow("t"), &["publication_missing"]),
        (with("t"), narrow("t"), &["partition_root"]),
        (with("t_x, t_y"), narrow("t"), &["partition_root"]),
        (with("t_x"), narrow("t"), &["table_not_published"]),
        (with("t"), narrow("t_x"), &[]),
        (via, narrow("t"), &[]),
        (via, narrow("t_x"), &["partition_leaf"]),
        (via, wide(), &["replica_identity"]),
        (full("t"), wide(), &["partition_identity", "replica_identity"]),
        (full("t"), narrow("t"), &["partition_identity"]),
        (full("t_x"), wide(), &["replica_identity"]),
    ])
    .await;
}
