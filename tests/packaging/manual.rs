//! The manual's pages: generated, whole, and true.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use walsweep::command::cli::Cli;
use walsweep::command::manual::EXAMPLES;

use super::{CONFIG, read, text, understood, walsweep};

/// All pages, each with its command's name; `walsweep` is the program's.
fn pages() -> Vec<(String, String)> {
    let folder = tempfile::tempdir().unwrap();
    let output = walsweep(&["man", "--to", folder.path().to_str().unwrap()], &[]);
    assert!(output.status.success(), "{}", text(&output));
    let files = fs::read_dir(folder.path()).unwrap();
    let pages = files.map(|file| {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let name = name.strip_suffix(".1").unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    });
    pages.collect()
}

/// A page as it is read.
fn plain(page: &str) -> String {
    ["\\fB", "\\fI", "\\fR"]
        .iter()
        .fold(page.replace("\\-", "-"), |page, font| page.replace(font, ""))
}

/// All names of environment variables that the sources ask for, but for those of tests and PATH.
fn variables() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src"), root.join("crates/stage/src")];
    let mut names = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("tests.rs") {
                names.extend(asked(&fs::read_to_string(&path).unwrap()));
            }
        }
    }
    names.retain(|name| !name.contains("_TEST_") && name != "UPDATE_GOLDEN" && name != "PATH");
    names
}

/// Names of environment variables that a source asks for.
fn asked(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    // The last one is a constant that is asked for by its own name.
    let befores =
        ["var(\"", "var_os(\"", "variable(\"", "env(\"", "env = \"", "VARIABLE: &str = \""];
    let mut names = Vec::new();
    for before in befores {
        for (at, _) in source.match_indices(before) {
            let name = source[at + before.len()..].split('"').next().unwrap();
            let is_name = name.chars().all(|one| one.is_ascii_uppercase() || one == '_');
            // A method `env` gives one to another program.
            if is_name && name.len() > 3 && !source[..at].ends_with('.') {
                names.push(name.to_owned());
            }
        }
    }
    names
}

#[test]
fn every_command_has_a_page_with_all_its_options_and_how_it_ends() {
    let mut program = Cli::command();
    program.build();
    let commands = program.get_subcommands().filter(|command| command.get_name() != "help");
    let mut expected: Vec<(String, &clap::Command)> =
        commands.map(|one| (format!("walsweep-{}", one.get_name()), one)).collect();
    expected.push(("walsweep".to_owned(), &program));
    let pages = pages();
    assert_eq!(pages.len(), expected.len());
    for (name, command) in expected {
        let page = &pages.iter().find(|page| page.0 == name).unwrap_or_else(|| panic!("{name}")).1;
        let page = plain(page);
        for argument in command.get_arguments() {
            let shown = match argument.get_long() {
                Some(long) => format!("--{long}"),
                None => argument.get_value_names().unwrap()[0].to_string(),
            };
            let options = page.split(".SH OPTIONS").nth(1).unwrap().split(".SH ").next().unwrap();
            assert!(options.contains(&shown), "{name} lacks {shown}: {page}");
        }
        for heading in [".TH walsweep", ".SH NAME\n", ".SH \"EXIT STATUS\"", ".SH \"SEE ALSO\""] {
            assert!(page.contains(heading), "{name} lacks {heading}");
        }
        for status in ["0", "1", "2", "78"] {
            assert!(page.contains(&format!(".TP\n{status}\n")), "{name} lacks status {status}");
        }
    }
}

#[test]
fn the_page_of_the_program_has_commands_files_signals_and_all_variables() {
    let pages = pages();
    let page = plain(&pages.iter().find(|page| page.0 == "walsweep").unwrap().1);
    for (name, _) in pages.iter().filter(|page| page.0 != "walsweep") {
        assert!(page.contains(&format!("{name}(1)")), "{name}");
    }
    for part in [".SH FILES", ".SH SIGNALS", ".SH ENVIRONMENT", ".SH EXAMPLES", CONFIG, "SIGHUP"] {
        assert!(page.contains(part), "{part}");
    }
    let variables = variables();
    assert!(variables.len() > 8 && variables.contains("NOTIFY_SOCKET"), "{variables:?}");
    let environment = page.split(".SH ENVIRONMENT").nth(1).unwrap();
    let unsaid: Vec<&String> =
        variables.iter().filter(|name| !environment.contains(name.as_str())).collect();
    assert!(unsaid.is_empty(), "{unsaid:?}");
}

/// Each of them, cut into words by a shell.
#[test]
fn the_examples_are_understood() {
    let mut count = 0;
    for example in EXAMPLES {
        for line in example.lines {
            let Some(arguments) = line.strip_prefix("walsweep ") else { continue };
            // What stands behind is the shell's.
            let arguments = arguments.split([' ']).collect::<Vec<_>>().join(" ");
            let arguments = arguments.split(" > ").next().unwrap().split(" | ").next().unwrap();
            let script = format!("printf '%s\\n' {arguments}");
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            let words: Vec<String> = text(&output).lines().map(str::to_owned).collect();
            understood(&words);
            if let Some(command) = example.command {
                assert_eq!(words[0], command, "{line}");
            }
            count += 1;
        }
    }
    let named: BTreeSet<&str> = EXAMPLES.iter().filter_map(|example| example.command).collect();
    let mut program = Cli::command();
    program.build();
    let commands = program.get_subcommands().map(clap::Command::get_name);
    let commands: BTreeSet<&str> = commands.filter(|name| *name != "help").collect();
    assert_eq!(named, commands, "each has one");
    assert!(count > commands.len());
}

#[test]
fn a_page_of_no_command_is_wrong_usage_that_names_the_commands() {
    let output = walsweep(&["man", "rnu"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output).contains("`rnu`") && text(&output).contains("run, "),
        "{}",
        text(&output)
    );
    let output = walsweep(&["man", "run"], &[]);
    assert!(text(&output).contains(".TH walsweep-run 1"), "{}", text(&output));
}

/// The paths of the pages are those of the package.
#[test]
fn the_files_of_the_manual_are_those_of_the_package() {
    let page = plain(&text(&walsweep(&["man", "run"], &[])));
    let files = page.split(".SH FILES").nth(1).unwrap().split(".SH ").next().unwrap();
    let words =
        files.split([' ', ',', '\n', '\'']).filter(|word| word.starts_with("/etc/walsweep/"));
    let words: BTreeSet<&str> = words.collect();
    assert_eq!(words.len(), 3, "{words:?}");
    let (unit, script) = (read("packaging/walsweep.service"), read("packaging/deb.sh"));
    for word in words {
        assert!(unit.contains(word), "{word}: {unit}");
    }
    assert!(files.contains("/usr/share/doc/walsweep/examples/config.toml"));
    assert!(script.contains("doc=$root/usr/share/doc/walsweep\n"));
    assert!(script.contains("install -D -m 644 config.toml \"$doc/examples/config.toml\""));
    assert!(files.contains("/etc/default/walsweep") && unit.contains("-/etc/default/walsweep"));
}
