//! I7 with replicas of Redis: what is confirmed is on them, and Sentinel may promote one.

use std::time::Duration;

use redis::cmd;
use walsweep_stage::throwaway::{Redis, Sentinels, SentinelsOptions};

use super::redis::{address, in_sync, replica_of};

use crate::support::{Bed, Fault, PATIENCE, Proxy, Sidecar, Way, always, eventually};

/// A bed with one replica behind a proxy.
async fn with_replica() -> (Bed, Redis, Proxy) {
    let bed = Bed::new(&[]).await;
    let link = Proxy::to_port(bed.redis.port());
    let replica = replica_of(link.port()).await;
    (bed, replica, link)
}

/// Which WAIT of all a client of Redis is waiting in; none if none is.
async fn wait_under_way(bed: &Bed) -> Option<u64> {
    let clients: String =
        cmd("INFO").arg("clients").query_async(&mut bed.cache.clone()).await.unwrap();
    let blocked = clients.lines().any(|line| line == "blocked_clients:1");
    if blocked { Some(bed.calls("wait").await) } else { None }
}

/// `redis.wait_replicas`: a shortfall holds the confirmation and nothing else, is told, and ends by
/// itself.
#[tokio::test]
async fn too_few_replicas_hold_the_confirmation_and_no_key() {
    let (bed, replica, link) = with_replica().await;
    let mut settings = bed.settings();
    settings.redis = "wait_replicas = 1".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    in_sync(&bed, &replica).await;
    link.set(Fault::BlackHole(Way::Both));
    bed.cache_rows().await;
    let position = bed.position().await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    bed.gone("item:1").await;
    let short = "walsweep_redis_errors_total{target=\"redis\",kind=\"replicas\"}";
    eventually(PATIENCE, "it is told", || async { sidecar.metric(short).await > 0.0 }).await;
    sidecar.wait_log("the latest removals have reached 0 of 1 replica").await;
    sidecar.wait_log("lower `redis.wait_replicas`").await;
    // While a WAIT is under way, which takes a second, others are not held up.
    for id in 2..12 {
        bed.sql.run(&format!("update item set version = version + 1 where id = {id}")).await;
        let took = bed.gone(&format!("item:{id}")).await;
        assert!(took < Duration::from_millis(800), "`item:{id}` went after {took:?}");
    }
    eventually(PATIENCE, "a key goes while a WAIT is under way", || async {
        let Some(wait) = wait_under_way(&bed).await else { return false };
        bed.fill(&["item:2"]).await;
        bed.sql.run("update item set version = version + 1 where id = 2").await;
        bed.gone("item:2").await;
        wait_under_way(&bed).await == Some(wait)
    })
    .await;
    always(Duration::from_secs(1), "nothing is confirmed", || async {
        bed.confirmed().await <= position
    })
    .await;
    assert_eq!(sidecar.readyz().await, Some(200), "readers see nothing stale");
    link.set(Fault::Nothing);
    bed.settled().await;
    bed.fresh().await;
}

/// Everything that was confirmed is on the replica: promoted, it shows unbroken history.
#[tokio::test]
async fn a_promoted_replica_that_was_waited_for_needs_no_sweep() {
    let (mut bed, replica, link) = with_replica().await;
    let mut settings = bed.settings();
    settings.redis = "wait_replicas = 1".to_owned();
    let mut sidecar = Sidecar::set_up(settings).await;
    bed.cache_rows().await;
    bed.sql.run("update item set version = version + 1 where id < 50").await;
    bed.settled().await;
    let confirmed = bed.confirmed().await;
    sidecar.kill9();
    bed.redis.kill9().await.unwrap();
    link.reset();
    bed.redis = replica;
    bed.cache = bed.redis.connect().await.unwrap();
    cmd("REPLICAOF").arg("NO").arg("ONE").exec_async(&mut bed.cache).await.unwrap();
    assert!(bed.confirmed().await >= confirmed);
    bed.fresh().await;
    let url = bed.redis.url();
    sidecar.change(|settings| {
        settings.redis_url = url;
        settings.redis = String::new();
    });
    sidecar.start();
    sidecar.wait_ready().await;
    assert!(sidecar.metric_sum("walsweep_resyncs_total").await < 1.0);
    assert!(bed.has("item:60").await, "nothing was swept");
    bed.fresh().await;
}

/// Sentinel and the replica are cut off from the primary, which walsweep goes on with until the
/// proxy follows Sentinel: both primaries were alive at once.
#[tokio::test]
async fn a_replica_promoted_by_sentinel_gets_the_removals_that_it_lacks() {
    let (mut bed, replica, link) = with_replica().await;
    let front = Proxy::to_port(bed.redis.port());
    let mut settings = bed.settings();
    settings.redis_url = front.url(&settings.redis_url, bed.redis.port());
    let sidecar = Sidecar::set_up(settings).await;
    // By the address that the replica knows, or Sentinel would correct the replica.
    let options = SentinelsOptions { sentinels: 1, ..SentinelsOptions::default() };
    let sentinel = Sentinels::watch(options, link.port()).await.unwrap();
    bed.cache_rows().await;
    bed.sql.run("update item set version = version + 1 where id < 10").await;
    bed.settled().await;
    bed.cache_rows().await;
    in_sync(&bed, &replica).await;
    link.set(Fault::BlackHole(Way::Both));
    let promoted = sentinel.primary_other_than(link.port()).await.unwrap();
    assert_eq!(promoted, replica.port());
    bed.sql.run("update item set version = version + 1 where id between 10 and 19").await;
    bed.gone("item:19").await;
    bed.settled().await;
    link.reset();
    front.retarget(address(&replica));
    front.reset();
    let old = std::mem::replace(&mut bed.redis, replica);
    bed.cache = bed.redis.connect().await.unwrap();
    let repeated = "walsweep_repeated_keys_total";
    eventually(PATIENCE, "the loss is noticed", || async { sidecar.metric(repeated).await > 0.0 })
        .await;
    eventually(PATIENCE, "ready again", || async { sidecar.readyz().await == Some(200) }).await;
    bed.fresh().await;
    assert!(bed.has("item:100").await, "nothing but what was lost is removed");
    assert!(sidecar.metric("walsweep_resyncs_total{reason=\"watermark_lost\"}").await < 1.0);
    drop(old);
}
