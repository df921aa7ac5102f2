//! `teardown` drops all that is its to drop or nothing, and tells what it did.

use redis::AsyncCommands;
use walsweep_stage::throwaway::{Signal, signal};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually, text};

use super::{login, psql, rule};

const LEFT: &str = "select (select count(*) from pg_replication_slots)
                         + (select count(*) from pg_publication)";

#[tokio::test]
async fn a_role_that_does_not_own_the_publication_drops_nothing_and_the_owner_all() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create role shopkeeper login; create role walsweep login replication;
             create table cart (id int primary key); alter table cart owner to shopkeeper;
             grant create on database postgres to shopkeeper",
        )
        .await;
    let postgres_url = bed.postgres.url().replace("//postgres@", "//walsweep@");
    let rules = rule("cart", &["cart:{id}"]);
    let sidecar = Sidecar::new(Settings { postgres_url, rules, ..bed.settings() });
    let owner = bed.postgres.url().replace("//postgres@", "//shopkeeper@");
    let output = sidecar.command(&["setup", "--as", &owner]);
    assert!(output.status.success(), "{}", text(&output));
    sidecar.setup();
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 2);
    let output = sidecar.command(&["teardown"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 2, "{said}");
    for part in [
        "publication `walsweep` of `shopkeeper`",
        "nothing was dropped",
        "`walsweep teardown --as URL`",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("walsweep setup"), "{said}");
    // Who may not drop the slot lets walsweep's role do it.
    let said = text(&sidecar.command(&["teardown", "--as", &owner]));
    for part in ["dropped slot `", "dropped publication `walsweep`"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 0, "{said}");
}

#[tokio::test]
async fn a_teardown_that_comes_no_further_tells_what_it_dropped() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    let other = Sql::connect(&bed.postgres).await;
    other.run("begin; drop publication walsweep").await;
    let teardown = sidecar.spawn(&["teardown"]);
    let waits = || async {
        bed.sql.one::<i64>("select count(*) from pg_locks where not granted").await > 0
    };
    eventually(PATIENCE, "it waits for the publication", waits).await;
    signal(&[teardown.id()], Signal::Int).unwrap();
    let output = tokio::task::spawn_blocking(|| teardown.wait_with_output().unwrap()).await;
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("dropped slot `"), "{}", text(&output));
    other.run("rollback").await;
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("dropped publication `walsweep`"), "{said}");
}

#[tokio::test]
async fn teardown_print_shows_the_sql_while_walsweep_runs_and_says_to_stop_it_first() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    let output = sidecar.command(&["teardown", "--print"]);
    assert!(output.status.success(), "{}", text(&output));
    let script = String::from_utf8(output.stdout).unwrap();
    let holder: i32 = bed.sql.one("select active_pid from pg_replication_slots").await;
    let first = format!("-- Stop walsweep, and then print this again: Postgres process {holder} (");
    assert!(script.contains(&first) && script.contains("drop publication"), "{script}");
    assert!(!script.contains("perform pg_catalog.pg_drop_replication_slot("), "{script}");
    let output = sidecar.command(&["teardown"]);
    assert!(text(&output).contains("streams from it"), "{}", text(&output));
    psql(&bed, "postgres", &script);
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 2, "nothing is dropped: {script}");
    assert_eq!(sidecar.sigterm().await, 0);
    let output = sidecar.command(&["teardown", "--print"]);
    psql(&bed, "postgres", &String::from_utf8(output.stdout).unwrap());
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 0, "{script}");
}

/// The printed script drops what was looked at, or nothing.
#[tokio::test]
async fn the_printed_teardown_drops_no_slot_that_was_made_anew_since() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let script = String::from_utf8(sidecar.command(&["teardown", "--print"]).stdout).unwrap();
    bed.sql.run("select pg_drop_replication_slot('walsweep')").await;
    bed.sql.run("update item set version = 7 where id = 1").await;
    bed.sql.run("select pg_create_logical_replication_slot('walsweep', 'pgoutput')").await;
    let refused = run_psql(&bed, &script);
    assert!(!refused.status.success(), "{}\n{script}", text(&refused));
    assert!(text(&refused).contains("not the one that was looked at"), "{}", text(&refused));
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 2, "nothing is dropped");
    bed.sql.run("select pg_drop_replication_slot('walsweep')").await;
    let other = "select pg_create_logical_replication_slot('walsweep', 'test_decoding')";
    bed.sql.run(other).await;
    assert!(!run_psql(&bed, &script).status.success());
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 2, "nothing is dropped");
}

