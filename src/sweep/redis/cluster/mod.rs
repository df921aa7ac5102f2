//! A Redis Cluster: several primaries, each of which has some of the slots, as one deployment
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).
//!
//! - [`map`]: which primary a [slot](super::slots) has. [`survey`]: how that is found out.
//!   [`route`]: keys go to their primaries, wherever slots go meanwhile;
//! - [`acts`]: commands about one key each, routed alike;
//! - [`away`]: what cannot be used holds up its own keys alone;
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

mod acts;
mod away;
mod map;
mod part;
mod proof;
mod route;
mod survey;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use redis::{cmd, from_redis_value};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use self::map::{Address, Map, Member};
use self::part::Part;
pub(super) use self::part::Seen;
use self::proof::Value;
pub use self::survey::{NOT_ONE, each, home, name_at};
use super::act::{Act, Answer};
use super::connect::node_name;
use super::index::Indexed;
use super::info::history_before;
use super::node::{Error, Kind, Node, Removes, Replaced, Scanned};
use super::prefix::Prefix;
use super::slots::Slots;
use super::standalone::{Look, Names, Standalone};
use crate::config;
use crate::keys::{KeySet, Pattern};
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

/// A cluster.
pub struct Cluster {
    redis: config::Redis,
    slot: String,
    name: String,
    prefix: Prefix,
    look: Option<Look>,
    /// Patterns the names of whose live keys are kept, their memory, and that of written ones.
    index: Option<(KeySet, usize, usize)>,
    shards: RefCell<Rc<Shards>>,
    /// Primaries with slots that are not connected, by id, each with the reason.
    away: RefCell<BTreeMap<String, (Kind, String)>>,
    /// Primaries without a slot that keys are on their way to.
    guests: RefCell<BTreeMap<String, Rc<Shard>>>,
    /// Addresses of its primaries, for when none of the configuration answers.
    known: RefCell<BTreeSet<Address>>,
    /// The ids of its primaries, when they were found last.
    members: RefCell<BTreeSet<String>>,
    /// How many primaries have slots, as far as is known: they share the memory of names.
    sharers: Cell<usize>,
    /// How nodes want to be reached, by id.
    addresses: RefCell<BTreeMap<String, Address>>,
    /// Held while the map is made anew: whoever else wants that waits for the outcome.
    asking: Mutex<()>,
    asked_at: Cell<Instant>,
    /// Names of own keys, by their slots: to find one takes a while.
    names: RefCell<BTreeMap<u16, Names>>,
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
    /// The history that it had before, whose data it has.
    before: Option<String>,
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
            index: None,
            shards: RefCell::default(),
            away: RefCell::default(),
            guests: RefCell::default(),
            known: RefCell::default(),
            members: RefCell::default(),
            sharers: Cell::new(1),
            addresses: RefCell::default(),
            asking: Mutex::new(()),
            asked_at: Cell::new(Instant::now()),
            names: RefCell::default(),
            standing: RefCell::new(None),
            proven: RefCell::default(),
        }
    }

    /// Lets it look at each primary before it is used.
    #[must_use]
    pub fn looked_at(self, look: Look) -> Cluster {
        Cluster { look: Some(look), ..self }
    }

    /// Lets it keep the names of all live keys that the patterns of a set match: see
    /// [`Standalone::indexing`]. The memory is that of all primaries together.
    #[must_use]
    pub fn indexing(self, patterns: KeySet, index_bytes: usize, bytes: usize) -> Cluster {
        if !patterns.has_patterns() {
            return self;
        }
        Cluster { index: Some((patterns.uncounted(), index_bytes, bytes)), ..self }
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
        let node = match &self.index {
            Some((patterns, index_bytes, bytes)) => {
                let primaries = self.sharers.get().max(1);
                node.indexing(patterns.clone(), index_bytes / primaries, bytes / primaries)
            }
            None => node,
        };
        node.connect().await?;
        let mut info = cmd("INFO");
        info.arg("replication");
        // Without the right to ask, nothing is known of any history.
        let info: String = match node.ask(&info).await {
            Ok(info) => from_redis_value(info).unwrap_or_default(),
            Err(Error::Refused(..)) => String::new(),
            Err(error) => return Err(error),
        };
        let before = history_before(&info).map(str::to_owned);
        self.known.borrow_mut().insert(address.clone());
        let (id, standing) = (primary.id.clone(), RefCell::new(None));
        Ok(Rc::new(Shard { id, address, node, before, standing }))
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
                Err(Error::Away(error.to_string(), error.kind()))
            }
        }
    }

    /// The names of a primary's own keys.
    fn names(&self, primary: &Member) -> Names {
        let slot = survey::first_slot(primary).unwrap_or_default();
        let mut known = self.names.borrow_mut();
        let names = known.entry(slot).or_insert_with(|| {
            let key = key_name(&self.redis.prefix, &self.slot);
            Names::of(survey::tagged(&key, slot))
        });
        names.clone()
    }

    /// Asks all primaries who has which slot now, unless somebody has since `seen` was. An error
    /// if a slot has gone where no proof has followed it.
    async fn look_again(&self, seen: &Rc<Map>) -> Result<Rc<Map>, Error> {
        let _turn = self.asking.lock().await;
        let before = self.shards();
        if !Rc::ptr_eq(&before.map, seen) {
            return Ok(Rc::clone(&before.map));
        }
        self.look_now().await
    }

    /// Does so whatever was seen since.
    async fn look_afresh(&self) -> Result<Rc<Map>, Error> {
        let _turn = self.asking.lock().await;
        self.look_now().await
    }

    async fn look_now(&self) -> Result<Rc<Map>, Error> {
        let before = self.shards();
        let map = self.settled_map(&before).await?;
        self.asked_at.set(Instant::now());
        if map == *before.map {
            return Ok(Rc::clone(&before.map));
        }
        proof::follows(&before.map, &map)?;
        self.still_has(&before.map, &map)?;
        // Of whoever gave slots away the history is still that of before.
        let gave = before.by_id.values().filter(|shard| map.lacks(&before.map, &shard.id));
        try_join_all(gave.map(|shard| shard.node.fence())).await?;
        self.sharers.set(map.with_slots());
        let mut first = Vec::new();
        for primary in map.primaries.values().filter(|one| !one.slots.is_empty()) {
            let is_known = before.by_id.contains_key(&primary.id);
            // It was a primary without slots.
            if !is_known && !self.away.borrow().contains_key(&primary.id) {
                first.extend(self.adopt(primary).await);
            }
        }
        // Some may have been lost meanwhile.
        let mut by_id = self.shards().by_id.clone();
        by_id.extend(first.into_iter().map(|shard| (shard.id.clone(), shard)));
        by_id.retain(|id, _| map.has_slots(id));
        self.note_missing(&map);
        self.guests.borrow_mut().retain(|id, _| map.is_guest(id));
        for (id, shard) in &by_id {
            // Keys that come with a slot are not told as those that are written.
            if map.may_have_more(&before.map, id) {
                shard.node.lose_index();
            }
        }
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

    async fn act(&self, acts: &[Act<'_>]) -> Result<Vec<Answer>, Error> {
        self.send_acts(acts).await
    }

    fn is_own(&self, key: &[u8]) -> bool {
        self.has_own(key)
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

    fn is_told(&self) -> bool {
        self.redis.publish.is_some()
    }

    async fn publish(&self, message: &str) -> Result<(), Error> {
        self.tell_any(message).await
    }

    async fn connect(&self) -> Result<(), Error> {
        self.shards.replace(Rc::default());
        self.away.borrow_mut().clear();
        self.guests.borrow_mut().clear();
        self.standing.replace(None);
        let shards = self.survey().await?;
        self.asked_at.set(Instant::now());
        self.shards.replace(Rc::new(shards));
        Ok(())
    }

    async fn primaries(&self, scanned: &mut Scanned) -> Result<Vec<Part<'_>>, Error> {
        self.parts(scanned).await
    }

    fn away(&self) -> Option<String> {
        let away = self.away.borrow();
        // One that is there and finds the cluster down is so for the sake of another.
        let (_, first) = away.values().min_by_key(|(kind, _)| *kind == Kind::Slot)?;
        Some(match away.len() - 1 {
            0 => first.clone(),
            more => format!("{first}, and {more} more"),
        })
    }

    async fn keep_alive(&self) -> Result<(), Error> {
        let shards = self.shards();
        let alive = shards.by_id.values().map(|shard| async {
            let alive = shard.node.keep_alive().await;
            alive.map_err(|error| self.lose(shard, error))
        });
        let guests: Vec<Rc<Shard>> = self.guests.borrow().values().cloned().collect();
        let guests = guests.iter().map(|shard| async {
            let alive = shard.node.keep_alive().await;
            alive.map_err(|error| self.lose(shard, error))
        });
        let (_, guests) = tokio::join!(join_all(alive), join_all(guests));
        guests.into_iter().collect::<Result<(), Error>>()?;
        let is_missed = Node::away(self).is_some();
        let [at_rest, while_moving] = ASK_INTERVAL;
        let interval = if shards.map.is_moving() { while_moving } else { at_rest };
        if is_missed || self.asked_at.get().elapsed() >= interval {
            self.look_again(&shards.map).await?;
        }
        if is_missed && (Node::away(self).is_none() || self.is_back().await) {
            let message = "a primary that was away is back".to_owned();
            return Err(Error::Lost(message, Kind::Swapped));
        }
        Ok(())
    }

    fn index_patterns(&self) -> Vec<Pattern> {
        let patterns = self.index.iter().flat_map(|(patterns, ..)| patterns.patterns());
        patterns.map(|(_, pattern)| pattern.clone()).collect()
    }

    fn indexed(&self) -> Option<Indexed> {
        self.index.as_ref()?;
        let shards = self.shards();
        let none = Indexed { is_whole: Node::away(self).is_none(), ..Indexed::default() };
        let each = shards.by_id.values().map(|shard| shard.node.indexed().unwrap_or_default());
        Some(each.fold(none, Indexed::and))
    }

    fn unobserved(&self) -> Option<String> {
        let shards = self.shards();
        shards.by_id.values().find_map(|shard| {
            let why = shard.node.unobserved()?;
            Some(format!("{}: {why}", shard.address))
        })
    }

    /// While a part is away it would be whole nowhere.
    fn wants_scan(&self) -> bool {
        Node::away(self).is_none()
            && self.shards().by_id.values().any(|shard| shard.node.wants_scan())
    }

    async fn watermark(&self) -> Result<Option<Vec<u8>>, Error> {
        let shards = self.shards();
        if shards.by_id.is_empty() {
            return Err(Error::new(Kind::Io, "not connected".to_owned()));
        }
        let found = join_all(shards.by_id.values().map(|shard| shard.node.watermark())).await;
        let (mut there, mut failed) = (0, None);
        for (shard, found) in shards.by_id.values().zip(found) {
            match found {
                Ok(found) => {
                    shard.standing.replace(found);
                    there += 1;
                }
                // One that is cut off from the others says that the cluster is down.
                Err(error) => {
                    self.leave(shard, &error);
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed.filter(|_| there == 0) {
            let away = Node::away(self).filter(|_| error.kind() == Kind::Slot);
            return Err(away.map_or(error, |away| Error::Lost(away, Kind::Slot)));
        }
        let shards = self.shards();
        let values = shards.values(&self.proven.borrow());
        // What was removed from a primary that has no slot yet, no watermark is about.
        let has_guest = shards.map.primaries.keys().any(|id| shards.map.is_guest(id));
        let worst = if has_guest { None } else { proof::worst(values) };
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
            let histories = match &history {
                Some(history) => shard.before.iter().chain([history]).cloned().collect(),
                None => vec![String::new()],
            };
            let proven = proven.get(id).filter(|(of, _)| history.as_ref() == Some(of));
            let slots = match proven {
                Some((_, proven)) => slots.without(proven),
                None => slots,
            };
            Value { found: shard.standing.borrow().clone(), slots, histories }
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
