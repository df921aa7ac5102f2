//! `walsweep setup` and `walsweep teardown`: what a database needs, made or printed, and removed.
//!
//! Nothing is known here of what is needed: the checks before the start find what is missing, and
//! each of their errors carries its cure (`plan`). Warnings are left to a person.
//!
//! A statement of the application may wait behind ours, up to 2 s at a time: ALTER TABLE … REPLICA
//! IDENTITY waits for all readers of its table, and all who come later wait behind it. So each
//! statement gives its place up after 2 s, and is tried again when 2 more have gone by (`hands`).
//! None makes the application fail (I10): identities are there before their table is published, a
//! full one is not set where another publication does not go with it, and a publication that
//! somebody else made is neither altered nor dropped.

mod hands;
mod plan;
mod role;
mod script;
mod teardown;

use std::collections::BTreeSet;
use std::fmt;

use tokio_postgres::error::SqlState;

use crate::config::{Config, SlotOn, TableName};
use crate::keys::Rules;
use crate::postgres::{Sql, connect_sql};
use crate::preflight::{self, Does, Finding, Memory, Step};
use crate::source::slot_server::{caught_up, nudge};

pub use self::hands::Hands;
pub use self::plan::{Mark, Plan, plan};
pub use self::role::missing as role_missing;
pub use self::script::{script, script_without_login};
pub use self::teardown::{teardown, teardown_script};

/// `application_name` of the connection to the standby that the slot is on.
const NAME: &str = "walsweep command";

/// How often the checks are made again after their cures. A cure may show what it uncovers, such as
/// the slot that has to follow the publication; nothing uncovers more than that.
const ROUNDS_MAX: usize = 3;

/// A transaction, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The transaction.
    pub step: Step,
    /// What it cures, in one line.
    pub why: String,
}

impl Statement {
    /// Whether it is of the slot, which may be on a standby; all else is the primary's.
    fn is_of_slot(&self) -> bool {
        self.step.does == Does::Slot
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}{};", script::comment(&self.why), self.step.sql)
    }
}

/// What `setup` did, and what it left.
#[derive(Debug, Default)]
pub struct Done {
    /// Transactions, in their order; none if nothing was missing.
    pub statements: Vec<Statement>,
    /// What no SQL cures of some rules: the others are set up.
    pub left: Vec<Finding>,
}

/// Why a database could not be set up or cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checks could not be made.
    #[error("check the database: {0}")]
    Preflight(#[from] preflight::Error),
    /// Something is wrong that no statement cures; nothing was changed.
    #[error("set up the database: no SQL cures this, and nothing was changed:{}", list(.0))]
    Incurable(Vec<Finding>),
    /// The publication is somebody else's, and lacks something; nothing was changed.
    #[error(
        "set up the database: publication `{publication}` was not made by `walsweep setup`, and \
         lacks something; nothing was changed:{}", list(.findings)
    )]
    Foreign {
        /// The publication.
        publication: String,
        /// What it lacks, with the SQL for whoever owns it.
        findings: Vec<Finding>,
    },
    /// The cures were applied, and yet there are errors.
    #[error("set up the database: still wrong:{}", list(.0))]
    Uncured(Vec<Finding>),
    /// A statement was refused; those before it stay.
    #[error("run `{sql}`: {}", preflight::message(.source))]
    Statement {
        /// The statement.
        sql: String,
        /// What Postgres said.
        source: tokio_postgres::Error,
    },
    /// A lock was not to be had; the statements before it stay.
    #[error("run `{sql}`: the lock was not to be had in {attempts} attempts: {holders}")]
    Locked {
        /// The statement.
        sql: String,
        /// How often it was tried.
        attempts: u32,
        /// Who has it.
        holders: String,
    },
    /// Somebody asked to stop. Of this statement nothing is left on the server.
    #[error("stopped: `{0}` was canceled; what was done before it stays")]
    Stopped(String),
    /// The standby that the slot is on cannot be reached.
    #[error("ask the standby of `postgres.replication_url`: {0}")]
    Standby(#[from] crate::postgres::Error),
    /// The standby is late, so that a slot there would begin before what it needs.
    #[error("create the slot: the standby has not replayed what the primary wrote 20 s ago")]
    StandbyBehind,
    /// The slot of that name is another program's. Nothing was changed.
    #[error("drop slot `{slot}`: it is {what}, and not walsweep's of this database")]
    SlotForeign {
        /// The slot.
        slot: String,
        /// What it is.
        what: String,
    },
    /// The slot cannot be dropped while somebody streams from it.
    #[error("drop slot `{slot}`: process {pid} (`{name}`) streams from it")]
    SlotActive {
        /// The slot.
        slot: String,
        /// The process on the server.
        pid: i32,
        /// Its `application_name`.
        name: String,
    },
    /// What is to be dropped is partly somebody else's. Nothing was dropped.
    #[error("drop {}: role `{role}` does not own it; nothing was dropped", .what.join(", "))]
    NotOwner {
        /// Who asks.
        role: String,
        /// What it may not drop, each with its owner.
        what: Vec<String>,
    },
    /// `teardown` came no further; what it did before stays done.
    #[error("{}{cause}", .done.iter().map(|line| format!("{line}; then: ")).collect::<String>())]
    Teardown {
        /// A line about each thing that was dropped, left, or not found.
        done: Vec<String>,
        /// Why it ended.
        cause: Box<Error>,
    },
}

