//! Who has which slot: what the nodes of a cluster say of each other.
//!
//! Each primary is asked for itself: of its own slots nobody knows more. `CLUSTER NODES` also says
//! which of them are on their way (<https://redis.io/docs/latest/commands/cluster-nodes/>); that is
//! told of the node itself alone. `CLUSTER SLOTS` says by which address clients should come, which
//! is a name where certificates are for names
//! (<https://redis.io/docs/latest/commands/cluster-slots/>).

use std::collections::BTreeMap;
use std::fmt;

use redis::{Value, from_redis_value};

use crate::sweep::redis::slots::Slots;

/// How a node is reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Member {
    /// The slots that it has and is to keep, where its own keys may be. The others are on their
    /// way.
    pub(super) fn settled(&self) -> Slots {
        let settled = self.slots.clone().without(&self.moving);
        if settled.is_empty() { self.slots.clone() } else { settled }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Address {
    /// Whether a redirection, `host:port`, leads here. One without a host leads to a port of
    /// whatever host sent it.
    pub(super) fn is(&self, to: &str) -> bool {
        let Some((host, port)) = to.rsplit_once(':') else { return false };
        port.parse() == Ok(self.port) && (host.is_empty() || host == self.host)
    }
}

/// A node, in the words of one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its name, forty digits, which it keeps for as long as it is in the cluster.
    pub(super) id: String,
    pub(super) address: Address,
    pub(super) is_primary: bool,
    /// Whether it is the node that speaks.
    pub(super) is_myself: bool,
    /// Whether it is taken to be down, or cannot be reached.
    pub(super) is_away: bool,
    /// Which of two that claim a slot has it: the one with the greater epoch.
    pub(super) epoch: u64,
    pub(super) slots: Slots,
    /// Slots that are on their way from or to it; known of the node that speaks.
    pub(super) moving: Slots,
    /// Those of them that go away, each with the id of the primary that it goes to.
    pub(super) sends: Vec<(u16, String)>,
}

/// Reads a reply to `CLUSTER NODES` that came from `host`. Lines that are none are left out.
pub(super) fn members(reply: &str, host: &str) -> Vec<Member> {
    reply.lines().filter_map(|line| member(line, host)).collect()
}

fn member(line: &str, host: &str) -> Option<Member> {
    let mut words = line.split_ascii_whitespace();
    let (id, address, flags) = (words.next()?, words.next()?, words.next()?);
    let mut more = words.by_ref().take(5);
    let (_primary, _ping, _pong, epoch, link) =
        (more.next()?, more.next()?, more.next()?, more.next()?, more.next()?);
    let flags: Vec<&str> = flags.split(',').collect();
    let has = |flag: &str| flags.contains(&flag);
    if has("noaddr") || has("handshake") {
        return None;
    }
    let (mut slots, mut moving, mut sends) = (Slots::default(), Slots::default(), Vec::new());
    for word in words {
        match word.strip_prefix('[') {
            // `[77->-ID]` is leaving, `[77-<-ID]` is coming.
            Some(one) => {
                let slots = Slots::parse(one.split('-').next()?)?;
                let to = one.split_once("->-").map(|(_, to)| to.trim_end_matches(']'));
                sends.extend(slots.iter().zip(to).map(|(slot, to)| (slot, to.to_owned())));
                moving.add(&slots);
            }
            None => slots.add(&Slots::parse(word)?),
        }
    }
    let is_myself = has("myself");
    Some(Member {
        id: id.to_owned(),
        address: address_of(address, host)?,
        is_primary: has("master"),
        is_myself,
        is_away: has("fail") || has("fail?") || (link != "connected" && !is_myself),
        epoch: epoch.parse().ok()?,
        slots,
        moving,
        sends,
    })
}

/// `ip:port@bus`, perhaps with a name behind a comma. A node that was never told its own address
/// gives none.
fn address_of(text: &str, host: &str) -> Option<Address> {
    let text = text.split([',', '@']).next()?;
    let (ip, port) = text.rsplit_once(':')?;
    let ip = if ip.is_empty() { host } else { ip };
    Some(Address { host: ip.to_owned(), port: port.parse().ok().filter(|port| *port > 0)? })
}

/// The addresses by which nodes want clients to come, by their ids, from a reply to `CLUSTER SLOTS`
/// that came from `host`.
pub(super) fn addresses(reply: Value, host: &str) -> BTreeMap<String, Address> {
    let mut addresses = BTreeMap::new();
    let parts = |value| from_redis_value::<Vec<Value>>(value).unwrap_or_default();
    let ranges = parts(reply).into_iter().map(parts);
    for node in ranges.flat_map(|range| range.into_iter().skip(2)) {
        let node = parts(node);
        let mut parts = node.into_iter();
        let (Some(name), Some(port), Some(id)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let name: Option<String> = from_redis_value(name).ok().flatten();
        let (Ok(port), Ok(id)) = (from_redis_value(port), from_redis_value(id)) else { continue };
        // `?`: a name is wanted, and none is known. Nothing: the host that was asked.
        let host = match name.as_deref() {
            Some("?") => continue,
            None | Some("") => host.to_owned(),
            Some(name) => name.to_owned(),
        };
        addresses.insert(id, Address { host, port });
    }
    addresses
}

/// The primaries of a cluster, and which of them has each slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Map {
    /// By id; those without slots as well.
    pub(super) primaries: BTreeMap<String, Member>,
}

