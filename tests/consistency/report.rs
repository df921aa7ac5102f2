//! The report on what a run showed, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use crate::World;
use crate::cache::Mode;
use crate::faults::Kind;
use crate::invalidator::Exits;
use crate::rest::Stale;
use crate::shared::{Lives, Overdue};

/// Stale keys that the text lists; the JSON has all.
const LISTED: usize = 20;

/// See the module.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    held: bool,
    seed: u64,
    seconds: f64,
    /// Transactions acknowledged to their writers.
    pub(crate) commits: u64,
    fills: u64,
    reads: u64,
    /// Times at which everything was at rest.
    pub(crate) quiet_points: u32,
    /// Cached values compared with their rows, over all quiet points.
    pub(crate) compared: usize,
    /// Those that were not what the row was.
    pub(crate) stale_at_rest: Vec<Stale>,
    /// Stale at rest and filled later than the promise covers.
    pub(crate) late_at_rest: usize,
    /// Keys of a cluster that no client found at some quiet point, where there were most.
    pub(crate) out_of_reach: usize,
    /// How Redis is run.
    redis: &'static str,
    moved_slots: u64,
    failovers: u64,
    joins: u64,
    stale_seen: u64,
    longest_stale_life: Option<Life>,
    longest_stale_life_without_outage: Option<Life>,
    longest_stale_life_while_ready: Option<Life>,
    seconds_not_ready: f64,
    nearest_to_its_bound: Option<Life>,
    bound: String,
    overdue: Vec<String>,
    faults: BTreeMap<String, u32>,
    /// The longest time from a fault's beginning until everything was confirmed again, seconds.
    pub(crate) longest_outage: f64,
    ended_by_itself: Exits,
    /// Everything else that is wrong.
    pub(crate) failures: Vec<String>,
    replay: String,
}

/// A stale value's life, in seconds.
#[derive(Debug, Serialize)]
struct Life {
    life: f64,
    bound: f64,
    outage: f64,
    ready: f64,
}

impl Life {
    fn new(life: crate::history::Life) -> Life {
        let [life, bound, outage, ready] =
            [life.life, life.bound, life.outage, life.ready].map(|one| one.as_secs_f64());
        Life { life, bound, outage, ready }
    }
}

impl Display for Life {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let Life { life, bound, outage, ready } = self;
        write!(
            formatter,
            "{life:.3} s of {bound:.3} s ({outage:.3} s of outages in it; ready for {ready:.3} s)"
        )
    }
}

impl Report {
    /// Adds what the load counted, and judges.
    pub(crate) fn close(
        &mut self,
        world: &World,
        took: Duration,
        (bound, replay): (String, String),
        faults: &[Kind],
    ) {
        let shared = &world.shared;
        self.seed = shared.seed;
        self.seconds = took.as_secs_f64();
        self.commits = shared.commits.load(Ordering::Relaxed);
        self.fills = shared.fills.load(Ordering::Relaxed);
        self.reads = shared.reads.load(Ordering::Relaxed);
        (self.bound, self.replay) = (bound, replay);
        self.faults = world.faults.lock().unwrap().clone();
        self.ended_by_itself = world.invalidator.exits();
        self.take(&shared.lives.lock().unwrap());
        self.seconds_not_ready = shared.history.unready().as_secs_f64();
        self.failures.extend(world.effects.lock().unwrap().failures());
        self.count(world, faults);
        if self.commits == 0 || self.fills == 0 || self.compared == 0 {
            self.failures.push("nothing was tested: no commit, fill or value compared".to_owned());
        }
        self.held =
            self.stale_at_rest.is_empty() && self.overdue.is_empty() && self.failures.is_empty();
    }

