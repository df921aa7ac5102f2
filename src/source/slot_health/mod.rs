//! The cost of the slot to the server that it is on, and when it must go: sampled for the metrics.
//!
//! `postgres.max_retained_wal` protects the server's disk from us. It counts the WAL that walsweep
//! has not confirmed. WAL that the slot keeps for an open transaction does not count: a new slot
//! would have to wait for that transaction, and nothing would be removed meanwhile. So a slot goes
//! for what is unconfirmed, and while it is less than [`SPARED_FACTOR`] times too much only if a
//! new one can be had soon.

use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::config::{Config, Postgres};
use crate::lsn::Lsn;
use crate::postgres;
use crate::preflight::lost_because;
use crate::source::holder::Walsender;
use crate::source::own::{Custody, evidence};
use crate::source::slot_server::SlotServer;
use crate::source::{Error, within};
use crate::telemetry::metrics::{Metrics, StatusLabel};
use crate::telemetry::noted::SlotNote;
use crate::telemetry::{Health, Topic};

#[cfg(test)]
mod tests;

/// How often the slot is looked at. It is also how a dead SQL connection is noticed while there is
/// nothing to ask it.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// A sample that is not answered in this time means that the connection is dead.
pub const SAMPLE_TIMEOUT: Duration = Duration::from_secs(20);

/// So many times `postgres.max_retained_wal` is the end: then the slot goes, whichever transactions
/// a new one has to wait for. Some may always run, one after another; the disk would fill for them.
const SPARED_FACTOR: u64 = 2;

/// Transactions that are named where somebody waits for more.
const NAMED_MAX: usize = 3;

/// The values of `pg_replication_slots.wal_status`
/// (<https://www.postgresql.org/docs/current/view-pg-replication-slots.html>).
const STATUSES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// A row of `pg_replication_slots`.
#[derive(Debug)]
pub struct SlotState {
    /// The position that Postgres was told last.
    pub confirmed_flush_lsn: Lsn,
    /// Whether the WAL that the slot needs is still there.
    pub wal_status: String,
    /// The process that streams from it.
    pub active_pid: Option<i32>,
    /// That process's `application_name`, if it may be seen.
    pub active_name: Option<String>,
    /// The address that it is connected from, if it may be seen and is not a socket.
    pub active_address: Option<String>,
    /// When that process began, if it may be seen: seconds since 1970.
    pub active_since: Option<String>,
    /// Whether a standby is to keep a copy of it; `None` before Postgres 17, which knows none.
    pub failover: Option<bool>,
    invalidation: Option<String>,
    safe_wal_size: Option<i64>,
    confirmed_lag: Option<i64>,
    restart_lag: Option<i64>,
    /// How far the server has replayed; `None` if it is no standby.
    replayed: Option<Lsn>,
}

impl SlotState {
    /// Gives the state of a slot on a standby, with the lag behind a primary whose log ends at
    /// `wal_end`. How much WAL is safe a standby does not know: it counts from its own writing,
    /// which is none.
    fn behind(self, wal_end: Lsn) -> SlotState {
        let lag = wal_end.0.saturating_sub(self.confirmed_flush_lsn.0);
        let confirmed_lag = Some(i64::try_from(lag).unwrap_or(i64::MAX));
        SlotState { confirmed_lag, safe_wal_size: None, ..self }
    }

    /// The process that streams from it.
    #[must_use]
    pub fn walsender(&self) -> Option<Walsender> {
        let since = self.active_since.clone();
        self.active_pid.map(|pid| Walsender { pid, since })
    }

    /// Where the server's log ended when the slot was looked at: nobody was sent more by then.
    #[must_use]
    pub fn wal_end(&self) -> Lsn {
        let lag = self.confirmed_lag.and_then(|lag| u64::try_from(lag).ok());
        Lsn(self.confirmed_flush_lsn.0.saturating_add(lag.unwrap_or_default()))
    }

    /// Why nothing can be streamed from it any more; `None` if something can.
    #[must_use]
    pub fn lost_because(&self) -> Option<&'static str> {
        lost_because(&self.wal_status, self.invalidation.as_deref())
    }

    /// Gives the bytes that could be confirmed and are not. A standby can send what it has
    /// replayed.
    fn unconfirmed(&self) -> u64 {
        let end = self.replayed.unwrap_or_else(|| self.wal_end());
        end.0.saturating_sub(self.confirmed_flush_lsn.0)
    }

    /// The WAL that the slot keeps on the server's disk, in bytes.
    fn kept(&self) -> u64 {
        self.restart_lag.and_then(|lag| u64::try_from(lag).ok()).unwrap_or_default()
    }
}

/// A slot that is further behind than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    /// The WAL that is not confirmed, in bytes.
    pub bytes: u64,
    /// The WAL that may be unconfirmed, in bytes.
    pub max: u64,
}

