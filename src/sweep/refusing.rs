//! Keys that Redis refused, or a part of it that is away, go to the set of their rule, and it is
//! said.

use std::sync::Arc;

use tokio::time::Instant;

use super::Event;
use super::job::{Job, Member, Tally};
use super::redis::node::{Error, Kind, PART_HINT};
use super::redis::pass::Noted;
use super::samples::Samples;
use super::shared::RefusedOf;
use super::sweeper::State;
use crate::keys::{KeySet, Pattern, RuleId};
use crate::telemetry::metrics::ErrorLabel;
use crate::telemetry::{REFUSES_LOGIN, Topic};
use crate::words::counted;

/// The rights to look into keys.
const INSIDE_RIGHTS: &str = " +hdel +hscan +type +exists +sscan +zscan +srem +zrem; and `~` for \
                             the keys that its sets name, if it has `tags`, which no line of \
                             `check` can know";

impl State {
    /// Redis refused some keys of a batch: they wait by themselves.
    pub(super) fn refuse_keys(&mut self, job: &mut Job, tally: &Tally) {
        self.refuse_items(job, &tally.refused_items);
        let refused = &tally.refused;
        if refused.is_empty() {
            return;
        }
        if tally.with_patterns {
            let of = |(_, pattern): (RuleId, &Pattern)| {
                let keys = refused.iter().filter(|key| pattern.matches(key)).cloned().collect();
                RefusedOf { pattern: pattern.clone(), noted: Noted::of(keys) }
            };
            let matched: Vec<RefusedOf> = job.keys.patterns().map(of).collect();
            self.refuse_matched(job, &matched);
        }
        let keys = job.keys.take_exact(|key| refused.contains(key));
        // Of each rule its own: a right on the keys of one says nothing of another's.
        self.refuse(job, &keys, |part| {
            Some(Samples::of(part.exact().map(|(_, key)| key), part.exact_len()))
        });
    }

    /// Redis refused keys that patterns matched.
    pub(super) fn refuse_matched(&mut self, job: &mut Job, refused: &[RefusedOf]) {
        for RefusedOf { pattern, noted } in refused {
            // A pattern is of one rule, and so is what it matched.
            match noted {
                Noted::Keys(keys) => {
                    let names = || keys.iter().map(|key| &**key);
                    let part = job.keys.matched(pattern, names(), false);
                    self.refuse(job, &part, |_| Some(Samples::of(names(), keys.len())));
                }
                Noted::Whole(samples) => {
                    let part = job.keys.matched(pattern, std::iter::empty(), true);
                    self.refuse(job, &part, |_| Some(samples.clone()));
                }
            }
        }
    }

    pub(super) fn count_error(&self, kind: Kind) {
        self.health.metrics().redis_errors.get_or_create(&self.error_label(kind)).inc();
    }

    /// Lets every class of errors be there from the start: a rate of what begins with its first
    /// event does not see that.
    pub(super) fn begin_errors(&self) {
        for kind in Kind::ALL {
            self.health.metrics().redis_errors.get_or_create_owned(&self.error_label(kind));
        }
    }

    fn error_label(&self, kind: Kind) -> ErrorLabel {
        ErrorLabel { target: self.node.target.clone(), kind: kind.as_str() }
    }

    /// The class of error by which keys are refused.
    pub(super) fn kind_of_refusal(&self) -> Kind {
        match (&self.away, &self.no_list) {
            (Some(_), _) => Kind::Slot,
            (None, Some(_)) => Kind::Unsupported,
            (None, None) => Kind::NoPerm,
        }
    }

    /// Redis refused `keys`, a part of the job's: its rules' sets take them, each with samples of
    /// its part; with none, if SCAN was refused.
    pub(super) fn refuse(
        &mut self,
        job: &mut Job,
        keys: &KeySet,
        samples: impl Fn(&KeySet) -> Option<Samples>,
    ) {
        let kind = self.kind_of_refusal();
        for (rule, _) in self.put_refused(job, keys, (samples, kind)) {
            self.say_refused(rule);
        }
    }

    /// Puts `keys`, a part of the job's, into the sets of their rules, for an error of this kind.
    /// Gives the part of each rule.
    pub(super) fn put_refused(
        &mut self,
        job: &mut Job,
        keys: &KeySet,
        (samples, kind): (impl Fn(&KeySet) -> Option<Samples>, Kind),
    ) -> Vec<(RuleId, KeySet)> {
        if job.comes_again() || keys.is_empty() {
            return Vec::new();
        }
        self.count_error(kind);
        let parts = keys.by_rule();
        for (rule, part) in parts.clone() {
            let (samples, now) = (samples(&part), Instant::now());
            let (hold, widened) = self.refusals.add((rule, part), job.covers, samples, now);
            self.refusals.join(rule, job.members.iter().filter_map(Member::part));
            let trail = self.health.trail();
            trail.refused(self.target, (rule, hold.number()), job.waited());
            self.hold(job.waits().also(hold));
            self.widened(&widened);
        }
        for member in &mut job.members {
            if let Member::Transaction { whole, .. } = member {
                *whole = false;
            }
        }
        parts
    }

