//! Events around walsweep: writers, readers, faults.

use std::fmt;

use super::state::{At, BEGIN, Commit, Scenario, State, Target};

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// A commit record is flushed.
    Commit(usize),
    /// The backend leaves the process array.
    Show(usize),
    Read(usize),
    Fill,
    /// A replica, or a file, has the commands up to here.
    Save,
    /// Redis continues with what was saved; the connections break.
    GoBack,
    /// Redis continues with what was saved, behind something that keeps the connection.
    GoBackHidden,
    Crash,
    /// The slot is made anew, or moved, while nobody streams.
    MoveSlot,
    /// A standby that has the log up to here becomes the primary.
    Promote(u8),
    /// Somebody takes the rules' tables for himself, or queues for them.
    Lock,
    Unlock,
    /// Redis refuses the keys of this row's rule from now on.
    Refuse(usize),
    Allow(usize),
    /// A target goes away: its connections break, and nobody can make another one.
    Leave,
    Return,
    /// The table of row 0 reads otherwise from now on.
    Alter,
}

/// Adds what may happen now, and to which target; what happens to none of them stands with the
/// first.
pub(crate) fn events(scenario: &Scenario, state: &State, events: &mut Vec<(At, Event)>) {
    let (postgres, budget) = (&state.postgres, &state.budget);
    for row in 0..scenario.transactions {
        match postgres.commits[row] {
            Commit::Running => events.push((0, Event::Commit(row))),
            Commit::Flushed(_) => events.push((0, Event::Show(row))),
            Commit::Visible(_) | Commit::Lost => {}
        }
    }
    for at in 0..state.targets.len() {
        read_or_go_back(scenario, (state, at), |event| events.push((at, event)));
    }
    if budget.crashes > 0 && state.walsweep.is_some() {
        events.push((0, Event::Crash));
    }
    if budget.moved_slots > 0 && state.walsweep.is_none() && postgres.confirmed < postgres.end {
        events.push((0, Event::MoveSlot));
    }
    match state.locked {
        true => events.push((0, Event::Unlock)),
        false if budget.locks > 0 => events.push((0, Event::Lock)),
        false => {}
    }
    for at in 0..state.targets.len() {
        refuse_or_leave(scenario, (state, at), |event| events.push((at, event)));
    }
    if budget.alterations > 0 {
        events.push((0, Event::Alter));
    }
    if budget.promotions > 0 {
        events.extend((BEGIN..postgres.end).map(|end| (0, Event::Promote(end))));
    }
}

fn read_or_go_back(scenario: &Scenario, (state, at): (&State, At), mut push: impl FnMut(Event)) {
    let (budget, target) = (&state.budget, &state.targets[at]);
    match state.reader {
        Some((of, _, _)) if of == at => push(Event::Fill),
        None if budget.reads > 0 => {
            let absent = |row: &usize| target.redis.cached[*row].is_none();
            (0..scenario.transactions).filter(absent).map(Event::Read).for_each(&mut push);
        }
        _ => {}
    }
    let may_go_back = budget.rollbacks + budget.hidden_rollbacks > 0;
    match &target.saved {
        None if may_go_back => push(Event::Save),
        Some(saved) if !saved.equals(&target.redis) => {
            if budget.rollbacks > 0 {
                push(Event::GoBack);
            }
            if budget.hidden_rollbacks > 0 {
                push(Event::GoBackHidden);
            }
        }
        _ => {}
    }
}

fn refuse_or_leave(scenario: &Scenario, (state, at): (&State, At), mut push: impl FnMut(Event)) {
    let target = &state.targets[at];
    for row in 0..scenario.transactions {
        match target.refused[row] {
            true => push(Event::Allow(row)),
            false if state.budget.refusals > 0 => push(Event::Refuse(row)),
            false => {}
        }
    }
    match target.is_away {
        true => push(Event::Return),
        false if state.budget.absences > 0 => push(Event::Leave),
        false => {}
    }
}

