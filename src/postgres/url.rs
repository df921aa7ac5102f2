//! `postgres://` URLs, by libpq's rules
//! (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS>).

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use secrecy::SecretString;

use super::{ChannelBinding, ClientCertificate, Endpoint, SslMode};
use crate::password::Source;
use crate::words::counted;

/// libpq waits for ever by default; a sidecar must come back and try again.
const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

const PORT_DEFAULT: u16 = 5432;

/// The parameters that count.
const KNOWN: &str = "`user`, `password`, `host`, `port`, `dbname`, `sslmode`, `sslrootcert`, \
                     `sslcert`, `sslkey`, `connect_timeout`, `passfile`, `channel_binding`, \
                     `gssencmode`, `target_session_attrs`, `client_encoding`, `options`";

/// Parameters of libpq that change nothing here: walsweep names its own connections, and finds out
/// by itself when one is dead.
const OWN: &str = "`application_name`, `fallback_application_name`, `keepalives`, \
                   `keepalives_idle`, `keepalives_interval`, `keepalives_count`, \
                   `tcp_user_timeout`, `sslsni`, `sslcompression`";

/// Why a URL is not one that we can use. Never quotes the URL or its values: a password that is
/// not percent-encoded may end up in any part of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not `postgres://` or `postgresql://`.
    #[error("the URL must start with `postgres://` or `postgresql://`")]
    Scheme,
    /// More than one `@`.
    #[error("the URL has an `@` too many; in a user name, password or parameter write `%40`")]
    At,
    /// `%` without two hexadecimal digits, `%00`, or bytes that are not UTF-8.
    #[error("the URL has a `%` that does not stand for text; a percent sign itself is `%25`")]
    Percent,
    /// No user.
    #[error("the URL names no user; write `postgres://user@host/database`")]
    User,
    /// No host.
    #[error("the URL names no host; for a Unix socket write `?host=/folder/of/the/socket`")]
    Host,
    /// Neither one port for all hosts, nor one for each.
    #[error(
        "the URL names {} and {}; give each host its own, or one port",
        counted(*.hosts, "host"),
        counted(*.ports, "port")
    )]
    Ports {
        /// How many hosts.
        hosts: usize,
        /// How many ports.
        ports: usize,
    },
    /// `[` without `]`, or text after it.
    #[error("the URL has a malformed IPv6 address; write `[::1]`")]
    Address,
    /// Parameters that we do not know, or whose value walsweep cannot follow; all of them.
    #[error("{}", told(unknown, unsupported))]
    Parameters {
        /// The names of those that are not known.
        unknown: Vec<String>,
        /// Of those that cannot be followed the name, and why not, with what to do instead.
        unsupported: Vec<(&'static str, &'static str)>,
    },
    /// `?name` without a value, or a name that is no name.
    #[error("the URL has a malformed parameter; write `name=value`")]
    Parameter,
    /// A known parameter has a value that it cannot have.
    #[error("the URL has an invalid `{parameter}`; it must be {expected}")]
    Value {
        /// Which parameter.
        parameter: &'static str,
        /// The requirement that it must meet.
        expected: &'static str,
    },
}

/// Tells of parameters that are not known, and of those that cannot be followed.
fn told(unknown: &[String], unsupported: &[(&str, &str)]) -> String {
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!(
            "the URL has unknown parameters: `{}`; known are: {KNOWN}; without effect, as walsweep \
             keeps to its own: {OWN}",
            unknown.join("`, `")
        ));
    }
    parts.extend(unsupported.iter().map(|(name, why)| format!("the URL has `{name}`: {why}")));
    parts.join("; ")
}

impl Endpoint {
    /// Reads a URL such as `postgres://user:password@host:5432/database?sslmode=verify-full`.
    /// Without a database it is the user's name, without a port 5432, without `sslmode` `prefer`,
    /// without `connect_timeout` 10 s. No environment variable is consulted. Several hosts are
    /// separated by commas, `h1:5432,h2:5433`; so are the values of `host` and `port`.
    ///
    /// # Errors
    /// Says which part is wrong, never with its value.
    pub fn parse(url: &str) -> Result<Endpoint, ParseError> {
        let rest = url
            .strip_prefix("postgresql://")
            .or_else(|| url.strip_prefix("postgres://"))
            .ok_or(ParseError::Scheme)?;
        let mut parts = Parts::default();
        // As in libpq, a `?` before the `@` belongs to the password.
        let rest = match rest.split_once('@') {
            Some((login, after)) if !login.contains('/') => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                parts.set("user", decode(user)?)?;
                parts.set("password", decode(password)?)?;
                after
            }
            _ => rest,
        };
        if rest.contains('@') {
            return Err(ParseError::At);
        }
        let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (server, database) = place.split_once('/').unwrap_or((place, ""));
        let places = server.split(',').map(host_and_port).collect::<Result<Vec<_>, _>>()?;
        let (hosts, ports): (Vec<&str>, Vec<&str>) = places.into_iter().unzip();
        parts.set("host", decode(&hosts.join(","))?)?;
        parts.set("port", decode(&ports.join(","))?)?;
        parts.set("dbname", decode(database)?)?;
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').ok_or(ParseError::Parameter)?;
            if value.contains('=') {
                return Err(ParseError::Parameter);
            }
            parts.set(&decode(name)?, decode(value)?)?;
        }
        parts.finish()
    }
}

