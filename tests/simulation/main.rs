//! Thousands of schedules of faults, each from a seed: the real stages on virtual time, against a
//! Postgres, one or two Redis and readers in memory that do whatever real ones may do.
//!
//! `SEED=123` runs the schedule of that seed alone and tells what happened; `SCHEDULES=100000` runs
//! so many, from a seed of chance or from `SEED` on.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test may fail")]

mod clients;
mod eyes;
mod judge;
mod large;
mod node;
mod postgres;
mod random;
mod redis;
mod reorder;
mod schedule;
mod sidecar;
mod walsender;
mod world;

use std::cell::RefCell;
use std::env;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZero;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use walsweep::config;

use judge::LOOKS;
use schedule::{Outcome, run};

/// Schedules of an ordinary run.
const SCHEDULES: u64 = 2000;

/// Names of the things that a run counts.
const LOOKED_AT: [&str; LOOKS] = [
    "removals",
    "watermarks",
    "confirmations",
    "prompt removals",
    "values at rest",
    "resyncs",
    "blocks",
    "undone parts of transactions in blocks",
    "undone transactions in blocks",
    "transactions in blocks sent again",
    "removals refused for a prefix",
    "removals from a target that lost nothing, while another is swept",
    "prompt removals from a target, while something is wrong with another",
    "pages of names by an index",
];

thread_local! {
    /// The panic of a task, where a runtime would hide it.
    static PANICKED: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn rules() -> Rc<Vec<config::Rule>> {
    let rule = |table: &str, key: &str| config::Rule::for_tests(table, &[key]);
    Rc::new(vec![rule("item", "item:{id}"), rule("list", "list:{id}:*")])
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Runs one schedule; a panic of a stage is a failure, too.
fn try_one(seed: u64, rules: &Rc<Vec<config::Rule>>, traced: bool) -> Outcome {
    let mut outcome = run(seed, rules, traced);
    if let Some(panicked) = PANICKED.take() {
        outcome.failures.insert(0, panicked);
    }
    outcome
}

/// Runs schedules on every core until all are done or one fails; the seeds that failed.
fn run_all(first: u64, count: u64) -> (Vec<u64>, u64, [u64; LOOKS]) {
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let totals: [AtomicU64; LOOKS] = Default::default();
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let rules = rules();
                while failed.lock().unwrap().is_empty() {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let seed = first.wrapping_add(index);
                    let outcome = try_one(seed, &rules, false);
                    for (total, more) in totals.iter().zip(outcome.looks) {
                        total.fetch_add(more, Ordering::Relaxed);
                    }
                    if !outcome.failures.is_empty() {
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let done = next.into_inner().min(count);
    (failed.into_inner().unwrap(), done, totals.map(AtomicU64::into_inner))
}

/// Tells what happened, and how to see it again.
fn tell(seed: u64) -> String {
    let outcome = try_one(seed, &rules(), true);
    let Outcome { failures, plan, trace, .. } = outcome;
    let replay = "cargo test --features failpoints --test simulation -- --nocapture";
    format!(
        "{}\n\n{plan:#?}\n\n{}\nreplay: SEED={seed} {replay}",
        trace.join("\n"),
        failures.join("\n"),
    )
}

#[test]
fn no_schedule_of_faults_breaks_a_promise() {
    std::panic::set_hook(Box::new(|panic| {
        PANICKED.with(|panicked| panicked.replace(Some(panic.to_string())));
        println!("{panic}");
    }));
    let seed = number("SEED");
    let count = number("SCHEDULES").unwrap_or(if seed.is_some() { 1 } else { SCHEDULES });
    let first = seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
    println!("{count} schedules from seed {first}");
    let (failed, done, totals) = run_all(first, count);
    for (what, total) in LOOKED_AT.iter().zip(totals) {
        println!("{total:>10} {what}");
    }
    if let Some(seed) = failed.iter().min() {
        panic!("{}, after {done} schedules", tell(*seed));
    }
    if count == 1 {
        println!("{}", tell(first));
    } else {
        assert!(totals.iter().all(|total| *total > 0), "something is never looked at");
    }
}
