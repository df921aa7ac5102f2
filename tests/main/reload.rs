//! Another configuration for the process that runs: what it takes over, and what it refuses.

use std::fs;
use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};
use walsweep::telemetry::reloads::{Process, Told};
use walsweep_stage::throwaway::{Redis, RedisOptions, Signal};

use crate::refusals::admin;
use crate::support::{Bed, ITEM_RULES, PATIENCE, Settings, Sidecar, eventually, text};

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

/// When `/status` says that the last key of a rule was removed.
async fn last_removed(sidecar: &Sidecar, rule: &str) -> Value {
    let (_, body) = sidecar.get("/status").await.unwrap();
    let mut state: Value = serde_json::from_str(&body).unwrap();
    let rules = state["rules"].as_array_mut().unwrap();
    rules.iter_mut().find(|one| one["name"] == rule).unwrap()["last_removed"].take()
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
    removes(&bed, "item:1", 1).await;
    bed.settled().await;
    let last = last_removed(&sidecar, "item").await;
    assert!(last.is_string(), "{last}");
    bed.fill(&["item:1", "list:team 1:a"]).await;
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
    assert_eq!(last_removed(&sidecar, "item").await, last, "nothing is new about it");
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
    // A rule that gives other keys is another one.
    let other = ITEM_RULES.replace("list:{team}:*", "names:{team}:*");
    assert_ne!(other, ITEM_RULES);
    sidecar.change(|settings| settings.rules = other);
    assert_eq!(reload(&sidecar).0, Some(0));
    sidecar.wait_ready().await;
    assert_eq!(last_removed(&sidecar, "item").await, Value::Null);
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
    let status = async || {
        let (_, body) = sidecar.get("/status").await.unwrap();
        serde_json::from_str::<Value>(&body).unwrap()
    };
    let verdict = status().await["verdict"].take();
    assert_eq!(verdict["level"], "attention", "{verdict}");
    assert_eq!(verdict["section"], "a-reload-was-refused", "{verdict}");
    assert_eq!(sidecar.metric("walsweep_config_last_reload_successful").await, 0.0);
    assert_eq!(sidecar.metric(since).await, read_at);
    assert_eq!(reloads(&sidecar, "refused").await, 1.0);
    removes(&bed, "item:1", 1).await;
    sidecar.change(|settings| settings.rules = ITEM_RULES.to_owned());
    let (status, said) = reload(&sidecar);
    assert!(status == Some(0) && said.contains("what it said before"), "{said}");
    assert_eq!(sidecar.metric("walsweep_config_last_reload_successful").await, 1.0);
    assert!(sidecar.metric(since).await > read_at);
    assert_eq!(reloads(&sidecar, "unchanged").await, 1.0);
    let (_, body) = sidecar.get("/readyz").await.unwrap();
    assert!(!body.contains("stays in force"), "{body}");
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

/// The slot is the position, and the address is listened at: neither is another half way.
#[tokio::test]
async fn what_needs_a_restart_is_refused_with_its_place_and_nothing_is_taken_over() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.sql.run("create database elsewhere").await;
    let (name, url, rules) = (bed.settings().name, bed.postgres.url(), bed.settings().rules);
    let elsewhere = bed.postgres.url_of("elsewhere");
    for (number, key) in ["postgres.slot", "postgres.url", "log.format"].into_iter().enumerate() {
        sidecar.change(|settings| {
            settings.level = "info".to_owned();
            match key {
                "postgres.slot" => settings.name = "other".to_owned(),
                "postgres.url" => settings.postgres_url.clone_from(&elsewhere),
                _ => settings.rules = format!("format = \"json\"\n{rules}"),
            }
        });
        let (status, said) = reload(&sidecar);
        assert_eq!(status, Some(1), "{key}: {said}");
        assert!(said.contains("config.toml:") && said.contains(&format!(": {key}: ")), "{said}");
        assert!(said.contains("restart walsweep"), "{said}");
        sidecar.change(|settings| {
            settings.name.clone_from(&name);
            settings.postgres_url.clone_from(&url);
            settings.rules.clone_from(&rules);
            settings.level = "debug".to_owned();
        });
        assert_eq!(reloads(&sidecar, "refused").await, [1.0, 2.0, 3.0][number]);
    }
    let (status, said) = reload(&sidecar);
    assert!(status == Some(0) && said.contains("what it said before"), "{said}");
    removes(&bed, "item:1", 1).await;
}