/// A transaction with an id that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The session's process; `None` if it is prepared.
    pid: Option<i32>,
    /// Its 32-bit id.
    xid: i64,
    /// Its name, if it is prepared.
    gid: Option<String>,
    database: Option<String>,
    /// The session's `application_name`.
    name: Option<String>,
}

impl fmt::Display for Running {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Running { pid, xid, gid, database, name } = self;
        let database = database.as_deref().unwrap_or("unknown");
        match (pid, gid) {
            (Some(pid), _) => {
                let name = name.as_deref().unwrap_or("unknown");
                write!(
                    formatter,
                    "Postgres process {pid} (`{name}`, database `{database}`, transaction {xid})"
                )
            }
            (None, Some(gid)) => {
                write!(
                    formatter,
                    "prepared transaction `{gid}` (database `{database}`, transaction {xid})"
                )
            }
            (None, None) => write!(formatter, "transaction {xid}"),
        }
    }
}

/// Names the first of these transactions, and counts the others.
#[must_use]
pub fn named(running: &[Running]) -> String {
    let names: Vec<String> = running.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    match running.len().saturating_sub(NAMED_MAX) {
        0 => names.join(", "),
        more => format!("{}, and {more} more", names.join(", ")),
    }
}

/// The transactions that run on the primary behind `client`, the longest first.
///
/// # Errors
///
/// The query's.
pub async fn running(client: &Client) -> Result<Vec<Running>, tokio_postgres::Error> {
    let rows = client.query(include_str!("../../../sql/running.sql"), &[]).await?;
    let transaction = |row: &tokio_postgres::Row| {
        let (pid, xid, gid) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        Ok(Running { pid, xid, gid, database: row.try_get(3)?, name: row.try_get(4)? })
    };
    rows.iter().map(transaction).collect()
}

/// Transactions that last: those that run at two looks.
#[derive(Debug, Default)]
pub struct Lasting {
    before: Option<BTreeSet<i64>>,
}

impl Lasting {
    /// Takes in a look; gives those that ran at the one before, too, or `None` if it is the first.
    pub fn look(&mut self, running: Vec<Running>) -> Option<Vec<Running>> {
        let now = running.iter().map(|one| one.xid).collect();
        let before = self.before.replace(now)?;
        Some(running.into_iter().filter(|one| before.contains(&one.xid)).collect())
    }
}

/// The judgement of a slot.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    /// It is as it should be.
    Fine,
    /// It keeps too much, and perhaps not for long: the next look decides.
    Unsure,
    /// It keeps too much for transactions that last; what to say of it.
    Held(String),
    /// It is too far behind, and a new one can be had.
    GiveUp(Retained),
}

/// Judges a slot at each look.
#[derive(Debug, Default)]
struct Judge {
    lasting: Lasting,
    /// Whether a slot goes also while transactions last that a new one would wait for.
    spares_nobody: bool,
}

impl Judge {
    /// Whether it must be asked which transactions run.
    fn is_concerned(state: &SlotState, max: Option<u64>) -> bool {
        max.is_some_and(|max| state.unconfirmed() > max || state.kept() > max)
    }

    /// Judges the slot `name`, beside which these transactions run.
    fn judge(
        &mut self,
        name: &str,
        state: &SlotState,
        (max, running): (Option<u64>, Vec<Running>),
    ) -> Judgement {
        let Some(max) = max.filter(|_| Judge::is_concerned(state, max)) else {
            self.lasting = Lasting::default();
            return Judgement::Fine;
        };
        let Some(lasting) = self.lasting.look(running) else { return Judgement::Unsure };
        let (bytes, who) = (state.unconfirmed(), named(&lasting));
        let end = max.saturating_mul(SPARED_FACTOR);
        let most = format!("more than the {} MB of `postgres.max_retained_wal`", max >> 20);
        match (bytes > max, lasting.is_empty() || self.spares_nobody || bytes > end) {
            (true, true) => Judgement::GiveUp(Retained { bytes, max }),
            (true, false) => Judgement::Held(format!(
                "slot `{name}` is {} MB behind, {most}, and a new one would have to wait for \
                 {who}; at {} MB it is given up all the same",
                bytes >> 20,
                end >> 20
            )),
            (false, _) if lasting.is_empty() => Judgement::Unsure,
            (false, _) => Judgement::Held(format!(
                "slot `{name}` keeps {} MB of WAL, {most}, for transactions that stay open; a new \
                 one would wait for them, too: {who}",
                state.kept() >> 20
            )),
        }
    }
}

