//! The role that walsweep logs in as, for whoever may create it.

use postgres_protocol::password::scram_sha_256;
use secrecy::ExposeSecret;

use super::{Error, Hands, Statement};
use crate::config::Config;
use crate::postgres::Endpoint;
use crate::preflight::{Step, create_role, grant_connect};

/// What a role needs before anybody can log in as it.
pub(super) enum Need<'a> {
    /// To be there, to log in and to replicate.
    Login(&'a Endpoint),
    /// To connect to the database.
    Connect(&'a Endpoint),
}

/// What the roles of a configuration need.
pub(super) fn needs(config: &Config) -> Vec<Need<'_>> {
    let (sql, replication) = (&config.postgres.endpoint, &config.postgres.replication_endpoint);
    let other = Some(replication).filter(|other| other.user != sql.user);
    let logins = [sql].into_iter().chain(other);
    logins.map(Need::Login).chain([Need::Connect(sql)]).collect()
}

impl Need<'_> {
    /// The cure; with the password of the configuration, of which the server is sent what it keeps.
    pub(super) fn step(&self, with_password: bool) -> Step {
        match self {
            Need::Login(endpoint) => {
                let password = endpoint.password.as_ref().filter(|_| with_password);
                let verifier =
                    password.map(|password| scram_sha_256(password.expose_secret().as_bytes()));
                create_role(&endpoint.user, verifier.as_deref())
            }
            Need::Connect(endpoint) => grant_connect(&endpoint.user, &endpoint.database),
        }
    }

    fn user(&self) -> &str {
        match self {
            Need::Login(endpoint) | Need::Connect(endpoint) => &endpoint.user,
        }
    }

    /// Whether it is met, by a row of `sql/setup/role_state.sql`.
    fn is_met(&self, row: &tokio_postgres::Row) -> Result<bool, tokio_postgres::Error> {
        match self {
            Need::Login(_) => Ok(row.try_get(0)? && row.try_get(1)?),
            Need::Connect(_) => row.try_get(2),
        }
    }
}

/// What the roles of a configuration lack, with its cure. A new role gets the configuration's
/// password.
///
/// # Errors
///
/// The query's.
pub async fn missing(config: &Config, hands: &Hands<'_>) -> Result<Vec<Statement>, Error> {
    let question = include_str!("../../sql/setup/role_state.sql");
    let mut lacking = Vec::new();
    for need in needs(config) {
        let user = need.user();
        let row = hands.client.query_opt(question, &[&user]).await?;
        let is_met = row.map(|row| need.is_met(&row)).transpose()?.unwrap_or(false);
        if !is_met {
            let why = format!("role `{user}` has to log in, and to replicate");
            let (step, after) = (need.step(true), Vec::new());
            lacking.push(Statement { step, why, is_needed: true, after });
        }
    }
    Ok(lacking)
}
