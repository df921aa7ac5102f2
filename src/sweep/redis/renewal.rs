//! Logins of standing connections, made again before they end.
//!
//! Some servers end a connection some time after its login: Azure's when the token of that login
//! ends, Amazon's after twelve hours. Both keep one that logs in again with a new token before.
//! How long a token lasts is not told, so this happens every two minutes. Azure's tools give out a
//! token until five minutes before its end, and Azure wants the next one three minutes before it.
//!
//! `AUTH` changes nothing on a connection but the user: neither the database, nor `CLIENT
//! TRACKING`, nor what `WAIT` counts, and it is no write. If it is refused, the login before it
//! stands, and so does the connection.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{IntoConnectionInfo, cmd};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::connect::classify;
use super::node::{Error, Kind};
use crate::config;
use crate::password::Unread;

/// The pause between two logins of a connection.
const EVERY: Duration = Duration::from_secs(120);

/// The pause after one that failed: the token before may end soon.
const AGAIN: Duration = Duration::from_secs(20);

/// Logs connections in again and again, until it is dropped.
#[derive(Debug)]
pub(super) struct Renewal(JoinHandle<()>);

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why a connection was not logged in again. It stands.
#[derive(Debug, thiserror::Error)]
enum Missed {
    #[error("{}", .0.told("redis"))]
    Unread(#[from] Unread),
    #[error("{0}")]
    Refused(Error),
}

impl Renewal {
    /// Logs these connections in again and again, if the password may change. One that was sent is
    /// not sent again.
    #[must_use]
    pub(super) fn begin(
        redis: &config::Redis,
        connections: Vec<MultiplexedConnection>,
    ) -> Option<Renewal> {
        if !redis.password.may_change() {
            return None;
        }
        let info = redis.url.as_str().into_connection_info().ok()?;
        let user = info.redis_settings().username().map(str::to_owned);
        let (redis, title, every) = (redis.clone(), redis.title(), every());
        Some(Renewal(tokio::spawn(async move {
            let (mut known, mut is_missed) = (None, false);
            loop {
                sleep(if is_missed { AGAIN.min(every) } else { every }).await;
                let renewed = renew(&redis, user.as_deref(), &connections, &mut known).await;
                match &renewed {
                    Err(error) if !is_missed => tracing::warn!(
                        hint = "where the server ends connections with their token, it ends these",
                        "connections to {title} were not logged in again, and stand: {error}"
                    ),
                    Ok(()) if is_missed => {
                        tracing::info!("connections to {title} are logged in again");
                    }
                    _ => {}
                }
                is_missed = renewed.is_err();
            }
        })))
    }
}

/// The pause between two logins; tests ask for a shorter one, in milliseconds. They can with the
/// feature `failpoints` alone, which no release build has.
fn every() -> Duration {
    let asked = match cfg!(feature = "failpoints") {
        true => std::env::var("WALSWEEP_TEST_RENEWAL_MS").ok(),
        false => None,
    };
    asked.and_then(|text| text.parse().ok()).map_or(EVERY, Duration::from_millis)
}

/// Logs in again, if the password is not `known` to have been sent.
async fn renew(
    redis: &config::Redis,
    user: Option<&str>,
    connections: &[MultiplexedConnection],
    known: &mut Option<[u8; 32]>,
) -> Result<(), Missed> {
    let Some(password) = redis.password.read().await? else { return Ok(()) };
    // A digest: the password itself is kept no longer than it takes to send it.
    let digest = Some(Sha256::digest(password.expose_secret()).into());
    if *known == digest {
        return Ok(());
    }
    for connection in connections {
        log_in_again(connection.clone(), user, &password).await?;
    }
    *known = digest;
    Ok(())
}

/// One that is lost is found so by whoever uses it.
async fn log_in_again(
    mut connection: MultiplexedConnection,
    user: Option<&str>,
    password: &SecretString,
) -> Result<(), Missed> {
    let mut auth = cmd("AUTH");
    if let Some(user) = user {
        auth.arg(user);
    }
    auth.arg(password.expose_secret());
    let Err(error) = auth.exec_async(&mut connection).await else { return Ok(()) };
    match classify(&error) {
        lost if matches!(lost.kind(), Kind::Io | Kind::Timeout) => Ok(()),
        refused => Err(Missed::Refused(refused)),
    }
}