/// The first session goes on: the server's process is the one that it was.
#[tokio::test]
async fn a_file_that_says_the_same_touches_nothing() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    let pid = "select active_pid from pg_replication_slots";
    let before: i32 = bed.sql.one(pid).await;
    sidecar.change(|settings| settings.rules = format!("# a word\n\n{ITEM_RULES}"));
    let (status, said) = reload(&sidecar);
    assert!(status == Some(0) && said.contains("what it said before"), "{said}");
    assert_eq!(bed.sql.one::<i32>(pid).await, before);
    sidecar.change(|settings| settings.sweep = "max_load = 0.5".to_owned());
    let (status, said) = reload(&sidecar);
    assert!(status == Some(0) && said.contains("`sweep.max_load` added"), "{said}");
    sidecar.wait_ready().await;
    assert_ne!(bed.sql.one::<i32>(pid).await, before);
}

#[tokio::test]
async fn credentials_are_tried_before_they_are_taken_over() {
    let mut bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.sql.run("create role rotated superuser login replication password 'x'").await;
    for rule in ["wrong", "rotated"] {
        let port = bed.redis.port();
        let mut user = redis::cmd("ACL");
        user.arg("SETUSER").arg("app").arg("on").arg(">rotated").arg("~*").arg("&*").arg("+@all");
        user.exec_async(&mut bed.cache).await.unwrap();
        let postgres = bed.postgres.url().replace("postgres@", &format!("{rule}:x@"));
        sidecar.change(|settings| {
            settings.redis_url = format!("redis://app:{rule}@127.0.0.1:{port}/0");
            settings.postgres_url = bed.postgres.url();
        });
        let (status, said) = reload(&sidecar);
        let is_right = rule == "rotated";
        assert_eq!(status, Some(i32::from(!is_right)), "{said}");
        assert!(!is_right || said.contains("`url` of redis `redis` changed"), "{said}");
        assert!(is_right || said.contains("authentication failed"), "{said}");
        sidecar.wait_ready().await;
        sidecar.change(|settings| settings.postgres_url.clone_from(&postgres));
        let (status, said) = reload(&sidecar);
        assert_eq!(status, Some(i32::from(!is_right)), "{said}");
        sidecar.wait_ready().await;
        removes(&bed, "item:1", 1).await;
    }
    let role = "select usename::text from pg_stat_activity where application_name = 'walsweep'";
    assert_eq!(bed.sql.one::<String>(role).await, "rotated");
    let mut list = redis::cmd("CLIENT");
    let list: String = list.arg("LIST").query_async(&mut bed.cache).await.unwrap();
    assert!(list.contains("user=app"), "{list}");
    let log = sidecar.log().concat();
    assert!(!log.contains("rotated@") && !log.contains(":rotated"), "a secret is in the log");
}

/// One that is new is swept whole, and the other is left as it is; one that is gone is left alone.
#[tokio::test]
async fn targets_come_and_go() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    let near = Redis::start(RedisOptions::default()).await.unwrap();
    let mut cache = near.connect().await.unwrap();
    let () = redis::cmd("SET").arg("near:item:1").arg("x").query_async(&mut cache).await.unwrap();
    bed.fill(&["item:1", "keep"]).await;
    let main = format!("name = \"redis\"\nurl = {:?}", bed.redis.url());
    let second = format!("name = \"near\"\nurl = {:?}\nprefix = \"near:\"", near.url());
    sidecar.change(|settings| settings.targets = vec![main.clone(), second]);
    let (status, said) = reload(&sidecar);
    assert!(status == Some(0) && said.contains("redis `near` added"), "{said}");
    sidecar.wait_ready().await;
    let exists = async |key: &str| {
        let mut cache = cache.clone();
        redis::cmd("EXISTS").arg(key).query_async::<bool>(&mut cache).await.unwrap()
    };
    assert!(!exists("near:item:1").await, "it may be stale");
    assert!(bed.has("item:1").await, "nothing about this one is new");
    assert_eq!(sidecar.metric("walsweep_target_ready{target=\"near\"}").await, 1.0);
    let () = redis::cmd("SET")
        .arg("near:item:2")
        .arg("x")
        .query_async(&mut cache.clone())
        .await
        .unwrap();
    removes(&bed, "item:2", 2).await;
    eventually(PATIENCE, "the key goes from both", async || !exists("near:item:2").await).await;
    sidecar.change(|settings| settings.targets = vec![main]);
    let (status, said) = reload(&sidecar);
    assert!(status == Some(0) && said.contains("redis `near` removed"), "{said}");
    sidecar.wait_ready().await;
    removes(&bed, "item:3", 3).await;
    let (_, page) = sidecar.get("/metrics").await.unwrap();
    assert!(!page.contains("target=\"near\""), "{page}");
    // Its watermark is left as evidence: were it added again, it would be swept.
    assert!(exists("near:walsweep:walsweep").await);
}

