//! What the stream does not tell of the rules' tables, watched while it runs; and of the tables
//! that kept answers of lookups depend on.
//!
//! A table that is renamed, dropped, made again under its name or taken out of the publication
//! simply has no changes any more; a partition that is attached or detached brings or takes rows
//! without any; a column that is added or converted changes what readers see, and no row is sent.
//! Each ends the session. The next one is refused with a cure if the rules no longer fit, and
//! sweeps everything otherwise: the shape is part of the watermark, see
//! [`Watermark::rules`](crate::sweep::Watermark), so that a crash in between forgets nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use crate::config::TableName;
use crate::error::Error;
use crate::keys::Rules;

/// How often it is looked at: within this time a table without changes is noticed.
const INTERVAL: Duration = Duration::from_secs(2);

/// An answer that takes longer means that the connection is dead.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The tables that are looked at, and the publication.
#[derive(Clone, Debug)]
pub struct Watched {
    schemas: Vec<String>,
    names: Vec<String>,
    publication: String,
    /// The tables that kept answers of lookups depend on, by oid.
    lookups: Vec<u32>,
}

/// What `sql/shape.sql` gives: a partitioned table, its partition, a text; and whether the
/// partition began empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape(BTreeMap<(Option<u32>, Option<u32>, String), bool>);

impl Watched {
    /// The tables of the rules, and those that kept answers of lookups depend on.
    #[must_use]
    pub fn new(rules: &Rules, publication: &str) -> Watched {
        let read = || {
            let reads = rules.lookups().iter().filter_map(|lookup| lookup.reads.as_ref());
            reads.flat_map(|reads| &reads.tables)
        };
        let mut tables: Vec<&TableName> = rules.tables().collect();
        for (_, table) in read() {
            if !tables.contains(&table) {
                tables.push(table);
            }
        }
        let tables = tables.iter().map(|table| (table.schema.clone(), table.name.clone()));
        let (schemas, names) = tables.unzip();
        let lookups = read().map(|(oid, _)| *oid).collect();
        Watched { schemas, names, publication: publication.to_owned(), lookups }
    }

    /// How they are now.
    ///
    /// # Errors
    ///
    /// The query's.
    pub async fn look(&self, client: &Client) -> Result<Shape, tokio_postgres::Error> {
        if is_off() {
            return Ok(Shape::default());
        }
        let query = include_str!("../sql/shape.sql");
        let Watched { schemas, names, publication, lookups } = self;
        let mut rows = client.query(query, &[schemas, names, publication]).await?;
        if !lookups.is_empty() {
            rows.extend(client.query(include_str!("../sql/lookup_shape.sql"), &[lookups]).await?);
        }
        let entry = |row: &tokio_postgres::Row| {
            Ok(((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?), row.try_get(3)?))
        };
        rows.iter().map(entry).collect::<Result<_, _>>().map(Shape)
    }

    /// Looks until they are no longer as they were at `first`, and says so.
    pub async fn watch(&self, first: &Shape, client: &Client) -> Error {
        loop {
            sleep(INTERVAL).await;
            match timeout(TIMEOUT, self.look(client)).await {
                Ok(Ok(now)) if now.follows(first) => {}
                Ok(Ok(_)) => return Error::TablesChanged,
                Ok(Err(error)) => return error.into(),
                Err(_) => return Error::Silent(TIMEOUT.as_secs()),
            }
        }
    }
}

/// The switch with which tests see that a stream is read right, without the sweep that would hide
/// it if it were not. It exists only with the feature `failpoints`, which no release build has.
fn is_off() -> bool {
    cfg!(feature = "failpoints") && std::env::var_os("WALSWEEP_TEST_UNWATCHED").is_some()
}

impl Shape {
    /// 16 hex digits that are other for another shape.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut sum = Sha256::new();
        for (root, partition, text) in self.0.keys() {
            sum.update(format!("{root:?} {partition:?} {} {text}\n", text.len()));
        }
        sum.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether nothing else happened since `first` than that empty partitions were made.
    fn follows(&self, first: &Shape) -> bool {
        first.0.keys().all(|key| self.0.contains_key(key))
            && self.0.iter().all(|(key, is_born_here)| *is_born_here || first.0.contains_key(key))
    }
}

#[cfg(test)]
mod tests {
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
            assert_eq!(now.digest() == first.digest(), now == first, "{now:?}");
        }
    }
}
