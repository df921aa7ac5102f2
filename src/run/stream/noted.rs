//! News of the stream for the cache of lookups.
//!
//! A change counts from its arrival, in a block as well: whether it is committed, and seen, is not
//! known then, and neither is what comes before it.

use tokio::time::Instant;

use super::Stream;
use crate::gather::Transaction;
use crate::keys::KeySet;
use crate::settle::{Cache, Input, Mapped};

impl<'a> Stream<'a> {
    /// Lets the stream tell `cache` of changes.
    #[must_use]
    pub fn with_cache(self, cache: Option<Cache>) -> Stream<'a> {
        Stream { cache, ..self }
    }

    /// A change of this relation, in the transaction that is being received.
    #[inline]
    pub(super) fn note(&self, relation: u32) {
        if let Some(cache) = &self.cache
            && let Some(xid) = self.gatherer.in_block().or_else(|| self.gatherer.in_transaction())
        {
            cache.changed(relation, xid);
        }
    }

    /// A transaction that removes nothing is committed. Has it changed what lookups read, the gate
    /// has to see it; it counts as done at once all the same, for it is of no other use.
    pub(super) fn pass_without_keys(&mut self, transaction: Transaction, keys: KeySet) {
        if self.cache.as_ref().is_some_and(|cache| cache.awaits(transaction.xid)) {
            let received_at = Instant::now();
            let mapped = Mapped { transaction, received_at, keys };
            self.pass_on(Input::Transaction(Box::new(mapped)));
        }
    }

    /// A transaction that came in blocks, or a part of it, is undone.
    pub(super) fn note_undone(&self, xid: u32, subxid: u32) {
        if let Some(cache) = self.cache.as_ref().filter(|_| xid == subxid) {
            cache.ended(xid);
        }
    }
}
