//! Every metric: name, help, labels, buckets, in one table. The pure stages never touch it.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::counted::Counted;
use super::labels::LabelNames as _;
pub use super::labels::{
    ErrorLabel, NodeLabel, OperationLabel, OutcomeLabel, PeerLabel, ReasonLabel, ReplicaLabel,
    RuleLabel, SlotLabel, SourceLabel, StatusLabel, TargetLabel, VersionLabel, WidenedLabel,
};
use super::noted::Noted;
use super::reading::Reading;
use super::server_clock::ServerClock;
use super::table::Table;
pub use super::table::{Description, KnownGauge};
use crate::config::TargetId;
use crate::keys::{Malformed, RuleId, WidenReason};

/// A counter of seconds or another real number.
pub type FloatCounter = Counter<f64, AtomicU64>;

/// A gauge of seconds or another real number.
pub type FloatGauge = Gauge<f64, AtomicU64>;

/// Bucket bounds of latencies in seconds: 50 µs to 100 s, about four a decade.
const LATENCY_SECONDS: [f64; 22] = [
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1000.0,
];

/// Makes a latency histogram.
#[derive(Clone, Debug)]
pub struct Latency;

impl MetricConstructor<Histogram> for Latency {
    fn new_metric(&self) -> Histogram {
        Histogram::new(LATENCY_SECONDS)
    }
}

/// All metrics of the process. A clone shows the same ones.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    descriptions: Vec<Description>,
    /// The server's clock: it says what the times that the server gives mean here.
    pub server_clock: Arc<ServerClock>,
    /// How far what is read is behind what is committed.
    pub reading: Arc<Reading>,
    /// Notes of what is under way, and waits, at this moment.
    pub noted: Arc<Noted>,
    pub(super) rules: Vec<String>,
    /// The names of the targets, where there are several.
    pub(super) targets: Vec<String>,
    /// The name of each target, also of the only one.
    pub(super) every_target: Vec<String>,
    pub(super) counted: Arc<Counted>,
    slot: Family<SlotLabel, Gauge>,
    /// 1 when streaming and no sweep is owed.
    pub ready: Gauge,
    /// 1 while the process can make progress.
    pub(super) healthy: Gauge,
    /// Committed transactions received.
    pub transactions: Counter,
    /// Row changes, refreshed views and messages received.
    pub changes: Family<OperationLabel, Counter>,
    pub(super) rules_suspended: Family<RuleLabel, Gauge>,
    pub(super) rule_matches: Family<RuleLabel, Counter>,
    pub(super) keys_removed: Family<RuleLabel, Counter>,
    pub(super) keys_absent: Family<RuleLabel, Counter>,
    pub(super) widened: Family<WidenedLabel, Counter>,
    messages_malformed: Family<ReasonLabel, Counter>,
    /// Rows that keys needed, by where they came from.
    pub lookup_rows: Family<SourceLabel, Counter>,
    /// Commit, by the server's clock, to every key's first removal acknowledged.
    pub commit_to_removed: Histogram,
    /// Visible to every key's first removal acknowledged.
    pub visible_to_removed: Histogram,
    /// COMMIT received to visible.
    pub visibility_wait: Histogram,
    /// Transactions that were not visible at the first look after COMMIT.
    pub invisible_at_arrival: Counter,
    /// SCAN passes by what asked for them.
    pub sweeps: Family<ReasonLabel, Counter>,
    /// Duration of a SCAN pass.
    pub sweep_seconds: Histogram,
    /// Keys that SCAN passes looked at.
    pub sweep_scanned_keys: Counter,
    /// How long patterns have waited so that SCAN takes no more than `sweep.max_load`.
    pub sweep_throttled: FloatCounter,
    /// How long one SCAN call held Redis, as seen from here.
    pub scan_stall: Histogram,
    /// Passes by an index of live keys, in the place of SCAN passes.
    pub index_passes: Counter,
    pub(super) index_keys: Family<TargetLabel, Gauge>,
    pub(super) index_bytes: Family<TargetLabel, Gauge>,
    pub(super) index_whole: Family<TargetLabel, Gauge>,
    pub(super) refills_removed: Family<RuleLabel, Counter>,
    published: Counter,
    publish_failures: Counter,
    /// Keys and patterns removed again because Redis went back to an older watermark.
    pub repeated_keys: Counter,
    /// Bytes of WAL between the end and `confirmed_flush_lsn`.
    pub confirmed_lag_bytes: KnownGauge,
    /// Bytes of WAL between the end and `restart_lsn`: what the slot keeps on disk.
    pub restart_lag_bytes: KnownGauge,
    /// `pg_replication_slots.safe_wal_size`; -1 when there is no limit.
    pub slot_safe_wal_bytes: KnownGauge,
    /// 1 for the slot's present `wal_status`.
    pub slot_wal_status: Family<StatusLabel, Gauge>,
    /// Age of the oldest transaction that is received and not confirmed; without a session at least
    /// the time without one. [`Health::metrics`](super::Health::metrics) keeps it.
    pub oldest_unconfirmed: FloatGauge,
    /// Transactions received whole, and their keys not yet removed.
    pub in_flight_transactions: Gauge,
    /// Memory of key sets, bytes.
    pub key_sets_bytes: Gauge,
    /// 1 while the replication and SQL connections stand.
    pub postgres_up: Gauge,
    /// 1 while the standby answers and is the one that is meant.
    pub replica_up: Family<ReplicaLabel, Gauge>,
    /// Bytes of WAL between the furthest commit and what the standby has replayed of it.
    pub replica_replay_lag_bytes: Family<ReplicaLabel, Gauge>,
    /// 1 while the node answers.
    pub redis_up: Family<NodeLabel, Gauge>,
    pub(super) redis_proven: Family<NodeLabel, Gauge>,
    /// Errors from Redis.
    pub redis_errors: Family<ErrorLabel, Counter>,
    /// 1 while a target owes no sweep and its Redis answers; of several targets.
    pub target_ready: Family<TargetLabel, Gauge>,
    pub(super) target_removed: Family<TargetLabel, Histogram, Latency>,
    /// Connections that were lost, of Postgres the sessions; each is made again.
    pub reconnects: Family<PeerLabel, Counter>,
    /// Lines of the audit trail that could not be written.
    pub audit_lost: Counter,
    /// Sweeps of what may be stale because a change may have been missed.
    pub resyncs: Family<ReasonLabel, Counter>,
    /// Reloads of the configuration by what came of them.
    pub config_reloads: Family<OutcomeLabel, Counter>,
    /// 1 unless the latest reload was refused.
    pub config_last_reload_successful: Gauge,
    /// When the configuration was last read that walsweep runs with, seconds since 1970.
    pub config_last_reload_success: FloatGauge,
}

