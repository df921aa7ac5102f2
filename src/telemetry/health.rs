//! The state behind `/healthz` and `/readyz`: what walsweep is doing, and what stands in its way.
//!
//! A [`Phase`] says how far the session with Postgres and Redis has come. A trouble says what does
//! not work beside it, under a [`Topic`]; whoever finds it out reports it, and takes it back when
//! it is over. Each trouble is logged when it begins, again at growing distances while it lasts,
//! and once more when it is over.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::metrics::{Metrics, seconds};
use super::noted::Noted;
use super::reloads::Reloads;
use super::standstill::Standstill;
use super::status::Facts;
use super::trail::Trail;
use super::trouble::{Cure, Distance, Topic, Trouble};
use crate::config::TargetId;
use crate::keys::RuleId;
use crate::words::below;

/// The pipeline gives a sign of life at least every second, and every six while it waits for
/// another. After this long without one, whoever watches may restart the process.
const SIGN_OF_LIFE_MAX: Duration = Duration::from_secs(60);

/// Sessions with Postgres that begin and end for this long without getting anywhere are no progress
/// either. Giving up what the slot holds, which cures most of it, comes long before.
const NOWHERE_MAX: Duration = Duration::from_secs(300);

/// The phase that walsweep is in; only [`Phase::Streaming`] is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No session with Postgres.
    Connecting,
    /// Another walsweep has the slot.
    Standby,
    /// Redis is out of reach.
    RedisLost,
    /// A change may have been missed, so that keys are swept first; why.
    Sweeping(&'static str),
    /// Everything that is committed and visible is on its way out of Redis.
    Streaming,
    /// Asked to stop.
    Stopping,
}

impl Phase {
    /// The words for it; `target` is the one that it is about, of several.
    fn text(self, target: Option<&str>) -> String {
        let redis = target.map_or_else(|| "redis".to_owned(), |name| format!("redis `{name}`"));
        match self {
            Phase::Connecting => "connecting to postgres".to_owned(),
            Phase::Standby => "standby".to_owned(),
            Phase::RedisLost => format!("{redis} is out of reach"),
            Phase::Sweeping(reason) if target.is_some() => format!("sweeping {redis}: {reason}"),
            Phase::Sweeping(reason) => format!("sweeping: {reason}"),
            Phase::Streaming => "ready".to_owned(),
            Phase::Stopping => "stopping".to_owned(),
        }
    }
}

/// The state as it is told to people, at one moment.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) phase: Phase,
    /// The words for the phase, as `/readyz` has them.
    pub(super) doing: String,
    /// Since when it is in that phase.
    pub(super) phase_since: Instant,
    pub(super) is_ready: bool,
    /// Since when something may be unconfirmed.
    pub(super) unconfirmed_since: Option<Instant>,
    pub(super) troubles: Vec<ToldTrouble>,
}

/// A trouble as it is told to people.
#[derive(Clone, Debug)]
pub(super) struct ToldTrouble {
    pub(super) topic: Topic,
    pub(super) text: String,
    pub(super) cure: Cure,
    pub(super) since: Instant,
    pub(super) stops_ready: bool,
}

/// The state that the endpoints tell, kept up to date by whoever finds something out.
#[derive(Debug)]
pub struct Health {
    /// Other ones once the rules or targets are others.
    metrics: RwLock<Arc<Metrics>>,
    reloads: Reloads,
    standstill: Standstill,
    trail: Trail,
    /// The configuration, as far as it is shown.
    facts: RwLock<Arc<Facts>>,
    state: Mutex<State>,
    /// SCAN passes that are under way.
    passes: AtomicUsize,
}

/// A SCAN pass that is under way, until this is dropped.
#[derive(Debug)]
pub struct PassUnderWay(Arc<Health>);

