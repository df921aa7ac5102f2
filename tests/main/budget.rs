//! All that grows with the load is full at once: 64 MiB are enough (I6).

use std::time::Duration;

use tokio::time::{Instant, sleep};

use walsweep::budget;
use walsweep_stage::throwaway::{Postgres, Redis, RedisOptions, Signal, signal};

use crate::limits::resident;
use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually};

/// How long, and how often, everything is filled at once: what a round adds depends on no clock.
const FILLED: (Duration, usize) = (Duration::from_secs(12), 40);

/// Commits of a round, and how many of them may be on their way to walsweep.
const ROUND: usize = 8;
const BEHIND: f64 = 400.0;

/// Keys that are held then, bytes: where less is, nothing was shown.
const HELD: f64 = 24.0 * 1024.0 * 1024.0;

/// Keys of a kilobyte: exact ones, some that wait for a pass, some that are looked into, some that
/// Redis refuses, and some that need a row. All of them are told.
fn rules() -> String {
    let long = "0123456789".repeat(100);
    format!(
        r#"
[lookup.place]
sql = "select name from place where id = $1"
params = ["place_id"]
cache = 10000

[[rule]]
name = "item"
table = "public.item"
keys = ["item:{{id}}"]

[[rule]]
name = "exact"
table = "public.exact"
keys = ["exact:{long}:{{id}}"]

[[rule]]
name = "passing"
table = "public.passing"
keys = ["passing:{long}:{{id}}", "passing:list:{{id}}:*"]
tags = ["named:{long}:{{id}}"]
fields = {{ "hash:{long}:{{id}}" = ["name", "page:*"] }}

[[rule]]
name = "guarded"
table = "public.guarded"
keys = ["guarded:{long}:{{id}}"]

[[rule]]
name = "placed"
table = "public.placed"
keys = ["placed:{long}:{{id}}:{{place.name}}"]

[[rule]]
name = "early"
table = "public.early"
keys = ["early:{{id}}:{{place.name}}"]
"#
    )
}

const TABLES: &str = "
    create table exact (id bigint primary key);
    create table passing (id bigint primary key);
    create table guarded (id bigint primary key);
    create table place (id bigint primary key, name text not null);
    create table placed (id bigint primary key, place_id bigint not null);
    alter table placed replica identity full;
    create table early (id bigint primary key, place_id bigint not null);
    alter table early replica identity full;
    create sequence number;
    insert into place select id, repeat('p', 400) from generate_series(1, 10000) id;";

/// A session whose commits wait for no standby.
async fn local(bed: &Bed) -> Sql {
    let sql = Sql::connect(&bed.postgres).await;
    sql.run("set synchronous_commit = local").await;
    sql
}

/// Inserts rows of new ids into a table, in one statement.
fn insert(table: &str, rows: usize) -> String {
    let placed = if table == "placed" { ", 1 + id % 10000" } else { "" };
    format!(
        "insert into {table} select id{placed}
           from (select nextval('number') as id from generate_series(1, {rows})) of_ids"
    )
}

/// The user of every target's Redis.
async fn acl(targets: &[&Redis], words: &str) {
    for target in targets {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg("walsweep").arg(words.split(' ').collect::<Vec<_>>());
        command.exec_async(&mut target.connect().await.unwrap()).await.unwrap();
    }
}

/// A sidecar at rest, with a standby whose replay is paused; `more` is a second target.
async fn start(bed: &Bed, more: Option<&Redis>) -> (Sidecar, Postgres) {
    bed.sql.run(TABLES).await;
    let standby = bed.postgres.standby("paused", &[]).await.unwrap();
    let rights = "-@all +scan +unlink +get +set +incr +eval +ping +info +select +hello +auth \
                  +client +hdel +hscan +type +exists +sscan +zscan +srem +zrem +publish";
    let targets: Vec<&Redis> = std::iter::once(&bed.redis).chain(more).collect();
    acl(&targets, &format!("on nopass ~* &* {rights}")).await;
    let of_target = |(at, redis): (usize, &&Redis)| {
        let url = redis.url().replace("redis://", "redis://walsweep:any@");
        format!("name = \"r{at}\"\nurl = {url:?}\npublish = \"gone\"")
    };
    let mut settings = Settings {
        rules: rules(),
        postgres: format!("replicas = [{:?}]", standby.url()),
        refill: "4s".to_owned(),
        level: "info".to_owned(),
        sweep: "max_load = 0.01".to_owned(),
        observe: true,
        audit: "file = \"audit.jsonl\"\nmax_bytes = \"1MiB\"\nkeep = 1".to_owned(),
        ..bed.settings()
    };
    settings.targets = targets.iter().enumerate().map(of_target).collect();
    let sidecar = Sidecar::set_up(settings).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.settled().await;
    (sidecar, standby)
}

