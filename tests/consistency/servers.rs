//! The servers: Postgres with a synchronous standby, Redis in one of its modes, and a proxy on each
//! way to them. Those of a cluster and a service are reached directly: each tells where the others
//! are.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use walsweep::lsn::Lsn;
use walsweep_stage::throwaway::{Postgres, PostgresOptions, free_port};

use crate::cache::{Cache, Directory, Mode, SERVICE, port};
use crate::cached::connect;
use crate::schema::{RULES, create};
use crate::shared::RETRY;
use crate::store::{Store, Tally};
use crate::support::{Fault, Proxy};

/// Slot, publication, and part of the watermark's name.
pub(crate) const NAME: &str = "walsweep";

/// walsweep's user in Redis, so that what it may do can be changed for it alone.
pub(crate) const REDIS_USER: &str = "walsweep";

/// Rights of that user if nothing is wrong.
const REDIS_RIGHTS: [&str; 5] = ["on", ">walsweep", "~*", "&*", "+@all"];

/// Settings that make the race frequent and the outages short.
const CONF: [&str; 6] = [
    "max_prepared_transactions = 64",
    "max_connections = 200",
    "synchronous_standby_names = 'pg_receivewal'",
    // A commit that does not wait for the disk reaches the stream soon.
    "wal_writer_delay = 10ms",
    "logical_decoding_work_mem = 64kB",
    "restart_after_crash = on",
];

/// Settings that a standby needs besides. The primary keeps what it has yet to send, when somebody
/// lets it give up the slot's WAL, by some segments: on a busy machine the standby is that far
/// behind. It looks again soon when it was gone.
const WITH_STANDBY: [&str; 2] =
    ["wal_keep_size = '256MB'", "wal_retrieve_retry_interval = '200ms'"];

/// Running servers.
pub(crate) struct Servers {
    /// The standby of `[postgres] replicas`, dropped before its primary.
    pub(crate) standby: Option<Mutex<Postgres>>,
    /// Locked by whoever stops or starts it.
    pub(crate) postgres: Mutex<Postgres>,
    /// Locked by whoever stops or starts it, or moves slots.
    pub(crate) redis: Mutex<Store>,
    /// Where the application finds it, not through a proxy.
    pub(crate) directory: Arc<Directory>,
    /// How much happened to it.
    pub(crate) tally: Tally,
    /// Not through a proxy.
    pub(crate) postgres_url: String,
    /// The invalidator's way to SQL.
    pub(crate) sql_proxy: Proxy,
    /// The invalidator's way to its slot.
    pub(crate) stream_proxy: Proxy,
    /// The invalidator's way to Redis, where there is one server.
    pub(crate) redis_proxy: Proxy,
    standby_proxy: Proxy,
    /// Where walsweep tells how it is.
    pub(crate) http_port: u16,
    /// Where another one does, that stands by.
    pub(crate) second_http_port: u16,
}

impl Servers {
    /// Starts them, with tables and rows, and with keys that nobody asks for: a pass takes longer
    /// then. The synchronous standby is `standby_delay` away, each way. With `listed` there is
    /// another one, which `[postgres] replicas` names.
    pub(crate) async fn start(
        mode: Mode,
        standby_delay: Duration,
        ballast: u32,
        listed: bool,
    ) -> Servers {
        let mut conf = CONF.map(str::to_owned).to_vec();
        if listed {
            conf.extend(WITH_STANDBY.map(str::to_owned));
        }
        let options = PostgresOptions { conf, fsync: true, ..PostgresOptions::default() };
        let postgres = Postgres::start(options).await.unwrap();
        let user = ["--user", REDIS_USER].into_iter().chain(REDIS_RIGHTS);
        let args = user.map(str::to_owned).collect();
        let mut redis = Store::start(mode, args).await.unwrap();
        let redis_port = redis.server(0).unwrap().port();
        let mut servers = Servers {
            standby: None,
            postgres_url: postgres.url(),
            directory: redis.directory(),
            tally: Tally::default(),
            sql_proxy: Proxy::to_port(postgres.port()),
            stream_proxy: Proxy::to_port(postgres.port()),
            redis_proxy: Proxy::to_port(redis_port),
            standby_proxy: Proxy::to_port(postgres.port()),
            http_port: free_port().unwrap(),
            second_http_port: free_port().unwrap(),
            postgres: Mutex::new(postgres),
            redis: Mutex::new(redis),
        };
        if !standby_delay.is_zero() {
            servers.standby_proxy.set(Fault::Delay(standby_delay));
        }
        servers.fill_tables().await;
        if listed {
            let standby = servers.postgres.lock().await.standby("listed", &["fsync = off"]).await;
            servers.standby = Some(Mutex::new(standby.unwrap()));
        }
        let mut cache = servers.cache();
        for number in 0..ballast {
            cache.set(&format!("other:{number}"), "x").await.unwrap();
        }
        servers
    }

