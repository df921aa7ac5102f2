//! Rules bound to a database: what its catalog says of them, and what mapping its changes needs.
//!
//! Rules are the configuration's and never change. What they are to a database, the checks find out
//! and give as a value, the [`Binding`]. A [`Bound`] is both together for one session, with the
//! memory that the next change uses again; another session binds the same rules anew.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;

use super::compile::Rule;
use super::label::RuleId;
use super::lookup::{Keyed, Lookup, Reads};
use super::plan::{Plan, Plans, is_of_table};
use super::print::RulePrint;
use super::render::Renderer;
use super::{KeySet, Rules};
use crate::config::{Source, TableName};
use crate::decode::Relation;
use crate::gather::Change;

/// The facts that rules need of a database, as they were found. Those of none, the default, let
/// each rule look at the changes that come under the name of its table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// The tables that relations are now, each with its `pg_class.oid`: their rules look at what
    /// comes under it, whatever it is called at the moment of the change. A table that is renamed
    /// and renamed back was the same table all the while.
    pub relations: Vec<(u32, TableName)>,
    /// Partitions whose changes may come under their own names, each with the table whose rules
    /// look at them, too. Rules of the partition itself stay.
    pub partitions: Vec<(TableName, TableName)>,
    /// The basis of each lookup, by [`LookupId`](super::LookupId); of those that are not there,
    /// nothing is known.
    pub lookups: Vec<Basis>,
    /// The names of the rules that do not fit. No change, refresh or message gives keys of them;
    /// their part of [`everything`](Rules::everything) stays.
    pub suspended: BTreeSet<String>,
}

/// The ground that the answers of a lookup rest on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Basis {
    /// Everything that they depend on; `None` if they may not be kept.
    pub reads: Option<Reads>,
    /// Whose rows they are; `None` if that is not known to be one table.
    pub keyed: Option<Keyed>,
}

/// Rules, bound to a database.
#[derive(Debug)]
pub struct Bound {
    rules: Rules,
    scope: Scope,
    plans: Plans,
    renderer: Renderer,
    /// The rules whose `when` failed, and were told of.
    failed: BTreeSet<RuleId>,
}

/// A [`Binding`], to be asked.
#[derive(Debug)]
struct Scope {
    tables: HashMap<u32, TableName>,
    /// The tables that a relation is a partition of.
    roots: HashMap<TableName, Vec<TableName>>,
    lookups: Vec<Lookup>,
    suspended: BTreeSet<String>,
    suspended_ids: BTreeSet<RuleId>,
}

impl Scope {
    fn new(rules: &Rules, binding: Binding) -> Scope {
        let Binding { relations, partitions, lookups: bases, suspended } = binding;
        let mut roots: HashMap<TableName, Vec<TableName>> = HashMap::new();
        for (partition, table) in partitions {
            roots.entry(partition).or_default().push(table);
        }
        let mut bases = bases.into_iter();
        let lookups = rules.lookups.iter().map(|lookup| {
            let Basis { reads, keyed } = bases.next().unwrap_or_default();
            Lookup { reads, keyed, ..lookup.clone() }
        });
        let ids = (0..=u16::MAX).map(RuleId).zip(rules.names());
        let ids = ids.filter(|(_, name)| suspended.contains(*name)).map(|(id, _)| id);
        Scope {
            tables: relations.into_iter().collect(),
            roots,
            lookups: lookups.collect(),
            suspended_ids: ids.collect(),
            suspended,
        }
    }

    /// Plans what the rules that look at a relation want of it.
    fn plan(&self, rules: &[Rule], relation: &Arc<Relation>) -> Plan {
        let own = TableName { schema: relation.namespace.clone(), name: relation.name.clone() };
        let roots = self.roots.get(&own).map_or(&[][..], Vec::as_slice);
        let now = self.tables.get(&relation.id);
        let looks = |rule: &&Rule| {
            let is_of_it = is_of_table(rule, &own)
                || rule.source == Source::Table
                    && (roots.contains(&rule.table) || now == Some(&rule.table));
            is_of_it && !self.suspended_ids.contains(&rule.id)
        };
        let rules: Vec<&Rule> = rules.iter().filter(looks).collect();
        Plan::new(relation, &rules, &self.lookups)
    }
}

impl Rules {
    /// Binds the rules to a database.
    #[must_use]
    pub fn bind(&self, binding: Binding) -> Bound {
        Bound {
            rules: self.clone(),
            scope: Scope::new(self, binding),
            plans: Plans::default(),
            renderer: Renderer::default(),
            failed: BTreeSet::new(),
        }
    }
}

impl Bound {
    /// The rules, as they are without a database.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The lookups, by [`LookupId`](super::LookupId), with what their answers rest on.
    #[must_use]
    pub fn lookups(&self) -> &[Lookup] {
        &self.scope.lookups
    }

    /// Gives the fingerprint of each rule, by [`RuleId`].
    #[must_use]
    pub fn prints(&self) -> Vec<RulePrint> {
        self.rules.prints(&self.scope.suspended)
    }

    /// An empty key set for these rules.
    #[must_use]
    pub fn key_set(&self) -> KeySet {
        self.rules.key_set()
    }

    /// Adds the keys of a change to a set of these rules.
    pub fn add(&mut self, change: &Change, keys: &mut KeySet) {
        let Bound { rules, scope, plans, renderer, .. } = self;
        let plan = plans.get(&change.relation, |relation| scope.plan(&rules.rules, relation));
        if !plan.rules.is_empty() || !plan.lookups.is_empty() {
            renderer.add(&change.row, plan, &rules.rules, keys);
        }
    }

    /// The rules that look at something.
    pub(super) fn active(&self) -> impl Iterator<Item = &Rule> {
        self.rules.rules.iter().filter(|rule| !self.scope.suspended_ids.contains(&rule.id))
    }

    /// The rules whose `when` failed for the first time since the last call, and why: each rule is
    /// told once, and nothing of its values is (I9).
    pub fn new_failures(&mut self) -> Vec<(RuleId, &'static str)> {
        let mut fresh = self.renderer.take_faults();
        fresh.retain(|(rule, _)| self.failed.insert(*rule));
        fresh.into_iter().map(|(rule, fault)| (rule, fault.as_str())).collect()
    }

    /// The rules whose failures are told no more.
    #[must_use]
    pub fn failed(self) -> BTreeSet<RuleId> {
        self.failed
    }

    /// Silences the failures of these rules, which were told before.
    #[must_use]
    pub fn with_failed(self, failed: BTreeSet<RuleId>) -> Bound {
        Bound { failed, ..self }
    }
}
