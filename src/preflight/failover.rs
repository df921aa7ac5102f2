//! Checks of failover slots: the primary's part, and each standby's copy.

use postgres_protocol::escape::escape_literal;
use serde::Deserialize;

use super::{Code, Context, Error, Finding, cure};
use crate::capture::Replication;
use crate::config::Postgres;
use crate::postgres::Endpoint;
use crate::postgres::statement::render;

/// The first version with failover slots.
const VERSION_MIN: i32 = 170_000;

/// `application_name` on the standby.
const NAME: &str = "walsweep command";

/// The primary's part.
pub(super) fn check(context: &Context<'_>) -> Vec<Finding> {
    let (config, catalog) = (&context.config.postgres, context.catalog);
    if config.failover && catalog.version < VERSION_MIN {
        let message = format!(
            "`postgres.failover` needs PostgreSQL 17, the server is {}",
            catalog.version / 10_000
        );
        return vec![Finding::error(Code::FailoverVersion, message).hint("leave the option out")];
    }
    let is_failover = catalog.slot.as_ref().and_then(|slot| slot.failover) == Some(true);
    let mut findings = Vec::new();
    if (config.failover || is_failover) && !catalog.absent_standbys.is_empty() {
        let message = format!(
            "`synchronized_standby_slots` names `{}`, which no standby streams: no change is sent \
             to walsweep until it does, and stale keys stay",
            catalog.absent_standbys.join("`, `")
        );
        let absent = Finding::warning(Code::FailoverStandbyAbsent, message);
        findings.push(absent.hint("start that standby, or take it out of the setting"));
    }
    if config.failover && config.replicas.is_empty() {
        let message = "whether a standby keeps a copy of the slot is not known";
        let unknown = Finding::info(Code::FailoverUnknown, message);
        findings.push(unknown.hint("`check` looks at those in `postgres.replicas`"));
    }
    findings
}

/// The answer of `sql/failover_standby.sql`.
#[derive(Debug, Deserialize)]
struct StandbyState {
    sync_replication_slots: Option<String>,
    hot_standby_feedback: Option<String>,
    primary_slot_name: Option<String>,
    /// `None`: the role may not see it.
    has_dbname: Option<bool>,
    slot: Option<Copy>,
}

/// The slot as the standby has it.
#[derive(Debug, Deserialize)]
struct Copy {
    synced: bool,
    temporary: bool,
}

/// A standby's part, where the option asks for one; `None` if all is well, or it cannot be asked,
/// which is told elsewhere.
///
/// # Errors
///
/// The answer is not what the query gives.
pub(super) async fn standby(
    config: &Postgres,
    endpoint: &Endpoint,
) -> Result<Option<Finding>, Error> {
    if !config.failover {
        return Ok(None);
    }
    let Ok(mut connection) = Replication::connect(endpoint, NAME).await else { return Ok(None) };
    let query = include_str!("../../sql/failover_standby.sql");
    let query = render(query, &[("slot", &escape_literal(&config.slot))]);
    let Ok(row) = connection.query_row("look at the standby's slots", &query).await else {
        return Ok(None);
    };
    let Some(answer) = row.into_iter().next().flatten() else { return Ok(None) };
    Ok(judge(&config.slot, &endpoint.address(), &serde_json::from_str(&answer)?))
}

fn judge(slot: &str, replica: &str, state: &StandbyState) -> Option<Finding> {
    match &state.slot {
        Some(copy) if copy.synced && !copy.temporary => return None,
        Some(copy) if copy.synced => {
            let message = format!("replica `{replica}` does not have the whole of `{slot}` yet");
            return Some(Finding::info(Code::FailoverNotYet, message).hint("it is copying it"));
        }
        Some(_) => {
            let message = format!(
                "replica `{replica}` has a slot `{slot}` of its own: it keeps the primary's away, \
                 and after a promotion it stands where it was left"
            );
            let orphan = Finding::warning(Code::FailoverOrphan, message);
            let drop = cure::drop_slot(slot);
            return Some(orphan.hint(format!(
                "only if nobody needs it: `{drop};` there; the standby then copies the primary's"
            )));
        }
        None => {}
    }
    let missing = missing(state);
    let message = format!("replica `{replica}` has no copy of slot `{slot}`");
    if missing.is_empty() {
        let hint = "it comes with the standby's next look, if the slot is a failover slot already";
        return Some(Finding::info(Code::FailoverNotYet, message).hint(hint));
    }
    let hint = format!("set there: {}", missing.join(", "));
    Some(Finding::warning(Code::FailoverNotSynced, message).hint(hint))
}

