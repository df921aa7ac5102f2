//! The model as the checker takes it, and its properties.

use std::fmt;

use stateright::{Checker, Model, Path, Property};

use super::environment::{Event, events, happen};
use super::rule::Rule;
use super::sidecar::{steps, take};
use super::state::{
    At, BEGIN, Budget, Commit, History, Mark, Postgres, ROWS, Redis, Scenario, State, Target,
    Version,
};
use super::step::Step;

/// The next event or step, and its target: the first, if it is about none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Around(At, Event),
    Own(At, Step),
}

pub(crate) const I1: &str = "I1: no key is removed for a commit that readers cannot see";
pub(crate) const I2: &str = "I2: nothing is confirmed before its keys are removed";
pub(crate) const I3: &str = "I3: at rest the keys of every visible commit are removed";
pub(crate) const I7: &str = "I7: ready and at rest after a break of history, nothing is stale";
pub(crate) const I8: &str = "I8: ready and at rest with history unbroken, nothing is stale";
pub(crate) const I10: &str =
    "I10: at rest no lock, refusal for one rule, or target that is away has held up another key";
pub(crate) const SPARING: &str = "a target is swept only if history is broken there";
const REST: &str = "everything can be visible, removed and confirmed";
const STALE: &str = "a stale value can be cached for a while";

impl Model for Scenario {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let keys = [None, Some(Version::Old)];
        let second = if self.transactions > 1 { &keys[..] } else { &keys[..1] };
        let pairs = keys.iter().flat_map(|one| second.iter().map(|other| [*one, *other]));
        let begun = pairs.map(|cached| begin(cached, self.targets, self.budget));
        begun.map(|state| self.running(state)).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let (mut around, mut own) = (Vec::new(), Vec::new());
        steps(self, state, &mut own);
        events(self, state, &mut around);
        actions.extend(own.into_iter().map(|(at, step)| Action::Own(at, step)));
        actions.extend(around.into_iter().map(|(at, event)| Action::Around(at, event)));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        match action {
            Action::Around(at, event) => happen(&mut next, at, event),
            Action::Own(at, step) => take(self, &mut next, at, step),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Scenario>> {
        let mut all = vec![
            Property::always(I1, |_, state: &State| !state.history.removed_early),
            Property::always(I2, |_, state: &State| !state.history.confirmed_early),
            Property::always(I3, |scenario, state: &State| {
                !is_at_rest(scenario, state) || everything_visible_is_removed(state)
            }),
            Property::always(I7, |scenario, state: &State| {
                each(scenario, |at| !state.is_broken(at) || is_right(scenario, state, at))
            }),
            Property::always(I8, |scenario, state: &State| {
                each(scenario, |at| state.is_broken(at) || is_right(scenario, state, at))
            }),
            Property::always(I10, |scenario, state: &State| {
                !is_at_rest(scenario, state) || nobody_is_held_up(state)
            }),
            Property::always(SPARING, |_, state: &State| {
                let sweepers = state.walsweep.iter().flat_map(|walsweep| &walsweep.sweepers);
                let mut owing = sweepers.filter(|sweeper| sweeper.owed && !sweeper.is_part);
                owing.all(|sweeper| state.is_broken(sweeper.at))
            }),
            Property::sometimes(REST, |scenario: &Scenario, state: &State| {
                let commits = &state.postgres.commits[..scenario.transactions];
                let visible = commits.iter().all(|commit| commit.is_visible());
                visible
                    && state.postgres.confirmed == state.postgres.end
                    && is_at_rest(scenario, state)
            }),
            Property::sometimes(STALE, |scenario, state: &State| {
                !each(scenario, |at| !state.is_stale(at))
            }),
        ];
        all.retain(|property| self.only.is_none_or(|only| only == property.name));
        all
    }
}

impl Scenario {
    fn running(&self, mut state: State) -> State {
        take(self, &mut state, 0, Step::Start);
        state
    }
}

/// Whether something holds of each target.
fn each(scenario: &Scenario, holds: impl Fn(At) -> bool) -> bool {
    (0..scenario.targets).all(holds)
}

/// Before anything happens; a second target has all the old values cached.
fn begin(cached: [Option<Version>; ROWS], targets: usize, budget: Budget) -> State {
    let mark = Mark { timeline: 0, lsn: BEGIN, altered: false };
    let target = |cached| Target {
        redis: Redis { cached, mark: Some(mark), linked: true },
        saved: None,
        refused: [false; ROWS],
        is_away: false,
        removed: [false; ROWS],
        broken: false,
    };
    let first = target(cached);
    let others = (1..targets).map(|_| target([Some(Version::Old); ROWS]));
    State {
        postgres: Postgres {
            commits: [Commit::Running; ROWS],
            end: BEGIN,
            timeline: 0,
            confirmed: BEGIN,
            altered: false,
        },
        targets: std::iter::once(first).chain(others).collect(),
        reader: None,
        walsweep: None,
        locked: false,
        budget,
        history: History::default(),
    }
}

/// Whether walsweep has nothing left to do, and the reader has written what it read.
fn is_at_rest(scenario: &Scenario, state: &State) -> bool {
    let mut own = Vec::new();
    if state.reader.is_none() {
        steps(scenario, state, &mut own);
    }
    state.reader.is_none() && own.is_empty()
}

/// But for what a target refuses, or has to be spared while it is away.
fn everything_visible_is_removed(state: &State) -> bool {
    let received = |at: At| {
        let sweepers = state.walsweep.as_ref().map(|walsweep| &walsweep.sweepers);
        sweepers.and_then(|sweepers| sweepers.get(at)).map_or(BEGIN, |sweeper| sweeper.received)
    };
    let is_done = |at: At, target: &Target, row: usize| match state.postgres.commits[row] {
        // Who moves the slot takes commits away from it; they are swept with everything else.
        Commit::Visible(lsn) => {
            target.removed[row]
                || lsn > received(at)
                || state.is_broken(at)
                || target.refused[row]
                || target.is_away
        }
        Commit::Running | Commit::Flushed(_) | Commit::Lost => true,
    };
    let mut targets = state.targets.iter().enumerate();
    targets.all(|(at, target)| (0..ROWS).all(|row| is_done(at, target, row)))
}

/// Whether the keys of every visible commit are gone, but for those that a target refuses, or that
/// is away, also where walsweep does not even run.
fn nobody_is_held_up(state: &State) -> bool {
    let is_gone = |target: &Target, row: usize| {
        target.removed[row] || target.refused[row] || !state.postgres.commits[row].is_visible()
    };
    let is_served = |(at, target): (At, &Target)| {
        state.is_broken(at) || target.is_away || (0..ROWS).all(|row| is_gone(target, row))
    };
    state.targets.iter().enumerate().all(is_served)
}

fn is_right(scenario: &Scenario, state: &State, at: At) -> bool {
    let sweepers = state.walsweep.as_ref().map(|walsweep| &walsweep.sweepers);
    let is_ready = sweepers.and_then(|sweepers| sweepers.get(at)).is_some_and(|sweeper| {
        let says_so = sweeper.is_refused() && scenario.has(Rule::RefusedNotReady);
        sweeper.is_ready() && !says_so
    });
    !(is_ready && state.is_stale(at) && is_at_rest(scenario, state))
}

/// How a target is told from the first.
fn of(at: At) -> &'static str {
    if at == 0 { "" } else { " (the other target)" }
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Around(at, event) => write!(formatter, "{event}{}", of(*at)),
            Action::Own(at, step) => write!(formatter, "{step}{}", of(*at)),
        }
    }
}

