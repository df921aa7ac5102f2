//! Rows that templates need and that no change tells: which lookups there are, what was found, and
//! the keys of that.
//!
//! `{match.home_team}` is a column of the row that `[lookup.match]` finds. Such a row can be read
//! only once the commit is visible, so what the change tells travels in the key set, and
//! [`resolve()`] renders the keys when the rows are there.

mod found;
mod resolve;

use std::sync::Arc;

use super::compile::{Rule, RuleTemplate, problem};
use super::label::LookupId;
use super::template::Template;
use crate::config::{self, Located, Location, LookupRows, Missing, Problem, TableName};

pub use found::{Answers, Found, FoundRows, Wanted};
pub use resolve::resolve;
pub(super) use resolve::{Rows, Told, push_params};

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
    /// Everything that the answers depend on; `None` while it is not known that they may be kept,
    /// as of rules that are not [bound](super::Bound).
    pub reads: Option<Reads>,
    /// How many rows an answer is meant to have.
    pub rows: LookupRows,
    /// The most rows of an answer that is meant to have many.
    pub limit: usize,
    /// The outcome for a key where one row is wanted and there is none.
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
