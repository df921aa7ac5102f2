//! The watch while the stream runs: what was judged before the start is judged again.
//!
//! Two things end the session, and the next one begins with the checks and a sweep of the keys that
//! are in doubt by it: tables of the rules read otherwise than before ([`shape`](super::shape),
//! [`Prints::since`]), or other rules fit. The next session suspends the rules that do not fit. So
//! a rule is suspended, and taken up again, in one way only, at the beginning of a session, and
//! with a sweep. What changes and puts no key in doubt ends nothing.
//!
//! Most of the time only one thing is asked: whether any transaction wrote to the catalog since the
//! last look ([`catalog_changes`](crate::source::catalog_changes)). One that did may have granted
//! or revoked what lookups need, so they are tried again then.
//!
//! No question here locks a table, or waits for one; but lookups, which are tried on a session of
//! their own and never wait long. What cannot be asked is said, and asked again: a watch that fails
//! ends nothing, only a dead connection does. What is altered meanwhile nobody sees, so that after
//! a minute it is not ready.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::watch::Sender;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;

use crate::config::Config;
use crate::keys::{LookupId, RuleId, Rules};
use crate::postgres::{Sql, connect_sql};
use crate::preflight::{self, Code, Finding, Misfit, Trial};
use crate::source::Error;
use crate::source::catalog_changes::CatalogChanges;
use crate::source::shape::Watched;
use crate::sweep::{Doubt, Gap, Prints, Why};
use crate::telemetry::{Cure, Health, Topic};

/// The shortest and the longest pause between two looks at the tables: so soon a table without
/// changes is noticed.
const PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));

/// How many times as long as a look the pause after it is, between these two: the server looks
/// after very many tables for a part of its time only. The first where somebody looked whether the
/// catalog has changed, a hundredth; the second where it had.
const PAUSE_FACTORS: (u32, u32) = (100, 20);

/// A look that takes longer means that the connection is dead: the server gives up each of its some
/// eight questions long before (`sql/watch_state.sql`).
const TIMEOUT: Duration = Duration::from_secs(60);

/// How often lookups are tried, and how often while one of them cannot be, or does not work; so
/// long after the catalog was written to, too.
const TRIAL_INTERVALS: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(2));

/// `application_name` of the session that tries lookups.
const TRIAL_NAME: &str = "walsweep trial";

/// Everything that the session began with.
pub struct Watch {
    /// Asks nothing else.
    sql: Rc<Sql>,
    watched: Watched,
    prints: Prints,
    misfits: BTreeSet<Misfit>,
    /// The rules, to be asked while others work with them.
    rules: Rules,
    /// Findings of the trials of lookups.
    of_lookups: Vec<Finding>,
}

/// The outcome of earlier looks, in short: a question for the whole is needed only if it is
/// another.
#[derive(Default)]
struct Known {
    changes: CatalogChanges,
    shape: Option<String>,
    judged: Option<String>,
}

/// The times that the latest questions of one kind took. The least of them is what one costs: on a
/// busy server each waits for a processor besides, and they must not be rare for that.
#[derive(Default)]
struct Costs(VecDeque<Duration>);

impl Costs {
    /// How many are remembered.
    const COUNT: usize = 8;

    /// Adds one; gives the least.
    fn least(&mut self, took: Duration) -> Duration {
        self.0.push_back(took);
        if self.0.len() > Costs::COUNT {
            self.0.pop_front();
        }
        self.0.iter().min().copied().unwrap_or(took)
    }
}

/// How far a look went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Nobody wrote anything.
    Moment,
    /// Somebody did, and the catalog has not changed.
    Catalog,
    /// The tables were looked at.
    Tables,
    /// It failed on the way.
    Failed,
}

/// How soon the tables are looked at again.
#[derive(Default)]
struct Pace {
    of_catalog: Costs,
    of_tables: Costs,
}

