//! How it stops, and how another takes over.

use std::time::Duration;

use tokio::time::sleep;

use crate::support::{Bed, PATIENCE, Sidecar, eventually};

/// I2: a clean stop confirms what is done, so that the next start repeats nothing.
#[tokio::test]
async fn a_clean_stop_drains_confirms_and_exits_with_0() {
    let bed = Bed::new(&[]).await;
    let mut settings = bed.settings();
    settings.refill = "500ms".to_owned();
    let mut sidecar = Sidecar::set_up(settings).await;
    bed.fill(&["item:1"]).await;
    // Nobody else may write behind the commit, so that the log ends with it.
    bed.quiet().await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    let position = bed.position().await;
    // What has arrived is drained; what has not is Postgres's to send again.
    eventually(PATIENCE, "the commit arrives", || async {
        sidecar.metric("walsweep_transactions_total").await >= 1.0
    })
    .await;
    assert_eq!(sidecar.sigterm().await, 0);
    assert!(!bed.has("item:1").await);
    assert!(bed.confirmed().await >= position, "confirmed before it left");
    bed.fill(&["item:1", "list:team 1:a"]).await;
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
    assert!(bed.has("item:1").await, "an unbroken restart sweeps nothing");
    assert!(bed.has("list:team 1:a").await, "an unbroken restart sweeps nothing");
    sidecar.assert_quiet(&["sweeping everything"]);
}

#[tokio::test]
async fn a_second_one_stands_by_and_takes_over() {
    let bed = Bed::new(&[]).await;
    let mut first = bed.sidecar().await;
    let mut second = Sidecar::new(bed.settings());
    second.start();
    second.wait_log("standing by").await;
    assert_eq!(second.readyz().await, Some(503));
    let (_, why) = second.get("/readyz").await.unwrap();
    let pid: i32 = bed.sql.one("select active_pid from pg_replication_slots").await;
    let holder =
        format!("standby: Postgres process {pid} (`walsweep stream`), connected from 127.0.0.1");
    assert!(why.contains(&holder), "{why}");
    assert_eq!(second.get("/healthz").await.unwrap().0, 200);
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    first.kill9();
    bed.fill(&["item:2"]).await;
    bed.sql.run("update item set version = 1 where id = 2").await;
    bed.gone("item:2").await;
    second.wait_ready().await;
    assert_eq!(second.sigterm().await, 0);
}

/// A stand-in may wait for years: it begins no session while it does, and takes no transaction id.
#[tokio::test]
async fn a_stand_in_asks_one_question() {
    let bed = Bed::new(&[]).await;
    let _first = bed.sidecar().await;
    let mut second = Sidecar::new(bed.settings());
    second.start();
    second.wait_log("standing by").await;
    bed.quiet().await;
    let sessions = "select sessions from pg_stat_database where datname = current_database()";
    let next = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    let before: (i64, i64) = (bed.sql.one(sessions).await, bed.sql.one(next).await);
    sleep(Duration::from_secs(4)).await;
    let after: (i64, i64) = (bed.sql.one(sessions).await, bed.sql.one(next).await);
    assert_eq!(after.1, before.1, "a transaction id");
    // One to begin with, and one to whom it has to reach.
    assert!(after.0 - before.0 <= 2, "{} sessions", after.0 - before.0);
    assert_eq!(second.readyz().await, Some(503));
}

#[tokio::test]
async fn a_stop_while_redis_is_away_exits_and_loses_nothing() {
    let mut bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.fill(&["item:1", "keep"]).await;
    bed.redis.pause().unwrap();
    let before = bed.position().await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    eventually(PATIENCE, "the commit arrives", || async {
        sidecar.metric("walsweep_transactions_total").await >= 1.0
    })
    .await;
    assert_eq!(sidecar.sigterm().await, 0);
    assert!(bed.confirmed().await <= before);
    bed.redis.resume().unwrap();
    bed.cache = bed.redis.connect().await.unwrap();
    // The removal that was on its way may have been done; what counts is that it is repeated.
    bed.fill(&["item:1"]).await;
    sidecar.start();
    sidecar.wait_ready().await;
    bed.gone("item:1").await;
    assert!(bed.has("keep").await);
}

