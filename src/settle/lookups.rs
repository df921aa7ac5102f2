//! Keys that wait for rows: between visibility and removal.
//!
//! A row is read only when the commit that asks for it is visible, so it is at least as new as that
//! commit. Keys that need no row pass at once, whatever waits (I3). What waits is asked for
//! together, each row once; what arrives meanwhile goes with the next round. Which rows later
//! rounds may use is for the [`Cache`].
//!
//! A row that is not found, or not in time, widens the keys that name it (I5): nothing waits longer
//! than two rounds, nothing is skipped.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::ahead::Ahead;
use super::cache::Cache;
use super::rows::Rows;
use super::{Cause, Visible, WAITING_BYTES_MAX, send};
use crate::channel::{Receiver, Sender};
use crate::keys::{Answers, Wanted, WidenReason};
use crate::telemetry::metrics::{Metrics, SourceLabel};

/// Looks rows up for what passes.
pub struct Lookups {
    rows: Rows,
    cache: Option<Cache>,
    metrics: Arc<Metrics>,
}

/// What waits, and for what.
#[derive(Default)]
struct Waiting {
    next: Vec<Visible>,
    /// Asked for.
    round: Vec<Visible>,
    /// Memory of the keys of both, in bytes.
    bytes: usize,
    ahead: Ahead,
}

impl Lookups {
    /// Looks up in `cache`, where there is one, and in `rows`.
    #[must_use]
    pub fn new(rows: Rows, cache: Option<Cache>, metrics: Arc<Metrics>) -> Lookups {
        Lookups { rows, cache, metrics }
    }

    /// What has to be told of changes of the tables that lookups read.
    #[must_use]
    pub fn cache(&self) -> Option<Cache> {
        self.cache.clone()
    }

    /// Passes `inputs` on to `outputs`, with every key rendered, until `inputs` ends and nothing
    /// waits. Needs a [`LocalSet`](tokio::task::LocalSet) around it.
    pub async fn run(self, mut inputs: Receiver<Visible>, outputs: Sender<Visible>) {
        let Lookups { rows, cache, metrics } = self;
        let mut resting = Some(rows);
        let (mut waiting, mut rounds, mut open) = (Waiting::default(), JoinSet::new(), true);
        while open || waiting.bytes > 0 {
            if !waiting.next.is_empty()
                && let Some(rows) = resting.take()
            {
                rounds.spawn_local(round(
                    rows,
                    waiting.begin(),
                    cache.clone(),
                    Arc::clone(&metrics),
                ));
            }
            tokio::select! {
                biased;
                Some(round) = rounds.join_next() => {
                    // A round that panicked takes the session with it.
                    let Ok((rows, mut answers, read)) = round else { return };
                    resting = Some(rows);
                    let all = waiting.end();
                    // What is kept may be older than a transaction that is still being sent.
                    all.iter().for_each(|visible| waiting.ahead.note(visible, &read));
                    answers.extend(read);
                    for visible in all {
                        send(&outputs, waiting.resolved(visible, &answers, &metrics)).await;
                    }
                }
                visible = inputs.recv(), if open => match visible {
                    None => open = false,
                    Some(visible) => {
                        // What has no keys came to be seen by the cache alone.
                        if ends(cache.as_ref(), &visible) && visible.keys.is_empty() {
                            continue;
                        }
                        let answers = waiting.known(cache.as_ref(), &visible, &metrics);
                        if let Some(answers) = answers {
                            send(&outputs, waiting.resolved(visible, &answers, &metrics)).await;
                        } else if let Some(passes) = waiting.take(visible, &metrics) {
                            send(&outputs, passes).await;
                        }
                    }
                },
            }
        }
    }
}

