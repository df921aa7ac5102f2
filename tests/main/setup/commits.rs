//! I10: a commit that waits for a standby that is gone keeps no lock on a table of the application.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Output, Stdio};

use tokio::time::{Instant, sleep};
use walsweep::config;
use walsweep::postgres::connect_sql;
use walsweep::preflight::{Does, Step};
use walsweep::run::shutdown::Shutdown;
use walsweep::setup::{self, Error, Hands, Statement};

use crate::support::{Bed, PATIENCE, Sidecar, Sql, eventually, text};

use super::printed_sql;

const IDENTITY: &str = "select relreplident::text from pg_class where relname = 'item'";

const WAITS: &str =
    "select exists (select from pg_stat_activity where wait_event = 'SyncRep' and pid <> $1)";

/// A server whose synchronous standby is missing, and a table whose identity has to be changed.
async fn alone() -> Bed {
    let bed = Bed::new(&[]).await;
    bed.sql.run("alter table item replica identity default").await;
    bed.sql.run("set synchronous_commit = local").await;
    bed.sql.run("alter system set synchronous_standby_names = 'missing'").await;
    bed.sql.run("select pg_reload_conf()").await;
    let is_set = || async {
        let fresh = Sql::connect(&bed.postgres).await;
        fresh.one::<String>("show synchronous_standby_names").await == "missing"
    };
    eventually(PATIENCE, "the setting is read", is_set).await;
    bed
}

/// Waits for a program, and ends one that does not end.
async fn ended(mut child: Child, what: &str) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() && start.elapsed() < PATIENCE {
        sleep(std::time::Duration::from_millis(10)).await;
    }
    let is_late = child.try_wait().unwrap().is_none();
    if is_late {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(!is_late && output.status.success(), "{what}: late {is_late}, {}", text(&output));
    output
}

fn psql(bed: &Bed, script: &str) -> Child {
    let mut psql = bed.postgres.command("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &bed.postgres.url(), "-f", "-"]);
    psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut psql = psql.spawn().unwrap();
    psql.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    psql
}

#[tokio::test]
async fn no_commit_of_setup_or_of_what_it_prints_waits_for_a_standby_that_is_gone() {
    let bed = alone().await;
    let sidecar = Sidecar::new(bed.settings());
    let script = String::from_utf8(sidecar.command(&["setup", "--print"]).stdout).unwrap();
    let findings = printed_sql(&super::checked(&sidecar));
    for what in ["setup", "script", "findings"] {
        bed.sql.run("set lock_timeout = '20s'; alter table item replica identity default").await;
        ended(
            match what {
                "setup" => sidecar.spawn(&["setup"]),
                "script" => psql(&bed, &script),
                _ => psql(&bed, &findings),
            },
            what,
        )
        .await;
        bed.sql.run("select from item limit 1").await;
        assert_eq!(bed.sql.one::<String>(IDENTITY).await, "f", "{what}");
        if what == "script" {
            let drop = String::from_utf8(sidecar.command(&["teardown", "--print"]).stdout).unwrap();
            ended(psql(&bed, &drop), "teardown script").await;
        } else {
            ended(sidecar.spawn(&["teardown"]), "teardown").await;
        }
        let left = "select (select count(*) from pg_publication)
                         + (select count(*) from pg_replication_slots)";
        assert_eq!(bed.sql.one::<i64>(left).await, 0, "{what}");
    }
}

/// A server that is asked to cancel a commit which waits for a standby does not undo it.
#[tokio::test]
async fn a_statement_that_was_done_all_the_same_is_not_told_as_canceled() {
    let bed = alone().await;
    let toml = format!(
        "[postgres]\nurl = {:?}\n[redis]\nurl = {:?}\n{}",
        bed.postgres.url(),
        bed.redis.url(),
        crate::support::ITEM_RULES
    );
    let config = config::parse(&toml, &|_| None, Path::new("")).config.unwrap();
    let sql = connect_sql(&config.postgres.endpoint, "test").await.unwrap();
    let (trigger, stop) = Shutdown::by_trigger();
    let hands = Hands { client: &sql, endpoint: &config.postgres.endpoint, stop };
    let statement = |sql: &str| Statement {
        step: Step { sql: sql.to_owned(), does: Does::SetPublication },
        why: String::new(),
        is_needed: true,
        after: Vec::new(),
    };
    let waiting = statement(
        "begin; set local synchronous_commit = on;
         alter table public.item replica identity full; commit",
    );
    let stopping = async {
        let own: i32 = bed.sql.one("select pg_backend_pid()").await;
        let waits = || async { bed.sql.one_of::<bool>(WAITS, &[&own]).await };
        eventually(PATIENCE, "it waits for the standby", waits).await;
        trigger.stop();
    };
    let run = setup::run(&config, &hands, &waiting);
    tokio::pin!(run);
    tokio::select! {
        done = &mut run => panic!("it does not wait: {done:?}"),
        () = stopping => {}
    }
    run.await.unwrap();
    assert_eq!(bed.sql.one::<String>(IDENTITY).await, "f");
    // The next is not sent any more.
    let next = statement("alter table public.item replica identity default");
    let stopped = setup::run(&config, &hands, &next).await.unwrap_err();
    assert!(matches!(stopped, Error::Stopped { .. }), "{stopped}");
    assert!(stopped.to_string().contains("was not run"), "{stopped}");
    assert_eq!(bed.sql.one::<String>(IDENTITY).await, "f");
}
