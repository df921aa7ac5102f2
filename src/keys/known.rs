//! The two versions of a row: what a change tells of them, and what it leaves unknown (I5).
//!
//! Postgres sends the old version of an UPDATE only with `REPLICA IDENTITY FULL`, or its identity
//! columns if one of them changed, see
//! <https://www.postgresql.org/docs/current/logical-replication-publication.html>.

use super::label::WidenReason;
use super::plan::Slot;
use crate::decode::{OldKind, OldTuple, Tuple, Value};
use crate::gather::Row;

/// A value of a row version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known<'a> {
    Null,
    Bytes(&'a [u8]),
    Unknown(WidenReason),
}

/// The needed values of both row versions, by slot; a version that does not exist is empty.
#[derive(Debug, Default)]
pub(super) struct Versions<'a> {
    pub(super) old: Vec<Known<'a>>,
    pub(super) new: Vec<Known<'a>>,
    pub(super) has_old: bool,
    pub(super) has_new: bool,
}

impl<'a> Versions<'a> {
    /// Reads a change of a row; `TRUNCATE` has no version.
    pub(super) fn read(&mut self, row: &'a Row, slots: &[Slot]) {
        (self.has_old, self.has_new) = match row {
            Row::Insert { .. } => (false, true),
            Row::Update { .. } => (true, true),
            Row::Delete { .. } => (true, false),
            Row::Truncate => (false, false),
        };
        match row {
            Row::Insert { new } => read_tuple(new, slots, &mut self.new),
            Row::Update { old, new } => {
                read_tuple(new, slots, &mut self.new);
                match old {
                    Some(old) => read_old(old, slots, &mut self.old),
                    None => self.derive_old(slots),
                }
                self.complete(slots);
            }
            Row::Delete { old } => read_old(old, slots, &mut self.old),
            Row::Truncate => {}
        }
    }

    /// An UPDATE sends nothing of the old version if no column of the replica identity changed.
    fn derive_old(&mut self, slots: &[Slot]) {
        let identity = WidenReason::ReplicaIdentity;
        let old = slots.iter().zip(&self.new).map(|(slot, new)| match new {
            Known::Unknown(WidenReason::MissingColumn) => *new,
            _ if slot.is_key => *new,
            _ => Known::Unknown(identity),
        });
        self.old.extend(old);
    }

    /// Takes from one version of an UPDATE what the other one lacks.
    fn complete(&mut self, slots: &[Slot]) {
        for ((slot, old), new) in slots.iter().zip(&mut self.old).zip(&mut self.new) {
            match (&old, &new) {
                (Known::Unknown(_), Known::Null | Known::Bytes(_)) if slot.immutable => *old = *new,
                (Known::Null | Known::Bytes(_), Known::Unknown(WidenReason::UnchangedToast)) => {
                    *new = *old;
                }
                _ => {}
            }
        }
    }

    /// Whether the column differs between the versions of an UPDATE; `None` if that is not known.
    pub(super) fn difference(&self, at: usize, slots: &[Slot]) -> Option<bool> {
        match (self.old[at], self.new[at]) {
            _ if slots[at].immutable => Some(false),
            // A TOAST value that was not sent is the value that was there before.
            (_, Known::Unknown(WidenReason::UnchangedToast)) => Some(false),
            (Known::Unknown(_), _) | (_, Known::Unknown(_)) => None,
            (old, new) => Some(old != new),
        }
    }

    /// Whether the column may differ between the versions of an UPDATE.
    pub(super) fn differs(&self, at: usize, slots: &[Slot]) -> bool {
        self.difference(at, slots) != Some(false)
    }

    /// Empties it for the row of another lifetime, and keeps the memory.
    pub(super) fn recycle<'b>(self) -> Versions<'b> {
        Versions { old: emptied(self.old), new: emptied(self.new), has_old: false, has_new: false }
    }
}

/// Collecting a vector's own iterator keeps its memory, so that a row costs no allocation.
fn emptied<'b>(mut values: Vec<Known<'_>>) -> Vec<Known<'b>> {
    values.clear();
    values.into_iter().map(|_| Known::Null).collect()
}

fn read_old<'a>(old: &'a OldTuple, slots: &[Slot], out: &mut Vec<Known<'a>>) {
    read_tuple(&old.tuple, slots, out);
    let is_whole = old.kind == OldKind::Full;
    for (slot, value) in slots.iter().zip(out) {
        // Sent as whole for a relation that is not full: a partition with a smaller identity, whose
        // missing values look like NULL.
        let is_doubtful = if is_whole { *value == Known::Null } else { true };
        let is_unknown = is_doubtful && !slot.is_key && !(is_whole && slot.is_full);
        if is_unknown && *value != Known::Unknown(WidenReason::MissingColumn) {
            *value = Known::Unknown(WidenReason::ReplicaIdentity);
        }
    }
}

/// Walks over a tuple once. Slots are in the order of its columns.
fn read_tuple<'a>(tuple: &'a Tuple, slots: &[Slot], out: &mut Vec<Known<'a>>) {
    let missing = Known::Unknown(WidenReason::MissingColumn);
    let (mut values, mut next, mut last) = (tuple.values(), 0, missing);
    for slot in slots {
        if slot.column >= next {
            last = match values.nth(slot.column - next) {
                Some(Value::Null) => Known::Null,
                Some(Value::Unchanged) => Known::Unknown(WidenReason::UnchangedToast),
                // As a cast to text writes it, and most programs; the output function is shorter.
                Some(Value::Text(b"t")) if slot.is_boolean => Known::Bytes(b"true"),
                Some(Value::Text(b"f")) if slot.is_boolean => Known::Bytes(b"false"),
                Some(Value::Text(bytes) | Value::Binary(bytes)) => Known::Bytes(bytes),
                Some(Value::LeftOut) => Known::Unknown(WidenReason::LargeValue),
                None => missing,
            };
            next = slot.column.saturating_add(1);
        }
        // A slot without a column is behind the end of every tuple, and stays there.
        out.push(if slot.column == usize::MAX { missing } else { last });
    }
}

#[cfg(test)]
mod tests {
    use super::{Known, Versions};

    #[test]
    fn recycled_memory_is_kept() {
        let mut versions = Versions::default();
        versions.new.extend([Known::Null; 20]);
        let (place, size) = (versions.new.as_ptr().addr(), versions.new.capacity());
        let versions = versions.recycle();
        assert_eq!((versions.new.as_ptr().addr(), versions.new.capacity()), (place, size));
        assert!(versions.new.is_empty());
    }
}
