//! One address that hides several servers: keys and patterns go from all of them, nothing is taken
//! for proven, and a server that loses removals is swept.

use std::path::Path;
use std::time::Duration;

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use walsweep::config;
use walsweep::sweep::{Error, Kind, Node, Primary, ScanCall, Standalone};
use walsweep_stage::throwaway::{Redis, RedisOptions};

use crate::support::{
    Bed, Endpoint, Eval, ITEM_RULES, Keys, PATIENCE, Scan, Settings, Sidecar, Spread, Tricks,
    always, eventually, text,
};

/// How the log says that nothing is proven.
const UNPROVEN: &str = "nothing shows that redis keeps every removal";

/// Rules of exact keys alone.
const EXACT_RULES: &str = r#"
[[rule]]
name = "exact"
table = "public.item"
keys = ["item:{id}"]
"#;

/// Servers behind an address, and Postgres; the Redis of the bed is not used.
struct Shop {
    bed: Bed,
    servers: Vec<Redis>,
    endpoint: Endpoint,
}

impl Shop {
    async fn start(count: usize, tricks: Tricks) -> Shop {
        let bed = Bed::new(&[]).await;
        let mut servers = Vec::new();
        for _ in 0..count {
            servers.push(Redis::start(RedisOptions::default()).await.unwrap());
        }
        let endpoint = Endpoint::start(servers.iter().map(Redis::port).collect(), tricks);
        Shop { bed, servers, endpoint }
    }

    fn settings(&self) -> Settings {
        let (redis_url, rules) = (self.endpoint.url(), ITEM_RULES.to_owned());
        Settings { redis_url, rules, ..self.bed.settings() }
    }

    /// The server that has a key.
    async fn server_of(&self, key: &str) -> MultiplexedConnection {
        self.servers[self.endpoint.place(key.as_bytes())].connect().await.unwrap()
    }

    async fn fill(&self, keys: &[String]) {
        for key in keys {
            let _: () = self.server_of(key).await.set(key, "cached").await.unwrap();
        }
    }

    async fn has(&self, key: &str) -> bool {
        self.server_of(key).await.exists(key).await.unwrap()
    }

    async fn gone(&self, keys: &[String]) {
        for key in keys {
            eventually(PATIENCE, &format!("`{key}` goes"), async || !self.has(key).await).await;
        }
    }

    async fn change(&self, ids: &str) {
        self.bed.sql.run(&format!("update item set version = version + 1 where id {ids}")).await;
    }

    /// The watermark, wherever it is.
    async fn watermark(&self) -> Option<String> {
        self.server_of("walsweep:walsweep").await.get("walsweep:walsweep").await.unwrap()
    }

    /// Whether all servers have a key of these.
    fn assert_spread(&self, keys: &[String]) {
        let of = |place| keys.iter().any(|key| self.endpoint.place(key.as_bytes()) == place);
        assert!((0..self.servers.len()).all(of), "the keys are on some servers alone");
    }
}

fn keys(pattern: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| pattern.replace('#', &number.to_string())).collect()
}

/// Everything that is swept for want of proof so far.
async fn unproven(sidecar: &Sidecar) -> u32 {
    let count = sidecar.metric("walsweep_resyncs_total{reason=\"unproven\"}").await;
    (0..1_000).find(|number| (f64::from(*number) - count).abs() < 0.5).unwrap()
}

