//! Checks of lookups: each query is prepared and, with NULL for every parameter, run once, in a
//! transaction that cannot write, and with the role's own view: what its names mean to the role.
//!
//! What that shows: syntax, tables, privileges, the number of parameters, the columns, and whether
//! the query itself writes or locks. A function that writes only for some rows shows when it is
//! called; the session of `run` cannot write either, and the keys are widened.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::{Context, Error, Finding, message, nearest};
use crate::keys::Lookup;
use crate::postgres::AS_ROLE;
use crate::settle::{Param, lookup_statement};

/// SQLSTATE of a write in a transaction that cannot, of a missing privilege, of a timeout
/// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
const READ_ONLY: &str = "25006";
const PRIVILEGE: &str = "42501";
const CANCELED: &str = "57014";

/// Lookups that would find nothing.
pub(super) async fn check(context: &Context<'_>, client: &Client) -> Result<Vec<Finding>, Error> {
    let mut findings = Vec::new();
    for lookup in context.rules.lookups() {
        client.batch_execute(include_str!("../../sql/lookup_trial.sql")).await?;
        client.batch_execute(AS_ROLE).await?;
        let finding = one(context, lookup, client).await;
        client.batch_execute("rollback").await?;
        findings.extend(finding?);
    }
    Ok(findings)
}

async fn one(
    context: &Context<'_>,
    lookup: &Lookup,
    client: &Client,
) -> Result<Option<Finding>, Error> {
    let name = &lookup.name;
    let query = lookup.sql.value.trim().trim_end_matches(';');
    let prepared = match client.prepare(query).await {
        Ok(prepared) => prepared,
        Err(error) => {
            let finding = refused(error, |cause| {
                let text = format!("lookup `{name}` does not prepare: {cause}");
                let hint = "write one query that reads a row by `$1`, `$2` and so on";
                Finding::error("lookup_sql", text).hint(hint)
            })?;
            return Ok(Some(finding.at(&lookup.sql.at)));
        }
    };
    if let Some(finding) = parameters(lookup, &prepared).or_else(|| columns(lookup, &prepared)) {
        return Ok(Some(finding));
    }
    let role = &context.config.postgres.endpoint.user;
    let tried = |cause: &tokio_postgres::error::DbError| {
        let (code, said) = (cause.code().code(), cause.message());
        match code {
            CANCELED => {
                let text = format!("lookup `{name}` was not answered in time: {said}");
                Finding::warning("lookup_slow", text).hint("keys that wait for it are widened")
            }
            PRIVILEGE => {
                let text = format!("lookup `{name}` is refused: {said}");
                let hint = format!("grant `select` on what it reads to `{role}`");
                Finding::error("lookup_privilege", text).hint(hint)
            }
            READ_ONLY => Finding::error("lookup_writes", format!("lookup `{name}` writes: {said}"))
                .hint("a lookup only reads, without `for update` and functions that write"),
            _ => Finding::error("lookup_sql", format!("lookup `{name}` fails: {said}"))
                .hint("it is run as a subquery, in a transaction that cannot write"),
        }
    };
    let outcome = match client.prepare(&lookup_statement(lookup)).await {
        Ok(statement) => run(client, &statement).await,
        Err(error) => Err(error),
    };
    let Err(error) = outcome else { return Ok(None) };
    let Some(cause) = error.as_db_error() else { return Err(error.into()) };
    Ok(Some(tried(cause).at(&lookup.sql.at)))
}

/// Runs a statement with NULL for every parameter.
async fn run(client: &Client, statement: &Statement) -> Result<(), tokio_postgres::Error> {
    let nulls: Vec<&(dyn ToSql + Sync)> =
        statement.params().iter().map(|_| &Param::NULL as &(dyn ToSql + Sync)).collect();
    client.query(statement, &nulls).await.map(drop)
}

/// What the server refused, as a finding; an error of the connection stays one.
fn refused(
    error: tokio_postgres::Error,
    finding: impl FnOnce(String) -> Finding,
) -> Result<Finding, Error> {
    if error.as_db_error().is_some() { Ok(finding(message(&error))) } else { Err(error.into()) }
}

fn parameters(lookup: &Lookup, prepared: &Statement) -> Option<Finding> {
    let (has, wants) = (lookup.params.len(), prepared.params().len());
    if has == wants {
        return None;
    }
    let name = &lookup.name;
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    let text = format!(
        "lookup `{name}` has {wants} parameter{} and `params` names {has} column{}",
        plural(wants),
        plural(has)
    );
    let hint = "`params` are the columns of the change for `$1`, `$2` and so on, in this order";
    Some(Finding::error("lookup_params", text).at(&lookup.sql.at).hint(hint))
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
        return Some(Finding::error("lookup_column", text).at(&wrong.at).hint(hint));
    }
    let finding = Finding::error("lookup_column", format!("lookup `{name}` gives no `{column}`"));
    let hint = match nearest(column, given.iter().copied()) {
        Some(like) => format!("did you mean `{name}.{like}`"),
        None if given.is_empty() => "it gives no columns: write a query that reads".to_owned(),
        None => {
            let names: Vec<String> = given.iter().map(|name| format!("`{name}`")).collect();
            format!("its columns are {}", names.join(", "))
        }
    };
    Some(finding.at(&wrong.at).hint(hint))
}
