//! Names that need quotes, databases that are not in UTF-8, and rows that come from elsewhere.

use redis::AsyncCommands;
use tokio_postgres::{Client, NoTls};
use walsweep_stage::throwaway::{Postgres, PostgresOptions};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually};

use super::{expect, rule, sidecar};

#[tokio::test]
async fn a_name_is_whatever_sql_allows() {
    let bed = Bed::new(&[]).await;
    let long = "L".repeat(62) + "e";
    let ddl = format!(
        r#"create schema "My Schema.v1";
           create table "My Schema.v1"."Odd ""Name""" ("Id.1" int primary key, "se lect" text);
           alter table "My Schema.v1"."Odd ""Name""" replica identity full;
           create table "select" ("order" int primary key, "UPPER" int, "a}}b|c" int);
           alter table "select" replica identity full;
           create table "{long}" ("{long}" int primary key);
           create table "größe" ("é{{}}" int primary key)"#
    );
    let rules = rule(
        r#""My Schema.v1"."Odd ""Name""""#,
        &[r#"odd:{"Id.1"}:{old."se lect"}"#, r#"odd:{"Id.1"}"#],
    ) + &rule("public.select", &["select:{order}:{UPPER}", r#"brace:{"a}b|c"}"#])
        + &rule(&long, &[&format!("long:{{{long}}}")])
        + &rule("größe", &[r#"size:{"é{}"}"#]);
    let sidecar = sidecar(&bed, &ddl, &rules).await;
    let odd = r#"insert into "My Schema.v1"."Odd ""Name""" values (1, 'a');
                 update "My Schema.v1"."Odd ""Name""" set "se lect" = 'b'"#;
    expect(&bed, odd, &["odd:1", "odd:1:a"], &["odd:2", "odd:1:b"]).await;
    let select = r#"insert into "select" values (1, 2, 3)"#;
    expect(&bed, select, &["select:1:2", "brace:3"], &["select:1:3", "brace:4"]).await;
    let insert = format!(r#"insert into "{long}" values (5); insert into "größe" values (6)"#);
    expect(&bed, &insert, &["long:5", "size:6"], &["long:6", "size:5"]).await;
    sidecar.assert_quiet(&["watermark_missing"]);
}

async fn connect(server: &Postgres, database: &str) -> Client {
    let (client, connection) =
        tokio_postgres::connect(&server.url_of(database), NoTls).await.unwrap();
    drop(tokio::spawn(connection));
    client
}

/// Keys are in UTF-8, whatever the database is in; `SQL_ASCII` alone knows no encoding, and its
/// values are the bytes that stand in it.
#[tokio::test]
async fn keys_are_in_utf8_whatever_the_database_is_in() {
    let bed = Bed::new(&[]).await;
    for (encoding, value, key) in [
        ("LATIN1", "'caf\u{e9}'", "k:caf\u{e9}".as_bytes()),
        ("WIN1252", "'\u{20ac}5'", "k:\u{20ac}5".as_bytes()),
        ("EUC_JP", "'\u{65e5}\u{672c}'", "k:\u{65e5}\u{672c}".as_bytes()),
        ("SQL_ASCII", "E'caf\\xe9'", b"k:caf\xe9"),
    ] {
        let name = encoding.to_lowercase();
        bed.sql
            .run(&format!(
                "create database {name} encoding '{encoding}' template template0
                 lc_collate 'C' lc_ctype 'C'"
            ))
            .await;
        let client = connect(&bed.postgres, &name).await;
        let ddl = "create table \"t\u{e9}\" (id int primary key, \"v\u{e9}\" text)";
        // The name exists in all of these but the Japanese one, which has no such letter in it.
        let ddl = if encoding == "EUC_JP" { ddl.replace('\u{e9}', "\u{65e5}") } else { ddl.into() };
        client.batch_execute(&ddl).await.unwrap();
        let letter = if encoding == "EUC_JP" { "\u{65e5}" } else { "\u{e9}" };
        let rules = rule(&format!("t{letter}"), &[&format!("k:{{new.v{letter}}}")]);
        let mut settings = Settings::new(&bed.postgres, &bed.redis, &rules);
        settings.postgres_url = bed.postgres.url_of(&name);
        settings.name = name.clone();
        let sidecar = Sidecar::set_up(settings).await;
        let _: () = bed.cache.clone().set(key, "cached").await.unwrap();
        let insert = format!("insert into \"t{letter}\" values (1, {value})");
        client.batch_execute(&insert).await.unwrap();
        eventually(PATIENCE, encoding, || async {
            !bed.cache.clone().exists::<_, bool>(key).await.unwrap()
        })
        .await;
        sidecar.assert_quiet(&["watermark_missing"]);
    }
}

/// Changes that another server replicates to this one count, and so do those that are written under
/// an origin.
#[tokio::test]
async fn changes_that_come_from_another_server_count() {
    let bed = Bed::new(&[]).await;
    let far = Postgres::start(PostgresOptions::default()).await.unwrap();
    let there = Sql::connect(&far).await;
    let table = "create table fed (id int primary key, v text);
                 alter table fed replica identity full;";
    there.run(table).await;
    there.run("create publication feed for table fed").await;
    let sidecar = sidecar(&bed, table, &rule("public.fed", &["fed:{id}", "v:{v}"])).await;
    let connect = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", far.port());
    bed.sql.run(&format!("create subscription s connection '{connect}' publication feed")).await;
    let synced = "select count(*) = 1 and bool_and(srsubstate = 'r') from pg_subscription_rel";
    eventually(PATIENCE, "the tables are in step", || async { bed.sql.one(synced).await }).await;
    bed.fill(&["fed:1", "fed:2", "v:a", "v:b"]).await;
    there.run("insert into fed values (1, 'a')").await;
    bed.gone("fed:1").await;
    there.run("update fed set v = 'b'").await;
    bed.gone("v:b").await;
    assert!(bed.has("fed:2").await);
    bed.sql.run("select pg_replication_origin_create('elsewhere')").await;
    let origin = "select pg_replication_origin_session_setup('elsewhere');
                  delete from fed where id = 1";
    expect(&bed, origin, &["fed:1", "v:b"], &["fed:2", "v:c"]).await;
    bed.sql.run("drop subscription s").await;
    sidecar.assert_quiet(&["watermark_missing"]);
}
