//! `run` refuses of Redis what `check` refuses: at the start, and whenever it connects.

use std::path::Path;
use std::sync::Arc;

use walsweep::config;
use walsweep::preflight::Fitness;
use walsweep::telemetry::Health;
use walsweep::telemetry::metrics::Metrics;
use walsweep_stage::throwaway::{Cluster, ClusterOptions, Redis, RedisOptions};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Swap, eventually, text};

/// No rule of these has the right to its keys, unless it is given.
const RULES: &str = r#"
[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}"]

[[rule]]
name = "list"
table = "public.item"
keys = ["list:{team}:*"]
"#;

const COMMANDS: &str = "+ping +info +scan +unlink +get +set +incr +eval";

/// Runs a command of Redis, its words between spaces.
pub(crate) async fn admin(server: &Redis, command: &str) {
    let mut words = command.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    for word in words {
        command.arg(word);
    }
    command.exec_async(&mut server.connect().await.unwrap()).await.unwrap();
}

async fn redis_with(args: &[&str]) -> Redis {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap()
}

/// Three primaries.
async fn cluster() -> Cluster {
    let options = ClusterOptions { primaries: 3, replicas: 0, node: RedisOptions::default() };
    Cluster::start(options).await.unwrap()
}

/// A node that has every slot, so that no key of it is anywhere else.
async fn lonely_node() -> Redis {
    let node = redis_with(&["--cluster-enabled", "yes"]).await;
    let slots = (0..16_384).map(|slot| slot.to_string()).collect::<Vec<_>>().join(" ");
    admin(&node, &format!("CLUSTER ADDSLOTS {slots}")).await;
    let mut connection = node.connect().await.unwrap();
    let mut state = redis::cmd("CLUSTER");
    state.arg("INFO");
    loop {
        let state: String = state.query_async(&mut connection).await.unwrap();
        if state.contains("cluster_state:ok") {
            return node;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

fn redis_url(server: &Redis) -> String {
    server.url().replace("redis://", "redis://app:x@")
}

async fn set_user(server: &Redis, keys: &str) {
    admin(server, &format!("ACL SETUSER app reset on >x {keys} {COMMANDS}")).await;
}

/// Waits until `/readyz` answers 503 with all of this.
async fn not_ready(sidecar: &Sidecar, parts: &[&str]) {
    let what = format!("/readyz answers 503 with {parts:?}");
    eventually(PATIENCE, &what, || async {
        let Some((503, body)) = sidecar.get("/readyz").await else { return false };
        parts.iter().all(|part| body.contains(part))
    })
    .await;
}

async fn ready(sidecar: &Sidecar) {
    eventually(PATIENCE, "it is ready", || async { sidecar.readyz().await == Some(200) }).await;
}

#[tokio::test]
async fn a_redis_that_check_refuses_is_refused_at_the_start() {
    let bed = Bed::new(&[]).await;
    bed.sidecar().await.sigterm().await;
    let replica = format!("--replicaof 127.0.0.1 {}", bed.redis.port());
    let replica: Vec<&str> = replica.split(' ').collect();
    let without = redis_with(&[]).await;
    set_user(&without, "~*").await;
    admin(&without, "ACL SETUSER app -incr").await;
    let cluster = cluster().await;
    let node = cluster.node(0).unwrap().url();
    let told = "`redis.url` reaches one node of a cluster";
    is_refused(&bed, (node, told)).await;
    for (server, told) in [
        (redis_with(&replica).await, "`redis.url` reaches a replica"),
        (redis_with(&["--rename-command", "UNLINK", ""]).await, "has no command `UNLINK`"),
        (redis_with(&["--rename-command", "INCR", "none"]).await, "has no command `INCR`"),
        (without, "lacks `+incr`"),
    ] {
        let redis_url = if told.contains("lacks") { redis_url(&server) } else { server.url() };
        is_refused(&bed, (redis_url, told)).await;
    }
    let mut settings = bed.settings();
    settings.redis_url = settings.redis_url.replace("redis://", "redis://nobody:x@");
    let mut sidecar = Sidecar::new(settings);
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
}

/// `check` says it, and `run` says it and ends.
async fn is_refused(bed: &Bed, (redis_url, told): (String, &str)) {
    let mut sidecar = Sidecar::new(Settings { redis_url, ..bed.settings() });
    let checked = text(&sidecar.command(&["check"]));
    assert!(checked.contains(told), "check: {told}\n{checked}");
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1, "{told}\n{}", sidecar.log().join("\n"));
    let log = sidecar.log().join("\n");
    assert!(log.contains("refused to start") && log.contains(told), "{told}\n{log}");
    assert!(!log.contains("walsweep setup"), "that is for Postgres\n{log}");
}

/// A cluster of one node is used by its address as an endpoint is that looks the same: nothing is
/// taken for proven, since other nodes may come.
#[tokio::test]
async fn a_lonely_node_of_a_cluster_is_used_as_an_endpoint() {
    let bed = Bed::new(&[]).await;
    let node = lonely_node().await;
    let mut sidecar = Sidecar::set_up(Settings { redis_url: node.url(), ..bed.settings() }).await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let keys = ["item:1", "list:team 1:a", "item:2"];
    let mut cache = node.connect().await.unwrap();
    for key in keys {
        let _: () = redis::AsyncCommands::set(&mut cache, key, "cached").await.unwrap();
    }
    sidecar.start();
    sidecar.wait_ready().await;
    let left: usize = redis::cmd("DBSIZE").query_async(&mut cache).await.unwrap();
    let own: Vec<String> = redis::AsyncCommands::keys(&mut cache, "walsweep:*").await.unwrap();
    assert_eq!(left, own.len(), "all of theirs are swept");
    let checked = text(&sidecar.command(&["check"]));
    assert!(checked.contains("redis_shards") && checked.contains("mode = \"cluster\""));
}

/// A server that refuses for a while is waited for.
#[tokio::test]
async fn a_redis_without_memory_is_no_reason_not_to_start() {
    let bed = Bed::new(&[]).await;
    admin(&bed.redis, "CONFIG SET maxmemory 1").await;
    let mut sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    sidecar.start();
    sidecar.wait_log("redis answered OOM").await;
    assert!(!sidecar.has_ended());
    admin(&bed.redis, "CONFIG SET maxmemory 0").await;
    ready(&sidecar).await;
    bed.settled().await;
}

#[tokio::test]
async fn a_rule_whose_keys_may_not_be_removed_is_named_and_the_others_go_on() {
    let bed = Bed::new(&[]).await;
    set_user(&bed.redis, "~item:* ~walsweep:*").await;
    let redis_url = redis_url(&bed.redis);
    let settings = Settings { redis_url, rules: RULES.to_owned(), ..bed.settings() };
    let mut sidecar = Sidecar::new(settings);
    sidecar.setup();
    let checked = sidecar.command(&["check"]);
    assert_eq!(checked.status.code(), Some(1));
    sidecar.start();
    let acl = "acl setuser app +ping +info +scan +unlink +get +set +incr +eval \
               ~item:* ~list:*:* ~walsweep:*";
    let told = "rule `list`: redis user `app` may not remove keys of `list:{team}:*`";
    not_ready(&sidecar, &[told, acl]).await;
    bed.fill(&["item:7", "other"]).await;
    bed.sql.run("update item set version = 1 where id = 7").await;
    bed.gone("item:7").await;
    let body = sidecar.get("/readyz").await.unwrap().1;
    assert!(!body.contains("rule `item`"), "{body}");
    admin(&bed.redis, acl).await;
    ready(&sidecar).await;
    bed.fill(&["list:team 7:a"]).await;
    bed.sql.run("update item set version = 2 where id = 7").await;
    bed.gone("list:team 7:a").await;
    assert!(bed.has("other").await);
}

#[tokio::test]
async fn a_server_that_comes_later_is_looked_at_when_it_comes() {
    let mut bed = Bed::new(&[]).await;
    let target = |redis: &Redis| ([127, 0, 0, 1], redis.port()).into();
    let nodes = cluster().await;
    let cluster = nodes.node(0).unwrap();
    let front = Swap::start(target(&bed.redis));
    let redis_url = front.url(&bed.redis.url(), bed.redis.port());
    let mut sidecar = Sidecar::new(Settings { redis_url, ..bed.settings() });
    sidecar.setup();
    bed.redis.kill9().await.unwrap();
    sidecar.start();
    not_ready(&sidecar, &["redis is out of reach"]).await;
    front.to(target(cluster));
    let told = "`redis.url` reaches one node of a cluster: keys of the other nodes would stay";
    not_ready(&sidecar, &[told, "hint: "]).await;
    assert!(!sidecar.has_ended());
    bed.redis.start_again().await.unwrap();
    bed.cache = bed.redis.connect().await.unwrap();
    front.to(target(&bed.redis));
    ready(&sidecar).await;
    let body = sidecar.get("/readyz").await.unwrap().1;
    assert!(!body.contains("cluster"), "{body}");
    bed.marked().await;
    // It takes the place of the one that was right.
    front.to(target(cluster));
    not_ready(&sidecar, &[told]).await;
    assert!(bed.watermark().await.is_some());
    let written: Vec<String> = redis::cmd("KEYS")
        .arg("walsweep:walsweep")
        .query_async(&mut cluster.connect().await.unwrap())
        .await
        .unwrap();
    assert_eq!(written, [""; 0], "what goes there is confirmed");
    front.to(target(&bed.redis));
    ready(&sidecar).await;
}

#[tokio::test]
async fn a_right_that_is_lost_is_named_at_the_next_connection_and_keys_go_on() {
    let bed = Bed::new(&[]).await;
    set_user(&bed.redis, "~*").await;
    let redis_url = redis_url(&bed.redis);
    let sidecar = Sidecar::set_up(Settings { redis_url, ..bed.settings() }).await;
    bed.settled().await;
    admin(&bed.redis, "ACL SETUSER app -incr").await;
    admin(&bed.redis, "CLIENT KILL USER app").await;
    not_ready(&sidecar, &["redis user `app` lacks `+incr`", "acl setuser app "]).await;
    bed.fill(&["item:7"]).await;
    bed.sql.run("update item set version = 1 where id = 7").await;
    bed.gone("item:7").await;
    admin(&bed.redis, "ACL SETUSER app +incr").await;
    ready(&sidecar).await;
    bed.settled().await;
}

/// Redis is there: whoever looks why it is out of reach finds nothing.
#[tokio::test]
async fn a_user_that_is_gone_is_told_as_a_login_that_is_refused() {
    let bed = Bed::new(&[]).await;
    set_user(&bed.redis, "~*").await;
    let redis_url = redis_url(&bed.redis);
    let sidecar = Sidecar::set_up(Settings { redis_url, ..bed.settings() }).await;
    bed.settled().await;
    admin(&bed.redis, "ACL SETUSER app -incr").await;
    admin(&bed.redis, "CLIENT KILL USER app").await;
    not_ready(&sidecar, &["redis user `app` lacks `+incr`"]).await;
    // Its connections are ended, too.
    admin(&bed.redis, "ACL DELUSER app").await;
    not_ready(&sidecar, &["redis refuses walsweep's login", "makes the user again"]).await;
    // That line would make a user who may not log in.
    let (_, said) = sidecar.get("/readyz").await.unwrap();
    assert!(!said.contains("lacks `+incr`"), "{said}");
    let said = text(&sidecar.command(&["status", "--json"]));
    let verdict = r#""text":"redis refuses walsweep's login"#;
    assert!(said.contains(verdict) && said.contains(r#""section":"redis-refuses""#), "{said}");
    set_user(&bed.redis, "~*").await;
    ready(&sidecar).await;
}

/// Which keys a user may name shows only once it may run a command, so that takes two lines.
#[tokio::test]
async fn a_user_without_any_right_has_all_after_the_lines_of_check() {
    let bed = Bed::new(&[]).await;
    admin(&bed.redis, "ACL SETUSER app reset on >x").await;
    let redis_url = redis_url(&bed.redis);
    let sidecar = Sidecar::new(Settings { redis_url, ..bed.settings() });
    sidecar.setup();
    for is_first in [true, false] {
        let output = sidecar.command(&["check"]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.contains("then run `walsweep check` again"), is_first, "{said}");
        let (_, after) = said.split_once("`acl setuser").unwrap_or_else(|| panic!("{said}"));
        let line = after.split('`').next().unwrap();
        admin(&bed.redis, &format!("ACL SETUSER{line}")).await;
    }
    let output = sidecar.command(&["check"]);
    assert!(output.status.success(), "{}", text(&output));
}

/// A session that begins looks for itself: what the one before it told is told no more.
#[tokio::test]
async fn what_was_wrong_with_redis_is_told_no_more_when_a_new_session_finds_it_right() {
    let bed = Bed::new(&[]).await;
    set_user(&bed.redis, "~*").await;
    let redis_url = redis_url(&bed.redis);
    let sidecar = Sidecar::set_up(Settings { redis_url, ..bed.settings() }).await;
    bed.settled().await;
    admin(&bed.redis, "ACL SETUSER app -incr").await;
    admin(&bed.redis, "CLIENT KILL USER app").await;
    not_ready(&sidecar, &["redis user `app` lacks `+incr`"]).await;
    // It is looked at again every five seconds; the session ends sooner.
    admin(&bed.redis, "ACL SETUSER app +incr").await;
    bed.sql.run("select pg_terminate_backend(active_pid) from pg_replication_slots").await;
    ready(&sidecar).await;
}

/// In a failover a node may become a replica after the others named it: the next look at the
/// cluster has another one in its place.
#[tokio::test]
async fn only_a_server_that_nobody_else_names_is_refused_as_a_replica() {
    let server = redis_with(&["--replicaof", "127.0.0.1 1"]).await;
    let code = async |mode: &str| {
        let mut connection = server.connect().await.unwrap();
        let (findings, _) = fitness(&server.url(), mode).refusals(&mut connection).await;
        findings.iter().map(|finding| finding.code.as_str()).collect::<Vec<_>>()
    };
    assert!(code("standalone").await.contains(&"redis_replica"));
    let of_cluster = code("cluster").await;
    assert_eq!(of_cluster, ["redis_cluster"], "it is none of a cluster, either");
}

fn fitness(url: &str, mode: &str) -> Fitness {
    let text = format!(
        "[postgres]\nurl = \"postgres://u@127.0.0.1/d\"\n[redis]\nurl = \"{url}\"\n\
         mode = \"{mode}\"\n[[rule]]\nname = \"r\"\ntable = \"public.t\"\nkeys = [\"k\"]\n"
    );
    let parsed = config::parse(&text, &|_name| None, Path::new("."));
    let config = parsed.config.unwrap();
    let target = config.targets().next().unwrap();
    let health = Arc::new(Health::new(Arc::new(Metrics::new(&["r".to_owned()]))));
    Fitness::new(target, health)
}

/// A node that became a replica is not used, and nobody has to cure that.
#[tokio::test]
async fn a_node_of_a_cluster_that_became_a_replica_is_left_and_not_told() {
    let options = ClusterOptions { primaries: 3, replicas: 1, node: RedisOptions::default() };
    let cluster = Cluster::start(options).await.unwrap();
    for (at, left) in [(0, None), (3, Some("it is a replica by now"))] {
        let node = cluster.node(at).unwrap();
        let fitness = fitness(&node.url(), "cluster");
        let (findings, _) = fitness.refusals(&mut node.connect().await.unwrap()).await;
        assert!(findings.is_empty(), "{findings:?}");
        let looked = fitness.look(node.connect().await.unwrap()).await;
        assert_eq!(looked.err().as_deref(), left);
    }
}
