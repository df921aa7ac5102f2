//! `walsweep probe`: a key of its own goes from every Redis by a commit that touches no table;
//! where it does not, the probe says why.

use std::process::Output;
use std::time::Duration;

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use redis::cmd;
use tokio::task::spawn_blocking;
use walsweep_stage::throwaway::{Redis, RedisOptions, Signal, signal};

use crate::cluster::Shop;
use crate::support::{Bed, ITEM_RULES, PATIENCE, Settings, Sidecar, always, eventually, text};
use crate::visibility::{GHOST, waits};

const NONCE: &str = "0123456789abcdef0123456789abcdef";

fn settings(bed: &Bed) -> Settings {
    Settings { postgres: "probe = true".to_owned(), ..bed.settings() }
}

async fn sidecar(bed: &Bed) -> Sidecar {
    Sidecar::set_up(settings(bed)).await
}

/// The names of canaries in a Redis, whatever their prefix.
async fn canaries(cache: &MultiplexedConnection) -> Vec<String> {
    let mut all = cmd("KEYS");
    all.arg("*:probe*").query_async(&mut cache.clone()).await.unwrap()
}

/// Probes; gives whether it is well, and what it says.
fn probe(sidecar: &Sidecar, more: &[&str]) -> (bool, String) {
    let output = run(sidecar, more);
    let said = text(&output);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{said}");
    (output.status.success(), said)
}

fn run(sidecar: &Sidecar, more: &[&str]) -> Output {
    sidecar.command(&[&["probe"], more].concat())
}

/// The milliseconds in `gone after 1.2 ms`, if a line says that and no more.
fn after(line: &str) -> Option<f64> {
    line.strip_prefix("gone after ")?.strip_suffix(" ms")?.parse().ok()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(output)))
}

#[tokio::test]
async fn a_probe_says_how_long_it_took_and_touches_nothing_else() {
    let bed = Bed::new(&[]).await;
    let sidecar = sidecar(&bed).await;
    bed.settled().await;
    bed.marked().await;
    bed.fill(&["item:1", "list:team 1:a", "other"]).await;
    let (coverage, matches) =
        (text(&sidecar.command(&["coverage"])), "walsweep_rule_matches_total");
    let (is_well, said) = probe(&sidecar, &[]);
    assert!(is_well, "{said}");
    let milliseconds = after(said.trim_end()).unwrap_or_else(|| panic!("{said}"));
    assert!((0.0..10_000.0).contains(&milliseconds), "{said}");
    let output = run(&sidecar, &["--json", "--timeout", "20"]);
    let told = json(&output);
    assert!(output.status.success() && told["gone"] == true, "{told}");
    assert_eq!(
        (&told["timeout_seconds"], &told["targets"][0]["target"]),
        (&20.into(), &"redis".into())
    );
    assert_eq!(told["targets"][0]["state"], "gone");
    assert!(told["targets"][0]["after_ms"].as_f64().is_some() && told.get("reason").is_none());

    bed.settled().await;
    for key in ["item:1", "list:team 1:a", "other"] {
        assert!(bed.has(key).await, "{key}");
    }
    assert_eq!(canaries(&bed.cache).await, [""; 0]);
    assert_eq!(text(&sidecar.command(&["coverage"])), coverage);
    let of = |name: &str| format!("{name}{{rule=\"walsweep.probe\"}}");
    let gone = || async { sidecar.metric(&of("walsweep_keys_removed_total")).await >= 2.0 };
    eventually(PATIENCE, "both are counted", gone).await;
    assert_eq!(sidecar.metric(&of(matches)).await.to_string(), "2");
    assert_eq!(sidecar.metric_sum(matches).await.to_string(), "2", "no rule looks at it");
    assert!(sidecar.metric_sum("walsweep_resyncs_total").await < 2.0, "the first one alone");
    sidecar.wait_log("rule `walsweep.probe` 1 key").await;
    sidecar.assert_quiet(&["watermark_missing"]);
}

/// A configuration that was written before there was a probe needs no sweep.
#[tokio::test]
async fn it_works_after_a_second_removal_and_a_restart_sweeps_nothing() {
    let bed = Bed::new(&[]).await;
    let settings = Settings { refill: "200ms".to_owned(), observe: true, ..settings(&bed) };
    let mut sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    let (is_well, said) = probe(&sidecar, &[]);
    assert!(is_well, "{said}");
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.fill(&["item:1"]).await;
    sidecar.start();
    sidecar.wait_ready().await;
    let (is_well, said) = probe(&sidecar, &[]);
    assert!(is_well && bed.has("item:1").await, "{said}");
    sidecar.assert_quiet(&["watermark_missing"]);
}

