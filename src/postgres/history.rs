//! Which history a server continues: what two servers must share to be taken for one.

use std::fmt;

use tokio_postgres::Client;

/// A history of a cluster. A promotion begins another one, on another timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// The cluster's identifier, shared by a primary and its physical standbys.
    pub system_id: String,
    /// The timeline, which a promotion raises.
    pub timeline: u32,
}

impl fmt::Display for History {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "system {} timeline {}", self.system_id, self.timeline)
    }
}

/// The facts that an ordinary connection tells of its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The history that it writes; `None` if it is a standby, which writes none.
    pub history: Option<History>,
    /// `wal_sender_timeout`, in milliseconds.
    pub wal_sender_timeout_ms: i64,
    /// A value that changes when the server starts after anything but a clean shutdown.
    pub epoch: String,
    /// `server_version_num`.
    pub version_num: i32,
}

/// Asks who the server behind `client` is (`sql/identity.sql`).
///
/// # Errors
///
/// The query's.
pub async fn identify(client: &Client) -> Result<Server, tokio_postgres::Error> {
    let row = client.query_one(include_str!("../../sql/identity.sql"), &[]).await?;
    let system_id: String = row.try_get(1)?;
    // The first digits of a WAL file's name.
    let timeline: Option<&str> = row.try_get(2)?;
    let timeline = timeline.and_then(|digits| u32::from_str_radix(digits, 16).ok());
    Ok(Server {
        history: timeline.map(|timeline| History { system_id, timeline }),
        wal_sender_timeout_ms: row.try_get(3)?,
        epoch: row.try_get(4)?,
        version_num: row.try_get(5)?,
    })
}
