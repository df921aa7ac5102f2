//! Whether anything that the looks at the tables read may have changed since the last one: what the
//! watch asks again and again instead of them.
//!
//! First for the transactions that a question sees: as long as these are the same, so is the
//! catalog, and that costs the server nothing. Where something was written, for the versions of the
//! catalog's rows, once through. Only when these differ somebody has to look.

use tokio_postgres::{Client, Row, Statement};

/// What is known of the catalog as it was looked at.
#[derive(Default)]
pub struct CatalogChanges {
    statements: Option<Statements>,
    kept: Option<Seen>,
}

/// How the catalog was before a look at it.
#[derive(Debug)]
pub struct Seen {
    /// The transactions that it shows.
    moment: String,
    /// The oldest that it may not show, an xid.
    oldest: String,
    /// What those from `oldest` on have changed.
    changes: String,
}

/// The questions, which are asked for as long as the session lasts.
#[derive(Clone)]
struct Statements {
    moment: Statement,
    changes: Statement,
}

impl CatalogChanges {
    /// How the catalog is, if anything in it may have changed since what was kept; `None` if
    /// nothing has. It has to be asked before what is looked at then: so it can never pass for a
    /// later state.
    ///
    /// # Errors
    ///
    /// A question's.
    pub async fn since(&mut self, client: &Client) -> Result<Option<Seen>, tokio_postgres::Error> {
        let Statements { moment, changes } = self.statements(client).await?;
        let row = client.query_one(&moment, &[]).await?;
        let (moment, oldest): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let ask = async |oldest: &String| {
            let row: Row = client.query_one(&changes, &[oldest]).await?;
            row.try_get::<_, String>(0)
        };
        if let Some(kept) = &mut self.kept {
            if kept.moment == moment {
                return Ok(None);
            }
            if kept.changes == ask(&kept.oldest).await? {
                kept.moment = moment;
                return Ok(None);
            }
        }
        let changes = ask(&oldest).await?;
        Ok(Some(Seen { moment, oldest, changes }))
    }

    /// Remembers how the catalog was before a look, which has been made.
    pub fn keep(&mut self, seen: Seen) {
        self.kept = Some(seen);
    }

    async fn statements(&mut self, client: &Client) -> Result<Statements, tokio_postgres::Error> {
        if let Some(statements) = &self.statements {
            return Ok(statements.clone());
        }
        let statements = Statements {
            moment: client.prepare(include_str!("../../sql/catalog_moment.sql")).await?,
            changes: client.prepare(include_str!("../../sql/catalog_changes.sql")).await?,
        };
        Ok(self.statements.insert(statements).clone())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// The catalogs, tables and views, that a question reads.
    fn catalogs(question: &str) -> BTreeSet<&str> {
        let text = question.lines().filter(|line| !line.trim_start().starts_with("--"));
        let words = text
            .flat_map(|line| line.split(|one: char| !one.is_ascii_alphanumeric() && one != '_'));
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        let reads = words.windows(2).filter(|pair| ["from", "join"].contains(&pair[0]));
        reads.map(|pair| pair[1]).filter(|name| name.starts_with("pg_")).collect()
    }

    #[test]
    fn every_catalog_that_a_look_reads_is_asked_for_changes() {
        let known = catalogs(include_str!("../../sql/catalog_changes.sql"));
        for look in [
            include_str!("../../sql/shape.sql"),
            include_str!("../../sql/lookup_shape.sql"),
            include_str!("../../sql/published.sql"),
            include_str!("../../sql/preflight_tables.sql"),
            include_str!("../../sql/preflight_views.sql"),
        ] {
            let read = catalogs(look);
            assert!(read.len() > 2, "{look}");
            for catalog in read {
                // The view of pg_class, and what changes when the settings are read.
                let is_told = ["pg_matviews", "pg_settings"].contains(&catalog);
                assert!(is_told || known.contains(catalog), "{catalog}");
            }
        }
    }
}
