//! The index alone, on a bare server, without the sweeper: each step at its time.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, Pipeline, cmd, pipe};
use tokio::task::yield_now;
use tokio::time::sleep;
use walsweep::config::{self, Config};
use walsweep::keys::{KeySet, Rules};
use walsweep::sweep::{
    Kind, Node, Page, Primary, Removes, Replaced, ScanCall, Scanned, Standalone,
};
use walsweep_stage::throwaway::{Cluster, ClusterOptions, Redis, RedisOptions};

use crate::support::trickle;

/// Dead names, more than are let be.
const MANY: usize = 10_200;

/// A target of these words, and the pattern `list:*`.
pub(crate) fn lists(target: &str) -> (config::Redis, KeySet) {
    let text = format!(
        "[postgres]\nurl = \"postgres://a@127.0.0.1/b\"\n[redis]\n{target}\n\
         [[rule]]\nname = \"list\"\ntable = \"item\"\nkeys = [\"list:{{team}}*\"]\n"
    );
    let config: Config = config::parse(&text, &|_| None, Path::new("")).config.unwrap();
    (config.redis[0].clone(), Rules::compile(&config.rules).unwrap().own_patterns())
}

/// Looks through all keys of a server.
pub(crate) async fn scan(server: &impl Primary) {
    let mut cursor = 0;
    while {
        let call = ScanCall { cursor, count: 1_000, pattern: None };
        cursor = server.scan(&call).await.unwrap().cursor;
        cursor != 0
    } {}
}

/// A server, and an index of `list:*` on it.
struct Bare {
    redis: Redis,
    node: Standalone,
    cache: MultiplexedConnection,
}

impl Bare {
    async fn new() -> Bare {
        let redis = Redis::start(RedisOptions::default()).await.unwrap();
        let port = redis.port();
        Bare::at(redis, &format!("redis://127.0.0.1:{port}")).await
    }

    async fn at(redis: Redis, url: &str) -> Bare {
        let (target, patterns) = lists(&format!("url = \"{url}\""));
        let node = Standalone::new(&target, "test").indexing(patterns, 1 << 24, 1 << 20);
        node.connect().await.unwrap();
        let cache = redis.connect().await.unwrap();
        Bare { redis, node, cache }
    }

    /// A page of a SCAN of all keys.
    async fn page(&self, cursor: u64, count: usize) -> Page {
        self.node.scan(&ScanCall { cursor, count, pattern: None }).await.unwrap()
    }

    /// Looks through all keys.
    async fn scan(&self) {
        scan(&self.node).await;
    }

    async fn set(&self, keys: impl IntoIterator<Item: AsRef<[u8]>>) {
        let mut sets = Pipeline::new();
        for key in keys {
            sets.set(key.as_ref(), "stale").ignore();
        }
        if sets.is_empty() {
            return;
        }
        sets.exec_async(&mut self.cache.clone()).await.unwrap();
    }

    /// Runs a command of words.
    async fn run(&self, words: &str) {
        let mut words = words.split(' ');
        let mut command = cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command.exec_async(&mut self.cache.clone()).await.unwrap();
    }

    /// The names that are known by now; `None` without a whole index.
    async fn known(&self) -> Option<BTreeSet<Vec<u8>>> {
        self.node.fence().await.unwrap();
        Some(self.node.list(b"", None, usize::MAX)?.into_iter().collect())
    }

    /// The keys `list:*` that live.
    async fn live(&self) -> BTreeSet<Vec<u8>> {
        cmd("KEYS").arg("list:*").query_async(&mut self.cache.clone()).await.unwrap()
    }

    /// A whole index with many names, of which these are of live keys.
    async fn with_dead(&self, live: &[&str]) {
        self.scan().await;
        let names: Vec<String> = (0..MANY).map(|number| format!("list:{number:05}")).collect();
        self.set(names.iter().filter(|name| !live.contains(&name.as_str()))).await;
        let mut flood = Pipeline::new();
        for name in &names {
            flood.del(name).ignore();
        }
        flood.exec_async(&mut self.cache.clone()).await.unwrap();
        self.set(live).await;
        assert!(self.known().await.unwrap().len() >= MANY, "a removal is told as a write is");
    }
}

