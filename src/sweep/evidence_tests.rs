//! The watermark: written before it is told, and left as it shows a loss until that is made good.

use std::time::Duration;

use super::tests::{Bench, Redis, local};
use super::{Broken, Event};
use crate::lsn::Lsn;

#[tokio::test(start_paused = true)]
async fn the_watermark_is_written_before_it_is_told() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.covered(100).await;
        bench.safe.send_replace(Lsn(150));
        bench.covered(150).await;
        assert_eq!(bench.redis.watermark_lsn(), Some(Lsn(150)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_unbroken_start_sweeps_nothing() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.whole().await;
        assert_eq!(bench.redis.0.passes.get() + bench.redis.0.unlinks.get(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_evidence_of_a_loss_stays_until_the_sweep_is_done() {
    local(async {
        for watermark in [None, Some(90)] {
            let window = Duration::from_secs(1);
            let mut bench = Bench::over(Redis::default(), watermark, window);
            bench.redis.fill(&["item:1", "list:1:a", "other"]);
            let broken = bench.wait(|event| match event {
                Event::ResyncOwed(doubt) => Some(doubt.reason()),
                _ => None,
            });
            let reason = match watermark {
                None => Broken::WatermarkMissing,
                Some(_) => Broken::WatermarkBehind,
            };
            assert_eq!(broken.await, reason);
            bench.safe.send_replace(Lsn(150));
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(bench.redis.watermark_lsn(), watermark.map(Lsn), "not yet swept");
            bench.resync().await;
            bench.whole().await;
            assert_eq!(bench.redis.watermark_lsn(), watermark.map(Lsn), "not removed again yet");
            assert!(!bench.redis.has("item:1") && !bench.redis.has("list:1:a"));
            assert!(bench.redis.has("other"));
            bench.covered(150).await;
            assert_eq!(bench.redis.watermark_lsn(), Some(Lsn(150)));
        }
    })
    .await;
}

/// A process before this one removed the keys, and could not confirm it: sent again, they are no
/// late ones.
#[tokio::test(start_paused = true)]
async fn what_the_watermark_shows_as_removed_is_not_counted_again() {
    local(async {
        let mut bench = Bench::over(Redis::default(), Some(150), Duration::ZERO);
        for end_lsn in [120, 150, 160] {
            bench.commit(end_lsn, "item", &["7"]).await;
        }
        while !bench.done.contains(&160) {
            bench.wait(|event| matches!(event, Event::Swept(_)).then_some(())).await;
        }
        let text = bench.metrics.text();
        let count = "walsweep_commit_to_removed_seconds_count 1";
        assert!(text.lines().any(|line| line == count), "{text}");
    })
    .await;
}
