//! Acts on the outcome of the sweeper's work.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::job::{Job, Member, Round};
use super::proof::evidence::Broken;
use super::proof::prints::Doubt;
use super::proof::ward::Found;
use super::publish::Part;
use super::redis::node::{Error, Kind};
use super::refused::{Retry, Tried};
use super::shared::{RefusedInPass, Written, count, observe};
use super::sweeper::{ALIVE_INTERVAL, State};
use super::works::{BatchDone, Done};
use super::{Event, Swept};
use crate::failpoint::{Point, reach};
use crate::keys::{Item, Reach};
use crate::lsn::Lsn;
use crate::retry::Backoff;
use crate::settle::Held;
use crate::telemetry::Topic;
use crate::telemetry::metrics::PeerLabel;

/// Wait before another try to write the watermark, or to see it on the replicas.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// Wait after a pass for the index alone before another one: after one that came to its end, and
/// after one that did not.
const BUILD_WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A connection that is lost again before is no reason to try as if it were the first time.
const LASTING: Duration = Duration::from_secs(1);

impl State {
    /// Something that was under way has come to its end.
    pub(super) async fn done(&mut self, done: Done) {
        match done {
            Done::Batch(done) => {
                (self.late.in_batch, self.under_way.0) = (None, 0);
                self.batch_done(done).await;
            }
            Done::Second(done) => {
                self.refill.ended();
                self.batch_done(done).await;
            }
            Done::Retries((retries, outcome)) => self.retries_done(retries, outcome).await,
            Done::Pass((jobs, paces, outcome)) => {
                if outcome.is_ok() {
                    let (health, node) = (&self.health, &self.node.node);
                    self.throttle.passed(&jobs, paces.slowest(), (health, node));
                }
                if jobs.is_empty() {
                    // One that made nothing whole is not made again at once, nor one refused.
                    let wait = if outcome.is_ok() { BUILD_WAIT.0 } else { BUILD_WAIT.1 };
                    self.next_build = Instant::now() + wait;
                }
                self.paces = Some(paces);
                self.passes.ended();
                (self.late.in_pass, self.under_way.1) = (None, 0);
                self.pass_done(jobs, outcome).await;
            }
            Done::Listed(done) => self.listed_done(done).await,
            Done::Pages(done) => self.pages_done(done).await,
            Done::Message(outcome) => self.published(outcome),
            Done::Alive(outcome) => {
                self.next_alive = Instant::now() + ALIVE_INTERVAL;
                self.look_doubted();
                // One that cannot save its data refuses PING, and is there.
                if let (Err(error @ Error::Lost(..)), true) = (outcome, self.connected) {
                    self.failed(&error).await;
                }
            }
            Done::Write(written) => self.write_done(written).await,
            Done::Connect(found) => {
                if self.connect_done(found).await {
                    self.connected_at = Instant::now();
                }
            }
        }
    }

    async fn batch_done(&mut self, (jobs, (tally, outcome)): BatchDone) {
        let second = jobs.first().is_some_and(|job| job.round.takes_refills());
        match outcome {
            Ok(()) => {
                // That nothing was to be removed, or nothing may be, is answered by a server that
                // takes no writes, too.
                if tally.rows().any(|(_, removed, absent)| removed + absent > 0) {
                    self.took_unlink();
                }
                count(&self.health.metrics(), &tally, second);
                reach(Point::ExactRemoved);
                let mut through = Vec::with_capacity(jobs.len());
                let (removed, absent) = tally.sums();
                let took = (removed, absent, jobs.len());
                for mut job in jobs {
                    job.takes(took);
                    self.refuse_keys(&mut job, &tally);
                    self.tell_removed(&job, Part::Named);
                    if tally.with_patterns && !job.keys.has_items(Reach::Scanned) {
                        self.tell_removed(&job, Part::Patterns);
                    }
                    through.extend(self.goes_on(job, false, tally.with_patterns));
                }
                self.removed(through).await;
            }
            Err(error) => {
                count(&self.health.metrics(), &tally.without_absent(), second);
                if !self.failed(&error).await {
                    self.unlinks.failed(Instant::now());
                    self.say_refuses(&error);
                }
                self.put_back(jobs);
            }
        }
    }