pub(super) fn run_psql(bed: &Bed, script: &str) -> std::process::Output {
    let mut psql = bed.postgres.command("psql");
    psql.args(["-X", "-q", "-d", &bed.postgres.url(), "-f", "-"]);
    psql.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut psql = psql.stderr(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut psql.stdin.take().unwrap(), script.as_bytes()).unwrap();
    psql.wait_with_output().unwrap()
}

/// Printed while there was no slot: a walsweep that was started since reads with the publication.
#[tokio::test]
async fn the_printed_teardown_drops_no_publication_that_a_slot_is_read_with() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.sql.run("select pg_drop_replication_slot('walsweep')").await;
    let script = String::from_utf8(sidecar.command(&["teardown", "--print"]).stdout).unwrap();
    sidecar.start();
    sidecar.wait_ready().await;
    let refused = run_psql(&bed, &script);
    assert!(!refused.status.success(), "{}\n{script}", text(&refused));
    assert!(text(&refused).contains("there is a slot of walsweep's name"), "{}", text(&refused));
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = 7 where id = 1").await;
    bed.gone("item:1").await;
    assert_eq!(sidecar.sigterm().await, 0);
    let script = String::from_utf8(sidecar.command(&["teardown", "--print"]).stdout).unwrap();
    psql(&bed, "postgres", &script);
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 0, "{script}");
}

/// A slot whose watermark is of one before it is left, and so is what shows whose it is: the next
/// `setup` goes on with it.
#[tokio::test]
async fn a_teardown_that_leaves_a_claimed_slot_leaves_its_claim() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let script = String::from_utf8(sidecar.command(&["teardown", "--print"]).stdout).unwrap();
    psql(&bed, "postgres", &script);
    bed.sql.run("update item set version = 7 where id = 1").await;
    sidecar.setup();
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("left slot `walsweep`: publication `walsweep` records it"), "{said}");
    assert!(said.contains("left publication `walsweep`, whose comment records slot"), "{said}");
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 2, "{said}");
    sidecar.setup();
    sidecar.start();
    sidecar.wait_ready().await;
    assert_eq!(sidecar.sigterm().await, 0);
    sidecar.command(&["teardown"]);
    assert_eq!(bed.sql.one::<i64>(LEFT).await, 0);
}

/// Whoever owns the publication and cannot log in is not sent to log in.
#[tokio::test]
async fn teardown_names_a_login_that_can_and_the_script_who_may_run_each_part() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create role team nologin; create role clerk login; grant team to clerk;
             create role walsweep login replication; create role reader login replication;
             create materialized view v as select 1 as a",
        )
        .await;
    let rules = rule("item", &["item:{id}"])
        + "[[rule]]\nname = \"v\"\nmaterialized_view = \"public.v\"\nkeys = [\"v\"]\n";
    let login = |role: &str| login(&bed, role);
    let settings = Settings { postgres_url: login("walsweep"), rules, ..bed.settings() };
    let sidecar = Sidecar::new(settings);
    let output = sidecar.command(&["setup", "--as", &bed.postgres.url()]);
    assert!(output.status.success(), "{}", text(&output));
    bed.sql.run("alter publication walsweep owner to team").await;
    let said = text(&sidecar.command(&["teardown"]));
    for part in [
        "publication `walsweep` of `team`, event trigger `walsweep_refresh` of `postgres`",
        "a member of each owner",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let script = String::from_utf8(sidecar.command(&["teardown", "--print"]).stdout).unwrap();
    let at = |part: &str| script.find(part).unwrap_or_else(|| panic!("no {part}: {script}"));
    let parts = [
        "-- By a role that may replicate, such as `walsweep`:",
        "perform pg_catalog.pg_drop_replication_slot(",
        "-- By a superuser, or the administrator role of a managed service:",
        "drop event trigger",
        "-- By `team`, who owns the publication, or a superuser:",
        "drop publication",
    ];
    assert!(parts.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{script}");
    bed.sql.run("drop event trigger walsweep_refresh; drop function walsweep_refresh()").await;
    let said = text(&sidecar.command(&["teardown"]));
    let member = "`team` cannot log in; `walsweep teardown --as URL` with the login of a member of \
                  it, such as `clerk`, or a superuser's";
    assert!(said.contains(member), "{said}");
    let said = text(&sidecar.command(&["teardown", "--as", &login("clerk")]));
    assert!(said.contains("dropped publication `walsweep`"), "{said}");
}

/// SQL that gives an identity back is printed only where it can go back, and does no harm.
#[tokio::test]
async fn an_identity_that_cannot_or_must_not_go_back_is_told_and_not_printed() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create table plain (id int primary key, name text not null);
             create table keyed (id int primary key, code text not null, name text not null);
             create unique index keyed_code on keyed (code);
             alter table keyed replica identity using index keyed_code;
             create table shared (id int primary key, name text not null)",
        )
        .await;
    let names = ["plain", "keyed", "shared"];
    let rules: String = names.iter().map(|name| rule(name, &["k:{name}"])).collect();
    let sidecar = Sidecar::new(Settings { rules, ..bed.settings() });
    let second = Settings {
        name: "second".to_owned(),
        rules: rule("shared", &["s:{name}"]),
        ..bed.settings()
    };
    let second = Sidecar::new(second);
    sidecar.setup();
    second.setup();
    let back = |name: &str, to: &str| format!("\"public\".\"{name}\" replica identity {to}");
    let printed = text(&sidecar.command(&["teardown", "--print"]));
    let as_before = [back("plain", "default;"), back("keyed", "using index \"keyed_code\";")];
    for part in &as_before {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let other = "`public.shared` keeps its full replica identity: publication `second` has it, too";
    assert!(printed.contains(other) && !printed.contains(&back("shared", "default")), "{printed}");
    bed.sql.run("drop index keyed_code").await;
    for is_there_again in [false, true] {
        let printed = text(&sidecar.command(&["teardown", "--print"]));
        assert!(!printed.contains("using index"), "{printed}");
        let gone = "`public.keyed` keeps its full replica identity: it was that of index \
                    `keyed_code`, which is gone, or cannot be one any more";
        assert!(printed.contains(gone), "{is_there_again}: {printed}");
        // Of this name, and no identity.
        bed.sql
            .run("drop index if exists keyed_code; create index keyed_code on keyed (code)")
            .await;
    }
    let said = text(&sidecar.command(&["teardown"]));
    let (_, back) = said.split_once("go back with: ").unwrap_or_else(|| panic!("{said}"));
    bed.sql.run(back.lines().next().unwrap()).await;
}

