//! `redis.mode`, and what goes with it: more nodes of a cluster, or the Sentinels of a service.

use secrecy::SecretString;
use url::Url;

use super::reader::{Reader, Section};
use super::redis_url::{UrlError, place, split_password};
use super::{Located, Redis};
use crate::password::Source;

/// Where a Sentinel listens unless its URL says otherwise
/// (<https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/>).
const SENTINEL_PORT: u16 = 26379;

/// How the URL of a server is given, or of a cluster's node.
const URL_HINT: &str = "give it as `redis://host:6379/0`, or `rediss://` for TLS";

/// How the URL of a service is given.
const SERVICE_HINT: &str = "give it as `redis://service/0`, or `rediss://` for TLS: the host is \
                            the name that the Sentinels know, their addresses are in `sentinels`";

/// How more nodes of a cluster are given.
const SEED_HINT: &str = "give it as `redis://host:6379`, or `rediss://` for TLS";

/// How a Sentinel is given.
const SENTINEL_HINT: &str = "give it as `redis://host:26379`, or `rediss://` for TLS; with a login \
                             of its own as `redis://user:password@host:26379`";

/// The Sentinels of a service are missing.
const SENTINELS_HINT: &str =
    "list some, better all: [\"redis://host:26379\", \"redis://other:26379\"]";

/// `redis.mode`: how the servers of a target are found.
#[derive(Clone, Debug)]
pub enum Mode {
    /// `redis.url` names the server.
    Standalone,
    /// `redis.url` names a node of a cluster, which knows the others.
    Cluster {
        /// URLs of more nodes, for when that one is away. Their login is that of `redis.url`.
        seeds: Vec<String>,
    },
    /// Sentinels tell which server is the primary of a service.
    Sentinel(Sentinels),
}

/// A service, and who knows where its primary is.
#[derive(Clone, Debug)]
pub struct Sentinels {
    /// The name of the service, which is the host of `redis.url`.
    pub service: String,
    /// `redis.sentinels`, in the order of the file: at least one, each once.
    pub list: Vec<Sentinel>,
}

/// A Sentinel.
#[derive(Clone, Debug)]
pub struct Sentinel {
    /// `redis://` or `rediss://` URL with a port and without a password.
    pub url: String,
    /// Its own password; the servers have another.
    pub password: Source,
}

impl Sentinel {
    /// Host and port, as messages name it.
    #[must_use]
    pub fn address(&self) -> String {
        let url = Url::parse(&self.url).ok();
        let parts = url.as_ref().and_then(|url| Some((url.host_str()?, url.port()?)));
        parts.map(|(host, port)| format!("{host}:{port}")).unwrap_or_default()
    }
}

/// The mode, as the file has it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Standalone,
    Cluster,
    Sentinel,
    /// Nothing that there is: it is told already.
    Wrong,
}

/// The options that are about it, as the file has them.
pub(super) struct Options {
    kind: Kind,
    seeds: Vec<Located<String>>,
    sentinels: Vec<Sentinel>,
}

impl Options {
    /// Reads `mode`, `seeds` and `sentinels`, and holds them against each other.
    pub(super) fn read(reader: &mut Reader<'_>, section: &mut Section<'_, '_>) -> Options {
        let kind = kind(reader, section);
        if kind == Kind::Sentinel && !section.has("sentinels") {
            let at = reader.location(section.start(), &section.key("sentinels"));
            reader.problem(at, "is missing".to_owned(), Some(SENTINELS_HINT));
        }
        let seeds = match kind {
            Kind::Cluster | Kind::Wrong => reader.texts(section, "seeds"),
            Kind::Standalone | Kind::Sentinel => of_other_mode(reader, section, "seeds", "cluster"),
        };
        let sentinels = match kind {
            Kind::Sentinel => reader.filled_texts(section, "sentinels", SENTINELS_HINT),
            Kind::Wrong => reader.texts(section, "sentinels"),
            Kind::Standalone | Kind::Cluster => {
                of_other_mode(reader, section, "sentinels", "sentinel")
            }
        };
        Options {
            kind,
            seeds: read_each(reader, seeds, seed, SEED_HINT),
            sentinels: different(reader, sentinels),
        }
    }