/// The state of the slot `name`; `None` if there is none.
///
/// # Errors
///
/// The query's.
pub async fn look(client: &Client, name: &str) -> Result<Option<SlotState>, tokio_postgres::Error> {
    let Some(row) = client.query_opt(include_str!("../../../sql/slot.sql"), &[&name]).await? else {
        return Ok(None);
    };
    let confirmed: Option<&str> = row.try_get(0)?;
    Ok(Some(SlotState {
        confirmed_flush_lsn: confirmed.and_then(|lsn| lsn.parse().ok()).unwrap_or_default(),
        wal_status: row.try_get::<_, Option<String>>(1)?.unwrap_or_default(),
        active_pid: row.try_get(2)?,
        safe_wal_size: row.try_get(3)?,
        confirmed_lag: row.try_get(4)?,
        restart_lag: row.try_get(5)?,
        active_name: row.try_get(6)?,
        invalidation: row.try_get(7)?,
        failover: row.try_get(8)?,
        replayed: row.try_get::<_, Option<&str>>(9)?.and_then(|lsn| lsn.parse().ok()),
        active_address: row.try_get(10)?,
        active_since: row.try_get(11)?,
    }))
}

/// The state of the slot. Of one on a standby the unconfirmed WAL is what the primary has written:
/// keys stay for it, whether it is walsweep that is late or the standby. Both servers are asked
/// each time, so that a dead connection to either is noticed.
async fn sample(
    server: &SlotServer,
    name: &str,
    replay: &mut Replay,
) -> Result<Option<SlotState>, tokio_postgres::Error> {
    let state = look(&server.sql, name).await?;
    if !server.is_standby() {
        return Ok(state);
    }
    let wal_end = server.wal_end().await?;
    if let Some(replayed) = state.as_ref().and_then(|state| state.replayed) {
        replay.look(replayed, wal_end, Instant::now());
    }
    Ok(state.map(|state| state.behind(wal_end)))
}

/// Whether the standby that the slot is on keeps up with its primary. A standby that is cut off
/// sends nothing and goes on answering.
#[derive(Default)]
struct Replay {
    /// Where the primary's log ended, and since when the standby has not come that far.
    awaited: Option<(Lsn, Instant)>,
    told: bool,
}

impl Replay {
    /// The log may end within a record, of which an idle primary writes the rest 15 s later.
    const LATE: Duration = Duration::from_secs(30);

    /// Takes in a sample; warns once each time that the standby falls behind.
    fn look(&mut self, replayed: Lsn, wal_end: Lsn, now: Instant) -> bool {
        let Some((awaited, since)) = self.awaited else {
            self.awaited = Some((wal_end, now));
            return false;
        };
        if replayed >= awaited {
            if std::mem::take(&mut self.told) {
                tracing::info!(%replayed, "the standby that the slot is on has caught up");
            }
            self.awaited = Some((wal_end, now));
            return false;
        }
        let is_late = now - since >= Replay::LATE;
        if is_late && !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                %replayed,
                primary = %wal_end,
                hint = "see whether it follows the primary, and what holds its replay",
                "the standby that the slot is on is late, and so are all removals"
            );
        }
        is_late
    }
}

/// Looks after the slot, in a session or between two.
pub struct Keeper {
    config: Config,
    custody: Rc<Custody>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    replay: Replay,
    judge: Judge,
}

impl Keeper {
    /// A keeper of the slot that `config` names.
    #[must_use]
    pub fn new(
        config: &Config,
        custody: &Rc<Custody>,
        (health, metrics): (&Arc<Health>, &Arc<Metrics>),
    ) -> Keeper {
        Keeper {
            config: config.clone(),
            custody: Rc::clone(custody),
            health: Arc::clone(health),
            metrics: Arc::clone(metrics),
            replay: Replay::default(),
            judge: Judge::default(),
        }
    }

    /// Whether transactions that a new slot would wait for keep the old one no longer, because no
    /// session can be had.
    pub fn spares_nobody(&mut self, spares_nobody: bool) {
        self.judge.spares_nobody = spares_nobody;
    }

    /// Samples the slot until the session has to end, and says why: the connection is lost or no
    /// answer came in time, the slot is gone, or it is further behind than it may be, and shown to
    /// be walsweep's: one that is not is read on, and keys go. What the server refuses, such as for
    /// a lock on a catalog, ends nothing: the stream needs no answer.
    pub async fn watch(mut self, server: &SlotServer) -> Error {
        loop {
            match self.sample(server).await {
                Ok(Some((_, Some(retained)))) => match self.may_give_up(server).await {
                    Ok(true) => return Error::RetainedWal(retained),
                    Ok(false) | Err(Error::Sql(postgres::Error::Query(_))) => {}
                    Err(error) => return error,
                },
                Ok(Some((state, None))) => {
                    let max = self.config.postgres.max_retained_wal;
                    if !Judge::is_concerned(&state, max) {
                        self.health.over(&Topic::SlotOwner);
                    }
                }
                Ok(None) => return Error::SlotGone,
                Err(Error::Sql(postgres::Error::Query(error))) => {
                    let text = format!("how far the slot is behind cannot be asked: {error}");
                    self.health.trouble(Topic::Slot, &text, Some("it is asked again"));
                }
                Err(error) => return error,
            }
            sleep(SAMPLE_INTERVAL).await;
        }
    }

