//! The databases of a Redis, and whether the configured one is that which has the keys.

use std::collections::BTreeSet;

use redis::aio::MultiplexedConnection;
use redis::{IntoConnectionInfo, RedisError, cmd};

use super::redis_names::literal;
use super::{Code, Finding};
use crate::config::Target;
use crate::words::counted;

/// A database with no more keys than this may have walsweep's own alone.
const FEW: u64 = 100;

/// Databases that are named one by one, at most.
const NAMED_MAX: usize = 3;

/// How many keys the databases of a server have, as `INFO keyspace` tells
/// (<https://redis.io/docs/latest/commands/info/>).
pub(super) struct Databases {
    /// The number of the one that `redis.url` names.
    number: i64,
    /// Its keys.
    pub(super) own: u64,
    /// The others that have keys, by number, with how many.
    others: Vec<(i64, u64)>,
}

impl Databases {
    /// Asks the server; a database without keys has no line.
    ///
    /// # Errors
    ///
    /// The server's, which may not tell.
    pub(super) async fn read(
        target: &Target,
        connection: &mut MultiplexedConnection,
    ) -> Result<Databases, RedisError> {
        let url = target.redis.url.as_str().into_connection_info()?;
        let number = url.redis_settings().db();
        let info: String = cmd("INFO").arg("keyspace").query_async(connection).await?;
        let (own, others): (Vec<_>, Vec<_>) =
            info.lines().filter_map(line).partition(|(at, _)| *at == number);
        Ok(Databases { number, own: own.iter().map(|(_, keys)| keys).sum(), others })
    }
}

/// A database and its keys: `db0:keys=7,expires=0,avg_ttl=0`.
fn line(line: &str) -> Option<(i64, u64)> {
    let (number, rest) = line.strip_prefix("db")?.split_once(":keys=")?;
    let keys = rest.split(',').next()?.trim_end().parse().ok()?;
    Some((number.parse().ok()?, keys))
}

/// That the configured database has no keys but walsweep's own, and another one has some: then it
/// is perhaps not the one that the application uses, and nothing of that is ever removed. `None`
/// where that cannot be known.
pub(super) async fn elsewhere(
    target: &Target,
    connection: &mut MultiplexedConnection,
) -> Option<Finding> {
    let Databases { number, own, mut others } = Databases::read(target, connection).await.ok()?;
    others.retain(|(_, keys)| *keys > 0);
    if others.is_empty() || own > FEW || own != of_walsweep(target, own, connection).await.ok()? {
        return None;
    }
    others.sort_by_key(|(at, keys)| (std::cmp::Reverse(*keys), *at));
    let named = others.iter().take(NAMED_MAX);
    let mut named: Vec<String> =
        named.map(|(at, keys)| format!("database {at} has {}", counted(*keys, "key"))).collect();
    if others.len() > NAMED_MAX {
        named.push(format!("and {} more have some", others.len() - NAMED_MAX));
    }
    let but = if own > 0 { " but walsweep's own" } else { "" };
    let message =
        format!("database {number}, which is used, has no keys{but}; {}", named.join(", "));
    let hint = format!(
        "if the application caches in another one, let `redis.url` end with its number, such as \
         `/{}`: of other databases nothing is removed",
        others[0].0
    );
    Some(Finding::warning(Code::RedisDatabase, message).hint(hint))
}

/// How many of some few keys are walsweep's own.
async fn of_walsweep(
    target: &Target,
    keys: u64,
    connection: &mut MultiplexedConnection,
) -> Result<u64, RedisError> {
    let own = format!("{}walsweep:*", literal(&target.redis.prefix));
    let (mut cursor, mut found) = (0_u64, BTreeSet::new());
    loop {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(&own).arg("COUNT").arg(2 * FEW);
        let (next, more): (u64, Vec<Vec<u8>>) = scan.query_async(connection).await?;
        found.extend(more);
        if next == 0 || found.len() as u64 >= keys {
            return Ok(found.len() as u64);
        }
        cursor = next;
    }
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn a_line_of_info_tells_a_database_and_its_keys() {
        for (text, expected) in [
            ("db0:keys=7,expires=0,avg_ttl=0", Some((0, 7))),
            ("db15:keys=1200,expires=3,avg_ttl=0,subexpiry=0", Some((15, 1200))),
            ("db3:keys=2", Some((3, 2))),
            ("# Keyspace", None),
            ("dbx:keys=2", None),
            ("", None),
        ] {
            assert_eq!(line(text), expected, "{text}");
        }
    }
}
