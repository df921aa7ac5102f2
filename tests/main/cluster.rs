//! A Redis Cluster: keys go from whichever primary has them, wherever slots go meanwhile, and each
//! primary shows by itself that it lost no removal.

use std::slice::from_ref;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, FromRedisValue, Value, cmd, pipe};
use tokio::time::sleep;
use walsweep_stage::throwaway::{Cluster, ClusterOptions, RedisOptions};

use crate::support::{Bed, ITEM_RULES, PATIENCE, Settings, Sidecar, always, eventually, text};

/// A cluster beside Postgres; the Redis of the bed is not used.
pub(crate) struct Shop {
    pub(crate) bed: Bed,
    pub(crate) cluster: Cluster,
}

impl Shop {
    pub(crate) async fn start(primaries: usize, replicas: usize) -> Shop {
        Shop::with(primaries, replicas, &[]).await
    }

    async fn with(primaries: usize, replicas: usize, args: &[&str]) -> Shop {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        let node = RedisOptions { args, ..RedisOptions::default() };
        let options = ClusterOptions { primaries, replicas, node };
        let (bed, cluster) = tokio::join!(Bed::new(&[]), Cluster::start(options));
        Shop { bed, cluster: cluster.unwrap() }
    }

    pub(crate) fn settings(&self) -> Settings {
        let target = format!("mode = \"cluster\"\nurl = {:?}", self.cluster.urls()[0]);
        Settings { targets: vec![target], rules: ITEM_RULES.to_owned(), ..self.bed.settings() }
    }

    pub(crate) async fn connect(&self, node: usize) -> MultiplexedConnection {
        self.cluster.node(node).unwrap().connect().await.unwrap()
    }

    /// Runs a command on the primary that has the key.
    pub(crate) async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let (_, owner) = self.place(words[1]).await;
        let mut command = cmd(words[0]);
        command.arg(&words[1..]);
        match command.query_async(&mut self.connect(owner).await).await {
            Err(error) if error.code() == Some("ASK") => {
                let to = error.redirect_node().unwrap().0.to_owned();
                let new = Client::open(format!("redis://{to}")).unwrap();
                let mut new = new.get_multiplexed_async_connection().await.unwrap();
                let mut both = pipe();
                both.cmd("ASKING").ignore().add_command(command);
                let (reply,) = both.query_async(&mut new).await.unwrap();
                reply
            }
            reply => reply.unwrap(),
        }
    }

    /// The slot of a key, and the number of the node that has it.
    pub(crate) async fn place(&self, key: &str) -> (u16, usize) {
        let slot = self.cluster.slot_of(key.as_bytes()).await.unwrap();
        (slot, self.cluster.owner(slot).await.unwrap().unwrap())
    }

    /// Changes an item; all of its lists go with it.
    pub(crate) async fn change(&self, id: usize) {
        let update = format!("update item set version = version + 1 where id = {id}");
        self.bed.sql.run(&update).await;
    }

    /// The names on all primaries that match a pattern.
    pub(crate) async fn names(&self, pattern: &str) -> Vec<String> {
        let mut names = Vec::new();
        for node in 0..self.cluster.urls().len() {
            let mut all = cmd("KEYS");
            all.arg(pattern);
            let found: Vec<String> = all.query_async(&mut self.connect(node).await).await.unwrap();
            names.extend(found);
        }
        names
    }

    /// The watermarks.
    async fn own_keys(&self) -> Vec<String> {
        let mut names = self.names("walsweep:*").await;
        names.retain(|name| name.ends_with('}'));
        names
    }

    /// Like [`Shop::fill`], of many keys that have one slot, which their number is not part of.
    pub(crate) async fn fill_many(&self, keys: &[String]) {
        let mut all = cmd("MSET");
        for key in keys {
            all.arg(key).arg("cached");
        }
        let (_, owner) = self.place(&keys[0]).await;
        all.exec_async(&mut self.connect(owner).await).await.unwrap();
    }

    pub(crate) async fn fill(&self, keys: &[String]) {
        for key in keys {
            let _: Value = self.ask(&["SET", key, "cached"]).await;
        }
    }

    pub(crate) async fn has(&self, key: &str) -> bool {
        self.ask::<i64>(&["EXISTS", key]).await == 1
    }

    /// Waits until none of these is there.
    pub(crate) async fn gone(&self, keys: &[String]) {
        for key in keys {
            eventually(PATIENCE, &format!("`{key}` goes"), async || !self.has(key).await).await;
        }
    }
}

pub(crate) fn keys(pattern: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| pattern.replace('#', &number.to_string())).collect()
}

