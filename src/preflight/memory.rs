//! The comment on a publication that tells whose it is, and what `setup` did for it.
//!
//! Postgres keeps no author of an object, only an owner, and the owner of the tables owns what
//! `setup` makes as well as what they made themselves. So `setup` leaves a comment: a sentence by
//! which a publication is known as walsweep's, and below it, as JSON, which tables each walsweep
//! (by its slot) uses, which slots are walsweep's, and the replica identities from before. A
//! publication without the sentence is somebody else's, whatever it contains: it is never altered
//! and never dropped, and whoever owns it may hand it over with the comment that `check` prints.
//!
//! A slot is claimed only once it is there, by whoever made it. One that is not there yet is
//! *wanted*: whoever makes a slot of that name meanwhile keeps it.
//!
//! The publication's owner may write anything into it, and who sets up may be a superuser. So what
//! is read of it never leads further than that owner may go: see `remembered`. It is written before
//! the first identity is changed, so that whatever ends `setup` in between, nothing is forgotten.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::catalog::Publication;
use super::step::{Does, Identity, Step, printed};
use super::{Code, Context, Finding, cure};
use crate::config::{Postgres, TableName};

/// How the comment on everything that `setup` makes begins.
pub const SENTENCE: &str = "walsweep setup made this, and walsweep teardown drops it";

/// A longer comment is not read, nor one of more slots: some checks take each slot with each table.
/// One of 10 000 tables with their identities has 2 MB.
const SIZE_MAX: usize = 8 << 20;

/// See [`SIZE_MAX`].
const SLOTS_MAX: usize = 1_000;

/// The record of a slot in the comment on a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// It is walsweep's: `setup` made it, or somebody claimed it.
    Claimed,
    /// There was none, and `run` was to make it.
    Wanted,
    /// No more than of any other; or there is no such comment.
    Nothing,
}

/// Everything that the comment on a publication remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The tables that rules look at, by the slot of the walsweep that has them.
    pub tables: BTreeMap<String, BTreeSet<TableName>>,
    /// The slots that `setup` made, or that somebody claimed for walsweep: a slot itself bears no
    /// mark.
    pub slots: BTreeSet<String>,
    /// The slots that were not there when `setup` saw to their walsweeps, and that it did not make:
    /// `run` is to. Who made the one that is there now, this does not tell.
    pub wanted: BTreeSet<String>,
    /// Replica identities that `setup` changed, as they were.
    pub identities: BTreeSet<Identity>,
    /// Whether tables were taken out that an earlier version published because they inherit from
    /// one of these, or none was ever put in: whoever put one in did so by hand.
    pub without_heirs: bool,
}

impl Memory {
    /// Reads a comment; `None` if the object is not walsweep's, or its comment [is
    /// damaged](Memory::is_damaged). What is not understood of its JSON is forgotten: it is then
    /// told, not undone.
    #[must_use]
    pub fn read(comment: Option<&str>) -> Option<Memory> {
        let rest = comment?.strip_prefix(SENTENCE)?.trim();
        let mut memory = Memory::default();
        if rest.is_empty() {
            return Some(memory);
        }
        let json = (rest.len() <= SIZE_MAX).then(|| serde_json::from_str::<Value>(rest).ok());
        let json = json.flatten().filter(|json| count_slots(json) <= SLOTS_MAX)?;
        let tables = json["tables"].as_object().into_iter().flatten();
        for (slot, tables) in tables.filter(|(slot, _)| is_slot(slot)) {
            let tables = tables.as_array().into_iter().flatten().filter_map(name);
            memory.tables.insert(slot.clone(), tables.collect());
        }
        memory.slots = match json["slots"].as_array() {
            Some(slots) => slots.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            // A walsweep that did not know this yet made the slot of each that has tables.
            None => memory.tables.keys().cloned().collect(),
        };
        memory.slots.retain(|slot| is_slot(slot));
        let wanted = json["wanted"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let is_new = |slot: &&str| is_slot(slot) && !memory.slots.contains(*slot);
        memory.wanted = wanted.filter(is_new).map(str::to_owned).collect();
        let identities = json["identities"].as_array().into_iter().flatten().filter_map(identity);
        // Two that say what one relation was tell nothing.
        let mut by_relation: BTreeMap<TableName, Vec<Identity>> = BTreeMap::new();
        for one in identities {
            by_relation.entry(one.relation.clone()).or_default().push(one);
        }
        let sure = by_relation.into_values().filter(|all| all.len() == 1).flatten();
        memory.identities = sure.collect();
        memory.without_heirs = json["without_heirs"] == Value::Bool(true);
        Some(memory)
    }

    /// Whether a comment begins as walsweep's and cannot be read: what follows is no JSON, or more
    /// than any walsweep writes. It may have told of others, so nothing goes by it.
    #[must_use]
    pub fn is_damaged(comment: Option<&str>) -> bool {
        let is_begun = comment.is_some_and(|comment| comment.starts_with(SENTENCE));
        is_begun && Memory::read(comment).is_none()
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
        if self.is_empty() {
            return SENTENCE.to_owned();
        }
        let slots = &self.slots;
        let mut all = json!({ "tables": tables, "slots": slots, "identities": identities });
        if !self.wanted.is_empty() {
            all["wanted"] = json!(self.wanted);
        }
        if self.without_heirs {
            all["without_heirs"] = Value::Bool(true);
        }
        format!("{SENTENCE}\n{all}")
    }

    /// Whether it tells no more than whose the publication is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let (tables, identities) = (self.tables.is_empty(), self.identities.is_empty());
        tables && identities && self.slots.is_empty() && self.wanted.is_empty()
    }

