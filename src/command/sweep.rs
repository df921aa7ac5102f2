//! `walsweep sweep`: keys that match are removed by hand.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::{IsTerminal, Write, stderr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::explain::Shown;
use super::failure::{Failure, Told, halted};
use super::load::configuration;
use crate::config::{Config, Mode, Target};
use crate::keys::Pattern;
use crate::preflight;
use crate::sweep::{Cluster, Error, Kind, Node, Pace, Paces, Pass, Progress, Standalone};
use crate::telemetry::trail::note_by_hand;
use crate::words::counted;

/// The advice where the user has every right that `walsweep check` tells of.
const BEYOND_RULES: &str = "the user in `redis.url` has every right that the rules need, and some \
                            of these keys are of no rule: `acl setuser USER ~KEY` in `redis-cli` \
                            gives him the right to them, too";

/// `walsweep sweep`, without removing anything in a `dry_run`. What no rule covers may be sessions
/// or locks of somebody else: it goes by `force` alone.
///
/// # Errors
///
/// 78 for the configuration; 1 when Redis fails, or for a pattern that no rule covers. What was
/// removed until then stays removed.
pub async fn sweep(
    path: &Path,
    patterns: &[OsString],
    (dry_run, force): (bool, bool),
    only: Option<&str>,
) -> Result<(), Failure> {
    let (config, rules) = configuration(path)?;
    let targets = chosen(&config, only)?;
    let patterns: Vec<Pattern> =
        patterns.iter().map(|bytes| Pattern::parse(bytes.as_bytes())).collect();
    let covers = |pattern: &Pattern, target: &Target| rules.covers(pattern, target.redis.id);
    let is_foreign = |pattern: &&Pattern| !targets.iter().any(|target| covers(pattern, target));
    let foreign: Vec<String> = patterns.iter().filter(is_foreign).map(shown).collect();
    if !(dry_run || force || foreign.is_empty()) {
        let message = format!("nothing removed: no rule covers all of `{}`", foreign.join("`, `"));
        let hint = "`--dry-run` counts what matches; `--force` removes it, whoever it belongs to";
        let prefixed = targets.iter().find(|target| !target.redis.prefix.is_empty());
        let prefix = prefixed.map(|target| {
            let (title, prefix) = (target.redis.title(), &target.redis.prefix);
            format!("; leave `{prefix}` out, which is put before every pattern in {title}")
        });
        return Err(
            Failure::halted(message).with_hint(Some(hint.to_owned() + &prefix.unwrap_or_default()))
        );
    }
    let (mut told, mut failure) = (Told::default(), None);
    for target in &targets {
        let is_for = |pattern: &&Pattern| dry_run || force || covers(pattern, target);
        let patterns: Vec<Pattern> = patterns.iter().filter(is_for).cloned().collect();
        if !patterns.is_empty() {
            let outcome = sweep_target(target, &patterns, dry_run, &mut told).await;
            if let (Ok(removed), false) = (&outcome, dry_run) {
                note(&config, target, &patterns, *removed);
            }
            failure = failure.or(outcome.err());
        }
    }
    if dry_run && !foreign.is_empty() {
        let foreign = foreign.join("`, `");
        told.print(&format!("no rule covers all of `{foreign}`: to remove it takes `--force`\n"));
    }
    failure.map_or_else(|| told.end(), Err)
}

/// Notes a sweep in the audit trail, if there is one.
fn note(config: &Config, target: &Target, patterns: &[Pattern], removed: u64) {
    let Some(file) = &config.audit.file else { return };
    let patterns: Vec<&[u8]> = patterns.iter().map(Pattern::as_bytes).collect();
    if let Err(error) = note_by_hand(file, &target.redis.name, &patterns, removed) {
        let file = file.display();
        drop(writeln!(stderr(), "not noted in the audit trail `{file}`: {error}"));
    }
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
    patterns: &[Pattern],
    dry_run: bool,
    told: &mut Told,
) -> Result<u64, Failure> {
    let Target { redis, slot, .. } = target;
    match redis.mode {
        Mode::Cluster { .. } => {
            sweep_node(Cluster::new(redis, slot), (target, patterns), dry_run, told).await
        }
        Mode::Standalone | Mode::Sentinel(_) => {
            sweep_node(Standalone::new(redis, slot), (target, patterns), dry_run, told).await
        }
    }
}

