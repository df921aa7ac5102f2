//! An index of a million names, beside a SCAN of as many: what the names take, how long it takes
//! to know them after a start, and what a pattern of a thousand keys costs. `KEYS=10000000` for a
//! larger Redis.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::scale::resident;
use crate::settlement::{fill, measure, redis_cpu};
use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually};

/// The pattern of the rule is one of all other keys, too.
const RULES: &str = "[[rule]]\nname = \"page\"\ntable = \"public.item\"\n\
                     operations = [\"update\"]\nkeys = [\"session:{version}:*\"]\n";

/// Keys that the pattern of a change matches.
const MATCHES: usize = 1_000;

/// Changes, one after the other; each takes other keys.
const CHANGES: usize = 5;

pub(crate) async fn run() {
    let keys = std::env::var("KEYS").map_or(1_000_000, |text| text.parse().unwrap());
    let bed = Bed::new(&[]).await;
    let settings = |way: &str, sweep: &str| {
        let mut settings = Settings::new(&bed.postgres, &bed.redis, RULES);
        (settings.level, settings.name) = ("warn".to_owned(), way.to_owned());
        settings.sweep = format!("{sweep}\nmax_load = 1.0");
        settings
    };
    let ways = [("scan", ""), ("index", "index = true\nindex_memory = \"1GiB\"")];
    let mut sidecars = Vec::new();
    for (way, sweep) in ways {
        // The first start removes all that the rule could give: so it comes before the keys.
        let mut sidecar = Sidecar::set_up(settings(way, sweep)).await;
        bed.sql.run("update item set version = 0 where id = 1").await;
        bed.settled().await;
        assert_eq!(sidecar.sigterm().await, 0);
        sidecars.push(sidecar);
    }
    fill(&mut bed.cache.clone(), keys).await;
    for (mut sidecar, (way, _)) in sidecars.into_iter().zip(ways) {
        let (before, began) = (redis_cpu(bed.cache.clone()).await, Instant::now());
        sidecar.start();
        sidecar.wait_ready().await;
        if way == "index" {
            whole(&bed, &sidecar, keys, (before, began)).await;
        }
        let mut took = Vec::new();
        for change in 1..=CHANGES {
            took.push(change_one(&bed, change).await);
        }
        took.sort_by(|one, other| one[1].total_cmp(&other[1]));
        let [cpu, wall] = took[CHANGES / 2];
        println!(
            "| names | a pattern of {MATCHES} keys among {keys} names of its rule, by {way}: Redis \
             CPU, wall, medians of {CHANGES} | {cpu:.3} s, {wall:.3} s | – | – |"
        );
        assert_eq!(sidecar.sigterm().await, 0);
    }
}

/// Waits until all names are known, and tells what they took.
async fn whole(bed: &Bed, sidecar: &Sidecar, keys: usize, (before, began): (f64, Instant)) {
    let metric = async |name: &str| sidecar.metric_sum(name).await;
    let is_whole = async || metric("walsweep_index_whole").await > 0.5;
    eventually(PATIENCE * 9, "the index is whole", is_whole).await;
    let (wall, cpu) = (began.elapsed().as_secs_f64(), redis_cpu(bed.cache.clone()).await - before);
    assert!(metric("walsweep_index_keys").await >= keys as f64);
    println!(
        "| names | an index of {keys} names of 20 bytes: its memory, resident memory of walsweep; \
         start to whole, Redis CPU | {:.0} MB, {} MiB; {wall:.1} s, {cpu:.1} s | – | – |",
        metric("walsweep_index_bytes").await / 1e6,
        resident(sidecar.id()),
    );
}

/// Writes the keys, changes the row, and waits until they are gone; Redis CPU and wall seconds.
async fn change_one(bed: &Bed, version: usize) -> [f64; 2] {
    let mut pipeline = redis::pipe();
    for key in 0..MATCHES {
        pipeline.cmd("SET").arg(format!("session:{version}:{key}")).arg("stale").ignore();
    }
    pipeline.exec_async(&mut bed.cache.clone()).await.unwrap();
    measure(bed, async {
        bed.sql.run(&format!("update item set version = {version} where id = 1")).await;
        let last = format!("session:{version}:{}", MATCHES - 1);
        while bed.has(&last).await {
            sleep(Duration::from_micros(500)).await;
        }
    })
    .await
}
