//! The watermark as it stands, for whoever asks without taking part.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError, cmd};
use tokio::time::timeout;

use super::cluster;
use super::connect::{classify, connect};
use super::endpoint;
use super::node::{Error, Kind};
use super::standalone::details_key;
use crate::config::{self, Mode};
use crate::lsn::Lsn;
use crate::sweep::proof::chain::number_key;
use crate::sweep::proof::evidence::Watermark;
use crate::sweep::shared::digest_of;

/// Reads so many bytes of the watermark at most. KEYS: the watermark; ARGV: the number of bytes.
/// An error is given back as it is: raised, it would lose its code in servers before 7.0.
const BEGINNING: &str = "local standing = redis.pcall('get', KEYS[1]) \
     if type(standing) == 'table' then return standing end \
     return standing and string.sub(standing, 1, ARGV[1])";

/// Of a watermark so many bytes are read, far more than ours have: whoever can write the key may
/// leave 512 MB there. What stands behind them does not count.
pub(super) const WATERMARK_SIZE_MAX: usize = 1 << 20;

/// How long Redis may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Reads what stands under the watermark's name.
pub(super) async fn read(
    connection: &mut MultiplexedConnection,
    key: &str,
) -> Result<Option<Vec<u8>>, RedisError> {
    beginning(connection, key, WATERMARK_SIZE_MAX).await
}

/// Reads so many bytes of a value at most; `None` if there is none. Where there are no scripts an
/// empty one is none, too.
pub(super) async fn beginning(
    connection: &mut MultiplexedConnection,
    key: &str,
    bytes_max: usize,
) -> Result<Option<Vec<u8>>, RedisError> {
    let mut read = cmd("EVAL");
    read.arg(BEGINNING).arg(1).arg(key).arg(bytes_max);
    match read.query_async(connection).await {
        Err(error) if classify(&error).kind() == Kind::Unsupported => {
            let mut read = cmd("GETRANGE");
            read.arg(key).arg(0).arg(bytes_max.saturating_sub(1));
            match read.query_async::<Vec<u8>>(connection).await {
                Ok(found) => Ok(Some(found).filter(|found| !found.is_empty())),
                // Of the rights that `check` asks for.
                Err(_other) => cmd("GET").arg(key).query_async(connection).await,
            }
        }
        outcome => outcome,
    }
}

/// The watermark under this name, over a connection of its own; `None` if there is none, or
/// something that is none.
///
/// # Errors
///
/// Redis does not answer within 2 s, beside what `password_command` takes, or refuses to.
pub async fn standing(redis: &config::Redis, key: &str) -> Result<Option<Watermark>, Error> {
    find(redis, key, str::to_owned).await
}

/// The servers of a deployment, each as if it were by itself, and the name of its watermark.
async fn each(redis: &config::Redis, key: &str) -> Result<Vec<(config::Redis, String)>, Error> {
    match redis.mode {
        Mode::Cluster { .. } => cluster::each(redis, key).await,
        Mode::Standalone | Mode::Sentinel(_) => Ok(vec![(redis.clone(), key.to_owned())]),
    }
}

