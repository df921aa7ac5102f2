//! The `[[rule]]` tables of the configuration to [`Rule`]s, with all their problems at once.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::condition::Condition;
use super::filter::Flaw;
use super::filter::push_hex;
use super::item::{Item, ItemKind};
use super::label::{RuleId, TemplateId, TemplateInfo, Templates, Whole};
use super::lookup::{self, Lookup, LookupTemplate};
use super::pattern::Pattern;
use super::template::{Template, Version};
use crate::config::{
    self, Fields, Located, Location, LookupRows, Missing, Operations, Problem, Source, TableName,
    Targets,
};

/// A compiled rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) id: RuleId,
    pub(super) at: Location,
    pub(super) table: TableName,
    pub(super) operations: Operations,
    pub(super) changed: Vec<Located<String>>,
    pub(super) immutable: Vec<Located<String>>,
    pub(super) templates: Vec<RuleTemplate>,
    pub(super) source: Source,
    pub(super) when: Option<Condition>,
    pub(super) targets: Targets,
}

/// A template of a rule.
#[derive(Clone, Debug)]
pub(super) struct RuleTemplate {
    pub(super) id: TemplateId,
    pub(super) at: Location,
    pub(super) template: Template,
    /// As it is written.
    pub(super) text: String,
    /// Its needs of lookups, if it names one.
    pub(super) lookup: Option<Arc<LookupTemplate>>,
}

impl Rule {
    pub(super) fn is_immutable(&self, column: &str) -> bool {
        self.immutable.iter().any(|immutable| immutable.value == column)
    }
}

/// Compiles the rules. Errors: every problem of every rule, in the order of the file.
pub(super) fn compile(
    rules: &[config::Rule],
    lookups: &[config::Lookup],
) -> Result<(Vec<Rule>, Vec<Lookup>), Vec<Problem>> {
    let (mut problems, mut names, mut compiled) = (Vec::new(), HashSet::new(), Vec::new());
    let mut template_count = 0;
    for (at, rule) in rules.iter().enumerate() {
        if !names.insert(&rule.name) {
            let message = format!("rule `{}` has the name of another rule", rule.name);
            let hint = "give each rule its own name: it is a label of the metrics";
            problems.push(problem(&rule.at, message, hint));
        }
        if rule.keys.is_empty() && rule.tags.is_empty() && rule.fields.is_empty() {
            let message = format!("rule `{}` has no keys", rule.name);
            let hint = "give it at least one template, in `keys`, `tags` or `fields`";
            problems.push(problem(&rule.at, message, hint));
        }
        twice(&rule.changed, "changed", &mut problems);
        twice(&rule.immutable, "immutable", &mut problems);
        // The last number is the probe's.
        let Some(id) = u16::try_from(at).ok().filter(|id| *id != RuleId::PROBE.0) else {
            problems.push(problem(&rule.at, "there are more than 65 535 rules", "join some"));
            break;
        };
        let templates = templates(rule, &mut template_count, &mut problems);
        let when = condition(rule, &mut problems);
        compiled.push(Rule {
            id: RuleId(id),
            at: rule.at.clone(),
            table: rule.table.clone(),
            operations: rule.operations,
            changed: rule.changed.clone(),
            immutable: rule.immutable.clone(),
            templates,
            source: rule.source.clone(),
            when,
            targets: rule.targets,
        });
    }
    problems.extend(covered_tags(&compiled));
    let lookups = lookup::bind(&mut compiled, lookups, &mut problems);
    problems.sort_by(|one, other| one.at.cmp(&other.at));
    if problems.is_empty() { Ok((compiled, lookups)) } else { Err(problems) }
}