    /// Gives its record of the slot of this name.
    #[must_use]
    pub fn record(&self, slot: &str) -> Record {
        match (self.slots.contains(slot), self.wanted.contains(slot)) {
            (true, _) => Record::Claimed,
            (false, true) => Record::Wanted,
            (false, false) => Record::Nothing,
        }
    }

    /// Whether the slot of this name is walsweep's.
    #[must_use]
    pub fn claims(&self, slot: &str) -> bool {
        self.record(slot) == Record::Claimed
    }

    /// Records the slot of this name as walsweep's.
    #[must_use]
    pub fn with_slot(mut self, slot: &str) -> Memory {
        self.wanted.remove(slot);
        self.slots.insert(slot.to_owned());
        self
    }

    /// Records that a slot of this name is to be made; one that is claimed stays so.
    #[must_use]
    pub fn wanting(mut self, slot: &str) -> Memory {
        if !self.claims(slot) {
            self.wanted.insert(slot.to_owned());
        }
        self
    }

    /// Forgets the walsweep of this slot, whose slot is gone.
    #[must_use]
    pub fn without_slot(mut self, slot: &str) -> Memory {
        self.tables.remove(slot);
        self.slots.remove(slot);
        self.wanted.remove(slot);
        self
    }

    /// The slots of other walsweeps that have the publication.
    pub fn others<'a>(&'a self, slot: &'a str) -> impl Iterator<Item = &'a String> {
        let named = self.slots.iter().chain(&self.wanted);
        let named = named.filter(|slot| !self.tables.contains_key(*slot));
        self.tables.keys().chain(named).filter(move |other| *other != slot)
    }

    /// Gives what is to be remembered once the walsweep of this slot has these tables, and these
    /// steps are done.
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
                // Nobody needs its table then, be it in the publication still or not.
                Does::RestoreIdentity(identity) => {
                    memory.identities.remove(identity);
                    own.remove(&identity.table);
                }
                Does::DropTable(table) => {
                    own.remove(table);
                }
                _ => {}
            }
        }
        memory
    }

    /// Gives the memory without what was to be remembered of steps that were not done: of those
    /// that are known already, nothing is forgotten.
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
                    memory.without_heirs &= before.is_some_and(|memory| memory.without_heirs);
                }
                _ => {}
            }
        }
        memory
    }

    /// Whether a walsweep, of whatever slot, has the table.
    pub(super) fn has(&self, table: &TableName) -> bool {
        self.tables.values().any(|tables| tables.contains(table))
    }

    /// Whether a walsweep of another slot has the table, too.
    #[must_use]
    pub fn has_elsewhere(&self, slot: &str, table: &TableName) -> bool {
        self.tables.iter().any(|(other, tables)| other != slot && tables.contains(table))
    }
}

