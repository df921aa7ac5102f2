//! Very many tables, rules or partitions: what the start, an idle minute and a commit cost.
//!
//! Prints a row for each. `WALSWEEP_SCALE` is how many thousandths of it are made, 1000 if it is
//! not set.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::backlog::cpu_seconds;
use crate::support::{Bed, Settings, Sidecar, Sql};

/// How long nothing happens, and then how long somebody writes now and then.
const IDLE: Duration = Duration::from_secs(60);

/// Between two commits of whoever writes now and then.
const PAUSE: Duration = Duration::from_millis(100);

/// How many keys go by commits that come one after another, each of one row.
const KEYS: usize = 4_000;

/// The processes of the server that work for walsweep.
const BACKENDS: &str = "select coalesce(array_agg(pid), '{}')
      from pg_stat_activity
     where application_name like 'walsweep%'";

/// The most that one of these has locked, and all of them.
const LOCKS: &str = "select coalesce(max(own), 0), coalesce(sum(own), 0)::bigint
      from (select count(*) as own
              from pg_locks l
              join pg_stat_activity a on a.pid = l.pid and a.application_name like 'walsweep%'
             group by l.pid) as process";

pub(crate) async fn run() {
    let share = std::env::var("WALSWEEP_SCALE").ok().and_then(|share| share.parse().ok());
    let share: usize = share.unwrap_or(1_000);
    let (tables, rules, partitions) = (share, share, 10 * share);
    let rule = |table: &str, name: usize| {
        format!(
            "[[rule]]\nname = \"r{name}\"\ntable = \"public.{table}\"\n\
             keys = [\"r{name}:{{id}}\"]\n"
        )
    };
    let bed = bed().await;
    for name in 1..=tables {
        bed.sql.run(&format!("create table t{name} (id int primary key, a text, b int)")).await;
        bed.sql.run(&format!("insert into t{name} values (1, 'a', 1)")).await;
    }
    let own = (1..=tables).map(|name| rule(&format!("t{name}"), name)).collect();
    let update = move |turn: usize| format!("update t{} set b = {turn}", turn % tables + 1);
    measure((&format!("{tables} tables with a rule each"), KEYS), &bed, own, &update).await;

    let bed = self::bed().await;
    bed.sql.run("create table t (id int primary key, a text, b int)").await;
    bed.sql.run("insert into t values (1, 'a', 1)").await;
    let own = (1..=rules).map(|name| rule("t", name)).collect();
    let update = |turn: usize| format!("update t set b = {turn}");
    measure(
        (&format!("{rules} rules of one table"), (KEYS / rules * 10).max(1)),
        &bed,
        own,
        &update,
    )
    .await;

    let bed = self::bed().await;
    bed.sql.run("create table t (id int primary key, a text, b int) partition by range (id)").await;
    // Of partitions, a hundred each: to make all of them of one table takes the server minutes.
    for first in (0..partitions).step_by(100) {
        let range = |from: usize, to: usize| format!("values from ({from}) to ({to})");
        let hundred = range(first, first + 100);
        let made = format!("create table h{first} partition of t for {hundred}");
        bed.sql.run(&format!("{made} partition by range (id)")).await;
        let parts = (first..first + 100).map(|one| {
            format!("create table p{one} partition of h{first} for {};", range(one, one + 1))
        });
        bed.sql.run(&parts.collect::<String>()).await;
    }
    bed.sql.run("insert into t select id, 'a', 1 from generate_series(0, 99) as id").await;
    let own = rule("t", 1);
    let update = |turn: usize| format!("update p{} set b = {turn}", turn % 100);
    measure((&format!("{partitions} partitions of one table"), KEYS), &bed, own, &update).await;
}

/// A server with room for so many tables.
async fn bed() -> Bed {
    Bed::new(&["shared_buffers = '256MB'", "max_wal_size = '4GB'"]).await
}

