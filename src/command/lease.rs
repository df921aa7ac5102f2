//! `setup --lease` and `teardown --lease`: functions in Redis with which a late fill is refused.

use std::path::Path;

use super::failure::{Failure, halted, print};
use super::load::configuration;
use crate::sweep::redis::{connect, lease};

/// `walsweep setup --lease`.
///
/// # Errors
///
/// 78 for the configuration; 1 when Redis refuses.
pub async fn load_lease(path: &Path) -> Result<(), Failure> {
    let (config, _rules) = configuration(path)?;
    for redis in &config.redis {
        let mut connection = connect::connect(redis).await.map_err(halted)?;
        let loaded = lease::load(&mut connection).await;
        loaded.map_err(|error| halted(&error).with_hint(error.hint()))?;
        print(&format!("loaded the lease functions into {}\n", redis.title()))?;
    }
    Ok(())
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
    for redis in &config.redis {
        let mut connection = connect::connect(redis).await.map_err(halted)?;
        let removed = lease::delete(&mut connection).await;
        let removed = removed.map_err(|error| halted(&error).with_hint(error.hint()))?;
        let (title, what) = (redis.title(), "lease functions");
        print(&match removed {
            true => format!("removed the {what} from {title}\n"),
            false => format!("there are no {what} in {title}\n"),
        })?;
    }
    Ok(())
}
