//! Commands about one key each, to the primary that has the key, wherever slots go meanwhile.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use futures_util::future::join_all;
use redis::Cmd;
use tokio::time::sleep;

use super::route::{HOPS, PAUSE, Parcel, parcels};
use super::{Cluster, Shard};
use crate::sweep::redis::act::{Act, Answer, Verb};
use crate::sweep::redis::node::{Error, Kind};
use crate::sweep::redis::slots::slot_of;
use crate::sweep::redis::standalone::{Routed, Standalone};

impl Cluster {
    /// Runs commands. Of a key whose primary is away the answer is that it is forbidden: it waits.
    pub(super) async fn send_acts(&self, acts: &[Act<'_>]) -> Result<Vec<Answer>, Error> {
        let names: Vec<_> = acts.iter().map(|act| self.prefix.add(act.key)).collect();
        let names: Vec<&[u8]> = names.iter().map(|name| &**name).collect();
        let mut answers: Vec<Answer> = acts.iter().map(|_| Answer::Forbidden).collect();
        let mut shards = self.shards();
        let mut parcels = parcels(&shards, &names, 0..acts.len());
        for hop in 0..HOPS {
            let sent = parcels.iter().map(|parcel| self.send_parcel(parcel, acts));
            let (mut moved, mut asks) = (Vec::new(), BTreeMap::<String, Vec<usize>>::new());
            for (parcel, replies) in parcels.iter().zip(join_all(sent).await) {
                let replies = match replies {
                    Ok(replies) => replies,
                    Err(_) if self.is_away(&parcel.shard) => continue,
                    Err(error) => return Err(error),
                };
                for (at, reply) in parcel.keys.iter().copied().zip(replies) {
                    match reply {
                        Routed::Here(reply) => {
                            answers[at] = acts[at].answer(reply, number(&parcel.shard))?;
                        }
                        // They are tried again when the tag is removed again.
                        Routed::Moved | Routed::Ask(_)
                            if matches!(acts[at].verb, Verb::Trim(..)) => {}
                        Routed::Moved => moved.push(at),
                        Routed::Ask(to) => asks.entry(to).or_default().push(at),
                    }
                }
            }
            if moved.is_empty() && asks.is_empty() {
                return Ok(answers);
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
                    Err(_away) => {}
                }
            }
            next.extend(self::parcels(&shards, &names, moved));
            parcels = next;
        }
        let message = "keys are sent from one primary to another and back".to_owned();
        Err(Error::Refused(message, Kind::Other))
    }

    async fn send_parcel(&self, parcel: &Parcel, acts: &[Act<'_>]) -> Result<Vec<Routed>, Error> {
        let acts = parcel.keys.iter().filter_map(|at| acts.get(*at));
        let commands: Vec<Cmd> = acts.map(|act| self.command(act)).collect();
        let sent = parcel.shard.node.send_each(commands, parcel.asking).await;
        sent.map_err(|error| match error.kind() {
            Kind::Slot => self.leave(&parcel.shard, &error),
            _ => self.lose(&parcel.shard, error),
        })
    }

    /// One script is about one slot: the members whose keys are elsewhere stay.
    fn command(&self, act: &Act<'_>) -> Cmd {
        let slot = slot_of(&self.prefix.add(act.key));
        act.command(&self.prefix, |member| slot_of(&self.prefix.add(member)) == slot)
    }

    /// Tells whoever listens: what one primary is told, all nodes pass on.
    pub(super) async fn tell_any(&self, message: &str) -> Result<(), Error> {
        let shards = self.shards();
        let mut failed = Standalone::not_connected();
        for shard in shards.by_id.values() {
            match shard.node.tell(message).await {
                Ok(()) => return Ok(()),
                Err(error) => failed = error,
            }
        }
        // Whoever is lost is noticed by those who need it.
        Err(Error::Refused(failed.to_string(), failed.kind()))
    }

    /// Whether a key is one of walsweep's own.
    pub(super) fn has_own(&self, key: &[u8]) -> bool {
        let shards = self.shards();
        shards.by_id.values().next().is_some_and(|shard| shard.node.has_own(key))
    }
}

/// A number for a primary, for as long as it is connected.
fn number(shard: &Rc<Shard>) -> u64 {
    let mut hasher = DefaultHasher::new();
    shard.id.hash(&mut hasher);
    hasher.finish()
}
