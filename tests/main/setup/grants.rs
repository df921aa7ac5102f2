//! Rights that only the owner of a thing may grant: Postgres answers a GRANT by somebody else with
//! a mere warning, and nobody is told that it is done, or sent in a circle.

use std::io::Write;
use std::process::{Output, Stdio};

use tokio_postgres::NoTls;

use crate::support::{Bed, ITEM_RULES, Settings, Sidecar, text};
use walsweep_stage::throwaway::{Postgres, PostgresOptions, Redis, RedisOptions};

use super::rule;

/// A database of `dba`, in which `clerk` owns the tables and may connect, as others may not.
const DATABASE: &str = "
    create role dba login; create role clerk login; create role registrar;
    create role walsweep login replication;
    create database shop owner dba;
    revoke connect on database shop from public;
    grant connect, create on database shop to clerk;";

const ITEM: &str = "
    create table item (id int primary key, team text, version bigint not null default 0);
    alter table item owner to clerk;";

/// The table that a lookup reads is somebody else's; `clerk` may read it.
const CLUB: &str = "
    create schema guild authorization registrar; grant usage on schema guild to clerk;
    create table guild.club (id int primary key, name text);
    alter table guild.club owner to registrar; grant select on guild.club to clerk;
    create table cart (id int primary key, club int, name text not null);
    alter table cart owner to clerk;";

const LOOKUP: &str = "[lookup.club]\nsql = \"select name from guild.club where id = $1\"\n\
                      params = [\"club\"]\n";

const CONNECT: &str = "grant connect on database \"shop\" to \"walsweep\"";

const MADE: &str = "select (select count(*) from pg_publication)
                         + (select count(*) from pg_replication_slots)";

fn login(bed: &Bed, role: &str) -> String {
    bed.postgres.url_of("shop").replace("//postgres@", &format!("//{role}@"))
}

/// A session of a superuser in the database.
async fn shop(bed: &Bed) -> tokio_postgres::Client {
    let (client, connection) =
        tokio_postgres::connect(&bed.postgres.url_of("shop"), NoTls).await.unwrap();
    drop(tokio::spawn(connection));
    client
}

async fn made(client: &tokio_postgres::Client) -> i64 {
    client.query_one(MADE, &[]).await.unwrap().get(0)
}

