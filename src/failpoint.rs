//! Places where a test lets the program die, to prove that no crash loses a removal (I2).
//!
//! `WALSWEEP_TEST_CRASH=swept` ends the process the first time that it reaches the point `swept`,
//! `WALSWEEP_TEST_CRASH=swept:5` the fifth time: at once, without a farewell, as a kernel would.
//! The points exist only with the feature `failpoints`, which no release build has.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The environment variable that names the point.
pub const VARIABLE: &str = "WALSWEEP_TEST_CRASH";

/// A step after which a crash must lose nothing, in the order of the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// COMMIT was received, the gate does not know yet.
    Received,
    /// A snapshot shows the transaction, the sweeper does not know yet.
    Visible,
    /// A batch of exact keys is removed.
    ExactRemoved,
    /// A page of a SCAN pass is removed, others are still to come.
    PageRemoved,
    /// A SCAN pass is through.
    PassDone,
    /// All keys of a transaction are removed for the first time.
    FirstRemoved,
    /// The second removal is due.
    SecondDue,
    /// The last removal of a transaction's keys is done; nobody knows yet.
    Swept,
    /// The watermark is about to be written.
    WatermarkDue,
    /// The watermark is written, the slot is not told yet.
    WatermarkWritten,
    /// The LSN is about to be told to Postgres.
    ConfirmDue,
    /// The LSN is told to Postgres.
    Confirmed,
    /// A sweep of everything is owed, and has not begun.
    ResyncOwed,
    /// A sweep of everything is through once, its second removal is to come.
    ResyncShown,
}

impl Point {
    /// Every point.
    pub const ALL: [Point; 14] = [
        Point::Received,
        Point::Visible,
        Point::ExactRemoved,
        Point::PageRemoved,
        Point::PassDone,
        Point::FirstRemoved,
        Point::SecondDue,
        Point::Swept,
        Point::WatermarkDue,
        Point::WatermarkWritten,
        Point::ConfirmDue,
        Point::Confirmed,
        Point::ResyncOwed,
        Point::ResyncShown,
    ];

    /// The point's name in [`VARIABLE`].
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Point::Received => "received",
            Point::Visible => "visible",
            Point::ExactRemoved => "exact_removed",
            Point::PageRemoved => "page_removed",
            Point::PassDone => "pass_done",
            Point::FirstRemoved => "first_removed",
            Point::SecondDue => "second_due",
            Point::Swept => "swept",
            Point::WatermarkDue => "watermark_due",
            Point::WatermarkWritten => "watermark_written",
            Point::ConfirmDue => "confirm_due",
            Point::Confirmed => "confirmed",
            Point::ResyncOwed => "resync_owed",
            Point::ResyncShown => "resync_shown",
        }
    }
}

/// Ends the process here if a test asks for it.
#[inline]
pub fn reach(point: Point) {
    if cfg!(feature = "failpoints") {
        crash_if_asked(point);
    }
}

fn crash_if_asked(point: Point) {
    static ASKED: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static REACHED: AtomicU32 = AtomicU32::new(0);
    let asked = ASKED.get_or_init(|| std::env::var(VARIABLE).ok().and_then(|text| parse(&text)));
    let Some((name, times)) = asked else { return };
    if name == point.as_str() && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == *times {
        std::process::abort();
    }
}

/// The point's name and how often it is reached.
fn parse(text: &str) -> Option<(String, u32)> {
    let (name, times) = text.split_once(':').unwrap_or((text, "1"));
    Some((name.to_owned(), times.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{Point, parse};

    #[test]
    fn a_point_is_named_with_how_often_it_is_reached() {
        assert_eq!(parse("swept"), Some(("swept".to_owned(), 1)));
        assert_eq!(parse("swept:5"), Some(("swept".to_owned(), 5)));
        assert_eq!(parse("swept:x"), None);
    }

    #[test]
    fn every_point_has_a_name_of_its_own() {
        let mut names = Point::ALL.map(Point::as_str);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }
}
