//! The table that metrics are registered in: for Prometheus, and for people.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor as _};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use super::labels::{LabelNames, Labelled};
use super::metrics::Latency;

/// A metric as people read of it.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// The exposed name.
    pub name: &'static str,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// The text of `# HELP`.
    pub help: &'static str,
}

/// A gauge that has no series while its value is not known: 0 would be an answer, and alerts would
/// take it for one.
#[derive(Clone, Debug, Default)]
pub struct KnownGauge(Arc<Mutex<Option<i64>>>);

impl KnownGauge {
    /// Sets it, or forgets what it was.
    pub fn set(&self, value: Option<i64>) {
        *self.lock() = value;
    }

    fn lock(&self) -> MutexGuard<'_, Option<i64>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

impl EncodeMetric for KnownGauge {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let value = *self.lock();
        value.map_or(Ok(()), |value| encoder.encode_gauge(&value))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }

    fn is_empty(&self) -> bool {
        self.lock().is_none()
    }
}

impl Labelled for KnownGauge {}

/// Registers under the exposed name; counters are exposed with `_total`, which the registry adds.
#[derive(Default)]
pub(super) struct Table {
    pub(super) registry: Registry,
    pub(super) descriptions: Vec<Description>,
}

impl Table {
    pub(super) fn add<M>(&mut self, name: &'static str, help: &'static str, metric: M) -> M
    where
        M: Metric + Clone + Labelled,
    {
        let base = name.strip_suffix("_total").unwrap_or(name);
        self.registry.register(base, help.trim_end_matches('.'), metric.clone());
        let kind = kind(metric.metric_type());
        self.descriptions.push(Description { name, kind, labels: M::LABELS, help });
        metric
    }

    pub(super) fn counter(&mut self, name: &'static str, help: &'static str) -> Counter {
        self.add(name, help, Counter::default())
    }

    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        self.add(name, help, Gauge::default())
    }

    pub(super) fn latency(&mut self, name: &'static str, help: &'static str) -> Histogram {
        self.add(name, help, Latency.new_metric())
    }

    pub(super) fn family<L>(&mut self, name: &'static str, help: &'static str) -> Family<L, Counter>
    where
        L: Clone + std::hash::Hash + Eq + EncodeLabelSet + fmt::Debug + Send + Sync + 'static,
        L: LabelNames,
    {
        self.add(name, help, Family::default())
    }
}

/// The word of `# TYPE`.
fn kind(kind: MetricType) -> &'static str {
    match kind {
        MetricType::Counter => "counter",
        MetricType::Gauge => "gauge",
        MetricType::Histogram => "histogram",
        MetricType::Info => "info",
        MetricType::Unknown => "unknown",
    }
}
