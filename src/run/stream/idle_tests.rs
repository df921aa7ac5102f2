//! A server that has nothing to say, on paused time.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::LocalSet;
use tokio::time::{Instant, advance, sleep, timeout};

use super::{Ends, Stream};
use crate::capture::Slot;
use crate::config::TargetId;
use crate::keys::{Binding, Rules};
use crate::lsn::Lsn;
use crate::run::error::Error;
use crate::run::session::Timing;
use crate::run::shutdown::Shutdown;
use crate::source;
use crate::sweep::Event;
use crate::telemetry::health_tests::Log;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{Health, Phase};

const START: Lsn = Lsn(100);

/// As follows from `wal_sender_timeout = 60s`, the default.
const TIMING: Timing = Timing { status: Duration::from_secs(10), silence: Duration::from_secs(40) };

/// How often the watermark is confirmed though nothing happens.
const COVERED: Duration = Duration::from_secs(5);

/// The length of a `CopyData` message with a status update.
const STATUS_LENGTH: usize = 39;

/// Notes when it was asked for a reply, and gives one if `answers`; says nothing by itself.
async fn serve(mut wire: DuplexStream, answers: bool, asked: Rc<RefCell<Vec<Instant>>>) {
    let mut status = [0; STATUS_LENGTH];
    while wire.read_exact(&mut status).await.is_ok() {
        assert_eq!((status[0], status[5]), (b'd', b'r'), "a status update");
        if status[STATUS_LENGTH - 1] == 1 {
            asked.borrow_mut().push(Instant::now());
            if answers {
                let mut keepalive = vec![b'd', 0, 0, 0, 22, b'k'];
                keepalive.extend(START.0.to_be_bytes());
                keepalive.extend([0; 9]);
                wire.write_all(&keepalive).await.unwrap();
            }
        }
    }
}

/// Streams for as long, beside a sweeper whose watermark stands; gives what ended it, and when the
/// server was asked for a reply, from the start on.
async fn stream(answers: bool, period: Duration) -> (Option<Error>, Vec<Duration>) {
    let (ended, asked, _) = stream_and_look(answers, period).await;
    (ended, asked)
}

/// Streams like [`stream`]; gives besides what is wrong at its end, by `/readyz`, and the age of
/// what may be unconfirmed.
async fn stream_and_look(
    answers: bool,
    period: Duration,
) -> (Option<Error>, Vec<Duration>, (String, Duration)) {
    let (ours, theirs) = duplex(4096);
    let (ends, _gate, sweeper) = Ends::new(START, 1);
    let mut bound = Rules::compile(&[]).unwrap().bind(Binding::default());
    let (start, asked) = (Instant::now(), Rc::default());
    tokio::task::spawn_local(serve(theirs, answers, Rc::clone(&asked)));
    tokio::task::spawn_local(async move {
        while sweeper.events.send((TargetId::FIRST, Event::Covered(START))).await.is_ok() {
            sleep(COVERED).await;
        }
    });
    let metrics = Arc::new(Metrics::new(&[]));
    let health = Arc::new(Health::new(Arc::clone(&metrics)));
    health.set(Phase::Streaming);
    let watched = Arc::clone(&health);
    tokio::task::spawn_local(async move { watched.standstill().watch().await });
    let (_trigger, mut shutdown) = Shutdown::by_trigger();
    let stream = Stream::new(Slot::over(ours), &mut bound, ends, (START, TIMING));
    let run = Box::pin(stream.run((&health, &metrics), &mut shutdown));
    let ended = timeout(period, run).await;
    let asked = asked.borrow().iter().map(|at| *at - start).collect();
    let unconfirmed = health.unconfirmed_since().map_or(Duration::ZERO, |since| since.elapsed());
    (ended.ok().and_then(Result::err), asked, (health.readiness().1, unconfirmed))
}

/// With the server's default `wal_sender_timeout` it never speaks first to a client that reports
/// more often than every half of it.
#[tokio::test(start_paused = true)]
async fn a_server_that_has_nothing_to_say_is_asked_and_keeps_its_session() {
    let hour = Duration::from_secs(3600);
    let (ended, asked) = LocalSet::new().run_until(stream(true, hour)).await;
    assert!(ended.is_none(), "{ended:?}");
    let mut last = Duration::ZERO;
    for at in &asked {
        assert!(*at - last <= TIMING.status + COVERED, "not asked from {last:?} to {at:?}");
        assert!(*at - last >= TIMING.status, "asked too often, at {at:?}");
        last = *at;
    }
    assert!(hour - last <= TIMING.status + COVERED, "not asked after {last:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_when_asked_is_given_up() {
    let (ended, asked) = LocalSet::new().run_until(stream(false, TIMING.silence * 2)).await;
    assert!(matches!(ended, Some(Error::Source(source::Error::Silent(40..=42)))), "{ended:?}");
    assert!(asked.len() >= 3, "asked more than once: {asked:?}");
}

/// A process that stands still now and then would else never see that the server hangs.
#[tokio::test(start_paused = true)]
async fn a_standstill_forgives_the_server_no_silence() {
    let still = Duration::from_secs(12);
    let streamed = async {
        tokio::task::spawn_local(async move {
            sleep(TIMING.silence / 4).await;
            advance(still).await;
        });
        stream_and_look(false, TIMING.silence + Duration::from_secs(3)).await
    };
    let (log, _guard) = Log::start();
    let (ended, _, (readiness, _)) = LocalSet::new().run_until(streamed).await;
    let stood = |line: &String| line.contains("this process stood still for 1");
    assert!(log.lines().iter().any(stood), "{:?}", log.lines());
    assert!(matches!(ended, Some(Error::Source(source::Error::Silent(40..=42)))), "{ended:?}");
    assert!(readiness.contains("Postgres has sent nothing for 20 s"), "{readiness}");
}

/// Long before it is given up.
#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_is_told_of_and_nothing_counts_as_confirmed() {
    let period = TIMING.silence / 2 + Duration::from_secs(3);
    let local = LocalSet::new();
    let (ended, _, (readiness, age)) = local.run_until(stream_and_look(false, period)).await;
    assert!(ended.is_none(), "{ended:?}");
    assert!(readiness.starts_with("not ready\nPostgres has sent nothing for 20 s"), "{readiness}");
    assert!(age >= TIMING.silence / 2, "{age:?}");
    let (_, _, (readiness, age)) = local.run_until(stream_and_look(true, period)).await;
    assert_eq!((readiness.as_str(), age), ("ready\n", Duration::ZERO));
}
