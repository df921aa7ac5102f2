//! The visibility gate: wait until a commit is visible to new snapshots.
//!
//! Takes: transactions with their key sets, in stream order. Gives: each one as [`Visible`], in the
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

mod ahead;
mod batch;
mod cache;
#[cfg(test)]
mod cache_tests;
mod early;
mod fence;
#[cfg(test)]
mod fence_tests;
mod hold;
mod lookups;
mod looks;
mod probe;
mod query;
mod replicas;
#[cfg(test)]
mod replicas_tests;
mod over_limit;
mod refusal;
mod rows;
mod snapshot;
mod standby;
#[cfg(test)]
mod tests;
mod waiting;

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::channel::{Closed, Receiver, Sender, Weight};
use crate::failpoint::{self, Point};
use crate::gather::Transaction;
use crate::keys::{Answers, KeySet, WidenReason};
use crate::lsn::Lsn;
use crate::postgres;
use crate::telemetry::Health;
use crate::telemetry::metrics::seconds;
use fence::{Fence, Watch};
use looks::Looks;
use snapshot::Seen;

pub use cache::Cache;
pub use early::{Early, Ended, Question};
pub use fence::{Holder, Relations};
pub use hold::{Held, Hold};
pub use lookups::Lookups;
pub use probe::{Probe, SqlProbe};
pub(crate) use query::compared_columns;
pub use replicas::Replicas;
pub use rows::Rows;
pub(crate) use rows::{Param, statement as lookup_statement};
pub use snapshot::Snapshot;
pub use standby::{Answer, SqlStandby, Standby, StandbyError};

/// A snapshot that is not answered in this time is an error; the session starts again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Arrivals taken before a look must come between: a backlog would otherwise pile up here, where
/// what is not looked at cannot be told from what is not visible.
const ARRIVALS_MAX: usize = 512;

/// Keys held for invisible transactions, in bytes, beyond which large sets collapse to their rules'
/// patterns (I6). The number of such transactions is bounded by the server's connections and
/// prepared transactions, the size of each set by `keys`.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A set that is smaller gains nothing by collapsing: a pattern takes half a kilobyte.
const LARGE_SET_BYTES: usize = 8 * 1024;

/// What the gate is told.
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
    /// Whether transactions that are being sent have ended.
    Questions(Vec<Question>),
    /// Keys of one that has.
    Early(Box<Early>),
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
    /// Whether commits older than the stream may still be invisible.
    pub fenced: bool,
}

/// Keys that may be removed now, because what made them stale is visible. Only this folder makes
/// one.
#[derive(Debug)]
pub struct Visible {
    cause: Cause,
    keys: KeySet,
    at: Instant,
    /// A server that has replayed up to here sees what made them stale.
    position: Lsn,
    settles: bool,
    /// What is held from now on.
    held: Vec<Held>,
}

/// Why keys are removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A committed transaction.
    Transaction(Transaction),
    /// A sweep of what may be stale, because a change may have been missed; `last` closes it.
    Resync {
        /// Whether no further sweep is owed after this one.
        last: bool,
    },
    /// A committed transaction, its 32-bit id, that is still being sent. Nothing waits for this
    /// removal: the same keys come once more with the transaction.
    Early(u32),
    /// Standbys that readers use have replayed what the keys were removed for before.
    Replayed(Replayed),
}

/// What is seen on every standby now, so that this removal of its keys is the last one asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// What holds back the transactions.
    pub hold: Option<Hold>,
    /// So many closing sweeps of everything.
    pub resyncs: u32,
}

impl Visible {
    /// Why, which keys, and since when they are visible.
    #[must_use]
    pub fn into_parts(mut self) -> (Cause, KeySet, Instant) {
        // Nothing waits any more behind `Lookups`; where there is none, nothing is lost either.
        if self.keys.has_pending() {
            self.keys.resolve(&Answers::default(), WidenReason::LookupFailed);
        }
        (self.cause, self.keys, self.at)
    }

    /// Whether no further removal of these keys is asked for; if one is, it comes as
    /// [`Cause::Replayed`], and until then what it holds may not be confirmed.
    #[must_use]
    pub fn settles(&self) -> bool {
        self.settles
    }

    /// Takes out what is held from now on, before anything else is done.
    #[must_use]
    pub fn take_held(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.held)
    }

    /// Keys that are visible on the primary since `at`.
    fn new(cause: Cause, keys: KeySet, at: Instant, position: Lsn) -> Visible {
        Visible { cause, keys, at, position, settles: true, held: Vec::new() }
    }

    /// A server that has replayed up to here sees what made the keys stale.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// For tests of the stages to the right.
    #[cfg(test)]
    pub(crate) fn for_tests(cause: Cause, keys: KeySet) -> Visible {
        let position = match &cause {
            Cause::Transaction(transaction) => transaction.end_lsn,
            Cause::Resync { .. } | Cause::Replayed(_) | Cause::Early(_) => Lsn::ZERO,
        };
        Visible::new(cause, keys, Instant::now(), position)
    }

    /// The same for keys that standbys have yet to replay, held by `by`.
    #[cfg(test)]
    pub(crate) fn not_replayed(self, by: Hold) -> Visible {
        let held = match &self.cause {
            Cause::Transaction(transaction) => vec![Held::also(by, transaction.end_lsn)],
            _ => Vec::new(),
        };
        Visible { settles: false, held, ..self }
    }
}

impl Weight for Input {
    fn bytes(&self) -> usize {
        match self {
            Input::Begin { .. } | Input::Questions(_) => 0,
            Input::Early(early) => early.bytes(),
            Input::Transaction(mapped) => mapped.keys.bytes(),
            Input::Resync(resync) => resync.keys.bytes(),
        }
    }
}

