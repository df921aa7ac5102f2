//! The guard over the watermark key: what is believed to stand there, and when it may move.

use super::evidence::{self, Broken, Watermark};
use crate::lsn::Lsn;

/// What a session knows of the watermark key.
pub(super) struct Ward {
    /// The session's history and rules; the LSN is the slot's `confirmed_flush_lsn`.
    expected: Watermark,
    /// What stands in Redis as far as we know.
    standing: Option<Vec<u8>>,
    /// A value whose acknowledgement was lost with the connection.
    attempted: Option<(Vec<u8>, Lsn)>,
    /// Up to where the standing value, if it is good evidence, covers.
    covered: Lsn,
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
    pub(super) fn new(expected: Watermark, forced: Option<Broken>) -> Ward {
        let (standing, attempted, covered) = (None, None, Lsn::ZERO);
        let (judged, owed, shown, paid, repeats) = (false, 0, 0, 0, 0);
        Ward { expected, standing, attempted, covered, judged, forced, owed, shown, paid, repeats }
    }

    /// A connection was made and the key read. Says whether a sweep of everything is owed for it.
    pub(super) fn connected(&mut self, found: Option<Vec<u8>>) -> Result<(), Broken> {
        let attempted = self.attempted.take();
        let judged = if self.owes() {
            // The sweep that is owed begins again with everything else; nothing more is concluded.
            Ok(())
        } else if !self.judged {
            match self.forced.take() {
                Some(broken) => Err(broken),
                None => evidence::at_start(found.as_deref(), &self.expected)
                    .map(|watermark| self.covered = watermark.lsn),
            }
        } else {
            let (value, lsn) = attempted.unzip();
            let standing = self.standing.as_deref().unwrap_or_default();
            let judged = evidence::after_reconnect(found.as_deref(), standing, value.as_deref());
            if judged.is_ok() && found == value {
                self.covered = self.covered.max(lsn.unwrap_or_default());
            }
            judged
        };
        self.judged = true;
        self.standing = found;
        self.shown = self.paid;
        if judged.is_err() {
            self.owed += 1;
        }
        judged
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

    /// Whether readers see nothing stale that a sweep of everything is owed for.
    pub(super) fn is_whole(&self) -> bool {
        self.judged && self.shown == self.owed
    }

    /// A sweep of everything is done, second removal included.
    pub(super) fn paid(&mut self) {
        self.paid = (self.paid + 1).min(self.owed);
    }

    /// So many jobs repeat removals that Redis may have lost.
    pub(super) fn repeats(&mut self, jobs: usize) {
        self.repeats = jobs;
    }

    /// One of them is done.
    pub(super) fn repeated(&mut self) {
        self.repeats = self.repeats.saturating_sub(1);
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

    /// The value was written.
    pub(super) fn written(&mut self) -> Lsn {
        if let Some((value, lsn)) = self.attempted.take() {
            self.standing = Some(value);
            self.covered = lsn;
        }
        self.covered
    }

    /// The value was not written: `found` stands there, not what we believed.
    pub(super) fn contradicted(&mut self, found: Option<Vec<u8>>) -> Broken {
        self.attempted = None;
        self.standing = found;
        self.covered = Lsn::ZERO;
        self.owed += 1;
        Broken::WatermarkLost
    }

    /// Up to where the standing watermark covers.
    pub(super) fn covered(&self) -> Lsn {
        self.covered
    }
}
