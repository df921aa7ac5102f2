//! The cost that an outage of any length may have: memory stays flat, and the database's disk is
//! spared.

use std::time::Duration;

use crate::support::{Bed, Fault, PATIENCE, Proxy, Settings, Sidecar, Sql, eventually};

/// Rules whose keys are as many as the rows: nothing collapses before its limit.
const WIDE_RULES: &str = r#"
[[rule]]
name = "wide"
table = "public.item"
keys = ["item:{id}", "a-longer-name-for-the-same-item:{id}:{version}"]
"#;

/// Rules of two tables; the keys of one are so long that some thousands of them fill the memory for
/// second removals.
fn long_rules() -> String {
    let long = "0123456789".repeat(100);
    format!(
        "[[rule]]\nname = \"item\"\ntable = \"public.item\"\nkeys = [\"item:{{id}}\"]\n\
         [[rule]]\nname = \"long\"\ntable = \"public.long\"\nkeys = [\"{long}:{{id}}\"]\n"
    )
}

/// Resident memory of a process in KiB.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// I6: however long Redis is away and however much is committed meanwhile, memory stays flat.
#[tokio::test]
async fn a_redis_outage_keeps_memory_flat() {
    let bed = Bed::new(&[]).await;
    let settings = Settings { rules: WIDE_RULES.to_owned(), ..bed.settings() };
    let mut sidecar = Sidecar::set_up(settings).await;
    bed.sql.run("insert into item select id, 'x', 0 from generate_series(101, 4000) id").await;
    bed.settled().await;
    bed.redis.pause().unwrap();
    // 1 GB of keys if every one of them were held.
    let mut peak = 0;
    for version in 1..=1_000 {
        let update = format!("update item set version = {version} where id <= 4000");
        bed.sql.run(&update).await;
        if version % 100 == 0 {
            peak = peak.max(resident(sidecar.id()));
        }
    }
    assert!(peak < 128 * 1024, "{peak} KiB resident");
    bed.redis.resume().unwrap();
    let mut bed = bed;
    bed.cache = bed.redis.connect().await.unwrap();
    bed.fill(&["item:7", "other"]).await;
    bed.sql.run("update item set version = 0 where id = 7").await;
    bed.gone("item:7").await;
    assert!(bed.has("other").await);
    assert_eq!(sidecar.sigterm().await, 0);
}

/// I6: a transaction of any size, and of any number of subtransactions, is kept in keys, not in
/// rows; at their limit the keys collapse to their rule's pattern, and the metric tells.
#[tokio::test]
async fn a_large_transaction_keeps_memory_flat() {
    let bed = Bed::new(&[]).await;
    let settings = Settings { rules: WIDE_RULES.to_owned(), ..bed.settings() };
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    bed.fill(&["item:7", "item:1000007", "item:3000007", "other"]).await;
    let (mut peak, writer) = (0, Sql::connect(&bed.postgres).await);
    writer.run("begin").await;
    for part in 1..=8 {
        let (first, last) = (part * 100_000, part * 100_000 + 49_999);
        let rows = format!("select id, 'x', 0 from generate_series({first}, {last}) id");
        writer.run(&format!("insert into item {rows}")).await;
        peak = peak.max(resident(sidecar.id()));
    }
    let subtransactions = "do $$ begin for id in 3000001..3020000 loop
       begin insert into item values (id, 'x', 0); exception when others then null; end;
     end loop; end $$";
    writer.run(subtransactions).await;
    writer.run("insert into item values (1000007, 'x', 0)").await;
    eventually(PATIENCE * 3, "all but the last changes are received", || async {
        sidecar.metric_sum("walsweep_changes_total").await >= 410_000.0
    })
    .await;
    peak = peak.max(resident(sidecar.id()));
    assert!(bed.has("item:3000007").await && bed.has("item:1000007").await, "it is not committed");
    assert!(sidecar.metric_sum("walsweep_widened_total").await < 1.0, "counted at the commit");
    writer.run("commit").await;
    bed.gone("item:3000007").await;
    bed.gone("item:1000007").await;
    bed.settled().await;
    peak = peak.max(resident(sidecar.id()));
    println!("{peak} KiB resident at most");
    assert!(peak < 64 * 1024, "{peak} KiB resident");
    assert!(bed.has("other").await);
    let widened = sidecar.metric("walsweep_widened_total{rule=\"wide\",reason=\"limit\"}").await;
    assert!(widened >= 1.0, "{widened}");
}

