//! Why a session ended, what happens next, and what a person can do.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::config::Postgres;
use crate::preflight::{Code, Finding};
use crate::source::holder::Walsender;
use crate::telemetry::{Cure, Phase};
use crate::{capture, decode, gather, postgres, preflight, settle, source};

/// Why a session could not begin, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checks at start found what would break the promise.
    #[error("refused to start:\n{}", Findings(.0))]
    Refused(Vec<Finding>),
    /// A connection to the server whose slot is read, or what was found there.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// A message that it sent.
    #[error("decode the stream: {0}")]
    Decode(#[from] decode::Error),
    /// The order in which it was sent.
    #[error("follow the stream: {0}")]
    Gather(#[from] gather::Error),
    /// The gate.
    #[error("wait for visibility: {0}")]
    Gate(#[from] settle::Error),
    /// The gate's connection is to a standby.
    #[error("`postgres.url` reaches a standby")]
    IsStandby,
    /// Two SQL connections to one address reached two primaries, or one that began anew between.
    #[error("`postgres.url` reaches now one primary and now another")]
    ManyPrimaries,
    /// The two connections do not reach the same server.
    #[error("`postgres.url` reaches {sql}, the replication connection {replication}")]
    TwoServers {
        /// The SQL connection's server.
        sql: String,
        /// The replication connection's server.
        replication: String,
    },
    /// Another process streams from the slot.
    #[error("Postgres process {pid} (`{name}`){}", from(.address.as_deref()))]
    SlotInUse {
        /// Its process id on the server.
        pid: String,
        /// Its `application_name`.
        name: String,
        /// The address that it is connected from, if that is told.
        address: Option<String>,
        /// When it began, if that is told.
        since: Option<String>,
    },
    /// Nothing tells yet whose the slot is, and nothing was read from it.
    #[error("slot `{0}` may be another program's, and redis does not answer whether it is not")]
    SlotInDoubt(String),
    /// Redis alone would show that a slot is walsweep's, and does not answer: none was made.
    #[error(
        "slot `{0}` is not made yet: the comment on the publication records others, so that only \
         redis, which does not answer or takes no writes, would show that it is walsweep's"
    )]
    SlotUnshown(String),
    /// The server has to decode what was committed while there was no publication, and never gets
    /// past it.
    #[error(
        "publication `{publication}` was created anew, and the slot still has to decode what was \
         committed while there was none: {cause}"
    )]
    SlotBeforePublication {
        /// The publication.
        publication: String,
        /// The error that the server gave.
        cause: capture::Error,
    },
    /// A transaction that was sent while it runs altered a table and then undid a part of itself.
    #[error("transaction `{xid}` altered a table and rolled back to a savepoint")]
    ShapeUndone {
        /// The top-level transaction's id, 32 bit.
        xid: u32,
    },
    /// A stage ended by itself.
    #[error("the {0} stage ended")]
    Stage(&'static str),
    /// The configuration is another: the next session begins at once. The phase that this one was
    /// in at its end.
    #[error("the configuration is another")]
    HandedOver(Phase),
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Error {
        Error::Source(error.into())
    }
}

impl From<postgres::Error> for Error {
    fn from(error: postgres::Error) -> Error {
        Error::Source(error.into())
    }
}

impl From<capture::Error> for Error {
    fn from(error: capture::Error) -> Error {
        Error::Source(error.into())
    }
}

impl From<preflight::Error> for Error {
    fn from(error: preflight::Error) -> Error {
        Error::Source(error.into())
    }
}

fn from(address: Option<&str>) -> String {
    address.map(|address| format!(", connected from {address}")).unwrap_or_default()
}

struct Findings<'a>(&'a [Finding]);

impl fmt::Display for Findings<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut errors = self.0.iter().filter(|finding| finding.is_error());
        if let Some(first) = errors.next() {
            write!(formatter, "{first}")?;
        }
        errors.try_for_each(|finding| write!(formatter, "\n{finding}"))
    }
}

/// The consequence of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again after a while.
    Retry,
    /// Another process is at work: wait for the slot.
    Standby,
    /// A person is needed.
    Halt,
}

