//! Doc comments name their thing first: a verb, or a noun, and no riddle. A count has a noun that
//! fits.

use super::source::Source;
use super::{assert_none, files};

/// Nouns of which there may be one.
const PLURALS: [&str; 22] = [
    "bytes",
    "changes",
    "columns",
    "commits",
    "errors",
    "hosts",
    "keys",
    "lines",
    "messages",
    "names",
    "nodes",
    "patterns",
    "problems",
    "replicas",
    "rows",
    "rules",
    "servers",
    "tables",
    "targets",
    "times",
    "transactions",
    "warnings",
];

/// Texts with a number in front that is never one, or is no count of the noun behind it.
const NEVER_ONE: [&str; 8] = [
    // Told in steps of thousands.
    "\\r{scanned} keys scanned, {matched} matched",
    "\\r{} keys scanned",
    // A constant, and what is too much.
    "there are more than {} targets",
    "a message of {0} bytes, more than",
    // "1 of 8 keys".
    "SCAN shows {missed} of {of} keys not",
    // The number is of a share.
    "with `sweep.max_load` {max_load} patterns go",
    // The whole site of the demonstration, and all that it does.
    "{keys} keys cached",
    "{} transactions: {} went",
];

/// Openings that put the reader off to the end of the sentence.
const RIDDLES: [&str; 2] = ["What ", "The same"];

/// Doc comments that open with a riddle.
fn riddles(path: &str, text: &str) -> Vec<String> {
    let (mut wrong, mut before) = (Vec::new(), "");
    for (at, line) in text.lines().map(str::trim).enumerate() {
        let of = |mark: &str| line.strip_prefix(mark).filter(|_| !before.starts_with(mark));
        let opening = of("///").or_else(|| of("//!")).unwrap_or_default().trim_start();
        if RIDDLES.iter().any(|riddle| opening.starts_with(riddle)) {
            wrong.push(format!("{path}:{}: say first which thing it is: {opening}", at + 1));
        }
        before = line;
    }
    wrong
}

#[test]
fn doc_comments_open_with_their_thing() {
    let folders = ["src", "crates", "tests"].into_iter();
    let all = folders.flat_map(|folder| files(folder, &[".rs"]));
    assert_none(&all.flat_map(|(path, text)| riddles(&path, &text)).collect::<Vec<_>>());
    for (text, count) in [
        ("/// What it is.\nfn f() {}", 1),
        ("    /// The same without it.\n", 1),
        ("//! What a file is.\n", 1),
        ("/// Gives\n/// What it has, and\n/// The same again.\n", 0),
        ("/// Whatever.\n// What a remark says.\n/// The sum.\n", 0),
    ] {
        assert_eq!(riddles("src/x.rs", text).len(), count, "{text}");
    }
}

/// Texts that put a number before a noun in the plural: one would be "1 keys".
fn unfit_plurals(path: &str, text: &str) -> Vec<String> {
    let source = Source::new(path, text);
    if source.is_test() {
        return Vec::new();
    }
    let attributes = text.lines().enumerate().filter(|(_, line)| line.contains("#[error("));
    let attributes = attributes.map(|(at, line)| (at + 1, line.to_owned()));
    let is_wrong = |text: &str| {
        let parts = text.split("} ").collect::<Vec<_>>();
        parts.windows(2).any(|pair| {
            let (before, rest) = (pair[0], pair[1]);
            // A constant is known to be more than one, and "1.0 keys" is right.
            let name = before.rsplit('{').next().unwrap_or_default();
            let is_constant = |name: &str| name.chars().all(|one| one.is_uppercase() || one == '_');
            if (!name.is_empty() && is_constant(name)) || name.contains(":.") {
                return false;
            }
            let rest = rest.strip_prefix("more ").unwrap_or(rest);
            let word = rest.split(|one: char| !one.is_alphanumeric()).next().unwrap_or_default();
            PLURALS.contains(&word)
        }) && !NEVER_ONE.iter().any(|known| text.contains(known))
    };
    let texts = source.strings.iter().cloned().chain(attributes);
    let wrong = texts.filter(|(_, text)| is_wrong(text));
    wrong.map(|(line, text)| format!("{path}:{line}: `words::counted` it: {text}")).collect()
}

#[test]
fn a_count_has_a_noun_that_fits() {
    let all: Vec<(String, String)> =
        ["src", "crates"].into_iter().flat_map(|folder| files(folder, &[".rs"])).collect();
    let wrong = all.iter().flat_map(|(path, text)| unfit_plurals(path, text));
    assert_none(&wrong.collect::<Vec<_>>());
    for known in NEVER_ONE {
        assert!(all.iter().any(|(_, text)| text.contains(known)), "nothing says `{known}`");
    }
    for (text, count) in [
        ("fn f() { say(format!(\"{count} keys\")); }", 1),
        ("fn f() { say(format!(\"and {} more rules: {}\", 1, 2)); }", 1),
        ("enum E { #[error(\"{left} bytes left\")] Left { left: u8 } }", 1),
        ("fn f() { say(format!(\"{} of rule\", counted(1, \"key\"))); }", 0),
        ("#[cfg(test)]\nmod tests { fn f() { say(\"{} keys\"); } }", 0),
    ] {
        assert_eq!(unfit_plurals("src/x.rs", text).len(), count, "{text}");
    }
}
