//! Several Redis deployments: each gets the keys of its rules, under its prefix, at its own pace.

use std::time::Duration;

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;
use walsweep_stage::throwaway::{Redis, RedisOptions};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, always, eventually, text};

/// `item` and `twin` give one key, and one pattern, from different tables.
const RULES: &str = r#"
[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}", "list:{team}:*"]

[[rule]]
name = "twin"
table = "public.twin"
keys = ["item:{id}", "list:{team}:*"]

[[rule]]
name = "shared"
table = "public.shared"
keys = ["shared:{id}"]
"#;

const TABLES: &str = "
    create table twin (id int primary key, team text, version int not null default 0);
    create table shared (id int primary key, version int not null default 0);
    alter table twin replica identity full;
    insert into twin select id, 'team ' || id, 0 from generate_series(1, 100) id;
    insert into shared select id from generate_series(1, 100) id;";

/// A bed with a second Redis, `near`. Rules `item` and `shared` go to the first one, which is
/// called `main`; `twin` and `shared` go to the other, under `app:`.
struct Two {
    bed: Bed,
    near: Redis,
    cache: MultiplexedConnection,
    sidecar: Sidecar,
}

impl Two {
    async fn start(change: impl FnOnce(&mut Settings)) -> Two {
        let bed = Bed::new(&[]).await;
        let near = Redis::start(RedisOptions::default()).await.unwrap();
        let cache = near.connect().await.unwrap();
        bed.sql.run(TABLES).await;
        let near_lines = "rules = [\"twin\", \"shared\"]\nprefix = \"app:\"";
        let mut settings = Settings {
            rules: RULES.to_owned(),
            targets: vec![
                of_target("main", &bed.redis.url(), r#"rules = ["item", "sha*"]"#),
                of_target("near", &near.url(), near_lines),
            ],
            ..bed.settings()
        };
        change(&mut settings);
        let sidecar = Sidecar::set_up(settings).await;
        bed.settled().await;
        Two { bed, near, cache, sidecar }
    }

    /// Puts keys into the second Redis.
    async fn fill(&self, keys: &[&str]) {
        for key in keys {
            let _: () = self.cache.clone().set(*key, "cached").await.unwrap();
        }
    }

    async fn has(&self, key: &str) -> bool {
        self.cache.clone().exists(key).await.unwrap()
    }

    async fn gone(&self, key: &str) -> Duration {
        eventually(PATIENCE, &format!("`{key}` goes"), async || !self.has(key).await).await
    }
}

fn of_target(name: &str, url: &str, more: &str) -> String {
    format!("name = {name:?}\nurl = {url:?}\n{more}")
}

/// One transaction gives the same key for both, and each target has it: what one rule gave is not
/// known to another that goes elsewhere.
#[tokio::test]
async fn each_target_gets_the_keys_of_its_rules_under_its_prefix() {
    let two = Two::start(|settings| settings.refill = "100ms".to_owned()).await;
    let keys = ["item:1", "list:team 1:a", "shared:1", "item:2"];
    two.bed.fill(&keys).await;
    two.fill(&keys).await;
    let own = keys.map(|key| format!("app:{key}"));
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    two.fill(&own).await;
    two.bed.fill(&own).await;
    let update = "update item set version = version + 1 where id = 1;
                  update twin set version = version + 1 where id = 1;
                  update shared set version = version + 1 where id = 1;
                  update item set version = version + 1 where id = 2";
    two.bed.sql.run(&format!("begin; {update}; commit")).await;
    for key in keys {
        two.bed.gone(key).await;
    }
    for key in &own[..3] {
        two.gone(key).await;
    }
    two.bed.settled().await;
    for key in keys {
        assert!(two.has(key).await, "`{key}` of somebody else");
        assert!(two.bed.has(&format!("app:{key}")).await, "`app:{key}` of somebody else");
    }
    assert!(two.has("app:item:2").await, "rule `item` does not go there");
    let marks: Vec<String> = two.cache.clone().keys("*walsweep*").await.unwrap();
    assert!(marks.contains(&"app:walsweep:walsweep".to_owned()), "{marks:?}");
    assert!(marks.iter().all(|mark| mark.starts_with("app:")), "{marks:?}");
    two.sidecar.assert_quiet(&["as before a first start"]);
}

/// A target that owes a sweep has its own keys swept, as far as rules go there; the other has none.
#[tokio::test]
async fn a_target_is_swept_for_its_own_sake_and_of_its_own_rules() {
    let mut two = Two::start(|_| {}).await;
    two.sidecar.kill9();
    let _: () = two.cache.clone().del("app:walsweep:walsweep").await.unwrap();
    two.bed.fill(&["item:7", "shared:7"]).await;
    two.fill(&["app:item:7", "app:list:x:y", "app:shared:7", "app:other", "item:7"]).await;
    two.sidecar.start();
    two.sidecar.wait_ready().await;
    for key in ["app:item:7", "app:list:x:y", "app:shared:7"] {
        assert!(!two.has(key).await, "{key}");
    }
    assert!(two.has("app:other").await && two.has("item:7").await, "no rule gives them");
    assert!(two.bed.has("item:7").await && two.bed.has("shared:7").await, "nothing is owed there");
    two.sidecar.wait_log("redis=\"near\"").await;
}

/// A rule that goes to one more target is swept there, and nowhere else.
#[tokio::test]
async fn a_rule_that_newly_goes_to_a_target_is_swept_there_alone() {
    let mut two = Two::start(|_| {}).await;
    assert_eq!(two.sidecar.sigterm().await, 0);
    let (main, near) = (two.bed.redis.url(), two.near.url());
    two.sidecar.change(|settings| {
        settings.targets = vec![
            of_target("main", &main, r#"rules = ["item", "sha*"]"#),
            of_target("near", &near, "rules = [\"*\"]\nprefix = \"app:\""),
        ];
    });
    two.bed.fill(&["item:7"]).await;
    two.fill(&["app:item:7", "app:shared:7"]).await;
    two.sidecar.start();
    two.sidecar.wait_ready().await;
    // `twin` gives the same keys, so those of `item` were covered for some changes, not for all.
    assert!(!two.has("app:item:7").await, "rule `item` did not go there");
    assert!(two.has("app:shared:7").await && two.bed.has("item:7").await, "nothing is new there");
    two.fill(&["app:item:8"]).await;
    two.bed.sql.run("update item set version = version + 1 where id = 8").await;
    two.gone("app:item:8").await;
}

/// The other's keys go as ever, nothing is confirmed, and pages and log name the target; when it is
/// back, what it missed goes.
#[tokio::test]
async fn a_target_that_is_away_delays_its_own_keys_and_the_confirmation() {
    let two = Two::start(|settings| settings.refill = "100ms".to_owned()).await;
    two.bed.fill(&["shared:1"]).await;
    two.fill(&["app:shared:1", "app:shared:2"]).await;
    two.near.pause().unwrap();
    let began = Instant::now();
    for id in 1..=100 {
        two.bed.fill(&[&format!("shared:{id}")]).await;
        two.bed.sql.run(&format!("update shared set version = 1 where id = {id}")).await;
        two.bed.gone(&format!("shared:{id}")).await;
    }
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let lost = async || {
        let (status, text) = two.sidecar.get("/readyz").await.unwrap();
        status == 503 && text.contains("redis `near`")
    };
    eventually(PATIENCE, "/readyz names the target", lost).await;
    assert_eq!(two.sidecar.metric("walsweep_target_ready{target=\"main\"}").await, 1.0);
    assert_eq!(two.sidecar.metric("walsweep_target_ready{target=\"near\"}").await, 0.0);
    let position = two.bed.position().await;
    let held = async || two.bed.confirmed().await < position;
    always(Duration::from_secs(1), "the target that is away holds the confirmation", held).await;
    two.near.resume().unwrap();
    two.gone("app:shared:1").await;
    two.gone("app:shared:2").await;
    two.bed.settled().await;
    eventually(PATIENCE, "it is ready", async || two.sidecar.readyz().await == Some(200)).await;
    let removed = "walsweep_target_commit_to_removed_seconds_count{target=\"near\"}";
    assert!(two.sidecar.metric(removed).await > 0.0);
    assert!(two.sidecar.log().iter().any(|line| line.contains("redis `near` is lost")));
}

/// Two targets may be one database, with prefixes, and each observes its own writes.
#[tokio::test]
async fn two_targets_of_one_database_keep_apart_by_their_prefixes() {
    let bed = Bed::new(&[]).await;
    let url = bed.redis.url();
    let of = |name: &str| of_target(name, &url, &format!("prefix = \"{name}[*]:\""));
    let settings = Settings {
        targets: vec![of("eu"), of("us")],
        refill: "700ms".to_owned(),
        observe: true,
        ..bed.settings()
    };
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    let keys = ["eu[*]:item:1", "us[*]:item:1", "eu[*]:list:team 1:a", "us[*]:list:team 1:a"];
    let others = ["item:1", "eux:item:1", "eu*:list:team 1:a", "eu[*]:item:2"];
    bed.fill(&keys).await;
    bed.fill(&others).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    for key in keys {
        bed.gone(key).await;
    }
    // A reader that was late.
    bed.fill(&keys[..1]).await;
    bed.fill(&keys[3..]).await;
    bed.settled().await;
    for key in keys {
        assert!(!bed.has(key).await, "`{key}` is not removed again");
    }
    let again = "walsweep_sweeps_total{reason=\"refill\"}";
    assert_eq!(sidecar.metric(again).await, 0.0, "names are known");
    for key in others {
        assert!(bed.has(key).await, "`{key}` is of somebody else");
    }
    let marks: Vec<String> = bed.cache.clone().keys("*walsweep:walsweep").await.unwrap();
    assert_eq!(marks.len(), 2, "{marks:?}");
    sidecar.assert_quiet(&["as before a first start"]);
}

/// Commands name the target that they tell of.
#[tokio::test]
async fn commands_know_the_targets() {
    let mut two = Two::start(|_| {}).await;
    let check = text(&two.sidecar.command(&["check"]));
    for name in ["`main`: version ", "`near`: version "] {
        assert!(check.contains(name), "{name} in {check}");
    }
    assert_eq!(two.sidecar.sigterm().await, 0);
    two.bed.fill(&["item:1", "shared:1"]).await;
    two.fill(&["app:item:1", "app:shared:1", "shared:1"]).await;
    let swept = text(&two.sidecar.command(&["sweep", "shared:*", "--target", "near"]));
    assert!(swept.contains("redis `near`: 1 key matched, 1 removed"), "{swept}");
    assert!(!two.has("app:shared:1").await && two.has("shared:1").await);
    assert!(two.bed.has("shared:1").await, "the other target");
    let swept = text(&two.sidecar.command(&["sweep", "shared:*", "item:1"]));
    assert!(swept.contains("redis `main`: 2 keys matched, 2 removed"), "{swept}");
    assert!(!two.has("app:item:1").await, "rule `twin` covers it");
    let unknown = text(&two.sidecar.command(&["sweep", "shared:*", "--target", "far"]));
    assert!(unknown.contains("`main`, `near`"), "{unknown}");
    let torn = text(&two.sidecar.command(&["teardown"]));
    for said in ["from redis `main`", "`app:walsweep:walsweep` and what belongs to it"] {
        assert!(torn.contains(said), "{said} in {torn}");
    }
    let left: Vec<String> = two.cache.clone().keys("*walsweep*").await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

/// One database by two names would have one watermark for two: neither starts.
#[tokio::test]
async fn one_database_by_two_addresses_is_refused() {
    let bed = Bed::new(&[]).await;
    let url = bed.redis.url();
    let by_name = url.replace("127.0.0.1", "localhost");
    let prefixed = |prefix: &str| {
        vec![
            of_target("one", &url, ""),
            of_target("two", &by_name, &format!("prefix = {prefix:?}")),
        ]
    };
    let settings = Settings { targets: prefixed(""), ..bed.settings() };
    let mut sidecar = Sidecar::new(settings);
    sidecar.setup();
    let check = text(&sidecar.command(&["check"]));
    assert!(check.contains("error[redis_twice]: redis `two` is the database of redis `one`"));
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    sidecar.change(|settings| settings.targets = prefixed("two:"));
    assert!(!text(&sidecar.command(&["check"])).contains("redis_twice"));
    sidecar.start();
    sidecar.wait_ready().await;
}

/// One that refuses the login, or is a replica for the moment, keeps no other from its keys.
#[tokio::test]
async fn a_start_goes_on_with_the_targets_that_can_be_had() {
    let bed = Bed::new(&[]).await;
    let other = Redis::start(RedisOptions::default()).await.unwrap();
    let wrong = other.url().replace("redis://", "redis://nobody:wrong@");
    let targets =
        |url: &str| vec![of_target("near", &bed.redis.url(), ""), of_target("far", url, "")];
    let mut sidecar = Sidecar::new(Settings { targets: targets(&wrong), ..bed.settings() });
    sidecar.setup();
    bed.fill(&["item:1"]).await;
    sidecar.start();
    let page = async || sidecar.get("/readyz").await.map_or(String::new(), |(_, page)| page);
    eventually(PATIENCE, "the page names it", async || page().await.contains("redis `far`")).await;
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    assert_eq!(sidecar.sigterm().await, 0);
    // Where none can be had, or `--strict` asks for all, it is refused.
    sidecar.start_strictly();
    assert_eq!(sidecar.wait_exit().await, 1);
    let refused = sidecar.log();
    assert!(refused.iter().any(|line| line.contains("redis `far`")), "{refused:?}");
}

/// A pass takes no target's own keys, though another's stand among those that its rules match.
#[tokio::test]
async fn no_target_removes_the_watermark_of_another() {
    let bed = Bed::new(&[]).await;
    let url = bed.redis.url();
    let rules = "[[rule]]\nname = \"item\"\ntable = \"public.item\"\nkeys = [\"{id}:*\"]\n";
    let settings = Settings {
        targets: vec![of_target("plain", &url, ""), of_target("app", &url, "prefix = \"app:\"")],
        rules: rules.to_owned(),
        refill: "300ms".to_owned(),
        observe: true,
        ..bed.settings()
    };
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    let resyncs = sidecar.metric_sum("walsweep_resyncs_total").await;
    bed.fill(&["app:x:1", "x:1"]).await;
    bed.sql.run("truncate item").await;
    for key in ["app:x:1", "x:1"] {
        bed.gone(key).await;
    }
    bed.settled().await;
    let mut marks: Vec<String> = bed.cache.clone().keys("*walsweep:walsweep").await.unwrap();
    marks.sort();
    assert_eq!(marks, ["app:walsweep:walsweep", "walsweep:walsweep"]);
    assert_eq!(sidecar.metric_sum("walsweep_resyncs_total").await, resyncs);
}
