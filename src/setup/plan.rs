//! From what the checks found to the transactions that cure it, in an order that hurts nobody.

use super::Statement;
use crate::config::{Config, Source, TableName};
use crate::preflight::{Does, Finding, Memory, Step, comment};

/// Whose the publication is, and what is remembered of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// There is none yet.
    Missing,
    /// `setup` made it.
    Ours(Memory),
    /// Somebody else did; this role owns it.
    Foreign(String),
}

/// What is to be done, and what is left to others.
#[derive(Debug, Default)]
pub struct Plan {
    /// Transactions, each once, in their order.
    pub statements: Vec<Statement>,
    /// Errors whose cure would alter a publication that is not walsweep's.
    pub advised: Vec<Finding>,
}

/// What is no error and yet to be done: the slot, which `run` makes otherwise; identities that tell
/// a lookup its old rows; whole tables, and what no rule needs any more, in walsweep's own
/// publication.
const DONE_TOO: [&str; 4] = ["slot_missing", "lookup_identity", "narrowed", "table_unneeded"];

/// The cures of the findings that keep walsweep from running, each transaction once.
///
/// The order is one in which no write of the application fails in between: column lists, which a
/// full replica identity does not allow, and generated columns, which it asks for, go first;
/// identities are there before anything is published. The slot follows the publication, which the
/// server looks up as of each change that it decodes. What `setup` did is remembered last.
#[must_use]
pub fn plan(config: &Config, findings: &[Finding], mark: &Mark) -> Plan {
    let mut plan = Plan::default();
    let mut ranked: Vec<(u8, Statement)> = Vec::new();
    let alters = |finding: &Finding| finding.steps.iter().any(|one| one.does.alters_publication());
    for finding in findings {
        let is_due = finding.is_error() || DONE_TOO.contains(&finding.code);
        if !is_due || finding.steps.is_empty() {
            continue;
        }
        if matches!(mark, Mark::Foreign(_)) && alters(finding) {
            plan.advised.extend(finding.is_error().then(|| finding.clone()));
            continue;
        }
        let why = &finding.message;
        for step in &finding.steps {
            if ranked.iter().all(|(_, known)| known.step != *step) {
                let statement = Statement { step: step.clone(), why: why.clone() };
                ranked.push((rank(finding, step), statement));
            }
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    plan.statements = ranked.into_iter().map(|(_, statement)| statement).collect();
    remember(config, &mut plan.statements, mark);
    plan
}

/// Of steps of the same rank the order is that of the findings, and of each finding its own.
fn rank(finding: &Finding, step: &Step) -> u8 {
    match step.does {
        Does::Role => 0,
        Does::Trigger => 1,
        Does::Grant => 2,
        Does::WidenTable(_) => 3,
        Does::SetPublication if finding.code != "operation_not_published" => 4,
        Does::SetIdentity(_) => 5,
        Does::SetPublication | Does::CreatePublication(_) | Does::AddTable(_) => 6,
        Does::DropTable(_) => 7,
        Does::RestoreIdentity(_) => 8,
        Does::Slot => 10,
    }
}

/// Lets the comment on the publication say what is changed: with its creation, or at the end.
fn remember(config: &Config, statements: &mut Vec<Statement>, mark: &Mark) {
    let (publication, slot) = (&config.postgres.publication, &config.postgres.slot);
    let (before, is_there) = match mark {
        Mark::Ours(memory) => (memory.clone(), true),
        Mark::Missing => (Memory::default(), false),
        Mark::Foreign(_) => return,
    };
    let mut memory = before.clone();
    let rules = config.rules.iter().filter(|rule| rule.source == Source::Table);
    memory.tables.entry(slot.clone()).or_default().extend(rules.map(|rule| rule.table.clone()));
    for statement in statements.iter() {
        match &statement.step.does {
            Does::SetIdentity(identity) => {
                let is_known =
                    |table: &TableName| memory.identities.iter().any(|one| one.relation == *table);
                if !is_known(&identity.relation) {
                    memory.identities.insert(identity.clone());
                }
            }
            Does::RestoreIdentity(identity) => {
                memory.identities.remove(identity);
            }
            Does::DropTable(table) => {
                memory.tables.entry(slot.clone()).or_default().remove(table);
            }
            _ => {}
        }
    }
    if is_there && memory != before {
        let step = Step { sql: comment(publication, &memory), does: Does::SetPublication };
        let why = "what `teardown` has to know".to_owned();
        let slot = statements.iter().position(Statement::is_of_slot).unwrap_or(statements.len());
        statements.insert(slot, Statement { step, why });
    }
    for statement in statements.iter_mut() {
        let Does::CreatePublication(_) = statement.step.does else { continue };
        // It was printed for a publication of which nothing is remembered.
        let plain = comment(publication, &Memory::default());
        let full = comment(publication, &memory);
        if let Some(create) = statement.step.sql.strip_suffix(&plain) {
            statement.step.sql = format!("{create}{full}");
        }
    }
}
