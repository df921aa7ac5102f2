//! The targets of a session: a task each, and no more where there is one.

use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};

use tokio::sync::{mpsc, watch};

use crate::channel::{Receiver, channel_of};
use crate::config::TargetId;
use crate::lsn::Lsn;
use crate::run::stream::TargetEnds;
use crate::run::task::{Task, spawn};
use crate::settle::Visible;
use crate::sweep::{Event, FanOut, Node, Parcel, Settings, Sweeper};
use crate::telemetry::Health;

/// The Redis of a target, of whatever kind: what keys are removed from, in a task of its own.
pub trait TargetNode {
    /// The task of the only target.
    fn alone(
        self: Box<Self>,
        begin: Begin,
        visible: Receiver<Visible>,
    ) -> LocalBoxFuture<'static, ()>;

    /// The task of one of several; also gives whether its Redis is away.
    fn among(
        self: Box<Self>,
        begin: Begin,
        fed: Receiver<Parcel>,
    ) -> (watch::Receiver<bool>, LocalBoxFuture<'static, ()>);
}

/// Everything that the task of a target begins with.
pub struct Begin {
    settings: Settings,
    health: Arc<Health>,
    told: (TargetId, mpsc::Sender<(TargetId, Event)>),
    safe: watch::Receiver<Lsn>,
}

impl Begin {
    fn sweeper<N: Node>(self, node: N) -> (Sweeper<N>, watch::Receiver<Lsn>) {
        (Sweeper::new(node, self.settings, self.health, self.told), self.safe)
    }
}

impl<N: Node + 'static> TargetNode for N {
    fn alone(
        self: Box<Self>,
        begin: Begin,
        visible: Receiver<Visible>,
    ) -> LocalBoxFuture<'static, ()> {
        let (sweeper, safe) = begin.sweeper(*self);
        sweeper.run(visible, safe).boxed_local()
    }

    fn among(
        self: Box<Self>,
        begin: Begin,
        fed: Receiver<Parcel>,
    ) -> (watch::Receiver<bool>, LocalBoxFuture<'static, ()>) {
        let (sweeper, safe) = begin.sweeper(*self);
        (sweeper.is_away(), sweeper.run(fed, safe).boxed_local())
    }
}

/// Starts a task for each target; where there are several, and one that feeds them.
pub(super) fn sweep(
    nodes: Vec<Box<dyn TargetNode>>,
    settings: &Settings,
    health: &Arc<Health>,
    ends: TargetEnds,
) -> Vec<Task<()>> {
    let TargetEnds { visible, safe, events } = ends;
    let is_alone = nodes.len() == 1;
    let mut targets =
        TargetId::first(nodes.len()).zip(nodes).zip(safe).map(|((id, node), safe)| {
            let (settings, health) = (settings.clone(), Arc::clone(health));
            (node, Begin { settings, health, told: (id, events.clone()), safe })
        });
    if is_alone {
        // Nothing stands between it and what is visible.
        let only = targets.next().map(|(node, begin)| spawn(node.alone(begin, visible)));
        return only.into_iter().collect();
    }
    let (mut feeds, mut away, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
    for (node, begin) in targets {
        let (feed, fed) = channel_of::<Parcel>(settings.room.length, settings.room.bytes);
        let (is_away, task) = node.among(begin, fed);
        feeds.push(feed);
        away.push(is_away);
        tasks.push(spawn(task));
    }
    tasks.push(spawn(FanOut::new((feeds, away), events, Arc::clone(health)).run(visible)));
    tasks
}

/// Waits until one of these tasks has ended.
pub(super) async fn first_ended(tasks: &mut [Task<()>]) {
    let mut all: FuturesUnordered<_> = tasks.iter_mut().map(|task| &mut task.0).collect();
    drop(all.next().await);
}
