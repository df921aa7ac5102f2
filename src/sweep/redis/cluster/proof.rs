//! The watermarks of a cluster's primaries.
//!
//! All have the same value, but for the slots that each says to be about. To whoever judges them
//! they are one: the worst of them, which is none as soon as a primary has a slot that its
//! watermark is not about.

use futures_util::future::join_all;

use super::map::{Map, Member};
use super::{Cluster, Shard, Shards};
use crate::sweep::proof::evidence::Watermark;
use crate::sweep::redis::node::{Error, Kind, Node, Replaced};
use crate::sweep::redis::slots::Slots;
use crate::sweep::redis::standalone::details_key;
use crate::sweep::shared::digest_of;

/// It stands between a watermark and the slots that it is about.
const SLOTS: &str = ",\"slots\":\"";

/// It stands between these and the history of the primary that it was written to.
const HISTORY: &str = "\",\"history\":\"";

/// It stands behind that.
const END: &str = "\"}";

/// A watermark that was found, the slots of its primary, and the histories that this one has had.
/// The slot of a watermark may have gone to another primary, with the watermark and without the
/// keys that it is about: it is evidence only where its history is known.
pub(super) struct Value {
    pub(super) found: Option<Vec<u8>>,
    pub(super) slots: Slots,
    pub(super) histories: Vec<String>,
}

/// A watermark about these slots, for a primary of this history.
pub(super) fn about(slots: &Slots, history: &str, value: &[u8]) -> Vec<u8> {
    let value = value.strip_suffix(b"}").unwrap_or(value);
    [value, format!("{SLOTS}{slots}{HISTORY}{history}{END}").as_bytes()].concat()
}

/// A watermark by itself, the slots that it is about, and the history; a value that names none is
/// about none.
pub(super) fn split(found: &[u8]) -> (Vec<u8>, Slots, String) {
    let parts = std::str::from_utf8(found).ok().and_then(|text| {
        let (value, rest) = text.strip_suffix(END)?.rsplit_once(SLOTS)?;
        let (slots, history) = rest.split_once(HISTORY)?;
        Some((format!("{value}}}").into_bytes(), Slots::parse(slots)?, history.to_owned()))
    });
    parts.unwrap_or_else(|| (found.to_vec(), Slots::default(), String::new()))
}

/// The value that all of them are at least as good as; `None` where a slot has no watermark, or
/// where it cannot be told which is worse.
pub(super) fn worst(values: Vec<Value>) -> Option<Vec<u8>> {
    let mut worst: Option<(Watermark, Vec<u8>)> = None;
    for Value { found, slots, histories } in values {
        let (value, about, history) = split(&found?);
        if !slots.without(&about).is_empty() || !histories.contains(&history) {
            return None;
        }
        let Some(mark) = Watermark::from_value(&value) else { return Some(value) };
        match &worst {
            None => worst = Some((mark, value)),
            Some((_, other)) if *other == value => {}
            Some((other, _)) if mark.lsn < other.lsn => worst = Some((mark, value)),
            Some((other, _)) if mark.lsn > other.lsn => {}
            Some(_) => return None,
        }
    }
    worst.map(|(_, value)| value)
}

/// Whether what is known of slots holds where they have gone. A replica that takes the place of its
/// primary takes all of its slots, and may lack removals. So slots came over, with all that was
/// removed, if whoever had them is still a primary; and has some, unless they came to one that had
/// some before.
///
/// # Errors
///
/// Otherwise.
pub(super) fn follows(before: &Map, now: &Map) -> Result<(), Error> {
    let swapped = |message: &str| Err(Error::new(Kind::Swapped, message.to_owned()));
    for (other, was) in &before.primaries {
        let gave =
            |one: &Member| one.id != *other && one.slots.iter().any(|slot| was.slots.has(slot));
        for one in now.primaries.values().filter(|one| gave(one)) {
            if !now.primaries.contains_key(other) {
                return swapped("a primary gave slots away, and is none any more");
            }
            if !before.has_slots(&one.id) && !now.has_slots(other) {
                return swapped(
                    "all slots of a primary are with another one, which may be its replica of \
                     before",
                );
            }
        }
    }
    Ok(())
}

impl Cluster {
    /// Writes the watermark of every primary; says whether each had the one that was believed to
    /// stand there.
    pub(super) async fn write_all(&self, shards: &Shards, value: &[u8]) -> Result<bool, Error> {
        let each = shards.by_id.iter();
        let each = each.filter_map(|(id, shard)| Some((shards.map.primaries.get(id)?, shard)));
        let writes = each.map(|(primary, shard)| async move {
            let written = self.write(shards, (primary, shard), value).await;
            written.map_err(|error| match error.kind() {
                // Not away: its slot is elsewhere.
                Kind::Slot => error,
                _ => self.lose(shard, error),
            })
        });
        let mut is_everywhere = true;
        for outcome in join_all(writes).await {
            is_everywhere &= outcome?;
        }
        Ok(is_everywhere)
    }

