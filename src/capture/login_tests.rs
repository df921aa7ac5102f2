//! SCRAM with a server that is none, or with someone in between.

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
    let mut login = Login { endpoint: &endpoint, server_end_point, connection, is_bound: false };
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

/// A login with a server that sends these bytes again and again. Gives how many it got rid of, and
/// what became of the login.
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
    for bytes in [&notice[..], &error, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail ESMTP\r\n"] {
        let (sent, outcome) = flooded(bytes).await;
        let Err(Error::Connect { source, .. }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(source.kind(), std::io::ErrorKind::InvalidData, "{source}");
        assert!(sent <= 2 << 20, "{sent} bytes, {source}");
    }
}
