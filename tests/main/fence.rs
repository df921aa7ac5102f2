//! I7: whom the last sweep of everything waits for, and whom not.

use std::rc::Rc;

use redis::AsyncCommands as _;
use tokio_postgres::{Client, NoTls};
use walsweep::command::load::judge;
use walsweep::postgres::{Endpoint, connect_sql};
use walsweep::settle::{Holder, Probe as _, Relations, SqlProbe};

use crate::support::{Bed, PATIENCE, Sidecar, Sql, eventually};

/// A server that takes prepared transactions.
const CONF: &[&str] = &["max_prepared_transactions = 10"];

/// A session of another database of the same cluster.
async fn elsewhere(bed: &Bed) -> Client {
    bed.sql.run("create database elsewhere").await;
    let url = bed.postgres.url_of("elsewhere");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("create table item (id int)").await.unwrap();
    client
}

/// Begins anew without a watermark: everything is swept, and once more behind the fence.
async fn begin_anew(bed: &Bed, sidecar: &mut Sidecar) {
    assert_eq!(sidecar.sigterm().await, 0);
    let _: () = bed.cache.clone().del("walsweep:walsweep").await.unwrap();
    bed.fill(&["item:1"]).await;
    sidecar.start();
    bed.gone("item:1").await;
}

/// Waits until `/readyz` says all of these.
async fn says(sidecar: &Sidecar, parts: &[&str]) {
    eventually(PATIENCE, &format!("/readyz says {parts:?}"), || async {
        let (_, body) = sidecar.get("/readyz").await.unwrap_or_default();
        parts.iter().all(|part| body.contains(part))
    })
    .await;
}

/// A migration here, while other databases have transactions that stay open.
#[tokio::test]
async fn a_transaction_of_another_database_is_not_waited_for() {
    let bed = Bed::new(CONF).await;
    let other = elsewhere(&bed).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    other
        .batch_execute("begin; insert into item values (1); prepare transaction 'there'")
        .await
        .unwrap();
    other.batch_execute("begin; insert into item values (2)").await.unwrap();
    bed.fill(&["item:1"]).await;
    bed.sql.run("alter table item alter column team type varchar(99)").await;
    bed.gone("item:1").await;
    eventually(PATIENCE, "it is ready again", || async { sidecar.readyz().await == Some(200) })
        .await;
    bed.settled().await;
    other.batch_execute("rollback").await.unwrap();
    other.batch_execute("rollback prepared 'there'").await.unwrap();
}

/// Their commits, should they come, change nothing that rules look at.
#[tokio::test]
async fn a_transaction_that_writes_nothing_of_the_rules_is_not_waited_for() {
    let bed = Bed::new(CONF).await;
    bed.sql.run("create table other (id int)").await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.sql.run("begin; insert into other values (1); prepare transaction 'other'").await;
    let open = Sql::connect(&bed.postgres).await;
    open.run(
        "begin; insert into other values (2); select from item where id = 1 for update;
         savepoint s; update item set version = 1 where id = 2; rollback to s",
    )
    .await;
    begin_anew(&bed, &mut sidecar).await;
    sidecar.wait_ready().await;
    bed.settled().await;
    open.run("rollback").await;
    bed.sql.run("rollback prepared 'other'").await;
}

/// It is said for whom, and what can be done; and a stop, which could confirm nothing, does not
/// wait for them.
#[tokio::test]
async fn what_is_waited_for_is_named_and_does_not_hold_up_a_stop() {
    let bed = Bed::new(CONF).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.sql
        .run("begin; update item set version = 1 where id = 1; prepare transaction 'p''q'")
        .await;
    let open = Sql::connect(&bed.postgres).await;
    open.run("begin; update item set version = 1 where id = 2").await;
    let (xid, pid): (String, i32) = (
        open.one("select pg_current_xact_id()::text").await,
        open.one("select pg_backend_pid()").await,
    );
    begin_anew(&bed, &mut sidecar).await;
    let process = format!("transaction {xid} of Postgres process {pid}");
    says(&sidecar, &["sweeping: ", &process, "prepared as `p'q`"]).await;
    assert_eq!(sidecar.readyz().await, Some(503));
    bed.fill(&["item:1"]).await;
    assert_eq!(sidecar.sigterm().await, 0);
    let log = sidecar.log();
    assert!(!log.iter().any(|line| line.contains("stopping before everything")), "it waited");
    sidecar.start();
    bed.gone("item:1").await;
    says(&sidecar, &[&process, "prepared as `p'q`"]).await;
    open.run("rollback").await;
    says(&sidecar, &["prepared as `p'q`", "rollback prepared 'p''q'"]).await;
    // A reader caches the row as it was; then the commit is visible, and the key goes.
    bed.fill(&["item:1"]).await;
    bed.sql.run("commit prepared 'p''q'").await;
    bed.gone("item:1").await;
    sidecar.wait_ready().await;
    assert_eq!(sidecar.get("/readyz").await.unwrap().1, "ready\n");
}

