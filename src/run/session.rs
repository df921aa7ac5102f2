//! How a session begins: its connections, to servers of one history, and a slot to stream from.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use crate::capture::{Replication, Slot, SlotKind, StreamOptions, Streaming};
use crate::config::Config;
use crate::keys::{Basis, Binding, Bound, Rules};
use crate::lsn::Lsn;
use crate::postgres::{History, Obstacle, Server, Sql, connect_sql, identify, listed};
use crate::preflight::{self, Checked, Finding, Severity};
use crate::run::error::Error;
use crate::settle::SqlStandby;
use crate::source;
use crate::source::holder::{STREAM_NAME, Walsender};
use crate::source::own::{self, Custody, Over, Whose};
use crate::source::shape::{Shape, Watched};
use crate::source::slot_health::{self, SlotState};
use crate::source::slot_server::{self, SlotServer, Witness};
use crate::source::watch::{Watch, suspended, tell_rules};
use crate::sweep::{self, Broken, Doubt, Prints, Watermark, key_name};
use crate::telemetry::metrics::SlotLabel;
use crate::telemetry::{Health, Topic};

/// `application_name` of the gate's connection. Nothing else runs on it: whatever waits for a lock,
/// or takes long, would hold up removals.
pub const GATE_NAME: &str = "walsweep";

/// `application_name` of the connection for the checks and the watch, whose questions may take
/// seconds where there are very many tables. Nothing else waits behind them.
pub const WATCH_NAME: &str = "walsweep watch";

/// How often a dead connection of the gate is looked for while there is nothing to ask it.
const GATE_INTERVAL: Duration = Duration::from_secs(5);

/// The longest that the server may take for one step of the beginning. Only the creation of a slot
/// has no limit: it waits for every transaction that runs.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);

/// Everything that a session has before the first frame.
pub struct Session {
    /// The configuration; of several hosts that are configured, with the primary that was found.
    pub config: Config,
    /// The rules as they are to this database; those that do not fit are suspended.
    pub rules: Bound,
    /// The gate's connection.
    pub gate: Rc<Sql>,
    /// The process that serves the stream, on the server that the slot is on.
    pub walsender: Option<Walsender>,
    /// The other SQL connections: to the primary, and the one that looks after the slot.
    pub server: SlotServer,
    /// Who says that what a standby sends is the primary's history.
    pub witness: Option<Witness<SqlStandby>>,
    /// The rules that do not fit, by name.
    pub suspended: BTreeSet<String>,
    /// The stream.
    pub slot: Slot,
    /// History and rules; the LSN is where the stream begins.
    pub expected: Watermark,
    /// Where the primary's log ended after the slot was taken.
    pub wal_end: Lsn,
    /// The fingerprints whose digest `expected` carries.
    pub prints: Prints,
    /// Set when the slot was created for this session.
    pub broken: Option<Broken>,
    /// Keys that the session before this one put in doubt.
    pub doubt: Doubt,
    /// When to speak and when to worry.
    pub timing: Timing,
    /// How the rules' tables were, and which rules fitted.
    pub watch: Watch,
}

/// How often a status is sent, and how long the server may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A status is sent at least this often.
    pub status: Duration,
    /// A server that sent nothing for this long, though asked to, is taken for dead.
    pub silence: Duration,
}

impl Timing {
    /// Follows the server's `wal_sender_timeout`, in milliseconds; 0 is off.
    fn new(wal_sender_timeout_ms: i64) -> Timing {
        let timeout = Duration::from_millis(u64::try_from(wal_sender_timeout_ms).unwrap_or(0));
        // A quarter leaves room for two lost or late ones before the server gives up.
        let status = (timeout / 4).clamp(Duration::from_millis(200), Duration::from_secs(10));
        let status = if timeout.is_zero() { Duration::from_secs(10) } else { status };
        Timing { status, silence: (status * 4).max(Duration::from_secs(15)) }
    }
}

/// Everything of a session that can be had while another one streams from the slot.
pub struct Prepared {
    /// The configuration; of several hosts that are configured, with the primary that was found.
    config: Config,
    /// Findings of the checks.
    pub(super) findings: Vec<Finding>,
    whose: Whose,
    bound: Bound,
    prints: Prints,
    watch: Watch,
    sql: Rc<Sql>,
    gate: Rc<Sql>,
    server: SlotServer,
    replication: Replication,
    history: History,
    primary: Server,
}