#[tokio::test]
async fn keys_and_patterns_go_from_every_primary() {
    let shop = Shop::start(3, 0).await;
    let settings = Settings { refill: "300ms".to_owned(), ..shop.settings() };
    let sidecar = Sidecar::set_up(settings).await;
    shop.bed.settled().await;
    let (exact, pattern) = (keys("item:#", 40), keys("list:team 1:#", 40));
    let others = keys("list:team 2:#", 10);
    shop.fill(&[&exact[1..], &pattern, &others].concat()).await;
    shop.bed.sql.run("update item set version = 1 where id < 40 and team = 'team 1'").await;
    shop.gone(&pattern).await;
    shop.gone(&["item:1".to_owned(), "item:31".to_owned()]).await;
    assert!(shop.has("item:2").await && shop.has("list:team 2:3").await);
    // Late fills go as well, and what is proven is confirmed.
    shop.bed.settled().await;
    assert_eq!(doubts(&sidecar).await, "1", "that of the first start alone");
    let output = sidecar.command(&["sweep", "list:team 2:*"]);
    assert!(text(&output).contains("10 keys matched, 10 removed"), "{}", text(&output));
    shop.gone(&others).await;
    let output = sidecar.command(&["check"]);
    assert!(output.status.success(), "{}", text(&output));
}

/// The watermark stands on each primary; the next start sweeps nothing.
#[tokio::test]
async fn a_restart_sweeps_nothing_and_a_primary_without_proof_everything() {
    let shop = Shop::start(3, 0).await;
    let mut sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    sidecar.start();
    sidecar.wait_ready().await;
    shop.bed.settled().await;
    let sweeps = sidecar.metric_sum("walsweep_resyncs_total").await;
    assert!(sweeps < 0.5, "{sweeps}");
    assert_eq!(sidecar.sigterm().await, 0);
    let lists = keys("list:team 1:#", 20);
    shop.fill(&lists).await;
    // One primary loses what it has, and gets some keys again.
    let _: Value = cmd("FLUSHALL").query_async(&mut shop.connect(1).await).await.unwrap();
    shop.fill(&lists).await;
    sidecar.start();
    sidecar.wait_ready().await;
    shop.gone(&lists).await;
    assert!(sidecar.metric_sum("walsweep_resyncs_total").await > 0.5);
}

/// Counts the sweeps for doubt so far.
async fn doubts(sidecar: &Sidecar) -> String {
    format!("{:.0}", sidecar.metric_sum("walsweep_resyncs_total").await.abs())
}

/// Slots go from primary to primary while commits come: every key goes, and nothing is swept.
#[tokio::test]
async fn slots_that_move_put_nothing_in_doubt() {
    let shop = Shop::start(3, 0).await;
    let sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    let before = doubts(&sidecar).await;
    let lists = keys("list:team 1:#", 30);
    for round in 0..6 {
        let item = format!("item:{}", round * 10 + 1);
        let (slot, owner) = shop.place(&item).await;
        let to = (owner + 1) % 3;
        shop.fill(&[&lists[..], from_ref(&item)].concat()).await;
        shop.cluster.begin_move(slot, to).await.unwrap();
        if round % 2 == 0 {
            shop.cluster.finish_move(slot, to).await.unwrap();
        }
        shop.change(round * 10 + 1).await;
        shop.gone(&lists).await;
        if round % 2 == 1 {
            // It is told while the slot is still on its way.
            shop.bed.settled().await;
            shop.cluster.finish_move(slot, to).await.unwrap();
        }
        shop.gone(&[item]).await;
    }
    shop.bed.settled().await;
    assert_eq!(doubts(&sidecar).await, before, "{:?}", sidecar.log());
}

/// The slot in which a primary's watermark is goes away: it has another one then, and what stood in
/// the first is removed.
#[tokio::test]
async fn a_watermark_stays_with_its_primary() {
    let shop = Shop::start(3, 0).await;
    let mut sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    let before = doubts(&sidecar).await;
    for to in [1, 2, 0] {
        // The lowest slot of the first primary, then of the one that got it.
        shop.cluster.begin_move(0, to).await.unwrap();
        shop.change(1).await;
        shop.bed.settled().await;
        shop.cluster.finish_move(0, to).await.unwrap();
        shop.change(1).await;
        shop.bed.settled().await;
    }
    assert_eq!(doubts(&sidecar).await, before, "{:?}", sidecar.log());
    assert_eq!(shop.own_keys().await.len(), 3, "{:?}", shop.own_keys().await);
    assert_eq!(sidecar.sigterm().await, 0);
    sidecar.start();
    sidecar.wait_ready().await;
    shop.bed.settled().await;
    assert_eq!(doubts(&sidecar).await, "0", "{:?}", sidecar.log());
    // Slots that moved meanwhile are about nobody's watermark.
    assert_eq!(sidecar.sigterm().await, 0);
    let (slot, owner) = shop.place("item:1").await;
    shop.cluster.begin_move(slot, (owner + 1) % 3).await.unwrap();
    shop.cluster.finish_move(slot, (owner + 1) % 3).await.unwrap();
    shop.fill(&["item:1".to_owned()]).await;
    sidecar.start();
    sidecar.wait_ready().await;
    shop.gone(&["item:1".to_owned()]).await;
    assert_eq!(doubts(&sidecar).await, "1");
}

