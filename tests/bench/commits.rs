//! P11: what a consumer costs the application: pgbench with everything on the same processors.
//!
//! TPC-B of four clients; rules on the three tables that it updates. In turn: nobody streams, the
//! unsafe client does, walsweep does. Then walsweep's own processor time a commit at a steady rate.

use std::time::Duration;

use tokio::time::sleep;

use crate::backlog::cpu_seconds;
use crate::median;
use crate::peer::Peer;
use crate::support::{Bed, Settings, Sidecar, text};

const ROUNDS: usize = 3;
const SECONDS: u32 = 10;
const STEADY_RATE: u32 = 2_000;
const TABLES: [&str; 3] = ["accounts", "branches", "tellers"];

pub(crate) async fn run() {
    let bed = Bed::new(&["fsync = on", "max_wal_size = 4GB"]).await;
    let loaded = bed.postgres.command("pgbench").args(["-i", "-q", "-s", "10"]).output().unwrap();
    assert!(loaded.status.success(), "{}", text(&loaded));
    let published = TABLES.map(|table| format!("pgbench_{table}")).join(", ");
    for name in ["walsweep", "unsafe"] {
        bed.sql.run(&format!("create publication {name} for table {published}")).await;
        let slot = format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
        bed.sql.run(&slot).await;
    }
    let mut sidecar = sidecar(&bed);
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        rates[0].push(pgbench(&bed, None).await);
        let peer = Peer::start(&bed, "unsafe", false);
        rates[1].push(pgbench(&bed, None).await);
        drop(peer);
        sidecar.start();
        sidecar.wait_ready().await;
        bed.settled().await;
        rates[2].push(pgbench(&bed, None).await);
        sidecar.sigterm().await;
        sleep(Duration::from_millis(500)).await;
    }
    let [alone, hasty, own] = rates.map(|mut some| median(&mut some));
    println!(
        "| P11 | pgbench transactions a second with a consumer, all on the same processors | \
         {own:.0} | unsafe client {hasty:.0} (without any {alone:.0}) | {:.2} × |",
        own / hasty
    );
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
    let before = cpu_seconds(sidecar.id()).unwrap();
    let rate = pgbench(&bed, Some(STEADY_RATE)).await;
    let cpu = cpu_seconds(sidecar.id()).unwrap() - before;
    let commits = rate * f64::from(SECONDS);
    println!(
        "| P11 | own processor time a commit at {rate:.0} commits/s | {:.0} µs | – | – |",
        cpu / commits * 1e6
    );
}

fn sidecar(bed: &Bed) -> Sidecar {
    let rule = |table: &str| {
        let id = format!("{}id", &table[..1]);
        format!(
            "[[rule]]\nname = \"{table}\"\ntable = \"public.pgbench_{table}\"\n\
             operations = [\"update\"]\nkeys = [\"pgbench_{table}:{{{id}}}\"]\n"
        )
    };
    let mut settings = Settings::new(&bed.postgres, &bed.redis, &TABLES.map(rule).concat());
    settings.level = "info".to_owned();
    settings.refill = "1s".to_owned();
    Sidecar::new(settings)
}

/// Transactions a second of one run, as fast as it goes or at a given rate.
async fn pgbench(bed: &Bed, rate: Option<u32>) -> f64 {
    let mut command = bed.postgres.command("pgbench");
    command.args(["-n", "-c", "4", "-j", "1", "-T", &SECONDS.to_string()]);
    if let Some(rate) = rate {
        command.args(["-R", &rate.to_string()]);
    }
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let tps = said.lines().find_map(|line| line.strip_prefix("tps = ")).expect("it tells");
    tps.split(' ').next().unwrap().parse().unwrap()
}
