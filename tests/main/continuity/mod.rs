//! I7: ready only when history is shown to be unbroken, or what was lost is removed again. Redis,
//! Postgres and the watermark attacked from every side; at rest no cached value is stale.

mod chain;
mod doubt;
mod postgres;
mod redis;
mod replicas;
mod start;
mod swapped;
