//! The style of this repository, as far as a program can judge it.
//!
//! Each rule is a function from a file, or from the whole tree, to what is wrong. Each is run over
//! the repository, and over a bad example that it must notice.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test may fail")]

mod bounds;
mod english;
mod links;
mod metrics;
mod said;
mod seams;
mod source;
mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use source::Source;

/// Every room of `src`, a folder or a file, in floors: a room imports from lower floors only, so
/// that there is no circle. The stages stand in the order of the flow.
const FLOORS: [&[&str]; 15] = [
    &["budget", "failpoint", "file", "lsn", "words"],
    &["channel", "password"],
    &["postgres", "retry"],
    &["config"],
    &["capture"],
    &["decode"],
    &["gather"],
    &["keys"],
    &["telemetry"],
    &["settle"],
    &["sweep"],
    &["ledger", "preflight"],
    &["source"],
    &["run"],
    &["setup"],
];

/// The files above every floor.
const ROOF: [&str; 3] = ["src/lib.rs", "src/main.rs", "src/command/"];

/// The stages that do no input and output, and know no time.
const PURE: [&str; 4] = ["decode", "gather", "keys", "ledger"];

/// Names that a pure stage may not use, besides a clock's `now`.
const IMPURE: [&str; 9] = [
    "tokio",
    "redis",
    "tokio_postgres",
    "tracing",
    "crate::telemetry",
    "std::net",
    "std::fs",
    "std::env",
    "std::process",
];

/// The file that may know what the program is shown on, besides tests.
const SHOWS: &str = "src/command/demo.rs";

/// The files that may know the pipeline.
const ABOVE_PIPELINE: [&str; 1] = ["src/run/program.rs"];

/// SQL that may stand in a source file: file, how the text starts, why.
const SQL_ALLOWED: [(&str, &str, &str); 1] = [(
    "crates/stage/src/throwaway/postgres.rs",
    "select pg_conf_load_time()",
    "one call without arguments, of a server that only tests and the demonstration have",
)];

/// Everything that stands at the root; names that start with a dot do not count, nor does `target`.
const TOP_LEVEL: [&str; 14] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "config.toml",
    "crates",
    "docs",
    "lua",
    "packaging",
    "sql",
    "src",
    "tests",
];

/// Words that announce unfinished work, in two halves so that this file passes its own test.
const BANNED: [(&str, &str); 7] = [
    ("TO", "DO"),
    ("FIX", "ME"),
    ("XX", "X"),
    ("HA", "CK"),
    ("db", "g!"),
    ("unimpl", "emented!"),
    ("to", "do!"),
];

/// The sections of the configuration, each the name of its struct in lower case.
const SECTIONS: [&str; 9] =
    ["postgres", "redis", "sweep", "refill", "http", "log", "audit", "rule", "lookup"];

/// Fields of the configuration's structs whose options have other names.
const FIELDS: [(&str, &[&str]); 13] = [
    ("postgres.endpoint", &["url", "password_file", "password_command"]),
    ("postgres.replication_endpoint", &["replication_url"]),
    // Which rules' keys go there is with the rules.
    ("redis.id", &["rules"]),
    ("redis.is_alone", &[]),
    ("redis.prefixes", &[]),
    ("redis.mode", &["mode", "seeds", "sentinels"]),
    ("redis.password", &["password_file", "password_command"]),
    ("redis.client_certificate", &["cert_file", "key_file"]),
    ("sweep.index", &["index", "index_memory"]),
    ("rule.at", &[]),
    ("rule.table_at", &[]),
    ("rule.source", &["materialized_view", "message"]),
    ("rule.targets", &[]),
];

/// The number of promises in `src/lib.rs`.
const PROMISE_COUNT: usize = 10;

// ---------------------------------------------------------------------------------------- the tree
/// Every file under `folder` whose name ends so, with its content; not what `make fuzz` built.
fn files(folder: &str, endings: &[&str]) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join(folder)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.extend(Some(path).filter(|path| !path.ends_with("fuzz/target")));
            } else if endings.iter().any(|ending| path.to_str().unwrap().ends_with(ending)) {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    assert!(!files.is_empty(), "nothing under {folder}");
    files
}

/// A file at the root; empty if there is none, which the test of the top level reports.
fn root_file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap_or_default()
}

fn sources() -> Vec<Source> {
    /// Read once for all rules: that takes most of the time.
    static ALL: LazyLock<Vec<Source>> = LazyLock::new(|| {
        let folders = ["src", "crates", "tests"].into_iter();
        let files = folders.flat_map(|folder| files(folder, &[".rs"]));
        files.map(|(path, text)| Source::new(&path, &text)).collect()
    });
    ALL.clone()
}

