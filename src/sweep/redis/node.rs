//! Everything that a sweep asks of a Redis, and what can go wrong with it.

use std::time::Duration;

use super::act::{Act, Answer};
use super::cluster::Seen;
use super::connect::{FILE_HINT, SENTINELS_HINT};
use super::index::Indexed;
use super::observe::Mark;
use crate::keys::Pattern;

/// A literal, so that [`Error::hint`] can go on with it.
macro_rules! login_hint {
    () => {
        "see the user in `redis.url`, whether it is on (`acl list`), and the password: there, in \
         the file that `redis.password_file` names, or what `redis.password_command` prints when \
         it is run by hand"
    };
}

/// The cure of a login that is refused, whoever the user is.
pub const LOGIN_HINT: &str = login_hint!();

/// Whatever keys are removed from.
pub trait Removes {
    /// `UNLINK` of each group of keys in one round trip; how many keys of each group were there.
    /// `None` for a group of which the user may not remove some key, or whose primary is away: none
    /// of it is removed, or of a cluster some; the others are. With no group it counts as a removal
    /// that found nothing, for what another connection saw. An error of [`Kind::Swapped`] if the
    /// server lost a removal that was acknowledged since `connect`.
    fn unlink(
        &self,
        groups: &[Vec<&[u8]>],
    ) -> impl Future<Output = Result<Vec<Option<u64>>, Error>>;

    /// Runs commands about one key each, in one round trip. An error as with `unlink`.
    fn act(&self, _acts: &[Act<'_>]) -> impl Future<Output = Result<Vec<Answer>, Error>> {
        let message = "it has nothing inside of keys".to_owned();
        std::future::ready(Err(Error::Refused(message, Kind::Other)))
    }

    /// Whether a key is one of walsweep's own, which no member of a set may name.
    fn is_own(&self, _key: &[u8]) -> bool {
        false
    }

    /// Waits until every write that ran before the call is known to the marks, on the connection of
    /// `unlink`.
    fn fence(&self) -> impl Future<Output = Result<(), Error>> {
        std::future::ready(Ok(()))
    }
}

/// A server that SCAN looks through by itself.
pub trait Primary: Removes {
    /// Host and port.
    fn name(&self) -> &str;

