//! A Redis that goes back, shows another watermark, or has too few replicas (I7), on paused time.

use std::time::Duration;

use tokio::time::timeout;

use super::tests::{Bench, local};
use super::{Broken, Event, Kind};
use crate::lsn::Lsn;

impl Bench {
    /// A transaction from its arrival to the watermark that covers it.
    async fn commit_and_cover(&mut self, end_lsn: u64, table: &str, ids: &[&str]) {
        self.commit(end_lsn, table, ids).await;
        assert_eq!(self.swept().await, [end_lsn]);
        self.safe.send_replace(Lsn(end_lsn));
        self.covered(end_lsn).await;
    }

    /// The connection is lost, and Redis comes back with the watermark that it had before.
    async fn go_back(&mut self, watermark: Option<Vec<u8>>) {
        self.redis.0.fails.set(Some(Kind::Io));
        self.commit(900, "item", &["never there"]).await;
        self.wait(|event| matches!(event, Event::RedisLost).then_some(())).await;
        *self.redis.0.watermark.borrow_mut() = watermark;
        self.redis.0.fails.set(None);
    }

    async fn owed(&mut self) -> Broken {
        self.wait(|event| match event {
            Event::ResyncOwed(doubt) => Some(doubt.reason()),
            _ => None,
        })
        .await
    }

