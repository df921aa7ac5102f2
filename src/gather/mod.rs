//! Messages to changes and committed transactions.
//!
//! Takes: [`Message`]s in stream order. Gives: each row [`Change`] with its relation resolved, and a
//! [`Transaction`] at its COMMIT. Never knows: rules, sockets. Invariant: holds no row. A change is
//! handed on at once, so memory does not grow with the transaction (I6); what is kept is the
//! relation cache and the header of the one transaction that is being received.

use std::sync::Arc;

use crate::decode::{Commit, Message, OldTuple, Relation, Tuple};
use crate::lsn::Lsn;

/// A row change, with its relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The relation as it was when the change was made.
    pub relation: Arc<Relation>,
    /// What happened to the row.
    pub row: Row,
}

/// What happened to a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// The row is new.
    Insert {
        /// The row.
        new: Tuple,
    },
    /// The row has a new version.
    Update {
        /// What was sent of the old version.
        old: Option<OldTuple>,
        /// The new version.
        new: Tuple,
    },
    /// The row is gone.
    Delete {
        /// What was sent of it.
        old: OldTuple,
    },
    /// Every row of the relation is gone.
    Truncate,
}

/// A committed transaction, known by its COMMIT. Its rows were handed on before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The top-level transaction's id, 32 bit.
    pub xid: u32,
    /// The LSN of the commit record.
    pub commit_lsn: Lsn,
    /// The LSN of the commit record's end: confirmed once the keys are gone (I2).
    pub end_lsn: Lsn,
    /// Commit time, microseconds since 2000-01-01 00:00 UTC, by the server's clock.
    pub commit_time: i64,
}

/// What one message brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gathered {
    /// Nothing for the stages to the right.
    Nothing,
    /// Row changes of the open transaction; more than one only for TRUNCATE of several relations.
    Changes(Changes),
    /// The open transaction is committed.
    Committed(Transaction),
}

/// One change, or those of a TRUNCATE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// One row changed.
    Row(Change),
    /// Every row of these relations is gone.
    Truncate(Vec<Change>),
}
