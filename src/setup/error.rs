//! Why a database could not be set up or cleaned up: the reason first, the SQL it is about last.

use tokio_postgres::error::SqlState;

use super::{Done, list};
use crate::preflight::{self, Does, Finding};

/// SQLSTATE of `sql/setup/unless_changed.sql`.
const CHANGED: &str = "WS001";

/// Why a database could not be set up or cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checks could not be made.
    #[error("check the database: {0}")]
    Preflight(#[from] preflight::Error),
    /// Something is wrong that no statement cures; no table, publication or slot was changed.
    #[error(
        "set up the database: somebody has to see to this first; tables, publication and slot are \
         as they were:{}", list(.0)
    )]
    Incurable(Vec<Finding>),
    /// The slot is probably another program's, and `run` would refuse it.
    #[error("set up the database: `walsweep run` would refuse to start:\n{0}")]
    SlotUnclaimed(Box<Finding>),
    /// The publication is somebody else's, and lacks something; nothing was changed.
    #[error(
        "set up the database: {why}, and the publication lacks something; tables, publication and \
         slot are as they were:{}", list(.findings)
    )]
    Foreign {
        /// Why it is not walsweep's.
        why: String,
        /// Findings about what it lacks, with the SQL for whoever owns it.
        findings: Vec<Finding>,
    },
    /// The cures were applied, and yet there are errors.
    #[error("set up the database: still wrong:{}", list(.0))]
    Uncured(Vec<Finding>),
    /// The publication, or its comment, is no longer as it was read.
    #[error("publication `{publication}` was changed by somebody else at the same time: {cause}")]
    Overtaken {
        /// The publication.
        publication: String,
        /// The error that Postgres gave.
        cause: Box<Error>,
    },
    /// A statement was refused; those before it stay.
    #[error("postgres refused a statement: {}; it was `{sql}`", preflight::message(.source))]
    Statement {
        /// The statement, or what it is about.
        sql: String,
        /// The error that Postgres gave.
        source: tokio_postgres::Error,
    },
    /// The role may not run a statement; those before it stay.
    #[error("postgres refused a statement: {}; it was `{sql}`", preflight::message(.source))]
    Denied {
        /// The statement, or what it is about.
        sql: String,
        /// The error that Postgres gave.
        source: tokio_postgres::Error,
        /// Who may.
        who: String,
    },
    /// The role may not do all that is needed. Of it nothing was done.
    #[error(
        "set up the database: role `{role}` may not {}; nothing of it was done", .lacks.join(", ")
    )]
    Unentitled {
        /// Who asks.
        role: String,
        /// Actions that the role may not take.
        lacks: Vec<String>,
        /// Who may.
        who: String,
    },
    /// Some statements were done before it ended.
    #[error("{cause}\n{done}")]
    Partly {
        /// The part that was done, and stays.
        done: Box<Done>,
        /// Why it ended.
        cause: Box<Error>,
    },
    /// A lock was not to be had; the statements before it stay.
    #[error("a lock was not to be had in {attempts} attempts: {holders}; it was for `{sql}`")]
    Locked {
        /// The statement, or what it is about.
        sql: String,
        /// How often it was tried.
        attempts: u32,
        /// Who has it.
        holders: String,
    },
    /// Somebody asked to stop.
    #[error("stopped; the statement {became}: `{sql}`")]
    Stopped {
        /// The outcome of the statement.
        became: &'static str,
        /// The statement, or what it is about.
        sql: String,
    },
    /// The standby that the slot is on cannot be reached.
    #[error("ask the standby of `postgres.replication_url`: {0}")]
    Standby(#[from] crate::postgres::Error),
    /// The standby is late, so that a slot there would begin before what it needs.
    #[error("create the slot: the standby has not replayed what the primary wrote 20 s ago")]
    StandbyBehind,
    /// The slot cannot be dropped while somebody streams from it.
    #[error("drop slot `{slot}`: Postgres process {pid} (`{name}`) streams from it")]
    SlotActive {
        /// The slot.
        slot: String,
        /// The process on the server.
        pid: i32,
        /// Its `application_name`.
        name: String,
    },
    /// A part of what is to be dropped is somebody else's. Nothing was dropped.
    #[error("drop {}: role `{role}` does not own it; nothing was dropped", .what.join(", "))]
    NotOwner {
        /// Who asks.
        role: String,
        /// Objects that the role may not drop, each with its owner.
        what: Vec<String>,
        /// Who may.
        who: String,
    },
    /// `teardown` came no further; what it did before stays done.
    #[error("{}{cause}", .done.iter().map(|line| format!("{line}; then: ")).collect::<String>())]
    Teardown {
        /// A line about each thing that was dropped, left, or not found.
        done: Vec<String>,
        /// Why it ended.
        cause: Box<Error>,
    },
}