    /// One `SCAN` call on a connection of its own. An error of [`Kind::Swapped`] if another server
    /// answers than at `connect`, which knows nothing of the cursor; so with `ping` and `fence`.
    fn scan(&self, call: &ScanCall<'_>) -> impl Future<Output = Result<Page, Error>>;

    /// The beginnings of all names that its index wants a SCAN to list; none if it wants no SCAN.
    fn wanted_prefixes(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// Names of its live keys that begin with `prefix`, and of some that are gone, in their order
    /// and behind `after`, at most so many; `None` if some may be missing. Of keys that were
    /// written before a [`fence`](Removes::fence), and patterns that the index is about.
    fn list(&self, _prefix: &[u8], _after: Option<&[u8]>, _most: usize) -> Option<Vec<Vec<u8>>> {
        None
    }

    /// A round trip that does nothing, on the connection of `scan`.
    fn ping(&self) -> impl Future<Output = Result<(), Error>>;

    /// How long all SCAN calls of all clients have held the server since some moment, as it counts
    /// itself; `None` if it does not tell. Goes back to zero when somebody resets it.
    fn scan_time(&self) -> impl Future<Output = Result<Option<Duration>, Error>> {
        std::future::ready(Ok(None))
    }
}

/// A Redis deployment: everything that a sweep asks of it. A second implementor is the seeded
/// simulation.
pub trait Node: Removes {
    /// A server of it that a pass looks through.
    type Primary<'a>: Primary
    where
        Self: 'a;

    /// Host and port, for logs and the `node` label.
    fn name(&self) -> &str;

    /// The name of its target, the `target` label.
    fn target(&self) -> &str {
        "redis"
    }

    /// The text that its keys begin with, before what the rules say.
    fn prefix(&self) -> &str {
        ""
    }

    /// How messages name its target: see [`Redis::title`](crate::config::Redis::title).
    fn title(&self) -> String {
        "redis".to_owned()
    }

    /// Whether removals are told on a channel.
    fn is_told(&self) -> bool {
        false
    }

    /// Tells a message on that channel.
    fn publish(&self, _message: &str) -> impl Future<Output = Result<(), Error>> {
        std::future::ready(Ok(()))
    }

    /// Connects, or connects again: whatever was connected before is dropped. Refuses a server
    /// that is not a primary.
    fn connect(&self) -> impl Future<Output = Result<(), Error>>;

    /// The servers that a pass looks through next, side by side: first all that have keys, and when
    /// these are through, those that keys have come to meanwhile. None when the pass is over.
    fn primaries(
        &self,
        scanned: &mut Scanned,
    ) -> impl Future<Output = Result<Vec<Self::Primary<'_>>, Error>>;

    /// A round trip that does nothing on every connection, so that a server which ends silent ones
    /// keeps them. An error of [`Kind::Swapped`] if Sentinels name another primary.
    fn keep_alive(&self) -> impl Future<Output = Result<(), Error>> {
        std::future::ready(Ok(()))
    }

    /// Which part of it is away while the rest is used, if one is. Its keys are refused until the
    /// next `connect`, to which an error of `keep_alive` calls when it is back; so does this, once
    /// it tells of none any more.
    fn away(&self) -> Option<String> {
        None
    }

    /// Whether nothing shows that it keeps every removal, whatever watermark stands there.
    fn is_unproven(&self) -> bool {
        false
    }

    /// This moment, if the keys that are written from now on are observed.
    fn mark(&self) -> Option<Mark> {
        None
    }

    /// The patterns whose live keys an index of it knows, once it is whole; none without one.
    fn index_patterns(&self) -> Vec<Pattern> {
        Vec::new()
    }

    /// How its index of live keys stands, if it has one.
    fn indexed(&self) -> Option<Indexed> {
        None
    }

    /// Why writes are not observed, if they are to be.
    fn unobserved(&self) -> Option<String> {
        None
    }

    /// Whether a SCAN would make its index whole.
    fn wants_scan(&self) -> bool {
        false
    }

    /// The watermark key's value.
    fn watermark(&self) -> impl Future<Output = Result<Option<Vec<u8>>, Error>>;

    /// Writes the watermark key if `expected` still stands there, in one step; and only if every
    /// removal that was acknowledged since `connect` is there, which is an error as with `unlink`.
    fn replace_watermark(
        &self,
        expected: Option<&[u8]>,
        value: &[u8],
    ) -> impl Future<Output = Result<Replaced, Error>>;

    /// The fingerprints under which a watermark was written that carries this digest, as they were
    /// stored; `None` if they are not there.
    fn details(&self, _digest: &str) -> impl Future<Output = Result<Option<Vec<u8>>, Error>> {
        std::future::ready(Ok(None))
    }

    /// Stores the fingerprints with this digest: for good, or for so long as a watermark takes to
    /// be written that carries it.
    fn keep_details(
        &self,
        _digest: &str,
        _value: &[u8],
        _for_good: bool,
    ) -> impl Future<Output = Result<(), Error>> {
        std::future::ready(Ok(()))
    }

    /// Removes the fingerprints with this digest, which no watermark carries any more.
    fn drop_details(&self, _digest: &str) -> impl Future<Output = Result<(), Error>> {
        std::future::ready(Ok(()))
    }

    /// Waits until the watermark `value`, which stands, and with it every removal before it is on
    /// as many replicas as the configuration asks for; by default none is. An error of
    /// [`Kind::Replicas`] if it is on fewer; of [`Kind::Swapped`] or [`Kind::Sentinel`] if
    /// Sentinels name another primary, or do not tell. Holds up nothing else that is asked.
    fn shared(&self, _value: &[u8]) -> impl Future<Output = Result<(), Error>> {
        std::future::ready(Ok(()))
    }
}

/// How far a pass has come.
#[derive(Debug, Default)]
pub struct Scanned {
    /// How often servers were asked for.
    pub(in crate::sweep) rounds: u32,
    /// The beginnings of all keys that it is about.
    pub(super) prefixes: Vec<Vec<u8>>,
    /// Of a cluster.
    pub(super) seen: Option<Seen>,
}

impl Scanned {
    /// Nothing yet, of keys that begin so.
    #[must_use]
    pub fn nothing(prefixes: Vec<Vec<u8>>) -> Scanned {
        Scanned { prefixes, ..Scanned::default() }
    }

    /// The servers of a deployment that is one server: that one, once.
    pub fn once<'a, P>(&mut self, only: &'a P) -> Vec<&'a P> {
        self.rounds += 1;
        if self.rounds == 1 { vec![only] } else { Vec::new() }
    }
}

impl<P: Removes> Removes for &P {
    async fn unlink(&self, groups: &[Vec<&[u8]>]) -> Result<Vec<Option<u64>>, Error> {
        P::unlink(self, groups).await
    }