#[tokio::test]
async fn of_two_targets_each_is_told_by_name_and_one_that_is_down_hides_no_other() {
    let bed = Bed::new(&[]).await;
    let mut near = Redis::start(RedisOptions::default()).await.unwrap();
    let of = |name: &str, url: String, rule: &str| {
        format!("name = {name:?}\nurl = {url:?}\nrules = [{rule:?}]\n")
    };
    // No key of a rule goes to both.
    let twin = "[[rule]]\nname = \"twin\"\nmessage = \"twin\"\nkeys = [\"twin:*\"]\n";
    let settings = Settings {
        targets: vec![
            of("main", bed.redis.url(), "item"),
            of("near", near.url(), "twin") + "prefix = \"app:\"",
        ],
        rules: format!("{ITEM_RULES}\n{twin}"),
        ..settings(&bed)
    };
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    let (is_well, said) = probe(&sidecar, &[]);
    let of_name = |(line, name): (&str, &str)| after(line.strip_prefix(name)?);
    let told = said.lines().zip(["main: ", "near: "]).filter_map(of_name);
    assert!(is_well && told.count() == 2 && said.lines().count() == 2, "{said}");
    assert_eq!(canaries(&near.connect().await.unwrap()).await, [""; 0]);

    near.stop().await.unwrap();
    let (is_well, said) = probe(&sidecar, &[]);
    let first = said.lines().next().unwrap();
    assert!(!is_well && after(first.strip_prefix("main: ").unwrap()).is_some(), "{said}");
    assert!(said.contains("near: not known: connect to redis at"), "{said}");
    assert!(said.contains("nothing is proven of redis `near`"), "{said}");
    let told = json(&run(&sidecar, &["--json"]));
    assert_eq!((&told["gone"], &told["targets"][0]["state"]), (&false.into(), &"gone".into()));
    assert_eq!(
        (&told["targets"][1]["target"], &told["targets"][1]["state"]),
        (&"near".into(), &"unknown".into())
    );
    assert_eq!(canaries(&bed.cache).await, [""; 0]);
}

/// The nonce decides which primary it is.
#[tokio::test]
async fn a_probe_finds_the_primary_of_a_cluster() {
    let shop = Shop::start(3, 0).await;
    let sidecar =
        Sidecar::set_up(Settings { postgres: "probe = true".to_owned(), ..shop.settings() }).await;
    for _ in 0..6 {
        let (is_well, said) = probe(&sidecar, &[]);
        assert!(is_well && after(said.trim_end()).is_some(), "{said}");
    }
    assert_eq!(shop.names("*:probe*").await, [""; 0]);
}

#[tokio::test]
async fn where_nobody_removes_it_the_probe_says_so_and_takes_it_back() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = Sidecar::new(settings(&bed));
    let (is_well, said) = probe(&sidecar, &["--timeout", "1"]);
    assert!(!is_well && said.contains("not gone after 1 s"), "{said}");
    assert!(said.contains("no walsweep runs: there is no slot `walsweep`"), "{said}");
    sidecar.setup();
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;

    sidecar.signal(Signal::Stop);
    let (is_well, said) = probe(&sidecar, &["--timeout", "1"]);
    assert!(!is_well && said.contains("somebody streams from slot `walsweep`"), "{said}");
    assert_eq!(canaries(&bed.cache).await, [""; 0]);
    sidecar.signal(Signal::Cont);
    let (is_well, said) = probe(&sidecar, &[]);
    assert!(is_well, "{said}");

    assert_eq!(sidecar.sigterm().await, 0);
    let output = run(&sidecar, &["--timeout", "1", "--json"]);
    let told = json(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert_eq!((&told["gone"], &told["targets"][0]["state"]), (&false.into(), &"stays".into()));
    assert_eq!(told["reason"], "no walsweep runs: nobody streams from slot `walsweep`");
    assert!(told["hint"].as_str().unwrap().contains("`walsweep run`"), "{told}");
    assert_eq!(canaries(&bed.cache).await, [""; 0]);
}

