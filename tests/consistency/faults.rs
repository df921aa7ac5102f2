//! What can break, alone and in mixtures: of walsweep, Postgres, Redis, and the ways between them.
//!
//! Every fault is mended before the next mixture. No two of one mixture strike at the same
//! target, so that none takes back what another did.

use std::fmt;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use walsweep::failpoint::Point;

use crate::support::{Fault, Way};

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
    /// The same, after commits that did not wait for the disk were seen, cached, and lost.
    PostgresPhantom,
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
    pub(crate) const ALL: [(Kind, &str); 23] = [
        (Kind::Kill, "kill"),
        (Kind::Crash, "crash"),
        (Kind::Freeze, "freeze"),
        (Kind::SlotDropped, "slot-dropped"),
        (Kind::SlotAdvanced, "slot-advanced"),
        (Kind::SlotLost, "slot-lost"),
        (Kind::PostgresRestart, "postgres-restart"),
        (Kind::PostgresImmediate, "postgres-immediate"),
        (Kind::PostgresCrash, "postgres-crash"),
        (Kind::PostgresPhantom, "postgres-phantom"),
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
            | Kind::PostgresPhantom
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
    pub(crate) kind: Kind,
    /// From the beginning of the mixture.
    pub(crate) after: Duration,
    pub(crate) lasts: Duration,
    pub(crate) point: Point,
    pub(crate) link: Fault,
    /// What else there is to choose.
    pub(crate) choice: u32,
}

impl fmt::Display for Planned {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.kind.name())?;
        match self.kind {
            Kind::Crash => write!(formatter, ":{}", self.point.as_str()),
            Kind::NetworkSql | Kind::NetworkStream | Kind::NetworkRedis => {
                let name = match (self.choice % 7, self.link) {
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