/// To find the place of a name takes a while, and a script tells all its names at once: whoever has
/// to answer Postgres meanwhile, on the same thread, is not kept from it.
#[tokio::test]
async fn thirty_thousand_names_of_one_script_leave_others_on_the_thread_their_turns() {
    let bare = Bare::new().await;
    bare.scan().await;
    let mut script = cmd("EVAL");
    script.arg("for at = 1, 30000 do redis.call('set', 'list:' .. at, at) end").arg(0);
    script.exec_async(&mut bare.cache.clone()).await.unwrap();
    let fence = bare.node.fence();
    let turns = async {
        let (mut known, mut most) = (0, 0);
        while known < 30_000 {
            yield_now().await;
            let now = bare.node.indexed().unwrap().keys;
            most = most.max(now - known);
            known = now;
        }
        most
    };
    let (fence, most) = tokio::join!(fence, turns);
    fence.unwrap();
    assert!(most < 1_000, "{most} names in one turn");
    assert_eq!(bare.known().await.unwrap().len(), 30_000);
}

/// SCAN misses what is written into a part that it was through with.
#[tokio::test]
async fn keys_written_while_the_first_scan_runs_are_known() {
    let bare = Bare::new().await;
    bare.set((0..2_000).map(|number| format!("other:{number}"))).await;
    bare.set((0..50).map(|number| format!("list:before:{number}"))).await;
    let (mut cursor, mut pages) = (0, 0);
    loop {
        cursor = bare.page(cursor, 100).await.cursor;
        if cursor == 0 {
            break;
        }
        assert_eq!(bare.known().await, None, "not before the SCAN is through");
        bare.set((0..20).map(|number| format!("list:{pages}:{number}"))).await;
        pages += 1;
    }
    assert!(pages > 5, "{pages}");
    let (known, live) = (bare.known().await.unwrap(), bare.live().await);
    assert_eq!(known.symmetric_difference(&live).count(), 0, "of {}", live.len());
}

/// A write right behind the first call of the SCAN is told before its page is here.
#[tokio::test]
async fn a_key_written_before_the_first_page_is_here_is_known() {
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let port = trickle(redis.port()).await;
    let bare = Bare::at(redis, &format!("redis://127.0.0.1:{port}")).await;
    bare.set((0..200).map(|number| format!("list:before:{number}"))).await;
    // What is told of these comes before the SCAN.
    bare.node.fence().await.unwrap();
    let late = async {
        let mut info = cmd("INFO");
        let info = info.arg("commandstats");
        while {
            sleep(Duration::from_millis(5)).await;
            let stats: String = info.query_async(&mut bare.cache.clone()).await.unwrap();
            !stats.contains("cmdstat_scan:")
        } {}
        bare.set(["list:late"]).await;
    };
    let (page, ()) = tokio::join!(bare.page(0, 10_000), late);
    assert_eq!((page.cursor, page.keys.len()), (0, 200), "the SCAN ran before the write");
    assert!(bare.known().await.unwrap().contains(&b"list:late"[..]));
}

/// Redis tells of a flush without names: what was told before it may be lost.
#[tokio::test]
async fn a_flush_while_the_first_scan_runs_leaves_no_index() {
    let bare = Bare::new().await;
    bare.set((0..500).map(|number| format!("list:{number}"))).await;
    let mut other = bare.redis.connect().await.unwrap();
    let mut cursor = bare.page(0, 100).await.cursor;
    let mut flush = pipe();
    let () = flush.cmd("SELECT").arg(9).cmd("FLUSHDB").query_async(&mut other).await.unwrap();
    assert_eq!(bare.known().await, None);
    while cursor != 0 {
        cursor = bare.page(cursor, 100).await.cursor;
    }
    assert_eq!(bare.known().await, None);
    assert!(bare.node.wants_scan());
    bare.scan().await;
    assert_eq!(bare.known().await.unwrap(), bare.live().await);
    let () = flush.query_async(&mut other).await.unwrap();
    assert_eq!(bare.known().await, None, "nor is there one after it");
}

/// The answer to a PING overtakes the name of a write that ran before it in one turn of Redis.
#[tokio::test]
async fn a_name_that_an_answer_overtakes_is_waited_for() {
    let redis = Redis::start(RedisOptions::default().debug().unwrap()).await.unwrap();
    let port = trickle(redis.port()).await;
    let bare = Bare::at(redis, &format!("redis://127.0.0.1:{port}")).await;
    bare.scan().await;
    let mut sleeper = bare.redis.connect().await.unwrap();
    for round in 0..3 {
        let name = format!("list:{round}");
        let nap = async {
            cmd("DEBUG").arg("SLEEP").arg("0.3").exec_async(&mut sleeper).await.unwrap();
        };
        let write = async {
            sleep(Duration::from_millis(50)).await;
            bare.set([&name]).await;
        };
        let fence = async {
            sleep(Duration::from_millis(150)).await;
            bare.node.fence().await.unwrap();
            bare.node.list(b"", None, usize::MAX).unwrap()
        };
        let ((), (), known) = tokio::join!(nap, write, fence);
        assert!(known.contains(&name.clone().into_bytes()), "round {round}: {known:?}");
    }
}

