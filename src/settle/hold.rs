//! Holds: each stands for many transactions that end as one.
//!
//! Once the keys of a transaction are removed, nothing about it is needed but that it must not be
//! confirmed yet: before its keys' second removal, before a replica has replayed it, before Redis
//! takes a removal that it refused. All that wait for the same share one [`Hold`], so that waiting
//! costs the same however many there are (I6).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::TargetId;
use crate::lsn::Lsn;
use crate::telemetry::Trail;

/// Names what holds back the confirmation of transactions; of no other process's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hold(u64);

impl Hold {
    /// A name that no other hold of this process has.
    #[must_use]
    pub fn new_name() -> Hold {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Hold(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Gives the number that is its name.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Says what a hold holds back from now on, beside what it held before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The hold.
    pub by: Hold,
    /// End LSNs of transactions in flight.
    pub end_lsns: Vec<Lsn>,
    /// Other holds: all that they hold back.
    pub holds: Vec<Hold>,
    /// Whether the transactions and the other holds are done with apart from this.
    pub moved: bool,
}

impl Held {
    /// Whether nothing is held that was not held before.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end_lsns.is_empty() && self.holds.is_empty()
    }

    /// Tells what is remembered of transactions at a target who stands for them now.
    pub fn tell(&self, target: TargetId, trail: &Trail) {
        if self.moved {
            let holds: Vec<u64> = self.holds.iter().map(|hold| hold.number()).collect();
            trail.held(target, self.by.number(), &self.end_lsns, &holds);
        }
    }

    /// A transaction in flight that waits for this hold, too.
    #[must_use]
    pub fn also(by: Hold, end_lsn: Lsn) -> Held {
        Held { by, end_lsns: vec![end_lsn], holds: Vec::new(), moved: false }
    }

    /// A hold that becomes part of another.
    #[must_use]
    pub fn merged(by: Hold, other: Hold) -> Held {
        Held { by, end_lsns: Vec::new(), holds: vec![other], moved: true }
    }
}