/// A node joins, gets a slot, gives it back, and leaves.
#[tokio::test]
async fn a_node_may_join_and_leave() {
    let mut shop = Shop::start(3, 0).await;
    let sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    let before = doubts(&sidecar).await;
    let item = || ["item:1".to_owned()];
    let (slot, owner) = shop.place("item:1").await;
    let new = shop.cluster.add(None).await.unwrap();
    for to in [new, owner] {
        shop.fill(&item()).await;
        shop.cluster.begin_move(slot, to).await.unwrap();
        shop.change(1).await;
        shop.gone(&item()).await;
        shop.cluster.finish_move(slot, to).await.unwrap();
        shop.fill(&item()).await;
        shop.change(1).await;
        shop.gone(&item()).await;
        shop.bed.settled().await;
        if to == new {
            assert_eq!(doubts(&sidecar).await, before, "{:?}", sidecar.log());
        }
    }
    shop.cluster.remove(new).await.unwrap();
    shop.fill(&item()).await;
    shop.change(1).await;
    shop.gone(&item()).await;
    shop.bed.settled().await;
}

/// The first slot of a new node is on its way, and the node loses a removal: no watermark is about
/// it, and what it has is looked through.
#[tokio::test]
async fn a_node_without_a_slot_that_comes_back_with_old_keys_is_swept() {
    let mut shop = Shop::start(3, 0).await;
    let mut sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    let item = || ["item:1".to_owned()];
    let new = shop.cluster.add(None).await.unwrap();
    let (slot, _) = shop.place("item:1").await;
    shop.cluster.begin_move(slot, new).await.unwrap();
    for stopped in [false, true] {
        // Of a key that its owner does not have it is asked, and it saves what it got.
        shop.fill(&item()).await;
        let _: Value = cmd("SAVE").query_async(&mut shop.connect(new).await).await.unwrap();
        shop.change(1).await;
        shop.gone(&item()).await;
        shop.bed.settled().await;
        if stopped {
            assert_eq!(sidecar.sigterm().await, 0);
        }
        shop.cluster.node_mut(new).unwrap().kill9().await.unwrap();
        shop.cluster.node_mut(new).unwrap().start_again().await.unwrap();
        let names = async || !shop.names("item:1").await.is_empty();
        if stopped {
            eventually(PATIENCE, "the key is back", names).await;
            sidecar.start();
            sidecar.wait_ready().await;
        }
        let nothing = async || shop.names("item:1").await.is_empty();
        eventually(PATIENCE, "it is swept", nothing).await;
    }
}

/// Keys move while a pass runs: `ROUNDS=100`, a pass and some moves each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_survives_a_pass_by_moving() {
    move_keys("max_stall = \"100us\"").await;
}

/// Indexes are lost and made anew all the time, and used between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_survives_a_pass_by_the_index_by_moving() {
    let sidecar = move_keys("index = true").await;
    let passes = sidecar.metric("walsweep_index_passes_total").await;
    println!("{passes} passes by the index");
    assert!(passes > 0.5);
}

