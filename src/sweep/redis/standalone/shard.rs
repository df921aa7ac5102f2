//! A primary of a cluster: its own keys have names that change with its slots, and keys may be with
//! another one.

use std::cell::RefCell;

use redis::{Cmd, Pipeline, ServerError, Value, cmd};

use super::{Connections, Standalone, removed_count};
use crate::config;
use crate::sweep::proof::chain::number_key;
use crate::sweep::redis::connect::classify;
use crate::sweep::redis::node::{Error, Kind, Node};

/// Names of the keys that tell of removals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sweep::redis) struct Names {
    pub(in crate::sweep::redis) watermark: String,
    /// Beside it, the number of the chain.
    pub(in crate::sweep::redis) number: String,
}

impl Names {
    /// The watermark has this name.
    pub(in crate::sweep::redis) fn of(watermark: String) -> Names {
        Names { number: number_key(&watermark), watermark }
    }
}

/// How the removal of a key of a cluster came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sweep::redis) enum Outcome {
    /// It is not there any more; so many were.
    Removed(u64),
    /// The user may not remove it.
    Forbidden,
    /// Another primary has its slot.
    Moved,
    /// It may be on its way to this one, by host and port, which takes it with `ASKING`.
    Ask(String),
}

impl Standalone {
    /// A primary of a cluster, whose own keys have these names.
    pub(in crate::sweep::redis) fn shard(
        redis: &config::Redis,
        slot: &str,
        names: Names,
    ) -> Standalone {
        let names = RefCell::new(names);
        Standalone { names, is_shard: true, ..Standalone::new(redis, slot) }
    }

    /// Whether removals are counted: not since the number went away with its slot.
    pub(in crate::sweep::redis) fn is_counted(&self) -> bool {
        self.chain.borrow().is_some()
    }

    /// Its own keys have these names; none of them was read or written yet.
    pub(in crate::sweep::redis) fn named(&self, names: Names) {
        self.names.replace(names);
    }

    /// The id of the history of the server that it is connected to, if that is known.
    pub(in crate::sweep::redis) fn history(&self) -> Option<String> {
        self.connections.borrow().as_ref()?.history.clone()
    }

    /// Removes keys of a cluster, by their whole names, each with a command of its own: together
    /// they may be of one slot alone. `asking`: they may be on their way to here.
    pub(in crate::sweep::redis) async fn unlink_each(
        &self,
        names: &[&[u8]],
        asking: bool,
    ) -> Result<Vec<Outcome>, Error> {
        let mut pipeline = Pipeline::with_capacity(names.len());
        for name in names {
            if asking {
                pipeline.cmd("ASKING");
            }
            pipeline.cmd("UNLINK").arg(*name);
        }
        let each = 1 + usize::from(asking);
        let indexer = self.indexer();
        let replies = self.send_linked(pipeline, names.len() * each).await?;
        let mut of_asking = replies.iter().step_by(each).filter(|_| asking);
        if of_asking.any(|reply| matches!(reply, Value::ServerError(_))) {
            let message = "ASKING is refused: the user needs `+asking`".to_owned();
            return Err(Error::Refused(message, Kind::NoPerm));
        }
        let replies = replies.into_iter().skip(each - 1).step_by(each);
        let outcomes: Vec<Outcome> = replies.map(outcome).collect::<Result<_, _>>()?;
        if let Some((observer, mark)) = indexer {
            let is_gone = |outcome: &Outcome| matches!(outcome, Outcome::Removed(_));
            let gone = names.iter().zip(&outcomes).filter(|(_, outcome)| is_gone(outcome));
            observer.gone(gone.filter_map(|(name, _)| self.prefix.strip(name)), &mark);
        }
        Ok(outcomes)
    }

    /// Whatever its index knows may not be all.
    pub(in crate::sweep::redis) fn lose_index(&self) {
        if let Some(observer) = self.observer() {
            observer.lose();
        }
    }

    /// Runs a command that neither removes nor depends on a key.
    pub(in crate::sweep::redis) async fn ask(&self, command: &Cmd) -> Result<Value, Error> {
        let mut connection = self.connections()?.scan;
        command.query_async(&mut connection).await.map_err(|error| classify(&error))
    }

    /// Its own keys have other names from now on, because the slot of those before is not here any
    /// more, or not for long. That no removal was lost up to now, the chain shows that ends here,
    /// or else that the same server answers with the same history. Gives the value that stands
    /// under the new name.
    pub(in crate::sweep::redis) async fn rename(
        &self,
        names: Names,
    ) -> Result<Option<Vec<u8>>, Error> {
        let Connections { remove, history, .. } = self.connections()?;
        self.ask_the_same(cmd("PING"), remove, history).await?;
        self.names.replace(names);
        self.watermark().await
    }
}

/// Whether an error says that a slot is with another primary, or on its way there.
pub(super) fn is_elsewhere(error: &ServerError) -> bool {
    ["MOVED", "ASK", "TRYAGAIN"].contains(&error.code())
}

/// A reply to UNLINK, read.
fn outcome(reply: Value) -> Result<Outcome, Error> {
    match &reply {
        // `MOVED 3999 127.0.0.1:6381`, and `ASK` alike.
        Value::ServerError(error) if error.code() == "MOVED" => Ok(Outcome::Moved),
        Value::ServerError(error) if error.code() == "ASK" => {
            let to = error.details().and_then(|details| details.split_ascii_whitespace().last());
            Ok(Outcome::Ask(to.unwrap_or_default().to_owned()))
        }
        _ => Ok(removed_count(reply)?.map_or(Outcome::Forbidden, Outcome::Removed)),
    }
}
