//! All that is known of a key, in sentences.

use std::time::Duration;

use super::{Known, Process};
use crate::telemetry::trail::{By, Cause, How, Moment, Removal, Transaction, Widened};
use crate::words::counted;

/// Why a placeholder became `*`, by the reason of `walsweep_widened_total`.
const REASONS: [(&str, &str); 14] = [
    ("replica_identity", "the replica identity of its table does not send an old value"),
    ("unchanged_toast", "a large value that did not change is not sent"),
    ("truncate", "the table was truncated"),
    ("limit", "there were too many keys"),
    ("missing_column", "its table has no such published column"),
    ("not_text", "a filter needs text, and the value is not UTF-8"),
    ("condition_unknown", "`when` depends on a value that cannot be known, and counts as true"),
    ("condition_failed", "`when` could not be evaluated, and counts as true"),
    ("lookup_no_row", "its lookup found no row"),
    ("lookup_many_rows", "its lookup found more than one row"),
    ("lookup_limit", "its lookup found more rows than its `limit`, or than fit into memory"),
    ("lookup_failed", "its lookup failed, or was not answered in time"),
    ("large_value", "the value is large, and was not kept"),
    ("lookup_old_row", "the rows that its lookup gave before the transaction are not known"),
];

/// The end of an answer about a removal. UNLINK gives one number for all keys of a command.
const UNSEEN: &str = "Whether the key was there is not known: walsweep removes it either way.\n";

/// The whole answer.
pub(super) fn shown(known: &Known) -> String {
    let mut text = String::new();
    for (number, removal) in known.removals.iter().enumerate() {
        let subject = if number == 0 { format!("`{}`", known.key) } else { "It".to_owned() };
        text.push_str(&sentence(&subject, removal, known));
        text.push('\n');
    }
    if known.more {
        text.push_str("There were more before.\n");
    }
    for line in &known.why_not {
        text.push_str(line);
        text.push('\n');
    }
    if let (true, Process::Yes(state)) = (is_waiting(known), &known.process)
        && !state.starts_with("ready")
    {
        text.push_str(&format!("walsweep says: {}\n", state.trim_end().replace('\n', "\n  ")));
    }
    if known.removals.iter().any(|removal| removal.removed.is_some()) {
        text.push_str(UNSEEN);
    }
    text
}

/// Whether a removal is to come.
fn is_waiting(known: &Known) -> bool {
    known.removals.iter().any(|removal| removal.removed.is_none())
}

fn sentence(subject: &str, removal: &Removal, known: &Known) -> String {
    let many = known.rules.iter().any(|reach| reach.target != removal.target);
    let place = if many { format!(" from redis `{}`", removal.target) } else { String::new() };
    let perhaps = removal.by.first().is_some_and(|by| by.how == How::Perhaps);
    let begin = match removal.removed {
        Some(removed) => {
            let is_owed = removal.partly_refused && removal.refused_gone.is_none();
            let was = match (perhaps, is_owed) {
                (true, _) => "was perhaps removed",
                (false, true) => "was removed, or Redis refused to,",
                (false, false) => "was removed",
            };
            let ago = known.now.since(removed).unwrap_or_default();
            let after = after(removal, removed);
            format!("{subject} {was}{place} {} ago ({removed}){after}", rough(ago))
        }
        None => format!("{subject} is to be removed{place}{}", to_come(removal)),
    };
    let by: Vec<String> = removal.by.iter().map(by).collect();
    let again = match (removal.removed, removal.removed_again) {
        (Some(first), Some(again)) => {
            let later = again.since(first).unwrap_or_default();
            format!("; removed again {} later", rough(later))
        }
        _ => String::new(),
    };
    let refused = refused(removal);
    let by = if by.is_empty() { String::new() } else { format!(": {}", by.join("; ")) };
    format!("{begin}{by}{again}{refused}.")
}

/// Whether Redis refused keys that were to go with it, and when it took them.
fn refused(removal: &Removal) -> String {
    match (removal.partly_refused, removal.refused_gone) {
        (false, _) => String::new(),
        (true, None) => {
            "; Redis refused some keys of this removal, this one or others, or is away \
                         with them: they stay until it takes them, and `/readyz` says why it does \
                         not"
            .to_owned()
        }
        (true, Some(gone)) => format!(
            "; Redis refused some keys of this removal at first, this one or others: they are gone \
             since {gone}"
        ),
    }
}

