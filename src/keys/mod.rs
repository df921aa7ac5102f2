//! Changes to keys, by the rules of the configuration.
//!
//! Takes: a [`Change`]. Gives: its keys, in a [`KeySet`]. Never knows:
//! sockets, visibility, time. Invariants: a value never becomes syntax (I4); what is unknown turns
//! into `*` (I5); a set never outgrows its limit, it collapses to its rule's pattern (I6).
//!
//! Rules are what the configuration says, and never change. What they are to a database is found
//! out by others; they are bound to it for one session (`bound`), and the bound ones map changes.
//!
//! A template is parsed once (`template`), resolved once per shape of a relation (`plan`), and
//! rendered once for each version of a row (`known`, `render`): for the new one of an INSERT, the
//! old one of a DELETE, both of an UPDATE. A NULL gives no key from its version, unless the
//! placeholder has a `default`. TRUNCATE has no row and gives all that a template could. A rule's
//! `when` (`condition`) is asked before.
//!
//! A placeholder of a lookup needs a row that no change tells. What the change does tell travels in
//! the set (`lookup`) until [`resolve`] is given the rows. So does what changes
//! tell of rows as they were before the transaction (`before`), which the row then is no more.
//!
//! A refreshed view and a message have no row either (`signal`): the one gives all that its rule
//! names, the other what it names itself, within what its rule names. A `probe` has a message, too,
//! and no rule.

mod arena;
mod before;
mod bound;
mod compile;
mod condition;
pub(crate) mod encoding;
mod filter;
mod in_progress;
mod item;
mod known;
mod label;
mod lookup;
mod packed;
mod pattern;
mod plan;
mod print;
mod probe;
mod render;
mod set;
mod signal;
mod template;
#[cfg(test)]
mod before_tests;
#[cfg(test)]
mod in_progress_tests;
#[cfg(test)]
mod item_tests;
#[cfg(test)]
mod lookup_tests;
#[cfg(test)]
mod print_tests;
#[cfg(test)]
mod properties_tests;
#[cfg(test)]
mod targets_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod when_tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::budget::Memory;
use crate::config::{self, Location, Operations, Problem, Source, TableName, TargetId};
use crate::gather::Change;

pub use bound::{Basis, Binding, Bound};
pub use compile::{ColumnUse, Purpose};
pub use in_progress::InProgress;
pub use item::{Item, ItemKind, Reach};
pub use label::{LookupId, RuleId, WidenReason};
pub use lookup::{Answers, Found, FoundRows, Keyed, Lookup, Reads, Wanted, resolve};
pub use pattern::Pattern;
pub use print::{Given, KeyPlace, KeyPrint, Looks, Print, RulePrint};
pub use probe::{NONCE_DIGITS, canary};
pub use set::{KeySet, Limits};
pub use signal::{Malformed, Signal};

use compile::Rule;
use label::{Templates, Whole};
use plan::{Plan, is_of_table};
use render::{Renderer, Verdict};

/// Whether a text is a timestamp or date as Postgres sends it.
pub(crate) fn is_time(text: &str) -> bool {
    condition::is_time(text)
}

/// The compiled rules of a configuration. They know no database, and nothing changes them; clones
/// share them. To map changes they are [bound](Rules::bind).
#[derive(Clone, Debug)]
pub struct Rules {
    names: Arc<[String]>,
    rules: Arc<[Rule]>,
    templates: Arc<Templates>,
    limits: Limits,
    memory: Arc<Memory>,
    lookups: Arc<[Lookup]>,
    /// `None` if probes remove nothing.
    canaries: Option<probe::Canaries>,
}

/// Why a rule does not look at a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Skip {
    /// The operation is none of the rule's.
    OtherOperation,
    /// No column of `changed` differs.
    Unchanged,
    /// `when` is false.
    ConditionFalse,
}

impl Rules {
    /// Compiles the rules of a configuration.
    ///
    /// # Errors
    /// All problems of all rules, in the order of the file, each at the place that it is about.
    pub fn compile(rules: &[config::Rule]) -> Result<Rules, Vec<Problem>> {
        Rules::with_lookups(rules, &[])
    }

