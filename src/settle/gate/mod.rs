//! The visibility gate: wait until a commit is visible to new snapshots.
//!
//! Takes: transactions with their key sets, in stream order. Gives: each one as [`Gated`], in the
//! order in which they become visible. Never knows: Redis, the confirmed LSN. Invariants: nothing
//! passes before a snapshot of the primary, taken after its COMMIT was written, contains it (I1); a
//! transaction that waits delays no other (I3); any doubt means "not visible".
//!
//! Why a gate at all: the walsender sends a commit when its record is flushed; rows become visible
//! only when the committing backend has left the process array, which is after it has waited for
//! synchronous standbys (xact.c: `XLogFlush`, `SyncRepWaitForLSN`, `ProcArrayEndTransaction`). A
//! key removed in between is filled again with the old row, for good.
//!
//! Why like this: one snapshot answers for all transactions received so far, so the server is
//! asked once, however many they are; to hold it against each costs a binary search, and what
//! waits for long is no more than the server has connections and prepared transactions. It is
//! asked for as early as BEGIN, while the rows are still arriving. What it says stays true, so one
//! that was taken before and contains the transaction is as good as a new one, while its 64 bits
//! are near enough to tell what the stream's 32 mean ([`snapshot`]).

mod early;
mod fence;
#[cfg(test)]
mod fence_tests;
mod looks;
mod probe;
mod snapshot;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Cause, Gated, LARGE_SET_BYTES, send};
use crate::budget;
use crate::channel::{Receiver, Sender, Weight};
use crate::config::TargetId;
use crate::failpoint::{self, Point};
use crate::gather::Transaction;
use crate::keys::KeySet;
use crate::lsn::Lsn;
use crate::postgres;
use crate::telemetry::Health;
use crate::telemetry::metrics::seconds;
use fence::Watch;
use looks::Looks;
use snapshot::Seen;

pub use early::{Early, Ended, Question};
pub(super) use fence::Fence;
pub use fence::{Holder, Relations};
pub use probe::{Probe, SqlProbe};
pub use snapshot::Snapshot;

/// A snapshot that is not answered in this time is an error; the session starts again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Arrivals taken before a look must come between: a backlog would otherwise pile up here, where
/// what is not looked at cannot be told from what is not visible.
const ARRIVALS_MAX: usize = 512;

/// An input to the gate.
#[derive(Debug)]
pub enum Input {
    /// BEGIN of this transaction arrived: its commit is flushed, a look now may spare one later.
    Begin {
        /// The transaction's 32-bit id.
        xid: u32,
    },
    /// COMMIT arrived.
    Transaction(Box<Mapped>),
    /// Everything must be swept; once now, and once more when every transaction that may have been
    /// committed before the stream starts, unseen, has ended.
    Resync(Box<Resync>),
    /// Transactions that are still being sent: whether they have ended, or keys of one that has.
    Early(Early),
}

/// A committed transaction and the keys that it makes stale.
#[derive(Debug)]
pub struct Mapped {
    /// The transaction.
    pub transaction: Transaction,
    /// When its COMMIT was received.
    pub received_at: Instant,
    /// Its keys.
    pub keys: KeySet,
}

/// A sweep of everything.
#[derive(Debug)]
pub struct Resync {
    /// Every key that a rule could produce.
    pub keys: KeySet,
    /// The target that owes it; `None` for all.
    pub target: Option<TargetId>,
    /// Whether commits older than the stream may still be invisible.
    pub fenced: bool,
}

impl Input {
    /// Gives the keys that it brings.
    pub fn keys(&mut self) -> Option<&mut KeySet> {
        match self {
            Input::Begin { .. } => None,
            Input::Early(early) => early.keys(),
            Input::Transaction(mapped) => Some(&mut mapped.keys),
            Input::Resync(resync) => Some(&mut resync.keys),
        }
    }
}

