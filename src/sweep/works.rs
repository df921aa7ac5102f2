//! Work of a target that is under way, one of each kind.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

use super::inside::PagesDone;
use super::job::{Job, Tally};
use super::proof::ward::Found;
use super::redis::node::{Error, Node};
use super::redis::pace::Paces;
use super::refused::{Retry, Tried};
use super::shared::{RefusedInPass, Written, find};
use super::sweeper::State;
use crate::lsn::Lsn;
use crate::telemetry::metrics::Metrics;

/// Work under way: it owns its jobs, so that they come back whatever happens.
pub(super) type Work<'a, T> = Option<Pin<Box<dyn Future<Output = T> + 'a>>>;

/// Work of each kind that is under way.
pub(super) struct Works<'a> {
    batch: Work<'a, BatchDone>,
    second: Work<'a, BatchDone>,
    retries: Work<'a, RetriesDone>,
    pass: Work<'a, PassDone>,
    listed: Work<'a, ListedDone>,
    pages: Work<'a, PagesDone>,
    message: Work<'a, Result<(), Error>>,
    write: Work<'a, Written>,
    connect: Work<'a, Result<Found, Error>>,
    alive: Work<'a, Result<(), Error>>,
}

pub(super) type BatchDone = (Vec<Job>, (Tally, Result<(), Error>));
pub(super) type PassDone = (Vec<Job>, Box<Paces>, Result<RefusedInPass, Error>);
pub(super) type ListedDone = (Vec<Job>, Result<Option<RefusedInPass>, Error>);
pub(super) type RetriesDone = (Vec<Retry>, Result<Vec<Tried>, Error>);

/// The outcome of work that was under way.
pub(super) enum Done {
    Batch(BatchDone),
    Second(BatchDone),
    Retries(RetriesDone),
    Pass(PassDone),
    Listed(ListedDone),
    Pages(PagesDone),
    Message(Result<(), Error>),
    Write(Written),
    Connect(Result<Found, Error>),
    Alive(Result<(), Error>),
}

impl<'a> Works<'a> {
    pub(super) fn none() -> Works<'a> {
        let (batch, second, retries, pass, listed) = (None, None, None, None, None);
        let (write, connect, alive, message, pages) = (None, None, None, None, None);
        Works { batch, second, retries, pass, listed, pages, message, write, connect, alive }
    }

    fn is_idle(&self) -> bool {
        let removals = self.batch.is_none() && self.second.is_none() && self.retries.is_none();
        let others = self.write.is_none() && self.connect.is_none() && self.alive.is_none();
        let inside = self.pages.is_none() && self.message.is_none() && self.listed.is_none();
        removals && self.pass.is_none() && others && inside
    }

    /// Begins what can begin at `now`; the watermark may go as far as `safe`.
    pub(super) fn begin<N: Node>(
        &mut self,
        state: &mut State,
        (node, metrics): (&'a N, &'a Metrics),
        now: Instant,
        safe: Lsn,
    ) {
        if !state.connected {
            if self.is_idle() {
                // Whatever was under way on the old connection has come back before a new one is
                // made: nothing of it can arrive afterwards.
                let own = state.ward.prints().0.to_owned();
                self.connect = Some(Box::pin(reconnect(node, state.backoff.next_wait(), own)));
            }
            return;
        }
        if state.unlinks.allows(now) {
            if self.batch.is_none() {
                self.batch = state.next_batch(node);
            }
            if self.second.is_none() {
                self.second = state.next_second(node, now);
            }
            if self.retries.is_none() {
                self.retries = state.next_retries(node, now);
            }
            if self.listed.is_none() {
                self.listed = state.next_listed(node, metrics);
            }
            if self.pages.is_none() {
                self.pages = state.next_pages(node);
            }
        }
        state.builds = now >= state.next_build && node.wants_scan();
        if self.pass.is_none() && state.scans.allows(now) {
            self.pass = state.next_pass(node, metrics, now);
        }
        if self.message.is_none() {
            self.message = state.next_message(node, now);
        }
        if self.alive.is_none() && now >= state.next_alive {
            self.alive = Some(Box::pin(node.keep_alive()));
        }
        if self.write.is_none() {
            self.write = state.next_write(node, now, safe);
        }
    }

    /// The next outcome. May be cancelled: the work goes on later.
    pub(super) async fn finished(&mut self) -> Done {
        tokio::select! {
            biased;
            done = finished(&mut self.batch) => Done::Batch(done),
            done = finished(&mut self.write) => Done::Write(done),
            done = finished(&mut self.connect) => Done::Connect(done),
            done = finished(&mut self.listed) => Done::Listed(done),
            done = finished(&mut self.retries) => Done::Retries(done),
            done = finished(&mut self.second) => Done::Second(done),
            done = finished(&mut self.pages) => Done::Pages(done),
            done = finished(&mut self.pass) => Done::Pass(done),
            done = finished(&mut self.message) => Done::Message(done),
            done = finished(&mut self.alive) => Done::Alive(done),
        }
    }
}

/// The outcome of work under way; never, if there is none. Cancelled, the work goes on later.
async fn finished<T>(work: &mut Work<'_, T>) -> T {
    match work {
        Some(future) => {
            let outcome = future.await;
            *work = None;
            outcome
        }
        None => std::future::pending().await,
    }
}

async fn reconnect<N: Node>(node: &N, wait: Duration, own: String) -> Result<Found, Error> {
    tokio::time::sleep(wait).await;
    node.connect().await?;
    find(node, &own).await
}
