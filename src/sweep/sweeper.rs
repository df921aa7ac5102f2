//! The task that owns Redis: what is done next, and what becomes of the outcome.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::evidence::Watermark;
use super::job::{Job, Member, Round, Tally};
use super::node::{Error, Node};
use super::pace::Pace;
use super::queue::Queue;
use super::refill::Refill;
use super::shared::{Written, count, observe, sweep, write};
use super::ward::Ward;
use super::{Broken, Event, Swept, second};
use crate::channel::Receiver;
use crate::failpoint::{Point, reach};
use crate::keys::KeySet;
use crate::lsn::Lsn;
use crate::retry::{Backoff, Repeats};
use crate::settle::Visible;
use crate::telemetry::metrics::{KindLabel, Metrics, NodeLabel, PeerLabel};

/// Memory of keys that wait for Redis, beyond which no more are taken: the stream then waits in
/// Postgres, which has a disk (I6).
const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The same for keys that wait for their second removal.
const REFILL_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Least time between two writes of the watermark. Each costs Redis a small script; a confirmation
/// that comes this much later costs nothing.
const WATERMARK_INTERVAL: Duration = Duration::from_millis(50);

/// The watermark is written at least this often, over itself if it does not move: a Redis that was
/// emptied or cut off is noticed although nothing is committed.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Wait before another try to write the watermark, or to see it on the replicas.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// Work under way: it owns its jobs, so that they come back whatever happens.
type Work<'a, T> = Option<Pin<Box<dyn Future<Output = T> + 'a>>>;

type BatchDone = (Vec<Job>, Result<Tally, Error>);
type PassDone = (Vec<Job>, Pace, Result<(), Error>);

/// How to sweep.
#[derive(Debug)]
pub struct Settings {
    /// The longest that one SCAN call may hold Redis.
    pub max_stall: Duration,
    /// The refill window; zero for no second removal.
    pub window: Duration,
    /// The session's history and rules; its LSN is the slot's `confirmed_flush_lsn`.
    pub expected: Watermark,
    /// Where the server's log ended when the session began.
    pub wal_end: Lsn,
    /// Set when history is known to be broken whatever the watermark says.
    pub broken: Option<Broken>,
    /// An empty key set of the rules.
    pub empty: KeySet,
}

/// Removes keys from one Redis.
pub struct Sweeper<N> {
    node: N,
    metrics: Arc<Metrics>,
    state: State,
}

/// Everything but the connection.
struct State {
    metrics: Arc<Metrics>,
    events: mpsc::Sender<Event>,
    queue: Queue,
    passes: Queue,
    refill: Refill,
    ward: Ward,
    pace: Option<Pace>,
    connected: bool,
    next_write: Instant,
    next_probe: Instant,
    node: NodeLabel,
    refusals: Repeats,
}

impl<N: Node> Sweeper<N> {
    /// A sweeper of `node` that reports to `events`.
    pub fn new(
        node: N,
        settings: Settings,
        metrics: Arc<Metrics>,
        events: mpsc::Sender<Event>,
    ) -> Sweeper<N> {
        let state = State {
            metrics: Arc::clone(&metrics),
            events,
            queue: Queue::default(),
            passes: Queue::default(),
            refill: Refill::new(settings.window, settings.empty, settings.expected.lsn),
            ward: Ward::new(settings.expected, settings.wal_end, settings.broken),
            pace: Some(Pace::new(settings.max_stall)),
            connected: false,
            next_write: Instant::now(),
            next_probe: Instant::now() + PROBE_INTERVAL,
            refusals: Repeats::default(),
            node: NodeLabel { node: node.name().to_owned() },
        };
        Sweeper { node, metrics, state }
    }

