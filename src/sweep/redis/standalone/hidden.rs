//! An endpoint that proves nothing, because its keys are on several servers or it runs no scripts:
//! see [`endpoint`].
//!
//! Each key goes by a command of its own, so that a server that is away holds up its own keys
//! alone; when it is back, it may lack removals, and the connection is made again, with which
//! everything is swept. Its cursors are taken for texts. The first pass shows whether SCAN gives
//! the keys of all servers: else keys that patterns match would stay, and nobody would know.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashSet};

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError, Value, cmd, from_redis_value};

use super::Standalone;
use super::counted::COMPARE_AND_SET;
use crate::sweep::redis::act::Answer;
use crate::sweep::redis::connect::classify;
use crate::sweep::redis::endpoint::{self, Endpoint};
use crate::sweep::redis::node::{Error, Kind, Page, Replaced, ScanCall};
use crate::sweep::redis::standing::{self, WATERMARK_SIZE_MAX};

/// Keys of servers that are away, of which each is tried until it can be removed.
const SAMPLES_MAX: usize = 16;

/// The state of a connection to such an endpoint.
pub(super) struct Hidden {
    endpoint: Endpoint,
    /// The latest error of a server behind it, if one is away.
    away: RefCell<Option<String>>,
    /// Names of keys that could not be removed for it.
    samples: RefCell<BTreeSet<Vec<u8>>>,
    /// Whether the last SCAN failed.
    is_scan_away: Cell<bool>,
    /// The cursor that the last page came with, and the number that stands for it.
    cursor: RefCell<(u64, Vec<u8>)>,
    /// Keys that the pass that runs has not shown yet; none where that is known.
    unseen: RefCell<Option<HashSet<Vec<u8>>>>,
}

impl Hidden {
    pub(super) fn new(endpoint: Endpoint) -> Hidden {
        Hidden {
            endpoint,
            away: RefCell::new(None),
            samples: RefCell::default(),
            is_scan_away: Cell::new(false),
            cursor: RefCell::default(),
            unseen: RefCell::new(None),
        }
    }

    /// Says that a server behind the endpoint is away, if one is.
    pub(super) fn away(&self) -> Option<String> {
        self.away.borrow().clone()
    }

    fn misses(&self, error: &Error) {
        self.away.borrow_mut().get_or_insert_with(|| format!("a server behind it: {error}"));
    }

    /// The outcome of the removal of one key: `None` if it has to wait.
    fn removed(&self, name: &[u8], reply: Value) -> Result<Option<u64>, Error> {
        let error = match reply {
            Value::ServerError(error) => classify(&error.into()),
            reply => return super::removed_count(reply),
        };
        match error.kind() {
            Kind::NoPerm => Ok(None),
            kind if is_of_connection(kind) => Err(error),
            _ => {
                self.waits(name, &error);
                Ok(None)
            }
        }
    }

    /// The answer to a command about one key, whose server may be away: then it has to wait.
    pub(super) fn answered(
        &self,
        name: &[u8],
        answer: Result<Answer, Error>,
    ) -> Result<Answer, Error> {
        match answer {
            Err(error) if !is_of_connection(error.kind()) => {
                self.waits(name, &error);
                Ok(Answer::Forbidden)
            }
            answer => answer,
        }
    }

    /// A key has to wait for its server.
    fn waits(&self, name: &[u8], error: &Error) {
        self.misses(error);
        let mut samples = self.samples.borrow_mut();
        if samples.len() < SAMPLES_MAX {
            samples.insert(name.to_vec());
        }
    }

    /// Why there is no page: there never is one, or a server is away.
    fn no_page(&self, error: &RedisError) -> Error {
        let error = of_one(error);
        if matches!(error, Error::Refused(..))
            && !matches!(error.kind(), Kind::NoPerm | Kind::Unsupported)
        {
            self.misses(&error);
            self.is_scan_away.set(true);
        }
        error
    }

    /// Remembers the cursor of a page; gives the number that stands for it.
    fn keep(&self, cursor: Vec<u8>) -> u64 {
        if cursor == b"0" {
            return 0;
        }
        let mut last = self.cursor.borrow_mut();
        *last = (last.0 + 1, cursor);
        last.0
    }

    /// The cursor that this number stands for.
    fn cursor(&self, number: u64) -> Result<Vec<u8>, Error> {
        let last = self.cursor.borrow();
        match number {
            0 => Ok(b"0".to_vec()),
            number if number == last.0 => Ok(last.1.clone()),
            _ => Err(Error::new(Kind::Other, "the cursor is of another pass".to_owned())),
        }
    }
}

