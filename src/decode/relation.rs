//! The shape of a relation, as message `R` tells it.

use super::cursor::Cursor;
use super::error::{Error, undefined};

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

/// The bytes that a column takes at least: flags, the end of an empty name, type, modifier.
const COLUMN_SIZE_MIN: usize = 1 + 1 + 4 + 4;

impl Relation {
    pub(super) fn decode(cursor: &mut Cursor) -> Result<Relation, Error> {
        let id = cursor.u32("Relation.id")?;
        let namespace = match cursor.text("Relation.namespace")? {
            empty if empty.is_empty() => "pg_catalog".to_owned(),
            namespace => namespace,
        };
        let name = cursor.text("Relation.name")?;
        let replica_identity = ReplicaIdentity::decode(cursor)?;
        let count = cursor.count16("Relation.columns")?;
        cursor.require(usize::from(count).saturating_mul(COLUMN_SIZE_MIN), "Relation.columns")?;
        let columns = (0..count).map(|_| Column::decode(cursor)).collect::<Result<_, _>>()?;
        Ok(Relation { id, namespace, name, replica_identity, columns })
    }
}

impl ReplicaIdentity {
    fn decode(cursor: &mut Cursor) -> Result<ReplicaIdentity, Error> {
        let field = "Relation.replica_identity";
        match cursor.u8(field)? {
            b'd' => Ok(ReplicaIdentity::Default),
            b'n' => Ok(ReplicaIdentity::Nothing),
            b'f' => Ok(ReplicaIdentity::Full),
            b'i' => Ok(ReplicaIdentity::Index),
            _ => Err(undefined(field, "`d`, `n`, `f` or `i`")),
        }
    }
}

impl Column {
    fn decode(cursor: &mut Cursor) -> Result<Column, Error> {
        Ok(Column {
            is_key: cursor.flag("Relation.column.flags")?,
            name: cursor.text("Relation.column.name")?,
            type_id: cursor.u32("Relation.column.type_id")?,
            type_modifier: cursor.i32("Relation.column.type_modifier")?,
        })
    }
}
