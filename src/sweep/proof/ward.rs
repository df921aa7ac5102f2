//! The guard over the watermark key: what is believed to stand there, and when it may move.
//!
//! Whether Redis has the removals that a move covers is not its matter: the script that moves it
//! compares the number of the [`chain`](super::chain), and a wrong one comes as a lost connection.

use std::rc::Rc;

use super::evidence::{self, Broken, Memory, Watermark};
use super::prints::{Doubt, Prints};
use crate::lsn::Lsn;

/// Values that were found in Redis when a connection was made.
#[derive(Debug, Default)]
pub(in crate::sweep) struct Found {
    /// The watermark key's value.
    pub(in crate::sweep) watermark: Option<Vec<u8>>,
    /// The fingerprints that it was written under, if they are others than ours and are there.
    pub(in crate::sweep) details: Option<Vec<u8>>,
    /// Which part of the deployment was not there to be asked.
    pub(in crate::sweep) away: Option<String>,
    /// Whether nothing shows there that a removal was lost.
    pub(in crate::sweep) is_unproven: bool,
}

/// Gives the digest of the fingerprints that a watermark was written under.
fn rules_of(value: &[u8]) -> Option<String> {
    Watermark::from_value(value).map(|mark| mark.rules)
}

/// Whether a watermark says of itself that it shows nothing of Redis.
fn is_marked(value: &[u8]) -> bool {
    Watermark::from_value(value).is_some_and(|mark| mark.is_unproven)
}

/// Everything, which is in doubt where nothing shows that Redis kept every removal. Why, the
/// watermark says if it puts something in doubt by itself, for a commit may then be invisible yet.
fn of_everything(judged: Result<Option<Lsn>, Doubt>) -> Doubt {
    Doubt::Everything(judged.map_or_else(|doubt| doubt.reason(), |_| Broken::Unproven))
}

/// A session's knowledge of the watermark key.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
pub(in crate::sweep) struct Ward {
    /// The session's history and rules; the LSN is the slot's `confirmed_flush_lsn`.
    expected: Watermark,
    /// Where the server's log ended when the session began.
    wal_end: Lsn,
    /// The values that stood in this session.
    memory: Memory,
    /// The value that stands in Redis as far as we know.
    standing: Option<Vec<u8>>,
    /// A value whose acknowledgement was lost with the connection.
    attempted: Option<(Vec<u8>, Lsn)>,
    /// Up to where the standing value, if it is good evidence, covers.
    covered: Lsn,
    /// Whether as many replicas have it as are asked for.
    shared: bool,
    /// Whether the key was looked at since the session began.
    judged: bool,
    /// The fingerprints whose digest `expected` carries.
    prints: Rc<Prints>,
    /// Set when the slot is known to be new, whatever the watermark says.
    forced: Option<Broken>,
    /// Keys that are in doubt whatever the watermark says.
    doubt: Doubt,
    /// Whether the standing value is good evidence under other fingerprints that put no key in
    /// doubt: it is to be written under ours.
    is_of_others: bool,
    /// Sweeps asked for, of everything or of a part.
    owed: u32,
    /// Whether those that are owed are of a part alone. They say nothing of a Redis that goes back.
    is_partial: bool,
    /// Those of them whose first removal is done, so that readers see nothing stale.
    shown: u32,
    /// Those of them that are done, but for what `rests`.
    paid: u32,
    /// Jobs of sweeps that are owed, or were, whose second removal is not done, while another part
    /// of the sweep goes on by itself.
    rests: u32,
    /// Jobs that repeat removals which Redis may have lost.
    repeats: usize,
}

impl Ward {
    /// A guard that expects a watermark of this history under `prints`; beside what the watermark
    /// says, everything must be swept for the sake of `forced`, and the keys in `doubt`.
    pub(in crate::sweep) fn new(
        expected: Watermark,
        wal_end: Lsn,
        prints: Rc<Prints>,
        (forced, doubt): (Option<Broken>, Doubt),
    ) -> Ward {
        Ward {
            expected,
            wal_end,
            memory: Memory::new(),
            standing: None,
            attempted: None,
            covered: Lsn::ZERO,
            shared: false,
            judged: false,
            prints,
            forced,
            doubt,
            is_of_others: false,
            owed: 0,
            is_partial: false,
            shown: 0,
            paid: 0,
            rests: 0,
            repeats: 0,
        }
    }

