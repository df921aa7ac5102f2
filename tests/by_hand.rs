//! Keys that a person removes.

use crate::support::{Bed, Sidecar, text};

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
        let tells = |line: &String| line.contains("secret team");
        if shows {
            sidecar.wait_log("`list:secret team true:*`").await;
        }
        assert_eq!(sidecar.log().iter().any(tells), shows);
    }
}

/// Whoever has none of the servers reads at once what to install.
#[test]
fn the_demonstration_without_servers_names_their_packages() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_walsweep"));
    command.arg("demo").env("PATH", "/nonexistent").env_remove("WALSWEEP_REDIS_SERVER");
    let output = command.output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["not in `$PATH`", "Debian has it in the package", "postgresql redis-server"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
