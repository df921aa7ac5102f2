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
//! somebody else made is neither altered nor dropped. What is changed can be undone: it is
//! remembered on the publication before it is done, and told where that is refused.

mod done;
mod error;
mod hands;
mod left;
mod looked;
mod marked;
mod plan;
mod rights;
mod role;
mod script;
mod teardown;
mod who;

use std::fmt;
use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::error::SqlState;

use crate::config::{Config, SlotOn};
use crate::keys::Rules;
use crate::postgres::{Sql, connect_sql};
use crate::preflight::{self, Code, Does, Finding, Memory, Step, certain, remembering};
use crate::source::slot_server::{caught_up, nudge};

pub use self::done::{Done, Refused};
pub use self::error::Error;
pub use self::hands::Hands;
use self::looked::looked;
use self::marked::{Marked, marked};
pub use self::plan::{Mark, Plan, plan};
pub use self::role::{Lacking, missing as role_missing};
pub use self::script::{script, script_without_login};
pub use self::teardown::{Removed, own_keys, teardown, teardown_script};
use self::who::Owners;

/// `application_name` of the connection to the standby that the slot is on.
const NAME: &str = "walsweep command";

/// How often the checks are made again after their cures. What the tables need is known at once;
/// but some answers are the server's, and it gives them only once a cure has run: under whose name
/// it publishes a partition, once the publication is another one; which old rows a lookup lacks,
/// once its role may read the table and that is published; whose the slot is, once the comment that
/// tells is written. Nothing of these uncovers more than that, and the last time shows that nothing
/// is left.
const ROUNDS_MAX: usize = 3;

/// How often it begins anew because somebody else changed the publication meanwhile, such as a
/// second `setup`: each time that one came further.
const OVERTAKEN_MAX: usize = 20;

/// Before it begins anew.
const OVERTAKEN_PAUSE: Duration = Duration::from_millis(50);

/// A transaction, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The transaction.
    pub step: Step,
    /// The reason for it: what it cures; once it has made the slot, what was done.
    pub why: String,
    /// Whether walsweep, or one of its rules, does not run without.
    pub is_needed: bool,
    /// Steps that have to be done before, if it is not needed: no table gets another identity while
    /// it is still published.
    pub after: Vec<Step>,
}

impl fmt::Display for Statement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever wants all of a block of PL/pgSQL lets `--print` print it.
        let (sql, brief) = (&self.step.sql, self.step.brief());
        let shown = if sql.starts_with("do ") { &brief } else { sql };
        writeln!(formatter, "{}{shown};", script::comment(&self.why))
    }
}

/// Findings, each on a line of its own.
pub(crate) fn list(findings: &[Finding]) -> String {
    preflight::told(findings.iter()).iter().map(|finding| format!("\n{finding}")).collect()
}

/// Makes what is missing, statement by statement, and gives what it did. What SQL cannot cure of
/// some rules is left: the others need not wait for it. So is what the server refuses and walsweep
/// runs without.
///
/// # Errors
///
/// When something is wrong that SQL cannot cure, with everything or with every rule, the
/// publication is somebody else's and lacks something, or the role may not do all that is needed
/// (nothing is changed then), when a statement is refused that is needed, or somebody asks to stop.
/// What was done before is told with it.
pub async fn setup(config: &Config, rules: &Rules, hands: &Hands<'_>) -> Result<Done, Error> {
    hands.prepare().await?;
    hands.hold().await?;
    let mut done = Done::default();
    match rounds(config, rules, hands, &mut done).await {
        Ok(()) => Ok(done),
        Err(cause) if done.statements.is_empty() => Err(cause),
        // Something is not as it was any more.
        Err(Error::Incurable(findings)) => {
            let cause = Box::new(Error::Uncured(findings));
            Err(Error::Partly { done: Box::new(done), cause })
        }
        Err(cause) => Err(Error::Partly { done: Box::new(done), cause: Box::new(cause) }),
    }
}

