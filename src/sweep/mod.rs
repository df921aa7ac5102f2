//! Keys out of Redis.
//!
//! Takes: [`Visible`](crate::settle::Visible) key sets. Gives: [`Swept`], once their keys are
//! removed, removed again after the refill window, and every reply is read; and the watermark
//! written after them. Never knows: the slot, the stream's order. Each target has a sweeper, which
//! is a task of its own: with its queue, its proof, its second removals and its tries, it knows of
//! no other. Where there are several, a [`FanOut`] stands before them. Invariants: exact keys never
//! wait for a pattern; patterns that wait share one SCAN pass, those that come during a pass share
//! the next; any error reply holds back whoever waits for it, nobody else, and is tried again; the
//! watermark moves only where the value last written stands, with every removal of the connection
//! (I7).
//!
//! ```text
//! Visible ─► queue ─► UNLINK ─┬─► no patterns ──────────────┬─► refill ─► removed again ─► Swept
//!                 │           └─► patterns wait ─► SCAN pass ┘
//!                 └─► what Redis refuses, by rule ─► tried again
//! ```
//!
//! A pass costs Redis the same whatever it looks for, so that passes have a budget of its time
//! (`budget`), kept by what each is measured to take (`measure`). First removals go before second
//! ones, and whatever waits meanwhile shares the next pass.
//!
//! What waits after its first removal is held, not in flight: see [`Hold`].
//!
//! Fields of hashes, and keys that sets name (`inside`), go with the keys; what is read in pages
//! goes between them and the pass.
//!
//! A second removal needs no pass where it is known which keys were written again (`observe`).
//!
//! Why one task with a queue: batches form by themselves while a round trip is under way, as they
//! do in a group commit, and everything that a lost connection puts in doubt is in one place.

mod fan_out;
#[cfg(test)]
mod fan_out_tests;
mod inside;
mod job;
mod late;
mod doubted;
mod listed;
mod noting;
mod outcome;
mod proof;
mod publish;
mod queue;
pub mod redis;
mod refill;
mod refused;
mod refusing;
mod samples;
mod second;
mod shared;
mod sweeper;
mod throttle;
mod works;
#[cfg(test)]
mod counted_tests;
#[cfg(test)]
mod evidence_tests;
#[cfg(test)]
mod listed_tests;
#[cfg(test)]
mod load_tests;
#[cfg(test)]
mod partial_tests;
#[cfg(test)]
mod prints_tests;
#[cfg(test)]
mod refused_tests;
#[cfg(test)]
mod replayed_tests;
#[cfg(test)]
mod rollback_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod unproven_tests;

use std::rc::Rc;

use crate::lsn::Lsn;
use crate::settle::{Held, Hold};

pub use self::redis::act::{Act, Answer, Inside, Turn, Verb};
pub use self::redis::budget::{GONE_WITHIN, distance, longest_wait};
pub use self::redis::cluster::Cluster;
pub use self::redis::index::Indexed;
pub use self::redis::info::scan_time;
pub use self::redis::measure::taken;
pub use self::redis::node::{
    Error, Kind, LOGIN_HINT, Node, Page, Primary, Removes, Replaced, ScanCall, Scanned,
};
pub use self::redis::observe::{Mark, Name, Observer};
pub use self::redis::pace::{Pace, Paces};
pub use self::redis::pass::{Pass, Progress};
pub use self::redis::standalone::{Look, Standalone};
pub use self::redis::standing::{Forgotten, forget, made_at, note_made, standing};
pub use fan_out::{FanOut, Parcel};
pub use proof::chain::{Chain, Link};
pub use proof::evidence::{Broken, Watermark, key_name};
pub use proof::prints::{Altered, Doubt, Gap, Names, Prints, TablePrint, Tables, Why};
pub use sweeper::{Room, Settings, Sweeper};
pub use throttle::HINT as THROTTLED_HINT;

/// Transactions, by themselves or as what a hold holds, whose keys are removed for good as far as a
/// sweep can tell. Only this folder makes one.
#[derive(Debug, PartialEq, Eq)]
pub struct Swept {
    end_lsns: Vec<Lsn>,
    holds: Vec<Hold>,
}

impl Swept {
    /// The end LSNs of the transactions.
    #[must_use]
    pub fn end_lsns(&self) -> &[Lsn] {
        &self.end_lsns
    }

    /// The holds that hold nothing back any more.
    #[must_use]
    pub fn holds(&self) -> &[Hold] {
        &self.holds
    }

    /// For tests of the stage to the right.
    #[cfg(test)]
    pub(crate) fn for_tests(end_lsns: Vec<Lsn>, holds: Vec<Hold>) -> Swept {
        Swept { end_lsns, holds }
    }
}

/// A report by the sweeper of a target, sent with its [`TargetId`](crate::config::TargetId).
#[derive(Debug)]
pub enum Event {
    /// This is held back until its hold is swept.
    Held(Held),
    /// These transactions may be confirmed, if nothing else holds them.
    Swept(Swept),
    /// The watermark stands at this LSN: it may be told to Postgres.
    Covered(Lsn),
    /// It is not shown that these keys are right: a sweep of them is asked for.
    ResyncOwed(Doubt),
    /// The connection to its Redis is lost.
    RedisLost,
    /// No sweep is owed for readers' sake: the first removal of the last is done.
    Whole,
}

/// Says what would be in doubt for a session that expects a watermark like `mark` in a log that
/// ends at `wal_end`, under `prints`. If `broken` is given, that is everything. Writes nothing.
///
/// # Errors
///
/// The node's.
pub async fn forecast<N: Node>(
    node: &N,
    (mark, wal_end): (Watermark, Lsn),
    prints: Prints,
    broken: Option<Broken>,
) -> Result<Doubt, Error> {
    node.connect().await?;
    let found = shared::find(node, &mark.rules).await?;
    let mut ward = proof::ward::Ward::new(mark, wal_end, Rc::new(prints), (broken, Doubt::none()));
    Ok(ward.connected(found, Lsn::ZERO).err().unwrap_or_else(Doubt::none))
}