impl Error {
    /// Says what a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Denied { who, .. }
            | Error::NotOwner { who, .. }
            | Error::Unentitled { who, .. } => Some(who.clone()),
            Error::Partly { cause, .. } => cause.hint(),
            error => error.known_hint().map(str::to_owned),
        }
    }

    fn known_hint(&self) -> Option<&'static str> {
        match self {
            Error::SlotActive { .. } => Some("stop walsweep first"),
            Error::Teardown { cause, .. } => match &**cause {
                Error::Statement { .. } => Some(
                    "`walsweep teardown --print` shows the SQL, and `walsweep teardown --as URL` \
                     runs it as a role that may",
                ),
                cause => cause.known_hint(),
            },
            Error::Statement { .. } if self.is_denied() => Some(
                "`walsweep setup --print` shows the SQL for a role that may run it, and `walsweep \
                 setup --as URL` runs it as that role",
            ),
            Error::Statement { .. } => {
                Some("what was done before it stays; `walsweep check` tells what is left")
            }
            Error::Locked { .. } | Error::Overtaken { .. } => {
                Some("run it again: what is done already is not done twice")
            }
            Error::Foreign { .. } => Some(
                "let its owner run that SQL, or let `postgres.publication` name another; `walsweep \
                 check` prints what hands it over to walsweep",
            ),
            Error::StandbyBehind => Some("see that it follows the primary"),
            Error::Standby(_)
            | Error::Denied { .. }
            | Error::NotOwner { .. }
            | Error::Unentitled { .. }
            | Error::Partly { .. }
            | Error::Stopped { .. }
            | Error::Preflight(_)
            | Error::Incurable(_)
            | Error::SlotUnclaimed(_)
            | Error::Uncured(_) => None,
        }
    }
}

impl Error {
    /// Whether the role lacks a right.
    pub(super) fn is_denied(&self) -> bool {
        let denied = &SqlState::INSUFFICIENT_PRIVILEGE;
        matches!(self, Error::Statement { source, .. } if source.code() == Some(denied))
    }

    /// Whether somebody else has changed the publication since this step was planned.
    pub(super) fn is_overtaken(&self, does: &Does) -> bool {
        let Error::Statement { source, .. } = self else { return false };
        match source.code().map(SqlState::code) {
            Some(CHANGED) => true,
            // It is there already, or is no longer: so it is with tables in it.
            Some("42710" | "23505") => {
                matches!(does, Does::CreatePublication(_) | Does::AddTables(_))
            }
            Some("42704") => matches!(does, Does::DropTable(_) | Does::WidenTable(_)),
            // "tuple concurrently updated": before version 15 the publication is not locked.
            Some("XX000") => does.alters_publication(),
            _ => false,
        }
    }

    /// Whether the server refused the statement, or its locks, and goes on with others.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Error::Statement { source, .. } | Error::Denied { source, .. } => {
                source.as_db_error().is_some()
            }
            Error::Locked { .. } => true,
            _ => false,
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Error {
        Error::Preflight(preflight::Error::Query(error))
    }
}
