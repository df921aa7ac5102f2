//! A Redis Cluster: several primaries, each of which has some of the slots, as one deployment
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).
//!
//! - [`slots`]: which slot a key has. [`map`]: which primary a slot has. [`survey`]: how that is
//!   found out. [`route`]: keys go to their primaries, wherever slots go meanwhile;
//! - [`proof`]: the watermarks. Each primary has one of its own, in a slot of its own, for it goes
//!   back by itself; it says which slots it is about.
//!
//! What a slot takes along when it moves: a primary that gives one away has removed by then what it
//! had acknowledged, and its keys go as they are. So slots that move between primaries whose
//! connections stand put nothing in doubt. Of a primary that is gone, or came back with another
//! history, nothing is known but its watermark; slots that it no longer has are then about nobody's
//! watermark, and all keys are swept.
//!
//! A key that moves while a pass runs may be missed on both sides. So maps from before and after
//! are compared, and where keys have come to, those slots are looked through again.

mod map;
mod part;
mod proof;
mod route;
mod slots;
mod survey;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use self::map::{Address, Map, Member};
use self::part::Part;
pub(super) use self::part::Seen;
use self::proof::Value;
use self::slots::Slots;
pub use self::survey::{each, name_at};
use super::connect::node_name;
use super::node::{Error, Kind, Node, Removes, Replaced, Scanned};
use super::prefix::Prefix;
use super::standalone::{Look, Names, Standalone};
use crate::config;
use crate::sweep::proof::evidence::key_name;

/// How often primaries are asked who has which slot, if nothing else says that one has moved; and
/// while slots are on their way.
const ASK_INTERVAL: [Duration; 2] = [Duration::from_secs(5), Duration::from_millis(500)];

/// So often primaries are asked again for a slot that is nobody's, and the pause between.
const SETTLE: (u32, Duration) = (20, Duration::from_millis(20));

/// How long a primary may take to be connected to. The others wait for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// So often the watermarks are written again at once, where slots have gone.
const WRITES: u32 = 5;

/// Whose slots are nobody's, among those that are away.
const NOBODY: &str = "";

/// A cluster.
pub struct Cluster {
    redis: config::Redis,
    slot: String,
    name: String,
    prefix: Prefix,
    look: Option<Look>,
    shards: RefCell<Rc<Shards>>,
    /// Primaries with slots that are not connected, by id, each with the reason.
    away: RefCell<BTreeMap<String, String>>,
    /// Primaries without a slot that keys are on their way to.
    guests: RefCell<BTreeMap<String, Rc<Shard>>>,
    /// Whether a guest was lost, with removals that no watermark is about.
    lost_guest: Cell<bool>,
    /// Addresses at which primaries of it were found before.
    known: RefCell<BTreeSet<Address>>,
    /// How nodes want to be reached, by id.
    addresses: RefCell<BTreeMap<String, Address>>,
    /// Held while the map is made anew: whoever else wants that waits for the outcome.
    asking: Mutex<()>,
    asked_at: RefCell<Instant>,
    /// The watermark that all primaries have, or the worst of theirs.
    standing: RefCell<Option<Vec<u8>>>,
    /// The slots that were proven of each primary while the connections before stood, and the
    /// history that it had.
    proven: RefCell<BTreeMap<String, (String, Slots)>>,
}

/// The primaries that have slots, connected, by id; and which slots.
#[derive(Default)]
struct Shards {
    map: Rc<Map>,
    by_id: BTreeMap<String, Rc<Shard>>,
}

/// A primary.
struct Shard {
    id: String,
    address: Address,
    node: Standalone,
    /// The value of its watermark, as far as we know.
    standing: RefCell<Option<Vec<u8>>>,
}

impl Cluster {
    /// The cluster of a target, for changes of this slot; connects when [`Node::connect`] is
    /// called.
    #[must_use]
    pub fn new(redis: &config::Redis, slot: &str) -> Cluster {
        Cluster {
            redis: redis.clone(),
            slot: slot.to_owned(),
            name: node_name(redis),
            prefix: Prefix::of(redis),
            look: None,
            shards: RefCell::default(),
            away: RefCell::default(),
            guests: RefCell::default(),
            lost_guest: Cell::new(false),
            known: RefCell::default(),
            addresses: RefCell::default(),
            asking: Mutex::new(()),
            asked_at: RefCell::new(Instant::now()),
            standing: RefCell::new(None),
            proven: RefCell::default(),
        }
    }

    /// Lets it look at each primary before it is used.
    #[must_use]
    pub fn looked_at(self, look: Look) -> Cluster {
        Cluster { look: Some(look), ..self }
    }