impl Metrics {
    /// The metrics of a walsweep with these rules, all at zero.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "one row per metric, nothing else")]
    pub fn new(rules: &[String]) -> Metrics {
        let mut table = Table::default();
        let version = VersionLabel { version: env!("CARGO_PKG_VERSION") };
        // The registry adds `_info` by itself.
        table.registry.register("walsweep_build", "What is running", Info::new(version));
        table.descriptions.push(Description {
            name: "walsweep_build_info",
            kind: "info",
            labels: VersionLabel::NAMES,
            help: "What is running",
        });
        let metrics = Metrics {
            rules: rules.to_vec(),
            targets: Vec::new(),
            every_target: Vec::new(),
            counted: Arc::default(),
            server_clock: Arc::default(),
            reading: Arc::default(),
            noted: Arc::new(Noted::new(rules.len())),
            // Near the front of the page, where `walsweep check` looks for it.
            slot: table.add(
                "walsweep_slot_info",
                "1 for the slot of the latest session: its name, database, and `system_id` of \
                 its cluster",
                Family::default(),
            ),
            ready: table.gauge(
                "walsweep_ready",
                "1 while `/readyz` is 200: it streams, and no sweep is owed",
            ),
            healthy: table.gauge(
                "walsweep_healthy",
                "1 while `/healthz` is 200: the process can make progress, or waits for a server \
                 that is away. 0 as well while it waits for another walsweep that is gone",
            ),
            transactions: table
                .counter("walsweep_transactions_total", "Committed transactions received"),
            changes: table
                .family("walsweep_changes_total", "Row changes, refreshes and messages received"),
            rules_suspended: table.add(
                "walsweep_rule_suspended",
                "1 while the rule does not fit its table and removes nothing",
                Family::default(),
            ),
            rule_matches: table
                .family("walsweep_rule_matches_total", "Row changes that a rule matched"),
            keys_removed: table.family(
                "walsweep_keys_removed_total",
                "Keys removed from Redis; a key of several rules counts for the one that gave it \
                 first",
            ),
            keys_absent: table.family(
                "walsweep_keys_absent_total",
                "Exact keys that were not in Redis, by the rule that gave them first",
            ),
            widened: table.family(
                "walsweep_widened_total",
                "Keys widened to a pattern, and changes whose `when` could not be decided",
            ),
            messages_malformed: table.family(
                "walsweep_messages_malformed_total",
                "Messages of a rule's prefix, or of the probe's, that removed nothing, and why",
            ),
            lookup_rows: table.family(
                "walsweep_lookup_rows_total",
                "Rows that keys needed, by where they came from",
            ),
            commit_to_removed: table.latency(
                "walsweep_commit_to_removed_seconds",
                "Commit, by the server's clock, to its keys removed for the first time",
            ),
            visible_to_removed: table
                .latency("walsweep_visible_to_removed_seconds", "Visible to its keys removed"),
            visibility_wait: table
                .latency("walsweep_visibility_wait_seconds", "Commit received to visible"),
            invisible_at_arrival: table.counter(
                "walsweep_invisible_at_arrival_total",
                "Transactions that readers could not yet see when their commit arrived",
            ),
            published: table.counter(
                "walsweep_published_total",
                "Messages of removals told on `redis.publish`",
            ),
            publish_failures: table.counter(
                "walsweep_publish_failures_total",
                "Messages of removals that were not told on `redis.publish`",
            ),
            sweeps: table.family("walsweep_sweeps_total", "SCAN passes, by what asked for them"),
            sweep_seconds: table.latency("walsweep_sweep_seconds", "Duration of a SCAN pass"),
            sweep_scanned_keys: table
                .counter("walsweep_sweep_scanned_keys_total", "Keys that SCAN passes looked at"),
            sweep_throttled: table.add(
                "walsweep_sweep_throttled_seconds_total",
                "Time that patterns waited because SCAN may take `sweep.max_load` of Redis's time",
                FloatCounter::default(),
            ),
            scan_stall: table
                .latency("walsweep_scan_stall_seconds", "How long one SCAN call held Redis"),
            index_passes: table.counter(
                "walsweep_index_passes_total",
                "Passes by the index of live keys, that needed no SCAN; with `sweep.index`",
            ),
            index_keys: table.add(
                "walsweep_index_keys",
                "Names in the index of live keys; with `sweep.index`",
                Family::default(),
            ),
            index_bytes: table.add(
                "walsweep_index_bytes",
                "Memory of the names in the index of live keys; with `sweep.index`",
                Family::default(),
            ),
            index_whole: table.add(
                "walsweep_index_whole",
                "1 while the index knows every live key, else patterns go by SCAN; with \
                 `sweep.index`",
                Family::default(),
            ),
            refills_removed: table.family(
                "walsweep_refills_removed_total",
                "Keys that were there again when they were removed again",
            ),
            repeated_keys: table.counter(
                "walsweep_repeated_keys_total",
                "Keys and patterns removed again because Redis went back",
            ),
            confirmed_lag_bytes: table.add(
                "walsweep_confirmed_lag_bytes",
                "WAL that the primary has written and that is not confirmed",
                KnownGauge::default(),
            ),
            restart_lag_bytes: table.add(
                "walsweep_restart_lag_bytes",
                "WAL that the slot keeps on the disk of the server that it is on",
                KnownGauge::default(),
            ),
            slot_safe_wal_bytes: table.add(
                "walsweep_slot_safe_wal_bytes",
                "WAL until the slot is lost; -1 without limit, and on a standby; absent where the \
                 slot cannot be looked at",
                KnownGauge::default(),
            ),
            slot_wal_status: table.add(
                "walsweep_slot_wal_status",
                "1 for the slot's present `wal_status`; looked at every 5 s, also without a \
                 session; absent where it cannot be",
                Family::default(),
            ),
            oldest_unconfirmed: table.add(
                "walsweep_oldest_unconfirmed_seconds",
                "Age of the oldest unconfirmed transaction, or the time without a session",
                FloatGauge::default(),
            ),
            key_sets_bytes: table.gauge(
                "walsweep_key_sets_bytes",
                "Memory of keys, wherever they are on their way or wait",
            ),
            in_flight_transactions: table.gauge(
                "walsweep_in_flight_transactions",
                "Transactions received, and their keys not yet removed",
            ),
            postgres_up: table
                .gauge("walsweep_postgres_up", "1 while the connections to Postgres stand"),
            replica_up: table.add(
                "walsweep_replica_up",
                "1 while the replica answers and follows the primary; absent without a session",
                Family::default(),
            ),
            replica_replay_lag_bytes: table.add(
                "walsweep_replica_replay_lag_bytes",
                "WAL between the latest commit with keys and what the replica has replayed",
                Family::default(),
            ),
            redis_up: table.add(
                "walsweep_redis_up",
                "1 while the Redis node answers, by its address or service; absent without a \
                 session",
                Family::default(),
            ),
            redis_proven: table.add(
                "walsweep_redis_proven",
                "1 where the watermark shows that the Redis node keeps every removal, 0 where \
                 nothing can",
                Family::default(),
            ),
            redis_errors: table.family("walsweep_redis_errors_total", "Errors from Redis"),
            target_ready: table.add(
                "walsweep_target_ready",
                "1 while the target owes no sweep and its Redis answers, of several targets",
                Family::default(),
            ),
            target_removed: table.add(
                "walsweep_target_commit_to_removed_seconds",
                "Commit, by the server's clock, to its keys removed from one of several targets",
                Family::new_with_constructor(Latency),
            ),
            reconnects: table
                .family("walsweep_reconnects_total", "Connections lost, each to be made again"),
            audit_lost: table.counter(
                "walsweep_audit_lost_total",
                "Lines of the audit trail that could not be written",
            ),
            resyncs: table.family(
                "walsweep_resyncs_total",
                "Sweeps of what may be stale because a change may have been missed",
            ),
            config_reloads: table.family(
                "walsweep_config_reloads_total",
                "Reloads of the configuration, and what came of them",
            ),
            config_last_reload_successful: table.gauge(
                "walsweep_config_last_reload_successful",
                "1 unless the latest reload of the configuration was refused",
            ),
            config_last_reload_success: table.add(
                "walsweep_config_last_reload_success_timestamp_seconds",
                "When the configuration was read that walsweep runs with",
                FloatGauge::default(),
            ),
            registry: Arc::new(Mutex::new(table.registry)),
            descriptions: table.descriptions,
        };
        metrics.create_series();
        metrics
    }

