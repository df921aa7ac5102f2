//! HTTP for people and for machines that watch: the page at `/`, `/status`, `/events`, `/runbook`;
//! `/metrics`, `/healthz`, `/readyz`, `/reload`; and `/why`, for one key.
//!
//! Whoever reaches the port can open connections and never read. None of that may take what the
//! sidecar needs for Postgres and Redis (I10). All of it has a thread of its own, so that a page
//! that is being made delays no removal. A connection gives one answer and ends, it has
//! [`CONNECTION_TIMEOUT`] for it, and there are at most [`CONNECTIONS_MAX`] of them. One more than
//! that ends the oldest, so that whoever asks and reads is answered even then. Only those that
//! listen to events stay, a few, each as long as it reads them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::asker::Asker;
use super::events::{Events, Taken, Teller};
use super::page::{self, Page};
use super::repeats::Repeats;
use super::status::Status;
use super::{Health, why};

/// A connection that is older than this ends, whether its client has not sent a request or has not
/// read the answer. Prometheus waits as long for a scrape, unless it is told otherwise. A listener
/// ends that took no event for as long.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections at a time, where the process may have at least four times as many descriptors.
const CONNECTIONS_MAX: usize = 64;

/// A request has a line and some headers; what is longer is answered with 431.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// The most that the system keeps of an answer for a client that does not read it, bytes.
const SEND_BYTES: usize = 128 * 1024;

/// Pause after the system gave no connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The paths that there are, for whoever asks for another one.
const PATHS: &str = "/ /status /events /runbook /metrics /healthz /readyz /reload /why\n";

/// The answer to who may be another site.
const ANOTHER_SITE: &str = "these pages tell keys (`[http] keys`), and another site may ask \
     through your browser: open http://localhost with the port, or let the proxy send \
     `Host: localhost`\n";

/// A body of an answer: a text, or events.
pub(super) type Body = Either<Full<Bytes>, Events>;

/// Everything that the pages tell of.
pub struct Served {
    /// The state, and with it the metrics.
    health: Arc<Health>,
    teller: Teller,
}

impl Served {
    /// Tells of this state.
    #[must_use]
    pub fn new(health: Arc<Health>) -> Served {
        let teller = Teller::new(connections_max(descriptors_max()) / 4);
        Served { health, teller }
    }

    fn status(&self) -> Status {
        Status::of(&self.health)
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

/// Answers requests on a thread of its own until the process ends.
///
/// # Errors
///
/// When there is no thread for it.
pub fn serve_apart(listener: TcpListener, served: Served) -> std::io::Result<()> {
    let listener = listener.into_std()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = move || {
        runtime.block_on(async {
            match TcpListener::from_std(listener) {
                Ok(listener) => serve(listener, Arc::new(served)).await,
                Err(error) => tracing::error!(%error, "nobody answers at `http.listen`"),
            }
        });
    };
    thread::Builder::new().name("walsweep-http".to_owned()).spawn(run).map(drop)
}

/// Answers requests until it is dropped.
async fn serve(listener: TcpListener, served: Arc<Served>) {
    tokio::select! {
        () = accept(listener, &served) => {}
        () = served.teller.tell(|| served.status()) => {}
    }
}

async fn accept(listener: TcpListener, served: &Arc<Served>) {
    let max = connections_max(descriptors_max());
    let mut open = Open::default();
    let mut refusals = Repeats::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Without it a client that never reads gets megabytes of the system's memory.
                drop(SockRef::from(&stream).set_send_buffer_size(SEND_BYTES));
                open.leave_at_most(max - 1).await;
                let asker = Asker::new(peer, stream.local_addr().ok());
                open.add(serve_one(stream, Arc::clone(served), asker));
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
    served: Arc<Served>,
    asker: Asker,
) {
    let taken = Arc::<Taken>::default();
    let of_service = Arc::clone(&taken);
    let service = service_fn(move |request| {
        let (served, taken) = (Arc::clone(&served), Arc::clone(&of_service));
        async move {
            let tells_keys = served.health.facts().tells_keys();
            Ok::<_, Infallible>(match request.uri().path() {
                "/why" | "/status" | "/events"
                    if tells_keys && asker.may_be_another_site(request.headers()) =>
                {
                    guarded(text(StatusCode::FORBIDDEN, ANOTHER_SITE.to_owned()))
                }
                "/why" => guarded(why::answer(&request, &served.health, asker).await),
                _ => answer(&request, &served, &taken),
            })
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(REQUEST_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut until = Instant::now() + CONNECTION_TIMEOUT;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "an HTTP connection ended early");
                }
                return;
            }
            () = sleep_until(until) => match taken.at().map(|at| at + CONNECTION_TIMEOUT) {
                Some(later) if later > until => until = later,
                _ => {
                    tracing::debug!("an HTTP connection took too long");
                    return;
                }
            },
        }
    }
}

/// The answer to a request; what is `taken` of it, if it is one for events, is noted there.
fn answer(request: &Request<Incoming>, served: &Served, taken: &Arc<Taken>) -> Response<Body> {
    guarded(routed(request, served, taken))
}

/// An answer that nobody keeps, and no other site uses.
fn guarded(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, value.parse().expect("a header value"));
    }
    response
}

