//! Row versions: slices of the frame, walked column by column.

use std::fmt;
use std::iter::FusedIterator;

use bytes::{BufMut, Bytes, BytesMut};

use super::cursor::{Cursor, LEFT_OUT, split_value};
use super::error::Error;
use crate::words::counted;

/// The row before an UPDATE or DELETE, as far as that tells of it.
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

/// A row version: a slice of the frame that [`Tuple::values`] walks. Keeps that frame in memory.
///
/// Its `Debug` form tells how long the values are, not what they are (I9).
#[derive(Clone, PartialEq, Eq)]
pub struct Tuple {
    pub(super) column_count: u16,
    /// `column_count` whole columns and nothing else, as [`Cursor::columns`] has checked.
    pub(super) body: Bytes,
}

/// One column's value. Its `Debug` form tells its length, not its content (I9).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// `n`: NULL.
    Null,
    /// `u`: an unchanged TOAST value, which was not sent.
    Unchanged,
    /// `t`: the value as text.
    Text(&'a [u8]),
    /// `b`: the value in binary form.
    Binary(&'a [u8]),
    /// A value that was sent and is not kept, because it is large: see
    /// [`Condenser`](super::Condenser). Nothing of it is known.
    LeftOut,
}

/// The values of a [`Tuple`], in the order of its relation's columns.
#[derive(Clone)]
pub struct Values<'a> {
    rest: &'a [u8],
    left: u16,
}

impl Tuple {
    /// The tuple of these values, in the order of the columns.
    ///
    /// # Panics
    /// With more than `i16::MAX` values or one longer than `i32::MAX` bytes: the protocol has no
    /// such tuple, and Postgres none of more than 1600 columns or 1 GB.
    #[must_use]
    pub fn from_values(values: &[Value<'_>]) -> Tuple {
        let column_count = i16::try_from(values.len()).expect("a tuple has at most 1600 columns");
        let mut body = BytesMut::new();
        for value in values {
            let (mark, bytes) = match *value {
                Value::Null => (b'n', None),
                Value::Unchanged => (b'u', None),
                Value::Text(bytes) => (b't', Some(bytes)),
                Value::Binary(bytes) => (b'b', Some(bytes)),
                Value::LeftOut => (LEFT_OUT, None),
            };
            body.put_u8(mark);
            if let Some(bytes) = bytes {
                body.put_i32(i32::try_from(bytes.len()).expect("a value has at most 1 GB"));
                body.put_slice(bytes);
            }
        }
        Tuple { column_count: column_count.unsigned_abs(), body: body.freeze() }
    }

    pub(super) fn decode(cursor: &mut Cursor, field: &'static str) -> Result<Tuple, Error> {
        let column_count = cursor.count16(field)?;
        let body = cursor.columns(column_count, field)?;
        Ok(Tuple { column_count, body })
    }

    /// How many columns the tuple has.
    #[must_use]
    pub fn column_count(&self) -> usize {
        self.column_count.into()
    }

    /// The value of every column, in the order of the relation's columns.
    #[must_use]
    pub fn values(&self) -> Values<'_> {
        Values { rest: &self.body, left: self.column_count }
    }

    /// The value of the column at `index`, from 0; `None` behind the last one. Walks over the
    /// columns before it.
    #[must_use]
    pub fn value(&self, index: usize) -> Option<Value<'_>> {
        self.values().nth(index)
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        Some(split_value(&mut self.rest).expect("a tuple is made of whole columns"))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::from(self.left);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Values<'_> {}

impl FusedIterator for Values<'_> {}

impl fmt::Debug for Tuple {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Tuple")?;
        formatter.debug_list().entries(self.values()).finish()
    }
}

impl fmt::Debug for Values<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.clone()).finish()
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => formatter.write_str("Null"),
            Value::Unchanged => formatter.write_str("Unchanged"),
            Value::Text(bytes) => write!(formatter, "Text({})", counted(bytes.len(), "byte")),
            Value::Binary(bytes) => write!(formatter, "Binary({})", counted(bytes.len(), "byte")),
            Value::LeftOut => formatter.write_str("LeftOut"),
        }
    }
}
