//! How it is found out who has which slot.
//!
//! Any node may be asked first. What it says may be out of date, if it was cut off from the others;
//! so every primary that is named is asked for itself, until nobody is named who was not asked.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value, cmd, from_redis_value};
use tokio::time::timeout;

use super::map::{Address, Map, Member, addresses, members};
use super::{Cluster, Shard, Shards};
use crate::config::{self, Mode};
use crate::sweep::redis::connect::{classify, connect};
use crate::sweep::redis::node::{Error, Kind};
use crate::sweep::redis::slots::{slot_of, tag_of};

/// The words for a server that is no part of a cluster.
pub const NOT_ONE: &str = "`redis.mode` is \"cluster\", and this server is not part of one";

/// How long one node may take to say who the others are.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// After the first of them has, the others have so long to say the same.
const OTHERS_TIMEOUT: Duration = Duration::from_millis(50);

/// The port of a URL that names none.
const PORT: u16 = 6379;

/// So many nodes that are away are named at once.
const TOLD_MAX: usize = 4;

/// So often whoever is newly named is asked as well.
const ROUNDS: usize = 8;

/// The primaries of a cluster: each as if it were by itself, and the name of its watermark, which
/// begins with `key`.
///
/// # Errors
///
/// Not every slot has a primary that can be reached.
pub async fn each(redis: &config::Redis, key: &str) -> Result<Vec<(config::Redis, String)>, Error> {
    let cluster = Cluster::new(redis, "");
    let shards = cluster.survey().await?;
    cluster.is_whole()?;
    let each = shards.by_id.iter().map(|(id, shard)| {
        let slot = shards.map.primaries.get(id).and_then(first_slot);
        (at(redis, &shard.address), tagged(key, slot.unwrap_or_default()))
    });
    Ok(each.collect())
}

/// The primary that has the slot of a key, as if it were by itself. Others may be away.
///
/// # Errors
///
/// That one is not to be found.
pub async fn home(redis: &config::Redis, key: &str) -> Result<config::Redis, Error> {
    let cluster = Cluster::new(redis, "");
    let shards = cluster.survey().await?;
    if let Some(shard) = shards.owner(slot_of(key.as_bytes())) {
        return Ok(at(redis, &shard.address));
    }
    cluster.is_whole()?;
    Err(Error::new(Kind::Slot, format!("no primary has the slot of `{key}`")))
}

/// A name that is in this slot.
pub(super) fn tagged(key: &str, slot: u16) -> String {
    format!("{key}:{{{}}}", tag_of(slot))
}

/// The slot that a primary's own keys are in.
pub(super) fn first_slot(primary: &Member) -> Option<u16> {
    primary.settled().iter().next()
}

/// A name that begins with `key`, in the first slot of the primary behind a connection; `None` if
/// it has no slot.
///
/// # Errors
///
/// It does not answer, or refuses to.
pub async fn name_at(
    connection: &mut MultiplexedConnection,
    key: &str,
) -> Result<Option<String>, RedisError> {
    let told: String = nodes().query_async(connection).await?;
    let own = members(&told, "").into_iter().find(|member| member.is_myself);
    Ok(own.as_ref().and_then(first_slot).map(|slot| tagged(key, slot)))
}

/// The deployment, as if another address were in its URL.
pub(super) fn at(redis: &config::Redis, address: &Address) -> config::Redis {
    let mut at = redis.clone();
    if let Ok(mut url) = url::Url::parse(&redis.url) {
        let host = match address.host.contains(':') {
            true => format!("[{}]", address.host),
            false => address.host.clone(),
        };
        // Both are refused for URLs without a host alone, which no cluster has.
        if url.set_host(Some(&host)).is_ok() && url.set_port(Some(address.port)).is_ok() {
            at.url = url.to_string();
        }
    }
    at
}

/// `CLUSTER NODES`.
fn nodes() -> Cmd {
    let mut nodes = cmd("CLUSTER");
    nodes.arg("NODES");
    nodes
}

