//! The table of a question as its server has it: which columns, of which types, and what of an old
//! row Postgres sends, see
//! <https://www.postgresql.org/docs/current/logical-replication-publication.html>.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error as SqlError};

use super::{Error, Object, Operation, Question};
use crate::config::TableName;
use crate::postgres::statement::render;
use crate::preflight::nearest;

/// Types whose values are whole numbers: `int8`, `int2`, `int4`, `oid`.
const WHOLE: [u32; 4] = [20, 21, 23, 26];

/// `json` and `jsonb`.
const JSON: [u32; 2] = [114, 3802];

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its columns, in their order.
    pub columns: Vec<TableColumn>,
    /// The part of the old row that an UPDATE and a DELETE send.
    pub identity: Identity,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableColumn {
    /// Its name.
    pub name: String,
    /// The `pg_type.oid` of its type; of a domain that of the type that it is made of.
    pub type_id: u32,
    /// That type as SQL writes it, with its modifier, if it is a built-in one or an enum.
    pub type_name: Option<String>,
}

/// The replica identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The whole old row is sent.
    Full,
    /// These columns are sent, by an UPDATE only if one of them changed. None of them: nothing is.
    Columns(Vec<String>),
}

/// Asks for the table of a question. Gives it, and the question with each value as the column's
/// type writes it, which is how it stands in the stream and in keys.
///
/// # Errors
/// The query's. Inside: there is no such table, it has no such column, it is a view or is none, or
/// a value is none of its column's type.
pub async fn ask(
    question: &Question,
    sql: &Client,
) -> Result<Result<(Table, Question), Error>, SqlError> {
    let TableName { schema, name } = &question.table;
    let query = include_str!("../../../sql/explain_columns.sql");
    let rows = sql.query(query, &[schema, name]).await?;
    let Some(first) = rows.first() else {
        return Ok(Err(no_table(&question.table, sql).await?));
    };
    let (is_view, is_full): (bool, bool) = (first.try_get(4)?, first.try_get(5)?);
    let (mut columns, mut keys) = (Vec::new(), Vec::new());
    for row in &rows {
        let name: String = row.try_get(0)?;
        if row.try_get(3)? {
            keys.push(name.clone());
        }
        columns.push(TableColumn { name, type_id: row.try_get(1)?, type_name: row.try_get(2)? });
    }
    let identity = if is_full { Identity::Full } else { Identity::Columns(keys) };
    let table = Table { columns, identity };
    if let Err(error) = table.fits(question, is_view) {
        return Ok(Err(error));
    }
    let mut typed = question.clone();
    for (option, row) in [("old", &mut typed.old), ("new", &mut typed.new)] {
        for (column, value) in row.iter_mut().flatten() {
            match table.typed(column, value, sql).await? {
                Ok(as_sent) => *value = as_sent,
                Err((kind, said)) => {
                    let column = column.clone();
                    return Ok(Err(Error::NotOfType { option, column, kind, said }));
                }
            }
        }
    }
    Ok(Ok((table, typed)))
}

async fn no_table(table: &TableName, sql: &Client) -> Result<Error, SqlError> {
    let rows = sql.query(include_str!("../../../sql/explain_tables.sql"), &[]).await?;
    let known = rows.iter().map(|row| {
        let (schema, name) = (row.try_get(0)?, row.try_get(1)?);
        Ok::<_, SqlError>(TableName { schema, name })
    });
    let known = known.collect::<Result<Vec<_>, SqlError>>()?;
    Ok(Error::NoTable { table: table.clone(), like: like(table, &known) })
}

/// The table or view that was perhaps meant: one of this name in another schema, or one whose name
/// is like it.
pub(super) fn like(wanted: &TableName, known: &[TableName]) -> Option<String> {
    let others: Vec<&TableName> = known.iter().filter(|one| *one != wanted).collect();
    if let Some(namesake) = others.iter().find(|one| one.name == wanted.name) {
        return Some(namesake.to_string());
    }
    let beside = others.iter().filter(|one| one.schema == wanted.schema);
    let name = nearest(&wanted.name, beside.map(|one| one.name.as_str()))?;
    Some(TableName { name: name.to_owned(), ..wanted.clone() }.to_string())
}

impl Table {
    pub(super) fn type_id(&self, column: &str) -> Option<u32> {
        self.column(column).map(|column| column.type_id)
    }

    fn column(&self, name: &str) -> Option<&TableColumn> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Whether a row that is changed or deleted is sent with the old value of this column.
    pub(super) fn sends(&self, column: &str) -> bool {
        match &self.identity {
            Identity::Full => true,
            Identity::Columns(keys) => keys.iter().any(|key| key == column),
        }
    }

