//! How the database is to be for the rules: what is published, and which replica identities that
//! takes.
//!
//! Takes: rules and catalog. Gives: a plain value, worked out once, in passes of
//! which each reads what those before it found: the operations, the identities, the generated
//! columns, and what may be published. Never knows: a server, or what is to be told. The checks
//! tell how the catalog differs from it, and `difference` has the steps from the one to the other.
//!
//! Since version 18 the server refuses every UPDATE and DELETE of a published table whose replica
//! identity has a generated column that is not published, as a full one may
//! (`pub_contains_invalid_column` in publicationcmds.c). So what one column needs may ask for an
//! identity, this for a generated column, and that stands against publishing the table at all.

use std::collections::HashMap;

use super::catalog::{Catalog, Column, FullRefused, Publication, Table};
use crate::config::{Operations, TableName};
use crate::keys::{ColumnUse, Purpose, Rules};

/// The first version that publishes generated columns, and refuses writes without them.
pub(super) const GENERATED_VERSION_MIN: i32 = 180_000;

/// How the database is to be.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// The operations that are published: all that rules look at, and what is published already.
    pub(super) operations: Operations,
    /// Whether a publication that is made has stored generated columns.
    pub(super) has_generated: bool,
    /// Of each table of the rules that is there.
    tables: HashMap<TableName, Goal<'a>>,
}

/// How a table is to be.
#[derive(Debug)]
pub(super) struct Goal<'a> {
    /// Whether it and its partitions are to get a full replica identity, without which old values
    /// would be missing that rules need, or its rows could not be written to.
    pub(super) gets_full: bool,
    /// Whether any of them has a full one then.
    pub(super) is_full: bool,
    /// Why none of them may get one: the server would refuse the application's writes.
    pub(super) forbids_full: Option<String>,
    /// The generated columns that the publication has not, as it is or as it is made, on a server
    /// for which that matters; those that nothing cures first.
    pub(super) unsent: Vec<&'a Column>,
    /// The first of these that the replica identity has then, if writes are published.
    pub(super) refused_column: Option<&'a Column>,
    /// Whether it may be published, and what has to be so before.
    pub(super) publishing: Result<Before, String>,
}

/// Everything that has to be so before a table is published: else the application's writes to it
/// would fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Before {
    /// The publication has stored generated columns.
    pub(super) generated: bool,
    /// Its replica identity, and that of its partitions, is full.
    pub(super) full: bool,
}

/// A table, and everything that is known of it once its columns are held against the rules.
struct Identified<'a> {
    table: &'a Table,
    uses: Vec<ColumnUse<'a>>,
    gets_full: bool,
    is_full: bool,
    forbids_full: Option<String>,
}

impl<'a> Wanted<'a> {
    /// How the database of this catalog is to be for these rules.
    pub(super) fn of(rules: &'a Rules, catalog: &'a Catalog) -> Wanted<'a> {
        let (publication, version) = (catalog.publication.as_ref(), catalog.version);
        let published = publication.map_or(Operations::NONE, Publication::operations);
        let operations = rules.all_operations().union(published);
        let mut uses: HashMap<&TableName, Vec<ColumnUse<'a>>> = HashMap::new();
        for column in rules.column_uses() {
            uses.entry(column.table).or_default().push(column);
        }
        let identified = catalog.tables.iter().map(|table| {
            let uses = uses.remove(&table.relation.table_name()).unwrap_or_default();
            Identified::of(table, uses, version)
        });
        let identified: Vec<Identified<'a>> = identified.collect();
        let matters = version >= GENERATED_VERSION_MIN;
        let has_generated = matters && identified.iter().any(Identified::needs_generated);
        let publishes_generated = publication
            .map_or(has_generated, |publication| publication.pubgencols.as_deref() == Some("s"));
        let writes = operations.update || operations.delete;
        let tables = identified.into_iter().map(|one| {
            let unsent = if matters { one.unsent(publishes_generated) } else { Vec::new() };
            (one.table.relation.table_name(), one.goal(unsent, writes))
        });
        Wanted { operations, has_generated, tables: tables.collect() }
    }

    /// Whether changes and removals of rows are published: then each table needs an identity.
    pub(super) fn writes(&self) -> bool {
        self.operations.update || self.operations.delete
    }

    /// How a table of the catalog is to be.
    pub(super) fn goal(&self, table: &Table) -> &Goal<'a> {
        &self.tables[&table.relation.table_name()]
    }
}

/// Whether a key would have `*` in the place of this column if its old value were not sent.
pub(super) fn needs_old(column: &ColumnUse<'_>) -> bool {
    let Operations { update, delete, .. } = column.operations;
    let is_used = matches!(column.purpose, Purpose::Key { old: true, .. });
    is_used && !column.immutable && (update || delete)
}

/// Says what is to be done about a virtual column that a replica identity has, or must have.
pub(super) fn about_virtual(table: &Table, column: &Column) -> String {
    format!(
        "`{}` is virtual: make it `stored`, or give `{}` another identity than a full one",
        column.name,
        table.relation.table_name()
    )
}

