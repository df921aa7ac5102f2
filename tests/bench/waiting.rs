//! Patterns that wait for one pass, 1, 2, 8 and 64 of them: what the pass takes, by SCAN and with
//! an index. `KEYS=10000000` for a larger Redis.

use crate::settlement::{fill, measure};
use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually};

/// Keys of each pattern that are there.
const MATCHES: usize = 100;

pub(crate) async fn run() {
    let keys = std::env::var("KEYS").map_or(1_000_000, |text| text.parse().unwrap());
    let bed = Bed::new(&[]).await;
    fill(&mut bed.cache.clone(), keys).await;
    for (way, sweep, passes) in [
        ("SCAN", "max_load = 1.0", "walsweep_sweeps_total{reason=\"rule\"}"),
        ("index", "index = true\nmax_load = 1.0", "walsweep_index_passes_total"),
    ] {
        for patterns in [1, 2, 8, 64] {
            let templates: Vec<String> =
                (0..patterns).map(|at| format!("\"stats:{at}:*club:{{version}}*\"")).collect();
            let rules = format!(
                "[[rule]]\nname = \"stats\"\ntable = \"public.item\"\n\
                 operations = [\"update\"]\nkeys = [{}]\n",
                templates.join(", ")
            );
            let mut settings = Settings::new(&bed.postgres, &bed.redis, &rules);
            settings.level = "warn".to_owned();
            settings.name = format!("{}_{patterns}", way.to_lowercase());
            settings.sweep = sweep.to_owned();
            let mut sidecar = Sidecar::set_up(settings).await;
            bed.sql.run("update item set version = 0 where id = 1").await;
            bed.settled().await;
            if way == "index" {
                let is_whole = async || sidecar.metric_sum("walsweep_index_whole").await > 0.5;
                eventually(PATIENCE, "the index is whole", is_whole).await;
            }
            stale(&bed, patterns).await;
            let before = sidecar.metric_sum(passes).await;
            // Old and new version: twice as many patterns as templates would wait.
            let [cpu, wall] = measure(&bed, async {
                bed.sql.run("update item set version = 0 where id = 1").await;
                let is_through = async || sidecar.metric_sum(passes).await > before;
                eventually(PATIENCE, "the pass ends", is_through).await;
            })
            .await;
            println!(
                "| waiting | {patterns} patterns over {keys} keys, by {way}: Redis CPU, wall | \
                 {cpu:.3} s, {wall:.3} s | – | – |"
            );
            assert_eq!(sidecar.sigterm().await, 0);
        }
    }
}

async fn stale(bed: &Bed, patterns: usize) {
    let mut pipeline = redis::pipe();
    for at in 0..patterns {
        for key in 0..MATCHES {
            pipeline.cmd("SET").arg(format!("stats:{at}:x{key}club:0")).arg("stale").ignore();
        }
    }
    pipeline.exec_async(&mut bed.cache.clone()).await.unwrap();
}
