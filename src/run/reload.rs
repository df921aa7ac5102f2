//! A new configuration while the program runs: read, judged, and taken over between two sessions.
//!
//! The old one works on while the new one is judged, and when it is refused. Judged is all that a
//! start would refuse: the file, the Redis servers, the database. A rule that a start would suspend
//! is refused, too, unless it is suspended now: the old rules do not stand still for it. With that
//! the next session is prepared: its connections are there and its checks are made before the old
//! session ends. Then that one ends in good order, and the next begins at the position that was
//! confirmed. The watermark tells under which rules it was written, so that the next session sweeps
//! what the new rules newly cover, and nothing else.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use crate::config::{Config, Difference, How, Subject, differences, place};
use crate::file;
use crate::keys::{Given, RulePrint, Rules};
use crate::preflight::{self, Finding};
use crate::run::error::{Error, Verdict};
use crate::run::redis_checks;
use crate::run::session::{Prepared, Session};
use crate::run::shutdown::Farewell;
use crate::telemetry::metrics::OutcomeLabel;
use crate::telemetry::reloads::Outcome;
use crate::telemetry::{Health, Topic};

/// The file is read twice, so long apart, and has to say the same: one that is being written may be
/// valid half way.
const SETTLING: Duration = Duration::from_millis(100);

/// How long a session with Postgres is waited for that finishes keys of the old configuration,
/// beside the time that it has for it.
const SESSION_MAX: Duration = Duration::from_secs(60);

/// How often that is tried.
const READS_MAX: u32 = 20;

/// How long the file, and what it names, may take to be read and compiled.
const READ_MAX: Duration = Duration::from_secs(15);

/// The words for keys that were not removed before their rules went.
const LEFT_KEYS: &str = "there was no session with postgres to finish keys of the old \
                         configuration: those that only it gives may stay";
const LEFT_KEYS_HINT: &str = "`walsweep sweep --force PATTERN` removes them";

/// A configuration, as it was read.
pub struct Setting {
    /// The configuration.
    pub config: Config,
    /// Its rules, compiled.
    pub rules: Rules,
    /// The text of the file.
    pub text: String,
}

/// Reads the configuration file; of one that is invalid it gives each problem as a line.
pub type Load = Arc<dyn Fn() -> Result<Setting, Vec<String>> + Send + Sync>;

/// A configuration that was judged, and is to be taken over.
pub(super) struct Change {
    pub(super) setting: Rc<Setting>,
    /// The next session, if it could be prepared.
    pub(super) prepared: Option<Prepared>,
    pub(super) differences: Vec<Difference>,
}

/// The place where the program and its reloads tell each other what they know.
pub struct Handover {
    next: RefCell<Option<Change>>,
    wish: watch::Sender<Option<Farewell>>,
    /// When the latest configuration was there to be taken.
    given_at: Cell<Option<Instant>>,
    /// The configuration that the program runs with.
    present: RefCell<Rc<Setting>>,
    /// Whether a session ever began, and whether one stands.
    is_established: Cell<bool>,
    pub(super) stands: Cell<bool>,
    /// The server of the latest session.
    system_id: RefCell<Option<String>>,
    /// The rules that were suspended when it began.
    suspended: RefCell<BTreeSet<String>>,
    /// Whether the configuration that was taken last came before the keys of the old one were
    /// removed.
    left_keys: Cell<bool>,
}

impl Handover {
    /// Begins with this configuration.
    #[must_use]
    pub fn new(setting: Setting) -> Handover {
        Handover {
            next: RefCell::default(),
            wish: watch::Sender::new(None),
            given_at: Cell::new(None),
            present: RefCell::new(Rc::new(setting)),
            is_established: Cell::new(false),
            stands: Cell::new(false),
            system_id: RefCell::default(),
            suspended: RefCell::default(),
            left_keys: Cell::new(false),
        }
    }

    /// Gives the configuration that is in force.
    #[must_use]
    pub fn present(&self) -> Rc<Setting> {
        Rc::clone(&self.present.borrow())
    }

    /// Tells when a session is to end for a new configuration, and how.
    pub(super) fn wish(&self) -> watch::Receiver<Option<Farewell>> {
        self.wish.subscribe()
    }

    /// A session begins.
    pub(super) fn begins(&self, session: &Session) {
        self.is_established.set(true);
        self.stands.set(true);
        self.system_id.replace(Some(session.expected.system_id.clone()));
        self.suspended.replace(session.suspended.clone());
    }

