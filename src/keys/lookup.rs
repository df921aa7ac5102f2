//! Rows that templates need and that no change tells: which lookups there are, and what was found.
//!
//! `{match.home_team}` is a column of the row that `[lookup.match]` finds. Such a row can be read
//! only once the commit is visible, so what the change tells travels in the key set
//! ([`pending`](super::pending)), and the keys are rendered when the rows are there.

use std::sync::Arc;

use hashbrown::HashMap;

use super::compile::{Rule, RuleTemplate, problem};
use super::known::Known;
use super::label::WidenReason;
use super::pending::push_value;
use super::template::Template;
use crate::config::{self, Located, Location, LookupRows, Missing, Problem, TableName};

/// A lookup: its index in [`Rules::lookups`](super::Rules::lookups).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LookupId(pub u16);

/// A lookup and what templates want of it.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// Its name.
    pub name: String,
    /// The query.
    pub sql: Located<String>,
    /// The columns of the change whose values are `$1`, `$2` and so on.
    pub params: Vec<Located<String>>,
    /// The columns of its row that templates name, each with the place of the first.
    pub columns: Vec<Located<String>>,
    /// How many answers may be kept, at most; 0 for none.
    pub cache: usize,
    /// What the answers depend on; `None` while it is not known that they may be kept, as of rules
    /// that are not [bound](super::Bound).
    pub reads: Option<Reads>,
    /// How many rows an answer is meant to have.
    pub rows: LookupRows,
    /// The most rows of an answer that is meant to have many.
    pub limit: usize,
    /// What becomes of a key where one row is wanted and there is none.
    pub missing: Missing,
    /// Whose rows the answers are; `None` while that is not known to be one table, as of rules that
    /// are not bound.
    pub keyed: Option<Keyed>,
}

impl Lookup {
    /// The query, without a semicolon behind it.
    #[must_use]
    pub fn query(&self) -> &str {
        self.sql.value.trim().trim_end_matches(';')
    }
}

/// The table of `select … from one_table where column = $1 and other = $2`: what the stream tells
/// of it shows how an answer was before a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyed {
    /// Under which `pg_class.oid` its changes may come: its own, those of what it is a partition
    /// of, and of its partitions.
    pub tables: Vec<u32>,
    /// The columns that are compared with `$1`, `$2` and so on.
    pub params: Vec<String>,
    /// Its columns that are [`Lookup::columns`].
    pub columns: Vec<String>,
    /// Whether a row's text in `params` is that of the parameters that find it.
    pub is_exact: bool,
}

/// All that the answers of a lookup depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reads {
    /// The tables, each with its `pg_class.oid`. The stream tells of their every change.
    pub tables: Vec<(u32, TableName)>,
    /// `search_path`, by which the query's names are these tables.
    pub search_path: String,
}

/// A template with placeholders of lookups.
#[derive(Debug)]
pub(super) struct LookupTemplate {
    pub(super) template: Template,
    /// As it is written.
    pub(super) text: String,
    /// Its lookups, in the order of their first placeholder.
    pub(super) lookups: Vec<Used>,
    /// Where the value of each placeholder comes from.
    pub(super) sources: Vec<Origin>,
}

/// A lookup that a template uses.
#[derive(Debug)]
pub(super) struct Used {
    pub(super) id: LookupId,
    pub(super) params: Vec<Located<String>>,
    pub(super) rows: LookupRows,
    pub(super) missing: Missing,
}

/// Where the value of a placeholder comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The change: the next of its values.
    Change,
    /// A column of the row of one of the template's lookups, both by index.
    Row { lookup: usize, column: usize },
}

/// What a lookup gave for some parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// One row: the text of each of [`Lookup::columns`], `None` for NULL.
    Row(Vec<Option<Vec<u8>>>),
    /// The rows of a lookup that may have many, one at least.
    Rows(FoundRows),
    /// No row.
    None,
    /// More than one row, so that none of them is the row.
    Many,
    /// More rows than the lookup may have, or than there is memory for.
    Beyond,
    /// The query failed, or was not answered in time.
    Failed,
}

/// Rows, each the text of each of [`Lookup::columns`], back to back.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FoundRows(Vec<u8>);

/// Its size alone: values are nobody's business (I9).
impl std::fmt::Debug for FoundRows {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("FoundRows").field(&self.0.len()).finish()
    }
}

impl FoundRows {
    /// Adds one; `None` is NULL.
    pub fn push<'a>(&mut self, values: impl Iterator<Item = Option<&'a [u8]>>) {
        let at = self.0.len();
        self.0.extend_from_slice(&[0; size_of::<u32>()]);
        values.for_each(|value| push_value(&mut self.0, value.map_or(Known::Null, Known::Bytes)));
        let length = u32::try_from(self.0.len() - at - size_of::<u32>());
        let length = length.expect("a row is smaller than 4 GiB");
        self.0[at..at + size_of::<u32>()].copy_from_slice(&length.to_ne_bytes());
    }

    /// The memory that they take, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.capacity()
    }

    /// Each one, encoded.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let length = rest.split_off(..size_of::<u32>())?.try_into().ok()?;
            rest.split_off(..usize::try_from(u32::from_ne_bytes(length)).ok()?)
        })
    }
}

/// One row that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The lookup.
    pub lookup: LookupId,
    /// Its parameters, encoded: equal ones are the same bytes.
    pub(super) params: Box<[u8]>,
}

