//! Whoever reads what a command prints may go away: the command does its work all the same, and
//! ends without a word.

use std::process::{Output, Stdio};

use walsweep_stage::throwaway::{Redis, RedisOptions};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually, text};

/// Runs a command whose standard output nobody reads.
fn unread(sidecar: &Sidecar, args: &[&str]) -> Output {
    let mut child = sidecar.spawn(args);
    drop(child.stdout.take());
    child.wait_with_output().unwrap()
}

/// Fails unless a command ended as one that SIGPIPE ends, and without a word.
#[track_caller]
fn assert_quiet(output: &Output) {
    assert_eq!((output.status.code(), text(output).as_str()), (Some(141), ""));
}

/// Whatever they find: `check` finds no publication, `why` no removal.
#[tokio::test]
async fn a_command_whose_reader_went_away_ends_quietly() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(bed.settings());
    for args in [
        &["check"][..],
        &["check", "--json"],
        &["coverage"],
        &["explain", "public.item", "--op", "truncate"],
        &["why", "item:1"],
        &["sweep", "item:*", "--dry-run"],
        &["setup", "--print"],
        &["teardown", "--print"],
        &["setup", "--lease", "--print"],
        &["completions", "bash"],
        &["man"],
    ] {
        let output = unread(&sidecar, args);
        assert_eq!((output.status.code(), text(&output).as_str()), (Some(141), ""), "{args:?}");
    }
    // A disk that is full is no reader that went away.
    let full = std::fs::File::create("/dev/full").unwrap();
    let child = sidecar.spawn_to(&["coverage"], Stdio::from(full));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("write standard output: No space left"), "{}", text(&output));
}

/// It is not cut off: the second target comes after what was to be told of the first.
#[tokio::test]
async fn what_is_done_to_several_targets_is_done_to_all_though_nobody_reads_what_it_prints() {
    let bed = Bed::new(&[]).await;
    let near = Redis::start(RedisOptions::default()).await.unwrap();
    let target = |name: &str, url: String| format!("name = {name:?}\nurl = {url:?}");
    let targets = vec![target("main", bed.redis.url()), target("near", near.url())];
    let sidecar = Sidecar::new(Settings { targets, ..bed.settings() });
    bed.fill(&["item:1"]).await;
    let mut other = redis::Client::open(near.url()).unwrap();
    redis::cmd("SET").arg("item:1").arg("cached").exec(&mut other).unwrap();
    assert_quiet(&unread(&sidecar, &["sweep", "item:*"]));
    assert!(!redis::cmd("EXISTS").arg("item:1").query::<bool>(&mut other).unwrap());
    bed.gone("item:1").await;
    let mut functions = || {
        let listed: Vec<redis::Value> =
            redis::cmd("FUNCTION").arg("LIST").query(&mut other).unwrap();
        listed.len()
    };
    assert_quiet(&unread(&sidecar, &["setup", "--lease"]));
    assert_eq!(functions(), 1);
    assert_quiet(&unread(&sidecar, &["teardown", "--lease"]));
    assert_eq!(functions(), 0);
}

#[tokio::test]
async fn teardown_removes_all_though_nobody_reads_what_it_prints() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.marked().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let output = unread(&sidecar, &["teardown"]);
    assert_eq!(bed.watermark().await, None, "{}", text(&output));
    assert_quiet(&output);
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
    assert_quiet(&output);
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
    assert_eq!(status.code(), Some(141), "what it printed was not read");
    let full = "select relreplident::text from pg_class where relname = 'item'";
    assert_eq!(bed.sql.one::<String>(full).await, "f");
}
