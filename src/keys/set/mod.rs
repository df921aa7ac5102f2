//! The keys of one or many transactions, each once, within limits.
//!
//! Exact keys lie back to back in one arena with a hash index beside it, so a key that is already
//! there costs no allocation and one that is not costs none of its own. Every key and pattern
//! belongs to the template that gave it first. At a limit (I6) the largest template collapses: what
//! it gave is dropped, and its widest pattern, with every placeholder a `*`, takes the place. That
//! pattern matches whatever the template could give, so nothing is lost by it.

mod beyond;
mod cut;
mod lookups;
mod sparse;

use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::before::Before;
use super::label::{RuleId, TemplateId, TemplateInfo, Whole, WidenReason};
use super::lookup::LookupId;
use super::pattern::Pattern;
use super::pending::Pending;
use crate::budget::{Charge, Memory, SET_USED};
use sparse::Sparse;

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

impl Default for Limits {
    fn default() -> Limits {
        Limits { keys: 100_000, bytes: SET_USED, patterns: 1_000 }
    }
}

/// De-duplicated exact keys and patterns, each attributed to the rule that gave it first.
#[derive(Clone)]
pub struct KeySet {
    templates: Arc<[TemplateInfo]>,
    limits: Limits,
    hasher: DefaultHashBuilder,
    arena: Vec<u8>,
    keys: Vec<Key>,
    key_index: HashTable<u32>,
    patterns: Vec<(TemplateId, Pattern)>,
    pattern_index: HashTable<u32>,
    usage: Sparse<Usage>,
    used_bytes: usize,
    used_patterns: usize,
    rules: Sparse<RuleCount>,
    /// What waits for rows of lookups.
    pending: Pending,
    /// Rows of lookups before the transaction.
    before: Before,
    /// Memory of the patterns, bytes.
    pattern_bytes: usize,
    charge: Charge,
}

/// Where an exact key lies in the arena.
#[derive(Clone, Copy)]
struct Key {
    start: u32,
    len: u32,
    template: TemplateId,
}

/// What one template holds of a set.
#[derive(Clone, Copy, Default)]
struct Usage {
    keys: usize,
    patterns: usize,
    bytes: usize,
    /// Everything that the template could give is in the set.
    whole: bool,
    pending: usize,
}

