//! The sweeper against a Redis in memory that a test can break, on paused time.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio::time::{Instant, timeout};

use super::partial_tests::{expected, prints};
use super::{
    Doubt, Error, Event, Indexed, Kind, Node, Page, Primary, Prints, Removes, Replaced, Room,
    ScanCall, Scanned, Settings, Sweeper, Watermark,
};
use crate::channel::{Sender, channel};
use crate::config::{Rule, TargetId};
use crate::decode::{Column, Relation, ReplicaIdentity, Tuple, Value};
use crate::gather::{Change, Row, Transaction};
use crate::keys::{Binding, KeySet, Pattern, Rules};
use crate::lsn::Lsn;
use crate::settle::{Cause, Held, Hold, Visible};
use crate::telemetry::Health;
use crate::telemetry::metrics::Metrics;

/// The contents of a Redis, and how it behaves.
#[derive(Clone, Default)]
pub(super) struct Redis(pub(super) Rc<Inner>);

#[derive(Default)]
pub(super) struct Inner {
    pub(super) keys: RefCell<BTreeSet<Vec<u8>>>,
    pub(super) watermark: RefCell<Option<Vec<u8>>>,
    /// Fingerprints by digest, and whether they stay.
    pub(super) details: RefCell<BTreeMap<String, (Vec<u8>, bool)>>,
    /// Calls fail with this.
    pub(super) fails: Cell<Option<Kind>>,
    /// UNLINK of what this matches is refused.
    forbidden: RefCell<Option<Pattern>>,
    /// UNLINK is refused, whatever the keys.
    pub(super) refuses: Cell<Option<Kind>>,
    /// How often that was tried.
    pub(super) refused: Cell<u32>,
    /// How long one call takes, in microseconds, beyond the usual 50.
    pub(super) slow: Cell<u64>,
    /// How long the server is at work for each key that SCAN looks at, in microseconds.
    pub(super) key_work: Cell<u64>,
    /// SCAN calls: when each ended, and how long the server was at work.
    pub(super) scans: RefCell<Vec<(Instant, Duration)>>,
    /// Whether it tells how long that was.
    pub(super) tells_time: Cell<bool>,
    /// SCAN is refused.
    pub(super) no_scan: Cell<bool>,
    /// Which part of it is away.
    pub(super) away: RefCell<Option<String>>,
    /// No replica has what was written.
    pub(super) alone: Cell<bool>,
    pub(super) unlinks: Cell<u32>,
    /// Removals of nothing, and fences.
    pub(super) proofs: Cell<(u32, u32)>,
    pub(super) passes: Cell<u32>,
    /// The patterns of its index, which is lost after so many pages.
    pub(super) index: RefCell<Option<(Vec<Pattern>, u32)>>,
    /// So often keys come to it from elsewhere while a pass runs.
    pub(super) arrivals: Cell<u32>,
    watermarks_written: Cell<u32>,
}

impl Redis {
    async fn work(&self) -> Result<(), Error> {
        tokio::time::sleep(Duration::from_micros(50 + self.0.slow.get())).await;
        match self.0.fails.get() {
            Some(kind) => Err(Error::new(kind, "told to fail".to_owned())),
            None => Ok(()),
        }
    }

    /// UNLINK of what this pattern matches is refused from now on.
    pub(super) fn forbid(&self, pattern: Option<&str>) {
        let pattern = pattern.map(|pattern| Pattern::parse(pattern.as_bytes()));
        *self.0.forbidden.borrow_mut() = pattern;
    }

    pub(super) fn fill(&self, keys: &[&str]) {
        self.0.keys.borrow_mut().extend(keys.iter().map(|key| key.as_bytes().to_vec()));
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.0.keys.borrow().contains(key.as_bytes())
    }

    pub(super) fn watermark_lsn(&self) -> Option<Lsn> {
        self.0.watermark.borrow().as_deref().and_then(Watermark::from_value).map(|mark| mark.lsn)
    }
}

