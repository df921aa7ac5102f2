//! The gate against a server whose visibility a test decides, on paused time.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::channel::{Receiver, Sender, channel};
use crate::config::TargetId;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::Instant;

use super::{Cause, Early, Error, Gate, Holder, Input, Mapped, Probe, Question, Resync, Snapshot};
use crate::gather::Transaction;
use crate::keys::Rules;
use crate::lsn::Lsn;
use crate::settle::Visible;
use crate::telemetry::Health;
use crate::telemetry::metrics::Metrics;

/// A server that tells what the test says.
#[derive(Clone)]
struct Server {
    snapshot: Rc<RefCell<String>>,
    fails: Rc<Cell<bool>>,
    answers: Rc<Cell<bool>>,
    looks: Rc<Cell<u32>>,
    committed: Rc<RefCell<Vec<u64>>>,
}

impl Server {
    fn new(snapshot: &str) -> Server {
        Server {
            snapshot: Rc::new(RefCell::new(snapshot.to_owned())),
            fails: Rc::default(),
            answers: Rc::new(Cell::new(true)),
            looks: Rc::default(),
            committed: Rc::default(),
        }
    }

    fn shows(&self, snapshot: &str) {
        snapshot.clone_into(&mut self.snapshot.borrow_mut());
    }
}

impl Probe for Server {
    async fn snapshot(&self) -> Result<Snapshot, Error> {
        self.looks.set(self.looks.get() + 1);
        if !self.answers.get() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_micros(40)).await;
        if self.fails.get() {
            return Err(Error::Standby);
        }
        Ok(self.snapshot.borrow().parse()?)
    }

    async fn fence(&self) -> Result<u64, Error> {
        Ok(50)
    }

    async fn position(&self) -> Result<Lsn, Error> {
        Ok(Lsn(5_000))
    }

    async fn committed(&self, xids: &[u64]) -> Result<Vec<bool>, Error> {
        Ok(xids.iter().map(|xid| self.committed.borrow().contains(xid)).collect())
    }

    async fn holders(&self, xids: &[u64]) -> Result<Vec<Holder>, Error> {
        Ok(xids.iter().map(|xid| Holder { xid: *xid, pid: None, prepared: None }).collect())
    }
}

struct Session {
    server: Server,
    inputs: Sender<Input>,
    visible: Receiver<Visible>,
    gate: JoinHandle<Result<(), Error>>,
    metrics: Arc<Metrics>,
}

fn rules() -> Rules {
    Rules::compile(&[]).unwrap()
}

fn session(snapshot: &str) -> Session {
    let server = Server::new(snapshot);
    let metrics = Arc::new(Metrics::new(&[]));
    let health = Arc::new(Health::new(Arc::clone(&metrics)));
    let (inputs, gate_inputs) = channel(16);
    let (outputs, visible) = channel(16);
    let gate = Gate::new(server.clone(), health);
    let gate = tokio::task::spawn_local(gate.run(gate_inputs, outputs));
    Session { server, inputs, visible, gate, metrics }
}

impl Session {
    async fn commit(&self, xid: u32) {
        let end_lsn = Lsn(u64::from(xid) * 100);
        let transaction = Transaction { xid, commit_lsn: Lsn(1), end_lsn, commit_time: 0 };
        let (received_at, keys) = (Instant::now(), rules().key_set());
        let mapped = Mapped { transaction, received_at, keys };
        self.inputs.send(Input::Transaction(Box::new(mapped))).await.unwrap();
    }

    /// The xid that passes next; `None` if none does within the time.
    async fn next_within(&mut self, limit: Duration) -> Option<u32> {
        let visible = tokio::time::timeout(limit, self.visible.recv()).await.ok()??;
        match visible.into_parts().0 {
            Cause::Transaction(transaction) => Some(transaction.xid),
            Cause::Resync { .. } | Cause::Replayed(_) | Cause::Early(_) => None,
        }
    }
}

const MOMENT: Duration = Duration::from_millis(50);

async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

