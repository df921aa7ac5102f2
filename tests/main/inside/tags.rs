//! Sets and sorted sets whose members are names of keys.

use std::time::Duration;

use redis::Value;
use walsweep::config;
use walsweep::sweep::{Act, Answer, Inside, Node, Removes, Standalone, Verb};

use super::{calls, many, stalls, watch_stalls};
use crate::support::{Bed, PATIENCE, Settings, always, eventually};

const RULES: &str = r#"
[[rule]]
name = "tagged"
table = "public.item"
tags = ["tag:item:{id}"]
"#;

/// Caches a key, and then puts it into its set: the order that is asked for.
async fn fill_tagged(bed: &Bed, tag: &str, keys: &[&str]) {
    for key in keys {
        bed.fill(&[key]).await;
        let _: Value = bed.run(&format!("SADD {tag} {key}")).await;
    }
}

async fn members(bed: &Bed, tag: &str) -> Vec<String> {
    let mut members: Vec<String> = bed.run(&format!("SMEMBERS {tag}")).await;
    members.sort();
    members
}

#[tokio::test]
async fn members_go_and_their_entries_with_the_second_removal() {
    let bed = Bed::new(&[]).await;
    let window = Duration::from_secs(2);
    let sidecar = bed.with(RULES, |settings| settings.refill = "2s".to_owned()).await;
    fill_tagged(&bed, "tag:item:1", &["a:1", "b:1"]).await;
    for (score, key) in ["z:1", "z:2"].iter().enumerate() {
        bed.fill(&[key]).await;
        bed.run::<()>(&format!("ZADD tag:item:2 {score} {key}")).await;
    }
    fill_tagged(&bed, "tag:item:3", &["c:1"]).await;
    bed.sql.run("update item set version = version + 1 where id in (1, 2)").await;
    for key in ["a:1", "b:1", "z:1", "z:2"] {
        bed.gone(key).await;
    }
    assert_eq!(members(&bed, "tag:item:1").await, ["a:1", "b:1"], "until the second removal");
    // A late fill of a key that has its entry already, and of one that has none.
    fill_tagged(&bed, "tag:item:1", &["a:1", "late:1"]).await;
    always(window / 4, "the entries stay", async || members(&bed, "tag:item:1").await.len() == 3)
        .await;
    for key in ["a:1", "late:1"] {
        bed.gone(key).await;
    }
    for tag in ["tag:item:1", "tag:item:2"] {
        bed.gone(tag).await;
    }
    bed.settled().await;
    assert!(bed.has("c:1").await && bed.has("tag:item:3").await);
    let removed = sidecar.metric("walsweep_keys_removed_total{rule=\"tagged\"}").await;
    assert!((removed - 4.0).abs() < 0.1, "{removed}");
    let again = sidecar.metric("walsweep_refills_removed_total{rule=\"tagged\"}").await;
    assert!((again - 2.0).abs() < 0.1, "{again}");
    sidecar.assert_quiet(&["as before a first start"]);
}

