//! One Redis server, over two connections: removals on one, SCAN on the other, so that a reply to
//! a removal never queues behind a page of names; and a third for `WAIT`, if it is asked for. Of a
//! service that Sentinels watch it is the primary. [`shard`]: more, of a primary of a cluster;
//! [`hidden`]: other ways, of an address that is not one server's.

mod acts;
mod counted;
mod dead;
mod hidden;
mod observed;
mod shard;

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisError, Value, cmd};

pub(in crate::sweep::redis) use self::acts::Routed;
use self::hidden::Hidden;
use self::observed::{Observed, Unobserved};
pub(in crate::sweep::redis) use self::shard::{Names, Outcome};
use crate::config;
use crate::keys::Pattern;
use crate::sweep::proof::chain::Chain;
use crate::sweep::proof::evidence::key_name;
use crate::sweep::redis::act::{Act, Answer};
use crate::sweep::redis::connect::{ConnectError, classify, connect, node_name};
use crate::sweep::redis::endpoint::Endpoint;
use crate::sweep::redis::index::Indexed;
use crate::sweep::redis::info::{history, scan_time};
use crate::sweep::redis::node::{
    Error, Kind, Node, Page, Primary, Removes, Replaced, ScanCall, Scanned,
};
use crate::sweep::redis::observe::{Mark, Observer};
use crate::sweep::redis::own::Own;
use crate::sweep::redis::prefix::Prefix;
use crate::sweep::redis::renewal::Renewal;
use crate::sweep::redis::sentinel::Council;
use crate::sweep::redis::standing;
use crate::words::counted;

/// How long fingerprints stay that no watermark carries yet: those of a program that was killed
/// before it wrote one go by themselves.
const DETAILS_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Of fingerprints so many bytes are read; those of 1 000 wide tables and rules have about one
/// million.
const DETAILS_SIZE_MAX: usize = 32 << 20;

/// How long one `WAIT` may take; a shortfall is told and tried again after it.
const WAIT_MS: u32 = 1_000;

/// Looks at the server of a new connection; an error says why it must not be used.
pub type Look =
    Rc<dyn Fn(MultiplexedConnection) -> Pin<Box<dyn Future<Output = Result<(), String>>>>>;

/// A standalone Redis.
pub struct Standalone {
    redis: config::Redis,
    /// Who says where the server is, if the URL does not.
    council: Option<Council>,
    name: String,
    /// The replication slot.
    slot: String,
    prefix: Prefix,
    own: Own,
    names: RefCell<Names>,
    /// Whether it is a primary of a cluster, among others.
    is_shard: bool,
    /// Begins where the watermark is read: who removes keys without one has nothing to prove.
    chain: RefCell<Option<Chain>>,
    /// Which writes are to be observed, if any are.
    observed: Option<Observed>,
    /// Why none are, on the connections that there are.
    unobserved: RefCell<Option<Unobserved>>,
    /// The look at a server before it is used.
    look: Option<Look>,
    connections: RefCell<Option<Connections>>,
    /// The endpoint that the log told of.
    told: Cell<Option<Endpoint>>,
    /// Whether a pass has shown that SCAN gives the keys of all servers behind it.
    shows_all: Cell<bool>,
    /// Keeps them logged in, if the password may change.
    renewal: RefCell<Option<Renewal>>,
}

#[derive(Clone)]
struct Connections {
    /// Tracks writes, too, where there is an observer: its own UNLINKs are then not told.
    remove: MultiplexedConnection,
    observer: Option<Observer>,
    scan: MultiplexedConnection,
    /// The id of the primary's replication history, if the server tells it.
    history: Option<String>,
    /// For `WAIT`, which holds up its own connection; only if it is asked for.
    wait: Option<MultiplexedConnection>,
    /// Of an endpoint that proves nothing.
    hidden: Option<Rc<Hidden>>,
}

impl Standalone {
    /// The server of a target, for changes of this slot; connects when [`Node::connect`] is called.
    #[must_use]
    pub fn new(redis: &config::Redis, slot: &str) -> Standalone {
        Standalone {
            redis: redis.clone(),
            council: Council::of(redis),
            name: node_name(redis),
            slot: slot.to_owned(),
            prefix: Prefix::of(redis),
            own: Own::of(redis, slot),
            names: RefCell::new(Names::of(key_name(&redis.prefix, slot))),
            is_shard: false,
            chain: RefCell::new(None),
            observed: None,
            unobserved: RefCell::new(None),
            look: None,
            connections: RefCell::new(None),
            told: Cell::new(None),
            shows_all: Cell::new(false),
            renewal: RefCell::new(None),
        }
    }

