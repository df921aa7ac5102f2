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

/// The hint for a person where an answer does not come in time.
const LATE_HINT: &str = "see who holds locks on the tables that it reads, and whether an index \
     serves it: `select pid, pg_blocking_pids(pid) from pg_stat_activity where application_name = \
     'walsweep lookup'`; `walsweep check` tells of its plan";

/// The hint for a person where the query does not take the value of a row.
const VALUE_HINT: &str = "a value of a row does not fit the query: see what it casts (`$1::int`), \
     divides or parses, and let it take every value that its columns can have; keys of other rows \
     go as ever";

/// The hint for a person where the server does not take the query.
const WRONG_HINT: &str = "see whether `walsweep check` finds fault with it";

/// The hint for a person where the session is lost.
const LOST_HINT: &str = "see that Postgres runs, and takes another session; walsweep makes one \
     again by itself";

/// The hint for a person where a right is missing, and it is not known which.
const GRANT: &str = "`walsweep check` says which grants it needs";

/// Why, and what a person can do. Quotes no value (I9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) cause: String,
    pub(super) hint: String,
}

impl Refusal {
    /// No answer in time.
    pub(super) fn late(cause: String) -> Refusal {
        Refusal { cause, hint: LATE_HINT.to_owned() }
    }

    /// No session.
    pub(super) fn lost(cause: String) -> Refusal {
        Refusal { cause, hint: LOST_HINT.to_owned() }
    }

    /// The query is wrong.
    pub(super) fn wrong(cause: impl Into<String>) -> Refusal {
        Refusal { cause: cause.into(), hint: WRONG_HINT.to_owned() }
    }

    /// For an error with this SQLSTATE; `params` says what stands in the query's parameters.
    fn of_code(code: &str, params: &str) -> Refusal {
        // The message may quote a value (I9); its code does not.
        let cause = format!("SQLSTATE {code}");
        match code {
            LOCK_TIMEOUT => Refusal::late(format!("{cause} (a lock is in the way)")),
            STATEMENT_TIMEOUT => Refusal::late(format!("{cause} (it takes too long)")),
            _ if cause.starts_with(OF_A_VALUE) => {
                let cause = if params.is_empty() { cause } else { format!("{cause} ({params})") };
                Refusal { cause, hint: VALUE_HINT.to_owned() }
            }
            _ => Refusal::wrong(cause),
        }
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
        match server.code.as_str() {
            DENIED => denied(&server.message, (asked, role), sql).await,
            code => Ok(Refusal::of_code(code, asked.params())),
        }
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

#[cfg(test)]
mod tests {
    use super::{LATE_HINT, LOST_HINT, Refusal, VALUE_HINT, WRONG_HINT};

    #[test]
    fn the_hint_goes_by_what_the_server_said() {
        for (code, hint, is_of_a_value) in [
            ("22P02", VALUE_HINT, true),
            ("22012", VALUE_HINT, true),
            ("57014", LATE_HINT, false),
            ("55P03", LATE_HINT, false),
            ("42P01", WRONG_HINT, false),
        ] {
            let refusal = Refusal::of_code(code, "`$1` is `slug`");
            assert_eq!((refusal.hint.as_str(), refusal.is_of_a_value()), (hint, is_of_a_value));
            assert!(refusal.cause.contains(code));
            assert_eq!(refusal.cause.contains("`slug`"), is_of_a_value, "{code}");
            assert_eq!(refusal.hint.contains("locks"), hint == LATE_HINT, "{code}");
        }
        assert_eq!(Refusal::lost("closed".to_owned()).hint, LOST_HINT);
    }
}
