//! Statements of README.md and docs/guarantee.md besides what other tests hold: limits that an
//! operator has to know, and what Postgres and Redis do that is no code of walsweep's.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::{Command, Output};

use redis::cmd;
use walsweep::postgres::{Endpoint, connect_sql};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text};

const README: &str = include_str!("../../README.md");

const PROGRAM: &str = env!("CARGO_BIN_EXE_walsweep");

/// Options of other programs that the README names.
const FOREIGN: [&str; 3] = ["--cluster", "--locked", "--path"];

const EXACT_RULES: &str = r#"
[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}"]
"#;

const LOST: &str = "walsweep_resyncs_total{reason=\"watermark_lost\"}";

/// With one name for both slots each takes the other's watermark for a loss, again and again; with
/// two names neither notices the other.
#[tokio::test]
async fn two_walsweeps_on_one_redis_need_slots_of_different_names() {
    let (one, two) = (Bed::new(&[]).await, Bed::new(&[]).await);
    for (second, differ) in [("walsweep", false), ("second", true)] {
        let settings = Settings {
            redis_url: one.redis.url(),
            name: second.to_owned(),
            rules: EXACT_RULES.to_owned(),
            ..two.settings()
        };
        let first = Sidecar::set_up(Settings { rules: EXACT_RULES.to_owned(), ..one.settings() });
        let first = first.await;
        let before = first.metric(LOST).await;
        let other = Sidecar::set_up(settings).await;
        let commit = async || {
            one.sql.run("update item set version = version + 1 where id = 1").await;
            two.sql.run("update item set version = version + 1 where id = 1").await;
        };
        if differ {
            for _ in 0..3 {
                commit().await;
                one.settled().await;
                two.settled().await;
            }
            assert_eq!((first.metric(LOST).await, other.metric(LOST).await), (before, 0.0));
        } else {
            eventually(PATIENCE * 2, "both lose it again and again", async || {
                commit().await;
                let (first, other) = (first.metric(LOST).await, other.metric(LOST).await);
                first >= 2.0 && other >= 2.0
            })
            .await;
        }
    }
}

/// Redis does not tell which keys come with it, so that no second removal takes them; but the
/// database that is there now has fewer removals than were made.
#[tokio::test]
async fn a_database_that_swapdb_exchanges_is_swept() {
    let bed = Bed::new(&[]).await;
    let settings = Settings { observe: true, refill: "5s".to_owned(), ..bed.settings() };
    let rules = EXACT_RULES.to_owned();
    let sidecar = Sidecar::set_up(Settings { rules, ..settings }).await;
    bed.settled().await;
    bed.marked().await;
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    let mut other = bed.redis.connect().await.unwrap();
    cmd("SELECT").arg(1).exec_async(&mut other).await.unwrap();
    for key in ["item:1", "item:77", "other"] {
        cmd("SET").arg(key).arg("0").exec_async(&mut other).await.unwrap();
    }
    cmd("SWAPDB").arg(0).arg(1).exec_async(&mut other).await.unwrap();
    bed.gone("item:1").await;
    bed.gone("item:77").await;
    assert!(bed.has("other").await);
    assert!(sidecar.metric(LOST).await >= 1.0);
}

/// The application sees UPDATE and DELETE refused after a migration that takes the primary key of a
/// published table.
#[tokio::test]
async fn without_a_primary_key_updates_of_a_published_table_fail_until_there_is_another_identity() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run("create table page (id int primary key, a text); insert into page values (1)")
        .await;
    let rules = EXACT_RULES.replace("public.item", "public.page");
    let sidecar = Sidecar::new(Settings { rules, ..bed.settings() });
    sidecar.setup();
    let writes = ["update page set a = 'x'", "delete from page where id = 2"];
    for cure in ["add primary key (id)", "replica identity full"] {
        bed.sql.run("alter table page replica identity default").await;
        bed.sql.run("alter table page drop constraint if exists page_pkey").await;
        for write in writes {
            let error = bed.sql.client().batch_execute(write).await.unwrap_err();
            let said = error.as_db_error().unwrap().message().to_owned();
            assert!(said.contains("does not have a replica identity"), "{write}: {said}");
        }
        let check = text(&sidecar.command(&["check"]));
        assert!(check.contains("error[no_identity]"), "{check}");
        bed.sql.run(&format!("alter table page {cure}")).await;
        for write in writes {
            bed.sql.run(write).await;
        }
    }
}

