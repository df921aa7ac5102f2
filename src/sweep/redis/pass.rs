//! One SCAN pass over a whole Redis for every pattern that waits; over each primary of a cluster.
//!
//! SCAN looks at every key whatever MATCH says, so eight patterns in one pass cost an eighth of
//! eight passes. Keys are matched here, by Redis's own rules, and removed as they come. The cursor
//! never outlives the connection: a pass that fails begins again at 0
//! (<https://redis.io/docs/latest/commands/scan/#scan-guarantees>).

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::node::{Error, Node, Page, Primary, ScanCall, Scanned};
use super::pace::{Pace, Paces};
use super::pass_items::{PassItem, PassItems};
use super::unlink::{Refused, Search, one_by_one};
use crate::budget::OfTarget;
use crate::failpoint::{Point, reach};
use crate::keys::Pattern;
use crate::sweep::samples::Samples;

/// Keys removed by one UNLINK while a pass runs; about 0.3 ms of Redis's time.
const UNLINK_KEYS: usize = 500;

/// Keys of one pattern that Redis refused to remove, beyond which no more are noted: the pattern
/// itself then stands for them.
const REFUSED_KEYS_MAX: usize = 10_000;

/// The memory that such a key takes beside its bytes: its place in a set, its allocation.
const REFUSED_COST: usize = 48;

/// Stars of a pattern that Redis is asked to match; what stands behind them is matched here alone.
/// Redis before 7.0.9 and 6.2.11 tries every place for each star within the place of the one before
/// it, so that a pattern of some ten stars holds it for hours
/// (<https://nvd.nist.gov/vuln/detail/CVE-2022-36021>). The last of three costs nothing, and two
/// cost a key's length squared at worst.
pub(super) const FILTER_STARS: usize = 3;

/// Keys matched between two chances for other tasks to run, some 20 µs: the reply to the next call
/// is then noticed in time, and its duration means what it says.
pub(in crate::sweep) const MATCH_KEYS: usize = 256;

/// The task of a pass.
#[derive(Debug)]
pub struct Pass {
    patterns: Vec<Pattern>,
    groups: Vec<Group>,
    /// Fields and tags that are looked for.
    pub(in crate::sweep) items: PassItems,
    /// Count what matches, remove nothing.
    pub dry_run: bool,
    /// Memory of all keys that are noted because Redis refused to remove them, bytes (I6).
    pub(in crate::sweep) refused_bytes_max: usize,
}

/// Patterns that begin alike, so that most keys are told off by one comparison for all of them.
#[derive(Debug)]
struct Group {
    prefix: Vec<u8>,
    members: Vec<usize>,
}

/// Everything that a pass has done so far.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Keys looked at, but for those that Redis was asked to leave out.
    pub scanned: u64,
    /// Keys that matched a pattern.
    pub matched: u64,
    /// Keys that matched, by pattern; a key that several patterns match counts for the first.
    pub matched_by: Vec<u64>,
    /// Keys removed, by pattern; a key that several patterns match counts for the first.
    pub removed: Vec<u64>,
    /// How long the latest call held Redis.
    pub stall: Duration,
    /// How much of the server's time the pass took so far.
    pub took: Duration,
    /// The share of the server's time that passes took over the latest ten seconds.
    pub load: f64,
    /// For how long the pass has waited, so that SCAN takes no more of Redis's time than its share.
    pub waited: Duration,
    /// Whether it came to no end, for what it was made for is not wanted any more.
    pub(in crate::sweep) is_given_up: bool,
    /// Keys that were to be removed since the pace was told, and how long that lasted.
    removals: (u64, Duration),
    /// Keys that the user may not remove, by the index of their pattern.
    pub(in crate::sweep) refused: HashMap<usize, Noted>,
    /// Items that the user may not remove, by their index.
    pub(in crate::sweep) refused_items: BTreeSet<usize>,
    /// How much one page of a key may look at.
    page_pace: Option<Box<Pace>>,
    /// Memory of those, and how much they may take.
    refused_bytes: usize,
    refused_bytes_max: usize,
}

/// Keys of one pattern that Redis refused to remove.
#[derive(Clone, Debug)]
pub(in crate::sweep) enum Noted {
    /// All of them.
    Keys(Refused),
    /// There are more than may be noted: the pattern itself stands for them.
    Whole(Samples),
}