    /// The connection to a primary is lost: it is away, and the others go on. Gives the error that
    /// says so.
    fn lose(&self, shard: &Shard, error: Error) -> Error {
        if matches!(error, Error::Refused(..) | Error::Lost(_, Kind::Slot)) {
            return refused(error);
        }
        let told = format!("{}: {error}", shard.address);
        if self.guests.borrow_mut().remove(&shard.id).is_some() {
            self.lost_guest.set(true);
            return Error::Lost(told, error.kind());
        }
        let shards = self.shards();
        // Of connections before, nothing is to be told.
        if shards.by_id.get(&shard.id).is_some_and(|own| std::ptr::eq(&**own, shard)) {
            let mut by_id = shards.by_id.clone();
            by_id.remove(&shard.id);
            self.shards.replace(Rc::new(Shards { map: Rc::clone(&shards.map), by_id }));
            self.away.borrow_mut().insert(shard.id.clone(), told.clone());
        }
        Error::Refused(told, error.kind())
    }

    /// Whether all slots have a primary that is connected.
    ///
    /// # Errors
    ///
    /// Says which have not.
    fn is_whole(&self) -> Result<(), Error> {
        match Node::away(self) {
            Some(away) => Err(Error::Refused(away, Kind::Slot)),
            None => Ok(()),
        }
    }

    /// Whether one that is away can be had again.
    async fn is_back(&self) -> bool {
        let map = Rc::clone(&self.shards().map);
        let away: Vec<String> = self.away.borrow().keys().cloned().collect();
        let named = away.iter().filter_map(|id| map.primaries.get(id));
        let reached = join_all(named.map(|primary| self.shard(primary))).await;
        reached.iter().any(Result::is_ok)
    }

    fn shards(&self) -> Rc<Shards> {
        Rc::clone(&self.shards.borrow())
    }

    /// Connects to a primary.
    async fn shard(&self, primary: &Member) -> Result<Rc<Shard>, Error> {
        let limit = CONNECT_TIMEOUT + self.redis.password.patience();
        let shard = timeout(limit, self.reach(primary)).await;
        shard.unwrap_or_else(|_elapsed| {
            let message = format!("no answer in {} s", limit.as_secs());
            Err(Error::Lost(message, Kind::Timeout))
        })
    }

    async fn reach(&self, primary: &Member) -> Result<Rc<Shard>, Error> {
        let told = self.addresses.borrow().get(&primary.id).cloned();
        let address = told.unwrap_or_else(|| primary.address.clone());
        let redis = survey::at(&self.redis, &address);
        let node = Standalone::shard(&redis, &self.slot, self.names(primary));
        let node = match &self.look {
            Some(look) => node.looked_at(Rc::clone(look)),
            None => node,
        };
        node.connect().await?;
        let (id, standing) = (primary.id.clone(), RefCell::new(None));
        Ok(Rc::new(Shard { id, address, node, standing }))
    }

    /// A primary that keys are on their way to, and that has no slot yet.
    async fn guest(&self, primary: &Member) -> Result<Rc<Shard>, Error> {
        if let Some(shard) = self.guests.borrow().get(&primary.id) {
            return Ok(Rc::clone(shard));
        }
        match self.shard(primary).await {
            Ok(shard) => {
                self.guests.borrow_mut().insert(primary.id.clone(), Rc::clone(&shard));
                Ok(shard)
            }
            Err(error) => {
                self.not_there(primary, &error);
                Err(Error::Refused(error.to_string(), error.kind()))
            }
        }
    }

    /// The names of a primary's own keys.
    fn names(&self, primary: &Member) -> Names {
        let key = key_name(&self.redis.prefix, &self.slot);
        Names::of(survey::tagged(&key, &primary.settled()))
    }

    /// Asks all primaries who has which slot now, unless somebody has since `seen` was. An error
    /// if a slot has gone where no proof has followed it.
    async fn look_again(&self, seen: &Rc<Map>) -> Result<Rc<Map>, Error> {
        let _turn = self.asking.lock().await;
        let before = self.shards();
        if !Rc::ptr_eq(&before.map, seen) {
            return Ok(Rc::clone(&before.map));
        }
        let map = self.settled_map(&before).await?;
        self.asked_at.replace(Instant::now());
        if map == *before.map {
            return Ok(Rc::clone(&before.map));
        }
        proof::follows(&before.map, &map)?;
        self.still_has(&before.map, &map)?;
        let mut by_id = BTreeMap::new();
        for (id, primary) in &map.primaries {
            if primary.slots.is_empty() {
                continue;
            }
            match before.by_id.get(id) {
                Some(shard) => drop(by_id.insert(id.clone(), Rc::clone(shard))),
                None if self.away.borrow().contains_key(id) => {}
                // It was a primary without slots.
                None => {
                    if let Ok(shard) = self.adopt(primary).await {
                        by_id.insert(id.clone(), shard);
                    }
                }
            }
        }
        self.note_missing(&map);
        let map = Rc::new(map);
        let shards = Shards { map: Rc::clone(&map), by_id };
        if !self.proven.borrow().is_empty() {
            self.proven.replace(shards.proven());
        }
        self.shards.replace(Rc::new(shards));
        Ok(map)
    }

