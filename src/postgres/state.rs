//! The state in which every session begins, SQL and replication alike: `sql/session.sql` lists it.
//!
//! It is set behind the login and not by its startup parameters, which poolers in session mode
//! refuse. A pooler in transaction mode must be known before: it would lend the changed session to
//! the application. A server tells at the login which process serves the session; whoever stands
//! in between tells something else, or hands out another process later. So the settings are made
//! only by the process that was told, or that is shown to serve nobody else.

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::Error;
use super::stream::{Established, Stream};

/// Asks which process answers.
pub(crate) const BACKEND: &str = include_str!("../../sql/backend.sql");

/// Gives a session the role's own view again, for the query of a lookup; in a transaction that is
/// rolled back, until then.
pub(crate) const AS_ROLE: &str = include_str!("../../sql/as_role.sql");

/// How often a pooler gets a chance to show that it lends backends out.
const POOLER_ROUNDS: usize = 3;

/// Brings a session into its state, and gives a row if it was `backend` that answered; as one text
/// of several statements, for the simple query protocol.
pub(crate) fn begin(backend: i32) -> String {
    let file = include_str!("../../sql/session_begin.sql");
    without_comments(file).replace("{state}", &state(&backend.to_string()))
}

/// Brings a session into its state again after [`AS_ROLE`], within a transaction.
pub(crate) fn again() -> String {
    state("pg_catalog.pg_backend_pid()")
}

fn state(backend: &str) -> String {
    without_comments(include_str!("../../sql/session.sql")).replace("{backend}", backend)
}

/// The grammar of replication commands has no comments.
fn without_comments(file: &str) -> String {
    let lines: Vec<&str> =
        file.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    lines.join("\n")
}

/// Brings the session behind `client` into its state; says whether `backend` answered, and so
/// whether it did.
pub(super) async fn set(client: &Client, backend: i32) -> Result<bool, Error> {
    let answer = client.simple_query(&begin(backend)).await?;
    Ok(answer.iter().any(|message| matches!(message, SimpleQueryMessage::Row(_))))
}

/// The process that serves the session, as told at the login
/// (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP>). The
/// driver gives it away only in a request to cancel, which nobody gets here.
pub(super) async fn told_backend(client: &Client) -> Result<i32, Error> {
    let unread = |error: std::io::Error| Error::Lost(error.to_string());
    let (ours, mut theirs) = UnixStream::pair().map_err(unread)?;
    client.cancel_token().cancel_query_raw(Stream::Unix(ours), Established).await?;
    // Length, code, process, key: four bytes each.
    let mut request = [0; 16];
    theirs.read_exact(&mut request).await.map_err(unread)?;
    let [_, _, _, _, _, _, _, _, process @ .., _, _, _, _] = request;
    Ok(i32::from_be_bytes(process))
}

/// The process that serves the session behind `client` and no other, if it is so: while that
/// session is idle, the `other` one is answered by another process, and the first by its own.
pub(super) async fn sole_backend(client: &Client, other: &Client) -> Result<Option<i32>, Error> {
    let own = backend(client).await?;
    for _ in 0..POOLER_ROUNDS {
        if backend(other).await? == own || backend(client).await? != own {
            return Ok(None);
        }
    }
    Ok(Some(own))
}

async fn backend(client: &Client) -> Result<i32, Error> {
    let answer = client.simple_query(BACKEND).await?;
    let pid = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    pid.ok_or_else(|| Error::Unexpected("an answer without a backend".to_owned()))
}
