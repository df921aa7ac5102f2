//! Checks of what stands between walsweep and the primary: poolers, and standbys.

use std::borrow::Cow;

use tokio_postgres::Client;

use super::{Code, Finding, cure};
use crate::capture::{Identity, Replication};
use crate::config::{Config, SlotOn};
use crate::postgres::{self, Endpoint, History, Obstacle, connect_sql, identify};

/// `application_name` of the connections that are made to look.
const NAME: &str = "walsweep command";

/// The database that is there to log in to, as `psql -l` does, where another one is refused.
const MAINTENANCE: &str = "postgres";

/// The finding that `place` reaches a pooler.
fn pooler(place: &str, why: &str) -> Finding {
    let found = Finding::error(Code::Pooler, format!("`{place}` reaches a pooler {why}"));
    found.hint(format!("let `{place}` name the server itself, by its direct address"))
}

/// Why there is no session with `endpoint`, that of `postgres.url`: a pooler that was found out, a
/// login that was refused, or no answer.
pub async fn unreachable(endpoint: &Endpoint, error: &postgres::Error) -> Finding {
    if let postgres::Error::Pooler { .. } = error {
        let why = "that lends one backend to several sessions: what was read on one need not hold \
                   on another";
        return pooler("postgres.url", why);
    }
    let code = if error.is_rejection() { Code::PostgresLogin } else { Code::PostgresUnreachable };
    let finding = Finding::error(code, error.to_string());
    let Some((user, database)) = error.lacks_right() else {
        return with_hint(finding, login_hint(error));
    };
    let there = Endpoint { database: MAINTENANCE.to_owned(), ..endpoint.clone() };
    let owner = match connect_sql(&there, NAME).await {
        Ok(sql) => {
            let owner = owner(database, &sql).await;
            sql.close().await;
            owner
        }
        Err(_refused) => None,
    };
    finding.hint(let_connect(user, database, owner.as_deref()))
}

/// Who owns a database, as far as the server tells.
async fn owner(database: &str, client: &Client) -> Option<String> {
    let question = include_str!("../../sql/database_owner.sql");
    client.query_opt(question, &[&database]).await.ok()??.try_get(0).ok()
}

/// Says what a person can do about a role that may not connect to a database.
fn let_connect(user: &str, database: &str, owner: Option<&str>) -> String {
    let grant = cure::grant_connect(user, database).sql;
    let owner = match owner {
        Some(owner) => format!("`{owner}`, who owns database `{database}`"),
        None => format!("the owner of database `{database}`, whom `psql -l` names"),
    };
    format!("let {owner}, or a superuser run `{grant}`")
}

/// Advice to a person about a role that is there, and is not let in.
pub const PASSWORD_HINT: &str = "see that its password stands in `postgres.password_file`, \
                                 is printed by `postgres.password_command`, or stands in \
                                 `PGPASSWORD` or the passfile (`\\password ROLE` in psql sets a \
                                 new one), and that the server's pg_hba.conf lets it in";

/// Says what a person can do about a role that is not let in.
fn let_in() -> String {
    format!(
        "if there is no such role yet: `walsweep setup --as URL` creates it, and `walsweep setup \
         --print` shows the SQL, also without a login; else {PASSWORD_HINT}"
    )
}

/// Says what a person can do about a login that the server refused, or for which there is no
/// password; nothing for other errors. Codes:
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
#[must_use]
pub fn login_hint(error: &postgres::Error) -> Option<Cow<'static, str>> {
    let is_login = |host: &postgres::PassedOver| host.obstacle == Obstacle::Login;
    match error {
        postgres::Error::Refused { server, .. } => match server.code.as_str() {
            "28P01" | "28000" => Some(let_in().into()),
            "3D000" => Some(
                "let `postgres.url` end with the name of a database that this server has: \
                 `psql -l` lists them"
                    .into(),
            ),
            _ => {
                let (user, database) = error.lacks_right()?;
                Some(let_connect(user, database, None).into())
            }
        },
        postgres::Error::Login { .. } => Some(let_in().into()),
        postgres::Error::Password { source, .. } => Some(source.hint().into()),
        postgres::Error::NoPrimary(hosts) => hosts.iter().any(is_login).then(|| let_in().into()),
        _ => None,
    }
}

/// Like [`login_hint`], for a replication connection, for which the role has to be allowed to
/// replicate, too.
#[must_use]
pub fn replication_hint(error: &postgres::Error) -> Option<Cow<'static, str>> {
    let Some((user, database)) = error.lacks_right() else { return login_hint(error) };
    let (replicate, connect) =
        (cure::let_replicate(user, false), let_connect(user, database, None));
    Some(format!("let a superuser run `{replicate}`; if the role has that, {connect}").into())
}

fn with_hint(finding: Finding, hint: Option<Cow<'static, str>>) -> Finding {
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
    let unreachable = |error: crate::capture::Error, owner: Option<String>| {
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
            crate::capture::Error::Connect(error) => match error.lacks_right() {
                // The role may replicate, or that is among the known findings.
                Some((user, database)) => {
                    finding.hint(let_connect(user, database, owner.as_deref()))
                }
                None => with_hint(finding, login_hint(error)),
            },
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
        Err(error) => {
            let owner = owner(&config.postgres.endpoint.database, client).await;
            unreachable(error, owner)
        }
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
