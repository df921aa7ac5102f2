//! Passes take at most their share of Redis's time in any ten seconds, whatever is asked.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Kind;
use super::redis::budget::{GONE_WITHIN, WINDOW};
use super::tests::{Bench, keys, local};
use crate::settle::{Cause, Replayed, Visible};

/// A bench whose Redis has so many other keys, and works a millisecond for each.
async fn bench(others: usize, window: Duration) -> Bench {
    let mut bench = Bench::new(window);
    bench.whole().await;
    // They sort before the keys of rules: what comes during a pass moves none that it has to see.
    let names: Vec<String> = (0..others).map(|number| format!("another:{number:05}")).collect();
    bench.redis.fill(&names.iter().map(String::as_str).collect::<Vec<_>>());
    bench.redis.0.key_work.set(1_000);
    bench
}

impl Bench {
    /// The most that SCAN took in any ten seconds.
    fn most(&self) -> Duration {
        let scans = self.redis.0.scans.borrow();
        let until = |end: &Instant| -> Duration {
            let within = |at: &Instant| at <= end && *at + WINDOW > *end;
            scans.iter().filter(|(at, _)| within(at)).map(|(_, took)| *took).sum()
        };
        scans.iter().map(|(end, _)| until(end)).max().unwrap_or_default()
    }

    /// How long a pass over everything takes the server.
    fn cost(&self) -> Duration {
        let keys = self.redis.0.keys.borrow().len() as u64;
        Duration::from_micros(self.redis.0.key_work.get() * keys)
    }

    fn throttled(&self) -> f64 {
        self.metrics.sweep_throttled.get()
    }

    /// Commits patterns at this distance, for so long; gives how long each key was there after it.
    async fn stream(&mut self, distance: Duration, length: Duration) -> Vec<Duration> {
        let (mut gone, mut waiting) = (Vec::new(), Vec::<(Instant, String)>::new());
        let began = Instant::now();
        let (mut next, mut number) = (began, 0);
        while began.elapsed() < length || !waiting.is_empty() {
            assert!(began.elapsed() < length + WINDOW * 2, "{} keys stay", waiting.len());
            if Instant::now() >= next && began.elapsed() < length {
                let key = format!("list:{number:05}:a");
                self.redis.fill(&[&key]);
                waiting.push((Instant::now(), key));
                self.commit(1_000 + number, "list", &[&format!("{number:05}")]).await;
                (next, number) = (next + distance, number + 1);
            }
            while let Ok((_, event)) = self.events.try_recv() {
                drop(event);
            }
            sleep(Duration::from_millis(5)).await;
            waiting.retain(|(since, key)| {
                let stays = self.redis.has(key);
                if !stays {
                    gone.push(since.elapsed());
                }
                stays
            });
        }
        gone
    }
}

