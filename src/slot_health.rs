//! What the slot costs the server that it is on, sampled for the metrics.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;

use crate::config::Postgres;
use crate::error::Error;
use crate::lsn::Lsn;
use crate::slot_server::SlotServer;
use crate::telemetry::metrics::{Metrics, StatusLabel};

/// How often the slot is looked at. It is also how a dead SQL connection is noticed while there is
/// nothing to ask it.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// A sample that is not answered in this time means that the connection is dead.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The values of `pg_replication_slots.wal_status`
/// (<https://www.postgresql.org/docs/current/view-pg-replication-slots.html>).
const STATUSES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// A row of `pg_replication_slots`.
#[derive(Debug)]
pub struct SlotState {
    /// What Postgres was told last.
    pub confirmed_flush_lsn: Lsn,
    /// Whether the WAL that the slot needs is still there.
    pub wal_status: String,
    /// The process that streams from it.
    pub active_pid: Option<i32>,
    /// That process's `application_name`, if it may be seen.
    pub active_name: Option<String>,
    /// Whether a standby is to keep a copy of it; `None` before Postgres 17, which knows none.
    pub failover: Option<bool>,
    invalidation: Option<String>,
    safe_wal_size: Option<i64>,
    confirmed_lag: Option<i64>,
    restart_lag: Option<i64>,
    /// How far the server has replayed; `None` if it is no standby.
    replayed: Option<Lsn>,
}

impl SlotState {
    /// The same of a slot on a standby, with the lag behind a primary whose log ends at `wal_end`.
    /// How much WAL is safe a standby does not know: it counts from its own writing, which is none.
    fn behind(self, wal_end: Lsn) -> SlotState {
        let lag = wal_end.0.saturating_sub(self.confirmed_flush_lsn.0);
        let confirmed_lag = Some(i64::try_from(lag).unwrap_or(i64::MAX));
        SlotState { confirmed_lag, safe_wal_size: None, ..self }
    }

    /// Where the server's log ended when the slot was looked at: nobody was sent more by then.
    #[must_use]
    pub fn wal_end(&self) -> Lsn {
        let lag = self.confirmed_lag.and_then(|lag| u64::try_from(lag).ok());
        Lsn(self.confirmed_flush_lsn.0.saturating_add(lag.unwrap_or_default()))
    }

    /// Why nothing can be streamed from it any more; `None` if something can.
    #[must_use]
    pub fn lost_because(&self) -> Option<&'static str> {
        lost_because(&self.wal_status, self.invalidation.as_deref())
    }

    /// The WAL that the slot keeps on the server's disk, if that is more than `max`, in bytes.
    #[must_use]
    pub fn retains_more_than(&self, max: Option<u64>) -> Option<Retained> {
        let bytes = u64::try_from(self.restart_lag?).ok()?;
        max.filter(|max| bytes > *max).map(|max| Retained { bytes, max })
    }
}

/// Why a slot of this `wal_status` and, since Postgres 17, this `invalidation_reason` is lost;
/// `None` if it is not (<https://www.postgresql.org/docs/current/view-pg-replication-slots.html>).
#[must_use]
pub fn lost_because(wal_status: &str, invalidation: Option<&str>) -> Option<&'static str> {
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

/// A slot that keeps more WAL than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    /// What it keeps, in bytes.
    pub bytes: u64,
    /// What it may, in bytes.
    pub max: u64,
}

/// The state of the slot `name`; `None` if there is none.
///
/// # Errors
///
/// The query's.
pub async fn look(client: &Client, name: &str) -> Result<Option<SlotState>, tokio_postgres::Error> {
    let Some(row) = client.query_opt(include_str!("../sql/slot.sql"), &[&name]).await? else {
        return Ok(None);
    };
    let confirmed: Option<&str> = row.try_get(0)?;
    Ok(Some(SlotState {
        confirmed_flush_lsn: confirmed.and_then(|lsn| lsn.parse().ok()).unwrap_or_default(),
        wal_status: row.try_get::<_, Option<String>>(1)?.unwrap_or_default(),
        active_pid: row.try_get(2)?,
        safe_wal_size: row.try_get(3)?,
        confirmed_lag: row.try_get(4)?,
        restart_lag: row.try_get(5)?,
        active_name: row.try_get(6)?,
        invalidation: row.try_get(7)?,
        failover: row.try_get(8)?,
        replayed: row.try_get::<_, Option<&str>>(9)?.and_then(|lsn| lsn.parse().ok()),
    }))
}

/// The state of the slot. Of one on a standby the unconfirmed WAL is what the primary has written:
/// keys stay for it, whether it is walsweep that is late or the standby. Both servers are asked
/// each time, so that a dead connection to either is noticed.
async fn sample(
    server: &SlotServer,
    name: &str,
    replay: &mut Replay,
) -> Result<Option<SlotState>, tokio_postgres::Error> {
    let state = look(&server.sql, name).await?;
    if !server.is_standby() {
        return Ok(state);
    }
    let wal_end = server.wal_end().await?;
    if let Some(replayed) = state.as_ref().and_then(|state| state.replayed) {
        replay.look(replayed, wal_end, Instant::now());
    }
    Ok(state.map(|state| state.behind(wal_end)))
}

