//! A Redis in memory: what it holds is what the log of its commands says, so a restart from an
//! older file and a promoted replica are both a shorter log.

use std::collections::BTreeMap;

use walsweep::keys::Pattern;
use walsweep::sweep::{Kind, Link, Page, Replaced};

use crate::eyes::Told;
use crate::judge::add;
use crate::postgres::Version;
use crate::random::{Random, mix};
use crate::world::World;

/// A command that changes something.
enum Command {
    Fill(String, Version),
    Remove(String),
    Mark(Option<Vec<u8>>),
    /// The number of the chain of removals.
    Number(u64),
}

/// The fate of a call: fine, or one of the ways to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Fine,
    /// Answered with an error, nothing done.
    Refused(Kind),
    /// Done, but for removals of keys that the user has no right on.
    Forbidden,
    /// The connection is lost before anything is done.
    LostBefore,
    /// The connection is lost, everything is done.
    LostAfter,
    /// No answer in time; done or not, or done much later.
    TimedOut {
        done: bool,
    },
    Late,
}

/// How the server behaves just now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mood {
    /// Percentage of calls that go wrong with the connection.
    pub(crate) flaky: u64,
    /// Calls are refused with this.
    pub(crate) refuses: Option<(Kind, Which)>,
    /// Not a server of use: READONLY, LOADING.
    pub(crate) useless: Option<Kind>,
    /// Keys with this prefix are none of walsweep's business: UNLINK is refused, all else is not.
    pub(crate) forbids: Option<&'static str>,
}

impl Mood {
    /// Whether keys of an object whose key this is go as ever.
    pub(crate) fn lets_go(self, key: &str) -> bool {
        let others = Mood { forbids: None, ..self };
        others == Mood::default() && !self.is_forbidden(key)
    }

    fn is_forbidden(self, key: &str) -> bool {
        self.forbids.is_some_and(|prefix| key.starts_with(prefix))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Unlink,
    Scan,
    Watermark,
}

pub(crate) struct Redis {
    pub(crate) up: bool,
    pub(crate) mood: Mood,
    /// How many milliseconds a SCAN call may take: a pass then takes longer than an exact key may.
    pub(crate) scan_pause: u64,
    log: Vec<Command>,
    keys: BTreeMap<String, Version>,
    mark: Option<Vec<u8>>,
    number: u64,
    /// Number of the connections; another number ends those that are there.
    pub(crate) connections: u64,
    /// Whom it tells which keys are written.
    pub(crate) told: Option<Told>,
    seed: u64,
    /// Buckets of the table, a power of two.
    buckets: u64,
}

impl Redis {
    pub(crate) fn new(seed: u64) -> Redis {
        Redis {
            up: true,
            mood: Mood::default(),
            scan_pause: 3,
            log: Vec::new(),
            keys: BTreeMap::new(),
            mark: None,
            number: 0,
            connections: 0,
            told: None,
            seed,
            buckets: 4,
        }
    }

    pub(crate) fn cut(&mut self) {
        self.connections += 1;
        self.told = None;
    }

    pub(crate) fn get(&self, key: &str) -> Option<Version> {
        self.keys.get(key).copied()
    }

    pub(crate) fn cached(&self) -> impl Iterator<Item = (&str, Version)> {
        self.keys.iter().map(|(key, version)| (key.as_str(), *version))
    }

    pub(crate) fn fill(&mut self, key: &str, version: Version, random: &Random) {
        self.run(Command::Fill(key.to_owned(), version));
        self.told.iter_mut().for_each(|told| told.wrote(key, random));
    }

    pub(crate) fn set_mark(&mut self, value: Option<Vec<u8>>) {
        self.run(Command::Mark(value));
    }

    fn run(&mut self, command: Command) {
        self.apply(&command);
        self.log.push(command);
    }

    fn apply(&mut self, command: &Command) {
        match command {
            Command::Fill(key, version) => drop(self.keys.insert(key.clone(), *version)),
            Command::Remove(key) => drop(self.keys.remove(key)),
            Command::Mark(value) => self.mark.clone_from(value),
            Command::Number(number) => self.number = *number,
        }
        self.buckets = self.buckets.max((self.keys.len() as u64).next_power_of_two());
    }

