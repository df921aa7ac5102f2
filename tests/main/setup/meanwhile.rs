//! Somebody else does something with a table while `setup` waits for its lock: no UPDATE of the
//! application fails for it.

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually, text};

use super::rule;

const REFUSED: &str = "the server would refuse the application's own UPDATE and DELETE: \
                       publication `other` has a column list";

/// Whether the server knows lists of columns.
async fn has_column_lists(bed: &Bed) -> bool {
    bed.sql.one("select current_setting('server_version_num')::int >= 150000").await
}

/// Runs `setup` for a rule of this table that needs a full identity, while another session has done
/// `changes` and not committed them.
async fn setup_while(bed: &Bed, table: &str, changes: &str) -> String {
    let rules = rule(table, &["k:{name}"]);
    let sidecar = Sidecar::new(Settings { rules, ..bed.settings() });
    let other = Sql::connect(&bed.postgres).await;
    other.run(&format!("begin; {changes}")).await;
    let setup = sidecar.spawn(&["setup"]);
    let queued = "select exists (select from pg_locks where not granted)";
    eventually(PATIENCE, "it waits", || async { bed.sql.one::<bool>(queued).await }).await;
    other.run("commit").await;
    let ended = tokio::task::spawn_blocking(|| setup.wait_with_output().unwrap());
    text(&ended.await.unwrap())
}

#[tokio::test]
async fn a_publication_of_what_a_table_is_a_partition_of_is_seen() {
    let bed = Bed::new(&[]).await;
    if !has_column_lists(&bed).await {
        return;
    }
    bed.sql
        .run(
            "create table pt (id int primary key, name text) partition by range (id);
             create table pt1 partition of pt for values from (0) to (1000);
             alter table pt replica identity full; insert into pt values (1, 'a')",
        )
        .await;
    let publish = "create publication other for table pt (id) \
                   with (publish_via_partition_root = true)";
    let said = setup_while(&bed, "pt", publish).await;
    bed.sql.run("update pt set name = 'b'; delete from pt").await;
    assert!(said.contains(REFUSED), "{said}");
}

/// Whoever came later did not see the other: `check` says why writes fail.
#[tokio::test]
async fn check_tells_of_a_full_identity_that_another_publication_refuses() {
    let bed = Bed::new(&[]).await;
    if !has_column_lists(&bed).await {
        return;
    }
    let sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    let said = text(&sidecar.command(&["check"]));
    assert!(!said.contains("full_identity_refused"), "{said}");
    bed.sql.run("create publication other for table item (id)").await;
    assert!(bed.sql.client().batch_execute("delete from item where id = 7").await.is_err());
    let said = text(&sidecar.command(&["check"]));
    let told = "every UPDATE and DELETE of `public.item` fails: it has a full replica identity, \
                and publication `other` has a column list for it";
    assert!(said.contains("full_identity_refused") && said.contains(told), "{said}");
}

#[tokio::test]
async fn a_table_that_takes_the_place_of_another_is_asked_about() {
    let bed = Bed::new(&[]).await;
    if !has_column_lists(&bed).await {
        return;
    }
    bed.sql.run("create table t (id int primary key, name text)").await;
    let swap = "alter table t rename to old; create table t (id int primary key, name text); \
                insert into t values (1, 'a'); create publication other for table t (id)";
    let said = setup_while(&bed, "t", swap).await;
    bed.sql.run("update t set name = 'b'; delete from t").await;
    assert!(said.contains(REFUSED) && said.contains("still wrong"), "{said}");
}

#[tokio::test]
async fn a_table_that_becomes_a_partition_is_asked_about() {
    let bed = Bed::new(&[]).await;
    if !has_column_lists(&bed).await {
        return;
    }
    bed.sql
        .run(
            "create table t (id int primary key, name text); insert into t values (1, 'a');
             create table parent (id int not null, name text, primary key (id))
               partition by range (id);
             alter table parent replica identity full;
             create publication other for table parent (id)
               with (publish_via_partition_root = true)",
        )
        .await;
    let attach = "alter table parent attach partition t for values from (0) to (1000)";
    let said = setup_while(&bed, "t", attach).await;
    bed.sql.run("update t set name = 'b'; delete from t").await;
    assert!(said.contains(REFUSED), "{said}");
}

/// A script that was printed before a migration is not done over it.
#[tokio::test]
async fn a_virtual_generated_column_that_is_new_is_seen() {
    let bed = Bed::new(&[]).await;
    if !bed.sql.one::<bool>("select current_setting('server_version_num')::int >= 180000").await {
        return;
    }
    bed.sql.run("create table t (id int primary key, name text); insert into t values (1)").await;
    let rules = rule("t", &["k:{name}"]);
    let sidecar = Sidecar::new(Settings { rules, ..bed.settings() });
    let script = String::from_utf8(sidecar.command(&["setup", "--print"]).stdout).unwrap();
    bed.sql.run("alter table t add column twice int generated always as (id * 2)").await;
    let output = super::teardown::run_psql(&bed, &script);
    assert!(text(&output).contains("virtual generated column since"), "{}", text(&output));
    bed.sql.run("update t set name = 'b'; delete from t").await;
}