impl Drop for PassUnderWay {
    fn drop(&mut self) {
        self.0.passes.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct State {
    phase: Phase,
    phase_since: Instant,
    /// The target that is furthest behind, of several.
    target: Option<String>,
    alive_at: Instant,
    /// Since when sessions begin and end and get nowhere.
    nowhere_since: Option<Instant>,
    /// Since when something may be unconfirmed.
    unconfirmed_since: Option<Instant>,
    troubles: BTreeMap<Topic, Trouble>,
    /// Who has the slot, in [`Phase::Standby`].
    holder: String,
    /// Whether the first attempt at a session has an outcome, of whichever kind.
    has_begun: bool,
}

impl Health {
    /// Connecting, and alive.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Health {
        let state = State {
            phase: Phase::Connecting,
            phase_since: Instant::now(),
            target: None,
            alive_at: Instant::now(),
            nowhere_since: None,
            unconfirmed_since: None,
            troubles: BTreeMap::new(),
            holder: String::new(),
            has_begun: false,
        };
        let (trail, passes) = (Trail::new(metrics.target_count()), AtomicUsize::new(0));
        let (metrics, reloads) = (RwLock::new(metrics), Reloads::default());
        let standstill = Standstill::default();
        let facts = RwLock::default();
        Health { metrics, reloads, standstill, trail, facts, state: Mutex::new(state), passes }
    }

    /// The trail of the latest transactions.
    #[must_use]
    pub fn trail(&self) -> &Trail {
        &self.trail
    }

    /// A session begins, whose LSNs are of this history of the server.
    pub fn session_of(&self, history: &str) {
        self.trail.begins(history);
        self.present().begins(history);
    }

    /// Counts rules that were widened because too much waits, and how often each.
    pub fn widened_for_room(&self, widened: &[(RuleId, u64)]) {
        let metrics = self.metrics();
        metrics.widened_for_room(widened);
        self.trail.widened_for_room(widened);
        for (rule, templates) in widened {
            let rule = metrics.rule_name(*rule);
            tracing::debug!(rule, templates, "widened to all that it could give: too much waits");
        }
    }

    /// A SCAN pass begins.
    #[must_use]
    pub fn pass(self: &Arc<Health>) -> PassUnderWay {
        self.passes.fetch_add(1, Ordering::Relaxed);
        PassUnderWay(Arc::clone(self))
    }

    /// Whether a SCAN pass is under way.
    #[must_use]
    pub fn has_pass(&self) -> bool {
        self.passes.load(Ordering::Relaxed) > 0
    }

    /// Sets what is being done. Stopping is the last thing that is done.
    pub fn set(&self, phase: Phase) {
        self.set_for(phase, None);
    }

    /// Sets what is being done for the target that is furthest behind.
    pub fn set_of(&self, phase: Phase, target: TargetId) {
        self.set_for(phase, self.present().target_name(target));
    }

    fn set_for(&self, phase: Phase, target: Option<&str>) {
        let mut state = self.lock();
        state.target = target.map(str::to_owned);
        let (before, now) = (state.phase, Instant::now());
        state.phase = if before == Phase::Stopping { Phase::Stopping } else { phase };
        state.phase_since = if state.phase == before { state.phase_since } else { now };
        state.alive_at = now;
        state.has_begun = true;
        self.show(&state);
    }

    /// Whether the start is over: the first attempt at a session has an outcome, so that from now
    /// on it either streams or waits.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.lock().has_begun
    }

    /// Another walsweep has the slot: `holder`.
    pub fn stands_by(&self, holder: String) {
        self.lock().holder = holder;
        self.set(Phase::Standby);
    }

    /// A sign of life. Says again what has not been said for a while.
    pub fn beat(&self) {
        let mut state = self.lock();
        let now = Instant::now();
        state.alive_at = now;
        state.troubles.values_mut().for_each(|trouble| trouble.say_again(now));
        self.show(&state);
    }

    /// Something does not work: `text` says what, in words for the log and for `/readyz`; `hint`
    /// what a person can do. Logged if it is new, or if the text is, of the first few; later texts
    /// for the same topic replace the last one, and are said with the next repetition.
    pub fn trouble(&self, topic: Topic, text: &str, hint: Option<&str>) {
        self.hold(topic, (text, Cure::of_words(hint)), ("", false));
    }

    /// Something does not work, as [`trouble`](Health::trouble) says, and SQL may cure it.
    pub fn trouble_with(&self, topic: Topic, text: &str, cure: Cure) {
        self.hold(topic, (text, cure), ("", false));
    }

    /// Something is refused, by an error of this class: as [`trouble`](Health::trouble), but where
    /// it was refused by an error of another class before, that one is over.
    pub fn refusal(&self, topic: Topic, kind: &'static str, text: &str, hint: Option<&str>) {
        self.hold(topic, (text, Cure::of_words(hint)), (kind, false));
    }

    /// Something does not work for a moment, as it has to: as [`trouble`](Health::trouble), but the
    /// log has it as information.
    pub fn interruption(&self, topic: Topic, text: &str, hint: Option<&str>) {
        self.hold(topic, (text, Cure::of_words(hint)), ("", true));
    }

