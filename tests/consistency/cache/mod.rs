//! The application's way to its cache: one Redis, a cluster, or a service that Sentinels know.
//!
//! It does as a correct client does: it asks the owner of a key's slot, follows MOVED and ASK, asks
//! who the primary is when something is wrong, and gives up after a while. A value goes to whom it
//! believes to be the owner, and is read there.

mod slots;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, Value, cmd, pipe};
use tokio::time::{Instant, sleep, timeout};

use self::slots::Slots;
pub(crate) use self::slots::slot_of;
use crate::shared::RETRY;

/// How a Redis is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// One server.
    #[default]
    Standalone,
    /// Three primaries with a replica each.
    Cluster,
    /// A primary and a replica that three Sentinels watch.
    Sentinel,
}

impl Mode {
    /// Every mode.
    pub(crate) const ALL: [Mode; 3] = [Mode::Standalone, Mode::Cluster, Mode::Sentinel];

    /// The mode's name, on the command line and in a configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Standalone => "standalone",
            Mode::Cluster => "cluster",
            Mode::Sentinel => "sentinel",
        }
    }
}

/// The name of the service that the Sentinels watch.
pub(crate) const SERVICE: &str = "cache";

/// Environment variables by which another program learns where the cache is.
pub(crate) const VARIABLES: [&str; 2] = ["REDIS_MODE", "REDIS_NODES"];

/// How long a command is tried again.
const LIMIT: Duration = Duration::from_secs(2);

/// How long a node may take to tell who the primaries are.
const ANSWER: Duration = Duration::from_millis(300);

/// How often somebody asks who the primaries are although nothing is wrong.
const WATCH: Duration = Duration::from_millis(50);

/// Nobody asks again sooner than this.
const ASK_INTERVAL: Duration = Duration::from_millis(20);

/// Where the cache is, as all clients of one program know it.
pub(crate) struct Directory {
    mode: Mode,
    /// The server, nodes, or Sentinels, as `host:port`.
    nodes: Vec<String>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    slots: Slots,
    primary: Option<u16>,
    asked: Option<Instant>,
}

impl Directory {
    /// Of one server, a cluster's nodes, or Sentinels, each given as `host:port`.
    pub(crate) fn new(mode: Mode, nodes: Vec<String>) -> Arc<Directory> {
        Arc::new(Directory { mode, nodes, known: Mutex::default() })
    }

    /// The one that the environment tells of.
    pub(crate) fn of_environment() -> Arc<Directory> {
        let [mode, nodes] = VARIABLES.map(|name| std::env::var(name).unwrap());
        let mode = <Mode as clap::ValueEnum>::from_str(&mode, false).unwrap();
        Directory::new(mode, nodes.split(',').map(str::to_owned).collect())
    }

