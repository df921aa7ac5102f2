//! The second removal of keys (I8): of those that were written again, where that is known.

use std::borrow::Cow;

use super::inside::remove_direct;
use super::job::{Job, Round, Tally};
use super::redis::node::{Error, Node};
use super::redis::observe::Mark;
use super::redis::pass::{MATCH_KEYS, Pass};
use super::redis::unlink::{self, Search};
use crate::keys::{KeySet, RuleId};

/// The moment before the first removal of some keys, from which on writes of them count. None where
/// writes are not observed, or where it is forgotten.
#[derive(Clone, Debug, Default)]
pub(super) struct Since(Option<Mark>);

impl Since {
    /// Of these keys and others.
    pub(super) fn join(&mut self, other: Since) {
        self.0 = self.0.take().zip(other.0).map(|(one, other)| one.earlier(other));
    }
}

/// From when on writes count for the jobs of a batch. A first removal begins now: that is noted in
/// its jobs, and none counts for itself.
pub(super) fn since<N: Node>(node: &N, jobs: &mut [Job]) -> Since {
    if jobs.iter().any(|job| job.round != Round::Second) {
        let now = Since(node.mark());
        jobs.iter_mut().for_each(|job| job.since.clone_from(&now));
        return Since::default();
    }
    let all = jobs.iter().map(|job| job.since.clone());
    let joined = all.reduce(|mut one, other| {
        one.join(other);
        one
    });
    joined.unwrap_or_default()
}

/// Removes from Redis what a batch must: with `since`, the keys and what the patterns match of all
/// that was written from then on; without it, or when that is not known, the exact keys. `empty` is
/// an empty key set of the rules. Gives what went, also before the first error of the node; all are
/// tried again then.
pub(super) async fn remove<N: Node>(
    node: &N,
    jobs: &[Job],
    empty: KeySet,
    Since(since): Since,
) -> (Tally, Result<(), Error>) {
    if let Some(since) = since {
        if let Err(error) = node.fence().await {
            return (Tally::default(), Err(error));
        }
        if let Some(written) = since.written() {
            let keys = union(jobs, empty, KeySet::merge);
            let found = find(&keys, &written).await;
            let (mut tally, outcome) = unlink::unlink(node, found, Search::Quick).await;
            tally.with_patterns = true;
            return with_items(node, jobs, (tally, outcome)).await;
        }
    }
    // Exact keys only: a pattern of one job would swallow the keys of another, which is then taken
    // for done and does not wait for the pattern's pass.
    let keys = union(jobs, empty, KeySet::merge_exact);
    let removed = unlink::unlink(node, keys.exact().collect(), Search::Quick).await;
    with_items(node, jobs, removed).await
}

/// Removes what is inside of keys as well: of that it is not observed what was written again.
async fn with_items<N: Node>(
    node: &N,
    jobs: &[Job],
    (mut tally, outcome): (Tally, Result<(), Error>),
) -> (Tally, Result<(), Error>) {
    if outcome.is_err() || jobs.iter().all(|job| job.keys.items_len() == 0) {
        return (tally, outcome);
    }
    let sets: Vec<&KeySet> = jobs.iter().map(|job| &job.keys).collect();
    let outcome = remove_direct(node, &sets, &mut tally).await;
    (tally, outcome)
}

/// The keys of all jobs; a single one's need not be copied.
fn union(jobs: &[Job], empty: KeySet, merge: fn(&mut KeySet, &KeySet)) -> Cow<'_, KeySet> {
    match jobs {
        [job] => Cow::Borrowed(&job.keys),
        jobs => {
            let mut keys = empty;
            jobs.iter().for_each(|job| merge(&mut keys, &job.keys));
            Cow::Owned(keys)
        }
    }
}

/// The names that are among the keys or match a pattern.
async fn find<'a, T: AsRef<[u8]>>(keys: &KeySet, names: &'a [T]) -> Vec<(RuleId, &'a [u8])> {
    let (rules, patterns): (Vec<RuleId>, Vec<_>) =
        keys.patterns().map(|(rule, pattern)| (rule, pattern.clone())).unzip();
    let pass = Pass::new(patterns);
    let rule_of = |key: &[u8]| keys.exact_rule(key).or_else(|| rules.get(pass.find(key)?).copied());
    let mut found = Vec::new();
    for some in names.chunks(MATCH_KEYS) {
        let some = some.iter().map(AsRef::as_ref);
        found.extend(some.filter_map(|key| Some((rule_of(key)?, key))));
        tokio::task::yield_now().await;
    }
    found
}
