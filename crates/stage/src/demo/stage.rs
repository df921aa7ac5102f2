//! The stage: both servers, and walsweep beside them as its operator runs it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use super::show::Show;
use super::{Error, REPORT, io_error, site};
use crate::throwaway::{
    Postgres, PostgresOptions, Reaper, Redis, RedisOptions, Signal, free_port, signal,
};

/// A rule of a configuration as it stands there, without what is said before it.
pub(super) fn rule<'a>(config: &'a str, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    let named = format!("[[rule]]\nname = \"{name}\"\n");
    let rule = config.find(&named).and_then(|at| config.get(at..)).unwrap_or_default();
    rule.lines().take_while(|line| !line.is_empty())
}

/// The slot of the configuration, which is the default.
const SLOT: &str = "walsweep";

/// How long walsweep may take to be ready, to confirm, and to end.
const LIMIT: Duration = Duration::from_secs(10);

/// How long to wait between two looks at something that takes its time.
const PAUSE: Duration = Duration::from_millis(5);

/// Everything that runs.
pub(super) struct Stage {
    /// A session of the site's database.
    pub(super) sql: Client,
    /// The site's connection to its cache.
    pub(super) cache: MultiplexedConnection,
    /// `matches.id` of a match that no act touches.
    spare: i64,
    // Dropped in this order: walsweep before the servers that it would miss.
    walsweep: Walsweep,
    pub(super) postgres: Postgres,
    pub(super) redis: Redis,
}

impl Stage {
    /// Starts the servers, plays the season in, runs `walsweep setup` and `walsweep run`, and waits
    /// until it is ready.
    pub(super) async fn set(config: &str, show: &mut Show) -> Result<Stage, Error> {
        show.step("starting the servers")?;
        // Redis first: it is there at once, or is missing before anything runs.
        let redis = Redis::start(RedisOptions::default()).await?;
        let postgres = Postgres::start(PostgresOptions::default()).await?;
        let (sql, cache) = (postgres.connect().await?, redis.connect().await?);
        show.step("playing a season in")?;
        for part in site::SCHEMA {
            sql.batch_execute(part).await?;
        }
        sql.batch_execute("call generate_season()").await?;
        let matches = site::fixtures(&sql).await?;
        let spare = matches.last().map_or(0, |last| last.id);
        let keys = site::cached(&sql).await?.len();
        show.step("setting walsweep up, and starting it")?;
        let start = Instant::now();
        let walsweep = Walsweep::start(config, &postgres.url(), &redis.url()).await?;
        let ready = start.elapsed();
        show.clear()?;
        let written = writeln!(
            show,
            "Postgres on port {}, Redis on port {}: a season of {} matches, {keys} keys cached \
             before each transaction.\nwalsweep: set up, started and ready after {} ms, \
             with the rules of config.toml.",
            postgres.port(),
            redis.port(),
            matches.len(),
            ready.as_millis()
        );
        written.map_err(io_error(REPORT))?;
        let mut stage = Stage { sql, cache, spare, walsweep, postgres, redis };
        // A first start sweeps everything, and again after the refill window.
        show.step("sweeping, as any first start does")?;
        stage.wait_confirmed().await?;
        show.clear()?;
        Ok(stage)
    }

