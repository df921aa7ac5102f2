//! Which keys a change of one row removes, by which rule, and what was widened and why: the answer
//! of `walsweep explain`, from the same code that maps the stream.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde_json::Map;

use crate::config::{Location, LookupRows, Missing, TableName};
use crate::decode::{Column, OldKind, OldTuple, Relation, ReplicaIdentity, Tuple, Value};
use crate::gather::{Change, Row};
use crate::keys::{KeySet, Pattern, RuleId, Rules, Skip, Wanted, WidenReason, is_time};

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
        /// Keys that are removed.
        exact: Vec<Vec<u8>>,
        /// Patterns whose keys are removed.
        patterns: Vec<Pattern>,
        /// Why templates were widened.
        widened: Vec<WidenReason>,
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
        let outcome = outcome(rules, skip, &keys);
        explained.push(Explained { rule: name, at: place.clone(), outcome });
    }
    Ok(Explanation {
        table: question.table.clone(),
        operation: question.operation,
        rules: explained,
        tables: rules.tables().cloned().collect(),
        views: rules.views().cloned().collect(),
    })
}

fn outcome(rules: &Rules, skip: Option<Skip>, keys: &KeySet) -> Outcome {
    match skip {
        Some(Skip::OtherOperation) => Outcome::OtherOperation,
        Some(Skip::Unchanged) => Outcome::Unchanged,
        Some(Skip::ConditionFalse) => Outcome::ConditionFalse,
        None => Outcome::Keys {
            exact: keys.exact().map(|(_, key)| key.to_vec()).collect(),
            patterns: keys.patterns().map(|(_, pattern)| pattern.clone()).collect(),
            widened: keys.widened().map(|(_, reason, _)| reason).collect(),
            lookups: keys.waiting().map(|(text, rows)| waiting(rules, text, &rows)).collect(),
        },
    }
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
            return writeln!(formatter);
        }
        for (at, explained) in self.rules.iter().enumerate() {
            if at > 0 {
                writeln!(formatter)?;
            }
            writeln!(formatter, "rule `{}` (line {})", explained.rule, explained.at.line)?;
            self.outcome(formatter, &explained.outcome)?;
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
        for key in exact {
            writeln!(formatter, "  key      {}", Shown(key))?;
        }
        for pattern in patterns {
            writeln!(formatter, "  pattern  {}", Shown(pattern.as_bytes()))?;
        }
        for lookup in lookups {
            writeln!(formatter, "  lookup   {lookup}")?;
        }
        for reason in widened {
            writeln!(formatter, "  widened  {}: {}", reason.as_str(), why(*reason))?;
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