    async fn fence(&self) -> Result<(), Error> {
        P::fence(self).await
    }

    async fn act(&self, acts: &[Act<'_>]) -> Result<Vec<Answer>, Error> {
        P::act(self, acts).await
    }

    fn is_own(&self, key: &[u8]) -> bool {
        P::is_own(self, key)
    }
}

impl<P: Primary> Primary for &P {
    fn name(&self) -> &str {
        P::name(self)
    }

    async fn scan(&self, call: &ScanCall<'_>) -> Result<Page, Error> {
        P::scan(self, call).await
    }

    fn wanted_prefixes(&self) -> Vec<Vec<u8>> {
        P::wanted_prefixes(self)
    }

    fn list(&self, prefix: &[u8], after: Option<&[u8]>, most: usize) -> Option<Vec<Vec<u8>>> {
        P::list(self, prefix, after, most)
    }

    async fn ping(&self) -> Result<(), Error> {
        P::ping(self).await
    }

    async fn scan_time(&self) -> Result<Option<Duration>, Error> {
        P::scan_time(self).await
    }
}

/// The arguments of a `SCAN` call (<https://redis.io/docs/latest/commands/scan/>).
#[derive(Clone, Copy, Debug)]
pub struct ScanCall<'a> {
    /// Where the last call ended; 0 to begin.
    pub cursor: u64,
    /// `COUNT`: about how many keys one call looks at.
    pub count: usize,
    /// `MATCH`, if every key that is asked for begins alike.
    pub pattern: Option<&'a [u8]>,
}

/// The reply to a `SCAN` call.
#[derive(Debug, Default)]
pub struct Page {
    /// Where to go on; 0 at the end.
    pub cursor: u64,
    /// Key names, not in any order; one may come twice.
    pub keys: Vec<Vec<u8>>,
}

/// The outcome of a compare-and-set.
#[derive(Debug, PartialEq, Eq)]
pub enum Replaced {
    /// The new value stands.
    Yes,
    /// Another value stood there, and stands.
    No(Option<Vec<u8>>),
}

/// The hint where a part of it is away.
pub(in crate::sweep) const PART_HINT: &str = "`redis-cli --cluster check` tells how the cluster \
    is, if `redis.mode` says that it is one; nothing is confirmed meanwhile";

/// Why Redis did not do what was asked. Nothing is confirmed; it is asked again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The connection is of no use any more: broken, timed out, or not to a primary that accepts
    /// commands. Connect again.
    #[error("{0}")]
    Lost(String, Kind),
    /// Redis answered with an error; the connection stands.
    #[error("{0}")]
    Refused(String, Kind),
    /// A part of it is away, which the text names; the connections to the others stand.
    #[error("{0}")]
    Away(String, Kind),
}

/// Classes of errors, the closed label set of `walsweep_redis_errors_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Connection refused, reset or ended.
    Io,
    /// No reply in time.
    Timeout,
    /// Wrong user or password.
    Auth,
    /// The ACL forbids the command or the key.
    NoPerm,
    /// The server is a replica.
    ReadOnly,
    /// The server is loading its data.
    Loading,
    /// The server is out of memory.
    Oom,
    /// The server is busy with a script.
    Busy,
    /// The server takes no writes because it could not save its data.
    Misconf,
    /// The server takes no writes because fewer replicas follow it than `min-replicas-to-write`.
    NoReplicas,
    /// Fewer replicas than `redis.wait_replicas` have the watermark.
    Replicas,
    /// The Sentinels name no primary, or too few of them answer to know that it is still that.
    Sentinel,
    /// The connection stands, and behind it is another server, or one that went back.
    Swapped,
    /// The slot of a key is with another primary of the cluster, or on its way, or nobody's.
    Slot,
    /// The key holds another type of value than it should.
    WrongType,
    /// The server does not have the command, or not as it has to be.
    Unsupported,
    /// Any other error reply.
    Other,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 17] = [
        Kind::Io,
        Kind::Timeout,
        Kind::Auth,
        Kind::NoPerm,
        Kind::ReadOnly,
        Kind::Loading,
        Kind::Oom,
        Kind::Busy,
        Kind::Misconf,
        Kind::NoReplicas,
        Kind::Replicas,
        Kind::Sentinel,
        Kind::Swapped,
        Kind::Slot,
        Kind::WrongType,
        Kind::Unsupported,
        Kind::Other,
    ];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Io => "io",
            Kind::Timeout => "timeout",
            Kind::Auth => "auth",
            Kind::NoPerm => "noperm",
            Kind::ReadOnly => "readonly",
            Kind::Loading => "loading",
            Kind::Oom => "oom",
            Kind::Busy => "busy",
            Kind::Misconf => "misconf",
            Kind::NoReplicas => "noreplicas",
            Kind::Replicas => "replicas",
            Kind::Sentinel => "sentinel",
            Kind::Swapped => "swapped",
            Kind::Slot => "slot",
            Kind::WrongType => "wrongtype",
            Kind::Unsupported => "unsupported",
            Kind::Other => "other",
        }
    }

    /// Whether another connection might fare better: the server behind the address may have
    /// changed, and whoever answers must show its watermark first.
    #[must_use]
    pub fn needs_reconnect(self) -> bool {
        match self {
            Kind::Io
            | Kind::Timeout
            | Kind::Auth
            | Kind::ReadOnly
            | Kind::Loading
            | Kind::Slot
            | Kind::Swapped => true,
            Kind::NoPerm
            | Kind::Oom
            | Kind::Busy
            | Kind::Misconf
            | Kind::NoReplicas
            | Kind::Replicas
            | Kind::Sentinel
            | Kind::WrongType
            | Kind::Unsupported
            | Kind::Other => false,
        }
    }
}

