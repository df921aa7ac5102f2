//! Checks of Redis: reachable, a primary, with the rights that removing takes.

use redis::aio::MultiplexedConnection;
use redis::{Cmd, IntoConnectionInfo, RedisError, Value, cmd, pipe};

use super::{Finding, Severity};
use crate::config::{Config, Located};
use crate::lease::{self, Loaded};

/// How long the key of the checks lives, if nothing removes it, milliseconds.
const CHECK_KEY_TTL_MS: u32 = 1_000;

/// Checks the Redis behind `connection`, which must be one to `config.redis.url`. Writes one key,
/// `walsweep:{slot}:check`, and removes it.
pub async fn redis(config: &Config, connection: &mut MultiplexedConnection) -> Vec<Finding> {
    let user = user(config);
    let mut findings = Vec::new();
    if let Err(error) = cmd("PING").query_async::<Value>(connection).await {
        match refusal(&error, &user, "ping", "") {
            Some(finding) => findings.push(finding),
            None => {
                let message = format!("redis does not answer: {error}");
                return vec![Finding::error("redis_unreachable", message)];
            }
        }
    }
    // Who may not ask is not told; what matters most shows in the rights below.
    if let Ok(info) = cmd("INFO").query_async::<String>(connection).await {
        findings.extend(server(&info, config.redis.wait_replicas));
    }
    let is_primary = !findings.iter().any(|finding| finding.code == "redis_replica");
    if is_primary {
        findings.extend(rights(config, connection, &user).await);
        findings.extend(keys(config, connection, &user).await);
        if config.refill.observe {
            findings.extend(tracking(config, connection, &user).await);
        }
        findings.extend(functions(connection).await);
    }
    findings
}

/// The user that the URL names.
fn user(config: &Config) -> String {
    let info = config.redis.url.as_str().into_connection_info().ok();
    let name = info.as_ref().and_then(|info| info.redis_settings().username());
    name.unwrap_or("default").to_owned()
}

/// What the server says of itself.
fn server(info: &str, wait_replicas: u32) -> Vec<Finding> {
    let value = |name: &str| {
        let mut lines = info.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_end)
    };
    let mut findings = Vec::new();
    if value("role") == Some("slave") {
        let replica = Finding::error("redis_replica", "`redis.url` reaches a replica");
        findings.push(replica.hint("let `redis.url` name the primary"));
    }
    if value("cluster_enabled") == Some("1") {
        let message =
            "`redis.url` reaches one node of a cluster: keys of the other nodes would stay";
        let cluster = Finding::error("redis_cluster", message);
        findings.push(cluster.hint("let `redis.url` name a Redis that is not part of a cluster"));
    }
    if let Some(policy) = value("maxmemory_policy").filter(|policy| policy.starts_with("allkeys")) {
        let message = format!(
            "`maxmemory-policy` is `{policy}`: the watermark key may be evicted, and each eviction \
             costs a sweep of everything"
        );
        let evicts = Finding::warning("redis_eviction", message);
        findings
            .push(evicts.hint("`volatile-*` spares keys without a time to live, as this one is"));
    }
    let replicas = value("connected_slaves").and_then(|count| count.parse().ok());
    if let Some(replicas) = replicas.filter(|replicas: &u32| *replicas < wait_replicas) {
        let message = format!(
            "`wait_replicas` is {wait_replicas}, and {replicas} replicas are connected: nothing is \
             confirmed, and the slot keeps WAL"
        );
        let few = Finding::warning("redis_replicas", message);
        findings.push(few.hint("connect the replicas, or lower `redis.wait_replicas`"));
    }
    findings
}

