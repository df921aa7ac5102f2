//! Everything that the stream does not tell of the rules' tables; and of the tables that kept
//! answers of lookups depend on.
//!
//! A table that is renamed, dropped, made again under its name or taken out of the publication
//! simply has no changes any more; a partition that is attached or detached brings or takes rows
//! without any; a column that is converted, a label of an enum that is renamed, a policy of row
//! security changes what readers see, and no row is sent. Each changes the shape. It is looked at
//! while the stream runs ([`watch`](crate::source::watch)), and is part of what a watermark is
//! written under ([`Prints`]), so that a crash in between forgets nothing.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use crate::config::{Config, TableName};
use crate::keys::{Basis, Bound, Lookup, Print, Rules};
use crate::postgres::Endpoint;
use crate::preflight;
use crate::sweep::{Prints, TablePrint, Tables};

/// The objects that are looked at: tables, the publication, the event trigger of views.
#[derive(Clone, Debug)]
pub struct Watched {
    tables: (Vec<String>, Vec<String>),
    publication: String,
    /// The names that the event trigger may have, if rules look at views.
    triggers: Option<Vec<String>>,
    /// The tables that kept answers of lookups depend on, by oid.
    lookups: Vec<u32>,
}

/// How the tables are that are there.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    tables: Tables,
    /// Each by its oid.
    relations: Vec<(u32, TableName)>,
}

/// A row of `sql/shape.sql`.
struct Fact {
    root: Option<u32>,
    kind: String,
    name: String,
    face: String,
    version: Option<String>,
    more: Option<String>,
    is_born_empty: bool,
}

impl Watched {
    /// The tables and views of the rules, and the tables that kept answers of lookups depend on.
    #[must_use]
    pub fn new(rules: &Rules, lookups: &[Basis], publication: &str, slot: &str) -> Watched {
        let read = || {
            let reads = lookups.iter().filter_map(|basis| basis.reads.as_ref());
            reads.flat_map(|reads| &reads.tables)
        };
        let mut tables: BTreeSet<&TableName> = rules.tables().collect();
        tables.extend(read().map(|(_, table)| table));
        tables.extend(rules.views());
        Watched {
            tables: owned(tables.into_iter()),
            publication: publication.to_owned(),
            triggers: rules.views().next().map(|_view| preflight::trigger_names(slot)),
            lookups: read().map(|(oid, _)| *oid).collect(),
        }
    }

    /// How they are now. It locks no table.
    ///
    /// # Errors
    ///
    /// The query's.
    pub async fn look(&self, client: &Client) -> Result<Shape, tokio_postgres::Error> {
        let rows = self.ask(client, &|question| question).await?;
        let facts = rows.iter().map(Fact::read).collect::<Result<Vec<_>, _>>()?;
        Ok(Shape::new(facts))
    }

    /// A text that is another one when [`look`](Watched::look) would give another shape; the server
    /// alone has the trouble of many tables.
    ///
    /// # Errors
    ///
    /// The query's.
    pub async fn digest(&self, client: &Client) -> Result<String, tokio_postgres::Error> {
        let rows = self.ask(client, &|question| preflight::digest_of(&question)).await?;
        let parts = rows.iter().map(|row| row.try_get::<_, &str>(0));
        Ok(parts.collect::<Result<Vec<_>, _>>()?.join(" "))
    }

    async fn ask(
        &self,
        client: &Client,
        wrap: &dyn Fn(String) -> String,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        if is_off() {
            return Ok(Vec::new());
        }
        let Watched { tables, publication, triggers, lookups } = self;
        let values: [&(dyn ToSql + Sync); 4] = [&tables.0, &tables.1, publication, triggers];
        let question = preflight::with_published(include_str!("../../sql/shape.sql"));
        let question = wrap(question);
        let asked = client.query(&question, &values);
        let mut rows = preflight::of_many(client, tables.0.len(), asked).await?;
        if !lookups.is_empty() {
            let question = include_str!("../../sql/lookup_shape.sql").to_owned();
            rows.extend(client.query(&wrap(question), &[lookups]).await?);
        }
        Ok(rows)
    }
}

