//! Where a password comes from: a URL, a file such as a mounted secret, or a command that prints
//! it. Files and commands are read again at each login, so that a password that changes, or a token
//! that ends, needs no restart.

mod command;
mod process;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

pub use command::Command;
pub use process::Failure;

use crate::file;

/// Far more than any password or token has, bytes; a wrong path or program must not fill the
/// memory.
const SIZE_MAX: u64 = 64 * 1024;

/// How long a command may take, its output included.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// The source of the password of a login. Its debug form tells no secret.
#[derive(Clone, Debug, Default)]
pub enum Source {
    /// Nothing gives one.
    #[default]
    None,
    /// The configuration has it, in a URL.
    Given(SecretString),
    /// A file has it, and nothing else.
    File(PathBuf),
    /// A command prints it, and nothing else.
    Command(Arc<Command>),
}

/// Why a source gives no password. No variant quotes what was read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unread {
    /// The file of `password_file` cannot be used.
    #[error("`{}`: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// `password_command` gave none.
    #[error("{0}")]
    Command(#[from] Failure),
}

impl Unread {
    /// Tells of it with the option that names the source, in this section of the configuration.
    #[must_use]
    pub fn told(&self, section: &str) -> String {
        match self {
            Unread::File { .. } => format!("read `{section}.password_file` {self}"),
            Unread::Command(_) => format!("run `{section}.password_command`: {self}"),
        }
    }

    /// Whether a person has to change something. A service that gives tokens may only be away.
    #[must_use]
    pub fn needs_a_person(&self) -> bool {
        match self {
            // A mount may come back.
            Unread::File { source, .. } => source.kind() != ErrorKind::TimedOut,
            Unread::Command(failure) => failure.needs_a_person(),
        }
    }

    /// Says what a person can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Unread::File { .. } => {
                "write the password, and nothing else, into that file, and let the user that \
                 walsweep runs as read it"
            }
            Unread::Command(failure) => failure.hint(),
        }
    }
}

impl Source {
    /// The password that holds now, if there is a source. A command that is running already for
    /// another login is not started a second time.
    ///
    /// # Errors
    ///
    /// See [`Unread`]. A command has [`COMMAND_TIMEOUT`].
    pub async fn read(&self) -> Result<Option<SecretString>, Unread> {
        self.read_after(None).await
    }

    /// Reads it again for a login that was refused at `refused`; `None` if it is still `old`, or
    /// cannot be read.
    pub async fn read_again(
        &self,
        old: Option<&SecretString>,
        refused: Instant,
    ) -> Option<SecretString> {
        let new = self.read_after(Some(refused)).await.ok().flatten()?;
        is_another(Some(&new), old).then_some(new)
    }

    /// Of a command it takes no output of a run that began before `since`.
    async fn read_after(&self, since: Option<Instant>) -> Result<Option<SecretString>, Unread> {
        match self {
            Source::None => Ok(None),
            Source::Given(password) => Ok(Some(password.clone())),
            Source::File(path) => {
                let of_thread = path.clone();
                let read = file::apart(path, file::TIMEOUT, move || read(&of_thread)).await;
                read.and_then(|read| read).map(Some).map_err(|source| {
                    let source = Arc::new(source);
                    Unread::File { path: path.clone(), source }
                })
            }
            Source::Command(command) => Ok(Some(command.output(since).await?)),
        }
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_some(&self) -> bool {
        !matches!(self, Source::None)
    }

    /// The password, if it stands in the configuration.
    #[must_use]
    pub fn given(&self) -> Option<&SecretString> {
        match self {
            Source::Given(password) => Some(password),
            Source::None | Source::File(_) | Source::Command(_) => None,
        }
    }

    /// The file, if it is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Source::File(path) => Some(path),
            Source::None | Source::Given(_) | Source::Command(_) => None,
        }
    }

    /// Whether it may give another password at the next login.
    #[must_use]
    pub fn may_change(&self) -> bool {
        matches!(self, Source::File(_) | Source::Command(_))
    }

    /// How long reading it may take beside all that a login takes: nothing but for a command, which
    /// may be run a second time after a refusal.
    #[must_use]
    pub fn patience(&self) -> Duration {
        match self {
            Source::Command(_) => COMMAND_TIMEOUT * 2,
            Source::None | Source::Given(_) | Source::File(_) => Duration::ZERO,
        }
    }
}

/// Whether these are not the same password.
pub(crate) fn is_another(new: Option<&SecretString>, old: Option<&SecretString>) -> bool {
    new.map(ExposeSecret::expose_secret) != old.map(ExposeSecret::expose_secret)
}

/// The content of a file that holds a password and nothing else, without the newline at its end.
///
/// # Errors
///
/// The file cannot be read, is no regular one, is empty or longer than any password, or is not
/// UTF-8. No error quotes what is in it.
pub fn read(path: &Path) -> io::Result<SecretString> {
    let content = file::read(path, SIZE_MAX)?;
    let text = std::str::from_utf8(&content)
        .map_err(|_quoted| io::Error::new(ErrorKind::InvalidData, "the file is not UTF-8"))?;
    match trimmed(text) {
        "" => Err(io::Error::other("the file is empty")),
        password => Ok(SecretString::from(password)),
    }
}

/// Without the newlines at the end.
fn trimmed(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}