    /// Writes a primary's watermark where the one stands that is believed to; says whether it did.
    pub(super) async fn write(
        &self,
        shards: &Shards,
        (primary, shard): (&Member, &Shard),
        value: &[u8],
    ) -> Result<bool, Error> {
        let (names, before) = (self.names(primary), shard.node.names());
        let has_moved = names != before;
        if has_moved || !shard.node.is_counted() {
            let found = shard.node.rename(names).await?;
            shard.standing.replace(found);
        }
        let expected = shard.standing.borrow().clone();
        let value = about(&primary.slots, &shard.node.history().unwrap_or_default(), value);
        match shard.node.replace_watermark(expected.as_deref(), &value).await? {
            Replaced::Yes => {
                shard.standing.replace(Some(value));
            }
            Replaced::No(found) => {
                shard.standing.replace(found);
                return Ok(false);
            }
        }
        let is_free = || !shards.map.primaries.values().any(|one| self.names(one) == before);
        if has_moved && is_free() {
            // What is left under the name of before tells nothing any more, wherever it is now.
            let digest = expected.as_deref().and_then(|value| digest_of(&split(value).0));
            let details = digest.map(|digest| details_key(&before.watermark, &digest));
            let names = [Some(before.watermark), Some(before.number), details];
            let names: Vec<&[u8]> = names.iter().flatten().map(String::as_bytes).collect();
            drop(self.unlink_names(&names).await);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::map::members;
    use super::{Map, Slots, Value, about, follows, split, worst};
    use crate::lsn::Lsn;
    use crate::sweep::proof::evidence::Watermark;

    fn mark(lsn: u64) -> Vec<u8> {
        let (system_id, epoch, rules) = ("71".into(), "e1".into(), "abc".into());
        let (lsn, of_stranger, is_unproven) = (Lsn(lsn), false, false);
        let timeline = 2;
        Watermark { system_id, timeline, epoch, lsn, rules, of_stranger, is_unproven }.to_value()
    }

    fn value(found: Option<(u64, &str)>, slots: &str) -> Value {
        let found =
            found.map(|(lsn, slots)| about(&Slots::parse(slots).unwrap(), "h1", &mark(lsn)));
        let histories = ["h2", "h1"].map(str::to_owned).to_vec();
        Value { found, slots: Slots::parse(slots).unwrap(), histories }
    }

    #[test]
    fn a_watermark_carries_its_slots() {
        let slots = Slots::parse("0-5,9").unwrap();
        let found = about(&slots, "h1", &mark(7));
        assert!(found.ends_with(b",\"slots\":\"0-5,9\",\"history\":\"h1\"}"));
        assert!(Watermark::from_value(&found).is_some(), "it reads as one with its slots, too");
        assert_eq!(split(&found), (mark(7), slots, "h1".to_owned()));
        for other in [&b"hello"[..], b"{}", &mark(7)] {
            assert_eq!(split(other), (other.to_vec(), Slots::default(), String::new()));
        }
    }

    #[test]
    fn the_worst_watermark_stands_for_all() {
        let one = || value(Some((9, "0-5")), "0-5");
        assert_eq!(worst(vec![one(), value(Some((9, "6-9")), "6-9")]), Some(mark(9)));
        assert_eq!(worst(vec![value(Some((7, "6-9")), "6-9"), one()]), Some(mark(7)));
        assert_eq!(worst(vec![one(), value(Some((7, "6-9")), "6-9")]), Some(mark(7)));
        // One slot less than before is covered; one more is not.
        assert_eq!(worst(vec![one(), value(Some((9, "5-9")), "6-9")]), Some(mark(9)));
        assert_eq!(worst(vec![one(), value(Some((9, "7-9")), "6-9")]), None);
        assert_eq!(worst(vec![one(), value(None, "6-9")]), None);
        // As a version wrote it that knew no cluster, or somebody else.
        let foreign = Value { found: Some(mark(9)), ..value(None, "6-9") };
        assert_eq!(worst(vec![one(), foreign]), None);
        // It came with its slot from a primary of another history, before the keys did.
        let travelled = Value { histories: vec!["h3".to_owned()], ..one() };
        assert_eq!(worst(vec![travelled]), None);
    }

    #[test]
    fn a_proof_follows_slots_from_primary_to_primary_and_no_further() {
        let map = |lines: &str| Map::of(&[members(lines, "h")]);
        let line = |id: &str, flags: &str, slots: &str| {
            format!("{id} 1.1.1.1:1@2 {flags} - 0 0 1 connected {slots}\n")
        };
        let [low, high] = ["0-9999", "10000-16383"];
        let before = map(&[
            line("a", "master", low),
            line("b", "master", high),
            line("c", "master", ""),
            line("d", "slave", ""),
        ]
        .concat());
        let now = |lines: &[String]| follows(&before, &map(&lines.concat()));
        let [keeps_low, keeps_high] = [line("a", "master", low), line("b", "master", high)];
        assert!(now(&[keeps_low, keeps_high.clone()]).is_ok());
        let part = line("a", "master", "5-9999");
        assert!(now(&[part.clone(), line("b", "master", "0-4 10000-16383")]).is_ok());
        let first = line("c", "master", "0-4");
        assert!(now(&[part.clone(), keeps_high.clone(), first]).is_ok(), "its first slots");
        let new = line("e", "master", "0-4");
        assert!(now(&[part, keeps_high.clone(), new]).is_ok(), "a node that has just joined");
        let last = [line("a", "slave", ""), line("b", "master", "0-16383")];
        assert!(now(&last).is_err(), "it may have been taken over before it gave them");
        let promoted = line("d", "master", low);
        assert!(now(&[keeps_high.clone(), promoted.clone()]).is_err(), "it may lack removals");
        // Whoever was frozen meanwhile takes itself for the primary for a while.
        assert!(now(&[line("a", "master", ""), keeps_high, promoted]).is_err());
    }
}
