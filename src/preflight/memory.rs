//! The comment on a publication that tells whose it is, and what `setup` did for it.
//!
//! Postgres keeps no author of an object, only an owner, and the owner of the tables owns what
//! `setup` makes as well as what they made themselves. So `setup` leaves a comment: a sentence by
//! which a publication is known as walsweep's, and below it, as JSON, which tables each walsweep
//! (by its slot) uses, and the replica identities from before. A publication without the sentence
//! is somebody else's, whatever it contains: it is never altered and never dropped, and whoever
//! owns it may hand it over with the comment that `check` prints.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::catalog::Publication;
use super::step::{Does, Identity, Step};
use super::{Code, Context, Finding, cure, identity};
use crate::config::TableName;

/// How the comment on everything that `setup` makes begins.
pub const SENTENCE: &str = "walsweep setup made this, and walsweep teardown drops it";

/// What the comment on a publication remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The tables that rules look at, by the slot of the walsweep that has them.
    pub tables: BTreeMap<String, BTreeSet<TableName>>,
    /// Replica identities that `setup` changed, as they were.
    pub identities: BTreeSet<Identity>,
}

impl Memory {
    /// Reads a comment; `None` if the object is not walsweep's. What is not understood is
    /// forgotten: it is then told, not undone.
    #[must_use]
    pub fn read(comment: Option<&str>) -> Option<Memory> {
        let rest = comment?.strip_prefix(SENTENCE)?;
        let mut memory = Memory::default();
        let Ok(json) = serde_json::from_str::<Value>(rest.trim()) else { return Some(memory) };
        for (slot, tables) in json["tables"].as_object().into_iter().flatten() {
            let tables = tables.as_array().into_iter().flatten().filter_map(name);
            memory.tables.insert(slot.clone(), tables.collect());
        }
        let identities = json["identities"].as_array().into_iter().flatten();
        memory.identities = identities.filter_map(identity).collect();
        Some(memory)
    }

    /// The comment.
    #[must_use]
    pub fn comment(&self) -> String {
        let pair = |table: &TableName| json!([table.schema, table.name]);
        let tables: BTreeMap<&String, Vec<Value>> = self
            .tables
            .iter()
            .map(|(slot, tables)| (slot, tables.iter().map(pair).collect()))
            .collect();
        let identity = |one: &Identity| {
            json!({
                "table": pair(&one.table), "relation": pair(&one.relation),
                "was": one.was.to_string(), "index": one.index,
            })
        };
        let identities: Vec<Value> = self.identities.iter().map(identity).collect();
        if tables.is_empty() && identities.is_empty() {
            return SENTENCE.to_owned();
        }
        format!("{SENTENCE}\n{}", json!({ "tables": tables, "identities": identities }))
    }

    /// What is to be remembered once the walsweep of this slot has these tables, and these steps
    /// are done.
    #[must_use]
    pub fn after<'a>(
        &self,
        slot: &str,
        tables: impl IntoIterator<Item = TableName>,
        steps: impl IntoIterator<Item = &'a Step>,
    ) -> Memory {
        let mut memory = self.clone();
        let own = memory.tables.entry(slot.to_owned()).or_default();
        own.extend(tables);
        for step in steps {
            match &step.does {
                // What it was before the first change is what it goes back to.
                Does::SetIdentity(now)
                    if memory.identities.iter().all(|one| one.relation != now.relation) =>
                {
                    memory.identities.insert(now.clone());
                }
                Does::RestoreIdentity(identity) => {
                    memory.identities.remove(identity);
                }
                Does::DropTable(table) => {
                    own.remove(table);
                }
                _ => {}
            }
        }
        memory
    }

    /// The same without what was to be remembered of steps that were not done: of those that are
    /// known already, nothing is forgotten.
    #[must_use]
    pub fn without<'a>(
        &self,
        steps: impl IntoIterator<Item = &'a Step>,
        before: Option<&Memory>,
    ) -> Memory {
        let is_known =
            |one: &Identity| before.is_some_and(|memory| memory.identities.contains(one));
        let mut memory = self.clone();
        for step in steps {
            match &step.does {
                Does::SetIdentity(identity) if !is_known(identity) => {
                    memory.identities.remove(identity);
                }
                Does::RestoreIdentity(identity) if is_known(identity) => {
                    memory.identities.insert(identity.clone());
                }
                Does::DropTable(table) => {
                    let known = before.into_iter().flat_map(|memory| &memory.tables);
                    for (slot, _) in known.filter(|(_, tables)| tables.contains(table)) {
                        memory.tables.entry(slot.clone()).or_default().insert(table.clone());
                    }
                }
                _ => {}
            }
        }
        memory
    }

    /// Whether a walsweep of another slot has the table, too.
    #[must_use]
    pub fn has_elsewhere(&self, slot: &str, table: &TableName) -> bool {
        self.tables.iter().any(|(other, tables)| other != slot && tables.contains(table))
    }
}

