//! Lines of the audit trail: one JSON object each.

use serde::{Deserialize, Serialize};

use super::body::{Body, Kind, OfRule};
use super::known::Known;
use super::name::{Moment, Name};
use super::told::{By, Cause, How, Removal, RuleCounts, Transaction, Widened};
use crate::keys::{Item, ItemKind, Pattern, RuleId};

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When it happened.
    pub time: Moment,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

/// The event that a line is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The keys of a transaction are gone from a target.
    Removed(Taken),
    /// Redis refuses some of the keys of a transaction: they are owed, until a line `refused_gone`
    /// says that they went. The others are gone.
    Refused(Taken),
    /// Redis took the keys of these transactions that it had refused.
    RefusedGone {
        /// The name of the target.
        target: String,
        /// The transactions, by where their commits end.
        lsns: Vec<String>,
    },
    /// A transaction whose keys are still to be removed, and which is remembered no longer: more
    /// came than there is memory for.
    Forgotten {
        /// The name of the target.
        target: String,
        /// The transaction.
        #[serde(flatten)]
        transaction: Transaction,
        /// The part of each rule.
        rules: Vec<OfARule>,
        /// Keys of it that this line leaves out.
        #[serde(default, skip_serializing_if = "is_zero")]
        left_out: u64,
    },
    /// The keys of these transactions are removed for the second time.
    RemovedAgain {
        /// The name of the target.
        target: String,
        /// The transactions, by where their commits end.
        lsns: Vec<String>,
    },
    /// A sweep of keys that may have been stale is done at a target.
    Swept {
        /// The name of the target.
        target: String,
        /// The reason, as in `walsweep_resyncs_total`.
        reason: String,
        /// The reason in words.
        why: String,
        /// When it was asked for.
        began: Moment,
        /// All that rules could give of it.
        rules: Vec<OfARule>,
    },
    /// Rules gave way to all that they could produce, because too many keys waited.
    Room {
        /// The rules, with all that they could produce.
        rules: Vec<OfARule>,
    },
    /// A person swept keys away, by `walsweep sweep`.
    SweptByHand {
        /// The name of the target.
        target: String,
        /// The patterns, without the prefix of the target.
        patterns: Vec<Name>,
        /// Keys that are gone.
        removed: u64,
    },
}

/// A transaction whose keys were removed from a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The name of the target.
    pub target: String,
    /// The transaction.
    #[serde(flatten)]
    pub transaction: Transaction,
    /// The part of each rule.
    pub rules: Vec<OfARule>,
    /// Keys of it that this line leaves out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
    /// The keys that the removal took.
    #[serde(flatten)]
    pub took: Took,
}

/// The keys that a removal took. It is made for all transactions that wait at that time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    /// Keys that were in Redis.
    pub removed: u64,
    /// Exact keys that were not.
    pub absent: u64,
    /// The transactions and sweeps that shared it, this one among them.
    pub shared_by: u64,
}

/// The part of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfARule {
    /// The rule's name.
    pub rule: String,
    /// How many keys.
    pub keys: u64,
    /// How many patterns.
    pub patterns: u64,
    /// Why some were widened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub widened: Vec<Widened>,
    /// Its keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exact: Vec<Name>,
    /// Its patterns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matching: Vec<Name>,
    /// Its fields, each with the pattern of its hashes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<(Name, Name)>,
    /// The patterns of its sets whose members it removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<Name>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The part of each rule in these keys, and how many are left out.
pub(super) fn of_body(known: &Known, body: &Body) -> (Vec<OfARule>, u64) {
    let counts = body.rules();
    let mut rules: Vec<OfARule> = counts.iter().map(|one| of_counts(known, one)).collect();
    let (left_out, entries) = body.entries();
    for entry in entries {
        let Ok(at) = counts.binary_search_by_key(&entry.rule, |one| one.rule) else { continue };
        let rule = &mut rules[at];
        match entry.kind {
            Kind::Key => rule.exact.push(Name::of(entry.bytes)),
            Kind::Pattern => rule.matching.push(Name::of(entry.bytes)),
            Kind::Item => {
                let item = Item::read(entry.bytes);
                let key = Name::of(item.key());
                match item.kind() {
                    ItemKind::Field => rule.fields.push((key, Name::of(item.field()))),
                    ItemKind::Tag => rule.sets.push(key),
                }
            }
        }
    }
    (rules, left_out)
}

fn of_counts(known: &Known, counts: &OfRule) -> OfARule {
    let RuleCounts { rule, keys, patterns, widened } = known.counts(counts.clone());
    OfARule { rule, keys, patterns, widened, ..OfARule::default() }
}

