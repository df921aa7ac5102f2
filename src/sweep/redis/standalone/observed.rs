//! Writes that the server tells of: for second removals, and for the index of live keys.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{PushInfo, cmd};
use tokio::time::Instant;

use super::{Connections, Standalone};
use crate::config;
use crate::keys::{KeySet, Pattern};
use crate::sweep::redis::connect::{ConnectError, connect, connect_with_pushes};
use crate::sweep::redis::node::{Error, Kind};
use crate::sweep::redis::observe::{Mark, Observer};
use crate::sweep::redis::prefix::Prefix;
use crate::sweep::redis::tracking::{hear, track};

/// PINGs, one after the other, until names of earlier writes are here; see [`observe`](super).
const FENCE_PINGS: usize = 2;

/// How often a right that was missing is looked for again.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// Which writes are to be observed, and what for.
pub(super) struct Observed {
    /// Keys whose writes Redis is asked to tell.
    pub(super) keys: KeySet,
    /// Memory of names of written keys, bytes.
    pub(super) bytes: usize,
    /// Whether they are for second removals.
    pub(super) is_for_refills: bool,
    /// Patterns the names of whose live keys are kept, and their memory, bytes.
    pub(super) index: Option<(Vec<Pattern>, usize)>,
}

/// That writes are to be observed, and are not.
pub(super) struct Unobserved {
    /// The reason, for people who look.
    why: String,
    /// The server, and when it was last asked: only for want of a right, which may be given while
    /// the connection stands. Whatever else is missing comes with another server.
    asked: Option<(config::Redis, Instant)>,
}

impl Unobserved {
    pub(super) fn told(&self) -> String {
        self.why.clone()
    }

    /// The server, if it is time to ask it again, which is noted.
    fn due(&mut self, now: Instant) -> Option<config::Redis> {
        let (server, asked_at) = self.asked.as_mut()?;
        if now < *asked_at + TRY_AGAIN {
            return None;
        }
        *asked_at = now;
        Some(server.clone())
    }
}

impl Standalone {
    /// Lets it observe which keys of `everything` are written, in so many bytes of names, if the
    /// server lets it.
    #[must_use]
    pub fn observing(self, everything: KeySet, bytes: usize) -> Standalone {
        let keys = everything.uncounted();
        let observed = Observed { keys, bytes, is_for_refills: true, index: None };
        Standalone { observed: Some(observed), ..self }
    }

    /// Lets it keep the names of all live keys that the patterns of a set match, if the server lets
    /// it, in `index_bytes`; and in `bytes` those that are written while keys are removed. Without
    /// a pattern there is no index.
    #[must_use]
    pub fn indexing(self, patterns: KeySet, index_bytes: usize, bytes: usize) -> Standalone {
        if !patterns.has_patterns() {
            return self;
        }
        let all = patterns.patterns().map(|(_, pattern)| pattern.clone()).collect();
        let keys = patterns.uncounted();
        let observed =
            self.observed.unwrap_or(Observed { keys, bytes, is_for_refills: false, index: None });
        let observed = Observed { index: Some((all, index_bytes)), ..observed };
        Standalone { observed: Some(observed), ..self }
    }

    /// The connection for removals, and what it observes.
    pub(super) async fn connect_to_remove(
        &self,
        server: &config::Redis,
    ) -> Result<(MultiplexedConnection, Option<Observer>), ConnectError> {
        let Some(Observed { keys, bytes, index, .. }) = &self.observed else {
            return Ok((connect(server).await?, None));
        };
        self.unobserved.replace(None);
        let observer = Observer::new((&self.redis, &self.slot), (keys, *bytes), index.clone());
        let heard = {
            let (observer, prefix) = (observer.clone(), Prefix::of(server));
            move |push: PushInfo| {
                hear(&observer, &prefix, &push);
                Ok::<(), std::convert::Infallible>(())
            }
        };
        let refused = match connect_with_pushes(server, heard).await {
            Ok(mut connection) => match track(&mut connection, keys, &self.prefix).await {
                Ok(()) => return Ok((connection, Some(observer))),
                Err(error) => error,
            },
            Err(error) => Error::from(error),
        };
        let connection = connect(server).await?;
        self.say_unobserved(server, &refused, index.is_some());
        Ok((connection, None))
    }

