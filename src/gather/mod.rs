//! Messages to changes and committed transactions.
//!
//! Takes: [`Message`]s in stream order. Gives: each row [`Change`] with its relation resolved, and
//! a [`Transaction`] at its COMMIT. Never knows: rules, sockets. Invariant: holds no row. A change
//! is handed on at once, so memory does not grow with the transaction (I6); what is kept is the
//! relation cache and the header of the one transaction that is being received.
//!
//! A large transaction comes in blocks while it runs, other transactions between them; whether it
//! commits is told by a message of its own, often long after readers see it.

mod family;
mod relations;
mod types;
#[cfg(test)]
mod family_tests;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::decode::{
    Begin, Commit, LogicalMessage, Message, OldTuple, Relation, StreamAbort, StreamCommit,
    StreamStart, Truncate, Tuple,
};
use crate::lsn::Lsn;
use crate::words::counted;

use self::relations::Relations;
use self::types::Types;

/// A row change, with its relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The relation as it was when the change was made.
    pub relation: Arc<Relation>,
    /// The change of the row.
    pub row: Row,
}

/// A change of a row, without its relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// The row is new.
    Insert {
        /// The row.
        new: Tuple,
    },
    /// The row has a new version.
    Update {
        /// The part of the old version that was sent.
        old: Option<OldTuple>,
        /// The new version.
        new: Tuple,
    },
    /// The row is gone.
    Delete {
        /// The part of it that was sent.
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

/// 2000-01-01 00:00 UTC, where Postgres's timestamps count from, since the Unix epoch.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

impl Transaction {
    /// How long before `now` it was committed by the server's clock; zero when that clock is ahead.
    #[must_use]
    pub fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.time()).unwrap_or_default()
    }

    /// When it was committed, by the server's clock.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        let commit = u64::try_from(self.commit_time).map(Duration::from_micros);
        SystemTime::UNIX_EPOCH + POSTGRES_EPOCH + commit.unwrap_or_default()
    }
}

/// The news that one message brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gathered {
    /// Nothing for the stages to the right.
    Nothing,
    /// A row of the open transaction changed.
    Change(Change),
    /// The open transaction truncated these relations with one TRUNCATE.
    Truncate(Vec<Change>),
    /// The open transaction is committed.
    Committed(Transaction),
    /// A message of `pg_logical_emit_message`: of the open transaction, or of none.
    Logical(LogicalMessage),
    /// Changes of this top-level transaction follow, which may still run.
    Block(u32),
    /// The block ends.
    Pause,
    /// A transaction that came in blocks is committed.
    StreamCommitted(Transaction),
    /// A transaction that came in blocks is undone, or a part of it.
    Aborted {
        /// The top-level transaction's id, 32 bit.
        xid: u32,
        /// The transaction that is undone: a subtransaction, or once more the top-level one.
        subxid: u32,
    },
    /// A part of a transaction is undone in which relations were altered: the server may go on with
    /// a shape that is undone, and nothing that it sends of this transaction can be believed.
    ShapeUndone {
        /// The top-level transaction's id, 32 bit.
        xid: u32,
    },
}

/// A message that the protocol does not allow where it stands. The stream must be read again, from
/// what is confirmed and with a new [`Gatherer`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// BEGIN before the COMMIT of the transaction before.
    #[error("begin transaction `{xid}`: transaction `{open}` is open")]
    BeginInside {
        /// The transaction that starts.
        xid: u32,
        /// The transaction that is open.
        open: u32,
    },
    /// COMMIT and no transaction is open.
    #[error("commit at `{commit_lsn}`: no transaction is open")]
    CommitOutside {
        /// The LSN of the commit record.
        commit_lsn: Lsn,
    },
    /// COMMIT of another transaction than the one that is open.
    #[error("commit transaction `{xid}`: its commit is at `{final_lsn}`, not at `{commit_lsn}`")]
    CommitElsewhere {
        /// The transaction that is open.
        xid: u32,
        /// Where its commit record is, by its BEGIN.
        final_lsn: Lsn,
        /// Where it is by the COMMIT.
        commit_lsn: Lsn,
    },
    /// A message about a transaction in blocks, inside of another transaction.
    #[error("stream transaction `{xid}`: transaction `{open}` is open")]
    StreamInside {
        /// The transaction that the message is about.
        xid: u32,
        /// The transaction that is open.
        open: u32,
    },
    /// The end of a block and none is open.
    #[error("end block: none is open")]
    StopOutside,
    /// A later block, or the commit, of a transaction whose first block never came.
    #[error("stream transaction `{xid}`: its first block never came")]
    UnknownStream {
        /// The transaction.
        xid: u32,
    },
    /// A change and no transaction is open.
    #[error("gather change of relation `{relation_id}`: no transaction is open")]
    ChangeOutside {
        /// `pg_class.oid` of the relation.
        relation_id: u32,
    },
    /// A message of a transaction and no transaction is open.
    #[error("gather logical message at `{lsn}`: no transaction is open")]
    LogicalOutside {
        /// The message's LSN.
        lsn: Lsn,
    },
    /// A change of a relation that no message described.
    #[error("gather change of relation `{relation_id}`: it was never described")]
    UnknownRelation {
        /// `pg_class.oid` of the relation.
        relation_id: u32,
    },
    /// A tuple that is not one of its relation.
    #[error(
        "gather change of `{namespace}.{name}`: {}, the relation has {expected}",
        counted(*.found, "column")
    )]
    ColumnCount {
        /// Schema of the relation.
        namespace: String,
        /// Name of the relation.
        name: String,
        /// How many columns the tuple has.
        found: usize,
        /// How many columns the relation has.
        expected: usize,
    },
}