impl Error {
    /// Says what follows. Before the first stream (`established` is false) whatever a person has
    /// mistyped ends the program; later the same symptom may be a failover under way.
    #[must_use]
    pub fn verdict(&self, established: bool) -> Verdict {
        match self {
            Error::SlotInUse { .. } => Verdict::Standby,
            Error::Refused(_) | Error::IsStandby | Error::TwoServers { .. } if !established => {
                Verdict::Halt
            }
            Error::Source(error) if !established && error.is_mistyped() => Verdict::Halt,
            Error::Refused(_)
            | Error::IsStandby
            | Error::TwoServers { .. }
            | Error::Source(_)
            | Error::ManyPrimaries
            | Error::Decode(_)
            | Error::Gather(_)
            | Error::Gate(_)
            | Error::SlotInDoubt(_)
            | Error::SlotUnshown(_)
            | Error::SlotBeforePublication { .. }
            | Error::ShapeUndone { .. }
            | Error::HandedOver(_)
            | Error::Stage(_) => Verdict::Retry,
        }
    }

    /// Whether it may come of a switchover between two connects of one start, so that the next try
    /// finds another primary: each URL that counts names several hosts, and only a primary was
    /// taken among them. Where one host is named it is a mistake that stays.
    #[must_use]
    pub fn may_be_switchover(&self, config: &Postgres) -> bool {
        let (sql, replication) = (&config.endpoint, &config.replication_endpoint);
        match self {
            Error::IsStandby => sql.is_several(),
            Error::Source(source::Error::StreamsStandby) | Error::TwoServers { .. } => {
                sql.is_several() && replication.is_several()
            }
            _ => false,
        }
    }

    /// Whether it is this process of the server that has the slot, as far as may be seen.
    #[must_use]
    pub fn is_held_by(&self, walsender: &Walsender) -> bool {
        let Error::SlotInUse { pid, since, .. } = self else { return false };
        *pid == walsender.pid.to_string() && *since == walsender.since
    }

    /// Whether another process streams from the slot.
    #[must_use]
    pub fn finds_slot_active(&self) -> bool {
        let Error::Source(source::Error::Capture(error)) = self else { return false };
        error.slot_problem() == Some(capture::SlotProblem::Active)
    }

    /// Whether the server cannot decode what the slot is to stream next.
    #[must_use]
    pub fn is_undecodable(&self) -> bool {
        matches!(self, Error::Source(source::Error::Capture(error)) if error.is_undecodable())
    }

    /// Whether it may be what the slot holds that ended the session, so that each further one from
    /// the same position ends alike, whoever starts it: see [`capture::Error::blames_slot`]. What
    /// we cannot read is of that kind, and so is a stage that ended by itself. Ending the program
    /// for it would leave every key of every rule as it is, however often it is started again.
    #[must_use]
    pub fn blames_slot(&self) -> bool {
        match self {
            Error::Source(source::Error::Capture(error)) => error.blames_slot(),
            Error::Decode(_)
            | Error::Gather(_)
            | Error::Stage(_)
            | Error::SlotBeforePublication { .. } => true,
            _ => false,
        }
    }

    /// Whether each further session from the same position is known to end alike, so that one is
    /// enough to give the slot up.
    #[must_use]
    pub fn condemns_slot(&self) -> bool {
        matches!(self, Error::SlotBeforePublication { .. })
    }

    /// Whether we ended a session that worked: see [`source::Error::is_intended`].
    #[must_use]
    pub fn is_intended(&self) -> bool {
        matches!(self, Error::Source(error) if error.is_intended())
    }

