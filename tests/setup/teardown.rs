//! `teardown` drops all that is its to drop or nothing, and tells what it did.

use walsweep::throwaway::{Signal, signal};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually, text};

use super::{psql, rule};

const LEFT: &str = "select (select count(*) from pg_replication_slots)
                         + (select count(*) from pg_publication)";

#[tokio::test]
async fn a_role_that_does_not_own_the_publication_drops_nothing_and_the_owner_all() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create role shopkeeper login; create role walsweep login replication;
             create table cart (id int primary key); alter table cart owner to shopkeeper;
             grant create on database postgres to shopkeeper",
        )
        .await;
    let postgres_url = bed.postgres.url().replace("//postgres@", "//walsweep@");
    let rules = rule("cart", &["cart:{id}"]);
    let sidecar = Sidecar::new(Settings { postgres_url, rules, ..bed.settings() });
    let owner = bed.postgres.url().replace("//postgres@", "//shopkeeper@");
    let output = sidecar.command(&["setup", "--as", &owner]);
    assert!(output.status.success(), "{}", text(&output));
    sidecar.setup();
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 2);
    let output = sidecar.command(&["teardown"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 2, "{said}");
    for part in [
        "publication `walsweep` of `shopkeeper`",
        "nothing was dropped",
        "`walsweep teardown --as URL`",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("walsweep setup"), "{said}");
    // Who may not drop the slot lets walsweep's role do it.
    let said = text(&sidecar.command(&["teardown", "--as", &owner]));
    for part in ["dropped slot `", "dropped publication `walsweep`"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 0, "{said}");
}

#[tokio::test]
async fn a_teardown_that_comes_no_further_tells_what_it_dropped() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    let other = Sql::connect(&bed.postgres).await;
    other.run("begin; drop publication walsweep").await;
    let teardown = sidecar.spawn(&["teardown"]);
    let waits = || async {
        bed.sql.one::<i64>("select count(*) from pg_locks where not granted").await > 0
    };
    eventually(PATIENCE, "it waits for the publication", waits).await;
    signal(&[teardown.id()], Signal::Int).unwrap();
    let output = tokio::task::spawn_blocking(|| teardown.wait_with_output().unwrap()).await;
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("dropped slot `"), "{}", text(&output));
    other.run("rollback").await;
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("dropped publication `walsweep`"), "{said}");
}

#[tokio::test]
async fn teardown_print_shows_the_sql_while_walsweep_runs_and_says_to_stop_it_first() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    let output = sidecar.command(&["teardown", "--print"]);
    assert!(output.status.success(), "{}", text(&output));
    let script = String::from_utf8(output.stdout).unwrap();
    let holder: i32 = bed.sql.one("select active_pid from pg_replication_slots").await;
    let first = format!("-- Stop walsweep first: process {holder} (");
    let at = |part: &str| script.find(part).unwrap_or_else(|| panic!("no {part}: {script}"));
    assert!(at(&first) < at("select pg_catalog.pg_drop_replication_slot("), "{script}");
    let output = sidecar.command(&["teardown"]);
    assert!(text(&output).contains("streams from it"), "{}", text(&output));
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 2, "nothing is dropped");
    assert_eq!(sidecar.sigterm().await, 0);
    psql(&bed, "postgres", &script);
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 0, "{script}");
}
