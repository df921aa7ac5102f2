//! Write-ahead log in, confirmations out.
//!
//! Takes: an [`Endpoint`], the names of a slot and a publication. Gives: [`Frame`]s whose payloads
//! are slices of the read buffer. Never knows: what a payload means, transactions, Redis, when a
//! position is safe to confirm.
//!
//! Invariants:
//! - [`Slot`] is the only holder of the replication connection.
//! - The confirmed position never falls (I2), and nothing is confirmed that was not passed to
//!   [`Slot::confirm`]: there is no automatic reply of any kind.
//! - Memory is reserved for bytes that arrived, never for a length that was announced (I6).
//! - [`Slot::next`], [`Slot::fill`] and [`Slot::send_status`] can be dropped at any await point
//!   and lose nothing, so they may stand in a `select!`.
//!
//! Why our own: when a position may be confirmed is what walsweep is about. The libraries that
//! speak this protocol decide it themselves (replies to keepalives, reconnects, a channel between
//! socket and consumer), and tokio-postgres does not speak it at all. What is needed is small: a
//! login, four commands, and the frames of `COPY BOTH`
//! (<https://www.postgresql.org/docs/current/protocol-replication.html>).

mod connection;
mod error;
mod frame;
mod login;
mod pause;
mod replication;

use std::fmt;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::lsn::Lsn;
use pause::Pause;

#[cfg(doc)]
use crate::postgres::Endpoint;

pub use error::{Error, SlotProblem};
pub use frame::{Frame, Malformed};
pub use replication::{Identity, Replication, StreamOptions};

/// A read brings at most this much, some 3000 row changes; the kernel's buffer is rarely larger.
const READ_BUFFER_SIZE: usize = 256 * 1024;

/// With less room than this the buffer is grown before a read, so that one read is worth its call.
const READ_ROOM_MIN: usize = 64 * 1024;

/// A status update is 39 bytes. A server that takes none for this long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// What carries the bytes: a socket, or one end of a pipe in a simulation.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A replication slot that is being streamed: the connection, in `COPY BOTH` mode.
pub struct Slot {
    stream: Box<dyn Wire>,
    incoming: BytesMut,
    /// What is left of a status update that was cancelled half-way.
    outgoing: BytesMut,
    pause: Pause,
    confirmed: Lsn,
    last_received: Instant,
}

impl Slot {
    /// Streams over a connection on which the server already answered `CopyBothResponse`.
    #[must_use]
    pub fn over(stream: impl Wire + 'static) -> Slot {
        Slot::resume(Box::new(stream), BytesMut::new())
    }

    /// As [`Slot::over`], with bytes that were read together with that answer.
    fn resume(stream: Box<dyn Wire>, incoming: BytesMut) -> Slot {
        Slot {
            stream,
            incoming,
            outgoing: BytesMut::new(),
            pause: Pause::default(),
            confirmed: Lsn::ZERO,
            last_received: Instant::now(),
        }
    }

    /// Waits for bytes, and reads at least one more into the buffer; there may be new frames in
    /// [`Slot::buffered`] afterwards. While a backlog streams in small pieces the thread is blocked
    /// for a moment first, on purpose: see [`pause`].
    ///
    /// # Errors
    /// The connection failed or was closed.
    pub async fn fill(&mut self) -> Result<(), Error> {
        self.pause.take();
        if self.incoming.capacity() - self.incoming.len() < READ_ROOM_MIN {
            self.incoming.reserve(READ_BUFFER_SIZE);
        }
        let size = self.stream.read_buf(&mut self.incoming).await.map_err(Error::Io)?;
        if size == 0 {
            return Err(Error::Closed);
        }
        self.last_received = Instant::now();
        self.pause.after_read(self.last_received, size);
        Ok(())
    }

