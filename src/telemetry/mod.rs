//! All that people and machines see of a running walsweep: metrics, health over HTTP, the log, and
//! what systemd is told.
//!
//! Takes: what each part reports of itself. Gives: `/metrics`, `/healthz`, `/readyz`, log lines,
//! messages of `sd_notify(3)`.
//! Never knows: how any part works; it judges only what it is told.

pub mod health;
pub mod http;
mod labels;
pub mod logging;
pub mod metrics;
pub mod notify;
mod repeats;
pub mod server_clock;
mod table;
pub mod words;
#[cfg(test)]
pub(crate) mod health_tests;

pub use health::{Health, Phase, Topic};