/// `drop owned by` would take the tables of whoever owns some.
#[tokio::test]
async fn a_role_that_is_not_for_walsweep_alone_is_not_sent_to_be_dropped() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run("create role app login replication; grant create on database postgres to app")
        .await;
    bed.sql.run("alter table item owner to app").await;
    for (role, why) in [("app", "it owns something"), ("postgres", "it is a superuser")] {
        let postgres_url = bed.postgres.url().replace("//postgres@", &format!("//{role}@"));
        let sidecar = Sidecar::new(Settings { postgres_url, ..bed.settings() });
        sidecar.setup();
        let said = text(&sidecar.command(&["teardown"]));
        assert!(said.contains(&format!("role `{role}` stays")) && said.contains(why), "{said}");
        assert!(!said.contains("drop owned") && !said.contains("drop role"), "{said}");
    }
}

/// Another walsweep with a publication of its own logs in as the same role: its grants stay.
#[tokio::test]
async fn grants_that_another_walsweep_needs_are_not_sent_to_be_revoked() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create role sweeper login replication; grant select on item to sweeper").await;
    let postgres_url = bed.postgres.url().replace("//postgres@", "//sweeper@");
    let first = Sidecar::new(Settings { postgres_url, ..bed.settings() });
    let second = Settings { name: "second".to_owned(), ..bed.settings() };
    let other = Sidecar::new(second.clone());
    let second = Sidecar::new(Settings {
        postgres_url: bed.postgres.url().replace("//postgres@", "//sweeper@"),
        ..second
    });
    let owner = bed.postgres.url();
    for (one, is_last) in [(&second, false), (&first, true)] {
        if !is_last {
            first.command(&["setup", "--as", &owner]);
            other.setup();
        }
        let said = text(&one.command(&["teardown", "--as", &owner]));
        assert!(said.contains("role `sweeper` stays"), "{said}");
        assert_eq!(said.contains("revoke select"), is_last, "{said}");
        assert_eq!(said.contains("another walsweep, which has another"), !is_last, "{said}");
    }
}

