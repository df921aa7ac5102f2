//! The session that looks rows up: it prints values as the stream does, cannot write, and belongs
//! to the primary.

use std::time::Duration;

use crate::data::types::{ODD, SETTINGS};
use crate::support::{Bed, PATIENCE, Proxy, Settings, Sidecar, Sql, eventually, text};

/// Matches, and bets on them.
const TABLES: &str = "
    create table game (id bigint primary key, home text);
    insert into game select id, 'club ' || id from generate_series(1, 9) id;
    create table bet (id bigint primary key, game_id bigint, points int);
    alter table bet replica identity full;
    insert into bet select id, id, 0 from generate_series(1, 9) id;";

const RULES: &str = r#"
[lookup.game]
sql = "select home from game where id = $1"
params = ["game_id"]

[[rule]]
name = "bet"
table = "public.bet"
keys = ["club:{game.home}"]
"#;

/// Column, type, value.
const VALUES: [(&str, &str, &str); 11] = [
    ("flag", "boolean", "true"),
    ("sure", "yes_or_no", "false"),
    ("letter", "text", "t"),
    ("at", "timestamptz", "2026-02-01 04:05:06+02"),
    ("day", "date", "2026-02-01"),
    ("span", "interval", "1 year 2 months -3 days 04:05:06"),
    ("ratio", "double precision", "0.30000000000000004"),
    ("small", "real", "0.1"),
    ("raw", "bytea", "\\x00ff2a"),
    ("net", "inet", "10.0.0.1/8"),
    ("price", "numeric(10,3)", "1.5"),
];

/// The column of a change and that of a row that is looked up give the same key.
#[tokio::test]
async fn a_value_of_a_row_is_in_keys_what_it_is_in_those_of_its_own_table() {
    let bed = Bed::new(&[]).await;
    let columns = VALUES.map(|(name, kind, _)| format!(", {name} {kind}")).concat();
    bed.sql
        .run(&format!(
            "create domain yes_or_no as boolean;
             create table kinds (id int primary key{columns});
             create table refers (id int primary key, kinds_id int); {ODD}"
        ))
        .await;
    let names = VALUES.map(|(name, ..)| name);
    let own = names.map(|name| format!("own:{name}:{{new.{name}}}"));
    let found = names.map(|name| format!("row:{name}:{{kinds.{name}}}"));
    let rules = format!(
        "[lookup.kinds]\nsql = \"select * from kinds where id = $1\"\nparams = [\"kinds_id\"]\n\
         [[rule]]\nname = \"own\"\ntable = \"kinds\"\nkeys = {own:?}\n\
         [[rule]]\nname = \"row\"\ntable = \"refers\"\noperations = [\"insert\"]\n\
         keys = {found:?}\n"
    );
    let settings = Settings { rules, ..bed.settings() };
    let sidecar = Sidecar::set_up(settings).await;
    let sql = Sql::connect(&bed.postgres).await;
    sql.run(SETTINGS).await;
    let mut keys = Vec::new();
    for (name, kind, value) in VALUES {
        let shown: String = sql.one(&format!("select '{value}'::{kind}::text")).await;
        keys.extend([format!("own:{name}:{shown}"), format!("row:{name}:{shown}")]);
    }
    bed.fill(&keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let values = VALUES.map(|(_, kind, value)| format!(", '{value}'::{kind}")).concat();
    sql.run(&format!("insert into kinds values (1{values}); insert into refers values (1, 1)"))
        .await;
    bed.settled().await;
    for key in keys {
        assert!(!bed.has(&key).await, "`{key}` is left");
    }
    assert!(sidecar.metric_sum("walsweep_widened_total").await < 0.5);
}

/// The check before the start cannot see a function that writes only where there is a row.
#[tokio::test]
async fn a_function_that_writes_for_a_row_is_refused_and_its_keys_widen() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql
        .run(
            "create table note (id bigint);
             create function noted(bigint) returns bigint language plpgsql as
               $$ begin insert into note values ($1); return $1; end $$",
        )
        .await;
    let rules = RULES.replace("select home", "select home || left(noted(id)::text, 0) as home");
    let sidecar = Sidecar::set_up(Settings { rules, ..bed.settings() }).await;
    bed.fill(&["club:any"]).await;
    bed.sql.run("update bet set points = 1 where id = 1").await;
    bed.gone("club:any").await;
    sidecar.wait_log("SQLSTATE 25006").await;
    assert_eq!(bed.sql.one::<i64>("select count(*) from note").await, 0, "it has written");
}

