//! The primary among several hosts, as libpq finds it with `target_session_attrs=primary`
//! (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS>).
//!
//! Each connection looks for itself where nothing is known yet. Once a session has found its
//! primary, all its other connections name that host alone ([`Endpoint::only`]): a commit may be
//! judged by nobody but the server that it was made on.

use super::{Endpoint, Error};

#[cfg(doc)]
use super::connect_sql;

/// The question whether a server is a standby.
pub(crate) const IN_RECOVERY: &str = include_str!("../../sql/in_recovery.sql");

/// Hosts that were passed over, each with the reason.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    reasons: Vec<String>,
    /// Whether each of them was out of reach, so that nobody was there.
    is_somebody_there: bool,
}

impl Passed {
    /// Passes over a host that is a standby.
    pub(crate) fn standby(&mut self, host: &Endpoint) {
        self.is_somebody_there = true;
        self.reasons.push(format!("`{}` is a standby", host.address()));
    }

    /// Passes over a host that cannot be reached, or does not take sessions now.
    ///
    /// # Errors
    /// A person has to change something, such as a password: as in libpq the hosts after it are not
    /// tried.
    pub(crate) fn failed(&mut self, error: Error) -> Result<(), Error> {
        if error.is_rejection() {
            return Err(error);
        }
        self.is_somebody_there |= !error.is_unreachable();
        self.reasons.push(error.to_string());
        Ok(())
    }

    /// None was left.
    pub(crate) fn all(self) -> Error {
        Error::NoPrimary { reasons: self.reasons, is_unreachable: !self.is_somebody_there }
    }
}
