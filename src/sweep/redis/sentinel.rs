//! Sentinels: which server is the primary of a service, and whether it still is
//! (<https://redis.io/docs/latest/develop/reference/sentinel-clients/>).
//!
//! All of them are asked, at once. Each names an address, and the `config-epoch` of the failover
//! that it has it from: most Sentinels have to vote for one, and each votes once for an epoch. So
//! the highest epoch is the latest failover, whatever those say who were not told of it. Where
//! epochs are equal, or not told, the voices are counted. The server itself is no witness: the old
//! primary of a split brain says `role:master` as the new one does.
//!
//! - *To connect*, one answer is enough; but not if half of them or less answer, and know less than
//!   was known before: they may be cut off, together with the old primary.
//! - *While connected*, they are asked every second, and before an LSN is confirmed. A later
//!   failover ends the connection; the watermark of the new primary shows what it lacks (I7). Where
//!   half of them or less answer, nobody knows whether there was one: keys are removed, and nothing
//!   is confirmed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, Value};
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use url::Url;

use super::connect::{ConnectError, classify, log_in};
use super::node::{Error, Kind};
use crate::config::{self, Mode, Sentinel, Sentinels};

/// How long all have for their answers. What they are asked takes them no time.
const ANSWER_MAX: Duration = Duration::from_millis(1_500);

/// How long the others have once more than half have answered.
const GRACE: Duration = Duration::from_millis(200);

/// The pause between two questions while something is waited for.
const AGAIN: Duration = Duration::from_secs(1);

/// Least time between two questions for the sake of a confirmation, which may come so much later.
const PAUSE: Duration = Duration::from_millis(250);

/// Where a server is, in a Sentinel's words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    /// An address without brackets, or a name.
    host: String,
    port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { host, port } = self;
        if host.contains(':') {
            write!(formatter, "[{host}]:{port}")
        } else {
            write!(formatter, "{host}:{port}")
        }
    }
}

/// A Sentinel's answer.
#[derive(Clone, Debug)]
enum Said {
    /// The primary is there.
    Named {
        address: Address,
        /// The `config-epoch`, if it tells.
        epoch: Option<u64>,
        /// How many Sentinels it knows of, itself included, if it tells.
        sentinels: Option<u64>,
    },
    /// It watches no service of this name.
    Unknown,
    /// It could not be asked.
    Failed(Kind, String),
    /// It has said nothing so far.
    Nothing,
}

impl Said {
    fn is_named(&self) -> bool {
        matches!(self, Said::Named { .. })
    }

    /// Whether it stays so until a person changes something.
    fn needs_a_person(&self) -> bool {
        matches!(self, Said::Unknown | Said::Failed(Kind::Auth | Kind::NoPerm, _))
    }
}

impl fmt::Display for Said {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Said::Named { address, epoch: Some(epoch), .. } => {
                write!(formatter, " names `{address}` (epoch {epoch})")
            }
            Said::Named { address, epoch: None, .. } => write!(formatter, " names `{address}`"),
            Said::Unknown => formatter.write_str(" knows no such service"),
            Said::Failed(_, why) => write!(formatter, ": {why}"),
            Said::Nothing => formatter.write_str(": no answer in time"),
        }
    }
}

/// The sense of all answers together.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// This is the primary.
    Primary {
        address: Address,
        /// Its epoch, if all tell theirs.
        epoch: Option<u64>,
        /// Whether more than half of all named a primary, whichever.
        is_of_most: bool,
        /// Whether more than half of all named this one.
        is_agreed: bool,
    },
    /// As many say one as say another.
    Disagree,
    /// Nobody named one.
    Nobody,
}