    /// Lets it look at each server before it is used.
    #[must_use]
    pub fn looked_at(self, look: Look) -> Standalone {
        Standalone { look: Some(look), ..self }
    }

    /// The names of its own keys.
    pub(in crate::sweep::redis) fn names(&self) -> Names {
        self.names.borrow().clone()
    }

    /// Does the work, unless Sentinels name another primary meanwhile.
    async fn unless_left<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        match &self.council {
            // Apart: where there are no Sentinels, it takes no room.
            Some(council) => Box::pin(council.unless_left(work)).await,
            None => work.await,
        }
    }

    fn connections(&self) -> Result<Connections, Error> {
        let connections = self.connections.borrow().clone();
        connections.ok_or_else(Standalone::not_connected)
    }

    /// Refuses a replica; gives the id of the primary's replication history, which a promotion and
    /// a restart change, if the server tells it.
    async fn check_primary(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<Option<String>, Error> {
        let info: Result<String, RedisError> =
            cmd("INFO").arg("replication").query_async(connection).await;
        match info {
            Ok(info) if info.contains("role:slave") => {
                Err(Error::new(Kind::ReadOnly, "the server is a replica".to_owned()))
            }
            Ok(info) => Ok(history(&info).map(str::to_owned)),
            // Whoever may not ask, or asks what does not know INFO: a replica still shows itself by
            // READONLY.
            Err(error) => match classify(&error).kind() {
                Kind::NoPerm | Kind::Unsupported => Ok(None),
                _ => Err(classify(&error)),
            },
        }
    }

    /// The history of the server that both connections reach. A failover between the two would let
    /// a pass list the keys of one server and remove them from another.
    async fn history_of_both(
        &self,
        remove: &mut MultiplexedConnection,
        scan: &mut MultiplexedConnection,
    ) -> Result<Option<String>, Error> {
        let history = self.check_primary(remove).await?;
        if self.check_primary(scan).await? != history {
            let message = "two connections reach two servers".to_owned();
            return Err(Error::new(Kind::Io, message));
        }
        Ok(history)
    }

    async fn looks_right(&self, connection: &MultiplexedConnection) -> Result<(), Error> {
        let Some(look) = &self.look else { return Ok(()) };
        look(connection.clone()).await.map_err(|reason| Error::Lost(reason, Kind::Other))
    }

    fn hidden(&self) -> Option<Rc<Hidden>> {
        self.connections.borrow().as_ref()?.hidden.clone()
    }

    /// Runs a command that is of use only on the server that was connected to: what a cursor means,
    /// and which names are pushed, only that one knows. Its id is asked for in the same round trip,
    /// and the number of removals, which another database in its place does not have.
    async fn ask_the_same(
        &self,
        command: Cmd,
        mut connection: MultiplexedConnection,
        expected: Option<String>,
    ) -> Result<Value, Error> {
        let Some(expected) = expected else {
            return command.query_async(&mut connection).await.map_err(|error| classify(&error));
        };
        let mut pipeline = Pipeline::with_capacity(3);
        pipeline.add_command(command).cmd("INFO").arg("replication");
        let number = self.shown();
        let count = 2 + usize::from(number.is_some());
        if let Some(get) = number {
            pipeline.add_command(get);
        }
        let replies = async {
            let replies = connection.send_packed_commands(&pipeline, 0, count).await;
            replies.map_err(|error| classify(&error))
        };
        let mut replies = self.unless_left(replies).await?;
        let is_shown = count == 2 || replies.pop().is_some_and(|number| self.is_shown(&number));
        let [reply, info] = replies
            .try_into()
            .map_err(|_other| Error::new(Kind::Io, "not a reply to each command".to_owned()))?;
        if let Value::ServerError(error) = reply {
            return Err(classify(&error.into()));
        }
        let info: String = redis::from_redis_value(info)
            .map_err(|_other| Error::new(Kind::Other, "INFO gave an unexpected reply".into()))?;
        if history(&info) == Some(expected.as_str()) && is_shown {
            return Ok(reply);
        }
        let message = "another server answers on this connection, or its data was exchanged";
        Err(Error::new(Kind::Swapped, message.to_owned()))
    }
}

