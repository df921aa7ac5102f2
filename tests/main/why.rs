//! `walsweep why KEY`: who removed a key, when, for which transaction; or why nobody did.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use serde_json::Value;
use walsweep_stage::throwaway::{Redis, RedisOptions};

use crate::support::{Bed, ITEM_RULES, PATIENCE, Settings, Sidecar, eventually, text};
use crate::visibility::{GHOST, release, stuck};

/// The words of `why`, with its exit status.
fn why(sidecar: &Sidecar, key: impl AsRef<OsStr>) -> (i32, String) {
    let output = sidecar.command(&[OsStr::new("why"), key.as_ref()]);
    (output.status.code().unwrap(), text(&output))
}

/// The object of `why --json`.
fn json(sidecar: &Sidecar, key: impl AsRef<OsStr>) -> Value {
    let output = sidecar.command(&[OsStr::new("why"), key.as_ref(), OsStr::new("--json")]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
}

/// Fails unless `why` ends so, and says all of this.
#[track_caller]
fn assert_says(sidecar: &Sidecar, key: impl AsRef<OsStr>, status: i32, parts: &[&str]) {
    let (ended, said) = why(sidecar, key);
    assert_eq!(ended, status, "{said}");
    for part in parts {
        assert!(said.contains(part), "it does not say `{part}`: {said}");
    }
}

/// Waits until `why` says this.
async fn says(sidecar: &Sidecar, key: &str, part: &str) {
    let said = || async { why(sidecar, key).1.contains(part) };
    eventually(PATIENCE, &format!("why {key} says `{part}`"), said).await;
}

#[tokio::test]
async fn a_removal_is_told_with_its_transaction_its_rule_and_its_times() {
    let bed = Bed::new(&[]).await;
    let mut sidecar =
        Sidecar::set_up(Settings { refill: "300ms".to_owned(), ..bed.settings() }).await;
    bed.settled().await;
    bed.fill(&["item:1", "list:team 1:a"]).await;
    bed.sql.run("begin; update item set version = 987654321 where id = 1").await;
    let xid = bed.sql.one::<String>("select pg_current_xact_id()::text").await;
    bed.sql.run("commit").await;
    bed.gone("list:team 1:a").await;
    says(&sidecar, "item:1", "rule `item`; removed again ").await;
    let transaction = format!("after the commit of transaction {xid} (0/");
    assert_says(&sidecar, "item:1", 0, &["`item:1` was removed ", " ago (2", &transaction]);
    assert_says(&sidecar, "item:1", 0, &["): rule `item`; removed again "]);
    // Of one that was never there it can say no more, either.
    let either = "\nWhether the key was there is not known: walsweep removes it either way.\n";
    for key in ["item:1", "list:team 1:never there"] {
        let (status, said) = why(&sidecar, key);
        assert!(status == 0 && said.ends_with(either), "{said}");
    }
    let pattern = "rule `item`, pattern `list:team 1:*`; removed again ";
    assert_says(&sidecar, "list:team 1:a", 0, &[&transaction, pattern]);
    // It was swept with everything when walsweep began, before.
    assert_says(&sidecar, "item:1", 0, &["\nIt was removed ", "(`watermark_missing`)"]);
    let told = json(&sidecar, "item:1");
    let removal = &told["removals"][0];
    assert_eq!(removal["cause"], "transaction", "{told:#}");
    assert_eq!(removal["xid"].to_string(), xid, "{told:#}");
    assert_eq!(removal["by"][0]["as"], "key", "{told:#}");
    assert_eq!(removal["by"][0]["name"], "item:1", "{told:#}");
    let times = ["committed", "received", "visible", "removed", "removed_again"];
    let times = times.map(|name| removal[name].as_str().unwrap().to_owned());
    assert!(times[1..].is_sorted() && times[0] <= times[3], "{times:?}");
    // I9: of the row there is what stands in keys.
    assert!(!told.to_string().contains("987654321"), "{told:#}");
    // Nothing is remembered of a process before.
    assert_eq!(sidecar.sigterm().await, 0);
    let nobody = "No walsweep that knows the question answers at 127.0.0.1:";
    let unknown = "It is not known whether `item:1` was removed.";
    assert_says(
        &sidecar,
        "item:1",
        1,
        &[unknown, nobody, "Rule `item` can give it, by `item:{id}`"],
    );
    sidecar.start();
    sidecar.wait_ready().await;
    assert_says(&sidecar, "item:1", 1, &["Nothing that is remembered removed `item:1` since 2"]);
}

#[tokio::test]
async fn a_key_that_no_rule_gives_is_told_with_the_nearest() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    let none = "No rule gives `itm:1`: walsweep does not remove it by itself.";
    assert!(!why(&sidecar, "itm:1").1.contains("either way"));
    assert_says(&sidecar, "itm:1", 1, &[none, "The nearest is `item:{id}`, of rule `item`."]);
    let told = json(&sidecar, "session:9");
    assert_eq!((&told["found"], told["rules"].as_array().unwrap().len()), (&Value::Bool(false), 0));
    assert!(!told["why_not"][0].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn a_key_of_any_bytes_is_asked_for_as_it_is() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create table raw (id bytea primary key)").await;
    let rules = ITEM_RULES.replace("public.item", "public.raw").replace(", \"list:{team}:*\"", "");
    let sidecar = Sidecar::set_up(Settings { rules, ..bed.settings() }).await;
    bed.settled().await;
    bed.sql.run("insert into raw values ('\\xff00')").await;
    bed.settled().await;
    // As text it is what psql shows.
    assert_says(&sidecar, "item:\\xff00", 0, &["was removed ", "rule `item`."]);
    // What no text can be is covered by a pattern, as by the sweep at the start.
    let key =
        OsString::from_vec(b"item:\xff\x00".iter().copied().filter(|byte| *byte > 0).collect());
    let (status, said) = why(&sidecar, &key);
    assert!(status == 0 && said.contains("`item:\\xff` was removed"), "{said}");
    assert_eq!(json(&sidecar, &key)["key"]["hex"], "6974656d3aff");
}

const LOOKUP_RULES: &str = r#"
[lookup.club]
sql = "select label from club where id = $1"
params = ["id"]

[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}", "list:{team}:*"]

[[rule]]
name = "club"
table = "public.item"
operations = ["update"]
keys = ["club:{club.label}"]
"#;

#[tokio::test]
async fn a_widened_rule_says_why() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create table club (id int primary key, label text)").await;
    let rules = LOOKUP_RULES.to_owned();
    let sidecar = Sidecar::set_up(Settings { rules, ..bed.settings() }).await;
    bed.settled().await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    says(&sidecar, "club:none", "after the commit of").await;
    let row = "rule `club`, pattern `club:*`, widened because its lookup found no row \
               (`lookup_no_row`";
    assert_says(&sidecar, "club:none", 0, &[row]);
    assert_says(&sidecar, "item:1", 0, &["): rule `item`.\n"]);
    bed.sql.run("insert into item select id, 'x' || id from generate_series(1000, 2500) id").await;
    says(&sidecar, "list:none:1", "after the commit of").await;
    let limit = "pattern `list:*:*`, widened because there were too many keys (`limit`)";
    assert_says(&sidecar, "list:none:1", 0, &[limit]);
    bed.sql.run("truncate item").await;
    says(&sidecar, "item:77777", "after the commit of").await;
    assert_says(&sidecar, "item:77777", 0, &["the table was truncated (`truncate`, 2 times)"]);
    let told = json(&sidecar, "item:77777");
    let widened = &told["removals"][0]["by"][0]["widened"][0];
    assert_eq!((&widened["reason"], &widened["count"]), (&"truncate".into(), &2.into()));
}

