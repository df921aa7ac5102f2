//! `run` gives no slot up that is not shown to be its own, whatever is wrong with it: it says so,
//! with what a person can do, and waits.

use std::time::Duration;

use crate::support::{Bed, Fault, PATIENCE, Proxy, Sidecar, eventually, text};

use super::{MAKE, STANDS, flush};

const DROP: &str = "select pg_catalog.pg_drop_replication_slot('walsweep');";

async fn readiness(sidecar: &Sidecar) -> String {
    sidecar.get("/readyz").await.map(|(_, body)| body).unwrap_or_default()
}

async fn said(sidecar: &Sidecar, part: &str) {
    let told = || async { readiness(sidecar).await.contains(part) };
    eventually(PATIENCE, &format!("`{part}` at /readyz"), told).await;
}

async fn write_100_mb(bed: &Bed) {
    let rows = "select repeat(md5(n::text), 60) from generate_series(1, 10000) n";
    for _ in 0..5 {
        bed.sql.run(&format!("insert into ballast {rows}")).await;
    }
}

/// The slot holds a change that was committed before the publication, so that no session gets past
/// it. Whoever made the slot may be able to read it.
#[tokio::test]
async fn a_slot_that_cannot_be_decoded_and_may_be_anothers_is_left_until_a_person_drops_it() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(MAKE).await;
    bed.sql.run("update item set version = 7 where id = 1").await;
    bed.sql.run("create publication walsweep for table item").await;
    let stands: String = bed.sql.one(STANDS).await;
    let mut sidecar = Sidecar::new(bed.settings());
    sidecar.start();
    said(&sidecar, "and is not dropped, for it may be another program's").await;
    let body = readiness(&sidecar).await;
    for part in [
        "has to be given up, for no session gets past what it holds",
        "let `postgres.slot` name another one",
        "stop walsweep, drop it as `postgres`, or as another role with REPLICATION",
        DROP,
    ] {
        assert!(body.contains(part), "{part}: {body}");
    }
    assert!(!body.contains("said in the log"), "what to do stands right here: {body}");
    let (_, status) = sidecar.get("/status").await.unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let verdict = &status["verdict"];
    assert_eq!(verdict["section"], "the-slot-keeps-wal", "{verdict}");
    assert!(verdict["hint"].as_str().is_some_and(|hint| hint.contains(DROP)), "{verdict}");
    // Several attempts later.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands, "{}", sidecar.log().join("\n"));
    let log = sidecar.log();
    let errors = log.iter().filter(|line| line.contains("ERROR") && line.contains("not dropped"));
    assert_eq!(errors.count(), 1, "{}", log.join("\n"));
    let warns = log.iter().filter(|line| line.contains("WARN") && line.contains("never receive"));
    assert_eq!(warns.count(), 1, "said once that it may be another's: {}", log.join("\n"));
    bed.fill(&["item:2"]).await;
    bed.sql.run(DROP).await;
    sidecar.wait_ready().await;
    bed.gone("item:2").await;
    assert!(!readiness(&sidecar).await.contains("not dropped"));
    // This one is its own.
    bed.sql.run("drop publication walsweep; update item set version = 8 where id = 1").await;
    bed.sql.run("create publication walsweep for table item").await;
    sidecar.wait_log("dropping it and creating it anew").await;
    sidecar.wait_ready().await;
}

/// `check` judges a lost slot as `run` does.
#[tokio::test]
async fn a_lost_slot_that_may_be_anothers_is_waited_for_as_check_says() {
    let conf = ["max_slot_wal_keep_size = 1MB", "max_wal_size = 1GB", "min_wal_size = 32MB"];
    let bed = Bed::new(&conf).await;
    bed.sql.run("create publication walsweep for table item").await;
    bed.sql.run(MAKE).await;
    lose(&bed).await;
    let mut sidecar = Sidecar::new(bed.settings());
    let check = sidecar.command(&["check"]);
    assert_eq!(check.status.code(), Some(1), "{}", text(&check));
    let check = text(&check);
    let (_, told) = check.split_once("error[slot_not_own]: ").unwrap_or_else(|| panic!("{check}"));
    for part in ["slot `walsweep` is lost", "and is not dropped, for it may be another", DROP] {
        assert!(told.contains(part), "{part}: {check}");
    }
    let waits = "`walsweep run` would wait until somebody has seen to the slot";
    assert!(check.contains(waits) && !check.contains("slot_lost"), "{check}");
    sidecar.start();
    said(&sidecar, "and is not dropped, for it may be another program's").await;
    bed.sql.run(DROP).await;
    sidecar.wait_ready().await;
    let log = sidecar.log().join("\n");
    let (_, made) = log.split_once("creating the slot").unwrap_or_else(|| panic!("{log}"));
    let doubts = |line: &str| line.contains("WARN") && line.contains("another program's");
    assert!(!made.lines().any(doubts), "walsweep has just made it: {log}");
    // The one that walsweep made is its own, as Redis shows: it is made anew.
    bed.settled().await;
    bed.marked().await;
    assert_eq!(sidecar.sigterm().await, 0);
    lose(&bed).await;
    let check = text(&sidecar.command(&["check"]));
    assert!(check.contains("warning[slot_lost]") && !check.contains("slot_not_own"), "{check}");
    assert!(check.contains("`walsweep run` would start"), "{check}");
    sidecar.start();
    sidecar.wait_ready().await;
}

/// Lets the server take away what the slot needs.
async fn lose(bed: &Bed) {
    for _ in 0..4 {
        bed.sql.run("create table x (); drop table x; select pg_switch_wal()").await;
    }
    bed.sql.run("checkpoint").await;
    let lost = "select wal_status = 'lost' from pg_replication_slots";
    assert!(bed.sql.one::<bool>(lost).await);
}

