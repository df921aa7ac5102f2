//! A throwaway Redis Cluster
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use redis::{Cmd, FromRedisValue, cmd};
use tokio::time::{Instant, sleep};

use super::{Error, PATIENCE, PAUSE, Redis, RedisOptions, io_error, wait};

/// How many hash slots a cluster has.
pub const SLOT_COUNT: u16 = 16_384;

/// How long nodes that are well may take to tell each other who has which slot.
const GOSSIP: Duration = Duration::from_secs(5);

/// Arguments of every node. A node that does not answer for two seconds has failed.
const ARGS: [&str; 8] = [
    "--cluster-enabled",
    "yes",
    "--cluster-config-file",
    "nodes.conf",
    "--cluster-node-timeout",
    "2000",
    "--repl-diskless-sync-delay",
    "0",
];

/// How to start a [`Cluster`].
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// How many primaries share the slots; at least one, and three for a failover.
    pub primaries: usize,
    /// How many replicas each of them has.
    pub replicas: usize,
    /// How each node is started: its arguments come after the usual ones.
    pub node: RedisOptions,
}

impl Default for ClusterOptions {
    /// Three primaries with a replica each.
    fn default() -> ClusterOptions {
        ClusterOptions { primaries: 3, replicas: 1, node: RedisOptions::default() }
    }
}

/// A running cluster, ended and removed when dropped. A node keeps its number for as long as the
/// cluster lives: the primaries come first, then one replica of each, and so on; then the added.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Option<Node>>,
    options: RedisOptions,
}

#[derive(Debug)]
struct Node {
    server: Redis,
    id: String,
}

/// A node as another one sees it: a line of `CLUSTER NODES`
/// (<https://redis.io/docs/latest/commands/cluster-nodes/>).
struct Seen {
    id: String,
    is_primary: bool,
    /// The primary that it follows, or `-`.
    follows: String,
    epoch: u64,
    slots: Vec<(u16, u16)>,
    /// Its slots on their way, which it tells of itself alone.
    open: Vec<Open>,
}

/// A slot on its way, as one of the two nodes knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Open {
    slot: u16,
    is_import: bool,
    /// The other node.
    other: String,
}

impl Cluster {
    /// Starts the nodes and waits until every one of them takes commands for all slots, and each
    /// replica has its primary's data: some three seconds. Fails as [`Redis::start`] does, or when
    /// that takes longer than 30 s.
    pub async fn start(options: ClusterOptions) -> Result<Cluster, Error> {
        let mut node = options.node;
        node.args.splice(0..0, ARGS.map(str::to_owned));
        let mut cluster = Cluster { nodes: Vec::new(), options: node };
        for _ in 0..options.primaries * (1 + options.replicas) {
            cluster.start_node().await?;
        }
        for at in 0..options.primaries {
            let bounds = [at, at + 1].map(|at| usize::from(SLOT_COUNT) * at / options.primaries);
            let mut slots = cmd("CLUSTER");
            slots.arg("ADDSLOTS").arg((bounds[0]..bounds[1]).collect::<Vec<usize>>());
            cluster.ask::<()>(at, &slots).await?;
            // Of two primaries with one epoch the nodes would agree on another first.
            let mut epoch = cmd("CLUSTER");
            epoch.arg("SET-CONFIG-EPOCH").arg(at + 1);
            cluster.ask::<()>(at, &epoch).await?;
        }
        let count = cluster.nodes.len();
        for one in 0..count {
            for other in one + 1..count {
                cluster.meet(one, other).await?;
            }
        }
        cluster.all_know(count).await?;
        for at in options.primaries..count {
            cluster.replicate(at, at % options.primaries).await?;
        }
        cluster.settled().await?;
        Ok(cluster)
    }

