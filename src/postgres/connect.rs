//! From an endpoint to a stream that can log in, and to a session for SQL.

use std::future::Future;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use secrecy::ExposeSecret;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_postgres::CancelToken;
use tokio_postgres::config::{self, SslNegotiation};
use tokio_rustls::TlsConnector;

use super::limits::{Limited, Strange};
use super::stream::{Established, Stream};
use super::{
    ChannelBinding, Endpoint, Error, IN_RECOVERY, Login, PassedOver, Search, ServerError, SslMode,
    state, tls,
};

/// Kernel probes find a peer that vanished without a word, in about half a minute, even while
/// nobody is waiting for it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// How long [`Sql::close`] waits for the farewell to be sent.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The words of tokio-postgres when the server wants a password that it was not given.
const DRIVER_WITHOUT_PASSWORD: &str = "password missing";

/// How an attempt to connect treats TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    Plain,
    TlsIfOffered,
    Tls,
}

impl Security {
    /// Gives the security of the first attempt. Unix sockets never use TLS, whatever `sslmode`
    /// says.
    pub(crate) fn first(endpoint: &Endpoint) -> Security {
        match endpoint.ssl_mode {
            _ if endpoint.is_unix_socket() => Security::Plain,
            SslMode::Disable => Security::Plain,
            SslMode::Prefer => Security::TlsIfOffered,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Security::Tls,
        }
    }

    /// Whether, as in libpq, `sslmode=prefer` goes on without TLS after this error: the handshake
    /// failed, or `pg_hba.conf` wants a connection without TLS (SQLSTATE 28000).
    pub(crate) fn may_go_plain(self, error: &Error) -> bool {
        self == Security::TlsIfOffered
            && match error {
                Error::Tls { .. } => true,
                Error::Refused { server, .. } => server.code == "28000",
                _ => false,
            }
    }
}

/// Bounds a whole attempt to connect, login included, by `connect_timeout`.
pub(crate) async fn within<T, E: From<Error>>(
    endpoint: &Endpoint,
    attempt: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match tokio::time::timeout(endpoint.connect_timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(E::from(Error::Timeout {
            address: endpoint.address(),
            seconds: endpoint.connect_timeout.as_secs(),
        })),
    }
}

/// Connects, and negotiates TLS
/// (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL>).
pub(crate) async fn open(endpoint: &Endpoint, security: Security) -> Result<Stream, Error> {
    let failed = |source| Error::Connect { address: endpoint.address(), source };
    if endpoint.is_unix_socket() {
        return UnixStream::connect(endpoint.address()).await.map(Stream::Unix).map_err(failed);
    }
    let tls = match security {
        Security::Plain => None,
        Security::TlsIfOffered | Security::Tls => Some(tls::client_config(endpoint).await?),
    };
    let stream =
        TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(failed)?;
    match tls {
        None => Ok(Stream::Tcp(stream)),
        Some(config) => negotiate(endpoint, security, stream, config).await,
    }
}

async fn negotiate(
    endpoint: &Endpoint,
    security: Security,
    mut stream: TcpStream,
    config: Arc<rustls::ClientConfig>,
) -> Result<Stream, Error> {
    let connect_failed = |source| Error::Connect { address: endpoint.address(), source };
    let tls_failed = |reason: String| Error::Tls { address: endpoint.address(), reason };
    let mut request = bytes::BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(connect_failed)?;
    // Exactly one byte is read, so that nothing sent in the clear can be taken for TLS
    // (CVE-2021-23222).
    match stream.read_u8().await.map_err(connect_failed)? {
        b'S' => {}
        b'N' if security == Security::TlsIfOffered => return Ok(Stream::Tcp(stream)),
        b'N' => return Err(tls_failed("the server does not offer TLS".to_owned())),
        _ => return Err(tls_failed("the server does not speak the Postgres protocol".to_owned())),
    }
    let name = ServerName::try_from(endpoint.host.clone())
        .map_err(|error| tls_failed(format!("host is not a name for TLS: {error}")))?;
    match TlsConnector::from(config).connect(name, stream).await {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
        Err(error) => Err(tls_failed(error.to_string())),
    }
}