    /// Whether the old configuration has keys to finish first, and no session of it has: what it
    /// received comes again to the next one, and the new rules do not give those keys.
    pub(super) fn is_owed(&self, is_finished: bool) -> bool {
        let wish = *self.wish.borrow();
        let Some(Farewell::Confirmed(limit)) = wish.filter(|_| self.is_established.get()) else {
            return false;
        };
        !is_finished && self.given_at.get().is_none_or(|at| at.elapsed() < limit + SESSION_MAX)
    }

    /// Takes the new configuration, if there is one: it is in force from now on. Of one that is
    /// taken although no session of the old one `is_finished` with its keys, that is said.
    pub(super) fn take(&self, is_finished: bool) -> Option<Change> {
        let change = self.next.take()?;
        let is_owed = matches!(*self.wish.borrow(), Some(Farewell::Confirmed(_)));
        let left_keys = is_owed && !is_finished && self.is_established.get();
        if left_keys {
            tracing::warn!(hint = LEFT_KEYS_HINT, "{LEFT_KEYS}");
        }
        self.left_keys.set(left_keys);
        self.present.replace(Rc::clone(&change.setting));
        self.wish.send_replace(None);
        Some(change)
    }

    /// Lets the program take a new configuration, and waits until it has.
    async fn give(&self, change: Change, farewell: Farewell) {
        self.next.replace(Some(change));
        self.given_at.set(Some(Instant::now()));
        self.wish.send_replace(Some(farewell));
        // The sender is this one: it does not end before.
        drop(self.wish.subscribe().wait_for(Option::is_none).await);
    }
}

/// Reads and judges new configurations.
pub struct Reloader {
    /// The file's path, for messages.
    pub file: Arc<str>,
    /// Reads the file.
    pub load: Load,
    /// Told when somebody asks for a reload; what comes during one makes another.
    pub asked: Arc<Notify>,
    /// Whether a rule that does not fit its table is refused, whatever it was before.
    pub is_strict: bool,
    /// Where what comes of it is told.
    pub health: Arc<Health>,
    /// Changes the log's level.
    pub log: Box<dyn Fn(&Config)>,
}

/// Why a configuration is not taken over.
struct Refused {
    /// The file itself is invalid.
    is_invalid: bool,
    /// Each problem.
    lines: Vec<String>,
}

impl Refused {
    fn because(line: String) -> Refused {
        Refused { is_invalid: false, lines: vec![line] }
    }
}

impl Reloader {
    /// Reloads whenever it is asked to.
    pub async fn run(self, handover: Rc<Handover>) -> Infallible {
        loop {
            self.asked.notified().await;
            self.reload(&handover).await;
        }
    }

    async fn reload(&self, handover: &Handover) {
        let reloads = self.health.reloads();
        reloads.begin();
        tracing::info!(file = &*self.file, "reading the configuration again");
        let began = Instant::now();
        let (outcome, is_invalid, lines) = match self.judge(handover).await {
            Ok(change) if change.differences.is_empty() => {
                let line = "the file says what it said before: nothing is changed".to_owned();
                (Outcome::Unchanged, false, vec![line])
            }
            Ok(change) => {
                let mut lines: Vec<String> =
                    change.differences.iter().map(ToString::to_string).collect();
                let before = handover.present();
                let farewell = farewell(&before, &change.setting, &change.differences);
                (self.log)(&change.setting.config);
                handover.give(change, farewell).await;
                if handover.left_keys.get() {
                    lines.push(format!("{LEFT_KEYS}\n  hint: {LEFT_KEYS_HINT}"));
                }
                (Outcome::Applied, false, lines)
            }
            Err(Refused { is_invalid, lines }) => (Outcome::Refused, is_invalid, lines),
        };
        self.tell(outcome, &lines, began.elapsed());
        reloads.end(outcome, is_invalid, lines);
    }

