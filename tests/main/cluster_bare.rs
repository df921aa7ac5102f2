//! A cluster alone, without the sweeper: each step at its time.

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, cmd};
use walsweep::sweep::{
    Error, Kind, Node, Primary, Removes, Replaced, ScanCall, Scanned, Watermark,
};
use walsweep_stage::throwaway::{Cluster, ClusterOptions, RedisOptions, redis_version};

use crate::index_bare::{lists, scan};

/// A cluster of three primaries, which go on while one is away, and what walsweep has of it.
struct Bare {
    cluster: Cluster,
    node: walsweep::sweep::Cluster,
}

impl Bare {
    async fn new(index_bytes: usize) -> Bare {
        Bare::with((0, &[]), index_bytes).await
    }

    /// Each primary has so many replicas; indexes of all primaries together have so many bytes.
    async fn with((replicas, more): (usize, &[&str]), index_bytes: usize) -> Bare {
        let args = [&["--cluster-require-full-coverage", "no"], more].concat();
        let args = args.into_iter().map(str::to_owned).collect();
        let node = RedisOptions { args, ..RedisOptions::default() }.debug().unwrap();
        let options = ClusterOptions { primaries: 3, replicas, node };
        let cluster = Cluster::start(options).await.unwrap();
        let seeds = format!("seeds = [\"{}\"]", cluster.urls()[2]);
        let target = format!("mode = \"cluster\"\nurl = \"{}\"\n{seeds}", cluster.urls()[0]);
        let (redis, patterns) = lists(&target);
        let node =
            walsweep::sweep::Cluster::new(&redis, "test").indexing(patterns, index_bytes, 1 << 20);
        node.connect().await.unwrap();
        Bare { cluster, node }
    }

    /// The primaries that a pass over keys that begin so looks through.
    async fn parts(&self, prefix: &str) -> Vec<impl Primary> {
        let mut scanned = Scanned::nothing(vec![prefix.as_bytes().to_vec()]);
        self.node.primaries(&mut scanned).await.unwrap()
    }

    async fn scan(&self) {
        for part in &self.parts("").await {
            scan(part).await;
            part.fence().await.unwrap();
        }
    }

    async fn connection(&self, at: usize) -> MultiplexedConnection {
        self.cluster.node(at).unwrap().connect().await.unwrap()
    }

    /// Runs a command of words on a node.
    async fn run(&self, at: usize, words: &str) {
        let mut words = words.split(' ');
        let mut command = cmd(words.next().unwrap());
        words.for_each(|word| _ = command.arg(word));
        command.exec_async(&mut self.connection(at).await).await.unwrap();
    }

    /// A hash tag whose slot this node has.
    async fn tag_at(&self, at: usize) -> usize {
        for tag in 0..100 {
            if self.place(&format!("{{{tag}}}")).await.1 == at {
                return tag;
            }
        }
        panic!("node {at} has the slot of no tag");
    }

    /// Kills a primary that has saved all, starts it again, and connects.
    async fn restart(&mut self, at: usize) {
        self.run(at, "SAVE").await;
        self.cluster.node_mut(at).unwrap().kill9().await.unwrap();
        self.cluster.node_mut(at).unwrap().start_again().await.unwrap();
        self.cluster.settled().await.unwrap();
        self.node.connect().await.unwrap();
        assert_eq!(self.node.away(), None);
    }

    /// The slot of a key, and the number of the node that has it.
    async fn place(&self, key: &str) -> (u16, usize) {
        let slot = self.cluster.slot_of(key.as_bytes()).await.unwrap();
        (slot, self.cluster.owner(slot).await.unwrap().unwrap())
    }
}

#[tokio::test]
async fn a_pattern_with_a_hash_tag_is_looked_for_on_one_primary_alone() {
    let bare = Bare::new(1 << 20).await;
    for tag in ["list:{1}:", "list:{2}:", "list:{3}:"] {
        let (_, owner) = bare.place(tag).await;
        let names: Vec<String> =
            bare.parts(tag).await.iter().map(|part| part.name().to_owned()).collect();
        let port = bare.cluster.node(owner).unwrap().port();
        assert_eq!(names, [format!("127.0.0.1:{port}")], "{tag}");
    }
    for open in ["list:", "list:{1", "list:{}{1}:"] {
        assert_eq!(bare.parts(open).await.len(), 3, "{open}");
    }
}

