//! Keys behind standbys whose replay a test decides, on paused time.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use super::{Answer, GROUP_WIDTH, GROUPS_MAX, Replicas, Standby, StandbyError};
use crate::channel::{Receiver, Sender, channel};
use crate::config::{Rule, TargetId};
use crate::decode::{Column, Relation, ReplicaIdentity, Tuple, Value};
use crate::gather::{Change, Row, Transaction};
use crate::keys::{Binding, KeySet, Rules};
use crate::lsn::Lsn;
use crate::settle::{Cause, Hold, Replayed, Visible};
use crate::telemetry::Health;
use crate::telemetry::health_tests::Log;
use crate::telemetry::metrics::{Metrics, PeerLabel, ReplicaLabel};

type Failure = fn() -> StandbyError;

/// A standby that tells what the test says.
#[derive(Clone)]
struct Server {
    name: &'static str,
    replayed: Rc<Cell<u64>>,
    run: Rc<Cell<u32>>,
    /// How it fails, if it does.
    fails: Rc<Cell<Option<Failure>>>,
    answers: Rc<Cell<bool>>,
    asked: Rc<Cell<u32>>,
}

impl Server {
    fn new(name: &'static str) -> Server {
        let (replayed, run, fails) = (Rc::default(), Rc::default(), Rc::default());
        Server {
            name,
            replayed,
            run,
            fails,
            answers: Rc::new(Cell::new(true)),
            asked: Rc::default(),
        }
    }
}

impl Standby for Server {
    fn name(&self) -> &str {
        self.name
    }

    async fn connect(&mut self) -> Result<(), StandbyError> {
        sleep(Duration::from_micros(300)).await;
        self.fails.get().map_or(Ok(()), |error| Err(error()))
    }

    async fn replayed(&mut self) -> Result<Answer, StandbyError> {
        self.asked.set(self.asked.get() + 1);
        if !self.answers.get() {
            std::future::pending::<()>().await;
        }
        // The standby answers, and only then it may fail: an answer on its way is not taken back.
        let replayed = Lsn(self.replayed.get());
        sleep(Duration::from_micros(100)).await;
        let answer = Answer { replayed, run: self.run.get().to_string() };
        self.fails.get().map_or(Ok(answer), |error| Err(error()))
    }
}

struct Bench {
    rules: Rules,
    one: Server,
    other: Server,
    inputs: Sender<Visible>,
    outputs: Receiver<Visible>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// The hold of each transaction, by its end LSN.
    held: BTreeMap<u64, Hold>,
}

/// A removal that passed: a first one by its end LSN and whether it settles, or a replayed one.
#[derive(Debug, PartialEq, Eq)]
enum Passed {
    First(u64, bool),
    Resync { last: bool, settles: bool },
    Replayed(Vec<u64>, u32),
    Early,
}

/// A rule with one exact key.
pub(in crate::settle) fn rules() -> Rules {
    Rules::compile(&[Rule::for_tests("item", &["item:{id}"])]).unwrap()
}

/// Gives the rule of [`rules`] after so many others of eight keys each.
pub(in crate::settle) fn many_rules(others: usize) -> Rules {
    let keys = ["a:{id}", "b:{id}", "c:{id}", "d:{id}", "e:{id}", "f:{id}", "g:{id}", "h:{id}"];
    let others = (0..others).map(|number| Rule::for_tests(&format!("other_{number}"), &keys));
    let all: Vec<Rule> = others.chain([Rule::for_tests("item", &["item:{id}"])]).collect();
    Rules::compile(&all).unwrap()
}

/// The keys of rows with these ids.
pub(in crate::settle) fn keys(rules: &Rules, ids: impl Iterator<Item = u64>) -> KeySet {
    let relation = Arc::new(Relation {
        id: 1,
        namespace: "public".to_owned(),
        name: "item".to_owned(),
        replica_identity: ReplicaIdentity::Full,
        columns: vec![Column {
            is_key: true,
            name: "id".to_owned(),
            type_id: 20,
            type_modifier: -1,
        }],
    });
    let (mut keys, mut bound) = (rules.key_set(), rules.bind(Binding::default()));
    for id in ids {
        let id = id.to_string();
        let new = Tuple::from_values(&[Value::Text(id.as_bytes())]);
        let change = Change { relation: Arc::clone(&relation), row: Row::Insert { new } };
        bound.add(&change, &mut keys);
    }
    keys
}

