//! Reads the audit trail, for `walsweep why`.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};

use super::file;
use super::known::Known;
use super::lines::{Event, Line};
use super::name::Moment;
use super::told::{Cause, Removal};
use crate::config::Audit;

/// Removals that are kept, the latest.
const KEPT_MAX: usize = 20;

/// The removals of a key that an audit trail tells of.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AuditRead {
    /// The removals, the oldest first.
    pub removals: VecDeque<Removal>,
    /// Whether there were more.
    pub more: bool,
    /// The time of its first line.
    pub since: Option<Moment>,
    /// Its lines.
    pub lines: u64,
    /// Lines that could not be read: torn by a crash or a full disk, or somebody else's.
    pub torn: u64,
}

/// Reads the file and the older ones beside it, the oldest first.
///
/// # Errors
///
/// A file that is there and cannot be read.
pub fn read(audit: &Audit, known: &Known, key: &[u8]) -> io::Result<AuditRead> {
    let mut read = AuditRead::default();
    let Some(path) = &audit.file else { return Ok(read) };
    for file in file::all(path, audit.keep)? {
        let (mut lines, mut text) = (BufReader::new(file), Vec::new());
        while lines.read_until(b'\n', &mut text)? > 0 {
            // The last line may be under way.
            let is_whole = text.ends_with(b"\n");
            match serde_json::from_slice::<Line>(&text) {
                Ok(line) if is_whole => read.take(&line, known, key),
                _ if text.trim_ascii().is_empty() => {}
                _ => read.torn += 1,
            }
            text.clear();
        }
    }
    Ok(read)
}

impl AuditRead {
    fn take(&mut self, line: &Line, known: &Known, key: &[u8]) {
        self.lines += 1;
        self.since.get_or_insert(line.time);
        if let Event::RemovedAgain { target, lsns } | Event::RefusedGone { target, lsns } =
            &line.event
        {
            for removal in self.removals.iter_mut().filter(|removal| removal.target == *target) {
                if !removal.lsn().is_some_and(|lsn| lsns.iter().any(|one| one == lsn)) {
                    continue;
                }
                match line.event {
                    Event::RefusedGone { .. } => removal.refused_gone = Some(line.time),
                    _ => removal.removed_again = removal.removed_again.or(Some(line.time)),
                }
            }
            return;
        }
        let name = match line.target() {
            Some(target) => known.name_of(target, key),
            None => Some(key),
        };
        let Some(name) = name else { return };
        let Some(removal) = line.removal(name, |rule| known.may_give(rule, name)) else { return };
        let is_same = |other: &Removal| removal.lsn().is_some() && other.is_same_as(&removal);
        match self.removals.iter_mut().find(|other| is_same(other)) {
            Some(known) if known.removed.is_some() => known.goes_on(&removal),
            Some(known) => *known = removal,
            None => self.removals.push_back(removal),
        }
        if self.removals.len() > KEPT_MAX {
            self.removals.pop_front();
            self.more = true;
        }
    }
}

impl Removal {
    /// Whether Redis refuses some of its keys still.
    fn is_owed(&self) -> bool {
        self.partly_refused && self.refused_gone.is_none()
    }

    /// A later line is of it: Redis refuses some of its keys when they are removed again. Or it was
    /// sent again, and removed again.
    fn goes_on(&mut self, later: &Removal) {
        match (self.is_owed(), later.is_owed()) {
            (true, false) => self.refused_gone = later.removed,
            (false, true) => (self.partly_refused, self.refused_gone) = (true, None),
            (true, true) | (false, false) => {}
        }
    }

    /// Where the commit of its transaction ends, if it is of one.
    fn lsn(&self) -> Option<&str> {
        match &self.cause {
            Cause::Transaction(transaction) => Some(&transaction.lsn),
            Cause::Sweep { .. } | Cause::Hand { .. } | Cause::Room { .. } => None,
        }
    }

    /// Whether another one is of the same event at the same target.
    #[must_use]
    pub fn is_same_as(&self, other: &Removal) -> bool {
        let is_same = match (&self.cause, &other.cause) {
            (Cause::Transaction(one), Cause::Transaction(other)) => {
                (one.xid, &one.lsn) == (other.xid, &other.lsn)
            }
            (Cause::Sweep { began, .. }, Cause::Sweep { began: other, .. })
            | (Cause::Room { began }, Cause::Room { began: other }) => began == other,
            _ => false,
        };
        is_same && self.target == other.target
    }
}