    /// The next whole frame that is already in memory; `None` if there is none. No I/O.
    ///
    /// # Errors
    /// What stands in the buffer is the server's last word, or is not the protocol.
    pub fn buffered(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            let Some(length) = frame::message_length(&self.incoming)? else {
                return Ok(None);
            };
            if self.incoming.len() < length {
                return Ok(None);
            }
            let mut message = self.incoming.split_to(length).freeze();
            let tag = message.first().copied();
            match tag {
                Some(b'd') => {
                    self.pause.count_message();
                    message.advance(frame::HEADER_SIZE);
                    return Ok(Some(Frame::parse(message)?));
                }
                Some(b'E') => return Err(Error::Stream(connection::server_error(&message))),
                Some(b'c' | b'C' | b'Z') => return Err(Error::Ended),
                Some(b'N') => {
                    if let Some(warning) = connection::skipped_publication(&message) {
                        return Err(Error::Stream(warning));
                    }
                }
                // Changed settings and NOTIFY may come at any time and mean nothing here.
                Some(b'S' | b'A') => {}
                _ => return Err(Malformed("a message that has no place in the stream").into()),
            }
        }
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    /// As [`Slot::fill`] and [`Slot::buffered`].
    pub async fn next(&mut self) -> Result<Frame, Error> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    /// Remembers the position that the next status update reports as written, flushed and applied.
    /// A position below the last one is ignored (I2).
    pub fn confirm(&mut self, lsn: Lsn) {
        self.confirmed = self.confirmed.max(lsn);
    }

    /// The position last given to [`Slot::confirm`]; [`Lsn::ZERO`], which the server ignores,
    /// before that.
    #[must_use]
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// When a byte last came from the server.
    #[must_use]
    pub fn last_received(&self) -> Instant {
        self.last_received
    }

    /// Sends a standby status update with the confirmed position; with `reply_requested` the server
    /// answers with a keepalive at once.
    ///
    /// # Errors
    /// The connection failed, or the server takes no bytes for ten seconds.
    pub async fn send_status(&mut self, reply_requested: bool) -> Result<(), Error> {
        bounded(SEND_TIMEOUT, async {
            self.flush().await?;
            frame::put_status(self.confirmed, clock(), reply_requested, &mut self.outgoing);
            self.flush().await
        })
        .await
    }

    /// Ends the stream in order: a last status update, the `CopyDone` of both sides, the farewell.
    /// When it returns `Ok` the slot has the confirmed position. Frames still on their way are
    /// dropped; they will come again.
    ///
    /// # Errors
    /// The connection failed, or the server did not finish within `patience`: it may be in the
    /// middle of a large transaction, which it does not interrupt.
    pub async fn close(mut self, patience: Duration) -> Result<(), Error> {
        bounded(patience, async {
            self.send_status(false).await?;
            frontend::copy_done(&mut self.outgoing);
            self.flush().await?;
            while !self.command_is_over()? {
                self.fill().await?;
            }
            frontend::terminate(&mut self.outgoing);
            self.flush().await?;
            self.stream.shutdown().await.map_err(Error::Io)
        })
        .await
    }

    /// Drops what is buffered; whether the server is ready for the next command.
    fn command_is_over(&mut self) -> Result<bool, Error> {
        while let Some(length) = frame::message_length(&self.incoming)? {
            if self.incoming.len() < length {
                break;
            }
            let message: Bytes = self.incoming.split_to(length).freeze();
            match message.first() {
                Some(b'Z') => return Ok(true),
                Some(b'E') => return Err(Error::Stream(connection::server_error(&message))),
                _ => {}
            }
        }
        Ok(false)
    }

    async fn flush(&mut self) -> Result<(), Error> {
        while self.outgoing.has_remaining() {
            let size = self.stream.write_buf(&mut self.outgoing).await.map_err(Error::Io)?;
            if size == 0 {
                return Err(Error::Io(io::ErrorKind::WriteZero.into()));
            }
        }
        self.stream.flush().await.map_err(Error::Io)
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Slot")
            .field("confirmed", &self.confirmed)
            .field("buffered_bytes", &self.incoming.len())
            .finish_non_exhaustive()
    }
}

async fn bounded(
    patience: Duration,
    work: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    match timeout(patience, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::Stalled { seconds: patience.as_secs_f32() }),
    }
}

/// Microseconds since 2000-01-01 00:00 UTC, as the protocol counts them.
fn clock() -> i64 {
    const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);
    let now = SystemTime::now().duration_since(UNIX_EPOCH + POSTGRES_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