impl Pace {
    /// The pause after a look that took so long. One that failed is no measure of others: the next
    /// may wait as long for the same lock.
    fn pause(&mut self, reach: Reach, took: Duration) -> Duration {
        let pause = match reach {
            Reach::Moment => PAUSES.0,
            Reach::Catalog => self.of_catalog.least(took) * PAUSE_FACTORS.0,
            Reach::Tables => self.of_tables.least(took) * PAUSE_FACTORS.1,
            Reach::Failed => took * PAUSE_FACTORS.1,
        };
        pause.clamp(PAUSES.0, PAUSES.1)
    }
}

/// How long to wait with the next trial of the lookups after the catalog was written to, when the
/// last one took so long.
fn rest(trials: &mut Costs, took: Duration) -> Duration {
    (trials.least(took) * PAUSE_FACTORS.1).max(TRIAL_INTERVALS.1)
}

/// The outcome of a look.
enum Looked {
    /// Nobody has written to the catalog.
    Unchanged,
    /// Nothing that was written puts a key in doubt.
    Alike,
    /// The keys that are in doubt.
    Doubt(Doubt),
}

impl Watch {
    /// Watches over `sql` whether what is `watched` stays as in `prints`, and what `findings` say
    /// of rules.
    #[must_use]
    pub fn new(
        sql: Rc<Sql>,
        (watched, prints): (Watched, Prints),
        findings: &[Finding],
        rules: &Rules,
    ) -> Watch {
        let of_lookups = findings.iter().filter(|one| one.code.is_of_lookup());
        let (of_lookups, misfits) = (of_lookups.cloned().collect(), preflight::misfits(findings));
        Watch { sql, watched, prints, misfits, rules: rules.clone(), of_lookups }
    }

    /// Looks until something is no longer as it was at the beginning, and says so; tells `health`
    /// of what it cannot look at, and of what the next session would be refused for. What changes
    /// and puts no key in doubt is sent to `adopt`.
    pub async fn run(self, config: &Config, health: &Health, adopt: &Sender<Rc<Prints>>) -> Error {
        let Watch { sql, watched, prints, misfits, rules, of_lookups } = self;
        let misfits = misfits.into_iter().filter(|(_, code)| !code.is_of_lookup());
        let (watched, rules, misfits) = (&watched, &rules, misfits.collect());
        let (client, of_lookups): (&Client, _) = (&sql, of_lookups.as_slice());
        let written = &Notify::new();
        let tables = Tables { config, client, health, watched, rules, of_lookups, adopt, written };
        tokio::select! {
            error = tables.run(prints, &misfits) => error,
            error = try_lookups((config, rules), health, of_lookups, written) => error,
        }
    }
}

/// The watch on tables, publication and role.
struct Tables<'a> {
    config: &'a Config,
    client: &'a Client,
    health: &'a Health,
    watched: &'a Watched,
    rules: &'a Rules,
    of_lookups: &'a [Finding],
    adopt: &'a Sender<Rc<Prints>>,
    /// Told when somebody wrote to the catalog.
    written: &'a Notify,
}

