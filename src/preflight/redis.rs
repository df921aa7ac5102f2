//! Checks of Redis: reachable, a primary, with the rights that removing takes.

use redis::aio::MultiplexedConnection;
use redis::{Cmd, IntoConnectionInfo, RedisError, Value, cmd};

use super::redis_inside::{Inside, templates};
use super::redis_keys::may_name;
use super::redis_names::{acl_pattern, literal, sample, word};
use super::{Code, Finding, redis_endpoint, redis_login};
use crate::config::{Located, Mode, Target};
use crate::sweep::redis::cluster;
use crate::sweep::redis::connect::classify;
use crate::sweep::redis::endpoint::{self, Endpoint};
use crate::sweep::redis::lease::{self, Loaded};
use crate::sweep::{Kind, key_name};
use crate::words::counted;

/// How long the key of the checks lives, if nothing removes it, milliseconds.
const CHECK_KEY_TTL_MS: u32 = 1_000;

/// The oldest version that is tested: major and minor.
const VERSION_MIN: (u32, u32) = (6, 2);

/// Asks for each key whether this user may remove it. ARGV: the keys; that they are no KEYS keeps
/// Redis from refusing the script for them. Gives 1 or 0 for each; nil from a server that cannot be
/// asked (before 7.0).
const MAY_UNLINK: &str = "if not redis.acl_check_cmd then return false end \
     local may = {} \
     for at, key in ipairs(ARGV) do \
       may[at] = redis.acl_check_cmd('unlink', key) and 1 or 0 \
     end \
     return may";

/// Keys that one script is asked about: some tens of microseconds.
const KEYS_AT_ONCE: usize = 50;

/// Values that a placeholder may have in a key that is asked about: an ACL may allow only one kind.
pub(super) const SAMPLE_VALUES: [&str; 2] = ["x", "1"];

/// Checks the Redis behind `connection`, which must be one to `target.redis.url`. Writes one key,
/// `walsweep:{slot}:check`, and removes it.
pub async fn redis(target: &Target, connection: &mut MultiplexedConnection) -> Vec<Finding> {
    let needs = Needs::of(target);
    let Judged { mut findings, forbidden, is_usable, endpoint } = needs.judge(connection).await;
    let has_list = forbidden.iter().all(|(_, finding)| finding.code != Code::RedisScan);
    findings.extend(forbidden.into_iter().map(|(rule, finding)| finding.of_rules([rule])));
    if is_usable {
        findings.extend(redis_endpoint::unproven(target, endpoint));
        if needs.tells_writes && endpoint.is_proven() {
            findings.extend(super::redis_tracking::tracking(&needs, target, connection).await);
        }
        if has_list && !endpoint.is_proven() {
            findings.extend(needs.hidden_from_scan(connection).await);
        }
        findings.extend(functions(connection).await);
        if !endpoint.hides_shards {
            // Elsewhere INFO is about one of several servers.
            findings.extend(super::redis_databases::elsewhere(target, connection).await);
            findings.extend(super::redis_pass::cost(target, connection).await);
        }
    }
    let place = format!("{} at `{}`", target.redis.title(), address(target));
    findings.into_iter().map(|finding| at_place(&place, finding)).collect()
}

/// Where the Redis of a target is, without user and password; the name of a service.
pub(super) fn address(target: &Target) -> String {
    if let Mode::Sentinel(sentinels) = &target.redis.mode {
        return sentinels.service.clone();
    }
    let info = target.redis.url.as_str().into_connection_info();
    info.map_or_else(|_invalid| "redis".to_owned(), |info| info.addr().to_string())
}

/// The finding with the server that it is about.
fn at_place(place: &str, finding: Finding) -> Finding {
    let message = match finding.message.strip_prefix("redis ") {
        Some(rest) if rest.starts_with("user ") => format!("{place}: {rest}"),
        Some(rest) => format!("{place} {rest}"),
        None => format!("{place}: {}", finding.message),
    };
    Finding { message, ..finding }
}

