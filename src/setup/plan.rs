//! From what the checks found to the transactions that cure it, in an order that hurts nobody.

use super::Statement;
use crate::preflight::{Code, Does, Finding, Memory, Step};

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

/// The transactions to be done, and the findings that are left to others.
#[derive(Debug, Default)]
pub struct Plan {
    /// Transactions, each once, in their order.
    pub statements: Vec<Statement>,
    /// Errors whose cure would alter a publication that is not walsweep's.
    pub advised: Vec<Finding>,
    /// Errors that no SQL cures.
    pub left: Vec<Finding>,
}

/// The cures of what `setup` sees to, each transaction once.
///
/// The order is one in which no write of the application fails in between: generated columns, which
/// a full replica identity asks for, go first, and then column lists, which it does not allow;
/// identities are there before anything is published, and go back after all that is taken out. The
/// slot follows the publication, which the server looks up as of each change that it decodes.
/// Whatever is changed is remembered before that, and forgotten once it is undone.
#[must_use]
pub fn plan(findings: &[Finding], mark: &Mark) -> Plan {
    let mut plan = Plan::default();
    let mut ranked: Vec<(u8, Statement)> = Vec::new();
    let alters = |finding: &Finding| finding.steps.iter().any(|one| one.does.alters_publication());
    for finding in findings.iter().filter(|finding| finding.is_due()) {
        if finding.steps.is_empty() {
            plan.left.extend(finding.is_error().then(|| finding.clone()));
            continue;
        }
        if matches!(mark, Mark::Foreign(_)) && alters(finding) {
            plan.advised.extend(finding.is_error().then(|| finding.clone()));
            continue;
        }
        let is_needed = finding.is_error();
        for (index, step) in finding.steps.iter().enumerate() {
            let after = if is_needed { Vec::new() } else { finding.steps[..index].to_vec() };
            if let Some((_, known)) = ranked.iter_mut().find(|(_, known)| known.step == *step) {
                known.is_needed |= is_needed;
                known.after = if known.is_needed { Vec::new() } else { after };
                continue;
            }
            let (step, why) = (step.clone(), why(finding));
            ranked.push((rank(&step), Statement { step, why, is_needed, after }));
        }
    }
    // A relation may belong to several tables that are taken out.
    let drops = |step: &&Step| matches!(step.does, Does::DropTable(_));
    let dropped: Vec<Step> =
        ranked.iter().map(|(_, one)| &one.step).filter(drops).cloned().collect();
    for (_, one) in &mut ranked {
        if matches!(one.step.does, Does::RestoreIdentity(_)) {
            one.after.clone_from(&dropped);
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    plan.statements = ranked.into_iter().map(|(_, statement)| statement).collect();
    plan
}

/// Of steps of the same rank the order is that of the findings, and of each finding its own.
fn rank(step: &Step) -> u8 {
    match step.does {
        Does::Role => 0,
        Does::Trigger => 1,
        Does::Grant(_) => 2,
        Does::CreatePublication(_) | Does::RememberFirst(_) => 3,
        Does::SetPublication => 4,
        Does::WidenTable(_) => 5,
        Does::SetIdentity(_) => 6,
        Does::SetOperations | Does::AddTables(_) => 7,
        Does::DropTable(_) | Does::DropPublication => 8,
        Does::RestoreIdentity(_) => 9,
        Does::Remember(_) => 10,
        Does::DropSlot | Does::CreateSlot => 11,
    }
}

/// Why a finding's cure is run, in words. What stands beside a new publication is for whoever reads
/// the script, too.
fn why(finding: &Finding) -> String {
    let hint = finding.hint.as_ref().filter(|_| finding.code == Code::PublicationMissing);
    let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("{}{hint}", finding.message)
}

#[cfg(test)]
mod tests {
    use super::{Mark, plan};
    use crate::config::TableName;
    use crate::preflight::{Code, Does, Finding, Identity, Memory, Step};

    /// A relation may be a part of several of them.
    #[test]
    fn an_identity_goes_back_only_if_all_that_is_taken_out_is() {
        let table = |name: &str| TableName { schema: "s".to_owned(), name: name.to_owned() };
        let step = |sql: &str, does| Step { sql: sql.to_owned(), does };
        let finding = |steps| Finding {
            steps,
            is_done_by_setup: true,
            ..Finding::info(Code::TableUnneeded, "it is published")
        };
        let drops = ["a", "b"].map(|name| step(name, Does::DropTable(table(name))));
        let identity = Identity { table: table("a"), relation: table("c"), was: 'd', index: None };
        let back = step("c", Does::RestoreIdentity(identity));
        let findings =
            [finding(vec![drops[1].clone(), back.clone()]), finding(vec![drops[0].clone()])];
        let plan = plan(&findings, &Mark::Ours(Memory::default()));
        let last = plan.statements.last().expect("there are three");
        assert_eq!((plan.statements.len(), &last.step), (3, &back));
        assert!(drops.iter().all(|drop| last.after.contains(drop)), "{last:?}");
    }
}
