//! Another version of walsweep, without a gap; another one of Postgres, by `pg_upgrade`.

use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::AsyncCommands;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use walsweep_stage::throwaway::{Postgres, PostgresOptions, Redis, RedisOptions, StopMode};

use crate::support::{Bed, ITEM_RULES, Load, PATIENCE, Settings, Sidecar, Sql, eventually, text};

/// How long keys may outlive their commit while one session follows another. What it takes in fact
/// is printed; this holds on a machine that does much else.
const GAP_MAX: Duration = Duration::from_secs(10);

/// One commit after the other, and how long each took until its key was gone.
struct Probe {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<Duration>>,
}

impl Probe {
    async fn start(bed: &Bed) -> Probe {
        let stop = Arc::new(AtomicBool::new(false));
        let (sql, mut cache) = (Sql::connect(&bed.postgres).await, bed.cache.clone());
        let ends = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut took = Vec::new();
            for id in (1..=100).cycle() {
                if ends.load(Ordering::Relaxed) {
                    break;
                }
                let key = format!("item:{id}");
                let () = cache.set(&key, "cached").await.unwrap();
                sql.run(&format!("update item set version = version + 1 where id = {id}")).await;
                let begun = Instant::now();
                while cache.exists::<_, bool>(&key).await.unwrap() {
                    assert!(begun.elapsed() < GAP_MAX, "`{key}` outlives its commit");
                    sleep(Duration::from_millis(1)).await;
                }
                took.push(begun.elapsed());
            }
            took
        });
        Probe { stop, task }
    }

    /// Ends it, and prints what commits waited for their keys.
    async fn end(self, what: &str) {
        sleep(Duration::from_secs(1)).await;
        self.stop.store(true, Ordering::Relaxed);
        let mut took = self.task.await.unwrap();
        took.sort();
        assert!(took.len() > 10, "{} commits", took.len());
        let (half, most) = (took[took.len() / 2], took[took.len() - 1]);
        println!("{what}: {} commits, until gone p50 {half:.1?}, at most {most:.1?}", took.len());
    }
}

/// Waits until the server shows that another one waits for the slot.
async fn waits(bed: &Bed) {
    let query = "select exists (select from pg_stat_activity
                                 where application_name = 'walsweep waits for walsweep')";
    eventually(PATIENCE, "another one waits", async || bed.sql.one::<bool>(query).await).await;
}

/// A second one is started, waits, and goes on where the first one stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_one_takes_over_under_load_and_no_commit_is_forgotten() {
    let bed = Bed::new(&[]).await;
    let settings = Settings { refill: "1s".to_owned(), level: "info".to_owned(), ..bed.settings() };
    let mut first = Sidecar::set_up(settings.clone()).await;
    // Without it the second one has to sweep, as after a first start.
    bed.marked().await;
    let mut load = Load::paced(&bed, Duration::from_millis(5));
    let probe = Probe::start(&bed).await;
    sleep(Duration::from_secs(1)).await;
    let mut second = Sidecar::new(settings);
    second.start();
    eventually(PATIENCE, "it may replace the first", async || {
        second.get("/readyz?rollout").await.is_some_and(|(status, _)| status == 200)
    })
    .await;
    waits(&bed).await;
    let begun = Instant::now();
    assert_eq!(first.sigterm().await, 0);
    let stopped = begun.elapsed();
    second.wait_ready().await;
    println!("the first stopped after {stopped:.1?}, ready again after {:.1?}", begun.elapsed());
    probe.end("hand-over to a second one").await;
    load.end_writing().await;
    load.assert_nothing_stale(&bed, &mut second).await;
    second.assert_quiet(&[]);
}

