//! The guard over the watermark key: what is believed to stand there, and when it may move.
//!
//! Whether Redis has the removals that a move covers is not its matter: the script that moves it
//! compares the number of the [`chain`](super::chain), and a wrong one comes as a lost connection.

use super::evidence::{self, Broken, Memory, Watermark};
use crate::lsn::Lsn;

/// What a session knows of the watermark key.
pub(super) struct Ward {
    /// The session's history and rules; the LSN is the slot's `confirmed_flush_lsn`.
    expected: Watermark,
    /// Where the server's log ended when the session began.
    wal_end: Lsn,
    /// The values that stood in this session.
    memory: Memory,
    /// What stands in Redis as far as we know.
    standing: Option<Vec<u8>>,
    /// A value whose acknowledgement was lost with the connection.
    attempted: Option<(Vec<u8>, Lsn)>,
    /// Up to where the standing value, if it is good evidence, covers.
    covered: Lsn,
    /// Whether as many replicas have it as are asked for.
    shared: bool,
    /// Whether the key was looked at since the session began.
    judged: bool,
    /// Set when the slot is known to be new, whatever the watermark says.
    forced: Option<Broken>,
    /// Sweeps of everything asked for.
    owed: u32,
    /// Those of them whose first removal is done, so that readers see nothing stale.
    shown: u32,
    /// Those of them that are done.
    paid: u32,
    /// Jobs that repeat removals which Redis may have lost.
    repeats: usize,
}

impl Ward {
    pub(super) fn new(expected: Watermark, wal_end: Lsn, forced: Option<Broken>) -> Ward {
        let (memory, standing, attempted) = (Memory::new(), None, None);
        let (covered, shared, judged) = (Lsn::ZERO, false, false);
        let (owed, shown, paid, repeats) = (0, 0, 0, 0);
        Ward {
            expected,
            wal_end,
            memory,
            standing,
            attempted,
            covered,
            shared,
            judged,
            forced,
            owed,
            shown,
            paid,
            repeats,
        }
    }

    /// A connection was made and the key read; every removal above `floor` can be repeated. Gives
    /// the LSN from which on they must be, if Redis went back, or why a sweep of everything is
    /// owed.
    pub(super) fn connected(
        &mut self,
        found: Option<Vec<u8>>,
        floor: Lsn,
    ) -> Result<Option<Lsn>, Broken> {
        let attempted = self.attempted.take();
        let judged = if self.owes() {
            // The sweep that is owed begins again with everything else; nothing more is concluded.
            Ok(None)
        } else if self.judged {
            self.judge_again(found.as_deref(), attempted, floor)
        } else {
            self.judge_first(found.as_deref())
        };
        self.judged = true;
        self.shared = false;
        self.standing = found;
        self.shown = self.paid;
        if judged.is_err() {
            self.broken();
        }
        judged
    }

    fn judge_first(&mut self, found: Option<&[u8]>) -> Result<Option<Lsn>, Broken> {
        if let Some(broken) = self.forced.take() {
            return Err(broken);
        }
        let watermark = evidence::at_start(found, &self.expected, self.wal_end)?;
        self.covered = watermark.lsn;
        self.memory.add(watermark.lsn);
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
            self.covered = lsn;
            self.memory.add(lsn);
            return Ok(None);
        }
        let back = self.memory.went_back_to(found, &self.expected, floor);
        self.covered = back.ok_or(Broken::WatermarkLost)?;
        Ok(back)
    }

    fn broken(&mut self) {
        self.covered = Lsn::ZERO;
        self.owed += 1;
    }

    /// Whether a sweep of everything is owed: the watermark stays as it is until it is done, so
    /// that a crash on the way does not hide the loss.
    pub(super) fn owes(&self) -> bool {
        self.owed > self.paid
    }

    /// The first removal of a sweep of everything is done.
    pub(super) fn shown(&mut self) {
        self.shown = (self.shown + 1).min(self.owed);
    }

    /// Whether readers see nothing stale that Redis brought back: no sweep of everything is owed
    /// for their sake, and no removal to be repeated.
    pub(super) fn is_whole(&self) -> bool {
        self.judged && self.shown == self.owed && self.repeats == 0
    }

    /// A sweep of everything is done, second removal included.
    pub(super) fn paid(&mut self) {
        self.paid = (self.paid + 1).min(self.owed);
    }

    /// So many jobs repeat removals that Redis may have lost.
    pub(super) fn repeats(&mut self, jobs: usize) {
        self.repeats = jobs;
    }

    /// One of them is done. Says whether it was the last that readers waited for.
    pub(super) fn repeated(&mut self) -> bool {
        let was = self.is_whole();
        self.repeats = self.repeats.saturating_sub(1);
        self.is_whole() && !was
    }

    /// The value to write for `safe`, and the value it may replace, if the watermark may move now.
    pub(super) fn next(&mut self, safe: Lsn) -> Option<(Option<Vec<u8>>, Vec<u8>)> {
        if !self.judged || self.owes() || self.repeats > 0 || safe <= self.covered {
            return None;
        }
        let value = Watermark { lsn: safe, ..self.expected.clone() }.to_value();
        self.attempted = Some((value.clone(), safe));
        Some((self.standing.clone(), value))
    }

    /// The standing value, to be written over itself: what shows, while there is nothing to cover,
    /// that Redis answers and has lost nothing.
    pub(super) fn again(&mut self) -> Option<(Option<Vec<u8>>, Vec<u8>)> {
        if !self.judged || self.owes() || self.repeats > 0 {
            return None;
        }
        let standing = self.standing.clone()?;
        self.attempted = Some((standing.clone(), self.covered));
        Some((Some(standing.clone()), standing))
    }

    /// The value that stands, if it is good evidence and not known to be on the replicas.
    pub(super) fn unshared(&self) -> Option<Vec<u8>> {
        let is_evidence = self.judged && !self.owes() && self.covered > Lsn::ZERO;
        if is_evidence && !self.shared { self.standing.clone() } else { None }
    }

    /// The value was written, or stood already.
    pub(super) fn written(&mut self) -> Lsn {
        if let Some((value, lsn)) = self.attempted.take() {
            if lsn > self.covered {
                self.memory.add(lsn);
            }
            self.standing = Some(value);
            self.covered = lsn;
            self.shared = false;
        }
        self.covered
    }

    /// As many replicas have the standing value as are asked for.
    pub(super) fn shared(&mut self) {
        self.shared = true;
    }

    /// The value was not written: `found` stands there, not what we believed. Says why a sweep of
    /// everything is owed; `None` if it is enough to connect again and to repeat what Redis lost.
    pub(super) fn contradicted(&mut self, found: Option<Vec<u8>>, floor: Lsn) -> Option<Broken> {
        self.attempted = None;
        if self.memory.went_back_to(found.as_deref(), &self.expected, floor).is_some() {
            return None;
        }
        self.standing = found;
        self.broken();
        Some(Broken::WatermarkLost)
    }

    /// Up to where the standing watermark covers.
    pub(super) fn covered(&self) -> Lsn {
        self.covered
    }
}
