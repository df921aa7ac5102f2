//! Those who write rows, and those who read them through the cache.

use std::collections::BTreeSet;
use std::rc::Rc;

use tokio::time::{Instant, sleep};

use crate::judge::Judge;
use crate::large;
use crate::postgres::{ITEMS, LISTS, MARKER, Object, Phase, Version};
use crate::world::World;

/// Writes until the schedule's busy time is over, and ends what it began.
pub(crate) async fn write(world: Rc<World>, pause_max: u64) {
    while world.open.get() {
        sleep(world.random.millis(1, pause_max)).await;
        one_transaction(&world).await;
    }
}

async fn one_transaction(world: &Rc<World>) {
    let random = &world.random;
    let truncates = random.chance(2);
    let mut objects = BTreeSet::new();
    if truncates {
        objects.extend((0..ITEMS).map(Object::Item));
    } else if random.chance(90) {
        for _ in 0..1 + random.below(3) * random.below(2) {
            objects.insert(match random.below(3) {
                0 => Object::List(u8::try_from(random.below(LISTS.into())).unwrap()),
                _ => Object::Item(u8::try_from(random.below((ITEMS - 1).into())).unwrap()),
            });
        }
    }
    let objects: Vec<Object> = objects.into_iter().collect();
    let begun = world.postgres.borrow_mut().begin(objects, truncates);
    let Some(version) = begun else { return };
    let is_doomed = random.chance(8);
    if random.chance(25) && !large::grow(world, version, is_doomed).await {
        return;
    }
    for _ in 0..random.below(3) * random.below(2) {
        world.postgres.borrow_mut().savepoint();
    }
    match random.below(100) {
        0..4 => world.pause(100, 1500).await,
        4..40 => world.pause(1, 15).await,
        _ => {}
    }
    if random.chance(6) && is(world, version, Phase::Running) {
        world.postgres.borrow_mut().prepare(version);
        flush(world);
        world.note(|| format!("prepare {version}"));
        world.pause(5, 900).await;
        if !is(world, version, Phase::Prepared) {
            return;
        }
        // COMMIT PREPARED needs a server that is up.
        while !world.postgres.borrow().up {
            sleep(random.millis(10, 50)).await;
        }
    }
    let lives = is(world, version, Phase::Running) || is(world, version, Phase::Prepared);
    if !lives {
        return;
    }
    if is_doomed {
        world.note(|| format!("roll back {version}"));
        world.postgres.borrow_mut().roll_back(version);
    } else {
        commit(world, version).await;
    }
}

/// Whether the transaction is where it is said to be.
pub(crate) fn is(world: &World, version: Version, phase: Phase) -> bool {
    world.postgres.borrow().phase(version) == phase
}

/// Writes the commit record and leaves the process array, in this order or, with
/// `synchronous_commit = off`, before the record is flushed.
pub(crate) async fn commit(world: &Rc<World>, version: Version) {
    let random = &world.random;
    let committed_at = Instant::now();
    let end_lsn = world.postgres.borrow_mut().commit(version, random.between(50, 500));
    world.note(|| {
        let postgres = world.postgres.borrow();
        let transaction = &postgres.transactions[version];
        format!("commit {version} {:?} ending at {end_lsn}", transaction.objects)
    });
    if random.chance(10) {
        show(world, version, committed_at);
        world.pause(0, 200).await;
        flush(world);
        return;
    }
    flush(world);
    match random.below(100) {
        0..50 => {}
        50..85 => world.pause(1, 5).await,
        85..97 => world.pause(5, 80).await,
        _ => world.pause(80, 600).await,
    }
    // `synchronous_commit = local` waits for nobody.
    if !random.chance(25) {
        drop(world.stuck.subscribe().wait_for(|stuck| !stuck).await);
    }
    if is(world, version, Phase::Invisible) {
        show(world, version, committed_at);
    }
}

fn show(world: &Rc<World>, version: Version, committed_at: Instant) {
    world.postgres.borrow_mut().show(version);
    world.note(|| format!("visible {version}"));
    Judge::expect_removal(world, version, committed_at);
}

/// Flushes the log, as anybody does now and then.
pub(crate) fn flush(world: &World) {
    let mut postgres = world.postgres.borrow_mut();
    if postgres.up {
        let flushed = postgres.flush();
        drop(postgres);
        world.flushed.send_replace(flushed);
    }
}

/// Log that concerns nobody here, as every server writes.
pub(crate) async fn write_other(world: Rc<World>) {
    loop {
        sleep(world.random.millis(50, 900)).await;
        world.postgres.borrow_mut().write_other(64);
        flush(&world);
    }
}

/// The transaction that closes a schedule.
pub(crate) async fn write_marker(world: &Rc<World>) -> u64 {
    let version = world.postgres.borrow_mut().begin(vec![MARKER], false).expect("nobody locks it");
    commit(world, version).await;
    world.postgres.borrow().transactions[version].end_lsn
}

/// Reads through the cache of one target: on a miss the row, and a little later it is cached. Never
/// later than the refill window after it was read.
pub(crate) async fn read(world: Rc<World>) {
    let random = &world.random;
    while world.open.get() {
        sleep(random.millis(2, 50)).await;
        let key = match random.below(3) {
            0 => format!("list:{}:{}", random.below(LISTS.into()), random.below(3)),
            _ => format!("item:{}", random.below(u64::from(ITEMS) - 1)),
        };
        let at = usize::try_from(random.below(world.targets() as u64)).unwrap();
        let cached = world.redis[at].borrow().get(&key);
        if cached.is_some() || !world.postgres.borrow().up {
            continue;
        }
        let version = world.postgres.borrow().current(Object::of_key(&key));
        let window = u64::try_from(world.window.as_millis()).unwrap();
        match random.below(4) {
            _ if window == 0 => {}
            0 | 1 => world.pause(0, window.min(8)).await,
            2 => world.pause(0, window - 2).await,
            _ => world.pause(window / 2, window - 2).await,
        }
        let mut redis = world.redis[at].borrow_mut();
        if redis.up && redis.mood.useless.is_none() {
            world.note(|| format!("target {at}: fill {key} with {version}"));
            redis.fill(&key, version, &world.random);
        }
    }
}
