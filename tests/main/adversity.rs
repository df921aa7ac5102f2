//! Frozen parts, a Redis that refuses, a slot that is taken away while the program runs: each
//! alone; afterwards nothing is stale.

use std::time::Duration;

use redis::AsyncCommands;
use tokio::time::sleep;
use walsweep_stage::throwaway::{Redis, RedisOptions, Signal, signal};

use crate::refusals::admin;
use crate::support::{Bed, Fault, Load, PATIENCE, Proxy, Sidecar, Swap, always, eventually};

/// Long enough for what should not happen.
const WHILE: Duration = Duration::from_millis(500);

/// Keys of one team's pattern.
const LISTS: usize = 2_000;

/// Counts of an error from Redis.
async fn errors(sidecar: &Sidecar, kind: &str) -> f64 {
    sidecar
        .metric(&format!("walsweep_redis_errors_total{{target=\"redis\",kind=\"{kind}\"}}"))
        .await
}

async fn wait_error(sidecar: &Sidecar, kind: &str) {
    let what = format!("the error `{kind}` is counted");
    eventually(PATIENCE, &what, || async { errors(sidecar, kind).await > 0.5 }).await;
}

async fn wait_ready(sidecar: &Sidecar, ready: bool) {
    let status = if ready { 200 } else { 503 };
    let what = format!("/readyz answers {status}");
    eventually(PATIENCE, &what, || async { sidecar.readyz().await == Some(status) }).await;
}

async fn resyncs(sidecar: &Sidecar, reason: &str) -> f64 {
    sidecar.metric(&format!("walsweep_resyncs_total{{reason=\"{reason}\"}}")).await
}

/// Waits for a sweep of everything for this reason, the only one after `before` of them.
async fn wait_swept(bed: &Bed, sidecar: &Sidecar, (reason, before): (&str, f64)) {
    let what = format!("a sweep of everything: {reason}");
    eventually(PATIENCE, &what, || async { resyncs(sidecar, reason).await > before }).await;
    bed.gone("item:77").await;
    wait_ready(sidecar, true).await;
    assert!((resyncs(sidecar, reason).await - before - 1.0).abs() < f64::EPSILON, "{reason}");
    bed.settled().await;
    bed.fill(&["item:5"]).await;
    bed.sql.run("update item set version = version + 1 where id = 5").await;
    bed.gone("item:5").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_for_a_while_under_load_it_leaves_nothing_stale() {
    let bed = Bed::new(&["wal_sender_timeout = 1s"]).await;
    let mut settings = bed.settings();
    settings.refill = "500ms".to_owned();
    let mut sidecar = Sidecar::set_up(settings).await;
    let mut load = Load::paced(&bed, Duration::from_millis(5));
    sleep(WHILE).await;
    // Longer than the server waits for it: the session is gone when it goes on.
    let walsender = "select active_pid from pg_replication_slots";
    let pid: i32 = bed.sql.one(walsender).await;
    sidecar.signal(Signal::Stop);
    eventually(PATIENCE, "the server gives up", || async {
        bed.sql.one::<Option<i32>>(walsender).await.is_none()
    })
    .await;
    sidecar.signal(Signal::Cont);
    eventually(PATIENCE, "another session", || async {
        bed.sql.one::<Option<i32>>(walsender).await.is_some_and(|new| new != pid)
    })
    .await;
    wait_ready(&sidecar, true).await;
    let pid: i32 = bed.sql.one(walsender).await;
    let walsender = [u32::try_from(pid).unwrap()];
    signal(&walsender, Signal::Stop).unwrap();
    sleep(4 * WHILE).await;
    signal(&walsender, Signal::Cont).unwrap();
    sleep(WHILE).await;
    let commits = load.end_writing().await;
    load.assert_nothing_stale(&bed, &mut sidecar).await;
    println!("frozen twice during {commits} commits");
    assert!(commits > 50);
}

/// The keys go, for that needs no memory; what cannot be covered is not confirmed.
#[tokio::test]
async fn a_redis_out_of_memory_holds_the_confirmation_alone() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.fill(&["item:1", "list:team 1:a"]).await;
    admin(&bed, "CONFIG SET maxmemory 1").await;
    let before = bed.position().await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    bed.gone("item:1").await;
    bed.gone("list:team 1:a").await;
    wait_error(&sidecar, "oom").await;
    always(WHILE, "not confirmed", || async { bed.confirmed().await <= before }).await;
    admin(&bed, "CONFIG SET maxmemory 0").await;
    bed.settled().await;
    assert_eq!(sidecar.readyz().await, Some(200));
    assert!(resyncs(&sidecar, "watermark_lost").await < 0.5, "nothing was lost");
}