/// Checks and cures, until nothing is left to cure.
async fn rounds(
    config: &Config,
    rules: &Rules,
    hands: &Hands<'_>,
    done: &mut Done,
) -> Result<(), Error> {
    let (mut finished, mut overtaken) = (0, 0);
    while finished < ROUNDS_MAX {
        // First: what the findings say of the comment is of later, so that whatever is written in
        // between is found out by the comparison.
        let marked = marked(config, hands).await?;
        let findings = looked(config, rules, hands).await?;
        let Plan { statements, advised, left } = plan(&findings, &marked.mark);
        let is_left = |name: &String| left.iter().any(|one| one.concerns().any(|of| of == name));
        if left.iter().any(Finding::stops_everything) || rules.names().iter().all(is_left) {
            return Err(Error::Incurable(left));
        }
        if !advised.is_empty() {
            let name = &config.postgres.publication;
            let why = match Memory::is_damaged(marked.comment.as_deref()) {
                true => format!("the comment on publication `{name}` cannot be read"),
                false => format!("publication `{name}` was not made by `walsweep setup`"),
            };
            return Err(Error::Foreign { why, findings: advised });
        }
        done.left = left;
        let is_told = |one: &&Finding| match one.code {
            Code::SlotGone | Code::PublicationOwner => true,
            // It cannot be read.
            Code::PublicationMemory => !one.is_due(),
            // Somebody can record it, and this did not just make it.
            Code::SlotUnclaimed => !one.is_due() && one.sql.is_some() && !done.made_slot(),
            _ => false,
        };
        done.told = findings.iter().filter(is_told).cloned().collect();
        let before = done.statements.len();
        match round(config, hands, statements, &marked, done).await {
            Ok(()) if done.statements.len() == before => return Ok(()),
            Ok(()) => finished += 1,
            Err(Error::Overtaken { .. }) if overtaken < OVERTAKEN_MAX => {
                overtaken += 1;
                sleep(OVERTAKEN_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
    let mut findings = preflight::postgres(config, rules, hands.client).await?.findings;
    findings.retain(Finding::is_error);
    let (uncured, left): (Vec<Finding>, Vec<Finding>) =
        findings.into_iter().partition(|one| one.sql.is_some() || one.stops_everything());
    done.left = left;
    if uncured.is_empty() { Ok(()) } else { Err(Error::Uncured(uncured)) }
}

/// Runs the statements of one plan. What is remembered before the first change is corrected after
/// the last, if some of it was refused.
async fn round(
    config: &Config,
    hands: &Hands<'_>,
    statements: Vec<Statement>,
    marked: &Marked,
    done: &mut Done,
) -> Result<(), Error> {
    let denied = rights::ask(config, hands, &statements).await?;
    let before = if let Mark::Ours(memory) = &marked.mark { Some(memory) } else { None };
    let mut standing = marked.comment.clone();
    done.known = before.map(|memory| memory.identities.clone()).unwrap_or_default();
    let mut written = None;
    for statement in statements {
        if !statement.is_needed && done.has_refused(&statement.step) {
            continue;
        }
        // One that is made and cannot be claimed beside others, `run` would refuse to read.
        let is_strange = statement.step.does == Does::CreateSlot
            && before.is_some_and(|memory| !memory.is_empty())
            && done.has_refused_comment();
        if is_strange || statement.after.iter().any(|step| done.has_refused(step)) {
            done.skipped.push(statement.step);
            continue;
        }
        let undone = done.undone().chain(&denied);
        let now = (before, standing.as_deref());
        let Some(statement) = remembered(config, statement, undone, now) else { continue };
        if let Some(memory) = attempt(config, hands, statement, done).await? {
            standing = Some(memory.comment());
            written = Some(memory);
        }
    }
    let Some(memory) = written.or_else(|| before.cloned()) else { return Ok(()) };
    let mut corrected = memory.without(done.undone(), before);
    let mut why = "what was refused is not remembered".to_owned();
    if done.made_slot() {
        // Only now there is one, and it is known whose.
        corrected = corrected.with_slot(&config.postgres.slot);
        why = format!("slot `{}` is walsweep's: this made it", config.postgres.slot);
    }
    let step =
        preflight::remember(&config.postgres.publication, standing.as_deref(), corrected.clone());
    if corrected != memory && !done.has_refused_comment() {
        let statement = Statement { step, why, is_needed: false, after: Vec::new() };
        attempt(config, hands, statement, done).await?;
    }
    Ok(())
}

/// Runs a statement that may be refused if it is not needed. Gives what is remembered since, if it
/// wrote that.
async fn attempt(
    config: &Config,
    hands: &Hands<'_>,
    statement: Statement,
    done: &mut Done,
) -> Result<Option<Memory>, Error> {
    match once(config, hands, &statement).await {
        Ok(()) => {
            let memory = memory_of(&statement.step).cloned();
            done.known.extend(memory.iter().flat_map(|memory| memory.identities.clone()));
            done.statements.push(statement.done(config));
            Ok(memory)
        }
        Err(error) if error.is_overtaken(&statement.step.does) => Err(overtaken(config, error)),
        Err(error) if goes_on_without(config, hands, &statement, &error) => {
            done.refused.push(Refused { statement, error });
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// That somebody else changed the publication.
fn overtaken(config: &Config, error: Error) -> Error {
    let publication = config.postgres.publication.clone();
    Error::Overtaken { publication, cause: Box::new(error) }
}

/// Gives what a step lets the publication remember.
fn memory_of(step: &Step) -> Option<&Memory> {
    match &step.does {
        Does::Remember(memory) | Does::RememberFirst(memory) | Does::CreatePublication(memory) => {
            Some(memory)
        }
        _ => None,
    }
}

impl Statement {
    /// Gives the statement as it is told once it is done.
    fn done(self, config: &Config) -> Statement {
        let slot = &config.postgres.slot;
        let why = match self.step.does {
            Does::CreateSlot => format!("created slot `{slot}`"),
            _ => self.why,
        };
        Statement { why, ..self }
    }
}

/// The statement, without what it would remember of steps that are not done, over the comment that
/// stands there now; `None` if that is no more than what was remembered before.
fn remembered<'a>(
    config: &Config,
    statement: Statement,
    undone: impl Iterator<Item = &'a Step>,
    (before, standing): (Option<&Memory>, Option<&str>),
) -> Option<Statement> {
    let Some(memory) = memory_of(&statement.step) else { return Some(statement) };
    let memory = memory.without(undone, before);
    let is_news = before != Some(&memory);
    let step = remembering(statement.step, &config.postgres.publication, standing, &memory);
    is_news.then_some(Statement { step, ..statement })
}

/// Runs one statement, where it belongs.
async fn once(config: &Config, hands: &Hands<'_>, statement: &Statement) -> Result<(), Error> {
    let step = &statement.step;
    if !step.does.is_of_slot() {
        return run(config, hands, statement).await;
    }
    match slot_standby(config).await? {
        Some(standby) => create_slot(config, hands, &standby, step).await,
        None => hands.with_slot_or(&config.postgres.replication_endpoint, step).await,
    }
}

/// Whether `setup` goes on after this error: walsweep runs without the statement, or its own role
/// does it when it starts, for an owner of tables need not be one who replicates.
fn goes_on_without(
    config: &Config,
    hands: &Hands<'_>,
    statement: &Statement,
    error: &Error,
) -> bool {
    let postgres = &config.postgres;
    if statement.step.does.is_of_slot() {
        let is_here = postgres.slot_on == SlotOn::Primary;
        return is_here && error.is_denied() && !hands.is_of(&postgres.replication_endpoint.user);
    }
    !statement.is_needed && error.is_refusal()
}

/// Runs a statement, and says who may if this role may not.
///
/// # Errors
///
/// The statement's; see [`Error`].
pub async fn run(config: &Config, hands: &Hands<'_>, statement: &Statement) -> Result<(), Error> {
    run_shown(config, hands, &statement.step, &statement.step.brief()).await
}

/// Like [`run`], for a step that messages show as `shown`.
async fn run_shown(
    config: &Config,
    hands: &Hands<'_>,
    step: &Step,
    shown: &str,
) -> Result<(), Error> {
    let sent = Step { sql: certain(&config.postgres.publication, step), does: step.does.clone() };
    match hands.run_shown(&sent, shown).await {
        Err(Error::Statement { sql, source })
            if source.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) =>
        {
            let who = Owners::of(config, hands, &[step]).await?.hint(&[step], &[step]);
            Err(Error::Denied { sql, source, who })
        }
        ran => ran,
    }
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
            Err(Error::Statement { sql: step.brief(), source })
        }
    }
}
