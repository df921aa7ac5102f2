//! Keys of transactions that Redis refused to remove: they are owed until it takes them.

use std::collections::BTreeMap;

use super::name::Moment;
use super::ring::Place;
use crate::config::TargetId;
use crate::keys::RuleId;

/// Memory of one entry beside what it holds, bytes: its share of the tree.
const ENTRY_BYTES: usize = 2 * size_of::<((Place, TargetId), Owed)>();

/// The part of a transaction that one target refused, or had refused, rule by rule.
#[derive(Clone, Debug)]
pub(super) struct Owed {
    /// When the first of it was refused.
    pub(super) since: Moment,
    parts: Vec<Part>,
}

/// Refused keys of one rule.
#[derive(Clone, Copy, Debug)]
struct Part {
    rule: RuleId,
    /// The hold that ends once Redis takes them.
    hold: u64,
    /// When it took them.
    gone: Option<Moment>,
}

impl Owed {
    /// Whether Redis still refuses some.
    pub(super) fn is_open(&self) -> bool {
        self.parts.iter().any(|part| part.gone.is_none())
    }

    /// When the last of them went; `None` while some are owed.
    pub(super) fn gone(&self) -> Option<Moment> {
        self.gone_of(|_| true).flatten()
    }

    /// Of the rules that are meant: when the last of their refused keys went, `Some(None)` while
    /// some are owed; `None` if none was refused.
    pub(super) fn gone_of(&self, is_meant: impl Fn(RuleId) -> bool) -> Option<Option<Moment>> {
        let mut meant = self.parts.iter().filter(|part| is_meant(part.rule));
        let first = meant.next()?.gone;
        Some(meant.fold(first, |last, part| Some(last?.max(part.gone?))))
    }
}

/// All that is owed, or was, of the transactions that are remembered.
#[derive(Debug, Default)]
pub(super) struct AllOwed {
    of: BTreeMap<(Place, TargetId), Owed>,
    parts: usize,
}

impl AllOwed {
    /// The part of a transaction that a target refused, if it did.
    pub(super) fn get(&self, place: Place, target: TargetId) -> Option<&Owed> {
        self.of.get(&(place, target))
    }

    /// Whether a target still refuses some of a transaction.
    pub(super) fn is_open(&self, place: Place, target: TargetId) -> bool {
        self.get(place, target).is_some_and(Owed::is_open)
    }

    /// Keys of a rule are refused until this hold ends.
    pub(super) fn add(
        &mut self,
        at: (Place, TargetId),
        (rule, hold): (RuleId, u64),
        since: Moment,
    ) {
        let owed = self.of.entry(at).or_insert_with(|| Owed { since, parts: Vec::new() });
        let part = Part { rule, hold, gone: None };
        match owed.parts.iter_mut().find(|part| part.rule == rule) {
            Some(known) => *known = part,
            None => {
                owed.parts.push(part);
                self.parts += 1;
            }
        }
    }

    /// A hold of a target ends: Redis took what it held. Gives the transactions of which nothing
    /// is owed any more.
    pub(super) fn ends(&mut self, target: TargetId, hold: u64, now: Moment) -> Vec<Place> {
        let mut ended = Vec::new();
        let of_target = self.of.iter_mut().filter(|((_, of), _)| *of == target);
        for ((place, _), owed) in of_target {
            let mut held = owed.parts.iter_mut().filter(|part| part.hold == hold);
            if let Some(part) = held.next().filter(|part| part.gone.is_none()) {
                part.gone = Some(now);
                ended.extend((!owed.is_open()).then_some(*place));
            }
        }
        ended
    }

    /// A transaction is forgotten at all targets.
    pub(super) fn forget(&mut self, place: Place) {
        let all = (place, TargetId(u8::MIN))..=(place, TargetId(u8::MAX));
        let of: Vec<TargetId> = self.of.range(all).map(|((_, target), _)| *target).collect();
        for target in of {
            let owed = self.of.remove(&(place, target));
            self.parts -= owed.map_or(0, |owed| owed.parts.len());
        }
    }

    /// The memory that it holds, bytes.
    pub(super) fn used(&self) -> usize {
        self.of.len() * ENTRY_BYTES + self.parts * 2 * size_of::<Part>()
    }
}
