//! Keys that wait for rows: what a change tells of them, each once, back to back in one arena.
//!
//! An entry is, for each lookup of the template, its parameters, and then the values of the other
//! placeholders. It holds no more than that: a thousand changes with the same match are one entry.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashSet, HashTable};

use super::known::Known;
use super::label::{TemplateId, WidenReason};
use super::lookup::{Answers, Found, LookupTemplate, Origin, Wanted, unknown};

const NULL: u8 = 0;
const BYTES: u8 = 1;
/// In the place of a lookup's parameters: they follow.
const KNOWN: u8 = 2;
/// Plus the reason.
const UNKNOWN: u8 = 3;

/// Entries of key templates.
#[derive(Clone, Default)]
pub(super) struct Pending {
    hasher: DefaultHashBuilder,
    arena: Vec<u8>,
    entries: Vec<Entry>,
    index: HashTable<u32>,
}

#[derive(Clone, Copy)]
struct Entry {
    start: usize,
    len: usize,
    template: TemplateId,
}

/// What an entry costs beside its bytes.
const COST: usize = size_of::<Entry>() + 2 * (size_of::<u32>() + 1);

/// Memory of an entry in bytes.
pub(super) fn cost(bytes: &[u8]) -> usize {
    bytes.len() + COST
}

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Memory held, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.arena.capacity()
            + self.entries.capacity() * size_of::<Entry>()
            + self.index.capacity() * 2 * size_of::<u32>()
    }

    /// Each entry with its template.
    pub(super) fn iter(&self) -> impl Iterator<Item = (TemplateId, &[u8])> {
        self.entries.iter().map(|entry| (entry.template, entry.bytes(&self.arena)))
    }

    pub(super) fn contains(&self, template: TemplateId, bytes: &[u8]) -> bool {
        let hash = self.hasher.hash_one((template.0, bytes));
        let same = |at: &u32| {
            let entry = &self.entries[*at as usize];
            entry.template == template && entry.bytes(&self.arena) == bytes
        };
        self.index.find(hash, same).is_some()
    }

    /// Adds what is not in it.
    pub(super) fn insert(&mut self, template: TemplateId, bytes: &[u8]) {
        self.entries.push(Entry { start: self.arena.len(), len: bytes.len(), template });
        self.arena.extend_from_slice(bytes);
        self.put_last_in_index(self.entries.len() - 1);
    }

    fn put_last_in_index(&mut self, at: usize) {
        let (hasher, entries, arena) = (&self.hasher, &self.entries, &self.arena);
        let hash = |at: &u32| {
            let entry = &entries[*at as usize];
            hasher.hash_one((entry.template.0, entry.bytes(arena)))
        };
        let at = u32::try_from(at).expect("a key set is limited to less than 4 GiB");
        self.index.insert_unique(hash(&at), at, hash);
    }

    /// Takes out the entries of a template.
    pub(super) fn drop_all_of(&mut self, template: TemplateId) {
        let all = std::mem::take(self);
        for (owner, bytes) in all.iter().filter(|(owner, _)| *owner != template) {
            self.insert(owner, bytes);
        }
    }
}

impl Entry {
    fn bytes<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        &arena[self.start..self.start + self.len]
    }
}

/// Appends the parameters of a lookup. If one is unknown, so is the row; then false.
pub(super) fn push_params<'a>(
    out: &mut Vec<u8>,
    params: impl Iterator<Item = Known<'a>> + Clone,
) -> bool {
    let unknown = params.clone().find_map(|param| match param {
        Known::Unknown(reason) => Some(reason),
        Known::Null | Known::Bytes(_) => None,
    });
    match unknown {
        Some(reason) => out.push(UNKNOWN + reason as u8),
        None => {
            out.push(KNOWN);
            params.for_each(|param| push_value(out, param));
        }
    }
    unknown.is_none()
}

/// Appends a value.
pub(super) fn push_value(out: &mut Vec<u8>, value: Known<'_>) {
    match value {
        Known::Null => out.push(NULL),
        Known::Bytes(bytes) => {
            out.push(BYTES);
            out.extend_from_slice(&(bytes.len() as u64).to_ne_bytes());
            out.extend_from_slice(bytes);
        }
        Known::Unknown(reason) => out.push(UNKNOWN + reason as u8),
    }
}

/// An entry, read.
pub(super) struct Told<'a> {
    /// The parameters of each lookup, encoded, or why they are unknown.
    params: Vec<Result<&'a [u8], WidenReason>>,
    /// The values of the other placeholders.
    values: Vec<Known<'a>>,
}

