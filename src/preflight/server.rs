//! Checks of the server and of the role.

use super::{Code, Context, Finding, cure};
use crate::config::SlotOn;

/// The oldest version that walsweep streams from: the first with protocol version 2.
const VERSION_MIN: i32 = 14;

/// A server that is too old.
pub(super) fn version(version: i32) -> Option<Finding> {
    let major = version / 10_000;
    let too_old = || {
        Finding::error(Code::ServerVersion, format!("the server's version is {major}"))
            .hint(format!("walsweep needs PostgreSQL {VERSION_MIN} or later"))
    };
    (major < VERSION_MIN).then(too_old)
}

/// Everything else; `pids` are the backends that answered one statement after another.
pub(super) fn check(context: &Context<'_>, pids: &[i32]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let catalog = context.catalog;
    // One session is one backend; only a pooler hands out another one in between.
    if pids.windows(2).any(|pair| pair.first() != pair.last()) {
        let message = "`postgres.url` reaches a pooler that spreads one session over several \
                       backends: what was read on one need not hold on another";
        let pooler = Finding::error(Code::Pooler, message);
        findings.push(pooler.hint("let `postgres.url` name the server itself"));
    }
    if catalog.is_in_recovery {
        let standby = Finding::error(Code::InRecovery, "`postgres.url` reaches a standby");
        findings.push(standby.hint("let `postgres.url` name the primary"));
        return findings;
    }
    if catalog.wal_level != "logical" {
        let message = format!("`wal_level` is `{}`", catalog.wal_level);
        let level = Finding::error(Code::WalLevel, message);
        findings.push(level.hint(logical_decoding(catalog.service.as_deref())));
    }
    // A role that is not there yet is made with this right.
    if let Some(role) = catalog.role.as_ref().filter(|role| !role.may_replicate) {
        let message = format!("role `{}` may not replicate", role.name);
        let finding = Finding::error(Code::ReplicationRole, message);
        findings.push(finding.cure(cure::allow_replication(role)));
    }
    findings.extend(superuser(context));
    findings.extend(headroom(context));
    if catalog.slot_keep_size.as_deref() == Some("-1") {
        let message = "`max_slot_wal_keep_size` is unlimited: a slot that nobody reads fills the \
                       server's disk";
        let unlimited = Finding::warning(Code::SlotKeepUnlimited, message);
        findings.push(unlimited.hint(
            "run `alter system set max_slot_wal_keep_size = '20GB'` and `select pg_reload_conf()` \
             as a superuser: a slot that falls too far behind is then lost, and walsweep makes a \
             new one and sweeps everything. While walsweep runs, `postgres.max_retained_wal` sees \
             to it before",
        ));
    }
    findings.extend(idle_timeout(catalog.idle_slot_timeout.unwrap_or_default()));
    if catalog.synchronous_commit.as_deref() == Some("off") {
        findings.push(asynchronous("by default"));
    }
    if !catalog.asynchronous.is_empty() {
        findings.push(asynchronous(&format!("for {}", catalog.asynchronous.join(", "))));
    }
    findings
}

/// A role of the configuration that may do everything, and runs what lookups call.
fn superuser(context: &Context<'_>) -> Option<Finding> {
    let role = &context.config.postgres.endpoint.user;
    let is_own = context.catalog.is_superuser && context.catalog.user == *role;
    if !is_own || context.rules.lookups().is_empty() {
        return None;
    }
    let message = format!(
        "role `{role}` of `postgres.url` is a superuser: what lookups call, such as the functions \
         of a view, may do everything, whoever owns them"
    );
    let finding = Finding::warning(Code::Superuser, message);
    Some(finding.hint(
        "let `postgres.url` name a role of its own, such as `walsweep`: `walsweep setup --as URL` \
         makes it, and grants what lookups read",
    ))
}

/// How to turn logical decoding on, by the role that the administrators of a managed service have;
/// sources in docs/managed.md.
fn logical_decoding(service: Option<&str>) -> &'static str {
    match service {
        Some("rds_superuser") => {
            "set `rds.logical_replication = 1` in the parameter group and restart the instance"
        }
        Some("cloudsqlsuperuser") => {
            "set the flag `cloudsql.logical_decoding = on`; the instance restarts"
        }
        Some("alloydbsuperuser") => {
            "set the flag `alloydb.logical_decoding = on`; the instance restarts"
        }
        Some("azure_pg_admin") => {
            "set the server parameter `wal_level` to `logical` and restart the server"
        }
        Some("neon_superuser") => "enable logical replication in the project's settings",
        _ => {
            "run `alter system set wal_level = logical` as a superuser, and restart Postgres: to \
             reload it is not enough"
        }
    }
}

/// A server that gives up slots which nobody reads. One that is being streamed never counts as
/// idle, however little there is to send.
fn idle_timeout(seconds: i64) -> Option<Finding> {
    /// A machine's upgrade takes walsweep away for that long.
    const SHORT: i64 = 3600;
    if seconds <= 0 {
        return None;
    }
    let message = format!(
        "`idle_replication_slot_timeout` is {seconds} s: when walsweep is away for longer, its \
         slot is lost, and everything is swept"
    );
    if seconds < SHORT {
        let short = Finding::warning(Code::IdleSlotTimeout, message);
        return Some(short.hint("raise it to a day: a restart must not cost a sweep"));
    }
    Some(Finding::info(Code::IdleSlotTimeout, message))
}

/// Commits that do not wait for the disk.
fn asynchronous(scope: &str) -> Finding {
    let message = format!(
        "`synchronous_commit` is off {scope}: commits are visible before they are written, so keys \
         are removed later, and a crash of the server may take back what readers saw"
    );
    let late = Finding::warning(Code::SynchronousCommit, message);
    late.hint("set it to `on` for those who write cached tables")
}

/// Room for the slot and its sender. A slot that exists needs none, and one that is in use has its
/// sender, too: that is the one of a walsweep that runs, or ends before this one can start.
fn headroom(context: &Context<'_>) -> Vec<Finding> {
    let catalog = context.catalog;
    let slot = catalog.slot.as_ref();
    let (needs_slot, needs_sender) =
        (slot.is_none(), slot.is_none_or(|slot| slot.active_pid.is_none()));
    let of = match context.config.postgres.slot_on {
        SlotOn::Primary => "",
        SlotOn::Standby => " of the standby",
    };
    let slots = (Code::ReplicationSlotsFull, "max_replication_slots");
    let senders = (Code::WalSendersFull, "max_wal_senders");
    let rows = [
        (needs_slot, slots, catalog.slots_used, catalog.slots_max),
        (needs_sender, senders, catalog.senders_used, catalog.senders_max),
    ];
    let full = rows.into_iter().filter(|(is_needed, _, used, max)| *is_needed && used >= max);
    let findings = full.map(|(_, (code, setting), used, max)| {
        Finding::error(code, format!("`{setting}`{of} is {max}, and {used} are in use")).hint(
            format!(
                "run `alter system set {setting} = {}` as a superuser, and restart Postgres: to \
                 reload it is not enough",
                max + 10
            ),
        )
    });
    findings.collect()
}

#[cfg(test)]
mod tests {
    use super::{Code, version};

    #[test]
    fn only_a_server_before_14_is_too_old() {
        assert_eq!(version(130_022).map(|finding| finding.code), Some(Code::ServerVersion));
        assert_eq!(version(140_000), None);
        assert_eq!(version(180_001), None);
    }
}
