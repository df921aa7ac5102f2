//! The names that walsweep's own SQL calls, read off its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

#[path = "../../tidy/source.rs"]
#[allow(dead_code, reason = "the style test needs all of it")]
mod source;

use self::source::Source;

/// Everything that SQL calls: each may exist, or be a word that looks like it.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    /// Names before a parenthesis, and how many arguments each was given.
    pub(crate) functions: BTreeMap<String, BTreeSet<usize>>,
    /// Operators, also those that a keyword stands for.
    pub(crate) operators: BTreeSet<String>,
    /// Names behind `::`.
    pub(crate) types: BTreeSet<String>,
    /// All other names: tables and views are among them.
    pub(crate) names: BTreeSet<String>,
}

impl Calls {
    /// Gives the calls of all files of `sql/`, but those of the demo's site, and of every text of
    /// `src/`.
    pub(crate) fn of_the_program() -> Calls {
        let mut calls = Calls::default();
        for folder in ["sql", "sql/setup"] {
            for (_, text) in files(Path::new(folder), "sql") {
                calls.read(&text);
            }
        }
        let mut folders = vec![Path::new("src").to_owned()];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
            folders.extend(entries.filter(|path| path.is_dir()));
            for (path, text) in files(&folder, "rs") {
                for (_, string) in Source::new(&path, &text).strings {
                    calls.read(&string);
                }
            }
        }
        calls
    }

    fn read(&mut self, text: &str) {
        let tokens = tokens(text);
        for (at, token) in tokens.iter().enumerate() {
            let before = at.checked_sub(1).map_or("", |before| tokens[before].as_str());
            let after = tokens.get(at + 1).map_or("", String::as_str);
            match token.as_str() {
                "in" => self.operators.extend(["=".to_owned()]),
                "like" => self.operators.extend(["~~".to_owned(), "!~~".to_owned()]),
                "between" => self.operators.extend(["<=".to_owned(), ">=".to_owned()]),
                _ => {}
            }
            if is_operator(token) {
                self.operators.insert(token.clone());
            } else if is_name(token) && before == "::" {
                self.types.insert(token.clone());
            } else if is_name(token) && after == "(" {
                let count = arguments(&tokens[at + 1..]);
                self.functions.entry(token.clone()).or_default().insert(count);
            } else if is_name(token) {
                self.names.insert(token.clone());
            }
        }
    }
}

/// The files of a folder whose names end so, with their texts.
fn files(folder: &Path, ending: &str) -> Vec<(String, String)> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let wanted = paths.filter(|path| path.extension().is_some_and(|found| found == ending));
    let read =
        |path: std::path::PathBuf| (path.display().to_string(), fs::read_to_string(&path).unwrap());
    wanted.map(read).collect()
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
}

fn is_operator(token: &str) -> bool {
    token.chars().all(|one| "+-*/<>=~!@#%^&|`?".contains(one)) && token != "*"
}

/// How many arguments stand between the parenthesis that `tokens` begin with and its end.
fn arguments(tokens: &[String]) -> usize {
    if tokens.get(1).is_some_and(|token| token == ")") {
        return 0;
    }
    let (mut depth, mut count) = (0, 1);
    for token in tokens {
        match token.as_str() {
            "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            "," if depth == 1 => count += 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    count
}

/// Words, operators and single other characters; a text or a placeholder is one token, comments are
/// none.
fn tokens(text: &str) -> Vec<String> {
    let operator = |one: char| "+-*/<>=~!@#%^&|`?".contains(one);
    let word = |one: char| one.is_ascii_alphanumeric() || one == '_';
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("--") {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
            continue;
        } else if first == '\'' {
            rest[1..].find('\'').map_or(rest.len(), |end| end + 2)
        } else if first == '{' {
            rest.find('}').map_or(rest.len(), |end| end + 1)
        } else if word(first) {
            rest.find(|one| !word(one)).unwrap_or(rest.len())
        } else if operator(first) {
            rest.find(|one| !operator(one)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        if !first.is_whitespace() {
            tokens.push(rest[..length].to_owned());
        }
        rest = &rest[length..];
    }
    tokens
}

#[test]
fn calls_are_read_off_a_statement() {
    let mut calls = Calls::default();
    calls.read(
        "-- not(this)\nselect f(a, g(1, 'h(x)'), array[1, 2])::kind || {column} -- nor(this)\n\
         from pg_class where name not like 'x' and b->>'c' <> {d}",
    );
    let functions: Vec<String> =
        calls.functions.iter().map(|(name, counts)| format!("{name} {counts:?}")).collect();
    assert_eq!(functions, ["f {3}", "g {2}"]);
    let operators: Vec<&str> = calls.operators.iter().map(String::as_str).collect();
    assert_eq!(operators, ["!~~", "->>", "<>", "||", "~~"]);
    assert_eq!(calls.types.iter().map(String::as_str).collect::<Vec<_>>(), ["kind"]);
    assert!(calls.names.contains("pg_class"));
    let all = Calls::of_the_program();
    for name in ["concat_ws", "pg_current_snapshot", "set_config", "pg_logical_emit_message"] {
        assert!(all.functions.contains_key(name), "{name}");
    }
    assert!(all.functions["concat_ws"].contains(&3), "of xmin and xmin");
    assert!(all.operators.contains("->>") && all.types.contains("xid8"));
}