/// Twenty times, alternately with a rule more and without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_under_load_leave_nothing_stale_and_sweep_nothing_else() {
    let bed = Bed::new(&[]).await;
    let settings = Settings { refill: "1s".to_owned(), level: "info".to_owned(), ..bed.settings() };
    let mut sidecar = Sidecar::set_up(settings).await;
    let resyncs = sidecar.metric_sum("walsweep_resyncs_total").await;
    let mut load = Load::paced(&bed, Duration::from_millis(5));
    let probe = Probe::start(&bed).await;
    let more = ITEM_RULES.replace("\"item\"", "\"more\"").replace("item:{id}", "more:{id}");
    for round in 0..20 {
        let is_more = round % 2 == 0;
        let rules = if is_more { format!("{more}{ITEM_RULES}") } else { ITEM_RULES.to_owned() };
        sidecar.change(|settings| settings.rules = rules);
        let output: Output = tokio::task::block_in_place(|| sidecar.command(&["reload"]));
        assert!(output.status.success(), "{}", text(&output));
    }
    sidecar.wait_ready().await;
    probe.end("twenty reloads").await;
    assert_eq!(sidecar.metric_sum("walsweep_resyncs_total").await, resyncs + 10.0);
    load.end_writing().await;
    load.assert_nothing_stale(&bed, &mut sidecar).await;
    sidecar.assert_quiet(&["sweeping everything"]);
}

/// The servers of an upgrade: from the programs in `$WALSWEEP_OLD_PG_BIN`, where that is given,
/// else to the same version, for which `pg_upgrade` does the same.
async fn servers() -> (Postgres, Postgres) {
    let old = std::env::var_os("WALSWEEP_OLD_PG_BIN").map(PathBuf::from);
    let old = PostgresOptions { bin_dir: old, ..PostgresOptions::default() };
    let new = PostgresOptions::default();
    (Postgres::start(old).await.unwrap(), Postgres::start(new).await.unwrap())
}

async fn major(sql: &Sql) -> i32 {
    sql.one::<i32>("select current_setting('server_version_num')::int").await / 10_000
}

/// Both are stopped. Ends with the new one running.
async fn pg_upgrade(old: &Postgres, new: &mut Postgres) {
    let mut command = new.command("pg_upgrade");
    command.env_remove("PGHOST").env_remove("PGPORT").arg("--username=postgres");
    // It writes there.
    command.current_dir(new.new_folder("upgrade").unwrap());
    let bin = |server: &Postgres| server.bin("postgres").parent().unwrap().to_owned();
    command.arg("--old-bindir").arg(bin(old)).arg("--new-bindir").arg(bin(new));
    command.arg("--old-datadir").arg(old.data_dir()).arg("--new-datadir").arg(new.data_dir());
    command.arg("--socketdir").arg(new.socket_dir()).arg("--no-sync");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    new.start_again().await.unwrap();
}