/// Exact keys, keys of patterns and late fills go from every server, each counted once; what is
/// removed is confirmed.
async fn keys_go_from_every_server(shop: &Shop) {
    let settings = Settings { refill: "4s".to_owned(), ..shop.settings() };
    let sidecar = Sidecar::set_up(settings).await;
    shop.bed.settled().await;
    sidecar.wait_log(UNPROVEN).await;
    let (exact, lists) = (keys("item:#", 40), keys("list:team 1:#", 700));
    let others = keys("list:team 2:#", 20);
    shop.assert_spread(&exact);
    shop.assert_spread(&lists);
    shop.fill(&[&exact[1..], &lists, &others].concat()).await;
    shop.endpoint.most_keys();
    shop.change("< 40 and team = 'team 1'").await;
    shop.gone(&lists).await;
    shop.gone(&["item:1".to_owned(), "item:31".to_owned()]).await;
    // Whoever fills late is removed again.
    shop.fill(&lists[..50]).await;
    shop.bed.settled().await;
    shop.gone(&lists[..50]).await;
    assert!(shop.has("item:2").await && shop.has("list:team 2:3").await, "of others");
    assert_eq!(shop.endpoint.most_keys(), 1, "each key by a command of its own");
    let removed = sidecar.metric("walsweep_keys_removed_total{rule=\"item\"}").await;
    assert_eq!(removed.to_string(), "704", "of 4 items and 700 lists");
    let absent = sidecar.metric("walsweep_keys_absent_total{rule=\"item\"}").await;
    assert_eq!(absent.to_string(), "0");
    let proven = sidecar.get("/metrics").await.unwrap().1;
    let proven = proven.lines().find(|line| line.starts_with("walsweep_redis_proven{")).unwrap();
    assert!(proven.ends_with(" 0"), "{proven}");
    let output = sidecar.command(&["sweep", "list:team 2:*"]);
    assert!(text(&output).contains("20 keys matched, 20 removed"), "{}", text(&output));
    let output = sidecar.command(&["check"]);
    assert!(output.status.success(), "warnings alone: {}", text(&output));
    assert!(text(&output).contains("redis_shards"), "{}", text(&output));
    sidecar.assert_quiet(&[UNPROVEN, "sweeping everything", "as before a first start"]);
}

#[tokio::test]
async fn keys_go_from_every_server_behind_one_that_splits_commands() {
    let shop = Shop::start(3, Tricks::ENVOY).await;
    keys_go_from_every_server(&shop).await;
}

#[tokio::test]
async fn keys_go_from_every_server_behind_one_that_refuses_several_slots() {
    let shop = Shop::start(3, Tricks::SERVERLESS).await;
    keys_go_from_every_server(&shop).await;
}

/// A hash that is linear puts names that are much alike on one server.
#[tokio::test]
async fn keys_go_from_every_server_behind_one_that_spreads_them_by_crc32() {
    let shop = Shop::start(2, Tricks { spread: Spread::Crc32, ..Tricks::ENVOY }).await;
    keys_go_from_every_server(&shop).await;
}

/// It is recognised at once, also with a hash tag in the prefix, which such a proxy ignores.
#[tokio::test]
async fn servers_show_themselves_however_keys_are_spread() {
    let shop = Shop::start(2, Tricks::ENVOY).await;
    let mut sidecar = Sidecar::new(shop.settings());
    sidecar.setup();
    for redis in ["", "prefix = \"{shop}\""] {
        sidecar.change(|settings| settings.redis = redis.to_owned());
        for spread in [Spread::Crc32, Spread::Fnv1a, Spread::Sum] {
            shop.endpoint.switch(|tricks| tricks.spread = spread);
            let output = sidecar.command(&["check"]);
            let told = text(&output);
            assert!(told.contains("redis_shards"), "{spread:?}, {redis}: {told}");
        }
    }
}

/// A server goes back to what it had saved, while nobody is connected and while somebody is: the
/// watermark, on another one, shows nothing of it.
#[tokio::test]
async fn a_server_that_lost_removals_is_swept_at_the_next_start_and_connection() {
    let mut shop = Shop::start(2, Tricks::ENVOY).await;
    let mut sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    let place = shop.endpoint.place(b"walsweep:walsweep");
    let stale: Vec<String> = keys("item:#", 50).split_off(1);
    let away = |key: &&String| shop.endpoint.place(key.as_bytes()) != place;
    let stale: Vec<String> = stale.iter().filter(away).take(5).cloned().collect();
    shop.fill(&stale).await;
    let other = 1 - place;
    let mut server = shop.servers[other].connect().await.unwrap();
    let _: () = redis::cmd("SAVE").query_async(&mut server).await.unwrap();
    shop.change("< 50").await;
    shop.gone(&stale).await;
    shop.bed.settled().await;
    // The removals are confirmed, and the server goes back to before them.
    for is_connected in [false, true] {
        if is_connected {
            shop.servers[other].kill9().await.unwrap();
            shop.servers[other].start_again().await.unwrap();
        } else {
            assert_eq!(sidecar.sigterm().await, 0);
            shop.servers[other].kill9().await.unwrap();
            shop.servers[other].start_again().await.unwrap();
        }
        assert!(shop.has(&stale[0]).await, "the removal is lost");
        if is_connected {
            shop.endpoint.cut();
        } else {
            let before = shop.watermark().await.unwrap();
            assert!(before.contains("\"unproven\":true"), "{before}");
            sidecar.start();
        }
        shop.gone(&stale).await;
        sidecar.wait_ready().await;
        shop.bed.settled().await;
    }
    assert_eq!(unproven(&sidecar).await, 2, "of the start and of the connection");
}

