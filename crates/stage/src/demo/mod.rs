//! `walsweep demo`: what happens to a site's cache while its matches are settled.
//!
//! Takes: nothing but the installed Postgres and Redis, which it starts for itself, and this
//! program's own `setup` and `run`, as child processes. Gives: a page of text, and an error if a
//! key that should go stayed or one that should stay went. Never knows: the stages; it watches
//! Redis as any other client would.

mod act;
mod race;
mod show;
mod site;
mod stage;

use std::io::{self, Write};
use std::time::Duration;

use tokio::time::Instant;

use self::act::{Act, acts, opening};
use self::race::Tally;
use self::show::{BAD, GOOD, Show, TITLE};
use self::site::{Cached, Fixture};
use self::stage::Stage;
use crate::throwaway;

/// The action of an [`Error::Io`] where what happened cannot be told.
pub const REPORT: &str = "write the report";

/// The demonstration's options.
#[derive(Clone, Copy, Debug)]
pub struct DemoOptions {
    /// Leave everything running, for a look around, until Ctrl-C.
    pub keep: bool,
    /// walsweep's configuration for the site, its addresses to be replaced.
    pub config: &'static str,
}

/// Why the demonstration failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A server did not do as told.
    #[error(transparent)]
    Server(#[from] throwaway::Error),
    /// A file, a pipe or a process refused.
    #[error("{action}: {source}")]
    Io {
        /// The action that was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// `walsweep setup` or `walsweep run` ended.
    #[error("run `walsweep {command}`: it ended with {status}\n{log}")]
    Ended {
        /// The subcommand.
        command: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// Its output.
        log: String,
    },
    /// walsweep took too long.
    #[error("wait until {goal}: {}s are over\n{log}", limit.as_secs())]
    Late {
        /// The goal that was waited for.
        goal: &'static str,
        /// How long.
        limit: Duration,
        /// The log of walsweep.
        log: String,
    },
    /// The configuration that is built in cannot be adapted.
    #[error("adapt `config.toml`: {0}")]
    Config(String),
    /// Keys are there that should not be, or the other way round.
    #[error(
        "compare the cache with what it should hold: {} stayed, {lost} were lost",
        keys(*.stale)
    )]
    Broken {
        /// Keys that should have gone and stayed.
        stale: usize,
        /// Keys that should have stayed and went.
        lost: usize,
    },
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Error {
        Error::Server(error.into())
    }
}

impl From<redis::RedisError> for Error {
    fn from(error: redis::RedisError) -> Error {
        Error::Server(error.into())
    }
}

/// The fate of the cache's keys after one act.
#[derive(Debug, Default)]
struct Outcome {
    /// Keys that went, as they should: how long after the acknowledged commit, topic, key.
    went: Vec<(Duration, String, String)>,
    /// Keys that should have gone within [`FRESH`].
    stale: Vec<String>,
    /// Keys that should have stayed.
    lost: Vec<String>,
    /// Keys that stayed, as they should: topic, key.
    stayed: Vec<(String, String)>,
}

/// How soon after its commit nothing stale may be left, by the site's acceptance words.
const FRESH: Duration = Duration::from_secs(5);

/// The rule of the first act.
const OPENING_RULE: &str = "roundups";

/// How often a test's eye looks at Redis. The next look starts a millisecond after the last began.
const LOOK: Duration = Duration::from_millis(1);

/// Runs the demonstration and writes what happens to standard output. Fails when a server or
/// walsweep itself does not run, and with [`Error::Broken`] when a key that should go stayed or one
/// that should stay went.
pub async fn run(options: DemoOptions) -> Result<(), Error> {
    let mut show = Show::new();
    let said = writeln!(show, "Starting a Postgres and a Redis that end with this demonstration.");
    said.map_err(io_error(REPORT))?;
    let mut stage = Stage::set(options.config, &mut show).await?;
    let mut totals = Totals::default();
    let first = opening();
    let outcome = perform(&mut stage, &first).await?;
    let told = tell_opening(&mut show, options.config, &first, &outcome);
    told.map_err(io_error(REPORT))?;
    totals.add(&outcome);
    let tally = race::run(&mut stage, &mut show).await?;
    show.clear()?;
    tell_race(&mut show, tally).map_err(io_error(REPORT))?;
    totals.stale += tally.map_or(0, |tally| tally.walsweep);
    let acts = acts(&site::fixtures(&stage.sql).await?);
    for act in &acts {
        let outcome = perform(&mut stage, act).await?;
        tell(&mut show, act, &outcome).map_err(io_error(REPORT))?;
        totals.add(&outcome);
    }
    let Totals { went, stale, lost } = totals;
    let color = if stale + lost == 0 { GOOD } else { BAD };
    let written = writeln!(
        show,
        "\n{color}{} transactions: {} went, {stale} that should have gone stayed, {lost} \
         that should have stayed went.{color:#}",
        acts.len() + 1 + tally.map_or(0, |tally| tally.pages),
        keys(went)
    );
    written.map_err(io_error(REPORT))?;
    if options.keep {
        site::fill(&mut stage.cache, &site::cached(&stage.sql).await?).await?;
        stage.describe(&mut show).map_err(io_error(REPORT))?;
        tokio::signal::ctrl_c().await.map_err(io_error("wait for Ctrl-C"))?;
    }
    stage.strike().await?;
    if stale + lost == 0 { Ok(()) } else { Err(Error::Broken { stale, lost }) }
}