impl Tables<'_> {
    async fn run(&self, mut prints: Prints, misfits: &BTreeSet<Misfit>) -> Error {
        let (mut known, mut pause) = (Known::default(), PAUSES.0);
        let mut pace = Pace::default();
        loop {
            sleep(pause).await;
            let began = Instant::now();
            let mut reach = Reach::Failed;
            match timeout(TIMEOUT, self.look(&mut known, &mut prints, misfits)).await {
                Ok(Ok(Looked::Unchanged)) => {
                    let has_read = known.changes.has_read();
                    reach = if has_read { Reach::Catalog } else { Reach::Moment };
                    self.health.over(&Topic::Watch);
                }
                Ok(Ok(Looked::Alike)) => {
                    reach = Reach::Tables;
                    self.health.over(&Topic::Watch);
                }
                Ok(Ok(Looked::Doubt(doubt))) => return Error::TablesChanged(doubt),
                Ok(Err(preflight::Error::Query(error))) if error.as_db_error().is_none() => {
                    return error.into();
                }
                Ok(Err(error)) => {
                    let text = format!(
                        "whether the rules still fit their tables cannot be asked: {error}"
                    );
                    let hint = "it is asked again; what changes meanwhile is noticed then. See who \
                                holds locks on the catalog, and what keeps the server busy";
                    self.health.trouble(Topic::Watch, &text, Some(hint));
                }
                Err(_elapsed) => return Error::Silent(TIMEOUT.as_secs()),
            }
            pause = pace.pause(reach, began.elapsed());
        }
    }

    /// Finds what is in doubt, unless all is as it was. A short answer that is asked for before the
    /// whole one can never pass for a later state.
    async fn look(
        &self,
        known: &mut Known,
        prints: &mut Prints,
        misfits: &BTreeSet<Misfit>,
    ) -> Result<Looked, preflight::Error> {
        let Some(seen) = known.changes.since(self.client).await? else {
            return Ok(Looked::Unchanged);
        };
        self.written.notify_one();
        let short = self.watched.digest(self.client).await?;
        if known.shape.as_ref() != Some(&short) {
            let now = self.watched.look(self.client).await?;
            let now = prints.with_tables(now.into_tables());
            let doubt = now.since(prints, Gap::Look);
            if !doubt.is_none() {
                return Ok(Looked::Doubt(doubt));
            }
            if now != *prints {
                *prints = now;
                self.adopt.send_replace(Rc::new(prints.clone()));
            }
            known.shape = Some(short);
        }
        let short = preflight::digest(self.config, self.rules, self.client).await?;
        if known.judged.as_ref() != Some(&short) {
            let findings = preflight::again(self.config, self.rules, self.client).await?;
            let found = preflight::misfits(&findings);
            if found != *misfits {
                return Ok(Looked::Doubt(other_fit(self.rules, misfits, &found)));
            }
            self.tell(findings);
            known.judged = Some(short);
        }
        known.changes.keep(seen);
        Ok(Looked::Alike)
    }

    /// Tells what does not end the session: a rule that removes more than it should, and what
    /// stands against another session.
    fn tell(&self, mut findings: Vec<Finding>) {
        findings.extend_from_slice(self.of_lookups);
        tell_rules(self.rules, &findings, self.health);
        match findings.iter().find(|finding| finding.stops_everything()) {
            Some(finding) => {
                let text = format!("the next session would be refused: {}", finding.message);
                self.health.trouble_with(Topic::Checks, &text, finding.advice());
            }
            None => self.health.over(&Topic::Checks),
        }
    }
}

/// The keys of the rules that fitted, and do not, or the other way round.
fn other_fit(rules: &Rules, before: &BTreeSet<Misfit>, now: &BTreeSet<Misfit>) -> Doubt {
    let names = |misfits: &BTreeSet<Misfit>| -> BTreeSet<String> {
        misfits.iter().map(|(rule, _)| rule.clone()).collect()
    };
    let (before, now) = (names(before), names(now));
    let prints = rules.prints(&now);
    let mut doubt = BTreeMap::new();
    for ((id, name), print) in (0..=u16::MAX).map(RuleId).zip(rules.names()).zip(&prints) {
        let why = match (before.contains(name), now.contains(name)) {
            (false, true) => Why::Suspended,
            (true, false) => Why::WasSuspended,
            _ => continue,
        };
        doubt.extend((0..print.keys.len()).map(|place| ((id, place), why.clone())));
    }
    Doubt::Keys(doubt)
}

