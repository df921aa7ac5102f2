//! Findings in Redis.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{Client, cmd};
use walsweep::config::{Config, Mode, Rule, Sentinels, Target};
use walsweep::preflight::{self, Code, Finding, Severity};
use walsweep::telemetry::Health;
use walsweep::telemetry::metrics::Metrics;
use walsweep_stage::throwaway::{Redis, RedisOptions, redis_version};

use crate::kit::{codes, config, find, rule};

/// The target of a configuration that has one.
fn target(config: &Config) -> Target {
    config.targets().next().unwrap()
}

/// Gives what is found as user `app`, who has these rights, by a rule with these keys.
async fn found_as(server: &Redis, rights: &str, keys: &[&str]) -> Vec<Finding> {
    found(server, rights, keys, false).await
}

async fn found(server: &Redis, rights: &str, keys: &[&str], observe: bool) -> Vec<Finding> {
    let mut admin = server.connect().await.unwrap();
    run(&mut admin, &format!("acl setuser app reset on >x {rights}")).await;
    let mut config = as_app(server, vec![rule("t", keys)]);
    config.refill.observe = observe;
    let mut connection = connect(&config).await;
    preflight::redis(&target(&config), &mut connection).await
}

fn as_app(server: &Redis, rules: Vec<Rule>) -> Config {
    let mut config = config(0, "app", rules);
    config.redis[0].url = server.url().replace("redis://", "redis://app:x@");
    config
}

