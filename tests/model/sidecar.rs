//! walsweep's work, step by step. Every step is one round trip, or the reaction to one.

use super::rule::Rule;
use super::state::{
    At, BUCKETS, Commit, FENCED, JOBS, Job, Mark, Question, ROWS, Round, SWEEP, Scenario, Stage,
    State, Sweeper, Walsweep,
};
use super::step::Step;

/// Adds what walsweep can do now, and to which target; what concerns all stands with the first.
pub(crate) fn steps(scenario: &Scenario, state: &State, steps: &mut Vec<(At, Step)>) {
    let Some(walsweep) = &state.walsweep else {
        if !state.locked || scenario.has(Rule::StartLocked) {
            steps.push((0, Step::Start));
        }
        return;
    };
    match walsweep.question {
        Question::Answered if state.locked => steps.push((0, Step::Ask)),
        Question::Waits if !state.locked => steps.push((0, Step::Answered)),
        _ => {}
    }
    let [first, ..] = &walsweep.sweepers[..] else { return };
    if state.postgres.altered && !first.altered {
        steps.push((0, Step::Notice));
    }
    if let Some(row) = next_commit(state, first) {
        steps.push((0, Step::Receive(row)));
    }
    for sweeper in &walsweep.sweepers {
        sweep_steps(scenario, (state, walsweep), sweeper, |step| steps.push((sweeper.at, step)));
    }
    // What a target covers that is lost is not known.
    let all_known = walsweep.sweepers.iter().all(|sweeper| sweeper.connected);
    if all_known && confirmable(scenario, state, walsweep) > state.postgres.confirmed {
        steps.push((0, Step::Confirm));
    }
}

/// Pushes the steps that can be done to one target.
fn sweep_steps(
    scenario: &Scenario,
    (state, walsweep): (&State, &Walsweep),
    sweeper: &Sweeper,
    mut push: impl FnMut(Step),
) {
    let is_room = !sweeper.is_refused() || scenario.has(Rule::RefusedApart);
    for (index, job) in sweeper.jobs.iter().enumerate() {
        let step = match job.stage {
            // The gate is everybody's, and lets a commit pass once.
            Stage::Gate if index < ROWS && sweeper.at > 0 => continue,
            Stage::Gate if may_pass(scenario, state, (walsweep, sweeper), index) => {
                Step::PassGate(index)
            }
            Stage::Queued(_) if !sweeper.connected || !is_room => continue,
            Stage::Queued(_) if !scenario.is_pattern(index) => {
                match is_refused(sweeper, state, index) {
                    true => Step::Refused(index),
                    false => Step::Unlink(index),
                }
            }
            Stage::Refused(_)
                if is_refused(sweeper, state, index) || !scenario.has(Rule::RefusedAgain) =>
            {
                continue;
            }
            Stage::Refused(_) => Step::Retry(index),
            Stage::Queued(_) if sweeper.pass.is_some() && !scenario.has(Rule::NextPass) => {
                Step::JoinPass(index)
            }
            Stage::Waiting if !job.window || scenario.late => Step::SecondDue(index),
            _ => continue,
        };
        push(step);
    }
    if !sweeper.connected {
        if !state.targets[sweeper.at].is_away {
            push(Step::Reconnect);
        }
        return;
    }
    let waits = |index: &usize| {
        scenario.is_pattern(*index) && matches!(sweeper.jobs[*index].stage, Stage::Queued(_))
    };
    if sweeper.pass.is_some() {
        push(Step::Page);
    } else if is_room && (0..JOBS).any(|index| waits(&index)) {
        push(Step::BeginPass);
    }
    if !sweeper.owed && !sweeper.repeats() {
        if coverable(scenario, state, sweeper) > sweeper.covered {
            push(Step::WriteWatermark);
        } else if sweeper.standing.is_some() && probe_matters(scenario, state, sweeper) {
            push(Step::Probe);
        }
    }
}

/// Whether Redis refuses any of a job's keys.
fn is_refused(sweeper: &Sweeper, state: &State, job: usize) -> bool {
    rows_of(sweeper, job).any(|row| state.targets[sweeper.at].refused[row])
}

