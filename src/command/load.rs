//! The configuration file, read and its rules compiled, with the problems of both at once.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::failure::{Failure, halted};
use crate::config::{Config, Problem, Quotes, Targets, parse, unreadable};
use crate::file;
use crate::keys::{Limits, Rules};
use crate::run::reload::Setting;
use crate::sweep::key_name;
use crate::words::counted;

/// More than any configuration has, bytes; a wrong path must not fill the memory.
const SIZE_MAX: u64 = 64 << 20;

/// A configuration that cannot be used.
#[derive(Debug)]
pub struct Invalid {
    path: PathBuf,
    /// Everything that is wrong, in the order of the file.
    pub problems: Vec<Problem>,
}

impl Invalid {
    /// Gives each problem with its place.
    pub(crate) fn lines(&self) -> Vec<String> {
        let path = self.path.display();
        self.problems.iter().map(|problem| format!("{path}:{problem}")).collect()
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines().iter().try_for_each(|line| writeln!(formatter, "{line}"))?;
        let problems = counted(self.problems.len(), "problem");
        write!(formatter, "{problems} in the configuration; nothing was touched")
    }
}

impl std::error::Error for Invalid {}

/// Reads the file at `path`, for a command.
///
/// # Errors
///
/// 78 for everything that is wrong with it.
pub(crate) fn configuration(path: &Path) -> Result<(Config, Rules), Failure> {
    load(path).map_err(|invalid| halted(invalid).with_status(78))
}

/// Reads the file at `path`, for a command about a walsweep that may run now.
///
/// # Errors
///
/// 78 for everything that is wrong with it.
pub(super) fn of_running(path: &Path) -> Result<Setting, Failure> {
    setting(path).map_err(|invalid| {
        let hint = "a walsweep that runs goes on with the configuration that it has; its address, \
                    `http.listen`, is read from this file";
        halted(invalid).with_status(78).with_hint(Some(hint))
    })
}

/// Reads the file at `path`.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn load(path: &Path) -> Result<(Config, Rules), Invalid> {
    setting(path).map(|Setting { config, rules, .. }| (config, rules))
}

/// Reads the file at `path`, for a process that will read it again. It may be a pipe now.
///
/// # Errors
///
/// Everything that is wrong with it.
pub(crate) fn setting(path: &Path) -> Result<Setting, Invalid> {
    judged(path, std::fs::read_to_string(path))
}

/// Reads the file at `path` once more. Of a pipe nothing comes a second time: it is an error.
///
/// # Errors
///
/// Everything that is wrong with it.
pub(crate) fn setting_again(path: &Path) -> Result<Setting, Invalid> {
    let text = file::read(path, SIZE_MAX);
    judged(path, text.and_then(|text| String::from_utf8(text.to_vec()).map_err(io::Error::other)))
}

fn judged(path: &Path, text: io::Result<String>) -> Result<Setting, Invalid> {
    let invalid = |problems| Invalid { path: path.to_owned(), problems };
    let text = text.map_err(|error| invalid(vec![unreadable(path, &error)]))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let judged = judge_in(folder, &text, &|name| std::env::var(name).ok()).map_err(invalid);
    judged.map(|(config, rules)| Setting { config, rules, text })
}

/// Judges a configuration text; `env` looks up environment variables.
///
/// # Errors
///
/// Everything that is wrong with it, in the order of the file.
pub fn judge(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(Config, Rules), Vec<Problem>> {
    judge_in(Path::new(""), text, env)
}

/// Like [`judge`], of a text that lies in `folder`.
fn judge_in(
    folder: &Path,
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(Config, Rules), Vec<Problem>> {
    let parsed = parse(text, env, folder);
    let mut problems = parsed.problems;
    match (Rules::with_lookups(&parsed.rules, &parsed.lookups), parsed.config) {
        (Ok(rules), Some(config)) => {
            let limits = Limits::of(config.redis.len());
            let mut rules = rules.with_limits(limits);
            if config.postgres.probe {
                let ids = config.redis.iter().map(|redis| redis.id);
                let own = key_name("", &config.postgres.slot);
                rules = rules.with_canaries(&own, ids.fold(Targets::NONE, Targets::with));
            }
            return Ok((config, rules));
        }
        (Err(more), _) => problems.extend(more.into_iter().map(|one| typed(one, text))),
        (Ok(_), None) => {}
    }
    problems.sort_by(|one, other| one.at.cmp(&other.at));
    Err(problems)
}

/// The problem of a rule with its hint as it is typed where the problem is: a key template that
/// stands in `"…"` needs two backslashes for one.
fn typed(problem: Problem, file: &str) -> Problem {
    let is_template = problem.at.key.rsplit('.').nth(1) == Some("keys");
    match Quotes::at(file, &problem.at).filter(|_| is_template) {
        Some(quotes) => {
            let hint = problem.hint.map(|hint| quotes.typed(&hint));
            Problem { hint, ..problem }
        }
        None => problem,
    }
}
