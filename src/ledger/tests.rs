//! I2, as rows and as a property against a plain model.

use proptest::prelude::{any, prop, proptest};
use proptest::test_runner::Config;

use std::collections::BTreeSet;

use super::Ledger;
use crate::config::TargetId;
use crate::lsn::Lsn;
use crate::settle::{Held, Hold};
use crate::sweep::Swept;

const ONE: TargetId = TargetId(0);
const OTHER: TargetId = TargetId(1);

fn swept(end: u64) -> Swept {
    Swept::for_tests(vec![Lsn(end)], Vec::new())
}

fn released(hold: Hold) -> Swept {
    Swept::for_tests(Vec::new(), vec![hold])
}

/// These transactions are in flight no longer, and held.
fn moved(by: Hold, ends: &[u64]) -> Held {
    let end_lsns = ends.iter().map(|end| Lsn(*end)).collect();
    Held { by, end_lsns, holds: Vec::new(), moved: true }
}

#[test]
fn the_oldest_in_flight_holds_the_confirmation() {
    let mut ledger = Ledger::new(Lsn(10), 1);
    for end in [20, 30, 40] {
        ledger.begin();
        ledger.open(Lsn(end));
    }
    assert_eq!(ledger.safe(), Lsn(10));
    ledger.advance(ONE, &swept(30));
    ledger.advance(ONE, &swept(40));
    assert_eq!(ledger.safe(), Lsn(10), "later ones are done, the oldest is not");
    ledger.advance(ONE, &swept(20));
    assert_eq!(ledger.safe(), Lsn(40));
}

#[test]
fn keepalive_never_passes_an_unswept_commit() {
    let mut ledger = Ledger::new(Lsn(10), 1);
    ledger.keepalive(Lsn(15));
    assert_eq!(ledger.safe(), Lsn(15));
    ledger.begin();
    ledger.keepalive(Lsn(90));
    assert_eq!(ledger.safe(), Lsn(15), "a half-received transaction is in flight");
    ledger.open(Lsn(20));
    ledger.keepalive(Lsn(90));
    assert_eq!(ledger.safe(), Lsn(15));
    ledger.advance(ONE, &swept(20));
    assert_eq!(ledger.safe(), Lsn(20), "a keepalive heard in between does not count afterwards");
    ledger.keepalive(Lsn(90));
    assert_eq!(ledger.safe(), Lsn(90));
    ledger.keepalive(Lsn(50));
    assert_eq!(ledger.safe(), Lsn(90), "never falls");
}

#[test]
fn what_is_held_is_not_in_flight_and_holds_the_confirmation_by_its_oldest() {
    let mut ledger = Ledger::new(Lsn(10), 1);
    [20, 30, 40, 50].into_iter().for_each(|end| ledger.open(Lsn(end)));
    let (bucket, replica) = (Hold::new_name(), Hold::new_name());
    ledger.hold(ONE, &Held::also(replica, Lsn(30)));
    ledger.hold(ONE, &moved(bucket, &[20, 30, 40]));
    assert_eq!((ledger.in_flight(), ledger.safe()), (1, Lsn(10)));
    ledger.advance(ONE, &released(bucket));
    assert_eq!(ledger.safe(), Lsn(20), "30 waits for a replica");
    ledger.keepalive(Lsn(90));
    ledger.advance(ONE, &swept(50));
    ledger.keepalive(Lsn(90));
    assert_eq!((ledger.in_flight(), ledger.safe()), (0, Lsn(20)), "no keepalive counts");
    assert!(!ledger.is_clear());
    ledger.advance(ONE, &released(replica));
    assert_eq!((ledger.is_clear(), ledger.safe()), (true, Lsn(50)));
}

#[test]
fn holds_become_one_and_a_hold_of_nothing_holds_nothing() {
    let mut ledger = Ledger::new(Lsn(10), 1);
    [20, 30].into_iter().for_each(|end| ledger.open(Lsn(end)));
    let [one, other, empty] = [(); 3].map(|()| Hold::new_name());
    ledger.hold(ONE, &moved(one, &[30]));
    ledger.hold(ONE, &moved(other, &[20]));
    ledger.hold(ONE, &Held::merged(one, other));
    ledger.hold(ONE, &Held::merged(one, one));
    ledger.hold(ONE, &Held::merged(one, empty));
    ledger.advance(ONE, &released(other));
    assert_eq!(ledger.safe(), Lsn(10), "it is the first one's now");
    ledger.hold(ONE, &Held::also(empty, Lsn(20)));
    ledger.advance(ONE, &released(one));
    assert_eq!((ledger.is_clear(), ledger.safe()), (true, Lsn(30)));
}

