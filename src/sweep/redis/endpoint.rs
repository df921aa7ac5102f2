//! One address behind which keys are on several servers: a managed serverless Redis, Envoy, a proxy
//! of another kind. What it lets clients do differs from one to the next, so that it is tried, on
//! keys of walsweep's own.
//!
//! How it is told from one server: `EVAL` runs where its first key is. A script that counts keys
//! whose slots lie far apart finds all of them on one server, and not all, or none for `CROSSSLOT`,
//! where they are on several. What splits commands of several keys by itself shows itself in that,
//! too, for no script can be split.
//!
//! Who spreads keys by another hash than that of slots sends names that differ in a digit or two
//! perhaps all to one server: many hashes, such as CRC-32, are linear. So the names end in what
//! SHA-256 gives, and are as unlike each other as names that were drawn.
//!
//! Nothing proves there that no removal is lost: the watermark is on one of the servers, and of
//! others that go back it shows nothing. So it says of itself there that it is no evidence.

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError, ServerError, ToRedisArgs, Value, cmd};
use sha2::{Digest, Sha256};

use super::connect::classify;
use super::node::{Error, Kind};
use super::slots::slot_of;

/// How many keys the script counts: a sample. Who spreads keys evenly to two servers hides from it
/// once in 32,768 times; a server with a sixteenth of the keys, or less, may well hide.
const PROBES: u16 = 16;

/// Counts those of its keys that it finds, by `GET`, which walsweep may do anyway; -1 where the
/// user may not.
const COUNT_THERE: &str = "local found = 0 \
     for _, key in ipairs(KEYS) do \
       local value = redis.pcall('get', key) \
       if type(value) == 'table' then return -1 end \
       if value then found = found + 1 end \
     end \
     return found";

/// How many keys SCAN has to show.
pub const MARKS: u16 = 64;

/// How long the keys of the script live where they cannot be removed, milliseconds.
const PROBE_TTL_MS: u32 = 10_000;

/// How long the keys live that SCAN has to show: longer than a pass.
const MARK_TTL_SECONDS: u32 = 3_600;

/// Names that are tried for keys of different slots.
const TRIES: u32 = 4_096;

/// Digits that make names unlike each other, two of each byte.
const DIGITS: usize = 16;

/// SCAN calls of `check`, and what each looks at: some ten milliseconds of the server's time.
const CALLS: (u32, u32) = (200, 500);

/// Everything that is known of what answers at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether its keys are on several servers.
    pub hides_shards: bool,
    /// Whether it refuses a command with keys of several slots (`CROSSSLOT`).
    pub is_strict: bool,
    /// Whether it runs scripts, without which nothing can be compared and set in one step.
    pub has_scripts: bool,
}

impl Default for Endpoint {
    /// One server, as any Redis is.
    fn default() -> Endpoint {
        Endpoint { hides_shards: false, is_strict: false, has_scripts: true }
    }
}

impl Endpoint {
    /// Whether a watermark there can be evidence of all removals.
    #[must_use]
    pub fn is_proven(self) -> bool {
        self.has_scripts && !self.hides_shards
    }

    /// Why it is not, in words.
    #[must_use]
    pub fn told(self) -> &'static str {
        match (self.hides_shards, self.is_strict) {
            (true, true) => "keys of several slots are refused in one command (CROSSSLOT)",
            (true, false) => "a script does not find all keys that are there",
            (false, _) => "it runs no scripts (EVAL)",
        }
    }
}

/// Finds out what answers on a connection; `watermark` is the name of the key there. Writes keys
/// that begin with that name, and removes them. A node of a cluster that is used as such counts as
/// one server.
///
/// # Errors
///
/// The connection is lost, or the server takes no commands at present.
pub async fn look_at(
    connection: &mut MultiplexedConnection,
    watermark: &str,
) -> Result<Endpoint, Error> {
    let names = names(watermark, "check", PROBES);
    let mut pipeline = Pipeline::new();
    for name in &names {
        pipeline.cmd("SET").arg(name).arg(1).arg("PX").arg(PROBE_TTL_MS);
    }
    pipeline.cmd("EVAL").arg(COUNT_THERE).arg(names.len()).arg(&names);
    pipeline.cmd("EVAL").arg("return 1").arg(1).arg(&names[0]);
    pipeline.cmd("UNLINK").arg(&names);
    let replies = connection.send_packed_commands(&pipeline, 0, names.len() + 3).await;
    let replies = replies.map_err(|error| classify(&error))?;
    let (sets, others) = replies.split_at(names.len().min(replies.len()));
    let [counted, script, unlinked] = others else {
        let message = format!("{} replies to {} commands", replies.len(), names.len() + 3);
        return Err(Error::new(Kind::Io, message));
    };
    let endpoint = judge(sets, counted, script, unlinked)?;
    if failure(unlinked).is_some_and(|error| error.code() == "CROSSSLOT") {
        let sent = send_each(connection, "UNLINK", &names).await;
        sent.map_err(|error| classify(&error))?;
    }
    Ok(endpoint)
}