/// Tries the lookups until other rules fit than before.
async fn try_lookups(
    (config, rules): (&Config, &Rules),
    health: &Health,
    before: &[Finding],
    written: &Notify,
) -> Error {
    if rules.lookups().is_empty() {
        return std::future::pending().await;
    }
    let misfits = preflight::misfits(before);
    let mut doubts = before.iter().any(|finding| finding.code == Code::LookupLocked);
    // Whoever is in the way is told at once.
    let mut pause = if doubts { Duration::ZERO } else { TRIAL_INTERVALS.1 };
    let (mut resting, mut costs) = (TRIAL_INTERVALS.1, Costs::default());
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            // A change of the tables often comes in steps, and the last of them counts.
            () = async { written.notified().await; sleep(resting).await } => {}
        }
        let began = Instant::now();
        match timeout(TIMEOUT, trials(config, rules)).await {
            Ok(Ok(trials)) => {
                resting = rest(&mut costs, began.elapsed());
                doubts = tell_doubts(rules, &trials, health);
                let found = found(rules, &trials, &misfits);
                if found != misfits {
                    return Error::TablesChanged(other_fit(rules, &misfits, &found));
                }
            }
            // Those that need rows find out for themselves, and widen.
            Ok(Err(error)) => tracing::debug!(%error, "lookups were not tried"),
            Err(_elapsed) => tracing::debug!("lookups were not tried in time"),
        }
        let is_unwell = doubts || !misfits.is_empty();
        pause = if is_unwell { TRIAL_INTERVALS.1 } else { TRIAL_INTERVALS.0 };
    }
}

/// A session of its own: a trial is a transaction, and sees the role's own settings.
async fn trials(config: &Config, rules: &Rules) -> Result<Vec<Trial>, Error> {
    let sql = connect_sql(&config.postgres.endpoint, TRIAL_NAME).await?;
    let trials = preflight::trials(config, rules, &sql).await?;
    sql.close().await;
    Ok(trials)
}

/// Says which lookups could not be tried; whether there are any.
fn tell_doubts(rules: &Rules, trials: &[Trial], health: &Health) -> bool {
    let mut doubts = false;
    for (lookup, trial) in rules.lookups().iter().zip(trials) {
        // That it can be tried says nothing of the rows that it fails for.
        let topic = Topic::Untried(lookup.name.as_str().into());
        match trial {
            Trial::Locked(finding) => {
                health.trouble(topic, &finding.message, finding.hint.as_deref());
                doubts = true;
            }
            Trial::Tried(_) => health.over(&topic),
        }
    }
    doubts
}

/// The rules that do not fit; of a lookup that could not be tried those that did not before.
fn found(rules: &Rules, trials: &[Trial], before: &BTreeSet<Misfit>) -> BTreeSet<Misfit> {
    let of_lookup = |(id, trial): (LookupId, &Trial)| -> BTreeSet<Misfit> {
        match trial {
            Trial::Tried(finding) => preflight::misfits(finding.as_slice()),
            Trial::Locked(_) => {
                let is_of = |rule: &str| rules.rules_of_lookup(id).any(|one| one == rule);
                before.iter().filter(|(rule, _)| is_of(rule)).cloned().collect()
            }
        }
    };
    (0..=u16::MAX).map(LookupId).zip(trials).flat_map(of_lookup).collect()
}

/// Gives the rules that do not fit, by name: they are suspended.
#[must_use]
pub fn suspended(findings: &[Finding]) -> BTreeSet<String> {
    findings.iter().flat_map(Finding::suspends).map(str::to_owned).collect()
}

