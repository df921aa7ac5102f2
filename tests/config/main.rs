//! Wrong configurations: every problem at once, each with its place and its cure.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

mod documents;
mod references;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use walsweep::command::load::judge;
use walsweep::config::{LogFormat, Mode};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn wrong_configs() -> Vec<PathBuf> {
    let folder = fs::read_dir(root().join("tests/golden/config")).unwrap();
    let mut files: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    files
}

/// Runs the program in the repository's folder; relative paths in the files start there.
fn walsweep(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walsweep"));
    command.current_dir(root()).args(args).env_remove("WALSWEEP_CONFIG").output().unwrap()
}

/// `UPDATE_GOLDEN=1` writes what is said now; read the difference before you commit it.
#[test]
fn a_wrong_configuration_says_everything_at_once_and_exits_with_78() {
    let files = wrong_configs();
    assert!(files.len() >= 20, "{} wrong configurations", files.len());
    for path in files {
        let name = format!("tests/golden/config/{}", path.file_name().unwrap().to_str().unwrap());
        let output = walsweep(&["run", "--config", &name]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{name}\n{said}");
        assert!(!said.contains("hunter2"), "{name} tells a password:\n{said}");
        let golden = path.with_extension("err");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &said).unwrap();
        }
        assert_eq!(said, fs::read_to_string(&golden).unwrap_or_default(), "{name}");
    }
}

/// The parser can only guess at the rest, and nobody reads a hundred guesses.
#[test]
fn one_slip_of_the_syntax_is_one_problem_at_its_place() {
    let text = fs::read_to_string(root().join("config.toml")).unwrap();
    let (mut offset, mut arrays) = (0, 0);
    for (line, number) in text.split_inclusive('\n').zip(1..) {
        let code = line.split('#').next().unwrap();
        let equals = code.find('=');
        let is_syntax = |(at, one): &(usize, char)| match one {
            '=' => equals == Some(*at),
            one => "[]\"".contains(*one),
        };
        for (at, character) in code.char_indices().filter(is_syntax) {
            let mut wrong = text.clone();
            wrong.remove(offset + at);
            let problems = judge(&wrong, &|_| None).map(|_| ()).unwrap_err();
            let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
            assert_eq!(problems.len(), 1, "{number}: without `{character}`: {told:?}");
            if character == ']' && code.contains(" = [") {
                let place = (problems[0].at.line, problems[0].at.column);
                assert_eq!(place, (number, code.find('[').unwrap() + 1), "{told:?}");
                arrays += 1;
            }
        }
        offset += line.len();
    }
    assert!(arrays > 5, "{arrays} arrays on a line of their own");
}

