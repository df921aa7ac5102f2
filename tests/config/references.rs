//! The pages of reference are made from what the program itself reads and prints: `config.toml`,
//! its grammar of arguments, its table of metrics. `UPDATE_GOLDEN=1` writes them.

use std::fmt::Write as _;
use std::fs;

use clap::CommandFactory;
use walsweep::command::cli::Cli;
use walsweep::command::manual::EXAMPLES;
use walsweep::telemetry::metrics::Metrics;

use super::root;

/// The columns that help is wrapped at, whatever the terminal of the tests has.
const WIDTH: usize = 96;

/// Options that `config.toml` shows empty, because each rule has its own.
const NO_DEFAULT: [&str; 4] = ["rule.name", "rule.table", "rule.materialized_view", "rule.message"];

/// Compares a page with its file, after it was written where that is asked for.
fn hold(name: &str, page: &str) {
    let path = root().join("docs").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, page).unwrap();
    }
    let file = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        page == file,
        "docs/{name} is not what the program says: run this test with UPDATE_GOLDEN=1, and read \
         the difference"
    );
}

/// The page of all commands: the help of each, and what to type.
fn commands() -> String {
    let mut page =
        "# Commands\n\n*Made from the program: `walsweep COMMAND --help` says the same, \
                    and `walsweep man COMMAND` more.*\n"
            .to_owned();
    let mut program = Cli::command().disable_help_subcommand(true).term_width(WIDTH);
    program.build();
    let parts = std::iter::once(program.clone()).chain(program.get_subcommands().cloned());
    for part in parts {
        let is_program = part.get_name() == program.get_name();
        let title = part.get_name().to_owned();
        // A value that a variable has where the test runs is none of the page's business.
        let mut part = part.term_width(WIDTH).mut_args(|one| one.hide_env_values(true));
        let help = part.render_long_help().to_string();
        let lines: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
        write!(page, "\n## `{title}`\n\n```text\n{}\n```\n", lines.join("\n")).unwrap();
        let command = (!is_program).then_some(title.as_str());
        for example in EXAMPLES.iter().filter(|one| one.command == command) {
            let lines = example.lines.iter().map(|line| format!("$ {line}\n"));
            let lines = lines.collect::<String>();
            write!(page, "\n{}\n\n```console\n{lines}```\n", example.says).unwrap();
        }
    }
    page
}

/// The page of all metrics.
fn metrics() -> String {
    let mut page =
        "# Metrics\n\n*Made from the program: `# HELP` and `# TYPE` of `/metrics` say the \
                    same.*\n\nTimes are in seconds, sizes in bytes. A histogram has the series \
                    `…_bucket`, `…_sum` and `…_count`. The label `target` is the `name` of a \
                    `[[redis]]`, `rule` that of a `[[rule]]`, or `walsweep.probe` \
                    for keys of [probes](status.md#does-it-work-now). There are [alerts]\
                    (../packaging/prometheus/walsweep.rules.yml) and a [dashboard]\
                    (../packaging/prometheus/walsweep-dashboard.json).\n\n\
                    | metric | kind | labels | says |\n| --- | --- | --- | --- |\n"
            .to_owned();
    for one in Metrics::new(&[]).descriptions() {
        let labels: Vec<String> = one.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, labels) = (one.name, one.kind, labels.join(", "));
        writeln!(page, "| `{name}` | {kind} | {labels} | {} |", one.help).unwrap();
    }
    page
}