impl Removes for Redis {
    async fn unlink(&self, groups: &[Vec<&[u8]>]) -> Result<Vec<Option<u64>>, Error> {
        self.work().await?;
        if groups.is_empty() {
            self.0.proofs.update(|(empty, fences)| (empty + 1, fences));
            return Ok(Vec::new());
        }
        self.0.unlinks.set(self.0.unlinks.get() + 1);
        let is_forbidden = |group: &Vec<&[u8]>| {
            let forbidden = self.0.forbidden.borrow();
            group.iter().any(|key| forbidden.as_ref().is_some_and(|one| one.matches(key)))
        };
        // Rights come before whether it takes writes at all.
        if let Some(kind) = self.0.refuses.get()
            && !groups.iter().all(is_forbidden)
        {
            self.0.refused.set(self.0.refused.get() + 1);
            return Err(Error::new(kind, "told to refuse".to_owned()));
        }
        let mut counts = Vec::new();
        for group in groups {
            if is_forbidden(group) {
                counts.push(None);
                continue;
            }
            let mut keys = self.0.keys.borrow_mut();
            counts.push(Some(group.iter().filter(|key| keys.remove(**key)).count() as u64));
        }
        Ok(counts)
    }

    async fn fence(&self) -> Result<(), Error> {
        self.0.proofs.update(|(empty, fences)| (empty, fences + 1));
        self.work().await
    }
}

impl Primary for Redis {
    fn name(&self) -> &str {
        "memory"
    }

    async fn scan(&self, call: &ScanCall<'_>) -> Result<Page, Error> {
        self.work().await?;
        if self.0.no_scan.get() {
            return Err(Error::new(Kind::NoPerm, "no permission".to_owned()));
        }
        let filter = call.pattern.map(Pattern::parse);
        let count = self.0.keys.borrow().len();
        // From the last to the first: what is removed meanwhile moves none of those to come.
        let end = match usize::try_from(call.cursor).unwrap() {
            0 => count,
            cursor => cursor.min(count),
        };
        let start = end.saturating_sub(call.count);
        let work = Duration::from_micros(self.0.key_work.get() * (end - start) as u64);
        if !work.is_zero() {
            tokio::time::sleep(work).await;
            self.0.scans.borrow_mut().push((Instant::now(), work));
        }
        let keys = self.0.keys.borrow();
        let page = keys.iter().skip(start).take(end - start);
        let matching = |key: &&Vec<u8>| filter.as_ref().is_none_or(|one| one.matches(key));
        let found = page.filter(matching).cloned().collect();
        let cursor = start as u64;
        if cursor == 0 {
            self.0.passes.set(self.0.passes.get() + 1);
        }
        Ok(Page { cursor, keys: found })
    }

    fn list(&self, prefix: &[u8], after: Option<&[u8]>, _most: usize) -> Option<Vec<Vec<u8>>> {
        self.0.list_one(prefix, after)
    }

    async fn ping(&self) -> Result<(), Error> {
        self.work().await
    }

    async fn scan_time(&self) -> Result<Option<Duration>, Error> {
        self.work().await?;
        let all = self.0.scans.borrow().iter().map(|(_, took)| *took).sum();
        Ok(self.0.tells_time.get().then_some(all))
    }
}

impl Node for Redis {
    type Primary<'a> = &'a Redis;
    fn name(&self) -> &str {
        "memory"
    }

    fn away(&self) -> Option<String> {
        self.0.away.borrow().clone()
    }

    fn index_patterns(&self) -> Vec<Pattern> {
        self.0.listed_patterns()
    }

    fn indexed(&self) -> Option<Indexed> {
        self.0.standing()
    }

    async fn connect(&self) -> Result<(), Error> {
        self.work().await
    }

    async fn primaries(&self, scanned: &mut Scanned) -> Result<Vec<&Redis>, Error> {
        Ok(self.next_primaries(scanned))
    }

    async fn keep_alive(&self) -> Result<(), Error> {
        self.work().await
    }

    async fn watermark(&self) -> Result<Option<Vec<u8>>, Error> {
        self.work().await?;
        Ok(self.0.watermark.borrow().clone())
    }

    async fn replace_watermark(
        &self,
        expected: Option<&[u8]>,
        value: &[u8],
    ) -> Result<Replaced, Error> {
        self.work().await?;
        let mut standing = self.0.watermark.borrow_mut();
        if standing.as_deref() != expected {
            return Ok(Replaced::No(standing.clone()));
        }
        *standing = Some(value.to_vec());
        self.0.watermarks_written.set(self.0.watermarks_written.get() + 1);
        Ok(Replaced::Yes)
    }

    async fn details(&self, digest: &str) -> Result<Option<Vec<u8>>, Error> {
        self.work().await?;
        Ok(self.0.details.borrow().get(digest).map(|(value, _)| value.clone()))
    }

    async fn keep_details(&self, digest: &str, value: &[u8], for_good: bool) -> Result<(), Error> {
        self.work().await?;
        self.0.details.borrow_mut().insert(digest.to_owned(), (value.to_vec(), for_good));
        Ok(())
    }