/// The product: sources that are not for tests.
fn product() -> Vec<Source> {
    sources().into_iter().filter(|source| !source.is_test()).collect()
}

/// Fails with everything that is wrong.
fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs a rule over a bad example and a good one.
fn check(rule: fn(&Source) -> Vec<String>, path: &str, bad: &str, good: &str) {
    assert!(!rule(&Source::new(path, bad)).is_empty(), "not noticed: {bad}");
    assert_none(&rule(&Source::new(path, good)));
}

/// Runs a rule over the repository.
fn hold(sources: &[Source], rule: fn(&Source) -> Vec<String>) {
    assert_none(&sources.iter().flat_map(rule).collect::<Vec<_>>());
}

// --------------------------------------------------------------------------------------- the rules

/// The folder or file of `src` that a path belongs to.
fn room(path: &str) -> Option<&str> {
    path.strip_prefix("src/")?.split(['/', '.']).next()
}

/// The floor that a room stands on.
fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn is_within(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn pure_stages_stay_pure(source: &Source) -> Vec<String> {
    let pure = room(&source.path).is_some_and(|room| PURE.contains(&room));
    let paths = if pure { source.paths() } else { Vec::new() };
    let impure = |path: &str| {
        IMPURE.iter().any(|name| is_within(path, name))
            || ["SystemTime::now", "Instant::now"].iter().any(|end| path.ends_with(end))
    };
    let wrong = paths.into_iter().filter(|(_, path)| impure(path));
    wrong.map(|(line, path)| format!("{}:{line}: a pure stage uses {path}", source.path)).collect()
}

fn rooms_import_from_below(source: &Source) -> Vec<String> {
    let Some(own) = room(&source.path) else { return Vec::new() };
    if ROOF.iter().any(|roof| source.path.starts_with(roof)) {
        return Vec::new();
    }
    let Some(own_floor) = floor(own) else {
        return vec![format!("{}: `{own}` stands on no floor of `FLOORS`", source.path)];
    };
    let mut wrong = Vec::new();
    for (line, path) in source.paths() {
        let Some(other) = path.strip_prefix("crate::").and_then(|rest| rest.split("::").next())
        else {
            continue;
        };
        let is_below = floor(other).is_some_and(|floor| floor < own_floor);
        if other != own && !is_below {
            wrong.push(format!("{}:{line}: {path} does not stand below `{own}`", source.path));
        }
    }
    wrong
}

fn nobody_knows_the_pipeline(source: &Source) -> Vec<String> {
    if ABOVE_PIPELINE.contains(&source.path.as_str()) || source.path.starts_with("src/run/pipeline")
    {
        return Vec::new();
    }
    let is_pipeline = |path: &str| {
        is_within(path, "crate::run::pipeline") || is_within(path, "walsweep::run::pipeline")
    };
    let uses = source.paths().into_iter().filter(|(_, path)| is_pipeline(path));
    uses.map(|(line, path)| format!("{}:{line}: uses {path}", source.path)).collect()
}

fn only_the_demonstration_knows_the_stage(source: &Source) -> Vec<String> {
    let uses = source.paths().into_iter().filter(|(_, path)| is_within(path, "walsweep_stage"));
    let wrong = uses.filter(|_| source.path.starts_with("src/") && source.path != SHOWS);
    wrong.map(|(line, path)| format!("{}:{line}: uses {path}", source.path)).collect()
}

fn sizes_are_kept(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    let line_count = source.text.lines().count();
    if line_count > 600 {
        wrong.push(format!("{}: {line_count} lines, at most 600", source.path));
    }
    let lines: Vec<&str> = source.text.lines().collect();
    for (name, line, count) in source.functions() {
        let above = &lines[line.saturating_sub(6)..line];
        let excused = above.iter().any(|line| line.contains("expect(clippy::too_many_lines"));
        if count > 70 && !excused {
            wrong.push(format!("{}:{line}: `{name}` has {count} lines, at most 70", source.path));
        }
    }
    wrong
}

fn every_file_says_what_it_is(source: &Source) -> Vec<String> {
    let says = source.text.starts_with("//! ");
    if says { Vec::new() } else { vec![format!("{}: does not open with `//!`", source.path)] }
}

fn lines_are_short_and_work_is_finished(path: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        if content.chars().count() > 100 {
            wrong.push(format!("{path}:{line}: longer than 100 columns"));
        }
        for (left, right) in BANNED {
            if content.contains(&format!("{left}{right}")) {
                wrong.push(format!("{path}:{line}: {left}{right}"));
            }
        }
    }
    wrong
}

