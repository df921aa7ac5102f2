//! A transaction that writes for a while, with savepoints that it goes back to or releases.

use std::rc::Rc;

use crate::clients::{flush, is};
use crate::postgres::{GHOSTS, ITEMS, LISTS, Object, Phase, Version};
use crate::world::World;

/// Lets a running transaction write more. What will be undone may write what nothing else does.
/// False when the server gave it up meanwhile.
pub(crate) async fn grow(world: &Rc<World>, version: Version, is_doomed: bool) -> bool {
    let random = &world.random;
    for _ in 0..random.between(1, 6) {
        if random.chance(35) {
            let xid = world.postgres.borrow().transactions[version].xid;
            scribble(world, version, xid, is_doomed);
        } else if !savepoint(world, version, is_doomed).await {
            return false;
        }
        if !rest(world, version).await {
            return false;
        }
    }
    true
}

/// A savepoint, now and then with another one inside, up to its end.
async fn savepoint(world: &Rc<World>, version: Version, is_doomed: bool) -> bool {
    let random = &world.random;
    let is_undone = random.chance(55);
    let outer = world.postgres.borrow_mut().savepoint();
    scribble(world, version, outer, is_doomed || is_undone);
    let mut inside = Vec::new();
    for _ in 0..random.below(3) * random.below(2) {
        if !rest(world, version).await {
            return false;
        }
        let is_undone_alone = random.chance(40);
        let inner = world.postgres.borrow_mut().savepoint();
        scribble(world, version, inner, is_doomed || is_undone || is_undone_alone);
        if random.chance(50) && !rest(world, version).await {
            return false;
        }
        if is_undone_alone {
            undo(world, version, vec![inner]);
        } else {
            inside.push(inner);
        }
        if random.chance(50) {
            scribble(world, version, outer, is_doomed || is_undone);
        }
    }
    if !rest(world, version).await {
        return false;
    }
    if is_undone {
        inside.push(outer);
        undo(world, version, inside);
    }
    true
}

fn undo(world: &World, version: Version, xids: Vec<u64>) {
    world.note(|| format!("roll back {xids:?} of {version}"));
    world.postgres.borrow_mut().undo(version, xids);
}

fn scribble(world: &World, version: Version, xid: u64, is_undone: bool) {
    let random = &world.random;
    let one_of = |count: u8| u8::try_from(random.below(count.into())).unwrap();
    for _ in 0..random.between(1, 4) {
        let object = match random.below(4) {
            0 => Object::List(one_of(LISTS)),
            1 if is_undone => Object::Item(GHOSTS.start + one_of(GHOSTS.end - GHOSTS.start)),
            _ => Object::Item(one_of(ITEMS - 1)),
        };
        world.note(|| format!("write {object:?} in {xid} of {version}"));
        world.postgres.borrow_mut().write(version, xid, object);
    }
}

/// A while, in which the log may be flushed. Whether the transaction lives on.
async fn rest(world: &Rc<World>, version: Version) -> bool {
    if world.random.chance(60) {
        flush(world);
    }
    world.pause(0, 20).await;
    is(world, version, Phase::Running)
}
