//! Whoever reads what a command prints may go away: the command does its work all the same.

use std::process::Output;

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually, text};

/// Runs a command whose standard output nobody reads.
fn unread(sidecar: &Sidecar, args: &[&str]) -> Output {
    let mut child = sidecar.spawn(args);
    drop(child.stdout.take());
    child.wait_with_output().unwrap()
}

#[tokio::test]
async fn teardown_removes_all_though_nobody_reads_what_it_prints() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.marked().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let output = unread(&sidecar, &["teardown"]);
    assert_eq!(bed.watermark().await, None, "{}", text(&output));
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("write standard output") && said.contains("all was done"), "{said}");
}

/// The role comes first, and is told first.
#[tokio::test]
async fn setup_makes_all_though_nobody_reads_what_it_prints() {
    let bed = Bed::new(&[]).await;
    let postgres_url = bed.postgres.url().replace("//postgres@", "//walsweep@");
    let sidecar = Sidecar::new(Settings { postgres_url, ..bed.settings() });
    let output = unread(&sidecar, &["setup", "--as", &bed.postgres.url()]);
    let made = "select (select count(*) from pg_publication)
                     + (select count(*) from pg_replication_slots)";
    assert_eq!(bed.sql.one::<i64>(made).await, 2, "{}", text(&output));
    assert!(text(&output).contains("all was done"), "{}", text(&output));
    let check = sidecar.command(&["check"]);
    assert!(check.status.success(), "{}", text(&check));
}

/// Nor what it logs: that it waits for a lock is told on standard error.
#[tokio::test]
async fn setup_makes_all_though_nobody_reads_what_it_logs() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("alter table item replica identity default").await;
    let reader = Sql::connect(&bed.postgres).await;
    reader.run("begin; select from item").await;
    let sidecar = Sidecar::new(bed.settings());
    let mut setup = sidecar.spawn(&["setup"]);
    drop((setup.stdout.take(), setup.stderr.take()));
    let queued = "select exists (select from pg_locks where not granted)";
    let waits = || async { bed.sql.one::<bool>(queued).await };
    eventually(PATIENCE, "it waits for the table", waits).await;
    // It has said so by then, and waits again.
    let passes = || async { !bed.sql.one::<bool>(queued).await };
    eventually(PATIENCE, "it lets others pass", passes).await;
    eventually(PATIENCE, "it waits for the table again", waits).await;
    reader.run("commit").await;
    let status = setup.wait().unwrap();
    assert_eq!(status.code(), Some(1), "what it printed was not read");
    let full = "select relreplident::text from pg_class where relname = 'item'";
    assert_eq!(bed.sql.one::<String>(full).await, "f");
}
