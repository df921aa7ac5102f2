//! `setup --lease` and `teardown --lease`: functions in Redis with which a late fill is refused.

use std::path::Path;

use super::failure::{Failure, Told, halted, print};
use super::load::configuration;
use crate::config::{Config, Redis};
use crate::preflight;
use crate::sweep::redis::{connect, lease};

/// `walsweep setup --lease`.
///
/// # Errors
///
/// 78 for the configuration; 1 when Redis refuses.
pub async fn load_lease(path: &Path) -> Result<(), Failure> {
    let (config, _rules) = configuration(path)?;
    let mut told = Told::default();
    for (redis, servers) in each(&config).await? {
        for server in servers {
            let mut connection = connect::connect(&server).await.map_err(halted)?;
            let loaded = lease::load(&mut connection).await;
            loaded.map_err(|error| halted(&error).with_hint(error.hint()))?;
        }
        told.print(&format!("loaded the lease functions into {}\n", redis.title()));
    }
    told.end()
}

/// `walsweep setup --lease --print`: what `redis-cli -x FUNCTION LOAD REPLACE` reads.
///
/// # Errors
///
/// 1 when standard output is closed.
pub fn print_lease() -> Result<(), Failure> {
    print(lease::LIBRARY)
}

/// `walsweep teardown --lease`.
///
/// # Errors
///
/// 78 for the configuration; 1 when Redis refuses.
pub async fn drop_lease(path: &Path) -> Result<(), Failure> {
    let (config, _rules) = configuration(path)?;
    let mut told = Told::default();
    for (redis, servers) in each(&config).await? {
        let mut removed = false;
        for server in servers {
            let mut connection = connect::connect(&server).await.map_err(halted)?;
            let outcome = lease::delete(&mut connection).await;
            removed |= outcome.map_err(|error| halted(&error).with_hint(error.hint()))?;
        }
        let (title, what) = (redis.title(), "lease functions");
        told.print(&match removed {
            true => format!("removed the {what} from {title}\n"),
            false => format!("there are no {what} in {title}\n"),
        });
    }
    told.end()
}

/// Each Redis of the configuration, with its servers: of a cluster the primaries, for a replica
/// takes the functions from its primary.
async fn each(config: &Config) -> Result<Vec<(Redis, Vec<Redis>)>, Failure> {
    let mut all = Vec::new();
    for target in config.targets() {
        let servers = preflight::redis_servers(&target)
            .await
            .map_err(|finding| Failure::halted(finding.message).with_hint(finding.hint))?;
        all.push((target.redis, servers.into_iter().map(|server| server.redis).collect()));
    }
    Ok(all)
}
