//! How psql runs what is printed: in one transaction, without autocommit, in another encoding.

use std::io::Write;
use std::process::{Output, Stdio};

use crate::support::{Bed, Settings, Sidecar, text};

use super::rule;

const IDENTITY: &str = "select relreplident::text from pg_class where relname = 'item'";

const PUBLICATIONS: &str =
    "select coalesce(string_agg(pubname, ' '), 'none')::text from pg_publication";

/// Runs a script with psql, given these arguments, in a session of this encoding.
fn run(bed: &Bed, args: &[&str], encoding: &str, script: &str) -> Output {
    let url = bed.postgres.url();
    let mut psql = bed.postgres.command("psql");
    psql.env("PGCLIENTENCODING", encoding).args(["-X", "-q", "-d", &url, "-f", "-"]).args(args);
    psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut psql = psql.spawn().unwrap();
    psql.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    psql.wait_with_output().unwrap()
}

fn printed(sidecar: &Sidecar, command: &str) -> String {
    let output = sidecar.command(&[command, "--print"]);
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Each table would stay locked while the script waits for the next one.
#[tokio::test]
async fn the_printed_script_refuses_to_be_one_transaction() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("alter table item replica identity default").await;
    let sidecar = Sidecar::new(bed.settings());
    let script = printed(&sidecar, "setup");
    let output = run(&bed, &["-1"], "UTF8", &script);
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("this has to be run outside a transaction block"), "{said}");
    assert!(said.contains("psql without -1"), "{said}");
    assert_eq!(bed.sql.one::<String>(IDENTITY).await, "d", "{said}");
    assert_eq!(bed.sql.one::<String>(PUBLICATIONS).await, "none", "{said}");
    // So does a part of it that somebody runs alone, whatever path the session has.
    let (_, part) = script.split_once("\n-- `").unwrap();
    let (_, part) = part.split_once("\ndo $setup$\n").unwrap();
    let (part, _) = part.split_once("\n$setup$;\n").unwrap();
    let part = format!("begin;\ndo $setup$\n{part}\n$setup$;\ncommit;\n");
    let output = run(&bed, &["-v", "ON_ERROR_STOP=1"], "UTF8", &part);
    assert!(text(&output).contains("outside a transaction block"), "{}\n{part}", text(&output));
}

#[tokio::test]
async fn the_printed_scripts_are_done_in_a_session_without_autocommit() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("alter table item replica identity default").await;
    let sidecar = Sidecar::new(bed.settings());
    let output = run(&bed, &["-v", "AUTOCOMMIT=off"], "UTF8", &printed(&sidecar, "setup"));
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(bed.sql.one::<String>(IDENTITY).await, "f", "{}", text(&output));
    assert_eq!(bed.sql.one::<String>(PUBLICATIONS).await, "walsweep", "{}", text(&output));
    let output = run(&bed, &["-v", "AUTOCOMMIT=off"], "UTF8", &printed(&sidecar, "teardown"));
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(bed.sql.one::<String>(PUBLICATIONS).await, "none", "{}", text(&output));
}

/// A script does not commit what somebody has not committed yet, nor does it do anything else.
#[tokio::test]
async fn the_printed_scripts_are_refused_in_an_open_transaction() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    for command in ["setup", "teardown"] {
        for (args, begin) in [(&["-v", "AUTOCOMMIT=off"][..], ""), (&[], "begin;\n"), (&["-1"], "")]
        {
            let script = printed(&sidecar, command);
            let script = format!("{begin}delete from item where id = 7;\n{script}rollback;\n");
            let output = run(&bed, args, "UTF8", &script);
            let said = text(&output);
            assert!(said.contains("outside a transaction block"), "{command} {args:?}: {said}");
            let there: i64 = bed.sql.one("select count(*) from item where id = 7").await;
            assert_eq!(there, 1, "{command} {args:?}: {said}");
        }
    }
    let slots = "select count(*) from pg_replication_slots, pg_publication";
    assert_eq!(bed.sql.one::<i64>(slots).await, 1, "nothing is dropped");
}

