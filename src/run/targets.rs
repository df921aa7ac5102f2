//! The targets of a session: a task each, and no more where there is one.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::channel::channel_of;
use crate::config::TargetId;
use crate::run::stream::TargetEnds;
use crate::run::task::{Task, spawn};
use crate::sweep::{FanOut, Node, Parcel, Settings, Sweeper};
use crate::telemetry::Health;

/// Starts a task for each target; where there are several, and one that feeds them.
pub(super) fn sweep<N: Node + 'static>(
    nodes: Vec<N>,
    settings: &Settings,
    health: &Arc<Health>,
    ends: TargetEnds,
) -> Vec<Task<()>> {
    let TargetEnds { visible, safe, events } = ends;
    let is_alone = nodes.len() == 1;
    let targets = TargetId::first(nodes.len()).zip(nodes).zip(safe);
    let mut sweepers = targets.map(|((target, node), safe)| {
        let told = (target, events.clone());
        (Sweeper::new(node, settings.clone(), Arc::clone(health), told), safe)
    });
    if is_alone {
        // Nothing stands between it and what is visible.
        let only = sweepers.next().map(|(sweeper, safe)| spawn(sweeper.run(visible, safe)));
        return only.into_iter().collect();
    }
    let (mut feeds, mut away, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
    for (sweeper, safe) in sweepers {
        let (feed, fed) = channel_of::<Parcel>(settings.room.length, settings.room.bytes);
        feeds.push(feed);
        away.push(sweeper.is_away());
        tasks.push(spawn(sweeper.run(fed, safe)));
    }
    tasks.push(spawn(FanOut::new((feeds, away), events, Arc::clone(health)).run(visible)));
    tasks
}

/// Waits until one of these tasks has ended.
pub(super) async fn first_ended(tasks: &mut [Task<()>]) {
    let mut all: FuturesUnordered<_> = tasks.iter_mut().map(|task| &mut task.0).collect();
    drop(all.next().await);
}
