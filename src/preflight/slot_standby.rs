//! Checks of the standby that the slot is on, where it is on one.

use serde::Deserialize;

use super::catalog::{Catalog, Other, Slot};
use super::{Code, Error, Finding, cure};
use crate::config::{Postgres, SlotOn};
use crate::postgres::connect_sql;

/// The first version with slots on standbys.
const VERSION_MIN: i32 = 160_000;

/// `application_name` on the standby.
const NAME: &str = "walsweep command";

/// The answer of `sql/preflight_standby.sql`.
#[derive(Debug, Deserialize)]
struct State {
    is_in_recovery: bool,
    wal_level: String,
    hot_standby_feedback: bool,
    primary_slot_name: Option<String>,
    slot_keep_size: Option<String>,
    idle_slot_timeout: Option<i64>,
    slots_max: i64,
    slots_used: i64,
    senders_max: i64,
    senders_used: i64,
    slot: Option<Slot>,
    slots: Vec<Other>,
}

/// Looks at the standby, and lets `catalog` say of it what else would be said of the primary: its
/// slot, the room for it, and what becomes of it.
///
/// # Errors
///
/// When the standby cannot be asked.
pub(super) async fn check(config: &Postgres, catalog: &mut Catalog) -> Result<Vec<Finding>, Error> {
    if config.slot_on == SlotOn::Primary || catalog.is_in_recovery {
        return Ok(Vec::new());
    }
    if catalog.version < VERSION_MIN {
        let message = format!(
            "`postgres.slot_on = \"standby\"` needs PostgreSQL 16, the server is {}",
            catalog.version / 10_000
        );
        let finding = Finding::error(Code::StandbyVersion, message);
        return Ok(vec![finding.hint("leave the option out: the slot is then on the primary")]);
    }
    let state = read(config).await?;
    if !state.is_in_recovery {
        let message = "`postgres.replication_url` reaches a primary, and `postgres.slot_on` is \
                       `standby`";
        let hint = "let `postgres.replication_url` name a standby of the primary; if that one was \
                    promoted and is the new primary, let `postgres.url` name it";
        return Ok(vec![Finding::error(Code::ReplicationPrimary, message).hint(hint)]);
    }
    let mut findings = Vec::from_iter(left_behind(config, catalog));
    findings.extend(settings(&state));
    if catalog.may_log_snapshot == Some(false) {
        let message = "the role may not let the primary log which transactions run, for which a \
                       slot that is created on a standby waits: that takes up to a minute";
        let denied = Finding::warning(Code::StandbySnapshot, message);
        findings.push(denied.cure(cure::allow_standby_snapshot(&config.endpoint.user)));
    }
    catalog.slot = state.slot;
    catalog.slots.extend(state.slots);
    (catalog.slot_keep_size, catalog.idle_slot_timeout) =
        (state.slot_keep_size, state.idle_slot_timeout);
    (catalog.slots_max, catalog.slots_used) = (state.slots_max, state.slots_used);
    (catalog.senders_max, catalog.senders_used) = (state.senders_max, state.senders_used);
    Ok(findings)
}

async fn read(config: &Postgres) -> Result<State, Error> {
    let endpoint = &config.replication_endpoint;
    let standby = connect_sql(endpoint, NAME).await.map_err(Error::Standby)?;
    let query = include_str!("../../sql/preflight_standby.sql");
    let row = standby.query_one(query, &[&config.slot]).await;
    let row = row.map_err(|error| Error::Standby(error.into()))?;
    let state = serde_json::from_str(row.try_get(0)?)?;
    standby.close().await;
    Ok(state)
}

/// A slot of this name on the primary, such as the one of before the slot was on a standby. It may
/// be another program's, too.
fn left_behind(config: &Postgres, catalog: &Catalog) -> Option<Finding> {
    let slot = catalog.slot.as_ref()?;
    let name = &config.slot;
    let who = match slot.active_pid {
        Some(pid) => format!("Postgres process {pid} reads it"),
        None => "nobody reads it, and it keeps WAL".to_owned(),
    };
    let left = Finding::warning(
        Code::SlotOnPrimary,
        format!("a slot `{name}` is on the primary, too: {who}"),
    );
    let drop = cure::drop_slot(name);
    Some(left.hint(match slot.active_pid {
        Some(_) => "if that is a walsweep of before, stop it".to_owned(),
        None => {
            format!("only if it is walsweep's of before, and nobody else needs it: `{drop};` there")
        }
    }))
}

/// Checks what decoding on a standby needs
/// (<https://www.postgresql.org/docs/current/logicaldecoding-explanation.html>).
fn settings(state: &State) -> Vec<Finding> {
    let mut findings = Vec::new();
    if state.wal_level != "logical" {
        let message = format!("`wal_level` of the standby is `{}`", state.wal_level);
        let level = Finding::error(Code::StandbyWalLevel, message);
        findings.push(level.hint("set `wal_level = logical` there, too, and start it again"));
    }
    if !state.hot_standby_feedback {
        let message = "`hot_standby_feedback` of the standby is off: the primary removes catalog \
                       rows that the slot needs, and the slot is lost";
        let off = Finding::warning(Code::StandbyFeedback, message);
        findings.push(off.hint("set it to `on` there, or each loss costs a sweep of everything"));
    }
    if state.primary_slot_name.as_deref() == Some("") {
        let message = "the standby has no `primary_slot_name`: while it is away, the primary \
                       removes catalog rows that the slot needs, and the slot is lost";
        let none = Finding::warning(Code::StandbyPrimarySlot, message);
        findings.push(none.hint("set it there to a physical slot of the server that it follows"));
    }
    findings
}
