//! I10: what the watch of the tables costs the server. It asks for nothing of a table where nobody
//! wrote to the catalog, and what it asks grows no faster than the tables; and whatever is written
//! it notices, in whichever order transactions end.

use std::time::Duration;

use tokio::time::sleep;
use walsweep_stage::throwaway::StopMode;

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually};

/// The server tells of each statement, and who sent it.
const TOLD: [&str; 2] = ["log_statement = all", "log_line_prefix = '<%a> '"];

/// Longer than two pauses of the watch where a look is short.
const LOOKS: Duration = Duration::from_secs(5);

/// How often the watch asked for what, by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    /// Which transactions a question sees.
    moments: usize,
    /// Whether the catalog was written to.
    changes: usize,
    /// How the tables are, in short or whole.
    looks: usize,
}

/// All that the server has logged.
fn whole_log(bed: &Bed) -> String {
    let file = bed.postgres.data_dir().parent().unwrap().join("log");
    std::fs::read_to_string(file).unwrap()
}

impl Asked {
    fn of(bed: &Bed) -> Asked {
        let log = whole_log(bed);
        let entries = log.split("\n<").map(|entry| entry.trim_start_matches('<'));
        let own = entries.filter_map(|entry| entry.strip_prefix("walsweep watch> LOG:"));
        let own: Vec<&str> = own.filter(|entry| entry.contains("execute")).collect();
        let count = |part: &str| own.iter().filter(|entry| entry.contains(part)).count();
        Asked {
            moments: count("pg_conf_load_time()),"),
            changes: count("'attributes',"),
            looks: count("recursive wanted"),
        }
    }

    fn since(self, before: Asked) -> Asked {
        Asked {
            moments: self.moments - before.moments,
            changes: self.changes - before.changes,
            looks: self.looks - before.looks,
        }
    }
}

/// A sidecar whose first look is over, on a server that nobody writes to.
async fn at_rest(bed: &Bed) -> Sidecar {
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.quiet().await;
    asked_again(bed, 2).await;
    sidecar
}

/// Waits until the watch has asked so many times more.
async fn asked_again(bed: &Bed, times: usize) -> Asked {
    let before = Asked::of(bed);
    let is_asked = || async { Asked::of(bed).since(before).moments >= times };
    eventually(PATIENCE, "the watch asks", is_asked).await;
    // What it asks after that follows at once.
    sleep(Duration::from_millis(500)).await;
    Asked::of(bed).since(before)
}

#[tokio::test]
async fn where_nobody_writes_to_the_catalog_no_table_is_asked_for() {
    let bed = Bed::new(&TOLD).await;
    bed.sql.run("create table other (id int primary key, a text)").await;
    let sidecar = at_rest(&bed).await;
    let idle = asked_again(&bed, 2).await;
    assert_eq!((idle.changes, idle.looks), (0, 0), "idle: {idle:?}");
    let temporary = "create temp table own (id int primary key, a text default 'a', b int[]);
                     create index on own (a)";
    let rolled_back = "begin; create table gone (id int primary key); alter table item add b int;
                       rollback";
    let row = "update item set version = version + 1";
    for harmless in [row, "analyze item", rolled_back, temporary] {
        bed.sql.run(harmless).await;
    }
    let asked = asked_again(&bed, 2).await;
    assert!(asked.changes > 0 && asked.looks == 0, "{asked:?}");
    bed.sql.run("drop table own").await;
    assert_eq!(asked_again(&bed, 2).await.looks, 0, "a temporary table goes");
    // Postgres writes in place what it finds out about a table.
    for written in ["vacuum item", "vacuum freeze item", "vacuum freeze pg_class"] {
        bed.sql.run(written).await;
    }
    assert_eq!(asked_again(&bed, 2).await.looks, 0, "vacuum");
    let sweeps = "walsweep_sweeps_total";
    let before = sidecar.metric_sum(sweeps).await;
    for written in ["truncate other", "drop table other"] {
        bed.sql.run(written).await;
        let asked = asked_again(&bed, 3).await;
        assert!((2..=5).contains(&asked.looks), "{written}: once, {asked:?}");
    }
    assert_eq!(sidecar.metric_sum(sweeps).await, before);
    sidecar.assert_quiet(&["watermark_missing"]);
}

