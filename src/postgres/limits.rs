//! How long a message of a server may be. Whoever answers at the address announces lengths, and a
//! client that believes them gives up to 2 GiB to a stranger: a password is what makes a server
//! known, and it comes later. The kinds and their limits are libpq's (`PQconnectPoll` in
//! `fe-connect.c`, `VALID_LONG_MESSAGE_TYPE` in `fe-protocol3.c`), with two bounds more: all of a
//! login together, and whatever a session answers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

use super::stream::Stream;

/// A question of the login, in bytes: a challenge, or the list of mechanisms.
const QUESTION_MAX: usize = 2_000;

/// An error before the login is done, and whatever is short by its kind, in bytes.
const SHORT_MAX: usize = 30_000;

/// All messages of a login, in bytes: settings and notices may be many.
const LOGIN_MAX: usize = 1 << 20;

/// The longest message of a session for SQL, in bytes. The catalog of every table that rules name
/// comes as one row: of ten thousand tables with a hundred columns each that is not half of it.
const ANSWER_MAX: usize = 256 << 20;

/// Tag and length.
const HEADER_SIZE: usize = 5;

/// Bytes that no server of Postgres sends, or so many that they are not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Strange {
    /// A kind of message that a login does not have.
    #[error("it does not speak the Postgres protocol")]
    Kind,
    /// A length that a message of its kind cannot have.
    #[error("it announces a message of {0} bytes, more than any that is taken")]
    Length(usize),
    /// More than a login takes.
    #[error("it sends more than {LOGIN_MAX} bytes before the login is done")]
    Login,
}

impl From<Strange> for io::Error {
    fn from(strange: Strange) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, strange)
    }
}

/// Follows what a server sends, from the start of the login on, and ends it at the first header
/// that announces too much.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    is_logged_in: bool,
    /// Bytes that the messages of the login have announced.
    login: usize,
    header: [u8; HEADER_SIZE],
    filled: usize,
    /// Bytes of the message that are still to come.
    left: usize,
}

impl Limits {
    /// Takes note of the next bytes.
    ///
    /// # Errors
    /// A message among them that no server of Postgres sends, or that is too long.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) -> Result<(), Strange> {
        while !bytes.is_empty() {
            let (gap, is_header) = match self.left {
                0 => (HEADER_SIZE - self.filled, true),
                left => (left, false),
            };
            let (taken, rest) = bytes.split_at(gap.min(bytes.len()));
            bytes = rest;
            if !is_header {
                self.left -= taken.len();
                continue;
            }
            self.header[self.filled..self.filled + taken.len()].copy_from_slice(taken);
            self.filled += taken.len();
            if self.filled == HEADER_SIZE {
                self.filled = 0;
                let [tag, length @ ..] = self.header;
                self.left = self.begin(tag, u32::from_be_bytes(length))?;
            }
        }
        Ok(())
    }

    /// Judges a header; gives the length of what follows it.
    fn begin(&mut self, tag: u8, length: u32) -> Result<usize, Strange> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if !self.is_logged_in && !b"RvENSKZ".contains(&tag) {
            return Err(Strange::Kind);
        }
        let max = match tag {
            b'R' | b'v' => QUESTION_MAX,
            b'E' | b'N' if !self.is_logged_in => SHORT_MAX,
            // Errors and notices, rows and what describes them, notifications, COPY.
            b'E' | b'N' | b'D' | b'T' | b'A' | b'd' => ANSWER_MAX,
            _ => SHORT_MAX,
        };
        let Some(left) = length.checked_sub(4).filter(|_| length <= max) else {
            return Err(Strange::Length(length));
        };
        if !self.is_logged_in {
            self.login += length;
            if self.login > LOGIN_MAX {
                return Err(Strange::Login);
            }
        }
        self.is_logged_in |= tag == b'Z';
        Ok(left)
    }
}

