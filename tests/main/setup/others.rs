//! Another publication's part of a table, and a full replica identity that does not go with it.

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually, text};

use super::{printed_sql, psql, rule};

/// A table that needs a full identity and is published elsewhere, and what becomes of it.
struct Case {
    /// The first major version that knows it.
    since: i32,
    ddl: &'static str,
    /// SQL with which the owner of the other publication cures it; `None`: nothing stands in the
    /// way.
    cure: Option<&'static str>,
}

const PLAIN: &str = "create table cl (id int primary key, name text, note text);";

const SPLIT: &str = "create table cl (id int primary key, name text, note text)
                       partition by range (id);
                     create table cl_1 partition of cl for values from (0) to (100);";

const MADE: &str = "create table cl (id int primary key, name text, note text,
                                     shout text generated always as (upper(name)) stored);";

fn cases() -> Vec<Case> {
    let case = |since, tables: &'static str, other: &str, cure| {
        let ddl = Box::leak(format!("{tables} create publication other {other}").into_boxed_str());
        Case { since, ddl, cure }
    };
    let whole = Some("alter publication other set table cl");
    let stored = Some("alter publication other set (publish_generated_columns = stored)");
    vec![
        case(14, PLAIN, "for table cl", None),
        case(15, PLAIN, "for table cl (id, name)", whole),
        case(15, PLAIN, "for table cl (id, name, note)", whole),
        case(15, PLAIN, "for table cl (id, name) with (publish = 'delete')", whole),
        case(15, PLAIN, "for table cl (id, name) with (publish = 'insert')", None),
        case(15, PLAIN, "for tables in schema public", None),
        case(15, SPLIT, "for table cl (id, name) with (publish_via_partition_root = true)", whole),
        case(
            15,
            SPLIT,
            "for table cl_1 (id, name)",
            Some("alter publication other set table cl_1"),
        ),
        case(18, MADE, "for table cl", stored),
        case(18, MADE, "for all tables", stored),
        case(18, MADE, "for tables in schema public", stored),
        case(18, MADE, "for table cl with (publish_generated_columns = stored)", None),
        case(18, MADE, "for table cl with (publish = 'insert, truncate')", None),
    ]
}

async fn write(bed: &Bed, when: &str) {
    let writes = "insert into cl values (1, 'a', 'b'); update cl set name = 'c'; delete from cl";
    if let Err(error) = bed.sql.client().batch_execute(writes).await {
        panic!("{when}: {error:?}");
    }
}

/// I10: neither `setup` nor what it or `check` prints gives a table a full identity with which the
/// server refuses the application's writes because of somebody else's publication.
#[tokio::test]
async fn no_full_identity_where_another_publication_would_make_writes_fail() {
    let bed = Bed::new(&[]).await;
    let version = bed.version().await;
    let rules = rule("cl", &["cl:{name}"]);
    let sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rules));
    for case in cases().into_iter().filter(|case| version >= case.since) {
        bed.sql.run(case.ddl).await;
        write(&bed, case.ddl).await;
        if let Some(cure) = case.cure {
            let check = super::checked(&sidecar);
            assert!(check.contains("publication `other` "), "{}\n{check}", case.ddl);
            assert!(!printed_sql(&check).contains("identity full"), "{}\n{check}", case.ddl);
            let output = sidecar.command(&["setup"]);
            assert_eq!(output.status.code(), Some(1), "{}\n{}", case.ddl, text(&output));
            write(&bed, &format!("setup of {}", case.ddl)).await;
            let output = sidecar.command(&["setup", "--print"]);
            let script = String::from_utf8(output.stdout).unwrap();
            psql(&bed, "postgres", &script);
            write(&bed, &format!("script of {}\n{script}", case.ddl)).await;
            bed.sql.run(cure).await;
        }
        sidecar.setup();
        write(&bed, &format!("after the cure of {}", case.ddl)).await;
        let bare = "select count(*) from pg_class
                     where relname in ('cl', 'cl_1') and relreplident <> 'f'";
        assert_eq!(bed.sql.one::<i64>(bare).await, 0, "{}", case.ddl);
        let output = sidecar.command(&["teardown"]);
        assert!(output.status.success(), "{}", text(&output));
        bed.sql.run("drop publication other; drop table cl").await;
    }
}

/// The server allows no list with a full identity, not even one of all columns.
#[tokio::test]
async fn a_list_of_all_columns_is_taken_away_before_the_identity_is_full() {
    let bed = Bed::new(&[]).await;
    if bed.version().await < 15 {
        return;
    }
    let rules = rule("cl", &["cl:{name}"]);
    let sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rules));
    for by_hand in [false, true] {
        bed.sql.run(PLAIN).await;
        bed.sql.run("create publication walsweep for table cl (id, name, note)").await;
        if by_hand {
            for sql in printed_sql(&super::checked(&sidecar)).split_inclusive(";\n") {
                bed.sql.run(sql).await;
                write(&bed, sql).await;
            }
        } else {
            bed.sql.run(crate::data::ADOPT).await;
        }
        sidecar.setup();
        write(&bed, "after setup").await;
        let full = "select relreplident::text from pg_class where relname = 'cl'";
        assert_eq!(bed.sql.one::<String>(full).await, "f");
        bed.sql.run("alter publication walsweep set table cl (id, name, note)").await;
        let check = super::checked(&sidecar);
        assert!(check.contains("error[column_list]"), "{check}");
        sidecar.setup();
        write(&bed, "after a list by hand").await;
        assert!(sidecar.command(&["teardown"]).status.success());
        bed.sql.run("drop publication if exists walsweep; drop table cl").await;
    }
}

