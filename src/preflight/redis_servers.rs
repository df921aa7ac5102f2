//! The servers that a target's keys are in.

use super::redis_login::{of_target, unreachable};
use super::{Code, Finding};
use crate::config::{Mode, Target};
use crate::sweep::redis::{cluster, connect};
use crate::sweep::{Error, Kind, key_name};

/// The servers of a target, each as a target by itself: the primaries of a cluster, or the one that
/// there is.
///
/// # Errors
///
/// The cluster does not say who they are, or one of them is away.
pub async fn servers(target: &Target) -> Result<Vec<Target>, Finding> {
    if !matches!(target.redis.mode, Mode::Cluster { .. }) {
        return Ok(vec![target.clone()]);
    }
    let key = key_name(&target.redis.prefix, &target.slot);
    match cluster::each(&target.redis, &key).await {
        Ok(each) => {
            let each = each.into_iter();
            Ok(each.map(|(redis, _)| Target { redis, ..target.clone() }).collect())
        }
        Err(error) => Err(not_found(target, &error).await),
    }
}

/// Why the primaries could not be found out.
async fn not_found(target: &Target, error: &Error) -> Finding {
    // Of a server that is not reached, or lets nobody in, more can be said.
    if let Err(error) = connect::connect(&target.redis).await {
        return unreachable(target, &error);
    }
    let code = match error.kind() {
        Kind::NoPerm => Code::RedisPermission,
        Kind::Auth => Code::RedisLogin,
        Kind::Io | Kind::Timeout => Code::RedisUnreachable,
        _ => Code::RedisCluster,
    };
    let hint = error.hint().unwrap_or("`redis-cli --cluster check` tells how the cluster is");
    of_target(target, Finding::error(code, error.to_string()).hint(hint))
}
