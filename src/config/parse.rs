//! The sections of the configuration, each to its struct, with all their problems at once.

use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;
use tracing_subscriber::EnvFilter;

use super::reader::{Reader, Section};
use super::secret::{Secret, secret};
use super::slot_on::slot_on;
use super::source::{Named, Source, source};
use super::templates::{Templates, templates};
use super::{
    Config, Http, Located, Log, LogFormat, Lookup, Postgres, Problem, Refill, Rule, Sweep, Targets,
    audit, lookup, redis, unclosed,
};
use crate::config::Operations;
use crate::postgres::Endpoint;

/// `max_retained_wal` unless given, in bytes: a slot that is given up costs one sweep of what the
/// rules could produce, a full disk costs the database.
const RETAINED_WAL: u64 = 10 << 30;

/// The least that can be given: a checkpoint of a small server keeps as much.
const RETAINED_WAL_LEAST: u64 = 64 << 20;

/// The content of a configuration text.
#[derive(Debug)]
pub struct Parsed {
    /// The configuration, if nothing is wrong with it.
    pub config: Option<Config>,
    /// Its rules that could be read whole, so that their templates can be judged in any case.
    pub rules: Vec<Rule>,
    /// Its lookups, with what they lack filled in, for the same.
    pub lookups: Vec<Lookup>,
    /// Everything that is wrong, in the order of the file; what is no TOML hides the rest.
    pub problems: Vec<Problem>,
}

/// Reads a configuration; `env` looks up environment variables, relative paths begin at `folder`.
#[must_use]
pub fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>, folder: &Path) -> Parsed {
    let mut reader = Reader::new(text, env, folder);
    let (document, errors) = DeTable::parse_recoverable(text);
    // What stands around such an error is read as a guess, and its problems would be guesses, too.
    if !errors.is_empty() {
        no_toml(&mut reader, text, &errors);
        let (rules, lookups) = (Vec::new(), Vec::new());
        return Parsed { config: None, rules, lookups, problems: sorted(reader.problems) };
    }
    let mut root = Section::new(document.get_ref(), 0..0, String::new());
    let postgres = postgres(&mut reader, &mut root);
    let redis = redis::targets(&mut reader, &mut root);
    let mut section = reader.section(&mut root, "sweep");
    let bounds = (Duration::from_millis(1), Duration::from_micros(100), Duration::from_secs(1));
    let sweep = Sweep {
        max_stall: reader.duration(&mut section, "max_stall", bounds),
        max_load: reader.share(&mut section, "max_load", (0.01, 0.25)),
        index: index(&mut reader, &mut section),
    };
    reader.finish(&section);
    let mut section = reader.section(&mut root, "refill");
    let bounds = (Duration::from_secs(1), Duration::ZERO, Duration::from_secs(3600));
    let window = reader.duration(&mut section, "window", bounds);
    let refill = Refill { window, observe: reader.flag(&mut section, "observe", false) };
    reader.finish(&section);
    let http = http(&mut reader, &mut root);
    let log = log(&mut reader, &mut root);
    let audit = audit::read(&mut reader, &mut root);
    let mut rules = rules(&mut reader, &mut root);
    redis::assign(&mut reader, &redis, &mut rules);
    let lookups = lookup::read(&mut reader, &mut root);
    reader.finish(&root);
    let problems = sorted(reader.problems);
    let config = postgres.filter(|_| problems.is_empty()).map(|postgres| {
        let (rules, lookups) = (rules.clone(), lookups.clone());
        let redis = redis.into_iter().filter_map(|section| section.redis).collect();
        Config { postgres, redis, sweep, refill, http, log, audit, rules, lookups }
    });
    Parsed { config, rules, lookups, problems }
}

