//! DDL that changes, while the stream runs, what a row reads as and what is told of it: the watch
//! sees what `check` judges before the start.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use tokio::time::{Duration, sleep};
use walsweep::preflight::Code;

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text};

const SWEEPS: &str = "walsweep_resyncs_total{reason=\"tables_changed\"}";

const TYPES: &str = "
    create type mood as enum ('sad', 'glad');
    create domain moods as mood;
    create type place as (town text, moods mood[]);
    create table poem (id int primary key, title text, mood moods, place place, note text,
                       size int generated always as (length(note)) stored);
    insert into poem values (1, 'a', 'sad', ('x', '{glad}'), 'n'), (2, 'b', 'glad', null, null);
    create table verse (id int, region text, primary key (id, region)) partition by list (region);
    create table verse_eu partition of verse for values in ('eu');";

fn settings(bed: &Bed, rules: &[&str]) -> Settings {
    Settings { rules: rules.concat(), ..bed.settings() }
}

fn rule(name: &str, table: &str, more: &str, keys: &[&str]) -> String {
    format!("[[rule]]\nname = {name:?}\ntable = \"public.{table}\"\nkeys = {keys:?}\n{more}\n")
}

async fn sweeps(sidecar: &Sidecar, count: f64, what: &str) {
    let swept =
        || async { sidecar.metric(SWEEPS).await >= count && sidecar.readyz().await == Some(200) };
    eventually(PATIENCE, what, swept).await;
    assert_eq!(sidecar.metric(SWEEPS).await, count, "{what}");
}

#[tokio::test]
async fn whatever_changes_how_a_row_reads_is_swept_and_nothing_else() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TYPES).await;
    let rules = [rule("poem", "poem", "", &["poem:{id}"]), rule("verse", "verse", "", &["v:{id}"])];
    let sidecar = Sidecar::set_up(settings(&bed, &[&rules[0], &rules[1]])).await;
    bed.settled().await;
    let nothing = "truncate verse; vacuum full poem; cluster poem using poem_pkey; analyze poem;
                   alter type mood add value 'calm'; create index on poem (title);
                   reindex table poem; comment on table poem is 'x'; grant select on poem to public;
                   create policy off on poem using (id > 0); drop policy off on poem;
                   create policy seen on poem using (id > 0);
                   create table verse_us partition of verse for values in ('us')";
    for statement in nothing.split(';') {
        bed.sql.run(statement).await;
    }
    // The removal of `v:*` that the TRUNCATE asks for may still be on its way.
    bed.settled().await;
    bed.fill(&["poem:1", "v:1"]).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(sidecar.metric(SWEEPS).await, 0.0);
    assert!(bed.has("poem:1").await && bed.has("v:1").await);
    let (poem, verse) = ("poem:1", "v:1");
    let mut changes = vec![
        ("alter table poem alter column title type text using upper(title)", poem),
        ("alter type mood rename value 'sad' to 'blue'", poem),
        // One that was made since the start.
        ("alter type mood rename value 'calm' to 'cool'", poem),
        ("alter type place rename attribute town to city", poem),
        ("alter type place add attribute street text", poem),
        ("alter table poem alter column id set not null, alter column title type varchar", poem),
        ("alter table poem enable row level security", poem),
        ("alter policy seen on poem using (id > 1)", poem),
        ("create policy too on poem using (id < 9)", poem),
        ("alter table poem force row level security", poem),
        ("drop policy too on poem", poem),
        ("alter table poem disable row level security", poem),
        ("alter table verse detach partition verse_us", verse),
        ("drop table verse_eu", verse),
    ];
    if bed.version().await >= 18 {
        let generated = "alter table poem add column loud text generated always as (upper(title))";
        changes.push((generated, poem));
    }
    for (count, (change, swept)) in (1..).zip(changes) {
        bed.fill(&["poem:1", "v:1", "other"]).await;
        bed.sql.run(change).await;
        sweeps(&sidecar, f64::from(count), change).await;
        for key in [poem, verse] {
            assert_eq!(bed.has(key).await, key != swept, "{key} after {change}");
        }
        assert!(bed.has("other").await, "{change}");
    }
}

