//! Which rows of a table its rules can use at all, for a publication that sends no others.
//!
//! Postgres asks a row filter F of single row versions
//! (<https://www.postgresql.org/docs/current/logical-replication-row-filter.html>): an INSERT is
//! sent if F(new), a DELETE if F(old), TRUNCATE always. An UPDATE is sent as it is if both hold; if
//! only F(new) does it is sent as an INSERT of the new version, if only F(old) does as a DELETE of
//! the old one: the other version is lost, the rules see another operation, and `changed` is not
//! asked. There is a filter only where none of this changes the keys of any rule of the table.
//!
//! Let I(new), D(old) and U(old, new) say for which rows of an operation a rule's `when` counts as
//! true (`reduce`), always false for operations that are not the rule's. F is true of a row if for
//! any rule I, D or U is, taking the row for each version that it asks. So an INSERT or a DELETE
//! that F rejects counts for no rule. What becomes of an UPDATE is seen for each rule:
//!
//! 1. All columns of F are `immutable` by this rule. Then F(old) = F(new), so that no UPDATE is
//!    sent as something else, and one that F rejects does not count: the versions are equal in all
//!    that U asks.
//! 2. Else U has to be A(old) or B(new), neither asking of the other version; then U is false if
//!    F is of both. If only F(new) is true, A(old) and I(old) are false, and the UPDATE counts if
//!    B(new) does and `changed` lets it pass. The INSERT that it is sent as counts if I(new) does.
//!    So I has to be B; and `changed` has to name nothing, or all columns that I asks: I(old) is
//!    false, so where I(new) is true one of them differs. The INSERT gives the keys of the new
//!    version. That are all, if no placeholder is pinned to the old one, and what is not pinned is
//!    `immutable`, parameters of lookups too: either version gives the same key. If only F(old) is
//!    true, the same holds of the DELETE with D for I, A for B and the versions exchanged. A DELETE
//!    tells the replica identity alone where the UPDATE tells more, so the keys' columns have to be
//!    in it.
//!
//! Columns of F have to be in the replica identity, or the application's own writes fail. So their
//! values are known whenever there is a row, and what `when` makes of them is what F does.

use super::Rules;
use super::compile::Rule;
use super::condition::Formula;
use super::template::Version;
use crate::config::{Source, TableName};

/// More comparisons cost the server more than most rows are worth.
const ASKS_MAX: usize = 32;

/// What the catalog tells of a table, column by column.
pub(crate) struct Facts<'a> {
    /// The type's oid; `None` if the column must not stand in a filter.
    pub(crate) type_id: &'a dyn Fn(&str) -> Option<u32>,
    /// Whether the column is in the replica identity.
    pub(crate) is_identified: &'a dyn Fn(&str) -> bool,
}

impl Rules {
    /// The rows of a table that its rules can use; `None` if that may be any, or if without the
    /// others a key could be another one.
    pub(crate) fn row_filter(&self, table: &TableName, facts: &Facts<'_>) -> Option<Formula> {
        let is_its = |rule: &&Rule| rule.source == Source::Table && rule.table == *table;
        let rules: Vec<&Rule> = self.rules.iter().filter(is_its).collect();
        let counted: Vec<Counted> =
            rules.iter().map(|rule| Counted::of(rule, facts)).collect::<Option<_>>()?;
        let filter = Formula::any(counted.iter().flat_map(Counted::rows).collect());
        let asks = filter.asks();
        // With no comparison it is always true, or no rule ever counts a row.
        if asks.is_empty() || asks.len() > ASKS_MAX {
            return None;
        }
        let is_safe = |(counted, rule): (&Counted, &&Rule)| {
            asks.iter().all(|ask| rule.is_immutable(&ask.column)) || counted.keeps_keys(rule, facts)
        };
        counted.iter().zip(&rules).all(is_safe).then_some(filter)
    }
}

/// When a rule counts a row, by operation.
struct Counted {
    insert: Formula,
    update: Formula,
    delete: Formula,
}

impl Counted {
    fn of(rule: &Rule, facts: &Facts<'_>) -> Option<Counted> {
        let when = |operation, looks| match &rule.when {
            Some(when) if looks => when.reduce(operation, facts.type_id),
            _ => Some(Formula::Always(looks)),
        };
        Some(Counted {
            insert: when("insert", rule.operations.insert)?,
            update: when("update", rule.operations.update)?,
            delete: when("delete", rule.operations.delete)?,
        })
    }

    fn rows(&self) -> [Formula; 3] {
        [&self.insert, &self.update, &self.delete].map(Formula::of_any_version)
    }

    /// Whether an UPDATE that is sent as an INSERT or as a DELETE gives the same keys.
    fn keeps_keys(&self, rule: &Rule, facts: &Facts<'_>) -> bool {
        let parts = match &self.update {
            Formula::Any(parts) => parts.clone(),
            one => vec![one.clone()],
        };
        let is_old = |part: &Formula| part.asks().iter().all(|ask| ask.version == Version::Old);
        let (old, new): (Vec<Formula>, Vec<Formula>) = parts.into_iter().partition(is_old);
        let (old, new) = (Formula::any(old), Formula::any(new));
        let is_never = |part: &Formula| *part == Formula::Always(false);
        let passes = |part: &Formula| {
            let is_named =
                |column: &String| rule.changed.iter().any(|changed| changed.value == *column);
            rule.changed.is_empty() || part.asks().iter().all(|ask| is_named(&ask.column))
        };
        let is_known = |column: &str| (facts.is_identified)(column);
        // What asks both versions at once is in `new`, and in no INSERT.
        new == self.insert
            && old == self.delete
            && (is_never(&new) || (passes(&new) && has_same_keys(rule, Version::Old, &|_| true)))
            && (is_never(&old) || (passes(&old) && has_same_keys(rule, Version::New, &is_known)))
    }
}

/// Whether the keys of an UPDATE can be told without its version `lost`, from what is known.
fn has_same_keys(rule: &Rule, lost: Version, is_known: &dyn Fn(&str) -> bool) -> bool {
    rule.templates.iter().all(|key| {
        let own = key.template.own_columns().map(|one| (one.version, one.column.as_str()));
        let lookups = key.lookup.iter().flat_map(|template| &template.lookups);
        let params = lookups.flat_map(|lookup| &lookup.params);
        let mut all = own.chain(params.map(|param| (Version::Each, param.value.as_str())));
        all.all(|(version, column)| {
            let is_same = version != Version::Each || rule.is_immutable(column);
            version != lost && is_same && is_known(column)
        })
    })
}
