//! A backlog that Redis does not take: what is read of it is bounded (I6), and goes on.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

use super::{Ends, IN_FLIGHT_MAX, Stream};
use crate::capture::Slot;
use crate::config::{Rule, Source, TableName, TargetId};
use crate::keys::{Binding, Rules};
use crate::lsn::Lsn;
use crate::run::session::Timing;
use crate::run::shutdown::Shutdown;
use crate::settle::Input;
use crate::sweep::{Event, Swept};
use crate::telemetry::Health;
use crate::telemetry::metrics::Metrics;

/// Where the streams of these tests begin.
pub(super) const START: Lsn = Lsn(100);

/// Nothing is late in these tests.
pub(super) const TIMING: Timing =
    Timing { status: Duration::from_secs(10), silence: Duration::from_secs(40) };

/// More than are ever read at once: a full buffer of the smallest transactions comes on top.
const BACKLOG: usize = IN_FLIGHT_MAX + 50_000;

fn rules() -> Rules {
    let rule = Rule {
        table: TableName { schema: String::new(), name: String::new() },
        source: Source::Message("p".to_owned()),
        ..Rule::for_tests("said", &["said"])
    };
    Rules::compile(&[rule]).unwrap()
}

/// `XLogData` around a message.
fn frame(out: &mut Vec<u8>, payload: &[u8]) {
    out.push(b'd');
    out.extend(u32::try_from(4 + 25 + payload.len()).unwrap().to_be_bytes());
    out.push(b'w');
    out.extend([0; 24]);
    out.extend(payload);
}

/// A transaction that says one thing.
pub(super) fn transaction(number: usize) -> (Vec<u8>, Lsn) {
    talkative(number, 1)
}

/// A transaction that says it so many times.
pub(super) fn talkative(number: usize, times: usize) -> (Vec<u8>, Lsn) {
    let end = START.0 + 10 + 10 * number as u64;
    let lsn = (end - 5).to_be_bytes();
    let xid = u32::try_from(number + 700).unwrap().to_be_bytes();
    let mut out = Vec::new();
    frame(&mut out, &[&b"B"[..], &lsn, &[0; 8], &xid].concat());
    for _ in 0..times {
        frame(&mut out, &[&b"M\x01"[..], &lsn, b"p\0", &[0; 4]].concat());
    }
    frame(&mut out, &[&b"C\0"[..], &lsn, &end.to_be_bytes(), &[0; 8]].concat());
    (out, Lsn(end))
}

#[tokio::test]
async fn a_backlog_that_nothing_removes_is_not_read_whole_and_goes_on_once_something_does() {
    LocalSet::new().run_until(backlog()).await;
}

async fn backlog() {
    let (ours, theirs) = duplex(64 * 1024);
    let (mut statuses, mut server) = split(theirs);
    let (ends, gate, sweeper) = Ends::new(START, 1);
    let (sent, taken) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(Vec::new())));
    spawn_local({
        let sent = Rc::clone(&sent);
        async move {
            for number in 0..BACKLOG {
                server.write_all(&transaction(number).0).await.unwrap();
                sent.set(number + 1);
            }
            std::future::pending::<()>().await;
        }
    });
    spawn_local(async move {
        let mut status = [0; 64];
        while statuses.read(&mut status).await.is_ok_and(|count| count > 0) {}
    });
    // A gate through which everything comes, and behind it nothing that removes.
    let mut inputs = gate.inputs;
    spawn_local({
        let taken = Rc::clone(&taken);
        async move {
            while let Some(input) = inputs.recv().await {
                if let Input::Transaction(mapped) = input {
                    taken.borrow_mut().push(mapped.transaction.end_lsn);
                }
            }
        }
    });
    let metrics = Arc::new(Metrics::new(&["said".to_owned()]));
    let health = Health::new(Arc::clone(&metrics));
    let (trigger, mut shutdown) = Shutdown::by_trigger();
    let running = spawn_local(async move {
        let mut bound = rules().bind(Binding::default());
        let stream = Stream::new(Slot::over(ours), &mut bound, ends, (START, TIMING));
        Box::pin(stream.run((&health, &metrics), &mut shutdown)).await
    });
    let mut before = usize::MAX;
    while before != taken.borrow().len() || before < IN_FLIGHT_MAX {
        before = taken.borrow().len();
        assert!(!running.is_finished(), "after {before} of {}", sent.get());
        sleep(Duration::from_millis(500)).await;
    }
    assert!(before < BACKLOG, "{before} of {BACKLOG} were read");
    // What is removed makes room for the rest.
    let removed: Vec<Lsn> = taken.borrow().clone();
    let event = Event::Swept(Swept::for_tests(removed, Vec::new()));
    sweeper.events.send((TargetId::FIRST, event)).await.unwrap();
    while taken.borrow().len() < BACKLOG {
        assert!(!running.is_finished());
        sleep(Duration::from_millis(50)).await;
    }
    let removed: Vec<Lsn> = taken.borrow().iter().skip(before).copied().collect();
    let event = Event::Swept(Swept::for_tests(removed, Vec::new()));
    sweeper.events.send((TargetId::FIRST, event)).await.unwrap();
    trigger.stop();
    drop(sweeper);
    drop(running.await);
}
