//! pgoutput bytes to [`Message`].
//!
//! Takes: the payload of one `XLogData` frame, whole or, if it is too long for that, in pieces.
//! Gives: one message, its tuples still slices of the frame, no row copied; of a payload in pieces
//! without the values that are too large to be kept. Never knows: sockets, transactions, rules.
//! Invariant: never panics, never reads past the payload; a payload that is too short or too long
//! is an [`Error`]. Follows
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>, protocol
//! versions 1 to 4 without two-phase commits, and uses its names.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod condense;
#[cfg(test)]
mod condense_tests;
mod cursor;
#[cfg(any(test, feature = "failpoints"))]
mod encode;
mod error;
mod relation;
mod streamed;
#[cfg(test)]
pub(crate) mod tests;
mod tuple;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::lsn::Lsn;

pub use self::condense::{Condenser, Limits};
use self::cursor::Cursor;
#[cfg(any(test, feature = "failpoints"))]
pub use self::encode::{encode, encode_in_block};
use self::error::undefined;
pub use self::error::{Error, Fault};
pub use self::relation::{Column, Relation, ReplicaIdentity};
pub use self::streamed::{AbortedAt, StreamAbort, StreamCommit, StreamStart};
pub use self::tuple::{OldKind, OldTuple, Tuple, Value, Values};

/// One pgoutput message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A transaction starts.
    Begin(Begin),
    /// The transaction that started last is complete.
    Commit(Commit),
    /// The transaction was replayed from another server.
    Origin(Origin),
    /// The shape of a relation; sent before its first change and after each change of shape.
    Relation(Arc<Relation>),
    /// A data type that is not built in.
    Type(Type),
    /// A row was inserted.
    Insert(Insert),
    /// A row was updated.
    Update(Update),
    /// A row was deleted.
    Delete(Delete),
    /// Relations were truncated.
    Truncate(Truncate),
    /// A message written by `pg_logical_emit_message`.
    Logical(LogicalMessage),
    /// A block of changes of a transaction that may still run starts.
    StreamStart(StreamStart),
    /// `E`: the block ends.
    StreamStop,
    /// A transaction that was sent in blocks is committed.
    StreamCommit(StreamCommit),
    /// A transaction that was sent in blocks, or a part of it, is undone.
    StreamAbort(StreamAbort),
}

/// Message `B`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The LSN of the transaction's commit record.
    pub final_lsn: Lsn,
    /// Commit time, microseconds since 2000-01-01 00:00 UTC, by the server's clock.
    pub commit_time: i64,
    /// The top-level transaction's id, 32 bit.
    pub xid: u32,
}

/// Message `C`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Unused by Postgres, currently 0.
    pub flags: u8,
    /// The LSN of the commit record.
    pub commit_lsn: Lsn,
    /// The LSN of the end of the commit record: what may be confirmed.
    pub end_lsn: Lsn,
    /// Commit time, microseconds since 2000-01-01 00:00 UTC, by the server's clock.
    pub commit_time: i64,
}

/// Message `O`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The commit's LSN on the origin server.
    pub commit_lsn: Lsn,
    /// Name of the origin.
    pub name: String,
}

/// Message `Y`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    /// `pg_type.oid`.
    pub id: u32,
    /// Schema; empty for `pg_catalog`, as sent.
    pub namespace: String,
    /// Type name.
    pub name: String,
}

/// Message `I`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insert {
    /// The relation's oid.
    pub relation_id: u32,
    /// The new row.
    pub new: Tuple,
}

/// Message `U`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The relation's oid.
    pub relation_id: u32,
    /// The part of the old row that was sent, if any was.
    pub old: Option<OldTuple>,
    /// The new row.
    pub new: Tuple,
}

/// Message `D`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    /// The relation's oid.
    pub relation_id: u32,
    /// The part of the old row that was sent.
    pub old: OldTuple,
}

/// Message `T`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncate {
    /// Whether `CASCADE` was given (option bit 1).
    pub cascade: bool,
    /// Whether `RESTART IDENTITY` was given (option bit 2).
    pub restart_identity: bool,
    /// The relations' oids.
    pub relation_ids: Vec<u32>,
}

