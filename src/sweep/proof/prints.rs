//! Fingerprints of what a watermark was written under: the rules, the tables that they read, and
//! the standbys that were waited for; and what another state than that puts in doubt (I7).
//!
//! The watermark is rewritten all the time, so it carries one digest. The fingerprints lie beside
//! it, under the name of that digest, from before the first watermark that carries it. What cannot
//! be read, or has another digest, puts everything in doubt.
//!
//! What is in doubt is a key template: what it gave, or what its keys' values are made of, may not
//! be what the removals so far were about. A template is not in doubt where the same one was at
//! work for each change that it looks at, over a table whose rows read as they did. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::evidence::Broken;
use crate::keys::{Given, KeyPlace, KeyPrint, Looks, Print, RuleId, RulePrint};
use crate::words::plural;

/// Counts up when the same fingerprints come to mean something else: everything is then in doubt.
const FORMAT: u32 = 1;

/// Rules that one line names, at most.
const NAMES_MAX: usize = 20;

/// Reasons that are told one by one, at most.
const REASONS_MAX: usize = 20;

/// Reasons that one line tells, at most.
const REASONS_OF_LINE_MAX: usize = 3;

/// The fingerprints that a watermark is written under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prints {
    format: u32,
    /// The standbys that readers use, by address.
    replicas: BTreeSet<Print>,
    /// By [`RuleId`].
    rules: Vec<RulePrint>,
    /// For each lookup whose answers are kept the tables that these depend on.
    lookups: BTreeMap<Print, BTreeSet<Print>>,
    tables: Tables,
}

/// The tables of rules and kept answers, by [`Print::of_table`], and what concerns all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    /// The tables that are there.
    pub tables: BTreeMap<Print, TablePrint>,
    /// The publication.
    pub publication: Print,
    /// The event trigger that tells of refreshed views.
    pub trigger: Print,
    /// As whom lookups read: the role's attributes and settings that change what a query gives.
    #[serde(default)]
    pub role: Print,
}

/// Everything that decides how the rows of a table read, and whether the stream tells of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablePrint {
    /// Facts that may not be other ones: which table it is, its kind, its place in the publication,
    /// its row security.
    pub fixed: Print,
    /// The version of the type of its rows, which a new name and a new owner change; and its owner.
    pub row: (Print, Print),
    /// The version of its schema, which a new name and a grant change.
    pub schema: Print,
    /// Whether another schema has a table of this name.
    pub has_namesake: bool,
    /// The files of its rows, which a rewrite changes; `None` where that cannot be told.
    pub files: Option<Print>,
    /// Each column by its number: how it reads, and its version.
    pub columns: BTreeMap<i16, (Print, Print)>,
    /// Those of them that are generated.
    #[serde(skip)]
    pub generated: BTreeSet<i16>,
    /// Partitions, types and labels of enums.
    pub parts: BTreeMap<Print, Print>,
    /// The parts that told of nothing when they came: a partition without rows, a label that no row
    /// had.
    #[serde(skip)]
    pub born_empty: BTreeSet<Print>,
    /// The parts that are as they were made: a type that is a new column's, and its labels.
    #[serde(skip)]
    pub as_made: BTreeSet<Print>,
    /// Facts that only kept answers of lookups depend on.
    pub lookup: Print,
    /// For what is told of a change; never stored.
    #[serde(skip)]
    pub names: Names,
}

/// How a table, its columns and its parts are called; empty in fingerprints that were read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The table, with its schema.
    pub table: String,
    /// The columns, by number.
    pub columns: BTreeMap<i16, String>,
    /// The kind of each part, as in `a partition`.
    pub parts: BTreeMap<Print, &'static str>,
}

/// Words for what was altered of which table, without any value of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Altered(pub(in crate::sweep) Arc<str>);

/// How long what is compared was out of sight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// Between two looks of one session.
    Look,
    /// Maybe since the watermark: what is new may have been something else in between, and commits
    /// that wrote of it may not be sent again.
    Watermark,
}