    async fn fill_tables(&self) {
        let sql = self.sql().await.unwrap();
        // The standby is not there yet.
        sql.batch_execute("set synchronous_commit = local").await.unwrap();
        sql.batch_execute(&create()).await.unwrap();
        let slot = format!("select pg_create_logical_replication_slot('{NAME}', 'pgoutput')");
        sql.batch_execute(&slot).await.unwrap();
    }

    /// A new session, not through a proxy.
    pub(crate) async fn sql(&self) -> Result<Client, tokio_postgres::Error> {
        connect(&self.postgres_url).await
    }

    /// A new client of the application.
    pub(crate) fn cache(&self) -> Cache {
        Cache::new(&self.directory, String::new())
    }

    /// A new client with walsweep's own login.
    pub(crate) fn cache_as_walsweep(&self) -> Cache {
        Cache::new(&self.directory, login())
    }

    /// The invalidator's way to Redis, as a directory: that of one server leads through the proxy.
    pub(crate) fn way_to_redis(&self) -> Arc<Directory> {
        match self.directory.mode() {
            Mode::Standalone => {
                let nodes = self.directory.nodes().iter();
                let through = |node: &String| self.redis_proxy.url(node, port(node).unwrap());
                Directory::new(Mode::Standalone, nodes.map(through).collect())
            }
            Mode::Cluster | Mode::Sentinel => Arc::clone(&self.directory),
        }
    }

    /// walsweep's configuration; it tells at this port how it is. A `plain` one takes the Redis for
    /// one server, and is for whoever does not connect to it.
    pub(crate) async fn config(
        &self,
        (window, index): (Duration, bool),
        http_port: u16,
        plain: bool,
    ) -> String {
        let [sql, stream] = [&self.sql_proxy, &self.stream_proxy];
        let postgres_port = self.postgres.lock().await.port();
        let replicas: Vec<String> = match &self.standby {
            Some(standby) => vec![standby.lock().await.url()],
            None => Vec::new(),
        };
        format!(
            "[postgres]\nurl = {:?}\nreplication_url = {:?}\n\
             slot = {NAME:?}\npublication = {NAME:?}\nreplicas = {replicas:?}\n\
             [redis]\n{}\
             [sweep]\nindex = {index}\n\
             [refill]\nwindow = \"{}ms\"\n\
             [http]\nlisten = \"127.0.0.1:{}\"\n{RULES}",
            sql.url(&self.postgres_url, postgres_port),
            stream.url(&self.postgres_url, postgres_port),
            self.redis_section(plain),
            window.as_millis(),
            http_port,
        )
    }

    /// The lines of `[redis]`.
    fn redis_section(&self, plain: bool) -> String {
        let url = |place: &str| format!("redis://{}{place}/0", login());
        let way = self.way_to_redis();
        let nodes = way.nodes();
        let urls: Vec<String> = nodes.iter().map(|node| format!("redis://{node}")).collect();
        match self.directory.mode() {
            Mode::Cluster if !plain => format!(
                "mode = \"cluster\"\nurl = {:?}\nseeds = {:?}\n",
                url(&nodes[0]),
                &urls[1..]
            ),
            Mode::Sentinel if !plain => {
                format!("mode = \"sentinel\"\nurl = {:?}\nsentinels = {urls:?}\n", url(SERVICE))
            }
            _ => format!("url = {:?}\n", url(&nodes[0])),
        }
    }

    /// Whether walsweep says that it is ready.
    pub(crate) async fn is_ready(&self) -> bool {
        readyz(self.http_port).await.is_some_and(|(is_ready, _)| is_ready)
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

/// Gives the answer of `/readyz` at a port: whether all is well, and its body; `None` if nobody
/// answers.
pub(crate) async fn readyz(port: u16) -> Option<(bool, String)> {
    answer(port, "/readyz").await
}

async fn answer(port: u16, path: &str) -> Option<(bool, String)> {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: walsweep\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.ok()?;
        let (head, body) = reply.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1) == Some("200"), body.to_owned()))
    };
    tokio::time::timeout(Duration::from_secs(1), ask).await.ok().flatten()
}

/// The body of a page of walsweep's.
pub(crate) async fn page(port: u16, path: &str) -> Option<String> {
    answer(port, path).await.map(|(_, body)| body)
}

/// walsweep's login, as a URL has it.
pub(crate) fn login() -> String {
    format!("{REDIS_USER}:{REDIS_USER}@")
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