/// A server is away: keys of the others go, its own wait; when it is back without the removals that
/// it had acknowledged, those are made again.
#[tokio::test]
async fn a_server_that_is_away_holds_up_its_own_keys_and_is_swept_when_it_is_back() {
    let mut shop = Shop::start(3, Tricks::SERVERLESS).await;
    // No pass runs that would notice it by SCAN.
    let rules = EXACT_RULES.to_owned();
    let mut sidecar = Sidecar::set_up(Settings { rules, ..shop.settings() }).await;
    shop.bed.settled().await;
    let mark = shop.endpoint.place(b"walsweep:walsweep");
    let down = (mark + 1) % 3;
    let all: Vec<String> = keys("item:#", 100).split_off(1);
    let is_down = |key: &String| shop.endpoint.place(key.as_bytes()) == down;
    let (own, others): (Vec<String>, Vec<String>) = all.iter().cloned().partition(is_down);
    let early = own[0].clone();
    shop.fill(&all).await;
    let mut server = shop.servers[down].connect().await.unwrap();
    let _: () = redis::cmd("SAVE").query_async(&mut server).await.unwrap();
    let id = early.strip_prefix("item:").unwrap();
    shop.change(&format!("= {id}")).await;
    shop.gone(std::slice::from_ref(&early)).await;
    shop.bed.settled().await;
    shop.servers[down].kill9().await.unwrap();
    for key in &others {
        shop.change(&format!("= {}", key.strip_prefix("item:").unwrap())).await;
    }
    shop.change(&format!("= {}", own[1].strip_prefix("item:").unwrap())).await;
    let position = shop.bed.position().await;
    shop.gone(&others).await;
    eventually(PATIENCE, "it is told", async || sidecar.readyz().await == Some(503)).await;
    let held = async || shop.bed.confirmed().await < position;
    always(Duration::from_millis(500), "the keys that wait hold the confirmation", held).await;
    shop.servers[down].start_again().await.unwrap();
    shop.gone(&[early, own[1].clone()]).await;
    sidecar.wait_ready().await;
    shop.bed.settled().await;
    assert_eq!(unproven(&sidecar).await, 1, "for the connection after it was back");
}

/// A pass that finds a server away waits for it: no key was tried that could show it to be back.
#[tokio::test]
async fn a_server_that_scan_misses_is_back_when_scan_finds_it() {
    let mut shop = Shop::start(2, Tricks::SERVERLESS).await;
    let node = Standalone::new(&config::Redis::at(&shop.endpoint.url()), "test");
    node.connect().await.unwrap();
    let pass = async || {
        let mut cursor = 0;
        while {
            let call = ScanCall { cursor, count: 100, pattern: None };
            cursor = node.scan(&call).await?.cursor;
            cursor != 0
        } {}
        Ok::<(), Error>(())
    };
    pass().await.unwrap();
    shop.servers[1].kill9().await.unwrap();
    for _ in 0..3 {
        assert!(matches!(pass().await, Err(Error::Refused(..))));
        assert!(node.away().is_some());
        node.keep_alive().await.unwrap();
    }
    shop.servers[1].start_again().await.unwrap();
    pass().await.unwrap();
    assert_eq!(node.keep_alive().await.unwrap_err().kind(), Kind::Swapped, "it may lack removals");
}

/// The server that has the watermark is away when a connection is made: keys of the others go.
#[tokio::test]
async fn a_server_with_the_watermark_that_is_away_holds_up_no_other() {
    let mut shop = Shop::start(2, Tricks::ENVOY).await;
    let mut sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    let down = shop.endpoint.place(b"walsweep:walsweep");
    let all: Vec<String> = keys("item:#", 100).split_off(1);
    shop.fill(&all).await;
    let mut server = shop.servers[down].connect().await.unwrap();
    let _: () = redis::cmd("SAVE").query_async(&mut server).await.unwrap();
    shop.servers[down].kill9().await.unwrap();
    shop.endpoint.cut();
    let is_up = |key: &&String| shop.endpoint.place(key.as_bytes()) != down;
    let others: Vec<String> = all.iter().filter(is_up).cloned().collect();
    shop.change("< 100").await;
    shop.gone(&others).await;
    assert_eq!(sidecar.readyz().await, Some(503));
    shop.servers[down].start_again().await.unwrap();
    shop.gone(&all).await;
    sidecar.wait_ready().await;
    shop.bed.settled().await;
}

