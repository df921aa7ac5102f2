//! What is found in Redis.

use redis::{Client, cmd};
use walsweep::preflight::{self, Finding, Severity};
use walsweep::throwaway::{Redis, RedisOptions};

use crate::kit::{codes, config, find, rule};

/// What is found as user `app`, who has these rights, by a rule with these keys.
async fn found_as(server: &Redis, rights: &str, keys: &[&str]) -> Vec<Finding> {
    found(server, rights, keys, false).await
}

async fn found(server: &Redis, rights: &str, keys: &[&str], observe: bool) -> Vec<Finding> {
    let mut admin = server.connect().await.unwrap();
    let mut set_user = cmd("ACL");
    set_user.arg("SETUSER").arg("app").arg("reset").arg("on").arg(">x");
    for right in rights.split_whitespace() {
        set_user.arg(right);
    }
    set_user.exec_async(&mut admin).await.unwrap();
    let url = server.url().replace("redis://", "redis://app:x@");
    let mut config = config(0, "app", vec![rule("t", keys)]);
    let client = Client::open(url.as_str()).unwrap();
    config.redis.url = url;
    config.refill.observe = observe;
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    preflight::redis(&config, &mut connection).await
}

#[tokio::test]
async fn a_missing_right_is_named() {
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    let mut admin = server.connect().await.unwrap();
    for (rights, missing) in [
        ("~* +@all", &[][..]),
        ("~db:* ~walsweep:* +@all", &[]),
        ("~* +ping +scan +get +set +incr +eval +unlink +client", &[]),
        ("~* +@all -unlink", &["+unlink"]),
        ("~* +@all -scan -eval", &["+scan", "+eval"]),
        ("~* +@all -set -ping", &["+ping", "+set"]),
        ("~* +@all -get -incr", &["+get", "+incr"]),
        ("~db:* +@all", &["~walsweep:*"]),
    ] {
        let () = cmd("SET").arg("db:a").arg(1).query_async(&mut admin).await.unwrap();
        let findings = found_as(&server, rights, &["db:a", "db:{id}"]).await;
        let expected: Vec<String> =
            missing.iter().map(|right| format!("redis user `app` lacks `{right}`")).collect();
        let messages: Vec<&str> = findings.iter().map(|one| one.message.as_str()).collect();
        assert_eq!(messages, expected, "{rights}");
        assert!(findings.iter().all(Finding::is_error));
        let left: u64 = cmd("EXISTS").arg("db:a").query_async(&mut admin).await.unwrap();
        assert_eq!(left, 1, "a check removed a key of the cache");
    }
    let keys: Vec<String> = cmd("KEYS").arg("*").query_async(&mut admin).await.unwrap();
    assert_eq!(keys, ["db:a"]);
}

#[tokio::test]
async fn a_server_that_does_not_tell_of_writes_is_found_where_that_is_asked_for() {
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    let renamed = "--rename-command CLIENT '' --rename-command HELLO ''";
    let args = renamed.split(' ').map(|arg| arg.replace('\'', "")).collect();
    let without = Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap();
    for (server, rights, observe, expected) in [
        (&server, "~* +@all", true, &[][..]),
        (&server, "~* +@all -client|tracking", false, &[]),
        (
            &server,
            "~* +@all -client|tracking",
            true,
            &["redis user `app` lacks `+client|tracking`"],
        ),
        (&without, "~* +@all", true, &["redis cannot tell which keys are written"]),
    ] {
        let findings = found(server, rights, &["k"], observe).await;
        assert_eq!(findings.len(), expected.len(), "{rights}: {findings:#?}");
        for (finding, expected) in findings.iter().zip(expected) {
            assert_eq!((finding.severity, finding.code), (Severity::Warning, "redis_tracking"));
            assert!(finding.message.starts_with(expected), "{finding}");
            assert!(finding.hint.is_some());
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
    assert_eq!(hint, Some("`acl setuser app ~stats:*`"));
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

#[tokio::test]
async fn a_redis_that_refuses_writes_or_is_gone_is_told() {
    let args = "--maxmemory 1b".split(' ').map(str::to_owned).collect();
    let mut server = Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap();
    assert!(codes(&found_as(&server, "~* +@all", &["k"]).await).contains(&"redis_refused"));
    let mut connection = server.connect().await.unwrap();
    server.kill9().await.unwrap();
    let config = config(0, "app", Vec::new());
    let findings = preflight::redis(&config, &mut connection).await;
    assert_eq!(codes(&findings), ["redis_unreachable"]);
}

#[tokio::test]
async fn too_few_replicas_and_a_missing_right_to_wait_are_told() {
    let primary = Redis::start(RedisOptions::default()).await.unwrap();
    let mut admin = primary.connect().await.unwrap();
    let mut config = config(0, "app", vec![rule("t", &["k"])]);
    config.redis.url = primary.url();
    config.redis.wait_replicas = 1;
    let findings = preflight::redis(&config, &mut admin).await;
    let few = find(&findings, "redis_replicas");
    assert_eq!(few.severity, Severity::Warning);
    assert!(few.message.contains("`wait_replicas` is 1, and 0 replicas"), "{}", few.message);
    let mut forbid = cmd("ACL");
    forbid.arg("SETUSER").arg("default").arg("-wait").exec_async(&mut admin).await.unwrap();
    let findings = preflight::redis(&config, &mut admin).await;
    let messages: Vec<&str> = findings.iter().map(|one| one.message.as_str()).collect();
    assert!(messages.contains(&"redis user `default` lacks `+wait`"), "{messages:?}");
    config.redis.wait_replicas = 0;
    assert!(preflight::redis(&config, &mut admin).await.is_empty());
}
