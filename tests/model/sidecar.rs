//! What walsweep does, step by step. Every step is one round trip, or the reaction to one.

use std::fmt;

use super::rule::Rule;
use super::state::{
    BUCKETS, Commit, FENCED, JOBS, Job, Mark, Question, ROWS, Round, SWEEP, Scenario, Stage, State,
    Walsweep,
};

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// Connects to both, reads the watermark and judges it.
    Start,
    /// Notices that a table reads otherwise, and begins a session anew.
    Notice,
    /// Connects to Redis again.
    Reconnect,
    /// The next commit arrives.
    Receive(usize),
    /// A snapshot contains it.
    PassGate(usize),
    /// UNLINK, acknowledged.
    Unlink(usize),
    /// A pass begins with every pattern that waits.
    BeginPass,
    /// A pattern is added to the pass that is under way; only without its rule.
    JoinPass(usize),
    /// One page of the pass: scanned, matched, removed.
    Page,
    /// UNLINK, refused.
    Refused(usize),
    /// What was refused is to be sent once more.
    Retry(usize),
    /// The window is over.
    SecondDue(usize),
    /// Asks how the rules' tables are, and has to wait.
    Ask,
    /// Is answered.
    Answered,
    WriteWatermark,
    /// The watermark is written over itself, where that shows or changes something.
    Probe,
    Confirm,
}

/// What walsweep can do now.
pub(crate) fn steps(scenario: &Scenario, state: &State, steps: &mut Vec<Step>) {
    let Some(walsweep) = &state.walsweep else {
        if !state.locked || scenario.has(Rule::StartLocked) {
            steps.push(Step::Start);
        }
        return;
    };
    match walsweep.question {
        Question::Answered if state.locked => steps.push(Step::Ask),
        Question::Waits if !state.locked => steps.push(Step::Answered),
        _ => {}
    }
    if state.postgres.altered && !walsweep.altered {
        steps.push(Step::Notice);
    }
    let is_room = !walsweep.is_refused() || scenario.has(Rule::RefusedApart);
    if let Some(row) = next_commit(state, walsweep) {
        steps.push(Step::Receive(row));
    }
    for (index, job) in walsweep.jobs.iter().enumerate() {
        let step = match job.stage {
            Stage::Gate if may_pass(scenario, state, walsweep, index) => Step::PassGate(index),
            Stage::Queued(_) if !walsweep.connected || !is_room => continue,
            Stage::Queued(_) if !scenario.is_pattern(index) => {
                match is_refused(walsweep, state, index) {
                    true => Step::Refused(index),
                    false => Step::Unlink(index),
                }
            }
            Stage::Refused(_)
                if is_refused(walsweep, state, index) || !scenario.has(Rule::RefusedAgain) =>
            {
                continue;
            }
            Stage::Refused(_) => Step::Retry(index),
            Stage::Queued(_) if walsweep.pass.is_some() && !scenario.has(Rule::NextPass) => {
                Step::JoinPass(index)
            }
            Stage::Waiting if !job.window || scenario.late => Step::SecondDue(index),
            _ => continue,
        };
        steps.push(step);
    }
    if !walsweep.connected {
        steps.push(Step::Reconnect);
        return;
    }
    let waits = |index: &usize| {
        scenario.is_pattern(*index) && matches!(walsweep.jobs[*index].stage, Stage::Queued(_))
    };
    if walsweep.pass.is_some() {
        steps.push(Step::Page);
    } else if is_room && (0..JOBS).any(|index| waits(&index)) {
        steps.push(Step::BeginPass);
    }
    if !walsweep.owed && !walsweep.repeats() {
        if coverable(scenario, state, walsweep) > walsweep.covered {
            steps.push(Step::WriteWatermark);
        } else if walsweep.standing.is_some() && probe_matters(scenario, state, walsweep) {
            steps.push(Step::Probe);
        }
    }
    if confirmable(scenario, state, walsweep) > state.postgres.confirmed {
        steps.push(Step::Confirm);
    }
}

