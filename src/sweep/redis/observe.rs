//! Which keys were written since a moment, so that a second removal takes only those (I8).
//!
//! `CLIENT TRACKING on BCAST` lets Redis push the name of every key that is written, removed or
//! expires. The names are kept here while somebody may ask for them.
//!
//! Why it is enough. Let a key be removed at `u`, and a late fill write it at `t`, before the
//! window ends at `e`. A [`Mark`] is taken before the UNLINK, or the pass, is sent, so before `u`:
//! if `t` is before `u` the UNLINK takes it (a pass: or the name comes after the mark, too). If
//! not, the name comes after the mark and is kept. At `e` a *fence* waits until every name of a
//! write before it has come; what is written later is later than the window. So the kept names
//! hold the key, and it is removed again. A pattern needs no second pass: the names are matched
//! against it, and a fill into a bucket that SCAN was through with is among them.
//!
//! The fence is two PINGs, the second sent when the first is answered. Redis queues names while it
//! runs commands and sends them when it is through with all that were readable: the answer to one
//! PING may overtake the name of a write that ran before it. A second one runs in a later turn
//! (`trackingBroadcastInvalidationMessages` in Redis's `beforeSleep`).
//!
//! Our own UNLINKs go over the tracking connection with NOLOOP, so that they are not pushed: Redis
//! leaves a name out only if the connection itself was the *last* to touch the key in that turn,
//! when the key is gone. (Not so where something is taken out of a key that lives on: there our own
//! writes are told, too.) Counting them off instead would be wrong: Redis tells an UNLINK and a SET
//! of one turn as one.
//!
//! Where there is an [`index`](super::index), it hears of each write from here.
//!
//! Doubt removes: a lost connection, a flush (told without names), and more names than the memory
//! limit make every earlier mark worthless, and its second removal takes all keys (I6). The number
//! of the database is not told; a name from another one costs an UNLINK of nothing.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::index::{Index, Indexed};
use super::own::Own;
use super::pass::Pass;
use super::prefix::Prefix;
use crate::config;
use crate::keys::{KeySet, Pattern};

/// Names are not looked through for old ones below this, bytes.
const PRUNE_BYTES_MIN: usize = 64 * 1024;

/// The cost of a name beside its bytes: its entry and its slot in a half-full table.
const NAME_COST: usize = 64;

/// Prefixes in one `CLIENT TRACKING`: every write in Redis is compared with each of them.
const PREFIXES_MAX: usize = 32;

/// Names that are sorted into the index in one turn; each takes some microseconds. About as many
/// come in one: see [`hear`](super::tracking::hear).
const SORTED_AT_ONCE: usize = 256;

/// The name of a key.
pub type Name = Arc<[u8]>;

/// Keeps the names of written keys. Clones are one.
#[derive(Clone)]
pub struct Observer(Arc<Mutex<Names>>);

/// A moment from which on names are kept, as long as it lives. Clones are one.
#[derive(Clone)]
pub struct Mark {
    observer: Observer,
    at: u64,
    _open: Arc<()>,
}

struct Names {
    filter: Filter,
    /// Memory of names, bytes. Those that nobody asks for any more are dropped when the total has
    /// doubled, or reaches this; names are lost if three quarters of it are left then.
    bytes_max: usize,
    /// Counts names and losses.
    clock: u64,
    /// Marks up to here know nothing.
    lost: Option<u64>,
    closed: bool,
    /// Each name with the clock of its latest write.
    written: HashMap<Name, u64>,
    bytes: usize,
    prune_at: usize,
    /// Marks, the oldest first.
    marks: VecDeque<(u64, Weak<()>)>,
    /// The names of all live keys, if they are kept; of keys that the filter lets through.
    index: Option<Index>,
}

/// The keys that rules could give. A prefix lets through more than that.
struct Filter {
    keys: KeySet,
    patterns: Pass,
    /// Walsweep's own keys are never removed, whatever a pattern says.
    own: Own,
}

impl Filter {
    fn wants(&self, key: &[u8]) -> bool {
        let is_given = self.keys.exact_rule(key).is_some() || self.patterns.find(key).is_some();
        is_given && !self.own.has(key)
    }
}

