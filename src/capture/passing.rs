//! Whole messages out of a buffer, and long ones in passing. Pure.
//!
//! Whoever may write a row or call `pg_logical_emit_message` decides how long a message is, up to
//! 1 GiB. One that is longer than [`HELD_SIZE_MAX`] is never whole in memory: of `CopyData` the
//! pieces are given as they come, of an error or a notice the beginning is kept, and the rest of
//! what has no use is dropped.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::{self, DATA_HEADER_SIZE, HEADER_SIZE, Malformed};

/// A message of at most so many bytes is held whole. Most rows are far smaller, so that their
/// payloads are slices of the read buffer; memory stays within a few of these.
pub(super) const HELD_SIZE_MAX: usize = 1 << 20;

/// Of a longer error or notice so much is kept: severity, code and message come first.
const TOLD_SIZE_MAX: usize = 64 * 1024;

/// A message, or a piece of one, that stands at the front of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// A whole message, header included.
    Message(Bytes),
    /// A piece of the payload of a long `XLogData`, and how many bytes of it follow.
    Part { payload: Bytes, left: usize },
}

/// A message that is too long to be held, and of which some was taken.
#[derive(Debug)]
pub(super) struct Passing {
    tag: u8,
    left: usize,
    told: BytesMut,
}

/// Whether [`take`] would give something.
pub(super) fn is_ready(incoming: &BytesMut, passing: Option<&Passing>) -> Result<bool, Malformed> {
    if passing.is_some() {
        return Ok(!incoming.is_empty());
    }
    Ok(frame::message_length(incoming)?.is_some_and(|length| is_startable(incoming, length)))
}

/// Whether a message of this length is there: whole, or so much of a long one that it is known what
/// becomes of it.
fn is_startable(incoming: &BytesMut, length: usize) -> bool {
    if length <= HELD_SIZE_MAX {
        return incoming.len() >= length;
    }
    incoming.len() > HEADER_SIZE.saturating_add(DATA_HEADER_SIZE)
}

/// Takes the next whole message, or the next piece of a long one, off the front of the buffer;
/// `None` if more must be read first.
pub(super) fn take(
    incoming: &mut BytesMut,
    passing: &mut Option<Passing>,
) -> Result<Option<Taken>, Malformed> {
    if passing.is_none() {
        let Some(length) = frame::message_length(incoming)? else { return Ok(None) };
        if !is_startable(incoming, length) {
            return Ok(None);
        }
        if length <= HELD_SIZE_MAX {
            return Ok(Some(Taken::Message(incoming.split_to(length).freeze())));
        }
        *passing = Some(Passing::begin(incoming, length)?);
    }
    let Some(message) = passing else { return Ok(None) };
    let taken = message.take(incoming);
    if message.left == 0 {
        *passing = None;
    }
    Ok(taken)
}

impl Passing {
    fn begin(incoming: &mut BytesMut, length: usize) -> Result<Passing, Malformed> {
        let tag = incoming.get_u8();
        let _length = incoming.get_u32();
        let mut left = length.saturating_sub(HEADER_SIZE);
        match tag {
            b'd' => {
                if incoming.first() != Some(&b'w') {
                    return Err(Malformed("a frame too long for its kind"));
                }
                incoming.advance(DATA_HEADER_SIZE);
                left = left.saturating_sub(DATA_HEADER_SIZE);
            }
            // Changed settings and NOTIFY mean nothing here, however long they are.
            b'E' | b'N' | b'S' | b'A' => {}
            _ => return Err(Malformed("a message too long for its kind")),
        }
        Ok(Passing { tag, left, told: BytesMut::new() })
    }

    fn take(&mut self, incoming: &mut BytesMut) -> Option<Taken> {
        let payload = incoming.split_to(self.left.min(incoming.len()));
        self.left = self.left.saturating_sub(payload.len());
        if self.tag == b'd' {
            let is_some = !payload.is_empty();
            return is_some.then(|| Taken::Part { payload: payload.freeze(), left: self.left });
        }
        if matches!(self.tag, b'E' | b'N') {
            let room = TOLD_SIZE_MAX.saturating_sub(self.told.len());
            self.told.extend(payload.iter().take(room));
        }
        (self.left == 0).then(|| Taken::Message(self.shortened()))
    }

    /// The message with the fields of which at least the beginning was kept: each is a letter and a
    /// text that ends with a zero byte, and one more zero byte follows the last.
    fn shortened(&mut self) -> Bytes {
        let mut body = std::mem::take(&mut self.told);
        match body.last() {
            Some(0) => body.put_u8(0),
            Some(_) => body.put_slice(b"\0\0"),
            None => {}
        }
        let mut message = BytesMut::new();
        message.put_u8(self.tag);
        message.put_u32(u32::try_from(body.len().saturating_add(4)).unwrap_or_default());
        message.put_slice(&body);
        message.freeze()
    }
}
