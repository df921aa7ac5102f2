//! Statements that wait briefly for their locks, say for whom, and end when somebody says stop.
//!
//! A client that ends leaves its statement on the server: it stays queued for its lock, with all
//! readers of the table behind it, and is done later. So the wish to stop becomes a cancel request,
//! and of a client that died all the same the server hears within half a second.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{Error, NAME};
use crate::postgres::statement::render;
use crate::postgres::{self, Endpoint, connect_sql};
use crate::preflight::{LOCK_TIMEOUT, Step, hold, message};
use crate::run::shutdown::Shutdown;
use crate::source::slot_health::{named, running};

/// How often a statement is tried that does not get its lock.
pub(super) const ATTEMPTS: u32 = 20;

/// Between two attempts, so that whoever waited behind it goes first.
pub(super) const PAUSE: Duration = Duration::from_secs(2);

/// A slot whose creation takes longer is waited for with a word about why.
const SLOW: Duration = Duration::from_secs(3);

/// How long a statement that was canceled may take to end.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// A session that changes the database, and what can stop it.
#[derive(Debug)]
pub struct Hands<'a> {
    /// The session.
    pub client: &'a Client,
    /// Where it is connected to: a cancel request needs a connection of its own.
    pub endpoint: &'a Endpoint,
    /// The wish to stop.
    pub stop: Shutdown,
}

/// The outcome of one attempt.
enum Outcome {
    Done,
    /// A lock was not to be had, and what the server says of that.
    Locked(String),
}

/// Words for the outcome of a statement of which nothing is left on the server.
const CANCELED: &str = "was canceled";

/// Words for the outcome of a statement that was not sent, or is not sent again.
const NOT_RUN: &str = "was not run";

/// Words for the outcome of a statement that does not end.
const UNKNOWN: &str = "may still be done, for the server did not cancel it within 10 s";

fn stopped(became: &'static str, shown: &str) -> Error {
    Error::Stopped { became, sql: shown.to_owned() }
}

