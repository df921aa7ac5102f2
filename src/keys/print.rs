//! Fingerprints of rules: enough to tell which keys one configuration gives and another one did
//! not. They hold no text of the configuration.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::compile::{Rule, RuleTemplate};
use super::label::RuleId;
use super::lookup::Lookup;
use crate::config::{LookupRows, Missing, Operations, Source, TableName};

/// A fingerprint: the first 52 bits of the SHA-256 of something, a number that any reader of JSON
/// keeps whole.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Print(u64);

impl Print {
    /// The fingerprint of these parts, in this order.
    #[must_use]
    pub fn of<T: AsRef<[u8]>>(parts: impl IntoIterator<Item = T>) -> Print {
        let mut sum = Sha256::new();
        for part in parts {
            let part = part.as_ref();
            sum.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            sum.update(part);
        }
        let bytes = sum.finalize();
        let first = bytes.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
        Print(first >> 12)
    }

    /// The fingerprint of a table's name.
    #[must_use]
    pub fn of_table(table: &TableName) -> Print {
        Print::of([&table.schema, &table.name])
    }
}

/// The table, view or message prefix that a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Looks {
    /// Changes of a table, by [`Print::of_table`].
    #[serde(rename = "table")]
    Table(Print),
    /// Refreshes of a materialized view.
    #[serde(rename = "view")]
    View(Print),
    /// Messages of a prefix.
    #[serde(rename = "messages")]
    Messages(Print),
}

/// The fingerprint of a rule: of what it gives, and of which changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulePrint {
    /// The table, view or message prefix that it looks at.
    pub looks: Looks,
    /// Its operations, a bit for each.
    operations: u8,
    /// The columns of `changed`; none stands for all.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    changed: BTreeSet<Print>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    when: Option<Print>,
    /// Of the columns that `changed` and `when` read those that are declared immutable.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    immutable: BTreeSet<Print>,
    /// Its key templates.
    pub keys: Vec<KeyPrint>,
    /// Whether it looked at nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_suspended: bool,
}

/// The fingerprint of a key template: of what it gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPrint {
    /// The template itself, with the lookups that it names.
    pub key: Print,
    /// Of the columns that it reads those that are declared immutable.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    immutable: BTreeSet<Print>,
    /// The lookups that it names, by [`Lookup::print`].
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub lookups: BTreeSet<Print>,
}

/// A key template of some rules: the rule, and the place among the rule's templates.
pub type KeyPlace = (RuleId, usize);

/// Templates of rules, by what they give.
pub struct Given<'a>(BTreeMap<Print, Vec<(&'a RulePrint, &'a KeyPrint)>>);

impl<'a> Given<'a> {
    /// All templates of `rules`.
    #[must_use]
    pub fn new(rules: &'a [RulePrint]) -> Given<'a> {
        let mut given: BTreeMap<Print, Vec<_>> = BTreeMap::new();
        for rule in rules {
            for key in &rule.keys {
                given.entry(key.key).or_default().push((rule, key));
            }
        }
        Given(given)
    }

    /// Whether, of each change of which `rule` gives `key`, one of these gives it, too; rules that
    /// are suspended count if `suspended` says so.
    #[must_use]
    pub fn covers(&self, rule: &RulePrint, key: &KeyPrint, suspended: bool) -> bool {
        let candidates = self.0.get(&key.key).map_or(&[][..], Vec::as_slice);
        let covered = |one: Option<u8>| {
            let covers = |&(old, old_key): &(&RulePrint, &KeyPrint)| {
                (suspended || !old.is_suspended) && old.covers(old_key, (rule, key), one)
            };
            candidates.iter().any(covers)
        };
        if rule.operations == 0 {
            // The refresh of a view, or a message.
            return covered(None);
        }
        let mut operations = (0..OPERATIONS).map(|bit| 1 << bit);
        operations.all(|one| rule.operations & one == 0 || covered(Some(one)))
    }
}

/// How many operations there are.
const OPERATIONS: u8 = 4;

/// The bit of an update.
const UPDATE: u8 = 1 << 1;

impl RulePrint {
    /// Whether it gives `own` for each change by `operation`, if it is one of a row, of which the
    /// other gives its key: the same template.
    fn covers(
        &self,
        own: &KeyPrint,
        (other, key): (&RulePrint, &KeyPrint),
        operation: Option<u8>,
    ) -> bool {
        let all_changed = self.changed.is_empty()
            || !other.changed.is_empty() && other.changed.is_subset(&self.changed);
        self.looks == other.looks
            && operation.is_none_or(|one| self.operations & one != 0)
            && (operation != Some(UPDATE) || all_changed)
            && (self.when.is_none() || self.when == other.when)
            // What was declared never to change was not removed under its old value.
            && self.immutable.is_subset(&other.immutable)
            && own.immutable.is_subset(&key.immutable)
    }
}

impl Lookup {
    /// Gives the fingerprint of its answers: of which query they are, for which columns, and what
    /// becomes of any number of rows.
    #[must_use]
    pub fn print(&self) -> Print {
        let rows = match (self.rows, self.missing) {
            (LookupRows::Many, _) => format!("many, up to {}", self.limit),
            (LookupRows::One, Missing::Widen) => "one".to_owned(),
            (LookupRows::One, Missing::Skip) => "one or none".to_owned(),
        };
        let params = self.params.iter().map(|param| &param.value);
        Print::of([&rows, &self.sql.value].into_iter().chain(params))
    }
}

/// The fingerprint of a rule.
pub(super) fn rule(rule: &Rule, lookups: &[Lookup], is_suspended: bool) -> RulePrint {
    let Operations { insert, update, delete, truncate } = rule.operations;
    let bits = [insert, update, delete, truncate].into_iter().enumerate();
    let column = |column: &str| Print::of([column]);
    let immutable = |columns: &mut dyn Iterator<Item = &str>| -> BTreeSet<Print> {
        columns.filter(|name| rule.is_immutable(name)).map(column).collect()
    };
    let when = rule.when.iter().flat_map(|when| &when.columns).map(|(_, name)| name.as_str());
    let changed = || rule.changed.iter().map(|one| one.value.as_str());
    let key = |key: &RuleTemplate| {
        let used = || key.lookup.iter().flat_map(|template| &template.lookups);
        let prints = used().map(|used| lookups[usize::from(used.id.0)].print());
        let lookups: Vec<Print> = prints.collect();
        let own = key.template.own_columns().map(|one| one.column.as_str());
        let params = used().flat_map(|used| &used.params).map(|param| param.value.as_str());
        KeyPrint {
            key: key_print(key, &lookups),
            immutable: immutable(&mut own.chain(params)),
            lookups: lookups.into_iter().collect(),
        }
    };
    let table = Print::of_table(&rule.table);
    RulePrint {
        looks: match &rule.source {
            Source::Table => Looks::Table(table),
            Source::MaterializedView => Looks::View(table),
            Source::Message(prefix) => Looks::Messages(Print::of([prefix])),
        },
        operations: bits.map(|(bit, has)| u8::from(has) << bit).sum(),
        changed: changed().map(column).collect(),
        when: rule.when.as_ref().map(|when| Print::of([&when.script.text])),
        immutable: immutable(&mut changed().chain(when)),
        keys: rule.templates.iter().map(key).collect(),
        is_suspended,
    }
}

/// The template names its lookups in an order; so many, and in the same order, are `lookups`.
fn key_print(key: &RuleTemplate, lookups: &[Print]) -> Print {
    let mut parts = vec![key.template.canonical()];
    parts.extend(lookups.iter().map(|lookup| lookup.0.to_be_bytes().to_vec()));
    Print::of(parts)
}
