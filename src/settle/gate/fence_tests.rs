//! Whom a fence waits for, where a test decides who holds it, on paused time.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout};

use super::{Cause, Error, Gate, Holder, Input, Mapped, Probe, Resync, Snapshot};
use crate::channel::{Receiver, Sender, channel};
use crate::gather::Transaction;
use crate::keys::Rules;
use crate::lsn::Lsn;
use crate::settle::Visible;
use crate::telemetry::health_tests::Log;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{Health, Phase};

/// Who holds the fence, which is 50; `None`: the question fails.
type Holders = Option<Vec<Holder>>;

#[derive(Clone, Default)]
struct Server {
    snapshot: Rc<RefCell<&'static str>>,
    holders: Rc<RefCell<Holders>>,
    /// Whether the question who holds the fence is answered.
    is_silent: Rc<Cell<bool>>,
    /// When it was asked.
    asked: Rc<RefCell<Vec<Instant>>>,
}

impl Probe for Server {
    async fn snapshot(&self) -> Result<Snapshot, Error> {
        sleep(Duration::from_micros(40)).await;
        Ok(self.snapshot.borrow().parse()?)
    }

    async fn fence(&self) -> Result<u64, Error> {
        Ok(50)
    }

    async fn position(&self) -> Result<Lsn, Error> {
        Ok(Lsn::ZERO)
    }

    async fn committed(&self, xids: &[u64]) -> Result<Vec<bool>, Error> {
        Ok(vec![false; xids.len()])
    }

    async fn holders(&self, xids: &[u64]) -> Result<Vec<Holder>, Error> {
        self.asked.borrow_mut().push(Instant::now());
        if self.is_silent.get() {
            std::future::pending::<()>().await;
        }
        let mut holders = self.holders.borrow().clone().ok_or(Error::Standby)?;
        holders.retain(|holder| xids.contains(&holder.xid));
        Ok(holders)
    }
}

fn rules() -> Rules {
    Rules::compile(&[]).unwrap()
}

fn process(xid: u64) -> Holder {
    Holder { xid, pid: Some(7), prepared: None }
}

/// A gate that owes a sweep, and has made the first one.
struct Session {
    server: Server,
    inputs: Sender<Input>,
    visible: Receiver<Visible>,
    health: Arc<Health>,
}

async fn session(snapshot: &'static str, holders: Holders) -> Session {
    let server = Server::default();
    server.snapshot.replace(snapshot);
    server.holders.replace(holders);
    let health = Arc::new(Health::new(Arc::new(Metrics::new(&[]))));
    health.set(Phase::Streaming);
    let (inputs, gate_inputs) = channel(16);
    let (outputs, mut visible) = channel::<Visible>(16);
    let gate = Gate::new(server.clone(), Arc::clone(&health));
    tokio::task::spawn_local(gate.run(gate_inputs, outputs));
    let resync = Resync { keys: rules().everything(), target: None, fenced: true };
    inputs.send(Input::Resync(Box::new(resync))).await.unwrap();
    assert_eq!(visible.recv().await.unwrap().into_parts().0, Cause::Resync { last: false });
    Session { server, inputs, visible, health }
}

impl Session {
    async fn next_within(&mut self, limit: Duration) -> Option<Cause> {
        Some(timeout(limit, self.visible.recv()).await.ok()??.into_parts().0)
    }

    fn says(&self) -> String {
        self.health.readiness().1
    }
}

const LAST: Option<Cause> = Some(Cause::Resync { last: true });
const LONG: Duration = Duration::from_secs(60);

async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