/// Keys that move while a pass runs go where it has looked already: there it looks again, at what
/// came and at nothing else.
#[tokio::test]
async fn slots_that_came_while_a_pass_ran_are_looked_through_and_only_they() {
    let bare = Bare::new(1 << 20).await;
    bare.scan().await;
    let (slot, owner) = bare.place("list:{1}").await;
    let to = (owner + 1) % 3;
    bare.run(owner, "SET list:{1}:came 1").await;
    for tag in 2..20 {
        let other = format!("list:{{{tag}}}:other");
        let (_, owner) = bare.place(&other).await;
        bare.run(owner, &format!("SET {other} 1")).await;
    }
    let mut scanned = Scanned::nothing(vec![b"list:".to_vec()]);
    assert_eq!(bare.node.primaries(&mut scanned).await.unwrap().len(), 3);
    bare.cluster.begin_move(slot, to).await.unwrap();
    bare.cluster.finish_move(slot, to).await.unwrap();
    let again = bare.node.primaries(&mut scanned).await.unwrap();
    let port = bare.cluster.node(to).unwrap().port();
    let names: Vec<&str> = again.iter().map(Primary::name).collect();
    assert_eq!(names, [format!("127.0.0.1:{port}")]);
    assert_eq!(again[0].wanted_prefixes(), [b""; 0], "a pass for an index is not for a part");
    let call = ScanCall { cursor: 0, count: 1_000, pattern: None };
    assert_eq!(again[0].scan(&call).await.unwrap().keys, [b"list:{1}:came"]);
    assert_eq!(again[0].list(b"list:", None, 9), None, "it is to be scanned for");
    assert!(bare.node.primaries(&mut scanned).await.unwrap().is_empty(), "it is over");
}

/// It looks through all that is there. That this was not everything, it says at its end.
#[tokio::test]
async fn a_pass_is_not_over_while_a_primary_is_away() {
    let mut bare = Bare::new(1 << 20).await;
    bare.cluster.node_mut(1).unwrap().kill9().await.unwrap();
    bare.node.keep_alive().await.unwrap();
    let mut scanned = Scanned::nothing(vec![b"list:".to_vec()]);
    assert_eq!(bare.node.primaries(&mut scanned).await.unwrap().len(), 2);
    let error = bare.node.primaries(&mut scanned).await.err().unwrap();
    assert!(matches!(error, Error::Away(..)), "{error}");
}

/// Its keys are with nobody: that is told, and nothing may be confirmed.
#[tokio::test]
async fn a_slot_that_is_nobodys_is_told_and_holds_the_watermark() {
    let bare = Bare::new(1 << 20).await;
    assert_eq!(bare.node.watermark().await.unwrap(), None);
    let (slot, owner) = bare.place("list:1").await;
    bare.run(owner, &format!("CLUSTER DELSLOTS {slot}")).await;
    let told = format!("no primary of the cluster has the slots {slot}");
    bare.parts("").await;
    assert_eq!(bare.node.away(), Some(told.clone()));
    let error = bare.node.replace_watermark(None, b"{}").await.unwrap_err();
    assert_eq!(error.to_string(), told);
    assert_eq!(bare.node.shared(b"{}").await.unwrap_err().to_string(), told);
    // So it is for who connects now, and over when somebody has it.
    bare.node.connect().await.unwrap();
    assert_eq!(bare.node.away(), Some(told));
    bare.run(owner, &format!("CLUSTER ADDSLOTS {slot}")).await;
    assert_eq!(bare.node.keep_alive().await.unwrap_err().kind(), Kind::Swapped);
    bare.node.connect().await.unwrap();
    assert_eq!(bare.node.away(), None);
}

/// Nobody can say what it had lost by the time it gave them away.
#[tokio::test]
async fn slots_of_a_primary_that_is_away_are_not_taken_over_as_proven() {
    let mut bare = Bare::new(1 << 20).await;
    let slot = bare.cluster.slots_of(1).await.unwrap()[9];
    bare.cluster.node_mut(1).unwrap().kill9().await.unwrap();
    bare.node.keep_alive().await.unwrap();
    assert!(bare.node.away().is_some());
    let id_of = async |at| -> String {
        cmd("CLUSTER").arg("MYID").query_async(&mut bare.connection(at).await).await.unwrap()
    };
    let id = id_of(0).await;
    for at in [0, 2] {
        bare.run(at, &format!("CLUSTER SETSLOT {slot} NODE {id}")).await;
    }
    let error = bare.node.keep_alive().await.unwrap_err();
    assert!(error.to_string().contains("other slots than before"), "{error}");
    assert_eq!(error.kind(), Kind::Swapped);
}

/// Slots move while the connections stand, and these are lost: what was proven of the slots is so
/// still; but not of a primary that came back, which shows no more than its watermark says.
#[tokio::test]
async fn slots_that_moved_are_proven_on_the_next_connection_to_the_same_history() {
    let mut bare = Bare::with((1, &["--cluster-replica-no-failover", "yes"]), 1 << 20).await;
    let value = Watermark::nowhere().to_value();
    assert_eq!(bare.node.watermark().await.unwrap(), None);
    assert_eq!(bare.node.replace_watermark(None, &value).await.unwrap(), Replaced::Yes);
    // Watermarks are in the lowest slots, and stay there.
    let (slot, to) = (bare.cluster.slots_of(1).await.unwrap()[9], 0);
    bare.cluster.begin_move(slot, to).await.unwrap();
    bare.cluster.finish_move(slot, to).await.unwrap();
    bare.parts("").await;
    bare.node.connect().await.unwrap();
    assert_eq!(bare.node.watermark().await.unwrap().as_ref(), Some(&value));
    bare.restart(to).await;
    assert_eq!(bare.node.watermark().await.unwrap(), None, "it is not about the slot that came");
}

