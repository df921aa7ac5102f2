//! A model of the promise, explored to the end by a checker (<https://www.stateright.rs>).
//!
//! What is modelled, and the code that it stands for:
//!
//! - `environment.rs`: Postgres, whose commits are flushed in one order and become visible in
//!   another, or never; a slot that somebody moves; a standby that is promoted without the last
//!   commits; an application that locks the rules' tables, perhaps for good. A reader that misses,
//!   reads at a new snapshot and writes later. A Redis that goes back to a prefix of its commands,
//!   held by a replica or a file, or that refuses the keys of a rule; there may be two, each a
//!   target, and one may be away, perhaps for good. The end of walsweep anywhere.
//! - `sidecar.rs`, walsweep:
//!   - `PassGate`, a snapshot contains the commit, and the fence: `src/settle/gate/mod.rs`;
//!   - `Unlink`, `BeginPass`, `Page`, `JoinPass`, removals, bucket by bucket in a pass, and which
//!     patterns it takes: `src/sweep/{sweeper,queue,pass}.rs`;
//!   - `SecondDue`, the refill window, and `hold`, what is held so long: `src/sweep/refill.rs`;
//!   - `Refused`, `Retry`, what Redis refuses: `src/sweep/sweeper.rs`;
//!   - `Ask`, a question about the tables that waits for a lock: `src/source/shape.rs`;
//!   - `safe`, `Confirm`, what is complete on a target, and the least of all, which Postgres is
//!     told: `src/ledger/mod.rs`, `src/run/stream/mod.rs`;
//!   - `is_fed`, a target that is full and one that is not: `src/sweep/fan_out.rs`;
//!   - `start`, `reconnect`, what a watermark proves and what is repeated: `src/run/session.rs`,
//!     `src/sweep/{evidence,ward,sweeper,ring}.rs`;
//!   - `WriteWatermark`, `Probe`, compare and set: `src/sweep/{ward,standalone}.rs`;
//!   - `holds`, whether the number of removals is right: `src/sweep/{chain,standalone}.rs`.
//!
//! `rule.rs` lists the rules, `explore.rs` the properties: I1, I2 and the sparing of sweeps hold in
//! every state; I3, I7, I8 and I10 in every state at rest, where walsweep has no step left and the
//! reader has written. Every run ends there: faults and reads are counted and no step repeats
//! itself. "At rest" says of I3 that a commit that waits stops no other, and of I10 that neither
//! does a lock that is never given back, nor a right or a target that never comes back.
//!
//! What is left out. Time: a window is over when the value that was read before the first removal
//! has been written, which is what "a fill is not later than the window" means; a test takes that
//! away. A round trip is one step: whether a lost reply was lost before or after its command is the
//! same to walsweep, which repeats it. Batches, limits and the pace of a pass change the order of
//! steps, never what a step may do. A question that waits is not given up, and a refused key is
//! tried again only where that changes something: both would repeat themselves. What a full target
//! has no room for is merged: its jobs stay apart here, and one first removal that waits fills it.
//! All first removals share one hold, as if the window were endless. What a lock holder changes is
//! not modelled. Where names are observed, fewer keys are removed again: the model removes all of
//! them. Buckets are the same on every server. It forgets no removal within a session. A server
//! that restarts uncleanly is like a promotion, other rules are like a missing watermark, and
//! standbys that readers use are not there. One row has one key, two transactions never write the
//! same row, and there are two buckets.

#![allow(clippy::panic, clippy::print_stdout, reason = "a test may fail, and tells what it found")]

mod broken;
mod environment;
mod explore;
mod rule;
mod sidecar;
mod state;
mod step;
mod whole;
