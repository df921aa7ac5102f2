//! Passwords that change while it runs.

use std::fs;

use crate::support::{Bed, ITEM_RULES, PATIENCE, Settings, Sidecar, Sql, eventually};
use walsweep::throwaway::{Postgres, PostgresOptions, Redis, RedisOptions};

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