/// Whether Redis refuses any of a job's keys.
fn is_refused(walsweep: &Walsweep, state: &State, job: usize) -> bool {
    rows_of(walsweep, job).any(|row| state.refused[row])
}

/// The rows whose keys a job removes.
fn rows_of(walsweep: &Walsweep, job: usize) -> std::ops::Range<usize> {
    match job {
        row if row < ROWS => row..row + 1,
        _ if walsweep.is_part => 0..1,
        _ => 0..ROWS,
    }
}

fn next_commit(state: &State, walsweep: &Walsweep) -> Option<usize> {
    let next = Some(walsweep.received + 1);
    state.postgres.commits.iter().position(|commit| commit.lsn() == next)
}

fn may_pass(scenario: &Scenario, state: &State, walsweep: &Walsweep, job: usize) -> bool {
    let commits = &state.postgres.commits;
    if walsweep.question == Question::Waits && !scenario.has(Rule::GateAlone) {
        return false;
    }
    if job == FENCED {
        return (0..ROWS).all(|row| !walsweep.fence[row] || !commits[row].is_flushed_only());
    }
    if !scenario.has(Rule::GateForEach) {
        let waits = |row: usize| {
            walsweep.jobs[row].stage == Stage::Gate && commits[row].lsn() < commits[job].lsn()
        };
        if (0..ROWS).any(waits) {
            return false;
        }
    }
    commits[job].is_visible() || !scenario.has(Rule::Gate)
}

/// The ledger's answer: everything up to here is complete. What is held counts by its hold.
fn safe(scenario: &Scenario, state: &State, walsweep: &Walsweep) -> u8 {
    let is_open = |job: &Job| match job.stage {
        Stage::Idle | Stage::Remembered => false,
        Stage::Gate => true,
        _ if job.held => false,
        _ => !job.told && scenario.has(Rule::AfterAcknowledgement),
    };
    let open = (0..ROWS).filter(|row| is_open(&walsweep.jobs[*row]));
    let ends = open.filter_map(|row| state.postgres.commits[row].lsn());
    ends.chain(walsweep.hold).min().map_or(walsweep.received, |end| end - 1)
}

/// Whether the watermark is another, or something is kept that it covers already.
fn probe_matters(scenario: &Scenario, state: &State, walsweep: &Walsweep) -> bool {
    let mut after = walsweep.clone();
    cover(state, &mut after);
    walsweep.standing != state.redis.mark
        || after != *walsweep
        || !state.redis.linked && scenario.has(Rule::Chain)
}

/// How far the watermark may go.
fn coverable(scenario: &Scenario, state: &State, walsweep: &Walsweep) -> u8 {
    if scenario.has(Rule::WatermarkAfterRemovals) {
        safe(scenario, state, walsweep)
    } else {
        walsweep.received
    }
}

/// How far Postgres may be told.
fn confirmable(scenario: &Scenario, state: &State, walsweep: &Walsweep) -> u8 {
    let safe = safe(scenario, state, walsweep);
    if scenario.has(Rule::ConfirmAfterWatermark) { safe.min(walsweep.covered) } else { safe }
}

