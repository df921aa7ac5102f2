//! Counts of what a sweep of keys in doubt took.

use crate::config::TargetId;
use crate::keys::RuleId;
use crate::sweep::{Doubt, Why};
use crate::telemetry::metrics::Metrics;
use crate::words::counted;

/// Rules that one line names, at most.
const RULES_MAX: usize = 20;

/// A sweep, until its second removal is done.
pub(super) struct Sweep {
    /// The target, where there are several.
    redis: Option<String>,
    doubt: Doubt,
    /// How many keys of each rule had been removed before what is not told yet: for the first time,
    /// and again.
    before: Vec<(u64, u64)>,
    /// Whether its first removal is done and told.
    is_told: bool,
}

impl Sweep {
    /// A sweep that begins now; or goes on as a larger one, if one was under way. Of one whose
    /// second removal was not done yet it is told what that has taken so far.
    pub(super) fn new(
        (target, doubt): (TargetId, Doubt),
        metrics: &Metrics,
        under_way: Option<Sweep>,
    ) -> Sweep {
        let doubt = match under_way {
            Some(Sweep { redis, doubt: first, before, is_told: false }) => {
                return Sweep { redis, doubt: first.and(doubt), before, is_told: false };
            }
            Some(mut sweep) => {
                sweep.tell_again(metrics);
                doubt
            }
            None => doubt,
        };
        let redis = metrics.target_name(target).map(str::to_owned);
        Sweep { redis, doubt, before: metrics.keys_removed_by_rule(), is_told: false }
    }

    /// Says how many keys went, of which rules, and why: each rule that is in doubt, and of a sweep
    /// of everything those that lost keys. Keys of commits meanwhile count, too. If the first
    /// removal had to be done again, it says what went since.
    pub(super) fn tell(&mut self, metrics: &Metrics) {
        let gone = self.gone(metrics, |(removed, again)| removed + again);
        if !self.is_told || gone.iter().any(|count| *count > 0) {
            self.say("swept", &gone, metrics);
        }
        self.is_told = true;
    }

    /// Says how many keys its second removal took, of which rules, and why, if it took any.
    pub(super) fn tell_again(&mut self, metrics: &Metrics) {
        let gone = self.gone(metrics, |(_, again)| again);
        if gone.iter().any(|count| *count > 0) {
            self.say("swept again: what was written meanwhile", &gone, metrics);
        }
    }

    /// Whether nothing but its second removal may be left to tell.
    pub(super) fn is_told(&self) -> bool {
        self.is_told
    }

    /// How many keys of each rule went since the last call; none of rules that the sweep is not of.
    fn gone(&mut self, metrics: &Metrics, of: fn((u64, u64)) -> u64) -> Vec<u64> {
        let now = metrics.keys_removed_by_rule();
        let before = std::mem::replace(&mut self.before, now.clone());
        let rules = (0..=u16::MAX).map(RuleId).zip(now.into_iter().zip(before));
        let count = |(id, (now, before))| if self.is_of(id) { of(now) - of(before) } else { 0 };
        rules.map(count).collect()
    }

    fn is_of(&self, rule: RuleId) -> bool {
        matches!(self.doubt, Doubt::Everything(_)) || self.doubt.of_rule(rule).is_some()
    }

    fn say(&self, what: &str, gone: &[u64], metrics: &Metrics) {
        let mut rules = Vec::new();
        for (id, count) in (0..=u16::MAX).map(RuleId).zip(gone) {
            let why = self.doubt.of_rule(id);
            if why.is_some() || *count > 0 {
                rules.push(line(metrics.rule_name(id), *count, why));
            }
        }
        let more = rules.len().saturating_sub(RULES_MAX);
        rules.truncate(RULES_MAX);
        if more > 0 {
            rules.push(format!("and {}", counted(more, "more rule")));
        }
        let (reason, keys) = (self.doubt.reason().as_str(), gone.iter().sum::<u64>());
        let redis = self.redis.as_deref();
        tracing::info!(redis, reason, keys, rules = rules.join("; "), "{what}");
    }
}

fn line(name: &str, removed: u64, why: Option<Why>) -> String {
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    format!("{} of rule `{name}`{why}", counted(removed, "key"))
}