fn verdict(said: &[Said]) -> Verdict {
    let named = said.iter().filter_map(|one| match one {
        Said::Named { address, epoch, .. } => Some((address, *epoch)),
        Said::Unknown | Said::Failed(..) | Said::Nothing => None,
    });
    let mut named: Vec<(&Address, Option<u64>)> = named.collect();
    let is_of_most = named.len() * 2 > said.len();
    if named.iter().any(|(_, epoch)| epoch.is_none()) {
        named.iter_mut().for_each(|(_, epoch)| *epoch = None);
    }
    let Some(latest) = named.iter().map(|(_, epoch)| *epoch).max() else { return Verdict::Nobody };
    let mut voices: BTreeMap<&Address, usize> = BTreeMap::new();
    for (address, _) in named.iter().filter(|(_, epoch)| *epoch == latest) {
        *voices.entry(address).or_default() += 1;
    }
    let most = voices.values().max().copied();
    let mut first = voices.iter().filter(|(_, count)| Some(**count) == most);
    match (first.next(), first.next()) {
        (Some((address, _)), None) => {
            let address: Address = (*address).clone();
            let count = named.iter().filter(|(other, _)| **other == address).count();
            let is_agreed = count * 2 > said.len();
            Verdict::Primary { address, epoch: latest, is_of_most, is_agreed }
        }
        _ => Verdict::Disagree,
    }
}

/// The Sentinels of a service, as far as they are known and connected to.
pub(super) struct Council {
    /// The settings for servers, but for their address.
    redis: config::Redis,
    service: String,
    members: Vec<Member>,
    /// One asks at a time.
    asking: Mutex<()>,
    /// When they were asked last.
    asked: Cell<Option<Instant>>,
    /// The server that was named last to connect to, and its epoch.
    primary: RefCell<Option<Address>>,
    epoch: Cell<Option<u64>>,
    /// Why that one is to be left, once there was a failover.
    left: watch::Sender<Option<String>>,
}

impl Council {
    /// The Sentinels of a target, if it has some.
    #[must_use]
    pub(super) fn of(redis: &config::Redis) -> Option<Council> {
        let Mode::Sentinel(Sentinels { service, list }) = &redis.mode else { return None };
        Some(Council {
            redis: redis.clone(),
            service: service.clone(),
            members: list.iter().map(|sentinel| Member::new(redis, sentinel)).collect(),
            asking: Mutex::new(()),
            asked: Cell::new(None),
            primary: RefCell::new(None),
            epoch: Cell::new(None),
            left: watch::Sender::new(None),
        })
    }

    /// Settings to connect to the server that is the primary now.
    ///
    /// # Errors
    ///
    /// Nobody names it, or those who do are not to be believed.
    pub(super) async fn server(&self) -> Result<config::Redis, ConnectError> {
        let said = self.ask().await;
        let failed = |note: &str, is_lasting| ConnectError::Sentinels {
            service: self.service.clone(),
            said: format!("{note}{}", self.told(&said)),
            is_lasting,
        };
        let (address, epoch, is_of_most) = match verdict(&said) {
            Verdict::Primary { address, epoch, is_of_most, .. } => (address, epoch, is_of_most),
            Verdict::Disagree => return Err(failed("they do not agree: ", false)),
            Verdict::Nobody => {
                return Err(failed("", said.iter().all(Said::needs_a_person)));
            }
        };
        if !is_of_most && epoch < self.epoch.get() {
            return Err(failed("those who answer have not heard of the last failover: ", false));
        }
        let Some(server) = at(&self.redis, &address) else {
            return Err(failed("that is no address: ", false));
        };
        self.primary.replace(Some(address));
        self.epoch.set(epoch);
        self.left.send_replace(None);
        Ok(server)
    }

    /// The error of a connection to a server that was named, with the service.
    pub(super) fn of_service(&self, error: ConnectError) -> ConnectError {
        match error {
            ConnectError::Redis { address, error, .. } => {
                ConnectError::Redis { address, service: Some(self.service.clone()), error }
            }
            other => other,
        }
    }

