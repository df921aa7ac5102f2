//! I2, as rows and as a property against a plain model.

use proptest::prelude::{any, prop, proptest};
use proptest::test_runner::Config;

use std::collections::BTreeSet;

use super::Ledger;
use crate::lsn::Lsn;
use crate::settle::{Held, Hold};
use crate::sweep::Swept;

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
    let mut ledger = Ledger::new(Lsn(10));
    for end in [20, 30, 40] {
        ledger.begin();
        ledger.open(Lsn(end));
    }
    assert_eq!(ledger.safe(), Lsn(10));
    ledger.advance(&swept(30));
    ledger.advance(&swept(40));
    assert_eq!(ledger.safe(), Lsn(10), "later ones are done, the oldest is not");
    ledger.advance(&swept(20));
    assert_eq!(ledger.safe(), Lsn(40));
}

#[test]
fn keepalive_never_passes_an_unswept_commit() {
    let mut ledger = Ledger::new(Lsn(10));
    ledger.keepalive(Lsn(15));
    assert_eq!(ledger.safe(), Lsn(15));
    ledger.begin();
    ledger.keepalive(Lsn(90));
    assert_eq!(ledger.safe(), Lsn(15), "a half-received transaction is in flight");
    ledger.open(Lsn(20));
    ledger.keepalive(Lsn(90));
    assert_eq!(ledger.safe(), Lsn(15));
    ledger.advance(&swept(20));
    assert_eq!(ledger.safe(), Lsn(20), "a keepalive heard in between does not count afterwards");
    ledger.keepalive(Lsn(90));
    assert_eq!(ledger.safe(), Lsn(90));
    ledger.keepalive(Lsn(50));
    assert_eq!(ledger.safe(), Lsn(90), "never falls");
}

#[test]
fn what_is_held_is_not_in_flight_and_holds_the_confirmation_by_its_oldest() {
    let mut ledger = Ledger::new(Lsn(10));
    [20, 30, 40, 50].into_iter().for_each(|end| ledger.open(Lsn(end)));
    let (bucket, replica) = (Hold::new_name(), Hold::new_name());
    ledger.hold(&Held::also(replica, Lsn(30)));
    ledger.hold(&moved(bucket, &[20, 30, 40]));
    assert_eq!((ledger.in_flight(), ledger.safe()), (1, Lsn(10)));
    ledger.advance(&released(bucket));
    assert_eq!(ledger.safe(), Lsn(20), "30 waits for a replica");
    ledger.keepalive(Lsn(90));
    ledger.advance(&swept(50));
    ledger.keepalive(Lsn(90));
    assert_eq!((ledger.in_flight(), ledger.safe()), (0, Lsn(20)), "no keepalive counts");
    assert!(!ledger.is_clear());
    ledger.advance(&released(replica));
    assert_eq!((ledger.is_clear(), ledger.safe()), (true, Lsn(50)));
}

#[test]
fn holds_become_one_and_a_hold_of_nothing_holds_nothing() {
    let mut ledger = Ledger::new(Lsn(10));
    [20, 30].into_iter().for_each(|end| ledger.open(Lsn(end)));
    let [one, other, empty] = [(); 3].map(|()| Hold::new_name());
    ledger.hold(&moved(one, &[30]));
    ledger.hold(&moved(other, &[20]));
    ledger.hold(&Held::merged(one, other));
    ledger.hold(&Held::merged(one, one));
    ledger.hold(&Held::merged(one, empty));
    ledger.advance(&released(other));
    assert_eq!(ledger.safe(), Lsn(10), "it is the first one's now");
    ledger.hold(&Held::also(empty, Lsn(20)));
    ledger.advance(&released(one));
    assert_eq!((ledger.is_clear(), ledger.safe()), (true, Lsn(30)));
}