    /// Whether the slot, which keeps too much, is shown to be walsweep's.
    async fn may_give_up(&self, server: &SlotServer) -> Result<bool, Error> {
        let why = "keeps too much WAL";
        let own = evidence(&self.config, &self.custody, &self.health, server, why).await?;
        Ok(own.is_some())
    }

    /// Looks at the slot once, for the metrics and for whoever reads `/readyz`; gives its state,
    /// and by how much it is too far behind if it must be given up. `None`: there is no slot.
    ///
    /// # Errors
    ///
    /// A query's; no answer in time.
    pub async fn sample(
        &mut self,
        server: &SlotServer,
    ) -> Result<Option<(SlotState, Option<Retained>)>, Error> {
        let Postgres { slot: name, max_retained_wal: max, .. } = &self.config.postgres;
        let max = *max;
        let looked = async {
            let Some(state) = sample(server, name, &mut self.replay).await? else {
                return Ok(None);
            };
            let is_concerned = Judge::is_concerned(&state, max);
            let running = if is_concerned { running(&server.primary).await? } else { Vec::new() };
            Ok::<_, tokio_postgres::Error>(Some((state, running)))
        };
        let Some((state, running)) = within(SAMPLE_TIMEOUT, looked).await? else {
            tell(&self.metrics, None);
            self.custody.lost();
            self.health.over(&Topic::Slot);
            self.health.over(&Topic::SlotOwner);
            return Ok(None);
        };
        tell(&self.metrics, Some(&state));
        let judgement = self.judge.judge(name, &state, (max, running));
        self.say(&state, &judgement);
        let retained = match judgement {
            Judgement::GiveUp(retained) => Some(retained),
            Judgement::Fine | Judgement::Unsure | Judgement::Held(_) => None,
        };
        Ok(Some((state, retained)))
    }

    /// The slot could not be looked at: the metrics tell nothing of it until it can. What it was
    /// may be long ago, and an alert would take it for what is.
    pub fn cannot_look(&self) {
        forget(&self.metrics);
    }

    /// Says what a person should know.
    fn say(&self, state: &SlotState, judgement: &Judgement) {
        if state.wal_status == "unreserved" {
            let text = format!(
                "slot `{}` is about to be lost: the server may remove WAL that it needs",
                self.config.postgres.slot
            );
            let hint = "find out what holds the confirmation, or raise max_slot_wal_keep_size";
            self.health.trouble(Topic::Slot, &text, Some(hint));
            return;
        }
        match judgement {
            Judgement::Held(text) => {
                let hint = "end these transactions: `pg_stat_activity` and `pg_prepared_xacts` \
                            list them";
                self.health.trouble(Topic::Slot, text, Some(hint));
            }
            Judgement::Unsure => {}
            Judgement::Fine | Judgement::GiveUp(_) => self.health.over(&Topic::Slot),
        }
    }
}

/// Lets the metrics tell nothing of the slot.
fn forget(metrics: &Metrics) {
    let Metrics { confirmed_lag_bytes, restart_lag_bytes, slot_safe_wal_bytes, .. } = metrics;
    for gauge in [confirmed_lag_bytes, restart_lag_bytes, slot_safe_wal_bytes] {
        gauge.set(None);
    }
    metrics.slot_wal_status.clear();
}

/// Lets the metrics tell of the slot; `None` if there is none.
fn tell(metrics: &Metrics, state: Option<&SlotState>) {
    let bytes = |lag: fn(&SlotState) -> Option<i64>| state.and_then(lag).unwrap_or_default();
    let known = state.is_some();
    metrics.confirmed_lag_bytes.set(known.then(|| bytes(|state| state.confirmed_lag)));
    metrics.restart_lag_bytes.set(known.then(|| bytes(|state| state.restart_lag)));
    metrics.slot_safe_wal_bytes.set(state.map(|state| state.safe_wal_size.unwrap_or(-1)));
    metrics.noted.slot_is(state.map(|state| SlotNote {
        confirmed_flush_lsn: state.confirmed_flush_lsn,
        confirmed_lag: bytes(|state| state.confirmed_lag),
        restart_lag: bytes(|state| state.restart_lag),
        safe_wal: state.safe_wal_size,
        wal_status: state.wal_status.clone(),
        at: SystemTime::now(),
    }));
    for status in STATUSES {
        let is_present = i64::from(state.is_some_and(|state| state.wal_status == status));
        metrics.slot_wal_status.get_or_create(&StatusLabel { status }).set(is_present);
    }
}
