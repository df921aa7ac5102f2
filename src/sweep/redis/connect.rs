//! A connection to a Redis server, as the configuration describes it.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, RedisError, ServerErrorKind, TlsCertificates, cmd,
};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::node::{Error, Kind};
use super::sentinel::Council;
use crate::config::{self, Mode};
use crate::file;
use crate::password::Unread;

/// The client library's default is 1 s, which a server that is far or busy misses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The client library's default is 500 ms. A script, a large DEL or a fork of somebody else can
/// hold a server for longer; giving up then would only repeat the work.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Advice on a file that is no use.
pub(super) const FILE_HINT: &str =
    "let it be a whole PEM file, which the user that walsweep runs as may read";

/// Advice on Sentinels that name no primary.
pub(super) const SENTINELS_HINT: &str = "see that the Sentinels in `redis.sentinels` run, that \
     each has its own login in its URL, with the rights `+sentinel|get-master-addr-by-name \
     +sentinel|master`, and that the host of `redis.url` is a name that they know (`sentinel \
     masters`); take out those that are gone for good";

/// Why no connection was made. No variant holds a password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// `redis.ca_file` could not be read, or holds no usable certificate.
    #[error("read `redis.ca_file` `{}`: {source}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `redis.cert_file` or `redis.key_file` could not be read.
    #[error("read `redis.cert_file` and `redis.key_file`: `{}`: {source}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `redis.password_file` or `redis.password_command` gave no password.
    #[error("{}", .0.told("redis"))]
    Password(#[from] Unread),
    /// The server has no database of that number; in cluster mode it has one alone.
    #[error("connect to redis at `{address}`: choose the database: {said}")]
    Database {
        /// Host and port, or the path of the socket.
        address: String,
        /// The server's words.
        said: String,
    },
    /// The Sentinels of a service name no primary of it that is to be believed.
    #[error("ask the Sentinels for the primary of `{service}`: {said}")]
    Sentinels {
        /// The service.
        service: String,
        /// The answer of each.
        said: String,
        /// Whether each of them answers, and none ever will as asked.
        is_lasting: bool,
    },
    /// The server could not be reached, or refused the login or the right to choose the database.
    #[error("connect to redis at {}: {error}", place(address, service.as_deref()))]
    Redis {
        /// Host and port, or the path of the socket.
        address: String,
        /// The service whose primary it is, if Sentinels say so.
        service: Option<String>,
        /// Why.
        error: Error,
    },
}

fn place(address: &str, service: Option<&str>) -> String {
    match service {
        Some(service) => format!("`{address}` (primary of `{service}`, as its Sentinels say)"),
        None => format!("`{address}`"),
    }
}

impl ConnectError {
    /// Why a person has to change something before the server lets us in; `None` if it may do so by
    /// itself.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let is_refused = match self {
            // A mount may come back.
            ConnectError::CaFile { source, .. } | ConnectError::Certificate { source, .. } => {
                source.kind() != std::io::ErrorKind::TimedOut
            }
            ConnectError::Database { .. } => true,
            ConnectError::Password(unread) => unread.needs_a_person(),
            ConnectError::Sentinels { is_lasting, .. } => *is_lasting,
            ConnectError::Redis { error, .. } => {
                matches!(error.kind(), Kind::Auth | Kind::NoPerm)
            }
        };
        is_refused.then(|| self.to_string())
    }

    /// Whether another password might have let us in.
    fn is_of_password(&self) -> bool {
        matches!(self, ConnectError::Redis { error, .. } if error.kind() == Kind::Auth)
    }

    /// Says what a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            ConnectError::CaFile { .. } | ConnectError::Certificate { .. } => Some(FILE_HINT),
            ConnectError::Password(unread) => Some(unread.hint()),
            ConnectError::Database { .. } => Some(
                "let the number at the end of `redis.url` be that of a database of this server, \
                 such as 0: `redis-cli config get databases` tells how many it has",
            ),
            ConnectError::Sentinels { .. } => Some(SENTINELS_HINT),
            ConnectError::Redis { error, .. } => error.hint(),
        }
    }
}

