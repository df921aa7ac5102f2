//! I10: locks that others hold, or wait for, on the application's tables. No key of another table
//! waits for one, no session does, and walsweep neither holds nor awaits one while it watches.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::support::{Bed, ITEM_RULES, PATIENCE, Settings, Sidecar, Sql, eventually};

/// Tables of every kind that a publication publishes, beside `item`.
const TABLES: &str = "
    create table plain (id int primary key, a text, g int generated always as (1) stored);
    create table part (id int, region text, primary key (id, region)) partition by list (region);
    create table part_eu partition of part for values in ('eu');
    create table part_us partition of part for values in ('us') partition by list (id);
    create table part_us_1 partition of part_us for values in (1);
    create table filtered (id int primary key, kind text);
    alter table filtered replica identity full;";

const RULES: &str = r#"
[[rule]]
name = "plain"
table = "public.plain"
keys = ["plain:{id}"]

[[rule]]
name = "part"
table = "public.part"
keys = ["part:{id}"]

[[rule]]
name = "filtered"
table = "public.filtered"
when = "new.kind == 'a' || old.kind == 'a'"
keys = ["filtered:{id}"]
"#;

/// The server tells of every wait for a lock, and who waits.
const CONF: [&str; 3] =
    ["log_lock_waits = on", "deadlock_timeout = '10ms'", "log_line_prefix = '<%a> '"];

const LOCKED: [&str; 6] = ["plain", "part", "part_eu", "part_us", "part_us_1", "filtered"];

/// Longer than the watch takes for two looks.
const LOOKS: Duration = Duration::from_secs(5);

async fn bed() -> (Bed, Settings) {
    let bed = Bed::new(&CONF).await;
    bed.sql.run(TABLES).await;
    let settings = Settings { rules: format!("{ITEM_RULES}{RULES}"), ..bed.settings() };
    (bed, settings)
}

/// Sessions that have every table but `item` locked against all others.
async fn lock(bed: &Bed) -> Vec<Sql> {
    let holder = Sql::connect(&bed.postgres).await;
    holder.run(&format!("begin; lock table {}", LOCKED.join(", "))).await;
    vec![holder]
}

/// Like [`lock`], but each lock is only waited for, behind a reader that does not end.
async fn queue(bed: &Bed) -> Vec<Sql> {
    let reader = Sql::connect(&bed.postgres).await;
    let reads = LOCKED.map(|table| format!("select from only {table};"));
    reader.run(&format!("begin; {}", reads.concat())).await;
    for table in LOCKED {
        let waiter = Sql::connect(&bed.postgres).await;
        tokio::spawn(async move {
            // It ends with the test, or when the reader does.
            drop(waiter.client().batch_execute(&format!("begin; lock only {table}")).await);
        });
    }
    let waiting = "select count(*) = 6 from pg_locks
                    where mode = 'AccessExclusiveLock' and not granted and relation >= 16384";
    eventually(PATIENCE, "every table is waited for", || async { bed.sql.one(waiting).await })
        .await;
    vec![reader]
}

/// A sidecar that ran before, so that its next start owes no sweep, which would have to wait until
/// whoever has the locks has ended.
async fn begun(bed: &Bed, settings: Settings) -> Sidecar {
    let mut sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    sidecar
}

