//! Changes to keys, by the rules of the configuration.
//!
//! Takes: a [`Change`](crate::gather::Change). Gives: its keys, in a [`KeySet`]. Never knows:
//! sockets, visibility, time. Invariants: a value never becomes syntax (I4); what is unknown becomes
//! `*` (I5); a set never outgrows its limit, it collapses to its rule's pattern (I6).

mod pattern;
mod set;

pub use pattern::Pattern;
pub use set::{KeySet, Limits, RuleId, WidenReason};