impl Removes for Standalone {
    async fn unlink(&self, groups: &[Vec<&[u8]>]) -> Result<Vec<Option<u64>>, Error> {
        if let Some(hidden) = self.hidden() {
            return Box::pin(self.unlink_apart(&hidden, groups)).await;
        }
        let mut pipeline = Pipeline::with_capacity(groups.len());
        for keys in groups {
            pipeline.cmd("UNLINK");
            for key in keys {
                pipeline.arg(&*self.prefix.add(key));
            }
        }
        let indexer = self.indexer();
        let replies = self.send_linked(pipeline, groups.len()).await?;
        let counts: Vec<_> = replies.into_iter().map(removed_count).collect::<Result<_, _>>()?;
        if let Some((observer, mark)) = indexer {
            let gone = groups.iter().zip(&counts).filter(|(_, count)| count.is_some());
            observer.gone(gone.flat_map(|(keys, _)| keys.iter().copied()), &mark);
        }
        Ok(counts)
    }

    async fn act(&self, acts: &[Act<'_>]) -> Result<Vec<Answer>, Error> {
        self.send_acts(acts).await
    }

    fn is_own(&self, key: &[u8]) -> bool {
        self.has_own(key)
    }

    async fn fence(&self) -> Result<(), Error> {
        self.wait_for_names().await
    }
}

impl Primary for Standalone {
    fn name(&self) -> &str {
        &self.name
    }

    async fn scan(&self, call: &ScanCall<'_>) -> Result<Page, Error> {
        let Connections { scan: connection, history, observer, hidden, .. } = self.connections()?;
        if let Some(hidden) = hidden {
            return Box::pin(self.scan_behind(&hidden, call)).await;
        }
        if call.cursor == 0 {
            self.show().await?;
            observer.iter().for_each(|observer| observer.scan_begins(call.pattern));
        }
        let mut scan = cmd("SCAN");
        scan.arg(call.cursor);
        if let Some(pattern) = self.prefix.pattern(call.pattern) {
            scan.arg("MATCH").arg(&*pattern);
        }
        scan.arg("COUNT").arg(call.count);
        let page = self.ask_the_same(scan, connection, history).await?;
        let (cursor, mut keys): (u64, Vec<Vec<u8>>) = redis::from_redis_value(page)
            .map_err(|_other| Error::new(Kind::Other, "SCAN gave an unexpected reply".into()))?;
        // A pattern such as `*:walsweep` must not take the evidence that nothing was lost.
        keys.retain(|key| !self.own.has(key));
        let keys: Vec<_> = keys.into_iter().filter_map(|key| self.prefix.take(key)).collect();
        if let Some(observer) = observer {
            observer.scanned(&keys, cursor == 0);
        }
        Ok(Page { cursor, keys })
    }

    fn wanted_prefixes(&self) -> Vec<Vec<u8>> {
        self.observer().map(|observer| observer.wanted_prefixes()).unwrap_or_default()
    }

    fn list(&self, prefix: &[u8], after: Option<&[u8]>, most: usize) -> Option<Vec<Vec<u8>>> {
        self.observer()?.list(prefix, after, most)
    }

    async fn ping(&self) -> Result<(), Error> {
        let Connections { scan, history, .. } = self.connections()?;
        self.ask_the_same(cmd("PING"), scan, history).await.map(drop)
    }

    async fn scan_time(&self) -> Result<Option<Duration>, Error> {
        let Connections { scan: mut connection, hidden, .. } = self.connections()?;
        if hidden.is_some() {
            // It would be the account of one of several servers.
            return Ok(None);
        }
        let info: Result<String, RedisError> =
            cmd("INFO").arg("commandstats").query_async(&mut connection).await;
        match info {
            Ok(info) => Ok(scan_time(&info)),
            Err(error) => match classify(&error) {
                // Not every server, and not every user, is told.
                Error::Refused(..) | Error::Away(..) => Ok(None),
                lost @ Error::Lost(..) => Err(lost),
            },
        }
    }
}

impl Node for Standalone {
    type Primary<'a> = &'a Standalone;

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
        self.tell(message).await
    }

