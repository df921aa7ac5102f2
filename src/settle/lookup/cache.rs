//! Answers of lookups that are as good as new ones.
//!
//! An answer may be used for a transaction if it shows each change of the lookup's tables that the
//! stream told of before. So the stream tells of each such change as it arrives, and:
//!
//! - it drops the lookup's answers, and closes the lookup until its transaction is undone, or known
//!   to be visible: until then a query may still read the row as it was;
//! - an answer is kept if the lookup was open when its query began, and no change came since;
//! - a session begins with everything closed, until each transaction has ended that may have
//!   changed these tables and committed before the stream begins: of those it does not tell;
//! - with the session that a lookup is asked on goes all that it answered.
//!
//! That the stream tells of every change is for the checks before the start (`preflight::reads`),
//! and for the watch on tables afterwards.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use tokio::time::sleep;

use crate::budget;
use crate::keys::{Answers, Found, Lookup, LookupId, Wanted};
use crate::settle::gate::{Error, Fence, Probe, answer};

/// The cost of an answer beside its bytes: its slot in a table that is half full, the allocation of
/// its parameters.
const ANSWER_COST: usize = 2 * size_of::<(Wanted, Found)>() + 16;

/// The first and the longest pause between two looks at what still runs from before the stream.
const PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_secs(1));

/// After the first time it is asked no oftener than this which of them matter: that reads the
/// server's lock table.
const JUDGE_PAUSE: Duration = Duration::from_millis(250);

/// Answers of one session. Clones share them: the stream tells of changes, the lookups ask.
#[derive(Clone, Debug)]
pub struct Cache(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    /// By lookup; `None` if its answers are not kept.
    kept: Vec<Option<Kept>>,
    /// The lookups that read a table, by its `pg_class.oid`.
    readers: HashMap<u32, Vec<usize>>,
    /// Whether a commit from before the stream may still be invisible.
    begins: bool,
}

/// Everything that is kept of one lookup.
#[derive(Debug)]
struct Kept {
    answers: Aged,
    /// Transactions that changed its tables and are not known to have ended.
    awaited: HashSet<u32>,
    /// Counts whatever made answers old.
    generation: u64,
}

/// Answers in two halves: when the one is full, the other is dropped. What is asked for stays.
#[derive(Debug)]
struct Aged {
    recent: HashMap<Wanted, Found>,
    recent_bytes: usize,
    older: HashMap<Wanted, Found>,
    count_max: usize,
    bytes_max: usize,
}

/// When a round of queries began: the generation of each lookup that was open.
#[derive(Debug)]
pub(super) struct Began(Vec<Option<u64>>);

impl Cache {
    /// Nothing yet, and closed; `None` if no answers may be kept.
    #[must_use]
    pub fn new(lookups: &[Lookup]) -> Option<Cache> {
        let reads = |lookup: &Lookup| lookup.reads.is_some() && lookup.cache > 0;
        let count = lookups.iter().filter(|lookup| reads(lookup)).count();
        let bytes_max = budget::ANSWERS.checked_div(count)?;
        let mut readers: HashMap<u32, Vec<usize>> = HashMap::new();
        for (at, lookup) in lookups.iter().enumerate().filter(|(_, lookup)| reads(lookup)) {
            for (oid, _) in lookup.reads.iter().flat_map(|reads| &reads.tables) {
                readers.entry(*oid).or_default().push(at);
            }
        }
        let kept = |lookup: &Lookup| {
            let answers = Aged::new(lookup.cache, bytes_max);
            reads(lookup).then(|| Kept { answers, awaited: HashSet::new(), generation: 0 })
        };
        let kept = lookups.iter().map(kept).collect();
        Some(Cache(Rc::new(RefCell::new(State { kept, readers, begins: true }))))
    }

    /// Opens it once every transaction has ended that has an id by now and may have changed what
    /// `probe` knows to matter: call it when the stream has begun. If that cannot be asked, it
    /// stays closed.
    pub async fn open<P: Probe>(self, probe: P) {
        match all_ended(&probe).await {
            Ok(()) => self.0.borrow_mut().begins = false,
            Err(error) => tracing::debug!(%error, "no answers of lookups are kept"),
        }
    }

    /// The stream tells of a change of a relation, in a top-level transaction that may still be
    /// undone.
    #[inline]
    pub fn changed(&self, relation: u32, xid: u32) {
        let State { kept, readers, .. } = &mut *self.0.borrow_mut();
        let Some(readers) = readers.get(&relation) else { return };
        for at in readers {
            if let Some(kept) = &mut kept[*at]
                && kept.awaited.insert(xid)
            {
                kept.grow_old();
            }
        }
    }

