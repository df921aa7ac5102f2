//! I7: the number that stands beside the watermark, on the connections of a real Redis.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, cmd};
use walsweep::config;
use walsweep::keys::Pattern;
use walsweep::sweep::{Error, Kind, Node, Pace, Pass, Primary, Removes, Replaced, Standalone};
use walsweep_stage::throwaway::{Redis, RedisOptions};

use super::redis::{address, replica_of};
use crate::support::{PATIENCE, Swap, eventually};

const NUMBER: &str = "walsweep:w:removals";

/// A node that has read its watermark.
async fn node(port: u16) -> Standalone {
    let redis = config::Redis::at(&format!("redis://127.0.0.1:{port}/0"));
    let node = Standalone::new(&redis, "w");
    connect(&node).await;
    node
}

async fn connect(node: &Standalone) {
    node.connect().await.unwrap();
    node.watermark().await.unwrap();
}

async fn server() -> (Redis, MultiplexedConnection) {
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    let admin = server.connect().await.unwrap();
    (server, admin)
}

async fn number(admin: &mut MultiplexedConnection) -> Option<u64> {
    admin.get(NUMBER).await.unwrap()
}

/// Whether a call found that the server is not what it was.
fn is_swapped<T>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::Lost(_, Kind::Swapped)))
}

#[tokio::test]
async fn a_number_that_went_back_ends_the_connection() {
    let (server, mut admin) = server().await;
    let node = node(server.port()).await;
    let keys: [Vec<&[u8]>; 2] = [vec![b"a", b"b"], vec![b"c"]];
    let () = admin.set("b", 1).await.unwrap();
    assert_eq!(node.unlink(&keys).await.unwrap(), [Some(1), Some(0)]);
    assert_eq!(node.unlink(&keys).await.unwrap(), [Some(0), Some(0)]);
    assert_eq!(node.replace_watermark(None, b"1").await.unwrap(), Replaced::Yes);
    for change in ["DECR", "DEL"] {
        let () = cmd(change).arg(NUMBER).query_async(&mut admin).await.unwrap();
        assert!(is_swapped(&node.replace_watermark(Some(b"1"), b"2").await), "{change}");
        assert!(is_swapped(&node.unlink(&keys).await), "{change}");
        assert!(is_swapped(&node.replace_watermark(Some(b"1"), b"2").await), "{change}");
        let standing: String = admin.get("walsweep:w").await.unwrap();
        assert_eq!(standing, "1", "{change}: the evidence stays");
        connect(&node).await;
        node.unlink(&keys).await.unwrap();
        node.unlink(&keys).await.unwrap();
        assert_eq!(node.replace_watermark(Some(b"1"), b"1").await.unwrap(), Replaced::Yes);
    }
    // Something else under its name does not stay there.
    let () = admin.del(NUMBER).await.unwrap();
    let () = admin.lpush(NUMBER, 1).await.unwrap();
    assert!(is_swapped(&node.replace_watermark(Some(b"1"), b"2").await));
    connect(&node).await;
    node.unlink(&keys).await.unwrap();
    assert_eq!(node.replace_watermark(Some(b"1"), b"2").await.unwrap(), Replaced::Yes);
}

/// Removals are sent while the one before is on its way, and so is the watermark.
#[tokio::test]
async fn what_is_sent_at_the_same_time_is_counted_in_its_order() {
    let (server, mut admin) = server().await;
    let node = node(server.port()).await;
    let keys: [Vec<&[u8]>; 1] = [vec![b"a"]];
    assert_eq!(node.replace_watermark(None, b"1").await.unwrap(), Replaced::Yes);
    for _ in 0..200 {
        let (one, other, third, moved) = tokio::join!(
            node.unlink(&keys),
            node.unlink(&keys),
            node.unlink(&keys),
            node.replace_watermark(Some(b"1"), b"1")
        );
        for removed in [one, other, third] {
            assert_eq!(removed.unwrap(), [Some(0)]);
        }
        assert_eq!(moved.unwrap(), Replaced::Yes);
    }
    assert!(number(&mut admin).await.is_some());
}

/// Keys can be removed where memory is full, and nothing can be written.
#[tokio::test]
async fn removals_that_cannot_be_counted_are_made_and_cover_nothing() {
    let (server, mut admin) = server().await;
    let node = node(server.port()).await;
    let keys: [Vec<&[u8]>; 1] = [vec![b"a"]];
    let () = admin.set("a", 1).await.unwrap();
    node.unlink(&[]).await.unwrap();
    let () = admin.set("a", 1).await.unwrap();
    let limit = ["SET", "maxmemory"];
    let () = cmd("CONFIG").arg(&limit).arg("1").query_async(&mut admin).await.unwrap();
    for there in [1, 0] {
        assert_eq!(node.unlink(&keys).await.unwrap(), [Some(there)], "removed all the same");
        let refused = node.replace_watermark(None, b"1").await;
        assert!(matches!(refused, Err(Error::Refused(_, Kind::Oom))), "{refused:?}");
    }
    let () = cmd("CONFIG").arg(&limit).arg("0").query_async(&mut admin).await.unwrap();
    let lost = node.replace_watermark(None, b"1").await;
    assert!(matches!(lost, Err(Error::Lost(..))), "made again from the start: {lost:?}");
    connect(&node).await;
    node.unlink(&keys).await.unwrap();
    assert_eq!(node.replace_watermark(None, b"1").await.unwrap(), Replaced::Yes);
}

/// A key that somebody else removed is not there either on the server that went back.
#[tokio::test]
async fn a_pass_counts_as_a_removal_and_spares_the_number() {
    let (server, mut admin) = server().await;
    let node = node(server.port()).await;
    node.unlink(&[]).await.unwrap();
    let before = number(&mut admin).await.unwrap();
    let mut pace = Pace::new(Duration::from_millis(1), 1.0);
    let nothing = Pass::new(vec![Pattern::parse(b"none:*")]);
    nothing.run(&node, &mut pace, |_| ()).await.unwrap();
    assert_eq!(number(&mut admin).await, Some(before + 1));
    let everything = Pass::new(vec![Pattern::parse(b"*")]);
    let () = admin.set("a", 1).await.unwrap();
    let () = admin.set("walsweep:w", 1).await.unwrap();
    everything.run(&node, &mut pace, |_| ()).await.unwrap();
    let mut left: Vec<String> = cmd("KEYS").arg("*").query_async(&mut admin).await.unwrap();
    left.sort();
    assert_eq!(left, ["walsweep:w", NUMBER]);
}

/// Only the server that was connected to knows a cursor, and which names it pushes.
#[tokio::test]
async fn another_server_is_found_on_each_connection() {
    let (server, _) = server().await;
    let replica = replica_of(server.port()).await;
    let mut copy = replica.connect().await.unwrap();
    eventually(PATIENCE, "the replica follows", || async {
        let info: String = cmd("INFO").query_async(&mut copy.clone()).await.unwrap();
        info.contains("master_link_status:up")
    })
    .await;
    let front = Swap::start(address(&server));
    let node = node(front.port()).await;
    node.fence().await.unwrap();
    node.ping().await.unwrap();
    let () = cmd("REPLICAOF").arg("NO").arg("ONE").query_async(&mut copy).await.unwrap();
    front.to(address(&replica));
    assert!(is_swapped(&node.fence().await), "on the connection of removals");
    assert!(is_swapped(&node.ping().await), "on the connection of SCAN");
    connect(&node).await;
    node.fence().await.unwrap();
}