impl<'a> Identified<'a> {
    fn of(table: &'a Table, uses: Vec<ColumnUse<'a>>, version: i32) -> Identified<'a> {
        // A column that is not there, such as one that was renamed, has a finding of its own.
        let is_there = |name: &str| table.columns.iter().any(|column| column.name == name);
        let lacks_old = |used: &ColumnUse<'_>| {
            needs_old(used) && is_there(used.column) && !table.identifies(used.column)
        };
        let is_needed =
            table.holders().any(|one| !one.has_identity()) || uses.iter().any(lacks_old);
        let forbids_full = forbids_full(table, version);
        let gets_full = is_needed && forbids_full.is_none();
        let is_full = gets_full || table.family().any(|relation| relation.identity == 'f');
        Identified { table, uses, gets_full, is_full, forbids_full }
    }

    /// Whether the replica identity has the column then.
    fn identifies(&self, column: &Column) -> bool {
        self.is_full || self.table.family().any(|relation| relation.identifies(&column.name))
    }

    /// Whether stored generated columns of it have to be published.
    fn needs_generated(&self) -> bool {
        let is_used = |column: &Column| self.uses.iter().any(|used| used.column == column.name);
        let mut stored = self.table.columns.iter().filter(|column| is_stored(column));
        stored.any(|column| self.identifies(column) || is_used(column))
    }

    fn unsent(&self, publishes_generated: bool) -> Vec<&'a Column> {
        let columns = &self.table.columns;
        let virtuals = columns.iter().filter(|column| column.is_virtual);
        let stored = columns.iter().filter(|column| !publishes_generated && is_stored(column));
        virtuals.chain(stored).collect()
    }

    fn goal(self, unsent: Vec<&'a Column>, writes: bool) -> Goal<'a> {
        let identified = unsent.iter().copied().find(|column| self.identifies(column));
        let refused_column = identified.filter(|_| writes);
        let publishing = self.publishing(refused_column, writes);
        let Identified { gets_full, is_full, forbids_full, .. } = self;
        Goal { gets_full, is_full, forbids_full, unsent, refused_column, publishing }
    }

    fn publishing(&self, refused_column: Option<&Column>, writes: bool) -> Result<Before, String> {
        if let Some(column) = refused_column.filter(|column| column.is_virtual) {
            return Err(about_virtual(self.table, column));
        }
        let full = writes && self.table.holders().any(|relation| !relation.has_identity());
        match &self.forbids_full {
            Some(why) if full => {
                let shown = self.table.relation.table_name();
                Err(format!("`{shown}` has no replica identity, and {why}"))
            }
            _ => Ok(Before { generated: refused_column.is_some(), full }),
        }
    }
}

/// Why the server would refuse the application's writes after a full identity, and what cures that:
/// a virtual column, or what another publication, not walsweep's to alter, has of the table.
fn forbids_full(table: &Table, version: i32) -> Option<String> {
    let mut columns = table.columns.iter();
    let matters = version >= GENERATED_VERSION_MIN;
    if let Some(column) = columns.find(|column| column.is_virtual && matters) {
        return Some(format!(
            "a full identity would have `{}`, which is virtual, and the server would refuse UPDATE \
             and DELETE; take an identity by index, or `immutable` columns",
            column.name
        ));
    }
    let refused = table.full_refused.as_ref()?;
    let FullRefused { publication, name, .. } = refused;
    let (what, cure) = refused.told();
    Some(format!(
        "with a full identity of `{name}` the server would refuse the application's own UPDATE and \
         DELETE: publication `{publication}` {what}; {cure}, take an identity by index, or \
         `immutable` columns"
    ))
}

impl FullRefused {
    /// Says what the other publication has or lacks, and what cures it.
    pub(super) fn told(&self) -> (String, String) {
        let FullRefused { publication, column, .. } = self;
        match column {
            None => (
                "has a column list for it".to_owned(),
                "publish the whole table there, without a list".to_owned(),
            ),
            Some(column) => (
                format!("does not publish its generated column `{column}`"),
                format!("set `publish_generated_columns = stored` for `{publication}`"),
            ),
        }
    }
}

