//! Things that a person does and reads: keys removed by hand, commands and their help, the log,
//! `make`.

use std::collections::BTreeSet;
use std::process::Command;

use walsweep_stage::throwaway::{Signal, signal};

use crate::support::{Bed, PATIENCE, Sidecar, eventually, text};

const PROGRAM: &str = env!("CARGO_BIN_EXE_walsweep");

#[tokio::test]
async fn what_no_rule_covers_goes_by_force_alone() {
    let bed = Bed::new(&[]).await;
    let keys = ["item:1", "item:2", "list:team 1:a", "session:1", "session:2"];
    bed.fill(&keys).await;
    let sidecar = Sidecar::new(bed.settings());
    for (args, left) in [
        (&["sweep", "session:*"][..], &keys[..]),
        (&["sweep", "item:1", "*"], &keys),
        (&["sweep", "session:*", "--dry-run"], &keys),
        (&["sweep", "item:[12]", "list:team 1:*"], &["session:1", "session:2"]),
        (&["sweep", "session:1", "--force"], &["session:2"]),
    ] {
        let output = sidecar.command(args);
        let (ended, said) = (output.status.success(), text(&output));
        let is_refused = left == keys && !args.contains(&"--dry-run");
        assert_eq!(ended, !is_refused, "{args:?}: {said}");
        let is_told = said.contains("no rule covers") && said.contains("`--force`");
        assert_eq!(is_told, left == keys, "{args:?}: {said}");
        for key in keys {
            assert_eq!(bed.has(key).await, left.contains(&key), "{args:?}: {key}: {said}");
        }
    }
}

/// Of several patterns each says what it found.
#[tokio::test]
async fn a_sweep_by_hand_counts_by_pattern() {
    let bed = Bed::new(&[]).await;
    bed.fill(&["item:1", "item:2", "list:team 1:a", "session:1"]).await;
    let sidecar = Sidecar::new(bed.settings());
    let said =
        text(&sidecar.command(&["sweep", "item:*", "list:team 1:*", "session:*", "--dry-run"]));
    let expected = "`item:*`: 2 keys matched\n`list:team 1:*`: 1 key matched\n\
                    `session:*`: 1 key matched\n4 keys matched, nothing removed\n\
                    no rule covers all of `session:*`: to remove it takes `--force`\n";
    assert_eq!(said, expected);
    let said = text(&sidecar.command(&["sweep", "item:1", "list:team 1:*"]));
    let expected = "`item:1`: 1 key matched, 1 removed\n`list:team 1:*`: 1 key matched, 1 removed\n\
                    2 keys matched, 2 removed\n";
    assert_eq!(said, expected);
    let said = text(&sidecar.command(&["sweep", "item:2"]));
    assert_eq!(said, "1 key matched, 1 removed\n");
}