impl From<ConnectError> for Error {
    /// Always [`Error::Lost`], whatever the kind: there is no connection that could stand.
    fn from(error: ConnectError) -> Error {
        let kind = match &error {
            ConnectError::CaFile { .. }
            | ConnectError::Certificate { .. }
            | ConnectError::Database { .. } => Kind::Other,
            ConnectError::Password(_) => Kind::Auth,
            ConnectError::Sentinels { .. } => Kind::Sentinel,
            ConnectError::Redis { error, .. } => error.kind(),
        };
        Error::Lost(error.to_string(), kind)
    }
}

/// Connects, logs in and selects the database of the URL; where Sentinels are, to the server that
/// they name. The connection does not connect again by itself: whoever answers next must show its
/// watermark first (I7).
///
/// # Errors
///
/// See [`ConnectError`].
pub async fn connect(redis: &config::Redis) -> Result<MultiplexedConnection, ConnectError> {
    let Some(council) = Council::of(redis) else { return log_in(redis, None, &config()).await };
    let server = council.server().await?;
    let named = |error| council.of_service(error);
    let mut connection = log_in(&server, None, &config()).await.map_err(named)?;
    // Who may not ask finds out by READONLY.
    let mut info = cmd("INFO");
    let info: Result<String, _> = info.arg("replication").query_async(&mut connection).await;
    if info.is_ok_and(|info| info.contains("role:slave")) {
        let error = Error::new(Kind::ReadOnly, "the server is a replica".to_owned());
        let address = council.primary().unwrap_or_default();
        return Err(named(ConnectError::Redis { address, service: None, error }));
    }
    Ok(connection)
}

/// Connects to the server of the URL, in RESP3: `pushes` is given whatever the server sends
/// unasked, in order, each before the reply that follows it on the wire.
///
/// # Errors
///
/// See [`ConnectError`]; also when the server does not know RESP3.
pub async fn connect_with_pushes(
    redis: &config::Redis,
    pushes: impl AsyncPushSender,
) -> Result<MultiplexedConnection, ConnectError> {
    log_in(redis, Some(ProtocolVersion::RESP3), &config().set_push_sender(pushes)).await
}

/// Logs in with the password that holds now. Where it is refused, its source is asked again at
/// once, and if it gives another one by then, that is tried: a token may end, or a rotation happen,
/// between reading and login.
pub(super) async fn log_in(
    redis: &config::Redis,
    protocol: Option<ProtocolVersion>,
    config: &AsyncConnectionConfig,
) -> Result<MultiplexedConnection, ConnectError> {
    let password = redis.password.read().await?;
    let refused = match open(client(redis, protocol, password.as_ref()).await?, config).await {
        Err(error) if error.is_of_password() => error,
        outcome => return outcome,
    };
    match redis.password.read_again(password.as_ref(), Instant::now()).await {
        Some(again) => open(client(redis, protocol, Some(&again)).await?, config).await,
        None => Err(refused),
    }
}

fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
}

async fn open(
    client: Client,
    config: &AsyncConnectionConfig,
) -> Result<MultiplexedConnection, ConnectError> {
    let mut connection = client
        .get_multiplexed_async_connection_with_config(config)
        .await
        .map_err(|error| failed(client.get_connection_info(), &error))?;
    // Only a name for `CLIENT LIST`; an ACL may forbid it.
    let mut name = cmd("CLIENT");
    name.arg("SETNAME").arg("walsweep");
    drop(name.exec_async(&mut connection).await);
    Ok(connection)
}

/// A client of the server, with the certificates as they are now.
async fn client(
    redis: &config::Redis,
    protocol: Option<ProtocolVersion>,
    password: Option<&SecretString>,
) -> Result<Client, ConnectError> {
    let certificate = redis.client_certificate.as_ref().map(|(certificate, _key)| certificate);
    let Some(path) = redis.ca_file.as_ref().or(certificate) else {
        return build(redis, protocol, password);
    };
    let (of_thread, password) = (redis.clone(), password.cloned());
    let build = move || build(&of_thread, protocol, password.as_ref());
    let built = file::apart(path, file::TIMEOUT, build).await;
    built.unwrap_or_else(|source| Err(ConnectError::Certificate { path: path.clone(), source }))
}

