//! Reads typed values out of a TOML document and collects every problem on the way.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Located, Location, Problem, Script};

/// A document being read.
pub(super) struct Reader<'a> {
    text: &'a str,
    /// Where each line but the first begins: every option asks for its place.
    lines: Vec<usize>,
    env: &'a dyn Fn(&str) -> Option<String>,
    folder: &'a Path,
    /// Problems so far, in the order of their finding.
    pub(super) problems: Vec<Problem>,
}

/// One table of the document, and which of its keys somebody asked for.
pub(super) struct Section<'a, 'i> {
    table: Option<&'a DeTable<'i>>,
    span: Range<usize>,
    path: String,
    known: Vec<&'static str>,
}

/// Keys that earlier versions knew, each with what to do about it.
const GONE: [(&str, &str); 1] =
    [("postgres.narrow", "it is gone: `setup` publishes whole tables; take the line out")];

/// Unknown names at least this similar to a known one are taken for a slip (Jaro-Winkler).
const SLIP_SIMILARITY: f64 = 0.85;

impl<'a> Reader<'a> {
    pub(super) fn new(
        text: &'a str,
        env: &'a dyn Fn(&str) -> Option<String>,
        folder: &'a Path,
    ) -> Reader<'a> {
        let lines = text.match_indices('\n').map(|(newline, _)| newline + 1).collect();
        Reader { text, lines, env, folder, problems: Vec::new() }
    }

    /// The file that a relative path names: it begins where the configuration lies, whatever the
    /// working directory is.
    pub(super) fn beside(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    pub(super) fn problem(&mut self, at: Location, message: String, hint: Option<&str>) {
        self.problems.push(Problem { at, message, hint: hint.map(str::to_owned) });
    }

    /// The place of a byte offset, lines and columns counted from 1, columns in characters.
    pub(super) fn location(&self, offset: usize, key: &str) -> Location {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let lines = self.lines.partition_point(|start| *start <= before.len());
        let line_start = lines.checked_sub(1).map_or(0, |last| self.lines[last]);
        Location {
            line: lines + 1,
            column: before.get(line_start..).map_or(0, |line| line.chars().count()) + 1,
            key: key.to_owned(),
        }
    }

    /// A table of the document's root; an absent one is read as if it were empty.
    pub(super) fn section<'t, 'i>(
        &mut self,
        root: &mut Section<'t, 'i>,
        name: &'static str,
    ) -> Section<'t, 'i> {
        let absent = Section { table: None, span: 0..0, path: name.to_owned(), known: Vec::new() };
        let Some(value) = root.take(name) else { return absent };
        match value.get_ref().as_table() {
            Some(table) => Section { table: Some(table), span: value.span(), ..absent },
            None => {
                self.wrong_type(value, name, "a table");
                absent
            }
        }
    }

    pub(super) fn wrong_type(&mut self, value: &Spanned<DeValue<'_>>, key: &str, wanted: &str) {
        let at = self.location(value.span().start, key);
        let message = format!("expected {wanted}, found {}", article(value.get_ref().type_str()));
        let hint = match wanted {
            "a string" => "put it in quotes",
            "an array of strings" => "put it in brackets: [\"one\", \"other\"]",
            "a boolean" => "write `true` or `false`, without quotes",
            "a number" => "write it without quotes, such as `0.25`",
            _ => "see `config.toml` in the repository for the form of every option",
        };
        self.problem(at, message, Some(hint));
    }

    /// A text, with `${NAME}` replaced.
    pub(super) fn text(
        &mut self,
        section: &mut Section<'_, '_>,
        name: &'static str,
    ) -> Option<Located<String>> {
        let key = section.key(name);
        let value = section.take(name)?;
        self.value_text(value, &key)
    }

    /// A text in another language.
    pub(super) fn script(
        &mut self,
        section: &mut Section<'_, '_>,
        name: &'static str,
    ) -> Option<Script> {
        let Located { value, at } = self.text(section, name)?;
        let span = section.take(name).map_or(0..0, Spanned::span);
        Some(Script::new(value, at, self.text.get(span).unwrap_or_default()))
    }

    /// A text that must be there.
    pub(super) fn required_text(
        &mut self,
        section: &mut Section<'_, '_>,
        name: &'static str,
        hint: &str,
    ) -> Option<Located<String>> {
        if section.has(name) {
            return self.text(section, name);
        }
        section.known.push(name);
        let at = self.location(section.span.start, &section.key(name));
        self.problem(at, "is missing".to_owned(), Some(hint));
        None
    }

    /// A text; an empty one is as good as none.
    pub(super) fn filled_text(
        &mut self,
        section: &mut Section<'_, '_>,
        name: &'static str,
    ) -> Option<Located<String>> {
        self.text(section, name).filter(|text| !text.value.is_empty())
    }

    /// A list of texts, without the items that are none; `None` if it is absent or is no list.
    pub(super) fn texts(
        &mut self,
        section: &mut Section<'_, '_>,
        name: &'static str,
    ) -> Option<Vec<Located<String>>> {
        let key = section.key(name);
        let value = section.take(name)?;
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(value, &key, "an array of strings");
            return None;
        };
        let mut texts = Vec::new();
        for (index, item) in array.iter().enumerate() {
            texts.extend(self.value_text(item, &format!("{key}.{index}")));
        }
        Some(texts)
    }

    /// Like [`Reader::texts`], of a list that must not be empty in the file.
    pub(super) fn filled_texts(
        &mut self,
        section: &mut Section<'_, '_>,
        name: &'static str,
        hint: &str,
    ) -> Option<Vec<Located<String>>> {
        if let Some(value) = section.take(name)
            && value.get_ref().as_array().is_some_and(|array| array.is_empty())
        {
            let at = self.location(value.span().start, &section.key(name));
            self.problem(at, "is empty".to_owned(), Some(hint));
        }
        self.texts(section, name)
    }

    /// A duration between two bounds.
    pub(super) fn duration(
        &mut self,
        section: &mut Section<'_, '_>,
        name: &'static str,
        (default, least, most): (Duration, Duration, Duration),
    ) -> Duration {
        let Some(text) = self.text(section, name) else { return default };
        let hint = "write a number and a unit: `250us`, `1ms`, `2s`, `5m`";
        let Ok(value) = humantime::parse_duration(&text.value) else {
            let message = format!("`{}` is not a duration", text.value);
            self.problem(text.at, message, Some(hint));
            return default;
        };
        if value < least || value > most {
            let bounds = [least, most].map(humantime::format_duration);
            let message =
                format!("`{}` is not between {} and {}", text.value, bounds[0], bounds[1]);
            let hint = format!("leave it out for {}", humantime::format_duration(default));
            self.problem(text.at, message, Some(&hint));
        }
        value
    }

    /// A number of bytes in the units of Postgres's settings, at least `least`; `default` unless
    /// given, empty for none
    /// (<https://www.postgresql.org/docs/current/config-setting.html#CONFIG-SETTING-NAMES-VALUES>).
    pub(super) fn memory(
        &mut self,
        section: &mut Section<'_, '_>,
        name: &'static str,
        (least, default): (u64, u64),
    ) -> Option<u64> {
        let Some(text) = self.text(section, name) else { return Some(default) };
        if text.value.is_empty() {
            return None;
        }
        let hint = "write a number and a unit as Postgres does, such as `64GB`; \"\" is no limit";
        self.bytes(text, least, hint)
    }

    /// Like [`Reader::memory`], of what is never without a limit.
    pub(super) fn limit(
        &mut self,
        section: &mut Section<'_, '_>,
        name: &'static str,
        (least, default): (u64, u64),
    ) -> u64 {
        let Some(text) = self.text(section, name) else { return default };
        let hint = "write a number and a unit, such as `256MB` or `256MiB`";
        self.bytes(text, least, hint).unwrap_or(default)
    }

    fn bytes(&mut self, text: Located<String>, least: u64, hint: &str) -> Option<u64> {
        let bytes = memory(&text.value);
        let message = match bytes {
            None => format!("`{}` is not an amount of memory", text.value),
            Some(bytes) if bytes < least => {
                format!("`{}` is less than {} MB", text.value, least >> 20)
            }
            Some(_) => return bytes,
        };
        self.problem(text.at, message, Some(hint));
        None
    }

    /// A share, from `least` to 1; `default` unless given.
    pub(super) fn share(
        &mut self,
        section: &mut Section<'_, '_>,
        name: &'static str,
        (least, default): (f64, f64),
    ) -> f64 {
        let Some(value) = section.take(name) else { return default };
        let key = section.key(name);
        let text = match value.get_ref() {
            DeValue::Float(float) => Some(float.as_str()),
            DeValue::Integer(integer) => Some(integer.as_str()),
            _ => None,
        };
        let Some(text) = text else {
            self.wrong_type(value, &key, "a number");
            return default;
        };
        match text.parse() {
            Ok(share) if (least..=1.0).contains(&share) => share,
            Ok(_) | Err(_) => {
                let at = self.location(value.span().start, &key);
                let message = format!("`{text}` is not between {least} and 1");
                self.problem(at, message, Some(&format!("leave it out for {default}")));
                default
            }
        }
    }

    /// True or false.
    pub(super) fn flag(
        &mut self,
        section: &mut Section<'_, '_>,
        name: &'static str,
        default: bool,
    ) -> bool {
        let Some(value) = section.take(name) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.wrong_type(value, &section.key(name), "a boolean");
            default
        })
    }

    /// A number of things, 0 unless given.
    pub(super) fn count(&mut self, section: &mut Section<'_, '_>, name: &'static str) -> u32 {
        self.count_or(section, name, 0)
    }

    /// A number of things, `default` unless given.
    pub(super) fn count_or(
        &mut self,
        section: &mut Section<'_, '_>,
        name: &'static str,
        default: u32,
    ) -> u32 {
        let Some(value) = section.take(name) else { return default };
        let key = section.key(name);
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(value, &key, "an integer");
            return default;
        };
        u32::from_str_radix(integer.as_str(), integer.radix()).unwrap_or_else(|_| {
            let at = self.location(value.span().start, &key);
            let message = format!("`{}` is not a number from 0 to {}", integer.as_str(), u32::MAX);
            self.problem(at, message, Some(&format!("leave it out for {default}")));
            default
        })
    }

    /// A text of the file, with `${NAME}` replaced.
    pub(super) fn expanded(&mut self, text: &str, at: Location) -> Option<Located<String>> {
        Some(Located { value: self.interpolate(text, &at)?, at })
    }

    /// A value as a text, with `${NAME}` replaced.
    pub(super) fn value_text(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        key: &str,
    ) -> Option<Located<String>> {
        let at = self.location(value.span().start, key);
        match value.get_ref().as_str() {
            Some(text) => self.expanded(text, at),
            None => {
                self.wrong_type(value, key, "a string");
                None
            }
        }
    }

    /// Replaces `${NAME}` by that environment variable; `$${` stands for `${`.
    fn interpolate(&mut self, text: &str, at: &Location) -> Option<String> {
        let (mut whole, mut rest, mut complete) = (String::new(), text, true);
        while let Some(start) = rest.find("${") {
            let (before, after) = rest.split_at(start);
            let after = after.get(2..).unwrap_or_default();
            if let Some(literal) = before.strip_suffix('$') {
                whole.push_str(literal);
                whole.push_str("${");
                rest = after;
                continue;
            }
            whole.push_str(before);
            let Some((name, tail)) = after.split_once('}') else {
                let hint = Some("close it with `}`, or write `$${` for a literal `${`");
                self.problem(at.clone(), "`${` without `}`".to_owned(), hint);
                return None;
            };
            // What is no name may be half a password: it is not repeated.
            if name.is_empty()
                || !name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
            {
                let hint = Some("name a variable of letters, digits and `_`, or write `$${`");
                self.problem(at.clone(), "`${…}` names no variable".to_owned(), hint);
                return None;
            }
            match (self.env)(name) {
                Some(value) => whole.push_str(&value),
                None => {
                    let message = format!("environment variable `{name}` is not set");
                    let hint = Some("set it, or write `$${` for a literal `${`");
                    self.problem(at.clone(), message, hint);
                    complete = false;
                }
            }
            rest = tail;
        }
        whole.push_str(rest);
        complete.then_some(whole)
    }

    /// Reports every key that nobody asked for.
    pub(super) fn finish(&mut self, section: &Section<'_, '_>) {
        let Some(table) = section.table else { return };
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if section.known.contains(&name) {
                continue;
            }
            let path = section.key(name);
            let at = self.location(key.span().start, &path);
            if let Some((_, hint)) = GONE.iter().find(|(gone, _)| *gone == path) {
                self.problem(at, format!("unknown key `{name}`"), Some(hint));
                continue;
            }
            let hint = match nearest(name, section.known.iter().copied()) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("known here: `{}`", section.known.join("`, `")),
            };
            self.problem(at, format!("unknown key `{name}`"), Some(&hint));
        }
    }
}

