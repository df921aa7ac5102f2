//! Mistakes of an operator, logins and addresses, and the words about them.

use std::process::Command;

use redis::cmd;

use super::{Service, at_rest, by_sentinels, change, run, stale_sentinel, urls};
use crate::support::{Sidecar, text};

/// As long as a failover lasts, a Sentinel may name one that is not the primary yet, or any more.
#[tokio::test]
async fn a_replica_that_a_sentinel_names_is_not_used() {
    let service = Service::start().await;
    let named = service.replica.port();
    let ports = [stale_sentinel(named)];
    let mut sidecar = Sidecar::new(by_sentinels(service.bed.settings(), &ports));
    sidecar.setup();
    let told = text(&sidecar.command(&["check"]));
    let place = format!("`127.0.0.1:{named}` (primary of `cache`, as its Sentinels say)");
    assert!(told.contains(&format!("connect to redis at {place}: the server is a repl")), "{told}");
    sidecar.start();
    sidecar.wait_log("the server is a replica").await;
    let mut promote = cmd("REPLICAOF");
    promote.arg("NO").arg("ONE");
    promote.exec_async(&mut service.replica.connect().await.unwrap()).await.unwrap();
    sidecar.wait_ready().await;
}

/// `check` and `run` say what each Sentinel says, and what to do.
#[tokio::test]
async fn a_service_that_no_sentinel_knows_is_refused() {
    let mut service = Service::start().await;
    let mut settings = service.settings();
    settings.redis_url = "redis://hunter/0".to_owned();
    let mut sidecar = Sidecar::new(settings);
    sidecar.setup();
    let expected = format!(
        "ask the Sentinels for the primary of `hunter`: `127.0.0.1:{}` knows no such service; ",
        service.ports()[0]
    );
    let check = sidecar.command(&["check"]);
    assert_eq!(check.status.code(), Some(1));
    let told = text(&check);
    assert!(told.contains(&expected) && told.contains("(`sentinel masters`)"), "{told}");
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    assert!(sidecar.log().iter().any(|line| line.contains(&expected)), "{:?}", sidecar.log());
    let server = service.bed.redis.port();
    sidecar.change(|settings| *settings = by_sentinels(settings.clone(), &[server]));
    let told = text(&sidecar.command(&["check"]));
    assert!(told.contains(&format!("`127.0.0.1:{server}`: is a Redis, no Sentinel")), "{told}");
    let settings = service.settings();
    sidecar.change(|old| *old = settings);
    sidecar.start();
    sidecar.wait_ready().await;
}

/// Sentinels that are away may come: `run` waits for them.
#[tokio::test]
async fn sentinels_that_are_away_at_the_start_are_waited_for() {
    let mut service = Service::start().await;
    for sentinel in service.sentinels.sentinels() {
        sentinel.kill9().await.unwrap();
    }
    let mut sidecar = Sidecar::new(service.settings());
    sidecar.setup();
    sidecar.start();
    sidecar.wait_log("ask the Sentinels for the primary of `cache`").await;
    sidecar.wait_log("see that the Sentinels in `redis.sentinels` run").await;
    for sentinel in service.sentinels.sentinels() {
        sentinel.start_again().await.unwrap();
    }
    sidecar.wait_ready().await;
    service.cache_rows().await;
    change(&service.bed, 1..10).await;
    at_rest(&service.bed, &sidecar).await;
}

/// The login of the Sentinels is theirs: the servers have none.
#[tokio::test]
async fn a_password_of_the_sentinels_is_theirs_and_never_told() {
    let mut service = Service::start().await;
    for sentinel in service.sentinels.sentinels() {
        let mut connection = sentinel.connect().await.unwrap();
        for words in [
            &["ACL", "SETUSER", "default", "resetpass", ">hunter2"][..],
            &["ACL", "SETUSER", "few", "on", ">hunter3", "-@all", "+auth", "+client|setname"],
            &["ACL", "SETUSER", "few", "+sentinel|get-master-addr-by-name"],
        ] {
            run(&mut connection, words).await;
        }
    }
    let (settings, ports) = (service.settings(), service.ports());
    let mut sidecar = Sidecar::new(settings);
    sidecar.setup();
    let told = text(&sidecar.command(&["check"]));
    assert!(told.contains("redis answered NOAUTH"), "{told}");
    for (login, answer) in
        [(":hunter1@", "authentication failed"), ("few:hunter3@", "3 of 3 Sentinels")]
    {
        sidecar.change(|settings| {
            let urls = urls(&ports, login);
            settings.redis = format!("mode = \"sentinel\"\nsentinels = {urls:?}");
        });
        let told = text(&sidecar.command(&["check"]));
        assert!(told.contains(answer) && !told.contains("hunter"), "{told}");
    }
    sidecar.change(|settings| {
        settings.redis =
            format!("mode = \"sentinel\"\nsentinels = {:?}", urls(&ports, ":hunter2@"));
    });
    sidecar.start();
    sidecar.wait_ready().await;
    service.cache_rows().await;
    change(&service.bed, 1..10).await;
    at_rest(&service.bed, &sidecar).await;
    assert!(!sidecar.log().iter().any(|line| line.contains("hunter")), "a password");
}

/// Where it is printed how the keys are removed by hand, the line asks a Sentinel where.
#[tokio::test]
async fn the_printed_redis_cli_reaches_the_primary() {
    let mut service = Service::start().await;
    let sidecar = Sidecar::set_up(service.settings()).await;
    service.cache_rows().await;
    service.bed.marked().await;
    let printed = text(&sidecar.command(&["teardown", "--print"]));
    let printed: String = printed.lines().map(|line| line.trim_start_matches("--")).collect();
    let start = printed.find("`redis-cli").unwrap() + 1;
    let line = &printed[start..start + printed[start..].find('`').unwrap()];
    drop(sidecar);
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}\n{}", text(&output));
    assert_eq!(service.bed.watermark().await, None, "{line}");
    assert!(service.bed.has("item:1").await);
}

#[tokio::test]
async fn a_probe_goes_to_the_primary_that_the_sentinels_name() {
    let mut service = Service::start().await;
    let mut settings = service.settings();
    "probe = true".clone_into(&mut settings.postgres);
    let sidecar = Sidecar::set_up(settings).await;
    let said = text(&sidecar.command(&["probe"]));
    assert!(said.starts_with("gone after ") && said.lines().count() == 1, "{said}");
}