/// A connection whose server is held to the [`Limits`].
#[derive(Debug)]
pub(super) struct Limited {
    stream: Stream,
    limits: Limits,
}

impl Limited {
    /// One on which nothing was said but about TLS.
    pub(super) fn new(stream: Stream) -> Limited {
        Limited { stream, limits: Limits::default() }
    }
}

impl AsyncRead for Limited {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        Poll::Ready(Ok(self.limits.pass(&buffer.filled()[before..])?))
    }
}

impl AsyncWrite for Limited {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl TlsStream for Limited {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

#[cfg(test)]
mod tests {
    use super::{ANSWER_MAX, LOGIN_MAX, Limits, Strange};

    fn header(tag: u8, length: usize) -> Vec<u8> {
        [&[tag], &u32::try_from(length).unwrap().to_be_bytes()[..]].concat()
    }

    /// A message that is as long as it says.
    fn message(tag: u8, length: usize) -> Vec<u8> {
        [header(tag, length), vec![0; length - 4]].concat()
    }

    fn logged_in() -> Limits {
        let mut limits = Limits::default();
        limits.pass(&message(b'R', 8)).unwrap();
        limits.pass(&message(b'Z', 5)).unwrap();
        limits
    }

    #[test]
    fn before_the_login_only_short_messages_of_its_kinds_are_believed() {
        for (tag, most) in [(b'R', 2_000), (b'v', 2_000), (b'E', 30_000), (b'N', 30_000)] {
            assert_eq!(Limits::default().pass(&header(tag, most)), Ok(()));
            for length in [most + 1, 1 << 30, 0x7FFF_FFFF, 0xFFFF_FFFF, 3, 0] {
                let refused = Limits::default().pass(&header(tag, length));
                assert_eq!(refused, Err(Strange::Length(length)), "{tag}");
            }
        }
        for garbage in ["HTTP/1.1 400", "SSH-2.0-x", "220 mail ESMTP", "D\0\0\0\x05x"] {
            assert!(Limits::default().pass(garbage.as_bytes()).is_err(), "{garbage}");
        }
    }

    #[test]
    fn a_login_does_not_go_on_for_ever() {
        let mut limits = Limits::default();
        let notices =
            (0..1_000).take_while(|_| limits.pass(&message(b'N', 10_000)).is_ok()).count();
        assert_eq!(notices, LOGIN_MAX / 10_000);
        assert_eq!(limits.pass(&header(b'N', 100_000)), Err(Strange::Length(100_000)));
    }

    #[test]
    fn a_session_answers_with_long_rows_and_nothing_without_end() {
        for (tag, most) in [(b'D', ANSWER_MAX), (b'T', ANSWER_MAX), (b'C', 30_000)] {
            assert_eq!(logged_in().pass(&header(tag, most)), Ok(()));
            let refused = logged_in().pass(&header(tag, most + 1));
            assert_eq!(refused, Err(Strange::Length(most + 1)), "{tag}");
        }
        let mut limits = logged_in();
        for _ in 0..3 {
            assert_eq!(limits.pass(&message(b'D', LOGIN_MAX)), Ok(()), "the login is over");
        }
    }

    /// However the bytes are cut, and whatever a message holds.
    #[test]
    fn messages_are_told_apart_in_pieces_of_every_size() {
        let row = [header(b'D', 4 + 9), b"R\xff\xff\xff\xff\0\0\0\0".to_vec()].concat();
        let all = [message(b'R', 8), message(b'Z', 5), row, header(b'D', ANSWER_MAX + 1)].concat();
        for size in 1..all.len() {
            let mut limits = Limits::default();
            let (last, rest) = all.split_last().unwrap();
            assert!(rest.chunks(size).all(|piece| limits.pass(piece).is_ok()), "{size}");
            assert_eq!(limits.pass(&[*last]), Err(Strange::Length(ANSWER_MAX + 1)), "{size}");
        }
    }
}