    fn tell(&self, outcome: Outcome, lines: &[String], took: Duration) {
        let metrics = self.health.metrics();
        let is_well = outcome != Outcome::Refused;
        let label = OutcomeLabel { outcome: outcome.as_str() };
        metrics.config_reloads.get_or_create(&label).inc();
        metrics.config_last_reload_successful.set(is_well.into());
        if is_well {
            metrics.config_last_reload_success.set(now_seconds());
            self.health.over(&Topic::Reload);
            let (what, took_ms) = (lines.join("; "), took.as_millis());
            tracing::info!(
                outcome = outcome.as_str(),
                took_ms,
                "the configuration is read: {what}"
            );
            return;
        }
        for line in lines {
            tracing::error!("the new configuration is refused: {line}");
        }
        // Until the file is mended, whoever looks has to see that it is not what is in force.
        let first = lines.first().and_then(|line| line.lines().next()).unwrap_or_default();
        let more = match lines.len() {
            0 | 1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        let text = format!(
            "the old configuration stays in force, for the new one is refused: {first}{more}"
        );
        let hint = "mend it and reload again; a restart would read it, too";
        self.health.trouble(Topic::Reload, &text, Some(hint));
    }

    /// Reads the file, and judges whatever a start would.
    async fn judge(&self, handover: &Handover) -> Result<Change, Refused> {
        let setting = self.read().await?;
        let before = handover.present();
        let differences = differences(&before.text, &setting.text);
        // Whatever can be known at once is told at once.
        let (mut lines, is_same_postgres) = self.needs_restart(&before, &setting, &differences);
        let config = setting.config.clone();
        for finding in self.apart(move || preflight::files(&config)).await?.findings() {
            tracing::warn!(hint = finding.hint, "{}", finding.message);
        }
        let is_changed = |target: &str| differences.iter().any(|one| is_of_target(one, target));
        let is_rule_changed = |rule: &str| differences.iter().any(|one| is_of_rule(one, rule));
        let checked = redis_checks::check(&setting.config, &self.health).await;
        lines.extend(self.shown(checked.refused_for((is_changed, is_rule_changed))));
        // What is found in another database, or beside another slot, says nothing of the restart.
        let prepared = match is_same_postgres {
            true => self.prepare(handover, &setting).await,
            false => Ok(None),
        };
        let prepared = prepared.unwrap_or_else(|more| {
            lines.extend(more);
            None
        });
        if let Some(prepared) = &prepared {
            lines.extend(self.other_server(handover, prepared));
            lines.extend(self.newly_suspended(
                handover,
                &setting,
                (&prepared.findings, &differences),
            ));
        }
        if !lines.is_empty() {
            return Err(Refused { is_invalid: false, lines });
        }
        Ok(Change { setting: Rc::new(setting), prepared, differences })
    }

    /// Reads the file once nobody writes it any more.
    async fn read(&self) -> Result<Setting, Refused> {
        let load = || {
            let load = Arc::clone(&self.load);
            self.apart(move || load())
        };
        let mut before = load().await?;
        for _ in 0..READS_MAX {
            sleep(SETTLING).await;
            let now = load().await?;
            let is_settled = match (&before, &now) {
                (Ok(before), Ok(now)) => before.text == now.text,
                (Err(before), Err(now)) => before == now,
                _ => false,
            };
            if is_settled {
                return now.map_err(|lines| Refused { is_invalid: true, lines });
            }
            before = now;
        }
        let line = format!("{}: it changes all the time: is it being written?", self.file);
        Err(Refused::because(line))
    }

    /// Does what reads files, or takes long with thousands of rules, beside the old configuration.
    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let done = file::apart(Path::new(&*self.file), READ_MAX, work).await;
        done.map_err(|error| {
            Refused::because(format!(
                "{}: read it and the files that it names: {error}\n  hint: see whether \
                 one is a pipe, or on a mount that does not answer",
                self.file
            ))
        })
    }

    /// Gives a line for each difference that needs a restart, and whether none of them is about
    /// Postgres.
    fn needs_restart(
        &self,
        before: &Setting,
        after: &Setting,
        differences: &[Difference],
    ) -> (Vec<String>, bool) {
        let at = |key: &str, why: &str| {
            let at = place(&after.text, key);
            format!("{}:{}:{}: {key}: {why}", self.file, at.line, at.column)
        };
        let keys: Vec<_> = differences.iter().filter_map(Difference::needs_restart).collect();
        let mut is_same_postgres = !keys.iter().any(|key| key.starts_with("postgres."));
        let why = "it is read at the start alone\n  hint: restart walsweep for it";
        let mut lines: Vec<String> = keys.into_iter().map(|key| at(key, why)).collect();
        let database = |setting: &Setting| setting.config.postgres.endpoint.database.clone();
        if database(before) != database(after) {
            let why = format!(
                "it names database `{}`, and the slot is in `{}`\n  hint: a slot is of one \
                 database: restart walsweep for another",
                database(after),
                database(before)
            );
            lines.push(at("postgres.url", &why));
            is_same_postgres = false;
        }
        (lines, is_same_postgres)
    }