/// Keys of all acts.
#[derive(Debug, Default)]
struct Totals {
    went: usize,
    stale: usize,
    lost: usize,
}

impl Totals {
    fn add(&mut self, outcome: &Outcome) {
        self.went += outcome.went.len();
        self.stale += outcome.stale.len();
        self.lost += outcome.lost.len();
    }
}

/// Performs `act` on a site whose every page is cached, and watches its keys.
async fn perform(stage: &mut Stage, act: &Act) -> Result<Outcome, Error> {
    let cached = site::cached(&stage.sql).await?;
    site::fill(&mut stage.cache, &cached).await?;

    stage.sql.batch_execute("begin").await?;
    let mut matches = site::fixtures(&stage.sql).await?;
    stage.sql.batch_execute(&act.statement).await?;
    matches.extend(site::fixtures(&stage.sql).await?);
    stage.sql.batch_execute(if act.commits { "commit" } else { "rollback" }).await?;
    let committed = Instant::now();

    let is_stale = |cached: &&Cached| act.makes_stale(&cached.topic, &cached.subject, &matches);
    let (going, staying): (Vec<&Cached>, Vec<&Cached>) = cached.iter().partition(is_stale);
    let mut outcome = watch(stage, going, committed).await?;
    stage.wait_confirmed().await?;
    // Not only the first removal but also the second has come and gone by now.
    for (cached, exists) in staying.iter().zip(site::exist(&mut stage.cache, &staying).await?) {
        if exists {
            outcome.stayed.push((cached.topic.clone(), cached.key.clone()));
        } else {
            outcome.lost.push(cached.key.clone());
        }
    }
    Ok(outcome)
}

/// Looks at the keys that should go until they are gone, or until [`FRESH`] is over.
async fn watch(
    stage: &mut Stage,
    mut going: Vec<&Cached>,
    committed: Instant,
) -> Result<Outcome, Error> {
    let mut outcome = Outcome::default();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    while !going.is_empty() && committed.elapsed() < FRESH {
        looks.tick().await;
        let exist = site::exist(&mut stage.cache, &going).await?;
        let after = committed.elapsed();
        let mut exist = exist.into_iter();
        going.retain(|cached| {
            let exists = exist.next().unwrap_or(true);
            if !exists {
                outcome.went.push((after, cached.topic.clone(), cached.key.clone()));
            }
            exists
        });
    }
    outcome.stale = going.into_iter().map(|cached| cached.key.clone()).collect();
    Ok(outcome)
}

/// Writes the first act so that whoever has never seen walsweep reads what it is: a statement, the
/// rule that it concerns as the configuration has it, and its keys.
fn tell_opening(
    out: &mut impl Write,
    config: &str,
    act: &Act,
    outcome: &Outcome,
) -> io::Result<()> {
    let Outcome { went, stale, lost, stayed } = outcome;
    writeln!(out, "\n{TITLE}One UPDATE:{TITLE:#}\n\n    {}\n", act.title)?;
    writeln!(out, "{TITLE}Its rule:{TITLE:#}\n")?;
    for line in stage::rule(config, OPENING_RULE) {
        writeln!(out, "    {line}")?;
    }
    writeln!(out, "\n{TITLE}Its keys:{TITLE:#}\n")?;
    for (after, _, key) in went {
        let after = millis(*after);
        writeln!(out, "    cached, and {GOOD}gone{GOOD:#} {after:.1} ms after the commit: {key}")?;
    }
    tell_wrong(out, "    ", stale, lost)?;
    writeln!(out, "\nAll {} others stay, such as:\n", stayed.len())?;
    if let Some(key) = nearest(outcome, "roundup") {
        writeln!(out, "    {key}")?;
    }
    Ok(())
}

