//! Whose the slot is: what has to be shown before `run` drops one.
//!
//! A slot bears no mark, neither an owner nor a comment, and what another program has not read of
//! its own is lost for good once that is dropped. `run` reads whatever slot the configuration
//! names, as the operator wants it to. It drops one only with an [`Own`], which this file alone
//! makes, of one of three proofs:
//!
//! - the comment on walsweep's own publication claims the slot;
//! - this process made it, and has not seen it gone, or with somebody else, since;
//! - Redis has a watermark of this slot and this cluster that is not behind the slot's
//!   `confirmed_flush_lsn`: walsweep writes it before it confirms, so nobody else moved the slot.
//!   One that was made anew under the same name begins behind whatever was confirmed before; and a
//!   watermark beyond the end of the log is of a history that a restored server has not.
//!
//! A Redis that does not answer shows nothing.

use std::cell::Cell;
use std::fmt;

use postgres_protocol::escape::escape_literal;
use tokio_postgres::Client;

use crate::capture::Replication;
use crate::config::{Config, Postgres, SlotOn};
use crate::lsn::Lsn;
use crate::postgres::statement::render;
use crate::postgres::{connect_sql, identify};
use crate::preflight::{self, Finding, Memory};
use crate::source::slot_health::SAMPLE_TIMEOUT;
use crate::source::slot_server::{NAME, SlotServer};
use crate::source::{Error, within};
use crate::sweep::{Broken, key_name, standing};
use crate::telemetry::{Health, Topic};

/// What a process keeps in mind of its slot, over all its sessions.
#[derive(Debug, Default)]
pub struct Custody {
    /// Why the slot is to be given up for a new one; taken back once that is done.
    pub give_up: Cell<Option<Broken>>,
    is_made: Cell<bool>,
    /// Where it stood when this process began to read it, if nothing showed then whose it is.
    strange_at: Cell<Option<Lsn>>,
    is_told: Cell<bool>,
}

impl Custody {
    /// This process has just made the slot.
    pub fn made(&self) {
        self.is_made.set(true);
        self.strange_at.set(None);
    }

    /// This process begins to read a slot that stands at `confirmed`, and of which nothing shows
    /// whose it is. The watermark that it will write at this place shows nothing either.
    pub fn reads_stranger(&self, confirmed: Lsn) {
        self.strange_at.set(Some(confirmed));
    }

    /// The slot is gone, or another process has it: whichever is there next, somebody else may
    /// have made.
    pub fn lost(&self) {
        self.is_made.set(false);
    }
}

/// Shows that a slot is walsweep's, as it stood when that was asked.
#[derive(Debug)]
pub struct Own {
    slot: String,
    confirmed: Lsn,
}

/// The connection over which a slot is dropped.
pub enum Over<'a> {
    /// A replication connection to the server that the slot is on.
    Replication(&'a mut Replication),
    /// An ordinary one to the same server.
    Sql(&'a Client),
}

/// What the watermark in Redis says of a slot.
#[derive(Debug)]
pub enum Said {
    /// It is here, not behind the slot: walsweep read the slot, and nobody else moved it since.
    Read(Lsn),
    /// It is here, behind the slot: somebody else moved that, or made it anew, or Redis lost the
    /// watermark's last value.
    Behind(Lsn),
    /// It is here, beyond the end of the log: it is of a history that this server, which was
    /// restored from an older state, does not have.
    Ahead(Lsn),
    /// It is here because this process wrote it when it began, and has not moved the slot since.
    Unmoved(Lsn),
    /// There is none of this slot's name and this cluster.
    Nothing,
    /// Redis did not answer, and why not.
    Unanswered(String),
}

impl fmt::Display for Said {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Said::Read(lsn) => write!(formatter, "redis has its watermark, at {lsn}"),
            Said::Behind(lsn) => write!(
                formatter,
                "the watermark in redis is behind it, at {lsn}: somebody else moved the slot, or \
                 made it anew, or redis lost what came after"
            ),
            Said::Ahead(lsn) => write!(
                formatter,
                "the watermark in redis, at {lsn}, is beyond the end of this server's log: the \
                 server was restored from an older state"
            ),
            Said::Unmoved(lsn) => {
                write!(formatter, "the watermark in redis, at {lsn}, says no more")
            }
            Said::Nothing => formatter.write_str("redis has no watermark of it"),
            Said::Unanswered(why) => write!(formatter, "redis does not answer: {why}"),
        }
    }
}