/// Every code of an error of the checks that may come to be while walsweep runs: the rule, how it
/// is broken and how it is mended. Another table for each rule.
const LIVE: [(&str, &str, &str, &str); 24] = [
    ("table_missing", "a", "alter table a rename to z", "alter table z rename to a"),
    (
        "table_kind",
        "part",
        "create unlogged table part_u partition of part for values in ('u')",
        "drop table part_u",
    ),
    ("inheritance", "a", "create table heir () inherits (a)", "drop table heir"),
    ("column_missing", "a", "alter table a rename n to m", "alter table a rename m to n"),
    (
        "replica_identity",
        "a",
        "alter table a replica identity default",
        "alter table a replica identity full",
    ),
    (
        "no_identity",
        "a",
        "alter table a replica identity nothing",
        "alter table a replica identity full",
    ),
    (
        "table_not_published",
        "a",
        "alter publication walsweep drop table a",
        "alter publication walsweep add table a",
    ),
    (
        "operation_not_published",
        "a",
        "alter publication walsweep set (publish = 'insert, update, truncate')",
        "alter publication walsweep set (publish = 'insert, update, delete, truncate')",
    ),
    (
        "partition_root",
        "part",
        "alter publication walsweep set (publish_via_partition_root = false)",
        "alter publication walsweep set (publish_via_partition_root = true)",
    ),
    (
        "partition_leaf",
        "b",
        "alter table b_root attach partition b for values in ('b');
         alter publication walsweep add table b_root",
        "alter publication walsweep drop table b_root; alter table b_root detach partition b",
    ),
    (
        "condition_type",
        "c",
        "alter table c alter column k type text using k::text",
        "alter table c alter column k type int using k::int",
    ),
    (
        "partition_identity",
        "part",
        "create table part_n partition of part for values in ('n')",
        "alter table part_n replica identity full",
    ),
    (
        "column_not_published",
        "d",
        "alter publication walsweep set table {others}, d (id)",
        "alter publication walsweep set table {others}, d",
    ),
    (
        "column_list",
        "a",
        "alter table a replica identity default;
         alter publication walsweep set table {others_but_a}, d, a (id, k);
         alter table a replica identity full",
        "alter publication walsweep set table {others}, d",
    ),
    (
        "row_filter",
        "d",
        "alter publication walsweep set table {others}, d where (id > 0)",
        "alter publication walsweep set table {others}, d",
    ),
    (
        "generated_column",
        "a",
        "alter table a rename n to m; alter table a add column n text generated always as ('x')
         stored",
        "alter table a drop column n; alter table a rename m to n",
    ),
    (
        "generated_identity",
        "a",
        "alter table a add column g text generated always as ('x') stored",
        "alter table a drop column g",
    ),
    (
        "refresh_trigger",
        "view",
        "alter event trigger walsweep_refresh disable",
        "alter event trigger walsweep_refresh enable always",
    ),
    (
        "refresh_trigger_foreign",
        "view",
        "alter function public.walsweep_refresh() rename to mine",
        "alter function public.mine() rename to walsweep_refresh",
    ),
    (
        "event_triggers_off",
        "view",
        "alter system set event_triggers = off; select pg_reload_conf()",
        "alter system reset event_triggers; select pg_reload_conf()",
    ),
    (
        "view_missing",
        "view",
        "alter materialized view view rename to gone",
        "alter materialized view gone rename to view",
    ),
    (
        "view_kind",
        "view",
        "alter materialized view view rename to gone; create table view (a int)",
        "drop table view; alter materialized view gone rename to view",
    ),
    ("lookup_sql", "a", "alter table found rename k to m", "alter table found rename m to k"),
    ("replication_role", "", "alter role sweeper noreplication", "alter role sweeper replication"),
];

