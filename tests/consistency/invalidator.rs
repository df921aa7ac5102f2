//! The program under test: any command that a shell can run, restarted whenever it ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use walsweep_stage::throwaway::{Reaper, Signal};

/// How often the program is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// One that ends sooner than this after its start is given a pause.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// How it ended when nobody ended it, how often, and what it wrote last before.
pub(crate) type Exits = BTreeMap<String, (u32, String)>;

/// A command with what it needs to know in its environment.
pub(crate) struct Invalidator {
    command: String,
    environment: Vec<(String, String)>,
    log: PathBuf,
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    /// Kept down until it is released.
    held: bool,
    not_before: Option<Instant>,
    exits: Exits,
}

struct Running {
    child: Child,
    reaper: Reaper,
    started: Instant,
    /// It is meant to end by itself.
    doomed: bool,
}

impl Invalidator {
    /// A command that does not run yet; its output is appended to `log`.
    pub(crate) fn new(
        command: String,
        environment: Vec<(String, String)>,
        (log, folder): (PathBuf, &Path),
    ) -> Invalidator {
        let folder = folder.to_owned();
        Invalidator { command, environment, log, folder, state: Mutex::default() }
    }

    /// A variable of its environment; empty if it has none of that name.
    pub(crate) fn variable(&self, name: &str) -> &str {
        let found = self.environment.iter().find(|(one, _)| one == name);
        found.map_or("", |(_, value)| value)
    }

    /// Starts it, unless it runs.
    pub(crate) fn start(&self) {
        let mut state = self.state();
        if state.running.is_none() {
            state.running = Some(self.spawn(None));
        }
    }

    /// Keeps it running for as long as it is polled.
    pub(crate) async fn supervise(&self) {
        loop {
            self.restart_if_ended();
            sleep(LOOK).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn restart_if_ended(&self) {
        let mut state = self.state();
        if let Some(running) = &mut state.running {
            let Some(status) = running.child.try_wait().unwrap() else { return };
            let short = running.started.elapsed() < SHORT_LIFE;
            let doomed = running.doomed;
            state.running = None;
            if !doomed {
                let (count, words) = state.exits.entry(how(status)).or_default();
                (*count, *words) = (*count + 1, self.last_lines(3));
                state.not_before = short.then(|| Instant::now() + SHORT_LIFE / 2);
            }
        }
        if !state.held && state.not_before.is_none_or(|time| time <= Instant::now()) {
            state.running = Some(self.spawn(None));
        }
    }

    fn spawn(&self, doom: Option<(&str, &str)>) -> Running {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new("sh");
        command.arg("-c").arg(&self.command).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).envs(doom);
        let child = command.spawn().unwrap();
        let reaper = Reaper::new(child.id(), Signal::Kill, &[&self.folder]).unwrap();
        Running { child, reaper, started: Instant::now(), doomed: doom.is_some() }
    }

    /// Kills it and whatever it started, as a crash would.
    pub(crate) fn kill(&self) {
        // Locked until it is gone: nobody may start the next one before.
        let mut state = self.state();
        let Some(Running { mut child, reaper, .. }) = state.running.take() else { return };
        drop(reaper);
        send(child.id(), "KILL");
        child.wait().unwrap();
    }

    /// Kills it and keeps it down.
    pub(crate) fn hold(&self) {
        self.state().held = true;
        self.kill();
    }

    /// Lets it run again.
    pub(crate) fn release(&self) {
        self.state().held = false;
    }

    /// Freezes it or lets it go on.
    pub(crate) fn freeze(&self, frozen: bool) {
        if let Some(running) = &self.state().running {
            send(running.child.id(), if frozen { "STOP" } else { "CONT" });
        }
    }

    /// Starts it with one more environment variable, by which it ends by itself. Says whether it
    /// did so within `limit`; it is killed if not.
    pub(crate) async fn doom(&self, variable: (&str, &str), limit: Duration) -> bool {
        self.kill();
        {
            let mut state = self.state();
            // Somebody else may keep it down.
            if state.held {
                return false;
            }
            if state.running.is_none() {
                state.running = Some(self.spawn(Some(variable)));
            }
        }
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            let doomed = self.state().running.as_ref().is_some_and(|running| running.doomed);
            if !doomed {
                return true;
            }
            sleep(LOOK).await;
        }
        self.kill();
        false
    }

    /// How it ended when nobody ended it.
    pub(crate) fn exits(&self) -> Exits {
        self.state().exits.clone()
    }

    /// The last lines that it wrote.
    pub(crate) fn last_words(&self) -> String {
        self.last_lines(20)
    }

    fn last_lines(&self, count: usize) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text: String = bytes.utf8_chunks().map(|chunk| chunk.valid()).collect();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

impl Drop for Invalidator {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to a process group.
fn send(group: u32, signal: &str) {
    let script = format!("kill -{signal} -{group}");
    // It may have ended by itself.
    drop(Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status());
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}