/// For what it was removed, and how long after.
fn after(removal: &Removal, removed: Moment) -> String {
    match &removal.cause {
        Cause::Transaction(transaction) => {
            let named = named(transaction);
            match removed.since(transaction.committed) {
                Some(after) => format!(", {} after the commit of {named}", rough(after)),
                None => format!(", for {named}"),
            }
        }
        Cause::Sweep { reason, why, .. } => {
            format!(", by a sweep of what may be stale: {why} (`{reason}`)")
        }
        Cause::Hand { pattern } => {
            format!(", by hand: `walsweep sweep` with pattern `{pattern}`")
        }
        Cause::Room { .. } => ", or with what waited then: too many keys waited at the same time, \
                               so that all keys of rules went"
            .to_owned(),
    }
}

fn to_come(removal: &Removal) -> String {
    let is_pattern = |by: &By| matches!(by.how, How::Pattern(_));
    match &removal.cause {
        Cause::Transaction(transaction) => {
            let named = named(transaction);
            let why = if transaction.visible.is_none() {
                "which readers cannot see yet"
            } else if transaction.waits_for_rows {
                "and waits for rows of a lookup"
            } else if removal.by.iter().all(is_pattern) {
                "and waits for a pass of SCAN, or is in one"
            } else {
                "and is on its way to Redis"
            };
            format!(" for {named}, committed {}, {why}", transaction.committed)
        }
        Cause::Sweep { reason, why, began } => {
            format!(" by a sweep of what may be stale that began {began}: {why} (`{reason}`)")
        }
        Cause::Hand { .. } | Cause::Room { .. } => String::new(),
    }
}

fn named(transaction: &Transaction) -> String {
    format!("transaction {} ({})", transaction.xid, transaction.lsn)
}

fn by(by: &By) -> String {
    let By { rule, how, widened, .. } = by;
    let how = match how {
        How::Key(_) => String::new(),
        How::Pattern(name) => format!(", pattern `{name}`"),
        How::Fields(name) => format!(", fields `{name}` of this hash"),
        How::Members(name) => format!(", as what the set names: `{name}`"),
        How::Perhaps => format!(
            ", which gave {} and {}, of which not all are remembered",
            counted(by.keys, "key"),
            counted(by.patterns, "pattern")
        ),
    };
    let widened: String = widened.iter().map(because).collect();
    format!("rule `{rule}`{how}{widened}")
}

fn because(Widened { reason, count }: &Widened) -> String {
    let words = REASONS.iter().find(|(known, _)| known == reason).map(|(_, words)| *words);
    let times = if *count == 1 { String::new() } else { format!(", {}", counted(*count, "time")) };
    match words {
        Some(words) => format!(", widened because {words} (`{reason}`{times})"),
        None => format!(", widened (`{reason}`{times})"),
    }
}

/// A duration for people: three digits, and a unit.
fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        _ if seconds < 0.1 => format!("{:.1} ms", seconds * 1e3),
        _ if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        _ if seconds < 120.0 => format!("{seconds:.1} s"),
        _ if seconds < 7_200.0 => format!("{:.0} min", seconds / 60.0),
        _ if seconds < 172_800.0 => format!("{:.1} h", seconds / 3_600.0),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{REASONS, rough};
    use crate::keys::WidenReason;

    #[test]
    fn each_reason_has_words() {
        for reason in WidenReason::ALL {
            assert!(REASONS.iter().any(|(known, _)| *known == reason.as_str()), "{reason:?}");
        }
    }

    #[test]
    fn a_duration_has_a_unit_that_fits() {
        for (micros, words) in [
            (1_400, "1.4 ms"),
            (430_000, "430 ms"),
            (12_300_000, "12.3 s"),
            (600_000_000, "10 min"),
            (9_000_000_000, "2.5 h"),
            (400_000_000_000, "4.6 days"),
        ] {
            assert_eq!(rough(Duration::from_micros(micros)), words);
        }
    }
}