    /// Jobs go back to where they wait.
    fn put_back(&mut self, jobs: Vec<Job>) {
        let (second, others): (Vec<Job>, _) =
            jobs.into_iter().partition(|job| job.round == Round::Second);
        let (replayed, first): (Vec<Job>, _) =
            others.into_iter().partition(|job| job.round == Round::Replayed);
        self.refill.put_back(second, Instant::now());
        replayed.into_iter().for_each(|job| self.put_replayed(job));
        self.queue.put_back(first);
        if *self.lost.borrow() {
            self.goes_away();
        }
    }

    /// The patterns of these jobs are through, but for what was refused.
    pub(super) async fn matched_removed(&mut self, mut jobs: Vec<Job>, refused: &RefusedInPass) {
        reach(Point::PassDone);
        let took = (refused.removed, 0, jobs.len());
        for job in &mut jobs {
            job.takes(took);
            self.tell_removed(job, Part::Patterns);
            self.refuse_matched(job, &refused.matched);
            self.refuse_items(job, &refused.items);
        }
        self.removed(jobs).await;
    }

    async fn pass_done(&mut self, jobs: Vec<Job>, outcome: Result<RefusedInPass, Error>) {
        match outcome {
            Ok(refused) => {
                self.took_scan();
                self.matched_removed(jobs, &refused).await;
            }
            Err(error) if matches!(error.kind(), Kind::NoPerm | Kind::Unsupported) => {
                // SCAN itself, whatever the pattern: exact keys go on.
                self.no_list = (error.kind() == Kind::Unsupported).then(|| error.to_string());
                let mut jobs = jobs;
                for job in &mut jobs {
                    let patterns = job.keys.clone().take_scanned();
                    self.refuse(job, &patterns, |_| None);
                }
                self.removed(jobs).await;
            }
            Err(error) => {
                // That the connection is lost is known already to a pass that waits.
                if self.connected && !self.failed(&error).await {
                    self.scans.failed(Instant::now());
                    self.say_refuses(&error);
                }
                for job in jobs {
                    self.wait_for_pass(job);
                }
            }
        }
    }

    async fn retries_done(&mut self, retries: Vec<Retry>, outcome: Result<Vec<Tried>, Error>) {
        let now = Instant::now();
        let outcomes = match outcome {
            Ok(outcomes) => outcomes,
            Err(error) => {
                if !self.failed(&error).await {
                    self.unlinks.failed(now);
                    self.say_refuses(&error);
                }
                for one in &retries {
                    self.refusals.not_tried(one.rule, &one.keys, now);
                }
                return;
            }
        };
        let mut through = Vec::new();
        for (Retry { rule, mut keys, covers, .. }, tried) in retries.into_iter().zip(outcomes) {
            count(&self.health.metrics(), &tried.tally, false);
            let refused = keys.take_exact(|key| tried.tally.refused.contains(key));
            if !refused.is_empty() {
                self.count_error(self.kind_of_refusal());
            }
            self.refusals.put_back(rule, &refused);
            let is_refused = |item: Item<'_>| tried.tally.refused_items.contains_key(item.bytes());
            self.refusals.put_back(rule, &keys.take_items(is_refused));
            if keys.has_patterns() && !tried.with_pass {
                self.refusals.put_back(rule, &keys.take_scanned());
            }
            if keys.is_empty() && self.refusals.sizes(rule) != (0, 0) {
                // Nothing went.
                self.refusals.tried(rule, now);
                continue;
            }
            let job = Job::new(vec![Member::Retry(rule)], keys, Round::First, covers);
            self.tell_removed(&job, Part::Named);
            if job.keys.has_items(Reach::Paged) {
                through.extend(self.goes_on(job, false, false));
            } else if job.keys.has_patterns() {
                self.wait_for_pass(job);
            } else {
                through.push(job);
            }
        }
        self.removed(through).await;
    }

    /// The job goes with the next pass. However long that is to come, what waits for it is never
    /// too much to be in flight, so that it stops nobody else.
    pub(super) fn wait_for_pass(&mut self, job: Job) {
        let is_listed = self.listed.as_ref().is_some_and(|listed| listed.knows(&job));
        self.wait_in(is_listed, job);
    }

