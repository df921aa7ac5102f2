//! Readiness, liveness, and what is said of troubles, on paused time.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, advance, sleep};
use tracing::subscriber::DefaultGuard;

use super::health::{Health, Phase};
use super::metrics::Metrics;
use super::trouble::{Cure, Topic};
use crate::config::TargetId;

/// Collects what is logged while it is there.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub(crate) fn start() -> (Log, DefaultGuard) {
        let log = Log::default();
        let writer = log.clone();
        let lines = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .without_time()
            .with_target(false);
        (log, tracing::subscriber::set_default(lines.finish()))
    }

    /// The lines since the last call.
    pub(crate) fn lines(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        let lines = String::from_utf8(bytes).unwrap();
        lines.lines().map(|line| line.trim().to_owned()).collect()
    }
}

fn streaming() -> Health {
    let health = Health::new(Arc::new(Metrics::new(&[])));
    health.set(Phase::Streaming);
    health
}

#[tokio::test(start_paused = true)]
async fn what_lasts_is_said_at_growing_distances_and_once_when_it_is_over() {
    let (log, _guard) = Log::start();
    let health = streaming();
    let mut said = Vec::new();
    for second in 0..3600 {
        health.trouble(Topic::Slot, "it is full", Some("empty it"));
        health.beat();
        said.extend(log.lines().into_iter().map(|line| (second, line)));
        advance(Duration::from_secs(1)).await;
    }
    let seconds: Vec<i32> = said.iter().map(|(second, _)| *second).collect();
    assert_eq!(seconds, [0, 10, 30, 70, 150, 310, 630, 1230, 1830, 2430, 3030]);
    assert_eq!(said[0].1, "WARN it is full hint=\"empty it\"");
    assert_eq!(said[1].1, "WARN still, after 10 s: it is full hint=\"empty it\"");
    health.over(&Topic::Slot);
    health.over(&Topic::Slot);
    assert_eq!(log.lines(), ["INFO resolved after 3600.0 s: it is full"]);
}

#[test]
fn a_cure_is_apart_from_its_reason() {
    let (log, _guard) = Log::start();
    let health = streaming();
    let cure = |sql: &str| Cure { hint: Some("set it up".to_owned()), sql: Some(sql.to_owned()) };
    health.trouble_with(Topic::Session, "no publication", cure("a;\nb"));
    let lines = "not ready\nno publication\n  hint: set it up\n  sql: a;\n       b;\n";
    assert_eq!(health.readiness().1, lines);
    assert_eq!(health.summary(), "not ready; no publication");
    let said = "WARN no publication hint=\"set it up\" sql=\"a;\\nb\"";
    assert_eq!(log.lines(), [said]);
    // A wall of it is for the command that runs it.
    let wall = "do $setup$ begin null; end $setup$";
    health.trouble_with(Topic::Session, "no publication", cure(wall));
    assert_eq!(health.readiness().1, "not ready\nno publication\n  hint: set it up\n");
    assert_eq!(health.told().troubles[0].cure.sql.as_deref(), Some(wall));
    health.over(&Topic::Session);
    let last = log.lines().pop().unwrap();
    assert!(last.ends_with(" s: no publication"), "{last}");
}

#[test]
fn what_is_forgotten_is_taken_back_and_not_told_as_resolved() {
    let (log, _guard) = Log::start();
    let health = streaming();
    health.trouble(Topic::Redis(TargetId::FIRST), "redis is away", None);
    health.forget(|topic| *topic == Topic::Redis(TargetId::FIRST));
    assert_eq!(health.readiness(), (true, "ready\n".to_owned()));
    assert_eq!(log.lines(), ["WARN redis is away"]);
}

#[test]
fn another_text_of_the_same_trouble_is_said_at_once_but_not_every_one() {
    let (log, _guard) = Log::start();
    let health = streaming();
    for text in ["connection refused", "starting up", "connection refused", "starting up"] {
        health.trouble(Topic::Session, text, None);
    }
    assert_eq!(log.lines(), ["WARN connection refused", "WARN starting up"]);
    (0..100).for_each(|s| health.trouble(Topic::Session, &format!("for {s} s"), None));
    assert_eq!(log.lines(), ["WARN for 0 s"], "one that counts is said once");
    ('a'..='z').for_each(|at| health.trouble(Topic::Session, &format!("place {at}"), None));
    assert_eq!(log.lines().len(), 2, "five texts in all");
    assert_eq!(health.readiness().1, "not ready\nplace z\n");
}

