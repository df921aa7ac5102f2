//! A schedule: what a seed makes of workload and faults, and how it is run.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use walsweep::config;
use walsweep::keys::Rules;
use walsweep::lsn::Lsn;
use walsweep::sweep::{Kind, Room, Watermark};
use walsweep::telemetry::Phase as Doing;

use crate::clients;
use crate::eyes::Sees;
use crate::judge::LOOKS;
use crate::postgres::Slot;
use crate::random::Random;
use crate::redis::{Mood, Which};
use crate::sidecar::{Order, Window, create_slot, live, prints};
use crate::world::World;

/// How long after the last fault everything may take to be at rest.
const REST_BOUND: Duration = Duration::from_secs(120);

/// Kinds of faults, as [`Fault::of`] counts them; those that need a moment to fit count twice.
const KINDS: u64 = 20;

/// Something that goes wrong. Times are milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// walsweep dies, or is stopped.
    Sidecar(Order),
    /// Redis is away and comes back as it was.
    RedisDown {
        lasts: u64,
    },
    /// Calls are lost before or after their effect, time out, arrive late.
    RedisFlaky {
        percent: u64,
        lasts: u64,
    },
    RedisRefuses {
        kind: Kind,
        which: Which,
        lasts: u64,
    },
    RedisUseless {
        kind: Kind,
        lasts: u64,
    },
    /// The right to the keys of one rule is taken away and given back.
    RedisForbids {
        prefix: &'static str,
        lasts: u64,
    },
    /// A promoted replica, or a restart from an older file: the last commands are lost.
    RedisRollsBack {
        commands: usize,
        down: u64,
    },
    /// Like [`Fault::RedisRollsBack`], behind a proxy that keeps the connections.
    RedisRollsBackHidden {
        commands: usize,
    },
    /// The watermark is evicted, or somebody writes over it.
    WatermarkGone {
        foreign: bool,
    },
    /// The connections to Postgres end.
    PostgresCut,
    /// The replication connection ends after so many bytes.
    CutAfter {
        bytes: usize,
    },
    PostgresRestarts {
        down: u64,
    },
    /// The gate is not answered.
    SqlHangs {
        lasts: u64,
    },
    /// No synchronous standby: commits are in the log and stay invisible.
    Stuck {
        lasts: u64,
    },
    /// The slot is dropped; somebody may make a new one before walsweep does.
    SlotDropped {
        made: bool,
    },
    SlotAdvanced,
    /// A standby that lacks the last commits becomes the primary.
    Promotion {
        lost: usize,
        down: u64,
    },
}

/// Everything that a seed decides before anything runs.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) window: Duration,
    pub(crate) writers: u64,
    pub(crate) readers: u64,
    pub(crate) pause_max: u64,
    /// How many milliseconds a SCAN call may take.
    pub(crate) scan_pause: u64,
    /// Of each target whether its watermark stands already; the slot does, if one stands.
    pub(crate) known: Vec<bool>,
    /// The room for keys that wait for a target.
    pub(crate) room: Room,
    /// Which writes walsweep is told of.
    pub(crate) sees: Sees,
    /// How long clients are busy, milliseconds.
    pub(crate) busy: u64,
    /// When something goes wrong, with which target if it is one of Redis, and what.
    pub(crate) script: Vec<(u64, usize, Fault)>,
}

impl Plan {
    fn new(random: &Random) -> Plan {
        let busy = random.between(600, 2400);
        let targets = random.between(1, 2);
        let target = || usize::try_from(random.below(targets)).unwrap();
        let mut script = Vec::new();
        // Now and then one kind strikes again and again: what is rare needs many chances.
        let theme = random.chance(25).then(|| random.below(KINDS));
        let count = if theme.is_some() { random.between(4, 16) } else { random.below(6) };
        for _ in 0..count {
            let any = || Fault::of(theme.unwrap_or_else(|| random.below(KINDS)), random);
            let at = random.below(busy);
            script.push((at, target(), any()));
            // Faults like company: one often strikes while another is being dealt with.
            if random.chance(40) {
                script.push((at + random.below(150), target(), any()));
            }
        }
        script.sort_by_key(|(at, _, _)| *at);
        // One that is new beside one that is not; or none was here before, or all.
        let known = random.chance(70);
        let known = (0..targets).map(|_| known && random.chance(85)).collect();
        let is_small = targets > 1 && random.chance(60);
        let whole = Room::of(usize::try_from(targets).unwrap());
        let room = Room { length: 4, bytes: 16 * 1024, ..whole };
        Plan {
            window: Duration::from_millis(random.pick(&[0, 40, 150, 400])),
            writers: random.between(1, 4),
            readers: random.between(1, 4),
            pause_max: random.pick(&[20, 50, 120]),
            scan_pause: random.pick(&[3, 3, 30, 200]),
            known,
            room: if is_small { room } else { whole },
            sees: Sees {
                refills: random.chance(30),
                // Now and then not all names fit.
                index: random.chance(50).then(|| random.pick(&[400, 1 << 20, 1 << 20])),
            },
            busy,
            script,
        }
    }
}

