//! Recent removals that the watermark covers, for a Redis that goes back (I7).
//!
//! A promoted replica or a restored file holds a prefix of the commands, and the watermark that
//! survived says which: every removal up to its LSN is in it. So what is above has to be removed
//! again, and nothing else, as long as all of it is still here. What is dropped raises the floor;
//! below the floor everything must be swept.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::keys::KeySet;
use crate::lsn::Lsn;

/// How long a removal is kept: longer than a failover takes by Redis Sentinel's defaults (30 s to
/// take a primary for dead), far longer than a replica lags or an AOF waits for the disk (1 s).
const AGE_MAX: Duration = Duration::from_secs(60);

/// Covered key sets, oldest first, each with the furthest end LSN that it was removed for.
pub(in crate::sweep) struct Ring {
    sets: VecDeque<Set>,
    bytes: usize,
    /// Memory for them, bytes (I6): where one target has all of it, some 40 000 keys. A sweep of
    /// everything costs the same as removing a few hundred thousand.
    bytes_max: usize,
    floor: Lsn,
}

struct Set {
    covers: Lsn,
    keys: KeySet,
    since: Instant,
}

impl Ring {
    /// A ring of so many bytes that knows nothing of what ends at `floor` or before.
    pub(in crate::sweep) fn new(floor: Lsn, bytes_max: usize) -> Ring {
        Ring { sets: VecDeque::new(), bytes: 0, bytes_max, floor }
    }

    /// Every removal for a transaction that ends later than this is here, or not covered yet.
    pub(in crate::sweep) fn floor(&self) -> Lsn {
        self.floor
    }

    /// Takes keys that the watermark covers from `now` on; the oldest make room.
    pub(in crate::sweep) fn add(&mut self, covers: Lsn, keys: KeySet, now: Instant) {
        self.bytes += cost(&keys);
        self.sets.push_back(Set { covers, keys, since: now });
        while let Some(oldest) = self.sets.front()
            && (self.bytes > self.bytes_max || now - oldest.since > AGE_MAX)
        {
            // What became visible late stands behind what is later in the log (I3), so the sets are
            // in no order of their LSNs.
            self.floor = self.floor.max(oldest.covers);
            self.bytes -= cost(&oldest.keys);
            self.sets.pop_front();
        }
    }

    /// Takes out what was removed for transactions that end later than `lsn`.
    pub(in crate::sweep) fn take_above(&mut self, lsn: Lsn) -> Vec<(Lsn, KeySet)> {
        let sets = std::mem::take(&mut self.sets);
        let (above, below): (Vec<Set>, _) = sets.into_iter().partition(|set| set.covers > lsn);
        self.sets = VecDeque::from(below);
        self.bytes -= above.iter().map(|set| cost(&set.keys)).sum::<usize>();
        above.into_iter().map(|set| (set.covers, set.keys)).collect()
    }
}

fn cost(keys: &KeySet) -> usize {
    size_of::<Set>() + keys.bytes()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{AGE_MAX, Ring};
    use crate::lsn::Lsn;
    use crate::sweep::tests::{keys, rules};

    const BYTES_MAX: usize = 4 << 20;

    #[tokio::test]
    async fn the_floor_rises_with_age_and_with_bytes_and_never_falls() {
        let rules = rules();
        let began = Instant::now();
        let mut ring = Ring::new(Lsn(100), BYTES_MAX);
        ring.add(Lsn(130), keys(&rules, "item", &["1"]), began);
        ring.add(Lsn(120), keys(&rules, "item", &["2"]), began + AGE_MAX);
        assert_eq!(ring.floor(), Lsn(100), "nothing is dropped yet");
        let later = began + AGE_MAX + Duration::from_secs(1);
        ring.add(Lsn(140), keys(&rules, "item", &["3"]), later);
        assert_eq!(ring.floor(), Lsn(130), "the oldest is dropped for its age");
        ring.add(Lsn(150), keys(&rules, "item", &["4"]), later + AGE_MAX);
        assert_eq!(ring.floor(), Lsn(130), "an earlier end does not lower it");
        let ids: Vec<String> = (0..80_000).map(|id| format!("{id:0>60}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        ring.add(Lsn(160), keys(&rules, "item", &ids), later + AGE_MAX);
        assert_eq!(ring.floor(), Lsn(160), "the oldest are dropped for their size");
        assert!(ring.sets.is_empty() && ring.bytes <= BYTES_MAX, "{} bytes", ring.bytes);
    }

    #[tokio::test]
    async fn what_ends_above_is_taken_out_and_nothing_else() {
        let rules = rules();
        let mut ring = Ring::new(Lsn(100), BYTES_MAX);
        for lsn in [110, 130, 120, 140] {
            ring.add(Lsn(lsn), keys(&rules, "item", &["1"]), Instant::now());
        }
        let above: Vec<Lsn> = ring.take_above(Lsn(120)).into_iter().map(|set| set.0).collect();
        assert_eq!(above, [Lsn(130), Lsn(140)]);
        assert_eq!(ring.take_above(Lsn(100)).len(), 2);
        assert_eq!((ring.bytes, ring.floor()), (0, Lsn(100)));
    }
}
