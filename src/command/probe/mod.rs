//! `walsweep probe`: proves the way of a removal, from a commit in Postgres to every Redis, while
//! walsweep runs.
//!
//! A key of its own, the [canary](crate::sweep::redis::canary), stands in every target; a
//! transaction names it by a [message](crate::keys), and is committed; then each target is watched
//! until the canary is gone. Nothing else of the database or of Redis is touched.

mod reason;
mod show;

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::CancelToken;

use self::reason::Reason;
use super::NAME;
use super::failure::{Failure, halted, print};
use super::load::of_running;
use crate::config::{Config, Target};
use crate::postgres::{self, Endpoint, Sql, cancel, connect_sql};
use crate::run::reload::Setting;
use crate::run::shutdown::Shutdown;
use crate::sweep::redis::canary::Canary;

/// The outcome of a probe: the object of `--json`.
#[derive(Debug, Serialize)]
struct Outcome {
    /// Whether the canary went from every target in time.
    gone: bool,
    /// The time that there was, in seconds.
    timeout_seconds: u64,
    /// The targets, in the order of the configuration; none where the probe did not come so far.
    targets: Vec<OfTarget>,
    /// Why it is not proven.
    #[serde(flatten)]
    reason: Option<Reason>,
}

/// The outcome at one target.
#[derive(Debug, Serialize)]
struct OfTarget {
    target: String,
    #[serde(flatten)]
    state: State,
}

/// The end of a canary, as far as it is known.
#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum State {
    /// It went, so many milliseconds after COMMIT had returned.
    Gone { after_ms: f64 },
    /// It was still there at the end.
    Stays,
    /// Nothing is known of it: this Redis was not reached, or refused.
    Unknown {
        error: String,
        #[serde(skip)]
        hint: Option<&'static str>,
    },
}

/// A probe, as far as it has come: all that has to be put away at its end, however that comes.
#[derive(Default)]
struct Probe {
    canaries: Vec<(String, Result<Canary, State>)>,
    /// A COMMIT that has not returned, and its server.
    unfinished: Option<(CancelToken, Endpoint)>,
}

/// The session that commits.
struct Session {
    sql: Sql,
    endpoint: Endpoint,
    pid: i32,
    nonce: String,
}

/// `walsweep probe`, which takes at most so many `seconds` from its COMMIT on.
///
/// # Errors
///
/// 78 for the configuration; 1 if it is not proven that every target loses its canary in time.
pub async fn probe(path: &Path, seconds: u64, json: bool) -> Result<(), Failure> {
    let Setting { config, .. } = of_running(path)?;
    if !config.postgres.probe {
        let hint = "add `probe = true` to `[postgres]` and run `walsweep reload`";
        let message = "`postgres.probe` is off: no walsweep looks for the message of a probe";
        return Err(Failure::halted(message.to_owned()).with_hint(Some(hint)));
    }
    let mut stop = Shutdown::by_signal("stopping", || ()).map_err(halted)?;
    let mut probe = Probe::default();
    let measured = tokio::select! {
        measured = probe.measure(&config, Duration::from_secs(seconds)) => measured,
        () = stop.requested() => Err(Reason::interrupted()),
    };
    probe.put_away().await;
    let (targets, reason) = match measured {
        Ok((targets, reason)) => (targets, reason),
        Err(reason) => (Vec::new(), Some(reason)),
    };
    let outcome = Outcome { gone: reason.is_none(), timeout_seconds: seconds, targets, reason };
    print(&if json { outcome.to_json() } else { outcome.to_string() })?;
    match outcome.reason {
        None => Ok(()),
        Some(_) if json => Err(Failure::told(1)),
        Some(Reason { reason, hint }) => Err(Failure::halted(reason).with_hint(hint)),
    }
}

