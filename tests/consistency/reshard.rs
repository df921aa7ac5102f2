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

/// Moves slots of the application's keys to and fro until the run is over. Between two faults it
/// takes what there is then: primaries that were promoted, nodes that joined.
pub(crate) async fn reshard(servers: &Servers, shared: &Shared) {
    let mut random = shared.random(5, 0);
    let slots = application_slots();
    while !shared.stopped() {
        sleep(Duration::from_millis(random.random_range(20..200))).await;
        let redis = servers.redis.lock().await;
        let Store::Cluster(cluster) = &*redis else { return };
        if let Err(error) = move_some(&servers.tally, cluster, &slots, &mut random).await {
            eprintln!("while slots were moved: {error}");
            if let Err(error) = cluster.fix().await {
                eprintln!("while slots were mended: {error}");
            }
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
    let count = random.random_range(1..=AT_A_TIME);
    let mut moves: Vec<(u16, usize)> = Vec::new();
    let mut some = slots.to_vec();
    some.shuffle(random);
    for slot in some.into_iter().take(count) {
        let owner = cluster.owner(slot).await?;
        let others: Vec<usize> =
            primaries.iter().copied().filter(|at| Some(*at) != owner).collect();
        if let Some(to) = others.choose(random) {
            cluster.begin_move(slot, *to).await?;
            moves.push((slot, *to));
        }
    }
    // Clients are sent from one to the other meanwhile.
    sleep(Duration::from_millis(random.random_range(0..60))).await;
    for (slot, to) in moves {
        cluster.finish_move(slot, to).await?;
        tally.moved_slots.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