/// It ran already when the tables were looked at, for what another one had changed.
#[tokio::test]
async fn a_change_whose_transaction_is_older_than_the_last_look_is_noticed() {
    let bed = Bed::new(&TOLD).await;
    let sidecar = at_rest(&bed).await;
    let sql = Sql::connect(&bed.postgres).await;
    sql.run("begin; alter table item alter version type text using 'v' || version").await;
    let early = asked_again(&bed, 2).await;
    assert_eq!(early.looks, 0, "{early:?}");
    bed.sql.run("create table between (id int)").await;
    let between = asked_again(&bed, 2).await;
    assert!(between.looks > 0, "{between:?}");
    bed.fill(&["item:1"]).await;
    sql.run("commit").await;
    bed.gone("item:1").await;
    sidecar.wait_log("altered").await;
}

/// A savepoint's changes have an id of their own; so does a transaction that is prepared, and whose
/// session is gone.
#[tokio::test]
async fn a_change_of_a_savepoint_or_a_prepared_transaction_is_noticed() {
    let bed = Bed::new(&["max_prepared_transactions = 2"]).await;
    let sidecar = bed.sidecar().await;
    let sql = Sql::connect(&bed.postgres).await;
    sql.run(
        "begin; insert into item values (200, 'a'); savepoint one;
         alter table item alter version type text using 'v' || version; release one;
         prepare transaction 'later'",
    )
    .await;
    drop(sql);
    sleep(LOOKS).await;
    bed.fill(&["item:1"]).await;
    bed.sql.run("commit prepared 'later'").await;
    bed.gone("item:1").await;
    sidecar.wait_log("altered").await;
}

/// A catalog that is not read in time, as the server's limit or an administrator ends a question:
/// the tables are looked at instead, and for a while nothing else is tried.
#[tokio::test]
async fn a_catalog_that_is_not_read_in_time_is_looked_at_by_the_names_of_the_tables() {
    let bed = Bed::new(&TOLD).await;
    let sidecar = bed.sidecar().await;
    bed.sql
        .run(
            "set allow_system_table_mods = on;
             insert into pg_description select id, 'pg_class'::regclass, 0, 'long ago'
                                          from generate_series(2000000, 2500000) id;
             reset allow_system_table_mods; create table written (id int)",
        )
        .await;
    let cancel = "select count(pg_cancel_backend(pid)) from pg_stat_activity
                   where application_name = 'walsweep watch' and state = 'active'
                     and query like '-- A text that is another one%'";
    let given_up = || sidecar.log().iter().filter(|line| line.contains("read its catalog")).count();
    eventually(PATIENCE, "the catalog is given up", || async {
        bed.sql.run("insert into written values (1)").await;
        bed.sql.one::<i64>(cancel).await;
        given_up() > 0
    })
    .await;
    let before = Asked::of(&bed);
    for table in ["one", "other"] {
        bed.sql.run(&format!("create table {table} (id int)")).await;
        let looked = before.looks;
        let is_asked = || async { Asked::of(&bed).looks > looked };
        eventually(PATIENCE, "the tables are looked at", is_asked).await;
        sleep(LOOKS).await;
    }
    let since = Asked::of(&bed).since(before);
    assert!(since.changes == 0 && since.looks > 1, "{since:?}");
    assert_eq!((given_up(), sidecar.readyz().await), (1, Some(200)));
    assert_eq!(sidecar.metric("walsweep_reconnects_total{peer=\"postgres\"}").await, 0.0);
    bed.fill(&["item:1"]).await;
    bed.sql.run("alter table item alter version type text using 'v' || version").await;
    bed.gone("item:1").await;
    sidecar.wait_log("altered").await;
}

/// A role that reads `team` by what it inherits.
const READER: &str = "
    create role reader; create role sweeper login replication; grant reader to sweeper;
    create table team (id int primary key, label text);
    insert into team select id, 'ours ' || id from generate_series(1, 100) id;
    grant select on team to reader;
    create schema other; create table other.team as select id, 'other ' || id as label from team;
    grant usage on schema other to sweeper; grant select on other.team to sweeper;
    create publication walsweep for table item;";

const READER_RULES: &str = r#"
[lookup.team]
sql = "select label from team where id = $1"
params = ["id"]

[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}", "team:{team.label}"]
"#;

