//! Sets of keys that wait for rows: for which sessions, until when, within which memory.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;

use tokio::time::Instant;

use super::ahead::Ahead;
use super::cache::Cache;
use super::room::Room;
use super::rows::ANSWER_TIMEOUT;
use super::{Gated, Visible};
use crate::budget::Charge;
use crate::keys::{Answers, KeySet, Wanted, WidenReason};
use crate::telemetry::metrics::Metrics;

/// Lookups, by their places.
pub(super) type Places = BTreeSet<usize>;

/// Sets of keys that wait.
#[derive(Debug)]
pub(super) struct Waiting {
    /// In the order of their arrival.
    held: BTreeMap<u64, Held>,
    next: u64,
    /// By session: what has not been asked for there.
    unasked: Vec<Vec<u64>>,
    /// Memory of the keys, and of rows that wait for others.
    room: Room,
    ahead: Ahead,
}

/// A set that waits.
#[derive(Debug)]
struct Held {
    gated: Gated,
    until: Instant,
    /// A bit for each session that has not answered for it.
    sessions: u32,
    /// The lookups that have not.
    lookups: Places,
    /// Answers of those that have.
    found: Answers,
    /// Memory of that.
    charge: Charge,
    bytes: usize,
}

impl Waiting {
    /// Nothing, for so many lookups, and sessions that they have in turn.
    pub(super) fn new(sessions: usize, lookups: usize) -> Waiting {
        Waiting {
            held: BTreeMap::new(),
            next: 0,
            unasked: vec![Vec::new(); sessions],
            room: Room::new(lookups),
            ahead: Ahead::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Keeps what needs rows; gives back what passes at once. Beyond the limit nothing waits.
    pub(super) fn take(&mut self, mut gated: Gated, metrics: &Metrics) -> Option<Visible> {
        let wanted = gated.keys.wanted();
        let lookups: Places = wanted.iter().map(|one| usize::from(one.lookup.0)).collect();
        let sessions = lookups.iter().fold(0, |all, at| all | 1_u32 << self.session(*at));
        if sessions == 0 {
            return Some(self.resolved(gated, &Answers::default(), metrics));
        }
        let bytes = gated.keys.bytes();
        if !self.room.has(bytes, &lookups) {
            self.forget(&gated);
            let none = (&Answers::default(), WidenReason::Limit);
            return Some(resolve(gated, none, metrics));
        }
        let id = self.next;
        self.next += 1;
        for (at, unasked) in self.unasked.iter_mut().enumerate() {
            if sessions & (1 << at) != 0 {
                unasked.push(id);
            }
        }
        self.ahead.waits(&gated, id);
        self.room.take(bytes, &lookups);
        gated.keys.waits();
        let (until, found) = (Instant::now() + ANSWER_TIMEOUT, Answers::default());
        let charge = gated.keys.new_charge();
        self.held.insert(id, Held { gated, until, sessions, lookups, found, charge, bytes });
        None
    }

    /// All that keys wait for, if the cache has all of it, or it was read for the same keys.
    pub(super) fn known(&self, cache: Option<&Cache>, gated: &Gated) -> Option<Answers> {
        if !gated.keys.has_pending() {
            return None;
        }
        let mut answers = Answers::default();
        for wanted in gated.keys.wanted() {
            let found = match self.ahead.get(&gated.cause, &wanted) {
                Some(found) => found.clone(),
                None => cache?.get(&wanted)?,
            };
            answers.insert(wanted, found);
        }
        Some(answers)
    }

    /// Whether there is something to ask for on a session.
    pub(super) fn wants(&self, session: usize) -> bool {
        !self.unasked[session].is_empty()
    }

    /// A round on a session: the sets that it is for, which rows it wants, and what is known.
    pub(super) fn begin(&mut self, session: usize) -> (Vec<u64>, Vec<Wanted>, Answers) {
        let mut ids = take(&mut self.unasked[session]);
        ids.retain(|id| self.held.contains_key(id));
        let sets = ids.iter().filter_map(|id| self.held.get(id)).map(|held| &held.gated);
        let is_asked_for = |one: &Wanted| self.session(usize::from(one.lookup.0)) == session;
        let (wanted, known) = self.ahead.split(sets, is_asked_for);
        (ids, wanted.into_iter().collect(), known)
    }

    /// The keys of those of these sets that wait.
    pub(super) fn sets(&self, ids: &[u64]) -> impl Iterator<Item = &KeySet> {
        ids.iter().filter_map(|id| self.held.get(id)).map(|held| &held.gated.keys)
    }

    /// Takes in what a round found, known before or read now; gives what waits for no other.
    pub(super) fn end(
        &mut self,
        session: usize,
        ids: &[u64],
        (known, read): (Answers, Answers),
        metrics: &Metrics,
    ) -> Vec<Visible> {
        // What is known may be older than a transaction that is still being sent.
        ids.iter().filter_map(|id| self.held.get(id)).for_each(|held| {
            self.ahead.note(&held.gated, &read);
        });
        let mut answers = known;
        answers.extend(read);
        let mut passed = Vec::new();
        let sessions = self.unasked.len();
        for id in ids {
            let Some(held) = self.held.get_mut(id) else { continue };
            held.sessions &= !(1 << session);
            let is_answered = |at: &usize| at % sessions == session;
            let (answered, left) = take(&mut held.lookups).into_iter().partition(is_answered);
            self.room.leave(held.bytes, &answered);
            held.lookups = left;
            if held.sessions == 0 && held.found.is_empty() {
                passed.extend(self.give_up(
                    *id,
                    (Some(&answers), WidenReason::LookupFailed),
                    metrics,
                ));
                continue;
            }
            let more = held.keep(&answers);
            let has_room = self.room.has(more, &held.lookups);
            self.room.take(more, &held.lookups);
            if held.sessions == 0 {
                passed.extend(self.give_up(*id, (None, WidenReason::LookupFailed), metrics));
            } else if !has_room {
                passed.extend(self.give_up(*id, (None, WidenReason::Limit), metrics));
            }
        }
        passed
    }

    /// How many sets wait, and since when the oldest does.
    pub(super) fn oldest(&self) -> (usize, Option<Instant>) {
        let since = self.first_deadline().and_then(|until| until.checked_sub(ANSWER_TIMEOUT));
        (self.held.len(), since)
    }

    /// When the first of all is late.
    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.held.first_key_value().map(|(_, held)| held.until)
    }

    /// Gives the sets that have waited as long as any may, with what was found by now.
    pub(super) fn late(&mut self, now: Instant, metrics: &Metrics) -> Vec<Visible> {
        let late = self.held.iter().take_while(|(_, held)| held.until <= now);
        let late: Vec<u64> = late.map(|(id, _)| *id).collect();
        let give_up = |id| self.give_up(id, (None, WidenReason::LookupFailed), metrics);
        late.into_iter().filter_map(give_up).collect()
    }

    /// Renders one that waits no longer, with these answers or those that it has; what is not known
    /// widens.
    fn give_up(
        &mut self,
        id: u64,
        (answers, missing): (Option<&Answers>, WidenReason),
        metrics: &Metrics,
    ) -> Option<Visible> {
        let Held { gated, found, .. } = self.drop_held(id)?;
        self.forget(&gated);
        Some(resolve(gated, (answers.unwrap_or(&found), missing), metrics))
    }

    /// Renders one that waits for nothing.
    pub(super) fn resolved(
        &mut self,
        gated: Gated,
        answers: &Answers,
        metrics: &Metrics,
    ) -> Visible {
        self.forget(&gated);
        resolve(gated, (answers, WidenReason::LookupFailed), metrics)
    }

    /// A transaction passes: nothing has to wait for it any more.
    fn forget(&mut self, gated: &Gated) {
        for id in self.ahead.forget(gated) {
            self.drop_held(id);
        }
    }

    fn drop_held(&mut self, id: u64) -> Option<Held> {
        let held = self.held.remove(&id)?;
        self.room.give_back(held.bytes, &held.lookups);
        self.ahead.left(&held.gated, id);
        Some(held)
    }

    /// The session of a lookup.
    fn session(&self, lookup: usize) -> usize {
        lookup % self.unasked.len()
    }
}

impl Held {
    /// Keeps those of the answers that it waits for; gives the bytes that they take.
    fn keep(&mut self, answers: &Answers) -> usize {
        let before = self.bytes;
        for wanted in self.gated.keys.wanted() {
            if let Some(found) = answers.get(&wanted) {
                self.bytes += wanted.bytes() + found.bytes();
                self.found.insert(wanted, found.clone());
            }
        }
        let more = self.bytes - before;
        self.charge.set(self.charge.bytes() + more);
        more
    }
}

/// Renders what waited, and counts what it widened.
fn resolve(
    gated: Gated,
    (answers, missing): (&Answers, WidenReason),
    metrics: &Metrics,
) -> Visible {
    let counted: Vec<_> = gated.keys.widened().collect();
    let visible = gated.resolved(answers, missing);
    if visible.cause.comes_again() {
        return visible;
    }
    for (rule, reason, count) in visible.keys.widened() {
        let before = counted.iter().find(|(r, why, _)| (*r, *why) == (rule, reason));
        let more = count - before.map_or(0, |(.., count)| *count);
        if more > 0 {
            metrics.widened(rule, reason, more);
        }
    }
    visible
}