/// Whether the standby that the slot is on keeps up with its primary. A standby that is cut off
/// sends nothing and goes on answering.
#[derive(Default)]
struct Replay {
    /// Where the primary's log ended, and since when the standby has not come that far.
    awaited: Option<(Lsn, Instant)>,
    told: bool,
}

impl Replay {
    /// The log may end within a record, of which an idle primary writes the rest 15 s later.
    const LATE: Duration = Duration::from_secs(30);

    /// Takes in a sample; warns once each time that the standby falls behind.
    fn look(&mut self, replayed: Lsn, wal_end: Lsn, now: Instant) -> bool {
        let Some((awaited, since)) = self.awaited else {
            self.awaited = Some((wal_end, now));
            return false;
        };
        if replayed >= awaited {
            if std::mem::take(&mut self.told) {
                tracing::info!(%replayed, "the standby that the slot is on has caught up");
            }
            self.awaited = Some((wal_end, now));
            return false;
        }
        let is_late = now - since >= Replay::LATE;
        if is_late && !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                %replayed,
                primary = %wal_end,
                hint = "see whether it follows the primary, and what holds its replay",
                "the standby that the slot is on is late, and so are all removals"
            );
        }
        is_late
    }
}

/// Samples the slot into `metrics` until the session has to end, and says why: the query failed or
/// was not answered in time, the slot is gone, or it keeps more WAL than it may.
pub async fn watch(server: &SlotServer, config: &Postgres, metrics: &Metrics) -> Error {
    let name = &config.slot;
    let (mut warned, mut replay) = (false, Replay::default());
    loop {
        let state = match timeout(SAMPLE_TIMEOUT, sample(server, name, &mut replay)).await {
            Ok(Ok(Some(state))) => state,
            Ok(Ok(None)) => return Error::SlotGone,
            Ok(Err(error)) => return error.into(),
            Err(_) => return Error::Silent(SAMPLE_TIMEOUT.as_secs()),
        };
        metrics.confirmed_lag_bytes.set(state.confirmed_lag.unwrap_or_default());
        metrics.restart_lag_bytes.set(state.restart_lag.unwrap_or_default());
        metrics.slot_safe_wal_bytes.set(state.safe_wal_size.unwrap_or(-1));
        for status in STATUSES {
            let is_present = i64::from(state.wal_status == status);
            metrics.slot_wal_status.get_or_create(&StatusLabel { status }).set(is_present);
        }
        let at_risk = state.wal_status == "unreserved";
        if at_risk && !warned {
            tracing::error!(
                slot = name,
                hint = "find out what holds the confirmation, or raise max_slot_wal_keep_size",
                "the slot is about to be lost: the server may remove WAL that it needs"
            );
        }
        warned = at_risk;
        if let Some(retained) = state.retains_more_than(config.max_retained_wal) {
            return Error::RetainedWal(retained);
        }
        sleep(SAMPLE_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Replay, lost_because};
    use crate::lsn::Lsn;

    #[test]
    fn a_standby_is_late_when_it_lacks_what_was_written_half_a_minute_ago() {
        let start = Instant::now();
        let mut replay = Replay::default();
        // Seconds, replayed, the primary's end.
        for (at, replayed, wal_end, is_late) in [
            (0, 90, 100, false),
            (5, 99, 150, false),
            (25, 99, 160, false),
            (30, 99, 160, true),
            (35, 100, 160, false),
            (60, 159, 170, false),
            (65, 159, 170, true),
            (70, 165, 170, false),
            (200, 170, 170, false),
            (900, 170, 170, false),
        ] {
            let now = start + Duration::from_secs(at);
            assert_eq!(replay.look(Lsn(replayed), Lsn(wal_end), now), is_late, "{at}");
        }
    }

    /// A cause that a later version adds must not pass for none: the slot would be streamed from.
    #[test]
    fn every_cause_is_a_loss() {
        let removed = "the server removed WAL that it needed";
        for (status, cause, expected) in [
            ("lost", Some("wal_removed"), Some(removed)),
            ("lost", None, Some(removed)),
            ("lost", Some("rows_removed"), Some("the server removed catalog rows that it needed")),
            (
                "lost",
                Some("wal_level_insufficient"),
                Some("the primary's `wal_level` was not `logical`"),
            ),
            (
                "lost",
                Some("idle_timeout"),
                Some("nobody read it for `idle_replication_slot_timeout`"),
            ),
            (
                "lost",
                Some("conflict"),
                Some(
                    "the primary removed catalog rows that it needed, or its `wal_level` was not \
                     `logical`",
                ),
            ),
            ("lost", Some("something else"), Some("the server invalidated it")),
            // The server marks the slot before its status follows.
            ("reserved", Some("idle_timeout"), lost_because("lost", Some("idle_timeout"))),
            ("reserved", None, None),
            ("extended", None, None),
            ("unreserved", None, None),
        ] {
            assert_eq!(lost_because(status, cause), expected, "{status} {cause:?}");
        }
    }
}