    fn hold(
        &self,
        topic: Topic,
        (text, cure): (&str, Cure),
        (kind, is_intended): (&'static str, bool),
    ) {
        let mut state = self.lock();
        let now = Instant::now();
        let is_another = |before: &Trouble| before.is_of_another_kind(kind);
        if state.troubles.get(&topic).is_some_and(is_another)
            && let Some(before) = state.troubles.remove(&topic)
        {
            before.say_over();
        }
        let trouble = state.troubles.entry(topic).or_insert_with(|| {
            let (text, cure, said, kind) = (String::new(), Cure::default(), Vec::new(), "");
            let mut again = Distance::default();
            again.is_due(now);
            Trouble { text, cure, since: now, said, kind, again }
        });
        trouble.kind = kind;
        (trouble.text, trouble.cure) = (text.to_owned(), cure);
        trouble.say(is_intended);
        self.show(&state);
    }

    /// It works again, if it did not: says so, with how long it lasted.
    pub fn over(&self, topic: &Topic) {
        let mut state = self.lock();
        if let Some(trouble) = state.troubles.remove(topic) {
            trouble.say_over();
            self.show(&state);
        }
    }

    /// Takes back every trouble of a kind that is not among those that `keep` names.
    pub fn over_but(&self, kind: impl Fn(&Topic) -> bool, keep: &[Topic]) {
        let gone = |topic: &&Topic| kind(topic) && !keep.contains(topic);
        let topics: Vec<Topic> = self.lock().troubles.keys().filter(gone).cloned().collect();
        topics.iter().for_each(|topic| self.over(topic));
    }

    /// Drops troubles of a kind without a word: nobody looks any more whether they are over.
    pub fn forget(&self, kind: impl Fn(&Topic) -> bool) {
        let mut state = self.lock();
        state.troubles.retain(|topic, _| !kind(topic));
        self.show(&state);
    }

    /// Awaits something that may rightly take long, giving signs of life.
    pub async fn alive_while<T>(&self, awaited: impl Future<Output = T>) -> T {
        let mut awaited = std::pin::pin!(awaited);
        loop {
            match timeout(SIGN_OF_LIFE_MAX / 10, &mut awaited).await {
                Ok(outcome) => return outcome,
                Err(_elapsed) => self.beat(),
            }
        }
    }

    /// Sessions with Postgres begin and end and get nowhere, or do so no longer.
    pub fn gets_nowhere(&self, nowhere: bool) {
        let mut state = self.lock();
        let now = Instant::now();
        state.nowhere_since = nowhere.then(|| state.nowhere_since.unwrap_or(now));
    }

    /// The oldest transaction that is received and not confirmed arrived at `since`.
    pub fn unconfirmed(&self, since: Option<Instant>) {
        self.lock().unconfirmed_since = since;
    }

    /// No session stands: whatever is committed from now on may be unconfirmed, besides what is.
    pub fn sees_nothing(&self) {
        let mut state = self.lock();
        let now = Instant::now();
        state.unconfirmed_since.get_or_insert(now);
    }

    /// Since when something may be unconfirmed.
    #[must_use]
    pub fn unconfirmed_since(&self) -> Option<Instant> {
        self.lock().unconfirmed_since
    }

    /// Whether something is known to stand in the way of the confirmation of what was removed.
    #[must_use]
    pub fn holds_confirmation(&self) -> bool {
        self.lock().troubles.keys().any(Topic::holds_confirmation)
    }

    /// Whether another process has the slot, and no walsweep is behind it.
    #[must_use]
    pub fn nobody_removes(&self) -> bool {
        self.lock().troubles.contains_key(&Topic::Holder)
    }

    /// The names of the rules that are suspended.
    #[must_use]
    pub fn suspended(&self) -> Vec<String> {
        let state = self.lock();
        let rule = |topic: &Topic| match topic {
            Topic::Rule(rule) => Some(rule.to_string()),
            _ => None,
        };
        state.troubles.keys().filter_map(rule).collect()
    }

    /// Gives the phase that walsweep is in.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// The metrics that tell of the same process, those that grow with time as of now.
    #[must_use]
    pub fn metrics(&self) -> Arc<Metrics> {
        let age = self.unconfirmed_since().map_or(Duration::ZERO, |since| since.elapsed());
        let metrics = self.present();
        metrics.oldest_unconfirmed.set(seconds(age));
        metrics.healthy.set(i64::from(self.liveness().0 && !self.nobody_removes()));
        metrics
    }

    fn present(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics.read().expect("no code panics while it holds this lock"))
    }

    /// Tells of other rules and targets from now on: these are their metrics. What was said of the
    /// ones before is dropped without a word; the next session looks for itself. What is wrong with
    /// the slot stays, and a reload tells itself that it is over.
    pub fn is_of(&self, metrics: Arc<Metrics>) {
        *self.metrics.write().expect("no code panics while it holds this lock") = metrics;
        let stays = |topic: &Topic| {
            matches!(topic, Topic::Slot | Topic::SlotOwner | Topic::NewSlot | Topic::Reload)
        };
        self.forget(|topic| !stays(topic));
    }

    /// Gives the times in which this process stood still.
    #[must_use]
    pub fn standstill(&self) -> &Standstill {
        &self.standstill
    }