    /// The job goes with the next pass by SCAN, or by the index.
    pub(super) fn wait_in(&mut self, is_listed: bool, job: Job) {
        let listed = self.listed.as_mut().filter(|_| is_listed);
        let passes = listed.map_or(&mut self.passes, |listed| &mut listed.waiting);
        let (widened, held) = (passes.push(job), passes.hold_many());
        self.widened(&widened);
        held.into_iter().for_each(|held| self.hold(held));
    }

    /// One removal of the keys of these jobs is acknowledged, but for what was refused of them.
    pub(super) async fn removed(&mut self, jobs: Vec<Job>) {
        let now = Instant::now();
        let mut swept = Swept { end_lsns: Vec::new(), holds: Vec::new() };
        for mut job in jobs {
            if job.comes_again() {
                continue;
            }
            let metrics = self.health.metrics();
            job.members.iter().for_each(|member| observe(&metrics, self.target, member, now));
            self.end_retries(&mut job, now);
            self.end_repeats(&mut job).await;
            self.leave_shared(&mut job);
            self.tell_gone(&job);
            self.note_resyncs(&job, job.round != Round::Second).await;
            if job.round == Round::Second || !self.refill.is_on() {
                self.finish(job, &mut swept);
            } else {
                reach(Point::FirstRemoved);
                let waits = job.waits();
                let (hold, widened) = self.refill.add(job, now);
                waits.instead(hold).into_iter().for_each(|held| self.hold(held));
                self.widened(&widened);
            }
        }
        self.tell_held().await;
        if !swept.end_lsns.is_empty() || !swept.holds.is_empty() {
            self.report(Event::Swept(swept)).await;
        }
    }

    /// Takes out of a job what it shares with keys that Redis refused of it: that goes on with
    /// these. Of a sweep that closes, the second removal of the job's own keys is still to come,
    /// and may come later than that of the others: the watermark waits for both.
    fn leave_shared(&mut self, job: &mut Job) {
        let has_second = job.round != Round::Second && self.refill.is_on();
        let leaves = job.members.iter().any(|member| member.is_shared() && member.closes());
        job.members.retain(|member| !member.is_shared());
        if leaves && has_second {
            self.ward.rests();
            job.members.push(Member::Rest { token: Rc::new(()) });
        }
    }

    /// Ends a job's tries of what Redis had refused of a rule.
    fn end_retries(&mut self, job: &mut Job, now: Instant) {
        let mut more = Vec::new();
        job.members.retain(|member| {
            let Member::Retry(rule) = member else { return true };
            if let Some((hold, members)) = self.refusals.tried(*rule, now) {
                let shared = members.is_none();
                more.push(Member::Held { hold, shared });
                more.extend(members.into_iter().flatten());
                if !shared {
                    self.health.over(&self.refused_topic(*rule));
                }
            }
            false
        });
        job.members.extend(more);
    }

    /// Removals that Redis may have lost are made again.
    async fn end_repeats(&mut self, job: &mut Job) {
        let mut done = 0;
        // One after the other: a job may have several parts of the same one.
        job.members.retain(|member| {
            let is_repeat = matches!(member, Member::Repeat { .. });
            done += usize::from(is_repeat && !member.is_shared());
            !is_repeat
        });
        for _ in 0..done {
            if self.ward.repeated() {
                self.say_whole().await;
            }
        }
    }

    async fn note_resyncs(&mut self, job: &Job, is_first: bool) {
        let closes = job.members.iter().any(|one| matches!(one, Member::Resync { last: true, .. }));
        if closes && is_first {
            self.ward.shown();
            reach(Point::ResyncShown);
            self.say_whole().await;
        }
    }

    /// Says that nothing stale is left for readers to see, if nothing is, wherever keys are.
    async fn say_whole(&mut self) {
        if self.ward.is_whole() && self.away.is_none() {
            self.report(Event::Whole).await;
        }
    }

    /// The last removal of a job's keys is acknowledged.
    fn finish(&mut self, job: Job, swept: &mut Swept) {
        let mut owed = Vec::new();
        for member in job.members {
            match member {
                Member::Transaction { transaction, .. } => swept.end_lsns.push(transaction.end_lsn),
                Member::Held { hold, shared: false } => swept.holds.push(hold),
                Member::Resync { last: true, settles: true, .. } => self.ward.paid(),
                Member::Replayed { resyncs, .. } => (0..resyncs).for_each(|_| self.ward.paid()),
                Member::Rest { .. } => self.ward.rested(),
                // If Redis loses the removal before the standbys show it, it is made again.
                member if member.is_owed_resync() => owed.push(member),
                _ => {}
            }
        }
        self.refill.keep(job.covers, job.keys, owed);
        reach(Point::Swept);
    }