/// Everything that a target needs of its Redis.
#[derive(Clone, Debug)]
pub(super) struct Needs {
    /// The user that the URL names.
    pub(super) user: String,
    /// The name of the watermark key; of each primary of a cluster, its beginning.
    pub(super) watermark: String,
    /// Whether `redis.url` names the server, or what stands for it.
    is_named: bool,
    /// Whether the server is a primary of a cluster, or is to be one.
    is_cluster: bool,
    /// Whether it is to tell which keys are written.
    tells_writes: bool,
    /// The keys of walsweep itself, as an ACL writes them.
    pub(super) own: String,
    wait_replicas: u32,
    /// The rights that rules need beside those to remove keys.
    pub(super) inside: Inside,
    /// The command that gives the user every right that is needed, and the keys that follow it.
    acl: (String, String),
    /// Key templates with the target's prefix, each with the name of its rule.
    pub(super) templates: Vec<(String, Located<String>)>,
}

/// The judgement of a server.
pub(super) struct Judged {
    /// Findings that concern every rule.
    pub(super) findings: Vec<Finding>,
    /// Rules whose keys may not be removed.
    pub(super) forbidden: Vec<(String, Finding)>,
    /// Whether it answers, and is one whole server that is written to.
    pub(super) is_usable: bool,
    /// Whether it is one server at all.
    pub(super) endpoint: Endpoint,
}

impl Judged {
    /// Nothing is to be removed there.
    fn unusable(findings: Vec<Finding>) -> Judged {
        let endpoint = Endpoint::default();
        Judged { findings, forbidden: Vec::new(), is_usable: false, endpoint }
    }
}

impl Needs {
    pub(super) fn of(target: &Target) -> Needs {
        let info = target.redis.url.as_str().into_connection_info().ok();
        let settings = info.as_ref().map(redis::ConnectionInfo::redis_settings);
        let user = settings.and_then(|settings| settings.username()).unwrap_or("default");
        let prefix = literal(&target.redis.prefix);
        let prefixed = |key: &Located<String>| Located {
            value: format!("{prefix}{}", key.value),
            at: key.at.clone(),
        };
        let templates = target
            .rules
            .iter()
            .flat_map(|rule| templates(rule).map(|key| (rule.name.clone(), prefixed(key))));
        let is_cluster = matches!(target.redis.mode, Mode::Cluster { .. });
        let tells_writes = target.refill.observe && !is_cluster || target.sweep.index.is_some();
        let inside = Inside::of(target);
        let mut commands = "+ping +info +scan +unlink +get +set +incr +eval".to_owned();
        for (is_needed, more) in [
            (is_cluster, " +asking +cluster|nodes +cluster|slots"),
            (settings.is_some_and(|settings| settings.db() != 0), " +select"),
            (target.redis.wait_replicas > 0, " +wait"),
            (tells_writes, " +hello '+client|tracking'"),
            (target.sweep.index.is_some() && !inside.has_tags(), " +exists"),
        ] {
            commands.push_str(if is_needed { more } else { "" });
        }
        commands.push_str(&inside.rights());
        let templates: Vec<_> = templates.collect();
        let mut patterns: Vec<String> =
            templates.iter().map(|(_rule, template)| acl_pattern(&template.value)).collect();
        let own = acl_pattern(&format!("{prefix}walsweep:*"));
        patterns.push(own.clone());
        patterns.sort();
        patterns.dedup();
        let keys: String =
            patterns.iter().map(|one| format!(" {}", word(&format!("~{one}")))).collect();
        let acl = (format!("acl setuser {user} {commands}"), keys);
        Needs {
            user: user.to_owned(),
            watermark: key_name(&target.redis.prefix, &target.slot),
            is_named: matches!(target.redis.mode, Mode::Standalone),
            is_cluster,
            tells_writes,
            own,
            wait_replicas: target.redis.wait_replicas,
            inside,
            acl,
            templates,
        }
    }

