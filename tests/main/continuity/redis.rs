//! I7 within a session: Redis goes back, loses its data, or shows a watermark that is not ours.

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::path::PathBuf;

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, cmd};
use walsweep_stage::throwaway::{Redis, RedisOptions};

use crate::support::{Bed, Fault, PATIENCE, Proxy, Sidecar, Way, eventually};

const LOST: &str = "walsweep_resyncs_total{reason=\"watermark_lost\"}";
const REPEATED: &str = "walsweep_repeated_keys_total";

/// The answer to a Redis that went back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Keys above the surviving watermark are removed again, and nothing else.
    Repeated,
    /// Everything is swept.
    Swept,
}

/// A bed whose Redis runs with these arguments.
async fn bed(args: &[&str]) -> Bed {
    let mut bed = Bed::new(&[]).await;
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    bed.redis = Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap();
    bed.cache = bed.redis.connect().await.unwrap();
    bed
}

/// Changes the rows with these ids and waits until their keys are gone and confirmed.
async fn change(bed: &Bed, ids: std::ops::Range<u32>) {
    let (first, last) = (ids.start, ids.end - 1);
    let update =
        format!("update item set version = version + 1 where id between {first} and {last}");
    bed.sql.run(&update).await;
    bed.gone(&format!("item:{last}")).await;
    bed.settled().await;
}

/// Waits until the answer is given, and looks at what is left.
async fn check(bed: &Bed, sidecar: &Sidecar, answer: Answer) {
    let name = if answer == Answer::Repeated { REPEATED } else { LOST };
    eventually(PATIENCE, "the loss is noticed", || async { sidecar.metric(name).await > 0.0 })
        .await;
    eventually(PATIENCE, "ready again", || async { sidecar.readyz().await == Some(200) }).await;
    bed.fresh().await;
    // Row 100 never changed: only a sweep of everything takes its key.
    assert_eq!(bed.has("item:100").await, answer == Answer::Repeated, "{answer:?}");
    assert_eq!(sidecar.metric(LOST).await > 0.0, answer == Answer::Swept, "{answer:?}");
    // It goes on as before.
    bed.cache_rows().await;
    change(bed, 1..3).await;
    bed.fresh().await;
}

async fn restart(bed: &mut Bed) {
    bed.redis.start_again().await.unwrap();
    bed.cache = bed.redis.connect().await.unwrap();
    let stale = bed.stale().await;
    assert!(stale.len() <= 20, "too much is back: {stale:?}");
}

async fn save(cache: &mut MultiplexedConnection) {
    cmd("SAVE").exec_async(cache).await.unwrap();
}

#[tokio::test]
async fn a_redis_restored_from_an_older_file_loses_nothing() {
    let mut bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.cache_rows().await;
    change(&bed, 1..10).await;
    bed.cache_rows().await;
    save(&mut bed.cache).await;
    change(&bed, 10..20).await;
    bed.redis.kill9().await.unwrap();
    restart(&mut bed).await;
    check(&bed, &sidecar, Answer::Repeated).await;
}

/// A watermark that an earlier session wrote proves nothing to this one, which does not have its
/// removals.
#[tokio::test]
async fn a_redis_restored_from_a_file_of_an_earlier_session_is_swept() {
    let mut bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.cache_rows().await;
    bed.settled().await;
    save(&mut bed.cache).await;
    change(&bed, 1..10).await;
    assert_eq!(sidecar.sigterm().await, 0);
    sidecar.start();
    sidecar.wait_ready().await;
    change(&bed, 10..20).await;
    bed.redis.kill9().await.unwrap();
    restart(&mut bed).await;
    check(&bed, &sidecar, Answer::Swept).await;
}

