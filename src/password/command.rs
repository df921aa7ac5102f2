//! `password_command`: the command, and its run that several logins share.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::time::Instant;

use secrecy::SecretString;
use tokio::sync::watch;

use super::process::{Failure, Process};

/// The outcome of a run, once there is one.
type Outcome = Option<Result<SecretString, Failure>>;

/// A command that prints a password. It is run for each login; logins that begin while it runs,
/// such as those after an outage, share that run. Nothing is kept of it once they have it.
pub struct Command {
    program: String,
    arguments: Vec<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The latest run, as long as it lasts.
    running: Option<Run>,
    /// Counts them.
    runs: u64,
}

struct Run {
    number: u64,
    began: Instant,
    outcome: watch::Sender<Outcome>,
}

impl Command {
    /// A program, looked for in `PATH` if its name has no `/`, and its arguments.
    #[must_use]
    pub fn new(program: String, arguments: Vec<String>) -> Command {
        Command { program, arguments, state: Mutex::default() }
    }

    /// The password that it prints, of no run that began before `since`. It is ended when nobody
    /// waits for it any more.
    pub(super) async fn output(
        self: &Arc<Command>,
        since: Option<Instant>,
    ) -> Result<SecretString, Failure> {
        loop {
            let mut outcome = self.join(since);
            if let Ok(outcome) = outcome.wait_for(Option::is_some).await
                && let Some(outcome) = &*outcome
            {
                return outcome.clone();
            }
            // The run was dropped with the runtime that it was on.
        }
    }

    /// Joins the run that there is, or begins one.
    fn join(self: &Arc<Command>, since: Option<Instant>) -> watch::Receiver<Outcome> {
        let mut state = self.state();
        let is_late = |run: &&Run| since.is_none_or(|since| run.began >= since);
        if let Some(run) = state.running.as_ref().filter(is_late) {
            return run.outcome.subscribe();
        }
        let (sender, receiver) = watch::channel(None);
        state.runs += 1;
        let (number, began) = (state.runs, Instant::now());
        state.running = Some(Run { number, began, outcome: sender.clone() });
        let shared = Shared { command: Arc::clone(self), number };
        tokio::spawn(shared.run(sender));
        receiver
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is locked")
    }
}

/// Arguments may hold secrets.
impl fmt::Debug for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Command").field("program", &self.program).finish_non_exhaustive()
    }
}

/// A run, which nobody joins any more once this is dropped.
struct Shared {
    command: Arc<Command>,
    number: u64,
}

impl Shared {
    /// Runs the command, unless nobody waits for it any more.
    async fn run(self, outcome: watch::Sender<Outcome>) {
        let mut process = match Process::start(&self.command.program, &self.command.arguments) {
            Ok(process) => process,
            Err(failure) => return self.tell(&outcome, Err(failure)),
        };
        let told = {
            let mut printed = std::pin::pin!(process.password());
            loop {
                tokio::select! {
                    told = &mut printed => break Some(told),
                    () = outcome.closed() => if self.leave(&outcome) { break None },
                }
            }
        };
        if let Some(told) = told {
            self.tell(&outcome, told);
        }
        process.end().await;
    }

    /// Who begins to wait from now on gets another run.
    fn tell(&self, outcome: &watch::Sender<Outcome>, told: Result<SecretString, Failure>) {
        self.forget();
        outcome.send_replace(Some(told));
    }

    /// Ends the sharing if nobody waits; says whether that is so.
    fn leave(&self, outcome: &watch::Sender<Outcome>) -> bool {
        let mut state = self.command.state();
        let is_left = outcome.receiver_count() == 0;
        if is_left {
            state.running.take_if(|run| run.number == self.number);
        }
        is_left
    }

    fn forget(&self) {
        self.command.state().running.take_if(|run| run.number == self.number);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.forget();
    }
}
