//! What each command does, from configuration to exit status.

use std::fmt;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::Shell;
use tokio::time::timeout;
use tracing::Level;

use crate::command::cli::{Cli, ExplainArgs};
use crate::command::explain::{self, Question};
use crate::command::load::load;
use crate::config::{Config, Log, LogFormat, TableName};
use crate::demo::{self, DemoOptions};
use crate::keys::{Pattern, Rules};
use crate::postgres::connect_sql;
use crate::run::pipeline::Program;
use crate::run::shutdown::Shutdown;
use crate::sweep::redis::{connect, lease};
use crate::sweep::{Error, Kind, Node, Pace, Pass, Progress, Standalone, key_name};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{Health, http, logging};
use crate::words::counted;
use crate::{preflight, throwaway};

/// `application_name` of connections that commands other than `run` make.
pub(crate) const NAME: &str = "walsweep command";

/// How long `explain` waits for Postgres: it answers without, too.
const EXPLAIN_WAIT: Duration = Duration::from_secs(2);

/// Why a command did not succeed.
#[derive(Debug)]
pub struct Failure {
    /// The exit status: 1 halted, 78 the configuration is invalid (`EX_CONFIG` of sysexits.h).
    pub status: u8,
    message: String,
    hint: Option<String>,
    /// Whether the log or standard output has it already.
    pub is_said: bool,
}

impl Failure {
    /// A failure that a person has to look at.
    #[must_use]
    pub fn halted(message: String) -> Failure {
        Failure { status: 1, message, hint: None, is_said: false }
    }

    pub(crate) fn with_hint(self, hint: Option<impl Into<String>>) -> Failure {
        Failure { hint: hint.map(Into::into), ..self }
    }

    /// Says it as the log's last line, where machines read that and expect nothing else.
    fn in_log(self, log: &Log) -> Failure {
        let is_said = log.format == LogFormat::Json && tracing::enabled!(Level::ERROR);
        if is_said {
            let (status, hint) = (self.status, self.hint.as_deref());
            tracing::error!(status, hint, "{}", self.message);
        }
        Failure { is_said, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        self.hint.iter().try_for_each(|hint| write!(formatter, "\n  hint: {hint}"))
    }
}

/// Any error as a failure of status 1.
pub(crate) fn halted(error: impl fmt::Display) -> Failure {
    Failure::halted(error.to_string())
}

pub(crate) fn configuration(path: &Path) -> Result<(Config, Rules), Failure> {
    load(path).map_err(|invalid| Failure { status: 78, ..halted(invalid) })
}

/// Standard output; a reader that went away is an error like any other.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = stdout();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::halted(format!("write standard output: {error}")))
}

/// `walsweep run`.
///
/// # Errors
///
/// 78 for the configuration, 1 for what a person has to look at.
pub async fn run(path: &Path, is_strict: bool) -> Result<(), Failure> {
    let (config, rules) = configuration(path)?;
    logging::start(&config.log).map_err(halted)?;
    let file = path.display().to_string().into();
    let outcome = stream(&config, rules, is_strict, file).await;
    outcome.map_err(|failure| failure.in_log(&config.log))
}

async fn stream(
    config: &Config,
    mut rules: Rules,
    is_strict: bool,
    file: Arc<str>,
) -> Result<(), Failure> {
    let metrics = Arc::new(Metrics::new(rules.names()));
    let health = Arc::new(Health::new(Arc::clone(&metrics)));
    let mut shutdown = Shutdown::by_signal("stopping").map_err(halted)?;
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, rules = rules.names().len(), "walsweep starts");
    for finding in preflight::files(config).findings() {
        tracing::warn!(hint = finding.hint, "{}", finding.message);
    }
    if let Some(address) = config.http.listen {
        let listener = http::listen(address).await.map_err(|error| {
            Failure::halted(format!("listen on `{address}`: {error}"))
                .with_hint(Some("choose another `http.listen`, or \"\" for none"))
        })?;
        tracing::info!(%address, "serving /metrics /healthz /readyz");
        tokio::spawn(http::serve(listener, Arc::clone(&health)));
    }
    let mut program = Program {
        config,
        rules: &mut rules,
        health: &health,
        metrics: &metrics,
        shutdown: &mut shutdown,
        is_strict,
    };
    let outcome = program.run().await;
    outcome.map_err(|error| {
        let error = error.in_file(&file);
        halted(&error).with_hint(error.hint())
    })
}

/// `walsweep setup --lease`.
///
/// # Errors
///
/// 78 for the configuration; 1 when Redis refuses.
pub async fn load_lease(path: &Path) -> Result<(), Failure> {
    let (config, _rules) = configuration(path)?;
    let mut connection = connect::connect(&config.redis).await.map_err(halted)?;
    let loaded = lease::load(&mut connection).await;
    loaded.map_err(|error| halted(&error).with_hint(error.hint()))?;
    print("loaded the lease functions into redis\n")
}

/// `walsweep setup --lease --print`: what `redis-cli -x FUNCTION LOAD REPLACE` reads.
///
/// # Errors
///
/// 1 when standard output is closed.
pub fn print_lease() -> Result<(), Failure> {
    print(lease::LIBRARY)
}