/// Message `M`. Its `Debug` form tells the length of its content, not the content (I9).
#[derive(Clone, PartialEq, Eq)]
pub struct LogicalMessage {
    /// Whether the message belongs to a transaction.
    pub transactional: bool,
    /// The message's LSN.
    pub lsn: Lsn,
    /// The prefix given by its writer.
    pub prefix: String,
    /// The content given by its writer; `None` if it is too large to be kept, see [`Limits`].
    pub content: Option<Bytes>,
}

/// Reads one message that stands outside of a block of a streamed transaction, from the payload of
/// an `XLogData` frame.
///
/// Tuples and the content of logical messages are slices of `payload` and keep it in memory.
/// Errors when the payload is not exactly one message
/// (<https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>).
pub fn decode(payload: Bytes) -> Result<Message, Error> {
    read(Cursor::new(payload))
}

fn read(mut cursor: Cursor) -> Result<Message, Error> {
    let tag = cursor.u8("Message.tag")?;
    let (message, name) = match tag {
        b'I' | b'U' | b'D' | b'R' | b'Y' | b'T' | b'M' => content(tag, &mut cursor)?,
        b'B' => (Message::Begin(Begin::decode(&mut cursor)?), "Begin"),
        b'C' => (Message::Commit(Commit::decode(&mut cursor)?), "Commit"),
        b'O' => (Message::Origin(Origin::decode(&mut cursor)?), "Origin"),
        b'S' => (Message::StreamStart(StreamStart::decode(&mut cursor)?), "StreamStart"),
        b'c' => (Message::StreamCommit(StreamCommit::decode(&mut cursor)?), "StreamCommit"),
        b'A' => (Message::StreamAbort(StreamAbort::decode(&mut cursor)?), "StreamAbort"),
        tag => return Err(Error::UnknownTag { tag }),
    };
    cursor.finish(name)?;
    Ok(message)
}

/// Reads one message that stands inside of a block, as [`decode`] does.
///
/// What tells of rows and relations begins there with the id of the transaction or subtransaction
/// that made the change; it is given beside the message.
pub fn decode_in_block(payload: Bytes) -> Result<(Option<u32>, Message), Error> {
    read_in_block(Cursor::new(payload))
}

fn read_in_block(mut cursor: Cursor) -> Result<(Option<u32>, Message), Error> {
    let tag = cursor.u8("Message.tag")?;
    let (xid, (message, name)) = match tag {
        b'I' | b'U' | b'D' | b'R' | b'Y' | b'T' | b'M' => {
            let xid = cursor.u32("Message.xid")?;
            (Some(xid), content(tag, &mut cursor)?)
        }
        b'O' => (None, (Message::Origin(Origin::decode(&mut cursor)?), "Origin")),
        b'E' => (None, (Message::StreamStop, "StreamStop")),
        tag => return Err(Error::UnknownTag { tag }),
    };
    cursor.finish(name)?;
    Ok((xid, message))
}

/// The messages that have the same form everywhere, behind the xid that a block adds.
#[inline]
fn content(tag: u8, cursor: &mut Cursor) -> Result<(Message, &'static str), Error> {
    Ok(match tag {
        b'I' => (Message::Insert(Insert::decode(cursor)?), "Insert"),
        b'U' => (Message::Update(Update::decode(cursor)?), "Update"),
        b'D' => (Message::Delete(Delete::decode(cursor)?), "Delete"),
        b'R' => (Message::Relation(Arc::new(Relation::decode(cursor)?)), "Relation"),
        b'Y' => (Message::Type(Type::decode(cursor)?), "Type"),
        b'T' => (Message::Truncate(Truncate::decode(cursor)?), "Truncate"),
        b'M' => (Message::Logical(LogicalMessage::decode(cursor)?), "LogicalMessage"),
        tag => return Err(Error::UnknownTag { tag }),
    })
}

impl Begin {
    fn decode(cursor: &mut Cursor) -> Result<Begin, Error> {
        Ok(Begin {
            final_lsn: cursor.lsn("Begin.final_lsn")?,
            commit_time: cursor.i64("Begin.commit_time")?,
            xid: cursor.u32("Begin.xid")?,
        })
    }
}