/// Writes keys that stayed or went against what pages show.
fn tell_wrong(
    out: &mut impl Write,
    indent: &str,
    stale: &[String],
    lost: &[String],
) -> io::Result<()> {
    for (keys, should) in [(stale, "gone"), (lost, "stayed")] {
        for key in keys {
            writeln!(out, "{indent}{BAD}WRONG{BAD:#}: should have {should}: {key}")?;
        }
    }
    Ok(())
}

/// So many keys, in words.
fn keys(count: usize) -> String {
    format!("{count} key{}", if count == 1 { "" } else { "s" })
}

/// Writes how the race ended, as it was counted.
fn tell_race(out: &mut impl Write, tally: Option<Tally>) -> io::Result<()> {
    writeln!(out, "\n{TITLE}The race:{TITLE:#}\n")?;
    if let Some(Tally { pages, on_arrival, walsweep }) = tally {
        writeln!(
            out,
            "    {pages} pages, each changed by a commit that waits until a standby has it, while \
             readers look.\n    What is cached at the end, against the rows:\n"
        )?;
        for (who, stale, until) in [
            ("on arrival, once:", on_arrival, ", until their TTL or next change"),
            ("walsweep:", walsweep, ""),
        ] {
            let color = if stale == 0 { GOOD } else { BAD };
            writeln!(out, "    {who:<18}{color}{stale:>3} stale{color:#}{until}")?;
        }
        if on_arrival == 0 {
            writeln!(out, "\n    The first one lost no race this time: it is a matter of luck.")?;
        }
    } else {
        writeln!(
            out,
            "    Left out: this Postgres lacks test_decoding, of the package postgresql-contrib."
        )?;
    }
    writeln!(out, "\nAnd now transactions of the site, whose other rules stand in config.toml.")
}

/// Writes what became of the cache.
fn tell(out: &mut impl Write, act: &Act, outcome: &Outcome) -> io::Result<()> {
    let Outcome { went, stale, lost, stayed } = outcome;
    writeln!(out, "\n{TITLE}{}{TITLE:#}", act.title)?;
    let mut topics: Vec<&str> = Vec::new();
    for (_, topic, _) in went {
        if !topics.contains(&topic.as_str()) {
            topics.push(topic);
        }
    }
    for topic in topics {
        let of_topic: Vec<_> = went.iter().filter(|(_, other, _)| other == topic).collect();
        let listed = if of_topic.len() <= 4 { of_topic.len() } else { 2 };
        for (after, _, key) in of_topic.iter().take(listed) {
            writeln!(out, "  {:>6.1} ms  {key}", millis(*after))?;
        }
        if let Some((after, _, _)) = of_topic.get(listed..).and_then(<[_]>::last) {
            let more = of_topic.len() - listed;
            writeln!(out, "  {:>6.1} ms  … and {more} more of these", millis(*after))?;
        }
    }
    if went.is_empty() {
        writeln!(out, "  nothing went")?;
    } else {
        let went = keys(went.len());
        writeln!(out, "  {went} went, times after the acknowledged commit")?;
    }
    let near = ["predictions", "competition", "club"].map(|topic| nearest(outcome, topic));
    let near: Vec<&str> = near.into_iter().flatten().collect();
    writeln!(
        out,
        "  {} stayed, such as\n             {}",
        keys(stayed.len()),
        near.join("\n             ")
    )?;
    tell_wrong(out, "  ", stale, lost)
}

/// The key of `topic` that stayed although it looks most like one that went.
fn nearest<'a>(outcome: &'a Outcome, topic: &str) -> Option<&'a str> {
    let went = outcome.went.iter().filter(|(_, other, _)| other == topic);
    let went: Vec<&str> = went.map(|(_, _, key)| key.as_str()).collect();
    let stayed = outcome.stayed.iter().filter(|(other, _)| other == topic);
    let common = |key: &str| {
        let shared = went.iter().map(|gone| {
            gone.bytes().zip(key.bytes()).take_while(|(left, right)| left == right).count()
        });
        shared.max()
    };
    stayed.map(|(_, key)| key.as_str()).max_by_key(|key| common(key))
}

