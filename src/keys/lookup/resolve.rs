//! Keys that wait for rows: what a change tells of them, and what they become.
//!
//! An entry of a key set is, for each lookup of the template, its parameters, and then the values
//! of the other placeholders. It holds no more than that: a thousand changes with the same match
//! are one entry.

use std::sync::Arc;

use hashbrown::HashSet;

use super::{Answers, Found, LookupTemplate, Origin, Used, Wanted};
use crate::config::{LookupRows, Missing};
use crate::keys::before::ByParams;
use crate::keys::encoding::{push_value, take_value, take_values};
use crate::keys::known::Known;
use crate::keys::label::WidenReason;
use crate::keys::render::Renderer;
use crate::keys::set::KeySet;

/// Choices of rows of all lookups of a template beyond which those of several rows widen: more than
/// the largest `limit`, and each costs no more than its key.
const CHOICES_MAX: usize = 20_000;

/// Renders what waits for rows, under the limits of the set. What has no answer widens, and
/// `missing` is why.
pub fn resolve(keys: &mut KeySet, answers: &Answers, missing: WidenReason) {
    let (pending, before) = keys.take_pending();
    let (templates, mut renderer) = (Arc::clone(keys.templates()), Renderer::default());
    let rows = Rows { answers, missing, before: before.by_params() };
    for (id, entry) in pending.iter() {
        if let Some(template) = &templates[usize::from(id.0)].lookup {
            Told::read(template, entry).each_choice(template, &rows, |values| {
                renderer.add_values(id, &template.template, values.iter().copied(), keys);
            });
        }
    }
}

impl KeySet {
    /// The rows that it waits for, each once.
    #[must_use]
    pub fn wanted(&self) -> HashSet<Wanted> {
        self.told().flat_map(|(template, told)| told.wanted(template)).collect()
    }

    /// Gives the entries that wait for rows: the template of each as it is written, and its rows.
    pub fn waiting(&self) -> impl Iterator<Item = (&str, Vec<Wanted>)> {
        self.told().map(|(template, told)| (&*template.text, told.wanted(template).collect()))
    }

    fn told(&self) -> impl Iterator<Item = (&LookupTemplate, Told<'_>)> {
        self.pending().filter_map(|(template, entry)| {
            let template = template.lookup.as_deref()?;
            Some((template, Told::read(template, entry)))
        })
    }
}

/// Appends the parameters of a lookup. If one is unknown, so is the row, and whatever the others
/// are; then false.
pub(in crate::keys) fn push_params<'a>(
    out: &mut Vec<u8>,
    params: impl Iterator<Item = Known<'a>> + Clone,
) -> bool {
    let unknown = params.clone().find(|param| matches!(param, Known::Unknown(_)));
    params.for_each(|param| push_value(out, unknown.unwrap_or(param)));
    unknown.is_none()
}

/// An entry, read.
pub(in crate::keys) struct Told<'a> {
    /// The parameters of each lookup, encoded, or why they are unknown.
    params: Vec<Result<&'a [u8], WidenReason>>,
    /// The values of the other placeholders.
    values: Vec<Known<'a>>,
}

impl<'a> Told<'a> {
    pub(in crate::keys) fn read(template: &LookupTemplate, mut bytes: &'a [u8]) -> Told<'a> {
        let params = template.lookups.iter().map(|used| {
            let params = take_values(&mut bytes, used.params.len());
            match take_value(&mut &*params) {
                Known::Unknown(reason) => Err(reason),
                Known::Null | Known::Bytes(_) => Ok(params),
            }
        });
        let params = params.collect();
        let others = template.sources.iter().filter(|origin| **origin == Origin::Change);
        let values = others.map(|_| take_value(&mut bytes)).collect();
        Told { params, values }
    }

    /// The rows that it waits for.
    fn wanted(self, template: &LookupTemplate) -> impl Iterator<Item = Wanted> {
        template.lookups.iter().zip(self.params).filter_map(|(used, params)| {
            Some(Wanted { lookup: used.id, params: params.ok()?.into() })
        })
    }

    /// Gives `each` the values of all placeholders, once for each choice of rows: with the rows
    /// that lookups found, and with those that were there before the transaction. Where a lookup
    /// has none there is no choice.
    pub(in crate::keys) fn each_choice(
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

/// Everything that is known of rows when keys are rendered.
pub(in crate::keys) struct Rows<'a> {
    pub(in crate::keys) answers: &'a Answers,
    /// Why a row is not known that has no answer.
    pub(in crate::keys) missing: WidenReason,
    /// The rows that lookups gave before the transaction.
    pub(in crate::keys) before: ByParams<'a>,
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
            Some(Found::Rows(rows)) => rows.iter().map(Row::Found).collect(),
            Some(Found::None) if is_one && wanted.params().contains(&None) => {
                return vec![Row::Null];
            }
            Some(Found::None) => Vec::new(),
            Some(Found::Many) => return vec![Row::Unknown(WidenReason::LookupManyRows)],
            Some(Found::Beyond) => return vec![Row::Unknown(WidenReason::LookupLimit)],
            Some(Found::Large) => return vec![Row::Unknown(WidenReason::LargeValue)],
            Some(Found::Failed) => return vec![Row::Unknown(WidenReason::LookupFailed)],
        };
        match self.before.get(used.id, params) {
            Ok(before) => rows.extend(before.iter().copied().map(Row::Found)),
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
    /// Its columns, encoded.
    Found(&'a [u8]),
    /// A parameter is NULL, and no row has it: nothing is referred to, and that is known.
    Null,
    Unknown(WidenReason),
}

impl<'a> Row<'a> {
    fn column(self, at: usize) -> Known<'a> {
        match self {
            Row::Found(mut columns) => {
                take_values(&mut columns, at);
                let is_missing = columns.is_empty();
                let missing = Known::Unknown(WidenReason::MissingColumn);
                if is_missing { missing } else { take_value(&mut columns) }
            }
            Row::Null => Known::Null,
            Row::Unknown(reason) => Known::Unknown(reason),
        }
    }
}
