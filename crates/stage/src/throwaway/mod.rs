//! Throwaway servers: a real Postgres and a real Redis as child processes, gone with their value.
//!
//! Takes: options and the binaries that are installed. Gives: running servers on free loopback
//! ports, with the handles that a test or the demonstration needs: stop, kill, pause, start again.
//! Never knows: the stages. Invariants: no server outlives the process that started it, and neither
//! does its folder; nothing listens outside loopback.

mod cluster;
mod postgres;
mod process;
mod redis;
mod sentinel;
mod template;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

pub use self::cluster::{Cluster, ClusterOptions, SLOT_COUNT};
pub use self::postgres::{Postgres, PostgresOptions, StopMode};
pub use self::process::{Reaper, Signal, signal};
pub use self::redis::{Redis, RedisOptions, redis_version};
pub use self::sentinel::{Sentinels, SentinelsOptions};

/// How long a server may take to answer after its start, and to end after it is told to.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait between two looks at a server that starts or ends.
const PAUSE: Duration = Duration::from_millis(2);

/// Why a throwaway server could not be started, asked or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such program is installed.
    #[error(
        "find `{program}`: not in `${variable}`, not in `$PATH`{elsewhere}; Debian has it in the \
         package `{package}`"
    )]
    Missing {
        /// The program.
        program: String,
        /// The environment variable that can name it.
        variable: &'static str,
        /// Where else was looked.
        elsewhere: &'static str,
        /// Debian's package.
        package: &'static str,
    },
    /// A file, a folder or a process refused.
    #[error("{action}: {source}")]
    Io {
        /// The action that was tried.
        action: String,
        /// The cause.
        source: io::Error,
    },
    /// A server ended before it was ready, or a tool failed.
    #[error("start {name}: it ended with {status}\n{log}")]
    Ended {
        /// Which program.
        name: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it wrote.
        log: String,
    },
    /// A server did not get where it should within [`PATIENCE`].
    #[error("wait for {name} to {goal}: {}s are over\n{log}", PATIENCE.as_secs())]
    Late {
        /// Which program.
        name: &'static str,
        /// The goal that it should have reached.
        goal: &'static str,
        /// The end of what it wrote.
        log: String,
    },
    /// The server was stopped before.
    #[error("use {name}: it does not run")]
    Stopped {
        /// Which program.
        name: &'static str,
    },
    /// Postgres refused a connection or a statement.
    #[error("ask postgres: {}", sql_message(.0))]
    Sql(#[from] tokio_postgres::Error),
    /// Redis refused a connection or a command.
    #[error("ask redis: {0}")]
    Redis(#[from] ::redis::RedisError),
}

/// The driver prints `db error` alone; what Postgres said is in its source.
fn sql_message(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |cause| cause.message().to_owned())
}

/// An [`Error::Io`] that names what was tried.
fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let action = action.into();
    move |source| Error::Io { action, source }
}

/// Ports that one process takes from: more than it uses, so that the port of a server that is
/// stopped for a while is not taken for another.
const BLOCK_LENGTH: u16 = 1_000;

/// The blocks, in thousands. A Redis in cluster mode also listens on the port that is 10 000 higher
/// (redis.conf: `cluster-port`), so that one has to be outside of the blocks and below every
/// ephemeral range, too.
const BLOCKS: std::ops::Range<u16> = 12..22;

/// A port of 127.0.0.1 that nobody listens on, in 12000..22000.
///
/// That is below every ephemeral range, on purpose. A client that dials a stopped server again and
/// again would, inside the ephemeral range, sooner or later be given the server's own port as its
/// source and connect to itself; and a restarted server might find its port taken. Programs that
/// run at the same time take ports of blocks of their own: of two that look at the same port, both
/// would see that it is free. Fails when every port is taken.
pub fn free_port() -> Result<u16, Error> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static BLOCK: OnceLock<Option<TcpListener>> = OnceLock::new();
    let block = BLOCK.get_or_init(claim_block).as_ref().and_then(|one| one.local_addr().ok());
    let first =
        block.ok_or_else(|| io_error("find free ports")(io::ErrorKind::AddrInUse.into()))?;
    for _ in 1..BLOCK_LENGTH {
        let offset = 1 + NEXT.fetch_add(1, Ordering::Relaxed) % (BLOCK_LENGTH - 1);
        let port = first.port() + offset;
        // To listen would tell, too. But a process that another thread starts has all sockets of
        // this one until it runs its program, and the port would not be free for as long.
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            return Ok(port);
        }
    }
    Err(io_error("find a free port")(io::ErrorKind::AddrInUse.into()))
}

/// Takes a block of ports that no other process has, by listening on its first one for as long as
/// the value lives.
fn claim_block() -> Option<TcpListener> {
    let count = BLOCKS.end - BLOCKS.start;
    let from = u16::try_from(std::process::id() % u32::from(count)).unwrap_or_default();
    let blocks = (0..count).map(|step| BLOCKS.start + (from + step) % count);
    let mut firsts = blocks.map(|block| block * BLOCK_LENGTH);
    firsts.find_map(|first| TcpListener::bind((Ipv4Addr::LOCALHOST, first)).ok())
}

/// Asks servers until there is an answer, and gives it. `log` gives what they wrote, for the error
/// when [`PATIENCE`] is over.
async fn wait<T>(
    name: &'static str,
    goal: &'static str,
    log: impl Fn() -> String,
    question: impl AsyncFn() -> Result<Option<T>, Error>,
) -> Result<T, Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = question().await? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return Err(Error::Late { name, goal, log: log() });
        }
        sleep(10 * PAUSE).await;
    }
}

/// The program `name` in one of the folders of `$PATH`.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A file given as text, or a note that it cannot be; at most its last `line_count` lines.
fn tail(file: &Path, from: usize, line_count: usize) -> String {
    let bytes = std::fs::read(file).unwrap_or_default();
    let text = bytes.get(from..).unwrap_or_default().utf8_chunks();
    let text: String = text.map(|chunk| chunk.valid()).collect();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(line_count)..).unwrap_or_default().join("\n")
}
