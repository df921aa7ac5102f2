//! Two targets that are one: the same database, reached by two addresses, under the same prefix.

use std::collections::{BTreeMap, BTreeSet};

use redis::aio::MultiplexedConnection;
use redis::{IntoConnectionInfo, cmd};

use super::{Code, Finding};
use crate::config::Target;

/// Where the keys of a target are: the server's `run_id`, the number of the database, the prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    run_id: String,
    database: i64,
    prefix: String,
}

/// Finds out where the keys of a target are; `None` where the server does not tell.
pub async fn place(target: &Target, connection: &mut MultiplexedConnection) -> Option<Place> {
    let info: String = cmd("INFO").arg("server").query_async(connection).await.ok()?;
    let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:"))?.trim_end();
    let url = target.redis.url.as_str().into_connection_info().ok()?;
    let (run_id, prefix) = (run_id.to_owned(), target.redis.prefix.clone());
    Some(Place { run_id, database: url.redis_settings().db(), prefix })
}

/// An error for each target that is another one by another address: each would take the watermark
/// of the other for evidence of a loss, and sweep again and again.
#[must_use]
pub fn twice(places: impl IntoIterator<Item = (Target, Place)>) -> Vec<Finding> {
    let (mut known, mut findings) = (BTreeMap::new(), Vec::new());
    // Two clusters may have several servers in common.
    let mut told = BTreeSet::new();
    for (target, place) in places {
        let title = target.redis.title();
        match known.get(&place) {
            Some(first) if !told.insert((title.clone(), String::clone(first))) => {}
            Some(first) => {
                let message = format!(
                    "{title} is the database of {first}, by another address: both would \
                             keep their watermark under one name there, and sweep for ever"
                );
                let hint = "keep one of them, with the `rules` of both, or give one another \
                            `prefix`";
                findings.push(Finding::error(Code::RedisTwice, message).hint(hint));
            }
            None => drop(known.insert(place, title)),
        }
    }
    findings
}
