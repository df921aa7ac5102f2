//! Who `setup` and `teardown` log in as, and to which server.

use std::borrow::Cow;

use super::NAME;
use super::failure::{Failure, halted};
use crate::config::Config;
use crate::postgres::{self, Endpoint, Sql, connect_sql};
use crate::preflight;

/// The log line for when a person, or a supervisor, wants the command to end.
pub(super) const STOPPING: &str = "stopping: canceling what the server is doing";

/// Answers SIGHUP: a terminal that is closed ends no command half way.
pub(super) fn unmoved() {
    tracing::info!("SIGHUP is no reason to stop; SIGTERM is");
}

/// Whether the login of `--as` is known to be to the server that `postgres.url` names, which is
/// asked with the configuration's own login, if that is another address; a warning says what was
/// compared if it cannot be. With `has_roles` those of the configuration are there.
///
/// # Errors
///
/// It is another server.
pub(super) async fn same_server(
    config: &Config,
    login: &Sql,
    has_roles: bool,
) -> Result<bool, Failure> {
    let configured = &config.postgres.endpoint;
    if configured.each().any(|one| one.address() == login.address()) {
        return Ok(true);
    }
    let query = include_str!("../../sql/setup/same_server.sql");
    let asked = async {
        let own = connect_sql(configured, NAME).await?;
        let row = own.query_one(query, &[]).await?;
        let address = own.address().to_owned();
        own.close().await;
        Ok::<_, postgres::Error>((address, row.try_get::<_, String>(0)?, row.try_get::<_, u32>(1)?))
    };
    let (address, started, database) = match asked.await {
        Ok(found) => found,
        Err(error) if has_roles && is_unknown(&error) => {
            let (here, there) = (login.address(), configured.address());
            let message =
                format!("`--as` reaches `{here}`, `postgres.url` another server: {error}");
            let hint = format!("let both name the same server; the role was made at `{here}`");
            return Err(
                Failure::halted(message).with_hint(Some(format!("{hint}, not at `{there}`")))
            );
        }
        Err(error) => {
            tracing::warn!(
                hint = "see that both are the same server",
                "`--as` reaches `{}`, `postgres.url` names `{}`: nothing but the name of the \
                 database was compared, for the login of `postgres.url` fails: {error}",
                login.address(),
                configured.address()
            );
            return Ok(false);
        }
    };
    let row = login.query_one(query, &[]).await.map_err(halted)?;
    let (here, oid): (String, u32) =
        (row.try_get(0).map_err(halted)?, row.try_get(1).map_err(halted)?);
    if (&here, oid) == (&started, database) {
        return Ok(true);
    }
    let message = format!(
        "the URL of `--as` reaches another server, `{}`, started at {here}, than `postgres.url`: \
         `{address}`, started at {started}",
        login.address()
    );
    let hint = "let both name the same server; what was printed above was done at that of `--as`";
    Err(Failure::halted(message).with_hint(Some(hint)))
}

/// Whether the server says that there is no such role; one that wants a password does not tell.
fn is_unknown(error: &postgres::Error) -> bool {
    let postgres::Error::Refused { server, .. } = error else { return false };
    server.code == "28000" && server.message.contains("does not exist")
}

/// Says what can be done about a refused login: the configured one, or that of `--as`.
pub(super) fn refused(error: &postgres::Error, login: Option<&str>) -> Option<Cow<'static, str>> {
    let hint = preflight::login_hint(error)?;
    // Both URLs name one database: SQLSTATE 3D000 is about that, and 42501 about the right to it.
    let is_of_database = matches!(error.sql_state(), Some("3D000" | "42501"));
    Some(if login.is_none() || is_of_database {
        hint
    } else {
        "see the user and the password in the URL of `--as`, or else `PGPASSWORD`, the passfile, \
         and the server's pg_hba.conf"
            .into()
    })
}

/// Why a script holds the part for the role alone, with what lets the rest be seen.
pub(super) fn partly_printed(error: &postgres::Error) -> Failure {
    let message = format!(
        "the script has the part for the role alone, for the rest the database has to be looked \
         at: {error}"
    );
    let is_login = matches!(error.sql_state(), Some("28P01" | "28000"))
        || matches!(error, postgres::Error::Login { .. });
    let hint: Cow<'_, str> = if is_login {
        let password = preflight::PASSWORD_HINT;
        format!(
            "if there is no such role yet, let a superuser run that part, and print again; else \
             {password}"
        )
        .into()
    } else {
        preflight::login_hint(error).unwrap_or_else(|| "print again once it answers".into())
    };
    Failure::halted(message).with_hint(Some(hint))
}

/// Where to log in: as the configuration says, or as `login` does, to the same database.
pub(super) fn endpoint(config: &Config, login: Option<&str>) -> Result<Endpoint, Failure> {
    let configured = &config.postgres.endpoint;
    let Some(url) = login else { return Ok(configured.clone()) };
    let wrong = |cause: String| Failure::halted(format!("read the URL of `--as`: {cause}"));
    let endpoint = Endpoint::parse(url).map_err(|error| wrong(error.to_string()))?;
    if endpoint.database != configured.database {
        let (given, wanted) = (&endpoint.database, &configured.database);
        let wrong = wrong(format!("it names database `{given}`, `postgres.url` `{wanted}`"));
        return Err(wrong.with_hint(Some(format!("end that URL with `/{wanted}`"))));
    }
    // Tried now, for what is wrong with it; read at each login, for the host that it is with.
    endpoint.clone().load_password().map_err(|error| wrong(error.to_string()))?;
    Ok(endpoint)
}
