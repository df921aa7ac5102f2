//! What `setup` made, removed again; and what stays, told.

use super::script::comment;
use super::{Error, Hands, Mark, NAME, mark, not_owned, slot_standby};
use crate::config::{Config, SlotOn};
use crate::postgres::statement::render;
use crate::postgres::{Sql, connect_sql};
use crate::preflight::{self, Does, Identity, SENTENCE, Step, printed};
use crate::sweep::key_name;

/// What is to be removed, and what is not.
struct Remains {
    slot: Held,
    publication: Mark,
    /// Whether there is an event trigger, or its function, of walsweep's; `None` if there is one of
    /// somebody else's.
    trigger: Option<bool>,
    /// One that an earlier version made, for this slot or for another of a long name.
    older_trigger: Option<String>,
    /// Identities that `setup` changed and that are as it left them: what sets each back, or why it
    /// has to stay.
    identities: Vec<(Identity, Result<Step, String>)>,
}

/// A slot that is to be dropped.
enum Held {
    Missing,
    Free,
    /// Somebody streams from it: the process on the server, and its `application_name`.
    By(i32, String),
}

/// Removes the slot, and publication and event trigger if `setup` made them. Gives a line about
/// each thing that it did, left, or did not find.
///
/// # Errors
///
/// When the slot is in use or another program's, or the role may not drop all that is to be
/// dropped: nothing is dropped then. When a statement is refused; what was done before is told.
pub async fn teardown(config: &Config, hands: &Hands<'_>) -> Result<Vec<String>, Error> {
    hands.prepare().await?;
    let standby = slot_standby(config).await?;
    let remains = look(config, hands, standby.as_ref()).await?;
    if let Held::By(pid, name) = remains.slot {
        return Err(Error::SlotActive { slot: config.postgres.slot.clone(), pid, name });
    }
    may_drop_rest(config, hands, &remains).await?;
    let mut lines = Vec::new();
    match remove(config, hands, standby.as_ref(), &remains, &mut lines).await {
        Ok(()) => Ok(lines),
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
    if let Held::Missing = remains.slot {
        lines.push(format!("there is no slot `{slot}`"));
    } else {
        drop_slot(config, hands, standby).await?;
        lines.push(format!("dropped slot `{slot}`"));
    }
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
    let rows = not_owned(hands, publication, trigger.as_ref(), &[]).await?;
    let what: Vec<String> =
        rows.into_iter().map(|(what, owner)| format!("{what} of `{owner}`")).collect();
    let role = hands.endpoint.user.clone();
    if what.is_empty() { Ok(()) } else { Err(Error::NotOwner { role, what }) }
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
    if !matches!(remains.slot, Held::Missing) {
        let drop = preflight::drop_slot(&config.postgres.slot);
        script.push_str(&match config.postgres.slot_on {
            SlotOn::Primary => format!("\n{drop};\n"),
            SlotOn::Standby => {
                format!("\n{}", comment(&format!("On the standby:\n\n    {drop};")))
            }
        });
    }
    let mut steps = publication_steps(config, &remains);
    steps.extend((remains.trigger == Some(true)).then(|| trigger_step(config)));
    for step in steps {
        script.push_str(&format!("\n{};\n", printed(&[step])));
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

async fn look(config: &Config, hands: &Hands<'_>, standby: Option<&Sql>) -> Result<Remains, Error> {
    let holder = standby.map_or(hands.client, |standby| standby);
    let slot = held(&config.postgres.slot, holder).await?;
    let publication = mark(config, hands).await?;
    let question = include_str!("../../sql/setup/refresh_trigger_mark.sql");
    let name = preflight::trigger_name(&config.postgres.slot);
    let row = hands.client.query_one(question, &[&name, &SENTENCE]).await?;
    let (has_trigger, is_ours): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let (has_function, is_function_ours): (bool, bool) = (row.try_get(2)?, row.try_get(3)?);
    let is_foreign = has_trigger && !is_ours || has_function && !is_function_ours;
    let trigger = (!is_foreign).then_some(has_trigger || has_function);
    let identities = match &publication {
        Mark::Ours(memory) => preflight::after_teardown(config, memory, hands.client).await?,
        Mark::Missing | Mark::Foreign(_) => Vec::new(),
    };
    let older_trigger = older_trigger(config, hands).await?;
    Ok(Remains { slot, publication, trigger, older_trigger, identities })
}

/// An event trigger of walsweep's that may be that of another walsweep with a long slot name, too.
async fn older_trigger(config: &Config, hands: &Hands<'_>) -> Result<Option<String>, Error> {
    let Some(name) = preflight::older_trigger_name(&config.postgres.slot) else { return Ok(None) };
    let question = include_str!("../../sql/setup/refresh_trigger_mark.sql");
    let row = hands.client.query_one(question, &[&name, &SENTENCE]).await?;
    Ok(row.try_get::<_, bool>(1)?.then_some(name))
}

/// The slots of other walsweeps that have the publication.
fn others(config: &Config, remains: &Remains) -> Vec<String> {
    let Mark::Ours(memory) = &remains.publication else { return Vec::new() };
    let slots = memory.tables.keys().filter(|slot| **slot != config.postgres.slot);
    slots.map(|slot| format!("`{slot}`")).collect()
}

fn publication_steps(config: &Config, remains: &Remains) -> Vec<Step> {
    let name = &config.postgres.publication;
    let Mark::Ours(memory) = &remains.publication else { return Vec::new() };
    if others(config, remains).is_empty() {
        return vec![Step { sql: preflight::drop_publication(name), does: Does::DropPublication }];
    }
    let mut memory = memory.clone();
    memory.tables.remove(&config.postgres.slot);
    vec![Step { sql: preflight::comment(name, &memory), does: Does::Remember(memory) }]
}

fn trigger_step(config: &Config) -> Step {
    let name = preflight::trigger_name(&config.postgres.slot);
    Step { sql: preflight::drop_trigger(&name), does: Does::Trigger }
}

/// A line about each thing that stays, with what removes it.
fn left(config: &Config, remains: &Remains) -> Vec<String> {
    let mut lines = Vec::new();
    let undone = remains.identities.iter().filter_map(|(_, back)| back.as_ref().ok());
    let undone: Vec<Step> = undone.cloned().collect();
    if remains.identities.is_empty() {
        lines.push("replica identities stay as they are: none is known to be of setup".to_owned());
    } else if !undone.is_empty() {
        lines.push(format!(
            "replica identities stay as they are; those that setup changed go back with: {};",
            printed(&undone).replace('\n', " ")
        ));
    }
    let kept =
        remains.identities.iter().filter_map(|(one, back)| Some((one, back.as_ref().err()?)));
    lines.extend(
        kept.map(|(one, why)| format!("`{}` keeps its full replica identity: {why}", one.relation)),
    );
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
    let role = preflight::escaped(&config.postgres.endpoint.user);
    lines.push(format!(
        "the role and its grants stay: `drop owned by {role}; drop role {role};` removes them if \
         it is for walsweep alone"
    ));
    lines
}

/// Whether there is a slot to drop. Slots are known by name in all databases of a server, so that
/// one of this name may be that of another walsweep, or a standby's.
async fn held(slot: &str, client: &tokio_postgres::Client) -> Result<Held, Error> {
    let query = include_str!("../../sql/setup/slot_holder.sql");
    let row = client.query_opt(query, &[&slot]).await?;
    let Some(row) = row else { return Ok(Held::Missing) };
    let (pid, name): (Option<i32>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    let (is_ours, what): (bool, String) = (row.try_get(2)?, row.try_get(3)?);
    if !is_ours {
        return Err(Error::SlotForeign { slot: slot.to_owned(), what });
    }
    let held = |pid| Held::By(pid, name.unwrap_or_else(|| "unknown".to_owned()));
    Ok(pid.map_or(Held::Free, held))
}