/// A session for SQL. It dereferences to [`tokio_postgres::Client`], whose methods are the API;
/// their errors turn into [`Error`] by `?`. Dropping it ends the connection.
#[derive(Debug)]
pub struct Sql {
    client: tokio_postgres::Client,
    address: String,
    passed_over: Vec<PassedOver>,
    driver: Driver,
}

/// The task that moves the session's bytes; it ends with its owner.
#[derive(Debug)]
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Sql {
    /// Gives the session the role's own view: the `search_path` and whatever else decides what the
    /// text of a lookup's query means. From here on only qualified names of ours are safe, also
    /// those of operators.
    ///
    /// # Errors
    /// The server refused, or the connection is lost.
    pub async fn act_as_role(&self) -> Result<(), Error> {
        Ok(self.client.batch_execute(state::AS_ROLE).await?)
    }

    /// The address that it is connected to, which [`Endpoint::only`] takes: one host, also where
    /// the endpoint named several.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The hosts that were tried before it, where the endpoint named several.
    #[must_use]
    pub fn passed_over(&self) -> &[PassedOver] {
        &self.passed_over
    }

    /// Says goodbye to the server, which otherwise logs a lost connection. Takes at most a second.
    pub async fn close(self) {
        let Sql { client, mut driver, .. } = self;
        drop(client);
        // Whether the farewell arrived or not, the session is over.
        drop(tokio::time::timeout(CLOSE_TIMEOUT, &mut driver.0).await);
    }
}

impl Deref for Sql {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &tokio_postgres::Client {
        &self.client
    }
}

impl DerefMut for Sql {
    fn deref_mut(&mut self) -> &mut tokio_postgres::Client {
        &mut self.client
    }
}

/// Opens a session for SQL, logs in, and brings the session into the state that `sql/session.sql`
/// lists, whatever the role's settings are. `application_name` is what `pg_stat_activity` shows.
/// Must be called within a tokio runtime, which runs the session's bytes. Of several hosts it is
/// the first that is a primary.
///
/// # Errors
/// See [`Error`]; the attempt with each host is bounded by [`Endpoint::connect_timeout`].
pub async fn connect_sql(endpoint: &Endpoint, application_name: &str) -> Result<Sql, Error> {
    if !endpoint.is_several() {
        return Box::pin(connect_alone(endpoint, application_name)).await;
    }
    let mut search = Search::new(endpoint);
    loop {
        let host = search.next()?;
        let looked = Box::pin(look(&host, application_name)).await;
        if let Some(sql) = search.took(looked)? {
            return Ok(Sql { passed_over: search.passed_over(), ..sql });
        }
    }
}

/// The session with the only host.
async fn connect_alone(endpoint: &Endpoint, application_name: &str) -> Result<Sql, Error> {
    let mut login = Login::begin(endpoint).await?;
    loop {
        let connected = connect_one(login.ready(), application_name).await;
        if let Some(connected) = login.tried(connected).await {
            return connected;
        }
    }
}

/// The session with one of several hosts, if that is a primary.
async fn look(host: &Endpoint, application_name: &str) -> Result<Result<Sql, PassedOver>, Error> {
    let mut login = Login::begin(host).await?;
    loop {
        let ready = login.ready();
        let looked = within(ready, async {
            let sql = connect_one(ready, application_name).await?;
            if !sql.query_one(IN_RECOVERY, &[]).await?.try_get::<_, bool>(0)? {
                return Ok(Ok(sql));
            }
            sql.close().await;
            Ok::<_, Error>(Err(PassedOver::standby(host)))
        });
        let looked = looked.await;
        if let Some(looked) = login.tried(looked).await {
            return looked;
        }
    }
}

/// The session with one host, by the password that `endpoint` holds.
async fn connect_one(endpoint: &Endpoint, application_name: &str) -> Result<Sql, Error> {
    within(endpoint, async {
        let pooler = || Error::Pooler { address: endpoint.address() };
        let sql = log_in_as_can_be(endpoint, application_name).await?;
        match state::set(&sql, state::told_backend(&sql).await?).await {
            Ok(true) => return Ok(sql),
            Ok(false) => {}
            // One that lends a backend for each statement refuses transactions.
            Err(error) if error.sql_state() == Some("08P01") => return Err(pooler()),
            Err(error) => return Err(error),
        }
        // Not the server itself. One session more shows whether each has a backend of its own.
        let other = log_in_as_can_be(endpoint, application_name).await?;
        let sole = state::sole_backend(&sql, &other).await?;
        other.close().await;
        match sole {
            Some(backend) if state::set(&sql, backend).await? => Ok(sql),
            _ => Err(pooler()),
        }
    })
    .await
}

