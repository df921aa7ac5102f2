//! The shape of the tree: folders within folders, files that somebody compiles, suites of tests.

use std::collections::{BTreeMap, BTreeSet};

use super::source::Source;
use super::{assert_none, files, root_file, sources};

/// The folders within each folder, in order: one imports from those before it only, also by a name
/// that the folder around them hands on. `FLOORS` has the folders around them.
const NESTED: [(&str, &[&str]); 9] = [
    ("crates/stage/src", &["throwaway", "demo"]),
    ("src/command", &["explain", "coverage", "status", "probe", "why"]),
    ("src/keys", &["condition", "set", "lookup"]),
    ("src/run", &["stream"]),
    ("src/settle", &["gate", "lookup", "replay"]),
    ("src/source", &["slot_health"]),
    ("src/sweep", &["proof", "redis"]),
    ("src/sweep/redis", &["index", "standalone", "cluster"]),
    ("src/telemetry", &["trail", "status", "page"]),
];

/// Files of tests that more than one program compiles, by `#[path]`.
const SHARED: [&str; 2] = ["tests/support/certificates.rs", "tests/support/mod.rs"];

/// Programs of another workspace, each file one.
const FUZZ_TARGETS: &str = "tests/fuzz/fuzz_targets/";

/// The module of a folder, such as `crate::keys` of `src/keys`.
fn module(folder: &str) -> String {
    let inner = folder.split_once("src").map_or(folder, |(_, inner)| inner);
    format!("crate{}", inner.replace('/', "::"))
}

/// The folder and the rest of a path that lies in it.
fn below<'a>(path: &'a str, folder: &str, separator: &str) -> Option<&'a str> {
    path.strip_prefix(folder)?.strip_prefix(separator)
}

/// Names that a folder hands on from those within it, each with the inner folder.
fn handed_on(sources: &[Source]) -> BTreeMap<(&'static str, String), &'static str> {
    let mut names = BTreeMap::new();
    for (folder, order) in NESTED {
        let of_folder = |source: &&Source| {
            ["mod.rs", "lib.rs"].iter().any(|file| below(&source.path, folder, "/") == Some(file))
        };
        for (_, path) in sources.iter().filter(of_folder).flat_map(Source::paths) {
            let path = below(&path, &module(folder), "::").unwrap_or(&path);
            let Some((first, rest)) = path.split_once("::") else { continue };
            if let Some(inner) = order.iter().find(|inner| **inner == first) {
                let name = rest.rsplit("::").next().unwrap_or(rest);
                names.insert((folder, name.to_owned()), *inner);
            }
        }
    }
    names
}

/// Imports of a later folder within the same one.
fn imports_out_of_order(sources: &[Source]) -> Vec<String> {
    let names = handed_on(sources);
    let mut wrong = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        for (folder, order) in NESTED {
            let place = |inner: &str| order.iter().position(|one| *one == inner);
            let inner = below(&source.path, folder, "/").and_then(|rest| rest.split_once('/'));
            let Some(own) = inner.and_then(|(inner, _)| place(inner)) else { continue };
            for (line, path) in source.paths() {
                let Some(rest) = below(&path, &module(folder), "::") else { continue };
                let name = rest.split("::").next().unwrap_or(rest);
                let other = names.get(&(folder, name.to_owned())).copied().unwrap_or(name);
                if place(other).is_some_and(|other| other > own) {
                    wrong.push(format!("{}:{line}: {path} is of `{other}`", source.path));
                }
            }
        }
    }
    wrong
}