impl Probe {
    /// Does it all; gives each target's outcome, and why it is not proven, if it is not.
    async fn measure(
        &mut self,
        config: &Config,
        limit: Duration,
    ) -> Result<(Vec<OfTarget>, Option<Reason>), Reason> {
        let mut session = Session::begin(config).await?;
        let placed = config.targets().map(|target| place(target, &session.nonce, limit));
        self.canaries = join_all(placed).await;
        if self.canaries.iter().all(|(_, canary)| canary.is_err()) {
            let targets = self.watch(Instant::now(), Instant::now()).await;
            return Ok((targets, Some(Reason::nothing_to_watch())));
        }
        let until = Instant::now() + limit;
        let committed = self.commit(&mut session, until).await?;
        let targets = self.watch(committed, until).await;
        let reason = reason::of(&targets, config, &session.sql).await;
        session.sql.close().await;
        Ok((targets, reason))
    }

    /// Commits the message; gives when COMMIT returned.
    async fn commit(&mut self, session: &mut Session, until: Instant) -> Result<Instant, Reason> {
        let (endpoint, pid) = (session.endpoint.clone(), session.pid);
        self.unfinished = Some((session.sql.cancel_token(), endpoint.clone()));
        let work = async {
            let transaction = session.sql.transaction().await?;
            let message = include_str!("../../../sql/probe_message.sql");
            transaction.execute(message, &[&session.nonce]).await?;
            transaction.commit().await?;
            Ok::<_, postgres::Error>(Instant::now())
        };
        let Ok(outcome) = timeout_at(until, work).await else {
            return Err(Reason::stuck(&endpoint, pid).await);
        };
        self.unfinished = None;
        outcome.map_err(|error| Reason::of_message(&error, &endpoint.user))
    }

    /// Watches all targets side by side.
    async fn watch(&mut self, since: Instant, until: Instant) -> Vec<OfTarget> {
        let watched = self.canaries.iter_mut().map(|(target, canary)| async move {
            let state = match canary {
                Ok(canary) => match canary.watch(since, until).await {
                    Ok(Some(after)) => State::Gone { after_ms: after.as_secs_f64() * 1e3 },
                    Ok(None) => State::Stays,
                    Err(error) => State::unknown(&error),
                },
                Err(State::Unknown { error, hint }) => {
                    State::Unknown { error: error.clone(), hint: *hint }
                }
                Err(State::Gone { .. } | State::Stays) => State::Stays,
            };
            OfTarget { target: target.clone(), state }
        });
        join_all(watched).await
    }

    /// Takes back the canaries that may be there, and ends a COMMIT that waits: its session would
    /// go on waiting in the server, for nobody.
    async fn put_away(&mut self) {
        let canaries = std::mem::take(&mut self.canaries).into_iter();
        join_all(canaries.filter_map(|(_, canary)| canary.ok()).map(Canary::take_back)).await;
        if let Some((token, endpoint)) = self.unfinished.take() {
            // If the server is out of reach, nothing is to be done about it from here.
            drop(cancel(token, &endpoint).await);
        }
    }
}

async fn place(target: Target, nonce: &str, limit: Duration) -> (String, Result<Canary, State>) {
    let placed = Canary::place(&target, nonce, limit).await;
    (target.redis.name, placed.map_err(|error| State::unknown(&error)))
}

impl State {
    fn unknown(error: &crate::sweep::Error) -> State {
        State::Unknown { error: error.to_string(), hint: error.hint() }
    }
}

impl Session {
    /// Logs in, and asks what has to be known.
    async fn begin(config: &Config) -> Result<Session, Reason> {
        let endpoint = &config.postgres.endpoint;
        let sql = connect_sql(endpoint, NAME).await.map_err(|error| Reason::of_login(&error))?;
        let asked = async {
            let row = sql.query_one(include_str!("../../../sql/probe.sql"), &[]).await?;
            Ok::<_, postgres::Error>((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
        };
        let (is_standby, pid, nonce) = asked.await.map_err(|error| Reason::of_login(&error))?;
        let endpoint = endpoint.only(sql.address());
        if is_standby {
            return Err(Reason::standby(&endpoint.address()));
        }
        Ok(Session { sql, endpoint, pid, nonce })
    }
}