/// An address that stands in the way of the old configuration is what the new one mends.
#[tokio::test]
async fn a_server_that_is_away_keeps_nobody_from_another_address() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    let url = bed.postgres.url();
    let nobody = url.replace(&format!(":{}", bed.postgres.port()), ":1");
    sidecar.change(|settings| settings.postgres_url = nobody);
    sidecar.start();
    sidecar.wait_log("no session with postgres").await;
    sidecar.change(|settings| settings.postgres_url.clone_from(&url));
    let (status, said) = reload(&sidecar);
    assert!(status == Some(0) && said.contains("`postgres.url` changed"), "{said}");
    sidecar.wait_ready().await;
    removes(&bed, "item:1", 1).await;
    // While a session stands, an address where nobody answers does no better.
    let nobody = url.replace(&format!(":{}", bed.postgres.port()), ":1");
    sidecar.change(|settings| settings.postgres_url = nobody);
    let (status, said) = reload(&sidecar);
    assert_eq!(status, Some(1), "{said}");
    removes(&bed, "item:2", 2).await;
}

#[tokio::test]
async fn a_reload_while_redis_is_away_is_taken_over_and_removes_when_it_is_back() {
    let mut bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.fill(&["more:1", "item:1"]).await;
    bed.redis.pause().unwrap();
    bed.sql.run("update item set version = 1 where id = 1").await;
    sidecar.change(|settings| settings.rules = format!("{ITEM_RULES}{MORE}"));
    let (status, said) = reload(&sidecar);
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(sidecar.readyz().await, Some(503));
    bed.redis.resume().unwrap();
    bed.cache = bed.redis.connect().await.unwrap();
    bed.gone("item:1").await;
    bed.gone("more:1").await;
    sidecar.wait_ready().await;
}

/// A file that is written in parts, of which each is a configuration by itself.
#[tokio::test]
async fn a_file_that_is_being_written_is_waited_for() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    sidecar.change(|settings| settings.rules = format!("{ITEM_RULES}{MORE}"));
    assert_eq!(reload(&sidecar).0, Some(0));
    sidecar.wait_ready().await;
    let file = sidecar.folder().join("config.toml");
    let whole = fs::read_to_string(&file).unwrap();
    let half = &whole[..whole.rfind("[[rule]]").unwrap()];
    let (end, more) = (whole.replace("wide:", "far:"), Duration::from_millis(60));
    fs::write(&file, half).unwrap();
    sidecar.signal(Signal::Hup);
    sleep(more).await;
    fs::write(&file, format!("{half}\n# and more")).unwrap();
    sleep(more + more / 2).await;
    fs::write(&file, end).unwrap();
    sidecar.wait_log("rule `more` changed").await;
    let log = sidecar.log().concat();
    assert!(!log.contains("rule `more` removed"), "{log}");
}

/// A doubt that a session has swept is none of the next one.
#[tokio::test]
async fn a_reload_after_a_table_was_altered_sweeps_nothing_again() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.sql.run("alter table item alter version type int").await;
    sidecar.wait_log("sweeping keys of rule").await;
    sidecar.wait_ready().await;
    bed.settled().await;
    bed.fill(&["item:1"]).await;
    let resyncs = sidecar.metric_sum("walsweep_resyncs_total").await;
    sidecar.change(|settings| settings.sweep = "max_load = 0.5".to_owned());
    let (status, said) = reload(&sidecar);
    assert_eq!(status, Some(0), "{said}");
    sidecar.wait_ready().await;
    removes(&bed, "item:2", 2).await;
    assert!(bed.has("item:1").await, "it was swept again");
    assert_eq!(sidecar.metric_sum("walsweep_resyncs_total").await, resyncs);
}