async fn move_keys(sweep: &str) -> Sidecar {
    let shop = Shop::start(3, 0).await;
    let settings = Settings { sweep: sweep.to_owned(), ..shop.settings() };
    let sidecar = Sidecar::set_up(settings).await;
    shop.bed.settled().await;
    let before = doubts(&sidecar).await;
    let rounds = std::env::var("ROUNDS").map_or(9, |rounds| rounds.parse().unwrap());
    // Sixteen slots with some keys of the pattern in each, among many others.
    let tags: Vec<String> = (0..16).map(|tag| format!("list:team 1:{{{tag}}}")).collect();
    let mut slots = Vec::new();
    for tag in &tags {
        slots.push(shop.place(tag).await.0);
        shop.fill_many(&keys(&format!("other:{tag}:#"), 200)).await;
    }
    for round in 0..rounds {
        for tag in &tags {
            shop.fill_many(&keys(&format!("{tag}:#"), 20)).await;
        }
        let moves = async {
            // In every third round nothing moves.
            let moves = if round % 3 == 2 { 0 } else { 6 };
            for slot in slots.iter().cycle().skip(round).take(moves) {
                let owner = shop.cluster.owner(*slot).await.unwrap().unwrap();
                let to = (owner + 1 + round % 2) % 3;
                shop.cluster.begin_move(*slot, to).await.unwrap();
                shop.cluster.finish_move(*slot, to).await.unwrap();
            }
        };
        // Now and then long before.
        sleep(Duration::from_millis(50 * (round % 8) as u64)).await;
        tokio::join!(moves, shop.change(1));
        let pattern = "list:team 1:*";
        let nothing = async || shop.names(pattern).await.is_empty();
        eventually(PATIENCE, "no key survives", nothing).await;
    }
    shop.bed.settled().await;
    assert_eq!(doubts(&sidecar).await, before, "{:?}", sidecar.log());
    sidecar
}

/// A primary is killed, and its replica takes its place: keys of commits before, during and after
/// go.
#[tokio::test]
async fn a_failover_loses_no_key() {
    let mut shop = Shop::start(3, 1).await;
    let mut sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    let items = keys("item:#", 60);
    shop.fill(&items[1..]).await;
    shop.cluster.node_mut(0).unwrap().kill9().await.unwrap();
    shop.bed.sql.run("update item set version = version + 1 where id < 60").await;
    shop.cluster.promoted(3).await.unwrap();
    shop.gone(&items[1..]).await;
    sidecar.wait_ready().await;
    shop.fill(&items[1..]).await;
    shop.bed.sql.run("update item set version = version + 1 where id < 60").await;
    shop.gone(&items[1..]).await;
    shop.bed.settled().await;
}

/// A primary without a replica dies, or hangs: the keys of the others go as ever, nothing is
/// confirmed, and what it missed goes when it is back.
#[tokio::test]
async fn a_primary_that_is_away_holds_up_its_own_keys_alone() {
    let mut shop = Shop::with(3, 0, &["--cluster-require-full-coverage", "no"]).await;
    let mut sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for id in 1..60 {
        let item = format!("item:{id}");
        let (_, owner) = shop.place(&item).await;
        if owner == 1 { own.push(item) } else { others.push(item) }
    }
    let list = "list:team 1:x".to_owned();
    let lists = [list, "list:team 1:y".to_owned(), "list:team 1:z".to_owned()];
    for hangs in [false, true] {
        let before = shop.bed.confirmed().await;
        match hangs {
            true => shop.cluster.node(1).unwrap().pause().unwrap(),
            false => shop.cluster.node_mut(1).unwrap().kill9().await.unwrap(),
        }
        for _ in 0..2 {
            shop.fill(&others).await;
            shop.bed.sql.run("update item set version = version + 1 where id < 60").await;
            shop.gone(&others).await;
        }
        let names = async || {
            let (status, page) = sidecar.get("/readyz").await.unwrap();
            status == 503 && page.contains("a part of redis is away")
        };
        eventually(PATIENCE, "the page says so", names).await;
        let position = shop.bed.position().await;
        assert!(shop.bed.confirmed().await < position && before < position);
        match hangs {
            true => shop.cluster.node(1).unwrap().resume().unwrap(),
            false => shop.cluster.node_mut(1).unwrap().start_again().await.unwrap(),
        }
        shop.cluster.settled().await.unwrap();
        shop.fill(&[&own[..], &lists].concat()).await;
        shop.bed.sql.run("update item set version = version + 1 where id < 60").await;
        shop.gone(&[&own[..], &lists].concat()).await;
        sidecar.wait_ready().await;
        shop.bed.settled().await;
    }
}

