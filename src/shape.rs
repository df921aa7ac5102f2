//! What the stream does not tell of the rules' tables; and of the tables that kept answers of
//! lookups depend on.
//!
//! A table that is renamed, dropped, made again under its name or taken out of the publication
//! simply has no changes any more; a partition that is attached or detached brings or takes rows
//! without any; a column that is added or converted, a label of an enum that is renamed changes
//! what readers see, and no row is sent. Each changes the shape. It is looked at while the stream
//! runs ([`watch`](crate::watch)), and is part of the watermark
//! ([`Watermark::rules`](crate::sweep::Watermark)), so that a crash in between forgets nothing.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use crate::config::TableName;
use crate::keys::Rules;
use crate::preflight::{self, Misfit};

/// What is looked at: tables, the publication, the event trigger of views.
#[derive(Clone, Debug)]
pub struct Watched {
    tables: (Vec<String>, Vec<String>),
    publication: String,
    /// The event trigger, if rules look at views.
    trigger: Option<String>,
    /// The tables that kept answers of lookups depend on, by oid.
    lookups: Vec<u32>,
}

/// What `sql/shape.sql` gives: a partitioned table, its partition, a text; and whether what that
/// tells of began empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape(BTreeMap<(Option<u32>, Option<u32>, String), bool>);

impl Watched {
    /// The tables of the rules, and those that kept answers of lookups depend on.
    #[must_use]
    pub fn new(rules: &Rules, publication: &str, slot: &str) -> Watched {
        let read = || {
            let reads = rules.lookups().iter().filter_map(|lookup| lookup.reads.as_ref());
            reads.flat_map(|reads| &reads.tables)
        };
        let mut tables: BTreeSet<&TableName> = rules.tables().collect();
        tables.extend(read().map(|(_, table)| table));
        Watched {
            tables: owned(tables.into_iter()),
            publication: publication.to_owned(),
            trigger: rules.views().next().map(|_view| preflight::trigger_name(slot)),
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
        let entry =
            |row: &Row| Ok(((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?), row.try_get(3)?));
        rows.iter().map(entry).collect::<Result<_, _>>().map(Shape)
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
        let Watched { tables, publication, trigger, lookups } = self;
        let values: [&(dyn ToSql + Sync); 4] = [&tables.0, &tables.1, publication, trigger];
        let question = preflight::with_published(include_str!("../sql/shape.sql"));
        let mut rows = client.query(&wrap(question), &values).await?;
        if !lookups.is_empty() {
            let question = include_str!("../sql/lookup_shape.sql").to_owned();
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

impl Shape {
    /// 16 hex digits that are other for another shape, and for other rules that do not fit: those
    /// are swept when they fit again, also by a walsweep that knows nothing but the watermark.
    #[must_use]
    pub fn digest(&self, misfits: &BTreeSet<Misfit>) -> String {
        let mut sum = Sha256::new();
        for (rule, code) in misfits {
            sum.update(format!("misfit {} {rule} {code}\n", rule.len()));
        }
        for (root, partition, text) in self.0.keys() {
            sum.update(format!("{root:?} {partition:?} {} {text}\n", text.len()));
        }
        sum.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether nothing else happened since `first` than that empty partitions were made, and labels
    /// of enums that no row has yet.
    pub(crate) fn follows(&self, first: &Shape) -> bool {
        first.0.keys().all(|key| self.0.contains_key(key))
            && self.0.iter().all(|(key, is_born_here)| *is_born_here || first.0.contains_key(key))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Shape;

    #[test]
    fn only_a_partition_that_began_empty_is_nothing_new() {
        let entry = |partition: u32, born| ((Some(1), Some(partition), "p".to_owned()), born);
        let shape = |entries: &[_]| Shape(entries.iter().cloned().collect());
        let first = shape(&[entry(2, false), entry(3, true)]);
        for (now, follows) in [
            (shape(&[entry(2, false), entry(3, true)]), true),
            (shape(&[entry(2, false), entry(3, true), entry(4, true)]), true),
            (shape(&[entry(2, false), entry(3, true), entry(4, false)]), false),
            (shape(&[entry(2, false)]), false),
            (shape(&[entry(3, true)]), false),
        ] {
            assert_eq!(now.follows(&first), follows, "{now:?}");
            let digest = |shape: &Shape| shape.digest(&BTreeSet::new());
            assert_eq!(digest(&now) == digest(&first), now == first, "{now:?}");
        }
    }
}