/// Why the keys of a template are in doubt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The rule is new, or gives keys that it did not give.
    Wider,
    /// Its table or view was altered, or what is published of it.
    Table(Altered),
    /// The publication was altered.
    Publication,
    /// The event trigger of materialized views was altered.
    Trigger,
    /// A table was altered that answers of its lookup depend on, which were kept.
    Lookup(Altered),
    /// Its lookup reads as another: the role's attributes or settings were altered.
    Role,
    /// It is suspended now.
    Suspended,
    /// It was suspended.
    WasSuspended,
}

/// Which keys are in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Every key of every rule, for this reason.
    Everything(Broken),
    /// All keys of these templates.
    Keys(BTreeMap<KeyPlace, Why>),
}

impl Prints {
    /// Fingerprints of `rules`, by [`RuleId`], of their tables, and of the addresses of standbys.
    #[must_use]
    pub fn new(
        rules: Vec<RulePrint>,
        lookups: BTreeMap<Print, BTreeSet<Print>>,
        tables: Tables,
        replicas: &[String],
    ) -> Prints {
        let replicas = replicas.iter().map(|address| Print::of([address])).collect();
        Prints { format: FORMAT, replicas, rules, lookups, tables }
    }

    /// Gives these rules and standbys over other tables.
    #[must_use]
    pub fn with_tables(&self, tables: Tables) -> Prints {
        Prints { tables, ..self.clone() }
    }

    /// Gives those of these rules alone whose keys go to a target: the others give none there.
    #[must_use]
    pub fn only(&self, goes: impl Fn(RuleId) -> bool) -> Prints {
        let mut only = self.clone();
        for (id, rule) in (0..=u16::MAX).map(RuleId).zip(&mut only.rules) {
            if !goes(id) {
                rule.keys.clear();
            }
        }
        only
    }

    /// The tables.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The value to store under the digest.
    #[must_use]
    pub fn to_value(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and their maps are JSON")
    }

    /// Gives the digest that a watermark carries: 32 hex digits that are other ones for other
    /// fingerprints.
    #[must_use]
    pub fn digest(&self) -> String {
        digest(&self.to_value())
    }

    /// Reads a stored value; `None` if it is not the one with this digest.
    #[must_use]
    pub fn from_value(value: &[u8], expected: &str) -> Option<Prints> {
        if digest(value) != expected {
            return None;
        }
        serde_json::from_slice(value).ok()
    }

    /// Says what this state puts in doubt of keys that were right under `before`.
    #[must_use]
    pub fn since(&self, before: &Prints, gap: Gap) -> Doubt {
        if self.format != before.format {
            return Doubt::Everything(Broken::OtherRules);
        }
        // Its readers may have cached, after a removal that did not wait for it, what it still
        // showed. Which keys they did, nobody knows.
        if !self.replicas.is_subset(&before.replicas) {
            return Doubt::Everything(Broken::OtherReplicas);
        }
        let given = Given::new(&before.rules);
        let mut doubt = BTreeMap::new();
        for (id, rule) in (0..=u16::MAX).map(RuleId).zip(&self.rules) {
            let of_source = self.of_source(rule, before, gap);
            for (place, key) in rule.keys.iter().enumerate() {
                let was_at_work = given.covers(rule, key, false);
                let was_known = was_at_work || given.covers(rule, key, true);
                let why = match (rule.is_suspended, was_at_work, was_known) {
                    // It is swept when it fits again.
                    (true, false, true) => None,
                    (true, true, _) => Some(Why::Suspended),
                    (_, false, false) => Some(Why::Wider),
                    (false, false, true) => Some(Why::WasSuspended),
                    (false, true, _) => {
                        of_source.clone().or_else(|| self.of_lookups(key, before, gap))
                    }
                };
                doubt.extend(why.map(|why| ((id, place), why)));
            }
        }
        Doubt::Keys(doubt)
    }