/// Without scripts nothing can be compared and set: the watermark that is written says so, and
/// every start sweeps.
#[tokio::test]
async fn without_scripts_every_start_sweeps() {
    let tricks = Tricks { eval: Eval::Missing, ..Tricks::ENVOY };
    let shop = Shop::start(2, tricks).await;
    let mut sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    let marked = async || shop.watermark().await.is_some();
    eventually(PATIENCE, "the watermark is written", marked).await;
    assert!(shop.watermark().await.unwrap().contains("\"unproven\":true"));
    assert_eq!(sidecar.sigterm().await, 0);
    let stale = keys("item:#", 20);
    shop.fill(&stale).await;
    sidecar.start();
    sidecar.wait_ready().await;
    shop.gone(&stale).await;
    assert_eq!(unproven(&sidecar).await, 1);
    let output = sidecar.command(&["check"]);
    assert!(text(&output).contains("redis_scripts"), "{}", text(&output));
    // Somebody else's value is seen by the next write.
    let key = "walsweep:walsweep";
    shop.fill(&stale).await;
    let _: () = shop.server_of(key).await.set(key, "other").await.unwrap();
    shop.gone(&stale).await;
    // What it wrote is no evidence for a server with scripts, either.
    assert_eq!(sidecar.sigterm().await, 0);
    shop.endpoint.switch(|tricks| tricks.eval = Eval::AtFirstKey);
    shop.fill(&stale).await;
    sidecar.start();
    sidecar.wait_ready().await;
    shop.gone(&stale).await;
}

/// One server, whose address was for a while that of an endpoint without scripts: the next start
/// does not take what was written then for evidence; the one after it does with its own.
#[tokio::test]
async fn a_watermark_without_proof_is_none_where_there_is_proof_again() {
    let tricks = Tricks { eval: Eval::Missing, info: true, ..Tricks::ENVOY };
    let shop = Shop::start(1, tricks).await;
    let mut sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    shop.endpoint.switch(|tricks| tricks.eval = Eval::AtFirstKey);
    let stale = keys("item:#", 5);
    for sweeps in [1, 0] {
        shop.fill(&stale).await;
        sidecar.start();
        sidecar.wait_ready().await;
        shop.bed.settled().await;
        assert_eq!(unproven(&sidecar).await, sweeps);
        assert_eq!(shop.has(&stale[0]).await, sweeps == 0);
        let written = async || !shop.watermark().await.unwrap().contains("unproven");
        eventually(PATIENCE, "it is evidence again", written).await;
        assert_eq!(sidecar.sigterm().await, 0);
    }
}

/// Exact keys go, patterns wait, and each is told.
#[tokio::test]
async fn without_scan_exact_keys_go_and_patterns_wait() {
    let tricks = Tricks { scan: Scan::Missing, ..Tricks::ENVOY };
    let shop = Shop::start(2, tricks).await;
    let mut sidecar = Sidecar::new(shop.settings());
    sidecar.setup();
    sidecar.start();
    sidecar.wait_log("gives no list of its keys").await;
    let (items, lists) = (keys("item:#", 30).split_off(1), keys("list:team 1:#", 20));
    shop.fill(&[&items[..], &lists].concat()).await;
    shop.change("< 30").await;
    shop.gone(&items).await;
    let (status, page) = sidecar.get("/readyz").await.unwrap();
    assert!(status == 503 && page.contains("gives no list of its keys"), "{page}");
    assert!(shop.has(&lists[0]).await, "it cannot be found");
    let unsupported = "walsweep_redis_errors_total{target=\"redis\",kind=\"unsupported\"}";
    assert!(sidecar.metric(unsupported).await > 0.5);
    let output = sidecar.command(&["check"]);
    assert!(!output.status.success() && text(&output).contains("redis_scan"), "{}", text(&output));
    // With SCAN all of them go, and it is over.
    shop.endpoint.switch(|tricks| tricks.scan = Scan::Numbers);
    shop.gone(&lists).await;
    sidecar.wait_ready().await;
    shop.bed.settled().await;
}