fn owned<'a>(tables: impl Iterator<Item = &'a TableName>) -> (Vec<String>, Vec<String>) {
    tables.map(|table| (table.schema.clone(), table.name.clone())).unzip()
}

/// The switch with which tests see that a stream is read right, without the sweep that would hide
/// it if it were not. It exists only with the feature `failpoints`, which no release build has.
fn is_off() -> bool {
    cfg!(feature = "failpoints") && std::env::var_os("WALSWEEP_TEST_UNWATCHED").is_some()
}

impl Fact {
    fn read(row: &Row) -> Result<Fact, tokio_postgres::Error> {
        let name: Option<String> = row.try_get(2)?;
        Ok(Fact {
            root: row.try_get(0)?,
            kind: row.try_get(1)?,
            name: name.unwrap_or_default(),
            face: row.try_get(3)?,
            version: row.try_get(4)?,
            more: row.try_get(5)?,
            is_born_empty: row.try_get(6)?,
        })
    }

    fn print(&self) -> Print {
        Print::of([&self.face])
    }

    fn version(&self) -> Print {
        Print::of(&self.version)
    }
}

/// The facts that are gathered of one table.
#[derive(Default)]
struct Draft {
    schema: String,
    name: String,
    /// The facts that may not be others, in order.
    fixed: BTreeSet<[String; 3]>,
    lookup: BTreeSet<String>,
    print: TablePrint,
}

impl Draft {
    fn take(&mut self, fact: Fact) {
        let (print, version) = (fact.print(), fact.version());
        let own = Print::of([&fact.kind, &fact.name]);
        match fact.kind.as_str() {
            "table" => {
                self.print.row = (version, Print::of(&fact.more));
                self.name.clone_from(&fact.name);
            }
            "schema" => {
                (self.print.schema, self.print.has_namesake) = (version, fact.more.is_some());
                self.schema.clone_from(&fact.name);
            }
            "files" => {
                self.print.files = Some(print);
                return;
            }
            "column" => {
                // A number of Postgres's, from 1 to 1 600, and the name.
                let (number, name) = fact.name.split_once(' ').unwrap_or((&fact.name, ""));
                let number = number.parse().unwrap_or_default();
                self.print.columns.insert(number, (print, version));
                self.print.names.columns.insert(number, name.to_owned());
                if fact.more.is_some() {
                    self.print.generated.insert(number);
                }
                return;
            }
            "type" | "label" | "partition" => {
                self.print.parts.insert(own, print);
                let kind = match fact.kind.as_str() {
                    "partition" => "a partition",
                    "label" => "a label of an enum",
                    _ => "a type",
                };
                self.print.names.parts.insert(own, kind);
                if fact.is_born_empty {
                    self.print.born_empty.insert(own);
                }
                if fact.more.is_some() {
                    self.print.as_made.insert(own);
                }
                return;
            }
            "lookup" => {
                self.lookup.insert(fact.face);
                return;
            }
            _ => {}
        }
        self.fixed.insert([fact.kind, fact.name, fact.face]);
    }

    fn finish(mut self) -> (TableName, TablePrint) {
        self.print.fixed = Print::of(self.fixed.iter().flatten());
        self.print.lookup = Print::of(&self.lookup);
        let name = TableName { schema: self.schema, name: self.name };
        self.print.names.table = name.to_string();
        (name, self.print)
    }
}