/// Writes as much to the log, of a table `ballast` that no rule names.
async fn write_100_mb(bed: &Bed) {
    let rows = "select repeat(md5(n::text), 60) from generate_series(1, 10000) n";
    for _ in 0..5 {
        bed.sql.run(&format!("insert into ballast {rows}")).await;
    }
}

/// A session that has a transaction with an id open; its process id.
async fn holder(bed: &Bed) -> (Sql, i32) {
    let holder = Sql::connect(&bed.postgres).await;
    holder.run("begin; insert into ballast values ('held')").await;
    let pid = holder.one("select pg_backend_pid()").await;
    (holder, pid)
}

/// Whether `/readyz` says so.
async fn says(sidecar: &Sidecar, part: &str) -> bool {
    sidecar.get("/readyz").await.is_some_and(|(_, body)| body.contains(part))
}

/// A new slot would wait for the transaction that makes the old one keep so much: nothing is gained
/// by it, and removals would stop.
#[tokio::test]
async fn wal_that_an_open_transaction_holds_costs_no_slot_and_is_told() {
    let bed = Bed::new(&["max_wal_size = 64MB"]).await;
    bed.sql.run("create table ballast (text text)").await;
    let mut settings = bed.settings();
    settings.postgres = "max_retained_wal = \"64MB\"".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    let (holder, pid) = holder(&bed).await;
    write_100_mb(&bed).await;
    bed.settled().await;
    let slot: String = bed.sql.one(SLOT).await;
    let process = format!("Postgres process {pid}");
    eventually(PATIENCE, "it is told who holds it", || says(&sidecar, &process)).await;
    // Two more looks at the slot.
    tokio::time::sleep(Duration::from_secs(11)).await;
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    assert_eq!(sidecar.readyz().await, Some(200), "no key waits");
    let now: String = bed.sql.one(SLOT).await;
    assert_eq!(now, slot, "the same slot: a new one would keep less");
    holder.run("commit").await;
    // A checkpoint says what runs, so that the slot can let go; else that comes every 15 s.
    bed.sql.run("checkpoint").await;
    eventually(PATIENCE, "it is over", || async { !says(&sidecar, "process").await }).await;
    assert!(sidecar.metric("walsweep_resyncs_total{reason=\"retained_wal\"}").await < 0.5);
}

/// Where the slot needs the log from: as long as a transaction is open, a slot that is created
/// later begins later.
const SLOT: &str = "select restart_lsn::text from pg_replication_slots";

/// I3, I6: what waits for its second removal holds up no first one, however much it is; at its
/// limit it is widened, not made earlier.
#[tokio::test]
async fn a_long_window_full_of_keys_delays_no_first_removal() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create table long (id int primary key)").await;
    let mut settings = bed.settings();
    settings.rules = long_rules();
    let sidecar = Sidecar::set_up(settings.clone()).await;
    bed.settled().await;
    drop(sidecar);
    settings.refill = "60s".to_owned();
    let mut sidecar = Sidecar::new(settings);
    sidecar.start();
    sidecar.wait_ready().await;
    let received = "walsweep_changes_total{operation=\"insert\"}";
    for part in 0..5 {
        let (from, to) = (part * 6_000 + 1, (part + 1) * 6_000);
        let rows = format!("insert into long select id from generate_series({from}, {to}) id");
        bed.sql.run(&rows).await;
        eventually(PATIENCE, "it is received", || async {
            sidecar.metric(received).await >= f64::from(to)
        })
        .await;
        // Each fills a bucket of its own.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    // A third of the window: none of the others is removed for the second time yet.
    bed.gone("item:1").await;
    let in_flight = sidecar.metric("walsweep_in_flight_transactions").await;
    assert!(in_flight < 5.0, "{in_flight} in flight after their first removal");
    let widened = sidecar.metric("walsweep_widened_total{rule=\"long\",reason=\"limit\"}").await;
    assert!(widened >= 1.0, "{widened}");
    let others = sidecar.metric_sum("walsweep_widened_total").await - widened;
    assert!(others < 0.5, "a few keys are not widened for the many of another rule");
}