impl Error {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::SlotActive { .. } => Some("stop walsweep first"),
            Error::NotOwner { .. } => Some(
                "`walsweep teardown --as URL` drops it with the owner's login, or a superuser's",
            ),
            Error::Teardown { cause, .. } => match &**cause {
                Error::Statement { .. } => Some(
                    "`walsweep teardown --print` shows the SQL, and `walsweep teardown --as URL` \
                     runs it as a role that may",
                ),
                cause => cause.hint(),
            },
            Error::SlotForeign { .. } => Some("let `postgres.slot` name walsweep's own"),
            Error::Statement { .. } => Some(
                "`walsweep setup --print` shows the SQL for a role that may run it, and `walsweep \
                 setup --as URL` runs it as that role",
            ),
            Error::Locked { .. } => Some("run it again: what is done already is not done twice"),
            Error::Foreign { .. } => Some(
                "let its owner run that SQL, or let `postgres.publication` name another; `walsweep \
                 check` prints what hands it over to walsweep",
            ),
            Error::StandbyBehind => Some("see that it follows the primary"),
            Error::Standby(_)
            | Error::Stopped(_)
            | Error::Preflight(_)
            | Error::Incurable(_)
            | Error::Uncured(_) => None,
        }
    }
}

impl Error {
    /// Whether the role lacks a right.
    fn is_denied(&self) -> bool {
        let denied = &SqlState::INSUFFICIENT_PRIVILEGE;
        matches!(self, Error::Statement { source, .. } if source.code() == Some(denied))
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Error {
        Error::Preflight(preflight::Error::Query(error))
    }
}

/// Findings, each on a line of its own.
pub(crate) fn list(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("\n{finding}")).collect()
}