async fn connect(config: &Config) -> MultiplexedConnection {
    let client = Client::open(config.redis[0].url.as_str()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// The message of a finding, which names the server, without its address.
fn plain(finding: &Finding) -> String {
    let rest = finding.message.strip_prefix("redis at `").expect("it names the server");
    let (address, rest) = rest.split_once('`').unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    format!("redis{}", rest.trim_start_matches(':'))
}

/// Runs a command, its words between spaces.
async fn run(connection: &mut MultiplexedConnection, command: &str) {
    let mut words = command.split_whitespace();
    let mut command = cmd(words.next().unwrap());
    for word in words {
        command.arg(word);
    }
    command.exec_async(connection).await.unwrap();
}

#[tokio::test]
async fn a_missing_right_is_named() {
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    let mut admin = server.connect().await.unwrap();
    for (rights, missing) in [
        ("~* +@all", &[][..]),
        ("~db:* ~walsweep:* +@all", &[]),
        (ENOUGH, &[]),
        ("~* +@all -unlink", &["+unlink"]),
        ("~* +@all -scan -eval", &["+scan", "+eval"]),
        ("~* +@all -set -ping", &["+ping", "+set"]),
        ("~* +@all -get -incr", &["+get", "+incr"]),
        ("~* +@all -info -get", &["+get", "+info"]),
        ("~db:* +@all -scan", &["+scan", "~walsweep:*"]),
        ("~db:* +@all", &["~walsweep:*"]),
    ] {
        let () = cmd("SET").arg("db:a").arg(1).query_async(&mut admin).await.unwrap();
        let findings = found_as(&server, rights, &["db:a", "db:{id}"]).await;
        // All at once, with one hint.
        let all: Vec<String> = missing.iter().map(|right| format!("`{right}`")).collect();
        let told = format!("redis user `app` lacks {}", all.join(", "));
        let expected = Vec::from_iter((!all.is_empty()).then_some(told));
        let messages: Vec<String> = findings.iter().map(plain).collect();
        assert_eq!(messages, expected, "{rights}");
        assert!(findings.iter().all(Finding::is_error));
        // What is told to cure it does.
        if let Some(hint) = findings.last().and_then(|finding| finding.hint.as_deref()) {
            run(&mut admin, hint.split('`').nth(1).unwrap()).await;
            let config = as_app(&server, vec![rule("t", &["db:a", "db:{id}"])]);
            let mut app = connect(&config).await;
            assert_eq!(
                preflight::redis(&target(&config), &mut app).await,
                [],
                "{rights}, then {hint}"
            );
        }
        let left: u64 = cmd("EXISTS").arg("db:a").query_async(&mut admin).await.unwrap();
        assert_eq!(left, 1, "a check removed a key of the cache");
    }
    let keys: Vec<String> = cmd("KEYS").arg("*").query_async(&mut admin).await.unwrap();
    assert_eq!(keys, ["db:a"]);
}

#[tokio::test]
async fn a_right_that_only_helps_is_a_warning() {
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    let rights = "~* +@all -info";
    let findings = found_as(&server, rights, &["k"]).await;
    assert_eq!(codes(&findings), ["redis_permission"]);
    assert_eq!(findings[0].severity, Severity::Warning);
    assert_eq!(plain(&findings[0]), "redis user `app` lacks `+info`");
}

/// Everything that is needed, and nothing else; `MULTI` and `ACL` are not among it.
const ENOUGH: &str = "~* +ping +info +scan +get +set +incr +eval +unlink";

#[tokio::test]
async fn every_template_is_asked_about_with_no_more_rights_than_are_needed() {
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    let mut admin = server.connect().await.unwrap();
    let keys = [
        "other:{id}",
        "pat:{id}:*",
        "plain",
        "class:[ab]:{id}",
        "two words:{id|default:\\}}",
        "star\\*:{id}",
    ];
    for (granted, denied) in [
        ("~t:* ~walsweep:*", &[0, 1, 2, 3, 4, 5][..]),
        ("~* ", &[]),
        ("~walsweep:* ~other:[0-9]* ~pat:*:* ~plain ~class:a:* ~two?words:*", &[5]),
        ("~walsweep:* ~other:* ~pattern:* ~plain2 ~class:c:* ~star?:*", &[1, 2, 3, 4]),
    ] {
        let rights = format!("{granted} {}", ENOUGH.trim_start_matches("~* "));
        let findings = found_as(&server, &rights, &keys).await;
        let places: Vec<String> =
            findings.iter().map(|finding| finding.at.as_ref().unwrap().key.clone()).collect();
        let expected: Vec<String> = denied.iter().map(|at| format!("rule.0.keys.{at}")).collect();
        assert_eq!(places, expected, "{granted}");
        assert!(findings.iter().all(|one| one.code == Code::RedisKeyPermission && one.is_error()));
        if let Some(hint) = findings.first().and_then(|finding| finding.hint.as_deref()) {
            run(&mut admin, hint.split('`').nth(1).unwrap()).await;
            let config = as_app(&server, vec![rule("t", &keys)]);
            let mut app = connect(&config).await;
            assert_eq!(
                preflight::redis(&target(&config), &mut app).await,
                [],
                "{granted}, then {hint}"
            );
        }
    }
}

/// On call: the line gave the commands, and the next reload was refused for the keys.
#[tokio::test]
async fn one_line_gives_commands_and_keys_that_are_missing_together() {
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    let mut admin = server.connect().await.unwrap();
    for rights in [
        "~walsweep:* +ping +info +scan +get +set +incr +eval",
        "~walsweep:* +ping +scan +get +set +incr +eval +unlink",
        "~* +ping +info +scan +get +set +incr +eval",
    ] {
        let findings = found_as(&server, rights, &["k:{id}", "l:*"]).await;
        let hints: Vec<&str> = findings.iter().filter_map(|one| one.hint.as_deref()).collect();
        assert_eq!(hints.len(), findings.len(), "{findings:?}");
        assert!(hints.iter().all(|hint| *hint == hints[0]), "{rights}: {hints:?}");
        run(&mut admin, hints[0].trim_matches('`')).await;
        let config = as_app(&server, vec![rule("t", &["k:{id}", "l:*"])]);
        let mut app = connect(&config).await;
        let found = preflight::redis(&target(&config), &mut app).await;
        assert_eq!(found, [], "{rights}, then {}", hints[0]);
    }
}

/// Redis 7 has rights to write without reading.
#[tokio::test]
async fn the_right_to_write_alone_is_enough_for_the_keys_of_rules() {
    if redis_version().unwrap() < (7, 0) {
        return;
    }
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    let rights = ENOUGH.replace("~*", "%W~db:* ~walsweep:*");
    assert_eq!(found_as(&server, &rights, &["db:{id}"]).await, []);
    let rights = ENOUGH.replace("~*", "%R~db:* ~walsweep:*");
    assert_eq!(codes(&found_as(&server, &rights, &["db:{id}"]).await), ["redis_key_permission"]);
}

#[tokio::test]
async fn a_command_that_is_renamed_or_turned_off_is_found() {
    for (args, name) in
        [("--rename-command UNLINK none", "UNLINK"), ("--rename-command INCR \"\"", "INCR")]
    {
        let args = args.split(' ').map(|arg| arg.replace('"', "")).collect();
        let server = Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap();
        let findings = found_as(&server, "~* +@all", &["k:{id}"]).await;
        assert_eq!(codes(&findings), ["redis_command"]);
        assert_eq!(plain(&findings[0]), format!("redis has no command `{name}`"));
    }
}

#[tokio::test]
async fn a_server_that_does_not_tell_of_writes_is_found_where_that_is_asked_for() {
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    let renamed = "--rename-command CLIENT '' --rename-command HELLO ''";
    let args = renamed.split(' ').map(|arg| arg.replace('\'', "")).collect();
    let without = Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap();
    for (server, rights, observe, expected) in [
        (&server, "~* +@all", true, &[][..]),
        (&server, "~* +@all -client", false, &[]),
        (&server, "~* +@all -client", true, &["redis user `app` lacks `+client|tracking`"]),
        (&without, "~* +@all", true, &["redis cannot tell which keys are written"]),
    ] {
        let findings = found(server, rights, &["k"], observe).await;
        assert_eq!(findings.len(), expected.len(), "{rights}: {findings:#?}");
        for (finding, expected) in findings.iter().zip(expected) {
            assert_eq!((finding.severity, finding.code), (Severity::Warning, Code::RedisTracking));
            assert!(plain(finding).starts_with(expected), "{finding}");
            assert!(finding.hint.is_some());
        }
    }
}

#[tokio::test]
async fn an_index_needs_to_be_told_of_writes_and_to_ask_for_keys() {
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    let mut admin = server.connect().await.unwrap();
    for (rights, lacks) in [
        ("~* +@all", None),
        ("~* +@all -client", Some("redis user `app` lacks `+client|tracking`")),
        ("~* +@all -exists", Some("redis user `app` lacks `+exists`")),
    ] {
        run(&mut admin, &format!("acl setuser app reset on >x {rights}")).await;
        let mut config = as_app(&server, vec![rule("t", &["list:{id}:*"])]);
        config.sweep.index = Some(1 << 20);
        let findings = preflight::redis(&target(&config), &mut connect(&config).await).await;
        let found: Vec<String> = findings.iter().map(plain).collect();
        assert_eq!(found.first().map(String::as_str), lacks, "{rights}: {found:?}");
        for finding in &findings {
            assert_eq!((finding.severity, finding.code), (Severity::Warning, Code::RedisTracking));
            let hint = finding.hint.as_deref().unwrap();
            assert!(hint.contains("+hello '+client|tracking' +exists"), "{hint}");
        }
    }
}

#[tokio::test]
async fn a_rule_whose_keys_may_not_be_removed_is_named() {
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    let rights = "~walsweep:* ~db:* +@all";
    let findings = found_as(&server, rights, &["db:{a}", "stats:*:{a|lower}", "roundup:{a}"]).await;
    let places: Vec<&str> =
        findings.iter().map(|finding| finding.at.as_ref().unwrap().key.as_str()).collect();
    assert_eq!(places, ["rule.0.keys.1", "rule.0.keys.2"]);
    let hint = find(&findings, "redis_key_permission").hint.as_deref();
    let acl = "`acl setuser app +ping +info +scan +unlink +get +set +incr +eval \
               ~db:* ~roundup:* ~stats:*:* ~walsweep:*`";
    assert_eq!(hint, Some(acl));
}

#[tokio::test]
async fn replicas_clusters_and_eviction_are_found() {
    let primary = Redis::start(RedisOptions::default()).await.unwrap();
    let replica = format!("--replicaof 127.0.0.1 {}", primary.port());
    for (args, code, severity) in [
        (replica.as_str(), "redis_replica", Severity::Error),
        ("--cluster-enabled yes", "redis_cluster", Severity::Error),
        ("--maxmemory-policy allkeys-lru", "redis_eviction", Severity::Warning),
    ] {
        let args = args.split(' ').map(str::to_owned).collect();
        let server = Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap();
        let findings = found_as(&server, "~* +@all", &["k"]).await;
        assert_eq!(find(&findings, code).severity, severity, "{findings:#?}");
    }
}

/// A failover may come between the answer of the Sentinels and the look at the server.
#[tokio::test]
async fn a_replica_is_no_reason_not_to_start_where_sentinels_name_the_primary() {
    let primary = Redis::start(RedisOptions::default()).await.unwrap();
    let args = format!("--replicaof 127.0.0.1 {}", primary.port());
    let args = args.split(' ').map(str::to_owned).collect();
    let replica = Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap();
    let mut config = config(0, "app", vec![rule("t", &["k"])]);
    config.redis[0].url = replica.url();
    let sentinels = Sentinels { service: "cache".to_owned(), list: Vec::new() };
    for (mode, refused) in [(Mode::Standalone, 1), (Mode::Sentinel(sentinels), 0)] {
        config.redis[0].mode = mode;
        let health = Arc::new(Health::new(Arc::new(Metrics::new(&[]))));
        let fitness = preflight::Fitness::new(target(&config), health);
        let mut connection = replica.connect().await.unwrap();
        assert_eq!(fitness.refusals(&mut connection).await.0.len(), refused);
        assert!(fitness.look(connection).await.is_err(), "it is not used in any case");
    }
}

#[tokio::test]
async fn a_redis_that_refuses_writes_or_is_gone_is_told() {
    let args = "--maxmemory 1b".split(' ').map(str::to_owned).collect();
    let mut server = Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap();
    assert!(codes(&found_as(&server, "~* +@all", &["k"]).await).contains(&"redis_refused"));
    let mut connection = server.connect().await.unwrap();
    server.kill9().await.unwrap();
    let config = config(0, "app", Vec::new());
    let findings = preflight::redis(&target(&config), &mut connection).await;
    assert_eq!(codes(&findings), ["redis_unreachable"]);
}

#[tokio::test]
async fn too_few_replicas_and_a_missing_right_to_wait_are_told() {
    let primary = Redis::start(RedisOptions::default()).await.unwrap();
    let mut admin = primary.connect().await.unwrap();
    let mut config = config(0, "app", vec![rule("t", &["k"])]);
    config.redis[0].url = primary.url();
    config.redis[0].wait_replicas = 1;
    let findings = preflight::redis(&target(&config), &mut admin).await;
    let few = find(&findings, "redis_replicas");
    assert_eq!(few.severity, Severity::Warning);
    assert!(
        few.message.contains("`wait_replicas` is 1, and redis has 0 connected replicas"),
        "{}",
        few.message
    );
    let mut forbid = cmd("ACL");
    forbid.arg("SETUSER").arg("default").arg("-wait").exec_async(&mut admin).await.unwrap();
    let findings = preflight::redis(&target(&config), &mut admin).await;
    let messages: Vec<String> = findings.iter().map(plain).collect();
    assert!(messages.iter().any(|one| one == "redis user `default` lacks `+wait`"), "{messages:?}");
    config.redis[0].wait_replicas = 0;
    assert!(preflight::redis(&target(&config), &mut admin).await.is_empty());
}

/// It answers nothing but SCRIPT KILL, not even PING.
#[tokio::test]
async fn a_redis_that_runs_a_script_is_told_with_what_ends_it() {
    let args = "--lua-time-limit 10".split(' ').map(str::to_owned).collect();
    let server = Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap();
    let mut connection = server.connect().await.unwrap();
    let mut busy = server.connect().await.unwrap();
    let script = tokio::spawn(async move {
        cmd("EVAL").arg("while true do end").arg(0).exec_async(&mut busy).await
    });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let mut config = config(0, "app", Vec::new());
    config.redis[0].url = server.url();
    let told = preflight::redis(&target(&config), &mut connection).await;
    let found = find(&told, "redis_unreachable");
    let hint = found.hint.as_deref().unwrap_or_default();
    assert!(found.message.contains("BUSY") && hint.contains("SCRIPT KILL"), "{found:?}");
    cmd("SCRIPT").arg("KILL").exec_async(&mut connection).await.unwrap();
    assert!(script.await.unwrap().is_err());
}
