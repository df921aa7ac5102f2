//! One run of a command: bounded in time and output, and ended with all that it started.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process_group, waitid, waitpgid,
};
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{sleep, timeout};

use super::{COMMAND_TIMEOUT, SIZE_MAX, trimmed};

/// Looks for processes that were ended, and the pause between two: they take a moment to die.
const REAP: (u32, Duration) = (20, Duration::from_millis(5));

/// The pause between two looks whether a program that has closed its output has ended.
const LOOK: Duration = Duration::from_millis(2);

/// Why a command gave no password. Quotes nothing that it printed, and of its arguments nothing but
/// the program: both may be secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It does not start.
    #[error("`{program}` does not start: {reason}")]
    Start {
        /// The program.
        program: String,
        /// Of which kind the reason is.
        kind: io::ErrorKind,
        /// Why.
        reason: String,
    },
    /// It took too long, or left its output open.
    #[error(
        "`{program}` did not end and close its output within {} s; it was ended",
        COMMAND_TIMEOUT.as_secs()
    )]
    Timeout {
        /// The program.
        program: String,
    },
    /// It says that it failed, or was ended.
    #[error("`{program}` failed with {}", told(*status))]
    Status {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// It printed nothing.
    #[error("`{program}` printed nothing")]
    Empty {
        /// The program.
        program: String,
    },
    /// It printed what can be no password.
    #[error("`{program}` printed {what}")]
    Output {
        /// The program.
        program: String,
        /// Its kind.
        what: &'static str,
    },
    /// Its output, or how it ended, cannot be read.
    #[error("read what `{program}` prints: {reason}")]
    Read {
        /// The program.
        program: String,
        /// Why.
        reason: String,
    },
}

impl Failure {
    /// Whether a person has to change something: the program is not there, or does something else
    /// than to print a password.
    #[must_use]
    pub fn needs_a_person(&self) -> bool {
        match self {
            Failure::Start { kind, .. } => matches!(
                kind,
                io::ErrorKind::NotFound
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::InvalidInput
            ),
            Failure::Output { .. } => true,
            Failure::Timeout { .. }
            | Failure::Status { .. }
            | Failure::Empty { .. }
            | Failure::Read { .. } => false,
        }
    }

    /// Says what a person can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Failure::Start { kind: io::ErrorKind::NotFound, .. } => {
                "a name without `/` is looked for in PATH, another begins at the folder of the \
                 configuration; no shell reads it, so each argument is a text of its own"
            }
            Failure::Start { .. } => "let the user that walsweep runs as execute it",
            _ => {
                "run it by hand, as the user and with the environment of walsweep: within 10 s it \
                 has to print the password and nothing else, and end with status 0"
            }
        }
    }
}

/// How a process ended, in words.
fn told(status: ExitStatus) -> String {
    status.to_string().replacen(": ", " ", 1)
}

/// A command that runs. Dropped, it is ended with all that it started.
pub(super) struct Process {
    program: String,
    child: Child,
    output: Option<ChildStdout>,
    /// Its process group.
    group: Option<Pid>,
    /// Whether that was ended: from then on its number may be another's.
    is_ended: bool,
}

impl Process {
    /// Starts it, without a shell and without input; what it writes to standard error is dropped,
    /// for it may be a secret, too.
    pub(super) fn start(program: &str, arguments: &[String]) -> Result<Process, Failure> {
        let failed = |error: &io::Error| Failure::Start {
            program: program.to_owned(),
            kind: error.kind(),
            reason: error.to_string(),
        };
        let mut command = Command::new(program);
        command.args(arguments).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| failed(&error))?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        let (group, output) = (pid.and_then(Pid::from_raw), child.stdout.take());
        Ok(Process { program: program.to_owned(), child, output, group, is_ended: false })
    }

    /// The password that it prints.
    pub(super) async fn password(&mut self) -> Result<SecretString, Failure> {
        let program = self.program.clone();
        match timeout(COMMAND_TIMEOUT, self.printed()).await {
            Ok(printed) => password(&program, &printed?),
            Err(_elapsed) => Err(Failure::Timeout { program }),
        }
    }

    /// All that it prints, once it has ended well.
    async fn printed(&mut self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let program = self.program.clone();
        let unread = |error: io::Error| Failure::Read {
            program: program.clone(),
            reason: error.to_string(),
        };
        // As large as it may get: a buffer that grows leaves copies behind.
        // A vector that grows leaves parts of a secret behind.
        let size = usize::try_from(SIZE_MAX + 1).unwrap_or_default();
        let mut printed = Zeroizing::new(Vec::with_capacity(size));
        if let Some(output) = &mut self.output {
            let mut bounded = output.take(SIZE_MAX + 1);
            bounded.read_to_end(&mut printed).await.map_err(unread)?;
        }
        if printed.len() as u64 > SIZE_MAX {
            return Err(Failure::Output { program, what: "more than 64 KiB" });
        }
        self.has_ended().await;
        self.kill();
        let status = self.child.wait().await.map_err(unread)?;
        if status.success() { Ok(printed) } else { Err(Failure::Status { program, status }) }
    }

    /// Waits until the program has ended, and leaves it a zombie: as long as it is one, the number
    /// of its group is nobody else's.
    async fn has_ended(&self) {
        let Some(pid) = self.group else { return };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        while let Ok(None) | Err(Errno::INTR) = waitid(WaitId::Pid(pid), options) {
            sleep(LOOK).await;
        }
    }

    /// Ends what runs of its group, once.
    fn kill(&mut self) {
        if let Some(group) = self.group.filter(|_| !self.is_ended) {
            // One that is gone needs no ending.
            kill_process_group(group, Signal::KILL).ok();
        }
        self.is_ended = true;
    }

    /// Ends what still runs of it, and leaves no zombie: as the first process of a container,
    /// walsweep is the parent of all that it started, too.
    pub(super) async fn end(mut self) {
        self.kill();
        drop(self.child.wait().await);
        let Some(group) = self.group else { return };
        for _ in 0..REAP.0 {
            match waitpgid(group, WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => sleep(REAP.1).await,
                Err(_none) => break,
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The password among what was printed.
fn password(program: &str, printed: &[u8]) -> Result<SecretString, Failure> {
    let strange = |what| Failure::Output { program: program.to_owned(), what };
    let text = std::str::from_utf8(printed).map_err(|_quoted| strange("what is not UTF-8"))?;
    match trimmed(text) {
        "" => Err(Failure::Empty { program: program.to_owned() }),
        text if text.contains('\0') => Err(strange("a NUL byte")),
        text => Ok(SecretString::from(text)),
    }
}
