//! Which keys a change of one row removes, by which rule, and what was widened and why: the answer
//! of `walsweep explain`, from the same code that maps the stream.

pub mod command;
mod show;
mod table;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde_json::Map;

pub use self::table::{Identity, Table, TableColumn, ask};

pub(super) use self::show::Shown;
use crate::config::{Location, LookupRows, Missing, TableName};
use crate::decode::{Column, OldKind, OldTuple, Relation, ReplicaIdentity, Tuple, Value};
use crate::gather::{Change, Row};
use crate::keys::{
    ColumnUse, Item, ItemKind, KeySet, Pattern, Purpose, RuleId, Rules, Skip, Wanted, WidenReason,
    is_time,
};
use crate::preflight::nearest;

/// A row as JSON: column to value.
pub type Object = Map<String, serde_json::Value>;

/// An operation on a row, or on a view.
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
/// JSON null is NULL; any other value is what its text is in the type of its column.
#[derive(Clone, Debug)]
pub struct Question {
    /// The table.
    pub table: TableName,
    /// The operation that happened.
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
    #[error("explain: there is no table or materialized view `{table}`")]
    NoTable {
        /// The table that is asked about.
        table: TableName,
        /// The one that was perhaps meant.
        like: Option<String>,
    },
    /// Only a materialized view is refreshed.
    #[error("explain `refresh`: `{0}` is a table, and only a materialized view is refreshed")]
    NotAView(TableName),
    /// The rows of a view are not changed one by one.
    #[error(
        "explain `{operation}`: `{view}` is a materialized view: its rows change by REFRESH alone"
    )]
    OnlyRefreshed {
        /// The operation.
        operation: Operation,
        /// The view.
        view: TableName,
    },
    /// A value is none of its column's type.
    #[error("read `--{option}`: column `{column}` is of type `{kind}`: {said}")]
    NotOfType {
        /// `old` or `new`.
        option: &'static str,
        /// The column.
        column: String,
        /// Its type.
        kind: String,
        /// The server's message.
        said: String,
    },
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
    /// Gives advice on what to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::UnknownOperation(_) => None,
            Error::MissingRow { version, .. } => Some(format!("add `--{version} JSON`")),
            Error::ExtraRow { version, .. } => Some(format!("leave `--{version}` out")),
            Error::Nested(_) => Some("give the value as a text, as psql shows it".to_owned()),
            Error::NoTable { like: Some(like), .. } => Some(format!("did you mean `{like}`?")),
            Error::NoTable { like: None, .. } => {
                Some("write `schema.table` as psql shows it".to_owned())
            }
            Error::NotAView(_) => {
                Some("ask for `--op insert`, `update`, `delete` or `truncate`".to_owned())
            }
            Error::OnlyRefreshed { view, .. } => {
                Some(format!("ask for its rules: they look at `{view}` with `--op refresh`"))
            }
            Error::NotOfType { .. } => Some("write it as psql shows it".to_owned()),
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
    /// The operation that happened.
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
    /// Facts that have to be known besides, a sentence each.
    pub notes: Vec<String>,
}

/// One rule, and the outcome of the change under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The rule's name.
    pub rule: String,
    /// Where it starts in the file.
    pub at: Location,
    /// The outcome of the change under it.
    pub outcome: Outcome,
}

/// The outcome of the change under one rule.
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
        /// Fields and tags that are removed, each with the templates that give it.
        items: Vec<Inside>,
        /// Why templates were widened, and the columns that are not known, where that is why.
        widened: Vec<(WidenReason, Vec<String>)>,
        /// Columns whose old value Postgres sends, and the question does not tell, so that
        /// templates were widened here.
        untold: Vec<String>,
        /// Templates that need rows, with the parameters of their lookups.
        lookups: Vec<String>,
        /// Columns for whose sake alone `changed` counts as met.
        supposed: Supposed,
    },
}

/// Something that is removed inside of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// The key, or a pattern of keys.
    pub key: Vec<u8>,
    /// The field of the hash, or a pattern of fields; `None` where the key is a set, and the keys
    /// that it names are removed.
    pub field: Option<Vec<u8>>,
    /// The template that gives it, where that is one, and says it in other words.
    pub template: Option<String>,
}

impl Inside {
    fn of(rules: &Rules, rule: RuleId, item: Item<'_>) -> Inside {
        let name = |only: Option<Cow<'_, [u8]>>, pattern: &[u8]| {
            only.map_or_else(|| pattern.to_vec(), Cow::into_owned)
        };
        let field = (item.kind() == ItemKind::Field).then(|| name(item.only_field(), item.field()));
        let template = match rules.templates_of_item(rule, item).as_slice() {
            [template] if template.contains('{') => Some((*template).to_owned()),
            _ => None,
        };
        Inside { key: name(item.only_key(), item.key()), field, template }
    }
}

/// Columns of `changed` of which it is not known whether they differ, where none is known to: the
/// rule then counts the UPDATE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supposed {
    /// Postgres does not send their old value.
    pub unsent: Vec<String>,
    /// Postgres sends it, and the question does not tell.
    pub untold: Vec<String>,
}

/// Sees whether a question can be answered at all, without a server.
///
/// # Errors
/// A row version is missing or is one too many; rules say that the table is a view, or that the
/// view is a table.
pub fn check(rules: &Rules, question: &Question) -> Result<(), Error> {
    let Question { table, operation, old, new, .. } = question;
    let is_refresh = *operation == Operation::Refresh;
    if is_refresh && rules.tables().any(|one| one == table) {
        return Err(Error::NotAView(table.clone()));
    }
    if !is_refresh && rules.views().any(|one| one == table) {
        return Err(Error::OnlyRefreshed { operation: *operation, view: table.clone() });
    }
    let (has_old, has_new) = match operation {
        Operation::Insert => (Some(false), true),
        Operation::Update => (None, true),
        Operation::Delete => (Some(true), false),
        Operation::Truncate | Operation::Refresh => (Some(false), false),
    };
    expect_row(*operation, "old", old.is_some(), has_old)?;
    expect_row(*operation, "new", new.is_some(), Some(has_new))
}

