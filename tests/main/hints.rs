//! Newcomers mistype or forget something: each command names it, the place and the cure.

use std::io::Write;
use std::thread;

use walsweep_stage::throwaway::{Postgres, PostgresOptions, Redis, RedisOptions, StopMode};

use crate::fitness::admin;
use crate::support::{Bed, ITEM_RULES, Settings, Sidecar, Sql, text};

/// Both `check` and `run` end with 1 and say all of this, and `run` ends by itself.
async fn told(what: &str, settings: Settings, parts: &[&str]) -> String {
    let mut sidecar = Sidecar::new(settings);
    let checked = sidecar.command(&["check"]);
    let said = text(&checked);
    assert_eq!(checked.status.code(), Some(1), "{what}: {said}");
    sidecar.start();
    let status = sidecar.wait_exit().await;
    assert_eq!(status, 1, "{what}");
    for part in parts {
        assert!(said.contains(part), "{what}: check does not say {part:?}: {said}");
        // What it said last may still be on its way from its pipe.
        sidecar.wait_log(part).await;
    }
    said
}

#[tokio::test]
async fn a_login_to_postgres_that_fails_is_told_with_what_lets_it_in() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create database closed").await;
    bed.sql.run("revoke connect on database closed from public").await;
    bed.sql.run("create role guest login replication").await;
    let locked = PostgresOptions { password: Some("w".to_owned()), ..PostgresOptions::default() };
    let locked = Postgres::start(locked).await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let guest = |url: String| url.replace("postgres@", "guest@");
    let let_in =
        ["`walsweep setup --as URL` creates it", "`postgres.password_file`", "pg_hba.conf"];
    let rows: [(&str, String, &[&str]); 5] = [
        (
            "a database that is not there",
            bed.postgres.url_of("nope"),
            &[
                "database \"nope\" does not exist (SQLSTATE 3D000)",
                "let `postgres.url` end with the name of a database",
                "`psql -l`",
            ],
        ),
        (
            "a database that the role may not use",
            guest(bed.postgres.url_of("closed")),
            &[
                "permission denied for database \"closed\"",
                "or a superuser run `grant connect on database \"closed\" to \"guest\"`",
            ],
        ),
        ("no such role", bed.postgres.url().replace("postgres@", "nobody@"), &let_in),
        (
            "a forgotten password",
            locked.url().replace(":w@", "@"),
            &["the server wants a password and there is none", let_in[1], "`\\password ROLE`"],
        ),
        (
            "a wrong password",
            locked.url().replace(":w@", ":v@"),
            &["password authentication failed", let_in[1], "`\\password ROLE`"],
        ),
    ];
    for (what, postgres_url, parts) in rows {
        let env = vec![("HOME".to_owned(), home.path().to_str().unwrap().to_owned())];
        told(what, Settings { postgres_url, env, ..bed.settings() }, parts).await;
    }
}

/// The slot's database is the one that was meant. Whoever drops the slot takes from the walsweep
/// that streams from it what that has not read.
#[tokio::test]
async fn a_wrong_database_is_asked_about_first_and_nobody_is_told_to_drop_the_slot() {
    let bed = Bed::new(&[]).await;
    let running = bed.sidecar().await;
    bed.sql.run("create database other").await;
    let postgres_url = bed.postgres.url_of("other");
    let mut wrong = Sidecar::new(Settings { postgres_url, ..bed.settings() });
    wrong.start();
    assert_eq!(wrong.wait_exit().await, 1);
    let refused = wrong.log().concat();
    for said in [text(&wrong.command(&["check"])), text(&wrong.command(&["setup"])), refused] {
        let told = "slot `walsweep` is of database `postgres`, not of `other`; Postgres process ";
        let (before, after) = said.split_once(told).unwrap_or_else(|| panic!("{said}"));
        assert!(!before.contains("hint: "), "another cure comes first: {said}");
        let hint = after.split_once("hint: ").unwrap().1;
        let asked = "is the database at the end of `postgres.url` right?";
        assert!(hint.starts_with(asked), "{said}");
        assert!(!said.contains("drop that slot") && !said.contains("pg_drop"), "{said}");
        assert!(!said.contains("`walsweep setup --print` shows"), "{said}");
    }
    assert_eq!(running.readyz().await, Some(200));
}

