//! The `[lookup.NAME]` tables of the configuration.

use std::collections::HashSet;

use super::reader::{Reader, Section};
use super::{Located, Lookup, LookupRows, Missing};

/// A placeholder `{old.x}` means a row version, so no lookup has these names.
const RESERVED: [&str; 2] = ["old", "new"];

/// Answers kept of a lookup, unless the file says otherwise: some 3 MB of short rows.
const CACHE: u32 = 10_000;

/// The most rows of one answer, unless the file says otherwise.
const LIMIT: u32 = 1_000;

/// The largest `limit`: a key for each of more rows costs Redis as much as one pass for all.
const LIMIT_MOST: u32 = 10_000;

/// Every lookup, in the order of the names; what one lacks is a problem, and filled in.
pub(super) fn read(reader: &mut Reader<'_>, root: &mut Section<'_, '_>) -> Vec<Lookup> {
    let Some(value) = root.take("lookup") else { return Vec::new() };
    let Some(table) = value.get_ref().as_table() else {
        reader.wrong_type(value, "lookup", "tables, written `[lookup.NAME]`");
        return Vec::new();
    };
    let mut lookups = Vec::new();
    for (name, value) in table {
        let path = format!("lookup.{}", name.get_ref());
        let Some(inner) = value.get_ref().as_table() else {
            reader.wrong_type(value, &path, "a table");
            continue;
        };
        let at = reader.location(name.span().start, &path);
        let mut section = Section::new(inner, value.span(), path);
        let lookup = lookup(reader, &mut section, (name.get_ref(), at));
        reader.finish(&section);
        lookups.push(lookup);
    }
    lookups
}

fn lookup(
    reader: &mut Reader<'_>,
    section: &mut Section<'_, '_>,
    (name, at): (&str, super::Location),
) -> Lookup {
    let is_word = |byte: u8| byte == b'_' || byte.is_ascii_alphanumeric();
    if name.is_empty() || name.len() > 64 || !name.bytes().all(is_word) {
        let message = format!("`{name}` is not a lookup name");
        reader.problem(at.clone(), message, Some("use 1 to 64 letters, digits and `_`"));
    } else if RESERVED.contains(&name) {
        let message = format!("`{name}` is a row version, not a lookup name");
        reader.problem(at.clone(), message, Some("choose another name, such as that of the table"));
    }
    let hint =
        "write one query that reads a row by key, such as `select name from team where id = $1`";
    let sql = reader.required_text(section, "sql", hint);
    if let Some(empty) = sql.as_ref().filter(|sql| sql.value.trim().is_empty()) {
        reader.problem(empty.at.clone(), "is empty".to_owned(), Some(hint));
    }
    let hint = "list the columns of the change whose values are `$1`, `$2` and so on";
    if !section.has("params") {
        let at = reader.location(section.start(), &section.key("params"));
        reader.problem(at, "is missing".to_owned(), Some(hint));
    }
    let params = reader.filled_texts(section, "params", hint).unwrap_or_default();
    twice(reader, &params);
    let sql = sql.unwrap_or_else(|| Located { value: String::new(), at: at.clone() });
    let cache = reader.count_or(section, "cache", CACHE);
    let cache = usize::try_from(cache).unwrap_or(usize::MAX);
    let (rows, limit, missing) = rows(reader, section);
    Lookup { name: name.to_owned(), at, sql, params, cache, rows, limit, missing }
}

/// How many rows are meant, and what becomes of too many and of none.
fn rows(reader: &mut Reader<'_>, section: &mut Section<'_, '_>) -> (LookupRows, usize, Missing) {
    let rows = reader.text(section, "rows");
    let rows = rows.map_or(LookupRows::One, |text| match text.value.as_str() {
        "one" => LookupRows::One,
        "many" => LookupRows::Many,
        other => {
            let message = format!("`{other}` is not a number of rows");
            reader.problem(text.at, message, Some("write `one` or `many`"));
            LookupRows::One
        }
    });
    let missing = reader.text(section, "missing");
    let missing_at = missing.as_ref().map(|text| text.at.clone());
    let missing = missing.map_or(Missing::Widen, |text| match text.value.as_str() {
        "widen" => Missing::Widen,
        "skip" => Missing::Skip,
        other => {
            let message = format!("`{other}` is not what becomes of a key");
            reader.problem(text.at, message, Some("write `widen` or `skip`"));
            Missing::Widen
        }
    });
    if let (LookupRows::Many, Some(at)) = (rows, missing_at) {
        let hint = "leave it out: with `rows = \"many\"` no row gives no key";
        reader.problem(at, "is for lookups of one row".to_owned(), Some(hint));
    }
    let at = section.take("limit").map(|value| value.span().start);
    let at = at.map(|start| reader.location(start, &section.key("limit")));
    let limit = reader.count_or(section, "limit", LIMIT);
    if let Some(at) = at {
        if rows == LookupRows::One {
            let hint = "leave it out, or write `rows = \"many\"`";
            reader.problem(at, "is for lookups of many rows".to_owned(), Some(hint));
        } else if !(1..=LIMIT_MOST).contains(&limit) {
            let message = format!("`{limit}` is not a number from 1 to {LIMIT_MOST}");
            reader.problem(at, message, Some("leave it out for 1000"));
        }
    }
    (rows, usize::try_from(limit).unwrap_or(usize::MAX), missing)
}

/// One column may be one parameter: SQL names `$1` as often as it likes.
fn twice(reader: &mut Reader<'_>, params: &[Located<String>]) {
    let mut seen = HashSet::new();
    for param in params {
        if !seen.insert(&param.value) {
            let message = format!("`{}` is named twice", param.value);
            let hint = "name it once, and its `$` number as often as needed";
            reader.problem(param.at.clone(), message, Some(hint));
        }
    }
}
