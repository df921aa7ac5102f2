//! Fields, tags and messages in a cluster, where a set and the keys that it names are with
//! different primaries.

use futures_util::StreamExt;
use redis::{Client, Value};

use crate::cluster::{Shop, keys};
use crate::support::{PATIENCE, Settings, Sidecar, eventually};

const RULES: &str = r#"
[[rule]]
name = "item"
table = "public.item"
fields = { "user:{id}" = ["version", "page:*"], "wide:*:{id}" = ["version"] }
tags = ["tag:{id}", "{id|default:x}:tags:*"]
"#;

async fn start(shop: &Shop, change: impl FnOnce(&mut Settings)) -> Sidecar {
    let mut settings = Settings { rules: RULES.to_owned(), ..shop.settings() };
    change(&mut settings);
    let sidecar = Sidecar::set_up(settings).await;
    shop.bed.settled().await;
    sidecar
}

async fn fields(shop: &Shop, key: &str) -> usize {
    shop.ask(&["HLEN", key]).await
}

async fn members(shop: &Shop, tag: &str) -> Vec<String> {
    let mut members: Vec<String> = shop.ask(&["SMEMBERS", tag]).await;
    members.sort();
    members
}

/// Members go wherever they are. Entries go whose keys are in the slot of their set: one script
/// may be about those alone. The others stay.
#[tokio::test]
async fn fields_and_members_go_from_every_primary() {
    let shop = Shop::start(3, 0).await;
    let sidecar = start(&shop, |settings| settings.refill = "300ms".to_owned()).await;
    let named = keys("member:#", 30);
    let near = keys("{tag:1}:#", 5);
    shop.fill(&[&named[..], &near].concat()).await;
    for key in named.iter().chain(&near) {
        let _: Value = shop.ask(&["SADD", "tag:1", key]).await;
    }
    for id in 1..=9 {
        let user = format!("user:{id}");
        let _: Value = shop.ask(&["HSET", &user, "version", "x", "page:1", "x", "o", "x"]).await;
        let wide = format!("wide:{id}:1");
        let _: Value = shop.ask(&["HSET", &wide, "version", "x", "o", "x"]).await;
    }
    shop.bed.sql.run("update item set version = 1 where id < 10").await;
    shop.gone(&[&named[..], &near].concat()).await;
    for id in 1..=9 {
        for key in [format!("user:{id}"), format!("wide:{id}:1")] {
            eventually(PATIENCE, &key, async || fields(&shop, &key).await == 1).await;
        }
    }
    shop.bed.settled().await;
    let mut left = named.clone();
    left.sort();
    assert_eq!(members(&shop, "tag:1").await, left, "of other slots");
    let removed = sidecar.metric("walsweep_keys_removed_total{rule=\"item\"}").await;
    assert!((removed - 62.0).abs() < 0.1, "35 members, 18 and 9 fields: {removed}");
}

/// The set moves from primary to primary, with what it names, while it is read.
#[tokio::test]
async fn a_set_that_moves_is_read_whole() {
    let shop = Shop::start(3, 0).await;
    let sidecar =
        start(&shop, |settings| settings.sweep = "max_stall = \"100us\"".to_owned()).await;
    let (slot, _) = shop.place("tag:1").await;
    for round in 0..4 {
        let named = keys("{tag:1}:#", 3_000);
        let (_, owner) = shop.place("tag:1").await;
        let mut connection = shop.connect(owner).await;
        for some in named.chunks(500) {
            let mut pipeline = redis::Pipeline::new();
            for key in some {
                pipeline.cmd("SET").arg(key).arg("x").ignore();
                pipeline.cmd("SADD").arg("tag:1").arg(key).ignore();
            }
            let () = pipeline.query_async(&mut connection).await.unwrap();
        }
        let to = (owner + 1) % 3;
        shop.cluster.begin_move(slot, to).await.unwrap();
        shop.change(1).await;
        if round % 2 == 0 {
            shop.cluster.move_keys(slot, to).await.unwrap();
        }
        shop.cluster.finish_move(slot, to).await.unwrap();
        eventually(PATIENCE * 2, "all of it goes", async || {
            shop.names("{tag:1}:*").await.is_empty()
        })
        .await;
        shop.bed.settled().await;
        // Entries stay where the slot was on its way just then; they go with the next removal.
        shop.change(1).await;
        eventually(PATIENCE, "the set goes", async || !shop.has("tag:1").await).await;
    }
    let doubts = sidecar.metric_sum("walsweep_resyncs_total").await;
    assert!((doubts - 1.0).abs() < 0.1, "that of the first start alone: {doubts}");
}

/// Every node passes a message on.
#[tokio::test]
async fn a_message_comes_from_any_primary() {
    let shop = Shop::start(3, 0).await;
    let mut listeners = Vec::new();
    for url in shop.cluster.urls() {
        let mut listener = Client::open(url).unwrap().get_async_pubsub().await.unwrap();
        listener.subscribe("gone").await.unwrap();
        listeners.push(listener);
    }
    let mut settings = Settings { rules: RULES.to_owned(), ..shop.settings() };
    settings.targets[0].push_str("\npublish = \"gone\"");
    let _sidecar = Sidecar::set_up(settings).await;
    shop.bed.settled().await;
    shop.change(1).await;
    for listener in &mut listeners {
        let mut messages = listener.on_message();
        let found = async {
            loop {
                let message: String = messages.next().await.unwrap().get_payload().unwrap();
                if message.contains("\"user:1\"") {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("it is told");
    }
}
