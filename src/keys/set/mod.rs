//! The keys of one or many transactions, each once, within limits.
//!
//! Exact keys lie back to back in one arena with a hash index beside it, so a key that is already
//! there costs no allocation and one that is not costs none of its own. Every key and pattern
//! belongs to the template that gave it first. At a limit (I6) the largest template collapses: what
//! it gave is dropped, and its widest pattern, with every placeholder a `*`, takes the place. That
//! pattern matches whatever the template could give, so nothing is lost by it.

mod beyond;
mod cut;
mod items;
mod patterns;
mod sparse;
mod targets;
mod waiting;
mod widened;

use std::collections::HashSet;
use std::fmt;
use std::ops::{AddAssign, SubAssign};
use std::sync::Arc;

use super::arena::{Arena, cost};
use super::before::Before;
use super::item::{Item, Reach};
use super::label::{LookupId, RuleId, TemplateId, Templates, Whole, WidenReason};
use super::pattern::Pattern;
use crate::budget::{Charge, Memory, SET_USED};
use crate::config::TargetId;
use items::Items;
use patterns::Patterns;
use sparse::Sparse;
use widened::Widened;

/// How large a [`KeySet`] may get.
///
/// The defaults: 100 000 keys are removed by some 200 UNLINK commands in about 0.1 s, the time of a
/// SCAN pass over some hundred thousand keys; beyond that a pass is no slower than the list. The
/// bytes leave 20 for each of them, beside what a key costs: see [`budget`](crate::budget). A
/// pattern is tried on every key of a pass for some 10 ns, so 1 000 of them make a pass over a
/// million keys cost 10 s of our time, and the one that they collapse to is the cheaper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Exact keys, count.
    pub keys: usize,
    /// Keys and patterns with their index entries, bytes; at most `u32::MAX`.
    pub bytes: usize,
    /// Patterns other than the widest of a template, count.
    pub patterns: usize,
}

impl Limits {
    /// The defaults where each of so many targets has a copy of each set.
    #[must_use]
    pub fn of(targets: usize) -> Limits {
        let Limits { keys, bytes, patterns } = Limits::default();
        Limits { keys, bytes: bytes / targets.max(1), patterns }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { keys: 100_000, bytes: SET_USED, patterns: 1_000 }
    }
}

/// De-duplicated exact keys and patterns, each attributed to the rule that gave it first: of those
/// rules whose keys go to the same targets, for what goes elsewhere must not be taken for known.
#[derive(Clone)]
pub struct KeySet {
    templates: Arc<Templates>,
    limits: Limits,
    /// The target that all of it is for, where rules differ in that.
    target: Option<TargetId>,
    keys: Arena<TemplateId>,
    patterns: Patterns,
    /// Removals inside of keys; mostly none.
    items: Items,
    usage: Sparse<Usage>,
    /// The amount that all templates hold.
    used: Amount,
    /// How many changes each rule looked at.
    matches: Sparse<u64>,
    widened: Widened,
    pending: Pending,
    /// Rows of lookups before the transaction.
    before: Before,
    charge: Charge,
}

/// Entries that wait for rows of lookups.
pub(super) type Pending = Arena<TemplateId>;

/// The part of a set that one template holds.
#[derive(Clone, Copy, Default)]
struct Usage {
    held: Amount,
    /// Everything that the template could give is in the set.
    whole: bool,
}

/// A part of a set, by what is limited.
#[derive(Clone, Copy, Default)]
struct Amount {
    keys: usize,
    /// Without the widest of a template; nor do their bytes count.
    patterns: usize,
    pending: usize,
    bytes: usize,
}

