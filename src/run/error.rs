//! Why a session ended, what happens next, and what a person can do.

use std::fmt;

use crate::preflight::Finding;
use crate::source::slot_health::Retained;
use crate::sweep::Doubt;
use crate::{capture, decode, gather, postgres, preflight, settle};

/// Why a session could not begin, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checks at start found what would break the promise.
    #[error("refused to start:\n{}", Findings(.0))]
    Refused(Vec<Finding>),
    /// The checks could not be made.
    #[error("check the database: {0}")]
    Preflight(#[from] preflight::Error),
    /// The SQL connection.
    #[error("{0}")]
    Sql(#[from] postgres::Error),
    /// The replication connection.
    #[error("stream from postgres: {0}")]
    Capture(#[from] capture::Error),
    /// What it sent.
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
    /// The replication connection is to a standby.
    #[error("the replication connection reaches a standby, and the slot is to be on the primary")]
    StreamsStandby,
    /// The replication connection is to a primary, and the slot is to be on a standby.
    #[error(
        "`postgres.replication_url` reaches a primary, and `postgres.slot_on` is `standby`: it was \
         promoted, or always was a primary"
    )]
    StreamsPrimary,
    /// Two connections to one address reached two servers.
    #[error("`postgres.replication_url` reaches now one server and now another")]
    ManyStandbys,
    /// The standby that the slot is on cannot be counted on.
    #[error("look after the standby that the slot is on: {0}")]
    SlotStandby(#[source] settle::StandbyError),
    /// The standby has not replayed what the primary wrote before a slot was to be created.
    #[error("the standby has not replayed in {0} s what the primary had written")]
    StandbyBehind(u64),
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
    #[error("process {pid} (`{name}`){}", from(.address.as_deref()))]
    SlotInUse {
        /// Its process id on the server.
        pid: String,
        /// Its `application_name`.
        name: String,
        /// The address that it is connected from, if that is told.
        address: Option<String>,
    },
    /// The server has to decode what was committed while there was no publication, and never gets
    /// past it.
    #[error(
        "publication `{publication}` was created anew, and the slot still has to decode what was \
         committed while there was none: {cause}"
    )]
    SlotBeforePublication {
        /// The publication.
        publication: String,
        /// What the server said.
        cause: capture::Error,
    },
    /// The slot was dropped.
    #[error("the slot is gone")]
    SlotGone,
    /// A rule's table, its partitions or what is published of it: no longer as it was; or other
    /// rules fit than before. Which keys are in doubt by it.
    #[error("what the rules depend on was changed: {}", .0.reasons())]
    TablesChanged(Doubt),
    /// More WAL is unconfirmed than `postgres.max_retained_wal`; the next session begins with
    /// another slot.
    #[error(
        "the slot is {} MB behind, more than the {} MB of `postgres.max_retained_wal`",
        .0.bytes >> 20,
        .0.max >> 20
    )]
    RetainedWal(Retained),
    /// The server sent nothing for too long.
    #[error("the server sent nothing for {0} s, though asked to")]
    Silent(u64),
    /// A transaction that was sent while it runs altered a table and then undid a part of itself.
    #[error("transaction `{xid}` altered a table and rolled back to a savepoint")]
    ShapeUndone {
        /// The top-level transaction's id, 32 bit.
        xid: u32,
    },
    /// A stage ended by itself.
    #[error("the {0} stage ended")]
    Stage(&'static str),
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Error {
        Error::Sql(error.into())
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

/// What follows from an error.
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
    /// What follows. Before the first stream (`established` is false) whatever a person has
    /// mistyped ends the program; later the same symptom may be a failover under way.
    #[must_use]
    pub fn verdict(&self, established: bool) -> Verdict {
        match self {
            Error::SlotInUse { .. } => Verdict::Standby,
            Error::Refused(_)
            | Error::IsStandby
            | Error::StreamsStandby
            | Error::StreamsPrimary
            | Error::ManyStandbys
            | Error::TwoServers { .. }
                if !established =>
            {
                Verdict::Halt
            }
            Error::Preflight(preflight::Error::Standby(error))
                if !established && error.is_rejection() =>
            {
                Verdict::Halt
            }
            Error::Sql(error) if !established && error.is_rejection() => Verdict::Halt,
            Error::Capture(error)
                if !established && (error.is_rejection() || error.is_pooler()) =>
            {
                Verdict::Halt
            }
            Error::Refused(_)
            | Error::IsStandby
            | Error::StreamsStandby
            | Error::StreamsPrimary
            | Error::ManyStandbys
            | Error::SlotStandby(_)
            | Error::StandbyBehind(_)
            | Error::ManyPrimaries
            | Error::TwoServers { .. }
            | Error::Preflight(_)
            | Error::Sql(_)
            | Error::Capture(_)
            | Error::Decode(_)
            | Error::Gather(_)
            | Error::Gate(_)
            | Error::SlotBeforePublication { .. }
            | Error::SlotGone
            | Error::TablesChanged(_)
            | Error::RetainedWal(_)
            | Error::Silent(_)
            | Error::ShapeUndone { .. }
            | Error::Stage(_) => Verdict::Retry,
        }
    }

    /// Whether it is this process of the server that has the slot.
    #[must_use]
    pub fn is_held_by(&self, walsender: Option<i32>) -> bool {
        let Error::SlotInUse { pid, .. } = self else { return false };
        walsender.is_some_and(|walsender| *pid == walsender.to_string())
    }

    /// Whether the server cannot decode what the slot is to stream next.
    #[must_use]
    pub fn is_undecodable(&self) -> bool {
        matches!(self, Error::Capture(error) if error.is_undecodable())
    }

    /// Whether it may be what the slot holds that ended the session, so that each further one from
    /// the same position ends alike, whoever starts it: see [`capture::Error::blames_slot`]. What
    /// we cannot read is of that kind, and so is a stage that ended by itself. Ending the program
    /// for it would leave every key of every rule as it is, however often it is started again.
    #[must_use]
    pub fn blames_slot(&self) -> bool {
        match self {
            Error::Capture(error) => error.blames_slot(),
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

    /// Whether we ended a session that worked, so that the next one begins otherwise. Each of these
    /// is found by looks that are seconds apart, so that nothing spins.
    #[must_use]
    pub fn is_intended(&self) -> bool {
        matches!(self, Error::TablesChanged(_) | Error::RetainedWal(_))
    }

    /// Whether nobody was there, or not yet.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Error::Sql(error) => error.is_unreachable(),
            _ => false,
        }
    }

    /// Whether the next session must get every transaction whole, at its commit: of those that
    /// alter a table and undo a part of themselves, Postgres sends wrong rows while they run, or
    /// fails (SQLSTATE XX000; seen with 15.18, 16 and 18).
    #[must_use]
    pub fn wants_whole(&self) -> bool {
        self.is_undecodable() || matches!(self, Error::ShapeUndone { .. })
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            // What is wrong with Redis has its cure beside it.
            Error::Refused(findings)
                if findings.iter().all(|one| one.code.starts_with("redis_")) =>
            {
                None
            }
            Error::Refused(_) => Some("`walsweep setup --print` shows the SQL that cures it"),
            Error::IsStandby => Some("let `postgres.url` name the primary"),
            Error::StreamsStandby => Some(
                "let `postgres.replication_url` name the primary, or leave it out; if the slot is \
                 to be there, set `postgres.slot_on = \"standby\"`",
            ),
            Error::StreamsPrimary => Some(
                "let `postgres.replication_url` name a standby of the primary that `postgres.url` \
                 names; if that one is the new primary, let `postgres.url` name it",
            ),
            Error::ManyStandbys => {
                Some("let `postgres.replication_url` name one standby by an address of its own")
            }
            Error::ManyPrimaries => Some("let `postgres.url` name one server by its own address"),
            Error::SlotStandby(_) | Error::StandbyBehind(_) => {
                Some("see that it follows the primary that `postgres.url` names")
            }
            Error::Sql(postgres::Error::Pooler { .. }) => {
                Some("let `postgres.url` name the server itself, by its direct address")
            }
            Error::Sql(error) | Error::Capture(capture::Error::Connect(error))
                if preflight::login_hint(error).is_some() =>
            {
                preflight::login_hint(error)
            }
            Error::Capture(error) if error.is_pooler() => Some(
                "that is a pooler: let `postgres.url` or `postgres.replication_url` name the \
                 server itself",
            ),
            Error::TwoServers { .. } => Some(
                "let `postgres.url` and `postgres.replication_url` name the same primary, or a \
                     primary and a standby that follows it",
            ),
            Error::Decode(_) | Error::Gather(_) => Some(
                "this is a defect of walsweep or of the server: please report it; what cannot \
                      be read is given up for a sweep of everything",
            ),
            Error::RetainedWal(_) => {
                Some("find out what holds the confirmation: Redis, a replica that is late")
            }
            Error::TablesChanged(_) => {
                Some("what changed is judged now, and the keys of the rules that read it are swept")
            }
            Error::SlotBeforePublication { .. } => {
                Some("none is needed: the slot is given up for a new one, and everything is swept")
            }
            Error::ShapeUndone { .. } => {
                Some("none is needed: until the next session, transactions are read whole")
            }
            Error::Preflight(_)
            | Error::Sql(_)
            | Error::Capture(_)
            | Error::Gate(_)
            | Error::SlotInUse { .. }
            | Error::SlotGone
            | Error::Silent(_)
            | Error::Stage(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, Verdict};
    use crate::capture;
    use crate::decode;
    use crate::postgres::{self, ServerError};
    use crate::sweep::Doubt;

    /// An error that the server sends in the stream.
    fn stream(code: &str) -> Error {
        let server = ServerError { code: code.to_owned(), message: "no".to_owned() };
        Error::Capture(capture::Error::Stream(server))
    }

    /// What would recur in each session from the same position, and what would not.
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
            (Error::Capture(capture::Error::Closed), false),
            (Error::Capture(capture::Error::Ended), false),
            (Error::Capture(refused), false),
            (Error::Silent(40), false),
            (Error::Refused(Vec::new()), false),
            (Error::SlotGone, false),
            (Error::TablesChanged(Doubt::none()), false),
        ] {
            assert!(!error.condemns_slot(), "one more session may get further: {error}");
            assert_eq!(error.blames_slot(), is_blamed, "{error}");
            assert!(!is_blamed || error.verdict(true) == Verdict::Retry, "{error}");
            assert!(!is_blamed || error.verdict(false) == Verdict::Retry, "{error}");
        }
    }

    /// What was committed while there was no publication stays so, whoever reads it.
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
            let (address, user) = ("h:1".to_owned(), "u".to_owned());
            Error::Sql(postgres::Error::Refused { address, user, server })
        };
        let timeout = postgres::Error::Timeout { address: "h:1".to_owned(), seconds: 5 };
        assert!(Error::Sql(timeout).is_unreachable());
        assert!(refused("57P03").is_unreachable());
        assert!(!refused("28P01").is_unreachable());
        assert!(!Error::Refused(Vec::new()).is_unreachable());
    }
}
