//! Faults of the network on each of the three connections, by a proxy: noticed, told, recovered
//! from, and at rest nothing is stale.

use std::time::Duration;

use futures_util::future::join_all;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::time::sleep;
use walsweep_stage::throwaway::{Redis, RedisOptions};

use crate::support::{
    Bed, Fault, Load, PATIENCE, Proxy, Settings, Sidecar, Way, always, eventually,
};

/// The longest that a peer may be silent before the program says so. The longest bound of its own
/// is that of the stream, 15 s, and it is looked at once a second.
const NOTICED: Duration = Duration::from_secs(30);

/// How long a session stands before it is ready, by design, after three that ended soon at one
/// place: `LASTING` of `run::attempts`. The faults of a test come that close together.
const LASTING: Duration = Duration::from_secs(10);

/// A connection of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// `postgres.url`: gate and slot health.
    Sql,
    /// `postgres.replication_url`.
    Stream,
    /// `redis.url`.
    Redis,
}

impl Peer {
    /// The gauge that is 0 while it is away.
    fn up(self, redis_port: u16) -> String {
        match self {
            Peer::Sql | Peer::Stream => "walsweep_postgres_up".to_owned(),
            Peer::Redis => {
                format!("walsweep_redis_up{{target=\"redis\",node=\"127.0.0.1:{redis_port}\"}}")
            }
        }
    }

    fn reconnects(self) -> &'static str {
        match self {
            Peer::Sql | Peer::Stream => "walsweep_reconnects_total{peer=\"postgres\"}",
            Peer::Redis => "walsweep_reconnects_total{peer=\"redis\"}",
        }
    }
}

/// A sidecar with a proxy on one of its connections.
struct Site {
    sidecar: Sidecar,
    proxy: Proxy,
    peer: Peer,
    up: String,
}

impl Site {
    /// Sets up and starts a sidecar whose other settings are these.
    async fn new(peer: Peer, bed: &Bed, redis: &Redis, mut settings: Settings) -> Site {
        let port = if peer == Peer::Redis { redis.port() } else { bed.postgres.port() };
        let proxy = Proxy::to_port(port);
        match peer {
            Peer::Sql => {
                settings.postgres = format!("replication_url = {:?}", settings.postgres_url);
                settings.postgres_url = proxy.url(&settings.postgres_url, port);
            }
            Peer::Stream => {
                let url = proxy.url(&settings.postgres_url, port);
                settings.postgres = format!("replication_url = {url:?}");
            }
            Peer::Redis => settings.redis_url = proxy.url(&settings.redis_url, port),
        }
        let sidecar = Sidecar::set_up(settings).await;
        let up = peer.up(proxy.port());
        Site { sidecar, proxy, peer, up }
    }

    async fn reconnects(&self) -> f64 {
        self.sidecar.metric(self.peer.reconnects()).await
    }

    /// Whether the program says that this peer is there, and that it is ready.
    async fn says(&self, up: bool) -> bool {
        let gauge = self.sidecar.metric(&self.up).await;
        let ready = self.sidecar.readyz().await;
        if up { gauge > 0.5 && ready == Some(200) } else { gauge < 0.5 && ready == Some(503) }
    }

    async fn wait_says(&self, up: bool, limit: Duration, what: &str) {
        let what = format!("{:?}: up is {up} after {what}", self.peer);
        eventually(limit, &what, || self.says(up)).await;
    }
}

fn settings(bed: &Bed) -> Settings {
    let mut settings = bed.settings();
    settings.refill = "500ms".to_owned();
    settings
}