/// It is ready, and removes keys elsewhere; to a probe an older walsweep looks the same.
#[tokio::test]
async fn of_a_walsweep_that_is_ready_and_does_not_know_it_the_probe_says_what_that_may_be() {
    let bed = Bed::new(&[]).await;
    let other = Redis::start(RedisOptions::default()).await.unwrap();
    let sidecar = sidecar(&bed).await;
    bed.settled().await;
    let settings = Settings { redis_url: other.url(), ..settings(&bed) };
    let elsewhere = Sidecar::new_at(settings, sidecar.http_port());
    let (is_well, said) = probe(&elsewhere, &["--timeout", "1"]);
    assert!(!is_well && said.contains("that it is ready, and has not removed"), "{said}");
    assert!(said.contains("it is older than this program"), "{said}");
    assert_eq!(canaries(&other.connect().await.unwrap()).await, [""; 0]);
}

/// The reason is what `/readyz` says.
#[tokio::test]
async fn a_walsweep_that_is_not_ready_says_why_itself() {
    let bed = Bed::new(&[]).await;
    let other = Redis::start(RedisOptions::default()).await.unwrap();
    let sidecar = sidecar(&bed).await;
    let mut second = Sidecar::new(settings(&bed));
    second.start();
    second.wait_log("standing by").await;
    // Through either: the one that streams removes it.
    for one in [&sidecar, &second] {
        let (is_well, said) = probe(one, &[]);
        assert!(is_well && after(said.trim_end()).is_some(), "{said}");
    }
    let settings = Settings { redis_url: other.url(), ..settings(&bed) };
    let elsewhere = Sidecar::new_at(settings, second.http_port());
    let (is_well, said) = probe(&elsewhere, &["--timeout", "1"]);
    assert!(!is_well && said.contains("walsweep answers at") && said.contains("standby"), "{said}");
    drop(sidecar);
    second.wait_ready().await;
    let (is_well, said) = probe(&second, &[]);
    assert!(is_well, "{said}");
}

#[tokio::test]
async fn a_commit_that_hangs_ends_the_probe_in_time_and_is_named() {
    let bed = Bed::new(&[]).await;
    let sidecar = sidecar(&bed).await;
    bed.settled().await;
    bed.postgres.conf(GHOST).await.unwrap();
    let child = sidecar.spawn(&["probe", "--timeout", "3"]);
    waits(&bed).await;
    let stays = || async { canaries(&bed.cache).await.len() == 1 };
    always(Duration::from_secs(1), "what nobody sees removes nothing (I1)", stays).await;
    let output = spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
    let (is_well, said) = (output.status.success(), text(&output));
    assert!(!is_well && said.contains("has not returned in time"), "{said}");
    assert!(said.contains("a synchronous standby") && said.contains("`ghost`"), "{said}");
    assert_eq!(canaries(&bed.cache).await, [""; 0]);
    let over = || async {
        let waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
        bed.sql.one::<i64>(waits).await == 0
    };
    eventually(PATIENCE, "its session waits no longer in the server", over).await;
    bed.postgres.conf("synchronous_standby_names = ''").await.unwrap();
    let (is_well, said) = probe(&sidecar, &[]);
    assert!(is_well, "{said}");
}

/// Whoever may connect to the database may write messages.
#[tokio::test]
async fn a_forged_message_removes_nothing() {
    let bed = Bed::new(&[]).await;
    let sidecar = sidecar(&bed).await;
    bed.settled().await;
    bed.marked().await;
    let canary = format!("walsweep:walsweep:probe:{NONCE}");
    let upper = NONCE.to_uppercase();
    let odd = format!("walsweep:walsweep:probe:{upper}");
    let keys = [
        "item:1",
        "list:team 1:a",
        &canary,
        &odd,
        "walsweep:walsweep:probe:*",
        "walsweep:walsweep:probe:",
    ];
    bed.fill(&keys).await;
    let long = format!("{NONCE}0");
    let contents = ["", "*", "item:1", "walsweep:walsweep", &canary, &upper, &long, "../walsweep"];
    for content in contents {
        let forged = "select pg_logical_emit_message(true, 'walsweep.probe', $1)";
        bed.sql.client().execute(forged, &[&content]).await.unwrap();
    }
    bed.sql
        .run("select pg_logical_emit_message(true, 'walsweep.probe', repeat('0', 2097152))")
        .await;
    let emit = |transactional: bool, prefix: &str| {
        format!("select pg_logical_emit_message({transactional}, '{prefix}', '{NONCE}')")
    };
    bed.sql.run(&emit(false, "walsweep.probe")).await;
    bed.sql.run(&emit(true, "walsweep.probes")).await;
    bed.sql.run(&format!("begin; {}; rollback", emit(true, "walsweep.probe"))).await;
    bed.settled().await;
    for key in keys {
        assert!(bed.has(key).await, "{key}");
    }
    assert!(bed.watermark().await.is_some());
    let malformed = |reason| format!("walsweep_messages_malformed_total{{reason=\"{reason}\"}}");
    let uncovered = sidecar.metric(&malformed("not_covered")).await;
    assert_eq!(uncovered.to_string(), (contents.len() + 1).to_string());
    assert_eq!(sidecar.metric(&malformed("not_transactional")).await.to_string(), "1");
    // The one that is as it should be removes its canary, and that alone.
    bed.sql.run(&emit(true, "walsweep.probe")).await;
    bed.gone(&canary).await;
    bed.settled().await;
    for key in keys.into_iter().filter(|key| *key != canary) {
        assert!(bed.has(key).await, "{key}");
    }
    sidecar.assert_quiet(&["watermark_missing", "a message removes nothing"]);
}

