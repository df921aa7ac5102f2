//! The Redis under test, one or many: its nodes, who is a primary, and when it is well.
//!
//! A node keeps its number for as long as it lives.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use redis::{Value, cmd};
use tokio::time::{Instant, sleep};
use walsweep_stage::throwaway::{
    Cluster, ClusterOptions, Error, Redis, RedisOptions, Sentinels, SentinelsOptions,
};

use crate::cache::{Directory, Mode, SERVICE, slot_of};
use crate::shared::{PATIENCE, RETRY};

/// How many things happened to it that a report has to show.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Slots that went to another primary while the load ran.
    pub(crate) moved_slots: AtomicU64,
    /// Replicas that became primaries.
    pub(crate) failovers: AtomicU64,
    /// Nodes that joined with slots, and left.
    pub(crate) joins: AtomicU64,
}

/// Numbers are given once and nodes may leave; no run adds as many as this.
const MOST: usize = 1000;

/// Running servers.
pub(crate) enum Store {
    /// One server.
    One(Box<Redis>),
    /// A cluster.
    Cluster(Cluster),
    /// A service, with its servers.
    Service(Sentinels, Vec<Redis>),
}

impl Store {
    /// Starts it; each server has these arguments. Of a cluster three primaries, of a service one,
    /// each with a replica.
    pub(crate) async fn start(mode: Mode, args: Vec<String>) -> Result<Store, Error> {
        let server = RedisOptions { args, ..RedisOptions::default() };
        match mode {
            Mode::Standalone => Ok(Store::One(Box::new(Redis::start(server).await?))),
            Mode::Cluster => {
                let options = ClusterOptions { node: server, ..ClusterOptions::default() };
                Ok(Store::Cluster(Cluster::start(options).await?))
            }
            Mode::Sentinel => {
                // None has its role in its arguments: one that starts again takes the one it is
                // given then.
                let servers =
                    vec![Redis::start(server.clone()).await?, Redis::start(server).await?];
                follow(&servers[1], servers[0].port()).await?;
                let options =
                    SentinelsOptions { service: SERVICE.to_owned(), ..SentinelsOptions::default() };
                let sentinels = Sentinels::watch(options, servers[0].port()).await?;
                Ok(Store::Service(sentinels, servers))
            }
        }
    }

    /// Where clients find it.
    pub(crate) fn directory(&mut self) -> Arc<Directory> {
        let of = |servers: &[Redis]| servers.iter().map(address).collect::<Vec<String>>();
        match self {
            Store::One(redis) => Directory::new(Mode::Standalone, vec![address(redis)]),
            Store::Cluster(cluster) => {
                let nodes = (0..).map_while(|at| cluster.node(at).ok()).map(address);
                Directory::new(Mode::Cluster, nodes.collect())
            }
            Store::Service(sentinels, _) => {
                Directory::new(Mode::Sentinel, of(sentinels.sentinels()))
            }
        }
    }

    /// A node's server.
    pub(crate) fn server(&self, at: usize) -> Result<&Redis, Error> {
        match self {
            Store::One(redis) if at == 0 => Ok(redis),
            Store::One(_) => Err(Error::Stopped { name: "redis" }),
            Store::Cluster(cluster) => cluster.node(at),
            Store::Service(_, servers) => servers.get(at).ok_or(Error::Stopped { name: "redis" }),
        }
    }

    /// A node's server, to be stopped and started.
    pub(crate) fn server_mut(&mut self, at: usize) -> Result<&mut Redis, Error> {
        match self {
            Store::One(redis) => Ok(redis),
            Store::Cluster(cluster) => cluster.node_mut(at),
            Store::Service(_, servers) => {
                servers.get_mut(at).ok_or(Error::Stopped { name: "redis" })
            }
        }
    }

