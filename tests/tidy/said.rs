//! The program says what the README quotes of it.

use super::{assert_none, product, root_file};

/// Texts that are put together while it runs, from parts that stand apart in the code.
const COMPOSED: &[&str] = &["sweeping keys of rule"];

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

/// Quotes that stand nowhere in this code.
fn unsaid(readme: &str, code: &str) -> Vec<String> {
    // A text that goes on in the next line.
    let lines = code.split("\\\n").map(str::trim_start);
    let code = lines.collect::<String>();
    let is_unsaid = |part: &String| !code.contains(part) && !COMPOSED.contains(&part.as_str());
    quoted(readme)
        .into_iter()
        .filter(is_unsaid)
        .map(|part| format!("nothing says `{part}`"))
        .collect()
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