impl Map {
    /// A map of what several nodes say: of itself each is believed first, of others whoever knows
    /// of the greatest epoch.
    pub(super) fn of(said: &[Vec<Member>]) -> Map {
        let mut known: BTreeMap<String, Member> = BTreeMap::new();
        for one in said.iter().flatten() {
            let is_better =
                |other: &Member| (one.is_myself, one.epoch) > (other.is_myself, other.epoch);
            if known.get(&one.id).is_none_or(is_better) {
                known.insert(one.id.clone(), one.clone());
            }
        }
        known.retain(|_, one| one.is_primary);
        let mut map = Map { primaries: known };
        map.settle();
        map
    }

    /// Leaves each slot to one primary: of several that claim it, to the one of the greatest epoch.
    fn settle(&mut self) {
        let mut order: Vec<(u64, String)> =
            self.primaries.values().map(|one| (one.epoch, one.id.clone())).collect();
        order.sort();
        let mut taken = Slots::default();
        for (_, id) in order.into_iter().rev() {
            if let Some(one) = self.primaries.get_mut(&id) {
                one.slots = std::mem::take(&mut one.slots).without(&taken);
                taken.add(&one.slots);
            }
        }
    }

    /// Slots that are on their way to a primary, in its own words, or of whoever sends them.
    pub(super) fn coming(&self, id: &str) -> Slots {
        let own = self.primaries.get(id).map(|one| one.moving.clone().without(&one.slots));
        let mut coming = own.unwrap_or_default();
        for (slot, to) in self.primaries.values().flat_map(|one| &one.sends) {
            if to == id {
                coming.insert(*slot);
            }
        }
        coming
    }

    /// Whether keys are on their way to a primary that has no slot yet.
    pub(super) fn is_guest(&self, id: &str) -> bool {
        !self.has_slots(id) && !self.coming(id).is_empty()
    }

    /// Whether a primary has slots.
    pub(super) fn has_slots(&self, id: &str) -> bool {
        self.primaries.get(id).is_some_and(|one| !one.slots.is_empty())
    }

    /// How many primaries have slots.
    pub(super) fn with_slots(&self) -> usize {
        self.primaries.values().filter(|one| !one.slots.is_empty()).count()
    }

    /// Whether a primary lacks slots that it had in a map before.
    pub(super) fn lacks(&self, before: &Map, id: &str) -> bool {
        let slots = |map: &Map| map.primaries.get(id).map(|one| one.slots.clone());
        let now = slots(self).unwrap_or_default();
        slots(before).is_some_and(|slots| !slots.without(&now).is_empty())
    }

    /// Whether a primary has slots that it did not have in a map before, or may have got back:
    /// whoever gets slots has a greater epoch than before.
    pub(super) fn may_have_more(&self, before: &Map, id: &str) -> bool {
        let Some(now) = self.primaries.get(id) else { return false };
        before.primaries.get(id).is_none_or(|before| {
            now.epoch != before.epoch || !now.slots.clone().without(&before.slots).is_empty()
        })
    }

    /// Whether slots are on their way.
    pub(super) fn is_moving(&self) -> bool {
        self.primaries.values().any(|one| !one.moving.is_empty())
    }