/// Asks Redis for the watermark of the slot, which stands at `confirmed` in the cluster
/// `system_id`; `primary` is its primary. The slot has to be looked at before, and the end of the
/// log is after: a watermark that is in use grows meanwhile.
///
/// # Errors
///
/// The question's to the primary.
pub async fn ask_redis(
    config: &Config,
    (primary, system_id): (&Client, &str),
    confirmed: Lsn,
) -> Result<Said, tokio_postgres::Error> {
    // Boxed: a connection to Redis is a large future, and this one is seldom polled.
    let mark = match Box::pin(standing(&config.redis, &key_name(&config.postgres.slot))).await {
        Err(error) => return Ok(Said::Unanswered(error.to_string())),
        Ok(Some(mark)) if mark.system_id == system_id => mark,
        Ok(_) => return Ok(Said::Nothing),
    };
    let row = primary.query_one(include_str!("../../sql/wal_end.sql"), &[]).await?;
    let wal_end: Lsn = row.try_get::<_, &str>(0)?.parse().unwrap_or_default();
    Ok(match mark.lsn {
        lsn if lsn > wal_end => Said::Ahead(lsn),
        lsn if lsn >= confirmed => Said::Read(lsn),
        lsn => Said::Behind(lsn),
    })
}

/// A slot of the configured name.
struct Found {
    /// Whether it is of the kind of walsweep's and of this database.
    is_fit: bool,
    /// What it is, for messages.
    what: String,
    confirmed: Lsn,
}

/// The slot of the configured name on the server behind `client`, if there is one.
async fn find(config: &Config, client: &Client) -> Result<Option<Found>, tokio_postgres::Error> {
    let query = include_str!("../../sql/setup/slot_holder.sql");
    let Some(row) = client.query_opt(query, &[&config.postgres.slot]).await? else {
        return Ok(None);
    };
    let confirmed: &str = row.try_get(4)?;
    let confirmed = confirmed.parse().unwrap_or_default();
    Ok(Some(Found { is_fit: row.try_get(2)?, what: row.try_get(3)?, confirmed }))
}

/// Why it is not shown that the slot is walsweep's.
struct Unshown {
    found: Found,
    /// Who owns the publication, if that is walsweep's.
    owner: Option<String>,
    said: Said,
}

/// Asks for one of the proofs; `None` without a slot.
async fn show(
    config: &Config,
    custody: &Custody,
    server: &SlotServer,
) -> Result<Option<Result<Own, Unshown>>, tokio_postgres::Error> {
    let Postgres { slot, publication, .. } = &config.postgres;
    let Some(found) = find(config, &server.sql).await? else { return Ok(None) };
    let own = || Own { slot: slot.clone(), confirmed: found.confirmed };
    if !found.is_fit {
        return Ok(Some(Err(Unshown { found, owner: None, said: Said::Nothing })));
    }
    if custody.is_made.get() {
        return Ok(Some(Ok(own())));
    }
    let question = include_str!("../../sql/setup/publication_mark.sql");
    let mark = server.primary.query_opt(question, &[publication]).await?;
    let comment = mark.as_ref().map(|row| row.try_get::<_, Option<&str>>(1)).transpose()?;
    let memory = Memory::read(comment.flatten());
    if memory.as_ref().is_some_and(|memory| memory.claims(slot)) {
        return Ok(Some(Ok(own())));
    }
    let history = identify(&server.primary).await?.history;
    let said = match history {
        Some(history) => {
            ask_redis(config, (&server.primary, &history.system_id), found.confirmed).await?
        }
        None => Said::Nothing,
    };
    let is_unmoved = custody.strange_at.get().is_some_and(|at| found.confirmed <= at);
    let said = match said {
        Said::Read(lsn) if is_unmoved => Said::Unmoved(lsn),
        said => said,
    };
    if let Said::Read(_) = said {
        return Ok(Some(Ok(own())));
    }
    let owner = mark.filter(|_| memory.is_some()).map(|row| row.try_get(0)).transpose()?;
    Ok(Some(Err(Unshown { found, owner, said })))
}

/// The evidence that the slot, which has to go because of `why`, may be dropped. `None` if there is
/// none: that is told, until there is, with what a person can do.
///
/// # Errors
///
/// A query's; no answer in time.
pub async fn evidence(
    config: &Config,
    custody: &Custody,
    health: &Health,
    server: &SlotServer,
    why: &str,
) -> Result<Option<Own>, Error> {
    let unshown = match within(SAMPLE_TIMEOUT, show(config, custody, server)).await? {
        Some(Ok(own)) => {
            custody.is_told.set(false);
            health.over(&Topic::SlotOwner);
            return Ok(Some(own));
        }
        Some(Err(unshown)) => unshown,
        None => return Ok(None),
    };
    let (text, hint) = told(&config.postgres, &unshown, why);
    if !custody.is_told.replace(true) {
        let slot = &config.postgres.slot;
        tracing::error!(slot, why, "the slot is not dropped: it may be another program's");
    }
    health.trouble(Topic::SlotOwner, &text, Some(&hint));
    Ok(None)
}

