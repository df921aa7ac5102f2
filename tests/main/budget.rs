//! All that grows with the load is full at once: 64 MiB are enough (I6).

use std::ops::Range;
use std::time::Duration;

use tokio::task::JoinHandle;
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

/// How often everything is held up at the same time: what a place has at that moment is chance.
const WAVES: usize = 4;

/// Keys that are held then, bytes: where less is, nothing was shown.
const HELD: f64 = 24.0 * 1024.0 * 1024.0;

/// Each kind of key has so many rules and tables. A place that is full gives up all keys of a rule;
/// of one rule alone it would give up everything, and hold next to nothing.
const PARTS: usize = 8;

/// And as many more, for keys that come when the places know the others as given up: what such a
/// pattern matches takes no room.
const LATE: Range<usize> = PARTS..2 * PARTS;

/// Keys of a kilobyte: exact ones, some that wait for a pass, some that are looked into, some that
/// Redis refuses, and some that need a row. All of them are told.
fn rules() -> String {
    let long = "0123456789".repeat(100);
    let mut rules = r#"
[lookup.place]
sql = "select name from place where id = $1"
params = ["place_id"]
cache = 10000

[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}"]

[[rule]]
name = "early"
table = "public.early"
keys = ["early:{id}:{place.name}"]
"#
    .to_owned();
    for part in 0..LATE.end {
        rules.push_str(&format!(
            r#"
[[rule]]
name = "exact{part}"
table = "public.exact{part}"
keys = ["exact:{long}:{{id}}"]

[[rule]]
name = "passing{part}"
table = "public.passing{part}"
keys = ["passing:{long}:{{id}}", "passing:list:{{id}}:*"]
tags = ["named:{long}:{{id}}"]
fields = {{ "hash:{long}:{{id}}" = ["name", "page:*"] }}

[[rule]]
name = "guarded{part}"
table = "public.guarded{part}"
keys = ["guarded:{long}:{{id}}"]

[[rule]]
name = "placed{part}"
table = "public.placed{part}"
keys = ["placed:{long}:{{id}}:{{place.name}}"]
"#
        ));
    }
    rules
}

/// Tables whose rows have all that rules need.
fn tables() -> String {
    let mut tables = "
        create table place (id bigint primary key, name text not null);
        create table early (id bigint primary key, place_id bigint not null);
        alter table early replica identity full;
        create sequence number;
        insert into place select id, repeat('p', 400) from generate_series(1, 10000) id;"
        .to_owned();
    for part in 0..LATE.end {
        tables.push_str(&format!(
            "create table exact{part} (id bigint primary key);
             create table passing{part} (id bigint primary key);
             create table guarded{part} (id bigint primary key);
             create table placed{part} (id bigint primary key, place_id bigint not null);
             alter table placed{part} replica identity full;"
        ));
    }
    tables
}

/// A session whose commits wait for no standby.
async fn local(bed: &Bed) -> Sql {
    let sql = Sql::connect(&bed.postgres).await;
    sql.run("set synchronous_commit = local").await;
    sql
}

/// Inserts rows of new ids into tables of a kind, in one transaction.
fn insert(kind: &str, rows: usize) -> String {
    insert_into(0..PARTS, kind, rows)
}

