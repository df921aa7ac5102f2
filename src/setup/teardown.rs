//! What `setup` made, removed again; and what stays, told.
//!
//! A slot bears no mark, so that one is dropped only if the comment on walsweep's own publication
//! claims it: what another program has not read yet would be lost for good.

use super::left::{Kept, Stays, kept, roles};
use super::script::comment;
use super::who::{Asked, NotOwned, login, not_owned};
use super::{Error, Hands, Mark, NAME, mark, slot_standby};
use crate::config::{Config, Postgres, SlotOn};
use crate::postgres::statement::render;
use crate::postgres::{Sql, connect_sql};
use crate::preflight::{self, Does, SENTENCE, Step, printed};
use crate::run::session::REPLICATION_NAME;
use crate::sweep::key_name;

/// What is to be removed, and what is not.
struct Remains {
    slot: Held,
    publication: Mark,
    /// Whose the publication is.
    owner: Option<String>,
    /// Whether there is an event trigger, or its function, of walsweep's; `None` if there is one of
    /// somebody else's.
    trigger: Option<bool>,
    /// One that an earlier version made, for this slot or for another of a long name.
    older_trigger: Option<String>,
    /// Whether there is one that has its name from a slot that is left, and may be of whoever reads
    /// that.
    has_trigger_of_slot: bool,
    /// Identities that `setup` changed and that are as it left them.
    identities: Vec<Kept>,
    roles: Vec<Stays>,
}

/// A slot of the configured name, of this database and of the right kind.
enum Held {
    Missing,
    Free,
    /// Somebody streams from it: the process on the server, and its `application_name`.
    By(i32, String),
    /// Nothing tells that it is walsweep's.
    Unclaimed,
}

/// What `teardown` did.
#[derive(Debug, Default)]
pub struct Removed {
    /// A line about each thing that was dropped, left, or not found.
    pub lines: Vec<String>,
    /// Whether there is a slot that was left, for it may be another program's.
    pub leaves_slot: bool,
}

/// Removes slot, publication and event trigger if `setup` made them.
///
/// # Errors
///
/// When the slot is in use or another program's, or the role may not drop all that is to be
/// dropped: nothing is dropped then. When a statement is refused; what was done before is told.
pub async fn teardown(config: &Config, hands: &Hands<'_>) -> Result<Removed, Error> {
    hands.prepare().await?;
    let standby = slot_standby(config).await?;
    let remains = look(config, hands, standby.as_ref()).await?;
    if let Held::By(pid, name) = remains.slot {
        return Err(Error::SlotActive { slot: config.postgres.slot.clone(), pid, name });
    }
    may_drop_rest(config, hands, &remains).await?;
    let mut lines = Vec::new();
    match remove(config, hands, standby.as_ref(), &remains, &mut lines).await {
        Ok(()) => Ok(Removed { lines, leaves_slot: matches!(remains.slot, Held::Unclaimed) }),
        Err(cause) => Err(Error::Teardown { done: lines, cause: Box::new(cause) }),
    }
}

/// Drops what is to be dropped, and gives `lines` one about each thing.
async fn remove(
    config: &Config,
    hands: &Hands<'_>,
    standby: Option<&Sql>,
    remains: &Remains,
    lines: &mut Vec<String>,
) -> Result<(), Error> {
    let (slot, publication) = (&config.postgres.slot, &config.postgres.publication);
    lines.push(match remains.slot {
        Held::Missing => format!("there is no slot `{slot}`"),
        Held::Unclaimed => unclaimed(config),
        Held::Free | Held::By(..) => {
            drop_slot(config, hands, standby).await?;
            format!("dropped slot `{slot}`")
        }
    });
    for step in publication_steps(config, remains) {
        hands.run(&step).await?;
    }
    lines.push(match (&remains.publication, others(config, remains)) {
        (Mark::Missing, _) => format!("there is no publication `{publication}`"),
        (Mark::Foreign(owner), _) => format!(
            "left publication `{publication}` of `{owner}`, which `walsweep setup` did not make"
        ),
        (Mark::Ours(_), others) if others.is_empty() => {
            format!("dropped publication `{publication}`")
        }
        (Mark::Ours(_), others) => format!(
            "left publication `{publication}`: the walsweep with slot {} has it, too",
            others.join(", ")
        ),
    });
    if remains.trigger == Some(true) {
        hands.run(&trigger_step(config)).await?;
        lines.push(format!("dropped event trigger `{}`", preflight::trigger_name(slot)));
    }
    lines.extend(left(config, remains));
    Ok(())
}

/// What is said of a slot that is left.
fn unclaimed(config: &Config) -> String {
    let Postgres { slot, publication, .. } = &config.postgres;
    let place = if config.postgres.slot_on == SlotOn::Standby { " on the standby" } else { "" };
    let drop = preflight::drop_slot(slot);
    format!(
        "left slot `{slot}`: no comment on a publication `{publication}` says that `walsweep \
         setup` made it. It keeps WAL; only if nobody else reads it, drop it{place}: {drop};"
    )
}

