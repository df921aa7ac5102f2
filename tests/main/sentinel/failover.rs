//! A failover, whoever brings it about: keys go from the primary after it.

use std::time::Duration;

use redis::cmd;
use tokio::time::Instant;
use walsweep_stage::throwaway::Signal;

use super::{Service, at_rest, change, named, run};
use crate::support::{PATIENCE, Settings, Sidecar, eventually, text};

/// A primary that is killed, with commits before, while there is none, and after.
#[tokio::test]
async fn keys_go_from_the_primary_that_sentinels_name_and_from_the_one_after_it() {
    let mut service = Service::start().await;
    let mut settings = service.settings();
    settings.refill = "100ms".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    let old = service.bed.redis.port();
    sidecar.wait_log(&named(old)).await;
    service.cache_rows().await;
    change(&service.bed, 1..10).await;
    service.bed.gone("item:9").await;
    let check = text(&sidecar.command(&["check"]));
    assert!(
        check.contains(&format!("`127.0.0.1:{old}` is the primary of `cache`, as 3 of 3")),
        "{check}"
    );
    assert!(!check.contains("redis_sentinels"), "{check}");
    service.bed.settled().await;
    service.cache_rows().await;
    service.bed.redis.kill9().await.unwrap();
    change(&service.bed, 10..20).await;
    drop(service.failed_over().await);
    change(&service.bed, 20..30).await;
    sidecar.wait_log(&named(service.bed.redis.port())).await;
    at_rest(&service.bed, &sidecar).await;
    assert_eq!(sidecar.metric("walsweep_redis_up{target=\"redis\",node=\"cache\"}").await, 1.0);
}

/// The old primary goes on as a replica, and says so.
#[tokio::test]
async fn a_failover_by_command_is_followed() {
    let mut service = Service::start().await;
    let settings = service.settings();
    let settings = Settings { observe: true, refill: "100ms".to_owned(), ..settings };
    let sidecar = Sidecar::set_up(settings).await;
    service.cache_rows().await;
    change(&service.bed, 1..10).await;
    service.bed.settled().await;
    service.cache_rows().await;
    let mut sentinel = service.sentinels.sentinels()[0].connect().await.unwrap();
    eventually(PATIENCE, "the Sentinel takes the command", || {
        let mut sentinel = sentinel.clone();
        async move {
            let mut failover = cmd("SENTINEL");
            failover.arg("FAILOVER").arg("cache").exec_async(&mut sentinel).await.is_ok()
        }
    })
    .await;
    run(&mut sentinel, &["PING"]).await;
    change(&service.bed, 10..20).await;
    let _old = service.failed_over().await;
    change(&service.bed, 20..30).await;
    sidecar.wait_log(&named(service.bed.redis.port())).await;
    at_rest(&service.bed, &sidecar).await;
}

/// Keys that the new primary gets before walsweep listens there are found by a SCAN, and later ones
/// by an index of its own.
#[tokio::test]
async fn after_a_failover_an_index_of_the_new_primary_is_made() {
    let mut service = Service::start().await;
    let mut settings = service.settings();
    settings.sweep = "index = true".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    let is_whole = async || sidecar.metric_sum("walsweep_index_whole").await > 0.5;
    service.bed.settled().await;
    eventually(PATIENCE, "the index is whole", is_whole).await;
    service.bed.fill(&["list:team 1:before"]).await;
    service.in_sync().await;
    sidecar.signal(Signal::Stop);
    service.bed.redis.kill9().await.unwrap();
    drop(service.failed_over().await);
    service.bed.fill(&["list:team 1:meanwhile"]).await;
    sidecar.signal(Signal::Cont);
    change(&service.bed, 1..2).await;
    for key in ["list:team 1:before", "list:team 1:meanwhile"] {
        service.bed.gone(key).await;
    }
    eventually(PATIENCE, "the index is whole again", is_whole).await;
    service.bed.fill(&["list:team 1:after"]).await;
    let scans = service.bed.calls("scan").await;
    change(&service.bed, 1..2).await;
    service.bed.gone("list:team 1:after").await;
    assert_eq!(service.bed.calls("scan").await, scans);
}

/// The old primary is cut off from Sentinels and replica, and not from walsweep, for which it
/// goes on as ever: that there was a failover only the Sentinels know.
#[tokio::test]
async fn the_old_primary_of_a_split_brain_is_left() {
    let mut service = Service::start().await;
    service.with_app().await;
    let mut settings = service.settings();
    settings.redis_url = "redis://app:hunter2@cache/0".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    service.cache_rows().await;
    change(&service.bed, 1..10).await;
    service.bed.settled().await;
    service.cache_rows().await;
    service.cut_off().await;
    // Acknowledged by the old primary, and nowhere else.
    change(&service.bed, 10..20).await;
    service.bed.gone("item:19").await;
    let mut old_cache = service.bed.cache.clone();
    let old = service.failed_over().await;
    change(&service.bed, 20..30).await;
    sidecar.wait_log("not `127.0.0.1").await;
    sidecar.wait_log(&named(service.bed.redis.port())).await;
    at_rest(&service.bed, &sidecar).await;
    assert!(sidecar.metric("walsweep_resyncs_total{reason=\"watermark_lost\"}").await < 1.0);
    assert!(sidecar.metric("walsweep_repeated_keys_total").await > 0.0, "by the ring");
    // It comes back, and is a replica from then on.
    run(&mut old_cache, &["ACL", "SETUSER", "default", "on"]).await;
    change(&service.bed, 30..40).await;
    at_rest(&service.bed, &sidecar).await;
    assert!(!sidecar.log().iter().any(|line| line.contains("hunter2")), "a password");
    drop(old);
}

/// It hangs, and goes on once another is the primary: what it acknowledges then counts for nothing.
#[tokio::test]
async fn a_primary_that_hangs_and_comes_back_is_left() {
    let mut service = Service::start().await;
    let sidecar = Sidecar::set_up(service.settings()).await;
    service.cache_rows().await;
    change(&service.bed, 1..10).await;
    service.bed.settled().await;
    service.cache_rows().await;
    service.bed.redis.pause().unwrap();
    let before = service.bed.confirmed().await;
    change(&service.bed, 10..20).await;
    let old = service.failed_over().await;
    // Long before whatever it was asked is given up for itself.
    let (began, new) = (Instant::now(), named(service.bed.redis.port()));
    sidecar.wait_log(&new).await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    old.resume().unwrap();
    change(&service.bed, 20..30).await;
    at_rest(&service.bed, &sidecar).await;
    assert!(service.bed.confirmed().await > before);
}