/// Asks a primary for itself and for what it knows of the others.
pub(super) async fn ask(shard: &Shard) -> Result<Vec<Member>, Error> {
    let reply: String = match shard.node.ask(&nodes()).await {
        Ok(reply) => from_redis_value(reply).map_err(|_other| strange())?,
        Err(Error::Refused(message, kind)) => {
            return Err(with_right(Error::Refused(format!("{}: {message}", shard.address), kind)));
        }
        Err(error) => return Err(error),
    };
    Ok(members(&reply, &shard.address.host))
}

fn strange() -> Error {
    Error::new(Kind::Other, "CLUSTER NODES gave an unexpected reply".to_owned())
}

/// Names the right that is missing.
fn with_right(error: Error) -> Error {
    match error.kind() {
        Kind::NoPerm => {
            let message = format!(
                "{error}: the user needs CLUSTER NODES and CLUSTER SLOTS, which tell where keys are"
            );
            Error::Lost(message, Kind::NoPerm)
        }
        _ => error,
    }
}

/// The error with the node that it is of.
fn at_node(redis: &config::Redis, error: &Error) -> Error {
    Error::new(error.kind(), format!("`{}`: {error}", redis_address(redis)))
}

fn redis_address(redis: &config::Redis) -> String {
    address_of(&redis.url).map(|address| address.to_string()).unwrap_or_default()
}

/// Views, merged.
type Merged = (Vec<Vec<Member>>, BTreeMap<String, Address>);

/// A first view: who the others are, and how each wants to be reached.
type View = (Vec<Member>, BTreeMap<String, Address>);

impl Cluster {
    /// Finds and connects every primary that has slots.
    pub(super) async fn survey(&self) -> Result<Shards, Error> {
        let (mut said, addresses) = self.first_views().await?;
        self.addresses.replace(addresses);
        let (mut by_id, mut failed) = (BTreeMap::<String, Rc<Shard>>::new(), None);
        for _ in 0..ROUNDS {
            let map = Map::of(&said);
            self.sharers.set(map.with_slots());
            let new = self.unasked(&map, &by_id);
            if new.is_empty() {
                let nothing = || Error::new(Kind::Io, "no primary has a slot".to_owned());
                return self.found(map, by_id).ok_or_else(|| failed.unwrap_or_else(nothing));
            }
            let asked = join_all(new.iter().map(|one| self.reach_and_ask(one))).await;
            for (one, outcome) in new.iter().zip(asked) {
                match outcome {
                    Ok((shard, more)) => {
                        by_id.insert(one.id.clone(), shard);
                        said.push(more);
                    }
                    Err(error) => {
                        self.not_there(one, &error);
                        failed = failed.or(Some(error));
                    }
                }
            }
        }
        let message = "the nodes of the cluster do not agree on who has which slot";
        Err(Error::Lost(message.to_owned(), Kind::Other))
    }

    async fn reach_and_ask(&self, one: &Member) -> Result<(Rc<Shard>, Vec<Member>), Error> {
        let shard = self.shard(one).await?;
        let said = ask(&shard).await?;
        Ok((shard, said))
    }

    /// Primaries with slots that were not asked yet.
    fn unasked(&self, map: &Map, by_id: &BTreeMap<String, Rc<Shard>>) -> Vec<Member> {
        let away = self.away.borrow();
        let named = map.primaries.values().filter(|one| !one.slots.is_empty());
        let new = named.filter(|one| !by_id.contains_key(&one.id) && !away.contains_key(&one.id));
        new.cloned().collect()
    }

