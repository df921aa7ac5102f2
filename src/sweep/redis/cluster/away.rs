//! Primaries that are away, and slots that are nobody's: their keys wait, and nothing is confirmed
//! until all show their watermarks again.

use std::rc::Rc;

use futures_util::future::join_all;

use super::map::{Map, Member};
use super::{Cluster, Shard, Shards, refused};
use crate::sweep::redis::node::{Error, Kind, Node};

/// Whose slots are nobody's, among those that are away.
const NOBODY: &str = "";

impl Cluster {
    /// The connection to a primary is lost: it is away, and the others go on. Gives the error that
    /// says so.
    pub(super) fn lose(&self, shard: &Shard, error: Error) -> Error {
        match refused(error) {
            error @ (Error::Refused(..) | Error::Away(..)) => error,
            lost @ Error::Lost(..) => self.leave(shard, &lost),
        }
    }

    /// A primary is not used any more until the next connection. Gives the error that says so.
    pub(super) fn leave(&self, shard: &Shard, error: &Error) -> Error {
        let told = format!("{}: {error}", shard.address);
        if self.guests.borrow_mut().remove(&shard.id).is_some() {
            return Error::Lost(told, error.kind());
        }
        let shards = self.shards();
        // Of connections before, nothing is to be told.
        if shards.by_id.get(&shard.id).is_some_and(|own| std::ptr::eq(&**own, shard)) {
            let mut by_id = shards.by_id.clone();
            by_id.remove(&shard.id);
            self.shards.replace(Rc::new(Shards { map: Rc::clone(&shards.map), by_id }));
            self.away.borrow_mut().insert(shard.id.clone(), (error.kind(), told.clone()));
        }
        Error::Away(told, error.kind())
    }

    /// Whether all slots have a primary that is connected.
    ///
    /// # Errors
    ///
    /// Says which have not.
    pub(super) fn is_whole(&self) -> Result<(), Error> {
        match Node::away(self) {
            Some(away) => Err(Error::Away(away, Kind::Slot)),
            None => Ok(()),
        }
    }

    /// Whether one that is away can be had again.
    pub(super) async fn is_back(&self) -> bool {
        let map = Rc::clone(&self.shards().map);
        let away: Vec<String> = self.away.borrow().keys().cloned().collect();
        let named = away.iter().filter_map(|id| map.primaries.get(id));
        let answers = async |primary| match self.shard(primary).await {
            // Of a slot it answers only if it finds itself in the cluster.
            Ok(shard) => primary.slots.is_empty() || shard.node.watermark().await.is_ok(),
            Err(_still_away) => false,
        };
        join_all(named.map(answers)).await.contains(&true)
    }

    /// Whether primaries that are away have the slots of before: of one that gave some away it is
    /// not known whether it had lost removals by then.
    pub(super) fn still_has(&self, before: &Map, now: &Map) -> Result<(), Error> {
        let slots = |map: &Map, id: &String| map.primaries.get(id).map(|one| one.slots.clone());
        match self.away.borrow().keys().any(|id| slots(before, id) != slots(now, id)) {
            true => {
                let message = "a primary that is away has other slots than before".to_owned();
                Err(Error::Lost(message, Kind::Swapped))
            }
            false => Ok(()),
        }
    }

    /// A primary cannot be connected to.
    pub(super) fn not_there(&self, primary: &Member, error: &Error) {
        let told = format!("{}: {error}", primary.address);
        self.away.borrow_mut().insert(primary.id.clone(), (error.kind(), told));
    }

    /// Slots that are nobody's are away, too; a primary that no key is with, or comes to, is not.
    pub(super) fn note_missing(&self, map: &Map) {
        let missing = map.missing();
        let mut away = self.away.borrow_mut();
        away.retain(|id, _| map.has_slots(id) || map.is_guest(id));
        match missing.is_empty() {
            true => {}
            false => {
                let told = format!("no primary of the cluster has the slots {missing}");
                away.insert(NOBODY.to_owned(), (Kind::Slot, told));
            }
        }
    }
}
