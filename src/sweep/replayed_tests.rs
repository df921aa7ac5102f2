//! Keys whose transaction standbys have yet to replay: removed at once, confirmed later.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::tests::{Bench, Redis, keys, local};
use super::{Event, Kind};
use crate::gather::Transaction;
use crate::lsn::Lsn;
use crate::settle::{Cause, Hold, Replayed, Visible};

impl Bench {
    /// A commit that is visible, and not on every standby.
    async fn commit_not_replayed(&mut self, hold: Hold, end_lsn: u64, ids: &[&str]) {
        let keys = keys(&self.rules, "item", ids);
        let end_lsn = Lsn(end_lsn);
        let transaction = Transaction { xid: 1, commit_lsn: end_lsn, end_lsn, commit_time: 0 };
        let visible = Visible::for_tests(Cause::Transaction(transaction), keys);
        self.visible.send(visible.not_replayed(hold)).await.unwrap();
    }

    async fn resync_not_replayed(&mut self) {
        let keys = self.rules.everything();
        let visible = Visible::for_tests(Cause::Resync { last: true }, keys);
        self.visible.send(visible.not_replayed(Hold::new_name())).await.unwrap();
    }

    /// All standbys have replayed commits of table `item` that these hold, and so many sweeps.
    async fn replayed(&mut self, hold: Option<Hold>, ids: &[&str], resyncs: u32) {
        let keys =
            if resyncs > 0 { self.rules.everything() } else { keys(&self.rules, "item", ids) };
        let cause = Cause::Replayed(Replayed { hold, resyncs });
        self.visible.send(Visible::for_tests(cause, keys)).await.unwrap();
    }

    /// Gives the end LSNs of transactions that may be confirmed after ten seconds.
    async fn events(&mut self) -> Vec<u64> {
        let end = Instant::now() + Duration::from_secs(10);
        while let Ok(Some((_, event))) = timeout_at(end, self.events.recv()).await {
            match &event {
                Event::Held(held) => self.waiting.held(held),
                Event::Swept(swept) => self.done.extend(self.waiting.swept(swept)),
                _ => {}
            }
        }
        std::mem::take(&mut self.done)
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_swept_before_the_removal_after_the_replay() {
    for window in [Duration::ZERO, Duration::from_secs(1)] {
        local(async {
            let mut bench = Bench::new(window);
            bench.redis.fill(&["item:1"]);
            let hold = Hold::new_name();
            bench.commit_not_replayed(hold, 110, &["1"]).await;
            bench.commit(120, "item", &["2"]).await;
            assert_eq!(bench.swept().await, [120], "what standbys need not replay is not held");
            assert_eq!(bench.events().await, [0; 0], "110 is not replayed");
            assert!(!bench.redis.has("item:1"), "its keys went all the same");
            bench.redis.fill(&["item:1"]);
            bench.replayed(Some(hold), &["1"], 0).await;
            assert_eq!(bench.swept().await, [110]);
            assert!(!bench.redis.has("item:1"), "what a standby's reader cached is gone");
        })
        .await;
    }
}

/// I8 on a standby: its reader may have read just before the replay and write only now.
#[tokio::test(start_paused = true)]
async fn the_removal_after_the_replay_has_a_second_one() {
    local(async {
        let mut bench = Bench::new(Duration::from_secs(1));
        let hold = Hold::new_name();
        bench.commit_not_replayed(hold, 110, &["1"]).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        bench.redis.fill(&["item:1"]);
        bench.replayed(Some(hold), &["1"], 0).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!bench.redis.has("item:1"));
        bench.redis.fill(&["item:1"]);
        assert_eq!(bench.swept().await, [110]);
        assert!(!bench.redis.has("item:1"));
    })
    .await;
}

/// Removals that a standby alone is waited for count as refills, not as the rule's keys again.
#[tokio::test(start_paused = true)]
async fn keys_found_after_the_replay_count_as_refills() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.redis.fill(&["item:1"]);
        let hold = Hold::new_name();
        bench.commit_not_replayed(hold, 110, &["1"]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench.redis.fill(&["item:1"]);
        bench.replayed(Some(hold), &["1"], 0).await;
        assert_eq!(bench.swept().await, [110]);
        let text = bench.metrics.text();
        assert!(text.contains("walsweep_refills_removed_total{rule=\"item\"} 1\n"), "{text}");
        assert!(text.contains("walsweep_keys_removed_total{rule=\"item\"} 1\n"), "{text}");
        assert!(text.contains("walsweep_visible_to_removed_seconds_count 1\n"), "{text}");
    })
    .await;
}

/// I7: ready at the first removal, but the watermark, the evidence, stays until the last one.
#[tokio::test(start_paused = true)]
async fn a_sweep_of_everything_is_paid_after_the_replay() {
    for window in [Duration::ZERO, Duration::from_secs(1)] {
        local(async {
            let mut bench = Bench::over(Redis::default(), None, window);
            bench.resync_not_replayed().await;
            bench.whole().await;
            bench.safe.send(Lsn(150)).unwrap();
            bench.events().await;
            assert_eq!(bench.redis.watermark_lsn(), None, "still owed");
            bench.redis.fill(&["item:7", "list:7:a"]);
            bench.replayed(None, &[], 1).await;
            bench.covered(150).await;
            assert!(!bench.redis.has("item:7") && !bench.redis.has("list:7:a"));
        })
        .await;
    }
}

/// A Redis that may have lost that first removal gets it again, and readiness with it, without a
/// word from any standby.
#[tokio::test(start_paused = true)]
async fn a_lost_redis_does_not_wait_for_standbys_to_be_swept_again() {
    for window in [Duration::ZERO, Duration::from_secs(1)] {
        local(async {
            let mut bench = Bench::over(Redis::default(), None, window);
            bench.resync_not_replayed().await;
            bench.whole().await;
            // The first removal, and the second one, are over.
            bench.events().await;
            let hold = Hold::new_name();
            for end_lsn in [110, 120] {
                bench.redis.0.fails.set(Some(Kind::Io));
                bench.commit_not_replayed(hold, end_lsn, &["1"]).await;
                bench.wait(|event| matches!(event, Event::RedisLost).then_some(())).await;
                bench.redis.fill(&["item:7"]);
                bench.redis.0.fails.set(None);
                bench.whole().await;
                assert!(!bench.redis.has("item:7"), "it came back and is swept");
                bench.events().await;
            }
            assert_eq!(bench.redis.watermark_lsn(), None, "still owed");
            bench.replayed(Some(hold), &[], 1).await;
            assert_eq!(bench.all_swept(2).await, [110, 120]);
            bench.safe.send(Lsn(120)).unwrap();
            bench.covered(120).await;
        })
        .await;
    }
}

/// I8: standbys that replay all the time leave the second removals their turn.
#[tokio::test(start_paused = true)]
async fn second_removals_are_made_between_removals_after_replays() {
    local(async {
        let mut bench = Bench::new(Duration::from_secs(1));
        bench.whole().await;
        bench.commit(110, "item", &["1"]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        bench.redis.fill(&["item:1"]);
        // Longer than it takes until the next replay is told.
        bench.redis.0.slow.set(50_000);
        for _ in 0..100 {
            bench.replayed(None, &["2"], 0).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!bench.redis.has("item:1"), "its second removal never came");
    })
    .await;
}
