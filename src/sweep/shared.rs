//! Work that the sweeper has under way: a SCAN pass for the patterns of several transactions, a
//! write of the watermark; and what is counted.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::job::{Job, Member, Round, Tally};
use super::proof::evidence::Watermark;
use super::proof::prints::{Prints, is_digest};
use super::proof::ward::Found;
use super::publish::Publisher;
use super::queue::pass_reason;
use super::redis::inside::{RefusedItems, Why};
use super::redis::node::{Error, Node, Replaced};
use super::redis::pace::Paces;
use super::redis::pass::{Noted, Pass, Progress};
use super::redis::pass_items::{PassItem, PassItems, Told};
use crate::config::TargetId;
use crate::keys::{Pattern, Reach, RuleId};
use crate::telemetry::metrics::{Metrics, ReasonLabel, seconds};
use crate::telemetry::noted::{Page, PassUnderWay};

/// Everything that Redis refused in a pass.
#[derive(Default)]
pub(super) struct RefusedInPass {
    pub(super) matched: Vec<RefusedOf>,
    pub(super) items: RefusedItems,
    /// Keys that the pass removed.
    pub(super) removed: u64,
}

/// Keys of one pattern that Redis refused to remove.
pub(super) struct RefusedOf {
    pub(super) pattern: Pattern,
    pub(super) noted: Noted,
}

/// How a pass finds keys.
pub(super) enum Way<'a> {
    /// By SCAN, at this pace, noted here.
    Scan(&'a mut Paces, PassUnderWay<'a>),
    /// By the index.
    Index,
}

/// One pass for all patterns of these jobs. Gives what Redis refused to remove, for which there are
/// so many bytes; `None` if the index does not know all keys.
pub(super) async fn sweep<N: Node>(
    node: &N,
    metrics: &Metrics,
    (jobs, refused_bytes_max): (&[Job], usize),
    way: Way<'_>,
    (is_last, publisher): (impl Fn(Round) -> bool, &Arc<Publisher>),
) -> Result<Option<RefusedInPass>, Error> {
    let began = Instant::now();
    let (patterns, mut owners) = patterns_of(jobs);
    let (items, item_owners) = items_of(jobs, is_last, publisher);
    owners.extend(item_owners);
    let (mut paces, noted) = match way {
        Way::Scan(paces, noted) => (Some(paces), Some(noted)),
        Way::Index => (None, None),
    };
    // Of each server by itself: what it had done when it was heard of last.
    let watch = |server: &str| {
        let (mut scanned, mut waited) = (0, Duration::ZERO);
        let (owners, mut counted) = (&owners, vec![0; owners.len()]);
        let (noted, server) = (noted.as_ref(), server.to_owned());
        move |progress: &Progress| {
            for (((rule, second), removed), counted) in
                owners.iter().zip(&progress.removed).zip(&mut counted)
            {
                let more = removed - std::mem::replace(counted, *removed);
                if more > 0 {
                    let mut tally = Tally::default();
                    tally.add(*rule, more, 0);
                    count(metrics, &tally, *second);
                }
            }
            if progress.scanned > scanned {
                metrics.scan_stall.observe(seconds(progress.stall));
            }
            let Progress { scanned: all, took, waited: turns, load, .. } = *progress;
            let page = Page { scanned: all, took, waited: turns, load };
            noted.iter().for_each(|noted| noted.page(&server, page));
            metrics.sweep_scanned_keys.inc_by(progress.scanned - scanned);
            metrics.sweep_throttled.inc_by(seconds(progress.waited - waited));
            (scanned, waited) = (progress.scanned, progress.waited);
        }
    };
    let mut pass = Pass::new(patterns.clone());
    pass.items = items;
    pass.refused_bytes_max = refused_bytes_max;
    let progress = match &mut paces {
        Some(paces) => {
            let progress = pass.over(node, paces, watch).await?;
            let reason = pass_reason(jobs);
            metrics.sweeps.get_or_create(&ReasonLabel { reason }).inc();
            if !progress.is_given_up {
                noted.into_iter().for_each(PassUnderWay::is_whole);
                metrics.sweep_seconds.observe(seconds(began.elapsed()));
            }
            progress
        }
        None => {
            let Some(progress) = pass.by_index(node, || watch("")).await? else { return Ok(None) };
            metrics.index_passes.inc();
            progress
        }
    };
    let removed = progress.removed.iter().sum();
    let matched = progress.refused.into_iter();
    let matched = matched
        .filter_map(|(at, noted)| Some(RefusedOf { pattern: patterns.get(at)?.clone(), noted }))
        .collect();
    let items = progress.refused_items.iter().filter_map(|at| pass.items.all.get(*at));
    let items = items.map(|item| (item.bytes().into(), Why::Forbidden)).collect();
    Ok(Some(RefusedInPass { matched, items, removed }))
}