/// Whether a text is a statement: its first words are those of one.
fn is_sql(text: &str) -> bool {
    let text = text.trim_start().to_lowercase();
    let mut words = text.split_whitespace();
    let (first, second) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let things = "table publication subscription index unique event function procedure schema \
                  role user view materialized database or trigger type extension sequence system";
    match first {
        "select" | "truncate" => !second.is_empty(),
        "insert" => second == "into",
        "delete" => second == "from",
        "update" => text.contains(" set "),
        "with" => text.contains(" as ("),
        "create" | "alter" | "drop" => things.split_whitespace().any(|thing| thing == second),
        _ => false,
    }
}

fn sql_stands_in_sql_files(source: &Source) -> Vec<String> {
    let allowed = |string: &str| {
        let mut allowed = SQL_ALLOWED.iter().filter(|(path, _, _)| *path == source.path);
        allowed.any(|(_, start, _)| string.starts_with(start))
    };
    let wrong = source.strings.iter().filter(|(_, string)| is_sql(string) && !allowed(string));
    wrong.map(|(line, string)| format!("{}:{line}: SQL: {string}", source.path)).collect()
}

/// Places outside `capture` where a method `confirm` is called.
fn confirmations(sources: &[Source]) -> Vec<String> {
    let outside = sources.iter().filter(|source| !source.path.starts_with("src/capture"));
    let calls = outside.flat_map(|source| {
        let lines = (1..).zip(source.code.lines());
        let calls =
            lines.filter(|(_, line)| line.contains(".confirm(") || line.contains("::confirm("));
        calls.map(|(line, _)| format!("{}:{line}", source.path)).collect::<Vec<_>>()
    });
    calls.collect()
}

/// Options that a configuration file shows, also those that are commented out, as `section.option`.
fn shown_options(text: &str) -> BTreeSet<String> {
    let mut section = "";
    let mut options = BTreeSet::new();
    for line in text.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)) {
        let letter = |one: u8| one.is_ascii_lowercase() || one == b'_';
        let word = |text: &str| !text.is_empty() && text.bytes().all(letter);
        let header = line.trim_matches(['[', ']']).split('.').next().unwrap();
        if line.starts_with('[') && line.ends_with(']') && word(header) {
            section = header;
        } else if let Some((option, _)) = line.split_once(" = ").filter(|pair| word(pair.0)) {
            options.insert(format!("{section}.{option}"));
        }
    }
    options
}

/// Options that the configuration's structs have, as `section.option`.
fn known_options(config: &Source) -> BTreeSet<String> {
    let mut section = None;
    let mut options = BTreeSet::new();
    for line in config.code.lines() {
        if let Some(name) = line.strip_prefix("pub struct ") {
            let name = name.trim_end_matches([' ', '{']).to_lowercase();
            section = SECTIONS.iter().find(|section| **section == name);
        } else if line == "}" {
            section = None;
        } else if let (Some(section), Some(field)) = (section, line.strip_prefix("    pub ")) {
            let field = format!("{section}.{}", field.split(':').next().unwrap());
            match FIELDS.iter().find(|(known, _)| *known == field) {
                Some((_, as_options)) => {
                    options.extend(as_options.iter().map(|one| format!("{section}.{one}")));
                }
                None => drop(options.insert(field)),
            }
        }
    }
    options
}

/// Promises of the architecture page that no test names.
fn untested_promises(library: &str, tests: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    for number in 1..=PROMISE_COUNT {
        if !library.contains(&format!("//! - **I{number} ")) {
            wrong.push(format!("src/lib.rs: does not state I{number}"));
        }
        let names = |source: &&Source| {
            let mut words = source.tests.split(|one: char| !one.is_alphanumeric());
            source.path != "tests/tidy/main.rs"
                && words.any(|word| {
                    word.strip_prefix(['I', 'i']).is_some_and(|rest| rest == number.to_string())
                })
        };
        if !tests.iter().any(|source| names(&source)) {
            wrong.push(format!("no test names I{number}"));
        }
    }
    wrong
}

// --------------------------------------------------------------------------------------- the tests

#[test]
fn decode_gather_keys_and_ledger_do_no_io() {
    hold(&product(), pure_stages_stay_pure);
    let good = "use std::{fmt, time};\nfn f(o: &tokio_like::T) {}\n\
                #[cfg(test)]\nmod tests { use tokio::time; }\n// tokio::spawn\n";
    for bad in [
        "use tokio::sync::mpsc;",
        "use std::{fmt, fs};",
        "use std::{fmt::{self, Write}, net::{IpAddr}};",
        "fn f() { let _ = std::fs::read(\"x\"); }",
        "use std::time::SystemTime;\nfn f() { SystemTime::now(); }",
        "use super::super::telemetry::Health;",
        "fn f() { tracing::info!(\"x\"); }",
    ] {
        check(pure_stages_stay_pure, "src/keys/set.rs", bad, good);
    }
}