fn templates(
    rule: &config::Rule,
    count: &mut usize,
    problems: &mut Vec<Problem>,
) -> Vec<RuleTemplate> {
    let mut templates = Vec::new();
    for (at, template, text) in parsed(rule, problems) {
        problems.extend(without_row(rule, &at, &template));
        // The number behind the last is the probe's.
        let Some(id) = u16::try_from(*count).ok().filter(|id| *id < u16::MAX) else {
            problems.push(problem(&at, "there are more than 65 535 keys", "join some"));
            break;
        };
        *count += 1;
        templates.push(RuleTemplate { id: TemplateId(id), at, template, text, lookup: None });
    }
    templates
}

/// The templates of `keys`, `tags` and `fields`, each with its place and as messages write it.
fn parsed(rule: &config::Rule, problems: &mut Vec<Problem>) -> Vec<(Location, Template, String)> {
    let mut parse = |text: &Located<String>, read: fn(&str) -> Result<Template, Vec<Flaw>>| {
        let flawed = |flaws: Vec<Flaw>| {
            problems.extend(flaws.iter().map(|f| problem(&text.at, &*f.message, &f.hint)));
        };
        read(&text.value).map_err(flawed).ok()
    };
    let mut all = Vec::new();
    for key in &rule.keys {
        let template = parse(key, Template::parse);
        all.extend(template.map(|template| (key.at.clone(), template, key.value.clone())));
    }
    for tag in &rule.tags {
        let template = parse(tag, Template::parse);
        let text = format!("members of {}", tag.value);
        all.extend(template.map(|template| (tag.at.clone(), template.of_tag(), text)));
    }
    for Fields { key, fields } in &rule.fields {
        let of = parse(key, Template::parse);
        for field in fields {
            let (of, template) = (of.clone(), parse(field, Template::parse_any));
            let text = format!("field {} of {}", field.value, key.value);
            all.extend(of.zip(template).map(|(of, template)| {
                let template = of.with_field(template);
                (field.at.clone(), template, text)
            }));
        }
    }
    all
}

/// Indices of tags that a key of a rule takes: they would be gone before their members are read.
fn covered_tags(rules: &[Rule]) -> Vec<Problem> {
    let all = || rules.iter().flat_map(|rule| rule.templates.iter().map(move |one| (rule, one)));
    let wholes: Vec<_> = all().map(|(rule, one)| (rule, one, one.template.whole())).collect();
    let tags = wholes.iter().filter_map(|(rule, tag, whole)| match whole {
        Whole::Item(item) if Item::read(item).kind() == ItemKind::Tag => {
            Some((rule, tag, Pattern::parse(Item::read(item).key())))
        }
        _ => None,
    });
    let covered = tags.filter_map(|(rule, tag, index)| {
        let (other, key, _) = wholes.iter().find(|(other, _, whole)| {
            let covers = match whole {
                Whole::Key(key) => index.as_literal().is_some_and(|index| index[..] == key[..]),
                Whole::Pattern(pattern) => pattern.covers(&index),
                Whole::Item(_) => false,
            };
            covers && other.targets.meets(rule.targets)
        })?;
        let name = format!("`{}` of the rule in line {}", key.text, other.at.line);
        let message = format!("the key {name} removes this index before its members are read");
        let hint = "give the index a name that no key of a rule covers";
        Some(problem(&tag.at, message, hint))
    });
    covered.collect()
}

/// A placeholder in a key of a rule that has no row to take its value from.
fn without_row(rule: &config::Rule, at: &Location, template: &Template) -> Option<Problem> {
    let column = &template.placeholders().next()?.column;
    let message = match rule.source {
        Source::Table => return None,
        Source::MaterializedView | Source::Message(_) => {
            format!("`{{{column}}}` needs the row of a table, and {} has none", rule.source.noun())
        }
    };
    Some(problem(at, message, "write `*` in its place, or `\\{` for the character itself"))
}

fn condition(rule: &config::Rule, problems: &mut Vec<Problem>) -> Option<Condition> {
    match Condition::parse(rule.when.as_ref()?) {
        Ok(condition) => Some(condition),
        Err(flaws) => {
            problems.extend(flaws.iter().map(|(at, f)| problem(at, &*f.message, &f.hint)));
            None
        }
    }
}