/// The other codes of errors, and why none of them has a row in [`LIVE`].
const FIXED: [(&str, &[&str]); 7] = [
    (
        "a change of the configuration, or of the server's, that ends the session",
        &[
            "failover_version",
            "server_version",
            "standby_version",
            "standby_wal_level",
            "wal_level",
            "in_recovery",
            "replication_primary",
        ],
    ),
    (
        "of the connections that were made; see tests/postgres/main.rs and tests/main/replicas.rs",
        &[
            "pooler",
            "postgres_login",
            "postgres_unreachable",
            "replication_login",
            "replication_standby",
            "replication_unreachable",
            "two_servers",
        ],
    ),
    (
        "of the slot, which cannot be another one while it is streamed from",
        &[
            "slot_database",
            "slot_plugin",
            "slot_synced",
            "slot_temporary",
            "slot_two_phase",
            "slot_unclaimed",
            "replication_slots_full",
            "wal_senders_full",
        ],
    ),
    (
        "without it nothing can be streamed: the session ends; see the test below",
        &["publication_missing"],
    ),
    (
        "of a lookup, tried in the same way and in the same place as lookup_sql",
        &["lookup_column", "lookup_params", "lookup_privilege", "lookup_writes"],
    ),
    (
        "of the addresses of two targets, which are compared at the start; see targets.rs",
        &["redis_twice"],
    ),
    (
        "of Redis, which is looked at with each connection and each removal; see fitness.rs",
        &[
            "redis_cluster",
            "redis_command",
            "redis_key_permission",
            "redis_login",
            "redis_permission",
            "redis_refused",
            "redis_replica",
            "redis_replicas",
            "redis_scan",
            "redis_tracking",
            "redis_unreachable",
            "redis_version",
        ],
    ),
];

/// The codes that stand in the sources as those of errors.
fn codes(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        for call in text.split("Finding::error(").skip(1) {
            let argument = call.split([',', ')']).next().unwrap().trim();
            let code = argument.strip_prefix("Code::").and_then(|name| {
                Code::ALL.iter().find(|code| format!("{code:?}") == name).copied()
            });
            match code {
                Some(code) => drop(found.insert(code.as_str().to_owned())),
                // `headroom` has its codes in a table, `replication` a choice of two.
                None => assert_eq!(argument, "code", "a code that this test cannot read"),
            }
        }
    }
    let more = ["replication_slots_full", "wal_senders_full", "postgres_login", "slot_unclaimed"];
    found.extend(more.map(str::to_owned));
    let more = ["postgres_unreachable", "replication_login", "replication_unreachable"];
    found.extend(more.map(str::to_owned));
}

