//! How a command ends: what it prints, and why it did not succeed.

use std::fmt;
use std::io::{self, ErrorKind, Write, stdout};

use tracing::Level;

use crate::config::{Log, LogFormat};

/// The exit status where nobody reads any more what is printed. A shell tells the same of a program
/// that SIGPIPE ended, as it ends `git log` in `git log | head`: 128 and the signal's number.
const UNREAD: u8 = 128 + 13;

/// Why a command did not succeed.
#[derive(Debug)]
pub struct Failure {
    /// The exit status: 1 halted, 78 the configuration is invalid (`EX_CONFIG` of sysexits.h), 141
    /// nobody reads any more what is printed.
    pub status: u8,
    message: String,
    hint: Option<String>,
    /// The section of the runbook about it, as the anchor of its heading.
    section: Option<&'static str>,
    /// Whether there is nothing to say: the log or standard output has it already, or nobody reads.
    pub is_said: bool,
}

impl Failure {
    /// A failure that a person has to look at.
    #[must_use]
    pub fn halted(message: String) -> Failure {
        Failure { status: 1, message, hint: None, section: None, is_said: false }
    }

    /// A command that has said on standard output why it ends with this status.
    pub(super) fn told(status: u8) -> Failure {
        Failure { status, message: String::new(), hint: None, section: None, is_said: true }
    }

    /// Standard output cannot be written to. A reader that went away has what he wanted, as `head`
    /// has, and is told nothing.
    pub(super) fn of_output(error: &io::Error) -> Failure {
        match error.kind() {
            ErrorKind::BrokenPipe => Failure::told(UNREAD),
            _ => Failure::halted(format!("write standard output: {error}")),
        }
    }

    pub(super) fn with_status(self, status: u8) -> Failure {
        Failure { status, ..self }
    }

    /// Names what it is about, in front.
    pub(super) fn of(self, what: &str) -> Failure {
        Failure { message: format!("{what}: {}", self.message), ..self }
    }

    pub(crate) fn with_hint(self, hint: Option<impl Into<String>>) -> Failure {
        Failure { hint: hint.map(Into::into), ..self }
    }

    /// Leads to a section of the runbook. The file is named: who runs it may answer nothing.
    pub(super) fn with_section(self, section: &'static str) -> Failure {
        Failure { section: Some(section), ..self }
    }

    /// Says it as the log's last line, where machines read that and expect nothing else.
    pub(super) fn in_log(self, log: &Log) -> Failure {
        let is_said = log.format == LogFormat::Json && tracing::enabled!(Level::ERROR);
        if is_said {
            let (status, hint) = (self.status, self.hint.as_deref());
            tracing::error!(status, hint, "{}", self.message);
        }
        Failure { is_said, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        self.hint.iter().try_for_each(|hint| write!(formatter, "\n  hint: {hint}"))?;
        let mut sections = self.section.iter();
        sections.try_for_each(|name| write!(formatter, "\n  read: docs/runbook.md#{name}"))
    }
}

/// Standard output of a command that does its work whether or not anybody reads that.
#[derive(Debug, Default)]
pub(super) struct Told {
    failed: Option<Failure>,
}

impl Told {
    /// Prints a text, unless one before could not be printed.
    pub(super) fn print(&mut self, text: &str) {
        if self.failed.is_none() {
            self.failed = print(text).err();
        }
    }

    /// Ends a command that has done all its work.
    ///
    /// # Errors
    ///
    /// Not everything could be printed; nothing is said of that where the reader went away.
    pub(super) fn end(self) -> Result<(), Failure> {
        let Some(failed) = self.failed else { return Ok(()) };
        Err(failed.with_hint(Some("all was done; only what was to be told of it is missing")))
    }
}

/// Any error as a failure of status 1.
pub(crate) fn halted(error: impl fmt::Display) -> Failure {
    Failure::halted(error.to_string())
}

/// Writes a text to standard output.
///
/// # Errors
///
/// It cannot be written; status 141, and not a word, where the reader went away.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = stdout();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::of_output(&error))
}
