//! The things that a person installs: manual, Debian package, container, compose, Kubernetes. Each
//! is read as the one who runs it reads it, and held against the program and against the others.
//! `make check-packages` really builds, installs and starts them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

mod containers;
mod kubernetes;
mod manual;
mod unit;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use clap::Parser;
use walsweep::command::cli::Cli;
use yaml_rust2::{Yaml, YamlLoader};

const PROGRAM: &str = env!("CARGO_BIN_EXE_walsweep");

/// The configuration of the service and of the container.
const CONFIG: &str = "/etc/walsweep/config.toml";

/// The program, once it is installed.
const INSTALLED: &str = "/usr/bin/walsweep";

/// A rule for a configuration that has none.
const RULE: &str = "[[rule]]\nname = \"a\"\ntable = \"public.a\"\nkeys = [\"a:{id}\"]\n";

/// A file of this repository.
fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The first document of a YAML file.
fn yaml(name: &str) -> Yaml {
    YamlLoader::load_from_str(&read(name)).unwrap().remove(0)
}

/// The texts of a YAML sequence.
fn texts(sequence: &Yaml) -> Vec<String> {
    let texts = sequence.as_vec().unwrap().iter().map(|one| one.as_str().unwrap().to_owned());
    texts.collect()
}

/// Runs the built program.
fn walsweep(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(PROGRAM).args(arguments).envs(env.iter().copied()).output().unwrap()
}

/// Everything that it wrote.
fn text(output: &Output) -> String {
    let both = output.stdout.utf8_chunks().chain(output.stderr.utf8_chunks());
    both.map(|chunk| chunk.valid()).collect()
}

/// Arguments, without the program's name, as the program understands them.
fn understood(arguments: &[String]) -> Cli {
    let all = std::iter::once("walsweep").chain(arguments.iter().map(String::as_str));
    Cli::try_parse_from(all).unwrap()
}

/// Fails unless `check` gets past this configuration with these passwords, to servers that are not
/// there; and fails unless it needs each of the passwords.
fn assert_reads(config: &str, passwords: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let credentials = folder.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    // A server that is nowhere.
    let config = config.replace("@postgres:5432", "@127.0.0.1:1").replace("5432", "1");
    let config = config.replace("//redis:6379", "//127.0.0.1:1").replace("6379", "1");
    let file = folder.path().join("config.toml");
    fs::write(&file, config).unwrap();
    let check = ["check", "--config", file.to_str().unwrap()];
    let env = [("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())];
    for password in passwords {
        let output = walsweep(&check, &env);
        assert_eq!(output.status.code(), Some(78), "{password}: {}", text(&output));
        assert!(text(&output).contains(password), "{}", text(&output));
        fs::write(credentials.join(password), "secret\n").unwrap();
    }
    let output = walsweep(&check, &env);
    assert_eq!(output.status.code(), Some(1), "nobody is there: {}", text(&output));
    assert!(text(&output).contains("postgres_unreachable"), "{}", text(&output));
}
