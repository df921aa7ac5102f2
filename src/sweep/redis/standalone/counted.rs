//! Removals that are counted on the server, and a watermark that moves only where the count is
//! right: the [`Chain`], as commands.

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, Value, cmd};
use tokio::task::unconstrained;

use super::{Standalone, shard};
use crate::sweep::proof::chain::{Chain, Link};
use crate::sweep::redis::connect::classify;
use crate::sweep::redis::node::{Error, Kind, Replaced};
use crate::sweep::redis::standing::WATERMARK_SIZE_MAX;

/// Writes the watermark key only if the value expected still stands there, and the number of the
/// [`Chain`]. A script, because it must be one step: with `SET … GET` the evidence of a loss would
/// be gone before it is seen. KEYS: the watermark, the number; ARGV: whether a value is expected,
/// that value, the new value, the number or nothing, how many bytes of a value count.
pub(super) const COMPARE_AND_SET: &str = "local standing = redis.pcall('get', KEYS[1]) \
     if type(standing) == 'table' then return standing end \
     if standing then standing = string.sub(standing, 1, ARGV[5]) end \
     local expected = false \
     if ARGV[1] == '1' then expected = ARGV[2] end \
     if standing ~= expected then return standing end \
     if ARGV[4] ~= '' and redis.pcall('get', KEYS[2]) ~= ARGV[4] then return -1 end \
     redis.call('set', KEYS[1], ARGV[3]) return 1";

/// Reads the reply to [`COMPARE_AND_SET`], if the number was right or none was compared.
pub(super) fn replaced(reply: Value) -> Result<Replaced, Error> {
    match reply {
        Value::Int(1) => Ok(Replaced::Yes),
        Value::Nil => Ok(Replaced::No(None)),
        Value::BulkString(standing) => Ok(Replaced::No(Some(standing))),
        _ => Err(Error::new(Kind::Other, "EVAL gave an unexpected reply".to_owned())),
    }
}

impl Standalone {
    /// `number` is what the chain says must stand.
    pub(super) async fn compare_and_set(
        &self,
        mut connection: MultiplexedConnection,
        number: Option<u64>,
        expected: Option<&[u8]>,
        value: &[u8],
    ) -> Result<Replaced, Error> {
        let mut eval = cmd("EVAL");
        let names = self.names();
        eval.arg(COMPARE_AND_SET).arg(2).arg(&names.watermark).arg(&names.number);
        eval.arg(u8::from(expected.is_some())).arg(expected.unwrap_or_default()).arg(value);
        eval.arg(number.map(|number| number.to_string()).unwrap_or_default());
        eval.arg(WATERMARK_SIZE_MAX);
        let reply = async {
            let reply = unconstrained(eval.query_async(&mut connection)).await;
            reply.map_err(|error| classify(&error))
        };
        match self.unless_left(reply).await? {
            Value::Int(-1) => Err(self.swapped()),
            reply => replaced(reply),
        }
    }

    /// The number is not what it should be. If Redis refused to write it meanwhile, that is why.
    fn swapped(&self) -> Error {
        if self.chain.borrow().as_ref().is_some_and(|chain| !chain.is_whole()) {
            return Error::new(Kind::Other, "removals could not be counted".to_owned());
        }
        let message = "redis shows fewer removals than it acknowledged on this connection";
        Error::new(Kind::Swapped, message.to_owned())
    }

    /// Sends so many commands that remove, and behind them the link of the chain. Gives the replies
    /// to the commands.
    pub(super) async fn send_linked(
        &self,
        mut pipeline: Pipeline,
        commands: usize,
    ) -> Result<Vec<Value>, Error> {
        let mut connection = self.connections()?.remove;
        // Nothing may come between this and the sending: links go in the order of their numbers.
        let link = self.chain.borrow_mut().as_mut().and_then(Chain::extend);
        if let Some(link) = link {
            pipeline.add_command(self.link(link));
        }
        let count = commands + usize::from(link.is_some());
        if count == 0 {
            return Ok(Vec::new());
        }
        let replies = async {
            let replies = unconstrained(connection.send_packed_commands(&pipeline, 0, count)).await;
            replies.map_err(|error| classify(&error))
        };
        let mut replies = self.unless_left(replies).await?;
        if replies.len() != count {
            let message = format!("{} replies to {count} commands", replies.len());
            return Err(Error::new(Kind::Io, message));
        }
        if let Some(link) = link {
            self.linked(link, replies.pop())?;
        }
        Ok(replies)
    }

