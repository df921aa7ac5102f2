//! I2: a crash at each named point, between receiving a commit and confirming it, loses nothing.

use std::time::Duration;

use redis::AsyncCommands;
use tokio::time::{Instant, sleep};
use walsweep::failpoint::{Point, VARIABLE};
use walsweep::lsn::Lsn;
use walsweep::sweep::Watermark;

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually};

/// The second removal comes this much later, or later still.
const WINDOW: Duration = Duration::from_millis(300);

/// A late fill this soon after the commit comes before the second removal, however slow this
/// machine is.
const LATE_FILL_MAX: Duration = Duration::from_millis(200);

/// Commits that are made while the crash is awaited, of the items 1, 2, 3 and so on.
const COMMITS_MAX: i32 = 90;

/// The item that changes while nothing runs.
const DOWN: i32 = 99;

/// SIGABRT, as [`Sidecar::wait_exit`] tells it.
const ABORTED: i32 = -6;

/// Keys that nothing asks for until the end: an unbroken restart leaves them alone.
const UNTOUCHED: [&str; 2] = ["item:100", "list:nobody:a"];

/// A committed transaction.
struct Commit {
    /// Not below the end of its commit record.
    end: Lsn,
    keys: [String; 2],
}

/// How a point is reached.
struct Case {
    point: Point,
    /// How often it is passed before: a start without any commit passes the last ones once.
    times: u32,
    /// Whether history is broken before the start, so that everything is swept.
    resync: bool,
}

impl Case {
    fn of(point: Point) -> Case {
        let times = match point {
            Point::ResyncOwed | Point::ResyncShown => 1,
            Point::WatermarkDue | Point::WatermarkWritten | Point::ConfirmDue => 3,
            Point::Confirmed => 4,
            _ => 2,
        };
        Case { point, times, resync: matches!(point, Point::ResyncOwed | Point::ResyncShown) }
    }
}

fn settings(bed: &Bed) -> Settings {
    let mut settings = bed.settings();
    settings.refill = format!("{}ms", WINDOW.as_millis());
    settings
}

/// Commits a change of one item whose keys are cached, and caches them again when they go, as a
/// reader would that read the old row before the commit.
async fn commit(bed: &Bed, sidecar: &mut Sidecar, id: i32) -> Commit {
    // Ten items to a team: each commit of ten has a pattern of its own.
    let keys = [format!("item:{id}"), format!("list:team {}:{id}", id % 10)];
    let [exact, pattern] = &keys;
    bed.fill(&[exact, pattern]).await;
    let began = Instant::now();
    bed.sql.run(&format!("update item set version = version + 1 where id = {id}")).await;
    let end = "select pg_current_wal_insert_lsn()::text";
    let end = bed.sql.one::<String>(end).await.parse().unwrap();
    while began.elapsed() < LATE_FILL_MAX && !sidecar.has_ended() && bed.has(pattern).await {
        sleep(Duration::from_millis(1)).await;
    }
    if began.elapsed() < LATE_FILL_MAX {
        bed.fill(&[exact, pattern]).await;
    }
    if began.elapsed() >= WINDOW {
        // The fill may have come after the second removal: that is not promised (I8).
        let _: () = bed.cache.clone().del(&[exact, pattern]).await.unwrap();
    }
    Commit { end, keys }
}

/// Nothing is confirmed whose keys are still there, nor above the watermark.
async fn assert_confirmed_last(bed: &Bed, case: &Case, commits: &[Commit]) -> Lsn {
    let Case { point, resync, .. } = *case;
    let active = "select active from pg_replication_slots where slot_name = 'walsweep'";
    // The last word of the dead process is then heard.
    eventually(PATIENCE, "the slot is released", || async { !bed.sql.one::<bool>(active).await })
        .await;
    let confirmed = bed.confirmed().await;
    for commit in commits.iter().filter(|commit| commit.end <= confirmed) {
        for key in &commit.keys {
            assert!(!bed.has(key).await, "{point:?}: {confirmed} is confirmed, `{key}` is there");
        }
    }
    if !resync {
        let found: Option<Vec<u8>> = bed.cache.clone().get("walsweep:walsweep").await.unwrap();
        let covered = Watermark::from_value(&found.expect("the watermark stands")).unwrap().lsn;
        assert!(covered >= confirmed, "{point:?}: {confirmed} is confirmed above {covered}");
    }
    confirmed
}

/// Crashes at one point and starts again. Gives how many commits were not confirmed by then.
async fn crash_at(bed: &mut Bed, sidecar: &mut Sidecar, case: &Case) -> usize {
    let Case { point, times, resync } = *case;
    bed.fill(&UNTOUCHED).await;
    if resync {
        let _: () = bed.cache.del("walsweep:walsweep").await.unwrap();
    }
    let crash = format!("{}:{times}", point.as_str());
    sidecar.change(|settings| settings.env = vec![(VARIABLE.to_owned(), crash)]);
    sidecar.start();
    let mut commits = Vec::new();
    for id in 1..=COMMITS_MAX {
        commits.push(commit(bed, sidecar, id).await);
        if sidecar.has_ended() {
            break;
        }
    }
    assert_eq!(sidecar.wait_exit().await, ABORTED, "{point:?} is reached");
    let confirmed = assert_confirmed_last(bed, case, &commits).await;
    let open = commits.iter().filter(|commit| commit.end > confirmed).count();
    // Down, with one more commit; it must not be needed for those before it.
    let down = [format!("item:{DOWN}"), "list:team 9:down".to_owned()];
    bed.fill(&down.each_ref().map(String::as_str)).await;
    bed.sql.run(&format!("update item set version = version + 1 where id = {DOWN}")).await;
    sidecar.change(|settings| settings.env.clear());
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
    for key in commits.iter().flat_map(|commit| &commit.keys).chain(&down) {
        assert!(!bed.has(key).await, "{point:?}: `{key}` is stale at rest");
    }
    for key in UNTOUCHED {
        assert_eq!(bed.has(key).await, !resync, "{point:?}: `{key}` after the restart");
    }
    assert!(bed.has("session:1").await, "{point:?}: no rule covers it");
    assert_eq!(sidecar.sigterm().await, 0);
    open
}

/// Every n-th point, beginning with this one, on servers of their own.
async fn crash_at_every(first: usize, step: usize) {
    let mut bed = Bed::new(&[]).await;
    // A pass takes several pages.
    let mut pipeline = redis::pipe();
    for number in 0..3000 {
        pipeline.set(format!("other:{number}"), 1).ignore();
    }
    pipeline.exec_async(&mut bed.cache).await.unwrap();
    bed.fill(&["session:1"]).await;
    let mut sidecar = Sidecar::set_up(settings(&bed)).await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    for point in Point::ALL.into_iter().skip(first).step_by(step) {
        let began = Instant::now();
        let open = crash_at(&mut bed, &mut sidecar, &Case::of(point)).await;
        println!("{point:?}: {open} commits open at the crash, {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_each_even_point_loses_nothing() {
    crash_at_every(0, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_each_odd_point_loses_nothing() {
    crash_at_every(1, 2).await;
}
