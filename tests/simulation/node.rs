//! walsweep's connections to a Redis in memory, and all that may happen to a call.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::time::sleep;
use walsweep::keys::{Pattern, Rules};
use walsweep::sweep::{
    Chain, Error, Indexed, Kind, Mark, Node, Page, Primary, Removes, Replaced, ScanCall, Scanned,
};

use crate::eyes::Eyes;
use crate::judge::add;
use crate::redis::{Fate, Reply, Request, Which};
use crate::world::World;

/// walsweep's connections to one target.
pub(crate) struct Client {
    world: Rc<World>,
    at: usize,
    connection: Cell<Option<u64>>,
    /// The id of the server that was connected to.
    id: Cell<u64>,
    chain: RefCell<Option<Chain>>,
    eyes: Eyes,
}

impl Client {
    pub(crate) fn new(world: &Rc<World>, at: usize, rules: &Rules) -> Client {
        let (connection, id, chain) = (Cell::new(None), Cell::new(0), RefCell::new(None));
        let eyes = Eyes::new(rules, world.sees);
        Client { world: Rc::clone(world), at, connection, id, chain, eyes }
    }

    fn lost(&self, kind: Kind) -> Error {
        self.connection.set(None);
        self.eyes.close();
        self.world.judge.connected(self.at, false);
        Error::new(kind, "told to fail".to_owned())
    }

    fn check(&self, number: u64) -> Result<(), Error> {
        let redis = self.world.redis[self.at].borrow();
        if redis.up && redis.connections == number && self.connection.get() == Some(number) {
            Ok(())
        } else {
            Err(self.lost(Kind::Io))
        }
    }

    /// The request as it is sent: on one connection, what is sent first arrives first.
    fn linked(&self, mut request: Request) -> Request {
        let mut chain = self.chain.borrow_mut();
        match &mut request {
            Request::Unlink(_, link, _) => *link = chain.as_mut().and_then(Chain::extend),
            Request::Replace { number, .. } => {
                *number = chain.as_ref().and_then(Chain::standing);
            }
            _ => {}
        }
        request
    }

    fn same(&self, id: u64) -> Result<(), Error> {
        if id == self.id.get() { Ok(()) } else { Err(self.lost(Kind::Swapped)) }
    }

    async fn ask(&self, request: Request) -> Result<Reply, Error> {
        let (world, at) = (&self.world, self.at);
        let number = self.connection.get().ok_or_else(|| self.lost(Kind::Io))?;
        let is_scan = request.which() == Some(Which::Scan);
        let longest = if is_scan { world.redis[at].borrow().scan_pause } else { 3 };
        world.pause(0, longest).await;
        self.check(number)?;
        let fate = world.redis[at].borrow().fate(request.which(), world);
        if fate != Fate::Fine {
            world.note(|| format!("target {at}: a call goes wrong: {fate:?}"));
            world.judge.disturbed_at(at);
        }
        let mut request = if matches!(fate, Fate::Refused(_) | Fate::LostBefore) {
            request
        } else {
            self.linked(request)
        };
        let reply = match fate {
            Fate::Refused(kind) => {
                world.pause(0, 3).await;
                let error = Error::new(kind, "told to refuse".to_owned());
                return Err(if kind.needs_reconnect() { self.lost(kind) } else { error });
            }
            Fate::LostBefore => return Err(self.lost(Kind::Io)),
            Fate::LostAfter => {
                request.serve((world, at), false);
                return Err(self.lost(Kind::Io));
            }
            Fate::TimedOut { done } => {
                if done {
                    request.serve((world, at), false);
                }
                sleep(world.random.millis(100, 500)).await;
                return Err(self.lost(Kind::Timeout));
            }
            Fate::Late => {
                let (world, wait) = (Rc::clone(world), world.random.millis(100, 1500));
                tokio::task::spawn_local(async move {
                    sleep(wait).await;
                    let is_same = world.redis[at].borrow().connections == number;
                    if is_same && world.redis[at].borrow().up {
                        world.note(|| format!("target {at}: a late command arrives"));
                        request.serve((&world, at), true);
                    }
                });
                sleep(self.world.random.millis(50, 500)).await;
                return Err(self.lost(Kind::Timeout));
            }
            Fate::Forbidden => {
                if let Request::Unlink(_, _, forbids) = &mut request {
                    *forbids = true;
                }
                request.serve((world, at), false)
            }
            Fate::Fine => request.serve((world, at), false),
        };
        world.pause(0, 3).await;
        self.check(number)?;
        match reply {
            Reply::Swapped => Err(self.lost(Kind::Swapped)),
            reply => Ok(reply),
        }
    }
}

fn owned(key: &[u8]) -> String {
    String::from_utf8(key.to_vec()).unwrap()
}

