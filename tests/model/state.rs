//! The state of the model: Postgres, the targets, a reader, walsweep, and what faults may come.
//!
//! Two transactions, each of which changes one row; the value of that row is cached under one key.
//! The log counts commits: the first that is modelled ends at LSN 2, and all before are done.

use super::rule::Rule;

/// Transactions, rows, keys; the key of row 0 hashes to bucket 0, that of row 1 to bucket 1.
pub(crate) const ROWS: usize = 2;

/// Jobs: one for each transaction, a sweep of everything, and its repetition after the fence.
pub(crate) const JOBS: usize = 4;

/// The job that sweeps everything.
pub(crate) const SWEEP: usize = 2;

/// The job that sweeps everything again when the fence has passed.
pub(crate) const FENCED: usize = 3;

/// Buckets of Redis's table that a SCAN pass visits, one a step.
pub(crate) const BUCKETS: u8 = 2;

/// Where the log ends when the model begins.
pub(crate) const BEGIN: u8 = 1;

/// The content of a row, or of a cached value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Version {
    Old,
    New,
    /// As it reads since its table was altered.
    Altered,
}

/// How far a transaction is; with the LSN at which its commit ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Commit {
    Running,
    /// In the log, and so on its way to walsweep; new snapshots do not see it.
    Flushed(u8),
    Visible(u8),
    /// It was in the log of a server that is no more.
    Lost,
}

/// The database.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Postgres {
    pub(crate) commits: [Commit; ROWS],
    pub(crate) end: u8,
    pub(crate) timeline: u8,
    /// `confirmed_flush_lsn` of the slot.
    pub(crate) confirmed: u8,
    /// Whether the table of row 0 reads otherwise than before; no commit tells of it.
    pub(crate) altered: bool,
}

/// The value of the watermark key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mark {
    pub(crate) timeline: u8,
    pub(crate) lsn: u8,
    /// Whether it was written since the table of row 0 is altered.
    pub(crate) altered: bool,
}

/// The place of a target.
pub(crate) type At = usize;

/// One Redis that keys are removed from, and what is done to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) redis: Redis,
    /// A prefix of its commands that a replica or a file holds.
    pub(crate) saved: Option<Redis>,
    /// Of which rows, each of which has its rule, it refuses the keys.
    pub(crate) refused: [bool; ROWS],
    /// Whether nobody can connect to it.
    pub(crate) is_away: bool,
    /// Removals of these commits were acknowledged.
    pub(crate) removed: [bool; ROWS],
    /// Whether it went back.
    pub(crate) broken: bool,
}

/// The content of a Redis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Redis {
    pub(crate) cached: [Option<Version>; ROWS],
    pub(crate) mark: Option<Mark>,
    /// Whether it holds every removal of the connection: whether the number of the chain is right.
    pub(crate) linked: bool,
}

/// Which removal of its keys is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Round {
    First,
    Again,
    Second,
}

/// Where a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// Nothing to do.
    #[default]
    Idle,
    Gate,
    Queued(Round),
    /// Part of the SCAN pass that is under way.
    Passing(Round),
    /// Between the first and the second removal.
    Waiting,
    /// Redis refused its keys; outside of what goes.
    Refused(Round),
    /// Removed for good; the watermark does not cover it yet.
    Swept,
    /// Covered, and remembered for a Redis that goes back.
    Remembered,
}

/// Keys to remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Job {
    pub(crate) stage: Stage,
    /// Whether whoever waits for it was told that it is complete.
    pub(crate) told: bool,
    /// Whether it counts in the hold alone, since its first removal is done.
    pub(crate) held: bool,
    /// Whether the refill window is still open: a value read before the first removal was done may
    /// still be written.
    pub(crate) window: bool,
}

/// A question about the rules' tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Question {
    Answered,
    /// Behind a lock.
    Waits,
}

/// A walsweep that runs. All of it is lost in a crash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Walsweep {
    /// Whether the last question about the tables is answered.
    pub(crate) question: Question,
    /// One for each target.
    pub(crate) sweepers: Vec<Sweeper>,
}

/// The state of one target, as its sweeper and its side of the ledger know it.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sweeper {
    pub(crate) at: At,
    /// Commits up to here were received.
    pub(crate) received: u8,
    pub(crate) jobs: [Job; JOBS],
    /// The LSN that the hold stands for, below which nothing may be confirmed: that of its smallest
    /// member. Members are all whose first removal is done, and whose second is not.
    pub(crate) hold: Option<u8>,
    /// Transactions that the second sweep waits for.
    pub(crate) fence: [bool; ROWS],
    /// The next bucket of the pass that is under way.
    pub(crate) pass: Option<u8>,
    pub(crate) connected: bool,
    /// Whether the watermark was looked at since the session began.
    pub(crate) judged: bool,
    /// The watermark as walsweep believes it to stand.
    pub(crate) standing: Option<Mark>,
    pub(crate) covered: u8,
    /// Where the session began, and whether the watermark stood at each LSN since.
    pub(crate) floor: u8,
    pub(crate) stood: [bool; ROWS + 2],
    /// How the table of row 0 was when the session began.
    pub(crate) altered: bool,
    /// Whether a sweep is owed.
    pub(crate) owed: bool,
    /// Whether it is of key 0 alone.
    pub(crate) is_part: bool,
    /// Whether its last first removal is done.
    pub(crate) shown: bool,
}

