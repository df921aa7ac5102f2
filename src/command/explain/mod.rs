//! Which keys a change of one row removes, by which rule, and what was widened and why: the answer
//! of `walsweep explain`, from the same code that maps the stream.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde_json::Map;
use tokio_postgres::{Client, Error as SqlError};

use crate::config::{Location, LookupRows, Missing, TableName};
use crate::decode::{Column, OldKind, OldTuple, Relation, ReplicaIdentity, Tuple, Value};
use crate::gather::{Change, Row};
use crate::keys::{
    ColumnUse, KeySet, Pattern, Purpose, RuleId, Rules, Skip, Wanted, WidenReason, is_time,
};
use crate::preflight::nearest;

/// A row as JSON: column to value.
pub type Object = Map<String, serde_json::Value>;

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// INSERT.
    Insert,
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
    /// TRUNCATE.
    Truncate,
    /// REFRESH MATERIALIZED VIEW, of a view.
    Refresh,
}

/// A change to explain.
///
/// JSON null is NULL, `true` is `t`, numbers stand as JSON writes them, texts as they are.
#[derive(Clone, Debug)]
pub struct Question {
    /// The table.
    pub table: TableName,
    /// What happened.
    pub operation: Operation,
    /// The old row, as far as Postgres sends it: columns that are not in it are unknown.
    pub old: Option<Object>,
    /// The new row; in an UPDATE, columns that are only in the old row did not change.
    pub new: Option<Object>,
    /// The columns of the replica identity: what an UPDATE without an old row did not change.
    pub identity: Vec<String>,
}

/// Why a change cannot be explained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The operation is none of the five.
    #[error(
        "read operation `{0}`: it is not `insert`, `update`, `delete`, `truncate` or `refresh`"
    )]
    UnknownOperation(String),
    /// A row version that the operation has was not given.
    #[error("explain `{operation}`: its {version} row is not given")]
    MissingRow {
        /// The operation.
        operation: Operation,
        /// `old` or `new`.
        version: &'static str,
    },
    /// A row version was given that the operation does not have.
    #[error("explain `{operation}`: it has no {version} row")]
    ExtraRow {
        /// The operation.
        operation: Operation,
        /// `old` or `new`.
        version: &'static str,
    },
    /// A value is an array or an object, which Postgres prints in ways of its own.
    #[error("read column `{0}`: an array or object is not the text that Postgres sends")]
    Nested(String),
    /// The table is not there.
    #[error("explain: there is no table or materialized view `{0}`")]
    NoTable(TableName),
    /// A row, or the identity, names a column that the table does not have.
    #[error("read `--{option}`: `{table}` has no column `{column}`")]
    NoColumn {
        /// `old`, `new` or `identity`.
        option: &'static str,
        /// The table.
        table: TableName,
        /// The column.
        column: String,
        /// The columns that it has.
        columns: Vec<String>,
    },
}

impl Error {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::UnknownOperation(_) => None,
            Error::MissingRow { version, .. } => Some(format!("add `--{version} JSON`")),
            Error::ExtraRow { version, .. } => Some(format!("leave `--{version}` out")),
            Error::Nested(_) => Some("give the value as a text, as psql shows it".to_owned()),
            Error::NoTable(_) => Some("write `schema.table` as psql shows it".to_owned()),
            Error::NoColumn { column, columns, .. } => {
                Some(match nearest(column, columns.iter().map(String::as_str)) {
                    Some(like) => format!("did you mean `{like}`?"),
                    None => format!("its columns are `{}`", columns.join("`, `")),
                })
            }
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The table.
    pub table: TableName,
    /// What happened.
    pub operation: Operation,
    /// Every rule of the table, in the order of the file.
    pub rules: Vec<Explained>,
    /// All tables that rules look at.
    pub tables: Vec<TableName>,
    /// All materialized views that rules look at.
    pub views: Vec<TableName>,
    /// Columns that the rows have and no rule of the table reads, each with one that a rule reads,
    /// is not given and is perhaps meant.
    pub unread: Vec<(String, Option<String>)>,
}