    /// Whether nobody was there, or not yet.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Error::Source(error) if error.is_unreachable())
    }

    /// Whether the next session must get every transaction whole, at its commit: of those that
    /// alter a table and undo a part of themselves, Postgres sends wrong rows while they run, or
    /// fails (SQLSTATE XX000; seen with 15.18, 16 and 18).
    #[must_use]
    pub fn wants_whole(&self) -> bool {
        self.is_undecodable() || matches!(self, Error::ShapeUndone { .. })
    }

    /// Gives its findings their places in this configuration file.
    #[must_use]
    pub fn in_file(self, file: &Arc<str>) -> Error {
        match self {
            Error::Refused(findings) => {
                Error::Refused(findings.into_iter().map(|one| one.in_file(file)).collect())
            }
            other => other,
        }
    }

    /// Says it of a process that runs, in one line: of what was found, the first.
    #[must_use]
    pub fn in_words(&self) -> String {
        let Error::Refused(findings) = self else { return self.to_string() };
        let errors: Vec<&Finding> = findings.iter().filter(|one| one.is_error()).collect();
        match errors.as_slice() {
            [] => self.to_string(),
            [only] => only.message.clone(),
            [first, more @ ..] => {
                format!("{}; and {} more, see `walsweep check`", first.message, more.len())
            }
        }
    }

    /// The cure for a person, while walsweep runs.
    #[must_use]
    pub fn cure(&self) -> Cure {
        match self {
            Error::Refused(findings) => {
                let first = findings.iter().find(|finding| finding.is_error());
                first.map(Finding::advice).unwrap_or_default()
            }
            other => Cure::of_words(other.hint().as_deref()),
        }
    }

    /// Says what a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Error::Source(error) => error.hint(),
            error => error.known_hint().map(Cow::Borrowed),
        }
    }

    fn known_hint(&self) -> Option<&'static str> {
        match self {
            Error::Refused(findings) => after_refusal(findings),
            Error::IsStandby => Some("let `postgres.url` name the primary"),
            Error::SlotInDoubt(_) => Some(
                "see that Redis runs and lets walsweep in; `walsweep check` tells what else shows \
                 whose it is",
            ),
            Error::SlotUnshown(_) => Some(
                "see that Redis runs, takes writes and lets walsweep in; or let `walsweep setup` \
                 record the slot",
            ),
            Error::ManyPrimaries => Some("let `postgres.url` name one server by its own address"),
            Error::TwoServers { .. } => Some(
                "let `postgres.url` and `postgres.replication_url` name the same primary, or a \
                     primary and a standby that follows it",
            ),
            Error::Decode(_) | Error::Gather(_) => Some(
                "this is a defect of walsweep or of the server: please report it; what cannot \
                      be read is given up for a sweep of everything",
            ),
            Error::SlotBeforePublication { .. } => {
                Some("none is needed: the slot is given up for a new one, and everything is swept")
            }
            Error::ShapeUndone { .. } => {
                Some("none is needed: until the next session, transactions are read whole")
            }
            Error::Source(_)
            | Error::Gate(_)
            | Error::SlotInUse { .. }
            | Error::HandedOver(_)
            | Error::Stage(_) => None,
        }
    }
}

