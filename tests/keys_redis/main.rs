//! The glob of the sweeper against the glob of a real Redis.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use walsweep::keys::Pattern;
use walsweep_stage::throwaway::{Redis, RedisOptions};

/// Mostly bytes that mean something in a glob, over few letters so that matches are common.
fn bytes(size: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    let meaningful = prop::sample::select(&b"aabb*?[]^-\\"[..]);
    let byte = prop_oneof![12 => meaningful, 1 => any::<u8>(), 1 => 0x7e..0x83u8];
    prop::collection::vec(byte, size)
}

#[tokio::test]
async fn a_pattern_finds_the_keys_that_redis_finds() {
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap());
    let config = Config { rng_seed: RngSeed::Fixed(seed), ..Config::default() };
    let mut runner = TestRunner::new(config);
    let mut sample =
        |strategy: &BoxedStrategy<Vec<u8>>| strategy.new_tree(&mut runner).unwrap().current();
    let (keys_of, patterns_of) = (bytes(0..9).boxed(), bytes(0..12).boxed());
    let mut keys: Vec<Vec<u8>> = (0..1_500).map(|_| sample(&keys_of)).collect();
    keys.extend((0..=255).map(|byte| vec![byte]));
    keys.push(Vec::new());
    keys.sort();
    keys.dedup();

    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let mut connection = redis.connect().await.unwrap();
    for key in &keys {
        redis::cmd("SET").arg(key).arg(1).exec_async(&mut connection).await.unwrap();
    }
    let fixed: [&[u8]; 12] = [
        b"",
        b"*",
        b"**",
        b"[",
        b"[^",
        b"[^]",
        b"[a-",
        b"[a-]",
        b"[\\",
        b"a\\",
        b"[\x80-a]",
        b"[^b-a]*",
    ];
    let (mut found_count, mut pattern_count) = (0, 0);
    let patterns = (0..6_000).map(|_| sample(&patterns_of));
    for bytes in fixed.into_iter().map(<[u8]>::to_vec).chain(patterns) {
        let mut scan = redis::cmd("SCAN");
        scan.arg(0).arg("MATCH").arg(&bytes).arg("COUNT").arg(1_000_000);
        let (cursor, mut found): (u64, Vec<Vec<u8>>) =
            scan.query_async(&mut connection).await.unwrap();
        assert_eq!(cursor, 0, "one call scans all");
        found.sort();
        let pattern = Pattern::parse(&bytes);
        let expected: Vec<Vec<u8>> =
            keys.iter().filter(|key| pattern.matches(key)).cloned().collect();
        assert_eq!(found, expected, "{pattern:?}, SEED={seed}");
        let prefix = pattern.literal_prefix();
        assert!(found.iter().all(|key| key.starts_with(prefix)), "{pattern:?}, SEED={seed}");
        if let Some(literal) = pattern.as_literal() {
            assert!(found.iter().all(|key| *key == literal), "{pattern:?}, SEED={seed}");
        }
        pattern_count += 1;
        found_count += found.len();
    }
    assert!(found_count > 10 * pattern_count, "the patterns find too little to prove anything");
}
