//! The built program, run as its operator runs it.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use walsweep_stage::throwaway::{Postgres, Reaper, Redis, Signal, free_port, signal};

use super::least::Least;
use super::{ANSWER_MAX, PATIENCE, eventually, pause_since};

/// The configuration of a [`Sidecar`]. Every field may be changed before the start.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// `[postgres] url`.
    pub(crate) postgres_url: String,
    /// `[redis] url`.
    pub(crate) redis_url: String,
    /// `[postgres] slot`, and `publication` unless that is given.
    pub(crate) name: String,
    /// `[postgres] publication`.
    pub(crate) publication: Option<String>,
    /// `[refill] window`; tests of first removals want it off.
    pub(crate) refill: String,
    /// `[refill] observe`.
    pub(crate) observe: bool,
    /// `[log] level`.
    pub(crate) level: String,
    /// More TOML lines for `[postgres]`, `[redis]` and `[sweep]`.
    pub(crate) postgres: String,
    /// See [`Settings::postgres`].
    pub(crate) redis: String,
    /// See [`Settings::postgres`].
    pub(crate) sweep: String,
    /// More TOML lines for `[http]`.
    pub(crate) http: String,
    /// The lines of `[audit]`.
    pub(crate) audit: String,
    /// The lines of each `[[redis]]`, instead of `[redis]`.
    pub(crate) targets: Vec<String>,
    /// The `[[rule]]` tables.
    pub(crate) rules: String,
    /// Environment variables of the program.
    pub(crate) env: Vec<(String, String)>,
    /// Arguments that `ulimit` is given before `walsweep run`, such as `-n 256`; nothing if empty.
    pub(crate) ulimit: String,
}

impl Settings {
    /// Defaults for tests: slot and publication `walsweep`, no second removal, level `debug`.
    pub(crate) fn new(postgres: &Postgres, redis: &Redis, rules: &str) -> Settings {
        Settings {
            postgres_url: postgres.url(),
            redis_url: redis.url(),
            name: "walsweep".to_owned(),
            publication: None,
            refill: "0s".to_owned(),
            observe: false,
            level: "debug".to_owned(),
            postgres: String::new(),
            redis: String::new(),
            sweep: String::new(),
            http: String::new(),
            audit: String::new(),
            targets: Vec::new(),
            rules: rules.to_owned(),
            env: Vec::new(),
            ulimit: String::new(),
        }
    }

    /// The configuration file.
    pub(super) fn toml(&self, http_port: u16) -> String {
        let Settings { postgres_url, redis_url, name, refill, observe, level, .. } = self;
        let Settings { postgres, redis, sweep, http, audit, rules, .. } = self;
        let publication = self.publication.as_ref().unwrap_or(name);
        let redis = match self.targets.as_slice() {
            [] => format!("[redis]\nurl = {redis_url:?}\n{redis}\n"),
            targets => targets.iter().map(|lines| format!("[[redis]]\n{lines}\n")).collect(),
        };
        format!(
            "[postgres]\nurl = {postgres_url:?}\nslot = {name:?}\npublication = {publication:?}\n\
             {postgres}\n\
             {redis}\
             [sweep]\n{sweep}\n\
             [refill]\nwindow = {refill:?}\nobserve = {observe}\n\
             [http]\nlisten = \"127.0.0.1:{http_port}\"\n{http}\n\
             [audit]\n{audit}\n\
             [log]\nlevel = {level:?}\n\
             {rules}\n"
        )
    }
}

/// A walsweep with a configuration file in a folder of its own; killed and removed when dropped.
pub(crate) struct Sidecar {
    settings: Settings,
    /// Its logins, if they are others than those of the settings.
    least: Option<Least>,
    folder: TempDir,
    http_port: u16,
    log: Arc<Mutex<Vec<String>>>,
    /// With what reads its log, which ends after it.
    running: Option<(Child, Reaper, Receiver<()>)>,
}

impl Sidecar {
    /// Writes the configuration; nothing runs yet.
    pub(crate) fn new(settings: Settings) -> Sidecar {
        Sidecar::new_at(settings, free_port().unwrap())
    }

    /// Like [`Sidecar::new`], with its pages at this port.
    pub(crate) fn new_at(settings: Settings, http_port: u16) -> Sidecar {
        Sidecar::with(settings, http_port, Least::new(http_port))
    }

    /// Like [`Sidecar::new`], with the least rights whether or not all tests have them.
    pub(crate) fn with_least(settings: Settings) -> Sidecar {
        let http_port = free_port().unwrap();
        Sidecar::with(settings, http_port, Some(Least::always(http_port)))
    }

