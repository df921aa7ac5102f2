//! Failures of the replication connection.

use std::io;

use super::frame::Malformed;
use crate::postgres::{self, Attempt, Obstacle, ServerError};

/// The replication connection failed. No variant carries a password or a row value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No session, or no login.
    #[error(transparent)]
    Connect(#[from] postgres::Error),
    /// The server refused a command.
    #[error("{command}: {server}")]
    Command {
        /// The request, as verb and object.
        command: String,
        /// The error that the server sent.
        server: ServerError,
    },
    /// The server ended the stream with an error.
    #[error("read replication stream: {0}")]
    Stream(ServerError),
    /// The server leaves a publication out of the stream, and with it every change: Postgres 18
    /// only warns.
    #[error("read replication stream: {0}")]
    LeavesOut(ServerError),
    /// The server ended the stream in order, as it does when it shuts down.
    #[error("read replication stream: the server ended it")]
    Ended,
    /// The connection was closed without a word.
    #[error("read replication stream: the server closed the connection")]
    Closed,
    /// The connection failed.
    #[error("talk to the replication server: {0}")]
    Io(#[source] io::Error),
    /// The server sent something that is not the protocol.
    #[error("read replication stream: {0}")]
    Malformed(#[from] Malformed),
    /// The server did not do its part in time.
    #[error("talk to the replication server: no progress within {seconds} s")]
    Stalled {
        /// How long it had.
        seconds: f32,
    },
}

/// A problem with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotProblem {
    /// Another process streams it (SQLSTATE 55006).
    Active,
    /// There is none of this name (42704).
    Missing,
    /// The server gave up the log that it needs (55000). Known by the English message, which
    /// `lc_messages` can change; `pg_replication_slots.wal_status` says it in every language.
    Invalidated,
}

impl Error {
    /// The SQLSTATE, if it was the server that refused.
    #[must_use]
    pub fn sql_state(&self) -> Option<&str> {
        match self {
            Error::Connect(error) => error.sql_state(),
            Error::Command { server, .. } | Error::Stream(server) | Error::LeavesOut(server) => {
                Some(&server.code)
            }
            _ => None,
        }
    }

    /// Gives the problem with the slot, if that is why a command failed. A stream that breaks off
    /// names other objects by the same codes, such as a missing publication.
    #[must_use]
    pub fn slot_problem(&self) -> Option<SlotProblem> {
        let Error::Command { server, .. } = self else {
            return None;
        };
        match server.code.as_str() {
            "55006" => Some(SlotProblem::Active),
            "42704" => Some(SlotProblem::Missing),
            "55000" if is_about_invalidation(&server.message) => Some(SlotProblem::Invalidated),
            _ => None,
        }
    }

    /// Whether the server broke off because it cannot make sense of its own log (SQLSTATE XX000).
    /// Seen with Postgres 15.18: a slot that is created while one transaction truncates a table and
    /// others run may lack that TRUNCATE, and no later try gets past the next change of the table.
    #[must_use]
    pub fn is_undecodable(&self) -> bool {
        matches!(self, Error::Stream(server) if server.code == "XX000")
    }

    /// Whether it may be what the slot holds that the server, or we, cannot get past, so that each
    /// further try from the same position ends alike: the server said so in the stream, or what it
    /// sent is not the protocol. Not what an operator does (SQLSTATE class 57), nor a lost
    /// connection. Seen besides XX000: 42704, of a publication that was dropped and created again
    /// (Postgres 14 to 17; 18 warns), for the server looks it up as of the change that it decodes.
    #[must_use]
    pub fn blames_slot(&self) -> bool {
        match self {
            Error::Stream(server) => !server.code.starts_with("57"),
            Error::LeavesOut(_) | Error::Malformed(_) => true,
            Error::Connect(_)
            | Error::Command { .. }
            | Error::Ended
            | Error::Closed
            | Error::Io(_)
            | Error::Stalled { .. } => false,
        }
    }

    /// Whether the server found no publication when the change was made that it decodes: up to
    /// version 17 by SQLSTATE 42704.
    #[must_use]
    pub fn lacks_publication(&self) -> bool {
        match self {
            Error::Stream(server) => server.code == "42704",
            Error::LeavesOut(_) => true,
            _ => false,
        }
    }

    /// Whether it was a pooler that refused: it does not know the startup parameter `replication`
    /// (`PgBouncer` 08P01, RDS Proxy 0A000), or dropped it and so takes a replication command for
    /// SQL (42601); or it knows no transactions (08P01).
    #[must_use]
    pub fn is_pooler(&self) -> bool {
        match self {
            Error::Connect(error) => matches!(error.sql_state(), Some("08P01" | "0A000")),
            Error::Command { command, server } => {
                (server.code == "08P01" && command.starts_with("set the session"))
                    || (server.code == "42601" && command.starts_with("identify"))
            }
            _ => false,
        }
    }

    /// Whether a person has to change something, at the server or in the configuration: trying the
    /// same again will not help.
    #[must_use]
    pub fn is_rejection(&self) -> bool {
        match self {
            Error::Connect(error) => error.is_rejection(),
            Error::Command { server, .. } | Error::Stream(server) => server.is_rejection(),
            _ => false,
        }
    }
}

impl Attempt for Error {
    fn obstacle(&self) -> Obstacle {
        match self {
            error if error.is_pooler() => Obstacle::Misfit,
            Error::Connect(error) => error.obstacle(),
            error if error.is_rejection() => Obstacle::Misfit,
            _ => Obstacle::Busy,
        }
    }

    fn is_ours(&self) -> bool {
        matches!(self, Error::Connect(error) if error.is_ours())
    }

    fn is_of_password(&self) -> bool {
        matches!(self, Error::Connect(error) if error.is_of_password())
    }
}

/// The words of Postgres 14 and 15, of 16 and 17, and of 18.
fn is_about_invalidation(message: &str) -> bool {
    [
        "cannot read from logical replication slot",
        "can no longer get changes from replication slot",
        "can no longer access replication slot",
    ]
    .iter()
    .any(|words| message.starts_with(words))
}
