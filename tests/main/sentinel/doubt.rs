//! Sentinels that do not agree, hang or are away: whom they may keep from what.

use std::time::Duration;

use tokio::time::Instant;
use walsweep::sweep::{Error, Kind, Node, Removes, Replaced, Standalone};

use super::{Service, at_rest, by_sentinels, change, named, run, stale_sentinel, target};
use crate::support::{Fault, PATIENCE, Proxy, Sidecar, always, eventually, text};

/// I2: a watermark that the old primary took is none to confirm by, however soon that is asked.
#[tokio::test]
async fn what_only_an_old_primary_has_is_not_confirmed() {
    let mut service = Service::start().await;
    service.with_app().await;
    let ports = service.ports();
    let node = Standalone::new(&target(&ports), "walsweep");
    node.connect().await.unwrap();
    assert_eq!(node.name(), "cache");
    node.watermark().await.unwrap();
    assert_eq!(node.replace_watermark(None, b"one").await.unwrap(), Replaced::Yes);
    node.shared(b"one").await.unwrap();
    node.keep_alive().await.unwrap();
    service.cut_off().await;
    let old = service.failed_over().await;
    // It goes on as ever.
    node.unlink(&[vec![b"item:1"]]).await.unwrap();
    let replaced = node.replace_watermark(Some(b"one"), b"two").await.unwrap();
    assert_eq!(replaced, Replaced::Yes);
    for outcome in [node.shared(b"two").await, node.keep_alive().await] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::Lost(_, Kind::Swapped)), "{error:?}");
        let both = [service.bed.redis.port(), old.port()].map(|port| format!("127.0.0.1:{port}"));
        assert!(both.iter().all(|address| error.to_string().contains(address)), "{error}");
    }
    node.connect().await.unwrap();
    node.shared(b"one").await.unwrap();
    // One of three may be cut off with an old primary.
    for sentinel in &mut service.sentinels.sentinels()[1..] {
        sentinel.kill9().await.unwrap();
    }
    node.keep_alive().await.expect("the connection stands");
    let error = node.shared(b"one").await.unwrap_err();
    assert!(matches!(error, Error::Refused(_, Kind::Sentinel)), "{error:?}");
    node.unlink(&[vec![b"item:1"]]).await.unwrap();
    node.connect().await.expect("it has heard of the failover");
}

/// The Sentinel that is left has missed the failover, and its primary says that it is one.
#[tokio::test]
async fn few_sentinels_who_know_less_than_before_are_not_believed() {
    let mut service = Service::start().await;
    let sidecar = Sidecar::set_up(service.settings()).await;
    service.cache_rows().await;
    change(&service.bed, 1..10).await;
    service.bed.settled().await;
    service.cache_rows().await;
    service.sentinels.sentinels()[0].kill9().await.unwrap();
    service.bed.redis.kill9().await.unwrap();
    let mut old = service.failed_over().await;
    let new = named(service.bed.redis.port());
    sidecar.wait_log(&new).await;
    change(&service.bed, 10..20).await;
    at_rest(&service.bed, &sidecar).await;
    for sentinel in &mut service.sentinels.sentinels()[1..] {
        sentinel.kill9().await.unwrap();
    }
    old.start_again().await.unwrap();
    service.sentinels.sentinels()[0].start_again().await.unwrap();
    let before = sidecar.log().len();
    // As long as the connection stands, nobody is asked to name another.
    change(&service.bed, 20..30).await;
    service.bed.gone("item:29").await;
    sidecar.wait_log("nobody knows whether").await;
    let is_lost = || async { sidecar.log()[before..].iter().any(|line| line.contains("is lost")) };
    always(Duration::from_secs(2), "it stands", || async { !is_lost().await }).await;
    run(&mut service.bed.cache.clone(), &["CLIENT", "KILL", "TYPE", "normal"]).await;
    sidecar.wait_log("have not heard of the last failover").await;
    let wrong = named(old.port());
    assert!(!sidecar.log()[before..].iter().any(|line| line.contains(&wrong)), "it went back");
    for sentinel in &mut service.sentinels.sentinels()[1..] {
        sentinel.start_again().await.unwrap();
    }
    let again = || async { sidecar.log()[before..].iter().any(|line| line.contains(&new)) };
    eventually(PATIENCE, "connected again", again).await;
}

