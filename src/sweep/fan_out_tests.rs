//! Several targets are fed: one that is full has a backlog, and nobody else waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::fan_out::{FanOut, Parcel};
use super::job::{Member, Round};
use super::tests::{Redis, Waiting, keys, local, rules, settings};
use super::{Event, Kind, Room, Settings, Sweeper, Watermark};
use crate::budget::OfTarget;
use crate::channel::{Receiver, Sender, Weight, channel};
use crate::config::TargetId;
use crate::gather::Transaction;
use crate::keys::{KeySet, Rules};
use crate::lsn::Lsn;
use crate::settle::{Cause, Held, Hold, Replayed, Visible};
use crate::telemetry::Health;
use crate::telemetry::metrics::Metrics;

const ONE: TargetId = TargetId(0);
const OTHER: TargetId = TargetId(1);

fn committed(end_lsn: u64, keys: KeySet) -> Visible {
    let end_lsn = Lsn(end_lsn);
    let transaction = Transaction { xid: 1, commit_lsn: end_lsn, end_lsn, commit_time: 0 };
    Visible::for_tests(Cause::Transaction(transaction), keys)
}

/// A target whose Redis is never away.
fn here() -> watch::Receiver<bool> {
    watch::channel(false).1
}

/// Keys on their way to a Redis that is away would leave no room for others: however many there
/// are, they wait in the backlog, and go when that Redis is back.
#[tokio::test(start_paused = true)]
async fn for_a_target_that_is_away_nothing_is_on_its_way() {
    local(async {
        let (is_away, away) = watch::channel(true);
        let mut bench = Bench::with(1_000, away);
        let memory = Arc::clone(bench.rules.memory());
        let before = memory.used();
        for end_lsn in 1..=200 {
            bench.commit(end_lsn).await;
            assert!(bench.fed[0].try_recv().is_some(), "the other has {end_lsn}");
        }
        assert!(bench.fed[1].try_recv().is_none(), "nothing is on its way");
        assert!(memory.used() > before, "it is kept");
        is_away.send_replace(false);
        sleep(Duration::from_millis(1)).await;
        let parcel = bench.fed[1].try_recv().expect("the backlog goes");
        assert_eq!(parcel.job.keys.exact_len(), 200);
    })
    .await;
}

/// A fan-out to two channels of this length, that a test empties or does not.
struct Bench {
    rules: Rules,
    visible: Sender<Visible>,
    fed: [Receiver<Parcel>; 2],
    events: mpsc::Receiver<(TargetId, Event)>,
}

impl Bench {
    fn new(length: usize) -> Bench {
        Bench::with(length, here())
    }

    /// The second target's Redis is away as this says.
    fn with(length: usize, away: watch::Receiver<bool>) -> Bench {
        let rules = rules();
        let health = Arc::new(Health::new(Arc::new(Metrics::new(rules.names()))));
        let (visible, taken) = channel(4);
        let ((one, first), (other, second)) = (channel(length), channel(length));
        let (told, events) = mpsc::channel(1024);
        tokio::task::spawn_local(
            FanOut::new((vec![one, other], vec![here(), away]), told, health).run(taken),
        );
        Bench { rules, visible, fed: [first, second], events }
    }

    async fn commit(&mut self, end_lsn: u64) {
        let keys = keys(&self.rules, "item", &[&end_lsn.to_string()]);
        self.send(committed(end_lsn, keys)).await;
    }

    async fn send(&self, visible: Visible) {
        timeout(Duration::from_secs(1), self.visible.send(visible)).await.unwrap().unwrap();
        sleep(Duration::from_millis(1)).await;
    }

    fn next(&mut self, target: TargetId) -> Option<Parcel> {
        self.fed[target.place()].try_recv()
    }

    /// Gives every [`Held`] that was told of a target.
    fn held(&mut self, target: TargetId) -> Vec<Held> {
        let mut all = Vec::new();
        while let Ok((of, event)) = self.events.try_recv() {
            let Event::Held(held) = event else { panic!("{event:?}") };
            all.extend(Some(held).filter(|_| of == target));
        }
        all
    }
}

fn exact(parcel: &Parcel) -> Vec<String> {
    let keys = parcel.job.keys.exact();
    let mut keys: Vec<String> =
        keys.map(|(_, key)| String::from_utf8(key.to_vec()).unwrap()).collect();
    keys.sort();
    keys
}

#[tokio::test(start_paused = true)]
async fn a_commit_goes_to_every_target_and_a_sweep_to_the_one_that_owes_it() {
    local(async {
        let mut bench = Bench::new(8);
        bench.commit(110).await;
        let owed = Visible::for_tests(Cause::Resync { last: true }, bench.rules.everything());
        bench.send(owed.of(OTHER)).await;
        bench.commit(120).await;
        let mut next = |target| {
            let parcels = std::iter::from_fn(|| bench.next(target));
            parcels.map(|parcel| parcel.job.is_resync()).collect::<Vec<_>>()
        };
        assert_eq!(next(ONE), [false, false]);
        assert_eq!(next(OTHER), [false, true, false]);
    })
    .await;
}