impl Prepared {
    /// Connects, checks, and suspends the rules that do not fit. If it `is_strict`, one rule that
    /// does not fit is refused like everything else; if it `is_first`, so is a slot that is
    /// probably another program's, for nothing is confirmed from it yet.
    ///
    /// # Errors
    ///
    /// What was refused, by whom; see [`Error`].
    pub async fn new(
        config: &Config,
        rules: &Rules,
        (is_strict, is_first): (bool, bool),
    ) -> Result<Prepared, Error> {
        let sql = Rc::new(connect_sql(&config.postgres.endpoint, WATCH_NAME).await?);
        tell_passed_over(&sql);
        // From here on nobody asks another server, whatever becomes of this one.
        let found = config.only(sql.address());
        let config = &found;
        let lookups = step(preflight::find_reads(config, rules, &sql)).await?;
        let (slot, publication) = (&config.postgres.slot, &config.postgres.publication);
        let tables = Watched::new(rules, &lookups, publication, slot);
        // Looked at before they are judged: what changes in between is a change. If that fails, the
        // checks may know why: they find poolers, which spoil every question.
        let shape = step(tables.look(&sql)).await;
        let (checked, whose) = checked(config, rules, &sql, (is_strict, is_first)).await?;
        let shape = shape?;
        let bound = bind(rules, &checked, (&shape, lookups));
        let prints = shape.prints(config, &bound);
        let (looks, findings) = ((tables, prints.clone()), checked.findings);
        let watch = Watch::new(Rc::clone(&sql), looks, &findings, rules);
        let (history, primary) = primary(&sql).await?;
        let gate = another(config, &primary, GATE_NAME).await?;
        let beside = another(config, &primary, slot_server::NAME).await?;
        let server = SlotServer::reach(&config.postgres, beside).await?;
        let replication = replicate(config, &history, &server).await?;
        let config = found;
        Ok(Prepared {
            config,
            findings,
            whose,
            bound,
            prints,
            watch,
            sql,
            gate,
            server,
            replication,
            history,
            primary,
        })
    }

    /// The server that it reached.
    pub(super) fn system_id(&self) -> &str {
        &self.history.system_id
    }

    /// Starts streaming from where the slot was confirmed; where `custody` says why the slot is to
    /// be given up, from a new one in its place, if it is shown that the old one may be dropped.
    /// With `whole` every transaction is sent at its commit, also those that outgrow the server's
    /// memory.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn start(
        self,
        (rules, health, is_first): (&Rules, &Health, bool),
        custody: &Custody,
        whole: bool,
    ) -> Result<Session, Error> {
        let Prepared { config, findings, whose, bound, prints, watch, .. } = self;
        let Prepared { sql, gate, server, mut replication, history, primary, .. } = self;
        // Found by an earlier session; this one has looked.
        health.over(&Topic::Checks);
        health.over(&Topic::Watch);
        tell_rules(rules, &findings, health);
        health.metrics().slot_is(&slot_label(&config, &history));
        let (slot, publication) = (&config.postgres.slot, &config.postgres.publication);
        let broken = ensure_slot(&config, &server, &mut replication, (health, custody)).await?;
        let streaming =
            if whole { Streaming::Off } else { Streaming::of_server(primary.version_num) };
        let options = StreamOptions { messages: rules.need_messages(), streaming };
        let started = step(replication.start(slot, publication, options)).await;
        let slot = unless_in_use(started, &config, &server).await?;
        // Only now nobody else can move the slot.
        let state = slot_state(&config, &server.sql).await?;
        if broken.is_none() {
            custody.begins(&whose, state.confirmed_flush_lsn);
        }
        // A standby that was started again may have replayed less than it had before.
        let wal_end =
            if server.is_standby() { step(server.wal_end()).await? } else { state.wal_end() };
        let witness = server.witness(&config.postgres, &history);
        let expected = Watermark {
            system_id: history.system_id,
            timeline: history.timeline,
            epoch: primary.epoch,
            lsn: state.confirmed_flush_lsn,
            rules: prints.digest(),
            of_stranger: custody.is_of_stranger(),
            is_unproven: false,
        };
        note_made(&config, broken, &expected).await;
        let patience = server.wal_sender_timeout_ms().unwrap_or(primary.wal_sender_timeout_ms);
        let timing = Timing::new(patience);
        for sql in [&sql, &server.primary] {
            step(sql.batch_execute(include_str!("../../sql/watch_state.sql"))).await?;
        }
        // They were found before; whose a slot is that was made since is no question.
        if is_first && !custody.has_made() {
            tell_doubts(&findings);
        }
        Ok(Session {
            config,
            rules: bound,
            walsender: state.walsender(),
            gate,
            server,
            witness,
            suspended: suspended(&findings),
            slot,
            expected,
            wal_end,
            prints,
            broken,
            doubt: Doubt::none(),
            timing,
            watch,
        })
    }
}

