//! Rows of lookups as they were before a transaction, as far as its own changes tell.
//!
//! A row that a lookup reads may be another one, or gone, once the transaction is visible, and the
//! keys that it gave before are stale as well. Where the lookup is known to read rows of one table
//! by columns of it ([`Keyed`](super::lookup::Keyed)), a change of that table tells what the lookup
//! gave. Only what differs is kept, and within a limit (I6): beyond it, nothing is known of that
//! lookup's rows before the transaction, so what needs one of them widens (I5).

use hashbrown::HashMap;

use super::arena::{Arena, cost};
use super::encoding::{push_row, push_value, take_row};
use super::known::Known;
use super::label::{LookupId, WidenReason};

/// Rows of one set beyond which a lookup's are given up, by number and by bytes: what needs them
/// waits, too, and collapses beyond as many.
const COUNT_MAX: usize = 10_000;
/// See [`COUNT_MAX`].
const BYTES_MAX: usize = 1 << 20;

/// Rows before a transaction, by lookup and parameters.
#[derive(Clone, Default)]
pub(super) struct Before {
    /// See [`write()`].
    rows: Arena<LookupId>,
    used_bytes: usize,
    /// Lookups of whose rows before the transaction nothing is known, and why.
    lost: Vec<(LookupId, WidenReason)>,
}

/// The rows of a [`Before`], to be asked.
#[derive(Default)]
pub(super) struct ByParams<'a> {
    rows: HashMap<(LookupId, &'a [u8]), Vec<&'a [u8]>>,
    lost: &'a [(LookupId, WidenReason)],
}

impl Before {
    /// Memory held, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.rows.bytes() + self.lost.capacity() * size_of::<(LookupId, WidenReason)>()
    }

    /// Each row, as [`Before::add`] takes it.
    pub(super) fn rows(&self) -> impl Iterator<Item = (LookupId, &[u8])> {
        self.rows.iter()
    }

    /// The lookups of whose rows nothing is known.
    pub(super) fn lost(&self) -> impl Iterator<Item = (LookupId, WidenReason)> {
        self.lost.iter().copied()
    }

    /// Why nothing is known of the rows of a lookup; `None` if that is not so.
    pub(super) fn why_lost(&self, lookup: LookupId) -> Option<WidenReason> {
        self.lost().find(|(lost, _)| *lost == lookup).map(|(_, why)| why)
    }

    /// Adds a row that the lookup gave for parameters: see [`write()`].
    pub(super) fn add(&mut self, lookup: LookupId, row: &[u8]) {
        if self.why_lost(lookup).is_some() || !self.rows.insert(lookup, lookup.0, row) {
            return;
        }
        self.used_bytes += cost(row);
        while self.rows.len() > COUNT_MAX || self.used_bytes > BYTES_MAX {
            self.lose_largest();
        }
    }

    /// Nothing is known any more of what the lookup gave before.
    pub(super) fn lose(&mut self, lookup: LookupId, why: WidenReason) {
        if self.why_lost(lookup).is_none() {
            self.lost.push((lookup, why));
            self.rows.drop_all_of(lookup);
            self.rows.shrink();
            self.used_bytes = self.rows.iter().map(|(_, row)| cost(row)).sum();
        }
    }

    /// Loses the rows of every lookup that has some: nothing is known of them any more.
    pub(super) fn lose_all(&mut self) {
        while self.rows.len() > 0 {
            self.lose_largest();
        }
    }

    fn lose_largest(&mut self) {
        let mut sizes: HashMap<LookupId, usize> = HashMap::new();
        self.rows.iter().for_each(|(lookup, row)| *sizes.entry(lookup).or_default() += cost(row));
        let largest = sizes.into_iter().max_by_key(|(_, size)| *size);
        largest.into_iter().for_each(|(lookup, _)| self.lose(lookup, WidenReason::Limit));
    }

    pub(super) fn by_params(&self) -> ByParams<'_> {
        let mut rows: HashMap<_, Vec<&[u8]>> = HashMap::new();
        for (lookup, mut row) in self.rows.iter() {
            rows.entry((lookup, take_row(&mut row))).or_default().push(row);
        }
        ByParams { rows, lost: &self.lost }
    }
}

impl<'a> ByParams<'a> {
    /// Gives the rows of encoded columns that the lookup gave for encoded parameters.
    ///
    /// # Errors
    /// Why that is not known.
    pub(super) fn get(
        &self,
        lookup: LookupId,
        params: &'a [u8],
    ) -> Result<&[&'a [u8]], WidenReason> {
        if let Some((_, why)) = self.lost.iter().find(|(lost, _)| *lost == lookup) {
            return Err(*why);
        }
        Ok(self.rows.get(&(lookup, params)).map_or(&[], Vec::as_slice))
    }
}

/// Writes a row: the parameters that find it, and behind them the columns that keys name.
pub(super) fn write<'a>(
    out: &mut Vec<u8>,
    params: impl ExactSizeIterator<Item = Known<'a>>,
    columns: impl Iterator<Item = Known<'a>>,
) {
    out.clear();
    push_row(out, params);
    columns.for_each(|column| push_value(out, column));
}