/// Reads of a sidecar how much it holds, until told otherwise: keys, and more than `base` of all
/// memory, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Peaks {
    keys: f64,
    resident: u64,
}

impl Peaks {
    /// Looks on while a machine is slow to receive it.
    async fn wait(&mut self, sidecar: &Sidecar, base: u64) {
        let until = Instant::now() + PATIENCE * 3;
        while self.keys < HELD && Instant::now() < until {
            sleep(Duration::from_millis(50)).await;
            self.look(sidecar, base).await;
        }
    }

    async fn look(&mut self, sidecar: &Sidecar, base: u64) {
        self.keys = self.keys.max(sidecar.metric("walsweep_key_sets_bytes").await);
        let resident = (resident(sidecar.id()) * 1024).saturating_sub(base);
        self.resident = self.resident.max(resident);
    }
}

/// One transaction that is not visible, two that are still being sent, keys that wait for a row
/// whose table is locked, keys that Redis refuses, keys for a standby that does not replay, passes
/// that may take a hundredth of Redis, second removals of seconds, a watermark that waits for all
/// of them; rows of a transaction that is visible and still being sent; and then a Redis that does
/// not answer.
#[tokio::test]
async fn every_place_is_full_at_once_within_64_mib() {
    fill(None).await;
}

/// Each of two targets has half.
#[tokio::test]
async fn every_place_of_two_targets_is_full_at_once_within_64_mib() {
    fill(Some(Redis::start(RedisOptions::default()).await.unwrap())).await;
}

/// Waits for most of these rounds: the writers are faster than a build without optimization reads.
async fn most_received(sidecar: &Sidecar, rounds: usize) {
    let received = async || {
        let all = sidecar.metric("walsweep_transactions_total").await;
        all >= (rounds * ROUND) as f64 - BEHIND
    };
    eventually(PATIENCE * 9, "most of it is received", received).await;
}

/// A large transaction that readers see, and whose end the server does not tell: its walsender is
/// stopped. Its keys go all the same, and the rows that were read for them are kept.
async fn read_ahead(bed: &Bed) -> [u32; 1] {
    let (early, other) = (local(bed).await, local(bed).await);
    early.run("begin").await;
    early
        .run("insert into early select 1000000000 + id, id from generate_series(1, 10000) id")
        .await;
    // Whoever has received this has received most of that.
    bed.fill(&["item:50"]).await;
    other.run("update item set version = 1 where id = 50").await;
    let gone = async || !bed.has("item:50").await;
    eventually(PATIENCE * 9, "all before it is received", gone).await;
    let walsender = bed.sql.one::<i32>("select active_pid from pg_replication_slots").await;
    let walsender = [u32::try_from(walsender).unwrap()];
    signal(&walsender, Signal::Stop).unwrap();
    let key = format!("early:1000000001:{}", "p".repeat(400));
    bed.fill(&[&key]).await;
    early.run("commit").await;
    let gone = async || !bed.has(&key).await;
    eventually(PATIENCE * 3, "a key goes whose commit is not sent", gone).await;
    walsender
}