/// Lets the comment on walsweep's own publication say all that the cures of these findings change:
/// with its creation, or as a finding of its own. So whoever runs what is printed leaves the same
/// behind as `setup`. What is about to be changed is remembered first, and forgotten last.
pub(super) fn remember(context: &Context<'_>, findings: &mut Vec<Finding>) {
    let postgres = &context.config.postgres;
    let publication = context.catalog.publication.as_ref();
    let before = match publication.map(Publication::memory) {
        Some(None) => {
            let handed_over = Memory::default().wanting(&postgres.slot);
            claim_what_is_made(postgres, findings, &[&handed_over.comment()], &handed_over);
            return;
        }
        Some(Some(memory)) => Some(memory),
        None => None,
    };
    let standing = publication.and_then(|one| one.comment.as_deref());
    let steps = || findings.iter().filter(|one| one.is_due()).flat_map(|one| &one.steps);
    // A table that must not be published is none that `setup` published.
    let tables: Vec<(TableName, bool)> = context
        .table_rules()
        .filter(|(_, table)| {
            table.relation.is_published || context.wanted.goal(table).publishing.is_ok()
        })
        .map(|(rule, table)| (rule.table.clone(), table.relation.is_published))
        .collect();
    let names = || tables.iter().map(|(table, _)| table.clone());
    let known = before.clone().unwrap_or_default();
    let forgets = |step: &&Step| matches!(step.does, Does::DropTable(_) | Does::RestoreIdentity(_));
    // A slot that is there is walsweep's only if it was before: nothing else tells whose it is. Of
    // a publication that was just handed over nothing else is known, and `run` reads its slot.
    let is_wanted = context.catalog.slot.is_none() || before.as_ref().is_some_and(Memory::is_empty);
    let wanting = |memory: Memory| if is_wanted { memory.wanting(&postgres.slot) } else { memory };
    let kept = steps().filter(|step| !forgets(step));
    let first = wanting(known.after(&postgres.slot, names(), kept));
    let mut last = wanting(known.after(&postgres.slot, names(), steps()));
    let is_forgetful = steps().any(|step| forgets(&step));
    last.without_heirs |= last != known || is_forgetful;
    let name = &postgres.publication;
    let Some(before) = before else {
        let creates = |step: &Step| matches!(step.does, Does::CreatePublication(_));
        for finding in findings.iter_mut().filter(|one| one.steps.iter().any(creates)) {
            let steps = finding.steps.iter().cloned();
            let steps = steps.map(|step| cure::remembering(step, name, None, &last)).collect();
            *finding = finding.clone().cure(steps);
        }
        if findings.iter().any(|one| one.steps.iter().any(creates)) {
            claim_what_is_made(postgres, findings, &[&last.comment()], &last);
        }
        return;
    };
    let (mut steps, whole) = (Vec::new(), last.clone());
    let now = [standing.unwrap_or_default(), &last.comment()];
    let is_claimed_with_it = claim_what_is_made(postgres, findings, &now, &whole);
    if first != before || is_forgetful {
        // One comment is enough where nothing is to be forgotten. Else the first one is written
        // even if it says nothing new: nothing is taken away if somebody else wrote it meanwhile.
        let now = if is_forgetful { first } else { last.clone() };
        let written = now.comment();
        steps.push(cure::remember_first(name, standing, now));
        steps.extend(is_forgetful.then(|| cure::remember(name, Some(&written), last)));
    } else if last != before {
        steps.push(cure::remember(name, standing, last));
    }
    if !steps.is_empty() {
        let own = before.tables.get(&postgres.slot);
        let is_known = |table: &TableName| own.is_some_and(|own| own.contains(table));
        let unknown = tables.iter().find(|(table, is_there)| *is_there && !is_known(table));
        let mut untold = untold(context, unknown.map(|(table, _)| table)).cure(steps);
        // The statement that claims the slot says all this, too: of two that are run one after the
        // other the second would take back what the first said.
        let claims = |one: &&mut Finding| one.code == Code::SlotUnclaimed && one.sql.is_some();
        if let Some(one) = findings.iter_mut().find(claims) {
            let whole = whole.with_slot(&postgres.slot);
            *one = one.clone().cure(vec![cure::remember(name, standing, whole)]);
            let hint = format!("{} writes it, or the SQL that records the slot", writer(context));
            untold = Finding { sql: None, ..untold.hint(hint) };
        }
        // Before the SQL that makes the slot, which is written over it.
        let slot = findings.iter().position(|one| one.code == Code::SlotMissing);
        findings.insert(slot.unwrap_or(findings.len()), untold);
    }
    one_comment(findings, is_claimed_with_it);
}