    async fn connect(&self) -> Result<(), Error> {
        self.chain.replace(None);
        self.renewal.replace(None);
        if let Some(Connections { observer: Some(observer), .. }) = self.connections.replace(None) {
            observer.close();
        }
        let failed = |error: ConnectError| {
            Error::from(match &self.council {
                Some(council) => council.of_service(error),
                None => error,
            })
        };
        // Once for all connections: they are to be of one server.
        let server = match &self.council {
            Some(council) => Box::pin(council.server()).await.map_err(Error::from)?,
            None => self.redis.clone(),
        };
        let (mut remove, mut observer) = self.connect_to_remove(&server).await.map_err(failed)?;
        let hidden = match Box::pin(self.look_behind(&mut remove)).await {
            Ok(hidden) => hidden.map(Rc::new),
            Err(error) => {
                // It may know better what is wrong.
                self.looks_right(&remove).await?;
                return Err(error);
            }
        };
        if let (Some(_), Some(deaf)) = (&hidden, observer.take_if(|_| hidden.is_some())) {
            remove = self.stop_observing(&server, &deaf).await.map_err(failed)?;
        }
        let mut scan = connect(&server).await.map_err(failed)?;
        // Behind it any of several servers may answer.
        let history = match &hidden {
            Some(_) => None,
            None => self.history_of_both(&mut remove, &mut scan).await?,
        };
        if history.is_none() {
            self.leave_index(observer.as_ref());
        }
        self.looks_right(&scan).await?;
        let wait = match self.redis.wait_replicas {
            0 => None,
            _ => Some(connect(&server).await.map_err(failed)?),
        };
        if let Some(primary) = self.council.as_ref().and_then(Council::primary) {
            tracing::info!(node = self.name, primary, "the Sentinels name this primary");
        }
        let all = [&remove, &scan].into_iter().chain(&wait).cloned().collect();
        self.renewal.replace(Renewal::begin(&self.redis, all));
        self.connections.replace(Some(Connections {
            remove,
            observer,
            scan,
            history,
            wait,
            hidden,
        }));
        Ok(())
    }

    async fn primaries(&self, scanned: &mut Scanned) -> Result<Vec<&Standalone>, Error> {
        Ok(scanned.once(self))
    }

    async fn keep_alive(&self) -> Result<(), Error> {
        let Connections { remove, scan, wait, .. } = self.connections()?;
        let pings = async {
            for mut connection in [remove, scan].into_iter().chain(wait) {
                let pong = cmd("PING").exec_async(&mut connection).await;
                pong.map_err(|error| classify(&error))?;
            }
            self.sort_in().await;
            self.drop_dead().await?;
            Box::pin(self.look_for_right()).await
        };
        let Some(council) = &self.council else {
            pings.await?;
            return match self.hidden() {
                Some(hidden) => Box::pin(self.is_back(&hidden)).await,
                None => Ok(()),
            };
        };
        Box::pin(council.look_during(pings)).await
    }

    fn away(&self) -> Option<String> {
        self.hidden()?.away()
    }

    fn is_unproven(&self) -> bool {
        self.hidden().is_some()
    }

    fn mark(&self) -> Option<Mark> {
        self.observed.as_ref().filter(|observed| observed.is_for_refills)?;
        self.observer().map(|observer| observer.mark())
    }

    fn index_patterns(&self) -> Vec<Pattern> {
        let index = self.observed.as_ref().and_then(|observed| observed.index.as_ref());
        index.map(|(patterns, _)| patterns.clone()).unwrap_or_default()
    }

    fn indexed(&self) -> Option<Indexed> {
        self.observer()?.indexed()
    }

    fn unobserved(&self) -> Option<String> {
        self.unobserved.borrow().as_ref().map(Unobserved::told)
    }

    fn wants_scan(&self) -> bool {
        self.observer().is_some_and(|observer| observer.wants_scan())
    }

    async fn watermark(&self) -> Result<Option<Vec<u8>>, Error> {
        let Connections { mut remove, hidden, .. } = self.connections()?;
        if hidden.is_some() {
            return Box::pin(self.watermark_behind(&mut remove)).await;
        }
        self.chain.replace(Some(Chain::begin()));
        let found = standing::read(&mut remove, &self.names().watermark).await;
        match found.map_err(|error| classify(&error)) {
            // Somebody else's value is no evidence, whatever its type. Removals go on; that nothing
            // can be confirmed is said when the watermark is to be written.
            Err(error) if error.kind() == Kind::WrongType => Ok(Some(Vec::new())),
            outcome => outcome,
        }
    }

