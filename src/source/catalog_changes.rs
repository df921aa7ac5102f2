//! Whether anything that the looks at the tables read may have changed since the last one: what the
//! watch asks again and again instead of them.
//!
//! First for the transactions that a question sees: as long as these are the same, so is the
//! catalog, and that costs the server nothing. Where something was written, for the versions of the
//! catalog's rows, once through. Only when these differ somebody has to look.
//!
//! A catalog that is very bloated is not read in time. What may have changed is then looked at, by
//! the names of the rules' tables, which costs little on whichever catalog; for a while nobody asks
//! for the versions, lest the server reads for seconds again and again.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row, Statement};

/// How long nobody asks for the versions of the catalog's rows after they were not read in time.
const REST: Duration = Duration::from_secs(600);

/// Everything that is known of the catalog as it was looked at.
#[derive(Default)]
pub struct CatalogChanges {
    statements: Option<Statements>,
    kept: Option<Seen>,
    /// When the versions were not read in time, for the last time.
    late: Option<Instant>,
    /// Whether the last question read the catalog.
    has_read: bool,
}

/// How the catalog was before a look at it.
#[derive(Debug)]
pub struct Seen {
    /// The transactions that it shows.
    moment: String,
    /// The oldest that it may not show, an xid.
    oldest: String,
    /// The changes by those from `oldest` on; `None` where they were not read.
    changes: Option<String>,
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
    /// A question's; but not that the server gave up reading the catalog for it.
    pub async fn since(&mut self, client: &Client) -> Result<Option<Seen>, tokio_postgres::Error> {
        let statements = self.statements(client).await?;
        let row = client.query_one(&statements.moment, &[]).await?;
        let (moment, oldest): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        self.has_read = false;
        let kept = self.kept.as_ref();
        if kept.is_some_and(|kept| kept.moment == moment) {
            return Ok(None);
        }
        let before = kept.and_then(|kept| Some((kept.oldest.clone(), kept.changes.clone()?)));
        if let Some((oldest, changes)) = before {
            let now = self.changes(client, &statements, &oldest).await?;
            if let Some(kept) = self.kept.as_mut().filter(|_| now == Some(changes)) {
                kept.moment = moment;
                return Ok(None);
            }
        }
        let changes = self.changes(client, &statements, &oldest).await?;
        Ok(Some(Seen { moment, oldest, changes }))
    }

    /// Reads what transactions from `oldest` on have changed; `None` if the server does not say it
    /// in time, or did not a while ago.
    async fn changes(
        &mut self,
        client: &Client,
        statements: &Statements,
        oldest: &String,
    ) -> Result<Option<String>, tokio_postgres::Error> {
        if self.late.is_some_and(|late| late.elapsed() < REST) {
            return Ok(None);
        }
        self.has_read = true;
        let asked: Result<Row, _> = client.query_one(&statements.changes, &[oldest]).await;
        match asked {
            Ok(row) => row.try_get(0).map(Some),
            Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
                if self.late.replace(Instant::now()).is_none() {
                    tracing::warn!(
                        "the server does not read its catalog in 8 s: the rules' tables are looked \
                         at whenever anything was written. What bloats it is most often \
                         pg_attribute; `vacuum full pg_attribute` locks every query out meanwhile"
                    );
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the last question read the catalog, and was no question of the moment alone.
    #[must_use]
    pub fn has_read(&self) -> bool {
        self.has_read
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
                // The view of pg_class, what changes when the settings are read, and the database,
                // which a session cannot leave.
                let is_told = ["pg_matviews", "pg_settings", "pg_database"].contains(&catalog);
                assert!(is_told || known.contains(catalog), "{catalog}");
            }
        }
    }
}
