//! How the gate asks the server.

use std::rc::Rc;

use tokio_postgres::{SimpleQueryMessage, Statement};

use super::fence::{Holder, Relations};
use super::{Error, Snapshot, answer};
use crate::lsn::Lsn;
use crate::postgres::Sql;

/// Answers what is visible. The second implementor is the seeded simulation.
pub trait Probe {
    /// Tells what a new snapshot on the primary sees.
    fn snapshot(&self) -> impl Future<Output = Result<Snapshot, Error>>;

    /// A transaction id later than every one assigned so far.
    fn fence(&self) -> impl Future<Output = Result<u64, Error>>;

    /// An LSN behind every commit that is visible now.
    fn position(&self) -> impl Future<Output = Result<Lsn, Error>>;

    /// Which of these transactions are committed, in their order. All of them have ended.
    fn committed(&self, xids: &[u64]) -> impl Future<Output = Result<Vec<bool>, Error>>;

    /// Those of these transactions, which a snapshot showed as running, that may have changed what
    /// matters, in their order. That one is left out stays right: what it changes later it commits
    /// later. One that has ended meanwhile may still be named.
    fn holders(&self, xids: &[u64]) -> impl Future<Output = Result<Vec<Holder>, Error>>;
}

/// Asks over an ordinary connection to the same primary that the slot is on. Which server that is,
/// and which timeline, was checked when the connection was made; a server does not change either
/// without ending it.
pub struct SqlProbe {
    client: Rc<Sql>,
    visible: Statement,
    /// Where it is asked who holds a fence, and of which relations.
    fences: Option<(Rc<Sql>, Relations)>,
}

impl SqlProbe {
    /// Prepares the question on `client`.
    ///
    /// # Errors
    ///
    /// The query's, when it cannot be prepared; [`Error::Timeout`].
    pub async fn new(client: Rc<Sql>) -> Result<SqlProbe, Error> {
        let prepared = client.prepare(include_str!("../../../sql/visible.sql"));
        let visible = answer(async { Ok(prepared.await?) }).await?;
        Ok(SqlProbe { client, visible, fences: None })
    }

    /// Lets it ask on `client` who holds a fence, so that no look waits for the answer. Without
    /// this every transaction holds a fence, whatever it changes.
    #[must_use]
    pub fn with_fences(self, client: Rc<Sql>, relations: Relations) -> SqlProbe {
        SqlProbe { fences: Some((client, relations)), ..self }
    }
}

impl Probe for SqlProbe {
    async fn snapshot(&self) -> Result<Snapshot, Error> {
        let row = self.client.query_one(&self.visible, &[]).await?;
        if row.try_get::<_, bool>(0)? {
            return Err(Error::Standby);
        }
        Ok(row.try_get::<_, &str>(1)?.parse()?)
    }

    async fn fence(&self) -> Result<u64, Error> {
        let messages = self.client.simple_query(include_str!("../../../sql/fence.sql")).await?;
        messages
            .iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
                _ => None,
            })
            .ok_or(Error::Answer(super::snapshot::ParseError))
    }

    async fn position(&self) -> Result<Lsn, Error> {
        let row = self.client.query_one(include_str!("../../../sql/position.sql"), &[]).await?;
        row.try_get::<_, &str>(0)?
            .parse()
            .map_err(|_lsn| Error::Answer(super::snapshot::ParseError))
    }

    async fn committed(&self, xids: &[u64]) -> Result<Vec<bool>, Error> {
        let xids: Vec<i64> = xids.iter().map(|xid| xid.cast_signed()).collect();
        let rows = self.client.query(include_str!("../../../sql/committed.sql"), &[&xids]).await?;
        Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
    }

    async fn holders(&self, xids: &[u64]) -> Result<Vec<Holder>, Error> {
        let Some((client, Relations { schemas, names, oids, any })) = &self.fences else {
            let unknown = |xid: &u64| Holder { xid: *xid, pid: None, prepared: None };
            return Ok(xids.iter().map(unknown).collect());
        };
        let low: Vec<i64> = xids.iter().map(|xid| (xid & 0xFFFF_FFFF).cast_signed()).collect();
        let query = include_str!("../../../sql/fence_holders.sql");
        let rows = client.query(query, &[&low, schemas, names, oids, any]).await?;
        let mut holders = Vec::new();
        for row in rows {
            let (number, pid, prepared): (i64, _, _) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let at = low.iter().position(|low| *low == number);
            let at = at.ok_or(Error::Answer(super::snapshot::ParseError))?;
            holders.push(Holder { xid: xids[at], pid, prepared });
        }
        Ok(holders)
    }
}
