//! Another configuration for the process that runs: what it takes over, and what it refuses.

use std::fs;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use walsweep_stage::throwaway::{Redis, RedisOptions, Signal};

use crate::support::{Bed, ITEM_RULES, PATIENCE, Sidecar, eventually, text};

/// A rule beside [`ITEM_RULES`], over the same table.
const MORE: &str = r#"
[[rule]]
name = "more"
table = "public.item"
keys = ["more:{id}", "wide:{team}:*"]
"#;

/// Runs `walsweep reload`; gives its exit status, and what it said.
fn reload(sidecar: &Sidecar) -> (Option<i32>, String) {
    let output = sidecar.command(&["reload"]);
    (output.status.code(), text(&output))
}

/// How often reloads came to this.
async fn reloads(sidecar: &Sidecar, outcome: &str) -> f64 {
    sidecar.metric(&format!("walsweep_config_reloads_total{{outcome=\"{outcome}\"}}")).await
}

/// Commits a change of a row, and waits until its key is gone.
async fn removes(bed: &Bed, key: &str, id: u32) {
    bed.fill(&[key]).await;
    bed.sql.run(&format!("update item set version = version + 1 where id = {id}")).await;
    bed.gone(key).await;
}

#[tokio::test]
async fn a_new_rule_sweeps_its_own_keys_alone_and_keeps_the_position() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.fill(&["item:1", "list:team 1:a", "more:1", "wide:team 1:a", "keep"]).await;
    bed.settled().await;
    let resyncs = sidecar.metric_sum("walsweep_resyncs_total").await;
    sidecar.change(|settings| settings.rules = format!("{ITEM_RULES}{MORE}"));
    let (status, said) = reload(&sidecar);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("rule `more` added"), "{said}");
    sidecar.wait_ready().await;
    for gone in ["more:1", "wide:team 1:a"] {
        assert!(!bed.has(gone).await, "`{gone}` may be stale");
    }
    for kept in ["item:1", "list:team 1:a", "keep"] {
        assert!(bed.has(kept).await, "`{kept}` is swept, and nothing about it is new");
    }
    assert_eq!(sidecar.metric_sum("walsweep_resyncs_total").await, resyncs + 1.0);
    assert_eq!(reloads(&sidecar, "applied").await, 1.0);
    assert_eq!(sidecar.metric("walsweep_reconnects_total{peer=\"postgres\"}").await, 0.0);
    removes(&bed, "more:2", 2).await;
    removes(&bed, "item:3", 3).await;
    let removed = "walsweep_keys_removed_total{rule=\"more\"}";
    assert!(sidecar.metric(removed).await >= 3.0);
    // Once more without it: nothing is swept, and its series ends.
    bed.fill(&["more:4", "item:4"]).await;
    sidecar.change(|settings| settings.rules = ITEM_RULES.to_owned());
    let (status, said) = reload(&sidecar);
    assert!(status == Some(0) && said.contains("rule `more` removed"), "{said}");
    sidecar.wait_ready().await;
    removes(&bed, "item:5", 5).await;
    assert!(bed.has("more:4").await && bed.has("item:4").await);
    let (_, page) = sidecar.get("/metrics").await.unwrap();
    assert!(!page.contains("rule=\"more\""), "an alert on it would never end");
    sidecar.assert_quiet(&["sweeping everything"]);
    assert_eq!(sidecar.sigterm().await, 0);
}

#[tokio::test]
async fn a_bad_file_is_refused_with_all_its_problems_and_the_old_one_stays_in_force() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    let since = "walsweep_config_last_reload_success_timestamp_seconds";
    let read_at = sidecar.metric(since).await;
    assert!(read_at > 1e9);
    let bad = MORE.replace("more:{id}", "more:{id").replace("public.item", "pub.lic.item");
    sidecar.change(|settings| settings.rules = format!("{ITEM_RULES}{bad}"));
    // The command sees by itself that there is nothing to take over.
    let (status, said) = reload(&sidecar);
    assert_eq!(status, Some(78), "{said}");
    assert_eq!(reloads(&sidecar, "refused").await, 0.0, "nobody was told");
    sidecar.signal(Signal::Hup);
    sidecar.wait_log("the old configuration stays in force").await;
    let log = sidecar.log().join("\n");
    for place in ["config.toml:", "rule.1.table", "rule.1.keys.0"] {
        let line = log.lines().find(|line| line.contains("is refused") && line.contains(place));
        assert!(line.is_some(), "{place}: {log}");
    }
    assert_eq!(sidecar.readyz().await, Some(200));
    assert_eq!(sidecar.metric("walsweep_config_last_reload_successful").await, 0.0);
    assert_eq!(sidecar.metric(since).await, read_at);
    assert_eq!(reloads(&sidecar, "refused").await, 1.0);
    removes(&bed, "item:1", 1).await;
    sidecar.change(|settings| settings.rules = ITEM_RULES.to_owned());
    let (status, said) = reload(&sidecar);
    assert!(status == Some(0) && said.contains("nothing is another"), "{said}");
    assert_eq!(sidecar.metric("walsweep_config_last_reload_successful").await, 1.0);
    assert!(sidecar.metric(since).await > read_at);
    assert_eq!(reloads(&sidecar, "unchanged").await, 1.0);
}

/// A start would suspend it, for there is nothing better; here the old rules are.
#[tokio::test]
async fn a_rule_that_does_not_fit_is_refused() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    let missing = MORE.replace("public.item", "public.missing");
    sidecar.change(|settings| settings.rules = format!("{ITEM_RULES}{missing}"));
    let (status, said) = reload(&sidecar);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("rule.1.table") && said.contains("missing"), "{said}");
    assert!(said.contains("the old one stays in force"), "{said}");
    assert_eq!(sidecar.readyz().await, Some(200));
    let (_, page) = sidecar.get("/metrics").await.unwrap();
    assert!(!page.contains("rule=\"more\""), "it is no rule of this process");
    removes(&bed, "item:1", 1).await;
    // A rule that is suspended already keeps nobody from mending another.
    bed.sql.run("create table missing (id int primary key, team text)").await;
    bed.sql.run("alter table missing replica identity full").await;
    sidecar.setup();
    let (status, said) = reload(&sidecar);
    assert_eq!(status, Some(0), "{said}");
    sidecar.wait_ready().await;
    bed.sql.run("drop table missing").await;
    sidecar.wait_log("rule `more` is suspended").await;
    sidecar.change(|settings| settings.level = "info".to_owned());
    let (status, said) = reload(&sidecar);
    assert!(status == Some(0) && said.contains("`log.level` changed"), "{said}");
    removes(&bed, "item:2", 2).await;
    assert_eq!(sidecar.readyz().await, Some(503), "it is suspended still");
}
