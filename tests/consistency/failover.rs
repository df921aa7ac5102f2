//! Faults of a Redis that is many: primaries that die, freeze or are replaced, nodes that come and
//! go, slots that are on their way when it happens.
//!
//! Whoever strikes has the servers for itself until they are well again; only a node that joined
//! stays while slots go to and fro. Each fault shows its effect: another primary, or a node that
//! had slots.
//!
//! A failover may lose values, which are then absent. It may also lose removals: a value of the
//! past comes back with the replica. One that was cut off from its primary for a while does so for
//! certain.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use walsweep_stage::throwaway::{Cluster, Error};

use crate::World;
use crate::application::Shown;
use crate::faults::{Kind, Planned};
use crate::reshard::{agreed, application_slots, move_slot};
use crate::shared::PATIENCE;
use crate::store::{Store, cut_off, reconnect};

/// How many slots a node gets that joins, and how many are half moved when a primary dies.
const SLOTS: usize = 24;

/// Lets a fault strike, and mends it.
pub(crate) async fn inject(world: &World, planned: Planned) -> Shown {
    let strike = async {
        match planned.kind {
            Kind::PrimaryKilled => kill(world, planned).await,
            Kind::PrimaryPaused => pause(world, planned).await,
            Kind::Failover => fail_over(world, planned).await,
            Kind::ReshardTorn => tear(world, planned).await,
            _ => join(world, planned).await,
        }
    };
    let struck = timeout(3 * PATIENCE, strike).await;
    world.shared.history.restored();
    let shown = match struck {
        Ok(struck) => struck.map_err(|error| error.to_string()),
        Err(_late) => Err("it was not mended in time".to_owned()),
    };
    if shown.is_err()
        && let Err(error) = world.servers.redis.lock().await.mend().await
    {
        world.count(&format!("(redis cannot be mended: {error})"));
    }
    let count = match planned.kind {
        Kind::NodeJoins => &world.servers.tally.joins,
        _ => &world.servers.tally.failovers,
    };
    if shown.is_ok() {
        count.fetch_add(1, Ordering::Relaxed);
    }
    shown
}

/// Waits until the replica has taken over. Whatever it has of the past lives from then on.
async fn took_over(world: &World, redis: &Store, pair: (usize, usize)) -> Result<(), Error> {
    redis.took_over(pair).await?;
    world.shared.history.restored();
    Ok(())
}

/// Lets keys of all rows be removed for a while, and most of them not again before the next quiet
/// point: what is lost of this shows there.
async fn leave(world: &World, planned: Planned) {
    sleep(planned.lasts.max(world.shared.window)).await;
    world.shared.narrow.store(true, Ordering::Relaxed);
    sleep(world.shared.window * 2).await;
}

async fn kill(world: &World, planned: Planned) -> Result<(), Error> {
    let mut redis = world.servers.redis.lock().await;
    let (old, new) = redis.pair(planned.choice).await?;
    let is_cut = !planned.choice.is_multiple_of(4);
    if is_cut {
        world.count("(replicas cut off for seconds before)");
        cut_off(redis.server(old)?, redis.server(new)?).await?;
        leave(world, planned).await;
    }
    redis.server_mut(old)?.kill9().await?;
    if is_cut {
        reconnect(redis.server(new)?).await?;
    }
    took_over(world, &redis, (old, new)).await?;
    sleep(planned.lasts / 4).await;
    redis.server_mut(old)?.start_again().await?;
    back_in_line(&redis, planned, (old, new)).await
}

async fn pause(world: &World, planned: Planned) -> Result<(), Error> {
    let redis = world.servers.redis.lock().await;
    let pair = redis.pair(planned.choice).await?;
    redis.server(pair.0)?.pause()?;
    let took_over = took_over(world, &redis, pair).await;
    sleep(planned.lasts / 4).await;
    redis.server(pair.0)?.resume()?;
    took_over?;
    back_in_line(&redis, planned, pair).await
}

