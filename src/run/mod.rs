//! The program as it runs: sessions one after the other, and the stages of each joined.
//!
//! - [`program`]: one session after the other, and what follows one that ended;
//! - [`pipeline`]: the order of the stages;
//! - `attempts`: when the next one is tried, and whether sessions get anywhere;
//! - `course`: everything that one leaves for the next;
//! - `ended`: the words for one that ended, or could not be had;
//! - [`session`]: how one begins;
//! - [`reload`]: a new configuration, between two sessions;
//! - `redis_checks`: whether a start, or a reload, goes on with each Redis;
//! - [`stream`]: the loop from the slot to the gate, and from the targets back to the slot;
//! - `targets`: a task for each, which the simulation joins in the same way;
//! - `vouched`: what stands between both where the slot is on a standby;
//! - [`error`]: why one ends, whether the next is tried, and what a person can do;
//! - [`shutdown`]: the wish to stop, or that another session begins.

mod attempts;
mod course;
mod ended;
pub mod error;
pub mod pipeline;
pub mod program;
mod redis_checks;
pub mod reload;
pub mod session;
pub mod shutdown;
pub mod stream;
mod targets;
mod task;
mod vouched;