/// The watermark that walsweep writes where it begins to read shows nothing: it has moved nothing.
#[tokio::test]
async fn a_slot_that_walsweep_has_not_moved_is_not_its_own_for_having_been_read() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create publication walsweep for table item; checkpoint").await;
    // Nothing else in the log would let the slot move.
    bed.quiet().await;
    bed.sql.run(MAKE).await;
    let stands: String = bed.sql.one(STANDS).await;
    let mut sidecar = Sidecar::new(bed.settings());
    sidecar.start();
    sidecar.wait_ready().await;
    bed.marked().await;
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands, "it has not moved");
    bed.sql
        .run(
            "begin; drop publication walsweep; update item set version = 7 where id = 1;
             create publication walsweep for table item; commit",
        )
        .await;
    said(&sidecar, "and is not dropped, for it may be another program's").await;
    assert!(readiness(&sidecar).await.contains("the watermark in redis, at "));
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands);
}

/// A slot that was made in advance, by hand, with a publication that was.
#[tokio::test]
async fn a_slot_that_a_person_made_in_advance_works_from_the_first_start() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create publication walsweep for table item").await;
    bed.sql.run(MAKE).await;
    let mut sidecar = Sidecar::new(bed.settings());
    sidecar.start();
    sidecar.wait_ready().await;
    bed.fill(&["item:2"]).await;
    bed.sql.run("update item set version = 8 where id = 2").await;
    bed.gone("item:2").await;
    bed.settled().await;
    bed.marked().await;
    assert_eq!(sidecar.sigterm().await, 0);
    // Read by walsweep up to where it stands, as Redis shows: it is given up like any.
    bed.sql.run("drop publication walsweep; update item set version = 9 where id = 2").await;
    bed.sql.run("create publication walsweep for table item").await;
    sidecar.start();
    sidecar.wait_log("dropping it and creating it anew").await;
    sidecar.wait_ready().await;
}

/// While Redis is away the slot keeps too much, and nothing shows that it is walsweep's: it is read
/// on, and keys go as soon as they can.
#[tokio::test]
async fn a_slot_that_keeps_too_much_and_may_be_anothers_is_read_on() {
    let mut bed = Bed::new(&["max_wal_size = 64MB"]).await;
    bed.sql
        .run("create table ballast (text text); create publication walsweep for table item")
        .await;
    bed.sql.run(MAKE).await;
    let mut settings = bed.settings();
    settings.postgres = "max_retained_wal = \"64MB\"".to_owned();
    bed.fill(&["item:1"]).await;
    bed.redis.pause().unwrap();
    let mut sidecar = Sidecar::new(settings);
    sidecar.start();
    sidecar.wait_log(" streaming ").await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    let held = bed.confirmed().await;
    write_100_mb(&bed).await;
    said(&sidecar, "keeps too much WAL, and is not dropped").await;
    assert!(readiness(&sidecar).await.contains("redis does not answer"));
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(bed.confirmed().await, held, "it is the old slot");
    bed.redis.resume().unwrap();
    bed.cache = bed.redis.connect().await.unwrap();
    bed.gone("item:1").await;
    sidecar.wait_ready().await;
    assert!(!sidecar.log().iter().any(|line| line.contains("dropping it")), "nothing was dropped");
}

/// While no session can be had the slot keeps too much, and a Redis that was emptied does not show
/// that it is walsweep's: it is not dropped.
#[tokio::test]
async fn a_slot_that_nobody_can_stream_and_may_be_anothers_is_not_dropped() {
    let bed = Bed::new(&["max_wal_size = 64MB"]).await;
    bed.sql
        .run("create table ballast (text text); create publication walsweep for table item")
        .await;
    bed.sql.run(MAKE).await;
    let proxy = Proxy::to_port(bed.postgres.port());
    let mut settings = bed.settings();
    let url = proxy.url(&settings.postgres_url, bed.postgres.port());
    settings.postgres = format!("max_retained_wal = \"64MB\"\nreplication_url = {url:?}");
    let mut sidecar = Sidecar::new(settings);
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
    proxy.set(Fault::Refuse);
    proxy.reset();
    eventually(PATIENCE, "no session", || async { sidecar.readyz().await == Some(503) }).await;
    flush(&bed).await;
    write_100_mb(&bed).await;
    said(&sidecar, "no session can be had, and is not dropped").await;
    assert!(readiness(&sidecar).await.contains("redis has no watermark of it"));
    let slots = "select count(*) from pg_replication_slots";
    assert_eq!(bed.sql.one::<i64>(slots).await, 1);
    proxy.set(Fault::Nothing);
    sidecar.wait_ready().await;
    assert!(!sidecar.log().iter().any(|line| line.contains("dropping it")), "nothing was dropped");
}

/// Of the slot that this very process made it needs no other proof, be Redis away or emptied.
#[tokio::test]
async fn a_slot_that_this_very_process_made_is_given_up_while_redis_is_away() {
    let mut bed = Bed::new(&[]).await;
    bed.sql.run("create publication walsweep for table item").await;
    let mut sidecar = Sidecar::new(bed.settings());
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
    bed.redis.pause().unwrap();
    bed.sql.run("drop publication walsweep; update item set version = 9 where id = 2").await;
    bed.sql.run("create publication walsweep for table item").await;
    sidecar.wait_log("dropping it and creating it anew").await;
    bed.redis.resume().unwrap();
    bed.cache = bed.redis.connect().await.unwrap();
    sidecar.wait_ready().await;
}