impl<'a> Told<'a> {
    pub(super) fn read(template: &LookupTemplate, mut bytes: &'a [u8]) -> Told<'a> {
        let mut params = Vec::new();
        for used in &template.lookups {
            let tag = take_byte(&mut bytes);
            if tag != KNOWN {
                params.push(Err(reason(tag)));
                continue;
            }
            let start = bytes;
            for _ in &used.params {
                take_value(&mut bytes);
            }
            params.push(Ok(&start[..start.len() - bytes.len()]));
        }
        let others = template.sources.iter().filter(|origin| **origin == Origin::Change);
        let values = others.map(|_| take_value(&mut bytes)).collect();
        Told { params, values }
    }

    /// The rows that it waits for.
    pub(super) fn wanted(&self, template: &LookupTemplate) -> impl Iterator<Item = Wanted> {
        let params = template.lookups.iter().zip(&self.params);
        params.filter_map(|(used, params)| {
            params.ok().map(|params| Wanted { lookup: used.id, params: params.into() })
        })
    }

    /// The value of each placeholder; `missing` is why a row is not known that has no answer.
    pub(super) fn values(
        &self,
        template: &LookupTemplate,
        (answers, missing): (&'a Answers, WidenReason),
    ) -> Vec<Known<'a>> {
        let rows: Vec<Row<'a>> = template
            .lookups
            .iter()
            .zip(&self.params)
            .map(|(used, params)| match params {
                Err(reason) => Row::Unknown(*reason),
                Ok(params) => {
                    let wanted = Wanted { lookup: used.id, params: (*params).into() };
                    Row::of(&wanted, answers.get(&wanted), missing)
                }
            })
            .collect();
        let mut own = self.values.iter();
        let value = |origin: &Origin| match origin {
            Origin::Change => own.next().copied().unwrap_or(Known::Null),
            Origin::Row { lookup, column } => rows[*lookup].column(*column),
        };
        template.sources.iter().map(value).collect()
    }
}

/// A row that was looked up.
enum Row<'a> {
    Found(&'a [Option<Vec<u8>>]),
    /// A parameter is NULL, and no row has it: nothing is referred to, and that is known.
    Null,
    Unknown(WidenReason),
}

impl<'a> Row<'a> {
    fn of(wanted: &Wanted, found: Option<&'a Found>, missing: WidenReason) -> Row<'a> {
        match found {
            None => Row::Unknown(missing),
            Some(Found::Row(columns)) => Row::Found(columns),
            Some(Found::None) if wanted.params().contains(&None) => Row::Null,
            Some(found) => Row::Unknown(unknown(found)),
        }
    }

    fn column(&self, at: usize) -> Known<'a> {
        match self {
            Row::Found(columns) => match columns.get(at) {
                Some(Some(bytes)) => Known::Bytes(bytes),
                Some(None) => Known::Null,
                None => Known::Unknown(WidenReason::MissingColumn),
            },
            Row::Null => Known::Null,
            Row::Unknown(reason) => Known::Unknown(*reason),
        }
    }
}

impl Wanted {
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
}

/// Every row that entries wait for, each once.
pub(super) fn wanted<'a>(
    entries: impl Iterator<Item = (&'a LookupTemplate, &'a [u8])>,
) -> HashSet<Wanted> {
    let mut all = HashSet::new();
    for (template, bytes) in entries {
        all.extend(Told::read(template, bytes).wanted(template));
    }
    all
}

fn take_byte(bytes: &mut &[u8]) -> u8 {
    bytes.split_off_first().copied().unwrap_or(NULL)
}

fn take_value<'a>(bytes: &mut &'a [u8]) -> Known<'a> {
    match take_byte(bytes) {
        NULL => Known::Null,
        BYTES => {
            let len = bytes.split_off(..8).and_then(|len| len.try_into().ok());
            let len = usize::try_from(u64::from_ne_bytes(len.unwrap_or_default()));
            Known::Bytes(len.ok().and_then(|len| bytes.split_off(..len)).unwrap_or_default())
        }
        tag => Known::Unknown(reason(tag)),
    }
}

fn reason(tag: u8) -> WidenReason {
    let at = usize::from(tag.saturating_sub(UNKNOWN));
    WidenReason::ALL.get(at).copied().unwrap_or(WidenReason::LookupFailed)
}