    fn with(settings: Settings, http_port: u16, least: Option<Least>) -> Sidecar {
        let folder = TempDir::new().unwrap();
        let log = Arc::default();
        let sidecar = Sidecar { settings, least, folder, http_port, log, running: None };
        sidecar.write_config();
        sidecar
    }

    /// Runs `walsweep setup`, starts `walsweep run`, and waits until it is ready.
    pub(crate) async fn set_up(settings: Settings) -> Sidecar {
        let mut sidecar = Sidecar::new(settings);
        sidecar.setup();
        sidecar.start();
        sidecar.wait_ready().await;
        sidecar
    }

    /// Runs `walsweep setup`, which must succeed.
    pub(crate) fn setup(&self) {
        let output = self.command(&["setup"]);
        assert!(output.status.success(), "{}", text(&output));
    }

    /// Runs `walsweep ARGS --config FILE` to its end.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> Output {
        let program = self.program(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let program = program.unwrap();
        let (pid, (ended, is_ended)) = (program.id(), mpsc::channel::<()>());
        let limit = thread::spawn(move || {
            if is_ended.recv_timeout(ANSWER_MAX) == Err(RecvTimeoutError::Timeout) {
                signal(&[pid], Signal::Kill).unwrap();
            }
        });
        let output = program.wait_with_output().unwrap();
        drop(ended);
        limit.join().unwrap();
        output
    }

