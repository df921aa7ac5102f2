//! Everything that is printed, run as it is printed: the application writes to every table before
//! and after.

use crate::support::{Bed, Settings, Sidecar, text};

use super::{printed_sql, psql, rule};

/// A table of every replica identity, the same columns in each: `a` is what the rules need.
const TABLES: &str = "
    create table usual (id int primary key, a text not null, b text);
    create table whole (id int primary key, a text not null, b text);
    alter table whole replica identity full;
    create table indexed (id int primary key, a text not null, b text not null unique);
    alter table indexed replica identity using index indexed_b_key;
    create table nothing (id int primary key, a text not null, b text);
    alter table nothing replica identity nothing;
    create table bare (id int, a text not null, b text);
    create table deferred (id int primary key deferrable, a text not null, b text);
    create table made (id int primary key, a text not null, b text,
                       g text generated always as (a || 'x') stored);
    create table split (id int, a text not null, b text, primary key (id, a)) partition by list (a);
    create table split_1 partition of split for values in ('a1');
    create table split_2 partition of split default;
    alter table split replica identity full; alter table split_1 replica identity full;
    create table sparse (id int, a text not null, b text) partition by list (a);
    create table sparse_1 partition of sparse for values in ('a1');
    create table sparse_2 partition of sparse default;
    create table keyed (id int not null, a text not null, b text,
                        g text not null generated always as (id || 'k') stored);
    create unique index keyed_g on keyed (g);
    alter table keyed replica identity using index keyed_g;
    create table par (id int primary key, a text not null, b text);
    create table heir () inherits (par);
    create table \"it's \"\"odd\"\" $setup$\" (id int primary key, a text not null, b text);";

/// Since version 18: a column that no publication has.
const VIRTUAL: &str = "
    create table virtual (id int primary key, a text not null, b text,
                          v text generated always as (a || 'x') virtual);
    create table virtual_bare (id int, a text not null, b text,
                               v text generated always as (a || 'x') virtual);
    create table virtual_full (id int primary key, a text not null, b text,
                               v text generated always as (a || 'x') virtual);
    alter table virtual_full replica identity full;";

/// Tables that no rule names.
const ASIDE: &str = "
    create table aside (id int, a text not null, b text);
    create table aside_split (id int, a text not null, b text) partition by list (a);
    create table aside_split_1 partition of aside_split default;";

/// Those that a publication of inserts alone may have.
const ASIDE_MADE: &str = "
    create table aside_made (id int primary key, a text not null, b text,
                             v text generated always as (a || 'x') virtual);
    alter table aside_made replica identity full;";

const NAMES: [&str; 12] = [
    "usual",
    "whole",
    "indexed",
    "nothing",
    "bare",
    "deferred",
    "made",
    "split",
    "sparse",
    "keyed",
    "par",
    "it's \"odd\" $setup$",
];

fn names(version: i32) -> Vec<&'static str> {
    let more: &[&str] =
        if version >= 18 { &["virtual", "virtual_bare", "virtual_full"] } else { &[] };
    NAMES.iter().chain(more).copied().collect()
}

/// Writes to each table as the application does, in one transaction: what fails is named.
async fn write(bed: &Bed, names: &[&str], when: &str) {
    let version = bed.version().await;
    let made = if version >= 18 { Some("aside_made") } else { None };
    let more = ["heir", "aside", "aside_split"].into_iter().chain(made);
    let names: Vec<&str> = names.iter().copied().chain(more).collect();
    let writes = |name: &&str| {
        let table = format!("\"{}\"", name.replace('"', "\"\""));
        format!(
            "insert into {table} (id, a, b) values (1, 'a1', 'b1'), (2, 'a2', 'b2');
             update {table} set b = 'c' || id, a = 'a3' where id = 1;
             update {table} set id = 7 where id = 2;
             delete from {table} where id = 7; delete from {table};"
        )
    };
    let mut all: String = names.iter().map(writes).collect();
    all.push_str(
        "insert into aside.bare values ('x'); update aside.bare set a = 'y'; \
                  delete from aside.bare;",
    );
    if let Err(error) = bed.sql.client().batch_execute(&all).await {
        panic!("{when}: {error:?}");
    }
}

