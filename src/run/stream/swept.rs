//! What a sweep of keys in doubt took.

use crate::keys::RuleId;
use crate::sweep::{Doubt, Why};
use crate::telemetry::metrics::Metrics;

/// Rules that one line names, at most.
const RULES_MAX: usize = 20;

/// A sweep that is under way.
pub(super) struct Sweep {
    doubt: Doubt,
    /// How many keys of each rule had been removed before it.
    before: Vec<u64>,
}

impl Sweep {
    /// A sweep that begins now; or goes on as a larger one, if one was under way.
    pub(super) fn new(doubt: Doubt, metrics: &Metrics, under_way: Option<Sweep>) -> Sweep {
        match under_way {
            Some(Sweep { doubt: first, before }) => Sweep { doubt: first.and(doubt), before },
            None => Sweep { doubt, before: metrics.keys_removed_by_rule() },
        }
    }

    /// Says how many keys went, of which rules, and why: each rule that is in doubt, and of a sweep
    /// of everything those that lost keys. Keys of commits meanwhile count, too.
    pub(super) fn tell(self, names: &[String], metrics: &Metrics) {
        let now = metrics.keys_removed_by_rule();
        let removed = now.into_iter().zip(&self.before).map(|(now, then)| now - then);
        let mut total = 0;
        let mut rules = Vec::new();
        for ((id, name), removed) in (0..=u16::MAX).map(RuleId).zip(names).zip(removed) {
            let why = self.doubt.of_rule(id);
            let is_of_sweep = why.is_some() || matches!(self.doubt, Doubt::Everything(_));
            if !is_of_sweep {
                continue;
            }
            total += removed;
            if why.is_some() || removed > 0 {
                rules.push(line(name, removed, why));
            }
        }
        let more = rules.len().saturating_sub(RULES_MAX);
        rules.truncate(RULES_MAX);
        if more > 0 {
            rules.push(format!("and {more} more rules"));
        }
        let reason = self.doubt.reason().as_str();
        tracing::info!(reason, keys = total, rules = rules.join("; "), "swept");
    }
}

fn line(name: &str, removed: u64, why: Option<Why>) -> String {
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    let plural = if removed == 1 { "" } else { "s" };
    format!("{removed} key{plural} of rule `{name}`{why}")
}
