//! Row filters: which rows of a table the publication needs, and what part of them that is.
//!
//! [`Rules::row_filter`](crate::keys::Rules) says which rows the rules can use and where to leave
//! out the others changes nothing. Here is the rest of what a filter asks of a table: its columns
//! are in the replica identity, or will be, else the application's own UPDATE and DELETE fail; they
//! are of built-in types and collations; the table has no partitions and no heirs, whose identities
//! are their own; and there is no lookup, since which tables one reads its text does not tell, and
//! what was looked up may be kept for as long as the stream tells of no change.
//!
//! A filter that walsweep wrote carries a mark, of what it asks of which columns: one that was made
//! for other rules, or whose columns have changed their names since, is an error. One without the
//! mark is somebody else's.

use postgres_protocol::escape::{escape_identifier, escape_literal};
use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::catalog::Table;
use super::part::Part;
use super::{Context, Error, Finding, VERSION_PARTS, cure, identity, publication};
use crate::keys::{Ask, Comparison, Facts, Formula, Literal};

/// What stands before the digest in a mark.
const MARK: &str = "walsweep:";

/// From this part of the rows on a filter spares too little for a word about a publication that is
/// there already, in percent.
const WORTH_PERCENT: i64 = 50;

/// If this part of the rows has values that the statistics do not list, it could be either way.
const UNLISTED_MAX: f64 = 0.01;

/// A row filter for a table.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    formula: Formula,
    /// What tells it from others.
    mark: String,
    /// What has to be done before it, or writes of the application fail.
    pub(super) before: Option<String>,
}

/// The filter that a publication has for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing<'a> {
    /// All rows are published.
    None,
    /// The one that walsweep wrote, by its mark.
    Own(&'a str),
    /// One that somebody else wrote.
    Foreign,
}

/// How the values of a column are spread.
#[derive(Debug)]
pub(super) struct Spread {
    schema: String,
    table: String,
    column: String,
    /// The part of the rows that is NULL.
    null: f64,
    /// The most common values, and what part of the rows has them.
    common: Vec<(String, f64)>,
}

/// The filter that a table is to have; `None` if all its rows are to be published.
pub(super) fn wanted(context: &Context<'_>, table: &Table) -> Option<Filter> {
    if context.config.postgres.narrow { fitting(context, table) } else { None }
}

/// The filter that the rules of a table allow.
fn fitting(context: &Context<'_>, table: &Table) -> Option<Filter> {
    let (rules, name) = (context.rules, table.relation.table_name());
    if context.version < VERSION_PARTS || !table.is_alone() || !rules.lookups().is_empty() {
        return None;
    }
    let published = publication::published(context);
    let writes = published.update || published.delete;
    let will_be_full = writes && identity::needs_full(context, table);
    let is_identified = |column: &str| will_be_full || table.identifies(column);
    let type_id = |column: &str| {
        let known = table.columns.iter().find(|known| known.name == column)?;
        let may_be_asked = known.is_builtin && !known.is_generated && is_identified(column);
        may_be_asked.then_some(known.type_id)
    };
    let facts = Facts { type_id: &type_id, is_identified: &is_identified };
    let formula = rules.row_filter(&name, &facts)?;
    let numbered = |column: &str| {
        let known = table.columns.iter().find(|known| known.name == column);
        format!("{:?} {}", known.map(|known| known.number), escape_identifier(column))
    };
    let digest = Sha256::digest(condition(&formula, &numbered));
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let is_missing = formula.asks().iter().any(|ask| !table.identifies(&ask.column));
    let before = is_missing.then(|| cure::full_identity(table));
    Some(Filter { formula, mark: format!("{MARK}{digest}"), before })
}

/// The filter that is there.
pub(super) fn existing(table: &Table) -> Existing<'_> {
    let Some(constants) = &table.row_filter else { return Existing::None };
    // It stands behind all other constants.
    let mark = constants.iter().rev().find_map(|text| text.find(MARK).map(|at| &text[at..]));
    mark.map_or(Existing::Foreign, |mark| Existing::Own(mark.trim_end_matches('\0')))
}