/// An event that can happen to a ledger; the model turns the numbers into a legal order.
#[derive(Clone, Debug)]
enum Event {
    Sweep(usize),
    /// A transaction in flight waits for a hold, too; or for that alone.
    Hold {
        index: usize,
        by: usize,
        moved: bool,
    },
    Merge {
        by: usize,
        other: usize,
        moved: bool,
    },
    Release(usize),
}

/// A transaction of the model, with what it waits for.
struct Open {
    end: u64,
    in_flight: bool,
    holds: BTreeSet<usize>,
}

impl Open {
    fn waits(&self) -> bool {
        self.in_flight || !self.holds.is_empty()
    }
}

const HOLDS: usize = 6;

fn event((kind, index, step): (u8, usize, u64)) -> Event {
    let (by, other) = (index % HOLDS, (index / HOLDS) % HOLDS);
    let moved = !step.is_multiple_of(3);
    match kind {
        1 => Event::Sweep(index),
        3 => Event::Hold { index: index / HOLDS, by, moved },
        4 => Event::Merge { by, other, moved },
        _ => Event::Release(by),
    }
}

/// Does to the ledger, and to the model, what an event says of what waits for a target.
fn apply(
    event: &Event,
    (ledger, target): (&mut Ledger, TargetId),
    open: &mut [Open],
    names: &[Hold],
) {
    let pick = |open: &[Open], index: usize| {
        let count = open.iter().filter(|one| one.in_flight).count();
        let mut all = open.iter().enumerate().filter(|(_, one)| one.in_flight);
        all.nth(index.checked_rem(count)?).map(|(at, _)| at)
    };
    match *event {
        Event::Sweep(index) => {
            let Some(at) = pick(open, index) else { return };
            ledger.advance(target, &swept(open[at].end));
            open[at].in_flight = false;
        }
        Event::Hold { index, by, moved } => {
            let Some(at) = pick(open, index) else { return };
            let end_lsns = vec![Lsn(open[at].end)];
            ledger.hold(target, &Held { by: names[by], end_lsns, holds: Vec::new(), moved });
            open[at].holds.insert(by);
            open[at].in_flight = !moved;
        }
        Event::Merge { by, other, moved } => {
            let holds = vec![names[other]];
            ledger.hold(target, &Held { by: names[by], end_lsns: Vec::new(), holds, moved });
            for one in open.iter_mut().filter(|one| one.holds.contains(&other)) {
                if moved {
                    one.holds.remove(&other);
                }
                one.holds.insert(by);
            }
        }
        Event::Release(by) => {
            ledger.advance(target, &released(names[by]));
            for one in open.iter_mut() {
                one.holds.remove(&by);
            }
        }
    }
}

/// Gives the LSN that may be confirmed, by the model; `covered` is what each target's watermark
/// covers.
fn confirmable(covered: &[u64], safe: Lsn) -> u64 {
    covered.iter().copied().min().unwrap_or(0).min(safe.0)
}

proptest! {
    #![proptest_config(Config::with_cases(4_000))]
    #[test]
    fn confirmed_is_below_every_unswept_commit_and_never_falls(
        count in 1_usize..4,
        events in prop::collection::vec((0_u8..7, 0_u8..3, any::<usize>(), 1_u64..50), 1..200)
    ) {
        let mut ledger = Ledger::new(Lsn(1), count);
        let names: Vec<Hold> = (0..HOLDS).map(|_| Hold::new_name()).collect();
        let (mut position, mut last) = (1_u64, Lsn(1));
        // Of each target what waits for it, and how far its watermark covers.
        let mut open: Vec<Vec<Open>> = (0..count).map(|_| Vec::new()).collect();
        let mut covered = vec![0; count];
        for (kind, place, index, step) in events {
            let target = TargetId(place % u8::try_from(count).unwrap());
            match kind {
                6 => {
                    covered[target.place()] = ledger.safe_of(target).0;
                    ledger.cover(target, ledger.safe_of(target));
                }
                0 => {
                    position += step;
                    ledger.begin();
                    ledger.keepalive(Lsn(position + 1_000_000));
                    ledger.open(Lsn(position));
                    let holds = BTreeSet::new;
                    let one = || Open { end: position, in_flight: true, holds: holds() };
                    open.iter_mut().for_each(|open| open.push(one()));
                }
                2 => {
                    position += step;
                    ledger.keepalive(Lsn(position));
                }
                _ => {
                    let event = event((kind, index, step));
                    apply(&event, (&mut ledger, target), &mut open[target.place()], &names);
                }
            }
            open.iter_mut().for_each(|open| open.retain(Open::waits));
            let safe = ledger.safe();
            assert!(safe >= last, "never falls");
            assert!(safe.0 <= position, "never ahead of the stream");
            for (target, open) in TargetId::first(count).zip(&open) {
                let own = ledger.safe_of(target);
                assert!(own >= safe, "the least of all");
                let ends = open.iter().map(|one| one.end);
                let passed: Vec<u64> = ends.filter(|end| *end <= own.0).collect();
                assert!(passed.is_empty(), "{target:?}: {own} passed {passed:?}");
            }
            assert!(TargetId::first(count).any(|target| ledger.safe_of(target) == safe));
            assert_eq!(ledger.confirmable().0, confirmable(&covered, safe));
            let in_flight = |open: &Vec<Open>| open.iter().filter(|one| one.in_flight).count();
            assert_eq!(ledger.in_flight(), open.iter().map(in_flight).max().unwrap());
            assert_eq!(ledger.is_clear(), open.iter().all(Vec::is_empty));
            last = safe;
        }
        // Whatever was held, nothing stays behind.
        for (target, open) in TargetId::first(count).zip(&open) {
            let ends = open.iter().filter(|one| one.in_flight).map(|one| Lsn(one.end)).collect();
            ledger.advance(target, &Swept::for_tests(ends, names.clone()));
        }
        ledger.keepalive(Lsn(position));
        assert_eq!(ledger.safe(), Lsn(position));
    }
}