/// Nobody knows whether there was a failover: keys go, and nothing is confirmed.
#[tokio::test]
async fn too_few_sentinels_hold_the_confirmation_and_no_key() {
    let mut service = Service::start().await;
    let sidecar = Sidecar::set_up(service.settings()).await;
    service.cache_rows().await;
    service.bed.settled().await;
    for sentinel in &mut service.sentinels.sentinels()[1..] {
        sentinel.kill9().await.unwrap();
    }
    let position = service.bed.position().await;
    change(&service.bed, 1..10).await;
    service.bed.gone("item:9").await;
    sidecar.wait_log("nobody knows whether").await;
    sidecar.wait_log("take out those that are gone for good").await;
    always(Duration::from_secs(1), "nothing is confirmed", || async {
        service.bed.confirmed().await <= position
    })
    .await;
    let check = text(&sidecar.command(&["check"]));
    assert!(check.contains("warning[redis_sentinels]: 1 of 3 Sentinels name"), "{check}");
    service.sentinels.sentinels()[1].start_again().await.unwrap();
    at_rest(&service.bed, &sidecar).await;
}

/// Two that missed the failover are listed first, and their primary says that it is one. Keys go
/// from the later one; but while most name the other, that may be the later one of another
/// service of the same name, so that nothing is confirmed.
#[tokio::test]
async fn sentinels_with_an_old_view_do_not_outvote_a_later_failover() {
    let mut service = Service::start().await;
    let old = service.bed.redis.port();
    service.bed.redis.kill9().await.unwrap();
    let mut was = service.failed_over().await;
    for sentinel in &mut service.sentinels.sentinels()[1..] {
        sentinel.kill9().await.unwrap();
    }
    was.start_again().await.unwrap();
    let mut ports = vec![stale_sentinel(old), stale_sentinel(old)];
    ports.push(service.ports()[0]);
    let sidecar = Sidecar::set_up(by_sentinels(service.bed.settings(), &ports)).await;
    sidecar.wait_log(&named(service.bed.redis.port())).await;
    service.bed.cache_rows().await;
    let before = service.bed.confirmed().await;
    change(&service.bed, 1..10).await;
    for id in 1..10 {
        service.bed.gone(&format!("item:{id}")).await;
    }
    sidecar.wait_log("most Sentinels name another primary of `cache`").await;
    assert_eq!(service.bed.confirmed().await, before);
    assert!(!sidecar.log().iter().any(|line| line.contains(&named(old))), "the old one");
}

/// It does not answer, and so it keeps nothing waiting.
#[tokio::test]
async fn a_sentinel_that_hangs_holds_nothing_up() {
    let mut service = Service::start().await;
    service.with_app().await;
    let ports = service.ports();
    let node = Standalone::new(&target(&ports), "walsweep");
    node.connect().await.unwrap();
    service.sentinels.sentinels()[0].pause().unwrap();
    let began = Instant::now();
    for _ in 0..2 {
        node.keep_alive().await.unwrap();
        node.shared(b"one").await.unwrap();
    }
    node.connect().await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(2_500), "{:?}", began.elapsed());
    service.sentinels.sentinels()[1].pause().unwrap();
    let began = Instant::now();
    assert_eq!(node.shared(b"one").await.unwrap_err().kind(), Kind::Sentinel);
    node.connect().await.expect("one answer is enough");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    for sentinel in &service.sentinels.sentinels()[..2] {
        sentinel.resume().unwrap();
    }
    node.shared(b"one").await.unwrap();
}

/// As behind a firewall that forgets connections: it is not asked over one that hung before.
#[tokio::test]
async fn a_connection_to_a_sentinel_that_falls_silent_is_made_anew() {
    let mut service = Service::start().await;
    service.with_app().await;
    let ports = service.ports();
    let proxy = Proxy::to_port(ports[1]);
    let node = Standalone::new(&target(&[ports[0], proxy.port()]), "walsweep");
    node.connect().await.unwrap();
    // Enough for one question.
    proxy.set(Fault::SilentAfter(2_500));
    let mut is_silent = false;
    loop {
        match node.shared(b"one").await {
            Ok(()) if is_silent => return,
            Ok(()) => {}
            Err(error) => {
                assert!(!is_silent, "{error}");
                assert!(error.to_string().contains("no answer in time"), "{error}");
                is_silent = true;
            }
        }
    }
}
