//! Settings of the role or the database: no session of ours is another one for them, but that of
//! lookups, which sees what the role sees.

use walsweep::capture::Replication;
use walsweep::postgres::{Endpoint, connect_sql};

use crate::support::{Bed, ITEM_RULES, Settings, Sidecar, Sql, text};

/// A value that somebody may have set, for each setting of `sql/session.sql`.
const HOSTILE: [(&str, &str); 24] = [
    ("statement_timeout", "'5s'"),
    ("lock_timeout", "'1s'"),
    ("transaction_timeout", "'5s'"),
    ("idle_in_transaction_session_timeout", "'1s'"),
    ("idle_session_timeout", "'1s'"),
    ("exit_on_error", "on"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("search_path", "app, public, pg_catalog"),
    ("standard_conforming_strings", "off"),
    ("transform_null_equals", "on"),
    ("array_nulls", "off"),
    ("quote_all_identifiers", "on"),
    ("datestyle", "'SQL, DMY'"),
    ("intervalstyle", "sql_standard"),
    ("extra_float_digits", "-3"),
    ("timezone", "'Asia/Tokyo'"),
    ("bytea_output", "escape"),
    ("client_min_messages", "error"),
    ("jit", "on"),
    ("max_parallel_workers_per_gather", "8"),
    ("logical_decoding_work_mem", "'64kB'"),
    ("debug_logical_replication_streaming", "immediate"),
];

/// The rows of the list: name and value.
fn listed() -> Vec<(String, String)> {
    let lines = include_str!("../../../sql/session.sql").lines().map(str::trim);
    let rows =
        lines.filter_map(|line| line.strip_prefix("('")?.trim_end_matches(',').strip_suffix("')"));
    let pair = |row: &str| {
        let (name, value) = row.split_once("', '").unwrap();
        (name.to_owned(), value.to_owned())
    };
    rows.map(pair).collect()
}

#[tokio::test]
async fn every_session_begins_in_the_state_that_is_listed() {
    let bed = Bed::new(&[]).await;
    let listed = listed();
    let names: Vec<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
    let hostile: Vec<&str> = HOSTILE.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, hostile, "every setting of the list is tried, and no other");
    let endpoint = Endpoint::parse(&bed.postgres.url()).unwrap();
    let known =
        "select coalesce(array_agg(name), '{}') from pg_settings where lower(name) = any ($1)";
    let known: Vec<String> = bed.sql.one_of(known, &[&names]).await;
    for (name, value) in HOSTILE {
        if known.iter().any(|one| one.eq_ignore_ascii_case(name)) {
            bed.sql.run(&format!("alter role postgres set {name} = {value}")).await;
        }
    }
    let sql = connect_sql(&endpoint, "test").await.unwrap();
    let mut replication = Replication::connect(&endpoint, "test").await.unwrap();
    for (name, value) in listed {
        let shown: Option<String> =
            sql.query_one("select current_setting($1, true)", &[&name]).await.unwrap().get(0);
        let Some(shown) = shown else { continue };
        assert_eq!(shown, value, "{name}");
        let row = replication.query_row("ask", &format!("SHOW {name}")).await.unwrap();
        assert_eq!(row, [Some(value)], "{name} of the replication connection");
    }
    sql.act_as_role().await.unwrap();
    for (name, value) in [
        ("search_path", "app, public, pg_catalog"),
        ("standard_conforming_strings", "off"),
        ("quote_all_identifiers", "on"),
        ("DateStyle", "ISO, DMY"),
        ("TimeZone", "UTC"),
        ("statement_timeout", "0"),
    ] {
        let show = format!("show {name}");
        let shown: String = sql.query_one(&show, &[]).await.unwrap().get(0);
        assert_eq!(shown, value, "{name} for a lookup");
    }
}

/// Checks, sets up, runs, changes a row, takes everything down again.
async fn lives(bed: &Bed, settings: Settings, what: &str) {
    println!("{what}");
    let mut sidecar = Sidecar::new(settings);
    sidecar.setup();
    let found = sidecar.command(&["check"]);
    assert!(found.status.success(), "{what}: {}", text(&found));
    sidecar.start();
    sidecar.wait_ready().await;
    let gone = [
        "item:1",
        "list:team 1:x",
        "value:2026-02-01 04:05:06+00:1 day 02:00:00:0.1:\\x00ff:it's \\ \"quoted\"",
    ];
    let stays = ["item:2", "list:team 2:x", "value:2"];
    bed.fill(&gone).await;
    bed.fill(&stays).await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    bed.sql.run("update value set n = n + 1").await;
    for key in gone {
        bed.gone(key).await;
    }
    bed.settled().await;
    for key in stays {
        assert!(bed.has(key).await, "{what}: `{key}` stays");
    }
    assert_eq!(sidecar.readyz().await, Some(200), "{what}");
    assert_eq!(sidecar.sigterm().await, 0, "{what}");
    let teardown = sidecar.command(&["teardown"]);
    assert!(teardown.status.success(), "{what}: {}", text(&teardown));
}

const VALUES: &str = "
    create table value (id int primary key, n int not null, at timestamptz, span interval,
                        part float8, bytes bytea, label text);
    alter table value replica identity full;
    insert into value values (1, 0, '2026-02-01 04:05:06+00', '1 day 02:00', 0.1, '\\x00ff',
                              'it''s \\ \"quoted\"');";

const VALUE_RULE: &str = r#"
[[rule]]
name = "value"
table = "public.value"
keys = ["value:{at}:{span}:{part}:{bytes}:{label}"]
"#;