/// Lets it happen.
pub(crate) fn happen(state: &mut State, at: At, event: Event) {
    match event {
        Event::Commit(row) => {
            state.postgres.end += 1;
            state.postgres.commits[row] = Commit::Flushed(state.postgres.end);
        }
        Event::Show(row) => {
            if let Some(lsn) = state.postgres.commits[row].lsn() {
                state.postgres.commits[row] = Commit::Visible(lsn);
            }
        }
        Event::Read(row) => {
            state.budget.reads -= 1;
            state.reader = Some((at, row, state.postgres.reads(row)));
        }
        Event::Fill => {
            if let Some((at, row, value)) = state.reader.take() {
                state.targets[at].redis.cached[row] = Some(value);
            }
            if let Some(sweeper) = state.sweeper(at) {
                sweeper.jobs.iter_mut().for_each(|job| job.window = false);
            }
        }
        Event::Save => state.targets[at].saved = Some(state.targets[at].redis.clone()),
        Event::GoBack => {
            state.budget.rollbacks -= 1;
            go_back(&mut state.targets[at]);
            lose(state, at);
        }
        Event::GoBackHidden => {
            state.budget.hidden_rollbacks -= 1;
            go_back(&mut state.targets[at]);
        }
        Event::Crash => {
            state.budget.crashes -= 1;
            state.walsweep = None;
        }
        Event::MoveSlot => {
            state.budget.moved_slots -= 1;
            state.history.broken = true;
            state.postgres.confirmed = state.postgres.end;
        }
        Event::Promote(end) => promote(state, end),
        Event::Lock => {
            state.budget.locks -= 1;
            state.locked = true;
        }
        Event::Unlock => state.locked = false,
        Event::Refuse(row) => {
            state.budget.refusals -= 1;
            state.targets[at].refused[row] = true;
        }
        Event::Allow(row) => state.targets[at].refused[row] = false,
        Event::Leave => {
            state.budget.absences -= 1;
            state.targets[at].is_away = true;
            lose(state, at);
        }
        Event::Return => state.targets[at].is_away = false,
        Event::Alter => {
            state.budget.alterations -= 1;
            state.postgres.altered = true;
        }
    }
}

/// The connections to a target break.
fn lose(state: &mut State, at: At) {
    if let Some(sweeper) = state.sweeper(at) {
        sweeper.connected = false;
    }
}

fn go_back(target: &mut Target) {
    target.broken = true;
    // The file stays: the next start of Redis may load it once more.
    if let Some(saved) = &target.saved {
        target.redis = saved.clone();
    }
}

/// Promotes a standby. Commits that it did not have are lost; those that it has are visible as soon
/// as they are replayed. Its copy of the slot is not further than its log.
fn promote(state: &mut State, end: u8) {
    let postgres = &mut state.postgres;
    for commit in &mut postgres.commits {
        if let Some(lsn) = commit.lsn() {
            *commit = if lsn > end { Commit::Lost } else { Commit::Visible(lsn) };
        }
    }
    postgres.end = end;
    postgres.timeline += 1;
    postgres.confirmed = postgres.confirmed.min(end);
    state.budget.promotions -= 1;
    state.history.broken = true;
    // Its connections to the old primary end, and so do all locks there.
    state.walsweep = None;
    state.locked = false;
}

impl fmt::Display for Event {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Commit(row) => {
                write!(formatter, "postgres: the commit of row {row} is in the log")
            }
            Event::Show(row) => {
                write!(formatter, "postgres: the commit of row {row} is visible")
            }
            Event::Read(row) => write!(formatter, "reader: misses key {row}, reads row {row}"),
            Event::Fill => write!(formatter, "reader: writes what it read to redis"),
            Event::Save => write!(formatter, "redis: a replica or a file has all up to here"),
            Event::GoBack => write!(formatter, "redis: goes back to that, connections break"),
            Event::GoBackHidden => write!(formatter, "redis: goes back to that, unseen"),
            Event::Crash => write!(formatter, "walsweep: is killed"),
            Event::MoveSlot => write!(formatter, "postgres: the slot is moved to the log's end"),
            Event::Promote(end) => {
                write!(formatter, "postgres: a standby with the log up to {end} is promoted")
            }
            Event::Lock => write!(formatter, "application: locks the rules' tables"),
            Event::Unlock => write!(formatter, "application: unlocks the rules' tables"),
            Event::Refuse(row) => write!(formatter, "redis: refuses key {row} from now on"),
            Event::Allow(row) => write!(formatter, "redis: accepts key {row} from now on"),
            Event::Leave => write!(formatter, "redis: goes away"),
            Event::Return => write!(formatter, "redis: is there again"),
            Event::Alter => write!(formatter, "postgres: the table of row 0 is altered"),
        }
    }
}
