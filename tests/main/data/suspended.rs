//! Rules that do not fit their table any more: each is suspended alone, told, and swept when it
//! fits again.

use std::time::Duration;

use tokio::time::sleep;

use crate::support::{Bed, ITEM_RULES, PATIENCE, Settings, Sidecar, eventually, text};

const TABLE: &str = "create table x (id int primary key, name text);
                     alter table x replica identity full;
                     insert into x values (1, 'a'), (2, 'b');";

const RULE: &str = r#"
[[rule]]
name = "x"
table = "public.x"
keys = ["x:{id}", "name:{name}"]
"#;

const SUSPENDED: &str = "walsweep_rule_suspended{rule=\"x\"}";

const SWEEPS: &str = "walsweep_resyncs_total{reason=\"tables_changed\"}";

fn settings(bed: &Bed) -> Settings {
    Settings { rules: format!("{ITEM_RULES}{RULE}"), ..bed.settings() }
}

async fn bed() -> (Bed, Sidecar) {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLE).await;
    let sidecar = Sidecar::set_up(settings(&bed)).await;
    bed.settled().await;
    (bed, sidecar)
}

async fn told(sidecar: &Sidecar, part: &str) {
    let told = || async {
        let page = sidecar.get("/readyz").await;
        page.is_some_and(|(status, body)| status == 503 && body.contains(part))
    };
    eventually(PATIENCE, part, told).await;
}

/// The keys of other rules go on going, and WAL is confirmed.
async fn others_go(bed: &Bed) {
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    bed.gone("item:1").await;
    bed.settled().await;
}

#[tokio::test]
async fn a_dropped_table_suspends_its_rule_and_no_other() {
    let (bed, sidecar) = bed().await;
    let none =
        [sidecar.metric(SUSPENDED).await, sidecar.metric_sum("walsweep_rule_suspended").await];
    assert_eq!(none, [0.0, 0.0]);
    let (_, page) = sidecar.get("/metrics").await.unwrap();
    assert!(page.contains(SUSPENDED) && page.contains("walsweep_rule_suspended{rule=\"item\"} 0"));
    bed.fill(&["x:9", "other", "item:77"]).await;
    bed.sql.run("drop table x").await;
    told(&sidecar, "rule `x` is suspended: there is no table `public.x`").await;
    bed.gone("x:9").await;
    bed.settled().await;
    assert!(bed.has("item:77").await, "the other rule's");
    let matches = "walsweep_rule_matches_total{rule=\"item\"}";
    let before = sidecar.metric(matches).await;
    others_go(&bed).await;
    assert!(sidecar.metric(matches).await > before);
    assert_eq!(sidecar.metric(SUSPENDED).await, 1.0);
    assert_eq!(sidecar.metric_sum("walsweep_rule_suspended").await, 1.0);
    let check = sidecar.command(&["check"]);
    assert_eq!(check.status.code(), Some(1));
    assert!(
        text(&check).contains("suspend rule `x`; with `--strict` it refuses"),
        "{}",
        text(&check)
    );
    // Made again, it is not published: the cure is another one.
    bed.sql.run(TABLE).await;
    told(&sidecar, "alter publication \"walsweep\" add table only \"public\".\"x\"").await;
    others_go(&bed).await;
    bed.fill(&["x:1"]).await;
    bed.sql.run("update x set name = 'z' where id = 1").await;
    sidecar.setup();
    let what = "it is ready again";
    eventually(PATIENCE, what, || async { sidecar.readyz().await == Some(200) }).await;
    assert!(!bed.has("x:1").await && bed.has("other").await);
    assert!(bed.has("item:77").await, "the other rule's");
    assert_eq!(sidecar.metric(SUSPENDED).await, 0.0);
    bed.fill(&["x:1", "x:2"]).await;
    bed.sql.run("update x set name = 'y' where id = 1").await;
    bed.gone("x:1").await;
    assert!(bed.has("x:2").await);
    others_go(&bed).await;
}

