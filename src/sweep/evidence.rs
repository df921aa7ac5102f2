//! The watermark key: the evidence in Redis that no removal was lost (I7).
//!
//! Redis replication, RDB files and the AOF keep a prefix of the commands. The watermark is written
//! after the removals that it covers are acknowledged, so a Redis that lost one of them, by
//! whatever way, has lost the watermark written after it too. Pure: what to conclude from what was
//! found; reading and writing is [`Node`](super::Node)'s.

use serde::{Deserialize, Serialize};

use crate::lsn::Lsn;

/// Name of the watermark key for a slot.
#[must_use]
pub fn key_name(slot: &str) -> String {
    format!("walsweep:{slot}")
}

/// What the watermark says: up to where, on which history, by which rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// `system_identifier` of the Postgres cluster.
    pub system_id: String,
    /// Its timeline.
    pub timeline: u32,
    /// Every commit that ends here or before has had its keys removed.
    pub lsn: Lsn,
    /// Fingerprint of the rules.
    pub rules: String,
}

/// The text form, JSON for whoever looks at it with `redis-cli`.
#[derive(Serialize, Deserialize)]
struct Text {
    system_id: String,
    timeline: u32,
    lsn: String,
    rules: String,
}

impl Watermark {
    /// The value to store.
    #[must_use]
    pub fn to_value(&self) -> Vec<u8> {
        let text = Text {
            system_id: self.system_id.clone(),
            timeline: self.timeline,
            lsn: self.lsn.to_string(),
            rules: self.rules.clone(),
        };
        serde_json::to_vec(&text).expect("texts and a number are JSON")
    }

    /// Reads a stored value; `None` if it is not one of ours.
    #[must_use]
    pub fn from_value(value: &[u8]) -> Option<Watermark> {
        let text: Text = serde_json::from_slice(value).ok()?;
        let lsn = text.lsn.parse().ok()?;
        let Text { system_id, timeline, rules, .. } = text;
        Some(Watermark { system_id, timeline, lsn, rules })
    }
}

/// Why history is not shown to be unbroken.
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
    /// The watermark was written under other rules.
    OtherRules,
    /// The value that we wrote last no longer stands.
    WatermarkLost,
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
            Broken::OtherRules => "other_rules",
            Broken::WatermarkLost => "watermark_lost",
            Broken::SlotCreated => "slot_created",
            Broken::RetainedWal => "retained_wal",
            Broken::SlotUndecodable => "slot_undecodable",
        }
    }

    /// Whether a commit from before the stream may still be invisible. Once a watermark of this
    /// session stands, every commit below it went through the gate.
    #[must_use]
    pub fn is_fenced(self) -> bool {
        self != Broken::WatermarkLost
    }
}

/// Judges what a new session finds. `expected` has the slot's `confirmed_flush_lsn` as its LSN.
///
/// # Errors
///
/// Why everything must be swept.
pub(super) fn at_start(found: Option<&[u8]>, expected: &Watermark) -> Result<Watermark, Broken> {
    let found = found.ok_or(Broken::WatermarkMissing)?;
    let found = Watermark::from_value(found).ok_or(Broken::WatermarkForeign)?;
    if found.system_id != expected.system_id {
        Err(Broken::OtherSystem)
    } else if found.timeline != expected.timeline {
        Err(Broken::OtherTimeline)
    } else if found.lsn < expected.lsn {
        Err(Broken::WatermarkBehind)
    } else if found.rules != expected.rules {
        Err(Broken::OtherRules)
    } else {
        Ok(found)
    }
}

/// Judges what is found after the connection to Redis was lost within a session: `written` is the
/// value acknowledged last, `attempted` one whose acknowledgement was lost with the connection.
///
/// # Errors
///
/// Why everything must be swept.
pub(super) fn after_reconnect(
    found: Option<&[u8]>,
    written: &[u8],
    attempted: Option<&[u8]>,
) -> Result<(), Broken> {
    match found {
        Some(found) if found == written || attempted == Some(found) => Ok(()),
        _ => Err(Broken::WatermarkLost),
    }
}

#[cfg(test)]
mod tests {
    use super::{Broken, Watermark, after_reconnect, at_start};
    use crate::lsn::Lsn;

    fn watermark(lsn: u64) -> Watermark {
        Watermark { system_id: "71".into(), timeline: 2, lsn: Lsn(lsn), rules: "abc".into() }
    }

    #[test]
    fn unbroken_history_is_the_only_one_not_swept() {
        let expected = watermark(100);
        let other = |change: fn(&mut Watermark)| {
            let mut other = watermark(100);
            change(&mut other);
            other.to_value()
        };
        let rows = [
            (Some(watermark(100).to_value()), Ok(Lsn(100))),
            (Some(watermark(101).to_value()), Ok(Lsn(101))),
            (Some(watermark(99).to_value()), Err(Broken::WatermarkBehind)),
            (None, Err(Broken::WatermarkMissing)),
            (Some(b"hello".to_vec()), Err(Broken::WatermarkForeign)),
            (Some(b"{}".to_vec()), Err(Broken::WatermarkForeign)),
            (Some(other(|mark| mark.system_id = "72".into())), Err(Broken::OtherSystem)),
            (Some(other(|mark| mark.timeline = 1)), Err(Broken::OtherTimeline)),
            (Some(other(|mark| mark.rules = "abd".into())), Err(Broken::OtherRules)),
        ];
        for (found, conclusion) in rows {
            let judged = at_start(found.as_deref(), &expected).map(|mark| mark.lsn);
            assert_eq!(judged, conclusion, "{found:?}");
        }
    }

    #[test]
    fn only_the_last_written_or_attempted_value_survives_a_reconnect() {
        let rows = [
            (Some(b"w".as_slice()), Ok(())),
            (Some(b"a"), Ok(())),
            (Some(b"older"), Err(Broken::WatermarkLost)),
            (None, Err(Broken::WatermarkLost)),
        ];
        for (found, conclusion) in rows {
            assert_eq!(after_reconnect(found, b"w", Some(b"a")), conclusion, "{found:?}");
        }
        assert_eq!(after_reconnect(Some(b"a"), b"w", None), Err(Broken::WatermarkLost));
    }

    #[test]
    fn a_value_reads_back_as_written() {
        let mark = watermark(0x16_B374_D848);
        assert_eq!(Watermark::from_value(&mark.to_value()), Some(mark));
    }
}
