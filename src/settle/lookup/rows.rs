//! Where the rows of lookups come from: a session of the primary that cannot write.
//!
//! All that is wanted of a lookup goes out in one statement for many rows ([`batch`]), or, where
//! that cannot be, without waiting for the answers between, up to a depth. Whatever goes wrong with
//! a query makes its keys wide; a lost session is made again, for as long as there is time. A
//! lookup that cannot be asked is named, and asked now and then until it can. Which server answers
//! is checked when a session begins, as for the gate: a standby would show older rows.

use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::TryStreamExt;
use hashbrown::HashMap;
use postgres_protocol::escape::escape_identifier;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Statement;
use tokio_postgres::types::{Format, FromSql, IsNull, ToSql, Type, to_sql_checked};

use super::batch::{self, Gathered};
use super::failing::{Failing, Judged};
use super::refusal::{LOCK_TIMEOUT, Refusal, STATEMENT_TIMEOUT};
use super::room::RowRoom;
use crate::config::LookupRows;
use crate::keys::{Answers, Found, Lookup, LookupId, Wanted};
use crate::postgres::statement::render;
use crate::postgres::{self, Endpoint, History, Sql, connect_sql, identify};
use crate::telemetry::{Health, Topic};

/// `application_name` on the server.
const NAME: &str = "walsweep lookup";

/// A question that is not answered in this time widens its keys. Rows are read by key in less than
/// a millisecond; who waits longer is late for every reader, and a wide removal is right, too. No
/// statement holds the server longer either, nor waits for a lock: see `sql/read_only.sql`.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The largest value of a row in bytes that a key is made of, as with the rows of changes. Of a
/// larger one `sql/lookup_column.sql` sends at least one byte more than this, and not the rest.
pub(super) const VALUE_SIZE_MAX: usize = 64 << 10;

/// Questions for one row each on their way at once: as many as keep the server busy over a round
/// trip.
const DEPTH: usize = 64;

/// Rows that are asked for with one statement. The round trip and the start of a statement are a
/// small part of its time by then, and what fails, or is late, fails for no more than these.
const BATCH: usize = 100;

/// Questions for many rows each on their way at once.
const BATCHES: usize = 2;

/// Pause before a lost session is made again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

type AnyError = Box<dyn std::error::Error + Sync + Send>;

/// A lookup, as it is asked for.
#[derive(Debug)]
pub(super) struct Asked {
    name: Arc<str>,
    /// The query, without a semicolon.
    pub(super) query: String,
    /// The columns that give its parameters, in words.
    params: String,
    /// The columns of its rows that keys name, as text.
    columns: String,
    pub(super) rows: LookupRows,
    limit: usize,
}

