//! Where the rows of lookups come from: one session of the primary that cannot write.
//!
//! All that is wanted goes out without waiting for the answers between, up to a depth. Whatever
//! goes wrong with a query makes its keys wide; a lost session is made again, for as long as there
//! is time. Which server answers is checked when a session begins, as for the gate: a standby would
//! show older rows.

use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::escape::escape_identifier;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Statement;
use tokio_postgres::types::{Format, FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::keys::{Answers, Found, Lookup, Wanted};
use crate::postgres::{self, Endpoint, Sql, connect_sql};
use crate::preflight::render;

/// `application_name` on the server.
const NAME: &str = "walsweep lookup";

/// What is not answered in this time widens its keys. Rows are read by key in less than a
/// millisecond; who waits longer is late for every reader, and a wide removal is right, too.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The largest value of a row in bytes that a key is made of, as with the rows of changes. Of a
/// larger one `sql/lookup_column.sql` sends at least one byte more than this, and not the rest.
const VALUE_SIZE_MAX: usize = 64 << 10;

/// Questions on their way at once: as many as keep the server busy over a round trip.
const DEPTH: usize = 64;

/// Pause before a lost session is made again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Least time between two warnings.
const WARNING_PAUSE: Duration = Duration::from_secs(1);

type AnyError = Box<dyn std::error::Error + Sync + Send>;

/// The statement that reads what keys name of a lookup's row, as text.
#[must_use]
pub(crate) fn statement(lookup: &Lookup) -> String {
    let column = |column: &str| {
        let values = [("column", &*escape_identifier(column))];
        render(include_str!("../../sql/lookup_column.sql"), &values)
    };
    let columns: Vec<String> = lookup.columns.iter().map(|one| column(&one.value)).collect();
    let query = lookup.sql.value.trim().trim_end_matches(';');
    let values = [("columns", &*columns.join(", ")), ("query", query)];
    render(include_str!("../../sql/lookup.sql"), &values)
}

/// Reads rows on the primary with this identity.
pub struct Rows {
    endpoint: Endpoint,
    system_id: String,
    timeline: u32,
    lookups: Vec<(String, String)>,
    /// How the names of kept answers were understood.
    search_path: Option<String>,
    session: Option<Session>,
    /// Sessions lost so far.
    losses: u64,
    warned: Option<Instant>,
}

struct Session {
    sql: Rc<Sql>,
    /// By lookup, once prepared.
    statements: Vec<Option<Statement>>,
}

/// Why a session cannot be used.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("{0}")]
    Postgres(#[from] postgres::Error),
    #[error("the server is not the primary that the slot is on")]
    OtherServer,
}

impl From<tokio_postgres::Error> for Lost {
    fn from(error: tokio_postgres::Error) -> Lost {
        Lost::Postgres(error.into())
    }
}

impl Rows {
    /// Rows of `lookups` from `endpoint`; nothing is connected yet.
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        (system_id, timeline): (String, u32),
        lookups: &[Lookup],
    ) -> Rows {
        let search_path =
            lookups.iter().find_map(|one| Some(one.reads.as_ref()?.search_path.clone()));
        let lookups = lookups.iter().map(|one| (one.name.clone(), statement(one))).collect();
        let (session, losses, warned) = (None, 0, None);
        Rows { endpoint, system_id, timeline, lookups, search_path, session, losses, warned }
    }

    /// How many sessions were lost so far.
    pub(super) fn losses(&self) -> u64 {
        self.losses
    }

    /// Finds what it can in [`ANSWER_TIMEOUT`].
    pub(super) async fn find(&mut self, wanted: Vec<Wanted>) -> Answers {
        let mut answers = Answers::default();
        if timeout(ANSWER_TIMEOUT, self.find_all(&wanted, &mut answers)).await.is_err() {
            // What is still on its way would only delay what comes next.
            (self.session, self.losses) = (None, self.losses + 1);
            self.warn(&format!("no answer in {} s", ANSWER_TIMEOUT.as_secs()), "-");
        }
        answers
    }

    async fn find_all(&mut self, wanted: &[Wanted], answers: &mut Answers) {
        while let Err(error) = self.ask(wanted, answers).await {
            (self.session, self.losses) = (None, self.losses + 1);
            self.warn(&error.to_string(), "-");
            sleep(RECONNECT_PAUSE).await;
        }
    }

    async fn ask(&mut self, wanted: &[Wanted], answers: &mut Answers) -> Result<(), Lost> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.connect().await?,
        };
        let mut flying = JoinSet::new();
        for one in wanted {
            if answers.knows(one) {
                continue;
            }
            if let Some(statement) = self.prepared(&mut session, one, answers).await? {
                let (sql, one) = (Rc::clone(&session.sql), one.clone());
                flying.spawn_local(async move {
                    let found = query(&sql, &statement, &one).await;
                    (one, found)
                });
            }
            if flying.len() >= DEPTH {
                self.land(&mut flying, &mut session, answers).await?;
            }
        }
        while !flying.is_empty() {
            self.land(&mut flying, &mut session, answers).await?;
        }
        self.session = Some(session);
        Ok(())
    }

    /// Takes in one answer.
    async fn land(
        &mut self,
        flying: &mut JoinSet<(Wanted, Result<Found, tokio_postgres::Error>)>,
        session: &mut Session,
        answers: &mut Answers,
    ) -> Result<(), Lost> {
        let Some(Ok((wanted, found))) = flying.join_next().await else { return Ok(()) };
        match found {
            Ok(found) => answers.insert(wanted, found),
            Err(error) => {
                let at = usize::from(wanted.lookup.0);
                self.refused(error, at, session)?;
                answers.insert(wanted, Found::Failed);
            }
        }
        Ok(())
    }

    /// The statement of a lookup; `None` if the server does not take it, which is an answer, too.
    async fn prepared(
        &mut self,
        session: &mut Session,
        wanted: &Wanted,
        answers: &mut Answers,
    ) -> Result<Option<Statement>, Lost> {
        let at = usize::from(wanted.lookup.0);
        if let Some(statement) = &session.statements[at] {
            return Ok(Some(statement.clone()));
        }
        match session.sql.prepare(&self.lookups[at].1).await {
            Ok(statement) if statement.params().len() == wanted.params().len() => {
                session.statements[at] = Some(statement.clone());
                return Ok(Some(statement));
            }
            Ok(_) => {}
            Err(error) => self.refused(error, at, session)?,
        }
        answers.insert(wanted.clone(), Found::Failed);
        Ok(None)
    }

    /// What the server refused widens; everything else is a lost session. A statement that was
    /// refused is prepared anew: its tables may have changed.
    fn refused(
        &mut self,
        error: tokio_postgres::Error,
        at: usize,
        session: &mut Session,
    ) -> Result<(), Lost> {
        match postgres::Error::from(error) {
            postgres::Error::Query(server) if !is_passing(&server.code) => {
                session.statements[at] = None;
                // The message may quote a value (I9); its code does not.
                let name = self.lookups[at].0.clone();
                self.warn(&format!("SQLSTATE {}", server.code), &name);
                Ok(())
            }
            error => Err(error.into()),
        }
    }

    async fn connect(&self) -> Result<Session, Lost> {
        let sql = connect_sql(&self.endpoint, NAME).await?;
        let row = sql.query_one(include_str!("../../sql/identity.sql"), &[]).await?;
        let (system_id, timeline): (&str, Option<&str>) = (row.try_get(1)?, row.try_get(2)?);
        let timeline = timeline.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        if (system_id, timeline) != (&self.system_id, Some(self.timeline)) {
            return Err(Lost::OtherServer);
        }
        sql.batch_execute(include_str!("../../sql/read_only.sql")).await?;
        if let Some(path) = &self.search_path {
            sql.query(include_str!("../../sql/search_path.sql"), &[path]).await?;
        }
        let check = sql.batch_execute(include_str!("../../sql/connection_check.sql")).await;
        if let Err(error) = check {
            tracing::debug!(error = %postgres::Error::from(error), "no check of connections");
        }
        Ok(Session { sql: Rc::new(sql), statements: vec![None; self.lookups.len()] })
    }

    fn warn(&mut self, error: &str, lookup: &str) {
        if self.warned.is_none_or(|last| last.elapsed() >= WARNING_PAUSE) {
            self.warned = Some(Instant::now());
            tracing::warn!(error, lookup, "a lookup failed; keys are widened if it stays so");
        }
    }
}

