//! Labels of the content of a key set: its rule, its template, and why it was widened.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;

use super::lookup::LookupTemplate;
use super::pattern::Pattern;
use crate::config::Targets;

/// A rule: its index in [`Rules::names`](super::Rules::names).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub u16);

impl RuleId {
    /// Stands in the place of a rule where a probe removes its canary.
    pub const PROBE: RuleId = RuleId(u16::MAX);

    /// The label `rule` of that one; no rule has it, for a rule's name has no `.`.
    pub const PROBE_NAME: &'static str = "walsweep.probe";

    /// The name of the rule, where `names` are those of the rules in their order; empty for one
    /// that there is not.
    #[must_use]
    pub fn name_in(self, names: &[String]) -> &str {
        match self {
            RuleId::PROBE => RuleId::PROBE_NAME,
            RuleId(at) => names.get(usize::from(at)).map_or("", String::as_str),
        }
    }
}

/// A key template: its index over all rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TemplateId(pub(super) u16);

/// A lookup: its index in [`Rules::lookups`](super::Rules::lookups).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LookupId(pub u16);

/// Why a placeholder turned into `*`, or a rule fired without its `when` being true: the label
/// `reason` of `walsweep_widened_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WidenReason {
    /// The replica identity does not send the old value.
    ReplicaIdentity,
    /// An unchanged TOAST value was not sent.
    UnchangedToast,
    /// The table was truncated.
    Truncate,
    /// A limit of the key set was reached.
    Limit,
    /// The relation has no such published column.
    MissingColumn,
    /// A filter needs text, and the value is not UTF-8.
    NotText,
    /// `when` depends on a value that cannot be known, and counts as true.
    ConditionUnknown,
    /// The evaluation of `when` failed, and counts as true.
    ConditionFailed,
    /// A lookup found no row.
    LookupNoRow,
    /// A lookup found more than one row.
    LookupManyRows,
    /// A lookup found more rows than its `limit`, or than there is memory for.
    LookupLimit,
    /// A lookup failed, or was not answered in time.
    LookupFailed,
    /// The value is large, and was not kept.
    LargeValue,
    /// The rows that a lookup gave before the transaction are not known, and were perhaps others.
    LookupOldRow,
}

impl WidenReason {
    /// Every reason.
    pub const ALL: [WidenReason; 14] = [
        WidenReason::ReplicaIdentity,
        WidenReason::UnchangedToast,
        WidenReason::Truncate,
        WidenReason::Limit,
        WidenReason::MissingColumn,
        WidenReason::NotText,
        WidenReason::ConditionUnknown,
        WidenReason::ConditionFailed,
        WidenReason::LookupNoRow,
        WidenReason::LookupManyRows,
        WidenReason::LookupLimit,
        WidenReason::LookupFailed,
        WidenReason::LargeValue,
        WidenReason::LookupOldRow,
    ];

    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            WidenReason::ReplicaIdentity => "replica_identity",
            WidenReason::UnchangedToast => "unchanged_toast",
            WidenReason::Truncate => "truncate",
            WidenReason::Limit => "limit",
            WidenReason::MissingColumn => "missing_column",
            WidenReason::NotText => "not_text",
            WidenReason::ConditionUnknown => "condition_unknown",
            WidenReason::ConditionFailed => "condition_failed",
            WidenReason::LookupNoRow => "lookup_no_row",
            WidenReason::LookupManyRows => "lookup_many_rows",
            WidenReason::LookupLimit => "lookup_limit",
            WidenReason::LookupFailed => "lookup_failed",
            WidenReason::LargeValue => "large_value",
            WidenReason::LookupOldRow => "lookup_old_row",
        }
    }
}

/// A template, as key sets know it.
#[derive(Debug)]
pub(super) struct TemplateInfo {
    pub(super) rule: RuleId,
    /// The targets that its keys are removed from.
    pub(super) targets: Targets,
    pub(super) whole: Whole,
    /// Its needs of lookups, if it names one.
    pub(super) lookup: Option<Arc<LookupTemplate>>,
}

/// All templates, by [`TemplateId`].
#[derive(Debug)]
pub(super) struct Templates {
    all: Box<[TemplateInfo]>,
    scopes: Box<[u16]>,
}

impl Templates {
    pub(super) fn new(all: impl Iterator<Item = TemplateInfo>) -> Templates {
        let all: Box<[TemplateInfo]> = all.collect();
        let scopes: BTreeSet<u16> = all.iter().map(|one| one.targets.number()).collect();
        Templates { all, scopes: scopes.into_iter().collect() }
    }

    /// A number for each way in which rules go to targets.
    pub(super) fn scopes(&self) -> &[u16] {
        &self.scopes
    }
}

impl Deref for Templates {
    type Target = [TemplateInfo];

    fn deref(&self) -> &[TemplateInfo] {
        &self.all
    }
}

/// All that a template could ever give.
#[derive(Debug)]
pub(super) enum Whole {
    /// Without placeholders and wildcards: one key.
    Key(Box<[u8]>),
    /// Every placeholder a `*`.
    Pattern(Pattern),
    /// Inside of keys: an item, written, with every placeholder a `*`.
    Item(Box<[u8]>),
}
