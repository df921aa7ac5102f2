//! The steps of a cure: transactions, each with what it changes.

use super::memory::Memory;
use crate::config::TableName;

/// How long a statement may wait for a lock: what the application sends meanwhile waits behind it.
pub const LOCK_TIMEOUT: &str = "2s";

/// One transaction of a cure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its statements, with `;` and a new line between two of them.
    pub sql: String,
    /// The change that it makes.
    pub does: Does,
}

/// A change that a step makes, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Does {
    /// Creates the publication, of no table yet, with what its comment remembers.
    CreatePublication(Memory),
    /// Adds tables to the publication.
    AddTables(Vec<TableName>),
    /// Takes a table out of the publication.
    DropTable(TableName),
    /// Changes what the publication publishes of a table.
    WidenTable(TableName),
    /// Lets the publication publish generated columns, or partitions under their table's name.
    SetPublication,
    /// Lets the publication publish other operations.
    SetOperations,
    /// Writes into the comment on the publication what is about to be changed.
    RememberFirst(Memory),
    /// Writes into the comment on the publication what is remembered.
    Remember(Memory),
    /// Drops the publication.
    DropPublication,
    /// Sets a replica identity.
    SetIdentity(Identity),
    /// Sets a replica identity back to what it was before `setup`.
    RestoreIdentity(Identity),
    /// Creates the slot.
    CreateSlot,
    /// Drops the slot.
    DropSlot,
    /// Makes a role, or gives one an attribute or a right that a superuser alone gives.
    Role,
    /// Grants a right on something, which its owner may.
    Grant(Grant),
    /// Creates the event trigger of refreshed views.
    Trigger,
}

/// The replica identity of a relation, as it was before `setup` changed it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// The table under whose name it is published: the relation itself, or the table that it is a
    /// partition of.
    pub table: TableName,
    /// Whose identity it is.
    pub relation: TableName,
    /// `pg_class.relreplident`.
    pub was: char,
    /// The name of the index, if it was one.
    pub index: Option<String>,
}

/// A right that a role is granted: CONNECT on a database, USAGE on a schema, SELECT on a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who is granted it.
    pub role: String,
    /// The object that it is a right on.
    pub on: Object,
}

/// An object that a right is granted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A database, by name.
    Database(String),
    /// A schema, by name.
    Schema(String),
    /// A table, a view, or whatever else a lookup reads.
    Table(TableName),
}

impl Does {
    /// Whether a publication that is there is altered: nothing to do to somebody else's.
    #[must_use]
    pub fn alters_publication(&self) -> bool {
        matches!(
            self,
            Does::AddTables(_)
                | Does::DropTable(_)
                | Does::WidenTable(_)
                | Does::SetPublication
                | Does::SetOperations
                | Does::RememberFirst(_)
                | Does::Remember(_)
        )
    }

    /// Whether it is of the slot, which may be on a standby; all else is the primary's.
    #[must_use]
    pub fn is_of_slot(&self) -> bool {
        matches!(self, Does::CreateSlot | Does::DropSlot)
    }

    /// Whether it reads the comment on the publication before it writes it, or drops it.
    #[must_use]
    pub fn reads_comment(&self) -> bool {
        matches!(self, Does::Remember(_) | Does::RememberFirst(_) | Does::DropPublication)
    }

    /// The tables that it locks. ALTER TABLE … REPLICA IDENTITY takes ACCESS EXCLUSIVE: it waits
    /// for every reader, and every reader then waits for it. What a publication has of a table is
    /// changed under SHARE UPDATE EXCLUSIVE, which waits for other DDL and VACUUM, and for which no
    /// reader and no writer waits.
    #[must_use]
    pub fn locks(&self) -> Vec<TableName> {
        match self {
            Does::AddTables(tables) => tables.clone(),
            Does::DropTable(table) | Does::WidenTable(table) => vec![table.clone()],
            Does::SetIdentity(identity) | Does::RestoreIdentity(identity) => {
                vec![identity.relation.clone()]
            }
            _ => Vec::new(),
        }
    }

    /// The tables that whoever runs it has to own; to take one out of a publication is none needed.
    #[must_use]
    pub fn owned(&self) -> Vec<TableName> {
        if let Does::DropTable(_) = self { Vec::new() } else { self.locks() }
    }

