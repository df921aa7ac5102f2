//! I7 where no connection breaks: another server, or other data, behind a connection that stands.

use std::time::Duration;

use redis::cmd;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use walsweep_stage::throwaway::{Redis, Signal, signal};

use super::redis::{address, in_sync, replica_of};
use crate::support::{
    Bed, Fault, ITEM_RULES, Load, PATIENCE, Proxy, Sidecar, Sql, Swap, Way, eventually,
};

const SWAPPED: &str = "walsweep_redis_errors_total{target=\"redis\",kind=\"swapped\"}";

/// No pass, which would find another server by itself.
const EXACT_RULES: &str = r#"
[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}"]
"#;

/// How long the load of the last test runs.
const LOAD: Duration = Duration::from_secs(20);

/// A primary and its replica, which is linked by the proxy; the sidecar goes through the other one.
async fn replicated(rules: &str) -> (Bed, Redis, Proxy, Swap, Sidecar) {
    let bed = Bed::new(&[]).await;
    let link = Proxy::to_port(bed.redis.port());
    let replica = replica_of(link.port()).await;
    let front = Swap::start(address(&bed.redis));
    let mut settings = bed.settings();
    settings.redis_url = front.url(&settings.redis_url, bed.redis.port());
    rules.clone_into(&mut settings.rules);
    // How far a pass has come after so many calls must not depend on how busy the machine is.
    settings.sweep = "max_stall = \"1s\"".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    bed.cache_rows().await;
    bed.sql.run("update item set version = version + 1 where id < 10").await;
    bed.gone("item:9").await;
    bed.settled().await;
    in_sync(&bed, &replica).await;
    (bed, replica, link, front, sidecar)
}

/// Removals that no watermark covers, because an older commit waits for a standby, and that the
/// replica does not get. Gives who waits.
async fn remove_uncovered(
    bed: &Bed,
    sidecar: &Sidecar,
    (replica, link): (&Redis, &Proxy),
) -> JoinHandle<()> {
    bed.postgres.conf("synchronous_standby_names = 'ghost'").await.unwrap();
    let invisible = "walsweep_invisible_at_arrival_total";
    let before = sidecar.metric(invisible).await;
    let sql = Sql::connect(&bed.postgres).await;
    let writer = tokio::spawn(async move {
        sql.run("update item set version = version + 1 where id = 99").await;
    });
    eventually(PATIENCE, "the older commit waits", || async {
        sidecar.metric(invisible).await > before
    })
    .await;
    // From its arrival on the watermark stays, which would tell the two servers apart. What moved
    // it before is written.
    sleep(Duration::from_secs(1)).await;
    in_sync(bed, replica).await;
    link.set(Fault::BlackHole(Way::Both));
    let update = "update item set version = version + 1 where id between 10 and 19";
    bed.sql.run("set synchronous_commit = local").await;
    bed.sql.run(update).await;
    for id in 10..20 {
        bed.gone(&format!("item:{id}")).await;
    }
    // Whatever the sidecar has to hear of it, it has heard.
    sleep(Duration::from_millis(300)).await;
    writer
}

async fn make_primary(redis: &Redis) {
    let mut connection = redis.connect().await.unwrap();
    cmd("REPLICAOF").arg("NO").arg("ONE").exec_async(&mut connection).await.unwrap();
}

/// The older commit becomes visible, so that everything may be covered.
async fn let_go(bed: &Bed, writer: JoinHandle<()>) {
    bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();
    writer.await.unwrap();
}

/// Checks that all that came back goes, and nothing else, that the loss is counted, and that it
/// goes on as before.
async fn check(bed: &Bed, sidecar: &Sidecar) {
    eventually(PATIENCE, "what came back is gone", || async { bed.stale().await.is_empty() }).await;
    bed.settled().await;
    bed.fresh().await;
    assert!(sidecar.metric(SWAPPED).await >= 1.0, "the loss is not counted");
    assert!(bed.has("item:100").await, "everything is swept");
    assert!(sidecar.metric_sum("walsweep_resyncs_total").await < 2.0, "but for the first start");
    bed.cache_rows().await;
    bed.sql.run("update item set version = version + 1 where id = 50").await;
    bed.gone("item:50").await;
    bed.settled().await;
    bed.fresh().await;
}

#[tokio::test]
async fn a_server_swapped_behind_a_standing_connection_lacks_nothing_in_the_end() {
    for idle in [false, true] {
        let (mut bed, replica, link, front, sidecar) = replicated(EXACT_RULES).await;
        let writer = remove_uncovered(&bed, &sidecar, (&replica, &link)).await;
        make_primary(&replica).await;
        let primary = std::mem::replace(&mut bed.redis, replica);
        bed.cache = bed.redis.connect().await.unwrap();
        assert_eq!(bed.stale().await.len(), 10, "the replica lacks the last removals");
        front.to(address(&bed.redis));
        if idle {
            // Nothing is committed, nothing can be covered: the look every 5 s finds it.
            let fresh = || async { bed.stale().await.is_empty() };
            eventually(PATIENCE, "what came back is gone", fresh).await;
        }
        let_go(&bed, writer).await;
        check(&bed, &sidecar).await;
        drop(primary);
    }
}

