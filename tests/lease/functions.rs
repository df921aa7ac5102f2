//! Each branch of each function, as any client sees it.

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, Client, RedisError, Value, cmd};
use walsweep::sweep::redis::lease;
use walsweep_stage::throwaway::{Cluster, ClusterOptions, Redis, RedisOptions};

/// The beginning of a marker; clients of several versions rely on it.
const MARK: &[u8] = b"\0walsweep lease ";

/// Milliseconds that no test waits for.
const LONG: &str = "60000";

/// A server with the functions, and a connection.
async fn server(args: &str) -> (Redis, MultiplexedConnection) {
    let args = args.split_whitespace().map(str::to_owned).collect();
    let redis = Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap();
    let mut connection = redis.connect().await.unwrap();
    lease::load(&mut connection).await.unwrap();
    (redis, connection)
}

/// Calls `walsweep_lease_{name}` with one key.
async fn call(
    connection: &mut MultiplexedConnection,
    name: &str,
    key: &str,
    args: &[&[u8]],
) -> Result<Value, RedisError> {
    let mut command = cmd("FCALL");
    command.arg(format!("walsweep_lease_{name}")).arg(1).arg(key).arg(args);
    command.query_async(connection).await
}

fn words(words: &[&[u8]]) -> Value {
    Value::Array(words.iter().map(|word| Value::BulkString(word.to_vec())).collect())
}

async fn get(connection: &mut MultiplexedConnection, key: &str) -> Value {
    call(connection, "get", key, &[b"token", LONG.as_bytes()]).await.unwrap()
}

/// A new lease; there must be nothing under the key.
async fn miss(connection: &mut MultiplexedConnection, key: &str) -> Vec<u8> {
    let reply = get(connection, key).await;
    match reply.as_sequence() {
        Some([Value::BulkString(state), Value::BulkString(lease)]) if state == b"MISS" => {
            lease.clone()
        }
        _ => panic!("not a MISS: {reply:?}"),
    }
}

async fn set(
    connection: &mut MultiplexedConnection,
    key: &str,
    lease: &[u8],
    value: &[u8],
) -> Value {
    call(connection, "set", key, &[lease, value]).await.unwrap()
}

async fn unlink(connection: &mut MultiplexedConnection, key: &str) {
    let removed: u64 = connection.unlink(key).await.unwrap();
    assert_eq!(removed, 1, "there was nothing to remove");
}

const STORED: Value = Value::Int(1);
const REFUSED: Value = Value::Int(0);

/// I8: what was read before a removal is refused after it, whatever happens to the key meanwhile.
#[tokio::test]
async fn a_fill_is_stored_only_under_the_lease_it_was_read_with() {
    let (_redis, mut redis) = server("").await;
    let first = miss(&mut redis, "k").await;
    assert_eq!(get(&mut redis, "k").await, words(&[b"BUSY"]));
    unlink(&mut redis, "k").await;
    assert_eq!(set(&mut redis, "k", &first, b"old").await, REFUSED);
    assert!(!redis.exists::<_, bool>("k").await.unwrap());

    let second = miss(&mut redis, "k").await;
    assert_eq!(set(&mut redis, "k", &first, b"old").await, REFUSED);
    assert_eq!(get(&mut redis, "k").await, words(&[b"BUSY"]), "the second lease stands");
    assert_eq!(set(&mut redis, "k", &second, b"new").await, STORED);
    assert_eq!(get(&mut redis, "k").await, words(&[b"HIT", b"new"]));
    for lease in [&first, &second] {
        assert_eq!(set(&mut redis, "k", lease, b"again").await, REFUSED);
    }
    assert_eq!(get(&mut redis, "k").await, words(&[b"HIT", b"new"]));

    let replaced = miss(&mut redis, "other").await;
    let () = redis.set("other", "of a writer").await.unwrap();
    assert_eq!(set(&mut redis, "other", &replaced, b"old").await, REFUSED);
    assert_eq!(get(&mut redis, "other").await, words(&[b"HIT", b"of a writer"]));
}

/// A client library sends a call again when its reply is late, and the first one may come later.
#[tokio::test]
async fn one_call_that_arrives_twice_gives_two_leases() {
    let (_redis, mut redis) = server("").await;
    let read_with = miss(&mut redis, "k").await;
    unlink(&mut redis, "k").await;
    let late_copy = miss(&mut redis, "k").await;
    assert_ne!(read_with, late_copy, "the token is the same");
    assert_eq!(set(&mut redis, "k", &read_with, b"old").await, REFUSED);
}