#[test]
fn every_code_is_provoked_or_cannot_come() {
    let mut found = BTreeSet::new();
    codes(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/preflight"), &mut found);
    let live = LIVE.iter().map(|(code, ..)| *code);
    let fixed = FIXED.iter().flat_map(|(_, codes)| *codes).copied();
    let known: BTreeSet<String> = live.chain(fixed).map(str::to_owned).collect();
    assert_eq!(found, known);
}

const LIVE_TABLES: &str = "
    create table a (id int primary key, n text, k int not null);
    alter table a replica identity full;
    create table b (id int, r text);
    alter table b replica identity full;
    create table b_root (id int, r text) partition by list (r);
    alter table b_root replica identity full;
    create table c (id int primary key, k int);
    alter table c replica identity full;
    create table d (id int primary key, n text);
    create table found (id int primary key, k text);
    create table part (id int, r text, x text, primary key (id, r)) partition by list (r);
    alter table part replica identity full;
    create table part_a partition of part for values in ('a');
    alter table part_a replica identity full;
    create materialized view view as select 1 as one;";

fn live_rules() -> String {
    let lookup = "[lookup.found]\nsql = \"select k from found where id = $1\"\nparams = [\"id\"]\n";
    let view =
        "[[rule]]\nname = \"view\"\nmaterialized_view = \"public.view\"\nkeys = [\"view\"]\n";
    [
        lookup.to_owned(),
        rule("a", "a", "", &["a:{n}", "found:{id}:{found.k}"]),
        rule("b", "b", "", &["b:{id}"]),
        rule("c", "c", "when = \"new.k > 3\"", &["c:{id}"]),
        rule("d", "d", "immutable = [\"n\"]\noperations = [\"insert\", \"update\"]", &["d:{n}"]),
        rule("part", "part", "", &["part:{id}"]),
        view.to_owned(),
    ]
    .concat()
}

fn is_of_version(code: &str, version: i32) -> bool {
    match code {
        "column_list" | "column_not_published" | "row_filter" => version >= 15,
        "event_triggers_off" => version >= 17,
        "generated_identity" => version >= 18,
        // Before 18 it is another finding for the same column; from 18 on a full identity with a
        // column that is not published is told first.
        "generated_column" => version < 18,
        _ => true,
    }
}

/// The rule is told within the time of one look, `check` says the same, and all is well again
/// after.
#[tokio::test]
async fn whatever_check_refuses_is_noticed_while_it_runs() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(LIVE_TABLES).await;
    let sidecar = Sidecar::set_up(settings(&bed, &[&live_rules()])).await;
    bed.settled().await;
    let version = bed.version().await;
    for (code, rule, broken, mended) in LIVE {
        if !is_of_version(code, version) || rule.is_empty() {
            continue;
        }
        let sql = |text: &str| {
            text.replace("{others_but_a}", "b, c, part").replace("{others}", "a, b, c, part")
        };
        // Some statements want no other in their transaction.
        for statement in sql(broken).split(';') {
            bed.sql.run(statement).await;
        }
        let said = format!("rule `{rule}` ");
        // A partition without identity widens; nothing stays.
        let expected = if code == "partition_identity" { 200 } else { 503 };
        let told = || async {
            let page = sidecar.get("/readyz").await;
            page.is_some_and(|(status, body)| status == expected && body.contains(&said))
        };
        let patience = if code.starts_with("lookup_") { PATIENCE * 2 } else { PATIENCE };
        eventually(patience, code, told).await;
        let check = text(&sidecar.command(&["check"]));
        assert!(check.contains(&format!("error[{code}]")), "{code}\n{check}");
        let suspended =
            sidecar.metric(&format!("walsweep_rule_suspended{{rule=\"{rule}\"}}")).await;
        assert_eq!(suspended == 1.0, code != "partition_identity", "{code}");
        for statement in sql(mended).split(';') {
            bed.sql.run(statement).await;
        }
        let well = || async {
            let page = sidecar.get("/readyz").await;
            page.is_some_and(|(status, body)| status == 200 && !body.contains(&said))
        };
        eventually(PATIENCE, &format!("all is well after {code}"), well).await;
    }
}

/// A fault that concerns everything lets the session go on if it can, and the endpoint tells.
#[tokio::test]
async fn what_would_refuse_the_next_session_is_told() {
    let bed = Bed::new(&[]).await;
    let ddl = "create role sweeper login replication; grant all on schema public to sweeper;
               create publication walsweep for table item";
    bed.sql.run(ddl).await;
    let url = bed.postgres.url().replace("postgres@", "sweeper@");
    let mut sidecar = Sidecar::new(Settings { postgres_url: url, ..bed.settings() });
    sidecar.start();
    sidecar.wait_ready().await;
    bed.sql.run("alter role sweeper noreplication").await;
    let told = || async {
        let (status, body) = sidecar.get("/readyz").await.unwrap();
        status == 503 && body.contains("role `sweeper` may not replicate")
    };
    eventually(PATIENCE, "the role is told", told).await;
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    bed.sql.run("alter role sweeper replication").await;
    let well = || async { sidecar.readyz().await == Some(200) };
    eventually(PATIENCE, "all is well", well).await;
    bed.sql.run("drop publication walsweep").await;
    let told = || async { sidecar.readyz().await == Some(503) };
    eventually(PATIENCE, "it is not ready without a publication", told).await;
    sidecar.wait_log("there is no publication `walsweep`").await;
}