    /// Whether readers and writers wait behind it while it waits.
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        matches!(self, Does::SetIdentity(_) | Does::RestoreIdentity(_))
    }
}

/// How the statements begin that a block may guard.
const ESSENTIAL: [&str; 4] = [
    "comment on publication ",
    "else drop publication ",
    "pg_catalog.pg_drop_replication_slot(",
    "else create role ",
];

/// Characters that a message shows of a statement.
const BRIEF_MAX: usize = 160;

impl Step {
    pub(super) fn new(does: Does, sql: String) -> Step {
        Step { sql, does }
    }

    /// Gives what messages show of it, on a line: of a block that guards a statement that
    /// statement, and of a long one its beginning.
    pub(crate) fn brief(&self) -> String {
        let line = self.sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let guarded = || {
            let at = ESSENTIAL.iter().find_map(|begin| line.find(begin))?;
            let guarded = line[at..].split("; end").next()?;
            Some(guarded.strip_prefix("else ").unwrap_or(guarded))
        };
        let shown = if line.starts_with("do ") { guarded() } else { None };
        let shown = shown.unwrap_or(&line);
        match shown.char_indices().nth(BRIEF_MAX) {
            Some((end, _)) => format!("{}…", &shown[..end]),
            None => shown.to_owned(),
        }
    }
}

/// Steps as a person runs them one by one: each in its transaction, which ends whatever the session
/// was told before, and none waits long for a lock. The creation of a slot alone waits for as long
/// as it takes, and nobody waits behind it; nor does anybody for the right of a role. What reads
/// the comment has to see what was written while it waited. What is committed keeps its lock for as
/// long as it waits for a standby.
pub(crate) fn printed(steps: &[Step]) -> String {
    let part = |step: &Step| {
        let Step { sql, does } = step;
        if does.is_of_slot() || matches!(does, Does::Role | Does::Grant(_)) {
            return sql.clone();
        }
        let level = if does.reads_comment() { " isolation level read committed" } else { "" };
        format!(
            "begin{level};\nset local lock_timeout = '{LOCK_TIMEOUT}';\n\
             set local synchronous_commit = local;\n{sql};\ncommit"
        )
    };
    steps.iter().map(part).collect::<Vec<_>>().join(";\n")
}

#[cfg(test)]
mod tests {
    use super::{Does, Step, printed};
    use crate::lsn::Lsn;
    use crate::preflight::cure::{claim, create_role, drop_known_slot, drop_publication};
    use crate::preflight::memory::Memory;

    #[test]
    fn a_lock_is_waited_for_briefly_and_a_slot_as_long_as_it_takes() {
        let step = |does, sql: &str| Step::new(does, sql.to_owned());
        let steps = [
            step(Does::SetPublication, "a"),
            step(Does::SetPublication, "b;\nc"),
            step(Does::CreateSlot, "d"),
        ];
        let limits = "set local lock_timeout = '2s';\nset local synchronous_commit = local";
        let expected =
            format!("begin;\n{limits};\na;\ncommit;\nbegin;\n{limits};\nb;\nc;\ncommit;\nd");
        assert_eq!(printed(&steps), expected);
        assert_eq!(printed(&steps[2..]), "d");
    }

    #[test]
    fn a_message_shows_what_a_long_statement_is_about() {
        let brief = |sql: &str| Step::new(Does::SetPublication, sql.to_owned()).brief();
        assert_eq!(
            brief("alter table a\n  replica identity full"),
            "alter table a replica identity full"
        );
        let guarded = "do $setup$ begin if x then raise; else comment on publication p is 'c'; end \
                       if; end $setup$";
        assert_eq!(brief(guarded), "comment on publication p is 'c'");
        let long = brief(&"é".repeat(1_000));
        assert!(long.chars().count() < 200 && long.ends_with('…'), "{long}");
        let step = drop_known_slot("s", Lsn(7));
        assert_eq!(step.brief(), "pg_catalog.pg_drop_replication_slot('s')");
        assert_eq!(create_role("r", None).brief(), "create role \"r\" login");
        assert_eq!(drop_publication("p", None, None).brief(), "drop publication \"p\"");
        assert_eq!(claim("p", "s", &[], Memory::default()).brief().find("comment on"), Some(0));
    }
}