#[tokio::test]
async fn a_primary_that_becomes_a_replica_and_back_is_waited_for() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.fill(&["item:1", "list:team 1:a"]).await;
    // Nobody is there to copy from: it keeps its data and takes no writes.
    admin(&bed, "REPLICAOF 127.0.0.1 1").await;
    let before = bed.position().await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    wait_error(&sidecar, "readonly").await;
    wait_ready(&sidecar, false).await;
    assert!(bed.has("item:1").await, "no replica can be written");
    assert!(bed.confirmed().await <= before);
    let up =
        format!("walsweep_redis_up{{target=\"redis\",node=\"127.0.0.1:{}\"}}", bed.redis.port());
    assert!(sidecar.metric(&up).await < 0.5, "a replica is not the primary");
    admin(&bed, "REPLICAOF NO ONE").await;
    bed.gone("item:1").await;
    bed.gone("list:team 1:a").await;
    wait_ready(&sidecar, true).await;
    bed.settled().await;
}

#[tokio::test]
async fn a_right_taken_away_in_the_middle_of_a_pass_is_waited_for() {
    let bed = Bed::new(&[]).await;
    admin(
        &bed,
        "ACL SETUSER walsweep on nopass ~* -@all +scan +unlink +get +set +incr +eval +ping +info \
         +select +hello +auth +client",
    )
    .await;
    let front = Swap::start(([127, 0, 0, 1], bed.redis.port()).into());
    let mut settings = bed.settings();
    settings.redis_url = front.url(&settings.redis_url, bed.redis.port());
    settings.redis_url = settings.redis_url.replace("redis://", "redis://walsweep:any@");
    // However busy the machine is, calls do not become small.
    settings.sweep = "max_stall = \"1s\"".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    for right in ["scan", "unlink"] {
        let mut pipeline = redis::pipe();
        for number in 0..LISTS {
            pipeline.set(format!("list:team 1:{number}"), 1).ignore();
            (0..9).for_each(|other| {
                pipeline.set(format!("other:{number}:{other}"), 1).ignore();
            });
        }
        pipeline.exec_async(&mut bed.cache.clone()).await.unwrap();
        let lists = async || -> usize {
            let keys: Vec<String> = bed.cache.clone().keys("list:team 1:*").await.unwrap();
            keys.len()
        };
        let refused = errors(&sidecar, "noperm").await;
        let before = bed.position().await;
        front.hold_scan(1);
        bed.sql.run("update item set version = version + 1 where id = 1").await;
        front.holds().await;
        admin(&bed, &format!("ACL SETUSER walsweep -{right}")).await;
        assert!(lists().await > 0, "{right}: the pass is not through");
        front.release();
        eventually(PATIENCE, "it is refused", || async {
            errors(&sidecar, "noperm").await > refused
        })
        .await;
        always(WHILE, "not confirmed", || async { bed.confirmed().await <= before }).await;
        admin(&bed, &format!("ACL SETUSER walsweep +{right}")).await;
        eventually(PATIENCE, "every key goes", || async { lists().await == 0 }).await;
        bed.settled().await;
    }
    assert_eq!(sidecar.readyz().await, Some(200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_loads_its_data_is_waited_for() {
    let mut bed = Bed::new(&[]).await;
    // A millisecond a key; others get a word in after each 2 MB, which must not become fewer bytes.
    let slow = RedisOptions::with_args(&["--key-load-delay", "1000", "--rdbcompression", "no"]);
    bed.redis = Redis::start(slow).await.unwrap();
    bed.cache = bed.redis.connect().await.unwrap();
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    let mut pipeline = redis::pipe();
    (0..3_000).for_each(|number| {
        pipeline.set(format!("other:{number}"), "x".repeat(10_000)).ignore();
    });
    pipeline.exec_async(&mut bed.cache).await.unwrap();
    bed.fill(&["item:1", "list:team 1:a"]).await;
    admin(&bed, "SAVE").await;
    bed.redis.kill9().await.unwrap();
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    let (started, ()) = tokio::join!(bed.redis.start_again(), async {
        wait_error(&sidecar, "loading").await;
        assert_eq!(sidecar.readyz().await, Some(503), "it cannot remove anything");
    });
    started.unwrap();
    bed.cache = bed.redis.connect().await.unwrap();
    bed.gone("item:1").await;
    bed.gone("list:team 1:a").await;
    wait_ready(&sidecar, true).await;
    assert!(resyncs(&sidecar, "watermark_lost").await < 0.5, "nothing was lost");
    bed.settled().await;
}

/// I7: what was committed between the old slot and the new one is in neither.
#[tokio::test]
async fn a_slot_dropped_while_it_streams_is_answered_with_a_sweep() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.fill(&["item:77", "list:anything:x"]).await;
    let before = resyncs(&sidecar, "slot_created").await;
    let client = bed.sql.client();
    eventually(PATIENCE, "the slot is dropped", || async {
        // The program may be back before it is dropped.
        let ended = "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots;
                     select pg_drop_replication_slot('walsweep')";
        client.batch_execute(ended).await.is_ok()
    })
    .await;
    wait_swept(&bed, &sidecar, ("slot_created", before)).await;
    assert!(!bed.has("list:anything:x").await);
}

#[tokio::test]
async fn a_slot_lost_while_redis_is_away_is_answered_with_a_sweep() {
    let bed = Bed::new(&["max_slot_wal_keep_size = 16MB", "max_wal_size = 32MB"]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.fill(&["item:77", "list:anything:x"]).await;
    let before = resyncs(&sidecar, "slot_created").await;
    bed.redis.pause().unwrap();
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    bed.sql.run("create table ballast (text text)").await;
    lose_slot(&bed, &sidecar).await;
    bed.redis.resume().unwrap();
    wait_swept(&bed, &sidecar, ("slot_created", before)).await;
    assert!(!bed.has("list:anything:x").await);
}

/// Writes to the log until the server takes the slot away and the program makes another.
async fn lose_slot(bed: &Bed, sidecar: &Sidecar) {
    let lost = "the slot is lost";
    eventually(PATIENCE, lost, || async {
        bed.sql
            .run("insert into ballast select repeat('x', 1000) from generate_series(1, 20000)")
            .await;
        bed.sql.run("select pg_switch_wal()").await;
        bed.sql.run("checkpoint").await;
        sidecar.log().iter().any(|line| line.contains(lost))
    })
    .await;
}

#[tokio::test]
async fn a_slot_advanced_between_two_sessions_is_answered_with_a_sweep() {
    let bed = Bed::new(&[]).await;
    let proxy = Proxy::to_port(bed.postgres.port());
    let mut settings = bed.settings();
    let url = proxy.url(&settings.postgres_url, bed.postgres.port());
    settings.postgres = format!("replication_url = {url:?}");
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    bed.fill(&["item:77", "list:anything:x"]).await;
    let before = resyncs(&sidecar, "watermark_behind").await;
    proxy.set(Fault::Refuse);
    proxy.reset();
    wait_ready(&sidecar, false).await;
    bed.sql.run("update item set version = version + 1 where id = 77").await;
    let advance = "select pg_replication_slot_advance('walsweep', pg_current_wal_lsn())";
    eventually(PATIENCE, "the slot is advanced", || async {
        bed.sql.client().batch_execute(advance).await.is_ok()
    })
    .await;
    proxy.set(Fault::Nothing);
    wait_swept(&bed, &sidecar, ("watermark_behind", before)).await;
    assert!(!bed.has("list:anything:x").await);
}