    async fn replace_watermark(
        &self,
        expected: Option<&[u8]>,
        value: &[u8],
    ) -> Result<Replaced, Error> {
        let Connections { remove: connection, hidden, .. } = self.connections()?;
        if let Some(hidden) = hidden {
            return Box::pin(self.replace_behind(&hidden, expected, value)).await;
        }
        let number = match self.chain.borrow().as_ref() {
            Some(chain) if !chain.is_whole() => Err(()),
            Some(chain) => Ok(chain.standing()),
            None => Ok(None),
        };
        let replaced = match number {
            Ok(number) => self.compare_and_set(connection, number, expected, value).await?,
            Err(()) => return Err(self.count_again(connection).await?),
        };
        if let (Replaced::No(_), Some(observer)) = (&replaced, self.observer()) {
            // Another database may have come in the place of this one, with keys of its own.
            observer.lose();
        }
        Ok(replaced)
    }

    async fn details(&self, digest: &str) -> Result<Option<Vec<u8>>, Error> {
        let mut connection = self.connections()?.remove;
        let key = details_key(&self.names().watermark, digest);
        let found = standing::beginning(&mut connection, &key, DETAILS_SIZE_MAX).await;
        found.map_err(|error| self.class(&error))
    }

    async fn keep_details(&self, digest: &str, value: &[u8], for_good: bool) -> Result<(), Error> {
        let mut connection = self.connections()?.remove;
        let mut write = cmd("SET");
        write.arg(details_key(&self.names().watermark, digest)).arg(value);
        if !for_good {
            write.arg("EX").arg(DETAILS_TTL.as_secs());
        }
        write.exec_async(&mut connection).await.map_err(|error| self.class(&error))
    }

    async fn drop_details(&self, digest: &str) -> Result<(), Error> {
        let mut connection = self.connections()?.remove;
        let mut unlink = cmd("UNLINK");
        unlink.arg(details_key(&self.names().watermark, digest));
        unlink.exec_async(&mut connection).await.map_err(|error| self.class(&error))
    }

    async fn shared(&self, value: &[u8]) -> Result<(), Error> {
        if let Some(council) = &self.council {
            Box::pin(council.look_in_turn()).await?;
        }
        let Connections { wait, hidden, .. } = self.connections()?;
        let Some(mut connection) = wait else { return Ok(()) };
        if hidden.is_some() {
            let message = "WAIT tells of one of several servers alone".to_owned();
            return Err(Error::new(Kind::Replicas, message));
        }
        // WAIT is about the writes of its own connection, so it needs one. Written over itself, the
        // watermark also shows that this connection leads to the server with the removals.
        let standing = self.compare_and_set(connection.clone(), None, Some(value), value).await?;
        if standing != Replaced::Yes {
            let message = "two connections show different watermarks".to_owned();
            return Err(Error::Lost(message, Kind::Other));
        }
        let wanted = self.redis.wait_replicas;
        let mut wait = cmd("WAIT");
        wait.arg(wanted).arg(WAIT_MS);
        let reached: u32 =
            wait.query_async(&mut connection).await.map_err(|error| classify(&error))?;
        if reached < wanted {
            let message = format!(
                "the latest removals have reached {reached} of {}",
                counted(wanted, "replica")
            );
            return Err(Error::new(Kind::Replicas, message));
        }
        Ok(())
    }
}

/// Name of the key with the fingerprints of this digest, beside the watermark.
pub(in crate::sweep::redis) fn details_key(watermark_key: &str, digest: &str) -> String {
    format!("{watermark_key}:rules:{digest}")
}

/// The count of a reply to UNLINK; `None` where a right is missing, which is about these keys.
fn removed_count(reply: Value) -> Result<Option<u64>, Error> {
    match reply {
        Value::Int(count) => u64::try_from(count)
            .map(Some)
            .map_err(|_negative| Error::new(Kind::Other, "UNLINK gave a negative count".into())),
        Value::ServerError(error) => match classify(&error.into()) {
            error if error.kind() == Kind::NoPerm => Ok(None),
            error => Err(error),
        },
        _ => Err(Error::new(Kind::Other, "UNLINK gave an unexpected reply".to_owned())),
    }
}