/// Judges the replies to each SET, to the script that counts keys, to one that has one key, and to
/// the command that removes all.
fn judge(
    sets: &[Value],
    counted: &Value,
    script: &Value,
    unlinked: &Value,
) -> Result<Endpoint, Error> {
    let one = Endpoint::default();
    let all = || sets.iter().chain([counted, script, unlinked]);
    if all()
        .any(|reply| failure(reply).is_some_and(|error| ["MOVED", "ASK"].contains(&error.code())))
    {
        return Ok(one);
    }
    let written = sets.iter().filter(|reply| matches!(reply, Value::Okay)).count();
    let has_scripts = match failure(script).map(|error| classify(&error.clone().into())) {
        None => true,
        Some(lost @ Error::Lost(..)) if written == 0 => return Err(lost),
        // That a right is missing, or the server busy, says nothing of it.
        Some(error) => !is_refusal(&error),
    };
    let crosses = |reply: &Value| failure(reply).is_some_and(|error| error.code() == "CROSSSLOT");
    let is_strict = crosses(counted) || crosses(unlinked);
    let hides_shards = is_strict
        || is_mixed(sets)
        || match counted {
            Value::Int(count) => usize::try_from(*count).is_ok_and(|count| count < written),
            // One key is let through, and several are not.
            _ => {
                let error = failure(counted).map(|error| classify(&error.clone().into()));
                has_scripts && error.is_some_and(|error| is_refusal(&error))
            }
        };
    Ok(Endpoint { hides_shards, is_strict, has_scripts })
}

/// Whether a part of what was asked alike was done, and another was not: then some server is away,
/// loads its data or is a replica, and another is not.
fn is_mixed(sets: &[Value]) -> bool {
    let is_of_all = |error: &ServerError| {
        let kind = classify(&error.clone().into()).kind();
        matches!(kind, Kind::Oom | Kind::NoPerm | Kind::Misconf | Kind::NoReplicas | Kind::Busy)
    };
    sets.iter().any(|reply| matches!(reply, Value::Okay))
        && sets.iter().filter_map(failure).any(|error| !is_of_all(error))
}

/// Whether a script is refused for what it is.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), Kind::Other | Kind::Unsupported)
}

/// The error in a reply.
fn failure(reply: &Value) -> Option<&ServerError> {
    match reply {
        Value::ServerError(error) => Some(error),
        _ => None,
    }
}

/// Names of keys beside the watermark whose slots lie in as many equal parts of all. A hash tag in
/// the prefix gives all of them one slot; they still tell who spreads keys by their whole names.
pub(super) fn names(watermark: &str, kind: &str, count: u16) -> Vec<String> {
    let mut names = vec![None; usize::from(count)];
    let mut others = Vec::new();
    for number in 0..TRIES {
        let name = format!("{watermark}:{kind}:{}", unlike(number));
        let part = u32::from(slot_of(name.as_bytes())) * u32::from(count) / 16_384;
        let part = usize::try_from(part).ok().and_then(|part| names.get_mut(part));
        match part {
            Some(place @ None) => *place = Some(name),
            _ if others.len() < usize::from(count) => others.push(name),
            _ => {}
        }
        if names.iter().all(Option::is_some) {
            break;
        }
    }
    let found: Vec<String> = names.into_iter().flatten().collect();
    let missing = usize::from(count).saturating_sub(found.len());
    found.into_iter().chain(others.into_iter().take(missing)).collect()
}