fn host_and_port(server: &str) -> Result<(&str, &str), ParseError> {
    let Some(bracketed) = server.strip_prefix('[') else {
        return Ok(server.split_once(':').unwrap_or((server, "")));
    };
    let (host, rest) = bracketed.split_once(']').ok_or(ParseError::Address)?;
    match rest.strip_prefix(':') {
        Some(port) => Ok((host, port)),
        None if rest.is_empty() => Ok((host, "")),
        None => Err(ParseError::Address),
    }
}

fn decode(text: &str) -> Result<String, ParseError> {
    for encoded in text.split('%').skip(1) {
        match encoded.as_bytes() {
            [b'0', b'0', ..] => return Err(ParseError::Percent),
            [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {}
            _ => return Err(ParseError::Percent),
        }
    }
    match percent_decode_str(text).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(ParseError::Percent),
    }
}

/// The values as they stand in the URL; an empty one is one that is not there, as in libpq.
#[derive(Default)]
struct Parts {
    user: String,
    password: String,
    host: String,
    port: String,
    dbname: String,
    sslmode: String,
    sslrootcert: String,
    connect_timeout: String,
    passfile: String,
    channel_binding: String,
    sslcert: String,
    sslkey: String,
    gssencmode: String,
    target_session_attrs: String,
    client_encoding: String,
    options: String,
    unknown: Vec<String>,
}

impl Parts {
    fn set(&mut self, name: &str, value: String) -> Result<(), ParseError> {
        let part = match name {
            "user" => &mut self.user,
            "password" => &mut self.password,
            "host" => &mut self.host,
            "port" => &mut self.port,
            "dbname" => &mut self.dbname,
            "sslmode" => &mut self.sslmode,
            "sslrootcert" => &mut self.sslrootcert,
            "connect_timeout" => &mut self.connect_timeout,
            "passfile" => &mut self.passfile,
            "channel_binding" => &mut self.channel_binding,
            "sslcert" => &mut self.sslcert,
            "sslkey" => &mut self.sslkey,
            "gssencmode" => &mut self.gssencmode,
            "target_session_attrs" => &mut self.target_session_attrs,
            "client_encoding" => &mut self.client_encoding,
            "options" => &mut self.options,
            _ if is_name(name) => {
                if !OWN.contains(&format!("`{name}`")) {
                    self.unknown.push(name.to_owned());
                }
                return Ok(());
            }
            _ => return Err(ParseError::Parameter),
        };
        *part = value;
        Ok(())
    }

    fn finish(self) -> Result<Endpoint, ParseError> {
        let unsupported = self.unsupported();
        if !self.unknown.is_empty() || !unsupported.is_empty() {
            return Err(ParseError::Parameters { unknown: self.unknown, unsupported });
        }
        if self.user.is_empty() {
            return Err(ParseError::User);
        }
        let mut places = self.places()?.into_iter();
        let (host, port) = places.next().ok_or(ParseError::Host)?;
        Ok(Endpoint {
            ssl_mode: self.ssl_mode()?,
            channel_binding: self.channel_binding()?,
            client_certificate: self.client_certificate()?,
            connect_timeout: self.connect_timeout()?,
            port,
            host,
            others: places.collect(),
            database: if self.dbname.is_empty() { self.user.clone() } else { self.dbname },
            user: self.user,
            password: match self.password {
                text if text.is_empty() => Source::None,
                text => Source::Given(SecretString::from(text)),
            },
            passfile: Some(self.passfile).filter(|text| !text.is_empty()).map(PathBuf::from),
            ignored_passfile: None,
            ssl_root_cert: Some(self.sslrootcert)
                .filter(|text| !text.is_empty() && text != "system")
                .map(PathBuf::from),
        })
    }

