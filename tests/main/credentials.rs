//! Passwords that change while it runs.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::support::{Bed, ITEM_RULES, PATIENCE, Settings, Sidecar, Sql, eventually, text};
use walsweep_stage::throwaway::{Postgres, PostgresOptions, Redis, RedisOptions};

/// Files that hold passwords are read at each login, of every connection, and are found beside the
/// configuration.
#[tokio::test]
async fn a_changed_password_needs_no_restart() {
    let password = Some("pg-first".to_owned());
    let options = PostgresOptions { password, ..PostgresOptions::default() };
    let postgres = Postgres::start(options).await.unwrap();
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let sql = Sql::connect(&postgres).await;
    Bed::make_items(&sql).await;
    let mut cache = redis.connect().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let told = |name: &str, password: &str| fs::write(file(name), format!("{password}\n")).unwrap();
    told("postgres", "pg-first");
    told("redis", "cache-first");
    set_password(&mut cache, "cache-first").await;
    let mut settings = Settings::new(&postgres, &redis, ITEM_RULES);
    settings.postgres_url = settings.postgres_url.replace(":pg-first@", "@");
    settings.postgres = format!("password_file = {:?}", file("postgres"));
    settings.redis = format!("password_file = {:?}", file("redis"));
    let sidecar = Sidecar::set_up(settings).await;
    for (round, (in_postgres, in_redis)) in
        [("pg-second", "cache-second"), ("pg-third", "cache-third")].iter().enumerate()
    {
        told("postgres", in_postgres);
        told("redis", in_redis);
        sql.run(&format!("alter role postgres password '{in_postgres}'")).await;
        set_password(&mut cache, in_redis).await;
        sql.run(
            "select pg_terminate_backend(pid) from pg_stat_activity
              where application_name like 'walsweep%'",
        )
        .await;
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes");
        kill.exec_async(&mut cache).await.unwrap();
        let key = format!("item:{}", round + 1);
        let () = redis::cmd("SET").arg(&key).arg("x").query_async(&mut cache).await.unwrap();
        sql.run(&format!("update item set version = 1 where id = {}", round + 1)).await;
        eventually(PATIENCE, "the key goes", || async {
            let mut cache = cache.clone();
            let found: u32 = redis::cmd("EXISTS").arg(&key).query_async(&mut cache).await.unwrap();
            found == 0
        })
        .await;
    }
    let log = sidecar.log().concat();
    for secret in ["pg-", "cache-"]
        .map(|one| ["first", "second", "third"].map(|two| one.to_owned() + two))
        .concat()
    {
        assert!(!log.contains(&secret), "{secret}");
    }
}

async fn set_password(cache: &mut redis::aio::MultiplexedConnection, password: &str) {
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("requirepass").arg(password);
    set.exec_async(cache).await.unwrap();
}