    /// Holds the server that was connected to against what the Sentinels say now.
    ///
    /// # Errors
    ///
    /// [`Kind::Swapped`] if there was a failover, [`Kind::Sentinel`] if nobody knows.
    pub(super) async fn look(&self) -> Result<(), Error> {
        let Some(primary) = self.primary.borrow().clone() else { return Ok(()) };
        let said = self.ask().await;
        let service = &self.service;
        if let Verdict::Primary { address, epoch, is_of_most, is_agreed } = verdict(&said) {
            if address != primary && (is_of_most || epoch > self.epoch.get()) {
                let message = format!(
                    "the Sentinels name `{address}` the primary of `{service}`, not `{primary}` \
                     any more"
                );
                self.left.send_replace(Some(message.clone()));
                return Err(Error::new(Kind::Swapped, message));
            }
            if is_agreed {
                self.epoch.set(epoch);
                return Ok(());
            }
            // After a failover the others soon hear of it; one that is of another service of the
            // same name is not one of them.
            if is_of_most {
                let message = format!(
                    "most Sentinels name another primary of `{service}` than `{primary}`, which \
                     has the latest failover: {}",
                    self.told(&said)
                );
                return Err(Error::new(Kind::Sentinel, message));
            }
        }
        let message = format!(
            "nobody knows whether `{primary}` is still the primary of `{service}`: {}",
            self.told(&said)
        );
        Err(Error::new(Kind::Sentinel, message))
    }

    /// Looks as [`Council::look`] does, now or a little later.
    pub(super) async fn look_in_turn(&self) -> Result<(), Error> {
        if let Some(asked) = self.asked.get() {
            sleep_until(asked + PAUSE).await;
        }
        self.look().await
    }

    /// Looks as [`Council::look`] does, again and again until the work is done. That nobody knows
    /// is no error.
    pub(super) async fn look_during(
        &self,
        work: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Error> {
        let done = Notify::new();
        let work = async {
            let outcome = work.await;
            done.notify_one();
            outcome
        };
        let looks = async {
            loop {
                if let Err(error @ Error::Lost(..)) = self.look().await {
                    return Err(error);
                }
                tokio::select! {
                    () = done.notified() => return Ok(()),
                    () = sleep(AGAIN) => {}
                }
            }
        };
        tokio::try_join!(work, looks).map(drop)
    }

    /// Does the work, unless a look finds meanwhile that there was a failover: an old primary that
    /// hangs would be waited for.
    pub(super) async fn unless_left<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut left = self.left.subscribe();
        tokio::select! {
            biased;
            outcome = work => outcome,
            Ok(why) = left.wait_for(Option::is_some) => {
                Err(Error::new(Kind::Swapped, why.clone().unwrap_or_default()))
            }
        }
    }

    /// The server that was named last to connect to.
    pub(super) fn primary(&self) -> Option<String> {
        self.primary.borrow().as_ref().map(ToString::to_string)
    }

    async fn ask(&self) -> Vec<Said> {
        let _one_at_a_time = self.asking.lock().await;
        let began = Instant::now();
        self.asked.set(Some(began));
        let mut until = began + ANSWER_MAX;
        let mut said = vec![Said::Nothing; self.members.len()];
        let all = self.members.iter().zip(&mut said).map(|(member, said)| async move {
            *said = member.ask(&self.service).await;
            said.is_named()
        });
        let (mut asked, mut named) = (all.collect::<FuturesUnordered<_>>(), 0);
        while let Ok(Some(is_named)) = timeout_at(until, asked.next()).await {
            named += usize::from(is_named);
            if named * 2 > self.members.len() {
                until = until.min(Instant::now() + GRACE);
            }
        }
        drop(asked);
        said
    }

    fn told(&self, said: &[Said]) -> String {
        let each = self.members.iter().zip(said);
        let each = each.map(|(member, said)| format!("`{}`{said}", member.name));
        each.collect::<Vec<_>>().join("; ")
    }
}

/// One Sentinel.
struct Member {
    /// Host and port.
    name: String,
    settings: config::Redis,
    /// The connection that it was asked on before, while it is not being asked.
    standing: RefCell<Option<MultiplexedConnection>>,
}

impl Member {
    fn new(redis: &config::Redis, sentinel: &Sentinel) -> Member {
        Member {
            name: sentinel.address(),
            settings: config::Redis {
                mode: Mode::Standalone,
                url: sentinel.url.clone(),
                password: sentinel.password.clone(),
                ..redis.clone()
            },
            standing: RefCell::new(None),
        }
    }