#[test]
fn a_transaction_is_complete_when_every_target_has_removed_its_keys() {
    let mut ledger = Ledger::new(Lsn(10), 2);
    [20, 30].into_iter().for_each(|end| ledger.open(Lsn(end)));
    ledger.advance(ONE, &swept(20));
    assert_eq!(
        (ledger.safe_of(ONE), ledger.safe_of(OTHER), ledger.safe()),
        (Lsn(20), Lsn(10), Lsn(10))
    );
    ledger.advance(ONE, &swept(30));
    ledger.advance(OTHER, &swept(30));
    assert_eq!(
        (ledger.safe_of(ONE), ledger.safe_of(OTHER), ledger.safe()),
        (Lsn(30), Lsn(10), Lsn(10))
    );
    ledger.keepalive(Lsn(90));
    assert_eq!(ledger.safe_of(ONE), Lsn(30), "it counts for nobody while somebody waits");
    ledger.advance(OTHER, &swept(20));
    ledger.keepalive(Lsn(90));
    assert_eq!((ledger.safe_of(ONE), ledger.safe()), (Lsn(90), Lsn(90)));
}

/// A hold may be known to several targets, as that of a replica is: each lets go for itself.
#[test]
fn a_hold_holds_each_target_by_itself() {
    let mut ledger = Ledger::new(Lsn(10), 2);
    ledger.open(Lsn(20));
    let replica = Hold::new_name();
    for target in [ONE, OTHER] {
        ledger.hold(target, &Held::also(replica, Lsn(20)));
        ledger.advance(target, &swept(20));
    }
    assert_eq!((ledger.in_flight(), ledger.safe()), (0, Lsn(10)));
    ledger.advance(ONE, &released(replica));
    assert_eq!((ledger.safe_of(ONE), ledger.safe()), (Lsn(20), Lsn(10)));
    ledger.advance(OTHER, &released(replica));
    assert_eq!(ledger.safe(), Lsn(20));
}

#[test]
fn the_least_that_all_watermarks_cover_is_confirmed() {
    let mut ledger = Ledger::new(Lsn(10), 2);
    ledger.open(Lsn(20));
    [ONE, OTHER].into_iter().for_each(|target| ledger.advance(target, &swept(20)));
    assert_eq!(ledger.confirmable(), Lsn::ZERO, "no watermark is known");
    ledger.cover(ONE, Lsn(20));
    assert_eq!(ledger.confirmable(), Lsn::ZERO, "one is not");
    ledger.cover(OTHER, Lsn(15));
    assert_eq!(ledger.confirmable(), Lsn(15));
    ledger.cover(OTHER, Lsn(500));
    assert_eq!(ledger.confirmable(), Lsn(20), "what is ahead of the stream is sent again");
    ledger.uncover(ONE);
    assert_eq!(ledger.confirmable(), Lsn::ZERO, "what it covered may be lost");
}

#[test]
fn a_block_holds_keepalives_back_and_an_open_transaction_does_not() {
    let mut ledger = Ledger::new(Lsn(100), 1);
    ledger.begin();
    ledger.keepalive(Lsn(150));
    assert_eq!(ledger.safe(), Lsn(100), "the last block comes right before the commit");
    ledger.pause();
    ledger.keepalive(Lsn(160));
    assert_eq!(ledger.safe(), Lsn(160), "its commit ends later than what was sent by now");
    ledger.begin();
    ledger.pause();
    ledger.open(Lsn(200));
    ledger.keepalive(Lsn(300));
    assert_eq!(ledger.safe(), Lsn(160));
}