impl Observer {
    /// An observer for a target, and changes of a slot: of the keys that a set gives, in so many
    /// bytes of names. With an `index` it also keeps the names of all live keys that these patterns
    /// match, all of them among those keys, in so many bytes.
    #[must_use]
    pub fn new(
        (redis, slot): (&config::Redis, &str),
        (keys, bytes_max): (&KeySet, usize),
        index: Option<(Vec<Pattern>, usize)>,
    ) -> Observer {
        let own = Own::of(redis, slot).within(&Prefix::of(redis));
        let patterns = keys.patterns().map(|(_, pattern)| pattern.clone()).collect();
        let index = index.map(|(patterns, bytes)| Index::new(patterns, own.clone(), bytes));
        let filter = Filter { keys: keys.clone().uncounted(), patterns: Pass::new(patterns), own };
        let names = Names {
            filter,
            bytes_max,
            clock: 0,
            lost: None,
            closed: false,
            written: HashMap::new(),
            bytes: 0,
            prune_at: PRUNE_BYTES_MIN.min(bytes_max),
            marks: VecDeque::new(),
            index,
        };
        Observer(Arc::new(Mutex::new(names)))
    }

    /// The name of a written key has come.
    pub fn wrote(&self, key: &[u8]) {
        self.names().wrote(key);
    }

    /// Names did not come, or may not have: marks until now know nothing, nor does the index.
    pub fn lose(&self) {
        let mut names = self.names();
        names.lose();
        names.index.iter_mut().for_each(Index::lose);
    }

    /// No name will come any more: no mark knows anything, and there is no index.
    pub fn close(&self) {
        let mut names = self.names();
        names.lose();
        (names.closed, names.index) = (true, None);
    }

    /// Leaves the index out, for good.
    pub(super) fn without_index(&self) {
        self.names().index = None;
    }

    /// A SCAN begins, of what this pattern matches, if it is not of all keys.
    pub fn scan_begins(&self, filter: Option<&[u8]>) {
        self.index(|index| index.scan_begins(filter));
    }

    /// A page of the SCAN has come, the last one if it `ends`.
    pub fn scanned(&self, keys: &[Vec<u8>], ends: bool) {
        self.index(|index| index.scanned(keys.iter().map(Vec::as_slice), ends));
    }

    /// These keys went after the mark.
    pub fn gone<'a>(&self, keys: impl Iterator<Item = &'a [u8]>, mark: &Mark) {
        let mut names = self.names();
        let Names { written, index: Some(index), lost, .. } = &mut *names else { return };
        if lost.is_none_or(|lost| mark.at > lost) {
            index.gone(keys, |key| written.get(key).is_some_and(|at| *at > mark.at));
        }
    }

    /// Whether a SCAN would make the index whole.
    #[must_use]
    pub fn wants_scan(&self) -> bool {
        self.index(|index| index.wants_scan()).unwrap_or(false)
    }

    /// The beginnings of all names that the index wants a SCAN to list; none if it wants no SCAN.
    #[must_use]
    pub fn wanted_prefixes(&self) -> Vec<Vec<u8>> {
        self.index(|index| index.wanted_prefixes()).unwrap_or_default()
    }

    /// Names in the index, as [`Primary::list`](super::node::Primary::list) gives them.
    #[must_use]
    pub fn list(&self, prefix: &[u8], after: Option<&[u8]>, most: usize) -> Option<Vec<Vec<u8>>> {
        self.index(|index| index.list(prefix, after, most))?
    }

    /// Names to ask the server for: see [`Index::looks_at`].
    pub(super) fn looks_at(&self, most: usize) -> Option<Vec<Vec<u8>>> {
        self.index(|index| index.looks_at(most))?
    }

    /// Sorts into the index, if there is one, all names that have come until now: in turns, so that
    /// others on the thread get theirs.
    pub async fn sort_in(&self) {
        let Some(until) = self.index(|index| index.heard()) else { return };
        while self.index(|index| index.sort_in(until, SORTED_AT_ONCE)).unwrap_or(false) {
            tokio::task::yield_now().await;
        }
    }

    /// Asks the index, if there is one.
    fn index<T>(&self, ask: impl FnOnce(&mut Index) -> T) -> Option<T> {
        self.names().index.as_mut().map(ask)
    }

    /// How the index stands, if there is one.
    #[must_use]
    pub fn indexed(&self) -> Option<Indexed> {
        self.index(|index| index.standing())
    }

    /// This moment.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let mut names = self.names();
        let at = names.clock;
        let latest = names.marks.back().filter(|(latest, _)| *latest == at);
        let open = latest.and_then(|(_, open)| open.upgrade()).unwrap_or_else(|| {
            let open = Arc::new(());
            names.marks.push_back((at, Arc::downgrade(&open)));
            open
        });
        Mark { observer: self.clone(), at, _open: open }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().expect("nothing panics while it is locked")
    }
}

impl Mark {
    /// Every name that has come since, each once; `None` if names may be missing.
    #[must_use]
    pub fn written(&self) -> Option<Vec<Name>> {
        let names = self.observer.names();
        if names.closed || names.lost.is_some_and(|lost| self.at <= lost) {
            return None;
        }
        let since = names.written.iter().filter(|(_, at)| **at > self.at);
        Some(since.map(|(name, _)| Arc::clone(name)).collect())
    }