/// Tells of each rule that does not fit, and no more of those that do.
pub fn tell_rules(rules: &Rules, findings: &[Finding], health: &Health) {
    let mut unfit = Vec::new();
    for name in rules.names() {
        let suspends = |finding: &&Finding| finding.suspends().any(|rule| rule == name);
        let concerns = |finding: &&Finding| finding.concerns().any(|rule| rule == name);
        let is_suspended = findings.iter().any(|finding| suspends(&finding));
        health.metrics().rule_suspended(name, is_suspended);
        let cause = findings.iter().find(suspends).or_else(|| findings.iter().find(concerns));
        let Some(cause) = cause else { continue };
        let what = if is_suspended { "is suspended" } else { "goes on" };
        let more = match findings.iter().filter(concerns).count() - 1 {
            0 => String::new(),
            more => format!("; and {more} more, see `walsweep check`"),
        };
        let (name_of, message) = (name.as_str().into(), &cause.message);
        let topic = if is_suspended { Topic::Rule(name_of) } else { Topic::Wide(name_of) };
        let text = format!("rule `{name}` {what}: {message}{more}");
        let unpublished = |finding: &Finding| finding.code == Code::TableNotPublished;
        let is_unpublished = findings.iter().filter(concerns).any(unpublished);
        health.trouble_with(topic.clone(), &text, cure(cause, is_unpublished));
        unfit.push(topic);
    }
    health.over_but(|topic| matches!(topic, Topic::Rule(_) | Topic::Wide(_)), &unfit);
}

/// The cure of a finding, for a person. A table that is not published may be one whose rule was
/// taken out of the configuration, as `setup` read it.
fn cure(finding: &Finding, is_unpublished: bool) -> Cure {
    let cure = finding.advice();
    let reload = "if the configuration no longer has the rule, `walsweep reload`";
    match cure.hint {
        Some(hint) if is_unpublished => Cure { hint: Some(format!("{hint}; {reload}")), ..cure },
        None if is_unpublished => Cure { hint: Some(reload.to_owned()), ..cure },
        hint => Cure { hint, ..cure },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Costs, PAUSES, Pace, Reach, TRIAL_INTERVALS, rest};

    const SHORT: Duration = Duration::from_millis(5);
    const LONG: Duration = Duration::from_millis(400);

    /// Most looks at a busy server wait for a processor: one of eight that does not tells the cost.
    #[test]
    fn looks_that_wait_for_a_processor_do_not_make_the_next_ones_rare() {
        for reach in [Reach::Catalog, Reach::Tables] {
            let mut pace = Pace::default();
            assert!(pace.pause(reach, LONG) > PAUSES.0 * 3, "{reach:?}");
            for _ in 0..3 {
                assert_eq!(pace.pause(reach, SHORT), PAUSES.0, "{reach:?}");
                for number in 0..7 {
                    assert_eq!(pace.pause(reach, LONG), PAUSES.0, "{reach:?} {number}");
                }
            }
            assert!(pace.pause(reach, LONG) > PAUSES.0 * 3, "{reach:?}: what all eight took");
        }
    }

    /// A look that finds nothing new is no measure of one that has to look at the tables, and
    /// neither is of one that gave up.
    #[test]
    fn each_kind_of_look_has_a_cost_of_its_own() {
        let mut pace = Pace::default();
        let long = Duration::from_secs(8);
        assert_eq!(pace.pause(Reach::Moment, LONG), PAUSES.0);
        assert_eq!(pace.pause(Reach::Tables, LONG), long);
        pace.pause(Reach::Catalog, SHORT);
        assert_eq!(pace.pause(Reach::Tables, LONG), long);
        pace.pause(Reach::Tables, SHORT);
        assert_eq!(pace.pause(Reach::Failed, LONG), long);
        assert_eq!(pace.pause(Reach::Failed, SHORT), PAUSES.0);
        assert_eq!(pace.pause(Reach::Catalog, LONG), PAUSES.0);
    }

    #[test]
    fn trials_that_wait_for_a_processor_do_not_make_the_next_ones_late() {
        let mut costs = Costs::default();
        assert_eq!(rest(&mut costs, LONG), Duration::from_secs(8));
        assert_eq!(rest(&mut costs, SHORT), TRIAL_INTERVALS.1);
        for _ in 0..7 {
            assert_eq!(rest(&mut costs, LONG), TRIAL_INTERVALS.1);
        }
        assert_eq!(rest(&mut costs, LONG), Duration::from_secs(8), "what all eight took");
    }
}
