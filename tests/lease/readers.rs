//! I8 closed: readers with the lease beside a real walsweep that removes once, not twice. Without
//! the lease the same readers leave stale values behind, or these tests would show nothing.

use redis::{AsyncCommands, cmd};
use walsweep::sweep::redis::lease;
use walsweep_stage::throwaway::{Redis, RedisOptions, Signal};

use crate::python::{Id, Readers};
use crate::support::{Bed, Sidecar};

/// Keys that a pass walks over, so that it takes long enough to be stopped at each percentile; made
/// in parts that are quick to make.
const CROWD: u32 = 10_000;
const CROWDS: u32 = 4;

async fn version(bed: &Bed) -> String {
    bed.sql.one::<i64>("select version from item where id = 1").await.to_string()
}

async fn cached(bed: &Bed, key: &str) -> Option<String> {
    bed.cache.clone().get(key).await.unwrap()
}

/// Lets a reader select a row and stops it there, removes the key, and lets it go on. Gives the
/// value that it read, and the one that is cached afterwards.
async fn paused_across_a_removal(
    bed: &Bed,
    readers: &mut Readers,
    (how, key): (&str, &str),
) -> (String, Option<String>) {
    let reader = readers.read(how, key);
    readers.computes(reader).await;
    assert_eq!(bed.has(key).await, how == "lease", "a lease stands in the key itself");
    let old = version(bed).await;
    readers.signal(Signal::Stop);
    readers.answer(reader, &old);
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    bed.settled().await;
    assert!(!bed.has(key).await, "a marker is removed like a value");
    readers.signal(Signal::Cont);
    readers.done(reader, &old).await;
    (old, cached(bed, key).await)
}

#[tokio::test]
async fn a_fill_that_read_before_the_removal_is_refused() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    lease::load(&mut bed.cache.clone()).await.unwrap();
    for decoded in [true, false] {
        let mut readers = Readers::start(&bed.redis.url(), decoded, 30.0);
        for key in ["item:1", "list:team 1:a"] {
            for _ in 0..10 {
                let (_, after) = paused_across_a_removal(&bed, &mut readers, ("lease", key)).await;
                assert_eq!(after, None, "`{key}` holds what was read before the removal");
            }
            let new = version(&bed).await;
            let reader = readers.read("lease", key);
            readers.computes(reader).await;
            readers.answer(reader, &new);
            readers.done(reader, &new).await;
            assert_eq!(cached(&bed, key).await, Some(new.clone()), "a fresh value is stored");
            let hit = readers.read("lease", key);
            readers.done(hit, &new).await;
            assert!(!readers.computing().contains(&hit));
            bed.cache.clone().unlink::<_, ()>(key).await.unwrap();

            let (old, after) = paused_across_a_removal(&bed, &mut readers, ("plain", key)).await;
            assert_eq!(after, Some(old), "the race that the lease closes is not there");
            bed.cache.clone().unlink::<_, ()>(key).await.unwrap();
        }
    }
    sidecar.assert_quiet(&["sweeping everything"]);
}

/// A hundred readers select an old row; while one pass over their keys runs, one of them stores at
/// each percentile. Gives how many stale values are left.
async fn stale_after_a_pass(bed: &Bed, sidecar: &Sidecar, how: &str) -> usize {
    let mut readers = Readers::start(&bed.redis.url(), false, 30.0);
    let key = |number: usize| format!("list:team 1:{number}");
    let ids: Vec<Id> = (1..=100).map(|number| readers.read(how, &key(number))).collect();
    for &id in &ids {
        readers.computes(id).await;
    }
    let old = version(bed).await;
    let scanned = || sidecar.metric("walsweep_sweep_scanned_keys_total");
    let (before, mut inside) = (scanned().await, 0);
    let keys: u32 = cmd("DBSIZE").query_async::<u32>(&mut bed.cache.clone()).await.unwrap();
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    for (percent, &id) in (1..).zip(&ids) {
        let goal = before + f64::from(keys) * f64::from(percent - 1) / 100.0;
        // A pass that has ended stays below: some keys went before it looked at them.
        let mut now = scanned().await;
        while now < goal && sidecar.metric("walsweep_in_flight_transactions").await > 0.0 {
            now = scanned().await;
        }
        sidecar.signal(Signal::Stop);
        readers.answer(id, &old);
        readers.done(id, &old).await;
        sidecar.signal(Signal::Cont);
        let running = sidecar.metric("walsweep_in_flight_transactions").await > 0.0;
        inside += u32::from(running);
    }
    bed.settled().await;
    let mut stale = 0;
    for number in 1..=100 {
        let value = cached(bed, &key(number)).await;
        assert!(value.is_none() || value.as_ref() == Some(&old), "{value:?}");
        stale += usize::from(value.is_some());
    }
    println!("{how}: {stale} of 100 stale, {inside} stored while the pass ran");
    assert!(inside >= 30, "the pass was over too soon: {inside}");
    stale
}

