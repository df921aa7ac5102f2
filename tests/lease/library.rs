//! `setup --lease`, `setup --lease --print`, `check` and `teardown --lease`.

use redis::cmd;
use walsweep::sweep::redis::lease::{self, LIBRARY, Loaded};
use walsweep_stage::throwaway::{Redis, RedisOptions, redis_version};

use crate::support::{Bed, Sidecar, text};

async fn loaded(bed: &Bed) -> Loaded {
    lease::loaded(&mut bed.cache.clone()).await.unwrap()
}

/// Gives what `walsweep ARGS` writes; it must succeed.
fn output(sidecar: &Sidecar, args: &[&str]) -> String {
    let output = sidecar.command(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    text(&output)
}

#[tokio::test]
async fn the_library_is_loaded_replaced_checked_and_removed() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    assert_eq!(loaded(&bed).await, Loaded::Nothing, "only where it is asked for");
    assert!(!output(&sidecar, &["check"]).contains("lease"));

    let old = "#!lua name=walsweep_lease\nredis.register_function('walsweep_lease_get', \
               function() return 0 end)";
    let mut load = cmd("FUNCTION");
    load.arg("LOAD").arg(old).exec_async(&mut bed.cache.clone()).await.unwrap();
    assert_eq!(loaded(&bed).await, Loaded::Other);
    let findings = output(&sidecar, &["check"]);
    assert!(findings.contains("warning[lease_outdated]"), "{findings}");
    assert!(findings.contains("hint: `walsweep setup --lease`"), "{findings}");

    for _ in 0..2 {
        let said = output(&sidecar, &["setup", "--lease"]);
        assert_eq!(said, "loaded the lease functions into redis\n");
        assert_eq!(loaded(&bed).await, Loaded::Current);
    }
    assert!(output(&sidecar, &["check"]).contains("info[lease_loaded]"));

    let slots = "select count(*) from pg_replication_slots";
    let said = output(&sidecar, &["teardown", "--lease"]);
    assert_eq!(said, "removed the lease functions from redis\n");
    assert_eq!(loaded(&bed).await, Loaded::Nothing);
    let said = output(&sidecar, &["teardown", "--lease"]);
    assert_eq!(said, "there are no lease functions in redis\n");
    assert_eq!(bed.sql.one::<i64>(slots).await, 1, "the slot stays");

    output(&sidecar, &["setup", "--lease"]);
    output(&sidecar, &["teardown"]);
    assert_eq!(loaded(&bed).await, Loaded::Current, "others may use it");
}

#[tokio::test]
async fn what_is_printed_can_be_loaded_by_hand() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = Sidecar::new(bed.settings());
    // No server and no configuration is needed to read it.
    sidecar.change(|settings| settings.redis_url = "nonsense".to_owned());
    let printed = output(&sidecar, &["setup", "--lease", "--print"]);
    assert_eq!(printed, LIBRARY);
    let mut load = cmd("FUNCTION");
    load.arg("LOAD").arg(printed).exec_async(&mut bed.cache.clone()).await.unwrap();
    assert_eq!(loaded(&bed).await, Loaded::Current);
}

#[tokio::test]
async fn a_refusal_names_its_cure() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = Sidecar::new(bed.settings());
    let redis = async |args: &[&str]| Redis::start(RedisOptions::with_args(args)).await.unwrap();
    let unknown = ["the lease needs Redis 7.0 or newer", "`refill.window`"];
    let mut servers = Vec::new();
    let mut refusals = Vec::new();
    if redis_version().unwrap() >= (7, 0) {
        let mut user = cmd("ACL");
        user.arg("SETUSER").arg("app").arg("on").arg(">x").arg("~*").arg("+@all").arg("-function");
        user.exec_async(&mut bed.cache.clone()).await.unwrap();
        let forbidden = bed.redis.url().replace("redis://", "redis://app:x@");
        let lacks = ["the redis user lacks `+function|", "-x FUNCTION LOAD REPLACE"];
        refusals.push((forbidden, lacks));
        let replica = redis(&["--replicaof", "127.0.0.1", &bed.redis.port().to_string()]).await;
        let reads = ["read only replica", "let `redis.url` name the primary"];
        refusals.push((replica.url(), reads));
        let without = redis(&["--rename-command", "FUNCTION", ""]).await;
        refusals.push((without.url(), unknown));
        servers.extend([replica, without]);
    } else {
        refusals.push((bed.redis.url(), unknown));
    }
    for (url, parts) in refusals {
        sidecar.change(|settings| settings.redis_url = url);
        for command in ["setup", "teardown"] {
            let output = sidecar.command(&[command, "--lease"]);
            assert_eq!(output.status.code(), Some(1), "{}", text(&output));
            let said = text(&output);
            assert!(parts.iter().all(|part| said.contains(part)), "{command}: {said}");
        }
    }
    if !servers.is_empty() {
        assert_eq!(loaded(&bed).await, Loaded::Nothing);
    }
}