/// The patterns of jobs, each once; and of each the rule, and whether only refills are removed.
fn patterns_of(jobs: &[Job]) -> (Vec<Pattern>, Vec<(RuleId, bool)>) {
    let mut index_of: HashMap<&Pattern, usize> = HashMap::new();
    let mut patterns: Vec<Pattern> = Vec::new();
    let mut owners: Vec<(RuleId, bool)> = Vec::new();
    for job in jobs {
        let second = job.round.takes_refills();
        for (rule, pattern) in job.keys.patterns() {
            let index = *index_of.entry(pattern).or_insert_with(|| {
                patterns.push(pattern.clone());
                owners.push((rule, second));
                owners.len() - 1
            });
            if let (Some(owner), false) = (owners.get_mut(index), second) {
                owner.1 = false;
            }
        }
    }
    (patterns, owners)
}

/// Items that a pass for these jobs looks for, each once; and whose each is.
fn items_of(
    jobs: &[Job],
    is_last: impl Fn(Round) -> bool,
    publisher: &Arc<Publisher>,
) -> (PassItems, Vec<(RuleId, bool)>) {
    let (mut items, mut owners) = (PassItems::default(), Vec::new());
    let mut index_of: HashMap<&[u8], usize> = HashMap::new();
    for job in jobs {
        let (second, trims) = (job.round.takes_refills(), is_last(job.round));
        let scanned = job.keys.items().filter(|(_, item)| item.reach() == Reach::Scanned);
        for (rule, item) in scanned {
            let index = *index_of.entry(item.bytes()).or_insert_with(|| {
                items.all.push(PassItem::of(item, trims));
                owners.push((rule, second));
                owners.len() - 1
            });
            if let (Some(owner), Some(item)) = (owners.get_mut(index), items.all.get_mut(index)) {
                owner.1 &= second;
                item.trims &= trims;
            }
        }
    }
    let lsn = jobs.iter().map(|job| job.covers).max().unwrap_or_default();
    items.told = Some(Told(Arc::clone(publisher), lsn));
    (items, owners)
}

/// The outcome of a write of the watermark.
pub(super) enum Written {
    /// It stands, and is on as many replicas as are asked for.
    Shared,
    /// It stands; that the replicas have it is not known.
    Alone(Error),
    /// It was not written: this stands there.
    Not(Option<Vec<u8>>),
    /// Whether it was written is not known.
    Failed(Error),
}

/// Writes `value` where `expected` stands, or takes it to stand there already; then waits until it
/// is shared. The fingerprints that it is written under, if they are given, are stored before, and
/// kept for good after; those of the watermark before it go.
pub(super) async fn write<N: Node>(
    node: &N,
    expected: Option<Option<Vec<u8>>>,
    value: Vec<u8>,
    prints: Option<(String, Rc<Prints>)>,
) -> Written {
    if let Some(expected) = expected {
        let details = prints.map(|(digest, prints)| (digest, prints.to_value()));
        if let Some((digest, details)) = &details
            && let Err(error) = unless_refused(node.keep_details(digest, details, false).await)
        {
            return Written::Failed(error);
        }
        match node.replace_watermark(expected.as_deref(), &value).await {
            Ok(Replaced::Yes) => {}
            Ok(Replaced::No(found)) => return Written::Not(found),
            Err(error) => return Written::Failed(error),
        }
        // Whoever is refused, or loses the connection now, has what was stored before for a while.
        if let Some((digest, details)) = &details {
            drop(keep(node, (digest, details), expected.as_deref()).await);
        }
    }
    match node.shared(&value).await {
        Ok(()) => Written::Shared,
        Err(error) => Written::Alone(error),
    }
}

