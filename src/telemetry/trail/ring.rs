//! The latest transactions and sweeps, within a number of bytes.
//!
//! Transactions stand in the order of their commits, so that one is found by its LSN. When there is
//! no room the oldest goes, whether its keys are gone or not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::Waited;
use super::audit::{Note, NoteOf, Outlet};
use super::body::{Body, Scratch};
use super::known::Known;
use super::lines::Took;
use super::name::Moment;
use super::owed::{AllOwed, Owed};
use crate::budget;
use crate::config::TargetId;
use crate::gather::Transaction;
use crate::keys::{KeySet, RuleId};
use crate::lsn::Lsn;

/// Transactions of one target that are remembered, at most. What a deque takes for so many is a
/// third of the budget; their keys take the rest.
const COUNT_MAX: usize = 8_192;

/// Sweeps that are remembered, at most.
const EVENTS_MAX: usize = 64;

/// Lacks of room of the same rules that are told as one, from the first one on.
const ROOM_TOGETHER: Duration = Duration::from_secs(10);

/// The place of a transaction: histories are numbered, because in another one the LSNs begin
/// anywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) history: u32,
    pub(super) lsn: Lsn,
}

/// A transaction.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) place: Place,
    pub(super) xid: u32,
    pub(super) committed: Moment,
    pub(super) received: Moment,
    pub(super) visible: Option<Moment>,
    /// Whether some keys wait for rows of lookups, and are not known yet.
    pub(super) waits_for_rows: bool,
    pub(super) body: Body,
}

/// When the keys of a transaction went from a target.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gone {
    pub(super) removed: Option<Moment>,
    pub(super) again: Option<Moment>,
    /// The hold that stands for it there: its number, and one.
    hold: u64,
}

/// Keys that went, or will, without a transaction that gave them.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) what: What,
    /// The target; `None` for all.
    pub(super) target: Option<TargetId>,
    pub(super) began: Moment,
    pub(super) removed: Option<Moment>,
    pub(super) again: Option<Moment>,
    pub(super) scope: Scope,
}

/// The kind of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A sweep, because a change may have been missed: the reason of `walsweep_resyncs_total`, and
    /// its words.
    Sweep(&'static str, Box<str>),
    /// Rules were widened for lack of memory: all that they could produce goes.
    Room,
}

/// The keys of an event.
#[derive(Clone, Debug)]
pub(super) enum Scope {
    /// Whatever rules could produce.
    Everything,
    /// Whatever these rules could produce.
    Rules(Box<[RuleId]>),
    /// These.
    Keys(Body),
}

impl Scope {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Scope::Everything => 0,
            Scope::Rules(rules) => size_of_val(&rules[..]),
            Scope::Keys(body) => body.bytes(),
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Ring {
    /// The rules and targets that all of it is of.
    pub(super) known: Arc<Known>,
    /// The beginning of what may be remembered.
    pub(super) since: Moment,
    targets: usize,
    /// The history that is streamed, as the server calls it.
    history: String,
    number: u32,
    records: VecDeque<Record>,
    /// Of each record, what became of it at each target.
    gone: VecDeque<Gone>,
    owed: AllOwed,
    pub(super) events: VecDeque<Event>,
    /// Memory of keys, bytes.
    bytes: usize,
    /// Transactions that were forgotten for lack of room.
    pub(super) forgotten: u64,
    scratch: Scratch,
    /// Where events are written, if they are.
    pub(super) audit: Option<Outlet>,
}

impl Ring {
    pub(super) fn new(targets: usize) -> Ring {
        Ring {
            known: Arc::default(),
            since: Moment::now(),
            targets: targets.max(1),
            history: String::new(),
            number: 0,
            records: VecDeque::new(),
            gone: VecDeque::new(),
            owed: AllOwed::default(),
            events: VecDeque::new(),
            bytes: 0,
            forgotten: 0,
            scratch: Scratch::default(),
            audit: None,
        }
    }

    /// The memory that it holds, bytes.
    pub(super) fn used(&self) -> usize {
        self.bytes
            + self.records.capacity() * size_of::<Record>()
            + self.gone.capacity() * size_of::<Gone>()
            + self.events.capacity() * size_of::<Event>()
            + self.owed.used()
    }