impl<'a, 'i> Section<'a, 'i> {
    /// A table as a section; `path` is its dotted key, empty for the root.
    pub(super) fn new(table: &'a DeTable<'i>, span: Range<usize>, path: String) -> Section<'a, 'i> {
        Section { table: Some(table), span, path, known: Vec::new() }
    }

    /// The value of a key, which is known from now on.
    pub(super) fn take(&mut self, name: &'static str) -> Option<&'a Spanned<DeValue<'i>>> {
        if !self.known.contains(&name) {
            self.known.push(name);
        }
        self.table?.get(name)
    }

    /// Whether the key stands in the file.
    pub(super) fn has(&self, name: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(name))
    }

    /// The dotted key of one of its keys.
    pub(super) fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Where the table begins, in bytes.
    pub(super) fn start(&self) -> usize {
        self.span.start
    }
}

/// Bytes of a text such as `64GB` or `64GiB`. Units are powers of 1024, as in Postgres, and their
/// case counts.
fn memory(text: &str) -> Option<u64> {
    let digits = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "B" => 0,
        "kB" | "KiB" => 10,
        "MB" | "MiB" => 20,
        "GB" | "GiB" => 30,
        "TB" | "TiB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The name that another one is probably a slip of.
pub(super) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    known
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(likeness, _)| *likeness >= SLIP_SIMILARITY)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, known)| known)
}

/// A type's name with its article.
fn article(name: &str) -> String {
    let vowel = name.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {name}", if vowel { "an" } else { "a" })
}

#[cfg(test)]
mod tests {
    use super::memory;

    #[test]
    fn memory_has_the_units_of_postgres() {
        for (text, bytes) in [
            ("64GB", Some(64 << 30)),
            ("1 TB", Some(1 << 40)),
            ("256MiB", Some(256 << 20)),
            ("7B", Some(7)),
            ("16384kB", Some(1 << 24)),
            ("100", None),
            ("64gb", None),
            ("1.5GB", None),
            ("GB", None),
            ("99999999999TB", None),
            ("", None),
        ] {
            assert_eq!(memory(text), bytes, "{text}");
        }
    }
}
