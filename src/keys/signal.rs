//! Logical messages to keys: the refresh of a materialized view, and what an application writes
//! with `pg_logical_emit_message`.
//!
//! A message may name only keys that a template of a rule of its prefix covers. So what a job
//! writes can never remove more than the configuration says, and a sweep of everything (I7) takes
//! every key that any message could have named. A message that names others names nothing: part of
//! it would look as if it worked.

use serde::Deserialize;

use super::compile::Rule;
use super::label::{RuleId, TemplateId, Whole, WidenReason};
use super::pattern::Pattern;
use super::set::KeySet;
use super::{Bound, Rules};
use crate::config::{OWN_PREFIX, Source, TableName};
use crate::decode::LogicalMessage;

/// The word behind [`OWN_PREFIX`] in the prefix of a refreshed view's message. The message's
/// content is the view's name as SQL has it, in UTF-8; empty, if the name cannot be said so.
const REFRESH: &str = "refresh";

/// The meaning that a logical message had for the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// No rule looks at it.
    Other,
    /// A view was refreshed, and a rule looks at it.
    Refresh,
    /// A rule looks at messages of this prefix.
    Message,
    /// A probe names its canary.
    Probe,
    /// A rule or the probe looks at the message, but nothing can be made of it.
    Malformed(Malformed),
}

/// Why a message removes nothing: the label `reason` of `walsweep_messages_malformed_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It belongs to no transaction, so there is no moment at which it is visible.
    NotTransactional,
    /// It is neither empty nor a JSON object of `keys` and `patterns`, lists of texts.
    NotJson,
    /// It names a key or a pattern that no rule of its prefix covers; that of a probe, anything but
    /// a nonce.
    NotCovered,
}

impl Malformed {
    /// Every reason.
    pub const ALL: [Malformed; 3] =
        [Malformed::NotTransactional, Malformed::NotJson, Malformed::NotCovered];

    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Malformed::NotTransactional => "not_transactional",
            Malformed::NotJson => "not_json",
            Malformed::NotCovered => "not_covered",
        }
    }
}

/// The keys and patterns that a message names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    patterns: Vec<String>,
}

/// Something that a message names, and the template that covers it.
enum Named {
    Key(TemplateId, Vec<u8>),
    Pattern(TemplateId, Vec<u8>),
}

impl Rules {
    /// Whether any rule needs logical messages, or a probe does.
    #[must_use]
    pub fn need_messages(&self) -> bool {
        self.canaries.is_some() || self.rules.iter().any(|rule| rule.source != Source::Table)
    }

    /// Whether any rule looks at messages that applications write.
    #[must_use]
    pub fn have_messages(&self) -> bool {
        self.rules.iter().any(|rule| matches!(rule.source, Source::Message(_)))
    }

    /// The materialized views that rules look at, in the order of the rules.
    pub fn views(&self) -> impl Iterator<Item = &TableName> {
        let rules = self.rules.iter().filter(|rule| rule.source == Source::MaterializedView);
        rules.map(|rule| &rule.table)
    }

    /// Gives the keys that one rule alone removes when its view is refreshed; `None` if it is not
    /// of this view.
    pub(crate) fn keys_of_refresh(&self, rule: RuleId, view: &TableName) -> Option<KeySet> {
        let rule = self.rules.get(usize::from(rule.0)).filter(|r| is_of_view(r, Some(view)))?;
        let mut keys = self.key_set();
        add_all(&[rule], None, &mut keys);
        Some(keys)
    }

    /// Gives the keys and patterns that a message names, each with its template; all of them or an
    /// error.
    fn named(&self, rules: &[&Rule], content: &[u8]) -> Result<Vec<Named>, Malformed> {
        // The error of the parser may quote the content (I9).
        let parsed = serde_json::from_slice(content);
        let Content { keys, patterns } = parsed.map_err(|_quotes| Malformed::NotJson)?;
        let templates = || rules.iter().flat_map(|rule| &rule.templates).map(|key| key.id);
        let whole = |id: &TemplateId| &self.templates[usize::from(id.0)].whole;
        let keys = keys.into_iter().map(String::into_bytes).map(|key| {
            let id = templates().find(|id| match whole(id) {
                Whole::Key(own) => **own == *key,
                Whole::Pattern(own) => own.matches(&key),
                Whole::Item(_) => false,
            });
            id.map(|id| Named::Key(id, key))
        });
        let patterns = patterns.into_iter().map(|text| {
            let pattern = Pattern::parse(text.as_bytes());
            let literal = pattern.as_literal();
            let id = templates().find(|id| match whole(id) {
                Whole::Key(own) => literal.as_deref() == Some(&**own),
                Whole::Pattern(own) => own.covers(&pattern),
                Whole::Item(_) => false,
            });
            let named = |id| match literal {
                Some(key) => Named::Key(id, key),
                None => Named::Pattern(id, text.into_bytes()),
            };
            id.map(named)
        });
        keys.chain(patterns).collect::<Option<_>>().ok_or(Malformed::NotCovered)
    }
}

impl Bound {
    /// Adds the keys of a logical message to a set of these rules.
    pub fn signal(&self, message: &LogicalMessage, keys: &mut KeySet) -> Signal {
        if let Some(signal) = self.probe(message, keys) {
            return signal;
        }
        let refresh = message.prefix.strip_prefix(OWN_PREFIX) == Some(REFRESH);
        let content = message.content.as_deref();
        let rules: Vec<&Rule> = if refresh {
            let view = content.and_then(view_name);
            self.active().filter(|rule| is_of_view(rule, view.as_ref())).collect()
        } else {
            let source = Source::Message(message.prefix.clone());
            self.active().filter(|rule| rule.source == source).collect()
        };
        if rules.is_empty() {
            return Signal::Other;
        }
        if !message.transactional {
            return Signal::Malformed(Malformed::NotTransactional);
        }
        match content {
            _ if refresh => add_all(&rules, None, keys),
            Some(b"") => add_all(&rules, None, keys),
            // It is large, and counts as naming all that its rules cover (I6): a megabyte holds
            // tens of thousands of keys, and a pattern costs less from there on.
            None => add_all(&rules, Some(WidenReason::Limit), keys),
            Some(content) => match self.rules().named(&rules, content) {
                Ok(named) => {
                    rules.iter().for_each(|rule| keys.count_match(rule.id));
                    named.into_iter().for_each(|one| one.add(keys));
                }
                Err(malformed) => return Signal::Malformed(malformed),
            },
        }
        if refresh { Signal::Refresh } else { Signal::Message }
    }
}

impl Named {
    fn add(self, keys: &mut KeySet) {
        match self {
            Named::Key(template, key) => keys.add_key(template, &key),
            Named::Pattern(template, pattern) => keys.add_pattern(template, &pattern),
        }
    }
}

/// The view of a refresh; `None` if it cannot be known, and then it may be any (I5).
fn view_name(content: &[u8]) -> Option<TableName> {
    std::str::from_utf8(content).ok()?.parse().ok()
}

fn is_of_view(rule: &Rule, view: Option<&TableName>) -> bool {
    rule.source == Source::MaterializedView && view.is_none_or(|view| *view == rule.table)
}

/// Everything that the rules name.
fn add_all(rules: &[&Rule], reason: Option<WidenReason>, keys: &mut KeySet) {
    for rule in rules {
        keys.count_match(rule.id);
        rule.templates.iter().for_each(|key| keys.add_whole(key.id, reason));
    }
}
