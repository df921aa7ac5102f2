//! From a committed transaction to keys that may be removed: visible, and with every row read.
//!
//! Takes: transactions with their key sets, in stream order. Gives: key sets that are [`Visible`],
//! in the order in which they become so. Never knows: Redis, the confirmed LSN. Three stages, each
//! with a type of its own, so that none can be left out by mistake:
//!
//! ```text
//! Input ─► gate ─► Gated ─► lookup ─► Visible ─► replay ─► Visible, and again
//! ```
//!
//! - [`gate`]: nothing passes before new snapshots of the primary see it (I1). Only the gate makes
//!   a [`Gated`].
//! - [`lookup`]: reads the rows that keys name. A [`Visible`] is made of a [`Gated`] and of nothing
//!   else: where no lookup reads its rows, what needs them widens (I5).
//! - [`replay`]: where readers use standbys, the same keys once more, after each has replayed.

mod gate;
mod hold;
mod lookup;
mod replay;

use tokio::time::Instant;

use crate::channel::{Closed, Sender, Weight};
use crate::config::TargetId;
use crate::gather::Transaction;
use crate::keys::{self, Answers, KeySet, WidenReason};
use crate::lsn::Lsn;

pub use gate::{
    Early, Ended, Error, Gate, Holder, Input, Mapped, Probe, Question, Relations, Resync,
};
pub use gate::{Snapshot, SqlProbe};
pub use hold::{Held, Hold};
pub use lookup::{Cache, Lookups, Rows};
pub(crate) use lookup::{Param, compared_columns, lookup_statement};
pub use replay::{Answer, Replicas, SqlStandby, Standby, StandbyError};

/// Sets of keys that wait in a stage collapse to their rules' patterns where there is no room (I6).
/// Those go first that are larger than the first of these, bytes; if that does not do, those that
/// are larger than the second. What is smaller gains nothing: a pattern takes half a kilobyte.
const LARGE_SET_BYTES: [usize; 2] = [8 * 1024, 1024];

/// Keys of what new snapshots of the primary see. Some may need rows that nobody has read yet, so
/// that no sweeper takes it.
#[derive(Debug)]
pub struct Gated {
    cause: Cause,
    keys: KeySet,
    at: Instant,
    /// A server that has replayed up to here sees what made them stale.
    position: Lsn,
    /// The target that they are removed from; `None` for all.
    target: Option<TargetId>,
}

/// Keys that may be removed now: what made them stale is visible, and every row that they need is
/// read. It is made of a [`Gated`], or of the keys of another one, and by this folder only.
#[derive(Debug)]
pub struct Visible {
    cause: Cause,
    keys: KeySet,
    at: Instant,
    /// A server that has replayed up to here sees what made them stale.
    position: Lsn,
    /// The target that they are removed from; `None` for all.
    target: Option<TargetId>,
    settles: bool,
    /// Transactions and holds that are held back from now on.
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

/// Transactions and sweeps that are seen on every standby now, so that this removal of their keys
/// is the last one asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// The hold that holds back the transactions.
    pub hold: Option<Hold>,
    /// So many closing sweeps of everything.
    pub resyncs: u32,
}

impl Cause {
    /// Whether the same keys come once more, so that nothing waits for this removal, and nothing is
    /// counted of it.
    #[must_use]
    pub fn comes_again(&self) -> bool {
        matches!(self, Cause::Early(_))
    }

    /// The 32-bit id of the transaction whose changes ask for the removal, if it is of one.
    #[must_use]
    pub fn xid(&self) -> Option<u32> {
        match self {
            Cause::Transaction(transaction) => Some(transaction.xid),
            Cause::Early(xid) => Some(*xid),
            Cause::Resync { .. } | Cause::Replayed(_) => None,
        }
    }
}

impl Gated {
    /// Keys that are visible on the primary since now, and go from all targets.
    fn new(cause: Cause, mut keys: KeySet, position: Lsn) -> Gated {
        keys.on_its_way();
        Gated { cause, keys, at: Instant::now(), position, target: None }
    }

    /// Lets the keys go from this target, if there is one, and from no other.
    fn of(self, target: Option<TargetId>) -> Gated {
        Gated { target, ..self }
    }

    /// Renders the keys with these rows. The keys of a row that is not among them widen, for the
    /// reason `missing`.
    fn resolved(mut self, answers: &Answers, missing: WidenReason) -> Visible {
        self.keys.on_its_way();
        keys::resolve(&mut self.keys, answers, missing);
        let Gated { cause, keys, at, position, target } = self;
        Visible { cause, keys, at, position, target, settles: true, held: Vec::new() }
    }

    /// For tests of the stages to the right.
    #[cfg(test)]
    pub(crate) fn for_tests(cause: Cause, keys: KeySet) -> Gated {
        let position = match &cause {
            Cause::Transaction(transaction) => transaction.end_lsn,
            Cause::Resync { .. } | Cause::Replayed(_) | Cause::Early(_) => Lsn::ZERO,
        };
        Gated::new(cause, keys, position)
    }
}

/// Where nobody reads rows, what needs them widens: nothing is lost.
impl From<Gated> for Visible {
    fn from(gated: Gated) -> Visible {
        gated.resolved(&Answers::default(), WidenReason::LookupFailed)
    }
}

impl Visible {
    /// Why, which keys, and since when they are visible.
    #[must_use]
    pub fn into_parts(self) -> (Cause, KeySet, Instant) {
        (self.cause, self.keys, self.at)
    }

    /// Whether no further removal of these keys is asked for; if one is, it comes as
    /// [`Cause::Replayed`], and until then what it holds may not be confirmed.
    #[must_use]
    pub fn settles(&self) -> bool {
        self.settles
    }

    /// The target that the keys are removed from; `None` for all.
    #[must_use]
    pub fn target(&self) -> Option<TargetId> {
        self.target
    }

    /// Takes out what is held from now on, before anything else is done.
    #[must_use]
    pub fn take_held(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.held)
    }

    /// A server that has replayed up to here sees what made the keys stale.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// For tests of the stages to the right.
    #[cfg(test)]
    pub(crate) fn for_tests(cause: Cause, keys: KeySet) -> Visible {
        Gated::for_tests(cause, keys).into()
    }

    /// Lets the keys go from one target.
    #[cfg(test)]
    pub(crate) fn of(self, target: TargetId) -> Visible {
        Visible { target: Some(target), ..self }
    }

    /// Lets it wait for standbys' replay, held by `by`.
    #[cfg(test)]
    pub(crate) fn not_replayed(self, by: Hold) -> Visible {
        let held = match &self.cause {
            Cause::Transaction(transaction) => vec![Held::also(by, transaction.end_lsn)],
            _ => Vec::new(),
        };
        Visible { settles: false, held, ..self }
    }
}

impl Weight for Gated {
    fn bytes(&self) -> usize {
        self.keys.bytes()
    }
}

impl Weight for Visible {
    fn bytes(&self) -> usize {
        self.keys.bytes()
    }
}

/// A closed channel means that the session ends; what was not sent is not confirmed either.
async fn send<T: Weight>(outputs: &Sender<T>, passed: T) {
    let (Ok(()) | Err(Closed)) = outputs.send(passed).await;
}