impl Weight for Visible {
    fn bytes(&self) -> usize {
        self.keys.bytes()
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
}

enum Kind {
    Transaction(Transaction),
    /// A sweep of everything.
    Fence(Fence),
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

    /// The same gate in front of [`Replicas`]: it asks the primary where its log is for each sweep
    /// of everything.
    #[must_use]
    pub fn with_replicas(self) -> Gate<P> {
        Gate { has_replicas: true, ..self }
    }

    /// The same gate, which answers questions on `answers`.
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
    pub async fn run(
        mut self,
        mut inputs: Receiver<Input>,
        outputs: Sender<Visible>,
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
        }
        Ok(())
    }

    /// One arrival. Arrivals go before looks, so that one look serves all that are there.
    async fn take(&mut self, input: Input, outputs: &Sender<Visible>) -> Result<(), Error> {
        match input {
            Input::Begin { xid } => {
                if !self.remembers(xid) {
                    self.look_wanted = true;
                }
            }
            Input::Transaction(mapped) => self.take_transaction(*mapped, outputs).await?,
            Input::Resync(resync) => self.take_resync(*resync, outputs).await?,
            Input::Questions(asked) => self.take_questions(asked, outputs).await?,
            Input::Early(early) => self.take_early(*early, outputs).await,
        }
        Ok(())
    }

    async fn take_transaction(
        &mut self,
        mapped: Mapped,
        outputs: &Sender<Visible>,
    ) -> Result<(), Error> {
        let Mapped { transaction, received_at, keys } = mapped;
        let is_seen = gate_is_off() || self.remembers(transaction.xid);
        let waiting = Waiting { keys, received_at, kind: Kind::Transaction(transaction), looks: 0 };
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

    async fn take_resync(
        &mut self,
        resync: Resync,
        outputs: &Sender<Visible>,
    ) -> Result<(), Error> {
        let Resync { keys, fenced } = resync;
        let mut last = true;
        if fenced {
            let fence = Fence::new(answer(self.probe.fence()).await?);
            let asked_at = Instant::now();
            let snapshot = answer(self.probe.snapshot()).await?;
            last = fence.is_passed(&snapshot);
            self.latest = Some(Seen::new(snapshot, asked_at));
            if !last {
                let kind = Kind::Fence(fence);
                let (keys, received_at) = (keys.clone(), Instant::now());
                self.hold(Waiting { keys, received_at, kind, looks: 0 });
            }
        }
        self.resync(last, keys, outputs).await
    }

    /// Takes a snapshot and lets pass what it contains.
    async fn look(&mut self, outputs: &Sender<Visible>) -> Result<(), Error> {
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
                self.hold(one);
            }
        }
        self.latest = Some(Seen::new(snapshot, asked_at));
        self.looks.looked(Instant::now(), self.waiting.len() < before);
        Ok(())
    }

    async fn release(&self, waiting: Waiting, outputs: &Sender<Visible>) -> Result<(), Error> {
        failpoint::reach(Point::Visible);
        let Kind::Transaction(transaction) = waiting.kind else {
            return self.resync(true, waiting.keys, outputs).await;
        };
        let (at, position) = (Instant::now(), transaction.end_lsn);
        let wait = seconds(at - waiting.received_at);
        self.health.metrics().visibility_wait.observe(wait);
        let (cause, keys) = (Cause::Transaction(transaction), waiting.keys);
        send(outputs, Visible::new(cause, keys, at, position)).await;
        Ok(())
    }

    /// A sweep of everything. A standby shows what the primary shows now when it has replayed as
    /// far as the primary has written.
    async fn resync(
        &self,
        last: bool,
        keys: KeySet,
        outputs: &Sender<Visible>,
    ) -> Result<(), Error> {
        let position =
            if self.has_replicas { answer(self.probe.position()).await? } else { Lsn::ZERO };
        let (cause, at) = (Cause::Resync { last }, Instant::now());
        send(outputs, Visible::new(cause, keys, at, position)).await;
        Ok(())
    }

    /// Takes in what is not visible, and keeps the keys that wait below [`WAITING_BYTES_MAX`].
    fn hold(&mut self, waiting: Waiting) {
        self.waiting_bytes += waiting.keys.bytes();
        self.fenced += usize::from(matches!(waiting.kind, Kind::Fence(_)));
        self.waiting.push(waiting);
        if self.waiting_bytes > WAITING_BYTES_MAX {
            let sets = self.waiting.iter_mut().map(|waiting| &mut waiting.keys);
            for keys in sets.filter(|keys| keys.bytes() > LARGE_SET_BYTES) {
                self.health.metrics().widened_for_room(&keys.collapse());
            }
            self.waiting_bytes = self.waiting.iter().map(|waiting| waiting.keys.bytes()).sum();
        }
    }
}

impl Waiting {
    /// Whether a snapshot shows it that was taken after its arrival.
    fn is_visible(&self, snapshot: &Snapshot) -> bool {
        match &self.kind {
            Kind::Transaction(transaction) => snapshot.sees(transaction.xid),
            Kind::Fence(fence) => fence.is_passed(snapshot),
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
async fn answer<T>(question: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match timeout(ANSWER_TIMEOUT, question).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(Error::Timeout),
    }
}

/// A closed channel means that the session ends; what was not sent is not confirmed either.
async fn send(outputs: &Sender<Visible>, visible: Visible) {
    let (Ok(()) | Err(Closed)) = outputs.send(visible).await;
}

/// The switch that proves that the tests notice a missing gate. It exists only with the feature
/// `failpoints`, which no release build has.
fn gate_is_off() -> bool {
    cfg!(feature = "failpoints") && std::env::var_os("WALSWEEP_TEST_GATE_OFF").is_some()
}