/// Folders within a folder that have no place in `NESTED`, and places without a folder.
fn misplaced(paths: &[&str]) -> Vec<String> {
    let mut found: BTreeSet<(&str, &str)> = BTreeSet::new();
    for path in paths {
        let mut folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        while let Some((around, inner)) = folder.rsplit_once('/') {
            if around.starts_with("src/") || around.ends_with("/src") {
                found.insert((around, inner));
            }
            folder = around;
        }
    }
    let placed = NESTED.iter().flat_map(|(folder, order)| order.iter().map(|one| (*folder, *one)));
    let placed: BTreeSet<(&str, &str)> = placed.collect();
    let wrong = found.symmetric_difference(&placed);
    wrong.map(|(folder, inner)| format!("`{folder}/{inner}` and `NESTED` differ")).collect()
}

/// The folder whose file declares this one as a module, and the module's name; none for the root of
/// a program or a library, and for what is shared.
fn declared_in(path: &str) -> Option<(&str, &str)> {
    let (folder, file) = path.rsplit_once('/')?;
    let is_root = match file {
        "main.rs" => true,
        "lib.rs" => folder.ends_with("src"),
        _ => path.starts_with(FUZZ_TARGETS) || SHARED.contains(&path),
    };
    match file {
        _ if is_root => None,
        "mod.rs" => folder.rsplit_once('/'),
        file => Some((folder, file.strip_suffix(".rs")?)),
    }
}

/// Files that no file of their folder declares: nothing compiles them, or `#[path]` hides where.
fn undeclared(sources: &[Source]) -> Vec<String> {
    let declares = |source: &Source, (folder, module): (&str, &str)| {
        let file = below(&source.path, folder, "/").unwrap_or_default();
        let own = format!("mod {module};");
        ["mod.rs", "lib.rs", "main.rs"].contains(&file)
            && source
                .text
                .lines()
                .any(|line| line.strip_suffix(&own).is_some_and(|before| !before.starts_with("//")))
    };
    let mut wrong = Vec::new();
    for source in sources {
        let Some(place) = declared_in(&source.path) else { continue };
        if !sources.iter().any(|other| declares(other, place)) {
            wrong.push(format!("{}: nothing in {} declares it", source.path, place.0));
        }
    }
    wrong
}

/// A `#[path]` in the product, or one of tests that does not lead to another folder; and tests
/// beside the code whose file does not say that it is of tests.
fn modules_stand_where_their_name_says(source: &Source) -> Vec<String> {
    let is_of_tests = source.path.starts_with("tests/");
    let mut wrong = Vec::new();
    let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
    for (number, line) in (1..).zip(&lines) {
        let leads = line.strip_prefix("#[path = \"");
        if leads.is_some_and(|path| !is_of_tests || !path.starts_with("../")) {
            wrong.push(format!("{}:{number}: `#[path]`", source.path));
        }
    }
    for (number, pair) in (1..).zip(lines.windows(2)) {
        let ["#[cfg(test)]", declared] = pair else { continue };
        let Some((_, name)) = declared.strip_suffix(';').and_then(|line| line.rsplit_once("mod "))
        else {
            continue;
        };
        if !is_of_tests && !name.ends_with("tests") {
            wrong.push(format!("{}:{number}: `{name}` is not named `…tests`", source.path));
        }
    }
    wrong
}

/// Suites that Cargo does not build, and files beside the suites. Cargo looks for none by itself,
/// so that it does not take a program of another kind for one.
fn suites_that_nobody_runs(manifest: &str, paths: &[&str]) -> Vec<String> {
    let told = manifest.lines().filter_map(|line| line.strip_prefix("path = \"tests/"));
    let told: BTreeSet<&str> = told.map(|rest| rest.trim_end_matches('"')).collect();
    let inner = paths.iter().filter_map(|path| path.strip_prefix("tests/"));
    let is_suite = |path: &&str| path.ends_with("/main.rs") || !path.contains('/');
    let there: BTreeSet<&str> = inner.filter(is_suite).collect();
    let wrong = there.symmetric_difference(&told);
    let loose = there.iter().filter(|path| !path.contains('/'));
    wrong.chain(loose).map(|path| format!("tests/{path}: no suite of Cargo.toml")).collect()
}

