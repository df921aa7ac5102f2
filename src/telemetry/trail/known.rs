//! The rules and targets that the trail is of.

use std::collections::BTreeSet;

use super::body::OfRule;
use super::told::{RuleCounts, Widened};
use crate::config::{Config, Redis, TargetId, Targets};
use crate::keys::{Pattern, Print, RuleId, RulePrint, Rules, WidenReason};

/// A target: how messages name it, and what its keys begin with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetName {
    /// The name.
    pub name: String,
    /// The prefix of its keys.
    pub prefix: String,
}

/// Names of rules and targets, and all that each rule could produce.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Known {
    targets: Vec<TargetName>,
    rules: Vec<String>,
    /// The targets of each rule.
    goes: Vec<Targets>,
    all: Vec<(RuleId, Pattern)>,
    print: Print,
    nowhere: TargetName,
}

impl Known {
    /// The rules and targets of a configuration.
    #[must_use]
    pub fn of(config: &Config, rules: &Rules) -> Known {
        let target =
            |redis: &Redis| TargetName { name: redis.name.clone(), prefix: redis.prefix.clone() };
        Known::new(rules, config.redis.iter().map(target).collect())
    }

    /// These rules, and the targets in the order of the configuration.
    #[must_use]
    pub fn new(rules: &Rules, targets: Vec<TargetName>) -> Known {
        let everything = rules.everything();
        let exact = everything.exact().map(|(rule, key)| (rule, Pattern::literal(key)));
        let patterns = everything.patterns().map(|(rule, pattern)| (rule, pattern.clone()));
        let items = everything.items().map(|(rule, item)| (rule, Pattern::parse(item.key())));
        let goes = |rule| {
            let targets = TargetId::first(targets.len());
            let targets = targets.filter(|target| everything.goes(rule, *target));
            targets.fold(Targets::NONE, Targets::with)
        };
        let ids = (0..=u16::MAX).map(RuleId).take(rules.names().len());
        Known {
            goes: ids.map(goes).collect(),
            all: exact.chain(patterns).chain(items).collect(),
            rules: rules.names().to_vec(),
            print: print(rules, &targets),
            targets,
            nowhere: TargetName::default(),
        }
    }

    /// The fingerprint of the rules, and of the names and prefixes of targets: whoever has others
    /// has another.
    #[must_use]
    pub fn print(&self) -> Print {
        self.print
    }

    /// The number of targets.
    pub(super) fn targets(&self) -> usize {
        self.targets.len()
    }

    pub(super) fn target(&self, target: TargetId) -> &TargetName {
        self.targets.get(target.place()).unwrap_or(&self.nowhere)
    }

    /// The name that rules know a target's key by, if it may be a key of that target.
    pub(super) fn name_at<'a>(&self, target: TargetId, key: &'a [u8]) -> Option<&'a [u8]> {
        key.strip_prefix(self.targets.get(target.place())?.prefix.as_bytes())
    }

    /// All that each rule could produce.
    pub(super) fn all(&self) -> &[(RuleId, Pattern)] {
        &self.all
    }

    /// The name that rules know a key of the target of this name by; of one that there is not any
    /// more, the key itself.
    pub(super) fn name_of<'a>(&self, target: &str, key: &'a [u8]) -> Option<&'a [u8]> {
        match self.targets.iter().find(|one| one.name == target) {
            Some(target) => key.strip_prefix(target.prefix.as_bytes()),
            None => Some(key),
        }
    }

    /// Whether a rule of this name could produce a key.
    pub(super) fn may_give(&self, rule: &str, key: &[u8]) -> bool {
        let is_of = |id: &RuleId| self.rule_name(*id) == rule;
        self.all.iter().any(|(id, pattern)| is_of(id) && pattern.matches(key))
    }

    /// Whether keys of a rule go to a target.
    pub(super) fn goes(&self, rule: RuleId, target: TargetId) -> bool {
        rule == RuleId::PROBE
            || self.goes.get(usize::from(rule.0)).is_some_and(|targets| targets.has(target))
    }

    /// The rules, of those that are wanted, that could produce a key of a target: each with all
    /// that it could produce.
    pub(super) fn producing(
        &self,
        (target, key): (TargetId, &[u8]),
        is_wanted: impl Fn(RuleId) -> bool,
    ) -> Vec<(RuleId, &Pattern)> {
        let mut found: Vec<(RuleId, &Pattern)> = Vec::new();
        for (rule, pattern) in &self.all {
            let is_known = found.iter().any(|(known, _)| known == rule);
            if !is_known && self.goes(*rule, target) && is_wanted(*rule) && pattern.matches(key) {
                found.push((*rule, pattern));
            }
        }
        found
    }

    pub(super) fn rule_name(&self, rule: RuleId) -> &str {
        rule.name_in(&self.rules)
    }

    pub(super) fn counts(&self, of_rule: OfRule) -> RuleCounts {
        let OfRule { rule, keys, patterns, widened } = of_rule;
        let reason = |(reason, count): (WidenReason, u64)| Widened {
            reason: reason.as_str().to_owned(),
            count,
        };
        let widened = widened.into_iter().map(reason).collect();
        RuleCounts { rule: self.rule_name(rule).to_owned(), keys, patterns, widened }
    }
}

/// The fingerprint of rules, whether they are suspended or not, and of the targets; in whichever
/// order the file has them.
fn print(rules: &Rules, targets: &[TargetName]) -> Print {
    let prints = rules.prints(&BTreeSet::new());
    let of_rule = |(name, print): (&String, &RulePrint)| {
        let print = serde_json::to_string(print).expect("texts and numbers are JSON");
        format!("rule {name} {print}")
    };
    let of_target = |target: &TargetName| format!("target {} {}", target.name, target.prefix);
    let rules = rules.names().iter().zip(&prints).map(of_rule);
    let all: BTreeSet<String> = rules.chain(targets.iter().map(of_target)).collect();
    Print::of(all)
}
