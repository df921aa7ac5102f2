//! I10: `setup` waits for no lock longer than two seconds at a time, says for whom, and what it was
//! told to leave it leaves.

use std::process::Output;
use std::time::Duration;

use tokio::time::sleep;
use walsweep_stage::throwaway::{Signal, signal};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually, text};

const QUEUED: &str = "select count(*) from pg_locks where not granted";

const IDENTITY: &str = "select relreplident::text from pg_class where relname = 'item'";

/// A table whose identity `setup` has to change, and a reader of it that does not end.
async fn read() -> (Bed, Sql, Sidecar) {
    let bed = Bed::new(&[]).await;
    bed.sql.run("alter table item replica identity default").await;
    let reader = Sql::connect(&bed.postgres).await;
    reader.run("set application_name = 'report'; begin; select from item").await;
    let sidecar = Sidecar::new(bed.settings());
    (bed, reader, sidecar)
}

async fn queued(bed: &Bed) {
    let waits = || async { bed.sql.one::<i64>(QUEUED).await > 0 };
    eventually(PATIENCE, "a statement waits for its lock", waits).await;
}

async fn wait(child: std::process::Child) -> Output {
    tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn whoever_waits_behind_setup_is_let_pass_and_setup_says_whom_it_waits_for() {
    let (bed, reader, sidecar) = read().await;
    let setup = sidecar.spawn(&["setup"]);
    queued(&bed).await;
    // Each would wait for as long as the reader reads.
    bed.sql.run("set statement_timeout = '10s'").await;
    for _ in 0..3 {
        bed.sql.run("select from item limit 1; update item set version = 1 where id = 1").await;
        queued(&bed).await;
    }
    reader.run("commit").await;
    let output = wait(setup).await;
    assert!(output.status.success(), "{}", text(&output));
    let pid: i32 = reader.one("select pg_backend_pid()").await;
    let said = format!("Postgres process {pid} (`report`) has `public.item` since 20");
    assert!(text(&output).contains(&said), "{}", text(&output));
    assert_eq!(bed.sql.one::<String>(IDENTITY).await, "f");
}

#[tokio::test]
async fn a_signal_takes_the_statement_back_from_the_server() {
    for (kind, is_prompt) in [(Signal::Int, true), (Signal::Term, true), (Signal::Kill, false)] {
        let (bed, reader, sidecar) = read().await;
        let setup = sidecar.spawn(&["setup"]);
        queued(&bed).await;
        signal(&[setup.id()], kind).unwrap();
        let output = wait(setup).await;
        assert!(!output.status.success(), "{}", text(&output));
        if is_prompt {
            assert!(text(&output).contains("was canceled"), "{}", text(&output));
        }
        // Of a client that died the server hears within half a second.
        let gone = || async { bed.sql.one::<i64>(QUEUED).await == 0 };
        eventually(Duration::from_millis(1_500), "it leaves the queue", gone).await;
        reader.run("commit").await;
        sleep(Duration::from_millis(300)).await;
        assert_eq!(bed.sql.one::<String>(IDENTITY).await, "d", "nothing is done later");
    }
}

#[tokio::test]
async fn a_slot_that_is_being_created_is_not_left_behind() {
    let bed = Bed::new(&["max_prepared_transactions = 4"]).await;
    bed.sql.run("begin; update item set version = 1 where id = 1; prepare transaction 'p'").await;
    let sidecar = Sidecar::new(bed.settings());
    let slots = "select count(*) from pg_replication_slots";
    for kind in [Signal::Int, Signal::Kill] {
        let setup = sidecar.spawn(&["setup"]);
        let begun = || async { bed.sql.one::<i64>(slots).await == 1 };
        eventually(PATIENCE, "a slot is being created", begun).await;
        sleep(Duration::from_secs(4)).await;
        signal(&[setup.id()], kind).unwrap();
        let output = wait(setup).await;
        assert!(text(&output).contains("prepared transaction `p`"), "{}", text(&output));
        // Not by the end of the connection alone, which not every system tells the server of.
        let canceled = bed.postgres.log().contains("canceling statement due to user request");
        assert!(canceled || kind == Signal::Kill, "{}", bed.postgres.log());
        let gone = || async { bed.sql.one::<i64>(slots).await == 0 };
        eventually(Duration::from_secs(3), "the slot is gone", gone).await;
    }
    bed.sql.run("commit prepared 'p'").await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(bed.sql.one::<i64>(slots).await, 0, "nor is it created later");
    sidecar.setup();
}

/// A table that was taken out of the publication, and whose identity was not given back yet.
#[tokio::test]
async fn a_setup_that_was_stopped_on_its_way_back_is_finished_by_the_next() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create table cart (id int primary key, name text not null)").await;
    let item = bed.settings().rules;
    let cart = super::rule("cart", &["cart:{name}"]);
    let mut sidecar = Sidecar::new(Settings { rules: format!("{item}{cart}"), ..bed.settings() });
    sidecar.setup();
    sidecar.change(|new| new.rules = item);
    let reader = Sql::connect(&bed.postgres).await;
    reader.run("begin; select from cart").await;
    let setup = sidecar.spawn(&["setup"]);
    queued(&bed).await;
    signal(&[setup.id()], Signal::Int).unwrap();
    let output = wait(setup).await;
    assert!(text(&output).contains("was canceled"), "{}", text(&output));
    assert_eq!(bed.sql.one::<String>(super::PUBLISHED).await, "item", "it is out");
    reader.run("commit").await;
    let said = text(&sidecar.command(&["setup"]));
    let identity = "select relreplident::text from pg_class where relname = 'cart'";
    assert_eq!(bed.sql.one::<String>(identity).await, "d", "{said}");
    let comment: String = bed.sql.one(super::COMMENT).await;
    assert!(!comment.contains("cart"), "{comment}");
    assert!(text(&sidecar.command(&["setup"])).contains("nothing to do"));
}