/// The rows whose keys a job removes.
fn rows_of(sweeper: &Sweeper, job: usize) -> std::ops::Range<usize> {
    match job {
        row if row < ROWS => row..row + 1,
        _ if sweeper.is_part => 0..1,
        _ => 0..ROWS,
    }
}

fn next_commit(state: &State, sweeper: &Sweeper) -> Option<usize> {
    let next = Some(sweeper.received + 1);
    state.postgres.commits.iter().position(|commit| commit.lsn() == next)
}

fn may_pass(
    scenario: &Scenario,
    state: &State,
    (walsweep, sweeper): (&Walsweep, &Sweeper),
    job: usize,
) -> bool {
    let commits = &state.postgres.commits;
    if walsweep.question == Question::Waits && !scenario.has(Rule::GateAlone) {
        return false;
    }
    if job == FENCED {
        return (0..ROWS).all(|row| !sweeper.fence[row] || !commits[row].is_flushed_only());
    }
    if !is_fed(scenario, walsweep) {
        return false;
    }
    if !scenario.has(Rule::GateForEach) {
        let waits = |row: usize| {
            sweeper.jobs[row].stage == Stage::Gate && commits[row].lsn() < commits[job].lsn()
        };
        if (0..ROWS).any(waits) {
            return false;
        }
    }
    commits[job].is_visible() || !scenario.has(Rule::Gate)
}

/// Whether anything goes to the targets, where there are several: `FanOut::run`. What a full one
/// has no room for waits as one; if all are full, nothing is taken.
fn is_fed(scenario: &Scenario, walsweep: &Walsweep) -> bool {
    let mut full = walsweep.sweepers.iter().map(Sweeper::is_full);
    match scenario.has(Rule::FedApart) {
        _ if scenario.targets == 1 => true,
        true => full.any(|is_full| !is_full),
        false => full.all(|is_full| !is_full),
    }
}

/// The answer of one side of the ledger: everything up to here is complete. What is held counts by
/// its hold.
fn safe(scenario: &Scenario, state: &State, sweeper: &Sweeper) -> u8 {
    let is_open = |job: &Job| match job.stage {
        Stage::Idle | Stage::Remembered => false,
        Stage::Gate => true,
        _ if job.held => false,
        _ => !job.told && scenario.has(Rule::AfterAcknowledgement),
    };
    let open = (0..ROWS).filter(|row| is_open(&sweeper.jobs[*row]));
    let ends = open.filter_map(|row| state.postgres.commits[row].lsn());
    ends.chain(sweeper.hold).min().map_or(sweeper.received, |end| end - 1)
}

/// Whether the watermark is another, or something is kept that it covers already.
fn probe_matters(scenario: &Scenario, state: &State, sweeper: &Sweeper) -> bool {
    let mut after = sweeper.clone();
    cover(state, &mut after);
    sweeper.standing != state.targets[sweeper.at].redis.mark
        || after != *sweeper
        || !state.targets[sweeper.at].redis.linked && scenario.has(Rule::Chain)
}

/// How far the watermark may go.
fn coverable(scenario: &Scenario, state: &State, sweeper: &Sweeper) -> u8 {
    if scenario.has(Rule::WatermarkAfterRemovals) {
        safe(scenario, state, sweeper)
    } else {
        sweeper.received
    }
}

/// How far Postgres may be told: the least of all targets.
fn confirmable(scenario: &Scenario, state: &State, walsweep: &Walsweep) -> u8 {
    let of = |sweeper: &Sweeper| {
        let safe = safe(scenario, state, sweeper);
        if scenario.has(Rule::ConfirmAfterWatermark) { safe.min(sweeper.covered) } else { safe }
    };
    let all = walsweep.sweepers.iter().map(of);
    let one = if scenario.has(Rule::LeastOfTargets) { all.min() } else { all.max() };
    one.unwrap_or(0)
}

