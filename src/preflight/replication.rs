//! Checks of what stands between walsweep and the primary: poolers, and standbys.

use tokio_postgres::{Client, SimpleQueryMessage};

use super::Finding;
use crate::capture::{Identity, Replication};
use crate::config::{Config, SlotOn};
use crate::postgres::connect_sql;

/// `application_name` of the connections that are made to look.
const NAME: &str = "walsweep command";

/// The finding that `place` reaches a pooler.
fn pooler(place: &str, why: &str) -> Finding {
    let found = Finding::error("pooler", format!("`{place}` reaches a pooler {why}"));
    found.hint(format!("let `{place}` name the server itself, by its direct address"))
}

/// Whether a pooler lends the backend of the session behind `client` to others: while that session
/// is idle, a second one is answered by the same backend. Asked without a prepared statement, since
/// a pooler mixes those of all its clients up. `None` when all is well or nothing can be told.
pub(super) async fn shared_backend(config: &Config, client: &Client) -> Option<Finding> {
    let first = backend(client).await?;
    let other = connect_sql(&config.postgres.endpoint, NAME).await.ok()?;
    let second = backend(&other).await;
    other.close().await;
    let why = "that lends one backend to several sessions: what was read on one need not hold on \
               another";
    (second.as_ref() == Some(&first)).then(|| pooler("postgres.url", why))
}

async fn backend(client: &Client) -> Option<String> {
    let answer = client.simple_query(include_str!("../../sql/preflight_server.sql")).await.ok()?;
    answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

/// Checks that the replication connection reaches the primary behind `client`.
pub async fn replication(config: &Config, client: &Client) -> Vec<Finding> {
    let endpoint = &config.postgres.replication_endpoint;
    let is_separate = endpoint.address() != config.postgres.endpoint.address();
    let place = if is_separate { "postgres.replication_url" } else { "postgres.url" };
    let unreachable = |error: crate::capture::Error| {
        if error.is_pooler() {
            return vec![pooler(place, &format!("that streams nothing: {error}"))];
        }
        vec![Finding::error("replication_unreachable", format!("`{place}`: {error}"))]
    };
    let looked = async {
        let mut connection = Replication::connect(endpoint, NAME).await?;
        let identity = connection.identify_system().await?;
        Ok((identity, connection.run().await?.in_recovery))
    };
    match looked.await {
        Err(error) => unreachable(error),
        // A pooler may send every session to any server.
        Ok((_, true)) if is_separate && config.postgres.slot_on == SlotOn::Primary => {
            vec![standby()]
        }
        Ok((identity, _)) => Vec::from_iter(other_server(&identity, client).await),
    }
}

fn standby() -> Finding {
    let standby = Finding::error(
        "replication_standby",
        "`postgres.replication_url` reaches a standby, and the slot is to be on the primary",
    );
    standby.hint(
        "let `postgres.replication_url` name the primary, or leave it out; if the slot is to be \
         there, set `postgres.slot_on = \"standby\"`",
    )
}

/// Another history than the primary's; `None` if it is that, or the primary does not tell.
async fn other_server(identity: &Identity, client: &Client) -> Option<Finding> {
    let row = client.query_one(include_str!("../../sql/identity.sql"), &[]).await.ok()?;
    let (expected, timeline): (String, Option<&str>) = (row.try_get(1).ok()?, row.try_get(2).ok()?);
    let timeline = timeline.and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let is_same = timeline.is_none_or(|timeline| timeline == identity.timeline);
    if identity.system_id == expected && is_same {
        return None;
    }
    let timeline = timeline.unwrap_or_default();
    let message = format!(
        "`postgres.url` reaches system {expected} timeline {timeline}, the replication connection \
         {} timeline {}",
        identity.system_id, identity.timeline
    );
    let hint = "let `postgres.url` and `postgres.replication_url` name the same primary, or a \
                primary and a standby that follows it";
    Some(Finding::error("two_servers", message).hint(hint))
}