    /// How `redis.url` is given.
    pub(super) fn url_hint(&self) -> &'static str {
        if self.kind == Kind::Sentinel { SERVICE_HINT } else { URL_HINT }
    }

    /// Whether something that is connected to asks for TLS, given `redis.url`.
    pub(super) fn asks_for_tls(&self, url: &Url) -> bool {
        let is_tls = |sentinel: &Sentinel| sentinel.url.starts_with("rediss:");
        url.scheme() == "rediss" || self.sentinels.iter().any(is_tls)
    }

    /// Holds `redis.url`, as the file has it and without its password, against the mode.
    pub(super) fn hold(&self, reader: &mut Reader<'_>, url: &Located<String>, plain: &Url) {
        let mut wrong = |message: &str, hint| {
            reader.problem(url.at.clone(), message.to_owned(), Some(hint));
        };
        let has_host = plain.host_str().is_some_and(|host| !host.is_empty());
        match self.kind {
            Kind::Standalone | Kind::Wrong => {}
            Kind::Cluster if !has_host => {
                wrong("names a socket, and nodes of a cluster have hosts", SEED_HINT);
            }
            Kind::Cluster => {
                if names_a_database(plain) {
                    wrong("a cluster has database 0 alone", "leave the number at its end out");
                }
                let name = &url.at.key;
                for seed in &self.seeds {
                    let (is, is_not) = match plain.scheme() {
                        "rediss" => ("asks", "does not"),
                        _ => ("does not ask", "does"),
                    };
                    let message = format!("`{name}` {is} for TLS, and this {is_not}");
                    let hint = "begin all of them with `rediss://`, or all with `redis://`";
                    if !seed.value.starts_with(&format!("{}:", plain.scheme())) {
                        reader.problem(seed.at.clone(), message, Some(hint));
                    }
                }
            }
            Kind::Sentinel if !has_host => wrong("names a socket, and no service", SERVICE_HINT),
            Kind::Sentinel => {
                if plain.port().is_some() {
                    wrong("names a port, which a service has not", SERVICE_HINT);
                }
                // The letters that Sentinel allows in a name.
                let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
                if !plain.host_str().is_some_and(|host| host.bytes().all(is_of_name)) {
                    wrong("names no service: a name has letters, digits, `.`, `-` and `_`", {
                        SERVICE_HINT
                    });
                }
            }
        }
    }

    /// The mode of a target, given `redis.url` without its password.
    pub(super) fn mode(self, url: &Url) -> Mode {
        match self.kind {
            Kind::Standalone | Kind::Wrong => Mode::Standalone,
            Kind::Cluster => {
                Mode::Cluster { seeds: self.seeds.into_iter().map(|seed| seed.value).collect() }
            }
            Kind::Sentinel => Mode::Sentinel(Sentinels {
                service: url.host_str().unwrap_or_default().to_owned(),
                list: self.sentinels,
            }),
        }
    }
}

fn kind(reader: &mut Reader<'_>, section: &mut Section<'_, '_>) -> Kind {
    let Some(text) = reader.text(section, "mode") else {
        // One that is there and cannot be read is told already.
        return if section.has("mode") { Kind::Wrong } else { Kind::Standalone };
    };
    match text.value.as_str() {
        "standalone" => Kind::Standalone,
        "cluster" => Kind::Cluster,
        "sentinel" => Kind::Sentinel,
        other => {
            let message = format!("`{other}` is not a mode");
            let hint = "write `standalone`, `cluster` or `sentinel`";
            reader.problem(text.at, message, Some(hint));
            Kind::Wrong
        }
    }
}

/// Reads a list that belongs to another mode: it has to be empty, and what is wrong with its items
/// is told, too.
fn of_other_mode(
    reader: &mut Reader<'_>,
    section: &mut Section<'_, '_>,
    name: &'static str,
    mode: &str,
) -> Option<Vec<Located<String>>> {
    let texts = reader.texts(section, name)?;
    if !texts.is_empty() {
        let start = section.take(name)?.span().start;
        let at = reader.location(start, &section.key(name));
        let message = format!("goes with `mode = \"{mode}\"` alone");
        let hint = format!("write `mode = \"{mode}\"`, or leave `{name}` out");
        reader.problem(at, message, Some(&hint));
    }
    Some(texts)
}

/// The items of a list that can be used; what is wrong with the others is told.
fn read_each<T>(
    reader: &mut Reader<'_>,
    texts: Option<Vec<Located<String>>>,
    read: fn(&str) -> Result<T, String>,
    hint: &str,
) -> Vec<Located<T>> {
    let mut all = Vec::new();
    for text in texts.into_iter().flatten() {
        match read(&text.value) {
            Ok(value) => all.push(Located { value, at: text.at }),
            Err(message) => reader.problem(text.at, message, Some(hint)),
        }
    }
    all
}

/// The Sentinels, each once: they are counted when they do not agree.
fn different(reader: &mut Reader<'_>, texts: Option<Vec<Located<String>>>) -> Vec<Sentinel> {
    let mut all: Vec<Sentinel> = Vec::new();
    for Located { value, at } in read_each(reader, texts, sentinel, SENTINEL_HINT) {
        if all.iter().any(|other| other.address() == value.address()) {
            let hint = "list each once: when they do not agree, they are counted";
            reader.problem(at, "is there already".to_owned(), Some(hint));
            continue;
        }
        all.push(value);
    }
    all
}

/// The URL of a node, without its password; no message repeats a part of it.
fn node(text: &str) -> Result<(Url, Option<SecretString>), String> {
    let parts = match split_password(text) {
        Err(UrlError::Scheme) => None,
        Err(error) => return Err(error.to_string()),
        Ok((url, password)) => {
            matches!(url.scheme(), "redis" | "rediss").then_some((url, password))
        }
    };
    let (url, password) =
        parts.ok_or_else(|| "must start with `redis://` or `rediss://`".to_owned())?;
    if names_a_database(&url) {
        return Err("names a database".to_owned());
    }
    Ok((url, password))
}

