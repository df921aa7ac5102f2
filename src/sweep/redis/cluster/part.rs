//! A primary of a cluster in a pass, and which of them come next.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::map::Map;
use super::{Cluster, Shard};
use crate::sweep::redis::act::{Act, Answer};
use crate::sweep::redis::node::{Error, Page, Primary, Removes, ScanCall, Scanned};
use crate::sweep::redis::slots::{Slots, slot_of, slot_of_prefix};

/// A primary, and which of its slots a pass looks for.
pub struct Part<'a> {
    cluster: &'a Cluster,
    shard: Rc<Shard>,
    /// `None`: whatever it has.
    only: Option<Slots>,
}

/// How far a pass over a cluster has come.
#[derive(Debug)]
pub(in crate::sweep::redis) struct Seen {
    map: Rc<Map>,
    /// Slots that were looked through where they go to, after all that was where they come from:
    /// the slot, the id of the primary, and whether it had the slot by then.
    visited: BTreeMap<(u16, String), bool>,
}

impl Cluster {
    /// The primaries that a pass looks through next.
    pub(super) async fn parts(&self, scanned: &mut Scanned) -> Result<Vec<Part<'_>>, Error> {
        scanned.rounds += 1;
        let map = self.look_afresh().await?;
        let Some(mut seen) = scanned.seen.take() else {
            // What is there is looked through; that it was not all is told after.
            let slots = self.slots_of(&scanned.prefixes);
            scanned.seen = Some(Seen { map: Rc::clone(&map), visited: BTreeMap::new() });
            let shards = self.shards();
            let has_some = |id: &String| {
                let of_it = map.primaries.get(id).map(|one| &one.slots);
                let wanted = slots.as_ref();
                wanted.is_none_or(|slots| {
                    slots.iter().any(|slot| of_it.is_some_and(|of| of.has(slot)))
                })
            };
            let wanted = shards.by_id.iter().filter(|(id, _)| has_some(id));
            let part = |shard| Part { cluster: self, shard: Rc::clone(shard), only: None };
            let parts: Vec<Part<'_>> = wanted.map(|(_, shard)| part(shard)).collect();
            if parts.is_empty() {
                self.is_whole()?;
            }
            return Ok(parts);
        };
        self.is_whole()?;
        let mut parts = Vec::new();
        for (id, slots) in seen.arrived(&map) {
            let primary = map.primaries.get(&id);
            let Some(primary) = primary else { continue };
            let shard = match self.shards().by_id.get(&id) {
                Some(shard) => Rc::clone(shard),
                None => self.guest(primary).await?,
            };
            parts.push(Part { cluster: self, shard, only: Some(slots) });
        }
        scanned.seen = Some(Seen { map, ..seen });
        Ok(parts)
    }

    /// The slots of all names that begin so; `None` if they may have any.
    fn slots_of(&self, prefixes: &[Vec<u8>]) -> Option<Slots> {
        let mut slots = Slots::default();
        for prefix in prefixes {
            slots.insert(slot_of_prefix(&self.prefix.add(prefix))?);
        }
        Some(slots)
    }
}

impl Part<'_> {
    /// The outcome on the primary, which may be away by that.
    fn of_shard<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        outcome.map_err(|error| self.cluster.lose(&self.shard, error))
    }
}

impl Seen {
    /// Slots whose keys may have come, since this map, to where they were not looked for; by the
    /// primary that has them now, or gets them.
    ///
    /// Keys go one way: from where a pass has looked, all that it wanted is gone. So where they go
    /// to is looked through once, unless they go on from there. That a move was begun and taken
    /// back in between, with all its keys, shows nowhere.
    fn arrived(&mut self, now: &Map) -> Vec<(String, Slots)> {
        let mut arrived = Vec::new();
        for (id, primary) in &now.primaries {
            let before = self.map.primaries.get(id);
            // Whoever gets slots back has a greater epoch than before.
            let moved = match before {
                Some(before) if before.epoch == primary.epoch => {
                    primary.slots.clone().without(&before.slots)
                }
                _ => primary.slots.clone(),
            };
            let mut coming = now.coming(id);
            coming.add(&self.map.coming(id));
            let mut slots = Slots::default();
            let coming = coming.iter().map(|slot| (slot, false));
            for (slot, is_here) in coming.chain(moved.iter().map(|slot| (slot, true))) {
                // Looked through on its way, it is so on arrival. Whatever comes again after it had
                // arrived, went away between.
                if self.visited.insert((slot, id.clone()), is_here) != Some(false) {
                    slots.insert(slot);
                }
            }
            if !slots.is_empty() {
                arrived.push((id.clone(), slots));
            }
        }
        arrived
    }
}

