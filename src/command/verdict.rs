//! The last line of `walsweep check`: what `walsweep run` would do with what it found.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::preflight::{Code, Finding, Report};
use crate::words::plural;

/// `run` neither reads the slot nor ends.
const STUCK: Code = Code::SlotNotOwn;

/// A verdict on what `run` would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    /// The word for it, for programs: `start`, or the first that holds of `refuse`, `wait`,
    /// `running`, `stand_by`, `suspend` and `go_on`.
    pub(super) run: &'static str,
    /// The words for it, one sentence: all that holds, in order.
    pub(super) text: String,
}

impl Verdict {
    /// Gives the verdict that these findings come to.
    pub(super) fn of(report: &Report) -> Verdict {
        let refuses = |finding: &Finding| {
            finding.stops_everything() && !finding.is_waited_for() && finding.code != STUCK
        };
        if report.findings().any(refuses) {
            let text = match has(report, Code::ListenRunning) {
                false => "`walsweep run` would refuse to start".to_owned(),
                true => "the walsweep that runs goes on for now: mend this before it connects \
                         again; until then it refuses a reload, and another `walsweep run` \
                         refuses to start"
                    .to_owned(),
            };
            return Verdict { run: "refuse", text };
        }
        let parts =
            [waits(report), is_stuck(report), stands_by(report), suspends(report), goes_on(report)];
        let (mut runs, texts): (Vec<&str>, Vec<String>) = parts.into_iter().flatten().unzip();
        let mut text = match (has(report, Code::ListenRunning), texts.join(", then ")) {
            (false, then) if then.is_empty() => "`walsweep run` would start".to_owned(),
            (false, then) => format!("`walsweep run` would {then}"),
            (true, then) => {
                runs.insert(usize::from(runs.first() == Some(&"wait")), "running");
                let and = if then.is_empty() { "" } else { ", and would " };
                format!(
                    "`walsweep run` is at work already; another one beside it needs an \
                     `http.listen` of its own{and}{then}"
                )
            }
        };
        if runs.iter().any(|run| ["suspend", "go_on"].contains(run)) {
            text.push_str("; with `--strict` it refuses");
        }
        Verdict { run: runs.first().copied().unwrap_or("start"), text }
    }
}

fn has(report: &Report, code: Code) -> bool {
    report.findings().any(|finding| finding.code == code)
}

fn waits(report: &Report) -> Option<(&'static str, String)> {
    let waits = report.findings().any(Finding::is_waited_for);
    waits.then(|| ("wait", "wait for what cannot be reached".to_owned()))
}

/// Until somebody has said whose the slot is, or dropped it.
fn is_stuck(report: &Report) -> Option<(&'static str, String)> {
    has(report, STUCK).then(|| ("wait", "wait until somebody has seen to the slot".to_owned()))
}

/// Until whoever is there already has ended.
fn stands_by(report: &Report) -> Option<(&'static str, String)> {
    has(report, Code::SlotActive)
        .then(|| ("stand_by", "stand by until the slot is free".to_owned()))
}

fn suspends(report: &Report) -> Option<(&'static str, String)> {
    let rules = listed(&report.findings().flat_map(Finding::suspends).collect())?;
    Some(("suspend", format!("suspend {rules}")))
}

/// Those of which something is wrong, and that are not suspended for it, or for anything else.
fn goes_on(report: &Report) -> Option<(&'static str, String)> {
    let suspended: BTreeSet<&str> = report.findings().flat_map(Finding::suspends).collect();
    let others = report.findings().filter(|finding| finding.suspends().next().is_none());
    let mut rules: BTreeSet<&str> = others.flat_map(Finding::concerns).collect();
    rules.retain(|rule| !suspended.contains(rule));
    let rules = listed(&rules)?;
    Some(("go_on", format!("go on with {rules}, and say what is wrong")))
}

fn listed(rules: &BTreeSet<&str>) -> Option<String> {
    let noun = plural(rules.len(), "rule");
    let rules: Vec<String> = rules.iter().map(|rule| format!("`{rule}`")).collect();
    (!rules.is_empty()).then(|| format!("{noun} {}", rules.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::Verdict;
    use crate::preflight::{Code, Finding, Report};

    #[track_caller]
    fn check(findings: Vec<Finding>, run: &str, text: &str) {
        let report = Report { postgres: findings, ..Report::default() };
        let verdict = Verdict::of(&report);
        assert_eq!((verdict.run, verdict.text.as_str()), (run, text));
    }

    #[test]
    fn the_verdict_says_what_a_run_would_do() {
        let running = "`walsweep run` is at work already; another one beside it needs an \
                       `http.listen` of its own";
        let active = || Finding::info(Code::SlotActive, "in use");
        check(Vec::new(), "start", "`walsweep run` would start");
        let stands = "stand by until the slot is free";
        check(vec![active()], "stand_by", &format!("`walsweep run` would {stands}"));
        let listens = || Finding::info(Code::ListenRunning, "a walsweep");
        check(vec![listens()], "running", running);
        let both = format!("{running}, and would {stands}");
        check(vec![listens(), active()], "running", &both);
        let away = || Finding::error(Code::RedisUnreachable, "away");
        let both = format!("`walsweep run` would wait for what cannot be reached, then {stands}");
        check(vec![away(), active()], "wait", &both);
        let both = format!("{running}, and would wait for what cannot be reached");
        check(vec![away(), listens()], "wait", &both);
        let stuck = || Finding::error(Code::SlotNotOwn, "lost");
        let waits = "wait until somebody has seen to the slot";
        check(vec![stuck()], "wait", &format!("`walsweep run` would {waits}"));
        let both = format!("`walsweep run` would wait for what cannot be reached, then {waits}");
        check(vec![away(), stuck()], "wait", &both);
        let wrong = Finding::error(Code::SlotPlugin, "wrong");
        check(vec![active(), wrong.clone()], "refuse", "`walsweep run` would refuse to start");
        let goes_on = "the walsweep that runs goes on for now: mend this before it connects \
                       again; until then it refuses a reload, and another `walsweep run` refuses \
                       to start";
        check(vec![listens(), wrong], "refuse", goes_on);
    }

    /// It is read as one, and so is what a program shows of it.
    #[test]
    fn there_is_one_verdict_however_much_holds() {
        let of = |code, rule: &str| Finding::error(code, "wrong").of_rules([rule]);
        let (misfit, partition) =
            (|| of(Code::ReplicaIdentity, "a"), || of(Code::PartitionIdentity, "b"));
        let strict = "; with `--strict` it refuses";
        let suspends = format!("`walsweep run` would suspend rule `a`{strict}");
        check(vec![misfit()], "suspend", &suspends);
        let goes_on = "go on with rule `b`, and say what is wrong";
        let both = format!("`walsweep run` would suspend rule `a`, then {goes_on}{strict}");
        check(vec![partition(), misfit()], "suspend", &both);
        check(vec![partition()], "go_on", &format!("`walsweep run` would {goes_on}{strict}"));
        // A rule that is suspended does not go on, whatever else is wrong with it.
        let both = vec![misfit(), of(Code::PartitionIdentity, "a")];
        check(both, "suspend", &suspends);
    }
}
