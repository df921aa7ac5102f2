//! `walsweep setup` and `walsweep teardown`: what a database needs, made or printed, and removed.
//!
//! Nothing is known here of what is needed: the checks before the start find what is missing, and
//! each of their errors carries its cure. Warnings keep their price until a person decides.

use std::fmt;

use tokio_postgres::Client;

use postgres_protocol::escape::escape_identifier;

use crate::config::{Config, SlotOn};
use crate::keys::Rules;
use crate::postgres::{Sql, connect_sql};
use crate::preflight::{self, Finding, render};
use crate::slot_server::{caught_up, nudge, patiently};

/// `application_name` of the connection to the standby that the slot is on.
const NAME: &str = "walsweep command";

/// How often the checks are made again after their cures. A cure may show what it uncovers, such as
/// the slot that has to follow the publication; nothing uncovers more than that.
const ROUNDS_MAX: usize = 3;

/// What is no error and yet to be done: the slot, which `run` makes otherwise, and whole tables
/// where the configuration asks for them.
const DONE_TOO: [&str; 2] = ["slot_missing", "narrowed"];

/// One statement, or several that belong in one transaction, without the last semicolon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The SQL.
    pub sql: String,
    /// What it cures, what that costs and how it is undone: one line, or two.
    pub why: String,
    /// Whether it is of the slot, which may be on a standby; all else is the primary's.
    pub is_of_slot: bool,
}

impl fmt::Display for Statement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}{};", comment(&self.why), self.sql)
    }
}

/// Why a database could not be set up or cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checks could not be made.
    #[error("check the database: {0}")]
    Preflight(#[from] preflight::Error),
    /// Something is wrong that no statement cures; nothing was changed.
    #[error("set up the database: no SQL cures this:{}", list(.0))]
    Incurable(Vec<Finding>),
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
}

impl Error {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::SlotActive { .. } => Some("stop walsweep first"),
            Error::SlotForeign { .. } => Some("let `postgres.slot` name walsweep's own"),
            Error::Statement { .. } => {
                Some("`walsweep setup --print` shows the SQL for a role that may run it")
            }
            Error::StandbyBehind => Some("see that it follows the primary"),
            Error::Standby(_) | Error::Preflight(_) | Error::Incurable(_) | Error::Uncured(_) => {
                None
            }
        }
    }
}

fn list(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("\n{finding}")).collect()
}

/// The cures of the findings that keep walsweep from running, and the slot, each statement once.
///
/// The order is one in which no write of the application fails in between: column lists, which a
/// full replica identity does not allow, and generated columns, which it asks for, go first;
/// identities are there before anything is published. The slot follows the publication, which the
/// server looks up as of each change that it decodes.
#[must_use]
pub fn plan(findings: &[Finding]) -> Vec<Statement> {
    let is_done = |one: &&Finding| one.is_error() || DONE_TOO.contains(&one.code);
    let cured = findings.iter().filter(is_done);
    let mut ranked: Vec<(u8, Statement)> = Vec::new();
    for finding in cured {
        let Some(sql) = finding.sql.clone() else { continue };
        if ranked.iter().all(|(_, known)| known.sql != sql) {
            let price = finding.price.iter().map(|price| format!("\nPrice: {price}"));
            let why = std::iter::once(finding.message.clone()).chain(price).collect();
            let is_of_slot = SLOT_CODES.contains(&finding.code);
            ranked.push((rank(finding.code), Statement { sql, why, is_of_slot }));
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, statement)| statement).collect()
}

/// Findings whose cure is run where the slot is.
const SLOT_CODES: [&str; 2] = ["slot_missing", "slot_before_publication"];

fn rank(code: &str) -> u8 {
    match code {
        "replication_role" => 0,
        "column_list" | "column_not_published" | "generated_identity" => 1,
        "replica_identity" | "no_identity" | "partition_identity" => 2,
        code if SLOT_CODES.contains(&code) => 4,
        _ => 3,
    }
}

/// Makes what is missing, statement by statement, and gives what it did; nothing if nothing was
/// missing.
///
/// # Errors
///
/// When something is wrong that SQL cannot cure (nothing is changed then), or a statement is
/// refused.
pub async fn setup(
    config: &Config,
    rules: &mut Rules,
    client: &Client,
) -> Result<Vec<Statement>, Error> {
    let mut done = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let findings = preflight::postgres(config, rules, client).await?;
        let incurable = |finding: &&Finding| finding.is_error() && finding.sql.is_none();
        let incurable: Vec<Finding> = findings.iter().filter(incurable).cloned().collect();
        if !incurable.is_empty() {
            return Err(Error::Incurable(incurable));
        }
        let statements = plan(&findings);
        if statements.is_empty() {
            return Ok(done);
        }
        for statement in statements {
            if !statement.is_of_slot {
                run(client, &statement.sql).await?;
            } else if let Some(standby) = slot_standby(config).await? {
                create_slot(client, &standby, &statement.sql).await?;
            } else {
                patiently(run(client, &statement.sql)).await?;
            }
            done.push(statement);
        }
    }
    let mut findings = preflight::postgres(config, rules, client).await?;
    findings.retain(Finding::is_error);
    if findings.is_empty() { Ok(done) } else { Err(Error::Uncured(findings)) }
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
async fn create_slot(primary: &Client, standby: &Client, sql: &str) -> Result<(), Error> {
    if !caught_up(primary, standby).await.map_err(preflight::Error::from)? {
        return Err(Error::StandbyBehind);
    }
    tokio::select! {
        biased;
        created = patiently(run(standby, sql)) => created,
        source = nudge(primary) => Err(Error::Statement { sql: sql.to_owned(), source }),
    }
}

