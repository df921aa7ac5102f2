//! Checks of the replication slot.
//!
//! A slot bears no mark: neither an owner nor a comment. It is known as walsweep's by what the
//! comment on walsweep's own publication claims ([`memory`](super::memory)). One that nothing
//! claims may be another program's, whose place in the log is gone for good once somebody else
//! confirms from the slot, or drops it. So no SQL that is printed drops one.

use tokio_postgres::Client;

use super::catalog::{Prepared, Publication, Slot};
use super::memory::{Memory, Record};
use super::step::Step;
use super::{Code, Context, Error, Finding, Severity, cure};
use crate::config::{Config, Postgres, SlotOn};

/// The slot as it is, or that there is none.
pub(super) fn check(context: &Context<'_>) -> Vec<Finding> {
    let name = &context.config.postgres.slot;
    let Some(slot) = &context.catalog.slot else {
        let message = format!("there is no slot `{name}`");
        let missing = Finding::info(Code::SlotMissing, message)
            .hint("`run` creates it by itself, and sweeps everything then");
        let missing = missing.cure(vec![cure::create_slot(&context.config.postgres)]);
        let missing = missing.done_by_setup();
        return [missing].into_iter().chain(prepared(&context.catalog.prepared)).collect();
    };
    if let Some(wrong) = unfit(context, slot) {
        let hint = way_out(wrong.code, slot);
        return vec![wrong.hint(hint)];
    }
    let mut findings = Vec::from_iter(behind(name, slot));
    findings.extend(unclaimed(context));
    if let Some(pid) = slot.active_pid {
        let message = format!("slot `{name}` is in use by Postgres process {pid}");
        let active = Finding::info(Code::SlotActive, message);
        findings.push(active.hint("a walsweep that is started now waits for it"));
    }
    findings
}

/// Says what to do about a slot that walsweep cannot stream from. Nobody is told to drop one that
/// is read, or that another database has: there the URL is wrong more often than the slot.
fn way_out(code: Code, slot: &Slot) -> String {
    let other = "let `postgres.slot` name another one";
    match (code, slot.active_pid) {
        (Code::SlotDatabase, _) => {
            format!("is the database at the end of `postgres.url` right? Only if it is, {other}")
        }
        (_, Some(pid)) => format!("{other}: Postgres process {pid} has this one"),
        (_, None) => format!("{other}, or drop that slot if nobody needs it"),
    }
}

/// A slot that is not known as walsweep's. Where `setup` was at work for the publication and has no
/// record of it, that is a warning: it found the slot there, or never saw this configuration. Redis
/// may know better: see `source::own`.
fn unclaimed(context: &Context<'_>) -> Option<Finding> {
    let Postgres { slot, publication: name, .. } = &context.config.postgres;
    let publication = context.catalog.publication.as_ref();
    let memory = publication.and_then(Publication::memory);
    if memory.as_ref().is_some_and(|memory| memory.claims(slot)) {
        return None;
    }
    let why = match (publication, &memory) {
        (None, _) => format!("there is no publication `{name}` that would tell"),
        (Some(_), None) => format!("publication `{name}` is not walsweep's, and does not tell"),
        (Some(_), Some(memory)) if memory.record(slot) == Record::Wanted => format!(
            "`walsweep setup` did not make it for publication `{name}`, and nobody has claimed it \
             since"
        ),
        (Some(_), Some(memory)) if memory.slots.is_empty() => {
            format!("`walsweep setup` did not make it for publication `{name}`")
        }
        (Some(_), Some(memory)) => {
            let slots: Vec<String> = memory.slots.iter().map(|one| format!("`{one}`")).collect();
            let slots = slots.join(", ");
            format!("publication `{name}` records only slot {slots} as walsweep's")
        }
    };
    let reader = context.catalog.slot.as_ref().and_then(|one| one.active_pid);
    let reader = reader.map(|pid| format!("; Postgres process {pid} reads it now"));
    let reader = reader.unwrap_or_default();
    let message = format!(
        "slot `{slot}` is there, and may be another program's: {why}{reader}. That program would \
         never receive what `run` confirms; `setup` and `teardown` leave the slot"
    );
    let is_doubtful =
        |memory: &Memory| !memory.is_empty() && memory.record(slot) == Record::Nothing;
    let is_doubtful = memory.as_ref().is_some_and(is_doubtful);
    let severity = if is_doubtful { Severity::Warning } else { Severity::Info };
    let finding = Finding::new(severity, Code::SlotUnclaimed, message);
    let other = "if another program reads it, let `postgres.slot` name another one";
    Some(match (memory, publication) {
        (Some(memory), Some(publication)) => finding
            .hint(format!(
                "{other}; if it is walsweep's, record that as `{}`, who owns the publication, or \
                 as a superuser",
                publication.owner
            ))
            .cure(vec![record(publication, name, memory.with_slot(slot))]),
        _ => finding.hint(other),
    })
}