/// Lets the SQL that makes the slot claim it, too, with all that is to be remembered: only whoever
/// has made it knows whose it is. The comment has to be one of `standing` then. Gives whether
/// there is such SQL.
fn claim_what_is_made(
    postgres: &Postgres,
    findings: &mut [Finding],
    standing: &[&str],
    whole: &Memory,
) -> bool {
    let Postgres { slot, publication, .. } = postgres;
    if whole.claims(slot) {
        return false;
    }
    let makes = |one: &&mut Finding| one.code == Code::SlotMissing && one.sql.is_some();
    let Some(finding) = findings.iter_mut().find(makes) else { return false };
    let claim = cure::claim(publication, slot, standing, whole.clone().with_slot(slot));
    // `setup` knows by itself whether it made the slot.
    let made = finding.steps.iter().map(|step| match step.does {
        Does::CreateSlot => cure::create_slot_marked(postgres),
        _ => step.clone(),
    });
    let steps: Vec<Step> = made.chain([claim]).collect();
    finding.sql = Some(printed(&steps));
    finding.hint = Some(
        "`run` creates it when it starts; or whoever owns the publication does, if that role may \
         replicate"
            .to_owned(),
    );
    true
}

/// Leaves the SQL of one finding that writes the comment: of two that are printed together the
/// second finds it changed. That which makes the slot may be one (`is_written`).
fn one_comment(findings: &mut [Finding], is_written: bool) {
    let writes = |step: &Step| matches!(step.does, Does::Remember(_) | Does::RememberFirst(_));
    let mut writers =
        findings.iter().filter(|one| one.sql.is_some() && one.steps.iter().any(writes));
    let is_due = is_written || writers.any(|one| one.code != Code::SlotGone);
    let mut kept = usize::from(!is_due);
    for one in findings.iter_mut().filter(|one| one.code == Code::SlotGone) {
        if kept == 0 {
            (one.sql, one.steps) = (None, Vec::new());
            let hint = one.hint.take().unwrap_or_default();
            let by_name = hint.split(", or as ").next().unwrap_or_default();
            one.hint = Some(format!(
                "{by_name}; `check` prints its SQL once the other that writes the comment is run"
            ));
        }
        kept = kept.saturating_sub(1);
    }
}

/// That the comment lacks something: a table that is published and that this walsweep needs, or no
/// more than what was done for it.
fn untold(context: &Context<'_>, unknown: Option<&TableName>) -> Finding {
    let name = &context.config.postgres.publication;
    let message = format!(
        "the comment on publication `{name}` does not list all that `setup` changes for it; what \
         it does not list, `teardown` does not undo, nor `setup` for a rule that is taken out"
    );
    let Some(unknown) = unknown else {
        return Finding::info(Code::PublicationMemory, message).done_by_setup();
    };
    let slot = &context.config.postgres.slot;
    let message = format!(
        "{message}; it does not list `{unknown}` for slot `{slot}`: another walsweep with this \
         publication may take the table out, or drop the publication"
    );
    let finding = Finding::warning(Code::PublicationMemory, message).done_by_setup();
    let owner = context.catalog.publication.as_ref().map(|one| one.owner.as_str());
    finding.hint(format!(
        "only `{}`, who owns the publication, and a superuser may write it: {} does that",
        owner.unwrap_or_default(),
        writer(context)
    ))
}

/// The `setup` that may write the comment.
fn writer(context: &Context<'_>) -> String {
    let catalog = context.catalog;
    match &catalog.publication {
        Some(publication) if !catalog.is_superuser && publication.owner != catalog.user => format!(
            "`walsweep setup --as URL` with the login of `{}`, or a superuser's,",
            publication.owner
        ),
        _ => "`walsweep setup`".to_owned(),
    }
}

