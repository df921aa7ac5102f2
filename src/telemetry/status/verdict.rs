//! One line that says whether all is well, or what is wrong and where to read on.

use serde::{Deserialize, Serialize};

use super::{Trouble, Wait};
use crate::telemetry::health::Phase;
use crate::telemetry::{REFUSES_LOGIN, Topic};

/// Keys should be gone this long after the commit, and a commit be visible; seconds.
const LATE_SECONDS: f64 = 5.0;

/// A transaction should be confirmed by then, seconds: it waits for the second removal, which may
/// be an hour later.
const UNCONFIRMED_SECONDS: f64 = 60.0;

/// Words about what somebody dropped: ours of a publication and of a slot, and the server's.
const GONE: [&str; 3] = ["there is no publication", "the slot is gone", "publication \""];

/// Words about sessions that began and ended.
const SOON: &str = " ended soon";

/// The beginning of a line about a session that ended while this process was stopped. Further on
/// in a line the same words stand beside an answer that has a cure of its own.
const STOOD_STILL: &str = "this process stood still for";

/// Words where Redis refuses nothing, and it is not known which server has the keys: of Sentinels,
/// of a cluster whose slots move, and of an address that hides several servers.
const UNKNOWN_SERVER: [&str; 7] = [
    "nobody knows whether",
    "most Sentinels name another primary",
    "redis answered MOVED",
    "redis answered ASK",
    "redis answered TRYAGAIN",
    "redis answered CLUSTERDOWN",
    "gives no list of its keys",
];

/// The section about a process of the server that has the slot, and nobody behind it.
const HANGS: &str = "the-stream-hangs";

/// The section about a Redis that is down.
const AWAY: &str = "redis-does-not-answer";

/// How well it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing is wrong.
    Well,
    /// It does what has to be done before all is well; nobody is needed.
    Busy,
    /// No reader sees old values for it; somebody should look.
    Attention,
    /// Readers may see old values.
    #[default]
    Wrong,
}

/// Whether all is well, in one line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Verdict {
    /// How well.
    pub level: Level,
    /// A sentence.
    pub text: String,
    /// The cure, if something is to be done.
    pub hint: Option<String>,
    /// The SQL that cures it, where some does.
    pub sql: Option<String>,
    /// The section of the runbook, as the anchor of its heading; `None` where all is well.
    pub section: Option<String>,
}

/// Everything that a verdict is made of.
pub(super) struct Evidence<'a> {
    /// The answer of `/healthz`.
    pub(super) liveness: (bool, String),
    pub(super) phase: Phase,
    /// The words for the phase.
    pub(super) doing: &'a str,
    pub(super) troubles: &'a [Trouble],
    pub(super) waiting: &'a [Wait],
    pub(super) oldest_unconfirmed_seconds: f64,
    /// How old commits are when they are read, in seconds.
    pub(super) read_behind_seconds: f64,
    /// Seconds between two removals of a key.
    pub(super) window_seconds: f64,
}

impl Verdict {
    fn new(level: Level, text: String, section: &str) -> Verdict {
        Verdict { level, text, hint: None, sql: None, section: Some(section.to_owned()) }
    }

    fn with_cure_of(self, trouble: &Trouble) -> Verdict {
        Verdict { hint: trouble.hint.clone(), sql: trouble.sql.clone(), ..self }
    }

    /// Gives the verdict that this evidence comes to.
    pub(super) fn of(evidence: &Evidence<'_>) -> Verdict {
        if let (false, why) = &evidence.liveness {
            let text = format!("walsweep makes {}", why.trim_end().replace('\n', "; "));
            return Verdict::new(Level::Wrong, text, "healthz-is-503");
        }
        match evidence.phase {
            Phase::Stopping => {
                let text = "walsweep is stopping: it waits for what is on its way".to_owned();
                Verdict::new(Level::Busy, text, "not-ready")
            }
            Phase::Standby => standing_by(evidence),
            Phase::Connecting => without_session(evidence),
            Phase::RedisLost => without_redis(evidence),
            Phase::Sweeping(_) if evidence.troubles.iter().any(|one| one.stops_ready) => {
                while_streaming(evidence)
            }
            Phase::Sweeping(_) => {
                let text = format!(
                    "{}: what may be stale is removed first, which ends by itself",
                    evidence.doing
                );
                Verdict::new(Level::Busy, text, "everything-was-swept")
            }
            Phase::Streaming => while_streaming(evidence),
        }
    }
}

/// Another walsweep works, and what this one found when it had the slot is of no account; or none
/// does, and nobody removes anything.
fn standing_by(evidence: &Evidence<'_>) -> Verdict {
    match evidence.troubles.iter().find(|trouble| trouble.section == HANGS) {
        Some(trouble) => {
            let text = format!("nothing is removed: {}", trouble.text);
            Verdict::new(Level::Wrong, text, HANGS).with_cure_of(trouble)
        }
        None => {
            let text =
                format!("{}: this walsweep removes nothing while that lasts", evidence.doing);
            Verdict::new(Level::Busy, text, "two-instances")
        }
    }
}

fn without_session(evidence: &Evidence<'_>) -> Verdict {
    match evidence.troubles.iter().find(|trouble| trouble.stops_ready) {
        Some(trouble) => {
            let text = format!("nothing is removed: {}", trouble.text);
            let verdict = Verdict::new(Level::Wrong, text, &trouble.section);
            // What stands beside it in the same section may be the cause.
            let of_cause = |other: &&Trouble| other.section == trouble.section;
            let has_hint = |one: &&Trouble| one.hint.is_some() || one.sql.is_some();
            let mut beside = evidence.troubles.iter().filter(of_cause);
            let told = if has_hint(&trouble) { None } else { beside.find(has_hint) };
            verdict.with_cure_of(told.unwrap_or(trouble))
        }
        None => Verdict::new(Level::Busy, evidence.doing.to_owned(), "not-ready"),
    }
}

