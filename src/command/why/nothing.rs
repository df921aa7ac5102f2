//! Why a key was not removed, from the rules and from what walsweep says of itself.

use serde::Serialize;

use super::{Known, Process};
use crate::config::Config;
use crate::keys::Rules;

/// Templates at least this similar to a key are worth a word (Jaro-Winkler).
const SIMILAR: f64 = 0.7;

/// One that stands by knows only what it removed when it had the slot.
const STANDS_BY: &str = "The walsweep that was asked stands by: ask the one that has the slot, \
                         with the configuration of that one.";

/// A rule that can give a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Reach {
    /// The target that the key is removed from.
    pub(super) target: String,
    pub(super) rule: String,
    /// As the configuration writes it.
    pub(super) template: String,
    /// Whether the rule is suspended.
    pub(super) suspended: bool,
}

/// The rules that can give a key, at each target whose prefix it has.
pub(super) fn reaches(
    config: &Config,
    rules: &Rules,
    key: &[u8],
    suspended: &[String],
) -> Vec<Reach> {
    let mut reaches = Vec::new();
    for redis in &config.redis {
        let Some(name) = key.strip_prefix(redis.prefix.as_bytes()) else { continue };
        for (rule, template, pattern) in rules.templates(redis.id) {
            if pattern.matches(name) {
                reaches.push(Reach {
                    target: redis.name.clone(),
                    rule: rule.to_owned(),
                    template: template.to_owned(),
                    suspended: suspended.iter().any(|name| name == rule),
                });
            }
        }
    }
    reaches
}

/// Why nothing is known of a key, in sentences.
pub(super) fn why_not(config: &Config, key: &[u8], known: &Known) -> Vec<String> {
    let mut lines = Vec::new();
    let name = &known.key;
    if known.rules.is_empty() {
        lines.push(format!("No rule gives `{name}`: walsweep does not remove it by itself."));
        lines.extend(nearest(config, key));
        lines.extend(tagged(config));
        lines.extend(by_hand(config));
        return lines;
    }
    let remembered = known.since.into_iter();
    let written = known.audit.iter().filter_map(|audit| audit.since);
    let since = match remembered.chain(written).min() {
        Some(since) => format!("Nothing that is remembered removed `{name}` since {since}."),
        None => format!("It is not known whether `{name}` was removed."),
    };
    lines.push(since);
    match &known.process {
        Process::Yes(state) if !state.starts_with("ready") => {
            if state.starts_with("standby") {
                lines.push(STANDS_BY.to_owned());
            }
            lines.push(format!("walsweep says: {}", state.trim_end().replace('\n', "\n  ")));
        }
        Process::Yes(_) => {}
        Process::Off => {
            lines.push("`http.listen` is \"\", so that the process cannot be asked.".to_owned());
        }
        Process::Nobody(address) => {
            lines.push(format!("No walsweep that knows the question answers at {address}."));
        }
        Process::Silent(address) => lines.push(format!(
            "A process listens at {address}, and does not answer: it is stopped, or hangs."
        )),
        Process::Refused(why) => lines.push(format!("walsweep did not answer: {why}.")),
    }
    if let Some((audit, error)) =
        known.audit.as_ref().and_then(|audit| Some((audit, audit.error.as_ref()?)))
    {
        lines.push(format!("The audit trail `{}` cannot be read: {error}.", audit.file));
    }
    lines.extend(known.rules.iter().map(|reach| match reach.suspended {
        true => is_suspended(reach),
        false => format!("Rule `{}` can give it, by `{}`.", reach.rule, reach.template),
    }));
    lines.extend(tagged(config));
    lines.extend(by_hand(config));
    let explain = "`walsweep explain TABLE --op update --old '{…}' --new '{…}'` tells which keys a \
                   change removes.";
    lines.push(explain.to_owned());
    lines
}

/// The rules that remove a key no longer, whatever they did before.
pub(super) fn suspended(known: &Known) -> Vec<String> {
    known.rules.iter().filter(|reach| reach.suspended).map(is_suspended).collect()
}

/// That the file is not what the process goes by.
pub(super) fn other_rules(known: &Known) -> Option<String> {
    (known.same_rules == Some(false)).then(|| {
        "The process runs with other rules than the file, or with other names or prefixes of \
         targets. What is said of rules is said of the file's: `walsweep reload` takes them over, \
         or tells why not."
            .to_owned()
    })
}

fn is_suspended(Reach { rule, template, .. }: &Reach) -> String {
    format!(
        "Rule `{rule}` gives it by `{template}`, and is suspended: it removes nothing. `walsweep \
         check` has the cure."
    )
}

/// That removals by hand are not known.
fn by_hand(config: &Config) -> Option<String> {
    let is_unknown = config.audit.file.is_none();
    is_unknown.then(|| "`walsweep sweep` by hand is remembered by `[audit]` alone.".to_owned())
}

/// The template that is most like a key that none gives, or the prefix that it lacks.
fn nearest(config: &Config, key: &[u8]) -> Option<String> {
    let prefixes: Vec<&str> = config.redis.iter().map(|redis| redis.prefix.as_str()).collect();
    if !prefixes.iter().any(|prefix| key.starts_with(prefix.as_bytes())) {
        let prefixes = prefixes.join("`, `");
        return Some(format!("Keys begin with `{prefixes}`, and it does not: see `redis.prefix`."));
    }
    let name = key.escape_ascii().to_string();
    let likeness = |template: &str| strsim::jaro_winkler(&name, template);
    let all = config.rules.iter().flat_map(|rule| {
        let fields = rule.fields.iter().map(|fields| &fields.key);
        let templates = rule.keys.iter().chain(&rule.tags).chain(fields);
        templates.map(|template| (rule.name.as_str(), template.value.as_str()))
    });
    let (rule, template) =
        all.max_by(|one, other| likeness(one.1).total_cmp(&likeness(other.1)))?;
    let is_near = likeness(template) >= SIMILAR;
    is_near.then(|| format!("The nearest is `{template}`, of rule `{rule}`."))
}

/// Rules whose keys have names that sets tell.
fn tagged(config: &Config) -> Option<String> {
    let rules = config.rules.iter().filter(|rule| !rule.tags.is_empty());
    let names: Vec<&str> = rules.map(|rule| rule.name.as_str()).collect();
    let rules = names.join("`, `");
    (!names.is_empty()).then(|| {
        format!(
            "Of `tags` the sets are remembered, not the keys that they name: rule `{rules}` may \
             have removed it."
        )
    })
}