/// Lets Redis refuse keys of this prefix, in the place of another one. What waited for that one may
/// take its time.
fn forbid(world: &World, at: usize, prefix: Option<&'static str>) {
    let before = std::mem::replace(&mut world.redis[at].borrow_mut().mood.forbids, prefix);
    if before == Some("item:") {
        world.judge.disturbed_at(at);
    }
}

impl Fault {
    fn of(kind: u64, random: &Random) -> Fault {
        let lasts = random.pick(&[20, 100, 100, 300, 300, 1000, 1000, 4500]);
        let down = random.pick(&[0, 10, 100, 600]);
        let commands = usize::try_from(random.below(1 << random.between(1, 9))).unwrap();
        match kind {
            0..3 => Fault::Sidecar(Order::Crash(down)),
            3 => Fault::Sidecar(Order::Stop(down)),
            4 => Fault::RedisDown { lasts },
            5 => Fault::RedisFlaky { percent: random.pick(&[5, 20, 60]), lasts },
            6 => Fault::RedisRefuses {
                kind: random.pick(&[Kind::NoPerm, Kind::Oom, Kind::Busy, Kind::Other]),
                which: random.pick(&[Which::Unlink, Which::Scan, Which::Watermark]),
                lasts,
            },
            7 => {
                let kind = random.pick(&[Kind::ReadOnly, Kind::Loading]);
                Fault::RedisUseless { kind, lasts }
            }
            8..10 => Fault::RedisRollsBack { commands, down },
            10 => Fault::RedisRollsBackHidden { commands },
            11 => Fault::WatermarkGone { foreign: random.chance(50) },
            12 => Fault::PostgresCut,
            13 => Fault::CutAfter { bytes: usize::try_from(random.below(400)).unwrap() },
            14 => Fault::PostgresRestarts { down },
            15 => Fault::SqlHangs { lasts },
            16 => Fault::Stuck { lasts },
            17 if random.chance(50) => Fault::SlotAdvanced,
            17 => Fault::SlotDropped { made: random.chance(50) },
            18 => Fault::RedisForbids { prefix: random.pick(&["item:", "list:"]), lasts },
            _ => Fault::Promotion { lost: usize::try_from(random.below(6)).unwrap(), down },
        }
    }

    /// Whether it goes wrong with the Redis of one target.
    fn is_of_redis(self) -> bool {
        match self {
            Fault::RedisDown { .. }
            | Fault::RedisFlaky { .. }
            | Fault::RedisRefuses { .. }
            | Fault::RedisUseless { .. }
            | Fault::RedisForbids { .. }
            | Fault::RedisRollsBack { .. }
            | Fault::RedisRollsBackHidden { .. }
            | Fault::WatermarkGone { .. } => true,
            Fault::Sidecar(_)
            | Fault::PostgresCut
            | Fault::CutAfter { .. }
            | Fault::PostgresRestarts { .. }
            | Fault::SqlHangs { .. }
            | Fault::Stuck { .. }
            | Fault::SlotDropped { .. }
            | Fault::SlotAdvanced
            | Fault::Promotion { .. } => false,
        }
    }

    /// Whether a sweep may follow: history is broken, or a watermark came late.
    fn may_sweep(self) -> bool {
        matches!(
            self,
            Fault::RedisFlaky { .. }
                | Fault::RedisRollsBack { .. }
                | Fault::RedisRollsBackHidden { .. }
                | Fault::WatermarkGone { .. }
                | Fault::PostgresRestarts { .. }
                | Fault::SlotDropped { .. }
                | Fault::SlotAdvanced
                | Fault::Promotion { .. }
        )
    }