impl Bench {
    /// Two standbys, both at position 0.
    fn new() -> Bench {
        let (one, other) = (Server::new("one:5432"), Server::new("other:5432"));
        let rules = rules();
        let metrics = Arc::new(Metrics::new(rules.names()));
        let (inputs, stage_inputs) = channel(16);
        let (stage_outputs, outputs) = channel(4096);
        let health = Arc::new(Health::new(Arc::clone(&metrics)));
        let stage = Replicas::new(rules.everything(), Arc::clone(&health));
        let standbys = vec![one.clone(), other.clone()];
        tokio::task::spawn_local(stage.run(standbys, stage_inputs, stage_outputs));
        Bench { rules, one, other, inputs, outputs, metrics, health, held: BTreeMap::new() }
    }

    fn keys(&mut self, ids: impl Iterator<Item = u64>) -> KeySet {
        keys(&self.rules, ids)
    }

    /// A commit that ends at `end_lsn` and touches the key `item:{end_lsn}`.
    async fn commit(&mut self, end_lsn: u64) {
        let keys = self.keys(std::iter::once(end_lsn));
        self.commit_of(end_lsn, keys).await;
    }

    async fn commit_of(&mut self, end_lsn: u64, keys: KeySet) {
        let end_lsn = Lsn(end_lsn);
        let transaction = Transaction { xid: 1, commit_lsn: end_lsn, end_lsn, commit_time: 0 };
        let visible = Visible::for_tests(Cause::Transaction(transaction), keys);
        self.inputs.send(visible).await.unwrap();
    }

    async fn resync(&mut self, last: bool, position: u64) {
        let keys = self.rules.everything();
        let mut visible = Visible::for_tests(Cause::Resync { last }, keys);
        visible.position = Lsn(position);
        self.inputs.send(visible).await.unwrap();
    }

    /// A sweep of everything that one target owes.
    async fn resync_of(&mut self, target: TargetId, position: u64) {
        let keys = self.rules.everything();
        let visible = Visible::for_tests(Cause::Resync { last: true }, keys);
        let visible = Visible { position: Lsn(position), ..visible.of(target) };
        self.inputs.send(visible).await.unwrap();
    }

    /// The next that passes, with its keys; `None` if nothing does for ten seconds.
    async fn next_with_keys(&mut self) -> Option<(Passed, Vec<String>)> {
        let mut visible = timeout(Duration::from_secs(10), self.outputs.recv()).await.ok()??;
        self.hold(&mut visible);
        let settles = visible.settles();
        let (cause, keys, _) = visible.into_parts();
        let exact = keys.exact().map(|(_, key)| key.to_vec());
        let patterns = keys.patterns().map(|(_, pattern)| pattern.as_bytes().to_vec());
        let keys = exact.chain(patterns).map(|key| String::from_utf8(key).unwrap()).collect();
        let passed = match cause {
            Cause::Transaction(transaction) => Passed::First(transaction.end_lsn.0, settles),
            Cause::Resync { last } => Passed::Resync { last, settles },
            Cause::Early(_) => Passed::Early,
            Cause::Replayed(replayed) => {
                assert!(settles, "nothing comes after it");
                Passed::Replayed(self.released(&replayed), replayed.resyncs)
            }
        };
        Some((passed, keys))
    }

    /// Notes what is held from now on.
    fn hold(&mut self, visible: &mut Visible) {
        for held in visible.take_held() {
            let others = self.held.values_mut().filter(|by| held.holds.contains(by));
            others.for_each(|by| *by = held.by);
            self.held.extend(held.end_lsns.iter().map(|end_lsn| (end_lsn.0, held.by)));
        }
    }