    async fn ask(&self, service: &str) -> Said {
        // Taken out: one that falls silent, so that this is given up, is not asked a second time.
        if let Some(mut connection) = self.standing.take()
            && let Ok(said) = question(&mut connection, service).await
        {
            self.standing.replace(Some(connection));
            return said;
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_MAX))
            .set_response_timeout(Some(ANSWER_MAX));
        let outcome = match log_in(&self.settings, None, &config).await {
            Ok(mut connection) => {
                let outcome = question(&mut connection, service).await;
                self.standing.replace(Some(connection).filter(|_| outcome.is_ok()));
                outcome
            }
            Err(ConnectError::Redis { error, .. }) => Err(error),
            Err(other) => Err(other.into()),
        };
        outcome.unwrap_or_else(|error| match error.kind() {
            Kind::Timeout => Said::Nothing,
            kind => Said::Failed(kind, error.to_string()),
        })
    }
}

/// Asks a Sentinel (<https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/>). The
/// address of `MASTER` is the old one until the failover is over, that of the other command is the
/// new one as soon as there is one; not everybody may ask for the epoch.
async fn question(connection: &mut MultiplexedConnection, service: &str) -> Result<Said, Error> {
    let mut pipeline = Pipeline::with_capacity(2);
    pipeline.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(service);
    pipeline.cmd("SENTINEL").arg("MASTER").arg(service);
    let replies = connection.send_packed_commands(&pipeline, 0, 2).await;
    let replies = replies.map_err(|error| classify(&error))?;
    let Ok([address, facts]) = <[Value; 2]>::try_from(replies) else {
        return Err(Error::new(Kind::Io, "not two replies to two commands".to_owned()));
    };
    Ok(answer(address, facts))
}

fn answer(address: Value, facts: Value) -> Said {
    let address = match address {
        Value::Nil => return Said::Unknown,
        Value::ServerError(error) => {
            let is_other = error.details().is_some_and(|detail| detail.contains("unknown command"));
            let error = classify(&error.into());
            let why =
                if is_other { "is a Redis, no Sentinel".to_owned() } else { error.to_string() };
            return Said::Failed(error.kind(), why);
        }
        other => other,
    };
    let Ok((host, port)) = redis::from_redis_value::<(String, u16)>(address) else {
        return Said::Failed(Kind::Other, "gave an unexpected reply".to_owned());
    };
    let facts: HashMap<String, String> = redis::from_redis_value(facts).unwrap_or_default();
    let number = |name: &str| facts.get(name)?.parse::<u64>().ok();
    Said::Named {
        address: Address { host, port },
        epoch: number("config-epoch"),
        sentinels: number("num-other-sentinels").map(|others| others + 1),
    }
}

/// The settings with this address; `None` where it is none.
fn at(redis: &config::Redis, address: &Address) -> Option<config::Redis> {
    let Address { host, port } = address;
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let mut url = Url::parse(&redis.url).ok()?;
    url.set_host(Some(&host)).ok()?;
    url.set_port(Some(*port)).ok()?;
    Some(config::Redis { mode: Mode::Standalone, url: url.to_string(), ..redis.clone() })
}

/// The answers of the Sentinels of a target, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The service.
    pub service: String,
    /// The server that is its primary, if they agree on one.
    pub primary: Option<String>,
    /// How many of them name this one.
    pub agreed: usize,
    /// How many of them name one at all.
    pub named: usize,
    /// Whether all of those tell the epoch.
    pub epochs: bool,
    /// How many the configuration lists.
    pub listed: usize,
    /// How many there are, as they say themselves; at least those that are listed.
    pub known: usize,
    /// The answer of each.
    pub said: String,
}