/// Asks the server to end what the session of `token` runs. That it was asked is all that is known:
/// the statement itself tells whether it ended.
///
/// # Errors
/// The server cannot be reached.
pub(crate) async fn cancel(token: CancelToken, endpoint: &Endpoint) -> Result<(), Error> {
    within(endpoint, async {
        let security = Security::first(endpoint);
        let stream = match open(endpoint, security).await {
            Err(error) if security.may_go_plain(&error) => open(endpoint, Security::Plain).await?,
            result => result?,
        };
        Ok(token.cancel_query_raw(stream, Established).await?)
    })
    .await
}

async fn log_in_as_can_be(endpoint: &Endpoint, application_name: &str) -> Result<Sql, Error> {
    let security = Security::first(endpoint);
    match log_in(endpoint, security, application_name).await {
        Err(error) if security.may_go_plain(&error) => {
            log_in(endpoint, Security::Plain, application_name).await
        }
        result => result,
    }
}

async fn log_in(
    endpoint: &Endpoint,
    security: Security,
    application_name: &str,
) -> Result<Sql, Error> {
    let stream = Limited::new(open(endpoint, security).await?);
    let mut settings = tokio_postgres::Config::new();
    settings
        .user(&endpoint.user)
        .dbname(&endpoint.database)
        .application_name(application_name)
        // The stream is ready. These two make tokio-postgres take it as it is.
        .ssl_mode(config::SslMode::Require)
        .ssl_negotiation(SslNegotiation::Direct)
        .channel_binding(match endpoint.channel_binding {
            ChannelBinding::Disable => config::ChannelBinding::Disable,
            ChannelBinding::Prefer => config::ChannelBinding::Prefer,
            ChannelBinding::Require => config::ChannelBinding::Require,
        });
    if let Some(password) = endpoint.password.given() {
        settings.password(password.expose_secret());
    }
    let (client, connection) = settings
        .connect_raw(stream, Established)
        .await
        .map_err(|error| login_error(endpoint, &error))?;
    let driver = Driver(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %Error::from(error), "sql session ended");
        }
    }));
    Ok(Sql { client, address: endpoint.address(), passed_over: Vec::new(), driver })
}

/// Sorts a failed login.
fn login_error(endpoint: &Endpoint, error: &tokio_postgres::Error) -> Error {
    let (address, user) = (endpoint.address(), endpoint.user.clone());
    if let Some(server) = error.as_db_error() {
        let (database, server) = (endpoint.database.as_str().into(), ServerError::from(server));
        let (address, user) = (address.into(), user.into());
        return Error::Refused { address, user, database, server };
    }
    let cause = std::error::Error::source(error);
    match cause.and_then(|cause| cause.downcast_ref::<io::Error>()) {
        // An I/O error in disguise is how malformed and lying SCRAM messages are told, too.
        Some(cause) if cause.raw_os_error().is_some() || is_cut(cause) || is_strange(cause) => {
            Error::Connect { address, source: io::Error::new(cause.kind(), cause.to_string()) }
        }
        _ if error.is_closed() => {
            Error::Connect { address, source: io::ErrorKind::UnexpectedEof.into() }
        }
        _ => {
            let reason = cause.map_or_else(|| error.to_string(), ToString::to_string);
            let reason =
                if reason == DRIVER_WITHOUT_PASSWORD { without_password(endpoint) } else { reason };
            Error::Login { address, user, reason }
        }
    }
}

/// The server wants a password and there is none; a passfile that was ignored may have had it.
fn without_password(endpoint: &Endpoint) -> String {
    let reason = "the server wants a password and there is none";
    match &endpoint.ignored_passfile {
        Some(cause) => format!("{reason}: {cause}"),
        None => reason.to_owned(),
    }
}

/// Whether it is no server of Postgres, by what it says.
fn is_strange(error: &io::Error) -> bool {
    error.get_ref().and_then(|cause| cause.downcast_ref::<Strange>()).is_some()
}

fn is_cut(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}