/// Digits of a number that differ as if drawn from those of every other one.
fn unlike(number: u32) -> String {
    let digest = Sha256::digest(number.to_string());
    digest.iter().take(DIGITS / 2).map(|byte| format!("{byte:02x}")).collect()
}

/// Names of the keys that SCAN has to show.
pub(super) fn marks(watermark: &str) -> Vec<String> {
    names(watermark, "mark", MARKS)
}

/// Writes the keys that SCAN has to show, as far as their servers take them.
pub(super) async fn mark(
    connection: &mut MultiplexedConnection,
    watermark: &str,
) -> Result<(), RedisError> {
    let marks = marks(watermark);
    let mut pipeline = Pipeline::new();
    for name in &marks {
        pipeline.cmd("SET").arg(name).arg(1).arg("EX").arg(MARK_TTL_SECONDS);
    }
    connection.send_packed_commands(&pipeline, 0, marks.len()).await.map(drop)
}

/// Sends a command for each of these keys; nothing, for none. Gives the replies.
pub(super) async fn send_each(
    connection: &mut MultiplexedConnection,
    command: &str,
    names: &[impl ToRedisArgs],
) -> Result<Vec<Value>, RedisError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = Pipeline::with_capacity(names.len());
    for name in names {
        pipeline.cmd(command).arg(name);
    }
    connection.send_packed_commands(&pipeline, 0, names.len()).await
}

/// How many of these keys are there; an error of a server is an error.
pub(super) async fn count_there(
    connection: &mut MultiplexedConnection,
    names: &[String],
) -> Result<u64, RedisError> {
    let mut there = 0;
    for reply in send_each(connection, "GET", names).await? {
        there += match reply {
            Value::ServerError(error) => return Err(error.into()),
            Value::Nil => 0,
            _ => 1,
        };
    }
    Ok(there)
}

/// Of how many keys on different servers SCAN shows none; `None` where that takes too long to find
/// out. Writes the keys, which go after an hour.
///
/// # Errors
///
/// Those of the server.
pub async fn hidden_from_scan(
    connection: &mut MultiplexedConnection,
    watermark: &str,
) -> Result<Option<u64>, RedisError> {
    mark(connection, watermark).await?;
    let mut missing = marks(watermark);
    let (mut cursor, (calls, count)) = (b"0".to_vec(), CALLS);
    for _ in 0..calls {
        let mut scan = cmd("SCAN");
        scan.arg(&cursor).arg("MATCH").arg(format!("{}:mark:*", escaped(watermark)));
        scan.arg("COUNT").arg(count);
        let (next, names): (Vec<u8>, Vec<Vec<u8>>) = scan.query_async(connection).await?;
        missing.retain(|mark| !names.iter().any(|name| *name == mark.as_bytes()));
        if next == b"0" {
            return count_there(connection, &missing).await.map(Some);
        }
        cursor = next;
    }
    Ok(None)
}

