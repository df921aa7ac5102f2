//! `walsweep coverage`: the keys that are in Redis, against the rules. It reads names alone, by
//! SCAN at the pace of a pass, and changes nothing.

mod families;
mod show;

use std::cell::RefCell;
use std::io::{IsTerminal, Write, stderr};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use self::families::{Families, Family};
use super::explain::Shown;
use super::failure::{Failure, halted, print};
use super::load::configuration;
use crate::config::{Mode, Target};
use crate::keys::{Pattern, Rules};
use crate::preflight;
use crate::sweep::redis::connect;
use crate::sweep::{
    Cluster, Error, Node, Pace, Page, Pass, Primary, Removes, ScanCall, Scanned, Standalone,
};

/// Families that no rule reaches, beyond which only their number is told.
const FAMILIES_MAX: usize = 200;

/// Keys between two updates of the line of progress.
const STEP: u64 = 50_000;

/// The coverage of the keys of one target.
#[derive(Debug, Serialize)]
struct Coverage {
    /// The target's name.
    target: String,
    /// How messages name it.
    #[serde(skip)]
    title: String,
    /// The text that its keys begin with.
    prefix: String,
    /// Keys that begin with its prefix, without those of walsweep.
    keys: u64,
    /// The cost of a pass, of each server for which it matters.
    passes: Vec<String>,
    /// The key templates of rules, each with its keys.
    templates: Vec<Reach>,
    /// Keys that no rule reaches.
    unreached: u64,
    /// Their families, the largest first.
    families: Vec<Known>,
    /// How many more families there are.
    more_families: usize,
}

/// The keys that a template reaches.
#[derive(Debug, Serialize)]
struct Reach {
    rule: String,
    template: String,
    /// Keys that it could give, placeholders standing for anything; of fields the hashes, of tags
    /// the sets. One that several templates could give counts for each.
    keys: u64,
}

/// A family of keys, for people.
#[derive(Debug, Serialize)]
struct Known {
    family: String,
    keys: u64,
}

/// `walsweep coverage`.
///
/// # Errors
///
/// 78 for the configuration; 1 when a Redis cannot be asked.
pub async fn coverage(path: &Path, json: bool) -> Result<(), Failure> {
    let (config, rules) = configuration(path)?;
    let mut all = Vec::new();
    for target in config.targets() {
        all.push(of_target(&target, &rules).await?);
    }
    if json {
        let shown = serde_json::to_string_pretty(&all).expect("texts and numbers are JSON");
        return print(&format!("{shown}\n"));
    }
    let shown: Vec<String> = all.iter().map(Coverage::to_string).collect();
    print(&shown.join("\n"))
}

async fn of_target(target: &Target, rules: &Rules) -> Result<Coverage, Failure> {
    let Target { redis, slot, .. } = target;
    let seen = match redis.mode {
        Mode::Cluster { .. } => look(Cluster::new(redis, slot), target, rules).await,
        Mode::Standalone | Mode::Sentinel(_) => {
            look(Standalone::new(redis, slot), target, rules).await
        }
    };
    let seen = seen.map_err(|error| {
        let failure = halted(&error).with_hint(error.hint().map(str::to_owned));
        if redis.is_alone { failure } else { failure.of(&redis.title()) }
    })?;
    let families = seen.families.all();
    let shown = |Family { name, keys }: Family| Known { family: Shown(&name).to_string(), keys };
    Ok(Coverage {
        target: redis.name.clone(),
        title: redis.title(),
        prefix: redis.prefix.clone(),
        keys: seen.keys,
        passes: costs(target).await,
        templates: seen.templates.into_iter().map(|(reach, _)| reach).collect(),
        unreached: families.iter().map(|family| family.keys).sum(),
        more_families: families.len().saturating_sub(FAMILIES_MAX),
        families: families.into_iter().take(FAMILIES_MAX).map(shown).collect(),
    })
}

/// The cost of a pass, of each server of which it can be told.
async fn costs(target: &Target) -> Vec<String> {
    let mut costs = Vec::new();
    for server in preflight::redis_servers(target).await.unwrap_or_default() {
        if let Ok(mut connection) = connect::connect(&server.redis).await {
            let cost = preflight::pass_cost(&server, &mut connection).await;
            costs.extend(cost.map(|finding| finding.message));
        }
    }
    costs
}

/// Everything that was seen of a target's keys.
struct Seen {
    keys: u64,
    templates: Vec<(Reach, Pattern)>,
    /// Of the keys that no template reaches.
    families: Families,
}

impl Seen {
    fn page(&mut self, names: &[Vec<u8>]) {
        for name in names {
            let mut is_reached = false;
            for (reach, pattern) in &mut self.templates {
                if pattern.matches(name) {
                    reach.keys += 1;
                    is_reached = true;
                }
            }
            if !is_reached {
                self.families.add(name);
            }
        }
        let before = self.keys;
        self.keys += names.len() as u64;
        if before / STEP != self.keys / STEP && stderr().is_terminal() {
            drop(write!(stderr(), "\r{} keys scanned", self.keys));
        }
    }
}

/// Looks at all names of a target. A name that SCAN gives twice counts twice, which is rare.
async fn look<N: Node>(node: N, target: &Target, rules: &Rules) -> Result<Seen, Error> {
    node.connect().await?;
    let templates = rules.templates(target.redis.id).map(|(rule, template, pattern)| {
        let (rule, template) = (rule.to_owned(), template.to_owned());
        (Reach { rule, template, keys: 0 }, pattern)
    });
    let seen = Seen { keys: 0, templates: templates.collect(), families: Families::default() };
    let seen = RefCell::new(seen);
    let mut pass = Pass::new(vec![Pattern::parse(b"*")]);
    pass.dry_run = true;
    let mut pace = Pace::new(target.sweep.max_stall, target.sweep.max_load);
    let mut scanned = Scanned::default();
    // Once: what moves meanwhile is counted here or there.
    for primary in node.primaries(&mut scanned).await? {
        let heard = Heard { primary, seen: &seen };
        pass.run(&heard, &mut pace, |_| ()).await?;
    }
    let seen = seen.into_inner();
    if seen.keys >= STEP && stderr().is_terminal() {
        drop(write!(stderr(), "\r\x1b[K"));
    }
    Ok(seen)
}

/// A server whose names are heard of while it is scanned.
struct Heard<'a, P> {
    primary: P,
    seen: &'a RefCell<Seen>,
}

impl<P: Primary> Removes for Heard<'_, P> {
    async fn unlink(&self, groups: &[Vec<&[u8]>]) -> Result<Vec<Option<u64>>, Error> {
        Ok(vec![Some(0); groups.len()])
    }

    async fn fence(&self) -> Result<(), Error> {
        self.primary.fence().await
    }
}

impl<P: Primary> Primary for Heard<'_, P> {
    fn name(&self) -> &str {
        self.primary.name()
    }

    async fn scan(&self, call: &ScanCall<'_>) -> Result<Page, Error> {
        let page = self.primary.scan(call).await?;
        self.seen.borrow_mut().page(&page.keys);
        Ok(page)
    }

    async fn ping(&self) -> Result<(), Error> {
        self.primary.ping().await
    }

    async fn scan_time(&self) -> Result<Option<Duration>, Error> {
        self.primary.scan_time().await
    }
}