    pub(super) fn fits(&self, question: &Question, is_view: bool) -> Result<(), Error> {
        let Question { table, operation, .. } = question;
        match (is_view, *operation == Operation::Refresh) {
            (false, true) => return Err(Error::NotAView(table.clone())),
            (true, false) => {
                return Err(Error::OnlyRefreshed { operation: *operation, view: table.clone() });
            }
            _ => {}
        }
        let of = |option: &'static str, row: &Option<Object>| {
            let names = row.iter().flat_map(Object::keys).cloned();
            names.map(|name| (option, name)).collect::<Vec<_>>()
        };
        let identity = question.identity.iter().map(|name| ("identity", name.clone()));
        let named = of("old", &question.old).into_iter().chain(of("new", &question.new));
        match named.chain(identity).find(|(_, name)| self.column(name).is_none()) {
            Some((option, column)) => {
                let columns = self.columns.iter().map(|one| one.name.clone()).collect();
                Err(Error::NoColumn { option, table: table.clone(), column, columns })
            }
            None => Ok(()),
        }
    }

    /// A value as the type of its column writes it. What is neither of a built-in type nor of an
    /// enum is left as it is: reading it may run somebody's function, with walsweep's rights.
    /// Inside the error: the type, and what the server said.
    async fn typed(
        &self,
        column: &str,
        value: &Value,
        sql: &Client,
    ) -> Result<Result<Value, (String, String)>, SqlError> {
        let column = self.column(column);
        let Some((column, kind)) = column.and_then(|one| Some((one, one.type_name.as_ref()?)))
        else {
            return Ok(Ok(value.clone()));
        };
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Bool(value) => value.to_string(),
            Value::Number(number) => written(number, column.type_id),
            Value::Null | Value::Array(_) | Value::Object(_) => return Ok(Ok(value.clone())),
        };
        let question = match JSON.contains(&column.type_id) {
            true => include_str!("../../../sql/explain_json.sql"),
            false => include_str!("../../../sql/explain_value.sql"),
        };
        let question = render(question, &[("type", kind.as_str())]);
        match sql.query_one(&question, &[&text]).await {
            Ok(row) => Ok(Ok(Value::String(row.try_get(0)?))),
            Err(error) => match error.as_db_error() {
                // An enum in a schema that the role may not use.
                Some(refused) if *refused.code() == SqlState::INSUFFICIENT_PRIVILEGE => {
                    Ok(Ok(value.clone()))
                }
                Some(refused) => Ok(Err((kind.clone(), refused.message().to_owned()))),
                None => Err(error),
            },
        }
    }

    /// The question with no more of the old row than Postgres sends, and what has to be said of
    /// that; `read` are the columns that rules read. A row that `--identity` describes is left as
    /// it is.
    pub(super) fn sent(
        &self,
        question: &Question,
        read: &BTreeSet<&str>,
    ) -> (Question, Vec<String>) {
        let mut asked = question.clone();
        let has_old = matches!(question.operation, Operation::Update | Operation::Delete);
        let keys = match &self.identity {
            _ if !has_old => return (asked, Vec::new()),
            _ if !question.identity.is_empty() => {
                return (asked, Vec::from_iter(self.supposed(&question.identity)));
            }
            Identity::Full => return (asked, Vec::from_iter(untold(question, read))),
            Identity::Columns(keys) => keys,
        };
        let mut notes = Vec::new();
        if keys.is_empty() {
            let text = "the table has no replica identity: while it is published, Postgres \
                        refuses this statement";
            notes.push(text.to_owned());
        }
        if let Some(old) = asked.old.take() {
            let is_sent = |column: &String| keys.contains(column);
            let unsent: Vec<String> = old.keys().filter(|one| !is_sent(one)).cloned().collect();
            if !unsent.is_empty() {
                notes.push(format!(
                    "of `--old` Postgres sends no {}: the replica identity is {}",
                    list(&unsent),
                    self.identity_in_words()
                ));
            }
            let mut is_told = true;
            if let Some(new) = &mut asked.new {
                let differs = |key: &String| {
                    old.get(key).zip(new.get(key)).is_some_and(|(old, new)| old != new)
                };
                is_told = keys.iter().any(differs);
                // Postgres sends the whole new row.
                for (column, value) in &old {
                    new.entry(column.clone()).or_insert_with(|| value.clone());
                }
            }
            let of_identity = old.into_iter().filter(|(column, _)| is_sent(column));
            asked.old = is_told.then(|| of_identity.collect());
        }
        asked.identity.clone_from(keys);
        (asked, notes)
    }

    /// That the question supposes another replica identity.
    fn supposed(&self, identity: &[String]) -> Option<String> {
        let is_so = self.identity == Identity::Columns(identity.to_vec());
        let (supposed, real) = (list(identity), self.identity_in_words());
        (!is_so)
            .then(|| format!("the replica identity is {real}; `--identity` supposes {supposed}"))
    }

    fn identity_in_words(&self) -> String {
        match &self.identity {
            Identity::Full => "`full`".to_owned(),
            Identity::Columns(keys) if keys.is_empty() => "nothing".to_owned(),
            Identity::Columns(keys) => list(keys),
        }
    }
}

/// Says which columns of an old row, which is sent whole, rules read and are not told here.
fn untold(question: &Question, read: &BTreeSet<&str>) -> Option<String> {
    let is_told = |column: &str| question.old.as_ref().is_some_and(|old| old.contains_key(column));
    let untold: Vec<String> =
        read.iter().filter(|column| !is_told(column)).map(|one| (*one).to_owned()).collect();
    (!untold.is_empty()).then(|| {
        format!(
            "Postgres sends the whole old row; `--old` does not tell {}, which counts as unknown \
             here",
            list(&untold)
        )
    })
}

/// A number as Postgres reads it: JSON writes whole ones as `1.0`, too.
fn written(number: &serde_json::Number, type_id: u32) -> String {
    let text = number.to_string();
    match text.strip_suffix(".0") {
        Some(whole) if WHOLE.contains(&type_id) => whole.to_owned(),
        _ => text,
    }
}

fn list(names: &[String]) -> String {
    format!("`{}`", names.join("`, `"))
}
