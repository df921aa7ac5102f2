//! The bytes to and from a server, however it is reached.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::tls;

/// A connection to a server, encrypted or not, before anyone has logged in.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS over TCP.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// RFC 5929 `tls-server-end-point`: the hash of the server's certificate; `None` without TLS or
    /// if the certificate's signature names no hash.
    #[must_use]
    pub fn server_end_point(&self) -> Option<Vec<u8>> {
        match self {
            Stream::Tls(stream) => {
                let certificate = stream.get_ref().1.peer_certificates()?.first()?;
                tls::server_end_point(certificate)
            }
            Stream::Tcp(_) | Stream::Unix(_) => None,
        }
    }
}

/// Calls an expression on whichever stream it is.
macro_rules! each {
    ($stream:expr, $name:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Tcp(stream) => {
                let $name = Pin::new(stream);
                $call
            }
            Stream::Tls(stream) => {
                let $name = Pin::new(stream.as_mut());
                $call
            }
            Stream::Unix(stream) => {
                let $name = Pin::new(stream);
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_shutdown(context))
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        self.server_end_point()
            .map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

/// Tells tokio-postgres that the TLS handshake is done. It asks for channel binding only of streams
/// that come out of a `TlsConnect`.
pub(super) struct Established;

impl<S: TlsStream + Unpin> TlsConnect<S> for Established {
    type Stream = S;
    type Error = io::Error;
    type Future = Ready<io::Result<S>>;

    fn connect(self, stream: S) -> Self::Future {
        ready(Ok(stream))
    }
}
