//! How it is found out who has which slot.
//!
//! Any node may be asked first. What it says may be out of date, if it was cut off from the others;
//! so every primary that is named is asked for itself, until nobody is named who was not asked.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value, cmd, from_redis_value};
use tokio::time::timeout;

use super::map::{Address, Map, Member, addresses, members};
use super::slots::{Slots, tag_of};
use super::{Cluster, Shard, Shards};
use crate::config::{self, Mode};
use crate::sweep::redis::connect::{classify, connect};
use crate::sweep::redis::node::{Error, Kind};

/// How long one node may take to say who the others are.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// After the first of them has, the others have so long to say the same.
const OTHERS_TIMEOUT: Duration = Duration::from_millis(50);

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
        let slots = shards.map.primaries.get(id).map(Member::settled);
        (at(redis, &shard.address), tagged(key, &slots.unwrap_or_default()))
    });
    Ok(each.collect())
}

/// A name that is in the first of these slots.
pub(super) fn tagged(key: &str, slots: &Slots) -> String {
    format!("{key}:{{{}}}", tag_of(slots.iter().next().unwrap_or_default()))
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
    Ok(own.filter(|own| !own.slots.is_empty()).map(|own| tagged(key, &own.settled())))
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
        Err(error) => return Err(with_right(error)),
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
            let message = "the user may not run CLUSTER NODES and CLUSTER SLOTS, which tell where \
                           keys are";
            Error::Lost(message.to_owned(), Kind::NoPerm)
        }
        _ => error,
    }
}

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
            let new = self.unasked(&map, &by_id);
            if new.is_empty() {
                let nothing = || Error::new(Kind::Io, "no primary has a slot".to_owned());
                return self.found(map, by_id).ok_or_else(|| failed.unwrap_or_else(nothing));
            }
            let asked = join_all(new.iter().map(|one| self.reach_and_ask(one))).await;
            for (one, outcome) in new.iter().zip(asked) {
                match outcome {
                    Ok((shard, more)) => {
                        self.known.borrow_mut().insert(shard.address.clone());
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
        let has_slots =
            |id: &String| map.primaries.get(id).is_some_and(|one| !one.slots.is_empty());
        by_id.retain(|id, _| has_slots(id));
        self.away.borrow_mut().retain(|id, _| has_slots(id));
        self.note_missing(&map);
        // What was learnt on the way may have given a primary its own names too early.
        for (id, shard) in &by_id {
            if let Some(one) = map.primaries.get(id) {
                shard.node.named(self.names(one));
            }
        }
        (!by_id.is_empty()).then(|| Shards { map: Rc::new(map), by_id })
    }

    /// Asks all nodes that are known, and takes those that answer first.
    async fn first_views(&self) -> Result<(Vec<Vec<Member>>, BTreeMap<String, Address>), Error> {
        let seeds = match &self.redis.mode {
            Mode::Cluster { seeds } => seeds.as_slice(),
            _ => &[],
        };
        let seeds =
            seeds.iter().map(|url| config::Redis { url: url.clone(), ..self.redis.clone() });
        let known = self.known.borrow().clone();
        let known = known.iter().map(|address| at(&self.redis, address));
        let all = std::iter::once(self.redis.clone()).chain(seeds).chain(known);
        let mut asked: FuturesUnordered<_> = all.map(first_view).collect();
        let (mut views, mut failed): (Vec<View>, Option<Error>) = (Vec::new(), None);
        loop {
            let next = match views.is_empty() {
                true => asked.next().await,
                false => timeout(OTHERS_TIMEOUT, asked.next()).await.ok().flatten(),
            };
            match next {
                Some(Ok(view)) => views.push(view),
                Some(Err(error)) => failed = failed.or(Some(error)),
                None => break,
            }
        }
        match failed {
            Some(error) if views.is_empty() => Err(error),
            _ => {
                let (said, addresses): (Vec<_>, Vec<_>) = views.into_iter().unzip();
                Ok((said, addresses.into_iter().flatten().collect()))
            }
        }
    }
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
    let host = match url::Url::parse(&redis.url) {
        Ok(url) => url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
        Err(_) => String::new(),
    };
    let told: Result<String, _> = nodes().query_async(&mut connection).await;
    let told = told.map_err(|error| {
        let is_alone = error.detail().is_some_and(|detail| detail.contains("cluster support"));
        if is_alone {
            let message = "`redis.mode` is \"cluster\", and this server is not part of one";
            return Error::Lost(message.to_owned(), Kind::Other);
        }
        with_right(classify(&error))
    })?;
    let mut slots = cmd("CLUSTER");
    slots.arg("SLOTS");
    let slots: Value =
        slots.query_async(&mut connection).await.map_err(|error| with_right(classify(&error)))?;
    Ok((members(&told, &host), addresses(slots, &host)))
}
