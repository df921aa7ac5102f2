//! A shop whose pages are joins of nine tables, as an oracle: its pages are read by their queries
//! before and after random transactions, one at a time and several at once.
//!
//! A page that shows something else must have lost its key; a page that shows the same should have
//! kept it, and the share of those that did not is printed. `SHOP_TRANSACTIONS=10000` makes it a
//! long history, `SHOP_SEED` another one.

mod acts;

use std::collections::BTreeMap;

use futures_util::future::join_all;
use rand::SeedableRng;
use rand::rngs::StdRng;
use redis::AsyncCommands;

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually};

const RULES: &str = include_str!("rules.toml");

/// Transactions at once in every other round.
const WRITERS: usize = 4;

/// Pages by their keys, each with what it shows.
type Pages = BTreeMap<String, Option<String>>;

/// The fate of the pages.
#[derive(Debug, Default)]
struct Outcome {
    transactions: usize,
    /// Pages that showed something else.
    changed: usize,
    /// Of these, pages that kept their key.
    stale: Vec<String>,
    /// Pages that showed the same, and lost their key: one transaction at a time.
    needless: usize,
    removed: usize,
    /// Pages that showed the same, and lost their key: several transactions at once.
    needless_at_once: usize,
    removed_at_once: usize,
}

async fn pages(bed: &Bed) -> Pages {
    let rows = bed.sql.client().query(include_str!("pages.sql"), &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// The pages that are in the cache.
async fn cached(bed: &Bed, pages: &Pages) -> Vec<bool> {
    let keys: Vec<&String> = pages.keys().collect();
    let values: Vec<Option<String>> = bed.cache.clone().mget(keys).await.unwrap();
    values.iter().map(Option::is_some).collect()
}

async fn fill(bed: &Bed, pages: &Pages) {
    let all: Vec<(&String, &str)> = pages.keys().map(|key| (key, "page")).collect();
    let _: () = bed.cache.clone().mset(&all).await.unwrap();
}

/// A history of so many transactions, held against the rules.
async fn history(rules: &str, transactions: usize) -> Outcome {
    let bed = Bed::new(&[]).await;
    bed.sql.run(include_str!("schema.sql")).await;
    let item = "[[rule]]\nname = \"rest\"\ntable = \"item\"\nkeys = [\"item:{id}\"]\n";
    let rules = format!("{rules}\n{item}");
    let settings = Settings { rules, level: "warn".to_owned(), ..bed.settings() };
    let sidecar = Sidecar::set_up(settings).await;
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        writers.push(Sql::connect(&bed.postgres).await);
    }
    let seed = std::env::var("SHOP_SEED").ok().and_then(|text| text.parse().ok());
    let mut random = StdRng::seed_from_u64(seed.unwrap_or(7));
    let (mut outcome, mut before) = (Outcome::default(), pages(&bed).await);
    let mut round = 0;
    while outcome.transactions < transactions {
        fill(&bed, &before).await;
        round += 1;
        let count = if round % 2 == 0 { WRITERS } else { 1 };
        let texts: Vec<String> = (0..count).map(|_| acts::transaction(&mut random)).collect();
        join_all(writers.iter().zip(&texts).map(|(writer, text)| run(writer, text))).await;
        outcome.transactions += count;
        rest(&bed, &sidecar, round).await;
        let after = pages(&bed).await;
        let cached = cached(&bed, &after).await;
        for ((key, shown), is_cached) in after.iter().zip(cached) {
            let is_other = before[key] != *shown;
            outcome.changed += usize::from(is_other);
            if is_other && is_cached {
                outcome.stale.push(format!("{key} after {texts:?}"));
            }
            let (removed, needless) = if count == 1 {
                (&mut outcome.removed, &mut outcome.needless)
            } else {
                (&mut outcome.removed_at_once, &mut outcome.needless_at_once)
            };
            *removed += usize::from(!is_cached);
            *needless += usize::from(!is_cached && !is_other);
        }
        before = after;
    }
    let Outcome { transactions, changed, stale, .. } = &outcome;
    println!(
        "{transactions} transactions changed {changed} pages: {} stale; one at a time {} of {} \
         removals were needless, {WRITERS} at once {} of {}; {} placeholders widened",
        stale.len(),
        outcome.needless,
        outcome.removed,
        outcome.needless_at_once,
        outcome.removed_at_once,
        sidecar.metric_sum("walsweep_widened_total").await.abs(),
    );
    outcome
}

/// Waits until what is committed by now has lost its keys. A slot that is confirmed says the same,
/// some hundred milliseconds later.
async fn rest(bed: &Bed, sidecar: &Sidecar, round: i32) {
    bed.fill(&["item:1"]).await;
    bed.sql.run(&format!("update item set version = {round} where id = 1")).await;
    // Received, and all before it.
    bed.gone("item:1").await;
    let is_clear = || async { sidecar.metric("walsweep_in_flight_transactions").await < 0.5 };
    // The first answer may be from before the last arrivals were counted.
    eventually(PATIENCE, "all keys are removed", || async { is_clear().await && is_clear().await })
        .await;
}

/// Those that are in each other's way may fail, and then change nothing.
async fn run(writer: &Sql, transaction: &str) {
    if writer.client().batch_execute(transaction).await.is_err() {
        writer.run("rollback").await;
    }
}

fn transactions() -> usize {
    std::env::var("SHOP_TRANSACTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}

#[tokio::test]
async fn every_page_that_changes_goes_and_hardly_any_other() {
    let outcome = history(RULES, transactions()).await;
    assert!(outcome.stale.is_empty(), "{:#?}", outcome.stale);
    assert!(outcome.changed > outcome.transactions / 4, "{outcome:?}");
    assert!(outcome.needless * 4 < outcome.removed, "{outcome:?}");
}

/// Without the key of one join some page must be stale, or the test above proves nothing.
#[tokio::test]
async fn without_a_rule_for_a_join_the_oracle_bites() {
    for key in [", \"product:{products_of_tag.product_id}\"", ", \"cart:{carts.user_id}\""] {
        let name = &key[key.find('{').unwrap() + 1..key.find('.').unwrap()];
        let lookup = RULES.find(&format!("[lookup.{name}]")).unwrap();
        let end = lookup + 1 + RULES[lookup + 1..].find("\n[").unwrap();
        let rules = format!("{}{}", &RULES[..lookup], &RULES[end..]).replace(key, "");
        let outcome = history(&rules, transactions().min(400)).await;
        assert!(!outcome.stale.is_empty(), "{key}: the oracle sees nothing");
    }
}