    /// The numbers of all nodes that run.
    pub(crate) fn running(&self) -> Vec<usize> {
        let is_running = |at: &usize| self.server(*at).is_ok_and(Redis::is_running);
        match self {
            Store::One(_) => vec![0],
            Store::Cluster(_) | Store::Service(..) => (0..MOST).filter(is_running).collect(),
        }
    }

    /// Lets all nodes run that do not, and closes slots that are half moved.
    pub(crate) async fn mend(&mut self) -> Result<(), Error> {
        for at in self.running() {
            self.server(at)?.resume()?;
        }
        for at in 0..MOST {
            if self.server(at).is_ok_and(|server| !server.is_running()) {
                self.server_mut(at)?.start_again().await?;
            }
        }
        if let Store::Cluster(cluster) = self {
            cluster.fix().await?;
        }
        self.settled().await
    }

    /// The numbers of all primaries that clients are sent to.
    pub(crate) async fn primaries(&self) -> Result<Vec<usize>, Error> {
        match self {
            Store::One(_) => Ok(vec![0]),
            Store::Cluster(cluster) => cluster.primaries().await,
            Store::Service(sentinels, servers) => {
                let port = sentinels.primary().await?;
                let is_it = |server: &Redis| Some(server.port()) == port;
                Ok(servers.iter().position(is_it).into_iter().collect())
            }
        }
    }

    /// One of the primaries, and its replica.
    pub(crate) async fn pair(&self, choice: u32) -> Result<(usize, usize), Error> {
        let mut pairs = Vec::new();
        for primary in self.primaries().await? {
            let replica = match self {
                Store::One(_) => None,
                Store::Cluster(cluster) => cluster.replica_of(primary).await?,
                Store::Service(..) => self.running().into_iter().find(|at| *at != primary),
            };
            pairs.extend(replica.map(|replica| (primary, replica)));
        }
        let count = u32::try_from(pairs.len()).unwrap_or_default();
        let at = choice.checked_rem(count).and_then(|at| pairs.get(usize::try_from(at).ok()?));
        at.copied().ok_or(Error::Stopped { name: "a primary's replica" })
    }

    /// Waits until the replica has taken over from its primary, which may not answer.
    pub(crate) async fn took_over(&self, (old, new): (usize, usize)) -> Result<(), Error> {
        match self {
            Store::One(_) => Ok(()),
            Store::Cluster(cluster) => cluster.took_over(new).await,
            Store::Service(sentinels, _) => {
                sentinels.primary_other_than(self.server(old)?.port()).await.map(drop)
            }
        }
    }

    /// Lets the replica take over by hand. A cluster's does not ask its primary with `force`.
    pub(crate) async fn fail_over(
        &self,
        (old, new): (usize, usize),
        force: bool,
    ) -> Result<(), Error> {
        match self {
            Store::One(_) => Ok(()),
            Store::Cluster(cluster) => cluster.fail_over(new, force).await,
            Store::Service(sentinels, _) => {
                sentinels.fail_over().await?;
                self.took_over((old, new)).await
            }
        }
    }

    /// Waits until there is one primary wherever there should be, and its replica follows it.
    pub(crate) async fn settled(&self) -> Result<(), Error> {
        match self {
            Store::One(_) => Ok(()),
            Store::Cluster(cluster) => cluster.settled().await,
            Store::Service(..) => {
                let deadline = Instant::now() + PATIENCE;
                while !self.is_one_followed().await.unwrap_or(false) {
                    if Instant::now() > deadline {
                        return Err(Error::Stopped { name: "a service with a replica" });
                    }
                    sleep(RETRY * 5).await;
                }
                Ok(())
            }
        }
    }

