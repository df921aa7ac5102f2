//! Feeds each target with what is visible. With one target there is nothing to share, and no
//! fan-out.
//!
//! Each target has a channel of its own. Where one is full, because its Redis is slow or away, the
//! others are fed all the same: what the full one has no room for becomes one set, a backlog, which
//! goes when there is room. So does everything for one whose Redis is away: what is on its way to
//! it would leave no room for what others wait for. The backlog's transactions share a hold, and
//! are in flight there no longer. So the bound of what is in flight is never reached for a target
//! that is away, and stops nobody. What it costs is bounded (I6): keys are merged, and collapse to
//! their rules' patterns at a limit.
//!
//! Where every target has a backlog nothing is taken: to widen would serve nobody, and what waits
//! in Postgres stays exact.

use std::sync::Arc;

use futures_util::future::select_all;
use tokio::sync::{mpsc, watch};

use super::Event;
use super::job::{Job, Member, Round};
use crate::budget::OfTarget;
use crate::channel::{Closed, Receiver, Room, Sender, Weight};
use crate::config::TargetId;
use crate::keys::{KeySet, RuleId};
use crate::lsn::Lsn;
use crate::settle::{Held, Hold, Visible};
use crate::telemetry::Health;

/// Keys on their way to a target, with who waits for them.
#[derive(Debug)]
pub struct Parcel {
    pub(super) job: Job,
    /// Transactions and holds that are held from now on.
    pub(super) held: Vec<Held>,
}

/// Feeds several targets.
pub struct FanOut {
    feeds: Vec<Sender<Parcel>>,
    /// Whether each target's Redis is away, so that nothing but its backlog takes keys for it.
    away: Vec<watch::Receiver<bool>>,
    /// The backlog of each target: jobs that it has had no room for.
    backlogs: Vec<Option<Backlog>>,
    /// Memory of each one's keys, bytes, beyond which it is widened.
    backlog_bytes_max: usize,
    events: mpsc::Sender<(TargetId, Event)>,
    health: Arc<Health>,
}

/// Jobs that a target had no room for, as one.
struct Backlog {
    hold: Hold,
    parcel: Parcel,
}

impl From<Visible> for Parcel {
    fn from(mut visible: Visible) -> Parcel {
        let held = visible.take_held();
        Parcel { job: Job::first(visible), held }
    }
}

impl Weight for Parcel {
    fn bytes(&self) -> usize {
        self.job.keys.bytes()
    }
}

impl FanOut {
    /// Feeds the first targets, each through its channel, unless its Redis is away. What is held
    /// goes to `events`.
    #[must_use]
    pub fn new(
        (feeds, away): (Vec<Sender<Parcel>>, Vec<watch::Receiver<bool>>),
        events: mpsc::Sender<(TargetId, Event)>,
        health: Arc<Health>,
    ) -> FanOut {
        let backlogs = feeds.iter().map(|_| None).collect();
        let backlog_bytes_max = OfTarget::of(feeds.len()).backlog;
        FanOut { feeds, away, backlogs, backlog_bytes_max, events, health }
    }

    /// Gives each target what is for it, until `inputs` ends or a target takes no more.
    pub async fn run(mut self, mut inputs: Receiver<Visible>) {
        let (feeds, away) = (self.feeds.clone(), self.away.clone());
        loop {
            let takes = self.backlogs.iter().any(Option::is_none);
            tokio::select! {
                biased;
                room = room_for((&feeds, &away), &self.backlogs) => match room {
                    Ok((at, room)) => self.pass_backlog(at, room),
                    Err(Closed) => return,
                },
                visible = inputs.recv(), if takes => match visible {
                    Some(visible) => self.share(visible).await,
                    None => return,
                },
            }
        }
    }

    fn pass_backlog(&mut self, at: usize, room: Room<'_, Parcel>) {
        if let Some(Backlog { mut parcel, .. }) = self.backlogs.get_mut(at).and_then(Option::take) {
            parcel.job.keys.on_its_way();
            room.send(parcel);
        }
    }

