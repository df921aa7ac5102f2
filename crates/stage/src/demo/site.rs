//! The site: its matches, and what it has cached.

use redis::aio::MultiplexedConnection;
use tokio_postgres::Client;

use super::Error;

/// Tables, season and acts of the site.
pub(super) const SCHEMA: [&str; 3] = [
    include_str!("../../sql/football/schema.sql"),
    include_str!("../../sql/football/season.sql"),
    include_str!("../../sql/football/acts.sql"),
];

/// How many keys one Redis command gets: short enough that nothing waits for it.
const BATCH: usize = 500;

/// A key of the site's cache, and what its value is computed from.
#[derive(Clone, Debug)]
pub(super) struct Cached {
    /// The kind of thing that the value tells about, such as `club`.
    pub(super) topic: String,
    /// Which one of them, such as a club's name.
    pub(super) subject: String,
    /// The key.
    pub(super) key: String,
}

/// A match.
#[derive(Clone, Debug)]
pub(super) struct Fixture {
    /// `matches.id`.
    pub(super) id: i64,
    /// `matches.competition_id`.
    pub(super) competition: String,
    /// `matches.home_team`.
    pub(super) home: String,
    /// `matches.away_team`.
    pub(super) away: String,
}

/// Every key that the site caches.
pub(super) async fn cached(sql: &Client) -> Result<Vec<Cached>, Error> {
    let rows = sql.query(include_str!("../../sql/football/cached.sql"), &[]).await?;
    let cached = |row: &tokio_postgres::Row| {
        Ok(Cached { topic: row.try_get(0)?, subject: row.try_get(1)?, key: row.try_get(2)? })
    };
    rows.iter().map(cached).collect()
}

/// Every match, in the order of the season.
pub(super) async fn fixtures(sql: &Client) -> Result<Vec<Fixture>, Error> {
    let rows = sql.query(include_str!("../../sql/football/fixtures.sql"), &[]).await?;
    let fixture = |row: &tokio_postgres::Row| {
        Ok(Fixture {
            id: row.try_get(0)?,
            competition: row.try_get(1)?,
            home: row.try_get(2)?,
            away: row.try_get(3)?,
        })
    };
    rows.iter().map(fixture).collect()
}

/// Caches every one of `cached`, as page views would.
pub(super) async fn fill(
    cache: &mut MultiplexedConnection,
    cached: &[Cached],
) -> Result<(), Error> {
    for batch in cached.chunks(BATCH) {
        let mut command = redis::cmd("MSET");
        for Cached { key, topic, subject } in batch {
            command.arg(key).arg(format!("{topic} {subject}"));
        }
        command.query_async::<()>(cache).await?;
    }
    Ok(())
}

/// Which of `cached` Redis holds, in their order.
pub(super) async fn exist(
    cache: &mut MultiplexedConnection,
    cached: &[&Cached],
) -> Result<Vec<bool>, Error> {
    let mut all = Vec::with_capacity(cached.len());
    for batch in cached.chunks(BATCH) {
        let mut pipe = redis::pipe();
        for cached in batch {
            pipe.exists(&cached.key);
        }
        all.extend(pipe.query_async::<Vec<bool>>(cache).await?);
    }
    Ok(all)
}