/// What one rule makes of the change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The rule's name.
    pub rule: String,
    /// Where it starts in the file.
    pub at: Location,
    /// What it makes of the change.
    pub outcome: Outcome,
}

/// What one rule makes of the change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The rule does not look at this operation.
    OtherOperation,
    /// None of the columns in `changed` differs.
    Unchanged,
    /// Its `when` is false.
    ConditionFalse,
    /// It looks at the change.
    Keys {
        /// Keys that are removed, each with the template that gives it.
        exact: Vec<(Vec<u8>, Option<String>)>,
        /// Patterns whose keys are removed, each with the template that gives it.
        patterns: Vec<(Pattern, Option<String>)>,
        /// Why templates were widened, and the columns that are not known, where that is why.
        widened: Vec<(WidenReason, Vec<String>)>,
        /// Templates that need rows, with the parameters of their lookups.
        lookups: Vec<String>,
    },
}

/// Tells what the rules make of a change.
///
/// # Errors
/// A row version is missing or is one too many, or a value cannot be one of Postgres.
pub fn explain(rules: &mut Rules, question: &Question) -> Result<Explanation, Error> {
    let change = change(rules, question)?;
    let mut explained = Vec::new();
    for (at, name) in rules.names().to_vec().into_iter().enumerate() {
        let rule = RuleId(u16::try_from(at).expect("rules are counted in 16 bits"));
        let keys = match question.operation {
            Operation::Refresh => rules.keys_of_refresh(rule, &question.table),
            _ => rules.keys_of_rule(rule, &change),
        };
        let (Some(keys), Some(place)) = (keys, rules.location(rule)) else { continue };
        let skip = match question.operation {
            Operation::Refresh => None,
            _ => rules.skips(rule, &change),
        };
        let outcome = outcome(rules, (rule, &name), question, skip, &keys);
        explained.push(Explained { rule: name, at: place.clone(), outcome });
    }
    Ok(Explanation {
        table: question.table.clone(),
        operation: question.operation,
        rules: explained,
        tables: rules.tables().cloned().collect(),
        views: rules.views().cloned().collect(),
        unread: unread(rules, question),
    })
}

/// Compares the columns that a question names with those that its table has.
///
/// # Errors
/// The table is not there, or has no such column.
pub async fn compare(question: &Question, sql: &Client) -> Result<Result<(), Error>, SqlError> {
    let TableName { schema, name } = &question.table;
    let rows = sql.query(include_str!("../../../sql/explain_columns.sql"), &[schema, name]).await?;
    let columns =
        rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, SqlError>>()?;
    Ok(fits(question, columns))
}

fn fits(question: &Question, columns: Vec<String>) -> Result<(), Error> {
    if columns.is_empty() {
        return Err(Error::NoTable(question.table.clone()));
    }
    let of = |option: &'static str, row: &Option<Object>| {
        let names = row.iter().flat_map(Object::keys).cloned();
        names.map(|name| (option, name)).collect::<Vec<_>>()
    };
    let identity = question.identity.iter().map(|name| ("identity", name.clone()));
    let mut named = of("old", &question.old).into_iter().chain(of("new", &question.new));
    let unknown = |(_, column): &(&str, String)| !columns.contains(column);
    let wrong = named.find(unknown).or_else(|| identity.clone().find(unknown));
    match wrong {
        Some((option, column)) => {
            let table = question.table.clone();
            Err(Error::NoColumn { option, table, column, columns })
        }
        None => Ok(()),
    }
}

/// Columns of the rows that no rule of the table reads.
fn unread(rules: &Rules, question: &Question) -> Vec<(String, Option<String>)> {
    let read: BTreeSet<&str> = rules
        .column_uses()
        .filter(|used| used.table == &question.table)
        .map(|used| used.column)
        .collect();
    let given: BTreeSet<&str> = [&question.old, &question.new]
        .into_iter()
        .flatten()
        .flat_map(Object::keys)
        .map(String::as_str)
        .collect();
    if read.is_empty() {
        return Vec::new();
    }
    let meant = |column: &str| nearest(column, read.difference(&given).copied()).map(str::to_owned);
    given.difference(&read).map(|column| ((*column).to_owned(), meant(column))).collect()
}

