//! How to reach Postgres: endpoints, TLS, authentication.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

/// One Postgres server, database and user, from a `postgres://` URL as libpq reads it
/// (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS>).
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Host name or address, or the folder of a Unix socket (starts with `/`).
    pub host: String,
    /// TCP port, or the number in a Unix socket's name.
    pub port: u16,
    /// User name.
    pub user: String,
    /// Password from the URL, `password_file` or a passfile.
    pub password: Option<SecretString>,
    /// Database name.
    pub database: String,
    /// `sslmode`.
    pub ssl_mode: SslMode,
    /// `sslrootcert`: PEM file of trusted authorities; `None`: the system's.
    pub ssl_root_cert: Option<PathBuf>,
    /// How long a connection attempt may take.
    pub connect_timeout: Duration,
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