#[test]
fn a_room_imports_from_lower_floors_only() {
    hold(&product(), rooms_import_from_below);
    let good = "use crate::decode::Message;\nuse super::Gatherer;\nuse crate::lsn::Lsn;";
    for bad in [
        "use crate::keys::KeySet;",
        "use crate::{lsn, sweep::{self, Swept}};",
        "use super::super::ledger::Ledger;",
        "fn f(a: crate::settle::Visible) {}",
        "use crate::run::session::step;",
        "use crate::nowhere::Thing;",
    ] {
        check(rooms_import_from_below, "src/gather/held.rs", bad, good);
    }
    let (below, beside) = ("use crate::sweep::Doubt;", "use crate::ledger::Ledger;");
    check(rooms_import_from_below, "src/preflight/slot.rs", beside, below);
    let new = Source::new("src/new/mod.rs", "use std::fmt;");
    assert_eq!(rooms_import_from_below(&new).len(), 1, "a room that nobody placed");
    let rooms: BTreeSet<String> = files("src", &[".rs"])
        .iter()
        .filter_map(|(path, _)| room(path).map(str::to_owned))
        .collect();
    for placed in FLOORS.iter().flat_map(|floor| floor.iter()) {
        assert!(rooms.contains(*placed), "there is no room `{placed}` any more");
    }
}

#[test]
fn nobody_else_names_the_pipeline() {
    hold(&product(), nobody_knows_the_pipeline);
    let (bad, good) = ("use crate::run::pipeline;", "use crate::sweep;");
    check(nobody_knows_the_pipeline, "src/telemetry/http.rs", bad, good);
    check(nobody_knows_the_pipeline, "src/run/stream/mod.rs", bad, good);
}

#[test]
fn the_product_needs_no_stage_but_for_the_demonstration() {
    hold(&product(), only_the_demonstration_knows_the_stage);
    let bad = "fn f(a: walsweep_stage::throwaway::Redis) {}";
    let good = "#[cfg(test)]\nmod tests { use walsweep_stage::throwaway::Redis; }";
    check(only_the_demonstration_knows_the_stage, "src/command/check.rs", bad, good);
    check(only_the_demonstration_knows_the_stage, "src/run/task.rs", bad, "use crate::demo;");
    let shows = Source::new(SHOWS, &root_file(SHOWS));
    assert!(shows.paths().iter().any(|(_, path)| is_within(path, "walsweep_stage")));
}

#[test]
fn files_and_functions_are_small() {
    hold(&sources(), sizes_are_kept);
    let long = |count| format!("//! x\nfn f() {{\n{}}}\n", "    x();\n".repeat(count));
    check(sizes_are_kept, "src/x.rs", &long(71), &long(70));
    check(sizes_are_kept, "src/x.rs", &"//! x\n".repeat(601), &"//! x\n".repeat(600));
}

#[test]
fn every_file_opens_with_its_purpose() {
    hold(&sources(), every_file_says_what_it_is);
    check(every_file_says_what_it_is, "src/x.rs", "use std::fmt;\n", "//! Formats.\n");
    for (path, text) in files("sql", &[".sql"]).into_iter().chain(files("crates", &[".sql"])) {
        assert!(text.starts_with("-- "), "{path}: does not open with `--`");
        assert!(text.contains("Privileges: ") && text.contains("Versions: "), "{path}: for whom");
    }
    for (path, text) in files("lua", &[".lua"]) {
        // Redis wants the library's name first.
        let header = text.strip_prefix("#!lua name=walsweep_").unwrap_or_default();
        let parts = ["\n-- ", "-- Commands: ", "-- Privileges: ", "-- Versions: "];
        assert!(parts.iter().all(|part| header.contains(part)), "{path}: for whom");
    }
}

