//! The part of a key set that waits for rows of lookups.

use std::sync::Arc;

use hashbrown::HashSet;

use super::{KeySet, Usage};
use crate::keys::label::{TemplateId, WidenReason};
use crate::keys::lookup::{Answers, Wanted};
use crate::keys::pending::{self, Told};
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
        let pending = std::mem::take(&mut self.pending);
        for (template, bytes) in pending.iter() {
            let usage = self.usage.get_mut(template);
            usage.pending = 0;
            usage.bytes -= pending::cost(bytes);
            self.used_bytes -= pending::cost(bytes);
        }
        let (templates, mut renderer) = (Arc::clone(&self.templates), Renderer::default());
        for (id, bytes) in pending.iter() {
            if let Some(template) = &templates[usize::from(id.0)].lookup {
                let values = Told::read(template, bytes).values(template, (answers, missing));
                renderer.add_values(id, &template.template, values.iter().copied(), self);
            }
        }
    }

    /// Adds what the template needs rows for.
    pub(in crate::keys) fn add_pending(&mut self, template: TemplateId, bytes: &[u8]) {
        if self.is_whole(template) || self.pending.contains(template, bytes) {
            return;
        }
        let own = Usage { pending: 1, bytes: pending::cost(bytes), ..Usage::default() };
        if self.make_room(template, own) {
            self.pending.insert(template, bytes);
            let usage = self.usage.get_mut(template);
            usage.pending += 1;
            usage.bytes += own.bytes;
            self.used_bytes += own.bytes;
        }
    }
}