impl Commit {
    fn decode(cursor: &mut Cursor) -> Result<Commit, Error> {
        Ok(Commit {
            flags: cursor.u8("Commit.flags")?,
            commit_lsn: cursor.lsn("Commit.commit_lsn")?,
            end_lsn: cursor.lsn("Commit.end_lsn")?,
            commit_time: cursor.i64("Commit.commit_time")?,
        })
    }
}

impl Origin {
    fn decode(cursor: &mut Cursor) -> Result<Origin, Error> {
        Ok(Origin {
            commit_lsn: cursor.lsn("Origin.commit_lsn")?,
            name: cursor.text("Origin.name")?,
        })
    }
}

impl Type {
    fn decode(cursor: &mut Cursor) -> Result<Type, Error> {
        Ok(Type {
            id: cursor.u32("Type.id")?,
            namespace: cursor.text("Type.namespace")?,
            name: cursor.text("Type.name")?,
        })
    }
}

impl Insert {
    fn decode(cursor: &mut Cursor) -> Result<Insert, Error> {
        let relation_id = cursor.u32("Insert.relation_id")?;
        match cursor.u8("Insert.new")? {
            b'N' => Ok(Insert { relation_id, new: Tuple::decode(cursor, "Insert.new")? }),
            _ => Err(undefined("Insert.new", "marked `N`")),
        }
    }
}

impl Update {
    fn decode(cursor: &mut Cursor) -> Result<Update, Error> {
        let relation_id = cursor.u32("Update.relation_id")?;
        let kind = match cursor.u8("Update.old")? {
            b'K' => Some(OldKind::Key),
            b'O' => Some(OldKind::Full),
            b'N' => None,
            _ => return Err(undefined("Update.old", "marked `K`, `O` or `N`")),
        };
        let Some(kind) = kind else {
            return Ok(Update {
                relation_id,
                old: None,
                new: Tuple::decode(cursor, "Update.new")?,
            });
        };
        let old = Some(OldTuple { kind, tuple: Tuple::decode(cursor, "Update.old")? });
        match cursor.u8("Update.new")? {
            b'N' => Ok(Update { relation_id, old, new: Tuple::decode(cursor, "Update.new")? }),
            _ => Err(undefined("Update.new", "marked `N`")),
        }
    }
}

impl Delete {
    fn decode(cursor: &mut Cursor) -> Result<Delete, Error> {
        let relation_id = cursor.u32("Delete.relation_id")?;
        let kind = match cursor.u8("Delete.old")? {
            b'K' => OldKind::Key,
            b'O' => OldKind::Full,
            _ => return Err(undefined("Delete.old", "marked `K` or `O`")),
        };
        let tuple = Tuple::decode(cursor, "Delete.old")?;
        Ok(Delete { relation_id, old: OldTuple { kind, tuple } })
    }
}

impl Truncate {
    fn decode(cursor: &mut Cursor) -> Result<Truncate, Error> {
        let count = cursor.length32("Truncate.relation_ids")?;
        let options = cursor.u8("Truncate.options")?;
        if options > 3 {
            return Err(undefined("Truncate.options", "0 to 3"));
        }
        let field = "Truncate.relation_ids";
        cursor.require(count.saturating_mul(size_of::<u32>()), field)?;
        Ok(Truncate {
            cascade: options & 1 != 0,
            restart_identity: options & 2 != 0,
            relation_ids: (0..count).map(|_| cursor.u32(field)).collect::<Result<_, _>>()?,
        })
    }
}

impl LogicalMessage {
    fn decode(cursor: &mut Cursor) -> Result<LogicalMessage, Error> {
        let transactional = cursor.flag("LogicalMessage.flags")?;
        let lsn = cursor.lsn("LogicalMessage.lsn")?;
        let prefix = cursor.text("LogicalMessage.prefix")?;
        let length = cursor.length32("LogicalMessage.content")?;
        let content = cursor.bytes(length, "LogicalMessage.content")?;
        Ok(LogicalMessage { transactional, lsn, prefix, content: Some(content) })
    }
}

impl fmt::Debug for LogicalMessage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LogicalMessage")
            .field("transactional", &self.transactional)
            .field("lsn", &self.lsn)
            .field("prefix", &self.prefix)
            .field("content", &self.content.as_ref().map(Bytes::len))
            .finish()
    }
}