impl Asked {
    fn new(lookup: &Lookup) -> Asked {
        let column = |column: &str| {
            let values = [("column", &*escape_identifier(column))];
            render(include_str!("../../../sql/lookup_column.sql"), &values)
        };
        let columns: Vec<String> = lookup.columns.iter().map(|one| column(&one.value)).collect();
        let params = lookup.params.iter().enumerate();
        let params = params.map(|(at, param)| format!("`${}` is `{}`", at + 1, param.value));
        Asked {
            name: lookup.name.as_str().into(),
            query: lookup.query().to_owned(),
            params: params.collect::<Vec<_>>().join(", "),
            columns: columns.join(", "),
            rows: lookup.rows,
            limit: lookup.limit,
        }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Says which columns give its parameters.
    pub(super) fn params(&self) -> &str {
        &self.params
    }

    /// The most rows that an answer may have.
    pub(super) fn most(&self) -> usize {
        if self.rows == LookupRows::One { 1 } else { self.limit }
    }

    /// The statement that reads what keys name of the rows of a query, and one row too many.
    pub(super) fn statement(&self, query: &str) -> String {
        let limit = (self.most() + 1).to_string();
        let values = [("columns", &*self.columns), ("query", query), ("limit", &*limit)];
        render(include_str!("../../../sql/lookup.sql"), &values)
    }
}

/// The statement that reads what keys name of a lookup's rows, as text.
#[must_use]
pub(crate) fn statement(lookup: &Lookup) -> String {
    let asked = Asked::new(lookup);
    asked.statement(&asked.query)
}

/// Reads rows on the primary with this history.
pub struct Rows {
    endpoint: Endpoint,
    history: History,
    /// By [`LookupId`].
    all: Arc<[Asked]>,
    /// Which of them are asked here: from the first, each one so many further.
    own: (usize, usize),
    /// How the names of kept answers were understood.
    search_path: Option<String>,
    /// For the rows of a round; what is more widens (I6).
    room: Rc<RowRoom>,
    session: Option<Session>,
    /// Sessions lost so far.
    losses: u64,
    health: Arc<Health>,
    failing: Failing,
    /// Why, since the last answers: of each lookup, and of whichever.
    refusals: HashMap<usize, Refusal>,
    loss: Option<String>,
}

struct Session {
    sql: Rc<Sql>,
    /// By lookup.
    statements: Vec<Prepared>,
}

/// The statements of a lookup, once they are prepared.
#[derive(Clone, Debug, Default)]
struct Prepared {
    /// For one row at a time.
    single: Option<Statement>,
    /// For many together; `Some(None)` if they cannot be asked for so.
    batch: Option<Option<Statement>>,
}

/// Rows of one lookup that were asked for together, and what came of it.
type Flight = (Vec<Wanted>, Result<Vec<Found>, tokio_postgres::Error>);

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
        history: History,
        lookups: &[Lookup],
        health: Arc<Health>,
    ) -> Rows {
        let search_path =
            lookups.iter().find_map(|one| Some(one.reads.as_ref()?.search_path.clone()));
        let all = lookups.iter().map(Asked::new);
        Rows {
            endpoint,
            history,
            all: all.collect(),
            own: (0, 1),
            search_path,
            room: RowRoom::of_sessions(1).map(Rc::new).next().expect("it is one"),
            session: None,
            losses: 0,
            health,
            failing: Failing::none(),
            refusals: HashMap::new(),
            loss: None,
        }
    }

    /// Spreads the lookups over several sessions, at most `count` and at least one: lookups have
    /// them in turn.
    pub(super) fn on_sessions(&self, count: usize) -> Vec<Rows> {
        let count = self.all.len().clamp(1, count);
        let one = |(at, room)| Rows {
            room: Rc::new(room),
            endpoint: self.endpoint.clone(),
            history: self.history.clone(),
            all: Arc::clone(&self.all),
            own: (at, count),
            search_path: self.search_path.clone(),
            session: None,
            losses: 0,
            health: Arc::clone(&self.health),
            failing: Failing::none(),
            refusals: HashMap::new(),
            loss: None,
        };
        (0..count).zip(RowRoom::of_sessions(count)).map(one).collect()
    }

    /// Gives back the room of what was found: it is not held here any more.
    pub(super) fn let_go(&self) {
        self.room.clear();
    }

    /// Every lookup, by [`LookupId`].
    pub(super) fn all(&self) -> Arc<[Asked]> {
        Arc::clone(&self.all)
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
        self.failing.again_at()
    }

    /// Finds what it can in [`ANSWER_TIMEOUT`].
    pub(super) async fn find(&mut self, mut wanted: Vec<Wanted>) -> Answers {
        let fresh = wanted.len();
        wanted.extend(self.failing.due());
        let mut answers = Answers::default();
        (self.refusals, self.loss) = (HashMap::new(), None);
        let found = Box::pin(self.find_all(&wanted, &mut answers));
        if timeout(ANSWER_TIMEOUT, found).await.is_err() {
            // What is still on its way would only delay what comes next.
            (self.session, self.losses) = (None, self.losses + 1);
        }
        self.judge((&wanted, fresh), &answers);
        answers
    }

    /// Says which lookups cannot be asked, and which can again.
    fn judge(&mut self, wanted: (&[Wanted], usize), answers: &Answers) {
        let is_found = |one: &Wanted| answers.get(one).is_some_and(|found| *found != Found::Failed);
        let Judged { failed, over } = self.failing.judge(wanted, is_found);
        for at in over {
            self.health.over(&Topic::Lookup(Arc::clone(&self.all[at].name)));
        }
        for (at, failure) in failed {
            let name = &self.all[at].name;
            let refusal = self.refusals.get(&at).cloned();
            let lost = || self.loss.clone().map(Refusal::lost);
            let none = || Refusal::late(format!("no answer in {} s", ANSWER_TIMEOUT.as_secs()));
            let refusal = refusal.or_else(lost).unwrap_or_else(none);
            self.failing.fails(at, failure, refusal.is_of_a_value());
            let Refusal { cause, hint } = refusal;
            let text = format!("lookup `{name}` fails: {cause}; keys that name it are widened");
            self.health.trouble(Topic::Lookup(Arc::clone(name)), &text, Some(&hint));
        }
    }

    async fn find_all(&mut self, wanted: &[Wanted], answers: &mut Answers) {
        // A lookup may be due to be over, and for that no session is made.
        if wanted.is_empty() {
            return;
        }
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
        self.room.clear();
        let mut by_lookup: BTreeMap<usize, Vec<Wanted>> = BTreeMap::new();
        for one in wanted.iter().filter(|one| !answers.knows(one)) {
            by_lookup.entry(usize::from(one.lookup.0)).or_default().push(one.clone());
        }
        for (at, wanted) in by_lookup {
            let mut alone = wanted;
            // What cannot be asked is asked for one row at a time, so that no more waits there.
            let is_doubtful = self.failing.is_doubtful(at);
            if alone.len() > 1
                && !is_doubtful
                && let Some(batch) = self.batch(&mut session, at, &alone).await?
            {
                alone = self.ask_together(&mut session, &batch, (alone, &mut *answers)).await?;
            }
            self.ask_alone(&mut session, (at, is_doubtful), (alone, &mut *answers)).await?;
        }
        self.session = Some(session);
        Ok(())
    }

    /// Asks for rows of one lookup together; gives those that have to be asked for alone, because
    /// the server refused some of them.
    async fn ask_together(
        &mut self,
        session: &mut Session,
        batch: &Statement,
        (wanted, answers): (Vec<Wanted>, &mut Answers),
    ) -> Result<Vec<Wanted>, Lost> {
        let (mut flying, mut alone) = (JoinSet::new(), Vec::new());
        for part in wanted.chunks(BATCH) {
            let (sql, room) = (Rc::clone(&session.sql), Rc::clone(&self.room));
            let (all, batch, part) = (Arc::clone(&self.all), batch.clone(), part.to_vec());
            flying.spawn_local(async move {
                let asked = &all[usize::from(part[0].lookup.0)];
                let found = batch::ask(&sql, &batch, (asked, &part), &room).await;
                (part, found)
            });
            if flying.len() >= BATCHES {
                alone.extend(self.land(&mut flying, session, answers).await?);
            }
        }
        while !flying.is_empty() {
            alone.extend(self.land(&mut flying, session, answers).await?);
        }
        Ok(alone)
    }

    /// Asks for rows of one lookup one by one, without waiting for the answers between.
    async fn ask_alone(
        &mut self,
        session: &mut Session,
        (at, is_doubtful): (usize, bool),
        (wanted, answers): (Vec<Wanted>, &mut Answers),
    ) -> Result<(), Lost> {
        let mut flying = JoinSet::new();
        for one in wanted {
            let Some(statement) = self.single(session, at, &one).await? else {
                answers.insert(one, Found::Failed);
                continue;
            };
            let (sql, room) = (Rc::clone(&session.sql), Rc::clone(&self.room));
            let all = Arc::clone(&self.all);
            flying.spawn_local(async move {
                let found = query(&sql, &statement, (&all[at], &one), &room).await;
                (vec![one], found.map(|found| vec![found]))
            });
            if flying.len() >= if is_doubtful { 1 } else { DEPTH } {
                self.land(&mut flying, session, answers).await?;
            }
        }
        while !flying.is_empty() {
            self.land(&mut flying, session, answers).await?;
        }
        Ok(())
    }

    /// Takes in the answers to one question; gives what has to be asked for alone.
    async fn land(
        &mut self,
        flying: &mut JoinSet<Flight>,
        session: &mut Session,
        answers: &mut Answers,
    ) -> Result<Vec<Wanted>, Lost> {
        let Some(Ok((wanted, found))) = flying.join_next().await else { return Ok(Vec::new()) };
        let error = match found {
            Ok(found) => {
                wanted.into_iter().zip(found).for_each(|(one, found)| answers.insert(one, found));
                return Ok(Vec::new());
            }
            Err(error) => error,
        };
        let (at, is_one) = (usize::from(wanted[0].lookup.0), wanted.len() == 1);
        let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
        self.refused(error, at, session).await?;
        // The value of one row fails for all of them. Who has a lock is in the way of each.
        if !is_one && ![LOCK_TIMEOUT, STATEMENT_TIMEOUT].contains(&code.as_str()) {
            return Ok(wanted);
        }
        wanted.into_iter().for_each(|one| answers.insert(one, Found::Failed));
        Ok(Vec::new())
    }

    /// The statement for one row of a lookup; `None` if the server does not take it.
    async fn single(
        &mut self,
        session: &mut Session,
        at: usize,
        wanted: &Wanted,
    ) -> Result<Option<Statement>, Lost> {
        if let Some(statement) = &session.statements[at].single {
            return Ok(Some(statement.clone()));
        }
        let asked = &self.all[at];
        match session.sql.prepare(&asked.statement(&asked.query)).await {
            Ok(statement) if statement.params().len() == wanted.params().len() => {
                session.statements[at].single = Some(statement.clone());
                return Ok(Some(statement));
            }
            Ok(_) => {
                self.refusals.insert(at, Refusal::wrong("it has other parameters"));
            }
            Err(error) => self.refused(error, at, session).await?,
        }
        Ok(None)
    }

    /// The statement for many rows of a lookup; `None` if they have to be asked for one by one.
    async fn batch(
        &mut self,
        session: &mut Session,
        at: usize,
        wanted: &[Wanted],
    ) -> Result<Option<Statement>, Lost> {
        if let Some(batch) = &session.statements[at].batch {
            return Ok(batch.clone());
        }
        // It tells the types of the parameters; why it is refused is said where it is asked alone.
        let Some(single) = self.single(session, at, &wanted[0]).await? else { return Ok(None) };
        let batch = match batch::statement(&self.all[at], single.params()) {
            None => None,
            Some(text) => match session.sql.prepare(&text).await.map_err(postgres::Error::from) {
                Ok(batch) => Some(batch),
                Err(postgres::Error::Query(server)) if !is_passing(&server.code) => None,
                Err(error) => return Err(error.into()),
            },
        };
        session.statements[at].batch = Some(batch.clone());
        Ok(batch)
    }

    /// Takes in an error: what the server refused widens; everything else is a lost session. A
    /// statement that was refused is prepared anew: its tables may have changed.
    async fn refused(
        &mut self,
        error: tokio_postgres::Error,
        at: usize,
        session: &mut Session,
    ) -> Result<(), Lost> {
        let server = match postgres::Error::from(error) {
            postgres::Error::Query(server) if !is_passing(&server.code) => server,
            error => return Err(error.into()),
        };
        session.statements[at] = Prepared::default();
        if !self.refusals.contains_key(&at) {
            let asked = (&self.all[at], &*self.endpoint.user);
            let refusal = Refusal::of(&server, asked, &session.sql).await?;
            self.refusals.insert(at, refusal);
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Session, Lost> {
        let sql = connect_sql(&self.endpoint, NAME).await?;
        if identify(&sql).await?.history.as_ref() != Some(&self.history) {
            return Err(Lost::OtherServer);
        }
        sql.batch_execute(include_str!("../../../sql/read_only.sql")).await?;
        let check = sql.batch_execute(include_str!("../../../sql/connection_check.sql")).await;
        if let Err(error) = check {
            tracing::debug!(error = %postgres::Error::from(error), "no check of connections");
        }
        sql.act_as_role().await?;
        if let Some(path) = &self.search_path {
            sql.query(include_str!("../../../sql/search_path.sql"), &[path]).await?;
        }
        let statements = vec![Prepared::default(); self.all.len()];
        Ok(Session { sql: Rc::new(sql), statements })
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
    (asked, wanted): (&Asked, &Wanted),
    room: &RowRoom,
) -> Result<Found, tokio_postgres::Error> {
    let params: Vec<Param<'_>> = wanted.params().into_iter().map(Param).collect();
    let params = params.iter().map(|param| param as &(dyn ToSql + Sync));
    let (mut rows, mut gathered) =
        (pin!(sql.query_raw(statement, params).await?), Gathered::default());
    while let Some(row) = rows.try_next().await? {
        gathered.take((&row, 0), asked, room)?;
    }
    Ok(gathered.found(asked))
}

/// A value as the stream sent it: the server reads it by the parameter's type. Has no `Debug` form
/// of its content (I9).
pub(crate) struct Param<'a>(pub(super) Option<&'a [u8]>);

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
pub(super) struct Text<'a>(pub(super) &'a [u8]);

impl<'a> FromSql<'a> for Text<'a> {
    fn from_sql(_type: &Type, raw: &'a [u8]) -> Result<Text<'a>, AnyError> {
        Ok(Text(raw))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TEXT
    }
}