/// Runs a script with psql in the database as this role.
fn psql(bed: &Bed, role: &str, script: &str) -> Output {
    let mut psql = bed.postgres.command("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &login(bed, role)]);
    psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut psql = psql.spawn().unwrap();
    psql.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    psql.wait_with_output().unwrap()
}

/// The parts of a script, behind what it says in short at its head.
fn without_summary(script: &str) -> &str {
    let (_, rest) = script.split_once("-- In short").unwrap();
    rest.split_once("\n\n").unwrap().1
}

/// `check`, `setup` and what it prints name the owner and the whole statement; run, it cures.
#[tokio::test]
async fn a_grant_of_connect_that_did_not_take_is_told_with_the_owner_and_the_statement() {
    let bed = Bed::new(&[]).await;
    for statement in DATABASE.split(';') {
        bed.sql.run(statement).await;
    }
    let sql = shop(&bed).await;
    sql.batch_execute(ITEM).await.unwrap();
    let sidecar =
        Sidecar::new(Settings { postgres_url: login(&bed, "walsweep"), ..bed.settings() });
    let cure = format!("let `dba`, who owns database `shop`, or a superuser run `{CONNECT}`");
    let refused = |sidecar: &Sidecar| {
        let checked = sidecar.command(&["check"]);
        let said = text(&checked);
        assert_eq!(checked.status.code(), Some(1), "{said}");
        assert!(said.contains("permission denied for database \"shop\""), "{said}");
        assert!(said.contains(&format!("hint: {cure}")), "{said}");
        assert!(!said.contains('…') && !said.contains("setup --as"), "{said}");
    };
    refused(&sidecar);
    for command in [&["setup"][..], &["run"]] {
        let said = text(&sidecar.command(command));
        let owner = format!(
            "let the owner of database `shop`, whom `psql -l` names, or a superuser run `{CONNECT}`"
        );
        assert!(said.contains(&owner), "{command:?}: {said}");
    }
    let output = sidecar.command(&["setup", "--as", &login(&bed, "clerk")]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "postgres refused a statement: no privileges were granted: the owner may",
        &format!("; it was `{CONNECT}`"),
        &format!("hint: `dba` owns database `shop`: let that role run `{CONNECT}`; or `walsweep"),
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(output.stdout.is_empty(), "nothing is told as done: {said}");
    assert_eq!(made(&sql).await, 0, "{said}");
    refused(&sidecar);
    // Printed, it names the owner, and fails for others as well.
    let output = sidecar.command(&["setup", "--print", "--as", &login(&bed, "clerk")]);
    assert!(output.status.success(), "{}", text(&output));
    let script = String::from_utf8(output.stdout).unwrap();
    let parts = without_summary(&script);
    let (before, after) = parts.split_once(CONNECT).unwrap_or_else(|| panic!("{script}"));
    assert!(before.contains("-- By `dba`, who owns database `shop`:\n"), "{script}");
    assert!(after.contains("-- By `clerk`, who owns table `public.item`:\n"), "{script}");
    let output = psql(&bed, "clerk", &script);
    assert!(!output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("no privileges were granted"), "{}", text(&output));
    assert_eq!(made(&sql).await, 0, "{}", text(&output));
    let output = psql(&bed, "dba", &format!("{CONNECT};"));
    assert!(output.status.success(), "{}", text(&output));
    let output = sidecar.command(&["setup", "--as", &login(&bed, "clerk")]);
    assert!(output.status.success(), "{}", text(&output));
    let checked = sidecar.command(&["check"]);
    assert!(checked.status.success(), "{}", text(&checked));
}

/// Nothing is done then, for a rule with the lookup would be suspended; and whoever may grant a
/// right on, without owning anything, is let.
#[tokio::test]
async fn who_may_not_grant_what_a_lookup_reads_changes_nothing_and_reads_who_may() {
    let bed = Bed::new(&[]).await;
    for statement in DATABASE.split(';') {
        bed.sql.run(statement).await;
    }
    bed.sql.run("grant connect on database shop to walsweep").await;
    let sql = shop(&bed).await;
    sql.batch_execute(CLUB).await.unwrap();
    let rules = LOOKUP.to_owned() + &rule("cart", &["cart:{club.name}"]);
    let postgres_url = login(&bed, "walsweep");
    let sidecar = Sidecar::new(Settings { postgres_url, rules, ..bed.settings() });
    let checked = text(&sidecar.command(&["check"]));
    for part in [
        "error[lookup_privilege]",
        "hint: whoever owns it may grant that, or a superuser: `registrar` owns `guild.club`, \
         schema `guild`",
        "sql: grant usage on schema \"guild\" to \"walsweep\";",
    ] {
        assert!(checked.contains(part), "{part}: {checked}");
    }
    let as_clerk = || sidecar.command(&["setup", "--as", &login(&bed, "clerk")]);
    let grants = "grant usage on schema \"guild\" to \"walsweep\"; \
                  grant select on \"guild\".\"club\" to \"walsweep\"";
    let refused = |member: &str| {
        let output = as_clerk();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in [
            "role `clerk` may not grant a right on schema `guild` of `registrar`, grant a right on \
             table `guild.club` of `registrar`; nothing of it was done",
            &format!(
                "hint: `registrar` owns schema `guild` and table `guild.club`, and cannot log in\
                 {member} run `{grants}`; or `walsweep setup --as URL` with a superuser's login"
            ),
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(output.stdout.is_empty(), "nothing is told as done: {said}");
    };
    refused(", nor can a member of it: let a superuser");
    bed.sql.run("create role head login; grant registrar to head").await;
    refused(": let a member of it, such as `head`,");
    assert_eq!(made(&sql).await, 0);
    let printed = |role: &str| {
        let output = sidecar.command(&["setup", "--print", "--as", &login(&bed, role)]);
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let script = printed("clerk");
    let heads = [
        "-- By a member of `registrar`, such as `head`: `registrar` owns schema `guild` and table \
         `guild.club`:\n",
        "grant usage on schema",
        "grant select on",
        "-- By `clerk`, who owns table `public.cart`:\n",
        "create publication",
    ];
    let parts = without_summary(&script);
    let at = |part: &str| parts.find(part).unwrap_or_else(|| panic!("no {part}: {script}"));
    assert!(heads.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{script}");
    let output = psql(&bed, "clerk", &script);
    assert!(text(&output).contains("no privileges were granted"), "{}", text(&output));
    assert_eq!(made(&sql).await, 0, "{}", text(&output));
    // The schema is granted, and the table by an owner who may grant it on.
    let options = "grant usage on schema guild to clerk with grant option;
                   grant select on guild.club to clerk with grant option";
    sql.batch_execute(options).await.unwrap();
    let output = as_clerk();
    assert!(output.status.success(), "{}", text(&output));
    let checked = sidecar.command(&["check"]);
    assert!(checked.status.success(), "{}", text(&checked));
}

/// Each statement stands under who may run it: what alters a publication that is there is its
/// owner's, and not that of the tables.
#[tokio::test]
async fn a_script_names_the_owner_of_a_publication_that_is_there_and_of_the_tables_apart() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create role team nologin; create role member login; grant team to member;
             create role shopkeeper login; create role walsweep login replication;
             alter table item owner to shopkeeper; alter table item replica identity default;
             create publication walsweep for table item; alter publication walsweep owner to team",
        )
        .await;
    bed.sql.run(crate::data::ADOPT).await;
    let postgres_url = bed.postgres.url().replace("//postgres@", "//walsweep@");
    let mut sidecar = Sidecar::new(Settings { postgres_url, ..bed.settings() });
    let printed = |sidecar: &Sidecar| {
        let output = sidecar.command(&["setup", "--print"]);
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let is_in_order = |script: &str, parts: &[&str]| {
        let mut rest = script;
        for part in parts {
            let (_, after) = rest.split_once(part).unwrap_or_else(|| panic!("{part}: {script}"));
            rest = after;
        }
    };
    let script = printed(&sidecar);
    let of_team =
        "-- By a member of `team`, such as `member`: `team` owns publication `walsweep`:\n";
    let of_shopkeeper = "-- By `shopkeeper`, who owns table `public.item`:\n";
    is_in_order(
        &script,
        &[
            of_team,
            "comment on publication",
            of_shopkeeper,
            "replica identity full",
            "-- By a role",
        ],
    );
    assert!(!script.contains("CREATE on database"), "there is one already: {script}");
    // To add a table takes both.
    bed.sql
        .run("create table cart (id int primary key); alter table cart owner to shopkeeper")
        .await;
    let rules = format!("{ITEM_RULES}{}", rule("cart", &["cart:{id}"]));
    sidecar.change(|new| new.rules = rules);
    let script = printed(&sidecar);
    let both = "-- By a superuser, or a role that is a member of each owner: `shopkeeper` owns \
                table `public.cart`, `team` owns publication `walsweep`:\n";
    is_in_order(&script, &[both, "add table only \"public\".\"cart\""]);
    // Where there is none, whoever makes it has to own what is added to it.
    bed.sql.run("drop publication walsweep").await;
    let made =
        "-- By `shopkeeper`, who owns the tables, and needs CREATE on database `postgres`:\n";
    let script = printed(&sidecar);
    is_in_order(&script, &[made, "create publication", "replica identity", "add table only"]);
    assert_eq!(script.matches("-- By `").count(), 1, "one part for one owner: {script}");
    bed.sql.run("grant create on database postgres to shopkeeper").await;
    let script = printed(&sidecar);
    assert!(script.contains("-- By `shopkeeper`, who owns the tables:\n"), "{script}");
    super::psql(&bed, "postgres", &script);
    let checked = sidecar.command(&["check"]);
    assert!(checked.status.success(), "{}", text(&checked));
}

/// One that streams is connected to the database, too.
#[tokio::test]
async fn a_replication_login_that_may_not_connect_is_told_and_set_up_as_any_other() {
    let bed = Bed::new(&[]).await;
    for statement in DATABASE.split(';') {
        bed.sql.run(statement).await;
    }
    bed.sql.run("grant connect on database shop to walsweep").await;
    bed.sql.run("create role streamer login replication").await;
    shop(&bed).await.batch_execute(ITEM).await.unwrap();
    let streamer = "grant connect on database \"shop\" to \"streamer\"";
    let sidecar = Sidecar::new(Settings {
        postgres_url: login(&bed, "walsweep"),
        postgres: format!("replication_url = {:?}", login(&bed, "streamer")),
        ..bed.settings()
    });
    let checked = text(&sidecar.command(&["check"]));
    let cure = format!("let `dba`, who owns database `shop`, or a superuser run `{streamer}`");
    assert!(checked.contains("error[replication_login]"), "{checked}");
    assert!(checked.contains(&format!("hint: {cure}")), "{checked}");
    let output = sidecar.command(&["setup", "--as", &login(&bed, "clerk")]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains(&format!("; it was `{streamer}`")), "{}", text(&output));
    let output = sidecar.command(&["setup", "--as", &login(&bed, "postgres")]);
    assert!(output.status.success(), "{}", text(&output));
    let checked = sidecar.command(&["check"]);
    assert!(checked.status.success(), "{}", text(&checked));
}

/// Standard output is a file then, which nobody has read yet.
#[tokio::test]
async fn a_script_that_is_printed_in_part_says_so_and_why_and_ends_with_1() {
    let password = Some("s3cret".to_owned());
    let options = PostgresOptions { password, ..PostgresOptions::default() };
    let mut postgres = Postgres::start(options).await.unwrap();
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let sql = crate::support::Sql::connect(&postgres).await;
    Bed::make_items(&sql).await;
    let settings = Settings::new(&postgres, &redis, ITEM_RULES);
    let mut sidecar = Sidecar::new(settings);
    let whole = sidecar.command(&["setup", "--print"]);
    assert!(whole.status.success(), "{}", text(&whole));
    assert!(text(&whole).contains("create publication"), "{}", text(&whole));
    let partly = |sidecar: &Sidecar, parts: &[&str]| {
        let output = sidecar.command(&["setup", "--print"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let (script, said) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        for part in ["-- The rest cannot be seen yet (", "do $setup$", "grant connect on database"]
        {
            assert!(script.contains(part), "{part}: {script}");
        }
        assert!(said.contains("the script has the part for the role alone"), "{said}");
        for part in parts {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("wr0ng") && !script.contains("wr0ng"), "{said}");
    };
    sidecar.change(|new| new.postgres_url = new.postgres_url.replace(":s3cret@", ":wr0ng@"));
    partly(
        &sidecar,
        &["password authentication failed", "print again", "`postgres.password_file`"],
    );
    sidecar.change(|new| new.postgres_url = new.postgres_url.replace(":wr0ng@", ":s3cret@"));
    postgres.stop(walsweep_stage::throwaway::StopMode::Fast).await.unwrap();
    partly(&sidecar, &["print again once it answers"]);
}