#[tokio::test(start_paused = true)]
async fn nothing_passes_before_it_is_visible() {
    local(async {
        // 20 is committed, flushed, and not listed: past xmax.
        let mut session = session("20:20:");
        session.commit(20).await;
        assert_eq!(session.next_within(Duration::from_secs(60)).await, None);
        assert_eq!(session.metrics.invisible_at_arrival.get(), 1);
        session.server.shows("21:21:");
        assert_eq!(session.next_within(MOMENT).await, Some(20));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stuck_transaction_delays_no_later_one() {
    local(async {
        let mut session = session("20:21:20");
        session.commit(20).await;
        for xid in 21..30 {
            session.server.shows(&format!("20:{}:20", xid + 1));
            session.commit(xid).await;
            assert_eq!(session.next_within(MOMENT).await, Some(xid));
        }
        session.server.shows("30:30:");
        assert_eq!(session.next_within(MOMENT).await, Some(20));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_look_serves_all_that_wait_and_looks_grow_rare() {
    local(async {
        let mut session = session("20:20:");
        for xid in 20..30 {
            session.commit(xid).await;
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        let looks = session.server.looks.get();
        assert!((400..700).contains(&looks), "{looks} looks in 10 s");
        session.server.shows("30:30:");
        for xid in 20..30 {
            assert_eq!(session.next_within(MOMENT).await, Some(xid));
        }
        assert_eq!(session.server.looks.get(), looks + 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_look_at_begin_spares_the_one_at_commit() {
    local(async {
        let mut session = session("21:21:");
        session.inputs.send(Input::Begin { xid: 20 }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(session.server.looks.get(), 1);
        session.commit(20).await;
        assert_eq!(session.next_within(MOMENT).await, Some(20));
        assert_eq!(session.server.looks.get(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_look_ends_the_gate_and_lets_nothing_pass() {
    local(async {
        let mut session = session("21:21:");
        session.server.fails.set(true);
        session.commit(20).await;
        assert_eq!(session.next_within(Duration::from_secs(1)).await, None);
        assert!(matches!(session.gate.await, Ok(Err(Error::Standby))));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_look_without_an_answer_ends_the_gate() {
    local(async {
        let mut session = session("21:21:");
        session.server.answers.set(false);
        session.commit(20).await;
        assert_eq!(session.next_within(Duration::from_secs(60)).await, None);
        assert!(matches!(session.gate.await, Ok(Err(Error::Timeout))));
    })
    .await;
}

/// I1: asked about one that runs, one that was undone, one whose subtransaction was, and one before
/// the first id.
#[tokio::test(start_paused = true)]
async fn only_what_is_seen_and_committed_is_answered() {
    local(async {
        let server = Server::new("40:60:40");
        server.committed.borrow_mut().extend([40, 50, 51, 45]);
        let (inputs, gate_inputs) = channel(16);
        let (outputs, mut visible) = channel::<Visible>(16);
        let (answers, mut answered) = tokio::sync::mpsc::channel(16);
        let health = Arc::new(Health::new(Arc::new(Metrics::new(&[]))));
        let gate = Gate::new(server, health).with_answers(answers);
        tokio::task::spawn_local(gate.run(gate_inputs, outputs));
        let question = |xid, subxids: &[u32]| Question { xid, subxids: subxids.to_vec() };
        let asked = [
            question(40, &[]),
            question(41, &[45]),
            question(50, &[51, 52]),
            question(60, &[]),
            question(u32::MAX, &[]),
        ];
        inputs.send(Input::Early(Early::ask(asked.to_vec()))).await.unwrap();
        let ended = answered.recv().await.unwrap();
        assert_eq!((ended.xid(), ended.subxids()), (50, [51].as_slice()));
        let early = Input::Early(ended.with_keys(rules().key_set()));
        inputs.send(early).await.unwrap();
        assert_eq!(visible.recv().await.unwrap().into_parts().0, Cause::Early(50));
        assert!(answered.try_recv().is_err(), "one was answered");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_fenced_resync_is_repeated_when_older_transactions_have_ended() {
    local(async {
        let mut session = session("40:60:40");
        let target = Some(TargetId(1));
        let resync = Resync { keys: rules().everything(), target, fenced: true };
        session.inputs.send(Input::Resync(Box::new(resync))).await.unwrap();
        let first = session.visible.recv().await.unwrap();
        assert_eq!(first.target(), target, "from no other");
        assert_eq!(first.into_parts().0, Cause::Resync { last: false });
        let early = tokio::time::timeout(Duration::from_secs(60), session.visible.recv()).await;
        assert!(early.is_err(), "40 still runs");
        session.server.shows("51:60:55");
        let second = session.visible.recv().await.unwrap();
        assert_eq!(second.target(), target, "nor now");
        assert_eq!(second.into_parts().0, Cause::Resync { last: true });
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_resync_with_nothing_older_is_made_once() {
    local(async {
        for (snapshot, fenced) in [("51:51:", true), ("40:60:40", false)] {
            let mut session = session(snapshot);
            let resync = Resync { keys: rules().everything(), target: None, fenced };
            session.inputs.send(Input::Resync(Box::new(resync))).await.unwrap();
            let only = session.visible.recv().await.unwrap();
            assert_eq!(only.into_parts().0, Cause::Resync { last: true });
            let more = tokio::time::timeout(Duration::from_secs(60), session.visible.recv()).await;
            assert!(more.is_err());
        }
    })
    .await;
}

/// I1: after more than 2^31 ids without a look, a new id lies behind the last one in 32 bits.
#[tokio::test(start_paused = true)]
async fn ids_far_ahead_are_not_taken_for_the_past() {
    local(async {
        for (ids, minutes, begins) in [
            ((1_u64 << 31) + 9, 60, false),
            ((1 << 32) - 5, 60, false),
            ((1 << 32) - 5, 60, true),
            ((1 << 31) + 20_000_000, 0, false),
            ((1 << 31) + 20_000_000, 0, true),
        ] {
            let first: u64 = 3_000_000_000;
            let mut session = session(&format!("{first}:{first}:"));
            session.commit(2_999_999_999).await;
            assert_eq!(session.next_within(MOMENT).await, Some(2_999_999_999));
            tokio::time::sleep(Duration::from_secs(minutes * 60)).await;
            let now = first + ids;
            let xid = u32::try_from(now & 0xFFFF_FFFF).unwrap();
            session.server.shows(&format!("{now}:{}:{now}", now + 1));
            if begins {
                session.inputs.send(Input::Begin { xid }).await.unwrap();
                tokio::time::sleep(MOMENT).await;
            }
            session.commit(xid).await;
            assert_eq!(session.next_within(Duration::from_secs(60)).await, None, "{ids}");
            session.server.shows(&format!("{0}:{0}:", now + 1));
            assert_eq!(session.next_within(MOMENT).await, Some(xid));
        }
    })
    .await;
}

/// I6: more keys than there is room for wait for a commit that stays invisible.
#[tokio::test(start_paused = true)]
async fn what_is_widened_for_lack_of_room_is_counted() {
    local(async {
        let rules = crate::settle::replay::tests::rules();
        let metrics = Arc::new(Metrics::new(rules.names()));
        let health = Arc::new(Health::new(Arc::clone(&metrics)));
        let (inputs, gate_inputs) = channel(16);
        let (outputs, _visible) = channel::<Visible>(16);
        let gate = Gate::new(Server::new("20:20:"), health);
        tokio::task::spawn_local(gate.run(gate_inputs, outputs));
        let line =
            |count| format!("walsweep_widened_total{{rule=\"item\",reason=\"limit\"}} {count}\n");
        for xid in 20..32_u32 {
            let ids = (0..50_000).map(|id| u64::from(xid) * 1_000_000 + id);
            let keys = crate::settle::replay::tests::keys(&rules, ids);
            let transaction =
                Transaction { xid, commit_lsn: Lsn(1), end_lsn: Lsn(xid.into()), commit_time: 0 };
            let mapped = Mapped { transaction, received_at: Instant::now(), keys };
            inputs.send(Input::Transaction(Box::new(mapped))).await.unwrap();
        }
        tokio::time::sleep(MOMENT).await;
        let text = metrics.text();
        // All that wait when there is no more room, and again.
        assert!((5..=12).any(|count| text.contains(&line(count))), "{text}");
    })
    .await;
}

/// I6: a set costs what is in it, however many rules there are, so that nothing has to give way.
#[tokio::test(start_paused = true)]
async fn of_a_thousand_rules_sixty_commits_that_wait_keep_their_keys() {
    local(async {
        let rules = crate::settle::replay::tests::many_rules(1_000);
        let metrics = Arc::new(Metrics::new(rules.names()));
        let health = Arc::new(Health::new(Arc::clone(&metrics)));
        let (inputs, gate_inputs) = channel(16);
        let (outputs, mut visible) = channel::<Visible>(16);
        let server = Server::new("20:20:");
        let gate = Gate::new(server.clone(), health);
        tokio::task::spawn_local(gate.run(gate_inputs, outputs));
        for xid in 20..80_u32 {
            let keys = crate::settle::replay::tests::keys(&rules, std::iter::once(xid.into()));
            let transaction =
                Transaction { xid, commit_lsn: Lsn(1), end_lsn: Lsn(xid.into()), commit_time: 0 };
            let mapped = Mapped { transaction, received_at: Instant::now(), keys };
            inputs.send(Input::Transaction(Box::new(mapped))).await.unwrap();
        }
        tokio::time::sleep(MOMENT).await;
        server.shows("80:80:");
        for number in 0..60 {
            let keys = visible.recv().await.unwrap().into_parts().1;
            assert_eq!((keys.exact_len(), keys.has_patterns()), (1, false), "{number}: {keys:?}");
        }
    })
    .await;
}
