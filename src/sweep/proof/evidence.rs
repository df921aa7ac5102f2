//! The watermark key: the evidence in Redis that no removal was lost (I7).
//!
//! Redis replication, RDB files and the AOF keep a prefix of the commands. The watermark is written
//! after the removals that it covers are acknowledged, so a Redis that lost one of them, by
//! whatever way, has lost the watermark written after it too. What no watermark covers yet is
//! removed again after a lost connection; for one that stands there is the [`chain`](super::chain).
//! Pure: what to conclude from what was found; reading and writing is
//! [`Node`](crate::sweep::Node)'s.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::prints::{Doubt, Gap, Prints};
use crate::lsn::Lsn;

/// Own watermarks remembered: those of a minute, at one each 50 ms, with room to spare.
const MEMORY_MAX: usize = 2048;

/// Digests of fingerprints that a session remembers.
const RULES_MAX: usize = 32;

/// Name of the watermark key for a slot, in a target whose keys begin so.
#[must_use]
pub fn key_name(prefix: &str, slot: &str) -> String {
    format!("{prefix}walsweep:{slot}")
}

/// The contents of the watermark: up to where, on which history, by which rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// `system_identifier` of the Postgres cluster.
    pub system_id: String,
    /// Its timeline.
    pub timeline: u32,
    /// Text that tells one life of the server from the next, if it did not end in order between
    /// them: see `sql/identity.sql`. Empty in a value of a walsweep that did not know it.
    pub epoch: String,
    /// Every commit that ends here or before has had its keys removed.
    pub lsn: Lsn,
    /// Digest of the fingerprints of the rules, and of what else the promise depends on
    /// ([`Prints::digest`]). Values of older versions have a text here that is none.
    pub rules: String,
    /// Whether nothing showed whose the slot was when walsweep began to read it.
    pub of_stranger: bool,
    /// Whether it was written where a lost removal does not show, so that it is no evidence of any:
    /// an endpoint that hides several servers, or runs no scripts.
    pub is_unproven: bool,
}

/// The text form, JSON for whoever looks at it with `redis-cli`.
#[derive(Serialize, Deserialize)]
struct Text {
    system_id: String,
    timeline: u32,
    #[serde(default)]
    epoch: String,
    lsn: String,
    rules: String,
    #[serde(default, skip_serializing_if = "is_false")]
    of_stranger: bool,
    #[serde(default, rename = "unproven", skip_serializing_if = "is_false")]
    is_unproven: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Watermark {
    /// Says nothing of any slot.
    #[must_use]
    pub fn nowhere() -> Watermark {
        Watermark {
            system_id: String::new(),
            timeline: 0,
            epoch: String::new(),
            lsn: Lsn::ZERO,
            rules: String::new(),
            of_stranger: false,
            is_unproven: false,
        }
    }

    /// The value to store.
    #[must_use]
    pub fn to_value(&self) -> Vec<u8> {
        let text = Text {
            system_id: self.system_id.clone(),
            timeline: self.timeline,
            epoch: self.epoch.clone(),
            lsn: self.lsn.to_string(),
            rules: self.rules.clone(),
            of_stranger: self.of_stranger,
            is_unproven: self.is_unproven,
        };
        serde_json::to_vec(&text).expect("texts and a number are JSON")
    }

    /// Reads a stored value; `None` if it is not one of ours.
    #[must_use]
    pub fn from_value(value: &[u8]) -> Option<Watermark> {
        let text: Text = serde_json::from_slice(value).ok()?;
        let lsn = text.lsn.parse().ok()?;
        let Text { system_id, timeline, epoch, rules, of_stranger, is_unproven, .. } = text;
        Some(Watermark { system_id, timeline, epoch, lsn, rules, of_stranger, is_unproven })
    }

    /// Whether both are of the same history, wherever in it.
    fn is_of(&self, other: &Watermark) -> bool {
        self.system_id == other.system_id
            && self.timeline == other.timeline
            && self.epoch == other.epoch
    }
}

/// Why a change may have been missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// No watermark: a first start, or a Redis that is empty or older than the first one.
    WatermarkMissing,
    /// Something that is not a watermark stands under its name.
    WatermarkForeign,
    /// The watermark is older than what Postgres was told: Redis went back, or the slot is new.
    WatermarkBehind,
    /// The watermark was written for another Postgres cluster.
    OtherSystem,
    /// The watermark was written on another timeline: commits of it may no longer exist.
    OtherTimeline,
    /// The server did not end in order since the watermark was written: commits that did not wait
    /// for the disk may be lost, though readers saw them.
    UncleanRestart,
    /// The watermark is ahead of the server's log: that log is not the one it was written for.
    WatermarkAhead,
    /// The watermark was written under other rules.
    OtherRules,
    /// Readers may use a standby that the watermark did not wait for.
    OtherReplicas,
    /// The rules' tables, or what is published of them, are not what they were; or a rule is
    /// suspended, or was.
    TablesChanged,
    /// The value that we wrote last no longer stands.
    WatermarkLost,
    /// The watermark is, or was, where a lost removal does not show.
    Unproven,
    /// The slot was created anew.
    SlotCreated,
    /// The slot was dropped on purpose, because it kept more WAL than `max_retained_wal`.
    RetainedWal,
    /// The slot was dropped on purpose, because the server could not decode what it held.
    SlotUndecodable,
}