/// SCAN that gives the keys of one server would let those of others stay, without a word.
#[tokio::test]
async fn a_scan_of_one_server_is_found_out() {
    let tricks = Tricks { scan: Scan::First, ..Tricks::SERVERLESS };
    let shop = Shop::start(2, tricks).await;
    let mut sidecar = Sidecar::new(shop.settings());
    sidecar.setup();
    sidecar.start();
    sidecar.wait_log("SCAN shows").await;
    assert_eq!(sidecar.readyz().await, Some(503));
    let output = sidecar.command(&["check"]);
    assert!(!output.status.success() && text(&output).contains("redis_scan"), "{}", text(&output));
    let items = keys("item:#", 30).split_off(1);
    shop.fill(&items).await;
    shop.change("< 30").await;
    shop.gone(&items).await;
    shop.endpoint.switch(|tricks| tricks.scan = Scan::Texts);
    sidecar.wait_ready().await;
    shop.bed.settled().await;
}

/// One server becomes several while walsweep runs: the first refusal tells, and nothing is lost.
#[tokio::test]
async fn an_endpoint_that_is_divided_later_is_noticed() {
    let tricks = Tricks { eval: Eval::AtFirstKey, ..Tricks::SERVERLESS };
    let tricks = Tricks { keys: Keys::Split, scan: Scan::Numbers, ..tricks };
    let shop = Shop::start(1, tricks).await;
    let sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    assert_eq!(unproven(&sidecar).await, 0, "it is one server");
    let proven = sidecar.get("/metrics").await.unwrap().1;
    let proven = proven.lines().find(|line| line.starts_with("walsweep_redis_proven{")).unwrap();
    assert!(proven.ends_with(" 1"), "{proven}");
    let items = keys("item:#", 60).split_off(1);
    shop.fill(&items).await;
    shop.endpoint.switch(|tricks| {
        *tricks = Tricks { keys: Keys::OfOneSlot, eval: Eval::OfOneSlot, ..*tricks };
    });
    shop.change("< 60").await;
    shop.gone(&items).await;
    shop.bed.settled().await;
    sidecar.wait_log(UNPROVEN).await;
    assert_eq!(unproven(&sidecar).await, 1);
}

/// An endpoint without INFO and CLIENT that is one server proves what one proves.
#[tokio::test]
async fn one_server_behind_an_endpoint_is_one_server() {
    let shop = Shop::start(1, Tricks::ENVOY).await;
    let mut sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    let lists = keys("list:team 1:#", 20);
    shop.fill(&lists).await;
    shop.change("= 1").await;
    shop.gone(&lists).await;
    shop.bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    shop.fill(&lists).await;
    sidecar.start();
    sidecar.wait_ready().await;
    assert_eq!(unproven(&sidecar).await, 0);
    assert!(shop.has(&lists[0]).await, "nothing is swept");
    let output = sidecar.command(&["check"]);
    assert!(output.status.success() && text(&output).contains("redis_info"), "{}", text(&output));
}

/// Each finding of `check` says what follows and what to do.
#[tokio::test]
async fn check_tells_what_an_endpoint_lacks() {
    let shop = Shop::start(2, Tricks::ENVOY).await;
    let sidecar = Sidecar::new(shop.settings());
    sidecar.setup();
    let serverless = Tricks { info: false, ..Tricks::SERVERLESS };
    let mut told = String::new();
    for (name, tricks, is_error) in [
        ("commands are split", Tricks::ENVOY, false),
        ("several slots are refused", serverless, false),
        ("EVAL takes one key", Tricks { eval: Eval::OfOneKey, ..Tricks::ENVOY }, false),
        ("no EVAL", Tricks { eval: Eval::Missing, ..Tricks::ENVOY }, false),
        ("no EVAL, one slot", Tricks { eval: Eval::Missing, ..serverless }, false),
        ("no SCAN", Tricks { scan: Scan::Missing, ..Tricks::ENVOY }, true),
        ("SCAN of one server", Tricks { scan: Scan::First, ..Tricks::ENVOY }, true),
    ] {
        shop.endpoint.switch(|now| *now = tricks);
        let output = sidecar.command(&["check", "--json"]);
        assert_eq!(output.status.success(), !is_error, "{name}: {}", text(&output));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        told.push_str(&format!("# {name}\n"));
        for finding in report["redis"].as_array().unwrap() {
            let of = |name: &str| finding[name].as_str().unwrap_or_default();
            let (severity, code, message) = (of("severity"), of("code"), of("message"));
            let message = message.replace(&shop.endpoint.url()["redis://".len()..], "HOST");
            told.push_str(&format!("{severity}[{code}]: {message}\n    {}\n", of("hint")));
        }
    }
    // How many keys of 64 are on the second server, the name of the slot decides.
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/check/endpoint.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &told).unwrap();
    }
    assert_eq!(told, std::fs::read_to_string(golden).unwrap_or_default());
    let left: Vec<String> = shop.servers[0].connect().await.unwrap().keys("*").await.unwrap();
    assert!(left.iter().all(|key| key.starts_with("walsweep:walsweep")), "{left:?}");
}