#[tokio::test]
async fn a_redis_that_does_not_let_walsweep_in_is_told_with_what_does() {
    let bed = Bed::new(&[]).await;
    Sidecar::new(bed.settings()).setup();
    let locked = Redis::start(RedisOptions::default()).await.unwrap();
    admin(&locked, "ACL SETUSER app on >x ~* +ping +info +scan +unlink +get +set +incr +eval")
        .await;
    let as_app = |url: String| url.replace("redis://", "redis://app:x@");
    let wants = Redis::start(RedisOptions::default()).await.unwrap();
    admin(&wants, "CONFIG SET requirepass secret").await;
    let at = |url: String, database: &str| {
        format!("{}/{database}", url.trim_end_matches("/0").trim_end_matches('/'))
    };
    admin(&locked, "ACL SETUSER guest off >x ~* +@all").await;
    let rows: [(&str, String, &[&str]); 6] = [
        (
            "a database that is not there",
            at(bed.redis.url(), "99"),
            &["DB index is out of range", "the end of `redis.url`", "config get databases"],
        ),
        (
            "no right to choose the database",
            at(as_app(locked.url()), "1"),
            &[
                "choose the database: ",
                "`acl setuser app +ping +info +scan +unlink +get +set +incr +eval +select`",
            ],
        ),
        (
            "a forgotten password",
            wants.url(),
            &["wants a password, and there is none", "`redis.password_file`"],
        ),
        (
            "a wrong password",
            wants.url().replace("redis://", "redis://:wrong@"),
            &["`redis.password_file`", "the user in `redis.url`"],
        ),
        (
            "no such user",
            wants.url().replace("redis://", "redis://nobody:x@"),
            &[
                "`redis.password_file`",
                "the user in `redis.url`",
                "if it is not there, `acl setuser nobody on '>PASSWORD' +ping +info +scan",
                " ~item:* ~list:*:* ~walsweep:*` in `redis-cli` makes it",
            ],
        ),
        (
            "a user who is off",
            locked.url().replace("redis://", "redis://guest:x@"),
            &["the user in `redis.url`", "if the user is off, `acl setuser guest on` turns it on"],
        ),
    ];
    for (what, redis_url, parts) in rows {
        let settings = Settings { redis_url, ..bed.settings() };
        let said = told(what, settings.clone(), parts).await;
        assert!(said.contains("error[redis_login]"), "{what}: {said}");
        let swept = Sidecar::new(settings).command(&["sweep", "item:*"]);
        assert_eq!(swept.status.code(), Some(1), "{what}: {}", text(&swept));
        let hinted = text(&swept).lines().any(|line| line.starts_with("  hint: "));
        assert!(hinted, "{what}: {}", text(&swept));
    }
}

