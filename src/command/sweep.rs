//! `walsweep sweep`: keys that match are removed by hand.

use std::io::{IsTerminal, Write, stderr};
use std::path::Path;

use super::failure::{Failure, Told, halted};
use super::load::configuration;
use crate::config::Config;
use crate::keys::Pattern;
use crate::preflight;
use crate::sweep::{Error, Kind, Node, Pace, Pass, Progress, Standalone, key_name};
use crate::telemetry::words::counted;

/// `walsweep sweep`, without removing anything in a `dry_run`. What no rule covers may be sessions
/// or locks of somebody else: it goes by `force` alone.
///
/// # Errors
///
/// 78 for the configuration; 1 when Redis fails, or for a pattern that no rule covers. What was
/// removed until then stays removed.
pub async fn sweep(
    path: &Path,
    patterns: &[String],
    (dry_run, force): (bool, bool),
) -> Result<(), Failure> {
    let (config, rules) = configuration(path)?;
    let is_foreign = |text: &&str| !rules.covers(&Pattern::parse(text.as_bytes()));
    let foreign: Vec<&str> = patterns.iter().map(String::as_str).filter(is_foreign).collect();
    if !(dry_run || force || foreign.is_empty()) {
        let message = format!("nothing removed: no rule covers all of `{}`", foreign.join("`, `"));
        let hint = "`--dry-run` counts what matches; `--force` removes it, whoever it belongs to";
        return Err(Failure::halted(message).with_hint(Some(hint)));
    }
    let node = Standalone::new(&config.redis, key_name(&config.postgres.slot));
    if let Err(error) = node.connect().await {
        return Err(failed(&config, &error).await);
    }
    let parsed = patterns.iter().map(|text| Pattern::parse(text.as_bytes())).collect();
    let mut pass = Pass::new(parsed);
    pass.dry_run = dry_run;
    let mut pace = Pace::new(config.sweep.max_stall, config.sweep.max_load);
    let (mut shown, mut removed) = (Shown::default(), 0);
    let each_page = |progress: &Progress| {
        shown.update(progress);
        removed = progress.removed.iter().sum();
    };
    let outcome = pass.run(&node, &mut pace, each_page).await;
    shown.clear();
    let mut told = Told::default();
    let progress = match outcome {
        Ok(progress) => progress,
        Err(error) => {
            if !dry_run {
                told.print(&format!("{} removed before it failed\n", counted(removed, "key")));
            }
            return Err(failed(&config, &error).await);
        }
    };
    told.print(&swept(patterns, &progress, dry_run));
    if progress.refused() > 0 {
        let message = "redis refused to remove some of the keys: NOPERM".to_owned();
        return Err(failed(&config, &Error::new(Kind::NoPerm, message)).await);
    }
    if dry_run && !foreign.is_empty() {
        let foreign = foreign.join("`, `");
        told.print(&format!("no rule covers all of `{foreign}`: to remove it takes `--force`\n"));
    }
    told.end()
}

/// The failure of a pass; where Redis lets the user do too little, with what lets him.
async fn failed(config: &Config, error: &Error) -> Failure {
    let hint = error.hint().map(str::to_owned);
    let told = match error.kind() {
        Kind::NoPerm | Kind::Auth | Kind::Other => preflight::lets_redis(config).await,
        _ => None,
    };
    halted(error).with_hint(told.or(hint))
}

/// Says what a pass by hand came to; of several patterns each, too.
fn swept(patterns: &[String], progress: &Progress, dry_run: bool) -> String {
    let mut lines = String::new();
    let each = patterns.iter().zip(&progress.matched_by).zip(&progress.removed);
    for ((pattern, matched), removed) in each.filter(|_| patterns.len() > 1) {
        let matched = format!("`{pattern}`: {} matched", counted(*matched, "key"));
        let removed = if dry_run { String::new() } else { format!(", {removed} removed") };
        lines.push_str(&format!("{matched}{removed}\n"));
    }
    let removed: u64 = progress.removed.iter().sum();
    let done = if dry_run { "nothing removed".to_owned() } else { format!("{removed} removed") };
    format!("{lines}{} matched, {done}\n", counted(progress.matched, "key"))
}

/// A line of progress, for a person who watches.
#[derive(Default)]
struct Shown {
    at: u64,
}

impl Shown {
    /// Keys between two updates of the line.
    const STEP: u64 = 50_000;

    fn update(&mut self, progress: &Progress) {
        if progress.scanned >= self.at + Shown::STEP && stderr().is_terminal() {
            self.at = progress.scanned;
            let Progress { scanned, matched, .. } = progress;
            drop(write!(stderr(), "\r{scanned} keys scanned, {matched} matched"));
        }
    }

    fn clear(&self) {
        if self.at > 0 {
            drop(write!(stderr(), "\r\x1b[K"));
        }
    }
}