/// Everything but a black hole, one after another under load.
async fn endure(peer: Peer) {
    let bed = Bed::new(&[]).await;
    let mut site = Site::new(peer, &bed, &bed.redis, settings(&bed)).await;
    let mut load = Load::paced(&bed, Duration::from_millis(10));
    let mut reconnects = site.reconnects().await;
    for (what, fault) in [
        ("a cut", Fault::Nothing),
        ("a reset", Fault::Nothing),
        ("a cut after 5000 bytes", Fault::CutAfter(5_000)),
        ("a refusal", Fault::Refuse),
    ] {
        site.proxy.set(fault);
        match what {
            "a cut" => site.proxy.cut(),
            "a reset" | "a refusal" => site.proxy.reset(),
            _ => {}
        }
        eventually(PATIENCE, &format!("{peer:?}: {what} is counted"), || async {
            site.reconnects().await > reconnects
        })
        .await;
        if fault == Fault::Refuse {
            site.wait_says(false, PATIENCE, what).await;
            always(Duration::from_millis(300), "it says so", || site.says(false)).await;
            assert_eq!(site.sidecar.get("/healthz").await.unwrap().0, 200, "it is alive");
        }
        site.proxy.set(Fault::Nothing);
        site.wait_says(true, PATIENCE + LASTING, what).await;
        reconnects = site.reconnects().await;
    }
    // On a slow machine what was written during the faults takes a while.
    bed.fill(&["item:1001"]).await;
    bed.sql.run("insert into item values (1001, 'late', 0)").await;
    bed.sql.run("delete from item where id = 1001").await;
    eventually(PATIENCE * 6, "it has caught up", async || !bed.has("item:1001").await).await;
    for (what, fault) in
        [("a delay", Fault::Delay(Duration::from_millis(30))), ("a slow link", Fault::Rate(20_000))]
    {
        site.proxy.set(fault);
        sleep(Duration::from_millis(500)).await;
        // Not an item of the load, so that only this commit removes it.
        bed.fill(&["item:1000"]).await;
        bed.sql.run("insert into item values (1000, 'slow', 0)").await;
        bed.sql.run("delete from item where id = 1000").await;
        bed.gone("item:1000").await;
        assert!(site.says(true).await, "{peer:?}: {what} is no outage");
        site.proxy.set(Fault::Nothing);
    }
    let after = site.reconnects().await;
    assert!((after - reconnects).abs() < 0.5, "{peer:?}: slow costs no connection");
    let commits = load.end_writing().await;
    load.assert_nothing_stale(&bed, &mut site.sidecar).await;
    println!("{peer:?}: {commits} commits, {} connections", site.proxy.accepted());
    assert!(commits > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_between_the_gate_and_postgres_leave_nothing_stale() {
    endure(Peer::Sql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_between_the_stream_and_postgres_leave_nothing_stale() {
    endure(Peer::Stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_between_the_sweeper_and_redis_leave_nothing_stale() {
    endure(Peer::Redis).await;
}

/// A site of its own with a Redis of its own, for tests that last as long as the program's bounds:
/// many at a time.
struct Island {
    site: Site,
    redis: Redis,
    cache: MultiplexedConnection,
}

impl Island {
    async fn new(peer: Peer, bed: &Bed, name: &str) -> Island {
        let redis = Redis::start(RedisOptions::default()).await.unwrap();
        let cache = redis.connect().await.unwrap();
        let mut settings = settings(bed);
        name.clone_into(&mut settings.name);
        settings.redis_url = redis.url();
        let site = Site::new(peer, bed, &redis, settings).await;
        Island { site, redis, cache }
    }

    async fn fill(&self, key: &str) {
        let _: () = self.cache.clone().set(key, "cached").await.unwrap();
    }

    async fn gone(&self, key: &str) {
        let what = format!("{:?}: `{key}` goes from {}", self.site.peer, self.redis.port());
        eventually(PATIENCE, &what, || async {
            !self.cache.clone().exists::<_, bool>(key).await.unwrap()
        })
        .await;
    }
}

/// All three connections, each way and both ways, side by side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_is_noticed_and_leaves_nothing_stale() {
    let bed = Bed::new(&[]).await;
    let mut islands = Vec::new();
    for peer in [Peer::Sql, Peer::Stream, Peer::Redis] {
        for way in [Way::Both, Way::ToServer, Way::ToClient] {
            let name = format!("{peer:?}_{way:?}").to_lowercase();
            islands.push((way, Island::new(peer, &bed, &name).await));
        }
    }
    for (way, island) in &islands {
        island.fill("item:1").await;
        island.fill("list:team 1:a").await;
        island.site.proxy.set(Fault::BlackHole(*way));
    }
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    join_all(islands.iter().map(|(way, island)| async move {
        island.site.wait_says(false, NOTICED, &format!("a black hole, {way:?}")).await;
        assert!(island.site.reconnects().await > 0.5);
        // What a reader caches meanwhile from an old snapshot is none of this test's.
        island.fill("item:2").await;
    }))
    .await;
    bed.sql.run("update item set version = version + 1 where id = 2").await;
    join_all(islands.iter().map(|(way, island)| async move {
        island.site.proxy.set(Fault::Nothing);
        island.site.wait_says(true, PATIENCE, &format!("the black hole, {way:?}")).await;
        for key in ["item:1", "list:team 1:a", "item:2"] {
            island.gone(key).await;
        }
    }))
    .await;
}

/// Nothing is written to the log, so that nothing is asked; yet a peer that is gone is noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_is_noticed_while_nothing_happens() {
    let bed = Bed::new(&[]).await;
    let mut islands = Vec::new();
    for peer in [Peer::Sql, Peer::Stream, Peer::Redis] {
        let name = format!("{peer:?}").to_lowercase();
        islands.push(Island::new(peer, &bed, &name).await);
    }
    bed.settled().await;
    bed.quiet().await;
    // What the last words in the log set off is over.
    sleep(Duration::from_secs(2)).await;
    join_all(islands.iter().map(|island| async move {
        island.site.proxy.set(Fault::BlackHole(Way::Both));
        island.site.wait_says(false, NOTICED, "a black hole").await;
        island.site.proxy.set(Fault::Nothing);
        island.site.wait_says(true, PATIENCE, "the black hole").await;
    }))
    .await;
}

/// After an outage keys are stale until what was committed meanwhile is read: it does not say that
/// all is well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_that_is_read_slowly_is_told() {
    let bed = Bed::new(&[]).await;
    let mut site = Site::new(Peer::Stream, &bed, &bed.redis, settings(&bed)).await;
    bed.settled().await;
    assert_eq!(site.sidecar.sigterm().await, 0);
    let many = "do $$ begin for at in 1..4000 loop update item set version = at where id = 1; \
                commit; end loop; end $$";
    bed.sql.run(many).await;
    sleep(Duration::from_secs(7)).await;
    site.proxy.set(Fault::Rate(20_000));
    site.sidecar.start();
    let verdict = async |text: &str| {
        let status = site.sidecar.get("/status").await.map(|(_, body)| body).unwrap_or_default();
        status.contains(text)
    };
    let behind = "behind: what is read now was committed";
    eventually(PATIENCE, "that it is behind is told", || verdict(behind)).await;
    let metric = "walsweep_oldest_unconfirmed_seconds";
    eventually(PATIENCE, "it is that old", async || site.sidecar.metric(metric).await > 6.0).await;
    site.proxy.set(Fault::Nothing);
    eventually(PATIENCE * 3, "it has caught up", || verdict("all is well")).await;
    assert!(!verdict(behind).await);
}

/// I7: an empty Redis is filled by readers with what may be old, and no commit tells of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_emptied_while_nothing_happens_is_swept() {
    let mut bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.settled().await;
    bed.quiet().await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut bed.cache).await.unwrap();
    bed.fill(&["item:1"]).await;
    bed.gone("item:1").await;
    assert!(sidecar.metric("walsweep_resyncs_total{reason=\"watermark_lost\"}").await > 0.5);
}

/// A person reads of all that went, also of what was filled again before the second removal.
#[tokio::test]
async fn the_log_of_a_sweep_counts_the_keys_of_its_second_removal_too() {
    let mut bed = Bed::new(&[]).await;
    let rules = "[[rule]]\nname = \"item\"\ntable = \"public.item\"\nkeys = [\"item:{id}\"]\n\
                 [[rule]]\nname = \"list\"\ntable = \"public.item\"\nkeys = [\"list:{team}:*\"]\n";
    let (rules, refill) = (rules.to_owned(), "3s".to_owned());
    let sidecar = Sidecar::set_up(Settings { rules, refill, ..bed.settings() }).await;
    bed.settled().await;
    bed.marked().await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut bed.cache).await.unwrap();
    sidecar.wait_log("swept reason=\"watermark_lost\" keys=0 ").await;
    bed.fill(&["item:1", "item:2", "list:team 1:a"]).await;
    for key in ["item:1", "item:2", "list:team 1:a"] {
        bed.gone(key).await;
    }
    let again = "swept again: what was written meanwhile reason=\"watermark_lost\" keys=3 \
                 rules=\"2 keys of rule `item`; 1 key of rule `list`\"";
    sidecar.wait_log(again).await;
    // One that finds nothing says nothing.
    let count = sidecar.log().iter().filter(|line| line.contains("swept again")).count();
    assert_eq!(count, 1, "{:?}", sidecar.log());
}

/// Silence in the middle of a session's beginning: after the login, before the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_falls_silent_while_it_begins_is_given_up() {
    let bed = Bed::new(&[]).await;
    let mut islands = Vec::new();
    for (peer, after) in [
        (Peer::Sql, 600),
        (Peer::Sql, 1_500),
        (Peer::Sql, 4_000),
        (Peer::Stream, 100),
        (Peer::Stream, 550),
        (Peer::Stream, 700),
        (Peer::Redis, 40),
        (Peer::Redis, 150),
    ] {
        let name = format!("{peer:?}_{after}").to_lowercase();
        islands.push((after, Island::new(peer, &bed, &name).await));
    }
    join_all(islands.iter().map(|(after, island)| async move {
        let (site, proxy) = (&island.site, &island.site.proxy);
        proxy.set(Fault::SilentAfter(*after));
        proxy.cut();
        let before = proxy.accepted();
        let what = format!("{:?}: another attempt after {after} bytes and silence", site.peer);
        eventually(2 * NOTICED, &what, || async { proxy.accepted() > before + 1 }).await;
        proxy.set(Fault::Nothing);
        site.wait_says(true, NOTICED, "silence").await;
    }))
    .await;
}
