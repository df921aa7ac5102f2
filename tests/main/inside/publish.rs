//! Messages of removals, for caches inside of processes.

use std::time::Duration;

use futures_util::StreamExt;
use redis::Client;
use redis::aio::PubSub;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::many;
use crate::refusals::admin;
use crate::support::{Bed, PATIENCE, Settings, eventually};

const RULES: &str = r#"
[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}", "list:{team}:*"]
fields = { "user:{id}" = ["version", "page:*"] }
tags = ["tag:{id}"]
"#;

async fn listen(bed: &Bed) -> PubSub {
    let client = Client::open(bed.redis.url()).unwrap();
    let mut listener = client.get_async_pubsub().await.unwrap();
    listener.subscribe("gone").await.unwrap();
    listener
}

/// The messages that come within a while.
async fn heard(listener: &mut PubSub, while_: Duration) -> Vec<Value> {
    let (mut messages, mut heard) = (listener.on_message(), Vec::new());
    while let Ok(Some(message)) = timeout(while_, messages.next()).await {
        let text: String = message.get_payload().unwrap();
        heard.push(serde_json::from_str(&text).unwrap());
    }
    heard
}

/// All names of one list, in order.
fn names(heard: &[Value], list: &str) -> Vec<String> {
    let all = heard.iter().flat_map(|one| one[list].as_array().unwrap());
    let mut names: Vec<String> = all.map(|name| name.as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn publishing(settings: &mut Settings) {
    settings.redis = "publish = \"gone\"\nprefix = \"app:\"".to_owned();
}

#[tokio::test]
async fn every_removal_is_told_after_it() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed
        .with(RULES, |settings| {
            publishing(settings);
            settings.refill = "1s".to_owned();
        })
        .await;
    let mut listener = listen(&bed).await;
    heard(&mut listener, Duration::from_secs(2)).await;
    bed.run::<()>("SADD app:tag:1 member:1").await;
    bed.fill(&["app:item:1", "app:member:1"]).await;
    bed.change(1).await;
    // What is told is gone by then.
    let first = timeout(PATIENCE, listener.on_message().next()).await.unwrap().unwrap();
    assert!(!bed.has("app:item:1").await, "it is told after its removal");
    let first: Value = serde_json::from_str(&first.get_payload::<String>().unwrap()).unwrap();
    let mut told = heard(&mut listener, Duration::from_millis(500)).await;
    told.insert(0, first);
    assert_eq!(names(&told, "keys"), ["item:1", "member:1", "user:1", "user:1"]);
    assert_eq!(names(&told, "patterns"), ["list:team 1:*"]);
    let lsn: walsweep::lsn::Lsn = told[0]["lsn"].as_str().unwrap().parse().unwrap();
    assert!(lsn <= bed.position().await && lsn > walsweep::lsn::Lsn::ZERO);
    // A process may cache again what it read before: so the second removal is told, too.
    let again = heard(&mut listener, Duration::from_secs(2)).await;
    assert!(names(&again, "keys").contains(&"item:1".to_owned()), "{again:?}");
    bed.settled().await;
    assert!(sidecar.metric("walsweep_published_total").await >= 6.0);
    assert!(sidecar.metric("walsweep_publish_failures_total").await < 0.5);
    sidecar.assert_quiet(&["as before a first start"]);
}

/// Many keys come in several messages, each once.
#[tokio::test]
async fn a_large_transaction_is_told_in_parts() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("insert into item select id, 'x', 0 from generate_series(101, 5000) id").await;
    let _sidecar = bed
        .with("[[rule]]\nname = \"item\"\ntable = \"item\"\nkeys = [\"item:{id}\"]", publishing)
        .await;
    let mut listener = listen(&bed).await;
    bed.sql.run("update item set version = 1").await;
    let told = heard(&mut listener, Duration::from_secs(2)).await;
    assert!(told.len() >= 2, "{}", told.len());
    let mut all = names(&told, "keys");
    assert_eq!(all.len(), 5_000);
    all.dedup();
    assert_eq!(all.len(), 5_000, "each once");
}

/// A right that is missing, or a Redis that is slow to tell, holds up nothing; it is said and
/// counted.
#[tokio::test]
async fn what_cannot_be_told_holds_up_nothing() {
    let bed = Bed::new(&[]).await;
    admin(&bed, "ACL SETUSER walsweep on nopass ~* +@all resetchannels &gone").await;
    let sidecar = bed
        .with(RULES, |settings| {
            publishing(settings);
            settings.redis_url = settings.redis_url.replace("redis://", "redis://walsweep:any@");
        })
        .await;
    admin(&bed, "ACL SETUSER walsweep resetchannels").await;
    bed.fill(&["app:item:1"]).await;
    bed.change(1).await;
    bed.gone("app:item:1").await;
    bed.settled().await;
    sidecar.wait_log("is not told of removals").await;
    eventually(PATIENCE, "failures are counted", async || {
        sidecar.metric("walsweep_publish_failures_total").await >= 2.0
    })
    .await;
    assert_eq!(sidecar.readyz().await, Some(200), "nothing stale is in redis");
    // Both removals are told of, and of both it was refused.
    let failures = sidecar.metric("walsweep_publish_failures_total").await;
    let errors = async || sidecar.metric_sum("walsweep_redis_errors_total").await;
    let before = errors().await;
    eventually(PATIENCE, "it is tried again", async || errors().await > before).await;
    let now = sidecar.metric("walsweep_publish_failures_total").await;
    assert!((now - failures).abs() < 0.5, "{now} of {failures}: a message counts once");
    let mut listener = listen(&bed).await;
    admin(&bed, "ACL SETUSER walsweep &gone").await;
    // The right shows without another commit.
    sidecar.wait_log("resolved after ").await;
    eventually(PATIENCE, "nothing is wrong", async || {
        sidecar.get("/readyz").await.is_some_and(|(_, body)| body == "ready\n")
    })
    .await;
    let told = heard(&mut listener, Duration::from_millis(500)).await;
    assert_eq!(told.len(), 1, "the last one that was refused, once: {told:?}");
    bed.change(2).await;
    let told = heard(&mut listener, Duration::from_millis(500)).await;
    assert!(names(&told, "keys").contains(&"item:2".to_owned()), "{told:?}");
}

/// More than there is memory for is told as patterns.
#[tokio::test]
async fn more_than_may_wait_is_told_as_patterns() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("insert into item select id, 'x', 0 from generate_series(101, 20000) id").await;
    let rules =
        "[[rule]]\nname = \"item\"\ntable = \"item\"\nkeys = [\"item:{id}:a-name-of-some-length\"]";
    let _sidecar = bed.with(rules, publishing).await;
    many(&bed.cache, 10, |number, pipeline| {
        pipeline.cmd("SET").arg(format!("app:item:{number}")).arg("x").ignore();
    })
    .await;
    let mut listener = listen(&bed).await;
    bed.sql.run("update item set version = 1").await;
    let told = heard(&mut listener, Duration::from_secs(3)).await;
    assert!(told.iter().any(|one| one["patterns"] == json!(["item:*:a-name-of-some-length"])));
}