/// Whether the filter that is there is the one that the rules allow.
pub(super) fn is_own(context: &Context<'_>, table: &Table) -> bool {
    let fits = |mark: &str| fitting(context, table).is_some_and(|filter| filter.mark == mark);
    matches!(existing(table), Existing::Own(mark) if fits(mark))
}

/// A filter that is there and hides, or may hide, rows that the rules could use.
pub(super) fn check(context: &Context<'_>, table: &Table) -> Option<Finding> {
    let (name, shown) = (&context.config.postgres.publication, table.relation.table_name());
    match existing(table) {
        Existing::Own(_) if !is_own(context, table) => {
            let message = format!(
                "publication `{name}` has a row filter for `{shown}` that `setup` made for other \
                 rules or columns: no key is removed for the rows that it leaves out"
            );
            let finding = Finding::error("row_filter_outdated", message);
            Some(finding.sql(cure::set_part(name, table, &Part::kept(context, table))))
        }
        Existing::Foreign => {
            let message = format!(
                "publication `{name}` has a row filter for `{shown}`: no key is removed \
                         for the rows that it leaves out"
            );
            Some(Finding::warning("row_filter", message))
        }
        Existing::Own(_) | Existing::None => None,
    }
}

/// Advice for a table of which the publication has all rows.
pub(super) fn advice(context: &Context<'_>, table: &Table) -> Option<Finding> {
    let publication = &context.config.postgres.publication;
    let is_whole = existing(table) == Existing::None;
    if !is_whole || !table.is_listed || !table.relation.is_published {
        return None;
    }
    let filter = wanted(context, table)?;
    if filter.percent(context, table).is_some_and(|percent| percent > WORTH_PERCENT) {
        return None;
    }
    let message = format!(
        "publication `{publication}` publishes all rows of `{}`; the rules need {}",
        table.relation.table_name(),
        filter.saving(context, table)
    );
    let part = Part::narrowest(context, table);
    let advice = Finding::info("rows_unneeded", message);
    let advice = advice.sql(cure::set_part(publication, table, &part));
    Some(part.priced(advice, &cure::set_part(publication, table, &Part::WHOLE)))
}

/// Asks the statistics for the columns of all filters.
pub(super) async fn spreads(context: &Context<'_>, client: &Client) -> Result<Vec<Spread>, Error> {
    let (mut schemas, mut names, mut columns) = (Vec::new(), Vec::new(), Vec::new());
    for table in &context.catalog.tables {
        let filter = wanted(context, table);
        for ask in filter.iter().flat_map(|filter| filter.formula.asks()) {
            schemas.push(table.relation.schema.clone());
            names.push(table.relation.name.clone());
            columns.push(ask.column.clone());
        }
    }
    if columns.is_empty() {
        return Ok(Vec::new());
    }
    let query = include_str!("../../sql/preflight_shares.sql");
    let rows = client.query(query, &[&schemas, &names, &columns]).await?;
    let spread = |row: &tokio_postgres::Row| {
        let (values, parts): (Vec<String>, Vec<f32>) = (row.try_get(4)?, row.try_get(5)?);
        let null: f32 = row.try_get(3)?;
        Ok(Spread {
            schema: row.try_get(0)?,
            table: row.try_get(1)?,
            column: row.try_get(2)?,
            null: null.into(),
            common: values.into_iter().zip(parts.into_iter().map(f64::from)).collect(),
        })
    };
    rows.iter().map(spread).collect()
}

impl Filter {
    /// The filter as it stands behind the name of its table, with the mark.
    pub(super) fn sql(&self) -> String {
        let condition = condition(&self.formula, &escape_identifier);
        let values = [("condition", &*condition), ("mark", &self.mark)];
        cure::render(include_str!("../../sql/setup/row_filter.sql"), &values)
    }