    /// Looks at the server; with a few round trips, however many rules there are.
    pub(super) async fn judge(&self, connection: &mut MultiplexedConnection) -> Judged {
        let mut findings = Vec::new();
        let mut missing = Missing::default();
        if let Err(error) = cmd("PING").query_async::<Value>(connection).await
            && !missing.takes(&error, ("ping", &self.own))
        {
            findings.push(redis_login::unanswered(&error));
            return Judged::unusable(findings);
        }
        let endpoint = self.endpoint(connection).await;
        let is_hidden = endpoint.hides_shards;
        match cmd("INFO").query_async::<String>(connection).await {
            Ok(info) => {
                let asked = (self.wait_replicas, self.is_cluster);
                findings.extend(server(&info, asked, is_hidden));
            }
            // That another server answers is then noticed later, by its watermark.
            Err(error) if is_denied(&error) => missing.info = true,
            Err(_other) if is_hidden => {}
            Err(_other) => findings.push(redis_endpoint::no_info()),
        }
        if findings.iter().any(|finding| finding.code.spoils_redis()) {
            findings.extend(self.lacking(missing));
            return Judged::unusable(findings);
        }
        let may_unlink = self.rights((connection, endpoint), (&mut missing, &mut findings)).await;
        let has_list = !missing.scan;
        if !missing.rights.is_empty() || missing.info {
            // One line is to give all that is missing, or the next check finds more.
            missing.with_keys |= self.is_denied_keys(connection).await;
        }
        findings.extend(self.lacking(missing));
        let is_usable = !findings.iter().any(|finding| finding.code.spoils_redis());
        let mut forbidden = Vec::new();
        if is_usable && may_unlink {
            if !has_list {
                forbidden = self.without_list("does not have SCAN");
            }
            forbidden.extend(self.forbidden(connection).await);
        }
        Judged { findings, forbidden, is_usable, endpoint }
    }

    /// Looks at what answers there; where that cannot be found out, it is one server.
    async fn endpoint(&self, connection: &mut MultiplexedConnection) -> Endpoint {
        if !self.is_named {
            return Endpoint::default();
        }
        endpoint::look_at(connection, &self.watermark).await.unwrap_or_default()
    }