async fn fail_over(world: &World, planned: Planned) -> Result<(), Error> {
    let redis = world.servers.redis.lock().await;
    let pair = redis.pair(planned.choice).await?;
    redis.fail_over(pair, planned.choice.is_multiple_of(2)).await?;
    world.shared.history.restored();
    back_in_line(&redis, planned, pair).await
}

/// Waits until the old primary follows the new one. Two of three times it is told so at once, or
/// after a while; otherwise the Sentinels do it, and both are primaries meanwhile.
async fn back_in_line(redis: &Store, planned: Planned, pair: (usize, usize)) -> Result<(), Error> {
    if !planned.choice.is_multiple_of(3) {
        sleep(if planned.choice.is_multiple_of(2) { planned.lasts } else { Duration::ZERO }).await;
        redis.rejoin(pair).await?;
    }
    redis.settled().await
}

/// Kills one end of a move: half of the slots have gone over by then, but for their owner's name.
async fn tear(world: &World, planned: Planned) -> Result<(), Error> {
    let mut redis = world.servers.redis.lock().await;
    let (from, from_replica) = redis.pair(planned.choice).await?;
    let (to, to_replica) = redis.pair(planned.choice + 1).await?;
    let Store::Cluster(cluster) = &*redis else { return Ok(()) };
    let slots = own_slots(cluster, from).await?;
    for slot in &slots {
        cluster.begin_move(*slot, to).await?;
    }
    sleep(planned.lasts / 10).await;
    for slot in slots.iter().step_by(2) {
        cluster.move_keys(*slot, to).await?;
    }
    let is_target = planned.choice.is_multiple_of(2);
    let (old, new) = if is_target { (to, to_replica) } else { (from, from_replica) };
    redis.server_mut(old)?.kill9().await?;
    took_over(world, &redis, (old, new)).await?;
    leave(world, planned).await;
    if let Store::Cluster(cluster) = &*redis {
        cluster.fix().await?;
    }
    redis.server_mut(old)?.start_again().await?;
    redis.settled().await
}

/// Some slots of keys of the application that a node has.
async fn own_slots(cluster: &Cluster, at: usize) -> Result<Vec<u16>, Error> {
    let own = cluster.slots_of(at).await?;
    Ok(application_slots().into_iter().filter(|slot| own.contains(slot)).take(SLOTS).collect())
}

async fn join(world: &World, planned: Planned) -> Result<(), Error> {
    let new = {
        let mut redis = world.servers.redis.lock().await;
        let Store::Cluster(cluster) = &mut *redis else { return Ok(()) };
        let primaries = cluster.primaries().await?;
        let new = cluster.add(None).await?;
        for (turn, slot) in (0..).zip(application_slots()) {
            let from = cluster.owner(slot).await?;
            // Not all of one primary.
            if from.is_some_and(|from| primaries.contains(&from)) && turn % 4 == 0 {
                move_slot(&world.servers.tally, cluster, slot, new).await?;
            }
        }
        agreed(cluster).await?;
        new
    };
    sleep(planned.lasts * 2).await;
    let mut redis = world.servers.redis.lock().await;
    let Store::Cluster(cluster) = &mut *redis else { return Ok(()) };
    let slots = cluster.slots_of(new).await?;
    let had = slots.len();
    let mut others = cluster.primaries().await?;
    others.retain(|at| *at != new);
    for slots in slots.chunks(had.div_ceil(others.len()).max(1)) {
        let to = others.pop().unwrap_or_default();
        for slot in slots {
            move_slot(&world.servers.tally, cluster, *slot, to).await?;
        }
        agreed(cluster).await?;
    }
    cluster.settled().await?;
    cluster.remove(new).await?;
    cluster.settled().await?;
    if had == 0 {
        Err(Error::Stopped { name: "a node that joined: it had no slot" })
    } else {
        Ok(())
    }
}
