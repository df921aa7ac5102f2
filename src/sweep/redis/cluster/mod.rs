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
use tokio::time::{Instant, sleep};

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

/// So often the watermarks are written again at once, where slots have gone.
const WRITES: u32 = 5;

/// A cluster.
pub struct Cluster {
    redis: config::Redis,
    slot: String,
    name: String,
    prefix: Prefix,
    look: Option<Look>,
    shards: RefCell<Rc<Shards>>,
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

    fn shards(&self) -> Rc<Shards> {
        Rc::clone(&self.shards.borrow())
    }

    /// Connects to a primary.
    async fn shard(&self, primary: &Member) -> Result<Rc<Shard>, Error> {
        let told = self.addresses.borrow().get(&primary.id).cloned();
        let address = told.unwrap_or_else(|| primary.address.clone());
        let redis = survey::at(&self.redis, &address);
        let node = Standalone::shard(&redis, &self.slot, self.names(primary));
        let node = match &self.look {
            Some(look) => node.looked_at(Rc::clone(look)),
            None => node,
        };
        node.connect().await?;
        Ok(Rc::new(Shard { address, node, standing: RefCell::new(None) }))
    }

    /// A primary that keys are on their way to, and that has no slot yet.
    async fn guest(&self, primary: &Member) -> Result<Rc<Shard>, Error> {
        if let Some(shard) = self.guests.borrow().get(&primary.id) {
            return Ok(Rc::clone(shard));
        }
        let shard = self.shard(primary).await?;
        self.guests.borrow_mut().insert(primary.id.clone(), Rc::clone(&shard));
        Ok(shard)
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
        let mut by_id = BTreeMap::new();
        for (id, primary) in &map.primaries {
            if primary.slots.is_empty() {
                continue;
            }
            let shard = match before.by_id.get(id) {
                Some(shard) => Rc::clone(shard),
                // It was a primary without slots.
                None => self.adopt(primary).await?,
            };
            by_id.insert(id.clone(), shard);
        }
        let map = Rc::new(map);
        let shards = Shards { map: Rc::clone(&map), by_id };
        if !self.proven.borrow().is_empty() {
            self.proven.replace(shards.proven());
        }
        self.shards.replace(Rc::new(shards));
        Ok(map)
    }

    /// The map in which each slot has a primary. For a moment a slot may be nobody's: the one has
    /// given it away, the other does not know it yet.
    async fn settled_map(&self, shards: &Shards) -> Result<Map, Error> {
        let mut tries = 0;
        loop {
            let asked = shards.by_id.values().map(|shard| survey::ask(shard));
            let map = Map::of(&try_join_all(asked).await?);
            let missing = map.missing();
            if missing.is_empty() {
                return Ok(map);
            }
            tries += 1;
            if tries == SETTLE.0 {
                let message = format!("no primary of the cluster has the slots {missing}");
                return Err(Error::Refused(message, Kind::Slot));
            }
            sleep(SETTLE.1).await;
        }
    }

    /// A primary that has its first slots.
    async fn adopt(&self, primary: &Member) -> Result<Rc<Shard>, Error> {
        let shard = self.guest(primary).await?;
        self.guests.borrow_mut().remove(&primary.id);
        let found = shard.node.rename(self.names(primary)).await?;
        shard.standing.replace(found);
        Ok(shard)
    }
}

impl Removes for Cluster {
    async fn unlink(&self, groups: &[Vec<&[u8]>]) -> Result<Vec<Option<u64>>, Error> {
        if groups.is_empty() {
            let shards = self.shards();
            let each = shards.by_id.values().map(|shard| shard.node.unlink_each(&[], false));
            return try_join_all(each).await.map(|_none| Vec::new());
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

    async fn keep_alive(&self) -> Result<(), Error> {
        let shards = self.shards();
        let alive = join_all(shards.by_id.values().map(|shard| shard.node.keep_alive())).await;
        alive.into_iter().collect::<Result<(), Error>>()?;
        let [at_rest, while_moving] = ASK_INTERVAL;
        let interval = if shards.map.is_moving() { while_moving } else { at_rest };
        if self.asked_at.borrow().elapsed() >= interval {
            self.look_again(&shards.map).await?;
        }
        Ok(())
    }

    async fn watermark(&self) -> Result<Option<Vec<u8>>, Error> {
        let shards = self.shards();
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

    /// The primary that has a slot.
    fn owner(&self, slot: u16) -> Result<&Rc<Shard>, Error> {
        let owner = self.map.primaries.iter().find(|(_, one)| one.slots.has(slot));
        let shard = owner.and_then(|(id, _)| self.by_id.get(id));
        shard.ok_or_else(|| Error::new(Kind::Other, format!("no primary has slot {slot}")))
    }
}

/// That a slot is elsewhere loses no connection: it is tried again.
fn refused(error: Error) -> Error {
    match error {
        Error::Lost(message, Kind::Slot) => Error::Refused(message, Kind::Slot),
        error => error,
    }
}
