//! Concepts that stand behind a seam: few files know them, and a new one says why it must.

use super::source::Source;
use super::{assert_none, product};

/// A concept: its types, the folder in which those names are its own, and the files that know them.
struct Seam {
    types: &'static [&'static str],
    folder: &'static str,
    files: &'static [&'static str],
}

/// Of these, none threads through the stages.
const SEAMS: [Seam; 3] = [
    // Keys that go while their transaction is still being sent: the stream asks and releases, the
    // gate answers, rows are read ahead; to all others they are keys that come again.
    Seam {
        types: &["Early"],
        folder: "src/",
        files: &[
            "src/run/stream/early.rs",
            "src/settle/gate/early.rs",
            "src/settle/gate/mod.rs",
            "src/settle/lookup/ahead.rs",
            "src/settle/mod.rs",
            "src/settle/replay/mod.rs",
            "src/sweep/job.rs",
        ],
    },
    // Kept answers of lookups: the stream notes what changes them, the lookups use them.
    Seam {
        types: &["Cache"],
        folder: "src/",
        files: &[
            "src/run/program.rs",
            "src/run/stream/mod.rs",
            "src/run/stream/noted.rs",
            "src/settle/lookup/cache.rs",
            "src/settle/lookup/mod.rs",
            "src/settle/lookup/waiting.rs",
            "src/settle/mod.rs",
        ],
    },
    // Which keys were written again: the node hears it, the second removal asks.
    Seam {
        types: &["Mark", "Observer"],
        folder: "src/sweep/",
        files: &[
            "src/sweep/mod.rs",
            "src/sweep/redis/node.rs",
            "src/sweep/redis/observe.rs",
            "src/sweep/redis/standalone/mod.rs",
            "src/sweep/redis/standalone/observed.rs",
            "src/sweep/redis/tracking.rs",
            "src/sweep/second.rs",
        ],
    },
];

impl Seam {
    /// Whether a file names one of the types.
    fn is_known_to(&self, source: &Source) -> bool {
        let mut words = source.code.split(|one: char| !one.is_alphanumeric() && one != '_');
        source.path.starts_with(self.folder) && words.any(|word| self.types.contains(&word))
    }

    /// Files that know it and are not listed, and files that are listed and do not.
    fn wrong(&self, sources: &[Source]) -> Vec<String> {
        let knows = |path: &str| {
            sources.iter().any(|source| source.path == path && self.is_known_to(source))
        };
        let more = sources.iter().filter(|source| self.is_known_to(source));
        let more = more.map(|source| source.path.as_str());
        let more = more.filter(|path| !self.files.contains(path));
        let gone = self.files.iter().copied().filter(|path| !knows(path));
        more.chain(gone).map(|path| format!("{path}: the seam of {:?}", self.types)).collect()
    }
}

#[test]
fn a_concept_behind_a_seam_is_known_to_few() {
    let sources = product();
    assert_none(&SEAMS.iter().flat_map(|seam| seam.wrong(&sources)).collect::<Vec<_>>());
    let seam = Seam { types: &["Early"], folder: "src/", files: &["src/one.rs"] };
    let one = Source::new("src/one.rs", "use crate::settle::Early;");
    assert_none(&seam.wrong(std::slice::from_ref(&one)));
    for (path, text, count) in [
        ("src/other.rs", "match cause { Cause::Early(_) => {} }", 1),
        ("src/other.rs", "// Early\nfn early() -> Earlier {}", 0),
        ("tests/other.rs", "use walsweep::settle::Early;", 0),
    ] {
        let other = Source::new(path, text);
        assert_eq!(seam.wrong(&[one.clone(), other]).len(), count, "{path}: {text}");
    }
    assert_eq!(seam.wrong(&[]).len(), 1, "the listed file does not know it any more");
}