/// Whether an error is about the connection itself, or says that keys of several slots are in one
/// command, and not about one of the servers.
fn is_of_connection(kind: Kind) -> bool {
    matches!(kind, Kind::Auth | Kind::Io | Kind::Timeout | Kind::Swapped)
}

impl Standalone {
    /// Finds out what answers on a new connection.
    pub(super) async fn look_behind(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<Option<Hidden>, Error> {
        if self.is_shard || self.council.is_some() {
            return Ok(None);
        }
        let watermark = self.names().watermark;
        let endpoint = endpoint::look_at(connection, &watermark).await?;
        if endpoint.is_proven() {
            return Ok(None);
        }
        if self.told.replace(Some(endpoint)) != Some(endpoint) {
            let title = self.redis.title();
            tracing::warn!(
                node = self.name,
                why = endpoint.told(),
                hint = "where it is a cluster that tells its nodes, write `mode = \"cluster\"`; \
                        else let `redis.url` name the server itself; docs/endpoint.md says what \
                        holds there",
                "nothing shows that {title} keeps every removal: everything is swept at every \
                 start and for every new connection"
            );
        }
        if !self.shows_all.get() {
            endpoint::mark(connection, &watermark).await.map_err(|error| classify(&error))?;
        }
        Ok(Some(Hidden::new(endpoint)))
    }

    /// Removes keys, each by a command of its own.
    pub(super) async fn unlink_apart(
        &self,
        hidden: &Hidden,
        groups: &[Vec<&[u8]>],
    ) -> Result<Vec<Option<u64>>, Error> {
        let names: Vec<_> = groups.iter().flatten().map(|key| self.prefix.add(key)).collect();
        let mut pipeline = Pipeline::with_capacity(names.len());
        for name in &names {
            pipeline.cmd("UNLINK").arg(&**name);
        }
        let replies = self.send_linked(pipeline, names.len()).await?;
        let each = names.iter().zip(replies).map(|(name, reply)| hidden.removed(name, reply));
        let mut each = each.collect::<Result<Vec<Option<u64>>, Error>>()?.into_iter();
        // All of a group are taken: the next one begins behind them.
        let counts = groups.iter().map(|group| {
            let counts: Vec<Option<u64>> = each.by_ref().take(group.len()).collect();
            counts.into_iter().sum()
        });
        Ok(counts.collect())
    }

    /// One page of names.
    pub(super) async fn scan_behind(
        &self,
        hidden: &Hidden,
        call: &ScanCall<'_>,
    ) -> Result<Page, Error> {
        let mut connection = self.connections()?.scan;
        if call.cursor == 0 {
            let marks = endpoint::marks(&self.names().watermark).into_iter();
            let marks = (!self.shows_all.get()).then(|| marks.map(String::into_bytes).collect());
            hidden.unseen.replace(marks);
        }
        let mut scan = cmd("SCAN");
        scan.arg(hidden.cursor(call.cursor)?);
        // Until it is known that all servers are looked through, own keys have to be seen.
        let pattern = if self.shows_all.get() { self.prefix.pattern(call.pattern) } else { None };
        if let Some(pattern) = pattern {
            scan.arg("MATCH").arg(&*pattern);
        }
        scan.arg("COUNT").arg(call.count);
        let page: Value = match scan.query_async(&mut connection).await {
            Ok(page) => page,
            Err(error) => return Err(hidden.no_page(&error)),
        };
        let (cursor, mut names): (Vec<u8>, Vec<Vec<u8>>) = from_redis_value(page)
            .map_err(|_other| Error::new(Kind::Other, "SCAN gave an unexpected reply".into()))?;
        hidden.is_scan_away.set(false);
        if let Some(unseen) = &mut *hidden.unseen.borrow_mut() {
            for name in &names {
                unseen.remove(name);
            }
        }
        let cursor = hidden.keep(cursor);
        if cursor == 0 {
            self.has_shown(hidden, connection).await?;
        }
        names.retain(|name| !self.own.has(name));
        let keys = names.into_iter().filter_map(|name| self.prefix.take(name)).collect();
        Ok(Page { cursor, keys })
    }

    /// A pass is through: an error if it has not shown keys that are there.
    async fn has_shown(
        &self,
        hidden: &Hidden,
        mut connection: MultiplexedConnection,
    ) -> Result<(), Error> {
        let Some(unseen) = hidden.unseen.take() else { return Ok(()) };
        let unseen = unseen.into_iter().filter_map(|name| String::from_utf8(name).ok());
        let unseen: Vec<String> = unseen.collect();
        let missed = endpoint::count_there(&mut connection, &unseen).await;
        let missed = missed.map_err(|error| of_one(&error))?;
        if missed > 0 {
            let of = endpoint::MARKS;
            let message = format!("SCAN shows {missed} of {of} keys not, which are there");
            return Err(Error::new(Kind::Unsupported, message));
        }
        self.shows_all.set(true);
        Ok(())
    }

    /// An error if servers were away, and all of them are back: whatever they lost is swept with
    /// the next connection.
    pub(super) async fn is_back(&self, hidden: &Hidden) -> Result<(), Error> {
        if hidden.away().is_none() || hidden.is_scan_away.get() {
            return Ok(());
        }
        let mut connection = self.connections()?.remove;
        let samples: Vec<Vec<u8>> = hidden.samples.borrow().iter().cloned().collect();
        let replies = endpoint::send_each(&mut connection, "UNLINK", &samples).await;
        let replies = replies.map_err(|error| classify(&error))?;
        if replies.iter().any(|reply| matches!(reply, Value::ServerError(_))) {
            return Ok(());
        }
        let message = "a server that was away is back".to_owned();
        Err(Error::Lost(message, Kind::Swapped))
    }

    /// The class of an error of a command that has one key.
    pub(super) fn class(&self, error: &RedisError) -> Error {
        if self.hidden().is_some() { of_one(error) } else { classify(error) }
    }

    /// The value under the watermark's name. What cannot be read is not there: it is no evidence in
    /// any case.
    pub(super) async fn watermark_behind(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<Option<Vec<u8>>, Error> {
        let found = standing::read(connection, &self.names().watermark).await;
        match found.map_err(|error| of_one(&error)) {
            Err(error) if error.kind() == Kind::WrongType => Ok(Some(Vec::new())),
            Err(Error::Refused(..)) => Ok(None),
            outcome => outcome,
        }
    }

    /// Writes the watermark, which says of itself that it is no evidence, where the value stands
    /// that is expected; in two steps where there are no scripts.
    pub(super) async fn replace_behind(
        &self,
        hidden: &Hidden,
        expected: Option<&[u8]>,
        value: &[u8],
    ) -> Result<Replaced, Error> {
        let mut connection = self.connections()?.remove;
        let key = self.names().watermark;
        if hidden.endpoint.has_scripts {
            let mut eval = cmd("EVAL");
            eval.arg(COMPARE_AND_SET).arg(1).arg(key);
            eval.arg(u8::from(expected.is_some())).arg(expected.unwrap_or_default()).arg(value);
            eval.arg("").arg(WATERMARK_SIZE_MAX);
            let reply = eval.query_async(&mut connection).await;
            return super::counted::replaced(reply.map_err(|error| of_one(&error))?);
        }
        let found = standing::read(&mut connection, &key).await;
        let found = found.map_err(|error| of_one(&error))?;
        if found.as_deref() != expected {
            return Ok(Replaced::No(found));
        }
        let mut set = cmd("SET");
        set.arg(key).arg(value);
        set.exec_async(&mut connection).await.map_err(|error| of_one(&error))?;
        Ok(Replaced::Yes)
    }
}

/// The class of an error that one of several servers gives: the connection to them stands.
fn of_one(error: &RedisError) -> Error {
    match classify(error) {
        Error::Lost(message, kind @ (Kind::ReadOnly | Kind::Loading | Kind::Slot)) => {
            Error::Refused(message, kind)
        }
        class => class,
    }
}

#[cfg(test)]
mod tests {
    use super::{Endpoint, Hidden, SAMPLES_MAX, Value};
    use redis::parse_redis_value;

    /// A cursor may be any text, and is of the pass that got it last.
    #[test]
    fn a_number_stands_for_the_last_cursor_alone() {
        let hidden = Hidden::new(Endpoint::default());
        let first = hidden.keep(b"of the first".to_vec());
        assert_eq!(hidden.cursor(first).unwrap(), b"of the first");
        assert_eq!(hidden.cursor(0).unwrap(), b"0");
        let second = hidden.keep(b"of the second".to_vec());
        assert!(hidden.cursor(first).is_err(), "another pass has begun since");
        assert_eq!(hidden.cursor(second).unwrap(), b"of the second");
        assert_eq!(hidden.keep(b"0".to_vec()), 0);
    }

    /// Of all keys that wait, some show whether their servers are back.
    #[test]
    fn few_names_are_kept_of_many_that_wait() {
        let hidden = Hidden::new(Endpoint::default());
        let gone: Value = parse_redis_value(b"-UPSTREAM no server\r\n").unwrap();
        for number in 0..1_000 {
            let name = format!("item:{number}");
            assert_eq!(hidden.removed(name.as_bytes(), gone.clone()).unwrap(), None);
        }
        assert_eq!(hidden.samples.borrow().len(), SAMPLES_MAX);
        assert!(hidden.away().unwrap().contains("UPSTREAM"));
    }
}