/// A primary with a replica saves its history. Redis shows it after a restart from version 7 on.
#[tokio::test]
async fn a_primary_that_restarts_with_its_history_shows_its_watermark() {
    let mut bare = Bare::with((1, &["--cluster-replica-no-failover", "yes"]), 1 << 20).await;
    let value = Watermark::nowhere().to_value();
    assert_eq!(bare.node.watermark().await.unwrap(), None);
    assert_eq!(bare.node.replace_watermark(None, &value).await.unwrap(), Replaced::Yes);
    bare.restart(1).await;
    let shown = bare.node.watermark().await.unwrap();
    assert_eq!(shown.is_some(), redis_version().unwrap() >= (7, 0));
}

/// Whoever gives its last slots away may have been taken over before.
#[tokio::test]
async fn the_last_slot_of_a_primary_is_not_taken_over_as_proven() {
    let mut bare = Bare::new(1 << 20).await;
    let new = bare.cluster.add(None).await.unwrap();
    let (slot, owner) = bare.place("list:{1}").await;
    for (to, is_last) in [(new, false), (owner, true)] {
        bare.cluster.begin_move(slot, to).await.unwrap();
        bare.cluster.finish_move(slot, to).await.unwrap();
        let outcome = bare.node.primaries(&mut Scanned::nothing(vec![Vec::new()])).await;
        let kind = outcome.err().map(|error| error.kind());
        assert_eq!(kind, is_last.then_some(Kind::Swapped));
    }
}

/// Whoever gives slots away answers for what it removed of them: with the history that it had.
#[tokio::test]
async fn slots_of_a_primary_with_another_history_are_not_taken_over_as_proven() {
    let bare = Bare::new(1 << 20).await;
    for (is_changed, key) in [(false, "list:{1}"), (true, "list:{2}")] {
        let (slot, owner) = bare.place(key).await;
        if is_changed {
            bare.run(owner, "DEBUG CHANGE-REPL-ID").await;
        }
        let to = (owner + 1) % 3;
        bare.cluster.begin_move(slot, to).await.unwrap();
        bare.cluster.finish_move(slot, to).await.unwrap();
        let outcome = bare.node.primaries(&mut Scanned::nothing(vec![Vec::new()])).await;
        let kind = outcome.err().map(|error| error.kind());
        assert_eq!(kind, is_changed.then_some(Kind::Swapped), "{key}");
    }
}

/// `sweep.index_memory` is that of all primaries together.
#[tokio::test]
async fn indexes_of_all_primaries_share_the_memory() {
    for (bytes, fits) in [(1_000_000, true), (100_000, false)] {
        let bare = Bare::new(bytes).await;
        // Of each primary two thousand names that have little in common, some 70 KB.
        for at in 0..3 {
            let tag = bare.tag_at(at).await;
            let mut fill = Pipeline::new();
            for number in 1..=2_000_u128 {
                let unlike = number.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
                fill.set(format!("list:{{{tag}}}{unlike:032x}"), 1).ignore();
            }
            fill.exec_async(&mut bare.connection(at).await).await.unwrap();
        }
        bare.scan().await;
        let indexed = bare.node.indexed().unwrap();
        assert_eq!(indexed.is_whole, fits, "{indexed:?}");
        assert!((if fits { 100_000 } else { 0 }..bytes).contains(&indexed.bytes), "{indexed:?}");
    }
}

/// Without the names of one primary there is no index, and no pass would make it whole.
#[tokio::test]
async fn while_a_primary_is_away_there_is_no_index_and_no_pass_for_one() {
    let mut bare = Bare::new(1 << 20).await;
    assert!(bare.node.wants_scan());
    bare.scan().await;
    assert!(bare.node.indexed().unwrap().is_whole && !bare.node.wants_scan());
    bare.cluster.node_mut(1).unwrap().kill9().await.unwrap();
    bare.node.keep_alive().await.unwrap();
    assert!(!bare.node.indexed().unwrap().is_whole);
    // Those that are there have none yet after this.
    bare.node.connect().await.unwrap();
    assert!(bare.node.away().is_some() && !bare.node.wants_scan());
    bare.cluster.node_mut(1).unwrap().start_again().await.unwrap();
    bare.cluster.settled().await.unwrap();
    bare.node.connect().await.unwrap();
    assert!(bare.node.away().is_none() && bare.node.wants_scan());
    bare.scan().await;
    assert!(bare.node.indexed().unwrap().is_whole);
}