impl Broken {
    /// The label of `walsweep_resyncs_total`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Broken::WatermarkMissing => "watermark_missing",
            Broken::WatermarkForeign => "watermark_foreign",
            Broken::WatermarkBehind => "watermark_behind",
            Broken::OtherSystem => "other_system",
            Broken::OtherTimeline => "other_timeline",
            Broken::UncleanRestart => "unclean_restart",
            Broken::WatermarkAhead => "watermark_ahead",
            Broken::OtherRules => "other_rules",
            Broken::OtherReplicas => "other_replicas",
            Broken::TablesChanged => "tables_changed",
            Broken::WatermarkLost => "watermark_lost",
            Broken::Unproven => "unproven",
            Broken::SlotCreated => "slot_created",
            Broken::RetainedWal => "retained_wal",
            Broken::SlotUndecodable => "slot_undecodable",
        }
    }

    /// Why, in words.
    #[must_use]
    pub fn told(self) -> &'static str {
        match self {
            Broken::WatermarkMissing => {
                "walsweep's watermark key is not in redis, as before a first start"
            }
            Broken::WatermarkForeign => {
                "the key of walsweep's watermark in redis holds something else"
            }
            Broken::WatermarkBehind => "redis lost removals, or the slot is another one",
            Broken::OtherSystem => "the watermark is of another postgres cluster",
            Broken::OtherTimeline => "the watermark is of another timeline",
            Broken::UncleanRestart => "postgres did not shut down in order since the last removal",
            Broken::WatermarkAhead => "the watermark is ahead of the server's log",
            Broken::OtherRules => "the watermark is of other rules, and does not tell which",
            Broken::OtherReplicas => {
                "`postgres.replicas` names a standby that was not waited for: its readers may have \
                 cached older rows"
            }
            Broken::TablesChanged => "the rules' tables are not what they were",
            Broken::WatermarkLost => "redis lost the watermark",
            Broken::Unproven => "nothing shows that redis kept every removal",
            Broken::SlotCreated => "the slot is new",
            Broken::RetainedWal => "the slot kept too much WAL",
            Broken::SlotUndecodable => "the server could not decode what the slot held",
        }
    }

    /// Whether a commit from before the stream may still be invisible, so that the sweep comes too
    /// early for it.
    ///
    /// Once a watermark of this session stands, every commit below it that has keys went through
    /// the gate, under these rules: one that is lost needs no fence. Nor does one that says as much
    /// of the commits, and nothing of Redis. Every other reason does.
    /// Without a watermark, with a foreign one, one that is behind or one of another history,
    /// nothing tells who moved the slot to where it is, and whether visibility was waited for. A
    /// new slot begins behind whatever is committed and invisible. Where rules or tables are others
    /// than those that the watermark was written for, commits passed as if they had no keys, and
    /// what has none does not wait at the gate. Of a table that was altered that is not so; but the
    /// same reason stands for one that was not published for a while, and nothing was told of its
    /// commits.
    #[must_use]
    pub fn is_fenced(self) -> bool {
        match self {
            Broken::WatermarkLost | Broken::Unproven => false,
            Broken::WatermarkMissing
            | Broken::WatermarkForeign
            | Broken::WatermarkBehind
            | Broken::OtherSystem
            | Broken::OtherTimeline
            | Broken::UncleanRestart
            | Broken::WatermarkAhead
            | Broken::OtherRules
            | Broken::OtherReplicas
            | Broken::TablesChanged
            | Broken::SlotCreated
            | Broken::RetainedWal
            | Broken::SlotUndecodable => true,
        }
    }
}