/// Another one than 0.
fn names_a_database(url: &Url) -> bool {
    url.path().bytes().any(|byte| !matches!(byte, b'/' | b'0'))
}

fn seed(text: &str) -> Result<String, String> {
    let (url, password) = node(text)?;
    if password.is_some() || !url.username().is_empty() {
        return Err("has a login: that of `url` is for all nodes".to_owned());
    }
    Ok(url.to_string())
}

fn sentinel(text: &str) -> Result<Sentinel, String> {
    let (mut url, password) = node(text)?;
    // The client library would go on as the default user.
    if !url.username().is_empty() && password.is_none() {
        return Err("names a user and no password".to_owned());
    }
    if url.port().is_none() {
        url.set_port(Some(SENTINEL_PORT)).map_err(|()| UrlError::Host.to_string())?;
    }
    Ok(Sentinel { url: url.to_string(), password: password.map_or(Source::None, Source::Given) })
}

/// Whether two targets are the same database, with the same prefix, as far as their addresses show.
pub(super) fn is_same_place(one: &Redis, other: &Redis) -> bool {
    let database = |redis: &Redis| place(&redis.url).1;
    let others = addresses(other);
    one.prefix == other.prefix
        && database(one) == database(other)
        && addresses(one).iter().any(|address| others.contains(address))
}

/// The addresses of a target, of which one is enough to reach it.
fn addresses(redis: &Redis) -> Vec<String> {
    let address = |url: &String| place(url).0;
    match &redis.mode {
        Mode::Standalone => vec![address(&redis.url)],
        Mode::Cluster { seeds } => std::iter::once(&redis.url).chain(seeds).map(address).collect(),
        Mode::Sentinel(Sentinels { service, list }) => {
            list.iter().map(|sentinel| format!("{service} of {}", sentinel.address())).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::{seed, sentinel};
    use crate::config::{Mode, Redis, Sentinel, Sentinels};
    use crate::password::Source;

    #[test]
    fn a_sentinel_has_a_port_and_its_password_is_apart() {
        for (text, url, password) in [
            ("redis://h", "redis://h:26379", None),
            ("rediss://[::1]:7/", "rediss://[::1]:7/", None),
            ("redis://u:p%40@h:26380", "redis://u@h:26380", Some("p@")),
            ("redis://:hunter2@h/0", "redis://h:26379/0", Some("hunter2")),
        ] {
            let found = sentinel(text).unwrap();
            assert_eq!(found.url, url, "{text}");
            assert_eq!(found.password.given().map(ExposeSecret::expose_secret), password, "{text}");
            assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_its_words() {
        for (text, message) in [
            ("h:26379", "must start with `redis://` or `rediss://`"),
            ("unix:///run/r.sock", "must start with `redis://` or `rediss://`"),
            ("redis:///", "names no host"),
            ("redis://h/1", "names a database"),
            ("redis://user@h", "names a user and no password"),
            ("redis://:12?hunter2@h/0", "is not a URL"),
        ] {
            assert_eq!(sentinel(text).unwrap_err(), message, "{text}");
        }
        assert_eq!(seed("redis://h:1/0"), Ok("redis://h:1/0".to_owned()));
        assert!(seed("redis://:hunter2@h").unwrap_err().contains("for all nodes"));
        assert!(seed("redis://u@h").unwrap_err().contains("for all nodes"));
    }

    #[test]
    fn one_address_in_common_is_one_place() {
        let of_sentinels = |service: &str, ports: &[u16]| {
            let sentinel =
                |port: &u16| Sentinel { url: format!("redis://h:{port}"), password: Source::None };
            let list = ports.iter().map(sentinel).collect();
            let sentinels = Sentinels { service: service.to_owned(), list };
            Redis { mode: Mode::Sentinel(sentinels), ..Redis::at(&format!("redis://{service}/0")) }
        };
        let cluster = |url: &str, seeds: &[&str]| {
            let seeds = seeds.iter().map(|&seed| seed.to_owned()).collect();
            Redis { mode: Mode::Cluster { seeds }, ..Redis::at(url) }
        };
        let (a, b) = ("redis://a:6379", "redis://b:6379");
        for (one, other, same) in [
            (of_sentinels("x", &[1, 2]), of_sentinels("x", &[2, 3]), true),
            (of_sentinels("x", &[1]), of_sentinels("x", &[2]), false),
            (of_sentinels("x", &[1]), of_sentinels("y", &[1]), false),
            (of_sentinels("x", &[1]), Redis::at("redis://x/0"), false),
            (cluster(a, &[b]), cluster("redis://c:1", &[a]), true),
            (cluster(a, &[b]), Redis::at("redis://b"), true),
            (Redis::at(a), Redis::at("redis://a:6379/1"), false),
        ] {
            assert_eq!(super::is_same_place(&one, &other), same, "{one:?} and {other:?}");
        }
    }
}
