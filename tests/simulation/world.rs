//! The world that all parts of a schedule share: time, chance, the servers, and what went wrong.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use walsweep::sweep::Room;

use crate::eyes::Sees;
use crate::judge::Judge;
use crate::postgres::{Postgres, Version};
use crate::random::Random;
use crate::redis::Redis;
use crate::schedule::Plan;

/// One schedule's world. Everything in it happens on one thread, on paused time.
pub(crate) struct World {
    pub(crate) random: Random,
    /// The refill window, which is also how long a reader may take.
    pub(crate) window: Duration,
    /// The room for keys that wait for a target.
    pub(crate) room: Room,
    /// Which writes walsweep is told of.
    pub(crate) sees: Sees,
    pub(crate) postgres: RefCell<Postgres>,
    /// The Redis of each target.
    pub(crate) redis: Vec<RefCell<Redis>>,
    pub(crate) judge: Judge,
    /// How far the log is flushed.
    pub(crate) flushed: watch::Sender<u64>,
    /// Number of the replication connections; another number cuts the one that is there.
    pub(crate) replication: watch::Sender<u64>,
    /// Number of the ordinary connections; another number cuts those that are there.
    pub(crate) sql: watch::Sender<u64>,
    /// Whether commits wait for a synchronous standby that is gone.
    pub(crate) stuck: watch::Sender<bool>,
    /// Whether questions to Postgres are not answered.
    pub(crate) hangs: watch::Sender<bool>,
    /// How many bytes the walsender sends before its connection is cut.
    pub(crate) cut_after: Cell<Option<usize>>,
    /// Transactions of which a first block was sent.
    pub(crate) begun: RefCell<BTreeSet<Version>>,
    /// Faults that are not over.
    pub(crate) faults: Cell<u32>,
    /// Whether clients go on.
    pub(crate) open: Cell<bool>,
    born: Instant,
    trace: Option<RefCell<Vec<String>>>,
}

impl World {
    pub(crate) fn new(random: Random, plan: &Plan, traced: bool) -> World {
        let targets = plan.known.len();
        let postgres = Postgres::new(&random);
        let redis = (0..targets).map(|_| RefCell::new(Redis::new(random.next()))).collect();
        World {
            postgres: RefCell::new(postgres),
            redis,
            random,
            window: plan.window,
            room: plan.room,
            sees: plan.sees,
            judge: Judge::new(targets),
            flushed: watch::Sender::new(0),
            replication: watch::Sender::new(0),
            sql: watch::Sender::new(0),
            stuck: watch::Sender::new(false),
            hangs: watch::Sender::new(false),
            cut_after: Cell::new(None),
            begun: RefCell::default(),
            faults: Cell::new(0),
            open: Cell::new(true),
            born: Instant::now(),
            trace: traced.then(RefCell::default),
        }
    }

    /// How many targets there are.
    pub(crate) fn targets(&self) -> usize {
        self.redis.len()
    }

    /// Virtual milliseconds since the schedule began.
    pub(crate) fn now(&self) -> u128 {
        self.born.elapsed().as_millis()
    }

    /// Notes what happens, if somebody will read it.
    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            trace.borrow_mut().push(format!("{:>6} ms  {}", self.now(), text()));
        }
    }

    pub(crate) fn take_trace(&self) -> Vec<String> {
        self.trace.as_ref().map(RefCell::take).unwrap_or_default()
    }

    /// A promise is broken.
    pub(crate) fn fail(&self, text: &str) {
        self.note(|| format!("BROKEN {text}"));
        self.judge.fail(format!("at {} ms: {text}", self.now()));
    }

    /// Waits from `first` to `last` milliseconds; for none, not at all.
    pub(crate) async fn pause(&self, first: u64, last: u64) {
        let time = self.random.millis(first, last);
        if !time.is_zero() {
            sleep(time).await;
        }
    }

    /// Ends every connection to Postgres.
    pub(crate) fn cut_postgres(&self) {
        self.replication.send_modify(|number| *number += 1);
        self.sql.send_modify(|number| *number += 1);
    }
}