    /// The earlier one, or the one that knows nothing.
    #[must_use]
    pub(in crate::sweep) fn earlier(self, other: Mark) -> Mark {
        let same = Arc::ptr_eq(&self.observer.0, &other.observer.0);
        let keep = if same { self.at <= other.at } else { self.observer.names().closed };
        if keep { self } else { other }
    }
}

impl Names {
    fn wrote(&mut self, key: &[u8]) {
        if let Some(index) = &mut self.index {
            index.wrote(key);
        }
        self.forget_marks();
        if self.marks.is_empty() {
            self.clear();
            return;
        }
        if !self.filter.wants(key) {
            return;
        }
        self.clock += 1;
        if let Some(at) = self.written.get_mut(key) {
            *at = self.clock;
            return;
        }
        self.written.insert(key.into(), self.clock);
        self.bytes += cost(key);
        if self.bytes > self.prune_at {
            self.prune();
        }
    }

    /// Names from before the oldest mark are of no use.
    fn prune(&mut self) {
        let oldest = self.marks.front().map_or(self.clock, |(at, _)| *at);
        self.written.retain(|_, at| *at > oldest);
        self.bytes = self.written.keys().map(|name| cost(name)).sum();
        self.prune_at = (2 * self.bytes).max(PRUNE_BYTES_MIN).min(self.bytes_max);
        if self.bytes > self.bytes_max / 4 * 3 {
            tracing::warn!(
                names = self.written.len(),
                "more keys are written than can be kept: the next second removal takes all keys"
            );
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.lost = Some(self.clock);
        self.clock += 1;
        self.marks.clear();
        self.clear();
    }

    fn clear(&mut self) {
        if self.bytes > 0 {
            self.written = HashMap::new();
            self.bytes = 0;
            self.prune_at = PRUNE_BYTES_MIN.min(self.bytes_max);
        }
    }

    /// Marks that nobody holds, from the oldest up to the first that somebody does.
    fn forget_marks(&mut self) {
        while self.marks.front().is_some_and(|(_, open)| open.strong_count() == 0) {
            self.marks.pop_front();
        }
    }
}

fn cost(name: &[u8]) -> usize {
    name.len() + NAME_COST
}

/// Names hold row values (I9).
impl fmt::Debug for Mark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Mark").field("at", &self.at).finish_non_exhaustive()
    }
}

/// The narrowest prefixes of all keys of a set, none the beginning of another, which Redis refuses
/// (<https://redis.io/docs/latest/commands/client-tracking/>). An empty one stands for every key.
#[must_use]
pub(in crate::sweep) fn prefixes(everything: &KeySet) -> Vec<Vec<u8>> {
    let exact = everything.exact().map(|(_, key)| key);
    let patterns = everything.patterns().map(|(_, pattern)| pattern.literal_prefix());
    narrowest(exact.chain(patterns).collect(), PREFIXES_MAX)
}