    /// Compiles rules whose templates may name lookups.
    ///
    /// # Errors
    /// As for [`Rules::compile`]; also lookups that no template names.
    pub fn with_lookups(
        rules: &[config::Rule],
        lookups: &[config::Lookup],
    ) -> Result<Rules, Vec<Problem>> {
        let names = rules.iter().map(|rule| rule.name.clone()).collect();
        let (rules, lookups) = compile::compile(rules, lookups)?;
        Ok(Rules {
            names,
            templates: compile::infos(&rules),
            rules: rules.into(),
            limits: Limits::default(),
            memory: Arc::default(),
            lookups: lookups.into(),
            canaries: None,
        })
    }

    /// Gives the key sets of these rules other limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Rules {
        Rules { limits, ..self }
    }

    /// An empty key set for these rules.
    #[must_use]
    pub fn key_set(&self) -> KeySet {
        KeySet::new(Arc::clone(&self.templates), self.limits, &self.memory)
    }

    /// Where all key sets of these rules are counted.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Gives the keys that one rule alone makes of a change; `None` if the rule looks at another
    /// table.
    pub(crate) fn keys_of_rule(&self, rule: RuleId, change: &Change) -> Option<KeySet> {
        let (mut keys, plan) = (self.key_set(), self.plan_of(rule, change)?);
        Renderer::default().add(&change.row, &plan, &self.rules, &mut keys);
        Some(keys)
    }

    /// Why one rule does not look at a change; `None` if it does, or looks at another table.
    pub(crate) fn skips(&self, rule: RuleId, change: &Change) -> Option<Skip> {
        match Renderer::verdict(&change.row, &self.plan_of(rule, change)?, &self.rules)? {
            Verdict::OtherOperation => Some(Skip::OtherOperation),
            Verdict::Unchanged => Some(Skip::Unchanged),
            Verdict::ConditionFalse => Some(Skip::ConditionFalse),
            Verdict::Counts | Verdict::Undecided(_) => None,
        }
    }

    /// The columns of a rule's `changed` that count as different only because an UPDATE does not
    /// tell whether they are; none if one of them differs for sure.
    pub(crate) fn supposed_changed(&self, rule: RuleId, change: &Change) -> Vec<&str> {
        let Some(plan) = self.plan_of(rule, change) else { return Vec::new() };
        let Some(rule) = self.rules.get(usize::from(rule.0)) else { return Vec::new() };
        let places = Renderer::supposed(&change.row, &plan);
        let columns = places.into_iter().filter_map(|place| rule.changed.get(place));
        columns.map(|column| column.value.as_str()).collect()
    }

    /// Plans what one rule wants of the relation of a change, if that has the name of its table.
    fn plan_of(&self, rule: RuleId, Change { relation, .. }: &Change) -> Option<Plan> {
        let (schema, name) = (relation.namespace.clone(), relation.name.clone());
        let rule = self.rules.get(usize::from(rule.0))?;
        let is_of_it = is_of_table(rule, &TableName { schema, name });
        is_of_it.then(|| Plan::new(relation, &[rule], &[]))
    }

    /// Lists the parts of the conditions of a table's rules that do not fit the types of its
    /// columns, each with the rule's name; `type_id` gives a column's `pg_type.oid`, of a domain
    /// that of its base type, `None` for no column.
    pub fn condition_misfits(
        &self,
        table: &TableName,
        type_id: &dyn Fn(&str) -> Option<u32>,
    ) -> Vec<(&str, Problem)> {
        let rules =
            self.rules.iter().zip(self.names.iter()).filter(|(rule, _)| rule.table == *table);
        let conditions = rules.filter_map(|(rule, name)| Some((rule.when.as_ref()?, name)));
        let misfits = conditions.flat_map(|(when, name)| {
            let misfits = when.misfits(&|at| {
                let column = when.columns.get(at).and_then(|(_, column)| type_id(column));
                column.map_or(condition::Kind::Any, condition::kind_of)
            });
            misfits.into_iter().map(move |misfit| (name.as_str(), misfit))
        });
        misfits
            .map(|(name, (at, flaw))| (name, compile::problem(&at, flaw.message, &flaw.hint)))
            .collect()
    }

    /// The names of the rules with a key that names a lookup.
    pub fn rules_of_lookup(&self, lookup: LookupId) -> impl Iterator<Item = &str> {
        let uses = move |rule: &Rule| {
            let templates = rule.templates.iter().filter_map(|key| key.lookup.as_ref());
            templates.flat_map(|template| &template.lookups).any(|used| used.id == lookup)
        };
        let rules = self.rules.iter().zip(self.names.iter());
        rules.filter(move |(rule, _)| uses(rule)).map(|(_, name)| name.as_str())
    }

    /// Every key that any rule could produce: each template with every placeholder a `*` (I7).
    #[must_use]
    pub fn everything(&self) -> KeySet {
        let mut keys = self.key_set();
        for key in self.rules.iter().flat_map(|rule| &rule.templates) {
            keys.add_whole(key.id, None);
        }
        keys
    }

    /// Whether every key that `pattern` matches is sure to be one that a rule could produce whose
    /// keys go to the target.
    #[must_use]
    pub fn covers(&self, pattern: &Pattern, target: TargetId) -> bool {
        let everything = self.everything().of_target(target);
        let mut patterns = everything.patterns();
        match pattern.as_literal() {
            Some(key) => {
                everything.exact_rule(&key).is_some() || patterns.any(|(_, own)| own.matches(&key))
            }
            None => patterns.any(|(_, own)| own.covers(pattern)),
        }
    }

    /// All that some templates could produce, those for which `is_wanted`: each with every
    /// placeholder a `*`.
    #[must_use]
    pub fn part(&self, is_wanted: impl Fn(KeyPlace) -> bool) -> KeySet {
        let mut keys = self.key_set();
        for rule in self.rules.iter() {
            let wanted =
                rule.templates.iter().enumerate().filter(|(at, _)| is_wanted((rule.id, *at)));
            wanted.for_each(|(_, key)| keys.add_whole(key.id, None));
        }
        keys
    }

    /// All that templates could produce which are patterns by themselves, whatever a change tells:
    /// each with every placeholder a `*`.
    #[must_use]
    pub fn own_patterns(&self) -> KeySet {
        let is_pattern = |(rule, at): KeyPlace| {
            let templates = self.rules.get(usize::from(rule.0)).map(|rule| &rule.templates);
            let template = templates.and_then(|templates| templates.get(at));
            template.is_some_and(|template| template.template.is_pattern)
        };
        self.part(is_pattern)
    }

    /// Gives the fingerprint of each rule, by [`RuleId`]; the rules of these names are suspended.
    #[must_use]
    pub fn prints(&self, suspended: &BTreeSet<String>) -> Vec<RulePrint> {
        let rules = self.rules.iter().zip(self.names.iter());
        let print = |(rule, name): (&Rule, &String)| {
            print::rule(rule, &self.lookups, suspended.contains(name))
        };
        rules.map(print).collect()
    }

    /// Gives for each rule, by [`RuleId`], the number that it has among `others`: that of the rule
    /// of its name, if that gives the same.
    #[must_use]
    pub fn same_as(&self, others: &Rules) -> Vec<Option<usize>> {
        let none = BTreeSet::new();
        let prints = others.prints(&none);
        let known: BTreeMap<&str, usize> =
            others.names.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        let same = |(print, name): (RulePrint, &String)| {
            known.get(name.as_str()).copied().filter(|at| prints.get(*at) == Some(&print))
        };
        self.prints(&none).into_iter().zip(self.names.iter()).map(same).collect()
    }

    /// 16 hex digits that tell rules apart that give different keys for some change. Names and
    /// order of the rules do not count; tables, operations, `changed`, `immutable`, templates and
    /// the lookups that these name do.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        compile::fingerprint(&self.rules, &self.lookups)
    }

    /// The rules' names, by [`RuleId`].
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The lookups, by [`LookupId`]; what their answers rest on is known once they are
    /// [bound](Bound::lookups).
    #[must_use]
    pub fn lookups(&self) -> &[Lookup] {
        &self.lookups
    }

    /// The tables that rules look at, each once, in the order of the rules.
    pub fn tables(&self) -> impl Iterator<Item = &TableName> {
        let rules = || self.rules.iter().filter(|rule| rule.source == Source::Table);
        rules().enumerate().filter_map(move |(at, rule)| {
            let mut before = rules().take(at);
            before.all(|other| other.table != rule.table).then_some(&rule.table)
        })
    }

    /// The columns that rules read.
    pub fn column_uses(&self) -> impl Iterator<Item = ColumnUse<'_>> {
        self.rules
            .iter()
            .zip(self.names.iter())
            .flat_map(|(rule, name)| compile::column_uses(rule, name))
    }

    /// The columns that the rules of a table read.
    pub fn column_uses_of(&self, table: &TableName) -> impl Iterator<Item = ColumnUse<'_>> {
        let rules =
            self.rules.iter().zip(self.names.iter()).filter(|(rule, _)| rule.table == *table);
        rules.flat_map(|(rule, name)| compile::column_uses(rule, name))
    }

    /// The templates of a rule that can give a pattern, or a key as one, as the file writes them.
    pub(crate) fn templates_of(&self, rule: RuleId, pattern: &Pattern) -> Vec<&str> {
        let Some(rule) = self.rules.get(usize::from(rule.0)) else { return Vec::new() };
        let key = pattern.as_literal();
        let gives = |template: &&compile::RuleTemplate| match (template.template.whole(), &key) {
            (Whole::Key(own), Some(key)) => own[..] == key[..],
            (Whole::Key(_), None) | (Whole::Item(_), _) => false,
            (Whole::Pattern(own), Some(key)) => own.matches(key),
            (Whole::Pattern(own), None) => own.covers(pattern),
        };
        rule.templates.iter().filter(gives).map(|template| template.text.as_str()).collect()
    }

    /// The templates whose keys go to a target, in the order of the file: each with its rule's
    /// name, as it is written, and with every placeholder a `*`.
    pub fn templates(&self, target: TargetId) -> impl Iterator<Item = (&str, &str, Pattern)> {
        let all = self.key_set();
        let rules = self.rules.iter().zip(self.names.iter());
        let of_target = rules.filter(move |(rule, _)| all.goes(rule.id, target));
        of_target.flat_map(|(rule, name)| {
            rule.templates.iter().map(|template| {
                let whole = match template.template.whole() {
                    Whole::Key(key) => Pattern::literal(&key),
                    Whole::Pattern(pattern) => pattern,
                    Whole::Item(item) => Pattern::parse(Item::read(&item).key()),
                };
                (name.as_str(), template.text.as_str(), whole)
            })
        })
    }

    /// The templates of a rule that can give an item, as messages write them.
    pub(crate) fn templates_of_item(&self, rule: RuleId, item: Item<'_>) -> Vec<&str> {
        let Some(rule) = self.rules.get(usize::from(rule.0)) else { return Vec::new() };
        let gives = |template: &&compile::RuleTemplate| match template.template.whole() {
            Whole::Item(own) => Item::read(&own).covers(item),
            Whole::Key(_) | Whole::Pattern(_) => false,
        };
        rule.templates.iter().filter(gives).map(|template| template.text.as_str()).collect()
    }

    /// The operations that a rule looks at; none for a rule that is not of these.
    #[must_use]
    pub fn operations(&self, rule: RuleId) -> Operations {
        self.rules.get(usize::from(rule.0)).map_or(Operations::NONE, |rule| rule.operations)
    }

    /// The operations that any rule looks at.
    #[must_use]
    pub fn all_operations(&self) -> Operations {
        let operations = self.rules.iter().map(|rule| rule.operations);
        operations.fold(Operations::NONE, Operations::union)
    }

    /// Where a rule starts in the file.
    #[must_use]
    pub fn location(&self, rule: RuleId) -> Option<&Location> {
        self.rules.get(usize::from(rule.0)).map(|rule| &rule.at)
    }
}