/// Makes what is missing, statement by statement, and gives what it did. What SQL cannot cure of
/// some rules is left: the others need not wait for it.
///
/// # Errors
///
/// When something is wrong that SQL cannot cure, with everything or with a table that would be
/// published all the same, or the publication is somebody else's and lacks something (nothing is
/// changed then), when a statement is refused, or somebody asks to stop.
pub async fn setup(config: &Config, rules: &mut Rules, hands: &Hands<'_>) -> Result<Done, Error> {
    hands.prepare().await?;
    let (mut done, mut is_slot_left) = (Vec::new(), false);
    for _ in 0..ROUNDS_MAX {
        let findings = preflight::postgres(config, rules, hands.client).await?;
        let incurable = |finding: &&Finding| finding.is_error() && finding.sql.is_none();
        let left: Vec<Finding> = findings.iter().filter(incurable).cloned().collect();
        let is_left = |name: &String| left.iter().any(|one| one.concerns().any(|of| of == name));
        if left.iter().any(Finding::stops_everything) || rules.names().iter().all(is_left) {
            return Err(Error::Incurable(left));
        }
        let mark = mark(config, hands).await?;
        let Plan { statements, advised } = plan(config, &findings, &mark);
        if publishes_unwritable(config, &left, &statements) {
            return Err(Error::Incurable(left));
        }
        if !advised.is_empty() {
            let publication = config.postgres.publication.clone();
            return Err(Error::Foreign { publication, findings: advised });
        }
        let is_open = |statement: &Statement| !(is_slot_left && statement.is_of_slot());
        let statements: Vec<Statement> = statements.into_iter().filter(is_open).collect();
        if statements.is_empty() {
            return Ok(Done { statements: done, left });
        }
        for statement in statements {
            if !statement.is_of_slot() {
                hands.run(&statement.step).await?;
            } else if let Some(standby) = slot_standby(config).await? {
                create_slot(config, hands, &standby, &statement.step).await?;
            } else if let Err(error) = hands.with_slot(&statement.step).await {
                if !error.is_denied() || hands.is_of(&config.postgres.replication_endpoint.user) {
                    return Err(error);
                }
                // An owner need not be one who replicates.
                tracing::info!("the slot is left to `walsweep run`: this role may not create it");
                is_slot_left = true;
                continue;
            }
            done.push(statement);
        }
    }
    let mut findings = preflight::postgres(config, rules, hands.client).await?;
    findings.retain(Finding::is_error);
    let (uncured, left): (Vec<Finding>, Vec<Finding>) =
        findings.into_iter().partition(|one| one.sql.is_some() || one.stops_everything());
    if uncured.is_empty() {
        return Ok(Done { statements: done, left });
    }
    Err(Error::Uncured(uncured))
}

/// Findings that no SQL cures, and that stand for UPDATE and DELETE which fail once the table is
/// published: of heirs without an identity of their own, and with a generated column in one.
const UNWRITABLE: [&str; 2] = ["inheritance", "generated_identity"];

/// Whether a table would be published, for a rule that is left, whose rows could then not be
/// changed any more.
fn publishes_unwritable(config: &Config, left: &[Finding], statements: &[Statement]) -> bool {
    let unwritable = left.iter().filter(|one| UNWRITABLE.contains(&one.code));
    let rules: BTreeSet<&str> = unwritable.flat_map(Finding::concerns).collect();
    let rules = config.rules.iter().filter(|rule| rules.contains(rule.name.as_str()));
    let tables: BTreeSet<&TableName> = rules.map(|rule| &rule.table).collect();
    statements.iter().any(|one| one.step.does.publishes_any(&tables))
}

/// Does what is needed before anything else, such as to create the role.
///
/// # Errors
///
/// The statement's; see [`Error`].
pub async fn run(hands: &Hands<'_>, statement: &Statement) -> Result<(), Error> {
    hands.run(&statement.step).await
}

/// Whose the publication is.
async fn mark(config: &Config, hands: &Hands<'_>) -> Result<Mark, Error> {
    let question = include_str!("../../sql/setup/publication_mark.sql");
    let row = hands.client.query_opt(question, &[&config.postgres.publication]).await?;
    let Some(row) = row else { return Ok(Mark::Missing) };
    let (owner, comment): (String, Option<&str>) = (row.try_get(0)?, row.try_get(1)?);
    Ok(Memory::read(comment).map_or(Mark::Foreign(owner), Mark::Ours))
}

/// A connection to the standby that the slot is on; `None` if that is the primary.
async fn slot_standby(config: &Config) -> Result<Option<Sql>, Error> {
    match config.postgres.slot_on {
        SlotOn::Primary => Ok(None),
        SlotOn::Standby => {
            Ok(Some(connect_sql(&config.postgres.replication_endpoint, NAME).await?))
        }
    }
}

/// Creates the slot on a standby, with the primary's help.
async fn create_slot(
    config: &Config,
    primary: &Hands<'_>,
    standby: &Sql,
    step: &Step,
) -> Result<(), Error> {
    if !caught_up(primary.client, standby).await? {
        return Err(Error::StandbyBehind);
    }
    let endpoint = &config.postgres.replication_endpoint;
    let there = Hands { client: standby, endpoint, stop: primary.stop.clone() };
    there.prepare().await?;
    tokio::select! {
        biased;
        created = there.with_slot(step) => created,
        source = nudge(primary.client) => {
            Err(Error::Statement { sql: step.sql.clone(), source })
        }
    }
}