    /// Names the targets, in the order of the configuration.
    #[must_use]
    pub fn with_targets(mut self, names: Vec<String>) -> Metrics {
        let same: Vec<Option<usize>> = (0..self.rules.len()).map(Some).collect();
        self.noted = Arc::new(self.noted.of_others(&same, names.len()));
        self.every_target.clone_from(&names);
        if names.len() > 1 {
            for target in &names {
                let label = TargetLabel { target: target.clone() };
                self.target_ready.get_or_create_owned(&label);
                self.target_removed.get_or_create_owned(&label);
            }
            self.targets = names;
        }
        self
    }

    /// Every metric, in the order of the page, also those that have no series yet.
    #[must_use]
    pub fn descriptions(&self) -> &[Description] {
        &self.descriptions
    }

    /// The name of a target, where there are several.
    #[must_use]
    pub fn target_name(&self, target: TargetId) -> Option<&str> {
        self.targets.get(target.place()).map(String::as_str)
    }

    /// The number of targets, at least one.
    #[must_use]
    pub fn target_count(&self) -> usize {
        self.targets.len().max(1)
    }

    pub(super) fn target(&self, target: TargetId) -> Option<TargetLabel> {
        self.target_name(target).map(|target| TargetLabel { target: target.to_owned() })
    }