    /// Learns rules and targets; forgets what is of others.
    pub(super) fn knows(&mut self, known: Known) {
        if *self.known == known {
            return;
        }
        let is_first = *self.known == Known::default();
        self.targets = known.targets().max(1);
        self.known = Arc::new(known);
        if is_first {
            return;
        }
        (self.records, self.gone, self.events, self.owed) = Default::default();
        (self.bytes, self.forgotten, self.since) = (0, 0, Moment::now());
    }

    /// Forgets transactions whose keys are not gone from each target: they come again, and what the
    /// rules give for them may be other keys.
    pub(super) fn forget_pending(&mut self) {
        let mut kept = (VecDeque::new(), VecDeque::new());
        for record in std::mem::take(&mut self.records) {
            let gone: Vec<Gone> = self.gone.drain(..self.targets).collect();
            let mut at_targets = TargetId::first(self.targets).zip(&gone);
            let is_done = at_targets.all(|(target, gone)| {
                gone.removed.is_some() && !self.owed.is_open(record.place, target)
            });
            if is_done {
                kept.0.push_back(record);
                kept.1.extend(gone);
            } else {
                self.owed.forget(record.place);
                self.bytes -= record.body.bytes();
            }
        }
        (self.records, self.gone) = kept;
    }

    /// Writes an event to the audit trail, if there is one.
    fn note(&self, time: Moment, of: NoteOf) {
        if let Some(audit) = &self.audit {
            audit.send(Note { time, known: Arc::clone(&self.known), of });
        }
    }

    /// Transactions that follow are of this history.
    pub(super) fn begins(&mut self, history: &str) {
        if self.history != history {
            history.clone_into(&mut self.history);
            self.number += 1;
        }
    }

    /// A transaction is received. One that comes again, in a later session, keeps its times; what
    /// was refused of it comes again, too.
    pub(super) fn committed(
        &mut self,
        transaction: &Transaction,
        keys: &KeySet,
        (committed, received): (Moment, Moment),
    ) {
        let place = Place { history: self.number, lsn: transaction.end_lsn };
        let body = self.scratch.write(keys);
        self.bytes += body.bytes();
        let waits_for_rows = keys.has_pending();
        let (xid, visible) = (transaction.xid, None);
        let record = Record { place, xid, committed, received, visible, waits_for_rows, body };
        match self.find(place) {
            Ok(at) => {
                let known = &mut self.records[at];
                self.bytes -= known.body.bytes();
                known.body = record.body;
                known.waits_for_rows = waits_for_rows;
                for target in TargetId::first(self.targets) {
                    if self.owed.is_open(place, target) {
                        self.gone[at * self.targets + target.place()] = Gone::default();
                    }
                }
                self.owed.forget(place);
            }
            Err(at) => {
                self.records.insert(at, record);
                for target in 0..self.targets {
                    self.gone.insert(at * self.targets + target, Gone::default());
                }
            }
        }
        self.make_room();
    }

    fn make_room(&mut self) {
        let count_max = COUNT_MAX / self.targets;
        while self.events.len() > EVENTS_MAX
            || self.events.len() > 1 && self.event_bytes() > budget::TRAIL / 8
        {
            let event = self.events.pop_front();
            self.bytes -= event.map_or(0, |event| event.scope.bytes());
        }
        while self.records.len() > count_max || self.used() > budget::TRAIL {
            let Some(record) = self.records.pop_front() else { break };
            self.bytes -= record.body.bytes();
            let gone = self.gone.drain(..self.targets).zip((0..=u8::MAX).map(TargetId));
            if let Some(audit) = &self.audit {
                let time = Moment::now();
                let is_due = |(gone, target): &(Gone, TargetId)| {
                    gone.removed.is_none() || self.owed.is_open(record.place, *target)
                };
                for (_, target) in gone.filter(is_due) {
                    let of = NoteOf::Forgotten(target, Box::new(record.clone()));
                    audit.send(Note { time, known: Arc::clone(&self.known), of });
                }
            }
            self.owed.forget(record.place);
            self.forgotten += 1;
        }
    }

    fn event_bytes(&self) -> usize {
        self.events.iter().map(|event| event.scope.bytes()).sum()
    }

