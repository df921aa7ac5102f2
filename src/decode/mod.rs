//! pgoutput bytes to [`Message`].
//!
//! Takes: the payload of one `XLogData` frame. Gives: one message, its tuples still slices of the
//! frame, no row copied. Never knows: sockets, transactions, rules. Invariant: never panics, never
//! reads past the payload; a payload that is too short or too long is an [`Error`]. Follows
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>, protocol
//! version 1, and uses its names.

use std::sync::Arc;

use bytes::Bytes;

use crate::lsn::Lsn;

/// One pgoutput message of protocol version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A transaction starts.
    Begin(Begin),
    /// The transaction that started last is complete.
    Commit(Commit),
    /// The transaction was replayed from another server.
    Origin(Origin),
    /// What a relation looks like; sent before its first change and after each change of shape.
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

/// Message `R`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid` of the relation.
    pub id: u32,
    /// Schema; Postgres sends an empty text for `pg_catalog`, given here as `pg_catalog`.
    pub namespace: String,
    /// Relation name.
    pub name: String,
    /// `pg_class.relreplident`.
    pub replica_identity: ReplicaIdentity,
    /// The published columns, in the order of every tuple.
    pub columns: Vec<Column>,
}

/// `pg_class.relreplident`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// `d`: the primary key, if there is one.
    Default,
    /// `n`: no old version is ever sent.
    Nothing,
    /// `f`: old versions are sent whole.
    Full,
    /// `i`: the columns of one index.
    Index,
}

/// One column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Whether the column is part of the replica identity.
    pub is_key: bool,
    /// Column name.
    pub name: String,
    /// `pg_type.oid`.
    pub type_id: u32,
    /// `pg_attribute.atttypmod`.
    pub type_modifier: i32,
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
    /// What was sent of the old row, if anything was.
    pub old: Option<OldTuple>,
    /// The new row.
    pub new: Tuple,
}

/// Message `D`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    /// The relation's oid.
    pub relation_id: u32,
    /// What was sent of the old row.
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

/// Message `M`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalMessage {
    /// Whether the message belongs to a transaction.
    pub transactional: bool,
    /// The message's LSN.
    pub lsn: Lsn,
    /// The prefix given by its writer.
    pub prefix: String,
    /// The content given by its writer.
    pub content: Bytes,
}

/// What an UPDATE or DELETE tells of the row before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldTuple {
    /// How much of the old row was sent.
    pub kind: OldKind,
    /// The values; with [`OldKind::Key`] only those of key columns mean anything.
    pub tuple: Tuple,
}

/// How much of an old row was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldKind {
    /// `K`: only the columns of the replica identity; all others are sent as NULL and are unknown.
    Key,
    /// `O`: every column.
    Full,
}

/// A row version: a slice of the frame that [`Tuple::values`] walks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuple {
    column_count: u16,
    body: Bytes,
}

/// One column's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// `n`: NULL.
    Null,
    /// `u`: an unchanged TOAST value, which was not sent.
    Unchanged,
    /// `t`: the value as text.
    Text(&'a [u8]),
    /// `b`: the value in binary form.
    Binary(&'a [u8]),
}
