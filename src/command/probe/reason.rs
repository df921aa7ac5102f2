//! Why a probe proves nothing, and what to do.

use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use super::{OfTarget, State};
use crate::command::listener::page;
use crate::command::{NAME, status};
use crate::config::{Config, SlotOn};
use crate::postgres::statement::identifier;
use crate::postgres::{self, Endpoint, Sql, connect_sql};
use crate::preflight;

/// How long the server has to say what is in the way.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The cause to look for where walsweep says that all is well.
const OTHERWISE: &str = "it may be late, or hang, as where a standby does not replay or Redis does \
                         not answer: see `walsweep status` and its log; or it is older than this \
                         program, and does not know the probe's message: restart it; or it runs \
                         with another configuration: name that with `--config`";

/// The cure where nobody removes anything.
const START: &str = "start `walsweep run`, or name the configuration that it runs with";

/// Why a probe proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Reason {
    pub(super) reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<String>,
}

impl Reason {
    fn new(reason: impl Into<String>, hint: impl Into<String>) -> Reason {
        Reason { reason: reason.into(), hint: Some(hint.into()) }
    }

    /// Somebody wanted it to end.
    pub(super) fn interrupted() -> Reason {
        Reason { reason: "interrupted; its own keys are taken back".to_owned(), hint: None }
    }

    /// Not one Redis took a canary.
    pub(super) fn nothing_to_watch() -> Reason {
        let hint = "see that Redis runs, and what `walsweep check` says of it";
        Reason::new("no redis took the probe's key, so that nothing was committed", hint)
    }

    /// There is no session with Postgres.
    pub(super) fn of_login(error: &postgres::Error) -> Reason {
        let hint = preflight::login_hint(error).map(Into::into);
        Reason { reason: error.to_string(), hint }
    }

    /// The session is with a standby.
    pub(super) fn standby(address: &str) -> Reason {
        let message =
            format!("`{address}` is a standby, where the probe's message cannot be committed");
        Reason::new(message, "let `postgres.url` name the primary")
    }

    /// The message was refused.
    pub(super) fn of_message(error: &postgres::Error, user: &str) -> Reason {
        let function = "pg_catalog.pg_logical_emit_message(boolean, text, text)";
        let hint = match error.sql_state() {
            Some("42501") => {
                let role = identifier(user);
                format!("let a superuser run `grant execute on function {function} to {role}`")
            }
            Some("25006") => "the server takes no writes: let `postgres.url` name the primary, or \
                              turn its read-only mode off"
                .to_owned(),
            _ => "see the log of Postgres".to_owned(),
        };
        Reason::new(format!("commit the probe's message: {error}"), hint)
    }

    /// COMMIT has not returned in time: says what that process of the server waits for.
    pub(super) async fn stuck(endpoint: &Endpoint, pid: i32) -> Reason {
        let asked = async {
            let sql = connect_sql(endpoint, NAME).await?;
            let row = sql.query_opt(include_str!("../../../sql/probe_waits.sql"), &[&pid]).await?;
            let read = |row: tokio_postgres::Row| {
                Ok::<(String, String), postgres::Error>((row.try_get(0)?, row.try_get(1)?))
            };
            let found = row.map(read).transpose()?;
            sql.close().await;
            Ok::<_, postgres::Error>(found)
        };
        let what = "the COMMIT of the probe has not returned in time";
        match timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Ok(Some((wait, standbys)))) if wait == "SyncRep" => Reason::new(
                format!(
                    "{what}: it waits for a synchronous standby, as every commit does now \
                     (`synchronous_standby_names` is `{standbys}`)"
                ),
                "bring that standby back, or take it out of `synchronous_standby_names`; until \
                 then no reader sees those commits, and their keys stay",
            ),
            Ok(Ok(Some((wait, _)))) if !wait.is_empty() => {
                Reason::new(format!("{what}: it waits for `{wait}`"), "see the log of Postgres")
            }
            Ok(Err(error)) => Reason::new(format!("{what}: {error}"), "see that Postgres answers"),
            Ok(Ok(_)) | Err(_) => Reason::new(what, "see the log of Postgres, and its disk"),
        }
    }
}

/// Why not every target lost its canary; `None` if every one did.
pub(super) async fn of(targets: &[OfTarget], config: &Config, sql: &Sql) -> Option<Reason> {
    if targets.iter().any(|one| matches!(one.state, State::Stays)) {
        return Some(of_walsweep(config, sql).await);
    }
    let unknown = targets.iter().find_map(|one| match &one.state {
        State::Unknown { hint, .. } => Some((&one.target, *hint)),
        State::Gone { .. } | State::Stays => None,
    });
    let (target, hint) = unknown?;
    let reason = format!("nothing is proven of redis `{target}`");
    Some(Reason { reason, hint: hint.map(str::to_owned) })
}

/// Why the running walsweep has not removed a canary, in its own words if it answers.
async fn of_walsweep(config: &Config, sql: &Sql) -> Reason {
    if let Some(address) = config.http.listen {
        let answer = page(address, "/readyz").await;
        match status::body(answer.text()) {
            Some((true, _)) => {
                let message = format!(
                    "walsweep answers at `{address}` that it is ready, and has not removed the \
                     probe's key"
                );
                return Reason::new(message, OTHERWISE);
            }
            Some((false, text)) => {
                let message = format!("walsweep answers at `{address}`: {}", text.trim_end());
                return Reason { reason: message, hint: None };
            }
            None => {}
        }
    }
    let slot = &config.postgres.slot;
    match is_streamed(config, sql).await {
        Ok(None) => Reason::new(format!("no walsweep runs: there is no slot `{slot}`"), START),
        Ok(Some(false)) => {
            Reason::new(format!("no walsweep runs: nobody streams from slot `{slot}`"), START)
        }
        Ok(Some(true)) => {
            let message = format!("somebody streams from slot `{slot}`, and does not answer");
            Reason::new(message, format!("see the log of that walsweep: {OTHERWISE}"))
        }
        Err(error) => Reason::new(
            format!("no walsweep answers, and whether somebody streams is not known: {error}"),
            START,
        ),
    }
}

/// Whether somebody streams from the slot; `None` if there is none.
async fn is_streamed(config: &Config, sql: &Sql) -> Result<Option<bool>, postgres::Error> {
    let query = include_str!("../../../sql/slot_in_use.sql");
    let slot = &config.postgres.slot;
    let row = match config.postgres.slot_on {
        SlotOn::Primary => sql.query_opt(query, &[slot]).await?,
        SlotOn::Standby => {
            let asked = async {
                let standby = connect_sql(&config.postgres.replication_endpoint, NAME).await?;
                Ok::<_, postgres::Error>(standby.query_opt(query, &[slot]).await?)
            };
            let Ok(row) = timeout(ANSWER_TIMEOUT, asked).await else { return Ok(Some(true)) };
            row?
        }
    };
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}
