//! The program says what the README and the runbook quote of it.

use super::{assert_none, product, root_file};

/// Texts that are put together while it runs, from parts that stand apart in the code; the last is
/// the system's.
const COMPOSED: &[&str] = &[
    "sweeping keys of rule",
    "the connection to redis is lost",
    "the session with postgres ended soon, again and again",
    "since then the session with postgres ended",
    "nothing is confirmed, for redis at",
    "redis answered MISCONF",
    "Address already in use",
];

/// The parts of what the first column of the table of troubles quotes; `…` stands for whatever.
fn quoted(readme: &str) -> Vec<String> {
    let section = readme.split("\n## When something is wrong\n").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.split('|').next());
    let mut parts = Vec::new();
    for cell in cells {
        // Two backticks around a text that has some.
        let (mark, cell) = match cell.trim() {
            cell if cell.starts_with("``") => ("``", cell),
            cell => ("`", cell),
        };
        for text in cell.split(mark).skip(1).step_by(2) {
            let own = text.split('…').map(|part| part.trim_matches([' ', '`']));
            let own = own.map(|part| part.strip_prefix("walsweep_").unwrap_or(part));
            parts.extend(own.filter(|part| part.len() > 2).map(str::to_owned));
        }
    }
    parts
}

/// Code with each text in one line, also one that goes on in the next.
fn joined(code: &str) -> String {
    code.split("\\\n").map(str::trim_start).collect()
}

/// Quotes that stand nowhere in this code.
fn unsaid(readme: &str, code: &str) -> Vec<String> {
    let code = joined(code);
    let is_unsaid = |part: &String| !code.contains(part) && !COMPOSED.contains(&part.as_str());
    quoted(readme)
        .into_iter()
        .filter(is_unsaid)
        .map(|part| format!("nothing says `{part}`"))
        .collect()
}

/// Lines of the log and of `/readyz` that the runbook shows.
fn shown(runbook: &str) -> Vec<&str> {
    let (mut lines, mut is_shown) = (Vec::new(), false);
    for line in runbook.lines().map(str::trim) {
        if line.starts_with("```") {
            is_shown = line == "```text";
        } else if is_shown {
            lines.push(line.strip_prefix("hint: ").unwrap_or(line));
        }
    }
    lines
}

/// The longest run of words in a line, without names, numbers and fields.
fn longest_words(line: &str) -> &str {
    let is_word = |one: char| one.is_ascii_alphabetic() || " ',".contains(one);
    let runs = line.split_inclusive(|one: char| !is_word(one)).map(|run| {
        // The name of a field stands before its `=`.
        let words = run.strip_suffix('=').map(|run| run.rsplit_once(' ').unwrap_or_default().0);
        words.unwrap_or(run).trim_matches(|one: char| !is_word(one)).trim_matches([' ', ',', '\''])
    });
    runs.max_by_key(|run| run.len()).unwrap_or_default()
}

/// Lines that the runbook shows and this code does not say. The first word may be a name.
fn unsaid_lines(runbook: &str, code: &str) -> Vec<String> {
    let code = joined(code);
    let is_said = |words: &str| {
        let rest = words.split_once(' ').map_or(words, |(_name, rest)| rest);
        code.contains(words) || code.contains(rest) || COMPOSED.contains(&words)
    };
    let lines = shown(runbook).into_iter().map(longest_words);
    lines.filter(|words| !is_said(words)).map(|words| format!("nothing says `{words}`")).collect()
}

#[test]
fn the_runbook_shows_what_the_program_says() {
    let code: String = product().into_iter().map(|source| source.text).collect();
    let runbook = root_file("docs/runbook.md");
    assert!(shown(&runbook).len() > 30, "{:?}", shown(&runbook));
    assert_none(&unsaid_lines(&runbook, &code));
    let page = "```text\nredis at 10.0.0.1:1 refuses it all: OOM\n  hint: free `x` at once\n```\n\
                ```console\n$ ls\n```\n\
                   ```text\n   swept reason=\"a b c d e f\" keys=0\n   ```\n";
    let words: Vec<&str> = shown(page).into_iter().map(longest_words).collect();
    assert_eq!(words, ["refuses it all", "at once", "a b c d e f"]);
    assert_none(&unsaid_lines(page, "\"{title} refuses it \\\n  all\", at once, a b c d e f"));
    assert_eq!(unsaid_lines(page, "refuses it, at last, b c d e f").len(), 2);
}

#[test]
fn the_troubles_of_the_readme_are_in_the_words_of_the_program() {
    let code: String = product().into_iter().map(|source| source.text).collect();
    let readme = root_file("README.md");
    assert!(quoted(&readme).len() > 30, "{:?}", quoted(&readme));
    assert_none(&unsaid(&readme, &code));
    let table = "\n## When something is wrong\n\n| you see | it means |\n| --- | --- |\n\
                 | `rule … goes`, ``lookup `…` fails`` | x |\n\n## Speed\n| `other` |\n";
    assert_eq!(quoted(table), ["rule", "goes"]);
    let wide = table.replace("`rule … goes`, ", "");
    assert_eq!(quoted(&wide), ["lookup", "fails"]);
    assert_none(&unsaid(table, "f(\"the rule \\\n   {name} goes on\")"));
    assert_eq!(unsaid(table, "f(\"rule\")").len(), 1);
}