    /// What is published, and what part of the rows that is as far as the statistics know.
    pub(super) fn saving(&self, context: &Context<'_>, table: &Table) -> String {
        let shown = condition(&self.formula, &escape_identifier);
        let rows = format!("rows of `{}` with `{shown}`", table.relation.table_name());
        match self.percent(context, table) {
            Some(percent) => format!("{rows}, about {percent} % of them"),
            None => rows,
        }
    }

    /// The part of the rows that is published; `None` where the statistics do not tell it.
    fn percent(&self, context: &Context<'_>, table: &Table) -> Option<i64> {
        let (schema, name) = (&table.relation.schema, &table.relation.name);
        let asks = self.formula.asks();
        let column = &asks.first()?.column;
        let is_it = |spread: &&Spread| {
            (&spread.schema, &spread.table, &spread.column) == (schema, name, column)
        };
        let spread = context.spreads.iter().find(is_it)?;
        if asks.iter().any(|ask| ask.column != *column) {
            return None;
        }
        spread.percent(&self.formula)
    }
}

impl Spread {
    #[expect(clippy::cast_possible_truncation, reason = "at most 100")]
    fn percent(&self, formula: &Formula) -> Option<i64> {
        let holds = |value: Option<&str>| formula.holds(&|_| value);
        let common = self.common.iter().map(|(_, part)| part).sum::<f64>();
        let unlisted = 1.0 - common - self.null;
        let is_listed = |ask: &Ask| {
            ask.comparison == Comparison::Equal
                && (ask.literal == Literal::Null
                    || self.common.iter().any(|(value, _)| ask.holds(Some(value))))
        };
        // One of some values that are all listed: then no value that is not can be one of them.
        let is_told =
            !matches!(formula, Formula::All(_)) && formula.asks().into_iter().all(is_listed);
        if unlisted > UNLISTED_MAX && !is_told {
            return None;
        }
        let kept = self.common.iter().filter(|(value, _)| holds(Some(value)));
        let kept = kept.map(|(_, part)| part).sum::<f64>();
        let kept = kept + if holds(None) { self.null } else { 0.0 };
        Some((100.0 * kept.clamp(0.0, 1.0)).round() as i64)
    }
}

/// A formula as SQL that is true where it holds, and false or NULL where it does not; `name` writes
/// a column.
fn condition(formula: &Formula, name: &dyn Fn(&str) -> String) -> String {
    let join = |parts: &[Formula], sign: &str| {
        let part = |part: &Formula| match part {
            Formula::All(_) | Formula::Any(_) => format!("({})", condition(part, name)),
            Formula::Always(_) | Formula::Ask(_) => condition(part, name),
        };
        parts.iter().map(part).collect::<Vec<_>>().join(sign)
    };
    match formula {
        Formula::Always(truth) => truth.to_string(),
        Formula::Ask(ask) => comparison(ask, &name(&ask.column)),
        Formula::All(parts) => join(parts, " and "),
        Formula::Any(parts) => join(parts, " or "),
    }
}

fn comparison(ask: &Ask, column: &str) -> String {
    let sign = match ask.comparison {
        Comparison::Equal => "=",
        Comparison::Different => "<>",
        Comparison::Less => "<",
        Comparison::LessOrEqual => "<=",
        Comparison::Greater => ">",
        Comparison::GreaterOrEqual => ">=",
    };
    let is_equal = ask.comparison == Comparison::Equal;
    let literal = match &ask.literal {
        Literal::Null if is_equal => return format!("{column} is null"),
        Literal::Null => return format!("{column} is not null"),
        Literal::Bool(truth) => {
            return match (*truth == is_equal, ask.null) {
                (true, false) => column.to_owned(),
                (true, true) => format!("{column} is not false"),
                (false, false) => format!("not {column}"),
                (false, true) => format!("{column} is not true"),
            };
        }
        // A sign would be an operator behind the cast of a column.
        Literal::Int(int) if *int < 0 => format!("'{int}'::bigint"),
        Literal::Int(int) => int.to_string(),
        Literal::Text(text) => escape_literal(text).trim_start().to_owned(),
    };
    let compared = format!("{column} {sign} {literal}");
    if ask.null { format!("({compared}) is not false") } else { compared }
}
