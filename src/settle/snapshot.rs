//! What a snapshot sees, and a stream's 32-bit transaction ids made 64-bit.

use std::str::FromStr;

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

    /// Whether every transaction with an id up to `xid` has ended.
    #[must_use]
    pub fn all_ended_through(&self, xid: u64) -> bool {
        self.xmin > xid
    }

    /// The 64-bit id nearest to xmax with these low 32 bits. Exact while the two are less than 2^31
    /// apart, which Postgres enforces: the slot's `catalog_xmin` holds back wraparound.
    pub(super) fn widen(&self, xid: u32) -> Option<u64> {
        let low = u32::try_from(self.xmax & 0xFFFF_FFFF).expect("masked to 32 bits");
        let distance = xid.wrapping_sub(low).cast_signed();
        self.xmax.checked_add_signed(i64::from(distance))
    }
}

#[cfg(test)]
mod tests {
    use super::{ParseError, Snapshot};

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
    fn a_fence_is_passed_when_all_up_to_it_have_ended() {
        let snapshot: Snapshot = "10:20:10,14".parse().unwrap();
        assert!(snapshot.all_ended_through(9));
        assert!(!snapshot.all_ended_through(10));
    }

    #[test]
    fn a_malformed_snapshot_is_an_error() {
        for text in ["", "1", "1:2", "1:2:3:4", "a:2:", "1:2:x", "1:2:3,-4"] {
            assert_eq!(text.parse::<Snapshot>(), Err(ParseError), "{text}");
        }
    }
}
