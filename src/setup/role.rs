//! The role that walsweep logs in as, for whoever may create it.

use postgres_protocol::password::scram_sha_256;
use secrecy::ExposeSecret;

use super::{Error, Hands, Statement, run_shown};
use crate::config::Config;
use crate::postgres::Endpoint;
use crate::preflight::{Step, create_role, grant_connect};

/// A need of a role, to be met before anybody can log in as it.
pub(super) enum Need<'a> {
    /// To be there, to log in and to replicate.
    Login(&'a Endpoint),
    /// To connect to the database.
    Connect {
        /// The role.
        user: &'a str,
        /// The database.
        database: &'a str,
    },
}

/// Gives the needs of a configuration's roles. A logical replication connection is one to a
/// database, too.
pub(super) fn needs<'a>(config: &'a Config) -> Vec<Need<'a>> {
    let (sql, replication) = (&config.postgres.endpoint, &config.postgres.replication_endpoint);
    let other = Some(replication).filter(|other| other.user != sql.user);
    let logins = [sql].into_iter().chain(other);
    let connect =
        |login: &'a Endpoint| Need::Connect { user: &login.user, database: &sql.database };
    logins.clone().map(Need::Login).chain(logins.map(connect)).collect()
}

impl Need<'_> {
    /// The cure; with the password of the configuration, of which the server is sent what it keeps.
    pub(super) fn step(&self, with_password: bool) -> Step {
        match self {
            Need::Login(endpoint) => {
                let password = endpoint.password.given().filter(|_| with_password);
                let verifier =
                    password.map(|password| scram_sha_256(password.expose_secret().as_bytes()));
                create_role(&endpoint.user, verifier.as_deref())
            }
            Need::Connect { user, database } => grant_connect(user, database),
        }
    }

    /// Says what the cure is for, in a line.
    fn why(&self) -> String {
        let user = self.user();
        match self {
            Need::Login(_) => format!("role `{user}` has to log in, and to replicate"),
            Need::Connect { database, .. } => {
                format!("role `{user}` has to connect to database `{database}`")
            }
        }
    }

    fn user(&self) -> &str {
        match self {
            Need::Login(endpoint) => &endpoint.user,
            Need::Connect { user, .. } => user,
        }
    }

    /// Whether it is met, by a row of `sql/setup/role_state.sql`.
    fn is_met(&self, row: &tokio_postgres::Row) -> Result<bool, tokio_postgres::Error> {
        match self {
            Need::Login(_) => Ok(row.try_get(0)? && row.try_get(1)?),
            Need::Connect { .. } => row.try_get(2),
        }
    }
}

/// An unmet need of a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// Its cure, as it is shown and printed: without a password, which nobody has to see.
    pub statement: Statement,
    /// The cure as the server is sent it.
    sent: Step,
}

impl Lacking {
    /// Runs the cure; a new role gets the configuration's password.
    ///
    /// # Errors
    ///
    /// The statement's; see [`Error`].
    pub async fn run(&self, config: &Config, hands: &Hands<'_>) -> Result<(), Error> {
        run_shown(config, hands, &self.sent, &self.statement.step.brief()).await
    }
}

/// Gives what the roles of a configuration lack, with its cure. That of a new role says what
/// becomes of its password, if the cures are run, or if they `are_printed`.
///
/// # Errors
///
/// The query's.
pub async fn missing(
    config: &Config,
    hands: &Hands<'_>,
    are_printed: bool,
) -> Result<Vec<Lacking>, Error> {
    let question = include_str!("../../sql/setup/role_state.sql");
    let mut lacking = Vec::new();
    for need in needs(config) {
        let user = need.user();
        let row = hands.client.query_opt(question, &[&user]).await?;
        let is_new = row.is_none();
        let is_met = row.map(|row| need.is_met(&row)).transpose()?.unwrap_or(false);
        if is_met {
            continue;
        }
        let mut why = need.why();
        if let Need::Login(endpoint) = need
            && is_new
        {
            why.push('\n');
            why.push_str(&match endpoint.password.given() {
                Some(_) if !are_printed => "It has the password of the configuration.".to_owned(),
                _ => no_password(user),
            });
        }
        let (step, after) = (need.step(false), Vec::new());
        let statement = Statement { step, why, is_needed: true, after };
        lacking.push(Lacking { statement, sent: need.step(true) });
    }
    Ok(lacking)
}

/// How a new role comes by a password.
pub(super) fn no_password(user: &str) -> String {
    format!(
        "A new role has no password: `\\password {user}` in psql gives it one, or pg_hba.conf lets \
         it in without."
    )
}
