//! Checks of lookups: each query is prepared and, with NULL for every parameter, run once, in a
//! transaction that cannot write, and with the role's own view: what its names mean to the role.
//!
//! What that shows: syntax, tables, privileges, the number of parameters, the columns, and whether
//! the query itself writes or locks. A function that writes only for some rows shows when it is
//! called; the session of `run` cannot write either, and the keys are widened.
//!
//! With another login than the role's, such as a superuser's for `setup --as`, a query is prepared
//! and never run or planned: its views and functions are those of others, and what they do would be
//! done with all that this login may.
//!
//! To parse a query, the server locks the tables that it names, as for every reader. What somebody
//! else has locked against readers is not waited for: of such a lookup nothing is known for now.

use tokio_postgres::error::{DbError, ErrorPosition};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

use super::{Code, Error, Finding, nearest};
use crate::config::Config;
use crate::keys::{Lookup, LookupId, Rules};
use crate::postgres::AS_ROLE;
use crate::postgres::statement::render;
use crate::settle::{Param, lookup_statement};
use crate::words::counted;

/// Words for what becomes of keys while a lookup does not answer.
const MEANWHILE: &str = "until it answers, `*` stands in keys for what it gives";

/// SQLSTATE of a write in a transaction that cannot, of a missing privilege, of a timeout, of a
/// lock that was not to be had in time
/// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
const READ_ONLY: &str = "25006";
const PRIVILEGE: &str = "42501";
const CANCELED: &str = "57014";
pub(super) const LOCKED: &str = "55P03";

/// The longest wait for a lock.
const PATIENCE: &str = "200ms";

/// The longest wait for a lock once somebody was in the way: a start must not wait for each of many
/// lookups.
const SHORT_PATIENCE: &str = "20ms";

/// The outcome of a lookup's trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// It was tried; what is wrong with it.
    Tried(Option<Finding>),
    /// It could not be: a finding that says who was in the way.
    Locked(Finding),
}

impl Trial {
    /// Gives the finding, if there is anything to say.
    pub(super) fn finding(self) -> Option<Finding> {
        match self {
            Trial::Tried(finding) => finding,
            Trial::Locked(finding) => Some(finding),
        }
    }
}

/// Gives the SQL that stands before the trial of one lookup or another, in a transaction that is
/// `access`.
pub(super) fn begin(access: &str, is_impatient: bool) -> String {
    let patience = if is_impatient { SHORT_PATIENCE } else { PATIENCE };
    let values = [("access", access), ("patience", patience)];
    render(include_str!("../../sql/lookup_trial.sql"), &values)
}

/// Tries every lookup.
///
/// # Errors
///
/// When the connection fails.
pub async fn trials(config: &Config, rules: &Rules, client: &Client) -> Result<Vec<Trial>, Error> {
    let may_run = is_own_login(config, client).await?;
    let mut trials: Vec<Trial> = Vec::new();
    for (id, lookup) in (0..=u16::MAX).map(LookupId).zip(rules.lookups()) {
        let is_impatient = trials.iter().any(|one| matches!(one, Trial::Locked(_)));
        client.batch_execute(&begin("read only", is_impatient)).await?;
        client.batch_execute(AS_ROLE).await?;
        let outcome = one(config, lookup, (client, may_run)).await;
        client.batch_execute("rollback").await?;
        let of_rules = |finding: Finding| finding.of_rules(rules.rules_of_lookup(id));
        trials.push(match outcome {
            Ok(finding) => Trial::Tried(finding.map(of_rules)),
            Err(Error::Query(error)) if is_locked(&error) => {
                Trial::Locked(of_rules(locked(lookup, &error, client).await?))
            }
            Err(error) => return Err(error),
        });
    }
    Ok(trials)
}

/// Whether the session is that of the role that `run` has, so that queries may be run.
pub(super) async fn is_own_login(config: &Config, client: &Client) -> Result<bool, Error> {
    let role = &config.postgres.endpoint.user;
    Ok(client.query_one(include_str!("../../sql/own_login.sql"), &[role]).await?.try_get(0)?)
}

/// Whether somebody else's lock was in the way.
pub(super) fn is_locked(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code() == LOCKED)
}