    /// Takes `visible` sets and moves the watermark up to `safe`, until it is dropped.
    pub async fn run(self, mut visible: Receiver<Visible>, mut safe: watch::Receiver<Lsn>) {
        let Sweeper { node, metrics, mut state } = self;
        let mut batch: Work<'_, BatchDone> = None;
        let mut pass: Work<'_, PassDone> = None;
        let mut write: Work<'_, Written> = None;
        let mut connect: Work<'_, Result<Option<Vec<u8>>, Error>> = None;
        let mut backoff = Backoff::redis();
        let mut open = true;
        loop {
            let now = Instant::now();
            if state.connected {
                if batch.is_none() {
                    batch = state.next_batch(&node, now);
                }
                if pass.is_none() {
                    pass = state.next_pass(&node, &metrics, now);
                }
                if write.is_none() {
                    write = state.next_write(&node, now, *safe.borrow_and_update());
                }
            } else if batch.is_none() && pass.is_none() && write.is_none() && connect.is_none() {
                // Whatever was under way on the old connection has come back before a new one is
                // made: nothing of it can arrive afterwards.
                connect = Some(Box::pin(reconnect(&node, backoff.next_wait())));
            }
            let timer = state.next_timer(now);
            tokio::select! {
                biased;
                (jobs, outcome) = finished(&mut batch) => state.batch_done(jobs, outcome).await,
                outcome = finished(&mut write) => state.write_done(outcome).await,
                found = finished(&mut connect) => {
                    if state.connect_done(found).await {
                        backoff = Backoff::redis();
                    }
                }
                (jobs, pace, outcome) = finished(&mut pass) => {
                    state.pace = Some(pace);
                    state.pass_done(jobs, outcome).await;
                }
                one = visible.recv(), if open && state.has_room() => match one {
                    Some(one) => state.queue.push(Job::first(one)),
                    None => open = false,
                },
                changed = safe.changed() => if changed.is_err() { return },
                () = sleep_until(timer.unwrap_or(now)), if timer.is_some() => state.tick(),
            }
        }
    }
}

/// The outcome of work under way; never, if there is none. Cancelled, the work goes on later.
async fn finished<T>(work: &mut Work<'_, T>) -> T {
    match work {
        Some(future) => {
            let outcome = future.await;
            *work = None;
            outcome
        }
        None => std::future::pending().await,
    }
}

async fn reconnect<N: Node>(node: &N, wait: Duration) -> Result<Option<Vec<u8>>, Error> {
    tokio::time::sleep(wait).await;
    node.connect().await?;
    node.watermark().await
}

impl State {
    fn has_room(&self) -> bool {
        self.queue.bytes() + self.passes.bytes() < WAITING_BYTES_MAX
            && self.refill.bytes() < REFILL_BYTES_MAX
    }