    /// Slots that nobody has.
    pub(super) fn missing(&self) -> Slots {
        let mut all = Slots::all();
        for one in self.primaries.values() {
            all = all.without(&one.slots);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::{Address, Map, addresses, members};

    const SAID: &str = "\
        aaa 127.0.0.1:7000@17000,host-a myself,master - 0 1426238317239 4 connected 0-5460 5462 \
        [77->-bbb] [5463-<-ccc]\n\
        bbb 127.0.0.1:7001@17001 master - 0 1426238316232 2 connected 5461 5463-10922\n\
        ccc 10.0.0.3:7002@17002 master,fail - 0 1426238318243 3 disconnected 10923-16383\n\
        ddd 127.0.0.1:7003@17003 slave aaa 0 1426238316232 4 connected\n\
        eee :0@0 master,noaddr - 0 0 0 disconnected\n\
        fff fe80::1:7004@17004 master - 0 1 9 connected\n\
        rubbish\n";

    #[test]
    fn nodes_tell_of_themselves_and_of_others() {
        let said = members(SAID, "asked");
        let ids: Vec<&str> = said.iter().map(|one| one.id.as_str()).collect();
        assert_eq!(ids, ["aaa", "bbb", "ccc", "ddd", "fff"]);
        assert_eq!(said[0].slots.to_string(), "0-5460,5462");
        assert_eq!(said[0].moving.to_string(), "77,5463");
        assert_eq!(said[0].sends, [(77, "bbb".to_owned())]);
        assert!(said[0].is_myself && !said[1].is_myself && !said[3].is_primary);
        let away: Vec<bool> = said.iter().map(|one| one.is_away).collect();
        assert_eq!(away, [false, false, true, false, false]);
        assert_eq!(said[4].address, Address { host: "fe80::1".to_owned(), port: 7004 });
        let unknown = members("aaa :7000@17000 myself,master - 0 0 1 connected", "asked");
        assert_eq!(unknown[0].address, Address { host: "asked".to_owned(), port: 7000 });
    }

    #[test]
    fn a_slot_has_one_owner_the_one_of_the_greatest_epoch() {
        let other = "bbb 127.0.0.1:7001@17001 myself,master - 0 0 5 connected 5461-10922\n\
                     aaa 127.0.0.1:7000@17000 master - 0 0 4 connected 0-5460 5462\n";
        let map = Map::of(&[members(SAID, "h"), members(other, "h")]);
        let slots = |id: &str| map.primaries[id].slots.to_string();
        assert_eq!((slots("aaa"), slots("bbb")), ("0-5460".into(), "5461-10922".into()));
        assert_eq!(map.primaries["aaa"].moving.to_string(), "77,5463");
        assert!(map.missing().is_empty());
        assert_eq!(map.primaries.len(), 4, "one without slots is one");
        // Nobody speaks for it: what others know of the greatest epoch counts.
        assert!(map.primaries["ccc"].is_away && slots("fff").is_empty());
    }

    /// Others may not have heard yet of what it has, and never hear of what is on its way.
    #[test]
    fn of_itself_a_node_is_believed_first_whoever_speaks_before_it() {
        let other = |epoch| {
            let aaa = format!("aaa 127.0.0.1:7000@17000 master - 0 0 {epoch} connected 0-99\n");
            [&aaa, "bbb 127.0.0.1:7001@17001 myself,master - 0 0 2 connected 5461-10922\n"].concat()
        };
        for epoch in [3, 4, 9] {
            let map = Map::of(&[members(&other(epoch), "h"), members(SAID, "h")]);
            let aaa = &map.primaries["aaa"];
            let told = (aaa.epoch, aaa.slots.to_string(), aaa.moving.to_string());
            assert_eq!(told, (4, "0-5460,5462".to_owned(), "77,5463".to_owned()), "{epoch}");
        }
    }

    /// Keys that come with a slot need not be told as those that are written: an index is lost.
    #[test]
    fn a_primary_may_have_more_if_it_got_slots_also_if_it_gave_them_away_before() {
        let map = |epoch: u64, slots: &str| {
            let line = format!("aaa 1.1.1.1:1@2 myself,master - 0 0 {epoch} connected {slots}\n");
            Map::of(&[members(&line, "h")])
        };
        let before = map(4, "0-9");
        for (now, may) in [
            (map(4, "0-9"), false),
            (map(4, "1-9"), false),
            (map(4, "0-10"), true),
            (map(4, "1-10"), true),
            // They went and came back between two looks.
            (map(5, "0-9"), true),
        ] {
            assert_eq!(now.may_have_more(&before, "aaa"), may, "{now:?}");
        }
        assert!(before.may_have_more(&Map::default(), "aaa"), "it is new");
        assert!(!before.may_have_more(&before, "bbb"), "it is none");
    }

    /// The slots of its own keys are to stay with it.
    #[test]
    fn own_keys_are_in_slots_that_stay() {
        let settled = |slots: &str| {
            let line = format!("aaa 1.1.1.1:1@2 myself,master - 0 0 4 connected {slots}\n");
            members(&line, "h")[0].settled().to_string()
        };
        assert_eq!(settled("0-9 [0->-bbb] [1->-bbb]"), "2-9");
        assert_eq!(settled("0-1 [0->-bbb] [1->-bbb]"), "0-1", "there are no others");
    }

    #[test]
    fn the_address_for_clients_is_the_one_that_a_node_wants() {
        let text = |text: &str| Value::BulkString(text.into());
        let node = |name: Value, port, id| Value::Array(vec![name, Value::Int(port), text(id)]);
        let range =
            |nodes: Vec<Value>| Value::Array([vec![Value::Int(0), Value::Int(1)], nodes].concat());
        let reply = Value::Array(vec![
            range(vec![node(text("host-a"), 7000, "aaa"), node(Value::Nil, 7003, "ddd")]),
            range(vec![node(text("?"), 7001, "bbb"), node(text(""), 7002, "ccc")]),
            Value::Int(3),
        ]);
        let found = addresses(reply, "asked");
        let of = |id: &str| found.get(id).map(|one| format!("{}:{}", one.host, one.port));
        assert_eq!(of("aaa").as_deref(), Some("host-a:7000"));
        assert_eq!((of("ddd"), of("ccc")), (Some("asked:7003".into()), Some("asked:7002".into())));
        assert_eq!(of("bbb"), None);
        assert!(addresses(Value::Nil, "asked").is_empty());
    }
}