/// Lists the settings that a standby lacks to copy slots
/// (<https://www.postgresql.org/docs/current/logicaldecoding-explanation.html>).
fn missing(state: &StandbyState) -> Vec<&'static str> {
    let is = |setting: &Option<String>, value: &str| setting.as_deref() == Some(value);
    let rows = [
        (!is(&state.sync_replication_slots, "on"), "`sync_replication_slots = on`"),
        (!is(&state.hot_standby_feedback, "on"), "`hot_standby_feedback = on`"),
        (is(&state.primary_slot_name, ""), "`primary_slot_name` to a physical slot"),
        (state.has_dbname == Some(false), "`dbname=…` within `primary_conninfo`"),
    ];
    rows.into_iter().filter_map(|(is_missing, what)| is_missing.then_some(what)).collect()
}

#[cfg(test)]
mod tests {
    use super::judge;

    /// Gives code and hint of what is found where the standby has this slot and is set as it has to
    /// be, but for one thing.
    fn found(slot: &str, other: Option<(&str, &str)>) -> Option<(&'static str, String)> {
        let value = |name: &str, right: &'static str| match other {
            Some((wrong, value)) if wrong == name => value.to_owned(),
            _ => right.to_owned(),
        };
        let state = format!(
            r#"{{"sync_replication_slots": {}, "hot_standby_feedback": {},
                "primary_slot_name": {}, "has_dbname": {}, "slot": {slot}}}"#,
            value("sync_replication_slots", r#""on""#),
            value("hot_standby_feedback", r#""on""#),
            value("primary_slot_name", r#""standby""#),
            value("has_dbname", "true"),
        );
        let finding = judge("walsweep", "b:5432", &serde_json::from_str(&state).unwrap())?;
        Some((finding.code.as_str(), finding.hint.unwrap_or_default()))
    }

    #[test]
    fn only_a_whole_copy_is_one() {
        for (slot, expected) in [
            (r#"{"synced": true, "temporary": false}"#, None),
            (r#"{"synced": true, "temporary": true}"#, Some("failover_not_yet")),
            (r#"{"synced": false, "temporary": false}"#, Some("failover_orphan")),
            (r#"{"synced": false, "temporary": true}"#, Some("failover_orphan")),
            ("null", Some("failover_not_yet")),
        ] {
            assert_eq!(found(slot, None).map(|(code, _)| code), expected, "{slot}");
        }
    }

    #[test]
    fn each_setting_that_a_standby_lacks_is_named() {
        for (name, value, hint) in [
            ("sync_replication_slots", r#""off""#, "`sync_replication_slots = on`"),
            ("sync_replication_slots", "null", "`sync_replication_slots = on`"),
            ("hot_standby_feedback", r#""off""#, "`hot_standby_feedback = on`"),
            ("primary_slot_name", r#""""#, "`primary_slot_name` to a physical slot"),
            ("has_dbname", "false", "`dbname=…` within `primary_conninfo`"),
        ] {
            let expected = ("failover_not_synced", format!("set there: {hint}"));
            assert_eq!(found("null", Some((name, value))), Some(expected), "{name}");
        }
        // Who may not see it cannot be told that it is wrong.
        let unseen = found("null", Some(("has_dbname", "null")));
        assert_eq!(unseen.map(|(code, _)| code), Some("failover_not_yet"));
    }
}
