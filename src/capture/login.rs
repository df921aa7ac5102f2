//! The login of a replication session: trust, passwords in the clear, MD5, SCRAM-SHA-256 with and
//! without channel binding
//! (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP>).

use std::io;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding as Binding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use secrecy::ExposeSecret;

use super::connection::{Connection, Reply};
use crate::postgres::{ChannelBinding, Endpoint, Error, Security, ServerError, open};

/// Connects and logs in. Gives the process that is to serve the session, if it was told.
pub(super) async fn connect(
    endpoint: &Endpoint,
    application_name: &str,
) -> Result<(Connection, Option<i32>), Error> {
    let security = Security::first(endpoint);
    match log_in(endpoint, security, application_name).await {
        Err(error) if security.may_go_plain(&error) => {
            log_in(endpoint, Security::Plain, application_name).await
        }
        result => result,
    }
}

async fn log_in(
    endpoint: &Endpoint,
    security: Security,
    application_name: &str,
) -> Result<(Connection, Option<i32>), Error> {
    let endpoint = &endpoint.with_password()?;
    let stream = open(endpoint, security).await?;
    let server_end_point = match endpoint.channel_binding {
        ChannelBinding::Disable => None,
        ChannelBinding::Prefer | ChannelBinding::Require => stream.server_end_point(),
    };
    let mut login = Login {
        endpoint,
        server_end_point,
        connection: Connection::new(Box::new(stream)),
        is_bound: false,
    };
    login.start(application_name).await?;
    login.authenticate().await?;
    let backend = login.wait_until_ready().await?;
    Ok((login.connection, backend))
}

struct Login<'a> {
    endpoint: &'a Endpoint,
    /// What channel binding binds to, if it may be used at all.
    server_end_point: Option<Vec<u8>>,
    connection: Connection,
    /// Whether channel binding was used.
    is_bound: bool,
}

impl<'a> Login<'a> {
    async fn start(&mut self, application_name: &str) -> Result<(), Error> {
        let parameters = [
            ("user", self.endpoint.user.as_str()),
            ("database", self.endpoint.database.as_str()),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", application_name),
        ];
        self.send(|out| frontend::startup_message(parameters, out)).await
    }

    /// Answers the server's questions until it is content.
    async fn authenticate(&mut self) -> Result<(), Error> {
        match self.receive().await? {
            Message::AuthenticationOk => return self.check_bound(),
            Message::AuthenticationCleartextPassword => {
                self.check_bound()?;
                let password = self.password()?;
                self.send(|out| frontend::password_message(password, out)).await?;
            }
            Message::AuthenticationMd5Password(body) => {
                self.check_bound()?;
                let user = self.endpoint.user.as_bytes();
                let hash = md5_hash(user, self.password()?, body.salt());
                self.send(|out| frontend::password_message(hash.as_bytes(), out)).await?;
            }
            Message::AuthenticationSasl(body) => self.authenticate_sasl(&body).await?,
            _ => {
                return Err(self.fail("the server wants an authentication that is not supported"));
            }
        }
        match self.receive().await? {
            Message::AuthenticationOk => Ok(()),
            _ => Err(self.fail("the server does not end the authentication")),
        }
    }

    async fn authenticate_sasl(&mut self, body: &AuthenticationSaslBody) -> Result<(), Error> {
        let (mechanism, binding) = self.mechanism(body)?;
        self.is_bound = mechanism == SCRAM_SHA_256_PLUS;
        self.check_bound()?;
        let mut scram = ScramSha256::new(self.password()?, binding);
        self.send(|out| frontend::sasl_initial_response(mechanism, scram.message(), out)).await?;
        let Message::AuthenticationSaslContinue(body) = self.receive().await? else {
            return Err(self.fail("the server breaks off SCRAM"));
        };
        scram.update(body.data()).map_err(|error| self.fail(&error.to_string()))?;
        self.send(|out| frontend::sasl_response(scram.message(), out)).await?;
        let Message::AuthenticationSaslFinal(body) = self.receive().await? else {
            return Err(self.fail("the server breaks off SCRAM"));
        };
        // The server proves here that it knows the password, too.
        scram.finish(body.data()).map_err(|error| self.fail(&error.to_string()))
    }

    /// Chooses among the mechanisms that the server offers. If it offers no channel binding
    /// although we could, that is told to the server in the exchange, so that no one in between can
    /// have taken it off the list.
    fn mechanism(&self, body: &AuthenticationSaslBody) -> Result<(&'static str, Binding), Error> {
        let offered: Vec<&str> = body
            .mechanisms()
            .collect()
            .map_err(|error: io::Error| self.fail(&error.to_string()))?;
        let end_point = self.server_end_point.clone();
        match end_point {
            Some(end_point) if offered.contains(&SCRAM_SHA_256_PLUS) => {
                Ok((SCRAM_SHA_256_PLUS, Binding::tls_server_end_point(end_point)))
            }
            Some(_) if offered.contains(&SCRAM_SHA_256) => {
                Ok((SCRAM_SHA_256, Binding::unrequested()))
            }
            None if offered.contains(&SCRAM_SHA_256) => Ok((SCRAM_SHA_256, Binding::unsupported())),
            _ => Err(self.fail("the server offers no SASL mechanism that is supported")),
        }
    }

    /// With `channel_binding=require` nothing is sent that a server could use without it.
    fn check_bound(&self) -> Result<(), Error> {
        if self.endpoint.channel_binding == ChannelBinding::Require && !self.is_bound {
            return Err(self.fail("channel binding is required and the server does not use it"));
        }
        Ok(())
    }

    async fn wait_until_ready(&mut self) -> Result<Option<i32>, Error> {
        let mut backend = None;
        loop {
            match self.receive().await? {
                Message::ReadyForQuery(_) => {
                    self.connection.forget_limits();
                    return Ok(backend);
                }
                Message::BackendKeyData(body) => backend = Some(body.process_id()),
                _ => return Err(self.fail("the server does not end the login")),
            }
        }
    }

    fn password(&self) -> Result<&'a [u8], Error> {
        match &self.endpoint.password {
            Some(password) => Ok(password.expose_secret().as_bytes()),
            None => Err(self.fail("the server wants a password and there is none")),
        }
    }

    async fn receive(&mut self) -> Result<Message, Error> {
        match self.connection.receive().await {
            Ok(Reply::Message(Message::ErrorResponse(body))) => Err(Error::Refused {
                address: self.endpoint.address(),
                user: self.endpoint.user.clone(),
                server: ServerError::from_fields(body.fields()),
            }),
            Ok(Reply::Message(message)) => Ok(message),
            Ok(Reply::CopyBoth) => Err(self.fail("the server streams without being asked")),
            Err(source) => Err(Error::Connect { address: self.endpoint.address(), source }),
        }
    }

    async fn send(
        &mut self,
        message: impl FnOnce(&mut BytesMut) -> io::Result<()>,
    ) -> Result<(), Error> {
        let failed = |source| Error::Connect { address: self.endpoint.address(), source };
        let mut bytes = BytesMut::new();
        message(&mut bytes).map_err(failed)?;
        self.connection.send(&bytes).await.map_err(failed)
    }

    fn fail(&self, reason: &str) -> Error {
        Error::Login {
            address: self.endpoint.address(),
            user: self.endpoint.user.clone(),
            reason: reason.to_owned(),
        }
    }
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
