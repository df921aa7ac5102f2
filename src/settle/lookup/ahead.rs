//! Rows that were read for keys of a large transaction before the stream told of its commit.
//!
//! The keys come again with the commit. The rows were read when the transaction was visible, so for
//! the same transaction they are as good then, and for no other.

use hashbrown::{HashMap, HashSet};

use super::{Cause, Gated};
use crate::budget;
use crate::keys::{Answers, Found, Wanted};

/// Rows by top-level transaction, within their share of the memory; what is more is read again.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    answers: HashMap<u32, Answers>,
    bytes: usize,
}

impl Ahead {
    /// Gives what was found for `wanted` when it was wanted for the same transaction.
    pub(super) fn get(&self, cause: &Cause, wanted: &Wanted) -> Option<&Found> {
        self.answers.get(&xid(cause)?)?.get(wanted)
    }

    /// Notes what was read for keys that go early, after the transaction was visible.
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

    /// The transaction's commit has what it needs.
    pub(super) fn forget(&mut self, gated: &Gated) {
        let Cause::Transaction(transaction) = &gated.cause else { return };
        for (wanted, found) in self.answers.remove(&transaction.xid).iter().flat_map(Answers::iter)
        {
            self.bytes -= wanted.bytes() + found.bytes();
        }
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

fn xid(cause: &Cause) -> Option<u32> {
    match cause {
        Cause::Transaction(transaction) => Some(transaction.xid),
        Cause::Early(xid) => Some(*xid),
        Cause::Resync { .. } | Cause::Replayed(_) => None,
    }
}
