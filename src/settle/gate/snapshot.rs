//! Snapshots: what they see, and a stream's 32-bit transaction ids made 64-bit.

use std::str::FromStr;
use std::time::Duration;

use tokio::time::Instant;

/// How long a snapshot is trusted with ids that arrive later. The 32 bits of an id are placed right
/// while fewer than 2^31 were assigned since: that would be two hundred millions a second, and one
/// lock, taken for each (varsup.c, `GetNewTransactionId`), allows a few. It costs one look every
/// ten seconds.
const TRUSTED_FOR: Duration = Duration::from_secs(10);

/// How far from a snapshot that was taken before it an id may be: half of what can be placed.
const NEAR: u32 = 1 << 30;

/// A `pg_snapshot`
/// (<https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT-PARTS>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every id below has ended.
    xmin: u64,
    /// One past the latest id that has ended.
    xmax: u64,
    /// Ids from xmin to xmax that had not ended, ascending.
    running: Vec<u64>,
}

/// A text that is not a `pg_snapshot`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot of the form `10:20:10,14`")]
pub struct ParseError;

impl FromStr for Snapshot {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Snapshot, ParseError> {
        let number = |digits: &str| digits.parse::<u64>().map_err(|_digits| ParseError);
        let mut parts = text.split(':');
        let (Some(xmin), Some(xmax), Some(list), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseError);
        };
        let mut running = Vec::new();
        for id in list.split(',').filter(|id| !id.is_empty()) {
            running.push(number(id)?);
        }
        running.sort_unstable();
        Ok(Snapshot { xmin: number(xmin)?, xmax: number(xmax)?, running })
    }
}

impl Snapshot {
    /// Whether new snapshots see the top-level transaction `xid`. Both halves matter: an id that is
    /// still in the window between its flush and its end is most often `>= xmax` and not listed.
    #[must_use]
    pub fn sees(&self, xid: u32) -> bool {
        // An id that no arithmetic places is in doubt, and doubt is "not visible".
        self.widen(xid).is_some_and(|xid| {
            xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
        })
    }

    /// The transactions with an id up to `xid` that have not ended, ascending; `None` if the
    /// snapshot does not list them all.
    pub(super) fn running_through(&self, xid: u64) -> Option<impl Iterator<Item = u64>> {
        let running = self.running.iter().copied().take_while(move |running| *running <= xid);
        (self.xmax > xid).then_some(running)
    }

    /// The 64-bit id nearest to xmax with these low 32 bits. Exact while the two are less than 2^31
    /// apart. For the id of a transaction that is not confirmed, and a snapshot that was taken
    /// after the id arrived, Postgres enforces that: the slot's `catalog_xmin` is no later than the
    /// id (snapbuild.c: it follows what ran at the confirmed LSN), and no id is assigned that is
    /// 2^31 after it. An older snapshot knows nothing of the ids since, see [`Seen`].
    pub(super) fn widen(&self, xid: u32) -> Option<u64> {
        self.xmax.checked_add_signed(i64::from(self.distance(xid)))
    }

    /// From xmax, the shorter way round.
    fn distance(&self, xid: u32) -> i32 {
        let low = u32::try_from(self.xmax & 0xFFFF_FFFF).expect("masked to 32 bits");
        xid.wrapping_sub(low).cast_signed()
    }
}

/// A snapshot that is remembered, for ids that arrive after it was taken.
#[derive(Debug)]
pub(super) struct Seen {
    snapshot: Snapshot,
    /// When it was asked for.
    asked_at: Instant,
}

impl Seen {
    /// `snapshot` was asked for at `asked_at`.
    pub(super) fn new(snapshot: Snapshot, asked_at: Instant) -> Seen {
        Seen { snapshot, asked_at }
    }

    /// The snapshot itself, for ids that were known before it was taken.
    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Whether new snapshots see `xid`, which has just arrived. Where the memory may be too old to
    /// place the id, that is in doubt.
    pub(super) fn sees(&self, xid: u32) -> bool {
        let is_near = self.snapshot.distance(xid).unsigned_abs() < NEAR;
        is_near && self.asked_at.elapsed() < TRUSTED_FOR && self.snapshot.sees(xid)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::{Duration, Instant, ParseError, Seen, Snapshot, TRUSTED_FOR};

    fn check(text: &str, rows: &[(u32, bool)]) {
        let snapshot: Snapshot = text.parse().unwrap();
        for (xid, sees) in rows {
            assert_eq!(snapshot.sees(*xid), *sees, "{xid} in {text}");
        }
    }

    #[test]
    fn both_halves_of_the_test_count() {
        check("10:10:", &[(9, true), (10, false), (11, false)]);
        check(
            "10:20:10,14",
            &[(9, true), (10, false), (11, true), (14, false), (19, true), (20, false)],
        );
        check("10:20:14,10", &[(10, false), (14, false), (12, true)]);
    }

    #[test]
    fn ids_are_widened_by_signed_distance_across_the_epoch() {
        // xmax is 5 past the third epoch's start.
        let text = format!("{}:{}:{}", (3_u64 << 32) - 9, (3_u64 << 32) + 5, (3_u64 << 32) - 2);
        check(
            &text,
            &[
                (u32::MAX - 9, true),
                (u32::MAX - 1, false),
                (u32::MAX, true),
                (0, true),
                (4, true),
                (5, false),
                (6, false),
            ],
        );
        // Just below an epoch's end, an id that has wrapped is in the future.
        let text = format!("{0}:{0}:", (3_u64 << 32) - 1);
        check(&text, &[(u32::MAX - 1, true), (u32::MAX, false), (0, false), (7, false)]);
        // Exact up to 2^31 apart on either side.
        check(
            &format!("{0}:{0}:", (1_u64 << 33) + (1 << 31)),
            &[(1, true), ((1 << 31) - 1, true), (1 << 31, false), (u32::MAX, false)],
        );
    }

    #[test]
    fn an_id_before_the_first_is_in_doubt() {
        check("5:5:", &[(u32::MAX - 3, false), (3, true)]);
    }

    #[test]
    fn what_runs_up_to_an_id_is_listed_or_not_known() {
        let snapshot: Snapshot = "10:20:14,10".parse().unwrap();
        for (xid, running) in
            [(9, Some(vec![])), (10, Some(vec![10])), (19, Some(vec![10, 14])), (20, None)]
        {
            assert_eq!(snapshot.running_through(xid).map(Vec::from_iter), running, "{xid}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_memory_serves_ids_that_are_near_for_a_while() {
        let first = 3_000_000_000_u32;
        let snapshot: Snapshot = format!("{first}:{first}:").parse().unwrap();
        let seen = Seen::new(snapshot, Instant::now());
        for (xid, sees) in
            [(first - 1, true), (first - (1 << 30) + 1, true), (first - (1 << 30), false)]
        {
            assert_eq!(seen.sees(xid), sees, "{xid}");
            assert!(seen.snapshot().sees(xid), "{xid}");
        }
        assert!(!seen.sees(first) && !seen.sees(first + 1));
        advance(TRUSTED_FOR - Duration::from_millis(1)).await;
        assert!(seen.sees(first - 1));
        advance(Duration::from_millis(1)).await;
        assert!(!seen.sees(first - 1));
    }

    #[test]
    fn a_malformed_snapshot_is_an_error() {
        for text in ["", "1", "1:2", "1:2:3:4", "a:2:", "1:2:x", "1:2:3,-4"] {
            assert_eq!(text.parse::<Snapshot>(), Err(ParseError), "{text}");
        }
    }
}
