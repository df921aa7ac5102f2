//! Keys that wait for rows: between visibility and removal.
//!
//! A row is read only when the commit that asks for it is visible, so it is at least as new as that
//! commit. Keys that need no row pass at once, whatever waits (I3). What waits is asked for
//! together, each row once, on a session for each lookup: one whose table is locked delays only
//! transactions with keys that name it. What arrives while a session is asked goes with its next
//! round. Which rows later rounds may use is for the [`Cache`].
//!
//! A row that is not found, or not within 3 s from the moment that its keys came, widens
//! the keys that name it (I5): nothing waits longer, nothing is skipped.

mod ahead;
mod batch;
mod cache;
#[cfg(test)]
mod cache_tests;
mod failing;
mod query;
mod refusal;
mod room;
mod rows;
#[cfg(test)]
mod tests;
mod too_much;
mod waiting;

use std::iter::once;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::too_much::TooMuch;
use self::waiting::Waiting;
use super::{Cause, Gated, Visible, send};
use crate::channel::{Receiver, Sender};
use crate::keys::{Answers, Wanted};
use crate::telemetry::metrics::{Metrics, SourceLabel};
use crate::telemetry::{Health, Topic};

pub use self::cache::Cache;
pub(crate) use self::query::compared_columns;
pub use self::rows::Rows;
pub(crate) use self::rows::{Param, statement as lookup_statement};

/// Sessions at once: with more lookups than this some share one. Each is a connection of the
/// server, made when it is first needed.
pub(super) const SESSIONS_MAX: usize = 8;

/// Looks rows up for what passes.
pub struct Lookups {
    rows: Rows,
    cache: Option<Cache>,
}

/// The result of one round of questions.
struct Round {
    /// The session's place.
    at: usize,
    rows: Rows,
    /// The sets that it was for.
    ids: Vec<u64>,
    /// Answers that were known before, and answers that were read.
    known: Answers,
    read: Answers,
}

/// Takes back what was told of lookups when the session ends.
struct Told(Arc<Health>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.forget(|topic| matches!(topic, Topic::Lookup(_) | Topic::Untried(_)));
    }
}

impl Lookups {
    /// Looks up in `cache`, where there is one, and in `rows`.
    #[must_use]
    pub fn new(rows: Rows, cache: Option<Cache>) -> Lookups {
        Lookups { rows, cache }
    }

    /// Gives the cache, which has to be told of changes of the tables that lookups read.
    #[must_use]
    pub fn cache(&self) -> Option<Cache> {
        self.cache.clone()
    }

    /// Passes `inputs` on to `outputs`, with every key rendered, until `inputs` ends and nothing
    /// waits. Needs a [`LocalSet`](tokio::task::LocalSet) around it.
    pub async fn run(self, mut inputs: Receiver<Gated>, outputs: Sender<Visible>) {
        let Lookups { rows, cache } = self;
        let (health, all) = (rows.health(), rows.all());
        let mut too_much = TooMuch::default();
        let (_told, shared) = (Told(Arc::clone(&health)), health.metrics());
        let metrics = &*shared;
        let mut resting: Vec<Option<Rows>> =
            rows.on_sessions(SESSIONS_MAX).into_iter().map(Some).collect();
        let mut waiting = Waiting::new(resting.len(), all.len());
        let (mut rounds, mut open) = (JoinSet::new(), true);
        while open || !waiting.is_empty() {
            let (waits, oldest) = waiting.oldest();
            health.noted().lookups.set(waits, oldest);
            let now = Instant::now();
            for (at, place) in resting.iter_mut().enumerate() {
                let is_due = |rows: &mut Rows| {
                    waiting.wants(at) || rows.again_at().is_some_and(|again| again <= now)
                };
                if let Some(rows) = place.take_if(is_due) {
                    let (health, cache) = (Arc::clone(&health), cache.clone());
                    rounds.spawn_local(round(at, rows, waiting.begin(at), cache, health));
                }
            }
            let again = resting.iter().flatten().filter_map(Rows::again_at).min();
            tokio::select! {
                biased;
                Some(round) = rounds.join_next() => {
                    // A round that panicked takes the session with it.
                    let Ok(Round { at, rows, ids, known, read }) = round else { return };
                    for answers in [&known, &read] {
                        too_much.tell(&all, answers, waiting.sets(&ids));
                    }
                    let passed = waiting.end(at, &ids, (known, read), metrics);
                    rows.let_go();
                    resting[at] = Some(rows);
                    for visible in passed {
                        pass(&outputs, visible, &health).await;
                    }
                }
                () = at_last(waiting.first_deadline()) => {
                    for visible in waiting.late(Instant::now(), metrics) {
                        pass(&outputs, visible, &health).await;
                    }
                }
                () = at_last(again) => {}
                gated = inputs.recv(), if open => match gated {
                    None => open = false,
                    Some(gated) => {
                        // What has no keys came to be seen by the cache alone.
                        if ends(cache.as_ref(), &gated) && gated.keys.is_empty() {
                            continue;
                        }
                        let passes = match waiting.known(cache.as_ref(), &gated) {
                            Some(answers) => {
                                count(metrics, "cache", answers.iter().count());
                                too_much.tell(&all, &answers, once(&gated.keys));
                                Some(waiting.resolved(gated, &answers, metrics))
                            }
                            None => waiting.take(gated, metrics),
                        };
                        if let Some(passes) = passes {
                            pass(&outputs, passes, &health).await;
                        }
                    }
                },
            }
        }
    }
}

/// Passes keys on that are known now.
async fn pass(outputs: &Sender<Visible>, visible: Visible, health: &Health) {
    if let Cause::Transaction(transaction) = &visible.cause {
        health.trail().resolved(transaction.end_lsn, &visible.keys);
    }
    send(outputs, visible).await;
}

/// Waits for a time; for ever, if there is none.
async fn at_last(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Finds what is wanted, in the cache or by queries on one session.
async fn round(
    at: usize,
    mut rows: Rows,
    (ids, mut wanted, mut known): (Vec<u64>, Vec<Wanted>, Answers),
    cache: Option<Cache>,
    health: Arc<Health>,
) -> Round {
    let shared = health.metrics();
    let metrics = &*shared;
    let Some(cache) = cache else {
        count(metrics, "query", wanted.len());
        let read = rows.find(wanted).await;
        return Round { at, rows, ids, known, read };
    };
    wanted.retain(|one| match cache.get(one) {
        None => true,
        Some(answer) => {
            known.insert(one.clone(), answer);
            false
        }
    });
    count(metrics, "cache", known.iter().count());
    count(metrics, "query", wanted.len());
    let (began, losses) = (cache.begin(), rows.losses());
    let read = rows.find(wanted).await;
    if rows.losses() > losses {
        // Another session may have other settings.
        rows.lookups().for_each(|lookup| cache.forget(lookup));
    }
    cache.keep(&began, &read);
    Round { at, rows, ids, known, read }
}

/// Tells the cache of a transaction that new snapshots see.
fn ends(cache: Option<&Cache>, gated: &Gated) -> bool {
    let (Some(cache), Cause::Transaction(transaction)) = (cache, &gated.cause) else {
        return false;
    };
    cache.ended(transaction.xid);
    true
}

fn count(metrics: &Metrics, source: &'static str, rows: usize) {
    let rows = u64::try_from(rows).unwrap_or(u64::MAX);
    metrics.lookup_rows.get_or_create(&SourceLabel { source }).inc_by(rows);
}
