//! Slots on their way between the primaries of a cluster, while the load runs.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use tokio::time::sleep;
use walsweep_stage::throwaway::{Cluster, Error};

use crate::cache::slot_of;
use crate::cached::Key;
use crate::servers::Servers;
use crate::shared::Shared;
use crate::store::{Store, Tally};

/// The most slots that are on their way at a time.
const AT_A_TIME: usize = 6;

/// The slots of all keys that readers ask for, in an order that has nothing to do with the keys.
pub(crate) fn application_slots() -> Vec<u16> {
    let slots: BTreeSet<u16> =
        Key::all().into_iter().map(|key| slot_of(key.name().as_bytes())).collect();
    let mut slots: Vec<u16> = slots.into_iter().collect();
    slots.sort_by_key(|slot| slot.reverse_bits());
    slots
}

/// Lets a slot go to another primary, with all that `redis-cli` does for it.
pub(crate) async fn move_slot(
    tally: &Tally,
    cluster: &Cluster,
    slot: u16,
    to: usize,
) -> Result<(), Error> {
    cluster.begin_move(slot, to).await?;
    cluster.finish_move(slot, to).await?;
    tally.moved_slots.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Waits until the next primary may get slots.
pub(crate) async fn agreed(cluster: &Cluster) -> Result<(), Error> {
    if cluster.agreed().await? {
        return Ok(());
    }
    Err(Error::Stopped { name: "a cluster that agrees who has which slot" })
}

/// Moves slots of the application's keys to and fro until the run is over. Between two faults it
/// takes what there is then: primaries that were promoted, nodes that joined.
pub(crate) async fn reshard(servers: &Servers, shared: &Shared) {
    let mut random = shared.random(5, 0);
    let slots = application_slots();
    let mut is_torn = false;
    while !shared.stopped() {
        sleep(Duration::from_millis(random.random_range(20..200))).await;
        let redis = servers.redis.lock().await;
        let Store::Cluster(cluster) = &*redis else { return };
        if is_torn {
            is_torn = cluster.fix().await.is_err();
        } else if let Err(error) = move_some(&servers.tally, cluster, &slots, &mut random).await {
            eprintln!("while slots were moved: {error}");
            is_torn = true;
        }
    }
}

async fn move_some(
    tally: &Tally,
    cluster: &Cluster,
    slots: &[u16],
    random: &mut StdRng,
) -> Result<(), Error> {
    let primaries = cluster.primaries().await?;
    let Some(to) = primaries.choose(random) else { return Ok(()) };
    let own = cluster.slots_of(*to).await?;
    let mut some: Vec<u16> = slots.iter().copied().filter(|slot| !own.contains(slot)).collect();
    some.shuffle(random);
    some.truncate(random.random_range(1..=AT_A_TIME));
    for slot in &some {
        cluster.begin_move(*slot, *to).await?;
    }
    // Clients are sent from one to the other meanwhile.
    sleep(Duration::from_millis(random.random_range(0..60))).await;
    for slot in some {
        cluster.finish_move(slot, *to).await?;
        tally.moved_slots.fetch_add(1, Ordering::Relaxed);
    }
    agreed(cluster).await
}