/// Observing and WAIT are about one server, and not relied on.
#[tokio::test]
async fn what_one_server_tells_is_not_taken_for_all() {
    let shop = Shop::start(2, Tricks { hello: true, ..Tricks::SERVERLESS }).await;
    let settings = Settings {
        refill: "2s".to_owned(),
        observe: true,
        rules: EXACT_RULES.to_owned(),
        ..shop.settings()
    };
    let mut sidecar = Sidecar::set_up(settings).await;
    shop.bed.settled().await;
    assert!(shop.endpoint.calls("HELLO") > 0, "observing is tried");
    let items = keys("item:#", 10).split_off(1);
    shop.fill(&items).await;
    shop.change("< 10").await;
    shop.gone(&items).await;
    shop.fill(&items).await;
    shop.bed.settled().await;
    shop.gone(&items).await;
    let output = sidecar.command(&["check"]);
    assert!(text(&output).contains("redis_tracking"), "{}", text(&output));
    assert_eq!(sidecar.sigterm().await, 0);
    sidecar.change(|settings| settings.redis = "wait_replicas = 1".to_owned());
    let output = sidecar.command(&["check"]);
    assert!(!output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("`wait_replicas` cannot be kept"), "{}", text(&output));
    sidecar.start();
    sidecar.wait_log("WAIT tells of one of several servers alone").await;
}

/// `teardown` leaves nothing on any server.
#[tokio::test]
async fn teardown_removes_own_keys_from_every_server() {
    let shop = Shop::start(3, Tricks::SERVERLESS).await;
    let mut sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let own = async || {
        let mut own = Vec::new();
        for server in &shop.servers {
            let keys: Vec<String> = server.connect().await.unwrap().keys("*").await.unwrap();
            own.extend(keys);
        }
        own
    };
    assert!(own().await.len() > 3, "watermark, fingerprints and marks");
    let output = sidecar.command(&["teardown"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(own().await, [""; 0]);
}

/// The server with the watermark takes no writes: that loses no connection to the others.
#[tokio::test]
async fn a_server_that_became_a_replica_holds_up_its_own_keys() {
    let shop = Shop::start(2, Tricks::SERVERLESS).await;
    let mut sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    let down = shop.endpoint.place(b"walsweep:walsweep");
    let replica_of = async |words: [&str; 2]| {
        let mut replica_of = redis::cmd("REPLICAOF");
        replica_of.arg(&words);
        replica_of.exec_async(&mut shop.servers[down].connect().await.unwrap()).await.unwrap();
    };
    replica_of(["127.0.0.1", &shop.servers[1 - down].port().to_string()]).await;
    let reconnects = "walsweep_reconnects_total{peer=\"redis\"}";
    let before = sidecar.metric(reconnects).await;
    let mut others = keys("item:#", 100).split_off(1);
    others.retain(|key| shop.endpoint.place(key.as_bytes()) != down);
    let ids: Vec<&str> = others.iter().map(|key| &key["item:".len()..]).collect();
    for _ in 0..3 {
        shop.fill(&others).await;
        // Nothing holds the watermark, which is to be written.
        shop.change(&format!("in ({})", ids.join(", "))).await;
        shop.gone(&others).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!((sidecar.metric(reconnects).await - before).abs() < 0.5, "its connection stands");
    shop.change("< 100").await;
    sidecar.wait_log("a part of redis is away").await;
    replica_of(["NO", "ONE"]).await;
    shop.bed.settled().await;
    sidecar.wait_ready().await;
    assert!(unproven(&sidecar).await > 0, "it may lack removals now");
}