fn build(
    redis: &config::Redis,
    protocol: Option<ProtocolVersion>,
    password: Option<&SecretString>,
) -> Result<Client, ConnectError> {
    // The client library brings no cryptography. A provider that is installed already is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let info = redis.url.as_str().into_connection_info().map_err(|error| {
        // The configuration was judged; a URL is not shown, for what it may hold.
        ConnectError::Redis { address: "redis.url".to_owned(), service: None, error: told(&error) }
    })?;
    // Small requests must not wait for the acknowledgement of the one before.
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    let mut settings = info.redis_settings().clone();
    if let Some(password) = password {
        settings = settings.set_password(password.expose_secret());
    }
    if let Some(protocol) = protocol {
        settings = settings.set_protocol(protocol);
    }
    let info = info.set_tcp_settings(tcp).set_redis_settings(settings);
    if redis.ca_file.is_none() && redis.client_certificate.is_none() {
        return Client::open(info.clone()).map_err(|error| failed(&info, &error));
    }
    let root_cert = redis.ca_file.as_ref().map(|path| {
        authorities(path).map_err(|source| ConnectError::CaFile { path: path.clone(), source })
    });
    let client_tls = redis.client_certificate.as_ref().map(|(certificate, key)| {
        let read = |path: &PathBuf| {
            let failed = |source| ConnectError::Certificate { path: path.clone(), source };
            file::read(path, file::CERTIFICATES_MAX).map(|pem| pem.to_vec()).map_err(failed)
        };
        Ok::<_, ConnectError>(ClientTlsConfig {
            client_cert: read(certificate)?,
            client_key: read(key)?,
        })
    });
    let (client_tls, root_cert) = (client_tls.transpose()?, root_cert.transpose()?);
    let certificates = TlsCertificates { client_tls, root_cert };
    Client::build_with_tls(info.clone(), certificates).map_err(|error| failed(&info, &error))
}

/// The content of a PEM file, checked here: the client library trusts nobody when a file holds no
/// certificate, and says of every server that it is not to be trusted.
fn authorities(path: &Path) -> Result<Vec<u8>, std::io::Error> {
    let pem = file::read(path, file::CERTIFICATES_MAX)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| std::io::Error::other(file::pem(&error)))?;
        roots.add(certificate).map_err(std::io::Error::other)?;
    }
    if roots.is_empty() {
        return Err(std::io::Error::other("the file holds no certificate"));
    }
    Ok(pem.to_vec())
}

/// A failed connection, with the place.
fn failed(info: &ConnectionInfo, error: &RedisError) -> ConnectError {
    let address = info.addr().to_string();
    let detail = error.detail().unwrap_or_default();
    // The last two: an endpoint that has one database.
    let words = ["DB index", "cluster mode", "unknown command", "unsupported"];
    if words.iter().any(|part| detail.contains(part)) {
        return ConnectError::Database { address, said: detail.to_owned() };
    }
    ConnectError::Redis { address, service: None, error: told(error) }
}

/// The class and the text of a failed connection. No key was sent yet, so that more may be told
/// than [`classify`] does: the cause of a broken connection or handshake, and the server's words
/// about SELECT, the one command of the login whose refusal is not about the password.
fn told(error: &RedisError) -> Error {
    let class = classify(error);
    match (error.kind(), error.detail(), std::error::Error::source(error)) {
        (ErrorKind::Io, _, Some(cause)) => Error::new(class.kind(), cause.to_string()),
        (ErrorKind::InvalidClientConfig, ..) => Error::new(class.kind(), error.to_string()),
        (ErrorKind::Server(ServerErrorKind::ResponseError), Some(detail), _) => {
            let is_forbidden = detail.contains("no permissions");
            let kind = if is_forbidden { Kind::NoPerm } else { class.kind() };
            Error::new(kind, format!("choose the database: {detail}"))
        }
        _ => class,
    }
}

