//! Where the rows of lookups come from: a session of the primary that cannot write.
//!
//! All that is wanted goes out without waiting for the answers between, up to a depth. Whatever
//! goes wrong with a query makes its keys wide; a lost session is made again, for as long as there
//! is time. A lookup that cannot be asked is named, and asked now and then until it can. Which
//! server answers is checked when a session begins, as for the gate: a standby would show older
//! rows.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hashbrown::HashMap;
use postgres_protocol::escape::escape_identifier;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Statement;
use tokio_postgres::types::{Format, FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::keys::{Answers, Found, Lookup, LookupId, Wanted};
use crate::postgres::{self, Endpoint, Sql, connect_sql};
use crate::preflight::render;
use crate::telemetry::{Health, Topic};

/// `application_name` on the server.
const NAME: &str = "walsweep lookup";

/// What is not answered in this time widens its keys. Rows are read by key in less than a
/// millisecond; who waits longer is late for every reader, and a wide removal is right, too. No
/// statement holds the server longer either, nor waits for a lock: see `sql/read_only.sql`.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Questions on their way at once: as many as keep the server busy over a round trip.
const DEPTH: usize = 64;

/// Pause before a lost session is made again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Pause before a lookup that could not be asked is tried again, whether keys wait for it or not.
const AGAIN_PAUSE: Duration = Duration::from_secs(1);

/// SQLSTATE of a statement that did not get its locks in `lock_timeout`, or took longer than
/// `statement_timeout`.
const LOCK_TIMEOUT: &str = "55P03";
/// See [`LOCK_TIMEOUT`].
const STATEMENT_TIMEOUT: &str = "57014";

/// What a person can do where a lookup cannot be asked.
const HINT: &str = "see whether `walsweep check` finds fault with it, and who holds locks on the \
     tables that it reads: `select pid, pg_blocking_pids(pid) from pg_stat_activity where \
     application_name = 'walsweep lookup'`";

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
    /// Name and statement of each, by [`LookupId`].
    all: Arc<[(Arc<str>, String)]>,
    /// Which of them are asked here: from the first, each one so many further.
    own: (usize, usize),
    /// How the names of kept answers were understood.
    search_path: Option<String>,
    session: Option<Session>,
    /// Sessions lost so far.
    losses: u64,
    health: Arc<Health>,
    /// Lookups that could not be asked, each with what was wanted.
    failed: BTreeMap<usize, Wanted>,
    again_at: Instant,
    /// Why, since the last answers: of each lookup, and of whichever.
    refusals: HashMap<usize, String>,
    loss: Option<String>,
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
    /// Rows of `lookups` from `endpoint`; nothing is connected yet. Tells `health` of lookups that
    /// cannot be asked.
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        (system_id, timeline): (String, u32),
        lookups: &[Lookup],
        health: Arc<Health>,
    ) -> Rows {
        let search_path =
            lookups.iter().find_map(|one| Some(one.reads.as_ref()?.search_path.clone()));
        let all = lookups.iter().map(|one| (one.name.as_str().into(), statement(one)));
        Rows {
            endpoint,
            system_id,
            timeline,
            all: all.collect(),
            own: (0, 1),
            search_path,
            session: None,
            losses: 0,
            health,
            failed: BTreeMap::new(),
            again_at: Instant::now(),
            refusals: HashMap::new(),
            loss: None,
        }
    }

    /// The same on several sessions, at most `count` and at least one: lookups have them in turn.
    pub(super) fn on_sessions(&self, count: usize) -> Vec<Rows> {
        let count = self.all.len().clamp(1, count);
        let one = |at| Rows {
            endpoint: self.endpoint.clone(),
            system_id: self.system_id.clone(),
            timeline: self.timeline,
            all: Arc::clone(&self.all),
            own: (at, count),
            search_path: self.search_path.clone(),
            session: None,
            losses: 0,
            health: Arc::clone(&self.health),
            failed: BTreeMap::new(),
            again_at: Instant::now(),
            refusals: HashMap::new(),
            loss: None,
        };
        (0..count).map(one).collect()
    }

    /// Who is told of lookups that cannot be asked.
    pub(super) fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// The lookups that are asked here.
    pub(super) fn lookups(&self) -> impl Iterator<Item = LookupId> {
        let (first, step) = self.own;
        (first..self.all.len()).step_by(step).filter_map(|at| u16::try_from(at).ok()).map(LookupId)
    }

    /// How many sessions were lost so far.
    pub(super) fn losses(&self) -> u64 {
        self.losses
    }

    /// When it is due to try what could not be asked; never, if all could.
    pub(super) fn again_at(&self) -> Option<Instant> {
        (!self.failed.is_empty()).then_some(self.again_at)
    }

    /// Finds what it can in [`ANSWER_TIMEOUT`].
    pub(super) async fn find(&mut self, mut wanted: Vec<Wanted>) -> Answers {
        if self.again_at().is_some_and(|again| again <= Instant::now()) {
            wanted.extend(self.failed.values().cloned());
        }
        let mut answers = Answers::default();
        (self.refusals, self.loss) = (HashMap::new(), None);
        if timeout(ANSWER_TIMEOUT, self.find_all(&wanted, &mut answers)).await.is_err() {
            // What is still on its way would only delay what comes next.
            (self.session, self.losses) = (None, self.losses + 1);
        }
        self.judge(&wanted, &answers);
        answers
    }

    /// Says which lookups cannot be asked, and which can again.
    fn judge(&mut self, wanted: &[Wanted], answers: &Answers) {
        let mut failed = BTreeMap::new();
        for one in wanted {
            if answers.get(one).is_none_or(|found| *found == Found::Failed) {
                failed.entry(usize::from(one.lookup.0)).or_insert_with(|| one.clone());
            }
        }
        let is_found = |one: &Wanted| answers.get(one).is_some_and(|found| *found != Found::Failed);
        let over: Vec<usize> = self
            .failed
            .iter()
            .filter(|(at, one)| is_found(one) && !failed.contains_key(*at))
            .map(|(at, _)| *at)
            .collect();
        for at in over {
            self.failed.remove(&at);
            self.health.over(&Topic::Lookup(Arc::clone(&self.all[at].0)));
        }
        if !failed.is_empty() {
            self.again_at = Instant::now() + AGAIN_PAUSE;
        }
        for (at, one) in failed {
            let name = &self.all[at].0;
            let cause = self.refusals.get(&at).or(self.loss.as_ref());
            let none = || format!("no answer in {} s", ANSWER_TIMEOUT.as_secs());
            let cause = cause.cloned().unwrap_or_else(none);
            let text = format!("lookup `{name}` fails: {cause}; keys that name it are widened");
            self.health.trouble(Topic::Lookup(Arc::clone(name)), &text, Some(HINT));
            self.failed.insert(at, one);
        }
    }

    async fn find_all(&mut self, wanted: &[Wanted], answers: &mut Answers) {
        while let Err(error) = self.ask(wanted, answers).await {
            (self.session, self.losses) = (None, self.losses + 1);
            tracing::debug!(%error, "the session of a lookup is lost");
            self.loss = Some(error.to_string());
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
            // What cannot be asked is asked for one row at a time, so that no more waits there.
            let is_doubtful = self.failed.contains_key(&usize::from(one.lookup.0));
            if flying.len() >= if is_doubtful { 1 } else { DEPTH } {
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
        match session.sql.prepare(&self.all[at].1).await {
            Ok(statement) if statement.params().len() == wanted.params().len() => {
                session.statements[at] = Some(statement.clone());
                return Ok(Some(statement));
            }
            Ok(_) => _ = self.refusals.insert(at, "it has other parameters".to_owned()),
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
                let meaning = match server.code.as_str() {
                    LOCK_TIMEOUT => " (a lock is in the way)",
                    STATEMENT_TIMEOUT => " (it takes too long)",
                    _ => "",
                };
                self.refusals.insert(at, format!("SQLSTATE {}{meaning}", server.code));
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
        Ok(Session { sql: Rc::new(sql), statements: vec![None; self.all.len()] })
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
    (0..row.len()).map(text).collect::<Result<_, _>>().map(Found::Row)
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