#[tokio::test]
async fn a_commit_that_nobody_sees_is_why_its_key_stays() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.postgres.conf(GHOST).await.unwrap();
    let writer = stuck(&bed, "update item set version = 1 where id = 1").await;
    says(&sidecar, "item:1", "`item:1` is to be removed for transaction ").await;
    // It was swept before.
    let (_, said) = why(&sidecar, "item:1");
    assert_eq!(said.matches("Whether the key was there").count(), 1, "{said}");
    assert_says(&sidecar, "item:1", 0, &[", which readers cannot see yet: rule `item`."]);
    assert!(json(&sidecar, "item:1")["removals"][0]["visible"].is_null());
    release(&bed).await;
    writer.await.unwrap();
    says(&sidecar, "item:1", "`item:1` was removed ").await;
    bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();
}

#[tokio::test]
async fn a_redis_that_is_away_is_why_a_key_stays() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.redis.pause().unwrap();
    bed.sql.run("update item set version = 1 where id = 1").await;
    says(&sidecar, "item:1", " and is on its way to Redis: rule `item`.").await;
    says(&sidecar, "item:1", "walsweep says: redis is out of reach").await;
    bed.redis.resume().unwrap();
    says(&sidecar, "item:1", "`item:1` was removed ").await;
    assert_says(&sidecar, "item:1", 0, &[" after the commit of transaction "]);
}