/// Judges the history that a new session finds. `expected` has the slot's `confirmed_flush_lsn` as
/// its LSN, the server's log ends at `wal_end`. Which rules it was written under is another matter:
/// [`under`].
///
/// # Errors
///
/// Why everything must be swept.
pub(in crate::sweep) fn at_start(
    found: Option<&[u8]>,
    expected: &Watermark,
    wal_end: Lsn,
) -> Result<Watermark, Broken> {
    let found = found.ok_or(Broken::WatermarkMissing)?;
    let found = Watermark::from_value(found).ok_or(Broken::WatermarkForeign)?;
    if found.system_id != expected.system_id {
        Err(Broken::OtherSystem)
    } else if found.timeline != expected.timeline {
        Err(Broken::OtherTimeline)
    } else if found.epoch != expected.epoch {
        Err(Broken::UncleanRestart)
    } else if found.lsn < expected.lsn {
        Err(Broken::WatermarkBehind)
    } else if found.lsn > wal_end {
        Err(Broken::WatermarkAhead)
    } else {
        Ok(found)
    }
}

/// Says what is in doubt of what a watermark covers, now that `prints` hold, which have the digest
/// of `expected`. `details` are the fingerprints that it was written under, if they could be read.
pub(in crate::sweep) fn under(
    (found, details): (&Watermark, Option<&[u8]>),
    (expected, prints): (&Watermark, &Prints),
) -> Doubt {
    if found.rules == expected.rules {
        return Doubt::none();
    }
    match details.and_then(|value| Prints::from_value(value, &found.rules)) {
        Some(before) => prints.since(&before, Gap::Watermark),
        None => Doubt::Everything(Broken::OtherRules),
    }
}

/// A session's memory of its own watermarks.
pub(in crate::sweep) struct Memory {
    /// LSNs of the values that stood as good evidence in this session, oldest first.
    lsns: VecDeque<Lsn>,
    /// Digests of the fingerprints that they were written under. Each is as good as the next: none
    /// put a key in doubt.
    rules: Vec<String>,
}

impl Memory {
    pub(in crate::sweep) fn new() -> Memory {
        Memory { lsns: VecDeque::new(), rules: Vec::new() }
    }

    /// The watermark stood at `lsn`, written under `rules`.
    pub(in crate::sweep) fn add(&mut self, lsn: Lsn, rules: &str) {
        if self.rules.last().is_none_or(|last| last != rules) {
            self.rules.push(rules.to_owned());
            // So often tables are altered in a minute. What is forgotten is swept.
            let more = self.rules.len().saturating_sub(RULES_MAX);
            self.rules.drain(..more);
        }
        self.lsns.push_back(lsn);
        if self.lsns.len() > MEMORY_MAX {
            self.lsns.pop_front();
        }
    }

