//! Observed refills (I8): with `[refill] observe = true` the second removal takes what was written
//! again, and nothing else.

use std::path::Path;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, cmd, pipe};
use tokio::time::{Instant, sleep};
use walsweep::config::{self, Config};
use walsweep::keys::Rules;
use walsweep::sweep::{Node, Removes, Standalone};
use walsweep_stage::throwaway::{Redis, RedisOptions};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, tracking_id, trickle};

const FIRST_PASSES: &str = "walsweep_sweeps_total{reason=\"rule\"}";
const SECOND_PASSES: &str = "walsweep_sweeps_total{reason=\"refill\"}";
const REFILLS: &str = "walsweep_refills_removed_total";

/// A sidecar that observes, with all that a start removes behind it.
async fn start(bed: &Bed, change: impl FnOnce(&mut Settings)) -> Sidecar {
    let mut settings = bed.settings();
    settings.refill = "1s".to_owned();
    settings.observe = true;
    settings.level = "info".to_owned();
    change(&mut settings);
    let sidecar = Sidecar::set_up(settings).await;
    // Confirmed only when the sweep of a first start is done twice.
    bed.sql.run("update item set version = 0 where id = 100").await;
    bed.settled().await;
    sidecar
}

#[tokio::test]
async fn what_is_written_again_is_removed_again_without_a_second_pass() {
    let bed = Bed::new(&[]).await;
    let sidecar = start(&bed, |_| ()).await;
    let cached = ["item:1", "list:team 1:a", "list:team 1:b", "list:team 2:a", "item:2"];
    bed.fill(&cached).await;
    let committed_after = Instant::now();
    bed.sql.run("update item set version = 1 where id = 1").await;
    for key in ["item:1", "list:team 1:a", "list:team 1:b"] {
        bed.gone(key).await;
    }
    let unlinks_before = bed.calls("unlink").await;
    bed.fill(&["item:1", "list:team 1:a", "item:2"]).await;
    bed.gone("item:1").await;
    bed.gone("list:team 1:a").await;
    assert!(committed_after.elapsed() >= Duration::from_secs(1), "not before the window's end");
    bed.settled().await;
    assert!(bed.has("item:2").await && bed.has("list:team 2:a").await);
    assert!((sidecar.metric_sum(REFILLS).await - 2.0).abs() < 0.5, "two keys were there again");
    assert!(sidecar.metric(SECOND_PASSES).await < 0.5);
    assert_eq!(bed.calls("unlink").await - unlinks_before, 1, "one command for what came back");
}