    fn value(&self) -> Option<Vec<u8>> {
        self.redis.0.watermark.borrow().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_watermark_changed_by_others_is_not_replaced() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.covered(100).await;
        // An older state of this Redis, put in place behind our back.
        *bench.redis.0.watermark.borrow_mut() = Some(b"older".to_vec());
        bench.safe.send_replace(Lsn(150));
        let broken = bench.wait(|event| match event {
            Event::ResyncOwed(doubt) => Some(doubt.reason()),
            _ => None,
        });
        assert_eq!(broken.await, Broken::WatermarkLost);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(bench.redis.0.watermark.borrow().as_deref(), Some(b"older".as_slice()));
        bench.resync().await;
        bench.covered(150).await;
        assert_eq!(bench.redis.watermark_lsn(), Some(Lsn(150)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_the_watermark_does_not_cover_is_removed_again_after_a_reconnect() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.redis.fill(&["item:1", "list:1:a"]);
        bench.commit(110, "item", &["1"]).await;
        bench.commit(120, "list", &["1"]).await;
        let mut swept = bench.swept().await;
        while swept.len() < 2 {
            swept.extend(bench.swept().await);
        }
        // Redis goes away and comes back with the removals lost and the watermark as it was.
        bench.redis.0.fails.set(Some(Kind::Io));
        bench.commit(130, "item", &["9"]).await;
        bench.wait(|event| matches!(event, Event::RedisLost).then_some(())).await;
        bench.redis.fill(&["item:1", "list:1:a"]);
        bench.redis.0.fails.set(None);
        bench.safe.send_replace(Lsn(120));
        bench.covered(120).await;
        assert!(!bench.redis.has("item:1") && !bench.redis.has("list:1:a"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_redis_lost_is_removed_again_before_the_watermark_moves() {
    local(async {
        for window in [Duration::ZERO, Duration::from_secs(1)] {
            let mut bench = Bench::new(window);
            bench.redis.fill(&["item:1", "item:2", "list:3:a"]);
            bench.commit_and_cover(110, "item", &["1"]).await;
            let older = bench.value();
            bench.commit_and_cover(120, "item", &["2"]).await;
            bench.commit_and_cover(130, "list", &["3"]).await;
            bench.redis.forbid(Some("item:2"));
            bench.go_back(older).await;
            // The first is not stale: somebody filled it since, and it stays.
            bench.redis.fill(&["item:1", "item:2", "list:3:a"]);
            bench.safe.send_replace(Lsn(150));
            let early = timeout(Duration::from_secs(30), bench.whole()).await;
            assert!(early.is_err(), "ready with a stale key");
            assert_eq!(bench.redis.watermark_lsn(), Some(Lsn(110)), "the evidence stays");
            bench.redis.forbid(None);
            bench.whole().await;
            assert!(!bench.redis.has("item:2") && !bench.redis.has("list:3:a"));
            bench.covered(150).await;
            assert!(bench.redis.has("item:1"), "nothing but what was lost is removed");
        }
    })
    .await;
}

/// Redis goes back a second time while what it lost the first time is being removed again.
#[tokio::test(start_paused = true)]
async fn what_is_being_repeated_is_repeated_once_more() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.commit_and_cover(110, "item", &["1"]).await;
        let first = bench.value();
        bench.commit_and_cover(120, "item", &["2"]).await;
        let second = bench.value();
        bench.commit_and_cover(130, "item", &["3"]).await;
        // Twice to the same value: the first time does not make it evidence of what came later.
        for _ in 0..2 {
            bench.go_back(second.clone()).await;
            bench.redis.fill(&["item:3"]);
            bench.whole().await;
            assert!(!bench.redis.has("item:3"));
        }
        bench.go_back(first).await;
        bench.redis.fill(&["item:1", "item:2", "item:3"]);
        bench.whole().await;
        assert!(!bench.redis.has("item:2") && !bench.redis.has("item:3"));
        assert!(bench.redis.has("item:1"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_older_value_of_ours_found_by_a_write_is_answered_like_one_found_by_a_reconnect() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.commit_and_cover(110, "item", &["1"]).await;
        let older = bench.value();
        bench.commit_and_cover(120, "item", &["2"]).await;
        *bench.redis.0.watermark.borrow_mut() = older;
        bench.redis.fill(&["item:1", "item:2"]);
        bench.safe.send_replace(Lsn(150));
        bench
            .wait(|event| {
                assert!(!matches!(event, Event::ResyncOwed(_)), "a sweep of everything");
                matches!(event, Event::Covered(Lsn(150))).then_some(())
            })
            .await;
        assert!(bench.redis.has("item:1") && !bench.redis.has("item:2"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_the_ring_does_not_cover_is_swept() {
    local(async {
        // Too old: what was removed above it is forgotten.
        let mut bench = Bench::new(Duration::ZERO);
        bench.commit_and_cover(110, "item", &["1"]).await;
        let older = bench.value();
        bench.commit_and_cover(120, "item", &["2"]).await;
        tokio::time::sleep(Duration::from_secs(61)).await;
        bench.commit_and_cover(130, "item", &["3"]).await;
        bench.go_back(older).await;
        assert_eq!(bench.owed().await, Broken::WatermarkLost);
        // Never written: between two values of ours, and after the last.
        for lsn in ["0/6F", "0/C8"] {
            let mut bench = Bench::new(Duration::ZERO);
            bench.commit_and_cover(110, "item", &["1"]).await;
            let text = String::from_utf8(bench.value().unwrap()).unwrap();
            bench.commit_and_cover(120, "item", &["2"]).await;
            let forged = text.replace("0/6E", lsn);
            assert_ne!(forged, text);
            bench.go_back(Some(forged.into_bytes())).await;
            assert_eq!(bench.owed().await, Broken::WatermarkLost, "{lsn}");
        }
        // None at all.
        let mut bench = Bench::new(Duration::ZERO);
        bench.commit_and_cover(110, "item", &["1"]).await;
        bench.go_back(None).await;
        assert_eq!(bench.owed().await, Broken::WatermarkLost);
    })
    .await;
}

/// One old file is loaded twice, with no commit in between.
#[tokio::test(start_paused = true)]
async fn a_state_that_was_swept_for_is_swept_for_again() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.commit_and_cover(110, "item", &["1"]).await;
        let text = String::from_utf8(bench.value().unwrap()).unwrap();
        let earlier_session = text.replace("0/6E", "0/5A").into_bytes();
        for _ in 0..2 {
            bench.go_back(Some(earlier_session.clone())).await;
            assert_eq!(bench.owed().await, Broken::WatermarkLost);
            bench.resync().await;
            bench.covered(110).await;
            assert_eq!(bench.redis.watermark_lsn(), Some(Lsn(110)), "written anew");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn too_few_replicas_hold_what_is_told_and_no_key() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.whole().await;
        bench.redis.0.alone.set(true);
        bench.redis.fill(&["item:1", "item:2"]);
        bench.commit(110, "item", &["1"]).await;
        bench.safe.send_replace(Lsn(110));
        let early = timeout(Duration::from_secs(30), bench.covered(110)).await;
        assert!(early.is_err(), "told to Postgres without a replica");
        assert_eq!(bench.redis.watermark_lsn(), Some(Lsn(110)), "it stands in the primary");
        bench.commit(120, "item", &["2"]).await;
        assert_eq!(bench.all_swept(2).await, [110, 120]);
        assert!(!bench.redis.has("item:1") && !bench.redis.has("item:2"));
        // Also over a reconnect.
        let standing = bench.value();
        bench.go_back(standing).await;
        let early = timeout(Duration::from_secs(30), bench.covered(101)).await;
        assert!(early.is_err(), "told to Postgres without a replica");
        bench.redis.0.alone.set(false);
        bench.covered(110).await;
    })
    .await;
}

/// A key that a server shows to be absent is known to be so on that server only: a removal of
/// nothing says so.
#[tokio::test(start_paused = true)]
async fn a_removal_that_finds_nothing_counts() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.whole().await;
        bench.commit(110, "list", &["1"]).await;
        bench.swept().await;
        // Without exact keys, and at the end of the pass; then the server must be the same one.
        assert_eq!(bench.redis.0.proofs.get(), (2, 1));
    })
    .await;
}
