//! A payload in pieces to one message, in memory that does not depend on its length.
//!
//! A row or a message of the application can have 1 GiB, and anybody may write one. What a key can
//! need is small. So the payload is read in passing: what is short is kept as it is, a long value
//! is left out, and whoever asks for it is told that it is not known (I5, I6).

use bytes::{BufMut, BytesMut};

use super::cursor::{Cursor, LEFT_OUT};
use super::error::cut;
use super::{Error, Message, read, read_in_block};

/// How much of a payload in pieces is kept, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest value of a row that may be kept.
    pub value: usize,
    /// Of all such values of one payload.
    pub values: usize,
    /// The largest value that is kept although there are many larger ones before it: most values
    /// in keys are numbers and names.
    pub small_value: usize,
    /// The content of a logical message.
    pub content: usize,
    /// A name: the prefix of a logical message, an origin. A longer one loses its end.
    pub name: usize,
    /// A whole message of any other kind; a longer one is an error.
    pub other: usize,
}

impl Default for Limits {
    /// Gives the limits that the program keeps to. Content has a limit that is far above what it is
    /// made for, tens of thousands of keys; other messages have a few bytes for each of 1600
    /// columns or of the relations of one TRUNCATE.
    fn default() -> Limits {
        Limits {
            value: 64 << 10,
            values: 1 << 20,
            small_value: 256,
            content: 1 << 20,
            name: 64 << 10,
            other: 4 << 20,
        }
    }
}

/// Reads one payload piece by piece.
#[derive(Debug)]
pub struct Condenser {
    limits: Limits,
    in_block: bool,
    /// The payload without what is left out.
    kept: BytesMut,
    state: State,
    tag: u8,
    /// Tuples that follow the one that is being read.
    tuples: u8,
    /// Columns of this tuple that are not read.
    columns: u16,
    /// Room for values up to [`Limits::value`], and for small ones.
    room: (usize, usize),
    content_left_out: bool,
}

/// The meaning of the next bytes.
#[derive(Clone, Copy, Debug)]
enum State {
    /// So many bytes to keep, and then this.
    Keep(usize, Then),
    /// So many bytes to leave out: of a column, or of content.
    Drop(usize, Then),
    /// A text up to its zero byte, of which so many bytes may still be kept.
    Text(usize, Then),
    /// A message that is kept whole.
    Other,
    /// Bytes after something that cannot be: the decoder says what, the rest is dropped.
    Broken,
}

/// The part of the payload that was just read.
#[derive(Clone, Copy, Debug)]
enum Then {
    Tag,
    Xid,
    TupleMark,
    ColumnCount,
    ColumnMark,
    ColumnLength,
    Column,
    LeftOut,
    BeforePrefix,
    Prefix,
    ContentLength,
    BeforeName,
    End,
    Trailing,
}

impl Condenser {
    /// A condenser for a payload that stands inside of a block of a streamed transaction, or does
    /// not.
    #[must_use]
    pub fn new(in_block: bool) -> Condenser {
        Condenser::with_limits(in_block, Limits::default())
    }

    /// Like [`Condenser::new`], with other limits, for tests.
    #[must_use]
    pub fn with_limits(in_block: bool, limits: Limits) -> Condenser {
        Condenser {
            limits,
            in_block,
            kept: BytesMut::new(),
            state: State::Keep(1, Then::Tag),
            tag: 0,
            tuples: 0,
            columns: 0,
            room: (limits.values, limits.values),
            content_left_out: false,
        }
    }

    /// Takes the next piece of the payload.
    pub fn push(&mut self, mut piece: &[u8]) {
        loop {
            // A step that needs no byte is made at once; any other waits for one.
            let is_free = matches!(self.state, State::Keep(0, _) | State::Drop(0, _));
            if piece.is_empty() && !is_free {
                return;
            }
            match self.state {
                State::Keep(left, then) => {
                    let (now, later) = piece.split_at(left.min(piece.len()));
                    self.kept.put_slice(now);
                    piece = later;
                    match left.saturating_sub(now.len()) {
                        0 => self.state = self.after(then),
                        left => self.state = State::Keep(left, then),
                    }
                }
                State::Drop(left, then) => {
                    let size = left.min(piece.len());
                    piece = piece.split_at(size).1;
                    match left.saturating_sub(size) {
                        0 => self.state = self.after(then),
                        left => self.state = State::Drop(left, then),
                    }
                }
                State::Text(room, then) => piece = self.text(piece, room, then),
                State::Other => {
                    let room = self.limits.other.saturating_add(1).saturating_sub(self.kept.len());
                    self.kept.put_slice(piece.split_at(room.min(piece.len())).0);
                    return;
                }
                State::Broken => return,
            }
        }
    }

