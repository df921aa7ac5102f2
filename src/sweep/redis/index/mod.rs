//! The names of all live keys that patterns of rules match, so that a pattern costs what it
//! matches, and no SCAN (`sweep.index`).
//!
//! Why no key is missing. From before the first call of a SCAN until its last, the name of every
//! key that is written comes here by `CLIENT TRACKING` ([`observe`](super::observe)), and the SCAN
//! lists every key that is there all that while. So when it is through, every key that lives is
//! known or its name is on its way, and stays so: a *fence* before each use waits for what is on
//! its way. Which of the names are dead is told by nobody, for Redis tells a removal as it tells a
//! write. That is for the better: what is listed too much costs an `UNLINK` of nothing, after which
//! it is dropped. A name is dropped only if the key is known to be gone and none of its writes was
//! told since before it went.
//!
//! A script tells all its names at once, and to find the place of each takes a while. So a name
//! that comes is put down, and sorted in later, in turns that leave others on the thread theirs: by
//! the next fence, which waits until that is done, or when it is next seen whether the server is
//! there. What goes meanwhile is put down behind it.
//!
//! Whatever may have hidden a write puts everything in doubt: a flush, of any database, which is
//! told without names; a lost connection; a watermark that is not the one last written, such as
//! after `SWAPDB`, which tells nothing; a slot that comes to a primary of a cluster. Then there is
//! no index until another SCAN is through, and passes go by SCAN meanwhile. So they do where the
//! names take more than the memory given, and where the server does not tell which history it has:
//! another one behind a proxy, which tells of no write, would not show.

mod listing;
mod names;

use std::collections::VecDeque;
use std::ops::Bound;
use std::time::Duration;

use tokio::time::Instant;

use self::names::NameSet;
use super::own::Own;
use super::pass::Pass;
use crate::keys::Pattern;

/// How long there is no other try after the names took too much memory.
const TRY_AGAIN: Duration = Duration::from_secs(600);

/// The cost of a name that is put down, beside its bytes: its place, and what the allocator takes.
const HEARD_COST: usize = 56;

/// Names that are put down at most. From then on each that comes has another one sorted in: so
/// whoever writes faster than names are sorted in waits for that, by way of the connection.
const HEARD_MAX: usize = 100_000;

/// Places for names that are kept while none is put down.
const HEARD_MIN: usize = 4096;

/// So many names more than live ones are no reason to look which are dead.
const DEAD_MIN: usize = 10_000;

/// All that is known of the keys of some patterns.
#[derive(Debug)]
pub(super) struct Index {
    patterns: Vec<Pattern>,
    wanted: Pass,
    own: Own,
    names: NameSet,
    /// Names that have come and are not sorted in, and names behind them that are to go.
    heard: VecDeque<Heard>,
    heard_bytes: usize,
    /// How many were put down and are not there any more, ever.
    sorted: u64,
    /// Of both together.
    bytes_max: usize,
    state: State,
    /// Names that were there when it was last known that all, or most, of them live.
    lived: usize,
    /// The last name that was looked at, while all are.
    looked: Option<Vec<u8>>,
}

/// A name that came, and whether its key was written or went.
#[derive(Debug)]
enum Heard {
    Written(Box<[u8]>),
    Gone(Box<[u8]>),
}

impl Heard {
    fn name(&self) -> &[u8] {
        let (Heard::Written(name) | Heard::Gone(name)) = self;
        name
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A SCAN is wanted.
    Wanted,
    /// A SCAN is under way.
    Building,
    /// No name is missing.
    Whole,
    /// The names took too much memory; until then no other try.
    Full(Instant),
}

/// An index, from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Indexed {
    /// Names, of which some may be of keys that are gone.
    pub keys: usize,
    /// Their memory.
    pub bytes: usize,
    /// Whether no name is missing.
    pub is_whole: bool,
}

impl Indexed {
    /// Both together.
    pub(super) fn and(self, other: Indexed) -> Indexed {
        Indexed {
            keys: self.keys + other.keys,
            bytes: self.bytes + other.bytes,
            is_whole: self.is_whole && other.is_whole,
        }
    }
}

impl Index {
    /// An index of what these patterns match, in so many bytes.
    pub(super) fn new(patterns: Vec<Pattern>, own: Own, bytes_max: usize) -> Index {
        let wanted = Pass::new(patterns.clone());
        Index {
            patterns,
            wanted,
            own,
            names: NameSet::new(),
            heard: VecDeque::new(),
            heard_bytes: 0,
            sorted: 0,
            bytes_max,
            state: State::Wanted,
            lived: 0,
            looked: None,
        }
    }