/// The page of all options, from the comments and defaults of `config.toml`, up to its own rules.
fn options(text: &str) -> String {
    let mut page =
        "# Configuration\n\n*Made from [config.toml](../config.toml), which shows every \
                    option at its place. TOML; an unknown option is an error. `${NAME}` in a text \
                    is replaced by that environment variable.*\n"
            .to_owned();
    let (mut section, mut said) = (String::new(), Vec::new());
    for line in text.lines() {
        let (comment, is_comment) = line
            .strip_prefix('#')
            .map_or((line, false), |rest| (rest.strip_prefix(' ').unwrap_or(rest), true));
        let is_word = |text: &str| text.bytes().all(|one| one.is_ascii_lowercase() || one == b'_');
        let option = comment.split_once(" = ").filter(|(name, _)| is_word(name));
        if comment.starts_with('[') && comment.ends_with(']') {
            if section == "rule" && !is_comment {
                break;
            }
            section = comment.trim_matches(['[', ']']).split('.').next().unwrap().to_owned();
            write!(page, "\n## `{comment}`\n{}", paragraph(&mut said)).unwrap();
        } else if let Some((name, value)) = option.filter(|_| !section.is_empty()) {
            let (name, said) = (format!("{section}.{name}"), paragraph(&mut said));
            let says = match is_comment {
                true if NO_DEFAULT.contains(&name.as_str()) => "No default.".to_owned(),
                true => format!("Default: `{value}`"),
                false => format!("For example: `{value}`"),
            };
            write!(page, "\n### `{name}`\n\n{says}\n{said}").unwrap();
        } else if line.is_empty() || comment.is_empty() {
            let more = paragraph(&mut said);
            // The head of the file says what this page says by itself.
            if !section.is_empty() {
                page.push_str(&more);
            }
        } else if is_comment {
            said.push(comment);
        }
    }
    page
}

/// The lines that were gathered, below an empty one; nothing if there are none.
fn paragraph(lines: &mut Vec<&str>) -> String {
    let text: String = lines.drain(..).map(|line| format!("{line}\n")).collect();
    if text.is_empty() { text } else { format!("\n{text}") }
}

#[test]
fn the_page_of_commands_is_made_from_the_program() {
    let page = commands();
    for part in ["\n## `run`\n", "--strict", "--offline", "Exit status: 0", "$ walsweep check\n"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!page.contains("[env: WALSWEEP_CONFIG="), "the value is of the machine: {page}");
    hold("commands.md", &page);
}

#[test]
fn the_page_of_metrics_is_made_from_the_program() {
    let page = metrics();
    for line in [
        "| `walsweep_build_info` | info | `version` | ",
        "| `walsweep_widened_total` | counter | `rule`, `reason` | ",
        "| `walsweep_visibility_wait_seconds` | histogram |  | ",
        "| `walsweep_redis_up` | gauge | `target`, `node` | ",
    ] {
        assert!(page.contains(line), "{line}: {page}");
    }
    hold("metrics.md", &page);
}

#[test]
fn the_page_of_options_is_made_from_the_configuration_at_the_root() {
    let text = fs::read_to_string(root().join("config.toml")).unwrap();
    let page = options(&text);
    let small = options(
        "# A head.\n\n# Says a.\n[one]\n# Says b,\n# in two lines.\n# b = 1\nc = \"x\"\n\
         # [[rule]]\n# name = \"\"\n#\n# More = of it.\n#\n\n# Not this.\n[[rule]]\nname = \"y\"\n",
    );
    let expected = "\n## `[one]`\n\nSays a.\n\n### `one.b`\n\nDefault: `1`\n\nSays b,\nin two \
                    lines.\n\n### `one.c`\n\nFor example: `\"x\"`\n\n## `[[rule]]`\n\n### \
                    `rule.name`\n\nNo default.\n\nMore = of it.\n";
    assert!(small.contains(expected), "{small:?}");
    assert!(!small.contains("Not this") && !small.contains("A head"), "{small}");
    assert!(page.matches("\n### `").count() > 50, "{page}");
    hold("config.md", &page);
}

/// A metric that is exposed and not described would not stand on the page.
#[test]
fn every_metric_that_is_exposed_is_described() {
    let metrics = Metrics::new(&["a".to_owned()]);
    let page = metrics.text();
    let exposed = page.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next());
    let exposed: Vec<&str> = exposed.collect();
    assert!(exposed.len() > 20, "{page}");
    for name in exposed {
        // The registry adds `_total` and `_info`.
        let is_it = |described: &str| {
            let rest = described.strip_prefix(name);
            rest.is_some_and(|rest| ["", "_total", "_info"].contains(&rest))
        };
        let described = metrics.descriptions().iter().any(|one| is_it(one.name));
        assert!(described, "{name} is not described");
    }
}