/// The rules as they are to the database that was checked. Those that do not fit it are suspended.
fn bind(rules: &Rules, checked: &Checked, (shape, lookups): (&Shape, Vec<Basis>)) -> Bound {
    let relations = shape.relations().map(|(oid, table)| (oid, table.clone())).collect();
    let suspended = suspended(&checked.findings);
    rules.bind(Binding { relations, suspended, ..checked.binding(lookups) })
}

/// Gives what the checks find, and whose the slot is at a first start; an error if that lets
/// nothing begin.
async fn checked(
    config: &Config,
    rules: &Rules,
    sql: &Sql,
    (is_strict, is_first): (bool, bool),
) -> Result<(Checked, Whose), Error> {
    let mut checked = step(preflight::postgres(config, rules, sql)).await?;
    let whose = match is_first {
        true => own::hold_against_redis(config, sql, &mut checked.findings).await,
        false => Whose::Ours,
    };
    match &whose {
        Whose::Unanswered => return Err(Error::SlotInDoubt(config.postgres.slot.clone())),
        // It may be free by the time that it would be read, and nobody knows whose it is.
        Whose::InUse(pid, name) => {
            let (pid, name) = (pid.to_string(), name.clone());
            return Err(Error::SlotInUse { pid, name, address: None, since: None });
        }
        Whose::Ours | Whose::Open | Whose::Taken => {}
    }
    let is_refused =
        |finding: &Finding| finding.stops_everything() || is_strict && finding.is_error();
    if checked.findings.iter().any(is_refused) {
        return Err(Error::Refused(checked.findings));
    }
    Ok((checked, whose))
}

/// Tells that the slot may be another program's, or is not recorded as walsweep's, with the SQL
/// that records it.
fn tell_doubts(report: &[Finding]) {
    for Finding { severity, message, hint, sql, .. } in preflight::doubts(report) {
        let sql = sql.as_ref().map(|sql| format!("{sql};"));
        let parts: Vec<String> = hint.clone().into_iter().chain(sql).collect();
        let hint = (!parts.is_empty()).then(|| parts.join(" "));
        match severity {
            Severity::Info => tracing::info!(hint, "{message}"),
            Severity::Warning | Severity::Error => tracing::warn!(hint, "{message}"),
        }
    }
}

/// The slot of a configuration on a server of this history, as the metrics tell of it.
pub(crate) fn slot_label(config: &Config, history: &History) -> SlotLabel {
    let (slot, database) =
        (config.postgres.slot.clone(), config.postgres.endpoint.database.clone());
    SlotLabel { slot, database, system_id: history.system_id.clone() }
}

/// Tells of the hosts that were tried before the primary. A standby among them is as it should be.
fn tell_passed_over(sql: &Sql) {
    let (primary, passed) = (sql.address(), sql.passed_over());
    let is_plain = passed.iter().all(|host| host.obstacle == Obstacle::Standby);
    match passed {
        [] => {}
        passed if is_plain => tracing::info!("the primary is `{primary}`; {}", listed(passed)),
        passed => tracing::warn!(
            hint = "a switchover to a host that walsweep cannot use is not followed",
            "the primary is `{primary}`; passed over: {}",
            listed(passed)
        ),
    }
}

