//! HTTP for machines that watch: `/metrics`, `/healthz`, `/readyz`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use crate::metrics::Metrics;

/// The pipeline gives a sign of life at least every second; after this long without one the process
/// makes no progress, and whoever watches may restart it.
const SIGN_OF_LIFE_MAX: Duration = Duration::from_secs(60);

/// A client that does not send its request in this time is let go.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What walsweep is doing; only [`Phase::Streaming`] is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No session with Postgres.
    Connecting,
    /// Another walsweep has the slot.
    Standby,
    /// Redis is out of reach.
    RedisLost,
    /// History is not shown to be unbroken: everything is swept first; why.
    Sweeping(&'static str),
    /// Everything that is committed and visible is on its way out of Redis.
    Streaming,
    /// Asked to stop.
    Stopping,
}

impl Phase {
    fn text(self) -> String {
        match self {
            Phase::Connecting => "connecting to postgres".to_owned(),
            Phase::Standby => "standby: another process has the slot".to_owned(),
            Phase::RedisLost => "redis is out of reach".to_owned(),
            Phase::Sweeping(reason) => format!("sweeping everything: {reason}"),
            Phase::Streaming => "ready".to_owned(),
            Phase::Stopping => "stopping".to_owned(),
        }
    }
}

/// What the endpoints tell, kept up to date by the pipeline.
#[derive(Debug)]
pub struct Health {
    metrics: Arc<Metrics>,
    state: Mutex<(Phase, Instant)>,
}

impl Health {
    /// Connecting, and alive.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Health {
        Health { metrics, state: Mutex::new((Phase::Connecting, Instant::now())) }
    }

    /// Sets what is being done. Stopping is the last thing that is done.
    pub fn set(&self, phase: Phase) {
        let mut state = self.lock();
        let phase = if state.0 == Phase::Stopping { Phase::Stopping } else { phase };
        *state = (phase, Instant::now());
        self.metrics.ready.set(i64::from(phase == Phase::Streaming));
    }

    /// A sign of life.
    pub fn beat(&self) {
        self.lock().1 = Instant::now();
    }

    /// Awaits something that may rightly take long, giving signs of life.
    pub async fn alive_while<T>(&self, awaited: impl Future<Output = T>) -> T {
        let mut awaited = std::pin::pin!(awaited);
        loop {
            match timeout(SIGN_OF_LIFE_MAX / 10, &mut awaited).await {
                Ok(outcome) => return outcome,
                Err(_elapsed) => self.beat(),
            }
        }
    }

    /// What is being done.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.lock().0
    }

    fn is_alive(&self) -> bool {
        self.lock().1.elapsed() < SIGN_OF_LIFE_MAX
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Phase, Instant)> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
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
pub async fn serve(listener: TcpListener, health: Arc<Health>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _peer)) => stream,
            Err(error) => {
                // Out of file descriptors, say: the connections that have them will end.
                tracing::warn!(%error, "accept an HTTP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let health = Arc::clone(&health);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &health);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP connection ended early");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, health: &Health) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => {
            let mut response = text(StatusCode::OK, health.metrics.text());
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            response.headers_mut().insert(CONTENT_TYPE, kind.parse().expect("a header value"));
            response
        }
        "/healthz" if health.is_alive() => text(StatusCode::OK, "alive\n".to_owned()),
        "/healthz" => text(StatusCode::SERVICE_UNAVAILABLE, "no progress\n".to_owned()),
        "/readyz" => {
            let phase = health.phase();
            let status = match phase {
                Phase::Streaming => StatusCode::OK,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            text(status, format!("{}\n", phase.text()))
        }
        _ => text(StatusCode::NOT_FOUND, "/metrics /healthz /readyz\n".to_owned()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = "text/plain; charset=utf-8".parse().expect("a header value");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