    /// The `redis://` URLs of all nodes, running or not.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().flatten().map(|node| node.server.url()).collect()
    }

    /// A node's server. Fails when it was removed, or never was.
    pub fn node(&self, at: usize) -> Result<&Redis, Error> {
        self.at(at).map(|node| &node.server)
    }

    /// A node's server, to be stopped, killed and started again.
    pub fn node_mut(&mut self, at: usize) -> Result<&mut Redis, Error> {
        let node = self.nodes.get_mut(at).and_then(Option::as_mut);
        node.map(|node| &mut node.server).ok_or(Error::Stopped { name: "a cluster's node" })
    }

    /// The numbers of the primaries that have slots, in the eyes of the first node that runs; one
    /// that does not answer is among them until another one has its slots. Fails when no node runs.
    pub async fn primaries(&self) -> Result<Vec<usize>, Error> {
        let seen = self.seen_by(self.first()?).await?;
        let primaries = seen.iter().filter(|seen| seen.is_primary && !seen.slots.is_empty());
        Ok(primaries.filter_map(|seen| self.number_of(&seen.id)).collect())
    }

    /// The number of a running replica of a primary, in the eyes of the first node that runs;
    /// `None` if it has none. Fails when no node runs.
    pub async fn replica_of(&self, primary: usize) -> Result<Option<usize>, Error> {
        let id = &self.at(primary)?.id;
        let seen = self.seen_by(self.first()?).await?;
        let replicas = seen.iter().filter(|seen| !seen.is_primary && seen.follows == *id);
        let mut replicas = replicas.filter_map(|seen| self.number_of(&seen.id));
        Ok(replicas.find(|at| self.running().any(|running| running == *at)))
    }

    /// The slots of a node, as it says itself. Fails when it does not run.
    pub async fn slots_of(&self, at: usize) -> Result<Vec<u16>, Error> {
        let id = &self.at(at)?.id;
        let seen = self.seen_by(at).await?;
        let own = seen.iter().filter(|seen| seen.id == *id && seen.is_primary);
        Ok(own.flat_map(|seen| &seen.slots).flat_map(|(from, to)| *from..=*to).collect())
    }

    /// The number of the node that has a slot, in the eyes of the first node that runs; `None` if
    /// none has it. Fails when no node runs.
    pub async fn owner(&self, slot: u16) -> Result<Option<usize>, Error> {
        let has = |seen: &Seen| seen.slots.iter().any(|(from, to)| (*from..=*to).contains(&slot));
        let seen = self.seen_by(self.first()?).await?;
        let owner = seen.iter().find(|seen| seen.is_primary && has(seen));
        Ok(owner.and_then(|owner| self.number_of(&owner.id)))
    }

    /// The slot of a key, which may be any bytes. Fails when no node runs.
    pub async fn slot_of(&self, key: &[u8]) -> Result<u16, Error> {
        self.ask(self.first()?, cmd("CLUSTER").arg("KEYSLOT").arg(key)).await
    }

    /// Lets a slot be on its way to another primary: the old one still serves the keys that it has,
    /// and sends who asks for another to the new one, by `ASK`. Fails as [`Cluster::owner`] does,
    /// or when nobody has the slot.
    pub async fn begin_move(&self, slot: u16, to: usize) -> Result<(), Error> {
        let from = self.owner_of(slot).await?;
        for (node, state, other) in [(to, "IMPORTING", from), (from, "MIGRATING", to)] {
            self.set_slot(node, slot, &[state, &self.at(other)?.id]).await?;
        }
        Ok(())
    }

    /// Lets the keys of a slot go over that is on its way: a part of [`Cluster::finish_move`].
    pub async fn move_keys(&self, slot: u16, to: usize) -> Result<(), Error> {
        let from = self.owner_of(slot).await?;
        self.migrate(slot, (from, to), &[]).await
    }

    /// Ends what [`Cluster::begin_move`] began: the keys go over, and all primaries know the new
    /// owner, who answers others by `MOVED`.
    pub async fn finish_move(&self, slot: u16, to: usize) -> Result<(), Error> {
        let from = self.owner_of(slot).await?;
        self.migrate(slot, (from, to), &[]).await?;
        let primaries = self.seen_by(from).await?.into_iter().filter(|seen| seen.is_primary);
        let primaries: Vec<String> = primaries.map(|seen| seen.id).collect();
        let others = self.running().filter(|at| ![from, to].contains(at));
        for node in [to, from].into_iter().chain(others) {
            if !primaries.contains(&self.at(node)?.id) {
                continue;
            }
            match self.set_slot(node, slot, &["NODE", &self.at(to)?.id]).await {
                // Who hears from the new owner that its last slot is gone follows the new owner.
                Err(Error::Redis(error)) if error.to_string().contains("only with masters") => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Closes slots that are on their way, after a failure in between, as an operator does with
    /// `redis-cli --cluster fix`: a move that both ends know of is finished; otherwise all keys go
    /// to the owner, whatever he has by these names. Gives how many slots there were. Waits as
    /// [`Cluster::settled`] does, and fails as [`Cluster::owner`] does.
    pub async fn fix(&self) -> Result<usize, Error> {
        let mut primaries = Vec::new();
        for at in self.running() {
            let seen = self.seen_by(at).await?;
            let own = seen.into_iter().find(|seen| seen.id == self.id_of(at));
            primaries.extend(own.filter(|seen| seen.is_primary).map(|seen| (at, seen.open)));
        }
        let has = |at: usize, open: &Open| {
            primaries.iter().any(|(one, opens)| *one == at && opens.contains(open))
        };
        let (mut moves, mut torn) = (Vec::new(), BTreeSet::new());
        for (at, open) in primaries.iter().flat_map(|(at, opens)| opens.iter().map(|o| (*at, o))) {
            let other = self.number_of(&open.other);
            let back =
                Open { is_import: !open.is_import, other: self.id_of(at).to_owned(), ..*open };
            match other.filter(|other| has(*other, &back)) {
                Some(from) if open.is_import => moves.push((open.slot, from, at)),
                Some(_) => {}
                None => drop(torn.insert(open.slot)),
            }
        }
        // A node that takes a slot from another one does not learn who owns it instead, and so may
        // take the cluster for broken.
        for slot in &torn {
            for (at, _) in &primaries {
                self.set_slot(*at, *slot, &["STABLE"]).await?;
            }
        }
        self.agree(&primaries.iter().map(|(at, _)| *at).collect::<Vec<_>>()).await?;
        self.settled().await?;
        for slot in &torn {
            let owner = self.owner_of(*slot).await?;
            for at in primaries.iter().map(|(at, _)| *at).filter(|at| *at != owner) {
                self.give_up(*slot, (at, owner)).await?;
            }
        }
        let count = torn.len() + moves.len();
        for (slot, from, to) in moves {
            self.migrate(slot, (from, to), &["REPLACE"]).await?;
            self.finish_move(slot, to).await?;
        }
        Ok(count)
    }

    /// Waits for a while until all primaries agree who has which slot. If they do not, it goes to
    /// one that says it has it, or else to the one with the most keys.
    async fn agree(&self, primaries: &[usize]) -> Result<(), Error> {
        if self.agreed().await? {
            return Ok(());
        }
        for slot in self.disputed().await?.unwrap_or_default() {
            let mut best = None;
            for at in primaries {
                let mut count = cmd("CLUSTER");
                let count: usize = self.ask(*at, count.arg("COUNTKEYSINSLOT").arg(slot)).await?;
                let claims = self.slots_of(*at).await?.contains(&slot);
                best = best.max(Some((claims, count, *at)));
            }
            let Some((claims, _, owner)) = best else { continue };
            let id = self.id_of(owner);
            if !claims && let Some(other) = primaries.iter().find(|at| **at != owner) {
                // Who takes a slot by the way of a move tells all others, with a new epoch.
                self.set_slot(owner, slot, &["IMPORTING", self.id_of(*other)]).await?;
            }
            for at in [owner].iter().chain(primaries.iter().filter(|at| **at != owner)) {
                self.set_slot(*at, slot, &["NODE", id]).await?;
            }
        }
        Ok(())
    }

    /// Waits for a while until all nodes agree who has which slot, and says whether they do.
    /// Before that no replica may take over: the others may refuse, or it claims slots of the past.
    /// Who lets slots go to another primary before may bring it about that nobody claims one: two
    /// nodes give themselves the same epoch then.
    pub async fn agreed(&self) -> Result<bool, Error> {
        let deadline = Instant::now() + GOSSIP;
        while self.disputed().await?.is_some() {
            if Instant::now() > deadline {
                return Ok(false);
            }
            sleep(5 * PAUSE).await;
        }
        Ok(true)
    }

    /// The slots on whose owner the running nodes do not agree; `None` if they agree on those
    /// and on all epochs.
    async fn disputed(&self) -> Result<Option<Vec<u16>>, Error> {
        let mut views: Vec<Vec<Option<usize>>> = Vec::new();
        let mut epochs = BTreeSet::new();
        for at in self.running() {
            let seen = self.seen_by(at).await?;
            let mut view = vec![None; usize::from(SLOT_COUNT)];
            epochs.extend(seen.iter().filter(|seen| seen.is_primary).map(|seen| {
                let known = self.number_of(&seen.id).is_some();
                (known.then(|| seen.id.clone()), if known { seen.epoch } else { 0 })
            }));
            for seen in seen {
                for (from, to) in seen.slots {
                    view[usize::from(from)..=usize::from(to)].fill(self.number_of(&seen.id));
                }
            }
            views.push(view);
        }
        let differs = |slot: &u16| {
            let mut owners = views.iter().map(|view| view[usize::from(*slot)]);
            let first = owners.next();
            owners.any(|owner| Some(owner) != first)
        };
        let slots: Vec<u16> = (0..SLOT_COUNT).filter(differs).collect();
        let ids: BTreeSet<_> = epochs.iter().map(|(id, _)| id).collect();
        Ok((!slots.is_empty() || ids.len() < epochs.len()).then_some(slots))
    }

    async fn set_slot(&self, at: usize, slot: u16, words: &[&str]) -> Result<(), Error> {
        self.ask(at, cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(words)).await
    }

    /// A node that is not the owner gives him what it has of a slot.
    async fn give_up(&self, slot: u16, (at, owner): (usize, usize)) -> Result<(), Error> {
        let mut count = cmd("CLUSTER");
        count.arg("COUNTKEYSINSLOT").arg(slot);
        if self.ask::<usize>(at, &count).await? > 0 {
            // Who does not own the slot may touch its keys while they are on their way alone.
            self.set_slot(at, slot, &["IMPORTING", self.id_of(owner)]).await?;
            self.migrate(slot, (at, owner), &["REPLACE"]).await?;
        }
        self.set_slot(at, slot, &["STABLE"]).await
    }

    async fn migrate(
        &self,
        slot: u16,
        (from, to): (usize, usize),
        options: &[&str],
    ) -> Result<(), Error> {
        loop {
            let mut list = cmd("CLUSTER");
            list.arg("GETKEYSINSLOT").arg(slot).arg(100);
            let keys: Vec<Vec<u8>> = self.ask(from, &list).await?;
            if keys.is_empty() {
                return Ok(());
            }
            let mut migrate = cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(self.at(to)?.server.port()).arg("").arg(0);
            migrate.arg(PATIENCE.as_millis()).arg(options).arg("KEYS").arg(keys);
            self.ask::<()>(from, &migrate).await?;
        }
    }

    /// Adds a node: a replica of that one, or a primary without any slot. Gives its number. Fails
    /// as [`Cluster::start`] does.
    pub async fn add(&mut self, replica_of: Option<usize>) -> Result<usize, Error> {
        let count = self.running().count() + 1;
        let new = self.start_node().await?;
        for other in self.running().filter(|at| *at != new) {
            self.meet(new, other).await?;
        }
        self.all_know(count).await?;
        if let Some(primary) = replica_of {
            self.replicate(new, primary).await?;
        }
        self.settled().await?;
        Ok(new)
    }

    /// Ends a node that has no slot and no replica, and lets the others forget it. Fails as
    /// [`Cluster::owner`] does, or when the node has a slot.
    pub async fn remove(&mut self, at: usize) -> Result<(), Error> {
        let id = self.at(at)?.id.clone();
        let seen = self.seen_by(self.first()?).await?;
        if seen.iter().any(|seen| seen.id == id && !seen.slots.is_empty()) {
            return Err(io_error("remove a node that has slots")(ErrorKind::InvalidInput.into()));
        }
        for other in self.running().filter(|other| *other != at) {
            self.ask::<()>(other, cmd("CLUSTER").arg("FORGET").arg(&id)).await?;
        }
        self.nodes[at] = None;
        Ok(())
    }

    /// Waits until a replica has taken over the slots of its primary, which was killed: some four
    /// seconds.
    pub async fn promoted(&self, replica: usize) -> Result<(), Error> {
        self.took_over(replica).await?;
        self.settled().await
    }

    /// Like [`Cluster::promoted`], while other nodes may not answer.
    pub async fn took_over(&self, replica: usize) -> Result<(), Error> {
        self.wait("promote a replica", async || Ok(!self.slots_of(replica).await?.is_empty())).await
    }

    /// Lets a replica take over from its primary, which agrees first and loses nothing; with
    /// `force` it is not asked. Waits as [`Cluster::promoted`] does.
    pub async fn fail_over(&self, replica: usize, force: bool) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        while self.slots_of(replica).await?.is_empty() && Instant::now() < deadline {
            let mut order = cmd("CLUSTER");
            order.arg("FAILOVER").arg(if force { &["FORCE"] as &[&str] } else { &[] });
            let ordered = self.ask::<()>(replica, &order).await;
            // Another one may have been obeyed just now.
            if ordered.is_err() && self.slots_of(replica).await?.is_empty() {
                return ordered;
            }
            // An order is forgotten after five seconds if the others did not agree.
            let tried = Instant::now() + GOSSIP;
            while self.slots_of(replica).await?.is_empty() && Instant::now() < tried {
                sleep(5 * PAUSE).await;
            }
        }
        self.promoted(replica).await
    }

    /// Who has which slots, in the eyes of each running node in turn: for people to read.
    pub async fn views(&self) -> Result<String, Error> {
        let mut views = String::new();
        for at in self.running() {
            let lines: String = self.ask(at, cmd("CLUSTER").arg("NODES")).await?;
            views += &format!("node {at}\n{lines}");
        }
        Ok(views)
    }

    /// Waits until every running node takes commands, every replica follows its primary, and all
    /// agree who has which slot.
    pub async fn settled(&self) -> Result<(), Error> {
        self.wait("serve all slots", async || {
            for at in self.running() {
                let state: String = self.ask(at, cmd("CLUSTER").arg("INFO")).await?;
                let role: String = self.ask(at, cmd("INFO").arg("replication")).await?;
                let follows =
                    !role.contains("role:slave") || role.contains("master_link_status:up");
                if !state.contains("cluster_state:ok") || !follows {
                    return Ok(false);
                }
            }
            Ok(self.disputed().await?.is_none())
        })
        .await
    }

    async fn start_node(&mut self) -> Result<usize, Error> {
        let server = Redis::start(self.options.clone()).await?;
        let mut own = cmd("CLUSTER");
        let id = own.arg("MYID").query_async(&mut server.connect().await?).await?;
        self.nodes.push(Some(Node { server, id }));
        Ok(self.nodes.len() - 1)
    }

    async fn meet(&self, one: usize, other: usize) -> Result<(), Error> {
        let mut meet = cmd("CLUSTER");
        meet.arg("MEET").arg("127.0.0.1").arg(self.at(other)?.server.port());
        self.ask(one, &meet).await
    }

    /// Waits until each running node knows so many, by their final names.
    async fn all_know(&self, count: usize) -> Result<(), Error> {
        self.wait("know each other", async || {
            for at in self.running() {
                let seen = self.seen_by(at).await?;
                let known = seen.iter().filter(|seen| self.number_of(&seen.id).is_some());
                if known.count() < count {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
    }

    async fn replicate(&self, replica: usize, primary: usize) -> Result<(), Error> {
        self.ask(replica, cmd("CLUSTER").arg("REPLICATE").arg(&self.at(primary)?.id)).await
    }

    async fn seen_by(&self, at: usize) -> Result<Vec<Seen>, Error> {
        let lines: String = self.ask(at, cmd("CLUSTER").arg("NODES")).await?;
        Ok(lines.lines().filter_map(Seen::read).collect())
    }

    /// Sends a command to one node, over a connection of its own.
    async fn ask<T: FromRedisValue>(&self, at: usize, command: &Cmd) -> Result<T, Error> {
        let mut connection = self.at(at)?.server.connect().await?;
        Ok(command.query_async(&mut connection).await?)
    }

    async fn wait(
        &self,
        goal: &'static str,
        question: impl AsyncFn() -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let logs = || self.nodes.iter().flatten().map(|node| node.server.log());
        let log = || logs().collect::<Vec<_>>().join("\n\n");
        wait("a cluster", goal, log, async || Ok(question().await?.then_some(()))).await
    }

    async fn owner_of(&self, slot: u16) -> Result<usize, Error> {
        let owner = self.owner(slot).await?;
        owner.ok_or_else(|| io_error(format!("find slot {slot}"))(ErrorKind::NotFound.into()))
    }

    fn at(&self, at: usize) -> Result<&Node, Error> {
        let node = self.nodes.get(at).and_then(Option::as_ref);
        node.ok_or(Error::Stopped { name: "a cluster's node" })
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(at, node)| node.as_ref()?.server.is_running().then_some(at))
    }

    fn first(&self) -> Result<usize, Error> {
        self.running().next().ok_or(Error::Stopped { name: "a cluster" })
    }

    /// A node's own name; empty if it was removed.
    fn id_of(&self, at: usize) -> &str {
        self.at(at).map_or("", |node| &node.id)
    }

    fn number_of(&self, id: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.as_ref().is_some_and(|node| node.id == id))
    }
}

impl Seen {
    /// Reads a line; `None` if it is none.
    fn read(line: &str) -> Option<Seen> {
        let mut words = line.split(' ');
        let (id, flags, follows) = (words.next()?, words.nth(1)?, words.next()?);
        let epoch = words.nth(2)?.parse().ok()?;
        let words: Vec<&str> = words.skip(1).collect();
        let slots = words.iter().filter_map(|slots| {
            let (from, to) = slots.split_once('-').unwrap_or((slots, slots));
            Some((from.parse().ok()?, to.parse().ok()?))
        });
        Some(Seen {
            id: id.to_owned(),
            is_primary: flags.split(',').any(|flag| flag == "master"),
            follows: follows.to_owned(),
            epoch,
            slots: slots.collect(),
            open: words.iter().filter_map(|word| Open::read(word)).collect(),
        })
    }
}

impl Open {
    /// Reads `[slot->-node]` or `[slot-<-node]`.
    fn read(word: &str) -> Option<Open> {
        let (slot, rest) = word.strip_prefix('[')?.strip_suffix(']')?.split_once('-')?;
        let (way, other) = rest.split_once('-')?;
        Some(Open { slot: slot.parse().ok()?, is_import: way == "<", other: other.to_owned() })
    }
}