/// A text as `MATCH` takes it for itself.
fn escaped(text: &str) -> String {
    let escape = |one: char| r"\*?[]".contains(one).then_some('\\').into_iter().chain([one]);
    text.chars().flat_map(escape).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use redis::{Value, parse_redis_value};

    use super::{Endpoint, MARKS, PROBES, judge, names, slot_of};

    fn reply(text: &str) -> Value {
        parse_redis_value(format!("{text}\r\n").as_bytes()).unwrap()
    }

    #[test]
    fn probes_lie_far_apart() {
        for count in [16, 64] {
            let names = names("walsweep:s", "check", count);
            let parts = names.iter().map(|name| slot_of(name.as_bytes()) / (16_384 / count));
            assert_eq!(parts.collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
        }
        let tagged = names("{a}walsweep:s", "check", 16);
        let slots: BTreeSet<u16> = tagged.iter().map(|name| slot_of(name.as_bytes())).collect();
        assert_eq!((tagged.len(), slots.len()), (16, 1), "all have the slot of the tag");
        let all: BTreeSet<&String> = tagged.iter().collect();
        assert_eq!(all.len(), 16, "each is another one");
    }

    /// Hashes by which proxies spread keys, of which many are linear: with names that differ in a
    /// digit or two, some put all on one server.
    #[test]
    fn no_usual_hash_puts_all_probes_on_one_server() {
        let fold =
            |start: u32, step: fn(u32, u8) -> u32| move |name: &str| name.bytes().fold(start, step);
        let crc32 = |crc: u32, byte: u8| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| {
                if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0xEDB8_8320 }
            })
        };
        let crc16 = |crc: u32, byte: u8| {
            (0..8).fold(crc ^ (u32::from(byte) << 8), |crc, _| {
                let next = crc << 1;
                (if crc & 0x8000 == 0 { next } else { next ^ 0x1021 }) & 0xFFFF
            })
        };
        let fnv1a = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(16_777_619);
        let hashes = [
            ("crc32", fold(u32::MAX, crc32)),
            ("crc16", fold(0, crc16)),
            ("fnv1a", fold(0x811C_9DC5, fnv1a)),
            ("djb2", fold(5_381, |hash, byte| hash.wrapping_mul(33) ^ u32::from(byte))),
            ("sum", fold(0, |sum, byte| sum + u32::from(byte))),
            ("xor", fold(0, |all, byte| all ^ u32::from(byte))),
            ("last", fold(0, |_, byte| u32::from(byte))),
        ];
        for watermark in ["walsweep:walsweep", "walsweep:s", "shop:walsweep:eu", "{a}walsweep:s"] {
            for (kind, count) in [("check", PROBES), ("mark", MARKS)] {
                let names = names(watermark, kind, count);
                for (hash_name, hash) in &hashes {
                    for servers in [2, 3, 4, 8] {
                        let places: BTreeSet<u32> =
                            names.iter().map(|name| hash(name) % servers).collect();
                        let what = format!("{watermark}:{kind}, {hash_name} % {servers}");
                        assert!(places.len() > 1, "{what}: all on one server");
                    }
                }
            }
        }
    }

    #[test]
    fn an_endpoint_is_known_by_what_it_answers() {
        let cross = "-CROSSSLOT Keys in request don't hash to the same slot";
        let unknown = "-ERR unknown command 'eval'";
        let known = |hides_shards, is_strict, has_scripts| {
            Some(Endpoint { hides_shards, is_strict, has_scripts })
        };
        for (counted, script, unlinked, expected) in [
            (":2", ":1", ":2", known(false, false, true)),
            (":1", ":1", ":2", known(true, false, true)),
            // The user may not read.
            (":-1", ":1", ":2", known(false, false, true)),
            (cross, ":1", cross, known(true, true, true)),
            // Split by the endpoint, which cannot split a script.
            (cross, ":1", ":2", known(true, true, true)),
            ("-ERR one key only", ":1", ":2", known(true, false, true)),
            (unknown, unknown, ":2", known(false, false, false)),
            (unknown, unknown, cross, known(true, true, false)),
            ("-NOPERM no", "-NOPERM no", ":2", known(false, false, true)),
            ("-BUSY a script", "-BUSY a script", ":2", known(false, false, true)),
            ("-MOVED 1 h:1", ":1", cross, known(false, false, true)),
        ] {
            let sets = [reply("+OK"), reply("+OK")];
            let replies = [counted, script, unlinked].map(reply);
            let judged = judge(&sets, &replies[0], &replies[1], &replies[2]).ok();
            assert_eq!(judged, expected, "{counted} {script} {unlinked}");
        }
        for (second, script) in [("-upstream failure", ":1"), ("-LOADING", "-LOADING")] {
            let sets = [reply("+OK"), reply(second)];
            let judged = judge(&sets, &reply(script), &reply(script), &reply(":1"));
            assert!(judged.unwrap().hides_shards, "{second}");
        }
        let nearly_full = [reply("+OK"), reply("-OOM full")];
        let judged = judge(&nearly_full, &reply(":1"), &reply(":1"), &reply(":1"));
        assert_eq!(judged.unwrap(), Endpoint::default());
        // Whoever takes no writes at all says nothing.
        let full = [reply("-OOM full"), reply("-OOM full")];
        let judged = judge(&full, &reply(":0"), &reply(":1"), &reply(":0"));
        assert_eq!(judged.unwrap(), Endpoint::default());
        let loads = [reply("-LOADING"), reply("-LOADING")];
        let judged = judge(&loads, &reply("-LOADING"), &reply("-LOADING"), &reply("-LOADING"));
        assert!(judged.is_err(), "{judged:?}");
    }
}