/// Fills of many readers run around every removal, each writing the key first and the entry after:
/// whatever is alive in the end has its entry.
#[tokio::test]
async fn no_live_key_is_without_its_entry() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.with(RULES, |settings| settings.refill = "20ms".to_owned()).await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut readers = Vec::new();
    for reader in 0..4 {
        let (stop, mut cache) = (std::sync::Arc::clone(&stop), bed.redis.connect().await.unwrap());
        readers.push(tokio::spawn(async move {
            let mut fills = 0_u32;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let key = format!("k:{reader}:{}", fills % 500);
                // Two commands, between which anything may come; sent at once, so that both may
                // come between the removal of the key and that of its entry.
                let mut both = redis::Pipeline::new();
                both.cmd("SET").arg(&key).arg("x").cmd("SADD").arg("tag:item:1").arg(&key);
                let _: Value = both.query_async(&mut cache).await.unwrap();
                fills += 1;
            }
            fills
        }));
    }
    for _ in 0..100 {
        bed.change(1).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut fills = 0;
    for reader in readers {
        fills += reader.await.unwrap();
    }
    bed.settled().await;
    let mut live: Vec<String> = bed.run("KEYS k:*").await;
    live.sort();
    let entries = members(&bed, "tag:item:1").await;
    let lost: Vec<&String> = live.iter().filter(|key| !entries.contains(key)).collect();
    assert!(lost.is_empty(), "alive and without an entry: {lost:?}");
    let removed = sidecar.metric_sum("walsweep_keys_removed_total").await;
    assert!(fills > 1_000 && removed > 100.0, "{fills} fills, {removed} removals");
    // And so the next removal finds all of it.
    bed.change(1).await;
    bed.settled().await;
    let left: Vec<String> = bed.run("KEYS k:*").await;
    assert!(left.is_empty(), "{left:?}");
    bed.gone("tag:item:1").await;
}

/// One step looks whether a key is there and takes out its entry: so no fill can come between.
#[tokio::test]
async fn an_entry_goes_only_if_its_key_is_not_there() {
    let bed = Bed::new(&[]).await;
    let target = config::Redis { prefix: "app:".to_owned(), ..config::Redis::at(&bed.redis.url()) };
    let node = Standalone::new(&target, "s");
    node.connect().await.unwrap();
    bed.fill(&["app:live", "dead"]).await;
    for (inside, add) in [(Inside::Set, "SADD app:tag"), (Inside::SortedSet, "ZADD app:tag 1")] {
        bed.run::<()>("DEL app:tag").await;
        for member in ["live", "dead", "other"] {
            bed.run::<()>(&format!("{add} {member}")).await;
        }
        let verb = Verb::Trim(inside, vec![b"live", b"dead", b"not-in-it"]);
        let answers = node.act(&[Act { key: b"tag", verb }]).await.unwrap();
        assert!(matches!(answers[..], [Answer::Count(1)]), "{answers:?}");
        let command = if inside == Inside::Set { "SMEMBERS" } else { "ZRANGEBYLEX" };
        let range = if inside == Inside::Set { "" } else { " - +" };
        let mut left: Vec<String> = bed.run(&format!("{command} app:tag{range}")).await;
        left.sort();
        assert_eq!(left, ["live", "other"]);
    }
}

#[tokio::test]
async fn a_big_set_goes_in_pages() {
    let bed = Bed::new(&[]).await;
    let _sidecar = bed.with(RULES, |settings| settings.refill = "500ms".to_owned()).await;
    let mut tries = Vec::new();
    // Pages that are too large are late each time; a machine that is busy is not.
    while tries.len() < 3 {
        let stalls = stalls_of_a_big_set(&bed).await;
        let late = stalls.iter().filter(|took| **took > 2_000).count();
        if late * 20 <= stalls.len() {
            return;
        }
        tries.push(format!("{late} of {} calls took more than 2 ms", stalls.len()));
    }
    panic!("{tries:?}");
}

/// Lets a big set go; gives how long Redis was at each call for it, microseconds.
async fn stalls_of_a_big_set(bed: &Bed) -> Vec<u64> {
    many(&bed.cache, 100_000, |number, pipeline| {
        let key = format!("k:{number}");
        pipeline.cmd("SET").arg(&key).arg("x").ignore();
        pipeline.cmd("SADD").arg("tag:item:1").arg(&key).ignore();
    })
    .await;
    let before = calls(bed, &["sscan"]).await;
    watch_stalls(bed).await;
    bed.change(1).await;
    eventually(PATIENCE * 4, "all of it goes", async || !bed.has("tag:item:1").await).await;
    bed.settled().await;
    let left: Vec<String> = bed.run("KEYS k:*").await;
    assert_eq!(left.len(), 0);
    assert!(calls(bed, &["sscan"]).await - before >= 40, "in pages, twice");
    stalls(&bed.redis, &["sscan", "unlink", "eval"]).await
}

