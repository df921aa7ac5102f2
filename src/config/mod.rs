//! The configuration file: its structs, its defaults, and every problem in it at once.

mod audit;
mod changes;
#[cfg(any(test, feature = "failpoints"))]
mod for_tests;
mod lookup;
mod parse;
mod quotes;
mod reader;
mod redis;
mod redis_mode;
mod redis_url;
mod script;
mod secret;
mod slot_on;
mod source;
mod target;
mod templates;
mod unclosed;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::password;
use crate::postgres::Endpoint;

pub use changes::{Difference, How, Subject, at_start, differences, place};
pub(crate) use parse::unreadable;
pub use parse::{Parsed, parse};
pub use quotes::Quotes;
pub use redis_mode::{Mode, Sentinel, Sentinels};
pub use script::Script;
pub use slot_on::SlotOn;
pub(crate) use source::OWN_PREFIX;
pub use source::Source;
pub use target::{Target, TargetId, Targets};

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[postgres]`.
    pub postgres: Postgres,
    /// `[redis]`, or each `[[redis]]`, in the order of the file; by [`TargetId`].
    pub redis: Vec<Redis>,
    /// `[sweep]`.
    pub sweep: Sweep,
    /// `[refill]`.
    pub refill: Refill,
    /// `[http]`.
    pub http: Http,
    /// `[log]`.
    pub log: Log,
    /// `[audit]`.
    pub audit: Audit,
    /// `[[rule]]`, in the order of the file.
    pub rules: Vec<Rule>,
    /// `[lookup.NAME]`, by name.
    pub lookups: Vec<Lookup>,
}

impl Config {
    /// Each target with all that is about it, in the order of the file.
    pub fn targets(&self) -> impl Iterator<Item = Target> {
        self.redis.iter().map(|redis| Target {
            redis: redis.clone(),
            rules: self.rules.iter().filter(|rule| rule.targets.has(redis.id)).cloned().collect(),
            slot: self.postgres.slot.clone(),
            sweep: self.sweep.clone(),
            refill: self.refill.clone(),
        })
    }

    /// Gives the configuration with the primary at this address alone where URLs name several
    /// hosts, of which it is one: what a session begins with one server must not go on with
    /// another.
    #[must_use]
    pub fn only(&self, primary: &str) -> Config {
        let mut config = self.clone();
        config.postgres.endpoint = config.postgres.endpoint.only(primary);
        config.postgres.replication_endpoint = config.postgres.replication_endpoint.only(primary);
        config
    }
}

/// `[postgres]`: where changes come from.
#[derive(Clone, Debug)]
pub struct Postgres {
    /// SQL: gate and checks. Must reach the primary itself, not a pooler.
    pub endpoint: Endpoint,
    /// The replication connection; the same as `endpoint` unless `replication_url` is given. With a
    /// slot on a standby, the standby.
    pub replication_endpoint: Endpoint,
    /// Publication name.
    pub publication: String,
    /// Replication slot name.
    pub slot: String,
    /// Standbys that the application reads from.
    pub replicas: Vec<Endpoint>,
    /// WAL in bytes that may be unconfirmed, and so stay on the server's disk, before walsweep
    /// gives the slot up, sweeps everything and begins anew; `None` (an empty text) is no limit.
    pub max_retained_wal: Option<u64>,
    /// Whether standbys are to keep a copy of the slot, so that it is there after a promotion.
    /// Needs Postgres 17.
    pub failover: bool,
    /// The server that the slot is on.
    pub slot_on: SlotOn,
    /// Whether keys of `walsweep probe` are removed. For that all logical messages are asked for,
    /// whoever writes them.
    pub probe: bool,
}

/// `[redis]`: where keys are removed.
#[derive(Clone, Debug)]
pub struct Redis {
    /// Its place in the configuration.
    pub id: TargetId,
    /// The target's name: unique, the `target` label of metrics.
    pub name: String,
    /// Whether it is the only one.
    pub is_alone: bool,
    /// The text that its keys begin with, before what the rules say.
    pub prefix: String,
    /// The prefixes of all targets, this one's among them.
    pub prefixes: Vec<String>,
    /// How its servers are found.
    pub mode: Mode,
    /// `redis://` or `rediss://` URL without its password. Of a service that Sentinels watch it is
    /// no address: its host is the service's name.
    pub url: String,
    /// Where the password comes from, for each login anew.
    pub password: password::Source,
    /// PEM file with the certificate authorities that `rediss://` trusts instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM files of the certificate that is shown to the server and of its key; read at each login.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Replicas that must have the removals before they are confirmed to Postgres.
    pub wait_replicas: u32,
    /// The channel on which removals are told, for caches inside of processes; `None` (an empty
    /// text) is none.
    pub publish: Option<String>,
}

