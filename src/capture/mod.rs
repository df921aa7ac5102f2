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
//! - Memory is reserved for bytes that arrived, never for a length that was announced, and a
//!   message that is longer than 1 MiB is never whole in memory (I6).
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
mod passing;
mod pause;
mod replication;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use crate::lsn::Lsn;
use passing::{Passing, Taken};
use pause::Pause;

#[cfg(doc)]
use crate::postgres::Endpoint;

pub use error::{Error, SlotProblem};
pub use frame::{Frame, Malformed};
pub use replication::{
    Identity, Replication, Run, SlotKind, StreamOptions, Streaming, publication_names,
};

/// A read brings at most this much, some 3000 row changes; the kernel's buffer is rarely larger.
const READ_BUFFER_SIZE: usize = 256 * 1024;

/// With less room than this the buffer is grown before a read, so that one read is worth its call.
const READ_ROOM_MIN: usize = 64 * 1024;

/// A status update is 39 bytes. A server that takes none for this long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The carrier of the bytes: a socket, or one end of a pipe in a simulation.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A replication slot that is being streamed: the connection, in `COPY BOTH` mode.
pub struct Slot {
    stream: Box<dyn Wire>,
    incoming: BytesMut,
    /// A long message that is being read.
    passing: Option<Passing>,
    /// The rest of a status update that was cancelled half-way.
    outgoing: BytesMut,
    /// A read that failed after others that brought bytes; told when those are used.
    failed: Option<io::Error>,
    pause: Pause,
    is_shared: bool,
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
            passing: None,
            outgoing: BytesMut::new(),
            failed: None,
            pause: Pause::default(),
            is_shared: false,
            confirmed: Lsn::ZERO,
            last_received: Instant::now(),
        }
    }

    /// Waits for bytes, and reads at least one more into the buffer; there may be new frames in
    /// [`Slot::buffered`] afterwards. Returns at once if a whole message is in the buffer already,
    /// or a piece of a long one, as after the answer that began the stream. While much comes in
    /// small pieces the thread is blocked for a moment first, on purpose: see [`pause`].
    /// Returns whether so much came that the socket may hold more.
    ///
    /// # Errors
    /// The connection failed or was closed, or what stands in the buffer is not the protocol.
    pub async fn fill(&mut self) -> Result<bool, Error> {
        if passing::is_ready(&self.incoming, self.passing.as_ref())? {
            return Ok(false);
        }
        if let Some(error) = self.failed.take() {
            return Err(Error::Io(error));
        }
        while self.pause.take(self.is_shared) {
            yield_now().await;
        }
        if self.incoming.capacity() - self.incoming.len() < READ_ROOM_MIN {
            self.incoming.reserve(READ_BUFFER_SIZE);
        }
        let size = self.read_all().await?;
        self.last_received = Instant::now();
        self.pause.after_read(self.last_received, size);
        Ok(self.incoming.len() == self.incoming.capacity())
    }

    /// Waits for bytes, and takes all that are there, as far as the buffer has room: TLS gives one
    /// record in a read, which is one change, and the pause is for a socket that was emptied.
    async fn read_all(&mut self) -> Result<usize, Error> {
        let (stream, incoming, failed) = (&mut self.stream, &mut self.incoming, &mut self.failed);
        let before = incoming.len();
        let read = poll_fn(|context| {
            while incoming.len() < incoming.capacity() {
                let read = pin!(stream.read_buf(incoming)).poll(context);
                match read {
                    Poll::Ready(Ok(size)) if size > 0 => {}
                    // The end will be met again by the next read, an error will not.
                    read @ (Poll::Ready(_) | Poll::Pending) if incoming.len() == before => {
                        return read;
                    }
                    Poll::Ready(Ok(_)) | Poll::Pending => break,
                    Poll::Ready(Err(error)) => {
                        *failed = Some(error);
                        break;
                    }
                }
            }
            Poll::Ready(Ok(incoming.len() - before))
        });
        match read.await {
            Ok(0) => Err(Error::Closed),
            Ok(size) => Ok(size),
            Err(error) => Err(Error::Io(error)),
        }
    }

    /// The next whole frame that is already in memory, or the next piece of a long one; `None` if
    /// there is none. No I/O.
    ///
    /// # Errors
    /// What stands in the buffer is the server's last word, or is not the protocol.
    pub fn buffered(&mut self) -> Result<Option<Frame>, Error> {
        while let Some(taken) = passing::take(&mut self.incoming, &mut self.passing)? {
            let mut message = match taken {
                Taken::Message(message) => message,
                Taken::Part { payload, left } => return Ok(Some(Frame::Part { payload, left })),
            };
            let tag = message.first().copied();
            match tag {
                Some(b'd') => {
                    self.pause.count_message();
                    message.advance(frame::HEADER_SIZE);
                    return Ok(Some(Frame::parse(message)?));
                }
                Some(b'E') => return Err(Error::Stream(connection::stream_error(&message))),
                Some(b'c' | b'C' | b'Z') => return Err(Error::Ended),
                Some(b'N') => {
                    if let Some(warning) = connection::skipped_publication(&message) {
                        return Err(Error::LeavesOut(warning));
                    }
                }
                // Changed settings and NOTIFY may come at any time and mean nothing here.
                Some(b'S' | b'A') => {}
                _ => return Err(Malformed("a message that has no place in the stream").into()),
            }
        }
        Ok(None)
    }

    /// Waits for the next frame, or the next piece of a long one.
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

    /// Until when to wait, at most, for what was read last to be through: the next
    /// [`Slot::fill`] blocks the thread, and what is on its way with it. `None` for no time.
    #[must_use]
    pub fn rests_until(&self) -> Option<Instant> {
        Some(self.pause.rest()).filter(|rest| !rest.is_zero()).map(|rest| self.last_received + rest)
    }

    /// Whether the thread has other work now, which gets turns while [`Slot::fill`] blocks it.
    pub fn shares_thread(&mut self, is_shared: bool) {
        self.is_shared = is_shared;
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
        while let Some(taken) = passing::take(&mut self.incoming, &mut self.passing)? {
            let Taken::Message(message) = taken else { continue };
            match message.first() {
                Some(b'Z') => return Ok(true),
                Some(b'E') => return Err(Error::Stream(connection::stream_error(&message))),
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