    /// The fingerprints that watermarks are written under, and their digest.
    pub(in crate::sweep) fn prints(&self) -> (&str, &Rc<Prints>) {
        (&self.expected.rules, &self.prints)
    }

    /// Watermarks are written under these fingerprints from now on, which put no key in doubt that
    /// was right under those before.
    pub(in crate::sweep) fn adopt(&mut self, prints: Rc<Prints>) {
        let digest = prints.digest();
        self.prints = prints;
        if digest != self.expected.rules {
            self.expected.rules = digest;
            self.is_of_others = self.judged && !self.owes();
        }
    }

    /// A connection was made and the key read; every removal above `floor` can be repeated. Gives
    /// the LSN from which on they must be, if Redis went back, or the keys that a sweep is owed of.
    pub(in crate::sweep) fn connected(
        &mut self,
        found: Found,
        floor: Lsn,
    ) -> Result<Option<Lsn>, Doubt> {
        let Found { watermark: found, details, is_unproven, .. } = found;
        // What is written from now on says so.
        self.expected.is_unproven = is_unproven;
        let is_evidence = !is_unproven && !found.as_deref().is_some_and(is_marked);
        let attempted = self.attempted.take();
        let judged = if self.owes() {
            // The sweep that is owed begins again with everything else. One of everything makes
            // good whatever Redis lost; for one of a part, and for what rests of one, the watermark
            // that it began with must stand.
            let is_part = self.is_partial || self.owed == self.paid;
            let is_lost = found.is_none() || found != self.standing;
            match (is_part, is_lost, is_evidence) {
                (true, true, _) => Err(Doubt::Everything(Broken::WatermarkLost)),
                (true, false, false) => Err(Doubt::Everything(Broken::Unproven)),
                _ => Ok(None),
            }
        } else if self.judged && !is_evidence {
            Err(Doubt::Everything(Broken::Unproven))
        } else if self.judged {
            self.judge_again(found.as_deref(), attempted, floor).map_err(Doubt::Everything)
        } else {
            let judged = self.judge_first(found.as_deref(), details.as_deref());
            if is_evidence { judged } else { Err(of_everything(judged)) }
        };
        self.judged = true;
        self.shared = false;
        self.standing = found;
        self.shown = self.paid;
        if let Err(doubt) = &judged {
            self.broken(doubt);
        }
        judged
    }

    fn judge_first(
        &mut self,
        found: Option<&[u8]>,
        details: Option<&[u8]>,
    ) -> Result<Option<Lsn>, Doubt> {
        if let Some(broken) = self.forced.take() {
            return Err(Doubt::Everything(broken));
        }
        let watermark =
            evidence::at_start(found, &self.expected, self.wal_end).map_err(Doubt::Everything)?;
        let known = std::mem::replace(&mut self.doubt, Doubt::none());
        let doubt =
            known.and(evidence::under((&watermark, details), (&self.expected, &self.prints)));
        if !doubt.is_none() {
            return Err(doubt);
        }
        self.is_of_others = watermark.rules != self.expected.rules;
        self.covered = watermark.lsn;
        self.memory.add(watermark.lsn, &watermark.rules);
        Ok(None)
    }

    fn judge_again(
        &mut self,
        found: Option<&[u8]>,
        attempted: Option<(Vec<u8>, Lsn)>,
        floor: Lsn,
    ) -> Result<Option<Lsn>, Broken> {
        if found.is_some() && found == self.standing.as_deref() {
            return Ok(None);
        }
        if let Some((value, lsn)) = attempted
            && found == Some(value.as_slice())
        {
            self.stands(&value, lsn);
            return Ok(None);
        }
        let back = self.memory.went_back_to(found, &self.expected, floor);
        self.covered = back.ok_or(Broken::WatermarkLost)?;
        self.is_of_others = found.and_then(rules_of).as_ref() != Some(&self.expected.rules);
        Ok(back)
    }

    /// A value of this session stands in Redis.
    fn stands(&mut self, value: &[u8], lsn: Lsn) {
        let rules = rules_of(value).unwrap_or_default();
        if lsn > self.covered || self.is_of_others {
            self.memory.add(lsn, &rules);
        }
        self.is_of_others = rules != self.expected.rules;
        self.covered = lsn;
    }

    fn broken(&mut self, doubt: &Doubt) {
        let is_partial = matches!(doubt, Doubt::Keys(_));
        self.is_partial = is_partial && (self.is_partial || !self.owes());
        self.is_of_others = false;
        self.covered = Lsn::ZERO;
        self.owed += 1;
    }

