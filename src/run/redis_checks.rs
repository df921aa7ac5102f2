//! Whether the Redis of each target is one that a start, or a reload, goes on with.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::config::{Config, Target};
use crate::preflight::{self, Finding, Fitness};
use crate::sweep::redis::connect;
use crate::telemetry::Health;

/// How long each Redis may take to be looked at.
const REDIS_CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Everything that was found, of the targets that could be reached in time. One that cannot is
/// looked at when it comes.
pub(super) struct Checked {
    targets: Vec<Judged>,
    /// How many there are, reached or not.
    count: usize,
    /// Targets that are one.
    twice: Vec<Finding>,
}

struct Judged {
    name: String,
    /// Findings that concern every rule.
    of_all: Vec<Finding>,
    /// Rules whose keys may not be removed.
    of_rules: Vec<(String, Finding)>,
}

impl Checked {
    /// Why the program should not start. Of several targets one that is refused, or slow to log in,
    /// keeps none of the others from its keys: it is looked at again when its connection is made,
    /// and told of. What concerns one rule is a reason only if it `is_strict`.
    pub(super) fn refused_at_start(self, is_strict: bool) -> Vec<Finding> {
        let (mut findings, mut refused) = (Vec::new(), 0);
        for target in self.targets {
            let of_rules = target.of_rules.into_iter().map(|(_rule, finding)| finding);
            let before = findings.len();
            findings.extend(target.of_all);
            findings.extend(of_rules.filter(|_| is_strict));
            refused += usize::from(findings.len() > before);
        }
        if refused < self.count && !is_strict {
            findings.clear();
        }
        findings.extend(self.twice);
        findings
    }

    /// Why a new configuration should not be taken over: whatever is wrong with a target that it
    /// changes, or with keys of a rule that it changes. The rest is as it was.
    pub(super) fn refused_for(
        self,
        (is_changed, is_rule_changed): (impl Fn(&str) -> bool, impl Fn(&str) -> bool),
    ) -> Vec<Finding> {
        let mut findings = Vec::new();
        for target in self.targets {
            let is_changed = is_changed(&target.name);
            findings.extend(target.of_all.into_iter().filter(|_| is_changed));
            let of_rules = target.of_rules.into_iter();
            let of_rules = of_rules.filter(|(rule, _)| is_changed || is_rule_changed(rule));
            findings.extend(of_rules.map(|(_, finding)| finding));
        }
        findings.extend(self.twice);
        findings
    }
}

/// Looks at the Redis of each target, at once.
pub(super) async fn check(config: &Config, health: &Arc<Health>) -> Checked {
    let check_one = async |target: Target| {
        let fitness = Fitness::new(target.clone(), Arc::clone(health));
        match connect::connect(&target.redis).await {
            Ok(mut connection) => {
                Fitness::look_elsewhere(&target, &mut connection).await;
                let found = fitness.refusals(&mut connection).await;
                let place = preflight::place(&target, &mut connection).await;
                (found, place.map(|place| (target, place)))
            }
            Err(error) => {
                let refused = preflight::login_refused(&target, &error);
                ((refused.into_iter().collect(), Vec::new()), None)
            }
        }
    };
    let check = async |target: Target| {
        let name = target.redis.name.clone();
        let servers = match preflight::redis_servers(&target).await {
            Ok(servers) => servers,
            // One that can be reached later, or that a person has to mend: the first of its
            // servers says which.
            Err(_finding) => vec![target],
        };
        let all = join_all(servers.into_iter().map(&check_one)).await;
        let (findings, places): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let (of_all, of_rules): (Vec<_>, Vec<_>) = findings.into_iter().unzip();
        (Judged { name, of_all: of_all.concat(), of_rules: of_rules.concat() }, places)
    };
    let within = |target: Target| {
        let patience = match target.redis.is_alone {
            true => target.redis.password.patience(),
            false => Duration::ZERO,
        };
        timeout(REDIS_CHECK_TIMEOUT + patience, check(target))
    };
    let looked = join_all(config.targets().map(within)).await;
    let count = looked.len();
    let (targets, places): (Vec<Judged>, Vec<_>) = looked.into_iter().flatten().unzip();
    let twice = preflight::twice(places.into_iter().flatten().flatten());
    Checked { targets, count, twice }
}
