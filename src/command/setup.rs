//! `walsweep setup`.

use std::path::Path;

use super::NAME;
use super::failure::{Failure, Told, halted, print};
use super::load::configuration;
use super::login::{STOPPING, endpoint, partly_printed, refused, same_server, unmoved};
use crate::postgres::connect_sql;
use crate::run::shutdown::Shutdown;
use crate::setup::{self, Hands};
use crate::telemetry::logging;

/// Advice on what to do where the servers could not be compared.
const NOT_COMPARED: &str = "mend the login of `postgres.url`, which `walsweep run` needs as well, \
                            or let `--as` name the server in the same words; `--print` shows the \
                            SQL for whoever is sure";

/// `walsweep setup`; with `login` a URL of an owner or a superuser to do it as.
///
/// # Errors
///
/// 78 for the configuration; 1 when a statement fails, or only a part of the script can be printed.
pub async fn setup(path: &Path, print_only: bool, login: Option<&str>) -> Result<(), Failure> {
    let (config, rules) = configuration(path)?;
    let endpoint = endpoint(&config, login)?;
    let sql = match connect_sql(&endpoint, NAME).await {
        Ok(sql) => sql,
        Err(error) if print_only && login.is_none() => {
            print(&setup::script_without_login(&config, &error.to_string()))?;
            return Err(partly_printed(&error));
        }
        Err(error) => {
            let hint = "`walsweep setup --print` shows the SQL for the role, also without a login; \
                        `walsweep setup --as URL` creates it";
            let hint = refused(&error, login).or(login.is_none().then(|| hint.into()));
            return Err(halted(&error).with_hint(hint));
        }
    };
    // What is waited for is told while it is.
    logging::start(&config.log).map_err(halted)?;
    let stop = Shutdown::by_signal(STOPPING, unmoved).map_err(halted)?;
    let (config, endpoint) = (config.only(sql.address()), endpoint.only(sql.address()));
    let mut is_compared = login.is_none() || same_server(&config, &sql, false).await?;
    let hands = Hands { client: &sql, endpoint: &endpoint, stop };
    let fail = |error: setup::Error| halted(&error).with_hint(error.hint());
    let roles = if login.is_some() {
        setup::role_missing(&config, &hands, print_only).await.map_err(fail)?
    } else {
        Vec::new()
    };
    if print_only {
        let roles = roles.into_iter().map(|role| role.statement).collect();
        let script = setup::script(&config, &rules, &hands, roles).await.map_err(fail)?;
        return print(&script);
    }
    let mut told = Told::default();
    for role in &roles {
        role.run(&config, &hands).await.map_err(fail)?;
        told.print(&role.statement.to_string());
    }
    if !is_compared && !roles.is_empty() {
        // Now the role is there, and perhaps may log in.
        is_compared = same_server(&config, &sql, true).await?;
    }
    if !is_compared {
        let what = if roles.is_empty() { "nothing was changed" } else { "no more was done" };
        let message = format!("{what}: `--as` may reach another server than `postgres.url`");
        return Err(Failure::halted(message).with_hint(Some(NOT_COMPARED)));
    }
    let done = setup::setup(&config, &rules, &hands).await.map_err(fail)?;
    done.statements.iter().for_each(|statement| told.print(&statement.to_string()));
    done.refused.iter().for_each(|refused| told.print(&format!("{refused}\n")));
    done.forgotten().iter().for_each(|text| told.print(text));
    told.print(&done.notes());
    let has_done = !(roles.is_empty() && done.statements.is_empty());
    if !done.left.is_empty() {
        let others = if has_done { "the others are set up" } else { "nothing else is to do" };
        let message = format!(
            "set up the database: {others}; no SQL cures this of some rules, which `walsweep run` \
             suspends:{}",
            setup::list(&done.left)
        );
        return Err(Failure::halted(message));
    }
    if !has_done && done.refused.is_empty() {
        told.print(if done.told.is_empty() {
            "nothing to do\n"
        } else {
            "nothing to do but that\n"
        });
    }
    told.end()
}