/// Lookups are tried every 30 s, and whenever somebody wrote to the catalog: this waits less.
#[tokio::test]
async fn what_lookups_read_as_is_noticed_as_soon_as_the_catalog_is_written_to() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(READER).await;
    let postgres_url = bed.postgres.url().replace("postgres@", "sweeper@");
    let settings = Settings { postgres_url, rules: READER_RULES.to_owned(), ..bed.settings() };
    let mut sidecar = Sidecar::new(settings);
    sidecar.start();
    sidecar.wait_ready().await;
    let (revoked, granted) = if bed.version().await < 16 {
        ("alter role sweeper noinherit", "alter role sweeper inherit")
    } else {
        ("grant reader to sweeper with inherit false", "grant reader to sweeper with inherit true")
    };
    // The first trial is over.
    sleep(LOOKS).await;
    bed.sql.run(revoked).await;
    let told = || async {
        let page = sidecar.get("/readyz").await;
        page.is_some_and(|(status, body)| {
            status == 503 && body.contains("rule `item` is suspended")
        })
    };
    eventually(PATIENCE, "what is not inherited any more is told", told).await;
    bed.sql.run(granted).await;
    let well = || async { sidecar.readyz().await == Some(200) };
    eventually(PATIENCE, "it is well again", well).await;
    let reads = async |label: &str| {
        let key = format!("team:{label}");
        let is_read = || async {
            bed.fill(&[&key, "team:neither"]).await;
            bed.sql.run("update item set version = version + 1 where id = 1").await;
            bed.settled().await;
            !bed.has(&key).await && bed.has("team:neither").await
        };
        eventually(PATIENCE, &format!("`{label}` is read"), is_read).await;
    };
    reads("ours 1").await;
    for (altered, label) in [
        ("alter role sweeper set search_path = other", "other 1"),
        ("alter role sweeper reset search_path", "ours 1"),
        ("alter database postgres set search_path = other", "other 1"),
        ("alter role sweeper in database postgres set search_path = public", "ours 1"),
    ] {
        bed.fill(&["item:77", "team:before"]).await;
        bed.sql.run(altered).await;
        bed.gone("team:before").await;
        assert!(bed.has("item:77").await, "{altered}: it needs no row");
        reads(label).await;
    }
    for altered in ["alter role sweeper bypassrls", "alter role sweeper nobypassrls"] {
        bed.fill(&["team:before"]).await;
        bed.sql.run(altered).await;
        bed.gone("team:before").await;
    }
    bed.fill(&["team:before"]).await;
    bed.sql
        .run("alter role sweeper set work_mem = '8MB'; alter role sweeper connection limit 99")
        .await;
    sleep(LOOKS).await;
    assert!(bed.has("team:before").await, "nothing reads otherwise");
}

/// Rules for tables `t1` to `t{tables}`, and for the partitioned table `p`.
fn rules(tables: usize) -> String {
    let names = (1..=tables).map(|one| format!("t{one}")).chain(["p".to_owned()]);
    names
        .map(|name| {
            format!(
                "[[rule]]\nname = \"{name}\"\ntable = \"public.{name}\"\n\
                 keys = [\"{name}:{{id}}\"]\n"
            )
        })
        .collect()
}

const TABLES: usize = 300;
const PARTITIONS: usize = 2_000;

/// A server with so many tables, and a table of so many partitions; walsweep is set up for them.
async fn many(conf: &[&str]) -> (Bed, Sidecar) {
    let bed = Bed::new(conf).await;
    let tables =
        (1..=TABLES).map(|one| format!("create table t{one} (id int primary key, a int);"));
    bed.sql.run(&tables.collect::<String>()).await;
    bed.sql.run("create table p (id int primary key, a int) partition by range (id)").await;
    for first in (0..PARTITIONS).step_by(100) {
        let last = first + 100;
        let range = |from: usize, to: usize| format!("for values from ({from}) to ({to})");
        let hundred = format!("{} partition by range (id);", range(first, last));
        let parts = (first..last).map(|one| {
            format!("create table p{one} partition of q{first} {};", range(one, one + 1))
        });
        let parts: String = parts.collect();
        bed.sql.run(&format!("create table q{first} partition of p {hundred} {parts}")).await;
    }
    let sidecar = Sidecar::new(Settings { rules: rules(TABLES), ..bed.settings() });
    sidecar.setup();
    (bed, sidecar)
}

