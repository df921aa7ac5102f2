//! Whether history is unbroken, and what is in doubt where it is not (I7).
//!
//! - [`evidence`]: the watermark, and what to conclude from the one that was found;
//! - [`prints`]: fingerprints of rules, templates and tables, and what a difference puts in doubt;
//! - [`chain`]: the number of each removal, for a server that goes back unseen;
//! - [`ring`]: what was removed since the watermark, to be removed again;
//! - [`ward`]: who looks after all of this for the sweeper.

pub(super) mod chain;
pub(super) mod evidence;
pub(super) mod prints;
pub(super) mod ring;
pub(super) mod ward;