/// Lets the comment on walsweep's own publication say all that the cures of these findings change:
/// with its creation, or as a finding of its own, which is cured last. So whoever runs what is
/// printed leaves the same behind as `setup`.
pub(super) fn remember(context: &Context<'_>, findings: &mut Vec<Finding>) {
    let postgres = &context.config.postgres;
    let before = match context.catalog.publication.as_ref().map(Publication::memory) {
        Some(None) => return,
        Some(Some(memory)) => Some(memory),
        None => None,
    };
    let steps = findings.iter().filter(|one| one.is_due()).flat_map(|one| &one.steps);
    // A table that must not be published is none that `setup` published.
    let tables = context.table_rules().filter_map(|(rule, table)| {
        let is_left = identity::publishing(context, table).is_err();
        (table.relation.is_published || !is_left).then(|| rule.table.clone())
    });
    let memory = before.clone().unwrap_or_default().after(&postgres.slot, tables, steps);
    let name = &postgres.publication;
    for finding in findings.iter_mut() {
        let creates = |step: &Step| matches!(step.does, Does::CreatePublication(..));
        if finding.steps.iter().any(creates) {
            let steps = finding.steps.iter().cloned();
            let steps = steps.map(|step| cure::remembering(step, name, &memory)).collect();
            *finding = finding.clone().cure(steps);
        }
    }
    if before.is_some_and(|before| before != memory) {
        let message = format!(
            "the comment on publication `{name}` does not tell all that `setup` does for it: \
             `teardown`, and a rule that is taken out, go by that"
        );
        let finding = Finding::info(Code::PublicationMemory, message).done_by_setup();
        findings.push(finding.cure(vec![cure::remember(name, memory)]));
    }
}

fn name(pair: &Value) -> Option<TableName> {
    let text = |index: usize| pair.get(index)?.as_str().map(str::to_owned);
    Some(TableName { schema: text(0)?, name: text(1)? })
}

fn identity(value: &Value) -> Option<Identity> {
    Some(Identity {
        table: name(&value["table"])?,
        relation: name(&value["relation"])?,
        was: value["was"].as_str()?.chars().next()?,
        index: value["index"].as_str().map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::{Does, Identity, Memory, SENTENCE, Step};
    use crate::config::TableName;

    #[test]
    fn a_comment_says_again_what_was_remembered() {
        let table = |name: &str| TableName { schema: "it's".to_owned(), name: name.to_owned() };
        let mut memory = Memory::default();
        assert_eq!(memory.comment(), SENTENCE);
        memory.tables.insert("walsweep".to_owned(), [table("a\"b"), table("c")].into());
        memory.tables.insert("other".to_owned(), [table("c")].into());
        memory.identities.insert(Identity {
            table: table("c"),
            relation: table("c_1"),
            was: 'i',
            index: Some("c_1_key".to_owned()),
        });
        let comment = memory.comment();
        assert_eq!(Memory::read(Some(&comment)), Some(memory.clone()));
        assert!(memory.has_elsewhere("walsweep", &table("c")));
        assert!(memory.has_elsewhere("other", &table("a\"b")));
        assert!(!memory.has_elsewhere("walsweep", &table("a\"b")));
    }

    #[test]
    fn what_is_done_is_remembered_and_what_was_refused_is_not() {
        let table = |name: &str| TableName { schema: "s".to_owned(), name: name.to_owned() };
        let identity = |name: &str, was| Identity {
            table: table(name),
            relation: table(name),
            was,
            index: None,
        };
        let step = |does| Step { sql: String::new(), does };
        let mut before = Memory::default();
        before.tables.insert("walsweep".to_owned(), [table("old"), table("a")].into());
        before.identities = [identity("old", 'd'), identity("a", 'n')].into();
        let steps = [
            step(Does::SetIdentity(identity("a", 'd'))),
            step(Does::SetIdentity(identity("b", 'd'))),
            step(Does::DropTable(table("old"))),
            step(Does::RestoreIdentity(identity("old", 'd'))),
        ];
        let after = before.after("walsweep", [table("a"), table("b")], &steps);
        assert_eq!(after.tables["walsweep"], [table("a"), table("b")].into());
        let first = "the identity before the first change";
        assert_eq!(after.identities, [identity("a", 'n'), identity("b", 'd')].into(), "{first}");
        let mut refused = before.clone();
        refused.tables.entry("walsweep".to_owned()).or_default().insert(table("b"));
        assert_eq!(after.without(&steps, Some(&before)), refused);
    }

    #[test]
    fn only_the_sentence_makes_a_publication_ours() {
        for (comment, is_ours) in [
            (None, false),
            (Some("walsweep reads this; do not drop"), false),
            (Some(SENTENCE), true),
            (Some(&*format!("{SENTENCE}, or so they say")), true),
            (Some(&*format!("{SENTENCE}\n{{\"tables\": 7}}")), true),
        ] {
            let memory = Memory::read(comment);
            assert_eq!(memory.is_some(), is_ours, "{comment:?}");
            assert!(memory.is_none_or(|memory| memory == Memory::default()));
        }
    }
}
