//! Names that others define (CVE-2018-1058): none of them is ever called.

use std::io::Write;
use std::process::Stdio;

use tokio::time::Instant;

use super::statements::Calls;
use crate::support::{Bed, Settings, Sidecar, text};

/// A table of the role's own, one that kept answers of lookups come from, and one with a part.
const TABLES: &str = "
    create schema shop;
    create table shop.team (id int primary key, label text not null);
    insert into shop.team values (1, 'red'), (2, 'blue');
    create table shop.item (id int primary key, team text, version bigint not null default 0);
    alter table shop.item replica identity full;
    insert into shop.item values (1, 'team 1', 0), (2, 'team 2', 0);
    create table shop.goal (id int primary key, team_id int not null, points int not null)
        partition by range (id);
    create table shop.goal_1 partition of shop.goal for values from (0) to (1000);
    alter table shop.goal replica identity full;
    alter table shop.goal_1 replica identity full;
    insert into shop.goal values (1, 1, 0), (2, 2, 0);";

const RULES: &str = r#"
[lookup.team]
sql = "select label from shop.team where id operator(pg_catalog.=) $1"
params = ["team_id"]
cache = 100

[lookup.again]
sql = "select label from shop.team where id operator(pg_catalog.=) $1"
params = ["team_id"]
cache = 0

[[rule]]
name = "goal"
table = "shop.goal"
when = "new.points >= 0 && new.team_id != 9"
keys = ["goal:{id}", "team:{team.label}", "again:{again.label}"]

[[rule]]
name = "item"
table = "shop.item"
when = "new.version >= 0 && new.team != 'none'"
keys = ["item:{id}", "list:{team}:*"]
"#;

/// A rule that needs an event trigger, which only a superuser can make.
const VIEW_RULE: &str = r#"
[[rule]]
name = "view"
materialized_view = "shop.totals"
keys = ["totals"]
"#;

/// A server on which whoever may create in `public` or in a role's own schema did so.
async fn planted() -> Bed {
    let bed = Bed::new(&["max_locks_per_transaction = 2000"]).await;
    let sql = &bed.sql;
    sql.run(TABLES).await;
    sql.run(
        "create materialized view shop.totals as select 1 as n;
         create role sidecar login replication;
         grant create on database postgres to sidecar;
         alter table shop.item owner to sidecar;
         alter table shop.goal owner to sidecar;
         alter table shop.goal_1 owner to sidecar;
         grant select on shop.team to sidecar;
         grant usage on schema shop to public;
         set search_path = pg_catalog",
    )
    .await;
    let calls = Calls::of_the_program();
    let counted = calls
        .functions
        .iter()
        .flat_map(|(name, counts)| counts.iter().map(move |count| (name, count)));
    let (names, counts): (Vec<&str>, Vec<i32>) =
        counted.map(|(name, count)| (name.as_str(), i32::try_from(*count).unwrap())).unzip();
    let list = |set: &std::collections::BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>();
    let (operators, types, relations) =
        (list(&calls.operators), list(&calls.types), list(&calls.names));
    sql.run(include_str!("plant.sql")).await;
    let start = Instant::now();
    let plant = "select pg_temp.plant('public', $1, $2, $3, $4, $5)";
    let count: i32 = sql.one_of(plant, &[&names, &counts, &operators, &types, &relations]).await;
    println!("{count} planted after {:?}", start.elapsed());
    assert!(count > 2000, "{count}");
    bed
}