/// It is tried before the start, for a bounded time, and keeps nothing from starting.
#[tokio::test]
async fn a_query_that_does_not_answer_is_told_before_the_start() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let rules = RULES.replace(
        "home from game where id = $1",
        "pg_sleep(30)::text as home where $1::bigint is null",
    );
    let sidecar = Sidecar::new(Settings { rules, ..bed.settings() });
    sidecar.setup();
    let output = sidecar.command(&["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let said = text(&output);
    assert!(
        said.contains("warning[lookup_slow]") && said.contains("not answered in time"),
        "{said}"
    );
}

/// I5: a standby would show a row that is older than the commit.
#[tokio::test]
async fn a_standby_in_the_place_of_the_primary_is_not_asked() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    let behind = Sql::connect(&standby).await;
    let front = Proxy::to_port(bed.postgres.port());
    let direct = bed.postgres.url();
    let settings = Settings {
        rules: RULES.to_owned(),
        postgres_url: front.url(&direct, bed.postgres.port()),
        postgres: format!("replication_url = {direct:?}"),
        ..bed.settings()
    };
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    behind.run("select pg_wal_replay_pause()").await;
    let paused = "select pg_get_wal_replay_pause_state() = 'paused'";
    eventually(PATIENCE, "the standby stands still", || async { behind.one(paused).await }).await;
    // The gate keeps its connection; the first look for a row makes one of its own.
    front.retarget(([127, 0, 0, 1], standby.port()).into());
    bed.fill(&["club:moved", "club:club 1"]).await;
    bed.sql
        .run("update game set home = 'moved' where id = 1; update bet set points = 1 where id = 1")
        .await;
    bed.gone("club:moved").await;
    sidecar.wait_log("is not the primary").await;
    bed.settled().await;
    front.retarget(([127, 0, 0, 1], bed.postgres.port()).into());
    bed.fill(&["club:moved", "club:club 1"]).await;
    bed.sql.run("update bet set points = 2 where id = 1").await;
    bed.gone("club:moved").await;
    bed.settled().await;
    assert!(bed.has("club:club 1").await, "it finds rows again");
}

/// I10: a statement that is slow leaves the server, and the locks that it holds, within its bound.
#[tokio::test]
async fn a_slow_lookup_ends_on_the_server_and_its_keys_widen() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let rules = RULES.replace("where id = $1", "where id = $1 and pg_sleep(60) is not null");
    let _sidecar = Sidecar::set_up(Settings { rules, ..bed.settings() }).await;
    bed.fill(&["club:any"]).await;
    bed.sql.run("update bet set points = 1 where id = 1").await;
    bed.gone("club:any").await;
    let asleep = "select not exists (select from pg_stat_activity
                   where application_name = 'walsweep lookup' and wait_event = 'PgSleep')";
    let limit = Duration::from_secs(6);
    eventually(limit, "nothing sleeps any more", || async { bed.sql.one(asleep).await }).await;
    let locker = Sql::connect(&bed.postgres).await;
    locker.run("set lock_timeout = '2s'; begin; lock table game; rollback").await;
}