#[tokio::test(start_paused = true)]
async fn who_changed_nothing_that_matters_is_not_waited_for() {
    local(async {
        let mut session = session("40:60:40,45,55", Some(Vec::new())).await;
        assert_eq!(session.next_within(Duration::from_millis(100)).await, LAST);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn whom_it_waits_for_is_named_until_it_has_ended() {
    local(async {
        let prepared = Holder { xid: (1 << 32) + 9, pid: None, prepared: Some("it's".to_owned()) };
        let mut session = session("40:60:40,45,49", Some(vec![process(40), process(49)])).await;
        assert_eq!(session.says(), "ready\n", "one that ends at once is nobody's concern");
        assert_eq!(session.next_within(LONG).await, None);
        let text = "the last sweep of everything waits for transaction 40 of Postgres process 7, \
                    transaction 49 of Postgres process 7\n  hint: let it end, or end it: \
                    `select pg_terminate_backend(7)`\n";
        assert_eq!(session.says(), format!("ready\n{text}"));
        session.server.snapshot.replace("45:60:45,49");
        sleep(LONG).await;
        assert!(!session.says().contains("transaction 40"), "{}", session.says());
        assert!(session.says().contains("transaction 49"), "{}", session.says());
        session.server.snapshot.replace("45:60:45");
        assert_eq!(session.next_within(Duration::from_millis(100)).await, LAST);
        sleep(Duration::from_millis(100)).await;
        assert_eq!(session.says(), "ready\n");
        assert_eq!(
            (prepared.name(), prepared.cure()),
            (
                "transaction 9, prepared as `it's`".to_owned(),
                Some("`commit prepared 'it''s'` or `rollback prepared 'it''s'`".to_owned()),
            )
        );
    })
    .await;
}

/// Nobody knows when the session ends whether the transaction has ended.
#[tokio::test(start_paused = true)]
async fn with_the_session_it_is_taken_back_and_not_told_as_resolved() {
    let (log, _guard) = Log::start();
    let health = local(async {
        let mut session = session("40:60:40", Some(vec![process(40)])).await;
        assert_eq!(session.next_within(LONG).await, None);
        assert!(session.says().contains("transaction 40"), "{}", session.says());
        session.health
    })
    .await;
    assert_eq!(health.readiness().1, "ready\n");
    let lines = log.lines().concat();
    assert!(lines.contains("transaction 40") && !lines.contains("resolved"), "{lines}");
}

/// Doubt waits, and looks go on meanwhile (I3).
#[tokio::test(start_paused = true)]
async fn who_cannot_be_told_is_waited_for_and_delays_nobody() {
    local(async {
        for is_silent in [false, true] {
            let mut session = session("40:60:40,45", None).await;
            session.server.is_silent.set(is_silent);
            let transaction =
                Transaction { xid: 59, commit_lsn: Lsn(1), end_lsn: Lsn(2), commit_time: 0 };
            sleep(Duration::from_secs(5)).await;
            let (received_at, keys) = (Instant::now(), rules().key_set());
            let mapped = Mapped { transaction, received_at, keys };
            session.inputs.send(Input::Transaction(Box::new(mapped))).await.unwrap();
            let next = session.next_within(Duration::from_millis(100)).await;
            assert_eq!(next, Some(Cause::Transaction(transaction)), "{is_silent}");
            assert_eq!(session.next_within(LONG).await, None);
            assert!(session.says().contains("waits for 2 transactions"), "{}", session.says());
            session.server.snapshot.replace("60:60:");
            assert_eq!(session.next_within(Duration::from_millis(100)).await, LAST);
        }
    })
    .await;
}

/// Each question reads the lock table.
#[tokio::test(start_paused = true)]
async fn the_question_who_holds_it_is_asked_less_and_less_often() {
    local(async {
        let mut session = session("40:60:40", Some(vec![process(40)])).await;
        assert_eq!(session.next_within(LONG).await, None);
        let asked = session.server.asked.take();
        assert!((15..20).contains(&asked.len()), "{}", asked.len());
        let pauses: Vec<Duration> = asked.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(pauses[0] >= Duration::from_millis(250), "{pauses:?}");
        assert!(pauses[8..].iter().all(|pause| *pause >= Duration::from_secs(5)), "{pauses:?}");
    })
    .await;
}