    /// Gives the reloads of the configuration.
    #[must_use]
    pub fn reloads(&self) -> &Reloads {
        &self.reloads
    }

    /// Gives the notes of what is under way, and waits.
    #[must_use]
    pub fn noted(&self) -> Arc<Noted> {
        Arc::clone(&self.present().noted)
    }

    /// Shows this of the configuration from now on.
    pub fn shows(&self, facts: Facts) {
        *self.facts.write().expect("no code panics while it holds this lock") = Arc::new(facts);
    }

    /// Gives the configuration, as far as it is shown.
    #[must_use]
    pub fn facts(&self) -> Arc<Facts> {
        Arc::clone(&self.facts.read().expect("no code panics while it holds this lock"))
    }

    /// Gives the answer of `/readyz`: whether everything is as it should be, and a text with a line
    /// for the phase and one for each trouble.
    #[must_use]
    pub fn readiness(&self) -> (bool, String) {
        let state = self.lock();
        let phase = state.doing();
        let troubles = state.troubles.values().map(|trouble| {
            let hint = trouble.cure.hint.as_ref().map(|hint| format!("\n  hint: {hint}"));
            let sql = below("  ", trouble.cure.short_sql());
            format!("{}{}{sql}\n", trouble.text, hint.unwrap_or_default())
        });
        let text = std::iter::once(format!("{phase}\n")).chain(troubles).collect();
        (state.is_ready(), text)
    }

    /// Gives what stands in the way of being ready while it streams.
    #[must_use]
    pub fn in_the_way(&self) -> Vec<String> {
        let state = self.lock();
        let stops = state
            .troubles
            .iter()
            .filter(|(topic, trouble)| topic.stops_ready(trouble.since.elapsed()));
        stops.map(|(_, trouble)| trouble.text.clone()).collect()
    }

    /// Gives the answer of `/readyz?rollout`: whether the process that this one replaces may end.
    /// This one has the slot then, or waits for it; whatever else is wrong was wrong with the other
    /// one, too.
    #[must_use]
    pub fn may_replace(&self) -> bool {
        matches!(self.phase(), Phase::Standby | Phase::Sweeping(_) | Phase::Streaming)
    }

    /// Gives one line of what is being done, and of the first trouble.
    #[must_use]
    pub fn summary(&self) -> String {
        let (_, text) = self.readiness();
        let lines = text.lines().filter(|line| !line.starts_with("  ")).take(2);
        lines.collect::<Vec<_>>().join("; ")
    }

    /// Gives the answer of `/healthz`: whether the process makes progress, and why not. One that
    /// waits for a server which is away, or for a person, does what can be done.
    #[must_use]
    pub fn liveness(&self) -> (bool, String) {
        let state = self.lock();
        let silent = state.alive_at.elapsed();
        if silent >= SIGN_OF_LIFE_MAX {
            return (false, format!("no progress: no sign of life for {} s\n", silent.as_secs()));
        }
        match state.nowhere_since.map(|since| since.elapsed()) {
            Some(lost) if lost >= NOWHERE_MAX => {
                let trouble = state.troubles.get(&Topic::Session);
                let why = trouble.map_or("", |trouble| &trouble.text);
                let seconds = lost.as_secs();
                let what = "sessions with postgres begin and end, and none gets any further";
                (false, format!("no progress: for {seconds} s {what}\n{why}\n"))
            }
            _ => (true, "alive\n".to_owned()),
        }
    }

    /// Gives the state for people.
    pub(super) fn told(&self) -> Told {
        let state = self.lock();
        let told = |(topic, trouble): (&Topic, &Trouble)| ToldTrouble {
            topic: topic.clone(),
            text: trouble.text.clone(),
            cure: trouble.cure.clone(),
            since: trouble.since,
            stops_ready: topic.stops_ready(trouble.since.elapsed()),
        };
        Told {
            phase: state.phase,
            doing: state.doing(),
            phase_since: state.phase_since,
            is_ready: state.is_ready(),
            unconfirmed_since: state.unconfirmed_since,
            troubles: state.troubles.iter().map(told).collect(),
        }
    }

    fn show(&self, state: &State) {
        self.present().ready.set(i64::from(state.is_ready()));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

impl State {
    fn is_ready(&self) -> bool {
        let stops_ready =
            |(topic, trouble): (&Topic, &Trouble)| topic.stops_ready(trouble.since.elapsed());
        self.phase == Phase::Streaming && !self.troubles.iter().any(stops_ready)
    }

    /// The words for the phase.
    fn doing(&self) -> String {
        match self.phase {
            Phase::Streaming if !self.is_ready() => "not ready".to_owned(),
            Phase::Standby => format!("{}: {} has the slot", self.phase.text(None), self.holder),
            phase => phase.text(self.target.as_deref()),
        }
    }
}