/// Explores all of a scenario and asserts that every property holds. Gives the number of states.
pub(crate) fn holds(scenario: Scenario) -> usize {
    let name = scenario.name;
    let checker = scenario.checker().spawn_bfs().join();
    for (property, path) in checker.discoveries() {
        if property != REST && property != STALE {
            panic!("{name}: broken: {property}\n{}", in_words(path));
        }
    }
    checker.assert_any_discovery(REST);
    checker.assert_any_discovery(STALE);
    let states = checker.unique_state_count();
    println!("{name}: {states} states, {} steps deep, nothing broken", checker.max_depth());
    states
}

/// The shortest way to break a property, in words, one thing a line.
pub(crate) fn breaks(mut scenario: Scenario, property: &'static str) -> String {
    scenario.only = Some(property);
    let (name, without) = (scenario.name, scenario.without);
    let checker = scenario.checker().spawn_bfs().join();
    let states = checker.unique_state_count();
    let Some(path) = checker.discovery(property) else {
        panic!("{name} without {without:?}: {states} states and nothing breaks {property}");
    };
    let words = in_words(path);
    println!("{name} without {without:?}: broken after {states} states: {property}\n{words}");
    words
}

/// Explores all of a scenario and asserts that nothing stale is left at rest.
pub(crate) fn stays_right(scenario: Scenario) {
    for property in [I7, I8] {
        let checker = Scenario { only: Some(property), ..scenario }.checker();
        let checker = checker.spawn_bfs().join();
        checker.assert_no_discovery(property);
        assert!(checker.unique_state_count() > 1_000, "hardly anything was explored");
    }
}

fn in_words(path: Path<State, Action>) -> String {
    let states = path.into_vec();
    let Some((begin, _)) = states.first() else { return String::new() };
    let cached = begin.targets.first().map(|target| target.redis.cached);
    let mut words = format!("  cached at the beginning: {cached:?}\n");
    for (_, action) in &states {
        if let Some(action) = action {
            words.push_str(&format!("  {action}\n"));
        }
    }
    words
}