    pub(super) fn refused_topic(&self, rule: RuleId) -> Topic {
        Topic::Refused(self.target, Arc::from(self.health.metrics().rule_name(rule)))
    }

    pub(super) fn say_refused(&self, rule: RuleId) {
        let (exact, patterns) = self.refusals.sizes(rule);
        let metrics = self.health.metrics();
        let (name, node) = (metrics.rule_name(rule), &self.node.node);
        if self.away.is_some() {
            let (title, topic) = (&self.title, self.refused_topic(rule));
            let waits = waits(exact, patterns, &format!(" of rule `{name}`"));
            let text = format!("a part of {title} is away: {waits} for it");
            return self.health.trouble(topic, &text, None);
        }
        if let Some(why) = self.no_list.as_ref().filter(|_| patterns > 0) {
            let text = format!(
                "{} at {node} gives no list of its keys ({why}): {} of rule `{name}` cannot be \
                 looked for, and wait",
                self.title,
                counted(patterns, "pattern")
            );
            let hint = "let `redis.url` name the servers themselves, with `mode = \"cluster\"` \
                        where they are one; `walsweep check` says more";
            return self.health.trouble(self.refused_topic(rule), &text, Some(hint));
        }
        let text = format!(
            "{} refuses to remove keys of rule `{name}` (NOPERM from {node}): {}",
            self.title,
            waits(exact, patterns, "")
        );
        let (empty, prefix) = (self.refill.empty_keys(), self.prefix.as_bytes().escape_ascii());
        let rights =
            each_once(empty.widest(rule).map(|key| format!("~{prefix}{}", key.escape_ascii())));
        let hint = format!(
            "`walsweep check` prints the whole `acl setuser` line for the user of `redis.url`; \
             these keys need {} +unlink +scan{}",
            rights.join(" "),
            if empty.widest_items(rule).is_empty() { "" } else { INSIDE_RIGHTS }
        );
        self.health.trouble(self.refused_topic(rule), &text, Some(&hint));
    }

    /// A part of the deployment is away, or not: what is there goes on.
    pub(super) async fn misses(&mut self, away: Option<String>) {
        if !self.connected {
            return;
        }
        let Some(text) = away else {
            // Slots may have got another primary: it shows its watermark before it counts.
            if self.away.is_some() {
                let message = "a part that was away is there again".to_owned();
                self.failed(&Error::Lost(message, Kind::Swapped)).await;
            }
            return;
        };
        if self.away.as_ref() == Some(&text) {
            return;
        }
        let was_there = self.away.is_none();
        self.say_misses(&text);
        self.away = Some(text);
        if was_there {
            // It may be another one already.
            self.next_alive = Instant::now();
            self.report(Event::RedisLost).await;
        }
    }

    pub(super) fn say_lost(&self, error: &Error) {
        if error.kind() == Kind::Auth {
            // The line that mends rights of a user who is gone makes one without a password.
            let topic = Topic::RedisChecks(self.target);
            self.health.forget(|told| *told == topic);
        }
        // Who has the login to mend need not look for a server that is down.
        let text = match error.kind() {
            Kind::Auth => format!("{} {REFUSES_LOGIN}; trying again: {error}", self.title),
            _ => format!("the connection to {} is lost; connecting again: {error}", self.title),
        };
        self.health.trouble(Topic::Redis(self.target), &text, error.hint());
    }

    pub(super) fn say_misses(&self, away: &str) {
        let text = format!("a part of {} is away, and its keys wait: {away}", self.title);
        self.health.trouble(Topic::Redis(self.target), &text, Some(PART_HINT));
        self.health.metrics().redis_up.get_or_create(&self.node).set(0);
    }
}

/// Rights in their order: several templates may give keys of one form, such as a key and a field.
fn each_once(rights: impl Iterator<Item = String>) -> Vec<String> {
    rights.fold(Vec::new(), |mut before, right| {
        if !before.contains(&right) {
            before.push(right);
        }
        before
    })
}

/// So many keys and patterns wait; none of a kind is not named.
fn waits(exact: usize, patterns: usize, of: &str) -> String {
    let counts = [(exact, "key"), (patterns, "pattern")].into_iter();
    let some: Vec<String> =
        counts.filter(|(count, _)| *count > 0).map(|(count, noun)| counted(count, noun)).collect();
    let verb = if exact + patterns == 1 { "waits" } else { "wait" };
    match some.is_empty() {
        true => format!("keys{of} wait"),
        false => format!("{}{of} {verb}", some.join(" and ")),
    }
}

#[cfg(test)]
mod tests {
    use super::{each_once, waits};

    #[test]
    fn a_right_that_several_templates_need_is_named_once() {
        let rights = ["~h:*", "~item:*", "~h:*"].map(str::to_owned);
        assert_eq!(each_once(rights.into_iter()), ["~h:*", "~item:*"]);
    }

    #[test]
    fn what_waits_is_counted_without_zeros() {
        for (exact, patterns, words) in [
            (1, 0, "1 key of it waits"),
            (2, 1, "2 keys and 1 pattern of it wait"),
            (0, 1, "1 pattern of it waits"),
            (0, 0, "keys of it wait"),
        ] {
            assert_eq!(waits(exact, patterns, " of it"), words);
        }
    }
}