impl Weight for Input {
    fn bytes(&self) -> usize {
        match self {
            Input::Begin { .. } => 0,
            Input::Early(early) => early.bytes(),
            Input::Transaction(mapped) => mapped.keys.bytes(),
            Input::Resync(resync) => resync.keys.bytes(),
        }
    }
}

/// Why the gate stopped. Nothing that waited is lost: it is not confirmed, so it is sent again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The gate's connection reached a standby, whose snapshots do not list what runs.
    #[error("ask for a snapshot: the server is a standby")]
    Standby,
    /// The query failed.
    #[error("ask for a snapshot: {0}")]
    Query(#[from] postgres::Error),
    /// The answer is not a snapshot.
    #[error("ask for a snapshot: the answer is not one: {0}")]
    Answer(#[from] snapshot::ParseError),
    /// The answer did not come.
    #[error("ask for a snapshot: no answer in {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Error {
        Error::Query(error.into())
    }
}

/// Who holds fences, on its way: the ids that were asked about, and the answer.
type Asked = Pin<Box<dyn Future<Output = (Vec<u64>, Result<Vec<Holder>, Error>)>>>;

/// Waits for visibility on one server, over one [`Probe`].
pub struct Gate<P> {
    probe: Rc<P>,
    health: Arc<Health>,
    waiting: Vec<Waiting>,
    /// Memory of the keys that wait, in bytes.
    waiting_bytes: usize,
    latest: Option<Seen>,
    /// How many sweeps of everything wait.
    fenced: usize,
    fences: Watch,
    /// Whether something arrived that the latest snapshot does not answer.
    look_wanted: bool,
    /// Transactions that arrived since the last look and wait for the next.
    arrivals: usize,
    looks: Looks,
    /// Whether sweeps of everything need a position.
    has_replicas: bool,
    /// Where questions are answered.
    answers: Option<mpsc::Sender<Ended>>,
}

/// Something that is not visible yet.
struct Waiting {
    keys: KeySet,
    received_at: Instant,
    kind: Kind,
    /// Looks taken after its arrival that did not see it.
    looks: u32,
    /// Whether its keys gave way already: they free no more.
    gave_way: bool,
}

enum Kind {
    Transaction(Transaction),
    /// A sweep of everything, on this target or on all.
    Fence(Fence, Option<TargetId>),
}