/// A fault that nobody but the owner of another publication can cure keeps one rule back, and no
/// other.
#[tokio::test]
async fn a_rule_that_another_publication_forbids_leaves_the_others_set_up() {
    let bed = Bed::new(&[]).await;
    if bed.version().await < 15 {
        return;
    }
    bed.sql.run(PLAIN).await;
    bed.sql.run("create publication other for table cl (id, name)").await;
    let rules = rule("cl", &["cl:{name}"]) + crate::support::ITEM_RULES;
    let mut sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rules));
    let output = sidecar.command(&["setup"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["create publication", "the others are set up", "publication `other` "] {
        assert!(said.contains(part), "{part}: {said}");
    }
    write(&bed, "setup").await;
    let again = sidecar.command(&["setup"]);
    assert_eq!(again.status.code(), Some(1), "it is still left");
    assert!(text(&again).contains("nothing else is to do"), "{}", text(&again));
    sidecar.start();
    sidecar.wait_log("rule `cl` is suspended").await;
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    bed.sql.run("alter publication other set table cl").await;
    let output = sidecar.command(&["setup"]);
    assert!(output.status.success(), "{}", text(&output));
    sidecar.wait_ready().await;
}

/// I10: nothing is published for a rule that is left if its rows could not be changed any more:
/// no heir without an identity of its own, and nothing with a virtual column in a full identity.
#[tokio::test]
async fn a_table_of_a_rule_that_is_left_stays_writable() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create table ok (id int primary key, a int);
             create table par (id int primary key, a int);
             create table heir () inherits (par);
             insert into par values (1, 1); insert into heir values (2, 2);",
        )
        .await;
    let rules = rule("ok", &["ok:{id}"]);
    let mut sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rules));
    let write = "update par set a = 3; update heir set a = 4";
    let mut cases = vec![("par", "heir", "inherit", write)];
    if bed.version().await >= 18 {
        bed.sql
            .run(
                "create table made (id int primary key, a int,
                                    twice int generated always as (a * 2) virtual);
                 alter table made replica identity full; insert into made values (1, 1);",
            )
            .await;
        cases.push(("made", "made", "virtual", "update made set a = 3"));
    }
    for (table, unpublished, why, write) in cases {
        let both = rules.clone() + &rule(table, &[&format!("{table}:{{id}}")]);
        sidecar.change(|settings| settings.rules = both);
        let output = sidecar.command(&["setup"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(why), "{}", text(&output));
        bed.sql.run(write).await;
        let published =
            format!("select count(*) from pg_publication_tables where tablename = '{unpublished}'");
        assert_eq!(bed.sql.one::<i64>(&published).await, 0, "{table}");
        let others = "select count(*) from pg_publication_tables where tablename = 'ok'";
        assert_eq!(bed.sql.one::<i64>(others).await, 1, "the others are set up");
    }
}

/// Whoever publishes a table while `setup` waits for its lock needs the identity as it is: with
/// another one the application's writes would fail.
#[tokio::test]
async fn a_publication_that_came_while_setup_waited_is_seen() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create table bare (id int, w int); insert into bare values (1, 1);
             create table narrow (id int primary key, w int); insert into narrow values (1, 1)",
        )
        .await;
    let item = bed.settings().rules;
    let mut sidecar = Sidecar::new(Settings {
        rules: format!("{item}{}", rule("bare", &["n:{w}"])),
        ..bed.settings()
    });
    sidecar.setup();
    let identity = async |table: &str| {
        let question = format!("select relreplident::text from pg_class where relname = '{table}'");
        bed.sql.one::<String>(&question).await
    };
    assert_eq!(identity("bare").await, "f");
    let is_newer = bed.version().await >= 15;
    // One is to go back to an identity that it has no key for, the other is to get a full one.
    for (table, rules, other, stays) in [
        ("bare", item.clone(), "create publication other for table bare", "f"),
        (
            "narrow",
            format!("{item}{}", rule("narrow", &["n:{id}", "w:{w}"])),
            "create publication others for table narrow (id)",
            "d",
        ),
    ] {
        if table == "narrow" && !is_newer {
            continue;
        }
        sidecar.change(|new| new.rules = rules);
        let script = String::from_utf8(sidecar.command(&["setup", "--print"]).stdout).unwrap();
        let reader = Sql::connect(&bed.postgres).await;
        reader.run(&format!("begin; select from {table}")).await;
        let setup = sidecar.spawn(&["setup"]);
        let queued =
            "select exists (select from pg_locks where not granted and relation is not null)";
        let waits = || async { bed.sql.one::<bool>(queued).await };
        eventually(PATIENCE, "it waits for the table", waits).await;
        bed.sql.run(other).await;
        reader.run("commit").await;
        let output = tokio::task::spawn_blocking(|| setup.wait_with_output().unwrap()).await;
        let said = text(&output.unwrap());
        assert_eq!(identity(table).await, stays, "{said}");
        bed.sql.run(&format!("update {table} set w = w + 1")).await;
        // So it is with a script that was printed before.
        let mut psql = bed.postgres.command("psql");
        psql.args(["-X", "-q", "-d", &bed.postgres.url(), "-c", "", "-f", "-"]);
        let said = fed(psql, &script);
        assert_eq!(identity(table).await, stays, "{said}");
        bed.sql.run(&format!("update {table} set w = w + 1")).await;
    }
}

/// Runs a program that reads this script; gives what it says.
fn fed(mut program: std::process::Command, script: &str) -> String {
    use std::process::Stdio;
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut program = program.spawn().unwrap();
    std::io::Write::write_all(&mut program.stdin.take().unwrap(), script.as_bytes()).unwrap();
    text(&program.wait_with_output().unwrap())
}
