//! Two targets as the stream hears of them: the whole is as far as the one that is furthest behind.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

use super::{Ends, Stream};
use crate::capture::Slot;
use crate::config::TargetId;
use crate::keys::{Binding, Rules};
use crate::lsn::Lsn;
use crate::run::session::Timing;
use crate::run::shutdown::Shutdown;
use crate::settle::Input;
use crate::sweep::{Broken, Doubt, Event};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{Health, Phase};

const START: Lsn = Lsn(100);
const TIMING: Timing = Timing { status: Duration::from_secs(10), silence: Duration::from_secs(40) };
const ONE: TargetId = TargetId(0);
const OTHER: TargetId = TargetId(1);

/// Notes what was flushed, as the statuses tell.
async fn serve(mut wire: DuplexStream, flushed: Rc<Cell<u64>>) {
    let mut status = [0; 39];
    while wire.read_exact(&mut status).await.is_ok() {
        flushed.set(u64::from_be_bytes(status[14..22].try_into().unwrap()));
    }
}

#[tokio::test(start_paused = true)]
async fn the_whole_is_as_far_as_the_target_that_is_furthest_behind() {
    LocalSet::new().run_until(Box::pin(two_targets())).await;
}

async fn two_targets() {
    let (ours, theirs) = duplex(4096);
    let (ends, mut gate, targets) = Ends::new(START, 2);
    let flushed = Rc::new(Cell::new(0));
    spawn_local(serve(theirs, Rc::clone(&flushed)));
    let metrics = Arc::new(Metrics::new(&[]));
    let health = Arc::new(Health::new(Arc::clone(&metrics)));
    let (_trigger, mut shutdown) = Shutdown::by_trigger();
    let running = spawn_local({
        let health = Arc::clone(&health);
        async move {
            let mut bound = Rules::compile(&[]).unwrap().bind(Binding::default());
            let stream = Stream::new(Slot::over(ours), &mut bound, ends, (START, TIMING));
            Box::pin(stream.run((&health, &metrics), &mut shutdown)).await
        }
    });
    let owed = || Event::ResyncOwed(Doubt::Everything(Broken::WatermarkMissing));
    let sweeping = Phase::Sweeping("watermark_missing");
    let rows = [
        (ONE, Event::Whole, Phase::Connecting, 0, "the other was not heard of"),
        (ONE, Event::Covered(START), Phase::Connecting, 0, "nor what it covers"),
        (OTHER, owed(), sweeping, 0, "it is new"),
        (OTHER, Event::Whole, Phase::Streaming, 0, "its watermark is not written"),
        (OTHER, Event::Covered(Lsn(90)), Phase::Streaming, 90, "the least"),
        (ONE, Event::RedisLost, Phase::RedisLost, 90, "one is away"),
        (OTHER, Event::Covered(START), Phase::RedisLost, 90, "what one covers is not known"),
        (OTHER, owed(), Phase::RedisLost, 90, "the other has more to do, too"),
        (ONE, Event::Whole, sweeping, 90, "one is back"),
        (ONE, Event::Covered(START), sweeping, 90, "what the other covered is lost"),
        (OTHER, Event::Whole, Phase::Streaming, 90, "it is swept"),
        (OTHER, Event::Covered(START), Phase::Streaming, 100, "and says so"),
    ];
    for (target, event, phase, confirmed, why) in rows {
        targets.events.send((target, event)).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        assert_eq!((health.phase(), flushed.get()), (phase, confirmed), "{why}");
    }
    for _ in 0..2 {
        let Some(Input::Resync(resync)) = gate.inputs.try_recv() else {
            panic!("nothing is swept")
        };
        assert_eq!(resync.target, Some(OTHER), "nothing but what owes it");
    }
    assert!(!running.is_finished());
}