    /// Tries each command that walsweep needs, on a key of its own, and notes what is wrong. Gives
    /// whether UNLINK works.
    async fn rights(
        &self,
        (connection, endpoint): (&mut MultiplexedConnection, Endpoint),
        (missing, findings): (&mut Missing, &mut Vec<Finding>),
    ) -> bool {
        let mut may_unlink = true;
        let watermark = match self.is_cluster {
            false => Ok(Some(self.watermark.clone())),
            true => cluster::name_at(connection, &self.watermark).await,
        };
        let watermark = match watermark {
            Ok(Some(watermark)) => watermark,
            // What it has is not known yet, or nothing.
            Ok(None) => return true,
            Err(error) => {
                if !missing.takes(&error, ("cluster|nodes", &self.own)) {
                    findings.push(refused(&error, "cluster nodes", self.is_cluster));
                }
                return false;
            }
        };
        for (name, command) in self.commands(&watermark, endpoint) {
            let Err(error) = command.query_async::<Value>(connection).await else { continue };
            if name == "scan" && classify(&error).kind() == Kind::Unsupported {
                missing.scan = true;
                continue;
            }
            // On its way to another primary, which is asked as well.
            if self.is_cluster && ["MOVED", "ASK", "TRYAGAIN"].contains(&error.code().unwrap_or(""))
            {
                continue;
            }
            may_unlink &= name != "unlink";
            let denied = error.detail().unwrap_or_default();
            if let Some(right) = self.inside.channel_right(denied).filter(|_| is_denied(&error)) {
                missing.rights.push(right);
                continue;
            }
            if missing.takes(&error, (name, &self.own)) {
                continue;
            }
            let finding = refused(&error, name, self.is_cluster);
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
        may_unlink
    }

    /// All rights that are missing, once, with the command that gives them. To lack INFO alone is
    /// a warning.
    pub(super) fn lacks(&self, rights: &[String], with_keys: bool) -> Finding {
        let with_channel = rights.iter().any(|right| right.starts_with('&'));
        let rights: Vec<String> = rights.iter().map(|right| format!("`{right}`")).collect();
        let message = format!("redis user `{}` lacks {}", self.user, rights.join(", "));
        Finding::error(Code::RedisPermission, message).hint(self.cure(with_keys, with_channel))
    }

    fn commands(&self, watermark: &str, endpoint: Endpoint) -> Vec<(&'static str, Cmd)> {
        let key = format!("{watermark}:check");
        let mut scan = cmd("SCAN");
        scan.arg(0).arg("MATCH").arg(&key).arg("COUNT").arg(1);
        let mut set = cmd("SET");
        set.arg(&key).arg(1).arg("PX").arg(CHECK_KEY_TTL_MS);
        // The keys that the script which moves the watermark has.
        let mut eval = cmd("EVAL");
        match endpoint.hides_shards {
            true => eval.arg("return 1").arg(1).arg(watermark),
            false => {
                eval.arg("return 1").arg(2).arg(watermark).arg(format!("{watermark}:removals"))
            }
        };
        let on_key = |name: &str| {
            let mut command = cmd(name);
            command.arg(&key);
            command
        };
        let mut commands = vec![
            ("scan", scan),
            ("set", set),
            ("get", on_key("GET")),
            ("incr", on_key("INCR")),
            ("eval", eval),
            ("unlink", on_key("UNLINK")),
        ];
        let is_needed = |name: &str| match name {
            "eval" => endpoint.has_scripts,
            "incr" => endpoint.is_proven(),
            _ => true,
        };
        commands.retain(|(name, _)| is_needed(name));
        if self.is_cluster {
            commands.push(("asking", cmd("ASKING")));
            let mut slots = cmd("CLUSTER");
            slots.arg("SLOTS");
            commands.push(("cluster|slots", slots));
        }
        if self.wait_replicas > 0 && endpoint.is_proven() {
            let mut wait = cmd("WAIT");
            wait.arg(0).arg(1);
            commands.push(("wait", wait));
        }
        commands.extend(self.inside.commands(watermark));
        commands
    }

    /// The command that gives every right. Redis takes no key after the right to all keys, and no
    /// channel after that to all channels, so they are left out where it is not they that are
    /// missing.
    pub(super) fn cure(&self, with_keys: bool, with_channel: bool) -> String {
        let (commands, keys) = &self.acl;
        let channel = if with_channel { self.inside.channel() } else { String::new() };
        match with_keys {
            true => format!("`{commands}{channel}{keys}`{}", self.inside.members()),
            false => format!("`{commands}{channel}`"),
        }
    }

    /// The command that makes the user, with every right and a password. In quotes, which
    /// `redis-cli` reads like a shell: there it would redirect the output.
    pub(super) fn cure_anew(&self) -> String {
        let (commands, keys) = &self.acl;
        let named = format!("acl setuser {}", self.user);
        let rights = commands.strip_prefix(&named).unwrap_or(commands);
        let channel = self.inside.channel();
        let none = if channel.is_empty() { "" } else { " resetchannels" };
        format!("`{named} on '>PASSWORD'{rights}{none}{channel}{keys}`")
    }

    /// The rules whose keys the user may not remove, asked for one key of every template.
    async fn forbidden(&self, connection: &mut MultiplexedConnection) -> Vec<(String, Finding)> {
        let samples = self.templates.iter().enumerate().flat_map(|(at, (_rule, template))| {
            let samples = SAMPLE_VALUES.iter().filter_map(|value| sample(&template.value, value));
            samples.map(move |sample| (at, sample))
        });
        let samples: Vec<(usize, String)> = samples.collect();
        let mut may = vec![None; self.templates.len()];
        for asked in samples.chunks(KEYS_AT_ONCE) {
            let keys: Vec<&str> = asked.iter().map(|(_at, key)| key.as_str()).collect();
            for ((at, _key), answer) in asked.iter().zip(may_unlink(&keys, connection).await) {
                let before: &mut Option<bool> = &mut may[*at];
                *before = answer.map(|answer| before.unwrap_or_default() || answer).or(*before);
            }
        }
        let denied = self.templates.iter().zip(may).filter(|(_, may)| *may == Some(false));
        denied
            .map(|((rule, template), _)| {
                let message = format!(
                    "redis user `{}` may not remove keys of `{}`",
                    self.user, template.value
                );
                let finding = Finding::error(Code::RedisKeyPermission, message).at(&template.at);
                (rule.clone(), finding.hint(self.cure(true, false)))
            })
            .collect()
    }
}

/// Rights that a user lacks, as ACL rules.
#[derive(Default)]
pub(super) struct Missing {
    pub(super) rights: Vec<String>,
    /// Whether one is a right to keys.
    pub(super) with_keys: bool,
    /// Whether INFO is refused.
    pub(super) info: bool,
    /// Whether there is no SCAN.
    scan: bool,
}

impl Missing {
    /// Notes the right that is why a command was refused; `false` if that is not why.
    fn takes(&mut self, error: &RedisError, asked: (&str, &str)) -> bool {
        if !is_denied(error) {
            return false;
        }
        self.with_keys |= is_about_key(error);
        // Several commands may miss the right to the same key.
        let right = right(error, asked);
        if !self.rights.contains(&right) {
            self.rights.push(right);
        }
        true
    }
}

/// The ACL rule whose absence is why a command was denied
/// (<https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/>).
pub(super) fn right(error: &RedisError, (command, own): (&str, &str)) -> String {
    if is_about_key(error) { format!("~{own}") } else { format!("+{command}") }
}

pub(super) fn is_denied(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

/// Why a command was refused, if that is no right. A primary of a cluster that is used as such may
/// find itself outside for a while, as when it has come back.
fn refused(error: &RedisError, command: &str, is_cluster: bool) -> Finding {
    let name = command.to_uppercase();
    match error.code() {
        Some("MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN") if !is_cluster => one_of_many(),
        _ if classify(error).kind() == Kind::Unsupported => {
            let message = format!("redis has no command `{name}`");
            let hint = "end its `rename-command` in the configuration of the server, or let \
                        `redis.url` name the server itself, not an endpoint before it";
            Finding::error(Code::RedisCommand, message).hint(hint)
        }
        _ => {
            let finding =
                Finding::error(Code::RedisRefused, format!("redis refuses `{name}`: {error}"));
            match classify(error).hint() {
                Some(hint) => finding.hint(hint),
                None => finding,
            }
        }
    }
}

/// Whether keys may be removed; `None` where that cannot be known.
async fn may_unlink(keys: &[&str], connection: &mut MultiplexedConnection) -> Vec<Option<bool>> {
    let mut eval = cmd("EVAL");
    eval.arg(MAY_UNLINK).arg(0).arg(keys);
    match eval.query_async::<Option<Vec<u32>>>(connection).await {
        Ok(Some(answers)) => answers.into_iter().map(|answer| Some(answer == 1)).collect(),
        Ok(None) => may_name(keys, connection).await,
        Err(_refused) => vec![None; keys.len()],
    }
}

/// Redis words it differently from version to version, but always says whether it is the command.
pub(super) fn is_about_key(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    detail.contains("key") && !detail.contains("to run the")
}

fn one_of_many() -> Finding {
    let message = "`redis.url` reaches one node of a cluster: keys of the other nodes would stay";
    let cluster = Finding::error(Code::RedisCluster, message);
    cluster.hint("write `mode = \"cluster\"` beside it")
}

fn alone() -> Finding {
    let message = "`redis.mode` is \"cluster\", and the server is not part of one";
    let alone = Finding::error(Code::RedisCluster, message);
    alone.hint("leave `mode` out; or let `url` and `seeds` name nodes of a cluster")
}

/// Judges what the server says of itself.
fn server(info: &str, (wait_replicas, is_cluster): (u32, bool), is_hidden: bool) -> Vec<Finding> {
    let value = |name: &str| {
        let mut lines = info.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_end)
    };
    let mut findings = Vec::new();
    // Behind an endpoint any of several servers may answer.
    if value("role") == Some("slave") && !is_hidden {
        let replica = Finding::error(Code::RedisReplica, "`redis.url` reaches a replica");
        findings.push(replica.hint("let `redis.url` name the primary"));
    }
    match value("cluster_enabled") {
        Some("1") if !is_cluster && !is_hidden => findings.push(one_of_many()),
        Some("0") if is_cluster => findings.push(alone()),
        _ => {}
    }
    if let Some(version) = value("redis_version").filter(|version| is_old(version)) {
        let message = format!("redis is version {version}, and 6.2 is the oldest that will do");
        findings.push(Finding::error(Code::RedisVersion, message).hint("update the server"));
    }
    if let Some(policy) = value("maxmemory_policy").filter(|policy| policy.starts_with("allkeys")) {
        let message = format!(
            "`maxmemory-policy` is `{policy}`: the watermark key may be evicted, and each eviction \
             costs a sweep of everything"
        );
        let evicts = Finding::warning(Code::RedisEviction, message);
        findings
            .push(evicts.hint("`volatile-*` spares keys without a time to live, as this one is"));
    }
    let replicas = value("connected_slaves").and_then(|count| count.parse().ok());
    let few = replicas.filter(|replicas: &u32| *replicas < wait_replicas && !is_hidden);
    if let Some(replicas) = few {
        let message = format!(
            "`wait_replicas` is {wait_replicas}, and redis has {}: nothing is confirmed, and the \
             slot keeps WAL",
            counted(replicas, "connected replica")
        );
        let few = Finding::warning(Code::RedisReplicas, message);
        findings.push(few.hint("connect the replicas, or lower `redis.wait_replicas`"));
    }
    findings
}

/// Whether this is a version before [`VERSION_MIN`]; one that cannot be read is not.
fn is_old(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < VERSION_MIN,
        _ => false,
    }
}

