//! Files of this repository that documents name are there, and so are the tests in them.

use std::fs;
use std::path::Path;

use super::{assert_none, files};

/// Links of a document to another file of this repository: line, text, path from the root.
fn links(text: &str) -> Vec<(usize, &str, &str)> {
    let mut links = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for (at, _) in line.match_indices("](../") {
            let label = line[..at].rsplit('[').next().unwrap();
            let path = line[at + "](../".len()..].split([')', '#']).next().unwrap();
            links.push((number, label, path));
        }
    }
    links
}

/// Links to a file that is not there, or to a test that the file does not have. `read` gives one.
fn broken_links(path: &str, text: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (line, label, target) in links(text) {
        let test = label.strip_prefix('`').and_then(|label| label.strip_suffix('`'));
        match read(target) {
            None => wrong.push(format!("{path}:{line}: there is no {target}")),
            Some(file) => {
                if test.is_some_and(|test| !file.contains(&format!("fn {test}("))) {
                    wrong.push(format!("{path}:{line}: {target} has no test {label}"));
                }
            }
        }
    }
    wrong
}

#[test]
fn the_documents_name_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |target: &str| fs::read_to_string(root.join(target)).ok();
    let mut count = 0;
    for (path, text) in files("docs", &[".md"]) {
        assert_none(&broken_links(&path, &text, read));
        count += links(&text).iter().filter(|link| link.1.starts_with('`')).count();
    }
    assert!(count > 50, "the documents link {count} tests");
    let file = |target: &str| (target == "a.rs").then(|| "#[test]\nfn one() {}".to_owned());
    assert_none(&broken_links("x", "[`one`](../a.rs), [the file](../a.rs)", file));
    for bad in ["[`two`](../a.rs)", "[`on`](../a.rs)", "[`one`](../b.rs)", "[it](../b.rs)"] {
        assert_eq!(broken_links("x", bad, file).len(), 1, "{bad}");
    }
}