    async fn drop_details(&self, digest: &str) -> Result<(), Error> {
        self.work().await?;
        self.0.details.borrow_mut().remove(digest);
        Ok(())
    }

    async fn shared(&self, value: &[u8]) -> Result<(), Error> {
        self.work().await?;
        assert_eq!(self.0.watermark.borrow().as_deref(), Some(value), "it stands");
        match self.0.alone.get() {
            true => Err(Error::new(Kind::Replicas, "0 of 1".to_owned())),
            false => Ok(()),
        }
    }
}

/// A rule of one template.
pub(super) fn rule(name: &str, table: &str, key: &str) -> Rule {
    Rule { name: name.to_owned(), ..Rule::for_tests(table, &[key]) }
}

/// Two rules: `item:{id}` exact, `list:{id}:*` a pattern.
pub(super) fn rules() -> Rules {
    Rules::compile(&[rule("item", "item", "item:{id}"), rule("list", "list", "list:{id}:*")])
        .unwrap()
}

/// The keys of rows inserted into `item` or `list`.
pub(super) fn keys(rules: &Rules, table: &str, ids: &[&str]) -> KeySet {
    let relation = Arc::new(Relation {
        id: if table == "item" { 1 } else { 2 },
        namespace: "public".to_owned(),
        name: table.to_owned(),
        replica_identity: ReplicaIdentity::Full,
        columns: vec![Column {
            is_key: true,
            name: "id".to_owned(),
            type_id: 25,
            type_modifier: -1,
        }],
    });
    let (mut keys, mut bound) = (rules.key_set(), rules.bind(Binding::default()));
    for id in ids {
        let new = Tuple::from_values(&[Value::Text(id.as_bytes())]);
        let change = Change { relation: Arc::clone(&relation), row: Row::Insert { new } };
        bound.add(&change, &mut keys);
    }
    keys
}

/// How a sweeper of these rules sweeps that begins at 100, and who changes the fingerprints.
pub(super) fn settings(rules: &Rules, window: Duration) -> (watch::Sender<Rc<Prints>>, Settings) {
    let prints = prints(rules);
    let expected = expected(&prints);
    let (adopt, prints) = watch::channel(Rc::new(prints));
    let settings = Settings {
        max_stall: Duration::from_millis(1),
        max_load: 0.25,
        window,
        expected,
        wal_end: Lsn(1_000),
        prints,
        broken: None,
        doubt: Doubt::none(),
        empty: rules.key_set(),
        room: Room::of(1),
    };
    (adopt, settings)
}

pub(super) struct Bench {
    pub(super) rules: Rules,
    pub(super) redis: Redis,
    pub(super) visible: Sender<Visible>,
    pub(super) safe: watch::Sender<Lsn>,
    pub(super) adopt: watch::Sender<Rc<Prints>>,
    pub(super) events: mpsc::Receiver<(TargetId, Event)>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) waiting: Waiting,
    /// Transactions that may be confirmed, not asked for yet.
    pub(super) done: Vec<u64>,
}

/// A ledger's knowledge of transactions: whether each is in flight, and by what it is held.
#[derive(Default)]
pub(super) struct Waiting(BTreeMap<u64, (bool, BTreeSet<Hold>)>);

impl Waiting {
    pub(super) fn held(&mut self, held: &Held) {
        for (_, holds) in self.0.values_mut() {
            for other in &held.holds {
                if holds.contains(other) {
                    if held.moved {
                        holds.remove(other);
                    }
                    holds.insert(held.by);
                }
            }
        }
        for end_lsn in &held.end_lsns {
            let (in_flight, holds) = self.0.entry(end_lsn.0).or_insert((true, BTreeSet::new()));
            *in_flight &= !held.moved;
            holds.insert(held.by);
        }
    }

    /// The transactions that may be confirmed now, and not before.
    pub(super) fn swept(&mut self, swept: &super::Swept) -> Vec<u64> {
        for end_lsn in swept.end_lsns() {
            self.0.entry(end_lsn.0).or_insert((false, BTreeSet::new())).0 = false;
        }
        for (_, holds) in self.0.values_mut() {
            holds.retain(|hold| !swept.holds().contains(hold));
        }
        let is_done = |(in_flight, holds): &(bool, BTreeSet<Hold>)| !in_flight && holds.is_empty();
        let done: Vec<u64> =
            self.0.iter().filter(|(_, one)| is_done(one)).map(|(end, _)| *end).collect();
        self.0.retain(|_, one| !is_done(one));
        done
    }
}