impl Hands<'_> {
    /// Whether the session is this role's.
    pub(super) fn is_of(&self, role: &str) -> bool {
        self.endpoint.user == role
    }

    /// Lets the server end a statement whose client is gone.
    pub(super) async fn prepare(&self) -> Result<(), Error> {
        // Not every system can tell, and those refuse it.
        let asked = self.client.batch_execute(include_str!("../../sql/connection_check.sql")).await;
        match asked {
            Err(error) if error.as_db_error().is_none() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Lets no other `setup` and no `teardown` begin to look before this session has ended.
    pub(super) async fn hold(&self) -> Result<(), Error> {
        self.patiently(&hold(), "pg_catalog.pg_advisory_lock(2002873459, 2003133808)", None).await
    }

    /// Runs a transaction. One that does not get its lock within 2 s is tried again, so that what
    /// the application sends never waits longer behind it.
    pub(super) async fn run(&self, step: &Step) -> Result<(), Error> {
        self.run_shown(step, &step.brief()).await
    }

    /// Like [`Hands::run`], for a step that messages show as `shown`: it may have a secret in it.
    pub(super) async fn run_shown(&self, step: &Step, shown: &str) -> Result<(), Error> {
        self.patiently(&step.sql, shown, Some(step)).await
    }

    /// Runs a transaction, which may be that of a step that locks tables.
    async fn patiently(&self, sql: &str, shown: &str, step: Option<&Step>) -> Result<(), Error> {
        self.limit(LOCK_TIMEOUT).await?;
        let mut attempts = 0;
        loop {
            let said = match self.once(sql, shown).await? {
                Outcome::Done => return Ok(()),
                Outcome::Locked(said) => said,
            };
            let holders = match step {
                Some(step) => self.holders(step, said).await?,
                None => said,
            };
            attempts += 1;
            if attempts == ATTEMPTS {
                let sql = shown.to_owned();
                return Err(Error::Locked { sql, attempts, holders });
            }
            tracing::warn!("waiting: {holders}; trying again to run `{shown}`");
            let mut stop = self.stop.clone();
            tokio::select! {
                biased;
                () = stop.requested() => return Err(stopped(NOT_RUN, shown)),
                () = sleep(PAUSE) => {}
            }
        }
    }

    /// Creates a slot, or drops one. For that no lock on a table is taken; a new slot waits until
    /// every transaction that runs has ended, however long that takes, and nobody waits behind it.
    pub(super) async fn with_slot(&self, step: &Step) -> Result<(), Error> {
        self.limit("0").await?;
        let shown = step.brief();
        let mut creating = pin!(self.once(&step.sql, &shown));
        if let Ok(created) = timeout(SLOW, &mut creating).await {
            return created.map(drop);
        }
        tracing::warn!(
            hint = "`pg_stat_activity` and `pg_prepared_xacts` list them",
            "creating the slot takes long: the server waits until {} has ended",
            self.lasting().await
        );
        creating.await.map(drop)
    }

    /// Creates a slot, or drops one, like [`Hands::with_slot`]. Where this role may not, walsweep's
    /// own does it, which logs in at `own`: an owner of tables need not be one who replicates.
    pub(super) async fn with_slot_or(&self, own: &Endpoint, step: &Step) -> Result<(), Error> {
        let denied = match self.with_slot(step).await {
            Err(error) if error.is_denied() && !self.is_of(&own.user) => error,
            done => return done,
        };
        let Ok(sql) = connect_sql(own, NAME).await else { return Err(denied) };
        let question = include_str!("../../sql/setup/same_server.sql");
        let (here, there) =
            (self.client.query_one(question, &[]).await?, sql.query_one(question, &[]).await?);
        let place = |row: &tokio_postgres::Row| -> Result<(String, u32), tokio_postgres::Error> {
            Ok((row.try_get(0)?, row.try_get(1)?))
        };
        if place(&here)? != place(&there)? {
            return Err(denied);
        }
        let own = Hands { client: &sql, endpoint: own, stop: self.stop.clone() };
        match own.with_slot(step).await {
            Err(error) if error.is_denied() => Err(denied),
            done => done,
        }
    }

    async fn limit(&self, lock_timeout: &str) -> Result<(), Error> {
        let sql = render(include_str!("../../sql/setup/waits.sql"), &[("timeout", lock_timeout)]);
        Ok(self.client.batch_execute(&sql).await?)
    }

    /// Runs statements, which are one transaction; a wish to stop cancels them on the server. One
    /// that was done before it could be canceled is done.
    async fn once(&self, sql: &str, shown: &str) -> Result<Outcome, Error> {
        if self.stop.is_requested() {
            return Err(stopped(NOT_RUN, shown));
        }
        let mut stop = self.stop.clone();
        let mut statement = pin!(self.client.batch_execute(sql));
        let done = tokio::select! {
            biased;
            done = &mut statement => Some(done),
            () = stop.requested() => None,
        };
        let done = match done {
            Some(done) => done,
            None => {
                let cancel = postgres::cancel(self.client.cancel_token(), self.endpoint).await;
                if let Err(error) = cancel {
                    tracing::warn!(%error, "the statement could not be canceled");
                }
                let Ok(done) = timeout(CANCEL_TIMEOUT, statement).await else {
                    return Err(stopped(UNKNOWN, shown));
                };
                done
            }
        };
        match done {
            Ok(()) => Ok(Outcome::Done),
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                Ok(Outcome::Locked(message(&error)))
            }
            Err(error)
                if self.stop.is_requested() && error.code() == Some(&SqlState::QUERY_CANCELED) =>
            {
                Err(stopped(CANCELED, shown))
            }
            Err(source) => Err(Error::Statement { sql: shown.to_owned(), source }),
        }
    }

    /// Who has the lock that a transaction did not get. Where it locks no table, the server said it
    /// (`sql/setup/unless_changed.sql`), or nobody knows.
    async fn holders(&self, step: &Step, said: String) -> Result<String, Error> {
        let tables = step.does.locks();
        if tables.is_empty() {
            return Ok(said);
        }
        let (schemas, names): (Vec<&str>, Vec<&str>) =
            tables.iter().map(|table| (&*table.schema, &*table.name)).unzip();
        let question = include_str!("../../sql/setup/lock_holders.sql");
        let arguments: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&schemas, &names, &step.does.is_exclusive()];
        let rows = self.client.query(question, &arguments).await?;
        let holder = |row: &tokio_postgres::Row| {
            let (pid, name): (Option<i32>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
            let (since, table): (Option<String>, String) = (row.try_get(2)?, row.try_get(3)?);
            let name = name.filter(|name| !name.is_empty());
            let name = name.map(|name| format!(" (`{name}`)")).unwrap_or_default();
            let since = since.map(|since| format!(" since {since}")).unwrap_or_default();
            Ok(match pid {
                Some(pid) => format!("Postgres process {pid}{name} has `{table}`{since}"),
                None => format!("a prepared transaction has `{table}`"),
            })
        };
        let holders = rows.iter().map(holder).collect::<Result<Vec<_>, tokio_postgres::Error>>()?;
        Ok(if holders.is_empty() { "somebody had the lock".to_owned() } else { holders.join(", ") })
    }

    /// Names the transactions that a new slot waits for, as far as another session can tell.
    async fn lasting(&self) -> String {
        let every = || "every transaction that runs".to_owned();
        let Ok(sql) = connect_sql(self.endpoint, NAME).await else { return every() };
        let running = running(&sql).await.unwrap_or_default();
        sql.close().await;
        if running.is_empty() { every() } else { named(&running) }
    }
}