/// A server that refuses the login is no server that is down, and no rule that is suspended beside
/// it has its cure.
fn without_redis(evidence: &Evidence<'_>) -> Verdict {
    let is_of_login = |one: &&Trouble| one.text.contains(REFUSES_LOGIN);
    let is_of_server =
        |one: &&Trouble| [AWAY, "sentinels-a-cluster-or-a-proxy"].contains(&&*one.section);
    let first = |is: &dyn Fn(&&Trouble) -> bool| evidence.troubles.iter().find(is);
    let (what, section) = match (first(&is_of_server), first(&is_of_login)) {
        (None, Some(trouble)) => (format!("{};", trouble.text), &*trouble.section),
        (Some(trouble), _) => (format!("{}:", evidence.doing), &*trouble.section),
        (None, None) => (format!("{}:", evidence.doing), AWAY),
    };
    let verdict =
        Verdict::new(Level::Wrong, format!("{what} its keys wait, and may be stale"), section);
    match first(&is_of_server).or(first(&is_of_login)) {
        Some(trouble) => verdict.with_cure_of(trouble),
        None => verdict,
    }
}

/// The verdict where the phase says nothing that matters more.
fn while_streaming(evidence: &Evidence<'_>) -> Verdict {
    // Of equals the first: so they stand in `/readyz`, what removes least at the beginning.
    let worst = evidence.troubles.iter().rev().max_by_key(|trouble| trouble.stops_ready);
    if let Some(trouble) = worst {
        let level = if trouble.stops_ready { Level::Wrong } else { Level::Attention };
        let text = match evidence.troubles.len() - 1 {
            0 => trouble.text.clone(),
            more => format!("{} (and {more} more)", trouble.text),
        };
        let verdict = Verdict::new(level, text, &trouble.section);
        return verdict.with_cure_of(trouble);
    }
    if evidence.read_behind_seconds > LATE_SECONDS {
        let text = format!(
            "behind: what is read now was committed {:.0} s ago, and keys of what was committed \
             since are stale until it is read, too, which ends by itself",
            evidence.read_behind_seconds
        );
        return Verdict::new(Level::Busy, text, "keys-go-late");
    }
    let is_first = |wait: &&Wait| !["second", "standbys"].contains(&wait.stage.as_str());
    let age = |wait: &Wait| wait.oldest_seconds.unwrap_or_default();
    let late = evidence.waiting.iter().filter(is_first).filter(|wait| age(wait) > LATE_SECONDS);
    if let Some(wait) = late.max_by(|one, other| age(one).total_cmp(&age(other))) {
        let section = if wait.stage == "gate" { "the-slot-keeps-wal" } else { "keys-go-late" };
        let (seconds, Wait { count, what, why, .. }) = (age(wait), wait);
        let text = format!("behind: {count} {what} {why}, the oldest for {seconds:.0} s");
        return Verdict::new(Level::Attention, text, section);
    }
    let unconfirmed = evidence.oldest_unconfirmed_seconds;
    if unconfirmed > UNCONFIRMED_SECONDS + evidence.window_seconds {
        let text = format!("for {unconfirmed:.0} s nothing is confirmed to Postgres, keys do go");
        return Verdict::new(Level::Attention, text, "the-slot-keeps-wal");
    }
    let text = "all is well: what a commit makes stale is removed".to_owned();
    Verdict { level: Level::Well, text, hint: None, sql: None, section: None }
}

/// The section of the runbook about a trouble with this topic, as the anchor of its heading.
pub(super) fn section(topic: &Topic, text: &str) -> &'static str {
    match topic {
        Topic::Session | Topic::Checks if GONE.iter().any(|part| text.contains(part)) => {
            "something-in-postgres-was-dropped"
        }
        // The slot that must not be dropped, or that kept too much.
        Topic::Session
            if ["another program's", "max_retained_wal"].iter().any(|is| text.contains(is)) =>
        {
            "the-slot-keeps-wal"
        }
        Topic::Session if text.starts_with(STOOD_STILL) => "walsweep-does-not-start",
        // Its cure is with whoever ends them, not with a server that is away.
        Topic::Session if text.contains(SOON) => "healthz-is-503",
        Topic::Holder => HANGS,
        Topic::Session | Topic::Checks | Topic::Watch => "not-ready",
        Topic::Rule(_) => "a-rule-is-suspended",
        Topic::Wide(_) | Topic::Lookup(_) | Topic::Untried(_) => "too-much-is-removed",
        Topic::Publish(_) => "caches-in-processes-are-not-told",
        Topic::Redis(_) | Topic::Refused(..) | Topic::Watermark(_)
            if UNKNOWN_SERVER.iter().any(|part| text.contains(part)) =>
        {
            "sentinels-a-cluster-or-a-proxy"
        }
        Topic::Redis(_) if !text.contains("refuses") => AWAY,
        Topic::Refused(..) if text.starts_with("a part of ") => AWAY,
        Topic::Redis(_) | Topic::Refused(..) | Topic::RedisChecks(_) | Topic::Watermark(_) => {
            "redis-refuses"
        }
        Topic::Late(_) | Topic::Throttled(_) => "keys-go-late",
        Topic::Fence => "everything-was-swept",
        Topic::Doubted(_) => "two-instances",
        Topic::Reload => "a-reload-was-refused",
        Topic::Audit => "the-audit-trail-has-gaps",
        Topic::Replica(_) | Topic::Slot | Topic::SlotOwner | Topic::NewSlot => "the-slot-keeps-wal",
    }
}