    /// Says why no writes are observed, and keeps the reason.
    fn say_unobserved(&self, server: &config::Redis, refused: &Error, has_index: bool) {
        let (text, hint) = match has_index {
            true => (
                "writes cannot be observed: there is no index, patterns are removed by SCAN",
                "needs Redis 6.2.5 or newer and the right `+client|tracking`: give it, and the \
                 index comes by itself within a minute; `sweep.index` set to false ends this \
                 warning",
            ),
            false => (
                "writes cannot be observed: every second removal takes all keys",
                "needs Redis 6.2.5 or newer and the right `+client|tracking`: give it, and it is \
                 tried again by itself within a minute; `refill.observe` set to false ends this \
                 warning",
            ),
        };
        tracing::warn!(node = self.name, error = %refused, hint, "{text}");
        let is_right = refused.kind() == Kind::NoPerm;
        let (why, asked) = match is_right {
            true => (
                format!("{refused}; give `+client|tracking`, it is tried again by itself"),
                Some((server.clone(), Instant::now())),
            ),
            false => (refused.to_string(), None),
        };
        self.unobserved.replace(Some(Unobserved { why, asked }));
    }

    /// Asks now and then whether a right that was missing is there by now. An error if it is:
    /// with the next connection writes are observed.
    pub(super) async fn look_for_right(&self) -> Result<(), Error> {
        let due = |one: &mut Unobserved| one.due(Instant::now());
        let server = self.unobserved.borrow_mut().as_mut().and_then(due);
        let (Some(server), Some(Observed { keys, .. })) = (server, &self.observed) else {
            return Ok(());
        };
        if self.hidden().is_some() {
            return Ok(());
        }
        // It changes nothing on a connection that tracks nothing, and needs the same right; so a
        // login, for which a password may have to be made, is not tried in vain.
        let mut off = cmd("CLIENT");
        off.arg("TRACKING").arg("OFF");
        if self.ask(&off).await.is_err() {
            return Ok(());
        }
        // The same steps as those that failed: else it would be connected for nothing every time.
        let deaf = |_push: PushInfo| Ok::<(), std::convert::Infallible>(());
        let Ok(mut connection) = connect_with_pushes(&server, deaf).await else { return Ok(()) };
        if track(&mut connection, keys, &self.prefix).await.is_err() {
            return Ok(());
        }
        let message = "the right `+client|tracking` is there now: writes are observed from the \
                       next connection on";
        Err(Error::Lost(message.to_owned(), Kind::Other))
    }

    /// Does not observe where one of several servers behind an address would tell.
    pub(super) async fn stop_observing(
        &self,
        server: &config::Redis,
        deaf: &Observer,
    ) -> Result<MultiplexedConnection, ConnectError> {
        let why = "one of several servers tells";
        tracing::warn!(node = self.name, "writes cannot be observed: {why}");
        deaf.close();
        self.unobserved.replace(Some(Unobserved { why: why.to_owned(), asked: None }));
        connect(server).await
    }

    /// Who observes writes on the connections that there are.
    pub(super) fn observer(&self) -> Option<Observer> {
        self.connections.borrow().as_ref()?.observer.clone()
    }

    /// Does without the index where the server does not tell its history: behind a proxy another
    /// one may answer, which was never asked to tell of writes.
    pub(super) fn leave_index(&self, observer: Option<&Observer>) {
        let Some(observer) = observer.filter(|one| one.indexed().is_some()) else { return };
        observer.without_index();
        let hint = "give the user `+info`; behind a proxy, see that it passes `INFO` on";
        let text = "the server does not tell its `master_replid`: there is no index, patterns are \
                    removed by SCAN";
        tracing::warn!(node = self.name, hint, "{text}");
        // For second removals they are observed all the same.
        if !self.observed.as_ref().is_some_and(|observed| observed.is_for_refills) {
            let why = "the server does not tell its `master_replid`: give the user `+info`";
            self.unobserved.replace(Some(Unobserved { why: why.to_owned(), asked: None }));
        }
    }

    /// Waits until the names of all writes before are known, and in the index if there is one.
    pub(super) async fn wait_for_names(&self) -> Result<(), Error> {
        let Connections { remove, history, .. } = self.connections()?;
        for _ in 0..FENCE_PINGS {
            self.ask_the_same(cmd("PING"), remove.clone(), history.clone()).await?;
        }
        self.sort_in().await;
        Ok(())
    }

    /// Sorts into the index what has come until now.
    pub(super) async fn sort_in(&self) {
        if let Some(observer) = self.observer() {
            observer.sort_in().await;
        }
    }

    /// Who has an index, and this moment.
    pub(super) fn indexer(&self) -> Option<(Observer, Mark)> {
        let observer = self.observer().filter(|observer| observer.indexed().is_some())?;
        let mark = observer.mark();
        Some((observer, mark))
    }
}