fn routed(request: &Request<Incoming>, served: &Served, taken: &Arc<Taken>) -> Response<Body> {
    let health = &served.health;
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/" => html(page::index()),
        "/runbook" => html(page::runbook()),
        "/status" => {
            let mut json = serde_json::to_string(&served.status()).expect("no map is in it");
            json.push('\n');
            of_kind("application/json", text(StatusCode::OK, json))
        }
        "/events" => match served.teller.listen(Arc::clone(taken)) {
            Some(events) => of_kind("text/event-stream", Response::new(Either::Right(events))),
            None => {
                let body = "enough others listen already: close a page, or ask for /status\n";
                text(StatusCode::SERVICE_UNAVAILABLE, body.to_owned())
            }
        },
        "/metrics" => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            of_kind(kind, text(StatusCode::OK, health.metrics().text()))
        }
        "/reload" => of_kind("application/json", text(StatusCode::OK, health.reloads().to_json())),
        "/healthz" => told(health.liveness()),
        "/readyz" => {
            let (is_ready, body) = health.readiness();
            let is_rollout = request.uri().query() == Some("rollout");
            told((if is_rollout { health.may_replace() } else { is_ready }, body))
        }
        _ => text(StatusCode::NOT_FOUND, PATHS.to_owned()),
    }
}

/// 200 if all is well, 503 if not; the body says what is.
fn told((is_well, body): (bool, String)) -> Response<Body> {
    text(if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

fn html(page: &'static Page) -> Response<Body> {
    let body = Full::new(Bytes::from_static(page.html.as_bytes()));
    let mut response = of_kind("text/html; charset=utf-8", Response::new(Either::Left(body)));
    let policy = page.policy.parse().expect("a header value");
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response
}

/// An answer with this text.
pub(super) fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(body))));
    *response.status_mut() = status;
    of_kind("text/plain; charset=utf-8", response)
}

fn of_kind(kind: &'static str, mut response: Response<Body>) -> Response<Body> {
    let kind = kind.parse().expect("a header value");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::timeout;

    use super::{
        Asker, CONNECTION_TIMEOUT, CONNECTIONS_MAX, Health, Open, Served, connections_max,
        descriptors_max, serve_one,
    };
    use crate::telemetry::metrics::Metrics;
    use crate::telemetry::status::Facts;

    fn served() -> Arc<Served> {
        let health = Arc::new(Health::new(Arc::new(Metrics::new(&[]))));
        Arc::new(Served::new(health))
    }

    /// Whether its request is not whole, or it reads nothing of the answer.
    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_in_time_whatever_its_client_does() {
        let whole = ["/metrics", "/", "/events"];
        let whole = whole.map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        for sent in ["", "GET /metr"].into_iter().chain(whole.iter().map(String::as_str)) {
            // It holds a request, and no answer.
            let (ours, mut theirs) = duplex(64);
            theirs.write_all(sent.as_bytes()).await.unwrap();
            let asker = Asker { is_here: true };
            let served = timeout(CONNECTION_TIMEOUT * 2, serve_one(ours, served(), asker)).await;
            assert!(served.is_ok(), "open after twice the time: {sent:?}");
        }
    }

    /// I9: a key may stand for a row. Nobody else than this machine's command asks for one, unless
    /// `[http] keys` says so.
    #[tokio::test]
    async fn a_key_is_told_to_the_command_on_this_machine_or_to_all() {
        for (keys, is_here, host, expected) in [
            (false, true, "walsweep", "200"),
            (false, true, "127.0.0.1:9185", "403"),
            (false, true, "walsweep.example", "403"),
            (false, false, "walsweep", "403"),
            (true, false, "10.0.0.7:9185", "200"),
        ] {
            let health = Arc::new(Health::new(Arc::new(Metrics::new(&[]))));
            let (ours, mut theirs) = duplex(4096);
            let asked = format!("GET /why?key=item:1 HTTP/1.1\r\nHost: {host}\r\n\r\n");
            theirs.write_all(asked.as_bytes()).await.unwrap();
            health.shows(Facts::for_tests(keys));
            serve_one(ours, Arc::new(Served::new(health)), Asker { is_here }).await;
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