    /// The primaries that have slots, of those that are connected; `None` if none has.
    fn found(&self, map: Map, mut by_id: BTreeMap<String, Rc<Shard>>) -> Option<Shards> {
        by_id.retain(|id, _| map.has_slots(id));
        self.note_missing(&map);
        self.known.replace(by_id.values().map(|shard| shard.address.clone()).collect());
        self.members.replace(map.primaries.keys().cloned().collect());
        // What was learnt on the way may have given a primary its own names too early.
        for (id, shard) in &by_id {
            if let Some(one) = map.primaries.get(id) {
                shard.node.named(self.names(one));
            }
        }
        (!by_id.is_empty()).then(|| Shards { map: Rc::new(map), by_id })
    }

    /// Asks all nodes that are known, and takes those that answer first.
    async fn first_views(&self) -> Result<Merged, Error> {
        let seeds = match &self.redis.mode {
            Mode::Cluster { seeds } => seeds.as_slice(),
            _ => &[],
        };
        let seeds = seeds.iter().filter_map(|url| address_of(url));
        let seeds = seeds.map(|address| at(&self.redis, &address));
        let failed = match views(std::iter::once(self.redis.clone()).chain(seeds)).await {
            Ok(views) => return merged(views),
            Err(failed) => failed,
        };
        let known = self.known.borrow().clone();
        let known = views(known.iter().map(|address| at(&self.redis, address))).await;
        let mut known = known.map_err(|more| all_of(&[failed, more].concat()))?;
        // One that has left may be of another cluster by now.
        let members = self.members.borrow();
        known.retain(|(said, _)| {
            said.iter().filter(|one| members.contains(&one.id)).count() >= members.len().min(2)
        });
        let nobody = || Error::new(Kind::Io, "no node of the cluster answers".to_owned());
        if known.is_empty() { Err(nobody()) } else { merged(known) }
    }
}

/// Asks nodes who the others are; those that answer first count.
async fn views(nodes: impl Iterator<Item = config::Redis>) -> Result<Vec<View>, Vec<Error>> {
    let mut asked: FuturesUnordered<_> = nodes.map(first_view).collect();
    let (mut views, mut failed): (Vec<View>, Vec<Error>) = (Vec::new(), Vec::new());
    loop {
        let next = match views.is_empty() {
            true => asked.next().await,
            false => timeout(OTHERS_TIMEOUT, asked.next()).await.ok().flatten(),
        };
        match next {
            Some(Ok(view)) => views.push(view),
            Some(Err(error)) => failed.push(error),
            None => break,
        }
    }
    if views.is_empty() { Err(failed) } else { Ok(views) }
}

/// One view of those that several nodes have. They must know each other: a seed of another cluster
/// would give away keys that are not ours.
fn merged(views: Vec<View>) -> Result<Merged, Error> {
    let own = |view: &View| view.0.iter().find(|one| one.is_myself).cloned();
    let knows = |view: &View, one: &Member| view.0.iter().any(|other| other.id == one.id);
    let owns: Vec<Member> = views.iter().filter_map(own).collect();
    for (one, other) in owns.iter().zip(owns.iter().skip(1)) {
        if !views.iter().all(|view| knows(view, one) && knows(view, other)) {
            let message = format!(
                "`{}` and `{}` do not know each other: they are of two clusters, or one has just \
                 joined",
                one.address, other.address
            );
            return Err(Error::Lost(message, Kind::Other));
        }
    }
    let (said, addresses): (Vec<_>, Vec<_>) = views.into_iter().unzip();
    Ok((said, addresses.into_iter().flatten().collect()))
}

/// The error of several nodes. Of one that lets nobody in more can be done than of one that is
/// away.
fn all_of(failed: &[Error]) -> Error {
    let is_refusal = |error: &&Error| matches!(error.kind(), Kind::Auth | Kind::NoPerm);
    let first = failed.iter().find(is_refusal).or(failed.first());
    let told: BTreeSet<String> = failed.iter().map(ToString::to_string).collect();
    let told: Vec<String> = told.into_iter().take(TOLD_MAX).collect();
    Error::Lost(told.join("; "), first.map_or(Kind::Io, Error::kind))
}