/// Another connection, to the primary that was checked.
async fn another(
    config: &Config,
    primary: &Server,
    application_name: &str,
) -> Result<Rc<Sql>, Error> {
    let sql = connect_sql(&config.postgres.endpoint, application_name).await?;
    let found = step(identify(&sql)).await?;
    if (&found.history, &found.epoch) == (&primary.history, &primary.epoch) {
        return Ok(Rc::new(sql));
    }
    Err(Error::ManyPrimaries)
}

/// Looks for a dead connection of the gate, and says so.
pub async fn gate_is_dead(gate: &Client) -> Error {
    loop {
        sleep(GATE_INTERVAL).await;
        if let Err(error) = step(gate.batch_execute("")).await {
            return error;
        }
    }
}

/// A replication connection to the server that the slot is on, which has the primary's history.
async fn replicate(
    config: &Config,
    history: &History,
    server: &SlotServer,
) -> Result<Replication, Error> {
    let endpoint = &config.postgres.replication_endpoint;
    let mut replication = Replication::connect_to(endpoint, STREAM_NAME, history).await?;
    let identity = step(replication.identify_system()).await?;
    // A standby has the primary's identity, and none of its slots.
    server.accept(&step(replication.run()).await?)?;
    if identity.history != *history {
        let (sql, replication) = (history.to_string(), identity.history.to_string());
        return Err(Error::TwoServers { sql, replication });
    }
    step(replication.accept_any_bytes()).await?;
    Ok(replication)
}

/// One step of the beginning, which a peer that fell silent must not hold for ever.
pub(crate) async fn step<T, E: Into<Error>>(
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    match timeout(STEP_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_elapsed) => Err(source::Error::Silent(STEP_TIMEOUT.as_secs()).into()),
    }
}

/// Who the server behind `client` is, and the history that it writes.
///
/// # Errors
///
/// The query's; also if the server is a standby.
pub(crate) async fn primary(client: &Client) -> Result<(History, Server), Error> {
    let server = step(identify(client)).await?;
    Ok((server.history.clone().ok_or(Error::IsStandby)?, server))
}

/// Makes sure that there is a slot that can stream; says so if it had to be created. One that
/// another process streams from is that one's matter, unless it is lost; one that is not shown to
/// be walsweep's is not dropped, whatever is wrong with it.
async fn ensure_slot(
    config: &Config,
    server: &SlotServer,
    replication: &mut Replication,
    (health, custody): (&Health, &Custody),
) -> Result<Option<Broken>, Error> {
    let name = &config.postgres.slot;
    let broken = match step(slot_health::look(&server.sql, name)).await? {
        Some(state) => match give_up(config, server, replication, (health, custody), &state).await?
        {
            Some(broken) => broken,
            None => {
                enable_failover(config, &state, replication).await?;
                return Ok(None);
            }
        },
        None => {
            health.over(&Topic::SlotOwner);
            custody.give_up.take().unwrap_or(Broken::SlotCreated)
        }
    };
    if step(own::is_unshown_if_made(config, &server.primary)).await? {
        return Err(Error::SlotUnshown(name.clone()));
    }
    tracing::info!(slot = name, "creating the slot");
    // Postgres waits here until every transaction that runs now has ended.
    let kind = if config.postgres.failover { SlotKind::Failover } else { SlotKind::Plain };
    let created = tokio::select! {
        biased;
        created = server.create(replication.create_slot(name, kind)) => created,
        never = server.tell_what_a_slot_waits_for(health) => match never {},
    };
    health.over(&Topic::NewSlot);
    created?;
    custody.made();
    Ok(Some(broken))
}

/// Notes in Redis that the slot was made, if it was: a stop before the first watermark would leave
/// one that a person has to claim.
async fn note_made(config: &Config, broken: Option<Broken>, made: &Watermark) {
    if broken.is_none() {
        return;
    }
    // Each in a time of its own, none after another that is away.
    let noted = config.redis.iter().map(async |redis| {
        let key = key_name(&redis.prefix, &config.postgres.slot);
        if let Err(error) = sweep::note_made(redis, &key, made).await {
            tracing::debug!(%error, "{} does not know that walsweep made the slot", redis.title());
        }
    });
    join_all(noted).await;
}

