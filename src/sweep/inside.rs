//! Fields and tags in the work of a target: their turn, what Redis refuses of them, and what is
//! told of removals on a channel.
//!
//! ```text
//! UNLINK, HDEL ─► pages of hashes and sets ─► SCAN pass for those that a pattern names ─► refill
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::job::{Job, Tally, older};
use super::publish::{Part, Publisher};
use super::queue::Passes;
use super::redis::inside::{How, RefusedItems, Why, direct, in_key, pace};
use super::redis::node::{Error, Kind, Node};
use super::redis::pace::Pace;
use super::samples::Samples;
use super::shared::count;
use super::sweeper::{Settings, State};
use super::works::Work;
use crate::keys::{KeySet, Reach, RuleId};
use crate::telemetry::Topic;

/// How far apart tries of a message are that Redis refuses.
const PUBLISH_AGAIN: Duration = Duration::from_secs(5);

/// Jobs whose pages were read, the pace, and of each job what went.
pub(super) type PagesDone = (Vec<Job>, Pace, Result<Vec<Tally>, Error>);

/// Jobs whose items are read in pages.
pub(super) struct Inside {
    pub(super) waiting: Passes,
    /// How much a page may look at; away while pages are read.
    pace: Option<Pace>,
    pub(super) publisher: Arc<Publisher>,
    /// The message that is being told, and whether Redis refused it before.
    told: Option<(Arc<String>, bool)>,
    /// The last one that Redis refused, and when it is told again.
    refused: Option<(Arc<String>, Instant)>,
}

impl Inside {
    /// Nothing yet; with the memory of what waits for a pass, bytes, which it shares its own with.
    pub(super) fn of(settings: &Settings, is_told: bool) -> (Inside, usize) {
        let (share, empty) = (settings.room.share, &settings.empty);
        let [pages, passes] = share.pages_and_passes(empty.may_have_items());
        let publisher = Publisher::new(is_told, share.publish, empty.new_charge());
        let inside = Inside {
            waiting: Passes::new(pages),
            pace: Some(pace(settings.max_stall)),
            publisher: Arc::new(publisher),
            told: None,
            refused: None,
        };
        (inside, passes)
    }
}

/// Removes the items of jobs that take one command, in as few round trips as may be.
pub(super) async fn remove_direct<N: Node>(
    node: &N,
    sets: &[&KeySet],
    tally: &mut Tally,
) -> Result<(), Error> {
    let all = sets.iter().flat_map(|keys| keys.items());
    let items = all.filter(|(_, item)| item.reach() == Reach::Direct);
    let named = items.filter_map(|(rule, item)| Some((rule, item.only_key()?, item)));
    let named: Vec<_> = named.collect();
    if named.is_empty() {
        return Ok(());
    }
    direct(node, named.iter().map(|(rule, key, item)| (*rule, &**key, *item)).collect(), tally)
        .await
}

/// Reads the pages of a job, one key after the other.
async fn remove_paged<N: Node>(
    node: &N,
    job: &Job,
    (pace, trims, publisher): (&mut Pace, bool, &Publisher),
) -> Result<Tally, Error> {
    let mut tally = Tally::default();
    for (rule, item) in job.keys.items().filter(|(_, item)| item.reach() == Reach::Paged) {
        let Some(key) = item.only_key() else { continue };
        let mut told = |names: &[&[u8]]| publisher.named(names, job.covers);
        let how = &mut How { pace: &mut *pace, trims, told: &mut told };
        let outcome = in_key(node, &key, item, how).await?;
        tally.add(rule, outcome.removed, 0);
        if let Some(why) = outcome.refused {
            tally.refused_items.insert(item.bytes().into(), why);
        }
    }
    Ok(tally)
}