    /// Starts `walsweep ARGS --config FILE`, with what it writes kept for whoever waits for it.
    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        self.spawn_to(args, Stdio::piped())
    }

    /// Starts `walsweep ARGS --config FILE` with its standard output where `out` says.
    pub(crate) fn spawn_to(&self, args: &[&str], out: Stdio) -> Child {
        self.program(args).stdout(out).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Changes the settings; the next start reads them.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        self.write_config();
    }

    /// Starts `walsweep run`. Its log goes on where the run before it ended.
    pub(crate) fn start(&mut self) {
        self.start_with(&["run"]);
    }

    /// Starts `walsweep run --strict`.
    pub(crate) fn start_strictly(&mut self) {
        self.start_with(&["run", "--strict"]);
    }

    fn start_with(&mut self, args: &[&str]) {
        assert!(self.running.is_none(), "it runs already");
        let mut child = self.limited(args).stderr(Stdio::piped()).spawn().unwrap();
        let reaper = Reaper::new(child.id(), Signal::Kill, &[self.folder.path()]).unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::clone(&self.log);
        let (hangs_up, reader) = mpsc::channel::<()>();
        thread::spawn(move || {
            let _hangs_up = hangs_up;
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                log.lock().unwrap().push(line);
            }
        });
        self.running = Some((child, reaper, reader));
    }

    /// Waits until `/readyz` answers 200; panics with the log when the program ends instead.
    pub(crate) async fn wait_ready(&mut self) {
        let start = tokio::time::Instant::now();
        while self.readyz().await != Some(200) {
            if let Some(status) = self.exited() {
                panic!("it ended with {status} before it was ready\n{}", self.log().join("\n"));
            }
            assert!(start.elapsed() < PATIENCE, "not ready\n{}", self.log().join("\n"));
            tokio::time::sleep(pause_since(start)).await;
        }
    }

    /// Status code of `/readyz`; `None` when nobody listens.
    pub(crate) async fn readyz(&self) -> Option<u16> {
        self.get("/readyz").await.map(|(status, _)| status)
    }

    /// Status code and body of a page; `None` when nobody listens.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http_port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: walsweep\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut reply = String::new();
        match timeout(ANSWER_MAX, stream.read_to_string(&mut reply)).await {
            Ok(read) => read.ok()?,
            Err(_) => panic!("{path} is not answered within {ANSWER_MAX:?}"),
        };
        let (head, body) = reply.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    }

    /// The value of a metric, such as `walsweep_sweeps_total{reason="gap"}`; one that is not there
    /// is 0, as a counter that never counted.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.get("/metrics").await.expect("it listens");
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a metric's value is a number"))
    }

    /// The sum over all label sets of a metric.
    pub(crate) async fn metric_sum(&self, name: &str) -> f64 {
        let (_, page) = self.get("/metrics").await.expect("it listens");
        let lines = page.lines().filter_map(|line| line.strip_prefix(name));
        let lines = lines.filter(|rest| rest.starts_with([' ', '{']));
        lines.filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// The lines that it has logged, over all its runs.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits until a line with `part` is logged.
    pub(crate) async fn wait_log(&self, part: &str) {
        let found = || async { self.log().iter().any(|line| line.contains(part)) };
        eventually(PATIENCE, &format!("a log line with `{part}`"), found).await;
    }

    /// Fails if a warning or an error is logged that holds none of `expected`.
    pub(crate) fn assert_quiet(&self, expected: &[&str]) {
        for line in self.log() {
            let loud = line.contains("WARN") || line.contains("ERROR") || line.contains("panicked");
            let known = expected.iter().any(|part| line.contains(part));
            assert!(!loud || known, "unexpected: {line}");
        }
    }

    /// Whether `walsweep run` was started, and its end not waited for.
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The folder of its configuration.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The port of its pages.
    pub(crate) fn http_port(&self) -> u16 {
        self.http_port
    }

    /// The process id of the running program.
    pub(crate) fn id(&self) -> u32 {
        self.running.as_ref().expect("it runs").0.id()
    }

    /// Kills it as a crash would.
    pub(crate) fn kill9(&mut self) {
        let (mut child, reaper, reader) = self.running.take().expect("it runs");
        drop(reaper);
        child.kill().unwrap();
        child.wait().unwrap();
        end(&reader);
    }

    /// Freezes it, or lets it go on.
    pub(crate) fn signal(&self, kind: Signal) {
        signal(&[self.id()], kind).unwrap();
    }

    /// Sends SIGTERM and waits for the end; gives the exit code.
    pub(crate) async fn sigterm(&mut self) -> i32 {
        self.signal(Signal::Term);
        self.wait_exit().await
    }

    /// Waits for the end, and for the last line of the log; gives the exit code, or the negative
    /// number of the signal that ended it.
    pub(crate) async fn wait_exit(&mut self) -> i32 {
        let start = tokio::time::Instant::now();
        loop {
            if let Some(status) = self.exited() {
                let (_, _, reader) = self.running.take().expect("it was started");
                end(&reader);
                return status.code().unwrap_or_else(|| -status.signal().unwrap());
            }
            assert!(start.elapsed() < PATIENCE, "it runs on\n{}", self.log().join("\n"));
            tokio::time::sleep(pause_since(start)).await;
        }
    }

    /// Whether it ended by itself; [`Sidecar::wait_exit`] tells how.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.exited().is_some()
    }

    /// How it ended, if it did.
    fn exited(&mut self) -> Option<ExitStatus> {
        self.running.as_mut().expect("it was started").0.try_wait().unwrap()
    }

    fn program<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        self.command_of(Command::new(env!("CARGO_BIN_EXE_walsweep")), args)
    }

    /// The program, with less than this process may have.
    fn limited(&self, args: &[&str]) -> Command {
        if self.settings.ulimit.is_empty() {
            return self.program(args);
        }
        let mut shell = Command::new("sh");
        let script = format!("ulimit {} && exec \"$0\" \"$@\"", self.settings.ulimit);
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_walsweep")]);
        self.command_of(shell, args)
    }

    fn command_of<A: AsRef<OsStr>>(&self, mut command: Command, args: &[A]) -> Command {
        command.args(args).arg("--config").arg(self.config_file());
        command.envs(self.settings.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        if let Some(least) = &self.least {
            least.prepare(&self.settings, self.folder(), &mut command);
        }
        command
    }

    fn config_file(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    fn write_config(&self) {
        let Some(least) = &self.least else {
            return fs::write(self.config_file(), self.settings.toml(self.http_port)).unwrap();
        };
        let settings = least.logins(&self.settings);
        fs::write(self.config_file(), settings.toml(self.http_port)).unwrap();
        least.settings_changed(&self.settings, self.folder());
    }
}

/// Waits for the last line of the log, after which its reader hangs up. Somebody else may have the
/// log's pipe, and hold it open.
fn end(reader: &Receiver<()>) {
    let ended = reader.recv_timeout(ANSWER_MAX);
    assert_eq!(ended, Err(RecvTimeoutError::Disconnected), "the log does not end with its process");
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.kill9();
        }
        if thread::panicking() {
            eprintln!("--- the sidecar's log\n{}", self.log().join("\n"));
        }
    }
}

/// Everything that a command wrote.
pub(crate) fn text(output: &Output) -> String {
    let both = output.stdout.utf8_chunks().chain(output.stderr.utf8_chunks());
    both.map(|chunk| chunk.valid()).collect()
}
