//! P6: one settlement that touches eight patterns, in a Redis of a million keys, against the eight
//! loops of `SCAN MATCH … COUNT 100` and `DEL` that it replaces.

use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use crate::median;
use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually};

const KEYS: usize = 1_000_000;
const ROUNDS: usize = 3;

/// Eight patterns, as the football site's, of which a thousandth of the keys match.
const PATTERNS: [&str; 8] = [
    "db:leaderboard:*",
    "stats:leaderboard:*",
    "stats:overall:*",
    "db:model:*:stats",
    "stats:model:*",
    "stats:competition:*comp:epl*",
    "stats:club:*club:Arsenal*",
    "stats:club:*club:Chelsea*",
];

pub(crate) async fn run() {
    let bed = Bed::new(&[]).await;
    let keys = PATTERNS.map(|pattern| format!("{pattern:?}")).join(", ");
    let rules =
        format!("[[rule]]\nname = \"settlement\"\ntable = \"public.item\"\nkeys = [{keys}]\n");
    let mut settings = Settings::new(&bed.postgres, &bed.redis, &rules);
    settings.level = "info".to_owned();
    let mut sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    fill(&mut bed.cache.clone(), KEYS).await;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        stale(&mut bed.cache.clone()).await;
        ours.push(measure(&bed, settle(&bed, &sidecar)).await);
        sidecar.signal(walsweep_stage::throwaway::Signal::Stop);
        stale(&mut bed.cache.clone()).await;
        theirs.push(measure(&bed, eight_loops(bed.cache.clone())).await);
        sidecar.signal(walsweep_stage::throwaway::Signal::Cont);
    }
    assert_eq!(sidecar.sigterm().await, 0);
    for (at, what) in [(0, "Redis CPU seconds"), (1, "wall seconds")] {
        let of = |all: &[[f64; 2]]| median(&mut all.iter().map(|one| one[at]).collect::<Vec<_>>());
        println!(
            "| P6 | {what} of one settlement, 8 patterns over 1 M keys | {:.2} | 8 loops {:.2} | \
             1/{:.1} |",
            of(&ours),
            of(&theirs),
            of(&theirs) / of(&ours)
        );
    }
}

/// Redis CPU and wall seconds of some work.
pub(crate) async fn measure(bed: &Bed, work: impl Future<Output = ()>) -> [f64; 2] {
    let before = redis_cpu(bed.cache.clone()).await;
    let began = Instant::now();
    work.await;
    let wall = began.elapsed().as_secs_f64();
    [redis_cpu(bed.cache.clone()).await - before, wall]
}

async fn settle(bed: &Bed, sidecar: &Sidecar) {
    let passes = "walsweep_sweeps_total{reason=\"rule\"}";
    let before = sidecar.metric(passes).await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    eventually(PATIENCE, "the pass ends", || async { sidecar.metric(passes).await > before }).await;
}

async fn eight_loops(mut cache: MultiplexedConnection) {
    for pattern in PATTERNS {
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(100);
            let (next, keys): (u64, Vec<Vec<u8>>) = scan.query_async(&mut cache).await.unwrap();
            if !keys.is_empty() {
                redis::cmd("DEL").arg(keys).exec_async(&mut cache).await.unwrap();
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
}

/// So many keys that no pattern matches.
pub(crate) async fn fill(cache: &mut MultiplexedConnection, keys: usize) {
    for chunk in (0..keys).collect::<Vec<_>>().chunks(1000) {
        let mut pipeline = redis::pipe();
        for id in chunk {
            let key = format!("session:{id:07}:page");
            pipeline.cmd("SET").arg(key).arg("x".repeat(64)).ignore();
        }
        pipeline.exec_async(cache).await.unwrap();
    }
}

/// A hundred keys for each pattern.
async fn stale(cache: &mut MultiplexedConnection) {
    let mut pipeline = redis::pipe();
    for pattern in PATTERNS {
        for id in 0..100 {
            let key = pattern.replace('*', &format!("x{id}"));
            pipeline.cmd("SET").arg(key).arg("stale").ignore();
        }
    }
    pipeline.exec_async(cache).await.unwrap();
}

/// Seconds of a processor that Redis has used.
pub(crate) async fn redis_cpu(mut cache: MultiplexedConnection) -> f64 {
    let info: String = redis::cmd("INFO").arg("cpu").query_async(&mut cache).await.unwrap();
    let field = |name: &str| -> f64 {
        let line = info.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().parse().unwrap()
    };
    field("used_cpu_user:") + field("used_cpu_sys:")
}