#[tokio::test]
async fn the_lease_is_a_marker_in_the_key_and_ends_by_itself() {
    let (_redis, mut redis) = server("").await;
    let lease = miss(&mut redis, "k").await;
    let marker: Vec<u8> = redis.get("k").await.unwrap();
    assert_eq!(marker, [MARK, &lease].concat());
    let left: i64 = redis.pttl("k").await.unwrap();
    assert!((1..=60_000).contains(&left), "{left}");
    let keys: Vec<String> = redis.keys("*").await.unwrap();
    assert_eq!(keys, ["k"], "nothing beside it");

    let reply = call(&mut redis, "get", "short", &[b"token", b"1"]).await.unwrap();
    let Some([_, Value::BulkString(ended)]) = reply.as_sequence() else { panic!("{reply:?}") };
    let ended = ended.clone();
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    assert_eq!(set(&mut redis, "short", &ended, b"late").await, REFUSED);
    miss(&mut redis, "short").await;
}

#[tokio::test]
async fn any_other_bytes_are_a_value() {
    let (_redis, mut redis) = server("").await;
    let cut = &MARK[..MARK.len() - 1];
    for value in [&b""[..], b"MISS", b"BUSY", b"0", b"\0\xff\r\n", cut, b"x\0walsweep lease "] {
        let lease = miss(&mut redis, "k").await;
        assert_eq!(set(&mut redis, "k", &lease, value).await, STORED, "{value:?}");
        assert_eq!(get(&mut redis, "k").await, words(&[b"HIT", value]));
        assert_eq!(redis.get::<_, Vec<u8>>("k").await.unwrap(), value);
        unlink(&mut redis, "k").await;
    }
}

#[tokio::test]
async fn a_value_lives_as_long_as_it_is_told_to() {
    let (_redis, mut redis) = server("").await;
    let lease = miss(&mut redis, "k").await;
    assert_eq!(set(&mut redis, "k", &lease, b"v").await, STORED);
    assert_eq!(redis.pttl::<_, i64>("k").await.unwrap(), -1, "not the lease's time");
    let lease = miss(&mut redis, "l").await;
    let reply = call(&mut redis, "set", "l", &[&lease, b"v", b"600000"]).await.unwrap();
    assert_eq!(reply, STORED);
    let left: i64 = redis.pttl("l").await.unwrap();
    assert!((60_001..=600_000).contains(&left), "{left}");
}

#[tokio::test]
async fn a_lease_can_be_given_back_by_its_holder_alone() {
    let (_redis, mut redis) = server("").await;
    let lease = miss(&mut redis, "k").await;
    assert_eq!(call(&mut redis, "release", "k", &[b"another"]).await.unwrap(), REFUSED);
    assert_eq!(get(&mut redis, "k").await, words(&[b"BUSY"]));
    assert_eq!(call(&mut redis, "release", "k", &[&lease]).await.unwrap(), Value::Int(1));
    assert_eq!(call(&mut redis, "release", "k", &[&lease]).await.unwrap(), REFUSED);
    let next = miss(&mut redis, "k").await;
    assert_eq!(set(&mut redis, "k", &next, b"v").await, STORED);
    assert_eq!(call(&mut redis, "release", "k", &[&next]).await.unwrap(), REFUSED);
    assert_eq!(get(&mut redis, "k").await, words(&[b"HIT", b"v"]));
}

