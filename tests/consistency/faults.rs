//! What can break, alone and in mixtures: of walsweep, Postgres, Redis, and the ways between them.
//!
//! Every fault mends itself before its function returns. No two of one mixture strike at the same
//! target, so that none takes back what another did.

use std::fmt;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep, timeout};
use walsweep::failpoint::{Point, VARIABLE};
use walsweep::throwaway::{Signal, StopMode, signal};

use crate::World;
use crate::cached::Rows;
use crate::servers::NAME;
use crate::shared::{PATIENCE, RETRY};
use crate::support::{Fault, Proxy, Way};

/// How long a crash point may take to be reached.
const REACH: Duration = Duration::from_secs(4);

/// What a fault strikes at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Walsweep,
    Postgres,
    Redis,
    Network,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// kill −9 at any moment.
    Kill,
    /// It dies at a named point.
    Crash,
    /// SIGSTOP for a while.
    Freeze,
    /// Somebody drops the slot while it is down.
    SlotDropped,
    /// Somebody advances the slot while it is down.
    SlotAdvanced,
    /// The server gives up the slot's WAL while it is down.
    SlotLost,
    /// Fast restart.
    PostgresRestart,
    /// Immediate shutdown, and recovery.
    PostgresImmediate,
    /// kill −9 of all its processes, and recovery.
    PostgresCrash,
    /// SIGSTOP of the process that sends the stream.
    WalsenderFreeze,
    /// Killed and restarted without data.
    RedisEmpty,
    /// Killed and restarted with the data of some time ago.
    RedisOlder,
    /// SIGSTOP for a while.
    RedisFreeze,
    /// CLIENT KILL of all connections.
    RedisClients,
    /// No memory left, nothing evicted.
    RedisFull,
    /// A command is forbidden for a while.
    RedisForbids,
    /// It becomes a replica of nobody, and a primary again.
    RedisReadonly,
    /// The watermark is deleted by hand.
    WatermarkDeleted,
    /// The watermark is overwritten by hand.
    WatermarkOverwritten,
    /// The way to SQL.
    NetworkSql,
    /// The way to the slot.
    NetworkStream,
    /// The way to Redis.
    NetworkRedis,
}

impl Kind {
    /// Every kind, with its name on the command line.
    pub(crate) const ALL: [(Kind, &str); 22] = [
        (Kind::Kill, "kill"),
        (Kind::Crash, "crash"),
        (Kind::Freeze, "freeze"),
        (Kind::SlotDropped, "slot-dropped"),
        (Kind::SlotAdvanced, "slot-advanced"),
        (Kind::SlotLost, "slot-lost"),
        (Kind::PostgresRestart, "postgres-restart"),
        (Kind::PostgresImmediate, "postgres-immediate"),
        (Kind::PostgresCrash, "postgres-crash"),
        (Kind::WalsenderFreeze, "walsender-freeze"),
        (Kind::RedisEmpty, "redis-empty"),
        (Kind::RedisOlder, "redis-older"),
        (Kind::RedisFreeze, "redis-freeze"),
        (Kind::RedisClients, "redis-clients"),
        (Kind::RedisFull, "redis-full"),
        (Kind::RedisForbids, "redis-forbids"),
        (Kind::RedisReadonly, "redis-readonly"),
        (Kind::WatermarkDeleted, "watermark-deleted"),
        (Kind::WatermarkOverwritten, "watermark-overwritten"),
        (Kind::NetworkSql, "network-sql"),
        (Kind::NetworkStream, "network-stream"),
        (Kind::NetworkRedis, "network-redis"),
    ];

    fn name(self) -> &'static str {
        Kind::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    fn target(self) -> Target {
        match self {
            Kind::Kill
            | Kind::Crash
            | Kind::Freeze
            | Kind::SlotDropped
            | Kind::SlotAdvanced
            | Kind::SlotLost => Target::Walsweep,
            Kind::PostgresRestart
            | Kind::PostgresImmediate
            | Kind::PostgresCrash
            | Kind::WalsenderFreeze => Target::Postgres,
            Kind::NetworkSql | Kind::NetworkStream | Kind::NetworkRedis => Target::Network,
            _ => Target::Redis,
        }
    }
}

