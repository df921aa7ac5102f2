//! The systemd unit, and the Debian package around it.

use std::time::Duration;

use super::{CONFIG, INSTALLED, RULE, assert_reads, read, text, understood, walsweep};
use walsweep::command::cli::Command;

/// All values of a key, in their order.
fn all(key: &str) -> Vec<String> {
    let unit = read("packaging/walsweep.service");
    let values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

/// The value of a key that stands once.
fn one(key: &str) -> String {
    let mut values = all(key);
    assert_eq!(values.len(), 1, "{key}");
    values.remove(0)
}

fn seconds(key: &str) -> Duration {
    Duration::from_secs(one(key).parse().unwrap())
}

#[test]
fn the_unit_starts_what_the_program_understands_and_leaves_an_invalid_configuration_alone() {
    let start = one("ExecStart");
    let mut words = start.split(' ').map(str::to_owned);
    assert_eq!(words.next().unwrap(), INSTALLED);
    let arguments: Vec<String> = words.collect();
    let cli = understood(&arguments);
    assert!(matches!(cli.command, Command::Run { strict: false, .. }), "{cli:?}");
    assert_eq!(cli.config.to_str(), Some(CONFIG));
    // The same arguments, and another folder.
    let moved: Vec<String> =
        arguments.iter().map(|one| one.replace("/etc/walsweep", "/nonexistent")).collect();
    assert_ne!(moved, arguments);
    let moved: Vec<&str> = moved.iter().map(String::as_str).collect();
    let output = walsweep(&moved, &[]);
    assert_eq!(
        output.status.code().map(|code| code.to_string()),
        Some(one("RestartPreventExitStatus"))
    );
    assert_eq!((one("Restart").as_str(), one("Type").as_str()), ("on-failure", "notify"));
}

/// `systemctl reload` ends with what came of it.
#[test]
fn the_unit_reloads_by_what_the_program_understands_and_names_its_process() {
    let reload = one("ExecReload");
    let mut words = reload.split(' ').map(|word| word.replace("$MAINPID", "4711"));
    assert_eq!(words.next().unwrap(), INSTALLED);
    let cli = understood(&words.collect::<Vec<String>>());
    assert!(matches!(cli.command, Command::Reload { pid: Some(4711) }), "{cli:?}");
    assert_eq!(cli.config.to_str(), Some(CONFIG));
}

/// systemd waits longer than the program does.
#[test]
fn the_times_of_the_unit_are_beyond_those_of_the_program() {
    let notify = read("src/telemetry/notify.rs");
    assert!(notify.contains("START_MAX: Duration = Duration::from_secs(10);"));
    assert!(seconds("TimeoutStartSec") >= Duration::from_secs(30));
    let drain = read("src/run/stream/leave.rs");
    assert!(drain.contains("Duration = Duration::from_secs(10);"), "what is on its way has 10 s");
    assert!(seconds("TimeoutStopSec") >= Duration::from_secs(15));
    assert!(seconds("WatchdogSec") >= Duration::from_secs(10));
    assert_eq!(one("WatchdogSignal"), "SIGKILL", "no core dump with passwords");
    assert_eq!(one("LimitCORE"), "0");
}

/// Each password that the configuration of the package names, or shows how to name, is one that the
/// unit hands on; one that is not there is an empty file, not a service that cannot start.
#[test]
fn the_unit_hands_on_what_the_configuration_of_the_package_names() {
    let loaded = all("LoadCredential");
    let names: Vec<&str> = loaded
        .iter()
        .map(|one| {
            let (name, path) = one.split_once(':').unwrap();
            assert_eq!(path, format!("/etc/walsweep/{name}"));
            name
        })
        .collect();
    assert_eq!(names, ["pg.password", "redis.password"]);
    let empty: Vec<String> = names.iter().map(|name| format!("{name}:\\n")).collect();
    assert_eq!(all("SetCredential"), empty);
    let purged = read("packaging/deb/postrm");
    for name in &names {
        assert!(purged.contains(&format!("/etc/walsweep/{name}")), "{name} outlives a purge");
    }
    let config = read("packaging/config.toml");
    let shown = config.replace("# password_file", "password_file");
    assert_ne!(config, shown);
    let shown = format!("{shown}\n{RULE}");
    assert_reads(&shown, &names);
}

/// As the package installs it, before anybody wrote a rule.
#[test]
fn the_configuration_of_the_package_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, read("packaging/config.toml")).unwrap();
    std::fs::write(folder.path().join("pg.password"), "secret").unwrap();
    let env = [("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap())];
    let output = walsweep(&["check", "--config", file.to_str().unwrap()], &env);
    assert_eq!(output.status.code(), Some(78));
    let said = text(&output);
    assert!(said.contains("there is no rule") && said.contains("1 problem"), "{said}");
    // Its rule, once the signs before it are gone.
    let config = read("packaging/config.toml");
    let (before, rule) = config.split_once("# [[rule]]").unwrap();
    let rule = format!("[[rule]]{}", rule.replace("\n# ", "\n"));
    assert_reads(&format!("{before}{rule}"), &["pg.password"]);
}

#[test]
fn the_unit_gives_the_program_nothing_that_it_does_not_need() {
    for (key, value) in [
        ("DynamicUser", "yes"),
        ("CapabilityBoundingSet", ""),
        ("AmbientCapabilities", ""),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("PrivateUsers", "yes"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
        ("MemoryDenyWriteExecute", "yes"),
        ("SystemCallArchitectures", "native"),
    ] {
        assert_eq!(one(key), value, "{key}");
    }
    assert_eq!(all("SystemCallFilter"), ["@system-service", "~@privileged @resources"]);
    assert!(!one("MemoryMax").is_empty() && !one("TasksMax").is_empty());
}

#[test]
fn the_package_puts_everything_where_it_is_looked_for() {
    let script = read("packaging/deb.sh");
    for line in [
        format!("install -D -m 755 \"$binary\" \"$root{INSTALLED}\""),
        format!("install -D -m 644 packaging/config.toml \"$root{CONFIG}\""),
        format!("echo {CONFIG} >\"$root/DEBIAN/conffiles\""),
        "\"$root/usr/lib/systemd/system/walsweep.service\"".to_owned(),
        "\"$walsweep\" man --to \"$root/usr/share/man/man1\"".to_owned(),
    ] {
        assert!(script.contains(&line), "{line}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(script.contains(&format!("\"$walsweep\" completions {shell} ")), "{shell}");
    }
    // The slot of a program that is gone fills the server's disk.
    let removed = read("packaging/deb/prerm");
    assert!(removed.contains("walsweep teardown") && removed.contains("pg_drop_replication_slot"));
}