/// Two clusters, and a configuration whose URL names the wrong one. What Redis holds of the other
/// cluster, or holds that nobody can read, is not this teardown's.
#[tokio::test]
async fn teardown_forgets_only_a_watermark_of_its_own_cluster() {
    let (bed, other) = (Bed::new(&[]).await, Bed::new(&[]).await);
    // With the rights that the README lists, and no more.
    let mut admin = bed.cache.clone();
    let rights = ["+ping", "+info", "+scan", "+unlink", "+get", "+set", "+incr", "+eval"];
    let mut user = redis::cmd("ACL");
    user.arg(&["SETUSER", "app", "on", ">x", "~item:*", "~list:*", "~walsweep:*"]).arg(&rights);
    user.exec_async(&mut admin).await.unwrap();
    let redis_url = bed.redis.url().replace("redis://", "redis://app:x@");
    let settings = Settings { redis_url, ..bed.settings() };
    let mut sidecar = Sidecar::set_up(settings.clone()).await;
    bed.settled().await;
    bed.marked().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let wrong = Sidecar::new(Settings { postgres_url: other.postgres.url(), ..settings });
    let (key, mut cache) = ("walsweep:walsweep", bed.cache.clone());
    let keys = async |mut cache: redis::aio::MultiplexedConnection| -> usize {
        let keys: Vec<String> = cache.keys("walsweep:*").await.unwrap();
        keys.len()
    };
    let (value, count): (String, usize) =
        (cache.get(key).await.unwrap(), keys(cache.clone()).await);
    let system = "select system_identifier::text from pg_control_system()";
    let (own, theirs): (String, String) = (bed.sql.one(system).await, other.sql.one(system).await);
    let output = wrong.command(&["teardown"]);
    let said = text(&output);
    let left = format!(
        "left `{key}` in redis: it is of the cluster with system identifier {own}, and this one \
         has {theirs}"
    );
    assert!(output.status.success() && said.contains(&left), "{said}");
    let cli = format!("redis-cli -h '127.0.0.1' -p {} --user 'app'", bed.redis.port());
    let line = format!(
        "only if nobody needs it, `{cli} --scan --pattern '{key}:*' | xargs {cli} unlink {key}`, \
         with its password in `REDISCLI_AUTH` removes it"
    );
    assert!(said.contains(&line), "{said}");
    assert_eq!(keys(cache.clone()).await, count, "{said}");
    let _: () = cache.set(key, "nobody knows").await.unwrap();
    let said = text(&wrong.command(&["teardown"]));
    let left = format!("left `{key}` in redis: it cannot be read");
    assert!(said.contains(&left) && said.contains(&line), "{said}");
    let _: () = cache.del(key).await.unwrap();
    let _: () = cache.del(format!("{key}:removals")).await.unwrap();
    let said = text(&wrong.command(&["teardown"]));
    assert!(said.contains(&format!("there is no `{key}` in redis")), "{said}");
    let _: () = cache.set(format!("{key}:removals"), 7).await.unwrap();
    let said = text(&wrong.command(&["teardown"]));
    let left = format!("left `{key}:removals` in redis: nothing shows whose it is");
    assert!(said.contains(&left) && said.contains(&line), "{said}");
    let _: () = cache.set(key, value).await.unwrap();
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains(&format!("removed `{key}`")), "{said}");
    let stay = "cached keys stay in redis, and nothing removes them any more: `item:*`";
    assert!(said.contains(stay), "{said}");
    assert_eq!(keys(cache.clone()).await, 0, "{said}");
}

/// The memory in the comment is told before it goes, whatever ends `teardown`.
#[tokio::test]
async fn a_teardown_that_is_stopped_forgets_no_identity() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("alter table item replica identity default").await;
    bed.sql.run("create materialized view v as select 1 as n").await;
    let rules = bed.settings().rules
        + "[[rule]]\nname = \"v\"\nmaterialized_view = \"public.v\"\nkeys = [\"v\"]\n";
    let sidecar = Sidecar::new(Settings { rules, ..bed.settings() });
    sidecar.setup();
    let other = Sql::connect(&bed.postgres).await;
    other.run("begin; alter event trigger walsweep_refresh disable").await;
    let teardown = sidecar.spawn(&["teardown"]);
    let queued = "select exists (select from pg_locks where not granted)";
    let waits = || async { bed.sql.one::<bool>(queued).await };
    eventually(PATIENCE, "it waits for the trigger", waits).await;
    signal(&[teardown.id()], Signal::Int).unwrap();
    let output = tokio::task::spawn_blocking(|| teardown.wait_with_output().unwrap()).await;
    let said = text(&output.unwrap());
    assert!(said.contains("dropped slot") && !said.contains("dropped publication"), "{said}");
    other.run("rollback").await;
    let said = text(&sidecar.command(&["teardown"]));
    let back = "alter table \"public\".\"item\" replica identity default";
    assert!(said.contains("dropped event trigger") && said.contains(back), "{said}");
}