#[tokio::test]
async fn a_suspended_rule_is_why_a_key_stays() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.sql.run("alter table item drop column team").await;
    sidecar.wait_log("rule `item` is suspended: ").await;
    // All may be confirmed before, and a start sweeps what was not swept to its end.
    sidecar.wait_log("swept reason=\"tables_changed\"").await;
    bed.settled().await;
    // What it gave is swept once. After that it is remembered by the process alone.
    says(&sidecar, "item:1", "by a sweep of what may be stale").await;
    assert_eq!(sidecar.sigterm().await, 0);
    sidecar.start();
    eventually(PATIENCE, "it streams", || async { sidecar.readyz().await == Some(503) }).await;
    says(&sidecar, "item:1", "Nothing that is remembered removed `item:1`").await;
    says(&sidecar, "item:1", "Rule `item` gives it by `item:{id}`, and is suspended").await;
    assert_eq!(json(&sidecar, "item:1")["rules"][0]["suspended"], true);
}

/// Each target has the keys of its rules, under its prefix.
#[tokio::test]
async fn each_target_is_told_by_its_name() {
    let bed = Bed::new(&[]).await;
    let near = Redis::start(RedisOptions::default()).await.unwrap();
    bed.sql.run("create table twin (id int primary key, version int)").await;
    let twin = "[[rule]]\nname = \"twin\"\ntable = \"public.twin\"\nkeys = [\"item:{id}\"]\n";
    let target = |name: &str, url: String, rules: &str, prefix: &str| {
        format!("name = {name:?}\nurl = {url:?}\nrules = [{rules}]\nprefix = {prefix:?}")
    };
    let sidecar = Sidecar::set_up(Settings {
        rules: format!("{ITEM_RULES}{twin}"),
        refill: "300ms".to_owned(),
        targets: vec![
            target("main", bed.redis.url(), "\"item\"", ""),
            target("near", near.url(), "\"*\"", "app:"),
        ],
        ..bed.settings()
    })
    .await;
    bed.settled().await;
    bed.sql.run("update item set version = 1 where id = 1; insert into twin values (2, 0)").await;
    for (key, target, rule) in
        [("item:1", "main", "item"), ("app:item:1", "near", "item"), ("app:item:2", "near", "twin")]
    {
        says(&sidecar, key, &format!("rule `{rule}`; removed again ")).await;
        let told = json(&sidecar, key);
        let removal = &told["removals"][0];
        assert_eq!((&removal["target"], &removal["by"][0]["rule"]), (&target.into(), &rule.into()));
        assert_eq!(removal["cause"], "transaction", "{told:#}");
    }
    // A rule that goes elsewhere.
    let of_main = json(&sidecar, "item:2");
    let causes = of_main["removals"].as_array().unwrap().iter().map(|one| &one["cause"]);
    assert!(causes.clone().all(|cause| cause == "sweep"), "{of_main:#}");
    assert_says(&sidecar, "lost:1", 1, &["No rule gives `lost:1`"]);
    // It is slow, and delays no other.
    near.pause().unwrap();
    bed.sql.run("update item set version = 2 where id = 3").await;
    says(&sidecar, "item:3", "rule `item`; removed again ").await;
    says(&sidecar, "app:item:3", " and is on its way to Redis").await;
    near.resume().unwrap();
    says(&sidecar, "app:item:3", "rule `item`; removed again ").await;
}