/// Postgres says what the README quotes about columns that a publication lists or filters by.
#[tokio::test]
async fn postgres_refuses_what_a_column_list_or_a_row_filter_forbids() {
    let bed = Bed::new(&[]).await;
    if bed.version().await < 15 {
        return;
    }
    let table = "create table page (id int primary key, a text, b text);
                 create table part (id int primary key, a int not null);
                 create unique index part_key on part (id, a);
                 alter table part replica identity using index part_key";
    bed.sql.run(table).await;
    bed.sql.run("create publication listed for table page (id, a)").await;
    bed.sql.run("create publication filtered for table part where (a > 0)").await;
    bed.sql.run("insert into page values (1); insert into part values (1, 1)").await;
    let full = "alter table page replica identity full; update page set b = 'x'";
    let shrunk = "alter table part replica identity default; delete from part";
    for (statement, expected) in [
        ("alter table page drop column a", "because other objects depend on it"),
        ("alter table page alter column a type varchar(9)", "a publication WHERE clause"),
        ("alter table part alter column a type bigint", "a publication WHERE clause"),
        (full, "Column list used by the publication does not cover the replica identity"),
        (
            shrunk,
            "Column used in the publication WHERE expression is not part of the replica identity",
        ),
    ] {
        let error = bed.sql.client().batch_execute(statement).await.unwrap_err();
        let server = error.as_db_error().unwrap();
        let said = format!("{} {}", server.message(), server.detail().unwrap_or_default());
        assert!(said.contains(expected), "{statement}: {said}");
        assert!(README.contains(expected), "the README does not quote `{expected}`");
    }
}

/// Of a host that does not answer no time is taken away from the others.
#[tokio::test]
async fn each_host_has_connect_timeout_for_itself() {
    let bed = Bed::new(&[]).await;
    // Whoever connects is never answered.
    let silent = [0; 3].map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let ports = silent.iter().map(|one| one.local_addr().unwrap().port());
    let hosts: Vec<String> =
        ports.chain([bed.postgres.port()]).map(|port| format!("127.0.0.1:{port}")).collect();
    let url = format!(
        "postgres://postgres@{}/postgres?sslmode=disable&connect_timeout=1",
        hosts.join(",")
    );
    let sql = connect_sql(&Endpoint::parse(&url).unwrap(), "test").await.unwrap();
    assert_eq!(sql.address(), *hosts.last().unwrap());
    let passed: Vec<String> = sql.passed_over().iter().map(ToString::to_string).collect();
    assert_eq!(passed.len(), 3, "{passed:?}");
    for (host, passed) in hosts.iter().zip(&passed) {
        assert!(passed.contains(host) && passed.contains("no answer within 1 s"), "{passed}");
    }
}

/// A standby tells its timeline over a replication connection alone.
#[tokio::test]
async fn a_replica_is_asked_by_a_role_that_may_replicate() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create role plain login; create role reader login replication").await;
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    for (role, expected) in
        [("plain", "warning[replica_privileges]"), ("reader", "info[replica_follows]")]
    {
        let url = standby.url().replace("postgres@", &format!("{role}@"));
        let postgres = format!("replicas = [{url:?}]");
        let sidecar = Sidecar::new(Settings { postgres, ..bed.settings() });
        sidecar.setup();
        let check = text(&sidecar.command(&["check"]));
        assert!(check.contains(expected), "{role}: {check}");
        let is_told = check.contains("have REPLICATION");
        assert_eq!(is_told, role == "plain", "{role}: {check}");
    }
}

