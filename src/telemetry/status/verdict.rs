//! One line that says whether all is well, or what is wrong and where to read on.

use serde::{Deserialize, Serialize};

use super::{Trouble, Wait};
use crate::telemetry::Topic;
use crate::telemetry::health::Phase;

/// Keys should be gone this long after the commit, and a commit be visible; seconds.
const LATE_SECONDS: f64 = 5.0;

/// A transaction should be confirmed by then, seconds: it waits for the second removal, which may
/// be an hour later.
const UNCONFIRMED_SECONDS: f64 = 60.0;

/// Words about what somebody dropped: ours of a publication and of a slot, and the server's.
const GONE: [&str; 3] = ["there is no publication", "the slot is gone", "publication \""];

/// Words about sessions that began and ended.
const SOON: &str = " ended soon";

/// Words about a session that ended while this process was stopped.
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
            Phase::RedisLost => {
                let text = format!("{}: its keys wait, and may be stale", evidence.doing);
                let verdict = Verdict::new(Level::Wrong, text, "redis-does-not-answer");
                with_hint_of(verdict, evidence.troubles)
            }
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
            let text = format!("{}: this walsweep removes nothing until then", evidence.doing);
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

/// With the hint of the first trouble that has one.
fn with_hint_of(verdict: Verdict, troubles: &[Trouble]) -> Verdict {
    match troubles.iter().find(|trouble| trouble.hint.is_some()) {
        Some(trouble) => verdict.with_cure_of(trouble),
        None => verdict,
    }
}