/// Drops a slot that is lost, or that is to be given up and is nobody's at the moment; gives why a
/// new one is made. `None` if the slot is to be read.
///
/// # Errors
///
/// [`source::Error::SlotNotOwn`]: it cannot be read, and nothing shows that it may be dropped.
async fn give_up(
    config: &Config,
    server: &SlotServer,
    replication: &mut Replication,
    (health, custody): (&Health, &Custody),
    state: &SlotState,
) -> Result<Option<Broken>, Error> {
    let name = &config.postgres.slot;
    let lost = state.lost_because();
    let (broken, why) = match (lost, custody.give_up.get()) {
        (Some(cause), _) => (Broken::SlotCreated, format!("is lost ({cause})")),
        (None, Some(Broken::RetainedWal)) if state.active_pid.is_none() => {
            (Broken::RetainedWal, "keeps too much WAL".to_owned())
        }
        (None, Some(why)) if state.active_pid.is_none() => {
            (why, "has to be given up, for no session gets past what it holds".to_owned())
        }
        _ => {
            health.over(&Topic::SlotOwner);
            return Ok(None);
        }
    };
    let Some(own) = step(own::evidence(config, custody, health, server, &why)).await? else {
        if broken == Broken::RetainedWal {
            // It can be read, and while it is, keys go.
            custody.give_up.set(None);
            return Ok(None);
        }
        return Err(source::Error::SlotNotOwn(name.clone()).into());
    };
    match lost {
        Some(cause) => {
            tracing::warn!(slot = name, cause, "the slot is lost; creating it anew");
        }
        None => tracing::error!(
            slot = name,
            "{}: dropping it and creating it anew; what was not removed is made good by sweeping \
             everything",
            given_up_because(broken)
        ),
    }
    step(own::drop_slot(own, Over::Replication(replication))).await?;
    custody.give_up.set(None);
    Ok(Some(broken))
}

/// Why a slot is given up, for the log.
fn given_up_because(why: Broken) -> &'static str {
    match why {
        Broken::RetainedWal => "the slot keeps too much WAL",
        _ => "no session gets past what the slot holds",
    }
}

/// Makes a slot from before `failover` was set what it would be now. Nobody can while another
/// process streams from it; that one's walsweep has the same to do.
async fn enable_failover(
    config: &Config,
    state: &SlotState,
    replication: &mut Replication,
) -> Result<(), Error> {
    let is_due = config.postgres.failover && state.failover == Some(false);
    if !is_due || state.active_pid.is_some() {
        return Ok(());
    }
    let name = &config.postgres.slot;
    match step(replication.enable_failover(name)).await {
        Err(error) if error.finds_slot_active() => Ok(()),
        done => done.map(|()| tracing::info!(slot = name, "standbys may keep a copy of the slot")),
    }
}

async fn slot_state(config: &Config, client: &Client) -> Result<SlotState, Error> {
    step(slot_health::look(client, &config.postgres.slot))
        .await?
        .ok_or(source::Error::SlotGone.into())
}

/// The stream; if another process has the slot, who that is.
async fn unless_in_use(
    started: Result<Slot, Error>,
    config: &Config,
    server: &SlotServer,
) -> Result<Slot, Error> {
    match started {
        Err(error) if error.finds_slot_active() => Err(in_use(config, &server.sql).await?),
        started => started,
    }
}

/// Who has the slot.
async fn in_use(config: &Config, client: &Client) -> Result<Error, Error> {
    let state = slot_state(config, client).await?;
    let pid = state.active_pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
    let name = state.active_name.unwrap_or_else(|| "unknown".to_owned());
    let (address, since) = (state.active_address, state.active_since);
    Ok(Error::SlotInUse { pid, name, address, since })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Timing;

    #[test]
    fn statuses_follow_the_servers_timeout() {
        for (timeout_ms, status_ms, silence_ms) in [
            (60_000, 10_000, 40_000),
            (10_000, 2_500, 15_000),
            (400, 200, 15_000),
            (0, 10_000, 40_000),
        ] {
            let timing = Timing::new(timeout_ms);
            assert_eq!(timing.status, Duration::from_millis(status_ms), "{timeout_ms}");
            assert_eq!(timing.silence, Duration::from_millis(silence_ms), "{timeout_ms}");
        }
    }
}
