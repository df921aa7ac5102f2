//! The yardstick: an invalidator as most are written. It removes keys as soon as COMMIT arrives,
//! once, and confirms at once.
//!
//! It is built of walsweep's own parts up to the keys, so that what it lacks is what makes the
//! difference: the gate, the second removal, the watermark.

use walsweep::capture::{Frame, Replication, Slot, StreamOptions};
use walsweep::config::{Config, parse};
use walsweep::decode::decode;
use walsweep::gather::{Gathered, Gatherer};
use walsweep::keys::{KeySet, Rules};

/// Runs until something fails.
pub(crate) async fn run() {
    let file = std::env::var("CONFIG").expect("the checker names the configuration");
    let text = std::fs::read_to_string(file).unwrap();
    let config: Config = parse(&text, &|name| std::env::var(name).ok()).config.unwrap();
    let mut rules = Rules::compile(&config.rules).unwrap();
    let endpoint = &config.postgres.replication_endpoint;
    let replication = Replication::connect(endpoint, "naive").await.unwrap();
    let options = StreamOptions::default();
    let started = replication.start(&config.postgres.slot, &config.postgres.publication, options);
    let mut slot = started.await.unwrap();
    let client = redis::Client::open(config.redis.url.as_str()).unwrap();
    let mut cache = client.get_multiplexed_async_connection().await.unwrap();
    let mut gatherer = Gatherer::new();
    let mut keys = rules.key_set();
    loop {
        let frame = slot.next().await.unwrap();
        take(frame, &mut slot, (&mut gatherer, &mut rules, &mut keys), &mut cache).await;
    }
}

async fn take(
    frame: Frame,
    slot: &mut Slot,
    (gatherer, rules, keys): (&mut Gatherer, &mut Rules, &mut KeySet),
    cache: &mut redis::aio::MultiplexedConnection,
) {
    let payload = match frame {
        Frame::Data { payload, .. } => payload,
        Frame::Keepalive { wal_end, .. } => {
            if gatherer.in_transaction().is_none() {
                slot.confirm(wal_end);
            }
            return slot.send_status(false).await.unwrap();
        }
    };
    match gatherer.push(decode(payload).unwrap()).unwrap() {
        Gathered::Nothing => {}
        Gathered::Change(change) => rules.add(&change, keys),
        Gathered::Truncate(changes) => changes.iter().for_each(|change| rules.add(change, keys)),
        Gathered::Committed(transaction) => {
            remove(&std::mem::replace(keys, rules.key_set()), cache).await;
            slot.confirm(transaction.end_lsn);
            slot.send_status(false).await.unwrap();
        }
    }
}

async fn remove(keys: &KeySet, cache: &mut redis::aio::MultiplexedConnection) {
    let mut found: Vec<Vec<u8>> = keys.exact().map(|(_, key)| key.to_vec()).collect();
    for (_, pattern) in keys.patterns() {
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(pattern.as_bytes()).arg("COUNT").arg(1000);
            let (next, page): (u64, Vec<Vec<u8>>) = scan.query_async(cache).await.unwrap();
            found.extend(page);
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    if !found.is_empty() {
        redis::cmd("UNLINK").arg(found).exec_async(cache).await.unwrap();
    }
}