#[tokio::test]
async fn a_redis_with_a_truncated_log_loses_nothing() {
    let mut bed = bed(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let sidecar = bed.sidecar().await;
    bed.cache_rows().await;
    change(&bed, 1..10).await;
    bed.cache_rows().await;
    let log = append_only_file(&bed.redis);
    let length = File::open(&log).unwrap().metadata().unwrap().len();
    change(&bed, 10..20).await;
    bed.redis.kill9().await.unwrap();
    // In the middle of a command, as a crash leaves it.
    OpenOptions::new().write(true).open(&log).unwrap().set_len(length + 7).unwrap();
    restart(&mut bed).await;
    check(&bed, &sidecar, Answer::Repeated).await;
}

/// The file that grows: before version 7 the only one.
fn append_only_file(redis: &Redis) -> PathBuf {
    let folder = redis.dir().join("appendonlydir");
    let Ok(files) = std::fs::read_dir(folder) else { return redis.dir().join("appendonly.aof") };
    let mut files = files.map(|file| file.unwrap().path());
    files.find(|file| file.to_str().unwrap().ends_with(".incr.aof")).unwrap()
}

/// A replica behind a link that stops, and a proxy that leads to whoever is the primary. walsweep
/// sees a connection that breaks and can be made again.
#[tokio::test]
async fn a_promoted_replica_behind_a_proxy_gets_the_removals_that_it_lacks() {
    let (mut bed, replica, link, front, mut sidecar) = replicated().await;
    change(&bed, 1..10).await;
    in_sync(&bed, &replica).await;
    link.set(Fault::BlackHole(Way::Both));
    change(&bed, 10..20).await;
    promote(&mut bed, replica, &link).await;
    assert_eq!(bed.stale().await.len(), 10, "the replica lacks the last removals");
    front.retarget(address(&bed.redis));
    front.reset();
    check(&bed, &sidecar, Answer::Repeated).await;
    // The same while it is down: nobody remembers.
    assert_eq!(sidecar.sigterm().await, 0);
    sidecar.start();
    sidecar.wait_ready().await;
    assert!(sidecar.metric_sum("walsweep_resyncs_total").await < 1.0);
}

#[tokio::test]
async fn a_replica_promoted_while_walsweep_is_down_is_swept() {
    let (mut bed, replica, link, front, mut sidecar) = replicated().await;
    change(&bed, 1..10).await;
    in_sync(&bed, &replica).await;
    link.set(Fault::BlackHole(Way::Both));
    change(&bed, 10..20).await;
    assert_eq!(sidecar.sigterm().await, 0);
    promote(&mut bed, replica, &link).await;
    assert_eq!(bed.stale().await.len(), 10, "the replica lacks the last removals");
    front.retarget(address(&bed.redis));
    sidecar.start();
    sidecar.wait_ready().await;
    bed.fresh().await;
    let behind = "walsweep_resyncs_total{reason=\"watermark_behind\"}";
    assert!((sidecar.metric(behind).await - 1.0).abs() < f64::EPSILON);
}

/// Rows cached in a primary and its replica, which is linked by the first proxy; the sidecar goes
/// through the second.
async fn replicated() -> (Bed, Redis, Proxy, Proxy, Sidecar) {
    let bed = Bed::new(&[]).await;
    let (link, front) = (Proxy::to_port(bed.redis.port()), Proxy::to_port(bed.redis.port()));
    let replica = replica_of(link.port()).await;
    let mut settings = bed.settings();
    settings.redis_url = front.url(&settings.redis_url, bed.redis.port());
    let sidecar = Sidecar::set_up(settings).await;
    bed.cache_rows().await;
    (bed, replica, link, front, sidecar)
}

pub(super) async fn replica_of(port: u16) -> Redis {
    let args = ["--replicaof", "127.0.0.1", &port.to_string()].map(str::to_owned).to_vec();
    Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap()
}

pub(super) fn address(redis: &Redis) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], redis.port()))
}

/// Waits until the replica shows the watermark of its primary.
pub(super) async fn in_sync(bed: &Bed, replica: &Redis) {
    let cache = replica.connect().await.unwrap();
    eventually(PATIENCE, "the replica follows", || async {
        let theirs: Option<String> = cache.clone().get("walsweep:walsweep").await.unwrap();
        theirs.is_some() && theirs == bed.watermark().await
    })
    .await;
}

/// The primary dies, what was on its way to the replica is lost, the replica takes its place.
async fn promote(bed: &mut Bed, replica: Redis, link: &Proxy) {
    bed.redis.kill9().await.unwrap();
    link.reset();
    bed.redis = replica;
    bed.cache = bed.redis.connect().await.unwrap();
    cmd("REPLICAOF").arg("NO").arg("ONE").exec_async(&mut bed.cache).await.unwrap();
}

