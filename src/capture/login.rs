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

/// Connects and logs in with the password that `endpoint` holds. Gives the process that is to serve
/// the session, if it was told.
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
    /// The data that channel binding binds to, if it may be used at all.
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
        match self.endpoint.password.given() {
            Some(password) => Ok(password.expose_secret().as_bytes()),
            None => Err(self.fail("the server wants a password and there is none")),
        }
    }

    async fn receive(&mut self) -> Result<Message, Error> {
        match self.connection.receive().await {
            Ok(Reply::Message(Message::ErrorResponse(body))) => Err(Error::Refused {
                address: self.endpoint.address().into(),
                user: self.endpoint.user.as_str().into(),
                database: self.endpoint.database.as_str().into(),
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
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::Login;
    use crate::capture::connection::Connection;
    use crate::postgres::{Endpoint, Error};

    /// A message of authentication, of this kind
    /// (<https://www.postgresql.org/docs/current/protocol-message-formats.html>).
    fn authentication(kind: u32, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len() + 8).unwrap();
        [b"R", &length.to_be_bytes()[..], &kind.to_be_bytes(), content].concat()
    }

    /// The content of the client's next message.
    async fn heard(server: &mut DuplexStream) -> String {
        assert_eq!(server.read_u8().await.unwrap(), b'p');
        let length = server.read_u32().await.unwrap();
        let mut content = vec![0; length as usize - 4];
        server.read_exact(&mut content).await.unwrap();
        String::from_utf8(content).unwrap()
    }

    /// A login with a server that offers these mechanisms and does not know the password. Gives the
    /// client's first message, and what became of it.
    async fn log_in(offered: &[u8], end_point: Option<&[u8]>) -> (String, Result<(), Error>) {
        let endpoint = Endpoint::parse("postgres://u:secret@127.0.0.1/d").unwrap();
        let (ours, mut server) = duplex(1 << 16);
        let connection = Connection::new(Box::new(ours));
        let server_end_point = end_point.map(<[u8]>::to_vec);
        let mut login =
            Login { endpoint: &endpoint, server_end_point, connection, is_bound: false };
        let answers = async {
            server.write_all(&authentication(10, offered)).await.unwrap();
            let first = heard(&mut server).await;
            let (_, nonce) = first.rsplit_once("r=").unwrap();
            let challenge = format!("r={nonce}more,s=c2FsdA==,i=4096");
            server.write_all(&authentication(11, challenge.as_bytes())).await.unwrap();
            heard(&mut server).await;
            let proof = format!("v={}=", "A".repeat(43));
            server.write_all(&authentication(12, proof.as_bytes())).await.unwrap();
            server.write_all(&authentication(0, b"")).await.unwrap();
            first
        };
        tokio::join!(answers, login.authenticate())
    }

    #[tokio::test]
    async fn a_server_that_does_not_know_the_password_is_not_logged_in_to() {
        let (_, outcome) = log_in(b"SCRAM-SHA-256\0\0", None).await;
        assert!(matches!(outcome, Err(Error::Login { .. })), "{outcome:?}");
    }

    /// The letter before the first comma says whether there is a binding, could be one, or is none
    /// (<https://www.rfc-editor.org/rfc/rfc5802#section-6>): a server that offered one refuses `y`.
    #[tokio::test]
    async fn a_binding_that_somebody_took_off_the_list_is_told() {
        let both = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
        for (offered, end_point, expected) in [
            (&both[..], Some(&b"hash"[..]), "p=tls-server-end-point,,"),
            (b"SCRAM-SHA-256\0\0", Some(b"hash"), "y,,"),
            (both, None, "n,,"),
            (b"SCRAM-SHA-256\0\0", None, "n,,"),
        ] {
            let (first, _) = log_in(offered, end_point).await;
            // The mechanism ends with a zero byte, and four bytes of length follow.
            let (_, said) = first.split_once('\0').unwrap();
            assert_eq!(said[4..].split_inclusive(",,").next(), Some(expected), "{first:?}");
        }
    }

    /// A login with a server that sends these bytes again and again. Gives how many it got rid of,
    /// and what became of the login.
    async fn flooded(bytes: &[u8]) -> (usize, Result<(), Error>) {
        let endpoint = Endpoint::parse("postgres://u:secret@127.0.0.1/d").unwrap();
        let (ours, mut server) = duplex(1 << 16);
        let connection = Connection::new(Box::new(ours));
        let mut login =
            Login { endpoint: &endpoint, server_end_point: None, connection, is_bound: false };
        // In the end it hangs up.
        let speaking = async move {
            let mut sent = 0;
            while sent < 64 << 20 && server.write_all(bytes).await.is_ok() {
                sent += bytes.len();
            }
            sent
        };
        let logging_in = async {
            let outcome = login.authenticate().await;
            drop(login);
            outcome
        };
        tokio::join!(speaking, logging_in)
    }

    /// Nobody is known yet, and whatever speaks for ever is heard for a megabyte.
    #[tokio::test]
    async fn a_stranger_is_not_listened_to_for_ever() {
        let notice = [b"N", &104_u32.to_be_bytes()[..], &[0; 100]].concat();
        let error = [b"E", &(1_u32 << 30).to_be_bytes()[..], &[b'x'; 1 << 16]].concat();
        for bytes in
            [&notice[..], &error, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail ESMTP\r\n"]
        {
            let (sent, outcome) = flooded(bytes).await;
            let Err(Error::Connect { source, .. }) = outcome else { panic!("{outcome:?}") };
            assert_eq!(source.kind(), std::io::ErrorKind::InvalidData, "{source}");
            assert!(sent <= 2 << 20, "{sent} bytes, {source}");
        }
    }
}
