//! Faults, alone and in mixtures: of walsweep, Postgres, Redis, and the ways between them; and
//! those that the application brings about in its own tables.
//!
//! Every fault is mended before the next mixture. No two of one mixture strike at the same target,
//! so that none takes back what another did: what the application does counts as Postgres's.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use walsweep::failpoint::Point;

use crate::cache::Mode;
use crate::support::{Fault, Way};

/// A part of the system that a fault strikes at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Walsweep,
    Postgres,
    Standby,
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
    /// Like [`Kind::PostgresCrash`], after commits that did not wait for the disk were seen,
    /// cached, and lost.
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
    /// Somebody holds ACCESS EXCLUSIVE on a table.
    LockHeld,
    /// Somebody waits for it behind a long SELECT, and everybody else behind him.
    LockQueued,
    /// `ALTER COLUMN … TYPE … USING upper(…)`.
    DdlConvert,
    /// A column is dropped and another one added.
    DdlColumn,
    /// The label of an enum is renamed.
    DdlEnum,
    /// A domain gets a constraint, and loses it.
    DdlDomain,
    /// The replica identity is changed, and changed back.
    DdlIdentity,
    /// A partition is detached and attached.
    DdlPartition,
    /// A table leaves the publication, or operations do, or it is dropped and made again.
    DdlPublication,
    /// The event trigger is disabled while the materialized view is refreshed.
    DdlTrigger,
    /// A rule's table is dropped and restored.
    TableDropped,
    /// Another table takes its name.
    TableSwapped,
    /// Another table inherits from it.
    TableInherited,
    /// The right to one prefix of keys is taken away and given back.
    RedisNoperm,
    /// The standby of `replicas` stops, and starts again.
    StandbyGone,
    /// It does not replay for a while.
    StandbyPaused,
    /// Another walsweep takes over when this one is killed.
    StandIn,
    /// Another configuration, several times.
    Reload,
    /// A primary is killed; its replica, which may have been cut off before, takes over.
    PrimaryKilled,
    /// A primary is frozen until its replica has taken over, and then goes on.
    PrimaryPaused,
    /// A replica takes over by hand.
    Failover,
    /// Slots go from primary to primary, from the beginning to the end of the run.
    Reshard,
    /// A primary is killed while slots go to another one or come from it.
    ReshardTorn,
    /// A node joins, has slots for a while, and leaves.
    NodeJoins,
}

impl Kind {
    /// Every kind, with its name on the command line.
    pub(crate) const ALL: [(Kind, &str); 47] = [
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
        (Kind::LockHeld, "lock-held"),
        (Kind::LockQueued, "lock-queued"),
        (Kind::DdlConvert, "ddl-convert"),
        (Kind::DdlColumn, "ddl-column"),
        (Kind::DdlEnum, "ddl-enum"),
        (Kind::DdlDomain, "ddl-domain"),
        (Kind::DdlIdentity, "ddl-identity"),
        (Kind::DdlPartition, "ddl-partition"),
        (Kind::DdlPublication, "ddl-publication"),
        (Kind::DdlTrigger, "ddl-trigger"),
        (Kind::TableDropped, "table-dropped"),
        (Kind::TableSwapped, "table-swapped"),
        (Kind::TableInherited, "table-inherited"),
        (Kind::RedisNoperm, "redis-noperm"),
        (Kind::StandbyGone, "standby-gone"),
        (Kind::StandbyPaused, "standby-paused"),
        (Kind::StandIn, "stand-in"),
        (Kind::Reload, "reload"),
        (Kind::PrimaryKilled, "primary-killed"),
        (Kind::PrimaryPaused, "primary-paused"),
        (Kind::Failover, "failover"),
        (Kind::Reshard, "reshard"),
        (Kind::ReshardTorn, "reshard-torn"),
        (Kind::NodeJoins, "node-joins"),
    ];

    /// Whether there is such a fault where Redis is run so.
    pub(crate) fn suits(self, mode: Mode) -> bool {
        match self {
            // Clients of a cluster and of Sentinels are told addresses, and go past a proxy. Who is
            // whose replica is not for a single server to say.
            Kind::NetworkRedis | Kind::RedisReadonly => mode == Mode::Standalone,
            Kind::Reshard | Kind::ReshardTorn | Kind::NodeJoins => mode == Mode::Cluster,
            _ => !self.is_failover() || mode != Mode::Standalone,
        }
    }

    /// Whether a replica takes over.
    pub(crate) fn is_failover(self) -> bool {
        matches!(
            self,
            Kind::PrimaryKilled | Kind::PrimaryPaused | Kind::Failover | Kind::ReshardTorn
        )
    }

    /// Whether it can show that it took effect.
    pub(crate) fn is_of_nodes(self) -> bool {
        self.is_failover() || self == Kind::NodeJoins
    }

    /// Whether the application does it to its own tables.
    pub(crate) fn is_of_application(self) -> bool {
        self.is_untold() || matches!(self, Kind::LockHeld | Kind::LockQueued)
    }

