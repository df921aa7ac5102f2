//! Why a payload is not a message. Names fields and lengths, never what a field holds (I9).

use crate::words::counted;

/// A payload that is not one whole message of protocol versions 1 to 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The first byte names no message that may stand here.
    #[error("decode message: unknown tag `{}`", tag.escape_ascii())]
    UnknownTag {
        /// The first byte.
        tag: u8,
    },
    /// The message is longer than any of its kind that a server sends.
    #[error("decode message `{}`: more than {}", tag.escape_ascii(), counted(*.max, "byte"))]
    TooLong {
        /// The first byte.
        tag: u8,
        /// The most that such a message has, in bytes.
        max: usize,
    },
    /// A field is broken.
    #[error("decode `{field}`: {fault}")]
    Field {
        /// Message and field, such as `Begin.xid`.
        field: &'static str,
        /// The fault in the field.
        fault: Fault,
    },
    /// A column of a tuple is broken.
    #[error("decode `{field}`: column {column} {fault}")]
    Column {
        /// Message and field, such as `Update.new`.
        field: &'static str,
        /// The column, counted from 1 as `pg_attribute.attnum` is.
        column: usize,
        /// The fault in the column.
        fault: Fault,
    },
    /// The message is whole, and the payload goes on.
    #[error("decode `{message}`: {} after its end", counted(*.left, "byte"))]
    Trailing {
        /// The message.
        message: &'static str,
        /// How many bytes follow.
        left: usize,
    },
}

/// A fault in a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The payload ends inside the field.
    #[error("needs {}, {left} left", counted(*.needed, "byte"))]
    Short {
        /// Bytes that the field takes at least.
        needed: usize,
        /// Bytes that the payload has left.
        left: usize,
    },
    /// A length or a count is below zero.
    #[error("has the negative length {length}")]
    Negative {
        /// The length.
        length: i32,
    },
    /// A text has no zero byte at its end.
    #[error("is not terminated in the {} left", counted(*.left, "byte"))]
    Unterminated {
        /// Bytes that were searched.
        left: usize,
    },
    /// A name is not UTF-8, the only encoding that is asked for (`client_encoding`).
    #[error("is not UTF-8")]
    NotUtf8,
    /// A mark or a flag is none of those that the protocol defines.
    #[error("must be {defined}")]
    Undefined {
        /// Those that it defines.
        defined: &'static str,
    },
}

/// The error of a `field` whose value must be `defined`.
pub(super) fn undefined(field: &'static str, defined: &'static str) -> Error {
    Error::Field { field, fault: Fault::Undefined { defined } }
}

/// The error of a `field` whose last bytes never came.
pub(super) fn cut(field: &'static str) -> Error {
    Error::Field { field, fault: Fault::Short { needed: 1, left: 0 } }
}