/// Drops the slot, before anything else: where that is refused, nothing is dropped. An owner of
/// tables need not be one who replicates; walsweep's own role is, and drops it then.
async fn drop_slot(config: &Config, hands: &Hands<'_>, standby: Option<&Sql>) -> Result<(), Error> {
    let step = Step { sql: preflight::drop_slot(&config.postgres.slot), does: Does::DropSlot };
    let endpoint = &config.postgres.replication_endpoint;
    let stop = hands.stop.clone();
    if let Some(standby) = standby {
        return Hands { client: standby, endpoint, stop }.with_slot(&step).await;
    }
    match hands.with_slot(&step).await {
        Err(error) if error.is_denied() && !hands.is_of(&endpoint.user) => {
            let Ok(sql) = connect_sql(endpoint, NAME).await else { return Err(error) };
            Hands { client: &sql, endpoint, stop }.with_slot(&step).await
        }
        done => done,
    }
}

/// Whether the role may drop all but the slot, asked before that is dropped.
async fn may_drop_rest(config: &Config, hands: &Hands<'_>, remains: &Remains) -> Result<(), Error> {
    let is_ours = matches!(remains.publication, Mark::Ours(_));
    let publication = is_ours.then_some(&config.postgres.publication);
    let trigger = preflight::trigger_name(&config.postgres.slot);
    let trigger = (remains.trigger == Some(true)).then_some(trigger);
    let asked = Asked { publication, trigger: trigger.as_ref(), ..Asked::default() };
    let rows = not_owned(hands, asked).await?;
    if rows.is_empty() {
        return Ok(());
    }
    let what = rows.iter().map(NotOwned::told).collect();
    let who = login("teardown", None, &rows);
    Err(Error::NotOwner { role: hands.endpoint.user.clone(), what, who })
}

/// The same as a script; changes nothing.
///
/// # Errors
///
/// When the slot is another program's, or a query is refused.
pub async fn teardown_script(config: &Config, hands: &Hands<'_>) -> Result<String, Error> {
    let standby = slot_standby(config).await?;
    let remains = look(config, hands, standby.as_ref()).await?;
    let begin = render(include_str!("../../sql/setup/script_begin.sql"), &[]);
    let end = render(include_str!("../../sql/setup/script_end.sql"), &[]);
    let mut script = format!(
        "{}\\set ON_ERROR_STOP on\n{begin};\n",
        comment("What `walsweep teardown` does to this database, for psql.")
    );
    if let Held::By(pid, name) = &remains.slot {
        let first = format!("Stop walsweep first: process {pid} (`{name}`) streams from the slot.");
        script.push_str(&format!("\n{}", comment(&first)));
    }
    match &remains.slot {
        Held::Missing => {}
        Held::Unclaimed => script.push_str(&format!("\n{}", comment(&unclaimed(config)))),
        Held::Free | Held::By(..) => script.push_str(&slot_part(config)),
    }
    for step in publication_steps(config, &remains) {
        let owner = remains.owner.as_deref().unwrap_or_default();
        let who = format!("By `{owner}`, who owns the publication, or a superuser:");
        script.push_str(&format!("\n{}{};\n", comment(&who), printed(&[step])));
    }
    if remains.trigger == Some(true) {
        let who = "By a superuser, or the administrator role of a managed service:";
        script.push_str(&format!("\n{}{};\n", comment(who), printed(&[trigger_step(config)])));
    }
    script.push_str(&format!("\n{end};\n\n"));
    let watermark = key_name(&config.postgres.slot);
    let mut lines = left(config, &remains);
    lines.push(format!(
        "keys stay in redis: `unlink {watermark} {watermark}:removals` removes walsweep's own, but \
         for `{watermark}:rules:…`; `walsweep teardown` removes all"
    ));
    script.push_str(&comment(&lines.join("\n")));
    Ok(script)
}

/// The part of the script that drops the slot, and who may run it.
fn slot_part(config: &Config) -> String {
    let drop = preflight::drop_slot(&config.postgres.slot);
    let role = &config.postgres.replication_endpoint.user;
    let who = format!("a role that may replicate, such as `{role}`");
    match config.postgres.slot_on {
        SlotOn::Primary => format!("\n{}{drop};\n", comment(&format!("By {who}:"))),
        SlotOn::Standby => {
            format!("\n{}", comment(&format!("On the standby, by {who}:\n\n    {drop};")))
        }
    }
}