    /// Strikes; what lasts is ended by a task of its own.
    async fn strike(self, world: &Rc<World>, at: usize, orders: &mpsc::Sender<Order>) {
        world.note(|| format!("FAULT {self:?}, target {at}"));
        if self.may_sweep() {
            world.judge.may_sweep(self.is_of_redis().then_some(at));
        }
        // That a commit waits must hold up no other (I3), and neither must what Redis refuses of
        // another rule (I10).
        if self.is_of_redis() && !matches!(self, Fault::RedisForbids { .. }) {
            world.judge.disturbed_at(at);
        } else if !matches!(self, Fault::Stuck { .. } | Fault::RedisForbids { .. }) {
            world.judge.disturbed();
        }
        match self {
            Fault::Sidecar(order) => drop(orders.try_send(order)),
            Fault::RedisDown { lasts } => {
                world.redis[at].borrow_mut().cut();
                down(world, at, lasts);
            }
            Fault::RedisFlaky { percent, lasts } => {
                set(world, at, lasts, |mood| &mut mood.flaky, percent);
            }
            Fault::RedisRefuses { kind, which, lasts } => {
                set(world, at, lasts, |mood| &mut mood.refuses, Some((kind, which)));
            }
            Fault::RedisUseless { kind, lasts } => {
                set(world, at, lasts, |mood| &mut mood.useless, Some(kind));
            }
            Fault::RedisForbids { prefix, lasts } => {
                forbid(world, at, Some(prefix));
                later(world, lasts, move |world| forbid(world, at, None));
            }
            Fault::RedisRollsBack { commands, down: lasts } => {
                world.redis[at].borrow_mut().roll_back(commands);
                down(world, at, lasts);
            }
            Fault::RedisRollsBackHidden { commands } => {
                world.redis[at].borrow_mut().roll_back_hidden(commands);
            }
            Fault::WatermarkGone { foreign } => {
                world.redis[at].borrow_mut().set_mark(foreign.then(|| b"hello".to_vec()));
            }
            _ => self.strike_postgres(world).await,
        }
    }

    async fn strike_postgres(self, world: &Rc<World>) {
        match self {
            Fault::PostgresCut => world.cut_postgres(),
            Fault::CutAfter { bytes } => world.cut_after.set(Some(bytes)),
            Fault::PostgresRestarts { down } => {
                world.postgres.borrow_mut().crash(&world.random);
                world.cut_postgres();
                back_after(world, down);
            }
            Fault::SqlHangs { lasts } => {
                world.hangs.send_replace(true);
                later(world, lasts, |world| {
                    world.judge.disturbed();
                    world.hangs.send_modify(|hangs| *hangs = false);
                });
            }
            Fault::Stuck { lasts } => {
                world.stuck.send_replace(true);
                later(world, lasts, |world| world.stuck.send_modify(|stuck| *stuck = false));
            }
            Fault::SlotDropped { made } => {
                world.cut_postgres();
                world.postgres.borrow_mut().slot = None;
                if made {
                    let other = create_slot(world);
                    // Whoever comes second finds the slot.
                    drop(timeout(Duration::from_millis(300), other).await);
                }
            }
            Fault::SlotAdvanced => {
                world.cut_postgres();
                let mut postgres = world.postgres.borrow_mut();
                let flushed = postgres.flushed();
                if let Some(slot) = &mut postgres.slot {
                    let ahead = world.random.below(flushed.saturating_sub(slot.confirmed) + 1);
                    slot.confirmed += ahead;
                    slot.saved = slot.confirmed;
                }
            }
            Fault::Promotion { lost, down } => {
                world.postgres.borrow_mut().up = false;
                world.postgres.borrow_mut().promote(lost, &world.random);
                world.cut_postgres();
                back_after(world, down);
            }
            _ => unreachable!("a fault of the other parts"),
        }
    }
}

fn later(world: &Rc<World>, lasts: u64, end: impl FnOnce(&World) + 'static) {
    let world = Rc::clone(world);
    world.faults.update(|count| count + 1);
    tokio::task::spawn_local(async move {
        sleep(Duration::from_millis(lasts)).await;
        world.note(|| "a fault is over".to_owned());
        world.faults.update(|count| count - 1);
        end(&world);
    });
}

fn down(world: &Rc<World>, at: usize, lasts: u64) {
    world.redis[at].borrow_mut().up = lasts == 0;
    later(world, lasts, move |world| {
        world.judge.disturbed_at(at);
        world.redis[at].borrow_mut().up = true;
    });
}

fn back_after(world: &Rc<World>, down: u64) {
    world.flushed.send_replace(world.postgres.borrow().flushed());
    later(world, down, |world| {
        world.judge.disturbed();
        world.postgres.borrow_mut().up = true;
    });
}

