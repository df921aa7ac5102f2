//! Fields of hashes.

use redis::cmd;

use super::{calls, many, rest, stalls, watch_stalls};
use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text};

const RULES: &str = r#"
[[rule]]
name = "user"
table = "public.item"
fields = { "user:{id}" = ["version", "stats:{team}", "page:*"], "team:*:{id}" = ["best"] }
"#;

/// Sets fields of a hash.
async fn set(bed: &Bed, key: &str, fields: &[&str]) {
    let mut hset = cmd("HSET");
    hset.arg(key);
    for field in fields {
        hset.arg(field).arg("x");
    }
    hset.exec_async(&mut bed.cache.clone()).await.unwrap();
}

/// Waits until a hash has exactly these fields.
async fn left(bed: &Bed, key: &str, expected: &[&str]) {
    eventually(PATIENCE, &format!("`{key}` has {expected:?} left"), async || {
        let mut fields: Vec<String> = bed.run(&format!("HKEYS {key}")).await;
        fields.sort();
        fields == expected
    })
    .await;
}

#[tokio::test]
async fn fields_go_and_others_stay() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.with(RULES, |_| ()).await;
    let fields = ["version", "stats:team 1", "stats:team 2", "page:1", "page:", "other"];
    set(&bed, "user:1", &fields).await;
    set(&bed, "user:2", &fields).await;
    set(&bed, "team:a:1", &["best", "other"]).await;
    set(&bed, "team:b:1", &["best"]).await;
    set(&bed, "team:b:2", &["best"]).await;
    bed.change(1).await;
    left(&bed, "user:1", &["other", "stats:team 2"]).await;
    left(&bed, "team:a:1", &["other"]).await;
    bed.gone("team:b:1").await;
    bed.settled().await;
    left(&bed, "user:2", &["other", "page:", "page:1", "stats:team 1", "stats:team 2", "version"])
        .await;
    assert!(bed.has("team:b:2").await);
    let removed = sidecar.metric("walsweep_keys_removed_total{rule=\"user\"}").await;
    assert!((removed - 6.0).abs() < 0.1, "each field counts as a key: {removed}");
    sidecar.assert_quiet(&["as before a first start"]);
}

/// I8: a late fill of each kind goes as well, whether writes are observed or not.
#[tokio::test]
async fn late_fills_of_fields_go_with_the_second_removal() {
    for observe in [false, true] {
        let bed = Bed::new(&[]).await;
        let sidecar = bed
            .with(RULES, |settings| {
                settings.refill = "1s".to_owned();
                settings.observe = observe;
            })
            .await;
        let fields = ["version", "page:1"];
        set(&bed, "user:1", &fields).await;
        set(&bed, "team:a:1", &["best"]).await;
        bed.change(1).await;
        for key in ["user:1", "team:a:1"] {
            bed.gone(key).await;
        }
        set(&bed, "user:1", &fields).await;
        set(&bed, "team:a:1", &["best"]).await;
        bed.settled().await;
        assert!(!bed.has("user:1").await && !bed.has("team:a:1").await, "observe: {observe}");
        let refills = sidecar.metric_sum("walsweep_refills_removed_total").await;
        assert!((refills - 3.0).abs() < 0.1, "observe: {observe}: {refills}");
    }
}

/// `*` alone is the whole hash, and what only a pattern finds of another type is not meant.
#[tokio::test]
async fn all_fields_are_the_hash_and_a_pattern_passes_other_types_by() {
    let bed = Bed::new(&[]).await;
    let rules = r#"
[[rule]]
name = "all"
table = "public.item"
fields = { "all:{id}" = ["*"], "some:{id}*" = ["x", "y:*"] }
"#;
    let sidecar = bed.with(rules, |_| ()).await;
    set(&bed, "all:1", &["a", "b"]).await;
    set(&bed, "all:2", &["a"]).await;
    set(&bed, "some:1:h", &["x", "y:1", "z"]).await;
    bed.fill(&["some:1:text"]).await;
    bed.run::<()>("SADD some:1:set x").await;
    bed.change(1).await;
    bed.gone("all:1").await;
    left(&bed, "some:1:h", &["z"]).await;
    bed.settled().await;
    for key in ["all:2", "some:1:text", "some:1:set"] {
        assert!(bed.has(key).await, "{key}");
    }
    sidecar.assert_quiet(&["as before a first start"]);
}

/// I4: a value that looks like a glob is a name, of the hash and of the field, and in `HSCAN`.
#[tokio::test]
async fn a_value_is_no_glob_in_a_field() {
    let bed = Bed::new(&[]).await;
    let rules = r#"
[[rule]]
name = "user"
table = "public.item"
fields = { "user:{team}" = ["{team}", "page:{team}:*"] }
"#;
    let _sidecar = bed.with(rules, |_| ()).await;
    bed.sql.run("update item set team = '*' where id = 1").await;
    bed.settled().await;
    set(&bed, "user:*", &["*", "a", "page:*:1", "page:a:1"]).await;
    set(&bed, "user:a", &["*", "a", "page:*:1"]).await;
    bed.change(1).await;
    left(&bed, "user:*", &["a", "page:a:1"]).await;
    bed.settled().await;
    left(&bed, "user:a", &["*", "a", "page:*:1"]).await;
}