/// `max_locks_per_transaction = 10` and few sessions: the server has room for some hundred locks.
#[tokio::test]
async fn a_small_lock_table_is_room_enough_for_very_many_tables() {
    let (mut bed, mut sidecar) = many(&[]).await;
    for line in ["max_locks_per_transaction = 10", "max_connections = 20"] {
        bed.postgres.conf(line).await.unwrap();
    }
    bed.postgres.restart(StopMode::Fast).await.unwrap();
    bed.sql = Sql::connect(&bed.postgres).await;
    // More than one takes than there is room for.
    let all = "begin; do $$ begin for one in 1..300 loop
                 execute format('select from t%s', one); end loop;
                 for one in 0..1999 loop execute format('select from p%s', one); end loop; end $$";
    assert!(bed.sql.client().batch_execute(all).await.is_err(), "the lock table is small");
    bed.sql.run("rollback").await;
    sidecar.start();
    let locks = "select coalesce(max(locks), 0), coalesce(max(tables), 0)
                   from (select count(*) as locks,
                                count(*) filter (where l.relation >= 16384) as tables
                           from pg_locks l
                           join pg_stat_activity a on a.pid = l.pid
                          where a.application_name like 'walsweep%'
                          group by l.pid) as own";
    let (mut most, mut ready) = ((0, 0), None);
    let began = tokio::time::Instant::now();
    // The start, and the first looks.
    while ready.is_none_or(|ready| began.elapsed() < ready + 2 * LOOKS) {
        assert!(!sidecar.has_ended() && began.elapsed() < 3 * PATIENCE);
        let row = bed.sql.client().query_one(locks, &[]).await.unwrap();
        let now: (i64, i64) = (row.get(0), row.get(1));
        most = (most.0.max(now.0), most.1.max(now.1));
        if ready.is_none() && sidecar.readyz().await == Some(200) {
            ready = Some(began.elapsed());
        }
    }
    assert!((1..100).contains(&most.0), "locks: {}", most.0);
    assert_eq!(most.1, 0, "tables that are locked");
    bed.fill(&["t7:1", "p:7"]).await;
    bed.sql.run("insert into t7 values (1, 1); insert into p values (7, 1)").await;
    bed.gone("t7:1").await;
    bed.gone("p:7").await;
    sidecar.assert_quiet(&["watermark_missing"]);
}

/// Rows that a plan which was explained reads, again and again if it does.
fn rows_read(plan: &str) -> f64 {
    let number = |line: &str, before: &str| -> Option<f64> {
        let rest = line.split_once(before)?.1;
        let end = rest.find(|one: char| !one.is_ascii_digit() && one != '.').unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    let (mut read, mut loops) = (0.0, 1.0);
    for line in plan.lines() {
        if let Some(rest) = line.split_once("(actual ").map(|(_, rest)| rest) {
            loops = number(rest, "loops=").unwrap_or(1.0);
            read += loops * number(rest, "rows=").unwrap_or(0.0).max(1.0);
        }
        for removed in ["Rows Removed by Filter: ", "Rows Removed by Join Filter: "] {
            read += loops * number(line, removed).unwrap_or(0.0);
        }
    }
    read
}

/// No question is asked of one table for each other: that would be a hundred times the rows that
/// the catalog has.
#[tokio::test]
async fn each_question_reads_the_catalog_some_times_however_many_tables_there_are() {
    let explain = [
        "session_preload_libraries = 'auto_explain'",
        "auto_explain.log_min_duration = 0",
        "auto_explain.log_analyze = on",
        "auto_explain.log_timing = off",
        "log_line_prefix = '<%a> '",
    ];
    let (bed, mut sidecar) = many(&explain).await;
    let catalogs = "select ((select count(*) from pg_class) + (select count(*) from pg_attribute)
                            + (select count(*) from pg_type) + (select count(*) from pg_proc)
                            + (select count(*) from pg_depend))::float8";
    let catalogs: f64 = bed.sql.one(catalogs).await;
    sidecar.start();
    sidecar.wait_ready().await;
    sleep(LOOKS).await;
    let log = whole_log(&bed);
    let own = log.split("\n<").filter(|entry| entry.starts_with("walsweep"));
    let plans: Vec<&str> = own.filter(|entry| entry.contains("plan:")).collect();
    let looks = plans.iter().filter(|plan| plan.contains("recursive wanted")).count();
    assert!(looks > 3, "explained: {}", plans.len());
    for plan in plans {
        let read = rows_read(plan);
        assert!(read < 20.0 * catalogs, "{read} rows of {catalogs}\n{plan}");
    }
}