async fn sweep_node<N: Node>(
    node: N,
    (target, patterns): (&Target, &[Pattern]),
    dry_run: bool,
    told: &mut Told,
) -> Result<u64, Failure> {
    if let Err(error) = node.connect().await {
        return Err(failed(target, &error).await);
    }
    let mut pass = Pass::new(patterns.to_vec());
    pass.dry_run = dry_run;
    let pace = Pace::new(target.sweep.max_stall, target.sweep.max_load);
    let counter = RefCell::new(Counter::default());
    // Of each server by itself: what it had done when it was heard of last.
    let watch = |_server: &str| {
        let (mut before, counter) = (Counts::default(), &counter);
        move |progress: &Progress| {
            let now = Counts::of(progress);
            counter.borrow_mut().update(now.since(before));
            before = now;
        }
    };
    let outcome = pass.over(&node, &mut Paces::new(pace), watch).await;
    let counter = counter.into_inner();
    counter.clear();
    let progress = match outcome {
        Ok(progress) => progress,
        Err(error) => {
            if !dry_run {
                let removed = counted(counter.all.removed, "key");
                told.print(&format!("{removed} removed before it failed\n"));
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
    Ok(progress.removed.iter().sum())
}

/// The failure of a pass; where Redis lets the user do too little, with what lets him.
async fn failed(target: &Target, error: &Error) -> Failure {
    let hint = match error.kind() {
        Kind::NoPerm => Some(BEYOND_RULES.to_owned()),
        _ => error.hint().map(str::to_owned),
    };
    let told = match error.kind() {
        Kind::NoPerm | Kind::Auth | Kind::Other => preflight::lets_redis(target).await,
        _ => None,
    };
    let failure = halted(error).with_hint(told.or(hint));
    if target.redis.is_alone { failure } else { failure.of(&target.redis.title()) }
}

/// Says what a pass by hand came to; of several patterns each, too.
fn swept(place: &str, patterns: &[Pattern], progress: &Progress, dry_run: bool) -> String {
    let mut lines = String::new();
    let each = patterns.iter().zip(&progress.matched_by).zip(&progress.removed);
    for ((pattern, matched), removed) in each.filter(|_| patterns.len() > 1) {
        let matched = format!("`{}`: {} matched", shown(pattern), counted(*matched, "key"));
        let removed = if dry_run { String::new() } else { format!(", {removed} removed") };
        lines.push_str(&format!("{place}{matched}{removed}\n"));
    }
    let removed: u64 = progress.removed.iter().sum();
    let done = if dry_run { "nothing removed".to_owned() } else { format!("{removed} removed") };
    format!("{lines}{place}{} matched, {done}\n", counted(progress.matched, "key"))
}

/// A pattern for people.
fn shown(pattern: &Pattern) -> String {
    Shown(pattern.as_bytes()).to_string()
}

/// Counts of keys.
#[derive(Clone, Copy, Default)]
struct Counts {
    scanned: u64,
    matched: u64,
    removed: u64,
}

impl Counts {
    fn of(progress: &Progress) -> Counts {
        let Progress { scanned, matched, ref removed, .. } = *progress;
        Counts { scanned, matched, removed: removed.iter().sum() }
    }

    fn since(self, before: Counts) -> Counts {
        Counts {
            scanned: self.scanned - before.scanned,
            matched: self.matched - before.matched,
            removed: self.removed - before.removed,
        }
    }
}

/// A line of progress, for a person who watches.
#[derive(Default)]
struct Counter {
    at: u64,
    all: Counts,
}

impl Counter {
    /// Keys between two updates of the line.
    const STEP: u64 = 50_000;

    fn update(&mut self, more: Counts) {
        self.all.scanned += more.scanned;
        self.all.matched += more.matched;
        self.all.removed += more.removed;
        let Counts { scanned, matched, .. } = self.all;
        if scanned >= self.at + Counter::STEP && stderr().is_terminal() {
            self.at = scanned;
            drop(write!(stderr(), "\r{scanned} keys scanned, {matched} matched"));
        }
    }

    fn clear(&self) {
        if self.at > 0 {
            drop(write!(stderr(), "\r\x1b[K"));
        }
    }
}