/// Whether another session may well get an answer: the server ends this one or is short of
/// something, or two transactions were in each other's way
/// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
fn is_passing(code: &str) -> bool {
    ["08", "40", "53", "57P"].iter().any(|class| code.starts_with(class))
}

async fn query(
    sql: &Sql,
    statement: &Statement,
    wanted: &Wanted,
) -> Result<Found, tokio_postgres::Error> {
    let params: Vec<Param<'_>> = wanted.params().into_iter().map(Param).collect();
    let params: Vec<&(dyn ToSql + Sync)> =
        params.iter().map(|param| param as &(dyn ToSql + Sync)).collect();
    let rows = sql.query(statement, &params).await?;
    let row = match rows.as_slice() {
        [] => return Ok(Found::None),
        [row] => row,
        _ => return Ok(Found::Many),
    };
    let text = |at| Ok(row.try_get::<_, Option<Text>>(at)?.map(|text| text.0));
    let values: Vec<Option<Vec<u8>>> = (0..row.len()).map(text).collect::<Result<_, _>>()?;
    let is_large = values.iter().flatten().any(|value| value.len() > VALUE_SIZE_MAX);
    Ok(if is_large { Found::Failed } else { Found::Row(values) })
}

/// A value as the stream sent it: the server reads it by the parameter's type. Has no `Debug` form
/// of its content (I9).
pub(crate) struct Param<'a>(Option<&'a [u8]>);

impl Param<'_> {
    /// NULL, of any type.
    pub(crate) const NULL: Param<'static> = Param(None);
}

impl std::fmt::Debug for Param<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Param").finish_non_exhaustive()
    }
}

impl ToSql for Param<'_> {
    fn to_sql(&self, _type: &Type, out: &mut BytesMut) -> Result<IsNull, AnyError> {
        let Some(text) = self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(text);
        Ok(IsNull::No)
    }

    fn accepts(_type: &Type) -> bool {
        true
    }

    fn encode_format(&self, _type: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// A text in whichever encoding.
struct Text(Vec<u8>);

impl<'a> FromSql<'a> for Text {
    fn from_sql(_type: &Type, raw: &'a [u8]) -> Result<Text, AnyError> {
        Ok(Text(raw.to_vec()))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TEXT
    }
}
