//! What walsweep is doing, and what stands in its way: the state behind `/healthz` and `/readyz`.
//!
//! A [`Phase`] says how far the session with Postgres and Redis has come. A trouble says what does
//! not work beside it, under a [`Topic`]; whoever finds it out reports it, and takes it back when
//! it is over. Each trouble is logged when it begins, again at growing distances while it lasts,
//! and once more when it is over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::metrics::Metrics;

/// The pipeline gives a sign of life at least every second; after this long without one the process
/// makes no progress, and whoever watches may restart it.
const SIGN_OF_LIFE_MAX: Duration = Duration::from_secs(60);

/// First distance between two log lines about the same trouble; each next one is twice as long.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Longest distance between two log lines about the same trouble.
const SAY_AGAIN_MAX: Duration = Duration::from_secs(600);

/// What walsweep is doing; only [`Phase::Streaming`] is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No session with Postgres.
    Connecting,
    /// Another walsweep has the slot.
    Standby,
    /// Redis is out of reach.
    RedisLost,
    /// History is not shown to be unbroken: everything is swept first; why.
    Sweeping(&'static str),
    /// Everything that is committed and visible is on its way out of Redis.
    Streaming,
    /// Asked to stop.
    Stopping,
}

impl Phase {
    fn text(self) -> String {
        match self {
            Phase::Connecting => "connecting to postgres".to_owned(),
            Phase::Standby => "standby: another process has the slot".to_owned(),
            Phase::RedisLost => "redis is out of reach".to_owned(),
            Phase::Sweeping(reason) => format!("sweeping everything: {reason}"),
            Phase::Streaming => "ready".to_owned(),
            Phase::Stopping => "stopping".to_owned(),
        }
    }
}

/// What a trouble is about. There is at most one trouble for each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// The session with Postgres cannot be had, or ends again and again.
    Session,
    /// A rule that does not fit its table is suspended: its name.
    Rule(Arc<str>),
    /// Redis refuses removals of a rule: its name.
    Refused(Arc<str>),
    /// Redis does not do what is asked of it, for whichever rule.
    Redis,
    /// Keys have waited for their removal longer than they should.
    Late,
    /// Keys are removed, and Redis does not take the watermark, so that nothing is confirmed.
    Watermark,
    /// A listed replica cannot be counted on: its address.
    Replica(Arc<str>),
    /// A sweep of everything waits for transactions that run.
    Fence,
    /// A lookup cannot be asked: its name.
    Lookup(Arc<str>),
    /// The tables of the rules cannot be looked at.
    Watch,
    /// The slot keeps more WAL than it should, or is about to be lost.
    Slot,
}

impl Topic {
    /// Whether readers may see stale values while it lasts, so that `/readyz` answers 503.
    fn stops_ready(&self) -> bool {
        match self {
            Topic::Session | Topic::Rule(_) | Topic::Refused(_) | Topic::Redis | Topic::Late => {
                true
            }
            Topic::Replica(_)
            | Topic::Watermark
            | Topic::Fence
            | Topic::Lookup(_)
            | Topic::Watch
            | Topic::Slot => false,
        }
    }
}

/// Something that does not work.
#[derive(Clone, Debug)]
struct Trouble {
    text: String,
    hint: Option<String>,
    since: Instant,
    /// When it is logged again, and how far that is from the last time.
    say: (Instant, Duration),
}

/// What the endpoints tell, kept up to date by whoever finds something out.
#[derive(Debug)]
pub struct Health {
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    alive_at: Instant,
    troubles: BTreeMap<Topic, Trouble>,
}

