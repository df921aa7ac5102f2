//! Checks of the materialized views that rules name, and of the event trigger that tells of them.

use postgres_protocol::escape::escape_identifier;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio_postgres::{Client, Row};

use super::catalog::{Name, digest_of, names};
use super::memory::SENTENCE;
use super::step::{Does, Step};
use super::tables::nothing_like;
use super::{Code, Error, Finding, cure, likely};
use crate::config::{Config, Rule, Source, TableName};
use crate::postgres::statement::render;

/// The SQL that creates the trigger and its function.
const CREATE: &str = include_str!("../../sql/setup/refresh_trigger.sql");

/// The quotes around the function's body in [`CREATE`].
const QUOTE: &str = "$walsweep$";

/// The settings that the function runs with.
const SETTINGS: [&str; 2] = ["search_path=pg_catalog, pg_temp", "quote_all_identifiers=off"];

/// The prefix of messages that only walsweep's function sends, as it stands in SQL.
const SENDS: &str = "'walsweep.refresh'";

/// The longest name that Postgres keeps, bytes.
const NAME_BYTES_MAX: usize = 63;

/// The answer of `sql/preflight_views.sql`.
#[derive(Deserialize)]
struct Found {
    views: Vec<Relation>,
    /// Every materialized view, for what was perhaps meant.
    others: Vec<Name>,
    trigger: Option<Trigger>,
    /// The function of the trigger's name, whoever calls it.
    function: Option<Function>,
    /// The setting of that name; `None` before version 17, which always has them on.
    event_triggers: Option<String>,
}

#[derive(Deserialize)]
struct Relation {
    schema: String,
    name: String,
    kind: char,
}

/// A function without arguments in schema `public`.
#[derive(Deserialize)]
struct Function {
    body: String,
    comment: Option<String>,
}

/// A row of `pg_event_trigger`, with its function
/// (<https://www.postgresql.org/docs/current/catalog-pg-event-trigger.html>).
#[derive(Deserialize)]
struct Trigger {
    name: String,
    enabled: char,
    event: String,
    tags: Option<Vec<String>>,
    function: String,
    body: String,
    runs_as_owner: bool,
    settings: Option<Vec<String>>,
}

/// How the name of each trigger ends.
const END: &str = "_refresh";

/// The name of the trigger and of its function: each slot has its own, so that no `teardown` takes
/// that of another walsweep. A slot's name for which there is no room is cut, and a digest of all
/// of it follows.
pub(crate) fn trigger_name(slot: &str) -> String {
    const DIGEST_BYTES: usize = 8;
    let room = NAME_BYTES_MAX - END.len();
    if slot.len() <= room {
        return format!("{slot}{END}");
    }
    let digest = Sha256::digest(slot.as_bytes());
    let digest: String =
        digest.iter().take(DIGEST_BYTES).map(|byte| format!("{byte:02x}")).collect();
    format!("{}_{digest}{END}", cut(slot, room - 1 - digest.len()))
}

/// The name that an earlier version gave it, if that was another one: it only cut the slot's name,
/// so that two long ones could have the same trigger.
pub(crate) fn older_trigger_name(slot: &str) -> Option<String> {
    let older = format!("{}{END}", cut(slot, NAME_BYTES_MAX - END.len()));
    (older != trigger_name(slot)).then_some(older)
}

/// The names by which it is looked for, the first of them first.
pub(crate) fn trigger_names(slot: &str) -> Vec<String> {
    std::iter::once(trigger_name(slot)).chain(older_trigger_name(slot)).collect()
}

fn cut(slot: &str, length: usize) -> String {
    slot.chars().take(length).collect()
}

/// Removes the trigger of this name, and its function.
pub(crate) fn drop_trigger(name: &str) -> String {
    with_name(include_str!("../../sql/setup/drop_refresh_trigger.sql"), name)
}

fn with_name(file: &str, name: &str) -> String {
    let (trigger, comment) = (escape_identifier(name), cure::trigger_comment());
    render(file, &[("trigger", &trigger), ("comment", &comment)])
}

/// Missing views, and a trigger that would not tell of each refresh. Asks nothing where no rule
/// names a view.
pub(super) async fn check(config: &Config, client: &Client) -> Result<Vec<Finding>, Error> {
    let rules: Vec<&Rule> = rules(config).collect();
    let Some(first) = rules.first() else { return Ok(Vec::new()) };
    let slot = &config.postgres.slot;
    let row = ask(config, client, include_str!("../../sql/preflight_views.sql")).await?;
    let found: Found = serde_json::from_str(row.try_get(0)?)?;
    let of_rule = |rule: &&Rule| Some(view(&found, rule)?.of_rules([&rule.name]));
    let mut findings: Vec<Finding> = rules.iter().filter_map(of_rule).collect();
    let of_all = |finding: Finding| finding.of_rules(rules.iter().map(|rule| &rule.name));
    findings.extend(trigger(&found, slot).map(|finding| of_all(finding).at(&first.table_at)));
    if found.event_triggers.as_deref() == Some("off") {
        let off =
            Finding::error(Code::EventTriggersOff, "`event_triggers` is off: no refresh is told");
        findings.push(of_all(off).hint("set `event_triggers = on`"));
    }
    Ok(findings)
}

/// A text that is another one when [`check`] would see another catalog.
pub(super) async fn digest(
    config: &Config,
    client: &Client,
) -> Result<String, tokio_postgres::Error> {
    if rules(config).next().is_none() {
        return Ok(String::new());
    }
    let query = digest_of(&render(include_str!("../../sql/preflight_views.sql"), &[]));
    ask(config, client, &query).await?.try_get(0)
}