/// The digest of the fingerprints that a watermark carries, if it carries one.
pub(super) fn digest_of(watermark: &[u8]) -> Option<String> {
    Watermark::from_value(watermark).map(|mark| mark.rules).filter(|rules| is_digest(rules))
}

async fn keep<N: Node>(
    node: &N,
    (digest, details): (&str, &[u8]),
    before: Option<&[u8]>,
) -> Result<(), Error> {
    node.keep_details(digest, details, true).await?;
    match before.and_then(digest_of).filter(|other| other != digest) {
        Some(other) => node.drop_details(&other).await,
        None => Ok(()),
    }
}

/// Reads what stands in Redis beside the keys: the watermark, and the fingerprints that it was
/// written under, if their digest is another than `own`. What cannot be read for any reason but a
/// lost connection is as if it were not there: more is swept then.
pub(super) async fn find<N: Node>(node: &N, own: &str) -> Result<Found, Error> {
    let watermark = node.watermark().await?;
    let found = watermark.as_deref().and_then(digest_of);
    let details = match found.filter(|digest| digest != own) {
        Some(digest) => unless_refused(node.details(&digest).await)?.flatten(),
        None => None,
    };
    let (away, is_unproven) = (node.away(), node.is_unproven());
    Ok(Found { watermark, details, away, is_unproven })
}

fn unless_refused<T>(outcome: Result<T, Error>) -> Result<Option<T>, Error> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(Error::Refused(error, _) | Error::Away(error, _)) => {
            tracing::debug!(%error, "redis refuses the fingerprints of the rules");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Counts removed keys: by rule, or as refills when they were removed before.
pub(super) fn count(metrics: &Metrics, tally: &Tally, second: bool) {
    for (rule, removed, absent) in tally.rows() {
        if second {
            metrics.refills_removed(rule, removed);
        } else {
            metrics.keys_removed(rule, removed, absent);
        }
    }
}

/// Records how long a transaction's keys took, if all of them are gone. A commit is no younger than
/// its being seen, whatever the clocks say.
pub(super) fn observe(metrics: &Metrics, target: TargetId, member: &Member, now: Instant) {
    let Member::Transaction { transaction, visible_at, whole: true } = member else { return };
    let seen_for = now.saturating_duration_since(*visible_at);
    let age = transaction.age(metrics.server_clock.now()).max(seen_for);
    metrics.visible_to_removed.observe(seconds(seen_for));
    metrics.removed_after(target, transaction.end_lsn, age);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use tokio::time::Instant;

    use super::{TargetId, observe};
    use crate::gather::Transaction;
    use crate::lsn::Lsn;
    use crate::sweep::job::Member;
    use crate::telemetry::metrics::Metrics;

    /// The sum of `walsweep_commit_to_removed_seconds` after one transaction whose commit was seen
    /// half a second ago, by a server whose clock is so many seconds ahead.
    fn commit_to_removed(ahead: i64, is_heard: bool) -> f64 {
        let metrics = Metrics::new(&[]);
        let now = SystemTime::now();
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let postgres_epoch = 946_684_800_000_000;
        let here = i64::try_from(since.as_micros()).unwrap() - postgres_epoch;
        let there = here + ahead * 1_000_000;
        if is_heard {
            metrics.server_clock.heard(there, now);
        }
        let (commit_lsn, end_lsn) = (Lsn(1), Lsn(2));
        let commit_time = there - 700_000;
        let transaction = Transaction { xid: 1, commit_lsn, end_lsn, commit_time };
        let visible_at = Instant::now().checked_sub(Duration::from_millis(500)).unwrap();
        let member = Member::Transaction { transaction, visible_at, whole: true };
        observe(&metrics, TargetId::FIRST, &member, Instant::now());
        let text = metrics.text();
        let sum = "walsweep_commit_to_removed_seconds_sum ";
        text.lines().find_map(|line| line.strip_prefix(sum)).unwrap().parse().unwrap()
    }

    #[test]
    fn the_time_since_a_commit_does_not_depend_on_the_clock_of_the_server() {
        for ahead in [-3_600, -5, 0, 5, 3_600] {
            let took = commit_to_removed(ahead, true);
            assert!((0.69..2.0).contains(&took), "{ahead} s ahead: {took}");
        }
        // Before the server has told its time, it is at least as long as the commit was seen.
        assert!((0.49..0.69).contains(&commit_to_removed(3_600, false)));
    }
}
