//! Doc comments name their thing first: a verb, or a noun, and no riddle.

use super::{assert_none, files};

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