/// Host and port of a target's URL; the name of a service.
pub(super) fn node_name(redis: &config::Redis) -> String {
    if let Mode::Sentinel(sentinels) = &redis.mode {
        return sentinels.service.clone();
    }
    match url::Url::parse(&redis.url) {
        Ok(url) => match (url.host_str(), url.port()) {
            (Some(host), port) => format!("{host}:{}", port.unwrap_or(6379)),
            (None, _) => url.path().to_owned(),
        },
        Err(_) => "redis".to_owned(),
    }
}

/// Whether a server refuses a command because it does not know it, or does not let anybody use it.
/// Proxies have words of their own.
fn is_unknown(error: &RedisError) -> bool {
    let said = error.to_string().to_lowercase();
    let words = ["unknown command", "unsupported", "not supported", "disabled", "invalid request"];
    error.code().is_some() && words.iter().any(|words| said.contains(words))
}

/// The class of a client library's error, and its text without what the server quotes: an error
/// reply may repeat a key.
pub(crate) fn classify(error: &RedisError) -> Error {
    let kind = match error.kind() {
        ErrorKind::AuthenticationFailed => Kind::Auth,
        ErrorKind::Server(ServerErrorKind::NoPerm) => Kind::NoPerm,
        ErrorKind::Server(ServerErrorKind::ReadOnly) => Kind::ReadOnly,
        ErrorKind::Server(ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown) => {
            Kind::Loading
        }
        ErrorKind::Server(_) | ErrorKind::Extension => match error.code() {
            Some("OOM") => Kind::Oom,
            Some("BUSY") => Kind::Busy,
            Some("MISCONF") => Kind::Misconf,
            Some("NOREPLICAS") => Kind::NoReplicas,
            Some("WRONGTYPE") => Kind::WrongType,
            Some("WRONGPASS" | "NOAUTH") => Kind::Auth,
            Some("LOADING" | "MASTERDOWN") => Kind::Loading,
            Some("READONLY" | "UNBLOCKED") => Kind::ReadOnly,
            // A node of a cluster took the place of the server that was connected to.
            Some("MOVED" | "ASK" | "CLUSTERDOWN" | "TRYAGAIN") => Kind::Slot,
            Some("CROSSSLOT") => Kind::Swapped,
            _ if is_unknown(error) => Kind::Unsupported,
            _ => Kind::Other,
        },
        _ if error.is_timeout() => Kind::Timeout,
        _ => Kind::Io,
    };
    let cause = error.source().and_then(|cause| cause.downcast_ref::<std::io::Error>());
    // Proxies begin with a word, and Redis with a code.
    let code = error.code().filter(|code| !code.bytes().any(|byte| byte.is_ascii_lowercase()));
    let message = match (code, cause) {
        (_, _) if kind == Kind::Unsupported => "redis does not have the command".to_owned(),
        (Some(code), _) => format!("redis answered {code}"),
        (None, _) if kind == Kind::Timeout => "redis gave no reply in time".to_owned(),
        (None, Some(cause)) => cause.to_string(),
        (None, None) => error.category().to_owned(),
    };
    Error::new(kind, message)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{ConnectError, Error, Kind};

    /// A file that is no use, and a certificate that nobody trusts, are not cured by a look whether
    /// Redis runs.
    #[test]
    fn each_hint_is_about_its_own_trouble() {
        let source = io::Error::other("it ends in the middle of a certificate");
        let file = Error::from(ConnectError::CaFile { path: "ca.pem".into(), source });
        let untrusted = "invalid peer certificate: UnknownIssuer".to_owned();
        let untrusted = Error::Lost(untrusted, Kind::Io);
        let away = Error::Lost("Connection refused".to_owned(), Kind::Io);
        for (error, part) in [
            (file, "let it be a whole PEM file"),
            (untrusted, "let `redis.ca_file` name the authority"),
            (away, "see that Redis runs"),
        ] {
            let hint = error.hint().unwrap_or_default();
            assert!(hint.starts_with(part), "{error}: {hint}");
        }
    }
}
