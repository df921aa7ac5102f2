//! The trail of the latest transactions: when each was received, seen, and its keys removed.
//!
//! Takes: what each stage tells of a transaction, by its LSN. Gives: answers to `walsweep why KEY`,
//! and the latest transactions. Never knows: a value of a row other than what stands in a key.
//!
//! A transaction costs one allocation, however many keys it has, and each stage one look under a
//! lock that nobody holds for long: whoever asks for a key looks at a part of the ring at a time.
//! What is remembered is bounded by [`budget::TRAIL`](crate::budget::TRAIL); of a large transaction
//! some keys are left out, and its rules with their counts are not.

mod audit;
mod body;
mod file;
mod known;
mod lines;
mod name;
mod owed;
mod read;
mod ring;
#[cfg(test)]
mod tests;
mod told;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

pub use self::audit::{Writer, note_by_hand};
use self::body::{Body, Entry, Kind, OfRule};
pub use self::known::{Known, TargetName};
pub use self::lines::{Event as AuditEvent, Line, OfARule, Took};
pub use self::name::{Moment, Name};
use self::owed::Owed;
pub use self::read::{AuditRead, read};
use self::ring::{Event, Gone, Place, Record, Ring, Scope, What};
pub use self::told::{
    Answer, By, Cause, How, Latest, Removal, RuleCounts, TargetTimes, Transaction, Widened,
};
use super::Health;
use crate::config::{Audit, TargetId};
use crate::gather;
use crate::keys::{Item, ItemKind, KeySet, Pattern, RuleId};
use crate::lsn::Lsn;

/// Removals of a key that are told, at most.
const TOLD_MAX: usize = 20;

/// Transactions that are looked at under one lock.
const SLICE: usize = 256;

/// Rules of one removal that are told, at most.
const BY_MAX: usize = 8;

/// Keys of a transaction that are told with the latest ones, at most.
const KEYS_MAX: usize = 20;

/// See the [module](self).
#[derive(Debug)]
pub struct Trail {
    ring: Mutex<Ring>,
}

/// Something whose keys are removed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// A transaction, by its end LSN.
    Transaction(Lsn),
    /// All that a hold holds, by its number.
    Hold(u64),
}

impl Trail {
    /// Nothing yet, of so many targets.
    #[must_use]
    pub fn new(targets: usize) -> Trail {
        Trail { ring: Mutex::new(Ring::new(targets)) }
    }

    /// Learns the rules and targets that are streamed for. Where they are others than before,
    /// transactions are remembered from now on: those before are of rules that are numbered
    /// otherwise.
    pub fn knows(&self, known: Known) {
        let mut ring = self.lock();
        ring.knows(known);
        ring.forget_pending();
    }

    fn known(&self) -> Arc<Known> {
        Arc::clone(&self.lock().known)
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().expect("no code panics while it holds this lock")
    }

    /// A session begins, whose LSNs are of this history of the server.
    pub fn begins(&self, history: &str) {
        self.lock().begins(history);
    }

    /// A transaction with keys is received. The server's clock is so many microseconds behind this
    /// machine's.
    pub fn committed(&self, transaction: &gather::Transaction, keys: &KeySet, behind: i64) {
        let committed = Moment::at(transaction.time()).plus(behind);
        self.lock().committed(transaction, keys, (committed, Moment::now()));
    }

    /// New snapshots see the transaction that ends here.
    pub fn visible(&self, end_lsn: Lsn) {
        self.lock().visible(end_lsn, Moment::now());
    }

    /// These are all keys of the transaction that ends here, after rows of lookups were read.
    pub fn resolved(&self, end_lsn: Lsn, keys: &KeySet) {
        self.lock().resolved(end_lsn, keys);
    }

    /// At a target this hold stands for these transactions, and for what those holds stood for.
    pub fn held(&self, target: TargetId, hold: u64, lsns: &[Lsn], holds: &[u64]) {
        let mut ring = self.lock();
        ring.hold(target, hold, lsns.iter().copied());
        for other in holds {
            let held = ring.held_by(target, *other);
            ring.hold(target, hold, held.into_iter());
        }
    }