/// Does a step.
pub(crate) fn take(scenario: &Scenario, state: &mut State, step: Step) {
    if matches!(step, Step::Start | Step::Notice | Step::Reconnect) {
        // The number is new, and nothing is counted yet.
        state.redis.linked = true;
        state.saved.iter_mut().for_each(|saved| saved.linked = true);
    }
    if matches!(step, Step::Start | Step::Notice) {
        state.walsweep = Some(start(scenario, state));
        return;
    }
    let Some(mut walsweep) = state.walsweep.take() else { return };
    match step {
        Step::Start | Step::Notice => {}
        Step::Reconnect => reconnect(scenario, state, &mut walsweep),
        Step::Receive(row) => {
            walsweep.received += 1;
            walsweep.jobs[row] = Job { stage: Stage::Gate, ..Job::default() };
        }
        Step::PassGate(job) => walsweep.jobs[job].stage = Stage::Queued(Round::First),
        Step::Unlink(job) => {
            remove(state, &walsweep, job, None);
            if holds(scenario, state, &mut walsweep) {
                acknowledged(scenario, state, &mut walsweep, job);
            }
        }
        Step::Refused(job) => refused(scenario, &mut walsweep, job),
        Step::Retry(job) => {
            if let Stage::Refused(round) = walsweep.jobs[job].stage {
                walsweep.jobs[job].stage = Stage::Queued(round);
            }
        }
        Step::Ask => walsweep.question = Question::Waits,
        Step::Answered => walsweep.question = Question::Answered,
        Step::BeginPass => {
            walsweep.pass = Some(0);
            (0..JOBS).filter(|job| scenario.is_pattern(*job)).for_each(|job| {
                join(&mut walsweep, job);
            });
        }
        Step::JoinPass(job) => join(&mut walsweep, job),
        Step::Page => page(scenario, state, &mut walsweep),
        Step::SecondDue(job) => walsweep.jobs[job].stage = Stage::Queued(Round::Second),
        Step::WriteWatermark => write(scenario, state, &mut walsweep),
        Step::Probe if state.redis.mark == walsweep.standing => {
            if holds(scenario, state, &mut walsweep) {
                cover(state, &mut walsweep);
            }
        }
        Step::Probe => contradicted(scenario, state, &mut walsweep),
        Step::Confirm => {
            let lsn = confirmable(scenario, state, &walsweep);
            let unremoved = |row: usize| {
                let end = state.postgres.commits[row].lsn();
                end.is_some_and(|end| end > state.postgres.confirmed && end <= lsn)
                    && !state.history.removed[row]
            };
            state.history.confirmed_early |= (0..ROWS).any(unremoved);
            state.postgres.confirmed = lsn;
        }
    }
    state.walsweep = Some(walsweep);
}

/// A new session: `session`, `proof::evidence::at_start`, and what the gate makes of a resync.
fn start(scenario: &Scenario, state: &State) -> Walsweep {
    let (found, postgres) = (state.redis.mark, &state.postgres);
    let mut walsweep = Walsweep {
        received: postgres.confirmed,
        jobs: [Job::default(); JOBS],
        hold: None,
        question: Question::Answered,
        fence: [false; ROWS],
        pass: None,
        connected: true,
        standing: found,
        covered: 0,
        floor: postgres.confirmed,
        stood: [false; ROWS + 2],
        altered: postgres.altered,
        owed: false,
        is_part: false,
        shown: false,
    };
    let is_behind = found.is_none_or(|mark| mark.lsn < postgres.confirmed);
    let is_foreign = found.is_some_and(|mark| mark.timeline != postgres.timeline);
    let is_broken = is_foreign && scenario.has(Rule::SweepOnTimeline)
        || is_behind && scenario.has(Rule::SweepOnWatermark);
    let reads_otherwise = found.is_some_and(|mark| mark.altered != postgres.altered);
    let is_part = !is_broken && reads_otherwise && scenario.has(Rule::SweepPart);
    if is_broken || is_part {
        owe(&mut walsweep);
        walsweep.is_part = is_part;
        if scenario.has(Rule::SweepAfterFence) {
            walsweep.fence = postgres.commits.map(Commit::is_flushed_only);
            if walsweep.fence.contains(&true) {
                walsweep.jobs[FENCED].stage = Stage::Gate;
            }
        }
    } else if let Some(mark) = found {
        stands(&mut walsweep, mark.lsn);
    }
    walsweep
}

/// A watermark that is good evidence stands at this LSN: `Ward::written`, `Memory::add`.
fn stands(walsweep: &mut Walsweep, lsn: u8) {
    walsweep.covered = lsn;
    walsweep.stood[usize::from(lsn)] = true;
}