/// Another database may have come in the place of this one, with keys of its own.
#[tokio::test]
async fn a_watermark_of_somebody_else_leaves_no_index() {
    let bare = Bare::new().await;
    assert_eq!(bare.node.watermark().await.unwrap(), None);
    let replace = async |expected: Option<&[u8]>| {
        bare.node.replace_watermark(expected, b"own").await.unwrap()
    };
    assert_eq!(replace(None).await, Replaced::Yes);
    bare.scan().await;
    assert_eq!(replace(Some(b"own")).await, Replaced::Yes);
    assert_eq!(bare.known().await, Some(BTreeSet::new()));
    bare.run("SET walsweep:test other").await;
    assert_eq!(replace(Some(b"own")).await, Replaced::No(Some(b"other".to_vec())));
    assert_eq!(bare.known().await, None);
}

/// Whatever bytes a name has: SCAN lists it, Redis tells it, and it is dropped with its key.
#[tokio::test]
async fn names_of_any_bytes_are_known_and_dropped() {
    let bare = Bare::new().await;
    let name = |kind: &[u8], byte: u8| [b"list:", kind, &[byte, b'*', byte][..]].concat();
    bare.set((0..=255).map(|byte| name(b"scanned", byte))).await;
    bare.scan().await;
    bare.set((0..=255).map(|byte| name(b"told", byte))).await;
    let live = bare.live().await;
    assert_eq!((live.len(), bare.known().await.unwrap()), (512, live.clone()));
    let keys: Vec<&[u8]> = live.iter().map(Vec::as_slice).collect();
    assert_eq!(bare.node.unlink(&[keys]).await.unwrap(), [Some(512)]);
    assert_eq!(bare.known().await.unwrap().len(), 0);
}

/// Not `SET` alone: whatever brings a key to its name is told.
#[tokio::test]
async fn whatever_brings_a_key_is_told() {
    let bare = Bare::new().await;
    bare.scan().await;
    for words in [
        "MSET other:1 x other:2 x other:3 x list:mset x",
        "RENAME other:1 list:rename",
        "RENAMENX other:2 list:renamenx",
        "COPY other:3 list:copy",
        "EVAL redis.call('set',KEYS[1],1) 1 list:eval",
        "SET list:expires x PX 3600000",
        "GETSET list:getset x",
        "APPEND list:append x",
        "SETRANGE list:setrange 0 x",
        "INCR list:incr",
        "BITOP NOT list:bitop other:3",
        "RPUSH other:list a b",
        "LMOVE other:list list:lmove LEFT LEFT",
        "SORT other:list ALPHA STORE list:sort",
        "SADD other:set a",
        "SUNIONSTORE list:sunionstore other:set",
        "SMOVE other:set list:smove a",
        "ZADD list:zadd 1 a",
        "ZRANGESTORE list:zrangestore list:zadd 0 -1",
        "GEOADD other:geo 1 1 a",
        "GEOSEARCHSTORE list:geo other:geo FROMLONLAT 1 1 BYRADIUS 9 km",
        "HSET list:hset a b",
        "PFADD list:pfadd a",
        "PFMERGE list:pfmerge list:pfadd",
        "XADD list:xadd * a b",
        "XGROUP CREATE list:xgroup g $ MKSTREAM",
    ] {
        bare.run(words).await;
    }
    // In one transaction; from another database; of what was saved.
    let saved: Vec<u8> =
        cmd("DUMP").arg("other:3").query_async(&mut bare.cache.clone()).await.unwrap();
    let mut restore = cmd("RESTORE");
    restore.arg("list:restore").arg(0).arg(saved);
    restore.exec_async(&mut bare.cache.clone()).await.unwrap();
    let mut all = pipe();
    all.atomic().set("list:multi", 1).cmd("SELECT").arg(9).set("list:move", 1);
    let mut other = bare.redis.connect().await.unwrap();
    let () = all.cmd("MOVE").arg("list:move").arg(0).query_async(&mut other).await.unwrap();
    let (known, live) = (bare.known().await.unwrap(), bare.live().await);
    assert_eq!(live.len(), 26, "{live:?}");
    let untold: Vec<_> = live.difference(&known).collect();
    assert!(untold.is_empty(), "{untold:?}");
}