    /// The map in which each slot has a primary, if there is to be one. For a moment a slot may be
    /// nobody's: the one has given it away, the other does not know it yet.
    async fn settled_map(&self, shards: &Shards) -> Result<Map, Error> {
        let mut tries = 0;
        loop {
            let asked = shards.by_id.values().map(|shard| async {
                survey::ask(shard).await.map_err(|error| self.lose(shard, error))
            });
            let map = Map::of(&try_join_all(asked).await?);
            let missing = map.missing();
            tries += 1;
            if missing.is_empty() || tries == SETTLE.0 {
                return Ok(map);
            }
            sleep(SETTLE.1).await;
        }
    }

    /// Whether primaries that are away have the slots of before: of one that gave some away it is
    /// not known whether it had lost removals by then.
    fn still_has(&self, before: &Map, now: &Map) -> Result<(), Error> {
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
    fn not_there(&self, primary: &Member, error: &Error) {
        let told = format!("{}: {error}", primary.address);
        self.away.borrow_mut().insert(primary.id.clone(), told);
    }

    /// Slots that are nobody's are away, too.
    fn note_missing(&self, map: &Map) {
        let missing = map.missing();
        let mut away = self.away.borrow_mut();
        match missing.is_empty() {
            true => drop(away.remove(NOBODY)),
            false => {
                let told = format!("no primary of the cluster has the slots {missing}");
                away.insert(NOBODY.to_owned(), told);
            }
        }
    }

    /// A primary that has its first slots.
    async fn adopt(&self, primary: &Member) -> Result<Rc<Shard>, Error> {
        let shard = self.guest(primary).await?;
        self.guests.borrow_mut().remove(&primary.id);
        match shard.node.rename(self.names(primary)).await {
            Ok(found) => {
                shard.standing.replace(found);
                Ok(shard)
            }
            Err(error) => {
                self.lost_guest.set(true);
                self.not_there(primary, &error);
                Err(error)
            }
        }
    }
}

impl Removes for Cluster {
    async fn unlink(&self, groups: &[Vec<&[u8]>]) -> Result<Vec<Option<u64>>, Error> {
        if groups.is_empty() {
            let shards = self.shards();
            let each = shards.by_id.values().map(|shard| async {
                let counted = shard.node.unlink_each(&[], false).await;
                counted.map_err(|error| self.lose(shard, error))
            });
            join_all(each).await;
            return Ok(Vec::new());
        }
        self.route(groups).await
    }
}

impl Node for Cluster {
    type Primary<'a> = Part<'a>;

    fn name(&self) -> &str {
        &self.name
    }

    fn target(&self) -> &str {
        &self.redis.name
    }

    fn prefix(&self) -> &str {
        &self.redis.prefix
    }

    fn title(&self) -> String {
        self.redis.title()
    }

    async fn connect(&self) -> Result<(), Error> {
        self.shards.replace(Rc::default());
        self.away.borrow_mut().clear();
        if !self.guests.replace(BTreeMap::new()).is_empty() {
            self.lost_guest.set(true);
        }
        self.standing.replace(None);
        let shards = self.survey().await?;
        self.asked_at.replace(Instant::now());
        self.shards.replace(Rc::new(shards));
        Ok(())
    }

    async fn primaries(&self, scanned: &mut Scanned) -> Result<Vec<Part<'_>>, Error> {
        self.parts(scanned).await
    }

    fn away(&self) -> Option<String> {
        let away = self.away.borrow();
        let mut told = away.values().cloned();
        let first = told.next()?;
        Some(match told.count() {
            0 => first,
            more => format!("{first}, and {more} more"),
        })
    }

    async fn keep_alive(&self) -> Result<(), Error> {
        let shards = self.shards();
        let alive = shards.by_id.values().map(|shard| async {
            let alive = shard.node.keep_alive().await;
            alive.map_err(|error| self.lose(shard, error))
        });
        join_all(alive).await;
        let is_missed = Node::away(self).is_some();
        let [at_rest, while_moving] = ASK_INTERVAL;
        let interval = if shards.map.is_moving() { while_moving } else { at_rest };
        if is_missed || self.asked_at.borrow().elapsed() >= interval {
            self.look_again(&shards.map).await?;
        }
        if is_missed && (Node::away(self).is_none() || self.is_back().await) {
            let message = "a primary that was away is back".to_owned();
            return Err(Error::Lost(message, Kind::Swapped));
        }
        Ok(())
    }

