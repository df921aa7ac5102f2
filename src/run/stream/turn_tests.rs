//! Turns in which buffered frames are worked on: others on the thread, and the clock, get theirs.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::{AsyncWriteExt, duplex};
use tokio::task::{LocalSet, spawn_local, yield_now};

use super::full_tests::{START, TIMING, talkative};
use super::{Ends, Stream};
use crate::capture::Slot;
use crate::config::{Rule, Source, TableName};
use crate::keys::{Binding, Rules};
use crate::run::shutdown::Shutdown;
use crate::settle::Input;
use crate::telemetry::Health;
use crate::telemetry::metrics::Metrics;

/// So many rules for one message that a few messages take longer than a turn.
const RULES: usize = 3_000;

/// Messages that are in memory at once.
const MESSAGES: usize = 4_000;

fn rules() -> Rules {
    let rules: Vec<Rule> = (0..RULES)
        .map(|rule| Rule {
            table: TableName { schema: String::new(), name: String::new() },
            source: Source::Message("p".to_owned()),
            ..Rule::for_tests(&format!("said{rule}"), &[&format!("said:{rule}")])
        })
        .collect();
    Rules::compile(&rules).unwrap()
}

#[tokio::test]
async fn work_that_is_in_memory_gives_others_their_turns() {
    LocalSet::new().run_until(turns()).await;
}

async fn turns() {
    let (ours, mut server) = duplex(16 * 1024 * 1024);
    server.write_all(&talkative(0, MESSAGES).0).await.unwrap();
    let (ends, gate, sweeper) = Ends::new(START, 1);
    let others = Rc::new(Cell::new(0));
    spawn_local({
        let others = Rc::clone(&others);
        async move {
            loop {
                others.set(others.get() + 1);
                yield_now().await;
            }
        }
    });
    let metrics = Arc::new(Metrics::new(&[]));
    let health = Health::new(Arc::clone(&metrics));
    let (trigger, mut shutdown) = Shutdown::by_trigger();
    let running = spawn_local(async move {
        let mut bound = rules().bind(Binding::default());
        let stream = Stream::new(Slot::over(ours), &mut bound, ends, (START, TIMING));
        Box::pin(stream.run((&health, &metrics), &mut shutdown)).await
    });
    let mut inputs = gate.inputs;
    while !matches!(inputs.recv().await, Some(Input::Transaction(_))) {}
    let others = others.get();
    assert!(others >= 10, "{others} turns of others while {MESSAGES} messages were worked on");
    trigger.stop();
    drop(sweeper);
    drop(running.await);
}
