//! Keys go to the primaries that have their slots, wherever these go meanwhile: see redirection and
//! resharding in the specification
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::{Cluster, Shard, Shards};
use crate::sweep::redis::node::{Error, Kind};
use crate::sweep::redis::slots::slot_of;
use crate::sweep::redis::standalone::Outcome;

/// So often a key is sent on before it is tried again later.
pub(super) const HOPS: u32 = 10;

/// The pause before another try where nobody has a slot yet, longer with each.
pub(super) const PAUSE: Duration = Duration::from_millis(2);

/// Keys that one primary gets in one round trip: their places among all, and whether they may only
/// be on their way to it.
pub(super) struct Parcel {
    pub(super) shard: Rc<Shard>,
    pub(super) keys: Vec<usize>,
    pub(super) asking: bool,
}

impl Cluster {
    /// Removes groups of keys: see [`Removes::unlink`](crate::sweep::Removes).
    pub(super) async fn route(&self, groups: &[Vec<&[u8]>]) -> Result<Vec<Option<u64>>, Error> {
        let names: Vec<Cow<'_, [u8]>> =
            groups.iter().flatten().map(|key| self.prefix.add(key)).collect();
        let names: Vec<&[u8]> = names.iter().map(|name| &**name).collect();
        let mut outcomes = self.unlink_names(&names).await?.into_iter();
        let counts = groups.iter().map(|group| {
            // All of them are taken: the next group begins behind them.
            let counts: Vec<Option<u64>> = outcomes.by_ref().take(group.len()).collect();
            counts.into_iter().sum()
        });
        Ok(counts.collect())
    }

    /// Removes keys by their whole names: how many were there of each, `None` of one that the user
    /// may not remove, or whose primary is away.
    pub(super) async fn unlink_names(&self, names: &[&[u8]]) -> Result<Vec<Option<u64>>, Error> {
        let mut outcomes: Vec<Option<u64>> = vec![None; names.len()];
        let mut shards = self.shards();
        let mut parcels = parcels(&shards, names, 0..names.len());
        for hop in 0..HOPS {
            let sent = parcels.iter().map(|parcel| async {
                let keys: Vec<&[u8]> =
                    parcel.keys.iter().filter_map(|at| names.get(*at).copied()).collect();
                let sent = parcel.shard.node.unlink_each(&keys, parcel.asking).await;
                sent.map_err(|error| match error.kind() {
                    // It finds itself outside of the cluster.
                    Kind::Slot => self.leave(&parcel.shard, &error),
                    _ => self.lose(&parcel.shard, error),
                })
            });
            let (mut moved, mut asks) = (Vec::new(), BTreeMap::<String, Vec<usize>>::new());
            for (parcel, replies) in parcels.iter().zip(join_all(sent).await) {
                let replies = match replies {
                    Ok(replies) => replies,
                    // Its keys wait for it.
                    Err(_) if self.is_away(&parcel.shard) => continue,
                    Err(error) => return Err(error),
                };
                for (at, reply) in parcel.keys.iter().copied().zip(replies) {
                    match reply {
                        Outcome::Removed(count) => outcomes[at] = Some(count),
                        Outcome::Forbidden => {}
                        Outcome::Moved => moved.push(at),
                        Outcome::Ask(to) => asks.entry(to).or_default().push(at),
                    }
                }
            }
            if moved.is_empty() && asks.is_empty() {
                return Ok(outcomes);
            }
            if hop > 0 {
                sleep(PAUSE * hop).await;
            }
            if !moved.is_empty() || asks.keys().any(|to| shards.at(to).is_none()) {
                self.look_again(&shards.map).await?;
                shards = self.shards();
            }
            let mut next = Vec::new();
            for (to, keys) in asks {
                match self.at(&shards, &to).await {
                    Ok(Some(shard)) => next.push(Parcel { shard, keys, asking: true }),
                    Ok(None) => moved.extend(keys),
                    // They wait for it.
                    Err(_away) => {}
                }
            }
            next.extend(self::parcels(&shards, names, moved));
            parcels = next;
        }
        let message = "keys are sent from one primary to another and back".to_owned();
        Err(Error::Refused(message, Kind::Other))
    }

    pub(super) fn is_away(&self, shard: &Shard) -> bool {
        self.away.borrow().contains_key(&shard.id)
    }

    /// A primary by its address; one that has no slot yet may be asked for keys that come to it.
    pub(super) async fn at(&self, shards: &Shards, to: &str) -> Result<Option<Rc<Shard>>, Error> {
        if let Some(shard) = shards.at(to) {
            return Ok(Some(shard));
        }
        let named = shards.map.primaries.values();
        let Some(named) = named.into_iter().find(|one| one.address.is(to)) else { return Ok(None) };
        self.guest(named).await.map(Some)
    }
}

impl Shards {
    /// The primary at this address, as `host:port`.
    pub(super) fn at(&self, to: &str) -> Option<Rc<Shard>> {
        let mut found = self.by_id.iter().filter(|(id, shard)| {
            let told = self.map.primaries.get(*id).map(|one| &one.address);
            shard.address.is(to) || told.is_some_and(|address| address.is(to))
        });
        found.next().map(|(_, shard)| Rc::clone(shard))
    }
}

/// Sorts keys by their primaries, without those whose primary is away.
pub(super) fn parcels(
    shards: &Shards,
    names: &[&[u8]],
    keys: impl IntoIterator<Item = usize>,
) -> Vec<Parcel> {
    let mut parcels: Vec<Parcel> = Vec::new();
    let mut of_shard: BTreeMap<*const Shard, usize> = BTreeMap::new();
    for at in keys {
        let Some(name) = names.get(at) else { continue };
        let Some(shard) = shards.owner(slot_of(name)) else { continue };
        let parcel = *of_shard.entry(Rc::as_ptr(shard)).or_insert_with(|| {
            parcels.push(Parcel { shard: Rc::clone(shard), keys: Vec::new(), asking: false });
            parcels.len() - 1
        });
        if let Some(parcel) = parcels.get_mut(parcel) {
            parcel.keys.push(at);
        }
    }
    parcels
}