    /// Keys are gone from a target for the first time, but for those that it refused, by a removal
    /// that took so much. A hold for refused keys is among those that waited once they are gone.
    pub fn removed(&self, target: TargetId, took: Took, waited: impl Iterator<Item = Waited>) {
        let (now, mut ring) = (Moment::now(), self.lock());
        for one in waited {
            match one {
                Waited::Transaction(lsn) => ring.removed(target, lsn, (now, took)),
                Waited::Hold(hold) => {
                    for lsn in ring.held_by(target, hold) {
                        ring.removed(target, lsn, (now, took));
                    }
                    ring.taken(target, hold, now);
                }
            }
        }
    }

    /// A target refuses keys of a rule, of some of those that wait for a removal: they are owed
    /// until this hold ends.
    pub fn refused(
        &self,
        target: TargetId,
        (rule, hold): (RuleId, u64),
        waited: impl Iterator<Item = Waited>,
    ) {
        let (now, mut ring) = (Moment::now(), self.lock());
        let lsns = ring.lsns(target, waited);
        ring.refused(target, (rule, hold), lsns.into_iter(), now);
    }

    /// Keys are gone from a target for the second time.
    pub fn removed_again(&self, target: TargetId, waited: impl Iterator<Item = Waited>) {
        let (now, mut ring) = (Moment::now(), self.lock());
        let lsns = ring.lsns(target, waited);
        ring.removed_again(target, lsns, now);
    }

    /// Writes what is removed from now on to the file of the audit trail, if there is to be one.
    ///
    /// # Errors
    ///
    /// When there is no thread for it. What is wrong with the file is said by `health`.
    pub fn write_to(&self, audit: &Audit, health: &Arc<Health>) -> io::Result<Option<Writer>> {
        let Some(path) = &audit.file else { return Ok(None) };
        let (outlet, writer) = audit::start((audit, path), Arc::clone(health))?;
        self.lock().audit = Some(outlet);
        Ok(Some(writer))
    }

    /// Writes no more to the audit trail: its thread ends when all is written.
    pub fn close(&self) {
        self.lock().audit = None;
    }