/// The kinds that a list names: `all`, `none`, or names with commas.
pub(crate) fn parse(list: &str) -> Result<Vec<Kind>, String> {
    match list {
        "none" => Ok(Vec::new()),
        "all" => Ok(Kind::ALL.map(|(kind, _)| kind).to_vec()),
        names => names
            .split(',')
            .map(|name| {
                let found = Kind::ALL.iter().find(|(_, known)| *known == name);
                let names = Kind::ALL.map(|(_, known)| known).join(", ");
                found.map(|(kind, _)| *kind).ok_or(format!("no fault `{name}`; there are {names}"))
            })
            .collect(),
    }
}

/// A fault that is to strike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    kind: Kind,
    /// From the beginning of the mixture.
    after: Duration,
    lasts: Duration,
    point: Point,
    link: Fault,
    /// What else there is to choose.
    choice: u32,
}

impl fmt::Display for Planned {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.kind.name())?;
        match self.kind {
            Kind::Crash => write!(formatter, ":{}", self.point.as_str()),
            Kind::NetworkSql | Kind::NetworkStream | Kind::NetworkRedis => {
                let name = match (self.choice % 3, self.link) {
                    (0, _) => "cut",
                    (1, _) => "reset",
                    (_, Fault::BlackHole(_)) => "black-hole",
                    (_, Fault::Delay(_)) => "delay",
                    (_, Fault::Rate(_)) => "rate",
                    (_, Fault::CutAfter(_)) => "cut-after",
                    (_, _) => "refuse",
                };
                write!(formatter, ":{name}")
            }
            _ => Ok(()),
        }
    }
}

/// Mixtures, each kind and each crash point in its turn.
pub(crate) struct Mixer {
    kinds: Vec<Kind>,
    deck: Vec<Kind>,
    points: Vec<Point>,
    random: StdRng,
}

impl Mixer {
    /// Mixtures of these kinds.
    pub(crate) fn new(kinds: Vec<Kind>, random: StdRng) -> Mixer {
        Mixer { kinds, deck: Vec::new(), points: Vec::new(), random }
    }

    /// The next mixture: one kind, or two or three; empty if there are no kinds.
    pub(crate) fn next(&mut self) -> Vec<Planned> {
        let mut mixture: Vec<Planned> = Vec::new();
        let count = [1, 1, 2, 3][self.random.random_range(0..4)];
        for at in 0..count {
            let Some(kind) = self.draw() else { break };
            let target = kind.target();
            if mixture.iter().any(|other| other.kind.target() == target) {
                // Its turn comes later.
                self.deck.insert(0, kind);
                continue;
            }
            let after = if at == 0 { 0 } else { self.random.random_range(0..1500) };
            let planned = Planned {
                kind,
                after: Duration::from_millis(after),
                lasts: Duration::from_millis(self.random.random_range(100..3000)),
                point: self.point(kind),
                link: self.link(),
                choice: self.random.random_range(0..1000),
            };
            mixture.push(planned);
        }
        mixture
    }

    fn draw(&mut self) -> Option<Kind> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            self.deck.shuffle(&mut self.random);
        }
        self.deck.pop()
    }

    fn point(&mut self, kind: Kind) -> Point {
        if kind != Kind::Crash {
            return Point::Received;
        }
        if self.points.is_empty() {
            self.points = Point::ALL.to_vec();
            self.points.shuffle(&mut self.random);
        }
        self.points.pop().unwrap_or(Point::Received)
    }

    fn link(&mut self) -> Fault {
        let ways = [Way::ToServer, Way::ToClient, Way::Both];
        match self.random.random_range(0..5) {
            0 => Fault::BlackHole(ways[self.random.random_range(0..3)]),
            1 => Fault::Delay(Duration::from_millis(self.random.random_range(5..200))),
            2 => Fault::Rate(self.random.random_range(500..20_000)),
            3 => Fault::CutAfter(self.random.random_range(0..5000)),
            _ => Fault::Refuse,
        }
    }
}