/// The verdict where the phase says nothing that matters more.
fn while_streaming(evidence: &Evidence<'_>) -> Verdict {
    let worst = evidence.troubles.iter().max_by_key(|trouble| trouble.stops_ready);
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
        Topic::Session if text.contains(STOOD_STILL) => "walsweep-does-not-start",
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
        Topic::Redis(_) if !text.contains("refuses") => "redis-does-not-answer",
        Topic::Refused(..) if text.starts_with("a part of ") => "redis-does-not-answer",
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

#[cfg(test)]
mod tests {
    use super::{Evidence, Level, Verdict, section};
    use crate::config::TargetId;
    use crate::telemetry::Topic;
    use crate::telemetry::health::Phase;
    use crate::telemetry::runbook;
    use crate::telemetry::status::{Trouble, Wait};

    fn evidence(phase: Phase) -> Evidence<'static> {
        Evidence {
            liveness: (true, String::new()),
            phase,
            doing: "what it does",
            troubles: &[],
            waiting: &[],
            oldest_unconfirmed_seconds: 0.0,
            read_behind_seconds: 0.0,
            window_seconds: 1.0,
        }
    }

    /// Every section that a verdict or a trouble leads to is in the runbook.
    #[track_caller]
    fn level(evidence: &Evidence<'_>) -> Level {
        let verdict = Verdict::of(evidence);
        let is_there = |section: &String| runbook::sections().any(|one| one.anchor == *section);
        assert!(verdict.section.iter().all(is_there), "{verdict:?}");
        assert_eq!(verdict.section.is_none(), verdict.level == Level::Well, "{verdict:?}");
        verdict.level
    }

    #[test]
    fn the_verdict_says_the_worst() {
        for (phase, expected) in [
            (Phase::Streaming, Level::Well),
            (Phase::Sweeping("slot_created"), Level::Busy),
            (Phase::Connecting, Level::Busy),
            (Phase::Standby, Level::Busy),
            (Phase::Stopping, Level::Busy),
            (Phase::RedisLost, Level::Wrong),
        ] {
            assert_eq!(level(&evidence(phase)), expected, "{phase:?}");
            let liveness = (false, "no progress: for 300 s\nit ended\n".to_owned());
            let stuck = Evidence { liveness, ..evidence(phase) };
            assert_eq!(level(&stuck), Level::Wrong);
            let text = Verdict::of(&stuck).text;
            assert_eq!(text, "walsweep makes no progress: for 300 s; it ended");
        }
        let trouble = |stops_ready| Trouble {
            text: format!("stops: {stops_ready}"),
            stops_ready,
            section: "redis-refuses".to_owned(),
            ..Trouble::default()
        };
        let troubles = [trouble(false)];
        let one = Evidence { troubles: &troubles, ..evidence(Phase::Streaming) };
        assert_eq!(level(&one), Level::Attention);
        let troubles = [trouble(false), trouble(true), trouble(false)];
        let three = Evidence { troubles: &troubles, ..evidence(Phase::Streaming) };
        assert_eq!(level(&three), Level::Wrong);
        assert_eq!(Verdict::of(&three).text, "stops: true (and 2 more)");
        let sweeps = Evidence { troubles: &troubles, ..evidence(Phase::Sweeping("slot_created")) };
        assert_eq!(level(&sweeps), Level::Wrong);
        let lost = Evidence { troubles: &troubles, ..evidence(Phase::Connecting) };
        assert_eq!(Verdict::of(&lost).text, "nothing is removed: stops: true");
    }

    /// Beside the session that cannot be had it is told what to do with a slot that may be another
    /// program's.
    #[test]
    fn a_session_that_a_slot_is_in_the_way_of_leads_to_the_slot() {
        let session = |text: &str| Trouble {
            text: text.to_owned(),
            stops_ready: true,
            section: section(&Topic::Session, text).to_owned(),
            ..Trouble::default()
        };
        let owner = Trouble {
            hint: Some("drop it".to_owned()),
            section: section(&Topic::SlotOwner, "").to_owned(),
            ..Trouble::default()
        };
        for (text, leads_to, hint) in [
            (
                "no session with postgres: slot `s` has to be made anew, and is not dropped: it \
                 may be another program's",
                "the-slot-keeps-wal",
                Some("drop it"),
            ),
            (
                "more than the 1 MB of `postgres.max_retained_wal`",
                "the-slot-keeps-wal",
                Some("drop it"),
            ),
            ("no session with postgres: connect", "not-ready", None),
            (
                "the session with postgres ended soon, again and again: stream from postgres: \
                 terminating connection; trying again within 10 s",
                "healthz-is-503",
                None,
            ),
            (
                "this process stood still for 84 s; since then the session with postgres ended: \
                 the server closed the connection; trying again within 10 s",
                "walsweep-does-not-start",
                None,
            ),
            (
                "a session stands, and counts once it has stood for 10 s: those before it ended \
                 soon: stream from postgres",
                "healthz-is-503",
                None,
            ),
        ] {
            let troubles = [session(text), owner.clone()];
            let one = Evidence { troubles: &troubles, ..evidence(Phase::Connecting) };
            assert_eq!(level(&one), Level::Wrong);
            let verdict = Verdict::of(&one);
            assert_eq!(verdict.section.as_deref(), Some(leads_to), "{text}");
            assert_eq!(verdict.hint.as_deref(), hint, "{text}");
        }
    }

    /// Another walsweep works, whatever this one found when it had the slot; if none does, nobody
    /// removes anything.
    #[test]
    fn one_that_stands_by_for_nobody_is_wrong() {
        fn standby(troubles: &[Trouble]) -> Evidence<'_> {
            Evidence { troubles, ..evidence(Phase::Standby) }
        }
        let trouble = |topic: &Topic| Trouble {
            text: "it is so".to_owned(),
            sql: Some("select 1".to_owned()),
            stops_ready: true,
            section: section(topic, "").to_owned(),
            ..Trouble::default()
        };
        let mut troubles = vec![trouble(&Topic::Rule("a".into()))];
        assert_eq!(level(&standby(&troubles)), Level::Busy);
        troubles.push(trouble(&Topic::Holder));
        assert_eq!(level(&standby(&troubles)), Level::Wrong);
        let verdict = Verdict::of(&standby(&troubles));
        assert_eq!(verdict.text, "nothing is removed: it is so");
        assert_eq!(verdict.section.as_deref(), Some("the-stream-hangs"));
        assert_eq!(verdict.sql.as_deref(), Some("select 1"));
    }

    #[test]
    fn keys_that_wait_for_long_are_behind_and_second_removals_never() {
        let wait = |stage: &str, seconds| Wait {
            stage: stage.to_owned(),
            count: 1,
            oldest_seconds: Some(seconds),
            ..Wait::default()
        };
        for (stage, seconds, expected) in [
            ("gate", 6.0, Level::Attention),
            ("pass", 6.0, Level::Attention),
            ("pass", 4.0, Level::Well),
            ("second", 60.0, Level::Well),
        ] {
            let waiting = [wait(stage, seconds)];
            let one = Evidence { waiting: &waiting, ..evidence(Phase::Streaming) };
            assert_eq!(level(&one), expected, "{stage} {seconds}");
        }
        for (seconds, expected) in [(4.0, Level::Well), (6.0, Level::Busy)] {
            let one = Evidence { read_behind_seconds: seconds, ..evidence(Phase::Streaming) };
            assert_eq!(level(&one), expected, "{seconds}");
        }
        for (seconds, expected) in [(60.5, Level::Well), (61.5, Level::Attention)] {
            let one =
                Evidence { oldest_unconfirmed_seconds: seconds, ..evidence(Phase::Streaming) };
            assert_eq!(level(&one), expected, "{seconds}");
        }
    }

    /// Redis refuses nothing there, and the section on what it refuses has no cure for them.
    #[test]
    fn a_line_of_sentinels_a_cluster_a_proxy_or_a_channel_leads_to_its_own_section() {
        let (target, unknown) = (TargetId::FIRST, "sentinels-a-cluster-or-a-proxy");
        let refused = || Topic::Refused(target, "item".into());
        for (topic, text, leads_to) in [
            (
                Topic::Watermark(target),
                "nothing is confirmed, for redis at a:1: nobody knows whether `a:1` is still the \
                 primary of `cache`: `b:1` does not answer",
                unknown,
            ),
            (
                Topic::Watermark(target),
                "nothing is confirmed, for redis at a:1: redis answered MOVED",
                unknown,
            ),
            (
                refused(),
                "redis at a:1 gives no list of its keys (SCAN shows 21 of 64 not): 1 pattern of \
                 rule `item` cannot be looked for, and wait",
                unknown,
            ),
            (
                refused(),
                "a part of redis is away: 1 key of rule `item` waits",
                "redis-does-not-answer",
            ),
            (refused(), "redis refuses to remove keys of rule `item` (NOPERM)", "redis-refuses"),
            (
                Topic::Watermark(target),
                "nothing is confirmed, for redis at a:1: redis answered OOM",
                "redis-refuses",
            ),
            (
                Topic::Publish(target),
                "redis is not told of removals: redis answered NOPERM",
                "caches-in-processes-are-not-told",
            ),
        ] {
            assert_eq!(section(&topic, text), leads_to, "{text}");
            assert!(runbook::sections().any(|one| one.anchor == leads_to), "{leads_to}");
        }
    }

    #[test]
    fn each_topic_has_a_section_of_the_runbook() {
        let (name, target) = (|| "a".into(), TargetId::FIRST);
        for topic in [
            Topic::Session,
            Topic::Holder,
            Topic::Checks,
            Topic::Rule(name()),
            Topic::Wide(name()),
            Topic::Refused(target, name()),
            Topic::Redis(target),
            Topic::RedisChecks(target),
            Topic::Late(target),
            Topic::Throttled(target),
            Topic::Watermark(target),
            Topic::Publish(target),
            Topic::Replica(name()),
            Topic::Fence,
            Topic::Lookup(name()),
            Topic::Untried(name()),
            Topic::Watch,
            Topic::Slot,
            Topic::SlotOwner,
            Topic::NewSlot,
            Topic::Doubted(target),
            Topic::Audit,
            Topic::Reload,
        ] {
            for text in ["is lost", "refuses removals", "there is no publication"] {
                let anchor = section(&topic, text);
                let mut sections = runbook::sections();
                assert!(sections.any(|one| one.anchor == anchor), "{topic:?}: {anchor}");
            }
        }
    }
}