/// How many slots a comment names, some of them perhaps more than once.
fn count_slots(json: &Value) -> usize {
    let listed = |name: &str| json[name].as_array().map_or(0, Vec::len);
    let with_tables = json["tables"].as_object().map_or(0, serde_json::Map::len);
    with_tables.max(listed("slots")).max(listed("wanted"))
}

/// Whether a text may be the name of a slot (`ReplicationSlotValidateName`, slot.c).
fn is_slot(name: &str) -> bool {
    let is_allowed = |one: u8| one.is_ascii_lowercase() || one.is_ascii_digit() || one == b'_';
    (1..=63).contains(&name.len()) && name.bytes().all(is_allowed)
}

fn name(pair: &Value) -> Option<TableName> {
    let text = |index: usize| pair.get(index)?.as_str().map(str::to_owned);
    Some(TableName { schema: text(0)?, name: text(1)? })
}

fn identity(value: &Value) -> Option<Identity> {
    Some(Identity {
        table: name(&value["table"])?,
        relation: name(&value["relation"])?,
        was: match value["was"].as_str()? {
            "d" => 'd',
            "n" => 'n',
            "i" => 'i',
            _ => return None,
        },
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
        memory.slots.insert("walsweep".to_owned());
        memory.identities.insert(Identity {
            table: table("c"),
            relation: table("c_1"),
            was: 'i',
            index: Some("c_1_key".to_owned()),
        });
        memory.without_heirs = true;
        let comment = memory.comment();
        assert_eq!(Memory::read(Some(&comment)), Some(memory.clone()));
        assert!(memory.has_elsewhere("walsweep", &table("c")));
        assert!(memory.has_elsewhere("other", &table("a\"b")));
        assert!(!memory.has_elsewhere("walsweep", &table("a\"b")));
        assert!(memory.claims("walsweep") && !memory.claims("other"));
    }

    /// A comment of before slots were told apart, and one that tells of none.
    #[test]
    fn a_comment_without_slots_tells_them_by_their_tables_and_an_empty_list_none() {
        let table = "{\"tables\": {\"walsweep\": [[\"s\", \"a\"]]}";
        for (more, is_claimed) in [("}", true), (", \"slots\": []}", false)] {
            let memory = Memory::read(Some(&format!("{SENTENCE}\n{table}{more}"))).unwrap();
            assert_eq!(memory.claims("walsweep"), is_claimed, "{more}");
            assert!(!memory.claims("debezium"));
        }
    }

    /// Whoever owns the publication may have written it.
    #[test]
    fn what_no_walsweep_writes_is_not_believed() {
        let one = |relation: &str, was: &str| {
            format!(
                "{{\"table\":[\"s\",\"t\"],\"relation\":[\"s\",\"{relation}\"],\"was\":\"{was}\"}}"
            )
        };
        let all = [one("twice", "d"), one("twice", "n"), one("odd", "default"), one("t", "n")];
        let tables = "{\"walsweep\":[[\"s\",\"t\"]],\"a\\r\\nb\":[],\"\":[],\"A\":[]}";
        let json = format!("{{\"tables\":{tables},\"identities\":[{}]}}", all.join(","));
        let memory = Memory::read(Some(&format!("{SENTENCE}\n{json}"))).expect("it is ours");
        let relations: Vec<&str> =
            memory.identities.iter().map(|one| one.relation.name.as_str()).collect();
        assert_eq!(relations, ["t"]);
        assert_eq!(memory.tables.keys().collect::<Vec<_>>(), ["walsweep"]);
        assert!(!memory.without_heirs);
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
            (Some(&*format!("{SENTENCE}\n")), true),
            (Some(&*format!("{SENTENCE}, or so they say")), false),
            (Some(&*format!("{SENTENCE}\n{{\"tables\": {{\"a\"")), false),
            (Some(&*format!("{SENTENCE}\n{{\"tables\": 7}}")), true),
        ] {
            let memory = Memory::read(comment);
            assert_eq!(memory.is_some(), is_ours, "{comment:?}");
            let is_begun = comment.is_some_and(|comment| comment.starts_with(SENTENCE));
            assert_eq!(Memory::is_damaged(comment), is_begun && !is_ours, "{comment:?}");
            assert!(memory.is_none_or(|memory| memory == Memory::default()));
        }
    }
}