/// The hold of a replica is told of each target before that target can be done with the keys.
#[tokio::test(start_paused = true)]
async fn what_is_held_is_told_of_every_target_before_its_keys_go() {
    local(async {
        let mut bench = Bench::new(8);
        let (replica, keys) = (Hold::new_name(), keys(&bench.rules, "item", &["1"]));
        bench.send(committed(110, keys).not_replayed(replica)).await;
        let held = Held::also(replica, Lsn(110));
        for target in [ONE, OTHER] {
            let told = bench.events.try_recv().unwrap();
            assert!(matches!(&told.1, Event::Held(told) if *told == held), "{told:?}");
            assert_eq!(told.0, target);
            let parcel = bench.next(target).unwrap();
            assert!(parcel.held.is_empty(), "once");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_full_target_stops_no_other_and_what_it_has_no_room_for_is_one() {
    local(async {
        let mut bench = Bench::new(2);
        for end_lsn in 110..120 {
            bench.commit(end_lsn).await;
            assert!(bench.next(ONE).is_some(), "{end_lsn} waits");
        }
        let held = bench.held(OTHER);
        let [first, ..] = &held[..] else { panic!("nothing is held") };
        let by = first.by;
        assert!(held.iter().all(|held| held.by == by && held.moved), "in flight no longer");
        let ends: Vec<u64> =
            held.iter().flat_map(|held| &held.end_lsns).map(|end_lsn| end_lsn.0).collect();
        assert_eq!(ends, [112, 113, 114, 115, 116, 117, 118, 119]);
        for end_lsn in [110, 111] {
            let parcel = bench.next(OTHER).expect("it had room");
            assert_eq!(exact(&parcel), [format!("item:{end_lsn}")]);
        }
        sleep(Duration::from_millis(1)).await;
        let backlog = bench.next(OTHER).expect("there is room now");
        assert_eq!(exact(&backlog), (112..120).map(|id| format!("item:{id}")).collect::<Vec<_>>());
        assert_eq!((backlog.job.round, backlog.job.covers), (Round::First, Lsn(119)));
        let members = &backlog.job.members;
        let holds =
            |member: &Member| matches!(member, Member::Held { hold, shared: false } if *hold == by);
        assert!(members.len() == 1 && holds(&members[0]), "{members:?}");
        bench.commit(120).await;
        assert_eq!(exact(&bench.next(OTHER).unwrap()), ["item:120"], "by itself again");
    })
    .await;
}

/// A hold of a replica goes on in the backlog, and so does what closes a sweep. Nothing else does,
/// however long the target is away.
#[tokio::test(start_paused = true)]
async fn a_backlog_keeps_what_holds_and_sweeps_and_forgets_the_rest() {
    local(async {
        let mut bench = Bench::new(1);
        bench.commit(110).await;
        let (replica, replayed) =
            (Hold::new_name(), |hold, resyncs| Cause::Replayed(Replayed { hold, resyncs }));
        for cause in [
            Cause::Resync { last: true },
            replayed(None, 0),
            replayed(None, 0),
            replayed(Some(replica), 2),
        ] {
            drop(bench.next(ONE));
            bench.send(Visible::for_tests(cause, bench.rules.everything())).await;
        }
        let held = bench.held(OTHER);
        let is_merged = |held: &Held| held.holds == [replica] && held.moved;
        assert!(held.len() == 1 && is_merged(&held[0]), "{held:?}");
        bench.next(OTHER).expect("the commit");
        sleep(Duration::from_millis(1)).await;
        let members = bench.next(OTHER).expect("the backlog").job.members;
        let [hold, sweep, closing] = &members[..] else { panic!("{members:?}") };
        assert!(matches!(hold, Member::Held { shared: false, .. }));
        assert!(matches!(sweep, Member::Resync { last: true, settles: true, .. }));
        assert!(matches!(closing, Member::Replayed { resyncs: 2, .. }));
        assert!(members.iter().all(|member| !member.is_shared()), "the other target has its own");
    })
    .await;
}

/// Its keys come again with the commit.
#[tokio::test(start_paused = true)]
async fn what_goes_early_and_finds_no_room_is_dropped() {
    local(async {
        let mut bench = Bench::new(1);
        bench.commit(110).await;
        let early = keys(&bench.rules, "item", &["7"]);
        bench.send(Visible::for_tests(Cause::Early(7), early)).await;
        assert_eq!(exact(&bench.next(OTHER).expect("the commit")), ["item:110"]);
        sleep(Duration::from_millis(1)).await;
        assert!(bench.next(OTHER).is_none());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_backlog_that_is_too_large_gives_way_to_patterns() {
    local(async {
        let mut bench = Bench::new(1);
        bench.commit(110).await;
        for round in 0..20 {
            drop(bench.next(ONE));
            let ids: Vec<String> = (0..10_000).map(|id| format!("{round}:{id:0>60}")).collect();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let keys = keys(&bench.rules, "item", &ids);
            bench.send(committed(120 + round, keys)).await;
        }
        bench.next(OTHER).expect("the commit");
        sleep(Duration::from_millis(1)).await;
        let backlog = bench.next(OTHER).expect("the backlog");
        let patterns: Vec<&[u8]> =
            backlog.job.keys.patterns().map(|(_, pattern)| pattern.as_bytes()).collect();
        assert_eq!(patterns, [&b"item:*"[..]]);
        assert!(backlog.bytes() <= OfTarget::of(2).backlog, "{} bytes", backlog.bytes());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn where_every_target_is_full_nothing_is_taken() {
    local(async {
        let mut bench = Bench::new(1);
        let mut sent = 0;
        for end_lsn in 110..200 {
            let keys = keys(&bench.rules, "item", &[&end_lsn.to_string()]);
            let visible = committed(end_lsn, keys);
            if timeout(Duration::from_secs(1), bench.visible.send(visible)).await.is_err() {
                break;
            }
            sent += 1;
        }
        // One in each channel, one in each backlog, and what waits before them.
        assert_eq!(sent, 2 + 4);
        drop(bench.next(ONE));
        sleep(Duration::from_millis(1)).await;
        assert!(bench.next(ONE).is_some(), "it goes on with the first one that has room");
    })
    .await;
}

/// Two targets as a session has them, each with little room.
struct Pair {
    rules: Rules,
    redis: [Redis; 2],
    visible: Sender<Visible>,
    events: mpsc::Receiver<(TargetId, Event)>,
    waiting: [Waiting; 2],
    done: [Vec<u64>; 2],
    _safe: watch::Sender<Lsn>,
}

impl Pair {
    fn new(window: Duration) -> Pair {
        let (rules, redis) = (rules(), [Redis::default(), Redis::default()]);
        let health = Arc::new(Health::new(Arc::new(Metrics::new(rules.names()))));
        let (_adopt, settings) = settings(&rules, window);
        let (told, events) = mpsc::channel(1024);
        let (visible, taken) = channel(4);
        let (safe, safe_of) = watch::channel(Lsn(100));
        let (mut feeds, mut away) = (Vec::new(), Vec::new());
        for (target, redis) in [ONE, OTHER].into_iter().zip(&redis) {
            let mark = Watermark { lsn: Lsn(100), ..settings.expected.clone() };
            *redis.0.watermark.borrow_mut() = Some(mark.to_value());
            let settings =
                Settings { room: Room { length: 2, bytes: 1, ..Room::of(2) }, ..settings.clone() };
            let (feed, fed) = channel::<Parcel>(2);
            feeds.push(feed);
            let told = (target, told.clone());
            let sweeper = Sweeper::new(redis.clone(), settings, Arc::clone(&health), told);
            away.push(sweeper.is_away());
            tokio::task::spawn_local(sweeper.run(fed, safe_of.clone()));
        }
        tokio::task::spawn_local(FanOut::new((feeds, away), told, health).run(taken));
        let (waiting, done) = (Default::default(), Default::default());
        Pair { rules, redis, visible, events, waiting, done, _safe: safe }
    }

    async fn commit(&mut self, end_lsn: u64) {
        self.redis.iter().for_each(|redis| redis.fill(&[&format!("item:{end_lsn}")]));
        let keys = keys(&self.rules, "item", &[&end_lsn.to_string()]);
        self.visible.send(committed(end_lsn, keys)).await.unwrap();
    }

    /// Hears what is told within so long.
    async fn hear(&mut self, period: Duration) {
        let end = tokio::time::Instant::now() + period;
        while let Ok(Some((target, event))) = tokio::time::timeout_at(end, self.events.recv()).await
        {
            let waiting = &mut self.waiting[target.place()];
            match event {
                Event::Held(held) => waiting.held(&held),
                Event::Swept(swept) => self.done[target.place()].extend(waiting.swept(&swept)),
                _ => {}
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_away_delays_its_own_keys_and_is_made_good_when_it_is_back() {
    for window in [Duration::ZERO, Duration::from_secs(1)] {
        local(async {
            let mut pair = Pair::new(window);
            pair.hear(Duration::from_secs(1)).await;
            pair.redis[1].0.fails.set(Some(Kind::Io));
            let all: Vec<u64> = (110..410).collect();
            for end_lsn in &all {
                pair.commit(*end_lsn).await;
                pair.hear(Duration::from_millis(20)).await;
                assert!(!pair.redis[0].has(&format!("item:{end_lsn}")), "{end_lsn} waits");
            }
            pair.hear(Duration::from_secs(5)).await;
            let mut done = std::mem::take(&mut pair.done);
            done[0].sort_unstable();
            assert_eq!(done[0], all, "the one is through");
            assert_eq!(done[1], [0; 0], "the other is not");
            pair.redis[1].0.fails.set(None);
            pair.hear(Duration::from_secs(30)).await;
            pair.done[1].sort_unstable();
            assert_eq!(pair.done[1], all, "each is told once, when it is gone");
            assert!(pair.redis[1].0.keys.borrow().is_empty());
        })
        .await;
    }
}
