//! Commands about one key each, and messages to a channel.

use redis::{Cmd, Pipeline, Value, cmd};

use super::{Standalone, shard};
use crate::sweep::redis::act::{Act, Answer};
use crate::sweep::redis::connect::classify;
use crate::sweep::redis::node::{Error, Kind};
use crate::sweep::redis::slots::slot_of;

/// A reply of a primary of a cluster.
pub(in crate::sweep::redis) enum Routed {
    Here(Value),
    /// Another primary has the slot.
    Moved,
    /// It may be on its way to this one.
    Ask(String),
}

impl Standalone {
    /// Runs commands in one round trip, counted as removals are: so what is read is of the server
    /// that was connected to.
    pub(super) async fn send_acts(&self, acts: &[Act<'_>]) -> Result<Vec<Answer>, Error> {
        let hidden = self.hidden();
        let mut pipeline = Pipeline::with_capacity(acts.len());
        for act in acts {
            // Of several servers one script knows one slot.
            let slot = slot_of(&self.prefix.add(act.key));
            let is_near = |member: &[u8]| slot_of(&self.prefix.add(member)) == slot;
            pipeline.add_command(
                act.command(&self.prefix, |member| hidden.is_none() || is_near(member)),
            );
        }
        let replies = self.send_linked(pipeline, acts.len()).await?;
        let answers = acts.iter().zip(replies).map(|(act, reply)| {
            let answer = act.answer(reply, 0);
            match &hidden {
                Some(hidden) => hidden.answered(&self.prefix.add(act.key), answer),
                None => answer,
            }
        });
        answers.collect()
    }

    /// Runs commands about keys of a cluster. `asking`: the keys may be on their way to here.
    pub(in crate::sweep::redis) async fn send_each(
        &self,
        commands: Vec<Cmd>,
        asking: bool,
    ) -> Result<Vec<Routed>, Error> {
        let mut pipeline = Pipeline::with_capacity(commands.len());
        let each = 1 + usize::from(asking);
        let count = commands.len() * each;
        for command in commands {
            if asking {
                pipeline.cmd("ASKING");
            }
            pipeline.add_command(command);
        }
        let replies = self.send_linked(pipeline, count).await?;
        let routed = |reply: Value| match &reply {
            Value::ServerError(error) if shard::is_elsewhere(error) && error.code() == "ASK" => {
                let words = error.details().map(str::split_ascii_whitespace);
                let to = words.and_then(Iterator::last).unwrap_or_default();
                Routed::Ask(to.to_owned())
            }
            Value::ServerError(error) if shard::is_elsewhere(error) => Routed::Moved,
            _ => Routed::Here(reply),
        };
        Ok(replies.into_iter().skip(each - 1).step_by(each).map(routed).collect())
    }

    /// Tells whoever listens on the channel of the configuration.
    pub(in crate::sweep::redis) async fn tell(&self, message: &str) -> Result<(), Error> {
        let Some(channel) = &self.redis.publish else { return Ok(()) };
        let mut connection = self.connections()?.remove;
        let mut publish = cmd("PUBLISH");
        publish.arg(channel).arg(message);
        publish.exec_async(&mut connection).await.map_err(|error| classify(&error))
    }

    /// Whether a key is one of walsweep's own, of whichever slot.
    pub(in crate::sweep::redis) fn has_own(&self, key: &[u8]) -> bool {
        key.starts_with(b"walsweep:") || self.own.has(&self.prefix.add(key))
    }

    /// An error of [`Kind::Io`] without a connection.
    pub(in crate::sweep::redis) fn not_connected() -> Error {
        Error::new(Kind::Io, "not connected".to_owned())
    }
}