/// Keys by the template that reaches them, and those that no rule reaches; walsweep's own are none.
#[tokio::test]
async fn the_coverage_tells_which_keys_rules_reach() {
    let bed = Bed::new(&[]).await;
    bed.fill(&["item:1", "item:2", "session:1", "session:a2", "lock"]).await;
    let sidecar = Sidecar::set_up(bed.settings()).await;
    bed.settled().await;
    bed.marked().await;
    bed.fill(&["item:1", "item:2", "session:1", "session:a2", "lock"]).await;
    let said = text(&sidecar.command(&["coverage"]));
    let expected = "redis: 5 keys\n\nreached by rules\n   2  item  item:{id}\n   0  item  \
                    list:{team}:*  no such key now\n\nreached by no rule: 3 keys\n   2  \
                    session:*\n   1  lock\n";
    assert_eq!(said, expected);
    let output = sidecar.command(&["coverage", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told[0]["templates"][0]["keys"], 2);
    assert_eq!((&told[0]["unreached"], &told[0]["keys"]), (&3.into(), &5.into()));
    assert_eq!(told[0]["families"][0]["family"], "session:*");
    assert!(bed.has("item:1").await && bed.has("lock").await);
}

/// At `debug` the log tells what a transaction removes and why it widened; keys, which hold values,
/// only where the configuration says so.
#[tokio::test]
async fn the_log_tells_what_a_transaction_removes() {
    let bed = Bed::new(&[]).await;
    for shows in [false, true] {
        let mut settings = bed.settings();
        settings.name = format!("shows_{shows}");
        settings.rules = format!("keys = {shows}\n{}", settings.rules);
        let sidecar = Sidecar::set_up(settings).await;
        let team = format!("secret team {shows}");
        bed.sql.run(&format!("update item set team = '{team}' where id = 1")).await;
        bed.sql.run("truncate item; insert into item values (1, 'team 1', 0)").await;
        sidecar.wait_log("rule `item` 1 key, 2 patterns").await;
        sidecar.wait_log("patterns, widened 2 (truncate)").await;
        sidecar.wait_log("its keys are gone").await;
        let tells = |line: &String| line.contains("secret team");
        if shows {
            sidecar.wait_log("`list:secret team true:*`").await;
        }
        assert_eq!(sidecar.log().iter().any(tells), shows);
    }
}

/// Whatever level the configuration names.
#[tokio::test]
async fn a_verbose_run_tells_what_a_transaction_removes() {
    let bed = Bed::new(&[]).await;
    let mut settings = bed.settings();
    settings.level = "warn".to_owned();
    let sidecar = Sidecar::new(settings);
    sidecar.setup();
    let run = sidecar.spawn(&["run", "-v"]);
    let is_ready = || async { sidecar.readyz().await == Some(200) };
    eventually(PATIENCE, "it is ready", is_ready).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.settled().await;
    signal(&[run.id()], Signal::Term).unwrap();
    let said =
        text(&tokio::task::spawn_blocking(|| run.wait_with_output().unwrap()).await.unwrap());
    assert!(said.contains("a transaction removes: rule `item` 1 key"), "{said}");
}

/// Whoever has none of the servers reads at once what to install.
#[test]
fn the_demonstration_without_servers_names_their_packages() {
    let mut command = Command::new(PROGRAM);
    command.arg("demo").env("PATH", "/nonexistent").env_remove("WALSWEEP_REDIS_SERVER");
    let output = command.output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["not in `$PATH`", "Debian has it in the package", "postgresql redis-server"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// The commands of a target of the Makefile.
fn recipe(target: &str) -> Vec<&'static str> {
    let lines = include_str!("../../Makefile").lines();
    let from = format!("{target}: install-deps");
    let after = lines.skip_while(|line| !line.starts_with(&from)).skip(1);
    after.map_while(|line| line.strip_prefix('\t')).collect()
}

/// Whoever waits for minutes knows for what, and whoever reads the end knows whether all is well.
#[test]
fn make_says_that_it_builds_and_at_the_end_that_all_is_well() {
    let demo = recipe("demo");
    assert!(demo[0].contains("building walsweep; the first time that takes some minutes"));
    assert!(demo[1].contains("build") && demo[2].contains("run --quiet -- demo"), "{demo:?}");
    let test = recipe("test").join("\n");
    let last = test.split("\n@").last().unwrap();
    assert!(last.starts_with("echo \"all is well"), "{test}");
    assert!(test.matches("$(CHECKER)").count() == 2 && !last.contains("$(CHECKER)"), "{test}");
    assert!(!test.contains("|| true") && !test.contains("\n-"), "a failure ends it: {test}");
}

/// The README's table of commands: those of the program and no others, each with options that it
/// has.
#[test]
fn the_readme_lists_every_command_and_options_that_it_has() {
    let said = |args: &[&str]| {
        let output = Command::new(PROGRAM).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        text(&output)
    };
    let table = include_str!("../../README.md").split("\n## Commands\n").nth(1).unwrap();
    let rows = table.lines().skip_while(|line| !line.starts_with('|')).skip(2);
    let mut listed = BTreeSet::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let names = row.split('|').nth(1).unwrap();
        for usage in names.split('`').skip(1).step_by(2) {
            let (command, options) = usage.split_once(' ').unwrap_or((usage, ""));
            let help = said(&[command, "--help"]);
            for option in options.split([' ', '[', ']']).filter(|word| word.starts_with("--")) {
                assert!(help.contains(option), "{command} has no {option}: {help}");
            }
            listed.insert(command.to_owned());
        }
    }
    let help = said(&["--help"]);
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let first = |line: &str| line.strip_prefix("  ")?.split(' ').next().map(str::to_owned);
    let known: BTreeSet<String> = commands.lines().filter_map(first).collect();
    let known: BTreeSet<String> =
        known.into_iter().filter(|name| !name.is_empty() && name != "help").collect();
    assert_eq!(listed, known);
    for shell in ["bash", "zsh", "fish"] {
        let script = said(&["completions", shell]);
        assert!(known.iter().all(|name| script.contains(name)), "{shell}: {script}");
    }
    assert!(said(&["man"]).contains(".TH walsweep"));
}
