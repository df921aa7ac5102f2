//! The servers that a target's keys are in.

use super::redis::Needs;
use super::redis_login::of_target;
use super::{Code, Finding};
use crate::config::{Mode, Target};
use crate::sweep::redis::cluster;
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
        Err(error) => Err(not_found(target, &error)),
    }
}

/// Why the primaries could not be found out.
fn not_found(target: &Target, error: &Error) -> Finding {
    let code = match error.kind() {
        Kind::NoPerm => Code::RedisPermission,
        Kind::Auth => Code::RedisLogin,
        Kind::Io | Kind::Timeout => Code::RedisUnreachable,
        _ => Code::RedisCluster,
    };
    let cure = match error.kind() {
        Kind::NoPerm => Some(format!("on every node: {}", Needs::of(target).cure(false, false))),
        Kind::Auth => {
            let needs = Needs::of(target);
            Some(format!(
                "{}; on every node, where the user is not there, {} in `redis-cli` makes it{}",
                error.hint().unwrap_or_default(),
                needs.cure_anew(),
                needs.inside.members()
            ))
        }
        _ if error.to_string().contains(cluster::NOT_ONE) => {
            Some("leave `mode` out; or let `url` and `seeds` name nodes of a cluster".to_owned())
        }
        _ => None,
    };
    let hint = error.hint().unwrap_or("`redis-cli --cluster check` tells how the cluster is");
    let finding = Finding::error(code, error.to_string());
    of_target(target, finding.hint(cure.unwrap_or_else(|| hint.to_owned())))
}