/// Signals that come together make one reload, or two; one that comes during a reload makes one
/// that reads the file once more. A stop goes first.
#[tokio::test]
async fn signals_in_any_order_end_in_the_latest_file_and_in_a_stop() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    sidecar.signal(Signal::Hup);
    sidecar.wait_log("reading the configuration again").await;
    sleep(Duration::from_millis(150)).await;
    sidecar.change(|settings| settings.rules = format!("{ITEM_RULES}{MORE}"));
    for _ in 0..5 {
        sidecar.signal(Signal::Hup);
    }
    sidecar.wait_log("rule `more` added").await;
    sidecar.wait_ready().await;
    removes(&bed, "more:1", 1).await;
    let (_, page) = sidecar.get("/reload").await.unwrap();
    let told: Value = serde_json::from_str(&page).unwrap();
    assert_eq!(told["pid"], sidecar.id());
    assert!(told["begun"].as_u64().unwrap() <= 4, "{page}");
    // During one, and while the connection is tried again.
    sidecar.change(|settings| settings.rules = ITEM_RULES.to_owned());
    sidecar.signal(Signal::Hup);
    assert_eq!(sidecar.sigterm().await, 0);
}

/// A second one that waits takes a new configuration, too, and goes on to wait.
#[tokio::test]
async fn a_stand_in_reloads_and_stands_by() {
    let bed = Bed::new(&[]).await;
    let mut first = bed.sidecar().await;
    let mut second = Sidecar::new(bed.settings());
    second.start();
    second.wait_log("standing by").await;
    for sidecar in [&mut first, &mut second] {
        sidecar.change(|settings| settings.rules = format!("{ITEM_RULES}{MORE}"));
        let (status, said) = reload(sidecar);
        assert!(status == Some(0) && said.contains("rule `more` added"), "{said}");
    }
    first.wait_ready().await;
    let (_, why) = second.get("/readyz").await.unwrap();
    assert!(why.contains("standby"), "{why}");
    let begun = Instant::now();
    first.kill9();
    second.wait_ready().await;
    assert!(begun.elapsed() < PATIENCE);
    removes(&bed, "more:1", 1).await;
}

/// The command finds nobody, or one that it cannot reach, and says what to do.
#[tokio::test]
async fn nobody_is_told_where_nobody_runs() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(bed.settings());
    let (status, said) = reload(&sidecar);
    assert!(status == Some(1) && said.contains("no walsweep answers there"), "{said}");
}

/// Keys that only the old configuration covers, of commits before, go for a second time: what a
/// late reader stores within the refill window does not stay.
#[tokio::test]
async fn a_rule_that_goes_leaves_no_second_removal_behind() {
    let bed = Bed::new(&[]).await;
    let mut settings = bed.settings();
    settings.refill = "3s".to_owned();
    settings.rules = format!("{ITEM_RULES}{MORE}");
    let mut sidecar = Sidecar::set_up(settings).await;
    removes(&bed, "more:1", 1).await;
    bed.fill(&["more:1"]).await;
    sidecar.change(|settings| settings.rules = ITEM_RULES.to_owned());
    let began = Instant::now();
    sidecar.signal(Signal::Hup);
    // Meanwhile the stream goes on.
    while sidecar.metric("walsweep_config_reloads_total{outcome=\"applied\"}").await == 0.0 {
        removes(&bed, "item:2", 2).await;
        assert!(began.elapsed() < PATIENCE);
    }
    assert!(!bed.has("more:1").await, "a late reader's value stays for good");
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
}

/// A late reader's value is looked for within the old window, even if the new one is shorter.
#[tokio::test]
async fn a_shorter_refill_window_leaves_no_second_removal_behind() {
    let bed = Bed::new(&[]).await;
    let mut settings = bed.settings();
    settings.refill = "3s".to_owned();
    let mut sidecar = Sidecar::set_up(settings).await;
    removes(&bed, "item:1", 1).await;
    let began = Instant::now();
    bed.fill(&["item:1"]).await;
    sidecar.change(|settings| settings.refill = "100ms".to_owned());
    let (status, said) = reload(&sidecar);
    assert!(status == Some(0) && said.contains("`refill.window` changed"), "{said}");
    assert!(!bed.has("item:1").await, "a late reader's value stays for good");
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
}

