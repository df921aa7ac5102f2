//! `keys`, `tags` and `fields` of a rule: the names of what it removes, unparsed.

use toml::de::DeTable;

use super::reader::{Reader, Section};
use super::{Fields, Located};

/// The texts of a rule's templates.
pub(super) struct Templates {
    pub(super) keys: Vec<Located<String>>,
    pub(super) tags: Vec<Located<String>>,
    pub(super) fields: Vec<Fields>,
}

const KEYS: &str = "list the key templates, such as [\"user:{id}\"]";
const TAGS: &str = "list templates of sets whose members are keys, such as [\"tag:user:{id}\"]";
const FIELDS: &str =
    "name hashes and their fields, such as { \"user:{id}\" = [\"name\", \"stats:*\"] }";

/// Reads them; `None` if nothing is left, since every item is a problem of its own.
pub(super) fn templates(
    reader: &mut Reader<'_>,
    section: &mut Section<'_, '_>,
) -> Option<Templates> {
    let is_there = ["keys", "tags", "fields"].map(|name| section.has(name));
    if !is_there.contains(&true) {
        let at = reader.location(section.start(), &section.key("keys"));
        reader.problem(at, "is missing".to_owned(), Some(KEYS));
    }
    let keys = reader.filled_texts(section, "keys", KEYS).unwrap_or_default();
    let tags = reader.filled_texts(section, "tags", TAGS).unwrap_or_default();
    let fields = fields(reader, section);
    let has_some = !keys.is_empty() || !tags.is_empty() || !fields.is_empty();
    has_some.then_some(Templates { keys, tags, fields })
}

/// `fields`: a table, in which each hash has a list of fields.
fn fields(reader: &mut Reader<'_>, section: &mut Section<'_, '_>) -> Vec<Fields> {
    let path = section.key("fields");
    let Some(value) = section.take("fields") else { return Vec::new() };
    let Some(table) = value.get_ref().as_table() else {
        let at = reader.location(value.span().start, &path);
        reader.problem(at, "is not a table".to_owned(), Some(FIELDS));
        return Vec::new();
    };
    if table.is_empty() {
        let at = reader.location(value.span().start, &path);
        reader.problem(at, "is empty".to_owned(), Some(FIELDS));
    }
    entries(reader, table, &path)
}

fn entries(reader: &mut Reader<'_>, table: &DeTable<'_>, path: &str) -> Vec<Fields> {
    let mut entries = Vec::new();
    for (name, list) in table {
        let of_list = format!("{path}.{}", name.get_ref());
        let at = reader.location(name.span().start, &of_list);
        let key = reader.expanded(name.get_ref(), at);
        let Some(array) = list.get_ref().as_array() else {
            reader.wrong_type(list, &of_list, "an array of strings");
            continue;
        };
        if array.is_empty() {
            let at = reader.location(list.span().start, &of_list);
            reader.problem(at, "is empty".to_owned(), Some(FIELDS));
        }
        let texts = array.iter().enumerate();
        let fields: Vec<_> = texts
            .filter_map(|(at, text)| reader.value_text(text, &format!("{of_list}.{at}")))
            .collect();
        entries.extend(key.filter(|_| !fields.is_empty()).map(|key| Fields { key, fields }));
    }
    // A table of TOML has its keys in the order of the alphabet.
    entries.sort_by(|one, other| one.key.at.cmp(&other.key.at));
    entries
}
