//! HTTP for machines that watch: `/metrics`, `/healthz`, `/readyz`, `/reload`; and `/why` for a
//! person.
//!
//! Whoever reaches the port can open connections and never read. None of that may take what the
//! sidecar needs for Postgres and Redis: a connection gives one answer and ends, it has
//! [`CONNECTION_TIMEOUT`] for it, and there are at most [`CONNECTIONS_MAX`] of them. One more than
//! that ends the oldest, so that whoever asks and reads is answered even then.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::repeats::Repeats;
use super::{Health, why};

/// A connection that is older than this ends, whether its client has not sent a request or has not
/// read the answer. Prometheus waits as long for a scrape, unless it is told otherwise.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections at a time, where the process may have at least four times as many descriptors.
const CONNECTIONS_MAX: usize = 64;

/// A request has a line and some headers; what is longer is answered with 431.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// Pause after the system gave no connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether keys are told to whoever asks: `[http] keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tells {
    /// Yes.
    Keys,
    /// No: they hold values of rows.
    NoKeys,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) tells: Tells,
    /// Whether the connection comes from this machine.
    pub(super) is_here: bool,
}

/// Listens at `address`.
///
/// # Errors
///
/// When the address cannot be had.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers requests until it is dropped.
pub async fn serve(listener: TcpListener, health: Arc<Health>, tells: Tells) {
    let max = connections_max(descriptors_max());
    let mut open = Open::default();
    let mut refusals = Repeats::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                open.leave_at_most(max - 1).await;
                let asker = Asker { tells, is_here: peer.ip().to_canonical().is_loopback() };
                open.add(serve_one(stream, Arc::clone(&health), asker));
            }
            Err(error) => {
                // Out of descriptors, say: ours are the first to be given back.
                if let Some(unsaid) = refusals.say("accept", Instant::now()) {
                    tracing::warn!(%error, unsaid, "accept an HTTP connection");
                }
                open.leave_at_most(0).await;
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// How many connections there may be where the process may have so many descriptors: a quarter.
fn connections_max(descriptors: Option<usize>) -> usize {
    descriptors.map_or(CONNECTIONS_MAX, |descriptors| CONNECTIONS_MAX.min(descriptors / 4).max(1))
}

/// How many descriptors the process may have; `None` if that cannot be known, or has no limit.
fn descriptors_max() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Connections, the oldest first. Dropped, they end.
#[derive(Default)]
struct Open {
    tasks: JoinSet<()>,
    order: VecDeque<AbortHandle>,
}

impl Open {
    fn add(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        self.order.push_back(self.tasks.spawn(connection));
    }

    /// Ends the oldest ones until so many are left. One that is told to end has its descriptor
    /// until it has ended, and where many clients come at once the next would be accepted before.
    async fn leave_at_most(&mut self, count: usize) {
        while self.tasks.try_join_next().is_some() {}
        self.order.retain(|one| !one.is_finished());
        while self.order.len() > count {
            self.order.pop_front().iter().for_each(AbortHandle::abort);
        }
        while self.tasks.len() > count {
            self.tasks.join_next().await;
        }
    }
}

async fn serve_one<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    health: Arc<Health>,
    asker: Asker,
) {
    let service = service_fn(move |request| {
        let health = Arc::clone(&health);
        async move {
            Ok::<_, Infallible>(match request.uri().path() {
                "/why" => why::answer(&request, &health, asker).await,
                _ => answer(&request, &health),
            })
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(REQUEST_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP connection ended early"),
        Err(_elapsed) => tracing::debug!("an HTTP connection took too long"),
    }
}

fn answer(request: &Request<Incoming>, health: &Health) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => {
            let mut response = text(StatusCode::OK, health.metrics().text());
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            response.headers_mut().insert(CONTENT_TYPE, kind.parse().expect("a header value"));
            response
        }
        "/reload" => {
            let mut response = text(StatusCode::OK, health.reloads().to_json());
            let kind = "application/json".parse().expect("a header value");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        "/healthz" => told(health.liveness()),
        "/readyz" => {
            let (is_ready, body) = health.readiness();
            let is_rollout = request.uri().query() == Some("rollout");
            told((if is_rollout { health.may_replace() } else { is_ready }, body))
        }
        _ => text(StatusCode::NOT_FOUND, "/metrics /healthz /readyz /reload /why\n".to_owned()),
    }
}

/// 200 if all is well, 503 if not; the body says what is.
fn told((is_well, body): (bool, String)) -> Response<Full<Bytes>> {
    text(if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

pub(super) fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = "text/plain; charset=utf-8".parse().expect("a header value");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::timeout;

    use super::{
        Asker, CONNECTION_TIMEOUT, CONNECTIONS_MAX, Health, Open, Tells, connections_max,
        descriptors_max, serve_one,
    };
    use crate::telemetry::metrics::Metrics;

    /// Whether its request is not whole, or it reads nothing of the answer.
    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_in_time_whatever_its_client_does() {
        for sent in ["", "GET /metr", "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"] {
            let health = Arc::new(Health::new(Arc::new(Metrics::new(&[]))));
            // It holds a request, and no answer.
            let (ours, mut theirs) = duplex(64);
            theirs.write_all(sent.as_bytes()).await.unwrap();
            let asker = Asker { tells: Tells::NoKeys, is_here: true };
            let served = timeout(CONNECTION_TIMEOUT * 2, serve_one(ours, health, asker)).await;
            assert!(served.is_ok(), "open after twice the time: {sent:?}");
        }
    }

    /// I9: a key may stand for a row. Nobody else than this machine's command asks for one, unless
    /// `[http] keys` says so.
    #[tokio::test]
    async fn a_key_is_told_to_the_command_on_this_machine_or_to_all() {
        for (tells, is_here, host, expected) in [
            (Tells::NoKeys, true, "walsweep", "200"),
            (Tells::NoKeys, true, "127.0.0.1:9185", "403"),
            (Tells::NoKeys, true, "walsweep.example", "403"),
            (Tells::NoKeys, false, "walsweep", "403"),
            (Tells::Keys, false, "10.0.0.7:9185", "200"),
        ] {
            let health = Arc::new(Health::new(Arc::new(Metrics::new(&[]))));
            let (ours, mut theirs) = duplex(4096);
            let asked = format!("GET /why?key=item:1 HTTP/1.1\r\nHost: {host}\r\n\r\n");
            theirs.write_all(asked.as_bytes()).await.unwrap();
            serve_one(ours, health, Asker { tells, is_here }).await;
            let mut answer = String::new();
            theirs.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer.split(' ').nth(1), Some(expected), "{host}: {answer}");
            assert_eq!(answer.contains("removals"), expected == "200", "{answer}");
        }
    }

    /// The oldest connections give back what they hold before the next one is accepted.
    #[tokio::test]
    async fn the_oldest_connections_have_ended_when_so_many_are_left() {
        let (held, mut open) = (Arc::new(()), Open::default());
        for _ in 0..10 {
            let descriptor = Arc::clone(&held);
            open.add(async move {
                let _descriptor = descriptor;
                std::future::pending::<()>().await;
            });
        }
        open.leave_at_most(3).await;
        assert_eq!(Arc::strong_count(&held), 1 + 3);
        open.leave_at_most(3).await;
        open.leave_at_most(0).await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn three_of_four_descriptors_are_kept_back() {
        for (descriptors, connections) in [
            (None, CONNECTIONS_MAX),
            (Some(1 << 20), CONNECTIONS_MAX),
            (Some(256), 64),
            (Some(64), 16),
            (Some(3), 1),
        ] {
            assert_eq!(connections_max(descriptors), connections, "{descriptors:?}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_limit_of_descriptors_is_read() {
        assert!(descriptors_max().is_some_and(|max| max >= 16));
    }
}