impl Redis {
    /// One alone at this URL, which has no password, and everything else at its default.
    #[must_use]
    pub fn at(url: &str) -> Redis {
        Redis {
            id: TargetId::FIRST,
            name: "redis".to_owned(),
            is_alone: true,
            prefix: String::new(),
            prefixes: vec![String::new()],
            mode: Mode::Standalone,
            url: url.to_owned(),
            password: password::Source::None,
            ca_file: None,
            client_certificate: None,
            wait_replicas: 0,
            publish: None,
        }
    }

    /// How a person calls `redis-cli` for this server in a shell, without the password; where
    /// Sentinels are, for the server that is the primary when the call is made.
    #[must_use]
    pub fn cli(&self) -> String {
        match &self.mode {
            Mode::Standalone | Mode::Cluster { .. } => redis_url::redis_cli(&self.url),
            Mode::Sentinel(sentinels) => redis_url::redis_cli_by_sentinel(&self.url, sentinels),
        }
    }

    /// Whether [`Redis::cli`] asks a Sentinel that wants a password of its own, which is then in
    /// `SENTINEL_AUTH`.
    #[must_use]
    pub fn cli_needs_sentinel_auth(&self) -> bool {
        let Mode::Sentinel(sentinels) = &self.mode else { return false };
        sentinels.list.first().is_some_and(|sentinel| sentinel.password.is_some())
    }

    /// How messages name the target: as `redis`, or with its name where there are several.
    #[must_use]
    pub fn title(&self) -> String {
        if self.is_alone { "redis".to_owned() } else { format!("redis `{}`", self.name) }
    }
}

/// `[sweep]`: how patterns are removed.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// The longest that one SCAN call may hold Redis.
    pub max_stall: Duration,
    /// The share of one Redis's time that SCAN passes may take over any ten seconds, above 0 and
    /// at most 1, which is no limit.
    pub max_load: f64,
    /// Memory of the names of live keys, bytes, of all Redis together, so that patterns need no
    /// SCAN; `None` if they are not kept.
    pub index: Option<usize>,
}

/// `[refill]`: the second removal.
#[derive(Clone, Debug)]
pub struct Refill {
    /// How long after the first removal keys are removed again; zero turns it off.
    pub window: Duration,
    /// Whether the second removal takes only keys that were written again, where Redis tells.
    pub observe: bool,
}

/// `[http]`: metrics, health, and the page for people.
#[derive(Clone, Debug)]
pub struct Http {
    /// Address of `/`, `/metrics`, `/healthz` and the others; `None` (an empty text) turns it off.
    pub listen: Option<SocketAddr>,
    /// Whether whoever reaches that address may be told of keys, which hold values of rows.
    pub keys: bool,
}

/// `[audit]`: a file of what was removed, and for which transaction.
#[derive(Clone, Debug)]
pub struct Audit {
    /// The file; `None` (an empty text) turns it off.
    pub file: Option<PathBuf>,
    /// The size beyond which a new file begins, bytes.
    pub max_bytes: u64,
    /// Older files that are kept, each at the next number behind the name.
    pub keep: usize,
}

/// `[log]`.
#[derive(Clone, Debug)]
pub struct Log {
    /// Text or JSON lines.
    pub format: LogFormat,
    /// The least severe level that is written, or a `tracing` filter directive.
    pub level: String,
    /// Whether the keys of each transaction are told, too.
    pub keys: bool,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// One `[[rule]]`.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The rule's name: unique, the `rule` label of the metrics.
    pub name: String,
    /// Where the rule starts in the file.
    pub at: Location,
    /// The table whose changes the rule looks at, or the materialized view; see [`Rule::source`].
    pub table: TableName,
    /// Where the source stands: `table`, `materialized_view` or `message`.
    pub table_at: Location,
    /// The operations that it looks at.
    pub operations: Operations,
    /// Updates count only if one of these columns differs; empty: every update counts.
    pub changed: Vec<Located<String>>,
    /// Columns declared never to change, so that their old value is the new one.
    pub immutable: Vec<Located<String>>,
    /// Key templates, unparsed.
    pub keys: Vec<Located<String>>,
    /// Templates of sets whose members are names of keys, unparsed.
    pub tags: Vec<Located<String>>,
    /// Fields of hashes.
    pub fields: Vec<Fields>,
    /// The source of the changes that it looks at.
    pub source: Source,
    /// The condition that a change has to meet, in CEL, unparsed; `None` is always met.
    pub when: Option<Script>,
    /// The targets that its keys are removed from.
    pub targets: Targets,
}

/// An entry of a rule's `fields`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    /// The template of the hash, unparsed.
    pub key: Located<String>,
    /// The templates of its fields, unparsed.
    pub fields: Vec<Located<String>>,
}

