//! The work of `setup` as a script for psql, with who may run which part of it.

use super::role::{self, Need};
use super::who::{Owners, Who};
use super::{Error, Hands, Mark, Marked, Plan, Statement, hands, looked, marked, memory_of, plan};
use crate::config::{Config, SlotOn};
use crate::keys::Rules;
use crate::postgres::statement::render;
use crate::preflight::{self, Does, Finding, MADE, Step, certain, patiently};

/// The script; changes nothing.
///
/// # Errors
///
/// When the checks cannot be made.
pub async fn script(
    config: &Config,
    rules: &Rules,
    hands: &Hands<'_>,
    roles: Vec<Statement>,
) -> Result<String, Error> {
    let findings = looked(config, rules, hands).await?;
    let marked = marked(config, hands).await?;
    let Plan { statements, advised, left } = plan(&findings, &marked.mark);
    let may_create_slot = may_create_slot(rules, hands).await?;
    let mut script = head(HEADING);
    let (first, left): (Vec<&Finding>, Vec<&Finding>) =
        left.iter().partition(|finding| finding.stops_everything());
    script.push_str(&by_hand("Before anything else, by hand", &first));
    let statements: Vec<Statement> =
        roles.into_iter().chain(over_what_is_written(config, statements)).collect();
    script.push_str(&in_short(&statements));
    let steps: Vec<&Step> = statements.iter().map(|one| &one.step).collect();
    let owners = Owners::of(config, hands, &steps).await?;
    for (who, statements) in parts(&owners, &statements) {
        script.push_str(&format!("\n{}", comment(&who.heading(config))));
        for statement in statements {
            script.push_str(&part(config, statement, may_create_slot));
        }
    }
    let makes_slot = statements.iter().any(|one| one.step.does == Does::CreateSlot);
    if makes_slot && may_create_slot && config.postgres.slot_on == SlotOn::Primary {
        script.push_str(&claim(config, &statements, &marked).unwrap_or_default());
    }
    if statements.is_empty() {
        script.push_str("\n-- Nothing to do.\n");
    }
    script.push_str(&tail());
    let advised: Vec<&Finding> = advised.iter().collect();
    let owner = "For the owner of the publication, which is not walsweep's";
    script.push_str(&by_hand(owner, &advised));
    script.push_str(&by_hand("By hand", &left));
    let is_done = |step: &Step| statements.iter().any(|done| done.step == *step);
    let is_optional = |one: &&Finding| !one.is_error() && !one.steps.iter().all(is_done);
    let optional: Vec<&Finding> = findings.iter().filter(is_optional).collect();
    script.push_str(&by_hand("Not needed, but", &optional));
    Ok(script)
}

/// The statements that the blocks below guard, for whoever has to allow them.
fn in_short(statements: &[Statement]) -> String {
    let of_tables = statements.iter().filter(|one| !one.step.does.is_of_slot());
    let shown: Vec<String> = of_tables.map(|one| format!("\n    {};", one.step.brief())).collect();
    if shown.is_empty() {
        return String::new();
    }
    format!("\n{}", comment(&format!("In short, what is done below:\n{}", shown.concat())))
}

/// The statements, each of which writes the comment over what one before it has written: findings
/// know only the comment that stands now.
fn over_what_is_written(config: &Config, mut statements: Vec<Statement>) -> Vec<Statement> {
    let mut standing: Option<String> = None;
    for statement in &mut statements {
        let Some(memory) = memory_of(&statement.step) else { continue };
        let becomes = memory.comment();
        if let (Does::Remember(memory), Some(standing)) = (&statement.step.does, &standing) {
            let name = &config.postgres.publication;
            statement.step = preflight::remember(name, Some(standing), memory.clone());
        }
        standing = Some(becomes);
    }
    statements
}