fn twice(columns: &[Located<String>], option: &str, problems: &mut Vec<Problem>) {
    let mut seen = HashSet::new();
    for column in columns {
        if !seen.insert(&column.value) {
            let message = format!("`{option}` names column `{}` twice", column.value);
            problems.push(problem(&column.at, message, "name it once"));
        }
    }
}

pub(super) fn problem(at: &Location, message: impl Into<String>, hint: &str) -> Problem {
    Problem { at: at.clone(), message: message.into(), hint: Some(hint.to_owned()) }
}

/// Gives the facts that key sets know of all templates, by [`TemplateId`].
pub(super) fn infos(rules: &[Rule]) -> Arc<Templates> {
    Arc::new(Templates::new(infos_of(rules)))
}

/// Gives those, and behind them one of the probe: all that it could ever give is one key, `whole`.
pub(super) fn with_canary(
    rules: &[Rule],
    whole: &[u8],
    targets: Targets,
) -> (Arc<Templates>, TemplateId) {
    let whole = Whole::Key(whole.into());
    let canary = TemplateInfo { rule: RuleId::PROBE, targets, whole, lookup: None };
    let templates = Templates::new(infos_of(rules).chain([canary]));
    let last = u16::try_from(templates.len() - 1).expect("the compiler leaves room for one more");
    (Arc::new(templates), TemplateId(last))
}

fn infos_of(rules: &[Rule]) -> impl Iterator<Item = TemplateInfo> {
    rules.iter().flat_map(|rule| {
        let info = |key: &RuleTemplate| TemplateInfo {
            rule: rule.id,
            targets: rule.targets,
            whole: key.template.whole(),
            lookup: key.lookup.clone(),
        };
        rule.templates.iter().map(info)
    })
}

/// 16 hex digits that are equal if two rule sets give the same keys for every change: the names and
/// the order of rules, and how rules share templates, are left out.
pub(super) fn fingerprint(rules: &[Rule], lookups: &[Lookup]) -> String {
    let mut lines = BTreeSet::new();
    for rule in rules {
        let Operations { insert, update, delete, truncate } = rule.operations;
        let mut head = Vec::new();
        // No table is in a schema without a name, so these are no table's.
        let parts = match &rule.source {
            Source::Table => &[][..],
            Source::MaterializedView => &["", "materialized_view"],
            Source::Message(prefix) => &["", "message", prefix],
        };
        parts.iter().for_each(|part| push_part(&mut head, part.as_bytes()));
        push_part(&mut head, rule.table.schema.as_bytes());
        push_part(&mut head, rule.table.name.as_bytes());
        head.extend([insert, update, delete, truncate].map(u8::from));
        for columns in [&rule.changed, &rule.immutable] {
            let columns: BTreeSet<&str> = columns.iter().map(|c| c.value.as_str()).collect();
            let mut list = Vec::new();
            columns.iter().for_each(|column| push_part(&mut list, column.as_bytes()));
            push_part(&mut head, &list);
        }
        // A rule without one has the fingerprint that it had before there were conditions.
        if let Some(when) = &rule.when {
            push_part(&mut head, when.script.text.as_bytes());
        }
        for key in &rule.templates {
            let mut line = head.clone();
            push_part(&mut line, &key.template.canonical());
            for used in key.lookup.iter().flat_map(|template| &template.lookups) {
                let lookup = &lookups[usize::from(used.id.0)];
                push_part(&mut line, lookup.sql.value.as_bytes());
                lookup.params.iter().for_each(|one| push_part(&mut line, one.value.as_bytes()));
                // One without them has the fingerprint that it had before there were these options.
                if lookup.rows == LookupRows::Many {
                    push_part(&mut line, b"\0many");
                }
                if lookup.missing == Missing::Skip {
                    push_part(&mut line, b"\0skip");
                }
            }
            lines.insert(line);
        }
    }
    // Counts up when the same rules come to give other keys: 2, booleans are `true` and `false`.
    let mut text = b"walsweep rules 2".to_vec();
    lines.iter().for_each(|line| push_part(&mut text, line));
    let mut hex = Vec::new();
    push_hex(&mut hex, &Sha256::digest(&text), 16);
    hex.into_iter().map(char::from).collect()
}

