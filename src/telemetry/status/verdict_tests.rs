//! Tests of the verdict: which of what is wrong it says, and where it leads.

use super::verdict::{Evidence, Level, Verdict, section};
use super::{Trouble, Wait};
use crate::config::TargetId;
use crate::telemetry::Topic;
use crate::telemetry::health::Phase;
use crate::telemetry::runbook;

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
    // The order is that of `/readyz`.
    let first = Trouble { text: "the first".to_owned(), ..trouble(true) };
    let troubles = [trouble(false), first, trouble(true)];
    let two = Evidence { troubles: &troubles, ..evidence(Phase::Streaming) };
    assert_eq!(Verdict::of(&two).text, "the first (and 2 more)");
    let troubles = [trouble(false), trouble(true), trouble(false)];
    let sweeps = Evidence { troubles: &troubles, ..evidence(Phase::Sweeping("slot_created")) };
    assert_eq!(level(&sweeps), Level::Wrong);
    let lost = Evidence { troubles: &troubles, ..evidence(Phase::Connecting) };
    assert_eq!(Verdict::of(&lost).text, "nothing is removed: stops: true");
}

/// Whoever looks for a server that is down does not find a user that is gone; and a rule that is
/// suspended, or a refusal of before, is not what keeps Redis away.
#[test]
fn a_redis_that_refuses_the_login_is_not_called_out_of_reach() {
    let id = || TargetId::FIRST;
    let one = |topic: &Topic, text: &str, hint: &str| Trouble {
        text: text.to_owned(),
        hint: Some(hint.to_owned()),
        stops_ready: true,
        section: section(topic, text).to_owned(),
        ..Trouble::default()
    };
    let rule = one(&Topic::Rule("item".into()), "rule `item` is suspended", "mend it");
    let keys = one(&Topic::Refused(id(), "item".into()), "redis refuses to remove", "rights");
    let login = one(&Topic::Redis(id()), "redis refuses walsweep's login; trying", "the user");
    let lost = one(&Topic::Redis(id()), "the connection to redis is lost", "see that it runs");
    let other = "redis-does-not-answer";
    for (troubles, text, leads_to, hint) in [
        (vec![rule.clone()], "what it does:", other, None),
        (
            vec![rule.clone(), keys.clone(), login],
            "redis refuses walsweep's login; trying;",
            "redis-refuses",
            Some("the user"),
        ),
        (vec![rule, keys, lost], "what it does:", other, Some("see that it runs")),
    ] {
        let one = Evidence { troubles: &troubles, ..evidence(Phase::RedisLost) };
        assert_eq!(level(&one), Level::Wrong);
        let verdict = Verdict::of(&one);
        assert_eq!(verdict.text, format!("{text} its keys wait, and may be stale"));
        assert_eq!((verdict.section.as_deref(), verdict.hint.as_deref()), (Some(leads_to), hint));
    }
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
            "no session with postgres: log in: password authentication failed; trying again \
             within 10 s; before that, this process stood still for 84 s",
            "not-ready",
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
        let one = Evidence { oldest_unconfirmed_seconds: seconds, ..evidence(Phase::Streaming) };
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
        (refused(), "a part of redis is away: 1 key of rule `item` waits", "redis-does-not-answer"),
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