/// Walsweep tells a crash of the server from a restart by the statistics that a crash takes away.
#[tokio::test]
async fn statistics_that_are_reset_look_like_a_crash() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.marked().await;
    let unclean = "walsweep_resyncs_total{reason=\"unclean_restart\"}";
    let end = "select count(pg_terminate_backend(active_pid)) from pg_replication_slots";
    bed.sql.run(end).await;
    bed.settled().await;
    assert!(sidecar.metric(unclean).await < 1.0, "a session that ended");
    bed.sql.run("select pg_stat_reset_shared('archiver')").await;
    bed.sql.run(end).await;
    eventually(PATIENCE, "it is swept", || async { sidecar.metric(unclean).await >= 1.0 }).await;
}

/// Whoever alters a table that a lookup reads, and whose answers are not kept, changes cached pages
/// unseen: the documents say so.
#[tokio::test]
async fn a_table_of_a_lookup_is_watched_only_if_its_answers_are_kept() {
    for (cache, is_swept) in [(0, false), (10, true)] {
        let bed = Bed::new(&[]).await;
        bed.sql.run("create table club (id int primary key, label text, city text)").await;
        bed.sql.run("alter table club replica identity full").await;
        let rules = format!(
            "[lookup.club]\nsql = \"select label from club where id = $1\"\nparams = [\"id\"]\n\
             cache = {cache}\n{}",
            EXACT_RULES.replace("item:{id}", "item:{club.label}")
        );
        let sidecar = Sidecar::new(Settings { rules, ..bed.settings() });
        sidecar.setup();
        bed.sql.run("alter publication walsweep add table only club").await;
        let mut sidecar = sidecar;
        sidecar.start();
        sidecar.wait_ready().await;
        bed.settled().await;
        bed.fill(&["item:x"]).await;
        bed.sql.run("alter table club drop column city").await;
        // The lookup's own table is another matter: this one is looked at in any case.
        bed.sql.run("create table noticed (id int)").await;
        if is_swept {
            bed.gone("item:x").await;
        } else {
            let stays = || bed.has("item:x");
            crate::support::always(std::time::Duration::from_secs(5), "it stays", stays).await;
        }
    }
}

/// The text of the blocks of a language in a section of the README.
fn blocks(section: &str, language: &str) -> Vec<String> {
    let (heading, begin) = (format!("\n## {section}\n"), format!("\n```{language}\n"));
    let section = README.split(&heading).nth(1).expect("it has the section");
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split(&begin).skip(1);
    blocks.map(|rest| rest.split("\n```").next().unwrap().to_owned()).collect()
}

/// All words that are options.
fn options(text: &str) -> BTreeSet<&str> {
    let is_of_option = |one: char| one.is_ascii_alphanumeric() || one == '-';
    let words = text.split(|one| !is_of_option(one));
    let starts = |word: &&str| word.starts_with("--") && word[2..].starts_with(char::is_alphabetic);
    words.filter(starts).collect()
}

fn walsweep(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

#[test]
fn every_option_that_the_readme_names_is_there() {
    let mut help = text(&walsweep(&["--help"]));
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = commands.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names: Vec<String> = names.filter(|name| !name.is_empty()).map(str::to_owned).collect();
    assert!(names.len() > 8, "{names:?}");
    for name in names.iter().filter(|name| *name != "help") {
        help.push_str(&text(&walsweep(&[name, "--help"])));
    }
    let (known, named) = (options(&help), options(README));
    assert!(named.len() > 15, "{named:?}");
    let unknown: Vec<&str> = named.difference(&known).copied().collect();
    assert_eq!(unknown, FOREIGN);
}

/// A newcomer copies this configuration and this question first.
#[test]
fn the_first_configuration_and_question_of_the_readme_are_answered() {
    let section = "Try it on your own table";
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.toml"), &blocks(section, "toml")[0]).unwrap();
    std::fs::write(folder.path().join("pg.password"), "secret").unwrap();
    let commands = &blocks(section, "console")[0];
    let question = commands.lines().find_map(|line| line.strip_prefix("$ walsweep explain "));
    let script = format!("{PROGRAM} explain {} --offline", question.unwrap());
    let output = Command::new("sh").args(["-c", &script]).current_dir(&folder).output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for part in ["key      user:1 ", "pattern  team:2:* ", "pattern  team:3:* "] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