#[test]
fn lines_fit_and_nothing_is_left_for_later() {
    let mut all = files("src", &[".rs"]);
    all.extend(files("crates", &[".rs", ".sql"]));
    all.extend(files("tests", &[".rs", ".py"]));
    all.extend(files("sql", &[".sql"]).into_iter().chain(files("lua", &[".lua"])));
    all.extend(files("docs", &[".go", ".mjs", ".py"]).into_iter().chain(files("packaging", &[""])));
    // Queries and what they give stand on one line each.
    all.retain(|(path, _)| !path.starts_with("packaging/prometheus/"));
    let others = ["Makefile", "config.toml", ".ci/run"];
    all.extend(others.map(|name| (name.to_owned(), root_file(name))));
    let wrong =
        all.iter().flat_map(|(path, text)| lines_are_short_and_work_is_finished(path, text));
    assert_none(&wrong.collect::<Vec<_>>());
    for (left, right) in BANNED {
        let bad = format!("    // {left}{right} later");
        assert_eq!(lines_are_short_and_work_is_finished("x", &bad).len(), 1, "{bad}");
    }
    assert_eq!(lines_are_short_and_work_is_finished("x", &"ø".repeat(101)).len(), 1);
    assert_none(&lines_are_short_and_work_is_finished("x", &"ø".repeat(100)));
}

#[test]
fn sql_has_files_of_its_own() {
    let product = product();
    hold(&product, sql_stands_in_sql_files);
    for (path, start, reason) in SQL_ALLOWED {
        let source = product.iter().find(|source| source.path == path);
        let used =
            source.is_some_and(|one| one.strings.iter().any(|(_, text)| text.starts_with(start)));
        assert!(used, "{path} has no `{start}` any more ({reason})");
    }
    let good = "#[error(\"create publication `{0}`: denied\")] struct E; \
                const A: &str = \"create slot: no\"; // \"select 1\"\n\
                fn f() { g(\"START_REPLICATION SLOT s LOGICAL 0/0\", '\"', \"update it\") }";
    for bad in [
        "fn f() { g(\"select 1\") }",
        "fn f() { g(r#\"  INSERT INTO t VALUES (1)\"#) }",
        "const A: &str = \"\n  with x as (select 1) table x\";",
        "fn f<'a>(a: &'a str) { g(\"alter table t replica identity full\") }",
        "fn f() { g('\"', \"update t set a = 1\") }",
    ] {
        check(sql_stands_in_sql_files, "src/x.rs", bad, good);
    }
}

#[test]
fn the_loop_closes_in_one_place() {
    let calls = confirmations(&product());
    assert_eq!(calls.len(), 1, "`confirm` is called at {calls:?}");
    let twice = Source::new("src/x.rs", "fn f() { slot.confirm(lsn);\nSlot::confirm(s, lsn); }");
    assert_eq!(confirmations(&[twice]), ["src/x.rs:1", "src/x.rs:2"]);
    let own = Source::new("src/capture/mod.rs", "fn f() { slot.confirm(lsn); }");
    assert_eq!(confirmations(&[own]), [""; 0]);
}

#[test]
fn the_root_holds_nothing_else() {
    let names = fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: BTreeSet<String> =
        names.filter(|name| !name.starts_with('.') && name != "target").collect();
    assert_eq!(names, TOP_LEVEL.map(str::to_owned).into());
}

#[test]
fn the_configuration_at_the_root_shows_every_option_and_no_other() {
    let [file, folder] = ["src/config.rs", "src/config/mod.rs"].map(root_file);
    let known = known_options(&Source::new("src/config.rs", &format!("{file}{folder}")));
    assert_eq!(shown_options(&root_file("config.toml")), known);
    let text = "pub struct Config {\n    pub log: Log,\n}\npub struct Log {\n    /// X.\n    \
                pub level: String,\n    pub new: u8,\n}\npub struct Rule {\n    pub at: u8,\n}\n";
    let known = known_options(&Source::new("src/config.rs", text));
    assert_eq!(known, ["log.level", "log.new"].map(str::to_owned).into());
    let shown = shown_options("[log]\nlevel = \"x\"\n# new = 1\n# Not an option = x\n");
    assert_eq!(shown, known);
}

#[test]
fn every_promise_has_a_test_that_names_it() {
    let library = root_file("src/lib.rs");
    assert_none(&untested_promises(&library, &sources()));
    let lines = |count, line: &str| -> String {
        (1..=count).map(|number: usize| line.replace('N', &number.to_string())).collect()
    };
    let page = |count| lines(count, "//! - **IN x.** y\n");
    let names = |count| lines(count, "/// IN\n");
    let tests = |text: &str| [Source::new("tests/main/main.rs", text)];
    let all = PROMISE_COUNT;
    assert_none(&untested_promises(&page(all), &tests(&names(all))));
    assert_eq!(untested_promises(&page(all), &tests(&names(all - 1))).len(), 1);
    assert_eq!(untested_promises(&page(all - 1), &tests(&names(all))).len(), 1);
    let in_product = [Source::new("src/x.rs", &names(all))];
    assert_eq!(untested_promises(&page(all), &in_product).len(), all);
}