/// Redis says of a whole removal that it refused some, and not which.
#[tokio::test]
async fn a_key_that_redis_refuses_is_not_told_as_removed() {
    let bed = Bed::new(&[]).await;
    let cache = bed.cache.clone();
    let set = async |words: &[&str]| {
        let mut user = redis::cmd("ACL");
        user.arg("SETUSER").arg("limited").arg(words);
        user.exec_async(&mut cache.clone()).await.unwrap();
    };
    set(&["on", "nopass", "~*", "&*", "+@all"]).await;
    let mut settings = bed.settings();
    settings.redis_url = bed.redis.url().replace("redis://", "redis://limited:any@");
    let sidecar = Sidecar::set_up(settings).await;
    set(&["resetkeys", "~list:*", "~walsweep*"]).await;
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    says(&sidecar, "item:1", "was removed, or Redis refused to, ").await;
    says(&sidecar, "item:1", "Redis refused some keys of this removal, this one or others").await;
    assert_says(&sidecar, "item:1", 0, &["and `/readyz` says why it does not"]);
    assert!(bed.has("item:1").await);
    set(&["~*"]).await;
    bed.gone("item:1").await;
    says(&sidecar, "item:1", "at first, this one or others: they are gone since 2").await;
    assert!(!why(&sidecar, "item:1").1.contains("or Redis refused to"));
}

/// I9: what the page tells without `[http] keys`, and to whom.
#[tokio::test]
async fn keys_are_told_to_the_command_and_to_others_where_the_configuration_says_so() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    says(&sidecar, "item:1", "after the commit of").await;
    let ask = |sidecar: &Sidecar| {
        let (port, asked) = (sidecar.http_port(), "/why?key=item:1");
        as_a_browser(port, asked)
    };
    assert_eq!(ask(&sidecar).await.0, 403);
    assert_eq!(sidecar.get("/why?key=item:1").await.unwrap().0, 200, "as the command asks");
    assert_eq!(sidecar.get("/why").await.unwrap().0, 400);
    assert_eq!(sidecar.sigterm().await, 0);
    sidecar.change(|settings| "keys = true".clone_into(&mut settings.http));
    sidecar.start();
    sidecar.wait_ready().await;
    bed.sql.run("update item set version = 2 where id = 1").await;
    says(&sidecar, "item:1", "after the commit of").await;
    let (status, body) = ask(&sidecar).await;
    assert!(status == 200 && body.contains("\"rule\":\"item\""), "{status} {body}");
}

/// Asks as a browser does.
async fn as_a_browser(port: u16, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut reply))
        .await
        .unwrap()
        .unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The file was changed since, or a reload of it was refused: then the process goes by others.
#[tokio::test]
async fn that_the_process_runs_with_other_rules_than_the_file_is_told() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    let others = "The process runs with other rules than the file";
    let tells = |sidecar: &Sidecar, key: &str| why(sidecar, key).1.contains(others);
    assert!(!tells(&sidecar, "item:1") && !tells(&sidecar, "more:1"));
    assert_eq!(json(&sidecar, "item:1")["same_rules"], true);
    // The same keys, of other changes.
    let condition = "[[rule]]\nwhen = \"new.team == 'x'\"";
    let changed = ITEM_RULES.replace("[[rule]]", condition);
    sidecar.change(|settings| settings.rules = changed);
    assert!(tells(&sidecar, "item:1") && tells(&sidecar, "more:1"));
    assert_eq!(json(&sidecar, "more:1")["same_rules"], false);
    let output = sidecar.command(&["reload"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!tells(&sidecar, "item:1"));
    // In another order they are the same rules.
    let second = ITEM_RULES.replace("\"item\"", "\"second\"");
    sidecar.change(|settings| settings.rules = format!("{ITEM_RULES}{second}"));
    let output = sidecar.command(&["reload"]);
    assert!(output.status.success(), "{}", text(&output));
    sidecar.change(|settings| settings.rules = format!("{second}{ITEM_RULES}"));
    assert!(!tells(&sidecar, "item:1"));
    // Who the targets are counts, too.
    sidecar.change(|settings| settings.redis = "prefix = \"p:\"".to_owned());
    assert!(tells(&sidecar, "item:1"));
}