    async fn watermark(&self) -> Result<Option<Vec<u8>>, Error> {
        let shards = self.shards();
        if shards.by_id.is_empty() {
            return Err(Error::new(Kind::Io, "not connected".to_owned()));
        }
        let found = shards.by_id.values().map(|shard| shard.node.watermark());
        for (shard, found) in shards.by_id.values().zip(try_join_all(found).await?) {
            shard.standing.replace(found);
        }
        let values = shards.values(&self.proven.borrow());
        let worst = if self.lost_guest.take() { None } else { proof::worst(values) };
        self.standing.replace(worst.clone());
        Ok(worst)
    }

    async fn replace_watermark(
        &self,
        expected: Option<&[u8]>,
        value: &[u8],
    ) -> Result<Replaced, Error> {
        if self.standing.borrow().as_deref() != expected {
            return Ok(Replaced::No(self.standing.borrow().clone()));
        }
        self.is_whole()?;
        let mut tries = 0;
        let (shards, is_everywhere) = loop {
            let shards = self.shards();
            match self.write_all(&shards, value).await {
                Ok(is_everywhere) => break (shards, is_everywhere),
                // The slot of one has gone: there is another for it.
                Err(error) if error.kind() == Kind::Slot && tries < WRITES => {
                    self.look_again(&shards.map).await?;
                    tries += 1;
                }
                Err(error) => return Err(refused(error)),
            }
            self.is_whole()?;
        };
        let standing = match is_everywhere {
            true => Some(value.to_vec()),
            false => proof::worst(shards.values(&BTreeMap::new())),
        };
        self.proven.replace(if is_everywhere { shards.proven() } else { BTreeMap::new() });
        self.standing.replace(standing.clone());
        Ok(if is_everywhere { Replaced::Yes } else { Replaced::No(standing) })
    }

    async fn details(&self, digest: &str) -> Result<Option<Vec<u8>>, Error> {
        for shard in self.shards().by_id.values() {
            if let Some(details) = shard.node.details(digest).await.map_err(refused)? {
                return Ok(Some(details));
            }
        }
        Ok(None)
    }

    async fn keep_details(&self, digest: &str, value: &[u8], for_good: bool) -> Result<(), Error> {
        let shards = self.shards();
        let each = shards.by_id.values();
        let each = each.map(|shard| shard.node.keep_details(digest, value, for_good));
        try_join_all(each).await.map(drop).map_err(refused)
    }

    async fn drop_details(&self, digest: &str) -> Result<(), Error> {
        let shards = self.shards();
        let each = shards.by_id.values().map(|shard| shard.node.drop_details(digest));
        try_join_all(each).await.map(drop).map_err(refused)
    }

    async fn shared(&self, _value: &[u8]) -> Result<(), Error> {
        self.is_whole()?;
        let shards = self.shards();
        let each = shards.by_id.values().map(|shard| async {
            let standing = shard.standing.borrow().clone();
            shard.node.shared(&standing.unwrap_or_default()).await
        });
        try_join_all(each).await.map(drop).map_err(refused)
    }
}

impl Shards {
    /// The watermark of each primary, and its slots but for those that are proven of it.
    fn values(&self, proven: &BTreeMap<String, (String, Slots)>) -> Vec<Value> {
        let each = self.by_id.iter();
        each.map(|(id, shard)| {
            let slots = self.map.primaries.get(id).map(|one| one.slots.clone()).unwrap_or_default();
            let history = shard.node.history();
            let proven = proven.get(id).filter(|(of, _)| history.as_ref() == Some(of));
            let slots = match proven {
                Some((_, proven)) => slots.without(proven),
                None => slots,
            };
            Value { found: shard.standing.borrow().clone(), slots }
        })
        .collect()
    }

    /// The slots of each primary whose history is known.
    fn proven(&self) -> BTreeMap<String, (String, Slots)> {
        let each = self.by_id.iter();
        each.filter_map(|(id, shard)| {
            let slots = self.map.primaries.get(id)?.slots.clone();
            Some((id.clone(), (shard.node.history()?, slots)))
        })
        .collect()
    }

    /// The primary that has a slot; `None` if it is away.
    fn owner(&self, slot: u16) -> Option<&Rc<Shard>> {
        let owner = self.map.primaries.iter().find(|(_, one)| one.slots.has(slot));
        owner.and_then(|(id, _)| self.by_id.get(id))
    }
}

/// That a slot is elsewhere loses no connection: it is tried again.
fn refused(error: Error) -> Error {
    match error {
        Error::Lost(message, Kind::Slot) => Error::Refused(message, Kind::Slot),
        error => error,
    }
}