impl Removes for Part<'_> {
    async fn unlink(&self, groups: &[Vec<&[u8]>]) -> Result<Vec<Option<u64>>, Error> {
        if groups.is_empty() {
            let counted = self.shard.node.unlink_each(&[], false).await;
            return self.of_shard(counted).map(|_none| Vec::new());
        }
        self.cluster.route(groups).await
    }

    async fn act(&self, acts: &[Act<'_>]) -> Result<Vec<Answer>, Error> {
        self.cluster.send_acts(acts).await
    }

    fn is_own(&self, key: &[u8]) -> bool {
        self.cluster.has_own(key)
    }

    async fn fence(&self) -> Result<(), Error> {
        self.of_shard(self.shard.node.fence().await)
    }
}

impl Primary for Part<'_> {
    fn name(&self) -> &str {
        Primary::name(&self.shard.node)
    }

    async fn scan(&self, call: &ScanCall<'_>) -> Result<Page, Error> {
        let mut page = self.of_shard(self.shard.node.scan(call).await)?;
        if let Some(only) = &self.only {
            let prefix = &self.cluster.prefix;
            page.keys.retain(|key| only.has(slot_of(&prefix.add(key))));
        }
        Ok(page)
    }

    fn wanted_prefixes(&self) -> Vec<Vec<u8>> {
        if self.only.is_some() { Vec::new() } else { self.shard.node.wanted_prefixes() }
    }

    /// Keys that came with a slot are to be scanned for.
    fn list(&self, prefix: &[u8], after: Option<&[u8]>, most: usize) -> Option<Vec<Vec<u8>>> {
        if self.only.is_some() { None } else { self.shard.node.list(prefix, after, most) }
    }

    async fn ping(&self) -> Result<(), Error> {
        self.of_shard(self.shard.node.ping().await)
    }

    async fn scan_time(&self) -> Result<Option<Duration>, Error> {
        self.of_shard(self.shard.node.scan_time().await)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use super::super::map::{Map, members};
    use super::Seen;

    /// Two primaries, with the epochs and slots given.
    fn map(a: (u64, &str), b: (u64, &str)) -> Map {
        let line = |id: &str, (epoch, slots): (u64, &str)| {
            format!("{id} 1.1.1.1:1@2 myself,master - 0 0 {epoch} connected {slots}\n")
        };
        Map::of(&[members(&line("a", a), "h"), members(&line("b", b), "h")])
    }

    fn arrived(seen: &mut Seen, now: Map) -> Vec<String> {
        let found = seen.arrived(&now);
        seen.map = Rc::new(now);
        found.into_iter().map(|(id, slots)| format!("{id} {slots}")).collect()
    }

    fn seen(map: Map) -> Seen {
        Seen { map: Rc::new(map), visited: BTreeMap::new() }
    }

    #[test]
    fn slots_that_came_are_looked_through_again_and_only_they() {
        let mut seen = seen(map((1, "0-9999"), (2, "10000-16383")));
        let none: [&str; 0] = [];
        assert_eq!(arrived(&mut seen, map((1, "0-9999"), (2, "10000-16383"))), none);
        assert_eq!(arrived(&mut seen, map((1, "5-9999"), (2, "0-4 10000-16383"))), ["b 0-4"]);
        assert_eq!(arrived(&mut seen, map((1, "5-9999"), (2, "0-4 10000-16383"))), none);
    }

    #[test]
    fn what_is_on_its_way_is_looked_through_where_it_goes_once() {
        let on_its_way = || map((1, "0-9999 [7->-b]"), (2, "10000-16383 [7-<-a]"));
        let mut seen = seen(on_its_way());
        assert_eq!(arrived(&mut seen, on_its_way()), ["b 7"]);
        let none: [&str; 0] = [];
        assert_eq!(arrived(&mut seen, on_its_way()), none, "however long it takes");
        assert_eq!(arrived(&mut seen, map((1, "0-6 8-9999"), (2, "7 10000-16383"))), none);
    }

    #[test]
    fn slots_that_go_to_and_fro_are_looked_through_each_time() {
        let (at_a, at_b) =
            (|| map((1, "0-9"), (2, "10-16383")), || map((1, "1-9"), (2, "0 10-16383")));
        let mut seen = seen(at_a());
        for (now, place) in [(at_b(), "b 0"), (at_a(), "a 0"), (at_b(), "b 0"), (at_a(), "a 0")] {
            assert_eq!(arrived(&mut seen, now), [place]);
        }
    }

    #[test]
    fn a_move_that_began_and_ended_in_between_is_noticed() {
        let mut seen = seen(map((1, "0-9999"), (2, "10000-16383 [7-<-a]")));
        // It was taken back, but keys may have gone over.
        assert_eq!(arrived(&mut seen, map((1, "0-9999"), (2, "10000-16383"))), ["b 7"]);
    }

    #[test]
    fn slots_that_went_and_came_back_are_looked_through_again() {
        let mut seen = seen(map((1, "0-9"), (2, "10-16383")));
        assert_eq!(arrived(&mut seen, map((3, "0-9"), (2, "10-16383"))), ["a 0-9"]);
    }
}