/// Rules that need the old value of `a`, or that take it for constant.
fn rules(names: &[&str], is_immutable: bool) -> String {
    let more = if is_immutable { "immutable = [\"a\"]\n" } else { "" };
    let rule = |(number, name): (usize, &&str)| {
        let quoted = format!("public.\"{}\"", name.replace('"', "\"\""));
        let rule = rule("NAME", &["k:{a}", "k:{id}:{new.b}"]);
        let rule = rule.replace("\"public.NAME\"", &format!("'''{quoted}'''"));
        rule.replace("NAME", &format!("r{number}")) + more
    };
    names.iter().enumerate().map(rule).collect()
}

/// Publications from before, by what is in them; `None` for none. None of them breaks a write.
fn publications(version: i32) -> Vec<Option<&'static str>> {
    let mut all = vec![
        None,
        Some("for table usual, whole with (publish = 'insert, update')"),
        Some("for table usual, indexed, split, split_1"),
        Some("for table bare, sparse, nothing with (publish = 'insert')"),
        Some("for table usual, aside with (publish = 'insert')"),
        Some("for table usual, aside_split with (publish = 'insert, truncate')"),
    ];
    if version >= 15 {
        all.push(Some("for table usual (id, a), whole where (b <> 'x'), indexed (b)"));
        all.push(Some(
            "for table made (id, b), split where (a <> 'z')
               with (publish_via_partition_root = true)",
        ));
        all.push(Some("for table usual (a) with (publish = 'insert')"));
        all.push(Some("for table usual where (b <> 'x') with (publish = 'insert')"));
        all.push(Some("for tables in schema aside with (publish = 'insert')"));
    }
    if version >= 18 {
        // What publishes a generated column is a list, or an option.
        all.push(Some("for table keyed (id, g)"));
        all.push(Some("for table usual, virtual_full with (publish = 'insert')"));
        all.push(Some("for table usual, aside_made with (publish = 'insert')"));
    }
    all
}

/// I10: neither the script of `setup --print` nor any SQL that a finding shows makes a statement of
/// the application fail, whatever was there, and whoever made the publication. Both leave the same
/// comment for `teardown`.
#[tokio::test]
async fn what_is_printed_is_run_and_every_table_can_be_written_to() {
    let bed = Bed::new(&["max_replication_slots = 64"]).await;
    let version = bed.version().await;
    let names = names(version);
    let mut count = 0;
    for publication in publications(version) {
        for is_immutable in [false, true] {
            let mut comments = Vec::new();
            for (by_script, is_ours) in [(true, true), (true, false), (false, true), (false, false)]
            {
                let what = format!("{publication:?} {is_immutable} {by_script} {is_ours}");
                reset(&bed, version).await;
                if let Some(tables) = publication {
                    bed.sql.run(&format!("create publication walsweep {tables}")).await;
                    if is_ours {
                        bed.sql.run(crate::data::ADOPT).await;
                    }
                }
                write(&bed, &names, &format!("before {what}")).await;
                let rules = rules(&names, is_immutable);
                let settings = Settings::new(&bed.postgres, &bed.redis, &rules);
                let sidecar = Sidecar::new(settings);
                let printed = if by_script {
                    String::from_utf8(sidecar.command(&["setup", "--print"]).stdout).unwrap()
                } else {
                    super::checked(&sidecar)
                };
                if by_script {
                    psql(&bed, "postgres", &printed);
                    write(&bed, &names, &format!("script {what}\n{printed}")).await;
                    tells_what_is_left(&bed, &printed).await;
                }
                if is_ours {
                    let comment = bed.sql.one::<Option<String>>(COMMENT).await;
                    comments.extend(by_script.then_some(comment));
                }
                count += by_hand(&bed, &names, &printed, &what).await;
                if is_ours && !by_script {
                    comments.push(bed.sql.one::<Option<String>>(COMMENT).await);
                }
            }
            assert_eq!(comments[0], comments[1], "{publication:?} {is_immutable}");
            let comment = comments[0].as_deref().unwrap_or_default();
            let is_told = comment.contains("\"relation\":[\"public\",\"usual\"]");
            assert!(is_told || is_immutable, "{publication:?} {comment}");
        }
    }
    assert!(count > 100, "{count} cures were run");
}

const COMMENT: &str = "select max(obj_description(oid, 'pg_publication')) from pg_publication";