impl Removes for Client {
    async fn unlink(&self, groups: &[Vec<&[u8]>]) -> Result<Vec<Option<u64>>, Error> {
        let names = groups.iter().map(|group| group.iter().map(|key| owned(key)).collect());
        let eyes = self.eyes.observer().map(|observer| (observer.mark(), observer));
        let reply = self.ask(Request::Unlink(names.collect(), None, false)).await?;
        let Reply::Counts(counts) = reply else { unreachable!("counts are the reply") };
        if let Some((mark, observer)) = eyes {
            let gone = groups.iter().zip(&counts).filter(|(_, count)| count.is_some());
            observer.gone(gone.flat_map(|(keys, _)| keys.iter().copied()), &mark);
        }
        Ok(counts)
    }

    /// See `src/sweep/redis/observe.rs`: the answer to one PING may overtake a name.
    async fn fence(&self) -> Result<(), Error> {
        self.ping().await?;
        self.ping().await?;
        if let Some(observer) = self.eyes.observer() {
            observer.sort_in().await;
        }
        Ok(())
    }
}

impl Primary for Client {
    fn name(&self) -> &str {
        ["memory", "memory, too"][self.at]
    }

    async fn scan(&self, call: &ScanCall<'_>) -> Result<Page, Error> {
        let pattern = call.pattern.map(<[u8]>::to_vec);
        let observer = self.eyes.observer();
        if let Some(observer) = observer.as_ref().filter(|_| call.cursor == 0) {
            observer.scan_begins(call.pattern);
        }
        let reply = self.ask(Request::Scan { cursor: call.cursor, pattern }).await?;
        let Reply::Page(page, id) = reply else { unreachable!("a page is the reply") };
        self.same(id)?;
        if let Some(observer) = observer {
            observer.scanned(&page.keys, page.cursor == 0);
        }
        Ok(page)
    }

    fn wanted_prefixes(&self) -> Vec<Vec<u8>> {
        self.eyes.observer().map(|observer| observer.wanted_prefixes()).unwrap_or_default()
    }

    fn list(&self, prefix: &[u8], after: Option<&[u8]>, most: usize) -> Option<Vec<Vec<u8>>> {
        let listed = self.eyes.observer()?.list(prefix, after, most);
        if listed.is_some() {
            add(&self.world.judge.looks.listed);
        }
        listed
    }

    async fn ping(&self) -> Result<(), Error> {
        match self.ask(Request::Nothing).await? {
            Reply::Id(id) => self.same(id),
            _ => unreachable!("the id is the reply"),
        }
    }
}

impl Node for Client {
    type Primary<'a> = &'a Client;

    fn name(&self) -> &str {
        ["memory", "memory, too"][self.at]
    }

    async fn connect(&self) -> Result<(), Error> {
        self.connection.set(None);
        self.eyes.close();
        self.world.pause(1, 5).await;
        let mut redis = self.world.redis[self.at].borrow_mut();
        if let Some(kind) = redis.mood.useless.filter(|_| redis.up) {
            return Err(Error::new(kind, "told to refuse".to_owned()));
        }
        if !redis.up || self.world.random.chance(redis.mood.flaky) {
            return Err(Error::new(Kind::Io, "connection refused".to_owned()));
        }
        self.connection.set(Some(redis.connections));
        self.world.judge.connected(self.at, true);
        self.id.set(redis.id());
        self.chain.replace(None);
        redis.told = self.eyes.open();
        Ok(())
    }

    async fn primaries(&self, scanned: &mut Scanned) -> Result<Vec<&Client>, Error> {
        Ok(scanned.once(self))
    }

    fn mark(&self) -> Option<Mark> {
        self.eyes.observer().filter(|_| self.world.sees.refills).map(|observer| observer.mark())
    }

    fn index_patterns(&self) -> Vec<Pattern> {
        self.eyes.index_patterns()
    }

    fn indexed(&self) -> Option<Indexed> {
        self.eyes.observer()?.indexed()
    }

    fn wants_scan(&self) -> bool {
        self.eyes.observer().is_some_and(|observer| observer.wants_scan())
    }

    async fn watermark(&self) -> Result<Option<Vec<u8>>, Error> {
        match self.ask(Request::Watermark).await? {
            Reply::Watermark(value) => {
                self.chain.replace(Some(Chain::begin()));
                Ok(value)
            }
            _ => unreachable!("a value is the reply"),
        }
    }

    async fn replace_watermark(
        &self,
        expected: Option<&[u8]>,
        value: &[u8],
    ) -> Result<Replaced, Error> {
        let (expected, value) = (expected.map(<[u8]>::to_vec), value.to_vec());
        match self.ask(Request::Replace { expected, value, number: None }).await? {
            Reply::Replaced(replaced) => {
                if let (Replaced::No(_), Some(observer)) = (&replaced, self.eyes.observer()) {
                    observer.lose();
                }
                Ok(replaced)
            }
            _ => unreachable!("the outcome is the reply"),
        }
    }
}