/// One `[lookup.NAME]`: a row fetched by columns of a change.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The name that placeholders call it by: letters, digits and `_`.
    pub(crate) name: String,
    /// Where it starts in the file.
    pub(crate) at: Location,
    /// One query that reads, unparsed.
    pub sql: Located<String>,
    /// The columns of the rule's table whose values are `$1`, `$2` and so on.
    pub params: Vec<Located<String>>,
    /// How many answers may be kept, at most; 0 for none.
    pub cache: usize,
    /// How many rows an answer is meant to have.
    pub rows: LookupRows,
    /// The most rows of one answer, at least one, where it may have many.
    pub limit: usize,
    /// The fate of a key where one row is wanted and there is none.
    pub missing: Missing,
}

/// How many rows an answer of a lookup is meant to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupRows {
    /// One: another number of rows is a doubt.
    One,
    /// Any number: each row gives its keys, none gives none.
    Many,
}

/// The fate of a key where a lookup of one row finds none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The placeholder widens to `*` (I5).
    Widen,
    /// There is no key: the configuration says that other rules cover what the row stood for.
    Skip,
}

/// A schema-qualified table name, as in `pg_class`: no quotes, case kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    /// Schema.
    pub schema: String,
    /// Table.
    pub name: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", printable(&self.schema), printable(&self.name))
    }
}

/// A name as messages show it. It may hold anything: none may begin a line of its own, or act on a
/// terminal.
pub(crate) fn printable(name: &str) -> String {
    let shown = name.chars().map(|one| match one {
        one if one.is_control() => one.escape_default().to_string(),
        one => one.to_string(),
    });
    shown.collect()
}

/// A text that does not name a table.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a table name")]
pub struct NotATable(String);

impl FromStr for TableName {
    type Err = NotATable;

    /// `schema.table` or `table`, which is in `public`. A part may be quoted as in SQL: dots inside
    /// the quotes are part of it, `""` is a quote. Case is kept with quotes or without.
    fn from_str(text: &str) -> Result<TableName, NotATable> {
        let fault = || NotATable(text.to_owned());
        let mut parts = vec![String::new()];
        let (mut quoted, mut characters) = (false, text.chars().peekable());
        while let Some(character) = characters.next() {
            let part = parts.last_mut().ok_or_else(fault)?;
            match character {
                '"' if quoted && characters.next_if_eq(&'"').is_some() => part.push('"'),
                '"' => quoted = !quoted,
                '.' if !quoted => parts.push(String::new()),
                other => part.push(other),
            }
        }
        let well_formed = !quoted && parts.iter().all(|part| !part.is_empty());
        match parts.as_mut_slice() {
            [name] if well_formed => {
                Ok(TableName { schema: "public".to_owned(), name: std::mem::take(name) })
            }
            [schema, name] if well_formed => {
                Ok(TableName { schema: std::mem::take(schema), name: std::mem::take(name) })
            }
            _ => Err(fault()),
        }
    }
}

/// A set of row operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a set of four named members")]
pub struct Operations {
    /// INSERT.
    pub insert: bool,
    /// UPDATE.
    pub update: bool,
    /// DELETE.
    pub delete: bool,
    /// TRUNCATE.
    pub truncate: bool,
}

impl Operations {
    /// All four.
    pub const ALL: Operations =
        Operations { insert: true, update: true, delete: true, truncate: true };

    /// None of them.
    pub const NONE: Operations =
        Operations { insert: false, update: false, delete: false, truncate: false };

    /// The operations that are of these or of `other`.
    #[must_use]
    pub fn union(self, other: Operations) -> Operations {
        Operations {
            insert: self.insert || other.insert,
            update: self.update || other.update,
            delete: self.delete || other.delete,
            truncate: self.truncate || other.truncate,
        }
    }
}

/// A value and where it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub at: Location,
}

/// A place in the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Dotted key, such as `rule.2.keys.0`; arrays count from 0.
    pub key: String,
}

/// Something wrong in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub at: Location,
    /// A message that says what is wrong, lowercase, values in backticks.
    pub message: String,
    /// Advice on what to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { at: Location { line, column, key }, message, hint } = self;
        write!(formatter, "{line}:{column}: ")?;
        if !key.is_empty() {
            write!(formatter, "{key}: ")?;
        }
        formatter.write_str(message)?;
        hint.iter().try_for_each(|hint| write!(formatter, "\n  hint: {hint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::TableName;

    /// Such as one out of a comment that somebody else may write.
    #[test]
    fn a_table_is_shown_on_one_line_and_moves_no_cursor() {
        let table = |schema: &str, name: &str| {
            TableName { schema: schema.to_owned(), name: name.to_owned() }.to_string()
        };
        assert_eq!(table("public", "Straße \"x\""), "public.Straße \"x\"");
        let forged = table("x\r", "y\nerror[role]: z\u{1b}[1A");
        assert_eq!(forged, "x\\r.y\\nerror[role]: z\\u{1b}[1A");
    }
}