    /// The name of a written key has come: puts it down. Where there is no room for that, all is
    /// sorted in at once, which takes a tenth of the memory.
    pub(super) fn wrote(&mut self, key: &[u8]) {
        if !matches!(self.state, State::Building | State::Whole) || !self.wants(key) {
            return;
        }
        self.put_down(Heard::Written(key.into()));
    }

    /// How many names were put down until now, ever.
    pub(super) fn heard(&self) -> u64 {
        self.sorted + self.heard.len() as u64
    }

    /// Sorts in at most so many of the names that were put down when there had been `until` of
    /// them; says whether more of these are left.
    pub(super) fn sort_in(&mut self, until: u64, most: usize) -> bool {
        for _ in 0..most {
            if self.sorted >= until {
                break;
            }
            let Some(heard) = self.heard.pop_front() else { break };
            self.heard_bytes -= heard.name().len() + HEARD_COST;
            self.sorted += 1;
            match &heard {
                Heard::Written(name) => self.add(name),
                Heard::Gone(name) => _ = self.names.remove(name),
            }
        }
        if self.heard.is_empty() && self.heard.capacity() > HEARD_MIN {
            self.heard = VecDeque::new();
        }
        self.sorted < until
    }

    /// A SCAN begins, of what this pattern matches, if it is not of all keys.
    pub(super) fn scan_begins(&mut self, filter: Option<&[u8]>) {
        let filter = filter.map(Pattern::parse);
        let is_enough = |filter: &Pattern| self.patterns.iter().all(|one| filter.covers(one));
        if self.wants_scan() && filter.as_ref().is_none_or(is_enough) {
            self.state = State::Building;
        } else if self.state == State::Building {
            // The one before it came to no end.
            self.state = State::Wanted;
        }
    }