/// The first value that is a watermark, of the key `beside` that of each server.
async fn find(
    redis: &config::Redis,
    key: &str,
    beside: fn(&str) -> String,
) -> Result<Option<Watermark>, Error> {
    let asked = async {
        for (server, key) in each(redis, key).await? {
            let mut connection = connect(&server).await?;
            let found = read(&mut connection, &beside(&key)).await;
            match found.map_err(|error| classify(&error)) {
                Ok(Some(value)) => {
                    if let Some(mark) = Watermark::from_value(&value) {
                        return Ok(Some(mark));
                    }
                }
                Ok(None) => {}
                Err(error) if error.kind() == Kind::WrongType => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    };
    within(redis, asked).await
}

/// Name of the key that says which slot walsweep made, beside the watermark.
pub(super) fn made_key(watermark_key: &str) -> String {
    format!("{watermark_key}:made")
}

/// Notes where the slot stands that this process has just made: the watermark comes only after a
/// sweep of everything, and a process that is stopped before would leave a slot that nothing shows
/// to be walsweep's. It proves as much, until the slot moves.
///
/// # Errors
///
/// As with [`standing`].
pub async fn note_made(redis: &config::Redis, key: &str, made: &Watermark) -> Result<(), Error> {
    let asked = async {
        for (server, key) in each(redis, key).await? {
            let mut connection = connect(&server).await?;
            let mut note = cmd("SET");
            note.arg(made_key(&key)).arg(made.to_value());
            note.exec_async(&mut connection).await.map_err(|error| classify(&error))?;
        }
        Ok(())
    };
    within(redis, asked).await
}

/// Where the slot stood that walsweep made on the cluster with this `system_identifier`; `None` if
/// nothing is noted of one.
///
/// # Errors
///
/// As with [`standing`].
pub async fn made_at(
    redis: &config::Redis,
    key: &str,
    system_id: &str,
) -> Result<Option<Lsn>, Error> {
    let noted = find(redis, key, made_key).await?;
    Ok(noted.filter(|mark| mark.system_id == system_id).map(|mark| mark.lsn))
}

/// Bounds a question, the login included; a command that prints the password has a time of its own.
async fn within<T>(
    redis: &config::Redis,
    asked: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let limit = TIMEOUT + redis.password.patience();
    timeout(limit, asked).await.unwrap_or_else(|_elapsed| {
        let message = format!("no answer in {} s", limit.as_secs());
        Err(Error::Lost(message, Kind::Timeout))
    })
}

/// The outcome of [`forget`]: what it found, and did with it. What is not shown to be of the
/// cluster stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forgotten {
    /// The watermark was removed, with all that belongs to it.
    Removed,
    /// There was none.
    Nothing,
    /// The watermark is of the cluster with this `system_identifier`.
    Others(String),
    /// The value that stands under its name is no watermark.
    Unreadable,
    /// Without a watermark there is the number of removals, which does not tell whose it is.
    Number,
}

/// Removes what walsweep keeps for itself, the watermark of this name and all that belongs to it,
/// if that is of the Postgres cluster with this `system_identifier`. Several clusters may share a
/// Redis, and the names of their slots.
///
/// # Errors
///
/// Redis is not reached, or refuses.
pub async fn forget(redis: &config::Redis, key: &str, system_id: &str) -> Result<Forgotten, Error> {
    let mut all = Forgotten::Nothing;
    for (server, key) in each(redis, key).await? {
        match forget_at(&server, &key, system_id).await? {
            Forgotten::Nothing => {}
            Forgotten::Removed => all = Forgotten::Removed,
            stays => return Ok(stays),
        }
    }
    Ok(all)
}

/// Does so on one server.
async fn forget_at(redis: &config::Redis, key: &str, system_id: &str) -> Result<Forgotten, Error> {
    let mut connection = connect(redis).await?;
    let number_key = number_key(key);
    let value = match read(&mut connection, key).await.map_err(|error| classify(&error)) {
        Ok(Some(value)) => Some(value),
        // Read as the watermark is: the user need have no other right.
        Ok(None) => match is_made(&mut connection, key, system_id).await? {
            true => None,
            false => return without_watermark(&mut connection, &number_key).await,
        },
        Err(error) if error.kind() == Kind::WrongType => return Ok(Forgotten::Unreadable),
        Err(error) => return Err(error),
    };
    match value.as_deref().map(Watermark::from_value) {
        Some(None) => return Ok(Forgotten::Unreadable),
        Some(Some(mark)) if mark.system_id != system_id => {
            return Ok(Forgotten::Others(mark.system_id));
        }
        Some(Some(_)) | None => {}
    }
    let details = value.as_deref().and_then(digest_of).map(|digest| details_key(key, &digest));
    let beside = [key.to_owned(), number_key, made_key(key)];
    let mut unlink = Pipeline::new();
    // Each by itself: they may be on several servers, behind one address.
    for name in beside.into_iter().chain(details).chain(endpoint::marks(key)) {
        unlink.cmd("UNLINK").arg(name);
    }
    unlink.exec_async(&mut connection).await.map_err(|error| classify(&error))?;
    Ok(Forgotten::Removed)
}

/// Whether it was noted that walsweep made a slot on this cluster.
async fn is_made(
    connection: &mut MultiplexedConnection,
    key: &str,
    system_id: &str,
) -> Result<bool, Error> {
    let noted = read(connection, &made_key(key)).await.map_err(|error| classify(&error));
    let noted = match noted {
        Err(error) if error.kind() == Kind::WrongType => None,
        noted => noted?,
    };
    let mark = noted.as_deref().and_then(Watermark::from_value);
    Ok(mark.is_some_and(|mark| mark.system_id == system_id))
}

/// Says what is found where there is no watermark.
async fn without_watermark(
    connection: &mut MultiplexedConnection,
    number_key: &str,
) -> Result<Forgotten, Error> {
    match read(connection, number_key).await.map_err(|error| classify(&error)) {
        Ok(None) => Ok(Forgotten::Nothing),
        Ok(Some(_)) => Ok(Forgotten::Number),
        Err(error) if error.kind() == Kind::WrongType => Ok(Forgotten::Number),
        Err(error) => Err(error),
    }
}