#[tokio::test]
async fn a_call_that_is_wrong_says_why_and_changes_nothing() {
    let (_redis, mut redis) = server("").await;
    let lease = miss(&mut redis, "leased").await;
    let () = redis.rpush("list", "a").await.unwrap();
    let marker = [MARK, b"x"].concat();
    let (time, long) = ("whole number of milliseconds above 0", LONG.as_bytes());
    for (name, key, args, part) in [
        ("get", "k", &[&b"token"[..]][..], "FCALL walsweep_lease_get 1 key token milliseconds"),
        ("get", "k", &[b"token", long, b"x"], "wrong number"),
        ("get", "k", &[b"token", b"0"], time),
        ("get", "k", &[b"token", b"-1"], time),
        ("get", "k", &[b"token", b"1.5"], time),
        ("get", "k", &[b"token", b""], time),
        ("get", "k", &[b"token", b"99999999999999999999"], "out of range"),
        ("get", "k", &[b"", long], "the token is empty"),
        ("get", "list", &[b"token", long], "WRONGTYPE"),
        ("set", "leased", &[&lease], "FCALL walsweep_lease_set 1 key lease value [milliseconds]"),
        ("set", "leased", &[&lease, b"v", b"1", b"x"], "wrong number"),
        ("set", "leased", &[&lease, b"v", b"0"], time),
        ("set", "leased", &[&lease, &marker], "begins like the marker"),
        ("set", "list", &[&lease, b"v"], "WRONGTYPE"),
        ("release", "leased", &[], "FCALL walsweep_lease_release 1 key lease"),
        ("release", "list", &[&lease], "WRONGTYPE"),
    ] {
        let error = call(&mut redis, name, key, args).await.unwrap_err().to_string();
        assert!(error.contains(part), "{name} {key} {args:?}: {error}");
    }
    for (count, keys) in [(0, &[][..]), (2, &["leased", "b"])] {
        for name in ["get", "set", "release"] {
            let mut command = cmd("FCALL");
            command.arg(format!("walsweep_lease_{name}")).arg(count).arg(keys).arg(&lease);
            let error = command.query_async::<Value>(&mut redis).await.unwrap_err().to_string();
            assert!(error.contains("wrong number of keys"), "{name}: {error}");
        }
    }
    let mut keys: Vec<String> = redis.keys("*").await.unwrap();
    keys.sort();
    assert_eq!(keys, ["leased", "list"]);
    assert_eq!(set(&mut redis, "leased", &lease, b"v").await, STORED);
}

/// The rights that the documentation names are enough, and none of them is too much.
#[tokio::test]
async fn a_reader_needs_these_rights() {
    let (server, mut admin) = server("").await;
    let rights = ["+fcall", "+get", "+set", "+del", "+time"];
    let url = server.url().replace("redis://", "redis://app:x@");
    for missing in [None, Some(0), Some(1), Some(2), Some(3), Some(4)] {
        let mut user = cmd("ACL");
        user.arg("SETUSER").arg("app").arg("reset").arg("on").arg(">x").arg("~cache:*");
        for (index, right) in rights.iter().enumerate() {
            if Some(index) != missing {
                user.arg(right);
            }
        }
        user.exec_async(&mut admin).await.unwrap();
        let client = Client::open(url.as_str()).unwrap();
        let mut app = client.get_multiplexed_async_connection().await.unwrap();
        let key = format!("cache:{missing:?}");
        let works = async {
            let reply = call(&mut app, "get", &key, &[b"token", LONG.as_bytes()]).await?;
            let Some([_, Value::BulkString(lease)]) = reply.as_sequence() else {
                panic!("{reply:?}")
            };
            call(&mut app, "set", &key, &[b"another", b"v"]).await?;
            call(&mut app, "release", &key, &[lease]).await
        };
        assert_eq!(works.await.is_ok(), missing.is_none(), "without {missing:?}");
        if missing.is_none() {
            let denied = call(&mut app, "get", "other", &[b"token", LONG.as_bytes()]).await;
            assert_eq!(denied.unwrap_err().code(), Some("NOPERM"));
        }
    }
}

#[tokio::test]
async fn a_cluster_runs_them_on_the_node_of_the_key() {
    let options = ClusterOptions { replicas: 0, ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await.unwrap();
    let slot = cluster.slot_of(b"k").await.unwrap();
    let node = cluster.owner(slot).await.unwrap().unwrap();
    let mut redis = cluster.node(node).unwrap().connect().await.unwrap();
    lease::load(&mut redis).await.unwrap();
    let lease = miss(&mut redis, "k").await;
    assert_eq!(set(&mut redis, "k", &lease, b"v").await, STORED);
    assert_eq!(get(&mut redis, "k").await, words(&[b"HIT", b"v"]));
}

/// With no memory left, and nothing to evict, reads fail rather than write.
#[tokio::test]
async fn a_full_server_refuses_leases() {
    let (_redis, mut redis) = server("").await;
    let () = redis.set("k", "v").await.unwrap();
    let mut limit = cmd("CONFIG");
    limit.arg("SET").arg("maxmemory").arg(1).exec_async(&mut redis).await.unwrap();
    let error = call(&mut redis, "get", "k", &[b"token", LONG.as_bytes()]).await.unwrap_err();
    assert_eq!(error.code(), Some("OOM"));
}