    /// Lists the parameters that libpq would follow and walsweep does not: said, rather than left
    /// out.
    fn unsupported(&self) -> Vec<(&'static str, &'static str)> {
        let mut all = Vec::new();
        if !matches!(&*self.gssencmode, "" | "disable" | "prefer") {
            all.push(("gssencmode", "GSSAPI is not supported; write `disable`"));
        }
        if !matches!(&*self.target_session_attrs, "" | "any" | "primary" | "read-write") {
            let why = "walsweep asks the primary, and finds it among several hosts by itself; \
                       standbys stand in `postgres.replicas`";
            all.push(("target_session_attrs", why));
        }
        let encoding = self.client_encoding.to_ascii_lowercase();
        if !matches!(&*encoding, "" | "auto" | "utf8" | "utf-8" | "unicode") {
            all.push(("client_encoding", "keys are made of UTF-8; leave it out"));
        }
        if !self.options.is_empty() {
            let why = "sessions have settings of their own; set what lookups need for the role: \
                       `alter role … set …`";
            all.push(("options", why));
        }
        all
    }

    fn client_certificate(&self) -> Result<Option<ClientCertificate>, ParseError> {
        match (&*self.sslcert, &*self.sslkey) {
            ("", "") => Ok(None),
            ("", _) => {
                Err(ParseError::Value { parameter: "sslcert", expected: "given with `sslkey`" })
            }
            (_, "") => {
                Err(ParseError::Value { parameter: "sslkey", expected: "given with `sslcert`" })
            }
            (certificate, key) => Ok(Some(ClientCertificate {
                certificate: PathBuf::from(certificate),
                key: PathBuf::from(key),
            })),
        }
    }

    /// Hosts, each with its port: one port is every host's, else each has its own.
    fn places(&self) -> Result<Vec<(String, u16)>, ParseError> {
        let hosts: Vec<&str> = self.host.split(',').collect();
        let ports = self.port.split(',').map(port).collect::<Result<Vec<_>, _>>()?;
        if hosts.iter().any(|host| host.is_empty()) {
            return Err(ParseError::Host);
        }
        let place = |(host, port): (&str, u16)| (host.to_owned(), port);
        match ports.as_slice() {
            [port] => Ok(hosts.into_iter().map(|host| place((host, *port))).collect()),
            ports if ports.len() == hosts.len() => {
                Ok(hosts.into_iter().zip(ports.iter().copied()).map(place).collect())
            }
            ports => Err(ParseError::Ports { hosts: hosts.len(), ports: ports.len() }),
        }
    }

    /// With `sslrootcert=system` anyone can have a trusted certificate, so that, as in libpq, only
    /// `verify-full` makes sense.
    fn ssl_mode(&self) -> Result<SslMode, ParseError> {
        let mode = match self.sslmode.as_str() {
            "" if self.sslrootcert == "system" => SslMode::VerifyFull,
            "disable" => SslMode::Disable,
            "" | "allow" | "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            _ => {
                return Err(ParseError::Value {
                    parameter: "sslmode",
                    expected: "disable, allow, prefer, require, verify-ca or verify-full",
                });
            }
        };
        if self.sslrootcert == "system" && mode != SslMode::VerifyFull {
            return Err(ParseError::Value {
                parameter: "sslmode",
                expected: "verify-full when `sslrootcert` is `system`",
            });
        }
        Ok(mode)
    }

    fn channel_binding(&self) -> Result<ChannelBinding, ParseError> {
        match self.channel_binding.as_str() {
            "disable" => Ok(ChannelBinding::Disable),
            "" | "prefer" => Ok(ChannelBinding::Prefer),
            "require" => Ok(ChannelBinding::Require),
            _ => Err(ParseError::Value {
                parameter: "channel_binding",
                expected: "disable, prefer or require",
            }),
        }
    }

    fn connect_timeout(&self) -> Result<Duration, ParseError> {
        if self.connect_timeout.is_empty() {
            return Ok(CONNECT_TIMEOUT_DEFAULT);
        }
        let seconds = self.connect_timeout.parse::<u32>().ok().filter(|seconds| *seconds > 0);
        seconds.map(|seconds| Duration::from_secs(seconds.into())).ok_or(ParseError::Value {
            parameter: "connect_timeout",
            expected: "a number of seconds, at least 1",
        })
    }
}

fn port(text: &str) -> Result<u16, ParseError> {
    if text.is_empty() {
        return Ok(PORT_DEFAULT);
    }
    text.parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or(ParseError::Value { parameter: "port", expected: "a number from 1 to 65535" })
}

/// Whether a text can be shown as a parameter's name. Anything else may be a piece of a password.
fn is_name(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}