    async fn is_one_followed(&self) -> Result<bool, Error> {
        let primaries = self.primaries().await?;
        let [primary] = primaries.as_slice() else { return Ok(false) };
        let follows = format!("master_port:{}\r\n", self.server(*primary)?.port());
        for at in self.running() {
            let mut connection = self.server(at)?.connect().await?;
            let role: String = cmd("INFO").arg("replication").query_async(&mut connection).await?;
            let is_well = if at == *primary {
                role.contains("role:master")
            } else {
                role.contains(&follows) && role.contains("master_link_status:up")
            };
            if !is_well {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Tells a service's old primary, which is back, to follow the new one. Otherwise it would be
    /// a primary, too, until the Sentinels tell it: some fifteen seconds.
    pub(crate) async fn rejoin(&self, (old, new): (usize, usize)) -> Result<(), Error> {
        match self {
            Store::One(_) | Store::Cluster(_) => Ok(()),
            Store::Service(_, servers) => follow(&servers[old], servers[new].port()).await,
        }
    }

    /// The values that can be read in a cluster, by the names of their keys, and how many keys lie
    /// where nobody finds them; `None` of any other.
    pub(crate) async fn readable(
        &self,
        names: &HashSet<String>,
    ) -> Result<Option<(HashMap<String, String>, usize)>, Error> {
        let Store::Cluster(cluster) = self else { return Ok(None) };
        let (mut values, mut lost) = (HashMap::new(), 0);
        for at in cluster.primaries().await? {
            let slots: HashSet<u16> = cluster.slots_of(at).await?.into_iter().collect();
            let mut connection = cluster.node(at)?.connect().await?;
            let mut cursor = 0_u64;
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(cursor).arg("COUNT").arg(1000);
                let (next, page): (u64, Vec<Vec<u8>>) = scan.query_async(&mut connection).await?;
                for key in page {
                    let Ok(name) = String::from_utf8(key) else { continue };
                    if !slots.contains(&slot_of(name.as_bytes())) {
                        lost += 1;
                    } else if names.contains(&name) {
                        let value: Value =
                            cmd("GET").arg(&name).query_async(&mut connection).await?;
                        if let Value::BulkString(value) = value
                            && let Ok(value) = String::from_utf8(value)
                        {
                            values.insert(name, value);
                        }
                    }
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(Some((values, lost)))
    }
}

/// How long a replica may take to lose its primary.
const CUT: Duration = Duration::from_secs(10);

/// Cuts a replica off from its primary, by credentials that the primary refuses. Commands that the
/// primary takes from now on do not get there.
pub(crate) async fn cut_off(primary: &Redis, replica: &Redis) -> Result<(), Error> {
    log_in_as(replica, ["nobody", "nothing"]).await?;
    let mut kill = cmd("CLIENT");
    kill.arg("KILL").arg("TYPE").arg("replica").exec_async(&mut primary.connect().await?).await?;
    let deadline = Instant::now() + CUT;
    let mut connection = replica.connect().await?;
    while Instant::now() < deadline {
        let role: String = cmd("INFO").arg("replication").query_async(&mut connection).await?;
        if role.contains("master_link_status:down") {
            return Ok(());
        }
        sleep(RETRY).await;
    }
    Err(Error::Stopped { name: "a way to cut a replica off" })
}

/// Lets a replica that was cut off follow again.
pub(crate) async fn reconnect(replica: &Redis) -> Result<(), Error> {
    log_in_as(replica, ["", ""]).await
}

/// Sets the user and the password that a replica gives to its primary.
async fn log_in_as(replica: &Redis, login: [&str; 2]) -> Result<(), Error> {
    let mut connection = replica.connect().await?;
    for (name, value) in ["masteruser", "masterauth"].into_iter().zip(login) {
        let mut set = cmd("CONFIG");
        set.arg("SET").arg(name).arg(value).exec_async(&mut connection).await?;
    }
    Ok(())
}

/// Makes a server a replica, by hand.
async fn follow(replica: &Redis, primary: u16) -> Result<(), Error> {
    let mut order = cmd("REPLICAOF");
    order.arg("127.0.0.1").arg(primary);
    Ok(order.exec_async(&mut replica.connect().await?).await?)
}

fn address(server: &Redis) -> String {
    format!("127.0.0.1:{}", server.port())
}