/// The lease functions, if any are loaded. They are an option, and `run` needs no right to list
/// them: who may not ask is not told.
async fn functions(connection: &mut MultiplexedConnection) -> Option<Finding> {
    match lease::loaded(connection).await {
        Ok(Loaded::Current) => {
            let message = "the lease functions are loaded, in this version".to_owned();
            Some(Finding::info(Code::LeaseLoaded, message))
        }
        Ok(Loaded::Other) => {
            let message = "the lease functions are loaded, in another version".to_owned();
            Some(Finding::warning(Code::LeaseOutdated, message).hint("`walsweep setup --lease`"))
        }
        Ok(Loaded::Nothing) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use redis::{Client, cmd};
    use walsweep_stage::throwaway::{Redis, RedisOptions};

    use super::{may_name, may_unlink, server};

    /// Servers before 7.0 are asked in the second way.
    #[tokio::test]
    async fn both_ways_to_ask_for_rights_give_the_same() {
        let server = Redis::start(RedisOptions::default()).await.unwrap();
        let mut set_user = cmd("ACL");
        set_user.arg("SETUSER").arg("app").arg("on").arg(">x").arg("~a:*").arg("+@all");
        set_user.exec_async(&mut server.connect().await.unwrap()).await.unwrap();
        let client = Client::open(server.url().replace("//", "//app:x@")).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let keys = ["a:1", "b:1", "a:", "a"];
        let expected = [Some(true), Some(false), Some(true), Some(false)];
        assert_eq!(may_unlink(&keys, &mut connection).await, expected);
        assert_eq!(may_name(&keys, &mut connection).await, expected);
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
            ("redis_version:6.0.16\r\n", &["redis_version"]),
            ("redis_version:6.2.0\r\n", &[]),
            ("redis_version:10.0.1\r\n", &[]),
            ("redis_version:unknown\r\n", &[]),
        ] {
            let found: Vec<_> =
                server(info, (2, false), false).iter().map(|one| one.code.as_str()).collect();
            assert_eq!(found, codes, "{info}");
        }
    }
}
