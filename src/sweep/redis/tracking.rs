//! `CLIENT TRACKING`: Redis tells which keys are written
//! (<https://redis.io/docs/latest/commands/client-tracking/>).

use std::collections::HashMap;
use std::task::{Context, Poll, Waker};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, PushInfo, PushKind, Value, cmd};
use tokio::task::coop;

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
            use_up(keys.len());
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

/// Takes a unit for each name from what the task of the connection may do in one turn. When all is
/// used up, what else is there to be read waits until others on the thread had their turns: tokio's
/// sockets keep to that (<https://docs.rs/tokio/latest/tokio/task/coop/index.html>).
fn use_up(names: usize) {
    for _ in 0..names {
        if !coop::has_budget_remaining() {
            return;
        }
        if let Poll::Ready(unit) = coop::poll_proceed(&mut Context::from_waker(Waker::noop())) {
            unit.made_progress();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use redis::{PushInfo, PushKind, Value};

    use super::{Observer, Prefix, coop, hear, tells_every_write, tracking};
    use crate::config::{Fields, Located, Location, Redis, Rule};
    use crate::keys::{Pattern, Rules};

    /// Names come as bytes, with the target's prefix. Whatever else comes may have been one.
    #[test]
    fn what_is_not_a_name_leaves_no_index() {
        let redis = Redis { prefix: "p:".to_owned(), ..Redis::at("redis://h") };
        let rules = Rules::compile(&[Rule::for_tests("t", &["list:*"])]).unwrap();
        let heard = |kind: PushKind, data: Vec<Value>| {
            let index = Some((vec![Pattern::parse(b"list:*")], 1 << 20));
            let of = (&redis, "s");
            let observer = Observer::new(of, (&rules.everything(), 1 << 20), index);
            observer.scan_begins(None);
            observer.scanned(&[b"list:1".to_vec()], true);
            hear(&observer, &Prefix::of(&redis), &PushInfo { kind, data });
            observer.sort_in().now_or_never().unwrap();
            observer.list(b"", None, 9)
        };
        let names = |names: &[&[u8]]| {
            let names = names.iter().map(|name| Value::BulkString(name.to_vec()));
            vec![Value::Array(names.collect())]
        };
        let told = names(&[b"p:list:2", b"list:3", b"p:other", b"p:list:\xff\0"]);
        let known = heard(PushKind::Invalidate, told);
        assert_eq!(known.unwrap(), [&b"list:1"[..], b"list:2", b"list:\xff\0"]);
        for (kind, data) in [
            (PushKind::Invalidate, vec![Value::Nil]),
            (PushKind::Invalidate, vec![]),
            (PushKind::Invalidate, vec![Value::Array(vec![Value::Int(1)])]),
            (PushKind::Other("tracking-redir-broken".to_owned()), vec![]),
            (PushKind::Disconnection, vec![]),
        ] {
            assert_eq!(heard(kind.clone(), data), None, "{kind}");
        }
    }

    /// Whoever else is on the thread of the connection gets a turn before more names are read.
    #[tokio::test]
    async fn many_names_use_up_what_a_task_may_do_in_one_turn() {
        let rules = Rules::compile(&[Rule::for_tests("t", &["list:*"])]).unwrap();
        let redis = Redis::at("redis://h");
        let observer = Observer::new((&redis, "s"), (&rules.everything(), 1 << 20), None);
        let tell = |names: usize| {
            let names = (0..names).map(|at| Value::BulkString(format!("list:{at}").into_bytes()));
            let data = vec![Value::Array(names.collect())];
            hear(&observer, &Prefix::of(&redis), &PushInfo { kind: PushKind::Invalidate, data });
            coop::has_budget_remaining()
        };
        for _ in 0..2 {
            assert!(tell(1), "one name is a small part of it");
            assert!(!tell(1_000));
            tokio::task::yield_now().await;
        }
    }

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