/// The address in the URL of a node.
fn address_of(url: &str) -> Option<Address> {
    let url = url::Url::parse(url).ok()?;
    let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
    Some(Address { host, port: url.port().unwrap_or(PORT) })
}

/// Asks one node who the others are.
async fn first_view(redis: config::Redis) -> Result<View, Error> {
    let limit = ANSWER_TIMEOUT + redis.password.patience();
    let view = timeout(limit, view(&redis)).await;
    view.unwrap_or_else(|_elapsed| {
        let message = format!("no answer in {} s", limit.as_secs());
        Err(Error::Lost(message, Kind::Timeout))
    })
}

async fn view(redis: &config::Redis) -> Result<View, Error> {
    let mut connection = connect(redis).await?;
    let host = address_of(&redis.url).map(|address| address.host).unwrap_or_default();
    let told: Result<String, _> = nodes().query_async(&mut connection).await;
    let told = told.map_err(|error| {
        let is_alone = error.detail().is_some_and(|detail| detail.contains("cluster support"));
        if is_alone {
            return Error::Lost(format!("`{}`: {NOT_ONE}", redis_address(redis)), Kind::Other);
        }
        with_right(at_node(redis, &classify(&error)))
    })?;
    let mut slots = cmd("CLUSTER");
    slots.arg("SLOTS");
    let slots: Value = slots
        .query_async(&mut connection)
        .await
        .map_err(|error| with_right(at_node(redis, &classify(&error))))?;
    Ok((members(&told, &host), addresses(slots, &host)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Address, Error, Kind, View, address_of, all_of, at, members, merged};
    use crate::config::Redis;

    /// A seed has the login, and the TLS, of `redis.url`.
    #[test]
    fn a_node_is_reached_as_the_url_says() {
        let redis = Redis::at("rediss://u@a:1?protocol=resp3");
        for (seed, url) in [
            ("rediss://b:2", "rediss://u@b:2?protocol=resp3"),
            ("rediss://[::1]", "rediss://u@[::1]:6379?protocol=resp3"),
        ] {
            assert_eq!(at(&redis, &address_of(seed).unwrap()).url, url);
        }
        let address = Address { host: "fe80::1".to_owned(), port: 7 };
        assert_eq!(at(&redis, &address).url, "rediss://u@[fe80::1]:7?protocol=resp3");
    }

    /// The view of a node that is one of these, by its id.
    fn view(own: &str, all: &[&str]) -> View {
        let line = |id: &&str| {
            let flags = if *id == own { "myself,master" } else { "master" };
            format!("{id} 10.0.0.1:1@2 {flags} - 0 0 1 connected\n")
        };
        (members(&all.iter().map(line).collect::<String>(), "h"), BTreeMap::new())
    }

    #[test]
    fn nodes_that_do_not_know_each_other_are_not_one_cluster() {
        assert!(merged(vec![view("a", &["a", "b"])]).is_ok());
        assert!(merged(vec![view("a", &["a", "b"]), view("b", &["a", "b"])]).is_ok());
        let stranger = view("c", &["c", "d"]);
        let error = merged(vec![view("a", &["a", "b"]), stranger.clone()]).unwrap_err();
        assert!(error.to_string().contains("do not know each other"), "{error}");
        // One has forgotten the other, who still knows it.
        assert!(merged(vec![view("a", &["a"]), view("c", &["a", "c"])]).is_err());
        assert!(merged(vec![view("a", &["a", "b"]), view("b", &["a", "b"]), stranger]).is_err());
    }

    #[test]
    fn a_refused_login_is_told_before_who_is_away() {
        let error = |kind, text: &str| Error::Lost(text.to_owned(), kind);
        let both = all_of(&[error(Kind::Io, "a is away"), error(Kind::Auth, "b refuses")]);
        assert_eq!((both.kind(), both.to_string().as_str()), (Kind::Auth, "a is away; b refuses"));
    }
}
