//! Takes a [`Status`] from what metrics, health and notes hold.

use std::time::{Duration, SystemTime};

use humantime::format_rfc3339_millis;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::atomic::Ordering;
use tokio::time::Instant;

use super::facts::{Facts, RuleFacts, TargetFacts};
use super::verdict::{Evidence, Verdict, section};
use super::{
    Bucket, Index, Latency, Node, Pass, PassNode, Postgres, Price, Rule, Slot, Status, Target,
    Totals, Trouble, Wait, Widened,
};
use crate::config::TargetId;
use crate::keys::WidenReason;
use crate::telemetry::health::{Phase, Told, ToldTrouble};
use crate::telemetry::metrics::{
    Metrics, NodeLabel, OperationLabel, RuleLabel, TargetLabel, WidenedLabel, seconds,
};
use crate::telemetry::noted::{NodeNote, Noted, SlotNote, TargetNotes, TargetState, Waiting};
use crate::telemetry::trail::{Latest, Name};
use crate::telemetry::{Health, Topic};
use crate::words::plural;

/// Transactions that are told.
const LATEST: usize = 50;

/// Characters of a key that are told.
const KEY_CHARS_MAX: usize = 200;

/// How a target is while nobody asks it: whatever is wrong, it need not be Redis.
const NOT_LOOKED_AT: &str = "not looked at: there is no session with postgres";

/// The name under which a histogram is read back.
const HISTOGRAM: &str = "h";

/// The moment at which a status is taken.
#[derive(Clone, Copy)]
struct Moment {
    instant: Instant,
    time: SystemTime,
}

impl Moment {
    fn now() -> Moment {
        Moment { instant: Instant::now(), time: SystemTime::now() }
    }

    /// The time of an instant before.
    fn time_of(self, before: Instant) -> String {
        rfc3339(self.time - self.instant.saturating_duration_since(before))
    }
}

fn rfc3339(time: SystemTime) -> String {
    format_rfc3339_millis(time).to_string()
}

impl Status {
    /// Takes the state of this moment. It holds each lock for as long as a copy takes.
    #[must_use]
    pub fn of(health: &Health) -> Status {
        let (moment, told, liveness) = (Moment::now(), health.told(), health.liveness());
        let (metrics, facts) = (&*health.metrics(), &*health.facts());
        let noted = &*metrics.noted;
        let troubles: Vec<Trouble> = told.troubles.iter().map(|one| trouble(one, moment)).collect();
        let names = Names { facts, noted };
        let states: Vec<TargetState> = names.notes().map(TargetNotes::state).collect();
        let waiting = waiting(&names, &told);
        let unconfirmed = told.unconfirmed_since.map(|since| since.elapsed());
        let oldest_unconfirmed_seconds = seconds(unconfirmed.unwrap_or_default());
        let alive = liveness.0;
        let verdict = Verdict::of(&Evidence {
            liveness,
            phase: told.phase,
            doing: &told.doing,
            troubles: &troubles,
            waiting: &waiting,
            oldest_unconfirmed_seconds,
            read_behind_seconds: seconds(metrics.reading.behind()),
            window_seconds: seconds(facts.window),
        });
        let targets = names.targets().zip(&states);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now: rfc3339(moment.time),
            started: rfc3339(noted.started_at),
            verdict,
            ready: told.is_ready,
            alive,
            phase: told.doing.clone(),
            phase_since: moment.time_of(told.phase_since),
            troubles,
            postgres: postgres(metrics, facts, oldest_unconfirmed_seconds),
            totals: totals(metrics, facts),
            waiting,
            targets: targets
                .clone()
                .map(|(one, state)| target(metrics, facts, one, state))
                .collect(),
            rules: rules(metrics, facts, &told.troubles),
            latency: latency(&metrics.commit_to_removed),
            passes: targets.filter_map(|((_, fact, _), state)| pass(fact, state)).collect(),
            transactions: transactions(health, facts),
        }
    }
}

/// The targets, with what is noted of each.
struct Names<'a> {
    facts: &'a Facts,
    noted: &'a Noted,
}

type OfTarget<'a> = (TargetId, &'a TargetFacts, &'a TargetNotes);

