//! How the stale-read checker judges: it must neither overlook a stale value nor invent one.
//!
//! The checker itself is a program of its own: `make check-consistency`.

#[path = "../consistency/effects.rs"]
mod effects;
#[path = "../consistency/history.rs"]
mod history;

use std::time::Duration;

use effects::Effects;
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

/// The life and the bound of row 1's value of version 10, in seconds, as keys of a family show it.
fn life_of(history: &History, family: &str) -> Option<(u64, u64)> {
    let life = history.judge(family, [(1, 10)].into_iter(), Instant::now());
    life.map(|life| (life.life.as_secs(), life.bound.as_secs()))
}

#[tokio::test(start_paused = true)]
async fn a_trouble_lengthens_the_bound_of_its_own_keys_by_the_time_to_notice_it() {
    let history = History::new(BASE, NOTICE);
    history.record(&[1], 10);
    history.trouble_begins(&["page", "pages"]);
    history.record(&[1], 11);
    advance(seconds(4)).await;
    assert_eq!(life_of(&history, "pages"), Some((4, 5 + 4)));
    assert_eq!(life_of(&history, "item"), Some((4, 5)), "the others go as ever");
    advance(seconds(20)).await;
    assert_eq!(life_of(&history, "pages"), Some((24, 5 + 10)), "ready all the time");
    // The cure is something that no row tells, too.
    history.trouble_begins(&["stat"]);
    history.trouble_goes_on(&["page", "pages"]);
    advance(seconds(3)).await;
    assert_eq!(life_of(&history, "pages"), Some((27, 5 + 10 + 3)));
    assert_eq!(life_of(&history, "stat"), Some((27, 5 + 3)));
    history.troubles_end();
    advance(seconds(5)).await;
    assert_eq!(life_of(&history, "pages"), Some((32, 5 + 10 + 3)), "over is over");
    assert_eq!(life_of(&history, "page"), Some((32, 5 + 10 + 3)));
    assert_eq!(life_of(&history, "item"), Some((32, 5)));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ready_excuses_the_keys_of_a_trouble_and_no_others() {
    let history = History::new(BASE, NOTICE);
    history.record(&[1], 10);
    history.record(&[1], 11);
    history.is_ready(true);
    advance(seconds(2)).await;
    history.trouble_begins(&["page"]);
    advance(seconds(4)).await;
    history.is_ready(false);
    advance(seconds(7)).await;
    history.is_ready(false);
    advance(seconds(7)).await;
    history.is_ready(true);
    advance(seconds(1)).await;
    history.is_ready(true);
    // 10 s to notice it and 14 s not ready, of which 6 s are both.
    assert_eq!(life_of(&history, "page"), Some((21, 5 + 18)));
    assert_eq!(life_of(&history, "item"), Some((21, 5)));
    assert_eq!(history.unready(), seconds(14));
    let life = history.judge("item", [(1, 10)].into_iter(), Instant::now());
    assert_eq!(life.map(|life| life.ready), Some(seconds(7)), "what readers could trust");
    // An outage at the same time is not added twice.
    history.outage_begins();
    history.is_ready(false);
    advance(seconds(2)).await;
    history.outage_ends();
    assert_eq!(life_of(&history, "page"), Some((23, 5 + 20)));
    assert_eq!(life_of(&history, "item"), Some((23, 5 + 2)));
    // Not ready before the trouble, or after it, excuses nothing.
    history.troubles_end();
    advance(seconds(9)).await;
    assert_eq!(life_of(&history, "page"), Some((32, 5 + 20)));
    assert_eq!(history.unready(), seconds(25), "one that goes on counts, too");
}

#[tokio::test(start_paused = true)]
async fn not_ready_without_a_trouble_excuses_nothing() {
    let history = History::new(BASE, NOTICE);
    history.record(&[1], 10);
    history.is_ready(false);
    history.record(&[1], 11);
    advance(seconds(8)).await;
    assert_eq!(life_of(&history, "page"), Some((8, 5)));
    // Nor does it before one begins.
    history.trouble_begins(&["page"]);
    advance(seconds(3)).await;
    assert_eq!(life_of(&history, "page"), Some((11, 5 + 3)));
}

#[test]
fn a_fault_without_effect_fails_the_run_though_it_had_one_before() {
    let mut effects = Effects::default();
    assert!(effects.failures().is_empty());
    effects.record("lock-held:item", Ok(()));
    effects.record("table-dropped", Ok(()));
    assert!(effects.failures().is_empty());
    effects.record("lock-held:item", Err("`item` is not locked".to_owned()));
    effects.record("lock-held:item", Ok(()));
    let wanted = "lock-held:item had no effect 1 of 3 times: `item` is not locked";
    assert_eq!(effects.failures(), [wanted]);
}