#[tokio::test]
async fn what_is_not_written_again_is_not_removed_again() {
    let bed = Bed::new(&[]).await;
    let sidecar = start(&bed, |_| ()).await;
    bed.fill(&["item:1", "list:team 1:a"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("list:team 1:a").await;
    assert!(!bed.has("item:1").await, "keys go before patterns");
    let unlinks_before = bed.calls("unlink").await;
    bed.settled().await;
    assert_eq!(bed.calls("unlink").await, unlinks_before);
    assert!(sidecar.metric(SECOND_PASSES).await + sidecar.metric_sum(REFILLS).await < 0.5);
}

/// SCAN misses what is written into a part that it was through with. Written while the first pass
/// runs, such a fill is among the names.
#[tokio::test]
async fn fills_during_the_pass_are_all_removed() {
    let bed = Bed::new(&[]).await;
    let sidecar = start(&bed, |_| ()).await;
    for from in (0..100_000).step_by(1_000) {
        let mut fill = cmd("EVAL");
        fill.arg("for i = 1, 1000 do redis.call('set', 'other:' .. ARGV[1] + i, i) end");
        fill.arg(0).arg(from).exec_async(&mut bed.cache.clone()).await.unwrap();
    }
    bed.fill(&["list:team 1:first"]).await;
    let mut writer = bed.redis.connect().await.unwrap();
    bed.sql.run("update item set version = 1 where id = 1").await;
    let (passes, mut count) = (sidecar.metric(FIRST_PASSES).await, 0);
    while sidecar.metric(FIRST_PASSES).await <= passes {
        for _ in 0..20 {
            let () = writer.set(format!("list:team 1:{count}"), "stale").await.unwrap();
            count += 1;
        }
    }
    bed.settled().await;
    let left: Vec<String> =
        cmd("KEYS").arg("list:team 1:*").query_async(&mut writer).await.unwrap();
    assert_eq!(left, [""; 0], "of {count}");
    let refills = sidecar.metric_sum(REFILLS).await;
    println!("{count} fills during the pass, which left {refills}");
    assert!(refills > 5.0, "too few to prove anything");
    assert!(sidecar.metric(SECOND_PASSES).await < 0.5);
}

/// Names that are told of fills before the window's end may come after it.
#[tokio::test]
async fn names_on_their_way_at_the_end_of_the_window_are_waited_for() {
    let bed = Bed::new(&[]).await;
    let port = trickle(bed.redis.port()).await;
    let sidecar =
        start(&bed, |settings| settings.redis_url = format!("redis://127.0.0.1:{port}")).await;
    bed.fill(&["list:team 1:a"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("list:team 1:a").await;
    sleep(Duration::from_millis(500)).await;
    let mut fills = pipe();
    (0..200).for_each(|number| {
        fills.set(format!("list:team 1:{number}"), "stale");
    });
    let () = fills.query_async(&mut bed.cache.clone()).await.unwrap();
    bed.settled().await;
    let left: Vec<String> =
        cmd("KEYS").arg("list:team 1:*").query_async(&mut bed.cache.clone()).await.unwrap();
    assert_eq!(left, [""; 0]);
    assert!((sidecar.metric_sum(REFILLS).await - 200.0).abs() < 0.5);
    assert!(sidecar.metric(SECOND_PASSES).await < 0.5);
}

/// A fill that the tracking connection could not tell, because it was killed in the same step.
#[tokio::test]
async fn a_lost_tracking_connection_puts_all_open_windows_back_to_the_start() {
    let bed = Bed::new(&[]).await;
    let sidecar = start(&bed, |settings| settings.refill = "3s".to_owned()).await;
    bed.fill(&["item:1", "list:team 1:a"]).await;
    let passes = sidecar.metric(FIRST_PASSES).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    // Not only are its keys gone: a pass that is still on its way would be made anew, not again.
    eventually(PATIENCE, "the pass is through", || async {
        sidecar.metric(FIRST_PASSES).await > passes
    })
    .await;
    assert!(!bed.has("item:1").await && !bed.has("list:team 1:a").await);
    let id = tracking_id(&bed.cache).await.expect("writes are observed");
    let mut both = pipe();
    both.atomic().cmd("CLIENT").arg("KILL").arg("ID").arg(id);
    both.set("item:1", "stale").set("list:team 1:a", "stale");
    let () = both.query_async(&mut bed.cache.clone()).await.unwrap();
    assert_ne!(tracking_id(&bed.cache).await, Some(id));
    bed.settled().await;
    assert!(!bed.has("item:1").await && !bed.has("list:team 1:a").await);
    assert!(sidecar.metric("walsweep_sweeps_total{reason=\"again\"}").await > 0.5);
    assert!(tracking_id(&bed.cache).await.is_some_and(|new| new != id), "observed again");
    // And what is observed from then on counts.
    bed.sql.run("update item set version = 2 where id = 1").await;
    sleep(Duration::from_millis(200)).await;
    bed.fill(&["list:team 1:a"]).await;
    bed.settled().await;
    assert!(!bed.has("list:team 1:a").await);
    assert!(sidecar.metric(SECOND_PASSES).await < 0.5);
}

/// Redis tells of a flush without a name, whatever database it was of.
#[tokio::test]
async fn a_flush_leaves_nothing_known_and_all_is_removed_again() {
    let bed = Bed::new(&[]).await;
    let sidecar = start(&bed, |_| ()).await;
    bed.fill(&["list:team 1:a"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("list:team 1:a").await;
    bed.fill(&["item:1", "list:team 1:a"]).await;
    let mut flush = pipe();
    flush.cmd("SELECT").arg(9).cmd("FLUSHDB");
    let () = flush.query_async(&mut bed.redis.connect().await.unwrap()).await.unwrap();
    bed.settled().await;
    assert!(!bed.has("item:1").await && !bed.has("list:team 1:a").await);
    assert!((sidecar.metric(SECOND_PASSES).await - 1.0).abs() < 0.5);
    assert!((sidecar.metric_sum(REFILLS).await - 2.0).abs() < 0.5);
}

#[tokio::test]
async fn a_server_that_refuses_to_track_is_swept_twice_as_ever() {
    let bed = Bed::new(&[]).await;
    let right = async |right: &str| {
        let mut user = cmd("ACL");
        user.arg("SETUSER").arg("app").arg("on").arg(">x").arg("~*").arg("+@all").arg(right);
        user.exec_async(&mut bed.cache.clone()).await.unwrap();
    };
    right("-client").await;
    let sidecar = start(&bed, |settings| {
        settings.redis_url = settings.redis_url.replace("redis://", "redis://app:x@");
    })
    .await;
    sidecar.wait_log("writes cannot be observed").await;
    let passes = sidecar.metric(SECOND_PASSES).await;
    bed.fill(&["list:team 1:a"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("list:team 1:a").await;
    bed.fill(&["item:1", "list:team 1:a"]).await;
    bed.settled().await;
    assert!(!bed.has("item:1").await && !bed.has("list:team 1:a").await);
    let passed = sidecar.metric(SECOND_PASSES).await;
    assert!(passed - passes > 0.5);
    // Once the right is given no pass is needed for what nobody writes again.
    right("+client").await;
    let tracks = async || tracking_id(&bed.cache).await.is_some();
    eventually(PATIENCE * 4, "writes are observed", tracks).await;
    bed.sql.run("update item set version = 2 where id = 1").await;
    bed.settled().await;
    assert!(sidecar.metric(SECOND_PASSES).await - passed < 0.5);
}

// --------------------------------------------------------------------- the fence, on a bare server

/// A Redis that may sleep, and a node that observes `item:*` on it.
struct Fenced {
    redis: Redis,
    node: Standalone,
}

impl Fenced {
    async fn new() -> Fenced {
        let redis = Redis::start(RedisOptions::default().debug().unwrap()).await.unwrap();
        let port = trickle(redis.port()).await;
        let config = format!(
            "[postgres]\nurl = \"postgres://a@127.0.0.1/b\"\n[redis]\n\
             url = \"redis://127.0.0.1:{port}\"\n\
             [[rule]]\nname = \"item\"\ntable = \"item\"\nkeys = [\"item:{{id}}\"]\n"
        );
        let config: Config = config::parse(&config, &|_| None, Path::new("")).config.unwrap();
        let everything = Rules::compile(&config.rules).unwrap().everything();
        let node = Standalone::new(&config.redis[0], "test");
        let node = node.observing(everything, 1 << 20);
        node.connect().await.unwrap();
        Fenced { redis, node }
    }

    /// Runs both while Redis sleeps, the second a little later, so that Redis finds the requests of
    /// both in one turn, in this order.
    async fn in_one_turn<T>(
        &self,
        first: impl Future<Output = ()>,
        second: impl Future<Output = T>,
    ) -> T {
        let mut sleeper = self.redis.connect().await.unwrap();
        let nap = async {
            let mut debug = cmd("DEBUG");
            debug.arg("SLEEP").arg("0.15").exec_async(&mut sleeper).await.unwrap();
        };
        let first = async {
            sleep(Duration::from_millis(50)).await;
            first.await;
        };
        let second = async {
            sleep(Duration::from_millis(90)).await;
            second.await
        };
        tokio::join!(nap, first, second).2
    }
}

async fn set(mut connection: MultiplexedConnection, key: &str) {
    let () = connection.set(key, "stale").await.unwrap();
}

/// F20: the answer to one PING overtakes the name of a write that ran before it; a fence does not
/// end before the name is here.
#[tokio::test]
async fn one_ping_is_no_fence_and_two_are() {
    let fenced = Fenced::new().await;
    let writer = fenced.redis.connect().await.unwrap();
    let mut overtaken = 0;
    for round in 0..10 {
        let key = format!("item:{round}");
        let mark = fenced.node.mark().expect("writes are observed");
        // A round trip on the tracking connection, as one PING is; the key is not there.
        let ping = async {
            assert_eq!(fenced.node.watermark().await.unwrap(), None);
            mark.written().expect("nothing is lost").len()
        };
        overtaken += usize::from(fenced.in_one_turn(set(writer.clone(), &key), ping).await == 0);
        let key = format!("item:again:{round}");
        let mark = fenced.node.mark().expect("writes are observed");
        let fence = async {
            fenced.node.fence().await.unwrap();
            mark.written().expect("nothing is lost")
        };
        let written = fenced.in_one_turn(set(writer.clone(), &key), fence).await;
        assert!(written.iter().any(|name| **name == *key.as_bytes()), "round {round}");
    }
    println!("{overtaken} of 10 overtaken");
    assert!(overtaken > 0, "a single PING would do, and the second is for nothing");
}

/// Our own removals are not told; a write after one is, even in the same turn.
#[tokio::test]
async fn an_own_removal_is_not_told_and_a_write_right_after_it_is() {
    let fenced = Fenced::new().await;
    let writer = fenced.redis.connect().await.unwrap();
    let known = async |mark: walsweep::sweep::Mark| {
        fenced.node.fence().await.unwrap();
        mark.written().expect("nothing is lost").len()
    };
    let unlink = async || {
        fenced.node.unlink(&[vec![b"item:1".as_slice()]]).await.unwrap();
    };
    set(writer.clone(), "item:1").await;
    let mark = fenced.node.mark().expect("writes are observed");
    // What came before the mark may still be on its way; from here on it is not.
    known(mark).await;
    let mark = fenced.node.mark().expect("writes are observed");
    unlink().await;
    assert_eq!(known(mark).await, 0);
    let mark = fenced.node.mark().expect("writes are observed");
    fenced.in_one_turn(unlink(), set(writer.clone(), "item:1")).await;
    assert_eq!(known(mark).await, 1);
    let mut untold = 0;
    for _ in 0..5 {
        let mark = fenced.node.mark().expect("writes are observed");
        fenced.in_one_turn(set(writer.clone(), "item:1"), unlink()).await;
        untold += usize::from(known(mark).await == 0);
    }
    assert!(untold > 0, "removed by us last: nothing is left to remove");
    set(writer.clone(), "other:1").await;
    let mark = fenced.node.mark().expect("writes are observed");
    set(writer, "other:2").await;
    assert_eq!(known(mark).await, 0, "no rule gives these");
}