/// Up to where a Redis that went back has its removals, if the rest can be repeated:
/// `Memory::went_back_to`.
fn went_back_to(scenario: &Scenario, state: &State, walsweep: &Walsweep) -> Option<u8> {
    let is_of_here =
        |mark: &Mark| (mark.timeline, mark.altered) == (state.postgres.timeline, walsweep.altered);
    let found = state.redis.mark.filter(is_of_here)?;
    let is_ours = walsweep.stood[usize::from(found.lsn)] && found.lsn >= walsweep.floor;
    (is_ours || !scenario.has(Rule::RememberedOnly)).then_some(found.lsn)
}

/// A sweep of everything is owed, if it is not said to be of a part: `Ward`, and `Stream::resync`.
/// What waits for the fence of a part goes on as a part of everything.
fn owe(walsweep: &mut Walsweep) {
    (walsweep.owed, walsweep.shown) = (true, false);
    walsweep.covered = 0;
    let stage = Stage::Queued(Round::First);
    walsweep.jobs[SWEEP] = Job { stage, ..Job::default() };
    if !std::mem::take(&mut walsweep.is_part) {
        walsweep.jobs[FENCED] = Job::default();
    }
}

/// `State::connect_done`, `State::repeat_everything`, `Ward::connected`.
fn reconnect(scenario: &Scenario, state: &State, walsweep: &mut Walsweep) {
    walsweep.connected = true;
    walsweep.pass = None;
    for job in &mut walsweep.jobs {
        let repeat = scenario.has(Rule::RepeatOnReconnect);
        job.stage = match job.stage {
            Stage::Waiting | Stage::Swept if repeat => Stage::Queued(Round::Again),
            Stage::Queued(Round::Second)
            | Stage::Passing(Round::Second)
            | Stage::Refused(Round::Second)
                if repeat =>
            {
                Stage::Queued(Round::Again)
            }
            Stage::Passing(round) | Stage::Refused(round) => Stage::Queued(round),
            other => other,
        };
    }
    let found = state.redis.mark;
    let is_judged = match walsweep.owed {
        true => walsweep.is_part && scenario.has(Rule::JudgeWhilePart),
        false => scenario.has(Rule::SweepOnWatermark),
    };
    if is_judged && found != walsweep.standing {
        match went_back_to(scenario, state, walsweep) {
            Some(lsn) => {
                walsweep.covered = lsn;
                repeat_above(scenario, state, walsweep, lsn);
            }
            None => {
                let covered = walsweep.covered;
                owe(walsweep);
                if !scenario.has(Rule::WatermarkAfterSweep) {
                    walsweep.covered = covered;
                }
            }
        }
    }
    walsweep.standing = found;
    walsweep.shown = false;
}

/// `Refill::covered_again`.
fn repeat_above(scenario: &Scenario, state: &State, walsweep: &mut Walsweep, lsn: u8) {
    for (job, commit) in walsweep.jobs.iter_mut().zip(state.postgres.commits) {
        let is_lost = job.stage == Stage::Remembered && commit.lsn() > Some(lsn);
        if is_lost && scenario.has(Rule::RepeatFromMemory) {
            job.stage = Stage::Queued(Round::Again);
        }
    }
}

fn join(walsweep: &mut Walsweep, job: usize) {
    if let Stage::Queued(round) = walsweep.jobs[job].stage {
        walsweep.jobs[job].stage = Stage::Passing(round);
    }
}

/// Whether the chain holds; if not, the connection is given up. `Standalone::swapped`.
fn holds(scenario: &Scenario, state: &State, walsweep: &mut Walsweep) -> bool {
    walsweep.connected = state.redis.linked || !scenario.has(Rule::Chain);
    walsweep.connected
}