    /// Whether what a rule looks at is as it was.
    fn of_source(&self, rule: &RulePrint, before: &Prints, gap: Gap) -> Option<Why> {
        let (now, then) = (&self.tables, &before.tables);
        match rule.looks {
            Looks::Table(_) if now.publication != then.publication => Some(Why::Publication),
            Looks::View(_) if now.trigger != then.trigger => Some(Why::Trigger),
            Looks::Table(table) | Looks::View(table) => {
                now.altered_since(then, table, gap).map(Why::Table)
            }
            Looks::Messages(_) => None,
        }
    }

    /// Whether the lookups that a template names read as they did: as whom, and of which tables. Of
    /// a lookup whose answers were not kept no tables are known.
    fn of_lookups(&self, key: &KeyPrint, before: &Prints, gap: Gap) -> Option<Why> {
        if !key.lookups.is_empty() && self.tables.role != before.tables.role {
            return Some(Why::Role);
        }
        let altered_since = |lookup: &Print| {
            let then = before.lookups.get(lookup)?;
            let altered = |table: &Print| {
                let of = |tables: &Tables| tables.tables.get(table).map(|table| table.lookup);
                let altered = self.tables.altered_since(&before.tables, *table, gap);
                let is_other = of(&self.tables) != of(&before.tables);
                let other = || Altered(format!("{} is another", self.tables.told(*table)).into());
                altered.or_else(|| is_other.then(other))
            };
            let is_other = self.lookups.get(lookup) != Some(then);
            let other = || Altered("what a lookup reads is another".into());
            then.iter().find_map(altered).or_else(|| is_other.then(other))
        };
        key.lookups.iter().find_map(altered_since).map(Why::Lookup)
    }
}

impl Tables {
    /// By what the rows of a table may read otherwise than `before`, or may have changed since
    /// untold.
    fn altered_since(&self, before: &Tables, table: Print, gap: Gap) -> Option<Altered> {
        let what = match (self.tables.get(&table), before.tables.get(&table)) {
            (Some(now), Some(before)) => now.altered_since(before, gap)?,
            (None, None) => return None,
            (Some(_), None) => format!("{} was not there before", self.told(table)),
            (None, Some(_)) => format!("{} is gone", before.told(table)),
        };
        Some(Altered(what.into()))
    }

    fn told(&self, table: Print) -> String {
        self.tables.get(&table).map_or_else(|| Names::default().told(), |table| table.names.told())
    }
}

impl Names {
    fn told(&self) -> String {
        if self.table.is_empty() { "its table".to_owned() } else { format!("`{}`", self.table) }
    }
}

impl TablePrint {
    /// By what the rows may read otherwise. Each line says which changes are none, and why no row
    /// reads otherwise for them.
    fn altered_since(&self, before: &TablePrint, gap: Gap) -> Option<String> {
        let (row, owner) = self.row;
        let (row_before, owner_before) = before.row;
        // A table that is renamed and renamed back leaves no other trace. Rows of another one,
        // which had its name meanwhile, may be cached.
        let is_named_as_before = row == row_before || owner != owner_before;
        // So it is with a schema, of which a grant leaves the same trace: while it has another name
        // nothing is read, unless there is another table to be read. Changes that come under
        // another name are known by the table's oid.
        let may_be_taken_for_another = self.has_namesake || before.has_namesake;
        let is_where_it_was = self.schema == before.schema || !may_be_taken_for_another;
        let table = self.names.told();
        if self.fixed != before.fixed {
            return Some(format!("{table} is another, or is published or secured otherwise"));
        }
        if !is_named_as_before {
            return Some(format!("{table} was renamed"));
        }
        if !is_where_it_was {
            return Some(format!("the schema of {table} was altered"));
        }
        let column = |number: &i16| {
            let known = [&self.names, &before.names].map(|names| names.columns.get(number));
            let name = known.into_iter().flatten().next().map(|name| format!("`{name}`"));
            format!("column {} of {table}", name.unwrap_or_else(|| number.to_string()))
        };
        let kind = |part: &Print| {
            let kind = self.names.parts.get(part).or_else(|| before.names.parts.get(part));
            kind.copied().unwrap_or("a partition, a type or a label of an enum")
        };
        let altered = self.column_since(before).map(|number| column(&number));
        let altered = altered.or_else(|| {
            let part = self.part_since(before, gap)?;
            Some(format!("{} of {table}", kind(&part)))
        });
        altered.map(|what| what + " was altered")
    }