/// A server must have room for these connections, as docs/managed.md says.
#[tokio::test]
async fn a_session_has_four_connections_and_one_for_each_of_eight_lookups() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let lookup = |number: usize| {
        format!(
            "[lookup.game{number}]\nsql = \"select home from game where id = $1 and {number} = \
             {number}\"\nparams = [\"game_id\"]\n"
        )
    };
    let lookups: String = (0..9).map(lookup).collect();
    let keys: Vec<String> =
        (0..9).map(|number| format!("k{number}:{{game{number}.home}}")).collect();
    let rules = format!("{lookups}[[rule]]\nname = \"bet\"\ntable = \"bet\"\nkeys = {keys:?}\n");
    let _sidecar = Sidecar::set_up(Settings { rules, ..bed.settings() }).await;
    bed.settled().await;
    let count = "select count(*) from pg_stat_activity where application_name like 'walsweep%'";
    let count = || async { bed.sql.one::<i64>(count).await };
    eventually(PATIENCE, "four connections", || async { count().await == 4 }).await;
    bed.fill(&["k8:club 1"]).await;
    bed.sql.run("update bet set points = 1 where id = 1").await;
    bed.gone("k8:club 1").await;
    eventually(PATIENCE, "twelve connections", || async { count().await == 12 }).await;
}

/// A query in a schema that the role may not use the server does not parse for it: then its text
/// tells what it reads, but for its comments.
#[tokio::test]
async fn what_a_comment_of_a_query_names_is_not_to_be_granted() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create role plain login replication; create publication walsweep for table item;
             create schema shop; create table shop.club (id int primary key, name text);
             create schema hidden; create table hidden.secret (id int);
             create table hidden.other (id int)",
        )
        .await;
    let query = "select name from shop.club where id = $1 /* unlike hidden.secret */ \
                 -- nor hidden.other";
    let mut settings = bed.settings();
    settings.postgres_url = settings.postgres_url.replace("postgres@", "plain@");
    settings.rules = format!(
        "[lookup.club]\nsql = \"{query}\"\nparams = [\"id\"]\n\
         [[rule]]\nname = \"item\"\ntable = \"public.item\"\nkeys = [\"club:{{club.name}}\"]\n"
    );
    let said = text(&Sidecar::new(settings).command(&["check"]));
    for part in ["on schema \"shop\" to \"plain\"", "on \"shop\".\"club\" to \"plain\""] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("\"hidden\""), "{said}");
}

/// A column whose values the query may not take is told of before the first of them comes.
#[tokio::test]
async fn a_parameter_of_another_type_than_its_column_is_warned_of_and_the_cure_is_none() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create domain short as varchar(20);
             create table team (id int primary key, code text, name text);
             create table game (id bigint primary key, slug short, number smallint);
             alter table game replica identity full",
        )
        .await;
    let warned = |lookups: [(&str, &str); 3]| {
        let lookup = |(at, (query, param)): (usize, &(&str, &str))| {
            format!("[lookup.team{at}]\nsql = \"{query}\"\nparams = [\"{param}\"]\n")
        };
        let rules: String = lookups.iter().enumerate().map(lookup).collect();
        let keys = "[\"a:{team0.name}\", \"b:{team1.name}\", \"c:{team2.name}\"]";
        let rules = format!("{rules}[[rule]]\nname = \"game\"\ntable = \"game\"\nkeys = {keys}\n");
        let sidecar = Sidecar::new(Settings { rules, ..bed.settings() });
        sidecar.setup();
        let output = sidecar.command(&["check"]);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let said = warned([
        ("select name from team where id = $1", "slug"),
        ("select name from team where id = $1::int", "id"),
        ("select name from team where id = $1", "number"),
    ]);
    assert_eq!(said.matches("warning[lookup_types]").count(), 2, "{said}");
    for part in [
        "lookup `team0` takes `$1` for int4, and `slug` of `public.game` is varchar",
        "`where id::text = $1`",
        "lookup `team1` takes `$1` for int4, and `id` of `public.game` is int8",
        "`$1::int8`",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = warned([
        ("select name from team where id::text = $1", "slug"),
        ("select name from team where id = $1::int8", "id"),
        ("select name from team where code = $1", "number"),
    ]);
    assert!(!said.contains("lookup_types"), "{said}");
}
