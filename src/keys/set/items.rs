//! The items of a key set: removals inside of keys.

use super::{Amount, Content, KeySet};
use crate::keys::arena::Arena;
use crate::keys::item::{Item, Reach};
use crate::keys::label::{RuleId, TemplateId, Whole};

/// Items with their templates, each once in its scope. Most sets have none, and pay for none.
#[derive(Clone, Default)]
pub(super) struct Items(Option<Box<Arena<TemplateId>>>);

impl Items {
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |items| items.len())
    }

    /// The memory that they hold, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |items| size_of::<Arena<TemplateId>>() + items.bytes())
    }

    /// Each with its template.
    pub(super) fn iter(&self) -> impl Iterator<Item = (TemplateId, &[u8])> {
        self.0.iter().flat_map(|items| items.iter())
    }

    pub(super) fn has(&self, scope: u16, item: &[u8]) -> bool {
        self.0.as_ref().is_some_and(|items| items.owner(scope, item).is_some())
    }

    /// Adds one, unless the scope has it; then false.
    pub(super) fn insert(&mut self, template: TemplateId, scope: u16, item: &[u8]) -> bool {
        self.0.get_or_insert_default().insert(template, scope, item)
    }

    /// Takes out what all but these templates gave.
    pub(super) fn retain(&mut self, stays: impl Fn(TemplateId) -> bool) {
        if let Some(items) = &mut self.0 {
            items.retain(stays);
            self.0.take_if(|items| items.len() == 0);
        }
    }

    /// Gives memory back that was used.
    pub(super) fn shrink(&mut self) {
        self.0.iter_mut().for_each(|items| items.shrink());
    }
}

impl KeySet {
    /// The items: what is removed inside of keys.
    pub fn items(&self) -> impl Iterator<Item = (RuleId, Item<'_>)> {
        self.items.iter().map(|(template, item)| (self.rule_of(template), Item::read(item)))
    }

    /// The number of items.
    #[must_use]
    pub fn items_len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are items that are reached so.
    #[must_use]
    pub fn has_items(&self, reach: Reach) -> bool {
        self.items().any(|(_, item)| item.reach() == reach)
    }

    /// Whether rules of the set may give items at all.
    #[must_use]
    pub fn may_have_items(&self) -> bool {
        self.templates.iter().any(|template| matches!(template.whole, Whole::Item(_)))
    }

    /// Adds an item that the template gave.
    pub(in crate::keys) fn add_item(&mut self, template: TemplateId, item: &[u8]) {
        let scope = self.scope(template);
        if self.is_whole(template) || self.items.has(scope, item) {
            return;
        }
        let own = Amount::of_item(Item::read(item));
        if self.make_room(template, own) && self.items.insert(template, scope, item) {
            self.grow(template, own);
            self.weigh();
        }
    }

    pub(super) fn has_item(&self, template: TemplateId, item: &[u8]) -> bool {
        self.items.has(self.scope(template), item)
    }

    pub(super) fn whole_item(&self, template: TemplateId) -> Option<&[u8]> {
        match &self.templates[usize::from(template.0)].whole {
            Whole::Item(item) => Some(item),
            Whole::Key(_) | Whole::Pattern(_) => None,
        }
    }

    /// Moves the items that `is_wanted` names, by their bytes, into a set of their own.
    #[must_use]
    pub fn take_items(&mut self, is_wanted: impl Fn(Item<'_>) -> bool) -> KeySet {
        if !self.items().any(|(_, item)| is_wanted(item)) {
            return self.emptied();
        }
        let is_taken = |set: &KeySet, content: &Content<'_>| match content {
            Content::Whole(id) => set.whole_item(*id).is_some_and(|one| is_wanted(Item::read(one))),
            Content::Item(_, item) => is_wanted(Item::read(item)),
            _ => false,
        };
        let (mut taken, mut rest) = (self.emptied(), self.emptied());
        self.content(|content| match content {
            Content::Matches(..) | Content::Widened(..) => {}
            content if is_taken(self, &content) => taken.put(content),
            content => rest.put(content),
        });
        rest.matches.clone_from(&self.matches);
        rest.widened.clone_from(&self.widened);
        rest.weigh();
        *self = rest;
        taken
    }

    /// Splits off what SCAN has to find, patterns and items; what is left needs none.
    #[must_use]
    pub fn take_scanned(&mut self) -> KeySet {
        let mut scanned = self.take_items(|item| item.reach() == Reach::Scanned);
        scanned.merge(&self.patterns_only());
        let mut rest = self.take_exact(|_| true);
        rest.merge(&self.take_items(|_| true));
        *self = rest;
        scanned
    }
}