    /// The log from here on is lost. Another server has another hash seed, so no cursor of the one
    /// before means anything to it.
    fn forget_from(&mut self, length: usize) {
        self.told = None;
        self.log.truncate(length);
        self.keys.clear();
        self.mark = None;
        self.number = 0;
        let log = std::mem::take(&mut self.log);
        log.iter().for_each(|command| self.apply(command));
        self.log = log;
        self.seed = mix(self.seed);
    }

    /// The last commands are lost, and with the server the connections to it.
    pub(crate) fn roll_back(&mut self, commands: usize) {
        self.cut();
        self.forget_from(self.log.len().saturating_sub(commands));
    }

    /// The last commands are lost, behind a proxy that keeps the connections.
    pub(crate) fn roll_back_hidden(&mut self, commands: usize) {
        self.forget_from(self.log.len().saturating_sub(commands));
    }

    /// Another server has another id, and so has one whose data was exchanged.
    pub(crate) fn id(&self) -> u64 {
        self.seed
    }

    /// The number, after a link.
    fn link(&mut self, link: Link) -> u64 {
        let number = match link {
            Link::Set(number) => number,
            Link::Increase(_) => self.number + 1,
        };
        self.run(Command::Number(number));
        number
    }

    /// Writes the watermark where `expected` stands, and this number of the chain.
    fn replace(
        &mut self,
        (world, at): (&World, usize),
        expected: Option<&Vec<u8>>,
        value: &[u8],
        number: Option<u64>,
    ) -> Reply {
        let text = std::str::from_utf8(value).unwrap();
        if self.mark.as_ref() != expected {
            world.note(|| format!("target {at}: watermark not {text}"));
            return Reply::Replaced(Replaced::No(self.mark.clone()));
        }
        if number.is_some_and(|number| number != self.number) {
            world.note(|| format!("target {at}: the chain is broken"));
            return Reply::Swapped;
        }
        world.note(|| format!("target {at}: watermark {text}"));
        self.run(Command::Mark(Some(value.to_vec())));
        Reply::Replaced(Replaced::Yes)
    }

    /// Removes a key for whoever is told of writes, or, `late`, for a connection before that.
    fn unlink(&mut self, key: &str, late: bool, random: &Random) -> bool {
        let had = self.keys.contains_key(key);
        self.run(Command::Remove(key.to_owned()));
        for told in self.told.iter_mut().filter(|_| had) {
            if late { told.wrote(key, random) } else { told.removed_itself(key) }
        }
        had
    }

    fn scan(&mut self, world: &World, cursor: u64, pattern: Option<&[u8]>) -> Page {
        let pattern = pattern.map(Pattern::parse);
        // The table grows and shrinks between two calls.
        if world.random.chance(10) {
            let least = (self.keys.len() as u64).next_power_of_two();
            self.buckets = (least << world.random.below(3)).max(4);
        }
        let mut cursor = cursor;
        let mut names = Vec::new();
        for _ in 0..world.random.between(1, 4) {
            let bucket = cursor & (self.buckets - 1);
            for key in self.keys.keys() {
                if self.bucket_of(key) == bucket {
                    let times = 1 + usize::from(world.random.chance(5));
                    names.extend(std::iter::repeat_n(key.as_bytes().to_vec(), times));
                }
            }
            cursor = next_cursor(cursor, self.buckets - 1);
            if cursor == 0 {
                break;
            }
        }
        names.retain(|name| pattern.as_ref().is_none_or(|pattern| pattern.matches(name)));
        Page { cursor, keys: names }
    }

    fn bucket_of(&self, key: &str) -> u64 {
        key.bytes().fold(self.seed, |hash, byte| mix(hash ^ u64::from(byte))) & (self.buckets - 1)
    }

