//! The labels of metrics: each set of them is closed.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// The names of a label set's labels.
pub(super) trait LabelNames {
    /// In the order in which they are exposed.
    const NAMES: &'static [&'static str];
}

/// A metric that knows the names of its labels.
pub(super) trait Labelled {
    /// None for a metric without labels.
    const LABELS: &'static [&'static str] = &[];
}

impl<N, A> Labelled for Counter<N, A> {}

impl<N, A> Labelled for Gauge<N, A> {}

impl Labelled for Histogram {}

impl<L: LabelNames, M, C> Labelled for Family<L, M, C> {
    const LABELS: &'static [&'static str] = L::NAMES;
}

impl LabelNames for NodeLabel {
    const NAMES: &'static [&'static str] = &["target", "node"];
}

impl LabelNames for ErrorLabel {
    const NAMES: &'static [&'static str] = &["target", "kind"];
}

impl LabelNames for SlotLabel {
    const NAMES: &'static [&'static str] = &["slot", "database", "system_id"];
}

impl LabelNames for WidenedLabel {
    const NAMES: &'static [&'static str] = &["rule", "reason"];
}

/// A label set of one closed label.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $field:ident, $type:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub struct $name {
            /// The label's value.
            pub $field: $type,
        }

        impl LabelNames for $name {
            const NAMES: &'static [&'static str] = &[stringify!($field)];
        }
    };
}

label!(
    /// `outcome` of a reload: applied, unchanged, refused.
    OutcomeLabel, outcome, &'static str
);
label!(
    /// `operation`: insert, update, delete, truncate, refresh, message.
    OperationLabel, operation, &'static str
);
label!(
    /// `rule`: the rule's name.
    RuleLabel, rule, String
);
label!(
    /// `reason`: why everything was swept, a sweep was made, or a message was of no use.
    ReasonLabel, reason, &'static str
);
label!(
    /// `source`: cache or query.
    SourceLabel, source, &'static str
);
label!(
    /// `status`: `pg_replication_slots.wal_status`.
    StatusLabel, status, &'static str
);
label!(
    /// `target`: the name of a target.
    TargetLabel, target, String
);
label!(
    /// `replica`: host and port of a standby.
    ReplicaLabel, replica, String
);
label!(
    /// `peer`: postgres, replica or redis.
    PeerLabel, peer, &'static str
);
label!(
    /// `version` of walsweep.
    VersionLabel, version, &'static str
);

/// `target` and `node`: which Redis node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NodeLabel {
    /// The target's name.
    pub target: String,
    /// Host and port.
    pub node: String,
}

/// `target` and `kind`: an error of which target's Redis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ErrorLabel {
    /// The target's name.
    pub target: String,
    /// The class of the error.
    pub kind: &'static str,
}

/// `slot`, `database` and `system_id`: which slot, of all that there are anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SlotLabel {
    /// The slot's name.
    pub slot: String,
    /// Its database.
    pub database: String,
    /// The identifier of its cluster.
    pub system_id: String,
}

/// `rule` and `reason`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WidenedLabel {
    /// The rule's name.
    pub rule: String,
    /// Why a value could not be known.
    pub reason: &'static str,
}