fn insert_into(parts: Range<usize>, kind: &str, rows: usize) -> String {
    let placed = if kind == "placed" { ", 1 + id % 10000" } else { "" };
    let into = |part: usize| {
        format!(
            "insert into {kind}{part} select id{placed}
               from (select nextval('number') as id from generate_series(1, {})) of_ids;",
            rows.div_ceil(PARTS)
        )
    };
    parts.map(into).collect()
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
    bed.sql.run(&tables()).await;
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
        refill: "10s".to_owned(),
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
        let until = Instant::now() + PATIENCE;
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

/// Transactions that are not visible, four that are still being sent, keys that wait for a row
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

/// Transactions that are still being sent, and the rows that they have: keys of theirs stay where
/// they are until the end.
struct Open {
    sessions: [Sql; 4],
    rows: usize,
}

impl Open {
    async fn begin(bed: &Bed) -> Open {
        let sessions = [local(bed).await, local(bed).await, local(bed).await, local(bed).await];
        for session in &sessions {
            session.run("begin").await;
        }
        Open { sessions, rows: 0 }
    }

    /// Inserts more rows, until all have so many.
    async fn grow(&mut self, step: usize, most: usize) {
        let rows = step.min(most.saturating_sub(self.rows)) / self.sessions.len();
        for session in self.sessions.iter().filter(|_| rows > 0) {
            session.run(&insert("exact", rows)).await;
        }
        self.rows += rows * self.sessions.len();
    }

    async fn rollback(&self) {
        for session in &self.sessions {
            session.run("rollback").await;
        }
    }
}

/// Rows whose keys take the better part of a share. One key too many, and a place gives up all keys
/// of a rule: then it holds next to nothing, and shows nothing.
fn rows_within(share: usize) -> usize {
    share * 8 / 10 / 1024
}

/// Fills every place that keeps its keys as long as Redis does not answer from now on: those that
/// wait for a row whose table is locked, for a right, for a pass, and for their second removal.
async fn hold_all(bed: &Bed, writer: &Sql, locker: &Sql) {
    let of_all = budget::OfTarget::of(1);
    // Kept answers would need no row.
    writer.run("update place set name = name").await;
    locker.run("begin; lock table place").await;
    for (kind, share) in [
        ("placed", budget::LOOKUPS / 2),
        ("placed", budget::LOOKUPS / 2),
        ("guarded", of_all.refused),
        ("passing", of_all.passes),
        ("exact", of_all.refill / 2),
        ("exact", of_all.refill / 2),
    ] {
        writer.run(&insert_into(LATE, kind, rows_within(share))).await;
    }
    bed.fill(&["item:60"]).await;
    writer.run("update item set version = 1 where id = 60").await;
    let gone = async || !bed.has("item:60").await;
    eventually(PATIENCE * 3, "all of it is received", gone).await;
}

/// Commits that nobody sees: they wait for a standby that is not there.
async fn hide(bed: &Bed) -> Vec<JoinHandle<()>> {
    let mut invisible = Vec::new();
    for _ in 0..3 {
        let sql = Sql::connect(&bed.postgres).await;
        let rows = insert("exact", rows_within(budget::GATE) / 3);
        invisible.push(tokio::spawn(async move { sql.run(&rows).await }));
    }
    invisible
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
    let invisible = hide(&bed).await;
    let (mut open, locker, writer) =
        (Open::begin(&bed).await, local(&bed).await, local(&bed).await);
    let (mut peaks, mut rounds, began) = (Peaks::default(), 0, Instant::now());
    while began.elapsed() < FILLED.0 || rounds < FILLED.1 {
        open.grow(200, rows_within(budget::IN_PROGRESS)).await;
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
    let mut waves = 0;
    while waves < WAVES && peaks.keys < HELD {
        hold_all(&bed, &writer, &locker).await;
        targets.iter().for_each(|target| target.pause().unwrap());
        // Sets at their limit: one more goes on its way while the others leave it room.
        for _ in 0..120 {
            writer.run(&insert("exact", rows_within(budget::SET_USED))).await;
            peaks.look(&sidecar, base).await;
        }
        peaks.wait(&sidecar, base).await;
        locker.run("commit").await;
        targets.iter().for_each(|target| target.resume().unwrap());
        waves += 1;
    }
    println!("{rounds} rounds, {waves} waves: {peaks:?} of {}", budget::ALL);
    assert!(peaks.resident <= budget::ALL as u64, "{peaks:?}");
    assert!(peaks.keys <= budget::ALL as f64, "{peaks:?}");
    assert!(peaks.keys >= HELD, "{peaks:?}");
    // What is still being sent gives way, too.
    open.grow(40_000, usize::MAX).await;
    for _ in 0..40 {
        sleep(Duration::from_millis(50)).await;
        peaks.look(&sidecar, base).await;
    }
    assert!(peaks.resident <= budget::ALL as u64, "{peaks:?}");
    open.rollback().await;
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
    eventually(PATIENCE * 9, "a later key goes", gone).await;
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