/// To the next session all comes again that is not confirmed, and the new rules would give none of
/// it: so the old ones have that session, too.
#[tokio::test]
async fn a_session_that_ends_while_keys_of_the_old_rules_are_finished_is_followed_by_another() {
    let bed = Bed::new(&[]).await;
    let both = Settings {
        rules: format!("{ITEM_RULES}{MORE}"),
        refill: "4s".to_owned(),
        ..bed.settings()
    };
    let mut sidecar = Sidecar::set_up(both).await;
    bed.settled().await;
    bed.fill(&["more:1"]).await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    bed.gone("more:1").await;
    // Of a reader that saw the row of before.
    bed.fill(&["more:1"]).await;
    sidecar.change(|settings| settings.rules = ITEM_RULES.to_owned());
    sidecar.signal(Signal::Hup);
    sidecar.wait_log("reading the configuration again").await;
    sleep(Duration::from_millis(1500)).await;
    let ended = "select pg_terminate_backend(active_pid) from pg_replication_slots";
    assert!(bed.sql.one::<bool>(ended).await);
    sidecar.wait_log("the configuration is read").await;
    bed.gone("more:1").await;
    assert!(sidecar.log().iter().all(|line| !line.contains("may stay")));
}

/// Who opens a pipe waits until somebody writes into it.
#[tokio::test]
async fn a_pipe_in_place_of_the_file_is_refused_and_stops_nothing() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    let file = sidecar.folder().join("config.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    sidecar.signal(Signal::Hup);
    sidecar.wait_log("it is no regular file").await;
    removes(&bed, "item:1", 1).await;
    fs::remove_file(&file).unwrap();
    fs::write(&file, text.replace("item:{id}", "item:{id}:x")).unwrap();
    let (status, said) = reload(&sidecar);
    assert!(status == Some(0) && said.contains("rule `item` changed"), "{said}");
    removes(&bed, "item:2:x", 2).await;
}

/// Whoever has the port while walsweep is down may name any process, and most end of the signal.
#[tokio::test]
async fn a_process_that_is_no_walsweep_is_sent_no_signal() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(bed.settings());
    let mut victim = Command::new("sleep").arg("600").spawn().unwrap();
    let told = Told { process: Process::of(victim.id()), ..Told::default() };
    let body = serde_json::to_string(&told).unwrap();
    let listener = std::net::TcpListener::bind(("127.0.0.1", sidecar.http_port())).unwrap();
    let liar = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}").unwrap();
    });
    let (status, said) = reload(&sidecar);
    liar.join().unwrap();
    let is_alive = victim.try_wait().unwrap().is_none();
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(is_alive, "it got the signal: {said}");
    assert!(status == Some(1) && said.contains("which is no walsweep"), "{said}");
}

/// Another walsweep has the address that the file names: it reads its own file again.
#[tokio::test]
async fn a_file_that_nobody_reads_is_not_told_as_taken_over() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    let settings = Settings { name: "mine".to_owned(), ..bed.settings() };
    let mine = Sidecar::new_at(settings, sidecar.http_port());
    let (status, said) = reload(&mine);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("runs with another file than this"), "{said}");
}

/// Whoever mends one kind of problem would else meet the next: what needs a restart, what Redis
/// does not allow, what is not in the database.
#[tokio::test]
async fn problems_of_several_kinds_are_told_at_once() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    admin(&bed, "ACL SETUSER poor on nopass ~* &* +@all -unlink").await;
    let poor = bed.redis.url().replace("redis://", "redis://poor:any@");
    let missing = MORE.replace("public.item", "public.team");
    sidecar.change(|settings| {
        settings.redis_url = poor;
        settings.rules = format!("{ITEM_RULES}{missing}");
        settings.audit = "file = \"audit.jsonl\"".to_owned();
    });
    let (status, said) = reload(&sidecar);
    assert_eq!(status, Some(1), "{said}");
    for part in
        ["audit.file: it is read at the start alone", "+unlink", "there is no table `public.team`"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(said.ends_with("the old one stays in force\n"), "{said}");
    removes(&bed, "item:1", 1).await;
}
