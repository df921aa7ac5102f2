//! What `setup` and `teardown` do, from configuration to exit status.

use std::path::Path;

use crate::command::commands::{Failure, NAME, configuration, halted, print};
use crate::config::Config;
use crate::postgres::{self, Endpoint, Sql, connect_sql};
use crate::preflight;
use crate::run::shutdown::Shutdown;
use crate::setup::{self, Hands};
use crate::sweep::{Standalone, key_name};
use crate::telemetry::logging;

/// What is logged when a person, or a supervisor, wants the command to end.
const STOPPING: &str = "stopping: canceling what the server is doing";

/// `walsweep setup`; with `login` a URL of an owner or a superuser to do it as.
///
/// # Errors
///
/// 78 for the configuration; 1 when a statement fails.
pub async fn setup(path: &Path, print_only: bool, login: Option<&str>) -> Result<(), Failure> {
    let (config, mut rules) = configuration(path)?;
    let endpoint = endpoint(&config, login)?;
    let sql = match connect_sql(&endpoint, NAME).await {
        Ok(sql) => sql,
        Err(error) if print_only && login.is_none() => {
            return print(&setup::script_without_login(&config, &error.to_string()));
        }
        Err(error) => {
            let hint = "`walsweep setup --print` shows the SQL for the role, also without a login; \
                        `walsweep setup --as URL` creates it";
            let hint = refused(&error, login).or(login.is_none().then_some(hint));
            return Err(halted(&error).with_hint(hint));
        }
    };
    // What is waited for is told while it is.
    logging::start(&config.log).map_err(halted)?;
    let stop = Shutdown::by_signal(STOPPING).map_err(halted)?;
    let (config, endpoint) = (config.only(sql.address()), endpoint.only(sql.address()));
    let is_compared = login.is_none() || same_server(&config, &sql, false).await?;
    let hands = Hands { client: &sql, endpoint: &endpoint, stop };
    let fail = |error: setup::Error| halted(&error).with_hint(error.hint());
    let roles = if login.is_some() {
        setup::role_missing(&config, &hands, print_only).await.map_err(fail)?
    } else {
        Vec::new()
    };
    if print_only {
        let roles = roles.into_iter().map(|role| role.statement).collect();
        let script = setup::script(&config, &mut rules, &hands, roles).await.map_err(fail)?;
        return print(&script);
    }
    let mut told = false;
    let mut tell = |statement: &setup::Statement| {
        told = true;
        print(&statement.to_string())
    };
    for role in &roles {
        role.run(&config, &hands).await.map_err(fail)?;
        tell(&role.statement)?;
    }
    if !is_compared && !roles.is_empty() {
        // Now the role is there, and perhaps may log in.
        same_server(&config, &sql, true).await?;
    }
    let done = setup::setup(&config, &mut rules, &hands).await.map_err(fail)?;
    done.statements.iter().try_for_each(&mut tell)?;
    done.refused.iter().try_for_each(|refused| print(&format!("{refused}\n")))?;
    done.forgotten().iter().try_for_each(|text| print(text))?;
    if !done.left.is_empty() {
        let others = if told { "the others are set up" } else { "nothing else is to do" };
        let message = format!(
            "set up the database: {others}; no SQL cures this of some rules, which `walsweep run` \
             suspends:{}",
            setup::list(&done.left)
        );
        return Err(Failure::halted(message));
    }
    if told || !done.refused.is_empty() { Ok(()) } else { print("nothing to do\n") }
}

/// `walsweep teardown`.
///
/// # Errors
///
/// 78 for the configuration; 1 when a statement fails.
pub async fn teardown(path: &Path, print_only: bool, login: Option<&str>) -> Result<(), Failure> {
    let (config, _rules) = configuration(path)?;
    let endpoint = endpoint(&config, login)?;
    let sql = connect_sql(&endpoint, NAME).await;
    let sql = sql.map_err(|error| halted(&error).with_hint(refused(&error, login)))?;
    logging::start(&config.log).map_err(halted)?;
    let stop = Shutdown::by_signal(STOPPING).map_err(halted)?;
    let (config, endpoint) = (config.only(sql.address()), endpoint.only(sql.address()));
    if login.is_some() {
        same_server(&config, &sql, false).await?;
    }
    let hands = Hands { client: &sql, endpoint: &endpoint, stop };
    let fail = |error: setup::Error| halted(&error).with_hint(error.hint());
    if print_only {
        return print(&setup::teardown_script(&config, &hands).await.map_err(fail)?);
    }
    let done = setup::teardown(&config, &hands).await.map_err(fail)?;
    done.lines.iter().try_for_each(|line| print(&format!("{line}\n")))?;
    let key = key_name(&config.postgres.slot);
    if done.leaves_slot {
        let what = "left in redis, for whoever reads the slot: once it is dropped";
        return print(&format!("`{key}` is {what}, `unlink {key} {key}:removals`\n"));
    }
    let line = match Standalone::new(&config.redis, key.clone()).forget().await {
        Ok(0) => format!("there is no `{key}` in redis"),
        Ok(_) => format!("removed `{key}` and what belongs to it from redis"),
        Err(error) => format!("`{key}` may still be in redis, which was not asked: {error}"),
    };
    print(&format!("{line}\n"))
}

/// Whether the login of `--as` is known to be to the server that `postgres.url` names, which is
/// asked with the configuration's own login, if that is another address; a warning says what was
/// compared if it cannot be. With `has_roles` those of the configuration are there.
///
/// # Errors
///
/// It is another server.
async fn same_server(config: &Config, login: &Sql, has_roles: bool) -> Result<bool, Failure> {
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

/// What can be done about a refused login: the configured one, or that of `--as`.
fn refused(error: &postgres::Error, login: Option<&str>) -> Option<&'static str> {
    let hint = preflight::login_hint(error)?;
    Some(if login.is_none() {
        hint
    } else {
        "see the user and the password in the URL of `--as`, or else `PGPASSWORD`, the passfile, \
         and the server's pg_hba.conf"
    })
}

/// Where to log in: as the configuration says, or as `login` does, to the same database.
fn endpoint(config: &Config, login: Option<&str>) -> Result<Endpoint, Failure> {
    let configured = &config.postgres.endpoint;
    let Some(url) = login else { return Ok(configured.clone()) };
    let wrong = |cause: String| Failure::halted(format!("read the URL of `--as`: {cause}"));
    let endpoint = Endpoint::parse(url).map_err(|error| wrong(error.to_string()))?;
    if endpoint.database != configured.database {
        let (given, wanted) = (&endpoint.database, &configured.database);
        return Err(wrong(format!("it names database `{given}`, `postgres.url` `{wanted}`")));
    }
    // Tried now, for what is wrong with it; read at each login, for the host that it is with.
    endpoint.clone().load_password().map_err(|error| wrong(error.to_string()))?;
    Ok(endpoint)
}