/// A primary without persistence that dies twice: what is told names the one that is away, and
/// nothing that is not so.
#[tokio::test]
async fn a_primary_that_comes_back_empty_twice_is_told_as_that_alone() {
    let mut shop = Shop::with(3, 0, &["--cluster-require-full-coverage", "no"]).await;
    let mut sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    let away = format!("127.0.0.1:{}", shop.cluster.node(1).unwrap().port());
    let (mut own, mut others) = (String::new(), Vec::new());
    for id in 1..60 {
        let item = format!("item:{id}");
        if shop.place(&item).await.1 == 1 {
            own = item;
        }
    }
    for _ in 0..2 {
        shop.cluster.node_mut(1).unwrap().kill9().await.unwrap();
        shop.bed.sql.run("update item set version = version + 1 where id < 60").await;
        let page = async || sidecar.get("/readyz").await.unwrap();
        let is_told = async || {
            let (status, page) = page().await;
            status == 503 && page.contains("a part of redis is away") && page.contains(&away)
        };
        eventually(PATIENCE, "the page names who is away", is_told).await;
        // Passes are tried meanwhile, and removals of what waits.
        for _ in 0..20 {
            let page = page().await.1;
            let is_so =
                page.contains("a part of redis is away") && page.contains("--cluster check");
            others.extend((!is_so).then_some(page));
            sleep(Duration::from_millis(200)).await;
        }
        let said = text(&sidecar.command(&["why", &own]));
        assert!(said.contains("`/readyz` says why"), "{said}");
        shop.cluster.node_mut(1).unwrap().start_again().await.unwrap();
        shop.cluster.settled().await.unwrap();
        sidecar.wait_ready().await;
        shop.bed.settled().await;
    }
    let log = sidecar.log().join("\n");
    assert_eq!(log.matches("sweeping everything: redis lost the watermark").count(), 2, "{log}");
    let untrue = [
        "refuses removals",
        "is doubted again and again",
        "reaches one node of a cluster",
        "reaches a replica",
        "the slot has arrived",
    ];
    let told = untrue.iter().filter(|words| log.contains(*words)).collect::<Vec<_>>();
    assert_eq!(told, [&""; 0], "{log}");
    assert_eq!(others, [""; 0], "it says so all the time");
}

/// Where one primary that is away lets all refuse, none is taken for a server by itself.
#[tokio::test]
async fn a_cluster_that_is_down_is_not_taken_for_one_node() {
    let mut shop = Shop::start(3, 0).await;
    let mut sidecar = Sidecar::set_up(shop.settings()).await;
    shop.bed.settled().await;
    shop.cluster.node_mut(1).unwrap().kill9().await.unwrap();
    shop.change(1).await;
    let is_down = async || {
        let (mut node, mut set) = (shop.connect(0).await, cmd("SET"));
        set.arg("item:1").arg("x");
        let outcome = set.query_async::<Value>(&mut node).await;
        outcome.is_err_and(|error| error.code() == Some("CLUSTERDOWN"))
    };
    eventually(PATIENCE, "the cluster is down", is_down).await;
    let away = format!("127.0.0.1:{}: ", shop.cluster.node(1).unwrap().port());
    let page = async || sidecar.get("/readyz").await.unwrap().1;
    eventually(PATIENCE, "it is told", async || page().await.contains(&away)).await;
    // Also by whoever connects meanwhile, while all others refuse.
    for _ in 0..20 {
        let page = page().await;
        assert!(page.contains(&away), "{page}");
        sleep(Duration::from_millis(200)).await;
    }
    let checked = text(&sidecar.command(&["check"]));
    shop.cluster.node_mut(1).unwrap().start_again().await.unwrap();
    shop.cluster.settled().await.unwrap();
    sidecar.wait_ready().await;
    shop.bed.settled().await;
    let log = sidecar.log().join("\n");
    let untrue = "reaches one node of a cluster";
    assert!(!log.contains(untrue) && !checked.contains(untrue), "{checked}\n{log}");
}

/// Also of commits whose keys are elsewhere: the watermark of the primary that is away cannot move.
#[tokio::test]
async fn nothing_is_confirmed_while_a_primary_is_away() {
    let mut shop = Shop::with(3, 0, &["--cluster-require-full-coverage", "no"]).await;
    let rules = "[[rule]]\nname = \"item\"\ntable = \"public.item\"\nkeys = [\"item:{id}\"]\n";
    let mut sidecar =
        Sidecar::set_up(Settings { rules: rules.to_owned(), ..shop.settings() }).await;
    shop.bed.settled().await;
    let mut others = Vec::new();
    for id in 1..20 {
        if shop.place(&format!("item:{id}")).await.1 != 1 {
            others.push(id);
        }
    }
    shop.cluster.node_mut(1).unwrap().kill9().await.unwrap();
    let is_told = async || sidecar.readyz().await == Some(503);
    eventually(PATIENCE, "it is noticed", is_told).await;
    let before = shop.bed.confirmed().await;
    for id in others {
        let item = [format!("item:{id}")];
        shop.fill(&item).await;
        shop.change(id).await;
        shop.gone(&item).await;
    }
    sidecar.wait_log("nothing is confirmed").await;
    let stands = async || shop.bed.confirmed().await == before;
    always(Duration::from_secs(3), "nothing is confirmed", stands).await;
    shop.cluster.node_mut(1).unwrap().start_again().await.unwrap();
    shop.cluster.settled().await.unwrap();
    sidecar.wait_ready().await;
    shop.bed.settled().await;
}