/// `index` and `index_memory`.
fn index(reader: &mut Reader<'_>, section: &mut Section<'_, '_>) -> Option<usize> {
    let is_on = reader.flag(section, "index", false);
    let bytes = reader.limit(section, "index_memory", (1 << 20, 256 << 20));
    is_on.then(|| usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// Tells of a text that is no TOML: each key that is there twice, up to the line of the first error
/// of another kind, and that. Whatever else the parser says may come of it.
fn no_toml(reader: &mut Reader<'_>, text: &str, errors: &[toml::de::Error]) {
    /// The parser's message for such a key, beside which it understands the rest.
    const TWICE: &str = "duplicate key";
    let start = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    let mut errors: Vec<&toml::de::Error> = errors.iter().collect();
    errors.sort_by_key(|error| start(error));
    let is_twice = |error: &toml::de::Error| error.message().trim() == TWICE;
    let line = |error: &toml::de::Error| reader.location(start(error), "").line;
    let first = errors.iter().find(|error| !is_twice(error)).copied();
    let end = first.map_or(usize::MAX, line);
    let told = errors.into_iter().filter(|error| is_twice(error) && line(error) < end);
    let mut told: Vec<_> = told.chain(first).collect();
    let lists = [
        ("rule", "write `[[rule]]`, with both pairs of brackets, above each rule"),
        ("redis", "write `[[redis]]`, with both pairs of brackets, above each of several"),
    ];
    for (list, hint) in lists {
        let is_one = |error: &&toml::de::Error| is_twice(error) && heads(list, text, start(error));
        if let Some(at) = told.iter().position(is_one) {
            // All that follows is within it, or comes of it.
            let place = reader.location(start(told[at]), "");
            let message = format!("`[{list}]` is one table, and there is a {list} already");
            reader.problem(place, message, Some(hint));
            told.truncate(at);
        }
    }
    for error in told {
        let unclosed = unclosed::bracket(text).filter(|open| *open <= start(error));
        match unclosed.filter(|_| !is_twice(error)) {
            Some(open) => {
                let hint = Some("write `]` after its last value");
                let at = reader.location(open, "");
                reader.problem(at, "this `[` has no `]`".to_owned(), hint);
            }
            None => {
                let message = error.message().trim().replace('\n', ", ");
                let hint = Some("see https://toml.io for the syntax");
                reader.problem(reader.location(start(error), ""), message, hint);
            }
        }
    }
}

/// Whether the line of this byte is the header of a table of this name as if there were but one.
fn heads(table: &str, text: &str, at: usize) -> bool {
    let begin = text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |end| end + 1);
    let line = text.get(begin..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let name = line.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']'));
    name.is_some_and(|(name, _)| name.trim() == table)
}

fn sorted(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by(|one, other| one.at.cmp(&other.at));
    problems
}

fn postgres(reader: &mut Reader<'_>, root: &mut Section<'_, '_>) -> Option<Postgres> {
    let mut section = reader.section(root, "postgres");
    let hint = "give it as `postgres://user@host:5432/database`";
    let url = reader.required_text(&mut section, "url", hint);
    let replication_url = reader.filled_text(&mut section, "replication_url");
    let replica_urls = reader.texts(&mut section, "replicas").unwrap_or_default();
    let secret = secret(reader, &mut section);
    let mut endpoint = |url: Option<Located<String>>| {
        let url = url?;
        match Endpoint::parse(&url.value) {
            Ok(endpoint) => with_password(reader, endpoint, &url, &secret),
            Err(error) => {
                reader.problem(url.at, error.to_string(), Some(hint));
                None
            }
        }
    };
    let has_replication_url = replication_url.is_some();
    let (sql, replication) = (endpoint(url), endpoint(replication_url));
    let replicas: Vec<(Endpoint, Located<String>)> = replica_urls
        .into_iter()
        .filter_map(|url| Some((endpoint(Some(url.clone()))?, url)))
        .collect();
    for (_, url) in replicas.iter().filter(|(endpoint, _)| endpoint.is_several()) {
        let message = "the URL of a replica names several hosts".to_owned();
        reader.problem(url.at.clone(), message, Some("name each standby by a URL of its own"));
    }
    let replicas = each_once(reader, replicas);
    let publication = name(reader, &mut section, "publication");
    let slot = name(reader, &mut section, "slot");
    let is_slot = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !slot.value.bytes().all(is_slot) {
        let message = format!("`{}` is not a slot name", slot.value);
        reader.problem(slot.at, message, Some("use only `a` to `z`, digits and `_`"));
    }
    let retained = (RETAINED_WAL_LEAST, RETAINED_WAL);
    let max_retained_wal = reader.memory(&mut section, "max_retained_wal", retained);
    let failover = reader.flag(&mut section, "failover", false);
    let probe = reader.flag(&mut section, "probe", false);
    let standby = replication.as_ref().filter(|_| has_replication_url);
    let slot_on = slot_on(reader, &mut section, (has_replication_url, standby), failover);
    reader.finish(&section);
    let endpoint = sql?;
    let replication_endpoint = if has_replication_url { replication? } else { endpoint.clone() };
    let (publication, slot) = (publication.value, slot.value);
    Some(Postgres {
        endpoint,
        replication_endpoint,
        publication,
        slot,
        replicas,
        max_retained_wal,
        failover,
        slot_on,
        probe,
    })
}

