//! The watermark as it stands, for whoever asks without taking part.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, cmd};
use tokio::time::timeout;

use super::connect::{classify, connect};
use super::node::{Error, Kind};
use crate::config;
use crate::sweep::proof::evidence::Watermark;

/// Reads so many bytes of the watermark at most. KEYS: the watermark; ARGV: the number of bytes.
/// An error is given back as it is: raised, it would lose its code in servers before 7.0.
pub(super) const BEGINNING: &str = "local standing = redis.pcall('get', KEYS[1]) \
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
    let mut read = cmd("EVAL");
    read.arg(BEGINNING).arg(1).arg(key).arg(WATERMARK_SIZE_MAX);
    read.query_async(connection).await
}

/// The watermark under this name, over a connection of its own; `None` if there is none, or
/// something that is none.
///
/// # Errors
///
/// Redis does not answer within 2 s, or refuses to.
pub async fn standing(redis: &config::Redis, key: &str) -> Result<Option<Watermark>, Error> {
    let asked = async {
        let mut connection = connect(redis).await?;
        read(&mut connection, key).await.map_err(|error| classify(&error))
    };
    let late = |_elapsed| {
        let message = format!("no answer in {} s", TIMEOUT.as_secs());
        Error::Lost(message, Kind::Timeout)
    };
    match timeout(TIMEOUT, asked).await.map_err(late)? {
        Ok(value) => Ok(value.as_deref().and_then(Watermark::from_value)),
        Err(error) if error.kind() == Kind::WrongType => Ok(None),
        Err(error) => Err(error),
    }
}
