//! The part of a key set that waits for rows of lookups.

use std::mem::take;

use super::{Amount, KeySet, Pending, cost};
use crate::keys::before::Before;
use crate::keys::label::{LookupId, TemplateId, TemplateInfo, WidenReason};

impl KeySet {
    /// Whether rows have to be looked up before the set is all that is to be removed.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.pending.len() > 0
    }

    /// Gives the entries that wait for rows, each with its template.
    pub(in crate::keys) fn pending(&self) -> impl Iterator<Item = (&TemplateInfo, &[u8])> {
        let template = |id: TemplateId| &self.templates[usize::from(id.0)];
        self.pending.iter().map(move |(id, bytes)| (template(id), bytes))
    }

    /// Takes out what waits for rows, and what lookups gave before the transaction.
    pub(in crate::keys) fn take_pending(&mut self) -> (Pending, Before) {
        let (pending, before) = (take(&mut self.pending), take(&mut self.before));
        for (template, bytes) in pending.iter() {
            let less = Amount { pending: 1, bytes: cost(bytes), ..Amount::default() };
            self.usage.get_mut(template).held -= less;
            self.used -= less;
        }
        self.weigh();
        (pending, before)
    }

    /// The transaction has no more changes: frees what nothing of it needs.
    pub fn end(&mut self) {
        if !self.has_pending() {
            self.before = Before::default();
            self.weigh();
        }
    }

    /// Notes what a lookup gave before the transaction: see [`before`](crate::keys::before).
    pub(in crate::keys) fn add_before(&mut self, lookup: LookupId, row: &[u8]) {
        self.before.add(lookup, row);
        self.weigh();
    }

    /// Gives up the rows that a lookup gave before the transaction: they are not known any more.
    pub(in crate::keys) fn lose_before(&mut self, lookup: LookupId, why: WidenReason) {
        self.before.lose(lookup, why);
        self.weigh();
    }

    /// Whether what a lookup gave before the transaction is not known.
    pub(in crate::keys) fn has_lost(&self, lookup: LookupId) -> bool {
        self.before.why_lost(lookup).is_some()
    }

    /// Adds what the template needs rows for.
    pub(in crate::keys) fn add_pending(&mut self, template: TemplateId, bytes: &[u8]) {
        if self.is_whole(template) || self.pending.owner(template.0, bytes).is_some() {
            return;
        }
        let own = Amount { pending: 1, bytes: cost(bytes), ..Amount::default() };
        if self.make_room(template, own) {
            self.pending.insert(template, template.0, bytes);
            self.grow(template, own);
            self.weigh();
        }
    }
}
