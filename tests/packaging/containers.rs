//! The image, and the composition that tries it.

use super::{CONFIG, INSTALLED, assert_reads, read, texts, understood, yaml};
use walsweep::command::cli::Command;

/// The user that the container runs as.
pub(super) const USER: i64 = 65534;

/// The rest of the line that begins with a word.
fn line(word: &str) -> String {
    let file = read("packaging/Containerfile");
    let found = file.lines().find_map(|line| line.strip_prefix(word));
    found.unwrap_or_else(|| panic!("no {word}")).to_owned()
}

/// The words of a command in the form that no shell reads.
fn words(json: &str) -> Vec<String> {
    serde_json::from_str(json).unwrap()
}

#[test]
fn the_image_starts_and_asks_what_the_program_understands() {
    assert_eq!(words(&line("ENTRYPOINT ")), [INSTALLED]);
    let cli = understood(&words(&line("CMD ")));
    assert!(matches!(cli.command, Command::Run { .. }), "{cli:?}");
    let file = read("packaging/Containerfile").replace("\\\n", "");
    let health = file.lines().find(|line| line.starts_with("HEALTHCHECK ")).unwrap();
    let asked = words(health.split("CMD ").nth(1).unwrap());
    assert_eq!(asked[0], INSTALLED);
    // A restart cures nothing of a verdict.
    let command = understood(&asked[1..]).command;
    assert!(matches!(command, Command::Status(asked) if asked.alive));
    assert_eq!(line("ENV WALSWEEP_CONFIG="), CONFIG);
    assert_eq!(line("USER "), format!("{USER}:{USER}"));
    assert_eq!(line("STOPSIGNAL "), "SIGTERM");
    let version = line("FROM docker.io/library/rust:");
    let version = version.split('-').next().unwrap();
    assert!(read("Cargo.toml").contains(&format!("rust-version = \"{version}\"")), "{version}");
    let root = read("packaging/image-root.sh");
    assert!(root.contains(&format!("\"$root{INSTALLED}\"")));
    assert!(root.contains("ca-certificates.crt"), "TLS");
}

#[test]
fn the_composition_starts_what_the_program_understands() {
    let compose = yaml("packaging/compose.yaml");
    let services = &compose["services"];
    let setup = understood(&texts(&services["setup"]["command"]));
    let Command::Setup { login: Some(login), .. } = setup.command else { panic!("{setup:?}") };
    assert!(login.contains("@postgres:5432/app"), "{login}");
    for service in ["setup", "walsweep"] {
        let service = &services[service];
        let mounted = format!("./compose/config.toml:{CONFIG}:ro");
        assert_eq!(texts(&service["volumes"]), [mounted]);
        assert_eq!(texts(&service["secrets"]), ["pg.password"]);
        assert_eq!(service["build"]["dockerfile"].as_str(), Some("packaging/Containerfile"));
        assert_eq!(service["build"]["context"].as_str(), Some(".."));
    }
    let postgres = texts(&services["postgres"]["command"]);
    assert!(postgres.contains(&"wal_level=logical".to_owned()), "{postgres:?}");
    assert_eq!(line("ENV CREDENTIALS_DIRECTORY="), "/run/secrets", "where they are mounted");
    assert_eq!(services["walsweep"]["stop_grace_period"].as_str(), Some("20s"));
    let ports = texts(&services["walsweep"]["ports"]);
    let config = read("packaging/compose/config.toml");
    assert!(config.contains("listen = \"0.0.0.0:9185\"") && ports[0].ends_with(":9185"));
    assert_reads(&config, &["pg.password"]);
    let schema = read("packaging/compose/schema.sql");
    assert!(schema.contains("create table users") && config.contains("\"public.users\""));
}
