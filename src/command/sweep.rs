//! `walsweep sweep`: keys that match are removed by hand.

use std::io::{IsTerminal, Write, stderr};
use std::path::Path;

use super::failure::{Failure, Told, halted};
use super::load::configuration;
use crate::config::{Config, Target};
use crate::keys::Pattern;
use crate::preflight;
use crate::sweep::{Error, Kind, Node, Pace, Pass, Progress, Standalone};
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
    only: Option<&str>,
) -> Result<(), Failure> {
    let (config, rules) = configuration(path)?;
    let targets = chosen(&config, only)?;
    let covers = |text: &str, target: &Target| {
        rules.covers(&Pattern::parse(text.as_bytes()), target.redis.id)
    };
    let is_foreign = |text: &&str| !targets.iter().any(|target| covers(text, target));
    let foreign: Vec<&str> = patterns.iter().map(String::as_str).filter(is_foreign).collect();
    if !(dry_run || force || foreign.is_empty()) {
        let message = format!("nothing removed: no rule covers all of `{}`", foreign.join("`, `"));
        let hint = "`--dry-run` counts what matches; `--force` removes it, whoever it belongs to";
        return Err(Failure::halted(message).with_hint(Some(hint)));
    }
    let (mut told, mut failure) = (Told::default(), None);
    for target in &targets {
        let is_for = |text: &&String| dry_run || force || covers(text, target);
        let patterns: Vec<&str> = patterns.iter().filter(is_for).map(String::as_str).collect();
        if !patterns.is_empty() {
            let outcome = sweep_target(target, &patterns, dry_run, &mut told).await;
            failure = failure.or(outcome.err());
        }
    }
    if dry_run && !foreign.is_empty() {
        let foreign = foreign.join("`, `");
        told.print(&format!("no rule covers all of `{foreign}`: to remove it takes `--force`\n"));
    }
    failure.map_or_else(|| told.end(), Err)
}

/// All targets, or the one of this name.
fn chosen(config: &Config, only: Option<&str>) -> Result<Vec<Target>, Failure> {
    let is_chosen = |target: &Target| only.is_none_or(|name| target.redis.name == name);
    let targets: Vec<Target> = config.targets().filter(is_chosen).collect();
    if targets.is_empty() {
        let names: Vec<&str> = config.redis.iter().map(|redis| redis.name.as_str()).collect();
        let message = format!("no redis is called `{}`", only.unwrap_or_default());
        let hint = format!("`--target` takes one of `{}`", names.join("`, `"));
        return Err(Failure::halted(message).with_hint(Some(hint)));
    }
    Ok(targets)
}

/// One pass over a target.
async fn sweep_target(
    target: &Target,
    patterns: &[&str],
    dry_run: bool,
    told: &mut Told,
) -> Result<(), Failure> {
    let node = Standalone::new(&target.redis, &target.slot);
    if let Err(error) = node.connect().await {
        return Err(failed(target, &error).await);
    }
    let parsed = patterns.iter().map(|text| Pattern::parse(text.as_bytes())).collect();
    let mut pass = Pass::new(parsed);
    pass.dry_run = dry_run;
    let mut pace = Pace::new(target.sweep.max_stall, target.sweep.max_load);
    let (mut shown, mut removed) = (Shown::default(), 0);
    let each_page = |progress: &Progress| {
        shown.update(progress);
        removed = progress.removed.iter().sum();
    };
    let outcome = pass.run(&node, &mut pace, each_page).await;
    shown.clear();
    let progress = match outcome {
        Ok(progress) => progress,
        Err(error) => {
            if !dry_run {
                told.print(&format!("{} removed before it failed\n", counted(removed, "key")));
            }
            return Err(failed(target, &error).await);
        }
    };
    let place = if target.redis.is_alone { String::new() } else { target.redis.title() + ": " };
    told.print(&swept(&place, patterns, &progress, dry_run));
    if progress.is_refused() {
        let message = "redis refused to remove some of the keys: NOPERM".to_owned();
        return Err(failed(target, &Error::new(Kind::NoPerm, message)).await);
    }
    Ok(())
}

/// The failure of a pass; where Redis lets the user do too little, with what lets him.
async fn failed(target: &Target, error: &Error) -> Failure {
    let hint = error.hint().map(str::to_owned);
    let told = match error.kind() {
        Kind::NoPerm | Kind::Auth | Kind::Other => preflight::lets_redis(target).await,
        _ => None,
    };
    let failure = halted(error).with_hint(told.or(hint));
    if target.redis.is_alone { failure } else { failure.of(&target.redis.title()) }
}

/// Says what a pass by hand came to; of several patterns each, too.
fn swept(place: &str, patterns: &[&str], progress: &Progress, dry_run: bool) -> String {
    let mut lines = String::new();
    let each = patterns.iter().zip(&progress.matched_by).zip(&progress.removed);
    for ((pattern, matched), removed) in each.filter(|_| patterns.len() > 1) {
        let matched = format!("`{pattern}`: {} matched", counted(*matched, "key"));
        let removed = if dry_run { String::new() } else { format!(", {removed} removed") };
        lines.push_str(&format!("{place}{matched}{removed}\n"));
    }
    let removed: u64 = progress.removed.iter().sum();
    let done = if dry_run { "nothing removed".to_owned() } else { format!("{removed} removed") };
    format!("{lines}{place}{} matched, {done}\n", counted(progress.matched, "key"))
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