/// Says what a person can do about these findings beside what stands in them. Where none stops
/// everything, it is `--strict` that refuses.
fn after_refusal(findings: &[Finding]) -> Option<&'static str> {
    let mut errors = findings.iter().filter(|finding| finding.is_error()).peekable();
    errors.peek()?;
    if findings.iter().any(|finding| finding.code == Code::SlotDatabase) {
        // In the wrong database nothing else that was found is to be cured.
        return None;
    }
    let is_of_rules = !findings.iter().any(Finding::stops_everything);
    if findings.iter().any(|one| one.is_error() && one.code == Code::SlotUnclaimed) {
        // `setup` refuses it, too.
        return Some("`walsweep check --json` shows it again, with the SQL");
    }
    match (is_of_rules, errors.any(|finding| finding.sql.is_some())) {
        (true, true) => Some(
            "`walsweep setup --print` shows the SQL; without `--strict` walsweep runs, suspends \
             what does not fit, and says so",
        ),
        (true, false) => {
            Some("without `--strict` walsweep runs, suspends what does not fit, and says so")
        }
        (false, true) => Some("`walsweep setup --print` shows the SQL that cures it"),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, Verdict};
    use crate::capture;
    use crate::decode;
    use crate::postgres::{self, ServerError};
    use crate::preflight::{self, Code, Finding};
    use crate::source;
    use crate::sweep::Doubt;

    /// An error that the server sends in the stream.
    fn stream(code: &str) -> Error {
        let server = ServerError { code: code.to_owned(), message: "no".to_owned() };
        Error::from(capture::Error::Stream(server))
    }

    /// It is printed below the findings, each of which has its own cure.
    #[test]
    fn the_hint_of_what_is_refused_leads_to_what_helps() {
        let plain = |code| Finding::error(code, "wrong");
        let cured = |code| Finding { sql: Some("alter".to_owned()), ..plain(code) };
        let of_rule = |finding: Finding| finding.of_rules(["a"]);
        let (setup, strict) = ("`walsweep setup --print`", "without `--strict`");
        for (findings, is_setup, is_strict) in [
            (vec![cured(Code::PublicationMissing)], true, false),
            (vec![plain(Code::InRecovery)], false, false),
            (vec![plain(Code::RedisCluster)], false, false),
            (vec![of_rule(plain(Code::LookupSql))], false, true),
            (vec![of_rule(cured(Code::ReplicaIdentity))], true, true),
            (vec![plain(Code::WalLevel), of_rule(cured(Code::ReplicaIdentity))], true, false),
            (vec![plain(Code::SlotDatabase), cured(Code::PublicationMissing)], false, false),
            (vec![Finding::warning(Code::SlotLost, "lost")], false, false),
        ] {
            let hint = Error::Refused(findings.clone()).hint().unwrap_or_default();
            assert_eq!(hint.contains(setup), is_setup, "{findings:?}: {hint}");
            assert_eq!(hint.contains(strict), is_strict, "{findings:?}: {hint}");
        }
    }

    /// Errors that would recur in each session from the same position blame the slot; others do
    /// not.
    #[test]
    fn what_the_slot_holds_is_blamed_for_what_the_server_says_in_the_stream() {
        let server = |code: &str| ServerError { code: code.to_owned(), message: String::new() };
        let command = "stream slot `s`".to_owned();
        let refused = capture::Error::Command { command, server: server("55006") };
        for (error, is_blamed) in [
            (stream("XX000"), true),
            (stream("42704"), true),
            (stream("55000"), true),
            (stream("22012"), true),
            (stream("57P01"), false),
            (stream("57P03"), false),
            (stream("57014"), false),
            (Error::Decode(decode::decode(bytes::Bytes::new()).unwrap_err()), true),
            (Error::Stage("settle"), true),
            (Error::from(capture::Error::Closed), false),
            (Error::from(capture::Error::Ended), false),
            (Error::from(refused), false),
            (Error::Source(source::Error::Silent(40)), false),
            (Error::Refused(Vec::new()), false),
            (Error::Source(source::Error::SlotGone), false),
            (Error::Source(source::Error::TablesChanged(Doubt::none())), false),
        ] {
            assert!(!error.condemns_slot(), "one more session may get further: {error}");
            assert_eq!(error.blames_slot(), is_blamed, "{error}");
            assert!(!is_blamed || error.verdict(true) == Verdict::Retry, "{error}");
            assert!(!is_blamed || error.verdict(false) == Verdict::Retry, "{error}");
        }
    }

    /// Changes that were committed while there was no publication stay so, whoever reads them.
    #[test]
    fn a_publication_made_anew_condemns_the_slot_at_once() {
        let server = ServerError { code: "42704".to_owned(), message: String::new() };
        let (publication, cause) = ("p".to_owned(), capture::Error::Stream(server));
        let error = Error::SlotBeforePublication { publication, cause };
        assert!(error.condemns_slot() && error.blames_slot());
        assert_eq!(error.verdict(true), Verdict::Retry);
    }

    #[test]
    fn a_server_that_is_away_or_starts_is_out_of_reach() {
        let refused = |code: &str| {
            let server = ServerError { code: code.to_owned(), message: String::new() };
            let (address, user, database) = ("h:1".into(), "u".into(), "d".into());
            postgres::Error::Refused { address, user, database, server }
        };
        let timeout = postgres::Error::Timeout { address: "h:1".to_owned(), seconds: 5 };
        for error in [
            Error::from(timeout),
            Error::from(refused("57P03")),
            Error::from(capture::Error::Connect(refused("57P03"))),
            Error::from(preflight::Error::Standby(refused("57P03"))),
        ] {
            assert!(error.is_unreachable(), "{error}");
        }
        assert!(!Error::from(refused("28P01")).is_unreachable());
        assert!(!Error::Refused(Vec::new()).is_unreachable());
    }
}
