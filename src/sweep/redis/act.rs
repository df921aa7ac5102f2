//! Commands about one key: what is removed inside of it, and what is read there page by page.

use redis::{Cmd, Value, cmd};

use super::connect::classify;
use super::node::{Error, Kind, Page};
use super::prefix::Prefix;

/// Takes out of a set or sorted set the members whose keys do not exist, in one step: a key that is
/// written, and then put into the set, is never without its entry. KEYS: the set, and the keys that
/// the members name; ARGV: the command that takes out, and the members.
const TRIM: &str = "local gone = {} \
     for at = 2, #KEYS do \
       if redis.call('exists', KEYS[at]) == 0 then gone[#gone + 1] = ARGV[at] end \
     end \
     if #gone == 0 then return 0 end \
     return redis.call(ARGV[1], KEYS[1], unpack(gone))";

/// A command about one key.
#[derive(Clone, Debug)]
pub struct Act<'a> {
    /// The key, as the rules know it.
    pub key: &'a [u8],
    /// The command.
    pub verb: Verb<'a>,
}

/// The deed that a command does with a key.
#[derive(Clone, Debug)]
pub enum Verb<'a> {
    /// `UNLINK`.
    Unlink,
    /// `HDEL` of these fields.
    Hdel(Vec<&'a [u8]>),
    /// `TYPE`.
    Type,
    /// A page of its fields or members.
    Scan(Inside, Turn<'a>),
    /// These members are taken out, if the keys that they name do not exist.
    Trim(Inside, Vec<&'a [u8]>),
}

/// The type of a key's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// A hash.
    Hash,
    /// A set.
    Set,
    /// A sorted set.
    SortedSet,
}

/// The arguments of a call of `HSCAN`, `SSCAN` or `ZSCAN`.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Where the last call ended; 0 to begin.
    pub cursor: u64,
    /// `COUNT`.
    pub count: usize,
    /// `MATCH`.
    pub pattern: Option<&'a [u8]>,
}

/// The answer to a command about one key.
#[derive(Debug)]
pub enum Answer {
    /// So many were there and are removed.
    Count(u64),
    /// The type of the key's value; `none` without one.
    Type(String),
    /// A page, and which server gave it: of another one the cursor means nothing.
    Page(Page, u64),
    /// The user may not do that, or the key's primary is away.
    Forbidden,
    /// The key is of another type.
    WrongType,
}

impl Act<'_> {
    /// The command as Redis gets it; `is_near` says which of the members that are to be taken out
    /// one script may be about.
    pub(super) fn command(&self, prefix: &Prefix, is_near: impl Fn(&[u8]) -> bool) -> Cmd {
        let name = prefix.add(self.key);
        match &self.verb {
            Verb::Unlink => cmd("UNLINK").arg(&*name).take(),
            Verb::Type => cmd("TYPE").arg(&*name).take(),
            Verb::Hdel(fields) => cmd("HDEL").arg(&*name).arg(fields).take(),
            Verb::Scan(inside, turn) => {
                let mut scan = cmd(inside.scan());
                scan.arg(&*name).arg(turn.cursor);
                if let Some(pattern) = turn.pattern {
                    scan.arg("MATCH").arg(pattern);
                }
                scan.arg("COUNT").arg(turn.count).take()
            }
            Verb::Trim(inside, members) => {
                let near: Vec<&[u8]> = members.iter().copied().filter(|one| is_near(one)).collect();
                let mut eval = cmd("EVAL");
                eval.arg(TRIM).arg(near.len() + 1).arg(&*name);
                for member in &near {
                    eval.arg(&*prefix.add(member));
                }
                eval.arg(inside.take_out()).arg(near).take()
            }
        }
    }

    /// Reads the reply that a server gave.
    pub(super) fn answer(&self, reply: Value, server: u64) -> Result<Answer, Error> {
        let reply = match reply {
            Value::ServerError(error) => {
                let error = classify(&error.into());
                return match (&self.verb, error.kind()) {
                    // The members stay. So says a script whose user may not do what is in it, too.
                    (Verb::Trim(..), _) if matches!(error, Error::Refused(..)) => {
                        tracing::debug!(%error, "members of an index are not taken out");
                        Ok(Answer::Forbidden)
                    }
                    (_, Kind::NoPerm) => Ok(Answer::Forbidden),
                    (_, Kind::WrongType) => Ok(Answer::WrongType),
                    _ => Err(error),
                };
            }
            reply => reply,
        };
        let answer = match &self.verb {
            Verb::Unlink | Verb::Hdel(_) | Verb::Trim(..) => {
                redis::from_redis_value(reply).map(Answer::Count)
            }
            Verb::Type => redis::from_redis_value(reply).map(Answer::Type),
            Verb::Scan(inside, _) => {
                let page = redis::from_redis_value::<(u64, Vec<Vec<u8>>)>(reply);
                page.map(|(cursor, names)| {
                    let step = if *inside == Inside::Set { 1 } else { 2 };
                    let keys = names.into_iter().step_by(step).collect();
                    Answer::Page(Page { cursor, keys }, server)
                })
            }
        };
        answer.map_err(|_other| Error::new(Kind::Other, "an unexpected reply".to_owned()))
    }
}

impl Inside {
    fn scan(self) -> &'static str {
        match self {
            Inside::Hash => "HSCAN",
            Inside::Set => "SSCAN",
            Inside::SortedSet => "ZSCAN",
        }
    }

    fn take_out(self) -> &'static str {
        match self {
            Inside::Hash => "hdel",
            Inside::Set => "srem",
            Inside::SortedSet => "zrem",
        }
    }
}
