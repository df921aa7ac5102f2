//! Rules resolved against a relation, once per shape of the relation: which columns of a tuple are
//! needed, and where each placeholder finds its value.

use std::sync::Arc;

use hashbrown::HashMap;

use super::compile::{Rule, RuleTemplate};
use super::condition::{Kind, kind_of};
use super::label::{LookupId, RuleId, TemplateId};
use super::lookup::{Keyed, Lookup};
use super::template::Version;
use crate::config::{Operations, Source, TableName};
use crate::decode::{Relation, ReplicaIdentity};

/// Past this many relations all plans are made anew: oids of dropped tables stay behind (I6), and
/// 4 096 are more tables than a publication that names its tables has.
const PLAN_COUNT_MAX: usize = 4_096;

/// The plans of all relations seen.
#[derive(Debug, Default)]
pub(super) struct Plans {
    by_relation: HashMap<u32, Plan>,
}

/// Everything that the rules want of a relation.
#[derive(Debug)]
pub(super) struct Plan {
    relation: Arc<Relation>,
    /// The needed columns, in the order of the tuple.
    pub(super) slots: Vec<Slot>,
    pub(super) rules: Vec<PlannedRule>,
    pub(super) lookups: Vec<PlannedLookup>,
}

/// A lookup whose rows the relation's are.
#[derive(Debug)]
pub(super) struct PlannedLookup {
    pub(super) id: LookupId,
    /// Slots of the columns that its parameters are compared with.
    pub(super) params: Vec<usize>,
    /// Slots of the columns that keys name.
    pub(super) columns: Vec<usize>,
    /// Whether a row's text in `params` is that of the parameters that find it.
    pub(super) is_exact: bool,
}

/// A column that rules need.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    /// Its place in a tuple; `usize::MAX` if the relation does not have it, so that it sorts last.
    pub(super) column: usize,
    /// Whether the rule declares it immutable.
    pub(super) immutable: bool,
    /// Whether it is part of the index that is the replica identity.
    pub(super) is_key: bool,
    /// Whether every old version is whole.
    pub(super) is_full: bool,
    /// Whether its type is `boolean`.
    pub(super) is_boolean: bool,
}

/// `pg_type.oid` of `boolean`.
const BOOLEAN: u32 = 16;

#[derive(Debug)]
pub(super) struct PlannedRule {
    pub(super) id: RuleId,
    pub(super) operations: Operations,
    /// Slots of the columns of `changed`.
    pub(super) changed: Vec<usize>,
    pub(super) templates: Vec<PlannedTemplate>,
    /// The slot and the kind of each column of `when`.
    pub(super) when: Vec<(usize, Kind)>,
}

#[derive(Debug)]
pub(super) struct PlannedTemplate {
    pub(super) id: TemplateId,
    /// For each placeholder that is a column of the change its row version and slot.
    pub(super) sources: Vec<(Version, usize)>,
    /// For each lookup that it uses the slots of its parameters.
    pub(super) lookups: Vec<Vec<usize>>,
    pub(super) needs: Needs,
}

/// Which row versions a template needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    /// It is rendered for each version; otherwise every placeholder is pinned.
    pub(super) each: bool,
    /// A placeholder is pinned to the old version.
    pub(super) old: bool,
    /// A placeholder is pinned to the new version.
    pub(super) new: bool,
}

impl Plans {
    /// The plan for a relation, made anew by `make` if its shape is new.
    pub(super) fn get(
        &mut self,
        relation: &Arc<Relation>,
        make: impl FnOnce(&Arc<Relation>) -> Plan,
    ) -> &Plan {
        let known = self.by_relation.get(&relation.id);
        if !known.is_some_and(|plan| Arc::ptr_eq(&plan.relation, relation)) {
            if self.by_relation.len() >= PLAN_COUNT_MAX {
                self.by_relation.clear();
            }
            self.by_relation.insert(relation.id, make(relation));
        }
        &self.by_relation[&relation.id]
    }
}