impl<'a> Names<'a> {
    fn targets(&self) -> impl Iterator<Item = OfTarget<'a>> + Clone + use<'a> {
        let (facts, noted) = (self.facts, self.noted);
        let ids = (0..=u8::MAX).map(TargetId);
        ids.zip(&facts.targets).map(|(id, fact)| (id, fact, noted.target(id)))
    }

    fn notes(&self) -> impl Iterator<Item = &'a TargetNotes> {
        self.targets().map(|(_, _, notes)| notes)
    }
}

fn trouble(told: &ToldTrouble, moment: Moment) -> Trouble {
    Trouble {
        text: told.text.clone(),
        hint: told.cure.hint.clone(),
        sql: told.cure.sql.clone(),
        since: moment.time_of(told.since),
        stops_ready: told.stops_ready,
        section: section(&told.topic, &told.text).to_owned(),
    }
}

fn postgres(metrics: &Metrics, facts: &Facts, oldest_unconfirmed_seconds: f64) -> Postgres {
    let slot = |note: SlotNote| Slot {
        confirmed_flush_lsn: note.confirmed_flush_lsn.to_string(),
        confirmed_lag_bytes: note.confirmed_lag,
        restart_lag_bytes: note.restart_lag,
        safe_wal_bytes: note.safe_wal,
        wal_status: note.wal_status,
        looked_at: rfc3339(note.at),
    };
    Postgres {
        up: metrics.postgres_up.get() > 0,
        slot: facts.slot.clone(),
        database: facts.database.clone(),
        publication: facts.publication.clone(),
        state: metrics.noted.slot().map(slot),
        max_retained_wal_bytes: facts.max_retained_wal,
        oldest_unconfirmed_seconds,
    }
}

/// The value of a counter, without making one that is not there.
fn counted<L>(family: &Family<L, Counter>, label: &L) -> u64
where
    L: Clone + std::hash::Hash + Eq + EncodeLabelSet,
{
    family.get(label).map_or(0, |counter| counter.get())
}

/// The value of a gauge, if it is there.
fn gauged<L>(family: &Family<L, Gauge>, label: &L) -> Option<u64>
where
    L: Clone + std::hash::Hash + Eq + EncodeLabelSet,
{
    family.get(label).map(|gauge| u64::try_from(gauge.get()).unwrap_or_default())
}

fn totals(metrics: &Metrics, facts: &Facts) -> Totals {
    let operations = ["insert", "update", "delete", "truncate", "refresh", "message"];
    let changes =
        operations.map(|operation| counted(&metrics.changes, &OperationLabel { operation }));
    let sum = |family: &Family<RuleLabel, Counter>| {
        facts.rules.iter().map(|rule| counted(family, &label(rule))).sum()
    };
    Totals {
        transactions: metrics.transactions.get(),
        changes: changes.iter().sum(),
        keys_removed: sum(&metrics.keys_removed),
        keys_absent: sum(&metrics.keys_absent),
        refills_removed: sum(&metrics.refills_removed),
        scanned_keys: metrics.sweep_scanned_keys.get(),
        in_flight: u64::try_from(metrics.in_flight_transactions.get()).unwrap_or_default(),
    }
}

fn label(rule: &RuleFacts) -> RuleLabel {
    RuleLabel { rule: rule.name.clone() }
}

