//! Why the server refuses the query of a lookup, as a person is told.

use super::rows::Asked;
use crate::config::TableName;
use crate::postgres::statement::{grant_select, grant_usage};
use crate::postgres::{ServerError, Sql};

/// SQLSTATE of a statement that did not get its locks in `lock_timeout`, or took longer than
/// `statement_timeout`.
pub(super) const LOCK_TIMEOUT: &str = "55P03";
/// See [`LOCK_TIMEOUT`].
pub(super) const STATEMENT_TIMEOUT: &str = "57014";

/// SQLSTATE of a missing privilege.
const DENIED: &str = "42501";

/// The beginning of what is said of a statement that fails for a value: class 22, data exceptions.
const OF_A_VALUE: &str = "SQLSTATE 22";

/// The hint for a person where a lookup cannot be asked.
pub(super) const HINT: &str = "see whether `walsweep check` finds fault with it, and who holds \
     locks on the tables that it reads: `select pid, pg_blocking_pids(pid) from pg_stat_activity \
     where application_name = 'walsweep lookup'`";

/// The hint for a person where a right is missing, and it is not known which.
const GRANT: &str = "`walsweep check` says which grants it needs";

/// Why, and what a person can do. Quotes no value (I9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) cause: String,
    pub(super) hint: String,
}

impl Refusal {
    /// For this cause.
    pub(super) fn new(cause: impl Into<String>) -> Refusal {
        Refusal { cause: cause.into(), hint: HINT.to_owned() }
    }

    /// Whether it is of one row's value, so that other rows may well be answered.
    pub(super) fn is_of_a_value(&self) -> bool {
        self.cause.starts_with(OF_A_VALUE)
    }

    /// For what the server said of a lookup. Where a right is missing, the server is asked which.
    ///
    /// # Errors
    /// The connection is lost.
    pub(super) async fn of(
        server: &ServerError,
        (asked, role): (&Asked, &str),
        sql: &Sql,
    ) -> Result<Refusal, tokio_postgres::Error> {
        // The message may quote a value (I9); its code does not.
        let meaning = match server.code.as_str() {
            LOCK_TIMEOUT => " (a lock is in the way)",
            STATEMENT_TIMEOUT => " (it takes too long)",
            DENIED => return denied(&server.message, (asked, role), sql).await,
            _ => "",
        };
        Ok(Refusal::new(format!("SQLSTATE {}{meaning}", server.code)))
    }
}

async fn denied(
    message: &str,
    (asked, role): (&Asked, &str),
    sql: &Sql,
) -> Result<Refusal, tokio_postgres::Error> {
    let question = include_str!("../../../sql/lookup_denied.sql");
    let found = match sql.query_opt(question, &[&message, &asked.query]).await {
        Ok(found) => found,
        Err(error) if error.as_db_error().is_some() => None,
        Err(error) => return Err(error),
    };
    let Some(row) = found else {
        return Ok(Refusal { cause: "permission denied".to_owned(), hint: GRANT.to_owned() });
    };
    let (schema, name): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    let (what, cure) = match name {
        None => (format!("schema `{schema}`"), grant_usage(&schema, role)),
        Some(name) => {
            let cure = grant_select((&schema, &name), role);
            (format!("`{}`", TableName { schema, name }), cure)
        }
    };
    Ok(Refusal { cause: format!("permission denied for {what}"), hint: format!("`{cure}`") })
}
