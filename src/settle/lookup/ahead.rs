//! Keys of large transactions that need rows before the stream tells of the commit: which sets
//! wait, and rows that were read for them.
//!
//! The keys come again with the commit. The rows were read when the transaction was visible, so for
//! the same transaction they are as good then, and for no other.

use hashbrown::{HashMap, HashSet};

use super::{Cause, Gated};
use crate::budget;
use crate::keys::{Answers, Found, Wanted};

/// Sets that wait, and rows, by top-level transaction. The rows have a share of the memory; what is
/// more is read again.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    sets: HashMap<u32, Vec<u64>>,
    answers: HashMap<u32, Answers>,
    bytes: usize,
}

impl Ahead {
    /// Gives what was found for `wanted` when it was wanted for the same transaction.
    pub(super) fn get(&self, cause: &Cause, wanted: &Wanted) -> Option<&Found> {
        self.answers.get(&cause.xid()?)?.get(wanted)
    }

    /// Notes that a set waits, if its keys come again.
    pub(super) fn waits(&mut self, gated: &Gated, id: u64) {
        if let Cause::Early(xid) = gated.cause {
            self.sets.entry(xid).or_default().push(id);
        }
    }

    /// Notes that a set waits no longer.
    pub(super) fn left(&mut self, gated: &Gated, id: u64) {
        let Cause::Early(xid) = gated.cause else { return };
        let Some(ids) = self.sets.get_mut(&xid) else { return };
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            self.sets.remove(&xid);
        }
    }

    /// Notes what was read for keys that come again, after the transaction was visible.
    pub(super) fn note(&mut self, gated: &Gated, read: &Answers) {
        let Cause::Early(xid) = gated.cause else { return };
        let noted = self.answers.entry(xid).or_default();
        for wanted in gated.keys.wanted() {
            let Some(found) = read.get(&wanted).filter(|found| **found != Found::Failed) else {
                continue;
            };
            let bytes = wanted.bytes() + found.bytes();
            if self.bytes + bytes <= budget::AHEAD && !noted.knows(&wanted) {
                self.bytes += bytes;
                noted.insert(wanted, found.clone());
            }
        }
    }

    /// The transaction's commit has what it needs: no row that was read for it is needed any more.
    /// Gives the sets of it that still wait, and need not: what they would have read would be noted
    /// for nobody, until another transaction has the same 32 bits.
    pub(super) fn forget(&mut self, gated: &Gated) -> Vec<u64> {
        let Cause::Transaction(transaction) = &gated.cause else { return Vec::new() };
        for (wanted, found) in self.answers.remove(&transaction.xid).iter().flat_map(Answers::iter)
        {
            self.bytes -= wanted.bytes() + found.bytes();
        }
        self.sets.remove(&transaction.xid).unwrap_or_default()
    }

    /// Divides what these keys want together of the lookups that are asked for: into rows to ask
    /// for, and answers that are known. A row that one transaction knows and another wants is asked
    /// for, and new for both.
    pub(super) fn split<'a>(
        &self,
        all: impl Iterator<Item = &'a Gated>,
        is_asked_for: impl Fn(&Wanted) -> bool,
    ) -> (HashSet<Wanted>, Answers) {
        let (mut wanted, mut known) = (HashSet::new(), Vec::new());
        for gated in all {
            for one in gated.keys.wanted().into_iter().filter(&is_asked_for) {
                match self.get(&gated.cause, &one) {
                    Some(found) => known.push((one, found.clone())),
                    None => _ = wanted.insert(one),
                }
            }
        }
        let mut answers = Answers::default();
        for (one, found) in known.into_iter().filter(|(one, _)| !wanted.contains(one)) {
            answers.insert(one, found);
        }
        (wanted, answers)
    }
}