    /// Redis refuses something that is no rule's fault.
    pub(super) fn say_refuses(&self, error: &Error) {
        // Whoever is there refuses nothing, or for the sake of who is not.
        match (error, &self.away) {
            (Error::Away(text, _), away) => return self.say_misses(away.as_ref().unwrap_or(text)),
            (_, Some(away)) if error.kind() == Kind::Slot => return self.say_misses(away),
            _ => {}
        }
        let text = format!("{} at {} refuses removals: {error}", self.title, self.node.node);
        let topic = Topic::Redis(self.target);
        self.health.refusal(topic, error.kind().as_str(), &text, error.hint());
    }

    pub(super) fn took_unlink(&mut self) {
        if self.unlinks.has_failed() {
            self.unlinks.is_over();
            self.say_takes();
        }
    }

    fn took_scan(&mut self) {
        self.no_list = None;
        if self.scans.has_failed() {
            self.scans.is_over();
            self.say_takes();
        }
    }

    async fn write_done(&mut self, written: Written) {
        let error = match written {
            Written::Shared => {
                reach(Point::WatermarkWritten);
                self.cover();
                self.ward.shared();
                self.health.over(&Topic::Watermark(self.target));
                return self.report(Event::Covered(self.ward.covered())).await;
            }
            Written::Not(found) => {
                return match self.ward.contradicted(found, self.refill.floor()) {
                    Some(broken) => {
                        self.doubts();
                        self.report(Event::ResyncOwed(Doubt::Everything(broken))).await;
                    }
                    // What is under way may have been removed before Redis went back, or after.
                    None => self.disconnect().await,
                };
            }
            Written::Alone(error) => {
                self.cover();
                error
            }
            Written::Failed(error) => error,
        };
        if !self.failed(&error).await {
            let place = format!("{} at {}", self.title, self.node.node);
            let text = format!("nothing is confirmed, for {place}: {error}");
            let (topic, kind) = (Topic::Watermark(self.target), error.kind().as_str());
            self.health.refusal(topic, kind, &text, error.hint());
        }
        self.next_write = Instant::now() + WRITE_AGAIN;
    }

    /// The watermark stands in the primary.
    fn cover(&mut self) {
        let lsn = self.ward.written();
        self.kept = self.keeping.take().or(self.kept.take());
        self.refill.covered(lsn, Instant::now());
    }

