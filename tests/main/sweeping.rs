//! SCAN passes over a Redis that changes under them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, cmd};
use tokio::task::JoinHandle;

use crate::support::{Bed, PATIENCE, Sidecar, Swap, eventually};

/// Keys that a pattern of the rules means, spread over a table of many more.
const VICTIMS: usize = 20_000;

/// The others of that table.
const OTHERS: usize = 50_000;

/// An entry of the slow log: number, time, microseconds, words of the command, address and name of
/// the client (<https://redis.io/docs/latest/commands/slowlog-get/>).
type Logged = (u64, u64, u64, Vec<Vec<u8>>, String, String);

/// Sets `count` keys `prefix:0`, `prefix:1`, …
async fn set_many(cache: &MultiplexedConnection, prefix: &str, count: usize) {
    let mut cache = cache.clone();
    for from in (0..count).step_by(5_000) {
        let mut pipeline = Pipeline::new();
        for number in from..(from + 5_000).min(count) {
            pipeline.cmd("SET").arg(format!("{prefix}:{number}")).arg("x").ignore();
        }
        pipeline.exec_async(&mut cache).await.unwrap();
    }
}

/// How many keys of `prefix:0`, `prefix:1`, … are there.
async fn count(cache: &MultiplexedConnection, prefix: &str, count: usize) -> usize {
    let mut exists = cmd("EXISTS");
    for number in 0..count {
        exists.arg(format!("{prefix}:{number}"));
    }
    exists.query_async(&mut cache.clone()).await.unwrap()
}

/// How many words a command had, of which the slow log keeps the first 31.
fn words_in(logged: &[Vec<u8>]) -> usize {
    let last = logged.last().and_then(|word| std::str::from_utf8(word).ok()).unwrap_or_default();
    let more = last.strip_prefix("... (").and_then(|rest| rest.strip_suffix(" more arguments)"));
    logged.len() - 1 + more.map_or(1, |more| more.parse().unwrap())
}

/// Lets the number of keys grow and shrink by a factor of ten, so that Redis resizes its table
/// both ways, until told to stop. Gives the number of rounds.
fn churn(bed: &Bed, stop: &Arc<AtomicBool>) -> JoinHandle<usize> {
    let (mut cache, stop) = (bed.cache.clone(), Arc::clone(stop));
    tokio::spawn(async move {
        let mut rounds = 0;
        while !stop.load(Ordering::Relaxed) {
            set_many(&cache, "churn", 100_000).await;
            for from in (0..100_000).step_by(5_000) {
                let mut unlink = cmd("UNLINK");
                for number in from..from + 5_000 {
                    unlink.arg(format!("churn:{number}"));
                }
                unlink.exec_async(&mut cache).await.unwrap();
            }
            rounds += 1;
        }
        rounds
    })
}

