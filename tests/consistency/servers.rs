//! The servers: Postgres with a synchronous standby, Redis, and a proxy on each way to them.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use walsweep::lsn::Lsn;
use walsweep::throwaway::{Postgres, PostgresOptions, Redis, RedisOptions, free_port};

use crate::cached::{
    FLASHES, ITEMS, PHANTOMS, RULES, SCHEMA, TEAMS, connect, slug_name, team_name,
};
use crate::shared::RETRY;
use crate::support::{Fault, Proxy};

/// Slot, publication, and part of the watermark's name.
pub(crate) const NAME: &str = "walsweep";

/// What makes the race frequent and the outages short.
const CONF: [&str; 6] = [
    "max_prepared_transactions = 64",
    "max_connections = 200",
    "synchronous_standby_names = 'pg_receivewal'",
    // A commit that does not wait for the disk reaches the stream soon.
    "wal_writer_delay = 10ms",
    "logical_decoding_work_mem = 64kB",
    "restart_after_crash = on",
];

/// Running servers.
pub(crate) struct Servers {
    /// Locked by whoever stops or starts it.
    pub(crate) postgres: Mutex<Postgres>,
    /// The same.
    pub(crate) redis: Mutex<Redis>,
    /// Not through a proxy.
    pub(crate) postgres_url: String,
    /// Not through a proxy.
    pub(crate) redis_url: String,
    /// The invalidator's way to SQL.
    pub(crate) sql_proxy: Proxy,
    /// The invalidator's way to its slot.
    pub(crate) stream_proxy: Proxy,
    /// The invalidator's way to Redis.
    pub(crate) redis_proxy: Proxy,
    standby_proxy: Proxy,
    http_port: u16,
}

impl Servers {
    /// Starts them, with tables and rows, and with keys that nobody asks for: a pass takes longer
    /// then. The standby is `standby_delay` away, each way.
    pub(crate) async fn start(standby_delay: Duration, ballast: u32) -> Servers {
        let conf = CONF.map(str::to_owned).to_vec();
        let options = PostgresOptions { conf, fsync: true, ..PostgresOptions::default() };
        let postgres = Postgres::start(options).await.unwrap();
        let redis = Redis::start(RedisOptions::default()).await.unwrap();
        let servers = Servers {
            postgres_url: postgres.url(),
            redis_url: redis.url(),
            sql_proxy: Proxy::to_port(postgres.port()),
            stream_proxy: Proxy::to_port(postgres.port()),
            redis_proxy: Proxy::to_port(redis.port()),
            standby_proxy: Proxy::to_port(postgres.port()),
            http_port: free_port().unwrap(),
            postgres: Mutex::new(postgres),
            redis: Mutex::new(redis),
        };
        if !standby_delay.is_zero() {
            servers.standby_proxy.set(Fault::Delay(standby_delay));
        }
        servers.fill_tables().await;
        let mut cache = servers.cache().await.unwrap();
        for number in 0..ballast {
            let mut pipe = redis::pipe();
            pipe.set(format!("other:{number}"), "x").ignore();
            pipe.exec_async(&mut cache).await.unwrap();
        }
        servers
    }

    async fn fill_tables(&self) {
        let sql = self.sql().await.unwrap();
        // The standby is not there yet.
        sql.batch_execute("set synchronous_commit = local").await.unwrap();
        sql.batch_execute(SCHEMA).await.unwrap();
        for id in (1..=ITEMS * 7 / 8).chain(PHANTOMS) {
            let (team, slug) = (team_name(id % TEAMS), slug_name(id));
            let row = format!("insert into item values ({id}, '{team}', '{slug}', 0)");
            sql.batch_execute(&row).await.unwrap();
        }
        for id in FLASHES {
            sql.batch_execute(&format!("insert into flash values ({id}, 0)")).await.unwrap();
        }
        let slot = format!("select pg_create_logical_replication_slot('{NAME}', 'pgoutput')");
        sql.batch_execute(&slot).await.unwrap();
    }

    /// A new session, not through a proxy.
    pub(crate) async fn sql(&self) -> Result<Client, tokio_postgres::Error> {
        connect(&self.postgres_url).await
    }

