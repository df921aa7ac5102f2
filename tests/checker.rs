//! How the stale-read checker judges: it must neither overlook a stale value nor invent one.
//!
//! The checker itself is a program of its own: `make check-consistency`.

#[path = "consistency/history.rs"]
mod history;

use std::time::Duration;

use history::{History, Life};
use tokio::time::{Instant, advance};

const BASE: Duration = Duration::from_secs(5);
const NOTICE: Duration = Duration::from_secs(10);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn judge(history: &History, value: &[(i32, u64)]) -> Option<(u64, u64)> {
    let life: Option<Life> = history.judge("item", value.iter().copied(), Instant::now());
    life.map(|life| (life.life.as_secs(), life.bound.as_secs()))
}

#[tokio::test(start_paused = true)]
async fn a_value_is_stale_since_the_first_later_version_of_any_of_its_rows() {
    let history = History::new(BASE, NOTICE);
    history.record(&[1, 2], 10);
    advance(seconds(1)).await;
    history.record(&[1], 11);
    advance(seconds(1)).await;
    history.record(&[1], 12);
    history.record(&[2], 13);
    advance(seconds(1)).await;
    assert_eq!(judge(&history, &[(1, 10)]), Some((2, 5)));
    assert_eq!(judge(&history, &[(1, 12)]), None);
    assert_eq!(judge(&history, &[(2, 10), (1, 12)]), Some((1, 5)));
    // Seen before anybody was told.
    assert_eq!(judge(&history, &[(1, 14)]), None);
    // Looked up before it was overwritten, judged after.
    let before = Instant::now() - seconds(3);
    assert!(history.judge("item", [(1, 10)].into_iter(), before).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_version_that_was_seen_earlier_than_acknowledged_counts_from_then() {
    let history = History::new(BASE, NOTICE);
    history.record(&[1], 10);
    history.observe(&[(1, 11)]);
    advance(seconds(1)).await;
    history.record(&[1], 11);
    assert_eq!(judge(&history, &[(1, 10)]), Some((1, 5)));
}

#[tokio::test(start_paused = true)]
async fn an_outage_within_the_life_adds_to_its_bound() {
    let history = History::new(BASE, NOTICE);
    history.outage_begins();
    advance(seconds(7)).await;
    history.record(&[1], 10);
    history.record(&[1], 11);
    advance(seconds(2)).await;
    assert_eq!(history.outage_ends(), seconds(9));
    advance(seconds(4)).await;
    assert_eq!(judge(&history, &[(1, 10)]), Some((6, 7)), "only what overlaps counts");
    let life = history.judge("item", [(1, 10)].into_iter(), Instant::now());
    assert_eq!(life.map(|life| life.outage), Some(seconds(2)));
    history.outage_begins();
    advance(seconds(1)).await;
    assert_eq!(judge(&history, &[(1, 10)]), Some((7, 8)), "one that goes on counts, too");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_a_crash_took_back_is_stale_from_then_on() {
    let history = History::new(BASE, NOTICE);
    history.record(&[1], 10);
    history.record(&[1], 11);
    advance(seconds(1)).await;
    history.recovered(&[(1, 10)]);
    advance(seconds(1)).await;
    assert_eq!(judge(&history, &[(1, 10)]), None);
    assert_eq!(judge(&history, &[(1, 11)]), Some((1, 5)));
    // A reader that saw it before the crash speaks late.
    history.observe(&[(1, 11)]);
    assert_eq!(judge(&history, &[(1, 10)]), None);
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_came_back_from_the_past_lives_from_then_on() {
    let history = History::new(BASE, NOTICE);
    history.record(&[1], 10);
    history.record(&[1], 11);
    advance(seconds(60)).await;
    history.forget();
    history.restored();
    advance(seconds(1)).await;
    assert_eq!(judge(&history, &[(1, 10)]), Some((1, 5)));
    assert_eq!(judge(&history, &[(1, 11)]), None);
}
