//! Reloads of the configuration: how many there were, and what came of the latest.
//!
//! `walsweep reload` sends a signal, which gives no answer. So the process tells here, on the page
//! `/reload`, who it is, and `walsweep reload` waits for the outcome of a reload that began later.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::labels::{RuleLabel, TargetLabel, WidenedLabel};
use super::metrics::Metrics;
use crate::config::at_start;
use crate::keys::{Print, WidenReason};

/// Lines that are kept, at most.
const LINES_MAX: usize = 100;

/// The outcome of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The new configuration is in force.
    Applied,
    /// It says what the one before says.
    Unchanged,
    /// Something is wrong with it, and the one before stays in force.
    Refused,
}

impl Outcome {
    /// The label of `walsweep_config_reloads_total`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Applied => "applied",
            Outcome::Unchanged => "unchanged",
            Outcome::Refused => "refused",
        }
    }
}

/// Everything that `/reload` tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The process.
    #[serde(flatten)]
    pub process: Process,
    /// How many reloads have begun.
    pub begun: u64,
    /// How many have ended.
    pub ended: u64,
    /// The outcome of the latest that has ended.
    pub outcome: Option<Outcome>,
    /// Whether the configuration itself is invalid, as for exit status 78.
    #[serde(default)]
    pub is_invalid: bool,
    /// The fingerprints of the options that are read only at the start, by [`prints_at_start`];
    /// `None` from a version that does not tell.
    #[serde(default)]
    pub at_start: Option<BTreeMap<String, Print>>,
    /// Lines of what was taken over, or of each problem, without a secret or a value of a row.
    pub lines: Vec<String>,
}

/// A process that other ones may find by this, and not take for another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// The namespace that the id is of; empty where there are none.
    pub pid_namespace: String,
    /// When it was started, as the kernel counts; empty where that cannot be known.
    pub started: String,
}

impl Process {
    /// This one.
    #[must_use]
    pub fn own() -> Process {
        Process::of(std::process::id())
    }

    /// The process of this id, in the namespace of this one.
    #[must_use]
    pub fn of(pid: u32) -> Process {
        let namespace = std::fs::read_link("/proc/self/ns/pid");
        let pid_namespace = namespace.map(|name| name.display().to_string()).unwrap_or_default();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        Process { pid, pid_namespace, started: started(&stat) }
    }
}

/// The start time in the text of `/proc/PID/stat`: the 22nd word, the second of which is the
/// program's name in brackets and may hold anything.
fn started(stat: &str) -> String {
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().nth(19).unwrap_or_default().to_owned()
}

/// Gives the fingerprint of each option of a configuration's text that is read only at the start,
/// by dotted key. Whoever has another text sees which differ, and learns no value; a secret, which
/// could be guessed from its fingerprint, is none of them.
#[must_use]
pub fn prints_at_start(text: &str) -> BTreeMap<String, Print> {
    at_start(text).into_iter().map(|(key, value)| (key, Print::of([value]))).collect()
}

/// Reloads so far.
#[derive(Debug, Default)]
pub struct Reloads(Mutex<Told>);

impl Reloads {
    /// The process begins with the configuration of this text.
    pub fn start_with(&self, text: &str) {
        self.lock().at_start = Some(prints_at_start(text));
    }

    /// A reload begins.
    pub fn begin(&self) {
        self.lock().begun += 1;
    }

    /// The reload that began last has ended, with this outcome.
    pub fn end(&self, outcome: Outcome, is_invalid: bool, mut lines: Vec<String>) {
        let more = lines.len().saturating_sub(LINES_MAX);
        lines.truncate(LINES_MAX);
        if more > 0 {
            lines.push(format!("and {more} more: the log has all"));
        }
        let mut told = self.lock();
        told.ended = told.begun;
        (told.outcome, told.is_invalid, told.lines) = (Some(outcome), is_invalid, lines);
    }