impl Plan {
    /// Plans what `rules` want of a relation that they look at, and lookups, if its rows are
    /// theirs.
    pub(super) fn new(relation: &Arc<Relation>, rules: &[&Rule], lookups: &[Lookup]) -> Plan {
        let mut slots: Vec<Slot> = Vec::new();
        for rule in rules {
            let own = rule.templates.iter().flat_map(|key| key.template.own_columns());
            slots.extend(own.map(|p| slot(relation, rule, &p.column)));
            let params = rule.templates.iter().flat_map(params).flatten();
            slots.extend(params.map(|param| slot(relation, rule, param)));
            slots.extend(rule.changed.iter().map(|c| slot(relation, rule, &c.value)));
            let when = rule.when.iter().flat_map(|when| &when.columns);
            slots.extend(when.map(|(_, column)| slot(relation, rule, column)));
        }
        let keyed = (0..=u16::MAX).map(LookupId).zip(lookups);
        let keyed = keyed.filter_map(|(id, lookup)| Some((id, lookup.keyed.as_ref()?)));
        let keyed: Vec<(LookupId, &Keyed)> =
            keyed.filter(|(_, keyed)| keyed.tables.contains(&relation.id)).collect();
        let read = keyed.iter().flat_map(|(_, keyed)| keyed.params.iter().chain(&keyed.columns));
        let is_immutable = |column: &str| rules.iter().any(|rule| rule.is_immutable(column));
        let read = read.map(|column| slot_of(relation, column, is_immutable(column)));
        let read: Vec<Slot> = read.collect();
        slots.extend(read);
        slots.sort_unstable();
        slots.dedup();
        let place = |column: &String| {
            let slot = slot_of(relation, column, is_immutable(column));
            slots.binary_search(&slot).expect("every column has its slot")
        };
        let planned = |(id, keyed): (LookupId, &Keyed)| PlannedLookup {
            id,
            params: keyed.params.iter().map(place).collect(),
            columns: keyed.columns.iter().map(place).collect(),
            is_exact: keyed.is_exact,
        };
        let lookups = keyed.into_iter().map(planned).collect();
        let rules = rules.iter().map(|rule| self::planned(relation, rule, &slots)).collect();
        Plan { relation: Arc::clone(relation), slots, rules, lookups }
    }
}

/// Whether a rule names a table, and no view or message.
pub(super) fn is_of_table(rule: &Rule, table: &TableName) -> bool {
    rule.source == Source::Table && rule.table == *table
}

fn slot(relation: &Relation, rule: &Rule, column: &str) -> Slot {
    slot_of(relation, column, rule.is_immutable(column))
}

fn slot_of(relation: &Relation, column: &str, immutable: bool) -> Slot {
    let place = relation.columns.iter().position(|known| known.name == column);
    // With FULL every column is marked, and an old version is always sent whole.
    let identity = relation.replica_identity;
    let has_index = matches!(identity, ReplicaIdentity::Default | ReplicaIdentity::Index);
    Slot {
        column: place.unwrap_or(usize::MAX),
        immutable,
        is_key: place.is_some_and(|place| has_index && relation.columns[place].is_key),
        is_full: identity == ReplicaIdentity::Full,
        is_boolean: place.is_some_and(|place| relation.columns[place].type_id == BOOLEAN),
    }
}

/// For each lookup that a template uses the columns that are its parameters.
fn params(key: &RuleTemplate) -> impl Iterator<Item = impl Iterator<Item = &str>> {
    let lookups = key.lookup.iter().flat_map(|template| &template.lookups);
    lookups.map(|lookup| lookup.params.iter().map(|param| param.value.as_str()))
}

fn planned(relation: &Relation, rule: &Rule, slots: &[Slot]) -> PlannedRule {
    let place = |column: &str| {
        slots.binary_search(&slot(relation, rule, column)).expect("every column has its slot")
    };
    let template = |key: &RuleTemplate| {
        let placeholders = || key.template.placeholders();
        let needs = Needs {
            each: placeholders().any(|p| p.version == Version::Each),
            old: placeholders().any(|p| p.version == Version::Old),
            new: placeholders().any(|p| p.version == Version::New),
        };
        let sources = key.template.own_columns().map(|p| (p.version, place(&p.column))).collect();
        let lookups = params(key).map(|params| params.map(place).collect()).collect();
        PlannedTemplate { id: key.id, sources, lookups, needs }
    };
    let condition = |(_, column): &(Version, String)| {
        let known = relation.columns.iter().find(|known| known.name == *column);
        (place(column), known.map_or(Kind::Any, |known| kind_of(known.type_id)))
    };
    PlannedRule {
        id: rule.id,
        operations: rule.operations,
        changed: rule.changed.iter().map(|column| place(&column.value)).collect(),
        templates: rule.templates.iter().map(template).collect(),
        when: rule.when.iter().flat_map(|when| &when.columns).map(condition).collect(),
    }
}