    /// The environment by which another program makes the same directory.
    pub(crate) fn environment(&self) -> [(&'static str, String); 2] {
        [(VARIABLES[0], self.mode.name().to_owned()), (VARIABLES[1], self.nodes.join(","))]
    }

    /// The server, nodes, or Sentinels, as `host:port`.
    pub(crate) fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// How the cache is run.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Asks again and again who the primaries are, for as long as it is polled: who talks to an old
    /// one that nobody follows learns of it so.
    pub(crate) async fn watch(self: Arc<Directory>) {
        loop {
            self.refresh().await;
            sleep(WATCH).await;
        }
    }

    /// The ports of all primaries, asked for now.
    pub(crate) async fn primaries(&self) -> Vec<u16> {
        self.refresh().await;
        match self.mode {
            Mode::Standalone => self.nodes.iter().filter_map(|node| port(node)).collect(),
            Mode::Cluster => self.known().slots.primaries(),
            Mode::Sentinel => self.known().primary.into_iter().collect(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    /// The port of whoever has a slot, as far as is known.
    fn owner(&self, slot: u16) -> Option<u16> {
        match self.mode {
            Mode::Standalone => port(self.nodes.first()?),
            Mode::Cluster => self.known().slots.owner(slot),
            Mode::Sentinel => self.known().primary,
        }
    }

    /// Asks one node after the other, until one tells who the primaries are.
    async fn refresh(&self) {
        {
            let mut known = self.known();
            if known.asked.is_some_and(|asked| asked.elapsed() < ASK_INTERVAL) {
                return;
            }
            known.asked = Some(Instant::now());
        }
        for node in &self.nodes {
            let answer = timeout(ANSWER, self.ask(node)).await;
            if matches!(answer, Ok(Ok(true))) {
                return;
            }
        }
    }

    /// Asks a node who the primaries are. Says whether it knows.
    async fn ask(&self, node: &str) -> RedisResult<bool> {
        let client = redis::Client::open(format!("redis://{node}"))?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        match self.mode {
            Mode::Standalone => return Ok(true),
            Mode::Cluster => {
                let answer: Value =
                    cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
                let Some(slots) = Slots::read(&answer) else { return Ok(false) };
                self.known().slots = slots;
            }
            Mode::Sentinel => {
                let mut ask = cmd("SENTINEL");
                ask.arg("GET-MASTER-ADDR-BY-NAME").arg(SERVICE);
                let (_host, port): (String, u16) = ask.query_async(&mut connection).await?;
                self.known().primary = Some(port);
            }
        }
        Ok(true)
    }
}

/// One client, with a connection to each node that it asked.
#[derive(Clone)]
pub(crate) struct Cache {
    directory: Arc<Directory>,
    /// User and password before an `@`, or nothing.
    login: String,
    connections: HashMap<u16, MultiplexedConnection>,
}

impl Cache {
    /// A client that is not connected yet; `login` is empty, or `user:password@`.
    pub(crate) fn new(directory: &Arc<Directory>, login: String) -> Cache {
        Cache { directory: Arc::clone(directory), login, connections: HashMap::new() }
    }

    /// Sends a command to whoever has this key, and again for as long as that changes.
    pub(crate) async fn ask<T>(&mut self, key: &str, command: &Cmd) -> RedisResult<T>
    where
        T: FromRedisValue,
    {
        let slot = slot_of(key.as_bytes());
        let deadline = Instant::now() + LIMIT;
        let mut asked = None;
        loop {
            let error = match asked.or(self.directory.owner(slot)) {
                Some(port) => match self.send(port, asked.is_some(), command).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => self.broken(port, error),
                },
                None => RedisError::from((ErrorKind::Io, "nobody has the slot")),
            };
            asked = None;
            if self.directory.mode == Mode::Standalone || Instant::now() > deadline {
                return Err(error);
            }
            let to = error.redirect_node().and_then(|(node, _)| port(node));
            match (error.code(), to) {
                (Some("ASK"), Some(_)) => asked = to,
                (Some("MOVED"), Some(port)) => {
                    self.directory.known().slots.moved(slot, port);
                    self.directory.refresh().await;
                }
                (Some("TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" | "LOADING" | "READONLY"), _) => {
                    sleep(RETRY).await;
                    self.directory.refresh().await;
                }
                _ if error.is_io_error() => {
                    sleep(RETRY).await;
                    self.directory.refresh().await;
                }
                _ => return Err(error),
            }
        }
    }

    /// Gives the value of a key.
    pub(crate) async fn get(&mut self, key: &str) -> RedisResult<Option<String>> {
        self.ask(key, cmd("GET").arg(key)).await
    }

    /// Gives a key a value.
    pub(crate) async fn set(&mut self, key: &str, value: &str) -> RedisResult<()> {
        self.ask(key, cmd("SET").arg(key).arg(value)).await
    }

    /// Removes a key.
    pub(crate) async fn unlink(&mut self, key: &str) -> RedisResult<()> {
        self.ask(key, cmd("UNLINK").arg(key)).await
    }

    /// Looks at many keys at once. One on its way, or of a node that does not answer, is as if it
    /// were not there.
    pub(crate) async fn look(&mut self, names: &[String]) -> RedisResult<Vec<Option<String>>> {
        if self.directory.mode != Mode::Cluster {
            return self.ask("", cmd("MGET").arg(names)).await;
        }
        let mut of_nodes: HashMap<u16, Vec<usize>> = HashMap::new();
        for (at, name) in names.iter().enumerate() {
            match self.directory.owner(slot_of(name.as_bytes())) {
                Some(port) => of_nodes.entry(port).or_default().push(at),
                None => self.directory.refresh().await,
            }
        }
        let mut values = vec![None; names.len()];
        for (port, places) in of_nodes {
            let mut gets = pipe();
            for at in &places {
                gets.get(&names[*at]);
            }
            let answers: RedisResult<Vec<RedisResult<Option<String>>>> =
                async { gets.ignore_errors().query_async(&mut self.connection(port).await?).await }
                    .await;
            match answers {
                Ok(answers) => {
                    for (at, answer) in places.into_iter().zip(answers) {
                        values[at] = answer.ok().flatten();
                    }
                }
                Err(error) => drop(self.broken(port, error)),
            }
        }
        Ok(values)
    }

    /// The connection to one node, which must be a primary if Sentinels say that it is.
    pub(crate) async fn connection(&mut self, port: u16) -> RedisResult<MultiplexedConnection> {
        if let Some(connection) = self.connections.get(&port) {
            return Ok(connection.clone());
        }
        let host = if self.directory.mode == Mode::Standalone {
            self.directory.nodes.first().cloned().unwrap_or_default()
        } else {
            format!("127.0.0.1:{port}")
        };
        let client = redis::Client::open(format!("redis://{}{host}/0", self.login))?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        if self.directory.mode == Mode::Sentinel {
            let role: Vec<Value> = cmd("ROLE").query_async(&mut connection).await?;
            if role.first() != Some(&Value::BulkString(b"master".to_vec())) {
                return Err(RedisError::from((ErrorKind::Io, "the server is not a primary")));
            }
        }
        self.connections.insert(port, connection.clone());
        Ok(connection)
    }

    async fn send<T: FromRedisValue>(
        &mut self,
        port: u16,
        asking: bool,
        command: &Cmd,
    ) -> RedisResult<T> {
        let mut connection = self.connection(port).await?;
        if !asking {
            return command.query_async(&mut connection).await;
        }
        let mut both = pipe();
        both.cmd("ASKING").ignore().add_command(command.clone());
        let (answer,): (T,) = both.query_async(&mut connection).await?;
        Ok(answer)
    }

    /// Forgets a connection that is of no use any more, and gives back the error that shows it.
    pub(crate) fn broken(&mut self, port: u16, error: RedisError) -> RedisError {
        if error.is_io_error() {
            self.connections.remove(&port);
        }
        error
    }
}

/// The port at the end of `host:port`.
pub(crate) fn port(node: &str) -> Option<u16> {
    node.rsplit_once(':')?.1.parse().ok()
}
