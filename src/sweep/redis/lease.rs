//! The optional in-key lease: functions in Redis that refuse a value read before a removal (I8).
//!
//! Takes: a connection to a primary. Gives: the library `lua/lease.lua` loaded, removed, or
//! compared with what is loaded. The lease is between the readers and Redis: the stages know
//! nothing of it, for a removal takes a marker like any value.

use std::collections::HashMap;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value, cmd};

use super::connect::classify;
use super::node::Kind;

/// The library's code, as `FUNCTION LOAD` takes it.
pub const LIBRARY: &str = include_str!("../../../lua/lease.lua");

/// The library's name, that of its first line.
const NAME: &str = "walsweep_lease";

/// Why the library could not be loaded or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server knows no functions.
    #[error("{action}: this server has no functions, the lease needs Redis 7.0 or newer")]
    Unsupported {
        /// The action that was tried.
        action: &'static str,
    },
    /// The ACL forbids it.
    #[error("{action}: the redis user lacks `{right}`")]
    Forbidden {
        /// The action that was tried.
        action: &'static str,
        /// The missing rule.
        right: &'static str,
    },
    /// Any other refusal, or a broken connection.
    #[error("{action}: {message}")]
    Redis {
        /// The action that was tried.
        action: &'static str,
        /// The error in words, as Redis or the connection gave it.
        message: String,
        /// Advice on what a person can do about it.
        hint: Option<&'static str>,
    },
}

impl Error {
    /// Says what a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::Unsupported { .. } => {
                Some("without the lease, `refill.window` bounds late fills")
            }
            Error::Forbidden { .. } => Some(
                "grant it, or do it as a user who may: `walsweep setup --lease --print | redis-cli \
                 -x FUNCTION LOAD REPLACE`, `redis-cli FUNCTION DELETE walsweep_lease`",
            ),
            Error::Redis { hint, .. } => *hint,
        }
    }

    fn new(action: &'static str, right: &'static str, error: &RedisError) -> Error {
        let detail = error.detail().unwrap_or_default();
        match error.code() {
            Some("NOPERM") => Error::Forbidden { action, right },
            Some("ERR") if detail.contains("unknown command") => Error::Unsupported { action },
            _ => {
                let class = classify(error);
                // What the others say is about removals.
                let is_here = matches!(class.kind(), Kind::ReadOnly | Kind::Auth | Kind::Io);
                let hint = class.hint().filter(|_| is_here);
                Error::Redis { action, message: error.to_string(), hint }
            }
        }
    }
}

/// The code that stands under the library's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// Nothing.
    Nothing,
    /// [`LIBRARY`].
    Current,
    /// Other code: that of another version.
    Other,
}

/// Loads [`LIBRARY`], in place of what stands under its name
/// (<https://redis.io/docs/latest/commands/function-load/>). Leases that are out stay good.
///
/// # Errors
///
/// See [`Error`]; what was loaded before stays.
pub async fn load(connection: &mut MultiplexedConnection) -> Result<(), Error> {
    let mut command = cmd("FUNCTION");
    command.arg("LOAD").arg("REPLACE").arg(LIBRARY);
    let loaded = command.exec_async(connection).await;
    loaded.map_err(|error| Error::new("load the lease functions", "+function|load", &error))
}

/// Removes the library, whatever its version; whether it was there. Readers that call its functions
/// get errors from then on.
///
/// # Errors
///
/// See [`Error`].
pub async fn delete(connection: &mut MultiplexedConnection) -> Result<bool, Error> {
    match cmd("FUNCTION").arg("DELETE").arg(NAME).exec_async(connection).await {
        Ok(()) => Ok(true),
        Err(error) if error.detail().is_some_and(|detail| detail.contains("not found")) => {
            Ok(false)
        }
        Err(error) => Err(Error::new("remove the lease functions", "+function|delete", &error)),
    }
}

/// Says which code is loaded.
///
/// # Errors
///
/// When Redis knows no functions, or does not tell this user.
pub async fn loaded(connection: &mut MultiplexedConnection) -> Result<Loaded, Error> {
    let mut list = cmd("FUNCTION");
    list.arg("LIST").arg("LIBRARYNAME").arg(NAME).arg("WITHCODE");
    let libraries: Vec<HashMap<String, Value>> = list
        .query_async(connection)
        .await
        .map_err(|error| Error::new("list the lease functions", "+function|list", &error))?;
    let code = libraries.first().and_then(|library| library.get("library_code"));
    Ok(match code {
        None => Loaded::Nothing,
        Some(Value::BulkString(code)) if code == LIBRARY.as_bytes() => Loaded::Current,
        Some(Value::VerbatimString { text, .. }) if text == LIBRARY => Loaded::Current,
        Some(_) => Loaded::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::{LIBRARY, NAME};

    #[test]
    fn the_code_has_the_name() {
        assert_eq!(LIBRARY.lines().next(), Some(&*format!("#!lua name={NAME}")));
    }
}