    /// A new connection, not through a proxy.
    pub(crate) async fn cache(&self) -> Result<MultiplexedConnection, redis::RedisError> {
        let client = redis::Client::open(self.redis_url.as_str())?;
        client.get_multiplexed_async_connection().await
    }

    /// walsweep's configuration.
    pub(crate) async fn config(&self, window: Duration) -> String {
        let [sql, stream] = [&self.sql_proxy, &self.stream_proxy];
        let postgres_port = self.postgres.lock().await.port();
        let redis_port = self.redis.lock().await.port();
        format!(
            "[postgres]\nurl = {:?}\nreplication_url = {:?}\n\
             slot = {NAME:?}\npublication = {NAME:?}\n\
             [redis]\nurl = {:?}\n\
             [refill]\nwindow = \"{}ms\"\n\
             [http]\nlisten = \"127.0.0.1:{}\"\n{RULES}",
            sql.url(&self.postgres_url, postgres_port),
            stream.url(&self.postgres_url, postgres_port),
            self.redis_proxy.url(&self.redis_url, redis_port),
            window.as_millis(),
            self.http_port,
        )
    }

    /// Whether walsweep says that it is ready.
    pub(crate) async fn is_ready(&self) -> bool {
        let ask = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.http_port)).await.ok()?;
            stream.write_all(b"GET /readyz HTTP/1.0\r\nHost: walsweep\r\n\r\n").await.ok()?;
            let mut reply = String::new();
            stream.read_to_string(&mut reply).await.ok()?;
            Some(reply.split(' ').nth(1) == Some("200"))
        };
        let answer = tokio::time::timeout(Duration::from_secs(1), ask).await;
        answer.ok().flatten().unwrap_or(false)
    }

    /// Waits until everything that is committed by now is confirmed, with `ready` also until
    /// walsweep is ready. Says whether that was so within `limit`.
    pub(crate) async fn settled(&self, ready: bool, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut goal = None;
        while Instant::now() < deadline {
            if let Ok(sql) = self.sql().await {
                while Instant::now() < deadline {
                    let Ok((end, confirmed)) = positions(&sql).await else { break };
                    let goal = *goal.get_or_insert(end);
                    if confirmed.is_some_and(|lsn| lsn >= goal) && (!ready || self.is_ready().await)
                    {
                        return true;
                    }
                    sleep(RETRY).await;
                }
            }
            sleep(RETRY).await;
        }
        false
    }

    /// Keeps a synchronous standby running for as long as it is polled.
    pub(crate) async fn stand_by(self: Arc<Servers>) {
        for number in 0_u64.. {
            let receiver = {
                let postgres = self.postgres.lock().await;
                let folder = postgres.new_folder(&format!("received-{number}")).unwrap();
                let mut command = postgres.command("pg_receivewal");
                command.args(["--synchronous", "--no-loop", "--directory"]).arg(&folder);
                command.env("PGPORT", self.standby_proxy.port().to_string());
                command.stdout(Stdio::null()).stderr(Stdio::null());
                let mut command = tokio::process::Command::from(command);
                command.kill_on_drop(true).spawn().map(|child| (child, folder))
            };
            let (mut child, folder) = receiver.unwrap();
            loop {
                tokio::select! {
                    ended = child.wait() => { drop(ended); break }
                    // What is received and whole is of no use to anybody.
                    () = sleep(Duration::from_secs(10)) => remove_whole_segments(&folder),
                }
            }
            drop(std::fs::remove_dir_all(&folder));
            sleep(RETRY).await;
        }
    }
}

fn remove_whole_segments(folder: &std::path::Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().extension().is_none() {
            drop(std::fs::remove_file(entry.path()));
        }
    }
}

/// Where the log ends, and how far the slot is confirmed.
async fn positions(sql: &Client) -> Result<(Lsn, Option<Lsn>), tokio_postgres::Error> {
    // A record after it lets the server say that there is nothing more before.
    let query = format!(
        "select pg_logical_emit_message(false, 'settle', '')::text,
                (select confirmed_flush_lsn::text from pg_replication_slots
                  where slot_name = '{NAME}')"
    );
    let row = sql.query_one(&query, &[]).await?;
    let lsn = |text: &str| text.parse().unwrap_or(Lsn::ZERO);
    Ok((lsn(row.try_get(0)?), row.try_get::<_, Option<&str>>(1)?.map(lsn)))
}