/// Records in the comment on the publication what `memory` says.
fn record(publication: &Publication, name: &str, memory: Memory) -> Step {
    cure::remember(name, publication.comment.as_deref(), memory)
}

/// Whether it is worth a line of the log of `run` whose the slot may be, and which.
pub(crate) fn doubts(findings: &[Finding]) -> impl Iterator<Item = &Finding> {
    findings.iter().filter(|finding| finding.code == Code::SlotUnclaimed)
}

/// Tells of a slot that is there when the publication is created. The server looks the publication
/// up as of the change that it decodes, and gets past none from before it. With the publication
/// before, all that told whose the slot is went away, so it is left.
pub(super) fn beside_new_publication(context: &Context<'_>) -> Option<String> {
    let name = &context.config.postgres.slot;
    let slot = context.catalog.slot.as_ref().filter(|slot| unfit(context, slot).is_none())?;
    let reader = slot.active_pid.map(|pid| format!("; Postgres process {pid} reads it now"));
    // To drop it is advice for when `run` has found that it has to go, and that nobody shows whose
    // it is.
    Some(format!(
        "slot `{name}` is left, for it may be another program's: if it cannot decode what was \
         committed before its publication, `run` makes a new one where redis shows that it has \
         read this one, and else says what to do{}",
        reader.unwrap_or_default()
    ))
}

/// A slot that may have to decode what was committed before its publication was created, or between
/// one and the next: the server looks the publication up as of the change that it decodes, and gets
/// no further. `run` finds that out by itself, so only `check` asks. Nothing is said of a slot that
/// the publication claims, for it was made beside that, nor where it cannot be known.
///
/// # Errors
///
/// When the catalog cannot be read.
pub async fn before_publication(config: &Config, client: &Client) -> Result<Vec<Finding>, Error> {
    let Postgres { slot, publication, .. } = &config.postgres;
    let query = include_str!("../../sql/publication_age.sql");
    let row = client.query_opt(query, &[slot, publication]).await?;
    let mark = include_str!("../../sql/setup/publication_mark.sql");
    let mark = client.query_opt(mark, &[publication]).await?;
    let comment = mark.as_ref().map(|row| row.try_get::<_, Option<&str>>(1)).transpose()?;
    if Memory::read(comment.flatten()).is_some_and(|memory| memory.claims(slot)) {
        return Ok(Vec::new());
    }
    let is_younger = row.map(|row| row.try_get::<_, Option<bool>>(0)).transpose()?.flatten();
    if is_younger != Some(true) {
        return Ok(Vec::new());
    }
    let message = format!(
        "publication `{publication}` was created or altered after what slot `{slot}` may still \
         have to decode: what was committed while there was none, the server cannot decode"
    );
    let younger = Finding::warning(Code::PublicationYounger, message);
    let hint = "nothing is to be done if the slot is shown to be walsweep's: `run` gives it up \
                after three sessions that end at the same place, and sweeps everything; else it \
                says so";
    Ok(vec![younger.hint(hint)])
}