/// Standbys, each at an address of its own: the address is a label of the metrics.
fn each_once(reader: &mut Reader<'_>, replicas: Vec<(Endpoint, Located<String>)>) -> Vec<Endpoint> {
    let mut known: Vec<Endpoint> = Vec::new();
    for (endpoint, url) in replicas {
        let address = endpoint.address();
        if known.iter().any(|other| other.address() == address) {
            let message = format!("`{address}` is named twice");
            reader.problem(url.at, message, Some("name each standby once"));
        }
        known.push(endpoint);
    }
    known
}

fn with_password(
    reader: &mut Reader<'_>,
    mut endpoint: Endpoint,
    url: &Located<String>,
    secret: &Secret,
) -> Option<Endpoint> {
    match &secret.source {
        Some(source) if endpoint.password.is_some() => {
            let message = format!("`{}` has a password, too", url.at.key);
            reader.problem(source.at.clone(), message, Some("keep one of the two"));
        }
        Some(source) => endpoint.password = source.value.clone(),
        None if secret.is_wrong => {}
        None => {
            // Tried now, for what is wrong with it; read at each login.
            if let Err(error) = endpoint.clone().load_password() {
                reader.problem(url.at.clone(), error.to_string(), None);
                return None;
            }
        }
    }
    Some(endpoint)
}

/// `publication` and `slot`: names of at most 63 bytes, `walsweep` unless given.
fn name(
    reader: &mut Reader<'_>,
    section: &mut Section<'_, '_>,
    key: &'static str,
) -> Located<String> {
    let default = Located { value: "walsweep".to_owned(), at: super::Location::default() };
    let Some(name) = reader.text(section, key) else { return default };
    if name.value.is_empty() || name.value.len() > 63 {
        let message = format!("`{}` is not a name of 1 to 63 bytes", name.value);
        reader.problem(name.at.clone(), message, Some("leave it out for `walsweep`"));
        return default;
    }
    name
}

fn http(reader: &mut Reader<'_>, root: &mut Section<'_, '_>) -> Http {
    let mut section = reader.section(root, "http");
    let default = Some(([127, 0, 0, 1], 9185).into());
    let listen = match reader.text(&mut section, "listen") {
        None => default,
        Some(text) if text.value.is_empty() => None,
        Some(text) => text.value.parse().map_or_else(
            |_: std::net::AddrParseError| {
                let message = format!("`{}` is not an address and a port", text.value);
                let hint = "write `127.0.0.1:9185` or `[::1]:9185`; \"\" turns it off";
                reader.problem(text.at, message, Some(hint));
                default
            },
            Some,
        ),
    };
    let keys = reader.flag(&mut section, "keys", false);
    reader.finish(&section);
    Http { listen, keys }
}

fn log(reader: &mut Reader<'_>, root: &mut Section<'_, '_>) -> Log {
    let mut section = reader.section(root, "log");
    let format = match reader.text(&mut section, "format") {
        None => LogFormat::Text,
        Some(text) => match text.value.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                let message = format!("`{other}` is not a log format");
                reader.problem(text.at, message, Some("write `text` or `json`"));
                LogFormat::Text
            }
        },
    };
    let level = reader.text(&mut section, "level");
    if let Some(level) = &level {
        let is_plain = ["error", "warn", "info", "debug", "trace"].contains(&level.value.as_str());
        let is_filter = level.value.contains('=') && EnvFilter::try_new(&level.value).is_ok();
        if !is_plain && !is_filter {
            let message = format!("`{}` is not a log level", level.value);
            let hint = "write `error`, `warn`, `info`, `debug` or `trace`";
            reader.problem(level.at.clone(), message, Some(hint));
        }
    }
    let keys = reader.flag(&mut section, "keys", false);
    reader.finish(&section);
    Log { format, keys, level: level.map_or_else(|| "info".to_owned(), |level| level.value) }
}