#[tokio::test]
async fn a_start_suspends_a_rule_that_does_not_fit_and_a_strict_one_refuses() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create publication walsweep for table item").await;
    let mut sidecar = Sidecar::new(settings(&bed));
    sidecar.start_strictly();
    assert_eq!(sidecar.wait_exit().await, 1);
    sidecar.wait_log("refused to start").await;
    // No SQL makes a table: what helps at once is another thing.
    let hint = "hint: without `--strict` walsweep runs, suspends what does not fit";
    sidecar.wait_log(hint).await;
    assert!(!sidecar.log().concat().contains("setup --print"));
    sidecar.start();
    told(&sidecar, "rule `x` is suspended: there is no table `public.x`").await;
    others_go(&bed).await;
    assert_eq!(sidecar.readyz().await, Some(503));
    assert_eq!(sidecar.sigterm().await, 0);
}

#[tokio::test]
async fn walsweep_runs_on_with_every_rule_suspended() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.sql.run("alter table item rename to away").await;
    told(&sidecar, "rule `item` is suspended").await;
    bed.sql.run("update away set version = 7").await;
    bed.settled().await;
    bed.fill(&["item:1"]).await;
    bed.sql.run("alter table away rename to item").await;
    let what = "it is ready again";
    eventually(PATIENCE, what, || async { sidecar.readyz().await == Some(200) }).await;
    assert!(!bed.has("item:1").await);
    others_go(&bed).await;
}

/// Changes that were committed while the rule was suspended are confirmed and gone. Nothing but the
/// watermark knows that the rule's keys are owed a sweep: here the table itself is as it was
/// before.
#[tokio::test]
async fn a_crash_while_suspended_is_made_good_by_the_next_start() {
    let (bed, mut sidecar) = bed().await;
    bed.sql.run("alter table x replica identity default").await;
    told(&sidecar, "rule `x` is suspended: `name` is not in the replica identity").await;
    eventually(PATIENCE, "x is swept", || async { sidecar.metric(SWEEPS).await == 1.0 }).await;
    others_go(&bed).await;
    bed.fill(&["x:1"]).await;
    bed.sql.run("update x set name = 'unseen' where id = 1").await;
    others_go(&bed).await;
    assert!(bed.has("x:1").await, "a suspended rule removes nothing");
    sidecar.kill9();
    bed.sql.run("alter table x replica identity full").await;
    bed.fill(&["item:77"]).await;
    sidecar.start();
    sidecar.wait_ready().await;
    assert!(!bed.has("x:1").await && bed.has("item:77").await);
    assert_eq!(sidecar.metric(SWEEPS).await, 1.0);
    // And no start after that.
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.fill(&["x:2"]).await;
    sidecar.start();
    sidecar.wait_ready().await;
    assert!(bed.has("x:2").await);
}

/// As dbt does it, in one transaction and step by step.
#[tokio::test]
async fn a_table_that_is_swapped_for_another_ends_swept_and_at_work() {
    let (bed, sidecar) = bed().await;
    let steps = [
        "create table x__new (id int primary key, name text);
         alter table x__new replica identity full; insert into x__new select id, 'n' from x",
        "alter table x rename to x__old",
        "alter table x__new rename to x",
        "alter publication walsweep add table x",
        "drop table x__old",
    ];
    for pause in [None, Some(Duration::from_millis(2_500))] {
        bed.fill(&["x:1", "other"]).await;
        match pause {
            None => bed.sql.run(&format!("begin; {}; commit", steps.join("; "))).await,
            Some(pause) => {
                for step in steps {
                    bed.sql.run(step).await;
                    sleep(pause).await;
                    others_go(&bed).await;
                }
            }
        }
        bed.gone("x:1").await;
        let what = "it is ready again";
        eventually(PATIENCE, what, || async { sidecar.readyz().await == Some(200) }).await;
        assert_eq!(sidecar.metric(SUSPENDED).await, 0.0);
        bed.fill(&["x:2"]).await;
        bed.sql.run("update x set name = 'after' where id = 2").await;
        bed.gone("x:2").await;
        assert!(bed.has("other").await);
    }
}