/// Relations of every kind that a rule can look at, and others.
const RELATIONS: &str = "
    create table plain (id int primary key, note text);
    create table referrer (plain_id int references plain on update cascade on delete cascade);
    create table parted (id int) partition by list (id);
    create table parted_1 partition of parted for values in (1);
    create table below (id int) partition by list (id);
    create table below_2 partition of below for values in (2);
    create table base (id int);
    create table heir () inherits (base);
    create view over as select * from plain;
    create materialized view mat as select 1 as one;
    create table other (id int primary key);
    create table standby (id int);
    create table closed (id int);
    create function note(text) returns void language plpgsql as
      $$ begin insert into plain values (900, $1); exception when others then null; end $$;
    insert into plain values (1), (2), (3); insert into parted values (1);
    insert into other values (1);
    create role onlooker login;";

/// Statements that a transaction runs, and whether rules of the relations above may see a change.
const DEEDS: [(&str, bool); 28] = [
    ("insert into plain values (11)", true),
    ("update plain set note = 'x' where id = 2", true),
    ("delete from plain where id = 3", true),
    ("insert into over values (12)", true),
    ("copy plain from program 'echo 13,x' csv", true),
    ("select note('x')", true),
    ("truncate referrer, plain", true),
    ("insert into parted values (1)", true),
    ("insert into parted_1 values (1)", true),
    ("truncate parted_1", true),
    ("insert into below_2 values (2)", true),
    ("insert into heir values (1)", true),
    ("refresh materialized view mat", true),
    ("alter table plain add column more int", true),
    ("alter table other rename to other_2; alter table plain rename to other", true),
    ("create table late partition of parted for values in (7)", true),
    ("alter table parted attach partition closed for values in (8)", true),
    ("savepoint s; insert into plain values (14); release s", true),
    (
        "insert into plain values (15); savepoint s; insert into plain values (16); rollback to s",
        true,
    ),
    ("insert into other values (21)", false),
    ("update other set id = 22 where id = 1", false),
    ("select from plain where id = 1 for update", false),
    ("savepoint s; insert into plain values (17); rollback to s", false),
    ("select * from plain, parted, mat; insert into standby values (1)", false),
    ("create temporary table mine as select * from plain", false),
    ("create table made (id int); insert into made values (1)", false),
    ("truncate standby", false),
    ("select pg_logical_emit_message(true, 'any', 'x'), pg_current_xact_id()", false),
];

fn relations(message: bool) -> Relations {
    let table =
        |name: &str| format!("[[rule]]\nname = {name:?}\ntable = \"{name}\"\nkeys = [\"k:*\"]\n");
    let tables = ["plain", "parted", "below", "base"].map(table).concat();
    let view = "[[rule]]\nname = \"v\"\nmaterialized_view = \"mat\"\nkeys = [\"k:*\"]\n";
    let sent = "[[rule]]\nname = \"m\"\nmessage = \"any\"\nkeys = [\"k:*\"]\n";
    let sent = if message { sent } else { "" };
    let text = format!(
        "[postgres]\nurl = \"postgres://u@h/d\"\n[redis]\nurl = \"redis://h\"\n{tables}{view}{sent}"
    );
    let (_, rules) = judge(&text, &|_| None).unwrap();
    Relations::of_rules(&rules)
}