    /// Gives the JSON of `/reload`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let told = Told { process: Process::own(), ..self.lock().clone() };
        serde_json::to_string(&told).expect("texts and numbers are JSON") + "\n"
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

impl Metrics {
    /// Gives the same metrics for other rules and targets. The series of those that are gone end,
    /// as with a restart: an alert on one would never be over. `before` has for each rule the
    /// number that it had, if it is one of before, unchanged.
    #[must_use]
    pub fn for_others(
        &self,
        rules: &[String],
        before: &[Option<usize>],
        targets: Vec<String>,
    ) -> Metrics {
        self.rules.iter().filter(|rule| !rules.contains(rule)).for_each(|rule| {
            let label = RuleLabel { rule: rule.clone() };
            let families =
                [&self.rule_matches, &self.keys_removed, &self.keys_absent, &self.refills_removed];
            for family in families {
                family.remove(&label);
            }
            self.rules_suspended.remove(&label);
            for reason in WidenReason::ALL.map(WidenReason::as_str) {
                self.widened.remove(&WidenedLabel { rule: rule.clone(), reason });
            }
        });
        if self.every_target.iter().any(|target| !targets.contains(target)) {
            // Those that stay begin anew, as after a restart.
            self.redis_errors.clear();
        }
        let stays = |target: &String| targets.len() > 1 && targets.contains(target);
        self.targets.iter().filter(|target| !stays(target)).for_each(|target| {
            let label = TargetLabel { target: target.clone() };
            self.target_ready.remove(&label);
            self.target_removed.remove(&label);
        });
        let place = |target| self.every_target.iter().position(|before| before == target);
        let places: Vec<Option<usize>> = targets.iter().map(place).collect();
        let mut others = self.clone();
        others.counted = Arc::new(self.counted.of_others(&places));
        (others.rules, others.targets) = (rules.to_vec(), Vec::new());
        others.create_series();
        others.noted = Arc::new(self.noted.of_others(before, 1));
        others.with_targets(targets)
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Process, Reloads, Told, started};
    use crate::telemetry::metrics::{ErrorLabel, Metrics};

    #[test]
    fn a_reload_has_no_outcome_before_it_has_ended() {
        let reloads = Reloads::default();
        let told = || serde_json::from_str::<Told>(&reloads.to_json()).unwrap();
        assert_eq!((told().begun, told().ended, told().outcome), (0, 0, None));
        assert_eq!(told().process, Process::own());
        reloads.begin();
        assert_eq!((told().begun, told().ended, told().outcome), (1, 0, None));
        reloads.end(Outcome::Refused, true, vec!["no".to_owned()]);
        assert_eq!((told().begun, told().ended), (1, 1));
        assert_eq!((told().outcome, told().is_invalid), (Some(Outcome::Refused), true));
        reloads.begin();
        assert_eq!((told().begun, told().ended, told().lines.len()), (2, 1, 1));
        reloads.end(Outcome::Applied, false, Vec::new());
        assert_eq!((told().ended, told().is_invalid, told().lines.len()), (2, false, 0));
    }

    #[test]
    fn of_a_target_that_goes_no_series_stays_also_if_it_was_the_only_one() {
        let shown =
            |metrics: &Metrics, target| metrics.text().contains(&format!("target=\"{target}\""));
        for (before, after) in
            [(&["a"][..], &["b"][..]), (&["a"], &["b", "c"]), (&["a", "b"], &["b"])]
        {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let metrics = Metrics::new(&[]).with_targets(owned(before));
            let label = ErrorLabel { target: "a".to_owned(), kind: "io" };
            metrics.redis_errors.get_or_create(&label).inc();
            assert!(shown(&metrics, "a"));
            let metrics = metrics.for_others(&[], &[], owned(after));
            assert!(!shown(&metrics, "a"), "{before:?} {after:?}: {}", metrics.text());
        }
    }

    #[test]
    fn a_process_is_known_by_its_start_whatever_its_name() {
        let stat = "7 (a) b) 3) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(started(stat), "4711");
        assert_eq!(started(""), "");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_a_start_and_a_namespace() {
        let own = Process::own();
        assert!(!own.started.is_empty() && own.pid_namespace.starts_with("pid:["), "{own:?}");
        assert_ne!(Process::of(1), own);
    }
}