impl<P: Probe + 'static> Gate<P> {
    /// A gate that asks `probe`, and tells `health` for whom a sweep of everything waits.
    pub fn new(probe: P, health: Arc<Health>) -> Gate<P> {
        Gate {
            probe: Rc::new(probe),
            fences: Watch::new(Arc::clone(&health)),
            health,
            waiting: Vec::new(),
            waiting_bytes: 0,
            latest: None,
            fenced: 0,
            look_wanted: false,
            arrivals: 0,
            looks: Looks::new(Instant::now()),
            has_replicas: false,
            answers: None,
        }
    }

    /// Puts the gate in front of [`Replicas`](super::Replicas): it asks the primary where its log
    /// is for each sweep of everything.
    #[must_use]
    pub fn with_replicas(self) -> Gate<P> {
        Gate { has_replicas: true, ..self }
    }

    /// Lets the gate answer questions on `answers`.
    #[must_use]
    pub fn with_answers(self, answers: mpsc::Sender<Ended>) -> Gate<P> {
        Gate { answers: Some(answers), ..self }
    }

    /// Passes `inputs` on to `outputs` as they become visible, until `inputs` ends and nothing
    /// waits, or `outputs` is closed.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn run<T: From<Gated> + Weight>(
        mut self,
        mut inputs: Receiver<Input>,
        outputs: Sender<T>,
    ) -> Result<(), Error> {
        let (mut open, mut asked) = (true, None);
        while open || !self.waiting.is_empty() {
            if asked.is_none() {
                asked = self.ask();
            }
            let look_at = self.looks.due(self.look_wanted);
            let look_due = self.look_wanted || !self.waiting.is_empty();
            tokio::select! {
                biased;
                (ids, holders) = answered(&mut asked) => self.judge(&ids, holders),
                input = inputs.recv(), if open && self.arrivals < ARRIVALS_MAX => match input {
                    Some(input) => self.take(input, &outputs).await?,
                    None => open = false,
                },
                () = reached(look_at), if look_due => self.look(&outputs).await?,
            }
            // What waits longest stands first.
            let oldest = self.waiting.first().map(|one| one.received_at);
            self.health.noted().gate.set(self.waiting.len(), oldest);
        }
        Ok(())
    }

    /// One arrival. Arrivals go before looks, so that one look serves all that are there.
    async fn take<T: From<Gated> + Weight>(
        &mut self,
        input: Input,
        outputs: &Sender<T>,
    ) -> Result<(), Error> {
        match input {
            Input::Begin { xid } => {
                if !self.remembers(xid) {
                    self.look_wanted = true;
                }
            }
            Input::Transaction(mapped) => self.take_transaction(*mapped, outputs).await?,
            Input::Resync(resync) => self.take_resync(*resync, outputs).await?,
            Input::Early(early) => self.take_early(early, outputs).await?,
        }
        Ok(())
    }

    async fn take_transaction<T: From<Gated> + Weight>(
        &mut self,
        mapped: Mapped,
        outputs: &Sender<T>,
    ) -> Result<(), Error> {
        let Mapped { transaction, received_at, keys } = mapped;
        let is_seen = gate_is_off() || self.remembers(transaction.xid);
        let kind = Kind::Transaction(transaction);
        let waiting = Waiting { keys, received_at, kind, looks: 0, gave_way: false };
        self.looks.arrived();
        if is_seen {
            self.release(waiting, outputs).await?;
        } else {
            self.look_wanted = true;
            self.arrivals += 1;
            self.hold(waiting);
        }
        Ok(())
    }

    /// Whether the latest snapshot shows a transaction that has just arrived.
    fn remembers(&self, xid: u32) -> bool {
        self.latest.as_ref().is_some_and(|seen| seen.sees(xid))
    }

    async fn take_resync<T: From<Gated> + Weight>(
        &mut self,
        resync: Resync,
        outputs: &Sender<T>,
    ) -> Result<(), Error> {
        let Resync { keys, target, fenced } = resync;
        let mut last = true;
        if fenced {
            let fence = Fence::new(answer(self.probe.fence()).await?);
            let asked_at = Instant::now();
            let snapshot = answer(self.probe.snapshot()).await?;
            last = fence.is_passed(&snapshot);
            self.latest = Some(Seen::new(snapshot, asked_at));
            if !last {
                let kind = Kind::Fence(fence, target);
                let (keys, received_at) = (keys.clone(), Instant::now());
                self.hold(Waiting { keys, received_at, kind, looks: 0, gave_way: false });
            }
        }
        self.resync((last, target), keys, outputs).await
    }

    /// Takes a snapshot and lets pass what it contains.
    async fn look<T: From<Gated> + Weight>(&mut self, outputs: &Sender<T>) -> Result<(), Error> {
        (self.look_wanted, self.arrivals) = (false, 0);
        let asked_at = Instant::now();
        let snapshot = answer(self.probe.snapshot()).await?;
        let waiting = std::mem::take(&mut self.waiting);
        let before = waiting.len();
        (self.waiting_bytes, self.fenced) = (0, 0);
        for mut one in waiting {
            if one.is_visible(&snapshot) {
                self.release(one, outputs).await?;
            } else {
                if one.looks == 0 && matches!(one.kind, Kind::Transaction(_)) {
                    self.health.metrics().invisible_at_arrival.inc();
                }
                one.looks = one.looks.saturating_add(1);
                self.keep(one);
            }
        }
        self.latest = Some(Seen::new(snapshot, asked_at));
        self.looks.looked(Instant::now(), self.waiting.len() < before);
        Ok(())
    }

    async fn release<T: From<Gated> + Weight>(
        &self,
        waiting: Waiting,
        outputs: &Sender<T>,
    ) -> Result<(), Error> {
        failpoint::reach(Point::Visible);
        let transaction = match waiting.kind {
            Kind::Transaction(transaction) => transaction,
            Kind::Fence(_, target) => {
                return self.resync((true, target), waiting.keys, outputs).await;
            }
        };
        let position = transaction.end_lsn;
        let wait = seconds(waiting.received_at.elapsed());
        self.health.metrics().visibility_wait.observe(wait);
        self.health.trail().visible(position);
        let (cause, keys) = (Cause::Transaction(transaction), waiting.keys);
        send(outputs, Gated::new(cause, keys, position).into()).await;
        Ok(())
    }

    /// A sweep of everything. A standby shows what the primary shows now when it has replayed as
    /// far as the primary has written.
    async fn resync<T: From<Gated> + Weight>(
        &self,
        (last, target): (bool, Option<TargetId>),
        keys: KeySet,
        outputs: &Sender<T>,
    ) -> Result<(), Error> {
        let position =
            if self.has_replicas { answer(self.probe.position()).await? } else { Lsn::ZERO };
        let cause = Cause::Resync { last };
        send(outputs, Gated::new(cause, keys, position).of(target).into()).await;
        Ok(())
    }

    /// Takes in what is not visible, and keeps the keys that wait within their share. Each set
    /// gives way once: another try frees nothing, and with thousands of templates it takes long.
    fn hold(&mut self, mut waiting: Waiting) {
        waiting.keys.waits();
        self.keep(waiting);
        for large in LARGE_SET_BYTES {
            if self.waiting_bytes <= budget::GATE {
                break;
            }
            let is_next = |one: &&mut Waiting| !one.gave_way && one.keys.bytes() > large;
            for one in self.waiting.iter_mut().filter(is_next) {
                one.gave_way = true;
                self.waiting_bytes -= one.keys.bytes();
                self.health.widened_for_room(&one.keys.collapse());
                self.waiting_bytes += one.keys.bytes();
            }
        }
    }

    /// Something that is not visible goes on waiting.
    fn keep(&mut self, waiting: Waiting) {
        self.waiting_bytes += waiting.keys.bytes();
        self.fenced += usize::from(matches!(waiting.kind, Kind::Fence(..)));
        self.waiting.push(waiting);
    }
}

