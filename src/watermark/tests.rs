//! I2, as rows and as a property against a plain model.

use proptest::prelude::{any, prop, proptest};
use proptest::test_runner::Config;

use super::Ledger;
use crate::lsn::Lsn;
use crate::sweep::Swept;

fn swept(end: u64) -> Swept {
    Swept::for_tests(vec![Lsn(end)])
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

/// What can happen to a ledger; the model turns the numbers into a legal order.
#[derive(Clone, Debug)]
enum Event {
    Commit,
    Sweep(usize),
    Keepalive(u64),
}

proptest! {
    #![proptest_config(Config::with_cases(2_000))]
    #[test]
    fn confirmed_is_below_every_unswept_commit_and_never_falls(
        events in prop::collection::vec((0_u8..3, any::<usize>(), 1_u64..50), 1..200)
    ) {
        let mut ledger = Ledger::new(Lsn(1));
        let (mut position, mut open, mut last) = (1_u64, Vec::new(), Lsn(1));
        for (kind, index, step) in events {
            let event = match kind {
                0 => Event::Commit,
                1 => Event::Sweep(index),
                _ => Event::Keepalive(step),
            };
            match event {
                Event::Commit => {
                    position += step;
                    ledger.begin();
                    ledger.keepalive(Lsn(position + 1_000_000));
                    ledger.open(Lsn(position));
                    open.push(position);
                }
                Event::Sweep(index) if !open.is_empty() => {
                    ledger.advance(&swept(open.remove(index % open.len())));
                }
                Event::Sweep(_) => {}
                Event::Keepalive(step) => {
                    position += step;
                    ledger.keepalive(Lsn(position));
                }
            }
            let safe = ledger.safe();
            assert!(safe >= last, "never falls");
            assert!(safe.0 <= position, "never ahead of the stream");
            assert!(open.iter().all(|end| safe.0 < *end), "{safe} passed one of {open:?}");
            assert_eq!(ledger.in_flight(), open.len());
            last = safe;
        }
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
