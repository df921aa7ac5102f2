//! Which server the slot is on.

use super::reader::{Reader, Section};
use crate::postgres::Endpoint;

/// `[postgres] slot_on`: the server that the slot is on, and so the one that sends the changes.
/// Whatever is asked of what readers see is asked of the primary in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotOn {
    /// The primary of `url`.
    Primary,
    /// The standby of `replication_url`. Needs Postgres 16
    /// (<https://www.postgresql.org/docs/current/logicaldecoding-explanation.html>).
    Standby,
}

/// Reads the option, and holds it against what it needs and what it excludes.
pub(super) fn slot_on(
    reader: &mut Reader<'_>,
    section: &mut Section<'_, '_>,
    (has_replication_url, standby): (bool, Option<&Endpoint>),
    failover: bool,
) -> SlotOn {
    let Some(text) = reader.text(section, "slot_on") else { return SlotOn::Primary };
    match text.value.as_str() {
        "primary" => return SlotOn::Primary,
        "standby" => {}
        other => {
            let message = format!("`{other}` is not where a slot can be");
            reader.problem(text.at, message, Some("write `primary` or `standby`"));
            return SlotOn::Primary;
        }
    }
    if !has_replication_url {
        let message = "a slot on a standby needs `postgres.replication_url`".to_owned();
        let hint = "let `replication_url` name the standby; `url` stays the primary's";
        reader.problem(text.at.clone(), message, Some(hint));
    }
    if standby.is_some_and(Endpoint::is_several) {
        let message = "a slot is on one standby, and `postgres.replication_url` names several \
                       hosts"
            .to_owned();
        let hint = "let `replication_url` name the standby that the slot is on; `url` may name \
                    several hosts";
        reader.problem(text.at.clone(), message, Some(hint));
    }
    if failover {
        let message = "a slot on a standby cannot be a failover slot".to_owned();
        let hint = "leave out `failover`, or let the slot be on the primary";
        reader.problem(text.at, message, Some(hint));
    }
    SlotOn::Standby
}
