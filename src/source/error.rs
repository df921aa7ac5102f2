//! Why the watch on the server ended.

use std::borrow::Cow;
use std::time::Duration;

use tokio::time::timeout;

use super::slot_health::Retained;
use crate::settle::StandbyError;
use crate::sweep::Doubt;
use crate::{capture, postgres, preflight};

/// Why the server whose slot is read cannot be watched, or what was found on it that ends a
/// session.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checks could not be made.
    #[error("check the database: {0}")]
    Preflight(#[from] preflight::Error),
    /// The SQL connection.
    #[error("{0}")]
    Sql(#[from] postgres::Error),
    /// The replication connection.
    #[error("stream from postgres: {0}")]
    Capture(#[from] capture::Error),
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
    SlotStandby(#[source] StandbyError),
    /// The standby has not replayed what the primary wrote before a slot was to be created.
    #[error("the standby has not replayed in {0} s what the primary had written")]
    StandbyBehind(u64),
    /// The slot was dropped.
    #[error("the slot is gone")]
    SlotGone,
    /// A rule's table, its partitions or what is published of it: no longer as it was; or other
    /// rules fit than before. Which keys are in doubt by it.
    #[error("what the rules read was changed: {}", .0.reasons())]
    TablesChanged(Doubt),
    /// More WAL is unconfirmed than `postgres.max_retained_wal`; the next session begins with
    /// another slot.
    #[error(
        "the slot is {} MB behind, more than the {} MB of `postgres.max_retained_wal`",
        .0.bytes >> 20,
        .0.max >> 20
    )]
    RetainedWal(Retained),
    /// The slot has to go before anything can be streamed, and nothing shows that it is walsweep's.
    #[error("slot `{0}` has to be made anew, and is not dropped: it may be another program's")]
    SlotNotOwn(String),
    /// The server sent nothing for too long.
    #[error("the server sent nothing for {0} s, though asked to")]
    Silent(u64),
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Error {
        Error::Sql(error.into())
    }
}

impl Error {
    /// Whether it is what a person has mistyped, if it comes before the first stream: an address
    /// that leads to another server than it should, or a login.
    #[must_use]
    pub fn is_mistyped(&self) -> bool {
        match self {
            Error::StreamsStandby | Error::StreamsPrimary | Error::ManyStandbys => true,
            Error::Preflight(preflight::Error::Standby(error)) | Error::Sql(error) => {
                error.is_rejection()
            }
            Error::Capture(error) => error.is_rejection() || error.is_pooler(),
            _ => false,
        }
    }

    /// Whether we ended a session that worked, so that the next one begins otherwise. Each of these
    /// is found by looks that are seconds apart, so that nothing spins.
    #[must_use]
    pub fn is_intended(&self) -> bool {
        matches!(self, Error::TablesChanged(_) | Error::RetainedWal(_))
    }

    /// Whether nobody was there, or not yet: on either connection, or on the standby's.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Error::Sql(error)
            | Error::Preflight(preflight::Error::Standby(error))
            | Error::Capture(capture::Error::Connect(error)) => error.is_unreachable(),
            _ => false,
        }
    }

    /// Says what a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        let of_login = match self {
            Error::Capture(capture::Error::Connect(error)) => preflight::replication_hint(error),
            Error::Sql(error) => preflight::login_hint(error),
            _ => None,
        };
        of_login.or_else(|| self.known_hint().map(Cow::Borrowed))
    }

    fn known_hint(&self) -> Option<&'static str> {
        match self {
            error if error.is_unreachable() => Some(
                "see that Postgres runs, and that `postgres.url` names it: walsweep connects by \
                 itself then, and removes what was committed meanwhile",
            ),
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
            Error::SlotStandby(_) | Error::StandbyBehind(_) => {
                Some("see that it follows the primary that `postgres.url` names")
            }
            Error::RetainedWal(_) => {
                Some("find out what holds the confirmation: Redis, a replica that is late")
            }
            Error::TablesChanged(_) => {
                Some("what changed is judged now, and the keys of the rules that read it are swept")
            }
            Error::Sql(postgres::Error::Pooler { .. }) => {
                Some("let `postgres.url` name the server itself, by its direct address")
            }
            Error::Capture(error) if error.is_pooler() => Some(
                "that is a pooler: let `postgres.url` or `postgres.replication_url` name the \
                 server itself",
            ),
            Error::Capture(error) if error.lacks_publication() => Some(
                "if somebody dropped the publication, `walsweep setup --as URL` makes it again; if \
                 it is there again, wait: what was committed while there was none is given up for \
                 a sweep of everything",
            ),
            Error::SlotGone => Some(
                "none is needed: a new slot is made, and everything is swept; the server's log may \
                 say who dropped the old one",
            ),
            // What to do is told with what shows whose it is, as a trouble of its own.
            Error::SlotNotOwn(_)
            | Error::Preflight(_)
            | Error::Sql(_)
            | Error::Capture(_)
            | Error::Silent(_) => None,
        }
    }
}

/// The answer of a server; [`Error::Silent`] if it does not come within `limit`, since a peer that
/// fell silent must hold nobody for ever.
///
/// # Errors
///
/// The answer's, or [`Error::Silent`].
pub(crate) async fn within<T, E>(
    limit: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, Error>
where
    Error: From<E>,
{
    match timeout(limit, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_elapsed) => Err(Error::Silent(limit.as_secs())),
    }
}