/// What an allocation costs beside its bytes.
const VALUE_COST: usize = 16;

/// What was found.
#[derive(Debug, Default)]
pub struct Answers(HashMap<Wanted, Found>);

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

    /// What is known of `wanted`.
    #[must_use]
    pub fn get(&self, wanted: &Wanted) -> Option<&Found> {
        self.0.get(wanted)
    }
}

impl Wanted {
    /// The memory that its parameters take, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.params.len()
    }

    /// For tests of the stages to the right.
    #[cfg(test)]
    pub(crate) fn for_tests(lookup: u16, params: &[u8]) -> Wanted {
        Wanted { lookup: LookupId(lookup), params: params.into() }
    }
}

impl Found {
    /// The memory that its values take, bytes, estimated.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let columns = match self {
            Found::Row(columns) => columns,
            Found::Rows(rows) => return rows.bytes(),
            Found::None | Found::Many | Found::Beyond | Found::Failed => return 0,
        };
        let values = columns.iter().flatten().map(|value| value.capacity() + VALUE_COST);
        columns.capacity() * size_of::<Option<Vec<u8>>>() + values.sum::<usize>()
    }
}

/// Why a value of a lookup is not known, by what it found.
pub(super) fn unknown(found: &Found) -> WidenReason {
    match found {
        Found::Row(_) | Found::Rows(_) => WidenReason::MissingColumn,
        Found::None => WidenReason::LookupNoRow,
        Found::Many => WidenReason::LookupManyRows,
        Found::Beyond => WidenReason::LookupLimit,
        Found::Failed => WidenReason::LookupFailed,
    }
}

/// Binds the templates of the rules to the lookups that they name. Problems: names of no lookup,
/// and lookups that no template names.
pub(super) fn bind(
    rules: &mut [Rule],
    lookups: &[config::Lookup],
    problems: &mut Vec<Problem>,
) -> Vec<Lookup> {
    let lookup = |lookup: &config::Lookup| Lookup {
        name: lookup.name.clone(),
        sql: lookup.sql.clone(),
        params: lookup.params.clone(),
        columns: Vec::new(),
        cache: lookup.cache,
        reads: None,
        rows: lookup.rows,
        limit: lookup.limit,
        missing: lookup.missing,
        keyed: None,
    };
    let mut bound: Vec<Lookup> = lookups.iter().map(lookup).collect();
    for key in rules.iter_mut().flat_map(|rule| &mut rule.templates) {
        match bind_template(key, &mut bound) {
            Ok(template) => key.lookup = template.map(Arc::new),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() {
        let unused = lookups.iter().zip(&bound).filter(|(_, bound)| bound.columns.is_empty());
        problems.extend(unused.map(|(lookup, _)| {
            let name = &lookup.name;
            let hint = format!("write `{{{name}.column}}` in a key, or remove the lookup");
            problem(&lookup.at, format!("no key names lookup `{name}`"), &hint)
        }));
    }
    bound
}

fn bind_template(
    key: &RuleTemplate,
    lookups: &mut [Lookup],
) -> Result<Option<LookupTemplate>, Problem> {
    let (mut used, mut sources): (Vec<Used>, _) = (Vec::new(), Vec::new());
    for placeholder in key.template.placeholders() {
        let Some(name) = &placeholder.lookup else {
            sources.push(Origin::Change);
            continue;
        };
        let found = lookups.iter_mut().enumerate().find(|(_, lookup)| lookup.name == *name);
        let Some((at, lookup)) = found else {
            return Err(no_lookup(name, &placeholder.column, &key.at));
        };
        let columns = &mut lookup.columns;
        let column = columns.iter().position(|known| known.value == placeholder.column);
        let column = column.unwrap_or_else(|| {
            columns.push(Located { value: placeholder.column.clone(), at: key.at.clone() });
            columns.len() - 1
        });
        let Ok(id) = u16::try_from(at).map(LookupId) else {
            return Err(problem(&key.at, "there are more than 65 536 lookups", "join some"));
        };
        let place = used.iter().position(|known| known.id == id).unwrap_or_else(|| {
            let (rows, missing) = (lookup.rows, lookup.missing);
            used.push(Used { id, params: lookup.params.clone(), rows, missing });
            used.len() - 1
        });
        sources.push(Origin::Row { lookup: place, column });
    }
    let many = used.iter().filter(|used| used.rows == LookupRows::Many);
    let many: Vec<&str> = many.map(|used| &*lookups[usize::from(used.id.0)].name).collect();
    if let [one, other, ..] = many.as_slice() {
        let message = format!("a key names two lookups of many rows, `{one}` and `{other}`");
        let hint = "join them in one query, each row of which gives a key";
        return Err(problem(&key.at, message, hint));
    }
    let (template, text) = (key.template.clone(), key.text.clone());
    Ok((!used.is_empty()).then_some(LookupTemplate { template, text, lookups: used, sources }))
}

fn no_lookup(name: &str, column: &str, at: &Location) -> Problem {
    let message = format!("unknown row version or lookup `{name}` in `{{{name}.{column}}}`");
    let hint = format!(
        "write `{{column}}`, `{{old.column}}` or `{{new.column}}`, or define `[lookup.{name}]`; \
         put a column name with a dot in quotes: `{{\"{name}.{column}\"}}`"
    );
    problem(at, message, &hint)
}
