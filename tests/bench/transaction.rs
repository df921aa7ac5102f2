//! P5: one transaction of a million rows over a thousand matches, from its acknowledgement until
//! every key is gone, against a reader of protocol 1 that receives its COMMIT. With the matches
//! mixed, as users enter predictions, every key is known long before the last row is sent; match by
//! match the last key is known at the end only. P9: the memory that one of ten million distinct
//! keys takes.

use std::io::Read as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use redis::AsyncCommands;
use tokio::time::{Instant, sleep};

use crate::median;
use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually};

const ROUNDS: usize = 3;
const ROWS: i64 = 1_000_000;
const MATCHES: i64 = 1_000;

/// Names of orders of the rows, with the match of row `g`.
const ORDERS: [(&str, &str); 2] =
    [("matches mixed", "g % 1000"), ("match by match", "(g - 1) / 1000")];

/// One exact key for each match, as the root `config.toml` has it.
const RULES: &str = r#"
[[rule]]
name = "predictions"
table = "public.predictions"
keys = ["db:predictions:{match_id}"]

[[rule]]
name = "wide"
table = "public.wide"
keys = ["wide:{id}"]
"#;

pub(crate) async fn run() {
    let bed = Bed::new(&["max_wal_size = 8GB", "wal_sender_timeout = 60s"]).await;
    bed.sql
        .run(
            "create table predictions (id bigint generated always as identity primary key,
                                       match_id int, model_id int, status text, total_points int);
             create table wide (id bigint);
             alter table predictions replica identity full;
             create publication bench for table predictions",
        )
        .await;
    for (order, match_id) in ORDERS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            theirs.push(protocol_1(&bed, match_id).await);
            let (mut sidecar, name) = sidecar(&bed, order, round).await;
            ours.push(walsweep(&bed, match_id).await);
            sidecar.kill9();
            drop_slot(&bed, &name).await;
        }
        let (own, peer) = (median(&mut ours), median(&mut theirs));
        println!(
            "| P5 | commit acknowledged to all keys gone, one transaction of 1 M rows, {order} | \
             {own:.2} s | protocol 1 receives COMMIT {peer:.2} s | {:.2} × |",
            own / peer
        );
    }
    let (sidecar, _) = sidecar(&bed, "wide", 0).await;
    memory(&bed, &sidecar).await;
}

/// A walsweep of its own for each round: no other slot decodes what a yardstick is timed by.
async fn sidecar(bed: &Bed, order: &str, round: usize) -> (Sidecar, String) {
    let mut settings = Settings::new(&bed.postgres, &bed.redis, RULES);
    settings.name = format!("{}{round}", order.replace(' ', "_"));
    settings.level = "info".to_owned();
    settings.refill = "1s".to_owned();
    let name = settings.name.clone();
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    (sidecar, name)
}

/// Drops it as soon as the server knows that nobody streams from it any more.
async fn drop_slot(bed: &Bed, name: &str) {
    let idle = format!("select not active from pg_replication_slots where slot_name = '{name}'");
    eventually(PATIENCE, "the slot is idle", || bed.sql.one::<bool>(&idle)).await;
    bed.sql.run(&format!("select pg_drop_replication_slot('{name}')")).await;
}

/// The rows of the transaction, which is left open.
async fn insert(sql: &Sql, match_id: &str) {
    sql.run("begin").await;
    sql.run(&format!(
        "insert into predictions (match_id, model_id, status, total_points)
         select {match_id}, g % 20, 'scored', g % 7 from generate_series(1, {ROWS}) g"
    ))
    .await;
}

/// When it was acknowledged.
async fn commit(sql: &Sql) -> Instant {
    sql.run("commit").await;
    Instant::now()
}

/// Seconds until the last match's key is gone, and with it all.
async fn walsweep(bed: &Bed, match_id: &str) -> f64 {
    insert(&bed.sql, match_id).await;
    // Not before: the sweep of everything that a new slot begins with has a second removal.
    let mut pipeline = redis::pipe();
    for id in 0..MATCHES {
        pipeline.set(format!("db:predictions:{id}"), "cached").ignore();
    }
    pipeline.exec_async(&mut bed.cache.clone()).await.unwrap();
    assert_eq!(left(bed).await, MATCHES, "nothing goes before the commit");
    let acknowledged = commit(&bed.sql).await;
    eventually(PATIENCE * 6, "every key goes", || async { left(bed).await == 0 }).await;
    acknowledged.elapsed().as_secs_f64()
}

/// How many matches have their key.
async fn left(bed: &Bed) -> i64 {
    let mut exists = redis::cmd("EXISTS");
    (0..MATCHES).for_each(|id| {
        exists.arg(format!("db:predictions:{id}"));
    });
    exists.query_async(&mut bed.cache.clone()).await.unwrap()
}

/// Seconds until `pg_recvlogical`, with the server's own settings, has received the last byte.
async fn protocol_1(bed: &Bed, match_id: &str) -> f64 {
    bed.sql.run("select pg_create_logical_replication_slot('bench', 'pgoutput')").await;
    let mut command = bed.postgres.command("pg_recvlogical");
    command.args(["--dbname", "postgres", "--slot", "bench", "--start", "--no-loop"]);
    command.args(["-o", "proto_version=1", "-o", "publication_names=bench"]);
    command.args(["--file", "-", "--fsync-interval", "0", "--host", "127.0.0.1"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let last = Arc::new(Mutex::new(Instant::now()));
    let mut output = child.stdout.take().unwrap();
    let heard = Arc::clone(&last);
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while output.read(&mut buffer).is_ok_and(|size| size > 0) {
            *heard.lock().unwrap() = Instant::now();
        }
    });
    sleep(Duration::from_secs(1)).await;
    insert(&bed.sql, match_id).await;
    let acknowledged = commit(&bed.sql).await;
    eventually(PATIENCE * 6, "it has received everything", || async {
        let last = *last.lock().unwrap();
        // The first byte of the transaction may come later than its acknowledgement.
        last > acknowledged && last.elapsed() > Duration::from_secs(3)
    })
    .await;
    let received = last.lock().unwrap().saturating_duration_since(acknowledged);
    child.kill().unwrap();
    child.wait().unwrap();
    drop_slot(bed, "bench").await;
    received.as_secs_f64()
}

/// The highest resident memory until a key of the transaction is gone.
async fn memory(bed: &Bed, sidecar: &Sidecar) {
    let () = bed.cache.clone().set("wide:7", "cached").await.unwrap();
    let status = format!("/proc/{}/status", sidecar.id());
    let insert =
        bed.sql.client().batch_execute("insert into wide select generate_series(1, 10000000)");
    let mut insert = std::pin::pin!(insert);
    let (mut committed, mut peak) = (false, 0);
    while !committed || bed.has("wide:7").await {
        let status = std::fs::read_to_string(&status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        peak = peak.max(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap());
        tokio::select! {
            biased;
            done = &mut insert, if !committed => {
                done.unwrap();
                committed = true;
            }
            () = sleep(Duration::from_millis(20)) => {}
        }
    }
    println!(
        "| P9 | resident memory, one transaction of 10 M rows with 10 M distinct keys | {} MiB \
         | – | – |",
        peak / 1024
    );
}