    /// Whether a lookup is closed until this transaction ends.
    #[must_use]
    pub fn awaits(&self, xid: u32) -> bool {
        self.0.borrow().kept.iter().flatten().any(|kept| kept.awaited.contains(&xid))
    }

    /// A transaction was undone, or new snapshots see all of it.
    pub fn ended(&self, xid: u32) {
        for kept in self.0.borrow_mut().kept.iter_mut().flatten() {
            kept.awaited.remove(&xid);
        }
    }

    /// Says of which lookups a query that begins now may add answers.
    pub(super) fn begin(&self) -> Began {
        let State { kept, begins, .. } = &*self.0.borrow();
        let open = |kept: &&Kept| !begins && kept.awaited.is_empty();
        let generation = |kept: &Option<Kept>| kept.as_ref().filter(open).map(|k| k.generation);
        Began(kept.iter().map(generation).collect())
    }

    /// Keeps answers of queries that did not begin before `began`.
    pub(super) fn keep(&self, began: &Began, answers: &Answers) {
        let State { kept, .. } = &mut *self.0.borrow_mut();
        // What was beyond the memory of one round is no fact about the row.
        let is_answer = |found: &Found| !matches!(found, Found::Failed | Found::Beyond);
        for (wanted, found) in answers.iter().filter(|(_, found)| is_answer(found)) {
            let at = usize::from(wanted.lookup.0);
            if let Some(kept) = &mut kept[at]
                && began.0[at] == Some(kept.generation)
            {
                kept.answers.insert(wanted.clone(), found.clone());
            }
        }
    }

    /// The answer to `wanted`, if one is kept.
    pub(super) fn get(&self, wanted: &Wanted) -> Option<Found> {
        let State { kept, .. } = &mut *self.0.borrow_mut();
        kept[usize::from(wanted.lookup.0)].as_mut()?.answers.get(wanted)
    }

    /// How many answers of a lookup are kept.
    #[cfg(test)]
    pub(super) fn len(&self, lookup: usize) -> usize {
        let State { kept, .. } = &*self.0.borrow();
        kept[lookup].as_ref().map_or(0, |kept| kept.answers.recent.len() + kept.answers.older.len())
    }

    /// Forgets every answer of a lookup, also those that are on their way.
    pub(super) fn forget(&self, lookup: LookupId) {
        let State { kept, .. } = &mut *self.0.borrow_mut();
        if let Some(kept) = &mut kept[usize::from(lookup.0)] {
            kept.grow_old();
        }
    }
}

/// Waits until each transaction has ended that has an id by now and may matter.
async fn all_ended<P: Probe>(probe: &P) -> Result<(), Error> {
    let mut fence = Fence::new(answer(probe.fence()).await?);
    let ((mut pause, longest), mut is_first) = (PAUSES, true);
    loop {
        let snapshot = answer(probe.snapshot()).await?;
        if fence.is_passed(&snapshot) {
            return Ok(());
        }
        if is_first || pause >= JUDGE_PAUSE {
            let ids = fence.awaited(&snapshot);
            // Where it cannot be told who matters, all do.
            if let Ok(holders) = answer(probe.holders(&ids)).await {
                fence.judged(&ids, &holders);
            }
            is_first = false;
        }
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

impl Kept {
    fn grow_old(&mut self) {
        self.generation += 1;
        self.answers.clear();
    }
}

impl Aged {
    fn new(count_max: usize, bytes_max: usize) -> Aged {
        let (recent, older) = (HashMap::new(), HashMap::new());
        Aged { recent, recent_bytes: 0, older, count_max, bytes_max }
    }

    fn clear(&mut self) {
        (self.recent, self.older, self.recent_bytes) = (HashMap::new(), HashMap::new(), 0);
    }

    fn get(&mut self, wanted: &Wanted) -> Option<Found> {
        if let Some(found) = self.recent.get(wanted) {
            return Some(found.clone());
        }
        let (wanted, found) = self.older.remove_entry(wanted)?;
        self.insert(wanted, found.clone());
        Some(found)
    }

    /// One that alone takes more than half of the memory is not kept.
    fn insert(&mut self, wanted: Wanted, found: Found) {
        let bytes = ANSWER_COST + wanted.bytes() + found.bytes();
        if bytes > self.bytes_max / 2 {
            return;
        }
        let is_full = self.recent.len() >= self.count_max.div_ceil(2)
            || self.recent_bytes + bytes > self.bytes_max / 2;
        if is_full {
            self.older = std::mem::take(&mut self.recent);
            self.recent_bytes = 0;
            if self.count_max == 1 {
                self.older.clear();
            }
        }
        self.older.remove(&wanted);
        if self.recent.insert(wanted, found).is_none() {
            self.recent_bytes += bytes;
        }
    }
}
