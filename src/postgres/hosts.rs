//! The primary among several hosts, as libpq finds it with `target_session_attrs=primary`
//! (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS>), with one
//! difference: libpq ends its search at the first host that refuses the login, and here it goes on.
//! One host with another `pg_hba.conf`, or a port that something else has taken, must not hide the
//! primary behind it. Why each host was passed over is told, whether a primary is found or not.
//!
//! Each connection looks for itself where nothing is known yet. Once a session has found its
//! primary, all its other connections name that host alone ([`Endpoint::only`]): a commit may be
//! judged by nobody but the server that it was made on. Where that host has another name in
//! another URL, the search is made there, too, and takes only what says of itself that it is the
//! same server.

use std::fmt;

use super::{Endpoint, Error, History};

#[cfg(doc)]
use super::connect_sql;

/// The question whether a server is a standby.
pub(crate) const IN_RECOVERY: &str = include_str!("../../sql/in_recovery.sql");

/// An obstacle that keeps a host from being the primary that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It is a standby, as it may be.
    Standby,
    /// It refuses the login, or there is no password for it.
    Login,
    /// Something answers there that cannot be used as it is: no TLS, a pooler, another primary, no
    /// Postgres.
    Misfit,
    /// Nobody answers, or it is only starting.
    Away,
    /// It answers, and could not be used this time.
    Busy,
}

/// A host that was passed over in the search for the primary, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// The reason why it was passed over.
    pub obstacle: Obstacle,
    text: String,
}

impl PassedOver {
    /// A standby.
    pub(crate) fn standby(host: &Endpoint) -> PassedOver {
        let text = format!("`{}` is a standby", host.address());
        PassedOver { obstacle: Obstacle::Standby, text }
    }

    /// A primary that is not the one that is meant.
    pub(crate) fn another(host: &Endpoint, found: &History) -> PassedOver {
        let who = format!("another primary, of {found}");
        let text = format!("`{}` is {who}", host.address());
        PassedOver { obstacle: Obstacle::Misfit, text }
    }

    /// Whether a person has to change something before it can be used.
    pub(super) fn needs_a_person(&self) -> bool {
        matches!(self.obstacle, Obstacle::Login | Obstacle::Misfit)
    }

    /// Whether the next try may find the primary there. A standby may be promoted, and is for a
    /// while what a switchover leaves.
    pub(super) fn may_come(&self) -> bool {
        matches!(self.obstacle, Obstacle::Standby | Obstacle::Away | Obstacle::Busy)
    }
}

impl fmt::Display for PassedOver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// The reasons in one line.
pub(crate) fn listed(passed: &[PassedOver]) -> String {
    let texts: Vec<&str> = passed.iter().map(|one| one.text.as_str()).collect();
    texts.join("; ")
}

/// An error of an attempt with one host.
pub(crate) trait Attempt: From<Error> + fmt::Display {
    /// Gives the reason why the host cannot be used.
    fn obstacle(&self) -> Obstacle;

    /// Whether it is about something of ours, so that each host would fail alike.
    fn is_ours(&self) -> bool;

    /// Whether another password might have let us in.
    fn is_of_password(&self) -> bool;
}

impl Attempt for Error {
    fn obstacle(&self) -> Obstacle {
        match self {
            Error::Login { .. } | Error::Password { .. } => Obstacle::Login,
            Error::Refused { server, .. } if server.is_rejection() => Obstacle::Login,
            error if error.is_rejection() => Obstacle::Misfit,
            error if error.is_unreachable() => Obstacle::Away,
            _ => Obstacle::Busy,
        }
    }

    fn is_ours(&self) -> bool {
        matches!(
            self,
            Error::RootCertificates { .. }
                | Error::ClientCertificate { .. }
                | Error::Password { .. }
        )
    }

    fn is_of_password(&self) -> bool {
        match self {
            // Class 28: the password, or whom pg_hba.conf lets in.
            Error::Refused { server, .. } => server.code.starts_with("28"),
            Error::Login { .. } => true,
            _ => false,
        }
    }
}

/// The way from host to host, to the one that is the primary.
#[derive(Debug)]
pub(crate) struct Search {
    hosts: std::vec::IntoIter<Endpoint>,
    passed: Vec<PassedOver>,
}

impl Search {
    /// Begins with the first of several hosts.
    #[must_use]
    pub(crate) fn new(endpoint: &Endpoint) -> Search {
        let hosts = endpoint.each().collect::<Vec<_>>().into_iter();
        Search { hosts, passed: Vec::new() }
    }

    /// The host to try next.
    ///
    /// # Errors
    /// There is none left.
    pub(crate) fn next(&mut self) -> Result<Endpoint, Error> {
        self.hosts.next().ok_or_else(|| Error::NoPrimary(std::mem::take(&mut self.passed)))
    }

    /// Takes what came of the host: a session with the one that is meant, that it is another, or
    /// that there is no session. Gives the session.
    ///
    /// # Errors
    /// What would fail with every host.
    pub(crate) fn took<S, E: Attempt>(
        &mut self,
        looked: Result<Result<S, PassedOver>, E>,
    ) -> Result<Option<S>, E> {
        match looked {
            Ok(Ok(session)) => return Ok(Some(session)),
            Ok(Err(unfit)) => self.passed.push(unfit),
            Err(error) if error.is_ours() => return Err(error),
            Err(error) => {
                let (obstacle, text) = (error.obstacle(), error.to_string());
                self.passed.push(PassedOver { obstacle, text });
            }
        }
        Ok(None)
    }

    /// The hosts before the one that was found.
    pub(crate) fn passed_over(self) -> Vec<PassedOver> {
        self.passed
    }
}