/// Tells what the rules make of a change. With the `table` as the server has it, values are of its
/// types and the old row holds what its replica identity sends; without, the question alone tells.
///
/// # Errors
/// Those of [`check`]; also a value that cannot be one of Postgres.
pub fn explain(
    rules: &Rules,
    question: &Question,
    table: Option<&Table>,
) -> Result<Explanation, Error> {
    check(rules, question)?;
    let (asked, notes) = match table {
        Some(table) => table.sent(question, &read_columns(rules, &question.table)),
        None => (question.clone(), supposed(question)),
    };
    let unread = unread(rules, question);
    // What is sent is as `--identity` says, if that is given.
    let sender = table.filter(|_| question.identity.is_empty());
    let question = &asked;
    let change = change(rules, question, table)?;
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
        let outcome = match skip {
            Some(Skip::OtherOperation) => Outcome::OtherOperation,
            Some(Skip::Unchanged) => Outcome::Unchanged,
            Some(Skip::ConditionFalse) => Outcome::ConditionFalse,
            None => {
                let columns = match question.operation {
                    Operation::Refresh => Vec::new(),
                    _ => rules.supposed_changed(rule, &change),
                };
                let supposed = Supposed::of(&columns, sender);
                keyed(rules, (rule, &name), (question, sender), (&keys, supposed))
            }
        };
        explained.push(Explained { rule: name, at: place.clone(), outcome });
    }
    Ok(Explanation {
        table: question.table.clone(),
        operation: question.operation,
        rules: explained,
        tables: rules.tables().cloned().collect(),
        views: rules.views().cloned().collect(),
        unread,
        notes,
    })
}

/// Says what is supposed where no server was asked.
fn supposed(question: &Question) -> Vec<String> {
    let rows = question.old.is_some() || question.new.is_some();
    let types = "the table was not asked: a value has the type that it has in JSON, and a text \
                 that reads like a time is a timestamp";
    let is_old = matches!(question.operation, Operation::Update | Operation::Delete);
    let old =
        "the table was not asked: Postgres is taken to send of the old row what `--old` holds";
    [(rows, types), (is_old, old)]
        .into_iter()
        .filter(|(is_so, _)| *is_so)
        .map(|(_, text)| text.to_owned())
        .collect()
}

/// The columns that the rules of a table read.
fn read_columns<'a>(rules: &'a Rules, table: &TableName) -> BTreeSet<&'a str> {
    rules.column_uses().filter(|used| used.table == table).map(|used| used.column).collect()
}

/// Columns of the rows that no rule of the table reads.
fn unread(rules: &Rules, question: &Question) -> Vec<(String, Option<String>)> {
    let read = read_columns(rules, &question.table);
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

/// Gives the outcome of a change that a rule looks at.
fn keyed(
    rules: &Rules,
    (rule, name): (RuleId, &str),
    (question, sender): (&Question, Option<&Table>),
    (keys, supposed): (&KeySet, Supposed),
) -> Outcome {
    let from = |pattern: &Pattern| match rules.templates_of(rule, pattern).as_slice() {
        [template] if template.as_bytes() != pattern.as_bytes() => Some((*template).to_owned()),
        _ => None,
    };
    let exact = |key: &[u8]| (key.to_vec(), from(&Pattern::literal(key)));
    let mut untold = Vec::new();
    let mut columns = |reason| {
        let unknown = unknown(rules, name, question, reason);
        if reason != WidenReason::ReplicaIdentity {
            return Some((reason, unknown));
        }
        // What would be sent is unknown only here.
        let is_sent = |column: &String| sender.is_some_and(|table| table.sends(column));
        let (sent, unsent): (Vec<_>, Vec<_>) = unknown.into_iter().partition(is_sent);
        let is_why = !unsent.is_empty() || sent.is_empty();
        untold.extend(sent);
        is_why.then_some((reason, unsent))
    };
    let widened = keys.widened().filter_map(|(_, reason, _)| columns(reason)).collect();
    Outcome::Keys {
        exact: keys.exact().map(|(_, key)| exact(key)).collect(),
        patterns: keys.patterns().map(|(_, one)| (one.clone(), from(one))).collect(),
        items: keys.items().map(|(_, item)| Inside::of(rules, rule, item)).collect(),
        widened,
        untold,
        lookups: keys.waiting().map(|(text, rows)| waiting(rules, text, &rows)).collect(),
        supposed,
    }
}

impl Supposed {
    /// Of these columns, where `sender` is the table as it is, if what it sends is known.
    fn of(columns: &[&str], sender: Option<&Table>) -> Supposed {
        let is_sent = |column: &String| sender.is_some_and(|table| table.sends(column));
        let columns = columns.iter().map(|column| (*column).to_owned());
        let (untold, unsent) = columns.partition(is_sent);
        Supposed { unsent, untold }
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
fn change(rules: &Rules, question: &Question, known: Option<&Table>) -> Result<Change, Error> {
    let Question { table, operation, old, new, identity } = question;
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
                type_id: known.and_then(|table| table.type_id(name)).unwrap_or_else(|| {
                    type_of([old, new].into_iter().flatten().find_map(|row| row.get(*name)))
                }),
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
