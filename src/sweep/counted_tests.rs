//! Metrics count the keys that went, also where their removal fails on the way.

use std::time::Duration;

use tokio::time::sleep;

use super::tests::{Bench, local};
use super::{Event, Kind};

/// Keys of each kind: more than one round trip removes.
const KEYS: usize = 12_000;

/// The value of a metric of a rule.
fn counted(bench: &Bench, metric: &str, rule: &str) -> usize {
    let series = format!("{metric}{{rule=\"{rule}\"}} ");
    let text = bench.metrics.text();
    let line = text.lines().find_map(|line| line.strip_prefix(&series));
    line.map_or(0, |value| value.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn keys_that_went_before_an_error_are_counted() {
    local(async {
        for rule in ["item", "list"] {
            let mut bench = Bench::new(Duration::ZERO);
            bench.whole().await;
            let ids: Vec<String> = (0..KEYS).map(|id| id.to_string()).collect();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let key = |id: &&str| match rule {
                "item" => format!("item:{id}"),
                _ => format!("list:7:{id}"),
            };
            let all: Vec<String> = ids.iter().map(key).collect();
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            bench.redis.fill(&all);
            bench.redis.0.slow.set(20_000);
            match rule {
                "item" => bench.commit(110, rule, &ids).await,
                _ => bench.commit(110, rule, &["7"]).await,
            }
            let left = |bench: &Bench| all.iter().filter(|key| bench.redis.has(key)).count();
            while left(&bench) == KEYS {
                sleep(Duration::from_millis(5)).await;
            }
            bench.redis.0.fails.set(Some(Kind::Io));
            bench.wait(|event| matches!(event, Event::RedisLost).then_some(())).await;
            let removed = KEYS - left(&bench);
            assert!(removed > 0 && removed < KEYS, "{rule}: it fails on the way: {removed}");
            assert_eq!(counted(&bench, "walsweep_keys_removed_total", rule), removed, "{rule}");
            bench.redis.0.fails.set(None);
            assert_eq!(bench.swept().await, [110]);
            assert_eq!(counted(&bench, "walsweep_keys_removed_total", rule), KEYS, "{rule}");
        }
    })
    .await;
}

/// One of a sweep, too: its patterns are those of several rules.
#[tokio::test(start_paused = true)]
async fn a_second_removal_is_counted_by_rule() {
    local(async {
        let mut bench = Bench::new(Duration::from_secs(1));
        bench.whole().await;
        bench.resync().await;
        bench.whole().await;
        bench.redis.fill(&["item:1", "item:2", "list:7:a"]);
        sleep(Duration::from_secs(3)).await;
        for (rule, count) in [("item", 2), ("list", 1)] {
            assert_eq!(counted(&bench, "walsweep_refills_removed_total", rule), count, "{rule}");
            assert_eq!(counted(&bench, "walsweep_keys_removed_total", rule), 0, "{rule}");
        }
    })
    .await;
}