/// Faults and reads that may still come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) reads: u8,
    pub(crate) crashes: u8,
    /// How often Redis loses its connections and comes back with the state that was saved.
    pub(crate) rollbacks: u8,
    /// How often Redis comes back with that state unseen: the connection stands.
    pub(crate) hidden_rollbacks: u8,
    pub(crate) moved_slots: u8,
    pub(crate) promotions: u8,
    /// How often somebody locks the rules' tables.
    pub(crate) locks: u8,
    /// How often Redis refuses the keys of a rule.
    pub(crate) refusals: u8,
    /// How often a target goes away, for a while or for good.
    pub(crate) absences: u8,
    /// How often the table of row 0 is altered.
    pub(crate) alterations: u8,
}

/// Events that must not have happened, and those that excuse a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct History {
    /// A key was removed for a commit that was not visible.
    pub(crate) removed_early: bool,
    /// walsweep confirmed a commit whose removal was not acknowledged by every target.
    pub(crate) confirmed_early: bool,
    /// The slot was moved, or commits were lost.
    pub(crate) broken: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) postgres: Postgres,
    pub(crate) targets: Vec<Target>,
    /// A value read from Postgres and not yet written to this target.
    pub(crate) reader: Option<(At, usize, Version)>,
    pub(crate) walsweep: Option<Walsweep>,
    /// Whether somebody has the rules' tables for himself.
    pub(crate) locked: bool,
    pub(crate) budget: Budget,
    pub(crate) history: History,
}

/// How a rule names a row's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// UNLINK.
    Exact,
    /// A SCAN pass.
    Pattern,
}

/// A case that is explored, and the rules that it has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) transactions: usize,
    pub(crate) targets: usize,
    pub(crate) shapes: [Shape; ROWS],
    pub(crate) budget: Budget,
    /// Whether a reader may write later than the window.
    pub(crate) late: bool,
    /// The rule that is taken out.
    pub(crate) without: Option<Rule>,
    /// The only property that is checked; all of them if there is none.
    pub(crate) only: Option<&'static str>,
}

impl Commit {
    pub(crate) fn lsn(self) -> Option<u8> {
        match self {
            Commit::Flushed(lsn) | Commit::Visible(lsn) => Some(lsn),
            Commit::Running | Commit::Lost => None,
        }
    }

    pub(crate) fn is_visible(self) -> bool {
        matches!(self, Commit::Visible(_))
    }

    pub(crate) fn is_flushed_only(self) -> bool {
        matches!(self, Commit::Flushed(_))
    }
}

impl Postgres {
    /// Gives the version that a new snapshot reads.
    pub(crate) fn reads(&self, row: usize) -> Version {
        match self.commits[row].is_visible() {
            _ if row == 0 && self.altered => Version::Altered,
            true => Version::New,
            false => Version::Old,
        }
    }
}

impl State {
    /// Whether a value that a target has cached is not what a new snapshot reads.
    pub(crate) fn is_stale(&self, at: At) -> bool {
        let cached = self.targets[at].redis.cached.into_iter().enumerate();
        let mut values = cached.filter_map(|(row, value)| Some((row, value?)));
        values.any(|(row, value)| value != self.postgres.reads(row))
    }

    /// The sweeper of a target, if walsweep runs.
    pub(crate) fn sweeper(&mut self, at: At) -> Option<&mut Sweeper> {
        self.walsweep.as_mut()?.sweepers.get_mut(at)
    }

    /// Whether history is broken, as a target sees it.
    pub(crate) fn is_broken(&self, at: At) -> bool {
        self.history.broken || self.targets[at].broken
    }
}

impl Redis {
    /// Whether it holds what another one does, and shows the same watermark.
    pub(crate) fn equals(&self, other: &Redis) -> bool {
        self.cached == other.cached && self.mark == other.mark
    }
}

impl Sweeper {
    /// Whether readers may trust what the target has cached, as `/readyz` says it.
    pub(crate) fn is_ready(&self) -> bool {
        self.connected && (!self.owed || self.shown) && !self.repeats()
    }

    /// Whether a removal that Redis may have lost is to be repeated.
    pub(crate) fn repeats(&self) -> bool {
        let again = [Stage::Queued, Stage::Passing, Stage::Refused].map(|at| at(Round::Again));
        self.jobs.iter().any(|job| again.contains(&job.stage))
    }

    /// Whether keys wait because Redis refuses them.
    pub(crate) fn is_refused(&self) -> bool {
        self.jobs.iter().any(|job| matches!(job.stage, Stage::Refused(_)))
    }

    /// Whether it has no room: one first removal waits.
    pub(crate) fn is_full(&self) -> bool {
        self.jobs.iter().any(|job| job.stage == Stage::Queued(Round::First))
    }

    /// The job that closes the sweep that is owed.
    pub(crate) fn last_sweep(&self) -> usize {
        if self.jobs[FENCED].stage == Stage::Idle { SWEEP } else { FENCED }
    }
}

impl Scenario {
    pub(crate) fn has(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// Sweeps of everything are patterns, whatever the rules of the rows.
    pub(crate) fn is_pattern(&self, job: usize) -> bool {
        self.shapes.get(job).is_none_or(|shape| *shape == Shape::Pattern)
    }
}