/// First and second removals of one, ten and fifty commits a second, over a Redis of which a pass
/// takes a third of a second.
#[tokio::test(start_paused = true)]
async fn a_stream_of_patterns_takes_no_more_than_the_share_and_its_keys_go_in_time() {
    for tells_time in [true, false] {
        for (a_second, window) in [(1, 1), (10, 0), (50, 1)] {
            local(async {
                let mut bench = bench(300, Duration::from_secs(window)).await;
                bench.redis.0.tells_time.set(tells_time);
                let distance = Duration::from_secs(1) / a_second;
                let gone = bench.stream(distance, Duration::from_secs(30)).await;
                let case = format!("{a_second} a second, window {window} s, tells {tells_time}");
                assert!(gone.len() >= 29, "{case}: {}", gone.len());
                let (share, most) = (WINDOW.mul_f64(0.25), bench.most());
                assert!(most <= share + Duration::from_millis(15), "{case}: {most:?}");
                let longest = gone.iter().max().unwrap();
                assert!(*longest <= GONE_WITHIN, "{case}: {longest:?}");
                let passes = bench.redis.0.passes.get();
                assert!(passes >= 8, "{case}: {passes} passes");
                assert!(bench.throttled() > 1.0, "{case}: {}", bench.throttled());
                assert_eq!(bench.health.readiness().1, "connecting to postgres\n", "{case}");
            })
            .await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pass_after_quiet_does_not_wait() {
    local(async {
        let mut bench = bench(2_000, Duration::ZERO).await;
        let began = Instant::now();
        bench.commit(110, "list", &["1"]).await;
        assert_eq!(bench.swept().await, [110]);
        // A call of ten keys works for ten milliseconds, and the way takes another.
        let (took, cost) = (began.elapsed(), bench.cost());
        assert!(took <= cost * 2 + Duration::from_millis(50), "{took:?} for {cost:?}");
        assert_eq!(bench.throttled(), 0.0);
    })
    .await;
}

/// A pattern that waits goes with the next pass, and a pass over more than the share comes to its
/// end.
#[tokio::test(start_paused = true)]
async fn a_pass_that_takes_more_than_the_share_waits_on_its_way_and_ends() {
    local(async {
        let mut bench = bench(6_000, Duration::ZERO).await;
        bench.redis.0.tells_time.set(true);
        bench.redis.fill(&["item:1", "list:1:a"]);
        let began = Instant::now();
        bench.commit(110, "list", &["1"]).await;
        bench.commit(120, "item", &["1"]).await;
        let ended = timeout(Duration::from_secs(1), bench.swept()).await;
        assert_eq!(ended.unwrap(), [120], "exact keys wait for no pass");
        assert_eq!(bench.swept().await, [110]);
        let took = began.elapsed();
        // 2.5 s at once, then ten seconds for each 2.5 s.
        assert!(took >= Duration::from_secs(20) && took <= Duration::from_secs(30), "{took:?}");
        assert!(bench.most() <= WINDOW.mul_f64(0.25) + Duration::from_millis(15));
        assert!(!bench.redis.has("list:1:a"));
        let (_, said) = bench.health.readiness();
        for part in ["keys of patterns waited", "max_load", "another of its databases"] {
            assert!(said.contains(part), "{said}");
        }
        // When none was late for a while it is taken back.
        sleep(Duration::from_secs(180)).await;
        assert_eq!(bench.health.readiness().1, "connecting to postgres\n");
    })
    .await;
}

/// The way to a server is no work of the server's, nor is what this machine needs.
#[tokio::test(start_paused = true)]
async fn a_far_server_is_not_taken_for_a_busy_one() {
    for tells_time in [true, false] {
        local(async {
            let mut bench = bench(50, Duration::ZERO).await;
            bench.redis.0.tells_time.set(tells_time);
            bench.redis.0.slow.set(20_000);
            for round in 0..20 {
                bench.commit(110 + round, "list", &["1"]).await;
                bench.swept().await;
            }
            // Five calls of 31 ms each pass, ten of them work.
            assert!(bench.throttled() < 0.5, "{tells_time}: {}", bench.throttled());
        })
        .await;
    }
}

/// A machine that is late with everything thinks that Redis is busy, unless Redis tells. Removals
/// go on in any case.
#[tokio::test(start_paused = true)]
async fn a_machine_that_is_late_does_not_starve_removals() {
    for tells_time in [true, false] {
        local(async {
            let mut bench = bench(100, Duration::ZERO).await;
            bench.redis.0.tells_time.set(tells_time);
            let redis = bench.redis.clone();
            tokio::task::spawn_local(async move {
                let mut late = 0;
                loop {
                    sleep(Duration::from_millis(7)).await;
                    late = (late + 1) % 5;
                    redis.0.slow.set(if late == 0 { 0 } else { 10_000 });
                }
            });
            let gone = bench.stream(Duration::from_secs(1), Duration::from_secs(30)).await;
            let longest = *gone.iter().max().unwrap();
            let limit = if tells_time { Duration::from_secs(3) } else { WINDOW };
            assert!(longest <= limit, "{tells_time}: {longest:?}");
        })
        .await;
    }
}

/// One that waits for its turn gives up at once, so that no other removal waits for it.
#[tokio::test(start_paused = true)]
async fn a_pass_that_waits_does_not_hold_up_a_new_connection() {
    local(async {
        let mut bench = bench(6_000, Duration::ZERO).await;
        bench.redis.fill(&["item:1"]);
        bench.commit(110, "list", &["1"]).await;
        // By then it waits.
        sleep(Duration::from_secs(7)).await;
        let before = bench.redis.0.scans.borrow().len();
        bench.redis.0.fails.set(Some(Kind::Io));
        bench.commit(120, "item", &["1"]).await;
        sleep(Duration::from_millis(100)).await;
        bench.redis.0.fails.set(None);
        let began = Instant::now();
        assert_eq!(bench.redis.0.scans.borrow().len(), before, "it waits");
        while bench.redis.has("item:1") {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(began.elapsed() <= Duration::from_millis(500), "{:?}", began.elapsed());
        assert_eq!(bench.swept().await, [120]);
        assert_eq!(bench.swept().await, [110], "it begins again");
    })
    .await;
}

/// A second removal that is due waits until all is paid for, so that a first one need not.
#[tokio::test(start_paused = true)]
async fn a_first_removal_does_not_wait_for_second_ones() {
    local(async {
        let mut bench = bench(400, Duration::from_secs(1)).await;
        bench.commit(110, "list", &["1"]).await;
        let began = Instant::now();
        while bench.redis.0.passes.get() < 2 {
            sleep(Duration::from_millis(5)).await;
        }
        assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
        bench.redis.fill(&["list:2:a"]);
        bench.commit(120, "list", &["2"]).await;
        let began = Instant::now();
        while bench.redis.has("list:2:a") {
            sleep(Duration::from_millis(5)).await;
        }
        assert!(began.elapsed() <= bench.cost() * 3, "{:?}", began.elapsed());
    })
    .await;
}

/// I7: readiness waits for one pass after quiet, however dear the passes before it were.
#[tokio::test(start_paused = true)]
async fn a_sweep_of_everything_counts_and_is_not_held_up() {
    local(async {
        let mut bench = bench(500, Duration::ZERO).await;
        for lsn in 1..=3 {
            bench.commit(100 + lsn, "list", &["1"]).await;
            bench.swept().await;
        }
        let began = Instant::now();
        bench.resync().await;
        let before = bench.redis.0.passes.get();
        while bench.redis.0.passes.get() == before {
            sleep(Duration::from_millis(5)).await;
        }
        assert!(began.elapsed() <= GONE_WITHIN, "{:?}", began.elapsed());
        assert!(bench.most() <= WINDOW.mul_f64(0.25) + Duration::from_millis(15));
    })
    .await;
}

/// A refusal that is about keys says nothing of whether Redis takes writes at all.
#[tokio::test(start_paused = true)]
async fn keys_that_are_refused_do_not_show_that_redis_takes_writes() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.whole().await;
        bench.redis.forbid(Some("item:no"));
        bench.redis.0.refuses.set(Some(Kind::Misconf));
        bench.commit(110, "item", &["1"]).await;
        sleep(Duration::from_secs(3)).await;
        let tried = bench.redis.0.refused.get();
        for _ in 0..60 {
            let cause = Cause::Replayed(Replayed { hold: None, resyncs: 0 });
            let keys = keys(&bench.rules, "item", &["no"]);
            bench.visible.send(Visible::for_tests(cause, keys)).await.unwrap();
            sleep(Duration::from_millis(50)).await;
            assert!(bench.health.readiness().1.contains("refuses removals"));
        }
        let tried = bench.redis.0.refused.get() - tried;
        assert!((2..=5).contains(&tried), "{tried} tries in three seconds");
    })
    .await;
}

/// Who blocks the thread asks.
#[tokio::test(start_paused = true)]
async fn a_pass_is_known_while_it_is_under_way() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.whole().await;
        assert!(!bench.health.has_pass());
        bench.redis.fill(&["list:1:a"]);
        bench.redis.0.slow.set(20_000);
        bench.commit(110, "list", &["1"]).await;
        let mut is_known = false;
        while bench.redis.has("list:1:a") {
            is_known |= bench.health.has_pass();
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(bench.swept().await, [110]);
        assert!(is_known && !bench.health.has_pass());
    })
    .await;
}