    /// Whether no row tells of it: walsweep has to look, which takes a stated time.
    pub(crate) fn is_untold(self) -> bool {
        matches!(
            self,
            Kind::DdlConvert
                | Kind::DdlColumn
                | Kind::DdlEnum
                | Kind::DdlDomain
                | Kind::DdlIdentity
                | Kind::DdlPartition
                | Kind::DdlPublication
                | Kind::DdlTrigger
                | Kind::TableDropped
                | Kind::TableSwapped
                | Kind::TableInherited
        )
    }

    /// Whether it must leave the keys of other rules alone, and so is no outage.
    pub(crate) fn is_confined(self) -> bool {
        self.is_of_application()
            || self.is_of_standby()
            || matches!(self, Kind::RedisNoperm | Kind::Reload)
    }

    /// Whether it needs a standby that is listed.
    pub(crate) fn is_of_standby(self) -> bool {
        matches!(self, Kind::StandbyGone | Kind::StandbyPaused)
    }

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        Kind::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    fn target(self) -> Target {
        match self {
            Kind::Kill
            | Kind::Crash
            | Kind::Freeze
            | Kind::SlotDropped
            | Kind::SlotAdvanced
            | Kind::SlotLost
            | Kind::StandIn
            | Kind::Reload => Target::Walsweep,
            Kind::StandbyGone | Kind::StandbyPaused => Target::Standby,
            kind if kind.is_of_application() => Target::Postgres,
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

/// The option's help, with every name.
pub(crate) fn help() -> String {
    let names = Kind::ALL.map(|(_, name)| name).join(", ");
    let only = |mode: Mode| {
        let has = |kind: &Kind| Mode::ALL.iter().all(|one| kind.suits(*one) == (*one == mode));
        let names = Kind::ALL.iter().filter(|(kind, _)| has(kind)).map(|(_, name)| *name);
        names.collect::<Vec<_>>().join(", ")
    };
    let (standalone, cluster) = (only(Mode::Standalone), only(Mode::Cluster));
    format!(
        "`none`, `all`, or names with commas: {names}. `all` leaves out what there is not with \
         `--redis`: {standalone} are of one server alone, {cluster} of a cluster alone, and other \
         failovers of a cluster or a service. In a cluster, `redis-empty`, `redis-older`, \
         `redis-freeze`, `redis-full` and those of the watermark strike at one primary, the rest \
         at every node; `reshard` goes on all the time, beside the others"
    )
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
    /// A number that settles everything else there is to choose.
    pub(crate) choice: u32,
}

impl fmt::Display for Planned {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.kind.name())?;
        match self.kind {
            Kind::Crash => write!(formatter, ":{}", self.point.as_str()),
            Kind::LockHeld | Kind::LockQueued => write!(formatter, ":{}", self.table()),
            Kind::RedisNoperm => write!(formatter, ":{}", self.family()),
            Kind::DdlPublication => {
                let name = ["table", "operations", "made-again"];
                write!(formatter, ":{}", name[usize::try_from(self.choice % 3).unwrap()])
            }
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
    /// Of each kind that comes in variations, the next one.
    turns: BTreeMap<&'static str, u32>,
    random: StdRng,
}

impl Mixer {
    /// Mixtures of these kinds.
    pub(crate) fn new(kinds: Vec<Kind>, random: StdRng) -> Mixer {
        let (deck, points, turns) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut mixer = Mixer { kinds, deck, points, turns, random };
        mixer.shuffle();
        // A report without them says that nothing was tested: they do not wait for a long run.
        mixer.deck.sort_by_key(|kind| kind.is_of_nodes());
        mixer
    }

    fn shuffle(&mut self) {
        self.deck.clone_from(&self.kinds);
        self.deck.shuffle(&mut self.random);
    }

    /// The next mixture: one kind, or two or three; empty if there are no kinds.
    pub(crate) fn next(&mut self) -> Vec<Planned> {
        let mut mixture: Vec<Planned> = Vec::new();
        let count = [1, 1, 2, 3][self.random.random_range(0..4)];
        for at in 0..count {
            let Some(kind) = self.draw() else { break };
            let target = kind.target();
            if mixture.iter().any(|other| other.kind.target() == target) {
                // Its turn comes later; that of those that a report asks for, next.
                let place = if kind.is_of_nodes() { self.deck.len() } else { 0 };
                self.deck.insert(place, kind);
                continue;
            }
            let after = if at == 0 { 0 } else { self.random.random_range(0..1500) };
            let planned = Planned {
                kind,
                after: Duration::from_millis(after),
                lasts: Duration::from_millis(self.random.random_range(100..3000)),
                point: self.point(kind),
                link: self.link(),
                choice: self.choice(kind),
            };
            mixture.push(planned);
        }
        mixture
    }

    fn draw(&mut self) -> Option<Kind> {
        if self.deck.is_empty() {
            self.shuffle();
        }
        self.deck.pop()
    }

    /// Tables, families, ways and primaries come in their turn, from one of chance on.
    fn choice(&mut self, kind: Kind) -> u32 {
        let chosen = self.random.random_range(0..1000);
        if !kind.is_confined() && !kind.is_of_nodes() {
            return chosen;
        }
        let turn = self.turns.entry(kind.name()).or_insert(chosen);
        *turn += 1;
        *turn
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