    fn next_batch<'a, N: Node>(&mut self, node: &'a N, now: Instant) -> Work<'a, BatchDone> {
        let mut jobs = self.queue.next_batch(now);
        let since = second::since(node, &mut jobs);
        if jobs.is_empty() {
            return None;
        }
        let empty = self.refill.empty_keys();
        Some(Box::pin(async move {
            let outcome = second::remove(node, &jobs, empty, since).await;
            (jobs, outcome)
        }))
    }

    fn next_pass<'a, N: Node>(
        &mut self,
        node: &'a N,
        metrics: &'a Metrics,
        now: Instant,
    ) -> Work<'a, PassDone> {
        let jobs = self.passes.next_pass(now);
        if jobs.is_empty() {
            return None;
        }
        let mut pace = self.pace.take().expect("it came back with the pass before this one");
        Some(Box::pin(async move {
            let outcome = sweep(node, metrics, &jobs, &mut pace).await;
            (jobs, pace, outcome)
        }))
    }

    fn next_write<'a, N: Node>(
        &mut self,
        node: &'a N,
        now: Instant,
        safe: Lsn,
    ) -> Work<'a, Written> {
        if now < self.next_write {
            return None;
        }
        let moved = self.ward.next(safe);
        let due = moved.or_else(|| if now >= self.next_probe { self.ward.again() } else { None });
        let (expected, value) = match due {
            Some((expected, value)) => {
                reach(Point::WatermarkDue);
                self.next_probe = now + PROBE_INTERVAL;
                (Some(expected), value)
            }
            None => (None, self.ward.unshared()?),
        };
        self.next_write = now + WATERMARK_INTERVAL;
        Some(Box::pin(write(node, expected, value)))
    }

    /// When something becomes due that nothing else would wake for. What was due at `now` is under
    /// way, or begins when the work before it ends, which wakes by itself.
    fn next_timer(&self, now: Instant) -> Option<Instant> {
        let writes = [Some(self.next_write), Some(self.next_probe)];
        let started = [self.queue.next_due(), self.passes.next_due()].into_iter().chain(writes);
        let started = started.flatten().filter(|time| *time > now);
        started.chain(self.refill.next_due()).min()
    }

    /// Second removals that are due join the queue.
    fn tick(&mut self) {
        for job in self.refill.due(Instant::now()) {
            reach(Point::SecondDue);
            self.queue.push(job);
        }
    }

    async fn batch_done(&mut self, jobs: Vec<Job>, outcome: Result<Tally, Error>) {
        match outcome {
            Ok(tally) => {
                let second = jobs.first().is_some_and(|job| job.round.takes_refills());
                count(&self.metrics, &tally, second);
                reach(Point::ExactRemoved);
                for job in jobs {
                    if job.keys.has_patterns() && !tally.with_patterns {
                        self.passes.push(job);
                    } else {
                        self.removed(job).await;
                    }
                }
            }
            Err(error) => {
                if self.failed(&error).await {
                    jobs.into_iter().for_each(|job| self.queue.push(job));
                } else {
                    self.queue.push_refused(jobs, Instant::now());
                }
            }
        }
    }

    async fn pass_done(&mut self, jobs: Vec<Job>, outcome: Result<(), Error>) {
        match outcome {
            Ok(()) => {
                reach(Point::PassDone);
                for job in jobs {
                    self.removed(job).await;
                }
            }
            Err(error) => {
                if self.failed(&error).await {
                    jobs.into_iter().for_each(|job| self.queue.push(job));
                } else {
                    self.passes.push_refused(jobs, Instant::now());
                }
            }
        }
    }

    /// One removal of a job's keys is acknowledged.
    async fn removed(&mut self, job: Job) {
        if job.is_early() {
            return;
        }
        let now = Instant::now();
        if job.round == Round::First {
            job.members.iter().for_each(|member| observe(&self.metrics, member, now));
        }
        if job.round == Round::Again && self.ward.repeated() {
            self.report(Event::Whole).await;
        }
        if job.round == Round::Second || !self.refill.is_on() {
            self.note_resyncs(&job, job.round != Round::Second).await;
            self.done(job).await;
        } else {
            reach(Point::FirstRemoved);
            self.note_resyncs(&job, true).await;
            self.refill.add(job, now);
        }
    }

    async fn note_resyncs(&mut self, job: &Job, is_first: bool) {
        let closes = job.members.iter().any(|one| matches!(one, Member::Resync { last: true, .. }));
        if closes && is_first {
            self.ward.shown();
            reach(Point::ResyncShown);
            if self.ward.is_whole() {
                self.report(Event::Whole).await;
            }
        }
    }

    /// The last removal of a job's keys is acknowledged.
    async fn done(&mut self, job: Job) {
        let mut end_lsns = Vec::with_capacity(job.members.len());
        let mut owed = Vec::new();
        for member in job.members {
            match member {
                Member::Transaction { transaction, settles: true, .. } => {
                    end_lsns.push(transaction.end_lsn);
                }
                Member::Resync { last: true, settles: true } => self.ward.paid(),
                Member::Replayed(replayed) => {
                    end_lsns.extend(replayed.end_lsns);
                    (0..replayed.resyncs).for_each(|_| self.ward.paid());
                }
                // If Redis loses the removal before the standbys show it, it is made again.
                member if member.is_owed_resync() => owed.push(member),
                Member::Transaction { .. } | Member::Resync { .. } | Member::Early => {}
            }
        }
        self.refill.keep(job.covers, job.keys, owed);
        reach(Point::Swept);
        if !end_lsns.is_empty() {
            self.report(Event::Swept(Swept { end_lsns })).await;
        }
    }

    async fn write_done(&mut self, written: Written) {
        match written {
            Written::Shared => {
                reach(Point::WatermarkWritten);
                self.cover();
                self.ward.shared();
                self.report(Event::Covered(self.ward.covered())).await;
            }
            Written::Alone(error) => {
                self.cover();
                self.failed(&error).await;
                self.next_write = Instant::now() + WRITE_AGAIN;
            }
            Written::Not(found) => match self.ward.contradicted(found, self.refill.floor()) {
                Some(broken) => self.report(Event::ResyncOwed(broken)).await,
                // What is under way may have been removed before Redis went back, or after.
                None => self.disconnect().await,
            },
            Written::Failed(error) => {
                self.failed(&error).await;
                self.next_write = Instant::now() + WRITE_AGAIN;
            }
        }
    }

    /// The watermark stands in the primary.
    fn cover(&mut self) {
        let lsn = self.ward.written();
        self.refill.covered(lsn, Instant::now());
    }

    /// A connection was made, or was not. Says whether it was.
    async fn connect_done(&mut self, found: Result<Option<Vec<u8>>, Error>) -> bool {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.failed(&error).await;
                self.report(Event::RedisLost).await;
                return false;
            }
        };
        self.connected = true;
        self.metrics.redis_up.get_or_create(&self.node).set(1);
        let judged = self.ward.connected(found, self.refill.floor());
        if self.ward.covered() > Lsn::ZERO {
            self.refill.covered(self.ward.covered(), Instant::now());
        }
        self.repeat_everything(judged.ok().flatten());
        match judged {
            Ok(_) => {
                tracing::info!(node = self.node.node, "connected to redis");
                if self.ward.is_whole() {
                    self.report(Event::Whole).await;
                }
            }
            Err(broken) => self.report(Event::ResyncOwed(broken)).await,
        }
        true
    }

    /// Redis may have lost whatever was removed and is not covered: all of it goes to the start. If
    /// it went back, then also what was covered since.
    fn repeat_everything(&mut self, went_back_to: Option<Lsn>) {
        let mut jobs = Vec::new();
        if let Some(lsn) = went_back_to {
            jobs = self.refill.covered_again(lsn);
            let keys = |job: &Job| (job.keys.exact_len() + job.keys.patterns().count()) as u64;
            let keys = jobs.iter().map(keys).sum();
            let node = &self.node.node;
            tracing::warn!(node, %lsn, keys, "redis went back: removing again what it lost");
            self.metrics.repeated_keys.inc_by(keys);
        }
        jobs.extend(self.refill.all_again());
        jobs.extend(self.queue.drain());
        jobs.extend(self.passes.drain());
        for job in &mut jobs {
            if job.round == Round::Second {
                job.round = Round::Again;
            }
        }
        self.ward.repeats(jobs.iter().filter(|job| job.round == Round::Again).count());
        jobs.into_iter().for_each(|job| self.queue.push(job));
    }

    /// Counts and logs an error. Says whether the connection is lost by it.
    async fn failed(&mut self, error: &Error) -> bool {
        let kind = error.kind().as_str();
        self.metrics.redis_errors.get_or_create(&KindLabel { kind }).inc();
        let (node, hint) = (&self.node.node, error.hint());
        match error {
            Error::Refused(..) => {
                // Each job that waits is refused on its own: thousands a second under load.
                if let Some(unsaid) = self.refusals.say(kind, Instant::now()) {
                    tracing::warn!(
                        node,
                        %error,
                        hint,
                        unsaid,
                        "redis refused; held back, trying again"
                    );
                }
                false
            }
            Error::Lost(..) => {
                tracing::warn!(node, %error, hint, "redis is lost; connecting again");
                self.metrics.redis_up.get_or_create(&self.node).set(0);
                self.disconnect().await;
                true
            }
        }
    }

    /// The next thing is to connect again.
    async fn disconnect(&mut self) {
        if self.connected {
            self.metrics.reconnects.get_or_create(&PeerLabel { peer: "redis" }).inc();
            self.connected = false;
            self.report(Event::RedisLost).await;
        }
    }

    /// A closed channel means that the session ends.
    async fn report(&self, event: Event) {
        drop(self.events.send(event).await);
    }
}