    /// The command of a link.
    fn link(&self, link: Link) -> Cmd {
        let mut command = cmd(if matches!(link, Link::Set(_)) { "SET" } else { "INCR" });
        command.arg(&self.names.borrow().number);
        if let Link::Set(number) = link {
            command.arg(number);
        }
        command
    }

    /// Lets a number stand by which other connections see whether this data answers them. A
    /// cluster has one database, and its number may go away with a slot.
    pub(super) async fn show(&self) -> Result<(), Error> {
        let is_first = |chain: &Chain| chain.is_whole() && !chain.stands();
        if self.is_shard || !self.chain.borrow().as_ref().is_some_and(is_first) {
            return Ok(());
        }
        self.send_linked(Pipeline::new(), 0).await.map(drop)
    }

    /// The command that reads the number, if one stands.
    pub(super) fn shown(&self) -> Option<Cmd> {
        let stands = self.chain.borrow().as_ref().is_some_and(Chain::stands);
        let mut get = cmd("GET");
        get.arg(&self.names.borrow().number);
        (stands && !self.is_shard).then_some(get)
    }

    /// Whether what was read is a number of this connection.
    pub(super) fn is_shown(&self, number: &Value) -> bool {
        let number: Option<u64> = match number {
            Value::BulkString(text) => std::str::from_utf8(text).ok().and_then(|n| n.parse().ok()),
            Value::Nil => None,
            // Not every user may read it.
            _ => return true,
        };
        let chain = self.chain.borrow();
        let Some(chain) = chain.as_ref().filter(|chain| chain.stands()) else { return true };
        number.is_some_and(|number| chain.made(Link::Set(number)))
    }

    /// Judges the reply to a link.
    fn linked(&self, link: Link, reply: Option<Value>) -> Result<(), Error> {
        match (link, reply) {
            (Link::Set(_), Some(Value::Okay)) => {
                self.chain.borrow_mut().iter_mut().for_each(|chain| chain.acknowledged(link));
                Ok(())
            }
            (Link::Increase(number), Some(Value::Int(found)))
                if i64::try_from(number) == Ok(found) =>
            {
                Ok(())
            }
            (_, Some(Value::ServerError(error)))
                if self.is_shard && shard::is_elsewhere(&error) =>
            {
                // The number went away with its slot. It is begun anew under another name.
                self.chain.borrow_mut().take_if(|chain| chain.made(link));
                Ok(())
            }
            (_, Some(Value::ServerError(error))) => {
                let error = classify(&error.into());
                if error.kind().needs_reconnect() {
                    return Err(error);
                }
                // Out of memory, mostly. Keys can be removed, and are; nothing is covered.
                if let Some(chain) = self.chain.borrow_mut().as_mut() {
                    chain.refused();
                }
                Ok(())
            }
            _ => Err(self.swapped()),
        }
    }

    /// Removals were not counted. When they can be again, they are made again from the start, over
    /// a new connection; until then the error says why not.
    pub(super) async fn count_again(
        &self,
        mut connection: MultiplexedConnection,
    ) -> Result<Error, Error> {
        for link in [Link::Set(0), Link::Increase(1)] {
            let command = self.link(link);
            command.exec_async(&mut connection).await.map_err(|error| classify(&error))?;
        }
        let message = "removals that redis could not count are made again".to_owned();
        Ok(Error::Lost(message, Kind::Other))
    }
}