    /// A page of the SCAN has come; the last one if it `ends`.
    pub(super) fn scanned<'a>(&mut self, keys: impl Iterator<Item = &'a [u8]>, ends: bool) {
        if self.state != State::Building {
            return;
        }
        for key in keys {
            if self.state == State::Building && self.wants(key) {
                self.add(key);
            }
        }
        if ends && self.state == State::Building {
            self.state = State::Whole;
            self.lived = self.names.len();
        }
    }

    /// These keys are gone, but for those that `is_written` since.
    pub(super) fn gone<'a>(
        &mut self,
        keys: impl Iterator<Item = &'a [u8]>,
        is_written: impl Fn(&[u8]) -> bool,
    ) {
        for key in keys {
            if self.wanted.find(key).is_none() || is_written(key) {
                continue;
            }
            if self.heard.is_empty() {
                self.names.remove(key);
            } else {
                self.put_down(Heard::Gone(key.into()));
            }
        }
    }

    /// Names may be missing: a SCAN is wanted.
    pub(super) fn lose(&mut self) {
        if !matches!(self.state, State::Full(_)) {
            self.state = State::Wanted;
        }
        self.clear();
    }

    /// Whether a SCAN would make it whole.
    pub(super) fn wants_scan(&self) -> bool {
        match self.state {
            State::Wanted | State::Building => true,
            State::Full(until) => Instant::now() >= until,
            State::Whole => false,
        }
    }

    /// The beginnings of all names that it wants, if it wants a SCAN.
    pub(super) fn wanted_prefixes(&self) -> Vec<Vec<u8>> {
        if !self.wants_scan() {
            return Vec::new();
        }
        self.patterns.iter().map(|pattern| pattern.literal_prefix().to_vec()).collect()
    }

    /// Names that begin so, in their order and behind `after`, at most so many, of those that are
    /// sorted in; `None` if some may be missing.
    pub(super) fn list(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        most: usize,
    ) -> Option<Vec<Vec<u8>>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        (self.state == State::Whole).then(|| self.names.list(prefix, from, most))
    }

    /// If many names may be dead: those to look at next, at most so many, until all were looked at.
    pub(super) fn looks_at(&mut self, most: usize) -> Option<Vec<Vec<u8>>> {
        let is_due = self.looked.is_some() || self.names.len() > 2 * self.lived + DEAD_MIN;
        if self.state != State::Whole || !is_due {
            return None;
        }
        let from = self.looked.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let names = self.names.list(b"", from, most);
        self.looked = names.last().cloned();
        if self.looked.is_none() {
            self.lived = self.names.len();
        }
        self.looked.is_some().then_some(names)
    }

    /// How it stands.
    pub(super) fn standing(&self) -> Indexed {
        let is_whole = self.state == State::Whole;
        let bytes = self.names.bytes() + self.heard_bytes;
        Indexed { keys: self.names.len(), bytes, is_whole }
    }

    fn put_down(&mut self, heard: Heard) {
        self.heard_bytes += heard.name().len() + HEARD_COST;
        self.heard.push_back(heard);
        if self.names.bytes() + self.heard_bytes > self.bytes_max {
            self.sort_in(self.heard(), usize::MAX);
        } else if self.heard.len() > HEARD_MAX {
            self.sort_in(self.heard(), 1);
        }
    }

    fn wants(&self, key: &[u8]) -> bool {
        self.wanted.find(key).is_some() && !self.own.has(key)
    }

    fn add(&mut self, key: &[u8]) {
        if self.names.insert(key) && self.names.bytes() > self.bytes_max {
            tracing::warn!(
                names = self.names.len(),
                bytes = self.bytes_max,
                hint = "raise `sweep.index_memory`, if the machine has it",
                "the names of keys take too much memory: patterns are removed by SCAN"
            );
            self.state = State::Full(Instant::now() + TRY_AGAIN);
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.sorted = self.heard();
        (self.names, self.heard, self.heard_bytes) = (NameSet::new(), VecDeque::new(), 0);
        (self.lived, self.looked) = (0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::{HEARD_COST, HEARD_MAX, Index, Indexed, Own, TRY_AGAIN};
    use crate::config::Redis;
    use crate::keys::Pattern;

    fn index(bytes_max: usize) -> Index {
        let patterns = ["list:*:*", "page:*"].map(|text| Pattern::parse(text.as_bytes()));
        Index::new(patterns.to_vec(), Own::of(&Redis::at("redis://h"), "s"), bytes_max)
    }

    fn scanned(index: &mut Index, keys: &[&str], ends: bool) {
        index.scanned(keys.iter().map(|key| key.as_bytes()), ends);
    }

    /// The names that a fence makes sure of.
    fn names(index: &mut Index) -> Option<Vec<String>> {
        assert!(!index.sort_in(index.heard(), usize::MAX));
        let names = index.list(b"", None, usize::MAX)?;
        Some(names.iter().map(|name| name.escape_ascii().to_string()).collect())
    }

    #[test]
    fn it_is_whole_when_a_scan_of_all_that_it_wants_is_through() {
        let mut index = index(1 << 20);
        index.wrote(b"list:0:a");
        assert_eq!((names(&mut index), index.wants_scan()), (None, true));
        assert_eq!(index.wanted_prefixes(), [&b"list:"[..], b"page:"]);
        // A pass that looks for less than it wants is none for it.
        index.scan_begins(Some(b"list:*"));
        scanned(&mut index, &["list:1:a"], true);
        assert_eq!(names(&mut index), None);
        index.scan_begins(None);
        scanned(&mut index, &["list:1:a", "other", "list:1"], false);
        index.wrote(b"page:1");
        // One that came to no end counts for nothing, nor does what is no scan for it behind it.
        index.scan_begins(Some(b"list:*"));
        scanned(&mut index, &["list:2:a"], true);
        assert_eq!(names(&mut index), None);
        index.scan_begins(None);
        scanned(&mut index, &["list:1:a"], false);
        index.wrote(b"page:2");
        scanned(&mut index, &["page:3"], true);
        assert_eq!(names(&mut index).unwrap(), ["list:1:a", "page:1", "page:2", "page:3"]);
        assert!(!index.wants_scan() && index.wanted_prefixes().is_empty());
        index.gone([&b"page:1"[..], b"page:2", b"other"].into_iter(), |key| key == b"page:2");
        assert_eq!(names(&mut index).unwrap(), ["list:1:a", "page:2", "page:3"]);
        index.lose();
        assert_eq!((names(&mut index), index.standing().keys), (None, 0));
    }

    /// A thousand names of one script are not a thousand times the work of one name in one turn.
    #[test]
    fn names_are_put_down_and_sorted_in_later_some_at_a_time() {
        let mut index = index(1 << 20);
        index.scan_begins(None);
        scanned(&mut index, &["page:old"], true);
        let bare = index.standing().bytes;
        for number in 0..10 {
            index.wrote(format!("page:{number}").as_bytes());
            index.wrote(b"other");
        }
        let until = index.heard();
        assert_eq!(until, 10, "what no pattern matches is not put down");
        index.wrote(b"page:late");
        let Indexed { keys, bytes, is_whole } = index.standing();
        assert!(keys == 1 && is_whole && bytes > bare + 10 * HEARD_COST, "{keys} {bytes}");
        assert!(index.sort_in(until, 4));
        assert_eq!(index.standing().keys, 5);
        assert!(index.sort_in(until, 5));
        assert!(!index.sort_in(until, 5), "one who waits need not wait for what came later");
        assert_eq!(index.standing().keys, 11);
        // One that goes before its name is sorted in does not come back.
        index.gone([&b"page:late"[..], b"page:0"].into_iter(), |_| false);
        index.wrote(b"page:0");
        assert!(!index.sort_in(index.heard(), 5));
        assert_eq!(names(&mut index).unwrap().len(), 11);
        // Whoever waits when all is in doubt does not wait for ever.
        index.wrote(b"page:lost");
        let until = index.heard();
        index.lose();
        assert!(!index.sort_in(until, 5));
        assert_eq!((index.standing().keys, index.heard(), index.heard_bytes), (0, until, 0));
    }

    /// Whoever waits for all that came before, does not wait for more than that.
    #[test]
    fn no_more_names_are_put_down_than_are_soon_sorted_in() {
        let mut index = index(1 << 30);
        index.scan_begins(None);
        scanned(&mut index, &[], true);
        for number in 0..HEARD_MAX + 5_000 {
            index.wrote(format!("page:{number}").as_bytes());
        }
        assert_eq!((index.heard.len(), index.standing().keys), (HEARD_MAX, 5_000));
        // What goes takes a place, too.
        index.gone([&b"page:0"[..], b"page:1"].into_iter(), |_| false);
        assert_eq!((index.heard.len(), index.standing().keys), (HEARD_MAX, 5_002));
        assert_eq!(names(&mut index).unwrap().len(), HEARD_MAX + 5_000 - 2);
    }

    #[test]
    fn own_keys_are_none_of_it() {
        let patterns = vec![Pattern::parse(b"*")];
        let mut index = Index::new(patterns, Own::of(&Redis::at("redis://h"), "s"), 1 << 20);
        index.scan_begins(None);
        scanned(&mut index, &["a", "walsweep:s", "walsweep:s:removals"], true);
        assert_eq!(names(&mut index).unwrap(), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn more_names_than_there_is_memory_for_are_given_up_for_a_while() {
        let mut index = index(10_000);
        index.scan_begins(None);
        scanned(&mut index, &[], true);
        let mut most = 0;
        for number in 0..2_000 {
            index.wrote(format!("page:{}", number * 7_919).as_bytes());
            most = most.max(index.standing().bytes);
        }
        assert!((9_000..13_000).contains(&most), "{most}");
        let Indexed { keys, is_whole, .. } = index.standing();
        assert_eq!((keys, is_whole, index.wants_scan()), (0, false, false));
        index.lose();
        index.scan_begins(None);
        scanned(&mut index, &["page:1"], true);
        assert_eq!(names(&mut index), None);
        tokio::time::advance(TRY_AGAIN).await;
        assert!(index.wants_scan());
        index.scan_begins(None);
        scanned(&mut index, &["page:1"], true);
        assert_eq!(names(&mut index).unwrap(), ["page:1"]);
    }

    /// The names that a SCAN lists may be too many, too: its end then makes nothing whole.
    #[tokio::test(start_paused = true)]
    async fn a_scan_that_lists_more_names_than_there_is_memory_for_makes_no_index() {
        let mut index = index(10_000);
        index.scan_begins(None);
        let names: Vec<String> =
            (0..2_000).map(|number| format!("page:{}", number * 7_919)).collect();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        scanned(&mut index, &all, true);
        assert_eq!((self::names(&mut index), index.standing().keys), (None, 0));
        assert!(!index.wants_scan(), "the next one would end alike");
    }

    #[test]
    fn names_are_looked_at_when_many_may_be_dead() {
        let mut index = index(1 << 24);
        index.scan_begins(None);
        let names: Vec<String> = (0..1_000).map(|number| format!("page:{number}")).collect();
        scanned(&mut index, &names.iter().map(String::as_str).collect::<Vec<_>>(), true);
        (0..11_000).for_each(|number| index.wrote(format!("list:1:{number}").as_bytes()));
        assert_eq!(self::names(&mut index).unwrap().len(), 12_000);
        assert_eq!(index.looks_at(100), None, "not many more than lived");
        (0..2_000).for_each(|number| index.wrote(format!("list:2:{number}").as_bytes()));
        assert_eq!(self::names(&mut index).unwrap().len(), 14_000);
        let mut looked = 0;
        while let Some(some) = index.looks_at(100) {
            assert!((1..=100).contains(&some.len()));
            looked += some.len();
            let dead = some.iter().map(Vec::as_slice).filter(|name| name.starts_with(b"list:"));
            index.gone(dead, |_| false);
        }
        assert_eq!((looked, index.standing().keys), (14_000, 1_000));
        assert_eq!(index.looks_at(100), None);
    }
}
