//! The facts that `walsweep check` tells beside its findings: what it looked at, one line each.

use std::collections::BTreeSet;

use redis::aio::MultiplexedConnection;
use redis::cmd;
use serde::Serialize;
use tokio_postgres::Client;

use super::redis::address;
use super::redis_databases::Databases;
use super::redis_pass::{self, KEYS_MIN};
use super::{Code, Finding, catalog};
use crate::config::{Config, Rule, Source, Target};
use crate::words::counted;

/// Rules that are told one by one, at most.
const RULES_MAX: usize = 20;

/// Something that is as it should be, or of which nothing can be wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// The subject: `postgres`, `redis`, `rules`, `rule`, `pass` or `start`; it stays the same over
    /// versions.
    pub about: &'static str,
    /// The words for it.
    pub text: String,
}

impl Fact {
    pub(crate) fn new(about: &'static str, text: String) -> Fact {
        Fact { about, text }
    }
}

/// The version of the server behind `client`, and where it is. None where it does not tell.
pub async fn of_postgres(config: &Config, client: &Client) -> Option<Fact> {
    let (_pid, version) = catalog::server(client).await.ok()?;
    let address = config.postgres.endpoint.address();
    let (major, minor) = (version / 10_000, version % 10_000);
    Some(Fact::new("postgres", format!("version {major}.{minor} at `{address}`")))
}

/// The version of Redis, how many keys it has, and what a pass over them costs, unless one of these
/// `findings` tells that.
pub async fn of_redis(
    target: &Target,
    connection: &mut MultiplexedConnection,
    findings: &[Finding],
) -> Vec<Fact> {
    let info: Result<String, _> = cmd("INFO").arg("server").query_async(connection).await;
    let Ok(info) = info else { return Vec::new() };
    let value =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let (product, version) = match (value("valkey_version"), value("redis_version")) {
        (Some(version), _) => ("valkey ", version),
        (None, Some(version)) => ("", version),
        (None, None) => return Vec::new(),
    };
    let name = match target.redis.is_alone {
        true => String::new(),
        false => format!("`{}`: ", target.redis.name),
    };
    let mut text = format!("{name}{product}version {version} at `{}`", address(target));
    if findings.iter().any(|finding| finding.code == Code::RedisShards) {
        // It told of one of several servers.
        text.push_str(", and others behind it");
        return vec![Fact::new("redis", text)];
    }
    let Ok(Databases { own: keys, .. }) = Databases::read(target, connection).await else {
        return vec![Fact::new("redis", text)];
    };
    text.push_str(&format!(", {}", counted(keys, "key")));
    let mut facts = vec![Fact::new("redis", text)];
    if keys < KEYS_MIN && findings.iter().all(|finding| finding.code != Code::RedisPass) {
        let title = target.redis.title();
        let text = match keys {
            0 => format!("{title} has no keys: one SCAN pass costs it nothing"),
            _ => format!("one SCAN pass over {} costs {title} milliseconds", counted(keys, "key")),
        };
        facts.push(Fact::new("pass", text));
    }
    facts
}

/// How many rules there are, of how many tables, and what each gives.
#[must_use]
pub fn of_rules(config: &Config) -> Vec<Fact> {
    let distinct = |is_it: fn(&Source) -> bool| {
        let rules = config.rules.iter().filter(|rule| is_it(&rule.source));
        rules.map(named).collect::<BTreeSet<_>>().len() as u64
    };
    let rules = counted(config.rules.len() as u64, "rule");
    let sources = listed([
        (distinct(|one| *one == Source::Table), "table"),
        (distinct(|one| *one == Source::MaterializedView), "materialized view"),
        (distinct(|one| matches!(one, Source::Message(_))), "message prefix"),
    ]);
    let mut facts = vec![Fact::new("rules", format!("{rules} for {sources}"))];
    facts.extend(config.rules.iter().take(RULES_MAX).map(of_rule));
    if config.rules.len() > RULES_MAX {
        let text = format!("and {} more", config.rules.len() - RULES_MAX);
        facts.push(Fact::new("rule", text));
    }
    facts
}

fn of_rule(rule: &Rule) -> Fact {
    let patterns = rule.keys.iter().filter(|key| redis_pass::is_pattern(&key.value)).count() as u64;
    let exact = rule.keys.len() as u64 - patterns;
    let fields = rule.fields.iter().map(|entry| entry.fields.len() as u64).sum();
    let tags = rule.tags.len() as u64;
    let keys = [(exact, "exact key"), (patterns, "pattern"), (fields, "field"), (tags, "tag")];
    let keys = listed(keys);
    Fact::new("rule", format!("`{}`: {keys} of `{}`", rule.name, named(rule)))
}

/// The table, view or prefix of a rule.
fn named(rule: &Rule) -> String {
    match &rule.source {
        Source::Table | Source::MaterializedView => rule.table.to_string(),
        Source::Message(prefix) => prefix.clone(),
    }
}

/// Those of which there are some.
fn listed<const N: usize>(counts: [(u64, &str); N]) -> String {
    let some = counts.into_iter().filter(|(count, _)| *count > 0);
    let some: Vec<String> = some.map(|(count, noun)| counted(count, noun)).collect();
    some.join(" and ")
}
