//! Everything that `setup` makes, prints and names, and what `teardown` leaves.

use tokio_postgres::NoTls;
use walsweep::keys::Rules;
use walsweep::setup;
use walsweep_stage::throwaway::{Postgres, PostgresOptions};

use crate::kit::{
    TABLE, adopt, check, codes, config, database, hands, immutable, major_version, psql, run, whole,
};

#[tokio::test]
async fn the_printed_script_does_what_setup_does_and_teardown_leaves_nothing() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let ddl = "create table t (id int primary key, a text);
               create table p (a text, b text) partition by list (a);
               create table p_x partition of p default;
               create table w (id int primary key, a text)";
    let client = database(&server, "app", ddl).await;
    let config = config(server.port(), "app", vec![whole("t"), whole("p"), immutable("w")]);
    let rules = Rules::compile(&config.rules).unwrap();
    let hands = hands(&config, &client);
    let script = setup::script(&config, &rules, &hands, Vec::new()).await.unwrap();
    assert!(script.starts_with("-- What walsweep needs"), "{script}");
    assert!(!script.contains("create role"), "it is there: {script}");
    assert!(script.contains("-- Not needed, but: 1:1: rule.0.keys.0: `a` is not in"), "{script}");
    assert_eq!(codes(&check(&config, &client).await).first(), Some(&"delete_widens"));

    psql(&server, "app", &script);
    let findings = check(&config, &client).await;
    let expected = ["delete_widens", "partition_added", "partition_truncate"];
    assert_eq!(codes(&findings), expected, "{findings:#?}");
    let script = setup::script(&config, &rules, &hands, Vec::new()).await.unwrap();
    assert!(script.contains("\n-- Nothing to do.\n"), "{script}");

    let printed = setup::teardown_script(&config, &hands).await.unwrap();
    let lines = setup::teardown(&config, &hands).await.unwrap().lines;
    assert!(lines[0].starts_with("dropped slot `slot_app`, whose confirmed_flush_lsn was "));
    assert_eq!(lines[1], "dropped publication `walsweep`");
    for part in [
        "alter table \"public\".\"t\" replica identity default",
        "alter table \"public\".\"p_x\" replica identity default",
        "role `postgres` stays",
    ] {
        assert!(lines.iter().any(|line| line.contains(part)), "{part}: {lines:#?}");
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let own = " --scan --pattern 'walsweep:slot_app:*' | xargs redis-cli -h '";
    assert!(printed.contains(own), "{printed}");
    assert!(!lines.concat().contains("\"w\""), "that was not changed: {lines:#?}");
    assert_eq!(client.query_one(LEFT, &[]).await.unwrap().get::<_, i64>(0), 0);
    let lines = setup::teardown(&config, &hands).await.unwrap().lines;
    assert_eq!(lines.first().unwrap(), "there is no slot `slot_app`");

    setup::setup(&config, &rules, &hands).await.unwrap();
    let printed = setup::teardown_script(&config, &hands).await.unwrap();
    // As the end of a session of `setup` does.
    run(&client, "select pg_advisory_unlock_all()").await;
    psql(&server, "app", &printed);
    assert_eq!(client.query_one(LEFT, &[]).await.unwrap().get::<_, i64>(0), 0, "{printed}");
}

/// How many slots and publications there are.
const LEFT: &str = "select (select count(*) from pg_replication_slots)
                         + (select count(*) from pg_publication)";

#[tokio::test]
async fn the_slot_of_another_program_is_not_dropped() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let ddl = format!("{TABLE} create publication walsweep for table t");
    let client = database(&server, "app", &ddl).await;
    let other = server.connect().await.unwrap();
    let config = config(server.port(), "app", vec![whole("t")]);
    for (session, make, what) in [
        (&other, "logical_replication_slot('slot_app', 'pgoutput')", "of database `postgres`"),
        (&client, "logical_replication_slot('slot_app', 'test_decoding')", "`test_decoding`"),
        (&client, "physical_replication_slot('slot_app')", "a physical slot"),
    ] {
        run(session, &format!("select pg_create_{make}")).await;
        let lines = setup::teardown(&config, &hands(&config, &client)).await.unwrap().lines;
        assert!(lines[0].starts_with("left slot `slot_app`: "), "{lines:#?}");
        assert!(lines[0].contains(what), "{lines:#?}");
        assert_eq!(client.query_one(LEFT, &[]).await.unwrap().get::<_, i64>(0), 2, "{make}");
        run(session, "select pg_drop_replication_slot('slot_app')").await;
    }
}

#[tokio::test]
async fn what_a_role_may_not_do_is_named() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let ddl = format!("{TABLE} create role plain login replication");
    drop(database(&server, "app", &ddl).await);
    let url = server.url_of("app").replace("postgres@", "plain@");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    drop(tokio::spawn(connection));
    let config = config(server.port(), "app", vec![whole("t")]);
    let rules = Rules::compile(&config.rules).unwrap();
    let error = setup::setup(&config, &rules, &hands(&config, &client)).await;
    let error = error.unwrap_err().to_string();
    let told = "may not create a publication in database `app`, change table `public.t` of \
                `postgres`; nothing of it was done";
    assert!(error.starts_with("set up the database: role `") && error.ends_with(told), "{error}");
}

#[tokio::test]
async fn every_table_can_be_written_to_after_setup() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let ddl = "create table t (id int primary key, a text, b text);
               create table bare (a text);
               insert into t values (1, 'x', 'y'); insert into bare values ('x')";
    let client = database(&server, "app", ddl).await;
    // Column lists came with version 15.
    let list = if major_version(&client).await < 15 { "" } else { "(id, a)" };
    run(&client, &format!("create publication walsweep for table t {list}, bare")).await;
    adopt(&client).await;
    let config = config(server.port(), "app", vec![whole("t"), whole("bare")]);
    let refused = client.batch_execute("update bare set a = 'z'").await;
    assert!(refused.is_err(), "what is to be cured is not there");
    let rules = Rules::compile(&config.rules).unwrap();
    setup::setup(&config, &rules, &hands(&config, &client)).await.unwrap();
    run(&client, "update t set a = 'z'; delete from t; update bare set a = 'z'").await;
}
