//! Checks of the standbys that readers use: each reachable, a standby, and of this primary.

use tokio_postgres::Client;

use super::{Code, Error, Finding, failover};
use crate::config::Config;
use crate::postgres::identify;
use crate::settle::{SqlStandby, Standby, StandbyError};

/// Checks each of `config.postgres.replicas` against the primary behind `client`. None of what is
/// found keeps `run` from starting: a standby that is gone must not stop the keys of the others.
///
/// # Errors
///
/// When the primary does not tell who it is; an unfit standby is no error but a warning.
pub async fn replicas(config: &Config, client: &Client) -> Result<Vec<Finding>, Error> {
    if config.postgres.replicas.is_empty() {
        return Ok(Vec::new());
    }
    let Some(history) = identify(client).await?.history else {
        // That `postgres.url` reaches a standby is told elsewhere.
        return Ok(Vec::new());
    };
    let mut findings = Vec::new();
    for endpoint in &config.postgres.replicas {
        let standby = SqlStandby::new(endpoint.clone(), history.clone());
        findings.push(check(standby).await);
        findings.extend(failover::standby(&config.postgres, endpoint).await?);
    }
    Ok(findings)
}

async fn check(mut standby: SqlStandby) -> Finding {
    let outcome = match standby.connect().await {
        Ok(()) => standby.replayed().await,
        Err(error) => Err(error),
    };
    let name = standby.name();
    match outcome {
        Ok(answer) => {
            let message = format!("replica `{name}` has replayed up to {}", answer.replayed);
            Finding::info(Code::ReplicaFollows, message)
        }
        Err(error) => {
            let message = format!("replica `{name}`: {error}: nothing would be confirmed");
            Finding::warning(code(&error), message).hint(error.hint())
        }
    }
}

fn code(error: &StandbyError) -> Code {
    match error {
        StandbyError::Connection(error) if error.is_rejection() => Code::ReplicaPrivileges,
        StandbyError::Connection(_) | StandbyError::Timeout => Code::ReplicaUnreachable,
        StandbyError::NotAStandby => Code::ReplicaNotStandby,
        StandbyError::OtherSystem { .. } => Code::ReplicaOtherSystem,
        StandbyError::OtherTimeline { .. } => Code::ReplicaOtherTimeline,
    }
}