/// The names in a set are the application's, without the target's prefix; walsweep's own keys are
/// no application's, and the set itself goes when it is empty, not before.
#[tokio::test]
async fn members_have_the_prefix_of_the_target_and_none_is_our_own() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed
        .with(RULES, |settings| {
            settings.redis = "prefix = \"app:\"".to_owned();
            settings.refill = "100ms".to_owned();
        })
        .await;
    bed.fill(&["app:a:1", "a:1"]).await;
    for member in ["a:1", "walsweep:walsweep", "walsweep:walsweep:removals", "tag:item:1"] {
        bed.run::<()>(&format!("SADD app:tag:item:1 {member}")).await;
    }
    bed.change(1).await;
    bed.gone("app:a:1").await;
    bed.settled().await;
    assert!(bed.has("a:1").await, "of somebody else");
    assert!(bed.has("app:walsweep:walsweep").await, "our own");
    let left = members(&bed, "app:tag:item:1").await;
    assert_eq!(left, ["tag:item:1", "walsweep:walsweep", "walsweep:walsweep:removals"]);
    let resyncs = sidecar.metric_sum("walsweep_resyncs_total").await;
    assert!((resyncs - 1.0).abs() < 0.1, "that of the first start alone: {resyncs}");
}

/// A pattern finds the sets; other types are passed by. So does a sweep of everything.
#[tokio::test]
async fn a_pattern_and_a_sweep_of_everything_find_sets() {
    let bed = Bed::new(&[]).await;
    let rules = r#"
[[rule]]
name = "tagged"
table = "public.item"
tags = ["tag:{id}:*"]
"#;
    let mut sidecar = bed.with(rules, |settings| settings.refill = "100ms".to_owned()).await;
    fill_tagged(&bed, "tag:1:a", &["a:1"]).await;
    fill_tagged(&bed, "tag:1:b", &["b:1"]).await;
    fill_tagged(&bed, "tag:2:a", &["a:2"]).await;
    bed.fill(&["tag:1:text"]).await;
    bed.change(1).await;
    for key in ["a:1", "b:1", "tag:1:a", "tag:1:b"] {
        bed.gone(key).await;
    }
    bed.settled().await;
    assert!(bed.has("a:2").await && bed.has("tag:1:text").await);
    sidecar.kill9();
    bed.run::<()>("DEL walsweep:walsweep").await;
    sidecar.start();
    sidecar.wait_ready().await;
    assert!(!bed.has("a:2").await, "swept before it is ready");
    bed.gone("tag:2:a").await;
}

/// I2: killed between the first removal and the second: the entries are still there, and what they
/// name goes again.
#[tokio::test]
async fn a_crash_between_both_removals_leaves_the_entries() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.with(RULES, |settings| settings.refill = "3s".to_owned()).await;
    fill_tagged(&bed, "tag:item:1", &["a:1"]).await;
    bed.change(1).await;
    let committed = bed.position().await;
    bed.gone("a:1").await;
    sidecar.kill9();
    assert!(bed.confirmed().await < committed, "before the second removal nothing is");
    assert_eq!(members(&bed, "tag:item:1").await, ["a:1"]);
    // A late fill that finds its entry there.
    bed.fill(&["a:1"]).await;
    sidecar.start();
    sidecar.wait_ready().await;
    bed.gone("a:1").await;
    bed.gone("tag:item:1").await;
}

/// Without a second removal the entries go with the only one.
#[tokio::test]
async fn without_a_window_entries_go_at_once() {
    let bed = Bed::new(&[]).await;
    let _sidecar = bed.with(RULES, |_: &mut Settings| ()).await;
    fill_tagged(&bed, "tag:item:1", &["a:1", "b:1"]).await;
    bed.change(1).await;
    bed.gone("tag:item:1").await;
    assert!(!bed.has("a:1").await && !bed.has("b:1").await);
}
