//! Troubles: what does not work, by what it is about, and when it is said.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::TargetId;
use crate::words::is_wall;

/// The rules' tables may stay unseen for so long: what is altered meanwhile leaves stale values
/// that no row tells of. A lock on the catalog, such as that of `VACUUM FULL pg_class`, is over by
/// then.
const UNSEEN_MAX: Duration = Duration::from_secs(60);

/// First distance between two log lines about the same trouble; each next one is twice as long.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Longest distance between two log lines about the same trouble.
const SAY_AGAIN_MAX: Duration = Duration::from_secs(600);

/// Different texts of one trouble that are logged at once: a text may be another one each time.
const TEXTS_MAX: usize = 5;

/// Words of a [`Topic::Redis`] whose server is there, and lets walsweep's user in no more.
pub const REFUSES_LOGIN: &str = "refuses walsweep's login";

/// The subject of a trouble. There is at most one trouble for each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// The session with Postgres cannot be had, does not answer, or ends again and again.
    Session,
    /// Another process has the slot, and no walsweep is behind it.
    Holder,
    /// The session stands, and the checks find what would refuse the next one.
    Checks,
    /// A rule that does not fit its table is suspended: its name.
    Rule(Arc<str>),
    /// A rule removes more than it should, and nothing stays: its name.
    Wide(Arc<str>),
    /// A target's Redis refuses removals of a rule: its name.
    Refused(TargetId, Arc<str>),
    /// A target's Redis does not do what is asked of it, for whichever rule.
    Redis(TargetId),
    /// The checks find something wrong with the Redis that is connected.
    RedisChecks(TargetId),
    /// A target's Redis is doubted again and again, and swept each time.
    Doubted(TargetId),
    /// Keys have waited for their removal from a target longer than they should.
    Late(TargetId),
    /// Keys of patterns wait longer than five seconds, because `sweep.max_load` allows no more.
    Throttled(TargetId),
    /// Keys are removed, and a target's Redis does not take the watermark, so that nothing is
    /// confirmed.
    Watermark(TargetId),
    /// A target's Redis does not take the messages that tell of removals.
    Publish(TargetId),
    /// A listed replica cannot be counted on: its address.
    Replica(Arc<str>),
    /// A sweep of everything waits for transactions that run.
    Fence,
    /// A lookup cannot be asked: its name.
    Lookup(Arc<str>),
    /// Whether a lookup fits its tables cannot be seen: its name.
    Untried(Arc<str>),
    /// The tables of the rules cannot be looked at.
    Watch,
    /// The slot keeps more WAL than it should, or is about to be lost.
    Slot,
    /// The slot has to go, and nothing shows that it is walsweep's.
    SlotOwner,
    /// A slot takes long to be created.
    NewSlot,
    /// The audit trail cannot be written.
    Audit,
    /// The configuration on disk is refused, and the one before stays in force.
    Reload,
}

impl Topic {
    /// Whether readers may see stale values for a trouble that has lasted so long, so that
    /// `/readyz` answers 503.
    pub(super) fn stops_ready(&self, lasted: Duration) -> bool {
        match self {
            Topic::Session
            | Topic::Holder
            | Topic::Checks
            | Topic::Rule(_)
            | Topic::Refused(..)
            | Topic::Redis(_)
            | Topic::RedisChecks(_)
            | Topic::Late(_) => true,
            Topic::Watch => lasted >= UNSEEN_MAX,
            Topic::Wide(_)
            | Topic::Replica(_)
            | Topic::Watermark(_)
            | Topic::Publish(_)
            | Topic::Throttled(_)
            | Topic::Fence
            | Topic::Lookup(_)
            | Topic::Untried(_)
            | Topic::Slot
            | Topic::SlotOwner
            | Topic::NewSlot
            | Topic::Doubted(_)
            | Topic::Reload
            | Topic::Audit => false,
        }
    }