/// Files with secrets are looked at as libpq looks at its own, and yet nothing is refused: a secret
/// that is mounted is often a link to a file of root's that everybody may read.
#[tokio::test]
async fn a_secret_that_others_may_read_is_warned_of_and_used() {
    let bed = Bed::new(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let (data, link) = (folder.path().join("..data"), folder.path().join("password"));
    fs::write(&data, "word\n").unwrap();
    std::os::unix::fs::symlink(&data, &link).unwrap();
    let home = folder.path().join(".pgpass");
    fs::write(&home, "*:*:*:*:word\n").unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let mut settings = bed.settings();
    settings.postgres = format!("password_file = {link:?}");
    settings.env = vec![("HOME".to_owned(), folder.path().to_str().unwrap().to_owned())];
    let mut sidecar = Sidecar::new(settings);
    sidecar.setup();
    let wrong = format!("`{}` has mode 0644", link.display());
    for (bits, is_warned) in [(0o600, false), (0o644, true), (0o604, true)] {
        mode(&data, bits);
        let check = sidecar.command(&["check"]);
        let said = text(&check);
        assert!(check.status.success(), "{said}");
        assert_eq!(said.contains("warning[secret_readable]"), is_warned, "{bits:o}: {said}");
    }
    mode(&data, 0o644);
    let said = text(&sidecar.command(&["check"]));
    let cure = format!("`chmod 600 {}`", link.display());
    assert!(said.contains(&wrong) && said.contains(&cure) && !said.contains("word\n"), "{said}");
    sidecar.start();
    sidecar.wait_ready().await;
    sidecar.wait_log(&wrong).await;
    // Without another source of a password, `~/.pgpass` would be it.
    sidecar.change(|settings| settings.postgres.clear());
    mode(&home, 0o640);
    let said = text(&sidecar.command(&["check"]));
    assert!(said.contains("warning[passfile_ignored]") && said.contains("mode 0640"), "{said}");
    mode(&home, 0o600);
    let said = text(&sidecar.command(&["check"]));
    assert!(!said.contains("warning[passfile_ignored]"), "{said}");
}

/// Each file that the configuration names is looked at by itself. One of root's may be readable by
/// its group, as libpq has it for `sslkey`; nobody else's may.
#[tokio::test]
async fn every_file_with_a_secret_is_looked_at_and_judged_by_its_owner() {
    let bed = Bed::new(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let names = ["postgres-password", "redis-password", "redis-key"];
    let files = names.map(|name| folder.path().join(name));
    let certificate = folder.path().join("redis-cert");
    for file in files.iter().chain([&certificate]) {
        fs::write(file, "word\n").unwrap();
        fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
    }
    let mut settings = bed.settings();
    settings.postgres = format!("password_file = {:?}", files[0]);
    settings.redis_url = format!("rediss://127.0.0.1:{}", bed.redis.port());
    settings.redis = format!(
        "password_file = {:?}\ncert_file = {certificate:?}\nkey_file = {:?}",
        files[1], files[2]
    );
    let sidecar = Sidecar::new(settings);
    let warned = || {
        let said = text(&sidecar.command(&["check"]));
        names.map(|name| {
            let is_of_it = |line: &&str| line.contains(name) && line.contains("has mode");
            said.lines()
                .filter(|line| line.starts_with("warning[secret_readable]"))
                .any(|line| is_of_it(&line))
        })
    };
    assert_eq!(warned(), [false; 3]);
    for at in 0..3 {
        fs::set_permissions(&files[at], Permissions::from_mode(0o604)).unwrap();
        let mut expected = [false; 3];
        expected[at] = true;
        assert_eq!(warned(), expected, "{}", names[at]);
        fs::set_permissions(&files[at], Permissions::from_mode(0o600)).unwrap();
    }
    let is_root = fs::metadata(&files[0]).unwrap().uid() == 0;
    fs::set_permissions(&files[0], Permissions::from_mode(0o640)).unwrap();
    assert_eq!(warned()[0], !is_root, "a group reads it");
    if is_root {
        std::os::unix::fs::chown(&files[0], Some(65_534), None).unwrap();
        assert!(warned()[0], "somebody else's");
    }
}

/// As libpq takes it, where neither the URL nor a file has one; and no more than that: a wrong one
/// lets nobody in.
#[tokio::test]
async fn a_password_of_the_environment_lets_in() {
    let password = Some("pg-first".to_owned());
    let options = PostgresOptions { password, ..PostgresOptions::default() };
    let postgres = Postgres::start(options).await.unwrap();
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    Bed::make_items(&Sql::connect(&postgres).await).await;
    let mut settings = Settings::new(&postgres, &redis, ITEM_RULES);
    settings.postgres_url = settings.postgres_url.replace(":pg-first@", "@");
    let of = |password: &str| vec![("PGPASSWORD".to_owned(), password.to_owned())];
    settings.env = of("pg-first");
    let mut sidecar = Sidecar::set_up(settings).await;
    assert_eq!(sidecar.sigterm().await, 0);
    sidecar.change(|new| new.env = of("pg-other"));
    let check = sidecar.command(&["check"]);
    let said = text(&check);
    assert!(!check.status.success() && said.contains("password"), "{said}");
    assert!(!said.contains("pg-other"), "{said}");
}