async fn fill(more: Option<Redis>) {
    let bed = Bed::new(&["logical_decoding_work_mem = 64kB"]).await;
    let (sidecar, standby) = start(&bed, more.as_ref()).await;
    let targets: Vec<&Redis> = std::iter::once(&bed.redis).chain(&more).collect();
    let base = resident(sidecar.id()) * 1024;
    Sql::connect(&standby).await.run("select pg_wal_replay_pause()").await;
    bed.postgres.conf("synchronous_standby_names = 'ghost'").await.unwrap();
    let keys = "~item:* ~exact:* ~passing:* ~placed:* ~early:* ~walsweep:*";
    acl(&targets, &format!("resetkeys {keys}")).await;
    let mut invisible = Vec::new();
    for _ in 0..3 {
        let sql = Sql::connect(&bed.postgres).await;
        invisible.push(tokio::spawn(async move { sql.run(&insert("exact", 900)).await }));
    }
    let (sent, other, locker) = (local(&bed).await, local(&bed).await, local(&bed).await);
    let writer = local(&bed).await;
    tokio::join!(sent.run("begin"), other.run("begin"));
    let (mut peaks, mut rounds, began) = (Peaks::default(), 0, Instant::now());
    while began.elapsed() < FILLED.0 || rounds < FILLED.1 {
        for open in [&sent, &other] {
            open.run(&insert("exact", 500)).await;
        }
        writer.run(&insert("guarded", 300)).await;
        writer.run(&insert("passing", 300)).await;
        locker.run("begin; lock table place").await;
        for _ in 0..3 {
            writer.run(&insert("placed", 500)).await;
            writer.run(&insert("exact", 500)).await;
        }
        peaks.look(&sidecar, base).await;
        locker.run("commit").await;
        peaks.look(&sidecar, base).await;
        rounds += 1;
        most_received(&sidecar, rounds).await;
    }
    let walsender = read_ahead(&bed).await;
    peaks.look(&sidecar, base).await;
    signal(&walsender, Signal::Cont).unwrap();
    targets.iter().for_each(|target| target.pause().unwrap());
    for _ in 0..400 {
        writer.run(&insert("exact", 1_000)).await;
        peaks.look(&sidecar, base).await;
    }
    peaks.wait(&sidecar, base).await;
    println!("{rounds} rounds: {peaks:?} of {}", budget::ALL);
    targets.iter().for_each(|target| target.resume().unwrap());
    assert!(peaks.resident <= budget::ALL as u64, "{peaks:?}");
    assert!(peaks.keys <= budget::ALL as f64, "{peaks:?}");
    assert!(peaks.keys >= HELD, "{peaks:?}");
    for open in [&sent, &other] {
        open.run("rollback").await;
    }
    bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();
    for one in invisible {
        one.await.unwrap();
    }
    acl(&targets, "~*").await;
    // And it goes on.
    let mut bed = bed;
    bed.cache = bed.redis.connect().await.unwrap();
    bed.fill(&["item:7"]).await;
    bed.sql.run("update item set version = version + 1 where id = 7").await;
    let gone = async || !bed.has("item:7").await;
    eventually(PATIENCE * 3, "a later key goes", gone).await;
    let held = sidecar.metric("walsweep_key_sets_bytes").await;
    println!("{held} bytes are held after it");
}

/// Waits until most rows are received, and no more come.
async fn all_received(sidecar: &Sidecar) {
    let inserts = "walsweep_changes_total{operation=\"insert\"}";
    eventually(PATIENCE * 3, "all of it is received", || async {
        let before = sidecar.metric(inserts).await;
        sleep(Duration::from_secs(2)).await;
        before >= 500.0 && sidecar.metric(inserts).await <= before
    })
    .await;
}

/// Whatever waits, however much it takes with so many rules, never stops what others need: neither
/// transactions that are still being sent, nor commits that a standby has not replayed, nor those
/// that are kept behind one that is not visible.
#[tokio::test]
async fn whatever_waits_with_a_thousand_rules_the_keys_of_others_go() {
    let bed =
        Bed::new(&["logical_decoding_work_mem = 64kB", "max_prepared_transactions = 60"]).await;
    bed.sql.run("create table big (id bigint primary key, text text)").await;
    bed.sql.run("alter table big alter column text set storage plain").await;
    let standby = bed.postgres.standby("paused", &[]).await.unwrap();
    let many: String = (0..1_500)
        .map(|rule| {
            format!(
                "[[rule]]\nname = \"big{rule}\"\ntable = \"public.big\"\n\
                 keys = [\"big{rule}:{{id}}\"]\n"
            )
        })
        .collect();
    let item = "[[rule]]\nname = \"item\"\ntable = \"public.item\"\nkeys = [\"item:{id}\"]\n";
    let sidecar = Sidecar::set_up(Settings {
        rules: format!("{item}{many}"),
        postgres: format!("replicas = [{:?}]", standby.url()),
        refill: "500ms".to_owned(),
        level: "info".to_owned(),
        ..bed.settings()
    })
    .await;
    bed.settled().await;
    Sql::connect(&standby).await.run("select pg_wal_replay_pause()").await;
    bed.postgres.conf("synchronous_standby_names = 'ghost'").await.unwrap();
    let invisible = Sql::connect(&bed.postgres).await;
    let invisible =
        tokio::spawn(
            async move { invisible.run("update item set version = 1 where id = 99").await },
        );
    let writer = local(&bed).await;
    let rows = |from: u32, to: u32| {
        format!(
            "insert into big select id, repeat('x', 7000) from generate_series({from}, {to}) id"
        )
    };
    for one in 0..60 {
        writer.run(&format!("begin; {}", rows(one * 100, one * 100 + 13))).await;
        writer.run(&format!("prepare transaction 'p{one}'")).await;
        writer.run(&rows(100_000 + one, 100_000 + one)).await;
    }
    all_received(&sidecar).await;
    bed.fill(&["item:7"]).await;
    writer.run("update item set version = version + 1 where id = 7").await;
    bed.gone("item:7").await;
    bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();
    invisible.await.unwrap();
    for one in 0..60 {
        writer.run(&format!("rollback prepared 'p{one}'")).await;
    }
}