    /// Where a transaction is, or would be. Mostly it is the last one.
    fn find(&self, place: Place) -> Result<usize, usize> {
        match self.records.back() {
            Some(last) if last.place < place => Err(self.records.len()),
            _ => self.records.binary_search_by_key(&place, |record| record.place),
        }
    }

    /// The number of a transaction of the history that is streamed.
    fn at(&self, lsn: Lsn) -> Option<usize> {
        self.find(Place { history: self.number, lsn }).ok()
    }

    fn record(&mut self, lsn: Lsn) -> Option<&mut Record> {
        let at = self.at(lsn)?;
        self.records.get_mut(at)
    }

    /// Readers can see a transaction.
    pub(super) fn visible(&mut self, lsn: Lsn, now: Moment) {
        if let Some(record) = self.record(lsn) {
            record.visible.get_or_insert(now);
        }
    }

    /// The rows are read that keys of a transaction needed.
    pub(super) fn resolved(&mut self, lsn: Lsn, keys: &KeySet) {
        let Some(at) = self.at(lsn) else { return };
        if std::mem::take(&mut self.records[at].waits_for_rows) {
            let body = self.scratch.write(keys);
            self.bytes += body.bytes();
            self.bytes -= self.records[at].body.bytes();
            self.records[at].body = body;
            self.make_room();
        }
    }

    fn of_target(&mut self, at: usize, target: TargetId) -> Option<&mut Gone> {
        let place = target.place();
        (place < self.targets).then(|| self.gone.get_mut(at * self.targets + place))?
    }

    /// The keys of a transaction are gone from a target, but for what it refused; and what that
    /// took.
    pub(super) fn removed(&mut self, target: TargetId, lsn: Lsn, (now, took): (Moment, Took)) {
        let Some(at) = self.at(lsn) else { return };
        let Some(gone) = self.of_target(at, target) else { return };
        if gone.removed.replace(gone.removed.unwrap_or(now)).is_none() {
            self.note_removed(target, at, (now, took));
        }
    }

    /// A target refuses keys of a rule, which are owed until this hold ends: those of each of these
    /// transactions that have keys of the rule.
    pub(super) fn refused(
        &mut self,
        target: TargetId,
        (rule, hold): (RuleId, u64),
        lsns: impl Iterator<Item = Lsn>,
        now: Moment,
    ) {
        for at in lsns.filter_map(|lsn| self.at(lsn)).collect::<Vec<_>>() {
            let Record { place, body, .. } = &self.records[at];
            let (place, was_open) = (*place, self.owed.is_open(*place, target));
            if !body.rules().iter().any(|one| one.rule == rule) {
                continue;
            }
            self.owed.add((place, target), (rule, hold), now);
            // They were removed once, and are refused when they are removed again.
            if !was_open && self.of_target(at, target).is_some_and(|gone| gone.removed.is_some()) {
                self.note_removed(target, at, (now, Took::default()));
            }
        }
        self.make_room();
    }

    /// A hold ends for which a target refused keys: it took them.
    pub(super) fn taken(&mut self, target: TargetId, hold: u64, now: Moment) {
        let mut taken = self.owed.ends(target, hold, now);
        taken.retain(|place| {
            let gone = self.find(*place).ok().and_then(|at| self.of_target(at, target));
            let gone = gone.filter(|gone| gone.removed.is_some());
            // It is whole once the keys that were refused are removed again, too.
            gone.map(|gone| gone.hold = hold + 1).is_some()
        });
        if !taken.is_empty() {
            let lsns = taken.iter().map(|place| place.lsn).collect();
            self.note(now, NoteOf::RefusedGone(target, lsns));
        }
    }

    /// Writes that the keys of a transaction are gone, or which are refused.
    fn note_removed(&self, target: TargetId, at: usize, (now, took): (Moment, Took)) {
        if self.audit.is_none() {
            return;
        }
        let record = Box::new(self.records[at].clone());
        let of = match self.owed.is_open(record.place, target) {
            true => NoteOf::Refused(target, record, took),
            false => NoteOf::Removed(target, record, took),
        };
        self.note(now, of);
    }

    /// The part of a transaction that a target refused, if it did.
    pub(super) fn owed(&self, record: &Record, target: TargetId) -> Option<&Owed> {
        self.owed.get(record.place, target)
    }