    /// Counts slots, failovers and nodes. One that was asked for and never happened is a failure.
    fn count(&mut self, world: &World, faults: &[Kind]) {
        let tally = &world.servers.tally;
        self.redis = world.servers.directory.mode().name();
        self.moved_slots = tally.moved_slots.load(Ordering::Relaxed);
        self.failovers = tally.failovers.load(Ordering::Relaxed);
        self.joins = tally.joins.load(Ordering::Relaxed);
        let asked = |of: fn(Kind) -> bool| faults.iter().any(|kind| of(*kind));
        for (is_asked, count, name) in [
            (asked(|kind| kind == Kind::Reshard), self.moved_slots, "slot moved"),
            (asked(Kind::is_failover), self.failovers, "replica took over"),
            (asked(|kind| kind == Kind::NodeJoins), self.joins, "node joined"),
        ] {
            if is_asked && count == 0 {
                self.failures.push(format!("nothing was tested: no {name}"));
            }
        }
    }

    fn take(&mut self, lives: &Lives) {
        self.stale_seen = lives.seen;
        self.longest_stale_life = lives.longest.map(Life::new);
        self.longest_stale_life_without_outage = lives.longest_calm.map(Life::new);
        self.longest_stale_life_while_ready = lives.longest_ready.map(Life::new);
        self.nearest_to_its_bound = lives.worst.map(Life::new);
        let text = |overdue: &Overdue| {
            format!("{}: cached `{}`, stale for {}", overdue.key, overdue.value, {
                Life::new(overdue.life)
            })
        };
        self.overdue = lives.overdue.values().map(text).collect();
    }

    /// Whether the promise held.
    pub(crate) fn held(&self) -> bool {
        self.held
    }
}

impl Display for Report {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "seed                 {}", self.seed)?;
        writeln!(formatter, "time                 {:.1} s", self.seconds)?;
        write!(formatter, "redis                {}", self.redis)?;
        if self.redis != Mode::Standalone.name() {
            let Report { moved_slots, failovers, joins, .. } = self;
            write!(
                formatter,
                ": {moved_slots} slots moved, {failovers} failovers, {joins} nodes joined and left"
            )?;
        }
        writeln!(formatter)?;
        writeln!(formatter, "commits              {}", self.commits)?;
        writeln!(formatter, "reads, fills         {}, {}", self.reads, self.fills)?;
        let (points, compared) = (self.quiet_points, self.compared);
        writeln!(formatter, "compared at rest     {compared} values at {points} quiet points")?;
        writeln!(formatter, "stale at rest        {}", self.stale_at_rest.len())?;
        if self.late_at_rest > 0 {
            writeln!(formatter, "late fills at rest   {} (not promised)", self.late_at_rest)?;
        }
        if self.out_of_reach > 0 {
            writeln!(formatter, "keys out of reach    {} at most", self.out_of_reach)?;
        }
        writeln!(formatter, "stale values seen    {}", self.stale_seen)?;
        let none = || "none".to_owned();
        for (name, life) in [
            ("longest stale life  ", &self.longest_stale_life),
            ("- without an outage ", &self.longest_stale_life_without_outage),
            ("- most while ready  ", &self.longest_stale_life_while_ready),
            ("- nearest its bound ", &self.nearest_to_its_bound),
        ] {
            let life = life.as_ref().map_or_else(none, Life::to_string);
            writeln!(formatter, "{name} {life}")?;
        }
        writeln!(formatter, "bound                {}", self.bound)?;
        writeln!(formatter, "longest outage       {:.3} s", self.longest_outage)?;
        writeln!(formatter, "not ready            {:.3} s", self.seconds_not_ready)?;
        for (name, count) in &self.faults {
            writeln!(formatter, "fault                {count} {name}")?;
        }
        for (how, (count, words)) in &self.ended_by_itself {
            writeln!(formatter, "ended by itself      {count} with {how}, the last time after")?;
            writeln!(formatter, "{words}")?;
        }
        for stale in self.stale_at_rest.iter().take(LISTED) {
            writeln!(formatter, "STALE                {stale}")?;
        }
        for overdue in self.overdue.iter().take(LISTED) {
            writeln!(formatter, "OVERDUE              {overdue}")?;
        }
        for failure in &self.failures {
            writeln!(formatter, "FAILED               {failure}")?;
        }
        writeln!(formatter, "again                {}", self.replay)?;
        write!(
            formatter,
            "the promise          {}",
            if self.held { "held" } else { "DID NOT HOLD" }
        )
    }
}