/// docs/upgrade.md, step by step. From 17 on the slot goes along; before, `setup` makes a new one.
/// Both ways everything is swept: the new server is another history.
#[tokio::test]
async fn a_major_upgrade_of_postgres_by_pg_upgrade() {
    let (mut old, mut new) = servers().await;
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let cache = redis.connect().await.unwrap();
    let sql = Sql::connect(&old).await;
    Bed::make_items(&sql).await;
    let has_slots = major(&sql).await >= 17;
    let sums = "select current_setting('data_checksums') = 'on'";
    let has_sums = (sql.one::<bool>(sums).await, Sql::connect(&new).await.one::<bool>(sums).await);
    let mut sidecar = Sidecar::set_up(Settings::new(&old, &redis, ITEM_RULES)).await;
    let set = async |key: &str| {
        let () = cache.clone().set(key, "cached").await.unwrap();
    };
    let has = async |key: &str| cache.clone().exists::<_, bool>(key).await.unwrap();
    set("item:1").await;
    sql.run("update item set version = 1 where id = 1").await;
    drop(sql);
    eventually(PATIENCE, "the last commit is removed", async || !has("item:1").await).await;
    // It removes and confirms what it has. Postgres would end its sessions first.
    assert_eq!(sidecar.sigterm().await, 0);
    old.stop(StopMode::Fast).await.unwrap();
    set("item:2").await;
    new.stop(StopMode::Fast).await.unwrap();
    if has_sums == (false, true) {
        // From 18 on initdb turns them on, and pg_upgrade wants them to be alike.
        let mut sums = new.command("pg_checksums");
        let output = sums.arg("--disable").arg("-D").arg(new.data_dir()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
    pg_upgrade(&old, &mut new).await;
    let sql = Sql::connect(&new).await;
    let slots: i64 = sql.one("select count(*) from pg_replication_slots").await;
    assert_eq!(slots, i64::from(has_slots));
    // The application writes before walsweep is back.
    sql.run("update item set version = 2 where id = 2").await;
    let url = new.url();
    sidecar.change(|settings| settings.postgres_url = url);
    let said = text(&sidecar.command(&["check"]));
    let why = if has_slots { "of another postgres cluster" } else { "the slot is new" };
    assert!(said.contains("the next start will sweep everything") && said.contains(why), "{said}");
    sidecar.setup();
    sidecar.start();
    sidecar.wait_ready().await;
    assert!(!has("item:2").await, "nothing of before is left");
    sidecar.wait_log("sweeping everything").await;
    set("item:3").await;
    sql.run("update item set version = 1 where id = 3").await;
    eventually(PATIENCE, "keys go", async || !has("item:3").await).await;
}

/// docs/upgrade.md, blue and green: each side has a slot, a publication and so a watermark of its
/// own, in one Redis. Nothing is swept at the switch.
#[tokio::test]
async fn blue_and_green_each_have_a_slot_of_their_own() {
    let (blue, green) = servers().await;
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let cache = redis.connect().await.unwrap();
    let (old, new) = (Sql::connect(&blue).await, Sql::connect(&green).await);
    Bed::make_items(&old).await;
    old.run("create publication copies for table item").await;
    new.run(
        "create table item (id int primary key, team text, version bigint not null);
         alter table item replica identity full",
    )
    .await;
    let source = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", blue.port());
    new.run(&format!("create subscription copies connection '{source}' publication copies")).await;
    let is_at = async |version: i64| {
        let of_one = "select coalesce((select version from item where id = 1), -1)";
        eventually(PATIENCE, "green has it", async || new.one::<i64>(of_one).await == version)
            .await;
    };
    is_at(0).await;
    let set = async |key: &str| {
        let () = cache.clone().set(key, "cached").await.unwrap();
    };
    let has = async |key: &str| cache.clone().exists::<_, bool>(key).await.unwrap();
    let mut first = Sidecar::set_up(Settings::new(&blue, &redis, ITEM_RULES)).await;
    let settings = Settings::new(&green, &redis, ITEM_RULES);
    let second = Sidecar::set_up(Settings { name: "green".to_owned(), ..settings }).await;
    set("item:1").await;
    old.run("update item set version = 1 where id = 1").await;
    eventually(PATIENCE, "it goes for blue", async || !has("item:1").await).await;
    is_at(1).await;
    // No more writes on blue, and green has them all: the application goes to green.
    new.run("drop subscription copies").await;
    assert_eq!(first.sigterm().await, 0);
    let said = text(&first.command(&["teardown"]));
    let slots: i64 = old.one("select count(*) from pg_replication_slots").await;
    assert_eq!(slots, 0, "{said}");
    let resyncs = second.metric_sum("walsweep_resyncs_total").await;
    set("item:2").await;
    set("item:3").await;
    new.run("update item set version = 2 where id = 2").await;
    eventually(PATIENCE, "it goes for green", async || !has("item:2").await).await;
    assert!(has("item:3").await, "nothing is swept");
    assert_eq!(second.metric_sum("walsweep_resyncs_total").await, resyncs);
}

/// Second removals are left to the one that takes over, for which new commits wait.
#[tokio::test]
async fn a_stop_while_another_waits_takes_no_refill_window() {
    let bed = Bed::new(&[]).await;
    let settings = Settings { refill: "6s".to_owned(), ..bed.settings() };
    let mut first = Sidecar::set_up(settings.clone()).await;
    let mut second = Sidecar::new(settings);
    second.start();
    waits(&bed).await;
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    let before = bed.position().await;
    let begun = Instant::now();
    assert_eq!(first.sigterm().await, 0);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    first.wait_log("another walsweep waits for the slot").await;
    assert!(bed.confirmed().await < before, "it is not removed again, and so not confirmed");
    // A reader that is late.
    bed.fill(&["item:1"]).await;
    second.wait_ready().await;
    bed.gone("item:1").await;
}