    /// Whether a target owes no sweep and its Redis answers.
    pub fn target_is_ready(&self, target: TargetId, is_ready: bool) {
        if let Some(label) = self.target(target) {
            self.target_ready.get_or_create(&label).set(i64::from(is_ready));
        }
    }

    /// So many messages of removals were told, or were not.
    pub fn published(&self, is_told: bool, count: u64) {
        if is_told { &self.published } else { &self.publish_failures }.inc_by(count);
    }

    /// Rule and operation series exist from the start: a counter that is absent until its first
    /// event hides that event from `increase()`.
    pub(super) fn create_series(&self) {
        for rule in &self.rules {
            let label = RuleLabel { rule: rule.clone() };
            let families =
                [&self.rule_matches, &self.keys_removed, &self.keys_absent, &self.refills_removed];
            for family in families {
                family.get_or_create_owned(&label);
            }
            self.rules_suspended.get_or_create_owned(&label);
        }
        for operation in ["insert", "update", "delete", "truncate", "refresh", "message"] {
            self.changes.get_or_create_owned(&OperationLabel { operation });
        }
        for reason in Malformed::ALL.map(Malformed::as_str) {
            self.messages_malformed.get_or_create_owned(&ReasonLabel { reason });
        }
        for reason in ["rule", "again", "replayed", "resync", "refill", "index"] {
            self.sweeps.get_or_create_owned(&ReasonLabel { reason });
        }
        for source in ["cache", "query"] {
            self.lookup_rows.get_or_create_owned(&SourceLabel { source });
        }
        for outcome in ["applied", "unchanged", "refused"] {
            self.config_reloads.get_or_create_owned(&OutcomeLabel { outcome });
        }
        for peer in ["postgres", "replica", "redis"] {
            self.reconnects.get_or_create_owned(&PeerLabel { peer });
        }
    }

