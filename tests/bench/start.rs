//! P10: from start to ready, nothing to catch up with and an empty Redis.

use tokio::time::Instant;

use crate::quantile;
use crate::support::{Bed, Sidecar};

const STARTS: usize = 20;

pub(crate) async fn run() {
    let bed = Bed::new(&[]).await;
    let mut settings = bed.settings();
    settings.refill = "1s".to_owned();
    settings.level = "info".to_owned();
    let mut sidecar = Sidecar::new(settings);
    sidecar.setup();
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let began = Instant::now();
        sidecar.start();
        sidecar.wait_ready().await;
        times.push(began.elapsed());
        assert_eq!(sidecar.sigterm().await, 0);
    }
    let (typical, worst) = (quantile(&mut times, 0.5), quantile(&mut times, 1.0));
    println!(
        "| P10 | start to ready, nothing to do | {:.0} ms, at most {:.0} ms | – | – |",
        typical.as_secs_f64() * 1e3,
        worst.as_secs_f64() * 1e3
    );
}