/// Removes what the job's keys name; in one bucket, if it is for a pass. Counted, if it is sent.
fn remove(state: &mut State, walsweep: &Walsweep, job: usize, bucket: Option<u8>) {
    for row in rows_of(walsweep, job) {
        if bucket.is_none_or(|bucket| usize::from(bucket) == row) {
            let was = state.redis.cached[row].take();
            if bucket.is_none() || was.is_some() {
                state.saved.iter_mut().for_each(|saved| saved.linked = false);
            }
        }
    }
    let first = [Stage::Queued(Round::First), Stage::Passing(Round::First)];
    if job < ROWS && first.contains(&walsweep.jobs[job].stage) {
        state.history.removed_early |= !state.postgres.commits[job].is_visible();
    }
}

fn page(scenario: &Scenario, state: &mut State, walsweep: &mut Walsweep) {
    let Some(bucket) = walsweep.pass else { return };
    let passing =
        |walsweep: &Walsweep, job: usize| matches!(walsweep.jobs[job].stage, Stage::Passing(_));
    for job in 0..JOBS {
        if passing(walsweep, job) && is_hit(walsweep, state, job, bucket) {
            refused(scenario, walsweep, job);
        } else if passing(walsweep, job) {
            remove(state, walsweep, job, Some(bucket));
        }
    }
    if !holds(scenario, state, walsweep) {
        return;
    }
    walsweep.pass = Some(bucket + 1).filter(|next| *next < BUCKETS);
    if walsweep.pass.is_none() {
        // The pass counts as a removal, whatever it found.
        state.saved.iter_mut().for_each(|saved| saved.linked = false);
        for job in 0..JOBS {
            if passing(walsweep, job) {
                acknowledged(scenario, state, walsweep, job);
            }
        }
    }
}

/// Whether a page of a pass finds a key of the job that Redis refuses to remove.
fn is_hit(walsweep: &Walsweep, state: &State, job: usize, bucket: u8) -> bool {
    let row = usize::from(bucket);
    rows_of(walsweep, job).contains(&row) && state.refused[row] && state.redis.cached[row].is_some()
}

/// A removal was answered with an error. Without its rule that passes for done.
fn refused(scenario: &Scenario, walsweep: &mut Walsweep, job: usize) {
    let one = &mut walsweep.jobs[job];
    match one.stage {
        Stage::Queued(round) | Stage::Passing(round) if scenario.has(Rule::RefusedHeld) => {
            one.stage = Stage::Refused(round);
        }
        _ => (one.stage, one.told) = (Stage::Swept, true),
    }
}

/// One removal of a job's keys is acknowledged: `State::removed`, `State::done`.
fn acknowledged(scenario: &Scenario, state: &mut State, walsweep: &mut Walsweep, job: usize) {
    let second = [Stage::Queued(Round::Second), Stage::Passing(Round::Second)];
    let is_second = second.contains(&walsweep.jobs[job].stage);
    if let Some(removed) = state.history.removed.get_mut(job) {
        *removed = true;
    } else if job == walsweep.last_sweep() {
        walsweep.shown = true;
    }
    if is_second || !scenario.has(Rule::SecondRemoval) {
        walsweep.jobs[job].stage = Stage::Swept;
        walsweep.jobs[job].held = false;
        walsweep.hold = walsweep.hold.filter(|_| walsweep.jobs.iter().any(|job| job.held));
    } else {
        walsweep.jobs[job].stage = Stage::Waiting;
        walsweep.jobs[job].window = state.reader.is_some();
        if scenario.has(Rule::HoldUntilSecond) {
            hold(scenario, state, walsweep, job);
            return;
        }
    }
    let was_told = std::mem::replace(&mut walsweep.jobs[job].told, true);
    if !was_told && job >= ROWS && job == walsweep.last_sweep() {
        walsweep.owed = false;
    }
}