impl Noted {
    /// These keys, as long as they are not too many.
    pub(in crate::sweep) fn of(keys: Refused) -> Noted {
        let mut noted = Noted::Keys(Refused::new());
        noted.add(keys, &mut 0, usize::MAX);
        noted
    }

    /// Notes more of them; of all patterns they take `bytes`, and may take `bytes_max`.
    fn add(&mut self, found: Refused, bytes: &mut usize, bytes_max: usize) {
        let Noted::Keys(keys) = self else { return };
        let cost = |key: &[u8]| key.len() + REFUSED_COST;
        for key in found {
            let more = cost(&key);
            *bytes += if keys.insert(key) { more } else { 0 };
        }
        if keys.len() > REFUSED_KEYS_MAX || *bytes > bytes_max {
            *bytes -= keys.iter().map(|key| cost(key)).sum::<usize>();
            *self = Noted::Whole(Samples::of(keys.iter().map(|key| &**key), keys.len()));
        }
    }
}

impl Progress {
    /// Whether Redis refused to remove some keys.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        !self.refused.is_empty() || !self.refused_items.is_empty()
    }

    /// Adds what was done on another server.
    pub(super) fn add(&mut self, other: Progress) {
        self.scanned += other.scanned;
        self.matched += other.matched;
        self.stall = self.stall.max(other.stall);
        self.took = self.took.max(other.took);
        self.load = self.load.max(other.load);
        self.waited = self.waited.max(other.waited);
        self.is_given_up |= other.is_given_up;
        let counts = [(&mut self.matched_by, other.matched_by), (&mut self.removed, other.removed)];
        for (own, others) in counts {
            own.iter_mut().zip(others).for_each(|(own, other)| *own += other);
        }
        self.refused_items.extend(other.refused_items);
        for (index, noted) in other.refused {
            let own = self.refused.entry(index).or_insert_with(|| Noted::Keys(Refused::new()));
            match noted {
                Noted::Keys(keys) => {
                    own.add(keys, &mut self.refused_bytes, self.refused_bytes_max);
                }
                whole @ Noted::Whole(_) => *own = whole,
            }
        }
    }

    /// Tells the pace of removals that it was not told of.
    fn tell(&mut self, pace: &mut Pace) {
        let (keys, lasted) = std::mem::take(&mut self.removals);
        pace.measure.removed(keys, pace.beyond_round_trip(lasted));
        self.look(pace);
    }

    /// Sees what the pace has measured.
    fn look(&mut self, pace: &Pace) {
        self.waited = pace.measure.waited();
        self.took = pace.measure.budget.so_far();
        self.load = pace.measure.budget.load(Instant::now());
    }
}

impl Pass {
    /// A pass for these patterns.
    #[must_use]
    pub fn new(patterns: Vec<Pattern>) -> Pass {
        let mut by_prefix: HashMap<&[u8], Vec<usize>> = HashMap::new();
        for (index, pattern) in patterns.iter().enumerate() {
            by_prefix.entry(pattern.literal_prefix()).or_default().push(index);
        }
        let mut groups: Vec<Group> = by_prefix
            .into_iter()
            .map(|(prefix, members)| Group { prefix: prefix.to_vec(), members })
            .collect();
        groups.sort_by(|one, other| one.prefix.cmp(&other.prefix));
        let refused_bytes_max = OfTarget::of(1).refused;
        let items = PassItems::default();
        Pass { patterns, groups, items, dry_run: false, refused_bytes_max }
    }

