//! A connection to a Redis server, as the configuration describes it.

use std::path::PathBuf;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, TlsCertificates, cmd};
use secrecy::ExposeSecret;

use super::node::{Error, Kind};
use super::standalone::classify;
use crate::config;

/// The client library's default is 1 s, which a server that is far or busy misses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The client library's default is 500 ms. A script, a large DEL or a fork of somebody else can
/// hold a server for longer; giving up then would only repeat the work.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why no connection was made. No variant holds a password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// `redis.ca_file` could not be read.
    #[error("read `redis.ca_file` `{}`: {source}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The server could not be reached, or refused the login.
    #[error("connect to redis: {0}")]
    Redis(Error),
}

impl From<ConnectError> for Error {
    fn from(error: ConnectError) -> Error {
        match error {
            ConnectError::CaFile { .. } => Error::new(Kind::Io, error.to_string()),
            ConnectError::Redis(error) => error,
        }
    }
}

/// Connects, logs in and selects the database of the URL. The connection does not connect again by
/// itself: whoever answers next must show its watermark first (I7).
///
/// # Errors
///
/// See [`ConnectError`].
pub async fn connect(redis: &config::Redis) -> Result<MultiplexedConnection, ConnectError> {
    let failed = |error| ConnectError::Redis(classify(&error));
    // The client library brings no cryptography. A provider that is installed already is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = client(redis)?;
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT));
    let mut connection =
        client.get_multiplexed_async_connection_with_config(&config).await.map_err(failed)?;
    // Only a name for `CLIENT LIST`; an ACL may forbid it.
    let mut name = cmd("CLIENT");
    name.arg("SETNAME").arg("walsweep");
    drop(name.exec_async(&mut connection).await);
    Ok(connection)
}

fn client(redis: &config::Redis) -> Result<Client, ConnectError> {
    let failed = |error| ConnectError::Redis(classify(&error));
    let info = redis.url.as_str().into_connection_info().map_err(failed)?;
    // Small requests must not wait for the acknowledgement of the one before.
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    let mut settings = info.redis_settings().clone();
    if let Some(password) = &redis.password {
        settings = settings.set_password(password.expose_secret());
    }
    let info = info.set_tcp_settings(tcp).set_redis_settings(settings);
    let Some(path) = &redis.ca_file else { return Client::open(info).map_err(failed) };
    let root_cert = std::fs::read(path)
        .map_err(|source| ConnectError::CaFile { path: path.clone(), source })?;
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(root_cert) };
    Client::build_with_tls(info, certificates).map_err(failed)
}