/// The statements in their order, in parts that the same may run.
fn parts<'a>(
    owners: &'a Owners<'_>,
    statements: &'a [Statement],
) -> Vec<(Who<'a>, Vec<&'a Statement>)> {
    let mut parts: Vec<(Who<'a>, Vec<&Statement>)> = Vec::new();
    for statement in statements {
        let who = owners.who(&statement.step.does);
        let is_same = parts.last_mut().is_some_and(|(last, _)| last.takes_in(&who));
        match parts.last_mut() {
            Some((_, of_it)) if is_same => of_it.push(statement),
            _ => parts.push((who, vec![statement])),
        }
    }
    parts
}

/// Gives what the script leaves to a person, each under the same words.
fn by_hand(what: &str, findings: &[&Finding]) -> String {
    let texts = preflight::told(findings.iter().copied());
    texts.iter().map(|text| format!("\n{}", comment(&format!("{what}: {text}")))).collect()
}

/// The part of the script for the role alone, while nobody can log in as it to see the rest.
#[must_use]
pub fn script_without_login(config: &Config, cause: &str) -> String {
    let mut script = head(HEADING);
    let why = format!(
        "The rest cannot be seen yet ({cause}). Run this, then print it again, or let `walsweep \
         setup --as URL` do all of it."
    );
    script.push_str(&format!("\n{}", comment(&why)));
    let mut heading = String::new();
    for need in role::needs(config) {
        let now = match &need {
            Need::Login(_) => Who::Superuser.heading(config),
            Need::Connect { database, .. } => format!(
                "By the owner of database `{database}`, whom `psql -l` names, or a superuser:"
            ),
        };
        if now != heading {
            script.push_str(&format!("\n{}", comment(&now)));
        }
        heading = now;
        let step = need.step(false);
        let (why, after) = (String::new(), Vec::new());
        let statement = Statement { step, why, is_needed: true, after };
        script.push_str(&part(config, &statement, false));
    }
    let password = format!(
        "{} A role that is there already wants another password than the configuration has: the \
         same sets it.",
        role::no_password(&config.postgres.endpoint.user)
    );
    script.push_str(&format!("\n{}", comment(&password)));
    script.push_str(&tail());
    script
}

/// The text that says what `setup --print` prints.
const HEADING: &str = "\
     What walsweep needs in this database, for psql. A superuser may run all of it;\n\
     else each part says who may. Each statement waits for a lock at most 2 s and is\n\
     tried again, so that nothing of the application waits longer behind it.";

/// How a script begins: whatever psql's session was told before, an error ends the script, and each
/// statement is committed on its own.
pub(super) fn head(text: &str) -> String {
    let values = [("settings", SETTINGS), ("made", MADE)];
    let begin = render(include_str!("../../sql/setup/script_begin.sql"), &values);
    let keeps: String = VARIABLES
        .iter()
        .map(|name| format!("\\set walsweep_{name} :{name}\n\\set {name} on\n"))
        .collect();
    format!("{}{keeps}{begin};\n", comment(text))
}

/// The settings that a session has for as long as the script runs.
const SETTINGS: &str = "'client_encoding', 'search_path', 'default_transaction_isolation', \
                        'synchronous_commit', 'default_transaction_read_only', \
                        'default_transaction_deferrable', 'statement_timeout', \
                        'transaction_timeout'";

/// Variables that are on in psql for as long as the script runs.
const VARIABLES: [&str; 2] = ["ON_ERROR_STOP", "AUTOCOMMIT"];

/// How what is run of a script ends: psql is as it was before.
pub(super) fn tail() -> String {
    let end = render(include_str!("../../sql/setup/script_end.sql"), &[("settings", SETTINGS)]);
    let back: String = VARIABLES
        .iter()
        .map(|name| format!("\\set {name} :walsweep_{name}\n\\unset walsweep_{name}\n"))
        .collect();
    format!("\n{end};\n{back}")
}

/// One transaction of the script.
fn part(config: &Config, statement: &Statement, may_create_slot: bool) -> String {
    let sql = &statement.step.sql;
    if matches!(statement.step.does, Does::Role | Does::Grant(_)) {
        // Nobody waits behind these.
        return format!(
            "\n{}{};\n",
            comment(&statement.why),
            certain(&config.postgres.publication, &statement.step)
        );
    }
    if !statement.step.does.is_of_slot() {
        let name = &config.postgres.publication;
        let tries = (hands::ATTEMPTS, hands::PAUSE.as_secs());
        let patient = patiently(name, &statement.step, tries);
        return format!("\n{}{patient};\n", comment(&statement.why));
    }
    if config.postgres.slot_on == SlotOn::Standby {
        return format!("\n{}", comment(&elsewhere(config, sql)));
    }
    if may_create_slot {
        let sql = match statement.step.does {
            Does::CreateSlot => preflight::create_slot_marked(&config.postgres).sql,
            _ => sql.clone(),
        };
        return format!("\n{}{sql};\n", comment(&statement.why));
    }
    let later = format!(
        "{}: `walsweep run` creates it when it starts, or by hand:\n\n    {sql};",
        statement.why
    );
    format!("\n{}", comment(&later))
}

/// The part that claims the slot which the script has made, if there is a comment to say it in.
fn claim(config: &Config, statements: &[Statement], marked: &Marked) -> Option<String> {
    let written = statements.iter().rev().find_map(|one| memory_of(&one.step));
    let (memory, standing) = match (written, &marked.mark) {
        (Some(memory), _) => (memory, memory.comment()),
        (None, Mark::Ours(memory)) => (memory, marked.comment.clone().unwrap_or_default()),
        (None, Mark::Missing | Mark::Foreign(_)) => return None,
    };
    let slot = &config.postgres.slot;
    let claimed = memory.clone().with_slot(slot);
    if claimed == *memory {
        return None;
    }
    let step = preflight::claim(&config.postgres.publication, slot, &[&standing], claimed);
    let owner = marked.owner.as_ref().map(|owner| format!("`{owner}`, "));
    let who = format!(
        "By {}who owns the publication: slot `{slot}` is walsweep's, for this has made it.",
        owner.as_deref().unwrap_or("whoever ran the parts before, and so ")
    );
    let tries = (hands::ATTEMPTS, hands::PAUSE.as_secs());
    let patient = patiently(&config.postgres.publication, &step, tries);
    Some(format!("\n{}{patient};\n", comment(&who)))
}

/// Whether whoever owns the tables, and so runs the script, may create a slot.
async fn may_create_slot(rules: &Rules, hands: &Hands<'_>) -> Result<bool, Error> {
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        rules.tables().map(|table| (&*table.schema, &*table.name)).unzip();
    let question = include_str!("../../sql/setup/slot_runner.sql");
    Ok(hands.client.query_one(question, &[&schemas, &names]).await?.try_get(0)?)
}

/// Gives the words of a script for the primary about a slot on a standby.
fn elsewhere(config: &Config, sql: &str) -> String {
    let address = config.postgres.replication_endpoint.address();
    let nudge = render(include_str!("../../sql/log_standby_snapshot.sql"), &[]);
    let nudge = nudge.trim();
    format!(
        "The slot is created on the standby at {address} by `walsweep run` or `walsweep setup`, or \
         by hand:\n\n    {sql};\n\nand on the primary, again and again while that waits:\n\n    \
         {nudge};"
    )
}

/// A text as lines of comment. Whatever ends a comment begins a new one: psql and the server take a
/// carriage return for the end of a line, and a name in the text may have one.
pub(super) fn comment(text: &str) -> String {
    let lines = text.lines().flat_map(|line| line.split('\r'));
    lines.map(|line| format!("{}\n", format!("-- {line}").trim_end())).collect()
}