fn outcome(
    rules: &Rules,
    (rule, name): (RuleId, &str),
    question: &Question,
    skip: Option<Skip>,
    keys: &KeySet,
) -> Outcome {
    let from = |pattern: &Pattern| match rules.templates_of(rule, pattern).as_slice() {
        [template] if template.as_bytes() != pattern.as_bytes() => Some((*template).to_owned()),
        _ => None,
    };
    let exact = |key: &[u8]| (key.to_vec(), from(&Pattern::literal(key)));
    match skip {
        Some(Skip::OtherOperation) => Outcome::OtherOperation,
        Some(Skip::Unchanged) => Outcome::Unchanged,
        Some(Skip::ConditionFalse) => Outcome::ConditionFalse,
        None => Outcome::Keys {
            exact: keys.exact().map(|(_, key)| exact(key)).collect(),
            patterns: keys.patterns().map(|(_, one)| (one.clone(), from(one))).collect(),
            widened: keys
                .widened()
                .map(|(_, reason, _)| (reason, unknown(rules, name, question, reason)))
                .collect(),
            lookups: keys.waiting().map(|(text, rows)| waiting(rules, text, &rows)).collect(),
        },
    }
}

/// The columns of a rule's keys whose values are not known for this reason.
fn unknown(rules: &Rules, rule: &str, question: &Question, reason: WidenReason) -> Vec<String> {
    let Question { old, new, identity, .. } = question;
    let has = |row: &Option<Object>, column: &str| {
        row.as_ref().is_some_and(|row| row.contains_key(column))
    };
    let is_key = |column: &str| identity.iter().any(|key| key == column);
    let is_unknown = |used: &ColumnUse<'_>| {
        let Purpose::Key { old: needs_old, .. } = used.purpose else { return false };
        let is_given = has(old, used.column) || has(new, used.column);
        match reason {
            WidenReason::ReplicaIdentity => {
                let is_sent = has(old, used.column) || (old.is_none() && is_key(used.column));
                let is_kept = used.immutable && new.is_some();
                needs_old && !is_sent && !is_kept && (is_given || new.is_none())
            }
            WidenReason::MissingColumn => !is_given,
            _ => false,
        }
    };
    let used = rules.column_uses().filter(|used| used.rule == rule && is_unknown(used));
    used.map(|used| used.column.to_owned()).collect()
}

/// A template that needs rows, and which.
fn waiting(rules: &Rules, template: &str, rows: &[Wanted]) -> String {
    let mut text = template.to_owned();
    for row in rows {
        let lookup = &rules.lookups()[usize::from(row.lookup.0)];
        for (column, value) in lookup.params.iter().zip(row.params()) {
            let value = value.map_or("NULL".to_owned(), |value| Shown(value).to_string());
            text.push_str(&format!(", {}: {} = {value}", lookup.name, column.value));
        }
        text.push_str(&match (lookup.rows, lookup.missing) {
            (LookupRows::Many, _) => format!(
                " (each row gives its keys, none gives none, more than {} widen)",
                lookup.limit
            ),
            (LookupRows::One, Missing::Skip) => " (no row gives no key)".to_owned(),
            (LookupRows::One, Missing::Widen) => String::new(),
        });
    }
    text
}