fn rules(reader: &mut Reader<'_>, root: &mut Section<'_, '_>) -> Vec<Rule> {
    let hint = "add a `[[rule]]` with `name`, `table` and `keys`";
    let Some(value) = root.take("rule") else {
        let at = reader.location(0, "rule");
        reader.problem(at, "there is no rule".to_owned(), Some(hint));
        return Vec::new();
    };
    let Some(array) = value.get_ref().as_array() else {
        reader.wrong_type(value, "rule", "an array of tables, written `[[rule]]`");
        return Vec::new();
    };
    if array.is_empty() {
        let at = reader.location(value.span().start, "rule");
        reader.problem(at, "there is no rule".to_owned(), Some(hint));
    }
    let mut rules = Vec::new();
    for (index, item) in array.iter().enumerate() {
        let path = format!("rule.{index}");
        match item.get_ref().as_table() {
            Some(table) => {
                let mut section = Section::new(table, item.span(), path);
                rules.extend(rule(reader, &mut section, index));
                reader.finish(&section);
            }
            None => reader.wrong_type(item, &path, "a table"),
        }
    }
    rules
}

/// One rule, if its keys could be read; what else it lacks is filled in, so that they are judged.
fn rule(reader: &mut Reader<'_>, section: &mut Section<'_, '_>, index: usize) -> Option<Rule> {
    let at = reader.location(section.start(), &format!("rule.{index}"));
    let hint = "give the rule a name: it is a label of the metrics";
    let name = reader.required_text(section, "name", hint);
    if let Some(name) = &name {
        let is_label =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        let length_fits = (1..=64).contains(&name.value.len());
        if !length_fits || !name.value.bytes().all(is_label) {
            let message = format!("`{}` is not a rule name", name.value);
            let hint = "use 1 to 64 of `a` to `z`, digits, `_` and `-`";
            reader.problem(name.at.clone(), message, Some(hint));
        }
    }
    let Named { source, table, at: table_at } = source(reader, section, &at);
    let operations = operations(reader, section);
    let changed = reader.texts(section, "changed").unwrap_or_default();
    let immutable = reader.texts(section, "immutable").unwrap_or_default();
    let templates = templates(reader, section);
    let operations = if source == Source::Table { operations } else { Operations::NONE };
    let when = reader.script(section, "when");
    let name = name.map_or_else(|| format!("rule {index}"), |name| name.value);
    let Templates { keys, tags, fields } = templates?;
    let targets = Targets::NONE;
    Some(Rule {
        name,
        at,
        table,
        table_at,
        operations,
        changed,
        immutable,
        keys,
        tags,
        fields,
        source,
        when,
        targets,
    })
}

fn operations(reader: &mut Reader<'_>, section: &mut Section<'_, '_>) -> Operations {
    let hint = "leave it out for all four";
    let Some(list) = reader.filled_texts(section, "operations", hint) else {
        return Operations::ALL;
    };
    let mut operations =
        Operations { insert: false, update: false, delete: false, truncate: false };
    for item in list {
        let member = match item.value.as_str() {
            "insert" => &mut operations.insert,
            "update" => &mut operations.update,
            "delete" => &mut operations.delete,
            "truncate" => &mut operations.truncate,
            other => {
                let message = format!("`{other}` is not an operation");
                let hint = "write `insert`, `update`, `delete` or `truncate`";
                reader.problem(item.at, message, Some(hint));
                continue;
            }
        };
        if std::mem::replace(member, true) {
            let message = format!("`{}` is named twice", item.value);
            reader.problem(item.at, message, Some("name it once"));
        }
    }
    operations
}

/// Why a file could not be read, as a problem of the file.
pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    Problem {
        at: super::Location { line: 1, column: 1, key: String::new() },
        message: format!("read `{}`: {error}", path.display()),
        hint: Some("name the file with `--config FILE` or WALSWEEP_CONFIG".to_owned()),
    }
}