/// A part of what a set holds.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    /// Everything that a template could give.
    Whole(TemplateId),
    /// An exact key of a template.
    Key(TemplateId, &'a [u8]),
    /// A pattern of a template.
    Pattern(TemplateId, &'a Pattern),
    /// An item of a template.
    Item(TemplateId, &'a [u8]),
    /// An entry that a template needs rows for.
    Pending(TemplateId, &'a [u8]),
    /// A row that a lookup gave before the transaction.
    Before(LookupId, &'a [u8]),
    /// A lookup whose rows before the transaction are not known.
    Lost(LookupId, WidenReason),
    /// How many changes a rule looked at.
    Matches(RuleId, u64),
    /// How often a rule was widened.
    Widened(RuleId, WidenReason, u64),
}

/// Keys and patterns that are shown in a message, at most.
const SHOWN_MAX: usize = 20;

/// Entries that wait for rows, each of which may be one to be read.
const PENDING_MAX: usize = 10_000;

impl KeySet {
    pub(super) fn new(templates: Arc<Templates>, limits: Limits, memory: &Arc<Memory>) -> KeySet {
        KeySet {
            templates,
            limits: Limits { bytes: limits.bytes.min(u32::MAX as usize), ..limits },
            target: None,
            keys: Arena::default(),
            patterns: Patterns::default(),
            items: Items::default(),
            usage: Sparse::new(),
            used: Amount::default(),
            matches: Sparse::new(),
            widened: Widened::default(),
            pending: Pending::default(),
            before: Before::default(),
            charge: Charge::new(memory),
        }
    }

    /// The first keys and patterns, for messages: what no row has given holds no value of one.
    #[must_use]
    pub fn shown(&self) -> String {
        let exact = self.exact().map(|(_, key)| key);
        let patterns = self.patterns().map(|(_, pattern)| pattern.as_bytes());
        let all: Vec<&[u8]> = exact.chain(patterns).collect();
        let all: Vec<&[u8]> = each_once(all);
        let names = all.iter().map(|key| format!("`{}`", key.escape_ascii()));
        let items = self.items().map(|(_, item)| item.to_string());
        let (count, all) = (all.len() + self.items_len(), names.chain(items));
        let mut shown: Vec<String> = all.take(SHOWN_MAX).collect();
        if count > SHOWN_MAX {
            shown.push(format!("{} more", count - SHOWN_MAX));
        }
        shown.join(", ")
    }

    /// Whether there is nothing to remove.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let is_bare = self.exact_len() == 0 && self.patterns.len() == 0 && !self.has_pending();
        is_bare && self.items_len() == 0
    }

    /// The number of exact keys.
    #[must_use]
    pub fn exact_len(&self) -> usize {
        self.keys.len()
    }

    /// The number of patterns.
    #[must_use]
    pub fn patterns_len(&self) -> usize {
        self.patterns.len()
    }

    /// The memory that the set holds, bytes, estimated.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.charge.bytes()
    }

    /// Counts as on its way to Redis from now on, until [`KeySet::waits`], or a clone of it.
    pub fn on_its_way(&mut self) {
        self.charge.moves(true);
    }

    /// Counts as waiting for something from now on.
    pub fn waits(&mut self) {
        self.charge.moves(false);
    }

    /// Counts something else where this set is counted: nothing yet.
    #[must_use]
    pub fn new_charge(&self) -> Charge {
        Charge::new(self.charge.memory())
    }

    /// Stops counting the set: it is of the configuration, and stays.
    #[must_use]
    pub fn uncounted(mut self) -> KeySet {
        self.charge = Charge::new(&Arc::default());
        self.weigh();
        self
    }

    /// Counts what is held now.
    fn weigh(&mut self) {
        self.charge.set(
            self.keys.bytes()
                + self.patterns.bytes()
                + self.items.bytes()
                + self.usage.bytes()
                + self.matches.bytes()
                + self.widened.bytes()
                + self.pending.bytes()
                + self.before.bytes(),
        );
    }

    /// The exact keys.
    pub fn exact(&self) -> impl Iterator<Item = (RuleId, &[u8])> {
        self.keys.iter().map(|(template, key)| (self.rule_of(template), key))
    }

    /// The rule of an exact key of the set; `None` if it has no such key.
    #[must_use]
    pub fn exact_rule(&self, key: &[u8]) -> Option<RuleId> {
        let owner = self.scopes().iter().find_map(|scope| self.keys.owner(*scope, key));
        owner.map(|template| self.rule_of(template))
    }

    fn has_key(&self, template: TemplateId, key: &[u8]) -> bool {
        self.keys.owner(self.scope(template), key).is_some()
    }

    fn has_pattern(&self, template: TemplateId, bytes: &[u8]) -> bool {
        self.patterns.contains(self.scope(template), bytes)
    }

    /// The patterns.
    pub fn patterns(&self) -> impl Iterator<Item = (RuleId, &Pattern)> {
        self.patterns.iter().map(|(template, pattern)| (self.rule_of(template), pattern))
    }

    /// Whether removing the set needs a SCAN pass.
    #[must_use]
    pub fn has_patterns(&self) -> bool {
        self.patterns.len() > 0 || self.has_items(Reach::Scanned)
    }

    /// How often a template of a rule was widened, for each reason that occurred. A template that
    /// is whole in the set already is not counted again.
    pub fn widened(&self) -> impl Iterator<Item = (RuleId, WidenReason, u64)> {
        self.widened.iter()
    }

    /// How many keys and patterns each rule has, a rule perhaps more than once. What is inside of
    /// keys counts as either. Costs nothing for each key.
    pub fn sizes(&self) -> impl Iterator<Item = (RuleId, u64, u64)> {
        let held = self.usage.iter().map(|(template, usage): (TemplateId, &Usage)| {
            let is_pattern =
                !matches!(self.templates[usize::from(template.0)].whole, Whole::Key(_));
            let wholes = usize::from(usage.whole && is_pattern);
            let patterns = usage.held.patterns + wholes;
            (self.rule_of(template), usage.held.keys as u64, patterns as u64)
        });
        held.filter(|(_, keys, patterns)| keys + patterns > 0)
    }

    /// How many changes each rule that matched at all looked at.
    pub fn matches(&self) -> impl Iterator<Item = (RuleId, u64)> {
        let matched = self.matches.iter().filter(|(_, count)| **count > 0);
        matched.map(|(rule, count)| (rule, *count))
    }

    /// Adds all of `other`, a set of the same [`Rules`](super::Rules), under this one's limits.
    pub fn merge(&mut self, other: &KeySet) {
        debug_assert!(Arc::ptr_eq(&self.templates, &other.templates), "sets of different rules");
        other.content(|content| match content {
            // Most are keys, and a tenth faster without the way around.
            Content::Key(template, key) => self.add_key(template, key),
            rest => self.put(rest),
        });
    }

    /// Adds the exact keys of `other`, a set of the same [`Rules`](super::Rules), and nothing else.
    /// No limit holds: what a limit collapses would be a pattern, and no exact key any more.
    pub fn merge_exact(&mut self, other: &KeySet) {
        debug_assert!(Arc::ptr_eq(&self.templates, &other.templates), "sets of different rules");
        other.keys.iter().for_each(|(template, key)| self.insert_key(template, key));
    }

    /// Everything that makes up the set, part by part: a set that takes all of it is the same.
    pub(super) fn content(&self, mut each: impl FnMut(Content<'_>)) {
        let whole = self.usage.iter().filter(|(_, usage)| usage.whole);
        whole.for_each(|(template, _)| each(Content::Whole(template)));
        let keys = self.keys.iter().filter(|(template, _)| !self.is_whole(*template));
        keys.for_each(|(template, key)| each(Content::Key(template, key)));
        let patterns = self.patterns.iter().filter(|(template, _)| !self.is_whole(*template));
        patterns.for_each(|(template, pattern)| each(Content::Pattern(template, pattern)));
        let items = self.items.iter().filter(|(template, _)| !self.is_whole(*template));
        items.for_each(|(template, item)| each(Content::Item(template, item)));
        self.pending.iter().for_each(|(template, bytes)| each(Content::Pending(template, bytes)));
        self.before.rows().for_each(|(lookup, row)| each(Content::Before(lookup, row)));
        self.before.lost().for_each(|(lookup, why)| each(Content::Lost(lookup, why)));
        self.matches().for_each(|(rule, count)| each(Content::Matches(rule, count)));
        self.widened().for_each(|(rule, why, count)| each(Content::Widened(rule, why, count)));
    }

    /// Adds a part of another set, under this one's limits.
    fn put(&mut self, content: Content<'_>) {
        match content {
            Content::Whole(template) => self.add_whole(template, None),
            Content::Key(template, key) => self.add_key(template, key),
            Content::Pattern(template, pattern) => {
                self.add_parsed(template, pattern.as_bytes(), || pattern.clone());
            }
            Content::Item(template, item) => self.add_item(template, item),
            Content::Pending(template, bytes) => self.add_pending(template, bytes),
            Content::Before(lookup, row) => self.add_before(lookup, row),
            Content::Lost(lookup, why) => self.lose_before(lookup, why),
            Content::Matches(rule, count) => self.count_matches(rule, count),
            Content::Widened(rule, why, count) => self.count_widenings(rule, why, count),
        }
    }

    /// Gives up exact keys and patterns for their template's widest, wherever that frees memory
    /// (I6): a pattern takes as much as some ten keys. Gives the rules that were widened by it, and
    /// how often.
    pub fn collapse(&mut self) -> Vec<(RuleId, u64)> {
        let count = |held: &Amount| held.keys + held.patterns + held.pending;
        let is_narrow = |usage: &Usage| !usage.whole && count(&usage.held) > 0;
        let frees = |(id, usage): &(TemplateId, &Usage)| is_narrow(usage) && self.frees(*id, usage);
        let used = self.usage.iter().filter(frees);
        let narrow: Vec<TemplateId> = used.map(|(template, _)| template).collect();
        self.widen(&narrow, Some(WidenReason::Limit));
        let mut widened: Vec<(RuleId, u64)> = Vec::new();
        for template in narrow {
            // Templates of a rule follow each other.
            let rule = self.rule_of(template);
            match widened.last_mut() {
                Some((last, count)) if *last == rule => *count += 1,
                _ => widened.push((rule, 1)),
            }
        }
        self.before.lose_all();
        self.keys.shrink();
        self.items.shrink();
        self.weigh();
        widened
    }

    /// Whether the widest pattern of a template takes less than all that it gave.
    fn frees(&self, template: TemplateId, usage: &Usage) -> bool {
        match &self.templates[usize::from(template.0)].whole {
            Whole::Key(_) => true,
            Whole::Pattern(_) | Whole::Item(_) => usage.held.bytes > patterns::WORTH,
        }
    }

    /// Whether everything that the template could give is in the set.
    pub(super) fn is_whole(&self, template: TemplateId) -> bool {
        self.usage.get(template).whole
    }

    pub(super) fn count_match(&mut self, rule: RuleId) {
        self.count_matches(rule, 1);
    }

    pub(super) fn count_matches(&mut self, rule: RuleId, count: u64) {
        *self.matches.get_mut(rule) += count;
    }

    /// Counts a change that the rule looked at for this reason.
    pub(super) fn count_doubt(&mut self, rule: RuleId, reason: WidenReason) {
        self.count_widenings(rule, reason, 1);
    }

    pub(super) fn count_widened(&mut self, template: TemplateId, reason: WidenReason) {
        self.count_widenings(self.rule_of(template), reason, 1);
    }

    pub(super) fn count_widenings(&mut self, rule: RuleId, reason: WidenReason, count: u64) {
        self.widened.add(rule, reason, count);
    }

    /// Adds everything that the template could give, in the place of what it gave before. With a
    /// reason this counts as widened, unless the template was whole already.
    pub(super) fn add_whole(&mut self, template: TemplateId, reason: Option<WidenReason>) {
        if self.is_whole(template) {
            return;
        }
        self.widen(&[template], reason);
    }

    /// Puts all that these templates could give, none of which is whole, in the place of what they
    /// gave; they are in the order of their ids.
    fn widen(&mut self, narrow: &[TemplateId], reason: Option<WidenReason>) {
        self.drop_all_of(narrow);
        let templates = Arc::clone(&self.templates);
        for template in narrow.iter().copied() {
            if let Some(reason) = reason {
                self.count_widened(template, reason);
            }
            self.usage.get_mut(template).whole = true;
            let owner = (template, self.scope(template));
            match &templates[usize::from(template.0)].whole {
                Whole::Key(key) => self.insert_key(template, key),
                Whole::Pattern(pattern) => self.patterns.insert_widest(owner, pattern),
                Whole::Item(item) => drop(self.items.insert(template, owner.1, item)),
            }
        }
        self.weigh();
    }

    /// Adds an exact key that the template gave.
    pub(super) fn add_key(&mut self, template: TemplateId, key: &[u8]) {
        if self.is_whole(template) || self.has_key(template, key) {
            return;
        }
        if self.make_room(template, Amount::of_key(key)) {
            self.insert_key(template, key);
        }
    }

    /// Adds a pattern that the template gave.
    pub(super) fn add_pattern(&mut self, template: TemplateId, bytes: &[u8]) {
        self.add_parsed(template, bytes, || Pattern::parse(bytes));
    }

    fn add_parsed(&mut self, template: TemplateId, bytes: &[u8], parse: impl FnOnce() -> Pattern) {
        if self.is_whole(template) || self.has_pattern(template, bytes) {
            return;
        }
        let own = Amount { patterns: 1, bytes: patterns::cost(bytes), ..Amount::default() };
        let owner = (template, self.scope(template));
        if self.make_room(template, own) && self.patterns.insert(owner, bytes, parse) {
            self.grow(template, own);
            self.weigh();
        }
    }

    /// Collapses the largest templates until `more` fits; false if `template` was among them.
    fn make_room(&mut self, template: TemplateId, more: Amount) -> bool {
        while !self.is_whole(template) {
            let measure: fn(&Amount) -> usize = if self.used.keys + more.keys > self.limits.keys {
                |amount| amount.keys
            } else if more.patterns > 0 && self.has_too_many_patterns(template, more) {
                |amount| amount.patterns
            } else if self.used.pending + more.pending > self.limits.keys.min(PENDING_MAX) {
                |amount| amount.pending
            } else if self.used.bytes + more.bytes > self.limits.bytes {
                |amount| amount.bytes
            } else {
                return true;
            };
            // Its own entry is among them, from now on.
            self.usage.get_mut(template);
            let narrow = self.usage.iter().filter(|(_, usage)| !usage.whole);
            let sizes = narrow.map(|(id, usage)| {
                let own = if id == template { measure(&more) } else { 0 };
                (id, measure(&usage.held) + own)
            });
            let largest = cut::largest(sizes.collect());
            self.widen(&largest, Some(WidenReason::Limit));
        }
        false
    }

    /// Whether there would be too many patterns, and fewer if a template's became its widest: one
    /// that has a single pattern would give another in its place.
    fn has_too_many_patterns(&self, template: TemplateId, more: Amount) -> bool {
        let mut held = self.usage.iter::<TemplateId>().map(|(id, usage)| {
            usage.held.patterns + if id == template { more.patterns } else { 0 }
        });
        self.used.patterns + more.patterns > self.limits.patterns && held.any(|count| count > 1)
    }

    /// Gives the facts that are known of each template.
    pub(super) fn templates(&self) -> &Arc<Templates> {
        &self.templates
    }

    fn rule_of(&self, template: TemplateId) -> RuleId {
        self.templates[usize::from(template.0)].rule
    }

    /// Puts a key in that passed the limits, or is the only one of its template.
    fn insert_key(&mut self, template: TemplateId, key: &[u8]) {
        let held = self.keys.bytes();
        if self.keys.insert(template, self.scope(template), key) {
            self.grow(template, Amount::of_key(key));
            // Few keys need more memory than there is.
            if self.keys.bytes() != held {
                self.weigh();
            }
        }
    }

    /// The template holds so much more.
    fn grow(&mut self, template: TemplateId, more: Amount) {
        self.usage.get_mut(template).held += more;
        self.used += more;
    }

    /// Takes out what these templates gave, which are in the order of their ids.
    fn drop_all_of(&mut self, templates: &[TemplateId]) {
        let mut gone = Amount::default();
        for template in templates {
            // Its place is needed again.
            gone += std::mem::take(self.usage.get_mut(*template)).held;
        }
        self.used -= gone;
        let stays = |template: TemplateId| {
            templates.binary_search_by_key(&template.0, |one| one.0).is_err()
        };
        if gone.pending > 0 {
            self.pending.retain(stays);
            self.pending.shrink();
        }
        if gone.keys > 0 {
            self.keys.retain(stays);
        }
        if gone.patterns > 0 {
            self.patterns.retain(stays);
        }
        self.items.retain(stays);
    }
}

/// The first of each: rules that go to different targets may give the same.
fn each_once(all: Vec<&[u8]>) -> Vec<&[u8]> {
    let mut known = HashSet::new();
    all.into_iter().filter(|one| known.insert(*one)).collect()
}

impl Amount {
    fn of_key(key: &[u8]) -> Amount {
        Amount { keys: 1, bytes: cost(key), ..Amount::default() }
    }

    /// Of an item: one that SCAN has to find costs a pass as much as a pattern does.
    fn of_item(item: Item<'_>) -> Amount {
        let is_scanned = item.reach() == Reach::Scanned;
        let (keys, patterns) = (usize::from(!is_scanned), usize::from(is_scanned));
        Amount { keys, patterns, bytes: cost(item.bytes()), ..Amount::default() }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, more: Amount) {
        self.keys += more.keys;
        self.patterns += more.patterns;
        self.pending += more.pending;
        self.bytes += more.bytes;
    }
}

impl SubAssign for Amount {
    fn sub_assign(&mut self, less: Amount) {
        self.keys -= less.keys;
        self.patterns -= less.patterns;
        self.pending -= less.pending;
        self.bytes -= less.bytes;
    }
}

/// Only counts: keys hold row values (I9).
impl fmt::Debug for KeySet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("KeySet")
            .field("keys", &self.keys.len())
            .field("patterns", &self.patterns.len())
            .finish_non_exhaustive()
    }
}