async fn look(config: &Config, hands: &Hands<'_>, standby: Option<&Sql>) -> Result<Remains, Error> {
    let holder = standby.map_or(hands.client, |standby| standby);
    let (publication, owner) = mark_and_owner(config, hands).await?;
    let slot = held(&config.postgres.slot, &publication, holder).await?;
    let question = include_str!("../../sql/setup/refresh_trigger_mark.sql");
    let name = preflight::trigger_name(&config.postgres.slot);
    let row = hands.client.query_one(question, &[&name, &SENTENCE]).await?;
    let (has_trigger, is_ours): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let (has_function, is_function_ours): (bool, bool) = (row.try_get(2)?, row.try_get(3)?);
    let is_foreign = has_trigger && !is_ours || has_function && !is_function_ours;
    let is_there = has_trigger || has_function;
    let has_trigger_of_slot = is_there && !is_foreign && matches!(slot, Held::Unclaimed);
    let trigger = (!is_foreign).then_some(is_there && !has_trigger_of_slot);
    let older_trigger = older_trigger(config, hands).await?;
    let identities = kept(config, &publication, hands).await?;
    let roles = roles(config, hands).await?;
    Ok(Remains {
        slot,
        publication,
        owner,
        trigger,
        older_trigger,
        has_trigger_of_slot,
        identities,
        roles,
    })
}

/// An event trigger of walsweep's that may be that of another walsweep with a long slot name, too.
async fn older_trigger(config: &Config, hands: &Hands<'_>) -> Result<Option<String>, Error> {
    let Some(name) = preflight::older_trigger_name(&config.postgres.slot) else { return Ok(None) };
    let question = include_str!("../../sql/setup/refresh_trigger_mark.sql");
    let row = hands.client.query_one(question, &[&name, &SENTENCE]).await?;
    Ok(row.try_get::<_, bool>(1)?.then_some(name))
}

/// Whose the publication is, and the role that owns it, if there is one.
async fn mark_and_owner(
    config: &Config,
    hands: &Hands<'_>,
) -> Result<(Mark, Option<String>), Error> {
    let question = include_str!("../../sql/setup/publication_mark.sql");
    let row = hands.client.query_opt(question, &[&config.postgres.publication]).await?;
    let owner = row.map(|row| row.try_get(0)).transpose()?;
    Ok((mark(config, hands).await?, owner))
}

/// The slots of other walsweeps that have the publication.
fn others(config: &Config, remains: &Remains) -> Vec<String> {
    let Mark::Ours(memory) = &remains.publication else { return Vec::new() };
    memory.others(&config.postgres.slot).map(|slot| format!("`{slot}`")).collect()
}

fn publication_steps(config: &Config, remains: &Remains) -> Vec<Step> {
    let name = &config.postgres.publication;
    let Mark::Ours(memory) = &remains.publication else { return Vec::new() };
    if others(config, remains).is_empty() {
        return vec![Step { sql: preflight::drop_publication(name), does: Does::DropPublication }];
    }
    let memory = memory.clone().without_slot(&config.postgres.slot);
    vec![Step { sql: preflight::comment(name, &memory), does: Does::Remember(memory) }]
}

fn trigger_step(config: &Config) -> Step {
    let name = preflight::trigger_name(&config.postgres.slot);
    Step { sql: preflight::drop_trigger(&name), does: Does::Trigger }
}

/// A line about each thing that stays, with what removes it.
fn left(config: &Config, remains: &Remains) -> Vec<String> {
    let mut lines = Kept::told(&remains.identities);
    if remains.trigger.is_none() {
        let name = preflight::trigger_name(&config.postgres.slot);
        lines.push(format!("left event trigger or function `{name}`, which is not walsweep's"));
    }
    if let Some(name) = &remains.older_trigger {
        lines.push(format!(
            "left event trigger `{name}`, which an earlier version made: another slot whose name \
             begins alike may have it, too; otherwise {}; removes it",
            preflight::drop_trigger(name).replace('\n', " ")
        ));
    }
    if remains.has_trigger_of_slot {
        let name = preflight::trigger_name(&config.postgres.slot);
        let drop = printed(&[trigger_step(config)]).replace('\n', " ");
        lines.push(format!(
            "left event trigger `{name}`, which has its name from the slot, and goes with it: \
             {drop};"
        ));
    }
    lines.extend(remains.roles.iter().map(ToString::to_string));
    lines
}

/// Whether there is a slot to drop. Slots are known by name in all databases of a server, so that
/// one of this name may be that of another walsweep, or a standby's. A walsweep that streams from
/// one that nothing claims needs the publication, and has to be stopped all the same.
async fn held(
    slot: &str,
    publication: &Mark,
    client: &tokio_postgres::Client,
) -> Result<Held, Error> {
    let query = include_str!("../../sql/setup/slot_holder.sql");
    let row = client.query_opt(query, &[&slot]).await?;
    let Some(row) = row else { return Ok(Held::Missing) };
    let (pid, name): (Option<i32>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    let (is_ours, what): (bool, String) = (row.try_get(2)?, row.try_get(3)?);
    if !is_ours {
        return Err(Error::SlotForeign { slot: slot.to_owned(), what });
    }
    let is_claimed = matches!(publication, Mark::Ours(memory) if memory.claims(slot));
    let is_walsweep = pid.is_some() && name.as_deref() == Some(REPLICATION_NAME);
    if !is_claimed && !is_walsweep {
        return Ok(Held::Unclaimed);
    }
    let held = |pid| Held::By(pid, name.unwrap_or_else(|| "unknown".to_owned()));
    Ok(pid.map_or(Held::Free, held))
}