    /// Waits until everything that is committed so far is confirmed to Postgres, which walsweep
    /// does only after the second removal.
    pub(super) async fn wait_confirmed(&mut self) -> Result<(), Error> {
        let position = include_str!("../../sql/football/position.sql");
        let confirmed = include_str!("../../sql/football/confirmed.sql");
        let position: String = self.sql.query_one(position, &[]).await?.try_get(0)?;
        // A commit beyond that position which removes nothing, so that there is one to confirm.
        let spare = format!("call note_venue({}, clock_timestamp()::text)", self.spare);
        self.sql.batch_execute(&spare).await?;
        let deadline = Instant::now() + LIMIT;
        while !self.sql.query_one(confirmed, &[&position, &SLOT]).await?.try_get::<_, bool>(0)? {
            self.walsweep.still_runs()?;
            if Instant::now() > deadline {
                return Err(self.walsweep.late("the transaction is confirmed"));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Writes how to look around.
    pub(super) fn describe(&self, out: &mut impl Write) -> io::Result<()> {
        let psql = self.postgres.bin("psql");
        let (url, port) = (self.postgres.url(), self.redis.port());
        let Walsweep { http_port, .. } = self.walsweep;
        writeln!(out, "\nEverything runs on, with all keys cached again, until Ctrl-C:")?;
        writeln!(out, "  {} {url}", psql.display())?;
        writeln!(out, "  {} {url} -c 'call settle_match(10, 1, 0)'", psql.display())?;
        writeln!(out, "  redis-cli -p {port} --scan --pattern 'stats:club:*'")?;
        writeln!(out, "  redis-cli -p {port} monitor")?;
        writeln!(
            out,
            "  http://127.0.0.1:{http_port}/ in a browser, /readyz and /metrics beside it"
        )?;
        writeln!(out, "  tail -f {}", self.walsweep.log_file().display())?;
        writeln!(out, "  {}", self.walsweep.config_file().display())
    }

    /// Ends walsweep in order, then the servers. Fails if walsweep does not end well.
    pub(super) async fn strike(mut self) -> Result<(), Error> {
        signal(&[self.walsweep.child.id()], Signal::Term).map_err(io_error("end walsweep"))?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = self.walsweep.child.try_wait().map_err(io_error("look at walsweep"))?;
            match status {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.walsweep.ended("run", status)),
                None if Instant::now() > deadline => return Err(self.walsweep.late("it ends")),
                None => sleep(PAUSE).await,
            }
        }
    }
}

/// A running `walsweep run`, killed when dropped.
struct Walsweep {
    child: Child,
    /// `None` once the child is being waited for: its number may then be another process's.
    reaper: Option<Reaper>,
    http_port: u16,
    folder: TempDir,
}

impl Walsweep {
    /// Runs `setup`, starts `run`, waits until it is ready.
    async fn start(config: &str, postgres_url: &str, redis_url: &str) -> Result<Walsweep, Error> {
        let folder = tempfile::Builder::new().prefix("walsweep-").tempdir();
        let folder = folder.map_err(io_error("make a temporary folder"))?;
        let http_port = free_port()?;
        let config = adapt(config, postgres_url, redis_url, http_port)?;
        let file = folder.path().join("config.toml");
        fs::write(&file, config).map_err(io_error("write the configuration"))?;

        let program = std::env::current_exe().map_err(io_error("find this program"))?;
        let command = |name: &str| {
            let mut command = Command::new(&program);
            command.arg(name).arg("--config").arg(&file).stdin(Stdio::null());
            command
        };
        let output = command("setup").output().map_err(io_error("start `walsweep setup`"))?;
        if !output.status.success() {
            let log = output.stdout.utf8_chunks().chain(output.stderr.utf8_chunks());
            let log = log.map(|chunk| chunk.valid()).collect();
            return Err(Error::Ended { command: "setup", status: output.status, log });
        }
        let log = File::create(folder.path().join("log")).map_err(io_error("open the log"))?;
        let again = log.try_clone().map_err(io_error("share the log"))?;
        let child = command("run").stdout(log).stderr(again).spawn();
        let child = child.map_err(io_error("start `walsweep run`"))?;
        let mut walsweep = Walsweep { child, reaper: None, http_port, folder };
        let (id, path) = (walsweep.child.id(), walsweep.folder.path());
        let reaper =
            Reaper::new(id, Signal::Term, &[path]).map_err(io_error("start the reaper"))?;
        walsweep.reaper = Some(reaper);
        walsweep.wait_ready().await?;
        Ok(walsweep)
    }

    async fn wait_ready(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + LIMIT;
        while !is_ready(self.http_port).await.unwrap_or(false) {
            self.still_runs()?;
            if Instant::now() > deadline {
                return Err(self.late("walsweep is ready"));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Fails if it has ended.
    fn still_runs(&mut self) -> Result<(), Error> {
        match self.child.try_wait().map_err(io_error("look at walsweep"))? {
            None => Ok(()),
            Some(status) => Err(self.ended("run", status)),
        }
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn config_file(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    fn ended(&self, command: &'static str, status: std::process::ExitStatus) -> Error {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        Error::Ended { command, status, log }
    }

    fn late(&self, goal: &'static str) -> Error {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        Error::Late { goal, limit: LIMIT, log }
    }
}

impl Drop for Walsweep {
    fn drop(&mut self) {
        self.reaper = None;
        // One that has ended already is what is wanted.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

/// The configuration `text` with other addresses.
fn adapt(text: &str, postgres_url: &str, redis_url: &str, http_port: u16) -> Result<String, Error> {
    let mut config: toml::Table =
        text.parse().map_err(|error: toml::de::Error| Error::Config(error.to_string()))?;
    for (section, option, value) in [
        ("postgres", "url", postgres_url),
        ("redis", "url", redis_url),
        ("http", "listen", &format!("127.0.0.1:{http_port}")),
    ] {
        let section = config.get_mut(section).and_then(toml::Value::as_table_mut);
        let section = section.ok_or_else(|| Error::Config("a section is missing".to_owned()))?;
        section.insert(option.to_owned(), toml::Value::String(value.to_owned()));
    }
    toml::to_string(&config).map_err(|error| Error::Config(error.to_string()))
}

/// Whether `/readyz` answers 200.
async fn is_ready(http_port: u16) -> io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", http_port)).await?;
    let request = b"GET /readyz HTTP/1.1\r\nHost: walsweep\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await?;
    let mut status = [0; 13];
    stream.read_exact(&mut status).await?;
    Ok(status == *b"HTTP/1.1 200 ")
}

#[cfg(test)]
mod tests {
    use super::adapt;

    const CONFIG: &str = include_str!("../../../../config.toml");

    #[test]
    fn only_addresses_differ_from_the_configuration_at_the_root() {
        let adapted: toml::Table =
            adapt(CONFIG, "postgres://a", "redis://b", 7).unwrap().parse().unwrap();
        let original: toml::Table = CONFIG.parse().unwrap();
        assert_eq!(adapted["postgres"]["url"].as_str(), Some("postgres://a"));
        assert_eq!(adapted["redis"]["url"].as_str(), Some("redis://b"));
        assert_eq!(adapted["http"]["listen"].as_str(), Some("127.0.0.1:7"));
        assert_eq!(adapted["rule"], original["rule"]);
        assert_eq!(adapted.len(), original.len());
    }
}