/// Runs it statement by statement, as a person does; after each cure the tables are written to.
/// Gives how many cures there were.
async fn by_hand(bed: &Bed, names: &[&str], printed: &str, what: &str) -> u32 {
    let (mut count, mut is_open) = (0, false);
    for sql in printed_sql(printed).split_inclusive(";\n") {
        let sql = sql.trim_end();
        bed.sql.run(sql).await;
        is_open = (is_open || sql == "begin;") && sql != "commit;";
        if !is_open {
            write(bed, names, &format!("{sql} of {what}\n{printed}")).await;
            count += 1;
        }
    }
    count
}

/// A table of a rule that the script does not publish is named in it, with what to do about it.
async fn tells_what_is_left(bed: &Bed, script: &str) {
    let left = "select relname::text from pg_class
                 where relname like 'virtual%' and relkind = 'r'
                   and relname not in (select tablename from pg_publication_tables
                                        where pubname = 'walsweep')";
    for row in bed.sql.client().query(left, &[]).await.unwrap() {
        let name: String = row.get(0);
        let is_told = |line: &str| line.starts_with("-- By hand: ") && line.contains(&name);
        assert!(script.lines().any(is_told), "{name} is left and not told: {script}");
    }
}

async fn reset(bed: &Bed, version: i32) {
    let more = if version >= 18 { format!("{VIRTUAL}{ASIDE_MADE}") } else { String::new() };
    bed.sql
        .run(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots;
             drop publication if exists walsweep;
             drop schema if exists aside cascade; create schema aside;
             create table aside.bare (a text);
             drop schema public cascade; create schema public",
        )
        .await;
    bed.sql.run(&format!("{TABLES}{more}{ASIDE}")).await;
}

/// Whoever runs the SQL of one finding, and no other, is not worse off: that lets a publication of
/// inserts publish updates, of tables whose identity, or list, was no matter so far.
#[tokio::test]
async fn the_sql_that_adds_operations_is_run_alone_and_every_table_can_be_written_to() {
    let bed = Bed::new(&[]).await;
    let version = bed.version().await;
    let names = names(version);
    let inserts = publications(version).into_iter().flatten().filter(|one| one.contains("'insert"));
    for publication in inserts {
        reset(&bed, version).await;
        bed.sql.run(&format!("create publication walsweep {publication}")).await;
        bed.sql.run(crate::data::ADOPT).await;
        let settings = Settings::new(&bed.postgres, &bed.redis, &rules(&names, true));
        let check = text(&Sidecar::new(settings).command(&["check"]));
        let findings: Vec<&str> = check.split("\nerror[").collect();
        let told = "operation_not_published]";
        let finding =
            findings.iter().find(|one| one.trim_start_matches("error[").starts_with(told));
        let finding = finding.unwrap_or_else(|| panic!("{publication}: {check}"));
        let finding = finding.split("\nwarning[").next().unwrap();
        bed.sql.run(&printed_sql(finding)).await;
        write(&bed, &names, &format!("{publication}\n{finding}")).await;
    }
}

/// The printed script waits briefly for each lock, lets others pass, and is tried again.
#[tokio::test]
async fn the_printed_script_lets_the_application_pass_while_it_waits() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("alter table item replica identity default").await;
    let sidecar = Sidecar::new(bed.settings());
    let script = String::from_utf8(sidecar.command(&["setup", "--print"]).stdout).unwrap();
    let reader = crate::support::Sql::connect(&bed.postgres).await;
    reader.run("set application_name = 'report'; begin; select from item").await;
    let url = bed.postgres.url();
    let mut psql = bed.postgres.command("psql");
    psql.args(["-X", "-q", "-d", &url]).stdin(std::process::Stdio::piped());
    psql.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut psql = psql.spawn().unwrap();
    std::io::Write::write_all(&mut psql.stdin.take().unwrap(), script.as_bytes()).unwrap();
    let queued = "select exists (select from pg_locks where not granted)";
    let waits = || async { bed.sql.one::<bool>(queued).await };
    crate::support::eventually(crate::support::PATIENCE, "it waits", waits).await;
    // Queued behind it, and let pass.
    bed.sql.run("set statement_timeout = '10s'; select from item limit 1").await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    // That was let pass; whom it waits for is asked for only now.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    reader.run("commit").await;
    let output = psql.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("(report)"), "whom it waited for: {}", text(&output));
    let full = "select relreplident::text from pg_class where relname = 'item'";
    assert_eq!(bed.sql.one::<String>(full).await, "f");
}