    /// A target owes a sweep of these keys, or of everything.
    ///
    /// `why` is the reason in words.
    pub fn sweeps(
        &self,
        target: TargetId,
        (reason, why): (&'static str, &str),
        keys: Option<&KeySet>,
    ) {
        let mut ring = self.lock();
        let scope = keys.map_or(Scope::Everything, |keys| Scope::Keys(ring.write(keys)));
        let (removed, again) = (None, None);
        let (what, began, target) = (What::Sweep(reason, why.into()), Moment::now(), Some(target));
        ring.event(Event { what, target, began, removed, again, scope });
    }

    /// The sweeps that a target owed are done; or done for the second time.
    pub fn swept(&self, target: TargetId, is_second: bool) {
        self.lock().swept(target, is_second, Moment::now());
    }

    /// Rules gave way to all that they could produce, because too much waited.
    pub fn widened_for_room(&self, widened: &[(RuleId, u64)]) {
        if widened.is_empty() {
            return;
        }
        let mut rules: Vec<RuleId> = widened.iter().map(|(rule, _)| *rule).collect();
        rules.sort_unstable();
        rules.dedup();
        let now = Moment::now();
        let (what, scope) = (What::Room, Scope::Rules(rules.into()));
        let event =
            Event { what, target: None, began: now, removed: Some(now), again: None, scope };
        self.lock().event(event);
    }

    /// Gives the removals of a key that are remembered, the newest first; `state` is what
    /// `/readyz` says.
    #[must_use]
    pub fn find(&self, key: &[u8], (state, suspended): (String, Vec<String>)) -> Answer {
        let known = self.known();
        let (mut found, since) = (Vec::new(), self.remembers_since());
        let mut place: Option<Place> = None;
        loop {
            let ring = self.lock();
            let mut seen = 0;
            for (record, gone) in ring.before(place).take(SLICE) {
                place = Some(record.place);
                seen += 1;
                found.extend(of_record((&known, &ring), key, (record, gone)));
            }
            drop(ring);
            if seen < SLICE || found.len() > TOLD_MAX {
                break;
            }
        }
        let events: Vec<Event> = self.lock().events.iter().cloned().collect();
        found.extend(events.iter().flat_map(|event| of_event(&known, key, event)));
        // What is still to come is the newest.
        found.sort_by_key(|(moment, _)| std::cmp::Reverse(*moment));
        let more = found.len() > TOLD_MAX;
        let removals = found.into_iter().take(TOLD_MAX).map(|(_, removal)| removal).collect();
        let (now, rules) = (Moment::now(), Some(known.print()));
        Answer { now, since, state, suspended, rules, removals, more }
    }

    /// The beginning of what is remembered.
    #[must_use]
    pub fn remembers_since(&self) -> Moment {
        let ring = self.lock();
        let oldest = ring.oldest().filter(|_| ring.forgotten > 0);
        oldest.map_or(ring.since, |record| record.received)
    }

    /// So many of the latest transactions, the newest first; with some of their keys, or without.
    #[must_use]
    pub fn latest(&self, count: usize, with_keys: bool) -> Vec<Latest> {
        let known = self.known();
        let latest: Vec<(Record, Vec<TargetTimes>)> = {
            let ring = self.lock();
            let latest = ring.before(None).take(count);
            latest
                .map(|(record, gone)| (record.clone(), times((&known, &ring), record, gone)))
                .collect()
        };
        let shown = |(record, targets): (Record, Vec<TargetTimes>)| Latest {
            transaction: Transaction::of(&record),
            rules: record.body.rules().into_iter().map(|one| known.counts(one)).collect(),
            targets,
            keys: if with_keys { keys_of(&record.body) } else { Vec::new() },
        };
        latest.into_iter().map(shown).collect()
    }

    /// The memory that is held, bytes.
    #[must_use]
    pub fn used(&self) -> usize {
        self.lock().used()
    }
}

/// When the keys of a transaction went from each target. They are not gone while some are owed.
fn times<'a>(
    (known, ring): (&Known, &Ring),
    record: &Record,
    gone: impl Iterator<Item = &'a Gone>,
) -> Vec<TargetTimes> {
    let times = (0..=u8::MAX).map(TargetId).zip(gone).map(|(target, gone)| {
        let owed = ring.owed(record, target);
        let removed = match owed.map(Owed::gone) {
            None => gone.removed,
            Some(last) => gone.removed.zip(last).map(|(removed, last)| removed.max(last)),
        };
        TargetTimes {
            target: known.target(target).name.clone(),
            removed,
            refused: owed.map(|owed| owed.since),
            removed_again: gone.again,
        }
    });
    times.collect()
}

fn keys_of(body: &Body) -> Vec<Name> {
    let (_, entries) = body.entries();
    let name = |entry: Entry<'_>| match entry.kind {
        Kind::Key | Kind::Pattern => Name::of(entry.bytes),
        Kind::Item => Name::of(Item::read(entry.bytes).key()),
    };
    entries.take(KEYS_MAX).map(name).collect()
}

/// The removals of a key for a transaction, each with when it was, or a time to come.
fn of_record<'a>(
    (known, ring): (&Known, &Ring),
    key: &[u8],
    (record, gone): (&Record, impl Iterator<Item = &'a Gone>),
) -> Vec<(Moment, Removal)> {
    let mut found = Vec::new();
    for (target, gone) in (0..=u8::MAX).map(TargetId).zip(gone) {
        let Some(name) = known.name_at(target, key) else { continue };
        let by = by(known, (target, name), &record.body);
        if by.is_empty() {
            continue;
        }
        // Of a rule that has none of the refused keys all went.
        let is_by = |rule: RuleId| by.iter().any(|by| by.rule == known.rule_name(rule));
        let refused = ring.owed(record, target).and_then(|owed| owed.gone_of(is_by));
        let removal = Removal {
            target: known.target(target).name.clone(),
            cause: Cause::Transaction(Transaction::of(record)),
            by,
            removed: gone.removed,
            removed_again: gone.again,
            partly_refused: refused.is_some(),
            refused_gone: refused.flatten(),
        };
        found.push((gone.removed.unwrap_or(Moment::LAST), removal));
    }
    found
}

