//! `CLIENT TRACKING`: Redis tells which keys are written
//! (<https://redis.io/docs/latest/commands/client-tracking/>).

use std::collections::HashMap;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, PushInfo, PushKind, Value, cmd};

use super::connect::classify;
use super::node::{Error, Kind};
use super::observe::{Observer, prefixes};
use super::prefix::Prefix;
use crate::keys::KeySet;

/// Turns tracking on, if the server tells every write that follows one of our own. Redis before
/// 6.2.5 took the first client that touched a key in a turn for the last, and kept such a write to
/// itself (<https://github.com/redis/redis/pull/9116>).
pub(super) async fn track(
    connection: &mut MultiplexedConnection,
    everything: &KeySet,
    prefix: &Prefix,
) -> Result<(), Error> {
    let hello: HashMap<String, Value> =
        cmd("HELLO").query_async(connection).await.map_err(|error| classify(&error))?;
    let version = match hello.get("version") {
        Some(Value::BulkString(version)) => std::str::from_utf8(version).unwrap_or("unknown"),
        Some(Value::SimpleString(version)) => version,
        _ => "unknown",
    };
    if !tells_every_write(version) {
        let message = format!("the version of the server is {version}");
        return Err(Error::new(Kind::Other, message));
    }
    tracking(everything, prefix).exec_async(connection).await.map_err(|error| classify(&error))
}

/// Whether a server of this version is 6.2.5 or newer; one that cannot be read is not.
fn tells_every_write(version: &str) -> bool {
    let parts: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
    parts.is_some_and(|parts| parts.as_slice() >= [6, 2, 5].as_slice())
}

/// `CLIENT TRACKING` for all writes of these keys but those of the connection itself. Where rules
/// take something out of keys, for those, too: `NOLOOP` leaves a key out if the connection was the
/// last to touch it in a turn, and such a key lives on with what somebody wrote in that turn.
fn tracking(everything: &KeySet, own: &Prefix) -> Cmd {
    let mut tracking = cmd("CLIENT");
    tracking.arg("TRACKING").arg("ON").arg("BCAST");
    if !everything.may_have_items() {
        tracking.arg("NOLOOP");
    }
    let prefixes = prefixes(everything);
    let prefixes = prefixes.iter().map(|prefix| own.add(prefix));
    for prefix in prefixes.filter(|prefix| !prefix.is_empty()) {
        tracking.arg("PREFIX").arg(&*prefix);
    }
    tracking
}

/// Tells the observer what Redis sends unasked: names of keys, or that there was a flush, which has
/// none. Whatever is not understood may have been a name.
pub(super) fn hear(observer: &Observer, prefix: &Prefix, push: &PushInfo) {
    match (&push.kind, push.data.as_slice()) {
        (PushKind::Invalidate, [Value::Array(keys)]) => {
            for key in keys {
                match key {
                    Value::BulkString(key) => {
                        prefix.strip(key).into_iter().for_each(|key| observer.wrote(key));
                    }
                    _ => observer.lose(),
                }
            }
        }
        (PushKind::Disconnection, _) => observer.close(),
        _ => observer.lose(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Prefix, tells_every_write, tracking};
    use crate::config::{Fields, Located, Location, Redis, Rule};
    use crate::keys::Rules;

    /// `HDEL` leaves the key with what the application wrote in the same turn.
    #[test]
    fn own_writes_are_told_where_keys_outlive_them() {
        let of = |rule: &Rule| {
            let everything = Rules::compile(std::slice::from_ref(rule)).unwrap().everything();
            let command = tracking(&everything, &Prefix::of(&Redis::at("redis://h")));
            let packed = command.get_packed_command();
            packed.windows(6).any(|bytes| bytes == b"NOLOOP")
        };
        let mut rule = Rule::for_tests("t", &["user:*"]);
        assert!(of(&rule));
        let text = |value: &str| Located { value: value.to_owned(), at: Location::default() };
        rule.fields = vec![Fields { key: text("user:{id}"), fields: vec![text("a")] }];
        assert!(!of(&rule));
    }

    #[test]
    fn only_servers_that_tell_every_write_are_observed() {
        for version in ["6.2.5", "6.2.14", "7.0.15", "8.0.0", "255.255.255"] {
            assert!(tells_every_write(version), "{version}");
        }
        for version in ["6.2.4", "6.0.16", "5.0.14", "unknown", "7", ""] {
            assert_eq!(tells_every_write(version), version == "7", "{version}");
        }
    }
}