/// A sweep of everything spares them, too.
#[tokio::test]
async fn an_interrupted_probe_takes_its_canary_back_and_one_that_is_killed_leaves_it_for_a_while() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(settings(&bed));
    sidecar.setup();
    for end in [Signal::Int, Signal::Term, Signal::Kill] {
        let child = sidecar.spawn(&["probe", "--timeout", "300"]);
        let placed = || async { !canaries(&bed.cache).await.is_empty() };
        eventually(PATIENCE, "the canary is there", placed).await;
        let canary = canaries(&bed.cache).await.remove(0);
        let left: i64 = bed.cache.clone().pttl(&canary).await.unwrap();
        assert!((300_000..=360_000).contains(&left), "{left} ms");
        let swept = text(&sidecar.command(&["sweep", "*", "--force"]));
        assert!(bed.has(&canary).await, "{swept}");
        signal(&[child.id()], end).unwrap();
        let output = spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
        let stays = end == Signal::Kill;
        assert_eq!(bed.has(&canary).await, stays, "{}", text(&output));
        if !stays {
            assert_eq!(output.status.code(), Some(1), "{}", text(&output));
            assert!(text(&output).contains("interrupted"), "{}", text(&output));
        }
    }
}

#[tokio::test]
async fn a_probe_that_cannot_begin_says_what_is_wrong() {
    let bed = Bed::new(&[]).await;
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    let sidecar = Sidecar::new(Settings { postgres_url: standby.url(), ..settings(&bed) });
    let (is_well, said) = probe(&sidecar, &[]);
    assert!(
        !is_well && said.contains("is a standby") && said.contains("name the primary"),
        "{said}"
    );
    assert_eq!(canaries(&bed.cache).await, [""; 0]);

    let mut sidecar = Sidecar::set_up(settings(&bed)).await;
    bed.sql.run("create role reader login").await;
    bed.sql
        .run("revoke execute on function pg_logical_emit_message(boolean, text, text) from public")
        .await;
    let url = bed.postgres.url().replace("postgres@", "reader@");
    sidecar.change(|settings| settings.postgres_url = url);
    let (is_well, said) = probe(&sidecar, &[]);
    assert!(!is_well && said.contains("grant execute on function"), "{said}");
    assert_eq!(canaries(&bed.cache).await, [""; 0]);

    sidecar.change(|settings| settings.redis_url = "redis://127.0.0.1:1".to_owned());
    let told = json(&run(&sidecar, &["--json"]));
    assert_eq!((&told["gone"], &told["targets"][0]["state"]), (&false.into(), &"unknown".into()));
    assert!(told["reason"].as_str().unwrap().contains("no redis took the probe's key"), "{told}");
    sidecar.change(|settings| settings.rules = "[[rule]]\nname = \"item\"".to_owned());
    assert_eq!(run(&sidecar, &[]).status.code(), Some(78));
    let output = sidecar.command(&["probe", "--timeout", "0"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

/// It goes through the gate as every key does, while the transaction is large and streamed.
#[tokio::test]
async fn probes_are_answered_while_much_else_is_written() {
    let bed = Bed::new(&[]).await;
    let sidecar = sidecar(&bed).await;
    bed.settled().await;
    bed.sql
        .run("begin; insert into item select id, 'x', 0 from generate_series(101, 50000) id")
        .await;
    let started = tokio::time::Instant::now();
    let (is_well, said) = probe(&sidecar, &[]);
    assert!(is_well && started.elapsed() < Duration::from_secs(10), "{said}");
    bed.sql.run("commit").await;
    let (is_well, said) = probe(&sidecar, &[]);
    assert!(is_well, "{said}");
}