/// Cut as short as it takes to be at most `most`.
fn narrowest(mut texts: Vec<&[u8]>, most: usize) -> Vec<Vec<u8>> {
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or_default();
    for length in (0..=longest).rev() {
        texts.iter_mut().for_each(|text| *text = text.get(..length).unwrap_or(text));
        texts.sort_unstable();
        // Sorted, whatever begins with a text follows it at once.
        texts.dedup_by(|text, kept| text.starts_with(kept));
        if texts.len() <= most {
            break;
        }
    }
    texts.into_iter().map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::{Mark, Observer, narrowest, prefixes};
    use crate::config::{Redis, Rule};
    use crate::keys::{KeySet, Pattern, Rules};

    fn everything(templates: &[&str]) -> KeySet {
        Rules::compile(&[Rule::for_tests("t", templates)]).unwrap().everything()
    }

    fn observer(bytes_max: usize) -> Observer {
        let redis = Redis { prefixes: vec!["a:".to_owned()], ..Redis::at("redis://h") };
        Observer::new((&redis, "mark"), (&everything(&["a:{id}", "exact"]), bytes_max), None)
    }

    fn names(mark: &Mark) -> Option<Vec<String>> {
        let mut names: Vec<String> =
            mark.written()?.iter().map(|name| name.escape_ascii().to_string()).collect();
        names.sort();
        Some(names)
    }

    #[test]
    fn a_mark_knows_what_was_written_since_and_only_what_rules_give() {
        let observer = observer(1_000_000);
        observer.wrote(b"a:0");
        let first = observer.mark();
        for key in ["a:1", "b:1", "exact", "exactly", "a:walsweep:mark", "a:1"] {
            observer.wrote(key.as_bytes());
        }
        let second = observer.mark();
        observer.wrote(b"a:2");
        assert_eq!(names(&first).unwrap(), ["a:1", "a:2", "exact"]);
        assert_eq!(names(&second).unwrap(), ["a:2"]);
        observer.wrote(b"a:1");
        assert_eq!(names(&second).unwrap(), ["a:1", "a:2"], "written again since");
        assert_eq!(names(&second.earlier(first)).unwrap(), ["a:1", "a:2", "exact"]);
    }

    #[test]
    fn a_loss_is_known_to_marks_before_it_and_over_for_marks_after_it() {
        let observer = observer(1_000_000);
        let before = observer.mark();
        observer.wrote(b"a:1");
        observer.lose();
        assert_eq!(names(&before), None);
        let after = observer.mark();
        observer.wrote(b"a:2");
        assert_eq!(names(&after).unwrap(), ["a:2"]);
        assert_eq!(names(&after.clone().earlier(before)), None);
        observer.close();
        assert_eq!(names(&after), None);
        let late = observer.mark();
        assert_eq!(names(&late), None, "nothing comes any more");
        let other = self::observer(1_000_000).mark();
        assert_eq!(names(&other.clone().earlier(late.clone())), None);
        assert_eq!(names(&late.earlier(other)), None);
    }

    #[test]
    fn more_names_than_the_limit_are_a_loss_and_memory_is_given_back() {
        let observer = observer(100_000);
        let mark = observer.mark();
        let mut most = 0;
        for number in 0..10_000 {
            observer.wrote(format!("a:{number}").as_bytes());
            most = most.max(observer.names().bytes);
        }
        assert_eq!(names(&mark), None);
        assert!(most <= 100_100, "{most} bytes were held");
        assert_eq!(observer.names().bytes, 0);
        let mark = observer.mark();
        observer.wrote(b"a:1");
        assert_eq!(names(&mark).unwrap(), ["a:1"]);
    }

    #[test]
    fn names_that_nobody_asks_for_are_no_loss() {
        let observer = observer(100_000);
        let mut before = observer.mark();
        for round in 0..200 {
            // The window before this one is still open, as in operation.
            let mark = observer.mark();
            for number in 0..300 {
                observer.wrote(format!("a:{round}:{number}").as_bytes());
            }
            assert_eq!(mark.written().map(|names| names.len()), Some(300), "{round}");
            before = mark;
        }
        drop(before);
        observer.wrote(b"a:1");
        let names = observer.names();
        assert_eq!((names.bytes, names.written.len(), names.marks.len()), (0, 0, 0));
    }

    /// Between its removal and the word that it is gone, the key was written, and nobody knows.
    #[test]
    fn a_removal_from_before_a_loss_drops_no_name() {
        let redis = Redis { prefixes: vec![String::new()], ..Redis::at("redis://h") };
        let index = Some((vec![Pattern::parse(b"a:*")], 1 << 20));
        let all = everything(&["a:{id}", "exact"]);
        let observer = Observer::new((&redis, "mark"), (&all, 1 << 20), index);
        let known = || {
            observer.sort_in().now_or_never().unwrap();
            observer.list(b"", None, 9).unwrap()
        };
        observer.scan_begins(None);
        observer.scanned(&[b"a:1".to_vec(), b"a:2".to_vec()], true);
        let mark = observer.mark();
        observer.wrote(b"a:2");
        observer.gone([&b"a:1"[..], b"a:2"].into_iter(), &mark);
        assert_eq!(known(), [b"a:2"]);
        observer.lose();
        observer.scan_begins(None);
        observer.wrote(b"a:1");
        observer.scanned(&[], true);
        observer.gone([&b"a:1"[..]].into_iter(), &mark);
        assert_eq!(known(), [b"a:1"]);
        observer.close();
        assert_eq!((observer.list(b"", None, 9), observer.indexed()), (None, None));
    }

    #[test]
    fn prefixes_are_narrow_and_none_begins_another() {
        let set = everything(&["db:a:{id}", "roundup:{id}", "roundup:slug:{s}", "db:stats:*:x"]);
        assert_eq!(prefixes(&set), [&b"db:a:"[..], b"db:stats:", b"roundup:"]);
        assert_eq!(prefixes(&everything(&["a:{id}", "{id}:a"])), [b""]);
        let texts: Vec<String> = (0..100).map(|number| format!("key:{number:02}:x")).collect();
        let narrow = |most| narrowest(texts.iter().map(String::as_bytes).collect(), most);
        assert_eq!(narrow(100).len(), 100);
        assert_eq!(narrow(99).len(), 10);
        assert_eq!(narrow(9), [b"key:"]);
    }
}