/// Lets a fault strike, and mends it.
pub(crate) async fn inject(world: &World, planned: Planned) {
    sleep(planned.after).await;
    let World { invalidator, servers, .. } = world;
    match planned.kind {
        Kind::Kill => invalidator.kill(),
        Kind::Crash => crash(world, planned).await,
        Kind::Freeze => {
            invalidator.freeze(true);
            sleep(planned.lasts).await;
            invalidator.freeze(false);
        }
        Kind::SlotDropped | Kind::SlotAdvanced | Kind::SlotLost => {
            invalidator.hold();
            sleep(planned.lasts / 4).await;
            spoil_slot(world, planned.kind).await;
            invalidator.release();
        }
        Kind::PostgresRestart | Kind::PostgresImmediate | Kind::PostgresCrash => {
            restart_postgres(world, planned).await;
        }
        Kind::WalsenderFreeze => freeze_walsender(world, planned.lasts).await,
        Kind::RedisEmpty | Kind::RedisOlder => restart_redis(world, planned).await,
        Kind::RedisFreeze => {
            servers.redis.lock().await.pause().unwrap();
            sleep(planned.lasts).await;
            servers.redis.lock().await.resume().unwrap();
        }
        Kind::NetworkSql => break_link(&servers.sql_proxy, planned).await,
        Kind::NetworkStream => break_link(&servers.stream_proxy, planned).await,
        Kind::NetworkRedis => break_link(&servers.redis_proxy, planned).await,
        _ => trouble_redis(world, planned).await,
    }
}

async fn crash(world: &World, planned: Planned) {
    if matches!(planned.point, Point::ResyncOwed | Point::ResyncShown) {
        order(world, "DEL", &[&watermark()]).await;
    }
    let times = planned.choice % 5 + 1;
    let value = format!("{}:{times}", planned.point.as_str());
    let struck = world.invalidator.doom((VARIABLE, &value), REACH).await;
    world.count(if struck { "(crash points reached)" } else { "(crash points not reached)" });
}

fn watermark() -> String {
    format!("walsweep:{NAME}")
}

/// Runs statements until Postgres takes them.
async fn insist(world: &World, statements: &str) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(sql) = world.servers.sql().await {
            // Refused as long as the slot is still in use, for one.
            if let Ok(Ok(())) = timeout(PATIENCE, sql.batch_execute(statements)).await {
                return;
            }
        }
        sleep(RETRY).await;
    }
}

async fn slot_is(world: &World, condition: &str) -> bool {
    let query =
        format!("select 1 from pg_replication_slots where slot_name = '{NAME}' and {condition}");
    let Ok(sql) = world.servers.sql().await else { return false };
    sql.query_opt(&query, &[]).await.is_ok_and(|row| row.is_some())
}

async fn spoil_slot(world: &World, kind: Kind) {
    match kind {
        Kind::SlotDropped => {
            let drop = format!(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots
                  where slot_name = '{NAME}'"
            );
            insist(world, &drop).await;
        }
        Kind::SlotAdvanced => {
            let advance =
                format!("select pg_replication_slot_advance('{NAME}', pg_current_wal_lsn())");
            insist(world, &advance).await;
        }
        _ => {
            insist(world, "alter system set max_slot_wal_keep_size = '1MB'").await;
            insist(world, "select pg_reload_conf()").await;
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline && !slot_is(world, "wal_status = 'lost'").await {
                insist(world, "select pg_switch_wal()").await;
                insist(world, "checkpoint").await;
            }
            insist(world, "alter system reset max_slot_wal_keep_size").await;
            insist(world, "select pg_reload_conf()").await;
        }
    }
}

