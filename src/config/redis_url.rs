//! `redis.url`: what the client library accepts, without what it would silently ignore.

use secrecy::SecretString;
use url::Url;

use super::Sentinels;

/// Why a text is not a URL that can be used. No variant holds a part that may be secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UrlError {
    /// It has no form of a URL.
    #[error("is not a URL")]
    Malformed,
    /// It is for something else.
    #[error("must start with `redis://`, `rediss://`, `redis+unix://` or `unix://`")]
    Scheme,
    /// It names no server, or one that is no address to connect to.
    #[error("names no host")]
    Host,
    /// It names no socket.
    #[error("names no socket; write `unix:///run/redis.sock`")]
    Socket,
    /// The path, or `db`, is not a number.
    #[error("the database is not a number")]
    Database,
    /// A parameter would be ignored. Its name is not told: a `?` in a password, not encoded, makes
    /// the rest of the password a parameter.
    #[error("has an unknown parameter behind `?`")]
    Parameter,
    /// `#insecure`, or another fragment.
    #[error("a part after `#` is not accepted; `redis.ca_file` names whom to trust")]
    Fragment,
    /// The client library refuses it.
    #[error("is not accepted")]
    Other,
}

/// Takes the password out of a Redis URL, decoded. Gives the rest of the URL.
pub(super) fn split_password(text: &str) -> Result<(Url, Option<SecretString>), UrlError> {
    let mut url = Url::parse(text).map_err(|_malformed| UrlError::Malformed)?;
    let is_socket = match url.scheme() {
        "redis" | "rediss" => false,
        "redis+unix" | "unix" => true,
        _ => return Err(UrlError::Scheme),
    };
    if url.fragment().is_some() {
        return Err(UrlError::Fragment);
    }
    let password = if is_socket { socket_password(&mut url) } else { tcp_password(&mut url) }?;
    // All that is left for the client library to refuse is checked now, not at the start.
    redis::IntoConnectionInfo::into_connection_info(url.clone())
        .map_err(|_refused| UrlError::Other)?;
    Ok((url, password))
}

/// `redis://user:password@host:6379/0`.
fn tcp_password(url: &mut Url) -> Result<Option<SecretString>, UrlError> {
    if url.host_str().is_none_or(str::is_empty) {
        return Err(UrlError::Host);
    }
    check_database(url.path().trim_matches('/'))?;
    // The client library reads `db`, `user` and `pass` for sockets only: another database would be
    // swept than the one that is meant.
    check_parameters(url, &["protocol"])?;
    let Some(encoded) = url.password() else { return Ok(None) };
    let decoded = percent_encoding::percent_decode_str(encoded).decode_utf8();
    let password = SecretString::from(decoded.map_err(|_not_text| UrlError::Malformed)?.as_ref());
    url.set_password(None).map_err(|()| UrlError::Malformed)?;
    Ok(Some(password))
}

/// `redis+unix:///run/redis.sock?db=0&user=name&pass=password`.
fn socket_password(url: &mut Url) -> Result<Option<SecretString>, UrlError> {
    if url.host_str().is_some_and(|host| !host.is_empty()) || url.path().len() < 2 {
        return Err(UrlError::Socket);
    }
    check_parameters(url, &["db", "user", "pass", "protocol"])?;
    let (mut password, mut others) = (None, Vec::new());
    for (name, value) in url.query_pairs().into_owned() {
        match name.as_str() {
            "pass" => password = Some(SecretString::from(value)),
            "db" => {
                check_database(&value)?;
                others.push((name, value));
            }
            _ => others.push((name, value)),
        }
    }
    url.set_query(None);
    if !others.is_empty() {
        url.query_pairs_mut().extend_pairs(others);
    }
    Ok(password)
}

/// The database that a URL without its password names: the server's address, and the number.
pub(super) fn place(url: &str) -> (String, i64) {
    let info = redis::IntoConnectionInfo::into_connection_info(url);
    let place = |info: redis::ConnectionInfo| (info.addr().to_string(), info.redis_settings().db());
    info.map(place).unwrap_or_default()
}

/// How `redis-cli` is called for the server of a URL without its password, with arguments for a
/// shell: <https://redis.io/docs/latest/develop/tools/cli/>.
pub(super) fn redis_cli(url: &str) -> String {
    let Ok(url) = Url::parse(url) else { return "redis-cli".to_owned() };
    let address = match url.host_str().filter(|host| !host.is_empty()) {
        Some(host) => {
            let host = host.trim_matches(['[', ']']);
            format!("-h {} -p {}", quoted(host), url.port().unwrap_or(6379))
        }
        None => format!("-s {}", quoted(&decoded(url.path()))),
    };
    format!("redis-cli {address}{}", login(&url))
}

/// How it is called for the primary of a service, whose address the shell asks the first Sentinel
/// for: that takes its password, if it has one, from `SENTINEL_AUTH`.
pub(super) fn redis_cli_by_sentinel(url: &str, sentinels: &Sentinels) -> String {
    let first = sentinels.list.first().map(|sentinel| {
        let call = redis_cli(&sentinel.url);
        match sentinel.password.is_some() {
            true => format!("REDISCLI_AUTH=\"$SENTINEL_AUTH\" {call}"),
            false => call,
        }
    });
    let sentinel = first.unwrap_or_else(|| "redis-cli".to_owned());
    let service = quoted(&sentinels.service);
    let rest = Url::parse(url).map(|url| login(&url)).unwrap_or_default();
    format!(
        "redis-cli $({sentinel} sentinel get-master-addr-by-name {service} | \
         xargs printf ' -h %s -p %s'){rest}"
    )
}

