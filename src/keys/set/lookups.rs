//! The part of a key set that waits for rows of lookups.

use std::mem::take;
use std::sync::Arc;

use hashbrown::HashSet;

use super::{KeySet, Usage};
use crate::keys::before::Before;
use crate::keys::entries::cost;
use crate::keys::label::{TemplateId, WidenReason};
use crate::keys::lookup::{Answers, LookupId, Wanted};
use crate::keys::pending::{self, Rows, Told};
use crate::keys::render::Renderer;

impl KeySet {
    /// Whether rows have to be looked up before the set is all that is to be removed.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.pending.len() > 0
    }

    /// The rows that it waits for, each once.
    #[must_use]
    pub fn wanted(&self) -> HashSet<Wanted> {
        pending::wanted(self.pending.iter().filter_map(|(template, bytes)| {
            Some((self.templates[usize::from(template.0)].lookup.as_deref()?, bytes))
        }))
    }

    /// What waits for rows: each template as it is written, and the rows.
    pub fn waiting(&self) -> impl Iterator<Item = (&str, Vec<Wanted>)> {
        self.pending.iter().filter_map(|(template, bytes)| {
            let template = self.templates[usize::from(template.0)].lookup.as_deref()?;
            Some((&*template.text, Told::read(template, bytes).wanted(template).collect()))
        })
    }

    /// Renders what waits for rows, under the set's limits. What has no answer widens, and
    /// `missing` is why.
    pub fn resolve(&mut self, answers: &Answers, missing: WidenReason) {
        let (pending, before) = (take(&mut self.pending), take(&mut self.before));
        for (template, bytes) in pending.iter() {
            let usage = self.usage.get_mut(template);
            usage.pending = 0;
            usage.bytes -= cost(bytes);
            self.used_bytes -= cost(bytes);
        }
        let (templates, mut renderer) = (Arc::clone(&self.templates), Renderer::default());
        let rows = Rows { answers, missing, before: before.by_params() };
        for (id, bytes) in pending.iter() {
            if let Some(template) = &templates[usize::from(id.0)].lookup {
                Told::read(template, bytes).each_choice(template, &rows, |values| {
                    renderer.add_values(id, &template.template, values.iter().copied(), self);
                });
            }
        }
        self.weigh();
    }

    /// The transaction has no more changes: frees what nothing of it needs.
    pub fn end(&mut self) {
        if !self.has_pending() {
            self.before = Before::default();
        }
        self.weigh();
    }

    /// Notes what a lookup gave before the transaction: see [`before`](crate::keys::before).
    pub(in crate::keys) fn add_before(&mut self, lookup: LookupId, row: &[u8]) {
        self.before.add(lookup, row);
        self.weigh();
    }

    /// What a lookup gave before the transaction is not known any more.
    pub(in crate::keys) fn lose_before(&mut self, lookup: LookupId, why: WidenReason) {
        self.before.lose(lookup, why);
        self.weigh();
    }

    /// Whether what a lookup gave before the transaction is not known.
    pub(in crate::keys) fn has_lost(&self, lookup: LookupId) -> bool {
        self.before.why_lost(lookup).is_some()
    }

    /// Takes over what lookups gave before the transaction.
    pub(super) fn merge_before(&mut self, other: &Before) {
        other.rows().for_each(|(lookup, row)| self.add_before(lookup, row));
        other.lost().for_each(|(lookup, why)| self.lose_before(lookup, why));
    }

    /// Adds what the template needs rows for.
    pub(in crate::keys) fn add_pending(&mut self, template: TemplateId, bytes: &[u8]) {
        if self.is_whole(template) || self.pending.contains(template, bytes) {
            return;
        }
        let own = Usage { pending: 1, bytes: cost(bytes), ..Usage::default() };
        if self.make_room(template, own) {
            self.pending.insert(template, bytes);
            let usage = self.usage.get_mut(template);
            usage.pending += 1;
            usage.bytes += own.bytes;
            self.used_bytes += own.bytes;
            self.weigh();
        }
    }
}