impl Waiting {
    /// Whether a snapshot shows it that was taken after its arrival.
    fn is_visible(&self, snapshot: &Snapshot) -> bool {
        match &self.kind {
            Kind::Transaction(transaction) => snapshot.sees(transaction.xid),
            Kind::Fence(fence, _) => fence.is_passed(snapshot),
        }
    }
}

/// Waits for a time that is still to come; for none, or a past one, not at all. A timer would wait
/// for the next full millisecond, many times what a look takes.
async fn reached(time: Option<Instant>) {
    if let Some(time) = time.filter(|time| *time > Instant::now()) {
        sleep_until(time).await;
    }
}

/// The answer to what was asked; never, if nothing was.
async fn answered(asked: &mut Option<Asked>) -> (Vec<u64>, Result<Vec<Holder>, Error>) {
    match asked {
        Some(future) => {
            let answer = future.await;
            *asked = None;
            answer
        }
        None => std::future::pending().await,
    }
}

/// The answer of the probe, or [`Error::Timeout`].
pub(super) async fn answer<T>(
    question: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match timeout(ANSWER_TIMEOUT, question).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(Error::Timeout),
    }
}

/// The switch that proves that the tests notice a missing gate. It exists only with the feature
/// `failpoints`, which no release build has.
fn gate_is_off() -> bool {
    cfg!(feature = "failpoints") && std::env::var_os("WALSWEEP_TEST_GATE_OFF").is_some()
}
