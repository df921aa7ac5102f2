//! What `walsweep run` would do with what `walsweep check` found: its last line.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::preflight::{Finding, Report};

/// The code of the finding that another process streams from the slot.
const SLOT_ACTIVE: &str = "slot_active";

/// The code of the finding that a walsweep listens at `http.listen`.
pub(super) const RUNNING: &str = "listen_running";

/// What `run` would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    /// The word for it, for programs: `start`, or the first that holds of `refuse`, `wait`,
    /// `running`, `stand_by`, `suspend` and `go_on`.
    pub(super) run: &'static str,
    /// The words for it: a line for each that holds.
    pub(super) text: String,
}

impl Verdict {
    /// What these findings come to.
    pub(super) fn of(report: &Report) -> Verdict {
        let refuses = |finding: &Finding| finding.stops_everything() && !finding.is_waited_for();
        if report.findings().any(refuses) {
            let text = "`walsweep run` would refuse to start".to_owned();
            return Verdict { run: "refuse", text };
        }
        let parts = [
            waits(report).map(|text| ("wait", text)),
            others(report),
            suspends(report).map(|text| ("suspend", text)),
            goes_on(report).map(|text| ("go_on", text)),
        ];
        let (runs, texts): (Vec<&str>, Vec<String>) = parts.into_iter().flatten().unzip();
        match runs.first() {
            Some(run) => Verdict { run, text: texts.join("\n") },
            None => Verdict { run: "start", text: "`walsweep run` would start".to_owned() },
        }
    }
}

fn waits(report: &Report) -> Option<String> {
    let waits = report.findings().any(Finding::is_waited_for);
    waits.then(|| "`walsweep run` would wait for what cannot be reached".to_owned())
}

/// Who is there already.
fn others(report: &Report) -> Option<(&'static str, String)> {
    let has = |code: &str| report.findings().any(|finding| finding.code == code);
    if has(RUNNING) {
        let and = if has(SLOT_ACTIVE) { ", and would stand by" } else { "" };
        let text = format!(
            "`walsweep run` is at work already; another one beside it needs an `http.listen` of \
             its own{and}"
        );
        return Some(("running", text));
    }
    let text = "`walsweep run` would stand by until the slot is free";
    has(SLOT_ACTIVE).then(|| ("stand_by", text.to_owned()))
}

fn suspends(report: &Report) -> Option<String> {
    let rules = listed(&report.findings().flat_map(Finding::suspends).collect())?;
    Some(format!("`walsweep run` would suspend {rules}; with `--strict` it refuses"))
}

fn goes_on(report: &Report) -> Option<String> {
    let others = report.findings().filter(|finding| finding.suspends().next().is_none());
    let rules = listed(&others.flat_map(Finding::concerns).collect())?;
    Some(format!(
        "`walsweep run` would go on with {rules}, and say what is wrong; with `--strict` it refuses"
    ))
}

fn listed(rules: &BTreeSet<&str>) -> Option<String> {
    let plural = if rules.len() == 1 { "" } else { "s" };
    let rules: Vec<String> = rules.iter().map(|rule| format!("`{rule}`")).collect();
    (!rules.is_empty()).then(|| format!("rule{plural} {}", rules.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::{RUNNING, SLOT_ACTIVE, Verdict};
    use crate::preflight::{Finding, Report};

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
        let active = || Finding::info(SLOT_ACTIVE, "in use");
        check(Vec::new(), "start", "`walsweep run` would start");
        let stands = "`walsweep run` would stand by until the slot is free";
        check(vec![active()], "stand_by", stands);
        let listens = || Finding::info(RUNNING, "a walsweep");
        check(vec![listens()], "running", running);
        check(vec![listens(), active()], "running", &format!("{running}, and would stand by"));
        let away = Finding::error("redis_unreachable", "away");
        let both = format!("`walsweep run` would wait for what cannot be reached\n{stands}");
        check(vec![away, active()], "wait", &both);
        let wrong = Finding::error("slot_plugin", "wrong");
        check(vec![active(), wrong], "refuse", "`walsweep run` would refuse to start");
    }
}