impl Bench {
    /// A sweeper over a Redis whose watermark is at 100, as is the slot.
    pub(super) fn new(window: Duration) -> Bench {
        Bench::over(Redis::default(), Some(100), window)
    }

    pub(super) fn over(redis: Redis, watermark: Option<u64>, window: Duration) -> Bench {
        let expected = expected(&prints(&rules()));
        *redis.0.watermark.borrow_mut() =
            watermark.map(|lsn| Watermark { lsn: Lsn(lsn), ..expected }.to_value());
        Bench::found(redis, window)
    }

    /// A sweeper over a Redis as it is.
    pub(super) fn found(redis: Redis, window: Duration) -> Bench {
        Bench::of(rules(), redis, window)
    }

    /// A sweeper of these rules over a Redis as it is.
    pub(super) fn of(rules: Rules, redis: Redis, window: Duration) -> Bench {
        let (adopt, settings) = settings(&rules, window);
        let (visible, sweeper_visible) = channel(64);
        let (events_sender, events) = mpsc::channel(64);
        let (safe, sweeper_safe) = watch::channel(Lsn(100));
        let metrics = Arc::new(Metrics::new(rules.names()));
        let health = Arc::new(Health::new(Arc::clone(&metrics)));
        let told = (TargetId::FIRST, events_sender);
        let sweeper = Sweeper::new(redis.clone(), settings, Arc::clone(&health), told);
        tokio::task::spawn_local(sweeper.run(sweeper_visible, sweeper_safe));
        let waiting = Waiting::default();
        let done = Vec::new();
        Bench { rules, redis, visible, safe, adopt, events, metrics, health, waiting, done }
    }

    pub(super) async fn commit(&mut self, end_lsn: u64, table: &str, ids: &[&str]) {
        let keys = keys(&self.rules, table, ids);
        self.commit_keys(end_lsn, keys).await;
    }

    pub(super) async fn commit_keys(&mut self, end_lsn: u64, keys: KeySet) {
        let end_lsn = Lsn(end_lsn);
        let transaction = Transaction { xid: 1, commit_lsn: end_lsn, end_lsn, commit_time: 0 };
        let visible = Visible::for_tests(Cause::Transaction(transaction), keys);
        self.visible.send(visible).await.unwrap();
    }

    pub(super) async fn resync(&mut self) {
        let keys = self.rules.everything();
        let visible = Visible::for_tests(Cause::Resync { last: true }, keys);
        self.visible.send(visible).await.unwrap();
    }

    /// The next event that `wanted` knows; panics after a minute.
    pub(super) async fn wait<T>(&mut self, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        let next = async {
            loop {
                let (_, event) = self.events.recv().await.expect("the sweeper runs");
                match &event {
                    Event::Held(held) => self.waiting.held(held),
                    Event::Swept(swept) => self.done.extend(self.waiting.swept(swept)),
                    _ => {}
                }
                if let Some(found) = wanted(&event) {
                    return found;
                }
            }
        };
        timeout(Duration::from_secs(60), next).await.expect("the event comes")
    }

    pub(super) async fn swept(&mut self) -> Vec<u64> {
        while self.done.is_empty() {
            self.wait(|event| matches!(event, Event::Swept(_)).then_some(())).await;
        }
        std::mem::take(&mut self.done)
    }

    /// Everything that may be confirmed, when it is so many transactions.
    pub(super) async fn all_swept(&mut self, count: usize) -> Vec<u64> {
        let mut swept = self.swept().await;
        while swept.len() < count {
            swept.extend(self.swept().await);
        }
        swept.sort_unstable();
        swept
    }

    pub(super) async fn covered(&mut self, at_least: u64) {
        self.wait(|event| matches!(event, Event::Covered(lsn) if lsn.0 >= at_least).then_some(()))
            .await;
    }

    pub(super) async fn whole(&mut self) {
        self.wait(|event| matches!(event, Event::Whole).then_some(())).await;
    }
}

pub(super) async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

