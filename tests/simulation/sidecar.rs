//! walsweep itself: the real stages over the servers in memory, session after session, process
//! after process.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use walsweep::capture;
use walsweep::config;
use walsweep::keys::{Binding, Rules};
use walsweep::lsn::Lsn;
use walsweep::retry::Backoff;
use walsweep::run::error::{Error, Verdict};
use walsweep::run::pipeline::{Outside, TargetNode};
use walsweep::run::session::Timing;
use walsweep::run::shutdown::Shutdown;
use walsweep::settle::{self, Holder, Probe, Snapshot, SqlStandby};
use walsweep::sweep::{Broken, Doubt, Prints, Settings, Tables, Watermark};
use walsweep::telemetry::metrics::Metrics;
use walsweep::telemetry::{Health, Phase as Doing};

use crate::node::Client;
use crate::postgres::Slot;
use crate::walsender;
use crate::world::World;

/// An order of the script to the process.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Everything is dropped where it stands; started again after so many milliseconds.
    Crash(u64),
    /// SIGTERM, and a start after so many milliseconds.
    Stop(u64),
}

/// A view of what the last process is doing.
#[derive(Clone, Default)]
pub(crate) struct Window(Rc<std::cell::RefCell<Option<Arc<Health>>>>);

impl Window {
    pub(crate) fn phase(&self) -> Doing {
        self.0.borrow().as_ref().map_or(Doing::Connecting, |health| health.phase())
    }
}

/// Runs processes until it is dropped.
pub(crate) async fn live(
    world: Rc<World>,
    rules: Rc<Vec<config::Rule>>,
    mut orders: mpsc::Receiver<Order>,
    window: Window,
) {
    loop {
        let (trigger, shutdown) = Shutdown::by_trigger();
        let mut process = Box::pin(process(&world, &rules, shutdown, &window));
        let order = tokio::select! {
            biased;
            order = orders.recv() => order,
            () = &mut process => {
                world.fail("the process ended by itself");
                return;
            }
        };
        world.judge.disturbed();
        let wait = match order {
            Some(Order::Crash(wait)) => wait,
            Some(Order::Stop(wait)) => {
                trigger.stop();
                // Ten seconds for keys on their way, three for the farewell.
                if timeout(Duration::from_secs(14), &mut process).await.is_err() {
                    world.fail("a stop takes longer than it may");
                }
                wait
            }
            None => return std::future::pending().await,
        };
        drop(process);
        world.judge.session_over();
        sleep(Duration::from_millis(wait)).await;
    }
}

async fn process(
    world: &Rc<World>,
    rules: &[config::Rule],
    mut shutdown: Shutdown,
    window: &Window,
) {
    let rules = Rules::compile(rules).expect("the rules are valid");
    let mut bound = rules.bind(Binding::default());
    let metrics = Arc::new(Metrics::new(rules.names()));
    let health = Arc::new(Health::new(Arc::clone(&metrics)));
    window.0.replace(Some(Arc::clone(&health)));
    let mut backoff = Backoff::postgres();
    world.note(|| "walsweep starts".to_owned());
    loop {
        tokio::select! {
            biased;
            () = shutdown.requested() => return,
            () = sleep(backoff.next_wait()) => {}
        }
        let opened = tokio::select! {
            biased;
            () = shutdown.requested() => return,
            opened = open(world, &rules) => opened,
        };
        let outcome = match opened {
            Ok((outside, settings)) => {
                backoff = Backoff::postgres();
                world.judge.session(settings.expected.lsn.0, &metrics, &health);
                let timing =
                    Timing { status: walsender::TIMEOUT / 4, silence: Duration::from_secs(15) };
                let watched = (&health, &metrics);
                Box::pin(outside.run((settings, timing), &mut bound, watched, &mut shutdown)).await
            }
            Err(error) => Err(error),
        };
        let Err(error) = outcome else { return };
        world.note(|| format!("session ends: {error}"));
        world.judge.session_over();
        // The server in memory sends nothing that cannot be read.
        if error.verdict(true) == Verdict::Halt || error.blames_slot() {
            world.fail(&format!("walsweep gives up: {error}"));
        }
        health.set(Doing::Connecting);
        backoff.next_wait();
    }
}

type Opened = (Outside<Asker, SqlStandby>, Settings);

