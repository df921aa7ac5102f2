//! The least rights are enough: the role of `setup --as`, and the user whose line `check` prints.
//! `make test-least` runs every test so.

use std::path::Path;

use redis::{AsyncCommands, cmd};
use walsweep_stage::throwaway::{Cluster, ClusterOptions, Redis, RedisOptions};

use crate::support::{
    Bed, ITEM_RULES, KEEP_THEIR_LOGIN, PATIENCE, Settings, Sidecar, eventually, text,
};

/// Removes `item:1`, and what `check` says then.
async fn is_enough(bed: &Bed, what: &str, change: impl FnOnce(&mut Settings)) {
    let mut settings = bed.settings();
    change(&mut settings);
    let mut sidecar = Sidecar::with_least(settings);
    sidecar.setup();
    sidecar.start();
    sidecar.wait_ready().await;
    bed.fill(&["item:1", "list:team 1:a"]).await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    bed.gone("item:1").await;
    bed.gone("list:team 1:a").await;
    bed.settled().await;
    let checked = sidecar.command(&["check"]);
    assert!(checked.status.success(), "{what}: {}", text(&checked));
    assert!(!text(&checked).contains("acl setuser"), "{what}: {}", text(&checked));
    let who = "select count(*) from pg_stat_activity join pg_roles on rolname = usename
                where application_name like 'walsweep%' and rolsuper";
    assert_eq!(bed.sql.one::<i64>(who).await, 0, "{what}: a session of a superuser");
    let clients = cmd("CLIENT").arg("LIST").query_async::<String>(&mut bed.cache.clone()).await;
    assert!(clients.unwrap().contains(" user=least-"), "{what}: no session of the user");
    sidecar.assert_quiet(&["watermark key is not in redis, as before a first start"]);
    if what == "probe" {
        let said = text(&sidecar.command(&["probe"]));
        assert!(said.starts_with("gone after "), "{said}");
    }
    assert_eq!(sidecar.sigterm().await, 0, "{what}");
    let gone = sidecar.command(&["teardown"]);
    assert!(gone.status.success(), "{what}: {}", text(&gone));
}

/// Each option that needs more of Redis, and whatever needs more of Postgres.
#[tokio::test(flavor = "multi_thread")]
async fn what_setup_and_check_print_is_enough_for_every_option() {
    let bed = Bed::new(&[]).await;
    let primary = bed.redis.port().to_string();
    let options = RedisOptions::with_args(&["--replicaof", "127.0.0.1", &primary]);
    let _replica = Redis::start(options).await.unwrap();
    bed.sql.run("create table club (id int primary key, name text)").await;
    let to = |text: &mut String, line: &str| line.clone_into(text);
    is_enough(&bed, "nothing more", |_| ()).await;
    is_enough(&bed, "tags", |new| new.rules.push_str("tags = [\"tag:{id}\"]\n")).await;
    is_enough(&bed, "fields", |new| new.rules.push_str("fields = { \"h:{id}\" = [\"a\"] }\n"))
        .await;
    is_enough(&bed, "publish", |new| to(&mut new.redis, "publish = \"gone*\"")).await;
    // A primary waits for more replicas before it sends the first its data.
    eventually(PATIENCE, "the replica follows", async || {
        let (mut info, mut cache) = (cmd("INFO"), bed.cache.clone());
        let info: String = info.arg("replication").query_async(&mut cache).await.unwrap();
        info.contains("state=online")
    })
    .await;
    is_enough(&bed, "replicas", |new| to(&mut new.redis, "wait_replicas = 1")).await;
    is_enough(&bed, "index", |new| to(&mut new.sweep, "index = true")).await;
    is_enough(&bed, "observe", |new| {
        to(&mut new.refill, "200ms");
        new.observe = true;
    })
    .await;
    is_enough(&bed, "probe", |new| to(&mut new.postgres, "probe = true")).await;
    is_enough(&bed, "audit", |new| to(&mut new.audit, "file = \"audit.jsonl\"")).await;
    is_enough(&bed, "lookup", |new| {
        new.rules = ITEM_RULES.replace("list:{team}:*", "list:{team}:*\", \"club:{club.name}")
            + "[lookup.club]\nsql = \"select name from club where id = $1\"\nparams = [\"id\"]\n";
    })
    .await;
}

/// Who does not know which keys the sets name is told so, also of a cluster.
#[tokio::test(flavor = "multi_thread")]
async fn what_check_prints_is_enough_for_tags_in_a_cluster() {
    let bed = Bed::new(&[]).await;
    let options = ClusterOptions { primaries: 3, replicas: 0, node: RedisOptions::default() };
    let cluster = Cluster::start(options).await.unwrap();
    let mut settings = bed.settings();
    settings.rules.push_str("tags = [\"tag:{id}\"]\n");
    settings.targets = vec![format!("mode = \"cluster\"\nurl = {:?}", cluster.urls()[0])];
    let mut sidecar = Sidecar::with_least(settings);
    sidecar.setup();
    sidecar.start();
    sidecar.wait_ready().await;
    let slot = async |key: &str| cluster.slot_of(key.as_bytes()).await.unwrap();
    let node = async |key: &str| cluster.owner(slot(key).await).await.unwrap().unwrap();
    let at = async |key: &str| cluster.node(node(key).await).unwrap().connect().await.unwrap();
    let _: () = at("member:1").await.set("member:1", "cached").await.unwrap();
    let _: () = at("tag:1").await.sadd("tag:1", "member:1").await.unwrap();
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    eventually(PATIENCE, "what the set names goes", || async {
        !at("member:1").await.exists::<_, bool>("member:1").await.unwrap()
    })
    .await;
    bed.settled().await;
}

#[tokio::test]
async fn who_may_not_remove_what_is_of_no_rule_reads_what_it_takes() {
    let bed = Bed::new(&[]).await;
    bed.fill(&["session:1"]).await;
    let sidecar = Sidecar::with_least(bed.settings());
    let said = text(&sidecar.command(&["sweep", "session:*", "--force"]));
    assert!(said.contains("NOPERM") && said.contains("of no rule: `acl setuser USER ~"), "{said}");
    assert!(bed.has("session:1").await && !said.contains("walsweep check"), "{said}");
}

/// Whoever adds a test to them changes this number, too.
#[test]
fn few_tests_keep_their_login_each_with_a_reason() {
    assert_eq!(KEEP_THEIR_LOGIN.len(), 36);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/main");
    for (test, why) in KEEP_THEIR_LOGIN {
        let (module, function) = test.rsplit_once("::").unwrap();
        let file = folder.join(module.replace("::", "/"));
        let files = [file.with_extension("rs"), file.join("mod.rs")];
        let is_there = files.iter().filter_map(|file| std::fs::read_to_string(file).ok());
        let is_there = is_there.collect::<String>().contains(&format!("fn {function}("));
        assert!(is_there && !why.is_empty(), "{test}");
    }
}