#[tokio::test(start_paused = true)]
async fn keys_go_and_only_then_their_transaction_is_swept() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.redis.fill(&["item:1", "item:2", "list:1:a", "list:1:b", "list:2:a"]);
        bench.commit(110, "item", &["1"]).await;
        assert_eq!(bench.swept().await, [110]);
        assert!(!bench.redis.has("item:1") && bench.redis.has("item:2"));
        bench.commit(120, "list", &["1"]).await;
        assert_eq!(bench.swept().await, [120]);
        assert!(!bench.redis.has("list:1:a") && !bench.redis.has("list:1:b"));
        assert!(bench.redis.has("list:2:a"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_becomes_visible_together_shares_a_round_trip() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.whole().await;
        for (end_lsn, id) in [(110, "1"), (120, "2"), (130, "3")] {
            bench.commit(end_lsn, "item", &[id]).await;
        }
        assert_eq!(bench.all_swept(3).await, [110, 120, 130]);
        assert_eq!(bench.redis.0.unlinks.get(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pattern_in_the_same_batch_does_not_take_exact_keys_with_it() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.redis.fill(&["item:1"]);
        bench.commit(110, "item", &["1"]).await;
        bench.resync().await;
        assert_eq!(bench.swept().await, [110]);
        assert!(!bench.redis.has("item:1"), "swept, and still there");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_late_refill_is_removed_before_the_transaction_is_swept() {
    local(async {
        let mut bench = Bench::new(Duration::from_secs(1));
        bench.redis.fill(&["item:1", "list:1:a"]);
        bench.commit(110, "item", &["1"]).await;
        bench.commit(120, "list", &["1"]).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!bench.redis.has("item:1") && !bench.redis.has("list:1:a"));
        bench.redis.fill(&["item:1", "list:1:a"]);
        let began = Instant::now();
        let mut swept = bench.swept().await;
        if swept.len() < 2 {
            swept.extend(bench.swept().await);
        }
        assert_eq!(swept, [110, 120]);
        assert!(began.elapsed() >= Duration::from_millis(500), "a whole window passed");
        assert!(!bench.redis.has("item:1") && !bench.redis.has("list:1:a"));
    })
    .await;
}

/// Its keys come again with the commit, and have their second removal then.
#[tokio::test(start_paused = true)]
async fn what_goes_early_goes_once_and_is_not_told() {
    local(async {
        let mut bench = Bench::new(Duration::from_secs(1));
        for (table, key) in [("item", "item:1"), ("list", "list:1:a")] {
            bench.redis.fill(&[key]);
            let visible = Visible::for_tests(Cause::Early(1), keys(&bench.rules, table, &["1"]));
            bench.visible.send(visible).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(!bench.redis.has(key), "{key} went");
            bench.redis.fill(&[key]);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(bench.redis.has("item:1") && bench.redis.has("list:1:a"), "removed once more");
        bench.commit(110, "item", &["1"]).await;
        assert_eq!(bench.swept().await, [110], "the commit alone is told");
        assert!(!bench.redis.has("item:1"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn patterns_that_wait_share_a_pass() {
    local(async {
        let mut bench = Bench::new(Duration::ZERO);
        bench.whole().await;
        let ids: Vec<String> = (0..20).map(|id| id.to_string()).collect();
        for (at, id) in ids.iter().enumerate() {
            bench.redis.fill(&[&format!("list:{id}:a")]);
            bench.commit(110 + at as u64, "list", &[id]).await;
        }
        let mut swept = Vec::new();
        while swept.len() < 20 {
            swept.extend(bench.swept().await);
        }
        assert!(bench.redis.0.passes.get() <= 3, "{} passes", bench.redis.0.passes.get());
        assert!(bench.redis.0.keys.borrow().is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_error_holds_the_transaction_until_it_is_over() {
    for kind in [Kind::Io, Kind::Timeout, Kind::ReadOnly, Kind::Loading, Kind::Oom, Kind::Busy] {
        local(async {
            let mut bench = Bench::new(Duration::ZERO);
            bench.whole().await;
            bench.redis.fill(&["item:1", "list:1:a"]);
            bench.redis.0.fails.set(Some(kind));
            bench.commit(110, "item", &["1"]).await;
            bench.commit(120, "list", &["1"]).await;
            let early = timeout(Duration::from_secs(30), bench.swept()).await;
            assert!(early.is_err(), "{kind:?}: swept while Redis fails");
            bench.redis.0.fails.set(None);
            let mut swept = bench.swept().await;
            while swept.len() < 2 {
                swept.extend(bench.swept().await);
            }
            swept.sort_unstable();
            assert_eq!(swept, [110, 120], "{kind:?}");
            assert!(bench.redis.0.keys.borrow().is_empty(), "{kind:?}");
        })
        .await;
    }
}