/// Does a step.
pub(crate) fn take(scenario: &Scenario, state: &mut State, at: At, step: Step) {
    if matches!(step, Step::Start | Step::Notice) {
        let walsweep = Walsweep {
            question: Question::Answered,
            sweepers: (0..scenario.targets).map(|at| start(scenario, state, at)).collect(),
        };
        state.walsweep = Some(walsweep);
        share_what_is_owed(scenario, state);
        return;
    }
    let Some(mut walsweep) = state.walsweep.take() else { return };
    match step {
        Step::Start | Step::Notice => {}
        Step::Receive(row) => {
            for sweeper in &mut walsweep.sweepers {
                sweeper.received += 1;
                sweeper.jobs[row] = Job { stage: Stage::Gate, ..Job::default() };
            }
        }
        Step::PassGate(job) if job < ROWS => {
            let stage = Stage::Queued(Round::First);
            walsweep.sweepers.iter_mut().for_each(|sweeper| sweeper.jobs[job].stage = stage);
        }
        Step::Ask => walsweep.question = Question::Waits,
        Step::Answered => walsweep.question = Question::Answered,
        Step::Confirm => confirm(scenario, state, &walsweep),
        step => sweep(scenario, state, &mut walsweep.sweepers[at], step),
    }
    state.walsweep = Some(walsweep);
    share_what_is_owed(scenario, state);
}

/// Without its rule, what one target owes is swept from all.
fn share_what_is_owed(scenario: &Scenario, state: &mut State) {
    let Some(walsweep) = &mut state.walsweep else { return };
    let owes = walsweep.sweepers.iter().any(|sweeper| sweeper.owed && !sweeper.is_part);
    if owes && !scenario.has(Rule::OwnSweep) {
        walsweep.sweepers.iter_mut().filter(|sweeper| !sweeper.owed).for_each(owe);
    }
}

fn confirm(scenario: &Scenario, state: &mut State, walsweep: &Walsweep) {
    let lsn = confirmable(scenario, state, walsweep);
    let unremoved = |row: usize| {
        let end = state.postgres.commits[row].lsn();
        end.is_some_and(|end| end > state.postgres.confirmed && end <= lsn)
            && !state.targets.iter().all(|target| target.removed[row])
    };
    state.history.confirmed_early |= (0..ROWS).any(unremoved);
    state.postgres.confirmed = lsn;
}

/// Does a step of one target.
fn sweep(scenario: &Scenario, state: &mut State, sweeper: &mut Sweeper, step: Step) {
    match step {
        Step::Reconnect => reconnect(scenario, state, sweeper),
        Step::PassGate(job) => sweeper.jobs[job].stage = Stage::Queued(Round::First),
        Step::Unlink(job) => {
            remove(state, sweeper, job, None);
            if holds(scenario, state, sweeper) {
                acknowledged(scenario, state, sweeper, job);
            }
        }
        Step::Refused(job) => refused(scenario, sweeper, job),
        Step::Retry(job) => {
            if let Stage::Refused(round) = sweeper.jobs[job].stage {
                sweeper.jobs[job].stage = Stage::Queued(round);
            }
        }
        Step::BeginPass => {
            sweeper.pass = Some(0);
            (0..JOBS).filter(|job| scenario.is_pattern(*job)).for_each(|job| {
                join(sweeper, job);
            });
        }
        Step::JoinPass(job) => join(sweeper, job),
        Step::Page => page(scenario, state, sweeper),
        Step::SecondDue(job) => sweeper.jobs[job].stage = Stage::Queued(Round::Second),
        Step::WriteWatermark => write(scenario, state, sweeper),
        Step::Probe if state.targets[sweeper.at].redis.mark == sweeper.standing => {
            if holds(scenario, state, sweeper) {
                cover(state, sweeper);
            }
        }
        Step::Probe => contradicted(scenario, state, sweeper),
        Step::Start
        | Step::Notice
        | Step::Receive(_)
        | Step::Ask
        | Step::Answered
        | Step::Confirm => {}
    }
}

