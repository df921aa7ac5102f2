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

use super::step::Identity;
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

    /// Whether a walsweep of another slot has the table, too.
    #[must_use]
    pub fn has_elsewhere(&self, slot: &str, table: &TableName) -> bool {
        self.tables.iter().any(|(other, tables)| other != slot && tables.contains(table))
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
    use super::{Identity, Memory, SENTENCE};
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
