//! Keys that wait for rows: what a change tells of them, each once, back to back in one arena.
//!
//! An entry is, for each lookup of the template, its parameters, and then the values of the other
//! placeholders. It holds no more than that: a thousand changes with the same match are one entry.

use hashbrown::HashSet;

use super::before::ByParams;
use super::entries::Entries;
use super::known::Known;
use super::label::{TemplateId, WidenReason};
use super::lookup::{Answers, Found, LookupTemplate, Origin, Used, Wanted, unknown};
use crate::config::{LookupRows, Missing};

const NULL: u8 = 0;
const BYTES: u8 = 1;
/// In the place of a lookup's parameters: they follow.
const KNOWN: u8 = 2;
/// Plus the reason.
const UNKNOWN: u8 = 3;

/// Choices of rows of all lookups of a template beyond which those of several rows widen: more than
/// the largest `limit`, and each costs no more than its key.
const CHOICES_MAX: usize = 20_000;

/// Entries of key templates.
pub(super) type Pending = Entries<TemplateId>;

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

    /// Gives `each` the values of all placeholders, once for each choice of rows: with the rows
    /// that lookups found, and with those that were there before the transaction. Where a lookup
    /// has none there is no choice.
    pub(super) fn each_choice(
        &self,
        template: &LookupTemplate,
        rows: &Rows<'a>,
        mut each: impl FnMut(&[Known<'a>]),
    ) {
        let lookups = template.lookups.iter().zip(&self.params);
        let mut choices: Vec<Vec<Row<'a>>> =
            lookups.map(|(used, params)| rows.of(used, *params)).collect();
        let count = choices.iter().try_fold(1_usize, |count, rows| count.checked_mul(rows.len()));
        if count.is_none_or(|count| count > CHOICES_MAX) {
            let several = choices.iter_mut().filter(|rows| rows.len() > 1);
            several.for_each(|rows| *rows = vec![Row::Unknown(WidenReason::Limit)]);
        }
        if choices.iter().any(Vec::is_empty) {
            return;
        }
        let (mut chosen, mut values) = (vec![0; choices.len()], Vec::new());
        loop {
            let mut own = self.values.iter();
            values.clear();
            values.extend(template.sources.iter().map(|origin| match origin {
                Origin::Change => own.next().copied().unwrap_or(Known::Null),
                Origin::Row { lookup, column } => choices[*lookup][chosen[*lookup]].column(*column),
            }));
            each(&values);
            let next = choices.iter().zip(&chosen).position(|(rows, at)| at + 1 < rows.len());
            let Some(next) = next else { return };
            chosen[next] += 1;
            chosen[..next].fill(0);
        }
    }
}

/// What is known of rows when keys are rendered.
pub(super) struct Rows<'a> {
    pub(super) answers: &'a Answers,
    /// Why a row is not known that has no answer.
    pub(super) missing: WidenReason,
    /// What lookups gave before the transaction.
    pub(super) before: ByParams<'a>,
}

impl<'a> Rows<'a> {
    /// The rows that a lookup's placeholders stand for, one after another: those that it finds, and
    /// those that it found before the transaction. None, if there is no key.
    fn of(&self, used: &Used, params: Result<&'a [u8], WidenReason>) -> Vec<Row<'a>> {
        let params = match params {
            Ok(params) => params,
            Err(reason) => return vec![Row::Unknown(reason)],
        };
        let wanted = Wanted { lookup: used.id, params: params.into() };
        let is_one = used.rows == LookupRows::One;
        let mut rows: Vec<Row<'a>> = match self.answers.get(&wanted) {
            None => return vec![Row::Unknown(self.missing)],
            Some(Found::Row(columns)) => vec![Row::Found(columns)],
            Some(Found::Rows(rows)) => rows.iter().map(Row::Encoded).collect(),
            Some(Found::None) if is_one && wanted.params().contains(&None) => {
                return vec![Row::Null];
            }
            Some(Found::None) => Vec::new(),
            Some(found) => return vec![Row::Unknown(unknown(found))],
        };
        match self.before.get(used.id, params) {
            Ok(before) => rows.extend(before.iter().copied().map(Row::Encoded)),
            Err(reason) => return vec![Row::Unknown(reason)],
        }
        if rows.is_empty() && is_one && used.missing == Missing::Widen {
            rows.push(Row::Unknown(WidenReason::LookupNoRow));
        }
        rows
    }
}

/// A row that was looked up.
#[derive(Clone, Copy)]
enum Row<'a> {
    Found(&'a [Option<Vec<u8>>]),
    /// Its columns, encoded.
    Encoded(&'a [u8]),
    /// A parameter is NULL, and no row has it: nothing is referred to, and that is known.
    Null,
    Unknown(WidenReason),
}

impl<'a> Row<'a> {
    fn column(self, at: usize) -> Known<'a> {
        let missing = Known::Unknown(WidenReason::MissingColumn);
        match self {
            Row::Found(columns) => match columns.get(at) {
                Some(Some(bytes)) => Known::Bytes(bytes),
                Some(None) => Known::Null,
                None => missing,
            },
            Row::Encoded(mut columns) => {
                (0..at).for_each(|_| _ = take_value(&mut columns));
                if columns.is_empty() { missing } else { take_value(&mut columns) }
            }
            Row::Null => Known::Null,
            Row::Unknown(reason) => Known::Unknown(reason),
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