/// A new session: `session`; a target that is away is judged when it comes.
fn start(scenario: &Scenario, state: &mut State, at: At) -> Sweeper {
    let postgres = &state.postgres;
    let mut sweeper = Sweeper {
        at,
        received: postgres.confirmed,
        jobs: [Job::default(); JOBS],
        hold: None,
        fence: [false; ROWS],
        pass: None,
        connected: false,
        judged: false,
        standing: None,
        covered: 0,
        floor: postgres.confirmed,
        stood: [false; ROWS + 2],
        altered: postgres.altered,
        owed: false,
        is_part: false,
        shown: false,
    };
    if !state.targets[at].is_away {
        connect(state, &mut sweeper);
        judge(scenario, state, &mut sweeper);
    }
    sweeper
}

/// A new connection: the number is new, and nothing is counted yet.
fn connect(state: &mut State, sweeper: &mut Sweeper) {
    sweeper.connected = true;
    let target = &mut state.targets[sweeper.at];
    target.redis.linked = true;
    target.saved.iter_mut().for_each(|saved| saved.linked = true);
}

/// The first look of a session: `proof::evidence::at_start`, and what the gate makes of a resync.
fn judge(scenario: &Scenario, state: &State, sweeper: &mut Sweeper) {
    let (found, postgres) = (state.targets[sweeper.at].redis.mark, &state.postgres);
    (sweeper.judged, sweeper.standing) = (true, found);
    let is_behind = found.is_none_or(|mark| mark.lsn < sweeper.floor);
    let is_foreign = found.is_some_and(|mark| mark.timeline != postgres.timeline);
    let is_broken = is_foreign && scenario.has(Rule::SweepOnTimeline)
        || is_behind && scenario.has(Rule::SweepOnWatermark);
    let reads_otherwise = found.is_some_and(|mark| mark.altered != sweeper.altered);
    let is_part = !is_broken && reads_otherwise && scenario.has(Rule::SweepPart);
    if is_broken || is_part {
        owe(sweeper);
        sweeper.is_part = is_part;
        if scenario.has(Rule::SweepAfterFence) {
            sweeper.fence = postgres.commits.map(Commit::is_flushed_only);
            if sweeper.fence.contains(&true) {
                sweeper.jobs[FENCED].stage = Stage::Gate;
            }
        }
    } else if let Some(mark) = found {
        stands(sweeper, mark.lsn);
    }
}

/// A watermark that is good evidence stands at this LSN: `Ward::written`, `Memory::add`.
fn stands(sweeper: &mut Sweeper, lsn: u8) {
    sweeper.covered = lsn;
    sweeper.stood[usize::from(lsn)] = true;
}

/// Up to where a Redis that went back has its removals, if the rest can be repeated:
/// `Memory::went_back_to`.
fn went_back_to(scenario: &Scenario, state: &State, sweeper: &Sweeper) -> Option<u8> {
    let is_of_here =
        |mark: &Mark| (mark.timeline, mark.altered) == (state.postgres.timeline, sweeper.altered);
    let found = state.targets[sweeper.at].redis.mark.filter(is_of_here)?;
    let is_ours = sweeper.stood[usize::from(found.lsn)] && found.lsn >= sweeper.floor;
    (is_ours || !scenario.has(Rule::RememberedOnly)).then_some(found.lsn)
}

/// A sweep of everything is owed, if it is not said to be of a part: `Ward`, and `Stream::resync`.
/// What waits for the fence of a part goes on as a part of everything.
fn owe(sweeper: &mut Sweeper) {
    (sweeper.owed, sweeper.shown) = (true, false);
    sweeper.covered = 0;
    let stage = Stage::Queued(Round::First);
    sweeper.jobs[SWEEP] = Job { stage, ..Job::default() };
    if !std::mem::take(&mut sweeper.is_part) {
        sweeper.jobs[FENCED] = Job::default();
    }
}

