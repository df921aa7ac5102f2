//! Checks of what stands between walsweep and the primary: poolers, and standbys.

use tokio_postgres::Client;

use super::{Code, Finding};
use crate::capture::{Identity, Replication};
use crate::config::{Config, SlotOn};
use crate::postgres::{self, History, Obstacle, identify};

/// `application_name` of the connections that are made to look.
const NAME: &str = "walsweep command";

/// The finding that `place` reaches a pooler.
fn pooler(place: &str, why: &str) -> Finding {
    let found = Finding::error(Code::Pooler, format!("`{place}` reaches a pooler {why}"));
    found.hint(format!("let `{place}` name the server itself, by its direct address"))
}

/// Why there is no session with `postgres.url`: a pooler that was found out, or no answer.
#[must_use]
pub fn unreachable(error: &postgres::Error) -> Finding {
    if let postgres::Error::Pooler { .. } = error {
        let why = "that lends one backend to several sessions: what was read on one need not hold \
                   on another";
        return pooler("postgres.url", why);
    }
    let code = if error.is_rejection() { Code::PostgresLogin } else { Code::PostgresUnreachable };
    with_hint(Finding::error(code, error.to_string()), login_hint(error))
}

/// What a person can do about a role that is not let in.
const LET_IN: &str = "if there is no such role yet: `walsweep setup --as URL` creates it, and \
                      `walsweep setup --print` shows the SQL, also without a login; else see that \
                      its password stands in `postgres.password_file`, `PGPASSWORD` or the \
                      passfile (`\\password ROLE` in psql sets a new one), and that the server's \
                      pg_hba.conf lets it in";

/// What a person can do about a login that the server refused, or for which there is no password;
/// nothing for other errors. Codes:
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
#[must_use]
pub fn login_hint(error: &postgres::Error) -> Option<&'static str> {
    match error {
        postgres::Error::Refused { server, .. } => match server.code.as_str() {
            "28P01" | "28000" => Some(LET_IN),
            "3D000" => Some(
                "let `postgres.url` end with the name of a database that this server has: \
                 `psql -l` lists them",
            ),
            "42501" => Some(
                "let the role connect: `grant connect on database … to …`, which `walsweep setup \
                 --as URL` does",
            ),
            _ => None,
        },
        postgres::Error::Login { .. } => Some(LET_IN),
        postgres::Error::Password { .. } => Some(
            "write the password, and nothing else, into that file, and let the user that walsweep \
             runs as read it",
        ),
        postgres::Error::NoPrimary(hosts) => {
            hosts.iter().any(|host| host.obstacle == Obstacle::Login).then_some(LET_IN)
        }
        _ => None,
    }
}

/// The same of a replication connection, for which the role has to be allowed to replicate.
#[must_use]
pub fn replication_hint(error: &postgres::Error) -> Option<&'static str> {
    match error.sql_state() {
        Some("42501") => Some("let the role replicate, as a superuser: `alter role … replication`"),
        _ => login_hint(error),
    }
}

fn with_hint(finding: Finding, hint: Option<&'static str>) -> Finding {
    match hint {
        Some(hint) => finding.hint(hint),
        None => finding,
    }
}

/// Checks that the replication connection reaches the primary behind `client`. That the role may
/// not replicate is not told again where it is among the `known` findings.
pub async fn replication(config: &Config, client: &Client, known: &[Finding]) -> Vec<Finding> {
    let endpoint = &config.postgres.replication_endpoint;
    let is_separate = endpoint.address() != config.postgres.endpoint.address();
    let place = if is_separate { "postgres.replication_url" } else { "postgres.url" };
    let unreachable = |error: crate::capture::Error| {
        if error.is_pooler() {
            return vec![pooler(place, &format!("that streams nothing: {error}"))];
        }
        let is_refused = error.is_rejection();
        // SQLSTATE 42501.
        if error.sql_state() == Some("42501")
            && known.iter().any(|finding| finding.code == Code::ReplicationRole)
        {
            return Vec::new();
        }
        let code = if is_refused { Code::ReplicationLogin } else { Code::ReplicationUnreachable };
        let finding = Finding::error(code, format!("`{place}`: {error}"));
        vec![match &error {
            crate::capture::Error::Connect(error) => with_hint(finding, replication_hint(error)),
            _ => finding,
        }]
    };
    let primary = identify(client).await.ok().and_then(|server| server.history);
    let looked = async {
        let mut connection = match &primary {
            Some(history) => Replication::connect_to(endpoint, NAME, history).await?,
            None => Replication::connect(endpoint, NAME).await?,
        };
        let identity = connection.identify_system().await?;
        Ok((identity, connection.run().await?.in_recovery))
    };
    match looked.await {
        Err(error) => unreachable(error),
        // A pooler may send every session to any server.
        Ok((_, true)) if is_separate && config.postgres.slot_on == SlotOn::Primary => {
            vec![standby()]
        }
        Ok((Identity { history, .. }, _)) => {
            Vec::from_iter(primary.and_then(|primary| other_server(&history, &primary)))
        }
    }
}

fn standby() -> Finding {
    let standby = Finding::error(
        Code::ReplicationStandby,
        "`postgres.replication_url` reaches a standby, and the slot is to be on the primary",
    );
    standby.hint(
        "let `postgres.replication_url` name the primary, or leave it out; if the slot is to be \
         there, set `postgres.slot_on = \"standby\"`",
    )
}

/// Another history than the primary's.
fn other_server(found: &History, expected: &History) -> Option<Finding> {
    if found == expected {
        return None;
    }
    let message = format!("`postgres.url` reaches {expected}, the replication connection {found}");
    let hint = "let `postgres.url` and `postgres.replication_url` name the same primary, or a \
                primary and a standby that follows it";
    Some(Finding::error(Code::TwoServers, message).hint(hint))
}
