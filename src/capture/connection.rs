//! A session in replication mode before it streams: whole messages, one command at a time.

use std::io;

use bytes::{Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::passing::{self, Passing, Taken};
use super::{Error, Malformed, READ_BUFFER_SIZE, READ_ROOM_MIN, Wire};
use crate::postgres::{Limits, ServerError};

/// A connection, and what was read from it and not yet used.
pub(super) struct Connection {
    stream: Box<dyn Wire>,
    incoming: BytesMut,
    passing: Option<Passing>,
    /// How much a stranger may send. None once the login is done: a stream has messages of up to
    /// 1 GiB.
    limits: Option<Limits>,
}

/// A message from the server.
pub(super) enum Reply {
    /// One that postgres-protocol knows.
    Message(Message),
    /// `CopyBothResponse`, which it does not know.
    CopyBoth,
}

/// A row of an answer: text columns, or NULL.
pub(super) type Row = Vec<Option<String>>;

impl Connection {
    pub(super) fn new(stream: Box<dyn Wire>) -> Connection {
        let limits = Some(Limits::default());
        Connection { stream, incoming: BytesMut::new(), passing: None, limits }
    }

    /// The login is done, and longer messages may come.
    pub(super) fn forget_limits(&mut self) {
        self.limits = None;
    }

    /// The stream, and the bytes that were read from it already.
    pub(super) fn into_parts(self) -> (Box<dyn Wire>, BytesMut) {
        (self.stream, self.incoming)
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Waits for the next message that is not a notice or a changed setting.
    pub(super) async fn receive(&mut self) -> io::Result<Reply> {
        loop {
            let message = self.next_message().await?;
            if message.first() == Some(&b'W') {
                return Ok(Reply::CopyBoth);
            }
            match Message::parse(&mut BytesMut::from(message))? {
                Some(
                    Message::NoticeResponse(_)
                    | Message::ParameterStatus(_)
                    | Message::NotificationResponse(_),
                ) => {}
                Some(message) => return Ok(Reply::Message(message)),
                None => return Err(invalid(Malformed("a message is cut short"))),
            }
        }
    }

    /// Reads until the buffer starts with a whole message, and takes it. Postgres-protocol reserves
    /// memory for the length that a header announces; it gets to see a message only when it is
    /// there. No answer to what is asked here is long.
    async fn next_message(&mut self) -> io::Result<Bytes> {
        loop {
            match passing::take(&mut self.incoming, &mut self.passing).map_err(invalid)? {
                Some(Taken::Message(message)) => return Ok(message),
                Some(Taken::Part { .. }) => {
                    return Err(invalid(Malformed("a frame before the stream")));
                }
                None => {}
            }
            if self.incoming.capacity() - self.incoming.len() < READ_ROOM_MIN {
                self.incoming.reserve(READ_BUFFER_SIZE);
            }
            let before = self.incoming.len();
            if self.stream.read_buf(&mut self.incoming).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(limits) = &mut self.limits {
                limits.pass(&self.incoming[before..])?;
            }
        }
    }

    /// Runs a replication command to its end and gives the first row of its answer. `doing` is its
    /// name in an error. The session can be used again after the server refused the command.
    pub(super) async fn command(
        &mut self,
        doing: &str,
        command: &str,
    ) -> Result<Option<Row>, Error> {
        self.send_command(command).await?;
        let mut row = None;
        let mut refused = None;
        loop {
            match self.receive().await.map_err(Error::Io)? {
                Reply::Message(Message::DataRow(body)) if row.is_none() => {
                    row = Some(read_row(&body).map_err(Error::Io)?);
                }
                Reply::Message(Message::ErrorResponse(body)) => {
                    refused = Some(ServerError::from_fields(body.fields()));
                }
                Reply::Message(Message::ReadyForQuery(_)) => break,
                Reply::Message(
                    Message::DataRow(_)
                    | Message::RowDescription(_)
                    | Message::CommandComplete(_)
                    | Message::EmptyQueryResponse,
                ) => {}
                _ => return Err(Malformed("a message that answers no command").into()),
            }
        }
        match refused {
            Some(server) => Err(Error::Command { command: doing.to_owned(), server }),
            None => Ok(row),
        }
    }

    /// Runs a command that turns the session into a stream.
    pub(super) async fn command_stream(&mut self, doing: &str, command: &str) -> Result<(), Error> {
        self.send_command(command).await?;
        match self.receive().await.map_err(Error::Io)? {
            Reply::CopyBoth => Ok(()),
            Reply::Message(Message::ErrorResponse(body)) => Err(Error::Command {
                command: doing.to_owned(),
                server: ServerError::from_fields(body.fields()),
            }),
            Reply::Message(_) => Err(Malformed("a message that starts no stream").into()),
        }
    }

    async fn send_command(&mut self, command: &str) -> Result<(), Error> {
        let mut bytes = BytesMut::new();
        frontend::query(command, &mut bytes).map_err(Error::Io)?;
        self.send(&bytes).await.map_err(Error::Io)
    }
}

fn read_row(body: &DataRowBody) -> io::Result<Row> {
    let mut row = Row::new();
    let mut ranges = body.ranges();
    while let Some(range) = ranges.next()? {
        let value = range.map(|range| body.buffer().get(range).unwrap_or_default().to_vec());
        let text = value.map(String::from_utf8).transpose();
        row.push(text.map_err(|_not_utf8| invalid(Malformed("an answer that is not UTF-8")))?);
    }
    Ok(row)
}

/// Reads a whole `ErrorResponse` message, header included.
pub(super) fn server_error(message: &Bytes) -> ServerError {
    match Message::parse(&mut BytesMut::from(message.as_ref())) {
        Ok(Some(Message::ErrorResponse(body))) => ServerError::from_fields(body.fields()),
        _ => ServerError { code: String::new(), message: "an unreadable error".to_owned() },
    }
}

/// Reads a whole `ErrorResponse` message that ends a stream. The server evaluates row filters and
/// prints values while it streams, so that what fails there may be a row's value.
pub(super) fn stream_error(message: &Bytes) -> ServerError {
    server_error(message).without_values()
}

/// Reads a whole `NoticeResponse` message, and gives it if it is the warning by which Postgres 18
/// says that it leaves out a publication, and with it every change. Before that version the stream
/// ended with an error, as it must: what is left out will never come again.
pub(super) fn skipped_publication(message: &Bytes) -> Option<ServerError> {
    match Message::parse(&mut BytesMut::from(message.as_ref())) {
        Ok(Some(Message::NoticeResponse(body))) => {
            Some(ServerError::from_fields(body.fields())).filter(|notice| notice.code == "55000")
        }
        _ => None,
    }
}

pub(super) fn invalid(malformed: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, malformed)
}