/// A failover between two connections of one attempt would let a pass list one server's keys and
/// remove them from another.
#[tokio::test]
async fn two_connections_to_two_servers_are_refused() {
    let bed = Bed::new(&[]).await;
    let other = Redis::start(RedisOptions::default()).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let targets = [address(&bed.redis), address(&other)];
    let alternating = tokio::spawn(async move {
        for target in targets.iter().cycle() {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = tokio::net::TcpStream::connect(target).await.unwrap();
            tokio::spawn(async move {
                drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    let mut settings = bed.settings();
    settings.redis_url = format!("redis://127.0.0.1:{port}/0");
    let mut sidecar = Sidecar::new(settings);
    sidecar.setup();
    sidecar.start();
    sidecar.wait_log("two connections reach two servers").await;
    assert_eq!(sidecar.readyz().await, Some(503));
    alternating.abort();
}

/// By hand, by a restore that goes round Redis, or by another program under the same name.
#[tokio::test]
async fn a_watermark_changed_while_running_is_answered_by_what_it_says() {
    for (name, answer) in [
        ("own, older", Answer::Repeated),
        ("own, never written", Answer::Swept),
        ("future", Answer::Swept),
        ("foreign", Answer::Swept),
        ("deleted", Answer::Swept),
    ] {
        let mut bed = Bed::new(&[]).await;
        let sidecar = bed.sidecar().await;
        bed.cache_rows().await;
        change(&bed, 1..10).await;
        bed.cache_rows().await;
        let older = bed.watermark().await.unwrap();
        change(&bed, 10..20).await;
        // As if they were back: the values of before.
        for id in 10..20 {
            let _: () = bed.cache.set(format!("item:{id}"), 0).await.unwrap();
        }
        let mark: serde_json::Value = serde_json::from_str(&older).unwrap();
        let lsn: walsweep::lsn::Lsn = mark["lsn"].as_str().unwrap().parse().unwrap();
        let at = |lsn: u64| {
            older.replace(mark["lsn"].as_str().unwrap(), &walsweep::lsn::Lsn(lsn).to_string())
        };
        let value = match name {
            "own, older" => Some(older.clone()),
            "own, never written" => Some(at(lsn.0 + 1)),
            "future" => Some(at(lsn.0 + (1 << 30))),
            "foreign" => Some("mine".to_owned()),
            _ => None,
        };
        match value {
            Some(value) => bed.cache.set::<_, _, ()>("walsweep:walsweep", value).await.unwrap(),
            None => bed.cache.del::<_, ()>("walsweep:walsweep").await.unwrap(),
        }
        // The next write finds it.
        bed.sql.run("update item set version = version + 1 where id = 30").await;
        println!("{name}");
        check(&bed, &sidecar, answer).await;
    }
}

#[tokio::test]
async fn an_evicted_watermark_is_answered_with_a_sweep() {
    let mut bed = bed(&["--maxmemory-policy", "allkeys-random"]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    let set = |value: &'static str| {
        let mut command = cmd("CONFIG");
        command.arg("SET").arg("maxmemory").arg(value);
        command
    };
    set("1").exec_async(&mut bed.cache).await.unwrap();
    // Eviction takes place before a command that needs memory.
    let refused: Result<(), _> = bed.cache.set("other", "x").await;
    drop(refused);
    eventually(PATIENCE, "the watermark is evicted", || async { bed.watermark().await.is_none() })
        .await;
    set("0").exec_async(&mut bed.cache).await.unwrap();
    bed.cache_rows().await;
    bed.sql.run("update item set version = version + 1 where id = 30").await;
    check(&bed, &sidecar, Answer::Swept).await;
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_is_swept() {
    let mut bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.cache_rows().await;
    change(&bed, 1..10).await;
    bed.redis.kill9().await.unwrap();
    restart(&mut bed).await;
    check(&bed, &sidecar, Answer::Swept).await;
    // Emptied behind our back, connection and all intact.
    let before = sidecar.metric(LOST).await;
    cmd("FLUSHALL").exec_async(&mut bed.cache).await.unwrap();
    bed.fill(&["item:2"]).await;
    bed.sql.run("update item set version = version + 1 where id = 3").await;
    bed.gone("item:2").await;
    assert!(sidecar.metric(LOST).await > before);
}