/// From the first removal to the second the hold alone keeps a transaction from being confirmed.
fn hold(scenario: &Scenario, state: &State, walsweep: &mut Walsweep, job: usize) {
    // A sweep of everything is no transaction.
    let Some(end) = state.postgres.commits.get(job).and_then(|commit| commit.lsn()) else { return };
    let smallest = walsweep.hold.map_or(end, |hold| hold.min(end));
    let of_first = walsweep.hold.unwrap_or(end);
    walsweep.jobs[job].held = true;
    walsweep.hold = Some(if scenario.has(Rule::HoldSmallest) { smallest } else { of_first });
}

/// `Ward::next`, the script, `Ward::written`; or `Ward::contradicted`.
fn write(scenario: &Scenario, state: &mut State, walsweep: &mut Walsweep) {
    if scenario.has(Rule::CompareAndSet) && state.redis.mark != walsweep.standing {
        contradicted(scenario, state, walsweep);
        return;
    }
    if !holds(scenario, state, walsweep) {
        return;
    }
    let lsn = coverable(scenario, state, walsweep);
    let timeline = state.postgres.timeline;
    let mark = Some(Mark { timeline, lsn, altered: walsweep.altered });
    (state.redis.mark, walsweep.standing) = (mark, mark);
    stands(walsweep, lsn);
    cover(state, walsweep);
}

/// What the watermark covers is remembered; a sweep of everything is not: who goes back behind it
/// shows no watermark of this session. `Refill::covered`.
fn cover(state: &State, walsweep: &mut Walsweep) {
    for (index, job) in walsweep.jobs.iter_mut().enumerate() {
        let end = state.postgres.commits.get(index).and_then(|commit| commit.lsn());
        if job.stage == Stage::Swept && end.unwrap_or(0) <= walsweep.covered {
            *job = Job::default();
            if end.is_some() {
                job.stage = Stage::Remembered;
            }
        }
    }
}

/// `Ward::contradicted`: another watermark stands. One that is remembered is answered as after a
/// lost connection.
fn contradicted(scenario: &Scenario, state: &State, walsweep: &mut Walsweep) {
    if went_back_to(scenario, state, walsweep).is_some() {
        walsweep.connected = false;
        return;
    }
    walsweep.standing = state.redis.mark;
    owe(walsweep);
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = |job: &usize| match *job {
            SWEEP => "what is owed".to_owned(),
            FENCED => "what is owed, after the fence".to_owned(),
            row => format!("key {row}"),
        };
        match self {
            Step::Start => write!(formatter, "walsweep: starts, judges the watermark"),
            Step::Notice => write!(formatter, "walsweep: notices that a table is altered"),
            Step::Reconnect => write!(formatter, "walsweep: connects again, judges the watermark"),
            Step::Receive(row) => write!(formatter, "walsweep: receives the commit of row {row}"),
            Step::PassGate(job) => write!(formatter, "walsweep: gate lets pass: {}", keys(job)),
            Step::Unlink(job) => write!(formatter, "walsweep: UNLINK acknowledged: {}", keys(job)),
            Step::BeginPass => write!(formatter, "walsweep: begins a pass"),
            Step::JoinPass(job) => write!(formatter, "walsweep: adds to the pass: {}", keys(job)),
            Step::Page => write!(formatter, "walsweep: scans a bucket"),
            Step::Refused(job) => write!(formatter, "walsweep: UNLINK refused: {}", keys(job)),
            Step::Retry(job) => write!(formatter, "walsweep: tries again: {}", keys(job)),
            Step::Ask => write!(formatter, "walsweep: asks about the tables, and waits"),
            Step::Answered => write!(formatter, "walsweep: is answered about the tables"),
            Step::SecondDue(job) => write!(formatter, "walsweep: window over: {}", keys(job)),
            Step::WriteWatermark => write!(formatter, "walsweep: writes the watermark"),
            Step::Probe => write!(formatter, "walsweep: writes the watermark over itself"),
            Step::Confirm => write!(formatter, "walsweep: confirms to postgres"),
        }
    }
}
