//! The stage that walsweep is shown and tested on, and no part of what it does: servers that end
//! with whoever started them, and a football site on them whose cache it keeps.
//!
//! Takes: the Postgres and the Redis that are installed, and walsweep itself as a program. Never
//! knows: walsweep's library, which depends on this crate for `walsweep demo` alone; its tests use
//! the servers. Promises nobody a stable interface.

pub mod demo;
pub mod throwaway;
