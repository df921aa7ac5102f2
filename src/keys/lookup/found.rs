//! The answers of lookups.

use std::fmt;

use hashbrown::HashMap;

use crate::keys::encoding::{push_row, take_row, take_value};
use crate::keys::known::Known;
use crate::keys::label::LookupId;

/// One row that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The lookup.
    pub lookup: LookupId,
    /// Its parameters, encoded: equal ones are the same bytes.
    pub(in crate::keys) params: Box<[u8]>,
}

/// The answer of a lookup for some parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Rows, one at least; of a lookup that may have only one, that one.
    Rows(FoundRows),
    /// No row.
    None,
    /// More than one row, so that none of them is the row.
    Many,
    /// More rows than the lookup may have, or than there is memory for.
    Beyond,
    /// Rows of which one has a value that is too large to be kept.
    Large,
    /// The query failed, or was not answered in time.
    Failed,
}

/// Rows, each the text of each of [`Lookup::columns`](super::Lookup::columns), back to back.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FoundRows(Vec<u8>);

/// The answers that were found, by the row that was wanted.
#[derive(Debug, Default)]
pub struct Answers(HashMap<Wanted, Found>);

impl Wanted {
    /// The memory that its parameters take, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.params.len()
    }

    /// The parameters, `None` for NULL.
    #[must_use]
    pub fn params(&self) -> Vec<Option<&[u8]>> {
        let (mut rest, mut params) = (&*self.params, Vec::new());
        while !rest.is_empty() {
            params.push(match take_value(&mut rest) {
                Known::Bytes(bytes) => Some(bytes),
                Known::Null | Known::Unknown(_) => None,
            });
        }
        params
    }

    /// For tests of the stages to the right.
    #[cfg(test)]
    pub(crate) fn for_tests(lookup: u16, params: &[u8]) -> Wanted {
        Wanted { lookup: LookupId(lookup), params: params.into() }
    }
}

impl Found {
    /// The memory that its values take, bytes: the same of each copy, as some is counted off again.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Found::Rows(FoundRows(bytes)) => bytes.len(),
            Found::None | Found::Many | Found::Beyond | Found::Large | Found::Failed => 0,
        }
    }

    /// For tests: one row.
    #[cfg(test)]
    pub(crate) fn row(values: &[Option<&str>]) -> Found {
        let mut rows = FoundRows::default();
        rows.push(values.iter().map(|value| value.map(str::as_bytes)));
        Found::Rows(rows)
    }
}

/// Its size alone: values are nobody's business (I9).
impl fmt::Debug for FoundRows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("FoundRows").field(&self.0.len()).finish()
    }
}

impl FoundRows {
    /// Adds one; `None` is NULL.
    pub fn push<'a>(&mut self, values: impl ExactSizeIterator<Item = Option<&'a [u8]>>) {
        push_row(&mut self.0, values.map(|value| value.map_or(Known::Null, Known::Bytes)));
    }

    /// Each one, encoded.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || (!rest.is_empty()).then(|| take_row(&mut rest)))
    }
}

impl Answers {
    /// Notes what was found for `wanted`.
    pub fn insert(&mut self, wanted: Wanted, found: Found) {
        self.0.insert(wanted, found);
    }

    /// Whether it is known what is found for `wanted`.
    #[must_use]
    pub fn knows(&self, wanted: &Wanted) -> bool {
        self.0.contains_key(wanted)
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything that is known.
    pub fn iter(&self) -> impl Iterator<Item = (&Wanted, &Found)> {
        self.0.iter()
    }

    /// Adds what `other` knows.
    pub fn extend(&mut self, other: Answers) {
        self.0.extend(other.0);
    }

    /// Gives the answer for `wanted`, if one is known.
    #[must_use]
    pub fn get(&self, wanted: &Wanted) -> Option<&Found> {
        self.0.get(wanted)
    }
}