    async fn share(&mut self, visible: Visible) {
        let only = visible.target();
        let Parcel { job, held } = Parcel::from(visible);
        // Before the keys: whoever removes them may be done before anything else is told. A target
        // where nothing of it waits is held back by nothing.
        for held in &held {
            for target in TargetId::first(self.feeds.len()) {
                self.tell(target, held.clone()).await;
            }
        }
        let all = TargetId::first(self.feeds.len());
        for target in all.filter(|target| only.is_none_or(|only| only == *target)) {
            self.feed(target, job.elsewhere(target)).await;
        }
    }

    /// To one target, or to its backlog.
    async fn feed(&mut self, target: TargetId, job: Job) {
        let at = target.place();
        let (Some(feed), Some(backlog)) = (self.feeds.get(at), self.backlogs.get_mut(at)) else {
            return;
        };
        let mut job = job;
        let is_away = self.away.get(at).is_some_and(|away| *away.borrow());
        job.keys.on_its_way();
        let job = match backlog {
            _ if is_away => job,
            Some(_) => job,
            None => match feed.try_send(Parcel { job, held: Vec::new() }) {
                Ok(()) => return,
                Err(Parcel { job, .. }) => job,
            },
        };
        if job.comes_again() {
            return;
        }
        let empty = job.keys.emptied();
        let (held, widened) =
            backlog.get_or_insert_with(|| Backlog::new(empty)).take(job, self.backlog_bytes_max);
        self.health.widened_for_room(&widened);
        for held in held.into_iter().filter(|held| !held.is_empty()) {
            self.tell(target, held).await;
        }
    }

    /// A closed channel means that the session ends.
    async fn tell(&self, target: TargetId, held: Held) {
        held.tell(target, self.health.trail());
        drop(self.events.send((target, Event::Held(held))).await);
    }
}

impl Backlog {
    fn new(empty: KeySet) -> Backlog {
        let hold = Hold::new_name();
        let members = vec![Member::Held { hold, shared: false }];
        let job = Job::new(members, empty, Round::First, Lsn::ZERO);
        Backlog { hold, parcel: Parcel { job, held: Vec::new() } }
    }

    /// Takes in a job. Gives what is held from now on, and what was widened.
    fn take(&mut self, mut job: Job, bytes_max: usize) -> ([Held; 2], Vec<(RuleId, u64)>) {
        let held = job.waits().instead(self.hold);
        // Of all others the hold says everything.
        job.members.retain(|member| member.part().is_some());
        let own = &mut self.parcel.job;
        let keys = own.absorb(job);
        let mut widened = own.keys.merge_within(&keys);
        while own.keys.bytes() > bytes_max
            && let Some(rule) = own.keys.collapse_largest(0)
        {
            widened.push((rule, 1));
        }
        (held, widened)
    }
}

/// Waits for room for the first backlog that finds some; for ever, if there is none.
async fn room_for<'a>(
    (feeds, away): (&'a [Sender<Parcel>], &[watch::Receiver<bool>]),
    backlogs: &[Option<Backlog>],
) -> Result<(usize, Room<'a, Parcel>), Closed> {
    let waiting = feeds.iter().zip(away).zip(backlogs).enumerate();
    let waiting = waiting.filter_map(|(at, ((feed, away), backlog))| {
        let parcel = &backlog.as_ref()?.parcel;
        let mut away = away.clone();
        Some(Box::pin(async move {
            // Its sweeper is gone: so is the channel.
            drop(away.wait_for(|is_away| !is_away).await);
            feed.room_for(parcel).await.map(|room| (at, room))
        }))
    });
    let waiting: Vec<_> = waiting.collect();
    if waiting.is_empty() {
        return std::future::pending().await;
    }
    select_all(waiting).await.0
}