    /// A connection was made, or was not. Says whether it was.
    async fn connect_done(&mut self, found: Result<Found, Error>) -> bool {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.failed(&error).await;
                self.say_lost(&error);
                self.goes_away();
                self.report(Event::RedisLost).await;
                return false;
            }
        };
        self.connected = true;
        (self.kept, self.keeping) = (None, None);
        self.lost.send_replace(false);
        if let Some(paces) = &mut self.paces {
            paces.connected();
        }
        self.unlinks.is_over();
        self.scans.is_over();
        match found.away.clone() {
            Some(away) => self.say_misses(&away),
            None => {
                self.health.over(&Topic::Redis(self.target));
                self.health.metrics().redis_up.get_or_create(&self.node).set(1);
            }
        }
        let was_away = std::mem::replace(&mut self.away, found.away.clone()).is_some();
        let is_counted = self.doubted.connected();
        self.health.metrics().is_proven(&self.node, !found.is_unproven);
        self.refusals.soon(Instant::now());
        let judged = self.ward.connected(found, self.refill.floor());
        if self.ward.covered() > Lsn::ZERO {
            self.refill.covered(self.ward.covered(), Instant::now());
            self.health.metrics().covers(self.target, self.ward.covered());
        }
        self.repeat_everything(judged.as_ref().ok().copied().flatten());
        match judged {
            Ok(_) => {
                tracing::info!(node = self.node.node, "connected to {}", self.title);
                self.say_whole().await;
            }
            Err(doubt) => {
                // A first start is none.
                match doubt.reason() == Broken::WatermarkLost {
                    true if was_away => self.doubts_who_was_away(),
                    true if !is_counted => self.doubts(),
                    _ => {}
                }
                self.report(Event::ResyncOwed(doubt)).await;
            }
        }
        true
    }

    /// Redis may have lost whatever was removed and is not covered: all of it goes to the start. If
    /// it went back, then also what was covered since.
    fn repeat_everything(&mut self, went_back_to: Option<Lsn>) {
        let mut jobs = Vec::new();
        if let Some(lsn) = went_back_to {
            jobs = self.refill.covered_again(lsn);
            let keys = |job: &Job| {
                let named = job.keys.exact_len() + job.keys.items_len();
                (named + job.keys.patterns().count()) as u64
            };
            let keys = jobs.iter().map(keys).sum();
            let node = &self.node.node;
            let title = &self.title;
            tracing::warn!(node, %lsn, keys, "{title} lost removals: those keys are removed again");
            self.health.metrics().repeated_keys.inc_by(keys);
        }
        jobs.extend(self.refill.all_again());
        jobs.extend(self.queue.drain());
        jobs.extend(self.passes.take());
        jobs.extend(self.listed.iter_mut().flat_map(|listed| listed.waiting.take()));
        jobs.extend(self.take_pages());
        jobs.extend(self.replayed.take());
        let mut repeats = 0;
        let is_repeat = |member: &Member| matches!(member, Member::Repeat { .. });
        for job in &mut jobs {
            if job.round == Round::Second {
                job.round = Round::Again;
            }
            job.members.retain(|member| !is_repeat(member));
            if job.round == Round::Again {
                job.members.push(Member::Repeat { token: Rc::new(()) });
                repeats += 1;
            }
        }
        for members in self.refusals.members().filter(|members| members.iter().any(is_repeat)) {
            members.retain(|member| !is_repeat(member));
            members.push(Member::Repeat { token: Rc::new(()) });
            repeats += 1;
        }
        self.ward.repeats(repeats);
        for job in jobs {
            if job.round == Round::Replayed {
                self.put_replayed(job);
            } else {
                self.queue.push(job);
            }
        }
    }

    /// Counts an error. Says whether the connection is lost by it.
    pub(super) async fn failed(&mut self, error: &Error) -> bool {
        self.count_error(error.kind());
        if error.kind() == Kind::Swapped && self.away.is_none() {
            self.doubts();
            self.doubted.goes_on();
        }
        if !matches!(error, Error::Lost(..)) {
            return false;
        }
        self.say_lost(error);
        self.health.metrics().redis_up.get_or_create(&self.node).set(0);
        self.disconnect().await;
        true
    }

    /// Redis is away. Of several targets it gets nothing more, and what it has waits for it: that
    /// takes no room of what is on its way to others.
    pub(super) fn goes_away(&mut self) {
        self.lost.send_replace(true);
        if self.health.metrics().target_name(self.target).is_some() {
            self.queue.waits();
        }
    }

    /// The next thing is to connect again.
    async fn disconnect(&mut self) {
        if self.connected {
            if self.connected_at.elapsed() >= LASTING {
                self.backoff = Backoff::redis();
            }
            let peer = PeerLabel { peer: "redis" };
            self.health.metrics().reconnects.get_or_create(&peer).inc();
            self.connected = false;
            self.forget_messages();
            self.goes_away();
            self.report(Event::RedisLost).await;
        }
    }

    /// Something is held from now on; told with the next report.
    pub(super) fn hold(&mut self, held: Held) {
        if held.is_empty() {
            return;
        }
        held.tell(self.target, self.health.trail());
        match self.held.last_mut() {
            Some(last) if (last.by, last.moved) == (held.by, held.moved) => {
                last.end_lsns.extend(held.end_lsns);
                last.holds.extend(held.holds);
            }
            _ => self.held.push(held),
        }
    }

    /// Tells what is held.
    pub(super) async fn tell_held(&mut self) {
        for held in std::mem::take(&mut self.held) {
            drop(self.events.send((self.target, Event::Held(held))).await);
        }
    }

    /// A closed channel means that the session ends.
    pub(super) async fn report(&mut self, event: Event) {
        self.tell_held().await;
        drop(self.events.send((self.target, event)).await);
    }
}
