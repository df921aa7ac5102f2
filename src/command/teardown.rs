//! `walsweep teardown`.

use std::path::Path;

use super::NAME;
use super::failure::{Failure, Told, halted, print};
use super::load::configuration;
use super::login::{STOPPING, endpoint, refused, same_server, unmoved};
use crate::config::{Redis, printable};
use crate::postgres::{connect_sql, identify};
use crate::run::shutdown::Shutdown;
use crate::setup::{self, Hands};
use crate::sweep::{self, Forgotten, key_name};
use crate::telemetry::logging;

/// `walsweep teardown`.
///
/// # Errors
///
/// 78 for the configuration; 1 when a statement fails.
pub async fn teardown(path: &Path, print_only: bool, login: Option<&str>) -> Result<(), Failure> {
    let (config, rules) = configuration(path)?;
    let endpoint = endpoint(&config, login)?;
    let sql = connect_sql(&endpoint, NAME).await;
    let sql = sql.map_err(|error| halted(&error).with_hint(refused(&error, login)))?;
    logging::start(&config.log).map_err(halted)?;
    let stop = Shutdown::by_signal(STOPPING, unmoved).map_err(halted)?;
    let (config, endpoint) = (config.only(sql.address()), endpoint.only(sql.address()));
    if login.is_some() && !same_server(&config, &sql, false).await? {
        let message = "nothing dropped: `--as` may reach another server than `postgres.url`";
        let hint = "mend the login of `postgres.url`, or let it name the server in the same words";
        return Err(Failure::halted(message.to_owned()).with_hint(Some(hint)));
    }
    let hands = Hands { client: &sql, endpoint: &endpoint, stop };
    let fail = |error: setup::Error| halted(&error).with_hint(error.hint());
    if print_only {
        return print(&setup::teardown_script(&config, &hands).await.map_err(fail)?);
    }
    let done = setup::teardown(&config, &hands).await.map_err(fail)?;
    let mut told = Told::default();
    done.lines.iter().for_each(|line| told.print(&format!("{line}\n")));
    let others = if done.is_shared { ", unless another walsweep has their rules" } else { "" };
    told.print(&format!(
        "cached keys stay in redis, and nothing removes them any more{others}: {}; `walsweep sweep \
         PATTERN…` removes keys by hand\n",
        rules.part(|_| true).shown()
    ));
    let system_id = match done.leaves_slot {
        true => None,
        false => {
            let history = identify(&sql).await.map_err(halted)?.history;
            Some(history.map(|history| history.system_id).unwrap_or_default())
        }
    };
    for redis in &config.redis {
        let key = key_name(&redis.prefix, &config.postgres.slot);
        let Some(system_id) = &system_id else {
            let what = "for whoever reads the slot: once it is dropped";
            let (title, by_hand) = (redis.title(), setup::own_keys(redis, &key));
            told.print(&format!("`{key}` is left in {title}, {what}, {by_hand} removes it\n"));
            continue;
        };
        let forgotten = sweep::forget(redis, &key, system_id).await;
        told.print(&format!("{}\n", became((redis, &key), system_id, forgotten)));
    }
    told.end()
}

/// Says what became of the watermark of this name.
fn became(
    (redis, key): (&Redis, &str),
    system_id: &str,
    forgotten: Result<Forgotten, sweep::Error>,
) -> String {
    let by_hand = format!("only if nobody needs it, {} removes it", setup::own_keys(redis, key));
    let title = redis.title();
    match forgotten {
        Ok(Forgotten::Nothing) => format!("there is no `{key}` in {title}"),
        Ok(Forgotten::Removed) => format!("removed `{key}` and what belongs to it from {title}"),
        Ok(Forgotten::Others(other)) => format!(
            "left `{key}` in {title}: it is of the cluster with system identifier {}, and this one \
             has {system_id}; {by_hand}",
            printable(&other)
        ),
        Ok(Forgotten::Unreadable) => {
            format!("left `{key}` in {title}: it cannot be read, and may be anybody's; {by_hand}")
        }
        Ok(Forgotten::Number) => format!(
            "left `{key}:removals` in {title}: nothing shows whose it is, for there is no `{key}`; \
             {by_hand}"
        ),
        Err(error) => format!("`{key}` may still be in {title}, which was not asked: {error}"),
    }
}