/// A Redis that is away from the beginning takes nothing, and nothing is on its way to it.
#[tokio::test]
async fn a_stop_before_redis_ever_answered_waits_for_nothing() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    bed.redis.pause().unwrap();
    sidecar.start();
    sidecar.wait_log("streaming").await;
    // What is written meanwhile has no keys, and moves what could be confirmed.
    bed.sql.run("create table other (id int); insert into other values (1)").await;
    sleep(Duration::from_secs(2)).await;
    let began = tokio::time::Instant::now();
    assert_eq!(sidecar.sigterm().await, 0);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    bed.redis.resume().unwrap();
}

/// The trouble is there still, and nobody looks any more.
#[tokio::test]
async fn a_stop_does_not_tell_a_trouble_as_resolved() {
    let mut bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.redis.kill9().await.unwrap();
    bed.sql.run("update item set version = 1 where id = 1").await;
    sidecar.wait_log("the connection to redis is lost").await;
    assert_eq!(sidecar.sigterm().await, 0);
    let log = sidecar.log().concat();
    assert!(!log.contains("resolved after"), "{log}");
}

/// Where no session was had, the log says so and does not speak of keys.
#[tokio::test]
async fn a_stop_of_a_stand_in_says_that_it_stood_by() {
    let bed = Bed::new(&[]).await;
    let _first = bed.sidecar().await;
    let mut second = Sidecar::new(bed.settings());
    second.start();
    second.wait_log("standing by").await;
    assert_eq!(second.sigterm().await, 0);
    let log = second.log().concat();
    assert!(log.contains("stopped while another process has the slot"), "{log}");
    assert!(!log.contains("waiting until the last keys"), "{log}");
}

/// Whoever reads the log as JSON gets no line that is none, not even the last.
#[tokio::test]
async fn why_it_ends_is_a_line_of_a_log_of_json() {
    let bed = Bed::new(&[]).await;
    let mut settings = bed.settings();
    // The rules stand behind `[log]`.
    settings.rules = format!("format = \"json\"\n{}", settings.rules);
    settings.postgres_url = bed.postgres.url_of("missing");
    let sidecar = Sidecar::new(settings);
    let ended = sidecar.command(&["run"]);
    assert_eq!(ended.status.code(), Some(1));
    let lines = String::from_utf8(ended.stderr).unwrap();
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let last = lines.last().expect("it says why");
    let message = last["message"].as_str().unwrap();
    assert!(message.contains("database \"missing\" does not exist"), "{last}");
    assert_eq!((&last["level"], &last["status"]), (&"ERROR".into(), &1.into()), "{last}");
}

/// The system's resolver has a thread of its own, which nothing can end before it answers.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_stop_does_not_wait_for_a_resolver_that_does_not_answer() {
    // One that takes longer than any test waits, for this name alone.
    const RESOLVER: &str = r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <netdb.h>
        #include <string.h>
        #include <unistd.h>
        int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                        struct addrinfo **found) {
            int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
            if (node && !strcmp(node, "slow.invalid")) { sleep(60); return EAI_AGAIN; }
            *(void **)&next = dlsym(RTLD_NEXT, "getaddrinfo");
            return next(node, service, hints, found);
        }"#;
    let folder = tempfile::tempdir().unwrap();
    let [source, library] = ["slow.c", "slow.so"].map(|name| folder.path().join(name));
    std::fs::write(&source, RESOLVER).unwrap();
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
    assert!(compiler.status().unwrap().success());
    let bed = Bed::new(&[]).await;
    let mut settings = bed.settings();
    settings.postgres_url =
        "postgres://postgres@slow.invalid:5432/postgres?connect_timeout=1".to_owned();
    settings.env = vec![("LD_PRELOAD".to_owned(), library.to_str().unwrap().to_owned())];
    let mut sidecar = Sidecar::new(settings);
    sidecar.start();
    sidecar.wait_log("connect to `slow.invalid:5432`: no answer within 1 s").await;
    assert_eq!(sidecar.sigterm().await, 0, "within {PATIENCE:?}");
}