async fn run(client: &Client, sql: &str) -> Result<(), Error> {
    let Err(source) = client.batch_execute(sql).await else { return Ok(()) };
    // One with a transaction of its own leaves it open. This first error is the one to tell.
    drop(client.batch_execute("rollback").await);
    Err(Error::Statement { sql: sql.to_owned(), source })
}

/// The same as a script for psql, with comments; changes nothing.
///
/// # Errors
///
/// When the checks cannot be made.
pub async fn script(config: &Config, rules: &mut Rules, client: &Client) -> Result<String, Error> {
    let findings = preflight::postgres(config, rules, client).await?;
    let role = escape_identifier(&config.postgres.replication_endpoint.user);
    let database = escape_identifier(&config.postgres.endpoint.database);
    let values = [("role", &*role), ("database", &*database)];
    let head = render(include_str!("../sql/setup/script.sql"), &values);
    let begin = render(include_str!("../sql/setup/script_begin.sql"), &[]);
    let mut script = format!("{}\n\\set ON_ERROR_STOP on\n{begin};\n", comment(&head));
    let statements = plan(&findings);
    for statement in &statements {
        script.push_str(&match config.postgres.slot_on {
            SlotOn::Standby if statement.is_of_slot => {
                format!("\n{}", comment(&elsewhere(config, &statement.sql)))
            }
            _ => format!("\n{statement}"),
        });
    }
    if statements.is_empty() {
        script.push_str("\n-- Nothing to do.\n");
    }
    let end = render(include_str!("../sql/setup/script_end.sql"), &[]);
    script.push_str(&format!("\n{end};\n"));
    let open = |finding: &&Finding| {
        statements.iter().all(|done| finding.sql.as_ref() != Some(&done.sql))
            && (finding.is_error() || finding.sql.is_some())
    };
    for finding in findings.iter().filter(open) {
        let what = if finding.is_error() { "No SQL cures this" } else { "Not needed, but" };
        script.push_str(&format!("\n{}", comment(&format!("{what}: {finding}"))));
    }
    Ok(script)
}

/// What a script for the primary says of a slot on a standby.
fn elsewhere(config: &Config, sql: &str) -> String {
    let address = config.postgres.replication_endpoint.address();
    let nudge = render(include_str!("../sql/log_standby_snapshot.sql"), &[]);
    let nudge = nudge.trim();
    format!(
        "The slot is created on the standby at {address} by `walsweep run` or `walsweep setup`, or \
         by hand:\n\n    {sql};\n\nand on the primary, again and again while that waits:\n\n    \
         {nudge};"
    )
}

/// A text as lines of comment.
fn comment(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", format!("-- {line}").trim_end())).collect()
}

/// Drops the slot, the publication and the event trigger, and gives a line about each thing that it
/// did or left. Replica identities stay: others may rely on them.
///
/// # Errors
///
/// When the slot is in use or another program's, or a statement is refused.
pub async fn teardown(config: &Config, client: &Client) -> Result<Vec<String>, Error> {
    let (slot, publication) = (&config.postgres.slot, &config.postgres.publication);
    let mut lines = Vec::new();
    let standby = slot_standby(config).await?;
    let holder = standby.as_deref().unwrap_or(client);
    if may_drop(slot, holder).await? {
        run(holder, &preflight::drop_slot(slot)).await?;
        lines.push(format!("dropped slot `{slot}`"));
    } else {
        lines.push(format!("there is no slot `{slot}`"));
    }
    let query = include_str!("../sql/setup/publication_exists.sql");
    let row = client.query_one(query, &[publication]).await.map_err(preflight::Error::from)?;
    if row.try_get(0).map_err(preflight::Error::from)? {
        run(client, &preflight::drop_publication(publication)).await?;
        lines.push(format!("dropped publication `{publication}`"));
    } else {
        lines.push(format!("there is no publication `{publication}`"));
    }
    if has_refresh_trigger(slot, client).await? {
        run(client, &preflight::drop_trigger(slot)).await?;
        lines.push(format!("dropped event trigger `{}`", preflight::trigger_name(slot)));
    }
    lines.push("replica identities stay as they are".to_owned());
    Ok(lines)
}

/// Whether the event trigger of refreshed views is there, and with its own function.
async fn has_refresh_trigger(slot: &str, client: &Client) -> Result<bool, Error> {
    let query = include_str!("../sql/setup/refresh_trigger_exists.sql");
    let name = preflight::trigger_name(slot);
    let row = client.query_one(query, &[&name]).await.map_err(preflight::Error::from)?;
    Ok(row.try_get(0).map_err(preflight::Error::from)?)
}

/// Whether there is a slot to drop. Slots are known by name in all databases of a server, so that
/// one of this name may be that of another walsweep, or a standby's.
async fn may_drop(slot: &str, client: &Client) -> Result<bool, Error> {
    let query = include_str!("../sql/setup/slot_holder.sql");
    let row = client.query_opt(query, &[&slot]).await.map_err(preflight::Error::from)?;
    let Some(row) = row else { return Ok(false) };
    let read = || Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?));
    let (pid, name, is_ours, what): (Option<i32>, Option<String>, bool, String) =
        read().map_err(preflight::Error::Query)?;
    let slot = slot.to_owned();
    match pid {
        _ if !is_ours => Err(Error::SlotForeign { slot, what }),
        Some(pid) => {
            let name = name.unwrap_or_else(|| "unknown".to_owned());
            Err(Error::SlotActive { slot, pid, name })
        }
        None => Ok(true),
    }
}