/// The primary follows a copy that is behind, and is a primary again, before it is asked anything.
#[tokio::test]
async fn data_exchanged_by_hand_under_a_standing_connection_is_found() {
    let (bed, replica, link, _front, sidecar) = replicated(EXACT_RULES).await;
    let writer = remove_uncovered(&bed, &sidecar, (&replica, &link)).await;
    make_primary(&replica).await;
    let mut copy = replica.connect().await.unwrap();
    let at_once = ["SET", "repl-diskless-sync-delay", "0"];
    cmd("CONFIG").arg(&at_once).exec_async(&mut copy).await.unwrap();
    signal(&[sidecar.id()], Signal::Stop).unwrap();
    let mut cache = bed.cache.clone();
    let follow = ["127.0.0.1", &replica.port().to_string()].map(str::to_owned);
    cmd("REPLICAOF").arg(&follow).exec_async(&mut cache).await.unwrap();
    eventually(PATIENCE, "the primary has the copy's data", || async {
        let info: String = cmd("INFO").query_async(&mut bed.cache.clone()).await.unwrap();
        info.contains("master_link_status:up")
    })
    .await;
    make_primary(&bed.redis).await;
    assert_eq!(bed.stale().await.len(), 10, "the copy lacks the last removals");
    signal(&[sidecar.id()], Signal::Cont).unwrap();
    let_go(&bed, writer).await;
    check(&bed, &sidecar).await;
}

/// The other server lacks nothing. But a cursor of the first means nothing to it.
#[tokio::test]
async fn a_pass_that_ends_on_another_server_begins_again() {
    let (mut bed, replica, _link, front, sidecar) = replicated(ITEM_RULES).await;
    let keys: Vec<String> = (0..20_000).map(|number| format!("list:team 1:{number}")).collect();
    for some in keys.chunks(1_000) {
        bed.fill(&some.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    front.hold_scan(4);
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    front.holds().await;
    // What the calls before it named is removed, there and in the replica.
    sleep(Duration::from_millis(300)).await;
    bed.fill(&["a write that the replica has to have"]).await;
    // In pieces that the client library waits for.
    eventually(PATIENCE, "the replica has it", || async {
        let mut wait = cmd("WAIT");
        wait.arg(1).arg(100);
        wait.query_async::<u32>(&mut bed.cache.clone()).await.is_ok_and(|reached| reached == 1)
    })
    .await;
    make_primary(&replica).await;
    let primary = std::mem::replace(&mut bed.redis, replica);
    bed.cache = bed.redis.connect().await.unwrap();
    let left: usize = cmd("DBSIZE").query_async(&mut bed.cache).await.unwrap();
    assert!((5_000..19_900).contains(&left), "{left} keys are left in the middle of the pass");
    front.to(address(&bed.redis));
    front.release();
    bed.settled().await;
    let mut scan = cmd("SCAN");
    scan.arg(0).arg("MATCH").arg("list:team 1:*").arg("COUNT").arg(100_000);
    let (_, left): (u64, Vec<String>) = scan.query_async(&mut bed.cache).await.unwrap();
    assert_eq!(left.len(), 0, "keys are left after a pass, such as {:?}", left.first());
    assert!(sidecar.metric(SWAPPED).await >= 1.0);
    drop(primary);
}

#[tokio::test]
async fn connections_that_break_under_load_are_not_taken_for_swapped() {
    let bed = Bed::new(&[]).await;
    let front = Proxy::to_port(bed.redis.port());
    let mut settings = bed.settings();
    settings.redis_url = front.url(&settings.redis_url, bed.redis.port());
    settings.refill = "200ms".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    bed.marked().await;
    let before = sidecar.metric_sum("walsweep_resyncs_total").await;
    let began = Instant::now();
    let mut load = Load::start(&bed);
    let reconnects = async || sidecar.metric("walsweep_reconnects_total{peer=\"redis\"}").await;
    // On a busy machine each takes its time; what comes of them is what counts.
    while began.elapsed() < LOAD || reconnects().await < 10.0 {
        assert!(began.elapsed() < 6 * LOAD, "{} reconnects", reconnects().await);
        sleep(Duration::from_millis(700)).await;
        front.cut();
        sleep(Duration::from_millis(700)).await;
        front.reset();
    }
    let commits = load.end_writing().await;
    bed.settled().await;
    assert!(commits > 100, "{commits} commits");
    assert!(sidecar.metric(SWAPPED).await < 1.0, "a false alarm");
    assert!(sidecar.metric_sum("walsweep_resyncs_total").await <= before, "a sweep for nothing");
}

/// Two servers, one Redis, one name of a slot: each takes what the other does for a loss. Between
/// two sweeps all would seem well.
#[tokio::test]
async fn two_walsweeps_that_write_one_watermark_are_not_told_as_well() {
    let (one, two) = (Bed::new(&[]).await, Bed::new(&[]).await);
    let sidecar = one.sidecar().await;
    one.settled().await;
    let mut settings = two.settings();
    settings.redis_url = one.settings().redis_url;
    let mut other = Sidecar::new(settings);
    other.setup();
    other.start();
    let status = async || {
        for bed in [&one, &two] {
            bed.sql.run("update item set version = version + 1 where id = 1").await;
        }
        let (_, body) = sidecar.get("/status").await.unwrap();
        serde_json::from_str::<serde_json::Value>(&body).unwrap()
    };
    let is_told = |status: &serde_json::Value| {
        let troubles = status["troubles"].as_array().unwrap();
        troubles.iter().any(|trouble| trouble["section"] == "two-instances")
    };
    eventually(PATIENCE, "it is told", || async { is_told(&status().await) }).await;
    for _ in 0..50 {
        let status = status().await;
        assert_ne!(status["verdict"]["level"], "well", "{}", status["verdict"]);
        sleep(Duration::from_millis(100)).await;
    }
}
