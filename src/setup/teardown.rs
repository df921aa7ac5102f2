//! The removal of what `setup` made; and what stays, told.
//!
//! A slot bears no mark, so that one is dropped only if the comment on walsweep's own publication
//! claims it: what another program has not read yet would be lost for good.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::left::{Kept, Stays, kept, roles};
use super::script::{comment, head, tail};
use super::who::{Asked, Owned, login, not_owned};
use super::{Error, Hands, Mark, Marked, marked, overtaken, slot_standby};
use crate::capture::publication_names;
use crate::config::{Config, Postgres, Redis, SlotOn};
use crate::keys::Pattern;
use crate::lsn::Lsn;
use crate::postgres::{Sql, identify};
use crate::preflight::{self, Does, Memory, Record, SENTENCE, Step, printed};
use crate::source::holder::STREAM_NAME;
use crate::source::own::{Shown, weigh};
use crate::source::said::{Said, ask_redis};
use crate::sweep::key_name;

/// The parts that are to be removed, and those that are not.
struct Remains {
    slot: Held,
    publication: Marked,
    /// Other walsweeps that have the publication.
    others: Vec<Other>,
    /// Those that read it with a slot which its comment does not record: the process on the server,
    /// and the slot.
    unrecorded: Vec<(i32, String)>,
    /// Steps that take tables out of a publication that others have, too.
    drops: Vec<Step>,
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

impl Remains {
    /// Whether another walsweep has the publication, too.
    fn is_shared(&self) -> bool {
        !(self.others.is_empty() && self.unrecorded.is_empty())
    }
}

/// The slot of another walsweep, and whether somebody reads it; `None` if it is not there.
type Other = (String, Option<bool>);

/// A slot of the configured name.
enum Held {
    Missing,
    /// Nobody streams from it, and it was confirmed so far.
    Free(Lsn),
    /// Somebody streams from it: the process on the server, and its `application_name`.
    By(i32, String),
    /// Nothing tells that it is walsweep's, or something tells that it is not.
    Left {
        /// The line about it.
        line: String,
        /// Whether the comment on the publication claims it all the same. Then the publication
        /// stays, too: without it nothing would show whose the slot was.
        is_claimed: bool,
    },
}

/// The report of what `teardown` did.
#[derive(Debug, Default)]
pub struct Removed {
    /// A line about each thing that was dropped, left, or not found.
    pub lines: Vec<String>,
    /// Whether there is a slot that was left, for it may be another program's.
    pub leaves_slot: bool,
    /// Whether another walsweep has the publication, and perhaps the same rules and the same role.
    pub is_shared: bool,
}

/// Removes slot, publication and event trigger if `setup` made them. Of a publication that other
/// walsweeps have, too, it takes out what they do not use, and forgets the slot, be it there or
/// not.
///
/// # Errors
///
/// When the slot is in use, or the role may not drop all that is to be dropped: nothing is dropped
/// then. When a statement is refused; what was done before is told.
pub async fn teardown(config: &Config, hands: &Hands<'_>) -> Result<Removed, Error> {
    hands.prepare().await?;
    hands.hold().await?;
    let standby = slot_standby(config).await?;
    let remains = look(config, hands, standby.as_ref()).await?;
    if let Held::By(pid, name) = remains.slot {
        return Err(Error::SlotActive { slot: config.postgres.slot.clone(), pid, name });
    }
    may_drop_rest(config, hands, &remains).await?;
    let mut lines = Vec::new();
    match remove(config, hands, standby.as_ref(), &remains, &mut lines).await {
        Ok(()) => {
            let leaves_slot = matches!(remains.slot, Held::Left { .. });
            Ok(Removed { lines, leaves_slot, is_shared: remains.is_shared() })
        }
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
    lines.push(match &remains.slot {
        Held::Missing => format!("there is no slot `{slot}`"),
        Held::Left { line, .. } => line.clone(),
        Held::Free(confirmed) => {
            drop_slot(config, hands, standby, *confirmed).await?;
            format!("dropped slot `{slot}`, whose confirmed_flush_lsn was {confirmed}")
        }
        Held::By(..) => format!("slot `{slot}` is in use"),
    });
    // Before the publication, which remembers what this has not told yet.
    if remains.trigger == Some(true) {
        hands.run(&trigger_step(config)).await?;
        lines.push(format!("dropped event trigger `{}`", preflight::trigger_name(slot)));
    }
    for step in publication_steps(config, remains) {
        match hands.run(&step).await {
            Err(error) if error.is_overtaken(&step.does) => return Err(overtaken(config, error)),
            ran => ran?,
        }
        if let Does::DropTable(table) = &step.does {
            lines.push(format!(
                "took `{table}` out of publication `{publication}`: no other walsweep there has it"
            ));
        }
    }
    lines.push(match &remains.publication.mark {
        Mark::Missing => format!("there is no publication `{publication}`"),
        Mark::Foreign(owner) if Memory::is_damaged(remains.publication.comment.as_deref()) => {
            format!(
                "left publication `{publication}` of `{owner}`: its comment begins as walsweep's, \
                 and cannot be read; `walsweep check` tells what to do"
            )
        }
        Mark::Foreign(owner) => format!(
            "left publication `{publication}` of `{owner}`, which `walsweep setup` did not make"
        ),
        Mark::Ours(_) if matches!(remains.slot, Held::Left { is_claimed: true, .. }) => format!(
            "left publication `{publication}`, whose comment records slot `{slot}`: drop the slot \
             first, and run `walsweep teardown` again"
        ),
        Mark::Ours(_) if !remains.is_shared() => format!("dropped publication `{publication}`"),
        Mark::Ours(_) => left_to(publication, remains),
    });
    lines.extend(left(config, remains));
    Ok(())
}

/// Gives the line about a slot that is left because of `why`.
fn left_slot(config: &Config, why: &str) -> String {
    let slot = &config.postgres.slot;
    let place = if config.postgres.slot_on == SlotOn::Standby { " on the standby" } else { "" };
    let drop = preflight::drop_slot(slot);
    format!(
        "left slot `{slot}`: {why}. It keeps WAL; only if nobody else reads it, drop it{place}: \
         {drop};"
    )
}

/// Drops the slot, before anything else: where that is refused, nothing is dropped.
async fn drop_slot(
    config: &Config,
    hands: &Hands<'_>,
    standby: Option<&Sql>,
    confirmed: Lsn,
) -> Result<(), Error> {
    let step = preflight::drop_known_slot(&config.postgres.slot, confirmed);
    let endpoint = &config.postgres.replication_endpoint;
    match standby {
        Some(standby) => {
            let stop = hands.stop.clone();
            Hands { client: standby, endpoint, stop }.with_slot(&step).await
        }
        None => hands.with_slot_or(endpoint, &step).await,
    }
}

/// Whether the role may drop all but the slot, asked before that is dropped.
async fn may_drop_rest(config: &Config, hands: &Hands<'_>, remains: &Remains) -> Result<(), Error> {
    let is_ours = matches!(remains.publication.mark, Mark::Ours(_));
    let publication = is_ours.then(|| config.postgres.publication.clone());
    let trigger = preflight::trigger_name(&config.postgres.slot);
    let trigger = (remains.trigger == Some(true)).then_some(trigger);
    let asked = Asked { publication, trigger, ..Asked::default() };
    let rows = not_owned(hands, &asked).await?;
    if rows.is_empty() {
        return Ok(());
    }
    let what = rows.iter().map(Owned::told).collect();
    let who = login("teardown", &rows.iter().collect::<Vec<_>>());
    Err(Error::NotOwner { role: hands.endpoint.user.clone(), what, who })
}

/// Gives the work of [`teardown`] as a script; changes nothing.
///
/// # Errors
///
/// When a query is refused.
pub async fn teardown_script(config: &Config, hands: &Hands<'_>) -> Result<String, Error> {
    let standby = slot_standby(config).await?;
    let remains = look(config, hands, standby.as_ref()).await?;
    let mut script = head(
        "What `walsweep teardown` does to this database, for psql. A superuser may run all of \
         it;\nelse each part says who may.",
    );
    let parts = script_parts(config, &remains);
    match &remains.slot {
        Held::By(pid, name) => {
            let first = format!(
                "Stop walsweep, and then print this again: Postgres process {pid} (`{name}`) \
                 streams from slot `{}`.\nIt drops the slot then, and does this:",
                config.postgres.slot
            );
            script.push_str(&format!("\n{}{}", comment(&first), comment(&parts)));
        }
        Held::Missing | Held::Left { .. } | Held::Free(_) => script.push_str(&parts),
    }
    script.push_str(&format!("{}\n", tail()));
    let mut lines = left(config, &remains);
    lines.extend(config.redis.iter().map(|redis| {
        let watermark = key_name(&redis.prefix, &config.postgres.slot);
        format!(
            "keys stay in {}: `walsweep teardown` removes walsweep's own; so does {}",
            redis.title(),
            own_keys(redis, &watermark)
        )
    }));
    script.push_str(&comment(&lines.join("\n")));
    Ok(script)
}

/// The command that removes all that walsweep keeps for itself in a target under this name.
#[must_use]
pub fn own_keys(redis: &Redis, key: &str) -> String {
    let cli = redis.cli();
    let has_password = redis.password.is_some();
    let mut password =
        if has_password { ", with its password in `REDISCLI_AUTH`" } else { "" }.to_owned();
    if redis.cli_needs_sentinel_auth() {
        password.push_str(", with that of the Sentinel in `SENTINEL_AUTH`");
    }
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    // Escapes are ASCII: of a text they make a text.
    let pattern = Pattern::literal(key.as_bytes());
    let pattern = std::str::from_utf8(pattern.as_bytes()).unwrap_or(key);
    let pattern = quoted(&format!("{pattern}:*"));
    // A plain name needs no quotes.
    let is_plain = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":_-.".contains(&byte));
    let key = if is_plain { key.to_owned() } else { quoted(key) };
    format!("`{cli} --scan --pattern {pattern} | xargs {cli} unlink {key}`{password}")
}

/// The parts of the script, and who may run each.
fn script_parts(config: &Config, remains: &Remains) -> String {
    let mut parts = match &remains.slot {
        // One that is read moves on: no SQL tells it from one that is made anew.
        Held::Missing | Held::By(..) => String::new(),
        Held::Left { line, .. } => format!("\n{}", comment(line)),
        Held::Free(confirmed) => slot_part(config, *confirmed),
    };
    if remains.trigger == Some(true) {
        let who = "By a superuser, or the administrator role of a managed service:";
        parts.push_str(&format!("\n{}{};\n", comment(who), printed(&[trigger_step(config)])));
    }
    for step in publication_steps(config, remains) {
        let owner = remains.publication.owner.as_deref().unwrap_or_default();
        let who = format!("By `{owner}`, who owns the publication, or a superuser:");
        parts.push_str(&format!("\n{}{};\n", comment(&who), printed(&[step])));
    }
    parts
}

/// The part of the script that drops the slot, which is confirmed so far, and who may run it.
fn slot_part(config: &Config, confirmed: Lsn) -> String {
    let drop = preflight::drop_known_slot(&config.postgres.slot, confirmed).sql;
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
    let publication = marked(config, hands).await?;
    let slot = held(config, &publication.mark, (hands.client, holder)).await?;
    let others = others(config, &publication.mark, [hands.client, holder]).await?;
    let unrecorded = unrecorded(config, &publication.mark, [hands.client, holder]).await?;
    let question = include_str!("../../sql/setup/refresh_trigger_mark.sql");
    let name = preflight::trigger_name(&config.postgres.slot);
    let row = hands.client.query_one(question, &[&name, &SENTENCE]).await?;
    let (has_trigger, is_ours): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let (has_function, is_function_ours): (bool, bool) = (row.try_get(2)?, row.try_get(3)?);
    let is_foreign = has_trigger && !is_ours || has_function && !is_function_ours;
    let is_there = has_trigger || has_function;
    let has_trigger_of_slot = is_there && !is_foreign && matches!(slot, Held::Left { .. });
    let trigger = (!is_foreign).then_some(is_there && !has_trigger_of_slot);
    let older_trigger = older_trigger(config, hands).await?;
    let is_unknown = !unrecorded.is_empty();
    let (drops, identities) = kept(config, &publication.mark, is_unknown, hands).await?;
    let is_shared = !(others.is_empty() && unrecorded.is_empty());
    let roles = roles(config, is_shared, hands).await?;
    Ok(Remains {
        slot,
        publication,
        others,
        unrecorded,
        drops,
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

/// The slots of other walsweeps that have the publication, and whether somebody reads each; `None`
/// if it is on none of these servers.
async fn others(
    config: &Config,
    publication: &Mark,
    servers: [&Client; 2],
) -> Result<Vec<Other>, Error> {
    let Mark::Ours(memory) = publication else { return Ok(Vec::new()) };
    let names: Vec<&String> = memory.others(&config.postgres.slot).collect();
    let question = include_str!("../../sql/setup/slots_there.sql");
    let mut found: BTreeMap<String, bool> = BTreeMap::new();
    for server in servers {
        for row in server.query(question, &[&names]).await? {
            *found.entry(row.try_get(0)?).or_default() |= row.try_get::<_, bool>(1)?;
        }
    }
    Ok(names.into_iter().map(|name| (name.clone(), found.get(name).copied())).collect())
}

/// Walsweeps that stream with the publication from slots that its comment does not record. What
/// they need of it nothing tells.
async fn unrecorded(
    config: &Config,
    publication: &Mark,
    servers: [&Client; 2],
) -> Result<Vec<(i32, String)>, Error> {
    let Mark::Ours(memory) = publication else { return Ok(Vec::new()) };
    let slot = &config.postgres.slot;
    let names: Vec<&String> = memory.others(slot).chain([slot]).collect();
    let option = publication_names(&config.postgres.publication);
    let question = include_str!("../../sql/setup/streams_unrecorded.sql");
    let mut found = BTreeSet::new();
    for server in servers {
        for row in server.query(question, &[&names, &STREAM_NAME, &option]).await? {
            found.insert((row.try_get(0)?, row.try_get(1)?));
        }
    }
    Ok(found.into_iter().collect())
}

/// That the publication is left to these.
fn left_to(publication: &str, Remains { others, unrecorded, .. }: &Remains) -> String {
    let of = |state: Option<bool>| {
        let names = others.iter().filter(|(_, one)| *one == state);
        names.map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    };
    let there = others.iter().filter(|(_, state)| state.is_some());
    let there: Vec<String> = there.map(|(name, _)| format!("`{name}`")).collect();
    let mut parts = Vec::new();
    if !there.is_empty() {
        parts.push(format!("the walsweep with slot {} has it, too", there.join(", ")));
    }
    for (pid, slot) in unrecorded {
        parts.push(format!(
            "Postgres process {pid} (`{STREAM_NAME}`) reads slot `{slot}` with it, which its \
             comment does not record: `walsweep setup` with that name as `postgres.slot` does"
        ));
    }
    let teardown = "if that walsweep is gone, run `walsweep teardown` with that name as \
                    `postgres.slot`";
    match of(Some(false)) {
        none if none.is_empty() => {}
        names => parts.push(format!("nobody reads slot {names} now: {teardown}")),
    }
    match of(None) {
        none if none.is_empty() => {}
        names => parts
            .push(format!("its comment records slot {names}, too, which is not there: {teardown}")),
    }
    format!("left publication `{publication}`: {}", parts.join("; "))
}

/// Gives the steps for the publication: it is dropped; or, if others have it, too, what no other
/// uses is taken out, and what was remembered of this slot is forgotten then.
fn publication_steps(config: &Config, remains: &Remains) -> Vec<Step> {
    let (name, standing) = (&config.postgres.publication, remains.publication.comment.as_deref());
    let Mark::Ours(memory) = &remains.publication.mark else { return Vec::new() };
    let without = match remains.slot {
        Held::Left { is_claimed: true, .. } => return Vec::new(),
        Held::Left { .. } => None,
        Held::Missing | Held::Free(_) | Held::By(..) => Some(config.postgres.slot.as_str()),
    };
    let without = without.filter(|_| config.postgres.slot_on == SlotOn::Primary);
    if !remains.is_shared() {
        return vec![preflight::drop_publication(name, standing, without)];
    }
    // Nothing is taken out if somebody else wrote the comment meanwhile.
    let guard = preflight::forget(name, standing, memory.clone(), without);
    let guard = (!remains.drops.is_empty()).then_some(guard);
    let written = guard.as_ref().map(|_| memory.comment());
    let memory = memory.clone().without_slot(&config.postgres.slot);
    let standing = written.as_deref().or(standing);
    let forget = preflight::forget(name, standing, memory, without);
    guard.into_iter().chain(remains.drops.iter().cloned()).chain([forget]).collect()
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
    config: &Config,
    publication: &Mark,
    (primary, holder): (&Client, &Client),
) -> Result<Held, Error> {
    let Postgres { slot, publication: name, .. } = &config.postgres;
    let query = include_str!("../../sql/setup/slot_holder.sql");
    let Some(row) = holder.query_opt(query, &[slot]).await? else { return Ok(Held::Missing) };
    let (pid, reader): (Option<i32>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    let (is_fit, what): (bool, String) = (row.try_get(2)?, row.try_get(3)?);
    let confirmed: Lsn = row.try_get::<_, &str>(4)?.parse().unwrap_or_default();
    if !is_fit {
        let line = format!("left slot `{slot}`: it is {what}, and not walsweep's of this database");
        return Ok(Held::Left { line, is_claimed: false });
    }
    let record = match publication {
        Mark::Ours(memory) => memory.record(slot),
        Mark::Missing | Mark::Foreign(_) => Record::Nothing,
    };
    let is_walsweep = pid.is_some() && reader.as_deref() == Some(STREAM_NAME);
    if record == Record::Nothing && !is_walsweep {
        let why =
            format!("no comment on a publication `{name}` says that `walsweep setup` made it");
        return Ok(Held::Left { line: left_slot(config, &why), is_claimed: false });
    }
    let by = |pid: i32| Held::By(pid, reader.clone().unwrap_or_else(|| "unknown".to_owned()));
    if let Some(pid) = pid.filter(|_| is_walsweep) {
        return Ok(by(pid));
    }
    let history = identify(primary).await?.history;
    let said = match history {
        Some(history) => ask_redis(config, (primary, &history), confirmed).await?,
        None => Said::Nothing,
    };
    let records = match (weigh(record, &said), record) {
        (Shown::Own, _) => return Ok(pid.map_or(Held::Free(confirmed), by)),
        (_, Record::Claimed) => "records it",
        (_, Record::Wanted | Record::Nothing) => {
            "records that `walsweep run` was to make it, and not who did"
        }
    };
    let why = format!(
        "publication `{name}` {records}, but of its confirmed_flush_lsn {confirmed} {said}"
    );
    let is_claimed = record == Record::Claimed;
    Ok(Held::Left { line: left_slot(config, &why), is_claimed })
}