/// A time in milliseconds.
fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// An [`Error::Io`] that names what was tried.
fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::race::Tally;
    use super::show::plain;
    use super::{
        Cached, OPENING_RULE, Outcome, acts, opening, site, stage, tell_opening, tell_race,
    };
    use crate::throwaway::{Postgres, PostgresOptions, Redis, RedisOptions};

    const CONFIG: &str = include_str!("../../../../config.toml");

    /// Whoever reads these lines knows what walsweep does.
    #[test]
    fn it_opens_with_one_update_its_rule_and_its_keys() {
        let went = |key: &str| (Duration::from_millis(2), "roundup".to_owned(), key.to_owned());
        let outcome = Outcome {
            went: vec![went("roundup:5"), went("roundup:slug:five")],
            stayed: vec![("roundup".to_owned(), "roundup:slug:four".to_owned())],
            ..Outcome::default()
        };
        let text = plain(|out| tell_opening(out, CONFIG, &opening(), &outcome));
        let mut rest = text.as_str();
        for part in [
            "One UPDATE:",
            "update matches set kickoff = kickoff + interval '1 hour' where id = 5",
            "[[rule]]",
            "table = \"public.matches\"",
            "keys = [\"roundup:{id}\", \"roundup:slug:{slug}\"]",
            "gone 2.0 ms after the commit: roundup:5",
            "gone 2.0 ms after the commit: roundup:slug:five",
            "roundup:slug:four",
        ] {
            let at = rest.find(part).unwrap_or_else(|| panic!("{part} in {text}"));
            rest = &rest[at + part.len()..];
        }
        assert!(text.lines().count() <= 25, "{text}");
        assert!(stage::rule(CONFIG, OPENING_RULE).all(|line| !line.is_empty()));
    }

    /// It is told as it was counted, also where nobody lost.
    #[test]
    fn the_race_is_told_as_it_ended() {
        let tally = |on_arrival, walsweep| Some(Tally { pages: 100, on_arrival, walsweep });
        let lost = plain(|out| tell_race(out, tally(37, 0)));
        for part in ["100 pages", "on arrival, once:  37 stale", "walsweep:           0 stale"] {
            assert!(lost.contains(part), "{part}: {lost}");
        }
        assert!(!lost.contains("luck"), "{lost}");
        let lucky = plain(|out| tell_race(out, tally(0, 3)));
        for part in ["on arrival, once:   0 stale", "walsweep:           3 stale", "luck"] {
            assert!(lucky.contains(part), "{part}: {lucky}");
        }
        assert!(plain(|out| tell_race(out, None)).contains("Left out"));
    }

    #[tokio::test]
    async fn every_act_runs_and_makes_cached_keys_stale_only_if_it_commits_something_shown() {
        let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
        let redis = Redis::start(RedisOptions::default()).await.unwrap();
        let (sql, mut cache) = (postgres.connect().await.unwrap(), redis.connect().await.unwrap());
        for part in site::SCHEMA {
            sql.batch_execute(part).await.unwrap();
        }
        sql.batch_execute("call generate_season()").await.unwrap();
        let cached = site::cached(&sql).await.unwrap();
        let all: Vec<&Cached> = cached.iter().collect();
        site::fill(&mut cache, &cached).await.unwrap();
        assert!(site::exist(&mut cache, &all).await.unwrap().into_iter().all(|exists| exists));

        let mut matches = site::fixtures(&sql).await.unwrap();
        let mut counts = Vec::new();
        for act in std::iter::once(opening()).chain(acts(&matches.clone())) {
            sql.batch_execute(&act.statement).await.unwrap();
            let before = std::mem::replace(&mut matches, site::fixtures(&sql).await.unwrap());
            let both: Vec<_> = before.into_iter().chain(matches.clone()).collect();
            let stale = |one: &&Cached| act.makes_stale(&one.topic, &one.subject, &both);
            counts.push(cached.iter().filter(stale).count());
        }
        let [postponed, settled, again, rolled_back, venue, renamed, model, deleted] = counts[..]
        else {
            panic!("{counts:?}");
        };
        assert_eq!(postponed, 2);
        // 504 leaderboards, 12 model pages, 4 overviews, 3 pages of the match, 4 of its
        // competition, 4 of each club.
        assert_eq!((settled, again, deleted), (535, 535, 535));
        assert_eq!((rolled_back, venue), (0, 0));
        assert_eq!((model, renamed), (254, 24 + 8 + 2 * 4 + 4 * 12));
    }
}