fn of_event(known: &Known, key: &[u8], event: &Event) -> Vec<(Moment, Removal)> {
    let mut found = Vec::new();
    let all = TargetId::first(known.targets());
    for target in all.filter(|target| event.target.is_none_or(|only| only == *target)) {
        let Some(name) = known.name_at(target, key) else { continue };
        let by = match &event.scope {
            Scope::Everything => all_of(known, (target, name), |_| true),
            Scope::Rules(rules) => all_of(known, (target, name), |rule| rules.contains(&rule)),
            Scope::Keys(body) => by(known, (target, name), body),
        };
        if by.is_empty() {
            continue;
        }
        let began = event.began;
        let cause = match &event.what {
            What::Sweep(reason, why) => {
                Cause::Sweep { reason: (*reason).to_owned(), why: why.to_string(), began }
            }
            What::Room => Cause::Room { began },
        };
        let removal = Removal {
            target: known.target(target).name.clone(),
            cause,
            by,
            removed: event.removed,
            removed_again: event.again,
            partly_refused: false,
            refused_gone: None,
        };
        found.push((event.removed.unwrap_or(Moment::LAST), removal));
    }
    found
}

/// The rules by which a key of a target goes with all that they could produce.
fn all_of(known: &Known, key: (TargetId, &[u8]), is_wanted: impl Fn(RuleId) -> bool) -> Vec<By> {
    let by = |(rule, pattern): (RuleId, &Pattern)| By {
        rule: known.rule_name(rule).to_owned(),
        how: How::Pattern(Name::of(pattern.as_bytes())),
        keys: 0,
        patterns: 1,
        widened: Vec::new(),
    };
    known.producing(key, is_wanted).into_iter().map(by).collect()
}

/// The rules by which a key of a target goes with these keys. Rules of which keys are left out may
/// have given it, if they can.
fn by(known: &Known, (target, key): (TargetId, &[u8]), body: &Body) -> Vec<By> {
    let (left_out, entries) = body.entries();
    let mut about: Vec<(RuleId, How)> = Vec::new();
    let mut remembered: BTreeMap<RuleId, u64> = BTreeMap::new();
    for entry in entries {
        if left_out > 0 {
            *remembered.entry(entry.rule).or_default() += 1;
        }
        if known.goes(entry.rule, target)
            && entry.is_about(key)
            && about.len() < BY_MAX
            && !about.iter().any(|(rule, how)| *rule == entry.rule && *how == how_of(&entry))
        {
            about.push((entry.rule, how_of(&entry)));
        }
    }
    if about.is_empty() && left_out == 0 {
        return Vec::new();
    }
    let rules = body.rules();
    if about.is_empty() {
        let has_more = |rule: RuleId| {
            let of_rule = rules.iter().find(|one| one.rule == rule);
            let all = of_rule.map_or(0, |one| one.keys + one.patterns);
            all > remembered.get(&rule).copied().unwrap_or_default()
        };
        let perhaps = known.producing((target, key), has_more).into_iter();
        about.extend(perhaps.map(|(rule, _)| (rule, How::Perhaps)));
    }
    let of_rule = |(rule, how): (RuleId, How)| {
        let empty = OfRule { rule, keys: 0, patterns: 0, widened: Vec::new() };
        let counts = rules.iter().find(|one| one.rule == rule).cloned().unwrap_or(empty);
        let RuleCounts { rule, keys, patterns, widened } = known.counts(counts);
        By { rule, how, keys, patterns, widened }
    };
    about.into_iter().map(of_rule).collect()
}

fn how_of(entry: &Entry<'_>) -> How {
    match entry.kind {
        Kind::Key => How::Key(Name::of(entry.bytes)),
        Kind::Pattern => How::Pattern(Name::of(entry.bytes)),
        Kind::Item => {
            let item = Item::read(entry.bytes);
            match item.kind() {
                ItemKind::Field => How::Fields(Name::of(item.field())),
                ItemKind::Tag => How::Members(Name::of(item.key())),
            }
        }
    }
}