/// The gate's questions, asked by a role that may do nothing but log in.
async fn onlooker(bed: &Bed, relations: Relations) -> SqlProbe {
    let url = bed.postgres.url().replace("postgres@", "onlooker@");
    let sql = Rc::new(connect_sql(&Endpoint::parse(&url).unwrap(), "onlooker").await.unwrap());
    SqlProbe::new(Rc::clone(&sql)).await.unwrap().with_fences(sql, relations)
}

/// Those of the running transactions that hold a fence.
async fn held(probe: &SqlProbe, xid: u64) -> Option<Holder> {
    let holders = probe.holders(&[xid]).await.unwrap();
    assert!(holders.iter().all(|holder| holder.xid == xid), "{holders:?}");
    holders.into_iter().next()
}

async fn xid(sql: &Sql) -> u64 {
    sql.one::<String>("select pg_current_xact_id()::text").await.parse().unwrap()
}

/// I7: what is left out could not have changed what rules look at.
#[tokio::test]
async fn whoever_may_have_changed_what_rules_look_at_is_waited_for() {
    let bed = Bed::new(CONF).await;
    bed.sql.run(RELATIONS).await;
    let (rules, messages) =
        (onlooker(&bed, relations(false)).await, onlooker(&bed, relations(true)).await);
    let open = Sql::connect(&bed.postgres).await;
    let pid: i32 = open.one("select pg_backend_pid()").await;
    for (deed, matters) in DEEDS {
        open.run(&format!("begin; {deed}")).await;
        let xid = xid(&open).await;
        let holder = Holder { xid, pid: Some(pid), prepared: None };
        assert_eq!(held(&rules, xid).await, matters.then(|| holder.clone()), "{deed}");
        assert_eq!(held(&messages, xid).await, Some(holder), "{deed}");
        if deed.contains("temporary") {
            open.run("rollback").await;
            continue;
        }
        open.run("prepare transaction 'deed'").await;
        let holder = Holder { xid, pid: None, prepared: Some("deed".to_owned()) };
        assert_eq!(held(&rules, xid).await, matters.then(|| holder.clone()), "{deed}, prepared");
        assert_eq!(held(&messages, xid).await, Some(holder), "{deed}, prepared");
        open.run("rollback prepared 'deed'").await;
        assert_eq!(held(&rules, xid).await.and_then(|one| one.pid), None, "{deed}: in doubt");
    }
}

/// Transactions that were prepared before a crash keep their locks; a table that is missing may be
/// in the making.
#[tokio::test]
async fn a_crash_and_a_missing_table_leave_nobody_out_who_matters() {
    let mut bed = Bed::new(CONF).await;
    bed.sql.run(RELATIONS).await;
    bed.sql.run("begin; insert into parted values (1); prepare transaction 'before'").await;
    bed.sql.run("begin; insert into other values (9); prepare transaction 'other'").await;
    let of = "select transaction::text from pg_prepared_xacts where gid = ";
    let mut ids = Vec::new();
    for gid in ["'before'", "'other'"] {
        ids.push(bed.sql.one::<String>(&format!("{of}{gid}")).await.parse::<u64>().unwrap());
    }
    bed.postgres.kill9().await.unwrap();
    bed.postgres.start_again().await.unwrap();
    bed.sql = Sql::connect(&bed.postgres).await;
    let probe = onlooker(&bed, relations(false)).await;
    let before = Holder { xid: ids[0], pid: None, prepared: Some("before".to_owned()) };
    assert_eq!(probe.holders(&ids).await.unwrap(), [before]);
    for statement in
        ["rollback prepared 'before'", "rollback prepared 'other'", "drop table base cascade"]
    {
        bed.sql.run(statement).await;
    }
    let open = Sql::connect(&bed.postgres).await;
    open.run("begin; create table base (id int); insert into base values (1)").await;
    let made = xid(&open).await;
    assert!(held(&probe, made).await.is_some(), "it makes a table of a rule");
    open.run("rollback").await;
    open.run("begin; insert into other values (9)").await;
    let other = xid(&open).await;
    assert_eq!(held(&probe, other).await, None);
}
