//! Numbers that the metrics are told of a stream.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use crate::gather::{Row, Transaction};
use crate::keys::{KeySet, Signal};
use crate::lsn::Lsn;
use crate::telemetry::metrics::{Metrics, OperationLabel};
use crate::telemetry::{Health, Trail};

/// How far apart the commits are whose age `walsweep_oldest_unconfirmed_seconds` is taken from.
const AGE_STEP: Duration = Duration::from_millis(100);

/// When transactions were committed, sampled as they arrive, for the age of the oldest unconfirmed
/// one.
#[derive(Default)]
pub(super) struct Arrivals {
    samples: VecDeque<(Lsn, Instant)>,
}

impl Arrivals {
    pub(super) fn add(&mut self, end_lsn: Lsn, at: Instant) {
        match self.samples.back_mut() {
            // The sample then stands for everything from its own arrival on.
            Some((lsn, since)) if at - *since < AGE_STEP => *lsn = end_lsn,
            _ => self.samples.push_back((end_lsn, at)),
        }
        if self.samples.len() > 10_000 {
            // The oldest is what counts; the one after it may stand for more.
            self.samples.remove(1);
        }
    }

    pub(super) fn confirmed(&mut self, lsn: Lsn) {
        while self.samples.front().is_some_and(|(end_lsn, _)| *end_lsn <= lsn) {
            self.samples.pop_front();
        }
    }

    /// Something up to `end_lsn` may have waited since `at`, before this session saw anything.
    pub(super) fn seed(&mut self, end_lsn: Lsn, at: Instant) {
        self.samples.push_front((end_lsn, at));
    }

    pub(super) fn oldest(&self) -> Option<Instant> {
        self.samples.front().map(|(_, at)| *at)
    }
}

/// Counters that are looked up once, not for every row.
pub(super) struct Counters<'a> {
    metrics: &'a Metrics,
    trail: &'a Trail,
    pub(super) transactions: Counter,
    in_flight: Gauge,
    key_sets: Gauge,
    operations: [Counter; 4],
    refreshes: Counter,
    messages: Counter,
}

impl<'a> Counters<'a> {
    pub(super) fn new((health, metrics): (&'a Health, &'a Metrics)) -> Counters<'a> {
        let count = |operation| metrics.changes.get_or_create_owned(&OperationLabel { operation });
        let operations = ["insert", "update", "delete", "truncate"].map(count);
        let (refreshes, messages) = (count("refresh"), count("message"));
        Counters {
            metrics,
            trail: health.trail(),
            transactions: metrics.transactions.clone(),
            in_flight: metrics.in_flight_transactions.clone(),
            key_sets: metrics.key_sets_bytes.clone(),
            operations,
            refreshes,
            messages,
        }
    }

    /// So many transactions are in flight, and so many bytes of keys held.
    pub(super) fn holds(&self, transactions: usize, bytes: usize) {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.in_flight.set(number(transactions));
        self.key_sets.set(number(bytes));
    }

    /// The server said what time it is.
    pub(super) fn heard(&self, server_time: i64) {
        self.metrics.server_clock.heard(server_time, SystemTime::now());
    }

    pub(super) fn row(&self, row: &Row) {
        let [insert, update, delete, truncate] = &self.operations;
        match row {
            Row::Insert { .. } => insert.inc(),
            Row::Update { .. } => update.inc(),
            Row::Delete { .. } => delete.inc(),
            Row::Truncate => truncate.inc(),
        };
    }

    pub(super) fn signal(&self, signal: Signal) {
        match signal {
            // A probe counts as what it removes.
            Signal::Other | Signal::Probe => {}
            Signal::Refresh => drop(self.refreshes.inc()),
            Signal::Message => drop(self.messages.inc()),
            Signal::Malformed(malformed) => self.metrics.message_malformed(malformed),
        }
    }

    /// A transaction is received, so long after its commit.
    pub(super) fn read(&self, transaction: &Transaction) -> Duration {
        let age = transaction.age(self.metrics.server_clock.now());
        self.metrics.reading.read(age);
        age
    }

    /// A transaction with keys is received.
    pub(super) fn committed(&self, transaction: &Transaction, keys: &KeySet) {
        self.trail.committed(transaction, keys, self.metrics.server_clock.behind());
    }

    pub(super) fn keys(&self, keys: &KeySet) {
        // What a transaction would have removed counts also when it removes nothing.
        keys.matches().for_each(|(rule, count)| self.metrics.rule_matched(rule, count));
        keys.widened().for_each(|(rule, why, count)| self.metrics.widened(rule, why, count));
    }
}