/// Follows one replication connection, message by message.
///
/// Its memory is one [`Relation`] for each relation that changed since the connection began, and
/// those that transactions in blocks have described for themselves. Postgres describes every
/// relation again on a new connection: start it with a new gatherer.
#[derive(Debug, Default)]
pub struct Gatherer {
    relations: Relations,
    types: Types,
    open: Option<Begin>,
}

impl Gatherer {
    /// A gatherer for a connection that has sent nothing yet.
    #[must_use]
    pub fn new() -> Gatherer {
        Gatherer::default()
    }

    /// The id of the transaction that is received in part: from its BEGIN, and until its COMMIT is
    /// pushed. As long as there is one, it counts as in flight (I2).
    #[must_use]
    pub fn in_transaction(&self) -> Option<u32> {
        self.open.as_ref().map(|begin| begin.xid)
    }

    /// The id of the top-level transaction whose block is open: the next message is one of those
    /// that stand inside of a block. It is received in part, so it counts as in flight (I2).
    #[must_use]
    pub fn in_block(&self) -> Option<u32> {
        self.relations.in_block()
    }

    /// Takes the next message of the stream and gives what it brings.
    ///
    /// Types and origins bring nothing; a domain counts as its base type. Errors when the protocol
    /// does not allow the message here
    /// (<https://www.postgresql.org/docs/current/protocol-logical-replication.html>).
    pub fn push(&mut self, message: Message) -> Result<Gathered, Error> {
        if !matches!(message, Message::Relation(_) | Message::Type(_)) {
            self.relations.interrupted();
        }
        match message {
            Message::Insert(insert) => {
                self.change(insert.relation_id, Row::Insert { new: insert.new })
            }
            Message::Update(update) => {
                self.change(update.relation_id, Row::Update { old: update.old, new: update.new })
            }
            Message::Delete(delete) => {
                self.change(delete.relation_id, Row::Delete { old: delete.old })
            }
            Message::Truncate(truncate) => self.truncate(&truncate),
            Message::Begin(begin) => self.begin(begin),
            Message::Commit(commit) => self.commit(&commit),
            Message::Relation(relation) => {
                let relation = self.types.resolve(relation);
                self.relations.describe(relation);
                Ok(Gathered::Nothing)
            }
            Message::Type(described) => {
                self.types.push(&described);
                Ok(Gathered::Nothing)
            }
            Message::Logical(message) => self.logical(message),
            Message::Origin(_) => Ok(Gathered::Nothing),
            Message::StreamStart(start) => self.stream_start(start),
            Message::StreamStop => self.stream_stop(),
            Message::StreamCommit(commit) => self.stream_commit(commit),
            Message::StreamAbort(abort) => self.stream_abort(&abort),
        }
    }

    /// Tables and partitions with fewer old values than the table's replica identity promises,
    /// described since this was asked last. Changes of such a table are given with the identity
    /// that all its partitions have.
    pub fn smaller_partitions(&mut self) -> Vec<(Arc<Relation>, Arc<Relation>)> {
        self.relations.take_smaller()
    }

    /// Checks that nothing is open where a message about transaction `xid` in blocks stands.
    fn between(&self, xid: u32) -> Result<(), Error> {
        match self.in_transaction().or(self.in_block()) {
            Some(open) => Err(Error::StreamInside { xid, open }),
            None => Ok(()),
        }
    }