impl State {
    /// The pages that are read next.
    pub(super) fn next_pages<'a, N: Node>(&mut self, node: &'a N) -> Work<'a, PagesDone> {
        if self.inside.waiting.is_empty() {
            return None;
        }
        let mut pace = self.inside.pace.take()?;
        let mut jobs = self.inside.waiting.take();
        // Readers wait for the first removals.
        jobs.sort_by_key(|job| !job.round.is_urgent());
        self.late.in_pages = jobs.iter().map(|job| job.oldest).fold(None, older);
        let has_second = self.refill.is_on();
        let last: Vec<bool> = jobs.iter().map(|job| job.round.is_last(has_second)).collect();
        let publisher = Arc::clone(&self.inside.publisher);
        Some(Box::pin(async move {
            let mut tallies = Vec::with_capacity(jobs.len());
            for (job, trims) in jobs.iter().zip(last) {
                match remove_paged(node, job, (&mut pace, trims, &publisher)).await {
                    Ok(tally) => tallies.push(tally),
                    Err(error) => return (jobs, pace, Err(error)),
                }
            }
            (jobs, pace, Ok(tallies))
        }))
    }

    /// The job goes on with what is left to be removed of it; gives it back if that is nothing.
    pub(super) fn goes_on(&mut self, job: Job, is_paged: bool, with_patterns: bool) -> Option<Job> {
        if !is_paged && job.keys.has_items(Reach::Paged) {
            let widened = self.inside.waiting.push(job);
            self.widened(&widened);
            for held in self.inside.waiting.hold_many() {
                self.hold(held);
            }
            return None;
        }
        let scans = if with_patterns {
            job.keys.has_items(Reach::Scanned)
        } else {
            job.keys.has_patterns()
        };
        if scans {
            self.throttle.came(job.round);
            self.wait_for_pass(job);
            return None;
        }
        Some(job)
    }

    pub(super) async fn pages_done(&mut self, (jobs, pace, outcome): PagesDone) {
        self.inside.pace = Some(pace);
        self.inside.waiting.ended();
        self.late.in_pages = None;
        match outcome {
            Ok(tallies) => {
                let mut through = Vec::new();
                for (mut job, tally) in jobs.into_iter().zip(tallies) {
                    count(&self.health.metrics(), &tally, job.round.takes_refills());
                    job.takes((tally.sums().0, 0, 1));
                    self.refuse_items(&mut job, &tally.refused_items);
                    self.tell_removed(&job, Part::Paged);
                    through.extend(self.goes_on(job, true, false));
                }
                self.removed(through).await;
            }
            Err(error) => {
                if self.connected && !self.failed(&error).await {
                    self.unlinks.failed(Instant::now());
                    self.say_refuses(&error);
                }
                for job in jobs {
                    let widened = self.inside.waiting.push(job);
                    self.widened(&widened);
                }
            }
        }
    }

    /// Redis refused items of a job: they wait by themselves.
    pub(super) fn refuse_items(&mut self, job: &mut Job, refused: &RefusedItems) {
        if refused.is_empty() {
            return;
        }
        let is_wrong_type = |items: &KeySet| {
            let mut all = items.items().filter_map(|(_, item)| refused.get(item.bytes()));
            all.any(|why| *why == Why::WrongType)
        };
        let items = job.keys.take_items(|item| refused.contains_key(item.bytes()));
        let kind = match is_wrong_type(&items) {
            true => Kind::WrongType,
            false if self.away.is_some() => Kind::Slot,
            false => Kind::NoPerm,
        };
        let samples = |_: &KeySet| Some(Samples::default());
        for (rule, part) in self.put_refused(job, &items, (samples, kind)) {
            match is_wrong_type(&part) {
                true => self.say_wrong_type(rule, &part),
                false => self.say_refused(rule),
            }
        }
    }

    fn say_wrong_type(&self, rule: RuleId, items: &KeySet) {
        let metrics = self.health.metrics();
        let name = metrics.rule_name(rule);
        let (title, node) = (&self.title, &self.node.node);
        // The names of its keys hold values of rows; the templates do not.
        let widest: Vec<String> = self.refill.empty_keys().widest_items(rule);
        let text = format!(
            "{title} at {node} has other values than rule `{name}` says, under {}: WRONGTYPE",
            widest.join(", ")
        );
        let hint = "`fields` are of hashes, and `tags` are sets or sorted sets: remove the keys of \
                    another type, or correct the rule; `[log] keys` names them at level debug";
        self.health.trouble(self.refused_topic(rule), &text, Some(hint));
        tracing::debug!(
            target: crate::telemetry::logging::KEYS,
            "of another type: {}", items.shown()
        );
    }

    /// The next message of the channel. Where none waits, the last one that was refused: a right
    /// that is given shows by nothing else.
    pub(super) fn next_message<'a, N: Node>(
        &mut self,
        node: &'a N,
        now: Instant,
    ) -> Work<'a, Result<(), Error>> {
        let inside = &mut self.inside;
        let next = inside.publisher.next().map(|message| (Arc::new(message), false));
        let (message, is_again) = next.or_else(|| {
            let (message, _) = inside.refused.take_if(|(_, again)| *again <= now)?;
            Some((message, true))
        })?;
        inside.told = Some((Arc::clone(&message), is_again));
        Some(Box::pin(async move { node.publish(&message).await }))
    }

    /// When the message that was refused last is told again.
    pub(super) fn publish_again(&self) -> Option<Instant> {
        self.inside.refused.as_ref().map(|(_, again)| *again)
    }

    /// A message was told, or was not: nothing waits for that.
    pub(super) fn published(&mut self, outcome: Result<(), Error>) {
        let topic = Topic::Publish(self.target);
        let told = self.inside.told.take();
        let dropped = self.inside.publisher.take_dropped();
        let metrics = self.health.metrics();
        match outcome {
            Ok(()) => {
                metrics.published(true, 1);
                metrics.published(false, dropped);
                self.inside.refused = None;
                self.health.over(&topic);
            }
            Err(error) => {
                // What came to nothing in another way may have been told: each is told once.
                let is_refused = matches!(error, Error::Refused(..));
                let again = Instant::now() + PUBLISH_AGAIN;
                // A message that is not told is one, however often it is tried.
                let is_again = told.as_ref().is_some_and(|(_, is_again)| *is_again);
                metrics.published(false, dropped + u64::from(!is_again));
                let told = told.filter(|_| is_refused);
                self.inside.refused = told.map(|(message, _)| (message, again));
                self.count_error(error.kind());
                let text = format!("{} is not told of removals: {error}", self.title);
                let hint = "caches that listen to `redis.publish` keep old values until they \
                            expire; `walsweep check` prints the rights that are needed";
                self.health.trouble(topic, &text, Some(hint));
            }
        }
    }

    /// Tells of a part of what was removed of a job.
    pub(super) fn tell_removed(&self, job: &Job, part: Part) {
        self.inside.publisher.removed(&job.keys, part, job.covers);
    }

    /// Messages that wait are forgotten with the connection: their keys are removed again.
    pub(super) fn forget_messages(&self) {
        let forgotten = self.inside.publisher.forget();
        self.health.metrics().published(false, forgotten);
    }

    /// Jobs that wait for pages.
    pub(super) fn take_pages(&mut self) -> Vec<Job> {
        self.inside.waiting.take()
    }
}