/// Finds what is wanted, in the cache or by queries: gives what was known, and what was read.
async fn round(
    mut rows: Rows,
    (mut wanted, mut found): (Vec<Wanted>, Answers),
    cache: Option<Cache>,
    metrics: Arc<Metrics>,
) -> (Rows, Answers, Answers) {
    let Some(cache) = cache else {
        count(&metrics, "query", wanted.len());
        let read = rows.find(wanted).await;
        return (rows, found, read);
    };
    wanted.retain(|one| match cache.get(one) {
        None => true,
        Some(answer) => {
            found.insert(one.clone(), answer);
            false
        }
    });
    count(&metrics, "cache", found.iter().count());
    count(&metrics, "query", wanted.len());
    let (began, losses) = (cache.begin(), rows.losses());
    let read = rows.find(wanted).await;
    if rows.losses() > losses {
        // Another session may have other settings.
        cache.forget();
    }
    cache.keep(&began, &read);
    (rows, found, read)
}

/// Tells the cache of a transaction that new snapshots see.
fn ends(cache: Option<&Cache>, visible: &Visible) -> bool {
    let (Some(cache), Cause::Transaction(transaction)) = (cache, &visible.cause) else {
        return false;
    };
    cache.ended(transaction.xid);
    true
}

fn count(metrics: &Metrics, source: &'static str, rows: usize) {
    let rows = u64::try_from(rows).unwrap_or(u64::MAX);
    metrics.lookup_rows.get_or_create(&SourceLabel { source }).inc_by(rows);
}

impl Waiting {
    /// Keeps what needs rows; gives back what passes at once. Beyond the limit nothing waits.
    fn take(&mut self, visible: Visible, metrics: &Metrics) -> Option<Visible> {
        if !visible.keys.has_pending() {
            self.ahead.forget(&visible);
            return Some(visible);
        }
        let bytes = visible.keys.bytes();
        if self.bytes + bytes > WAITING_BYTES_MAX {
            self.ahead.forget(&visible);
            return Some(widened(visible, WidenReason::Limit, metrics));
        }
        self.bytes += bytes;
        self.next.push(visible);
        None
    }

    /// All that keys wait for, if the cache has all of it, or it was read for the same keys.
    fn known(
        &self,
        cache: Option<&Cache>,
        visible: &Visible,
        metrics: &Metrics,
    ) -> Option<Answers> {
        if !visible.keys.has_pending() {
            return None;
        }
        let mut answers = Answers::default();
        for wanted in visible.keys.wanted() {
            let found = match self.ahead.get(&visible.cause, &wanted) {
                Some(found) => found.clone(),
                None => cache?.get(&wanted)?,
            };
            answers.insert(wanted, found);
        }
        count(metrics, "cache", answers.iter().count());
        Some(answers)
    }

    /// A round of all that waits: which rows it wants, and what is known.
    fn begin(&mut self) -> (Vec<Wanted>, Answers) {
        self.round = std::mem::take(&mut self.next);
        let (wanted, known) = self.ahead.split(&self.round);
        (wanted.into_iter().collect(), known)
    }

    fn resolved(&mut self, visible: Visible, answers: &Answers, metrics: &Metrics) -> Visible {
        self.ahead.forget(&visible);
        resolve(visible, (answers, WidenReason::LookupFailed), metrics)
    }

    /// What the round was for.
    fn end(&mut self) -> Vec<Visible> {
        self.bytes = self.next.iter().map(|visible| visible.keys.bytes()).sum();
        std::mem::take(&mut self.round)
    }
}

fn widened(visible: Visible, reason: WidenReason, metrics: &Metrics) -> Visible {
    resolve(visible, (&Answers::default(), reason), metrics)
}

/// Renders what waited, and counts what it widened.
fn resolve(
    mut visible: Visible,
    (answers, missing): (&Answers, WidenReason),
    metrics: &Metrics,
) -> Visible {
    let counted: Vec<_> = visible.keys.widened().collect();
    visible.keys.resolve(answers, missing);
    if matches!(visible.cause, Cause::Early(_)) {
        // It comes again, and counts then.
        return visible;
    }
    for (rule, reason, count) in visible.keys.widened() {
        let before = counted.iter().find(|(r, why, _)| (*r, *why) == (rule, reason));
        let more = count - before.map_or(0, |(.., count)| *count);
        if more > 0 {
            metrics.widened(rule, reason, more);
        }
    }
    visible
}

#[cfg(test)]
#[path = "lookups_tests.rs"]
mod tests;