/// A part of what a set holds.
pub(super) enum Content<'a> {
    /// Everything that a template could give.
    Whole(TemplateId),
    /// An exact key of a template.
    Key(TemplateId, &'a [u8]),
    /// A pattern of a template.
    Pattern(TemplateId, &'a [u8]),
    /// What a template needs rows for.
    Pending(TemplateId, &'a [u8]),
    /// What a lookup gave before the transaction.
    Before(LookupId, &'a [u8]),
    /// What a lookup gave before the transaction is not known.
    Lost(LookupId, WidenReason),
    /// How many changes a rule looked at.
    Matches(RuleId, u64),
    /// How often a rule was widened.
    Widened(RuleId, WidenReason, u64),
}

#[derive(Clone, Copy, Default)]
struct RuleCount {
    matches: u64,
    widened: [u64; WidenReason::ALL.len()],
}

/// Keys and patterns that are shown in a message, at most.
const SHOWN_MAX: usize = 20;

/// Entries that wait for rows, each of which may be one to be read.
const PENDING_MAX: usize = 10_000;

/// A part of a set that is larger grows by less.
const LARGE_BYTES: usize = 256 << 10;

/// What a key costs beside its bytes: its entry, and its slots in a half-full index.
const KEY_COST: usize = size_of::<Key>() + 2 * (size_of::<u32>() + 1);

/// What a pattern costs beside its bytes: the compiled form, measured on patterns of two stars.
const PATTERN_COST: usize = 512;

impl KeySet {
    pub(super) fn new(
        templates: Arc<[TemplateInfo]>,
        limits: Limits,
        memory: &Arc<Memory>,
    ) -> KeySet {
        KeySet {
            templates,
            limits: Limits { bytes: limits.bytes.min(u32::MAX as usize), ..limits },
            hasher: DefaultHashBuilder::default(),
            arena: Vec::new(),
            keys: Vec::new(),
            key_index: HashTable::new(),
            patterns: Vec::new(),
            pattern_index: HashTable::new(),
            usage: Sparse::new(),
            used_bytes: 0,
            used_patterns: 0,
            rules: Sparse::new(),
            pending: Pending::default(),
            before: Before::default(),
            pattern_bytes: 0,
            charge: Charge::new(memory),
        }
    }

    /// The first keys and patterns, for messages: what no row has given holds no value of one.
    #[must_use]
    pub fn shown(&self) -> String {
        let exact = self.exact().map(|(_, key)| key);
        let patterns = self.patterns().map(|(_, pattern)| pattern.as_bytes());
        let all: Vec<&[u8]> = exact.chain(patterns).collect();
        let shown = all.iter().take(SHOWN_MAX).map(|key| format!("`{}`", key.escape_ascii()));
        let mut shown: Vec<String> = shown.collect();
        if all.len() > SHOWN_MAX {
            shown.push(format!("{} more", all.len() - SHOWN_MAX));
        }
        shown.join(", ")
    }

    /// Whether there is nothing to remove.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.patterns.is_empty() && !self.has_pending()
    }

    /// The number of exact keys.
    #[must_use]
    pub fn exact_len(&self) -> usize {
        self.keys.len()
    }

    /// The memory that the set holds, bytes, estimated.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.charge.bytes()
    }

    /// Counts something else where this set is counted: nothing yet.
    #[must_use]
    pub fn new_charge(&self) -> Charge {
        Charge::new(self.charge.memory())
    }

    /// The same set, which is not counted: it is of the configuration, and stays.
    #[must_use]
    pub fn uncounted(mut self) -> KeySet {
        self.charge = Charge::new(&Arc::default());
        self.weigh();
        self
    }

    /// Counts what is held now.
    pub(super) fn weigh(&mut self) {
        self.charge.set(
            self.arena.capacity()
                + self.keys.capacity() * size_of::<Key>()
                + self.key_index.capacity() * 2 * size_of::<u32>()
                + self.usage.bytes()
                + self.rules.bytes()
                + self.pending.bytes()
                + self.before.bytes()
                + self.pattern_bytes,
        );
    }

    /// The exact keys.
    pub fn exact(&self) -> impl Iterator<Item = (RuleId, &[u8])> {
        self.keys.iter().map(|key| (self.rule_of(key.template), key.bytes(&self.arena)))
    }

    /// The rule of an exact key of the set; `None` if it has no such key.
    #[must_use]
    pub fn exact_rule(&self, key: &[u8]) -> Option<RuleId> {
        let hash = self.hasher.hash_one(key);
        let same = |at: &u32| self.keys[*at as usize].bytes(&self.arena) == key;
        let at = self.key_index.find(hash, same)?;
        Some(self.rule_of(self.keys[*at as usize].template))
    }

    /// The patterns.
    pub fn patterns(&self) -> impl Iterator<Item = (RuleId, &Pattern)> {
        self.patterns.iter().map(|(template, pattern)| (self.rule_of(*template), pattern))
    }

    /// Whether removing the set needs a SCAN pass.
    #[must_use]
    pub fn has_patterns(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// How often a template of a rule was widened, for each reason that occurred. A template that
    /// is whole in the set already is not counted again.
    pub fn widened(&self) -> impl Iterator<Item = (RuleId, WidenReason, u64)> {
        self.rules.iter().flat_map(|(rule, counts)| {
            let reasons = WidenReason::ALL.into_iter().zip(counts.widened);
            reasons
                .filter(|(_, count)| *count > 0)
                .map(move |(reason, count)| (rule, reason, count))
        })
    }

    /// How many changes each rule that matched at all looked at.
    pub fn matches(&self) -> impl Iterator<Item = (RuleId, u64)> {
        self.rules
            .iter()
            .filter(|(_, counts)| counts.matches > 0)
            .map(|(rule, counts)| (rule, counts.matches))
    }

    /// Adds all of `other`, a set of the same [`Rules`](super::Rules), under this one's limits.
    pub fn merge(&mut self, other: &KeySet) {
        debug_assert!(Arc::ptr_eq(&self.templates, &other.templates), "sets of different rules");
        for (template, usage) in other.usage.iter() {
            if usage.whole {
                self.add_whole(template, None);
            }
        }
        for key in &other.keys {
            self.add_key(key.template, key.bytes(&other.arena));
        }
        for (template, pattern) in &other.patterns {
            self.add_parsed(*template, pattern.as_bytes(), || pattern.clone());
        }
        for (template, bytes) in other.pending.iter() {
            self.add_pending(template, bytes);
        }
        self.merge_before(&other.before);
        for (rule, others) in other.rules.iter::<RuleId>() {
            let own = self.rules.get_mut(rule);
            own.matches += others.matches;
            for (own, others) in own.widened.iter_mut().zip(others.widened) {
                *own += others;
            }
        }
        self.weigh();
    }

    /// Adds the exact keys of `other`, a set of the same [`Rules`](super::Rules), and nothing else.
    /// No limit holds: what a limit collapses would be a pattern, and no exact key any more.
    pub fn merge_exact(&mut self, other: &KeySet) {
        debug_assert!(Arc::ptr_eq(&self.templates, &other.templates), "sets of different rules");
        for key in &other.keys {
            self.insert_key(key.template, key.bytes(&other.arena));
        }
    }

    /// Everything that makes up the set, part by part: a set that takes all of it is the same.
    pub(super) fn content(&self, mut each: impl FnMut(Content<'_>)) {
        let whole = self.usage.iter().filter(|(_, usage)| usage.whole);
        whole.for_each(|(template, _)| each(Content::Whole(template)));
        for key in self.keys.iter().filter(|key| !self.is_whole(key.template)) {
            each(Content::Key(key.template, key.bytes(&self.arena)));
        }
        for (template, pattern) in self.patterns.iter().filter(|(id, _)| !self.is_whole(*id)) {
            each(Content::Pattern(*template, pattern.as_bytes()));
        }
        self.pending.iter().for_each(|(template, bytes)| each(Content::Pending(template, bytes)));
        self.before.rows().for_each(|(lookup, row)| each(Content::Before(lookup, row)));
        self.before.lost().for_each(|(lookup, why)| each(Content::Lost(lookup, why)));
        self.matches().for_each(|(rule, count)| each(Content::Matches(rule, count)));
        self.widened().for_each(|(rule, why, count)| each(Content::Widened(rule, why, count)));
    }

    /// Gives up every exact key and pattern for its template's widest, to free memory (I6). Gives
    /// the rules that were widened by it, and how often.
    pub fn collapse(&mut self) -> Vec<(RuleId, u64)> {
        let is_narrow =
            |usage: &Usage| !usage.whole && usage.keys + usage.patterns + usage.pending > 0;
        let used = self.usage.iter().filter(|(_, usage)| is_narrow(usage));
        let narrow: Vec<TemplateId> = used.map(|(template, _)| template).collect();
        let mut widened: Vec<(RuleId, u64)> = Vec::new();
        for template in narrow {
            self.add_whole(template, Some(WidenReason::Limit));
            let rule = self.rule_of(template);
            match widened.iter_mut().find(|(other, _)| *other == rule) {
                Some((_, count)) => *count += 1,
                None => widened.push((rule, 1)),
            }
        }
        self.before.lose_all();
        self.shrink();
        widened
    }

    /// Gives memory back that was used.
    fn shrink(&mut self) {
        self.arena.shrink_to_fit();
        self.keys.shrink_to_fit();
        self.key_index = HashTable::new();
        (0..small(self.keys.len())).for_each(|at| self.index_key(at));
        self.weigh();
    }

    /// Whether everything that the template could give is in the set.
    pub(super) fn is_whole(&self, template: TemplateId) -> bool {
        self.usage.get(template).whole
    }

    pub(super) fn count_match(&mut self, rule: RuleId) {
        self.count_matches(rule, 1);
    }

    pub(super) fn count_matches(&mut self, rule: RuleId, count: u64) {
        self.rules.get_mut(rule).matches += count;
    }

    /// Counts a change that the rule looked at for this reason.
    pub(super) fn count_doubt(&mut self, rule: RuleId, reason: WidenReason) {
        self.rules.get_mut(rule).widened[reason as usize] += 1;
    }

    pub(super) fn count_widened(&mut self, template: TemplateId, reason: WidenReason) {
        self.count_widenings(self.rule_of(template), reason, 1);
    }

    pub(super) fn count_widenings(&mut self, rule: RuleId, reason: WidenReason, count: u64) {
        self.rules.get_mut(rule).widened[reason as usize] += count;
    }

    /// Adds everything that the template could give, in the place of what it gave before. With a
    /// reason this counts as widened, unless the template was whole already.
    pub(super) fn add_whole(&mut self, template: TemplateId, reason: Option<WidenReason>) {
        if self.is_whole(template) {
            return;
        }
        if let Some(reason) = reason {
            self.count_widened(template, reason);
        }
        self.drop_all_of(template);
        self.usage.get_mut(template).whole = true;
        let templates = Arc::clone(&self.templates);
        match &templates[usize::from(template.0)].whole {
            Whole::Key(key) => self.insert_key(template, key),
            Whole::Pattern(pattern) => {
                self.insert_pattern(template, pattern.as_bytes(), || pattern.clone());
            }
        }
    }

    /// Adds an exact key that the template gave.
    pub(super) fn add_key(&mut self, template: TemplateId, key: &[u8]) {
        if self.is_whole(template) || self.has_key(key) {
            return;
        }
        let own = Usage { keys: 1, bytes: key_cost(key), ..Usage::default() };
        if self.make_room(template, own) {
            self.insert_key(template, key);
        }
    }

    /// Adds a pattern that the template gave.
    pub(super) fn add_pattern(&mut self, template: TemplateId, bytes: &[u8]) {
        self.add_parsed(template, bytes, || Pattern::parse(bytes));
    }

    fn add_parsed(&mut self, template: TemplateId, bytes: &[u8], parse: impl FnOnce() -> Pattern) {
        if self.is_whole(template) || self.has_pattern(bytes) {
            return;
        }
        let own = Usage { patterns: 1, bytes: pattern_cost(bytes), ..Usage::default() };
        if self.make_room(template, own) {
            self.insert_pattern(template, bytes, parse);
        }
    }

    /// Collapses the largest template until `more` fits; false if that was `template` itself.
    fn make_room(&mut self, template: TemplateId, more: Usage) -> bool {
        while !self.is_whole(template) {
            let measure: fn(&Usage) -> usize = if self.keys.len() + more.keys > self.limits.keys {
                |usage| usage.keys
            } else if self.used_patterns + more.patterns > self.limits.patterns {
                |usage| usage.patterns
            } else if self.pending.len() + more.pending > self.limits.keys.min(PENDING_MAX) {
                |usage| usage.pending
            } else if self.used_bytes + more.bytes > self.limits.bytes {
                |usage| usage.bytes
            } else {
                return true;
            };
            // Its own entry is among them, from now on.
            self.usage.get_mut(template);
            let largest =
                self.usage.iter().filter(|(_, usage)| !usage.whole).max_by_key(|(id, usage)| {
                    measure(usage) + if *id == template { measure(&more) } else { 0 }
                });
            let largest = largest.map_or(template, |(id, _)| id);
            self.add_whole(largest, Some(WidenReason::Limit));
        }
        false
    }

    fn rule_of(&self, template: TemplateId) -> RuleId {
        self.templates[usize::from(template.0)].rule
    }

    fn has_key(&self, key: &[u8]) -> bool {
        self.exact_rule(key).is_some()
    }

    fn has_pattern(&self, bytes: &[u8]) -> bool {
        let hash = self.hasher.hash_one(bytes);
        let same = |at: &u32| self.patterns[*at as usize].1.as_bytes() == bytes;
        self.pattern_index.find(hash, same).is_some()
    }

    /// Puts a key in that passed the limits, or is the only one of its template.
    fn insert_key(&mut self, template: TemplateId, bytes: &[u8]) {
        if self.has_key(bytes) {
            return;
        }
        let key = Key { start: small(self.arena.len()), len: small(bytes.len()), template };
        let at = small(self.keys.len());
        let room = self.room();
        reserve(&mut self.arena, bytes.len());
        reserve(&mut self.keys, 1);
        self.arena.extend_from_slice(bytes);
        self.keys.push(key);
        self.index_key(at);
        let usage = self.usage.get_mut(template);
        usage.keys += 1;
        usage.bytes += key_cost(bytes);
        self.used_bytes += key_cost(bytes);
        if self.room() != room {
            self.weigh();
        }
    }

    /// The room for exact keys: while it stays, they take no more memory.
    fn room(&self) -> (usize, usize, usize) {
        (self.arena.capacity(), self.keys.capacity(), self.key_index.capacity())
    }

    /// Puts a pattern in that passed the limits, or is the widest of its template.
    fn insert_pattern(
        &mut self,
        template: TemplateId,
        bytes: &[u8],
        parse: impl FnOnce() -> Pattern,
    ) {
        if self.has_pattern(bytes) {
            return;
        }
        let at = small(self.patterns.len());
        self.patterns.push((template, parse()));
        self.index_pattern(at);
        self.pattern_bytes += pattern_cost(bytes);
        let usage = self.usage.get_mut(template);
        if !usage.whole {
            usage.patterns += 1;
            usage.bytes += pattern_cost(bytes);
            self.used_patterns += 1;
            self.used_bytes += pattern_cost(bytes);
        }
        self.weigh();
    }

    fn index_key(&mut self, at: u32) {
        let (hasher, keys, arena) = (&self.hasher, &self.keys, &self.arena);
        let hash = |at: &u32| hasher.hash_one(keys[*at as usize].bytes(arena));
        self.key_index.insert_unique(hash(&at), at, hash);
    }

    fn index_pattern(&mut self, at: u32) {
        let (hasher, patterns) = (&self.hasher, &self.patterns);
        let hash = |at: &u32| hasher.hash_one(patterns[*at as usize].1.as_bytes());
        self.pattern_index.insert_unique(hash(&at), at, hash);
    }

    /// Takes out what the template gave, and closes the gaps.
    fn drop_all_of(&mut self, template: TemplateId) {
        let usage = self.usage.take(template);
        self.used_bytes -= usage.bytes;
        self.used_patterns -= usage.patterns;
        if usage.pending > 0 {
            self.pending.drop_all_of(template);
        }
        if usage.keys > 0 {
            let (arena, mut end) = (&mut self.arena, 0);
            self.keys.retain_mut(|key| {
                let keep = key.template != template;
                if keep {
                    let start = key.start as usize;
                    arena.copy_within(start..start + key.len as usize, end);
                    key.start = small(end);
                    end += key.len as usize;
                }
                keep
            });
            self.arena.truncate(end);
            self.key_index.clear();
            (0..small(self.keys.len())).for_each(|at| self.index_key(at));
        }
        if usage.patterns > 0 {
            self.patterns.retain(|(owner, _)| *owner != template);
            self.pattern_index.clear();
            (0..small(self.patterns.len())).for_each(|at| self.index_pattern(at));
            let own = self.patterns.iter().map(|(_, pattern)| pattern_cost(pattern.as_bytes()));
            self.pattern_bytes = own.sum();
        }
        self.weigh();
    }
}

impl Key {
    fn bytes<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        &arena[self.start as usize..self.start as usize + self.len as usize]
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

fn key_cost(key: &[u8]) -> usize {
    key.len() + KEY_COST
}

/// The bytes stand in the pattern, and again in its compiled form.
fn pattern_cost(bytes: &[u8]) -> usize {
    2 * bytes.len() + PATTERN_COST
}

/// Makes room for so many more. A large one grows by a quarter, not to twice its size (I6).
fn reserve<T>(items: &mut Vec<T>, more: usize) {
    let (capacity, needed) = (items.capacity(), items.len() + more);
    if needed > capacity && capacity * size_of::<T>() > LARGE_BYTES {
        items.reserve_exact(needed.max(capacity + capacity / 4) - items.len());
    }
}

fn small(size: usize) -> u32 {
    u32::try_from(size).expect("a key set is limited to less than 4 GiB")
}
