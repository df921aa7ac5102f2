//! What `explain` and `check` tell a person at real servers.

use std::process::Output;

use crate::support::{Bed, Settings, Sidecar, text};

const RULES: &str = "[[rule]]\nname = \"item\"\ntable = \"public.item\"\n\
                     keys = [\"item:{id}\", \"list:{version}:*\"]\n";

fn explain(sidecar: &Sidecar, old: &str, more: &[&str]) -> Output {
    let arguments = ["explain", "item", "--op", "delete", "--old", old];
    sidecar.command(&[&arguments, more].concat())
}

/// A typing error in a row would be taken for a column that is not sent.
#[tokio::test]
async fn explain_refuses_a_column_that_the_table_has_not() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, RULES));
    let good = explain(&sidecar, r#"{"id": 7, "version": 2}"#, &[]);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good));
    let expected = "  key      item:7  from `item:{id}`\n  \
                    pattern  list:2:*  from `list:{version}:*`\n";
    assert!(text(&good).ends_with(expected), "{}", text(&good));
    let wrong = explain(&sidecar, r#"{"id": 7, "verson": 2}"#, &[]);
    assert_eq!(wrong.status.code(), Some(1), "{}", text(&wrong));
    let said =
        "read `--old`: `public.item` has no column `verson`\n  hint: did you mean `version`?";
    assert!(text(&wrong).contains(said), "{}", text(&wrong));
    let offline = explain(&sidecar, r#"{"id": 7, "verson": 2}"#, &["--offline"]);
    assert_eq!(offline.status.code(), Some(0), "{}", text(&offline));
    let said = "unread     `verson`: no rule of `public.item` reads it; did you mean `version`?";
    assert!(text(&offline).contains(said), "{}", text(&offline));
    let other = sidecar.command(&["explain", "itme", "--op", "truncate"]);
    assert_eq!(other.status.code(), Some(1), "{}", text(&other));
    assert!(text(&other).contains("no table or materialized view `public.itme`"));
    sidecar.change(|new| new.postgres_url = "postgres://nobody@127.0.0.1:1/postgres".to_owned());
    let alone = explain(&sidecar, r#"{"id": 7, "version": 2}"#, &[]);
    assert_eq!(alone.status.code(), Some(0), "{}", text(&alone));
    assert!(text(&alone).contains("note       columns were not compared"), "{}", text(&alone));
}

/// The verdict stands with the rest, on standard output, whatever it is.
#[tokio::test]
async fn check_tells_what_is_fine_and_its_verdict_on_standard_output() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, RULES));
    sidecar.setup();
    bed.sql.run("alter table item replica identity full").await;
    let output = sidecar.command(&["check"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(output.stderr.is_empty(), "{:?}", output.stderr.escape_ascii().to_string());
    let version: String = bed.sql.one("select current_setting('server_version_num')").await;
    let version: u32 = version.parse().unwrap();
    let version = format!("{}.{}", version / 10_000, version % 10_000);
    for line in [
        &*format!("postgres  version {version} at `"),
        "redis     version ",
        "pass      over ",
        "rules     1 rule for 1 table\n",
        "rule      `item`: 1 exact key and 1 pattern of `public.item`\n",
        "info[start_sweeps]: the next start will sweep everything",
    ] {
        assert!(said.contains(&format!("\n{line}")) || said.starts_with(line), "{line}: {said}");
    }
    assert!(said.ends_with("\n`walsweep run` would start\n"), "{said}");
    bed.sql.run("drop table item").await;
    let output = sidecar.command(&["check"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("would suspend rule `item`"), "{said}");
    assert!(output.stderr.is_empty(), "{:?}", output.stderr.escape_ascii().to_string());
    // A program reads JSON alone.
    let output = sidecar.command(&["check", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &json["ok"]), (Some(1), &false.into()));
    assert_eq!(json["facts"][0]["about"], "postgres");
}