fn rules(config: &Config) -> impl Iterator<Item = &Rule> {
    config.rules.iter().filter(|rule| rule.source == Source::MaterializedView)
}

async fn ask(config: &Config, client: &Client, query: &str) -> Result<Row, tokio_postgres::Error> {
    let (schemas, names) = names(rules(config).map(|rule| &rule.table));
    let triggers = trigger_names(&config.postgres.slot);
    client.query_one(query, &[&schemas, &names, &triggers]).await
}

fn view(found: &Found, rule: &Rule) -> Option<Finding> {
    let TableName { schema, name } = &rule.table;
    let known = found.views.iter().find(|one| (&one.schema, &one.name) == (schema, name));
    let wanted = rule.table.to_string();
    let finding = match known.map(|relation| relation.kind) {
        Some('m') => return None,
        Some('r' | 'p') => {
            let message = format!("`{wanted}` is a table, and no materialized view");
            Finding::error(Code::ViewKind, message).hint("name it with `table`")
        }
        Some(_) => {
            let message = format!("`{wanted}` is no materialized view: it is never refreshed");
            Finding::error(Code::ViewKind, message)
                .hint("let rules look at the tables that it reads")
        }
        None => {
            let message = format!("there is no materialized view `{wanted}`");
            let finding = Finding::error(Code::ViewMissing, message);
            match likely(&rule.table, &found.others) {
                Some(like) => finding.hint(format!("did you mean `{like}`?")),
                None => finding.hint(nothing_like(&found.others, "materialized view")),
            }
        }
    };
    Some(finding.at(&rule.table_at))
}

/// A trigger that is not as this version installs it.
fn trigger(found: &Found, slot: &str) -> Option<Finding> {
    let name = trigger_name(slot);
    let installed = with_name(CREATE, &name);
    let body = installed.split(QUOTE).nth(1).unwrap_or_default();
    if let Some(older) = found.trigger.as_ref().filter(|trigger| trigger.name != name)
        && older.is_own()
        && older.enabled == 'A'
        && older.is_as_installed(body, &installed)
    {
        return None;
    }
    let what = match found.trigger.as_ref().filter(|trigger| trigger.name == name) {
        None if found.function.as_ref().is_some_and(|function| !function.is_ours()) => {
            let message = format!("function `public.{name}` is there, and not walsweep's");
            let foreign = Finding::error(Code::RefreshTriggerForeign, message);
            return Some(foreign.hint("give it another name, or let `postgres.slot` have another"));
        }
        None => "is missing",
        Some(trigger) if !trigger.is_own() => {
            let message =
                format!("event trigger `{name}` calls `{}`, not its own", trigger.function);
            let foreign = Finding::error(Code::RefreshTriggerForeign, message);
            return Some(foreign.hint("give it another name, or let `postgres.slot` have another"));
        }
        Some(trigger) if trigger.enabled == 'D' => "is disabled",
        Some(trigger) if trigger.enabled != 'A' => "is not enabled as ALWAYS",
        Some(trigger) if !trigger.is_as_installed(body, &installed) => {
            "is not the one that this version installs"
        }
        Some(_) => return None,
    };
    let message = format!("event trigger `{name}` {what}: a REFRESH would not be told");
    let hint = "a superuser runs it, or the administrator role of a managed service; without one, \
                let the rule look at a `message` that the job sends after its REFRESH";
    let finding = Finding::error(Code::RefreshTrigger, message).hint(hint);
    Some(finding.cure(vec![Step::new(Does::Trigger, installed)]))
}

impl Function {
    /// Whether `setup` made it, also one that did so before there were comments.
    fn is_ours(&self) -> bool {
        let is_marked = |comment: &String| comment.starts_with(SENTENCE);
        self.comment.as_ref().is_some_and(is_marked) || self.body.contains(SENDS)
    }
}

impl Trigger {
    /// Whether it calls the function of its own name.
    fn is_own(&self) -> bool {
        self.function.trim_matches('"') == format!("public.{}", self.name)
    }

    fn is_as_installed(&self, body: &str, installed: &str) -> bool {
        let tags = self.tags.as_deref().unwrap_or_default();
        // Between the body and this, the statement quotes its tags and nothing else.
        let head = installed.rsplit(QUOTE).next().unwrap_or_default();
        let head = head.split("execute function").next().unwrap_or_default();
        let wanted = head.matches('\'').count() / 2;
        self.event == "ddl_command_end"
            && self.body == body
            && self.runs_as_owner
            && self.settings.as_deref().is_some_and(|set| set == SETTINGS)
            && tags.len() == wanted
            && tags.iter().all(|tag| head.contains(&format!("'{tag}'")))
    }
}

#[cfg(test)]
mod tests {
    use super::{older_trigger_name, trigger_name};

    #[test]
    fn slots_whose_names_begin_alike_have_triggers_of_their_own() {
        let start = "s".repeat(55);
        assert_eq!(trigger_name(&start), format!("{start}_refresh"));
        assert_eq!(older_trigger_name(&start), None);
        let slots = ["a", "b", "ab", "abcdefgh"].map(|end| format!("{start}{end}"));
        let mut names: Vec<String> = slots.iter().map(|slot| trigger_name(slot)).collect();
        assert!(names.iter().all(|name| name.len() == 63 && name.ends_with("_refresh")));
        names.push(trigger_name(&start));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), slots.len() + 1);
        let older = slots.iter().map(|slot| older_trigger_name(slot));
        assert!(older.into_iter().all(|older| older == Some(format!("{start}_refresh"))));
    }
}
