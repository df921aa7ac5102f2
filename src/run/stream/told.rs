//! Lines of the log about each transaction, at `debug`: which rules give how many keys, and why
//! some are widened. Keys hold values of rows, so that they are told only where `[log] keys` says
//! so.

use std::collections::BTreeMap;

use tracing::Level;

use crate::config::TableName;
use crate::decode::Relation;
use crate::gather::Transaction;
use crate::keys::{KeySet, RuleId, Rules, WidenReason};
use crate::words::counted;

/// Keys of a transaction that are told, at most.
const TOLD_MAX: usize = 100;

/// Counts of what one rule gives.
#[derive(Default)]
struct OfRule {
    keys: u64,
    patterns: u64,
    /// Fields of hashes, and sets that name keys.
    items: u64,
    widened: Vec<(WidenReason, u64)>,
}

/// Warns of a partition, most likely added since the start: it inherits no replica identity.
pub(super) fn warn_smaller(rules: &Rules, table: &Relation, partition: &Relation) {
    let is_looked_at = |name: &TableName| {
        (name.schema.as_str(), name.name.as_str()) == (&*table.namespace, &*table.name)
    };
    if rules.tables().any(is_looked_at) {
        let is_bare = partition.columns.iter().all(|column| !column.is_key);
        let what = if is_bare {
            "the partition has no replica identity: the application's own UPDATE and DELETE of its \
             rows fail"
        } else {
            "the partition has a smaller replica identity than its table: keys with old values \
             widen to `*`"
        };
        tracing::warn!(
            partition = format!("{}.{}", partition.namespace, partition.name),
            table = format!("{}.{}", table.namespace, table.name),
            hint = "`walsweep check` has the SQL that cures it, or says what stands against it",
            "{what}"
        );
    }
}

/// Tells of a transaction that has keys; `names` are those of the rules.
pub(super) fn tell(transaction: &Transaction, keys: &KeySet, names: &[String]) {
    if !tracing::enabled!(Level::DEBUG) {
        return;
    }
    let (xid, lsn) = (transaction.xid, transaction.end_lsn);
    let rules = by_rule(keys, names);
    let waiting = keys.waiting().count();
    tracing::debug!(xid, %lsn, waiting_for_rows = waiting, "a transaction removes: {rules}");
    if tracing::enabled!(target: crate::telemetry::logging::KEYS, Level::DEBUG) {
        let exact = keys.exact().map(|(_, key)| key);
        let patterns = keys.patterns().map(|(_, pattern)| pattern.as_bytes());
        let told: Vec<String> = exact
            .chain(patterns)
            .map(|key| format!("`{}`", key.escape_ascii()))
            .chain(keys.items().map(|(_, item)| item.to_string()))
            .take(TOLD_MAX)
            .collect();
        let told = told.join(" ");
        tracing::debug!(target: crate::telemetry::logging::KEYS, xid, "its keys: {told}");
    }
}

fn by_rule(keys: &KeySet, names: &[String]) -> String {
    let mut rules: BTreeMap<RuleId, OfRule> = BTreeMap::new();
    for (rule, _) in keys.exact() {
        rules.entry(rule).or_default().keys += 1;
    }
    for (rule, _) in keys.patterns() {
        rules.entry(rule).or_default().patterns += 1;
    }
    for (rule, _) in keys.items() {
        rules.entry(rule).or_default().items += 1;
    }
    for (rule, reason, count) in keys.widened() {
        rules.entry(rule).or_default().widened.push((reason, count));
    }
    let part = |(rule, of): (RuleId, OfRule)| {
        let name = rule.name_in(names);
        let reason = |(reason, count): &(WidenReason, u64)| {
            format!(", widened {count} ({})", reason.as_str())
        };
        let widened: String = of.widened.iter().map(reason).collect();
        let (keys, patterns) = (counted(of.keys, "key"), counted(of.patterns, "pattern"));
        let items = match of.items {
            0 => String::new(),
            items => format!(", {}", counted(items, "field or tag")),
        };
        format!("rule `{name}` {keys}, {patterns}{items}{widened}")
    };
    let parts: Vec<String> = rules.into_iter().map(part).collect();
    parts.join("; ")
}
