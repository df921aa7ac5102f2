//! Many commits are read in gulps, with the thread blocked in between; not while a removal or a
//! sweep is on its way.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, WriteHalf, duplex, split};
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::Instant;

use super::full_tests::transaction;
use super::{Ends, Stream};
use crate::capture::Slot;
use crate::config::TargetId;
use crate::keys::{Binding, Rules};
use crate::lsn::Lsn;
use crate::run::session::Timing;
use crate::run::shutdown::Shutdown;
use crate::sweep::{Broken, Doubt, Event};
use crate::telemetry::Health;
use crate::telemetry::metrics::Metrics;

const START: Lsn = Lsn(100);
const TIMING: Timing = Timing { status: Duration::from_secs(10), silence: Duration::from_secs(40) };

/// Commits that no rule looks at, three messages each: enough to be gathered, and no backlog.
const COMMITS_PER_MS: usize = 4;

/// How many of them.
const COMMITS: usize = 2_000;

/// After so many it is known that they are many.
const KNOWN_AFTER: usize = 800;

/// Sends them at their pace, notes how many, and ends.
async fn serve(mut wire: WriteHalf<DuplexStream>, sent: Rc<Cell<usize>>) {
    let began = Instant::now();
    while sent.get() < COMMITS {
        let due = usize::try_from(began.elapsed().as_micros()).unwrap() * COMMITS_PER_MS / 1_000;
        while sent.get() < due.min(COMMITS) {
            wire.write_all(&transaction(sent.get()).0).await.unwrap();
            sent.set(sent.get() + 1);
        }
        yield_now().await;
    }
}

/// How many steps another task makes while the last of them are read.
async fn steps(is_owed: bool) -> u64 {
    let (ours, theirs) = duplex(64 * 1024);
    let (mut statuses, server) = split(theirs);
    let (ends, gate, sweeper) = Ends::new(START, 1);
    let mut inputs = gate.inputs;
    spawn_local(async move { while inputs.recv().await.is_some() {} });
    spawn_local(async move {
        let mut status = [0; 64];
        while statuses.read(&mut status).await.is_ok_and(|count| count > 0) {}
    });
    if is_owed {
        let doubt = Doubt::Everything(Broken::SlotCreated);
        sweeper.events.send((TargetId::FIRST, Event::ResyncOwed(doubt))).await.unwrap();
    }
    let (sent, steps) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let serving = spawn_local(serve(server, Rc::clone(&sent)));
    let stepping = spawn_local({
        let steps = Rc::clone(&steps);
        async move {
            loop {
                steps.set(steps.get() + u64::from(sent.get() > KNOWN_AFTER));
                yield_now().await;
            }
        }
    });
    let metrics = Arc::new(Metrics::new(&[]));
    let health = Health::new(Arc::clone(&metrics));
    let (trigger, mut shutdown) = Shutdown::by_trigger();
    let running = spawn_local(async move {
        let mut bound = Rules::compile(&[]).unwrap().bind(Binding::default());
        let stream = Stream::new(Slot::over(ours), &mut bound, ends, (START, TIMING));
        Box::pin(stream.run((&health, &metrics), &mut shutdown)).await
    });
    serving.await.unwrap();
    stepping.abort();
    trigger.stop();
    drop(sweeper);
    drop(running.await);
    steps.get()
}

/// Each step of a sweep would wait for the blocked thread.
#[tokio::test]
async fn while_a_sweep_is_owed_the_thread_is_not_blocked() {
    // The thread is blocked by what the clock shows, which on a busy machine is not every time the
    // pace that was meant.
    let mut rounds = Vec::new();
    for _ in 0..5 {
        let (blocked, free) =
            LocalSet::new().run_until(async { (steps(false).await, steps(true).await) }).await;
        if free > 5 * blocked {
            return;
        }
        rounds.push((blocked, free));
    }
    panic!("{rounds:?} steps without a sweep that is owed, and with one");
}
