//! Failures between us and Postgres.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;

use super::hosts::{Obstacle, PassedOver, listed};
use super::passfile::PassfileError;

use crate::words::counted;

/// A connection or a query failed. No variant carries a password, a row value or a URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server could not be reached, or hung up before the login was done.
    #[error("connect to `{address}`: {source}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// `connect_timeout` passed before the login was done.
    #[error("connect to `{address}`: no answer within {seconds} s")]
    Timeout {
        /// Where.
        address: String,
        /// `connect_timeout`.
        seconds: u64,
    },
    /// None of several hosts is a primary that takes sessions.
    #[error("find the primary among {}: {}", counted(.0.len(), "host"), listed(.0))]
    NoPrimary(Vec<PassedOver>),
    /// The trusted certificates could not be read.
    #[error("read `sslrootcert` `{path}`: {reason}")]
    RootCertificates {
        /// The file, or `system`.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The certificate that we show, or its key, cannot be used.
    #[error("read `{parameter}` `{path}`: {reason}")]
    ClientCertificate {
        /// `sslcert` or `sslkey`.
        parameter: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The server refused TLS, or its certificate was not accepted.
    #[error("negotiate TLS with `{address}`: {reason}")]
    Tls {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// We gave up the login: a password is missing, a method is not supported, the server did not
    /// prove that it knows the password.
    #[error("log in to `{address}` as `{user}`: {reason}")]
    Login {
        /// Where.
        address: String,
        /// Who.
        user: String,
        /// Why.
        reason: String,
    },
    /// The file or the command that the password should come from gives none: no login was tried.
    #[error("log in to `{address}` as `{user}`: {source}")]
    Password {
        /// Where.
        address: String,
        /// Who.
        user: String,
        /// Why.
        source: Box<PassfileError>,
    },
    /// The server refused the login.
    #[error("log in to `{address}` as `{user}`: {server}")]
    Refused {
        /// Where.
        address: Box<str>,
        /// Who.
        user: Box<str>,
        /// To which database.
        database: Box<str>,
        /// The error that the server sent.
        server: ServerError,
    },
    /// Between us and the server is a pooler that lends one backend to several sessions. No setting
    /// was changed: it would have become one of the application's.
    #[error(
        "log in to `{address}`: that is a pooler that lends one backend to several sessions: what \
         was read on one need not hold on another"
    )]
    Pooler {
        /// Where.
        address: String,
    },
    /// The server refused a query.
    #[error("query Postgres: {0}")]
    Query(ServerError),
    /// The connection is gone.
    #[error("query Postgres: connection lost: {0}")]
    Lost(String),
    /// An answer or a parameter does not have the type that was expected.
    #[error("query Postgres: {0}")]
    Unexpected(String),
}

impl Error {
    /// The SQLSTATE, if it was the server that refused
    /// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
    #[must_use]
    pub fn sql_state(&self) -> Option<&str> {
        match self {
            Error::Refused { server, .. } | Error::Query(server) => Some(&server.code),
            _ => None,
        }
    }

    /// The role and the database, if the server refused the login for a right that the role lacks:
    /// to connect to that database, or, of a replication connection, to replicate.
    #[must_use]
    pub fn lacks_right(&self) -> Option<(&str, &str)> {
        match self {
            Error::Refused { user, database, server, .. } if server.code == "42501" => {
                Some((user, database))
            }
            _ => None,
        }
    }
}

impl Error {
    /// Whether a person has to change something, at the server or in the configuration: trying the
    /// same again will not help. A server that is down or still starting is not of that kind.
    #[must_use]
    pub fn is_rejection(&self) -> bool {
        match self {
            Error::RootCertificates { .. }
            | Error::ClientCertificate { .. }
            | Error::Tls { .. }
            | Error::Login { .. }
            | Error::Pooler { .. } => true,
            Error::Password { source, .. } => source.needs_a_person(),
            Error::Refused { server, .. } | Error::Query(server) => server.is_rejection(),
            // While one of them may come to be the primary there is something to wait for.
            Error::NoPrimary(hosts) => {
                hosts.iter().any(PassedOver::needs_a_person)
                    && !hosts.iter().any(PassedOver::may_come)
            }
            Error::Connect { .. }
            | Error::Timeout { .. }
            | Error::Lost(_)
            | Error::Unexpected(_) => false,
        }
    }
}

impl Error {
    /// Whether nobody was there, or not yet: at the server's place, or at that of the service that
    /// gives tokens.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Error::Connect { .. } | Error::Timeout { .. } => true,
            Error::Password { source, .. } => !source.needs_a_person(),
            Error::NoPrimary(hosts) => hosts.iter().all(|host| host.obstacle == Obstacle::Away),
            // Class 57: the server starts, stops or recovers.
            error => error.sql_state().is_some_and(|code| code.starts_with("57")),
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    /// Sorts a failed query. The parts of a server error that may quote rows (`DETAIL`, `WHERE`)
    /// are dropped.
    fn from(error: tokio_postgres::Error) -> Error {
        if let Some(server) = error.as_db_error() {
            return Error::Query(ServerError::from(server));
        }
        match error.source().and_then(|cause| cause.downcast_ref::<io::Error>()) {
            Some(cause) => Error::Lost(cause.to_string()),
            None if error.is_closed() => Error::Lost(error.to_string()),
            None => Error::Unexpected(error.to_string()),
        }
    }
}

/// An `ErrorResponse` or a `NoticeResponse` of the server, without what may quote rows
/// (<https://www.postgresql.org/docs/current/protocol-error-fields.html>).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {code})")]
pub struct ServerError {
    /// SQLSTATE, five characters.
    pub code: String,
    /// The primary message.
    pub message: String,
}

impl ServerError {
    /// Class 28 (invalid authorization), an unknown database, a missing privilege.
    pub(crate) fn is_rejection(&self) -> bool {
        self.code.starts_with("28") || self.code == "3D000" || self.code == "42501"
    }

    /// Replaces the message of an error that is about a row's data, or comes of the application's
    /// own code (classes 22, 23, P0): it may quote a value (I9).
    pub(crate) fn without_values(self) -> ServerError {
        let may_quote = ["22", "23", "P0"].iter().any(|class| self.code.starts_with(class));
        let ServerError { code, mut message } = self;
        if may_quote {
            "an error about the data of a row".clone_into(&mut message);
        }
        ServerError { code, message }
    }

    /// Reads the code and the primary message; a field that is absent or malformed is empty.
    pub(crate) fn from_fields(mut fields: ErrorFields<'_>) -> ServerError {
        let mut error = ServerError { code: String::new(), message: String::new() };
        while let Ok(Some(field)) = fields.next() {
            match field.type_() {
                b'C' => error.code = text(field.value_bytes()),
                b'M' => error.message = text(field.value_bytes()),
                _ => {}
            }
        }
        error
    }
}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(error: &tokio_postgres::error::DbError) -> ServerError {
        ServerError { code: error.code().code().to_owned(), message: error.message().to_owned() }
    }
}

/// A message before the login may be in any encoding; bytes that are not UTF-8 are escaped.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}
