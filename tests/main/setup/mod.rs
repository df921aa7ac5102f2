//! `setup`, `check` and `teardown` do no harm (I10): what they print, wait for, own and leave.

mod claims;
mod closed;
mod commits;
mod given_up;
mod grants;
mod heirs;
mod locks;
mod login;
mod meanwhile;
mod memory;
mod old_rows;
mod others;
mod printed;
mod psql;
mod refused;
mod slot;
mod teardown;
mod together;
mod truth;
mod wanted;
mod whose;

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Bed, Sidecar, text};

/// Where the slots stand; one that was made anew stands elsewhere.
const STANDS: &str = "select coalesce(string_agg(concat_ws(' ', slot_name, restart_lsn,
                                                          confirmed_flush_lsn), ', '), 'none')
                        from pg_replication_slots";

const COMMENT: &str = "select obj_description(oid, 'pg_publication') from pg_publication
                        where pubname = 'walsweep'";

const PUBLISHED: &str = "select coalesce(string_agg(tablename, ' ' order by tablename), 'none')
                           from pg_publication_tables where pubname = 'walsweep'";

const MAKE: &str = "select pg_create_logical_replication_slot('walsweep', 'pgoutput')";

/// Its owner, `shopkeeper`, may not replicate, and `walsweep` may.
async fn owned_by_shopkeeper() -> Bed {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create role shopkeeper login; create role walsweep login replication;
             alter table item owner to shopkeeper;
             grant create on database postgres to shopkeeper",
        )
        .await;
    bed
}

/// The address of the database with the login of a role.
fn login(bed: &Bed, role: &str) -> String {
    bed.postgres.url().replace("//postgres@", &format!("//{role}@"))
}

async fn flush(bed: &Bed) {
    let _: () = redis::cmd("FLUSHALL").query_async(&mut bed.cache.clone()).await.unwrap();
}

/// Goes on under another slot name, as somebody does who changes `postgres.slot` and no more.
async fn renamed(bed: &Bed, sidecar: &mut Sidecar) {
    sidecar.change(|new| {
        (new.name, new.publication) = ("renamed".to_owned(), Some("walsweep".to_owned()));
    });
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
}

/// Runs a script with psql as this role, which must succeed.
pub(crate) fn psql(bed: &Bed, role: &str, script: &str) {
    let url = login(bed, role);
    let mut psql = bed.postgres.command("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &url]).stdin(Stdio::piped());
    let mut psql = psql.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    psql.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = psql.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{script}", text(&output));
}

/// The findings of `check`, with all SQL: on a screen it names the command that runs a long one.
pub(crate) fn checked(sidecar: &Sidecar) -> String {
    let output = sidecar.command(&["check", "--json"]);
    let json = serde_json::from_slice(&output.stdout);
    let report: Value = json.unwrap_or_else(|_| panic!("{}", text(&output)));
    let of = |part: &str| report[part].as_array().unwrap().clone();
    let all: Vec<Value> = ["postgres", "redis", "own"].iter().flat_map(|part| of(part)).collect();
    let (mut told, mut known) = (String::new(), Vec::new());
    for severity in ["error", "warning", "info"] {
        for one in all.iter().filter(|one| one["severity"] == severity) {
            let word = |name: &str| one[name].as_str();
            let (code, message) = (word("code").unwrap(), word("message").unwrap());
            told.push_str(&format!("{severity}[{code}]: {message}\n"));
            told.extend(word("hint").map(|hint| format!("    hint: {hint}\n")));
            if let Some(sql) = word("sql").filter(|sql| !known.contains(&(*sql).to_owned())) {
                known.push(sql.to_owned());
                told.push_str(&format!("    sql: {};\n", sql.replace('\n', "\n         ")));
            }
        }
    }
    let facts = of("facts").into_iter().map(|fact| format!("{}\n", fact["text"]));
    let verdict = report["verdict"]["text"].as_str().unwrap();
    format!("{told}{}{verdict}\n", facts.collect::<String>())
}

/// The SQL of findings as they are printed, in their order; also behind `-- ` in a script.
pub(crate) fn printed_sql(text: &str) -> String {
    let mut sql = String::new();
    let mut is_sql = false;
    for line in text.lines() {
        let line = line.strip_prefix("-- ").unwrap_or(line);
        is_sql = line.starts_with("    sql: ") || is_sql && line.starts_with("         ");
        if is_sql {
            sql.push_str(line.strip_prefix("    sql: ").unwrap_or(line).trim_start());
            sql.push('\n');
        }
    }
    sql
}

/// A rule without anything unusual.
fn rule(name: &str, keys: &[&str]) -> String {
    format!("[[rule]]\nname = {name:?}\ntable = \"public.{name}\"\nkeys = {keys:?}\n")
}

#[test]
fn the_sql_of_findings_is_found_in_what_is_printed() {
    let text = "error[a]: x\n    hint: y\n    sql: begin;\n         commit;\n\
                warning[b]: z\n-- Not needed, but: c\n--     sql: d;\n--          e;\n-- f";
    assert_eq!(printed_sql(text), "begin;\ncommit;\nd;\ne;\n");
}