/// Asks the Sentinels of a target; `None` if it has none.
pub async fn survey(redis: &config::Redis) -> Option<Survey> {
    let council = Council::of(redis)?;
    let said = council.ask().await;
    let primary = match verdict(&said) {
        Verdict::Primary { address, .. } => Some(address),
        Verdict::Disagree | Verdict::Nobody => None,
    };
    let (mut agreed, listed, mut named, mut epochs) = (0, said.len(), 0, true);
    let mut known = listed;
    for one in &said {
        if let Said::Named { address, sentinels, epoch } = one {
            named += 1;
            epochs &= epoch.is_some();
            agreed += usize::from(Some(address) == primary.as_ref());
            let all = sentinels.and_then(|all| usize::try_from(all).ok());
            known = known.max(all.unwrap_or_default());
        }
    }
    Some(Survey {
        service: council.service.clone(),
        primary: primary.map(|address| address.to_string()),
        agreed,
        named,
        epochs,
        listed,
        known,
        said: council.told(&said),
    })
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::{Address, Said, Verdict, answer, at, verdict};
    use crate::config;
    use crate::sweep::Kind;

    fn address(port: u16) -> Address {
        Address { host: "h".to_owned(), port }
    }

    fn named(port: u16, epoch: Option<u64>) -> Said {
        Said::Named { address: address(port), epoch, sentinels: None }
    }

    #[test]
    fn the_latest_failover_counts_and_not_the_number_of_those_who_missed_it() {
        let away = || Said::Nothing;
        let agreed = |port, epoch, is_of_most, is_agreed| {
            Some(Verdict::Primary { address: address(port), epoch, is_of_most, is_agreed })
        };
        let primary = |port, epoch, is_of_most| agreed(port, epoch, is_of_most, is_of_most);
        for (said, expected) in [
            (vec![named(1, Some(3)); 3], primary(1, Some(3), true)),
            (vec![named(1, Some(3)), named(1, Some(3)), named(2, Some(4))], {
                agreed(2, Some(4), true, false)
            }),
            (vec![named(1, Some(3)), away(), Said::Unknown], primary(1, Some(3), false)),
            (vec![named(1, Some(3)), away()], primary(1, Some(3), false)),
            (vec![named(2, Some(4)), named(1, Some(3)), away()], {
                agreed(2, Some(4), true, false)
            }),
            (vec![named(1, Some(0)), named(2, Some(0)), named(2, Some(0))], {
                primary(2, Some(0), true)
            }),
            (vec![named(1, Some(0)), named(2, Some(0))], Some(Verdict::Disagree)),
            (vec![named(1, None), named(2, None)], Some(Verdict::Disagree)),
            // Who tells no epoch may know more than who does.
            (vec![named(1, Some(9)), named(2, None), named(2, None)], primary(2, None, true)),
            (vec![away(), Said::Failed(Kind::Io, String::new())], Some(Verdict::Nobody)),
            (vec![], Some(Verdict::Nobody)),
        ] {
            assert_eq!(Some(verdict(&said)), expected, "{said:?}");
        }
    }

    #[test]
    fn answers_are_read() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let there = || Value::Array(vec![text("::1"), text("6379")]);
        let facts = ["name", "cache", "config-epoch", "7", "num-other-sentinels", "2"].map(text);
        let told = answer(there(), Value::Array(facts.into()));
        assert_eq!(told.to_string(), " names `[::1]:6379` (epoch 7)");
        assert!(matches!(told, Said::Named { sentinels: Some(3), .. }), "{told:?}");
        let told = answer(there(), Value::Nil);
        assert_eq!(told.to_string(), " names `[::1]:6379`");
        assert_eq!(answer(Value::Nil, Value::Nil).to_string(), " knows no such service");
        let told = answer(Value::Array(vec![text("h")]), Value::Nil);
        assert_eq!(told.to_string(), ": gave an unexpected reply");
    }

    #[test]
    fn a_server_has_the_login_and_the_database_of_the_service() {
        let redis = config::Redis::at("rediss://u@cache/2?protocol=resp3");
        for (host, url) in [
            ("10.0.0.1", "rediss://u@10.0.0.1:7/2?protocol=resp3"),
            ("::1", "rediss://u@[::1]:7/2?protocol=resp3"),
            ("redis-1.example", "rediss://u@redis-1.example:7/2?protocol=resp3"),
        ] {
            let address = Address { host: host.to_owned(), port: 7 };
            assert_eq!(at(&redis, &address).unwrap().url, url);
        }
        let address = Address { host: "a b".to_owned(), port: 7 };
        assert!(at(&redis, &address).is_none());
    }
}