async fn restart_postgres(world: &World, planned: Planned) {
    {
        let mut postgres = world.servers.postgres.lock().await;
        let stopped = match planned.kind {
            Kind::PostgresRestart => postgres.stop(StopMode::Fast).await,
            Kind::PostgresImmediate => postgres.stop(StopMode::Immediate).await,
            _ => postgres.kill9().await,
        };
        if stopped.is_err() {
            world.count("(postgres did not stop in time)");
            postgres.kill9().await.unwrap();
        }
        sleep(planned.lasts / 4).await;
        postgres.start_again().await.unwrap();
    }
    // Commits that did not wait for the disk may be lost, though their writers and some readers
    // saw them. Writers pause, so that what is read is all that there is.
    let Ok(paused) = timeout(PATIENCE, world.shared.writing.write()).await else { return };
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(rows) = Rows::open(&world.servers.postgres_url).await
            && let Ok(all) = rows.all().await
        {
            world.shared.history.recovered(&all);
            break;
        }
        sleep(RETRY).await;
    }
    drop(paused);
}

async fn freeze_walsender(world: &World, lasts: Duration) {
    let query = format!("select active_pid from pg_replication_slots where slot_name = '{NAME}'");
    let Ok(sql) = world.servers.sql().await else { return };
    let row = sql.query_opt(&query, &[]).await.ok().flatten();
    let pid = row.and_then(|row| row.try_get::<_, Option<i32>>(0).ok().flatten());
    let Some(pid) = pid.and_then(|pid| u32::try_from(pid).ok()) else { return };
    if signal(&[pid], Signal::Stop).is_ok() {
        sleep(lasts).await;
        // It may have been ended meanwhile.
        drop(signal(&[pid], Signal::Cont));
    }
}

async fn restart_redis(world: &World, planned: Planned) {
    let is_older = planned.kind == Kind::RedisOlder;
    if is_older {
        order(world, "SAVE", &[]).await;
        sleep(planned.lasts).await;
    }
    let mut redis = world.servers.redis.lock().await;
    redis.kill9().await.unwrap();
    if !is_older {
        drop(std::fs::remove_file(redis.dir().join("dump.rdb")));
    }
    sleep(planned.lasts / 4).await;
    redis.start_again().await.unwrap();
    world.shared.history.restored();
}

/// Sends a command to Redis, as somebody with a console would. It may be refused.
async fn order(world: &World, command: &str, args: &[&str]) {
    let ask = async {
        let mut cache: MultiplexedConnection = world.servers.cache().await.ok()?;
        redis::cmd(command).arg(args).exec_async(&mut cache).await.ok()
    };
    if !matches!(timeout(PATIENCE, ask).await, Ok(Some(()))) {
        world.count(&format!("({command} was refused)"));
    }
}

/// What a command does and another takes back.
async fn trouble_redis(world: &World, planned: Planned) {
    let dead_port = "1";
    let forbidden = ["-unlink", "-scan", "-eval"][usize::try_from(planned.choice % 3).unwrap()];
    let watermark = watermark();
    let (begin, end): (Vec<&str>, Vec<&str>) = match planned.kind {
        Kind::RedisClients => (vec!["CLIENT", "KILL", "TYPE", "normal"], vec![]),
        Kind::RedisFull => {
            order(world, "CONFIG", &["SET", "maxmemory-policy", "noeviction"]).await;
            (vec!["CONFIG", "SET", "maxmemory", "1"], vec!["CONFIG", "SET", "maxmemory", "0"])
        }
        Kind::RedisForbids => (
            vec!["ACL", "SETUSER", "default", forbidden],
            vec!["ACL", "SETUSER", "default", "+@all"],
        ),
        Kind::RedisReadonly => {
            (vec!["REPLICAOF", "127.0.0.1", dead_port], vec!["REPLICAOF", "NO", "ONE"])
        }
        Kind::WatermarkDeleted => (vec!["DEL", &watermark], vec![]),
        _ => (vec!["SET", &watermark, "by hand"], vec![]),
    };
    if let Some((command, args)) = begin.split_first() {
        order(world, command, args).await;
    }
    if let Some((command, args)) = end.split_first() {
        sleep(planned.lasts).await;
        order(world, command, args).await;
    }
}

async fn break_link(proxy: &Proxy, planned: Planned) {
    match planned.choice % 3 {
        0 => proxy.cut(),
        1 => proxy.reset(),
        _ => {
            proxy.set(planned.link);
            if planned.link == Fault::Refuse {
                proxy.cut();
            }
            sleep(planned.lasts).await;
            proxy.set(Fault::Nothing);
        }
    }
}
