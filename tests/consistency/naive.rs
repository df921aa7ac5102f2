//! The yardstick: an invalidator as most are written. It removes keys as soon as COMMIT arrives,
//! once, and confirms at once.
//!
//! In a cluster it removes keys where they are, and passes over every primary; of a service it asks
//! the Sentinels who the primary is.
//!
//! It is built of walsweep's own parts up to the keys, so that what it lacks is what makes the
//! difference: the gate, the second removal, the watermark.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use redis::cmd;
use tokio::sync::mpsc;
use walsweep::capture::{Frame, Replication, StreamOptions};
use walsweep::config::{Config, parse};
use walsweep::decode::decode;
use walsweep::gather::{Gathered, Gatherer};
use walsweep::keys::{Binding, Pattern, Rules};

use crate::cache::{Cache, Directory, Mode};
use crate::servers::login;

/// Patterns that may wait for a pass.
const PATTERNS_MAX: usize = 10_000;

/// Runs until something fails.
pub(crate) async fn run() {
    let file = std::env::var("PLAIN_CONFIG").expect("the checker names the configuration");
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
    let directory = Directory::of_environment();
    if directory.mode() != Mode::Standalone {
        tokio::spawn(Arc::clone(&directory).watch());
    }
    let mut cache = Cache::new(&directory, login());
    let (patterns, received) = mpsc::channel(PATTERNS_MAX);
    tokio::spawn(sweep(received, Arc::clone(&directory), cache.clone()));
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
                let exact = keys.exact().map(|(_, key)| key.to_vec()).collect();
                unlink(exact, &directory, &mut cache).await;
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

/// Removes keys; in a cluster one by one, since a command with keys of several slots is refused.
async fn unlink(keys: Vec<Vec<u8>>, directory: &Directory, cache: &mut Cache) {
    let names: Vec<String> = keys.into_iter().map(|key| String::from_utf8(key).unwrap()).collect();
    if directory.mode() == Mode::Cluster {
        for name in names {
            cache.unlink(&name).await.unwrap();
        }
    } else if !names.is_empty() {
        cache.ask::<()>("", cmd("UNLINK").arg(names)).await.unwrap();
    }
}

/// Whatever matches a pattern, in one pass over all primaries for all that wait.
async fn sweep(mut patterns: mpsc::Receiver<Pattern>, directory: Arc<Directory>, mut cache: Cache) {
    let mut waiting = Vec::new();
    while patterns.recv_many(&mut waiting, PATTERNS_MAX).await > 0 {
        for port in directory.primaries().await {
            let mut node = cache.connection(port).await.unwrap();
            let mut cursor = 0_u64;
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(cursor).arg("COUNT").arg(1000);
                let (next, mut page): (u64, Vec<Vec<u8>>) =
                    scan.query_async(&mut node).await.unwrap();
                page.retain(|key| waiting.iter().any(|pattern| pattern.matches(key)));
                unlink(page, &directory, &mut cache).await;
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        waiting.clear();
    }
}