    /// The keys of these transactions are gone from a target for the second time.
    pub(super) fn removed_again(&mut self, target: TargetId, mut lsns: Vec<Lsn>, now: Moment) {
        lsns.retain(|lsn| {
            let is_owed = self.owed.is_open(Place { history: self.number, lsn: *lsn }, target);
            let gone = self.at(*lsn).filter(|_| !is_owed);
            let gone = gone.and_then(|at| self.of_target(at, target));
            gone.is_some_and(|gone| gone.again.replace(gone.again.unwrap_or(now)).is_none())
        });
        if !lsns.is_empty() {
            self.note(now, NoteOf::Again(target, lsns));
        }
    }

    /// The sweeps that a target owed are done; or done for the second time.
    pub(super) fn swept(&mut self, target: TargetId, is_second: bool, now: Moment) {
        for event in &mut self.events {
            if event.target != Some(target) || !matches!(event.what, What::Sweep(..)) {
                continue;
            }
            if is_second {
                event.again = event.again.or(event.removed.map(|_| now));
            } else if event.removed.is_none() {
                event.removed = Some(now);
                if let Some(audit) = &self.audit {
                    let of = NoteOf::Event(target, Box::new(event.clone()));
                    audit.send(Note { time: now, known: Arc::clone(&self.known), of });
                }
            }
        }
    }

    /// All transactions that wait for a removal.
    pub(super) fn lsns(&self, target: TargetId, waited: impl Iterator<Item = Waited>) -> Vec<Lsn> {
        let mut lsns = Vec::new();
        for one in waited {
            match one {
                Waited::Transaction(lsn) => lsns.push(lsn),
                Waited::Hold(hold) => lsns.extend(self.held_by(target, hold)),
            }
        }
        lsns
    }

    /// The transactions that a hold stands for at a target.
    pub(super) fn held_by(&self, target: TargetId, hold: u64) -> Vec<Lsn> {
        let (place, number) = (target.place(), self.number);
        let of_target = self.gone.iter().skip(place).step_by(self.targets);
        let held = self.records.iter().zip(of_target).rev();
        let held = held.filter(|(record, gone)| {
            gone.hold == hold + 1 && record.place.history == number && place < self.targets
        });
        held.map(|(record, _)| record.place.lsn).collect()
    }

    /// A hold stands for these from now on, at a target.
    pub(super) fn hold(&mut self, target: TargetId, hold: u64, lsns: impl Iterator<Item = Lsn>) {
        for lsn in lsns {
            if let Some(at) = self.at(lsn)
                && let Some(gone) = self.of_target(at, target)
            {
                gone.hold = hold + 1;
            }
        }
    }

    /// Notes an event; one of room that goes on is one.
    pub(super) fn event(&mut self, event: Event) {
        if let Some(last) = self.events.back_mut()
            && event.what == What::Room
            && last.what == What::Room
            && let (Scope::Rules(known), Scope::Rules(rules)) = (&last.scope, &event.scope)
            && known == rules
            && event.began.since(last.began).is_some_and(|since| since < ROOM_TOGETHER)
        {
            last.removed = event.removed;
            return;
        }
        if self.audit.is_some() && event.what == What::Room {
            self.note(event.began, NoteOf::Event(TargetId::FIRST, Box::new(event.clone())));
        }
        self.bytes += event.scope.bytes();
        self.events.push_back(event);
        self.make_room();
    }

    /// The keys of a set, written.
    pub(super) fn write(&mut self, keys: &KeySet) -> Body {
        self.scratch.write(keys)
    }

    /// The transactions before a place, the latest first, with what became of each at the targets.
    pub(super) fn before(
        &self,
        place: Option<Place>,
    ) -> impl Iterator<Item = (&Record, impl Iterator<Item = &Gone>)> {
        let end = match place {
            Some(place) => self.find(place).unwrap_or_else(|at| at),
            None => self.records.len(),
        };
        (0..end).rev().map(move |at| {
            let first = at * self.targets;
            (&self.records[at], self.gone.range(first..first + self.targets))
        })
    }

    /// The oldest transaction that is remembered.
    pub(super) fn oldest(&self) -> Option<&Record> {
        self.records.front()
    }
}