/// Of another database nothing is ever removed, and that shows nowhere else.
#[tokio::test]
async fn a_database_of_redis_without_keys_beside_one_with_keys_is_told() {
    let bed = Bed::new(&[]).await;
    bed.fill(&["item:1", "item:2"]).await;
    let third = format!("{}/3", bed.redis.url().trim_end_matches("/0").trim_end_matches('/'));
    let mut sidecar = Sidecar::new(Settings { redis_url: third.clone(), ..bed.settings() });
    sidecar.setup();
    let check = |sidecar: &Sidecar| {
        let output = sidecar.command(&["check"]);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let hint = "let `redis.url` end with its number, such as `/0`";
    let said = check(&sidecar);
    assert!(said.contains("warning[redis_database]") && said.contains(hint), "{said}");
    assert!(
        said.contains("database 3, which is used, has no keys; database 0 has 2 keys"),
        "{said}"
    );
    // What walsweep writes there itself is no key of the application's.
    sidecar.start();
    sidecar.wait_ready().await;
    sidecar.wait_log("database 3, which is used, has no keys; database 0 has 2 keys").await;
    let there = redis::Client::open(third.as_str()).unwrap();
    let mut there = there.get_multiplexed_async_connection().await.unwrap();
    let own =
        async || -> u64 { redis::cmd("DBSIZE").query_async(&mut there.clone()).await.unwrap() };
    crate::support::eventually(crate::support::PATIENCE, "its own keys", || async {
        own().await > 0
    })
    .await;
    let said = check(&sidecar);
    assert!(said.contains("has no keys but walsweep's own; database 0 has 2 keys"), "{said}");
    // Where INFO is refused nothing is known.
    let rights = "on >x ~* +ping +scan +unlink +get +set +incr +eval +select";
    admin(&bed.redis, &format!("ACL SETUSER app {rights}")).await;
    let app = third.replace("redis://", "redis://app:x@");
    let blind = Sidecar::new(Settings { redis_url: app, ..bed.settings() });
    assert!(!check(&blind).contains("redis_database"), "{}", check(&blind));
    admin(&bed.redis, "ACL SETUSER app +info").await;
    assert!(check(&blind).contains("warning[redis_database]"), "{}", check(&blind));
    redis::cmd("SET").arg("item:1").arg("x").exec_async(&mut there).await.unwrap();
    assert!(!check(&sidecar).contains("redis_database"), "{}", check(&sidecar));
    // In the database with the keys nothing is told of others.
    let first = Sidecar::new(bed.settings());
    assert!(!text(&first.command(&["check"])).contains("redis_database"));
}

/// Whoever removes keys by hand reads the whole command, too, and it cures.
#[tokio::test]
async fn a_sweep_by_hand_that_redis_refuses_shows_the_whole_acl_command() {
    let bed = Bed::new(&[]).await;
    bed.fill(&["item:1"]).await;
    let commands = "+ping +info +scan +unlink +get +set +incr +eval";
    let url = bed.redis.url().replace("redis://", "redis://app:x@");
    for rights in ["~* +ping +info +get +set +incr +eval", &format!("~other:* {commands}")] {
        admin(&bed.redis, &format!("ACL SETUSER app reset on >x {rights}")).await;
        let sidecar = Sidecar::new(Settings { redis_url: url.clone(), ..bed.settings() });
        let said = text(&sidecar.command(&["sweep", "item:*"]));
        let hint = said.lines().find_map(|line| line.strip_prefix("  hint: `"));
        let hint = hint.unwrap_or_else(|| panic!("{rights}: no command in {said}"));
        assert!(hint.starts_with(&format!("acl setuser app {commands}")), "{rights}: {said}");
        admin(&bed.redis, hint.trim_end_matches('`')).await;
        let output = sidecar.command(&["sweep", "item:*", "--dry-run"]);
        assert!(output.status.success(), "{rights}: {}", text(&output));
    }
}

#[tokio::test]
async fn a_password_file_that_is_not_there_is_named_before_and_while_it_is_used() {
    let bed = Bed::new(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let of_file = |section: &str| {
        let mut settings = bed.settings();
        let line = format!("password_file = {file:?}");
        match section {
            "postgres" => settings.postgres = line,
            _ => settings.redis = line,
        }
        settings
    };
    for section in ["postgres", "redis"] {
        let output = Sidecar::new(of_file(section)).command(&["check"]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(78), "{said}");
        let missing = format!(
            "{section}.password_file: read `{}`: No such file or directory (os error 2)\n  \
             hint: write the password, and nothing else, into a file of this name",
            file.display()
        );
        assert!(said.contains(&missing), "{said}");
    }
    std::fs::write(&file, "x\n").unwrap();
    let sidecar = Sidecar::set_up(of_file("postgres")).await;
    std::fs::remove_file(&file).unwrap();
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                where application_name like 'walsweep%'";
    bed.sql.run(end).await;
    sidecar.wait_log("write the password, and nothing else, into that file").await;
    assert!(sidecar.log().concat().contains("No such file or directory"));
}

/// Once, although both the checks and the attempt to stream find it out.
#[tokio::test]
async fn a_role_that_may_not_replicate_is_told_once_with_the_sql() {
    let bed = Bed::new(&[]).await;
    Sidecar::new(bed.settings()).setup();
    bed.sql.run("create role plain login").await;
    let postgres_url = bed.postgres.url().replace("postgres@", "plain@");
    let parts = ["role `plain` may not replicate", "alter role \"plain\" replication"];
    let said = told("no REPLICATION", Settings { postgres_url, ..bed.settings() }, &parts).await;
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error[")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    // While it runs nobody has looked before.
    bed.sql.run("create role other login replication superuser").await;
    let postgres_url = bed.postgres.url().replace("postgres@", "other@");
    let name = "other".to_owned();
    let sidecar = Sidecar::set_up(Settings { postgres_url, name, ..bed.settings() }).await;
    bed.sql.run("alter role other noreplication nosuperuser").await;
    bed.sql.run("select pg_terminate_backend(active_pid) from pg_replication_slots").await;
    sidecar.wait_log("role `other` may not replicate").await;
    assert!(!sidecar.log().concat().contains("grant connect"));
}

/// It is enough to do what it says.
#[tokio::test]
async fn a_server_without_logical_decoding_is_told_with_the_sql_and_the_restart() {
    let mut bed = Bed::new(&["wal_level = replica", "max_replication_slots = 0"]).await;
    let parts = [
        "`wal_level` is `replica`",
        "`alter system set wal_level = logical`",
        "`alter system set max_replication_slots = 10`",
        "restart Postgres",
    ];
    told("wal_level", bed.settings(), &parts).await;
    bed.sql.run("alter system set wal_level = logical").await;
    bed.sql.run("alter system set max_replication_slots = 10").await;
    bed.postgres.stop(StopMode::Fast).await.unwrap();
    bed.postgres.start_again().await.unwrap();
    bed.sql = Sql::connect(&bed.postgres).await;
    let sidecar = Sidecar::new(bed.settings());
    let said = text(&sidecar.command(&["check"]));
    assert!(!said.contains("wal_level") && !said.contains("max_replication_slots"), "{said}");
}

/// It never was there, so it was not dropped or renamed.
#[tokio::test]
async fn a_table_that_is_not_there_is_told_with_the_one_that_is_meant() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create table sessions (id int primary key)").await;
    for (named, hint) in [
        ("public.itme", "hint: did you mean `public.item`?"),
        ("shop.item", "hint: did you mean `public.item`?"),
        ("public.Item", "hint: did you mean `public.item`?"),
        ("public.users", "`public.sessions`"),
    ] {
        let rules = ITEM_RULES.replace("public.item", named);
        let sidecar = Sidecar::new(Settings { rules, ..bed.settings() });
        let said = text(&sidecar.command(&["check"]));
        let missing = format!("rule.0.table: there is no table `{named}`");
        let (_, after) = said.split_once(&missing).unwrap_or_else(|| panic!("{named}: {said}"));
        let next: Vec<&str> = after.lines().skip(1).take(1).collect();
        assert!(next[0].contains(hint), "{named}: {said}");
        assert!(hint.contains("did you mean") || next[0].contains("`postgres.url`"), "{said}");
    }
}

#[tokio::test]
async fn a_second_run_of_one_file_says_that_the_first_one_is_there() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    let second = sidecar.command(&["run"]);
    let said = text(&second);
    assert_eq!(second.status.code(), Some(1), "{said}");
    let address = format!("`127.0.0.1:{}`", sidecar.http_port());
    for part in [
        &format!("listen on `http.listen` {address}: a walsweep listens there"),
        "it may be running already with this configuration",
        "another `http.listen`",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Who does not answer may be one that is stopped.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let other = Sidecar::new_at(bed.settings(), port);
    for command in ["run", "check"] {
        let said = text(&other.command(&[command]));
        assert!(said.contains("a process listens there, and does not answer"), "{said}");
        assert!(said.contains("`kill -CONT`") && !said.contains("another program"), "{said}");
    }
    // Somebody else is no walsweep.
    thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap();
        }
    });
    let said = text(&other.command(&["run"]));
    assert!(said.contains("Address already in use"), "{said}");
    assert!(said.contains("hint: end the program that listens there"), "{said}");
    assert!(!said.contains("a walsweep"), "{said}");
}