/// I7: where the slot would fill the database's disk, it is given up loudly, and everything that
/// was owed is made good by a sweep.
#[tokio::test]
async fn too_much_retained_wal_is_given_up_for_a_sweep() {
    let mut bed = Bed::new(&["max_wal_size = 64MB"]).await;
    let mut settings = bed.settings();
    settings.postgres = "max_retained_wal = \"64MB\"".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    bed.fill(&["item:1", "list:team 1:a", "other"]).await;
    bed.redis.pause().unwrap();
    bed.sql.run("update item set version = 1 where id = 1").await;
    let held = bed.confirmed().await;
    bed.sql.run("create table ballast (text text)").await;
    write_100_mb(&bed).await;
    sidecar.wait_log("the slot keeps too much WAL").await;
    // Between the old slot and the new one there is none.
    let anew = format!(
        "select count(*) = 1 from pg_replication_slots
          where confirmed_flush_lsn > '{held}'
            and pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) < 16 * 1024 * 1024"
    );
    eventually(PATIENCE, "another slot lets the WAL go", || bed.sql.one::<bool>(&anew)).await;
    assert_eq!(sidecar.readyz().await, Some(503), "not ready while a sweep is owed");
    tokio::time::sleep(Duration::from_millis(100)).await;
    bed.redis.resume().unwrap();
    bed.cache = bed.redis.connect().await.unwrap();
    bed.gone("item:1").await;
    bed.gone("list:team 1:a").await;
    eventually(PATIENCE, "it is ready", || async { sidecar.readyz().await == Some(200) }).await;
    assert!(bed.has("other").await);
    let swept = sidecar.metric("walsweep_resyncs_total{reason=\"retained_wal\"}").await;
    assert!(swept >= 1.0, "{swept}");
}

/// While Redis is away the slot is far behind, and a new one could not be had either: that is told,
/// and done when the transaction has ended.
#[tokio::test]
async fn a_slot_is_not_given_up_while_a_new_one_could_not_be_had() {
    let mut bed = Bed::new(&["max_wal_size = 64MB"]).await;
    bed.sql.run("create table ballast (text text)").await;
    let mut settings = bed.settings();
    settings.postgres = "max_retained_wal = \"64MB\"".to_owned();
    let mut sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    bed.fill(&["item:1"]).await;
    bed.redis.pause().unwrap();
    bed.sql.run("update item set version = 1 where id = 1").await;
    let held = bed.confirmed().await;
    let (holder, pid) = holder(&bed).await;
    write_100_mb(&bed).await;
    let process = format!("Postgres process {pid}");
    eventually(PATIENCE, "it is told who is in the way", || says(&sidecar, &process)).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(bed.confirmed().await, held, "it is the old slot");
    holder.run("commit").await;
    sidecar.wait_log("the slot keeps too much WAL").await;
    let anew = format!(
        "select count(*) = 1 from pg_replication_slots where confirmed_flush_lsn > '{held}'"
    );
    eventually(PATIENCE, "another slot", || bed.sql.one::<bool>(&anew)).await;
    bed.redis.resume().unwrap();
    bed.cache = bed.redis.connect().await.unwrap();
    bed.gone("item:1").await;
    sidecar.wait_ready().await;
}

/// A slot costs its server as much while no session stands.
#[tokio::test]
async fn a_slot_that_nobody_can_stream_is_dropped_before_the_disk_is_full() {
    let bed = Bed::new(&["max_wal_size = 64MB"]).await;
    bed.sql.run("create table ballast (text text)").await;
    let proxy = Proxy::to_port(bed.postgres.port());
    let mut settings = bed.settings();
    let url = proxy.url(&settings.postgres_url, bed.postgres.port());
    settings.postgres = format!("max_retained_wal = \"64MB\"\nreplication_url = {url:?}");
    let mut sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    bed.fill(&["item:1", "other"]).await;
    proxy.set(Fault::Refuse);
    proxy.reset();
    eventually(PATIENCE, "no session", || async { sidecar.readyz().await == Some(503) }).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    write_100_mb(&bed).await;
    eventually(PATIENCE, "the slot is dropped", || async {
        bed.sql.one::<i64>("select count(*) from pg_replication_slots").await == 0
    })
    .await;
    sidecar.wait_log("the slot keeps too much WAL").await;
    assert!(bed.has("item:1").await, "nothing can be removed yet");
    proxy.set(Fault::Nothing);
    sidecar.wait_ready().await;
    bed.gone("item:1").await;
    assert!(bed.has("other").await);
    let swept = sidecar.metric("walsweep_resyncs_total{reason=\"retained_wal\"}").await;
    assert!((swept - 1.0).abs() < f64::EPSILON, "{swept}");
}