    fn stream_start(&mut self, start: StreamStart) -> Result<Gathered, Error> {
        let StreamStart { xid, first_segment } = start;
        self.between(xid)?;
        if !self.relations.enter(xid, first_segment) {
            return Err(Error::UnknownStream { xid });
        }
        Ok(Gathered::Block(xid))
    }

    fn stream_stop(&mut self) -> Result<Gathered, Error> {
        if self.relations.leave() { Ok(Gathered::Pause) } else { Err(Error::StopOutside) }
    }

    fn stream_abort(&mut self, abort: &StreamAbort) -> Result<Gathered, Error> {
        let StreamAbort { xid, subxid, at: _ } = *abort;
        self.between(xid)?;
        if xid == subxid {
            self.relations.aborted(xid);
        } else if self.relations.partly_aborted(xid) {
            return Ok(Gathered::ShapeUndone { xid });
        }
        Ok(Gathered::Aborted { xid, subxid })
    }

    fn stream_commit(&mut self, commit: StreamCommit) -> Result<Gathered, Error> {
        let StreamCommit { xid, commit_lsn, end_lsn, commit_time, flags: _ } = commit;
        self.between(xid)?;
        if !self.relations.committed(xid) {
            return Err(Error::UnknownStream { xid });
        }
        Ok(Gathered::StreamCommitted(Transaction { xid, commit_lsn, end_lsn, commit_time }))
    }

    fn begin(&mut self, begin: Begin) -> Result<Gathered, Error> {
        if let Some(open) = self.in_transaction().or(self.in_block()) {
            return Err(Error::BeginInside { xid: begin.xid, open });
        }
        self.open = Some(begin);
        Ok(Gathered::Nothing)
    }

    fn commit(&mut self, commit: &Commit) -> Result<Gathered, Error> {
        let Commit { commit_lsn, end_lsn, commit_time, flags: _ } = *commit;
        let Some(Begin { final_lsn, xid, commit_time: _ }) = self.open else {
            return Err(Error::CommitOutside { commit_lsn });
        };
        if final_lsn != commit_lsn {
            return Err(Error::CommitElsewhere { xid, final_lsn, commit_lsn });
        }
        self.open = None;
        Ok(Gathered::Committed(Transaction { xid, commit_lsn, end_lsn, commit_time }))
    }

    fn change(&self, relation_id: u32, row: Row) -> Result<Gathered, Error> {
        let relation = self.relation(relation_id)?;
        let (old, new) = match &row {
            Row::Insert { new } => (None, Some(new)),
            Row::Update { old, new } => (old.as_ref(), Some(new)),
            Row::Delete { old } => (Some(old), None),
            Row::Truncate => (None, None),
        };
        if let Some(old) = old {
            check_column_count(relation, &old.tuple)?;
        }
        if let Some(new) = new {
            check_column_count(relation, new)?;
        }
        Ok(Gathered::Change(Change { relation: Arc::clone(relation), row }))
    }

    fn truncate(&mut self, truncate: &Truncate) -> Result<Gathered, Error> {
        self.relations.truncated(&truncate.relation_ids);
        let change = |id: &u32| {
            let relation = Arc::clone(self.relation(*id)?);
            Ok(Change { relation, row: Row::Truncate })
        };
        truncate.relation_ids.iter().map(change).collect::<Result<_, _>>().map(Gathered::Truncate)
    }

    fn logical(&self, message: LogicalMessage) -> Result<Gathered, Error> {
        if message.transactional && self.open.is_none() && self.in_block().is_none() {
            return Err(Error::LogicalOutside { lsn: message.lsn });
        }
        Ok(Gathered::Logical(message))
    }

    fn relation(&self, relation_id: u32) -> Result<&Arc<Relation>, Error> {
        if self.open.is_none() && self.in_block().is_none() {
            return Err(Error::ChangeOutside { relation_id });
        }
        self.relations.get(relation_id).ok_or(Error::UnknownRelation { relation_id })
    }
}

fn check_column_count(relation: &Relation, tuple: &Tuple) -> Result<(), Error> {
    let (found, expected) = (tuple.column_count(), relation.columns.len());
    if found == expected {
        return Ok(());
    }
    let (namespace, name) = (relation.namespace.clone(), relation.name.clone());
    Err(Error::ColumnCount { namespace, name, found, expected })
}
