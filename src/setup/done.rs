//! The report of `setup`: what it did, what it left, and what it has to tell of that.

use std::collections::BTreeSet;
use std::fmt;

use super::{Error, Statement, script};
use crate::preflight::{self, Does, Finding, Identity, Step};

/// A transaction that the server did not do, and that walsweep runs without.
#[derive(Debug)]
pub struct Refused {
    /// The transaction.
    pub statement: Statement,
    /// Why not.
    pub error: Error,
}

/// The report of `setup`: what it did, and what it left.
#[derive(Debug, Default)]
pub struct Done {
    /// Transactions, in their order; none if nothing was missing.
    pub statements: Vec<Statement>,
    /// Transactions that were refused, and are not needed.
    pub refused: Vec<Refused>,
    /// Steps that were not tried, because what has to be done before was refused.
    pub skipped: Vec<Step>,
    /// Findings that no SQL cures, of some rules: the others are set up.
    pub left: Vec<Finding>,
    /// Findings to be known of the publication: whose it is, if it is a stranger's, and slots that
    /// its comment records and that are not there.
    pub told: Vec<Finding>,
    /// The identities that the publication remembers.
    pub(super) known: BTreeSet<Identity>,
}

impl Done {
    /// Whether a step was tried before; a comment is another one when more is to be remembered.
    pub(super) fn has_refused(&self, step: &Step) -> bool {
        let is_comment = |does: &Does| matches!(does, Does::Remember(_) | Does::RememberFirst(_));
        self.undone().any(|one| one == step || is_comment(&one.does) && is_comment(&step.does))
    }

    /// Whether what is to be remembered was refused.
    pub(super) fn has_refused_comment(&self) -> bool {
        self.undone().any(|one| matches!(one.does, Does::Remember(_) | Does::RememberFirst(_)))
    }

    /// Whether the slot was made.
    pub(super) fn made_slot(&self) -> bool {
        self.statements.iter().any(|one| one.step.does == Does::CreateSlot)
    }

    /// The steps that were refused, or not tried.
    pub(super) fn undone(&self) -> impl Iterator<Item = &Step> {
        self.refused.iter().map(|one| &one.statement.step).chain(&self.skipped)
    }

    /// Gives what is to be known besides, as lines of comment: what [`Done::told`] holds, and that
    /// a walsweep which runs since before still has the rules of tables that were taken out.
    #[must_use]
    pub fn notes(&self) -> String {
        let dropped = self.statements.iter().filter_map(|one| match &one.step.does {
            Does::DropTable(table) => Some(format!("`{table}`")),
            _ => None,
        });
        let dropped: Vec<String> = dropped.collect();
        let reload = format!(
            "If walsweep did not reload since the rules of {} went, let it do so: it has them \
             still, and suspends them",
            dropped.join(", ")
        );
        let reload = (!dropped.is_empty()).then_some(reload);
        let told = preflight::told(self.told.iter());
        let notes = reload.into_iter().chain(told);
        notes.map(|text| script::comment(&text)).collect()
    }

    /// Gives the SQL that sets back the replica identities that were changed and are remembered
    /// nowhere, as lines of comment; `None` if there are none.
    #[must_use]
    pub fn forgotten(&self) -> Option<String> {
        let changed = self.statements.iter().filter_map(|one| match &one.step.does {
            Does::SetIdentity(identity) => Some(identity),
            _ => None,
        });
        let is_known =
            |identity: &&Identity| self.known.iter().any(|one| one.relation == identity.relation);
        let forgotten = changed.filter(|identity| !is_known(identity));
        let back: Vec<Step> = forgotten.filter_map(preflight::identity_as_before).collect();
        let text = format!(
            "Remembered nowhere, so keep it: this sets the replica identities back that were \
             changed.\n\n    {};",
            preflight::printed(&back).replace('\n', "\n    ")
        );
        (!back.is_empty()).then(|| script::comment(&text))
    }
}

impl fmt::Display for Done {
    /// For a person, what ended early: what stays of it, and what nobody else remembers.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("what was done before it stays:")?;
        for one in &self.statements {
            write!(formatter, "\n{};", one.step.sql)?;
        }
        self.forgotten().iter().try_for_each(|text| write!(formatter, "\n{}", text.trim_end()))
    }
}

impl fmt::Display for Refused {
    /// For a person, as lines of comment beside those of what was done.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused { statement: Statement { step, why, .. }, error } = self;
        let text = if step.does.is_of_slot() {
            format!("Left to `walsweep run`, which sees to the slot when it starts: {error}")
        } else {
            let hint = error.hint().map(|hint| format!("\nhint: {hint}"));
            let hint = hint.unwrap_or_default();
            format!("Not done, and not needed to run: {error}\nWithout it: {why}{hint}")
        };
        formatter.write_str(&script::comment(&text))
    }
}