/// Transactions that may stay open for as long as nobody thinks of them.
fn prepared(Prepared { count, seconds }: &Prepared) -> Option<Finding> {
    let message = format!(
        "prepared transactions, {count}, the oldest for {seconds} s: a new slot waits until each \
         has ended"
    );
    let hint = "`commit prepared` or `rollback prepared` what `pg_prepared_xacts` lists";
    (*count > 0).then(|| Finding::warning(Code::SlotWaits, message).hint(hint))
}

/// Why nothing can be streamed from it.
fn why_lost(slot: &Slot) -> Option<&'static str> {
    let status = slot.wal_status.as_deref().unwrap_or_default();
    let conflict = (slot.conflicting == Some(true)).then_some("conflict");
    lost_because(status, slot.invalidation_reason.as_deref().or(conflict))
}

/// A slot that is, or soon will be, without WAL that it needs.
fn behind(name: &str, slot: &Slot) -> Option<Finding> {
    if let Some(cause) = why_lost(slot) {
        let lost = Finding::warning(Code::SlotLost, format!("slot `{name}` is lost: {cause}"));
        return Some(lost.hint("`run` creates it anew and sweeps everything"));
    }
    match slot.wal_status.as_deref() {
        Some("unreserved") => {
            let message = format!(
                "slot `{name}` keeps more WAL than `max_slot_wal_keep_size` allows: a checkpoint \
                 may take it away, and the slot is lost"
            );
            let soon = Finding::warning(Code::SlotUnreserved, message);
            Some(soon.hint("let walsweep catch up now, or raise `max_slot_wal_keep_size`"))
        }
        _ => None,
    }
}

/// Why walsweep cannot stream from it.
fn unfit(context: &Context<'_>, slot: &Slot) -> Option<Finding> {
    let name = &context.config.postgres.slot;
    let database = &context.catalog.database;
    if slot.plugin.as_deref() != Some("pgoutput") {
        let plugin = slot.plugin.as_deref().unwrap_or("none: it is a physical slot");
        let message =
            format!("slot `{name}` has another output plugin than `pgoutput`: `{plugin}`");
        return Some(Finding::error(Code::SlotPlugin, message));
    }
    if slot.database.as_ref() != Some(database) {
        let other = slot.database.as_deref().unwrap_or_default();
        let reader = slot.active_pid.map(|pid| format!("; Postgres process {pid} reads it there"));
        let reader = reader.unwrap_or_default();
        let message =
            format!("slot `{name}` is of database `{other}`, not of `{database}`{reader}");
        return Some(Finding::error(Code::SlotDatabase, message));
    }
    if slot.synced == Some(true) && context.config.postgres.slot_on == SlotOn::Standby {
        let message = format!("slot `{name}` is the standby's copy of the primary's");
        return Some(Finding::error(Code::SlotSynced, message));
    }
    if slot.temporary {
        let message = format!("slot `{name}` is temporary: it ends with the session that made it");
        return Some(Finding::error(Code::SlotTemporary, message));
    }
    if slot.two_phase == Some(true) {
        let message = format!("slot `{name}` decodes at PREPARE TRANSACTION, before the commit");
        return Some(Finding::error(Code::SlotTwoPhase, message));
    }
    None
}

/// Why a slot of this `wal_status` and, since Postgres 17, this `invalidation_reason` is lost;
/// `None` if it is not (<https://www.postgresql.org/docs/current/view-pg-replication-slots.html>).
#[must_use]
pub(crate) fn lost_because(wal_status: &str, invalidation: Option<&str>) -> Option<&'static str> {
    match invalidation {
        Some("idle_timeout") => Some("nobody read it for `idle_replication_slot_timeout`"),
        Some("rows_removed") => Some("the server removed catalog rows that it needed"),
        Some("conflict") => Some(
            "the primary removed catalog rows that it needed, or its `wal_level` was not `logical`",
        ),
        Some("wal_level_insufficient") => Some("the primary's `wal_level` was not `logical`"),
        Some("wal_removed") => Some("the server removed WAL that it needed"),
        Some(_) => Some("the server invalidated it"),
        None if wal_status == "lost" => Some("the server removed WAL that it needed"),
        None => None,
    }
}
