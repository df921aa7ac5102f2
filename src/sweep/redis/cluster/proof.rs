//! The watermarks of a cluster's primaries.
//!
//! All have the same value, but for the slots that each says to be about. To whoever judges them
//! they are one: the worst of them, which is none as soon as a primary has a slot that its
//! watermark is not about.

use futures_util::future::join_all;

use super::map::{Map, Member};
use super::slots::Slots;
use super::{Cluster, Shard, Shards};
use crate::sweep::proof::evidence::Watermark;
use crate::sweep::redis::node::{Error, Kind, Node, Replaced};

/// It stands between a watermark and the slots that it is about.
const SLOTS: &[u8] = b",\"slots\":\"";

/// It stands behind them.
const END: &[u8] = b"\"}";

/// A watermark that was found, and the slots that its primary has.
pub(super) struct Value {
    pub(super) found: Option<Vec<u8>>,
    pub(super) slots: Slots,
}

/// A watermark about these slots.
pub(super) fn about(slots: &Slots, value: &[u8]) -> Vec<u8> {
    let value = value.strip_suffix(b"}").unwrap_or(value);
    [value, SLOTS, slots.to_string().as_bytes(), END].concat()
}

/// A watermark without the slots that it is about, and these; a value without any is about none.
pub(super) fn split(found: &[u8]) -> (Vec<u8>, Slots) {
    let at = found.windows(SLOTS.len()).rposition(|part| part == SLOTS);
    let parts = at.and_then(|at| {
        let (value, rest) = (found.get(..at)?, found.get(at + SLOTS.len()..)?);
        let slots = std::str::from_utf8(rest.strip_suffix(END)?).ok()?;
        Some(([value, b"}"].concat(), Slots::parse(slots)?))
    });
    parts.unwrap_or_else(|| (found.to_vec(), Slots::default()))
}

/// The value that all of them are at least as good as; `None` where a slot has no watermark, or
/// where it cannot be told which is worse.
pub(super) fn worst(values: Vec<Value>) -> Option<Vec<u8>> {
    let mut worst: Option<(Watermark, Vec<u8>)> = None;
    for Value { found, slots } in values {
        let (value, about) = split(&found?);
        if !slots.without(&about).is_empty() {
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
/// removed, if they came to a primary that had some before, or from one that still has some.
///
/// # Errors
///
/// Otherwise.
pub(super) fn follows(before: &Map, now: &Map) -> Result<(), Error> {
    let has_slots =
        |map: &Map, id: &String| map.primaries.get(id).is_some_and(|one| !one.slots.is_empty());
    for (id, primary) in now.primaries.iter().filter(|(id, _)| !has_slots(before, id)) {
        for (other, was) in &before.primaries {
            let gave = other != id && primary.slots.iter().any(|slot| was.slots.has(slot));
            if gave && !has_slots(now, other) {
                let message = "all slots of a primary are with another one, which may be its \
                               replica of before";
                return Err(Error::new(Kind::Swapped, message.to_owned()));
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
        let value = about(&primary.slots, value);
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
            let names = [before.watermark.as_bytes(), before.number.as_bytes()];
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
        let lsn = Lsn(lsn);
        Watermark { system_id, timeline: 2, epoch, lsn, rules, of_stranger: false }.to_value()
    }

    fn value(found: Option<(u64, &str)>, slots: &str) -> Value {
        let found =
            found.map(|(lsn, about_slots)| about(&Slots::parse(about_slots).unwrap(), &mark(lsn)));
        Value { found, slots: Slots::parse(slots).unwrap() }
    }

    #[test]
    fn a_watermark_carries_its_slots() {
        let slots = Slots::parse("0-5,9").unwrap();
        let found = about(&slots, &mark(7));
        assert!(found.ends_with(b",\"slots\":\"0-5,9\"}"));
        assert!(Watermark::from_value(&found).is_some(), "it reads as one with its slots, too");
        assert_eq!(split(&found), (mark(7), slots));
        for other in [&b"hello"[..], b"{}", &mark(7)] {
            assert_eq!(split(other), (other.to_vec(), Slots::default()));
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
        let foreign = Value { found: Some(mark(9)), slots: Slots::range(6, 9) };
        assert_eq!(worst(vec![one(), foreign]), None);
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
        assert!(now(&last).is_ok(), "the last slots of one that is about to leave");
        let promoted = line("d", "master", low);
        assert!(now(&[keeps_high.clone(), promoted.clone()]).is_err(), "it may lack removals");
        // Whoever was frozen meanwhile takes itself for the primary for a while.
        assert!(now(&[line("a", "master", ""), keeps_high, promoted]).is_err());
    }
}