    fn shown(&self, findings: impl IntoIterator<Item = Finding>) -> Vec<String> {
        let shown = |finding: Finding| finding.in_file(&self.file).to_string();
        findings.into_iter().map(shown).collect()
    }

    /// Prepares the next session. While one stands, it has to succeed; while none does, whatever
    /// may pass by itself is no reason to keep the old configuration, which does no better.
    async fn prepare(
        &self,
        handover: &Handover,
        setting: &Setting,
    ) -> Result<Option<Prepared>, Vec<String>> {
        let is_first = !handover.is_established.get();
        let told = (self.is_strict, is_first);
        match Box::pin(Prepared::new(&setting.config, &setting.rules, told)).await {
            Ok(prepared) => Ok(Some(prepared)),
            Err(Error::Refused(findings)) => {
                let lines = self.shown(findings.into_iter().filter(Finding::is_error));
                if lines.is_empty() { Ok(None) } else { Err(lines) }
            }
            Err(error) => {
                let may_pass = error.may_be_switchover(&setting.config.postgres);
                let passes = error.verdict(may_pass) != Verdict::Halt;
                if passes && !handover.stands.get() {
                    return Ok(None);
                }
                let hint = error.hint().map(|hint| format!("\n  hint: {hint}"));
                Err(vec![format!("{error}{}", hint.unwrap_or_default())])
            }
        }
    }

    /// Another server would be another history: whoever wants that begins anew.
    fn other_server(&self, handover: &Handover, next: &Prepared) -> Option<String> {
        let before = handover.system_id.borrow();
        let before = before.as_deref().filter(|before| *before != next.system_id())?;
        Some(format!(
            "{}: `postgres.url` reaches system `{}`, and the slot is in `{before}`\n  hint: it is \
             another cluster: restart walsweep for it, which sweeps everything",
            self.file,
            next.system_id()
        ))
    }

    /// Gives a line for each rule that would be suspended, if it is new, another, or at work now.
    fn newly_suspended(
        &self,
        handover: &Handover,
        setting: &Setting,
        (findings, differences): (&[Finding], &[Difference]),
    ) -> Vec<String> {
        let suspended = handover.suspended.borrow();
        let is_news = |rule: &str| {
            !suspended.contains(rule) || differences.iter().any(|one| is_of_rule(one, rule))
        };
        let is_known = |rule: &str| setting.rules.names().iter().any(|name| name == rule);
        let refused = findings
            .iter()
            .filter(|finding| finding.suspends().any(|rule| is_known(rule) && is_news(rule)));
        self.shown(refused.cloned())
    }
}

/// Whether a difference may be one of this rule. Which lookups it names is not asked.
fn is_of_rule(difference: &Difference, rule: &str) -> bool {
    match &difference.subject {
        Subject::Rule(name) => name == rule,
        Subject::Lookup(_) => true,
        _ => false,
    }
}

fn is_of_target(difference: &Difference, target: &str) -> bool {
    match &difference.subject {
        Subject::Target(name) | Subject::OfTarget(name, _) => name == target,
        _ => false,
    }
}

/// The longest refill window that a reload waits for.
const WINDOW_MAX: Duration = Duration::from_secs(60);

/// How long first removals that are on their way may take, at most.
const REMOVAL_MAX: Duration = Duration::from_secs(10);

/// How the session of `before` ends: once what it has received is confirmed, if some keys of that
/// are such that `after` does not give any more, or removes elsewhere. The next session, to which
/// everything comes again that is not confirmed, would not remove them.
fn farewell(before: &Setting, after: &Setting, differences: &[Difference]) -> Farewell {
    let moves = |one: &Difference| match &one.subject {
        Subject::Target(_) => one.how == How::Removed,
        Subject::OfTarget(_, option) => {
            ["url", "mode", "prefix", "rules"].contains(&option.as_str())
        }
        _ => false,
    };
    let (old, new) = (before.rules.prints(&BTreeSet::new()), after.rules.prints(&BTreeSet::new()));
    let given = Given::new(&new);
    let is_given = |rule: &RulePrint| rule.keys.iter().all(|key| given.covers(rule, key, true));
    // A late fill is looked for when the window of before is over.
    let is_shorter = after.config.refill.window < before.config.refill.window;
    if old.iter().all(is_given) && !differences.iter().any(moves) && !is_shorter {
        return Farewell::Soon;
    }
    Farewell::Confirmed(before.config.refill.window.min(WINDOW_MAX) + REMOVAL_MAX)
}

/// Seconds since 1970.
#[must_use]
pub fn now_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