    /// The target that it is of, if its sweeper tells of it.
    #[must_use]
    pub fn target(&self) -> Option<TargetId> {
        match self {
            Topic::Refused(target, _)
            | Topic::Redis(target)
            | Topic::Doubted(target)
            | Topic::Late(target)
            | Topic::Throttled(target)
            | Topic::Publish(target)
            | Topic::Watermark(target) => Some(*target),
            Topic::Session
            | Topic::Holder
            | Topic::Checks
            | Topic::Rule(_)
            | Topic::Wide(_)
            | Topic::RedisChecks(_)
            | Topic::Replica(_)
            | Topic::Fence
            | Topic::Lookup(_)
            | Topic::Untried(_)
            | Topic::Watch
            | Topic::Slot
            | Topic::NewSlot
            | Topic::SlotOwner
            | Topic::Reload
            | Topic::Audit => None,
        }
    }

    /// Whether keys are gone, and what was removed for them cannot be confirmed while it lasts.
    pub(super) fn holds_confirmation(&self) -> bool {
        matches!(self, Topic::Replica(_) | Topic::Refused(..) | Topic::Watermark(_))
    }
}

/// The way out of a trouble, as far as a person can do something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cure {
    /// The words for it.
    pub hint: Option<String>,
    /// The statements that do it, without the last semicolon.
    pub sql: Option<String>,
}

impl Cure {
    /// One in words alone, if there is one.
    #[must_use]
    pub fn of_words(hint: Option<&str>) -> Cure {
        Cure { hint: hint.map(str::to_owned), sql: None }
    }

    /// Its SQL, unless it is longer than a person reads.
    #[must_use]
    pub fn short_sql(&self) -> Option<&str> {
        self.sql.as_deref().filter(|sql| !is_wall(sql))
    }
}

/// Something that does not work.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) text: String,
    pub(super) cure: Cure,
    pub(super) since: Instant,
    /// The texts that were logged, without their numbers: one that counts is not new each second.
    pub(super) said: Vec<String>,
    /// The class of what refuses, if it is one: another class is another trouble.
    pub(super) kind: &'static str,
    /// When it is logged again.
    pub(super) again: Distance,
}

/// When something is said that was said before: at growing distances.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Distance {
    /// The time, and how far that is from the last one; `None` if it never was said.
    next: Option<(Instant, Duration)>,
}

impl Distance {
    /// Whether to say it now, as is then done.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let distance = match self.next {
            Some((at, _)) if at > now => return false,
            Some((_, distance)) => (distance * 2).min(SAY_AGAIN_MAX),
            None => SAY_AGAIN,
        };
        self.next = Some((now + distance, distance));
        true
    }
}

impl Trouble {
    /// Logs it, if this text is new; as a warning, unless it is what has to happen.
    pub(super) fn say(&mut self, is_intended: bool) {
        let words: String = self.text.chars().filter(|one| !one.is_ascii_digit()).collect();
        if self.said.len() < TEXTS_MAX && !self.said.contains(&words) {
            let (text, hint, sql) = (&self.text, self.cure.hint.as_deref(), self.cure.short_sql());
            if is_intended {
                tracing::info!(hint, sql, "{text}");
            } else {
                tracing::warn!(hint, sql, "{text}");
            }
            self.said.push(words);
        }
    }

    /// Whether it is of an error of a class, and not of this one.
    pub(super) fn is_of_another_kind(&self, kind: &str) -> bool {
        self.kind != kind && !self.kind.is_empty() && !kind.is_empty()
    }

    /// Logs that it is over, with how long it lasted.
    pub(super) fn say_over(&self) {
        let (text, seconds) = (&self.text, self.since.elapsed().as_secs_f64());
        tracing::info!("resolved after {seconds:.1} s: {text}");
    }

    /// Logs it again, if it is time.
    pub(super) fn say_again(&mut self, now: Instant) {
        if self.again.is_due(now) {
            let (text, hint, sql) = (&self.text, self.cure.hint.as_deref(), self.cure.short_sql());
            let seconds = (now - self.since).as_secs();
            tracing::warn!(hint, sql, "still, after {seconds} s: {text}");
        }
    }
}