impl Health {
    /// Connecting, and alive.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Health {
        let state =
            State { phase: Phase::Connecting, alive_at: Instant::now(), troubles: BTreeMap::new() };
        Health { metrics, state: Mutex::new(state) }
    }

    /// Sets what is being done. Stopping is the last thing that is done.
    pub fn set(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = if state.phase == Phase::Stopping { Phase::Stopping } else { phase };
        state.alive_at = Instant::now();
        self.show(&state);
    }

    /// A sign of life. Says again what has not been said for a while.
    pub fn beat(&self) {
        let mut state = self.lock();
        let now = Instant::now();
        state.alive_at = now;
        for trouble in state.troubles.values_mut().filter(|trouble| trouble.say.0 <= now) {
            trouble.say.1 = (trouble.say.1 * 2).min(SAY_AGAIN_MAX);
            trouble.say.0 = now + trouble.say.1;
            let (text, hint) = (&trouble.text, trouble.hint.as_deref());
            let seconds = (now - trouble.since).as_secs();
            tracing::warn!(hint, "still, after {seconds} s: {text}");
        }
    }

    /// Something does not work: `text` says what, in words for the log and for `/readyz`; `hint`
    /// what a person can do. Logged if it is new; another text for the same topic replaces the last
    /// one, and is said with the next repetition.
    pub fn trouble(&self, topic: Topic, text: &str, hint: Option<&str>) {
        let mut state = self.lock();
        let now = Instant::now();
        let trouble = state.troubles.entry(topic).or_insert_with(|| {
            tracing::warn!(hint, "{text}");
            let say = (now + SAY_AGAIN, SAY_AGAIN);
            Trouble { text: String::new(), hint: None, since: now, say }
        });
        (trouble.text, trouble.hint) = (text.to_owned(), hint.map(str::to_owned));
        self.show(&state);
    }

    /// It works again, if it did not: says so, with how long it lasted.
    pub fn over(&self, topic: &Topic) {
        let mut state = self.lock();
        if let Some(trouble) = state.troubles.remove(topic) {
            let (text, seconds) = (&trouble.text, trouble.since.elapsed().as_secs_f64());
            tracing::info!("over after {seconds:.1} s: {text}");
            self.show(&state);
        }
    }

    /// Takes back every trouble of a kind that is not among those that `keep` names.
    pub fn over_but(&self, kind: impl Fn(&Topic) -> bool, keep: &[Topic]) {
        let gone = |topic: &&Topic| kind(topic) && !keep.contains(topic);
        let topics: Vec<Topic> = self.lock().troubles.keys().filter(gone).cloned().collect();
        topics.iter().for_each(|topic| self.over(topic));
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

    /// What is being done.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// The metrics that tell of the same process.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What `/readyz` answers: whether everything is as it should be, and a text with a line for
    /// the phase and one for each trouble.
    #[must_use]
    pub fn readiness(&self) -> (bool, String) {
        let state = self.lock();
        let phase = match state.phase {
            Phase::Streaming if !state.is_ready() => "not ready".to_owned(),
            phase => phase.text(),
        };
        let troubles = state.troubles.values().map(|trouble| {
            let hint = trouble.hint.as_ref().map(|hint| format!("\n  hint: {hint}"));
            format!("{}{}\n", trouble.text, hint.unwrap_or_default())
        });
        let text = std::iter::once(format!("{phase}\n")).chain(troubles).collect();
        (state.is_ready(), text)
    }

    /// What `/healthz` answers: whether the process can make progress, and why not.
    #[must_use]
    pub fn liveness(&self) -> (bool, String) {
        let is_alive = self.lock().alive_at.elapsed() < SIGN_OF_LIFE_MAX;
        (is_alive, if is_alive { "alive\n" } else { "no progress\n" }.to_owned())
    }

    fn show(&self, state: &State) {
        self.metrics.ready.set(i64::from(state.is_ready()));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

impl State {
    fn is_ready(&self) -> bool {
        self.phase == Phase::Streaming && !self.troubles.keys().any(Topic::stops_ready)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Health, Phase, Topic};
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn a_trouble_that_stops_removals_is_not_ready_and_named() {
        let health = Health::new(Arc::new(Metrics::new(&[])));
        health.set(Phase::Streaming);
        assert_eq!(health.readiness(), (true, "ready\n".to_owned()));
        health.trouble(Topic::Watch, "a lock is in the way", None);
        assert_eq!(health.readiness(), (true, "ready\na lock is in the way\n".to_owned()));
        let rule = Topic::Rule("users".into());
        health.trouble(rule.clone(), "rule `users` is suspended", Some("create the table"));
        let text = "not ready\nrule `users` is suspended\n  hint: create the table\n\
                    a lock is in the way\n";
        assert_eq!(health.readiness(), (false, text.to_owned()));
        health.over_but(|topic| matches!(topic, Topic::Rule(_)), &[]);
        health.over(&Topic::Watch);
        assert_eq!(health.readiness(), (true, "ready\n".to_owned()));
    }
}