/// Limits that a role has end no part of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_printed_scripts_are_done_whatever_limits_the_role_has() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "alter table item replica identity default;
             alter role postgres set default_transaction_read_only = on;
             alter role postgres set default_transaction_deferrable = on;
             alter role postgres set statement_timeout = '1500ms'",
        )
        .await;
    let sidecar = Sidecar::new(bed.settings());
    let holder = crate::support::Sql::connect(&bed.postgres).await;
    holder.run("begin; set transaction read write; select from item").await;
    let script = printed(&sidecar, "setup");
    let held = tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        holder.run("commit").await;
    });
    let output = tokio::task::block_in_place(|| run(&bed, &[], "UTF8", &script));
    assert!(output.status.success(), "{}", text(&output));
    held.await.unwrap();
    assert_eq!(bed.sql.one::<String>(IDENTITY).await, "f", "{}", text(&output));
    let output = run(&bed, &[], "UTF8", &printed(&sidecar, "teardown"));
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(bed.sql.one::<String>(PUBLICATIONS).await, "none", "{}", text(&output));
}

#[tokio::test]
async fn the_printed_scripts_mean_the_same_names_in_a_session_of_another_encoding() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create table \"café\" (id int primary key, name text not null)").await;
    let rules = rule("café", &["k:{name}"]).replace("public.café", "public.\\\"café\\\"");
    let rules = rules.replace("name = \"café\"", "name = \"cafe\"");
    let publication = Some("été".to_owned());
    let sidecar = Sidecar::new(Settings { publication, rules, ..bed.settings() });
    let script = printed(&sidecar, "setup") + "\\echo :ENCODING\n";
    let output = run(&bed, &["-v", "ON_ERROR_STOP=1"], "LATIN1", &script);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("LATIN1"), "the session goes on as it was: {}", text(&output));
    assert_eq!(bed.sql.one::<String>(PUBLICATIONS).await, "été", "{}", text(&output));
    let output = sidecar.command(&["check"]);
    assert!(output.status.success(), "{}", text(&output));
    let output = run(&bed, &["-v", "ON_ERROR_STOP=1"], "LATIN1", &printed(&sidecar, "teardown"));
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(bed.sql.one::<String>(PUBLICATIONS).await, "none", "{}", text(&output));
}

/// Whoever reads a script into a session goes on with it: a DELETE that is to be rolled back would
/// be done for good if AUTOCOMMIT stayed on.
#[tokio::test]
async fn a_session_is_after_the_script_as_it_was_before() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("alter table item replica identity default; create schema fs").await;
    let sidecar = Sidecar::new(bed.settings());
    let shown = "\n\\echo :AUTOCOMMIT :ON_ERROR_STOP\nshow search_path;\nshow synchronous_commit;\n\
                 show lock_timeout;\nshow client_encoding;\nshow default_transaction_isolation;\n";
    let before = "\\set AUTOCOMMIT off\n\\pset tuples_only on\nset search_path = fs;\n\
                  set lock_timeout = '7s';\nset default_transaction_isolation = serializable;\n\
                  commit;\n";
    for command in ["setup", "teardown"] {
        let script = format!("{before}{}{shown}", printed(&sidecar, command));
        let output = run(&bed, &[], "LATIN1", &script);
        let said = String::from_utf8(output.stdout.clone()).unwrap();
        let lines: Vec<&str> = said.lines().map(str::trim).filter(|one| !one.is_empty()).collect();
        let expected = ["off off", "fs", "on", "7s", "LATIN1", "serializable"];
        assert_eq!(lines[lines.len() - 6..], expected, "{}", text(&output));
    }
    // Nor does what `check` prints keep a lock, or leave a setting.
    bed.sql.run("alter table item replica identity default").await;
    sidecar.setup();
    bed.sql.run("alter table item replica identity default").await;
    let check = super::checked(&sidecar);
    let sql = super::printed_sql(check.split("error[replica_identity]").nth(1).unwrap_or(&check));
    assert!(sql.contains("replica identity full"), "{check}");
    let script = format!(
        "{before}{sql}select count(*) from pg_locks where mode = 'AccessExclusiveLock';\n\
         show lock_timeout;\n"
    );
    let output = run(&bed, &[], "UTF8", &script);
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|one| !one.is_empty()).collect();
    assert_eq!(lines[lines.len() - 2..], ["0", "7s"], "{}", text(&output));
}