#[tokio::test]
async fn a_fill_is_refused_at_each_percentile_of_a_pass() {
    let mut bed = Bed::new(&[]).await;
    bed.redis = Redis::start(RedisOptions::default().debug().unwrap()).await.unwrap();
    bed.cache = bed.redis.connect().await.unwrap();
    let mut settings = bed.settings();
    // Patterns that begin alike let Redis leave out the crowd, and progress could not be seen.
    settings.rules = settings.rules.replace("\"item:{id}\"", "\"other:{id}:*\"");
    // One call looks at few keys, or it would pass several percentiles at once.
    settings.sweep = "max_stall = \"100us\"".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    lease::load(&mut bed.cache.clone()).await.unwrap();
    for crowd in 0..CROWDS {
        let mut populate = cmd("DEBUG");
        populate.arg("POPULATE").arg(CROWD).arg(format!("crowd:{crowd}"));
        populate.exec_async(&mut bed.cache.clone()).await.unwrap();
    }
    let plain = stale_after_a_pass(&bed, &sidecar, "plain").await;
    assert!(plain >= 10, "{plain}: the race that the lease closes is hardly there");
    for number in 1..=100 {
        bed.cache.clone().unlink::<_, ()>(format!("list:team 1:{number}")).await.unwrap();
    }
    assert_eq!(stale_after_a_pass(&bed, &sidecar, "lease").await, 0);
}

#[tokio::test]
async fn one_of_fifty_readers_computes() {
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let mut cache = redis.connect().await.unwrap();
    lease::load(&mut cache).await.unwrap();
    for (decoded, key) in [(true, "item:1"), (false, "item:2")] {
        let mut readers = Readers::start(&redis.url(), decoded, 30.0);
        let first = readers.read("lease", key);
        readers.computes(first).await;
        let others: Vec<Id> = (1..50).map(|_| readers.read("lease", key)).collect();
        // Time to compute, too, for those who would.
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        readers.answer(first, "value");
        for &id in others.iter().chain([&first]) {
            readers.done(id, "value").await;
        }
        assert_eq!(readers.computing(), [first]);
        // Without the lease, those that come while one computes do so, too.
        let plain: Vec<Id> = (0..5).map(|_| readers.read("plain", "other")).collect();
        for &id in &plain {
            readers.computes(id).await;
        }
    }
}

#[tokio::test]
async fn a_reader_that_fails_lets_the_next_one_compute() {
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    lease::load(&mut redis.connect().await.unwrap()).await.unwrap();
    let mut readers = Readers::start(&redis.url(), true, 30.0);
    let failing = readers.read("lease", "k");
    readers.computes(failing).await;
    let next = readers.read("lease", "k");
    readers.fail(failing);
    readers.says(&format!("failed {failing}")).await;
    readers.computes(next).await;
    readers.answer(next, "value");
    readers.done(next, "value").await;
}

/// The cache is never what a read depends on: without the functions, without patience, without
/// Redis it costs a computation, and stores nothing.
#[tokio::test]
async fn a_reader_without_a_lease_computes_and_stores_nothing() {
    let mut redis = Redis::start(RedisOptions::default()).await.unwrap();
    let mut cache = redis.connect().await.unwrap();
    let mut readers = Readers::start(&redis.url(), false, 0.05);
    let compute = async |readers: &mut Readers| {
        let id = readers.read("lease", "k");
        readers.computes(id).await;
        readers.answer(id, "value");
        readers.done(id, "value").await;
    };
    compute(&mut readers).await;
    assert!(!cache.exists::<_, bool>("k").await.unwrap(), "no functions");
    lease::load(&mut cache).await.unwrap();
    let holder = readers.read("lease", "k");
    readers.computes(holder).await;
    let marker: String = cache.get("k").await.unwrap();
    compute(&mut readers).await;
    assert_eq!(cache.get::<_, String>("k").await.unwrap(), marker, "the holder's lease stands");
    readers.answer(holder, "of the holder");
    readers.done(holder, "of the holder").await;
    assert_eq!(cache.get::<_, String>("k").await.unwrap(), "of the holder");
    redis.kill9().await.unwrap();
    compute(&mut readers).await;
}
