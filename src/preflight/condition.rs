//! Checks of `when` against the types of the columns.

use super::{Code, Context, Finding};

/// Finds what in the conditions does not fit the table: it would fail on every row, and count as
/// true.
pub(super) fn check(context: &Context<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for table in context.rules.tables() {
        let Some(known) = context.catalog.table(table) else { continue };
        let type_id = |name: &str| {
            known.columns.iter().find(|column| column.name == name).map(|column| column.type_id)
        };
        for (rule, problem) in context.rules.condition_misfits(table, &type_id) {
            let finding = Finding::error(Code::ConditionType, problem.message).at(&problem.at);
            let finding = finding.of_rules([rule]);
            findings.push(problem.hint.into_iter().fold(finding, Finding::hint));
        }
    }
    findings
}