/// Redis tells a write right behind our removal together with the answer to that.
#[tokio::test]
async fn a_key_written_right_behind_its_removal_keeps_its_name() {
    let redis = Redis::start(RedisOptions::default().debug().unwrap()).await.unwrap();
    let url = format!("redis://127.0.0.1:{}", redis.port());
    let bare = Bare::at(redis, &url).await;
    bare.scan().await;
    for round in 0..5 {
        bare.set(["list:1"]).await;
        assert!(bare.known().await.unwrap().contains(&b"list:1"[..]));
        let mut sleeper = bare.redis.connect().await.unwrap();
        let mut nap = cmd("DEBUG");
        let nap = nap.arg("SLEEP").arg("0.15").exec_async(&mut sleeper);
        let removal = async {
            sleep(Duration::from_millis(50)).await;
            bare.node.unlink(&[vec![b"list:1".as_slice()]]).await.unwrap()
        };
        let write = async {
            sleep(Duration::from_millis(90)).await;
            bare.set(["list:1"]).await;
        };
        let (slept, removed, ()) = tokio::join!(nap, removal, write);
        slept.unwrap();
        assert_eq!(removed, [Some(1)]);
        let (known, live) = (bare.known().await.unwrap(), bare.live().await);
        assert_eq!(live.difference(&known).count(), 0, "round {round}");
    }
}

/// A key that the user may not remove is still there.
#[tokio::test]
async fn a_key_that_may_not_be_removed_keeps_its_name() {
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let mut user = cmd("ACL");
    user.arg("SETUSER").arg("app").arg("on").arg(">x").arg("+@all").arg("~*:may:*");
    user.exec_async(&mut redis.connect().await.unwrap()).await.unwrap();
    let url = format!("redis://app:x@127.0.0.1:{}", redis.port());
    let bare = Bare::at(redis, &url).await;
    bare.scan().await;
    bare.set(["list:may:1", "list:not:1"]).await;
    let groups: [Vec<&[u8]>; 2] = [vec![b"list:may:1"], vec![b"list:not:1"]];
    assert_eq!(bare.node.unlink(&groups).await.unwrap(), [Some(1), None]);
    assert_eq!(bare.known().await.unwrap(), bare.live().await);
    assert_eq!(bare.live().await.len(), 1);
}

/// In a cluster each key has a command of its own: one that is refused, or written right behind its
/// removal, keeps its name there, too.
#[tokio::test]
async fn a_key_of_a_cluster_that_is_refused_or_written_again_keeps_its_name() {
    let node = RedisOptions::default().debug().unwrap();
    let options = ClusterOptions { primaries: 3, replicas: 0, node };
    let cluster = Cluster::start(options).await.unwrap();
    for at in 0..3 {
        let mut user = cmd("ACL");
        user.arg("SETUSER").arg("app").arg("on").arg(">x").arg("+@all");
        user.arg("~walsweep:*").arg("~*:may:*");
        let mut cache = cluster.node(at).unwrap().connect().await.unwrap();
        user.exec_async(&mut cache).await.unwrap();
    }
    let url = cluster.urls()[0].replace("redis://", "redis://app:x@");
    let (redis, patterns) = lists(&format!("mode = \"cluster\"\nurl = \"{url}\""));
    let node = walsweep::sweep::Cluster::new(&redis, "test").indexing(patterns, 1 << 24, 1 << 20);
    node.connect().await.unwrap();
    for part in &parts(&node).await {
        scan(part).await;
    }
    let [may, not] = [b"list:{1}:may:1".as_slice(), b"list:{1}:not:1"];
    let owner = cluster.owner(cluster.slot_of(may).await.unwrap()).await.unwrap().unwrap();
    let mut cache = cluster.node(owner).unwrap().connect().await.unwrap();
    for round in 0..5 {
        let () = pipe().set(may, 1).set(not, 1).query_async(&mut cache).await.unwrap();
        assert_eq!(known(&node).await, BTreeSet::from([may.to_vec(), not.to_vec()]));
        let mut sleeper = cluster.node(owner).unwrap().connect().await.unwrap();
        let mut nap = cmd("DEBUG");
        let nap = nap.arg("SLEEP").arg("0.15").exec_async(&mut sleeper);
        let removal = async {
            sleep(Duration::from_millis(50)).await;
            node.unlink(&[vec![may], vec![not]]).await.unwrap()
        };
        let write = async {
            sleep(Duration::from_millis(90)).await;
            let () = cache.clone().set(may, 1).await.unwrap();
        };
        let (slept, removed, ()) = tokio::join!(nap, removal, write);
        slept.unwrap();
        assert_eq!(removed, [Some(1), None]);
        let live: BTreeSet<Vec<u8>> =
            cmd("KEYS").arg("list:*").query_async(&mut cache).await.unwrap();
        assert_eq!((known(&node).await, live.len()), (live, 2), "round {round}");
    }
    // One that went, and was not written again, is not kept for ever.
    assert_eq!(node.unlink(&[vec![may]]).await.unwrap(), [Some(1)]);
    assert_eq!(known(&node).await, BTreeSet::from([not.to_vec()]));
}