    /// Up to where a Redis that shows `found` has kept its removals, if `found` is a value of this
    /// session that is not below `floor`, from where on every removal can be repeated. A value that
    /// the session never wrote, older or newer, is evidence of nothing.
    pub(in crate::sweep) fn went_back_to(
        &self,
        found: Option<&[u8]>,
        expected: &Watermark,
        floor: Lsn,
    ) -> Option<Lsn> {
        let found = Watermark::from_value(found?)?;
        let is_ours = found.is_of(expected)
            && self.rules.contains(&found.rules)
            && self.lsns.contains(&found.lsn);
        (is_ours && found.lsn >= floor).then_some(found.lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::{Broken, MEMORY_MAX, Memory, Watermark, at_start};
    use crate::lsn::Lsn;

    fn watermark(lsn: u64) -> Watermark {
        let (system_id, epoch, rules) = ("71".into(), "e1".into(), "abc".into());
        let (of_stranger, is_unproven, lsn) = (false, false, Lsn(lsn));
        Watermark { system_id, timeline: 2, epoch, lsn, rules, of_stranger, is_unproven }
    }

    #[test]
    fn unbroken_history_is_the_only_one_not_swept() {
        let expected = watermark(100);
        let other = |change: fn(&mut Watermark)| {
            let mut other = watermark(100);
            change(&mut other);
            other.to_value()
        };
        // As a version wrote it that knew no epoch.
        let without_epoch =
            br#"{"system_id":"71","timeline":2,"lsn":"0/64","rules":"abc"}"#.to_vec();
        let of_stranger = Watermark { of_stranger: true, ..watermark(100) };
        assert_eq!(Watermark::from_value(&of_stranger.to_value()), Some(of_stranger.clone()));
        let unproven = Watermark { is_unproven: true, ..watermark(100) };
        assert!(unproven.to_value().ends_with(b",\"unproven\":true}"));
        assert_eq!(Watermark::from_value(&unproven.to_value()), Some(unproven));
        assert!(!watermark(100).to_value().ends_with(b"true}"), "an ordinary one does not say it");
        let rows = [
            (Some(of_stranger.to_value()), Ok(Lsn(100))),
            (Some(watermark(100).to_value()), Ok(Lsn(100))),
            (Some(watermark(101).to_value()), Ok(Lsn(101))),
            (Some(watermark(99).to_value()), Err(Broken::WatermarkBehind)),
            (None, Err(Broken::WatermarkMissing)),
            (Some(b"hello".to_vec()), Err(Broken::WatermarkForeign)),
            (Some(b"{}".to_vec()), Err(Broken::WatermarkForeign)),
            (Some(other(|mark| mark.system_id = "72".into())), Err(Broken::OtherSystem)),
            (Some(other(|mark| mark.timeline = 1)), Err(Broken::OtherTimeline)),
            (Some(other(|mark| mark.epoch = "e2".into())), Err(Broken::UncleanRestart)),
            (Some(without_epoch), Err(Broken::UncleanRestart)),
            (Some(watermark(500).to_value()), Ok(Lsn(500))),
            (Some(watermark(501).to_value()), Err(Broken::WatermarkAhead)),
            // Of other rules; as an older version wrote it.
            (Some(other(|mark| mark.rules = "abd".into())), Ok(Lsn(100))),
            (Some(other(|mark| mark.rules = "abc tables:1".into())), Ok(Lsn(100))),
        ];
        for (found, conclusion) in rows {
            let judged = at_start(found.as_deref(), &expected, Lsn(500)).map(|mark| mark.lsn);
            assert_eq!(judged, conclusion, "{found:?}");
        }
    }

    #[test]
    fn redis_went_back_only_to_a_value_of_this_session_above_the_floor() {
        let expected = watermark(100);
        let mut memory = Memory::new();
        memory.add(Lsn(90), "abb");
        [100, 110, 130].into_iter().for_each(|lsn| memory.add(Lsn(lsn), "abc"));
        let before = Watermark { rules: "abb".into(), ..watermark(130) };
        let other_rules = Watermark { rules: "abd".into(), ..watermark(130) };
        let other_epoch = Watermark { epoch: "e2".into(), ..watermark(130) };
        let rows = [
            (Some(watermark(130).to_value()), Some(Lsn(130))),
            (Some(watermark(110).to_value()), Some(Lsn(110))),
            (Some(watermark(100).to_value()), None),
            (Some(watermark(120).to_value()), None),
            (Some(watermark(140).to_value()), None),
            (Some(before.to_value()), Some(Lsn(130))),
            (Some(other_rules.to_value()), None),
            (Some(other_epoch.to_value()), None),
            (Some(b"hello".to_vec()), None),
            (None, None),
        ];
        for (found, lsn) in rows {
            let back = memory.went_back_to(found.as_deref(), &expected, Lsn(110));
            assert_eq!(back, lsn, "{found:?}");
        }
        (0..MEMORY_MAX as u64).for_each(|lsn| memory.add(Lsn(200 + lsn), "abc"));
        let found = watermark(130).to_value();
        assert_eq!(memory.went_back_to(Some(&found), &expected, Lsn(110)), None, "forgotten");
    }

    #[test]
    fn a_value_reads_back_as_written() {
        let mark = watermark(0x16_B374_D848);
        assert_eq!(Watermark::from_value(&mark.to_value()), Some(mark));
    }
}