/// A hash of 100 000 fields is read in pages, none of which holds Redis for long.
#[tokio::test]
async fn a_big_hash_goes_in_pages() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.with(RULES, |_| ()).await;
    many(&bed.cache, 100_000, |number, pipeline| {
        let field = if number % 2 == 0 { "page" } else { "kept" };
        pipeline.cmd("HSET").arg("user:1").arg(format!("{field}:{number}")).arg("x").ignore();
    })
    .await;
    let before = calls(&bed, &["hscan"]).await;
    watch_stalls(&bed).await;
    bed.change(1).await;
    eventually(PATIENCE * 3, "half of it goes", async || {
        bed.run::<u64>("HLEN user:1").await == 50_000
    })
    .await;
    bed.settled().await;
    assert!(calls(&bed, &["hscan"]).await - before >= 20, "in pages");
    let mut stalls = stalls(&bed.redis, &["hscan", "hdel"]).await;
    stalls.sort_unstable();
    // `max_stall` is 1 ms as seen from outside; the server may lose its processor within a call.
    let late = stalls.iter().filter(|took| **took > 2_000).count();
    assert!(late * 20 <= stalls.len(), "{late} of {} calls took more than 2 ms", stalls.len());
    let left: u64 = bed.run("HLEN user:1").await;
    assert_eq!(left, 50_000);
    let removed = sidecar.metric("walsweep_keys_removed_total{rule=\"user\"}").await;
    assert!((removed - 50_000.0).abs() < 0.1, "{removed}");
}

/// I7: without its watermark everything that rules could produce goes: the fields, not the hashes.
#[tokio::test]
async fn a_sweep_of_everything_and_a_new_rule_take_fields() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.with(RULES, |_| ()).await;
    sidecar.kill9();
    bed.run::<()>("DEL walsweep:walsweep").await;
    set(&bed, "user:77", &["version", "stats:x", "page:1", "other"]).await;
    set(&bed, "team:z:9", &["best", "other"]).await;
    sidecar.start();
    sidecar.wait_ready().await;
    left(&bed, "user:77", &["other"]).await;
    left(&bed, "team:z:9", &["other"]).await;
    bed.settled().await;
    // A field more: that one is swept.
    assert_eq!(sidecar.sigterm().await, 0);
    set(&bed, "user:77", &["version", "more", "other"]).await;
    let more = RULES.replace("[\"version\",", "[\"version\", \"more\",");
    sidecar.change(|settings| settings.rules = more);
    sidecar.start();
    sidecar.wait_ready().await;
    left(&bed, "user:77", &["other", "version"]).await;
}

/// I2, I8: killed between the first removal and the second, it removes again.
#[tokio::test]
async fn a_crash_between_both_removals_loses_no_field() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.with(RULES, |settings| settings.refill = "3s".to_owned()).await;
    set(&bed, "user:1", &["version", "page:1", "other"]).await;
    bed.change(1).await;
    let committed = bed.position().await;
    left(&bed, "user:1", &["other"]).await;
    sidecar.kill9();
    assert!(bed.confirmed().await < committed, "before the second removal nothing is");
    set(&bed, "user:1", &["version", "page:1", "other"]).await;
    sidecar.start();
    sidecar.wait_ready().await;
    left(&bed, "user:1", &["other"]).await;
    bed.settled().await;
}

/// A rule without fields and tags asks for nothing but what it did before.
#[tokio::test]
async fn plain_keys_cost_no_more_commands() {
    let bed = Bed::new(&[]).await;
    let _sidecar = bed.with(crate::support::ITEM_RULES, |_| ()).await;
    bed.fill(&["item:1"]).await;
    bed.change(1).await;
    bed.gone("item:1").await;
    bed.settled().await;
    rest().await;
    let others = ["hdel", "hscan", "type", "sscan", "zscan", "srem", "zrem", "publish"];
    assert_eq!(calls(&bed, &others).await, 0);
}

#[tokio::test]
async fn explain_shows_fields_and_tags() {
    let bed = Bed::new(&[]).await;
    let rules = format!("{RULES}tags = [\"tag:{{id}}\"]\n");
    let sidecar = Sidecar::new(Settings { rules, ..bed.settings() });
    let output = sidecar.command(&[
        "explain",
        "item",
        "--op",
        "delete",
        "--old",
        r#"{"id": 1, "team": "a", "version": 3}"#,
    ]);
    let told = text(&output);
    for line in [
        "field    version of user:1",
        "field    stats:a of user:1",
        "field    page:* of user:1",
        "field    best of team:*:1",
        "tag      tag:1, and the keys that it names",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
}
