//! A reader over one payload. The only place that reads bytes, and the only one that has to care
//! about where they end: every read is checked, and nothing is allocated before its length is.

use bytes::{Buf, Bytes};

use crate::lsn::Lsn;

use super::error::{Error, Fault, undefined};
use super::tuple::Value;

/// The mark of a column that [`Condenser`](super::Condenser) left out. No server sends it, and it
/// is believed only in what the condenser wrote.
pub(super) const LEFT_OUT: u8 = b'-';

/// The part of a payload that is not read yet. All integers are big-endian.
pub(super) struct Cursor {
    rest: Bytes,
    is_condensed: bool,
}

impl Cursor {
    /// A reader at the start of `payload`.
    pub(super) fn new(payload: Bytes) -> Cursor {
        Cursor { rest: payload, is_condensed: false }
    }

    /// A reader at the start of what a condenser made of a payload: columns may be left out.
    pub(super) fn condensed(payload: Bytes) -> Cursor {
        Cursor { rest: payload, is_condensed: true }
    }

    /// The next byte, for `field`.
    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, Error> {
        self.array(field).map(u8::from_be_bytes)
    }

    /// The next four bytes, for `field`.
    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, Error> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// The next four bytes, for `field`.
    pub(super) fn i32(&mut self, field: &'static str) -> Result<i32, Error> {
        self.array(field).map(i32::from_be_bytes)
    }

    /// The next eight bytes, for `field`.
    pub(super) fn i64(&mut self, field: &'static str) -> Result<i64, Error> {
        self.array(field).map(i64::from_be_bytes)
    }

    /// The next eight bytes, for `field`.
    pub(super) fn lsn(&mut self, field: &'static str) -> Result<Lsn, Error> {
        self.array(field).map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    /// A byte that is 0 or 1, for `field`. Another bit would be one whose meaning is not known, and
    /// what is not known is not guessed.
    pub(super) fn flag(&mut self, field: &'static str) -> Result<bool, Error> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(undefined(field, "0 or 1")),
        }
    }

    /// A two-byte count, for `field`.
    pub(super) fn count16(&mut self, field: &'static str) -> Result<u16, Error> {
        let count = self.array(field).map(i16::from_be_bytes)?;
        let negative = Fault::Negative { length: count.into() };
        u16::try_from(count).or(Err(Error::Field { field, fault: negative }))
    }

    /// A four-byte length or count, for `field`.
    pub(super) fn length32(&mut self, field: &'static str) -> Result<usize, Error> {
        let length = self.i32(field)?;
        usize::try_from(length).or(Err(Error::Field { field, fault: Fault::Negative { length } }))
    }

    /// A text that ends with a zero byte, for `field`.
    pub(super) fn text(&mut self, field: &'static str) -> Result<String, Error> {
        let left = self.rest.len();
        let length = memchr::memchr(0, &self.rest)
            .ok_or(Error::Field { field, fault: Fault::Unterminated { left } })?;
        let bytes = self.rest.split_to(length);
        self.rest.advance(1);
        let text =
            std::str::from_utf8(&bytes).or(Err(Error::Field { field, fault: Fault::NotUtf8 }))?;
        Ok(text.to_owned())
    }

    /// The next `length` bytes, for `field`, as a slice of the payload.
    pub(super) fn bytes(&mut self, length: usize, field: &'static str) -> Result<Bytes, Error> {
        self.require(length, field)?;
        Ok(self.rest.split_to(length))
    }

    /// The columns of a tuple, for `field`: walked once to find their end and every fault in them,
    /// and given as a slice of the payload.
    pub(super) fn columns(&mut self, count: u16, field: &'static str) -> Result<Bytes, Error> {
        let mut rest: &[u8] = &self.rest;
        for column in 1..=usize::from(count) {
            let value = match split_value(&mut rest) {
                Ok(Value::LeftOut) if !self.is_condensed => Err(UNDEFINED_MARK),
                split => split,
            };
            value.map_err(|fault| Error::Column { field, column, fault })?;
        }
        let length = self.rest.len().saturating_sub(rest.len());
        Ok(self.rest.split_to(length))
    }

    /// Checks that `needed` bytes are left, before anything of that size is made.
    pub(super) fn require(&self, needed: usize, field: &'static str) -> Result<(), Error> {
        let left = self.rest.len();
        if needed > left {
            return Err(Error::Field { field, fault: Fault::Short { needed, left } });
        }
        Ok(())
    }

    /// Whether everything is read.
    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// Checks that `message` ends where the payload ends.
    pub(super) fn finish(&self, message: &'static str) -> Result<(), Error> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(Error::Trailing { message, left }),
        }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Error> {
        let left = self.rest.len();
        let short = Error::Field { field, fault: Fault::Short { needed: N, left } };
        let bytes = *self.rest.first_chunk().ok_or(short)?;
        self.rest.advance(N);
        Ok(bytes)
    }
}

const UNDEFINED_MARK: Fault = Fault::Undefined { defined: "marked `n`, `u`, `t` or `b`" };

/// Takes one column of `TupleData` off the front of `rest`, which is left alone at a fault.
#[inline]
pub(super) fn split_value<'a>(rest: &mut &'a [u8]) -> Result<Value<'a>, Fault> {
    let (&mark, after) = rest.split_first().ok_or(Fault::Short { needed: 1, left: 0 })?;
    let (value, after) = match mark {
        b'n' => (Value::Null, after),
        b'u' => (Value::Unchanged, after),
        b't' => split_sized(after).map(|(bytes, after)| (Value::Text(bytes), after))?,
        b'b' => split_sized(after).map(|(bytes, after)| (Value::Binary(bytes), after))?,
        LEFT_OUT => (Value::LeftOut, after),
        _ => return Err(UNDEFINED_MARK),
    };
    *rest = after;
    Ok(value)
}

/// Splits a four-byte length and as many bytes off the front of `rest`.
#[inline]
fn split_sized(rest: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let left = rest.len();
    let (length, rest) = rest.split_first_chunk().ok_or(Fault::Short { needed: 4, left })?;
    let length = i32::from_be_bytes(*length);
    let needed = usize::try_from(length).or(Err(Fault::Negative { length }))?;
    let left = rest.len();
    rest.split_at_checked(needed).ok_or(Fault::Short { needed, left })
}
