//! A throwaway Redis.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::process::{Process, Signal};
use super::{Error, PATIENCE, PAUSE, free_port, in_path, io_error, tail};

/// The environment variable that names the `redis-server` program.
const SERVER_VARIABLE: &str = "WALSWEEP_REDIS_SERVER";

/// How to start a [`Redis`]. The default is an empty server that writes nothing to disk.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// The server program; `None`: `$WALSWEEP_REDIS_SERVER`, then `redis-server` in `$PATH`.
    pub server: Option<PathBuf>,
    /// Arguments after the usual ones, such as `--appendonly yes`: a later one wins.
    pub args: Vec<String>,
    /// Lines of a configuration file of its own, which the server may write anew; `None`: it has
    /// no file.
    pub conf: Option<String>,
}

impl RedisOptions {
    /// An empty server with these arguments, such as `["--appendonly", "yes"]`.
    #[must_use]
    pub fn with_args(args: &[&str]) -> RedisOptions {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        RedisOptions { args, ..RedisOptions::default() }
    }

    /// Lets clients call DEBUG, which they may in any case before Redis 7.0. Fails as
    /// [`redis_version`] does.
    pub fn debug(mut self) -> Result<RedisOptions, Error> {
        if version_of(&program(self.server.clone())?)? >= (7, 0) {
            self.args.extend(["--enable-debug-command", "yes"].map(str::to_owned));
        }
        Ok(self)
    }
}

/// The major and minor version of the server that [`Redis::start`] takes by default, that of Redis
/// or of Valkey. Fails when none is installed, or it does not run.
pub fn redis_version() -> Result<(u32, u32), Error> {
    version_of(&program(None)?)
}

/// The program of a server: this one, `$WALSWEEP_REDIS_SERVER`, or `redis-server` in `$PATH`.
fn program(given: Option<PathBuf>) -> Result<PathBuf, Error> {
    let named = || std::env::var_os(SERVER_VARIABLE).map(PathBuf::from);
    given.or_else(named).or_else(|| in_path("redis-server")).ok_or(Error::Missing {
        program: "redis-server".to_owned(),
        variable: SERVER_VARIABLE,
        elsewhere: "",
        package: "redis-server",
    })
}

/// Reads it in what the program says of itself: `Redis server v=7.0.15 sha=…`.
fn version_of(program: &Path) -> Result<(u32, u32), Error> {
    let action = "ask redis for its version";
    let output = Command::new(program).arg("--version").output().map_err(io_error(action))?;
    let said: String = output.stdout.utf8_chunks().map(|chunk| chunk.valid()).collect();
    let version = said.split_once(" v=").map(|(_, version)| version.split(['.', ' ']));
    let mut parts = version.into_iter().flatten().map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => {
            Err(io_error(format!("{action}: it says `{said}`"))(io::ErrorKind::InvalidData.into()))
        }
    }
}

/// A running Redis, ended and removed when dropped. Users that it has saved (`ACL SAVE`) are there
/// after a restart, unless it has a configuration file, or a password or users in its arguments.
#[derive(Debug)]
pub struct Redis {
    process: Option<Process>,
    server: PathBuf,
    conf: Option<PathBuf>,
    args: Vec<String>,
    port: u16,
    folder: TempDir,
}

impl Redis {
    /// Starts a server and waits until it answers, at most 30 s. Fails when no Redis is installed,
    /// or with the end of its log when it does not start.
    pub async fn start(options: RedisOptions) -> Result<Redis, Error> {
        let server = program(options.server)?;
        let folder = tempfile::Builder::new().prefix("walsweep-").tempdir();
        let folder = folder.map_err(io_error("make a temporary folder"))?;
        let conf = options.conf.map(|lines| (folder.path().join("conf"), lines));
        if let Some((file, lines)) = &conf {
            fs::write(file, lines).map_err(io_error("write a configuration file"))?;
        }
        let conf = conf.map(|(file, _)| file);
        let mut args = options.args;
        // A file of users goes together neither with a password nor with users in the arguments.
        let names_users = |arg: &String| arg == "--requirepass" || arg == "--user";
        if conf.is_none() && !args.iter().any(names_users) {
            let users = folder.path().join("users.acl");
            fs::write(&users, "").map_err(io_error("write a file of users"))?;
            args.extend(["--aclfile".to_owned(), users.display().to_string()]);
        }
        let port = free_port()?;
        let mut redis = Redis { process: None, server, conf, args, port, folder };
        redis.start_again().await?;
        Ok(redis)
    }

    /// `redis://` URL of database 0.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// TCP port on 127.0.0.1; stays over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The working folder, with whatever the server writes to disk.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// Gives the last 200 lines that the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        tail(&self.folder.path().join("log"), 0, 200)
    }

    /// A new connection to database 0.
    pub async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        let client = redis::Client::open(self.url())?;
        // The client's own half second is short for thousands of commands on a busy machine.
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
    }

    /// Stops the server in order: it saves if it is configured to.
    pub async fn stop(&mut self) -> Result<(), Error> {
        self.end(Signal::Term).await
    }

    /// Kills the server as a crash would.
    pub async fn kill9(&mut self) -> Result<(), Error> {
        self.end(Signal::Kill).await
    }

    /// Starts the stopped or killed server again on the same port and folder, and waits until it
    /// answers.
    pub async fn start_again(&mut self) -> Result<(), Error> {
        let mut command = Command::new(&self.server);
        command.args(&self.conf).args([
            "--port",
            &self.port.to_string(),
            "--bind",
            "127.0.0.1",
            "--dir",
        ]);
        command.arg(self.folder.path()).args(["--save", "", "--appendonly", "no"]);
        command.args(["--daemonize", "no"]).args(&self.args);
        let log = self.folder.path().join("log");
        let folder = self.folder.path();
        let mut process = Process::spawn("redis", command, Signal::Kill, &log, &[folder])?;
        let deadline = Instant::now() + PATIENCE;
        while !answers(self.port).await {
            process.still_runs()?;
            if Instant::now() > deadline {
                return Err(process.late("answer"));
            }
            sleep(PAUSE).await;
        }
        // Whoever answered might be another server that was faster to take the port.
        process.still_runs()?;
        self.process = Some(process);
        Ok(())
    }

    /// Freezes the server: connections stay open, nothing answers.
    pub fn pause(&self) -> Result<(), Error> {
        self.running()?.signal(Signal::Stop)
    }

    /// Lets a paused server go on.
    pub fn resume(&self) -> Result<(), Error> {
        self.running()?.signal(Signal::Cont)
    }

    /// Whether it was started and neither stopped nor killed since.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    fn running(&self) -> Result<&Process, Error> {
        self.process.as_ref().ok_or(Error::Stopped { name: "redis" })
    }

    async fn end(&mut self, kind: Signal) -> Result<(), Error> {
        let process = self.process.as_mut().ok_or(Error::Stopped { name: "redis" })?;
        process.signal(kind)?;
        process.ended().await?;
        self.process = None;
        Ok(())
    }
}

/// Whether a Redis on `port` has its data loaded: it answers PING, or asks for a password.
async fn answers(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut reply = [0; 5];
        stream.read_exact(&mut reply).await?;
        Ok::<_, io::Error>(reply == *b"+PONG" || reply == *b"-NOAU")
    };
    matches!(timeout(PATIENCE, ask).await, Ok(Ok(true)))
}