/// The change that Postgres would send.
fn change(rules: &Rules, question: &Question) -> Result<Change, Error> {
    let Question { table, operation, old, new, identity } = question;
    let (has_old, has_new) = match operation {
        Operation::Insert => (Some(false), true),
        Operation::Update => (None, true),
        Operation::Delete => (Some(true), false),
        Operation::Truncate | Operation::Refresh => (Some(false), false),
    };
    expect_row(*operation, "old", old.is_some(), has_old)?;
    expect_row(*operation, "new", new.is_some(), Some(has_new))?;
    let mut columns: BTreeSet<&str> =
        [old, new].into_iter().flatten().flat_map(Object::keys).map(String::as_str).collect();
    if *operation == Operation::Delete {
        let used = rules.column_uses_of(table);
        columns.extend(used.map(|used| used.column));
    }
    let is_key = |column: &str| match old {
        Some(old) => old.contains_key(column),
        None => identity.iter().any(|key| key == column),
    };
    let relation = Relation {
        id: 0,
        namespace: table.schema.clone(),
        name: table.name.clone(),
        replica_identity: ReplicaIdentity::Default,
        columns: columns
            .iter()
            .map(|name| Column {
                is_key: is_key(name),
                name: (*name).to_owned(),
                type_id: type_of([old, new].into_iter().flatten().find_map(|row| row.get(*name))),
                type_modifier: -1,
            })
            .collect(),
    };
    let read = |row: &Option<Object>| row.as_ref().map(|row| tuple(row, &columns)).transpose();
    let old = read(old)?.map(|tuple| OldTuple { kind: OldKind::Key, tuple });
    let row = match (operation, old, read(new)?) {
        (Operation::Insert, _, Some(new)) => Row::Insert { new },
        (Operation::Update, old, Some(new)) => Row::Update { old, new },
        (Operation::Delete, Some(old), _) => Row::Delete { old },
        _ => Row::Truncate,
    };
    Ok(Change { relation: Arc::new(relation), row })
}

/// The oid of the type that a value is taken for where its kind counts, in `when`: in the row given
/// here a text that reads like a timestamp is one.
fn type_of(value: Option<&serde_json::Value>) -> u32 {
    match value {
        Some(serde_json::Value::Bool(_)) => 16,
        Some(serde_json::Value::Number(number)) if number.is_i64() => 20,
        Some(serde_json::Value::Number(_)) => 1700,
        Some(serde_json::Value::String(text)) if is_time(text) => 1184,
        _ => 25,
    }
}

fn expect_row(
    operation: Operation,
    version: &'static str,
    is_given: bool,
    wanted: Option<bool>,
) -> Result<(), Error> {
    match (is_given, wanted) {
        (false, Some(true)) => Err(Error::MissingRow { operation, version }),
        (true, Some(false)) => Err(Error::ExtraRow { operation, version }),
        _ => Ok(()),
    }
}

/// A tuple with the values as they stand in keys.
fn tuple(row: &Object, columns: &BTreeSet<&str>) -> Result<Tuple, Error> {
    let text = |column: &&str| match row.get(*column) {
        None => Ok(Some(None)),
        Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::Bool(value)) => Ok(Some(Some(value.to_string()))),
        Some(serde_json::Value::Number(value)) => Ok(Some(Some(value.to_string()))),
        Some(serde_json::Value::String(value)) => Ok(Some(Some(value.clone()))),
        Some(serde_json::Value::Array(_) | serde_json::Value::Object(_)) => {
            Err(Error::Nested((*column).to_owned()))
        }
    };
    let texts = columns.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let values: Vec<Value<'_>> = texts
        .iter()
        .map(|text| match text {
            None => Value::Null,
            Some(None) => Value::Unchanged,
            Some(Some(text)) => Value::Text(text.as_bytes()),
        })
        .collect();
    Ok(Tuple::from_values(&values))
}

impl FromStr for Operation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Operation, Error> {
        match text {
            "insert" => Ok(Operation::Insert),
            "update" => Ok(Operation::Update),
            "delete" => Ok(Operation::Delete),
            "truncate" => Ok(Operation::Truncate),
            "refresh" => Ok(Operation::Refresh),
            _ => Err(Error::UnknownOperation(text.to_owned())),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Operation::Insert => "insert",
            Operation::Update => "update",
            Operation::Delete => "delete",
            Operation::Truncate => "truncate",
            Operation::Refresh => "refresh",
        })
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rules.is_empty() {
            write!(formatter, "no rule looks at `{}`; rules look at", self.table)?;
            for (at, table) in self.tables.iter().enumerate() {
                write!(formatter, "{} `{table}`", if at == 0 { "" } else { "," })?;
            }
            for view in &self.views {
                write!(formatter, "; at `{view}` with `--op refresh`")?;
            }
            let tables: Vec<String> = self.tables.iter().map(ToString::to_string).collect();
            let wanted = self.table.to_string();
            if let Some(like) = nearest(&wanted, tables.iter().map(String::as_str))
                && like != wanted
            {
                write!(formatter, "; did you mean `{like}`?")?;
            }
            return writeln!(formatter);
        }
        for (at, explained) in self.rules.iter().enumerate() {
            if at > 0 {
                writeln!(formatter)?;
            }
            writeln!(formatter, "rule `{}` (line {})", explained.rule, explained.at.line)?;
            self.outcome(formatter, &explained.outcome)?;
        }
        if !self.unread.is_empty() {
            writeln!(formatter)?;
        }
        for (column, meant) in &self.unread {
            write!(formatter, "unread     `{column}`: no rule of `{}` reads it", self.table)?;
            match meant {
                Some(meant) => writeln!(formatter, "; did you mean `{meant}`?")?,
                None => writeln!(formatter)?,
            }
        }
        Ok(())
    }
}

