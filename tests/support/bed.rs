//! Postgres, Redis and a table of items, before a sidecar runs.

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use walsweep::lsn::Lsn;
use walsweep_stage::throwaway::{Postgres, PostgresOptions, Redis, RedisOptions, Signal, signal};

use super::{Settings, Sidecar, Sql};

/// Rules for the table `item`: one exact key, one pattern.
pub(crate) const ITEM_RULES: &str = r#"
[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}", "list:{team}:*"]
"#;

/// Two servers and a table.
pub(crate) struct Bed {
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    pub(crate) sql: Sql,
    pub(crate) cache: MultiplexedConnection,
}

impl Bed {
    /// Servers with these lines in `postgresql.conf`, and `item(id, team, version)` with identity
    /// FULL, ids 1 to 100.
    pub(crate) async fn new(conf: &[&str]) -> Bed {
        let fsync = conf.contains(&"fsync = on");
        let conf = conf.iter().map(|&line| line.to_owned()).collect();
        let options = PostgresOptions { conf, fsync, ..PostgresOptions::default() };
        let postgres = Postgres::start(options).await.unwrap();
        let redis = Redis::start(RedisOptions::default()).await.unwrap();
        let sql = Sql::connect(&postgres).await;
        Bed::make_items(&sql).await;
        let cache = redis.connect().await.unwrap();
        Bed { postgres, redis, sql, cache }
    }

    /// The table alone.
    pub(crate) async fn make_items(sql: &Sql) {
        sql.run(
            "create table item (id int primary key, team text, version bigint not null default 0);
             alter table item replica identity full;
             insert into item select id, 'team ' || id % 10, 0 from generate_series(1, 100) id",
        )
        .await;
    }

    /// Settings for [`ITEM_RULES`].
    pub(crate) fn settings(&self) -> Settings {
        Settings::new(&self.postgres, &self.redis, ITEM_RULES)
    }

    /// A running sidecar with [`ITEM_RULES`] and no second removal.
    pub(crate) async fn sidecar(&self) -> Sidecar {
        Sidecar::set_up(self.settings()).await
    }

    /// Puts keys into Redis.
    pub(crate) async fn fill(&self, keys: &[&str]) {
        for key in keys {
            let _: () = self.cache.clone().set(*key, "cached").await.unwrap();
        }
    }

    /// Caches what a reader sees of every row now: `item:{id}`, the version.
    pub(crate) async fn cache_rows(&self) {
        let rows = self.sql.client().query("select id, version from item", &[]).await.unwrap();
        let mut pipeline = redis::Pipeline::new();
        for row in rows {
            let (id, version): (i32, i64) = (row.get(0), row.get(1));
            pipeline.set(format!("item:{id}"), version).ignore();
        }
        pipeline.exec_async(&mut self.cache.clone()).await.unwrap();
    }

    /// The cached rows that are not as a reader sees them now.
    pub(crate) async fn stale(&self) -> Vec<String> {
        let rows = self.sql.client().query("select id, version from item order by id", &[]).await;
        let mut stale = Vec::new();
        for row in rows.unwrap() {
            let (id, version): (i32, i64) = (row.get(0), row.get(1));
            let key = format!("item:{id}");
            let cached: Option<i64> = self.cache.clone().get(&key).await.unwrap();
            if cached.is_some_and(|cached| cached != version) {
                stale.push(key);
            }
        }
        stale
    }

    /// Everything is at rest: fails if a cached row is stale.
    pub(crate) async fn fresh(&self) {
        let stale = self.stale().await;
        assert!(stale.is_empty(), "stale at rest: {stale:?}");
    }

    /// The watermark key's value.
    pub(crate) async fn watermark(&self) -> Option<String> {
        self.cache.clone().get("walsweep:walsweep").await.unwrap()
    }

    /// Waits until the watermark is written: after a start with nothing to do that is a little
    /// later than readiness, and than all is confirmed.
    pub(crate) async fn marked(&self) {
        let written = || async { self.watermark().await.is_some() };
        super::eventually(super::PATIENCE, "the watermark is written", written).await;
    }

    /// Whether a key is in Redis.
    pub(crate) async fn has(&self, key: &str) -> bool {
        self.cache.clone().exists(key).await.unwrap()
    }

    /// How often Redis was given a command, which is named in lower case.
    pub(crate) async fn calls(&self, command: &str) -> u64 {
        let mut info = redis::cmd("INFO");
        let info: String =
            info.arg("commandstats").query_async(&mut self.cache.clone()).await.unwrap();
        let head = format!("cmdstat_{command}:calls=");
        let line = info.lines().find_map(|line| line.strip_prefix(&head));
        line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }

    /// Waits until a key is gone.
    pub(crate) async fn gone(&self, key: &str) -> std::time::Duration {
        super::eventually(super::PATIENCE, &format!("`{key}` goes"), || async {
            !self.has(key).await
        })
        .await
    }

    /// The slot's `confirmed_flush_lsn`; with several slots the active one's.
    pub(crate) async fn confirmed(&self) -> Lsn {
        let query = "select confirmed_flush_lsn::text from pg_replication_slots
                      order by active desc limit 1";
        lsn(&self.sql, query).await
    }

    /// The server's major version.
    pub(crate) async fn version(&self) -> i32 {
        self.sql.one::<i32>("select current_setting('server_version_num')::int").await / 10_000
    }

    /// Freezes what writes to the log by itself, until the server ends.
    pub(crate) async fn quiet(&self) {
        for kind in ["background writer", "checkpointer", "walwriter", "autovacuum launcher"] {
            let process = "select pid from pg_stat_activity where backend_type = $1";
            let process: i32 = self.sql.one_of(process, &[&kind]).await;
            signal(&[u32::try_from(process).unwrap()], Signal::Stop).unwrap();
        }
    }

    /// Where the log ends now.
    pub(crate) async fn position(&self) -> Lsn {
        lsn(&self.sql, "select pg_current_wal_lsn()::text").await
    }

    /// Waits until everything that is committed by now is confirmed.
    pub(crate) async fn settled(&self) {
        self.settled_within(super::PATIENCE).await;
    }

    /// Waits longer, where a load has left more than a slow machine is soon through with.
    pub(crate) async fn settled_within(&self, limit: std::time::Duration) {
        let position = self.position().await;
        super::eventually(limit, "everything is confirmed", || async {
            // A record after it lets the server say that there is nothing more before.
            self.sql.run("select pg_logical_emit_message(false, 'settle', '')").await;
            self.confirmed().await >= position
        })
        .await;
    }
}

async fn lsn(sql: &Sql, query: &str) -> Lsn {
    sql.one::<String>(query).await.parse().unwrap()
}