/// What is said of a slot that has to go and may be another program's; and what a person can do.
fn told(config: &Postgres, unshown: &Unshown, why: &str) -> (String, String) {
    let Postgres { slot, publication, .. } = config;
    let Unshown { found: Found { is_fit, what, confirmed }, owner, said } = unshown;
    let other = "if another program reads it, let `postgres.slot` name another one";
    if !is_fit {
        let text = format!("slot `{slot}` {why}, and is not dropped: it is {what}");
        return (text, other.to_owned());
    }
    let text = format!(
        "slot `{slot}` {why}, and is not dropped, for it may be another program's: publication \
         `{publication}` does not record it as walsweep's, this process did not make it, and of \
         its confirmed_flush_lsn {confirmed} {said}"
    );
    let drop = preflight::drop_slot(slot);
    let (role, place) = match config.slot_on {
        SlotOn::Primary => (&config.replication_endpoint.user, ""),
        SlotOn::Standby => (&config.replication_endpoint.user, " on the standby"),
    };
    let mut hint = format!(
        "{other}; if none does, stop walsweep, drop it{place} as `{role}`, or as another role with \
         REPLICATION: `{drop};`, and start walsweep, which makes it anew and sweeps everything"
    );
    if let Some(owner) = owner {
        hint.push_str(&format!(
            "; or record it as `{owner}`, who owns the publication, or as a superuser: `walsweep \
             check` prints the SQL"
        ));
    }
    if let Said::Unanswered(_) = said {
        hint.insert_str(0, "see that Redis runs and lets walsweep in; ");
    }
    (text, hint)
}

/// Drops the slot. The evidence is used up by it.
///
/// # Errors
///
/// [`Error::SlotNotOwn`]: it is not where it was any more, and stays. The statement's; no answer in
/// time.
pub async fn drop_slot(own: Own, over: Over<'_>) -> Result<(), Error> {
    let Own { slot, confirmed } = own;
    let (name, confirmed) = (escape_literal(&slot), escape_literal(&confirmed.to_string()));
    let file = include_str!("../../sql/drop_own_slot.sql");
    let statement = render(file, &[("slot", name.trim_start()), ("confirmed", &confirmed)]);
    let is_dropped = match over {
        Over::Sql(client) => {
            within(SAMPLE_TIMEOUT, client.query_opt(&statement, &[])).await?.is_some()
        }
        Over::Replication(replication) => {
            let doing = format!("drop slot `{slot}`");
            let dropping = replication.query_row(&doing, &statement);
            !within(SAMPLE_TIMEOUT, dropping).await?.is_empty()
        }
    };
    if is_dropped { Ok(()) } else { Err(Error::SlotNotOwn(slot)) }
}

/// Whose a slot is that is about to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Walsweep's, as is shown; or there is none yet.
    Ours,
    /// Nothing shows it; it is read if the findings do not refuse it.
    Open,
    /// Redis would show it, and does not answer.
    Unanswered,
}

/// Holds what is found of a slot that nothing claims against Redis: see
/// [`preflight::weigh_unclaimed`]. Redis is not asked of any other slot.
pub async fn hold_against_redis(
    config: &Config,
    primary: &Client,
    findings: &mut [Finding],
) -> Whose {
    if preflight::doubts(findings).next().is_none() {
        return Whose::Ours;
    }
    let was_read = was_read(config, primary).await;
    let is_known = preflight::weigh_unclaimed(&config.postgres, findings, was_read);
    match (is_known, was_read) {
        (false, _) => Whose::Unanswered,
        (true, Some(true)) => Whose::Ours,
        (true, _) => Whose::Open,
    }
}

/// Whether a walsweep with this Redis has read the slot, and nobody else since; `None` if that
/// cannot be asked.
async fn was_read(config: &Config, primary: &Client) -> Option<bool> {
    let standby = match config.postgres.slot_on {
        SlotOn::Primary => None,
        SlotOn::Standby => Some(connect_sql(&config.postgres.replication_endpoint, NAME).await),
    };
    let standby = standby.transpose().ok()?;
    let holder = standby.as_ref().map_or(primary, |standby| standby);
    let confirmed = find(config, holder).await.ok()??.confirmed;
    let history = identify(primary).await.ok()?.history?;
    match ask_redis(config, (primary, &history.system_id), confirmed).await.ok()? {
        Said::Read(_) => Some(true),
        Said::Behind(_) | Said::Ahead(_) | Said::Unmoved(_) | Said::Nothing => Some(false),
        Said::Unanswered(_) => None,
    }
}