impl Explanation {
    fn outcome(&self, formatter: &mut fmt::Formatter<'_>, outcome: &Outcome) -> fmt::Result {
        let (exact, patterns, widened, lookups) = match outcome {
            Outcome::OtherOperation => {
                return writeln!(formatter, "  nothing  it does not look at {}", self.operation);
            }
            Outcome::Unchanged => {
                return writeln!(formatter, "  nothing  no column of `changed` differs");
            }
            Outcome::ConditionFalse => {
                return writeln!(formatter, "  nothing  its `when` is false");
            }
            Outcome::Keys { exact, patterns, widened, lookups } => {
                (exact, patterns, widened, lookups)
            }
        };
        if exact.is_empty() && patterns.is_empty() && lookups.is_empty() {
            writeln!(formatter, "  nothing  a value of every key is NULL, or its version missing")?;
        }
        let exact = exact.iter().map(|(key, from)| ("key    ", key.as_slice(), from));
        let patterns = patterns.iter().map(|(one, from)| ("pattern", one.as_bytes(), from));
        for (kind, key, from) in exact.chain(patterns) {
            write!(formatter, "  {kind}  {}", Shown(key))?;
            match from {
                Some(template) => writeln!(formatter, "  from `{template}`")?,
                None => writeln!(formatter)?,
            }
        }
        for lookup in lookups {
            writeln!(formatter, "  lookup   {lookup}")?;
        }
        for (reason, columns) in widened {
            write!(formatter, "  widened  {}: {}", reason.as_str(), why(*reason))?;
            match columns.as_slice() {
                [] => writeln!(formatter)?,
                [column] => writeln!(formatter, " (column `{column}`)")?,
                columns => writeln!(formatter, " (columns `{}`)", columns.join("`, `"))?,
            }
        }
        Ok(())
    }
}

fn why(reason: WidenReason) -> &'static str {
    match reason {
        WidenReason::ReplicaIdentity => {
            "an old value is not sent; set `replica identity full`, or declare it `immutable`"
        }
        WidenReason::UnchangedToast => "a value did not change, and was not sent",
        WidenReason::Truncate => "every row is gone",
        WidenReason::Limit => "a limit of the key set was reached",
        WidenReason::MissingColumn => "a column is not in the row",
        WidenReason::NotText => "a filter needs text, and the value is none",
        WidenReason::ConditionUnknown => "`when` depends on what is unknown, and counts as true",
        WidenReason::ConditionFailed => "`when` cannot be evaluated, and counts as true",
        WidenReason::LookupNoRow => "a lookup finds no row",
        WidenReason::LookupManyRows => "a lookup finds more than one row",
        WidenReason::LookupLimit => "a lookup finds more rows than its `limit`",
        WidenReason::LookupOldRow => "a row that a lookup read is another one now",
        WidenReason::LookupFailed => "a lookup fails, or is not answered in time",
        WidenReason::LargeValue => "a value is large, and is not kept",
    }
}

/// Bytes for people.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(self.0) {
            Ok(text) => formatter.write_str(text),
            Err(_) => write!(formatter, "{}", self.0.escape_ascii()),
        }
    }
}