    /// No session with Postgres stands: nothing is in flight, and what is to be sent again is
    /// counted then; whether Redis and the replicas answer nobody knows.
    pub fn no_session(&self) {
        self.postgres_up.set(0);
        self.in_flight_transactions.set(0);
        self.key_sets_bytes.set(0);
        self.redis_up.clear();
        for gauge in [&self.index_keys, &self.index_bytes, &self.index_whole] {
            gauge.clear();
        }
        self.redis_proven.clear();
        self.noted.no_session();
        self.targets.iter().for_each(|target| {
            let label = TargetLabel { target: target.clone() };
            self.target_ready.get_or_create(&label).set(0);
        });
        self.replica_up.clear();
        self.replica_replay_lag_bytes.clear();
    }

    /// Shows how the index of a target's live keys stands: names, their memory in bytes, and
    /// whether none is missing.
    pub fn index(&self, target: &TargetLabel, (keys, bytes): (usize, usize), is_whole: bool) {
        for (gauge, value) in [
            (&self.index_keys, keys),
            (&self.index_bytes, bytes),
            (&self.index_whole, usize::from(is_whole)),
        ] {
            gauge.get_or_create(target).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    /// Shows whose slot it is.
    pub fn slot_is(&self, slot: &SlotLabel) {
        self.slot.clear();
        self.slot.get_or_create(slot).set(1);
    }

    /// Shows whether the watermark of a node is evidence of its removals.
    pub fn is_proven(&self, node: &NodeLabel, is_proven: bool) {
        self.redis_proven.get_or_create(node).set(i64::from(is_proven));
    }

    /// The name of a rule; empty for one that there is not.
    #[must_use]
    pub fn rule_name(&self, rule: RuleId) -> &str {
        rule.name_in(&self.rules)
    }

    fn rule(&self, rule: RuleId) -> RuleLabel {
        RuleLabel { rule: self.rule_name(rule).to_owned() }
    }

    /// Shows whether the rule of this name is suspended.
    pub fn rule_suspended(&self, rule: &str, is_suspended: bool) {
        let label = RuleLabel { rule: rule.to_owned() };
        self.rules_suspended.get_or_create(&label).set(i64::from(is_suspended));
    }

    /// Counts row changes that `rule` matched.
    pub fn rule_matched(&self, rule: RuleId, count: u64) {
        self.rule_matches.get_or_create(&self.rule(rule)).inc_by(count);
    }

    /// Counts `removed` keys of `rule` that were in Redis and `absent` ones that were not.
    pub fn keys_removed(&self, rule: RuleId, removed: u64, absent: u64) {
        self.keys_removed.get_or_create(&self.rule(rule)).inc_by(removed);
        self.keys_absent.get_or_create(&self.rule(rule)).inc_by(absent);
        if removed > 0 {
            self.noted.removed(rule);
        }
    }

    /// Counts keys of `rule` that were there again when they were removed again.
    pub fn refills_removed(&self, rule: RuleId, count: u64) {
        self.refills_removed.get_or_create(&self.rule(rule)).inc_by(count);
        if count > 0 {
            self.noted.removed(rule);
        }
    }

    /// How many keys of each rule were removed so far, by [`RuleId`]: for the first time, and
    /// again.
    #[must_use]
    pub fn keys_removed_by_rule(&self) -> Vec<(u64, u64)> {
        let removed = |rule: &String| {
            let label = RuleLabel { rule: rule.clone() };
            let count = |family: &Family<RuleLabel, Counter>| family.get_or_create(&label).get();
            (count(&self.keys_removed), count(&self.refills_removed))
        };
        self.rules.iter().map(removed).collect()
    }

    /// Counts keys of `rule` that were widened.
    pub fn widened(&self, rule: RuleId, reason: WidenReason, count: u64) {
        let RuleLabel { rule } = self.rule(rule);
        self.widened.get_or_create(&WidenedLabel { rule, reason: reason.as_str() }).inc_by(count);
    }

    /// Counts rules that were widened because too much waits, and how often each.
    pub fn widened_for_room(&self, widened: &[(RuleId, u64)]) {
        widened.iter().for_each(|(rule, count)| self.widened(*rule, WidenReason::Limit, *count));
    }

    /// Counts a message that nothing could be made of.
    pub fn message_malformed(&self, why: Malformed) {
        self.messages_malformed.get_or_create(&ReasonLabel { reason: why.as_str() }).inc();
    }

    /// The OpenMetrics text of all metrics
    /// (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().expect("encoding does not panic");
        encode(&mut text, &registry).expect("writing to a string does not fail");
        text
    }
}

/// Seconds of a duration, for a histogram.
#[must_use]
pub fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