/// Each command that walsweep needs, on a key of its own.
async fn rights(
    config: &Config,
    connection: &mut MultiplexedConnection,
    user: &str,
) -> Vec<Finding> {
    let key = format!("walsweep:{}:check", config.postgres.slot);
    let mut scan = cmd("SCAN");
    scan.arg(0).arg("MATCH").arg(&key).arg("COUNT").arg(1);
    let mut set = cmd("SET");
    set.arg(&key).arg(1).arg("PX").arg(CHECK_KEY_TTL_MS);
    let mut eval = cmd("EVAL");
    eval.arg("return 1").arg(1).arg(&key);
    let on_key = |name: &str| {
        let mut command = cmd(name);
        command.arg(&key);
        command
    };
    let mut wait = cmd("WAIT");
    wait.arg(0).arg(1);
    let mut commands: Vec<(&str, Cmd)> = vec![
        ("scan", scan),
        ("set", set),
        ("get", on_key("GET")),
        ("incr", on_key("INCR")),
        ("eval", eval),
        ("unlink", on_key("UNLINK")),
    ];
    if config.redis.wait_replicas > 0 {
        commands.push(("wait", wait));
    }
    let mut findings: Vec<Finding> = Vec::new();
    for (name, command) in commands {
        let Err(error) = command.query_async::<Value>(connection).await else { continue };
        let finding = refusal(&error, user, name, "walsweep:*").unwrap_or_else(|| {
            let name = name.to_uppercase();
            Finding::error("redis_refused", format!("redis refuses `{name}`: {error}"))
        });
        // Several commands may miss the right to the same key.
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    findings
}

/// The rule that a user's rights lack, if that is why a command was refused
/// (<https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/>).
fn refusal(error: &RedisError, user: &str, command: &str, keys: &str) -> Option<Finding> {
    if error.code() != Some("NOPERM") {
        return None;
    }
    let detail = error.detail().unwrap_or_default();
    // Redis words it differently from version to version, but always says which of both it is.
    let rule = if detail.contains("key") && !detail.contains("to run the") {
        format!("~{keys}")
    } else {
        format!("+{command}")
    };
    let message = format!("redis user `{user}` lacks `{rule}`");
    Some(Finding::error("redis_permission", message).hint(format!("`acl setuser {user} {rule}`")))
}

/// Whether writes can be observed, as `refill.observe` asks. Without it every second removal takes
/// all keys, so that nothing of the promise is lost.
async fn tracking(
    config: &Config,
    connection: &mut MultiplexedConnection,
    user: &str,
) -> Option<Finding> {
    let mut on = cmd("CLIENT");
    on.arg("TRACKING").arg("ON").arg("BCAST").arg("NOLOOP");
    on.arg("PREFIX").arg(format!("walsweep:{}:check", config.postgres.slot));
    let mut off = cmd("CLIENT");
    off.arg("TRACKING").arg("OFF");
    // `HELLO` alone changes nothing, and is known where RESP3 is.
    for command in [cmd("HELLO"), on, off] {
        let Err(error) = command.query_async::<Value>(connection).await else { continue };
        let finding = refusal(&error, user, "client|tracking", "").unwrap_or_else(|| {
            let message = format!("redis cannot tell which keys are written: {error}");
            let hint = "set `refill.observe` to false: every second removal takes all keys anyway";
            Finding::error("redis_tracking", message).hint(hint)
        });
        return Some(Finding { severity: Severity::Warning, code: "redis_tracking", ..finding });
    }
    None
}

/// Whether the keys of the rules may be removed. It is asked in a transaction that is given up:
/// rights are looked at when a command is queued, and none is run.
async fn keys(config: &Config, connection: &mut MultiplexedConnection, user: &str) -> Vec<Finding> {
    let empty = pipe().cmd("MULTI").cmd("DISCARD").query_async::<Value>(connection).await;
    if empty.is_err() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for key in config.rules.iter().flat_map(|rule| &rule.keys) {
        let Some(sample) = sample(&key.value) else { continue };
        let mut pipe = pipe();
        pipe.cmd("MULTI").cmd("UNLINK").arg(&sample).cmd("DISCARD").ignore_errors();
        let Ok(replies) = pipe.query_async::<Vec<Value>>(connection).await else { continue };
        let denied = replies.iter().any(|reply| {
            matches!(reply, Value::ServerError(error) if error.code() == "NOPERM"
                && !error.details().unwrap_or_default().contains("to run the"))
        });
        if denied {
            findings.push(forbidden(key, user));
        }
    }
    findings
}

/// The lease functions, if any are loaded. They are an option, and `run` needs no right to list
/// them: who may not ask is not told.
async fn functions(connection: &mut MultiplexedConnection) -> Option<Finding> {
    match lease::loaded(connection).await {
        Ok(Loaded::Current) => {
            let message = "the lease functions are loaded, in this version".to_owned();
            Some(Finding::info("lease_loaded", message))
        }
        Ok(Loaded::Other) => {
            let message = "the lease functions are loaded, in another version".to_owned();
            Some(Finding::warning("lease_outdated", message).hint("`walsweep setup --lease`"))
        }
        Ok(Loaded::Nothing) | Err(_) => None,
    }
}

fn forbidden(key: &Located<String>, user: &str) -> Finding {
    let prefix: String = key.value.chars().take_while(|one| !"{*?[\\".contains(*one)).collect();
    let message = format!("redis user `{user}` may not remove keys of `{}`", key.value);
    let hint = format!("`acl setuser {user} ~{prefix}*`");
    Finding::error("redis_key_permission", message).at(&key.at).hint(hint)
}

/// A key that a template could give: each placeholder and wildcard is one letter. `None` if it has
/// syntax that this is too simple for.
fn sample(template: &str) -> Option<String> {
    let mut sample = String::new();
    let mut rest = template.chars();
    while let Some(one) = rest.next() {
        match one {
            '{' => {
                rest.find(|one| *one == '}')?;
                sample.push('x');
            }
            '*' | '?' => sample.push('x'),
            '[' | '}' | '\\' => return None,
            plain => sample.push(plain),
        }
    }
    Some(sample)
}

#[cfg(test)]
mod tests {
    use super::{sample, server};

    #[test]
    fn a_sample_is_a_key_of_its_template() {
        for (template, expected) in [
            ("a:{b}:c", Some("a:x:c")),
            ("a:*:{b|sha256:16}", Some("a:x:x")),
            ("plain", Some("plain")),
            ("a:[bc]", None),
            ("a\\*", None),
        ] {
            assert_eq!(sample(template).as_deref(), expected, "{template}");
        }
    }

    #[test]
    fn info_tells_replicas_clusters_and_eviction() {
        for (info, codes) in [
            ("role:slave\r\n", &["redis_replica"][..]),
            ("role:master\r\ncluster_enabled:1\r\n", &["redis_cluster"]),
            ("maxmemory_policy:allkeys-lru\r\n", &["redis_eviction"]),
            ("role:master\r\ncluster_enabled:0\r\nmaxmemory_policy:volatile-lru\r\n", &[]),
            ("connected_slaves:1\r\n", &["redis_replicas"]),
            ("connected_slaves:2\r\n", &[]),
        ] {
            let found: Vec<_> = server(info, 2).iter().map(|finding| finding.code).collect();
            assert_eq!(found, codes, "{info}");
        }
    }
}