    /// Scans all servers of a node, side by side, and those again that keys have come to meanwhile.
    /// Removes what matches, but for what the user may not remove. For each server `watch` takes
    /// its name, and gives who hears of every page, and in the end of all that was done there, also
    /// before an error.
    ///
    /// # Errors
    ///
    /// The first error of a server; the others are scanned to their end before.
    pub async fn over<N: Node, W: FnMut(&Progress)>(
        &self,
        node: &N,
        paces: &mut Paces,
        mut watch: impl FnMut(&str) -> W,
    ) -> Result<Progress, Error> {
        let mut prefixes: Vec<Vec<u8>> = self.prefixes().map(<[u8]>::to_vec).collect();
        if prefixes.is_empty() {
            // It is for indexes alone.
            prefixes.push(Vec::new());
        }
        let (mut scanned, mut whole) = (Scanned::nothing(prefixes), self.progress());
        loop {
            let primaries = node.primaries(&mut scanned).await?;
            if primaries.is_empty() {
                return Ok(whole);
            }
            let share = self.refused_bytes_max / primaries.len();
            let each = primaries.iter().map(|primary| {
                let (mut pace, watch) = (paces.take(primary.name()), watch(primary.name()));
                async move {
                    let begun = self.begun(share);
                    let outcome = self.run_from(begun, primary, &mut pace, watch).await;
                    (primary.name(), pace, outcome)
                }
            });
            let mut failed = None;
            for (name, pace, outcome) in join_all(each).await {
                paces.put(name, pace);
                match outcome {
                    Ok(progress) => whole.add(progress),
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            if scanned.rounds == 1 {
                paces.keep(&primaries.iter().map(Primary::name).collect::<Vec<_>>());
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }

    /// Nothing is done yet.
    pub(super) fn progress(&self) -> Progress {
        let none = vec![0; self.patterns.len() + self.items.all.len()];
        let refused_bytes_max = self.refused_bytes_max;
        Progress {
            removed: none.clone(),
            matched_by: none,
            refused_bytes_max,
            ..Default::default()
        }
    }

    /// Nothing is done yet of a part, which may note so many bytes of refused keys.
    pub(super) fn begun(&self, refused_bytes_max: usize) -> Progress {
        Progress { refused_bytes_max, ..self.progress() }
    }

    /// Scans one server once. `each_page` hears of every page, and in the end of all that was done,
    /// also before an error.
    ///
    /// # Errors
    ///
    /// The first error of the server; keys found before it are removed, the rest is not looked at.
    pub async fn run<P: Primary>(
        &self,
        node: &P,
        pace: &mut Pace,
        each_page: impl FnMut(&Progress),
    ) -> Result<Progress, Error> {
        self.run_from(self.progress(), node, pace, each_page).await
    }

    async fn run_from<P: Primary>(
        &self,
        mut progress: Progress,
        node: &P,
        pace: &mut Pace,
        mut each_page: impl FnMut(&Progress),
    ) -> Result<Progress, Error> {
        if self.is_in_vain(node) {
            return Ok(progress);
        }
        let outcome = self.scan(node, pace, &mut each_page, &mut progress).await;
        pace.measure.end(outcome.is_ok() && !progress.is_given_up);
        each_page(&progress);
        outcome.map(|()| progress)
    }

    /// Whether it is for indexes alone, and none of this server wants it, or wants it any more: the
    /// names take too much memory.
    fn is_in_vain<P: Primary>(&self, node: &P) -> bool {
        let is_for_indexes = self.patterns.is_empty() && self.items.all.is_empty();
        is_for_indexes && node.wanted_prefixes().is_empty()
    }

    async fn scan<P: Primary>(
        &self,
        node: &P,
        pace: &mut Pace,
        each_page: &mut impl FnMut(&Progress),
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let filter = self.server_filter(&node.wanted_prefixes());
        pace.begin(node).await?;
        progress.page_pace = Some(Box::new(pace.for_pages()));
        let call = |cursor, count| ScanCall { cursor, count, pattern: filter.as_deref() };
        pace.measure.turn(node).await?;
        let (mut page, mut took) = timed(node.scan(&call(0, pace.count()))).await?;
        loop {
            progress.stall = pace.observe(took);
            progress.scanned += page.keys.len() as u64;
            each_page(progress);
            let cursor = page.cursor;
            // Patterns would wait for the rest of it.
            if cursor != 0 && self.is_in_vain(node) {
                progress.is_given_up = true;
                return Ok(());
            }
            if cursor == 0 {
                self.remove_matching(node, &page, progress).await?;
                progress.tell(pace);
                pace.measure.settle(node).await?;
                progress.look(pace);
                // A key that somebody else removed before the pass came by is not there, and comes
                // back with a server that lost that. So the pass itself counts as a removal. And
                // each page says who gave it; the fence says who counted.
                if !self.dry_run {
                    node.unlink(&[]).await?;
                }
                node.fence().await?;
                return Ok(());
            }
            // The next page is fetched, or waited for, while this one is matched and removed.
            let call = call(cursor, pace.count());
            let next = async {
                pace.measure.turn(node).await?;
                timed(node.scan(&call)).await
            };
            let (next, removed) = tokio::join!(next, self.remove_matching(node, &page, progress));
            removed?;
            reach(Point::PageRemoved);
            (page, took) = next?;
            progress.tell(pace);
        }
    }

    /// Removes what matches of a page.
    pub(super) async fn remove_matching<P: Primary>(
        &self,
        node: &P,
        page: &Page,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        // What a set names is read before a pattern takes the set itself.
        self.remove_items(node, page, progress).await?;
        let mut found: Vec<(usize, &[u8])> = Vec::new();
        for keys in page.keys.chunks(MATCH_KEYS) {
            found.extend(keys.iter().filter_map(|key| Some((self.find(key)?, key.as_slice()))));
            tokio::task::yield_now().await;
        }
        progress.matched += found.len() as u64;
        for (index, _) in &found {
            progress.matched_by[*index] += 1;
        }
        if self.dry_run {
            return Ok(());
        }
        found.sort_unstable_by_key(|(index, _)| *index);
        for chunk in found.chunks(UNLINK_KEYS) {
            let by_pattern: Vec<&[(usize, &[u8])]> =
                chunk.chunk_by(|one, other| one.0 == other.0).collect();
            let groups: Vec<Vec<&[u8]>> =
                by_pattern.iter().map(|keys| keys.iter().map(|(_, key)| *key).collect()).collect();
            let began = Instant::now();
            let counts = node.unlink(&groups).await?;
            progress.removals.0 += chunk.len() as u64;
            progress.removals.1 += began.elapsed();
            for ((keys, group), count) in by_pattern.iter().zip(&groups).zip(counts) {
                let Some((index, _)) = keys.first() else { continue };
                let count = match count {
                    Some(count) => count,
                    None => self.refused(node, (*index, group), progress).await?,
                };
                if let Some(counter) = progress.removed.get_mut(*index) {
                    *counter += count;
                }
            }
        }
        Ok(())
    }

    async fn remove_items<P: Primary>(
        &self,
        node: &P,
        page: &Page,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let Some(pace) = &mut progress.page_pace else { return Ok(()) };
        if self.items.all.is_empty() || self.dry_run {
            return Ok(());
        }
        let done = self.items.remove(node, &page.keys, pace).await?;
        let counts =
            [(&mut progress.removed, done.removed), (&mut progress.matched_by, done.matched)];
        for (all, items) in counts {
            let all = all.iter_mut().skip(self.patterns.len());
            all.zip(items).for_each(|(own, more)| *own += more);
        }
        progress.refused_items.extend(done.refused);
        Ok(())
    }

    /// Removes what can be removed of a command that was refused for keys of this pattern, and
    /// notes the others.
    async fn refused<P: Primary>(
        &self,
        node: &P,
        (index, keys): (usize, &[&[u8]]),
        progress: &mut Progress,
    ) -> Result<u64, Error> {
        let mut found = Refused::new();
        let removed = one_by_one(node, keys, Search::Quick, &mut found).await?;
        if !found.is_empty() {
            let noted = progress.refused.entry(index);
            let noted = noted.or_insert_with(|| Noted::Keys(Refused::new()));
            noted.add(found, &mut progress.refused_bytes, progress.refused_bytes_max);
        }
        Ok(removed)
    }

    /// The first pattern that matches, in the order of their prefixes.
    pub(in crate::sweep) fn find(&self, key: &[u8]) -> Option<usize> {
        self.groups.iter().filter(|group| key.starts_with(&group.prefix)).find_map(|group| {
            group
                .members
                .iter()
                .copied()
                .find(|index| self.patterns.get(*index).is_some_and(|pattern| pattern.matches(key)))
        })
    }

    /// The beginnings of all keys that it looks for.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = &[u8]> {
        let items = self.items.all.iter().map(PassItem::prefix);
        self.groups.iter().map(|group| group.prefix.as_slice()).chain(items)
    }

    /// A MATCH that lets Redis leave out names that no pattern can match, and that do not begin as
    /// an index wants: the only pattern itself, as far as [`FILTER_STARS`], or what all of them
    /// begin with. Without it every name crosses the network.
    fn server_filter(&self, wanted: &[Vec<u8>]) -> Option<Vec<u8>> {
        match (self.patterns.as_slice(), self.items.all.as_slice(), wanted) {
            ([only], [], []) => return Some(only.cut_after_stars(FILTER_STARS)),
            ([], [only], []) => return Some(only.pattern().cut_after_stars(FILTER_STARS)),
            _ => {}
        }
        let mut prefixes = self.prefixes().chain(wanted.iter().map(Vec::as_slice));
        let first = prefixes.next()?;
        let common = prefixes.fold(first, |common, prefix| {
            let length = common.iter().zip(prefix).take_while(|(one, other)| one == other).count();
            common.get(..length).unwrap_or_default()
        });
        if common.is_empty() {
            return None;
        }
        let mut filter = Vec::with_capacity(common.len() + 1);
        for byte in common {
            if br"\*?[]^-".contains(byte) {
                filter.push(b'\\');
            }
            filter.push(*byte);
        }
        filter.push(b'*');
        Some(filter)
    }
}

/// The call's reply and how long it took, measured where the reply is received.
async fn timed(call: impl Future<Output = Result<Page, Error>>) -> Result<(Page, Duration), Error> {
    let began = Instant::now();
    let page = call.await?;
    Ok((page, began.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::Pass;
    use crate::keys::{Item, Pattern};
    use crate::sweep::redis::pass_items::PassItem;

    fn pass(patterns: &[&str]) -> Pass {
        Pass::new(patterns.iter().map(|text| Pattern::parse(text.as_bytes())).collect())
    }

    #[test]
    fn the_server_filter_is_what_all_patterns_begin_with() {
        let rows: [(&[&str], Option<&str>); 7] = [
            (&["a:*x"], Some("a:*x")),
            (&["a*b*c*"], Some("a*b*c*")),
            (&["a*b*c*d*e"], Some("a*b*c*")),
            (&["stats:club:*x*", "stats:model:*"], Some("stats:*")),
            (&["a[1]*", "b*"], None),
            (&[r"a\*b:*", r"a\*c:*"], Some(r"a\**")),
            (&["*a", "b*"], None),
        ];
        for (patterns, filter) in rows {
            let found = pass(patterns).server_filter(&[]);
            assert_eq!(found.as_deref(), filter.map(str::as_bytes), "{patterns:?}");
        }
        let wanted = |prefixes: &[&str]| -> Vec<Vec<u8>> {
            prefixes.iter().map(|prefix| prefix.as_bytes().to_vec()).collect()
        };
        for (patterns, prefixes, filter) in [
            (&["stats:club:*x"][..], &["stats:model:"][..], Some("stats:*")),
            (&[], &["stats:club:", "stats:model:"], Some("stats:*")),
            (&["a:*"], &["b:"], None),
        ] {
            let found = pass(patterns).server_filter(&wanted(prefixes));
            assert_eq!(found.as_deref(), filter.map(str::as_bytes), "{patterns:?} {prefixes:?}");
        }
    }

    /// A pass that looks into keys finds these as well.
    #[test]
    fn the_server_filter_lets_hashes_through() {
        let hash = |key: &str, mut pass: Pass| {
            let bytes = [b"\x01", &u32::try_from(key.len()).unwrap().to_le_bytes()[..]].concat();
            let bytes = [&bytes, key.as_bytes(), b"field"].concat();
            pass.items.all.push(PassItem::of(Item::read(&bytes), false));
            pass.server_filter(&[]).map(|filter| filter.escape_ascii().to_string())
        };
        assert_eq!(hash("user:*", pass(&["stats:*"])), None);
        assert_eq!(hash("user:*", pass(&["us:*", "use*"])).as_deref(), Some("us*"));
        assert_eq!(hash("user:*:x", pass(&[])).as_deref(), Some("user:*:x"));
    }

    #[test]
    fn a_key_belongs_to_a_pattern_that_matches_it() {
        let pass = pass(&["stats:club:*x*", "stats:model:*", "stats:club:*y*", "*z"]);
        for (key, index) in [
            ("stats:club:axb", Some(0)),
            ("stats:club:y", Some(2)),
            ("stats:model:", Some(1)),
            ("other:z", Some(3)),
            ("stats:club:", None),
            ("", None),
        ] {
            assert_eq!(pass.find(key.as_bytes()), index, "{key}");
        }
    }
}