/// All that rules could produce, of those that are wanted.
pub(super) fn of_rules(known: &Known, is_wanted: impl Fn(RuleId) -> bool) -> Vec<OfARule> {
    let mut rules: Vec<OfARule> = Vec::new();
    for (rule, pattern) in known.all().iter().filter(|(rule, _)| is_wanted(*rule)) {
        let rule = known.rule_name(*rule);
        let at = rules.iter().position(|one| one.rule == rule).unwrap_or_else(|| {
            rules.push(OfARule { rule: rule.to_owned(), ..OfARule::default() });
            rules.len() - 1
        });
        rules[at].patterns += 1;
        rules[at].matching.push(Name::of(pattern.as_bytes()));
    }
    rules
}

impl OfARule {
    /// How it reaches a key, without the target's prefix, if it does.
    fn reaches(&self, key: &[u8]) -> Option<How> {
        let matches =
            |name: &Name| name.bytes().is_some_and(|pattern| Pattern::parse(&pattern).matches(key));
        let is_it = |name: &&Name| name.bytes().as_deref() == Some(key);
        if let Some(name) = self.exact.iter().find(is_it) {
            return Some(How::Key(name.clone()));
        }
        if let Some(name) = self.matching.iter().find(|name| matches(name)) {
            return Some(How::Pattern(name.clone()));
        }
        if let Some((_, field)) = self.fields.iter().find(|(name, _)| matches(name)) {
            return Some(How::Fields(field.clone()));
        }
        self.sets.iter().find(|name| matches(name)).map(|name| How::Members(name.clone()))
    }

    fn by(&self, how: How) -> By {
        let OfARule { rule, keys, patterns, widened, .. } = self.clone();
        By { rule, how, keys, patterns, widened }
    }
}

impl Line {
    /// The name of the target that it is of; `None` for all.
    #[must_use]
    pub fn target(&self) -> Option<&str> {
        match &self.event {
            Event::Removed(Taken { target, .. })
            | Event::Refused(Taken { target, .. })
            | Event::RefusedGone { target, .. }
            | Event::Forgotten { target, .. }
            | Event::RemovedAgain { target, .. }
            | Event::Swept { target, .. }
            | Event::SweptByHand { target, .. } => Some(target),
            Event::Room { .. } => None,
        }
    }

    /// The removal of a key that it tells of, if it does. `key` is without the target's prefix;
    /// `may_give` says whether a rule could have given it.
    #[must_use]
    pub fn removal(&self, key: &[u8], may_give: impl Fn(&str) -> bool) -> Option<Removal> {
        let time = self.time;
        let (rules, left_out) = match &self.event {
            Event::Removed(Taken { rules, left_out, .. })
            | Event::Refused(Taken { rules, left_out, .. })
            | Event::Forgotten { rules, left_out, .. } => (rules, *left_out),
            Event::Swept { rules, .. } | Event::Room { rules } => (rules, 0),
            Event::RefusedGone { .. } | Event::RemovedAgain { .. } => return None,
            Event::SweptByHand { patterns, .. } => {
                return self.by_hand(key, patterns);
            }
        };
        let reached = rules.iter().filter_map(|rule| Some(rule.by(rule.reaches(key)?)));
        let mut by: Vec<By> = reached.collect();
        if by.is_empty() && left_out > 0 {
            let perhaps = rules.iter().filter(|rule| {
                let told = rule.exact.len() + rule.matching.len() + rule.fields.len();
                let told = (told + rule.sets.len()) as u64;
                told < rule.keys + rule.patterns && may_give(&rule.rule)
            });
            by.extend(perhaps.map(|rule| rule.by(How::Perhaps)));
        }
        if by.is_empty() {
            return None;
        }
        let (cause, removed) = match &self.event {
            Event::Removed(taken) | Event::Refused(taken) => {
                (Cause::Transaction(taken.transaction.clone()), Some(time))
            }
            Event::Forgotten { transaction, .. } => (Cause::Transaction(transaction.clone()), None),
            Event::Swept { reason, why, began, .. } => {
                let (reason, why) = (reason.clone(), why.clone());
                (Cause::Sweep { reason, why, began: *began }, Some(time))
            }
            _ => (Cause::Room { began: time }, Some(time)),
        };
        let partly_refused = matches!(self.event, Event::Refused(_));
        let target = self.target().unwrap_or_default().to_owned();
        let (removed_again, refused_gone) = (None, None);
        Some(Removal { target, cause, by, removed, removed_again, partly_refused, refused_gone })
    }

    fn by_hand(&self, key: &[u8], patterns: &[Name]) -> Option<Removal> {
        let matches = |name: &&Name| {
            name.bytes().is_some_and(|pattern| Pattern::parse(&pattern).matches(key))
        };
        let pattern = patterns.iter().find(matches)?;
        Some(Removal {
            target: self.target().unwrap_or_default().to_owned(),
            cause: Cause::Hand { pattern: pattern.clone() },
            by: Vec::new(),
            removed: Some(self.time),
            removed_again: None,
            partly_refused: false,
            refused_gone: None,
        })
    }
}