    /// The transactions that nothing holds any more.
    fn released(&mut self, replayed: &Replayed) -> Vec<u64> {
        let is_held = |by: &Hold| Some(*by) == replayed.hold;
        let (done, others): (BTreeMap<u64, Hold>, _) =
            std::mem::take(&mut self.held).into_iter().partition(|(_, by)| is_held(by));
        self.held = others;
        done.into_keys().collect()
    }

    async fn next(&mut self) -> Option<Passed> {
        self.next_with_keys().await.map(|(passed, _)| passed)
    }

    fn up(&self, server: &Server) -> i64 {
        let label = ReplicaLabel { replica: server.name.to_owned() };
        self.metrics.replica_up.get_or_create(&label).get()
    }

    fn lag(&self, server: &Server) -> i64 {
        let label = ReplicaLabel { replica: server.name.to_owned() };
        self.metrics.replica_replay_lag_bytes.get_or_create(&label).get()
    }
}

async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

#[tokio::test(start_paused = true)]
async fn what_goes_early_waits_for_no_standby() {
    local(async {
        let mut bench = Bench::new();
        let keys = bench.keys(std::iter::once(100));
        bench.inputs.send(Visible::for_tests(Cause::Early(1), keys)).await.unwrap();
        assert_eq!(bench.next().await, Some(Passed::Early));
        bench.one.replayed.set(300);
        bench.other.replayed.set(300);
        assert_eq!(bench.next().await, None, "its keys come again with the commit");
    })
    .await;
}

/// However many groups wait and become one, for as long as standbys are away.
#[tokio::test(start_paused = true)]
async fn what_one_target_owes_is_removed_again_from_that_one_alone() {
    local(async {
        let (mut bench, owing) = (Bench::new(), TargetId(1));
        for at in 1..=u64::try_from(GROUPS_MAX).unwrap() {
            bench.commit(at * 100).await;
            bench.resync_of(owing, at * 100 + 50).await;
            sleep(GROUP_WIDTH * 2).await;
        }
        [&bench.one, &bench.other].into_iter().for_each(|server| server.replayed.set(1_000_000));
        let (mut sweeps, mut commits) = (0, 0);
        while let Ok(Some(visible)) = timeout(Duration::from_secs(10), bench.outputs.recv()).await {
            let target = visible.target();
            let (cause, keys, _) = visible.into_parts();
            if let Cause::Replayed(Replayed { hold: Some(_), resyncs }) = cause {
                let is_swept = keys.patterns().next().is_some();
                assert_eq!(target, Some(owing).filter(|_| is_swept), "{resyncs} sweeps");
                sweeps += resyncs;
                commits += keys.exact_len();
            }
        }
        assert_eq!((usize::try_from(sweeps).unwrap(), commits), (GROUPS_MAX, GROUPS_MAX));
    })
    .await;
}

/// Whether the standby is back the next session finds out.
#[tokio::test(start_paused = true)]
async fn with_the_session_a_standby_that_fails_is_taken_back_and_not_told_as_resolved() {
    let (log, _guard) = Log::start();
    let health = local(async {
        let bench = Bench::new();
        bench.one.fails.set(Some(|| StandbyError::Timeout));
        sleep(Duration::from_secs(60)).await;
        let told = bench.health.readiness().1;
        assert!(told.contains("replica one:5432 cannot be counted on"), "{told}");
        bench.health
    })
    .await;
    assert!(!health.readiness().1.contains("replica"), "{:?}", health.readiness());
    let lines = log.lines().concat();
    assert!(lines.contains("one:5432") && !lines.contains("resolved"), "{lines}");
}