fn waiting(names: &Names<'_>, told: &Told) -> Vec<Wait> {
    type Words = [&'static str; 3];
    let wait = |[stage, what, why]: Words, (count, oldest): (usize, Option<Duration>)| Wait {
        stage: stage.to_owned(),
        target: None,
        count: count as u64,
        what: plural(count, what),
        oldest_seconds: oldest.map(seconds),
        why: why.to_owned(),
    };
    let stage = |words, waiting: &Waiting| wait(words, waiting.get());
    let noted = names.noted;
    let gate = "not visible to readers yet, as behind a synchronous standby";
    let standbys = "gone, and waiting until standbys have replayed the commits";
    let mut all = vec![
        stage(["gate", "commit", gate], &noted.gate),
        stage(["lookups", "commit", "waiting for rows that lookups read"], &noted.lookups),
    ];
    for (_, fact, notes) in names.targets() {
        let is_away = notes.state().phase == Some(Phase::RedisLost);
        let (redis, patterns) = match is_away || told.phase == Phase::RedisLost {
            true => {
                ("waiting for Redis, which is out of reach", "with patterns, waiting for Redis")
            }
            false => ("on the way to Redis", "with patterns, waiting for a pass or in one"),
        };
        let second = "gone, and removed again after `refill.window`";
        let second_count = notes.second.load(Ordering::Relaxed);
        let of_target = [
            stage(["redis", "commit", redis], &notes.first),
            stage(["pass", "commit", patterns], &notes.passes),
            wait(["second", "key", second], (second_count, None)),
        ];
        let name = (names.facts.targets.len() > 1).then(|| fact.name.clone());
        all.extend(of_target.map(|one| Wait { target: name.clone(), ..one }));
    }
    all.push(stage(["standbys", "group", standbys], &noted.standbys));
    all.retain(|wait| wait.count > 0);
    all
}

fn target(
    metrics: &Metrics,
    facts: &Facts,
    (_, fact, _): OfTarget<'_>,
    state: &TargetState,
) -> Target {
    let label = NodeLabel { target: fact.name.clone(), node: state.node.clone() };
    let index_label = TargetLabel { target: fact.name.clone() };
    let index = || {
        let keys = gauged(&metrics.index_keys, &index_label)?;
        let bytes = gauged(&metrics.index_bytes, &index_label)?;
        let whole = gauged(&metrics.index_whole, &index_label)? > 0;
        Some(Index { keys, bytes, whole })
    };
    let phase = match state.phase {
        None | Some(Phase::Connecting | Phase::Standby) => NOT_LOOKED_AT.to_owned(),
        Some(Phase::RedisLost) => "out of reach".to_owned(),
        Some(Phase::Sweeping(reason)) => format!("sweeping: {reason}"),
        Some(Phase::Streaming) => "ready".to_owned(),
        Some(Phase::Stopping) => "stopping".to_owned(),
    };
    Target {
        name: fact.name.clone(),
        mode: fact.mode.to_owned(),
        node: state.node.clone(),
        up: gauged(&metrics.redis_up, &label).map(|up| up > 0),
        proven: gauged(&metrics.redis_proven, &label).map(|proven| proven > 0),
        phase,
        ready: state.phase == Some(Phase::Streaming),
        rules: fact.rules as u64,
        max_load: facts.max_load,
        index: if facts.has_index { index() } else { None },
        unobserved: state.unobserved.clone(),
        nodes: state.nodes.iter().map(|(name, note)| node(name, note)).collect(),
    }
}

fn node(name: &str, note: &NodeNote) -> Node {
    let pass = note.last.map(|price| Price {
        seconds: seconds(price.lasted),
        took_seconds: seconds(price.part.took),
        waited_seconds: seconds(price.part.waited),
        keys: price.part.scanned,
        ended: rfc3339(price.ended_at),
    });
    Node { name: name.to_owned(), load: note.load(), pass }
}

fn pass(fact: &TargetFacts, state: &TargetState) -> Option<Pass> {
    let under_way = state.pass.as_ref()?;
    let nodes = state.nodes.iter().filter_map(|(name, note)| {
        let part = note.now?;
        Some(PassNode {
            name: name.clone(),
            scanned: part.scanned,
            share: note.last.and_then(|price| share(part.took, price.part.took)),
            waited_seconds: seconds(part.waited),
        })
    });
    Some(Pass {
        target: fact.name.clone(),
        reason: under_way.reason.to_owned(),
        patterns: under_way.patterns as u64,
        seconds: seconds(under_way.began.elapsed()),
        nodes: nodes.collect(),
    })
}

/// How much of a pass is done that has taken so much, if it takes as much as another; `None` if it
/// has taken more already.
fn share(took: Duration, whole: Duration) -> Option<f64> {
    (took < whole).then(|| took.div_duration_f64(whole))
}

fn rules(metrics: &Metrics, facts: &Facts, troubles: &[ToldTrouble]) -> Vec<Rule> {
    let one = |(at, rule): (usize, &RuleFacts)| {
        let label = label(rule);
        let widened = WidenReason::ALL.into_iter().map(|reason| {
            let of_reason = WidenedLabel { rule: rule.name.clone(), reason: reason.as_str() };
            let count = counted(&metrics.widened, &of_reason);
            Widened { reason: reason.as_str().to_owned(), count }
        });
        let is_of_rule = |one: &&ToldTrouble| match &one.topic {
            Topic::Rule(name) | Topic::Wide(name) | Topic::Refused(_, name) => **name == rule.name,
            _ => false,
        };
        Rule {
            name: rule.name.clone(),
            source: rule.source.clone(),
            keys: rule.keys.clone(),
            matches: counted(&metrics.rule_matches, &label),
            removed: counted(&metrics.keys_removed, &label),
            absent: counted(&metrics.keys_absent, &label),
            refills: counted(&metrics.refills_removed, &label),
            widened: widened.filter(|one| one.count > 0).collect(),
            suspended: gauged(&metrics.rules_suspended, &label).is_some_and(|is| is > 0),
            trouble: troubles.iter().find(is_of_rule).map(|one| one.text.clone()),
            last_removed: metrics.noted.removed_at(at).map(rfc3339),
        }
    };
    facts.rules.iter().enumerate().map(one).collect()
}

/// The latest transactions, with keys of which none is longer than a line or two.
fn transactions(health: &Health, facts: &Facts) -> Vec<Latest> {
    let mut latest = health.trail().latest(LATEST, facts.keys);
    for name in latest.iter_mut().flat_map(|one| &mut one.keys) {
        if let Name::Text(text) | Name::Bytes { hex: text } = name
            && let Some((end, _)) = text.char_indices().nth(KEY_CHARS_MAX)
        {
            text.truncate(end);
            text.push('…');
        }
    }
    latest
}

/// Reads a histogram back from the text that Prometheus gets: it gives its buckets to nobody else.
fn latency(histogram: &Histogram) -> Latency {
    let mut registry = Registry::default();
    registry.register(HISTOGRAM, "", histogram.clone());
    let mut text = String::new();
    encode(&mut text, &registry).expect("writing to a string does not fail");
    let mut latency = Latency::default();
    let mut below = 0;
    for line in text.lines() {
        let Some((name, value)) =
            line.strip_prefix(HISTOGRAM).and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        let bound = name.strip_prefix("_bucket{le=\"").and_then(|rest| rest.strip_suffix("\"}"));
        if let Some(bound) = bound {
            let count: u64 = value.parse().unwrap_or(below);
            let up_to_seconds = bound.parse().ok().filter(|bound: &f64| bound.is_finite());
            latency.buckets.push(Bucket { up_to_seconds, count: count - below });
            below = count;
        } else if name == "_sum" {
            latency.sum_seconds = value.parse().unwrap_or_default();
        } else if name == "_count" {
            latency.count = value.parse().unwrap_or_default();
        }
    }
    let counts = |bucket: &Bucket| bucket.count > 0;
    let last = latency.buckets.iter().rposition(counts).map_or(0, |last| last + 1);
    latency.buckets.truncate(last);
    let first = latency.buckets.iter().position(counts).unwrap_or(0);
    latency.buckets.drain(..first);
    latency
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::family::MetricConstructor;

    use super::{Latency, latency};
    use crate::telemetry::metrics::Latency as Constructor;
    use crate::telemetry::status::Bucket;

    #[test]
    fn the_buckets_of_a_histogram_are_read_back() {
        let histogram = Constructor.new_metric();
        assert_eq!(latency(&histogram), Latency::default());
        for seconds in [0.0004, 0.00045, 0.002, 5000.0] {
            histogram.observe(seconds);
        }
        let read = latency(&histogram);
        assert_eq!((read.count, read.buckets.len()), (4, 20), "{read:?}");
        assert!((read.sum_seconds - 5000.00285).abs() < 1e-6, "{read:?}");
        let counted: Vec<&Bucket> = read.buckets.iter().filter(|one| one.count > 0).collect();
        let bounds: Vec<Option<f64>> = counted.iter().map(|one| one.up_to_seconds).collect();
        assert_eq!(bounds, [Some(0.0005), Some(0.0025), None]);
        assert_eq!(counted.iter().map(|one| one.count).collect::<Vec<_>>(), [2, 1, 1]);
    }
}
