//! One server process: its log, its signals, its end.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio::time::{Instant, sleep};

use super::{Error, PATIENCE, PAUSE, io_error, tail};

/// The script of the reaper: it waits until its standard input ends, which is when the process that
/// holds the other end is gone, however it went; then it ends the server and removes the folders. A
/// parent-death signal would not do: Linux ties it to the thread that forked, and a test's thread
/// ends before the process does.
const REAPER: &str = r#"
read -r _
kill -CONT "$1"; kill -"$2" "$1"
n=0; while kill -0 "$1" && ! grep -q "^State:.Z" "/proc/$1/status"; do
    if [ $n = 50 ]; then kill -KILL "$1"; break; fi
    sleep 0.1; n=$((n + 1))
done
shift 2; rm -rf "$@"
"#;

/// The script of a reaper that ends nobody, and removes folders.
const REMOVER: &str = r#"read -r _; rm -rf "$@""#;

/// A signal that a server or a sidecar can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Read the configuration again.
    Hup,
    /// End; Postgres: fast shutdown.
    Int,
    /// End.
    Term,
    /// Postgres: immediate shutdown.
    Quit,
    /// End at once, without a chance to tidy up.
    Kill,
    /// Pause.
    Stop,
    /// Go on after a pause.
    Cont,
}

impl Signal {
    /// The name that `kill` takes.
    fn name(self) -> &'static str {
        match self {
            Signal::Hup => "HUP",
            Signal::Int => "INT",
            Signal::Term => "TERM",
            Signal::Quit => "QUIT",
            Signal::Kill => "KILL",
            Signal::Stop => "STOP",
            Signal::Cont => "CONT",
        }
    }
}

/// Sends `signal` to each process of `ids`, in that order, through the shell's `kill`: the standard
/// library has no safe call for it. Fails when one of them does not exist or belongs to another.
pub fn signal(ids: &[u32], signal: Signal) -> io::Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", r#"kill -"$0" "$@""#, signal.name()]);
    command.args(ids.iter().map(u32::to_string));
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("kill -{} {ids:?} failed", signal.name())))
}

/// Ends another process when this one is gone, however it goes: a shell that waits at the other end
/// of a pipe. Dropped, it leaves the other process alone.
#[derive(Debug)]
pub struct Reaper(Child);

impl Reaper {
    /// Watches over process `id`: sends it `end` when this process is gone, SIGKILL after 5 s, and
    /// removes these folders. Fails when no shell can be started.
    pub fn new(id: u32, end: Signal, folders: &[&Path]) -> io::Result<Reaper> {
        Reaper::spawn(&[REAPER, "walsweep-reaper", &id.to_string(), end.name()], folders)
    }

    /// Removes these folders when this process is gone, and ends nobody.
    pub(super) fn of(folders: &[&Path]) -> io::Result<Reaper> {
        Reaper::spawn(&[REMOVER, "walsweep-remover"], folders)
    }

    fn spawn(script: &[&str], folders: &[&Path]) -> io::Result<Reaper> {
        let mut command = Command::new("sh");
        command.arg("-c").args(script).args(folders);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Reaper(command.process_group(0).spawn()?))
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // SIGKILL, since the end of its input is what it acts on. It is gone or it is not ours.
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

/// A running server.
#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    child: Child,
    /// `None` once the server is being waited for: its number may then be another process's.
    reaper: Option<Reaper>,
    /// The signal that ends this server soonest without leaving anything behind.
    end: Signal,
    log: PathBuf,
    /// Where in the log this process began to write.
    log_from: usize,
}

impl Process {
    /// Starts `command` in a process group of its own (so that Ctrl-C reaches only its owner), with
    /// its output appended to the file `log`. `end` ends it when the value is dropped or its
    /// owner dies; then the folders are removed, too.
    pub(super) fn spawn(
        name: &'static str,
        mut command: Command,
        end: Signal,
        log: &Path,
        folders: &[&Path],
    ) -> Result<Process, Error> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.map_err(io_error(format!("open the log of {name}")))?;
        let log_from = file.metadata().map_err(io_error("read the log's length"))?.len();
        let again = file.try_clone().map_err(io_error("share the log"))?;
        command.stdin(Stdio::null()).stdout(file).stderr(again).process_group(0);
        let mut child = command.spawn().map_err(io_error(format!("start {name}")))?;
        let reaper = match Reaper::new(child.id(), end, folders) {
            Ok(reaper) => Some(reaper),
            Err(source) => {
                drop(child.kill().and_then(|()| child.wait()));
                return Err(io_error(format!("start the reaper of {name}"))(source));
            }
        };
        let log_from = usize::try_from(log_from).unwrap_or(usize::MAX);
        Ok(Process { name, child, reaper, end, log: log.to_owned(), log_from })
    }

    /// The process id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The last 30 lines that this process wrote.
    pub(super) fn log_tail(&self) -> String {
        tail(&self.log, self.log_from, 30)
    }

    /// Fails if the process has ended.
    pub(super) fn still_runs(&mut self) -> Result<(), Error> {
        match self.child.try_wait().map_err(io_error(format!("look at {}", self.name)))? {
            None => Ok(()),
            Some(status) => Err(Error::Ended { name: self.name, status, log: self.log_tail() }),
        }
    }

    /// Sends a signal.
    pub(super) fn signal(&self, kind: Signal) -> Result<(), Error> {
        signal(&[self.id()], kind).map_err(io_error(format!("signal {}", self.name)))
    }

    /// Waits until the process has ended.
    pub(super) async fn ended(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        while self.still_runs().is_ok() {
            if Instant::now() > deadline {
                return Err(self.late("end"));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// The error of a process that takes too long.
    pub(super) fn late(&self, goal: &'static str) -> Error {
        Error::Late { name: self.name, goal, log: self.log_tail() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.reaper = None;
        // Nothing here can be reported, and whatever fails is a process that is gone already.
        if self.still_runs().is_ok() {
            drop(self.signal(Signal::Cont).and_then(|()| self.signal(self.end)));
        }
        drop(self.child.wait());
    }
}
