//! Whether a Redis that `run` has connected to is one that `check` would pass.
//!
//! The server behind an address may be exchanged, and a right may be taken away, while walsweep
//! runs. So it is looked at when the program starts and whenever a connection is made. What
//! concerns all rules, or makes the server one whose removals count for nothing, is told under
//! [`Topic::RedisChecks`]; a right that one rule lacks under [`Topic::Refused`]: the other rules go
//! on.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::time::sleep;

use super::redis::{Judged, Needs};
use super::redis_login::of_target;
use super::{Code, Finding};
use crate::config::{Mode, Target};
use crate::sweep::redis::connect::connect;
use crate::telemetry::{Health, Topic};

/// While something is told, the server is asked this often whether it is cured.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Looks at the Redis of a target, and tells what is wrong with it.
#[derive(Debug)]
pub struct Fitness {
    target: Target,
    needs: Needs,
    health: Arc<Health>,
    /// The topics that are told now.
    told: RefCell<BTreeSet<Topic>>,
}

/// Takes back what it told: the next session's looks for itself.
impl Drop for Fitness {
    fn drop(&mut self) {
        self.health.forget(|topic| self.told.borrow().contains(topic));
    }
}

impl Fitness {
    /// Tells `health` about the Redis of this target.
    #[must_use]
    pub fn new(target: Target, health: Arc<Health>) -> Fitness {
        let needs = Needs::of(&target);
        Fitness { target, needs, health, told: RefCell::default() }
    }

    /// Gives the target.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Why the program should not go on with the server of this connection: for what concerns every
    /// rule, and for what concerns one, with its name. What may pass by itself, such as a full
    /// memory, is no reason.
    pub async fn refusals(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> (Vec<Finding>, Vec<(String, Finding)>) {
        let Judged { findings, forbidden, .. } = self.needs.judge(connection).await;
        let lasting = findings.into_iter().filter(|one| is_lasting(one) && !self.passes(one));
        let named = |finding| of_target(&self.target, finding);
        let forbidden = forbidden.into_iter().map(|(rule, finding)| (rule, named(finding)));
        (lasting.map(named).collect(), forbidden.collect())
    }

    /// Whether a finding is of a failover: the server may have become a replica since the
    /// Sentinels, or the nodes of its cluster, named it. They are asked again by themselves.
    fn passes(&self, finding: &Finding) -> bool {
        let is_followed =
            matches!(self.target.redis.mode, Mode::Sentinel(_) | Mode::Cluster { .. });
        is_followed && finding.code == Code::RedisReplica
    }

    /// Says in the log whether it is perhaps another database of this server that has the keys.
    pub async fn look_elsewhere(target: &Target, connection: &mut MultiplexedConnection) {
        if let Some(finding) = super::redis_databases::elsewhere(target, connection).await {
            let title = target.redis.title();
            tracing::warn!(hint = finding.hint, "{title}: {}", finding.message);
        }
    }

    /// Looks at the server of a new connection, and tells what is wrong.
    ///
    /// # Errors
    ///
    /// Why nothing that is removed there may be confirmed: it is not the whole of what readers use.
    pub async fn look(&self, mut connection: MultiplexedConnection) -> Result<(), String> {
        let judged = self.needs.judge(&mut connection).await;
        let Judged { findings, forbidden, is_usable, .. } = judged;
        let named = |finding| of_target(&self.target, finding);
        let (passing, others): (Vec<Finding>, Vec<Finding>) =
            findings.into_iter().partition(|one| self.passes(one));
        let lasting: Vec<Finding> = others.into_iter().filter(is_lasting).map(named).collect();
        let mut told = BTreeSet::new();
        if let Some(first) = lasting.first() {
            let texts: Vec<&str> = lasting.iter().map(|one| one.message.as_str()).collect();
            self.tell(
                &mut told,
                Topic::RedisChecks(self.target.redis.id),
                &texts.join("; "),
                first.hint.as_deref(),
            );
        }
        for (rule, finding) in forbidden {
            let finding = named(finding);
            let topic = Topic::Refused(self.target.redis.id, rule.as_str().into());
            let text = format!("rule `{rule}`: {}", finding.message);
            self.tell(&mut told, topic, &text, finding.hint.as_deref());
        }
        let before = self.told.replace(told.clone());
        before.difference(&told).for_each(|topic| self.health.over(topic));
        match lasting.first() {
            Some(first) if !is_usable => Err(first.message.clone()),
            None if !passing.is_empty() => Err("it is a replica by now".to_owned()),
            _ => Ok(()),
        }
    }

    fn tell(&self, told: &mut BTreeSet<Topic>, topic: Topic, text: &str, hint: Option<&str>) {
        self.health.trouble(topic.clone(), text, hint);
        told.insert(topic);
    }

    /// Looks again from time to time while something is told, over a connection of its own: a right
    /// that is given needs no new connection of the sweeper's.
    pub async fn watch(&self) -> Infallible {
        loop {
            sleep(LOOK_AGAIN).await;
            if !self.told.borrow().is_empty()
                && let Ok(connection) = connect(&self.target.redis).await
            {
                // A server that must not be used has no connection of the sweeper's, either.
                drop(self.look(connection).await);
            }
        }
    }
}

/// Whether a person has to change something. A server that loads its data, has no memory or runs a
/// script refuses for a while, and the sweeper tries again.
fn is_lasting(finding: &Finding) -> bool {
    finding.is_error() && !finding.is_waited_for()
}
