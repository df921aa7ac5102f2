//! Speed, as ratios against what anyone can install, in the same run: `make bench`.
//!
//! Prints the rows of the README's table. `make bench ONLY=backlog` runs one of them.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark may fail")]

mod backlog;
mod commits;
mod latency;
mod names;
mod patterns;
mod peer;
mod scale;
mod settlement;
mod start;
#[path = "../support/mod.rs"]
mod support;
mod transaction;
mod waiting;

use std::time::Duration;

fn main() {
    let only = std::env::var("ONLY").unwrap_or_default();
    let wanted = |name: &str| only.is_empty() || only == name;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    println!("| # | measure | walsweep | yardstick | ratio |");
    println!("| --- | --- | --- | --- | --- |");
    if wanted("backlog") {
        runtime.block_on(backlog::run());
    }
    if wanted("latency") {
        runtime.block_on(latency::run());
    }
    if wanted("commits") {
        runtime.block_on(commits::run());
    }
    if wanted("settlement") {
        runtime.block_on(settlement::run());
    }
    if wanted("patterns") {
        runtime.block_on(patterns::run());
    }
    if wanted("waiting") {
        runtime.block_on(waiting::run());
    }
    if wanted("index") {
        runtime.block_on(patterns::run_with_index());
    }
    if wanted("names") {
        runtime.block_on(names::run());
    }
    if wanted("transaction") {
        runtime.block_on(transaction::run());
    }
    if wanted("start") {
        runtime.block_on(start::run());
    }
    if wanted("scale") {
        runtime.block_on(scale::run());
    }
}

/// The value below which `share` of the samples lie.
fn quantile(samples: &mut [Duration], share: f64) -> Duration {
    samples.sort_unstable();
    let last = samples.len() - 1;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of a few thousand samples"
    )]
    let index = (last as f64 * share).round() as usize;
    samples[index]
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    samples[samples.len() / 2]
}
