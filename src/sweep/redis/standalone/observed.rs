//! Writes that the server tells of: for second removals, and for the index of live keys.

use redis::aio::MultiplexedConnection;
use redis::{PushInfo, cmd};

use super::{Connections, Standalone};
use crate::config;
use crate::keys::{KeySet, Pattern};
use crate::sweep::redis::connect::{ConnectError, connect, connect_with_pushes};
use crate::sweep::redis::node::Error;
use crate::sweep::redis::observe::{Mark, Observer};
use crate::sweep::redis::prefix::Prefix;
use crate::sweep::redis::tracking::{hear, track};

/// PINGs, one after the other, until names of earlier writes are here; see [`observe`](super).
const FENCE_PINGS: usize = 2;

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
        let (text, hint) = match index {
            Some(_) => (
                "writes cannot be observed: there is no index, patterns are removed by SCAN",
                "needs Redis 6.2.5 or newer and the right `+client|tracking`; `sweep.index` set \
                 to false ends this warning",
            ),
            None => (
                "writes cannot be observed: every second removal takes all keys",
                "needs Redis 6.2.5 or newer and the right `+client|tracking`; `refill.observe` \
                 set to false ends this warning",
            ),
        };
        tracing::warn!(node = self.name, error = %refused, hint, "{text}");
        Ok((connection, None))
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