fn is_stored(column: &Column) -> bool {
    column.is_generated && !column.is_virtual
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Wanted;
    use crate::config::{Located, Rule};
    use crate::keys::Rules;
    use crate::preflight::catalog::Catalog;

    /// The catalog of a server of version 18 with a table `t` that has a key `id`, and a column
    /// `g` that is generated; `relation` and `table` are what is different from that.
    fn catalog(publication: &Value, relation: &Value, table: &Value) -> Catalog {
        let column = |name: &str, is_generated, is_virtual| {
            json!({
                "name": name, "is_generated": is_generated, "is_virtual": is_virtual, "type_id": 25,
            })
        };
        let mut all = json!({
            "backend_pid": 1, "database": "app", "is_in_recovery": false, "wal_level": "logical",
            "version": 180_000, "absent_standbys": [], "asynchronous": [], "slots_max": 1,
            "slots_used": 0, "senders_max": 1, "senders_used": 0, "user": "app",
            "is_superuser": false, "prepared": { "count": 0, "seconds": 0 }, "slots": [],
            "other_tables": [], "unidentified": [], "publication": publication,
            "tables": [{
                "relation": {
                    "schema": "public", "name": "t", "kind": "r", "persistence": "p",
                    "identity": "d", "identity_columns": ["id"], "is_published": false,
                },
                "columns": [
                    column("id", false, false), column("a", false, false),
                    column("g", true, table["is_virtual"] == true),
                ],
                "partitions": [], "is_listed": false, "has_column_list": false,
                "has_row_filter": false,
            }],
        });
        let [table_now] = all["tables"].as_array_mut().unwrap().as_mut_slice() else { panic!() };
        for (name, value) in relation.as_object().unwrap() {
            table_now["relation"][name] = value.clone();
        }
        table_now["full_refused"] = table["full_refused"].clone();
        serde_json::from_value(all).unwrap()
    }

    fn publication(generated: &str) -> Value {
        json!({
            "puballtables": false, "pubinsert": true, "pubupdate": false, "pubdelete": false,
            "pubtruncate": false, "pubviaroot": false, "pubgencols": generated, "owner": "app",
            "owner_is_superuser": false, "owner_owns": true,
        })
    }

    /// Checks what a rule for every change of table `t` wants of it, with this key. Expects the
    /// names of all that holds, and before what the table must not be published, or why it never
    /// may.
    #[track_caller]
    fn check(key: &str, catalog: &Catalog, expected: &[&str]) {
        let rules = Rules::compile(&[Rule::for_tests("t", &[key])]).unwrap();
        let wanted = Wanted::of(&rules, catalog);
        let goal = wanted.goal(&catalog.tables[0]);
        let before = goal.publishing.as_ref().copied().unwrap_or_default();
        let all = [
            ("has_generated", wanted.has_generated),
            ("gets_full", goal.gets_full),
            ("is_full", goal.is_full),
            ("unsent", !goal.unsent.is_empty()),
            ("refused_column", goal.refused_column.is_some()),
            ("before: generated", before.generated),
            ("before: full", before.full),
        ];
        let mut held: Vec<&str> = all.iter().filter(|(_, is_so)| *is_so).map(|one| one.0).collect();
        held.extend(goal.publishing.as_ref().err().and_then(|why| why.split([':', ',']).next()));
        assert_eq!(held, expected, "{key}");
    }

    /// One column whose old value is needed asks for a full identity, that for the generated column
    /// to be published, and where that cannot be, for neither.
    #[test]
    fn what_one_column_needs_is_followed_to_its_end() {
        let (same, no_publication) = (json!({}), Value::Null);
        let plain = catalog(&no_publication, &same, &same);
        check("k:{id}", &plain, &["unsent"]);
        check("k:{g}", &plain, &["has_generated", "gets_full", "is_full"]);
        check("k:{a}", &plain, &["has_generated", "gets_full", "is_full"]);
        let there = catalog(&publication("n"), &same, &same);
        let late = ["unsent", "refused_column", "before: generated"];
        check("k:{a}", &there, &[&["has_generated", "gets_full", "is_full"][..], &late].concat());
        let sent = catalog(&publication("s"), &same, &same);
        check("k:{a}", &sent, &["has_generated", "gets_full", "is_full"]);
        let is_virtual = json!({ "is_virtual": true });
        check("k:{a}", &catalog(&no_publication, &same, &is_virtual), &["unsent"]);
        let full = json!({ "identity": "f", "identity_columns": [] });
        let never = ["is_full", "unsent", "refused_column", "`g` is virtual"];
        check("k", &catalog(&no_publication, &full, &is_virtual), &never);
    }

    #[test]
    fn a_table_without_identity_gets_a_full_one_unless_another_publication_forbids_it() {
        let bare = json!({ "identity": "n", "identity_columns": [] });
        let catalog = |table| catalog(&Value::Null, &bare, &table);
        let full = ["has_generated", "gets_full", "is_full", "before: full"];
        check("k", &catalog(json!({})), &full);
        let refused = json!({ "publication": "other", "name": "public.t", "column": null });
        let refused = catalog(json!({ "full_refused": refused }));
        check("k", &refused, &["unsent", "`public.t` has no replica identity"]);
    }

    #[test]
    fn a_column_that_never_changes_needs_no_old_value() {
        let catalog = catalog(&Value::Null, &json!({}), &json!({}));
        let rule = Rule::for_tests("t", &["k:{a}"]);
        let rule = Rule { immutable: vec![Located::for_tests("a")], ..rule };
        let rules = Rules::compile(&[rule]).unwrap();
        assert!(!Wanted::of(&rules, &catalog).goal(&catalog.tables[0]).gets_full);
    }
}
