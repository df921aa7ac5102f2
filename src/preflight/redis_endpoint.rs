//! An endpoint that is not one Redis server: it hides several, or does not have every command.

use redis::aio::MultiplexedConnection;

use super::redis::Needs;
use super::redis_pass::is_pattern;
use super::{Code, Finding};
use crate::config::Target;
use crate::sweep::redis::endpoint::{self, Endpoint, MARKS};

/// Advice on several servers.
const CURE: &str = "where it is a cluster that tells its nodes, write `mode = \"cluster\"`; else \
                    let `redis.url` name the server itself, or live with the sweeps: \
                    docs/endpoint.md";

/// Says what follows from it that nothing there shows that a removal was lost.
pub(super) fn unproven(target: &Target, endpoint: Endpoint) -> Vec<Finding> {
    if endpoint.is_proven() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let follows = "everything is swept at every start and for every new connection";
    if endpoint.hides_shards {
        let message = format!(
            "redis is an endpoint that hides several servers, for {}: one of them may lose \
             removals, and no watermark shows it, so that {follows}",
            endpoint.told()
        );
        findings.push(Finding::warning(Code::RedisShards, message).hint(CURE));
    }
    if !endpoint.has_scripts {
        let message = format!(
            "redis does not run scripts (EVAL), by which alone a watermark shows that removals \
             were lost: {follows}"
        );
        let hint = "let the server have EVAL, under its own name; docs/endpoint.md";
        findings.push(Finding::warning(Code::RedisScripts, message).hint(hint));
    }
    if target.redis.wait_replicas > 0 {
        let message = "`wait_replicas` cannot be kept: WAIT tells of one of several servers alone, \
                       and nothing is confirmed";
        let hint = "set `redis.wait_replicas` to 0, or let `redis.url` name one server";
        findings.push(Finding::error(Code::RedisReplicas, message).hint(hint));
    }
    if target.refill.observe {
        let message = "redis cannot tell which keys are written: an endpoint that hides several \
                       servers tells of one";
        let hint = "set `refill.observe` to false: every second removal takes all keys anyway";
        findings.push(Finding::warning(Code::RedisTracking, message).hint(hint));
    }
    findings
}

/// That INFO is not to be had.
pub(super) fn no_info() -> Finding {
    let message = "redis does not have INFO: whether it is a replica, and of which version, is not \
                   known; that another server answers, the watermark alone shows";
    Finding::warning(Code::RedisInfo, message)
}

impl Needs {
    /// Tells of each rule what it loses where SCAN is not to be had, or does not give the keys of
    /// all servers.
    pub(super) fn without_list(&self, why: &str) -> Vec<(String, Finding)> {
        let patterns = |rule: &str| {
            let of_rule = self.templates.iter().filter(|(of, _)| of == rule);
            of_rule.map(|(_, template)| template).find(|template| is_pattern(&template.value))
        };
        let mut rules: Vec<&str> = self.templates.iter().map(|(rule, _)| rule.as_str()).collect();
        rules.dedup();
        let each = rules.into_iter().map(|rule| {
            let finding = match patterns(rule) {
                Some(template) => {
                    let message = format!(
                        "redis {why}: patterns of rule `{rule}`, such as `{}`, cannot be removed, \
                         and wait",
                        template.value
                    );
                    Finding::error(Code::RedisScan, message).at(&template.at)
                }
                None => {
                    let message = format!(
                        "redis {why}: keys of rule `{rule}` go, but those that may be stale from \
                         before a start cannot be looked for, and nothing is confirmed"
                    );
                    Finding::error(Code::RedisScan, message)
                }
            };
            (rule.to_owned(), finding)
        });
        each.collect()
    }

    /// Looks whether SCAN gives the keys of all servers behind an endpoint, as far as that is soon
    /// found out.
    pub(super) async fn hidden_from_scan(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Vec<Finding> {
        let hidden = endpoint::hidden_from_scan(connection, &self.watermark).await;
        let Ok(Some(missed @ 1..)) = hidden else { return Vec::new() };
        let why = format!("shows {missed} of {MARKS} keys by SCAN not, which are there");
        let of_rules = self.without_list(&why).into_iter();
        of_rules.map(|(rule, finding)| finding.of_rules([rule])).collect()
    }
}