    /// The first column that may read otherwise. A column's version changes with ALTER TYPE from a
    /// type to the same one, as with NOT NULL, DEFAULT, STATISTICS and grants; but only the first
    /// writes the rows anew. What a new column says stands in no value that was cached before; what
    /// was cached since, and altered, was written anew, or is generated.
    fn column_since(&self, before: &TablePrint) -> Option<i16> {
        let is_rewritten = self.files.is_none() || self.files != before.files;
        let is_as_before = |(number, (face, version)): (&i16, &(Print, Print))| {
            let now = self.columns.get(number);
            now.is_some_and(|now| now.0 == *face && (now.1 == *version || !is_rewritten))
        };
        let is_known = |number: &i16| before.columns.contains_key(number);
        let is_harmless = |number: &i16| !is_rewritten && !self.generated.contains(number);
        let altered = before.columns.iter().find(|column| !is_as_before(*column));
        let new = || self.columns.keys().find(|number| !is_known(number) && !is_harmless(number));
        altered.map(|(number, _)| number).or_else(new).copied()
    }

    /// The first part that is not as it was, or is new and brought something.
    fn part_since(&self, before: &TablePrint, gap: Gap) -> Option<Print> {
        let harmless = match gap {
            Gap::Look => &self.born_empty,
            Gap::Watermark => &self.as_made,
        };
        let is_new = |part: &&Print| !before.parts.contains_key(part);
        let altered = before.parts.iter().find(|(part, face)| self.parts.get(part) != Some(face));
        let new = || self.parts.keys().filter(is_new).find(|part| !harmless.contains(part));
        altered.map(|(part, _)| part).or_else(new).copied()
    }
}

impl Doubt {
    /// No doubt.
    #[must_use]
    pub fn none() -> Doubt {
        Doubt::Keys(BTreeMap::new())
    }

    /// Whether no key is in doubt.
    #[must_use]
    pub fn is_none(&self) -> bool {
        matches!(self, Doubt::Keys(keys) if keys.is_empty())
    }

    /// Whether the keys of a template are in doubt.
    #[must_use]
    pub fn is_of(&self, place: KeyPlace) -> bool {
        match self {
            Doubt::Everything(_) => true,
            Doubt::Keys(keys) => keys.contains_key(&place),
        }
    }

    /// The doubt about keys of those rules alone whose keys go to a target.
    #[must_use]
    pub fn only(self, goes: impl Fn(RuleId) -> bool) -> Doubt {
        match self {
            Doubt::Everything(why) => Doubt::Everything(why),
            Doubt::Keys(mut keys) => {
                keys.retain(|(rule, _), _| goes(*rule));
                Doubt::Keys(keys)
            }
        }
    }

    /// Both doubts at once.
    #[must_use]
    pub fn and(self, other: Doubt) -> Doubt {
        match (self, other) {
            (Doubt::Keys(mut keys), Doubt::Keys(others)) => {
                for (place, why) in others {
                    keys.entry(place).or_insert(why);
                }
                Doubt::Keys(keys)
            }
            (Doubt::Everything(why), _) | (_, Doubt::Everything(why)) => Doubt::Everything(why),
        }
    }

    /// The reason that is counted.
    #[must_use]
    pub fn reason(&self) -> Broken {
        match self {
            Doubt::Everything(why) => *why,
            Doubt::Keys(keys) if keys.values().any(|why| *why == Why::Wider) => Broken::OtherRules,
            Doubt::Keys(_) => Broken::TablesChanged,
        }
    }