#[test]
fn every_command_judges_the_configuration_first() {
    let name = "tests/golden/config/names.toml";
    for args in [
        vec!["run"],
        vec!["check"],
        vec!["setup"],
        vec!["setup", "--print"],
        vec!["teardown"],
        vec!["sweep", "item:*"],
        vec!["explain", "public.item", "--op", "truncate"],
    ] {
        let option = ["--config", name];
        for args in [[args.as_slice(), &option].concat(), [&option, args.as_slice()].concat()] {
            let output = walsweep(&args);
            assert_eq!(output.status.code(), Some(78), "{args:?}");
            assert!(output.stdout.is_empty(), "{args:?}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = walsweep(&["run", "--config", "no/such/config.toml"]);
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no/such/config.toml") && said.contains("--config"), "{said}");
}

#[test]
fn usage_errors_exit_with_2() {
    assert_eq!(walsweep(&["runn"]).status.code(), Some(2));
    assert_eq!(walsweep(&["sweep"]).status.code(), Some(2));
}

#[test]
fn what_is_left_out_has_its_default_and_variables_are_replaced() {
    let text = "[postgres]\nurl = \"postgres://walsweep@${HOST}/app\"\n\
                [redis]\nurl = \"redis://:p%40ss@${HOST}/2\"\n\
                [[rule]]\nname = \"a\"\ntable = '\"My.Shop\".\"It\"\"em\"'\n\
                keys = [\"$${x}:{id}\"]\n";
    let env = |name: &str| (name == "HOST").then(|| "db.example".to_owned());
    let (config, rules) = judge(text, &env).unwrap();
    assert_eq!(config.rules[0].keys[0].value, "${x}:{id}");
    assert_eq!(config.postgres.endpoint.host, "db.example");
    assert_eq!(config.postgres.replication_endpoint.host, "db.example");
    assert_eq!((&*config.postgres.slot, &*config.postgres.publication), ("walsweep", "walsweep"));
    assert_eq!(config.redis[0].url, "redis://db.example/2");
    assert_eq!(config.sweep.max_stall.as_micros(), 1000);
    assert!((config.sweep.max_load - 0.25).abs() < 1e-9, "{}", config.sweep.max_load);
    assert_eq!(config.refill.window.as_millis(), 1000);
    assert_eq!(config.http.listen, Some("127.0.0.1:9185".parse().unwrap()));
    assert!(!config.http.keys);
    assert_eq!(config.audit.file, None);
    assert_eq!((config.log.format, &*config.log.level), (LogFormat::Text, "info"));
    assert_eq!(rules.tables().next().unwrap().schema, "My.Shop");
    assert_eq!(rules.tables().next().unwrap().name, "It\"em");
    assert!(!format!("{config:?}").contains("p@ss"), "a password in the debug form");
}

#[test]
fn an_empty_limit_of_retained_wal_is_none() {
    let text = |limit| {
        format!(
            "[postgres]\nurl = \"postgres://u@h/app\"\nmax_retained_wal = \"{limit}\"\n\
             [redis]\nurl = \"redis://h\"\n[[rule]]\nname = \"a\"\ntable = \"t\"\nkeys = [\"k\"]\n"
        )
    };
    for (limit, bytes) in [("", None), ("64MB", Some(64 << 20)), ("1TB", Some(1 << 40))] {
        let (config, _) = judge(&text(limit), &|_| None).unwrap();
        assert_eq!(config.postgres.max_retained_wal, bytes, "{limit}");
    }
}

#[test]
fn the_debug_form_tells_no_password_wherever_it_stood() {
    for url in ["redis://u:hunter2@h/1", "unix:///run/redis.sock?user=u&pass=hunter2&db=1"] {
        let text = format!(
            "[postgres]\nurl = \"postgres://u:hunter2@h/app\"\n\
             replication_url = \"postgres://u:hunter2@r/app\"\n[redis]\nurl = \"{url}\"\n\
             [[rule]]\nname = \"a\"\ntable = \"t\"\nkeys = [\"k:{{id}}\"]\n"
        );
        let (config, _) = judge(&text, &|_| None).unwrap();
        assert!(config.redis[0].password.is_some(), "{url}");
        assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    }
    let text = "[postgres]\nurl = \"postgres://u@h/app\"\npassword_command = [\"x\", \"hunter2\"]\n\
                [redis]\nurl = \"redis://h\"\npassword_command = [\"x\", \"${SECRET}\"]\n\
                [[rule]]\nname = \"a\"\ntable = \"t\"\nkeys = [\"k:{id}\"]\n";
    let (config, _) = judge(text, &|_| Some("hunter2".to_owned())).unwrap();
    assert!(
        config.postgres.endpoint.password.may_change() && config.redis[0].password.may_change()
    );
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
}

#[test]
fn each_mode_is_read_with_what_goes_with_it() {
    let read = |lines: &str| {
        let text = format!(
            "[postgres]\nurl = \"postgres://u@h/app\"\n[redis]\n{lines}\n\
             [[rule]]\nname = \"a\"\ntable = \"t\"\nkeys = [\"k\"]\n"
        );
        let (config, _) = judge(&text, &|_| None).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
        config.redis[0].clone()
    };
    assert!(matches!(read("url = \"redis://h\"").mode, Mode::Standalone));
    let empty = "url = \"redis://h\"\nmode = \"standalone\"\nseeds = []\nsentinels = []";
    assert!(matches!(read(empty).mode, Mode::Standalone));
    let cluster = read(
        "url = \"redis://a:hunter2@h\"\nmode = \"cluster\"\n\
         seeds = [\"redis://i:7/0\", \"redis://j\"]",
    );
    let Mode::Cluster { seeds } = &cluster.mode else { panic!("{:?}", cluster.mode) };
    assert_eq!(seeds, &["redis://i:7/0", "redis://j"]);
    let service = read(
        "url = \"redis://a:hunter2@My-cache.1/2\"\nmode = \"sentinel\"\n\
         sentinels = [\"rediss://s:hunter2@h:7\", \"redis://[::1]\"]\nca_file = \"Cargo.toml\"",
    );
    let Mode::Sentinel(sentinels) = &service.mode else { panic!("{:?}", service.mode) };
    assert_eq!(sentinels.service, "My-cache.1");
    let of_each = sentinels.list.iter().map(|one| (&*one.url, one.password.is_some()));
    let expected = [("rediss://s@h:7", true), ("redis://[::1]:26379", false)];
    assert_eq!(of_each.collect::<Vec<_>>(), expected);
}

/// The commented lines of the reference are the defaults: with them uncommented the file says the
/// same.
#[test]
fn the_reference_names_the_defaults() {
    let text = fs::read_to_string(root().join("config.toml")).unwrap();
    let (config, _) = judge(&text, &|_| None).unwrap();
    let is_default = |line: &str| {
        ["replication_url", "publication", "slot", "password_file", "ca_file", "max_retained_wal"]
            .iter()
            .chain(&[
                "password_command",
                "cert_file",
                "key_file",
                "max_stall",
                "max_load",
                "index_memory",
                "window",
                "listen",
                "format",
                "level",
                "cache",
                "rows",
                "missing",
                "mode",
                "seeds",
                "sentinels",
                "file",
                "max_bytes",
                "keep",
            ])
            .any(|name| line.starts_with(&format!("# {name} = ")))
            || ["# keys = false", "# index = false"].contains(&line)
    };
    let mut found = 0;
    let uncommented: String = text
        .lines()
        .map(|line| {
            let option = line.strip_prefix("# ").filter(|_| is_default(line));
            found += usize::from(option.is_some());
            format!("{}\n", option.unwrap_or(line))
        })
        .collect();
    assert_eq!(found, 30, "the reference names every option with a default");
    let (explicit, _) = judge(&uncommented, &|_| None).unwrap();
    assert_eq!(
        format!("{explicit:?}").replace(char::is_numeric, ""),
        format!("{config:?}").replace(char::is_numeric, "")
    );
    let retained = [&explicit, &config].map(|config| config.postgres.max_retained_wal);
    assert_eq!(retained, [Some(10 << 30); 2]);
    assert_eq!(explicit.sweep.max_stall, config.sweep.max_stall);
    assert!((explicit.sweep.max_load - config.sweep.max_load).abs() < 1e-9);
    assert_eq!([explicit.sweep.index, config.sweep.index], [None; 2]);
    assert_eq!(explicit.refill.window, config.refill.window);
    assert_eq!(explicit.http.listen, config.http.listen);
    assert_eq!((explicit.audit.max_bytes, config.audit.max_bytes), (64 << 20, 64 << 20));
    assert_eq!((explicit.audit.keep, config.audit.keep), (5, 5));
    assert_eq!((explicit.lookups[0].cache, config.lookups[0].cache), (10_000, 10_000));
}