/// All three primaries.
async fn parts(node: &walsweep::sweep::Cluster) -> Vec<impl Primary> {
    let parts = node.primaries(&mut Scanned::nothing(vec![b"list:".to_vec()])).await.unwrap();
    assert_eq!(parts.len(), 3);
    parts
}

/// The names that a cluster knows by now.
async fn known(node: &walsweep::sweep::Cluster) -> BTreeSet<Vec<u8>> {
    let mut names = BTreeSet::new();
    for part in parts(node).await {
        part.fence().await.unwrap();
        names.extend(part.list(b"", None, usize::MAX).unwrap());
    }
    names
}

/// A name is not dropped for what is true no more: that its key was not there when it was asked
/// for.
#[tokio::test]
async fn a_key_written_while_it_is_asked_for_keeps_its_name() {
    let bare = Bare::new().await;
    let mut writer = bare.redis.connect().await.unwrap();
    for round in 0..3_u64 {
        bare.with_dead(&[]).await;
        let writes = async {
            for write in 0..1_500_u64 {
                let mut sets = Pipeline::new();
                for number in 0..4 {
                    let name = (write * 4 + number) * 7_919 % MANY as u64;
                    sets.set(format!("list:{name:05}"), round).ignore();
                }
                sets.exec_async(&mut writer).await.unwrap();
            }
        };
        let (asked, ()) = tokio::join!(bare.node.keep_alive(), writes);
        asked.unwrap();
        let (known, live) = (bare.known().await.unwrap(), bare.live().await);
        assert!(known.len() < MANY, "no name was dropped of {}", known.len());
        let lost = live.difference(&known).count();
        assert_eq!(lost, 0, "names of {} live keys, round {round}", live.len());
        bare.run("FLUSHALL").await;
        bare.node.fence().await.unwrap();
    }
}

/// That Redis refuses to tell is no word about the key.
#[tokio::test]
async fn a_key_that_redis_does_not_tell_of_keeps_its_name() {
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let mut user = cmd("ACL");
    user.arg("SETUSER").arg("app").arg("on").arg(">x").arg("~*").arg("+@all").arg("-exists");
    user.exec_async(&mut redis.connect().await.unwrap()).await.unwrap();
    let url = format!("redis://app:x@127.0.0.1:{}", redis.port());
    let bare = Bare::at(redis, &url).await;
    bare.with_dead(&["list:00007"]).await;
    bare.node.keep_alive().await.unwrap();
    assert!(bare.known().await.unwrap().contains(&b"list:00007"[..]));
}

/// While another database stands in the place of this one, for a moment, its keys are not there.
#[tokio::test]
async fn no_name_is_dropped_for_what_another_database_lacks() {
    let bare = Bare::new().await;
    // From here on removals are counted.
    bare.node.watermark().await.unwrap();
    bare.node.unlink(&[]).await.unwrap();
    let live = ["list:00003", "list:00007", "list:10007"];
    bare.with_dead(&live).await;
    bare.run("SWAPDB 0 9").await;
    let asked = bare.node.keep_alive().await;
    bare.run("SWAPDB 0 9").await;
    assert_eq!(bare.live().await.len(), live.len());
    if asked.is_ok() {
        let known = bare.known().await.unwrap();
        let lost: Vec<_> = live.iter().filter(|key| !known.contains(key.as_bytes())).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }
}

/// Nor is a page of another database a page of the SCAN: what this one lists there is not listed.
#[tokio::test]
async fn a_page_of_another_database_is_none() {
    let bare = Bare::new().await;
    bare.node.watermark().await.unwrap();
    bare.set((0..500).map(|number| format!("list:{number}"))).await;
    bare.page(0, 100).await;
    bare.run("SWAPDB 0 9").await;
    let call = ScanCall { cursor: 0, count: 1_000, pattern: None };
    let page = bare.node.scan(&call).await;
    assert_eq!(page.map(|page| page.keys.len()).map_err(|error| error.kind()), Err(Kind::Swapped));
    assert_eq!(bare.node.fence().await.map_err(|error| error.kind()), Err(Kind::Swapped));
    bare.run("SWAPDB 0 9").await;
    bare.scan().await;
    assert_eq!(bare.known().await.unwrap().len(), 500);
}
