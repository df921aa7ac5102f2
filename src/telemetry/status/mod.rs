//! The state of a running walsweep at one moment, for people: what `/status` gives, and what the
//! page and `walsweep status` show.
//!
//! It is made when somebody asks, from what metrics, health and notes hold anyway, and costs
//! nothing before. Its fields are stable for programs: some may be added, none changes its meaning.
//! Times are texts of RFC 3339 in UTC, durations seconds, sizes bytes.
//!
//! No value of a row is in it (I9), and keys only where `[http] keys` says so.

mod facts;
mod taken;
mod verdict;
#[cfg(test)]
mod verdict_tests;

pub use facts::Facts;
pub use verdict::{Level, Verdict};

use serde::{Deserialize, Serialize};

use super::trail::Latest;

/// The state of a running walsweep at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The version that runs.
    pub version: String,
    /// When this was true.
    pub now: String,
    /// When the process began.
    pub started: String,
    /// Whether all is well, in one line, and what to do if not.
    pub verdict: Verdict,
    /// Whether `/readyz` is 200.
    pub ready: bool,
    /// Whether `/healthz` is 200.
    pub alive: bool,
    /// The first line of `/readyz`.
    pub phase: String,
    /// Since when it is in this phase.
    pub phase_since: String,
    /// Everything that does not work, and that `/readyz` names.
    pub troubles: Vec<Trouble>,
    /// The server with the slot.
    pub postgres: Postgres,
    /// Counts since the process began.
    pub totals: Totals,
    /// Everything that waits, in the order of the flow; stages where nothing does are left out.
    pub waiting: Vec<Wait>,
    /// Each Redis deployment, in the order of the configuration.
    pub targets: Vec<Target>,
    /// Each rule, in the order of the configuration.
    pub rules: Vec<Rule>,
    /// Seconds from commit, by the server's clock, to its keys removed.
    pub latency: Latency,
    /// SCAN passes under way.
    pub passes: Vec<Pass>,
    /// The latest transactions that had keys, the newest first; with some of their keys where
    /// `[http] keys` says so.
    pub transactions: Vec<Latest>,
}

/// Something that does not work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trouble {
    /// The words for it, as on `/readyz`.
    pub text: String,
    /// The cure, as far as a person can do something.
    pub hint: Option<String>,
    /// The SQL that cures it, where some does.
    pub sql: Option<String>,
    /// Since when.
    pub since: String,
    /// Whether readers may see stale values for it, so that `/readyz` is 503.
    pub stops_ready: bool,
    /// The section of the runbook, as the anchor of its heading.
    pub section: String,
}

/// The server with the slot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Postgres {
    /// Whether a session stands.
    pub up: bool,
    /// The slot's name.
    pub slot: String,
    /// Its database.
    pub database: String,
    /// The publication that is read.
    pub publication: String,
    /// The slot, if it is known; looked at every five seconds.
    pub state: Option<Slot>,
    /// WAL that may be unconfirmed before the slot is given up; `None` without limit.
    pub max_retained_wal_bytes: Option<u64>,
    /// Age of the oldest transaction that is not confirmed; 0 if all are.
    pub oldest_unconfirmed_seconds: f64,
}

/// The state of the slot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Slot {
    /// The position that Postgres was told last.
    pub confirmed_flush_lsn: String,
    /// WAL that is not confirmed.
    pub confirmed_lag_bytes: i64,
    /// WAL that the slot keeps on the server's disk.
    pub restart_lag_bytes: i64,
    /// WAL that may still be written before the slot is lost; `None` without limit.
    pub safe_wal_bytes: Option<i64>,
    /// `pg_replication_slots.wal_status`.
    pub wal_status: String,
    /// When it was looked at.
    pub looked_at: String,
}

/// Counts since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Committed transactions received.
    pub transactions: u64,
    /// Row changes, refreshes and messages received.
    pub changes: u64,
    /// Keys removed for the first time.
    pub keys_removed: u64,
    /// Exact keys that were not in Redis.
    pub keys_absent: u64,
    /// Keys that were there again when they were removed again.
    pub refills_removed: u64,
    /// Keys that SCAN passes looked at.
    pub scanned_keys: u64,
    /// Transactions received whose keys are not removed yet.
    pub in_flight: u64,
}