#[test]
fn a_folder_within_a_folder_imports_from_earlier_ones_only() {
    let all = sources();
    assert_none(&imports_out_of_order(&all));
    let of_product = all.iter().map(|source| source.path.as_str());
    let of_product: Vec<&str> = of_product.filter(|path| !path.starts_with("tests/")).collect();
    assert_none(&misplaced(&of_product));
    assert_eq!(misplaced(&[]).len(), 23, "all of them are gone");
    let new = [&of_product[..], &["src/keys/new/mod.rs"]].concat();
    assert_eq!(misplaced(&new), ["`src/keys/new` and `NESTED` differ"]);

    let hands_on = "pub use lookup::{Cache, Rows};\npub use self::gate::Probe;";
    let around = || Source::new("src/settle/mod.rs", hands_on);
    for (path, text) in [
        ("src/settle/gate/x.rs", "use crate::settle::lookup::Cache;"),
        ("src/settle/gate/x.rs", "use super::super::replay::Standby;"),
        ("src/settle/gate/x.rs", "use crate::settle::{Cause, Rows};"),
        ("src/settle/gate/in/x.rs", "fn f(a: crate::settle::Cache) {}"),
    ] {
        let wrong = imports_out_of_order(&[around(), Source::new(path, text)]);
        assert_eq!(wrong.len(), 1, "{path}: {text}");
    }
    let good = "use crate::settle::{Cause, Probe, gate::Error};\nuse super::Rows;";
    assert_none(&imports_out_of_order(&[around(), Source::new("src/settle/lookup/x.rs", good)]));
}

#[test]
fn every_file_is_a_module_of_its_folder() {
    assert_none(&undeclared(&sources()));
    let tree = |declared: &str| {
        [
            ("src/lib.rs", "mod a;"),
            ("src/a/mod.rs", declared),
            ("src/a/b.rs", "mod c;"),
            ("tests/x/main.rs", ""),
        ]
        .map(|(path, text)| Source::new(path, text))
    };
    assert_none(&undeclared(&tree("#[cfg(test)]\npub(crate) mod b;")));
    for bad in ["", "// mod b;", "mod bb;", "mod b {}"] {
        assert_eq!(undeclared(&tree(bad)), ["src/a/b.rs: nothing in src/a declares it"], "{bad}");
    }
    assert_none(
        &sources().iter().flat_map(modules_stand_where_their_name_says).collect::<Vec<_>>(),
    );
    for (path, bad, good) in [
        ("src/x.rs", "#[path = \"y.rs\"]\nmod tests;", "#[cfg(test)]\nmod x_tests;"),
        ("src/x/mod.rs", "#[cfg(test)]\npub(crate) mod kit;", "#[cfg(test)]\nmod tests;"),
        ("tests/x/main.rs", "#[path = \"y.rs\"]\nmod z;", "#[path = \"../y/mod.rs\"]\nmod y;"),
    ] {
        super::check(modules_stand_where_their_name_says, path, bad, good);
    }
}

#[test]
fn tests_stand_in_suites_and_every_suite_runs() {
    let paths = files("tests", &[".rs"]);
    let paths: Vec<&str> = paths.iter().map(|(path, _)| path.as_str()).collect();
    assert_none(&suites_that_nobody_runs(&root_file("Cargo.toml"), &paths));
    let manifest = "[[test]]\nname = \"a\"\npath = \"tests/a/main.rs\"\n";
    let good = ["tests/a/main.rs", "tests/a/b.rs", "tests/kit/mod.rs"];
    assert_none(&suites_that_nobody_runs(manifest, &good));
    for bad in ["tests/b/main.rs", "tests/b.rs"] {
        assert!(!suites_that_nobody_runs(manifest, &[&good[..], &[bad]].concat()).is_empty());
    }
    assert_eq!(suites_that_nobody_runs(manifest, &[]).len(), 1, "a suite without its file");
}