/// Appends a part so that no other parts give the same bytes.
fn push_part(out: &mut Vec<u8>, part: &[u8]) {
    out.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
    out.extend_from_slice(part);
}

/// A column that a rule reads, for the checks before the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnUse<'a> {
    /// The rule's name.
    pub rule: &'a str,
    /// Where the rule starts in the file.
    pub rule_at: &'a Location,
    /// The rule's table.
    pub table: &'a TableName,
    /// The column.
    pub column: &'a str,
    /// Where the column is named: its first template, or its place in `changed`.
    pub at: &'a Location,
    /// The operations that the rule looks at.
    pub operations: Operations,
    /// The use that the rule makes of the column.
    pub purpose: Purpose,
    /// Whether the rule declares the column immutable.
    pub immutable: bool,
}

/// The use that a rule makes of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A placeholder of a key, or a parameter of a lookup that a key names.
    Key {
        /// Its old value is needed, by an operation of the rule that has one.
        old: bool,
        /// Its new value is needed, by an operation of the rule that has one.
        new: bool,
    },
    /// `changed`: whether it differs between the old version and the new.
    Changed,
    /// `when`.
    When {
        /// Its old value is needed, by an operation of the rule that has one.
        old: bool,
        /// Its new value is needed, by an operation of the rule that has one.
        new: bool,
    },
}

/// Each column of a rule, once for its keys, once for `changed` and once for `when`.
pub(super) fn column_uses<'a>(rule: &'a Rule, name: &'a str) -> Vec<ColumnUse<'a>> {
    let Operations { insert, update, delete, .. } = rule.operations;
    let use_of = |column: &'a str, at: &'a Location, purpose: Purpose| ColumnUse {
        rule: name,
        rule_at: &rule.at,
        table: &rule.table,
        column,
        at,
        operations: rule.operations,
        purpose,
        immutable: rule.is_immutable(column),
    };
    let mut uses: Vec<ColumnUse<'a>> = Vec::new();
    for key in &rule.templates {
        let own = key.template.own_columns();
        let own = own.map(|one| (one.version, one.column.as_str(), &key.at));
        let lookups = key.lookup.iter().flat_map(|template| &template.lookups);
        let params = lookups.flat_map(|lookup| &lookup.params);
        let params = params.map(|param| (Version::Each, param.value.as_str(), &param.at));
        for (version, column, at) in own.chain(params) {
            let old = version != Version::New && (update || delete);
            let new = version != Version::Old && (insert || update);
            let known = uses.iter_mut().find(|known| known.column == column);
            match known.map(|known| &mut known.purpose) {
                Some(Purpose::Key { old: known_old, new: known_new }) => {
                    *known_old |= old;
                    *known_new |= new;
                }
                _ => uses.push(use_of(column, at, Purpose::Key { old, new })),
            }
        }
    }
    uses.extend(rule.changed.iter().map(|c| use_of(&c.value, &c.at, Purpose::Changed)));
    let Some(when) = &rule.when else { return uses };
    let start = uses.len();
    for (version, column) in &when.columns {
        let old = *version == Version::Old && (update || delete);
        let new = *version == Version::New && (insert || update);
        let known = uses.iter_mut().skip(start).find(|known| known.column == column);
        match known.map(|known| &mut known.purpose) {
            Some(Purpose::When { old: known_old, new: known_new }) => {
                *known_old |= old;
                *known_new |= new;
            }
            _ => uses.push(use_of(column, &when.script.at, Purpose::When { old, new })),
        }
    }
    uses
}