/// `walsweep teardown --lease`.
///
/// # Errors
///
/// 78 for the configuration; 1 when Redis refuses.
pub async fn drop_lease(path: &Path) -> Result<(), Failure> {
    let (config, _rules) = configuration(path)?;
    let mut connection = connect::connect(&config.redis).await.map_err(halted)?;
    let removed = lease::delete(&mut connection).await;
    let removed = removed.map_err(|error| halted(&error).with_hint(error.hint()))?;
    print(if removed {
        "removed the lease functions from redis\n"
    } else {
        "there are no lease functions in redis\n"
    })
}

/// `walsweep explain`.
///
/// # Errors
///
/// 78 for the configuration; 1 for a row that is not one, or a column that the table has not.
pub async fn explain(path: &Path, arguments: &ExplainArgs) -> Result<(), Failure> {
    let (config, mut rules) = configuration(path)?;
    let row = |name: &str, text: &Option<String>| {
        let parse = |text: &String| {
            serde_json::from_str::<explain::Object>(text).map_err(|error| {
                Failure::halted(format!("read `--{name}`: not a JSON object: {error}"))
            })
        };
        text.as_ref().map(parse).transpose()
    };
    let question = Question {
        table: arguments.table.parse::<TableName>().map_err(halted)?,
        operation: arguments.op,
        old: row("old", &arguments.old)?,
        new: row("new", &arguments.new)?,
        identity: arguments.identity.clone(),
    };
    let failed = |error: explain::Error| halted(&error).with_hint(error.hint());
    explain::check(&rules, &question).map_err(failed)?;
    let told = if arguments.offline { Err(None) } else { ask(&config, &question).await? };
    let (question, table, note) = match told {
        Ok((table, typed)) => (typed, Some(table), None),
        Err(why) => (question, None, why),
    };
    let explanation = explain::explain(&mut rules, &question, table.as_ref()).map_err(failed)?;
    print(&format!("{explanation}{}", note.unwrap_or_default()))
}

/// Asks for the table as it is; gives a note where Postgres cannot be asked.
async fn ask(
    config: &Config,
    question: &Question,
) -> Result<Result<(explain::Table, Question), Option<String>>, Failure> {
    let asked = async {
        let sql = connect_sql(&config.postgres.endpoint, NAME).await.map_err(|e| e.to_string())?;
        explain::ask(question, &sql).await.map_err(|error| preflight::message(&error))
    };
    let why = match timeout(EXPLAIN_WAIT, asked).await {
        Ok(Ok(Ok(told))) => return Ok(Ok(told)),
        Ok(Ok(Err(error))) => return Err(halted(&error).with_hint(error.hint())),
        Ok(Err(why)) => why,
        Err(_elapsed) => format!("no answer in {} s", EXPLAIN_WAIT.as_secs()),
    };
    Ok(Err(Some(format!("note       columns were not compared with the table: {why}\n"))))
}

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
    node.connect().await.map_err(|error| halted(&error).with_hint(error.hint()))?;
    let parsed = patterns.iter().map(|text| Pattern::parse(text.as_bytes())).collect();
    let mut pass = Pass::new(parsed);
    pass.dry_run = dry_run;
    let mut pace = Pace::new(config.sweep.max_stall, config.sweep.max_load);
    let mut shown = Shown::default();
    let outcome = pass.run(&node, &mut pace, |progress| shown.update(progress)).await;
    shown.clear();
    let progress = outcome.map_err(|error| halted(&error).with_hint(error.hint()))?;
    if progress.refused() > 0 {
        let message = "redis refused to remove some of the keys: NOPERM".to_owned();
        let error = Error::new(Kind::NoPerm, message);
        return Err(halted(&error).with_hint(error.hint()));
    }
    print(&swept(patterns, &progress, dry_run))?;
    if dry_run && !foreign.is_empty() {
        let foreign = foreign.join("`, `");
        print(&format!("no rule covers all of `{foreign}`: to remove it takes `--force`\n"))?;
    }
    Ok(())
}

/// What a pass by hand came to; of several patterns each, too.
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

/// `walsweep demo`.
///
/// # Errors
///
/// 1 when a server does not start, or a key did not do as it should.
pub async fn demo(keep: bool) -> Result<(), Failure> {
    demo::run(DemoOptions { keep }).await.map_err(|error| {
        let hint = matches!(error, demo::Error::Server(throwaway::Error::Missing { .. }))
            .then_some(
                "install both servers: `apt install postgresql redis-server`; none has to run",
            );
        halted(&error).with_hint(hint)
    })
}

/// `walsweep completions`.
///
/// # Errors
///
/// 1 when standard output is closed.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "walsweep", &mut text);
    print(&String::from_utf8(text).map_err(halted)?)
}

/// `walsweep man`.
///
/// # Errors
///
/// 1 when standard output is closed.
pub fn man() -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut text).map_err(halted)?;
    print(&String::from_utf8(text).map_err(halted)?)
}