    /// Whether a sweep is owed: the watermark stays as it is until it is done, so
    /// that a crash on the way does not hide the loss.
    pub(in crate::sweep) fn owes(&self) -> bool {
        self.owed > self.paid || self.rests > 0
    }

    /// The first removal of a sweep that is owed is done.
    pub(in crate::sweep) fn shown(&mut self) {
        self.shown = (self.shown + 1).min(self.owed);
    }

    /// Whether readers see nothing stale that Redis brought back: no sweep is owed for their
    /// sake, and no removal to be repeated.
    pub(in crate::sweep) fn is_whole(&self) -> bool {
        self.judged && self.shown == self.owed && self.repeats == 0
    }

    /// A sweep that was owed is done, second removal included.
    pub(in crate::sweep) fn paid(&mut self) {
        self.paid = (self.paid + 1).min(self.owed);
    }

    /// The second removal of a part of a sweep is to come, whatever becomes of the other part.
    pub(in crate::sweep) fn rests(&mut self) {
        self.rests += 1;
    }

    /// It is done.
    pub(in crate::sweep) fn rested(&mut self) {
        self.rests = self.rests.saturating_sub(1);
    }

    /// So many jobs repeat removals that Redis may have lost.
    pub(in crate::sweep) fn repeats(&mut self, jobs: usize) {
        self.repeats = jobs;
    }

    /// One of them is done. Says whether it was the last that readers waited for.
    pub(in crate::sweep) fn repeated(&mut self) -> bool {
        let was = self.is_whole();
        self.repeats = self.repeats.saturating_sub(1);
        self.is_whole() && !was
    }

    /// The value to write for `safe`, and the value it may replace, if the watermark may move now.
    pub(in crate::sweep) fn next(&mut self, safe: Lsn) -> Option<(Option<Vec<u8>>, Vec<u8>)> {
        if !self.judged || self.owes() || self.repeats > 0 {
            return None;
        }
        if safe <= self.covered && !self.is_of_others {
            return None;
        }
        // What other fingerprints covered, and none of it is in doubt, ours cover.
        let lsn = safe.max(self.covered);
        let value = Watermark { lsn, ..self.expected.clone() }.to_value();
        self.attempted = Some((value.clone(), lsn));
        Some((self.standing.clone(), value))
    }

    /// The standing value, to be written over itself: what shows, while there is nothing to cover,
    /// that Redis answers and has lost nothing.
    pub(in crate::sweep) fn again(&mut self) -> Option<(Option<Vec<u8>>, Vec<u8>)> {
        if !self.judged || self.owes() || self.repeats > 0 {
            return None;
        }
        let standing = self.standing.clone()?;
        self.attempted = Some((standing.clone(), self.covered));
        Some((Some(standing.clone()), standing))
    }

    /// The value that stands, if it is good evidence and not known to be on the replicas.
    pub(in crate::sweep) fn unshared(&self) -> Option<Vec<u8>> {
        let is_evidence = self.judged && !self.owes() && self.covered > Lsn::ZERO;
        if is_evidence && !self.shared { self.standing.clone() } else { None }
    }

    /// The value was written, or stood already.
    pub(in crate::sweep) fn written(&mut self) -> Lsn {
        if let Some((value, lsn)) = self.attempted.take() {
            self.stands(&value, lsn);
            self.standing = Some(value);
            self.shared = false;
        }
        self.covered
    }

    /// As many replicas have the standing value as are asked for.
    pub(in crate::sweep) fn shared(&mut self) {
        self.shared = true;
    }

    /// The value was not written: `found` stands there, not what we believed. Says why a sweep of
    /// everything is owed; `None` if it is enough to connect again and to repeat what Redis lost.
    pub(in crate::sweep) fn contradicted(
        &mut self,
        found: Option<Vec<u8>>,
        floor: Lsn,
    ) -> Option<Broken> {
        self.attempted = None;
        if self.memory.went_back_to(found.as_deref(), &self.expected, floor).is_some() {
            return None;
        }
        self.standing = found;
        self.broken(&Doubt::Everything(Broken::WatermarkLost));
        Some(Broken::WatermarkLost)
    }

    /// Up to where the standing watermark covers.
    pub(in crate::sweep) fn covered(&self) -> Lsn {
        self.covered
    }
}
