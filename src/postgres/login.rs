//! The password of a login, as it is now.

use std::path::PathBuf;

use secrecy::SecretString;
use tokio::time::Instant;

use super::hosts::Attempt;
use super::passfile::PassfileError;
use super::{Endpoint, Error};
use crate::file;
use crate::password::{Source, is_another};

/// The attempts of one login, each with the password that holds then. Where the server refuses the
/// first, the source is asked again at once, and if it gives another password by then, one more
/// attempt is made with that: a token may end, or a rotation happen, between reading and login.
pub(crate) struct Login<'a> {
    endpoint: &'a Endpoint,
    ready: Endpoint,
    is_again: bool,
}

impl Login<'_> {
    /// Reads the password.
    ///
    /// # Errors
    /// Its source gives none.
    pub(crate) async fn begin(endpoint: &Endpoint) -> Result<Login<'_>, Error> {
        Ok(Login { endpoint, ready: endpoint.with_password().await?, is_again: false })
    }

    /// The endpoint with the password to try.
    pub(crate) fn ready(&self) -> &Endpoint {
        &self.ready
    }

    /// Takes the outcome of an attempt; gives it back, unless there is another one to make.
    pub(crate) async fn tried<T, E: Attempt>(
        &mut self,
        outcome: Result<T, E>,
    ) -> Option<Result<T, E>> {
        let is_refused = matches!(&outcome, Err(error) if error.is_of_password());
        if !is_refused || self.is_again {
            return Some(outcome);
        }
        let Some(again) = self.endpoint.with_another(&self.ready, Instant::now()).await else {
            return Some(outcome);
        };
        tracing::debug!(address = again.address(), "the password has changed meanwhile");
        (self.ready, self.is_again) = (again, true);
        None
    }
}

impl Endpoint {
    /// Gives the endpoint with the password that holds now, for one login.
    async fn with_password(&self) -> Result<Endpoint, Error> {
        let read = self.password.read().await.map_err(|error| self.unread(error.into()))?;
        match read {
            Some(password) => Ok(self.with(password)),
            None => self.with_own_password_now().await,
        }
    }

    /// Gives the endpoint with the password of `PGPASSWORD` or the passfile, if the configuration
    /// names no source.
    pub(crate) fn with_own_password(&self) -> Result<Endpoint, Error> {
        let mut endpoint = self.clone();
        endpoint.load_password().map_err(|error| self.unread(error))?;
        Ok(endpoint)
    }

    /// Reads it as [`file::apart`] does, while the program runs.
    async fn with_own_password_now(&self) -> Result<Endpoint, Error> {
        let path = self.passfile.clone().unwrap_or_else(|| PathBuf::from("~/.pgpass"));
        let of_thread = self.clone();
        let read = file::apart(&path, file::TIMEOUT, move || of_thread.with_own_password()).await;
        read.unwrap_or_else(|source| Err(self.unread(PassfileError::Read { path, source })))
    }

    /// Gives the endpoint with another password than that of `old`, which was refused at `refused`,
    /// if there is one by now.
    async fn with_another(&self, old: &Endpoint, refused: Instant) -> Option<Endpoint> {
        if self.password.is_some() {
            let new = self.password.read_again(old.password.given(), refused).await?;
            return Some(self.with(new));
        }
        let new = self.with_own_password_now().await.ok()?;
        is_another(new.password.given(), old.password.given()).then_some(new)
    }

    fn with(&self, password: SecretString) -> Endpoint {
        Endpoint { password: Source::Given(password), ..self.clone() }
    }

    fn unread(&self, source: PassfileError) -> Error {
        let source = Box::new(source);
        Error::Password { address: self.address(), user: self.user.clone(), source }
    }
}