/// I1 and the contract of SCAN: what was there all along is found, however the table is resized
/// meanwhile, and nothing else goes.
#[tokio::test]
async fn a_pass_finds_every_key_while_the_table_grows_and_shrinks() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    let stop = Arc::default();
    let churning = churn(&bed, &stop);
    let passes = "walsweep_sweeps_total{reason=\"rule\"}";
    for round in 1..=3 {
        set_many(&bed.cache, "list:team 1", VICTIMS).await;
        set_many(&bed.cache, "list:team 11", 1_000).await;
        let before = sidecar.metric(passes).await;
        bed.sql.run("update item set version = version + 1 where id = 1").await;
        eventually(PATIENCE, "the pass is through", || async {
            sidecar.metric(passes).await > before
        })
        .await;
        assert_eq!(count(&bed.cache, "list:team 1", VICTIMS).await, 0, "round {round}");
        assert_eq!(count(&bed.cache, "list:team 11", 1_000).await, 1_000, "round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(churning.await.unwrap() > 0, "the table was resized");
}

/// I2: a pass that loses its connection begins again at the start of the table, not where it was.
#[tokio::test]
async fn a_pass_that_loses_its_connection_begins_again() {
    let bed = Bed::new(&[]).await;
    let front = Swap::start(([127, 0, 0, 1], bed.redis.port()).into());
    let mut settings = bed.settings();
    settings.redis_url = front.url(&settings.redis_url, bed.redis.port());
    // However busy the machine is, calls do not become small.
    settings.sweep = "max_stall = \"1s\"".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    set_many(&bed.cache, "other", OTHERS).await;
    let before = bed.confirmed().await;
    for round in 1..=3 {
        set_many(&bed.cache, "list:team 1", VICTIMS).await;
        let lost = sidecar.metric_sum("walsweep_reconnects_total").await;
        front.hold_scan(1 + round);
        bed.sql.run("update item set version = version + 1 where id = 1").await;
        front.holds().await;
        eventually(PATIENCE, "the pass is on its way", || async {
            count(&bed.cache, "list:team 1", VICTIMS).await < VICTIMS
        })
        .await;
        let kill: u64 = cmd("CLIENT")
            .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
            .query_async(&mut bed.cache.clone())
            .await
            .unwrap();
        assert!(kill >= 2, "round {round}: both connections of walsweep");
        let left = count(&bed.cache, "list:team 1", VICTIMS).await;
        assert!(left > 0, "round {round}: the pass is through");
        front.release();
        eventually(PATIENCE, "it connects again", || async {
            sidecar.metric_sum("walsweep_reconnects_total").await > lost
        })
        .await;
        eventually(PATIENCE, "every key goes", || async {
            count(&bed.cache, "list:team 1", VICTIMS).await == 0
        })
        .await;
    }
    bed.settled().await;
    assert!(bed.confirmed().await > before);
    assert_eq!(count(&bed.cache, "other", OTHERS).await, OTHERS);
}

/// Never KEYS, never FLUSH, never DEL: a user without them is enough. And no call is large; for how
/// long it holds Redis, the machine has a say, too.
#[tokio::test]
async fn the_commands_are_few_and_none_is_large() {
    let bed = Bed::new(&[]).await;
    let mut cache = bed.cache.clone();
    let mut admin = async |words: &str| -> redis::Value {
        let mut words = words.split(' ');
        let mut command = cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut cache).await.unwrap()
    };
    admin(
        "ACL SETUSER walsweep on nopass ~item:* ~list:* ~walsweep:* -@all +scan +unlink +get +set \
         +incr +eval +ping +info +select +hello +auth +client",
    )
    .await;
    admin("CONFIG SET slowlog-max-len 100000").await;
    admin("CONFIG SET slowlog-log-slower-than 0").await;
    let mut settings = bed.settings();
    settings.redis_url = settings.redis_url.replace("redis://", "redis://walsweep:any@");
    let sidecar = Sidecar::set_up(settings).await;
    admin("CONFIG RESETSTAT").await;
    set_many(&bed.cache, "other", 150_000).await;
    set_many(&bed.cache, "list:team 1", VICTIMS).await;
    bed.fill(&["item:1"]).await;
    admin("SLOWLOG RESET").await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    bed.gone("item:1").await;
    bed.settled().await;
    let log = admin("SLOWLOG GET 100000").await;
    let log: Vec<Logged> = redis::from_redis_value(log).unwrap();
    let (mut scans, mut unlinked, mut took) = (0, 0, Vec::new());
    for (_, _, micros, words, _, client) in log.iter().filter(|(.., client)| client == "walsweep") {
        let (name, size) = (std::str::from_utf8(&words[0]).unwrap(), words_in(words));
        took.push(*micros);
        match name {
            "SCAN" => {
                scans += 1;
                let looked_at = words.iter().skip_while(|word| **word != b"COUNT").nth(1).unwrap();
                let looked_at: usize = std::str::from_utf8(looked_at).unwrap().parse().unwrap();
                assert!(looked_at <= 5_000, "{client} looks at {looked_at} keys in one call");
            }
            "UNLINK" => {
                unlinked += size - 1;
                assert!(size <= 501, "{client} removes {size} keys by one call");
            }
            _ => assert!(size <= 32, "{client} sends {name} with {size} words"),
        }
    }
    took.sort_unstable();
    let median = took[took.len() / 2];
    assert!(median < 50_000, "half of the calls hold Redis for {median} us");
    assert!(scans >= 30, "{scans} calls for 170 000 keys");
    assert!(unlinked > VICTIMS, "{unlinked} keys");
    let stats = format!("{:?}", admin("INFO commandstats").await);
    for never in ["cmdstat_keys", "cmdstat_flush", "cmdstat_del"] {
        assert!(!stats.contains(never), "{stats}");
    }
    assert_eq!(count(&bed.cache, "list:team 1", VICTIMS).await, 0);
    sidecar.assert_quiet(&["sweeping everything"]);
}
