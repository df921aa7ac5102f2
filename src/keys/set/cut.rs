//! Parts of a key set as sets of their own, for what a server refuses or a limit widens.

use std::cmp::Reverse;
use std::sync::Arc;

use hashbrown::HashMap;

use super::{Content, KeySet, Usage};
use crate::keys::item::Item;
use crate::keys::label::{RuleId, TemplateId, Whole, WidenReason};
use crate::keys::pattern::Pattern;

/// Part of what all templates hold that is given up at once: every time costs a walk through the
/// set, and with a thousand rules one of them frees next to nothing.
const PART_AT_ONCE: usize = 8;

/// Of templates and what they hold, those to give up: the largest, and with it others that hold
/// more than half as much, until that is a part of all. In the order of their ids.
pub(super) fn largest(mut sizes: Vec<(TemplateId, usize)>) -> Vec<TemplateId> {
    let all: usize = sizes.iter().map(|(_, size)| size).sum();
    sizes.sort_unstable_by_key(|(template, size)| (Reverse(*size), template.0));
    let half = sizes.first().map_or(0, |(_, largest)| largest / 2);
    let mut taken = 0;
    let mut largest: Vec<TemplateId> = Vec::new();
    for (template, size) in sizes {
        if !largest.is_empty() && (size <= half || taken >= all / PART_AT_ONCE) {
            break;
        }
        taken += size;
        largest.push(template);
    }
    largest.sort_unstable_by_key(|template| template.0);
    largest
}

impl KeySet {
    /// A set of the same rules that holds nothing.
    #[must_use]
    pub fn emptied(&self) -> KeySet {
        let empty = KeySet::new(Arc::clone(&self.templates), self.limits, self.charge.memory());
        KeySet { target: self.target, ..empty }
    }

    /// Moves the exact keys that `is_wanted` names into a set of their own.
    #[must_use]
    pub fn take_exact(&mut self, is_wanted: impl Fn(&[u8]) -> bool) -> KeySet {
        let mut taken = self.emptied();
        if !self.exact().any(|(_, key)| is_wanted(key)) {
            return taken;
        }
        let mut rest = self.emptied();
        self.content(|content| match content {
            Content::Whole(id) if self.whole_key(id).is_some_and(&is_wanted) => taken.put(content),
            Content::Key(_, key) if is_wanted(key) => taken.put(content),
            Content::Matches(..) | Content::Widened(..) => {}
            _ => rest.put(content),
        });
        rest.matches.clone_from(&self.matches);
        rest.widened.clone_from(&self.widened);
        rest.weigh();
        *self = rest;
        taken
    }

    /// The patterns alone, without the exact keys.
    #[must_use]
    pub fn patterns_only(&self) -> KeySet {
        let mut only = self.emptied();
        self.patterns.iter().for_each(|(template, own)| self.copy(template, own, &mut only));
        only
    }

