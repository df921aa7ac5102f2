//! Which tables get a row filter, and that the application can write to each of them whether they
//! do or not.

use walsweep::config::{Config, Rule};
use walsweep::throwaway::{Postgres, PostgresOptions};

use crate::kit::{
    check, config, database, find, immutable, located, major_version, rule, run, when,
};

const EITHER: &str = "(op != 'insert' && old.s == 'a') || (op != 'delete' && new.s == 'a')";

/// What the application does to any of the tables.
const WRITES: &str = "insert into t (id, s) values (1, 'a'), (2, 'b'), (3, null);
                      update t set s = 'b' where id = 1; update t set s = 'a' where id = 2;
                      update t set id = id + 10; delete from t";

fn plain() -> Rule {
    when(EITHER, rule("t", &["k"]))
}

/// The publication's own SQL alone is run, not what `setup` would run before it.
#[tokio::test]
async fn only_what_postgres_compares_as_walsweep_does_is_filtered_and_every_write_goes_on() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    if major_version(&server.connect().await.unwrap()).await < 15 {
        return;
    }
    let full = "alter table t replica identity full;";
    let with = |kind: &str| format!("create table t (id int primary key, s {kind}); {full}");
    // It is FULL once `setup` was run: `b` tells the old value.
    let moves = || {
        let stays = Rule { immutable: located(&["s"], 0, "immutable"), ..plain() };
        Rule { keys: located(&["k:{b}"], 0, "keys"), ..stays }
    };
    let partitioned = "create table t (id int, s text, primary key (id, s)) partition by list (s);
                       create table u partition of t default;
                       alter table t replica identity full; alter table u replica identity full;";
    let insert = "insert into t (id, s) values (1, 'a'), (2, 'b'); update t set s = 'c'";
    for (number, (ddl, rule, has_filter, writes)) in [
        (with("text"), plain(), true, WRITES),
        (with("varchar(3)"), plain(), true, WRITES),
        (with("text collate \"C\""), plain(), true, WRITES),
        (with("char(3)"), plain(), false, WRITES),
        (format!("create type e as enum ('a', 'b'); {}", with("e")), plain(), false, WRITES),
        (format!("create domain d as text; {}", with("d")), plain(), false, WRITES),
        (
            format!(
                "create collation o (provider = libc, locale = 'C'); {}",
                with("text collate o")
            ),
            plain(),
            false,
            WRITES,
        ),
        ("create table t (id int primary key, s text)".to_owned(), plain(), false, WRITES),
        ("create table t (id int primary key, s text, b text)".to_owned(), moves(), true, WRITES),
        ("create table t (id int, s text, primary key (id, s))".to_owned(), plain(), true, insert),
        (
            format!(
                "{} create table u (like t); alter table u replica identity full;
                 alter table u inherit t;",
                with("text")
            ),
            plain(),
            false,
            WRITES,
        ),
        (partitioned.to_owned(), plain(), false, insert),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("row{number}");
        let client = database(&server, &name, &ddl).await;
        let config = config(server.port(), &name, vec![rule]);
        let findings = check(&config, &client).await;
        let missing = find(&findings, "publication_missing");
        let sql = missing.sql.as_deref().unwrap();
        assert_eq!(sql.contains(" where ("), has_filter, "{ddl}\n{missing}");
        assert_eq!(missing.price.is_some(), sql.contains("where") || sql.contains(" (\""), "{sql}");
        run(&client, sql).await;
        run(&client, writes).await;
        let found = "row_filter_outdated";
        let after = check(&config, &client).await;
        assert!(after.iter().all(|finding| finding.code != found), "{ddl}\n{after:#?}");
    }
}

#[tokio::test]
async fn a_key_that_moves_keeps_all_rows_and_so_does_a_switch() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    if major_version(&server.connect().await.unwrap()).await < 15 {
        return;
    }
    let ddl = "create table t (id int primary key, s text, a text);
               alter table t replica identity full;";
    let client = database(&server, "app", ddl).await;
    let mut config = config(server.port(), "app", vec![when(EITHER, immutable("t"))]);
    for (has_filter, change) in [
        (true, (|_| {}) as fn(&mut Config)),
        (false, |config| config.rules[0].immutable.clear()),
        (false, |config| config.postgres.narrow = false),
    ] {
        let before = config.clone();
        change(&mut config);
        let findings = check(&config, &client).await;
        let missing = find(&findings, "publication_missing");
        assert_eq!(missing.sql.as_ref().unwrap().contains("where"), has_filter, "{missing}");
        config = before;
    }
}