/// Followers end later than the session's own series: a standby that a reload took out of the list
/// would be down for ever.
#[tokio::test(start_paused = true)]
async fn with_the_session_the_series_of_its_standbys_end() {
    let metrics = local(async {
        let bench = Bench::new();
        bench.one.replayed.set(1);
        bench.other.fails.set(Some(|| StandbyError::Timeout));
        sleep(Duration::from_secs(60)).await;
        let text = bench.metrics.text();
        for shown in ["{replica=\"one:5432\"} 1", "{replica=\"other:5432\"} 0"] {
            assert!(text.contains(&format!("walsweep_replica_up{shown}")), "{text}");
        }
        bench.metrics.no_session();
        bench.metrics
    })
    .await;
    let text = metrics.text();
    assert!(!text.contains("walsweep_replica_up{"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn each_replay_is_followed_by_a_removal_and_the_last_one_settles() {
    local(async {
        let mut bench = Bench::new();
        bench.commit(100).await;
        assert_eq!(bench.next().await, Some(Passed::First(100, false)));
        bench.one.replayed.set(99);
        bench.other.replayed.set(99);
        assert_eq!(bench.next().await, None, "one byte is missing");
        assert_eq!((bench.lag(&bench.one), bench.up(&bench.one)), (1, 1));
        bench.one.replayed.set(100);
        let keys = vec!["item:100".to_owned()];
        let replayed = bench.next_with_keys().await;
        assert_eq!(replayed, Some((Passed::Replayed(vec![], 0), keys.clone())));
        assert_eq!(bench.next().await, None, "the other one is not there");
        bench.other.replayed.set(300);
        let replayed = bench.next_with_keys().await;
        assert_eq!(replayed, Some((Passed::Replayed(vec![100], 0), keys)));
        assert_eq!(bench.next().await, None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_replayed_before_it_is_visible_is_removed_once() {
    local(async {
        let mut bench = Bench::new();
        bench.one.replayed.set(500);
        bench.other.replayed.set(400);
        sleep(Duration::from_secs(2)).await;
        bench.commit(400).await;
        assert_eq!(bench.next().await, Some(Passed::First(400, true)));
        bench.commit(401).await;
        assert_eq!(bench.next().await, Some(Passed::First(401, false)));
        bench.other.replayed.set(401);
        assert_eq!(bench.next().await, Some(Passed::Replayed(vec![401], 0)));
        assert_eq!(bench.next().await, None);
    })
    .await;
}

/// I3: a standby that is gone delays neither first removals nor those after another one's replay.
#[tokio::test(start_paused = true)]
async fn a_standby_that_is_gone_holds_only_the_end() {
    local(async {
        let mut bench = Bench::new();
        bench.other.fails.set(Some(|| StandbyError::NotAStandby));
        bench.other.replayed.set(10_000);
        for lsn in (100..2_000).step_by(100) {
            bench.commit(lsn).await;
            assert_eq!(bench.next().await, Some(Passed::First(lsn, false)));
            bench.one.replayed.set(lsn);
            assert_eq!(bench.next().await, Some(Passed::Replayed(vec![], 0)), "{lsn}");
        }
        assert_eq!(bench.next().await, None, "a refused standby has replayed nothing");
        assert_eq!((bench.up(&bench.one), bench.up(&bench.other)), (1, 0));
        assert_eq!((bench.lag(&bench.one), bench.lag(&bench.other)), (0, 1_900));
        let (_, text) = bench.health.readiness();
        assert!(text.contains("replica other:5432 cannot be counted on"), "{text}");
        assert!(text.contains("1 800 bytes of WAL"), "{text}");
        bench.other.fails.set(None);
        let mut settled = Vec::new();
        while let Some(Passed::Replayed(end_lsns, 0)) = bench.next().await {
            settled.extend(end_lsns);
        }
        assert_eq!(settled, (100..2_000).step_by(100).collect::<Vec<_>>());
        assert_eq!(bench.up(&bench.other), 1);
        let (_, text) = bench.health.readiness();
        assert!(!text.contains("replica"), "{text}");
    })
    .await;
}

/// It answers, and what its readers may cache waits: that is said, with how much it is.
#[tokio::test(start_paused = true)]
async fn a_standby_that_does_not_replay_is_named_after_a_while() {
    local(async {
        let mut bench = Bench::new();
        bench.one.replayed.set(1_000);
        sleep(Duration::from_secs(2)).await;
        bench.commit(500).await;
        bench.commit(700).await;
        sleep(Duration::from_secs(20)).await;
        let (_, text) = bench.health.readiness();
        assert!(!text.contains("replica"), "{text}");
        sleep(Duration::from_secs(20)).await;
        let (_, text) = bench.health.readiness();
        assert!(text.contains("replica other:5432 does not replay"), "{text}");
        assert!(text.contains("200 bytes of WAL"), "{text}");
        bench.other.replayed.set(700);
        sleep(Duration::from_secs(2)).await;
        let (_, text) = bench.health.readiness();
        assert!(!text.contains("replica"), "{text}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_standby_without_an_answer_is_down_and_asked_again() {
    local(async {
        let mut bench = Bench::new();
        bench.one.replayed.set(100);
        sleep(Duration::from_secs(1)).await;
        bench.other.answers.set(false);
        bench.commit(100).await;
        assert_eq!(bench.next().await, Some(Passed::First(100, false)));
        sleep(Duration::from_secs(12)).await;
        assert_eq!(bench.up(&bench.other), 0);
        let reconnects =
            bench.metrics.reconnects.get_or_create(&PeerLabel { peer: "replica" }).get();
        assert_eq!(reconnects, 1);
        bench.other.answers.set(true);
        bench.other.replayed.set(100);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(bench.next().await, Some(Passed::Replayed(vec![100], 0)));
        assert_eq!(bench.up(&bench.other), 1);
    })
    .await;
}

/// Commits while a standby is gone.
const COMMITS: u64 = 2_000;

/// I6: half an hour of commits while a standby is gone: few groups, few bytes, each end LSN once.
#[tokio::test(start_paused = true)]
async fn hours_without_a_standby_keep_memory_flat() {
    local(async {
        let mut bench = Bench::new();
        bench.other.fails.set(Some(|| StandbyError::NotAStandby));
        for lsn in 1..=COMMITS {
            // 800 000 keys in all, some 35 bytes each with their indices: more than is allowed.
            let keys = bench.keys((0..400).map(|at| lsn * 1_000 + at));
            bench.commit_of(lsn, keys).await;
            assert_eq!(bench.next().await, Some(Passed::First(lsn, false)));
            bench.one.replayed.set(lsn);
            assert_eq!(bench.next().await, Some(Passed::Replayed(vec![], 0)));
            sleep(Duration::from_secs(1)).await;
        }
        bench.other.fails.set(None);
        bench.other.replayed.set(COMMITS);
        let (mut groups, mut settled, mut bytes) = (0, Vec::new(), 0);
        while let Ok(Some(visible)) = timeout(Duration::from_secs(60), bench.outputs.recv()).await {
            let mut visible = visible;
            bench.hold(&mut visible);
            let (cause, keys, _) = visible.into_parts();
            let Cause::Replayed(replayed) = cause else { panic!("{cause:?}") };
            assert!(!keys.is_empty());
            groups += 1;
            bytes += keys.bytes();
            settled.extend(bench.released(&replayed));
        }
        assert!(groups <= GROUPS_MAX, "{groups} groups");
        assert!(bytes <= crate::budget::REPLAY, "{bytes} bytes");
        assert_eq!(settled, (1..=COMMITS).collect::<Vec<_>>());
        let widened = "walsweep_widened_total{rule=\"item\",reason=\"limit\"}";
        assert!(bench.metrics.text().contains(widened), "{}", bench.metrics.text());
    })
    .await;
}

/// How many commits a standby is late by.
const LATE: u64 = 1_000;

/// A standby that is always late by as much has what it reaches removed soon after, however many
/// groups are merged on the way.
#[tokio::test(start_paused = true)]
async fn a_standby_that_is_always_late_is_not_starved() {
    local(async {
        let mut bench = Bench::new();
        let mut oldest_unsettled = 1;
        for lsn in 1..=6_000 {
            bench.commit(lsn).await;
            for server in [&bench.one, &bench.other] {
                server.replayed.set(lsn.saturating_sub(LATE));
            }
            sleep(Duration::from_millis(30)).await;
            while let Some(mut visible) = bench.outputs.try_recv() {
                bench.hold(&mut visible);
                if let Cause::Replayed(replayed) = visible.into_parts().0 {
                    let last = bench.released(&replayed).last().copied();
                    oldest_unsettled = last.map_or(oldest_unsettled, |last| last + 1);
                }
            }
            if lsn > 2 * LATE {
                let waits_for = lsn - oldest_unsettled;
                assert!(waits_for < LATE * 3 / 2, "at {lsn} the oldest is {oldest_unsettled}");
            }
        }
        assert!(oldest_unsettled > 4_000);
    })
    .await;
}

/// I7: a sweep of everything is owed until every standby shows what the primary showed then.
#[tokio::test(start_paused = true)]
async fn a_sweep_of_everything_is_repeated_after_the_replay() {
    local(async {
        let mut bench = Bench::new();
        bench.resync(false, 1_000).await;
        assert_eq!(bench.next().await, Some(Passed::Resync { last: false, settles: false }));
        sleep(Duration::from_secs(1)).await;
        bench.resync(true, 2_000).await;
        assert_eq!(bench.next().await, Some(Passed::Resync { last: true, settles: false }));
        for server in [&bench.one, &bench.other] {
            server.replayed.set(1_999);
        }
        // Each standby's own removal, and then none that closes it.
        let mut passed = Vec::new();
        while let Some(one) = bench.next_with_keys().await {
            passed.push(one.0);
            assert_eq!(one.1, ["item:*"]);
        }
        assert!(passed.len() <= 2, "{passed:?}");
        assert!(passed.iter().all(|one| *one == Passed::Replayed(vec![], 0)), "{passed:?}");
        bench.one.replayed.set(2_000);
        assert_eq!(bench.next().await, Some(Passed::Replayed(vec![], 0)));
        bench.other.replayed.set(2_000);
        assert_eq!(bench.next().await, Some(Passed::Replayed(vec![], 1)));
        assert_eq!(bench.next().await, None);
    })
    .await;
}

/// A standby that crashed, or another server behind the same address, may have shown rows older
/// than those whose keys went for good.
#[tokio::test(start_paused = true)]
async fn a_standby_that_may_have_gone_back_costs_a_sweep_when_it_is_there_again() {
    local(async {
        let mut bench = Bench::new();
        for goes_back in [true, false] {
            let end_lsn = if goes_back { 100 } else { 200 };
            bench.commit(end_lsn).await;
            assert_eq!(bench.next().await, Some(Passed::First(end_lsn, false)));
            bench.one.replayed.set(end_lsn);
            bench.other.replayed.set(end_lsn);
            while bench.next().await.is_some() {}
            if goes_back {
                bench.other.replayed.set(end_lsn - 10);
                assert_eq!(bench.next().await, None, "it is not back where it was");
                bench.other.replayed.set(end_lsn);
            } else {
                bench.other.run.set(7);
            }
            let swept = bench.next_with_keys().await;
            let everything = vec!["item:*".to_owned()];
            assert_eq!(swept, Some((Passed::Replayed(vec![], 0), everything)), "{end_lsn}");
            assert_eq!(bench.next().await, None);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_standby_is_asked_rarely_while_nothing_waits() {
    local(async {
        let mut bench = Bench::new();
        sleep(Duration::from_secs(60)).await;
        let idle = bench.one.asked.get();
        assert!((50..=65).contains(&idle), "{idle} questions in an idle minute");
        bench.commit(100).await;
        assert_eq!(bench.next().await, Some(Passed::First(100, false)));
        sleep(Duration::from_secs(60)).await;
        let waiting = bench.one.asked.get() - idle;
        assert!((1_000..=3_100).contains(&waiting), "{waiting} questions in a minute of waiting");
    })
    .await;
}