/// A lookup that could not be tried, and who was in the way, if the server said of which relation.
async fn locked(
    lookup: &Lookup,
    error: &tokio_postgres::Error,
    client: &Client,
) -> Result<Finding, Error> {
    let position = error.as_db_error().and_then(DbError::position);
    let holder = match position {
        Some(ErrorPosition::Original(at)) => holder(name_at(lookup.query(), *at), client).await?,
        // The relation is behind a view, a function or a partitioned table.
        Some(ErrorPosition::Internal { .. }) | None => None,
    };
    let name = &lookup.name;
    let who = match holder {
        None => "somebody had a lock on a table that it reads".to_owned(),
        Some(row) => {
            let (pid, program): (Option<i32>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
            let table: String = row.try_get(2)?;
            let program = program.filter(|name| !name.is_empty());
            let program = program.map(|name| format!(" (`{name}`)")).unwrap_or_default();
            pid.map_or_else(
                || format!("a prepared transaction has `{table}` locked"),
                |pid| {
                    format!(
                        "Postgres process {pid}{program} has `{table}` locked, or waits for that"
                    )
                },
            )
        }
    };
    let text = format!("lookup `{name}` could not be tried: {who}");
    let finding = Finding::warning(Code::LookupLocked, text).at(&lookup.sql.at);
    Ok(finding.hint(format!("walsweep tries it again; {MEANWHILE}")))
}

/// Who has, or waits for, an exclusive lock on the relation that a query names so.
async fn holder(name: &str, client: &Client) -> Result<Option<Row>, Error> {
    client.batch_execute(&begin("read only", true)).await?;
    client.batch_execute(AS_ROLE).await?;
    let found = client.query_one(include_str!("../../sql/lookup_relation.sql"), &[&name]).await;
    client.batch_execute("rollback").await?;
    let oid: Option<u32> = found.ok().and_then(|row| row.try_get(0).ok()).flatten();
    let Some(oid) = oid else { return Ok(None) };
    Ok(client.query_opt(include_str!("../../sql/lock_holders.sql"), &[&oid]).await?)
}

/// The name, perhaps with its schema, that begins at a character of a query, counted from 1.
fn name_at(query: &str, at: u32) -> &str {
    let start = usize::try_from(at).unwrap_or(usize::MAX).saturating_sub(1);
    let from = query.char_indices().nth(start).map_or(query.len(), |(at, _)| at);
    let rest = &query[from..];
    let mut is_quoted = false;
    let end = rest.find(|one: char| {
        is_quoted ^= one == '"';
        !(is_quoted || one.is_alphanumeric() || ['"', '_', '$', '.'].contains(&one))
    });
    &rest[..end.unwrap_or(rest.len())]
}

async fn one(
    config: &Config,
    lookup: &Lookup,
    (client, may_run): (&Client, bool),
) -> Result<Option<Finding>, Error> {
    let name = &lookup.name;
    let query = lookup.query();
    let prepared = match client.prepare(query).await {
        Ok(prepared) => prepared,
        Err(error) if is_locked(&error) => return Err(error.into()),
        Err(error) => {
            let Some(cause) = error.as_db_error() else { return Err(error.into()) };
            let finding = if cause.code().code() == PRIVILEGE {
                refused(config, name, cause)
            } else if is_wrong(cause) {
                let text = format!("lookup `{name}` does not prepare: {}", told(cause));
                Finding::error(Code::LookupSql, text).hint(mended(cause))
            } else {
                fails(name, cause)
            };
            return Ok(Some(finding.at(&lookup.sql.at)));
        }
    };
    if let Some(finding) = parameters(lookup, &prepared).or_else(|| columns(lookup, &prepared)) {
        return Ok(Some(finding));
    }
    let tried = |cause: &DbError| {
        let (code, said) = (cause.code().code(), told(cause));
        match code {
            CANCELED => {
                let text = format!("lookup `{name}` was not answered in time: {said}");
                Finding::warning(Code::LookupSlow, text)
                    .hint(format!("create an index that it can use; {MEANWHILE}"))
            }
            PRIVILEGE => refused(config, name, cause),
            READ_ONLY => {
                Finding::error(Code::LookupWrites, format!("lookup `{name}` writes: {said}"))
                    .hint("a lookup only reads, without `for update` and functions that write")
            }
            _ if is_wrong(cause) => {
                Finding::error(Code::LookupSql, format!("lookup `{name}` fails: {said}"))
                    .hint("let `select * from (QUERY) x` work in a transaction that only reads")
            }
            _ => fails(name, cause),
        }
    };
    let outcome = match client.prepare(&lookup_statement(lookup)).await {
        Ok(_) if !may_run => Ok(()),
        Ok(statement) => run(client, &statement).await,
        Err(error) => Err(error),
    };
    let Err(error) = outcome else { return Ok(None) };
    let cause = error.as_db_error().filter(|_| !is_locked(&error));
    let Some(cause) = cause else { return Err(error.into()) };
    Ok(Some(tried(cause).at(&lookup.sql.at)))
}

/// A right that the role lacks.
fn refused(config: &Config, name: &str, cause: &DbError) -> Finding {
    let text = format!("lookup `{name}` is refused: {}", told(cause));
    let role = &config.postgres.endpoint.user;
    let hint = format!("grant `usage` on the schema and `select` on what it reads to `{role}`");
    Finding::error(Code::LookupPrivilege, text).hint(hint)
}

/// Runs a statement with NULL for every parameter.
async fn run(client: &Client, statement: &Statement) -> Result<(), tokio_postgres::Error> {
    let nulls: Vec<&(dyn ToSql + Sync)> =
        statement.params().iter().map(|_| &Param::NULL as &(dyn ToSql + Sync)).collect();
    client.query(statement, &nulls).await.map(drop)
}

/// Whether the query can never be right as it is: class 42, syntax and names
/// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>). Whatever else goes wrong may
/// be over with the next row, or with the next try.
fn is_wrong(cause: &DbError) -> bool {
    cause.code().code().starts_with("42")
}

/// Says what a person can do about a query that is wrong. Of a column that was renamed Postgres
/// names the one that is most like it.
fn mended(cause: &DbError) -> String {
    // SQLSTATE of a column, and of a table, that is not there.
    const COLUMN: &str = "42703";
    const TABLE: &str = "42P01";
    match (cause.code().code(), cause.hint()) {
        (COLUMN | TABLE, Some(hint)) => hint.to_owned(),
        (COLUMN, None) => "name a column that the table has".to_owned(),
        (TABLE, None) => {
            "write the table with its schema, as in `public.orders`: it is not there, or the \
             `search_path` of the role does not lead to it"
                .to_owned()
        }
        _ => "write one SELECT that finds its row by `$1`, `$2` and so on".to_owned(),
    }
}

/// Says of an error what may be said (I9): of a query that is wrong the message names tables and
/// columns, of one that runs it may quote a row.
fn told(cause: &DbError) -> String {
    let code = cause.code().code();
    if is_wrong(cause) || [CANCELED, READ_ONLY].contains(&code) {
        return cause.message().to_owned();
    }
    format!("SQLSTATE {code}")
}

/// A lookup that fails now: its keys widen, as they do when a row cannot be read.
fn fails(name: &str, cause: &DbError) -> Finding {
    let text = format!("lookup `{name}` fails: {}", told(cause));
    let hint = format!("see why the query fails for these rows; {MEANWHILE}");
    Finding::warning(Code::LookupFails, text).hint(hint)
}

fn parameters(lookup: &Lookup, prepared: &Statement) -> Option<Finding> {
    let (has, wants) = (lookup.params.len(), prepared.params().len());
    if has == wants {
        return None;
    }
    let name = &lookup.name;
    let (wants, has) = (counted(wants, "parameter"), counted(has, "column"));
    let text = format!("lookup `{name}` has {wants} and `params` names {has}");
    let hint = "name one column of the rule's table in `params` for each of `$1`, `$2` and so on, \
                in this order";
    Some(Finding::error(Code::LookupParams, text).at(&lookup.sql.at).hint(hint))
}

/// The first column that a key names and the query does not give, or gives twice.
fn columns(lookup: &Lookup, prepared: &Statement) -> Option<Finding> {
    let name = &lookup.name;
    let given: Vec<&str> = prepared.columns().iter().map(tokio_postgres::Column::name).collect();
    let count = |column: &str| given.iter().filter(|one| **one == column).count();
    let wrong = lookup.columns.iter().find(|column| count(&column.value) != 1)?;
    let column = &wrong.value;
    if count(column) > 1 {
        let text = format!("lookup `{name}` gives more than one column `{column}`");
        let hint = "give each column a name of its own with `as`";
        return Some(Finding::error(Code::LookupColumn, text).at(&wrong.at).hint(hint));
    }
    let finding =
        Finding::error(Code::LookupColumn, format!("lookup `{name}` gives no `{column}`"));
    let hint = match nearest(column, given.iter().copied()) {
        Some(like) => format!("did you mean `{name}.{like}`?"),
        None if given.is_empty() => "it gives no columns: write a SELECT".to_owned(),
        None => {
            let names: Vec<String> = given.iter().map(|name| format!("`{name}`")).collect();
            format!("its columns are {}", names.join(", "))
        }
    };
    Some(finding.at(&wrong.at).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::name_at;

    #[test]
    fn the_name_at_a_position_is_read_as_the_query_has_it() {
        for (query, at, name) in [
            ("select a from plain where id = $1", 15, "plain"),
            ("select a from app.plain", 15, "app.plain"),
            ("select 'ü' from \"Plain one\".\"a\"\"b\" x", 17, "\"Plain one\".\"a\"\"b\""),
            ("select a from plain", 99, ""),
            ("select a from (select 1)", 15, ""),
        ] {
            assert_eq!(name_at(query, at), name, "{query}");
        }
    }
}