impl Error {
    /// An error of this kind, lost or refused as the kind says.
    #[must_use]
    pub fn new(kind: Kind, message: String) -> Error {
        if kind.needs_reconnect() {
            Error::Lost(message, kind)
        } else {
            Error::Refused(message, kind)
        }
    }

    /// The error's class.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Error::Lost(_, kind) | Error::Refused(_, kind) | Error::Away(_, kind) => *kind,
        }
    }

    fn message(&self) -> &str {
        match self {
            Error::Lost(message, _) | Error::Refused(message, _) | Error::Away(message, _) => {
                message
            }
        }
    }

    /// Says what an operator can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        if matches!(self, Error::Away(..)) {
            return Some(PART_HINT);
        }
        match self.kind() {
            Kind::NoPerm => Some(
                "`walsweep check` prints the `acl setuser` line with every right that rules need",
            ),
            Kind::Auth => Some(concat!(
                login_hint!(),
                "; `walsweep check` prints the `acl setuser` line that makes the user again"
            )),
            Kind::ReadOnly => Some(
                "let `redis.url` name the primary; where Sentinels do, they are asked again by \
                 itself",
            ),
            Kind::Oom => Some("the watermark key needs a few bytes; free memory in Redis"),
            Kind::Replicas => Some(
                "nothing is confirmed meanwhile: bring replicas back, or lower \
                 `redis.wait_replicas`",
            ),
            Kind::Sentinel => Some(SENTINELS_HINT),
            Kind::Swapped => Some(
                "keys whose removal may be lost are removed again; if it comes back every few \
                 seconds, another walsweep has the same `postgres.slot` name on this Redis: give \
                 one of them another name, or a `prefix`",
            ),
            Kind::Slot => Some(
                "it passes when the slot has arrived, or the primary that is away is back; if it \
                 lasts, `redis-cli --cluster check` tells what is wrong with the cluster",
            ),
            Kind::WrongType => Some(
                "a key named `walsweep:` and the slot's name is not ours: rename or remove it, or \
                 set `postgres.slot` to another name",
            ),
            Kind::Unsupported => Some(
                "`walsweep check` says what the server lacks, and what follows; docs/endpoint.md",
            ),
            Kind::Busy => Some("end the script that runs in Redis: `SCRIPT KILL`"),
            Kind::Misconf => Some(
                "let Redis save its data again (disk space, rights of its folder), or set \
                 `stop-writes-on-bgsave-error no`",
            ),
            Kind::NoReplicas => {
                Some("bring replicas back, or lower `min-replicas-to-write` in Redis")
            }
            Kind::Io if self.message().contains("certificate") => Some(
                "let `redis.ca_file` name the authority that signed the server's certificate, and \
                 `redis.url` the host that stands in it",
            ),
            Kind::Io | Kind::Timeout => Some("see that Redis runs, and that `redis.url` names it"),
            Kind::Other if self.message().starts_with("read `redis.") => Some(FILE_HINT),
            Kind::Loading | Kind::Other => None,
        }
    }
}
