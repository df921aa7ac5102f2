//! How to reach Postgres: endpoints, TLS, passwords, and the connection for ordinary SQL.
//!
//! Both of walsweep's connections, the SQL one here and the replication one in
//! [`capture`](crate::capture), start from the same [`Endpoint`] and get their bytes from the same
//! private `open`, so `sslmode` means one thing. What follows the handshake differs: SQL is spoken
//! by tokio-postgres, which cannot speak the replication protocol.

mod connect;
mod error;
mod history;
mod hosts;
mod limits;
mod login;
mod passfile;
mod state;
pub(crate) mod statement;
mod stream;
mod tls;
mod url;
#[cfg(test)]
mod passfile_tests;
#[cfg(test)]
mod url_tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::password;

pub(crate) use connect::cancel;
pub(crate) use connect::{Security, open, within};
pub use connect::{Sql, connect_sql};
pub use error::{Error, ServerError};
pub use history::{History, Server, identify};
pub(crate) use hosts::{Attempt, IN_RECOVERY, Search, listed};
pub use hosts::{Obstacle, PassedOver};
pub(crate) use limits::Limits;
pub(crate) use login::Login;
pub use passfile::PassfileError;
pub(crate) use state::{AS_ROLE, BACKEND, again, begin};
pub use stream::Stream;
pub use url::ParseError;

/// One Postgres server, or the primary among several, with database and user, from a `postgres://`
/// URL as libpq reads it
/// (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS>).
///
/// [`Display`](fmt::Display) prints `user@host:port/database` and never the password; so does
/// [`Debug`].
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Host name or address, or the folder of a Unix socket (starts with `/`).
    pub host: String,
    /// TCP port, or the number in a Unix socket's name.
    pub port: u16,
    /// More hosts and ports, to be tried in this order after the first one; the primary among all
    /// of them is meant.
    pub others: Vec<(String, u16)>,
    /// User name.
    pub user: String,
    /// Where the password comes from, for each login anew; with [`password::Source::None`], from
    /// where libpq takes it.
    pub password: password::Source,
    /// `passfile`: where [`Endpoint::load_password`] looks first.
    pub passfile: Option<PathBuf>,
    /// Why [`Endpoint::load_password`] did not use `~/.pgpass`, if it is there and cannot be used.
    pub ignored_passfile: Option<Arc<PassfileError>>,
    /// Database name.
    pub database: String,
    /// `sslmode`.
    pub ssl_mode: SslMode,
    /// `sslrootcert`: PEM file of trusted authorities; `None`: the system's.
    pub ssl_root_cert: Option<PathBuf>,
    /// `sslcert` and `sslkey`.
    pub client_certificate: Option<ClientCertificate>,
    /// `channel_binding`.
    pub channel_binding: ChannelBinding,
    /// How long a connection attempt may take.
    pub connect_timeout: Duration,
}

impl Endpoint {
    /// Whether the server is reached by a Unix socket.
    #[must_use]
    pub fn is_unix_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    /// Where the server listens, for messages: `host:port`, or the path of the socket; of several
    /// hosts all, with commas.
    #[must_use]
    pub fn address(&self) -> String {
        let all: Vec<String> = self.places().map(|(host, port)| address_of(host, *port)).collect();
        all.join(",")
    }

    /// Whether there is a choice among several hosts.
    #[must_use]
    pub fn is_several(&self) -> bool {
        !self.others.is_empty()
    }

    /// Each host as an endpoint of its own, in order.
    pub fn each(&self) -> impl Iterator<Item = Endpoint> {
        self.places().map(|(host, port)| Endpoint {
            host: host.clone(),
            port: *port,
            others: Vec::new(),
            ..self.clone()
        })
    }

    /// The host of this address alone; all of them if it is none of them.
    #[must_use]
    pub fn only(&self, address: &str) -> Endpoint {
        self.each().find(|one| one.address() == address).unwrap_or_else(|| self.clone())
    }

    fn places(&self) -> impl Iterator<Item = (&String, &u16)> {
        let others = self.others.iter().map(|(host, port)| (host, port));
        std::iter::once((&self.host, &self.port)).chain(others)
    }
}

fn address_of(host: &str, port: u16) -> String {
    if host.starts_with('/') {
        format!("{}/.s.PGSQL.{port}", host.trim_end_matches('/'))
    } else if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}/{}", self.user, self.address(), self.database)
    }
}

/// Who we are, shown to a server that asks for a certificate; both files are read at each login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM file with the certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// PEM file with its key, not encrypted; nobody but its owner may read it.
    pub key: PathBuf,
}

/// libpq's `sslmode`
/// (<https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it, unverified.
    Prefer,
    /// TLS; unverified unless `sslrootcert` is given.
    Require,
    /// TLS; the certificate must come from a trusted authority.
    VerifyCa,
    /// TLS; also the host name must be the certificate's.
    VerifyFull,
}

/// libpq's `channel_binding`: whether SCRAM must prove that no one sits between us and the server
/// (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-CHANNEL-BINDING>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never used.
    Disable,
    /// Used if the server and its certificate allow it.
    Prefer,
    /// A login without it fails.
    Require,
}
