//! Checks of the replication slot.

use tokio_postgres::Client;

use super::catalog::{Prepared, Slot};
use super::step::Step;
use super::{Code, Context, Error, Finding, cure};
use crate::config::{Config, Postgres, SlotOn};

/// The slot as it is, or that there is none.
pub(super) fn check(context: &Context<'_>) -> Vec<Finding> {
    let name = &context.config.postgres.slot;
    let Some(slot) = &context.catalog.slot else {
        let message = format!("there is no slot `{name}`");
        let missing =
            Finding::info(Code::SlotMissing, message).hint("`run` creates it when it starts");
        let missing = missing.cure(vec![cure::create_slot(&context.config.postgres)]);
        let missing = missing.done_by_setup();
        return [missing].into_iter().chain(prepared(&context.catalog.prepared)).collect();
    };
    if let Some(wrong) = unfit(context, slot) {
        return vec![wrong.hint("drop that slot, or let `postgres.slot` name another one")];
    }
    let mut findings = Vec::from_iter(behind(name, slot));
    if let Some(pid) = slot.active_pid {
        let message = format!("slot `{name}` is in use by process {pid}");
        let active = Finding::info(Code::SlotActive, message);
        findings.push(active.hint("a walsweep that is started now waits for it"));
    }
    findings
}

/// The steps after which the slot begins behind a publication that is now created: the server looks
/// the publication up as of the change that it decodes, and gets past none from before it. None for
/// a slot that is not there, in use, not walsweep's, or lost: `run` sees to the last.
pub(super) fn anew(context: &Context<'_>) -> Vec<Step> {
    let name = &context.config.postgres.slot;
    let slot = context.catalog.slot.as_ref().filter(|slot| {
        slot.active_pid.is_none() && why_lost(slot).is_none() && unfit(context, slot).is_none()
    });
    let steps =
        slot.map(|_| vec![cure::without_slot(name), cure::create_slot(&context.config.postgres)]);
    steps.unwrap_or_default()
}

/// A slot that may have to decode what was committed before its publication was created, or between
/// one and the next: the server looks the publication up as of the change that it decodes, and gets
/// no further. `run` finds that out by itself, so only `check` asks.
///
/// # Errors
///
/// When the catalog cannot be read.
pub async fn before_publication(config: &Config, client: &Client) -> Result<Vec<Finding>, Error> {
    let Postgres { slot, publication, .. } = &config.postgres;
    let query = include_str!("../../sql/publication_age.sql");
    let row = client.query_opt(query, &[slot, publication]).await?;
    let is_younger = row.map(|row| row.try_get::<_, Option<bool>>(0)).transpose()?.flatten();
    if is_younger != Some(true) {
        return Ok(Vec::new());
    }
    let message = format!(
        "publication `{publication}` was created or altered after what slot `{slot}` may still \
         have to decode: what was committed while there was none, the server cannot decode"
    );
    let younger = Finding::warning(Code::PublicationYounger, message);
    let hint = "nothing is to be done: `run` gives such a slot up after three sessions that end at \
                the same place, and sweeps everything";
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
        let message = format!("slot `{name}` is of database `{other}`, not of `{database}`");
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