    pub(crate) fn fate(&self, which: Option<Which>, world: &World) -> Fate {
        if let Some(kind) = self.mood.useless {
            return Fate::Refused(kind);
        }
        match self.mood.refuses {
            Some((Kind::NoPerm, Which::Unlink)) if which == Some(Which::Unlink) => {
                return Fate::Forbidden;
            }
            Some((kind, refused)) if which == Some(refused) => return Fate::Refused(kind),
            _ => {}
        }
        if !world.random.chance(self.mood.flaky) {
            return Fate::Fine;
        }
        world.random.pick(&[
            Fate::LostBefore,
            Fate::LostAfter,
            Fate::TimedOut { done: false },
            Fate::TimedOut { done: true },
            Fate::Late,
        ])
    }
}

/// The next cursor, by the reverse binary increment of Redis's `dictScan`.
fn next_cursor(cursor: u64, mask: u64) -> u64 {
    (cursor | !mask).reverse_bits().wrapping_add(1).reverse_bits()
}

/// A request of walsweep, owned, so that it may arrive after its sender is gone.
pub(crate) enum Request {
    Nothing,
    /// With whether some keys are forbidden.
    Unlink(Vec<Vec<String>>, Option<Link>, bool),
    Scan {
        cursor: u64,
        pattern: Option<Vec<u8>>,
    },
    Watermark,
    /// With what the chain says must stand.
    Replace {
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        number: Option<u64>,
    },
}

pub(crate) enum Reply {
    /// The server's id.
    Id(u64),
    Counts(Vec<Option<u64>>),
    /// With the server's id.
    Page(Page, u64),
    Watermark(Option<Vec<u8>>),
    Replaced(Replaced),
    /// The chain does not hold.
    Swapped,
}

impl Request {
    pub(crate) fn which(&self) -> Option<Which> {
        match self {
            Request::Unlink(..) => Some(Which::Unlink),
            Request::Scan { .. } => Some(Which::Scan),
            Request::Replace { .. } => Some(Which::Watermark),
            Request::Nothing | Request::Watermark => None,
        }
    }

    pub(crate) fn serve(self, (world, at): (&World, usize), late: bool) -> Reply {
        let mut redis = world.redis[at].borrow_mut();
        if self.which() != Some(Which::Scan) && !late {
            redis.told.iter_mut().for_each(|told| told.turn(&world.random));
        }
        match self {
            Request::Nothing => Reply::Id(redis.id()),
            Request::Unlink(mut groups, link, forbids) => {
                let mood = redis.mood;
                // Each group is a command of its own, which is refused for any of its keys.
                let is_refused = |group: &Vec<String>| {
                    let is_forbidden =
                        |key: &String| mood.is_forbidden(key) || forbids && is_forbidden(key);
                    group.iter().any(is_forbidden)
                };
                let refused: Vec<bool> = groups.iter().map(is_refused).collect();
                world.note(|| {
                    let keys = groups.concat().join(" ");
                    format!("target {at}: UNLINK {keys}, refused: {refused:?}")
                });
                if refused.contains(&true) {
                    add(&world.judge.looks.refusals);
                }
                for (group, _) in groups.iter_mut().zip(&refused).filter(|(_, refused)| **refused) {
                    group.clear();
                }
                if !late {
                    let keys = groups.iter().flatten();
                    keys.for_each(|key| world.judge.unlinked(world, at, key));
                }
                let count = |group: Vec<String>| {
                    group
                        .iter()
                        .map(|key| u64::from(redis.unlink(key, late, &world.random)))
                        .sum::<u64>()
                };
                let counts = groups.into_iter().map(count).zip(refused);
                let counts = counts.map(|(count, refused)| (!refused).then_some(count)).collect();
                match link {
                    Some(Link::Increase(number))
                        if redis.link(Link::Increase(number)) != number =>
                    {
                        world.note(|| format!("target {at}: the chain is broken"));
                        Reply::Swapped
                    }
                    Some(Link::Set(number)) => {
                        redis.link(Link::Set(number));
                        Reply::Counts(counts)
                    }
                    _ => Reply::Counts(counts),
                }
            }
            Request::Scan { cursor, pattern } => {
                let page = redis.scan(world, cursor, pattern.as_deref());
                world.note(|| {
                    let (count, next) = (page.keys.len(), page.cursor);
                    format!("target {at}: SCAN {cursor}: {count} keys, then {next}")
                });
                Reply::Page(page, redis.id())
            }
            Request::Watermark => Reply::Watermark(redis.mark.clone()),
            Request::Replace { expected, value, number } => {
                let reply = redis.replace((world, at), expected.as_ref(), &value, number);
                drop(redis);
                if matches!(reply, Reply::Replaced(Replaced::Yes)) {
                    world.judge.watermark(world, at, &value);
                }
                reply
            }
        }
    }
}

/// Whether a right on a key is missing while some are: on half of them.
fn is_forbidden(key: &str) -> bool {
    key.bytes().fold(7, |hash, byte| mix(hash ^ u64::from(byte))) & 1 == 1
}