    /// The first reason why keys of a rule are in doubt, if they are, and not everything is.
    #[must_use]
    pub fn of_rule(&self, rule: RuleId) -> Option<Why> {
        let Doubt::Keys(keys) = self else { return None };
        keys.range((rule, 0)..=(rule, usize::MAX)).map(|(_, why)| why).min().cloned()
    }

    /// The reasons, in one line.
    #[must_use]
    pub fn reasons(&self) -> String {
        let keys = match self {
            Doubt::Everything(why) => return why.told().to_owned(),
            Doubt::Keys(keys) => keys,
        };
        let reasons: BTreeSet<&Why> = keys.values().collect();
        let mut told: Vec<String> =
            reasons.iter().take(REASONS_OF_LINE_MAX).map(|why| why.alone()).collect();
        if reasons.len() > REASONS_OF_LINE_MAX {
            told.push(format!("{} more", reasons.len() - REASONS_OF_LINE_MAX));
        }
        told.join("; ")
    }

    /// Says what will be swept, a line for each reason: `names` are the rules', by [`RuleId`].
    #[must_use]
    pub fn told(&self, names: &[String]) -> Vec<String> {
        let keys = match self {
            Doubt::Everything(why) => return vec![format!("everything: {}", why.told())],
            Doubt::Keys(keys) => keys,
        };
        let mut by_reason: BTreeMap<&Why, BTreeSet<RuleId>> = BTreeMap::new();
        for ((rule, _), why) in keys {
            by_reason.entry(why).or_default().insert(*rule);
        }
        let more: BTreeSet<RuleId> =
            by_reason.values().skip(REASONS_MAX).flatten().copied().collect();
        let line = |(why, rules): (&dyn fmt::Display, &BTreeSet<RuleId>)| {
            let named = rules.iter().filter_map(|rule| names.get(usize::from(rule.0)));
            let mut named: Vec<String> =
                named.take(NAMES_MAX).map(|name| format!("`{name}`")).collect();
            if rules.len() > NAMES_MAX {
                named.push(format!("{} more", rules.len() - NAMES_MAX));
            }
            format!("keys of {} {}: {why}", plural(rules.len(), "rule"), named.join(", "))
        };
        let by_reason = by_reason.iter().take(REASONS_MAX);
        let mut lines: Vec<String> = by_reason.map(|(why, rules)| line((why, rules))).collect();
        if !more.is_empty() {
            lines.push(line((&"for more reasons like these", &more)));
        }
        lines
    }
}

impl Why {
    /// Gives the reason in words, where no rule is named before it.
    fn alone(&self) -> String {
        match self {
            Why::Wider => "a rule is new, or covers more than before".to_owned(),
            Why::Suspended => "a rule is suspended now".to_owned(),
            Why::WasSuspended => "a rule was suspended until now".to_owned(),
            Why::Table(_) | Why::Lookup(_) | Why::Publication | Why::Trigger | Why::Role => {
                self.to_string()
            }
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Why::Table(altered) => return formatter.write_str(&altered.0),
            Why::Lookup(altered) => return write!(formatter, "read by a lookup: {}", altered.0),
            Why::Wider => "new, or covering more than before",
            Why::Publication => "the publication was altered",
            Why::Trigger => "the event trigger that tells of refreshes was altered",
            Why::Role => "the role's settings or rights, by which a lookup reads, were altered",
            Why::Suspended => "suspended now",
            Why::WasSuspended => "suspended until now",
        };
        formatter.write_str(what)
    }
}

/// Whether a watermark carries a digest of fingerprints; older ones carry another text.
pub(in crate::sweep) fn is_digest(text: &str) -> bool {
    text.len() == DIGEST_LENGTH && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

const DIGEST_LENGTH: usize = 32;

fn digest(value: &[u8]) -> String {
    Sha256::digest(value).iter().take(DIGEST_LENGTH / 2).map(|byte| format!("{byte:02x}")).collect()
}
