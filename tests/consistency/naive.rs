//! The yardstick: an invalidator as most are written. It removes keys as soon as COMMIT arrives,
//! once, and confirms at once.
//!
//! It is built of walsweep's own parts up to the keys, so that what it lacks is what makes the
//! difference: the gate, the second removal, the watermark.

use std::collections::BTreeSet;
use std::path::Path;

use redis::aio::MultiplexedConnection;
use tokio::sync::mpsc;
use walsweep::capture::{Frame, Replication, StreamOptions};
use walsweep::config::{Config, parse};
use walsweep::decode::decode;
use walsweep::gather::{Gathered, Gatherer};
use walsweep::keys::{Binding, Pattern, Rules};

/// Patterns that may wait for a pass.
const PATTERNS_MAX: usize = 10_000;

/// Runs until something fails.
pub(crate) async fn run() {
    let file = std::env::var("CONFIG").expect("the checker names the configuration");
    let text = std::fs::read_to_string(file).unwrap();
    let config: Config =
        parse(&text, &|name| std::env::var(name).ok(), Path::new("")).config.unwrap();
    let rules = Rules::with_lookups(&config.rules, &config.lookups).unwrap();
    let mut bound = rules.bind(Binding::default());
    let endpoint = &config.postgres.replication_endpoint;
    let replication = Replication::connect(endpoint, "naive").await.unwrap();
    let options = StreamOptions::default();
    let started = replication.start(&config.postgres.slot, &config.postgres.publication, options);
    let mut slot = started.await.unwrap();
    let client = redis::Client::open(config.redis[0].url.as_str()).unwrap();
    let cache = client.get_multiplexed_async_connection().await.unwrap();
    let (patterns, received) = mpsc::channel(PATTERNS_MAX);
    tokio::spawn(sweep(received, cache.clone()));
    let mut gatherer = Gatherer::new();
    let mut keys = rules.key_set();
    // It looks nothing up and asks for no refresh: all that either could produce goes, at the same
    // moment as the keys.
    let mut more = BTreeSet::new();
    loop {
        let payload = match slot.next().await.unwrap() {
            Frame::Data { payload, .. } => payload,
            Frame::Part { .. } => panic!("the checker writes no large row"),
            Frame::Keepalive { wal_end, .. } => {
                if gatherer.in_transaction().is_none() {
                    slot.confirm(wal_end);
                }
                slot.send_status(false).await.unwrap();
                continue;
            }
        };
        match gatherer.push(decode(payload).unwrap()).unwrap() {
            Gathered::Logical(message) if message.transactional => drop(more.insert("stat:*")),
            // It asks for whole transactions, so nothing comes in blocks.
            Gathered::Nothing
            | Gathered::Logical(_)
            | Gathered::Block(_)
            | Gathered::Pause
            | Gathered::StreamCommitted(_)
            | Gathered::Aborted { .. }
            | Gathered::ShapeUndone { .. } => {}
            Gathered::Change(change) => {
                if change.relation.name == "page" {
                    more.insert("label:*");
                }
                bound.add(&change, &mut keys);
            }
            Gathered::Truncate(all) => all.iter().for_each(|one| bound.add(one, &mut keys)),
            Gathered::Committed(transaction) => {
                let keys = std::mem::replace(&mut keys, rules.key_set());
                unlink(keys.exact().map(|(_, key)| key.to_vec()).collect(), &cache).await;
                for (_, pattern) in keys.patterns() {
                    patterns.send(pattern.clone()).await.unwrap();
                }
                for pattern in std::mem::take(&mut more) {
                    patterns.send(Pattern::parse(pattern.as_bytes())).await.unwrap();
                }
                slot.confirm(transaction.end_lsn);
                slot.send_status(false).await.unwrap();
            }
        }
    }
}

async fn unlink(keys: Vec<Vec<u8>>, cache: &MultiplexedConnection) {
    if !keys.is_empty() {
        redis::cmd("UNLINK").arg(keys).exec_async(&mut cache.clone()).await.unwrap();
    }
}

/// Whatever matches a pattern, in one pass for all that wait.
async fn sweep(mut patterns: mpsc::Receiver<Pattern>, mut cache: MultiplexedConnection) {
    let mut waiting = Vec::new();
    while patterns.recv_many(&mut waiting, PATTERNS_MAX).await > 0 {
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("COUNT").arg(1000);
            let (next, mut page): (u64, Vec<Vec<u8>>) = scan.query_async(&mut cache).await.unwrap();
            page.retain(|key| waiting.iter().any(|pattern| pattern.matches(key)));
            unlink(page, &cache).await;
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        waiting.clear();
    }
}