/// Everything that is done to a database, from the first look to the last, with changes between.
async fn live(bed: &Bed, settings: Settings, by_hand: bool) {
    let mut sidecar = Sidecar::new(settings);
    let succeeds = |args: &[&str]| {
        let output = sidecar.command(args);
        assert!(output.status.success(), "{args:?}\n{}", text(&output));
        text(&output)
    };
    let found = text(&sidecar.command(&["check"]));
    assert!(found.contains("publication_missing"), "{found}");
    let script = succeeds(&["setup", "--print"]);
    if by_hand {
        let mut psql = bed.postgres.command("psql");
        psql.args(["--no-psqlrc", "--quiet", "-f", "-"]).stdin(Stdio::piped());
        let mut psql = psql.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        psql.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = psql.wait_with_output().unwrap();
        assert!(output.status.success(), "{script}\n{}", text(&output));
    } else {
        succeeds(&["setup"]);
    }
    bed.sql.run("alter publication walsweep add table shop.team").await;
    succeeds(&["check"]);
    sidecar.start();
    sidecar.wait_ready().await;
    for round in 0..2 {
        let keys = ["goal:1", "team:red", "again:red", "item:1", "list:team 1:x"];
        bed.fill(&keys).await;
        bed.fill(&["goal:2", "team:blue", "again:blue", "item:2"]).await;
        bed.sql.run("update shop.goal set points = points + 1 where id = 1").await;
        bed.sql.run("update shop.item set version = version + 1 where id = 1").await;
        for key in keys {
            bed.gone(key).await;
        }
        settled(bed).await;
        for key in ["goal:2", "team:blue", "again:blue", "item:2"] {
            assert!(bed.has(key).await, "{key} in round {round}");
        }
    }
    if by_hand {
        bed.fill(&["totals"]).await;
        bed.sql.run("refresh materialized view shop.totals").await;
        bed.gone("totals").await;
    }
    // The slot is looked at every five seconds, and the tables every two.
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    assert_eq!(sidecar.readyz().await, Some(200), "{}", sidecar.log().join("\n"));
    assert_eq!(sidecar.sigterm().await, 0);
    let output = sidecar.command(&["teardown"]);
    assert!(output.status.success(), "{}", text(&output));
    let log = sidecar.log().join("\n");
    assert!(!log.contains("PLANTED") && !log.contains("a lookup failed"), "{log}");
}

/// As [`Bed::settled`], with a path in which nothing is planted.
async fn settled(bed: &Bed) {
    bed.sql.run("select pg_logical_emit_message(false, 'settle', '')").await;
    bed.settled().await;
}

/// Gives the lines that the server logged of calls of what was planted, and of statements that
/// failed before any call. Those failed for a name of theirs that meant something planted: whoever
/// planted it may make it fit.
fn called(bed: &Bed) -> Vec<String> {
    let log = bed.postgres.socket_dir().with_file_name("log");
    let log = std::fs::read_to_string(log).unwrap();
    let is_told = |line: &&str| line.contains("PLANTED") || line.contains(" ERROR: ");
    log.lines().filter(is_told).map(str::to_owned).collect()
}

#[tokio::test]
async fn no_function_operator_or_type_of_others_is_ever_called() {
    let bed = planted().await;
    // It works at all: the same call from a session that is not protected.
    let victim = bed.postgres.connect().await.unwrap();
    let asked = victim.batch_execute("select concat_ws(' ', xmin, xmin) from pg_catalog.pg_class");
    asked.await.unwrap_err();
    assert_eq!(called(&bed).len(), 1);
    let begin = called(&bed).len();
    let first = "set search_path = public, pg_catalog";
    for (user, change) in [
        ("sidecar", "select 1".to_owned()),
        ("sidecar", format!("alter role sidecar {first}")),
        ("postgres", "select 1".to_owned()),
        ("postgres", format!("alter database postgres {first}")),
        ("postgres", format!("alter role postgres {first}")),
        // The schema of one's own name comes first by default.
        (
            "postgres",
            "alter role postgres reset all; alter database postgres reset all;
             alter schema public rename to postgres; create schema public"
                .to_owned(),
        ),
    ] {
        bed.sql.run(&change).await;
        let is_super = user == "postgres";
        let url = bed.postgres.url().replace("//postgres@", &format!("//{user}@"));
        let view = if is_super { VIEW_RULE } else { "" };
        let rules = format!("{RULES}{view}");
        let settings = Settings { postgres_url: url, rules, ..bed.settings() };
        println!("as {user}, {change:?}");
        live(&bed, settings, is_super).await;
        let called = called(&bed).split_off(begin);
        assert!(called.is_empty(), "{user} {change}: {called:?}");
    }
}