#[tokio::test]
async fn whatever_the_role_or_the_database_is_set_to_the_same_keys_go() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(VALUES).await;
    let settings = Settings { rules: format!("{ITEM_RULES}{VALUE_RULE}"), ..bed.settings() };
    let version = bed.version().await;
    let since = |name: &str| match name {
        "transaction_timeout" => 17,
        "debug_logical_replication_streaming" => 16,
        _ => 14,
    };
    let known = || HOSTILE.iter().filter(|(name, _)| since(name) <= version);
    for whom in ["role postgres", "database postgres"] {
        for (name, value) in known() {
            bed.sql.run(&format!("alter {whom} set {name} = {value}")).await;
        }
        lives(&bed, settings.clone(), &format!("everything for {whom}")).await;
        bed.sql.run(&format!("alter {whom} reset all")).await;
    }
    // Those that spoil something on their own; all at once, one may hide the other.
    for name in [
        "search_path",
        "standard_conforming_strings",
        "quote_all_identifiers",
        "default_transaction_read_only",
        "exit_on_error",
        "datestyle",
    ] {
        let (_, value) = HOSTILE.iter().find(|(known, _)| *known == name).unwrap();
        bed.sql.run(&format!("alter role postgres set {name} = {value}")).await;
        lives(&bed, settings.clone(), name).await;
        bed.sql.run("alter role postgres reset all").await;
    }
}

/// A role whose settings make it another one stays that: who we are is no state of a session.
#[tokio::test]
async fn the_role_that_a_role_is_set_to_is_the_one_that_acts() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run("create role reader; grant reader to postgres; alter role postgres set role = reader")
        .await;
    let endpoint = Endpoint::parse(&bed.postgres.url()).unwrap();
    let sql = connect_sql(&endpoint, "test").await.unwrap();
    let user: String = sql.query_one("select current_user::text", &[]).await.unwrap().get(0);
    assert_eq!(user, "reader");
}

/// Creation of a slot waits for every transaction that runs, however long, and decoding of a large
/// transaction takes its time: limits of the role must end neither.
#[tokio::test]
async fn no_limit_of_the_role_ends_the_creation_of_a_slot() {
    let bed = Bed::new(&[]).await;
    let busy = Sql::connect(&bed.postgres).await;
    for name in ["statement_timeout", "lock_timeout", "idle_session_timeout"] {
        bed.sql.run(&format!("alter role postgres set {name} = '100ms'")).await;
    }
    busy.run("begin; select pg_current_xact_id()").await;
    let mut sidecar = Sidecar::new(bed.settings());
    bed.sql.run("create publication walsweep for table item").await;
    sidecar.start();
    sidecar.wait_log("creating the slot").await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    busy.run("commit").await;
    sidecar.wait_ready().await;
    let starts = sidecar.log().iter().filter(|line| line.contains("creating the slot")).count();
    assert_eq!(starts, 1, "the first attempt succeeds");
}

/// The application's view: names by the role's path, texts by the role's rules.
const LOOKUP_RULES: &str = r#"
[lookup.kept]
sql = "select label from team where id = $1"
params = ["id"]
cache = 100

[lookup.asked]
sql = '''select label || case when '\x41' = 'A' then ' as the role reads it' end as label
          from team where id = $1'''
params = ["id"]
cache = 0

[[rule]]
name = "item"
table = "public.item"
keys = ["kept:{kept.label}", "asked:{asked.label}"]
"#;

#[tokio::test]
async fn a_lookup_alone_sees_the_roles_own_view() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create schema app; create schema first;
             create table app.team (id int primary key, label text not null);
             alter table app.team replica identity full;
             insert into app.team select id, 'label ' || id from generate_series(1, 100) id;
             alter role postgres set search_path = first, app;
             alter role postgres set standard_conforming_strings = off;
             alter role postgres set escape_string_warning = off",
        )
        .await;
    let settings = Settings { rules: LOOKUP_RULES.to_owned(), ..bed.settings() };
    let mut sidecar = Sidecar::new(settings);
    sidecar.setup();
    bed.sql.run("alter publication walsweep add table app.team").await;
    let found = text(&sidecar.command(&["check"]));
    assert!(!found.contains("lookup_"), "both fit, and one is kept: {found}");
    sidecar.start();
    sidecar.wait_ready().await;
    let keys =
        |label: &str| [format!("kept:{label}"), format!("asked:{label} as the role reads it")];
    let changes = async |label: &str| {
        let keys = keys(label);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        bed.fill(&keys).await;
        bed.fill(&["kept:other", "asked:other"]).await;
        bed.sql.run("update public.item set version = version + 1 where id = 1").await;
        for key in keys {
            bed.gone(key).await;
        }
        bed.settled().await;
        for key in ["kept:other", "asked:other"] {
            assert!(bed.has(key).await, "{key}");
        }
    };
    changes("label 1").await;
    changes("label 1").await;
    // Another table of that name comes first in the role's path: what is kept means something else.
    bed.sql
        .run("create table first.team as select id, 'first ' || id as label from app.team")
        .await;
    sidecar.wait_log("sweeping everything").await;
    sidecar.wait_ready().await;
    crate::support::eventually(crate::support::PATIENCE, "the other table is read", || async {
        let [key, _] = keys("first 1");
        bed.fill(&[&key]).await;
        bed.sql.run("update public.item set version = version + 1 where id = 1").await;
        bed.settled().await;
        !bed.has(&key).await
    })
    .await;
}