async fn measure(
    (what, commits): (&str, usize),
    bed: &Bed,
    rules: String,
    update: &dyn Fn(usize) -> String,
) {
    let mut settings = Settings { rules, ..bed.settings() };
    settings.level = "info".to_owned();
    settings.refill = "1s".to_owned();
    let mut sidecar = Sidecar::new(settings);
    let began = Instant::now();
    sidecar.setup();
    let setup = began.elapsed();
    // The first start has all to sweep; what every other start costs is asked for.
    sidecar.start();
    ready(bed, &mut sidecar).await;
    settled(bed).await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.sql.run("vacuum analyze").await;
    let began = Instant::now();
    sidecar.start();
    let most = ready(bed, &mut sidecar).await;
    let ready = began.elapsed();
    // The looks right after the start belong to it.
    sleep(Duration::from_secs(15)).await;
    let (idle, most) = share(bed, most, &|_| None).await;
    let (busy, most) = share(bed, most, &|turn| Some(update(turn))).await;
    let resident = resident(sidecar.id());
    settled(bed).await;
    let before = (cpu_seconds(sidecar.id()).unwrap(), backends(&bed.sql).await);
    for turn in 0..commits {
        bed.sql.run(&update(turn)).await;
    }
    settled(bed).await;
    let after = (cpu_seconds(sidecar.id()).unwrap(), backends(&bed.sql).await);
    #[expect(clippy::cast_precision_loss, reason = "some thousand")]
    let each = |spent: f64| spent / commits as f64 * 1e6;
    println!(
        "| scale | {what} | setup {:.1} s, start to ready {:.2} s; Postgres idle {:.2} % of a \
         core, with ten commits a second {:.2} %; at most {} locks, {} of one session; {} MiB; a \
         commit {:.0} µs of walsweep, {:.0} µs of its sessions | – | – |",
        setup.as_secs_f64(),
        ready.as_secs_f64(),
        idle * 1e2,
        busy * 1e2,
        most.1,
        most.0,
        resident,
        each(after.0 - before.0),
        each(after.1 - before.1),
    );
    assert_eq!(sidecar.sigterm().await, 0);
}

/// Waits until everything that is committed by now is confirmed, as long as that may take.
async fn settled(bed: &Bed) {
    let position = bed.position().await;
    while bed.confirmed().await < position {
        bed.sql.run("select pg_logical_emit_message(false, 'settle', '')").await;
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until it is ready, as long as that may take; gives the most that it has locked meanwhile.
async fn ready(bed: &Bed, sidecar: &mut Sidecar) -> (i64, i64) {
    let mut most = (0, 0);
    while sidecar.readyz().await != Some(200) {
        assert!(!sidecar.has_ended(), "{}", sidecar.log().join("\n"));
        most = locks(&bed.sql, most).await;
        sleep(Duration::from_millis(10)).await;
    }
    most
}

/// Gives the share of a core that walsweep's sessions take, while `update` says what is written.
async fn share(
    bed: &Bed,
    mut most: (i64, i64),
    update: &dyn Fn(usize) -> Option<String>,
) -> (f64, (i64, i64)) {
    let (began, before) = (Instant::now(), backends(&bed.sql).await);
    let mut turn = 0;
    while began.elapsed() < IDLE {
        if let Some(update) = update(turn) {
            bed.sql.run(&update).await;
        }
        turn += 1;
        most = locks(&bed.sql, most).await;
        sleep(PAUSE).await;
    }
    let spent = backends(&bed.sql).await - before;
    (spent / began.elapsed().as_secs_f64(), most)
}

/// Processor time of the sessions, in seconds.
async fn backends(sql: &Sql) -> f64 {
    let backends: Vec<i32> = sql.one(BACKENDS).await;
    backends.into_iter().filter_map(|pid| cpu_seconds(u32::try_from(pid).unwrap())).sum()
}

async fn locks(sql: &Sql, most: (i64, i64)) -> (i64, i64) {
    let row = sql.client().query_one(LOCKS, &[]).await.unwrap();
    (most.0.max(row.get(0)), most.1.max(row.get(1)))
}

/// Resident memory in MiB.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
