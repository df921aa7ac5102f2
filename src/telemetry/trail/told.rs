//! Answers about a key, and about the latest transactions.

use serde::{Deserialize, Serialize};

use super::name::{Moment, Name};
use super::ring::Record;
use crate::keys::Print;

/// The answer of the running process about a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// When it was asked.
    pub now: Moment,
    /// The beginning of what is remembered: the start, or a later moment if more came than fits.
    pub since: Moment,
    /// The phase, and what does not work, as `/readyz` says it.
    pub state: String,
    /// The names of rules that are suspended.
    pub suspended: Vec<String>,
    /// The fingerprint of the rules and targets that it runs with, by
    /// [`Known::print`](super::Known::print); `None` from a version that does not tell.
    #[serde(default)]
    pub rules: Option<Print>,
    /// The removals, the newest first.
    pub removals: Vec<Removal>,
    /// Whether there were more than are told.
    pub more: bool,
}

/// One removal of a key from one target, or one that is still to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// The name of the target.
    pub target: String,
    /// Why the key goes.
    #[serde(flatten)]
    pub cause: Cause,
    /// The rules that gave it, each with how.
    pub by: Vec<By>,
    /// When it was removed; absent if it was not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Moment>,
    /// When it was removed for the second time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_again: Option<Moment>,
    /// Redis refused some of the keys that were to go with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partly_refused: bool,
    /// When it took those; absent while it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_gone: Option<Moment>,
}

/// Why keys go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum Cause {
    /// A committed transaction.
    Transaction(Transaction),
    /// A sweep, because a change may have been missed.
    Sweep {
        /// The reason, as in `walsweep_resyncs_total`.
        reason: String,
        /// The reason in words.
        why: String,
        /// When it was asked for.
        began: Moment,
    },
    /// A person swept by hand.
    Hand {
        /// The pattern, without the prefix of the target.
        pattern: Name,
    },
    /// Too many keys waited, so that rules gave way to all that they could produce.
    Room {
        /// When.
        began: Moment,
    },
}

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// Its id, 32 bit.
    pub xid: u32,
    /// Where its commit ends in the log.
    pub lsn: String,
    /// When it was committed, by the server's clock; put right where that differs by a second.
    pub committed: Moment,
    /// When its COMMIT was received.
    pub received: Moment,
    /// When new snapshots were known to see it; absent while they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visible: Option<Moment>,
    /// Whether some of its keys wait for rows of lookups.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits_for_rows: bool,
}

impl Transaction {
    /// The transaction of a record.
    pub(super) fn of(record: &Record) -> Transaction {
        Transaction {
            xid: record.xid,
            lsn: record.place.lsn.to_string(),
            committed: record.committed,
            received: record.received,
            visible: record.visible,
            waits_for_rows: record.waits_for_rows,
        }
    }
}

/// A rule, and how it reached a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// The rule's name.
    pub rule: String,
    /// How it reaches the key.
    #[serde(flatten)]
    pub how: How,
    /// Keys that the rule gave with it.
    pub keys: u64,
    /// Patterns that the rule gave with it.
    pub patterns: u64,
    /// Why some of them were widened, and how often.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub widened: Vec<Widened>,
}

/// How a rule reaches a key. Names are without the prefix of the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "as", content = "name", rename_all = "snake_case")]
pub enum How {
    /// It gave this very key.
    Key(Name),
    /// It gave a pattern that matches the key.
    Pattern(Name),
    /// It removed fields of a hash, by this pattern of fields.
    Fields(Name),
    /// It removed the keys that a set names, by this pattern of sets.
    Members(Name),
    /// Not all keys of the transaction are remembered, and the rule may have given this one.
    Perhaps,
}

/// Why keys of a rule were widened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Widened {
    /// The reason, as in `walsweep_widened_total`.
    pub reason: String,
    /// How often.
    pub count: u64,
}

/// A transaction that is remembered, with what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latest {
    /// The transaction.
    #[serde(flatten)]
    pub transaction: Transaction,
    /// The counts of each rule.
    pub rules: Vec<RuleCounts>,
    /// Of each target, in the order of the configuration: when its keys went, and went again.
    pub targets: Vec<TargetTimes>,
    /// Some of its keys and patterns, if they were asked for.
    pub keys: Vec<Name>,
}

/// The counts of one rule in a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCounts {
    /// The rule's name.
    pub rule: String,
    /// Keys.
    pub keys: u64,
    /// Patterns.
    pub patterns: u64,
    /// Why some were widened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub widened: Vec<Widened>,
}

/// When the keys of a transaction went from a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetTimes {
    /// The name of the target.
    pub target: String,
    /// When the last of them did; `None` if some did not yet.
    pub removed: Option<Moment>,
    /// When Redis refused some of them first: those are owed until `removed`.
    #[serde(default)]
    pub refused: Option<Moment>,
    /// When for the second time.
    pub removed_again: Option<Moment>,
}