/// Keys of `item` go on going, one after another, for longer than two looks.
async fn others_go(bed: &Bed, sidecar: &Sidecar) {
    let start = Instant::now();
    for version in 1.. {
        bed.fill(&["item:1"]).await;
        bed.sql.run(&format!("update item set version = {version} where id = 1")).await;
        bed.gone("item:1").await;
        if start.elapsed() > LOOKS {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(sidecar.readyz().await, Some(200));
}

/// All that the server has logged.
fn whole_log(bed: &Bed) -> String {
    let file = bed.postgres.data_dir().parent().unwrap().join("log");
    std::fs::read_to_string(file).unwrap()
}

/// The lines in which the server says that walsweep waits for a lock.
fn waits(bed: &Bed) -> Vec<String> {
    let log = whole_log(bed);
    let is_wait = |line: &&str| line.starts_with("<walsweep") && line.contains("waiting for");
    log.lines().filter(is_wait).map(str::to_owned).collect()
}

#[tokio::test]
async fn no_lock_of_a_table_holds_up_keys_of_another() {
    let (bed, settings) = bed().await;
    let sidecar = Sidecar::set_up(settings).await;
    let held = lock(&bed).await;
    others_go(&bed, &sidecar).await;
    drop(held);
    let held = queue(&bed).await;
    others_go(&bed, &sidecar).await;
    drop(held);
    assert_eq!(waits(&bed), Vec::<String>::new());
    assert_eq!(sidecar.metric("walsweep_reconnects_total{peer=\"postgres\"}").await, 0.0);
    // What waited goes, too.
    bed.fill(&["plain:1", "part:1"]).await;
    bed.sql.run("insert into plain values (1); insert into part values (1, 'eu')").await;
    bed.gone("plain:1").await;
    bed.gone("part:1").await;
}

#[tokio::test]
async fn no_lock_of_a_table_holds_up_the_start() {
    let (bed, settings) = bed().await;
    let mut sidecar = begun(&bed, settings).await;
    let held = lock(&bed).await;
    sidecar.start();
    sidecar.wait_ready().await;
    others_go(&bed, &sidecar).await;
    assert_eq!(sidecar.sigterm().await, 0);
    drop(held);
    let held = queue(&bed).await;
    sidecar.start();
    sidecar.wait_ready().await;
    others_go(&bed, &sidecar).await;
    drop(held);
    assert_eq!(waits(&bed), Vec::<String>::new());
}

/// To try a lookup locks its tables, as reading does. Whoever is in the way is named, is not waited
/// for, and the lookup is tried again.
#[tokio::test]
async fn a_lookup_whose_table_is_locked_is_in_doubt_and_nothing_waits() {
    let (bed, settings) = bed().await;
    let rules = r#"
[lookup.found]
sql = "select a from plain where id = $1"
params = ["id"]

[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}", "found:{found.a}"]
"#;
    let mut sidecar = begun(&bed, Settings { rules: rules.to_owned(), ..settings }).await;
    let held = lock(&bed).await;
    let pid: i32 = held[0].one("select pg_backend_pid()").await;
    sidecar.start();
    sidecar.wait_ready().await;
    sidecar.wait_log("lookup `found` could not be tried").await;
    let (_, told) = sidecar.get("/readyz").await.unwrap();
    let holder = format!("Postgres process {pid}");
    assert!(told.contains(&holder) && told.contains("`public."), "{told}");
    bed.fill(&["found:any"]).await;
    bed.sql.run("delete from item where id = 1").await;
    bed.gone("found:any").await;
    drop(held);
    let over = || async { !sidecar.get("/readyz").await.unwrap().1.contains("could not be tried") };
    eventually(PATIENCE, "it is tried again", over).await;
    assert_eq!(sidecar.readyz().await, Some(200));
}

/// Somebody else's lock, on a table that the lookup does not read, is not blamed.
#[tokio::test]
async fn whoever_locks_a_table_that_a_lookup_does_not_read_is_not_blamed() {
    let (bed, settings) = bed().await;
    let rules = r#"
[lookup.found]
sql = "select a from only plain where id = $1"
params = ["id"]

[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}", "found:{found.a}"]
"#;
    let mut sidecar = begun(&bed, Settings { rules: rules.to_owned(), ..settings }).await;
    let (other, holder) = (Sql::connect(&bed.postgres).await, Sql::connect(&bed.postgres).await);
    let pid = "select pg_backend_pid()";
    let (other_pid, pid): (i32, i32) = (other.one(pid).await, holder.one(pid).await);
    other.run("begin; lock table filtered, part").await;
    holder.run("begin; lock table plain").await;
    sidecar.start();
    sidecar.wait_log("lookup `found` could not be tried").await;
    let (_, told) = sidecar.get("/readyz").await.unwrap();
    assert!(told.contains(&format!("Postgres process {pid} has `public.plain` locked")), "{told}");
    assert!(!told.contains(&format!("process {other_pid}")), "{told}");
}

/// The gate's questions run on a connection of their own. Questions about the slot do not wait
/// behind those about tables.
#[tokio::test]
async fn nothing_but_the_gate_uses_the_gates_connection() {
    let bed = Bed::new(&["log_statement = all", "log_line_prefix = '<%a> '"]).await;
    let sidecar = bed.sidecar().await;
    others_go(&bed, &sidecar).await;
    let log = whole_log(&bed);
    let of = |name: &str| {
        let entries = log.split("\n<").map(|entry| entry.trim_start_matches('<'));
        let own = entries.filter_map(|entry| entry.strip_prefix(name)?.strip_prefix("> LOG:"));
        own.map(str::to_owned).collect::<Vec<String>>()
    };
    let (gate, watch) = (of("walsweep"), of("walsweep watch"));
    let others = ["pg_class", "pg_publication", "pg_replication_slots", "pg_inherits", "pg_type"];
    let is_other = |entry: &&String| others.iter().any(|part| entry.contains(part));
    assert!(gate.iter().any(|entry| entry.contains("pg_current_snapshot()")), "{gate:?}");
    assert_eq!(gate.iter().find(is_other), None);
    assert!(watch.iter().filter(is_other).count() > 3, "{watch:?}");
    let slot = of("walsweep slot");
    let of_slot = |entry: &&String| entry.contains("safe_wal_size");
    assert!(slot.iter().filter(of_slot).count() > 1, "{slot:?}");
    assert_eq!(slot.iter().find(|entry| entry.contains("pg_publication")), None);
}
