//! `walsweep why KEY`: who removed a key, when, for which transaction; or why nobody did.
//!
//! The running process is asked, and the audit trail read where there is one. What neither knows is
//! answered from the rules.

mod nothing;
mod show;

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde::Serialize;

use self::nothing::Reach;
use super::failure::{Failure, print};
use super::listener::{Page, page};
use super::load::of_running;
use crate::config::Config;
use crate::run::reload::Setting;
use crate::telemetry::trail::{self, Answer, AuditRead, Moment, Name, Removal, read};

/// Removals that are told, at most.
const TOLD_MAX: usize = 10;

/// Everything that is known of a key: the object of `--json`.
#[derive(Debug, Serialize)]
struct Known {
    key: Name,
    /// Whether a removal of it is known, or one that is to come.
    found: bool,
    /// The removals, the newest first; those to come before them.
    removals: Vec<Removal>,
    /// Whether there are more.
    more: bool,
    /// The answer of the running process.
    process: Process,
    /// Whether it runs with the rules and targets of the file; absent if it does not say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    same_rules: Option<bool>,
    /// Since when it remembers; absent if it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Moment>,
    /// The audit trail, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<Audited>,
    /// The rules that can give the key, each with the target.
    rules: Vec<Reach>,
    /// Why nothing is known, in sentences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    why_not: Vec<String>,
    #[serde(skip)]
    now: Moment,
}

/// The outcome of asking the running process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "answer", content = "text", rename_all = "snake_case")]
enum Process {
    /// It answered; its state, as `/readyz` says it.
    Yes(String),
    /// `http.listen` is "".
    Off,
    /// Nobody listens, or no walsweep that knows the question; the address.
    Nobody(String),
    /// Somebody listens, and does not answer; the address.
    Silent(String),
    /// It does not tell this asker; why.
    Refused(String),
}

/// The audit trail, as far as it could be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Audited {
    file: String,
    /// The time of its first line; absent if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Moment>,
    lines: u64,
    /// Lines that are none of an audit trail, or end in the middle.
    unreadable_lines: u64,
    /// Why it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// `walsweep why`.
///
/// # Errors
///
/// 78 for the configuration; 1 if no removal of the key is known.
pub async fn why(path: &Path, key: &OsStr, json: bool) -> Result<(), Failure> {
    let Setting { config, rules, .. } = of_running(path)?;
    let key = key.as_bytes();
    let (process, answer) = ask(&config, key).await;
    let suspended = answer.as_ref().map(|answer| answer.suspended.clone()).unwrap_or_default();
    let known = trail::Known::of(&config, &rules);
    let in_force = answer.as_ref().and_then(|answer| answer.rules);
    let same_rules = in_force.map(|print| print == known.print());
    let (audit, trail) = match audited(&config, &known, key) {
        Some((audit, trail)) => (Some(audit), trail),
        None => (None, AuditRead::default()),
    };
    let rules = nothing::reaches(&config, &rules, key, &suspended);
    let (since, remembered, more) = match answer {
        Some(Answer { since, removals, more, .. }) => (Some(since), removals, more),
        None => (None, Vec::new(), false),
    };
    let mut removals = joined(remembered, trail.removals);
    let more = more || trail.more || removals.len() > TOLD_MAX;
    removals.truncate(TOLD_MAX);
    let (found, now) = (!removals.is_empty(), Moment::now());
    let mut known = Known {
        key: Name::of(key),
        found,
        removals,
        more,
        process,
        same_rules,
        since,
        audit,
        rules,
        why_not: Vec::new(),
        now,
    };
    known.why_not = match found {
        true => nothing::suspended(&known),
        false => nothing::why_not(&config, key, &known),
    };
    if let Some(others) = nothing::other_rules(&known) {
        known.why_not.insert(0, others);
    }
    let shown = if json {
        let shown = serde_json::to_string_pretty(&known).expect("texts and numbers are JSON");
        format!("{shown}\n")
    } else {
        show::shown(&known)
    };
    print(&shown)?;
    if found { Ok(()) } else { Err(Failure::told(1)) }
}

/// Reads the audit trail, if the configuration names one.
fn audited(config: &Config, rules: &trail::Known, key: &[u8]) -> Option<(Audited, AuditRead)> {
    let file = config.audit.file.as_ref()?.display().to_string();
    let (trail, error) = match read(&config.audit, rules, key) {
        Ok(trail) => (trail, None),
        Err(error) => (AuditRead::default(), Some(error.to_string())),
    };
    let (since, lines, unreadable_lines) = (trail.since, trail.lines, trail.torn);
    Some((Audited { file, since, lines, unreadable_lines, error }, trail))
}

/// All removals, each once, the newest first. What the process remembers goes before what it wrote.
fn joined(remembered: Vec<Removal>, written: VecDeque<Removal>) -> Vec<Removal> {
    let mut all = remembered;
    for removal in written.into_iter().rev() {
        if !all.iter().any(|known| known.is_same_as(&removal)) {
            all.push(removal);
        }
    }
    all.sort_by_key(|removal| Reverse(removal.removed.unwrap_or(Moment::LAST)));
    all
}

/// Asks the running process of this configuration.
async fn ask(config: &Config, key: &[u8]) -> (Process, Option<Answer>) {
    let Some(address) = config.http.listen else { return (Process::Off, None) };
    let key = percent_encode(key, NON_ALPHANUMERIC);
    let answer = page(address, &format!("/why?key={key}")).await;
    if answer == Page::Silent {
        return (Process::Silent(address.to_string()), None);
    }
    let (answer, nobody) = (answer.text(), Process::Nobody(address.to_string()));
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return (nobody, None) };
    match head.split(' ').nth(1) {
        Some("200") => match serde_json::from_str::<Answer>(body) {
            Ok(answer) => (Process::Yes(answer.state.clone()), Some(answer)),
            Err(_not_ours) => (nobody, None),
        },
        Some("403") => (Process::Refused(body.trim_end().to_owned()), None),
        Some("431") => (Process::Refused("the key is too long to be asked for".to_owned()), None),
        _ => (nobody, None),
    }
}