    /// `keys`, that `pattern` of this set matches, as exact keys of the template that gave it; with
    /// the pattern itself, if `whole`. Empty, if the set has no such pattern.
    #[must_use]
    pub fn matched<'a>(
        &self,
        pattern: &Pattern,
        keys: impl Iterator<Item = &'a [u8]>,
        whole: bool,
    ) -> KeySet {
        let mut matched = self.emptied();
        let mut owners = self.patterns.iter().filter(|(_, own)| *own == pattern);
        if let Some((template, own)) = owners.next() {
            if whole {
                self.copy(template, own, &mut matched);
            } else {
                keys.for_each(|key| matched.add_key(template, key));
            }
        }
        matched
    }

    /// Whether this template gave a key.
    #[must_use]
    pub(in crate::keys) fn has_of(&self, template: TemplateId) -> bool {
        self.usage.get(template).held.keys > 0 || self.is_whole(template)
    }

    /// Each rule's part of the set.
    #[must_use]
    pub fn by_rule(&self) -> Vec<(RuleId, KeySet)> {
        let mut parts: Vec<(RuleId, KeySet)> = Vec::new();
        let mut places: HashMap<RuleId, usize> = HashMap::new();
        self.content(|content| {
            let (Content::Whole(template)
            | Content::Key(template, _)
            | Content::Pattern(template, _)
            | Content::Item(template, _)
            | Content::Pending(template, _)) = content
            else {
                return;
            };
            let rule = self.rule_of(template);
            let at = places.entry(rule).or_insert_with(|| {
                parts.push((rule, self.emptied()));
                parts.len() - 1
            });
            if let Some((_, part)) = parts.get_mut(*at) {
                part.put(content);
            }
        });
        parts
    }

    /// Gives the memory that [`KeySet::collapse`] may free, bytes.
    #[must_use]
    pub fn narrow_bytes(&self) -> usize {
        let is_narrow = |(id, usage): &(TemplateId, &Usage)| !usage.whole && self.frees(*id, usage);
        let narrow = self.usage.iter::<TemplateId>().filter(is_narrow);
        narrow.map(|(_, usage)| usage.held.bytes).sum()
    }

    /// Gives up what the largest templates gave for their widest patterns, as far as they hold
    /// `least` bytes each; gives their rules. None, if that frees no memory.
    pub fn collapse_largest(&mut self, least: usize) -> Vec<(RuleId, u64)> {
        let is_narrow = |usage: &Usage| !usage.whole && usage.held.keys + usage.held.patterns > 0;
        let frees = |(id, usage): &(TemplateId, &Usage)| is_narrow(usage) && self.frees(*id, usage);
        let narrow = self.usage.iter().filter(frees);
        let sizes = narrow.map(|(template, usage)| (template, usage.held.bytes));
        let largest = largest(sizes.filter(|(_, bytes)| *bytes >= least).collect());
        if largest.is_empty() {
            return Vec::new();
        }
        self.widen(&largest, Some(WidenReason::Limit));
        self.keys.shrink();
        self.items.shrink();
        self.weigh();
        largest.into_iter().map(|template| (self.rule_of(template), 1)).collect()
    }

    /// Adds all of `other` as [`merge`](KeySet::merge) does; gives the rules that were widened
    /// because both together are too much, and how often.
    pub fn merge_within(&mut self, other: &KeySet) -> Vec<(RuleId, u64)> {
        let before = self.widened.clone();
        self.merge(other);
        let limit = WidenReason::Limit;
        let count = |(rule, _, now): (RuleId, WidenReason, u64)| {
            let known = before.get(rule, limit) + other.widened.get(rule, limit);
            (rule, now.saturating_sub(known))
        };
        let now = self.widened.iter().filter(|(_, reason, _)| *reason == limit);
        now.map(count).filter(|(_, count)| *count > 0).collect()
    }

    /// All that a rule could ever give, as patterns; a key without placeholders is its own.
    pub fn widest(&self, rule: RuleId) -> impl Iterator<Item = &[u8]> {
        self.templates.iter().filter(move |template| template.rule == rule).map(|template| {
            match &template.whole {
                Whole::Key(key) => &**key,
                Whole::Pattern(pattern) => pattern.as_bytes(),
                Whole::Item(item) => Item::read(item).key(),
            }
        })
    }

    /// All items that a rule could ever give, in words: they hold no value of a row.
    #[must_use]
    pub fn widest_items(&self, rule: RuleId) -> Vec<String> {
        let of_rule = self.templates.iter().filter(move |template| template.rule == rule);
        let items = of_rule.filter_map(|template| match &template.whole {
            Whole::Item(item) => Some(Item::read(item).to_string()),
            Whole::Key(_) | Whole::Pattern(_) => None,
        });
        items.collect()
    }

    fn whole_key(&self, template: TemplateId) -> Option<&[u8]> {
        match &self.templates[usize::from(template.0)].whole {
            Whole::Key(key) => Some(key),
            Whole::Pattern(_) | Whole::Item(_) => None,
        }
    }

    /// Puts a pattern of this set into another one.
    fn copy(&self, template: TemplateId, pattern: &Pattern, into: &mut KeySet) {
        if self.is_whole(template) && self.whole_key(template).is_none() {
            into.add_whole(template, None);
        } else {
            into.add_pattern(template, pattern.as_bytes());
        }
    }
}