/// Somewhere something waits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wait {
    /// Where: `gate`, `lookups`, `redis`, `pass`, `second` or `standbys`.
    pub stage: String,
    /// The target, where there are several and it is one's matter.
    pub target: Option<String>,
    /// How much.
    pub count: u64,
    /// Of what: `commits`, `keys` or `groups` of keys, one of them without the `s`.
    pub what: String,
    /// How long the oldest has waited, if that is known.
    pub oldest_seconds: Option<f64>,
    /// The reason, or the thing that it waits for.
    pub why: String,
}

/// A Redis deployment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// `standalone`, `cluster` or `sentinel`.
    pub mode: String,
    /// Its address or the name of its service; empty before there was a session.
    pub node: String,
    /// Whether it answers; `None` without a session.
    pub up: Option<bool>,
    /// Whether its watermark shows that it keeps every removal; `None` if that is not known.
    pub proven: Option<bool>,
    /// How far it is; while there is no session with Postgres, that it is not looked at.
    pub phase: String,
    /// Whether it owes no sweep and answers.
    pub ready: bool,
    /// How many rules' keys go there.
    pub rules: u64,
    /// The share of its time that SCAN may take.
    pub max_load: f64,
    /// The index of live keys, where there is one.
    pub index: Option<Index>,
    /// Why writes are not observed, though the index or `refill.observe` needs it.
    pub unobserved: Option<String>,
    /// Its servers, as far as passes have met them.
    pub nodes: Vec<Node>,
}

/// The index of live keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Index {
    /// Names in it.
    pub keys: u64,
    /// Their memory.
    pub bytes: u64,
    /// Whether it knows every live key; else patterns go by SCAN.
    pub whole: bool,
}

/// A server of a target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Its address.
    pub name: String,
    /// The share of its time that passes took over the latest ten seconds.
    pub load: f64,
    /// The price of its latest whole pass.
    pub pass: Option<Price>,
}

/// The price of a pass over one server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Price {
    /// How long it lasted.
    pub seconds: f64,
    /// How much of the server's time it took.
    pub took_seconds: f64,
    /// How long it waited for `sweep.max_load`.
    pub waited_seconds: f64,
    /// Keys that it looked at, but for those that Redis was asked to leave out.
    pub keys: u64,
    /// When it ended.
    pub ended: String,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// The table, materialized view or message that it looks at.
    pub source: String,
    /// Its templates of keys and tags, as the configuration has them.
    pub keys: Vec<String>,
    /// Row changes that it matched.
    pub matches: u64,
    /// Keys removed for the first time.
    pub removed: u64,
    /// Exact keys that were not in Redis.
    pub absent: u64,
    /// Keys that were there again when they were removed again.
    pub refills: u64,
    /// Keys widened to a pattern, by reason.
    pub widened: Vec<Widened>,
    /// Whether it does not fit its table and removes nothing.
    pub suspended: bool,
    /// The trouble with it, if there is one.
    pub trouble: Option<String>,
    /// When its latest key was removed.
    pub last_removed: Option<String>,
}

/// Keys of a rule that were widened for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Widened {
    /// The reason, as `walsweep_widened_total` has it.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// A histogram of latencies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Buckets in order of their bounds; those before the first and after the last that counted
    /// anything are left out.
    pub buckets: Vec<Bucket>,
    /// How many were counted.
    pub count: u64,
    /// Their sum, seconds.
    pub sum_seconds: f64,
}

/// Latencies above the bound of the bucket before, and up to this one's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bucket {
    /// The bound, seconds; `None` for no bound.
    pub up_to_seconds: Option<f64>,
    /// How many are in it, and in none before.
    pub count: u64,
}

/// A SCAN pass under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pass {
    /// The target.
    pub target: String,
    /// The reason for it, as `walsweep_sweeps_total` has it.
    pub reason: String,
    /// How many patterns it looks for.
    pub patterns: u64,
    /// How long it has lasted.
    pub seconds: f64,
    /// How far it is on each server.
    pub nodes: Vec<PassNode>,
}

/// How far a pass is on one server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PassNode {
    /// The server's address.
    pub name: String,
    /// Keys looked at, but for those that Redis was asked to leave out.
    pub scanned: u64,
    /// How much of it is done, from 0 to 1, if it takes as much of the server's time as the pass
    /// before it; `None` if it takes more, or is the first.
    pub share: Option<f64>,
    /// How long it waited for `sweep.max_load`.
    pub waited_seconds: f64,
}
