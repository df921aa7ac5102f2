//! A kit that the integration tests share: a sidecar as its operator runs it, SQL, and waiting.

#![allow(dead_code, unused_imports, reason = "a kit of tools: no test needs all of them")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "a test may fail")]

mod bed;
mod endpoint;
mod least;
mod load;
mod proxy;
mod sidecar;
mod swap;
mod tracking;

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::types::{FromSqlOwned, ToSql};
use walsweep_stage::throwaway::Postgres;

pub(crate) use self::bed::{Bed, ITEM_RULES};
pub(crate) use self::endpoint::{Endpoint, Eval, Keys, Scan, Spread, Tricks};
pub(crate) use self::least::KEEP_THEIR_LOGIN;
pub(crate) use self::load::Load;
pub(crate) use self::proxy::{Fault, Proxy, Way};
pub(crate) use self::sidecar::{Settings, Sidecar, text};
pub(crate) use self::swap::Swap;
pub(crate) use self::tracking::{tracking_id, trickle};

/// Who answers a test has so long: beyond that the test fails, and says what it asked, where it
/// would hang for good.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(600);

/// How long anything may take that should take milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How long to rest before the next look at something that is waited for since `start`: a
/// millisecond, and more the longer it takes, at most 100. Each look costs processor time that what
/// is waited for needs itself.
pub(crate) fn pause_since(start: Instant) -> Duration {
    (start.elapsed() / 16).clamp(Duration::from_millis(1), Duration::from_millis(100))
}

/// Asks until the answer is yes, ever more rarely ([`pause_since`]). Gives the time that it took;
/// panics with `what` when `limit` is over.
pub(crate) async fn eventually<F, A>(limit: Duration, what: &str, mut question: F) -> Duration
where
    F: FnMut() -> A,
    A: Future<Output = bool>,
{
    let start = Instant::now();
    loop {
        if question().await {
            return start.elapsed();
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        sleep(pause_since(start)).await;
    }
}

/// Asks a thousand times in `period` that the answer stays yes; at least every 25 ms, and not more
/// often than every millisecond.
pub(crate) async fn always<F, A>(period: Duration, what: &str, mut question: F)
where
    F: FnMut() -> A,
    A: Future<Output = bool>,
{
    let pause = (period / 1000).clamp(Duration::from_millis(1), Duration::from_millis(25));
    let start = Instant::now();
    while start.elapsed() < period {
        assert!(question().await, "after {:?} no longer: {what}", start.elapsed());
        sleep(pause).await;
    }
}

/// One session of a throwaway Postgres.
pub(crate) struct Sql(Client);

impl Sql {
    /// A new session of database `postgres`.
    pub(crate) async fn connect(server: &Postgres) -> Sql {
        Sql(server.connect().await.expect("the server runs"))
    }

    /// Runs statements, each in a transaction of its own unless they say otherwise.
    pub(crate) async fn run(&self, statements: &str) {
        match timeout(ANSWER_MAX, self.0.batch_execute(statements)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("{error:?}\n{statements}"),
            Err(_) => panic!("no answer within {ANSWER_MAX:?}\n{statements}"),
        }
    }

    /// The first column of the only row of a query.
    pub(crate) async fn one<T: FromSqlOwned>(&self, query: &str) -> T {
        self.one_of(query, &[]).await
    }

    /// Like [`Sql::one`], with parameters.
    pub(crate) async fn one_of<T>(&self, query: &str, params: &[&(dyn ToSql + Sync)]) -> T
    where
        T: FromSqlOwned,
    {
        match timeout(ANSWER_MAX, self.0.query_one(query, params)).await {
            Ok(Ok(row)) => row.get(0),
            Ok(Err(error)) => panic!("{error:?}\n{query}"),
            Err(_) => panic!("no answer within {ANSWER_MAX:?}\n{query}"),
        }
    }

    /// The driver's client.
    pub(crate) fn client(&self) -> &Client {
        &self.0
    }
}