    /// Takes a piece of a text; gives what follows the text.
    fn text<'a>(&mut self, piece: &'a [u8], room: usize, then: Then) -> &'a [u8] {
        let end = memchr::memchr(0, piece);
        let (text, rest) = piece.split_at(end.unwrap_or(piece.len()));
        let kept = text.split_at(room.min(text.len())).0;
        self.kept.put_slice(kept);
        let Some((zero, rest)) = rest.split_first() else {
            self.state = State::Text(room.saturating_sub(kept.len()), then);
            return rest;
        };
        if kept.len() < text.len() || room == 0 {
            self.drop_part_of_letter();
        }
        self.kept.put_u8(*zero);
        self.state = self.after(then);
        rest
    }

    /// Takes the first bytes of a letter whose last ones were dropped off the end.
    fn drop_part_of_letter(&mut self) {
        let tail = self.kept.iter().rev().take(4);
        let continued = tail.take_while(|byte| (0x80..0xC0).contains(*byte)).count();
        let start = self.kept.len().saturating_sub(continued.saturating_add(1));
        let size = match self.kept.get(start) {
            Some(0xC0..=0xDF) => 2,
            Some(0xE0..=0xEF) => 3,
            Some(0xF0..=0xFF) => 4,
            _ => return,
        };
        if continued.saturating_add(1) < size {
            self.kept.truncate(start);
        }
    }

    /// Decides what follows in the payload once something was read, which stands at the end of
    /// `kept`.
    fn after(&mut self, then: Then) -> State {
        match then {
            Then::Tag => {
                self.tag = self.last();
                match self.tag {
                    b'I' | b'U' | b'D' | b'M' if self.in_block => State::Keep(4, Then::Xid),
                    b'I' | b'U' | b'D' | b'M' => self.content(),
                    b'O' => State::Keep(8, Then::BeforeName),
                    _ => State::Other,
                }
            }
            Then::Xid => self.content(),
            Then::TupleMark => self.tuple(),
            Then::ColumnCount => match u16::try_from(i16::from_be_bytes(self.last_bytes())) {
                Ok(columns) => {
                    self.columns = columns;
                    self.column()
                }
                Err(_negative) => State::Broken,
            },
            Then::ColumnMark => match self.last() {
                b'n' | b'u' => self.column(),
                b't' | b'b' => State::Keep(4, Then::ColumnLength),
                _ => State::Broken,
            },
            Then::ColumnLength => self.value(),
            Then::Column => self.column(),
            Then::LeftOut => {
                self.kept.put_u8(LEFT_OUT);
                self.column()
            }
            Then::BeforePrefix => State::Text(self.limits.name, Then::Prefix),
            Then::Prefix => State::Keep(4, Then::ContentLength),
            Then::ContentLength => self.message_content(),
            Then::BeforeName => State::Text(self.limits.name, Then::End),
            // A byte after the end is kept, so that the decoder finds it.
            Then::End => State::Keep(1, Then::Trailing),
            Then::Trailing => State::Broken,
        }
    }

    fn content(&self) -> State {
        match self.tag {
            // Flags and LSN.
            b'M' => State::Keep(1 + 8, Then::BeforePrefix),
            // The relation's oid and the mark of a tuple.
            _ => State::Keep(4 + 1, Then::TupleMark),
        }
    }

    /// Decides what follows the mark of a tuple. An UPDATE has one tuple or two.
    fn tuple(&mut self) -> State {
        let mark = self.last();
        self.tuples = match (self.tag, mark) {
            (b'U', b'K' | b'O') if self.tuples == 0 => 1,
            (b'I' | b'U', b'N') | (b'D', b'K' | b'O') => 0,
            _ => return State::Broken,
        };
        State::Keep(2, Then::ColumnCount)
    }

    /// Decides what follows a column.
    fn column(&mut self) -> State {
        match self.columns.checked_sub(1) {
            Some(left) => {
                self.columns = left;
                State::Keep(1, Then::ColumnMark)
            }
            None if self.tuples > 0 => State::Keep(1, Then::TupleMark),
            None => self.after(Then::End),
        }
    }

    /// Decides what follows the length of a value.
    fn value(&mut self) -> State {
        let Ok(length) = usize::try_from(i32::from_be_bytes(self.last_bytes())) else {
            return State::Broken;
        };
        let (large, small) = self.room;
        if length <= self.limits.value && length <= large {
            self.room.0 = large.saturating_sub(length);
        } else if length <= self.limits.small_value && length <= small {
            self.room.1 = small.saturating_sub(length);
        } else {
            self.kept.truncate(self.kept.len().saturating_sub(1 + 4));
            return State::Drop(length, Then::LeftOut);
        }
        State::Keep(length, Then::Column)
    }

    /// Decides what follows the length of a message's content.
    fn message_content(&mut self) -> State {
        match usize::try_from(i32::from_be_bytes(self.last_bytes())) {
            Ok(length) if length <= self.limits.content => State::Keep(length, Then::End),
            Ok(length) => {
                self.content_left_out = true;
                self.kept.truncate(self.kept.len().saturating_sub(4));
                self.kept.put_u32(0);
                State::Drop(length, Then::End)
            }
            Err(_negative) => State::Broken,
        }
    }

    #[cfg(test)]
    pub(super) fn kept_bytes(&self) -> usize {
        self.kept.len()
    }

    fn last(&self) -> u8 {
        self.kept.last().copied().unwrap_or_default()
    }

    fn last_bytes<const N: usize>(&self) -> [u8; N] {
        self.kept.last_chunk().copied().unwrap_or([0; N])
    }

    /// The message, and inside of a block the xid that it has there.
    ///
    /// # Errors
    /// When the pieces are not exactly one message; when it is one that no server makes so long.
    pub fn finish(self) -> Result<(Option<u32>, Message), Error> {
        let Condenser { state, kept, limits, .. } = self;
        if let State::Other = state
            && kept.len() > limits.other
        {
            let tag = kept.first().copied().unwrap_or_default();
            return Err(Error::TooLong { tag, max: limits.other });
        }
        let is_cut = matches!(state, State::Drop(..));
        let cursor = match state {
            // What broke it is kept, and is an error for whoever reads it as it was sent.
            State::Broken => Cursor::new(kept.freeze()),
            _ => Cursor::condensed(kept.freeze()),
        };
        let (xid, mut message) =
            if self.in_block { read_in_block(cursor)? } else { (None, read(cursor)?) };
        if let Message::Logical(message) = &mut message
            && self.content_left_out
        {
            if is_cut {
                return Err(cut("LogicalMessage.content"));
            }
            message.content = None;
        }
        Ok((xid, message))
    }
}