/// Does what `Session::open` does, on the server in memory.
async fn open(world: &Rc<World>, rules: &Rules) -> Result<Opened, Error> {
    let number = *world.replication.borrow();
    let check = || {
        let stands = world.postgres.borrow().up && *world.replication.borrow() == number;
        if stands { Ok(()) } else { Err(Error::from(capture::Error::Closed)) }
    };
    world.pause(1, 5).await;
    check()?;
    let mut broken = None;
    if world.postgres.borrow().slot.is_none() {
        tokio::select! {
            biased;
            () = create_slot(world) => broken = Some(Broken::SlotCreated),
            () = async { while check().is_ok() { sleep(Duration::from_millis(5)).await } } => {}
        }
    }
    world.pause(1, 5).await;
    check()?;
    let (lsn, timeline, epoch, wal_end) = {
        let postgres = world.postgres.borrow();
        let slot = postgres.slot.as_ref().ok_or(walsweep::source::Error::SlotGone)?;
        (slot.confirmed, postgres.timeline, postgres.epoch, Lsn(postgres.flushed()))
    };
    world.note(|| format!("session from {lsn}, {broken:?}"));
    let prints = prints(rules);
    let expected = Watermark {
        system_id: "7".to_owned(),
        timeline,
        epoch: epoch.to_string(),
        lsn: Lsn(lsn),
        rules: prints.digest(),
        of_stranger: false,
        is_unproven: false,
    };
    let settings = Settings {
        max_stall: Duration::from_millis(5),
        max_load: 0.25,
        window: world.window,
        expected,
        wal_end,
        prints: watch::channel(Rc::new(prints)).1,
        broken,
        doubt: Doubt::none(),
        empty: rules.key_set(),
        room: world.room,
    };
    let slot = capture::Slot::over(walsender::start(world, lsn));
    let probe = Asker { world: Rc::clone(world), number: *world.sql.borrow() };
    let node = |at| Box::new(Client::new(world, at, rules)) as Box<dyn TargetNode>;
    let nodes = (0..world.targets()).map(node).collect();
    let standbys = Vec::new();
    let (witness, lookups) = (None, None);
    Ok((Outside { slot, witness, probe, standbys, nodes, lookups }, settings))
}

/// Gives the prints that watermarks are written under: there is no catalog to look at.
pub(crate) fn prints(rules: &Rules) -> Prints {
    Prints::new(rules.prints(&BTreeSet::new()), BTreeMap::new(), Tables::default(), &[])
}

/// Waits for every transaction that runs now, then takes the end of the log. Whatever began
/// meanwhile and is committed, but not visible, is older than the slot.
pub(crate) async fn create_slot(world: &World) {
    let before = world.postgres.borrow().running();
    let waits = || world.postgres.borrow().running().intersection(&before).next().is_some();
    while waits() {
        sleep(Duration::from_millis(5)).await;
    }
    world.pause(1, 40).await;
    let mut postgres = world.postgres.borrow_mut();
    let confirmed = postgres.flush();
    postgres.slot = Some(Slot { confirmed, saved: confirmed });
    world.note(|| format!("slot created at {confirmed}"));
    drop(postgres);
    world.flushed.send_replace(confirmed);
}

/// The gate's connection.
struct Asker {
    world: Rc<World>,
    number: u64,
}

impl Asker {
    async fn ask<T>(&self, answer: impl FnOnce(&World) -> T) -> Result<T, settle::Error> {
        self.travel().await?;
        let answer = answer(&self.world);
        self.travel().await?;
        Ok(answer)
    }

    async fn travel(&self) -> Result<(), settle::Error> {
        self.world.pause(0, 2).await;
        let mut hangs: watch::Receiver<bool> = self.world.hangs.subscribe();
        drop(hangs.wait_for(|hangs| !hangs).await);
        let stands = *self.world.sql.borrow() == self.number && self.world.postgres.borrow().up;
        if stands { Ok(()) } else { Err(settle::Error::Timeout) }
    }
}

impl Probe for Asker {
    async fn snapshot(&self) -> Result<Snapshot, settle::Error> {
        self.ask(|world| world.postgres.borrow().snapshot()).await
    }

    async fn fence(&self) -> Result<u64, settle::Error> {
        self.ask(|world| world.postgres.borrow_mut().fence()).await
    }

    async fn position(&self) -> Result<Lsn, settle::Error> {
        self.ask(|world| Lsn(world.postgres.borrow().flushed())).await
    }

    async fn committed(&self, xids: &[u64]) -> Result<Vec<bool>, settle::Error> {
        self.ask(|world| {
            let postgres = world.postgres.borrow();
            xids.iter().map(|xid| postgres.is_committed(*xid)).collect()
        })
        .await
    }

    async fn holders(&self, xids: &[u64]) -> Result<Vec<Holder>, settle::Error> {
        self.ask(|world| {
            let postgres = world.postgres.borrow();
            let holds = xids.iter().filter(|xid| !postgres.holds_no_lock(**xid));
            holds.map(|xid| Holder { xid: *xid, pid: None, prepared: None }).collect()
        })
        .await
    }
}