#[tokio::test(start_paused = true)]
async fn a_process_without_progress_is_not_alive() {
    let health = streaming();
    let is_alive = || health.liveness().0;
    advance(Duration::from_secs(59)).await;
    assert!(is_alive());
    advance(Duration::from_secs(1)).await;
    let silent = (false, "no progress: no sign of life for 60 s\n".to_owned());
    assert_eq!(health.liveness(), silent);
    let told = |value| health.metrics().text().contains(&format!("walsweep_healthy {value}\n"));
    assert!(told(0), "the metric is of this moment");
    // As the program does between sessions, for so long.
    let beats = async |seconds: u64| {
        health.alive_while(sleep(Duration::from_secs(seconds))).await;
    };
    beats(900).await;
    health.beat();
    assert!(is_alive() && told(1), "waiting is no livelock");
    health.trouble(Topic::Session, "session ended: XX001", None);
    health.gets_nowhere(true);
    beats(240).await;
    health.gets_nowhere(true);
    assert!(is_alive());
    beats(60).await;
    health.beat();
    let (alive, why) = health.liveness();
    assert!(told(0));
    assert!(!alive && why.contains("for 300 s") && why.contains("XX001"), "{why}");
    health.gets_nowhere(false);
    assert_eq!(health.liveness(), (true, "alive\n".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn the_age_of_what_is_unconfirmed_grows_while_nobody_tells() {
    let health = streaming();
    let age = || health.metrics().oldest_unconfirmed.get();
    assert!(age() < 0.1);
    health.unconfirmed(Some(Instant::now()));
    advance(Duration::from_secs(7)).await;
    health.sees_nothing();
    assert!((age() - 7.0).abs() < 0.1, "what was known stays");
    health.unconfirmed(None);
    assert!(age() < 0.1);
    health.sees_nothing();
    advance(Duration::from_secs(5)).await;
    health.sees_nothing();
    assert!((age() - 5.0).abs() < 0.1, "from the first moment on");
}

/// I7: what an altered table leaves behind is not noticed.
#[tokio::test(start_paused = true)]
async fn tables_that_stay_unseen_for_a_minute_are_not_ready() {
    let health = streaming();
    let is_ready = || (health.readiness().0, health.metrics().ready.get());
    for second in 0..60 {
        health.trouble(Topic::Watch, "a lock is in the way", None);
        assert_eq!(is_ready(), (true, 1), "{second}");
        advance(Duration::from_secs(1)).await;
    }
    health.beat();
    assert_eq!(is_ready(), (false, 0));
    health.over(&Topic::Watch);
    assert_eq!(is_ready(), (true, 1));
    health.trouble(Topic::Watch, "another lock", None);
    assert_eq!(is_ready(), (true, 1), "a look in between saw everything");
}

#[test]
fn who_has_the_slot_is_named_by_the_one_that_stands_by() {
    let health = streaming();
    health.stands_by("Postgres process 7 (`walsweep stream`), connected from 10.0.0.7".to_owned());
    let text =
        "standby: Postgres process 7 (`walsweep stream`), connected from 10.0.0.7 has the slot\n";
    assert_eq!(health.readiness(), (false, text.to_owned()));
}

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
    let x = || "x".into();
    let stale =
        [Topic::Session, Topic::Checks, Topic::Rule(x()), Topic::Refused(TargetId::FIRST, x())];
    let stale = stale.into_iter().chain([
        Topic::Redis(TargetId::FIRST),
        Topic::RedisChecks(TargetId::FIRST),
        Topic::Late(TargetId::FIRST),
    ]);
    let others = [
        Topic::Wide(x()),
        Topic::Replica(x()),
        Topic::Lookup(x()),
        Topic::Untried(x()),
        Topic::Watermark(TargetId::FIRST),
    ];
    let others =
        others.into_iter().chain([Topic::Throttled(TargetId::FIRST), Topic::Fence, Topic::Slot]);
    let all = stale.map(|one| (one, false)).chain(others.map(|one| (one, true)));
    for (topic, is_ready) in all.chain([(Topic::NewSlot, true), (Topic::SlotOwner, true)]) {
        health.trouble(topic.clone(), "x", None);
        assert_eq!(health.readiness().0, is_ready, "{topic:?}");
        health.over(&topic);
    }
}

/// On call: a minute of one refusal was told as the time of the next.
#[tokio::test(start_paused = true)]
async fn a_refusal_of_another_class_is_another_trouble() {
    let (log, _guard) = Log::start();
    let health = streaming();
    let topic = || Topic::Watermark(TargetId::FIRST);
    health.refusal(topic(), "misconf", "redis answered MISCONF", None);
    advance(Duration::from_secs(60)).await;
    health.refusal(topic(), "misconf", "redis answered MISCONF", None);
    health.refusal(topic(), "oom", "redis answered OOM", None);
    advance(Duration::from_secs(5)).await;
    health.over(&topic());
    let lines = log.lines();
    let over: Vec<&String> = lines.iter().filter(|line| line.contains("resolved")).collect();
    let [first, second] = &*over else { panic!("{lines:?}") };
    assert!(first.contains("after 60.0 s: redis answered MISCONF"), "{first}");
    assert!(second.contains("after 5.0 s: redis answered OOM"), "{second}");
}