/// What can happen to a ledger; the model turns the numbers into a legal order.
#[derive(Clone, Debug)]
enum Event {
    Commit,
    Sweep(usize),
    Keepalive(u64),
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

/// What a transaction of the model waits for.
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
        0 => Event::Commit,
        1 => Event::Sweep(index),
        2 => Event::Keepalive(step),
        3 => Event::Hold { index: index / HOLDS, by, moved },
        4 => Event::Merge { by, other, moved },
        _ => Event::Release(by),
    }
}

/// Does to the ledger, and to the model, what an event says of what waits.
fn apply(event: &Event, ledger: &mut Ledger, open: &mut [Open], names: &[Hold]) {
    let pick = |open: &[Open], index: usize| {
        let count = open.iter().filter(|one| one.in_flight).count();
        let mut all = open.iter().enumerate().filter(|(_, one)| one.in_flight);
        all.nth(index.checked_rem(count)?).map(|(at, _)| at)
    };
    match *event {
        Event::Commit | Event::Keepalive(_) => {}
        Event::Sweep(index) => {
            let Some(at) = pick(open, index) else { return };
            ledger.advance(&swept(open[at].end));
            open[at].in_flight = false;
        }
        Event::Hold { index, by, moved } => {
            let Some(at) = pick(open, index) else { return };
            let end_lsns = vec![Lsn(open[at].end)];
            ledger.hold(&Held { by: names[by], end_lsns, holds: Vec::new(), moved });
            open[at].holds.insert(by);
            open[at].in_flight = !moved;
        }
        Event::Merge { by, other, moved } => {
            let holds = vec![names[other]];
            ledger.hold(&Held { by: names[by], end_lsns: Vec::new(), holds, moved });
            for one in open.iter_mut().filter(|one| one.holds.contains(&other)) {
                if moved {
                    one.holds.remove(&other);
                }
                one.holds.insert(by);
            }
        }
        Event::Release(by) => {
            ledger.advance(&released(names[by]));
            for one in open.iter_mut() {
                one.holds.remove(&by);
            }
        }
    }
}

proptest! {
    #![proptest_config(Config::with_cases(4_000))]
    #[test]
    fn confirmed_is_below_every_unswept_commit_and_never_falls(
        events in prop::collection::vec((0_u8..6, any::<usize>(), 1_u64..50), 1..200)
    ) {
        let mut ledger = Ledger::new(Lsn(1));
        let names: Vec<Hold> = (0..HOLDS).map(|_| Hold::new_name()).collect();
        let (mut position, mut open, mut last) = (1_u64, Vec::<Open>::new(), Lsn(1));
        for one in events {
            match event(one) {
                Event::Commit => {
                    position += one.2;
                    ledger.begin();
                    ledger.keepalive(Lsn(position + 1_000_000));
                    ledger.open(Lsn(position));
                    open.push(Open { end: position, in_flight: true, holds: BTreeSet::new() });
                }
                Event::Keepalive(step) => {
                    position += step;
                    ledger.keepalive(Lsn(position));
                }
                event => apply(&event, &mut ledger, &mut open, &names),
            }
            open.retain(Open::waits);
            let safe = ledger.safe();
            assert!(safe >= last, "never falls");
            assert!(safe.0 <= position, "never ahead of the stream");
            let passed: Vec<u64> =
                open.iter().map(|one| one.end).filter(|end| *end <= safe.0).collect();
            assert!(passed.is_empty(), "{safe} passed {passed:?}");
            assert_eq!(ledger.in_flight(), open.iter().filter(|one| one.in_flight).count());
            assert_eq!(ledger.is_clear(), open.is_empty());
            last = safe;
        }
        // Whatever was held, nothing stays behind.
        let ends = open.iter().filter(|one| one.in_flight).map(|one| Lsn(one.end)).collect();
        ledger.advance(&Swept::for_tests(ends, names));
        ledger.keepalive(Lsn(position));
        assert_eq!(ledger.safe(), Lsn(position));
    }
}

#[test]
fn a_block_holds_keepalives_back_and_an_open_transaction_does_not() {
    let mut ledger = Ledger::new(Lsn(100));
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