impl Shape {
    fn new(facts: Vec<Fact>) -> Shape {
        let mut drafts: BTreeMap<u32, Draft> = BTreeMap::new();
        let mut shape = Shape::default();
        for fact in facts {
            match (fact.root, fact.kind.as_str()) {
                (Some(root), _) => drafts.entry(root).or_default().take(fact),
                (None, "trigger") => shape.tables.trigger = fact.print(),
                (None, "role") => shape.tables.role = fact.print(),
                (None, _) => shape.tables.publication = fact.print(),
            }
        }
        // Of a table that has another name by now only its lookup is told.
        for (oid, draft) in drafts.into_iter().filter(|(_, draft)| !draft.name.is_empty()) {
            let (name, print) = draft.finish();
            shape.tables.tables.insert(Print::of_table(&name), print);
            shape.relations.push((oid, name));
        }
        shape
    }

    /// The tables, each by its `pg_class.oid`.
    pub fn relations(&self) -> impl Iterator<Item = (u32, &TableName)> {
        self.relations.iter().map(|(oid, table)| (*oid, table))
    }

    /// How the tables read.
    #[must_use]
    pub fn into_tables(self) -> Tables {
        self.tables
    }

    /// Gives the prints that a watermark is written under while the tables are so, and the rules
    /// are bound as these.
    #[must_use]
    pub fn prints(&self, config: &Config, bound: &Bound) -> Prints {
        let replicas: Vec<String> =
            config.postgres.replicas.iter().map(Endpoint::address).collect();
        let kept = |lookup: &Lookup| {
            let tables = lookup.reads.as_ref()?.tables.iter();
            Some((lookup.print(), tables.map(|(_, table)| Print::of_table(table)).collect()))
        };
        let lookups = bound.lookups().iter().filter_map(kept).collect();
        Prints::new(bound.prints(), lookups, self.tables.clone(), &replicas)
    }
}

#[cfg(test)]
mod tests {
    use super::{Fact, Shape};
    use crate::keys::Print;
    use crate::sweep::TablePrint;

    fn fact(kind: &str, name: &str, face: &str) -> Fact {
        let (root, kind, name, face) = (Some(7), kind.into(), name.into(), face.into());
        Fact { root, kind, name, face, version: None, more: None, is_born_empty: false }
    }

    fn print(facts: Vec<Fact>) -> TablePrint {
        let named = [fact("table", "t", "7 r p"), fact("schema", "s", "1")];
        let shape = Shape::new(named.into_iter().chain(facts).collect());
        let name: Vec<String> =
            shape.relations().map(|(oid, name)| format!("{oid} {name}")).collect();
        assert_eq!(name, ["7 s.t"]);
        let mut tables = shape.into_tables().tables;
        tables.pop_first().unwrap().1
    }

    /// Every kind of `sql/shape.sql` has its place, so that none of them goes unnoticed.
    #[test]
    fn each_kind_of_fact_is_part_of_the_fingerprint() {
        let plain = print(Vec::new());
        for kind in
            ["published", "files", "column", "type", "label", "partition", "lookup", "security"]
        {
            let (one, other) =
                (print(vec![fact(kind, "1", "a")]), print(vec![fact(kind, "1", "b")]));
            assert!(one != plain && other != one, "{kind}");
        }
        let versions = ["table", "schema"].map(|kind| Fact {
            version: Some("700".into()),
            ..fact(kind, if kind == "table" { "t" } else { "s" }, "")
        });
        for versioned in versions {
            assert_ne!(print(vec![versioned]), plain);
        }
        let of_all =
            |kind: &str| Shape::new(vec![Fact { root: None, ..fact(kind, "", "a") }]).into_tables();
        let [publication, trigger, role] = ["publication", "trigger", "role"].map(of_all);
        let none = Print::default();
        assert!(publication.publication != none && publication.role == none);
        assert!(trigger.trigger != none && trigger.publication == none);
        assert!(role.role != none && role.publication == none);
        let sql = include_str!("../../sql/shape.sql").to_owned()
            + include_str!("../../sql/lookup_shape.sql");
        for kind in [
            "published",
            "files",
            "column",
            "type",
            "label",
            "partition",
            "lookup",
            "table",
            "security",
            "role",
            "trigger",
            "publication",
        ] {
            assert!(sql.contains(&format!("'{kind}'")), "{kind}");
        }
    }
}