fn set<T: Default + 'static>(
    world: &Rc<World>,
    at: usize,
    lasts: u64,
    which: fn(&mut Mood) -> &mut T,
    value: T,
) {
    *which(&mut world.redis[at].borrow_mut().mood) = value;
    later(world, lasts, move |world| {
        world.judge.disturbed_at(at);
        *which(&mut world.redis[at].borrow_mut().mood) = T::default();
    });
}

/// The outcome of a schedule.
pub(crate) struct Outcome {
    pub(crate) failures: Vec<String>,
    pub(crate) plan: Plan,
    pub(crate) trace: Vec<String>,
    pub(crate) looks: [u64; LOOKS],
}

/// Runs the schedule of a seed; with a trace, when somebody will read it.
pub(crate) fn run(seed: u64, rules: &Rc<Vec<config::Rule>>, traced: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let local = LocalSet::new();
    let random = Random::new(crate::random::mix(seed));
    let plan = Plan::new(&random);
    local.block_on(&runtime, async {
        let world = Rc::new(World::new(random, &plan, traced));
        play(&world, &plan, rules).await;
        world.judge.session_over();
        let failures = world.judge.failures();
        let trace = world.take_trace();
        Outcome { failures, plan, trace, looks: world.judge.looks.counts() }
    })
}

/// walsweep was here before: the slot stands, and so do the watermarks of the targets that it knew.
fn known(world: &World, known: &[bool], rules: &[config::Rule]) {
    let lsn = world.postgres.borrow().flushed();
    let rules = Rules::compile(rules).expect("the rules are valid");
    let (system_id, epoch) = ("7".to_owned(), "1".to_owned());
    let rules = prints(&rules).digest();
    let mark =
        Watermark { system_id, timeline: 1, epoch, lsn: Lsn(lsn), rules, ..Watermark::nowhere() };
    world.postgres.borrow_mut().slot = Some(Slot { confirmed: lsn, saved: lsn });
    for (at, _) in known.iter().enumerate().filter(|(_, known)| **known) {
        world.redis[at].borrow_mut().set_mark(Some(mark.to_value()));
        world.judge.watermark(world, at, &mark.to_value());
    }
}

async fn play(world: &Rc<World>, plan: &Plan, rules: &Rc<Vec<config::Rule>>) {
    let began = Instant::now();
    for (at, redis) in world.redis.iter().enumerate() {
        redis.borrow_mut().scan_pause = plan.scan_pause;
        if !plan.known[at] {
            world.judge.may_sweep(Some(at));
        }
    }
    match plan.known.contains(&true) {
        true => known(world, &plan.known, rules),
        false => world.judge.may_sweep(None),
    }
    let (orders, taken) = mpsc::channel(16);
    let window = Window::default();
    let sidecar = live(Rc::clone(world), Rc::clone(rules), taken, window.clone());
    tokio::task::spawn_local(sidecar);
    tokio::task::spawn_local(clients::write_other(Rc::clone(world)));
    let mut clients = Vec::new();
    for _ in 0..plan.writers {
        let writer = clients::write(Rc::clone(world), plan.pause_max);
        clients.push(tokio::task::spawn_local(writer));
    }
    for _ in 0..plan.readers {
        clients.push(tokio::task::spawn_local(clients::read(Rc::clone(world))));
    }
    for (at, target, fault) in &plan.script {
        sleep_until(began + Duration::from_millis(*at)).await;
        fault.strike(world, *target, &orders).await;
    }
    sleep_until(began + Duration::from_millis(plan.busy)).await;
    world.open.set(false);
    for client in clients {
        client.await.expect("a client does not panic");
    }
    while world.faults.get() > 0 {
        sleep(Duration::from_millis(100)).await;
    }
    // A late command, the longest absence of the program.
    sleep(Duration::from_secs(2)).await;
    world.cut_after.set(None);
    rest(world, &window).await;
}

/// Waits until everything is through; then nothing stale may be left.
async fn rest(world: &Rc<World>, window: &Window) {
    let end = clients::write_marker(world).await;
    let through = async {
        loop {
            let confirmed = world.postgres.borrow().slot.as_ref().map_or(0, |slot| slot.confirmed);
            if window.phase() == Doing::Streaming && confirmed >= end {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    if timeout(REST_BOUND, through).await.is_err() {
        world.fail(&format!("never at rest: {:?}, {end} not confirmed", window.phase()));
    }
    world.judge.at_rest(world);
}