/// The options for TLS, the user and the database.
fn login(url: &Url) -> String {
    let of_query = |name| url.query_pairs().find(|(own, _)| own == name).map(|(_, value)| value);
    let (user, database) = match url.host_str().filter(|host| !host.is_empty()) {
        Some(_) => {
            let user = Some(decoded(url.username())).filter(|user| !user.is_empty());
            (user, url.path().trim_matches('/').to_owned())
        }
        None => {
            let database = of_query("db").unwrap_or_default();
            (of_query("user").map(Into::into), database.into_owned())
        }
    };
    let mut options = String::new();
    if url.scheme() == "rediss" {
        options.push_str(" --tls");
    }
    if let Some(user) = user {
        options.push_str(&format!(" --user {}", quoted(&user)));
    }
    if !matches!(&*database, "" | "0") {
        options.push_str(&format!(" -n {database}"));
    }
    options
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn check_database(text: &str) -> Result<(), UrlError> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit()) && text.len() <= 9;
    if is_number { Ok(()) } else { Err(UrlError::Database) }
}

fn check_parameters(url: &Url, known: &[&str]) -> Result<(), UrlError> {
    let is_known = url.query_pairs().all(|(name, _)| known.contains(&name.as_ref()));
    if is_known { Ok(()) } else { Err(UrlError::Parameter) }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::{UrlError, redis_cli, redis_cli_by_sentinel, split_password};
    use crate::config::{Sentinel, Sentinels};
    use crate::password::Source;

    #[test]
    fn the_password_leaves_the_url_and_nothing_else_does() {
        for (text, url, password) in [
            ("redis://h", "redis://h", None),
            ("rediss://u@h:1/2", "rediss://u@h:1/2", None),
            ("redis://u:p%40%C3%A4@h:1/2", "redis://u@h:1/2", Some("p@ä")),
            ("redis://:p@[::1]/0?protocol=resp3", "redis://[::1]/0?protocol=resp3", Some("p")),
            ("unix:///run/r.sock", "unix:///run/r.sock", None),
            ("redis+unix:///r?db=2&pass=a%26b&user=u", "redis+unix:///r?db=2&user=u", Some("a&b")),
            ("unix:///r?pass=p", "unix:///r", Some("p")),
        ] {
            let (rest, found) = split_password(text).unwrap();
            assert_eq!(rest.as_str(), url, "{text}");
            assert_eq!(found.as_ref().map(ExposeSecret::expose_secret), password, "{text}");
        }
    }

    #[test]
    fn a_command_line_names_the_same_server_and_database() {
        for (url, call) in [
            ("redis://h", "redis-cli -h 'h' -p 6379"),
            ("rediss://u@h:1/2", "redis-cli -h 'h' -p 1 --tls --user 'u' -n 2"),
            ("redis://[::1]:7/0?protocol=resp3", "redis-cli -h '::1' -p 7"),
            ("redis://it%27s@h", "redis-cli -h 'h' -p 6379 --user 'it'\\''s'"),
            ("unix:///run/a%20b.sock?db=3&user=u", "redis-cli -s '/run/a b.sock' --user 'u' -n 3"),
        ] {
            assert_eq!(redis_cli(url), call, "{url}");
        }
    }

    #[test]
    fn a_command_line_asks_a_sentinel_for_the_address() {
        let sentinel = |url: &str, password: Source| Sentinel { url: url.to_owned(), password };
        let call = |first| {
            let list = vec![first, sentinel("redis://b:26379", Source::None)];
            let sentinels = Sentinels { service: "cache".to_owned(), list };
            redis_cli_by_sentinel("redis://u@cache/2", &sentinels)
        };
        assert_eq!(
            call(sentinel("rediss://[::1]:26379", Source::None)),
            "redis-cli $(redis-cli -h '::1' -p 26379 --tls sentinel get-master-addr-by-name \
             'cache' | xargs printf ' -h %s -p %s') --user 'u' -n 2"
        );
        let with_login = call(sentinel("redis://s@a:7", Source::Given("hunter2".into())));
        assert_eq!(
            with_login,
            "redis-cli $(REDISCLI_AUTH=\"$SENTINEL_AUTH\" redis-cli -h 'a' -p 7 --user 's' \
             sentinel get-master-addr-by-name 'cache' | xargs printf ' -h %s -p %s') --user 'u' \
             -n 2"
        );
    }

    #[test]
    fn what_the_client_would_ignore_or_refuse_later_is_refused() {
        for (text, error) in [
            ("h:6379", UrlError::Scheme),
            ("127.0.0.1:6379", UrlError::Malformed),
            ("http://h", UrlError::Scheme),
            ("redis:///0", UrlError::Host),
            ("redis://0.0.0.0", UrlError::Other),
            ("redis://h/one", UrlError::Database),
            ("redis://h/-1", UrlError::Database),
            ("unix:///r?db=x", UrlError::Database),
            ("redis://h?db=2", UrlError::Parameter),
            ("redis://u:12?hunter2@h/0", UrlError::Parameter),
            ("redis://h?protocol=4", UrlError::Other),
            ("rediss://h#insecure", UrlError::Fragment),
            ("unix://run/r.sock", UrlError::Socket),
            ("unix://", UrlError::Socket),
        ] {
            assert_eq!(split_password(text).map(|_| ()).unwrap_err(), error, "{text}");
        }
    }
}