/// `State::connect_done`, `State::repeat_everything`, `Ward::connected`.
fn reconnect(scenario: &Scenario, state: &mut State, sweeper: &mut Sweeper) {
    connect(state, sweeper);
    sweeper.pass = None;
    if !sweeper.judged {
        return judge(scenario, state, sweeper);
    }
    for job in &mut sweeper.jobs {
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
    let found = state.targets[sweeper.at].redis.mark;
    let is_judged = match sweeper.owed {
        true => sweeper.is_part && scenario.has(Rule::JudgeWhilePart),
        false => scenario.has(Rule::SweepOnWatermark),
    };
    if is_judged && found != sweeper.standing {
        match went_back_to(scenario, state, sweeper) {
            Some(lsn) => {
                sweeper.covered = lsn;
                repeat_above(scenario, state, sweeper, lsn);
            }
            None => {
                let covered = sweeper.covered;
                owe(sweeper);
                if !scenario.has(Rule::WatermarkAfterSweep) {
                    sweeper.covered = covered;
                }
            }
        }
    }
    sweeper.standing = found;
    sweeper.shown = false;
}

/// `Refill::covered_again`.
fn repeat_above(scenario: &Scenario, state: &State, sweeper: &mut Sweeper, lsn: u8) {
    for (job, commit) in sweeper.jobs.iter_mut().zip(state.postgres.commits) {
        let is_lost = job.stage == Stage::Remembered && commit.lsn() > Some(lsn);
        if is_lost && scenario.has(Rule::RepeatFromMemory) {
            job.stage = Stage::Queued(Round::Again);
        }
    }
}

fn join(sweeper: &mut Sweeper, job: usize) {
    if let Stage::Queued(round) = sweeper.jobs[job].stage {
        sweeper.jobs[job].stage = Stage::Passing(round);
    }
}

/// Whether the chain holds; if not, the connection is given up. `Standalone::swapped`.
fn holds(scenario: &Scenario, state: &State, sweeper: &mut Sweeper) -> bool {
    sweeper.connected = state.targets[sweeper.at].redis.linked || !scenario.has(Rule::Chain);
    sweeper.connected
}

/// Removes what the job's keys name; in one bucket, if it is for a pass. Counted, if it is sent.
fn remove(state: &mut State, sweeper: &Sweeper, job: usize, bucket: Option<u8>) {
    for row in rows_of(sweeper, job) {
        if bucket.is_none_or(|bucket| usize::from(bucket) == row) {
            let was = state.targets[sweeper.at].redis.cached[row].take();
            if bucket.is_none() || was.is_some() {
                state.targets[sweeper.at].saved.iter_mut().for_each(|saved| saved.linked = false);
            }
        }
    }
    let first = [Stage::Queued(Round::First), Stage::Passing(Round::First)];
    if job < ROWS && first.contains(&sweeper.jobs[job].stage) {
        state.history.removed_early |= !state.postgres.commits[job].is_visible();
    }
}

fn page(scenario: &Scenario, state: &mut State, sweeper: &mut Sweeper) {
    let Some(bucket) = sweeper.pass else { return };
    let passing =
        |sweeper: &Sweeper, job: usize| matches!(sweeper.jobs[job].stage, Stage::Passing(_));
    for job in 0..JOBS {
        if passing(sweeper, job) && is_hit(sweeper, state, job, bucket) {
            refused(scenario, sweeper, job);
        } else if passing(sweeper, job) {
            remove(state, sweeper, job, Some(bucket));
        }
    }
    if !holds(scenario, state, sweeper) {
        return;
    }
    sweeper.pass = Some(bucket + 1).filter(|next| *next < BUCKETS);
    if sweeper.pass.is_none() {
        // The pass counts as a removal, whatever it found.
        state.targets[sweeper.at].saved.iter_mut().for_each(|saved| saved.linked = false);
        for job in 0..JOBS {
            if passing(sweeper, job) {
                acknowledged(scenario, state, sweeper, job);
            }
        }
    }
}

/// Whether a page of a pass finds a key of the job that Redis refuses to remove.
fn is_hit(sweeper: &Sweeper, state: &State, job: usize, bucket: u8) -> bool {
    let row = usize::from(bucket);
    let target = &state.targets[sweeper.at];
    rows_of(sweeper, job).contains(&row)
        && target.refused[row]
        && target.redis.cached[row].is_some()
}

/// A removal was answered with an error. Without its rule that passes for done.
fn refused(scenario: &Scenario, sweeper: &mut Sweeper, job: usize) {
    let one = &mut sweeper.jobs[job];
    match one.stage {
        Stage::Queued(round) | Stage::Passing(round) if scenario.has(Rule::RefusedHeld) => {
            one.stage = Stage::Refused(round);
        }
        _ => (one.stage, one.told) = (Stage::Swept, true),
    }
}

/// One removal of a job's keys is acknowledged: `State::removed`, `State::done`.
fn acknowledged(scenario: &Scenario, state: &mut State, sweeper: &mut Sweeper, job: usize) {
    let second = [Stage::Queued(Round::Second), Stage::Passing(Round::Second)];
    let is_second = second.contains(&sweeper.jobs[job].stage);
    if let Some(removed) = state.targets[sweeper.at].removed.get_mut(job) {
        *removed = true;
    } else if job == sweeper.last_sweep() {
        sweeper.shown = true;
    }
    if is_second || !scenario.has(Rule::SecondRemoval) {
        sweeper.jobs[job].stage = Stage::Swept;
        sweeper.jobs[job].held = false;
        sweeper.hold = sweeper.hold.filter(|_| sweeper.jobs.iter().any(|job| job.held));
    } else {
        sweeper.jobs[job].stage = Stage::Waiting;
        sweeper.jobs[job].window = state.reader.is_some_and(|(at, _, _)| at == sweeper.at);
        if scenario.has(Rule::HoldUntilSecond) {
            hold(scenario, state, sweeper, job);
            return;
        }
    }
    let was_told = std::mem::replace(&mut sweeper.jobs[job].told, true);
    if !was_told && job >= ROWS && job == sweeper.last_sweep() {
        sweeper.owed = false;
    }
}

/// From the first removal to the second the hold alone keeps a transaction from being confirmed.
fn hold(scenario: &Scenario, state: &State, sweeper: &mut Sweeper, job: usize) {
    // A sweep of everything is no transaction.
    let Some(end) = state.postgres.commits.get(job).and_then(|commit| commit.lsn()) else { return };
    let smallest = sweeper.hold.map_or(end, |hold| hold.min(end));
    let of_first = sweeper.hold.unwrap_or(end);
    sweeper.jobs[job].held = true;
    sweeper.hold = Some(if scenario.has(Rule::HoldSmallest) { smallest } else { of_first });
}

/// `Ward::next`, the script, `Ward::written`; or `Ward::contradicted`.
fn write(scenario: &Scenario, state: &mut State, sweeper: &mut Sweeper) {
    let found = state.targets[sweeper.at].redis.mark;
    if scenario.has(Rule::CompareAndSet) && found != sweeper.standing {
        contradicted(scenario, state, sweeper);
        return;
    }
    if !holds(scenario, state, sweeper) {
        return;
    }
    let lsn = coverable(scenario, state, sweeper);
    let timeline = state.postgres.timeline;
    let mark = Some(Mark { timeline, lsn, altered: sweeper.altered });
    (state.targets[sweeper.at].redis.mark, sweeper.standing) = (mark, mark);
    stands(sweeper, lsn);
    cover(state, sweeper);
}

/// Remembers what the watermark covers, but no sweep of everything: who goes back behind it shows
/// no watermark of this session. `Refill::covered`.
fn cover(state: &State, sweeper: &mut Sweeper) {
    for (index, job) in sweeper.jobs.iter_mut().enumerate() {
        let end = state.postgres.commits.get(index).and_then(|commit| commit.lsn());
        if job.stage == Stage::Swept && end.unwrap_or(0) <= sweeper.covered {
            *job = Job::default();
            if end.is_some() {
                job.stage = Stage::Remembered;
            }
        }
    }
}

/// `Ward::contradicted`: another watermark stands. One that is remembered is answered as after a
/// lost connection.
fn contradicted(scenario: &Scenario, state: &State, sweeper: &mut Sweeper) {
    if went_back_to(scenario, state, sweeper).is_some() {
        sweeper.connected = false;
        return;
    }
    sweeper.standing = state.targets[sweeper.at].redis.mark;
    owe(sweeper);
}
